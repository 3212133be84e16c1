//! Processes that die, hang or cannot be started, and who follows them.

use super::*;

#[test]
fn a_device_that_dies_is_started_again_at_once_and_before_anything_is_said() {
    let mut story = Story::serving();
    let actions = story.vm.on(Event::Ended(ProcessId(1), FAULT), story.now);
    assert_eq!(actions[0], start(0, 3));
    assert!(matches!(&actions[1..], [Action::Tell(Notice::Died { next: Next::AtOnce, death: FAULT, .. })]));
    story.now += 4 * MS;
    assert_eq!(story.says(3, Word::Serving), []);
    let served = Notice::Serves { device: 0, process: ProcessId(3), pause: Some(4 * MS) };
    assert_eq!(story.notices, [served]);
    assert_eq!((story.disk0().restarts, story.disk0().last_death), (1, Some((&FAULT, story.now - 4 * MS))));
    assert_eq!(story.vm.ended(), None, "the VM runs on");
}

#[test]
fn a_device_that_exits_with_an_error_later_on_is_started_again() {
    let mut story = Story::serving();
    assert_eq!(story.ends(1, Death::Exited(1)), [start(0, 3)]);
}

#[test]
fn kills_from_outside_never_slow_a_device_down() {
    let mut story = Story::serving();
    let mut last = 1;
    for n in 3..200 {
        story.now += 50 * MS;
        assert_eq!(story.ends(last, KILLED), [start(0, n)], "kill {n}");
        story.now += 5 * MS;
        assert_eq!(story.says(n, Word::Serving), []);
        last = n;
    }
}

#[test]
fn a_process_killed_before_it_serves_is_followed_at_once_the_first_time() {
    let mut story = Story::serving();
    assert_eq!(story.ends(1, KILLED), [start(0, 3)]);
    assert_eq!(story.ends(3, KILLED), [start(0, 4)]);
    let _ = story.says(4, Word::Serving);
    assert_eq!(story.ends(4, KILLED), [start(0, 5)]);
    assert_eq!(story.ends(5, KILLED), [start(0, 6)], "a success forgives");
}

#[test]
fn a_crash_loop_is_slowed_down_told_and_never_given_up() {
    let mut story = Story::serving();
    story.now += SETTLED;
    assert_eq!(story.ends(1, FAULT), [start(0, 3)], "it had settled");
    let _ = story.says(3, Word::Serving);
    assert_eq!(story.ends(3, FAULT), [start(0, 4)], "the first early death");
    let (mut id, mut pause) = (4, FIRST_DELAY);
    for in_a_row in 2..20 {
        // Half of them get as far as serving.
        if in_a_row % 2 == 0 {
            let _ = story.says(id, Word::Serving);
        }
        assert_eq!(story.ends(id, FAULT), []);
        assert_eq!(story.disk0().state, State::BackingOff);
        assert_eq!(story.notices.last(), Some(&Notice::BacksOff { device: 0, pause, in_a_row }));
        assert!(story.vm.deadline().is_some_and(|deadline| deadline <= story.now + pause));
        story.now += pause - MS;
        let _ = story.says(2, Word::Alive);
        assert_eq!(story.on(Event::Tick), []);
        id += 1;
        assert_eq!(story.after(MS), [start(0, id)]);
        pause = (pause * 2).min(LONGEST_DELAY);
    }
    assert_eq!(pause, LONGEST_DELAY);
    let _ = story.says(id, Word::Serving);
    story.now += SETTLED;
    let _ = story.says(2, Word::Alive);
    assert_eq!(story.ends(id, FAULT), [start(0, id + 1)], "as if nothing had happened");
}

#[test]
fn one_device_in_trouble_leaves_the_others_alone() {
    let mut story = Story::serving();
    let mut id = 1;
    for next in 3..6 {
        let _ = story.ends(id, FAULT);
        let _ = story.after(FIRST_DELAY * 4);
        id = next;
    }
    assert_eq!(story.vm.devices().nth(1).unwrap().1.state, State::Serving);
    assert_eq!(story.ends(2, KILLED), [start(1, 6)]);
}

