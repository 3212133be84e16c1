//! One device: the process that serves it, the one that stands by, and who follows whom.
//!
//! It must never have two processes started that want to serve at once, and never give a device up.

mod cut_off;
mod leave;
mod swap;
mod view;

use std::time::{Duration, Instant};

use self::cut_off::Accused;
use super::policy::{
    BENEFIT_OF_DOUBT, Backoff, CANDIDATE_PATIENCE, DETACH_DOUBT, SETTLED, SPARE_PAUSE, SPARE_REST,
    SWAP_PATIENCE,
};
use super::process::{Process, ProcessId, Stage, Word};
use super::{Action, Next, Notice, Out, Program, Wanted};
use crate::supervise::fate::Death;

pub use self::view::{State, View};

/// Who serves.
#[derive(Debug)]
enum Main {
    /// This one, or it is about to.
    Up(Process),
    /// Nobody; the next one starts then. I/O of the guest waits.
    Away { until: Instant },
    /// Nobody, and nobody will: the VM ends.
    Gone,
}

/// Who stands by.
#[derive(Debug)]
enum Spare {
    /// Nobody; none is wanted.
    None,
    /// The next one starts then.
    Due { at: Instant },
    /// This one.
    Up { process: Process, purpose: Purpose },
    /// The last one is being ended to make room for a candidate.
    Clearing { last: ProcessId },
    /// A candidate has ended in the middle of a hand-over. The core knows why better than its exit code does, and says so until then.
    Fallen { death: Death, until: Instant },
}

impl Spare {
    /// Whether the core has been asked to hand over and has not answered yet.
    fn hands_over(&self) -> bool {
        matches!(self, Self::Up { purpose: Purpose::Handover { .. }, .. })
    }
}

/// What a process stands by for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The death of the one that serves.
    Spare,
    /// A planned swap: it is to stand by until then.
    Candidate { until: Instant },
    /// A planned swap: the core has been asked and is to answer until then.
    Handover { until: Instant },
}

/// A process that has no part in the device any more and has not ended yet; it is killed then.
#[derive(Debug)]
struct Leaving {
    id: ProcessId,
    kill_at: Option<Instant>,
}

/// What comes of the end of a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Aftermath {
    /// Life goes on.
    Recovering,
    /// The device has never been served and cannot be.
    CannotStart(Death),
}

#[derive(Debug)]
pub(super) struct Device {
    number: usize,
    pub(super) name: String,
    of_core: bool,
    spare_wanted: bool,
    main: Main,
    spare: Spare,
    leaving: Vec<Leaving>,
    accused: Option<Accused>,
    backoff: Backoff,
    spare_backoff: Backoff,
    ever_served: bool,
    /// It came while the VM ran, which can do without it.
    added: bool,
    /// The core has been asked to give it up.
    end_expected: bool,
    /// Since when nobody has served.
    down_since: Option<Instant>,
    restarts: u64,
    last_death: Option<(Death, Instant)>,
}

impl Device {
    /// A device whose first process is started now.
    pub(super) fn new(number: usize, wanted: Wanted, out: &mut Out, now: Instant) -> Self {
        let mut device = Self::gone(number, wanted);
        device.main = Main::Away { until: now };
        device.start(out, now);
        device
    }

    /// A device that nobody serves, nor is to.
    pub(super) fn gone(number: usize, wanted: Wanted) -> Self {
        let Wanted { name, spare, of_core } = wanted;
        Self {
            number,
            name,
            of_core,
            spare_wanted: spare,
            main: Main::Gone,
            spare: Spare::None,
            leaving: Vec::new(),
            accused: None,
            backoff: Backoff::default(),
            spare_backoff: Backoff::default(),
            ever_served: false,
            added: false,
            end_expected: false,
            down_since: None,
            restarts: 0,
            last_death: None,
        }
    }

    fn start(&mut self, out: &mut Out, now: Instant) {
        let program = Program::Current;
        let process = Process::new(program, out, now);
        out.act(Action::Start { device: self.number, process: process.id, program });
        self.main = Main::Up(process);
    }

    fn start_spare(&mut self, program: Program, purpose: Purpose, out: &mut Out, now: Instant) {
        let process = Process::new(program, out, now);
        out.act(Action::Start { device: self.number, process: process.id, program });
        self.spare = Spare::Up { process, purpose };
    }

    /// A spare, if one is wanted, not before then.
    fn spare_due(&self, at: Instant) -> Spare {
        if self.spare_wanted { Spare::Due { at } } else { Spare::None }
    }

