//! Ledgers that a process has damaged before it died, and guests that damage their own rings.

use ipc::ledger;
use vmbus::ring::ControlWord;
use vmbus::ring::testing::TestRing;

use super::super::*;
use super::memory::HostLedger;

const SLOTS: u32 = 4;

/// A channel with four requests: taken, carried out, answered, and one whose answer is not published.
struct Wreck {
    to_host: TestRing,
    to_guest: TestRing,
    ledger: HostLedger,
}

impl Wreck {
    fn new() -> Wreck {
        let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
        let ledger = HostLedger::new(SLOTS);
        let mut guest = RingWriter::new(to_host.clone()).unwrap();
        let (mut host, recovery) =
            Channel::adopt(to_host.clone(), to_guest.clone(), ledger.clone(), 100).unwrap();
        assert!(recovery.fresh);
        assert_eq!(host.limit, SLOTS, "no more than there are slots");
        let mut scratch = Vec::new();
        let mut tickets = Vec::new();
        for id in 0..SLOTS {
            guest.push(&Outgoing::in_band(id.into(), true), &[b"request!"]).unwrap();
            let _ = guest.publish();
            let Taken::Packet(_, ticket) = host.take(&mut scratch) else { panic!() };
            tickets.push(ticket);
            if id + 2 == SLOTS {
                host.publish_taken();
            }
        }
        assert!(matches!(host.take(&mut scratch), Taken::Wait));
        assert!(host.record_outcome(&tickets[1], b"done"));
        host.complete(tickets[2], b"seen", Some(b"state")).unwrap();
        host.publish_completions().unwrap();
        host.complete(tickets[3], b"unseen", None).unwrap();
        to_guest.store(ControlWord::PendingSendSize, 24);
        Wreck { to_host, to_guest, ledger }
    }

    fn adopt(&self) -> Result<(Channel<TestRing, HostLedger>, Recovery), AdoptError> {
        Channel::adopt(self.to_host.clone(), self.to_guest.clone(), self.ledger.clone(), SLOTS)
    }

    /// Adopts it and ends everything; how many requests there were. Panics and endless loops are the failure.
    fn drain(&self) -> Result<u32, AdoptError> {
        let (mut host, _) = self.adopt()?;
        let mut scratch = Vec::new();
        let mut count = 0;
        loop {
            let ticket = match host.next_rerun(&mut scratch) {
                Rerun::Packet(_, ticket) | Rerun::Reject(_, ticket, _) => ticket,
                Rerun::Unreadable(ticket) | Rerun::Outcome(ticket) => ticket,
                Rerun::Wait => break,
                Rerun::None => match host.take(&mut scratch) {
                    Taken::Packet(_, ticket) | Taken::Reject(_, ticket, _) => ticket,
                    _ => break,
                },
            };
            count += 1;
            assert!(count < 1000, "there is no end to it");
            if host.complete(ticket, b"x", Some(b"y")).is_err() || host.publish_completions().is_err() {
                break;
            }
        }
        Ok(count)
    }
}

#[test]
fn an_undamaged_one_says_what_it_holds() {
    let (_, recovery) = Wreck::new().adopt().unwrap();
    let expected =
        Recovery { state: Some(b"state".to_vec()), again: 3, done: 0, epoch: 2, ..Recovery::default() };
    assert_eq!(recovery, expected);
    assert_eq!(Wreck::new().drain(), Ok(3));
}

