//! Whether the channels of a predecessor have all come.

use std::time::{Duration, Instant};

use super::Runtime;
use crate::device::Device;
use crate::role::Role;

/// So long after it has begun to serve, a process has got all channels from a core that does not say when it has. They come at once or
/// never, but the process may have had to wait for a processor.
const GUESS: Duration = Duration::from_secs(1);

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adoption {
    /// The core will say. Nothing is taken until then: what one channel's ledger says may be about requests of another's.
    Awaited,
    /// The core cannot say, and what it has given is served meanwhile. From then on it has given all; not before the process serves.
    Guessed(Option<Instant>),
    /// They have; the device has still to be told.
    Untold,
    /// It knows.
    Over,
}

impl Adoption {
    /// The process is to serve.
    pub fn of(announces: bool) -> Adoption {
        if announces { Adoption::Awaited } else { Adoption::Guessed(None) }
    }

    /// The process serves.
    pub fn begin(&mut self, now: Instant) {
        if let Adoption::Guessed(until) = self {
            *until = Some(now + GUESS);
        }
    }

    /// The core has said it.
    pub fn announced(&mut self) {
        if *self != Adoption::Over {
            *self = Adoption::Untold;
        }
    }

    /// Whether requests may be taken.
    pub fn lets_take(&self) -> bool {
        *self != Adoption::Awaited
    }

    /// Whether the core says, or has said, what the device has still to be told.
    pub fn is_pending(&self) -> bool {
        matches!(self, Adoption::Awaited | Adoption::Untold)
    }

    /// Whether the device knows that it has all.
    pub fn is_over(&self) -> bool {
        *self == Adoption::Over
    }

    /// When it is over, if that is known beforehand.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        match self {
            Adoption::Guessed(until) => *until,
            Adoption::Untold => Some(now),
            Adoption::Awaited | Adoption::Over => None,
        }
    }
}

impl<D: Device> Runtime<D> {
    /// Tells the device when it has all channels.
    pub(super) fn end_adoption(&mut self) {
        let now = Instant::now();
        let is_due = || self.adoption.due(now).is_some_and(|then| then <= now);
        if matches!(self.role, Role::Serving) && is_due() {
            self.adoption = Adoption::Over;
            self.device.adopted(&mut self.channels);
        }
    }
}
