//! The storvsc protocol: 64-byte packets, the same layout both ways (versions 5.1 to 6.2, Windows 8 to 10).
//!
//! Parsing is pure: a copy of the guest's bytes in, a [`Message`] or an answer out. Facts from the guest's
//! side: `drivers/scsi/storvsc_drv.c`.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a packet.
pub const PACKET_LEN: usize = 64;
/// Bytes for a command in a request; sense data of up to [`SENSE_LEN`] takes their place in the answer.
pub const MAX_CDB: usize = 16;
/// Most sense bytes in an answer.
pub const SENSE_LEN: usize = 20;

/// Protocol versions, newest first.
pub const VERSIONS: [u16; 3] = [0x0602, 0x0600, 0x0501];

/// What a packet asks for (`enum vstor_packet_operation`).
pub mod operation {
    /// The only one that the host sends in an answer.
    pub const COMPLETE_IO: u32 = 1;
    /// A SCSI command.
    pub const EXECUTE_SRB: u32 = 3;
    /// Ends the commands of a LUN.
    pub const RESET_LUN: u32 = 4;
    /// Ends the commands of the adapter.
    pub const RESET_ADAPTER: u32 = 5;
    /// Ends the commands of the bus.
    pub const RESET_BUS: u32 = 6;
    /// The first packet of a channel.
    pub const BEGIN_INITIALIZATION: u32 = 7;
    /// The last packet before commands.
    pub const END_INITIALIZATION: u32 = 8;
    /// Offers a protocol version.
    pub const QUERY_PROTOCOL_VERSION: u32 = 9;
    /// Asks for limits.
    pub const QUERY_PROPERTIES: u32 = 10;
    /// The host's, unasked: units have come or gone, or are of another size.
    pub const ENUMERATE_BUS: u32 = 11;
    /// Asks for world-wide names (Fibre Channel only).
    pub const FCHBA_DATA: u32 = 12;
    /// Asks for more channels.
    pub const CREATE_SUB_CHANNELS: u32 = 13;
}

/// Status of an answer: an NTSTATUS.
pub mod status {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// The packet makes no sense.
    pub const INVALID_PARAMETER: u32 = 0xC000_000D;
    /// The packet comes at the wrong time.
    pub const INVALID_DEVICE_STATE: u32 = 0xC000_0184;
    /// Not by this controller.
    pub const NOT_SUPPORTED: u32 = 0xC000_00BB;
    /// Failed for no reason of the guest's.
    pub const UNSUCCESSFUL: u32 = 0xC000_0001;
    /// Another protocol version is needed.
    pub const REVISION_MISMATCH: u32 = 0xC000_0059;
}

/// Outcome of a command for the adapter (`srb_status`).
pub mod srb_status {
    /// Done.
    pub const SUCCESS: u8 = 0x01;
    /// Failed; the SCSI status says how.
    pub const ERROR: u8 = 0x04;
    /// The request itself is wrong.
    pub const INVALID_REQUEST: u8 = 0x06;
    /// There is no such unit.
    pub const INVALID_LUN: u8 = 0x20;
    /// Flag: the sense data is valid.
    pub const AUTOSENSE_VALID: u8 = 0x80;
}

/// Direction of a command's data as the guest says (`data_in`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Guest to disk.
    ToDevice,
    /// Disk to guest.
    FromDevice,
    /// None, or unknown.
    None,
}

/// The part of a packet behind its header, for commands.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Srb {
    length: U16,
    srb_status: u8,
    scsi_status: u8,
    port: u8,
    path: u8,
    target: u8,
    lun: u8,
    cdb_length: u8,
    sense_length: u8,
    data_in: u8,
    reserved: u8,
    transfer_length: U32,
    /// Command, or sense data.
    bytes: [u8; SENSE_LEN],
    reserve: U16,
    queue_tag: u8,
    queue_action: u8,
    flags: U32,
    timeout: U32,
    sort_key: U32,
}

/// Where a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Bus.
    pub path: u8,
    /// Target on the bus.
    pub target: u8,
    /// Unit in the target.
    pub lun: u8,
}

impl Srb {
    /// Where the command goes.
    pub fn address(&self) -> Address {
        Address { path: self.path, target: self.target, lun: self.lun }
    }

    /// The command; `None` if its length is none.
    pub fn cdb(&self) -> Option<&[u8]> {
        let len = usize::from(self.cdb_length);
        self.bytes.get(..len).filter(|cdb| !cdb.is_empty() && cdb.len() <= MAX_CDB)
    }

    /// Direction of the data.
    pub fn direction(&self) -> Direction {
        match self.data_in {
            0 => Direction::ToDevice,
            1 => Direction::FromDevice,
            _ => Direction::None,
        }
    }

