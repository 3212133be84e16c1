//! What comes on a queue.

use super::rndis::{self, RxInfo};
use super::sends::SendId;
use super::wire::word;
use crate::error::Error;

/// Something that came on a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "what is lent has to go back"]
pub enum Event {
    /// A send is completed.
    Sent(Sent),
    /// Frames have come. They are the guest's until [`super::NetQueue::give_back`].
    Delivery(Delivery),
    /// The link came up or went down.
    Link {
        /// Up.
        up: bool,
    },
    /// The device says something else about itself: an NDIS status.
    Indication(u32),
    /// Answer to a control message, whole.
    Control(Vec<u8>),
    /// Answer to an NVSP message.
    Nvsp(SendId, Vec<u8>),
    /// Which channel to send on, by hash.
    SendTable(Vec<u32>),
    /// A virtual function comes or goes.
    Vf {
        /// It comes.
        allocated: bool,
        /// Which one.
        serial: u32,
    },
}

impl Event {
    /// The event of a message that is not a packet.
    pub(super) fn of_control(message: Vec<u8>) -> Result<Self, Error> {
        let status = word(&message, 8).ok_or_else(|| Error::Protocol(format!("RNDIS: {message:02x?}")))?;
        match word(&message, 0) {
            Some(rndis::INDICATE) if message.len() >= 20 => Ok(match status {
                rndis::STATUS_MEDIA_CONNECT => Self::Link { up: true },
                rndis::STATUS_MEDIA_DISCONNECT => Self::Link { up: false },
                other => Self::Indication(other),
            }),
            Some(kind) if kind & rndis::COMPLETION != 0 => Ok(Self::Control(message)),
            _ => Err(Error::Protocol(format!("the device sends the RNDIS message {message:02x?}"))),
        }
    }
}

/// A completed send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Which.
    pub id: SendId,
    /// NVSP status: 1 is success.
    pub status: u32,
    /// It was a control message.
    pub control: bool,
}

/// Ranges of the receive buffer that came in one packet, a frame in each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "what is lent has to go back"]
pub struct Delivery {
    /// Its transaction id.
    pub id: u64,
    /// The frames, in order.
    pub frames: Vec<RxFrame>,
    /// Where each range begins in the buffer.
    pub ranges: Vec<u32>,
}

/// A frame in the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxFrame {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// What the device says about it.
    pub info: RxInfo,
}
