//! The ring and the ledger under shuttle: long random lives, of some hundred requests, in which one process after the
//! other dies at a random store.
//!
//! Interleavings are random and sequentially consistent; what the memory model allows beyond that is for loom, in the
//! small. Checked: each request is answered once, none is lost (nobody looks who was not woken, save a new process once),
//! answers carry what was asked, the state is that of the visible completions. What is lent is never lent twice at a time, and comes
//! home.
//!
//! `BULKHEAD_MODEL_LONG` in the environment asks for a hundred times as many lives.
#![allow(clippy::unwrap_used)]

mod model;

use std::collections::BTreeSet;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread;
use vmbus::packet::{Outgoing, PacketType};
use vmbus::ring::{ControlWord, RingMemory, RingReader, RingWriter};

use model::Host;

/// Lives for each scheduler.
const LIVES: usize = 150;
/// Requests of a life: enough for both rings to go round.
const REQUESTS: u64 = 150;
/// Loans that there are.
const LOANS: u32 = 3;
/// How often one is lent.
const LENDS: u32 = 60;
/// Most stores that a process makes before it dies: some tens of requests' worth.
const LONGEST_LIFE: u32 = 400;

#[derive(Clone)]
struct ShuttleRing(Arc<Inner>);

struct Inner {
    control: [AtomicU32; 5],
    /// Copies are one step each: what is in them is checked, and that nobody uses what is not his is for loom.
    data: Mutex<Vec<u8>>,
}

impl ShuttleRing {
    fn new() -> ShuttleRing {
        let control = [4000, 4000, 0, 0, 1].map(AtomicU32::new);
        ShuttleRing(Arc::new(Inner { control, data: Mutex::new(vec![0; 4096]) }))
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
}

impl RingMemory for ShuttleRing {
    fn data_len(&self) -> u32 {
        4096
    }
    fn load(&self, word: ControlWord) -> u32 {
        self.word(word).load(Ordering::SeqCst)
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.word(word).store(value, Ordering::SeqCst);
    }
    fn fence(&self) {}
    fn read(&self, offset: u32, into: &mut [u8]) {
        let data = self.0.data.lock().unwrap();
        let bytes = data[offset as usize..].iter().chain(data.iter());
        into.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        let mut data = self.0.data.lock().unwrap();
        let len = data.len();
        from.iter().enumerate().for_each(|(at, byte)| data[(offset as usize + at) % len] = *byte);
    }
}

/// Something to wait for, which outlives a process.
#[derive(Clone)]
struct Bell(Arc<AtomicBool>);

impl Bell {
    fn ring(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Waits for it; false if everything is over.
    fn wait(&self, over: &AtomicBool) -> bool {
        while !self.0.swap(false, Ordering::SeqCst) {
            if over.load(Ordering::SeqCst) {
                return false;
            }
            thread::yield_now();
        }
        true
    }
}

/// What the guest pads its requests to: some fill a good part of the ring.
fn padding(id: u64) -> usize {
    if id % 16 == 7 { 1400 } else { 8 * (id % 5) as usize }
}

/// The guest gives loans back until it has so few.
fn give_back(writer: &mut RingWriter<ShuttleRing>, has: &mut BTreeSet<u64>, keeps: usize) {
    while has.len() > keeps {
        let loan = *has.first().unwrap();
        if writer.push(&Outgoing::completion(loan), &[&loan.to_le_bytes()]).is_err() {
            return;
        }
        has.pop_first();
    }
}

fn life() {
    let (to_host, to_guest) = (ShuttleRing::new(), ShuttleRing::new());
    let bell = || Bell(Arc::new(AtomicBool::new(false)));
    let (kick, interrupt, over) = (bell(), bell(), Arc::new(AtomicBool::new(false)));
    let guest = {
        let (kick, interrupt, over) = (kick.clone(), interrupt.clone(), Arc::clone(&over));
        let mut writer = RingWriter::new(to_host.clone()).unwrap();
        let mut reader = RingReader::new(to_guest.clone()).unwrap();
        thread::spawn(move || {
            let mut answers = BTreeSet::new();
            let mut has = BTreeSet::new();
            let mut scratch = Vec::new();
            let mut next = 0;
            while answers.len() < REQUESTS as usize {
                let keeps = thread_rng().gen_range(0..=LOANS as usize);
                give_back(&mut writer, &mut has, keeps);
                let batch = thread_rng().gen_range(1..6);
                for _ in 0..batch {
                    if next == REQUESTS {
                        break;
                    }
                    let packet = Outgoing::in_band(next % 60, true);
                    match writer.push(&packet, &[&next.to_le_bytes(), &vec![7; padding(next)]]) {
                        Ok(()) => next += 1,
                        Err(_) => break,
                    }
                }
                if writer.publish() {
                    kick.ring();
                }
                // It goes on sending if it is not woken, unless there is nothing more that it can do.
                let in_flight = next - answers.len() as u64;
                if next == REQUESTS || in_flight > 20 {
                    assert!(interrupt.wait(&over));
                } else if !interrupt.0.swap(false, Ordering::SeqCst) {
                    continue;
                }
                loop {
                    while let Some(header) = reader.next(&mut scratch).unwrap() {
                        if header.packet_type == PacketType::TRANSFER_PAGES {
                            assert!(has.insert(header.transaction_id), "it is lent twice");
                            continue;
                        }
                        let id = u64::from_le_bytes(header.payload(&scratch).try_into().unwrap());
                        assert_eq!(header.transaction_id, id % 60);
                        assert!(answers.insert(id), "{id} is answered twice");
                    }
                    if reader.publish() {
                        kick.ring();
                    }
                    if !reader.unmask_interrupts() {
                        break;
                    }
                }
            }
            over.store(true, Ordering::SeqCst);
            (answers, writer, reader, has)
        })
    };
    let mut host = Host::new(to_host, to_guest).lending(LOANS, LENDS);
    let fate = || Some(thread_rng().gen_range(0..LONGEST_LIFE));
    host.dies_after(fate());
    // A process polls once when it begins.
    kick.ring();
    while kick.wait(&over) {
        if host.turn(fate) {
            interrupt.ring();
        }
    }
    let (answers, mut writer, mut reader, mut has) = guest.join().unwrap();
    assert_eq!(answers.len() as u64, REQUESTS, "none is lost");
    // What is out comes home.
    host.dies_after(None);
    let mut scratch = Vec::new();
    for _ in 0..2 * LENDS {
        give_back(&mut writer, &mut has, 0);
        let _ = writer.publish();
        host.turn(|| None);
        while let Some(header) = reader.next(&mut scratch).unwrap() {
            assert_eq!(header.packet_type, PacketType::TRANSFER_PAGES);
            assert!(has.insert(header.transaction_id), "it is lent twice");
        }
        let _ = reader.publish();
    }
    assert!(host.is_home() && has.is_empty(), "a loan is lost");
    assert!(host.deaths > 2, "{} deaths", host.deaths);
}

fn lives() -> usize {
    if std::env::var_os("BULKHEAD_MODEL_LONG").is_some() { 100 * LIVES } else { LIVES }
}

#[test]
fn processes_die_under_random_schedules() {
    shuttle::check_random(life, lives());
}

#[test]
fn processes_die_under_schedules_with_few_switches() {
    shuttle::check_pct(life, lives(), 3);
}
