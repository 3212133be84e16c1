//! Who serves a device: the process that does, the one that stands by, and each step from one to the next.
//!
//! A state machine without I/O or a clock: what happens goes in, [`Act`]s come out, to be carried out in order. It knows nothing of
//! channels, and `P` can be anything that stands for a process.
//!
//! What always holds: one process at most is told to serve; it is told only when the one before has given the device up
//! or is no more; and a hand-over that fails ends with the old process serving, as long as that one lives.

mod leave;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub(super) use leave::Leave;

/// How long a process may take to end what it has in flight when it is to hand over. The guest waits meanwhile; a disk that needs
/// longer for one request is about to be given up by Linux (30 s) anyway.
pub(super) const QUIESCE_GRACE: Duration = Duration::from_secs(10);
/// How long a process may take to make its own what another one has just given up. There is nobody to wait for.
pub(super) const FENCE_GRACE: Duration = Duration::from_secs(5);
/// How long it may take to answer for all of its channels.
pub(super) const ADOPT_GRACE: Duration = Duration::from_secs(10);
/// How long a process that has been dismissed may take to end before somebody is asked to end it, and asked again.
pub(super) const GHOST_GRACE: Duration = Duration::from_secs(1);

/// Names an operator's connection.
pub(super) type OperatorId = u64;

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It serves, or will.
    Seated,
    /// It hands over.
    Old,
    /// It takes over.
    New,
    Standby,
    /// It has been dismissed and still lives.
    Ghost,
}

/// A hand-over under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    /// Who asked for it.
    pub operator: OperatorId,
    /// When the old process was told to stop.
    pub since: Instant,
    /// The old process was cut off after it had given the device up. Whoever asked for the hand-over ends it when the
    /// new one serves.
    pub is_old_stray: bool,
}

/// What an operator is told as soon as the process in the seat serves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Debt {
    /// The old process is back.
    Failed(Order, String),
    /// The old one died while it handed over. The new one is what was asked for.
    Swapped(Order),
}

/// The one who serves.
#[derive(Debug, PartialEq)]
pub(super) enum Seat<P> {
    Nobody,
    /// Not told to serve yet: the one before still lives.
    Held {
        process: P,
        debt: Option<Debt>,
    },
    /// Told to serve; it waits until the resource is its own, and then may begin at once.
    Fencing {
        process: P,
        debt: Option<Debt>,
    },
    Serving {
        process: P,
    },
    /// A hand-over: the old process ends what it has in flight. The new one may be lost meanwhile (then: why).
    Quiescing {
        old: P,
        new: Result<P, String>,
        order: Order,
        by: Instant,
    },
    /// The old one has given everything up, the new one makes it its own.
    Handing {
        old: P,
        new: P,
        order: Order,
        by: Instant,
    },
    /// The new one serves and has not answered for all channels. The old one can still have them back, if it lives.
    Adopting {
        old: Option<P>,
        new: P,
        order: Order,
        by: Instant,
    },
}

/// What has to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Act<P> {
    /// Tell the process at `role` to serve.
    Serve {
        role: Role,
        predecessor: bool,
    },
    /// Tell the old process to hand over.
    Quiesce,
    /// The old process is not needed any more.
    Retire(P),
    /// A process is to end. If it is not here, it is the [ghost](Role::Ghost), which had channels or could have.
    Dismiss(Option<P>, Leave),
    /// A process that has given everything up is to end. Nobody is asked to end it: nothing waits for that.
    Discard(P, Leave),
    /// Nobody has the device's channels now.
    Release,
    /// Give the device's channels to the process in [`Slot::taker`], then look whether it [has them](Slot::adopted).
    Open,
    Swapped(Order),
    Failed(OperatorId, String),
    /// A process that was cut off has not been reported so far: whoever can should end it.
    Strays,
    /// A dismissed process that had channels does not end.
    Lingers,
}

pub(super) type Acts<P> = Vec<Act<P>>;

