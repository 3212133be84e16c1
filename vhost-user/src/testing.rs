//! A front end and a guest in the test's own process: what a device is tested against, and what the fuzzer drives it with.
//!
//! [`Bench`] has the device in its runtime, whose turns are taken by hand, and the front end's end of the socket; [`GuestRing`] is the
//! driver's side of a ring. What outlives the process is in [`Bench::kill`]'s result.

mod guest;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::event::Doorbell;
use ipc::shm::{Mapping, SharedMemory};
use ipc::stream::Stream;
use vsp::notify::Notifier;

pub use self::guest::GuestRing;
use crate::face::{Face, feature};
use crate::runtime::Runtime;
use crate::wire::{HEADER, InflightLayout, protocol, request};

/// How long a test waits for what has to come.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Where the front end has the guest's memory, as it says.
pub const USER: u64 = 0x7000_0000_0000;
/// Entries of each ring.
pub const ENTRIES: u16 = 16;
/// Guest memory that a ring takes.
const RING: u64 = 4096;

/// A ring as the front end remembers it.
#[derive(Debug)]
struct Wires {
    kick: Doorbell,
    call: Doorbell,
    at: u64,
}

/// What outlives a device process: the guest's memory, its rings, and what is in flight.
#[derive(Debug)]
pub struct FrontEnd {
    /// The guest's memory, all of it from guest-physical 0 on.
    pub memory: Arc<Mapping>,
    file: SharedMemory,
    inflight: Option<(InflightLayout, OwnedFd)>,
    features: u64,
    protocol: u64,
    /// For rings of which length it has asked for memory.
    entries: u16,
    /// By queue.
    rings: Vec<Option<Wires>>,
}

/// An answer of the device's.
#[derive(Debug)]
pub struct Heard {
    /// To what.
    pub request: u32,
    /// What it says.
    pub payload: Vec<u8>,
    /// With what.
    pub fds: Vec<OwnedFd>,
}

/// A device in the test's own process.
#[derive(Debug)]
pub struct Bench<F> {
    /// The device in its runtime.
    pub runtime: Runtime<F>,
    /// The front end.
    pub front_end: FrontEnd,
    socket: Stream,
}

impl FrontEnd {
    /// With so much guest memory, whole pages. Rings are at its end.
    pub fn new(bytes: u64) -> FrontEnd {
        let file = SharedMemory::create("guest", bytes).expect("memory");
        let memory = Arc::new(Mapping::new(&file, 0, bytes).expect("a mapping"));
        FrontEnd {
            memory,
            file,
            inflight: None,
            features: feature::RING,
            protocol: protocol::REPLY_ACK
                | protocol::INFLIGHT_SHMFD
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::CONFIG
                | protocol::MQ,
            entries: ENTRIES,
            rings: Vec::new(),
        }
    }

    /// The driver uses these features, those of the ring included.
    pub fn with_features(self, features: u64) -> FrontEnd {
        FrontEnd { features, ..self }
    }

    /// It keeps nothing that is in flight (QEMU's network devices).
    pub fn forgetful(self) -> FrontEnd {
        FrontEnd { protocol: self.protocol & !protocol::INFLIGHT_SHMFD, ..self }
    }

    /// It believes that rings are shorter than the driver makes them.
    pub fn with_entries(self, entries: u16) -> FrontEnd {
        FrontEnd { entries, ..self }
    }

    /// Another process is to be given nothing of what was in flight: a guest that has reset the device.
    pub fn forget_inflight(&mut self) {
        self.inflight = None;
    }

    /// A second handle to all that it keeps.
    pub fn share(&self) -> FrontEnd {
        let clone = |bell: &Doorbell| {
            let fd = bell.as_fd().try_clone_to_owned().expect("a descriptor");
            Doorbell::from_fd(fd).expect("a bell")
        };
        let wires =
            |wires: &Wires| Wires { kick: clone(&wires.kick), call: clone(&wires.call), at: wires.at };
        FrontEnd {
            memory: Arc::clone(&self.memory),
            file: self.file.try_clone().expect("a descriptor"),
            inflight: self
                .inflight
                .as_ref()
                .map(|(layout, fd)| (*layout, fd.try_clone().expect("a descriptor"))),
            features: self.features,
            protocol: self.protocol,
            entries: self.entries,
            rings: self.rings.iter().map(|ring| ring.as_ref().map(wires)).collect(),
        }
    }

    /// The file that the guest's memory is.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The region of what is in flight, to be looked at.
    pub fn inflight(&self) -> Option<Mapping> {
        let (layout, fd) = self.inflight.as_ref()?;
        let memory = SharedMemory::from_fd(fd.try_clone().ok()?, layout.size).ok()?;
        Mapping::new(&memory, 0, layout.size).ok()
    }
}

impl<F: Face> Bench<F> {
    /// Connects a front end to a device, and says all that comes before the queues.
    pub fn new(face: F, front_end: FrontEnd) -> Bench<F> {
        let mut bench = Bench::silent(face, front_end);
        bench.introduce();
        bench
    }

