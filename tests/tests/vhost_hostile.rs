//! A hostile front end and a hostile guest. What a front end says wrong ends its connection, what a guest puts into its rings wrong
//! stops that ring or fails that request; the daemon lives on, and serves the next front end as if nothing had been.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::disk::Disk;
use bulkhead_tests::steps::Dice;
use bulkhead_tests::vhost::blk::{Blk, Op};
use bulkhead_tests::vhost::front::{Options, Tell};
use bulkhead_tests::vhost::memory::{self, OFFSET};
use bulkhead_tests::vhost::protocol::{
    self, Header, NEED_REPLY, Region, VERSION, feature, protocol_feature, request,
};
use bulkhead_tests::vhost::ring::{Place, Wires};
use bulkhead_tests::vhost::{Daemon, Front, Line, Memory};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SIZE: u64 = 16 << 20;
const MEMORY: u64 = 16 << 20;
/// How long nothing has to come of something.
const MOMENT: Duration = Duration::from_millis(100);

struct Rig {
    daemon: Daemon,
    memory: Arc<Memory>,
    _disk: Disk,
}

impl Rig {
    fn new() -> anyhow::Result<Self> {
        let disk = Disk::new(SIZE)?;
        let builder = Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]);
        Ok(Self { daemon: builder.quiet().start()?, memory: Memory::new(MEMORY)?, _disk: disk })
    }

    fn line(&self) -> anyhow::Result<Line> {
        Line::connect(&self.daemon.socket())
    }

    /// A line that has been introduced, with acknowledgements and whatever else there is.
    fn introduced(&self) -> anyhow::Result<Line> {
        let line = self.line()?;
        let features = line.ask_number(request::GET_FEATURES)?;
        let wanted = protocol_feature::CONFIGURE_MEM_SLOTS | Options::default().protocol;
        let protocol = line.ask_number(request::GET_PROTOCOL_FEATURES)? & wanted;
        ensure!(protocol == wanted, "missing: {:#x}", wanted & !protocol);
        line.send(request::SET_PROTOCOL_FEATURES, &protocol::number(protocol), &[])?;
        line.send(request::SET_OWNER, &[], &[])?;
        ensure!(line.order(request::SET_FEATURES, &protocol::number(features), &[])?);
        Ok(line)
    }

    /// One that has memory too.
    fn with_memory(&self) -> anyhow::Result<Line> {
        let line = self.introduced()?;
        let table = protocol::table(&[self.memory.region()]);
        ensure!(line.order(request::SET_MEM_TABLE, &table, &[self.memory.fd()])?);
        Ok(line)
    }

    /// An honest front end comes next, and all is well.
    fn recovers(&mut self) -> anyhow::Result<()> {
        self.daemon.lives()?;
        let memory = Memory::new(MEMORY)?;
        let (_front, mut rings) = Front::connect(&self.daemon.socket(), &memory, Options::default())?;
        let mut blk = Blk::new(&memory, rings.pop().context("no ring")?, 4, true)?;
        blk.writes(8, &[0x5c; 4096])?;
        ensure!(blk.reads(8, 4096)? == [0x5c; 4096]);
        self.daemon.lives()
    }
}

/// It was refused: either by the answer or by the end of the connection.
fn refused(line: &Line, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    match line.order(request, payload, fds) {
        Ok(done) => !done,
        Err(_) => line.ends(),
    }
}

