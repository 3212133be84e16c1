//! Requests that kill their process, and crashes that nobody answers for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ipc::ledger::{CRASH_AT, CRASH_ELSEWHERE, SUSPECT_AT, Word};
use vmbus::ring::testing::TestRing;

use super::super::*;
use super::memory::HostLedger;
use super::world::SLOTS;

const SIGSEGV: u64 = 11;

/// A channel whose processes die with their requests.
struct Bench {
    to_host: TestRing,
    to_guest: TestRing,
    ledger: HostLedger,
    writer: RingWriter<TestRing>,
    reader: RingReader<TestRing>,
}

type Host = Channel<TestRing, HostLedger>;

impl Bench {
    fn new() -> Bench {
        let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
        Bench {
            writer: RingWriter::new(to_host.clone()).unwrap(),
            reader: RingReader::new(to_guest.clone()).unwrap(),
            ledger: HostLedger::new(SLOTS),
            to_host,
            to_guest,
        }
    }

    fn send(&mut self, id: u64) {
        self.writer.push(&Outgoing::in_band(id, true), &[b"request!"]).unwrap();
        let _ = self.writer.publish();
    }

    fn adopt(&self) -> (Host, Recovery) {
        Channel::adopt(self.to_host.clone(), self.to_guest.clone(), self.ledger.clone(), SLOTS).unwrap()
    }

    /// The process crashed, and could say so.
    fn crash(&self) {
        self.ledger.store(CRASH_AT, SIGSEGV);
    }

    fn collect(&mut self) -> Vec<u64> {
        let mut scratch = Vec::new();
        std::iter::from_fn(|| self.reader.next(&mut scratch).unwrap())
            .map(|header| header.transaction_id)
            .collect()
    }
}

fn take(host: &mut Host) -> Ticket {
    let Taken::Packet(_, ticket) = host.take(&mut Vec::new()) else { panic!("no packet") };
    ticket
}

fn rerun(host: &mut Host) -> Ticket {
    let Rerun::Packet(_, ticket) = host.next_rerun(&mut Vec::new()) else { panic!("no packet") };
    ticket
}

#[test]
fn the_third_death_is_the_last() {
    let mut bench = Bench::new();
    (1..=3).for_each(|id| bench.send(id));
    let mut host = bench.adopt().0;
    let tickets = [take(&mut host), take(&mut host), take(&mut host)];
    host.publish_taken();
    host.enter(&tickets[1]);
    bench.crash();
    for attempt in 1..MAX_ATTEMPTS {
        let (mut host, recovery) = bench.adopt();
        assert_eq!((recovery.again, recovery.rejected, recovery.crash), (3, 0, Some(11)));
        assert!(!recovery.careful, "the culprit is known");
        assert_eq!(recovery.epoch, u64::from(attempt) + 1);
        let (_, second) = (rerun(&mut host), rerun(&mut host));
        assert_eq!(second.sequence, tickets[1].sequence);
        host.enter(&second);
        bench.crash();
    }
    let (mut host, recovery) = bench.adopt();
    assert_eq!((recovery.again, recovery.rejected), (2, 1));
    let first = rerun(&mut host);
    let Rerun::Reject(header, second, MAX_ATTEMPTS) = host.next_rerun(&mut Vec::new()) else { panic!() };
    assert_eq!(header.transaction_id, 2);
    let third = rerun(&mut host);
    for ticket in [first, second, third] {
        host.complete(ticket, b"", None).unwrap();
    }
    host.publish_completions().unwrap();
    assert_eq!(bench.collect(), [1, 2, 3]);
    bench.send(4);
    let ticket = take(&mut host);
    host.complete(ticket, b"", None).unwrap();
    host.publish_completions().unwrap();
    assert_eq!(bench.collect(), [4], "the device lives on");
}

