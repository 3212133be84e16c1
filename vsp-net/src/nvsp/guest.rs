//! What the guest says.

use super::{ChannelType, Encoded, MESSAGE_LEN, NO_SECTION, NvspError, Status, Words, kind};

bitflags::bitflags! {
    /// What the guest's driver can do (`struct nvsp_2_vsc_capability`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Capabilities: u64 {
        /// Virtual machine queues.
        const VMQ = 1;
        /// TCP offload engines.
        const CHIMNEY = 1 << 1;
        /// Virtual functions.
        const SRIOV = 1 << 2;
        /// VLAN tags as per-packet information.
        const IEEE8021Q = 1 << 3;
        /// Ids that follow a packet.
        const CORRELATION_ID = 1 << 4;
        /// Teaming: Linux says that it takes this to be told of another link speed.
        const TEAMING = 1 << 5;
        /// Virtual subnets.
        const VSUBNETID = 1 << 6;
        /// Coalesced segments.
        const RSC = 1 << 7;
        const _ = !0;
    }
}

/// Bytes in the send buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Which section.
    pub index: u32,
    /// How many bytes of it, from its start. Nobody has checked it against the section's size.
    pub size: u32,
}

/// The envelope of an RNDIS message.
///
/// A message may have bytes in the send buffer, in pages that its packet names, or first in the one and then in the other: Linux
/// copies a frame's header behind whole frames that a section holds already, and leaves the frame where it is (`cp_partial`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RndisPacket {
    /// Data or control.
    pub channel: ChannelType,
    /// What is in the send buffer.
    pub section: Option<Section>,
}

/// A message of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// Would one of these versions do?
    Init {
        /// Oldest.
        min: u32,
        /// Newest; Linux sends the same number twice.
        max: u32,
    },
    /// The guest's NDIS; it decides how long the objects in its questions are. Not completed.
    NdisVersion {
        /// 6, always.
        major: u32,
        /// 1, or 30.
        minor: u32,
    },
    /// Frames for the guest go here.
    SendReceiveBuffer {
        /// Its pages.
        gpadl: u32,
        /// What transfer-page packets are to call it.
        id: u16,
    },
    /// Frames for the guest go nowhere. Not completed by Linux's wish, but by others'.
    RevokeReceiveBuffer {
        /// Which buffer.
        id: u16,
    },
    /// Short messages of the guest come from here.
    SendSendBuffer {
        /// Its pages.
        gpadl: u32,
        /// A name; nothing repeats it.
        id: u16,
    },
    /// No message comes from there.
    RevokeSendBuffer {
        /// Which buffer.
        id: u16,
    },
    /// An RNDIS message.
    RndisPacket(RndisPacket),
    /// A transfer-page packet's answer: the payload of a completion.
    RndisPacketComplete {
        /// Whether the guest could do something with it.
        status: Status,
    },
    /// What the driver wants and can. Not completed.
    NdisConfig {
        /// Largest frame, its Ethernet header included.
        mtu: u32,
        /// What it can do.
        capabilities: Capabilities,
    },
    /// By which way traffic goes. Linux wants a completion without a payload.
    SwitchDataPath {
        /// 0: by this device. 1: by a virtual function.
        active: u32,
    },
    /// More channels, please.
    Subchannel {
        /// 1: allocate.
        operation: u32,
        /// How many.
        count: u32,
    },
    /// A message of another type.
    Unknown(u32),
}

/// [`GuestMessage::Subchannel`]'s operation that asks for channels.
pub const ALLOCATE: u32 = 1;

