//! Orders of deaths, as stories; [`random`] tries all the others.

mod random;

use super::policy::*;
use super::*;

const KILLED: Death = Death::Killed(Signal::SIGKILL);
const FAULT: Death = Death::Killed(Signal::SIGSEGV);
const MS: Duration = Duration::from_millis(1);

/// A VM, a clock, and what was decided last.
struct Story {
    vm: Vm,
    now: Instant,
    notices: Vec<Notice>,
}

impl Story {
    /// Two devices, the first one with a spare if `spare`.
    fn new(spare: bool) -> Self {
        let now = Instant::now();
        let (vm, actions) =
            Vm::new([("disk0".to_owned(), spare), ("disk1".to_owned(), false)], WATCHDOG, now);
        assert_eq!(actions, [start(0, 1), start(1, 2)]);
        Self { vm, now, notices: Vec::new() }
    }

    /// One whose devices serve.
    fn serving() -> Self {
        let mut story = Self::new(false);
        story.says(1, Word::Serving);
        story.says(2, Word::Serving);
        story
    }

    /// One whose first device is served by process 1 and has process 3 standing by.
    fn with_spare() -> Self {
        let mut story = Self::new(true);
        story.says(2, Word::Serving);
        assert_eq!(story.says(1, Word::Serving), [start(0, 3)]);
        assert_eq!(story.says(3, Word::StandingBy), []);
        story
    }

    /// What is to be done, without what is to be told.
    fn on(&mut self, event: Event) -> Vec<Action> {
        let mut actions = self.vm.on(event, self.now);
        self.notices.clear();
        actions.retain(|action| match action {
            Action::Tell(notice) => {
                self.notices.push(notice.clone());
                false
            }
            _ => true,
        });
        actions
    }

    fn says(&mut self, id: u64, word: Word) -> Vec<Action> {
        self.on(Event::Said(ProcessId(id), word))
    }

    fn ends(&mut self, id: u64, death: Death) -> Vec<Action> {
        self.on(Event::Ended(ProcessId(id), death))
    }

    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.on(Event::Tick)
    }

    fn disk0(&self) -> View<'_> {
        self.vm.devices().next().unwrap().1
    }
}

fn start(device: usize, process: u64) -> Action {
    Action::Start { device, process: ProcessId(process), program: Program::Current }
}

fn start_candidate(process: u64) -> Action {
    Action::Start { device: 0, process: ProcessId(process), program: Program::Candidate }
}

fn done(outcome: &str) -> Action {
    Action::SwapDone { device: 0, outcome: Ok(outcome.to_owned()) }
}

/// Whether the swap ended with an error that says so.
fn is_refusal(action: &Action, text: &str) -> bool {
    matches!(action, Action::SwapDone { outcome: Err(why), .. } if why.contains(text))
}

#[test]
fn a_power_off_lets_the_devices_finish() {
    let mut story = Story::serving();
    assert_eq!(story.on(Event::CoreEnded(Death::Exited(0))), []);
    assert_eq!(story.ends(2, Death::Exited(0)), []);
    assert_eq!(story.vm.ended(), None);
    assert_eq!(story.ends(1, Death::Exited(0)), []);
    assert_eq!(story.vm.ended(), Some(&Fate::PoweredOff));
}

#[test]
fn a_device_that_does_not_end_is_killed_after_the_grace() {
    let mut story = Story::with_spare();
    assert_eq!(story.on(Event::CoreEnded(Death::Exited(3))), []);
    assert_eq!(story.vm.deadline(), Some(story.now + GRACE));
    assert_eq!(story.after(MS), []);
    assert_eq!(story.after(GRACE), [Action::KillCore, Action::KillDevices]);
    assert_eq!(story.vm.deadline(), None);
    for id in [1, 2] {
        assert_eq!(story.ends(id, KILLED), []);
    }
    assert_eq!(story.vm.ended(), None, "the spare is a process like the others");
    assert_eq!(story.ends(3, KILLED), []);
    assert_eq!(story.vm.ended(), Some(&Fate::Crashed));
}

#[test]
fn a_signal_ends_in_order_and_a_second_one_at_once() {
    let mut story = Story::serving();
    assert_eq!(story.on(Event::Signalled(Signal::SIGTERM)), [Action::KillCore]);
    assert_eq!(story.on(Event::Signalled(Signal::SIGTERM)), [Action::KillCore, Action::KillDevices]);
    assert_eq!(story.on(Event::CoreEnded(KILLED)), []);
    assert_eq!(story.ends(1, KILLED), []);
    assert_eq!(story.ends(2, KILLED), []);
    assert_eq!(story.vm.ended().map(Fate::exit_code), Some(143));
}

