//! Recovery: what a successor makes of a ledger.
//!
//! Everything is read and checked first; only then the ledger is written, in an order in which a successor of the
//! successor, wherever that dies, comes to the same result.

use ipc::ledger::{
    CRASH_ELSEWHERE, Found, Ledger, LedgerError, LedgerMemory, Loan, Outcome, Phase, Rings, Word,
};
use thiserror::Error;
use vmbus::ring::RingError;

use super::KillPoint;
use super::book::{Again, Book, Careful, MAX_ATTEMPTS, Track};

/// Why a channel cannot be taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AdoptError {
    /// The guest has broken a ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// This build cannot use the ledger, and has not touched it.
    #[error("the channel's ledger cannot be used: {0}")]
    Ledger(#[from] LedgerError),
}

/// What a successor has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There was nothing to recover: the channel is new, or has no ledger.
    pub fresh: bool,
    /// The device's state, if it ever had one.
    pub state: Option<Vec<u8>>,
    /// Requests that run again, if they can be read: that is found out one by one, since the guest waits for the first.
    pub again: u32,
    /// Requests whose end the guest has seen already.
    pub done: u32,
    /// Requests that are in the ring still.
    pub void: u32,
    /// Of those that would run again: those that have killed too many processes.
    pub rejected: u32,
    /// Loans that the guest has.
    pub lent: Vec<u32>,
    /// Requests run again one at a time, because one without a name killed the predecessor.
    pub careful: bool,
    /// The signal that the predecessor died of, if it could say so.
    pub crash: Option<i32>,
    /// How many processes have had the ledger, this one included; 0 without a ledger.
    pub epoch: u64,
}

/// What becomes of a slot that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The guest has seen the end of it.
    Done,
    /// Its packet is in the ring still.
    Void,
    /// It runs again.
    Again {
        /// Its completion was in the ring, where another will be.
        completing: bool,
    },
}

#[derive(Debug)]
struct Claim {
    again: Again,
    fate: Fate,
}

/// Everything that a ledger says, checked.
struct Survey {
    read: Track,
    write: Track,
    epoch: u64,
    committed: u64,
    /// The same, with what visible completions have changed.
    generation: u64,
    claims: Vec<Claim>,
    free: Vec<u32>,
    sequence: u64,
    state: Option<Vec<u8>>,
    lent: Vec<u32>,
    /// Loans whose word has to say something else from now on.
    unsettled: Vec<(u32, Loan)>,
}

/// Makes a blank ledger a new channel's, or settles what a predecessor has left. `read` and `write` are the rings'
/// indices. `loans`: it has to have room for so many. The next sequence number comes with it.
pub(super) fn adopt<L: LedgerMemory>(
    memory: L,
    rings: Rings,
    (read, write): (u32, u32),
    loans: u32,
) -> Result<(Book<L>, Recovery, u64), AdoptError> {
    let ledger = match Ledger::open(memory, rings)? {
        Found::Blank(ledger) => {
            let ledger = if loans > 0 { ledger.with_loans() } else { ledger };
            ledger.format(read, write, || KillPoint::FormatDue.reached());
            KillPoint::Formatted.reached();
            let read = Track::resume(rings.to_host, u64::from(read), read);
            let write = Track::resume(rings.to_guest, u64::from(write), write);
            let recovery = Recovery { fresh: true, epoch: 1, ..Recovery::default() };
            return Ok((Book::new(ledger, read, write), recovery, 0));
        }
        Found::Used(ledger) if ledger.loans() < loans => return Err(LedgerError::NoLoans.into()),
        Found::Used(ledger) => ledger,
    };
    let read = Track::resume(rings.to_host, ledger.position(Word::ReadBase)?, read);
    let write = Track::resume(rings.to_guest, ledger.position(Word::WriteBase)?, write);
    let survey = Survey::of(&ledger, read, write)?;
    Ok(survey.settle(ledger))
}

impl Survey {
    fn of<L: LedgerMemory>(ledger: &Ledger<L>, read: Track, write: Track) -> Result<Survey, LedgerError> {
        let committed = ledger.get(Word::StateGeneration)?;
        let mut survey = Survey {
            read,
            write,
            epoch: ledger.get(Word::Epoch)?,
            committed,
            generation: committed,
            claims: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            state: None,
            lent: Vec::new(),
            unsettled: Vec::new(),
        };
        survey.survey_loans(ledger)?;
        // Backwards, so that the first slots are on top of the free ones.
        for slot in (0..ledger.slots()).rev() {
            let Some(state) = ledger.state(slot)? else {
                survey.free.push(slot);
                continue;
            };
            survey.sequence = survey.sequence.max(state.sequence + 1);
            if state.phase == Phase::Free {
                survey.free.push(slot);
                continue;
            }
            let spine = ledger.spine(slot, state.sequence)?;
            let fate = survey.fate(ledger, slot, state.phase, spine.read_after)?;
            let attempts = ledger.attempts(slot, state.sequence).count;
            let begun = ledger.begun(slot, state.sequence);
            survey.claims.push(Claim { again: Again { slot, spine, attempts, begun }, fate });
        }
        survey.claims.sort_unstable_by_key(|claim| claim.again.spine.sequence);
        survey.state = ledger.read_state(survey.generation)?;
        Ok(survey)
    }

