//! What a device says by itself comes once, and so does the state that goes with it, wherever its process dies.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use vmbus::packet::PacketType;

use super::super::*;
use super::memory::{Died, HostLedger, HostRing};
use super::{ControlWord, TestRing};

const SLOTS: u32 = 2;
/// What is to be said: numbers from 1 on.
const NOTICES: u64 = 9;
/// Where rings begin, so that packets lie across their end.
const START: u32 = 4096 - 88;

/// What outlives the processes, and what the guest has heard.
struct World {
    rings: (TestRing, TestRing),
    ledger: HostLedger,
    reader: RingReader<TestRing>,
    writer: RingWriter<TestRing>,
    heard: Vec<u64>,
    answers: u64,
}

impl World {
    fn new() -> World {
        let rings = (TestRing::new(1), TestRing::new(1));
        for ring in [&rings.0, &rings.1] {
            ring.store(ControlWord::WriteIndex, START);
            ring.store(ControlWord::ReadIndex, START);
        }
        let reader = RingReader::new(rings.1.clone()).unwrap();
        let mut writer = RingWriter::new(rings.0.clone()).unwrap();
        for id in 0..3 {
            writer.push(&Outgoing::in_band(id, true), &[b"request!"]).unwrap();
        }
        let _ = writer.publish();
        World { rings, ledger: HostLedger::new(SLOTS), reader, writer, heard: Vec::new(), answers: 0 }
    }

    /// A process, and how much of what is to be said it knows to have been said.
    fn process(&self) -> (Channel<HostRing, HostLedger>, u64) {
        let ring =
            |ring: &TestRing, own| HostRing { ring: ring.clone(), fuse: self.ledger.fuse.clone(), own };
        let to_host = ring(&self.rings.0, (ControlWord::ReadIndex, ControlWord::WriteIndex));
        let to_guest = ring(&self.rings.1, (ControlWord::WriteIndex, ControlWord::ReadIndex));
        let (channel, recovery) = Channel::adopt(to_host, to_guest, self.ledger.clone(), SLOTS).unwrap();
        let said = recovery.state.map_or(0, |state| u64::from_le_bytes(state.try_into().unwrap()));
        (channel, said)
    }

    fn listen(&mut self) {
        let mut scratch = Vec::new();
        while let Some(header) = self.reader.next(&mut scratch).unwrap() {
            match header.packet_type {
                PacketType::COMPLETION => self.answers += 1,
                _ => self.heard.push(u64::from_le_bytes(header.payload(&scratch).try_into().unwrap())),
            }
        }
        let _ = self.reader.publish();
    }

    /// Says what is to be said, and answers a request now and then, with a state too.
    fn live(&mut self, batch: u64) {
        let (mut channel, mut said) = self.process();
        self.listen();
        assert_eq!(self.heard.len() as u64, said, "the state is that of the last that the guest has heard");
        let mut scratch = Vec::new();
        loop {
            let ticket = match channel.next_rerun(&mut scratch) {
                Rerun::Packet(_, ticket) => Some(ticket),
                _ => match channel.take(&mut scratch) {
                    Taken::Packet(_, ticket) => Some(ticket),
                    _ => None,
                },
            };
            let idle = ticket.is_none();
            if let Some(ticket) = ticket {
                channel.complete(ticket, &[], Some(&said.to_le_bytes())).unwrap();
            }
            for _ in 0..batch {
                if said < NOTICES {
                    let number = (said + 1).to_le_bytes();
                    match channel.notify_with_state(&Outgoing::in_band(0, false), &number, &number) {
                        Ok(()) => said += 1,
                        Err(PushError::Full { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            channel.publish_completions().unwrap();
            self.listen();
            if idle && said == NOTICES {
                return;
            }
        }
    }
}

/// A process that dies after so many stores, then one that dies after so many, then one that lives; false: the first lived long enough.
fn run(deaths: [u32; 2], batch: u64) -> bool {
    let (mut world, mut died) = (World::new(), 0);
    for stores in deaths.into_iter().map(Some).chain([None]) {
        match stores {
            Some(stores) => world.ledger.live_for(stores),
            None => world.ledger.live_on(),
        }
        match catch_unwind(AssertUnwindSafe(|| world.live(batch))) {
            Ok(()) => break,
            Err(cause) if cause.is::<Died>() => died += 1,
            Err(cause) => resume_unwind(cause),
        }
    }
    world.ledger.live_on();
    world.listen();
    assert_eq!(world.heard, (1..=NOTICES).collect::<Vec<_>>(), "{deaths:?}");
    assert_eq!(world.answers, 3, "{deaths:?}");
    let (_, said) = world.process();
    assert_eq!(said, NOTICES);
    assert_eq!(world.writer.published_position(), world.rings.0.load(ControlWord::ReadIndex));
    died > 0
}

#[test]
fn a_notice_and_its_state_come_once_whatever_store_is_the_last() {
    for batch in [1, 2, 4] {
        let mut first = 0;
        while run([first, u32::MAX], batch) {
            first += 1;
        }
        assert!(first > 150, "{first} stores");
        for first in (0..first).step_by(5) {
            for second in (0..120).step_by(3) {
                run([first, second], batch);
            }
        }
    }
}

#[test]
fn without_a_slot_there_is_no_room() {
    let mut world = World::new();
    let (mut channel, _) = world.process();
    let mut scratch = Vec::new();
    let mut tickets = Vec::new();
    while let Taken::Packet(_, ticket) = channel.take(&mut scratch) {
        tickets.push(ticket);
    }
    assert_eq!(tickets.len(), SLOTS as usize);
    let notice = Outgoing::in_band(0, false);
    let refused = channel.notify_with_state(&notice, &[1; 8], &[1; 8]);
    assert!(matches!(refused, Err(PushError::Full { .. })), "{refused:?}");
    channel.complete(tickets.remove(0), &[], None).unwrap();
    // The slot is free when the completion is published, which is done ahead of its time.
    channel.notify_with_state(&notice, &1u64.to_le_bytes(), &[1; 8]).unwrap();
    assert!(channel.notify_with_state(&notice, &[1; 8], &[0; LONGEST_STATE + 1]).is_err());
    channel.publish_completions().unwrap();
    world.listen();
    assert_eq!((world.answers, world.heard), (1, vec![1]));
}