#[test]
fn messages_that_are_none() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let header = |request, flags, size| Header { request, flags, size }.bytes().to_vec();
    let messages = [
        ("a version that is not", header(request::GET_FEATURES, 2, 0)),
        ("no version", header(request::GET_FEATURES, 0, 0)),
        ("an answer", header(request::GET_FEATURES, VERSION | 4, 0)),
        ("request 0", header(0, VERSION, 0)),
        ("a request that is not", header(request::BEYOND, VERSION, 0)),
        ("the last number", header(u32::MAX, VERSION, 0)),
        ("a payload where none is", [header(request::GET_FEATURES, VERSION, 8), vec![0; 8]].concat()),
        ("no payload", header(request::SET_FEATURES, VERSION, 0)),
        ("half a payload", [header(request::SET_FEATURES, VERSION, 4), vec![0; 4]].concat()),
        ("a long one", [header(request::SET_FEATURES, VERSION, 4096), vec![0; 4096]].concat()),
        ("more than there is", header(request::SET_MEM_TABLE, VERSION, u32::MAX)),
    ];
    for (what, bytes) in messages {
        let line = rig.line()?;
        line.send_raw(&bytes, &[])?;
        ensure!(line.ends(), "{what} is taken");
    }
    // Half a message, and gone; half a header, and gone; nothing, and gone.
    for part in [0, 5, 12, 15] {
        let bytes = [header(request::SET_FEATURES, VERSION, 8), vec![0; 8]].concat();
        rig.line()?.send_raw(&bytes[..part], &[])?;
        rig.daemon.lives()?;
    }
    rig.recovers()
}

#[test]
fn a_message_in_pieces_is_a_message() -> anyhow::Result<()> {
    let rig = Rig::new()?;
    let line = rig.line()?;
    for byte in (Header { request: request::GET_FEATURES, flags: VERSION, size: 0 }).bytes() {
        line.send_raw(&[byte], &[])?;
        std::thread::sleep(Duration::from_millis(2));
    }
    ensure!(line.answer(request::GET_FEATURES)?.number()? != 0);
    Ok(())
}

#[test]
fn noise() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut dice = Dice(3);
    for round in 0..200 {
        let line = if round % 2 == 0 { rig.line()? } else { rig.with_memory()? };
        for _ in 0..dice.roll(6) {
            let mut payload = vec![0; dice.roll(80) as usize];
            dice.fill(&mut payload);
            let request = dice.roll(45);
            let null = File::open("/dev/null")?;
            let fds = vec![null.as_fd(); dice.roll(3) as usize];
            if line.send_with(request, dice.roll(4) << 2 & NEED_REPLY, &payload, &fds).is_err() {
                break;
            }
        }
        drop(line);
        rig.daemon.lives().with_context(|| format!("round {round}"))?;
    }
    rig.recovers()
}

#[test]
fn features_that_were_not_offered() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let offered = rig.line()?.ask_number(request::GET_FEATURES)?;
    let not_offered = (0..64).find(|bit| offered & 1 << bit == 0).context("everything is offered")?;
    let line = rig.introduced()?;
    ensure!(refused(&line, request::SET_FEATURES, &protocol::number(offered | 1 << not_offered), &[]));
    ensure!(refused(&rig.introduced()?, request::SET_FEATURES, &protocol::number(u64::MAX), &[]));
    let line = rig.line()?;
    line.send(request::SET_PROTOCOL_FEATURES, &protocol::number(u64::MAX), &[])?;
    ensure!(line.ends());
    rig.recovers()
}