    /// What becomes of loans. What has not been published has not happened, and its word must not be believed once the rings
    /// have gone on.
    fn survey_loans<L: LedgerMemory>(&mut self, ledger: &Ledger<L>) -> Result<(), LedgerError> {
        for loan in 0..ledger.loans() {
            match ledger.loan(loan)? {
                Loan::Given { visible_at } if visible_at > self.write.at => {
                    self.unsettled.push((loan, Loan::Free));
                }
                Loan::Given { .. } => self.lent.push(loan),
                // The completion that gives it back is in the ring still.
                Loan::Returning { read_after } if read_after > self.read.at => {
                    self.lent.push(loan);
                    self.unsettled.push((loan, Loan::Given { visible_at: self.write.at }));
                }
                Loan::Returning { .. } | Loan::Free => {}
            }
        }
        Ok(())
    }

    /// What becomes of a slot in this phase whose packet ends at `read_after`.
    fn fate<L: LedgerMemory>(
        &mut self,
        ledger: &Ledger<L>,
        slot: u32,
        phase: Phase,
        read_after: u64,
    ) -> Result<Fate, LedgerError> {
        if phase != Phase::Taken {
            let completing = ledger.completing(slot)?;
            if phase == Phase::Ended || completing.visible_at <= self.write.at {
                // A state is written when the last one has been committed.
                if completing.generation > self.committed + 1 {
                    return Err(LedgerError::Slot(slot));
                }
                self.generation = self.generation.max(completing.generation);
                return Ok(Fate::Done);
            }
        }
        if read_after > self.read.at {
            return Ok(Fate::Void);
        }
        Ok(Fate::Again { completing: phase == Phase::Completing })
    }

    /// Writes what follows from it all.
    fn settle<L: LedgerMemory>(mut self, ledger: Ledger<L>) -> (Book<L>, Recovery, u64) {
        let crash = ledger.get_plain(Word::Crash);
        let doubtful = self.blame(&ledger, crash);
        KillPoint::AdoptBlamed.reached();
        if self.generation != self.committed {
            ledger.set(Word::StateGeneration, self.generation);
            KillPoint::AdoptState.reached();
        }
        let mut recovery = Recovery {
            state: self.state.take(),
            crash: (crash != 0).then_some(crash as u32 as i32),
            epoch: self.epoch + 1,
            lent: self.lent,
            ..Recovery::default()
        };
        let mut book = Book::new(ledger, self.read, self.write);
        book.free = self.free;
        book.free.reserve_exact(self.claims.len());
        for Claim { again, fate } in self.claims {
            let (slot, sequence) = (again.slot, again.spine.sequence);
            match fate {
                Fate::Done => recovery.done += 1,
                Fate::Void => recovery.void += 1,
                Fate::Again { completing } => {
                    recovery.count(&book.ledger, &again);
                    book.reruns.push_back(again);
                    if completing {
                        book.ledger.set_state(slot, Phase::Taken, sequence);
                        KillPoint::AdoptSettled.reached();
                    }
                    continue;
                }
            }
            book.ledger.set_state(slot, Phase::Free, sequence);
            KillPoint::AdoptSettled.reached();
            book.free.push(slot);
        }
        for (loan, says) in self.unsettled {
            book.ledger.set_loan(loan, says);
            KillPoint::AdoptLoan.reached();
        }
        // Nothing else may get between the two steps of a request.
        book.reruns.make_contiguous().sort_by_key(|again| !again.begun);
        book.ledger.set_position(Word::ReadBase, book.read.at);
        book.ledger.set_position(Word::WriteBase, book.write.at);
        KillPoint::AdoptNoted.reached();
        book.ledger.set_plain(Word::Crash, 0);
        book.ledger.set_plain(Word::Suspect, 0);
        KillPoint::AdoptForgiven.reached();
        book.epoch = recovery.epoch;
        book.ledger.set(Word::Epoch, book.epoch);
        KillPoint::Adopted.reached();
        book.generation = self.generation;
        book.carried = Some(book.ledger.get_plain(Word::Carried)).filter(|&word| word != 0);
        if doubtful {
            book.careful = Careful::Ready;
            book.calm_down();
        }
        recovery.careful = book.careful != Careful::No;
        (book, recovery, self.sequence)
    }

    /// Counts an attempt for the request that the predecessor died of, if it did and we know which. True: it is not known,
    /// or was not known to an earlier successor that did not get far.
    fn blame<L: LedgerMemory>(&mut self, ledger: &Ledger<L>, crash: u64) -> bool {
        let doubtful = ledger.get_plain(Word::Doubtful) != 0;
        if crash == 0 {
            return doubtful;
        }
        let Ok(suspect @ 1..) = ledger.get(Word::Suspect) else {
            if crash & CRASH_ELSEWHERE != 0 {
                return doubtful;
            }
            ledger.set_plain(Word::Doubtful, 1);
            return true;
        };
        let culprit = self.claims.iter_mut().find(|claim| claim.again.spine.sequence + 1 == suspect);
        if let Some(Claim { again, fate }) = culprit {
            let attempts = ledger.attempts(again.slot, again.spine.sequence).another(self.epoch);
            again.attempts = attempts.count;
            match fate {
                Fate::Done => {}
                Fate::Again { .. } => ledger.set_attempts(again.slot, attempts),
                // It will be read from the ring under another sequence number, from the same position.
                Fate::Void => {
                    ledger.set_plain(Word::Carried, attempts.under(again.spine.read_after / 8).word());
                }
            }
        }
        doubtful
    }
}

impl Recovery {
    /// Counts a request that runs again.
    fn count<L: LedgerMemory>(&mut self, ledger: &Ledger<L>, again: &Again) {
        let is_rejected = again.attempts >= MAX_ATTEMPTS
            && ledger.outcome(again.slot, again.spine.sequence) == Outcome::None;
        match is_rejected {
            true => self.rejected += 1,
            false => self.again += 1,
        }
    }
}