    /// Bytes of data that the guest expects to move.
    pub fn transfer_length(&self) -> u32 {
        self.transfer_length.get()
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Packet {
    operation: U32,
    flags: U32,
    status: U32,
    srb: Srb,
}

const _: () = assert!(size_of::<Packet>() == PACKET_LEN);

/// What a guest asks for.
#[derive(Clone, Copy, Debug)]
pub enum Message {
    /// The first packet of a channel.
    Begin,
    /// Would this version do? (major in the high byte)
    Version(u16),
    /// What are the limits?
    Properties,
    /// World-wide names.
    FibreChannel,
    /// So many more channels, please.
    SubChannels(u16),
    /// The end of the introductions.
    End,
    /// A SCSI command.
    Execute(Srb),
    /// End what is in flight: of the unit, or of all there are.
    Reset(Option<Address>),
    /// None of these.
    Unknown(u32),
}

impl Message {
    /// Reads a packet's payload; `None` if it is too short. Bytes behind the packet are padding.
    pub fn parse(payload: &[u8]) -> Option<Message> {
        let (packet, _) = Packet::read_from_prefix(payload).ok()?;
        let first_word = {
            let body = packet.srb.as_bytes();
            u16::from_le_bytes([body[0], body[1]])
        };
        Some(match packet.operation.get() {
            operation::BEGIN_INITIALIZATION => Message::Begin,
            operation::QUERY_PROTOCOL_VERSION => Message::Version(first_word),
            operation::QUERY_PROPERTIES => Message::Properties,
            operation::FCHBA_DATA => Message::FibreChannel,
            operation::CREATE_SUB_CHANNELS => Message::SubChannels(first_word),
            operation::END_INITIALIZATION => Message::End,
            operation::EXECUTE_SRB => Message::Execute(packet.srb),
            operation::RESET_LUN => Message::Reset(Some(packet.srb.address())),
            operation::RESET_BUS | operation::RESET_ADAPTER => Message::Reset(None),
            other => Message::Unknown(other),
        })
    }
}

/// Limits that the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Channels besides the primary one.
    pub max_subchannels: u16,
    /// Most bytes in a command.
    pub max_transfer_bytes: u32,
}

/// Flag of the properties: sub-channels are possible (`STORAGE_CHANNEL_SUPPORTS_MULTI_CHANNEL`).
const MULTI_CHANNEL: u32 = 1;

/// An answer without content.
pub fn answer(status: u32) -> [u8; PACKET_LEN] {
    let mut packet = [0; PACKET_LEN];
    packet[..4].copy_from_slice(&operation::COMPLETE_IO.to_le_bytes());
    packet[8..12].copy_from_slice(&status.to_le_bytes());
    packet
}

/// Tells the guest to look what units there are: storvsc asks each one that it knows whether it is ready, and then for others. It is not
/// answered, and its transaction id is 0.
pub fn enumerate_bus() -> [u8; PACKET_LEN] {
    let mut packet = [0; PACKET_LEN];
    packet[..4].copy_from_slice(&operation::ENUMERATE_BUS.to_le_bytes());
    packet
}

/// The answer to [`Message::Properties`].
pub fn answer_properties(properties: Properties) -> [u8; PACKET_LEN] {
    let mut packet = answer(status::SUCCESS);
    let flags = if properties.max_subchannels > 0 { MULTI_CHANNEL } else { 0 };
    packet[16..18].copy_from_slice(&properties.max_subchannels.to_le_bytes());
    packet[20..24].copy_from_slice(&flags.to_le_bytes());
    packet[24..28].copy_from_slice(&properties.max_transfer_bytes.to_le_bytes());
    packet
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Done; so many bytes were moved.
    Good(u32),
    /// CHECK CONDITION with this sense data.
    Check(&'a [u8]),
    /// RESERVATION CONFLICT.
    Conflict,
    /// There is no such unit.
    NoUnit,
}

/// SCSI status CHECK CONDITION.
const CHECK_CONDITION: u8 = 0x02;
/// SCSI status RESERVATION CONFLICT.
const RESERVATION_CONFLICT: u8 = 0x18;

/// The answer to [`Message::Execute`].
pub fn answer_command(srb: &Srb, outcome: Outcome<'_>) -> [u8; PACKET_LEN] {
    let mut srb = *srb;
    srb.bytes = [0; SENSE_LEN];
    srb.sense_length = 0;
    srb.transfer_length = U32::new(0);
    srb.scsi_status = 0;
    match outcome {
        Outcome::Good(moved) => {
            srb.srb_status = srb_status::SUCCESS;
            srb.transfer_length = U32::new(moved);
        }
        Outcome::Check(sense) => {
            let len = sense.len().min(SENSE_LEN);
            srb.bytes[..len].copy_from_slice(&sense[..len]);
            srb.sense_length = len as u8;
            srb.scsi_status = CHECK_CONDITION;
            srb.srb_status = srb_status::ERROR | srb_status::AUTOSENSE_VALID;
        }
        // "Sense data is valid", none of it: otherwise Linux adds an error of the adapter's own to the status.
        Outcome::Conflict => {
            srb.scsi_status = RESERVATION_CONFLICT;
            srb.srb_status = srb_status::ERROR | srb_status::AUTOSENSE_VALID;
        }
        Outcome::NoUnit => srb.srb_status = srb_status::INVALID_LUN,
    }
    let mut packet = answer(status::SUCCESS);
    packet[12..].copy_from_slice(srb.as_bytes());
    packet
}

/// The answer to a packet that nobody can read any more: whatever it was, it has failed. A guest that had sent a
/// command takes it for a CHECK CONDITION with this sense data.
pub fn answer_unknown(sense: &[u8]) -> [u8; PACKET_LEN] {
    let mut packet = answer_command(&Srb::new_zeroed(), Outcome::Check(sense));
    packet[8..12].copy_from_slice(&status::UNSUCCESSFUL.to_le_bytes());
    packet
}

/// Builds a command packet as a guest does; for tests.
pub fn command(address: Address, direction: Direction, cdb: &[u8], transfer_length: u32) -> [u8; PACKET_LEN] {
    let mut packet = [0; PACKET_LEN];
    packet[..4].copy_from_slice(&operation::EXECUTE_SRB.to_le_bytes());
    packet[4] = 1;
    packet[12] = 52;
    packet[17] = address.path;
    packet[18] = address.target;
    packet[19] = address.lun;
    packet[20] = cdb.len() as u8;
    packet[21] = SENSE_LEN as u8;
    packet[22] = match direction {
        Direction::ToDevice => 0,
        Direction::FromDevice => 1,
        Direction::None => 2,
    };
    packet[24..28].copy_from_slice(&transfer_length.to_le_bytes());
    let len = cdb.len().min(SENSE_LEN);
    packet[28..28 + len].copy_from_slice(&cdb[..len]);
    packet
}

/// Builds any other packet as a guest does; for tests. `word` is the first of its body.
pub fn simple(operation: u32, word: u16) -> [u8; PACKET_LEN] {
    let mut packet = [0; PACKET_LEN];
    packet[..4].copy_from_slice(&operation.to_le_bytes());
    packet[4] = 1;
    packet[12..14].copy_from_slice(&word.to_le_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Address = Address { path: 0, target: 0, lun: 3 };

    #[test]
    fn a_command_is_read_where_linux_writes_it() {
        let packet = command(HERE, Direction::FromDevice, &[0x28, 0, 0, 0, 0, 9, 0, 0, 8, 0], 4096);
        let Some(Message::Execute(srb)) = Message::parse(&packet) else { panic!() };
        assert_eq!(srb.address(), HERE);
        assert_eq!(srb.cdb().unwrap(), [0x28, 0, 0, 0, 0, 9, 0, 0, 8, 0]);
        assert_eq!(srb.direction(), Direction::FromDevice);
        assert_eq!(srb.transfer_length(), 4096);
    }

    #[test]
    fn commands_of_no_length_or_too_long_are_none() {
        for len in [0, 17, 20, 255] {
            let mut packet = command(HERE, Direction::None, &[0], 0);
            packet[20] = len;
            let Some(Message::Execute(srb)) = Message::parse(&packet) else { panic!() };
            assert!(srb.cdb().is_none(), "{len}");
        }
    }

    #[test]
    fn short_payloads_are_no_packets() {
        assert!(Message::parse(&[]).is_none());
        assert!(Message::parse(&[0; 63]).is_none());
        assert!(matches!(Message::parse(&[0; 72]), Some(Message::Unknown(0))));
    }

    #[test]
    fn answers_lie_where_linux_reads_them() {
        let properties = answer_properties(Properties { max_subchannels: 3, max_transfer_bytes: 0x80000 });
        assert_eq!(properties[..12], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(properties[16..28], [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0]);
        assert_eq!(answer(status::NOT_SUPPORTED)[8..12], [0xBB, 0, 0, 0xC0]);

        let packet = command(HERE, Direction::FromDevice, &[0x12; 6], 96);
        let Some(Message::Execute(srb)) = Message::parse(&packet) else { panic!() };
        let good = answer_command(&srb, Outcome::Good(36));
        assert_eq!((good[14], good[15], good[21]), (srb_status::SUCCESS, 0, 0));
        assert_eq!(good[24..28], [36, 0, 0, 0]);
        assert_eq!(good[19], 3, "the address is echoed");
        let check = answer_command(&srb, Outcome::Check(&[0x70; 18]));
        assert_eq!((check[14], check[15], check[21]), (0x84, 2, 18));
        assert_eq!(check[28..46], [0x70; 18]);
        assert_eq!(check[46..48], [0, 0]);
        assert_eq!(answer_command(&srb, Outcome::NoUnit)[14], 0x20);
        let conflict = answer_command(&srb, Outcome::Conflict);
        assert_eq!((conflict[14], conflict[15], conflict[21]), (0x84, 0x18, 0));
    }
}
