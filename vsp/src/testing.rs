//! A core and a guest for tests of a device: the other end of the control socket, real memfds and eventfds,
//! the guest's end of the rings.
//!
//! It follows the protocol; a test that wants to break it has the raw parts at hand. As the real one it keeps what outlives
//! a device process (RAM, rings, ledgers), so that a test can end one process and go on with the next
//! ([`FakeCore::successor`]), and tells that of the open channels together with the order to serve ([`FakeCore::early`]), unless something comes
//! before them.

mod bench;
mod mapping;
mod memory;
mod passthrough;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ipc::event::Doorbell;
use ipc::message::{
    CONTROL_VERSION, EARLY_VERSION, Offer, RamRegion, RingLayout, STATUS_OK, ToCore, ToVsp, VERSIONS,
};
use ipc::shm::{EventFlags, GuestRam, PAGE, RingMapping, SharedMemory, VMBUS_SINT};
use ipc::socket::Peer;
use vmbus::packet::{Outgoing, PacketHeader};
use vmbus::ring::{PushError, RingReader, RingWriter};

pub use bench::Bench;
pub use passthrough::Target;

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The core's end of a control socket.
#[derive(Debug)]
pub struct FakeCore {
    peer: Peer,
    /// Guest RAM, if there is any: one region from address 0.
    pub ram: Option<GuestRam>,
    /// What a welcome says of the number of VPs; 1 unless changed.
    pub vps: u32,
    /// The newest version of the control protocol that it speaks; that of this build unless changed.
    pub version: u32,
    /// Whether a process that understands it is told of the open channels right after the order to serve; else each time that
    /// [`FakeCore::reopen`] says so, as by an older core.
    pub early: bool,
    memory: Option<SharedMemory>,
    /// The version that the last one that was greeted speaks with it.
    spoken: Cell<u32>,
    /// Bytes of ledger that the device has asked for.
    ledger: Cell<u64>,
    channels: RefCell<Vec<Held>>,
    /// Channels that a process which has begun to serve has still to be given; `None`: it has been told that it has all.
    owed: RefCell<Option<Vec<u32>>>,
    /// Channels that it has been given already, and that a test has still to ask for.
    ahead: RefCell<Vec<u32>>,
    /// GPADLs that the guest has made.
    gpadls: RefCell<Vec<(u32, SharedMemory)>>,
    /// What the guest sees of the device's memory.
    mappings: RefCell<Vec<mapping::Mapped>>,
    /// Why nothing is mapped.
    refusal: RefCell<Option<String>>,
    passed: passthrough::Passed,
    /// What the device has said and nobody has asked for.
    heard: RefCell<VecDeque<ToCore>>,
}