    /// The same without a word.
    pub fn silent(face: F, front_end: FrontEnd) -> Bench<F> {
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        ours.set_nonblocking(true).expect("a socket that does not wait");
        theirs.set_nonblocking(true).expect("a socket that does not wait");
        let mut runtime = Runtime::without_listener(face, Notifier::silent()).expect("a runtime");
        while runtime.is_fencing() {
            runtime.turn(Some(Duration::ZERO)).expect("a turn");
        }
        runtime.admit(theirs.into()).expect("let in");
        Bench { runtime, front_end, socket: ours.into() }
    }

    /// Features, memory, and what is in flight.
    fn introduce(&mut self) {
        self.tell(request::SET_OWNER, &[], &[]);
        let offered = self.ask_number(request::GET_FEATURES);
        let wanted = self.front_end.features;
        assert_eq!(wanted & !offered, 0, "not offered: {:#x}", wanted & !offered);
        self.tell(request::SET_PROTOCOL_FEATURES, &self.front_end.protocol.to_ne_bytes(), &[]);
        self.tell(request::SET_FEATURES, &wanted.to_ne_bytes(), &[]);
        let file = self.front_end.file.try_clone().expect("a descriptor");
        let mut table = Vec::new();
        for long in [1, 0, self.front_end.file.len(), USER, 0] {
            table.extend_from_slice(&u64::to_ne_bytes(long));
        }
        self.tell(request::SET_MEM_TABLE, &table, &[file.as_fd()]);
        if self.front_end.protocol & protocol::INFLIGHT_SHMFD == 0 {
            return;
        }
        if self.front_end.inflight.is_none() {
            let queues = self.ask_number(request::GET_QUEUE_NUM) as u16;
            let wanted = InflightLayout { size: 0, offset: 0, queues, entries: self.front_end.entries };
            self.tell(request::GET_INFLIGHT_FD, &wanted.encode(), &[]);
            let mut heard = self.hear();
            let size = u64::from_ne_bytes(heard.payload[..8].try_into().expect("a size"));
            let fd = heard.fds.pop().expect("a descriptor");
            self.front_end.inflight = Some((InflightLayout { size, ..wanted }, fd));
        }
        if let Some((layout, fd)) = &self.front_end.inflight {
            let (layout, fd) = (layout.encode(), fd.try_clone().expect("a descriptor"));
            self.tell(request::SET_INFLIGHT_FD, &layout, &[fd.as_fd()]);
        }
    }

    /// Sends a message.
    pub fn tell(&self, what: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.socket.try_send(&message(what, payload), fds).expect("sent");
    }

