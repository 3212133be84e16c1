//! No rule without a use: what the program does for an honest guest and a console uses every rule of its policy, but for those marked `rare:`,
//! and nothing that is not allowed. (Each rule by itself is executed by `sandbox/tests/compartment`.)

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod program;

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use program::{PATIENCE, PROGRAM, Process};
use seat::{Sent, keyboard, mouse};
use vsp::ipc::message::{STATUS_OK, ToCore};
use vsp::policies::{VSP_HID, audit::Usage};
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, PacketType};

/// Runs `live` with a program under strace; what it did.
fn watched(name: &str, argument: &str, seat: OwnedFd, live: impl FnOnce(&FakeCore)) -> Option<Usage> {
    // The kernel lets nobody else look at a process in its compartment.
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        eprintln!("SKIPPED: only root may trace a process in its compartment; the policy was NOT audited");
        return None;
    }
    let log = std::env::temp_dir().join(format!("bulkhead-hid-{}-{name}.strace", std::process::id()));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "raw=!seccomp", "-o"]).arg(&log).arg(PROGRAM);
    let (core, socket) = FakeCore::new(0);
    let mut process = Process::start_by(strace, socket, &seat, &[argument]);
    core.welcome();
    live(&core);
    drop(core);
    assert_eq!(process.end().code(), Some(0));
    let mut usage = Usage::default();
    usage.read(&std::fs::read_to_string(&log).unwrap());
    std::fs::remove_file(&log).unwrap();
    Some(usage)
}

fn check(usage: Option<Usage>) {
    let Some(usage) = usage else { return };
    assert!(usage.policies().any(|seen| seen.name == VSP_HID.name), "the policy was never in force");
    assert!(usage.denied().is_empty(), "denied: {:?}", usage.denied());
    let unused = usage.unused(&VSP_HID);
    assert!(unused.is_empty(), "unused: {unused:?}");
    eprintln!("rare, and used: {:?}", usage.rare_but_used(&VSP_HID));
}

fn open(core: &FakeCore, channel: u32) -> GuestEnd {
    let guest = core.open(channel, 9);
    assert_eq!(core.answer(), ToCore::OpenResult { channel, status: STATUS_OK, reason: None });
    guest
}

/// Takes so many packets.
fn take(guest: &mut GuestEnd, count: usize) {
    (0..count).for_each(|_| _ = guest.wait());
}

fn ask(guest: &mut GuestEnd, message: &[u8], packets: usize) {
    assert!(guest.send(&Outgoing::in_band(1, true), &[message]));
    take(guest, packets);
}

/// Waits until the device says that it listens.
fn until<T: PartialEq>(what: &T, next: impl Fn() -> Option<T>) {
    let start = Instant::now();
    while next().as_ref() != Some(what) {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn a_keyboards_life_uses_every_rule() {
    use keyboard::{FromConsole, Key, ToConsole};
    use vsp_hid::keyboard::GuestMessage;
    let (device, console) = keyboard::DeviceEnd::pair().unwrap();
    let usage = watched("keyboard", "--keyboard", device.into(), |core| {
        for channel in [1, 2] {
            let mut guest = open(core, channel);
            ask(&mut guest, &GuestMessage::ProtocolRequest(1 << 16).encode(), 2);
            until(&ToConsole::Ready(true), || console.receive().unwrap().map(|received| received.message));
            for round in 0..100 {
                let key = Key { scancode: 0x1e, e0: false, e1: false, up: round % 2 == 1 };
                assert_eq!(console.send(&FromConsole::Key(key), None).unwrap(), Sent::Whole);
                assert_eq!(guest.wait().0.packet_type, PacketType::IN_BAND);
            }
            ask(&mut guest, &GuestMessage::LedIndicators(7).encode(), 1);
            core.close(channel);
            assert_eq!(core.answer(), ToCore::Closed { channel });
        }
    });
    check(usage);
}

#[test]
fn a_mouses_life_uses_every_rule() {
    use mouse::{FromConsole, ToConsole};
    use vsp_hid::mouse::GuestMessage;
    let (device, console) = mouse::DeviceEnd::pair().unwrap();
    let usage = watched("mouse", "--mouse", device.into(), |core| {
        for channel in [1, 2] {
            let mut guest = open(core, channel);
            ask(&mut guest, &GuestMessage::ProtocolRequest(2 << 16).encode(), 3);
            ask(&mut guest, &GuestMessage::DeviceInfoAck.encode(), 1);
            until(&ToConsole::Ready(true), || console.receive().unwrap().map(|received| received.message));
            for x in 0..100 {
                assert_eq!(console.send(&FromConsole::Motion { x, y: 9 }, None).unwrap(), Sent::Whole);
                take(&mut guest, 1);
            }
            core.close(channel);
            assert_eq!(core.answer(), ToCore::Closed { channel });
        }
    });
    check(usage);
}
