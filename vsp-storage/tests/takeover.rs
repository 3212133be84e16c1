//! Real processes in their compartments that die at each kill point, of SIGKILL, of poison, or hand over; the guest sees
//! each request end once, and the disk has what was written.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;
mod process;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use guest::{Disk, INTRODUCTION, Outcome, UNIT};
use process::Storage;
use vsp::channel::KillPoint;
use vsp::ipc::message::{STATUS_OK, ToCore, ToVsp};
use vsp::ipc::socket::SocketError;
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp_storage::wire::{self, Direction, operation};

/// What a process exits with at a kill point.
const KILLED: i32 = 137;
/// Blocks of 4 KiB that are written and read back.
const BLOCKS: u64 = 96;
/// LBA of the block that is counted up, behind those.
const COUNTER: u16 = 1000;
/// First page of the guest's buffers: one for each block.
const PAGES: u64 = 16;

/// A VM whose device process may die at any moment and is then replaced.
struct World {
    core: FakeCore,
    disk: Disk,
    options: &'static str,
    process: Storage,
    /// Arguments of processes to come, the next one first; none after these.
    arguments: Vec<Vec<String>>,
    end: Option<GuestEnd>,
    outstanding: BTreeMap<u64, &'static str>,
    next: u64,
    /// What the block has that is only ever compared and counted up.
    counter: u8,
    deaths: Vec<Option<i32>>,
}

impl World {
    fn new(name: &str, options: &'static str, mut arguments: Vec<Vec<String>>) -> World {
        arguments.reverse();
        let disk = Disk::new(name, 1 << 20);
        let (core, socket) = FakeCore::new(guest::RAM);
        let process = Storage::start(socket, &disk.argument(options), &arguments.pop().unwrap_or_default());
        core.welcome();
        let mut world = World {
            core,
            disk,
            options,
            process,
            arguments,
            end: None,
            outstanding: BTreeMap::new(),
            next: 1,
            counter: 0,
            deaths: Vec::new(),
        };
        world.end = Some(world.core.open(1, 1));
        world.opened(false);
        world
    }

    /// A guest whose driver is ready for commands.
    fn introduced(name: &str, options: &'static str, arguments: Vec<Vec<String>>) -> World {
        let mut world = World::new(name, options, arguments);
        // Nobody wants an answer to this one, which changes the device's state all the same.
        let begin = wire::simple(operation::BEGIN_INITIALIZATION, 0);
        world.send("unanswered", &Outgoing::in_band(0, false), &[&begin]);
        for (operation, word) in INTRODUCTION {
            world.send("introduction", &Outgoing::in_band(0, true), &[&wire::simple(operation, word)]);
            world.drain();
        }
        world
    }

    /// Waits until the channel is open, with whichever process.
    fn opened(&mut self, mut again: bool) {
        loop {
            if again {
                self.core.reopen(1);
            }
            let start = Instant::now();
            let opened = loop {
                match self.core.peer().try_recv::<ToCore>() {
                    Ok((ToCore::OpenResult { status, reason, .. }, _)) => {
                        assert_eq!(status, STATUS_OK, "{reason:?}");
                        break true;
                    }
                    Ok((other, _)) => panic!("{other:?}"),
                    Err(SocketError::WouldBlock) => {}
                    Err(_) => break false,
                }
                assert!(start.elapsed() < Duration::from_secs(20), "the channel does not open");
                std::thread::sleep(Duration::from_micros(50));
            };
            if opened {
                return;
            }
            self.replace();
            again = true;
        }
    }

    /// Starts the next process in place of one that is dead or dying.
    fn replace(&mut self) {
        self.deaths.push(self.process.wait().code());
        assert!(self.deaths.len() < 100, "{:?}", self.deaths);
        let (_, socket) = self.core.successor();
        let arguments = self.arguments.pop().unwrap_or_default();
        self.process = Storage::start(socket, &self.disk.argument(self.options), &arguments);
        self.core.greet(false);
        self.core.serve(true);
    }

    fn revive(&mut self) {
        if self.process.is_dead() {
            self.replace();
            self.opened(true);
        }
    }

    fn kill(&mut self) {
        self.process.kill();
        self.revive();
    }

    fn send(&mut self, what: &'static str, packet: &Outgoing, parts: &[&[u8]]) {
        let packet = Outgoing { transaction_id: self.next, ..*packet };
        let start = Instant::now();
        while !self.end.as_mut().unwrap().send(&packet, parts) {
            self.revive();
            self.collect();
            assert!(start.elapsed() < Duration::from_secs(20), "{what} does not fit");
        }
        if packet.flags & 1 == 1 {
            self.outstanding.insert(self.next, what);
        }
        self.next += 1;
    }

    fn block(&mut self, what: &'static str, direction: Direction, opcode: u8, block: u64) {
        let lba = (block * 8) as u8;
        let cdb = [opcode, 0, 0, 0, (block * 8 / 256) as u8, lba, 0, 0, 8, 0];
        let header = gpa_direct_header(&[(0, 4096, &[PAGES + block])]);
        let packet = wire::command(UNIT, direction, &cdb, 4096);
        self.send(what, &Outgoing::gpa_direct(0, &header), &[&header, &packet]);
    }

