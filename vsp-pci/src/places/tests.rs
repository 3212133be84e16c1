//! What is mapped, what is trapped, and what the core is told.

use super::*;
use crate::backend::Backend;
use crate::mock::Model;
use crate::testing::Bare;

const WINDOW: u64 = 0xf800_0000;

/// A function with its registers at these addresses.
fn placed(model: Model, addresses: &[(u16, u32)]) -> (Config, Bare) {
    let bare = Bare::new(model);
    let mut config = Config::of(&bare).unwrap();
    for (bar, address) in addresses {
        config.write(0x10 + 4 * bar, &address.to_le_bytes(), &bare);
    }
    config.write(4, &[2], &bare);
    (config, bare)
}

fn wanted(config: &Config, bare: &Bare) -> Vec<(u64, u64, What)> {
    let all = Places::wanted(Some(WINDOW), config, &bare.info().regions);
    all.into_iter().map(|place| (place.gpa, place.bytes, place.what)).collect()
}

#[test]
fn registers_are_mapped_but_for_the_table_of_messages() {
    let (config, bare) = placed(Model::drive(), &[(0, 0xf900_0000)]);
    let offset = bare.info().regions[0].as_ref().unwrap().offset;
    assert_eq!(
        wanted(&config, &bare),
        [
            (WINDOW, 0x2000, What::Window),
            (0xf900_0000, 0x2000, What::Map { offset }),
            (0xf900_2000, 0x2000, What::Trap { bar: 0, at: 0x2000 }),
        ]
    );
    let (config, bare) = placed(Model::nic(), &[(0, 0xf900_0000), (1, 0xf902_0000), (3, 0xf904_0000)]);
    let all = wanted(&config, &bare);
    assert_eq!(all.len(), 1 + 2 + 2, "{all:x?}");
    assert_eq!(all[3], (0xf904_0000, 0x2000, What::Trap { bar: 3, at: 0 }));
    assert!(matches!(all[4], (0xf904_2000, 0x2000, What::Map { .. })));
}

#[test]
fn registers_smaller_than_a_page_have_one() {
    let (config, bare) = placed(Model::small(), &[(0, 0xf900_0000)]);
    assert_eq!(wanted(&config, &bare)[1..], [(0xf900_0000, 0x1000, What::Map { offset: 4096 })]);
    let mut model = Model::small();
    model.bars[0].as_mut().unwrap().is_mappable = false;
    let (config, bare) = placed(model, &[(0, 0xf900_0000)]);
    assert_eq!(wanted(&config, &bare)[1..], [(0xf900_0000, 0x1000, What::Trap { bar: 0, at: 0 })]);
}

#[test]
fn nothing_is_seen_while_memory_is_off() {
    let (mut config, bare) = placed(Model::drive(), &[(0, 0xf900_0000)]);
    config.write(4, &[0], &bare);
    assert_eq!(wanted(&config, &bare), [(WINDOW, 0x2000, What::Window)]);
    assert_eq!(Places::wanted(None, &config, &bare.info().regions), []);
}

#[test]
fn registers_over_the_window_or_over_others_are_not_seen() {
    let (config, bare) = placed(Model::nic(), &[(0, 0xf900_0000), (1, 0xf900_0000), (3, WINDOW as u32)]);
    let all = wanted(&config, &bare);
    assert_eq!(all[0], (WINDOW, 0x2000, What::Window));
    assert_eq!(all.iter().filter(|(gpa, ..)| *gpa == WINDOW).count(), 1);
    assert_eq!(all.iter().filter(|(gpa, ..)| *gpa == 0xf900_0000).count(), 1);
}

fn place(gpa: u64, what: What) -> Place {
    Place { gpa, bytes: 0x2000, what }
}

#[test]
fn the_core_is_told_of_changes_and_answers_each() {
    let mut places = Places::default();
    let (window, map) = (place(0x1000, What::Window), place(0x9000, What::Map { offset: 7 }));
    let trap = Order::Trap { gpa: 0x1000, bytes: 0x2000 };
    assert_eq!(places.want(&[window, map]), [trap, Order::Map { gpa: 0x9000, bytes: 0x2000, offset: 7 }]);
    assert!(!places.is_settled() && places.want(&[window, map]).is_empty());
    assert_eq!(places.answered(0x1000, true, true), Some(window));
    assert_eq!(places.answered(0x1000, true, true), None, "nobody has asked");
    assert_eq!(places.answered(0x9000, false, false), Some(map));
    assert!(places.is_settled() && places.want(&[window, map]).is_empty(), "refused once is refused");
    assert_eq!(places.want(&[window]), [], "there is nothing to take away");
    assert_eq!(places.want(&[window, map]).len(), 1, "wanted anew");
    assert_eq!(places.find(0x1ff8, 8), Some((What::Window, 0xff8)));
    assert_eq!((places.find(0x2ffc, 8), places.find(0x9000, 4)), (None, None));
}

#[test]
fn an_answer_that_comes_late_is_for_its_own_question() {
    let mut places = Places::default();
    let (first, second) = (place(0x9000, What::Map { offset: 1 }), place(0x9000, What::Map { offset: 2 }));
    places.want(&[first]);
    assert_eq!(
        places.want(&[second]),
        [Order::Unmap { gpa: 0x9000 }, Order::Map { gpa: 0x9000, bytes: 0x2000, offset: 2 }]
    );
    assert_eq!(places.answered(0x9000, false, false), None);
    assert!(!places.is_settled());
    assert_eq!(places.answered(0x9000, false, true), Some(second));
    places.lost(0x9fff);
    assert_eq!(places.want(&[second]).len(), 1, "it is asked for anew, if the guest wants it anew");
}
