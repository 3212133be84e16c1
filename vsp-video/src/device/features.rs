//! What the guest is to tell, and when the whole picture is looked at in case it has not told all.
//!
//! A driver tells nothing of what it draws before the host has asked for it, and `hyperv_fb` answers each such message with its
//! situation and its pointer: so it is said when something changes, and never as an answer to a situation.

use std::time::{Duration, Instant};

use vsp::{ChannelId, Channels, Notify, Outgoing};

use crate::wire::{Features, HostMessage};

/// So long after the last one has stopped looking the guest goes on telling where it draws: whoever comes back after a moment
/// costs the guest nothing, and neither does a console that cannot make up its mind.
const LINGER: Duration = Duration::from_secs(5);
/// So long after something from which on the guest tells where it draws, or draws all of its picture without telling, everything is
/// looked at: drivers draw at 20 pictures a second.
const SOON: Duration = Duration::from_millis(100);
/// And once more, for a guest that was slow.
const LATER: Duration = Duration::from_secs(1);

/// Who looks, and what the guest knows of it.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    watched: bool,
    /// Nobody looks, but until then somebody might.
    until: Option<Instant>,
    /// What the guest of the open channel has been told.
    told: Option<bool>,
    /// There was no room to tell it.
    waits: bool,
}

impl Wanted {
    /// Whether anybody looks.
    pub fn is_watched(&self) -> bool {
        self.watched
    }

    /// The console says whether anybody looks; true if somebody does who did not before.
    pub fn watch(&mut self, watched: bool, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.watched, watched);
        if before && !watched {
            self.until = Some(now + LINGER);
        }
        watched && !before
    }

    /// A channel is open: until the console has said something, somebody looks.
    pub fn opened(&mut self, now: Instant) {
        self.reopen();
        self.until = Some(now + LINGER);
    }

    /// It is closed.
    pub fn reopen(&mut self) {
        (self.told, self.until, self.waits) = (None, None, false);
    }

    /// Tells the guest, if there is anything to tell and room for it; [`vsp::Device::room`] says when there is.
    pub fn tell(&mut self, channel: ChannelId, now: Instant, channels: &mut Channels) {
        let wants = self.watched || self.until.is_some_and(|until| now < until);
        if self.told == Some(wants) {
            return;
        }
        let features = if wants { Features::ALL } else { Features::NONE };
        let message = HostMessage::FeatureChange(features).encode();
        match channels.notify(channel, &Outgoing::in_band(0, false), &message) {
            Notify::Sent => {
                tracing::debug!(wants, "the guest is told whether anybody looks");
                (self.told, self.waits) = (Some(wants), false);
            }
            Notify::Full | Notify::Dead => self.waits = true,
        }
    }

    /// When the guest has to be told that nobody looks.
    pub fn due(&self) -> Option<Instant> {
        self.until.filter(|_| !self.watched && self.told == Some(true) && !self.waits)
    }
}

/// When the whole picture is looked at.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    soon: Option<Instant>,
    later: Option<Instant>,
}

impl Refresh {
    /// Soon, and once more later. A guest that asks for it all the time gets it no more often.
    pub fn soon(&mut self, now: Instant) {
        self.soon.get_or_insert(now + SOON);
        self.later = Some(now + LATER);
    }

    /// The next time.
    pub fn due(&self) -> Option<Instant> {
        self.soon.or(self.later)
    }

    /// Whether it is time.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let soon = self.soon.take_if(|then| *then <= now);
        let later = self.later.take_if(|then| *then <= now);
        soon.or(later).is_some()
    }
}
