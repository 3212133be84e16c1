//! A device in the test's own process, a guest that talks to it, and a console.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use seat::keyboard::{self, FromConsole, Leds, ToConsole};
use seat::{Sent, mouse};
use vsp::testing::{Bench, GuestEnd};
use vsp::vmbus::packet::PacketType;

use self::world::{AT_ONCE, CHANNEL, World, hello, key, process, stroke};
use super::*;
use crate::keyboard::{GuestMessage, HostMessage};
use crate::mouse::Mouse;
use crate::pace::BURST;

mod world;

#[test]
fn a_driver_introduces_itself_and_hears_keys() {
    let mut world = World::opened(AT_ONCE, 9);
    let no_leds = ToConsole::Leds(Leds::default());
    assert_eq!(world.heard(), [hello(), ToConsole::Ready(false), no_leds]);
    world.introduce();
    assert_eq!(world.heard(), [ToConsole::Ready(true)]);
    for up in [false, true] {
        let _ = world.tell(&key(0x1e, up));
        assert_eq!(world.said(), [stroke(0x1e, up)]);
    }
    // Nobody waits for an answer to this one.
    let lamps = GuestMessage::LedIndicators(4).encode();
    assert!(world.guest.send(&Outgoing::in_band(0, false), &[&lamps]));
    assert!(world.said().is_empty());
    let leds = ToConsole::Leds(Leds { caps: true, ..Leds::default() });
    assert_eq!(world.heard(), [leds]);
    let _ = world.tell(&FromConsole::Ask);
    assert!(world.said().is_empty());
    assert_eq!(world.heard(), [hello(), ToConsole::Ready(true), leds]);
}

#[test]
fn a_question_is_answered_once_also_if_nobody_waits_for_its_completion() {
    let mut world = World::opened(AT_ONCE, 9);
    let request = GuestMessage::ProtocolRequest(1 << 16).encode();
    assert!(world.guest.send(&Outgoing::in_band(7, false), &[&request]));
    let (header, _) = world.bench.wait(&mut world.guest);
    assert_eq!(header.packet_type, PacketType::IN_BAND);
    world.bench.settle();
    assert!(world.guest.poll().is_none());
}

#[test]
fn keys_without_a_driver_are_forgotten() {
    let mut world = World::opened(AT_ONCE, 9);
    for _ in 0..200 {
        let _ = world.tell(&key(0x1e, false));
        let _ = world.tell(&key(0x1e, true));
        world.bench.settle();
    }
    world.introduce();
    assert!(world.said().is_empty());
    // Of a key that was down before, the guest knows nothing.
    let _ = world.tell(&key(0x2a, true));
    assert!(world.said().is_empty());
}

#[test]
fn another_driver_finds_no_key_down() {
    let mut world = World::ready(AT_ONCE);
    let _ = world.tell(&key(0x1e, false));
    assert_eq!(world.said(), [stroke(0x1e, false)]);
    world.heard();
    world.bench.close(CHANNEL);
    assert_eq!(world.heard(), [ToConsole::Ready(false)]);
    world.guest = world.bench.open(2, 9);
    world.introduce();
    assert_eq!(world.heard(), [ToConsole::Ready(true)]);
    let _ = world.tell(&key(0x1e, true));
    assert!(world.said().is_empty());
}

#[test]
fn what_a_guest_never_read_is_not_for_the_next_one() {
    let mut world = World::opened(AT_ONCE, 1);
    world.introduce();
    // The ring is full, and then the socket is; nobody reads anything any more.
    while world.tell(&key(0x1e, false)) == Sent::Whole {
        world.bench.turn(0);
    }
    world.bench.close(CHANNEL);
    world.guest = world.bench.open(2, 1);
    (0..10).for_each(|_| world.bench.turn(0));
    assert_eq!(world.bench.runtime.device().wake_at(), None, "all is forgotten");
    world.introduce();
    assert!(world.said().is_empty());
    assert_eq!(world.tell(&key(0x30, false)), Sent::Whole, "there is room in the socket");
    assert_eq!(world.said(), [stroke(0x30, false)]);
}

