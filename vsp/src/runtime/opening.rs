//! How a channel is opened, be it new or a predecessor's.

use ipc::message::{STATUS_LEDGER, STATUS_OK, STATUS_REFUSED};
use mio::Token;

use super::{FIRST_CHANNEL, Runtime};
use crate::channel::Recovery;
use crate::channels::{ChannelId, NewChannel, OpenError};
use crate::device::{Device, OpenRequest, Refused};
use crate::role::Role;
use crate::slot::BROKEN;

/// Why a channel is not opened.
enum OpenFailure {
    Error(OpenError),
    Refused(Refused),
}

impl From<OpenError> for OpenFailure {
    fn from(error: OpenError) -> OpenFailure {
        OpenFailure::Error(error)
    }
}

impl<D: Device> Runtime<D> {
    /// Opens a channel; the status for the core, and why not.
    pub(super) fn open(&mut self, new: NewChannel, request: &OpenRequest) -> (u32, Option<String>) {
        let core_id = new.core_id;
        match self.try_open(new, request) {
            Ok(()) => (STATUS_OK, None),
            Err(OpenFailure::Refused(refused)) => (refused.status, None),
            Err(OpenFailure::Error(error)) => {
                if let Some(times) = BROKEN.another() {
                    tracing::warn!(channel = core_id, times, "a channel cannot be opened: {error}");
                }
                let status = match error {
                    // For the guest it is open until it closes it; it is not served.
                    OpenError::Broken(_) => STATUS_OK,
                    OpenError::Ledger(_) | OpenError::State(_) => STATUS_LEDGER,
                    _ => STATUS_REFUSED,
                };
                (status, Some(error.to_string()))
            }
        }
    }

    fn try_open(&mut self, new: NewChannel, request: &OpenRequest) -> Result<(), OpenFailure> {
        if !matches!(self.role, Role::Serving) {
            return Err(OpenError::NotServing.into());
        }
        let core_id = new.core_id;
        let (id, recovery) = self.channels.open(new, self.device.depth(), self.device.loans())?;
        let opened = self.introduce(id, request, &recovery);
        if opened.is_err() {
            self.channels.remove(id, self.poll.registry());
            return opened;
        }
        if !recovery.fresh {
            self.early.taken_over(core_id, recovery);
        }
        Ok(())
    }

    /// Makes a channel known to the device and to the loop.
    fn introduce(
        &mut self,
        id: ChannelId,
        request: &OpenRequest,
        recovery: &Recovery,
    ) -> Result<(), OpenFailure> {
        self.device.open(id, request).map_err(OpenFailure::Refused)?;
        let token = Token(FIRST_CHANNEL + id.slot());
        recovery.lent.iter().for_each(|loan| self.device.lent(id, *loan));
        let restored = match &recovery.state {
            Some(state) => self.device.restore(id, state).map_err(OpenError::State),
            None => Ok(()),
        };
        let watched = restored.and_then(|()| Ok(self.channels.watch(id, self.poll.registry(), token)?));
        if watched.is_err() {
            self.device.closing(id);
        } else if !recovery.fresh {
            self.device.resumed(id, &mut self.channels);
        }
        Ok(watched?)
    }
}