/// How far a process that was told to serve has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    /// It has not said that it serves. It may all the same.
    Unheard,
    Served,
}

/// One that was told to serve, and is dismissed.
#[derive(Debug)]
struct Ghost<P> {
    process: P,
    past: Past,
    /// Somebody is asked (again) to end it then.
    by: Instant,
}

/// An operator waits for a hand-over that cannot begin yet.
#[derive(Debug, PartialEq)]
struct Waiting {
    operator: OperatorId,
    until: Instant,
}

/// One device's processes.
#[derive(Debug)]
pub(super) struct Slot<P> {
    seat: Seat<P>,
    standby: Option<P>,
    /// Nobody is told to serve while it lives.
    ghost: Option<Ghost<P>>,
    /// When somebody is to be told of an old process that strays: its successor, which will be reaped by then, is lost as well.
    stray: Option<Instant>,
    waiting: Option<Waiting>,
    /// A process has served before.
    served: bool,
    /// Nothing that a dead process began can still be in flight.
    fenced: bool,
    takeovers: u64,
}

impl<P> Slot<P> {
    pub fn new() -> Self {
        Self {
            seat: Seat::Nobody,
            standby: None,
            ghost: None,
            stray: None,
            waiting: None,
            served: false,
            fenced: true,
            takeovers: 0,
        }
    }

    /// A process serves.
    pub fn is_served(&self) -> bool {
        matches!(self.seat, Seat::Serving { .. } | Seat::Adopting { .. } | Seat::Quiescing { .. })
    }

    /// Nobody serves, and nobody will.
    pub fn is_empty(&self) -> bool {
        matches!(self.seat, Seat::Nobody)
    }

    pub fn has_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// Nothing that a dead process began can still be in flight.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether the ghost has said that it serves, before it was dismissed.
    pub fn has_ghost_served(&self) -> bool {
        self.ghost.as_ref().is_some_and(|ghost| ghost.past == Past::Served)
    }

    /// Times that a process has taken over from another one.
    pub fn takeovers(&self) -> u64 {
        self.takeovers
    }

    pub fn get(&self, role: Role) -> Option<&P> {
        match (role, &self.seat) {
            (
                Role::Seated,
                Seat::Held { process, .. } | Seat::Fencing { process, .. } | Seat::Serving { process },
            ) => Some(process),
            (Role::Old, Seat::Quiescing { old, .. } | Seat::Handing { old, .. }) => Some(old),
            (Role::Old, Seat::Adopting { old, .. }) => old.as_ref(),
            (Role::New, Seat::Quiescing { new, .. }) => new.as_ref().ok(),
            (Role::New, Seat::Handing { new, .. } | Seat::Adopting { new, .. }) => Some(new),
            (Role::Standby, _) => self.standby.as_ref(),
            (Role::Ghost, _) => self.ghost.as_ref().map(|ghost| &ghost.process),
            _ => None,
        }
    }

    /// All processes, each with its place.
    pub fn all(&self) -> impl Iterator<Item = (Role, &P)> {
        [Role::Seated, Role::Old, Role::New, Role::Standby, Role::Ghost]
            .into_iter()
            .filter_map(|role| Some((role, self.get(role)?)))
    }

    /// The process that may be told of channels.
    pub fn taker(&self) -> Option<(Role, &P)> {
        match &self.seat {
            Seat::Serving { process } => Some((Role::Seated, process)),
            Seat::Adopting { new, .. } => Some((Role::New, new)),
            _ => None,
        }
    }

    /// The process that will serve once the one that does has gone or hands over.
    pub fn next(&self) -> Option<&P> {
        match &self.seat {
            Seat::Quiescing { new: Ok(new), .. } | Seat::Handing { new, .. } => Some(new),
            _ => self.standby.as_ref(),
        }
    }

