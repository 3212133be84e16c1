//! Between two turns: what is looked at before the loop sleeps, and for how long it sleeps.
//!
//! [`crate::polling`] decides how long to look. Here is what is looked at, and that nothing is missed on the way to sleep: the
//! guest rings no doorbell while its rings are looked at, so it is asked to ring again, and the rings are looked at once more,
//! before the loop sleeps.

use std::io;
use std::time::{Duration, Instant};

use super::{Runtime, RuntimeError};
use crate::device::Device;
use crate::polling::For;
use crate::role::Role;

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// In time, or there is something to do.
    Over,
    /// By a signal.
    Interrupted,
}

impl<D: Device> Runtime<D> {
    /// Waits until there is something to do: looks for it first, if that is worth it, then sleeps. What the core and the
    /// sources say is in `self.events` afterwards.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited, RuntimeError> {
        let mut timeout = self.pause(timeout);
        let begin = Instant::now();
        let what = if self.device.is_idle() { For::Guest } else { For::Resource };
        let serving = self.takes();
        self.events.clear();
        if self.has_news() {
            timeout = Some(Duration::ZERO);
        }
        let mut quick = (serving || matches!(self.role, Role::Quiescing)) && self.look();
        let dry = !quick;
        if serving && dry && timeout != Some(Duration::ZERO) && !self.channels.any_blocked() {
            quick = self.look_for_long(what, begin, timeout);
        }
        let now = if dry { Instant::now() } else { begin };
        if quick {
            if dry {
                self.polling.waited(what, now - begin);
            }
            if !self.polling.must_listen(now) {
                return Ok(Waited::Over);
            }
            // What the look has ended need not wait for what else there is.
            self.publish()?;
            timeout = Some(Duration::ZERO);
        } else {
            self.channels.rest();
            if serving && self.channels.any_ready() {
                timeout = Some(Duration::ZERO);
            }
        }
        self.polling.listened(now);
        let polled = self.poll.poll(&mut self.events, timeout);
        if timeout != Some(Duration::ZERO) {
            // What has woken it may take long.
            self.setting.notifier.alive();
        }
        // Before it is asked how it ended: what the resource has ended may be announced as a signal would be.
        if serving && !quick && timeout != Some(Duration::ZERO) {
            // Nothing at all counts as well: it is how long nothing came.
            self.polling.waited(what, begin.elapsed());
        }
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Waited::Interrupted),
            other => Ok(other.map(|()| Waited::Over)?),
        }
    }

    /// Whether there is something to be told, or to be heard, for which nobody wakes the loop.
    fn has_news(&self) -> bool {
        self.fetcher.has_kept() || self.channels.has_news()
    }

    /// Looks once; whether there is something to do.
    fn look(&mut self) -> bool {
        let ended = self.device.poll(&mut self.channels);
        if !self.takes() {
            return ended;
        }
        self.channels.look();
        ended || self.channels.any_ready()
    }

    /// Looks for something to do until it is not worth it any more.
    fn look_for_long(&mut self, what: For, begin: Instant, timeout: Option<Duration>) -> bool {
        let Some(mut until) = self.polling.until(what, begin) else { return false };
        if let Some(timeout) = timeout {
            until = until.min(begin + timeout);
        }
        let mut before = begin;
        loop {
            if self.look() {
                return true;
            }
            std::hint::spin_loop();
            let now = Instant::now();
            if now >= until || !self.polling.may_go_on(before, now) {
                return false;
            }
            before = now;
        }
    }

    /// How long this turn may wait; also gives a sign of life.
    fn pause(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        let beat = self.setting.notifier.alive();
        let busy = match &self.role {
            Role::Serving if self.takes() && self.channels.any_ready() => Some(Duration::ZERO),
            Role::Fencing(fencing) => Some(fencing.pause()),
            _ => None,
        };
        let now = Instant::now();
        let adopted = self.adoption.due(now).filter(|_| matches!(self.role, Role::Serving));
        let wake = [self.device.wake_at(), adopted].into_iter().flatten().min();
        let wake = wake.map(|then| then.saturating_duration_since(now));
        [beat, busy, wake, timeout].into_iter().flatten().min()
    }
}
