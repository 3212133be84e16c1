//! What both model checkers share: a host process over memory that fails under it, and its device.
//!
//! The channel, the rings and the ledger are the real ones. Only the memory is made up: a checker has to see every
//! access that the two ends race for, and a process dies between two stores.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use ipc::ledger::{self, LedgerMemory};
use vmbus::packet::TransferPages;
use vmbus::ring::{ControlWord, PushError, RingMemory};
use vsp::channel::{Channel, LendError, Rerun, Taken, Ticket};

pub const SLOTS: u32 = 4;

/// What ends a process in place of SIGKILL.
struct Died;

/// How many stores a process makes before it dies.
#[derive(Clone, Debug, Default)]
pub struct Fuse(Rc<Cell<Option<u32>>>);

impl Fuse {
    pub fn set(&self, stores: Option<u32>) {
        self.0.set(stores);
    }

    /// Whether the process would have lived.
    pub fn is_out(&self) -> bool {
        self.0.get() == Some(0)
    }

    fn burn(&self) {
        if self.is_out() {
            resume_unwind(Box::new(Died));
        }
        self.0.set(self.0.get().map(|left| left - 1));
    }
}

/// Memory that a process writes to until it dies.
#[derive(Clone, Debug)]
pub struct Mortal<M> {
    pub memory: M,
    pub fuse: Fuse,
    /// Stores of the write index.
    pub publications: Rc<Cell<u32>>,
}

impl<M: RingMemory> RingMemory for Mortal<M> {
    fn data_len(&self) -> u32 {
        self.memory.data_len()
    }
    fn load(&self, word: ControlWord) -> u32 {
        self.memory.load(word)
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.fuse.burn();
        self.memory.store(word, value);
        if word == ControlWord::WriteIndex {
            self.publications.set(self.publications.get() + 1);
        }
    }
    fn fence(&self) {
        self.memory.fence();
    }
    fn read(&self, offset: u32, into: &mut [u8]) {
        self.memory.read(offset, into);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        self.fuse.burn();
        self.memory.write(offset, from);
    }
}

/// A ledger. Only ever one process has it, and the next after that has ended, so there is nothing to check but crashes.
#[derive(Clone, Debug)]
pub struct ModelLedger {
    bytes: Rc<RefCell<Vec<u8>>>,
    fuse: Fuse,
}

impl LedgerMemory for ModelLedger {
    fn len(&self) -> usize {
        self.bytes.borrow().len()
    }
    fn load(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes.borrow()[offset..offset + 8].try_into().unwrap())
    }
    fn store(&self, offset: usize, value: u64) {
        self.fuse.burn();
        self.bytes.borrow_mut()[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes.borrow()[offset..offset + into.len()]);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.fuse.burn();
        self.bytes.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
    }
}

/// The host's side: a series of processes.
pub struct Host<M> {
    rings: (Mortal<M>, Mortal<M>),
    ledger: ModelLedger,
    process: Option<Process<M>>,
    pub deaths: u32,
    /// Requests whose completion the guest can see.
    visible: BTreeSet<u64>,
    /// Requests whose completion is in the ring.
    pushed: Vec<u64>,
    /// Loans that there are, and how often one is still to be lent.
    loans: u32,
    lends_left: u32,
}

/// Whether a request changes the device's state: two in three, so that they meet in a batch.
fn changes_state(id: u64) -> bool {
    id % 3 != 2
}

struct Process<M> {
    channel: Channel<Mortal<M>, ModelLedger>,
    /// The device's state: the requests that have changed it.
    state: BTreeSet<u64>,
    /// Loans that can be made.
    here: BTreeSet<u32>,
}

impl<M: RingMemory + Clone> Host<M> {
    pub fn new(to_host: M, to_guest: M) -> Host<M> {
        let fuse = Fuse::default();
        let publications = Rc::default();
        let mortal = |memory| Mortal { memory, fuse: fuse.clone(), publications: Rc::clone(&publications) };
        let rings = (mortal(to_host), mortal(to_guest));
        let bytes = Rc::new(RefCell::new(vec![0; ledger::bytes(SLOTS) as usize]));
        let ledger = ModelLedger { bytes, fuse };
        let (visible, pushed) = (BTreeSet::new(), Vec::new());
        let (loans, lends_left) = (0, 0);
        Host { rings, ledger, process: None, deaths: 0, visible, pushed, loans, lends_left }
    }

    /// Its device lends what it has, at most so often.
    pub fn lending(self, loans: u32, times: u32) -> Host<M> {
        Host { loans, lends_left: times, ..self }
    }

