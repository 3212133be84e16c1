//! What a guest asks.

use super::number::{self as n};
use super::{MAX_MULTICAST, Offloads, State, offloads, rss};
use crate::headers::ETHERNET_LEN;
use crate::rndis::{RndisStatus, frame};

/// Bits of [`n::GEN_MAC_OPTIONS`] (`NDIS_MAC_OPTION_*`): frames may be looked at in place, none comes back to its sender, tags are
/// per-packet information.
const MAC_OPTIONS: u32 = 0x1 | 0x4 | 0x8 | 0x40 | 0x200;
/// A vendor without a number of its own.
const NO_VENDOR: u32 = 0x00ff_ffff;
/// Bytes that Hyper-V says its buffers have.
const BUFFER_SPACE: u32 = 256 << 10;
/// Version of this NIC, 1.0.
const VENDOR_VERSION: u32 = 0x0001_0000;
/// Most characters of the NIC's name, its end included: what Linux has room for.
const MAX_NAME: usize = 256;

/// Puts the value of an object into `out`, in place of what was there. `wanted` is what the guest has sent with its question.
///
/// On an error `out` is empty: then the answer says so in its offset, which is all that Linux looks at.
pub fn query(state: &State, oid: u32, wanted: &[u8], out: &mut Vec<u8>) -> Result<(), RndisStatus> {
    out.clear();
    let frame_len = state.mtu + ETHERNET_LEN as u32;
    let word: u32 = match oid {
        n::GEN_HARDWARE_STATUS
        | n::GEN_MEDIA_SUPPORTED
        | n::GEN_MEDIA_IN_USE
        | n::GEN_PHYSICAL_MEDIUM
        | n::ETHERNET_MAC_OPTIONS => 0,
        n::GEN_MAXIMUM_LOOKAHEAD | n::GEN_CURRENT_LOOKAHEAD | n::GEN_MAXIMUM_FRAME_SIZE => state.mtu,
        n::GEN_MAXIMUM_TOTAL_SIZE | n::GEN_TRANSMIT_BLOCK_SIZE | n::GEN_RECEIVE_BLOCK_SIZE => frame_len,
        n::GEN_LINK_SPEED => state.speed_in_hundreds(),
        n::GEN_TRANSMIT_BUFFER_SPACE | n::GEN_RECEIVE_BUFFER_SPACE => BUFFER_SPACE,
        n::GEN_VENDOR_ID => NO_VENDOR,
        n::GEN_VENDOR_DRIVER_VERSION => VENDOR_VERSION,
        n::GEN_CURRENT_PACKET_FILTER => state.filter.bits(),
        n::GEN_MAC_OPTIONS => MAC_OPTIONS,
        n::GEN_MEDIA_CONNECT_STATUS => u32::from(!state.link_up),
        n::GEN_MAXIMUM_SEND_PACKETS => frame::TOLD_FRAMES,
        n::MAXIMUM_LIST_SIZE => MAX_MULTICAST as u32,
        other => return longer(state, other, wanted, out),
    };
    out.extend_from_slice(&word.to_le_bytes());
    Ok(())
}

/// Objects that are more than a word, and counters.
fn longer(state: &State, oid: u32, wanted: &[u8], out: &mut Vec<u8>) -> Result<(), RndisStatus> {
    match oid {
        n::GEN_SUPPORTED_LIST => {
            out.extend(supported(state).flat_map(u32::to_le_bytes));
        }
        n::GEN_VENDOR_DESCRIPTION => out.extend_from_slice(b"Bulkhead network adapter\0"),
        n::GEN_DRIVER_VERSION => out.extend_from_slice(&[state.ndis_minor as u8, 6]),
        n::GEN_FRIENDLY_NAME => name(&state.name, out)?,
        n::PERMANENT_ADDRESS => out.extend_from_slice(&state.permanent_mac),
        n::CURRENT_ADDRESS => out.extend_from_slice(&state.mac),
        n::MULTICAST_LIST => out.extend_from_slice(state.multicast.as_slice().as_flattened()),
        n::GEN_STATISTICS => state.statistics.info(out),
        n::GEN_MAX_LINK_SPEED => speeds(state, out),
        n::GEN_LINK_STATE => link_state(state, out),
        n::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
            offloads::object(state.offloads, state.ndis_minor, wanted, out);
        }
        n::TCP_OFFLOAD_CURRENT_CONFIG => offloads::object(state.enabled, state.ndis_minor, wanted, out),
        n::OFFLOAD_ENCAPSULATION => encapsulation(state.enabled, out),
        n::GEN_RECEIVE_SCALE_CAPABILITIES => rss::capabilities(state.queues, out),
        // The guest may sleep; nobody asks for its answer.
        n::PNP_QUERY_POWER => {}
        other => {
            let counter = state.statistics.counter(other).ok_or(RndisStatus::NOT_SUPPORTED)?;
            match other {
                // MS-RNDIS has these in 32 bits, which turn over.
                n::GEN_XMIT_OK..=n::GEN_RCV_NO_BUFFER
                | n::GEN_TRANSMIT_QUEUE_LENGTH
                | n::RCV_ERROR_ALIGNMENT
                | n::XMIT_ONE_COLLISION
                | n::XMIT_MORE_COLLISIONS => out.extend_from_slice(&(counter as u32).to_le_bytes()),
                _ => out.extend_from_slice(&counter.to_le_bytes()),
            }
        }
    }
    Ok(())
}

/// Objects that the guest's NDIS knows of.
fn supported(state: &State) -> impl Iterator<Item = u32> {
    let ndis6: &[u32] = if state.ndis_minor >= 1 { n::NDIS6 } else { &[] };
    let ndis630: &[u32] = if state.ndis_minor >= 30 { n::NDIS630 } else { &[] };
    n::COMMON.iter().chain(ndis6).chain(ndis630).copied()
}

/// A name in UTF-16, with a zero behind it.
fn name(name: &str, out: &mut Vec<u8>) -> Result<(), RndisStatus> {
    if name.is_empty() {
        return Err(RndisStatus::NOT_SUPPORTED);
    }
    let name = name.encode_utf16().take(MAX_NAME - 1).chain([0]);
    out.extend(name.flat_map(u16::to_le_bytes));
    Ok(())
}

/// Speeds there and back (`NDIS_LINK_SPEED`).
fn speeds(state: &State, out: &mut Vec<u8>) {
    for speed in [state.speed; 2] {
        out.extend_from_slice(&speed.to_le_bytes());
    }
}

/// `NDIS_LINK_STATE`: 1 is connected, 2 is not; both directions at once; no pauses are negotiated.
fn link_state(state: &State, out: &mut Vec<u8>) {
    let connected = if state.link_up { 1 } else { 2 };
    out.extend_from_slice(&[0x80, 1, 40, 0]);
    for word in [connected, 2, 0] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    speeds(state, out);
    out.extend_from_slice(&[0; 8]);
}

/// `NDIS_OFFLOAD_ENCAPSULATION`: for either IP, 1 and Ethernet, or 2.
fn encapsulation(enabled: Offloads, out: &mut Vec<u8>) {
    let on = if enabled.is_empty() { 2 } else { 1 };
    out.extend_from_slice(&[0xa8, 1, 28, 0]);
    for word in [on, 2, ETHERNET_LEN as u32].repeat(2) {
        out.extend_from_slice(&word.to_le_bytes());
    }
}
