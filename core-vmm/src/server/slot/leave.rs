//! A process goes, or has to: who serves then.

use std::time::Instant;

use super::{Act, Acts, Debt, GHOST_GRACE, Role, Seat, Slot};

/// Why a process serves no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum Leave {
    /// It has ended.
    Gone,
    /// It does what it may not, or not what it has to. Somebody should end it.
    CutOff(String),
    /// It cannot do what is needed, and says so. It ends by itself.
    Refused(String),
}

impl Leave {
    fn reason(&self) -> String {
        match self {
            Leave::Gone => "it has died".into(),
            Leave::CutOff(reason) | Leave::Refused(reason) => reason.clone(),
        }
    }
}

impl<P> Slot<P> {
    /// The process at `role` serves no more.
    pub fn leave(&mut self, role: Role, how: Leave, now: Instant) -> Acts<P> {
        let reason = how.reason();
        let mut acts = Vec::new();
        match (self.take_seat(), role) {
            (seat, Role::Ghost) => {
                self.seat = seat;
                self.ghost = None;
                if let Seat::Held { .. } = self.seat
                    && let Seat::Held { process, debt } = self.take_seat()
                {
                    acts.extend(self.seat(process, debt));
                }
            }
            (seat, Role::Standby) => {
                self.seat = seat;
                dismiss(&mut acts, self.standby.take(), how);
            }
            (Seat::Held { process, debt } | Seat::Fencing { process, debt }, Role::Seated) => {
                dismiss(&mut acts, Some(process), how);
                if let Some(debt) = debt {
                    acts.push(unpaid(debt, &reason));
                }
                acts.extend(self.promote());
            }
            (Seat::Serving { process }, Role::Seated) => {
                self.haunt(&mut acts, process, how, now);
                acts.extend(self.promote());
            }
            (Seat::Quiescing { old, new, order, .. }, Role::Old) => {
                self.haunt(&mut acts, old, how, now);
                match new {
                    Ok(new) => acts.extend(self.seat(new, Some(Debt::Swapped(order)))),
                    Err(earlier) => {
                        acts.push(unpaid(Debt::Failed(order, earlier), &reason));
                        acts.extend(self.promote());
                    }
                }
            }
            (Seat::Quiescing { old, new, order, by }, Role::New) => {
                dismiss(&mut acts, new.ok(), how);
                self.seat = Seat::Quiescing { old, new: Err(failed(&reason)), order, by };
            }
            (Seat::Handing { old, new, order, .. }, Role::Old) => {
                dismiss(&mut acts, Some(old), how);
                // It has been told to serve already.
                self.seat = Seat::Fencing { process: new, debt: Some(Debt::Swapped(order)) };
            }
            (Seat::Handing { old, new, order, .. }, Role::New) => {
                dismiss(&mut acts, Some(new), how);
                acts.extend(self.seat(old, Some(Debt::Failed(order, failed(&reason)))));
            }
            (Seat::Adopting { old, new, order, by }, Role::Old) => {
                dismiss(&mut acts, old, how);
                self.seat = Seat::Adopting { old: None, new, order, by };
            }
            (Seat::Adopting { old, new, order, .. }, Role::New) => {
                self.haunt(&mut acts, new, how, now);
                match old {
                    Some(old) => acts.extend(self.seat(old, Some(Debt::Failed(order, failed(&reason))))),
                    None => {
                        acts.push(unpaid(Debt::Swapped(order), &reason));
                        acts.extend(self.promote());
                    }
                }
            }
            (seat, Role::Seated | Role::Old | Role::New) => self.seat = seat,
        }
        acts
    }

    /// A process that has had channels goes. Unless it is dead, it may still do with them what it likes.
    fn haunt(&mut self, acts: &mut Acts<P>, process: P, how: Leave, now: Instant) {
        self.fenced = false;
        match &how {
            Leave::Gone => {}
            // Whoever can end it is asked at once.
            Leave::CutOff(_) => self.ghost = Some((process, None)),
            Leave::Refused(_) => self.ghost = Some((process, Some(now + GHOST_GRACE))),
        }
        dismiss(acts, None, how);
        acts.push(Act::Release);
    }

    /// The seat is empty.
    fn promote(&mut self) -> Acts<P> {
        self.standby.take().map_or_else(Vec::new, |next| self.seat(next, None))
    }
}

fn dismiss<P>(acts: &mut Acts<P>, process: Option<P>, how: Leave) {
    if how != Leave::Gone {
        acts.push(Act::Dismiss(process, how));
    }
}

fn failed(reason: &str) -> String {
    format!("the new process could not take over: {reason}")
}

/// The process on which an answer depended is lost as well.
fn unpaid<P>(debt: Debt, reason: &str) -> Act<P> {
    match debt {
        Debt::Failed(order, earlier) => {
            Act::Failed(order.operator, format!("{earlier}; and the old one is lost: {reason}"))
        }
        Debt::Swapped(order) => Act::Failed(order.operator, format!("both processes are lost: {reason}")),
    }
}
