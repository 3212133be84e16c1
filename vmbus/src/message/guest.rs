//! Messages from the guest to the host.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Encoded, MAX_SIZE, MessageError, USER_DATA_SIZE, body, kind, split};
use crate::guid::Guid;
use crate::protocol::Version;

/// A message from the guest. Every field is the guest's word and unchecked but for the message's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestMessage<'a> {
    /// Proposes a protocol version and says where to reach the guest.
    InitiateContact(InitiateContact),
    /// Asks for all offers.
    RequestOffers,
    /// Opens a channel.
    OpenChannel(OpenChannel),
    /// Closes the channel with this relid. Not answered; the ring's GPADL is torn down next.
    CloseChannel(u32),
    /// Starts a GPADL.
    GpadlHeader(GpadlHeader<'a>),
    /// Continues a GPADL.
    GpadlBody(GpadlBody<'a>),
    /// Gives up a GPADL.
    GpadlTeardown {
        /// The channel that the guest thinks it belongs to.
        relid: u32,
        /// The GPADL.
        gpadl: u32,
    },
    /// The guest has forgotten a rescinded channel; its relid may be used again.
    RelidReleased(u32),
    /// Moves a channel's interrupt to another virtual processor.
    ModifyChannel(ModifyChannel),
    /// Ends the connection.
    Unload,
    /// Connects a Hyper-V socket. We have none, so nobody answers.
    TlConnect(TlConnect),
}

/// Body of initiate-contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitiateContact {
    /// Wire value of the proposed [`Version`].
    pub version: u32,
    /// Index of the virtual processor that is to receive the host's messages.
    pub target_vp: u32,
    /// Before 5.0: address of the interrupt page. Since then: SINT, VTL and flags, see
    /// [`Self::message_sint`].
    pub interrupt_page_or_sint: u64,
    /// Guest-physical address of the monitor page from host to guest; 0 if none.
    pub host_to_guest_monitor_page: u64,
    /// Guest-physical address of the monitor page from guest to host; 0 if none.
    pub guest_to_host_monitor_page: u64,
}

impl InitiateContact {
    /// The proposal of `version` by a guest that wants messages on `target_vp`.
    pub fn new(version: Version, target_vp: u32) -> Self {
        let interrupt_page_or_sint =
            if version.names_message_sint() { u64::from(crate::synic::VMBUS_SINT) } else { 0 };
        Self { version: version.raw(), target_vp, interrupt_page_or_sint, ..Self::default() }
    }

    /// Since 5.0: the source on which the guest expects messages.
    pub fn message_sint(&self) -> u8 {
        self.interrupt_page_or_sint as u8
    }

    /// Since 5.0: the virtual trust level on which the guest expects messages.
    pub fn message_vtl(&self) -> u8 {
        (self.interrupt_page_or_sint >> 8) as u8
    }
}

/// Body of open-channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenChannel {
    /// The channel.
    pub relid: u32,
    /// The guest's name for this attempt; comes back in the result.
    pub open_id: u32,
    /// The GPADL of both rings: to the host first, then to the guest.
    pub ring_gpadl: u32,
    /// Index of the virtual processor to interrupt.
    pub target_vp: u32,
    /// Where in the GPADL the ring to the guest begins, in pages.
    pub downstream_page_offset: u32,
    /// For the device.
    pub user_data: [u8; USER_DATA_SIZE],
}

/// Body of a GPADL header message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpadlHeader<'a> {
    /// The channel it is for.
    pub relid: u32,
    /// The guest's name for the GPADL.
    pub gpadl: u32,
    /// Bytes of all ranges, in this message and those that follow.
    pub range_buffer_len: u16,
    /// Ranges in the GPADL.
    pub range_count: u16,
    /// As many bytes of the ranges as this message carries.
    pub data: &'a [u8],
}

/// Body of a GPADL body message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpadlBody<'a> {
    /// A number that some guests count and others leave 0; it means nothing.
    pub message_number: u32,
    /// The GPADL.
    pub gpadl: u32,
    /// More bytes of the ranges.
    pub data: &'a [u8],
}

/// Body of modify-channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModifyChannel {
    /// The channel.
    pub relid: u32,
    /// Index of the virtual processor to interrupt from now on.
    pub target_vp: u32,
}

/// Body of a Hyper-V socket's connect request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TlConnect {
    /// The guest's end.
    pub endpoint: Guid,
    /// The host's service.
    pub service: Guid,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct GpadlHeaderFixed {
    relid: u32,
    gpadl: u32,
    range_buffer_len: u16,
    range_count: u16,
}

