//! A guest, a device and a host process that may die at any store, for crash tests.
//!
//! The guest and the disk live on; the host's end of the channel is made anew from rings and ledger after each death.
//! Whoever is not woken does nothing, so a lost wake-up is a lost request. What must always hold is asserted here.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use vmbus::packet::{PacketType, TransferPages, TransferRange};
use vmbus::ring::testing::TestRing;
use vmbus::ring::{ControlWord, RingReader};

use super::super::kill::armed;
use super::super::*;
use super::memory::{Died, Fuse, HostLedger, HostRing, die};

pub const SLOTS: u32 = 6;

/// From this bit of the state on the device changes it by itself.
pub const FIRST_OWN: u8 = 40;

/// Loans that there are.
const LOANS: u32 = 3;

/// When a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    Never,
    /// After so many stores. A copy is two: it may be torn.
    Store(u32),
    /// At a kill point, the nth time.
    Point(KillPoint, u32),
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An answer.
    Plain,
    /// An answer so long that two of them do not fit into the ring.
    Long,
    /// An answer, and a change of the device's state.
    State,
    /// An answer to a packet that takes a good part of the ring.
    Bulky,
    /// Nothing.
    Note,
    /// A change of the device's state, no answer.
    NoteState,
    /// An answer, after something that must not happen twice.
    Once,
    /// Two packets and a change of the device's state, no completion.
    Reply,
    /// A packet behind a completion, and a change of the device's state.
    Both,
}

/// Kinds by their number in a packet.
const KINDS: [Kind; 9] = [
    Kind::Plain,
    Kind::Long,
    Kind::Bulky,
    Kind::State,
    Kind::Note,
    Kind::NoteState,
    Kind::Once,
    Kind::Reply,
    Kind::Both,
];

/// What a packet begins with that answers nothing. Requests have smaller numbers.
const NOTICE: u8 = 0xee;

impl Kind {
    fn is_answered(self) -> bool {
        !matches!(self, Kind::Note | Kind::NoteState)
    }

    fn wants_completion(self) -> bool {
        self.is_answered() && self != Kind::Reply
    }

    /// Packets that answer it, besides a completion.
    fn packets(self) -> u8 {
        match self {
            Kind::Reply => 2,
            Kind::Both => 1,
            _ => 0,
        }
    }

    fn changes_state(self) -> bool {
        matches!(self, Kind::State | Kind::NoteState | Kind::Reply | Kind::Both)
    }
}

/// What happens. The first process does as it is told; its successors do all they can instead.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The guest sends a request.
    Send(u8, Kind),
    /// The guest reads so many completions and gives their room back.
    Collect(usize),
    /// The host takes so many packets.
    Take(usize),
    /// The host publishes that.
    Publish,
    /// The device carries a request out and completes it.
    Complete(u8),
    /// The host publishes the completions.
    Flush,
    /// The host lends this to the guest.
    Lend(u32),
    /// The host tells the guest something without having been asked.
    Notify(u8),
    /// The same, and this bit of the device's state changes with it.
    NotifyState(u8),
    /// The device changes its state by itself: this bit of it.
    Save(u8),
    /// The guest gives everything back that it has.
    GiveBack,
    /// The host takes so many packets by which the guest gives something back.
    Regain(usize),
}

pub type Host = Channel<HostRing, HostLedger>;

/// Everything that outlives a process.
pub struct World {
    rings: (TestRing, TestRing),
    ledger: HostLedger,
    fuse: Rc<Fuse>,
    writer: RingWriter<TestRing>,
    reader: RingReader<TestRing>,
    kinds: BTreeMap<u8, Kind>,
    answered: BTreeSet<u8>,
    /// Of an answer of several packets, those that have come: the next one has to be the next packet.
    partly: Option<(u8, u8)>,
    /// Notices that the guest has had.
    noticed: BTreeSet<u8>,
    /// Bits of the state that are saved by themselves.
    saved: u64,
    /// The one that was being saved when the process died, if it did.
    saving: Option<u8>,
    carried_out: BTreeSet<u8>,
    /// Requests whose outcome was noted: they must never run again.
    settled: BTreeSet<u8>,
    /// Requests that are known to have begun.
    begun: BTreeSet<u8>,
    /// Loans that the guest has read of and not given back.
    has: BTreeSet<u32>,
    /// The guest has been signalled.
    guest_wakes: bool,
    /// The host has been signalled.
    host_wakes: bool,
    /// Processes that begin lend what they can.
    lends: bool,
    pub deaths: u32,
    /// Stores made by each process.
    pub stores: Vec<u32>,
}

