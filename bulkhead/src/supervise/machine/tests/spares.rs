//! Processes that stand by, and their turn.

use super::*;

#[test]
fn a_spare_takes_over_and_the_next_one_waits_until_it_serves() {
    let mut story = Story::with_spare();
    assert_eq!(story.ends(1, FAULT), []);
    assert!(matches!(story.notices[..], [Notice::Died { next: Next::Spare, .. }]));
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(3)), State::Starting));
    assert_eq!(story.says(3, Word::Serving), [], "the guest comes first");
    assert_eq!(story.after(SPARE_REST), [start(0, 4)]);
    assert_eq!(story.says(4, Word::Ready), []);
    let view = story.disk0();
    assert_eq!((view.spare, view.spare_ready, view.restarts), (Some(ProcessId(4)), true, 1));
}

#[test]
fn a_spare_whose_word_of_serving_comes_before_the_death_is_the_heir_all_the_same() {
    let mut story = Story::with_spare();
    assert_eq!(story.says(3, Word::Serving), []);
    assert_eq!(story.ends(1, KILLED), []);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(3)), State::Serving));
    assert_eq!(story.after(SPARE_REST), [start(0, 4)]);
}

#[test]
fn both_dying_together_leave_one_to_be_started() {
    for order in [[1, 3], [3, 1]] {
        let mut story = Story::with_spare();
        let mut started = story.ends(order[0], KILLED);
        started.extend(story.ends(order[1], KILLED));
        let mains = started.iter().filter(|action| matches!(action, Action::Start { .. })).count();
        assert!(mains >= 1, "{order:?}: {started:?}");
        let heir = story.disk0().main;
        assert!(heir.is_some_and(|heir| heir > ProcessId(3)), "{order:?}");
    }
}

#[test]
fn a_spare_that_keeps_dying_backs_off_on_its_own() {
    let mut story = Story::new(true);
    assert_eq!(story.says(1, Word::Serving), [start(0, 3)]);
    assert_eq!(story.ends(3, FAULT), [start(0, 4)]);
    assert_eq!(story.ends(4, FAULT), []);
    assert_eq!(story.after(FIRST_DELAY), [start(0, 5)]);
    assert_eq!((story.disk0().state, story.disk0().restarts), (State::Serving, 0));
}

#[test]
fn who_stands_by_and_who_serves_is_the_cores_decision() {
    let mut story = Story::with_spare();
    let _ = story.ends(1, KILLED);
    let _ = story.ends(3, KILLED);
    let main = story.disk0().main.unwrap().0;
    let spare = main + 1;
    assert_eq!(story.after(SPARE_PAUSE), [start(0, spare)]);
    let _ = story.says(main, Word::StandingBy);
    let _ = story.says(spare, Word::Serving);
    let view = story.disk0();
    assert_eq!((view.main, view.spare), (Some(ProcessId(spare)), Some(ProcessId(main))));
    // The words come in any order.
    let mut story = Story::with_spare();
    let _ = story.ends(1, KILLED);
    let _ = story.after(SPARE_PAUSE);
    let _ = story.says(4, Word::Serving);
    assert_eq!(story.disk0().main, Some(ProcessId(3)), "nobody knows yet");
    let _ = story.says(3, Word::StandingBy);
    let view = story.disk0();
    assert_eq!((view.main, view.spare), (Some(ProcessId(4)), Some(ProcessId(3))));
    assert_eq!((view.state, view.spare_ready), (State::Serving, true));
    let served = Notice::Serves { device: 0, process: ProcessId(4), pause: Some(SPARE_PAUSE) };
    assert_eq!(story.notices, [served]);
}

#[test]
fn a_spare_with_the_wrong_arguments_is_replaced_and_who_serves_is_left_alone() {
    let mut story = Story::with_spare();
    assert_eq!(story.on(Event::Renew(0)), [kill(3)]);
    assert_eq!(story.on(Event::Renew(0)), [], "once is enough");
    assert_eq!(story.ends(3, KILLED), [start(0, 4)]);
    assert_eq!(story.on(Event::Renew(1)), [], "it has none");
    let view = story.disk0();
    assert_eq!((view.state, view.main, view.restarts), (State::Serving, Some(ProcessId(1)), 0));
    // The one that serves dies before the spare is gone: the spare is dead all the same, and the next one is right.
    let mut story = Story::with_spare();
    assert_eq!(story.on(Event::Renew(0)), [kill(3)]);
    assert_eq!(story.ends(1, KILLED), []);
    assert!(story.ends(3, KILLED).contains(&start(0, 4)));
}