/// Bytes of ranges that fit into one GPADL header message: those of the fixed part do not divide by 8, so
/// 4 bytes of the message stay unused.
pub const GPADL_HEADER_DATA_MAX: usize =
    (MAX_SIZE - super::HEADER_SIZE - size_of::<GpadlHeaderFixed>()) / 8 * 8;
/// Bytes of ranges that fit into one GPADL body message.
pub const GPADL_BODY_DATA_MAX: usize = MAX_SIZE - super::HEADER_SIZE - 8;

impl<'a> GuestMessage<'a> {
    /// Reads a message; `bytes` are the payload of a posted message, copied into private memory.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let (kind, rest) = split(bytes)?;
        Ok(match kind {
            kind::INITIATE_CONTACT => Self::InitiateContact(body(kind, rest)?.0),
            kind::REQUEST_OFFERS => Self::RequestOffers,
            kind::OPEN_CHANNEL => Self::OpenChannel(body(kind, rest)?.0),
            kind::CLOSE_CHANNEL => Self::CloseChannel(body(kind, rest)?.0),
            kind::GPADL_HEADER => {
                let (fixed, data): (GpadlHeaderFixed, _) = body(kind, rest)?;
                Self::GpadlHeader(GpadlHeader {
                    relid: fixed.relid,
                    gpadl: fixed.gpadl,
                    range_buffer_len: fixed.range_buffer_len,
                    range_count: fixed.range_count,
                    data,
                })
            }
            kind::GPADL_BODY => {
                let ([message_number, gpadl], data): ([u32; 2], _) = body(kind, rest)?;
                Self::GpadlBody(GpadlBody { message_number, gpadl, data })
            }
            kind::GPADL_TEARDOWN => {
                let [relid, gpadl] = body(kind, rest)?.0;
                Self::GpadlTeardown { relid, gpadl }
            }
            kind::RELID_RELEASED => Self::RelidReleased(body(kind, rest)?.0),
            kind::MODIFY_CHANNEL => Self::ModifyChannel(body(kind, rest)?.0),
            kind::UNLOAD => Self::Unload,
            kind::TL_CONNECT_REQUEST => Self::TlConnect(body(kind, rest)?.0),
            unknown => return Err(MessageError::UnknownKind(unknown)),
        })
    }

    /// The type that stands in the header.
    pub fn kind(&self) -> u32 {
        match self {
            Self::InitiateContact(_) => kind::INITIATE_CONTACT,
            Self::RequestOffers => kind::REQUEST_OFFERS,
            Self::OpenChannel(_) => kind::OPEN_CHANNEL,
            Self::CloseChannel(_) => kind::CLOSE_CHANNEL,
            Self::GpadlHeader(_) => kind::GPADL_HEADER,
            Self::GpadlBody(_) => kind::GPADL_BODY,
            Self::GpadlTeardown { .. } => kind::GPADL_TEARDOWN,
            Self::RelidReleased(_) => kind::RELID_RELEASED,
            Self::ModifyChannel(_) => kind::MODIFY_CHANNEL,
            Self::Unload => kind::UNLOAD,
            Self::TlConnect(_) => kind::TL_CONNECT_REQUEST,
        }
    }

    /// The message's bytes. GPADL data beyond what fits is cut off; [`crate::gpadl::messages`] splits it.
    pub fn encode(&self) -> Encoded {
        let start = Encoded::new(self.kind());
        match self {
            Self::InitiateContact(contact) => start.and_struct(contact),
            Self::RequestOffers | Self::Unload => start,
            Self::OpenChannel(open) => start.and_struct(open),
            Self::CloseChannel(relid) | Self::RelidReleased(relid) => start.and_struct(relid),
            Self::GpadlHeader(header) => {
                let fixed = GpadlHeaderFixed {
                    relid: header.relid,
                    gpadl: header.gpadl,
                    range_buffer_len: header.range_buffer_len,
                    range_count: header.range_count,
                };
                start.and_struct(&fixed).and(header.data)
            }
            Self::GpadlBody(part) => start.and_struct(&[part.message_number, part.gpadl]).and(part.data),
            Self::GpadlTeardown { relid, gpadl } => start.and_struct(&[*relid, *gpadl]),
            Self::ModifyChannel(modify) => start.and_struct(modify),
            Self::TlConnect(connect) => start.and_struct(connect),
        }
    }
}
