//! What a guest sets.

use super::number::{self as n};
use super::{Effect, Mac, Multicast, PacketFilter, State, offloads, parameter, rss};
use crate::headers::ETHERNET_LEN;
use crate::rndis::RndisStatus;

/// Sets an object. On an error nothing has changed.
pub fn set(state: &mut State, oid: u32, value: &[u8]) -> Result<Effect, RndisStatus> {
    match oid {
        n::GEN_CURRENT_PACKET_FILTER => {
            state.filter = PacketFilter::from_bits_retain(word(value, 0)?);
            Ok(Effect::Filter)
        }
        n::MULTICAST_LIST => {
            if !value.len().is_multiple_of(size_of::<Mac>()) {
                return Err(RndisStatus::INVALID_LENGTH);
            }
            state.multicast = Multicast::from_bytes(value).ok_or(RndisStatus::MULTICAST_FULL)?;
            Ok(Effect::Filter)
        }
        n::ADD_MULTICAST_ADDRESS => match address(value)? {
            group if state.multicast.contains(&group) => Err(RndisStatus::MULTICAST_EXISTS),
            group if state.multicast.add(&group) => Ok(Effect::Filter),
            _ => Err(RndisStatus::MULTICAST_FULL),
        },
        n::DELETE_MULTICAST_ADDRESS => match state.multicast.remove(&address(value)?) {
            true => Ok(Effect::Filter),
            false => Err(RndisStatus::MULTICAST_NOT_FOUND),
        },
        n::CURRENT_ADDRESS => set_mac(state, address(value)?),
        n::TCP_OFFLOAD_PARAMETERS => {
            state.enabled = offloads::set(state.offloads, state.enabled, value)?;
            Ok(Effect::Offloads)
        }
        n::OFFLOAD_ENCAPSULATION => encapsulation(value),
        n::GEN_RECEIVE_SCALE_PARAMETERS => {
            state.rss = rss::set(state.rss.as_ref(), state.queues, value)?;
            Ok(Effect::Rss)
        }
        n::GEN_RNDIS_CONFIG_PARAMETER => parameter::set(state, value),
        // Wishes and news that change nothing here.
        n::GEN_CURRENT_LOOKAHEAD
        | n::GEN_PROTOCOL_OPTIONS
        | n::GEN_NETWORK_LAYER_ADDRESSES
        | n::GEN_TRANSPORT_HEADER_OFFSET
        | n::GEN_LINK_PARAMETERS
        | n::GEN_MACHINE_NAME
        | n::PNP_SET_POWER => Ok(Effect::None),
        _ => Err(RndisStatus::NOT_SUPPORTED),
    }
}

/// The guest wants another address.
pub(super) fn set_mac(state: &mut State, mac: Mac) -> Result<Effect, RndisStatus> {
    if mac[0] & 1 != 0 || mac == Mac::default() {
        return Err(RndisStatus::INVALID_DATA);
    }
    if state.mac_locked && mac != state.permanent_mac {
        return Err(RndisStatus::NOT_ACCEPTED);
    }
    state.mac = mac;
    Ok(Effect::Mac)
}

/// `NDIS_OFFLOAD_ENCAPSULATION`: only Ethernet can be switched on; nothing else was offered.
fn encapsulation(value: &[u8]) -> Result<Effect, RndisStatus> {
    for ip in [4, 16] {
        let [on, kind, header] = [word(value, ip)?, word(value, ip + 4)?, word(value, ip + 8)?];
        if on == 1 && (kind != 2 || header != ETHERNET_LEN as u32) {
            return Err(RndisStatus::NOT_SUPPORTED);
        }
    }
    Ok(Effect::None)
}

/// The value as an address.
fn address(value: &[u8]) -> Result<Mac, RndisStatus> {
    value.first_chunk().copied().ok_or(RndisStatus::INVALID_LENGTH)
}

/// A word of the value.
fn word(value: &[u8], at: usize) -> Result<u32, RndisStatus> {
    let word = value.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u32::from_le_bytes(*word)).ok_or(RndisStatus::INVALID_LENGTH)
}
