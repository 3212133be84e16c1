use std::cell::{Cell, RefCell};
use std::rc::Rc;

use vmbus::ring::ControlWord;
use vmbus::ring::testing::TestRing;

use super::*;

#[cfg(debug_assertions)]
mod crash;
#[cfg(debug_assertions)]
mod damage;
#[cfg(debug_assertions)]
mod memory;
#[cfg(debug_assertions)]
mod notices;
#[cfg(debug_assertions)]
mod poison;
#[cfg(debug_assertions)]
mod world;

struct Guest {
    writer: RingWriter<TestRing>,
    reader: RingReader<TestRing>,
    to_host: TestRing,
    to_guest: TestRing,
}

fn channel(limit: u32) -> (Guest, Channel<TestRing>) {
    let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
    let guest = Guest {
        writer: RingWriter::new(to_host.clone()).unwrap(),
        reader: RingReader::new(to_guest.clone()).unwrap(),
        to_host: to_host.clone(),
        to_guest: to_guest.clone(),
    };
    let mut channel = Channel::new(to_host, to_guest, limit).unwrap();
    assert!(channel.take_signal(), "whatever wake-up died with a predecessor");
    (guest, channel)
}

impl Guest {
    fn send(&mut self, id: u64) -> bool {
        self.writer.push(&Outgoing::in_band(id, true), &[b"request!"]).unwrap();
        self.writer.publish()
    }

    fn collect(&mut self) -> Vec<u64> {
        let (mut ids, mut scratch) = (Vec::new(), Vec::new());
        while let Some(header) = self.reader.next(&mut scratch).unwrap() {
            ids.push(header.transaction_id);
        }
        ids
    }
}

fn ticket(taken: Taken) -> Ticket {
    let Taken::Packet(_, ticket) = taken else { panic!("{taken:?}") };
    ticket
}

#[test]
fn nothing_is_visible_before_its_step() {
    let (mut guest, mut channel) = channel(8);
    let mut scratch = Vec::new();
    guest.send(7);
    let ticket = ticket(channel.take(&mut scratch));
    assert_eq!(guest.to_host.load(ControlWord::ReadIndex), 0, "taken, not published");
    channel.complete(ticket, b"answer", None).unwrap();
    assert_eq!(guest.to_guest.load(ControlWord::WriteIndex), 0, "completed, not published");
    channel.publish_completions().unwrap();
    assert_ne!(guest.to_host.load(ControlWord::ReadIndex), 0, "reads are published before completions");
    assert!(channel.take_signal());
    assert!(!channel.take_signal());
    assert_eq!(guest.collect(), [7]);
    assert_eq!(channel.outstanding(), 0);
}

/// The dead one's answer lies in the ring, so the ring's own rule would not have the next one signalled.
#[test]
fn a_guest_that_sleeps_on_a_lost_signal_is_woken_by_the_first_answer() {
    let (mut guest, mut dead) = channel(8);
    let mut scratch = Vec::new();
    guest.send(1);
    let answered = ticket(dead.take(&mut scratch));
    dead.complete(answered, b"answer", None).unwrap();
    dead.publish_completions().unwrap();
    drop(dead);
    let (to_host, to_guest) = (guest.to_host.clone(), guest.to_guest.clone());
    let mut successor = Channel::<_, LedgerMapping>::new(to_host, to_guest, 8).unwrap();
    assert!(!successor.take_prompt_signal(), "that can wait");
    guest.send(2);
    let next = ticket(successor.take(&mut scratch));
    successor.complete(next, b"answer", None).unwrap();
    assert!(!successor.take_prompt_signal(), "nothing is visible");
    successor.publish_completions().unwrap();
    assert!(successor.take_prompt_signal(), "the answer lies behind one that was not signalled");
    assert!(!successor.take_signal(), "once is enough");
}

#[test]
fn a_guest_without_answers_is_woken_too() {
    let (guest, dead) = channel(8);
    drop(dead);
    let mut successor =
        Channel::<_, LedgerMapping>::new(guest.to_host.clone(), guest.to_guest.clone(), 8).unwrap();
    successor.publish_completions().unwrap();
    assert!(!successor.take_prompt_signal());
    assert!(successor.take_signal() && !successor.take_signal());
}

