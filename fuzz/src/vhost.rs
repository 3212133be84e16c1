//! The other face: messages of a hostile front end, and a hostile guest behind an honest one.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use ipc::event::Doorbell;
use ipc::shm::SharedMemory;
use vhost_face::testing::{Bench, FrontEnd, GuestRing};
use vhost_face::wire::{HEADER, Header, Message};
use vhost_face::{Chain, Face, Queues, Request, feature};
use vsp_storage::blk::Blk;
use vsp_storage::blk::wire::{kind, status};

use crate::Script;

const RAM: u64 = 1 << 18;
/// Steps of a script; more would only make it slow.
const STEPS: usize = 64;
/// What a disk that is only read holds.
const KEPT: u8 = 0xc3;
const DISK: u64 = 1 << 18;
/// Where an honest driver has header, status and data.
const AT: [u64; 3] = [0x1000, 0x2000, 0x4000];

/// A device that ends everything at once.
#[derive(Debug)]
struct Sink;

impl Face for Sink {
    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= 256);
    }

    fn set_config(&mut self, offset: usize, bytes: &[u8], queues: &mut Queues) -> Result<(), String> {
        assert!(offset + bytes.len() <= 256);
        queues.set_marks(bytes.first().copied().unwrap_or(0));
        Ok(())
    }

    fn request(&mut self, chain: &Chain, request: Request, queues: &mut Queues) {
        let mut bytes = [0; 64];
        for piece in chain.readable() {
            let len = (piece.len as usize).min(bytes.len());
            let _ = queues.ram().read(piece.gpa, &mut bytes[..len]);
        }
        request.complete(queues, 0);
    }
}

/// Descriptors that a front end may send, right ones and others.
fn descriptor(choice: u8) -> OwnedFd {
    match choice % 8 {
        0..=2 => SharedMemory::create("fuzz", RAM).expect("memory").into(),
        3 | 4 => Doorbell::new().expect("a bell").into(),
        5 => SharedMemory::create("short", 4096).expect("memory").into(),
        6 => File::open("/dev/null").expect("a device").into(),
        _ => File::open("/proc/self/stat").expect("a file").into(),
    }
}

/// A front end: each step is a message with any payload and any descriptors, or bytes that are none. Whatever it says, the process lives,
/// and an honest front end is served by it afterwards.
pub fn vhost_message(data: &[u8]) {
    let mut script = Script::new(data);
    let mut bench = Bench::silent(Sink, FrontEnd::new(RAM));
    for _ in 0..STEPS {
        let Some(code) = script.byte() else { break };
        let fds: Vec<OwnedFd> = match script.byte() {
            Some(count) => (0..count % 10).map(|n| descriptor(count / 10 + n)).collect(),
            None => break,
        };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().take(8).map(AsFd::as_fd).collect();
        let payload = script.string().unwrap_or_default();
        let sent = if code < 0xF0 {
            let message = vhost_face::testing::message((code % 48).into(), payload);
            bench.tell_raw(&message, &borrowed)
        } else {
            payload.is_empty() || bench.tell_raw(payload, &borrowed)
        };
        parse(code, payload, fds);
        bench.turn(2);
        if !sent || !bench.runtime.is_connected() {
            break;
        }
    }
    let mut again = 0;
    while bench.runtime.is_connected() {
        // Nothing that anybody can understand.
        bench.tell_raw(&[0xFF; HEADER], &[]);
        bench.turn(1);
        again += 1;
        assert!(again < 64, "a front end cannot be got rid of");
    }
    bench.reconnect();
    let mut ring = bench.start(0);
    ring.send(&[(AT[0], 16)], &[(AT[1], 1)]);
    bench.kick(0);
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
}

/// The parser alone, with the same bytes.
fn parse(code: u8, payload: &[u8], fds: Vec<OwnedFd>) {
    if let Some(bytes) = payload.first_chunk::<HEADER>()
        && let Ok(header) = Header::parse(bytes)
    {
        assert!(header.len <= vhost_face::wire::MAX_PAYLOAD);
    }
    match Message::parse((code % 48).into(), payload, fds) {
        Ok(Message::SetMemTable(table)) => assert!(table.len() <= vhost_face::wire::MAX_TABLE),
        Ok(Message::GetConfig { offset, len, .. }) => assert!(offset + len <= 256),
        Ok(Message::SetConfig { offset, bytes, .. }) => assert!(offset as usize + bytes.len() <= 256),
        _ => {}
    }
}

/// A file of this process, made anew for each input.
struct Disk(PathBuf);

impl Disk {
    fn new() -> Disk {
        let disk = Disk(PathBuf::from(format!("/dev/shm/bulkhead-fuzz-blk-{}", std::process::id())));
        fs::write(&disk.0, vec![KEPT; DISK as usize]).expect("a disk");
        disk
    }

