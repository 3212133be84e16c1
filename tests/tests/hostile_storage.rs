//! A guest that breaks the rules of storage. Each request is answered once, whatever it is; the process lives on, serves
//! honest requests over a channel that is opened again, and a second controller never notices.

mod hostile;

use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::steps::Dice;
use vmbus::{
    packet::{Outgoing, PacketType, gpa_direct_header},
    ring::PushError,
};
use vsc::{
    Error, Platform,
    storage::{
        Storage, StorageOptions,
        scsi::unmap_list,
        wire::{self, Direction, ScsiRequest, StoragePacket},
    },
};
use zerocopy::IntoBytes;

use hostile::{BLOCK, PAGE, Rig, honest, read, succeeded, write};

#[test]
fn memory_that_is_not_the_guests() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let pages = rig.vm.platform().ram().len() / PAGE;
    for pfn in [pages, pages + 1, 0xc_0000, 0xf_ffff, 0x10_0000, 1 << 39, (1 << 40) - 1, 1 << 52, u64::MAX] {
        for request in [read(8), write(8)] {
            ensure!(!rig.command(&mut channel, request, &[(0, 4096, &[pfn])])?, "page {pfn:#x}");
        }
        let sixteen = [100, pfn];
        ensure!(!rig.command(&mut channel, read(16), &[(0, 8192, &sixteen)])?, "page {pfn:#x} as the second");
    }
    // The last page is memory, and what is behind it is not.
    ensure!(rig.command(&mut channel, read(8), &[(0, 4096, &[pages - 1])])?);
    ensure!(!rig.command(&mut channel, read(8), &[(512, 4096, &[pages - 1, pages])])?);
    rig.recover(channel)
}

#[test]
fn page_lists_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let request = StoragePacket::execute(read(8));
    // Each is the whole type header: number of ranges, then length, offset and pages of each.
    let list = |count: u32, rest: &[u32]| {
        [&[0, count], rest].concat().iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
    };
    let lists = [
        list(0, &[]),
        list(1, &[]),
        list(1, &[4096, 0]),
        list(1, &[4096, 0, 100]),
        list(2, &[4096, 0, 100, 0]),
        list(u32::MAX, &[4096, 0, 100, 0]),
        list(1, &[0, 0, 100, 0]),
        list(1, &[4096, 4096, 100, 0]),
        list(1, &[4096, u32::MAX, 100, 0]),
        list(1, &[u32::MAX, 0, 100, 0]),
        list(1, &[u32::MAX, 4095, 100, 0]),
        list(1, &[4097, 0, 100, 0]),
        list(1, &[512, 0, 100, 0]),
    ];
    for (n, header) in lists.iter().enumerate() {
        let header = &header[..header.len() / 8 * 8];
        let answer = rig.ask(&mut channel, PacketType::GPA_DIRECT, header, request.as_bytes())?;
        ensure!(!succeeded(&answer), "list {n}");
    }
    // Many ranges, many pages, the same page again and again.
    let many = [100u64; 2000];
    for pages in [1, 128, 129, 256, 2000] {
        let range = (0, pages as u32 * 4096, &many[..pages]);
        let fits = rig.command(&mut channel, read(8), &[range])?;
        ensure!(fits == (pages <= 129) || pages == 256, "{pages} pages");
    }
    let ranges = vec![(0, 4096, &many[..1]); 500];
    rig.command(&mut channel, read(8), &ranges)?;
    rig.recover(channel)
}

