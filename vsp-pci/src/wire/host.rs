//! What a guest is told: completions, and messages of the host's own.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::guest::Message;
use super::{BARS, SLOT, Status, Version, kind};

/// What a function is, as its configuration space says (`pci_function_description`). The driver answers reads of these
/// registers from here and does not ask again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision, programming interface, sub-class and class, as they lie in configuration space from byte 8 on.
    pub class: [u8; 4],
    /// Vendor and device of the subsystem.
    pub subsystem: u32,
    /// Serial number of the slot: the name of the slot in the guest's sysfs.
    pub serial: u32,
}

/// What a guest is told without a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// The functions of the bus: this one, or none.
    BusRelations {
        /// Version that is spoken: 1.4 has a longer list.
        version: Version,
        /// The function.
        function: Option<Description>,
    },
    /// The function is to be removed; the guest says when it has been.
    Eject,
}

#[derive(IntoBytes, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FunctionFields {
    vendor: U16,
    device: U16,
    class: [u8; 4],
    subsystem: U32,
    slot: U32,
    serial: U32,
}

/// `pci_function_description2` has these in addition. No flags: the function belongs to no NUMA node.
const NUMA: [u8; 8] = [0; 8];

impl HostMessage {
    /// As the payload of an in-band packet.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            HostMessage::BusRelations { version, function } => {
                let is_long = *version >= Version::V1_4;
                let kind = if is_long { kind::BUS_RELATIONS_2 } else { kind::BUS_RELATIONS };
                let mut out = U32::new(kind).as_bytes().to_vec();
                out.extend(U32::new(function.iter().len() as u32).as_bytes());
                if let Some(function) = function {
                    out.extend(FunctionFields::of(function).as_bytes());
                    out.extend(if is_long { &NUMA[..] } else { &[] });
                }
                out
            }
            HostMessage::Eject => [U32::new(kind::EJECT), U32::new(SLOT)].as_bytes().to_vec(),
        }
    }
}

impl FunctionFields {
    fn of(description: &Description) -> FunctionFields {
        FunctionFields {
            vendor: description.vendor.into(),
            device: description.device.into(),
            class: description.class,
            subsystem: description.subsystem.into(),
            slot: SLOT.into(),
            serial: description.serial.into(),
        }
    }
}

/// A completion that says how a request ended and nothing else. With padding it is longer than `struct pci_response`, as the driver
/// wants it to be.
pub fn completion(status: Status) -> [u8; 4] {
    status.0.to_le_bytes()
}

/// The answer to a question for resources (`pci_q_res_req_response`): what one would read from each base address register after
/// writing all ones. 0: there is none.
pub fn requirements(probed: &[u32; BARS]) -> Vec<u8> {
    let mut out = completion(Status::SUCCESS).to_vec();
    probed.iter().for_each(|bar| out.extend(bar.to_le_bytes()));
    out
}

#[derive(IntoBytes, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct InterruptFields {
    status: U32,
    reserved: U32,
    reserved_too: U16,
    count: U16,
    data: U32,
    address: U64,
}

/// The answer to a wish for an interrupt (`pci_create_int_response`), which is always of the full length.
pub fn interrupt(result: Result<Message, Status>) -> Vec<u8> {
    let (status, message) = match result {
        Ok(message) => (Status::SUCCESS, message),
        Err(status) => (status, Message { count: 0, data: 0, address: 0 }),
    };
    let fields = InterruptFields {
        status: status.0.into(),
        reserved: 0.into(),
        reserved_too: 0.into(),
        count: message.count.into(),
        data: message.data.into(),
        address: message.address.into(),
    };
    fields.as_bytes().to_vec()
}

/// The answer to a wish for a power state (`pci_set_power_response`): it is what was asked for.
pub fn power(state: u32) -> Vec<u8> {
    [Status::SUCCESS.0, SLOT, state, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}
