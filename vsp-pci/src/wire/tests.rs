//! The messages, byte by byte as the driver's structures have them.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use proptest::prelude::*;

use super::guest::{Message, Target};
use super::*;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn the_drivers_messages_are_understood() {
    let parse = |bytes: &[u8]| GuestMessage::parse(bytes).unwrap();
    assert_eq!(parse(&words(&[0x4249_0013, 0x1_0004])), GuestMessage::QueryVersion(Version::V1_4));
    assert_eq!(parse(&words(&[0x4249_0001, 0])), GuestMessage::QueryBusRelations);
    assert_eq!(parse(&words(&[0x4249_0005, 7])), GuestMessage::QueryResourceRequirements { slot: 7 });
    assert_eq!(
        parse(&words(&[0x4249_0007, 0, 0xf800_0000, 1])),
        GuestMessage::D0Entry { window: 0x1_f800_0000 }
    );
    assert_eq!(parse(&words(&[0x4249_0008, 0])), GuestMessage::D0Exit);
    assert_eq!(parse(&words(&[0x4249_0016, 0, 0])), GuestMessage::ResourcesAssigned { slot: 0 });
    assert_eq!(parse(&words(&[0x4249_0011, 0])), GuestMessage::ResourcesReleased { slot: 0 });
    assert_eq!(parse(&words(&[0x4249_000f, 0, 0])), GuestMessage::EjectionComplete { slot: 0 });
    assert_eq!(parse(&words(&[0x4249_0009, 0, 0, 4])), GuestMessage::Block);
}

#[test]
fn each_version_has_its_own_way_to_name_processors() {
    let target =
        |vector, count, vp| GuestMessage::CreateInterrupt { slot: 0, target: Target { vector, count, vp } };
    let mut v1 = words(&[0x4249_0014, 0]);
    v1.extend([0x31, 0, 1, 0, 0, 0, 0, 0]);
    let mut none = v1.clone();
    v1.extend(0xcu64.to_le_bytes());
    assert_eq!(GuestMessage::parse(&v1), Ok(target(0x31, 1, 2)));
    none.extend([0; 8]);
    assert_eq!(GuestMessage::parse(&none), Err(WireError::NoProcessor));
    let mut v2 = words(&[0x4249_0017, 0]);
    v2.extend([0x20, 0, 4, 0, 1, 0, 5, 0]);
    assert!(GuestMessage::parse(&v2).is_err(), "the list is of its full length");
    v2.resize(8 + 6 + 64, 0);
    assert_eq!(GuestMessage::parse(&v2), Ok(target(0x20, 4, 5)));
    v2[12] = 0;
    assert_eq!(GuestMessage::parse(&v2), Err(WireError::NoProcessor));
    let mut v3 = words(&[0x4249_001b, 0, 0x1ef]);
    v3.extend([0, 0, 1, 0, 1, 0, 3, 0]);
    v3.resize(8 + 10 + 64, 0);
    assert_eq!(GuestMessage::parse(&v3), Ok(target(0x1ef, 1, 3)));
}

#[test]
fn what_was_given_comes_back_when_it_is_deleted() {
    let message = Message { count: 4, data: 0x1234, address: 0xfee0_0000 };
    let given = host::interrupt(Ok(message));
    assert_eq!(given.len(), 24);
    let mut delete = words(&[0x4249_0015, 0]);
    delete.extend(&given[8..]);
    assert_eq!(GuestMessage::parse(&delete), Ok(GuestMessage::DeleteInterrupt { slot: 0, message }));
    let refused = host::interrupt(Err(Status::INSUFFICIENT_RESOURCES));
    assert_eq!((refused.len(), i32::from_le_bytes(*refused.first_chunk().unwrap()) < 0), (24, true));
}

#[test]
fn the_list_of_functions_is_as_long_as_the_version_has_it() {
    let function =
        Description { vendor: 0x8086, device: 0x10d3, class: [0, 0, 0, 2], subsystem: 7, serial: 9 };
    let old = HostMessage::BusRelations { version: Version::V1_3, function: Some(function) }.encode();
    assert_eq!(old[..8], words(&[0x4249_0000, 1]));
    assert_eq!(old[8..], words(&[0x10d3_8086, 0x0200_0000, 7, 0, 9]));
    let new = HostMessage::BusRelations { version: Version::V1_4, function: Some(function) }.encode();
    assert_eq!((new.len(), &new[..4]), (8 + 28, &words(&[0x4249_0019])[..]));
    let none = HostMessage::BusRelations { version: Version::V1_4, function: None }.encode();
    assert_eq!(none, words(&[0x4249_0019, 0]));
    assert_eq!(HostMessage::Eject.encode(), words(&[0x4249_000b, 0]));
    assert_eq!(host::requirements(&[1, 2, 3, 4, 5, 6]), words(&[0, 1, 2, 3, 4, 5, 6]));
}

#[test]
fn versions_are_read_as_people_write_them() {
    assert_eq!(Version::V1_2.to_string(), "1.2");
    assert!(Version::V1_1.is_spoken() && !Version::from_wire(0x1_0005).is_spoken());
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes: Vec<u8>, number in 0u32..0x20) {
        let _ = GuestMessage::parse(&bytes);
        let mut message = words(&[0x4249_0000 + number]);
        message.extend(bytes);
        let _ = GuestMessage::parse(&message);
    }
}
