//! What tests of hostile guests share: a victim, a bystander, and what an honest guest finds afterwards.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use anyhow::{Context, bail, ensure};
use bulkhead_tests::{
    SoftPlatform, Vm,
    disk::Disk,
    steps::{Guest, LIMIT},
};
use vmbus::packet::{Outgoing, PacketType, gpa_direct_header};
use vsc::{
    Channel, OpenOptions,
    storage::{
        Storage, StorageOptions,
        scsi::{read_16, write_16},
        wire::{self, Direction, ScsiRequest, StoragePacket},
    },
};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a block.
pub const BLOCK: u32 = 512;
/// Bytes of each disk.
pub const SIZE: u64 = 8 << 20;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// A VM with two controllers: the victim of a hostile guest, and one that must not notice.
pub struct Rig {
    pub vm: Vm,
    pub guest: Guest,
    pub bystander: Storage<SoftPlatform>,
    pub disks: [Disk; 2],
    next_id: u64,
}

impl Rig {
    pub fn new() -> anyhow::Result<Self> {
        let disks = [Disk::new(SIZE)?, Disk::new(SIZE)?];
        let vm = Vm::builder()
            .quiet()
            .storage("victim", &[disks[0].argument("")])
            .storage("bystander", &[disks[1].argument("")])
            .start()?;
        let mut guest = Guest::connect(&vm)?;
        let offer = guest.offer(1)?;
        let bystander = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
        Ok(Self { vm, guest, bystander, disks, next_id: 1 })
    }

    /// The victim's channel, as it is after opening.
    pub fn open(&mut self) -> anyhow::Result<Channel<SoftPlatform>> {
        let offer = self.guest.offer(0)?;
        Ok(self.guest.client.open(&offer, &OpenOptions::default())?)
    }

    /// The same, introduced.
    pub fn ready(&mut self) -> anyhow::Result<Channel<SoftPlatform>> {
        let storage = Storage::start(self.open()?, &StorageOptions::default())?;
        Ok(storage.into_channel()?)
    }

    /// Sends a packet as it is and returns its answer, which has to be the next one.
    pub fn ask(
        &mut self,
        channel: &mut Channel<SoftPlatform>,
        kind: PacketType,
        header: &[u8],
        payload: &[u8],
    ) -> anyhow::Result<StoragePacket> {
        self.next_id += 1;
        let id = self.next_id;
        let mut packet = Outgoing { packet_type: kind, ..Outgoing::gpa_direct(id, header) };
        if header.is_empty() {
            packet = Outgoing { packet_type: kind, ..Outgoing::in_band(id, true) };
        }
        channel.send_waiting(&packet, &[header, payload], LIMIT)?;
        let answer = channel.receive(LIMIT)?.context("no answer")?;
        ensure!(answer.header.packet_type == PacketType::COMPLETION && answer.header.transaction_id == id);
        let Ok((answer, _)) = StoragePacket::read_from_prefix(answer.payload()) else {
            bail!("an answer of {} bytes", answer.payload().len())
        };
        ensure!(answer.operation == wire::OPERATION_COMPLETE_IO, "{answer:?}");
        Ok(answer)
    }

    /// A command with these ranges of memory: offset, length, pages.
    pub fn command(
        &mut self,
        channel: &mut Channel<SoftPlatform>,
        request: ScsiRequest,
        ranges: &[(u32, u32, &[u64])],
    ) -> anyhow::Result<bool> {
        let packet = StoragePacket::execute(request);
        let header = gpa_direct_header(ranges);
        let answer = self.ask(channel, PacketType::GPA_DIRECT, &header, packet.as_bytes())?;
        Ok(succeeded(&answer))
    }

    /// Everybody is as well as before.
    pub fn recover(&mut self, channel: Channel<SoftPlatform>) -> anyhow::Result<()> {
        self.bystander_works()?;
        self.guest.client.close(channel).context("the channel does not close")?;
        let mut storage = Storage::start(self.open()?, &StorageOptions::default())?;
        honest(&mut storage).context("the device does not recover")?;
        self.guest.client.close(storage.into_channel()?)?;
        ensure!(self.vm.device("victim").try_wait()?.is_none() && self.vm.core().try_wait()?.is_none());
        for disk in &self.disks {
            ensure!(disk.file.metadata()?.len() == SIZE, "a disk has changed its size");
        }
        self.bystander_works()
    }

    pub fn bystander_works(&mut self) -> anyhow::Result<()> {
        honest(&mut self.bystander).context("the bystander suffers")
    }
}

/// Uses a disk as an honest guest does.
pub fn honest(storage: &mut Storage<SoftPlatform>) -> anyhow::Result<()> {
    storage.test_unit_ready(0)?;
    ensure!(storage.read_capacity(0)?.blocks == SIZE / u64::from(BLOCK));
    for n in 0..8u8 {
        storage.write(0, u64::from(n) * 8, &[n ^ 0x55; 4096], BLOCK)?;
    }
    for n in 0..8u8 {
        ensure!(storage.read(0, u64::from(n) * 8, 8, BLOCK)? == [n ^ 0x55; 4096], "wrong data");
    }
    Ok(storage.flush(0)?)
}

/// Whether a command did what it says.
pub fn succeeded(answer: &StoragePacket) -> bool {
    let Ok((request, _)) = ScsiRequest::read_from_prefix(&answer.payload) else { return false };
    answer.status == 0
        && request.srb_status & wire::SRB_STATUS_MASK == wire::SRB_STATUS_SUCCESS
        && request.scsi_status == 0
}

/// READ (16) from the first block on.
pub fn read(blocks: u32) -> ScsiRequest {
    ScsiRequest::new(0, &read_16(0, blocks), Direction::Read, blocks * BLOCK)
}

/// WRITE (16) from the first block on.
pub fn write(blocks: u32) -> ScsiRequest {
    ScsiRequest::new(0, &write_16(0, blocks), Direction::Write, blocks * BLOCK)
}
