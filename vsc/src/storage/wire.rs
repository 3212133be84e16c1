//! The storage protocol's packets, Windows 8 (5.1) to Windows 10 (6.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version 5.1.
pub const PROTOCOL_WIN8: u16 = 0x0501;
/// Version 6.0.
pub const PROTOCOL_WIN8_1: u16 = 0x0600;
/// Version 6.2.
pub const PROTOCOL_WIN10: u16 = 0x0602;

/// From the device: an answer.
pub const OPERATION_COMPLETE_IO: u32 = 1;
/// From the device: a unit is gone.
pub const OPERATION_REMOVE_DEVICE: u32 = 2;
/// To the device: a SCSI request.
pub const OPERATION_EXECUTE_SRB: u32 = 3;
/// To the device: reset a unit.
pub const OPERATION_RESET_LUN: u32 = 4;
/// To the device: reset the controller.
pub const OPERATION_RESET_ADAPTER: u32 = 5;
/// To the device: reset the bus.
pub const OPERATION_RESET_BUS: u32 = 6;
/// To the device: first packet of all.
pub const OPERATION_BEGIN_INITIALIZATION: u32 = 7;
/// To the device: last packet of the initialization.
pub const OPERATION_END_INITIALIZATION: u32 = 8;
/// To the device: proposal of a version.
pub const OPERATION_QUERY_PROTOCOL_VERSION: u32 = 9;
/// To the device: what can you do?
pub const OPERATION_QUERY_PROPERTIES: u32 = 10;
/// From the device: units have changed.
pub const OPERATION_ENUMERATE_BUS: u32 = 11;
/// To the device: offer this many sub-channels.
pub const OPERATION_CREATE_SUB_CHANNELS: u32 = 13;

/// Flag of a packet: an answer is wanted.
pub const FLAG_REQUEST_COMPLETION: u32 = 1;
/// Flag of the properties: sub-channels are possible.
pub const PROPERTY_MULTI_CHANNEL: u32 = 1;

/// Bits of the SRB status that are the status; the others are flags.
pub const SRB_STATUS_MASK: u8 = 0x3f;
/// Flag of the SRB status: sense data is there.
pub const SRB_STATUS_AUTOSENSE_VALID: u8 = 0x80;
/// SRB status: done.
pub const SRB_STATUS_SUCCESS: u8 = 0x01;
/// SRB status: failed; the SCSI status says how.
pub const SRB_STATUS_ERROR: u8 = 0x04;
/// SRB status: the request makes no sense.
pub const SRB_STATUS_INVALID_REQUEST: u8 = 0x06;
/// SRB status: fewer bytes were moved than asked for.
pub const SRB_STATUS_DATA_OVERRUN: u8 = 0x12;
/// SRB status: no such unit.
pub const SRB_STATUS_INVALID_LUN: u8 = 0x20;

/// Longest command, in bytes.
pub const CDB_MAX: usize = 16;
/// Room for sense data, in bytes.
pub const SENSE_MAX: usize = 20;

/// SRB flags that Linux sets: simple tags, no queue freeze, no synchronous transfer.
const SRB_FLAGS_QUEUED: u32 = 0x0000_0002 | 0x0000_0100 | 0x0000_0008;
const SRB_FLAGS_DATA_IN: u32 = 0x40;
const SRB_FLAGS_DATA_OUT: u32 = 0x80;

/// Where data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From guest memory to the disk.
    Write,
    /// From the disk to guest memory.
    Read,
    /// There is none.
    None,
}

/// A packet's payload, both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StoragePacket {
    /// What it is about.
    pub operation: u32,
    /// [`FLAG_REQUEST_COMPLETION`].
    pub flags: u32,
    /// In an answer: 0 if the packet was understood and done.
    pub status: u32,
    /// By operation.
    pub payload: [u8; 52],
}

