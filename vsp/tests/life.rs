//! Signs of life: a device that works is heard, however long a turn takes.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use ipc::message::{ToCore, ToVsp};
use vmbus::packet::Outgoing;
use vsp::notify::Notifier;
use vsp::testing::{Bench, FakeCore};
use vsp::{Channels, Common, Device, Offer, Packet, Request, Runtime, Setting, ipc, vmbus};

/// Takes its time.
#[derive(Debug)]
struct Slow;

const LIMIT: Duration = Duration::from_millis(80);

impl Device for Slow {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), max_subchannels: 3, ..Offer::default() }
    }

    fn packet(&mut self, _packet: Packet<'_>, request: Request, channels: &mut Channels) {
        std::thread::sleep(LIMIT / 2);
        request.complete(channels, &[]);
    }
}

#[test]
fn there_is_a_sign_of_life_for_each_channel_that_took_long() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let watchdog_usec = Some(LIMIT.as_micros() as u64);
    let common = Common { notify_fd: Some(ours.as_raw_fd()), watchdog_usec, ..Common::default() };
    let notifier = Notifier::new(&common).unwrap();
    let (core, vsp) = FakeCore::new(0);
    let setting = Setting { name: "test".into(), ledger: true, notifier };
    let mut runtime = Runtime::new(Slow, setting).unwrap();
    runtime.greet(vsp).unwrap();
    core.greet(false);
    let mut bench = Bench { core, runtime };
    bench.core.send(&ToVsp::Serve { predecessor: false });
    assert_eq!(bench.answer(), ToCore::Serving {});

    let mut guests = [bench.open(1, 1), bench.open_subchannel(2, 1, 1), bench.open_subchannel(3, 2, 1)];
    for guest in &mut guests {
        assert!(guest.send(&Outgoing::in_band(1, true), &[b"question"]));
    }
    let mut buffer = [0; 256];
    let mut beats = || std::iter::from_fn(|| theirs.recv(&mut buffer).ok()).filter(|&len| len == 10).count();
    beats();
    bench.turn(1);
    assert!(guests.iter_mut().all(|guest| guest.poll().is_some()), "one turn for all");
    assert!(beats() >= guests.len(), "and a sign of life after each");
}
