//! Planned swaps, and what may come between.

use super::*;

#[test]
fn a_swap_changes_the_process_and_lets_the_old_one_go() {
    let mut story = Story::serving();
    assert_eq!(story.on(Event::Swap(0)), [start_candidate(3)]);
    assert_eq!(story.says(3, Word::StandingBy), [Action::AskForSwap { device: 0 }]);
    assert_eq!(story.says(3, Word::Serving), []);
    let actions = story.on(Event::Swapped(0, Duration::from_micros(1_200)));
    assert_eq!(actions, [ADOPT, done("a new process serves it after a pause of 1.2 ms")]);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(3)), State::Serving));
    assert_eq!(story.ends(1, Death::Exited(0)), []);
    let view = story.disk0();
    assert_eq!((view.restarts, view.last_death), (0, None), "nobody has failed");
}

#[test]
fn an_old_process_that_does_not_go_is_killed() {
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::Ready);
    let _ = story.on(Event::Swapped(0, MS));
    let _ = story.after(GRACE - MS);
    assert_eq!(story.after(MS), [Action::Kill(ProcessId(1))]);
    assert_eq!(story.ends(1, KILLED), []);
}

#[test]
fn the_old_process_may_be_gone_before_the_core_says_so() {
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::Ready);
    let _ = story.says(3, Word::Serving);
    assert_eq!(story.ends(1, Death::Exited(0)), [ADOPT, done("a new process serves it")]);
    assert_eq!(story.on(Event::Swapped(0, MS)), []);
    assert_eq!(story.disk0().restarts, 0);
    assert_eq!(story.after(GRACE), [], "it is not there to be killed");
}

#[test]
fn a_spare_makes_room_for_a_candidate_and_comes_back() {
    let mut story = Story::with_spare();
    assert_eq!(story.on(Event::Swap(0)), [Action::Kill(ProcessId(3))]);
    assert!(is_refusal(&story.on(Event::Swap(0))[0], "under way already"));
    assert_eq!(story.ends(3, KILLED), [start_candidate(4)]);
    assert_eq!(story.says(4, Word::StandingBy), [Action::AskForSwap { device: 0 }]);
    let actions = story.on(Event::Swapped(0, MS));
    assert_eq!(actions.last(), Some(&start(0, 5)), "the new spare, of the new program");
}

#[test]
fn a_candidate_that_fails_leaves_everything_as_it_was() {
    // It dies.
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let actions = story.ends(3, Death::Exited(1));
    assert!(is_refusal(&actions[0], "the new process exited with code 1; the old one serves as before"));
    // It does not get ready.
    let _ = story.on(Event::Swap(0));
    let actions = story.lives(CANDIDATE_PATIENCE, &[1, 2, 4]);
    assert_eq!(actions[0], Action::Kill(ProcessId(4)));
    assert!(is_refusal(&actions[1], "does not get ready; the old process serves as before"));
    assert_eq!(story.ends(4, KILLED), []);
    // It dies in the middle, and the core says nothing.
    let _ = story.on(Event::Swap(0));
    let _ = story.says(5, Word::StandingBy);
    assert_eq!(story.ends(5, Death::Exited(1)), []);
    assert_eq!(story.lives(SWAP_PATIENCE - MS, &[1, 2]), [], "the core knows more, and may take its time");
    let actions = story.lives(MS, &[1, 2]);
    assert!(is_refusal(&actions[0], "the new process exited with code 1; the old one serves as before"));
    // The core says no.
    let _ = story.on(Event::Swap(0));
    let _ = story.says(6, Word::StandingBy);
    let actions = story.on(Event::SwapFailed(0, "it cannot read the ledger".to_owned()));
    assert_eq!(actions[0], Action::Kill(ProcessId(6)));
    assert!(is_refusal(&actions[1], "it cannot read the ledger"));
    let view = story.disk0();
    assert_eq!((view.main, view.state, view.restarts), (Some(ProcessId(1)), State::Serving, 0));
}

