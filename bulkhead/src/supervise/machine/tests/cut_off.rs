//! Whom the core means when it has cut a process off.

use super::*;

fn cut_off(had_channels: bool) -> Event {
    Event::CutOff { device: 0, had_channels, reason: "it did not close its channel".to_owned() }
}

/// Process 1 serves, process 3 is to take over from it and stands by.
fn handover() -> Story {
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    assert_eq!(story.says(3, Word::StandingBy), [Action::AskForSwap { device: 0 }]);
    story
}

#[test]
fn who_is_cut_off_is_killed_and_its_successor_is_not() {
    let mut story = Story::serving();
    assert_eq!(story.on(cut_off(true)), [kill(1)]);
    assert_eq!(story.on(cut_off(true)), [], "once is enough");
    assert_eq!(story.ends(1, KILLED), [start(0, 3)]);
    assert_eq!(
        story.disk0().last_death.unwrap().0.to_string(),
        "was cut off by the core and killed: it did not close its channel"
    );
    assert_eq!(story.on(cut_off(true)), [], "said late");
    assert_eq!(story.on(Event::CutOff { device: 7, had_channels: true, reason: String::new() }), []);
}

#[test]
fn a_spare_that_misbehaves_costs_itself_only() {
    let mut story = Story::with_spare();
    assert_eq!(story.on(cut_off(false)), [kill(3)]);
    assert_eq!(story.ends(3, KILLED), [start(0, 4)]);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(1)), State::Serving));
    // It may have ended before the core's word comes.
    let mut story = Story::serving();
    assert_eq!(story.on(cut_off(false)), []);
    // So does a candidate, before and in the hand-over.
    for let_go in [false, true] {
        let mut story = handover();
        if let_go {
            let _ = story.says(1, Word::Quiet);
        }
        assert_eq!(story.on(cut_off(false)), [kill(3)]);
        assert_eq!(story.ends(3, KILLED), []);
        let actions = story.on(Event::SwapFailed(0, "it breaks the protocol".to_owned()));
        assert!(is_refusal(&actions[0], "it breaks the protocol; the old process serves as before"));
    }
}

#[test]
fn a_process_that_is_cut_off_before_it_serves_is_killed() {
    let mut story = Story::serving();
    let _ = story.ends(1, KILLED);
    assert_eq!(story.on(cut_off(false)), [kill(3)]);
    assert_eq!(story.ends(3, KILLED), [start(0, 4)]);
}

#[test]
fn one_that_is_cut_off_while_it_waits_for_its_resource_is_killed() {
    // The first one of all.
    let mut story = Story::new(true);
    assert_eq!(story.on(cut_off(false)), [kill(1)]);
    // The core says so again until it has ended.
    assert_eq!((story.on(cut_off(true)), story.on(cut_off(true))), (vec![], vec![]));
    assert_eq!(story.ends(1, KILLED), [start(0, 3)]);
    assert_eq!(story.on(cut_off(true)), [], "said late");
    // The one that stood by, which the core has told to serve, whether or not we know that the other one has ended.
    let mut story = Story::with_spare();
    assert_eq!(story.on(cut_off(false)), [kill(3)]);
    let mut story = Story::with_spare();
    assert_eq!(story.ends(1, KILLED), []);
    assert_eq!(story.on(cut_off(false)), [kill(3)]);
    assert_eq!(story.on(cut_off(true)), []);
    assert_eq!(story.ends(3, KILLED), [start(0, 4)]);
}

#[test]
fn the_new_one_is_killed_if_it_is_cut_off_while_it_waits_in_a_swap() {
    for quiet_first in [true, false] {
        let mut story = handover();
        if quiet_first {
            let _ = story.says(1, Word::Quiet);
        }
        assert_eq!(story.on(cut_off(false)), [kill(3)]);
        let _ = story.says(1, Word::Quiet);
        assert_eq!(story.on(cut_off(true)), [], "it is being killed");
        assert_eq!(story.ends(3, KILLED), []);
        let actions = story.on(Event::SwapFailed(0, "it did not take over in time".to_owned()));
        assert!(is_refusal(&actions[0], "the old process serves as before"));
        let _ = story.says(1, Word::Serving);
        assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(1)), State::Serving));
    }
}

#[test]
fn one_that_says_that_it_serves_and_waits_is_killed_when_the_core_says_it_again() {
    let mut story = Story::new(true);
    assert_eq!(story.says(1, Word::Serving), [start(0, 3)]);
    assert_eq!(story.on(cut_off(false)), [kill(3)], "as far as we know");
    let _ = story.ends(3, KILLED);
    assert_eq!(story.on(cut_off(true)), [kill(1)]);
}

