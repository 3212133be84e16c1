//! A SCSI controller's process as an honest guest's driver uses it, with every byte checked.

use std::{
    os::unix::fs::{FileExt, MetadataExt},
    time::Duration,
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform, Vm,
    disk::Disk,
    steps::{Dice, Guest, LIMIT, small},
};
use vsc::{
    Error, OpenOptions, Platform,
    storage::{
        Buffer, Storage, StorageOptions,
        scsi::{opcode, read_10, read_16, write_10, write_16},
        wire::{Direction, PROTOCOL_WIN8, PROTOCOL_WIN8_1, PROTOCOL_WIN10},
    },
};

const BLOCK: u32 = 512;
const SIZE: u64 = 16 << 20;
const DEPTH: usize = 32;

fn open(guest: &mut Guest) -> anyhow::Result<Storage<SoftPlatform>> {
    let options = StorageOptions { open: small(), depth: DEPTH, ..StorageOptions::default() };
    let offer = guest.offer(0)?;
    Ok(Storage::open(&mut guest.client, &offer, &options)?)
}

/// One controller with these disks, opened.
fn controller(disks: &[String]) -> anyhow::Result<(Vm, Guest, Storage<SoftPlatform>)> {
    let vm = Vm::builder().storage("disk0", disks).start()?;
    let mut guest = Guest::connect(&vm)?;
    let storage = open(&mut guest)?;
    Ok((vm, guest, storage))
}

fn file(disk: &Disk) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; SIZE as usize];
    disk.file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The sense key with which a command failed.
fn sense_key<T: std::fmt::Debug>(result: Result<T, Error>) -> u8 {
    match result {
        Err(Error::Scsi { sense, .. }) if sense.len() > 2 => sense[2] & 0xf,
        other => panic!("{other:?} is no failure with sense data"),
    }
}

#[test]
fn every_version_finds_the_disk() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let vm = Vm::builder().storage("disk0", &[disk.argument(",serial=S3RIAL")]).start()?;
    let mut guest = Guest::connect(&vm)?;
    for version in [PROTOCOL_WIN10, PROTOCOL_WIN8_1, PROTOCOL_WIN8] {
        let offer = guest.offer(0)?;
        let options = StorageOptions { versions: vec![version], ..StorageOptions::default() };
        let mut storage = Storage::open(&mut guest.client, &offer, &options)?;
        assert_eq!(storage.version(), version);
        ensure!(storage.properties().max_transfer_bytes >= 256 << 10);
        assert_eq!(storage.report_luns()?, [0]);
        storage.test_unit_ready(0)?;
        let capacity = storage.read_capacity(0)?;
        assert_eq!((capacity.blocks, capacity.block_size), (SIZE / u64::from(BLOCK), BLOCK));
        let inquiry = storage.inquiry(0)?;
        ensure!(inquiry.len() >= 36 && inquiry[0] == 0, "a disk that is there");
        let serial = storage.inquiry_page(0, 0x80)?;
        ensure!(serial.ends_with(b"S3RIAL"), "{serial:?}");
        guest.client.close(storage.into_channel()?)?;
    }
    let offer = guest.offer(0)?;
    let options = StorageOptions { versions: vec![0x0400, 0x0702], ..StorageOptions::default() };
    let unknown = Storage::open(&mut guest.client, &offer, &options).map(drop);
    ensure!(matches!(unknown, Err(Error::Protocol(_))), "{unknown:?}");
    Ok(())
}

/// A random load at full depth, with a copy of what the disk has to hold.
struct Load {
    shadow: Vec<u8>,
    buffers: Vec<Buffer>,
    /// Requests under way: first block, blocks, what a write writes (none: a read), buffer.
    busy: Vec<(u64, Job)>,
    dice: Dice,
}

struct Job {
    lba: u64,
    blocks: u32,
    written: bool,
    buffer: Buffer,
}

impl Load {
    const MOST: u32 = 64;

