//! Commands: from a packet to an answer, or to work for the disk.

use vsp::vmbus::packet::PacketType;
use vsp::{Channels, GuestBuffer, Packet, Request};

use super::{Controller, work};
use crate::job::Job;
use crate::prepare::{Prepared, Target, prepare, respond};
use crate::scsi::attention::{Attentions, REPORT_LUNS, REQUEST_SENSE};
use crate::scsi::plan::plan_without_unit;
use crate::scsi::reserve::Nexus;
use crate::scsi::{Command, Condition, Sense, plan_command};
use crate::transfer;
use crate::wire::{self, Address, Outcome, Srb};

/// Operation code of COMPARE AND WRITE, the command that is done in two steps.
const COMPARE_AND_WRITE: u8 = 0x89;

/// What binds no command.
static UNTOUCHED: Condition = Condition::new();

impl Controller {
    pub(super) fn execute(
        &mut self,
        srb: Srb,
        packet: Packet<'_>,
        request: Request,
        channels: &mut Channels,
    ) {
        self.has_looked = true;
        let buffer = match self.buffer(&srb, packet) {
            Ok(buffer) => buffer,
            Err(sense) => return self.end(&srb, Err(sense), request, channels),
        };
        let Some(cdb) = srb.cdb() else {
            return self.end(&srb, Err(Sense::INVALID_FIELD), request, channels);
        };
        // What a predecessor has begun with is finished: it may have had half of its effect. Whatever would keep it from beginning
        // now is no answer to it.
        let begun = request.has_begun() && cdb[0] == COMPARE_AND_WRITE;
        if self.crash_on.is_some_and(|opcode| cdb[0] == opcode) {
            std::process::abort();
        }
        let address = srb.address();
        let Some(index) = self.find(address) else {
            if begun {
                return self.end(&srb, Err(Sense::WRITE_ERROR), request, channels);
            }
            // Other targets do not exist at all; on ours, other units might.
            let luns = if is_our_target(address) { &self.numbers[..] } else { &[] };
            let outcome = match plan_without_unit(luns, cdb) {
                Some(data) => respond(&srb, &data, buffer.as_ref()),
                None => Ok(Outcome::NoUnit),
            };
            return self.end(&srb, outcome, request, channels);
        };
        let spared = Attentions::spare(cdb[0]);
        if self.engine.luns[index].is_estranged() && !spared {
            let sense = if begun { Sense::WRITE_ERROR } else { Sense::NO_MEDIUM };
            return self.end(&srb, Err(sense), request, channels);
        }
        if !spared
            && !begun
            && let Some(sense) = self.take_attention(address.lun)
        {
            let answer = wire::answer_command(&srb, Outcome::Check(&sense.to_fixed()));
            return self.answer_with_change(request, &answer, channels);
        }
        let unit = &self.engine.luns[index].unit;
        let condition = if begun { &UNTOUCHED } else { self.state.condition(address.lun) };
        let planned = Command::parse(cdb).and_then(|command| {
            if !condition.registry.allows(Nexus::GUEST, command.access()) {
                return Ok(None);
            }
            plan_command(unit, condition, &self.numbers, command).map(Some)
        });
        let planned = match planned {
            Ok(Some(planned)) => planned,
            Ok(None) => return self.end(&srb, Ok(Outcome::Conflict), request, channels),
            Err(_) if begun => return self.end(&srb, Err(Sense::WRITE_ERROR), request, channels),
            Err(sense) => return self.end(&srb, Err(sense), request, channels),
        };
        let (repeat, exclusive) = (planned.repeat(), planned.is_exclusive());
        // Files are in the order of `luns`.
        let target = Target { unit, condition, file: index as u32, begun };
        match prepare(&target, planned, &srb, buffer) {
            Ok(Prepared::Done(outcome)) if spared && self.told(address.lun, cdb[0]) => {
                let answer = wire::answer_command(&srb, outcome);
                self.answer_with_change(request, &answer, channels);
            }
            Ok(Prepared::Done(outcome)) => self.end(&srb, Ok(outcome), request, channels),
            Ok(Prepared::Changed(condition, outcome)) => {
                if !self.state.set_condition(address.lun, condition) {
                    return self.end(&srb, Err(Sense::NO_REGISTRATION_LEFT), request, channels);
                }
                let answer = wire::answer_command(&srb, outcome);
                self.answer_with_change(request, &answer, channels);
            }
            Ok(Prepared::Start(work, operation)) => {
                let context = work::Command { request, srb, epoch: self.epoch };
                let job = Job { context, unit: index, repeat, exclusive, work };
                self.start(operation, job);
            }
            Err(_) if begun => self.end(&srb, Err(Sense::WRITE_ERROR), request, channels),
            Err(sense) => self.end(&srb, Err(sense), request, channels),
        }
    }

    /// What a command has told that was pending is pending no more. True: there was such.
    fn told(&mut self, lun: u8, opcode: u8) -> bool {
        match opcode {
            REPORT_LUNS => self.luns_told(),
            REQUEST_SENSE => self.take_attention(lun).is_some(),
            _ => false,
        }
    }

    pub(super) fn find(&self, address: Address) -> Option<usize> {
        if !is_our_target(address) {
            return None;
        }
        self.place_of(address.lun)
    }

    /// The buffer that the packet names, no longer than the command says.
    pub(super) fn buffer(&mut self, srb: &Srb, packet: Packet<'_>) -> Result<Option<GuestBuffer>, Sense> {
        if packet.header.packet_type == PacketType::IN_BAND {
            return Ok(None);
        }
        let ram = self.ram.as_ref().ok_or(Sense::INTERNAL_FAILURE)?;
        transfer::buffer(ram, packet.header, packet.bytes, srb.transfer_length()).map_err(|error| {
            self.bad_lists += 1;
            if self.bad_lists.is_power_of_two() {
                tracing::warn!(so_far = self.bad_lists, "a request's page list cannot be used: {error}");
            }
            Sense::INVALID_FIELD
        })
    }

    pub(super) fn end(
        &mut self,
        srb: &Srb,
        outcome: Result<Outcome<'_>, Sense>,
        request: Request,
        channels: &mut Channels,
    ) {
        let answer = match outcome {
            Ok(outcome) => wire::answer_command(srb, outcome),
            Err(sense) => wire::answer_command(srb, Outcome::Check(&sense.to_fixed())),
        };
        self.answer(request, &answer, channels);
    }
}

fn is_our_target(address: Address) -> bool {
    (address.path, address.target) == (0, 0)
}
