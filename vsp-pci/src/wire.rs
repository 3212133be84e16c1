//! The messages of the vPCI protocol, which `pci-hyperv` speaks with its host, as values.
//!
//! Nothing here keeps state or does I/O, and nothing of a message is believed but its form. All facts are those of
//! `drivers/pci/controller/pci-hyperv.c` in Linux 6.1; 6.12 differs in none of them. All numbers are little-endian.
//!
//! * [`guest`]: what a guest says.
//! * [`host`]: what it is told.

pub mod guest;
pub mod host;
#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

pub use guest::GuestMessage;
pub use host::{Description, HostMessage};

/// The only function of the bus: device 0, function 0 (`union win_slot_encoding`: 5 bits device, 3 bits function).
pub const SLOT: u32 = 0;

/// Base address registers of a function (`PCI_STD_NUM_BARS`).
pub const BARS: usize = 6;

/// Bytes of the configuration window: a page that selects the function, and a page that is its configuration space
/// (`PCI_CONFIG_MMIO_LENGTH`).
pub const CONFIG_WINDOW: u64 = 0x2000;
/// Where in the window the configuration space begins (`CFG_PAGE_OFFSET`).
pub const CONFIG_PAGE: u64 = 0x1000;

/// Most messages of one multi-message interrupt (PCI 3.0, "Multiple Message Enable").
pub const MAX_MESSAGES: u16 = 32;

/// Kinds of messages (`enum pci_message_type`).
pub(crate) mod kind {
    const BASE: u32 = 0x4249_0000;
    pub const BUS_RELATIONS: u32 = BASE;
    pub const QUERY_BUS_RELATIONS: u32 = BASE + 1;
    pub const POWER_STATE_CHANGE: u32 = BASE + 4;
    pub const QUERY_RESOURCE_REQUIREMENTS: u32 = BASE + 5;
    pub const D0_ENTRY: u32 = BASE + 7;
    pub const D0_EXIT: u32 = BASE + 8;
    pub const READ_BLOCK: u32 = BASE + 9;
    pub const WRITE_BLOCK: u32 = BASE + 0xa;
    pub const EJECT: u32 = BASE + 0xb;
    pub const EJECTION_COMPLETE: u32 = BASE + 0xf;
    pub const RESOURCES_ASSIGNED: u32 = BASE + 0x10;
    pub const RESOURCES_RELEASED: u32 = BASE + 0x11;
    pub const QUERY_PROTOCOL_VERSION: u32 = BASE + 0x13;
    pub const CREATE_INTERRUPT: u32 = BASE + 0x14;
    pub const DELETE_INTERRUPT: u32 = BASE + 0x15;
    pub const RESOURCES_ASSIGNED_2: u32 = BASE + 0x16;
    pub const CREATE_INTERRUPT_2: u32 = BASE + 0x17;
    pub const BUS_RELATIONS_2: u32 = BASE + 0x19;
    pub const CREATE_INTERRUPT_3: u32 = BASE + 0x1b;
}

/// How a request ended: an NTSTATUS, negative if it failed. The driver looks at the sign, and at one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// It is done.
    pub const SUCCESS: Status = Status(0);
    /// The version is not spoken here (`STATUS_REVISION_MISMATCH`): the driver asks for an older one, while any other failure ends it.
    pub const REVISION_MISMATCH: Status = Status(0xc000_0059);
    /// What was said makes no sense (`STATUS_INVALID_PARAMETER`).
    pub const INVALID_PARAMETER: Status = Status(0xc000_000d);
    /// Not now (`STATUS_INVALID_DEVICE_STATE`).
    pub const INVALID_STATE: Status = Status(0xc000_0184);
    /// There is no such function (`STATUS_NO_SUCH_DEVICE`).
    pub const NO_SUCH_DEVICE: Status = Status(0xc000_000e);
    /// There are no more of them (`STATUS_INSUFFICIENT_RESOURCES`).
    pub const INSUFFICIENT_RESOURCES: Status = Status(0xc000_009a);
    /// It cannot be done here (`STATUS_NOT_SUPPORTED`).
    pub const NOT_SUPPORTED: Status = Status(0xc000_00bb);
}

/// A version of the protocol: the major number in the high half, the minor one in the low half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// 1.1: interrupts for up to 64 processors, given as a mask.
    pub const V1_1: Version = Version(0x0001_0001);
    /// 1.2: interrupts for a list of processors.
    pub const V1_2: Version = Version(0x0001_0002);
    /// 1.3: nothing else.
    pub const V1_3: Version = Version(0x0001_0003);
    /// 1.4: the list of functions names their NUMA nodes, vectors have 32 bits.
    pub const V1_4: Version = Version(0x0001_0004);

    /// As it is on the wire.
    pub fn from_wire(version: u32) -> Version {
        Version(version)
    }

    /// As it is on the wire.
    pub fn wire(self) -> u32 {
        self.0
    }

    /// Whether this device speaks it.
    pub fn is_spoken(self) -> bool {
        matches!(self, Version::V1_1 | Version::V1_2 | Version::V1_3 | Version::V1_4)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// A message that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// It ends too early.
    #[error("a message of kind {kind:#x} has {bytes} bytes only")]
    TooShort {
        /// What it says that it is, or 0.
        kind: u32,
        /// Bytes that there are.
        bytes: usize,
    },
    /// Nobody knows this kind.
    #[error("there is no message of kind {0:#x}")]
    UnknownKind(u32),
    /// An interrupt is for no processor.
    #[error("an interrupt for no processor")]
    NoProcessor,
}
