//! Orders of deaths, as stories; [`random`] tries all the others. Here: how they are told, and how VMs end.

mod attach;
mod cut_off;
mod deaths;
mod random;
mod spares;
mod swaps;

use super::policy::*;
use super::*;

const KILLED: Death = Death::Killed(Signal::SIGKILL);
const FAULT: Death = Death::Killed(Signal::SIGSEGV);
const MS: Duration = Duration::from_millis(1);

fn wanted(name: &str, spare: bool) -> Wanted {
    Wanted { name: name.to_owned(), spare, of_core: true }
}

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
        let (vm, actions) = Vm::new([wanted("disk0", spare), wanted("disk1", false)], WATCHDOG, now);
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

    /// So much time, during which these processes give signs of life.
    fn lives(&mut self, time: Duration, alive: &[u64]) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            for id in alive {
                let _ = self.says(*id, Word::Alive);
            }
            actions.extend(self.after((WATCHDOG / 2).min(end - self.now)));
        }
        actions
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

const ADOPT: Action = Action::Adopt { device: 0 };

fn kill(process: u64) -> Action {
    Action::Kill(ProcessId(process))
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
