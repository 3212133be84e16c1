use super::super::{Lso, ReceiveChecksum, TransmitChecksum, Vlan};
use super::*;
use crate::rndis::info::{LsoVersion, Transport};

fn infos() -> [TransmitInfo; 4] {
    let checksum = TransmitChecksum { transport: Some(Transport::Tcp), ip_header: false, offset: 34 };
    let lso = Lso { mss: 1448, offset: 34, version: LsoVersion::V2Ip4 };
    let vlan = Vlan { priority: 0, cfi: false, id: 42 };
    [
        TransmitInfo::default(),
        TransmitInfo { checksum: Some(checksum), ..TransmitInfo::default() },
        TransmitInfo { vlan: Some(vlan), hash: Some(1), ..TransmitInfo::default() },
        TransmitInfo { checksum: Some(checksum), lso: Some(lso), vlan: Some(vlan), hash: Some(2) },
    ]
}

/// Messages in a row, each padded to 8 bytes but the last.
fn batch(frames: &[(TransmitInfo, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (info, data)) in frames.iter().enumerate() {
        let start = bytes.len();
        compose(info, data.len(), &mut bytes);
        bytes.extend_from_slice(data);
        if number + 1 < frames.len() {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let len = (bytes.len() - start) as u32;
            bytes[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        }
    }
    bytes
}

/// Frames in `bytes`, read from a slice.
fn frames(bytes: &[u8]) -> Vec<Result<Frame, RndisError>> {
    let copy = |at: usize, into: &mut [u8]| match bytes.get(at..at + into.len()) {
        Some(from) => {
            into.copy_from_slice(from);
            true
        }
        None => false,
    };
    Frames::new(bytes.len(), copy).collect()
}

/// The error that a message with one word changed ends in.
fn broken(at: usize, value: u32) -> RndisError {
    let mut bytes = batch(&[(infos()[3], vec![0x5a; 100])]);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let mut frames = frames(&bytes);
    assert_eq!(frames.len(), 1, "nothing follows an error");
    frames.remove(0).unwrap_err()
}

#[test]
fn a_batch_is_taken_apart() {
    let sent: Vec<_> =
        infos().into_iter().enumerate().map(|(n, info)| (info, vec![n as u8; 60 + n])).collect();
    let bytes = batch(&sent);
    let found: Vec<Frame> = frames(&bytes).into_iter().map(Result::unwrap).collect();
    assert_eq!(found.len(), 4);
    let mut end = 0;
    for (frame, (info, data)) in found.iter().zip(&sent) {
        assert_eq!(frame.message.start, end);
        assert_eq!(frame.message.start % 8, 0);
        assert_eq!((&frame.info, &bytes[frame.data.clone()]), (info, &data[..]));
        end = frame.message.end;
    }
    assert_eq!(end, bytes.len());
}

#[test]
fn a_message_of_linux_is_understood() {
    // As `netvsc_xmit` builds it: offsets count from behind type and length.
    let mut bytes = Vec::new();
    compose(&infos()[1], 66, &mut bytes);
    let words: Vec<u32> =
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words[..11], [1, 126, 52, 66, 0, 0, 0, 36, 16, 0, 0]);
    assert_eq!(words[11..], [16, 0, 12, 1 | 1 << 2 | 34 << 16]);
    let mut plain = Vec::new();
    compose(&TransmitInfo::default(), 66, &mut plain);
    assert_eq!((plain.len(), plain[28], plain[32]), (44, 36, 0));
}

#[test]
fn nothing_at_all_is_no_frame_and_padding_is_none_either() {
    assert_eq!(frames(&[]), []);
    let mut bytes = batch(&[(infos()[0], vec![1; 60])]);
    bytes.extend_from_slice(&[0; 7]);
    assert_eq!(frames(&bytes).len(), 1);
    // Eight bytes would be a message.
    bytes.push(0);
    assert!(frames(&bytes)[1].is_err());
    assert!(matches!(frames(&[1, 0, 0])[..], [Err(RndisError::TooShort { have: 3, .. })]));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = batch(&[(infos()[3], vec![0x5a; 100])]);
    for len in 1..bytes.len() {
        assert!(matches!(frames(&bytes[..len])[..], [Err(_)]), "{len}");
    }
}

#[test]
fn lengths_and_offsets_that_lie_are_refused() {
    let have = 44 + 64 + 100;
    assert_eq!(broken(0, 2), RndisError::UnknownKind(2));
    for says in [0, 8, 43, have as u32 + 1, u32::MAX] {
        assert_eq!(broken(4, says), RndisError::Length { says, have });
    }
    // The frame: over the fields, past the end, around the end of numbers.
    for offset in [0, 35, 101, 0x7fff_ffff, u32::MAX] {
        assert!(matches!(broken(8, offset), RndisError::Outside { length: 100, .. }), "{offset}");
    }
    for length in [101, u32::MAX, u32::MAX - 100] {
        assert!(matches!(broken(12, length), RndisError::Outside { offset: 100, .. }));
    }
    // The information.
    for offset in [4, 35, 200, u32::MAX] {
        assert!(matches!(broken(28, offset), RndisError::Outside { length: 64, .. }));
    }
    assert!(matches!(broken(32, u32::MAX), RndisError::Outside { .. }));
    assert!(matches!(broken(32, 63), RndisError::Info { .. }));
}

#[test]
fn information_may_be_behind_the_frame_and_may_not_be_endless() {
    let mut bytes = Vec::new();
    compose(&TransmitInfo::default(), 200, &mut bytes);
    bytes.resize(bytes.len() + 200, 0);
    let info = infos()[3];
    let offset = (bytes.len() - 8) as u32;
    bytes.extend(info.pieces().flatten());
    let len = bytes.len() as u32;
    for (at, value) in [(4, len), (28, offset), (32, 64)] {
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    assert_eq!(frames(&bytes)[0].as_ref().unwrap().info, info);

    bytes.resize(2000, 0);
    for (at, value) in [(4, 2000), (28, 36), (32, MAX_INFO_LEN as u32 + 1)] {
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    assert!(matches!(frames(&bytes)[..], [Err(RndisError::Outside { .. })]));
}

#[test]
fn one_message_has_only_so_many_frames() {
    let many: Vec<_> = (0..MAX_FRAMES + 1).map(|_| (TransmitInfo::default(), vec![0; 14])).collect();
    assert_eq!(frames(&batch(&many[1..])).iter().filter(|frame| frame.is_ok()).count(), MAX_FRAMES as usize);
    let all = frames(&batch(&many));
    assert_eq!(all.len(), MAX_FRAMES as usize + 1);
    assert_eq!(all.last().unwrap().as_ref().unwrap_err(), &RndisError::TooMany);
}

#[test]
fn bytes_that_are_not_there_are_an_error() {
    let all: Vec<_> = Frames::new(1000, |_, _: &mut [u8]| false).collect();
    assert_eq!(all, [Err(RndisError::Unreadable)]);
}

#[test]
fn a_frame_for_the_guest_is_where_it_was_received() {
    let info = ReceiveInfo {
        checksum: Some(ReceiveChecksum::TCP_SUCCEEDED),
        vlan: Some(Vlan { priority: 1, cfi: true, id: 100 }),
        hash: Some(0x1234_5678),
    };
    for (info, data_at) in [
        (info, RECEIVE_HEADROOM),
        (info, RECEIVE_HEADROOM + 4),
        (ReceiveInfo { hash: None, ..info }, RECEIVE_HEADROOM),
        (ReceiveInfo::default(), RECEIVE_HEADROOM),
    ] {
        let data = [0x5a; 60];
        let mut bytes = header_at(data_at, data.len(), &info).to_vec();
        bytes.resize(data_at, 0xee);
        bytes.extend_from_slice(&data);
        assert_eq!(bytes.len(), message_len(data_at, data.len()));
        assert_eq!(Received::parse(&bytes), Ok(Received { data: &data, info }));
        for len in 0..bytes.len() {
            assert!(Received::parse(&bytes[..len]).is_err());
        }
    }
    assert_eq!(RECEIVE_HEADROOM, 96);
    assert_eq!(header(60, &info), header_at(RECEIVE_HEADROOM, 60, &info));
}
