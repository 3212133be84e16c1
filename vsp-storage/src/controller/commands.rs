//! Commands: from a packet to an answer, or to work for the disk.

use vsp::vmbus::packet::PacketType;
use vsp::{Channels, GuestBuffer, Packet, Request};

use super::Controller;
use crate::job::Job;
use crate::prepare::{Prepared, prepare, respond};
use crate::scsi::Sense;
use crate::scsi::plan::{plan, plan_without_unit};
use crate::transfer;
use crate::wire::{self, Address, Outcome, Srb};

impl Controller {
    pub(super) fn execute(
        &mut self,
        srb: Srb,
        packet: Packet<'_>,
        request: Request,
        channels: &mut Channels,
    ) {
        let buffer = match self.buffer(&srb, packet) {
            Ok(buffer) => buffer,
            Err(sense) => return self.end(&srb, Err(sense), request, channels),
        };
        let Some(cdb) = srb.cdb() else {
            return self.end(&srb, Err(Sense::INVALID_FIELD), request, channels);
        };
        if self.crash_on.is_some_and(|opcode| cdb[0] == opcode) {
            std::process::abort();
        }
        let address = srb.address();
        let Some(index) = self.find(address) else {
            // Other targets do not exist at all; on ours, other units might.
            let luns = if is_our_target(address) { &self.numbers[..] } else { &[] };
            let outcome = match plan_without_unit(luns, cdb) {
                Some(data) => respond(&srb, &data, buffer.as_ref()),
                None => Ok(Outcome::NoUnit),
            };
            return self.end(&srb, outcome, request, channels);
        };
        let planned = match plan(&self.luns[index].unit, &self.numbers, cdb) {
            Ok(planned) => planned,
            Err(sense) => return self.end(&srb, Err(sense), request, channels),
        };
        let repeat = planned.repeat();
        // Files are in the order of `luns`.
        match prepare(&self.luns[index].unit, index as u32, planned, &srb, buffer) {
            Ok(Prepared::Done(outcome)) => self.end(&srb, Ok(outcome), request, channels),
            Ok(Prepared::Start(work, operation)) => {
                let job = Job { request, srb, unit: index, epoch: self.epoch, repeat, work };
                self.start(operation, job);
            }
            Err(sense) => self.end(&srb, Err(sense), request, channels),
        }
    }

    pub(super) fn find(&self, address: Address) -> Option<usize> {
        if !is_our_target(address) {
            return None;
        }
        self.luns.binary_search_by_key(&address.lun, |lun| lun.lun).ok()
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