/// One process: what dies.
struct Process {
    channel: Host,
    held: BTreeMap<u8, Ticket>,
    /// The device's state: a bit for each request that has changed it.
    state: u64,
    /// Loans that can be made.
    here: BTreeSet<u32>,
}

impl World {
    /// Rings that stand at `start` bytes.
    pub fn new(start: u32) -> World {
        let rings = (TestRing::new(1), TestRing::new(1));
        for ring in [&rings.0, &rings.1] {
            ring.store(ControlWord::WriteIndex, start);
            ring.store(ControlWord::ReadIndex, start);
        }
        let ledger = HostLedger::new(SLOTS);
        World {
            writer: RingWriter::new(rings.0.clone()).unwrap(),
            reader: RingReader::new(rings.1.clone()).unwrap(),
            fuse: Rc::clone(&ledger.fuse),
            rings,
            ledger,
            kinds: BTreeMap::new(),
            answered: BTreeSet::new(),
            partly: None,
            noticed: BTreeSet::new(),
            saved: 0,
            saving: None,
            carried_out: BTreeSet::new(),
            settled: BTreeSet::new(),
            begun: BTreeSet::new(),
            has: BTreeSet::new(),
            guest_wakes: false,
            host_wakes: false,
            lends: false,
            deaths: 0,
            stores: Vec::new(),
        }
    }

    /// Runs a script with the given deaths of the first processes; the one after them lives.
    pub fn run(script: &[Step], start: u32, deaths: &[Death]) -> World {
        let mut world = World::new(start);
        world.lends = script.iter().any(|step| matches!(step, Step::Lend(_)));
        let mut deaths = deaths.iter().copied().chain(std::iter::repeat(Death::Never));
        let mut process = None;
        world.light(deaths.next());
        for &step in script {
            match step {
                Step::Send(id, kind) => world.send(id, kind),
                Step::Collect(count) => _ = world.collect(count),
                Step::GiveBack => world.give_back(),
                step => world.live(&mut process, &mut deaths, |world, process| {
                    if world.deaths == 0 { process.obey(world, step) } else { process.serve(world) }
                }),
            }
        }
        // The first process comes to the end of its turn; a dead one's successor looks once.
        world.live(&mut process, &mut deaths, |world, process| process.finish(world));
        for _ in 0..100 {
            if world.guest_wakes {
                world.guest_wakes = false;
                while world.collect(1) {}
                world.give_back();
            } else if world.host_wakes {
                world.host_wakes = false;
                world.live(&mut process, &mut deaths, |world, process| process.serve(world));
            } else {
                break;
            }
        }
        world.put_out();
        let process = process.expect("a process");
        assert_eq!(process.here.len(), LOANS as usize, "no loan is lost: {:?}", process.here);
        world.check_end(process.state);
        world
    }

    /// Has the process of the moment do something; if it dies of it, has its successor do what there is to do.
    fn live(
        &mut self,
        process: &mut Option<Process>,
        deaths: &mut impl Iterator<Item = Death>,
        mut act: impl FnMut(&mut World, &mut Process),
    ) {
        loop {
            let result = catch_unwind(AssertUnwindSafe(|| {
                if process.is_none() {
                    *process = Some(Process::start(self));
                }
                let process = process.as_mut().expect("a process");
                act(self, process);
                self.guest_wakes |= process.channel.take_signal();
            }));
            match result {
                Ok(()) => return,
                Err(cause) if !cause.is::<Died>() => resume_unwind(cause),
                Err(_) => {}
            }
            *process = None;
            self.deaths += 1;
            self.put_out();
            self.light(deaths.next());
            // A successor polls once.
            self.host_wakes = true;
        }
    }

    fn light(&self, death: Option<Death>) {
        self.fuse.burnt.set(0);
        match death.unwrap_or(Death::Never) {
            Death::Never => {}
            Death::Store(count) => self.fuse.left.set(Some(count)),
            Death::Point(point, count) => armed::arm(point, count, |_| die()),
        }
    }

    fn put_out(&mut self) {
        self.stores.push(self.fuse.burnt.get());
        self.fuse.left.set(None);
        armed::disarm();
    }

    fn send(&mut self, id: u8, kind: Kind) {
        self.kinds.insert(id, kind);
        let number = KINDS.iter().position(|&each| each == kind).unwrap() as u8;
        // All requests have the same transaction id: it is no key.
        let packet = Outgoing::in_band(77, kind.wants_completion());
        let rest = vec![id; if kind == Kind::Bulky { 1500 } else { 7 }];
        self.writer.push(&packet, &[&[id, number], &rest]).unwrap();
        self.host_wakes |= self.writer.publish();
    }