    fn new(storage: &Storage<SoftPlatform>, seed: u64, shadow: Vec<u8>) -> anyhow::Result<Self> {
        // Buffers begin anywhere in a page, as a guest's do.
        let buffer = |n: u32| {
            let whole = storage.allocate(Self::MOST * BLOCK + 4096)?;
            Ok(whole.part(n * 512 % 4096, Self::MOST * BLOCK))
        };
        let buffers = (0..DEPTH as u32).map(buffer).collect::<Result<_, Error>>()?;
        Ok(Self { shadow, buffers, busy: Vec::new(), dice: Dice(seed) })
    }

    fn start(&mut self, storage: &mut Storage<SoftPlatform>) -> anyhow::Result<()> {
        let blocks = 1 + self.dice.roll(Self::MOST);
        let last = SIZE / u64::from(BLOCK) - u64::from(blocks);
        let lba = u64::from(self.dice.roll(last as u32 + 1));
        // Requests under way do not overlap: their order is nobody's promise.
        let end = lba + u64::from(blocks);
        if self.busy.iter().any(|(_, job)| lba < job.lba + u64::from(job.blocks) && job.lba < end) {
            return Ok(());
        }
        let Some(whole) = self.buffers.pop() else { return Ok(()) };
        let buffer = whole.part(0, blocks * BLOCK);
        let written = self.dice.roll(2) == 0;
        let range = lba as usize * BLOCK as usize..end as usize * BLOCK as usize;
        let id = if written {
            self.dice.fill(&mut self.shadow[range.clone()]);
            storage.platform().write(buffer.address, &self.shadow[range]);
            let cdb = write_16(lba, blocks);
            match self.dice.roll(2) {
                0 => storage.push(0, &cdb, Direction::Write, buffer)?,
                _ => storage.push(0, &write_10(lba as u32, blocks as u16), Direction::Write, buffer)?,
            }
        } else {
            storage.platform().write(buffer.address, &vec![0xa5; buffer.len as usize]);
            match self.dice.roll(2) {
                0 => storage.push(0, &read_16(lba, blocks), Direction::Read, buffer)?,
                _ => storage.push(0, &read_10(lba as u32, blocks as u16), Direction::Read, buffer)?,
            }
        };
        self.busy.push((id.0, Job { lba, blocks, written, buffer: whole }));
        Ok(())
    }

    fn finish(&mut self, storage: &mut Storage<SoftPlatform>) -> anyhow::Result<()> {
        let done = storage.completion(LIMIT)?.context("a completion is missing")?;
        let at = self.busy.iter().position(|(id, _)| *id == done.id.0).context("it was under way")?;
        let (_, job) = self.busy.swap_remove(at);
        let len = job.blocks * BLOCK;
        ensure!(done.moved()? == len, "{} bytes were moved instead of {len}", done.moved()?);
        if !job.written {
            let mut data = vec![0; len as usize];
            storage.platform().read(job.buffer.address, &mut data);
            let start = job.lba as usize * BLOCK as usize;
            ensure!(data == self.shadow[start..start + data.len()], "wrong data from block {}", job.lba);
        }
        self.buffers.push(job.buffer);
        Ok(())
    }

    fn run(&mut self, storage: &mut Storage<SoftPlatform>, requests: usize) -> anyhow::Result<()> {
        for _ in 0..requests {
            while storage.has_room() && self.dice.roll(8) > 0 {
                match self.start(storage) {
                    Err(e) if e.to_string().contains("no room") => break,
                    result => result?,
                }
            }
            storage.flush_requests()?;
            if storage.in_flight() > 0 {
                self.finish(storage)?;
            }
        }
        while storage.in_flight() > 0 {
            self.finish(storage)?;
        }
        Ok(())
    }
}

#[test]
fn random_reads_and_writes_at_full_depth() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let (_vm, mut guest, mut storage) = controller(&[disk.argument("")])?;
    guest.client.close(storage.into_channel()?)?;
    let offer = guest.offer(0)?;
    let options = StorageOptions { open: OpenOptions::default(), depth: DEPTH, ..StorageOptions::default() };
    storage = Storage::open(&mut guest.client, &offer, &options)?;
    let mut load = Load::new(&storage, 42, vec![0; SIZE as usize])?;
    load.run(&mut storage, 4000)?;
    storage.flush(0)?;
    ensure!(file(&disk)? == load.shadow, "the file is not what was written");
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

