//! A whole SCSI controller: its runtime, real rings and ledgers, its io_uring, files. The input is a guest.
//!
//! What has to hold whatever the guest does: the process goes on; a guest that keeps to the ring's rules gets one answer
//! for each request; what it may not write is as it was; no file changes its size; and an honest guest that comes after it is served.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Instant;

use ipc::message::{STATUS_OK, ToCore, ToVsp};
use vmbus::packet::{Outgoing, PacketType, gpa_direct_header};
use vmbus::ring::{ControlWord, RingMemory};
use vsp::testing::{Bench, FakeCore, GuestEnd, PATIENCE};
use vsp_storage::controller::Controller;
use vsp_storage::wire::{self, Address, Direction, operation};

use crate::Script;

const PAGE: u64 = 4096;
const RAM_PAGES: u64 = 64;
/// The last pages of RAM are named by no command.
const GUARD: u64 = 4;
const VPS: u32 = 3;
/// Rings so small that packets wrap after a few.
const RING_PAGES: u32 = 2;
const PRIMARY: u32 = 1;
/// Steps of a script; more would only make it slow.
const STEPS: usize = 64;
/// What a disk that is only read holds.
const KEPT: u8 = 0xc3;
/// Page numbers that are not RAM, or hardly.
const ODD_PAGES: [u64; 8] =
    [RAM_PAGES, RAM_PAGES + 1, 0xf_ffff, 1 << 39, (1 << 40) - 1, 1 << 52, u64::MAX >> 12, u64::MAX];
/// What storvsc sends before commands.
const INTRODUCTION: [(u32, u16); 4] = [
    (operation::BEGIN_INITIALIZATION, 0),
    (operation::QUERY_PROTOCOL_VERSION, 0x0602),
    (operation::QUERY_PROPERTIES, 0),
    (operation::END_INITIALIZATION, 0),
];

/// The disks: options, bytes, and whether they are only read.
const DISKS: [(&str, u64, bool); 3] =
    [("lun=0", 1 << 20, false), ("lun=1,ro", 16 << 10, true), ("lun=5", (1 << 20) + 4096 + 512, false)];

/// Files of this process, made anew for each input.
struct Disk {
    path: PathBuf,
    file: File,
}

impl Disk {
    fn new(number: usize, bytes: u64, kept: bool) -> Disk {
        let path = PathBuf::from(format!("/dev/shm/bulkhead-fuzz-{}-{number}", std::process::id()));
        let content = vec![if kept { KEPT } else { 0 }; bytes as usize];
        if kept {
            fs::write(&path, content).expect("a disk");
        } else {
            File::create(&path).and_then(|file| file.set_len(bytes)).expect("a disk");
        }
        Disk { file: File::open(&path).expect("a disk"), path }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is left lies in memory until the next input.
        let _ = fs::remove_file(&self.path);
    }
}

/// A channel from the guest's side.
struct End {
    channel: u32,
    guest: GuestEnd,
    /// Requests without an answer.
    pending: BTreeSet<u64>,
    /// The guest has kept to the ring's rules so far.
    honest: bool,
}

struct Rig {
    bench: Option<Bench<Controller>>,
    disks: Vec<Disk>,
    ends: Vec<End>,
    next_id: u64,
    next_channel: u32,
    /// Page lists were made of anything.
    wild_lists: bool,
}

/// Steps of a guest; see [`step`].
pub fn device(data: &[u8]) {
    let disks = DISKS.iter().enumerate().map(|(n, (_, bytes, kept))| Disk::new(n, *bytes, *kept)).collect();
    let mut rig =
        Rig { bench: None, disks, ends: Vec::new(), next_id: 1, next_channel: PRIMARY, wild_lists: false };
    rig.bench = Some(Bench::with_vps(rig.controller(), RAM_PAGES * PAGE, VPS));
    rig.open(0);
    rig.introduce();
    let mut script = Script::new(data);
    for _ in 0..STEPS {
        if step(&mut rig, &mut script).is_none() {
            break;
        }
    }
    rig.finish();
}