impl GuestMessage {
    /// Reads a packet's payload. What follows the fields that we know is padding.
    pub fn parse(payload: &[u8]) -> Result<GuestMessage, NvspError> {
        let words = Words::of(payload)?;
        Ok(match words.kind {
            kind::INIT => {
                let words = words.need(12)?;
                GuestMessage::Init { min: words.at(4), max: words.at(8) }
            }
            kind::SEND_NDIS_VERSION => {
                let words = words.need(12)?;
                GuestMessage::NdisVersion { major: words.at(4), minor: words.at(8) }
            }
            kind::SEND_RECEIVE_BUFFER => {
                let words = words.need(10)?;
                GuestMessage::SendReceiveBuffer { gpadl: words.at(4), id: half(payload, 8) }
            }
            kind::REVOKE_RECEIVE_BUFFER => {
                words.need(6)?;
                GuestMessage::RevokeReceiveBuffer { id: half(payload, 4) }
            }
            kind::SEND_SEND_BUFFER => {
                let words = words.need(10)?;
                GuestMessage::SendSendBuffer { gpadl: words.at(4), id: half(payload, 8) }
            }
            kind::REVOKE_SEND_BUFFER => {
                words.need(6)?;
                GuestMessage::RevokeSendBuffer { id: half(payload, 4) }
            }
            kind::SEND_RNDIS_PACKET => {
                let words = words.need(16)?;
                let (index, size) = (words.at(8), words.at(12));
                let section = (index != NO_SECTION).then_some(Section { index, size });
                GuestMessage::RndisPacket(RndisPacket {
                    channel: ChannelType::from_wire(words.at(4))?,
                    section,
                })
            }
            kind::SEND_RNDIS_PACKET_COMPLETE => {
                let words = words.need(8)?;
                GuestMessage::RndisPacketComplete { status: Status::from_wire(words.at(4)) }
            }
            kind::SEND_NDIS_CONFIG => {
                let words = words.need(20)?;
                let capabilities = u64::from(words.at(12)) | u64::from(words.at(16)) << 32;
                GuestMessage::NdisConfig {
                    mtu: words.at(4),
                    capabilities: Capabilities::from_bits_retain(capabilities),
                }
            }
            kind::SWITCH_DATA_PATH => {
                let words = words.need(8)?;
                GuestMessage::SwitchDataPath { active: words.at(4) }
            }
            kind::SUBCHANNEL => {
                let words = words.need(12)?;
                GuestMessage::Subchannel { operation: words.at(4), count: words.at(8) }
            }
            other => GuestMessage::Unknown(other),
        })
    }

    /// The message as Linux sends it: 40 bytes in any version, completions of frames aside.
    pub fn encode(&self) -> Encoded {
        let (kind, words): (u32, &[u32]) = match *self {
            GuestMessage::Init { min, max } => (kind::INIT, &[min, max]),
            GuestMessage::NdisVersion { major, minor } => (kind::SEND_NDIS_VERSION, &[major, minor]),
            GuestMessage::SendReceiveBuffer { gpadl, id } => (kind::SEND_RECEIVE_BUFFER, &[gpadl, id.into()]),
            GuestMessage::RevokeReceiveBuffer { id } => (kind::REVOKE_RECEIVE_BUFFER, &[id.into()]),
            GuestMessage::SendSendBuffer { gpadl, id } => (kind::SEND_SEND_BUFFER, &[gpadl, id.into()]),
            GuestMessage::RevokeSendBuffer { id } => (kind::REVOKE_SEND_BUFFER, &[id.into()]),
            GuestMessage::RndisPacket(RndisPacket { channel, section }) => {
                let Section { index, size } = section.unwrap_or(Section { index: NO_SECTION, size: 0 });
                (kind::SEND_RNDIS_PACKET, &[channel.wire(), index, size])
            }
            GuestMessage::RndisPacketComplete { status } => {
                return Encoded::new(kind::SEND_RNDIS_PACKET_COMPLETE, &[status.wire()], 8);
            }
            GuestMessage::NdisConfig { mtu, capabilities } => {
                let bits = capabilities.bits();
                (kind::SEND_NDIS_CONFIG, &[mtu, 0, bits as u32, (bits >> 32) as u32])
            }
            GuestMessage::SwitchDataPath { active } => (kind::SWITCH_DATA_PATH, &[active]),
            GuestMessage::Subchannel { operation, count } => (kind::SUBCHANNEL, &[operation, count]),
            GuestMessage::Unknown(kind) => (kind, &[]),
        };
        Encoded::new(kind, words, MESSAGE_LEN)
    }
}