#[test]
fn memory_tables_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let (memory, whole) = (Arc::clone(&rig.memory), rig.memory.region());
    let fd = memory.fd();
    let second = Region { guest: whole.guest + whole.size, user: whole.user + whole.size, ..whole };
    let tables: [(&str, Vec<u8>, usize); 12] = [
        ("more regions than are said", protocol::table_of(1, &[whole, second]), 2),
        ("fewer", protocol::table_of(3, &[whole]), 1),
        ("a million", protocol::table_of(1 << 20, &[whole]), 1),
        ("no descriptor", protocol::table(&[whole]), 0),
        ("too many descriptors", protocol::table(&[whole]), 2),
        ("of no size", protocol::table(&[Region { size: 0, ..whole }]), 1),
        ("longer than the file", protocol::table(&[Region { size: whole.size + 4096, ..whole }]), 1),
        ("behind the file", protocol::table(&[Region { offset: 1 << 40, ..whole }]), 1),
        ("around the end", protocol::table(&[Region { offset: u64::MAX - 4095, ..whole }]), 1),
        ("around the guest's end", protocol::table(&[Region { guest: u64::MAX - 4095, ..whole }]), 1),
        ("around the user's end", protocol::table(&[Region { user: u64::MAX - 4095, ..whole }]), 1),
        ("over each other", protocol::table(&[whole, Region { user: second.user, ..whole }]), 2),
    ];
    for (what, payload, fds) in tables {
        let line = rig.introduced()?;
        ensure!(refused(&line, request::SET_MEM_TABLE, &payload, &vec![fd; fds]), "{what} is taken");
        rig.daemon.lives().context(what)?;
    }
    // What is no memory at all.
    let others: [(&str, OwnedFd); 4] = [
        ("/dev/null", File::open("/dev/null")?.into()),
        ("a directory", File::open("/")?.into()),
        ("a socket", std::os::unix::net::UnixStream::pair()?.0.into()),
        ("a file that is only read", File::open(std::env::current_exe()?)?.into()),
    ];
    for (what, other) in &others {
        let line = rig.introduced()?;
        let table = protocol::table(&[Region { offset: 0, size: 4096, ..whole }]);
        ensure!(refused(&line, request::SET_MEM_TABLE, &table, &[other.as_fd()]), "{what} is memory");
        rig.daemon.lives().context(*what)?;
    }
    rig.recovers()
}

#[test]
fn regions_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let (memory, whole) = (Arc::clone(&rig.memory), rig.memory.region());
    let fd = memory.fd();
    let half = Region { size: whole.size / 2, ..whole };
    let add = |line: &Line, region: &Region, fds: &[BorrowedFd<'_>]| {
        refused(line, request::ADD_MEM_REG, &protocol::one_region(region), fds)
    };
    let line = rig.introduced()?;
    let slots = line.ask_number(request::GET_MAX_MEM_SLOTS)?;
    ensure!((1..=512).contains(&slots), "{slots} slots");
    ensure!(!add(&line, &half, &[fd]), "an honest region is refused");
    ensure!(add(&line, &half, &[fd]), "the same once more");
    drop(line);
    let bad = [
        ("over it", Region { guest: whole.guest + 4096, user: 1 << 40, ..half }, 1),
        ("without a file", Region { guest: 1 << 40, user: 1 << 40, ..half }, 0),
        ("with two files", Region { guest: 1 << 40, user: 1 << 40, ..half }, 2),
        ("of nothing", Region { guest: 1 << 40, user: 1 << 40, size: 0, offset: 0 }, 1),
        ("longer than its file", Region { guest: 1 << 40, user: 1 << 40, offset: OFFSET + 4096, ..whole }, 1),
    ];
    for (what, region, fds) in bad {
        let line = rig.introduced()?;
        ensure!(!add(&line, &half, &[fd]));
        ensure!(add(&line, &region, &vec![fd; fds]), "a region {what} is taken");
    }
    // More than there are slots.
    let line = rig.introduced()?;
    let page = |n: u64| Region {
        guest: whole.guest + n * 8192,
        size: 4096,
        user: whole.user + n * 8192,
        offset: OFFSET,
    };
    for n in 0..slots {
        ensure!(!add(&line, &page(n), &[fd]), "slot {n}");
    }
    ensure!(add(&line, &page(slots), &[fd]), "one more than there are");
    drop(line);
    // What is not there cannot be removed.
    for wrong in [Region { guest: 0, ..half }, Region { size: 4096, ..half }, Region { user: 1, ..half }] {
        let line = rig.introduced()?;
        ensure!(!add(&line, &half, &[fd]));
        ensure!(refused(&line, request::REM_MEM_REG, &protocol::one_region(&wrong), &[]), "{wrong:?}");
    }
    let line = rig.introduced()?;
    ensure!(!add(&line, &half, &[fd]));
    ensure!(line.order(request::REM_MEM_REG, &protocol::one_region(&half), &[])?, "an honest removal");
    drop(line);
    rig.recovers()
}

