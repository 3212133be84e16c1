//! The real program in its real compartment, with hardware that the test plays.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; tests may panic")]
#![allow(unsafe_code, reason = "descriptors are handed over between fork and exec")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vsp::ipc::message::{STATUS_OK, ToCore, ToVsp};
use vsp::ipc::socket::Peer;
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, PacketType};
use vsp_pci::mock::{Hardware, Model};

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_mock-pci");
/// Where the guest has its configuration window.
pub const WINDOW: u64 = 0xf800_0000;
/// Where it has its registers.
pub const PLACE: u64 = 0xf900_0000;
/// Where the table of messages is.
pub const TABLE: u64 = PLACE + 0x4_0000;
/// Bytes of RAM.
pub const RAM: u64 = 4 << 20;
/// Nothing takes so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// New hardware.
pub fn hardware(model: Model) -> Hardware {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path: PathBuf = std::env::temp_dir().join(format!("bulkhead-mock-{}-{number}", std::process::id()));
    Hardware::start(&path, model).unwrap()
}

/// A running program; killed when the test is over.
pub struct Process(Child);

impl Process {
    /// Starts it; it has said hello, or will have.
    pub fn start(socket: Peer, hardware: &Hardware, arguments: &[String]) -> Process {
        Process::start_by(Command::new(PROGRAM), socket, hardware, arguments)
    }

