//! A whole PCI function with its bus: messages, configuration space, registers, interrupts, processes that follow one another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vsp::ipc::message::{ToCore, ToVsp};
use vsp::testing::{Bench, GuestEnd};
use vsp::vmbus::packet::{Outgoing, PacketType};
use vsp_pci::backend::{Adopt, Backend, Info, Kind, Region};
use vsp_pci::device::{Origin, Pci};
use vsp_pci::state::State;
use vsp_pci::wire::{GuestMessage, Version};

use crate::Script;

const RAM: u64 = 1 << 20;
const RING_PAGES: u32 = 2;
const CHANNEL: u32 = 1;
const WINDOW: u64 = 0xf800_0000;
/// Steps of a script; more would only make it slow.
const STEPS: usize = 96;
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bits of a command register that are never the function's: the interrupt line is always off.
const NO_LINE: u16 = 1 << 10;

/// What a function really is, whoever has it.
#[derive(Debug)]
struct Chip {
    config: Vec<u8>,
    blank: Vec<u8>,
    /// By vector, if messages are on: something hears it.
    messages: Option<(Kind, Vec<bool>)>,
    is_used: bool,
    /// It can reach guest RAM.
    reaches: bool,
}

/// A process's hold on it.
#[derive(Debug)]
struct Held {
    chip: Arc<Mutex<Chip>>,
    info: Info,
    file: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Adopter(Arc<Mutex<Chip>>, Info);

fn lock(chip: &Mutex<Chip>) -> MutexGuard<'_, Chip> {
    chip.lock().expect("nobody has panicked")
}

impl Adopt for Adopter {
    fn adopt(&self, mut fds: Vec<OwnedFd>) -> Result<Box<dyn Backend>, String> {
        let file = Arc::new(fds.pop().ok_or("nothing is kept")?);
        Ok(Box::new(Held { chip: Arc::clone(&self.0), info: self.1.clone(), file }))
    }
}

impl Backend for Held {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read_config(&self, at: u16, into: &mut [u8]) -> io::Result<()> {
        assert!(matches!(into.len(), 1 | 2 | 4) && usize::from(at) % into.len() == 0);
        into.copy_from_slice(&lock(&self.chip).config[usize::from(at)..][..into.len()]);
        Ok(())
    }

    fn write_config(&self, at: u16, from: &[u8]) -> io::Result<()> {
        assert!(matches!(from.len(), 1 | 2 | 4) && usize::from(at) % from.len() == 0);
        // Header and ways to interrupt are the host's; the command register is written as a whole.
        assert!(at >= 0x40 || (at, from.len()) == (4, 2), "{at:#x}");
        let mut chip = lock(&self.chip);
        chip.config[usize::from(at)..][..from.len()].copy_from_slice(from);
        // Bits of a command register that make it answer and write memory.
        chip.is_used |= at >= 0x40 || from[0] & 6 != 0;
        Ok(())
    }

    fn read_region(&self, bar: usize, at: u64, into: &mut [u8]) -> io::Result<()> {
        let region = self.info.regions[bar].as_ref().expect("a region");
        assert!(at + into.len() as u64 <= region.size);
        into.fill(0x11);
        Ok(())
    }

    fn write_region(&self, bar: usize, at: u64, from: &[u8]) -> io::Result<()> {
        let region = self.info.regions[bar].as_ref().expect("a region");
        assert!(at + from.len() as u64 <= region.size);
        Ok(())
    }

    fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    fn enable(&mut self, kind: Kind, bells: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        let most = if kind == Kind::Msi { self.info.msi } else { self.info.msix };
        assert!(bells.len() as u32 <= most);
        let mut chip = lock(&self.chip);
        assert!(chip.messages.as_ref().is_none_or(|(is, _)| *is == kind), "one way at a time");
        chip.messages = Some((kind, bells.iter().map(Option::is_some).collect()));
        Ok(())
    }

    fn attach(&mut self, kind: Kind, vector: u32, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut chip = lock(&self.chip);
        let (is, vectors) = chip.messages.as_mut().expect("messages are on");
        assert_eq!(*is, kind);
        vectors[vector as usize] = bell.is_some();
        Ok(())
    }

    fn disable(&mut self, kind: Kind) -> io::Result<()> {
        lock(&self.chip).messages.take_if(|(is, _)| *is == kind);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        let mut chip = lock(&self.chip);
        chip.config = chip.blank.clone();
        chip.is_used = false;
        Ok(())
    }

    fn map_dma(&mut self, address: u64, memory: vsp::Span) -> io::Result<()> {
        assert!(address + memory.len() as u64 <= RAM);
        let mut chip = lock(&self.chip);
        assert!(!chip.reaches, "what is mapped is mapped");
        chip.reaches = true;
        Ok(())
    }

    fn unmap_dma(&mut self, _: Option<(u64, u64)>) -> io::Result<()> {
        lock(&self.chip).reaches = false;
        Ok(())
    }

    fn kept(&self) -> Vec<Arc<OwnedFd>> {
        vec![Arc::clone(&self.file)]
    }
}