#[test]
fn if_either_may_be_meant_and_nobody_serves_both_are_started_anew() {
    let mut story = Story::with_spare();
    let _ = story.ends(1, KILLED);
    assert_eq!(story.after(SPARE_PAUSE), [start(0, 4)]);
    let _ = story.says(4, Word::StandingBy);
    assert_eq!(story.on(cut_off(false)), [kill(4), kill(3)]);
    // But one that says that the core has given it the device is not the one that never had it.
    let mut story = Story::with_spare();
    let _ = story.ends(1, KILLED);
    let _ = story.after(SPARE_PAUSE);
    let _ = story.says(4, Word::Serving);
    assert_eq!(story.on(cut_off(false)), [kill(3)]);
    assert_eq!(story.ends(3, KILLED), []);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(4)), State::Serving));
    assert_eq!(story.after(SPARE_REST), [start(0, 5)]);
}

#[test]
fn who_is_cut_off_in_a_swap_is_the_one_that_has_the_device() {
    // The old one does not let go.
    let mut story = handover();
    assert_eq!(story.on(cut_off(true)), [kill(1)]);
    // It has let go, and the new one cannot do with it what it has to.
    let mut story = handover();
    let _ = story.says(1, Word::Quiet);
    assert_eq!(story.on(cut_off(true)), [kill(3)]);
    assert_eq!(story.ends(3, KILLED), []);
    let actions = story.on(Event::SwapFailed(0, "the new process did not answer".to_owned()));
    assert!(is_refusal(&actions[0], "the new process did not answer; the old process serves as before"));
    let _ = story.says(1, Word::Serving);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(1)), State::Serving));
}

#[test]
fn a_process_cannot_have_its_spare_killed_instead_of_itself() {
    // Nobody has asked it to let go.
    let mut story = Story::with_spare();
    let _ = story.says(1, Word::Quiet);
    assert_eq!(story.disk0().state, State::Serving);
    assert_eq!(story.on(cut_off(true)), [kill(1)]);
    // In a hand-over it may have, until the core says it again.
    let mut story = handover();
    let _ = story.says(1, Word::Quiet);
    assert_eq!(story.on(cut_off(true)), [kill(3)]);
    assert_eq!(story.on(cut_off(true)), [kill(1)], "one of the two it is");
    let mut story = handover();
    let _ = story.says(1, Word::Quiet);
    let _ = story.on(cut_off(true));
    let _ = story.ends(3, KILLED);
    assert_eq!(story.on(cut_off(true)), [kill(1)]);
}

#[test]
fn a_process_that_never_says_that_it_serves_is_killed_when_the_core_says_it_again() {
    let mut story = Story::serving();
    let _ = story.ends(1, KILLED);
    assert_eq!(story.on(cut_off(true)), [], "it could be the one before it");
    assert_eq!(story.on(cut_off(true)), [kill(3)]);
}

#[test]
fn a_spare_that_was_started_after_the_first_word_is_not_meant() {
    let mut story = Story::with_spare();
    assert_eq!(story.on(cut_off(true)), [kill(1)]);
    assert_eq!(story.ends(3, KILLED), [start(0, 4)]);
    let _ = story.says(4, Word::StandingBy);
    let _ = story.on(cut_off(true));
    assert_eq!(story.on(cut_off(true)), [], "the old one takes long to die, perhaps");
    let mut story = Story::with_spare();
    let _ = story.on(cut_off(true));
    assert_eq!(story.on(cut_off(true)), [kill(3)], "this one was there");
}

#[test]
fn what_was_settled_is_forgotten() {
    let mut story = handover();
    let _ = story.says(1, Word::Quiet);
    let _ = story.on(cut_off(true));
    let _ = story.ends(3, KILLED);
    let _ = story.on(Event::SwapFailed(0, "it did not answer".to_owned()));
    let _ = story.says(1, Word::Serving);
    // Another hand-over, in which the new one fails again.
    let _ = story.on(Event::Swap(0));
    let _ = story.says(4, Word::StandingBy);
    let _ = story.says(1, Word::Quiet);
    assert_eq!(story.on(cut_off(true)), [kill(4)]);
    // A word that came late, of the one before it.
    let mut story = Story::serving();
    let _ = story.ends(1, KILLED);
    let _ = story.on(cut_off(true));
    let _ = story.says(3, Word::Serving);
    let _ = story.on(Event::Swap(0));
    let _ = story.says(4, Word::StandingBy);
    let _ = story.says(3, Word::Quiet);
    assert_eq!(story.on(cut_off(true)), [kill(4)]);
}