#[test]
fn a_program_that_cannot_be_started_is_tried_again() {
    let mut story = Story::serving();
    let gone = || Death::NotStarted("no such file".to_owned());
    assert_eq!(story.ends(1, KILLED), [start(0, 3)]);
    assert_eq!(story.ends(3, gone()), [start(0, 4)]);
    assert_eq!(story.ends(4, gone()), []);
    assert_eq!(story.after(FIRST_DELAY), [start(0, 5)]);
}

#[test]
fn a_clean_exit_waits_for_the_cores_end() {
    let mut story = Story::serving();
    assert_eq!(story.ends(1, Death::Exited(0)), []);
    assert_eq!(story.on(Event::CoreEnded(FAULT)), []);
    assert_eq!(story.after(BENEFIT_OF_DOUBT), [], "nobody is started any more");
    let _ = story.ends(2, Death::Exited(0));
    assert_eq!(story.vm.ended(), Some(&Fate::CoreFailed(FAULT)));
    let mut story = Story::serving();
    assert_eq!(story.ends(1, Death::Exited(0)), []);
    assert_eq!(story.after(BENEFIT_OF_DOUBT), [start(0, 3)], "the core had closed only its socket");
}

#[test]
fn silence_is_a_hang() {
    let mut story = Story::serving();
    for _ in 0..10 {
        assert_eq!(story.after(WATCHDOG / 2), []);
        let _ = story.says(1, Word::Alive);
        let _ = story.says(2, Word::Alive);
    }
    let _ = story.says(2, Word::Alive);
    assert_eq!(story.vm.deadline(), Some(story.now + WATCHDOG));
    story.now += WATCHDOG - MS;
    let _ = story.says(2, Word::Alive);
    assert_eq!(story.after(MS), [Action::Abort(ProcessId(1))]);
    assert_eq!(story.disk0().state, State::Hung);
    let _ = story.says(1, Word::Alive);
    let _ = story.says(2, Word::Alive);
    assert_eq!(story.after(ABORT_GRACE), [Action::Kill(ProcessId(1))], "too late");
    let _ = story.says(2, Word::Alive);
    assert_eq!(story.ends(1, KILLED), [start(0, 3)]);
    assert_eq!(story.disk0().last_death.unwrap().0, &Death::Hung(WATCHDOG));
}

#[test]
fn a_process_that_never_says_anything_has_longer() {
    let mut story = Story::new(false);
    assert_eq!(story.after(WATCHDOG * START_PATIENCE - MS), []);
    assert_eq!(story.after(MS), [Action::Abort(ProcessId(1)), Action::Abort(ProcessId(2))]);
    assert_eq!(story.ends(1, Death::Exited(134)), [start(0, 3)], "a hang is no failure to start");
}

#[test]
fn an_operators_restart_is_at_once_and_no_failure() {
    let mut story = Story::serving();
    assert_eq!(story.on(Event::Restart(0)), [Action::Kill(ProcessId(1))]);
    assert_eq!(story.ends(1, KILLED), [start(0, 3)]);
    for id in 3..10 {
        let _ = story.on(Event::Restart(0));
        assert_eq!(story.ends(id, KILLED), [start(0, id + 1)], "not even before it served");
    }
    let _ = story.ends(10, FAULT);
    let _ = story.ends(11, FAULT);
    assert_eq!(story.disk0().state, State::BackingOff);
    assert_eq!(story.on(Event::Restart(0)), [start(0, 12)], "now, not after the pause");
}

#[test]
fn what_a_device_is_connected_to_changes_for_its_spare_first() {
    let mut story = Story::with_spare();
    let spare = story.disk0().spare.unwrap();
    assert_eq!(story.on(Event::Recabled(0)), [Action::Kill(spare), Action::Kill(ProcessId(1))]);
    // Whichever ends first, and though the core may have chosen the spare: the next ones are started at once.
    assert_eq!(story.ends(1, KILLED), []);
    let started = story.ends(spare.0, KILLED);
    assert!(matches!(started[..], [Action::Start { device: 0, .. }]), "{started:?}");
    assert_eq!(story.disk0().state, State::Starting);
}

