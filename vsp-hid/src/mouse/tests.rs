use proptest::prelude::*;

use super::*;
use crate::state;

fn agreed() -> Mouse {
    let heard = Mouse::new().hear(&GuestMessage::ProtocolRequest(wire::VERSION_2_0).encode()).unwrap();
    let response = HostMessage::ProtocolResponse { version: wire::VERSION_2_0, accepted: true };
    assert_eq!(heard.packets, [response.encode(), HostMessage::DeviceInfo.encode()]);
    assert_eq!(heard.next.phase(), Phase::Agreed);
    heard.next
}

fn ready() -> Mouse {
    let heard = agreed().hear(&GuestMessage::DeviceInfoAck.encode()).unwrap();
    assert_eq!((heard.next.phase(), heard.packets.len()), (Phase::Ready, 0));
    heard.next
}

/// The report that an event has for the guest.
fn play(mouse: &mut Mouse, event: FromConsole) -> Option<Report> {
    let step = mouse.act(&event)?;
    assert!(step.last);
    *mouse = step.next;
    match HostMessage::parse(&step.packet) {
        Some(HostMessage::Report(report)) => Some(report),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_one_version_is_spoken() {
    for version in [0, 2, 0x1_0000, 0x2_0001, u32::MAX] {
        let heard = ready().hear(&GuestMessage::ProtocolRequest(version).encode()).unwrap();
        assert_eq!(heard.packets, [HostMessage::ProtocolResponse { version, accepted: false }.encode()]);
        assert_eq!(heard.next.phase(), Phase::Opened);
    }
    let ack = GuestMessage::DeviceInfoAck.encode();
    assert_eq!(Mouse::new().hear(&ack), Err(GuestFault::Early(3)));
    assert_eq!(ready().hear(&ack).unwrap().next, ready(), "once more changes nothing");
}

#[test]
fn a_report_says_all_there_is() {
    let mut mouse = ready();
    assert_eq!(
        play(&mut mouse, FromConsole::Motion { x: 100, y: 32767 }),
        Some(Report { x: 100, y: 32767, ..Report::default() })
    );
    let pressed = Report { buttons: 0b11, x: 100, y: 32767, ..Report::default() };
    assert_eq!(play(&mut mouse, FromConsole::Buttons(0xe3)), Some(pressed));
    assert_eq!(
        play(&mut mouse, FromConsole::Wheel { vertical: -1, horizontal: 300 }),
        Some(Report { wheel: -1, pan: 127, ..pressed })
    );
    assert_eq!(
        play(&mut mouse, FromConsole::Wheel { vertical: i16::MIN, horizontal: 0 }),
        Some(Report { wheel: -127, ..pressed })
    );
    assert_eq!(play(&mut mouse, FromConsole::Wheel { vertical: 0, horizontal: 0 }), None);
    // What the driver has dropped may be told again.
    assert_eq!(play(&mut mouse, FromConsole::Motion { x: 100, y: 32767 }), Some(pressed));
    assert_eq!(play(&mut mouse, FromConsole::ReleaseAll), Some(Report { buttons: 0, ..pressed }));
    assert_eq!(play(&mut mouse, FromConsole::ReleaseAll), None);
    assert_eq!(play(&mut mouse, FromConsole::Ask), None);
}

#[test]
fn another_driver_knows_of_no_button() {
    let mut mouse = ready();
    play(&mut mouse, FromConsole::Motion { x: 5, y: 6 });
    play(&mut mouse, FromConsole::Buttons(1));
    mouse.reopen();
    assert_eq!((mouse.buttons(), mouse.phase(), mouse.x, mouse.y), (0, Phase::Opened, 5, 6));
}

#[test]
fn a_state_that_makes_no_sense_is_refused() {
    let mut mouse = ready();
    play(&mut mouse, FromConsole::Motion { x: 5, y: 6 });
    play(&mut mouse, FromConsole::Buttons(4));
    let saved = state::save(&mouse, None);
    assert_eq!(state::load(&Mouse::new(), &saved), Ok((mouse, None)));
    for len in 0..saved.len() {
        assert!(matches!(state::load(&Mouse::new(), &saved[..len]), Err(StateError::TooShort(_))), "{len}");
    }
    for (at, what) in [(17, "position"), (19, "position"), (20, "button")] {
        let mut bytes = saved.clone();
        bytes[at] = 0xff;
        assert_eq!(state::load(&Mouse::new(), &bytes), Err(StateError::Senseless(what)));
    }
}

fn any_event() -> impl Strategy<Value = FromConsole> {
    prop_oneof![
        (0..=MAX_POSITION, 0..=MAX_POSITION).prop_map(|(x, y)| FromConsole::Motion { x, y }),
        (0..=ALL_BUTTONS).prop_map(FromConsole::Buttons),
        any::<(i16, i16)>().prop_map(|(vertical, horizontal)| FromConsole::Wheel { vertical, horizontal }),
        Just(FromConsole::ReleaseAll),
    ]
}

proptest! {
    #[test]
    fn a_successor_goes_on_from_there(events in prop::collection::vec(any_event(), 0..50)) {
        let mut mouse = ready();
        for event in events {
            let report = play(&mut mouse, event);
            prop_assert!(report.is_none_or(|report| report.buttons == mouse.buttons()));
            let saved = state::save(&mouse, Some(3));
            prop_assert_eq!(state::load(&Mouse::new(), &saved), Ok((mouse.clone(), Some(3))));
        }
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(heard) = ready().hear(&bytes) {
            prop_assert!(heard.packets.len() <= 2);
        }
        let _ = state::load(&Mouse::new(), &bytes);
    }
}
