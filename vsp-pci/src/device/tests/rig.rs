//! A guest's driver, the device, a core, and hardware.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use vsp::ipc::message::{ToCore, ToVsp};
use vsp::testing::{Bench, FakeCore, GuestEnd, PATIENCE};
use vsp::vmbus::packet::{Outgoing, PacketType};

use crate::device::{Origin, Pci};
use crate::mock::{self, Hardware, Model};
use crate::wire::Status;

pub const WINDOW: u64 = 0xf800_0000;
/// Where the driver puts the registers.
pub const PLACE: u64 = 0xf900_0000;
const RAM: u64 = 4 << 20;

pub struct Rig {
    pub hardware: Hardware,
    pub bench: Bench<Pci>,
    pub guest: GuestEnd,
    pub version: u32,
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("bulkhead-pci-{}-{number}", std::process::id()))
}

/// A process's device, which opens the hardware if nobody has it.
pub fn device(hardware: &Hardware) -> Pci {
    let origin = Origin { name: "0000:00:05.0".into(), serial: 40, adopter: Box::new(mock::Adopter) };
    Pci::open(origin, mock::open(hardware.path()).unwrap()).unwrap()
}

impl Rig {
    /// A guest that has opened its channel.
    pub fn new(model: Model) -> Rig {
        let hardware = Hardware::start(&path(), model).unwrap();
        let mut bench = Bench::with_vps(device(&hardware), RAM, 2);
        let guest = bench.open(1, 4);
        Rig { hardware, bench, guest, version: 0x1_0004 }
    }

    /// The guest opens its channel again.
    pub fn reopen(&mut self) {
        self.guest = self.bench.open(1, 4);
    }

    /// The process dies, and another takes over.
    pub fn die(self) -> Rig {
        let Rig { hardware, bench, guest, version } = self;
        let core = bench.kill();
        Rig::take_over(hardware, core, guest, version)
    }

    pub fn take_over(hardware: Hardware, core: FakeCore, guest: GuestEnd, version: u32) -> Rig {
        let mut bench = Bench::take_over(core, device(&hardware));
        bench.settle();
        Rig { hardware, bench, guest, version }
    }

    pub fn say(&mut self, message: &[u8], wants_completion: bool) {
        let start = Instant::now();
        while !self.guest.send(&Outgoing::in_band(7, wants_completion), &[message]) {
            self.bench.turn(1);
            assert!(start.elapsed() < PATIENCE, "the ring stays full");
        }
    }

