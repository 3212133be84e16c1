use vmbus::packet::{PacketHeader, PacketType};

use super::seal::{seal, unseal};
use super::*;
use crate::message::MAX_LEDGER;
use crate::shm::SharedMemory;

const RINGS: Rings = Rings { to_host: 4096, to_guest: 8192 };

fn memory(slots: u32) -> LedgerMapping {
    LedgerMapping::new(&SharedMemory::create("ledger", bytes(slots)).unwrap()).unwrap()
}

fn formatted(memory: &LedgerMapping) -> Ledger<&LedgerMapping> {
    let Found::Blank(ledger) = Ledger::open(memory, RINGS).unwrap() else { panic!("not blank") };
    ledger.format(16, 24, || ());
    ledger
}

fn reopened(memory: &LedgerMapping) -> Result<Ledger<&LedgerMapping>, LedgerError> {
    match Ledger::open(memory, RINGS)? {
        Found::Used(ledger) => Ok(ledger),
        Found::Blank(_) => panic!("blank"),
    }
}

fn request(sequence: u64, packet: &[u8]) -> Spine {
    let len = packet.len() as u32;
    let packet_type = PacketType::IN_BAND;
    let header = PacketHeader { packet_type, flags: 1, transaction_id: 7, data_offset: 16, len };
    Spine::new(sequence, &header, packet, 64, 3)
}

#[test]
fn a_blank_ledger_becomes_one_with_as_many_slots_as_were_asked_for() {
    for slots in [1, 2, 63, 64, 65, 256, MAX_SLOTS] {
        let memory = memory(slots);
        assert_eq!(formatted(&memory).slots(), slots);
        let ledger = reopened(&memory).unwrap();
        assert_eq!(ledger.slots(), slots);
        assert_eq!(ledger.position(Word::ReadBase), Ok(16));
        assert_eq!(ledger.position(Word::WriteBase), Ok(24));
        assert_eq!(ledger.state(slots - 1), Ok(None));
    }
    assert!(bytes(MAX_SLOTS) <= MAX_LEDGER);
    assert_eq!(bytes(u32::MAX), bytes(MAX_SLOTS));
    assert_eq!(bytes(0), bytes(1));
}

#[test]
fn memory_without_room_for_a_slot_is_refused() {
    let memory = LedgerMapping::new(&SharedMemory::create("ledger", bytes(1) - 4096).unwrap()).unwrap();
    assert!(matches!(Ledger::open(&memory, RINGS), Err(LedgerError::TooSmall(_))));
}

#[test]
fn what_is_written_into_a_slot_comes_back() {
    let memory = memory(4);
    let ledger = formatted(&memory);
    let packet = vec![0x5a; LONGEST_PACKET as usize];
    let spine = request(9, &packet);
    ledger.write_request(3, &spine, &packet);
    assert_eq!(ledger.state(3), Ok(None), "not before its state says so");
    ledger.set_state(3, Phase::Taken, 9);
    let ledger = reopened(&memory).unwrap();
    assert_eq!(ledger.state(3), Ok(Some(State { phase: Phase::Taken, sequence: 9 })));
    assert_eq!(ledger.spine(3, 9), Ok(spine));
    let mut scratch = Vec::new();
    assert!(ledger.packet(3, &spine, &mut scratch));
    assert_eq!(scratch, packet);
    let completing = Completing { visible_at: 1 << 40, generation: 3 };
    ledger.write_completing(3, completing);
    assert_eq!(ledger.completing(3), Ok(completing));
}

#[test]
fn a_slot_of_another_number_or_request_is_no_evidence() {
    let memory = memory(2);
    let ledger = formatted(&memory);
    ledger.write_request(0, &request(9, b"packet"), b"packet");
    assert_eq!(ledger.spine(0, 8), Err(LedgerError::Slot(0)));
    let mut bytes = [0; 64];
    memory.read(ledger.layout.spine(0), &mut bytes);
    memory.write(ledger.layout.spine(1), &bytes);
    assert_eq!(ledger.spine(1, 9), Err(LedgerError::Slot(1)));
}

