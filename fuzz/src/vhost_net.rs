//! The other face of a NIC: a guest that breaks every rule it likes, behind a front end that keeps to them.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vhost_face::testing::{Bench, FrontEnd, GuestRing};
use vhost_face::{Face, feature};
use vsp_net::backend::{Backend, Stream};
use vsp_net::cli::{Mac, Memory, Setting};
use vsp_net::virtio::Net;

use crate::Script;

/// All descriptors of an honest guest name places below, and rings are at the end.
const RAM: u64 = 1 << 18;
/// Nobody names these bytes: nobody may write there.
const GUARD: std::ops::Range<u64> = 0x2_0000..0x2_1000;
const UNTOUCHED: u8 = 0xa5;
/// Where indirect tables and frames are, and where buffers.
const TABLES: u64 = 0x1000;
const FRAMES: u64 = 0x8000;
const BUFFERS: u64 = 0x1_0000;
/// Steps of a script; more would only make it slow.
const STEPS: usize = 64;
const PAIRS: u16 = 2;
const MAC: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 1];
const PEER: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 2];
const HEAD: usize = 12;

struct Rig {
    bench: Option<Bench<Net>>,
    rings: Vec<GuestRing>,
    /// The guest has kept to the rules of rings so far.
    honest: Vec<bool>,
    wire: UnixStream,
    theirs: UnixStream,
    setting: Setting,
    features: u64,
    /// The guest has made tables of its own: it may have named anything.
    wild_tables: bool,
    /// Bytes that have been given from outside: all together fit into the socket, as half a frame would be the end of the stream.
    given: usize,
}

/// Most of them.
const MOST_GIVEN: usize = 80_000;

impl Rig {
    fn new(traits: u8) -> Rig {
        let (wire, theirs) = UnixStream::pair().expect("a socket");
        wire.set_nonblocking(true).expect("a socket that does not wait");
        let setting = Setting {
            device: "fuzz".into(),
            mac: Mac(MAC),
            mtu: if traits & 1 != 0 { 9000 } else { 1500 },
            memory: Memory::Confined,
            antispoof: traits & 2 != 0,
            link_up: traits & 0x1c != 0x1c,
            queues: PAIRS,
        };
        let mut rig = Rig {
            bench: None,
            rings: Vec::new(),
            honest: vec![true; usize::from(PAIRS) * 2],
            wire,
            theirs,
            setting,
            features: 0,
            wild_tables: false,
            given: 0,
        };
        let net = rig.net();
        let mut features = feature::RING | net.features();
        for (mark, bit) in [(0x20, feature::EVENT_IDX), (0x40, 1 << 15), (0x80, feature::VERSION_1)] {
            if traits & mark != 0 {
                features &= !bit;
            }
        }
        rig.features = features;
        let mut front_end = FrontEnd::new(RAM).with_features(features);
        if traits & 0x11 == 0x11 {
            front_end = front_end.forgetful();
        }
        front_end.memory.write(GUARD.start as usize, &[UNTOUCHED; 0x1000]);
        let mut bench = Bench::new(net, front_end);
        rig.rings = (0..PAIRS * 2).map(|queue| bench.start(queue)).collect();
        rig.bench = Some(bench);
        rig
    }

    fn net(&self) -> Net {
        let ours = OwnedFd::from(self.theirs.try_clone().expect("a descriptor"));
        let backend = Backend::Stream(Stream::new(ours).expect("a stream"));
        Net::open(self.setting.clone(), backend).expect("a NIC")
    }

    fn bench(&mut self) -> &mut Bench<Net> {
        self.bench.as_mut().expect("there is always somebody")
    }

    /// A request of an honest driver, as long as there is room. `what`: bits for an indirect table, and how many pieces.
    fn request(&mut self, queue: usize, what: u8, place: u16, len: u16) {
        // A driver that has broken its ring's rules has lost count.
        if !self.honest[queue] || self.rings[queue].room() < 4 {
            return;
        }
        let (base, whole) = if queue.is_multiple_of(2) { (BUFFERS, 0x4000) } else { (FRAMES, 0x4000) };
        let at = base + u64::from(place) % 0x2000;
        let pieces = u64::from(what % 4) + 1;
        let each = u64::from(len) % (whole / 2 / pieces) + 1;
        let parts: Vec<_> = (0..pieces).map(|n| (at + n * each, each as u32)).collect();
        let (readable, writable) =
            if queue.is_multiple_of(2) { (&[][..], &parts[..]) } else { (&parts[..], &[][..]) };
        if what & 0x80 != 0 {
            let table = TABLES + u64::from(what & 0x78) * 0x40;
            self.rings[queue].send_indirect(table, readable, writable);
        } else {
            self.rings[queue].send(readable, writable);
        }
        self.bench().kick(queue as u16);
    }

    /// What has come back from a driver's queues that it has kept in order.
    fn reap(&mut self) {
        for (ring, _) in self.rings.iter_mut().zip(&self.honest).filter(|(_, honest)| **honest) {
            ring.used();
        }
    }

    /// A frame from outside, or what looks like one.
    fn receive(&mut self, bytes: &[u8], len: u16) {
        let mut frame = bytes.to_vec();
        frame.resize(usize::from(len % 9100), 0x5a);
        self.given += frame.len();
        if self.given > MOST_GIVEN {
            return;
        }
        let _ = self.wire.write_all(&[&(frame.len() as u32).to_be_bytes()[..], &frame].concat());
    }