#[test]
fn memory_goes_while_rings_run() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let protocol = Options::default().protocol | protocol_feature::CONFIGURE_MEM_SLOTS;
    let wants = Options { tell: Tell::Regions, protocol, ..Options::default() };
    for n in 0..20 {
        let memory = Memory::new(MEMORY)?;
        let (front, mut rings) = Front::connect(&rig.daemon.socket(), &memory, wants)?;
        let mut blk = Blk::new(&memory, rings.pop().context("no ring")?, 16, false)?;
        for slot in 0..16 {
            blk.start(slot, if slot % 2 == 0 { Op::In } else { Op::Out }, u64::from(slot) * 8, 4096)?;
        }
        blk.ring.submit()?;
        std::thread::sleep(Duration::from_micros(n * 50));
        // Refused or done, but never a crash.
        let region = protocol::one_region(&memory.region());
        let _ = front.line.order(request::REM_MEM_REG, &region, &[]);
        blk.ring.kick()?;
        drop(front);
        rig.daemon.lives()?;
    }
    rig.recovers()
}

/// Whether a ring of this size at this place can be started. Some daemons say no at once, some when it is to run.
fn runs(rig: &Rig, size: u32, address: &[u8]) -> anyhow::Result<bool> {
    let (line, wires) = (rig.with_memory()?, Wires::new()?);
    let steps: [(u32, Vec<u8>, &[BorrowedFd<'_>]); 4] = [
        (request::SET_VRING_NUM, protocol::vring(0, size), &[]),
        (request::SET_VRING_ADDR, address.to_vec(), &[]),
        (request::SET_VRING_KICK, protocol::number(0), &[wires.kick.as_fd()]),
        (request::SET_VRING_ENABLE, protocol::vring(0, 1), &[]),
    ];
    for (request, payload, fds) in steps {
        if refused(&line, request, &payload, fds) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn rings_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let place = Place::new(&rig.memory, 0, 64)?;
    // Sizes.
    for size in [0u32, 3, 63, 65, 32_769, 65_535, 65_536, u32::MAX] {
        ensure!(!runs(&rig, size, &place.message())?, "a ring of {size} entries runs");
        rig.daemon.lives().with_context(|| format!("{size} entries"))?;
    }
    ensure!(runs(&rig, 64, &place.message())?, "an honest ring does not run");
    // Numbers of rings.
    let rings = u32::try_from(rig.introduced()?.ask_number(request::GET_QUEUE_NUM)?)?;
    for index in [rings, rings + 1, 255, 256, u32::MAX] {
        for what in [request::SET_VRING_NUM, request::SET_VRING_BASE, request::SET_VRING_ENABLE] {
            let line = rig.with_memory()?;
            ensure!(refused(&line, what, &protocol::vring(index, 1), &[]), "ring {index}, request {what}");
        }
        let line = rig.with_memory()?;
        line.send(request::GET_VRING_BASE, &protocol::vring(index, 0), &[])?;
        ensure!(line.ends(), "ring {index} has a base");
    }
    let wires = Wires::new()?;
    for index in [u64::from(rings), 255, 1 << 20, u64::MAX] {
        let line = rig.with_memory()?;
        let fds = [wires.kick.as_fd()];
        ensure!(refused(&line, request::SET_VRING_KICK, &protocol::number(index), &fds), "kick {index:#x}");
    }
    // Bases.
    for base in [65_536, u32::MAX] {
        let line = rig.with_memory()?;
        ensure!(refused(&line, request::SET_VRING_BASE, &protocol::vring(0, base), &[]), "base {base}");
    }
    // Addresses: outside of memory, at its very end, not aligned.
    let end = memory::USER + MEMORY;
    let [descriptors, used, available] = [place.descriptors, place.used, place.available].map(Memory::user);
    let addresses = [
        ("descriptors nowhere", [0, used, available]),
        ("used nowhere", [descriptors, 0x1000, available]),
        ("available nowhere", [descriptors, used, u64::MAX - 1]),
        ("guest addresses", [place.descriptors, place.used, place.available].map(Memory::guest)),
        ("descriptors over the end", [end - 512, used, available]),
        ("used over the end", [descriptors, end - 512, available]),
        ("available over the end", [descriptors, used, end - 128]),
        ("descriptors not aligned", [descriptors + 8, used, available]),
        ("used not aligned", [descriptors, used + 2, available]),
        ("available not aligned", [descriptors, used, available + 1]),
        ("the end of everything", [u64::MAX - 15, u64::MAX - 3, u64::MAX - 1]),
    ];
    for (what, [descriptors, used, available]) in addresses {
        let address = protocol::vring_address(0, 0, descriptors, used, available);
        ensure!(!runs(&rig, 64, &address)?, "a ring with {what} runs");
        rig.daemon.lives().context(what)?;
    }
    rig.recovers()
}

#[test]
fn the_wrong_order() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let wires = Wires::new()?;
    let place = Place::new(&rig.memory, 0, 64)?;
    let kick = protocol::number(0);
    // A ring that starts without anything: not a fault yet, or one; never a crash.
    let line = rig.introduced()?;
    let _ = line.order(request::SET_VRING_KICK, &kick, &[wires.kick.as_fd()]);
    let _ = line.order(request::SET_VRING_ENABLE, &protocol::vring(0, 1), &[]);
    wires.kick.write(1)?;
    std::thread::sleep(MOMENT);
    drop(line);
    rig.daemon.lives()?;
    // Addresses before memory.
    let line = rig.introduced()?;
    let _ = line.order(request::SET_VRING_NUM, &protocol::vring(0, 64), &[]);
    let _ = line.order(request::SET_VRING_ADDR, &place.message(), &[]);
    let _ = line.order(request::SET_VRING_KICK, &kick, &[wires.kick.as_fd()]);
    wires.kick.write(1)?;
    drop(line);
    rig.daemon.lives()?;
    // Everything of a ring changes while it runs.
    for (request, payload) in [
        (request::SET_VRING_NUM, protocol::vring(0, 32)),
        (request::SET_VRING_BASE, protocol::vring(0, 77)),
        (request::SET_VRING_ADDR, place.message()),
        (request::SET_FEATURES, protocol::number(feature::VERSION_1)),
        (request::SET_OWNER, vec![]),
        (request::RESET_OWNER, vec![]),
        (request::SET_PROTOCOL_FEATURES, protocol::number(0)),
    ] {
        let memory = Memory::new(MEMORY)?;
        let (front, mut rings) = Front::connect(&rig.daemon.socket(), &memory, Options::default())?;
        let mut blk = Blk::new(&memory, rings.pop().context("no ring")?, 16, true)?;
        (0..16).try_for_each(|slot| blk.start(slot, Op::In, 0, 4096))?;
        blk.ring.submit()?;
        let _ = front.line.send(request, &payload, &[]);
        blk.ring.kick()?;
        std::thread::sleep(Duration::from_millis(5));
        drop(front);
        rig.daemon.lives().with_context(|| format!("request {request} while a ring runs"))?;
    }
    // Twice in a row, at the wrong time, and for ever.
    let line = rig.with_memory()?;
    for _ in 0..100 {
        let _ = line.send(request::SET_OWNER, &[], &[]);
    }
    drop(line);
    rig.recovers()
}

#[test]
fn descriptors_where_none_belong_and_none_where_they_do() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let wires = Wires::new()?;
    let fd = wires.kick.as_fd();
    for count in [1, 3, 40] {
        for what in [request::GET_FEATURES, request::GET_QUEUE_NUM] {
            let line = rig.introduced()?;
            line.send(what, &[], &vec![fd; count])?;
            ensure!(line.ends(), "request {what} with {count} descriptors is answered");
        }
        let line = rig.with_memory()?;
        let num = protocol::vring(0, 64);
        ensure!(refused(&line, request::SET_VRING_NUM, &num, &vec![fd; count]), "a size with {count}");
    }
    for what in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
        ensure!(refused(&rig.with_memory()?, what, &protocol::number(0), &[]), "{what} without");
        ensure!(refused(&rig.with_memory()?, what, &protocol::number(0), &[fd, fd]), "{what} with two");
    }
    ensure!(refused(&rig.introduced()?, request::SET_INFLIGHT_FD, &protocol::inflight(4096, 0, 1, 64), &[]));
    // What can be polled for ever, or never.
    let always = File::open("/dev/zero")?;
    for other in [always.as_fd(), rig.memory.fd()] {
        let line = rig.with_memory()?;
        let _ = line.order(request::SET_VRING_KICK, &protocol::number(0), &[other]);
        let _ = line.order(request::SET_VRING_CALL, &protocol::number(0), &[other]);
        drop(line);
        rig.daemon.lives()?;
    }
    rig.recovers()
}