/// Whatever byte is overwritten: no panic, and who refuses has touched nothing.
#[test]
fn no_byte_of_a_ledger_is_trusted() {
    let size = Wreck::new().ledger.len();
    let packets = size - SLOTS as usize * 45056;
    let header = 0..128;
    let states = [4096, 8192].into_iter().flat_map(|half| half..half + 40);
    let spines = 12288..12288 + 64 * SLOTS as usize;
    let slots = (0..SLOTS as usize).flat_map(|slot| {
        let at = packets + slot * 45056;
        (at..at + 32).chain(at + 40960..at + 40960 + 70)
    });
    let mut refused = 0;
    for at in header.chain(states).chain(spines).chain(slots) {
        for change in [0xff, 0x01, 0x80] {
            let wreck = Wreck::new();
            wreck.ledger.bytes.borrow_mut()[at] ^= change;
            let before = wreck.ledger.bytes.borrow().clone();
            match wreck.drain() {
                Ok(count) => assert!(count <= 3, "byte {at}: {count} requests"),
                Err(error) => {
                    refused += 1;
                    assert!(matches!(error, AdoptError::Ledger(_)));
                    assert!(*wreck.ledger.bytes.borrow() == before, "byte {at}: refused, and written");
                    assert_eq!(wreck.to_guest.load(ControlWord::PendingSendSize), 24, "byte {at}");
                }
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn a_request_whose_packet_was_overwritten_is_left_to_be_failed() {
    let wreck = Wreck::new();
    let packets = wreck.ledger.len() - SLOTS as usize * 45056;
    wreck.ledger.bytes.borrow_mut()[packets + 20] ^= 4;
    let (mut host, recovery) = wreck.adopt().unwrap();
    assert_eq!(recovery.again, 3);
    let Rerun::Unreadable(ticket) = host.next_rerun(&mut Vec::new()) else { panic!() };
    assert_eq!((ticket.transaction_id, ticket.wants_completion), (0, true));
    host.complete(ticket, b"error", None).unwrap();
}

#[test]
fn an_outcome_that_was_overwritten_is_not_run_again_either() {
    let wreck = Wreck::new();
    let packets = wreck.ledger.len() - SLOTS as usize * 45056;
    wreck.ledger.bytes.borrow_mut()[packets + 45056 + 40960 + 65] ^= 4;
    let (mut host, recovery) = wreck.adopt().unwrap();
    assert_eq!(recovery.again, 3);
    let mut scratch = Vec::new();
    assert!(matches!(host.next_rerun(&mut scratch), Rerun::Packet(..)));
    assert!(matches!(host.next_rerun(&mut scratch), Rerun::Unreadable(_)));
}

#[test]
fn numbers_go_on_where_the_last_process_stopped() {
    let wreck = Wreck::new();
    let (host, _) = wreck.adopt().unwrap();
    assert_eq!(host.sequence, u64::from(SLOTS), "free slots remember theirs too");
}

/// The indices that the host owns lie in the guest's memory. It can lose its own requests that way, and that is all.
#[test]
fn a_guest_that_moves_our_indices_harms_itself() {
    for index in (0..4096).step_by(8).chain([3, 4096, 1 << 20, u32::MAX]) {
        for word in [ControlWord::ReadIndex, ControlWord::WriteIndex] {
            for host in [true, false] {
                let wreck = Wreck::new();
                let ring = if host { &wreck.to_host } else { &wreck.to_guest };
                ring.store(word, index);
                let _ = wreck.drain();
                // And once more, with whatever has become of it.
                let _ = wreck.drain();
            }
        }
    }
}

#[test]
fn a_ledger_of_another_size_serves_as_it_is() {
    // A newer build wants more slots than its predecessor had.
    let wreck = Wreck::new();
    let (host, _) =
        Channel::adopt(wreck.to_host.clone(), wreck.to_guest.clone(), wreck.ledger.clone(), 300).unwrap();
    assert_eq!(host.limit, SLOTS);
    // Another wants less: it runs what there is, as many at a time as it takes.
    let wreck = Wreck::new();
    let (mut host, recovery) =
        Channel::adopt(wreck.to_host.clone(), wreck.to_guest.clone(), wreck.ledger.clone(), 1).unwrap();
    assert_eq!(recovery.again, 3);
    let mut scratch = Vec::new();
    let Rerun::Packet(_, ticket) = host.next_rerun(&mut scratch) else { panic!() };
    assert!(matches!(host.next_rerun(&mut scratch), Rerun::Wait));
    host.complete(ticket, b"", None).unwrap();
    assert!(matches!(host.next_rerun(&mut scratch), Rerun::Outcome(_)));
    // One without a slot is refused.
    let tiny = HostLedger::new(1);
    tiny.bytes.borrow_mut().truncate(ledger::bytes(1) as usize - 4096);
    let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
    assert!(matches!(Channel::adopt(to_host, to_guest, tiny, 1), Err(AdoptError::Ledger(_))));
}

#[test]
fn what_is_too_long_is_refused_and_does_not_leak_a_slot() {
    let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
    let mut guest = RingWriter::new(to_host.clone()).unwrap();
    let mut answers = vmbus::ring::RingReader::new(to_guest.clone()).unwrap();
    let (mut host, _) = Channel::adopt(to_host, to_guest, HostLedger::new(1), 1).unwrap();
    let mut scratch = Vec::new();
    for _ in 0..3 {
        guest.push(&Outgoing::in_band(1, true), &[b"request!"]).unwrap();
        let _ = guest.publish();
        let Taken::Packet(_, ticket) = host.take(&mut scratch) else { panic!() };
        assert!(!host.record_outcome(&ticket, &[0; ledger::LONGEST_OUTCOME + 1]));
        assert!(matches!(host.complete(ticket, &[0; 5000], None), Err(PushError::TooLarge(_))));
        guest.push(&Outgoing::in_band(2, true), &[b"request!"]).unwrap();
        let _ = guest.publish();
        let Taken::Packet(_, ticket) = host.take(&mut scratch) else { panic!() };
        let long = [0; ledger::LONGEST_STATE + 1];
        host.complete(ticket, b"", Some(&long)).unwrap();
        host.publish_completions().unwrap();
        assert!(answers.next(&mut scratch).unwrap().is_some(), "the guest has its answer all the same");
        assert_eq!(host.outstanding(), 0);
    }
}
