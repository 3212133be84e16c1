//! Messages from the host to the guest.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Encoded, MessageError, USER_DATA_SIZE, body, kind, split};
use crate::guid::Guid;

/// A message from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "an offer fills a message; nothing is gained by boxing it")]
pub enum HostMessage {
    /// Offers a channel.
    Offer(Offer),
    /// Withdraws the offer with this relid.
    RescindOffer(u32),
    /// The answer to request-offers is complete.
    AllOffersDelivered,
    /// Answers open-channel.
    OpenResult(OpenResult),
    /// Answers the last message of a GPADL.
    GpadlCreated(GpadlCreated),
    /// Answers a teardown: the host no longer touches the pages of this GPADL.
    GpadlTorndown(u32),
    /// Answers initiate-contact.
    VersionResponse(VersionResponse),
    /// Answers unload.
    UnloadResponse,
    /// Answers modify-channel, since 5.3.
    ModifyChannelResponse {
        /// The channel.
        relid: u32,
        /// 0: the old virtual processor is interrupted no more.
        status: u32,
    },
}

bitflags! {
    /// Flags of an offer (`chn_flags`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct OfferFlags: u16 {
        /// The interface shows in the guest's device tree.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// The device understands transfer-page packets.
        const TRANSFER_PAGES = 0x0002;
        /// The device understands GPADL packets.
        const GPADLS = 0x0004;
        /// The channel is a pipe: the first 4 bytes of the user data are its mode.
        const NAMED_PIPE_MODE = 0x0010;
        /// Both ends are in this guest.
        const LOOPBACK = 0x0100;
        /// Offered by the parent partition.
        const PARENT = 0x0200;
        /// Signals are to go by the monitor page.
        const MONITORED_NOTIFICATION = 0x0400;
        /// Offer of a Hyper-V socket.
        const TLNPI_PROVIDER = 0x2000;
        const _ = !0;
    }
}

/// Body of an offer: `vmbus_channel_offer` and the fields behind it.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Offer {
    /// What kind of device it is ([`crate::guid::class`]).
    pub class: Guid,
    /// Which one it is.
    pub instance: Guid,
    /// 0.
    pub reserved: [u32; 4],
    /// Bits of [`OfferFlags`].
    pub flags: u16,
    /// MMIO space that the device wants, in MiB.
    pub mmio_megabytes: u16,
    /// For the driver.
    pub user_defined: [u8; USER_DATA_SIZE],
    /// 0 for a device's first channel.
    pub sub_channel_index: u16,
    /// 0.
    pub reserved2: u16,
    /// The channel's number while the connection lasts; also its event flag.
    pub relid: u32,
    /// Bit in the monitor pages.
    pub monitor_id: u8,
    /// Bit 0: `monitor_id` is meant.
    pub monitor_allocated: u8,
    /// Bit 0: the guest signals `connection_id` alone and no shared bitmap.
    pub is_dedicated_interrupt: u16,
    /// The connection to signal, an argument of `HvSignalEvent`.
    pub connection_id: u32,
}

impl Offer {
    /// An offer of a device's first channel with a dedicated interrupt and nothing else set.
    pub fn new(class: Guid, instance: Guid, relid: u32, connection_id: u32) -> Self {
        Self {
            class,
            instance,
            reserved: [0; 4],
            flags: 0,
            mmio_megabytes: 0,
            user_defined: [0; USER_DATA_SIZE],
            sub_channel_index: 0,
            reserved2: 0,
            relid,
            monitor_id: 0,
            monitor_allocated: 0,
            is_dedicated_interrupt: 1,
            connection_id,
        }
    }

    /// The flags, unknown ones included.
    pub fn offer_flags(&self) -> OfferFlags {
        OfferFlags::from_bits_retain(self.flags)
    }
}

impl core::fmt::Debug for Offer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Offer")
            .field("class", &self.class)
            .field("instance", &self.instance)
            .field("flags", &self.offer_flags())
            .field("mmio_megabytes", &self.mmio_megabytes)
            .field("sub_channel_index", &self.sub_channel_index)
            .field("relid", &self.relid)
            .field("connection_id", &self.connection_id)
            .finish_non_exhaustive()
    }
}