#[test]
fn in_flight_regions_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for (rings, size) in [(0, 64), (1, 0), (u16::MAX, 64), (1, u16::MAX), (u16::MAX, u16::MAX)] {
        let line = rig.introduced()?;
        line.send(request::GET_INFLIGHT_FD, &protocol::inflight(0, 0, rings, size), &[])?;
        ensure!(line.ends(), "a region for {rings} rings of {size}");
    }
    let wish = protocol::inflight(0, 0, 1, 64);
    let right = rig.introduced()?.ask(request::GET_INFLIGHT_FD, &wish, &[])?;
    let bytes = right.number()?;
    let good = right.fds.first().context("no file")?.as_fd();
    let small = memfd_create("small", MFdFlags::MFD_CLOEXEC)?;
    File::from(small.try_clone()?).set_len(64)?;
    let null = File::open("/dev/null")?;
    let lies = [
        ("a short file", protocol::inflight(bytes, 0, 1, 64), small.as_fd()),
        ("no memory", protocol::inflight(bytes, 0, 1, 64), null.as_fd()),
        ("nothing", protocol::inflight(0, 0, 1, 64), good),
        ("less than it takes", protocol::inflight(16, 0, 1, 64), good),
        ("more than there is", protocol::inflight(1 << 40, 0, 1, 64), good),
        ("from the end on", protocol::inflight(bytes, bytes, 1, 64), good),
        ("from nowhere on", protocol::inflight(bytes, u64::MAX - 4095, 1, 64), good),
        ("for more rings", protocol::inflight(bytes, 0, 200, 1024), good),
        ("for no ring", protocol::inflight(bytes, 0, 0, 64), good),
    ];
    for (what, payload, fd) in lies {
        let line = rig.introduced()?;
        ensure!(refused(&line, request::SET_INFLIGHT_FD, &payload, &[fd]), "{what} is taken");
        rig.daemon.lives().context(what)?;
    }
    rig.recovers()
}

