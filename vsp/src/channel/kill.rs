//! Named kill points: every place between two stores that a successor can tell apart.
//!
//! Tests die at each of them. A build without debug assertions has none of it.

use crate::kill::parse;

/// A place on the way of a request at which a process may die. Each is named for the store that has just been made,
/// or, if it ends with `Due`, for the one that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KillPoint {
    /// A packet and its spine are in a slot that does not count yet.
    TakeDue,
    /// The slot counts; the packet is still in the ring.
    Taken,
    /// The read index is about to be published.
    ReadDue,
    /// The read index is published; the ledger's position is one publication behind.
    ReadPublished,
    /// The ledger's position has followed the read index.
    ReadNoted,
    /// A completion is in the ring behind the write index, its slot says nothing of it.
    CompletionWritten,
    /// A new state is in the other half.
    StateWritten,
    /// The slot says where the completion lies.
    Completing,
    /// A request without completion has ended, its state is not the device's yet.
    Ended,
    /// The slot says that the request has begun to have its effect.
    Begun,
    /// An outcome is in its slot and does not count yet.
    OutcomeDue,
    /// The outcome counts.
    OutcomeNoted,
    /// The write index is about to be published.
    WriteDue,
    /// The write index is published: the guest has the completions.
    WritePublished,
    /// The ledger's position has followed the write index.
    WriteNoted,
    /// The new state is the device's.
    StateNoted,
    /// A slot is free again.
    Freed,
    /// The guest has been asked to signal when there is room.
    RoomAsked,
    /// A new ledger is all there but for its first words.
    FormatDue,
    /// A new ledger is there.
    Formatted,
    /// A successor has counted an attempt, or has not found any.
    AdoptBlamed,
    /// A successor has made the state the device's that a visible completion brought.
    AdoptState,
    /// A successor has settled one slot.
    AdoptSettled,
    /// The ledger's positions are the rings'.
    AdoptNoted,
    /// The note of a crash is gone.
    AdoptForgiven,
    /// The ledger is the successor's.
    Adopted,
    /// A loan's packet is in the ring behind the write index, its word says nothing of it.
    LendDue,
    /// The word says where the packet ends.
    Lent,
    /// The completion that gives a loan back is read, its word says nothing of it.
    ReturnDue,
    /// The word says where the completion ends.
    Returning,
    /// A successor has settled one loan.
    AdoptLoan,
    /// A packet of the device's own is in the ring behind the write index, and no ledger knows of it.
    Notified,
}

impl KillPoint {
    /// All that a request meets, in that order.
    pub const ALL: [KillPoint; 26] = [
        KillPoint::TakeDue,
        KillPoint::Taken,
        KillPoint::ReadDue,
        KillPoint::ReadPublished,
        KillPoint::ReadNoted,
        KillPoint::CompletionWritten,
        KillPoint::StateWritten,
        KillPoint::Completing,
        KillPoint::Ended,
        KillPoint::Begun,
        KillPoint::OutcomeDue,
        KillPoint::OutcomeNoted,
        KillPoint::WriteDue,
        KillPoint::WritePublished,
        KillPoint::WriteNoted,
        KillPoint::StateNoted,
        KillPoint::Freed,
        KillPoint::RoomAsked,
        KillPoint::FormatDue,
        KillPoint::Formatted,
        KillPoint::AdoptBlamed,
        KillPoint::AdoptState,
        KillPoint::AdoptSettled,
        KillPoint::AdoptNoted,
        KillPoint::AdoptForgiven,
        KillPoint::Adopted,
    ];

    /// All that a loan meets besides: only channels of devices that lend come by these.
    pub const LOANS: [KillPoint; 5] = [
        KillPoint::LendDue,
        KillPoint::Lent,
        KillPoint::ReturnDue,
        KillPoint::Returning,
        KillPoint::AdoptLoan,
    ];

    /// All that a device meets besides which says something without having been asked.
    pub const NOTICES: [KillPoint; 1] = [KillPoint::Notified];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            KillPoint::TakeDue => "take-due",
            KillPoint::Taken => "taken",
            KillPoint::ReadDue => "read-due",
            KillPoint::ReadPublished => "read-published",
            KillPoint::ReadNoted => "read-noted",
            KillPoint::CompletionWritten => "completion-written",
            KillPoint::StateWritten => "state-written",
            KillPoint::Completing => "completing",
            KillPoint::Ended => "ended",
            KillPoint::Begun => "begun",
            KillPoint::OutcomeDue => "outcome-due",
            KillPoint::OutcomeNoted => "outcome-noted",
            KillPoint::WriteDue => "write-due",
            KillPoint::WritePublished => "write-published",
            KillPoint::WriteNoted => "write-noted",
            KillPoint::StateNoted => "state-noted",
            KillPoint::Freed => "freed",
            KillPoint::RoomAsked => "room-asked",
            KillPoint::FormatDue => "format-due",
            KillPoint::Formatted => "formatted",
            KillPoint::AdoptBlamed => "adopt-blamed",
            KillPoint::AdoptState => "adopt-state",
            KillPoint::AdoptSettled => "adopt-settled",
            KillPoint::AdoptNoted => "adopt-noted",
            KillPoint::AdoptForgiven => "adopt-forgiven",
            KillPoint::Adopted => "adopted",
            KillPoint::LendDue => "lend-due",
            KillPoint::Lent => "lent",
            KillPoint::ReturnDue => "return-due",
            KillPoint::Returning => "returning",
            KillPoint::AdoptLoan => "adopt-loan",
            KillPoint::Notified => "notified",
        }
    }

    /// The process is here.
    #[inline]
    pub(super) fn reached(self) {
        #[cfg(debug_assertions)]
        armed::reached(self);
    }
}

/// Has this process end without a trace, exit code 137, when this thread comes by a kill point for the given time:
/// `NAME:COUNT`, from 1. An error in builds without kill points.
pub fn arm_kill_point(order: &str) -> Result<(), String> {
    let all = KillPoint::ALL.into_iter().chain(KillPoint::LOANS).chain(KillPoint::NOTICES);
    let (point, count) = parse(order, all, KillPoint::name)?;
    #[cfg(debug_assertions)]
    {
        armed::arm(point, count, crate::kill::die);
        Ok(())
    }
    #[cfg(not(debug_assertions))]
    Err(crate::kill::none(point.name(), count))
}

#[cfg(debug_assertions)]
pub(super) mod armed {
    use super::KillPoint;
    use crate::kill::{Armed, Death};

    thread_local! {
        static ARMED: Armed<KillPoint> = const { Armed::new() };
    }

    /// Has `death` come when this thread reaches `point` for the `count`th time from now on.
    pub fn arm(point: KillPoint, count: u32, death: Death<KillPoint>) {
        ARMED.with(|armed| armed.arm(point, count, death));
    }

    /// Takes it back; true if it has not come.
    #[cfg(test)]
    pub fn disarm() -> bool {
        ARMED.with(Armed::disarm)
    }

    pub fn reached(point: KillPoint) {
        ARMED.with(|armed| armed.reached(point));
    }
}
