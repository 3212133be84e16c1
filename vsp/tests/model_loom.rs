//! The ring and the ledger under loom: every interleaving of a guest and a host that the memory model allows, with the
//! host dying between any two stores and its successor going on beside the guest.
//!
//! Three requests, the first two of them a batch, one of which changes the device's state; the rings begin one packet
//! before their end. Checked: each request is answered once, none is lost (nobody looks who was not woken, save a new
//! process once), nobody reads what another writes, the state is that of the visible completions.
//!
//! And a loan, lent twice: the guest never has it twice at a time, and it comes home.
//!
//! Interleavings are bounded by preemptions (of a thread that could have gone on): 3 for one death, 1 for two deaths, of
//! which the first is at every ninth store only. With `BULKHEAD_MODEL_LONG` in the environment there is no bound for
//! one death, and two deaths are at every pair of stores.
#![allow(unsafe_code, clippy::unwrap_used)]

mod model;

use std::sync::atomic::AtomicU32 as Plain;
use std::sync::atomic::Ordering::Relaxed;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicU32, fence};
use vmbus::packet::{Outgoing, PacketType};
use vmbus::ring::{ControlWord, RingMemory, RingReader, RingWriter};

use model::Host;

const LEN: u32 = 4096;
/// A packet: descriptor, 8 bytes, trailer.
const BLOCK: u32 = 32;
/// Where the rings stand at first.
const START: u32 = LEN - BLOCK;
/// Packets that fit into the part of a ring that is there.
const BLOCKS: usize = 4;

/// A ring of which only the part exists that the test comes to.
#[derive(Clone)]
struct LoomRing(Arc<Inner>);

struct Inner {
    control: [AtomicU32; 5],
    data: [UnsafeCell<[u8; BLOCK as usize]>; BLOCKS],
}

// SAFETY: that accesses do not race is what loom checks; it ends the test at the first one that does.
unsafe impl Sync for Inner {}
// SAFETY: as above.
unsafe impl Send for Inner {}

impl LoomRing {
    fn new() -> LoomRing {
        let control = [START, START, 0, 0, 1].map(AtomicU32::new);
        let data = std::array::from_fn(|_| UnsafeCell::new([0; BLOCK as usize]));
        LoomRing(Arc::new(Inner { control, data }))
    }

    fn word(&self, word: ControlWord) -> &AtomicU32 {
        &self.0.control[match word {
            ControlWord::WriteIndex => 0,
            ControlWord::ReadIndex => 1,
            ControlWord::InterruptMask => 2,
            ControlWord::PendingSendSize => 3,
            ControlWord::FeatureBits => 4,
        }]
    }

    /// The pieces of the bytes from `offset` on: block, bytes in it, bytes of the whole.
    fn pieces(offset: u32, len: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = (offset + done as u32 + LEN - START) % LEN;
            let (block, first) = ((at / BLOCK) as usize, (at % BLOCK) as usize);
            let end = (first + len - done).min(BLOCK as usize);
            let from = done;
            done += end - first;
            (from < len).then_some((block, first..end, from))
        })
    }
}

impl RingMemory for LoomRing {
    fn data_len(&self) -> u32 {
        LEN
    }
    fn load(&self, word: ControlWord) -> u32 {
        self.word(word).load(Acquire)
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.word(word).store(value, Release);
    }
    fn fence(&self) {
        fence(SeqCst);
    }
    fn read(&self, offset: u32, into: &mut [u8]) {
        for (block, range, from) in LoomRing::pieces(offset, into.len()) {
            let part = &mut into[from..from + range.len()];
            // SAFETY: loom has just made sure that nobody writes to it; the pointer does not leave the closure.
            self.0.data[block].with(|data| part.copy_from_slice(unsafe { &(&(*data))[range] }));
        }
    }
    fn write(&self, offset: u32, from: &[u8]) {
        for (block, range, at) in LoomRing::pieces(offset, from.len()) {
            let part = &from[at..at + range.len()];
            // SAFETY: loom has just made sure that nobody else uses it; the pointer does not leave the closure.
            self.0.data[block].with_mut(|data| unsafe { &mut (&mut (*data))[range] }.copy_from_slice(part));
        }
    }
}

/// The wake-ups, which outlive a process.
#[derive(Clone)]
struct Bells {
    /// For the host.
    kick: Arc<AtomicBool>,
    /// For the guest.
    interrupt: Arc<AtomicBool>,
}

struct Guest {
    writer: RingWriter<LoomRing>,
    reader: RingReader<LoomRing>,
    bells: Bells,
    answers: [u32; 4],
    /// Loans that it has.
    has: Vec<u64>,
}

impl Guest {
    fn send(&mut self, ids: &[u64]) {
        for &id in ids {
            self.writer.push(&Outgoing::in_band(id, true), &[&id.to_le_bytes()]).unwrap();
        }
        if self.writer.publish() {
            self.bells.kick.swap(true, AcqRel);
        }
    }

    /// Collects what there is, if the interrupt came.
    fn woken(&mut self) -> bool {
        if !self.bells.interrupt.swap(false, AcqRel) {
            return false;
        }
        let mut scratch = Vec::new();
        loop {
            while let Some(header) = self.reader.next(&mut scratch).unwrap() {
                let id = header.transaction_id;
                if header.packet_type == PacketType::TRANSFER_PAGES {
                    assert!(!self.has.contains(&id), "it is lent twice");
                    self.has.push(id);
                    continue;
                }
                assert_eq!(header.payload(&scratch), id.to_le_bytes());
                self.answers[id as usize] += 1;
            }
            if self.reader.publish() {
                self.bells.kick.swap(true, AcqRel);
            }
            for loan in self.has.drain(..) {
                self.writer.push(&Outgoing::completion(loan), &[&loan.to_le_bytes()]).unwrap();
            }
            if self.writer.publish() {
                self.bells.kick.swap(true, AcqRel);
            }
            if !self.reader.unmask_interrupts() {
                return true;
            }
        }
    }
}