    /// COMPARE AND WRITE: a block is what it was and becomes one more. Repeated, it would not be what it was.
    fn count_up(&mut self) {
        let page = PAGES + BLOCKS + u64::from(self.counter % 16);
        let data = [[self.counter; 512], [self.counter + 1; 512]].concat();
        self.core.ram.as_ref().unwrap().write(page * 4096, &data).unwrap();
        self.counter += 1;
        let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, (COUNTER >> 8) as u8, COUNTER as u8, 0, 0, 0, 1, 0, 0];
        let header = gpa_direct_header(&[(0, 1024, &[page])]);
        let packet = wire::command(UNIT, Direction::ToDevice, &cdb, 1024);
        self.send("compare and write", &Outgoing::gpa_direct(0, &header), &[&header, &packet]);
    }

    /// Takes the answers that are there.
    fn collect(&mut self) {
        while let Some((header, payload)) = self.end.as_mut().unwrap().poll() {
            let what = self.outstanding.remove(&header.transaction_id);
            let what = what.unwrap_or_else(|| panic!("{} was answered twice", header.transaction_id));
            match what {
                "introduction" => assert_eq!(payload[8..12], [0; 4]),
                "poison" => assert_eq!(Outcome::of(&payload), Outcome::Check(4, 0x44, 0)),
                _ => assert!(matches!(Outcome::of(&payload), Outcome::Good(_)), "{what}"),
            }
        }
    }

    /// Waits for all answers, replacing processes as they die.
    fn drain(&mut self) {
        let start = Instant::now();
        while !self.outstanding.is_empty() {
            self.collect();
            self.revive();
            assert!(start.elapsed() < Duration::from_secs(20), "lost: {:?}", self.outstanding);
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Writes all blocks, reads them back into emptied pages, with flushes, packets that nobody wants an answer to, and
    /// a while in which the guest collects nothing. `disturb` is called between requests.
    fn work(&mut self, generation: u8, mut disturb: impl FnMut(&mut World, u64)) {
        let flush = wire::command(UNIT, Direction::None, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0);
        let unanswered = wire::command(UNIT, Direction::None, &[0; 6], 0);
        for block in 0..BLOCKS {
            self.page(block, content(generation, block));
            self.block("write", Direction::ToDevice, 0x2A, block);
            if block % 16 == 0 {
                self.count_up();
                self.send("flush", &Outgoing::in_band(0, true), &[&flush]);
                self.send("unanswered", &Outgoing::in_band(0, false), &[&unanswered]);
            }
            if block % 80 == 0 {
                self.collect();
            }
            if block % 80 == 64 {
                // The ring of answers fills up.
                std::thread::sleep(Duration::from_millis(2));
                self.revive();
            }
            disturb(self, block);
        }
        self.drain();
        for block in 0..BLOCKS {
            self.page(block, [0xEE; 4096]);
            self.block("read", Direction::FromDevice, 0x28, block);
            disturb(self, BLOCKS + block);
        }
        self.drain();
        for block in 0..BLOCKS {
            let expected = content(generation, block);
            let mut bytes = [0; 4096];
            self.disk.file.read_exact_at(&mut bytes, block * 4096).unwrap();
            assert!(bytes == expected, "block {block} on the disk");
            self.core.ram.as_ref().unwrap().read((PAGES + block) * 4096, &mut bytes).unwrap();
            assert!(bytes == expected, "block {block} as it was read");
        }
    }

    fn page(&self, block: u64, bytes: [u8; 4096]) {
        self.core.ram.as_ref().unwrap().write((PAGES + block) * 4096, &bytes).unwrap();
    }
}

fn content(generation: u8, block: u64) -> [u8; 4096] {
    std::array::from_fn(|index| (index / 16) as u8 ^ (block as u8).wrapping_mul(7) ^ generation)
}

fn at(point: &str, count: u32) -> Vec<String> {
    vec!["--kill-point".into(), format!("{point}:{count}")]
}

#[test]
fn a_process_may_die_at_any_store_of_its_ledger() {
    let adopting = |point: &KillPoint| point.name().starts_with("adopt");
    for point in &KillPoint::ALL {
        for count in [1, 2, 40] {
            let mut arguments = vec![at(point.name(), count)];
            if adopting(point) {
                // The first one is killed in the middle of its work, the second one dies while it takes over.
                // (There is a state to be settled only if an answer that brought one had become visible, and no more.)
                let first = if *point == KillPoint::AdoptState {
                    at("write-published", 2)
                } else {
                    at("completing", 30)
                };
                arguments.insert(0, first);
            }
            let mut world = World::introduced("points", "", arguments);
            world.work(count as u8, |_, _| {});
            let died = world.deaths.len() > usize::from(adopting(point));
            assert!(died || count > 1, "nobody came by {}", point.name());
            assert!(world.deaths.iter().all(|code| *code == Some(KILLED)), "{:?}", world.deaths);
        }
    }
}

#[test]
fn a_process_may_be_killed_whenever() {
    let mut world = World::introduced("killed", "", Vec::new());
    for generation in 0..6u8 {
        world.work(generation, |world, request| {
            if request % 31 == u64::from(generation) * 5 {
                world.kill();
            }
        });
    }
    assert!(world.deaths.len() > 30, "{}", world.deaths.len());
}

#[test]
fn a_command_that_kills_three_processes_is_failed_and_the_disk_lives_on() {
    let crashing = || vec!["--crash-on-opcode".to_owned(), "c1".to_owned()];
    let mut world = World::introduced("poison", "", (0..10).map(|_| crashing()).collect());
    let poison = wire::command(UNIT, Direction::None, &[0xC1, 0, 0, 0, 0, 0], 0);
    world.block("write", Direction::ToDevice, 0x2A, 0);
    world.send("poison", &Outgoing::in_band(0, true), &[&poison]);
    world.block("write", Direction::ToDevice, 0x2A, 1);
    world.drain();
    assert_eq!(world.deaths.len(), 3, "{:?}", world.deaths);
    world.work(9, |_, _| {});
    assert_eq!(world.deaths.len(), 3);
}

#[test]
fn a_standby_takes_over_from_one_that_hands_over_and_back() {
    let mut world = World::introduced("swapped", "", Vec::new());
    for generation in 0..4 {
        world.work(generation, |world, request| {
            if request % 60 == 30 {
                swap(world);
            }
        });
    }
    assert!(world.deaths.is_empty());
}

/// A planned hand-over to a process that stands by.
fn swap(world: &mut World) {
    let (old, socket) = world.core.successor();
    let standby = Storage::start(socket, &world.disk.argument(world.options), &[]);
    world.core.greet(true);
    let new = world.core.go_on_with(old);
    world.core.quiesce();
    let old = world.core.go_on_with(new);
    world.core.serve(true);
    world.core.reopen_all();
    old.send(&ToVsp::Retire {}, &[]).unwrap();
    let mut retired = std::mem::replace(&mut world.process, standby);
    assert_eq!(retired.wait().code(), Some(0));
}

#[test]
fn a_process_that_handed_over_in_vain_serves_again() {
    let mut world = World::introduced("resumed", "", Vec::new());
    world.work(1, |world, request| {
        if request % 40 == 20 {
            world.core.quiesce();
            world.core.serve(true);
            world.core.reopen_all();
        }
    });
    assert!(world.deaths.is_empty());
}

#[test]
fn a_successor_waits_for_the_disk_and_is_deaf_to_nobody() {
    let mut world = World::introduced("waits", "", Vec::new());
    // Stands for the last I/O of the dead: it holds the file, and with it the lock.
    let holder = std::fs::File::open(&world.disk.path).unwrap();
    world.core.quiesce();
    holder.lock().unwrap();
    world.core.send(&ToVsp::Serve { predecessor: true });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(world.core.try_answer(), None);
    drop(holder);
    assert_eq!(world.core.answer(), ToCore::Serving {});
    world.core.reopen_all();
    world.work(1, |_, _| {});

    let holder = std::fs::File::open(&world.disk.path).unwrap();
    world.core.quiesce();
    holder.lock().unwrap();
    world.core.send(&ToVsp::Serve { predecessor: true });
    std::thread::sleep(Duration::from_millis(5));
    let (core, _) = world.core.successor();
    drop(core);
    assert_eq!(world.process.wait().code(), Some(0), "the core is gone: at once");
}

#[test]
fn a_strangers_disk_is_an_error_after_a_while() {
    let disk = Disk::new("stranger", 1 << 20);
    let holder = std::fs::File::open(&disk.path).unwrap();
    holder.lock().unwrap();
    let (core, socket) = FakeCore::new(guest::RAM);
    let mut process = Storage::start(socket, &disk.argument(""), &[]);
    core.greet(false);
    let start = Instant::now();
    core.send(&ToVsp::Serve { predecessor: false });
    assert_eq!(process.wait().code(), Some(1));
    assert!(start.elapsed() > Duration::from_secs(4));
}

#[test]
fn a_read_only_disk_is_shared_with_strangers_and_not_with_the_dead() {
    let disk = Disk::new("shared", 1 << 20);
    let serving = |options| {
        let (core, socket) = FakeCore::new(guest::RAM);
        let process = Storage::start(socket, &disk.argument(options), &[]);
        core.welcome();
        (core, process)
    };
    let (mut core, mut first) = serving(",ro");
    let (_other, _second) = serving(",ro");
    // The same VM's next process, while the first one is not done with it.
    let (old, socket) = core.successor();
    let _successor = Storage::start(socket, &disk.argument(",ro"), &[]);
    core.greet(true);
    core.send(&ToVsp::Serve { predecessor: true });
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(core.try_answer(), None, "a late read would land in this guest's memory");
    drop(old);
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(core.answer(), ToCore::Serving {});
}