/// A channel as the core has it.
#[derive(Debug)]
struct Held {
    channel: u32,
    subchannel: u16,
    ring: RingLayout,
    flag: u32,
    memory: SharedMemory,
    kick: OwnedFd,
    interrupt: OwnedFd,
    flags: SharedMemory,
    ledger: Option<SharedMemory>,
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
        let (peer, vsp) = Peer::pair().expect("a socket pair");
        let memory = (ram > 0).then(|| SharedMemory::create("test-ram", ram).expect("memory"));
        let region = RamRegion { gpa: 0, len: ram, offset: 0 };
        let ram = memory.as_ref().map(|memory| GuestRam::new(memory, &[region]).expect("mapped"));
        let (ledger, channels, owed) = (Cell::new(0), RefCell::new(Vec::new()), RefCell::new(None));
        let core = FakeCore {
            peer,
            ram,
            vps: 1,
            version: VERSIONS.max,
            early: true,
            memory,
            spoken: Cell::new(0),
            ledger,
            channels,
            owed,
            ahead: RefCell::default(),
            gpadls: RefCell::default(),
            mappings: RefCell::default(),
            refusal: RefCell::default(),
            passed: passthrough::Passed::default(),
            heard: RefCell::default(),
        };
        (core, vsp)
    }

    /// Waits for the device's hello, welcomes it and has it serve; what it offers.
    pub fn welcome(&self) -> Offer {
        let offer = self.greet(false);
        self.serve(false);
        offer
    }

    /// Waits for the device's hello and welcomes it, to stand by or to serve when it is told; what it offers.
    pub fn greet(&self, standby: bool) -> Offer {
        let (hello, _) = self.peer.recv::<ToCore>().expect("a hello");
        let ToCore::Hello { versions, offer, ledger, .. } = hello else { panic!("no hello: {hello:?}") };
        self.ledger.set(ledger);
        let len = self.memory.as_ref().map(SharedMemory::len);
        let ram = len.map(|len| vec![RamRegion { gpa: 0, len, offset: 0 }]);
        let fds: Vec<_> = self.memory.iter().map(AsFd::as_fd).collect();
        let (version, vps) = (versions.max.min(self.version), self.vps);
        self.spoken.set(version);
        let welcome = ToVsp::Welcome { version, vm: "test".into(), vps, ram, standby };
        self.peer.send(&welcome, &fds).expect("sent");
        offer
    }

    /// Has the device serve, and waits until it does.
    pub fn serve(&self, predecessor: bool) {
        self.send(&ToVsp::Serve { predecessor });
        assert_eq!(self.answer(), ToCore::Serving {});
    }

    /// Has the device hand over, and waits until it has.
    pub fn quiesce(&self) {
        self.send(&ToVsp::Quiesce {});
        assert_eq!(self.answer(), ToCore::Quiesced {});
    }

    /// Goes on with another process: its socket. The one until now is given back; dropping it ends its process.
    pub fn successor(&mut self) -> (Peer, Peer) {
        let (peer, vsp) = Peer::pair().expect("a socket pair");
        (self.go_on_with(peer), vsp)
    }

    /// Goes on with a process that was left before; the one until now is given back.
    pub fn go_on_with(&mut self, peer: Peer) -> Peer {
        self.heard.borrow_mut().clear();
        self.ahead.borrow_mut().clear();
        std::mem::replace(&mut self.peer, peer)
    }

    /// Sends the open request of a channel whose rings have `data_pages` data pages each. The answer is read by
    /// [`FakeCore::answer`].
    pub fn open(&self, channel: u32, data_pages: u32) -> GuestEnd {
        self.open_subchannel(channel, 0, data_pages)
    }

    /// The same for a sub-channel.
    pub fn open_subchannel(&self, channel: u32, subchannel: u16, data_pages: u32) -> GuestEnd {
        let pages = data_pages + 1;
        let memory =
            SharedMemory::create("test-channel", u64::from(2 * pages) * PAGE as u64).expect("memory");
        let flags = SharedMemory::create("test-flags", PAGE as u64).expect("memory");
        let to_host = RingMapping::new(&memory, 0, pages).expect("mapped");
        let to_guest = RingMapping::new(&memory, u64::from(pages) * PAGE as u64, pages).expect("mapped");
        vmbus::ring::initialize(&to_host);
        vmbus::ring::initialize(&to_guest);
        let end = GuestEnd {
            writer: RingWriter::new(to_host).expect("a ring"),
            reader: RingReader::new(to_guest).expect("a ring"),
            kick: Doorbell::new().expect("an eventfd"),
            interrupt: Doorbell::new().expect("an eventfd"),
            flags: EventFlags::new(&flags).expect("mapped"),
            flag: 100 + channel,
        };
        let ledger = self.ledger.get();
        self.channels.borrow_mut().push(Held {
            channel,
            subchannel,
            ring: RingLayout { pages: 2 * pages, to_host_pages: pages },
            flag: end.flag,
            memory,
            kick: end.kick.as_fd().try_clone_to_owned().expect("duplicated"),
            interrupt: end.interrupt.as_fd().try_clone_to_owned().expect("duplicated"),
            flags,
            ledger: (ledger > 0).then(|| SharedMemory::create("test-ledger", ledger).expect("memory")),
        });
        self.reopen(channel);
        end
    }

    /// Sends the open request of a channel that is open already, as a successor gets it; it may have it since it was told to serve.
    pub fn reopen(&self, channel: u32) {
        if self.ahead.borrow_mut().extract_if(.., |one| *one == channel).count() == 0 {
            self.give(channel);
        }
    }

    fn give(&self, channel: u32) {
        let channels = self.channels.borrow();
        let held = channels.iter().find(|held| held.channel == channel).expect("an open channel");
        let open = ToVsp::ChannelOpen {
            channel,
            subchannel: held.subchannel,
            ring: held.ring,
            target_vp: 0,
            flag: held.flag,
            user_data: Vec::new(),
        };
        let mut fds =
            vec![held.memory.as_fd(), held.kick.as_fd(), held.interrupt.as_fd(), held.flags.as_fd()];
        fds.extend(held.ledger.as_ref().map(AsFd::as_fd));
        self.peer.send(&open, &fds).expect("sent");
        self.given(channel);
    }

    /// A process that has begun to serve need not be given this channel any more. If it was the last, it is told so.
    fn given(&self, channel: u32) {
        let mut owed = self.owed.borrow_mut();
        let Some(left) = owed.as_mut() else { return };
        left.retain(|one| *one != channel);
        if left.is_empty() {
            *owed = None;
            if self.version >= CONTROL_VERSION {
                // A process that has gone need not know.
                let _ = self.peer.send(&ToVsp::Adopted {}, &[]);
            }
        }
    }

    /// Has a successor take up all channels, and waits until it has.
    pub fn reopen_all(&self) {
        for channel in self.open_channels() {
            self.reopen(channel);
            let opened = ToCore::OpenResult { channel, status: STATUS_OK, reason: None };
            assert_eq!(self.answer(), opened);
        }
    }

    /// The channels that are open, in the order in which they were opened.
    pub fn open_channels(&self) -> Vec<u32> {
        self.channels.borrow().iter().map(|held| held.channel).collect()
    }

    /// The ledger of an open channel, if it has one.
    pub fn ledger(&self, channel: u32) -> Option<SharedMemory> {
        let channels = self.channels.borrow();
        let held = channels.iter().find(|held| held.channel == channel)?;
        Some(held.ledger.as_ref()?.try_clone().expect("duplicated"))
    }

    /// The rings of an open channel.
    pub fn rings(&self, channel: u32) -> Option<SharedMemory> {
        let channels = self.channels.borrow();
        let held = channels.iter().find(|held| held.channel == channel)?;
        Some(held.memory.try_clone().expect("duplicated"))
    }

    /// Sends the close request of a channel.
    pub fn close(&self, channel: u32) {
        let is_it = |held: &mut Held| held.channel == channel;
        self.ahead.borrow_mut().retain(|one| *one != channel);
        let closed = self.channels.borrow_mut().extract_if(.., is_it).last();
        if closed.is_some_and(|held| held.subchannel == 0) {
            self.mappings.borrow_mut().clear();
            self.end_passed();
        }
        self.send(&ToVsp::ChannelClose { channel });
        self.given(channel);
    }

    /// Forgets a channel whose opening was refused.
    pub fn forget(&self, channel: u32) {
        self.channels.borrow_mut().retain(|held| held.channel != channel);
        self.given(channel);
    }

    /// The socket itself.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends a message without descriptors. Whoever is told to serve is told as well what is mapped, and that it has been given all
    /// channels: at once if none is open or it is [given them](Self::early) at once, else with the last that it is given.
    pub fn send(&self, message: &ToVsp) {
        let serve = matches!(message, ToVsp::Serve { .. });
        if serve {
            self.give_kept();
        }
        self.peer.send(message, &[]).expect("sent");
        if serve {
            self.give_mappings();
            self.give_passed();
            *self.owed.borrow_mut() = Some(self.open_channels());
            self.given(u32::MAX);
            if self.gives_early() {
                let all = self.open_channels();
                all.iter().for_each(|channel| self.give(*channel));
                *self.ahead.borrow_mut() = all;
            }
        }
    }

    fn gives_early(&self) -> bool {
        let is_first = self.mappings.borrow().is_empty() && !self.has_passed();
        self.early && self.spoken.get() >= EARLY_VERSION && is_first
    }

    /// The next message of the device, waiting for it.
    pub fn answer(&self) -> ToCore {
        loop {
            if let Some(heard) = self.heard.borrow_mut().pop_front() {
                return heard;
            }
            // If the device dies before it has read all, that is told before what it has said.
            let said = self.peer.recv::<ToCore>().or_else(|_| self.peer.recv::<ToCore>());
            let (message, fds) = said.expect("an answer");
            self.hear(message, fds);
        }
    }

    /// The next message of the device, if there is one.
    pub fn try_answer(&self) -> Option<ToCore> {
        self.attend();
        self.heard.borrow_mut().pop_front()
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