#[test]
fn data_outlives_close_unload_and_reset() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let (vm, mut guest, mut storage) = controller(&[disk.argument("")])?;
    let mut shadow = vec![0; SIZE as usize];
    for round in 0..6 {
        let mut load = Load::new(&storage, round + 1, shadow)?;
        load.run(&mut storage, 200).with_context(|| format!("round {round}"))?;
        shadow = load.shadow;
        match round % 3 {
            0 => guest.client.close(storage.into_channel()?)?,
            1 => {
                guest.client.unload()?;
                guest = Guest::connect(&vm)?;
            }
            _ => {
                vm.platform().reset()?;
                (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))?;
                guest = Guest::connect(&vm)?;
            }
        }
        storage = open(&mut guest)?;
    }
    ensure!(file(&disk)? == shadow);
    Ok(())
}

#[test]
fn a_reset_fences_what_was_under_way() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let vm = Vm::builder().storage("disk0", &[disk.argument("")]).start()?;
    let mut storage = open(&mut Guest::connect(&vm)?)?;
    for round in 0..15u8 {
        let buffer = storage.allocate(DEPTH as u32 * 128 * BLOCK)?;
        for n in 0..DEPTH as u32 {
            let part = buffer.part(n * 128 * BLOCK, 128 * BLOCK);
            match storage.push(0, &read_16(u64::from(n) * 128, 128), Direction::Read, part) {
                Ok(_) => {}
                Err(Error::Push(_)) => break,
                Err(e) => return Err(e.into()),
            }
        }
        storage.flush_requests()?;
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(u64::from(round) * 40));
        }
        vm.platform().reset()?;
        // From here on the memory is the next kernel's. A late read would show in it.
        let pattern = vec![0x40 + round; buffer.len as usize];
        vm.platform().write(buffer.address, &pattern);
        (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))?;
        storage = open(&mut Guest::connect(&vm)?)?;
        storage.test_unit_ready(0)?;
        let mut seen = vec![0; pattern.len()];
        vm.platform().read(buffer.address, &mut seen);
        ensure!(seen == pattern, "round {round}: a read of the old kernel's landed late");
    }
    Ok(())
}

#[test]
fn units_are_told_apart_and_read_only_is_read_only() -> anyhow::Result<()> {
    let disks = [Disk::new(SIZE)?, Disk::new(2 * SIZE)?, Disk::new(SIZE / 2)?];
    disks[1].file.write_all_at(b"do not touch", 0)?;
    let arguments = [disks[0].argument(""), disks[1].argument(",lun=3,ro"), disks[2].argument(",lun=200")];
    let (_vm, mut guest, mut storage) = controller(&arguments)?;
    assert_eq!(storage.report_luns()?, [0, 3, 200]);
    for (lun, size) in [(0, SIZE), (3, 2 * SIZE), (200, SIZE / 2)] {
        assert_eq!(storage.read_capacity(lun)?.blocks, size / u64::from(BLOCK), "unit {lun}");
    }
    for lun in [0, 200] {
        storage.write(lun, 7, &[lun + 1; 1024], BLOCK)?;
    }
    assert_eq!(storage.read(0, 7, 2, BLOCK)?, [1; 1024]);
    assert_eq!(storage.read(200, 7, 2, BLOCK)?, [201; 1024]);
    assert_eq!(&storage.read(3, 0, 1, BLOCK)?[..12], b"do not touch");
    const DATA_PROTECT: u8 = 7;
    assert_eq!(sense_key(storage.write(3, 0, &[1; 512], BLOCK)), DATA_PROTECT);
    // Not even known: a disk that is never written is never trimmed.
    ensure!(storage.unmap(3, &[(0, 8)]).is_err());
    let mut same = [0; 16];
    (same[0], same[13]) = (0x93, 8);
    assert_eq!(sense_key(storage.execute_out(3, &same, &[0; 512])), DATA_PROTECT);
    storage.flush(3)?;
    assert_eq!(&storage.read(3, 0, 1, BLOCK)?[..12], b"do not touch");
    let mut behind = [0; 12];
    disks[1].file.read_exact_at(&mut behind, 0)?;
    assert_eq!(&behind, b"do not touch");
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

#[test]
fn unmapped_blocks_are_zero_and_free() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let (_vm, _guest, mut storage) = controller(&[disk.argument("")])?;
    for at in 0..16 {
        storage.write(0, at * 128, &[0xee; 128 * 512], BLOCK)?;
    }
    storage.flush(0)?;
    let before = disk.file.metadata()?.blocks();
    storage.unmap(0, &[(128, 512), (1024, 1024)])?;
    let after = disk.file.metadata()?.blocks();
    ensure!(after + 1024 < before, "{before} blocks before, {after} after");
    let bytes = file(&disk)?;
    for (block, contents) in bytes.chunks(BLOCK as usize).take(2048).enumerate() {
        let gone = (128..640).contains(&block) || block >= 1024;
        ensure!(contents.iter().all(|b| *b == if gone { 0 } else { 0xee }), "block {block}");
    }
    assert_eq!(storage.read(0, 128, 8, BLOCK)?, [0; 4096]);
    Ok(())
}