/// One step: a byte says what, and what follows is its own.
fn step(rig: &mut Rig, script: &mut Script<'_>) -> Option<()> {
    let what = script.byte()?;
    let end = usize::from(what >> 4) % rig.ends.len().max(1);
    match what % 16 {
        0..=4 => {
            let (lun, memory) = (script.byte()?, script.byte()?);
            let cdb = script.string()?;
            let length = script.dword()? % (1 << 21);
            rig.command(end, lun, memory, cdb, length, script.string()?);
        }
        5 => {
            // A parameter list, or data to write or compare.
            let (page, offset) =
                (u64::from(script.byte()?) % (RAM_PAGES - GUARD), u64::from(script.word()?) % PAGE);
            let bytes = script.string()?;
            let (at, end) = (page * PAGE + offset, (RAM_PAGES - GUARD) * PAGE);
            let bytes = &bytes[..bytes.len().min((end - at) as usize)];
            rig.core().ram.as_ref().expect("RAM").write(at, bytes).expect("inside RAM");
        }
        6 | 7 => rig.turns(1),
        8 => rig.turns(4),
        9 => {
            let (kind, header) = (script.word()?, script.string()?);
            rig.packet(end, kind, header, script.string()?);
        }
        10 => {
            let (operation, word) = (u32::from(script.byte()?) % 16, script.word()?);
            rig.send(end, &[&wire::simple(operation, word)], &[], PacketType::IN_BAND);
        }
        11 => rig.damage(end, script.byte()?, script.word()?, script.string()?),
        12 => rig.close(end),
        13 => rig.open(script.byte()? % 4),
        14 => rig.introduce(),
        _ => rig.swap(),
    }
    Some(())
}

impl Rig {
    fn bench(&mut self) -> &mut Bench<Controller> {
        self.bench.as_mut().expect("there is one between two steps")
    }

    fn core(&mut self) -> &mut FakeCore {
        &mut self.bench().core
    }

    fn controller(&self) -> Controller {
        let spec = |(disk, (options, ..)): (&Disk, &(&str, u64, bool))| {
            format!("path={},{options}", disk.path.display()).parse().expect("a disk's options")
        };
        let specs: Vec<_> = self.disks.iter().zip(&DISKS).map(spec).collect();
        Controller::open("fuzz", &specs).expect("a controller")
    }

    /// Opens the channel number `subchannel`, if it is not open; a sub-channel only beside its primary one, as in a real core.
    fn open(&mut self, subchannel: u8) {
        let has_primary = self.ends.iter().any(|end| end.channel == PRIMARY);
        let channel = if subchannel == 0 { PRIMARY } else { self.next_channel + 1 };
        if (subchannel == 0) == has_primary || self.ends.len() == 4 {
            return;
        }
        self.next_channel = self.next_channel.max(channel);
        let guest = self.core().open_subchannel(channel, subchannel.into(), RING_PAGES);
        let status = self.answer(|answer| match answer {
            ToCore::OpenResult { channel: opened, status, .. } if *opened == channel => Some(*status),
            _ => None,
        });
        match status {
            STATUS_OK => self.ends.push(End { channel, guest, pending: BTreeSet::new(), honest: true }),
            _ => self.core().forget(channel),
        }
    }

    /// As an honest driver begins. Its answers may say no.
    fn introduce(&mut self) {
        let Some(primary) = self.ends.iter().position(|end| end.channel == PRIMARY) else { return };
        for (operation, word) in INTRODUCTION {
            self.send(primary, &[&wire::simple(operation, word)], &[], PacketType::IN_BAND);
            self.turns(2);
        }
    }

    /// Sends a packet of the ring's form. A guest that sends to a channel that it has broken is as good as silent.
    fn send(&mut self, end: usize, parts: &[&[u8]], header: &[u8], kind: PacketType) {
        self.next_id += 1;
        let id = self.next_id;
        let Some(end) = self.ends.get_mut(end) else { return };
        let packet = if header.is_empty() {
            Outgoing { packet_type: kind, ..Outgoing::in_band(id, true) }
        } else {
            Outgoing { packet_type: kind, ..Outgoing::gpa_direct(id, header) }
        };
        let mut all = vec![header];
        all.extend_from_slice(parts);
        if end.guest.writer.push(&packet, &all).is_err() {
            return;
        }
        if end.guest.writer.publish() {
            end.guest.kick.signal().expect("rung");
        }
        end.pending.insert(id);
    }

