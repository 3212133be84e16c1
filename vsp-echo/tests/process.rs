//! The echo device as a real, confined process: the runtime's behaviour towards a core and a hostile guest.

#![allow(unsafe_code, reason = "a descriptor is handed over between fork and exec")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use vsp::ipc;
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, PacketType};
use vsp::vmbus::ring::{ControlWord, RingMemory};

use ipc::message::{STATUS_OK, ToCore, ToVsp};
use ipc::shm::{PAGE, SharedMemory};
use ipc::socket::Peer;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vsp-echo");

/// A running device process; killed when the test is over.
struct Device(Child);

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Device {
    fn start(socket: Peer, arguments: &[&str]) -> Device {
        let fd = OwnedFd::from(socket);
        let number = fd.as_raw_fd();
        let mut command = Command::new(PROGRAM);
        command
            .args(["--device", "echo", "--log-level", "debug", "--core-fd", &number.to_string()])
            .args(arguments);
        command.stdin(Stdio::null());
        // SAFETY: between fork and exec only an async-signal-safe call is made.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Device(command.spawn().expect("started"))
    }

    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("waited") {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the device does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A welcomed device and a core.
fn start() -> (FakeCore, Device) {
    let (core, socket) = FakeCore::new(0);
    let device = Device::start(socket, &[]);
    let offer = core.welcome();
    assert_eq!(offer.class, vsp::vmbus::guid::class::ECHO.to_string());
    (core, device)
}

fn open(core: &FakeCore, channel: u32, data_pages: u32) -> GuestEnd {
    let guest = core.open(channel, data_pages);
    assert_eq!(core.answer(), ToCore::OpenResult { channel, status: STATUS_OK, reason: None });
    guest
}

fn echo(guest: &mut GuestEnd, id: u64, payload: &[u8]) {
    assert!(guest.send(&Outgoing::in_band(id, true), &[payload]));
    let (header, back) = guest.wait();
    assert_eq!((header.packet_type, header.transaction_id), (PacketType::COMPLETION, id));
    assert_eq!(&back[..payload.len()], payload, "padded to a multiple of 8 bytes");
}

#[test]
fn packets_are_echoed_and_the_channel_closes_and_opens_again() {
    let (core, mut device) = start();
    for round in 0..3 {
        let mut guest = open(&core, 5, 4);
        for id in 1..200 {
            echo(&mut guest, id, format!("packet {round:03} {id:05}..").as_bytes());
        }
        core.close(5);
        assert_eq!(core.answer(), ToCore::Closed { channel: 5 });
    }
    core.close(5);
    assert_eq!(core.answer(), ToCore::Closed { channel: 5 }, "closing what is closed is answered");
    drop(core);
    assert_eq!(device.end().code(), Some(0), "the core is gone: exit at once");
}

#[test]
fn a_deep_queue_through_a_small_ring_loses_nothing() {
    let (core, _device) = start();
    let mut guest = open(&core, 1, 1);
    let (mut sent, mut received) = (0u64, 0u64);
    let total = 20_000;
    let start = Instant::now();
    while received < total {
        while sent < total && guest.send(&Outgoing::in_band(sent, true), &[&sent.to_le_bytes(), &[0; 56]]) {
            sent += 1;
        }
        while let Some((header, payload)) = guest.poll() {
            assert_eq!(header.transaction_id, received, "in order, each once");
            assert_eq!(payload[..8], received.to_le_bytes());
            received += 1;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "stuck at {received} of {sent}");
    }
}

#[test]
fn a_guest_that_sleeps_between_signals_is_always_woken() {
    let (core, _device) = start();
    let mut guest = open(&core, 1, 1);
    for round in 0..300u64 {
        let burst = 1 + round % 30;
        for id in 0..burst {
            assert!(guest.send(&Outgoing::in_band(id, true), &[&[7; 64]]));
        }
        for id in 0..burst {
            assert_eq!(guest.wait().0.transaction_id, id);
        }
    }
}

#[test]
fn a_broken_ring_ends_its_channel_and_nothing_else() {
    let (core, mut device) = start();
    let mut good = open(&core, 1, 1);
    for (round, index) in [3, 4096, u32::MAX, 8].into_iter().enumerate() {
        let bad = open(&core, 2, 1);
        bad.writer.memory().store(ControlWord::WriteIndex, index);
        bad.kick.signal().unwrap();
        echo(&mut good, round as u64, b"still here");
        core.close(2);
        assert_eq!(core.answer(), ToCore::Closed { channel: 2 });
    }
    assert!(device.0.try_wait().unwrap().is_none());
}

#[test]
fn a_broken_completion_ring_ends_its_channel_and_nothing_else() {
    let (core, _device) = start();
    let mut good = open(&core, 1, 1);
    let mut bad = open(&core, 2, 1);
    echo(&mut bad, 1, b"fine yet");
    bad.reader.memory().store(ControlWord::ReadIndex, 12345);
    for id in 0..32 {
        bad.send(&Outgoing::in_band(id, true), &[&[0; 64]]);
    }
    echo(&mut good, 1, b"still here");
    core.close(2);
    assert_eq!(core.answer(), ToCore::Closed { channel: 2 });
}

#[test]
fn a_storm_of_doorbells_and_packets_leaves_the_core_heard() {
    let (core, _device) = start();
    let mut guest = open(&core, 1, 8);
    let storm = std::thread::spawn(move || {
        let start = Instant::now();
        let mut sent = 0u64;
        while start.elapsed() < Duration::from_millis(800) {
            guest.send(&Outgoing::in_band(sent, false), &[&[0; 8]]);
            let _ = guest.kick.signal();
            sent += 1;
        }
        sent
    });
    let mut slowest = Duration::ZERO;
    for channel in 2..20 {
        let asked = Instant::now();
        drop(open(&core, channel, 1));
        core.close(channel);
        assert_eq!(core.answer(), ToCore::Closed { channel });
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(storm.join().unwrap() > 1000);
    assert!(slowest < Duration::from_secs(2), "the core waited {slowest:?}");
}

#[test]
fn channels_that_make_no_sense_are_refused() {
    let (core, _device) = start();
    let refused = |open: &ToVsp, fds: &[&dyn std::os::fd::AsFd]| {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        core.peer().send(open, &fds).unwrap();
        let ToCore::OpenResult { status, .. } = core.answer() else { panic!("no result") };
        assert_ne!(status, STATUS_OK);
    };
    let open_request = |pages, to_host_pages, flag| ToVsp::ChannelOpen {
        channel: 9,
        subchannel: 0,
        ring: ipc::message::RingLayout { pages, to_host_pages },
        target_vp: 0,
        flag,
        user_data: Vec::new(),
    };
    let memory = SharedMemory::create("ring", 4 * PAGE as u64).unwrap();
    let page = SharedMemory::create("flags", PAGE as u64).unwrap();
    let bell = ipc::event::Doorbell::new().unwrap();
    let ledger = SharedMemory::create("ledger", ipc::ledger::bytes(256)).unwrap();
    let open_file = std::fs::File::open("/dev/null").unwrap();
    refused(&open_request(4, 2, 1), &[]);
    refused(&open_request(5, 2, 1), &[&memory, &bell, &bell, &page, &ledger]);
    refused(&open_request(4, 3, 1), &[&memory, &bell, &bell, &page, &ledger]);
    refused(&open_request(4, 2, 2048), &[&memory, &bell, &bell, &page, &ledger]);
    refused(&open_request(4, 2, 1), &[&bell, &bell, &bell, &page, &ledger]);
    refused(&open_request(4, 2, 1), &[&memory, &bell, &bell, &page]);
    refused(&open_request(4, 2, 1), &[&memory, &bell, &bell, &page, &open_file]);
    drop(open(&core, 1, 1));
}

#[test]
fn interrupts_can_be_moved() {
    let (core, _device) = start();
    let mut guest = open(&core, 1, 1);
    echo(&mut guest, 1, b"here");
    let page = SharedMemory::create("flags", PAGE as u64).unwrap();
    let bell = ipc::event::Doorbell::new().unwrap();
    let fds = [std::os::fd::AsFd::as_fd(&bell), std::os::fd::AsFd::as_fd(&page)];
    core.peer().send(&ToVsp::Retarget { channel: 1, target_vp: 1 }, &fds).unwrap();
    let start = Instant::now();
    while !bell.drain().unwrap() {
        assert!(start.elapsed() < Duration::from_secs(10), "the new place is signalled once, to be sure");
    }
    guest.interrupt.drain().unwrap();
    assert!(guest.send(&Outgoing::in_band(2, true), &[b"there"]));
    while !bell.drain().unwrap() {
        assert!(start.elapsed() < Duration::from_secs(10), "no interrupt at the new place");
    }
    assert!(!guest.interrupt.drain().unwrap());
    assert_eq!(guest.poll().unwrap().0.transaction_id, 2);
}

#[test]
fn a_core_that_refuses_is_obeyed() {
    let (core, socket) = FakeCore::new(0);
    let mut device = Device::start(socket, &[]);
    assert!(matches!(core.answer(), ToCore::Hello { .. }));
    core.peer().send(&ToVsp::Refused { reason: "not today".into() }, &[]).unwrap();
    assert_eq!(device.end().code(), Some(1));
}

#[test]
fn nonsense_from_the_core_ends_the_device() {
    let (core, mut device) = start();
    core.peer().send_bytes(b"{\"Explode\":{}}", &[]).unwrap();
    assert_eq!(device.end().code(), Some(1));
}

#[test]
fn killed_in_the_middle_it_is_replaced_and_nothing_is_lost() {
    let (mut core, mut device) = start();
    let mut guest = open(&core, 1, 1);
    echo(&mut guest, 1, b"alive...");
    for id in 2..40 {
        device.0.kill().unwrap();
        assert_eq!(device.end().signal(), Some(9));
        assert!(guest.send(&Outgoing::in_band(id, true), &[b"anybody?"]));
        assert!(guest.poll().is_none());
        let (_, socket) = core.successor();
        device = Device::start(socket, &[]);
        core.greet(false);
        core.serve(true);
        core.reopen_all();
        assert_eq!(guest.wait().0.transaction_id, id, "its first signal is unconditional");
    }
}

#[test]
fn a_supervisor_hears_of_every_change_and_of_life() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let number = theirs.as_raw_fd();
    leave_open_on_exec(number);
    let (core, socket) = FakeCore::new(0);
    let number = number.to_string();
    let mut device = Device::start(socket, &["--notify-fd", &number, "--watchdog-usec", "20000"]);
    drop(theirs);
    let heard = || {
        let mut buffer = [0; 256];
        let len = ours.recv(&mut buffer).expect("a sign of life");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert_eq!(heard(), "WATCHDOG=1", "before anything else, and while nobody welcomes it");
    assert_eq!(heard(), "WATCHDOG=1");
    core.greet(true);
    let next = || loop {
        let said = heard();
        if said != "WATCHDOG=1" {
            return said;
        }
    };
    assert_eq!(next(), "READY=1\nSTATUS=standing by");
    core.serve(true);
    assert_eq!(next(), "STATUS=serving");
    core.quiesce();
    assert_eq!(next(), "STATUS=quiet");
    (0..5).for_each(|_| assert_eq!(heard(), "WATCHDOG=1"));
    core.send(&ToVsp::Retire {});
    assert_eq!(device.end().code(), Some(0));
}

fn leave_open_on_exec(number: i32) {
    // SAFETY: a flag of a descriptor that the caller has open.
    assert_eq!(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }, 0);
}

#[test]
fn every_forbidden_act_is_the_last_one() {
    for act in sandbox::policy_test::FORBIDDEN.iter().map(|act| act.name) {
        let output =
            Command::new(PROGRAM).args(["--device", "echo", "--policy-test", act]).output().expect("started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{act}: {:?} {text}", output.status);
    }
}
