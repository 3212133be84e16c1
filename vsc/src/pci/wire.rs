//! What the consumer of a vPCI bus says and hears, in bytes: `drivers/pci/controller/pci-hyperv.c` and
//! `include/asm-generic/hyperv-tlfs.h` of Linux 6.1. Nothing here is shared with the provider.

use crate::error::Error;

/// Versions of the protocol, newest first, as Linux proposes them.
pub const VERSIONS: [u32; 4] = [0x1_0004, 0x1_0003, 0x1_0002, 0x1_0001];
/// The status with which a version is refused so that another may be proposed.
pub const REVISION_MISMATCH: u32 = 0xc000_0059;

const BASE: u32 = 0x4249_0000;
/// A list of functions, before 1.4.
pub const RELATIONS: u32 = BASE;
/// The host wants a function back.
pub const EJECT: u32 = BASE + 0xb;
/// A list of functions, from 1.4 on.
pub const RELATIONS_2: u32 = BASE + 0x19;

fn message(kind: u32, words: &[u32]) -> Vec<u8> {
    std::iter::once(&(BASE + kind)).chain(words).flat_map(|word| word.to_le_bytes()).collect()
}

/// Proposes a version.
pub fn query_version(version: u32) -> Vec<u8> {
    message(0x13, &[version])
}

/// Asks for the functions.
pub fn query_relations() -> Vec<u8> {
    message(1, &[])
}

/// Asks what a function's base address registers need.
pub fn query_requirements(slot: u32) -> Vec<u8> {
    message(5, &[slot])
}

/// Uses the bus, with the configuration window there.
pub fn d0_entry(window: u64) -> Vec<u8> {
    message(7, &[0, window as u32, (window >> 32) as u32])
}

/// Uses it no more.
pub fn d0_exit() -> Vec<u8> {
    message(8, &[])
}

/// Has chosen resources, which the message does not name.
pub fn resources_assigned(version: u32, slot: u32) -> Vec<u8> {
    let old = version < 0x1_0002;
    let mut message = message(if old { 0x10 } else { 0x16 }, &[slot]);
    message.resize(8 + 120 + if old { 4 + 16 } else { 4 + 70 }, 0);
    message
}

/// Gives them up.
pub fn resources_released(slot: u32) -> Vec<u8> {
    message(0x11, &[slot])
}

/// Wants an interrupt.
pub fn create_interrupt(version: u32, slot: u32, vector: u8, count: u16, vp: u16) -> Vec<u8> {
    let mut out = match version {
        ..0x1_0002 => {
            let mut out = message(0x14, &[slot]);
            out.extend([vector, 0]);
            out.extend(count.to_le_bytes());
            out.extend([0; 4]);
            out.extend((1u64 << vp).to_le_bytes());
            return out;
        }
        0x1_0002..0x1_0004 => {
            let mut out = message(0x17, &[slot]);
            out.extend([vector, 0]);
            out
        }
        _ => {
            let mut out = message(0x1b, &[slot, vector.into()]);
            out.extend([0, 0]);
            out
        }
    };
    out.extend(count.to_le_bytes());
    out.extend(1u16.to_le_bytes());
    out.extend(vp.to_le_bytes());
    out.extend([0; 2 * 31]);
    out
}

/// Gives one back.
pub fn delete_interrupt(slot: u32, message_of: &Message) -> Vec<u8> {
    let mut out = message(0x15, &[slot]);
    out.extend([0, 0]);
    out.extend(message_of.count.to_le_bytes());
    out.extend(message_of.data.to_le_bytes());
    out.extend(message_of.address.to_le_bytes());
    out
}

/// Has removed a function, as it was asked to.
pub fn ejection_complete(slot: u32) -> Vec<u8> {
    message(0xf, &[slot, 0])
}

/// What a function writes for an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// How many values in a row.
    pub count: u16,
    /// The first one.
    pub data: u32,
    /// Where it is written.
    pub address: u64,
}

/// A function of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Vendor and device.
    pub id: (u16, u16),
    /// Revision, programming interface, sub-class, class.
    pub class: [u8; 4],
    /// Vendor and device of the subsystem.
    pub subsystem: u32,
    /// Device and function.
    pub slot: u32,
    /// Serial number.
    pub serial: u32,
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Error> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    let word = bytes.map(|bytes| u32::from_le_bytes(*bytes));
    word.ok_or_else(|| Error::Protocol(format!("a message ends before byte {at}")))
}

/// The status at the beginning of a completion.
pub fn status(payload: &[u8]) -> Result<u32, Error> {
    // The driver drops what is no longer than the descriptor and a status: rings pad to eight bytes.
    if payload.len() <= 4 {
        return Err(Error::Protocol("a completion that the driver does not see".into()));
    }
    word(payload, 0)
}