    /// A command over pages that are named one by one, each by a byte. `memory`: the direction, the buffer's offset in its
    /// first page and in how many ranges it comes.
    fn command(&mut self, end: usize, lun: u8, memory: u8, cdb: &[u8], length: u32, pages: &[u8]) {
        let direction = [Direction::FromDevice, Direction::ToDevice, Direction::None, Direction::FromDevice]
            [usize::from(memory % 4)];
        let target = if lun >= 0xf0 { lun & 3 } else { 0 };
        let address = Address { path: lun / 0xfc, target, lun: lun % 16 };
        // As long as the field allows, and longer.
        let packet = wire::command(address, direction, &cdb[..cdb.len().min(24)], length);
        let name = |byte: u8| match byte {
            0xf8.. => ODD_PAGES[usize::from(byte - 0xf8)],
            byte => u64::from(byte) % (RAM_PAGES - GUARD),
        };
        let pages: Vec<u64> = pages.iter().map(|byte| name(*byte)).collect();
        if pages.is_empty() {
            return self.send(end, &[&packet], &[], PacketType::IN_BAND);
        }
        let offset = [0, 0, 512, 4095][usize::from(memory >> 2) % 4];
        let per_range = [pages.len(), 1, 2, 3][usize::from(memory >> 4) % 4];
        let short = u32::from(memory >> 6) * 256;
        let ranges: Vec<(u32, u32, &[u64])> = pages
            .chunks(per_range)
            .map(|pages| (offset, (pages.len() as u32 * PAGE as u32 - offset).saturating_sub(short), pages))
            .collect();
        self.send(end, &[&packet], &gpa_direct_header(&ranges), PacketType::GPA_DIRECT);
    }

    /// Any packet that the ring lets through.
    fn packet(&mut self, end: usize, kind: u16, header: &[u8], payload: &[u8]) {
        self.wild_lists = true;
        let kind = match kind % 8 {
            0..=2 => PacketType::GPA_DIRECT,
            3 => PacketType::IN_BAND,
            4 => PacketType(7),
            _ => PacketType(kind),
        };
        self.send(end, &[payload], &header[..header.len() / 8 * 8], kind);
    }

