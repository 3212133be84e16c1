//! A guest of the tests: what a virtio_net driver does, one step at a time.

use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use vhost_face::feature;
use vhost_face::testing::{Bench, ENTRIES, FrontEnd, GuestRing, PATIENCE};

use crate::backend::wire::Wire;
use crate::cli::{Mac, Memory, Setting};
use crate::virtio::Net;
use crate::virtio::features::Features;

/// The NIC's address.
pub const MAC: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 1];
/// Somebody else's.
pub const PEER: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 2];
/// Bytes of guest memory.
pub const RAM: u64 = 4 << 20;
/// Where frames to be sent are, one for each head of a ring.
const FRAMES: u64 = 0x10_0000;
/// Bytes for each.
const FRAME: u64 = 0x1_0000;
/// Where buffers are.
const BUFFERS: u64 = 0x1_0000;
/// Bytes of a header.
pub const HEADER: usize = 12;
/// Nothing is left to do.
pub const PLAIN: [u8; HEADER] = [0; HEADER];

/// How the NIC is started.
pub fn setting() -> Setting {
    Setting {
        device: "net0".into(),
        mac: Mac(MAC),
        mtu: 1500,
        memory: Memory::Confined,
        antispoof: false,
        link_up: true,
        queues: 1,
    }
}

/// What a driver takes, unless a test wants it otherwise.
pub fn features() -> u64 {
    feature::RING | (Features::MRG_RXBUF | Features::MAC | Features::STATUS | Features::MTU).bits()
}

/// A frame that has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    pub header: [u8; HEADER],
    pub frame: Vec<u8>,
    pub buffers: usize,
}

/// The world of a test: a NIC, its guest, and the wire.
pub struct World {
    /// Never dropped: a process that ends does not clean up, and what it has taken is its successor's.
    pub bench: ManuallyDrop<Bench<Net>>,
    pub setting: Setting,
    pub wire: Wire,
    /// Receive queue and the other, of each pair.
    pub pairs: Vec<[GuestRing; 2]>,
    /// Bytes of each buffer.
    pub buffer: u32,
    /// Where the buffer with each head is, and which come next.
    places: Vec<[u64; ENTRIES as usize]>,
    next: u64,
}

impl World {
    /// A NIC whose driver has given all buffers.
    pub fn new() -> World {
        World::with(setting(), features(), 2048)
    }

    pub fn with(setting: Setting, features: u64, buffer: u32) -> World {
        let mut world = World::bare(setting, features, buffer);
        (0..world.pairs.len()).for_each(|pair| world.give_all(pair));
        world
    }

    /// The same without any buffers.
    pub fn bare(setting: Setting, features: u64, buffer: u32) -> World {
        let wire = Wire::new();
        let net = Net::open(setting.clone(), wire.backend()).unwrap();
        let mut bench = ManuallyDrop::new(Bench::new(net, FrontEnd::new(RAM).with_features(features)));
        let pairs =
            (0..setting.queues).map(|pair| [bench.start(pair * 2), bench.start(pair * 2 + 1)]).collect();
        let places = vec![[0; ENTRIES as usize]; setting.queues.into()];
        World { bench, setting, wire, pairs, buffer, places, next: 0 }
    }

    /// Another process of the device takes over.
    pub fn succeed(self) -> World {
        let World { bench, setting, wire, pairs, buffer, places, next } = self;
        let front_end = ManuallyDrop::into_inner(bench).kill();
        let net = Net::open(setting.clone(), wire.backend()).unwrap();
        let bench = ManuallyDrop::new(Bench::take_over(net, front_end));
        World { bench, setting, wire, pairs, buffer, places, next }
    }

    /// Gives buffers until the queue is full.
    pub fn give_all(&mut self, pair: usize) {
        while self.pairs[pair][0].room() > 0 {
            self.give(pair);
        }
        self.bench.kick(pair as u16 * 2);
    }

    /// Gives one.
    pub fn give(&mut self, pair: usize) {
        let at = BUFFERS + self.next % 64 * 0x2000;
        self.next += 1;
        let head = self.pairs[pair][0].send(&[], &[(at, self.buffer)]);
        self.places[pair][usize::from(head)] = at;
    }

    /// Makes a frame available, cut where nothing begins; its head.
    pub fn push(&mut self, pair: usize, header: &[u8; HEADER], frame: &[u8]) -> u16 {
        let at = FRAMES + (self.next % 32) * FRAME;
        self.next += 1;
        let bytes = [&header[..], frame].concat();
        self.bench.front_end.memory.write(at as usize, &bytes);
        let cut = bytes.len().min(30) as u32;
        let parts = [(at, cut), (at + u64::from(cut), bytes.len() as u32 - cut)];
        self.pairs[pair][1].send(&parts[..if parts[1].1 > 0 { 2 } else { 1 }], &[])
    }

    /// Sends a frame, and waits for the end of its request.
    pub fn send(&mut self, header: &[u8; HEADER], frame: &[u8]) {
        let head = self.push(0, header, frame);
        self.bench.kick(1);
        let ended = self.bench.wait(&mut self.pairs[0][1], 1);
        assert_eq!(ended, [(head, 0)]);
    }

    /// The next frame of a pair's, if there is one; its buffers are given again.
    pub fn poll(&mut self, pair: usize) -> Option<Received> {
        let received = self.look(pair)?;
        self.give_all(pair);
        Some(received)
    }

    /// The same, and its buffers are not given again. One frame at a time.
    pub fn look(&mut self, pair: usize) -> Option<Received> {
        let used = self.pairs[pair][0].used();
        let mut bytes = Vec::new();
        for (head, len) in &used {
            let mut part = vec![0; *len as usize];
            assert!(*len <= self.buffer);
            self.bench.front_end.memory.read(self.places[pair][usize::from(*head)] as usize, &mut part);
            bytes.extend(part);
        }
        let header = *bytes.first_chunk::<HEADER>()?;
        Some(Received { header, frame: bytes.split_off(HEADER), buffers: used.len() })
    }

    /// The frame in these buffers, and how many its header says that there are.
    pub fn received(&self, pair: usize, used: &[(u16, u32)]) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        for (head, len) in used {
            let mut part = vec![0; *len as usize];
            self.bench.front_end.memory.read(self.places[pair][usize::from(*head)] as usize, &mut part);
            bytes.extend(part);
        }
        (bytes[10], bytes.split_off(HEADER))
    }

    /// The next frame, which comes.
    pub fn next(&mut self, pair: usize) -> Received {
        let begin = Instant::now();
        loop {
            if let Some(received) = self.poll(pair) {
                return received;
            }
            assert!(begin.elapsed() < PATIENCE, "no frame comes");
            self.turn(1);
        }
    }

    /// One turn, which waits so long at most.
    pub fn turn(&mut self, milliseconds: u64) {
        self.bench.runtime.turn(Some(Duration::from_millis(milliseconds))).unwrap();
    }

    /// Some turns.
    pub fn settle(&mut self) {
        self.bench.turn(4);
    }

    pub fn net(&self) -> &Net {
        self.bench.runtime.face()
    }
}