#[test]
fn in_flight_regions_full_of_nonsense() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut dice = Dice(9);
    for round in 0..60 {
        let memory = Memory::new(MEMORY)?;
        let (mut front, mut rings) = Front::connect(&rig.daemon.socket(), &memory, Options::default())?;
        let mut blk = Blk::new(&memory, rings.pop().context("no ring")?, 8, true)?;
        (0..8).try_for_each(|slot| blk.start(slot, Op::In, 0, 4096))?;
        blk.ring.submit()?;
        front.line.hang_up()?;
        let file = File::from(front.inflight().context("no in-flight region")?.try_clone()?);
        use std::os::unix::fs::FileExt;
        let len = file.metadata()?.len() as usize;
        let mut noise = vec![0; len.min(4096)];
        file.read_exact_at(&mut noise, 0)?;
        if round % 3 == 0 {
            dice.fill(&mut noise);
        } else {
            // A few bytes, so that most of it still makes sense.
            for _ in 0..8 {
                let at = dice.roll(noise.len() as u32) as usize;
                noise[at] = dice.number() as u8;
            }
        }
        file.write_all_at(&noise, 0)?;
        // Taken or not; a guest's requests may fail or be lost by this. The daemon is not.
        let _ = front.reconnect(&rig.daemon.socket());
        std::thread::sleep(Duration::from_millis(2));
        drop(front);
        rig.daemon.lives().with_context(|| format!("round {round}"))?;
    }
    rig.recovers()
}

