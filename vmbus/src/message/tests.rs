use super::*;
use crate::guid::class;
use crate::protocol::Version;
use proptest::prelude::*;

#[test]
fn sizes_are_those_of_the_protocol() {
    let open = OpenChannel {
        relid: 1,
        open_id: 2,
        ring_gpadl: 3,
        target_vp: 4,
        downstream_page_offset: 5,
        user_data: [6; USER_DATA_SIZE],
    };
    assert_eq!(GuestMessage::InitiateContact(InitiateContact::new(Version::V5_3, 0)).encode().len(), 40);
    assert_eq!(GuestMessage::OpenChannel(open).encode().len(), 148);
    assert_eq!(HostMessage::Offer(Offer::new(class::SCSI, class::ECHO, 1, 2)).encode().len(), 196);
    assert_eq!(HostMessage::VersionResponse(VersionResponse::refused()).encode().len(), 16);
    assert_eq!(HostMessage::OpenResult(OpenResult { relid: 1, open_id: 1, status: 0 }).encode().len(), 20);
    assert_eq!(HostMessage::UnloadResponse.encode().len(), 8);
}

#[test]
fn an_offers_fields_lie_where_drivers_look() {
    let mut offer = Offer::new(class::SCSI, class::ECHO, 0x1122_3344, 0x5566_7788);
    offer.flags = OfferFlags::NAMED_PIPE_MODE.bits();
    offer.mmio_megabytes = 8;
    offer.sub_channel_index = 3;
    let bytes = HostMessage::Offer(offer).encode();
    assert_eq!(bytes[..4], 1u32.to_le_bytes());
    assert_eq!(bytes[8..24], class::SCSI.to_wire());
    assert_eq!(bytes[24..40], class::ECHO.to_wire());
    assert_eq!(bytes[56..60], [0x10, 0, 8, 0]);
    assert_eq!(bytes[180..182], [3, 0]);
    assert_eq!(bytes[184..188], 0x1122_3344u32.to_le_bytes());
    assert_eq!(bytes[190..192], [1, 0]);
    assert_eq!(bytes[192..196], 0x5566_7788u32.to_le_bytes());
}

#[test]
fn since_5_0_the_contact_names_a_sint() {
    assert_eq!(InitiateContact::new(Version::V5_0, 0).message_sint(), 2);
    assert_eq!(InitiateContact::new(Version::V4_1, 0).interrupt_page_or_sint, 0);
}

#[test]
fn a_message_of_the_other_direction_is_unknown() {
    let offers = HostMessage::AllOffersDelivered.encode();
    assert_eq!(GuestMessage::parse(&offers), Err(MessageError::UnknownKind(4)));
    let unload = GuestMessage::Unload.encode();
    assert_eq!(HostMessage::parse(&unload), Err(MessageError::UnknownKind(16)));
}

#[test]
fn short_and_long_messages_are_refused() {
    assert_eq!(GuestMessage::parse(&[14, 0, 0]), Err(MessageError::TooShort { kind: 0, have: 3, need: 8 }));
    let contact = GuestMessage::InitiateContact(InitiateContact::default()).encode();
    assert_eq!(
        GuestMessage::parse(&contact[..39]),
        Err(MessageError::TooShort { kind: 14, have: 39, need: 40 })
    );
    assert_eq!(GuestMessage::parse(&[0; 241]), Err(MessageError::TooLong(241)));
}

#[test]
fn bytes_behind_the_body_are_ignored() {
    let mut bytes = [0xff; MAX_SIZE];
    bytes[..12].copy_from_slice(&GuestMessage::CloseChannel(7).encode());
    assert_eq!(GuestMessage::parse(&bytes), Ok(GuestMessage::CloseChannel(7)));
}

proptest! {
    #[test]
    fn whatever_parses_encodes_to_the_same_message(kind in 0u32..26, mut bytes in prop::collection::vec(any::<u8>(), 8..=240)) {
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        if let Ok(message) = GuestMessage::parse(&bytes) {
            let encoded = message.encode();
            prop_assert_eq!(GuestMessage::parse(&encoded), Ok(message));
        }
        if let Ok(message) = HostMessage::parse(&bytes) {
            let encoded = message.encode();
            prop_assert_eq!(HostMessage::parse(&encoded), Ok(message));
        }
    }
}
