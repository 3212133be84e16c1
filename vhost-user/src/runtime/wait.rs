//! Between two turns: what is looked at before the loop sleeps, and for how long it sleeps.
//!
//! [`vsp::polling`] decides how long to look. Here is what is looked at, and that nothing is missed on the way to sleep: the driver
//! rings no bell while its rings are looked at, so it is asked to ring again, and the rings are looked at once more, before the loop sleeps.

use std::io;
use std::time::{Duration, Instant};

use vsp::polling::For;

use super::{Runtime, RuntimeError};
use crate::face::Face;

impl<F: Face> Runtime<F> {
    /// Waits until there is something to do: looks for it first, if that is worth it, then sleeps. What the sources say is in
    /// `self.events` afterwards.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Result<(), RuntimeError> {
        let mut timeout = self.pause(timeout);
        let begin = Instant::now();
        let what = if self.face.is_idle() { For::Guest } else { For::Resource };
        let serving = self.front_end.is_some();
        self.events.clear();
        if self.is_due() {
            timeout = Some(Duration::ZERO);
        }
        let mut quick = self.look();
        let dry = !quick;
        if serving && dry && timeout != Some(Duration::ZERO) {
            quick = self.look_for_long(what, begin, timeout);
        }
        let now = if dry { Instant::now() } else { begin };
        if quick {
            if dry {
                self.polling.waited(what, now - begin);
            }
            if !self.polling.must_listen(now) {
                return Ok(());
            }
            timeout = Some(Duration::ZERO);
        } else {
            self.queues.rest();
            if serving && self.any_some() {
                timeout = Some(Duration::ZERO);
            }
        }
        self.polling.listened(now);
        let polled = self.poll.poll(&mut self.events, timeout);
        if serving && !quick && timeout != Some(Duration::ZERO) {
            // Nothing at all counts as well: it is how long nothing came.
            self.polling.waited(what, begin.elapsed());
        }
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Whether there is something to do of which nobody wakes the loop.
    fn is_due(&self) -> bool {
        let speaks = self.front_end.as_ref().is_some_and(|front_end| match front_end.stopping {
            Some(queue) => self.queues.is_over(queue),
            None => front_end.speaks,
        });
        speaks || (self.knocks && self.is_vacant())
    }

    /// Looks once; whether there is something to do.
    fn look(&mut self) -> bool {
        let ended = self.face.poll(&mut self.queues);
        self.queues.look();
        self.any_some() || ended
    }

    /// Whether anything can be taken from a queue.
    fn any_some(&self) -> bool {
        let careful = self.queues.is_careful() && self.queues.suspects() > 0;
        !careful
            && (0..self.queues.slots.len() as u16).any(|queue| {
                if self.face.takes_itself(queue) {
                    return self.queues.is_hungry(queue);
                }
                self.queues.has_some(queue) && !self.is_full(queue)
            })
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
            if !self.polling.may_go_on(before, now) {
                return false;
            }
            if now >= until {
                self.polling.in_vain(begin, now);
                return false;
            }
            before = now;
        }
    }

    /// How long this turn may wait; also gives a sign of life.
    fn pause(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        let beat = self.notifier.alive();
        let fencing = self.fencing.as_ref().map(vsp::role::Fencing::pause);
        let wake = self.face.wake_at().map(|then| then.saturating_duration_since(Instant::now()));
        [beat, fencing, wake, timeout].into_iter().flatten().min()
    }
}
