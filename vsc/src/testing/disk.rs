//! The fake host's disk: 256 blocks of 512 bytes as LUN 0.

use vmbus::gpadl::Limits;
use vmbus::packet::{PacketHeader, PacketType};
use zerocopy::{FromBytes, IntoBytes};

use crate::storage::scsi::opcode;
use crate::storage::wire::*;

const BLOCKS: usize = 256;
const BLOCK: usize = 512;

/// Sub-channels that the controller is ready to serve.
pub const SUB_CHANNELS: u16 = 3;

pub struct Disk {
    bytes: Vec<u8>,
    /// Sub-channels that the guest has been offered, and those that it is to be offered.
    offered: u16,
    wanted: u16,
}

impl Default for Disk {
    fn default() -> Self {
        Self { bytes: vec![0; BLOCKS * BLOCK], offered: 0, wanted: 0 }
    }
}

impl Disk {
    /// Indices of the sub-channels that are to be offered now.
    pub fn new_sub_channels(&mut self) -> std::ops::Range<u16> {
        let new = self.offered + 1..self.wanted + 1;
        self.offered = self.offered.max(self.wanted);
        new
    }

    pub fn serve(&mut self, header: &PacketHeader, bytes: &[u8], memory: &mut [u8]) -> Vec<u8> {
        let (mut packet, _) =
            StoragePacket::read_from_prefix(header.payload(bytes)).expect("a storage packet");
        match packet.operation {
            OPERATION_QUERY_PROTOCOL_VERSION => {
                let proposed = u16::from_le_bytes([packet.payload[0], packet.payload[1]]);
                packet.status = u32::from(proposed != PROTOCOL_WIN10);
            }
            OPERATION_QUERY_PROPERTIES => {
                let properties = ChannelProperties {
                    max_channels: SUB_CHANNELS,
                    flags: PROPERTY_MULTI_CHANNEL,
                    max_transfer_bytes: 0x4_0000,
                    ..ChannelProperties::default()
                };
                packet.payload[..24].copy_from_slice(properties.as_bytes());
            }
            OPERATION_CREATE_SUB_CHANNELS => {
                let count = u16::from_le_bytes([packet.payload[0], packet.payload[1]]);
                packet.status = u32::from(count > SUB_CHANNELS);
                self.wanted = if packet.status == 0 { count } else { self.wanted };
            }
            OPERATION_EXECUTE_SRB => {
                let mut request: ScsiRequest = packet.body();
                let pieces: Vec<(u64, u32)> = match header.packet_type {
                    PacketType::GPA_DIRECT => header
                        .gpa_ranges(bytes, Limits { ranges: 1, pages: 64 })
                        .expect("an honest guest")
                        .flat_map(|range| range.pieces())
                        .collect(),
                    _ => Vec::new(),
                };
                self.execute(&mut request, &pieces, memory);
                packet.payload.copy_from_slice(request.as_bytes());
            }
            _ => {}
        }
        packet.operation = OPERATION_COMPLETE_IO;
        packet.as_bytes().to_vec()
    }

    fn execute(&mut self, request: &mut ScsiRequest, pieces: &[(u64, u32)], memory: &mut [u8]) {
        let cdb = request.cdb_or_sense;
        let number =
            |at: usize, len: usize| cdb[at..at + len].iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
        request.srb_status = SRB_STATUS_SUCCESS;
        let data = match cdb[0] {
            _ if request.lun != 0 => {
                request.srb_status = SRB_STATUS_INVALID_LUN;
                return;
            }
            opcode::READ_16 => self.bytes[number(2, 8) * BLOCK..][..number(10, 4) * BLOCK].to_vec(),
            opcode::WRITE_16 => {
                let mut disk = &mut self.bytes[number(2, 8) * BLOCK..][..number(10, 4) * BLOCK];
                for &(address, len) in pieces {
                    let (part, rest) = disk.split_at_mut(len as usize);
                    part.copy_from_slice(&memory[address as usize..][..len as usize]);
                    disk = rest;
                }
                return;
            }
            opcode::SERVICE_ACTION_IN_16 => {
                [&(BLOCKS as u64 - 1).to_be_bytes()[..], &(BLOCK as u32).to_be_bytes()].concat()
            }
            opcode::UNMAP => {
                let list = &memory[pieces[0].0 as usize..][..24];
                let lba = usize::from(list[15]);
                self.bytes[lba * BLOCK..][..usize::from(list[19]) * BLOCK].fill(0);
                return;
            }
            opcode::TEST_UNIT_READY | opcode::SYNCHRONIZE_CACHE_10 => return,
            _ => {
                request.srb_status = SRB_STATUS_ERROR | SRB_STATUS_AUTOSENSE_VALID;
                request.scsi_status = 2;
                request.cdb_or_sense = [0; SENSE_MAX];
                request.cdb_or_sense[..3].copy_from_slice(&[0x70, 0, 5]);
                return;
            }
        };
        let mut left = &data[..];
        for &(address, len) in pieces {
            let (part, rest) = left.split_at(left.len().min(len as usize));
            memory[address as usize..][..part.len()].copy_from_slice(part);
            left = rest;
        }
        request.transfer_len = (data.len() - left.len()) as u32;
    }
}
