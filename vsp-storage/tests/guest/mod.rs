//! A guest with a storvsc driver just good enough for tests of the device.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; tests may panic")]

use std::fs::File;
use std::path::PathBuf;

use vsp::testing::{Bench, GuestEnd};
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp_storage::controller::Controller;
use vsp_storage::wire::{self, Address, Direction, operation};

/// Bytes of guest RAM.
pub const RAM: u64 = 2 << 20;
/// The first unit.
pub const UNIT: Address = Address { path: 0, target: 0, lun: 0 };
/// Page at which data buffers begin.
const DATA_PAGE: u64 = 256;

/// A disk image, gone when dropped.
pub struct Disk {
    pub file: File,
    pub path: PathBuf,
}

impl Disk {
    pub fn new(name: &str, len: u64) -> Disk {
        let path = std::env::temp_dir().join(format!("bulkhead-storage-{}-{name}.img", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        Disk { file, path }
    }

    /// What to give to `--disk`.
    pub fn argument(&self, options: &str) -> String {
        format!("path={}{options}", self.path.display())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Good(u32),
    /// Sense key, code, qualifier.
    Check(u8, u8, u8),
    /// A reservation is in the way.
    Conflict,
    NoUnit,
    Odd(u8, u8),
}

impl Outcome {
    pub fn of(answer: &[u8]) -> Outcome {
        assert_eq!(answer[..4], operation::COMPLETE_IO.to_le_bytes());
        match (answer[14], answer[15]) {
            (1, 0) => Outcome::Good(u32::from_le_bytes(answer[24..28].try_into().unwrap())),
            (0x84, 2) => {
                assert_eq!((answer[21], answer[28] & 0x7F), (18, 0x70));
                Outcome::Check(answer[30], answer[40], answer[41])
            }
            (0x84, 0x18) => {
                assert_eq!(answer[21], 0);
                Outcome::Conflict
            }
            (0x20, 0) => Outcome::NoUnit,
            (srb, scsi) => Outcome::Odd(srb, scsi),
        }
    }
}

/// The guest.
pub struct Guest {
    pub bench: Bench<Controller>,
    pub end: GuestEnd,
    /// Where commands go.
    pub unit: Address,
}

impl Guest {
    /// A guest whose driver has just opened the channel.
    pub fn unintroduced(disks: &[&str]) -> Guest {
        Guest::opened(Bench::new(controller(disks), RAM))
    }

    fn opened(mut bench: Bench<Controller>) -> Guest {
        let end = bench.open(1, 16);
        Guest { bench, end, unit: UNIT }
    }

    /// A guest whose driver is ready for commands.
    pub fn new(disks: &[&str]) -> Guest {
        Guest::unintroduced(disks).introduced()
    }

    /// The same with several VPs.
    pub fn with_vps(disks: &[&str], vps: u32) -> Guest {
        Guest::opened(Bench::with_vps(controller(disks), RAM, vps)).introduced()
    }

    pub fn introduced(mut self) -> Guest {
        for (operation, word) in INTRODUCTION {
            assert_eq!(self.simple(operation, word), 0);
        }
        self
    }

    /// Goes on with another process; the one until now has handed over.
    pub fn taken_over(self, disks: &[&str]) -> Guest {
        let Guest { bench, end, unit } = self;
        Guest { bench: Bench::take_over(bench.kill(), controller(disks)), end, unit }
    }

    /// Sends a packet and waits for its answer.
    pub fn exchange(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> Vec<u8> {
        assert!(self.end.send(packet, parts));
        let (header, payload) = self.bench.wait(&mut self.end);
        assert_eq!(header.transaction_id, packet.transaction_id);
        payload
    }

    /// Sends a packet without a command; the status of its answer.
    pub fn simple(&mut self, operation: u32, word: u16) -> u32 {
        let answer = self.exchange(&Outgoing::in_band(1, true), &[&wire::simple(operation, word)]);
        u32::from_le_bytes(answer[8..12].try_into().unwrap())
    }

    /// Sends a command with `data` in its buffer; how it ended and what the buffer holds then.
    pub fn command(&mut self, direction: Direction, cdb: &[u8], data: &[u8]) -> (Outcome, Vec<u8>) {
        let packet = wire::command(self.unit, direction, cdb, data.len() as u32);
        if data.is_empty() {
            let answer = self.exchange(&Outgoing::in_band(7, true), &[&packet]);
            return (Outcome::of(&answer), Vec::new());
        }
        let address = DATA_PAGE * 4096;
        self.bench.core.ram.as_ref().unwrap().write(address, data).unwrap();
        let pages: Vec<u64> = (0..data.len().div_ceil(4096) as u64).map(|page| DATA_PAGE + page).collect();
        let header = gpa_direct_header(&[(0, data.len() as u32, &pages)]);
        let answer = self.exchange(&Outgoing::gpa_direct(7, &header), &[&header, &packet]);
        (Outcome::of(&answer), self.peek(address, data.len()))
    }

    pub fn read(&mut self, cdb: &[u8], len: usize) -> (Outcome, Vec<u8>) {
        self.command(Direction::FromDevice, cdb, &vec![0xEE; len])
    }

    pub fn write(&mut self, cdb: &[u8], data: &[u8]) -> Outcome {
        self.command(Direction::ToDevice, cdb, data).0
    }

    /// Bytes of guest RAM.
    pub fn peek(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bench.core.ram.as_ref().unwrap().read(address, &mut bytes).unwrap();
        bytes
    }
}

fn controller(disks: &[&str]) -> Controller {
    let specs: Vec<_> = disks.iter().map(|disk| disk.parse().unwrap()).collect();
    Controller::open("test", &specs).unwrap()
}

/// What storvsc sends before commands.
pub const INTRODUCTION: [(u32, u16); 4] = [
    (operation::BEGIN_INITIALIZATION, 0),
    (operation::QUERY_PROTOCOL_VERSION, 0x0602),
    (operation::QUERY_PROPERTIES, 0),
    (operation::END_INITIALIZATION, 0),
];
