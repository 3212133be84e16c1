//! A keyboard in the test's own process, its guest's driver, and the console.

use std::os::fd::OwnedFd;
use std::time::Duration;

use seat::keyboard::{self, FromConsole, ToConsole};
use seat::{Received, Seat, Sent};
use vsp::testing::{Bench, FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, PacketType};

use super::super::{Hid, build};
use crate::keyboard::{GuestMessage, HostMessage, Key, Keyboard, Prefix};

/// No time at all from one packet to the next.
pub const AT_ONCE: Duration = Duration::ZERO;
/// The channel of all tests.
pub const CHANNEL: u32 = 1;

/// A keyboard, its guest, and the console.
pub struct World {
    pub bench: Bench<Hid<Keyboard>>,
    pub guest: GuestEnd,
    pub console: keyboard::ConsoleEnd,
    /// The device's end of the socket, which all its processes have.
    pub end: OwnedFd,
    pub each: Duration,
}

pub fn process(end: &OwnedFd, each: Duration) -> Hid<Keyboard> {
    Hid::new(Keyboard::new(false), Seat::from_fd(end.try_clone().unwrap()).unwrap(), each)
}

impl World {
    /// The channel is open, and the driver has said nothing.
    pub fn opened(each: Duration, pages: u32) -> World {
        let (device, console) = keyboard::DeviceEnd::pair().unwrap();
        let end = OwnedFd::from(device);
        let mut bench = Bench::new(process(&end, each), 0);
        let guest = bench.open(CHANNEL, pages);
        World { bench, guest, console, end, each }
    }

    /// The driver listens, and the console knows.
    pub fn ready(each: Duration) -> World {
        let mut world = World::opened(each, 9);
        world.introduce();
        assert_eq!(world.heard()[..2], [hello(), ToConsole::Ready(false)]);
        world
    }

    pub fn introduce(&mut self) {
        let request = GuestMessage::ProtocolRequest(1 << 16).encode();
        assert!(self.guest.send(&Outgoing::in_band(7, true), &[&request]));
        let (completion, payload) = self.bench.wait(&mut self.guest);
        assert_eq!((completion.packet_type, completion.transaction_id), (PacketType::COMPLETION, 7));
        assert!(payload.is_empty());
        assert_eq!(self.said(), [HostMessage::ProtocolResponse { accepted: true }]);
    }

    /// What the guest is told.
    pub fn said(&mut self) -> Vec<HostMessage> {
        self.bench.settle();
        self.waiting()
    }

    /// What lies in the guest's ring.
    pub fn waiting(&mut self) -> Vec<HostMessage> {
        let mut said = Vec::new();
        while let Some((header, payload)) = self.guest.poll() {
            if header.packet_type == PacketType::IN_BAND {
                assert!(!header.completion_requested());
                said.push(HostMessage::parse(&payload).unwrap());
            }
        }
        said
    }

    /// What the console is told.
    pub fn heard(&self) -> Vec<ToConsole> {
        std::iter::from_fn(|| self.console.receive().unwrap().map(|Received { message, .. }| message))
            .collect()
    }

    pub fn tell(&self, event: &FromConsole) -> Sent {
        self.console.send(event, None).unwrap()
    }

    /// The number of the event that waits in the socket.
    pub fn console_number(&self) -> u64 {
        let end: keyboard::DeviceEnd = Seat::from_fd(self.end.try_clone().unwrap()).unwrap();
        end.peek().unwrap().unwrap().number
    }

    /// The same message under this number, which is in the header's second half.
    pub fn bytes_with(&self, number: u64, message: &[u8]) -> Vec<u8> {
        let mut bytes = message.to_vec();
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    /// The process dies; nobody serves.
    pub fn kill(self) -> Grave {
        let World { bench, guest, console, end, each } = self;
        Grave { core: bench.kill(), guest, console, end, each }
    }
}

/// What is left of a world whose process is dead.
pub struct Grave {
    pub core: FakeCore,
    pub guest: GuestEnd,
    pub console: keyboard::ConsoleEnd,
    pub end: OwnedFd,
    pub each: Duration,
}

impl Grave {
    pub fn rise(self) -> World {
        let Grave { core, guest, console, end, each } = self;
        let bench = Bench::take_over(core, process(&end, each));
        World { bench, guest, console, end, each }
    }
}

pub fn hello() -> ToConsole {
    ToConsole::Hello { build: build() }
}

pub fn key(code: u8, up: bool) -> FromConsole {
    FromConsole::Key(keyboard::Key { scancode: code.into(), e0: false, e1: false, up })
}

pub fn stroke(code: u8, up: bool) -> HostMessage {
    HostMessage::Key { key: Key { code, prefix: Prefix::None }, up }
}
