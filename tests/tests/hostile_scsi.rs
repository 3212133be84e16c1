//! Commands of every kind in every form, and lists of memory that no driver would make. Each request is answered once, nothing
//! is touched that was not named, and everybody else is served as before.

mod hostile;

use std::fs;

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform,
    steps::{Dice, LIMIT},
};
use vmbus::packet::{Outgoing, PacketType, gpa_direct_header};
use vsc::{
    Channel, OpenOptions, Platform,
    storage::{
        Storage, StorageOptions,
        wire::{Direction, ScsiRequest, StoragePacket},
    },
};
use zerocopy::IntoBytes;

use hostile::{BLOCK, PAGE, Rig, read, write};

/// Longest packet that a device takes, and page numbers that fit into one with all the rest.
const LONGEST: usize = 40_960;
const MOST_PAGES: usize = (LONGEST - 256) / 8;

#[test]
fn every_operation_code_at_every_length() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let mut dice = Dice(41);
    for opcode in 0..=255 {
        for len in (0..=17).chain([20, 255]) {
            let mut cdb = [0; 16];
            match dice.roll(3) {
                0 => {}
                1 => cdb = [0xff; 16],
                _ => dice.fill(&mut cdb),
            }
            cdb[0] = opcode;
            let mut request = ScsiRequest::new(0, &cdb, Direction::Read, 4096);
            request.data_in = dice.roll(3) as u8;
            request.cdb_len = len;
            rig.command(&mut channel, request, &[(0, 4096, &[0x800])])
                .with_context(|| format!("operation code {opcode:#04x}, {len} bytes"))?;
        }
    }
    rig.recover(channel)
}

/// A channel whose ring has room for the longest packets.
fn roomy(rig: &mut Rig) -> anyhow::Result<Channel<SoftPlatform>> {
    let offer = rig.guest.offer(0)?;
    let options = OpenOptions { to_host_pages: 130, ..OpenOptions::default() };
    let channel = rig.guest.client.open(&offer, &options)?;
    Ok(Storage::start(channel, &StorageOptions::default())?.into_channel()?)
}

#[test]
fn a_million_pages() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = roomy(&mut rig)?;
    let many = vec![0x900; MOST_PAGES];
    let before = resident(&mut rig)?;
    for round in 0..=1_000_000 / MOST_PAGES {
        // As one range, behind one that needs a single page, and as a range a page.
        let answered = match round % 3 {
            0 => rig.command(&mut channel, read(8), &[(0, (MOST_PAGES * 4096) as u32, &many)]),
            1 => rig.command(&mut channel, write(8), &[(0, 4096, &many)]),
            _ => rig.command(&mut channel, read(8), &vec![(0, 4096, &many[..1]); MOST_PAGES / 2]),
        };
        // Behind a range that says that it is one page there may be anything.
        ensure!(answered? == (round % 3 == 1), "round {round}");
    }
    // As many as a count can say, without being there.
    for count in [1_000_000u32, 0x1000_0000, u32::MAX] {
        let mut header = gpa_direct_header(&[(0, 4096, &[0x900])]);
        header[4..8].copy_from_slice(&count.to_le_bytes());
        let request = StoragePacket::execute(read(8));
        rig.ask(&mut channel, PacketType::GPA_DIRECT, &header, request.as_bytes())?;
        let mut header = gpa_direct_header(&[(0, 4096, &[0x900])]);
        header[8..12].copy_from_slice(&count.to_le_bytes());
        rig.ask(&mut channel, PacketType::GPA_DIRECT, &header, request.as_bytes())?;
    }
    let grown = resident(&mut rig)?.saturating_sub(before);
    ensure!(grown < 8 << 10, "the device has grown by {grown} KiB");
    rig.recover(channel)
}

/// Memory of the victim's process in KiB, shared memory not counted.
fn resident(rig: &mut Rig) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", rig.vm.device("victim").pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_packet_longer_than_any() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = roomy(&mut rig)?;
    let many = vec![0x900; LONGEST / 8];
    let header = gpa_direct_header(&[(0, 4096, &many)]);
    let request = StoragePacket::execute(read(8));
    let packet = Outgoing::gpa_direct(1, &header);
    channel.send_waiting(&packet, &[&header, request.as_bytes()], LIMIT)?;
    // That channel is over, and only that one.
    rig.recover(channel)
}

#[test]
fn pages_that_overlap_and_repeat() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let platform = rig.vm.platform().clone();
    let blocks = 128;
    let pattern: Vec<u8> = (0..blocks * BLOCK).map(|n| (n / BLOCK) as u8 + 1).collect();
    let pages: Vec<u64> = (0x800..0x810).collect();
    platform.write(0x800 * PAGE, &pattern);
    ensure!(rig.command(&mut channel, write(blocks), &[(0, blocks * BLOCK, &pages)])?);
    // All into one page: whichever page of the disk lands last, it lands whole or in part, and nowhere else.
    platform.write(0x8ff * PAGE, &[0xc3; 3 * 4096]);
    ensure!(rig.command(&mut channel, read(blocks), &[(0, blocks * BLOCK, &[0x900; 16])])?);
    let mut seen = [0; 3 * 4096];
    platform.read(0x8ff * PAGE, &mut seen);
    ensure!(seen[..4096] == [0xc3; 4096] && seen[8192..] == [0xc3; 4096], "a neighbour has changed");
    ensure!(seen[4096..8192].iter().all(|byte| (1..=blocks as u8).contains(byte)), "not from the disk");
    // Ranges that overlap, in both directions.
    let ranges: [(u32, u32, &[u64]); 4] =
        [(0, 4096, &[0x900]), (512, 4096, &[0x900, 0x901]), (1024, 2048, &[0x900]), (0, 4096, &[0x900])];
    let total = 14_336 / BLOCK;
    ensure!(rig.command(&mut channel, read(total), &ranges)?);
    ensure!(rig.command(&mut channel, write(total), &ranges)?);
    rig.recover(channel)
}