#[test]
fn lengths_that_disagree() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let (guard, canary) = (0x1000u64, [0xc3; 4096]);
    let blank = [0x11; 4096];
    let mut dice = Dice(5);
    for _ in 0..400 {
        // The command, the request and the memory each name their own number of bytes.
        let in_command = dice.roll(20);
        let in_request = dice.roll(20 * BLOCK);
        let in_memory = 1 + dice.roll(4096);
        let platform = rig.vm.platform().clone();
        platform.write((guard - 1) * PAGE, &canary);
        platform.write(guard * PAGE, &blank);
        platform.write((guard + 1) * PAGE, &canary);
        let mut request = if dice.roll(2) == 0 { read(in_command) } else { write(in_command) };
        request.transfer_len = in_request;
        request.data_in = dice.roll(4) as u8;
        let reading = request.cdb_or_sense[0] == 0x88;
        let moved = rig.command(&mut channel, request, &[(0, in_memory, &[guard])])?;
        ensure!(
            !moved || in_command * BLOCK <= in_memory.min(in_request),
            "more was moved than there is room for"
        );
        for page in [guard - 1, guard + 1] {
            let mut seen = [0; 4096];
            platform.read(page * PAGE, &mut seen);
            ensure!(seen == canary, "memory that was not named has changed");
        }
        let mut seen = [0; 4096];
        platform.read(guard * PAGE, &mut seen);
        let kept = if reading { in_memory.min(in_request) as usize } else { 0 };
        ensure!(seen[kept..] == blank[kept..], "memory behind what was named has changed");
    }
    rig.recover(channel)
}

#[test]
fn every_command_with_anything_in_it() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let mut dice = Dice(17);
    let pages: Vec<u64> = (0x800..0x820).collect();
    for round in 0..6 {
        for opcode in 0..=255 {
            let mut cdb = [0; 16];
            dice.fill(&mut cdb);
            if round % 2 == 0 {
                // Mostly zero: likelier to be a command.
                (0..12).for_each(|_| cdb[dice.roll(16) as usize] = 0);
            }
            cdb[0] = opcode;
            let direction = [Direction::None, Direction::Read, Direction::Write][dice.roll(3) as usize];
            let len = [0, 1, 24, 36, 512, 4096, 65536, 131_072][dice.roll(8) as usize];
            let mut request = ScsiRequest::new(0, &cdb, direction, len);
            request.cdb_len = dice.roll(256) as u8;
            request.sense_len = dice.roll(256) as u8;
            if dice.roll(3) == 0 {
                request.lun = dice.roll(256) as u8;
            }
            if len == 0 {
                let packet = StoragePacket::execute(request);
                rig.ask(&mut channel, PacketType::IN_BAND, &[], packet.as_bytes())?;
            } else {
                let used = &pages[..len.div_ceil(4096) as usize];
                rig.command(&mut channel, request, &[(0, len, used)])
                    .with_context(|| format!("opcode {opcode:#04x}"))?;
            }
        }
        rig.bystander_works()?;
    }
    rig.recover(channel)
}

#[test]
fn units_that_do_not_exist() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    for (path, target, lun) in [(0, 0, 1), (0, 0, 255), (0, 1, 0), (1, 0, 0), (255, 255, 255)] {
        for request in [read(8), write(8)] {
            let request = ScsiRequest { path, target, lun, ..request };
            ensure!(!rig.command(&mut channel, request, &[(0, 4096, &[100])])?, "{path}:{target}:{lun}");
        }
    }
    // The port means nothing.
    ensure!(rig.command(&mut channel, ScsiRequest { port: 77, ..read(8) }, &[(0, 4096, &[100])])?);
    rig.recover(channel)
}

#[test]
fn parameter_lists_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    let mut dice = Dice(23);
    let good = unmap_list(&[(8, 8), (100, 4)]);
    for round in 0..300 {
        let mut list = good.clone();
        match round % 3 {
            0 => list.iter_mut().for_each(|b| *b = dice.number() as u8),
            1 => list[..8].iter_mut().for_each(|b| *b = dice.number() as u8),
            _ => list.truncate(dice.roll(40) as usize + 1),
        }
        rig.vm.platform().write(0x900 * PAGE, &list);
        let mut cdb = [0; 10];
        cdb[0] = 0x42;
        let claimed = if round % 2 == 0 { list.len() as u16 } else { dice.number() as u16 };
        cdb[7..9].copy_from_slice(&claimed.to_be_bytes());
        let len = list.len() as u32;
        let request = ScsiRequest::new(0, &cdb, Direction::Write, len);
        rig.command(&mut channel, request, &[(0, len, &[0x900])])?;
    }
    rig.recover(channel)
}