    /// Asks, and waits for the completion.
    pub fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.say(message, true);
        let (header, payload) = self.bench.wait(&mut self.guest);
        assert_eq!((header.packet_type, header.transaction_id), (PacketType::COMPLETION, 7));
        assert!(payload.len() > 4, "drivers drop what is shorter than a response");
        payload
    }

    pub fn status(&mut self, message: &[u8]) -> Status {
        Status(u32::from_le_bytes(*self.ask(message).first_chunk().unwrap()))
    }

    pub fn version(&mut self, version: u32) -> Status {
        let status = self.status(&words(&[0x4249_0013, version]));
        if status == Status::SUCCESS {
            self.version = version;
        }
        status
    }

    /// The list of functions.
    pub fn relations(&mut self) -> Vec<u8> {
        self.say(&words(&[0x4249_0001]), false);
        let (header, payload) = self.bench.wait(&mut self.guest);
        assert_eq!(header.packet_type, PacketType::IN_BAND);
        payload
    }

    /// What a driver does until it scans the bus; vendor and device.
    pub fn probe(&mut self) -> (u16, u16) {
        assert_eq!(self.version(0x1_0004), Status::SUCCESS);
        let relations = self.relations();
        assert_eq!(relations[..8], words(&[0x4249_0019, 1]));
        let requirements = self.ask(&words(&[0x4249_0005, 0]));
        assert_eq!(requirements[..4], [0; 4]);
        assert_eq!(self.enter(WINDOW), Status::SUCCESS);
        let mut assigned = words(&[0x4249_0016, 0]);
        assigned.resize(8 + 120 + 4 + 70, 0);
        assert_eq!(self.status(&assigned), Status::SUCCESS);
        let word = |at: usize| u16::from_le_bytes([relations[at], relations[at + 1]]);
        (word(8), word(10))
    }

    pub fn enter(&mut self, window: u64) -> Status {
        let mut message = words(&[0x4249_0007, 0]);
        message.extend(window.to_le_bytes());
        self.status(&message)
    }

    pub fn exit(&mut self) {
        self.say(&words(&[0x4249_0011, 0]), false);
        assert_eq!(self.status(&words(&[0x4249_0008])), Status::SUCCESS);
    }

    /// Puts the registers one behind the other, and turns memory on.
    pub fn place(&mut self) {
        let command = self.read_config(4, 2);
        self.write_config(4, 2, command & !2);
        let probed = self.ask(&words(&[0x4249_0005, 0]));
        let mut at = PLACE;
        let mut bar = 0;
        while bar < 6 {
            let mask = u32::from_le_bytes(*probed[4 + 4 * bar..].first_chunk().unwrap());
            let place = 0x10 + 4 * bar as u64;
            if mask != 0 {
                self.write_config(place, 4, at & 0xffff_ffff);
                at += u64::from(!(mask & !0xf)) + 1;
            }
            if mask & 4 != 0 {
                bar += 1;
                self.write_config(place + 4, 4, 0);
            }
            bar += 1;
        }
        self.write_config(4, 2, 0x402);
    }

    pub fn read_config(&mut self, at: u64, bytes: u8) -> u64 {
        self.bench.write_trap(WINDOW, 4, 0);
        self.bench.read_trap(WINDOW + 0x1000 + at, bytes)
    }

    pub fn write_config(&mut self, at: u64, bytes: u8, value: u64) {
        self.bench.write_trap(WINDOW, 4, 0);
        self.bench.write_trap(WINDOW + 0x1000 + at, bytes, value);
    }

    /// Asks for an interrupt in the way of the version; its number.
    pub fn create(&mut self, vector: u32, count: u16, vp: u16) -> u32 {
        let answer = self.try_create(vector, count, vp);
        assert_eq!(answer[..4], [0; 4]);
        assert_eq!(answer[10..12], count.to_le_bytes());
        assert_eq!(answer[16..24], 0xfee0_0000u64.to_le_bytes());
        u32::from_le_bytes(*answer[12..].first_chunk().unwrap())
    }

    pub fn try_create(&mut self, vector: u32, count: u16, vp: u16) -> Vec<u8> {
        let mut message = words(&[0x4249_001b, 0, vector]);
        message.extend([0, 0]);
        message.extend(count.to_le_bytes());
        message.extend(1u16.to_le_bytes());
        message.extend(vp.to_le_bytes());
        message.resize(12 + 4 + 2 + 64, 0);
        self.ask(&message)
    }

    pub fn delete(&mut self, number: u32, count: u16) {
        let mut message = words(&[0x4249_0015, 0]);
        message.extend([0, 0]);
        message.extend(count.to_le_bytes());
        message.extend(number.to_le_bytes());
        message.extend(0xfee0_0000u64.to_le_bytes());
        self.say(&message, false);
        self.bench.settle();
    }

    pub fn set_entry(&mut self, table: u64, vector: u32, number: u32, masked: bool) {
        let at = table + 16 * u64::from(vector);
        self.mask_entry(table, vector, true);
        self.bench.write_trap(at, 4, 0xfee0_0000);
        self.bench.write_trap(at + 4, 4, 0);
        self.bench.write_trap(at + 8, 4, number.into());
        self.mask_entry(table, vector, masked);
    }

    pub fn mask_entry(&mut self, table: u64, vector: u32, masked: bool) {
        self.bench.write_trap(table + 16 * u64::from(vector) + 12, 4, masked.into());
    }

    /// Whether an interrupt has come.
    pub fn interrupted(&self, number: u32) -> bool {
        let Some(bell) = self.bench.core.interrupt_bell(number) else { return false };
        nix::unistd::read(&bell, &mut [0; 8]).is_ok()
    }

    /// An operator wants something.
    pub fn wish(&mut self, id: u64, payload: &str) {
        self.bench.core.send(&ToVsp::Control { id, payload: payload.into() });
        self.bench.settle();
    }

    pub fn wish_answer(&mut self, wanted: u64) -> Result<String, String> {
        match self.bench.answer() {
            ToCore::ControlDone { id, result } if id == wanted => result,
            other => panic!("{other:?}"),
        }
    }

    /// The kind of message that the guest is told.
    pub fn told(&mut self) -> u32 {
        let (header, payload) = self.bench.wait(&mut self.guest);
        assert_eq!(header.packet_type, PacketType::IN_BAND);
        u32::from_le_bytes(*payload.first_chunk().unwrap())
    }
}