/// Whatever single bit of a request in flight is turned over: it is noticed.
#[test]
fn every_bit_counts() {
    let memory = memory(1);
    let ledger = formatted(&memory);
    let packet: Vec<u8> = (0..75).collect();
    ledger.write_request(0, &request(9, &packet), &packet);
    ledger.write_completing(0, Completing { visible_at: 48, generation: 0 });
    ledger.set_state(0, Phase::Completing, 9);
    let mut scratch = Vec::new();
    let mut is_whole = || {
        let Ok(Some(state)) = ledger.state(0) else { return false };
        let Ok(spine) = ledger.spine(0, state.sequence) else { return false };
        state.phase == Phase::Completing
            && ledger.completing(0).is_ok()
            && ledger.packet(0, &spine, &mut scratch)
    };
    assert!(is_whole());
    let (spine, payload) = (ledger.layout.spine(0), ledger.layout.packet(0));
    for at in (spine..spine + 64).chain(payload..payload + packet.len()) {
        for bit in 0..8 {
            let flip = || {
                let mut byte = [0];
                memory.read(at, &mut byte);
                memory.write(at, &[byte[0] ^ 1 << bit]);
            };
            flip();
            assert!(!is_whole(), "bit {bit} of byte {at}");
            flip();
        }
    }
    assert!(is_whole());
}

/// The header likewise: what never changes, and the words that do.
#[test]
fn an_overwritten_header_is_refused() {
    let memory = memory(1);
    formatted(&memory);
    for at in 0..56 {
        let mut byte = [0];
        memory.read(at, &mut byte);
        memory.write(at, &[!byte[0]]);
        assert!(Ledger::open(&memory, RINGS).is_err(), "byte {at}");
        memory.write(at, &byte);
    }
    let ledger = reopened(&memory).unwrap();
    for word in [Word::Epoch, Word::ReadBase, Word::WriteBase, Word::StateGeneration] {
        let good = ledger.get_plain(word);
        for bad in [0, !good, good ^ 1, good ^ 1 << 63, u64::MAX] {
            ledger.set_plain(word, bad);
            assert_eq!(ledger.get(word), Err(LedgerError::Word(word)), "{bad:#x}");
        }
        ledger.set_plain(word, good);
    }
}

#[test]
fn a_lost_magic_number_is_not_a_blank_ledger() {
    let memory = memory(2);
    let ledger = formatted(&memory);
    ledger.set_state(1, Phase::Free, 1);
    memory.store(0, 0);
    assert!(matches!(Ledger::open(&memory, RINGS), Err(LedgerError::NotALedger)));
}

#[test]
fn a_newer_format_says_so_and_other_rings_are_refused() {
    let memory = memory(1);
    formatted(&memory);
    let other = Rings { to_host: 8192, ..RINGS };
    assert!(matches!(Ledger::open(&memory, other), Err(LedgerError::OtherRings { .. })));
    let mut words = [0, 8, 16, 24, 32, 40].map(|offset| memory.load(offset));
    words[1] = 9 | 2 << 32;
    memory.store(8, words[1]);
    memory.store(48, seal::of_words(words));
    assert!(matches!(Ledger::open(&memory, RINGS), Err(LedgerError::TooNew { needed: 2 })));
    // Newer, but made to be read by us.
    words[1] = 9 | 1 << 32;
    memory.store(8, words[1]);
    memory.store(48, seal::of_words(words));
    assert!(reopened(&memory).is_ok());
}

/// A header with a good checksum that describes what is not there: no access outside follows from it.
#[test]
fn a_layout_outside_of_the_memory_is_refused() {
    let memory = memory(2);
    formatted(&memory);
    let good = [0, 8, 16, 24, 32, 40].map(|offset| memory.load(offset));
    let pair = |low: u64, high: u64| low | high << 32;
    let bad = [
        (2, pair(0, 45056)),
        (2, pair(3, 45056)),
        (2, pair(u64::from(u32::MAX), 45056)),
        (2, pair(2, 4096)),
        (2, pair(2, 45057)),
        (3, pair(0, 12288)),
        (3, pair(4096, 8192)),
        (4, pair(12288, 0)),
        (4, pair(u64::from(u32::MAX) - 63, 0)),
    ];
    for (index, word) in bad {
        let mut words = good;
        words[index] = word;
        memory.store(index * 8, word);
        memory.store(48, seal::of_words(words));
        assert!(matches!(Ledger::open(&memory, RINGS), Err(LedgerError::Layout)), "{index} {word:#x}");
        memory.store(index * 8, good[index]);
    }
}