    /// Sends any bytes; the device may have hung up.
    pub fn tell_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.socket.try_send(bytes, fds).is_ok()
    }

    /// The next answer, taking turns until it comes.
    pub fn hear(&mut self) -> Heard {
        let begin = Instant::now();
        loop {
            if let Some(heard) = self.try_hear() {
                return heard;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer came");
            self.turn(1);
        }
    }

    /// The next answer, if there is one.
    pub fn try_hear(&mut self) -> Option<Heard> {
        let mut header = [0; HEADER];
        let piece = self.socket.try_receive(&mut header).ok().filter(|piece| piece.len == HEADER)?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut payload = vec![0; word(8) as usize];
        if !payload.is_empty() {
            self.socket.try_receive(&mut payload).ok()?;
        }
        Some(Heard { request: word(0), payload, fds: piece.fds })
    }

    /// Asks for a number.
    pub fn ask_number(&mut self, what: u32) -> u64 {
        self.tell(what, &[], &[]);
        let heard = self.hear();
        assert_eq!(heard.request, what);
        u64::from_ne_bytes(heard.payload.try_into().expect("a number"))
    }

    /// Starts a queue, from the beginning.
    pub fn start(&mut self, queue: u16) -> GuestRing {
        let at = self.front_end.memory.len() as u64 - RING * (u64::from(queue) + 1);
        self.front_end.memory.write(at as usize, &[0; RING as usize]);
        let (kick, call) = (Doorbell::new().expect("a bell"), Doorbell::new().expect("a bell"));
        let place = usize::from(queue);
        if self.front_end.rings.len() <= place {
            self.front_end.rings.resize_with(place + 1, || None);
        }
        self.front_end.rings[place] = Some(Wires { kick, call, at });
        self.restart(queue);
        self.turn(2);
        let event_index = self.front_end.features & feature::EVENT_IDX != 0;
        GuestRing::new(Arc::clone(&self.front_end.memory), at, ENTRIES, event_index)
    }

    /// Says what there is to be said of a queue that was started before.
    pub fn restart(&self, queue: u16) {
        let Some(Some(wires)) = self.front_end.rings.get(usize::from(queue)) else { return };
        let number = u32::from(queue);
        let words = |a: u32, b: u32| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
        self.tell(request::SET_VRING_NUM, &words(number, ENTRIES.into()), &[]);
        // What QEMU says after a death is the used index; it is not believed anyway.
        self.tell(request::SET_VRING_BASE, &words(number, 0), &[]);
        let mut address = words(number, 0);
        let (descriptors, available, used) = guest::places(wires.at, ENTRIES);
        for part in [descriptors, used, available] {
            address.extend_from_slice(&(USER + part).to_ne_bytes());
        }
        address.extend_from_slice(&0u64.to_ne_bytes());
        self.tell(request::SET_VRING_ADDR, &address, &[]);
        self.tell(request::SET_VRING_CALL, &u64::from(queue).to_ne_bytes(), &[wires.call.as_fd()]);
        self.tell(request::SET_VRING_KICK, &u64::from(queue).to_ne_bytes(), &[wires.kick.as_fd()]);
        self.tell(request::SET_VRING_ENABLE, &words(number, 1), &[]);
    }

    /// Stops a queue; where it ends.
    pub fn stop(&mut self, queue: u16) -> u32 {
        let payload = [u32::from(queue).to_ne_bytes(), [0; 4]].concat();
        self.tell(request::GET_VRING_BASE, &payload, &[]);
        let heard = self.hear();
        assert_eq!(heard.request, request::GET_VRING_BASE);
        u32::from_ne_bytes(heard.payload[4..8].try_into().expect("a number"))
    }

    /// The driver rings.
    pub fn kick(&self, queue: u16) {
        if let Some(Some(wires)) = self.front_end.rings.get(usize::from(queue)) {
            wires.kick.signal().expect("a bell");
        }
    }

    /// Whether the driver has been told of anything since it was asked last.
    pub fn was_called(&self, queue: u16) -> bool {
        match self.front_end.rings.get(usize::from(queue)) {
            Some(Some(wires)) => wires.call.drain().expect("a bell"),
            _ => false,
        }
    }

    /// Takes turns that do not wait.
    pub fn turn(&mut self, count: usize) {
        for _ in 0..count {
            self.runtime.turn(Some(Duration::ZERO)).expect("a turn");
        }
    }

    /// Takes turns until so many requests have been used since the driver looked last: heads, and bytes that were written.
    pub fn wait(&mut self, ring: &mut GuestRing, count: usize) -> Vec<(u16, u32)> {
        let (begin, mut all) = (Instant::now(), Vec::new());
        loop {
            all.extend(ring.used());
            if all.len() >= count {
                return all;
            }
            assert!(begin.elapsed() < PATIENCE, "only {} of {count} requests have ended", all.len());
            self.runtime.turn(Some(Duration::from_millis(1))).expect("a turn");
        }
    }

    /// The process dies between two turns: nothing of it is dropped, nothing is cleaned up.
    pub fn kill(self) -> FrontEnd {
        std::mem::forget(self.runtime);
        self.front_end
    }

    /// The front end hangs up and the process ends in peace: what was in flight stays in flight, as far as the front end knows.
    pub fn leave(self) -> FrontEnd {
        let Bench { mut runtime, front_end, socket } = self;
        drop(socket);
        let begin = Instant::now();
        while !runtime.is_vacant() {
            assert!(begin.elapsed() < PATIENCE, "something never ends");
            runtime.turn(Some(Duration::from_millis(1))).expect("a turn");
        }
        front_end
    }

    /// Another process takes over what the front end has: all queues that were started are again.
    pub fn take_over(face: F, front_end: FrontEnd) -> Bench<F> {
        let mut bench = Bench::new(face, front_end);
        (0..bench.front_end.rings.len() as u16).for_each(|queue| bench.restart(queue));
        bench.turn(2);
        bench
    }

    /// The front end hangs up, and the device has noticed.
    pub fn hang_up(&mut self) {
        let (ours, _) = UnixStream::pair().expect("a socket");
        self.socket = ours.into();
        let begin = Instant::now();
        while self.runtime.is_connected() {
            assert!(begin.elapsed() < PATIENCE, "nobody notices");
            self.turn(1);
        }
    }

    /// The front end hangs up, unless it has, and connects anew to the same process.
    pub fn reconnect(&mut self) {
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        ours.set_nonblocking(true).expect("a socket that does not wait");
        theirs.set_nonblocking(true).expect("a socket that does not wait");
        self.socket = ours.into();
        let begin = Instant::now();
        while !self.runtime.is_vacant() {
            assert!(begin.elapsed() < PATIENCE, "nobody is let in");
            self.turn(1);
        }
        self.runtime.admit(theirs.into()).expect("let in");
        self.introduce();
        (0..self.front_end.rings.len() as u16).for_each(|queue| self.restart(queue));
        self.turn(2);
    }
}

/// A message's bytes.
pub fn message(what: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = crate::wire::answer(what, payload);
    // A request of version 1 without need of an acknowledgement.
    bytes[4] = 1;
    bytes
}
