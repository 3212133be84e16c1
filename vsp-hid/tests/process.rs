//! The real program in its compartment: keys come once each, whichever instruction it dies at.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod program;

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use program::{PATIENCE, PROGRAM, Process};
use seat::keyboard::{self, FromConsole, ToConsole};
use seat::{Sent, mouse};
use vsp::channel::KillPoint;
use vsp::ipc::message::{STATUS_OK, ToCore, ToVsp};
use vsp::ipc::socket::{Peer, SocketError};
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, PacketType};
use vsp_hid::keyboard::{GuestMessage, HostMessage, Key, Prefix};

/// What a process exits with at a kill point.
const KILLED: i32 = 137;

/// Not met here: no request has an outcome that a repetition would change, all of them are asked for a completion, the guest's ring is never
/// full, and a successor's points take two deaths.
const NEVER_MET: [&str; 11] = [
    "ended",
    "begun",
    "outcome-due",
    "outcome-noted",
    "room-asked",
    "adopt-blamed",
    "adopt-state",
    "adopt-settled",
    "adopt-noted",
    "adopt-forgiven",
    "adopted",
];

/// A VM whose keyboard may die at any moment and is then replaced.
struct World {
    core: FakeCore,
    process: Process,
    seat: OwnedFd,
    console: keyboard::ConsoleEnd,
    guest: Option<GuestEnd>,
    /// Arguments of processes to come, the next one last.
    arguments: Vec<Vec<String>>,
    deaths: Vec<Option<i32>>,
    said: Vec<HostMessage>,
    completions: Vec<u64>,
}

impl World {
    /// A guest that has opened the channel. `arguments`: of the processes, one after the other.
    fn opened(mut arguments: Vec<Vec<String>>) -> World {
        let (device, console) = keyboard::DeviceEnd::pair().unwrap();
        let seat = OwnedFd::from(device);
        let (core, socket) = FakeCore::new(0);
        arguments.reverse();
        let process = start(socket, &seat, arguments.pop().unwrap_or_default());
        let mut world = World {
            core,
            process,
            seat,
            console,
            guest: None,
            arguments,
            deaths: Vec::new(),
            said: Vec::new(),
            completions: Vec::new(),
        };
        world.core.welcome();
        world.guest = Some(world.core.open(1, 9));
        world.wait_until_open(false);
        world
    }

    fn wait_until_open(&mut self, mut again: bool) {
        loop {
            if again {
                self.core.reopen(1);
            }
            let start = Instant::now();
            let opened = loop {
                match self.core.peer().try_recv::<ToCore>() {
                    Ok((ToCore::OpenResult { status, reason, .. }, _)) => {
                        assert_eq!(status, STATUS_OK, "{reason:?}");
                        break true;
                    }
                    Ok((other, _)) => panic!("{other:?}"),
                    Err(SocketError::WouldBlock) => {}
                    Err(_) => break false,
                }
                assert!(start.elapsed() < PATIENCE, "the channel does not open");
                std::thread::sleep(Duration::from_micros(50));
            };
            if opened {
                return;
            }
            self.replace();
            again = true;
        }
    }

    fn replace(&mut self) {
        self.deaths.push(self.process.end().code());
        assert!(self.deaths.len() < 100, "{:?}", self.deaths);
        let (_, socket) = self.core.successor();
        self.process = start(socket, &self.seat, self.arguments.pop().unwrap_or_default());
        self.core.greet(false);
        self.core.serve(true);
    }

    /// Takes what the guest has, and sees to it that somebody serves.
    fn go_on(&mut self) {
        if self.process.is_dead() {
            self.replace();
            self.wait_until_open(true);
        }
        let guest = self.guest.as_mut().unwrap();
        while let Some((header, payload)) = guest.poll() {
            match header.packet_type {
                PacketType::COMPLETION => self.completions.push(header.transaction_id),
                _ => self.said.push(HostMessage::parse(&payload).unwrap()),
            }
        }
    }

