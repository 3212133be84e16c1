//! From what a command asks for to what is done about it: the guest's buffer is checked against the plan, and the first
//! operation of a job made, or the answer at once. Nothing here starts any I/O.

use vsp::GuestBuffer;

use crate::job::Work;
use crate::scsi::{Plan, Sense, Unit, unmap};
use crate::uring::Operation;
use crate::wire::{Direction, Outcome, Srb};

/// What becomes of a plan.
pub(crate) enum Prepared {
    /// It is over already.
    Done(Outcome<'static>),
    /// It has only begun.
    Start(Work, Operation),
}

/// Turns a plan for a unit into an outcome, or into the first operation of a job on its file.
pub(crate) fn prepare(
    unit: &Unit,
    file: u32,
    planned: Plan,
    srb: &Srb,
    buffer: Option<GuestBuffer>,
) -> Result<Prepared, Sense> {
    let start = |(work, operation)| Ok(Prepared::Start(work, operation));
    match planned {
        Plan::Good => Ok(Prepared::Done(Outcome::Good(0))),
        Plan::Respond(data) => respond(srb, &data, buffer.as_ref()).map(Prepared::Done),
        Plan::Read { offset, len } => {
            start(Work::read(file, offset, whole(buffer, len, srb, Direction::FromDevice)?))
        }
        Plan::Write { offset, len, fua } => {
            start(Work::write(file, offset, fua, whole(buffer, len, srb, Direction::ToDevice)?))
        }
        Plan::Flush => start(Work::flush(file)),
        Plan::Unmap { list } => {
            let buffer = whole(buffer, list as u64, srb, Direction::ToDevice)?;
            let mut bytes = vec![0; list];
            buffer.read(&mut bytes);
            let ranges = unmap::parse(&bytes, unit.blocks)?;
            match Work::unmap(file, ranges, unit.block_size, list as u32) {
                Some(job) => start(job),
                None => Ok(Prepared::Done(Outcome::Good(list as u32))),
            }
        }
        Plan::WriteSame { offset, len, unmap, no_data } => {
            let block_size = unit.block_size;
            let mut block = vec![0; block_size as usize].into_boxed_slice();
            let moved = if no_data { 0 } else { block_size };
            if !no_data {
                whole(buffer, block_size.into(), srb, Direction::ToDevice)?.read(&mut block);
            }
            start(Work::same(file, offset, len, unmap, block, moved))
        }
    }
}

/// The first `len` bytes of the buffer, if the guest has given that many in the right direction.
fn whole(
    buffer: Option<GuestBuffer>,
    len: u64,
    srb: &Srb,
    direction: Direction,
) -> Result<GuestBuffer, Sense> {
    let mut buffer = buffer.filter(|buffer| buffer.len() as u64 >= len).ok_or(Sense::INVALID_FIELD)?;
    if srb.direction() != direction {
        return Err(Sense::INVALID_FIELD);
    }
    buffer.truncate(len as usize);
    Ok(buffer)
}

/// Gives the guest as much of an answer as it has room for.
pub(crate) fn respond(
    srb: &Srb,
    data: &[u8],
    buffer: Option<&GuestBuffer>,
) -> Result<Outcome<'static>, Sense> {
    match buffer {
        Some(_) if srb.direction() == Direction::ToDevice => Err(Sense::INVALID_FIELD),
        Some(buffer) => Ok(Outcome::Good(buffer.write(data) as u32)),
        None => Ok(Outcome::Good(0)),
    }
}