    /// The guest reads at most so many completions and gives their room back; true if there was one.
    fn collect(&mut self, count: usize) -> bool {
        let mut scratch = Vec::new();
        for number in 0..count {
            let Some(header) = self.reader.next(&mut scratch).unwrap() else {
                if number == 0 {
                    return false;
                }
                break;
            };
            if header.packet_type == PacketType::TRANSFER_PAGES {
                let loan = header.transaction_id as u32;
                assert!(self.has.insert(loan), "{loan} is lent twice");
                assert_eq!(header.transfer_pages(&scratch, 1).unwrap().ranges, [TransferRange::new(loan, 8)]);
                continue;
            }
            let payload = header.payload(&scratch);
            if header.packet_type == PacketType::IN_BAND {
                assert_eq!(header.transaction_id, 0);
                self.hear(payload[0], payload[1]);
                continue;
            }
            assert_eq!((header.transaction_id, header.packet_type), (77, PacketType::COMPLETION));
            assert_eq!(self.partly, None, "the rest of an answer is missing");
            if payload.is_empty() {
                self.partly = Some((0, 0));
                continue;
            }
            let id = payload[0];
            assert_eq!(self.kinds[&id].packets(), 0, "{id} wants more than a completion");
            assert!(self.kinds[&id].is_answered(), "{id} is answered though it did not ask");
            assert!(self.answered.insert(id), "{id} is answered twice");
            assert!(payload.iter().all(|&byte| byte == id || byte == 0), "{id} is answered {payload:?}");
        }
        self.host_wakes |= self.reader.publish();
        // It has not seen an empty ring, so it will look again by itself.
        self.guest_wakes = true;
        true
    }

    /// The guest has a packet that is no completion.
    fn hear(&mut self, id: u8, number: u8) {
        if id == NOTICE {
            assert_eq!(self.partly, None, "nothing comes between the packets of an answer");
            assert!(self.noticed.insert(number), "{number} is said twice");
            return;
        }
        let kind = self.kinds[&id];
        let before = self.partly.take();
        let expected = match (kind, number) {
            (Kind::Reply, 0) => None,
            (Kind::Reply, _) => Some((id, 0)),
            _ => Some((0, 0)),
        };
        assert_eq!(before, expected, "packet {number} of {id}");
        if number + 1 == kind.packets() {
            assert!(self.answered.insert(id), "{id} is answered twice");
        } else {
            self.partly = Some((id, number));
        }
    }

    /// The guest gives back what it has.
    fn give_back(&mut self) {
        for loan in std::mem::take(&mut self.has) {
            self.writer.push(&Outgoing::completion(loan.into()), &[&[loan as u8; 8]]).unwrap();
        }
        self.host_wakes |= self.writer.publish();
    }

    /// Loans that are out: the guest has them, or can see them, or has given them back and nobody has noticed.
    fn lent(&self) -> Vec<u32> {
        let mut lent: Vec<u32> = self.has.iter().copied().collect();
        let due = [(&self.rings.0, PacketType::COMPLETION), (&self.rings.1, PacketType::TRANSFER_PAGES)];
        let mut scratch = Vec::new();
        for (ring, kind) in due {
            let mut look = RingReader::new(ring.clone()).unwrap();
            while let Some(header) = look.next(&mut scratch).unwrap() {
                if header.packet_type == kind {
                    lent.push(header.transaction_id as u32);
                }
            }
        }
        lent.sort_unstable();
        lent
    }

    /// Requests whose answer is published, collected or not, and notices that are.
    fn visible(&self) -> (BTreeSet<u8>, BTreeSet<u8>) {
        let (mut visible, mut noticed) = (self.answered.clone(), self.noticed.clone());
        let mut scratch = Vec::new();
        let mut look = RingReader::new(self.rings.1.clone()).unwrap();
        while let Some(header) = look.next(&mut scratch).unwrap() {
            let payload = header.payload(&scratch);
            let is_end = match header.packet_type {
                PacketType::COMPLETION => !payload.is_empty(),
                PacketType::IN_BAND if payload[0] != NOTICE => {
                    payload[1] + 1 == self.kinds[&payload[0]].packets()
                }
                _ => false,
            };
            if is_end {
                assert!(visible.insert(payload[0]), "twice");
            }
            if header.packet_type == PacketType::IN_BAND && payload[0] == NOTICE {
                assert!(noticed.insert(payload[1]), "twice");
            }
        }
        (visible, noticed)
    }

