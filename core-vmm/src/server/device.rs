//! A configured device: its slot, and the process that serves it.

use std::os::fd::{AsRawFd, RawFd};

use ipc::{config::DeviceSlot, message::Offer, socket::Peer};
use vmbus::{
    guid::Guid,
    message::{self, OfferFlags},
};

use super::ServerError;
use crate::bus::Relid;

/// One slot.
#[derive(Debug)]
pub(super) struct Device {
    pub name: String,
    pub instance: Guid,
    pub uid: Option<u32>,
    pub guest_ram: bool,
    /// Its channel, once a process has attached.
    pub relid: Option<Relid>,
    /// The process, while it is there.
    pub peer: Option<Peer>,
}

impl Device {
    pub fn new(slot: &DeviceSlot) -> Result<Self, ServerError> {
        let instance = slot.instance.parse().map_err(|_| ServerError::BadInstance {
            device: slot.name.clone(),
            instance: slot.instance.clone(),
        })?;
        Ok(Self {
            name: slot.name.clone(),
            instance,
            uid: slot.uid,
            guest_ram: slot.guest_ram,
            relid: None,
            peer: None,
        })
    }

    pub fn has_fd(&self, fd: RawFd) -> bool {
        self.peer.as_ref().is_some_and(|p| p.as_raw_fd() == fd)
    }
}

/// Puts what the device offers into the wire form. `user_defined` has been checked for length.
pub(super) fn fill_offer(wire: &mut message::Offer, offer: &Offer) {
    let mut flags = OfferFlags::empty();
    flags.set(OfferFlags::ENUMERATE_DEVICE_INTERFACE, offer.flags.enumerate_device_interface);
    flags.set(OfferFlags::NAMED_PIPE_MODE, offer.flags.named_pipe);
    flags.set(OfferFlags::TLNPI_PROVIDER, offer.flags.tlnpi_provider);
    wire.flags = flags.bits();
    wire.mmio_megabytes = offer.mmio_megabytes;
    for (to, from) in wire.user_defined.iter_mut().zip(&offer.user_defined) {
        *to = *from;
    }
}