#[test]
fn the_ends_of_the_disk_are_kept() -> anyhow::Result<()> {
    const ILLEGAL_REQUEST: u8 = 5;
    let disk = Disk::new(SIZE)?;
    let (_vm, _guest, mut storage) = controller(&[disk.argument("")])?;
    let blocks = SIZE / u64::from(BLOCK);
    storage.write(0, blocks - 1, &[3; 512], BLOCK)?;
    assert_eq!(storage.read(0, blocks - 1, 1, BLOCK)?, [3; 512]);
    for (lba, count) in [(blocks, 1), (blocks - 1, 2), (u64::MAX, 1), (u64::MAX - 7, 8), (1 << 55, 8)] {
        assert_eq!(sense_key(storage.read(0, lba, count, BLOCK)), ILLEGAL_REQUEST, "read at {lba:#x}");
        let data = vec![1; (count * BLOCK) as usize];
        assert_eq!(sense_key(storage.write(0, lba, &data, BLOCK)), ILLEGAL_REQUEST, "write at {lba:#x}");
        assert_eq!(sense_key(storage.unmap(0, &[(lba, count)])), ILLEGAL_REQUEST, "unmap at {lba:#x}");
    }
    ensure!(disk.file.metadata()?.len() == SIZE, "the file has grown");
    // Nothing to move is no error.
    storage.execute(0, &read_16(0, 0), Direction::None, Buffer::NONE)?;
    ensure!(storage.execute(0, &[opcode::TEST_UNIT_READY; 6], Direction::None, Buffer::NONE).is_ok());
    Ok(())
}

#[test]
fn one_controller_dies_and_the_other_works_on() -> anyhow::Result<()> {
    let disks = [Disk::new(SIZE)?, Disk::new(SIZE)?];
    let mut vm = Vm::builder()
        .storage("first", &[disks[0].argument("")])
        .storage("second", &[disks[1].argument("")])
        .start()?;
    let mut guest = Guest::connect(&vm)?;
    let mut storages = Vec::new();
    for n in 0..2 {
        let offer = guest.offer(n)?;
        let options = StorageOptions { open: small(), ..StorageOptions::default() };
        storages.push(Storage::open(&mut guest.client, &offer, &options)?);
    }
    for storage in &mut storages {
        storage.write(0, 1, &[9; 4096], BLOCK)?;
    }
    vm.device("first").kill()?;
    vm.device("first").wait()?;
    let [first, mut second] = <[_; 2]>::try_from(storages).map_err(|_| anyhow::anyhow!("two"))?;
    assert_eq!(second.read(0, 1, 8, BLOCK)?, [9; 4096]);
    second.write(0, 1, &[10; 4096], BLOCK)?;
    second.flush(0)?;
    // With guest memory in its hands, only the next process can tell that nothing of the dead one's is under way.
    vm.restart("first")?;
    guest.client.close(first.into_channel()?)?;
    assert_eq!(second.read(0, 1, 8, BLOCK)?, [10; 4096]);
    let mut on_disk = [0; 4096];
    disks[0].file.read_exact_at(&mut on_disk, 512)?;
    assert_eq!(on_disk, [9; 4096], "what was written stays written");
    Ok(())
}