    fn check_end(&self, state: u64) {
        let owed = |kind: &Kind| kind.is_answered();
        let owed: BTreeSet<u8> = self.kinds.iter().filter(|each| owed(each.1)).map(|each| *each.0).collect();
        assert_eq!(self.answered, owed, "each request is answered once");
        assert_eq!(self.carried_out.len(), self.kinds.len(), "each request is carried out");
        let changes = self.kinds.iter().filter(|each| each.1.changes_state());
        let own = state & !(u64::MAX << FIRST_OWN);
        assert_eq!(own, changes.map(|each| 1 << each.0).sum::<u64>(), "all changes of state are there");
        assert_eq!(state & self.saved, self.saved, "what is saved stays");
        assert_eq!(self.partly, None, "no answer is cut short");
        assert_eq!(self.rings.1.load(ControlWord::PendingSendSize), 0, "nobody waits for room");
        let (read, write) = (ControlWord::ReadIndex, ControlWord::WriteIndex);
        assert_eq!(self.rings.0.load(read), self.rings.0.load(write), "everything is read");
    }
}

impl Process {
    fn start(world: &World) -> Process {
        let ring = |ring: &TestRing, own| HostRing { ring: ring.clone(), fuse: Rc::clone(&world.fuse), own };
        let to_host = ring(&world.rings.0, (ControlWord::ReadIndex, ControlWord::WriteIndex));
        let to_guest = ring(&world.rings.1, (ControlWord::WriteIndex, ControlWord::ReadIndex));
        let ledger = world.ledger.clone();
        let (channel, recovery) = Channel::adopt_lending(to_host, to_guest, ledger, SLOTS, LOANS).unwrap();
        assert_eq!(recovery.lent, world.lent(), "what the guest has is what is out");
        let here = (0..LOANS).filter(|loan| !recovery.lent.contains(loan)).collect();
        let state = recovery.state.map_or(0, |state| u64::from_le_bytes(state.try_into().unwrap()));
        assert_eq!(state & world.saved, world.saved, "what is saved stays");
        // Of answered requests the state has exactly those that the guest knows of.
        let (visible, noticed) = world.visible();
        for bit in FIRST_OWN..64 {
            let is_known = world.saved >> bit & 1 == 1 || noticed.contains(&bit);
            let may_be = world.saving == Some(bit);
            assert!(may_be || (state >> bit & 1 == 1) == is_known, "bit {bit} of {state:#b}");
        }
        for (id, kind) in &world.kinds {
            if kind.changes_state() && kind.is_answered() {
                assert_eq!(
                    state >> id & 1 == 1,
                    visible.contains(id),
                    "state {state:#b}, visible {visible:?}"
                );
            }
        }
        let mut process = Process { channel, held: BTreeMap::new(), state, here };
        if !recovery.fresh && world.lends {
            // What can be lent is lent again: no word of the predecessor's may stand in the way.
            let here = process.here.clone();
            here.into_iter().for_each(|loan| process.lend(loan));
        }
        process
    }

    fn lend(&mut self, loan: u32) {
        assert!(self.here.remove(&loan), "{loan} is not here");
        let ranges = [TransferRange::new(loan, 8)];
        let pages = TransferPages { page_set: 1, ranges: &ranges };
        match self.channel.lend(loan, &pages, &[loan as u8; 8]) {
            Ok(()) => {}
            Err(LendError::Push(PushError::Full { .. })) => _ = self.here.insert(loan),
            Err(error) => panic!("{error}"),
        }
    }

    /// Hears of what has come back.
    fn regain(&mut self) {
        while let Some(returned) = self.channel.take_returned() {
            assert_eq!(returned.payload(), [returned.loan as u8; 8]);
            assert!(self.here.insert(returned.loan), "{} comes back twice", returned.loan);
        }
    }