    /// Breaks the ring's rules: control words of either ring, what lies in the one to the host.
    fn damage(&mut self, end: usize, place: u8, value: u16, bytes: &[u8]) {
        self.wild_lists = true;
        let Some(end) = self.ends.get_mut(end) else { return };
        end.honest = false;
        let rings = [end.guest.writer.memory(), end.guest.reader.memory()];
        let word = [ControlWord::WriteIndex, ControlWord::ReadIndex, ControlWord::PendingSendSize];
        match place % 8 {
            0..=2 => {
                let offset = u32::from(value) % rings[0].data_len();
                rings[0].write(offset, bytes);
            }
            place @ 3..=5 => rings[0].store(word[usize::from(place - 3)], value.into()),
            place => rings[1].store(word[usize::from(place - 5)], value.into()),
        }
        end.guest.kick.signal().expect("rung");
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.bench().turn(0);
            self.hear();
            self.take_answers();
        }
    }

    /// What the device tells the core by itself.
    fn hear(&mut self) {
        while let Some(message) = self.core().try_answer() {
            assert!(matches!(message, ToCore::OfferSubchannels { .. }), "{message:?}");
        }
    }

    /// Takes turns until the core has this answer.
    fn answer<T>(&mut self, mut wanted: impl FnMut(&ToCore) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            while let Some(message) = self.core().try_answer() {
                if let Some(found) = wanted(&message) {
                    return found;
                }
                assert!(matches!(message, ToCore::OfferSubchannels { .. }), "{message:?}");
            }
            assert!(start.elapsed() < PATIENCE, "the device does not answer the core");
            self.bench().turn(1);
            self.take_answers();
        }
    }

    fn take_answers(&mut self) {
        let mut scratch = Vec::new();
        for end in &mut self.ends {
            while let Ok(Some(header)) = end.guest.reader.next(&mut scratch) {
                if end.guest.reader.publish() {
                    end.guest.kick.signal().expect("rung");
                }
                if !end.honest {
                    continue;
                }
                if header.packet_type == PacketType::IN_BAND {
                    continue;
                }
                assert_eq!(header.packet_type, PacketType::COMPLETION);
                let id = header.transaction_id;
                assert!(end.pending.remove(&id), "request {id} is answered twice, or never was");
                assert!(header.payload(&scratch).len() >= wire::PACKET_LEN);
            }
        }
    }

    /// Waits until honest guests have all their answers.
    fn settle(&mut self) {
        let start = Instant::now();
        while self.ends.iter().any(|end| end.honest && !end.pending.is_empty()) {
            assert!(start.elapsed() < PATIENCE, "a request is never answered");
            self.bench().turn(1);
            self.hear();
            self.take_answers();
        }
    }

    /// Closes a channel; with the primary one go all, as the bus has it.
    fn close(&mut self, end: usize) {
        let Some(end) = self.ends.get(end) else { return };
        let all = end.channel == PRIMARY;
        let mut channels: Vec<u32> = self
            .ends
            .iter()
            .map(|end| end.channel)
            .filter(|channel| all || *channel == end.channel)
            .collect();
        channels.reverse();
        for channel in channels {
            self.core().close(channel);
            self.answer(|answer| {
                matches!(answer, ToCore::Closed { channel: closed } if *closed == channel).then_some(())
            });
            self.ends.retain(|end| end.channel != channel);
        }
    }

    /// Another process takes over, if there is nothing in the rings that it would refuse.
    fn swap(&mut self) {
        if self.ends.iter().any(|end| !end.honest) {
            return;
        }
        self.hand_over();
        let Bench { core, runtime } = self.bench.take().expect("there is one between two steps");
        drop(runtime);
        self.bench = Some(Bench::take_over(core, self.controller()));
    }

    fn hand_over(&mut self) {
        self.core().send(&ToVsp::Quiesce {});
        self.answer(|answer| matches!(answer, ToCore::Quiesced {}).then_some(()));
    }

    fn finish(mut self) {
        self.settle();
        while !self.ends.is_empty() {
            self.close(0);
        }
        // A guest that begins anew.
        self.open(0);
        self.introduce();
        let inquiry = wire::command(
            Address { path: 0, target: 0, lun: 0 },
            Direction::FromDevice,
            &[0x12, 0, 0, 0, 36, 0],
            36,
        );
        let header = gpa_direct_header(&[(0, 36, &[1])]);
        self.send(0, &[&inquiry], &header, PacketType::GPA_DIRECT);
        self.settle();
        let mut answer = [0; 16];
        let ram = self.core().ram.as_ref().expect("RAM");
        ram.read(PAGE + 8, &mut answer).expect("inside RAM");
        assert_eq!(&answer[..8], b"Msft    ", "an honest guest is served");
        if !self.wild_lists {
            let mut guard = vec![0; (GUARD * PAGE) as usize];
            let ram = self.core().ram.as_ref().expect("RAM");
            ram.read((RAM_PAGES - GUARD) * PAGE, &mut guard).expect("inside RAM");
            assert!(guard.iter().all(|byte| *byte == 0), "memory that was not named has changed");
        }
        self.hand_over();
        for (disk, (_, bytes, kept)) in self.disks.iter().zip(DISKS) {
            assert_eq!(disk.file.metadata().expect("a disk").len(), bytes, "a disk has another size");
            if kept {
                let content = fs::read(&disk.path).expect("a disk");
                assert!(content.iter().all(|byte| *byte == KEPT), "a disk that is only read was written");
            }
        }
    }
}
