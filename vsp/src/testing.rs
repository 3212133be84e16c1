//! A core and a guest for tests of a device: the other end of the control socket, real memfds and eventfds,
//! the guest's end of the rings.
//!
//! It follows the protocol; a test that wants to break it has the raw parts at hand.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipc::event::Doorbell;
use ipc::message::{Offer, RamRegion, RingLayout, ToCore, ToVsp};
use ipc::shm::{EventFlags, GuestRam, PAGE, RingMapping, SharedMemory, VMBUS_SINT};
use ipc::socket::{Peer, SocketError};
use vmbus::packet::{Outgoing, PacketHeader};
use vmbus::ring::{PushError, RingReader, RingWriter};

use crate::attach::attach;
use crate::device::Device;
use crate::runtime::{Flow, Runtime};

/// How long a test waits for anything before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// The core's end of a control socket.
#[derive(Debug)]
pub struct FakeCore {
    peer: Peer,
    /// Guest RAM, if there is any: one region from address 0.
    pub ram: Option<GuestRam>,
    memory: Option<SharedMemory>,
}

/// The guest's end of an open channel.
#[derive(Debug)]
pub struct GuestEnd {
    /// Guest to host.
    pub writer: RingWriter<RingMapping>,
    /// Host to guest.
    pub reader: RingReader<RingMapping>,
    /// Rings at the device.
    pub kick: Doorbell,
    /// Rings at the guest.
    pub interrupt: Doorbell,
    flags: EventFlags,
    flag: u32,
}

impl FakeCore {
    /// A core for a VM with `ram` bytes of RAM (0: the device gets none), and the socket for the device.
    pub fn new(ram: u64) -> (FakeCore, Peer) {
        let (core, vsp) = Peer::pair().expect("a socket pair");
        let memory = (ram > 0).then(|| SharedMemory::create("test-ram", ram).expect("memory"));
        let region = RamRegion { gpa: 0, len: ram, offset: 0 };
        let ram = memory.as_ref().map(|memory| GuestRam::new(memory, &[region]).expect("mapped"));
        (FakeCore { peer: core, ram, memory }, vsp)
    }

    /// Waits for the device's hello and welcomes it; what it offers.
    pub fn welcome(&self) -> Offer {
        let (hello, _) = self.peer.recv::<ToCore>().expect("a hello");
        let ToCore::Hello { versions, offer, .. } = hello else { panic!("no hello: {hello:?}") };
        self.send_welcome(versions.max);
        offer
    }

    fn send_welcome(&self, version: u32) {
        let len = self.memory.as_ref().map(SharedMemory::len);
        let ram = len.map(|len| vec![RamRegion { gpa: 0, len, offset: 0 }]);
        let fds: Vec<_> = self.memory.iter().map(AsFd::as_fd).collect();
        let welcome = ToVsp::Welcome { version, vm: "test".into(), vps: 1, ram, standby: false };
        self.peer.send(&welcome, &fds).expect("sent");
    }

    /// Sends the open request of a channel whose rings have `data_pages` data pages each. The answer is read by
    /// [`FakeCore::answer`].
    pub fn open(&self, channel: u32, data_pages: u32) -> GuestEnd {
        let pages = data_pages + 1;
        let memory =
            SharedMemory::create("test-channel", u64::from(2 * pages) * PAGE as u64).expect("memory");
        let flags_page = SharedMemory::create("test-flags", PAGE as u64).expect("memory");
        let to_host = RingMapping::new(&memory, 0, pages).expect("mapped");
        let to_guest = RingMapping::new(&memory, u64::from(pages) * PAGE as u64, pages).expect("mapped");
        vmbus::ring::initialize(&to_host);
        vmbus::ring::initialize(&to_guest);
        let end = GuestEnd {
            writer: RingWriter::new(to_host).expect("a ring"),
            reader: RingReader::new(to_guest).expect("a ring"),
            kick: Doorbell::new().expect("an eventfd"),
            interrupt: Doorbell::new().expect("an eventfd"),
            flags: EventFlags::new(&flags_page).expect("mapped"),
            flag: 100 + channel,
        };
        let open = ToVsp::ChannelOpen {
            channel,
            subchannel: 0,
            ring: RingLayout { pages: 2 * pages, to_host_pages: pages },
            target_vp: 0,
            flag: end.flag,
            user_data: Vec::new(),
        };
        let fds = [memory.as_fd(), end.kick.as_fd(), end.interrupt.as_fd(), flags_page.as_fd()];
        self.peer.send(&open, &fds).expect("sent");
        end
    }