/// Which kind of message this is.
pub fn kind(payload: &[u8]) -> Result<u32, Error> {
    word(payload, 0)
}

/// The functions of a list.
pub fn functions(payload: &[u8]) -> Result<Vec<Function>, Error> {
    let each = if kind(payload)? == RELATIONS_2 { 28 } else { 20 };
    let count = word(payload, 4)? as usize;
    (0..count)
        .map(|index| {
            let at = 8 + index * each;
            // All of it has to be there, as the driver checks.
            word(payload, at + each - 4)?;
            let id = word(payload, at)?;
            Ok(Function {
                id: (id as u16, (id >> 16) as u16),
                class: word(payload, at + 4)?.to_le_bytes(),
                subsystem: word(payload, at + 8)?,
                slot: word(payload, at + 12)?,
                serial: word(payload, at + 16)?,
            })
        })
        .collect()
}

/// What base address registers need: what one would read after writing all ones.
pub fn requirements(payload: &[u8]) -> Result<[u32; 6], Error> {
    let mut probed = [0; 6];
    for (index, bar) in probed.iter_mut().enumerate() {
        *bar = word(payload, 4 + 4 * index)?;
    }
    Ok(probed)
}

/// The message of an interrupt, behind its status.
pub fn interrupt(payload: &[u8]) -> Result<Message, Error> {
    let counts = word(payload, 8)?;
    let address = u64::from(word(payload, 16)?) | u64::from(word(payload, 20)?) << 32;
    Ok(Message { count: (counts >> 16) as u16, data: word(payload, 12)?, address })
}

/// `HVCALL_RETARGET_INTERRUPT`
pub const RETARGET: u64 = 0x7e;

/// The control word and the input of the hypercall that moves an interrupt; the set of processors is a mask before 1.2, and a sparse
/// set with one bank from then on.
pub fn retarget(version: u32, device: u64, message: &Message, vector: u8, vps: u64) -> (u64, Vec<u8>) {
    let mut input = Vec::new();
    // The partition is the caller's own; the source is a message.
    input.extend(u64::MAX.to_le_bytes());
    input.extend(device.to_le_bytes());
    input.extend(1u64.to_le_bytes());
    input.extend((message.address as u32).to_le_bytes());
    input.extend(message.data.to_le_bytes());
    input.extend([0; 8]);
    input.extend(u32::from(vector).to_le_bytes());
    if version < 0x1_0002 {
        input.extend(0u32.to_le_bytes());
        input.extend(vps.to_le_bytes());
        return (RETARGET, input);
    }
    input.extend(2u32.to_le_bytes());
    for word in [0, 1, vps] {
        input.extend(word.to_le_bytes());
    }
    // Words of the input that vary in number: the mask of banks, and one bank.
    (RETARGET | 2 << 17, input)
}

/// The number by which hypercalls name a bus's function: of the instance's bytes, as the driver puts them together (in an `int`, so that
/// the highest bit is repeated).
pub fn device_id(instance: &[u8; 16], slot: u32) -> u64 {
    let b = |index: usize| u32::from(instance[index]);
    let id = b(5) << 24 | b(4) << 16 | b(7) << 8 | (b(6) & 0xf8) | (slot >> 5 & 7);
    i64::from(id as i32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_drivers_structures() {
        assert_eq!(create_interrupt(0x1_0001, 0, 1, 1, 0).len(), 24);
        assert_eq!(create_interrupt(0x1_0002, 0, 1, 1, 0).len(), 8 + 6 + 64);
        assert_eq!(create_interrupt(0x1_0004, 0, 1, 1, 0).len(), 8 + 10 + 64);
        assert_eq!(resources_assigned(0x1_0001, 0).len(), 148);
        assert_eq!(resources_assigned(0x1_0002, 0).len(), 202);
        let message = Message { count: 1, data: 5, address: 0xfee0_0000 };
        assert_eq!(delete_interrupt(0, &message).len(), 24);
        assert_eq!(retarget(0x1_0001, 0, &message, 1, 1).1.len(), 56);
        assert_eq!(retarget(0x1_0004, 0, &message, 1, 1).1.len(), 72);
    }

    #[test]
    fn a_bus_has_its_number_from_its_instance() {
        let mut instance = [0; 16];
        instance[4..8].copy_from_slice(&[0x12, 0x34, 0x57, 0x89]);
        assert_eq!(device_id(&instance, 0), 0x3412_8950);
        instance[5] = 0xf4;
        assert_eq!(device_id(&instance, 0x20), 0xffff_ffff_f412_8951);
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let list = [RELATIONS_2, 1, 0, 0, 0, 0, 0, 0, 0];
        let bytes: Vec<u8> = list.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        assert_eq!(functions(&bytes).unwrap().len(), 1);
        assert!(functions(&bytes[..32]).is_err() && status(&bytes[..4]).is_err());
    }
}
