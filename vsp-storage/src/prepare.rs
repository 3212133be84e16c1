//! From what a command asks for to what is done about it: the guest's buffer is checked against the plan, and the first
//! operation of a job made, or the answer at once. Nothing here starts any I/O.

use vsp::GuestBuffer;

use crate::job::Work;
use crate::scsi::reserve::{Nexus, Refusal, Request};
use crate::scsi::{Condition, Plan, Sense, Unit, mode, unmap};
use crate::uring::Operation;
use crate::wire::{Direction, Outcome, Srb};

/// What becomes of a plan.
pub(crate) enum Prepared {
    /// It is over already.
    Done(Outcome<'static>),
    /// It is over, and has made this of the unit.
    Changed(Condition, Outcome<'static>),
    /// It has only begun.
    Start(Work, Operation),
}

/// What a plan is for.
pub(crate) struct Target<'a> {
    /// The unit.
    pub unit: &'a Unit,
    /// What it has become.
    pub condition: &'a Condition,
    /// Number of its file.
    pub file: u32,
    /// A predecessor has begun with what must not be begun twice.
    pub begun: bool,
}

/// Turns a plan for a unit into an outcome, or into the first operation of a job on its file.
pub(crate) fn prepare(
    target: &Target<'_>,
    planned: Plan,
    srb: &Srb,
    buffer: Option<GuestBuffer>,
) -> Result<Prepared, Sense> {
    let (unit, file) = (target.unit, target.file);
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
        Plan::WriteVerify { offset, len, compare } => {
            let buffer = whole(buffer, len, srb, Direction::ToDevice)?;
            start(Work::write_verify(file, offset, compare, buffer))
        }
        Plan::Verify { offset, len, compare: false } => start(Work::verify(file, offset, len, None)),
        Plan::Verify { offset, len, compare: true } => {
            let buffer = whole(buffer, len, srb, Direction::ToDevice)?;
            start(Work::verify(file, offset, len, Some(buffer)))
        }
        Plan::CompareAndWrite { len: 0, .. } if srb.transfer_length() == 0 => {
            Ok(Prepared::Done(Outcome::Good(0)))
        }
        Plan::CompareAndWrite { offset, len, fua } => {
            let buffer = exactly(buffer, 2 * len, srb)?;
            start(Work::compare_and_write(file, offset, fua, buffer, target.begun))
        }
        Plan::Flush => start(Work::flush(file)),
        Plan::Unmap { list } => {
            let bytes = parameters(buffer, list, srb)?;
            let ranges = unmap::parse(&bytes, unit.blocks)?;
            match Work::unmap(file, ranges, unit.block_size, list as u32, !unit.write_cache) {
                Some(job) => start(job),
                None => Ok(Prepared::Done(Outcome::Good(list as u32))),
            }
        }
        Plan::WriteSame { offset, len, unmap, no_data } => {
            let block_size = unit.block_size;
            let mut block = vec![0; block_size as usize].into_boxed_slice();
            let moved = if no_data { 0 } else { block_size };
            if !no_data {
                exactly(buffer, block_size.into(), srb)?.read(&mut block);
            }
            start(Work::same(file, offset, len, unmap, block, moved, !unit.write_cache))
        }
        Plan::ModeSelect { long, list } => {
            let bytes = parameters(buffer, list, srb)?;
            let modes = mode::select(unit, target.condition.modes, long, &bytes)?;
            let condition = Condition { modes, ..target.condition.clone() };
            Ok(changed(target, condition, list))
        }
        Plan::Reserve { action, list } => {
            let bytes = parameters(buffer, list, srb)?;
            let request = Request::parse(action, &bytes)?;
            let mut condition = target.condition.clone();
            match condition.registry.apply(Nexus::GUEST, &request) {
                Err(Refusal::Conflict) => Ok(Prepared::Done(Outcome::Conflict)),
                Err(Refusal::Check(sense)) => Err(sense),
                Ok(notices) => {
                    for (nexus, attention) in notices {
                        if nexus == Nexus::GUEST {
                            condition.attentions.raise(attention);
                        }
                    }
                    Ok(changed(target, condition, list))
                }
            }
        }
    }
}

/// The end of a command that was to change the unit.
fn changed(target: &Target<'_>, condition: Condition, list: usize) -> Prepared {
    let outcome = Outcome::Good(list as u32);
    if condition == *target.condition {
        Prepared::Done(outcome)
    } else {
        Prepared::Changed(condition, outcome)
    }
}

/// A parameter list, as a private copy.
fn parameters(buffer: Option<GuestBuffer>, len: usize, srb: &Srb) -> Result<Vec<u8>, Sense> {
    let buffer = whole(buffer, len as u64, srb, Direction::ToDevice)?;
    let mut bytes = vec![0; len];
    buffer.read(&mut bytes);
    Ok(bytes)
}

/// The guest's data where there may be neither less nor more of it: the command says in two ways how much there is.
fn exactly(buffer: Option<GuestBuffer>, len: u64, srb: &Srb) -> Result<GuestBuffer, Sense> {
    if u64::from(srb.transfer_length()) != len {
        return Err(Sense::INVALID_FIELD);
    }
    whole(buffer, len, srb, Direction::ToDevice)
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