    fn drain(&mut self) -> Vec<u8> {
        let (mut all, mut bytes) = (Vec::new(), [0; 16384]);
        while let Ok(count @ 1..) = self.wire.read(&mut bytes) {
            all.extend_from_slice(&bytes[..count]);
        }
        all
    }

    /// The process ends, and another one follows. It holds nothing by then; what the front end knows to be in flight still is.
    fn succeed(&mut self) {
        let front_end = self.end();
        self.bench = Some(Bench::take_over(self.net(), front_end));
    }

    fn end(&mut self) -> FrontEnd {
        self.bench.take().expect("there is always somebody").leave()
    }
}

/// A life of a guest with a NIC; see [`step`]. The process lives, writes nowhere but where it is told to, and an honest guest that comes
/// afterwards is served.
pub fn vhost_net(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(traits) = script.byte() else { return };
    let mut rig = Rig::new(traits);
    for _ in 0..STEPS {
        if step(&mut rig, &mut script).is_none() {
            break;
        }
    }
    rig.bench().turn(2);
    let mut guard = [0; (GUARD.end - GUARD.start) as usize];
    rig.bench().front_end.memory.read(GUARD.start as usize, &mut guard);
    assert!(
        rig.wild_tables || guard.iter().all(|byte| *byte == UNTOUCHED),
        "bytes that nobody has named were written"
    );
    rig.end();
    honest(rig);
}

/// One step: a byte says what, and what follows is its own.
fn step(rig: &mut Rig, script: &mut Script<'_>) -> Option<()> {
    let what = script.byte()?;
    let queue = usize::from(what >> 4) % rig.rings.len();
    if !rig.bench().runtime.is_connected() {
        // A ring that makes no sense cannot be started, and its front end hears that.
        return None;
    }
    match what % 16 {
        0..=3 => rig.request(queue, script.byte()?, script.word()?, script.word()?),
        4 => {
            let (at, bytes) = (u64::from(script.word()?), script.string()?);
            // Wherever a driver has its frames, buffers and tables.
            let at = TABLES + at % (GUARD.start - TABLES - 0x100);
            rig.wild_tables |= at < FRAMES;
            rig.bench().front_end.memory.write(at as usize, bytes);
        }
        5 | 6 => {
            let (bytes, len) = (script.string()?, script.word()?);
            rig.receive(bytes, len);
        }
        7 | 8 => rig.bench().turn(2),
        9 => {
            rig.reap();
            rig.drain();
        }
        10 => {
            let (index, place) = (script.byte()?, address(script.word()?));
            let (len, flags, next) = (script.dword()?, script.byte()?, script.byte()?);
            rig.honest[queue] = false;
            // Not so long that it could reach what is guarded.
            let len = if place < GUARD.start { len % 0x100 } else { len };
            let (flags, next) = (u16::from(flags % 8), (next % 20).into());
            rig.wild_tables |= flags & 4 != 0;
            rig.rings[queue].write_descriptor((index % 16).into(), place, len, flags, next);
        }
        11 => {
            rig.honest[queue] = false;
            rig.rings[queue].offer((script.byte()? % 20).into());
            rig.bench().kick(queue as u16);
        }
        12 => {
            rig.honest[queue] = false;
            rig.rings[queue].set_available(script.word()?);
            rig.bench().kick(queue as u16);
        }
        13 => {
            let queue = queue as u16;
            rig.bench().stop(queue);
            rig.bench().restart(queue);
            rig.bench().turn(2);
        }
        14 => rig.succeed(),
        _ => {
            let queue = queue as u16;
            rig.bench().kick(queue);
            rig.bench().turn(1);
        }
    }
    Some(())
}

/// Addresses that a guest names in descriptors of its own making: below what is guarded, with some room, or not in RAM at all.
fn address(word: u16) -> u64 {
    match word % 16 {
        14 => RAM + u64::from(word >> 4),
        15 => u64::MAX - u64::from(word >> 4),
        _ => u64::from(word) % (GUARD.start - 0x200),
    }
}

/// The same NIC with a driver that means well: whatever has been before, frames go both ways.
fn honest(mut rig: Rig) {
    rig.drain();
    rig.setting.link_up = true;
    let mut bench =
        Bench::new(rig.net(), FrontEnd::new(RAM).with_features(rig.features | feature::VERSION_1));
    let (mut receive, mut send) = (bench.start(0), bench.start(1));
    let frame = |to: [u8; 6], from: [u8; 6]| [&to[..], &from, &[0x88, 0xb5], &[0x77; 50]].concat();
    let out = frame(PEER, MAC);
    bench.front_end.memory.write(FRAMES as usize, &[&[0; HEAD][..], &out].concat());
    send.send(&[(FRAMES, (HEAD + out.len()) as u32)], &[]);
    bench.kick(1);
    assert_eq!(bench.wait(&mut send, 1).len(), 1);
    assert!(rig.drain().ends_with(&out), "it has not been sent");
    // What has come for the one before comes first; with buffers enough it all goes by.
    let into = frame(MAC, PEER);
    let mut tries = 0;
    let _ = rig.wire.write_all(&[&(into.len() as u32).to_be_bytes()[..], &into].concat());
    loop {
        while receive.room() > 0 {
            let at = BUFFERS + 0x2800 * (receive.room() as u64 % 5);
            receive.send(&[], &[(at, 0x2400)]);
        }
        bench.kick(0);
        let used = bench.wait(&mut receive, 1);
        if used.iter().any(|(_, len)| *len as usize == HEAD + into.len()) {
            break;
        }
        tries += 1;
        assert!(tries < 2 * STEPS, "the frame does not come");
    }
    for queue in 0..2 {
        bench.stop(queue);
    }
}