#[test]
fn the_limit_stops_taking_until_something_completes() {
    let (mut guest, mut channel) = channel(2);
    let mut scratch = Vec::new();
    (1..=3).for_each(|id| _ = guest.send(id));
    let first = ticket(channel.take(&mut scratch));
    let second = ticket(channel.take(&mut scratch));
    assert!(matches!(channel.take(&mut scratch), Taken::Wait));
    channel.complete(first, b"", None).unwrap();
    let third = ticket(channel.take(&mut scratch));
    assert_eq!((second.sequence, third.sequence), (1, 2));
}

#[test]
fn a_full_ring_keeps_completions_and_asks_for_a_signal() {
    let (mut guest, mut channel) = channel(64);
    let mut scratch = Vec::new();
    (0..40).for_each(|id| _ = guest.send(id));
    let tickets: Vec<_> = (0..40).map(|_| ticket(channel.take(&mut scratch))).collect();
    for ticket in tickets {
        channel.complete(ticket, &[0; 184], None).unwrap();
    }
    channel.publish_completions().unwrap();
    let pending = guest.to_guest.load(ControlWord::PendingSendSize);
    assert_eq!(pending, 16 + 184 + 8);
    assert!(channel.is_blocked());
    let _ = guest.send(99);
    assert!(matches!(channel.take(&mut scratch), Taken::Wait));

    let mut seen = guest.collect();
    assert!(guest.reader.publish(), "the guest sees that we wait");
    channel.publish_completions().unwrap();
    assert_eq!(guest.to_guest.load(ControlWord::PendingSendSize), pending, "still waiting");
    seen.extend(guest.collect());
    assert!(guest.reader.publish());
    channel.publish_completions().unwrap();
    seen.extend(guest.collect());
    let _ = guest.reader.publish();
    channel.publish_completions().unwrap();
    seen.extend(guest.collect());
    assert_eq!(seen, (0..40).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(guest.to_guest.load(ControlWord::PendingSendSize), 0);
    assert_eq!(channel.outstanding(), 0);
    assert_eq!(ticket(channel.take(&mut scratch)).transaction_id, 99);
}

/// A ring in which something happens right after the host has looked at the read index.
struct Racing {
    ring: TestRing,
    looks: Rc<Cell<u32>>,
    then: Rc<RefCell<Vec<Race>>>,
}

/// At which look, and what.
type Race = (u32, Box<dyn FnOnce()>);

impl RingMemory for Racing {
    fn data_len(&self) -> u32 {
        self.ring.data_len()
    }
    fn load(&self, word: ControlWord) -> u32 {
        let value = self.ring.load(word);
        if word == ControlWord::ReadIndex {
            self.looks.set(self.looks.get() + 1);
            let due = self.then.borrow_mut().pop_if(|race| race.0 == self.looks.get());
            due.into_iter().for_each(|race| race.1());
        }
        value
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.ring.store(word, value);
    }
    fn fence(&self) {
        self.ring.fence();
    }
    fn read(&self, offset: u32, into: &mut [u8]) {
        self.ring.read(offset, into);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        self.ring.write(offset, from);
    }
}

/// Whenever the guest makes room, however little of it the host has seen: nobody waits for ever.
#[test]
fn room_made_behind_the_hosts_back_is_found() {
    for look in 1..20 {
        let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
        let (looks, then) = (Rc::default(), Rc::<RefCell<Vec<Race>>>::default());
        let racing =
            |ring: &TestRing| Racing { ring: ring.clone(), looks: Rc::clone(&looks), then: Rc::clone(&then) };
        let mut channel: Channel<_> = Channel::new(racing(&to_host), racing(&to_guest), 64).unwrap();
        channel.take_signal();
        let mut writer = RingWriter::new(to_host).unwrap();
        let mut scratch = Vec::new();
        for id in 0..40 {
            writer.push(&Outgoing::in_band(id, true), &[b"request!"]).unwrap();
        }
        let _ = writer.publish();
        let tickets: Vec<_> = (0..40).map(|_| ticket(channel.take(&mut scratch))).collect();
        for ticket in tickets {
            channel.complete(ticket, &[0; 184], None).unwrap();
        }
        channel.publish_completions().unwrap();

        // The guest: takes so many packets, and rings if it has to.
        let reader = Rc::new(RefCell::new(RingReader::new(to_guest).unwrap()));
        let (seen, rung) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let collect = {
            let (seen, rung) = (Rc::clone(&seen), Rc::clone(&rung));
            move |most: u32| {
                let (mut reader, mut scratch) = (reader.borrow_mut(), Vec::new());
                for _ in 0..most {
                    if reader.next(&mut scratch).unwrap().is_some() {
                        seen.set(seen.get() + 1);
                    }
                }
                rung.set(rung.get() | reader.publish());
            }
        };
        collect(10);
        assert!(rung.take(), "the host has asked for it");
        let all = collect.clone();
        looks.set(0);
        then.borrow_mut().push((look, Box::new(move || all(u32::MAX >> 20))));
        channel.publish_completions().unwrap();
        // From here on each acts only when it is signalled.
        loop {
            if channel.take_signal() {
                collect(u32::MAX >> 20);
            }
            if !rung.take() {
                break;
            }
            channel.publish_completions().unwrap();
        }
        collect(u32::MAX >> 20);
        assert!(!channel.is_blocked() && seen.get() == 40, "look {look}: {} of 40", seen.get());
    }
}

#[test]
fn what_a_predecessor_waited_for_is_forgotten() {
    let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
    to_guest.store(ControlWord::PendingSendSize, 1000);
    Channel::<TestRing>::new(to_host, to_guest.clone(), 1).unwrap();
    assert_eq!(to_guest.load(ControlWord::PendingSendSize), 0);
}

#[test]
fn packets_of_the_device_do_not_overtake_completions() {
    let (mut guest, mut channel) = channel(64);
    let mut scratch = Vec::new();
    (0..20).for_each(|id| _ = guest.send(id));
    let tickets: Vec<_> = (0..20).map(|_| ticket(channel.take(&mut scratch))).collect();
    for ticket in tickets {
        channel.complete(ticket, &[0; 184], None).unwrap();
    }
    channel.publish_completions().unwrap();
    assert!(channel.is_blocked());
    let small = channel.send(&Outgoing::in_band(0, false), &[b"fits"]);
    assert!(matches!(small, Err(PushError::Full { .. })));
}

#[test]
fn a_guest_that_waits_for_room_is_signalled() {
    let (mut guest, mut channel) = channel(1000);
    let mut scratch = Vec::new();
    let mut sent = 0;
    while guest.writer.push(&Outgoing::in_band(sent, true), &[&[0; 40]]).is_ok() {
        sent += 1;
    }
    let _ = guest.writer.publish();
    guest.writer.set_pending_send_size(64);
    for _ in 0..sent {
        let ticket = ticket(channel.take(&mut scratch));
        channel.abandon(ticket);
    }
    channel.publish_taken();
    assert!(channel.take_signal());
}

#[test]
fn jumping_indices_are_failures_not_loops() {
    let (guest, mut channel) = channel(8);
    let mut scratch = Vec::new();
    for index in [3, 4096, u32::MAX] {
        guest.to_host.store(ControlWord::WriteIndex, index);
        assert!(matches!(channel.take(&mut scratch), Taken::Failed(_)), "{index}");
    }
    guest.to_host.store(ControlWord::WriteIndex, 8);
    assert!(matches!(channel.take(&mut scratch), Taken::Failed(RingError::Truncated(8))));
    guest.to_guest.store(ControlWord::ReadIndex, 5);
    let ticket =
        Ticket { transaction_id: 1, wants_completion: true, sequence: 0, slot: NO_SLOT, begun: false };
    channel.outstanding = 1;
    assert!(matches!(channel.complete(ticket, b"", None), Err(PushError::Ring(_))));
    assert_eq!(channel.outstanding(), 0);
}

#[test]
fn a_packet_that_wants_no_answer_gets_none() {
    let (mut guest, mut channel) = channel(8);
    let mut scratch = Vec::new();
    guest.writer.push(&Outgoing::in_band(5, false), &[b"note"]).unwrap();
    assert!(guest.writer.publish());
    let ticket = ticket(channel.take(&mut scratch));
    channel.complete(ticket, b"ignored", None).unwrap();
    channel.publish_completions().unwrap();
    assert!(guest.collect().is_empty());
    assert_eq!(channel.outstanding(), 0);
}

#[test]
fn unmasking_finds_what_came_meanwhile() {
    let (mut guest, mut channel) = channel(8);
    channel.mask();
    assert!(!guest.send(1), "masked: no signal");
    assert!(channel.unmask());
    let mut scratch = Vec::new();
    let ticket = ticket(channel.take(&mut scratch));
    channel.abandon(ticket);
    channel.publish_taken();
    assert!(!channel.unmask());
    assert!(guest.send(2), "unmasked and empty: signal");
}
