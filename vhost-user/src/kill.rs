//! Named kill points: every place between two stores that a successor can tell apart.
//!
//! Tests die at each of them. A build without debug assertions has none of it.

use vsp::kill::parse;

/// A place on the way of a request at which a process may die. Each is named for the store that has just been made, or, if it ends with
/// `Due`, for the one that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KillPoint {
    /// A new region is about to count.
    InitDue,
    /// It counts.
    Initialised,
    /// A request is about to be taken.
    TakeDue,
    /// Its place in the order is noted; it is still in the ring.
    Numbered,
    /// It is in flight.
    Taken,
    /// It is in the used part behind the index.
    UsedWritten,
    /// The request before it in the batch is noted.
    Linked,
    /// It is the first of the batch.
    Headed,
    /// The used index is about to be published.
    PublishDue,
    /// It is published: the driver has the answers. The region says that they are in flight.
    Published,
    /// One of the batch is in flight no more.
    Cleared,
    /// The region's index has followed.
    Followed,
    /// The driver has been told.
    Signalled,
    /// A successor has settled one of its predecessor's batch.
    Settled,
    /// The region's index is the ring's.
    Recovered,
    /// The ring has been stopped, and the region is about to be one that says nothing.
    StopDue,
    /// It says nothing.
    Stopped,
}

impl KillPoint {
    /// All of them.
    pub const ALL: [KillPoint; 17] = [
        KillPoint::InitDue,
        KillPoint::Initialised,
        KillPoint::TakeDue,
        KillPoint::Numbered,
        KillPoint::Taken,
        KillPoint::UsedWritten,
        KillPoint::Linked,
        KillPoint::Headed,
        KillPoint::PublishDue,
        KillPoint::Published,
        KillPoint::Cleared,
        KillPoint::Followed,
        KillPoint::Signalled,
        KillPoint::Settled,
        KillPoint::Recovered,
        KillPoint::StopDue,
        KillPoint::Stopped,
    ];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            KillPoint::InitDue => "init-due",
            KillPoint::Initialised => "initialised",
            KillPoint::TakeDue => "take-due",
            KillPoint::Numbered => "numbered",
            KillPoint::Taken => "taken",
            KillPoint::UsedWritten => "used-written",
            KillPoint::Linked => "linked",
            KillPoint::Headed => "headed",
            KillPoint::PublishDue => "publish-due",
            KillPoint::Published => "published",
            KillPoint::Cleared => "cleared",
            KillPoint::Followed => "followed",
            KillPoint::Signalled => "signalled",
            KillPoint::Settled => "settled",
            KillPoint::Recovered => "recovered",
            KillPoint::StopDue => "stop-due",
            KillPoint::Stopped => "stopped",
        }
    }

    /// The process is here.
    #[inline]
    pub(crate) fn reached(self) {
        #[cfg(debug_assertions)]
        armed::reached(self);
    }
}

/// Has this process end without a trace, exit code 137, when this thread comes by a kill point for the given time: `NAME:COUNT`, from 1.
/// An error in builds without kill points.
pub fn arm(order: &str) -> Result<(), String> {
    let (point, count) = parse(order, KillPoint::ALL, KillPoint::name)?;
    #[cfg(debug_assertions)]
    {
        armed::arm(point, count, vsp::kill::die);
        Ok(())
    }
    #[cfg(not(debug_assertions))]
    Err(vsp::kill::none(point.name(), count))
}

/// Dying at kill points, for tests too.
#[cfg(debug_assertions)]
pub mod armed {
    use vsp::kill::{Armed, Death};

    use super::KillPoint;

    thread_local! {
        static ARMED: Armed<KillPoint> = const { Armed::new() };
    }

    /// Has `death` come when this thread reaches `point` for the `count`th time from now on.
    pub fn arm(point: KillPoint, count: u32, death: Death<KillPoint>) {
        ARMED.with(|armed| armed.arm(point, count, death));
    }

    /// Takes it back; true if it has not come.
    pub fn disarm() -> bool {
        ARMED.with(Armed::disarm)
    }

    pub(super) fn reached(point: KillPoint) {
        ARMED.with(|armed| armed.reached(point));
    }
}