/// The function, and what is around it.
struct Rig {
    chip: Arc<Mutex<Chip>>,
    info: Info,
    /// Always there, but for a moment between two processes.
    bench: Option<Bench<Pci>>,
    guest: Option<GuestEnd>,
    controls: u64,
}

/// The configuration space of a function with everything, and what is behind it.
fn function(kind: u8) -> (Vec<u8>, Info) {
    let mut config = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x86, 0x80, 0xd3, 0x10]);
    put(6, &[0x10, 0]);
    put(0x34, &[0x40]);
    put(0x40, &[1, 0x60]);
    put(0x60, &[0x10, 0xa0, 2, 0]);
    put(0xa0, &[5, 0xc0, 0x86, 1]);
    put(0xc0, &[0x11, 0x10, 9, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
    put(0x10, &[if kind & 1 == 0 { 0 } else { 4 }]);
    put(0x100, &[3, 0, 1, 0]);
    let mappable = if kind & 2 == 0 { vec![(0, 0x4000)] } else { vec![] };
    let mut info = Info { config_size: 4096, msi: 8, msix: 10, is_resettable: true, ..Info::default() };
    info.regions[0] = Some(Region { size: 0x4000, offset: 0x1000, mappable });
    info.regions[2] = Some(Region { size: 0x100, offset: 0x8000, mappable: vec![(0, 0x100)] });
    (config, info)
}

/// A byte for the kind of function, a string that is laid over its configuration space from byte 4 on, then steps: a byte that says what
/// happens, and a string.
pub fn vpci(data: &[u8]) {
    let mut script = Script::new(data);
    let (Some(kind), Some(overlay)) = (script.byte(), script.string()) else { return };
    if let Ok(state) = State::decode(overlay) {
        // Whatever lies in a ledger is taken up, or refused.
        assert!(State::decode(&state.encode()).is_ok());
    }
    let (mut config, info) = function(kind);
    if kind & 4 != 0 {
        config[4..4 + overlay.len()].copy_from_slice(overlay);
        config[4..6].fill(0);
    }
    let chip = Chip { blank: config.clone(), config, messages: None, is_used: false, reaches: false };
    let mut rig = Rig { chip: Arc::new(Mutex::new(chip)), info, bench: None, guest: None, controls: 0 };
    let file = Arc::new(std::fs::File::open("/dev/null").expect("a file").into());
    let held = Held { chip: Arc::clone(&rig.chip), info: rig.info.clone(), file };
    // Of a function that makes no sense nothing is made.
    let Ok(device) = Pci::open(rig.origin(), Some(Box::new(held))) else { return };
    rig.bench = Some(Bench::with_vps(device, RAM, 3));
    rig.open();
    for _ in 0..STEPS {
        let (Some(what), Some(bytes)) = (script.byte(), script.string()) else { break };
        rig.step(what, bytes);
    }
    rig.finish();
}

impl Rig {
    fn origin(&self) -> Origin {
        let adopter = Box::new(Adopter(Arc::clone(&self.chip), self.info.clone()));
        Origin { name: "fuzz".into(), serial: 1, adopter }
    }

    fn bench(&mut self) -> &mut Bench<Pci> {
        self.bench.as_mut().expect("a device")
    }

    fn open(&mut self) {
        self.guest = Some(self.bench().open(CHANNEL, RING_PAGES));
    }

    fn step(&mut self, what: u8, bytes: &[u8]) {
        let flag = what & 16 != 0;
        match what % 8 {
            0 => self.send(bytes, flag),
            1 => self.introduce(),
            2 | 3 => self.access(bytes, what % 8 == 3),
            4 => self.look(),
            5 if flag => {
                let why = bytes.first().is_some_and(|byte| byte & 1 != 0).then_some("no");
                self.bench().core.refuse_mappings(why);
            }
            5 => self.reopen(),
            6 if flag => {
                self.controls += 1;
                let (id, payload) = (self.controls, r#"{"eject":{}}"#.to_owned());
                self.bench().core.send(&ToVsp::Control { id, payload });
                self.bench().settle();
            }
            6 => self.follow(),
            _ if flag => {
                let place = self.bench().core.regions().first().map(|(gpa, ..)| *gpa);
                place.into_iter().for_each(|gpa| self.bench().core.lose_region(gpa));
                self.bench().turn(0);
            }
            _ => {
                self.hand_over();
                self.bench().serve(true);
                self.bench().reopen_all();
            }
        }
        self.check();
    }

    /// What always holds.
    fn check(&mut self) {
        let bench = self.bench.as_mut().expect("a device");
        let function = bench.runtime.device().function().expect("a function");
        let chip = lock(&self.chip);
        let command = u16::from_le_bytes([chip.config[4], chip.config[5]]);
        if function.window().is_none() && chip.is_used {
            assert_eq!(command & !NO_LINE, 0, "a function that nobody uses writes no memory");
        }
        assert!(command & 4 == 0 || chip.reaches);
        assert!(function.interrupts.given().map(|(_, count)| count).sum::<u32>() <= function.bells().len());
        assert!(bench.core.interrupts().len() <= 128 && bench.core.traps().len() <= 16);
        for (gpa, bytes, offset) in bench.core.regions() {
            // The table of messages, and the page of bits behind it, are nobody's but ours.
            assert!((gpa | bytes | offset) % 4096 == 0 && bytes > 0);
            if let Some(msix) = function.config().msix() {
                let region = self.info.regions[msix.table.bar].as_ref().expect("a region");
                for table in [msix.table, msix.pending].iter().filter(|table| table.bar == msix.table.bar) {
                    let at = region.offset + table.at;
                    assert!(at + table.bytes <= offset || at >= offset + bytes);
                }
            }
        }
    }

    fn send(&mut self, payload: &[u8], wants_completion: bool) {
        if let Some(guest) = &mut self.guest {
            guest.send(&Outgoing::in_band(1, wants_completion), &[payload]);
        }
        self.bench().turn(0);
    }

    fn introduce(&mut self) {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let version = Version::V1_4.wire();
        self.send(&words(&[0x4249_0013, version]), true);
        self.send(&words(&[0x4249_0007, 0, WINDOW as u32, 0]), true);
        self.bench().settle();
    }

    /// A processor looks at a trap: which one, where in it, how, and what it writes.
    fn access(&mut self, bytes: &[u8], is_write: bool) {
        let mut script = Script::new(bytes);
        let (Some(which), Some(at)) = (script.byte(), script.word()) else { return };
        let value = u64::from(script.dword().unwrap_or(0)) << 32 | u64::from(script.dword().unwrap_or(!0));
        let traps = self.bench().core.traps();
        let size = 1u8 << (which >> 6);
        let Some((gpa, len)) = traps.get(usize::from(which & 63) % traps.len().max(1)) else { return };
        let at = u64::from(at) % len / u64::from(size) * u64::from(size);
        let id = self.bench().core.access(gpa + at, size, is_write.then_some(value.rotate_left(32)));
        let start = Instant::now();
        loop {
            match self.bench().core.try_answer() {
                Some(ToCore::AccessDone { id: done, .. }) => {
                    assert_eq!(done, id);
                    return;
                }
                Some(ToCore::ControlDone { .. }) => {}
                Some(other) => panic!("{other:?}"),
                None => {
                    // A guest whose ring is full makes room for its own answers.
                    self.take();
                    self.bench().turn(0);
                }
            }
            assert!(start.elapsed() < PATIENCE, "the access has no answer");
        }
    }

    fn take(&mut self) {
        while let Some((header, payload)) = self.guest.as_mut().and_then(GuestEnd::poll) {
            // The driver drops what is shorter, and waits for ever.
            assert!(payload.len() > 4 || payload.is_empty());
            assert!(matches!(header.packet_type, PacketType::COMPLETION | PacketType::IN_BAND));
        }
    }

    fn look(&mut self) {
        self.bench().settle();
        self.take();
        self.bench().settle();
    }

    /// What operators have been told meanwhile.
    fn forget_answers(&mut self) {
        self.bench().settle();
        while let Some(answer) = self.bench().core.try_answer() {
            assert!(matches!(answer, ToCore::ControlDone { .. }), "{answer:?}");
        }
    }

    fn reopen(&mut self) {
        self.look();
        self.forget_answers();
        self.bench().core.close(CHANNEL);
        self.until(&ToCore::Closed { channel: CHANNEL });
        self.forget_answers();
        {
            let chip = lock(&self.chip);
            assert!(
                !chip.reaches && chip.messages.is_none() && !chip.is_used,
                "a guest that has gone leaves nothing behind"
            );
        }
        self.open();
    }

    fn until(&mut self, wanted: &ToCore) {
        let start = Instant::now();
        loop {
            match self.bench().core.try_answer() {
                Some(answer) if answer == *wanted => return,
                Some(answer) => assert!(matches!(answer, ToCore::ControlDone { .. }), "{answer:?}"),
                None => self.bench().turn(0),
            }
            assert!(start.elapsed() < PATIENCE, "no {wanted:?}");
        }
    }

    fn hand_over(&mut self) {
        self.look();
        self.bench().core.send(&ToVsp::Quiesce {});
        self.until(&ToCore::Quiesced {});
    }

    fn follow(&mut self) {
        self.hand_over();
        let Bench { core, runtime } = self.bench.take().expect("a device");
        drop(runtime);
        let device = Pci::open(self.origin(), None).expect("a device");
        self.bench = Some(Bench::take_over(core, device));
        self.bench().settle();
    }

    /// An honest guest that comes after all this has its function.
    fn finish(&mut self) {
        self.bench().core.refuse_mappings(None);
        self.reopen();
        self.introduce();
        self.look();
        assert_eq!(self.bench().core.traps(), [(WINDOW, 0x2000)]);
        let id = self.bench().core.access(WINDOW + 0x1000, 4, None);
        let value = u64::from_le_bytes({
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&lock(&self.chip).config[..4]);
            bytes
        });
        self.until(&ToCore::AccessDone { id, value });
        // What is no message of a guest's is none for the parser either.
        assert!(GuestMessage::parse(&[]).is_err());
        let _ = self.bench().runtime.device().function().map(|function| function.backend().file().as_fd());
    }
}