/// It is in the ring still each time, so there is no slot to count in.
#[test]
fn a_packet_that_kills_before_it_is_published_is_counted_too() {
    let mut bench = Bench::new();
    (1..=3).for_each(|id| bench.send(id));
    for attempt in 0..MAX_ATTEMPTS {
        let (mut host, recovery) = bench.adopt();
        assert_eq!(recovery.void, if attempt == 0 { 0 } else { 2 });
        let first = take(&mut host);
        host.enter(&first);
        host.leave();
        let second = take(&mut host);
        host.enter(&second);
        bench.crash();
    }
    // A process that is killed meanwhile changes nothing.
    take(&mut bench.adopt().0);
    let mut host = bench.adopt().0;
    take(&mut host);
    let mut scratch = Vec::new();
    let Taken::Reject(header, second, MAX_ATTEMPTS) = host.take(&mut scratch) else { panic!() };
    assert_eq!((header.transaction_id, header.payload(&scratch)), (2, &b"request!"[..]));
    assert_ne!(bench.ledger.load(Word::Carried.offset()), 0, "it is in the ring still");
    host.publish_taken();
    assert_eq!(bench.ledger.load(Word::Carried.offset()), 0, "its slot says it");
    drop((host, second));
    let (mut host, recovery) = bench.adopt();
    assert_eq!((recovery.again, recovery.rejected), (1, 1), "it stays so once it is published");
    rerun(&mut host);
    assert!(matches!(host.next_rerun(&mut scratch), Rerun::Reject(..)));
    assert_eq!(take(&mut host).transaction_id, 3);
}

#[test]
fn being_killed_is_nobodys_fault() {
    let mut bench = Bench::new();
    bench.send(1);
    let mut host = bench.adopt().0;
    let ticket = take(&mut host);
    host.publish_taken();
    host.enter(&ticket);
    for _ in 0..2 * MAX_ATTEMPTS {
        let (mut host, recovery) = bench.adopt();
        assert_eq!((recovery.again, recovery.crash, recovery.careful), (1, None, false));
        let ticket = rerun(&mut host);
        host.enter(&ticket);
    }
}

/// Whoever adopts a ledger may die of it at any store; the attempt is counted once.
#[test]
fn a_death_is_counted_once_however_often_it_is_found() {
    for stores in 0..40 {
        let mut bench = Bench::new();
        bench.send(1);
        bench.send(2);
        let mut host = bench.adopt().0;
        let ticket = take(&mut host);
        host.publish_taken();
        take(&mut host);
        host.enter(&ticket);
        bench.crash();
        for _ in 0..3 {
            bench.ledger.live_for(stores);
            let _ = catch_unwind(AssertUnwindSafe(|| bench.adopt()));
        }
        bench.ledger.live_on();
        let mut host = bench.adopt().0;
        let ticket = rerun(&mut host);
        assert_eq!(host.book.as_ref().unwrap().ledger.attempts(ticket.slot, ticket.sequence).count, 1);
        assert_eq!(take(&mut host).transaction_id, 2);
    }
}

