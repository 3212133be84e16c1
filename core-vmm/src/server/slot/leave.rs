//! A process goes, or has to: who serves then.

use std::time::Instant;

use super::{Act, Acts, Debt, GHOST_GRACE, Ghost, Order, Past, Role, Seat, Slot};

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
            (Seat::Held { process, debt }, Role::Seated) => {
                dismiss(&mut acts, Some(process), how);
                if let Some(debt) = debt {
                    self.unpaid(&mut acts, debt, &reason, now);
                }
                acts.extend(self.promote());
            }
            // It may have the device by now, and does not wait to be heard before it begins with channels that it was told of.
            (Seat::Fencing { process, debt }, Role::Seated) => {
                self.haunt(&mut acts, process, (how, Past::Unheard), now);
                if let Some(debt) = debt {
                    self.unpaid(&mut acts, debt, &reason, now);
                }
                acts.extend(self.promote());
            }
            (Seat::Serving { process }, Role::Seated) => {
                self.haunt(&mut acts, process, (how, Past::Served), now);
                acts.extend(self.promote());
            }
            (Seat::Quiescing { old, new, order, .. }, Role::Old) => {
                self.haunt(&mut acts, old, (how, Past::Served), now);
                match new {
                    Ok(new) => acts.extend(self.seat(new, Some(Debt::Swapped(order)))),
                    Err(earlier) => {
                        self.unpaid(&mut acts, Debt::Failed(order, earlier), &reason, now);
                        acts.extend(self.promote());
                    }
                }
            }
            (Seat::Quiescing { old, new, order, by }, Role::New) => {
                dismiss(&mut acts, new.ok(), how);
                self.seat = Seat::Quiescing { old, new: Err(failed(&reason)), order, by };
            }
            (Seat::Handing { old, new, order, .. }, Role::Old) => {
                let order = discard(&mut acts, Some(old), how, order);
                // It has been told to serve already.
                self.seat = Seat::Fencing { process: new, debt: Some(Debt::Swapped(order)) };
            }
            (Seat::Handing { old, new, order, .. }, Role::New) => {
                self.haunt(&mut acts, new, (how, Past::Unheard), now);
                acts.extend(self.seat(old, Some(Debt::Failed(order, failed(&reason)))));
            }
            (Seat::Adopting { old, new, order, by }, Role::Old) => {
                let order = discard(&mut acts, old, how, order);
                self.seat = Seat::Adopting { old: None, new, order, by };
            }
            (Seat::Adopting { old, new, order, .. }, Role::New) => {
                self.haunt(&mut acts, new, (how, Past::Served), now);
                match old {
                    Some(old) => acts.extend(self.seat(old, Some(Debt::Failed(order, failed(&reason))))),
                    None => {
                        self.unpaid(&mut acts, Debt::Swapped(order), &reason, now);
                        acts.extend(self.promote());
                    }
                }
            }
            (seat, Role::Seated | Role::Old | Role::New) => self.seat = seat,
        }
        acts
    }

    /// A process that has had channels, or could have, goes. Unless it is dead, it may still do with them what it likes.
    fn haunt(&mut self, acts: &mut Acts<P>, process: P, (how, past): (Leave, Past), now: Instant) {
        // Only of channels that another one has served can it have been told without having been heard.
        self.fenced &= past == Past::Unheard && !self.served;
        if how != Leave::Gone {
            debug_assert!(self.ghost.is_none(), "nobody was to be told to serve");
            self.ghost = Some(Ghost { process, past, by: now + GHOST_GRACE });
        }
        dismiss(acts, None, how);
        acts.push(Act::Release);
    }

    /// The seat is empty.
    fn promote(&mut self) -> Acts<P> {
        self.standby.take().map_or_else(Vec::new, |next| self.seat(next, None))
    }

    /// The process on which an answer depended is lost as well.
    fn unpaid(&mut self, acts: &mut Acts<P>, debt: Debt, reason: &str, now: Instant) {
        let (operator, why) = match debt {
            Debt::Failed(order, earlier) => {
                (order.operator, format!("{earlier}; and the old one is lost: {reason}"))
            }
            Debt::Swapped(order) => {
                if order.is_old_stray {
                    self.stray = Some(now + GHOST_GRACE);
                }
                (order.operator, format!("both processes are lost: {reason}"))
            }
        };
        acts.push(Act::Failed(operator, why));
    }
}

fn dismiss<P>(acts: &mut Acts<P>, process: Option<P>, how: Leave) {
    if how != Leave::Gone {
        acts.push(Act::Dismiss(process, how));
    }
}

/// The old process is lost after it has given everything up. Nothing depends on its end, so nobody is asked to end it while the
/// new one takes over: he could end the wrong one.
fn discard<P>(acts: &mut Acts<P>, old: Option<P>, how: Leave, order: Order) -> Order {
    match old.filter(|_| how != Leave::Gone) {
        Some(old) => {
            acts.push(Act::Discard(old, how));
            Order { is_old_stray: true, ..order }
        }
        None => order,
    }
}

fn failed(reason: &str) -> String {
    format!("the new process could not take over: {reason}")
}
