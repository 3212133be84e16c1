//! What a guest says.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Version, WireError, kind};

/// Processors that the list of an interrupt has room for (`hv_msi_desc2.processor_array`).
const LISTED: usize = 32;

/// What a guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// It wants to speak this version.
    QueryVersion(Version),
    /// It wants to know which functions there are. It asks for no completion: the answer is a message.
    QueryBusRelations,
    /// It wants to know what the function's base address registers ask for.
    QueryResourceRequirements {
        /// Which function.
        slot: u32,
    },
    /// The bus is used from now on, with the configuration window there.
    D0Entry {
        /// Guest-physical address of the window.
        window: u64,
    },
    /// The bus is not used any more.
    D0Exit,
    /// The guest has chosen resources. Which they are the message of the driver's does not say; its base address registers do.
    ResourcesAssigned {
        /// Of which function.
        slot: u32,
    },
    /// It gives them up.
    ResourcesReleased {
        /// Of which function.
        slot: u32,
    },
    /// A function is to change its power state. Linux' driver never says so.
    PowerStateChange {
        /// Which function.
        slot: u32,
        /// In Windows' terms.
        state: u32,
    },
    /// It needs an address and a value to which the function writes for an interrupt.
    CreateInterrupt {
        /// Of which function.
        slot: u32,
        /// What it is to do.
        target: Target,
    },
    /// It needs it no longer.
    DeleteInterrupt {
        /// Of which function.
        slot: u32,
        /// As it was given.
        message: Message,
    },
    /// The function has been removed, as it was asked to be.
    EjectionComplete {
        /// Which function.
        slot: u32,
    },
    /// A message of a driver for virtual functions to the host's driver of the physical one.
    Block,
}

/// Where an interrupt is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Vector; bigger than a byte only on machines that are not this one.
    pub vector: u32,
    /// How many in a row, one for each message of the function.
    pub count: u16,
    /// A virtual processor. Of several the first is taken: drivers name one at this point, or all.
    pub vp: u32,
}

/// What a function writes for an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// How many values in a row.
    pub count: u16,
    /// The first value.
    pub data: u32,
    /// Where it is written.
    pub address: u64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct D0EntryFields {
    _reserved: U32,
    window: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PowerFields {
    slot: U32,
    state: U32,
}

/// `pci_create_interrupt`, after the kind.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CreateFields {
    slot: U32,
    vector: u8,
    _delivery_mode: u8,
    count: U16,
    _reserved: U32,
    mask: U64,
}

/// `pci_create_interrupt2`, after the kind.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Create2Fields {
    slot: U32,
    vector: u8,
    _delivery_mode: u8,
    count: U16,
    processors: Processors,
}

/// `pci_create_interrupt3`, after the kind.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Create3Fields {
    slot: U32,
    vector: U32,
    _delivery_mode: u8,
    _reserved: u8,
    count: U16,
    processors: Processors,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Processors {
    count: U16,
    list: [U16; LISTED],
}

impl Processors {
    fn first(&self) -> Result<u32, WireError> {
        match self.count.get() {
            0 => Err(WireError::NoProcessor),
            _ => Ok(self.list[0].get().into()),
        }
    }
}

/// `pci_delete_interrupt`, after the kind.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DeleteFields {
    slot: U32,
    _reserved: U16,
    count: U16,
    data: U32,
    address: U64,
}

impl GuestMessage {
    /// Parses the payload of a packet, which rings pad to a multiple of eight bytes.
    pub fn parse(payload: &[u8]) -> Result<GuestMessage, WireError> {
        let short = |kind| WireError::TooShort { kind, bytes: payload.len() };
        let (kind, rest) = U32::ref_from_prefix(payload).map_err(|_| short(0))?;
        let kind = kind.get();
        let slot = || rest.first_chunk::<4>().map(|slot| u32::from_le_bytes(*slot)).ok_or(short(kind));
        Ok(match kind {
            kind::QUERY_PROTOCOL_VERSION => GuestMessage::QueryVersion(Version::from_wire(slot()?)),
            kind::QUERY_BUS_RELATIONS => GuestMessage::QueryBusRelations,
            kind::QUERY_RESOURCE_REQUIREMENTS => GuestMessage::QueryResourceRequirements { slot: slot()? },
            kind::D0_ENTRY => {
                let (fields, _) = D0EntryFields::ref_from_prefix(rest).map_err(|_| short(kind))?;
                GuestMessage::D0Entry { window: fields.window.get() }
            }
            kind::D0_EXIT => GuestMessage::D0Exit,
            // The list of ranges in them is empty in Linux, and says nothing that the registers do not say.
            kind::RESOURCES_ASSIGNED | kind::RESOURCES_ASSIGNED_2 => {
                GuestMessage::ResourcesAssigned { slot: slot()? }
            }
            kind::RESOURCES_RELEASED => GuestMessage::ResourcesReleased { slot: slot()? },
            kind::POWER_STATE_CHANGE => {
                let (fields, _) = PowerFields::ref_from_prefix(rest).map_err(|_| short(kind))?;
                GuestMessage::PowerStateChange { slot: fields.slot.get(), state: fields.state.get() }
            }
            kind::CREATE_INTERRUPT => {
                let (fields, _) = CreateFields::ref_from_prefix(rest).map_err(|_| short(kind))?;
                let mask = fields.mask.get();
                if mask == 0 {
                    return Err(WireError::NoProcessor);
                }
                let vp = mask.trailing_zeros();
                let target = Target { vector: fields.vector.into(), count: fields.count.get(), vp };
                GuestMessage::CreateInterrupt { slot: fields.slot.get(), target }
            }
            kind::CREATE_INTERRUPT_2 => {
                let (fields, _) = Create2Fields::ref_from_prefix(rest).map_err(|_| short(kind))?;
                let vp = fields.processors.first()?;
                let target = Target { vector: fields.vector.into(), count: fields.count.get(), vp };
                GuestMessage::CreateInterrupt { slot: fields.slot.get(), target }
            }
            kind::CREATE_INTERRUPT_3 => {
                let (fields, _) = Create3Fields::ref_from_prefix(rest).map_err(|_| short(kind))?;
                let vp = fields.processors.first()?;
                let target = Target { vector: fields.vector.get(), count: fields.count.get(), vp };
                GuestMessage::CreateInterrupt { slot: fields.slot.get(), target }
            }
            kind::DELETE_INTERRUPT => {
                let (fields, _) = DeleteFields::ref_from_prefix(rest).map_err(|_| short(kind))?;
                let message = Message {
                    count: fields.count.get(),
                    data: fields.data.get(),
                    address: fields.address.get(),
                };
                GuestMessage::DeleteInterrupt { slot: fields.slot.get(), message }
            }
            kind::EJECTION_COMPLETE => GuestMessage::EjectionComplete { slot: slot()? },
            kind::READ_BLOCK | kind::WRITE_BLOCK => GuestMessage::Block,
            other => return Err(WireError::UnknownKind(other)),
        })
    }
}
