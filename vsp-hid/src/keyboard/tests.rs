use proptest::prelude::*;

use super::*;
use crate::state;

fn ready() -> Keyboard {
    let heard =
        Keyboard::new(false).hear(&GuestMessage::ProtocolRequest(wire::VERSION_1_0).encode()).unwrap();
    assert_eq!(heard.packets, [HostMessage::ProtocolResponse { accepted: true }.encode()]);
    assert_eq!(heard.next.phase(), Phase::Ready);
    heard.next
}

fn key(scancode: u16, up: bool) -> FromConsole {
    FromConsole::Key(seat::keyboard::Key { scancode, e0: false, e1: false, up })
}

fn pause(up: bool) -> [FromConsole; 2] {
    let first = seat::keyboard::Key { scancode: 0x1d, e0: false, e1: true, up };
    [FromConsole::Key(first), key(0x45, up)]
}

/// What an event has for the guest, all of it.
fn play(keyboard: &mut Keyboard, event: &FromConsole) -> Vec<HostMessage> {
    let mut said = Vec::new();
    while let Some(step) = keyboard.act(event) {
        said.push(HostMessage::parse(&step.packet).unwrap());
        *keyboard = step.next;
        if step.last {
            break;
        }
        assert!(said.len() < 1000);
    }
    said
}

fn plain(code: u8, up: bool) -> HostMessage {
    HostMessage::Key { key: Key { code, prefix: Prefix::None }, up }
}

#[test]
fn only_one_version_is_spoken() {
    let keyboard = ready();
    for version in [0, 1, 0x1_0001, 0x2_0000, u32::MAX] {
        let heard = keyboard.hear(&GuestMessage::ProtocolRequest(version).encode()).unwrap();
        assert_eq!(heard.packets, [HostMessage::ProtocolResponse { accepted: false }.encode()]);
        assert_eq!(heard.next.phase(), Phase::Opened);
    }
}

#[test]
fn a_key_goes_down_repeats_and_goes_up_once() {
    let mut keyboard = ready();
    assert_eq!(play(&mut keyboard, &key(0x1e, false)), [plain(0x1e, false)]);
    assert_eq!(play(&mut keyboard, &key(0x1e, false)), [plain(0x1e, false)]);
    assert_eq!(play(&mut keyboard, &key(0x1e, true)), [plain(0x1e, true)]);
    assert_eq!(play(&mut keyboard, &key(0x1e, true)), []);
    assert_eq!(keyboard, ready());
}

#[test]
fn what_is_not_down_does_not_go_up() {
    let mut keyboard = ready();
    // Left Shift, whose break code alone makes Linux look for a new keyboard.
    assert_eq!(play(&mut keyboard, &key(0x2a, true)), []);
    play(&mut keyboard, &key(0x2a, false));
    let other = FromConsole::Key(seat::keyboard::Key { scancode: 0x2a, e0: true, e1: false, up: true });
    assert_eq!(play(&mut keyboard, &other), []);
    assert_eq!(play(&mut keyboard, &FromConsole::ReleaseAll), [plain(0x2a, true)]);
    assert_eq!(play(&mut keyboard, &FromConsole::ReleaseAll), []);
}

#[test]
fn everything_goes_up_and_the_halves_of_pause_together() {
    let mut keyboard = ready();
    for event in [key(0x38, false), key(0x1d, false)].iter().chain(&pause(false)) {
        assert_eq!(play(&mut keyboard, event).len(), 1);
    }
    let said = play(&mut keyboard, &FromConsole::ReleaseAll);
    let first = HostMessage::Key { key: Key { code: 0x1d, prefix: Prefix::E1 }, up: true };
    assert_eq!(said, [first, plain(0x45, true), plain(0x1d, true), plain(0x38, true)]);
    assert!(keyboard.held().is_empty());
}

#[test]
fn characters_are_for_those_who_understand_them() {
    let mut keyboard = ready();
    assert_eq!(play(&mut keyboard, &FromConsole::Unicode(0xe9)), []);
    keyboard.unicode = true;
    for unit in [0xe9, 0x20ac, 0x20ac] {
        let both = [false, true].map(|up| HostMessage::Unicode { unit, up });
        assert_eq!(play(&mut keyboard, &FromConsole::Unicode(unit)), both);
        // A process that dies between the two.
        keyboard = keyboard.act(&FromConsole::Unicode(unit)).unwrap().next;
        let (restored, _) = state::load(&Keyboard::new(true), &state::save(&keyboard, None)).unwrap();
        keyboard = restored;
        assert_eq!(play(&mut keyboard, &FromConsole::Unicode(unit)), both[1..]);
    }
    assert_eq!(play(&mut keyboard, &FromConsole::Unicode(0)), []);
}

