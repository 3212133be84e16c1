//! Numbers, eventfds and vectors.

use super::*;
use crate::mock::Model;
use crate::testing::{Asked, Bare};

fn counts(bells: &Bells, number: u32) -> bool {
    nix::unistd::read(&**bells.get(number).unwrap(), &mut [0; 8]).is_ok()
}

fn rig() -> (Interrupts, Bells, Bare) {
    (Interrupts::default(), Bells::new(16).unwrap(), Bare::new(Model::nic()))
}

#[test]
fn the_lowest_numbers_are_given_again() {
    let (mut interrupts, bells, _) = rig();
    for number in 0..3 {
        assert_eq!(interrupts.find(1, &bells), Some(number));
        interrupts.give(number, 1);
    }
    assert_eq!(interrupts.take_back(1), Some(1));
    assert_eq!(interrupts.find(1, &bells), Some(1));
    assert_eq!(interrupts.take_back(1), None, "once");
    // Several in a row begin where the function can put their number into the value.
    assert_eq!(interrupts.find(4, &bells), Some(4));
    interrupts.give(4, 4);
    assert!(interrupts.has(7) && !interrupts.has(8) && !interrupts.has(1));
    assert_eq!(interrupts.find(8, &bells), Some(8));
    interrupts.give(8, 8);
    assert_eq!((interrupts.find(4, &bells), interrupts.find(2, &bells)), (None, None));
    for nonsense in [0, 3, 64, u16::MAX] {
        assert_eq!(interrupts.find(nonsense, &bells), None);
    }
    assert_eq!((Bells::count(5), Bells::count(2048)), (13, MAX_VECTORS));
}

#[test]
fn the_function_is_told_once_and_only_of_changes() {
    let (mut interrupts, bells, mut bare) = rig();
    interrupts.give(0, 1);
    interrupts.give(1, 1);
    let msix = Some(Kind::MsiX);
    interrupts.apply(msix, &[None, None], &bells, &mut bare);
    interrupts.apply(msix, &[Some(0), None], &bells, &mut bare);
    interrupts.apply(msix, &[Some(0), Some(1)], &bells, &mut bare);
    // Masked and let loose again: nobody need be told.
    interrupts.apply(msix, &[None, Some(1)], &bells, &mut bare);
    interrupts.apply(msix, &[Some(0), Some(1)], &bells, &mut bare);
    let attach = |vector| Asked::Attach(Kind::MsiX, vector, true);
    assert_eq!(bare.asked, [Asked::Enable(Kind::MsiX, vec![false; 2]), attach(0), attach(1)]);
    assert!(!counts(&bells, 0) && !counts(&bells, 1));
    interrupts.apply(None, &[], &bells, &mut bare);
    assert_eq!(bare.asked.last(), Some(&Asked::Disable(Kind::MsiX)));
}

#[test]
fn an_interrupt_that_may_have_been_lost_comes_again() {
    let (mut interrupts, bells, mut bare) = rig();
    interrupts.give(0, 1);
    let msix = Some(Kind::MsiX);
    interrupts.apply(msix, &[Some(0)], &bells, &mut bare);
    // A guest moves it: masks, gives it back, asks for another, which is the same one.
    interrupts.apply(msix, &[None], &bells, &mut bare);
    interrupts.take_back(0);
    interrupts.give(0, 1);
    assert!(!counts(&bells, 0));
    interrupts.apply(msix, &[Some(0)], &bells, &mut bare);
    assert!(counts(&bells, 0) && !counts(&bells, 0));
    assert_eq!(bare.asked.len(), 1, "the function was not told");
}

#[test]
fn a_number_belongs_to_one_vector() {
    let (mut interrupts, bells, mut bare) = rig();
    interrupts.give(0, 1);
    let msix = Some(Kind::MsiX);
    interrupts.apply(msix, &[Some(0), None], &bells, &mut bare);
    interrupts.apply(msix, &[None, Some(0)], &bells, &mut bare);
    let attach = |vector, on| Asked::Attach(Kind::MsiX, vector, on);
    assert_eq!(bare.asked[1..], [attach(0, false), attach(1, true)]);
}

#[test]
fn a_host_without_vectors_is_asked_again() {
    let (mut interrupts, bells, mut bare) = rig();
    interrupts.give(0, 1);
    bare.is_full = true;
    interrupts.apply(Some(Kind::Msi), &[Some(0)], &bells, &mut bare);
    assert_eq!(interrupts.kind(), None);
    bare.is_full = false;
    interrupts.apply(Some(Kind::Msi), &[Some(0)], &bells, &mut bare);
    assert_eq!(interrupts.kind(), Some(Kind::Msi));
    // A successor does nothing again that is done.
    let mut next = Interrupts::default();
    next.give(0, 1);
    let before = bare.asked.len();
    next.resume(Some(Kind::Msi), vec![Some(0)]);
    next.apply(Some(Kind::Msi), &[Some(0)], &bells, &mut bare);
    assert_eq!(bare.asked.len(), before);
}
