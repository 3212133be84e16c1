//! What a successor is told of the channels that its predecessor has left, and in which order.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use ipc::message::{CONTROL_VERSION, Offer};
use vsp::testing::{Bench, FakeCore};
use vsp::{ChannelId, Channels, Device, OpenRequest, Packet, Refused, Request};

/// Notes what it is told.
struct Listener {
    source: UnixDatagram,
    log: Vec<&'static str>,
}

fn listener() -> (Listener, UnixDatagram) {
    let (source, bell) = UnixDatagram::pair().unwrap();
    (Listener { source, log: Vec::new() }, bell)
}

impl Device for Listener {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.source.as_raw_fd()]
    }

    fn fence(&mut self, _: bool) -> Result<bool, String> {
        self.log.push("fence");
        Ok(true)
    }

    fn open(&mut self, _: ChannelId, _: &OpenRequest) -> Result<(), Refused> {
        self.log.push("open");
        Ok(())
    }

    fn adopted(&mut self, _: &mut Channels) {
        self.log.push("adopted");
    }

    fn ready(&mut self, _: usize, _: &mut Channels) {
        self.log.push("ready");
    }

    fn packet(&mut self, _: Packet<'_>, request: Request, channels: &mut Channels) {
        request.complete(channels, &[]);
    }

    fn closing(&mut self, _: ChannelId) {
        self.log.push("closing");
    }
}

#[test]
fn a_device_hears_once_that_it_has_all_channels_and_not_before() {
    let (device, _bell) = listener();
    let mut bench = Bench::new(device, 0);
    bench.settle();
    assert_eq!(bench.runtime.device().log, ["fence", "adopted"], "there was none");
    let _guests = [bench.open(1, 1), bench.open(2, 1)];
    bench.quiesce();
    bench.core.early = false;
    bench.serve(true);
    (0..5).for_each(|_| bench.turn(1));
    assert_eq!(bench.runtime.device().log[4..], ["fence"], "two are still to come");
    bench.reopen_all();
    bench.settle();
    assert_eq!(bench.runtime.device().log[4..], ["fence", "open", "open", "adopted"]);
}

#[test]
fn a_core_that_does_not_say_so_is_given_a_while() {
    let (mut core, vsp) = FakeCore::new(0);
    core.version = CONTROL_VERSION - 1;
    let (device, _bell) = listener();
    let start = Instant::now();
    let mut bench = Bench::with_core(core, vsp, device);
    while bench.runtime.device().log.len() < 2 {
        bench.turn(5000);
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(bench.runtime.device().log, ["fence", "adopted"]);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn what_the_core_says_comes_before_what_the_sources_bring() {
    let (device, bell) = listener();
    let mut bench = Bench::new(device, 0);
    bench.settle();
    // In the order in which the loop learns of it, too.
    bell.send(b"x").unwrap();
    let _guest = bench.core.open(1, 1);
    bench.turn(1);
    bell.send(b"x").unwrap();
    bench.core.close(1);
    bench.turn(1);
    assert_eq!(bench.runtime.device().log[2..], ["open", "ready", "closing", "ready"]);
}
