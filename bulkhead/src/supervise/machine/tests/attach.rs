//! Devices that come and go while the VM runs.

use super::*;

impl Story {
    /// One that has been given a third device, served by process 3.
    fn with_added(spare: bool) -> Self {
        let mut story = Self::serving();
        assert_eq!(story.on(Event::Attached(wanted("nic", spare))), [start(2, 3)]);
        let started = story.says(3, Word::Serving);
        assert_eq!(started.len(), usize::from(spare));
        story
    }
}

#[test]
fn a_device_that_comes_is_like_any_other() {
    let mut story = Story::with_added(false);
    assert_eq!(story.ends(3, KILLED), [start(2, 4)]);
    assert_eq!(story.says(4, Word::Serving), []);
    assert!(!story.vm.has_left(2));
    assert_eq!(story.vm.devices().count(), 3);
}

#[test]
fn a_device_that_cannot_be_opened_is_taken_back_and_the_vm_runs_on() {
    let mut story = Story::serving();
    assert_eq!(story.on(Event::Attached(wanted("nic", false))), [start(2, 3)]);
    let death = Death::Exited(1);
    assert_eq!(story.ends(3, death.clone()), [Action::TakeBack { device: 2, death }]);
    assert!(story.vm.has_left(2) && story.vm.is_running());
    assert_eq!(story.lives(LONGEST_DELAY, &[1, 2]), [], "nobody follows");
}

#[test]
fn who_ends_because_the_core_gives_the_device_up_is_followed_by_nobody() {
    let mut story = Story::with_added(false);
    assert_eq!(story.on(Event::Detaching(2, true)), []);
    assert_eq!(story.ends(3, Death::Exited(0)), []);
    assert_eq!(story.after(BENEFIT_OF_DOUBT * 4), [], "the core's word is on its way");
    assert_eq!(story.on(Event::Detached(2)), []);
    assert!(story.vm.has_left(2));
    assert_eq!(story.lives(LONGEST_DELAY * 2, &[1, 2]), []);
}

#[test]
fn who_is_killed_meanwhile_is_followed_because_somebody_has_to_quiet_the_device() {
    let mut story = Story::with_added(false);
    assert_eq!(story.on(Event::Detaching(2, true)), []);
    assert_eq!(story.ends(3, KILLED), [start(2, 4)]);
    assert_eq!(story.on(Event::Detached(2)), []);
    assert!(!story.vm.has_left(2));
    assert_eq!(story.after(GRACE), [kill(4)], "it had its time to go");
    assert_eq!(story.ends(4, KILLED), []);
    assert!(story.vm.has_left(2));
}

#[test]
fn a_core_that_refuses_leaves_the_device_as_it_was() {
    let mut story = Story::with_added(false);
    assert_eq!(story.on(Event::Detaching(2, true)), []);
    assert_eq!(story.on(Event::Detaching(2, false)), []);
    assert_eq!(story.ends(3, Death::Exited(0)), []);
    assert_eq!(story.after(BENEFIT_OF_DOUBT), [start(2, 4)]);
}

#[test]
fn its_spare_goes_with_it_and_the_number_is_nobodys_again() {
    let mut story = Story::with_added(true);
    assert_eq!(story.says(4, Word::StandingBy), []);
    assert_eq!(story.on(Event::Detached(2)), []);
    assert_eq!(story.ends(3, Death::Exited(0)), []);
    assert!(!story.vm.has_left(2));
    assert_eq!(story.ends(4, Death::Exited(0)), []);
    assert!(story.vm.has_left(2));
    assert_eq!(story.on(Event::Attached(wanted("nic", false))), [start(3, 5)], "numbers stay what they are");
}

#[test]
fn a_vm_that_ends_takes_nothing_in() {
    let mut story = Story::serving();
    let _ = story.on(Event::Quit);
    assert_eq!(story.on(Event::Attached(wanted("nic", false))), []);
    let _ = story.on(Event::CoreEnded(KILLED));
    for id in [1, 2] {
        let _ = story.ends(id, Death::Exited(0));
    }
    assert!(story.vm.ended().is_some());
}