    /// The same by a command that ends with the program's name.
    pub fn start_by(
        mut command: Command,
        socket: Peer,
        hardware: &Hardware,
        arguments: &[String],
    ) -> Process {
        let core = OwnedFd::from(socket);
        let number = core.as_raw_fd();
        command.args([
            "--device",
            "nic",
            "--log-level",
            "error",
            "--address",
            "0000:00:05.0",
            "--group",
            "7",
        ]);
        command.arg("--mock").arg(hardware.path()).args(["--core-fd", &number.to_string()]).args(arguments);
        command.stdin(Stdio::null());
        // SAFETY: between fork and exec only async-signal-safe calls are made.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Process(command.spawn().unwrap())
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it by SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Whether it has ended.
    pub fn is_dead(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        while !self.is_dead() {
            assert!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_micros(100));
        }
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of words.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A VM whose device process may die at any moment and is then replaced.
pub struct World {
    pub hardware: Hardware,
    pub core: FakeCore,
    pub process: Process,
    pub end: GuestEnd,
    pub deaths: Vec<Option<i32>>,
    /// Number of the last question.
    last: u64,
}

impl World {
    /// A guest that has opened its channel, to a process with these arguments.
    pub fn new(model: Model, arguments: &[String]) -> World {
        let hardware = hardware(model);
        let (core, socket) = FakeCore::new(RAM);
        let process = Process::start(socket, &hardware, arguments);
        core.welcome();
        let end = core.open(1, 4);
        let mut world = World::with(hardware, core, process, end);
        world.opened();
        world
    }

    /// A guest whose channel is open.
    pub fn with(hardware: Hardware, core: FakeCore, process: Process, end: GuestEnd) -> World {
        World { hardware, core, process, end, deaths: Vec::new(), last: 0 }
    }

    /// Waits until the channel is open, with whichever process.
    fn opened(&mut self) {
        let start = Instant::now();
        loop {
            match self.core.try_answer() {
                Some(ToCore::OpenResult { status, reason, .. }) => {
                    assert_eq!(status, STATUS_OK, "{reason:?}");
                    return;
                }
                Some(_) => {}
                None if self.process.is_dead() => {
                    self.replace();
                    self.core.reopen(1);
                }
                None => {}
            }
            assert!(start.elapsed() < PATIENCE, "the channel does not open");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn replace(&mut self) {
        self.deaths.push(self.process.wait().code());
        let (_, socket) = self.core.successor();
        self.process = Process::start(socket, &self.hardware, &[]);
        self.core.greet(false);
        self.core.serve(true);
    }

    /// Starts another process if the one that there was is dead; true: it was.
    pub fn revive(&mut self) -> bool {
        self.core.attend();
        let is_dead = self.process.is_dead();
        if is_dead {
            self.replace();
            self.core.reopen(1);
            self.opened();
        }
        is_dead
    }

    /// Says something.
    pub fn say(&mut self, message: &[u8], wants_completion: bool) {
        let start = Instant::now();
        self.last += 1;
        let packet = Outgoing::in_band(self.last, wants_completion);
        while !self.end.send(&packet, &[message]) {
            self.revive();
            assert!(start.elapsed() < PATIENCE, "the ring stays full");
        }
    }

    /// The next packet.
    pub fn hear(&mut self) -> (PacketType, u64, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some((header, payload)) = self.end.poll() {
                return (header.packet_type, header.transaction_id, payload);
            }
            self.revive();
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Asks, and waits for the completion, which is for this question.
    pub fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.say(message, true);
        let (kind, id, payload) = self.hear();
        assert_eq!((kind, id), (PacketType::COMPLETION, self.last));
        assert_eq!(payload[..4], [0; 4], "{message:x?}");
        payload
    }

    /// A processor reads or writes; if a process dies, the next one is asked.
    pub fn access(&mut self, gpa: u64, bytes: u8, write: Option<u64>) -> u64 {
        let id = self.core.access(gpa, bytes, write);
        let start = Instant::now();
        loop {
            if let Some(ToCore::AccessDone { id: done, value }) = self.core.try_answer() {
                assert_eq!(done, id);
                return value;
            }
            if self.revive() {
                self.core.send(&ToVsp::Access { id, gpa, bytes, write });
            }
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn read_config(&mut self, at: u64, bytes: u8) -> u64 {
        self.access(WINDOW, 4, Some(0));
        self.access(WINDOW + 0x1000 + at, bytes, None)
    }

    pub fn write_config(&mut self, at: u64, bytes: u8, value: u64) {
        self.access(WINDOW, 4, Some(0));
        self.access(WINDOW + 0x1000 + at, bytes, Some(value));
    }

    /// Asks for an interrupt; its number.
    pub fn create(&mut self, vector: u32) -> u32 {
        let mut message = words(&[0x4249_001b, 0, vector]);
        message.extend([0, 0, 1, 0, 1, 0, 0, 0]);
        message.resize(12 + 4 + 2 + 64, 0);
        u32::from_le_bytes(*self.ask(&message)[12..].first_chunk().unwrap())
    }

    pub fn set_entry(&mut self, vector: u32, number: u32) {
        let at = TABLE + 16 * u64::from(vector);
        for (offset, value) in [(12, 1), (0, 0xfee0_0000), (4, 0), (8, number.into()), (12, 0)] {
            self.access(at + offset, 4, Some(value));
        }
    }

    /// Gives an interrupt back.
    pub fn delete(&mut self, number: u32) {
        let mut message = words(&[0x4249_0015, 0]);
        message.extend([0, 0, 1, 0]);
        message.extend(words(&[number, 0xfee0_0000, 0]));
        self.say(&message, false);
    }

    /// Whether an interrupt has come.
    pub fn interrupted(&self, number: u32) -> bool {
        let bell = self.core.interrupt_bell(number);
        bell.is_some_and(|bell| nix::unistd::read(&bell, &mut [0; 8]).is_ok())
    }

    /// What a NIC's driver does from its probe until packets flow; `disturb` between its steps.
    pub fn live(&mut self, mut disturb: impl FnMut(&mut World)) {
        self.ask(&words(&[0x4249_0013, 0x1_0004]));
        disturb(self);
        self.say(&words(&[0x4249_0001]), false);
        let (kind, _, relations) = self.hear();
        assert_eq!((kind, &relations[..8]), (PacketType::IN_BAND, &words(&[0x4249_0019, 1])[..]));
        self.ask(&words(&[0x4249_0005, 0]));
        disturb(self);
        self.ask(&words(&[0x4249_0007, 0, WINDOW as u32, 0]));
        disturb(self);
        let mut assigned = words(&[0x4249_0016, 0]);
        assigned.resize(202, 0);
        self.ask(&assigned);
        for (bar, place) in [(0, PLACE), (1, PLACE + 0x2_0000), (3, TABLE)] {
            self.write_config(0x10 + 4 * bar, 4, u32::MAX.into());
            self.write_config(0x10 + 4 * bar, 4, place);
        }
        disturb(self);
        self.write_config(4, 2, 0x406);
        disturb(self);
        self.write_config(0xc2, 2, 0xc000);
        let numbers = [0, 1, 2].map(|vector| {
            let number = self.create(0x40 + vector);
            self.set_entry(vector, number);
            disturb(self);
            number
        });
        self.write_config(0xc2, 2, 0x8000);
        disturb(self);
        for (vector, number) in numbers.into_iter().enumerate() {
            self.interrupted(number);
            assert!(self.hardware.interrupt(vector), "{vector}");
            assert!(self.interrupted(number), "{vector}");
        }
        assert_eq!(self.read_config(0, 4), 0x10d3_8086);
        assert_eq!(self.core.regions().len(), 3);
        for number in numbers {
            disturb(self);
            self.delete(number);
        }
        self.say(&words(&[0x4249_0011, 0]), false);
        self.ask(&words(&[0x4249_0008]));
        disturb(self);
        self.core.attend();
        assert_eq!(
            (self.core.regions(), self.core.traps(), self.core.interrupts()),
            (vec![], vec![], vec![])
        );
    }
}