    /// The first process does what the script says.
    fn obey(&mut self, world: &mut World, step: Step) {
        match step {
            Step::Take(count) => {
                let mut scratch = Vec::new();
                for _ in 0..count {
                    let Taken::Packet(header, ticket) = self.channel.take(&mut scratch) else { panic!() };
                    self.held.insert(header.payload(&scratch)[0], ticket);
                }
            }
            Step::Publish => {
                self.channel.publish_taken();
                self.regain();
            }
            Step::Lend(loan) => self.lend(loan),
            Step::Notify(number) => {
                match self.channel.notify(&Outgoing::in_band(0, false), &[NOTICE, number, 0, 0, 0, 0, 0, 0]) {
                    Ok(()) | Err(PushError::Full { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::NotifyState(bit) => {
                let state = self.state | 1 << bit;
                let payload = [NOTICE, bit, 0, 0, 0, 0, 0, 0];
                let packet = Outgoing::in_band(0, false);
                match self.channel.notify_with_state(&packet, &payload, &state.to_le_bytes()) {
                    Ok(()) => self.state = state,
                    Err(PushError::Full { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Save(bit) => {
                world.saving = Some(bit);
                let state = self.state | 1 << bit;
                if self.channel.save_state(&state.to_le_bytes()) {
                    self.state = state;
                    world.saved |= 1 << bit;
                    let writer = &self.channel.writer;
                    assert_eq!(writer.write_position(), writer.published_position(), "it is the last");
                } else {
                    assert!(self.channel.is_blocked());
                }
            }
            Step::Regain(count) => {
                let mut scratch = Vec::new();
                for _ in 0..count {
                    assert!(matches!(self.channel.take(&mut scratch), Taken::Returned));
                    assert_eq!(self.channel.take_returned(), None, "it is not published");
                }
            }
            Step::Complete(id) => {
                let ticket = self.held.remove(&id).unwrap();
                self.carry_out(world, id, ticket);
            }
            Step::Flush => {
                self.channel.publish_completions().unwrap();
                self.regain();
            }
            Step::Send(..) | Step::Collect(_) | Step::GiveBack => unreachable!("the guest's"),
        }
    }

    fn carry_out(&mut self, world: &mut World, id: u8, ticket: Ticket) {
        let kind = world.kinds[&id];
        assert!(!world.settled.contains(&id), "{id} must not be carried out again");
        world.carried_out.insert(id);
        self.channel.enter(&ticket);
        let state = kind.changes_state().then(|| {
            assert_eq!(self.state >> id & 1, 0, "{id} changes the state twice");
            self.state |= 1 << id;
            self.state.to_le_bytes()
        });
        let payload = vec![id; if kind == Kind::Long { 2100 } else { 11 }];
        assert!(
            ticket.begun || !world.begun.contains(&id),
            "{id} has begun, and its successor does not know"
        );
        if kind == Kind::Once {
            assert!(self.channel.note_begun(&ticket));
            world.begun.insert(id);
            assert!(self.channel.record_outcome(&ticket, &payload));
            world.settled.insert(id);
        }
        let state = state.as_ref().map(|state| &state[..]);
        let packets = [0, 1].map(|number| [id, number, 0, 0, 0, 0, 0, 0]);
        match kind {
            Kind::Reply => self.channel.reply(ticket, &[&packets[0], &packets[1]], state),
            Kind::Both => self.channel.reply(ticket, &[&packets[0]], state),
            _ => self.channel.complete(ticket, &payload, state),
        }
        .unwrap();
        self.channel.leave();
    }

    /// The first process ends its turn.
    fn finish(&mut self, world: &mut World) {
        for (id, ticket) in std::mem::take(&mut self.held) {
            self.carry_out(world, id, ticket);
        }
        self.serve(world);
    }

    /// Does all there is to do.
    fn serve(&mut self, world: &mut World) {
        let mut scratch = Vec::new();
        let mut before = None;
        loop {
            let rerunning = self.channel.recovering();
            let (header, ticket) = match self.channel.next_rerun(&mut scratch) {
                Rerun::Packet(header, ticket) => (header, ticket),
                Rerun::Outcome(ticket) => {
                    self.channel.complete(ticket, &scratch, None).unwrap();
                    continue;
                }
                Rerun::Wait => break,
                Rerun::None => match self.channel.take(&mut scratch) {
                    Taken::Packet(header, ticket) => (header, ticket),
                    Taken::Returned => continue,
                    Taken::Wait if self.channel.may_take() => unreachable!("it may take"),
                    Taken::Wait => break,
                    Taken::Empty => {
                        self.channel.publish_taken();
                        if self.channel.unmask() { continue } else { break }
                    }
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            };
            let (id, number) = (header.payload(&scratch)[0], header.payload(&scratch)[1]);
            assert_eq!(KINDS[usize::from(number)], world.kinds[&id], "what was sent is what runs");
            assert!(before < Some(ticket.sequence), "in the order in which they were sent");
            self.carry_out(world, id, ticket);
            if rerunning && before.is_none() {
                // One is published before the next runs again.
                self.channel.publish_completions().unwrap();
            }
            before = Some(ticket.sequence);
        }
        self.channel.publish_completions().unwrap();
        self.regain();
        // Room in the ledger or in the ring may have been all that was missing.
        world.host_wakes |= self.channel.may_take() && self.channel.unmask();
    }
}