#[test]
fn chains_that_are_none() -> anyhow::Result<()> {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    type Chain = Vec<(u64, u32, u16, u16)>;
    let mut rig = Rig::new()?;
    let at = Memory::guest(MEMORY - 8192);
    let end = Memory::guest(MEMORY);
    let chains: [(&str, u16, Chain); 19] = [
        ("a loop of one", 0, vec![(at, 16, NEXT, 0)]),
        ("a loop of two", 0, vec![(at, 16, NEXT, 1), (at, 512, NEXT, 0)]),
        ("a head that is not", 0xfff0, vec![]),
        ("a head just behind", 128, vec![]),
        ("a next that is not", 0, vec![(at, 16, NEXT, 128)]),
        ("nothing", 0, vec![(at, 0, 0, 0)]),
        ("half a header", 0, vec![(at, 8, NEXT, 1), (at, 1, WRITE, 0)]),
        ("no status", 0, vec![(at, 16, 0, 0)]),
        ("a status that is read", 0, vec![(at, 16, NEXT, 1), (at, 1, 0, 0)]),
        ("a header that is written", 0, vec![(at, 16, NEXT | WRITE, 1), (at, 1, WRITE, 0)]),
        ("written before read", 0, vec![(at, 512, NEXT | WRITE, 1), (at, 16, NEXT, 2), (at, 1, WRITE, 0)]),
        ("memory that is not", 0, vec![(0, 16, NEXT, 1), (at, 1, WRITE, 0)]),
        (
            "memory over the end",
            0,
            vec![(at, 16, NEXT, 1), (end - 100, 512, NEXT | WRITE, 2), (at, 1, WRITE, 0)],
        ),
        ("memory around the end", 0, vec![(u64::MAX - 7, 16, NEXT, 1), (at, 1, WRITE, 0)]),
        ("all lengths", 0, vec![(at, 16, NEXT, 1), (at, u32::MAX, NEXT | WRITE, 2), (at, 1, WRITE, 0)]),
        ("a table of no size", 0, vec![(at, 0, INDIRECT, 0)]),
        ("a table of odd size", 0, vec![(at, 17, INDIRECT, 0)]),
        ("a table outside", 0, vec![(end, 32, INDIRECT, 0)]),
        ("a table and more", 0, vec![(at, 16, INDIRECT | NEXT, 1), (at, 1, WRITE, 0)]),
    ];
    for (what, head, chain) in chains {
        let memory = Memory::new(MEMORY)?;
        let (front, mut rings) = Front::connect(&rig.daemon.socket(), &memory, Options::default())?;
        let mut ring = rings.pop().context("no ring")?;
        // At `at` there is a header that reads sector 0.
        for (n, descriptor) in (0..).zip(&chain) {
            ring.descriptor(ring.place.descriptors, n, *descriptor)?;
        }
        ring.make_available(head)?;
        ring.publish(1)?;
        ring.kick()?;
        std::thread::sleep(Duration::from_millis(5));
        drop(front);
        rig.daemon.lives().with_context(|| what.to_owned())?;
    }
    rig.recovers()
}