/// A console: it serves people, and the core knows nothing of it.
#[test]
fn what_is_not_attached_to_the_core_is_replaced_like_the_rest_and_ended_with_it() {
    let now = Instant::now();
    let console = Wanted { name: "console".to_owned(), spare: false, of_core: false };
    let (vm, actions) = Vm::new([wanted("disk0", false), console], WATCHDOG, now);
    assert_eq!(actions, [start(0, 1), start(1, 2)]);
    let mut story = Story { vm, now, notices: Vec::new() };
    story.says(1, Word::Serving);
    story.says(2, Word::Serving);
    // It may end cleanly, too, and that says nothing about the core.
    assert_eq!(story.on(Event::Ended(ProcessId(2), Death::Exited(0))), [start(1, 3)]);
    story.says(3, Word::Serving);
    let swapped = story.on(Event::Swap(1));
    assert!(
        matches!(&swapped[..], [Action::SwapDone { device: 1, outcome: Err(why) }] if why.contains("restart it"))
    );
    assert_eq!(story.on(Event::Restart(1)), [Action::Kill(ProcessId(3))]);
    assert_eq!(story.on(Event::Ended(ProcessId(3), KILLED)), [start(1, 4)]);
    // Nobody else would end it.
    assert_eq!(story.on(Event::CoreEnded(Death::Exited(0))), [Action::Kill(ProcessId(4))]);
    story.on(Event::Ended(ProcessId(4), KILLED));
    assert!(matches!(
        &story.notices[..],
        [Notice::Died { death: Death::EndedWithVm, next: Next::Nobody, .. }]
    ));
    assert_eq!(story.vm.ended(), None);
    story.on(Event::Ended(ProcessId(1), Death::Exited(0)));
    assert_eq!(story.vm.ended(), Some(&Fate::PoweredOff));
}

#[test]
fn a_core_that_takes_its_time_to_end_is_waited_for_and_nobody_is_blamed() {
    let mut story = Story::serving();
    assert_eq!(story.ends(1, Death::Exited(0)), []);
    assert_eq!(story.notices.len(), 1);
    // It resets the host's devices.
    for id in 3..43 {
        assert_eq!(story.lives(BENEFIT_OF_DOUBT, &[2]), [start(0, id)]);
        assert_eq!(story.ends(id, Death::CoreGone), []);
        assert_eq!(story.notices, [], "nothing is new");
    }
    assert_eq!(story.on(Event::CoreEnded(Death::Exited(0))), []);
    assert_eq!(story.after(BENEFIT_OF_DOUBT), [], "nobody is started any more");
    assert_eq!(story.ends(2, Death::Exited(0)), []);
    assert_eq!(story.vm.ended(), Some(&Fate::PoweredOff));
    // A spare is not to blame, either.
    let mut story = Story::with_spare();
    assert_eq!(story.ends(3, Death::Exited(0)), [start(0, 4)]);
    assert_eq!(story.ends(4, Death::CoreGone), []);
    assert_eq!(story.notices, []);
    assert_eq!(story.lives(BENEFIT_OF_DOUBT, &[1, 2]), [start(0, 5)]);
    // If it was a mistake, the device is served again.
    let mut story = Story::serving();
    assert_eq!(story.ends(1, Death::Exited(0)), []);
    assert_eq!(story.lives(BENEFIT_OF_DOUBT, &[2]), [start(0, 3)]);
    assert_eq!(story.ends(3, Death::CoreGone), []);
    assert_eq!(story.lives(BENEFIT_OF_DOUBT, &[2]), [start(0, 4)]);
    assert_eq!(story.says(4, Word::Serving), []);
    assert_eq!(story.disk0().state, State::Serving);
}