    /// Sends the close request of a channel.
    pub fn close(&self, channel: u32) {
        self.peer.send(&ToVsp::ChannelClose { channel }, &[]).expect("sent");
    }

    /// The socket itself.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The next message of the device, waiting for it.
    pub fn answer(&self) -> ToCore {
        self.peer.recv::<ToCore>().expect("an answer").0
    }

    /// The next message of the device, if there is one.
    pub fn try_answer(&self) -> Option<ToCore> {
        match self.peer.try_recv::<ToCore>() {
            Ok((message, _)) => Some(message),
            Err(SocketError::WouldBlock) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

impl GuestEnd {
    /// Sends a packet; rings only if the ring's rules say so. False: the ring is full.
    pub fn send(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> bool {
        match self.writer.push(packet, parts) {
            Ok(()) => {}
            Err(PushError::Full { .. }) => return false,
            Err(error) => panic!("{error}"),
        }
        if self.writer.publish() {
            self.kick.signal().expect("rung");
        }
        true
    }

    /// The next packet and its payload, if there is one. Rings if the device waits for room.
    pub fn poll(&mut self) -> Option<(PacketHeader, Vec<u8>)> {
        let mut scratch = Vec::new();
        let header = self.reader.next(&mut scratch).expect("a sound ring")?;
        if self.reader.publish() {
            self.kick.signal().expect("rung");
        }
        Some((header, header.payload(&scratch).to_vec()))
    }

    /// Like [`GuestEnd::poll`], waiting for it as a guest does: asleep until it is signalled.
    pub fn wait(&mut self) -> (PacketHeader, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no packet came");
            while !self.signalled() {
                assert!(start.elapsed() < PATIENCE, "no signal came; the packet: {:?}", self.poll());
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Takes an interrupt as a guest's handler does: true if there was one and the channel's flag was set.
    /// (An interrupt may find the flag clear, if the handler of the one before has seen it already.)
    pub fn signalled(&mut self) -> bool {
        self.interrupt.drain().expect("drained") && self.flags.clear(VMBUS_SINT, self.flag)
    }
}

/// A device in the test's own process, without compartment: turns are taken by hand.
pub struct Bench<D> {
    /// The core's end.
    pub core: FakeCore,
    /// The device in its runtime.
    pub runtime: Runtime<D>,
}

impl<D: Device> Bench<D> {
    /// Attaches `device` to a core for a VM with `ram` bytes of RAM.
    pub fn new(device: D, ram: u64) -> Bench<D> {
        let (core, vsp) = FakeCore::new(ram);
        let mut runtime = Runtime::new(device).expect("a runtime");
        // The answer waits in the socket before it is asked for.
        core.send_welcome(ipc::message::VERSIONS.max);
        let vm = attach(&vsp, "test", runtime.device()).expect("attached");
        assert!(matches!(core.answer(), ToCore::Hello { .. }));
        runtime.attached(vsp, vm).expect("attached");
        Bench { core, runtime }
    }

    /// Opens a channel with `data_pages` data pages each way.
    pub fn open(&mut self, channel: u32, data_pages: u32) -> GuestEnd {
        let end = self.core.open(channel, data_pages);
        self.settle();
        assert_eq!(self.core.answer(), ToCore::OpenResult { channel, status: 0, reason: None });
        end
    }

    /// Closes a channel and waits until it is.
    pub fn close(&mut self, channel: u32) {
        self.core.close(channel);
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "channel {channel} did not close");
            self.turn(1);
            match self.core.try_answer() {
                Some(ToCore::Closed { channel: closed }) if closed == channel => return,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
    }

    /// One turn that waits at most `milliseconds` for something to do.
    pub fn turn(&mut self, milliseconds: u64) {
        let flow = self.runtime.turn(Some(Duration::from_millis(milliseconds))).expect("a turn");
        assert_eq!(flow, Flow::Continue);
    }

    /// Some turns without waiting: enough for whatever can happen at once.
    pub fn settle(&mut self) {
        (0..4).for_each(|_| self.turn(0));
    }

    /// Takes turns until the device has answered; the packet and its payload.
    pub fn wait(&mut self, guest: &mut GuestEnd) -> (PacketHeader, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = guest.poll() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no answer came");
            self.turn(1);
        }
    }
}