    fn open(&self, read_only: bool) -> Blk {
        let options = format!("path={}{}", self.0.display(), if read_only { ",ro" } else { "" });
        Blk::open("fuzz", &[options.parse().expect("a disk")]).expect("it is there")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Addresses that a guest names: mostly RAM.
fn address(word: u16) -> u64 {
    match word % 16 {
        14 => RAM - u64::from(word >> 4) % 64,
        15 => u64::MAX - u64::from(word >> 4),
        // So low that no data reaches the ring: what a front end has to see afterwards is its own.
        _ => u64::from(word >> 4) * 61 % 0x10000,
    }
}

/// A guest of a block device that breaks every rule it likes. The process lives; a disk that is only read stays what it is, and every disk
/// as large as it is; who dies is followed by a process that goes on; an honest guest afterwards is served.
pub fn vhost_blk(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(traits) = script.byte() else { return };
    let (disk, read_only) = (Disk::new(), traits & 1 != 0);
    let features = if traits & 2 != 0 { feature::RING } else { feature::RING & !feature::EVENT_IDX };
    let blk = disk.open(read_only);
    let wanted = features | blk.features();
    let mut bench = Bench::new(blk, FrontEnd::new(RAM).with_features(wanted));
    let mut ring = bench.start(0);
    let mut life = Some(bench);
    for _ in 0..STEPS {
        if step(&mut script, &mut life, &mut ring, &disk, read_only).is_none() {
            break;
        }
    }
    let mut bench = life.expect("there is always somebody");
    assert!(bench.runtime.is_connected(), "a guest's doings are no fault of the front end's");
    let begin = std::time::Instant::now();
    while !bench.runtime.face().is_idle() {
        bench.runtime.turn(Some(Duration::from_millis(1))).expect("a turn");
        assert!(begin.elapsed() < Duration::from_secs(5), "something never ends");
    }
    drop(bench);
    let content = fs::read(&disk.0).expect("the disk");
    assert_eq!(content.len() as u64, DISK);
    assert!(!read_only || content.iter().all(|byte| *byte == KEPT), "a disk that is only read was written");
    honest(&disk);
}

fn step(
    script: &mut Script<'_>,
    life: &mut Option<Bench<Blk>>,
    ring: &mut GuestRing,
    disk: &Disk,
    read_only: bool,
) -> Option<()> {
    let bench = life.as_mut()?;
    match script.byte()? % 10 {
        0..=2 => {
            let (what, sector) = (script.byte()?, script.word()?);
            header(&bench.front_end, (what % 16).into(), u64::from(sector) % 600);
            let len = u32::from(script.byte()?) * 512;
            let data = (address(script.word()?), len);
            if ring.room() < 3 {
                bench.turn(2);
                return Some(());
            }
            match what {
                128.. => ring.send_indirect(0x3000, &[(AT[0], 16)], &[data, (AT[1], 1)]),
                64.. => ring.send(&[(AT[0], 16), data], &[(AT[1], 1)]),
                _ => ring.send(&[(AT[0], 16)], &[data, (AT[1], 1)]),
            };
            bench.kick(0);
        }
        3 => {
            let (index, place) = (script.byte()?, address(script.word()?));
            let (len, flags, next) = (script.word()?, script.byte()?, script.byte()?);
            ring.write_descriptor(
                (index % 16).into(),
                place,
                len.into(),
                (flags % 8).into(),
                (next % 20).into(),
            );
        }
        4 => {
            ring.offer((script.byte()? % 20).into());
            bench.kick(0);
        }
        5 => ring.set_available(script.word()?),
        6 => bench.turn(3),
        7 => {
            let (at, bytes) = (u64::from(script.word()?), script.string()?);
            let at = at.min(RAM - 0x4000);
            bench.front_end.memory.write(at as usize, bytes);
        }
        8 => {
            bench.stop(0);
            bench.restart(0);
            bench.turn(2);
        }
        _ => {
            // The dead one's last request has to have ended before the next one may have the disk.
            let front_end = life.take()?.leave();
            *life = Some(Bench::take_over(disk.open(read_only), front_end));
        }
    }
    Some(())
}

fn header(front_end: &FrontEnd, what: u32, sector: u64) {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&what.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    front_end.memory.write(AT[0] as usize, &bytes);
}

fn honest(disk: &Disk) {
    let blk = disk.open(false);
    let wanted = feature::RING | blk.features();
    let mut bench = Bench::new(blk, FrontEnd::new(RAM).with_features(wanted));
    let mut ring = bench.start(0);
    for what in [kind::OUT, kind::IN, kind::FLUSH] {
        header(&bench.front_end, what, 8);
        bench.front_end.memory.write(AT[1] as usize, &[0xFF]);
        match what {
            kind::OUT => ring.send(&[(AT[0], 16), (AT[2], 4096)], &[(AT[1], 1)]),
            kind::IN => ring.send(&[(AT[0], 16)], &[(AT[2], 4096), (AT[1], 1)]),
            _ => ring.send(&[(AT[0], 16)], &[(AT[1], 1)]),
        };
        bench.kick(0);
        assert_eq!(bench.wait(&mut ring, 1).len(), 1);
        let mut byte = [0xFF];
        bench.front_end.memory.read(AT[1] as usize, &mut byte);
        assert_eq!(byte, [status::OK]);
    }
}
