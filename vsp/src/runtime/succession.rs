//! How a process comes to serve, and how it makes room for the next one.

use std::time::{Duration, Instant};

use ipc::message::ToCore;
use mio::unix::SourceFd;

use super::{Adoption, Runtime, RuntimeError};
use crate::device::Device;
use crate::role::{Fencing, Patience, Role};

impl<D: Device> Runtime<D> {
    /// The device is ours, as soon as its resource is.
    pub(super) fn serve(&mut self, predecessor: bool) {
        if matches!(self.role, Role::Standby | Role::Quiet) {
            // Tried once at once, in this very turn; said only if that is in vain.
            self.role = Role::Fencing(Fencing::new(predecessor));
            self.adoption = Adoption::of(self.announces);
        }
    }

    /// Tries to make the resource ours.
    pub(super) fn fence(&mut self) -> Result<(), RuntimeError> {
        let Role::Fencing(fencing) = &mut self.role else { return Ok(()) };
        if self.device.fence(fencing.predecessor()).map_err(RuntimeError::Device)? {
            self.role = Role::Serving;
            self.adoption.begin(Instant::now());
            self.tell(&ToCore::Serving {})?;
            return self.catch_up();
        }
        let resource = self.device.resource();
        match fencing.in_vain() {
            Patience::Wait => {}
            Patience::Say(waited) => {
                let seconds = waited.as_secs();
                tracing::warn!(seconds, "waiting for {resource}: whoever had it is not done with it");
                self.setting.notifier.status(false, &format!("fencing: waits for {resource}"));
            }
            Patience::Over => {
                return Err(RuntimeError::Device(format!(
                    "{resource} is in use by another process, and has been for longer than one that ends takes"
                )));
            }
        }
        Ok(())
    }

    /// Gives everything up once nothing is in flight.
    pub(super) fn hand_over(&mut self) -> Result<(), RuntimeError> {
        if !self.channels.is_idle() || !self.device.is_idle() {
            return Ok(());
        }
        self.channels.forget_all(self.poll.registry());
        self.mapper.forget();
        self.device.release();
        self.role = Role::Quiet;
        self.setting.notifier.status(false, "quiet");
        tracing::debug!("handed over");
        self.tell(&ToCore::Quiesced {})
    }

    /// Does nothing for so long. The core is not heard any more.
    pub(crate) fn rest(&mut self, duration: Duration) {
        self.peer = None;
        for source in self.device.sources() {
            // The successor has them as well, and what comes there is for it.
            let _ = self.poll.registry().deregister(&mut SourceFd(&source));
        }
        let until = Instant::now() + duration;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Whatever happens meanwhile is nobody's business here, and a failure only ends it early.
            if left.is_zero() || self.poll.poll(&mut self.events, Some(left)).is_err() {
                return;
            }
        }
    }
}
