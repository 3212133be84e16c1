//! Loans: what the guest has for a while, and gives back by a completion of its own.
//!
//! The order of steps is the one of requests, turned round. To lend, the packet goes into the ring beyond the write index, the
//! ledger says *given, visible at W*, and the publication of W decides. To take back, the guest's completion is read, the ledger
//! says *returning, read at R*, and the publication of R decides. Only then the device hears of it, so that it may lend the same loan
//! again at once: a loan that it lends while its return is still in the ring would come back twice.

use std::collections::VecDeque;

use ipc::ledger::{LedgerMemory, Loan, MAX_LOANS};
use logs::Ration;
use vmbus::packet::{Outgoing, PacketHeader, TransferPages};
use vmbus::ring::{PushError, RingError, RingMemory};

use super::{Channel, KillPoint, RETURN_PAYLOAD};

/// How often guests have given back what they did not have.
static STRAY: Ration = Ration::new();

/// What the process knows of a loan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It can be lent.
    Here,
    /// The guest has it, or will when the packet is published.
    Out,
    /// The guest has given it back, and the device has not been told.
    Returning,
}

/// A loan that has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Which.
    pub loan: u32,
    len: usize,
    payload: [u8; RETURN_PAYLOAD],
}

impl Returned {
    fn new(loan: u32, said: &[u8]) -> Returned {
        let len = said.len().min(RETURN_PAYLOAD);
        let mut payload = [0; RETURN_PAYLOAD];
        payload[..len].copy_from_slice(&said[..len]);
        Returned { loan, len, payload }
    }

    /// What the guest said to it, cut off at [`RETURN_PAYLOAD`] bytes.
    pub fn payload(&self) -> &[u8] {
        &self.payload[..self.len]
    }
}

/// A loan that cannot be made. The device is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LendError {
    /// The packet could not be written.
    #[error(transparent)]
    Push(#[from] PushError),
    /// It is out, or there are not so many.
    #[error("loan {0} is out already, or there is no such loan")]
    NotHere(u32),
}

/// All loans of a channel, and who waits for room to make more.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Empty: the device lends nothing, and completions are packets like all others.
    places: Vec<Place>,
    returned: VecDeque<Returned>,
    /// Bytes of room that are waited for; 0: nobody waits.
    wanted: u32,
    /// There was enough.
    has_room: bool,
    /// Completions for nothing that was out.
    strays: u64,
}

impl Loans {
    /// So many that can be made, or more if a predecessor had more of them out.
    pub fn new(count: u32, lent: &[u32]) -> Loans {
        let most = lent.iter().map(|loan| loan + 1).max().unwrap_or(0).max(count.min(MAX_LOANS));
        let mut places = vec![Place::Here; most as usize];
        lent.iter().for_each(|loan| places[*loan as usize] = Place::Out);
        Loans { places, ..Loans::default() }
    }

    #[inline]
    pub fn are_made(&self) -> bool {
        !self.places.is_empty()
    }
}

impl<M: RingMemory, L: LedgerMemory> Channel<M, L> {
    /// Step 3 of a loan: writes its packet, and in the ledger where it ends. [`PushError::Full`]: [`Channel::take_room`] says when
    /// to try again.
    pub fn lend(&mut self, loan: u32, pages: &TransferPages<'_>, payload: &[u8]) -> Result<(), LendError> {
        if self.loans.places.get(loan as usize) != Some(&Place::Here) {
            return Err(LendError::NotHere(loan));
        }
        let packet = Outgoing::transferring(u64::from(loan), pages);
        let parts: [&[u8]; 3] = [&pages.fixed_bytes(), pages.range_bytes(), payload];
        if !self.backlog.is_empty() {
            // It must not overtake completions that wait.
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            let needed = bytes.next_multiple_of(8) as u32 + 24;
            self.want_room(needed);
            return Err(PushError::Full { needed }.into());
        }
        match self.writer.push(&packet, &parts) {
            Err(PushError::Full { needed }) => {
                self.want_room(needed);
                return Err(PushError::Full { needed }.into());
            }
            other => other?,
        }
        KillPoint::LendDue.reached();
        if let Some(book) = &mut self.book {
            let visible_at = book.write.follow(self.writer.write_position());
            book.ledger.set_loan(loan, Loan::Given { visible_at });
        }
        KillPoint::Lent.reached();
        self.loans.places[loan as usize] = Place::Out;
        Ok(())
    }

    /// Steps 1 of a return: the guest's completion has been read, up to the ring's index `index`.
    pub(super) fn note_return(&mut self, header: &PacketHeader, packet: &[u8], index: u32) {
        let read_after = self.book.as_mut().map(|book| book.read.follow(index));
        let loan = u32::try_from(header.transaction_id).unwrap_or(u32::MAX);
        let Some(place) = self.loans.places.get_mut(loan as usize).filter(|place| **place == Place::Out)
        else {
            self.loans.strays += 1;
            if let Some(times) = STRAY.another() {
                tracing::warn!(
                    id = header.transaction_id,
                    times,
                    "the guest gives back what it does not have"
                );
            }
            return;
        };
        *place = Place::Returning;
        KillPoint::ReturnDue.reached();
        if let (Some(book), Some(read_after)) = (&self.book, read_after) {
            book.ledger.set_loan(loan, Loan::Returning { read_after });
        }
        KillPoint::Returning.reached();
        self.loans.returned.push_back(Returned::new(loan, header.payload(packet)));
    }

    /// A loan that has come back and whose return is published; it can be lent again.
    pub fn take_returned(&mut self) -> Option<Returned> {
        if self.reader.read_position() != self.reader.published_position() {
            return None;
        }
        let returned = self.loans.returned.pop_front()?;
        self.loans.places[returned.loan as usize] = Place::Here;
        Some(returned)
    }

    /// Whether so many bytes can be written now. If not, [`Channel::take_room`] says when they can.
    pub fn has_room(&mut self, bytes: u32) -> Result<bool, RingError> {
        // What can never fit is for the writer to refuse.
        let fits = bytes < self.writer.memory().data_len();
        if fits && (!self.backlog.is_empty() || !self.writer.has_room(bytes)?) {
            self.want_room(bytes);
            return Ok(false);
        }
        Ok(true)
    }

    /// So many bytes are waited for: [`Channel::take_room`] says when there is room for them, at the next publication at the earliest.
    pub fn want_room(&mut self, bytes: u32) {
        self.loans.wanted = self.loans.wanted.max(bytes);
    }

    /// How much room is missing for what waits besides completions; none, if there is enough.
    pub(super) fn lacks_room(&mut self) -> Result<Option<u32>, RingError> {
        let wanted = self.loans.wanted;
        if wanted == 0 {
            return Ok(None);
        }
        if self.writer.has_room(wanted)? {
            (self.loans.wanted, self.loans.has_room) = (0, true);
            return Ok(None);
        }
        Ok(Some(wanted))
    }

    /// Whether there is room again, once after it was missing.
    pub fn take_room(&mut self) -> bool {
        std::mem::take(&mut self.loans.has_room)
    }

    /// Whether [`Channel::take_room`] has something to say.
    #[inline]
    pub fn made_room(&self) -> bool {
        self.loans.has_room
    }

    /// Whether something besides completions waits for room.
    #[inline]
    pub fn wants_room(&self) -> bool {
        self.loans.wanted > 0
    }

    /// Completions that the guest has sent for nothing that it had.
    pub fn strays(&self) -> u64 {
        self.loans.strays
    }
}