/// A list is checked to its end before anything moves.
#[test]
fn lists_that_cross_the_end_of_memory() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let platform = rig.vm.platform().clone();
    let end = platform.ram().len() / PAGE;
    for inside in 1..12u64 {
        let pages: Vec<u64> = (end - inside..end + 2).collect();
        platform.write((end - inside) * PAGE, &vec![0x77; (inside * PAGE) as usize]);
        let blocks = pages.len() as u32 * 8;
        for request in [read(blocks), write(blocks)] {
            ensure!(!rig.command(&mut channel, request, &[(0, blocks * BLOCK, &pages)])?, "{inside} inside");
            let apart: Vec<(u32, u32, &[u64])> =
                pages.iter().map(|page| (0, 4096, std::slice::from_ref(page))).collect();
            ensure!(!rig.command(&mut channel, request, &apart)?, "{inside} inside, one by one");
        }
        let mut seen = vec![0; (inside * PAGE) as usize];
        platform.read((end - inside) * PAGE, &mut seen);
        ensure!(
            seen.iter().all(|byte| *byte == 0x77),
            "something moved before the list was known to be good"
        );
        let mut disk = vec![0; (blocks * BLOCK) as usize];
        std::os::unix::fs::FileExt::read_exact_at(&rig.disks[0].file, &mut disk, 0)?;
        ensure!(
            disk.iter().all(|byte| *byte != 0x77),
            "something was written before the list was known to be good"
        );
    }
    rig.recover(channel)
}

/// Commands whose CDB, request, list of memory and parameters each name a length of their own.
#[test]
fn commands_with_parameters_that_disagree() -> anyhow::Result<()> {
    const COMMANDS: [(&[u8], usize); 14] = [
        // The operation code with what makes it special, and where its number of blocks or bytes is.
        (&[0x89], 13),
        (&[0x41], 8),
        (&[0x93], 13),
        (&[0x93, 0x08], 13),
        (&[0x2f, 0x02], 8),
        (&[0x8f, 0x02], 13),
        (&[0x2e, 0x02], 8),
        (&[0x8e], 13),
        (&[0x42], 8),
        (&[0x5f, 0x00], 8),
        (&[0x5f, 0x06, 0x05], 8),
        (&[0x5e, 0x03], 8),
        (&[0x55, 0x10], 8),
        (&[0x15, 0x10], 4),
    ];
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let platform = rig.vm.platform().clone();
    let mut dice = Dice(61);
    for round in 0..2500 {
        let (start, place) = COMMANDS[dice.roll(14) as usize];
        let mut cdb = [0; 16];
        cdb[..start.len()].copy_from_slice(start);
        cdb[place] = [0, 1, 2, 8, 16, 24, 40, 255][dice.roll(8) as usize];
        if dice.roll(8) == 0 {
            cdb[dice.roll(16) as usize] ^= 1 << dice.roll(8);
        }
        let in_request = [0, 1, 8, 24, 511, 512, 1024, 4096][dice.roll(8) as usize];
        let in_memory = [1, 8, 24, 511, 512, 1024, 4096][dice.roll(7) as usize];
        let mut list = [0; 4096];
        match dice.roll(3) {
            0 => {}
            1 => dice.fill(&mut list),
            // Something like a header, and something like a key.
            _ => dice.fill(&mut list[..24]),
        }
        platform.write(0xfff * PAGE, &[0xc3; 3 * 4096]);
        platform.write(0x1000 * PAGE, &list);
        let direction = if start[0] == 0x5e { Direction::Read } else { Direction::Write };
        let mut request = ScsiRequest::new(0, &cdb, direction, in_request);
        if dice.roll(10) == 0 {
            request.data_in = dice.roll(4) as u8;
        }
        rig.command(&mut channel, request, &[(0, in_memory, &[0x1000])])
            .with_context(|| format!("round {round}: {cdb:02x?}"))?;
        let mut seen = [0; 3 * 4096];
        platform.read(0xfff * PAGE, &mut seen);
        ensure!(
            seen[..4096] == [0xc3; 4096] && seen[8192..] == [0xc3; 4096],
            "{cdb:02x?}: a neighbour has changed"
        );
        if direction == Direction::Read {
            let room = in_memory.min(in_request) as usize;
            ensure!(seen[4096 + room..8192] == list[room..], "{cdb:02x?}: more came than there is room for");
        } else {
            ensure!(
                request.data_in != 0 || seen[4096..8192] == list,
                "{cdb:02x?}: a parameter list has changed"
            );
        }
    }
    rig.recover(channel)
}