/// Body of open-result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenResult {
    /// The channel.
    pub relid: u32,
    /// The guest's name for the attempt.
    pub open_id: u32,
    /// 0 if the channel is open.
    pub status: u32,
}

/// Body of GPADL-created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GpadlCreated {
    /// The channel.
    pub relid: u32,
    /// The GPADL.
    pub gpadl: u32,
    /// 0 if the host shares the pages now.
    pub status: u32,
}

/// Body of version-response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionResponse {
    /// 1 if the proposed version is spoken from now on.
    pub supported: u8,
    /// 0: the connection is there.
    pub connection_state: u8,
    /// 0.
    pub padding: u16,
    /// Since 5.0: where the guest posts its messages from now on.
    pub connection_id: u32,
}

impl VersionResponse {
    /// Yes; messages go to `connection_id` from now on (which guests heed since 5.0).
    pub const fn accepted(connection_id: u32) -> Self {
        Self { supported: 1, connection_state: 0, padding: 0, connection_id }
    }

    /// No; the guest will propose an older version.
    pub const fn refused() -> Self {
        Self { supported: 0, connection_state: 0, padding: 0, connection_id: 0 }
    }
}

impl HostMessage {
    /// Reads a message; `bytes` are the payload of a SynIC message, copied into private memory.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let (kind, rest) = split(bytes)?;
        Ok(match kind {
            kind::OFFER => Self::Offer(body(kind, rest)?.0),
            kind::RESCIND_OFFER => Self::RescindOffer(body(kind, rest)?.0),
            kind::ALL_OFFERS_DELIVERED => Self::AllOffersDelivered,
            kind::OPEN_RESULT => Self::OpenResult(body(kind, rest)?.0),
            kind::GPADL_CREATED => Self::GpadlCreated(body(kind, rest)?.0),
            kind::GPADL_TORNDOWN => Self::GpadlTorndown(body(kind, rest)?.0),
            kind::VERSION_RESPONSE => Self::VersionResponse(body(kind, rest)?.0),
            kind::UNLOAD_RESPONSE => Self::UnloadResponse,
            kind::MODIFY_CHANNEL_RESPONSE => {
                let [relid, status] = body(kind, rest)?.0;
                Self::ModifyChannelResponse { relid, status }
            }
            unknown => return Err(MessageError::UnknownKind(unknown)),
        })
    }

    /// The type that stands in the header.
    pub fn kind(&self) -> u32 {
        match self {
            Self::Offer(_) => kind::OFFER,
            Self::RescindOffer(_) => kind::RESCIND_OFFER,
            Self::AllOffersDelivered => kind::ALL_OFFERS_DELIVERED,
            Self::OpenResult(_) => kind::OPEN_RESULT,
            Self::GpadlCreated(_) => kind::GPADL_CREATED,
            Self::GpadlTorndown(_) => kind::GPADL_TORNDOWN,
            Self::VersionResponse(_) => kind::VERSION_RESPONSE,
            Self::UnloadResponse => kind::UNLOAD_RESPONSE,
            Self::ModifyChannelResponse { .. } => kind::MODIFY_CHANNEL_RESPONSE,
        }
    }

    /// The message's bytes.
    pub fn encode(&self) -> Encoded {
        let start = Encoded::new(self.kind());
        match self {
            Self::Offer(offer) => start.and_struct(offer),
            Self::RescindOffer(relid) => start.and_struct(relid),
            Self::AllOffersDelivered | Self::UnloadResponse => start,
            Self::OpenResult(result) => start.and_struct(result),
            Self::GpadlCreated(created) => start.and_struct(created),
            Self::GpadlTorndown(gpadl) => start.and_struct(gpadl),
            Self::VersionResponse(response) => start.and_struct(response),
            Self::ModifyChannelResponse { relid, status } => start.and_struct(&[*relid, *status]),
        }
    }
}