#[test]
fn a_device_that_cannot_start_ends_the_vm_unless_the_core_is_to_blame() {
    for code in [1, 2] {
        let mut story = Story::new(false);
        assert_eq!(story.ends(1, Death::Exited(code)), []);
        assert_eq!(story.disk0().state, State::Failed);
        assert_eq!(story.after(BENEFIT_OF_DOUBT), [Action::KillCore]);
        let _ = story.on(Event::CoreEnded(KILLED));
        let _ = story.ends(2, Death::Exited(0));
        let fate = Fate::DeviceFailed { name: "disk0".to_owned(), death: Death::Exited(code) };
        assert_eq!(story.vm.ended(), Some(&fate));
    }
    let mut story = Story::new(false);
    let _ = story.ends(1, Death::Exited(1));
    let _ = story.on(Event::CoreEnded(Death::Exited(1)));
    let _ = story.ends(2, Death::Exited(1));
    assert_eq!(story.vm.ended(), Some(&Fate::Refused));
}

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
fn a_spare_takes_over_and_the_next_one_waits_until_it_serves() {
    let mut story = Story::with_spare();
    assert_eq!(story.ends(1, FAULT), []);
    assert!(matches!(story.notices[..], [Notice::Died { next: Next::Spare, .. }]));
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(3)), State::Starting));
    assert_eq!(story.says(3, Word::Serving), [start(0, 4)]);
    assert_eq!(story.says(4, Word::Ready), []);
    let view = story.disk0();
    assert_eq!((view.spare, view.spare_ready, view.restarts), (Some(ProcessId(4)), true, 1));
}

#[test]
fn a_spare_whose_word_of_serving_comes_before_the_death_is_the_heir_all_the_same() {
    let mut story = Story::with_spare();
    assert_eq!(story.says(3, Word::Serving), []);
    assert_eq!(story.ends(1, KILLED), [start(0, 4)]);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(3)), State::Serving));
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
fn who_is_cut_off_is_killed_and_its_successor_is_not() {
    let mut story = Story::serving();
    let cut_off = || Event::CutOff(0, "it did not close its channel".to_owned());
    assert_eq!(story.on(cut_off()), [Action::Kill(ProcessId(1))]);
    assert_eq!(story.on(cut_off()), [], "once is enough");
    assert_eq!(story.ends(1, KILLED), [start(0, 3)]);
    assert_eq!(
        story.disk0().last_death.unwrap().0.to_string(),
        "was cut off by the core and killed: it did not close its channel"
    );
    assert_eq!(story.on(cut_off()), [], "said late");
    assert_eq!(story.on(Event::CutOff(7, String::new())), []);
}

#[test]
fn who_is_cut_off_in_a_swap_is_the_one_that_has_the_device() {
    let cut_off = || Event::CutOff(0, "it did not answer in time".to_owned());
    // The old one does not let go.
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::StandingBy);
    assert_eq!(story.on(cut_off()), [Action::Kill(ProcessId(1))]);
    // It has let go, and the new one does not take it.
    let mut story = Story::serving();
    let _ = story.on(Event::Swap(0));
    let _ = story.says(3, Word::StandingBy);
    let _ = story.says(1, Word::Quiet);
    assert_eq!(story.on(cut_off()), [Action::Kill(ProcessId(3))]);
    assert_eq!(story.ends(3, KILLED), []);
    let actions = story.on(Event::SwapFailed(0, "the new process did not answer".to_owned()));
    assert!(is_refusal(&actions[0], "the new process did not answer; the old process serves as before"));
    let _ = story.says(1, Word::Serving);
    assert_eq!((story.disk0().main, story.disk0().state), (Some(ProcessId(1)), State::Serving));
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
fn a_swap_changes_the_process_and_lets_the_old_one_go() {
    let mut story = Story::serving();
    assert_eq!(story.on(Event::Swap(0)), [start_candidate(3)]);
    assert_eq!(story.says(3, Word::StandingBy), [Action::AskForSwap { device: 0 }]);
    assert_eq!(story.says(3, Word::Serving), []);
    let actions = story.on(Event::Swapped(0, Duration::from_micros(1_200)));
    assert_eq!(
        actions,
        [Action::Adopt { device: 0 }, done("a new process serves it after a pause of 1.2 ms")]
    );
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
    assert_eq!(
        story.ends(1, Death::Exited(0)),
        [Action::Adopt { device: 0 }, done("a new process serves it")]
    );
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
    let _ = story.says(1, Word::Alive);
    let mut actions = Vec::new();
    for _ in 0..20 {
        for id in [1, 2, 4] {
            let _ = story.says(id, Word::Alive);
        }
        actions.extend(story.after(CANDIDATE_PATIENCE / 20));
    }
    assert_eq!(actions[0], Action::Kill(ProcessId(4)));
    assert!(is_refusal(&actions[1], "does not get ready; the old process serves as before"));
    assert_eq!(story.ends(4, KILLED), []);
    // It dies in the middle, and the core says nothing.
    let _ = story.on(Event::Swap(0));
    let _ = story.says(5, Word::StandingBy);
    assert_eq!(story.ends(5, Death::Exited(1)), []);
    let actions = story.after(SETTLED);
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
    let actions = story.ends(1, KILLED);
    assert_eq!(actions[0], Action::Adopt { device: 0 });
    assert_eq!(actions[1], done("the old process died, and the new one took over at once"));
    assert_eq!(story.on(Event::SwapFailed(0, "nobody stands by".to_owned())), []);
    assert_eq!(story.says(3, Word::Serving), []);
    assert_eq!(story.disk0().main, Some(ProcessId(3)));
}

#[test]
fn nothing_is_swapped_while_nobody_serves() {
    let mut story = Story::new(false);
    assert!(is_refusal(&story.on(Event::Swap(0))[0], "nobody serves it"));
}
