//! The real program in its real compartment.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; tests may panic")]
#![allow(unsafe_code, reason = "descriptors are handed over between fork and exec")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use seat::video::{ConsoleEnd, DeviceEnd, FromConsole, Rect, ToConsole};
use vsp::ipc::message::ToCore;
use vsp::ipc::socket::Peer;
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::Outgoing;
use vsp_video::state::Situation;
use vsp_video::wire::{Dirt, GuestMessage, HostMessage, Version};

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vsp-video");
/// Where the guest has its video memory.
pub const GPA: u64 = 0xf800_0000;
/// Bytes of it.
pub const VRAM: u64 = 8 << 20;
/// The guest's picture.
pub const SITUATION: Situation =
    Situation { active: true, offset: 0, depth_bits: 32, width: 1024, height: 768, pitch: 4096 };

/// Both ends of the seat, as the supervisor keeps them.
pub struct Ends {
    device: OwnedFd,
    /// The console's.
    pub console: ConsoleEnd,
}

impl Ends {
    /// A new pair.
    pub fn new() -> Ends {
        let (device, console) = DeviceEnd::pair().unwrap();
        Ends { device: device.into(), console }
    }

    /// The console says something.
    pub fn say(&self, message: FromConsole) {
        let _ = self.console.send(&message, None).unwrap();
    }

    /// What the console hears now.
    pub fn messages(&self) -> Vec<ToConsole> {
        std::iter::from_fn(|| self.console.receive().unwrap()).map(|received| received.message).collect()
    }
}

/// A running program; killed when the test is over.
pub struct Process(Child);

impl Process {
    /// Starts it; it has said hello, or will have.
    pub fn start(socket: Peer, ends: &Ends, arguments: &[String]) -> Process {
        Process::start_by(Command::new(PROGRAM), socket, ends, arguments)
    }

    /// The same by a command that ends with the program's name.
    pub fn start_by(mut command: Command, socket: Peer, ends: &Ends, arguments: &[String]) -> Process {
        let (core, seat) = (OwnedFd::from(socket), ends.device.try_clone().unwrap());
        let numbers = [core.as_raw_fd(), seat.as_raw_fd()];
        let [core_fd, seat_fd] = numbers.map(|number| number.to_string());
        command.args([
            "--device",
            "video",
            "--log-level",
            "error",
            "--vram",
            "8",
            "--resolution",
            "1024x768",
        ]);
        command.args(["--core-fd", &core_fd, "--seat-fd", &seat_fd]).args(arguments).stdin(Stdio::null());
        // SAFETY: between fork and exec only async-signal-safe calls are made.
        unsafe {
            command.pre_exec(move || {
                for number in numbers {
                    if libc::fcntl(number, libc::F_SETFD, 0) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
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
            assert!(start.elapsed() < Duration::from_secs(20), "it does not end");
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

fn ask(core: &FakeCore, end: &mut GuestEnd, message: &GuestMessage<'_>) -> HostMessage {
    assert!(end.send(&Outgoing::in_band(1, false), &[&message.encode()]));
    let start = Instant::now();
    loop {
        core.attend();
        while let Some((_, payload)) = end.poll() {
            match HostMessage::parse(&payload).unwrap() {
                HostMessage::FeatureChange(_) => {}
                answer => return answer,
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "no answer to {message:?}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Waits until the console hears this.
fn heard(ends: &Ends, what: impl Fn(&ToConsole) -> bool) {
    let start = Instant::now();
    while !ends.messages().iter().any(&what) {
        assert!(start.elapsed() < Duration::from_secs(20), "the console does not hear of it");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// What an honest guest does with its screen, and a console with it; `look` is called while the picture is shown.
pub fn live(core: &FakeCore, ends: &Ends, look: impl FnOnce()) {
    let mut end = core.open(1, 16);
    assert_eq!(core.answer(), ToCore::OpenResult { channel: 1, status: 0, reason: None });
    ask(core, &mut end, &GuestMessage::VersionRequest(Version::V3_5));
    ask(core, &mut end, &GuestMessage::ResolutionRequest { most: 64 });
    ask(core, &mut end, &GuestMessage::VramLocation { context: 1, gpa: Some(GPA) });
    assert_eq!(core.mapped(), [(GPA, VRAM)]);
    ask(core, &mut end, &GuestMessage::SituationUpdate { context: 1, situation: Some(SITUATION) });
    heard(ends, |message| matches!(message, ToConsole::Surface(_)));
    ends.say(FromConsole::Watched(false));
    ends.say(FromConsole::Watched(true));
    heard(ends, |message| *message == ToConsole::AllDirty);
    let dirt = Dirt::message(&[Rect { x1: 1, y1: 2, x2: 3, y2: 4 }; 64]);
    assert!(end.send(&Outgoing::in_band(1, false), &[&dirt]));
    heard(ends, |message| matches!(message, ToConsole::Dirty(_)));
    look();
    core.close(1);
    assert_eq!(core.answer(), ToCore::Closed { channel: 1 });
    heard(ends, |message| *message == ToConsole::NoSurface);
}