    /// Whether everything that was lent has come back.
    pub fn is_home(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.here.len() == self.loans as usize)
    }

    /// The process dies before it has made another store than so many.
    pub fn dies_after(&self, stores: Option<u32>) {
        self.ledger.fuse.set(stores);
    }

    /// One turn of a process that was woken, or of its successors, which nobody has to wake. True: the guest is to be
    /// signalled. `next` says when the successor dies.
    pub fn turn(&mut self, mut next: impl FnMut() -> Option<u32>) -> bool {
        loop {
            let result = catch_unwind(AssertUnwindSafe(|| self.serve()));
            match result {
                Ok(signal) => return signal,
                Err(cause) if !cause.is::<Died>() => resume_unwind(cause),
                Err(_) => {
                    self.process = None;
                    self.note_publications();
                    self.pushed.clear();
                    self.deaths += 1;
                    self.dies_after(next());
                }
            }
        }
    }

    fn serve(&mut self) -> bool {
        let mut scratch = Vec::new();
        let mut process = match self.process.take() {
            Some(process) => process,
            None => self.start(),
        };
        process.channel.mask();
        loop {
            let mut batch = Vec::new();
            loop {
                let (header, ticket) = match process.channel.next_rerun(&mut scratch) {
                    Rerun::Packet(header, ticket) => (header, ticket),
                    Rerun::None => match process.channel.take(&mut scratch) {
                        Taken::Packet(header, ticket) => (header, ticket),
                        Taken::Returned => continue,
                        Taken::Empty | Taken::Wait => break,
                        other => panic!("{other:?}"),
                    },
                    Rerun::Wait => break,
                    other => panic!("{other:?}"),
                };
                let id = *header.payload(&scratch).first_chunk().unwrap();
                batch.push((u64::from_le_bytes(id), ticket));
            }
            process.channel.publish_taken();
            while let Some(returned) = process.channel.take_returned() {
                assert_eq!(returned.payload(), u64::from(returned.loan).to_le_bytes());
                assert!(process.here.insert(returned.loan), "{} comes back twice", returned.loan);
            }
            self.lend(&mut process);
            // The other way round, since completions come in any order.
            while let Some((id, ticket)) = batch.pop() {
                self.carry_out(&mut process, id, ticket);
            }
            process.channel.publish_completions().unwrap();
            self.note_publications();
            self.pushed.clear();
            if !process.channel.unmask() {
                break;
            }
            process.channel.mask();
        }
        let signal = process.channel.take_signal();
        self.process = Some(process);
        signal
    }

    fn lend(&mut self, process: &mut Process<M>) {
        for loan in process.here.clone() {
            if self.lends_left == 0 {
                return;
            }
            let pages = TransferPages { page_set: 1, ranges: &[] };
            match process.channel.lend(loan, &pages, &[]) {
                Ok(()) => {
                    self.lends_left -= 1;
                    process.here.remove(&loan);
                }
                Err(LendError::Push(PushError::Full { .. })) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn carry_out(&mut self, process: &mut Process<M>, id: u64, ticket: Ticket) {
        let state = changes_state(id).then(|| {
            assert!(process.state.insert(id), "{id} changes the state twice");
            process.state.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>()
        });
        let before = self.publications();
        process.channel.complete(ticket, &id.to_le_bytes(), state.as_deref()).unwrap();
        if self.publications() > before {
            // Published ahead of its time, without this one.
            self.note_publications();
            self.pushed.clear();
        }
        self.pushed.push(id);
    }

    fn publications(&self) -> u32 {
        self.rings.1.publications.get()
    }

    /// If there was a publication, what was in the ring is visible.
    fn note_publications(&mut self) {
        if self.rings.1.publications.take() > 0 {
            self.visible.extend(self.pushed.iter());
        }
    }

    fn start(&self) -> Process<M> {
        let rings = self.rings.clone();
        let ledger = self.ledger.clone();
        let (channel, recovery) =
            Channel::adopt_lending(rings.0, rings.1, ledger, SLOTS, self.loans).unwrap();
        let here = (0..self.loans).filter(|loan| !recovery.lent.contains(loan)).collect();
        let state = recovery.state.unwrap_or_default();
        let state: BTreeSet<_> = state.as_chunks().0.iter().copied().map(u64::from_le_bytes).collect();
        let expected: BTreeSet<_> = self.visible.iter().copied().filter(|&id| changes_state(id)).collect();
        assert_eq!(state, expected, "the state is that of the completions which are visible");
        Process { channel, state, here }
    }
}