    fn wait_for(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let start = Instant::now();
        while !done(self) {
            self.go_on();
            assert!(start.elapsed() < PATIENCE, "{what}: {:?} {:?}", self.said, self.deaths);
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn ask(&mut self, id: u64, message: &GuestMessage) {
        let start = Instant::now();
        let bytes = message.encode();
        while !self.guest.as_mut().unwrap().send(&Outgoing::in_band(id, true), &[&bytes]) {
            self.go_on();
            assert!(start.elapsed() < PATIENCE);
        }
        self.wait_for("a completion", |world| world.completions.contains(&id));
    }

    fn tell(&mut self, event: &FromConsole) {
        let start = Instant::now();
        while self.console.send(event, None).unwrap() == Sent::Full {
            self.go_on();
            assert!(start.elapsed() < PATIENCE);
        }
    }
}

fn start(socket: Peer, seat: &OwnedFd, arguments: Vec<String>) -> Process {
    let arguments: Vec<_> =
        std::iter::once("--keyboard").chain(arguments.iter().map(String::as_str)).collect();
    Process::start(socket, seat, &arguments)
}

fn key(code: u8, up: bool) -> FromConsole {
    FromConsole::Key(keyboard::Key { scancode: code.into(), e0: code > 0x50, e1: false, up })
}

fn stroke(code: u8, up: bool) -> HostMessage {
    let prefix = if code > 0x50 { Prefix::E0 } else { Prefix::None };
    HostMessage::Key { key: Key { code, prefix }, up }
}

/// A guest's driver comes, people type, lamps go on and off. The guest sees each thing once and in order.
fn live(world: &mut World) {
    world.ask(1, &GuestMessage::ProtocolRequest(1 << 16));
    let mut due = vec![HostMessage::ProtocolResponse { accepted: true }];
    for round in 0..6u8 {
        for count in 0..4 {
            let code = 0x10 + round * 12 + count;
            world.tell(&key(code, false));
            due.push(stroke(code, false));
            // What is not down does not go up.
            world.tell(&key(0x2a, true));
            if count % 2 == 0 {
                world.tell(&key(code, true));
                due.push(stroke(code, true));
            }
        }
        world.ask(2 + u64::from(round), &GuestMessage::LedIndicators(round.into()));
        let count = due.len();
        world.wait_for("keys", |world| world.said.len() >= count);
        world.tell(&FromConsole::ReleaseAll);
        due.extend([1, 3].map(|count| stroke(0x10 + round * 12 + count, true)));
    }
    let count = due.len();
    world.wait_for("keys", |world| world.said.len() >= count);
    std::thread::sleep(Duration::from_millis(5));
    world.go_on();
    assert_eq!(world.said, due, "{:?}", world.deaths);
    assert_eq!(world.completions, (1..8).collect::<Vec<_>>());
}

#[test]
fn a_process_that_dies_at_any_step_is_not_missed() {
    let mut never = Vec::new();
    for point in KillPoint::ALL.into_iter().chain(KillPoint::NOTICES) {
        let mut met = 0;
        for count in [1, 2, 3, 7, 19] {
            let order = ["--kill-point".into(), format!("{}:{count}", point.name())];
            let mut world = World::opened(vec![order.into()]);
            live(&mut world);
            match world.deaths[..] {
                // Fewer such steps in all.
                [] => break,
                [code] => assert_eq!(code, Some(KILLED), "{point:?}"),
                _ => panic!("{point:?}: {:?}", world.deaths),
            }
            met += 1;
        }
        if met == 0 {
            never.push(point.name());
        }
    }
    assert_eq!(never, NEVER_MET);
}

#[test]
fn one_that_dies_again_and_again_gets_there() {
    for point in [KillPoint::WriteDue, KillPoint::WritePublished, KillPoint::StateNoted, KillPoint::Adopted] {
        let order = vec!["--kill-point".to_string(), format!("{}:2", point.name())];
        let mut world = World::opened(vec![order; 12]);
        live(&mut world);
    }
}

#[test]
fn sigkill_at_any_time_is_not_missed() {
    let mut world = World::opened(Vec::new());
    world.ask(1, &GuestMessage::ProtocolRequest(1 << 16));
    world.said.clear();
    let mut due = Vec::new();
    for round in 0..60u32 {
        for count in 0..6u8 {
            let code = 0x10 + count;
            for up in [false, true] {
                world.tell(&key(code, up));
                due.push(stroke(code, up));
            }
        }
        let wait = round * 37 % 400;
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(wait.into()) {
            std::hint::spin_loop();
        }
        world.process.kill();
        world.go_on();
    }
    let count = due.len();
    world.wait_for("keys", |world| world.said.len() >= count);
    assert_eq!(world.said, due);
}

#[test]
fn who_stands_by_does_not_listen() {
    let mut world = World::opened(Vec::new());
    world.ask(1, &GuestMessage::ProtocolRequest(1 << 16));
    let (serving, socket) = world.core.successor();
    let mut spare = start(socket, &world.seat, Vec::new());
    world.core.greet(true);
    let standby = world.core.go_on_with(serving);
    for count in 0..100u8 {
        world.tell(&key(count % 50 + 1, count % 2 == 1));
    }
    world.wait_for("keys", |world| world.said.len() > 50);
    world.process.kill();
    world.tell(&key(0x2a, false));
    drop(world.core.go_on_with(standby));
    std::mem::swap(&mut world.process, &mut spare);
    world.core.serve(true);
    world.core.reopen_all();
    let last = stroke(0x2a, false);
    world.wait_for("the last key", |world| world.said.last() == Some(&last));
    let said: Vec<_> = world.said[1..].to_vec();
    let due: Vec<_> =
        (0..100u8).step_by(2).map(|count| stroke(count % 50 + 1, false)).chain([last]).collect();
    assert_eq!(said, due, "each went up that had never gone down");
}

#[test]
fn a_swap_changes_nothing() {
    let mut world = World::opened(Vec::new());
    world.ask(1, &GuestMessage::ProtocolRequest(1 << 16));
    world.tell(&key(0x1e, false));
    world.wait_for("a key", |world| world.said.len() == 2);
    world.core.quiesce();
    world.tell(&key(0x1e, true));
    world.core.send(&ToVsp::Retire {});
    assert_eq!(world.process.end().code(), Some(0));
    world.go_on();
    world.wait_for("it goes up", |world| world.said.len() == 3);
    assert_eq!(world.said[1..], [stroke(0x1e, false), stroke(0x1e, true)]);
    let mut heard = Vec::new();
    while let Some(received) = world.console.receive().unwrap() {
        heard.push(received.message);
    }
    let hellos = heard.iter().filter(|news| matches!(news, ToConsole::Hello { .. })).count();
    assert_eq!((hellos, heard.contains(&ToConsole::Ready(true))), (2, true), "{heard:?}");
}

#[test]
fn a_mouse_is_served_by_the_same_program() {
    use vsp_hid::mouse::{GuestMessage, HostMessage};
    let (device, console) = mouse::DeviceEnd::pair().unwrap();
    let (core, socket) = FakeCore::new(0);
    let mut process = Process::start(socket, &device.into(), &["--mouse"]);
    let offer = core.welcome();
    assert_eq!(offer.class, vsp::vmbus::guid::class::MOUSE.to_string());
    for channel in [1, 2] {
        let mut guest = core.open(channel, 9);
        assert_eq!(core.answer(), ToCore::OpenResult { channel, status: STATUS_OK, reason: None });
        let request = GuestMessage::ProtocolRequest(2 << 16).encode();
        assert!(guest.send(&Outgoing::in_band(1, true), &[&request]));
        let mut said = Vec::new();
        while said.len() < 3 {
            let (header, payload) = guest.wait();
            said.push(
                (header.packet_type == PacketType::IN_BAND).then(|| HostMessage::parse(&payload).unwrap()),
            );
        }
        assert_eq!(said[2], Some(HostMessage::DeviceInfo));
        assert!(guest.send(&Outgoing::in_band(2, true), &[&GuestMessage::DeviceInfoAck.encode()]));
        assert_eq!(guest.wait().0.packet_type, PacketType::COMPLETION);
        // The device listens by the time that it says so.
        let start = Instant::now();
        while console.receive().unwrap().map(|received| received.message)
            != Some(mouse::ToConsole::Ready(true))
        {
            assert!(start.elapsed() < PATIENCE);
        }
        assert_eq!(console.send(&mouse::FromConsole::Buttons(2), None).unwrap(), Sent::Whole);
        match HostMessage::parse(&guest.wait().1) {
            Some(HostMessage::Report(report)) => assert_eq!(report.buttons, 2),
            other => panic!("{other:?}"),
        }
        core.close(channel);
        assert_eq!(core.answer(), ToCore::Closed { channel });
    }
    drop(core);
    assert_eq!(process.end().code(), Some(0), "the core is gone: exit at once");
}

#[test]
fn what_cannot_start_says_why_in_one_sentence() {
    for arguments in [
        &["--device", "d", "--keyboard", "--seat-fd", "1000", "--policy-test", "open"][..],
        &["--device", "d", "--mouse", "--seat-socket", "/nonexistent/seat", "--policy-test", "open"],
    ] {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    }
}

#[test]
fn every_forbidden_act_is_the_last_one() {
    for act in sandbox::policy_test::FORBIDDEN.iter().map(|act| act.name) {
        let (device, _console) = keyboard::DeviceEnd::pair().unwrap();
        let (_core, socket) = FakeCore::new(0);
        let mut process = Process::start(socket, &device.into(), &["--keyboard", "--policy-test", act]);
        let status = process.end();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{act}: {status:?}");
    }
}