/// One life: the first process dies after `stores`, its successor after `more`. The number of deaths.
fn life(stores: Option<u32>, more: Option<u32>) -> u32 {
    let (to_host, to_guest) = (LoomRing::new(), LoomRing::new());
    let bells = Bells { kick: Arc::new(AtomicBool::new(false)), interrupt: Arc::new(AtomicBool::new(false)) };
    let mut guest = Guest {
        writer: RingWriter::new(to_host.clone()).unwrap(),
        reader: RingReader::new(to_guest.clone()).unwrap(),
        bells: bells.clone(),
        answers: [0; 4],
        has: Vec::new(),
    };
    let mut host = Host::new(to_host, to_guest);
    host.dies_after(stores);
    guest.send(&[1, 2]);
    let other = loom::thread::spawn(move || {
        guest.send(&[3]);
        guest.woken();
        guest
    });
    let mut more = Some(more);
    let mut turn = |host: &mut Host<LoomRing>| {
        // As an eventfd does, taking it down lets us see what was done before it was put up.
        bells.kick.swap(false, AcqRel);
        if host.turn(|| more.take().flatten()) {
            bells.interrupt.swap(true, AcqRel);
        }
    };
    turn(&mut host);
    let mut guest = other.join().unwrap();
    // From here on there is one thread.
    loop {
        if bells.kick.load(Acquire) {
            turn(&mut host);
        } else if !guest.woken() {
            break;
        }
    }
    assert_eq!(guest.answers, [0, 1, 1, 1], "each is answered once");
    host.deaths
}

/// One life of a loan: the first process lends it, the guest gives it back, it goes out once more. The number of deaths.
fn life_of_a_loan(stores: Option<u32>, more: Option<u32>) -> u32 {
    let (to_host, to_guest) = (LoomRing::new(), LoomRing::new());
    let bells = Bells { kick: Arc::new(AtomicBool::new(false)), interrupt: Arc::new(AtomicBool::new(false)) };
    let mut guest = Guest {
        writer: RingWriter::new(to_host.clone()).unwrap(),
        reader: RingReader::new(to_guest.clone()).unwrap(),
        bells: bells.clone(),
        answers: [0; 4],
        has: Vec::new(),
    };
    let mut host = Host::new(to_host, to_guest).lending(1, 2);
    host.dies_after(stores);
    let other = loom::thread::spawn(move || {
        guest.woken();
        guest.woken();
        guest
    });
    let mut more = Some(more);
    let mut turn = |host: &mut Host<LoomRing>| {
        bells.kick.swap(false, AcqRel);
        if host.turn(|| more.take().flatten()) {
            bells.interrupt.swap(true, AcqRel);
        }
    };
    turn(&mut host);
    turn(&mut host);
    let mut guest = other.join().unwrap();
    loop {
        if bells.kick.load(Acquire) {
            turn(&mut host);
        } else if !guest.woken() {
            break;
        }
    }
    assert!(host.is_home(), "a loan is lost");
    host.deaths
}

/// Checks a life in its interleavings with at most so many preemptions, or all; the most deaths that there were in one.
fn check(stores: u32, more: Option<u32>, preemptions: Option<usize>) -> u32 {
    check_life(life, stores, more, preemptions)
}

fn check_life(
    life: fn(Option<u32>, Option<u32>) -> u32,
    stores: u32,
    more: Option<u32>,
    preemptions: Option<usize>,
) -> u32 {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    let deaths = std::sync::Arc::new(Plain::new(0));
    let most = std::sync::Arc::clone(&deaths);
    builder.check(move || _ = most.fetch_max(life(Some(stores), more), Relaxed));
    deaths.load(Relaxed)
}

fn is_long() -> bool {
    std::env::var_os("BULKHEAD_MODEL_LONG").is_some()
}

#[test]
fn a_host_may_die_between_any_two_stores() {
    let preemptions = if is_long() { None } else { Some(3) };
    let lives = (0..).find(|&stores| check(stores, None, preemptions) == 0).unwrap();
    assert!(lives > 50, "a life has more stores than {lives}");
}

#[test]
fn its_successor_may_die_too() {
    let (preemptions, step) = if is_long() { (2, 1) } else { (1, 9) };
    for stores in (0..80).step_by(step) {
        let lives = (0..).find(|&more| check(stores, Some(more), Some(preemptions)) < 2).unwrap();
        assert!(lives > 10, "a successor's life has more stores than {lives}");
    }
}

#[test]
fn a_host_may_die_between_any_two_stores_of_a_loans_life() {
    let preemptions = if is_long() { None } else { Some(3) };
    let lives = (0..).find(|&stores| check_life(life_of_a_loan, stores, None, preemptions) == 0).unwrap();
    assert!(lives > 20, "a loan's life has more stores than {lives}");
}

#[test]
fn its_successor_may_die_of_a_loan_too() {
    let (preemptions, step) = if is_long() { (2, 1) } else { (1, 3) };
    for stores in (0..40).step_by(step) {
        let lives = (0..)
            .find(|&more| check_life(life_of_a_loan, stores, Some(more), Some(preemptions)) < 2)
            .unwrap();
        assert!(stores > 30 || lives > 5, "a successor's life has more stores than {lives}");
    }
}