    /// A process of this device says something.
    pub(super) fn on_said(&mut self, id: ProcessId, word: Word, out: &mut Out, now: Instant) {
        if let Main::Up(process) = &mut self.main
            && process.id == id
        {
            process.lives(out, now);
            match (word, process.stage) {
                (Word::Serving | Word::Ready, Stage::Starting) | (Word::Serving, Stage::StandingBy) => {
                    process.stage = Stage::Serving { since: now };
                    self.serves(id, out, now);
                }
                (Word::StandingBy, Stage::Starting) => {
                    process.stage = Stage::StandingBy;
                    self.change_places(out, now);
                }
                // Only a hand-over makes it let go. One that says so at other times says it for reasons of its own.
                (Word::Quiet, Stage::Serving { .. }) if self.spare.hands_over() => {
                    process.stage = Stage::Quiet
                }
                // A swap that came to nothing, and whoever asked for it is told that it serves. Nobody else has to know: it could
                // say so again and again.
                (Word::Serving, Stage::Quiet) => process.stage = Stage::Serving { since: now },
                _ => {}
            }
        } else if let Spare::Up { process, purpose } = &mut self.spare
            && process.id == id
        {
            process.lives(out, now);
            match (word, process.stage) {
                (Word::Ready | Word::StandingBy, Stage::Starting) => {
                    process.stage = Stage::StandingBy;
                    out.tell(Notice::StandsBy { device: self.number, process: id });
                    if let Purpose::Candidate { .. } = *purpose {
                        *purpose = Purpose::Handover { until: now + SWAP_PATIENCE };
                        out.act(Action::AskForSwap { device: self.number });
                    }
                }
                // The core is ahead of us: it has seen the other one's socket close, or hands over just now.
                (Word::Serving, Stage::Starting | Stage::StandingBy) => {
                    process.stage = Stage::Serving { since: now };
                    self.change_places(out, now);
                }
                _ => {}
            }
        }
    }

    /// If the one that was to stand by has been there first, and the one that was to serve stands by, so be it, whichever says so
    /// first.
    fn change_places(&mut self, out: &mut Out, now: Instant) {
        if let (Main::Up(main), Spare::Up { process: spare, purpose: Purpose::Spare }) =
            (&mut self.main, &mut self.spare)
            && main.stage == Stage::StandingBy
            && matches!(spare.stage, Stage::Serving { .. })
        {
            std::mem::swap(main, spare);
            let id = main.id;
            self.serves(id, out, now);
        }
    }

    fn serves(&mut self, id: ProcessId, out: &mut Out, now: Instant) {
        self.ever_served = true;
        // What was said before was said of the one before it.
        self.accused = None;
        self.adopt("the old process died, and the new one took over at once", out);
        let pause = self.down_since.take().map(|since| now.saturating_duration_since(since));
        out.tell(Notice::Serves { device: self.number, process: id, pause });
        match self.spare {
            Spare::None if self.spare_wanted => self.spare = Spare::Due { at: now },
            // It waited for this; a spare that keeps dying waits for its time all the same.
            Spare::Due { at } if self.spare_backoff.in_a_row() < 2 => {
                self.spare = Spare::Due { at: at.min(now + SPARE_REST) }
            }
            _ => {}
        }
        self.start_what_is_due(out, now);
    }