#[test]
fn the_halves_of_the_state_do_not_touch_each_other() {
    let memory = memory(1);
    let ledger = formatted(&memory);
    assert_eq!(ledger.read_state(0), Ok(None));
    let long = vec![7; LONGEST_STATE];
    ledger.write_state(1, b"first");
    ledger.write_state(2, &long);
    assert_eq!(ledger.read_state(1), Ok(Some(b"first".to_vec())));
    assert_eq!(ledger.read_state(2), Ok(Some(long)));
    assert_eq!(ledger.read_state(3), Err(LedgerError::State), "that half holds the first one");
    memory.write(2 * 4096 + 32, b"F");
    assert_eq!(ledger.read_state(1), Err(LedgerError::State));
}

#[test]
fn outcomes_and_attempts_belong_to_one_request() {
    let memory = memory(1);
    let ledger = formatted(&memory);
    ledger.write_outcome(0, 5, b"done");
    assert_eq!(ledger.outcome(0, 5), Outcome::None, "not before it counts");
    ledger.set_begun(0, 5);
    assert!(ledger.begun(0, 5) && !ledger.begun(0, 6));
    ledger.set_outcome(0, 5);
    assert_eq!(ledger.outcome(0, 5), Outcome::Is(b"done".to_vec()));
    assert_eq!(ledger.outcome(0, 6), Outcome::None);
    memory.write(ledger.layout.outcome(0) + 64, b"D");
    assert_eq!(ledger.outcome(0, 5), Outcome::Lost);

    ledger.set_attempts(0, ledger.attempts(0, 5).another(1));
    assert_eq!(ledger.attempts(0, 5).count, 1);
    assert_eq!(ledger.attempts(0, 5).another(1).count, 1, "one process dies once");
    assert_eq!(ledger.attempts(0, 5).another(2).count, 2);
    assert_eq!(ledger.attempts(0, 6).count, 0);
    let many = (0..20).fold(Attempts::none(5), Attempts::another);
    assert_eq!(Attempts::of(5, many.word()), many);
    assert_eq!(many.count, Attempts::MOST);
}

#[test]
fn zero_is_never_sealed() {
    assert_eq!(unseal(0), None);
    assert_eq!(unseal(u64::MAX), None);
    for value in [0, 1, 2, 1 << 20, seal::MAX_SEALED] {
        assert_ne!(seal(value), 0);
        assert_eq!(unseal(seal(value)), Some(value));
    }
}

#[test]
fn a_loan_is_a_word() {
    let memory = memory(2);
    let Found::Blank(ledger) = Ledger::open(&memory, RINGS).unwrap() else { panic!("not blank") };
    let ledger = ledger.with_loans();
    ledger.format(16, 24, || ());
    let ledger = reopened(&memory).unwrap();
    assert_eq!((ledger.loans(), ledger.slots()), (MAX_LOANS, 2));
    let says = [Loan::Given { visible_at: 1 << 52 }, Loan::Returning { read_after: 8 }, Loan::Free];
    for (loan, says) in [0, 1, MAX_LOANS - 1].into_iter().zip(says) {
        assert_eq!(ledger.loan(loan), Ok(Loan::Free), "never used");
        ledger.set_loan(loan, says);
        assert_eq!(reopened(&memory).unwrap().loan(loan), Ok(says));
    }
    // None of them lies on anything else.
    (0..MAX_LOANS).for_each(|loan| ledger.set_loan(loan, Loan::Given { visible_at: 64 }));
    ledger.write_state(1, b"state");
    let ledger = reopened(&memory).unwrap();
    assert_eq!(ledger.position(Word::WriteBase), Ok(24));
    assert_eq!(ledger.read_state(1), Ok(Some(b"state".to_vec())));
    assert_eq!(ledger.loan(MAX_LOANS - 1), Ok(Loan::Given { visible_at: 64 }));
    memory.store(ledger.layout.loan(3), 0x1234_5678_9abc_def0);
    assert_eq!(ledger.loan(3), Err(LedgerError::Loan(3)));
    memory.store(ledger.layout.loan(3), seal(8 << 2));
    assert_eq!(ledger.loan(3), Err(LedgerError::Loan(3)));
}

#[test]
fn a_ledger_of_a_build_without_loans_has_none() {
    let memory = memory(2);
    assert_eq!(formatted(&memory).loans(), 0);
    assert_eq!(reopened(&memory).unwrap().loans(), 0);
    assert_eq!(memory.load(32) >> 32, 0, "and is what it always was");
}