#[test]
fn after_a_crash_without_a_suspect_they_run_one_at_a_time() {
    let mut bench = Bench::new();
    (1..=3).for_each(|id| bench.send(id));
    let mut host = bench.adopt().0;
    take(&mut host);
    let culprit = take(&mut host);
    host.publish_taken();
    bench.crash();
    let mut scratch = Vec::new();
    let (mut host, recovery) = bench.adopt();
    assert_eq!((recovery.careful, recovery.again), (true, 2));
    let first = rerun(&mut host);
    host.enter(&first);
    host.leave();
    assert_ne!(bench.ledger.load(SUSPECT_AT), 0, "it is watched until it has ended");
    let waits = |host: &mut Host| matches!(host.next_rerun(&mut Vec::new()), Rerun::Wait) && !host.may_take();
    assert!(waits(&mut host));
    host.complete(first, b"", None).unwrap();
    assert!(bench.ledger.load(SUSPECT_AT) != 0 && waits(&mut host), "nobody has seen its answer");
    host.publish_completions().unwrap();
    assert_eq!(bench.ledger.load(SUSPECT_AT), 0);
    assert!(host.may_take());
    assert!(matches!(host.take(&mut scratch), Taken::Wait), "nothing new meanwhile");
    assert_eq!(rerun(&mut host).sequence, culprit.sequence);
    bench.crash();
    // It is found by and by: whatever runs when the process crashes is the one.
    for _ in 1..MAX_ATTEMPTS {
        let (mut host, recovery) = bench.adopt();
        assert_eq!((recovery.careful, recovery.again, recovery.done), (true, 1, 0));
        assert_eq!(rerun(&mut host).sequence, culprit.sequence);
        bench.crash();
    }
    let (mut host, recovery) = bench.adopt();
    assert_eq!((recovery.careful, recovery.again, recovery.rejected), (true, 0, 1));
    let Rerun::Reject(_, ticket, _) = host.next_rerun(&mut scratch) else { panic!() };
    assert!(waits(&mut host));
    host.complete(ticket, b"", None).unwrap();
    assert!(host.recovering());
    host.publish_completions().unwrap();
    assert!(matches!(host.next_rerun(&mut scratch), Rerun::None));
    assert!(!host.recovering());
    assert_eq!(take(&mut host).transaction_id, 3);
    host.publish_completions().unwrap();
    assert_eq!(bench.collect(), [1, 2]);
    drop(host);
    assert!(!bench.adopt().1.careful, "it is over");
}

/// What a request does to a process may show only while its answer is made visible.
#[test]
fn a_request_is_watched_until_its_answer_is_published() {
    let mut bench = Bench::new();
    bench.send(1);
    let mut host = bench.adopt().0;
    take(&mut host);
    host.publish_taken();
    bench.crash();
    for _ in 0..MAX_ATTEMPTS {
        let (mut host, recovery) = bench.adopt();
        assert_eq!((recovery.careful, recovery.again), (true, 1));
        let ticket = rerun(&mut host);
        host.enter(&ticket);
        host.complete(ticket, b"", None).unwrap();
        host.leave();
        bench.crash();
    }
    let recovery = bench.adopt().1;
    assert_eq!((recovery.careful, recovery.again, recovery.rejected), (true, 0, 1));
}

#[test]
fn a_watched_request_of_a_channel_that_is_given_up_is_watched_no_more() {
    for completed in [false, true] {
        let mut bench = Bench::new();
        bench.send(1);
        let mut host = bench.adopt().0;
        take(&mut host);
        host.publish_taken();
        bench.crash();
        let mut host = bench.adopt().0;
        let ticket = rerun(&mut host);
        assert_ne!(bench.ledger.load(SUSPECT_AT), 0);
        if completed {
            host.complete(ticket, b"", None).unwrap();
            host.abandon_backlog();
        } else {
            host.abandon_backlog();
            assert_ne!(bench.ledger.load(SUSPECT_AT), 0, "the device has it");
            host.abandon(ticket);
        }
        assert_eq!((bench.ledger.load(SUSPECT_AT), host.outstanding()), (0, 0));
    }
}

#[test]
fn a_crash_on_another_channel_is_none_of_ours() {
    let mut bench = Bench::new();
    bench.send(1);
    let mut host = bench.adopt().0;
    take(&mut host);
    host.publish_taken();
    bench.ledger.store(CRASH_AT, SIGSEGV | CRASH_ELSEWHERE);
    let recovery = bench.adopt().1;
    assert_eq!((recovery.careful, recovery.again, recovery.crash), (false, 1, Some(11)));
}

#[test]
fn careful_recovery_goes_on_after_a_kill() {
    let mut bench = Bench::new();
    bench.send(1);
    let mut host = bench.adopt().0;
    take(&mut host);
    host.publish_taken();
    bench.crash();
    assert!(bench.adopt().1.careful);
    let (_, recovery) = bench.adopt();
    assert_eq!((recovery.careful, recovery.crash), (true, None));
}
