//! What continuity costs a request: the same requests through a channel with a ledger and through one without.
//!
//! `cargo bench -p vsp`. Requests are as long as a disk's, packets for one page and answers as `storvsc` has them, with 4 KiB that
//! are copied between the two, so that caches are as full as they are at work. The median of many short runs in turns, so that a machine
//! that is busy with something else is not measured.

use std::time::Instant;

use ipc::ledger::LedgerMapping;
use ipc::shm::{RingMapping, SharedMemory};
use vmbus::packet::Outgoing;
use vmbus::ring::{RingReader, RingWriter};
use vsp::channel::{Channel, Taken, Ticket};

/// Bytes of a request's packet behind its header: one range of one page, and `storvsc`'s own 64 bytes.
const CONTENT: usize = 88;
/// Bytes of an answer's content.
const ANSWER: usize = 64;
/// Pages of a ring: what `storvsc` asks for on two processors.
const PAGES: u32 = 33;
/// Requests between a guest and its device.
const DEPTH: usize = 32;
/// Requests a publication.
const BATCH: usize = 8;
const ROUNDS: usize = 4000;
const REQUESTS: u64 = 256;

type Error = Box<dyn std::error::Error>;

struct Pair {
    writer: RingWriter<RingMapping>,
    reader: RingReader<RingMapping>,
    channel: Channel<RingMapping, LedgerMapping>,
    source: Vec<u8>,
    target: Vec<u8>,
    sent: u64,
}

impl Pair {
    fn new(with_ledger: bool) -> Result<Pair, Error> {
        let [to_host, to_guest] =
            ["to_host", "to_guest"].map(|name| SharedMemory::create(name, u64::from(PAGES) * 4096));
        let (to_host, to_guest) = (to_host?, to_guest?);
        let rings = || -> Result<_, Error> {
            Ok((RingMapping::new(&to_host, 0, PAGES)?, RingMapping::new(&to_guest, 0, PAGES)?))
        };
        let ((guest_out, guest_in), (host_in, host_out)) = (rings()?, rings()?);
        let channel = if with_ledger {
            let memory = SharedMemory::create("ledger", ipc::ledger::bytes(256))?;
            Channel::adopt(host_in, host_out, LedgerMapping::new(&memory)?, 256)?.0
        } else {
            Channel::new(host_in, host_out, 256)?
        };
        Ok(Pair {
            writer: RingWriter::new(guest_out)?,
            reader: RingReader::new(guest_in)?,
            channel,
            source: vec![1; 64 * 4096],
            target: vec![2; DEPTH * 4096],
            sent: 0,
        })
    }

    /// Nanoseconds a request of a run.
    fn run(&mut self) -> Result<f64, Error> {
        let mut scratch = Vec::new();
        let mut held: Vec<Ticket> = Vec::with_capacity(DEPTH);
        let (content, answer) = ([7; CONTENT], [9; ANSWER]);
        let start = Instant::now();
        let mut answered = 0;
        let mut sent = 0;
        while answered < REQUESTS {
            while sent < REQUESTS && sent - answered < DEPTH as u64 {
                self.writer.push(&Outgoing::in_band(self.sent, true), &[&content])?;
                self.sent += 1;
                sent += 1;
            }
            let _ = self.writer.publish();
            while let Taken::Packet(_, ticket) = self.channel.take(&mut scratch) {
                self.channel.enter(&ticket);
                held.push(ticket);
                self.channel.leave();
            }
            self.channel.publish_taken();
            for ticket in held.drain(..BATCH.min(held.len())) {
                let (from, to) =
                    ((ticket.sequence as usize * 7 % 64) * 4096, (ticket.sequence as usize % DEPTH) * 4096);
                self.target[to..to + 4096].copy_from_slice(&self.source[from..from + 4096]);
                self.channel.complete(ticket, &answer, None)?;
            }
            self.channel.publish_completions()?;
            while self.reader.next(&mut scratch)?.is_some() {
                answered += 1;
            }
            let _ = self.reader.publish();
        }
        Ok(start.elapsed().as_secs_f64() * 1e9 / REQUESTS as f64)
    }
}

fn main() -> Result<(), Error> {
    let (mut with, mut without) = (Pair::new(true)?, Pair::new(false)?);
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        rounds.push((with.run()?, without.run()?));
    }
    let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[ROUNDS / 2]
    };
    let (with, without) = (median(&|round| round.0), median(&|round| round.1));
    println!(
        "channel: a request answered: {with:.0} ns with a ledger, {without:.0} ns without: {:.0} ns for the ledger",
        with - without
    );
    Ok(())
}