#[test]
fn a_death_in_the_middle_of_a_swap_makes_the_candidate_the_heir() {
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::StandingBy);
    assert_eq!(story.ends(1, KILLED), []);
    assert_eq!(story.on(Event::SwapFailed(0, "nobody stands by".to_owned())), []);
    let view = story.disk0();
    assert_eq!((view.main, view.state, view.is_swapping), (Some(ProcessId(3)), State::Starting, true));
    let took_over = done("the old process died, and the new one took over at once");
    assert_eq!(story.says(3, Word::Serving), [ADOPT, took_over]);
    let view = story.disk0();
    assert_eq!((view.main, view.state, view.is_swapping), (Some(ProcessId(3)), State::Serving, false));
    assert_eq!(story.ends(3, KILLED), [start(0, 4)], "of the new program, which is the device's by now");
}

#[test]
fn a_program_that_has_never_served_does_not_become_the_devices() {
    // The old process dies, and the broken build is the only heir.
    let mut story = Story::with_spare();
    let _ = story.on(Event::Swap(0));
    let _ = story.ends(3, KILLED);
    let _ = story.says(4, Word::StandingBy);
    assert_eq!(story.ends(1, KILLED), []);
    assert_eq!(story.after(SPARE_PAUSE), [], "a spare of which program?");
    let actions = story.ends(4, FAULT);
    assert!(is_refusal(&actions[0], "the new one was killed by SIGSEGV before it served; the old program"));
    assert_eq!(actions[1..], [start(0, 5)], "of the old program");
    assert!(!story.disk0().is_swapping);
    let _ = story.says(5, Word::Serving);
    assert_eq!(story.after(SPARE_REST), [start(0, 6)], "and its spare");
}

#[test]
fn the_cores_late_answer_to_one_swap_is_none_to_the_next() {
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::StandingBy);
    let _ = story.ends(3, FAULT);
    assert!(is_refusal(&story.on(Event::Swap(0))[0], "under way already"), "the core has not answered");
    let actions = story.on(Event::SwapFailed(0, "it has died".to_owned()));
    assert!(is_refusal(&actions[0], "it has died"));
    let _ = story.on(Event::Swap(0));
    assert_eq!(story.on(Event::SwapFailed(0, "said twice".to_owned())), [], "this one was not asked for yet");
    assert_eq!(story.says(4, Word::StandingBy), [Action::AskForSwap { device: 0 }]);
}

#[test]
fn the_core_has_the_time_that_it_needs() {
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::StandingBy);
    let core_limits = Duration::from_secs(1 + 10 + 5 + 10);
    assert_eq!(story.lives(core_limits + MS, &[1, 2, 3]), []);
    assert_eq!(story.on(Event::Swapped(0, MS))[0], ADOPT);
}

#[test]
fn a_spare_that_takes_over_just_now_is_not_killed_for_a_swap() {
    let mut story = Story::with_spare();
    let _ = story.says(3, Word::Serving);
    assert!(is_refusal(&story.on(Event::Swap(0))[0], "taking over just now"));
    let _ = story.ends(1, KILLED);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(3)), State::Serving));
}

#[test]
fn one_that_lets_go_and_serves_again_and_again_is_not_told_of() {
    let mut story = Story::serving();
    for _ in 0..10 {
        let _ = story.says(1, Word::Quiet);
        let _ = story.says(1, Word::Serving);
        assert_eq!(story.notices, [], "without a swap");
    }
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::StandingBy);
    for _ in 0..10 {
        let _ = story.says(1, Word::Quiet);
        assert_eq!(story.disk0().state, State::Starting);
        let _ = story.says(1, Word::Serving);
        assert_eq!(story.notices, [], "in a swap");
        assert_eq!(story.disk0().state, State::Serving);
    }
}

#[test]
fn nothing_is_swapped_while_nobody_serves() {
    let mut story = Story::new(false);
    assert!(is_refusal(&story.on(Event::Swap(0))[0], "nobody serves it"));
}