#[test]
fn requests_at_the_wrong_time() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.open()?;
    let operations = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, u32::MAX];
    for operation in operations {
        let answer =
            rig.ask(&mut channel, PacketType::IN_BAND, &[], StoragePacket::new(operation).as_bytes())?;
        ensure!(answer.status != 0, "operation {operation} before the introduction");
    }
    for request in [read(8), write(8)] {
        ensure!(
            !rig.command(&mut channel, request, &[(0, 4096, &[100])])?,
            "a command before the introduction"
        );
    }
    // Twice, in the wrong order, and again in the middle of things.
    let mut storage = Storage::start(channel, &StorageOptions::default())?;
    honest(&mut storage)?;
    let mut channel = storage.into_channel()?;
    for operation in [7, 7, 8, 10, 9, 9, 8, 8, 7, 9] {
        rig.ask(&mut channel, PacketType::IN_BAND, &[], StoragePacket::new(operation).as_bytes())?;
    }
    ensure!(!rig.command(&mut channel, read(8), &[(0, 4096, &[100])])?, "it has begun anew and not ended");
    let mut storage = Storage::start(channel, &StorageOptions::default())?;
    honest(&mut storage)?;
    let channel = storage.into_channel()?;
    rig.recover(channel)
}

#[test]
fn packets_of_any_kind_and_length() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut dice = Dice(31);
    for introduced in [false, true] {
        let mut channel = if introduced { rig.ready()? } else { rig.open()? };
        for _ in 0..1500 {
            let mut payload = vec![0; dice.roll(200) as usize];
            dice.fill(&mut payload);
            if dice.roll(2) == 0
                && let Some(operation) = payload.first_chunk_mut::<4>()
            {
                *operation = dice.roll(16).to_le_bytes();
            }
            let mut header = vec![0; 8 * dice.roll(12) as usize];
            dice.fill(&mut header);
            if dice.roll(2) == 0
                && let Some(count) = header.get_mut(4..8)
            {
                count.copy_from_slice(&dice.roll(4).to_le_bytes());
            }
            let kind = PacketType([6, 7, 9, 11, dice.roll(1 << 16) as u16][dice.roll(5) as usize]);
            rig.ask(&mut channel, kind, &header, &payload).with_context(|| format!("{kind:?}"))?;
        }
        rig.recover(channel)?;
    }
    Ok(())
}

#[test]
fn data_in_pages_that_others_use() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.ready()?;
    // Into its own rings, the bystander's, and the SynIC pages: what a device writes there is behind the pages that the
    // guest sees, or the guest's own harm. The core and the other device do not depend on it.
    let own = channel.gpadl().address / PAGE;
    let other = rig.bystander.channel().gpadl().address / PAGE;
    for pfn in [own, own + 1, own + 40, other, other + 1, other + 40] {
        for request in [read(8), write(8)] {
            rig.command(&mut channel, request, &[(0, 4096, &[pfn])])?;
        }
        rig.bystander_works()?;
    }
    rig.recover(channel)
}

#[test]
fn closing_in_the_middle_of_a_storm() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let pages: Vec<u64> = (0x800..0x840).collect();
    for round in 0..12u32 {
        let mut channel = rig.ready()?;
        let mut sent = 0;
        for id in 0..200 {
            let request = if id % 2 == 0 { read(512) } else { write(512) };
            let request = ScsiRequest { cdb_or_sense: request.cdb_or_sense, ..request };
            let packet = StoragePacket::execute(request);
            let header = gpa_direct_header(&[(0, 512 * BLOCK, &pages)]);
            match channel.send(&Outgoing::gpa_direct(id, &header), &[&header, packet.as_bytes()]) {
                Ok(()) => sent += 1,
                Err(Error::Push(PushError::Full { .. })) => break,
                Err(e) => return Err(e.into()),
            }
            if id % 50 == 49 {
                let reset = StoragePacket::new(wire::OPERATION_RESET_BUS);
                let _ = channel.send(&Outgoing::in_band(1000 + id, true), &[reset.as_bytes()]);
            }
        }
        ensure!(sent > 20, "{sent} requests are no storm");
        std::thread::sleep(Duration::from_micros(u64::from(round) * 300));
        rig.recover(channel).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
