use super::*;
use proptest::prelude::*;
use std::vec;

const LIMITS: Limits = Limits { ranges: 4, pages: MAX_PAGES as u32 };

/// Reads messages as the host does.
fn assemble(messages: &[Encoded], limits: Limits) -> Result<Progress, GpadlError> {
    let mut progress = None;
    for message in messages {
        progress = Some(match (GuestMessage::parse(message).expect("a message"), progress) {
            (GuestMessage::GpadlHeader(header), None) => Assembly::begin(&header, limits)?,
            (GuestMessage::GpadlBody(body), Some(Progress::Partial(assembly))) => assembly.append(&body)?,
            (message, progress) => panic!("{message:?} after {progress:?}"),
        });
    }
    Ok(progress.expect("at least one message"))
}

/// A header message's body with these words as ranges.
fn header<'a>(range_count: u16, data: &'a [u8]) -> GpadlHeader<'a> {
    GpadlHeader { relid: 1, gpadl: 1, range_buffer_len: data.len() as u16, range_count, data }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn several_ranges_in_one_header() {
    let data = words(&[0x2000, 7, 8, (0x800 << 32) | 0x801, 9, 10]);
    let Ok(Progress::Complete(ranges)) = Assembly::begin(&header(2, &data), LIMITS) else { panic!() };
    assert_eq!(
        ranges,
        [
            GpadlRange { len: 0x2000, offset: 0, pfns: vec![7, 8] },
            GpadlRange { len: 0x801, offset: 0x800, pfns: vec![9, 10] },
        ]
    );
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let refused = |count, data: &[u64]| match Assembly::begin(&header(count, &words(data)), LIMITS) {
        Err(GpadlError::Ranges(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(0, &[]), RangeError::NoRanges);
    assert_eq!(refused(5, &[0; 10]), RangeError::TooManyRanges(5));
    assert_eq!(refused(3, &[0; 2]), RangeError::Truncated);
    assert_eq!(refused(1, &[0, 1]), RangeError::Empty);
    assert_eq!(refused(1, &[0x1000, u64::MAX]), RangeError::BadPfn(u64::MAX));
    assert_eq!(refused(1, &[(0x1000 << 32) | 1, 1]), RangeError::BadOffset(0x1000));
    assert_eq!(refused(1, &[0xffff_ffff, 1]), RangeError::TooManyPages(0x10_0000));
    assert_eq!(refused(1, &[0x2000, 1]), RangeError::Truncated);
    assert_eq!(refused(1, &[0x1000, 1, 2]), RangeError::TrailingBytes(8));
}

#[test]
fn limits_are_checked_before_anything_is_kept() {
    let few = Limits { ranges: 1, pages: 100 };
    let messages = messages(1, 1, &[5; 101]);
    assert_eq!(assemble(&messages, few), Err(RangeError::TooManyPages(101).into()));
}

#[test]
fn an_uneven_length_and_an_empty_message_are_refused() {
    let uneven = GpadlHeader { range_buffer_len: 12, ..header(1, &[0; 16]) };
    assert_eq!(Assembly::begin(&uneven, LIMITS), Err(GpadlError::UnevenLength(12)));
    let empty = GpadlHeader { range_buffer_len: 16, ..header(1, &[0; 7]) };
    assert_eq!(Assembly::begin(&empty, LIMITS), Err(GpadlError::EmptyMessage));
}

proptest! {
    #[test]
    fn pages_round_trip(pfns in prop::collection::vec(0..PFN_MAX, 1..2000)) {
        let messages = messages(3, 4, &pfns);
        prop_assert!(messages.iter().all(|message| message.len() <= 240));
        let len = pfns.len() as u32 * PAGE_SIZE;
        prop_assert_eq!(
            assemble(&messages, LIMITS),
            Ok(Progress::Complete(vec![GpadlRange { len, offset: 0, pfns }]))
        );
    }

    #[test]
    fn any_bytes_end_in_ranges_that_hold_together(
        range_buffer_len: u16,
        range_count in 0u16..8,
        data in prop::collection::vec(any::<u8>(), 0..220),
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..224), 0..8),
    ) {
        let header = GpadlHeader { relid: 1, gpadl: 1, range_buffer_len, range_count, data: &data };
        let mut progress = Assembly::begin(&header, LIMITS);
        for data in &bodies {
            let body = GpadlBody { message_number: 0, gpadl: 1, data };
            progress = match progress {
                Ok(Progress::Partial(assembly)) => assembly.append(&body),
                done => done,
            };
        }
        if let Ok(Progress::Complete(ranges)) = progress {
            for range in ranges {
                prop_assert_eq!(pages_spanned(range.len, range.offset), Ok(range.pfns.len() as u64));
            }
        }
    }
}
