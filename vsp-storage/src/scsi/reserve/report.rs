//! The answers to PERSISTENT RESERVE IN (SPC-4 6.15).

use super::super::sense::Sense;
use super::{Kind, Nexus, Registry};

/// Protocol identifier of a TransportID: SAS, whose names are as long as ours.
const SAS: u8 = 6;
/// Name of a nexus in the world of this guest: NAA 3, locally assigned.
const LOCAL: u64 = 3 << 60;

/// READ KEYS 0, READ RESERVATION 1, REPORT CAPABILITIES 2, READ FULL STATUS 3. `Err` is what the guest is told.
pub fn report(registry: &Registry, action: u8) -> Result<Vec<u8>, Sense> {
    match action {
        0 => {
            let keys = registry.registrants.iter().flat_map(|one| one.key.to_be_bytes());
            Ok(with_generation(registry, keys.collect()))
        }
        1 => Ok(with_generation(registry, reservation(registry))),
        2 => Ok(capabilities()),
        3 => Ok(with_generation(registry, full_status(registry))),
        _ => Err(Sense::in_cdb(1)),
    }
}

fn with_generation(registry: &Registry, body: Vec<u8>) -> Vec<u8> {
    let mut data = Vec::from(registry.generation.to_be_bytes());
    data.extend((body.len() as u32).to_be_bytes());
    data.extend(body);
    data
}

fn reservation(registry: &Registry) -> Vec<u8> {
    let Some(held) = registry.reservation else { return Vec::new() };
    let key = if held.kind.is_for_all() { 0 } else { registry.key_of(held.holder).unwrap_or(0) };
    let mut body = Vec::from(key.to_be_bytes());
    body.extend([0, 0, 0, 0, 0, held.kind as u8, 0, 0]);
    body
}

fn capabilities() -> Vec<u8> {
    // ATP_C: ALL_TG_PT is taken.
    const ATP: u8 = 0x04;
    // TMV: the mask of kinds is valid. ALLOW COMMANDS 1: TEST UNIT READY and MODE SENSE are let through where the
    // standard leaves it open.
    const TMV: u8 = 0x80 | 1 << 4;
    let bit = |kind: &Kind| if *kind as u8 == 8 { 1u16 } else { 1 << (8 + *kind as u8) };
    let [high, low] = Kind::ALL.iter().map(bit).fold(0, |all, one| all | one).to_be_bytes();
    vec![0, 8, ATP, TMV, high, low, 0, 0]
}

fn full_status(registry: &Registry) -> Vec<u8> {
    let mut body = Vec::new();
    for one in &registry.registrants {
        let held = registry.reservation.filter(|_| registry.holds(one.nexus));
        body.extend(one.key.to_be_bytes());
        body.extend([0, 0, 0, 0, u8::from(held.is_some()), held.map_or(0, |held| held.kind as u8)]);
        // Relative port 1, the only one.
        body.extend([0, 0, 0, 0, 0, 1]);
        let id = transport_id(one.nexus);
        body.extend((id.len() as u32).to_be_bytes());
        body.extend(id);
    }
    body
}

fn transport_id(nexus: Nexus) -> [u8; 24] {
    let mut id = [0; 24];
    id[0] = SAS;
    id[4..12].copy_from_slice(&(LOCAL | nexus.0 & (LOCAL - 1)).to_be_bytes());
    id
}