impl StoragePacket {
    /// A packet that wants an answer.
    pub fn new(operation: u32) -> Self {
        Self { operation, flags: FLAG_REQUEST_COMPLETION, status: 0, payload: [0; 52] }
    }

    /// A packet with a SCSI request.
    pub fn execute(request: ScsiRequest) -> Self {
        let mut packet = Self::new(OPERATION_EXECUTE_SRB);
        packet.payload.copy_from_slice(request.as_bytes());
        packet
    }

    /// The payload as what it is by the operation.
    pub(crate) fn body<T: FromBytes + Default>(&self) -> T {
        T::read_from_prefix(&self.payload).map(|(body, _)| body).unwrap_or_default()
    }
}

/// A SCSI request, and in an answer what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ScsiRequest {
    /// Bytes of this structure.
    pub length: u16,
    /// Answer: status and flags of the request block.
    pub srb_status: u8,
    /// Answer: status of the command.
    pub scsi_status: u8,
    /// Which controller; means nothing here.
    pub port: u8,
    /// Bus on the controller.
    pub path: u8,
    /// Target on the bus.
    pub target: u8,
    /// Unit of the target.
    pub lun: u8,
    /// Bytes of the command.
    pub cdb_len: u8,
    /// Request: room for sense data. Answer: bytes of it.
    pub sense_len: u8,
    /// 0: to the device, 1: from it, 2: no data.
    pub data_in: u8,
    /// 0.
    pub reserved: u8,
    /// Request: bytes to move. Answer: bytes moved.
    pub transfer_len: u32,
    /// Request: the command. Answer: sense data.
    pub cdb_or_sense: [u8; SENSE_MAX],
    /// 0.
    pub reserved2: u16,
    /// 0xff: none.
    pub queue_tag: u8,
    /// How it may be reordered.
    pub queue_action: u8,
    /// `SRB_FLAGS_*`.
    pub srb_flags: u32,
    /// Seconds; a device need not care.
    pub timeout: u32,
    /// Means nothing.
    pub queue_sort_key: u32,
}

impl ScsiRequest {
    /// A request as Linux makes them. A command longer than [`CDB_MAX`] is cut off.
    pub fn new(lun: u8, cdb: &[u8], direction: Direction, transfer_len: u32) -> Self {
        let (data_in, data_flag) = match direction {
            Direction::Write => (0, SRB_FLAGS_DATA_OUT),
            Direction::Read => (1, SRB_FLAGS_DATA_IN),
            Direction::None => (2, 0),
        };
        let cdb = &cdb[..cdb.len().min(CDB_MAX)];
        let mut cdb_or_sense = [0; SENSE_MAX];
        cdb_or_sense[..cdb.len()].copy_from_slice(cdb);
        Self {
            length: size_of::<Self>() as u16,
            lun,
            cdb_len: cdb.len() as u8,
            sense_len: SENSE_MAX as u8,
            data_in,
            transfer_len,
            cdb_or_sense,
            queue_tag: 0xff,
            queue_action: 0x20,
            srb_flags: SRB_FLAGS_QUEUED | data_flag,
            timeout: 60,
            ..Self::default()
        }
    }

    /// An answer's sense data; empty if there is none.
    pub fn sense(&self) -> &[u8] {
        if self.srb_status & SRB_STATUS_AUTOSENSE_VALID == 0 {
            return &[];
        }
        &self.cdb_or_sense[..usize::from(self.sense_len).min(SENSE_MAX)]
    }
}

/// What a controller says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChannelProperties {
    /// 0.
    pub reserved: u32,
    /// Most sub-channels.
    pub max_channels: u16,
    /// 0.
    pub reserved1: u16,
    /// [`PROPERTY_MULTI_CHANNEL`].
    pub flags: u32,
    /// Most bytes that one request moves.
    pub max_transfer_bytes: u32,
    /// 0.
    pub reserved2: [u32; 2],
}

const _: () = assert!(size_of::<StoragePacket>() == 64 && size_of::<ScsiRequest>() == 52);
