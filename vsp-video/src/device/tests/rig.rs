//! A guest's driver, the device, and a console.

use std::time::{Duration, Instant};

use seat::video::{ConsoleEnd, DeviceEnd, FromConsole, ToConsole};
use seat::{Received, Sent};
use vsp::testing::{Bench, FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, PacketType};

use crate::cli::Setting;
use crate::device::Video;
use crate::state::Situation;
use crate::wire::{Features, GuestMessage, HostMessage, Resolution, Version};

pub const VRAM_MEGABYTES: u16 = 8;
pub const VRAM: u64 = 8 << 20;
pub const GPA: u64 = 0xf800_0000;
pub const SITUATION: Situation =
    Situation { active: true, offset: 0, depth_bits: 32, width: 1024, height: 768, pitch: 4096 };

/// What a process says of a pointer that it has not heard of.
pub const NO_POINTER: ToConsole = ToConsole::PointerPosition { x: 0, y: 0, visible: false };

/// The supervisor's ends of the pair, from which each process gets its own.
pub struct Ends {
    device: std::os::fd::OwnedFd,
    pub console: ConsoleEnd,
}

impl Ends {
    pub fn new() -> Ends {
        let (device, console) = DeviceEnd::pair().unwrap();
        Ends { device: device.into(), console }
    }

    /// A process's device.
    pub fn video(&self) -> Video {
        let seat = DeviceEnd::from_fd(self.device.try_clone().unwrap()).unwrap();
        let preferred = Resolution { width: 1024, height: 768 };
        Video::open(Setting { vram_megabytes: VRAM_MEGABYTES, preferred }, seat).unwrap()
    }

    /// What the console hears now.
    pub fn heard(&self) -> Vec<Received<ToConsole>> {
        std::iter::from_fn(|| self.console.receive().unwrap()).collect()
    }

    /// The same without memory.
    pub fn messages(&self) -> Vec<ToConsole> {
        self.heard().into_iter().map(|received| received.message).collect()
    }

    pub fn say(&self, message: FromConsole) {
        assert_eq!(self.console.send(&message, None).unwrap(), Sent::Whole);
    }
}

pub struct Rig {
    pub ends: Ends,
    pub bench: Bench<Video>,
    pub guest: GuestEnd,
}

impl Rig {
    /// A guest that has just opened its channel; the console has heard that there is no picture.
    pub fn new() -> Rig {
        let ends = Ends::new();
        let mut bench = Bench::new(ends.video(), 0);
        let guest = bench.open(1, 16);
        let mut rig = Rig { ends, bench, guest };
        rig.settle();
        let heard = rig.ends.messages();
        assert!(
            matches!(heard[..], [ToConsole::Hello { .. }, ToConsole::NoSurface, NO_POINTER]),
            "{heard:?}"
        );
        rig
    }

    /// A guest whose picture is shown to somebody who looks.
    pub fn shown() -> Rig {
        let mut rig = Rig::new();
        rig.ends.say(FromConsole::Watched(true));
        rig.introduce();
        rig.settle();
        assert!(rig.ends.messages().iter().any(|message| matches!(message, ToConsole::Surface(_))));
        rig
    }

    /// What a driver says first, up to its situation.
    pub fn introduce(&mut self) {
        assert_eq!(
            self.ask(&GuestMessage::VersionRequest(Version::V3_5)),
            HostMessage::VersionResponse { version: Version::V3_5, accepted: true }
        );
        let HostMessage::ResolutionResponse { resolutions, preferred } =
            self.ask(&GuestMessage::ResolutionRequest { most: 64 })
        else {
            panic!("no resolutions")
        };
        assert_eq!(resolutions[usize::from(preferred)], Resolution { width: 1024, height: 768 });
        self.locate(GPA);
        self.situation(SITUATION);
        assert_eq!(self.told(), [HostMessage::FeatureChange(Features::ALL)]);
    }

    pub fn locate(&mut self, gpa: u64) {
        let message = GuestMessage::VramLocation { context: gpa, gpa: Some(gpa) };
        assert_eq!(self.ask(&message), HostMessage::VramLocationAck { context: gpa });
    }

    pub fn situation(&mut self, situation: Situation) {
        let message = GuestMessage::SituationUpdate { context: 77, situation: Some(situation) };
        assert_eq!(self.ask(&message), HostMessage::SituationUpdateAck { context: 77 });
    }

    /// Says something, and waits for what comes next.
    pub fn ask(&mut self, message: &GuestMessage<'_>) -> HostMessage {
        self.say(message);
        let (header, payload) = self.bench.wait(&mut self.guest);
        assert_eq!(header.packet_type, PacketType::IN_BAND);
        HostMessage::parse(&payload).unwrap()
    }

    /// Says something.
    pub fn say(&mut self, message: &GuestMessage<'_>) {
        self.say_bytes(&message.encode());
    }

    pub fn say_bytes(&mut self, payload: &[u8]) {
        let start = Instant::now();
        while !self.guest.send(&Outgoing::in_band(9, false), &[payload]) {
            self.bench.turn(1);
            assert!(start.elapsed() < Duration::from_secs(20), "the ring stays full");
        }
    }

    /// What the guest is told now without having asked.
    pub fn told(&mut self) -> Vec<HostMessage> {
        self.settle();
        std::iter::from_fn(|| self.guest.poll())
            .map(|(_, payload)| HostMessage::parse(&payload).unwrap())
            .collect()
    }

    pub fn settle(&mut self) {
        self.bench.settle();
    }

    /// Takes turns for a time.
    pub fn pass(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.bench.turn(5);
        }
    }

    /// The process dies, and another takes over; the console hears what there is to hear.
    pub fn die(self) -> Rig {
        let Rig { ends, bench, guest } = self;
        let core = bench.kill();
        Rig::take_over(ends, core, guest)
    }

    pub fn take_over(ends: Ends, core: FakeCore, guest: GuestEnd) -> Rig {
        let bench = Bench::take_over(core, ends.video());
        let mut rig = Rig { ends, bench, guest };
        rig.settle();
        rig
    }
}
