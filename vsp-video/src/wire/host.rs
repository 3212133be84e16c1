//! What the guest is told.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Version, WireError, compose, fields, kind, split};

/// Most resolutions of an answer (`SYNTHVID_MAX_RESOLUTION_COUNT`).
pub const MAX_RESOLUTIONS: usize = 64;
/// Bytes of a screen's description (`SYNTHVID_EDID_BLOCK_SIZE`).
const EDID: usize = 128;
/// Screens of this device.
const SCREENS: u8 = 1;

/// What the guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// Whether the version is spoken here.
    VersionResponse {
        /// As it was asked for.
        version: Version,
        /// It is.
        accepted: bool,
    },
    /// The video memory is where the guest wants it. Drivers compare the context with theirs: another one means that it is not.
    VramLocationAck {
        /// As it came.
        context: u64,
    },
    /// The situation has been noted.
    SituationUpdateAck {
        /// As it came.
        context: u64,
    },
    /// What the guest is to tell from now on; and that it is to tell now how things are.
    FeatureChange(Features),
    /// Which resolutions there are.
    ResolutionResponse {
        /// At most [`MAX_RESOLUTIONS`].
        resolutions: Vec<Resolution>,
        /// Which of them to begin with.
        preferred: u8,
    },
}

/// What a guest is to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Where it draws.
    pub dirt: bool,
    /// Where the pointer is.
    pub pointer_position: bool,
    /// What it looks like.
    pub pointer_shape: bool,
    /// What the picture is.
    pub situation: bool,
}

impl Features {
    /// Everything.
    pub const ALL: Features =
        Features { dirt: true, pointer_position: true, pointer_shape: true, situation: true };
    /// Nothing.
    pub const NONE: Features =
        Features { dirt: false, pointer_position: false, pointer_shape: false, situation: false };
}

/// A resolution in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Pixels of a row.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct VersionFields {
    version: U32,
    accepted: u8,
    screens: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ResolutionsFields {
    /// Zeroes: neither driver looks at it, and this screen is of no make.
    edid: [u8; EDID],
    count: u8,
    preferred: u8,
    is_standard: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ResolutionFields {
    width: U16,
    height: U16,
}

impl HostMessage {
    /// As a packet's payload.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            HostMessage::VersionResponse { version, accepted } => {
                let fields = VersionFields {
                    version: version.wire().into(),
                    accepted: (*accepted).into(),
                    screens: SCREENS,
                };
                compose(kind::VERSION_RESPONSE, &fields, &[])
            }
            HostMessage::VramLocationAck { context } => {
                compose(kind::VRAM_LOCATION_ACK, &U64::new(*context), &[])
            }
            HostMessage::SituationUpdateAck { context } => {
                compose(kind::SITUATION_UPDATE_ACK, &U64::new(*context), &[])
            }
            HostMessage::FeatureChange(features) => {
                let Features { dirt, pointer_position, pointer_shape, situation } = *features;
                let bytes = [dirt, pointer_position, pointer_shape, situation].map(u8::from);
                compose(kind::FEATURE_CHANGE, &bytes, &[])
            }
            HostMessage::ResolutionResponse { resolutions, preferred } => {
                let count = resolutions.len().min(MAX_RESOLUTIONS);
                let list: Vec<_> = resolutions[..count]
                    .iter()
                    .map(|one| ResolutionFields { width: one.width.into(), height: one.height.into() })
                    .collect();
                let fields = ResolutionsFields {
                    edid: [0; EDID],
                    count: count as u8,
                    preferred: *preferred,
                    is_standard: 0,
                };
                compose(kind::RESOLUTION_RESPONSE, &fields, list.as_bytes())
            }
        }
    }

    /// What the payload of a packet says; for tests, which play the guest.
    pub fn parse(packet: &[u8]) -> Result<HostMessage, WireError> {
        let (kind, body) = split(packet)?;
        Ok(match kind {
            kind::VERSION_RESPONSE => {
                let (response, _) = fields::<VersionFields>(kind, body)?;
                let version = Version::from_wire(response.version.get());
                HostMessage::VersionResponse { version, accepted: response.accepted != 0 }
            }
            kind::VRAM_LOCATION_ACK => {
                let (context, _) = fields::<U64>(kind, body)?;
                HostMessage::VramLocationAck { context: context.get() }
            }
            kind::SITUATION_UPDATE_ACK => {
                let (context, _) = fields::<U64>(kind, body)?;
                HostMessage::SituationUpdateAck { context: context.get() }
            }
            kind::FEATURE_CHANGE => {
                let (bytes, _) = fields::<[u8; 4]>(kind, body)?;
                let [dirt, pointer_position, pointer_shape, situation] = bytes.map(|byte| byte != 0);
                HostMessage::FeatureChange(Features { dirt, pointer_position, pointer_shape, situation })
            }
            kind::RESOLUTION_RESPONSE => {
                let (head, rest) = fields::<ResolutionsFields>(kind, body)?;
                let count = usize::from(head.count);
                let need = size_of::<ResolutionsFields>() + count * size_of::<ResolutionFields>();
                let short = WireError::TooShort { kind, have: body.len(), need };
                let (list, _) =
                    <[ResolutionFields]>::ref_from_prefix_with_elems(rest, count).map_err(|_| short)?;
                let resolutions = list
                    .iter()
                    .map(|one| Resolution { width: one.width.get(), height: one.height.get() })
                    .collect();
                HostMessage::ResolutionResponse { resolutions, preferred: head.preferred }
            }
            other => return Err(WireError::UnknownKind(other)),
        })
    }
}
