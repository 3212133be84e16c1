//! Looking for work before sleeping: a busy guest is served without being waited for, an idle one costs nothing.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vmbus::packet::Outgoing;
use vsp::testing::Bench;
use vsp::{Channels, Device, Offer, Packet, Request, vmbus};

/// Answers at once.
#[derive(Debug)]
struct Quick;

impl Device for Quick {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() }
    }

    fn packet(&mut self, _packet: Packet<'_>, request: Request, channels: &mut Channels) {
        request.complete(channels, &[]);
    }
}

/// Processor time of this thread so far.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
fn after_a_storm_an_idle_guest_costs_nothing() {
    let mut bench = Bench::new(Quick, 0);
    let mut guest = bench.open(1, 1);
    let storm = std::thread::spawn(move || {
        for n in 0..2000 {
            assert!(guest.send(&Outgoing::in_band(n, true), &[b"question"]));
            let begin = Instant::now();
            while guest.poll().is_none() {
                assert!(begin.elapsed() < Duration::from_secs(10), "{n} is not answered");
                std::hint::spin_loop();
            }
        }
        guest
    });
    while !storm.is_finished() {
        bench.turn(5);
    }
    let mut guest = storm.join().unwrap();
    let before = spent();
    (0..20).for_each(|_| bench.turn(20));
    let idle = spent() - before;
    assert!(idle < Duration::from_millis(20), "{idle:?} of 400 ms");
    // And it is heard when it comes back: whoever does not look has to be rung for.
    assert!(guest.send(&Outgoing::in_band(1, true), &[b"question"]));
    bench.turn(5000);
    assert!(guest.poll().is_some());
}