#[test]
fn lamps_are_the_guests() {
    let keyboard = ready();
    for (lamps, leds) in [
        (0, Leds::default()),
        (1, Leds { scroll: true, ..Leds::default() }),
        (2, Leds { num: true, ..Leds::default() }),
        (0xfff4, Leds { caps: true, ..Leds::default() }),
    ] {
        let heard = keyboard.hear(&GuestMessage::LedIndicators(lamps).encode()).unwrap();
        assert!(heard.packets.is_empty());
        assert_eq!(heard.next.remark(), Some(ToConsole::Leds(leds)));
    }
    let early = Keyboard::new(false).hear(&GuestMessage::LedIndicators(1).encode());
    assert_eq!(early, Err(GuestFault::Early(4)));
}

#[test]
fn another_driver_knows_of_no_key() {
    let mut keyboard = ready();
    play(&mut keyboard, &key(0x1e, false));
    let heard = keyboard.hear(&GuestMessage::ProtocolRequest(wire::VERSION_1_0).encode()).unwrap();
    assert_eq!(heard.next, ready());
}

#[test]
fn a_state_that_makes_no_sense_is_refused() {
    let saved = state::save(&ready(), Some(7));
    let load = |bytes: &[u8]| state::load(&Keyboard::new(false), bytes);
    assert_eq!(load(&saved), Ok((ready(), Some(7))));
    assert_eq!(load(&[&saved[..], b"of a later build"].concat()), Ok((ready(), Some(7))));
    for len in 0..saved.len() {
        assert!(matches!(load(&saved[..len]), Err(StateError::TooShort(_))), "{len}");
    }
    let with = |at: usize, value: u8| {
        let mut bytes = saved.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(load(&with(1, 2)), Err(StateError::TooNew { wanted: 2 }));
    assert_eq!(load(&with(2, 2)), Err(StateError::Kind(2)));
    assert_eq!(load(&with(3, 3)), Err(StateError::Senseless("phase")));
    assert_eq!(load(&with(0, 9)), Ok((ready(), Some(7))), "a later build that thinks of us");
}

fn any_event() -> impl Strategy<Value = FromConsole> {
    let key = (1u16..0x80, 0u8..3, any::<bool>()).prop_map(|(scancode, prefix, up)| {
        FromConsole::Key(seat::keyboard::Key { scancode, e0: prefix == 1, e1: prefix == 2, up })
    });
    prop_oneof![8 => key, 1 => Just(FromConsole::ReleaseAll), 1 => any::<u16>().prop_map(FromConsole::Unicode)]
}

proptest! {
    /// Whatever is typed, what the guest has seen going down and not up is what is held, and after a release of everything nothing is.
    #[test]
    fn the_guest_and_we_agree(events in prop::collection::vec(any_event(), 0..100), unicode: bool) {
        let mut keyboard = Keyboard { unicode, ..ready() };
        let mut down = Vec::new();
        for event in events.iter().chain([&FromConsole::ReleaseAll]) {
            for said in play(&mut keyboard, event) {
                let saved = state::save(&keyboard, Some(1));
                prop_assert_eq!(state::load(&Keyboard::new(unicode), &saved), Ok((keyboard.clone(), Some(1))));
                match said {
                    HostMessage::Key { key, up: false } if !down.contains(&key) => down.push(key),
                    HostMessage::Key { up: false, .. } => {}
                    HostMessage::Key { key, up: true } => {
                        let place = down.iter().position(|other| *other == key);
                        prop_assert!(place.is_some(), "{:?} goes up and was not down", key);
                        down.swap_remove(place.unwrap());
                    }
                    HostMessage::Unicode { .. } => prop_assert!(unicode),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert!(down.iter().all(|key| keyboard.held().contains(*key)));
        }
        prop_assert!(down.is_empty() && keyboard.held().is_empty());
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(heard) = ready().hear(&bytes) {
            prop_assert!(heard.packets.len() <= 1);
        }
        let _ = state::load(&Keyboard::new(false), &bytes);
    }
}