#[test]
fn a_key_that_is_down_when_the_process_dies_goes_up_once() {
    let mut world = World::ready(AT_ONCE);
    let _ = world.tell(&key(0x1e, false));
    assert_eq!(world.said(), [stroke(0x1e, false)]);
    world.heard();
    let grave = world.kill();
    // Nobody serves, and nothing is lost.
    let _ = grave.console.send(&key(0x1e, true), None).unwrap();
    let _ = grave.console.send(&key(0x30, false), None).unwrap();
    let mut world = grave.rise();
    assert_eq!(world.said(), [stroke(0x1e, true), stroke(0x30, false)]);
    assert_eq!(world.heard(), [hello(), ToConsole::Ready(true), ToConsole::Leds(Leds::default())]);
    let _ = world.tell(&FromConsole::ReleaseAll);
    assert_eq!(world.said(), [stroke(0x30, true)]);
    assert!(world.bench.runtime.device().instrument().held().is_empty());
}

#[test]
fn an_event_that_the_guest_has_is_skipped_by_a_successor() {
    let mut world = World::ready(AT_ONCE);
    let _ = world.tell(&key(0x1e, false));
    // It reaches the guest, and the process dies before it takes it from the socket: as if it were put back.
    let number = world.console_number();
    assert_eq!(world.said(), [stroke(0x1e, false)]);
    assert_eq!(world.bench.runtime.device().number, Some(number));
    let mut bytes = Vec::new();
    seat::Message::encode(&key(0x1e, false), &mut bytes);
    let again = world.bytes_with(number, &bytes);
    let grave = world.kill();
    let _ = grave.console.send_bytes(&again, &[]).unwrap();
    let _ = grave.console.send(&key(0x1e, true), None).unwrap();
    let mut world = grave.rise();
    assert_eq!(world.said(), [stroke(0x1e, true)]);
}