/// The 16 bits at an offset; 0 past the end, which [`Words::need`] excludes.
fn half(payload: &[u8], offset: usize) -> u16 {
    let half = payload.get(offset..).and_then(|rest| rest.first_chunk::<2>());
    half.map_or(0, |half| u16::from_le_bytes(*half))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<GuestMessage> {
        let section = Some(Section { index: 3, size: 0x1234 });
        vec![
            GuestMessage::Init { min: 0x6_0001, max: 0x6_0001 },
            GuestMessage::NdisVersion { major: 6, minor: 30 },
            GuestMessage::SendReceiveBuffer { gpadl: 0xe1e10, id: 0xcafe },
            GuestMessage::RevokeReceiveBuffer { id: 0xcafe },
            GuestMessage::SendSendBuffer { gpadl: 0xe1e11, id: 0 },
            GuestMessage::RevokeSendBuffer { id: 7 },
            GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Data, section }),
            GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Control, section: None }),
            GuestMessage::RndisPacketComplete { status: Status::Success },
            GuestMessage::NdisConfig {
                mtu: 1514,
                capabilities: Capabilities::IEEE8021Q
                    | Capabilities::RSC
                    | Capabilities::from_bits_retain(1 << 63),
            },
            GuestMessage::SwitchDataPath { active: 1 },
            GuestMessage::Subchannel { operation: ALLOCATE, count: 3 },
            GuestMessage::Unknown(135),
        ]
    }

    #[test]
    fn what_is_encoded_is_read_again() {
        for message in all() {
            assert_eq!(GuestMessage::parse(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for message in all() {
            let need = match message {
                GuestMessage::Init { .. }
                | GuestMessage::NdisVersion { .. }
                | GuestMessage::Subchannel { .. } => 12,
                GuestMessage::SendReceiveBuffer { .. } | GuestMessage::SendSendBuffer { .. } => 10,
                GuestMessage::RevokeReceiveBuffer { .. } | GuestMessage::RevokeSendBuffer { .. } => 6,
                GuestMessage::RndisPacket(_) => 16,
                GuestMessage::RndisPacketComplete { .. } | GuestMessage::SwitchDataPath { .. } => 8,
                GuestMessage::NdisConfig { .. } => 20,
                GuestMessage::Unknown(_) => 4,
            };
            let bytes = message.encode();
            for len in 0..need {
                let error = GuestMessage::parse(&bytes[..len]).unwrap_err();
                assert!(matches!(error, NvspError::TooShort { have, .. } if have == len), "{message:?}");
            }
            assert_eq!(GuestMessage::parse(&bytes[..need]), Ok(message));
        }
    }

    #[test]
    fn a_message_of_linux_is_understood() {
        // A frame of 114 bytes in section 5, as `netvsc_send_pkt` builds it.
        let mut payload = [0; 40];
        payload[0] = 107;
        payload[8] = 5;
        payload[12] = 114;
        let section = Some(Section { index: 5, size: 114 });
        let expected = GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Data, section });
        assert_eq!(GuestMessage::parse(&payload), Ok(expected));
        // Linux's answer to frames has eight bytes.
        let answer = GuestMessage::RndisPacketComplete { status: Status::Success }.encode();
        assert_eq!(answer[..], [108, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn an_unknown_channel_type_is_refused() {
        let mut payload = [0; 40];
        (payload[0], payload[4]) = (107, 2);
        assert_eq!(GuestMessage::parse(&payload), Err(NvspError::ChannelType(2)));
    }
}
