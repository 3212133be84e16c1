//! What a packet costs in a ring alone: 256 bytes written by one end and read by the other, on the mapping that devices use.
//!
//! `cargo bench -p ipc`. The median of many short runs, so that a machine that is busy with something else is not measured.

use std::time::Instant;

use ipc::shm::{RingMapping, SharedMemory};
use vmbus::packet::Outgoing;
use vmbus::ring::{RingReader, RingWriter};

/// Bytes of a packet's content.
const CONTENT: usize = 256;
/// Pages of the ring: what `storvsc` asks for on two processors.
const PAGES: u32 = 33;
const ROUNDS: usize = 2000;
const PACKETS: u32 = 512;
/// What is asked, in nanoseconds a packet, with [`BATCH`] packets a publication, as devices take and answer them.
const ASKED: f64 = 20.0;
const BATCH: u32 = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let batched = measure(BATCH)?;
    let single = measure(1)?;
    println!(
        "ring: a packet of {CONTENT} bytes written and read: {batched:.1} ns in batches of {BATCH} (asked: {ASKED}), {single:.1} ns one by one"
    );
    Ok(())
}

/// Nanoseconds a packet, with so many packets a publication.
fn measure(batch: u32) -> Result<f64, Box<dyn std::error::Error>> {
    let memory = SharedMemory::create("ring", u64::from(PAGES) * 4096)?;
    let mut writer = RingWriter::new(RingMapping::new(&memory, 0, PAGES)?)?;
    let mut reader = RingReader::new(RingMapping::new(&memory, 0, PAGES)?)?;
    let content = [7; CONTENT];
    let mut scratch = Vec::new();
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for first in (0..PACKETS).step_by(batch as usize) {
            for number in first..first + batch {
                writer.push(&Outgoing::in_band(u64::from(number), true), &[&content])?;
            }
            let _ = writer.publish();
            for number in first..first + batch {
                let header = reader.next(&mut scratch)?.ok_or("a packet was lost")?;
                if header.transaction_id != u64::from(number) || header.payload(&scratch) != content {
                    return Err("a packet came out other than it went in".into());
                }
            }
            let _ = reader.publish();
        }
        rounds.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(PACKETS));
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[ROUNDS / 2])
}