#[test]
fn what_finds_no_room_waits_and_nothing_is_lost() {
    let mut world = World::opened(AT_ONCE, 1);
    world.introduce();
    let (mut sent, mut said) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while sent.len() < 3000 {
        let (code, up) = ((sent.len() / 2 % 50) as u8 + 1, sent.len() % 2 == 1);
        match world.tell(&key(code, up)) {
            Sent::Whole => sent.push(stroke(code, up)),
            // The ring is full, and then the socket is: now the guest reads a little.
            Sent::Full => {
                said.extend(world.guest.poll().map(|(_, payload)| HostMessage::parse(&payload).unwrap()))
            }
        }
        world.bench.turn(0);
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    while said.len() < sent.len() {
        said.extend(world.said());
        assert!(start.elapsed() < Duration::from_secs(60), "{} of {}", said.len(), sent.len());
    }
    assert_eq!(said, sent);
}

#[test]
fn much_at_once_goes_at_a_pace() {
    let each = Duration::from_millis(5);
    let mut world = World::ready(each);
    for count in 0..2 * BURST as u8 {
        let _ = world.tell(&key(count / 2 + 1, count % 2 == 1));
    }
    let start = Instant::now();
    let mut said = world.said();
    assert!(said.len() >= BURST as usize || start.elapsed() > each, "{}", said.len());
    while said.len() < 2 * BURST as usize {
        world.bench.turn(1);
        said.extend(world.waiting());
        assert!(start.elapsed() < Duration::from_secs(20));
        let most = BURST + 1 + (start.elapsed().as_nanos() / each.as_nanos()) as u32;
        assert!(said.len() <= most as usize, "{} after {:?}", said.len(), start.elapsed());
    }
    assert!(start.elapsed() >= each * (BURST - 1));
}

#[test]
fn a_console_that_talks_nonsense_is_not_listened_to() {
    let mut world = World::ready(AT_ONCE);
    let file = std::fs::File::open("/dev/null").unwrap();
    for bytes in [&b"x"[..], &[0xff; 16], &[0; 4096], &[0x82; 5000]] {
        for fds in [&[][..], &[std::os::fd::AsFd::as_fd(&file)]] {
            let _ = world.console.send_bytes(bytes, fds);
        }
        let _ = world.tell(&key(0x1e, false));
        let _ = world.tell(&key(0x1e, true));
        assert_eq!(world.said(), [stroke(0x1e, false), stroke(0x1e, true)]);
    }
}

#[test]
fn a_console_that_floods_leaves_guest_and_core_heard() {
    let mut world = World::ready(AT_ONCE);
    for round in 0..20 {
        while world.tell(&FromConsole::Key(keyboard::Key { scancode: 0x39, e0: false, e1: false, up: false }))
            == Sent::Whole
        {}
        let lamps = GuestMessage::LedIndicators(round % 8).encode();
        assert!(world.guest.send(&Outgoing::in_band(1, true), &[&lamps]));
        let mut turns = 0;
        loop {
            world.bench.turn(0);
            match world.guest.poll() {
                Some((header, _)) if header.packet_type == PacketType::COMPLETION => break,
                _ => turns += 1,
            }
            assert!(turns < 2000);
        }
    }
}

#[test]
fn a_console_that_does_not_listen_holds_nothing_up() {
    let mut world = World::ready(AT_ONCE);
    for round in 0..2000u16 {
        let lamps = GuestMessage::LedIndicators(round % 8).encode();
        assert!(world.guest.send(&Outgoing::in_band(1, false), &[&lamps]));
        world.bench.turn(0);
    }
    let _ = world.tell(&key(0x1e, false));
    assert_eq!(world.said(), [stroke(0x1e, false)]);
    assert!(world.bench.runtime.device().untold.again.is_some(), "the socket is full");
    world.heard();
    // There is room again, and it is told of the last.
    let (start, mut heard) = (Instant::now(), Vec::new());
    while heard.is_empty() {
        world.bench.turn(5);
        heard = world.heard();
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(heard, [ToConsole::Leds(Leds { scroll: true, num: true, caps: true })]);
}

#[test]
fn the_device_can_be_handed_over_and_back() {
    let mut world = World::ready(AT_ONCE);
    let _ = world.tell(&key(0x1e, false));
    assert_eq!(world.said(), [stroke(0x1e, false)]);
    world.heard();
    world.bench.quiesce();
    let _ = world.tell(&key(0x1e, true));
    // Whoever does not serve does not read.
    assert!(world.said().is_empty());
    assert!(world.console_number() > 0);
    world.bench.serve(true);
    world.bench.reopen_all();
    assert_eq!(world.said(), [stroke(0x1e, true)]);
    assert_eq!(world.heard()[..2], [hello(), ToConsole::Ready(true)]);
}

#[test]
fn keys_wait_for_the_channel_however_long_a_successor_waits_for_it() {
    let mut world = World::ready(AT_ONCE);
    let _ = world.tell(&key(0x2a, false));
    assert_eq!(world.said(), [stroke(0x2a, false)]);
    world.bench.quiesce();
    world.bench.core.early = false;
    world.bench.serve(true);
    let _ = world.tell(&key(0x2a, true));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1200) {
        world.bench.turn(100);
    }
    assert!(world.bench.runtime.device().wake_at().is_none(), "nothing is to be done before it comes");
    world.bench.reopen_all();
    assert_eq!(world.said(), [stroke(0x2a, true)]);
}

#[test]
fn empty_datagrams_of_one_console_do_not_hide_what_the_next_one_says() {
    let mut world = World::ready(AT_ONCE);
    while world.console.send_bytes(b"", &[]).unwrap() == Sent::Whole {}
    world.bench.settle();
    // It rings once, and never again.
    let _ = world.tell(&key(0x1e, false));
    let (start, mut said) = (Instant::now(), Vec::new());
    while said.is_empty() {
        world.bench.turn(100);
        said = world.waiting();
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(said, [stroke(0x1e, false)]);
}

#[test]
fn a_successor_of_nobody_s_channel_goes_on_soon() {
    let (device, console) = keyboard::DeviceEnd::pair().unwrap();
    let end = OwnedFd::from(device);
    let bench = Bench::new(process(&end, AT_ONCE), 0);
    let mut bench = Bench::take_over(bench.kill(), process(&end, AT_ONCE));
    let _ = console.send(&key(0x1e, false), None).unwrap();
    let start = Instant::now();
    let mut heard = Vec::new();
    // The first process has said the same three things.
    while heard.len() < 6 {
        bench.turn(10);
        heard.extend(std::iter::from_fn(|| console.receive().unwrap()).map(|received| received.message));
        assert!(start.elapsed() < Duration::from_secs(20), "{heard:?}");
    }
    let peer: keyboard::DeviceEnd = Seat::from_fd(end).unwrap();
    bench.settle();
    assert!(peer.peek().unwrap().is_none(), "nobody listens: the event is forgotten");
}

#[test]
fn a_mouse_moves() {
    let (device, console) = mouse::DeviceEnd::pair().unwrap();
    let mut bench = Bench::new(Hid::new(Mouse::new(), device, AT_ONCE), 0);
    let mut guest = bench.open(CHANNEL, 9);
    use crate::mouse::{GuestMessage, HostMessage, Report};
    let next = |bench: &mut Bench<_>, guest: &mut GuestEnd| loop {
        let (header, payload) = bench.wait(guest);
        if header.packet_type == PacketType::IN_BAND {
            return HostMessage::parse(&payload).unwrap();
        }
    };
    let version = 2 << 16;
    let request = GuestMessage::ProtocolRequest(version).encode();
    assert!(guest.send(&Outgoing::in_band(1, true), &[&request]));
    assert_eq!(next(&mut bench, &mut guest), HostMessage::ProtocolResponse { version, accepted: true });
    assert_eq!(next(&mut bench, &mut guest), HostMessage::DeviceInfo);
    let _ = console.send(&mouse::FromConsole::Motion { x: 1, y: 1 }, None).unwrap();
    bench.settle();
    assert!(guest.send(&Outgoing::in_band(2, true), &[&GuestMessage::DeviceInfoAck.encode()]));
    bench.settle();
    let _ = console.send(&mouse::FromConsole::Motion { x: 20, y: 30 }, None).unwrap();
    let report = Report { x: 20, y: 30, ..Report::default() };
    assert_eq!(next(&mut bench, &mut guest), HostMessage::Report(report));
    let heard: Vec<_> =
        std::iter::from_fn(|| console.receive().unwrap()).map(|received| received.message).collect();
    assert_eq!(heard[1..], [mouse::ToConsole::Ready(false), mouse::ToConsole::Ready(true)]);
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// Somebody types.
    Event(u8, bool),
    /// Everything is let go.
    ReleaseAll,
    /// The process does so many turns.
    Turns(u8),
    /// The guest looks.
    Look,
    /// The process dies, and another one follows.
    Death,
    /// It hands over, and another one follows.
    Swap,
    /// The guest closes the channel: what it has not read it never will.
    Close,
    /// It opens another, with a driver that introduces itself.
    Open,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (1u8..20, any::<bool>()).prop_map(|(code, up)| Happens::Event(code, up)),
        1 => Just(Happens::ReleaseAll),
        3 => (0u8..3).prop_map(Happens::Turns),
        2 => Just(Happens::Look),
        2 => Just(Happens::Death),
        1 => Just(Happens::Swap),
        1 => Just(Happens::Close),
        2 => Just(Happens::Open),
    ]
}

proptest! {
    // A process that is killed here keeps its places among the witnesses of a crash, of which this program has 256.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whoever dies when: the guest hears what it would have heard from a process that lives for ever.
    #[test]
    fn each_event_comes_once_and_in_order(script in prop::collection::vec(happens(), 0..60), pages in 1u32..3) {
        let mut world = World::opened(AT_ONCE, pages);
        world.introduce();
        let ready = world.bench.runtime.device().instrument().clone();
        let mut model = ready.clone();
        let (mut due, mut said, mut deaths) = (Vec::new(), Vec::new(), 0);
        let (mut channel, mut is_open) = (CHANNEL, true);
        for what in script {
            let event = match what {
                Happens::Event(code, up) => key(code, up),
                Happens::ReleaseAll => FromConsole::ReleaseAll,
                Happens::Turns(count) => {
                    (0..count).for_each(|_| world.bench.turn(0));
                    continue;
                }
                Happens::Look => {
                    said.extend(world.waiting());
                    continue;
                }
                Happens::Death if deaths == 5 => continue,
                Happens::Death => {
                    deaths += 1;
                    world = world.kill().rise();
                    continue;
                }
                Happens::Swap => {
                    world.bench.quiesce();
                    world = world.kill().rise();
                    continue;
                }
                Happens::Close if is_open => {
                    world.bench.close(channel);
                    // A guest may look into a ring that it has closed.
                    said.extend(world.waiting());
                    prop_assert!(due.starts_with(&said), "{:?} of {:?}", said, due);
                    due.truncate(said.len());
                    is_open = false;
                    continue;
                }
                Happens::Open if !is_open => {
                    channel += 1;
                    world.guest = world.bench.open(channel, pages);
                    world.introduce();
                    (model, is_open) = (ready.clone(), true);
                    continue;
                }
                Happens::Close | Happens::Open => continue,
            };
            // Nobody listens: it is forgotten.
            if world.tell(&event) == Sent::Full || !is_open {
                continue;
            }
            while let Some(step) = model.act(&event) {
                due.push(HostMessage::parse(&step.packet).unwrap());
                model = step.next;
                if step.last {
                    break;
                }
            }
        }
        let start = Instant::now();
        while said.len() < due.len() && start.elapsed() < Duration::from_secs(10) {
            said.extend(world.said());
        }
        said.extend(world.said());
        prop_assert_eq!(said, due);
        if is_open {
            prop_assert_eq!(world.bench.runtime.device().instrument(), &model);
        }
    }
}