#[test]
fn a_table_within_a_table_and_one_without_end() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for (flags, next) in [(4, 0), (1, 0), (1, 1), (1, 500), (5, 1)] {
        let memory = Memory::new(MEMORY)?;
        let (front, mut rings) = Front::connect(&rig.daemon.socket(), &memory, Options::default())?;
        let mut ring = rings.pop().context("no ring")?;
        let table = memory.take(1 << 20)?;
        for n in 0..64 {
            ring.descriptor(table, n, (Memory::guest(table), 16, flags, next))?;
        }
        for bytes in [64 * 16, 1 << 20, u32::MAX - 15] {
            ring.descriptor(ring.place.descriptors, 0, (Memory::guest(table), bytes, 4, 0))?;
            ring.make_available(0)?;
        }
        ring.publish(3)?;
        ring.kick()?;
        std::thread::sleep(Duration::from_millis(5));
        drop(front);
        rig.daemon.lives()?;
    }
    rig.recovers()
}

#[test]
fn an_index_that_jumps() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for index in [129, 1000, 0x8000, 0xffff] {
        let memory = Memory::new(MEMORY)?;
        let (front, mut rings) = Front::connect(&rig.daemon.socket(), &memory, Options::default())?;
        let mut ring = rings.pop().context("no ring")?;
        ring.publish(index)?;
        ring.kick()?;
        std::thread::sleep(Duration::from_millis(5));
        // Of what was never there nothing is completed.
        ensure!(ring.place.used_index(&memory)? <= 128, "index {index}");
        drop(front);
        rig.daemon.lives()?;
    }
    rig.recovers()
}

#[test]
fn the_same_request_many_times_at_once() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let memory = Memory::new(MEMORY)?;
    let (front, mut rings) = Front::connect(&rig.daemon.socket(), &memory, Options::default())?;
    let mut ring = rings.pop().context("no ring")?;
    let page = memory.take(8192)?;
    let chain = [(page, 16, 1, 1), (page + 4096, 512, 3, 2), (page + 32, 1, 2, 0)];
    for (n, (at, len, flags, next)) in (0..).zip(chain) {
        ring.descriptor(ring.place.descriptors, n, (Memory::guest(at), len, flags, next))?;
    }
    for _ in 0..128 {
        ring.make_available(0)?;
    }
    ring.publish(128)?;
    ring.kick()?;
    std::thread::sleep(MOMENT);
    drop(front);
    rig.recovers()
}

#[test]
fn a_config_space_has_an_end() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for (offset, size) in [(0, 257), (256, 1), (u32::MAX, 1), (1, u32::MAX), (0, 1 << 20)] {
        let line = rig.introduced()?;
        let payload = protocol::config(offset, size, 0, &vec![0; (size as usize).min(300)]);
        line.send(request::GET_CONFIG, &payload, &[])?;
        // An answer without contents says no, as does the end.
        let answered = line.answer(request::GET_CONFIG);
        ensure!(
            answered.is_err() || answered.is_ok_and(|answer| answer.payload.len() <= 12),
            "{offset}+{size}"
        );
    }
    for (offset, contents) in [(0, vec![1; 8]), (20, vec![0; 4]), (300, vec![1]), (u32::MAX, vec![1; 4])] {
        let line = rig.introduced()?;
        let payload = protocol::config(offset, contents.len() as u32, 0, &contents);
        ensure!(refused(&line, request::SET_CONFIG, &payload, &[]), "byte {offset} can be written");
    }
    rig.recovers()
}

#[test]
fn a_second_front_end_waits_and_gets_its_turn() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let first = rig.line()?;
    first.ask_number(request::GET_FEATURES)?;
    // Turned away at once, or left to wait; never served beside the first.
    let second = rig.line()?;
    let _ = second.send(request::GET_FEATURES, &[], &[]);
    first.ask_number(request::GET_FEATURES)?;
    drop((first, second));
    rig.recovers()
}

#[test]
fn one_who_asks_and_never_listens() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let line = rig.line()?;
    // Until nothing fits any more: the daemon must not wait for it for ever, nor keep the answers.
    let mut said = 0u32;
    while said < 100_000 && line.send(request::GET_FEATURES, &[], &[]).is_ok() {
        said += 1;
    }
    drop(line);
    rig.recovers()
}
