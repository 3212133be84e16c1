use proptest::prelude::*;
use seat::video::Rect;

use super::*;
use crate::state::Situation;

/// A packet as a driver writes it: both sizes count the same bytes.
fn packet(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = (8 + body.len()) as u32;
    [&1u32.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes(), &size.to_le_bytes(), body].concat()
}

const SITUATION: Situation =
    Situation { active: true, offset: 0, depth_bits: 32, width: 1152, height: 864, pitch: 4608 };

#[test]
fn what_linux_sends_is_understood() {
    let version = packet(1, &[3, 0, 5, 0]);
    assert_eq!(GuestMessage::parse(&version), Ok(GuestMessage::VersionRequest(Version::V3_5)));
    let gpa = 0xf800_0000u64;
    let location = packet(3, &[&gpa.to_le_bytes()[..], &[1], &gpa.to_le_bytes()].concat());
    let expected = GuestMessage::VramLocation { context: gpa, gpa: Some(gpa) };
    assert_eq!(GuestMessage::parse(&location), Ok(expected));
    let numbers = [1152u32, 864, 4608].map(u32::to_le_bytes).concat();
    let situation = packet(5, &[&[0; 8][..], &[1], &[1, 0, 0, 0, 0, 32], &numbers].concat());
    let expected = GuestMessage::SituationUpdate { context: 0, situation: Some(SITUATION) };
    assert_eq!(GuestMessage::parse(&situation), Ok(expected));
    let position = packet(7, &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let expected = GuestMessage::PointerPosition { visible: true, x: 0, y: -1 };
    assert_eq!(GuestMessage::parse(&position), Ok(expected));
    let shape = [&[0xff, 1][..], &[1, 0, 0, 0], &[1, 0, 0, 0], &[0; 8], &[0, 1, 1, 1]].concat();
    let bytes = &[0, 1, 1, 1];
    let (index, is_argb) = (PointerPart::LAST, true);
    let part = PointerPart { index, is_argb, width: 1, height: 1, hot_x: 0, hot_y: 0, bytes };
    assert_eq!(GuestMessage::parse(&packet(8, &shape)), Ok(GuestMessage::PointerShape(part)));
    let dirt = [&[0, 1][..], &[1, 2, 3, 4].map(i32::to_le_bytes).concat()].concat();
    let dirt = packet(10, &dirt);
    let Ok(GuestMessage::Dirt(dirt)) = GuestMessage::parse(&dirt) else { panic!() };
    assert_eq!(dirt.rects().collect::<Vec<_>>(), [Rect { x1: 1, y1: 2, x2: 3, y2: 4 }]);
    let request = packet(13, &[64]);
    assert_eq!(GuestMessage::parse(&request), Ok(GuestMessage::ResolutionRequest { most: 64 }));
}

#[test]
fn linux_gets_what_it_expects() {
    let response = HostMessage::VersionResponse { version: Version::V3_5, accepted: true }.encode();
    assert_eq!(response, packet(2, &[3, 0, 5, 0, 1, 1]));
    assert_eq!(HostMessage::VramLocationAck { context: 7 }.encode(), packet(4, &7u64.to_le_bytes()));
    assert_eq!(HostMessage::SituationUpdateAck { context: 0 }.encode(), packet(6, &[0; 8]));
    assert_eq!(HostMessage::FeatureChange(Features::ALL).encode(), packet(9, &[1; 4]));
    let resolutions = vec![Resolution { width: 1280, height: 800 }, Resolution { width: 640, height: 480 }];
    let bytes = HostMessage::ResolutionResponse { resolutions, preferred: 1 }.encode();
    let list = [0x00, 0x05, 0x20, 0x03, 0x80, 0x02, 0xe0, 0x01];
    assert_eq!(bytes, packet(14, &[&[0; 128][..], &[2, 1, 0], &list].concat()));
}

#[test]
fn lengths_that_lie_are_refused() {
    let good = GuestMessage::SituationUpdate { context: 9, situation: Some(SITUATION) }.encode();
    for len in 0..good.len() {
        assert!(GuestMessage::parse(&good[..len]).is_err(), "{len}");
    }
    // Rings pad with whatever was there.
    let padded = [&good[..], &[0xee; 7]].concat();
    assert!(GuestMessage::parse(&padded).is_ok());
    for (at, size) in [(4, 0), (4, 7), (4, 8), (4, u32::MAX), (12, 0), (12, 7), (12, 47), (12, u32::MAX)] {
        let mut broken = good.clone();
        broken[at..at + 4].copy_from_slice(&size.to_le_bytes());
        assert!(GuestMessage::parse(&broken).is_err(), "{size} at {at}");
    }
    let mut broken = good.clone();
    broken[0] = 2;
    assert_eq!(GuestMessage::parse(&broken), Err(WireError::Pipe(2)));
    assert_eq!(GuestMessage::parse(&packet(0, &[0; 64])), Err(WireError::UnknownKind(0)));
    assert_eq!(GuestMessage::parse(&packet(2, &[0; 64])), Err(WireError::UnknownKind(2)));
    assert_eq!(GuestMessage::parse(&packet(7, &[1, 3, 0, 0, 0, 0, 0, 0, 0, 0])), Err(WireError::Screen(3)));
    let dirt = Dirt::message(&[Rect::default(); 3]);
    let mut more = dirt.clone();
    more[17] = 4;
    assert!(GuestMessage::parse(&dirt).is_ok());
    assert!(matches!(GuestMessage::parse(&more), Err(WireError::TooShort { kind: 10, have: 50, need: 66 })));
}

#[test]
fn a_guest_without_a_screen_has_no_situation() {
    let none = GuestMessage::SituationUpdate { context: 3, situation: None };
    assert_eq!(GuestMessage::parse(&none.encode()), Ok(none));
    let mut two = GuestMessage::SituationUpdate { context: 3, situation: Some(SITUATION) }.encode();
    two[24] = 2;
    let first = GuestMessage::SituationUpdate { context: 3, situation: Some(SITUATION) };
    assert_eq!(GuestMessage::parse(&two), Ok(first));
}

#[test]
fn versions_from_3_2_to_3_5_are_spoken() {
    for minor in 2..=5 {
        assert!(Version::new(3, minor).is_spoken());
    }
    for (major, minor) in [(3, 0), (3, 1), (3, 6), (2, 5), (4, 2), (0, 0), (0xffff, 0xffff)] {
        assert!(!Version::new(major, minor).is_spoken());
    }
    assert!(Version::V3_5.has_resolutions() && !Version::V3_2.has_resolutions());
    assert_eq!(Version::from_wire(0x0005_0003).to_string(), "3.5");
}

proptest! {
    #[test]
    fn what_is_understood_is_said_again_in_the_same_way(kind in 0u32..16, body in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = packet(kind, &body);
        if let Ok(message) = GuestMessage::parse(&bytes) {
            let again = message.encode();
            prop_assert_eq!(GuestMessage::parse(&again), Ok(message));
        }
        if let Ok(message) = HostMessage::parse(&bytes)
            && !matches!(&message, HostMessage::ResolutionResponse { resolutions, .. } if resolutions.len() > MAX_RESOLUTIONS)
        {
            prop_assert_eq!(HostMessage::parse(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn any_bytes_are_parsed_without_a_fall(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = GuestMessage::parse(&bytes);
        let _ = HostMessage::parse(&bytes);
    }
}