    /// The process that has channels, and answers for them.
    pub fn holder(&self) -> Option<(Role, &P)> {
        match &self.seat {
            Seat::Quiescing { old, .. } => Some((Role::Old, old)),
            _ => self.taker(),
        }
    }

    /// Whether there is room for one more process, and if so, whether it will have to stand by.
    pub fn room(&self) -> Result<bool, &'static str> {
        match (&self.seat, &self.standby) {
            (Seat::Nobody, _) => Ok(self.ghost.is_some()),
            (_, None) => Ok(true),
            (_, Some(_)) => Err("a process serves this device already, and another one stands by"),
        }
    }

    /// A process has come, and there was [room](Self::room).
    pub fn attach(&mut self, process: P, now: Instant) -> Acts<P> {
        if self.is_empty() {
            return self.seat(process, None);
        }
        debug_assert!(self.standby.is_none());
        self.standby = Some(process);
        self.try_swap(now)
    }

    /// A process says that the device is its own. `Err`: it was not asked.
    pub fn serving(&mut self, role: Role, now: Instant) -> Result<Acts<P>, ()> {
        let by = now + ADOPT_GRACE;
        let acts = match (self.take_seat(), role) {
            (Seat::Fencing { process, debt }, Role::Seated) => {
                let mut acts = vec![Act::Open];
                self.takeovers += u64::from(self.served && debt.is_none());
                self.seat = match debt {
                    None => Seat::Serving { process },
                    Some(Debt::Failed(order, reason)) => {
                        acts.push(Act::Failed(order.operator, reason));
                        Seat::Serving { process }
                    }
                    Some(Debt::Swapped(order)) => Seat::Adopting { old: None, new: process, order, by },
                };
                acts
            }
            (Seat::Handing { old, new, order, .. }, Role::New) => {
                self.seat = Seat::Adopting { old: Some(old), new, order, by };
                vec![Act::Open]
            }
            (seat, _) => {
                self.seat = seat;
                return Err(());
            }
        };
        self.served = true;
        self.fenced = true;
        Ok(self.and_swap(acts, now))
    }

    /// A process says that it has given everything up. `Err`: it was not asked.
    pub fn quiesced(&mut self, role: Role, now: Instant) -> Result<Acts<P>, ()> {
        match (self.take_seat(), role) {
            (Seat::Quiescing { old, new: Ok(new), order, .. }, Role::Old) => {
                self.seat = Seat::Handing { old, new, order, by: now + FENCE_GRACE };
                Ok(vec![Act::Release, Act::Serve { role: Role::New, predecessor: true }])
            }
            (Seat::Quiescing { old, new: Err(reason), order, .. }, Role::Old) => {
                let mut acts = vec![Act::Release];
                acts.extend(self.seat(old, Some(Debt::Failed(order, reason))));
                Ok(acts)
            }
            (seat, _) => {
                self.seat = seat;
                Err(())
            }
        }
    }

    /// The process that takes over has answered for all channels.
    pub fn adopted(&mut self, now: Instant) -> Acts<P> {
        match self.take_seat() {
            Seat::Adopting { old, new, order, .. } => {
                self.takeovers += 1;
                self.seat = Seat::Serving { process: new };
                let mut acts: Acts<P> = old.map(Act::Retire).into_iter().collect();
                acts.push(Act::Swapped(order));
                self.and_swap(acts, now)
            }
            seat => {
                self.seat = seat;
                Vec::new()
            }
        }
    }

    /// Whether the process that takes over has not answered for all channels yet.
    pub fn is_adopting(&self) -> bool {
        matches!(self.seat, Seat::Adopting { .. })
    }

    /// Whether a hand-over is under way, or waited for.
    pub fn is_busy(&self) -> bool {
        let is_busy = match &self.seat {
            Seat::Nobody | Seat::Serving { .. } => false,
            Seat::Held { debt, .. } | Seat::Fencing { debt, .. } => debt.is_some(),
            Seat::Quiescing { .. } | Seat::Handing { .. } | Seat::Adopting { .. } => true,
        };
        is_busy || self.waiting.is_some()
    }

    /// An operator wants the standby process to serve, and waits for one until then. `Err`: not now.
    pub fn swap(&mut self, operator: OperatorId, until: Instant, now: Instant) -> Result<Acts<P>, String> {
        if self.is_busy() {
            return Err("a hand-over is under way".into());
        }
        self.waiting = Some(Waiting { operator, until });
        let acts = self.try_swap(now);
        if until <= now && self.waiting.take().is_some() {
            return Err(self.why_not().into());
        }
        Ok(acts)
    }

    fn why_not(&self) -> &'static str {
        match (&self.seat, &self.standby) {
            (Seat::Serving { .. }, None) => "no process stands by",
            _ => "no process serves it",
        }
    }

    /// Begins the hand-over that somebody waits for, if it can begin.
    fn try_swap(&mut self, now: Instant) -> Acts<P> {
        if self.standby.is_none() || !matches!(self.seat, Seat::Serving { .. }) {
            return Vec::new();
        }
        let Some(Waiting { operator, .. }) = self.waiting.take() else { return Vec::new() };
        match (self.take_seat(), self.standby.take()) {
            (Seat::Serving { process }, Some(new)) => {
                let order = Order { operator, since: now, is_old_stray: false };
                self.seat = Seat::Quiescing { old: process, new: Ok(new), order, by: now + QUIESCE_GRACE };
                vec![Act::Quiesce]
            }
            (seat, standby) => {
                (self.seat, self.standby) = (seat, standby);
                Vec::new()
            }
        }
    }

    fn and_swap(&mut self, mut acts: Acts<P>, now: Instant) -> Acts<P> {
        acts.extend(self.try_swap(now));
        acts
    }

    /// Has this process serve, as soon as the one before is no more.
    fn seat(&mut self, process: P, debt: Option<Debt>) -> Acts<P> {
        if self.ghost.is_some() {
            self.seat = Seat::Held { process, debt };
            return Vec::new();
        }
        self.seat = Seat::Fencing { process, debt };
        vec![Act::Serve { role: Role::Seated, predecessor: self.served }]
    }

    fn take_seat(&mut self) -> Seat<P> {
        std::mem::replace(&mut self.seat, Seat::Nobody)
    }

    /// When [`Self::tick`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let step = match &self.seat {
            Seat::Quiescing { by, .. } | Seat::Handing { by, .. } | Seat::Adopting { by, .. } => Some(*by),
            _ => None,
        };
        let ghost = self.ghost.as_ref().map(|ghost| ghost.by);
        let waiting = self.waiting.as_ref().map(|w| w.until);
        [step, ghost, self.stray, waiting].into_iter().flatten().min()
    }

    /// Time goes by.
    pub fn tick(&mut self, now: Instant) -> Acts<P> {
        let mut acts = Vec::new();
        if let Some(waiting) = self.waiting.take_if(|w| w.until <= now) {
            acts.push(Act::Failed(waiting.operator, self.why_not().into()));
        }
        if self.stray.take_if(|at| *at <= now).is_some() {
            acts.push(Act::Strays);
        }
        // Again and again: whoever was told may have ended another one, or not have been there.
        if let Some(ghost) = self.ghost.as_mut().filter(|ghost| ghost.by <= now) {
            ghost.by = now + GHOST_GRACE;
            acts.push(Act::Lingers);
        }
        let late = match &self.seat {
            Seat::Quiescing { by, .. } if *by <= now => Some((Role::Old, "it did not hand over in time")),
            Seat::Handing { by, .. } if *by <= now => Some((Role::New, "it did not take over in time")),
            Seat::Adopting { by, .. } if *by <= now => {
                Some((Role::New, "it did not take over its channels in time"))
            }
            _ => None,
        };
        if let Some((role, reason)) = late {
            acts.extend(self.leave(role, Leave::CutOff(reason.into()), now));
        }
        acts
    }
}