    /// A process of this device has ended; `None`: it is none of ours.
    pub(super) fn on_ended(
        &mut self,
        id: ProcessId,
        found: Death,
        out: &mut Out,
        now: Instant,
    ) -> Option<Aftermath> {
        self.acquit(id);
        if let Some(place) = self.leaving.iter().position(|leaving| leaving.id == id) {
            self.leaving.swap_remove(place);
            if let Spare::Clearing { last } = self.spare
                && last == id
            {
                let purpose = Purpose::Candidate { until: now + CANDIDATE_PATIENCE };
                self.start_spare(Program::Candidate, purpose, out, now);
            }
            return Some(Aftermath::Recovering);
        }
        match std::mem::replace(&mut self.main, Main::Gone) {
            Main::Up(process) if process.id == id => return Some(self.main_ended(process, found, out, now)),
            other => self.main = other,
        }
        match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Up { process, purpose } if process.id == id => {
                self.spare_ended(process, purpose, found, out, now);
                return Some(Aftermath::Recovering);
            }
            other => self.spare = other,
        }
        None
    }

    fn main_ended(&mut self, process: Process, found: Death, out: &mut Out, now: Instant) -> Aftermath {
        let (id, stage, program) = (process.id, process.stage, process.program);
        let death = process.death(found);
        if death == Death::Exited(0) && self.is_handed_over() {
            self.adopt_heir("a new process serves it", out, now);
            return Aftermath::Recovering;
        }
        // Then there was no process, and nobody is to blame: what there is to know is said once the core has ended.
        let is_core_gone = death == Death::CoreGone;
        if !is_core_gone {
            self.last_death = Some((death.clone(), now));
        }
        // 1: it could not open what it serves, and has said why; 2: it does not understand what it was told.
        if !self.ever_served && matches!(death, Death::Exited(1 | 2)) {
            return Aftermath::CannotStart(death);
        }
        let early = match stage {
            Stage::Serving { since } => death.is_crash() && now.saturating_duration_since(since) < SETTLED,
            Stage::Starting | Stage::StandingBy => !matches!(death, Death::Restarted | Death::Recabled),
            Stage::Quiet => false,
        };
        let delay = if is_core_gone { Duration::ZERO } else { self.backoff.after_death(early) };
        let doubt = match death {
            Death::Exited(0) if self.end_expected => DETACH_DOUBT,
            Death::Exited(0) if self.of_core => BENEFIT_OF_DOUBT,
            Death::CoreGone => BENEFIT_OF_DOUBT,
            _ => Duration::ZERO,
        };
        let pause = delay.max(doubt);
        self.restarts = self.restarts.saturating_add(u64::from(!is_core_gone));
        self.down_since.get_or_insert(now);
        if program == Program::Candidate {
            let why = format!(
                "the old process died, and the new one {death} before it served; the old program is started again"
            );
            out.act(Action::SwapDone { device: self.number, outcome: Err(why) });
        }
        let next = match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Up { process: mut heir, .. } => {
                let serves = matches!(heir.stage, Stage::Serving { .. });
                if !serves {
                    heir.stage = Stage::Starting;
                }
                let heir_id = heir.id;
                self.main = Main::Up(heir);
                self.spare = self.spare_due(now + pause.max(SPARE_PAUSE));
                if serves {
                    self.serves(heir_id, out, now);
                }
                Next::Spare
            }
            other => {
                if let Spare::Clearing { .. } | Spare::Fallen { .. } = other {
                    let why = "the old process died before the new one could serve; ask again".to_owned();
                    out.act(Action::SwapDone { device: self.number, outcome: Err(why) });
                }
                self.spare = self.spare_due(now + pause.max(SPARE_PAUSE));
                self.main = Main::Away { until: now + pause };
                // Before anything is said: the guest waits.
                self.start_what_is_due(out, now);
                if pause.is_zero() { Next::AtOnce } else { Next::In(pause) }
            }
        };
        let number = self.number;
        if !is_core_gone {
            out.tell(Notice::Died { device: number, process: id, spare: false, death, next });
        }
        if !delay.is_zero() {
            out.tell(Notice::BacksOff { device: number, pause, in_a_row: self.backoff.in_a_row() });
        }
        Aftermath::Recovering
    }

    fn spare_ended(&mut self, process: Process, purpose: Purpose, found: Death, out: &mut Out, now: Instant) {
        let (id, stage) = (process.id, process.stage);
        let death = process.death(found);
        if death == Death::CoreGone && purpose == Purpose::Spare {
            self.spare = self.spare_due(now + BENEFIT_OF_DOUBT);
            return;
        }
        let early = stage == Stage::Starting || death.is_crash();
        let mut delay = Duration::ZERO;
        match purpose {
            Purpose::Spare => {
                delay = self.spare_backoff.after_death(early);
                self.spare = self.spare_due(now + delay);
            }
            Purpose::Candidate { .. } => self.fallen(&death, out, now),
            Purpose::Handover { until } => self.spare = Spare::Fallen { death: death.clone(), until },
        }
        self.start_what_is_due(out, now);
        let next = if delay.is_zero() { Next::AtOnce } else { Next::In(delay) };
        out.tell(Notice::Died { device: self.number, process: id, spare: true, death, next });
    }

    /// A new process is wanted, by an operator or because of what the device's processes are given. The one whose end that is, if there is
    /// one.
    pub(super) fn restart(&mut self, why: Death, out: &mut Out, now: Instant) -> Option<ProcessId> {
        match &mut self.main {
            Main::Up(process) => {
                process.kill(why, out);
                Some(process.id)
            }
            Main::Away { until } => {
                *until = now;
                self.start_what_is_due(out, now);
                None
            }
            Main::Gone => None,
        }
    }

    /// What processes are started with has changed: one that stands by with what was before is replaced.
    pub(super) fn renew_spare(&mut self, out: &mut Out) {
        if let Spare::Up { process, purpose: Purpose::Spare } = &mut self.spare
            && !matches!(process.stage, Stage::Serving { .. })
        {
            process.kill(Death::Restarted, out);
        }
    }

    /// Time has passed.
    pub(super) fn on_tick(&mut self, out: &mut Out, now: Instant) {
        if let Main::Up(process) = &mut self.main {
            process.on_tick(out, now);
        }
        let mut overdue = None;
        if let Spare::Up { process, purpose } = &mut self.spare {
            process.on_tick(out, now);
            overdue = match purpose {
                Purpose::Candidate { until } if now >= *until => Some("the new process does not get ready"),
                Purpose::Handover { until } if now >= *until => Some("the core does not answer"),
                _ => None,
            };
        }
        if let Some(why) = overdue {
            self.give_candidate_up(why, out, now);
        }
        if let Spare::Fallen { death, until } = &self.spare
            && now >= *until
        {
            let death = death.clone();
            self.fallen(&death, out, now);
        }
        for leaving in &mut self.leaving {
            if leaving.kill_at.is_some_and(|at| now >= at) {
                leaving.kill_at = None;
                out.act(Action::Kill(leaving.id));
            }
        }
        self.start_what_is_due(out, now);
    }

    fn start_what_is_due(&mut self, out: &mut Out, now: Instant) {
        if let Main::Away { until } = self.main
            && now >= until
        {
            self.start(out, now);
        }
        if self.next_spare().is_some_and(|at| now >= at) {
            self.start_spare(Program::Current, Purpose::Spare, out, now);
        }
    }

    /// When the next spare starts. It makes sense beside one that serves: otherwise it would be the one to serve. And which program
    /// it is to be of is open while a candidate is on its way to serving.
    fn next_spare(&self) -> Option<Instant> {
        match (&self.main, &self.spare) {
            (Main::Up(Process { program: Program::Current, .. }), Spare::Due { at }) if self.ever_served => {
                Some(*at)
            }
            _ => None,
        }
    }

    /// When [`Device::on_tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let main = match &self.main {
            Main::Up(process) => process.deadline(),
            Main::Away { until } => Some(*until),
            Main::Gone => None,
        };
        let spare = match &self.spare {
            Spare::Up { process, purpose } => {
                let patience = match purpose {
                    Purpose::Spare => None,
                    Purpose::Candidate { until } | Purpose::Handover { until } => Some(*until),
                };
                earlier(process.deadline(), patience)
            }
            Spare::Due { .. } => self.next_spare(),
            Spare::Fallen { until, .. } => Some(*until),
            Spare::None | Spare::Clearing { .. } => None,
        };
        let leaving = self.leaving.iter().filter_map(|leaving| leaving.kill_at).min();
        earlier(earlier(main, spare), leaving)
    }

    /// Processes that have not ended.
    pub(super) fn processes(&self) -> usize {
        let main = usize::from(matches!(self.main, Main::Up(_)));
        let spare = usize::from(matches!(self.spare, Spare::Up { .. }));
        main + spare + self.leaving.len()
    }

    /// The core ends: who would not see that is ended.
    pub(super) fn end_with_core(&mut self, out: &mut Out) {
        if let (false, Main::Up(process)) = (self.of_core, &mut self.main) {
            process.kill(Death::EndedWithVm, out);
        }
    }

    /// The VM ends: nobody is started any more, and whoever ends is only counted.
    pub(super) fn give_up(&mut self, id: ProcessId, death: &Death, out: &mut Out) {
        let is_main = matches!(&self.main, Main::Up(process) if process.id == id);
        let is_spare = matches!(&self.spare, Spare::Up { process, .. } if process.id == id);
        let main = is_main.then(|| std::mem::replace(&mut self.main, Main::Gone));
        let spare = is_spare.then(|| std::mem::replace(&mut self.spare, Spare::None));
        if let (Some(Main::Up(process)), _) | (_, Some(Spare::Up { process, .. })) = (main, spare) {
            let (device, death) = (self.number, process.death(death.clone()));
            out.tell(Notice::Died { device, process: id, spare: is_spare, death, next: Next::Nobody });
        }
        self.leaving.retain(|leaving| leaving.id != id);
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
