//! The device: a SCSI controller at the end of a storvsc channel.

use std::os::fd::{AsFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vsp::vmbus::guid::class;
use vsp::vmbus::packet::PacketType;
use vsp::{
    ChannelId, Channels, Device, GuestBuffer, GuestRam, Offer, OpenRequest, Packet, Refused, Request, Vm,
};

use crate::cli::DiskSpec;
use crate::disk::{self, DiskError};
use crate::job::{Job, Next, Work};
use crate::scsi::plan::{MAX_TRANSFER, plan, plan_without_unit};
use crate::scsi::{Plan, Sense, Unit, sense, unmap};
use crate::transfer;
use crate::uring::{Kind, Operation, Uring, UringError};
use crate::wire::{self, Address, Direction, Message, Outcome, Properties, Srb, status};

/// How often in one turn operations are handed over whose predecessors completed at once. One command can have
/// hundreds in a row (WRITE SAME, UNMAP), and meanwhile no answer becomes visible and the core is not heard.
const ROUNDS: usize = 4;

/// Why a controller cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A disk cannot be served.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is no way to the disks.
    #[error(transparent)]
    Uring(#[from] UringError),
}

/// A unit and what is remembered about it.
#[derive(Debug)]
struct Lun {
    lun: u8,
    unit: Unit,
    path: PathBuf,
    /// Commands that failed for the host's fault, for the log.
    failures: u64,
    /// The host could not put on stable storage what the guest believes to be written, and the kernel tells so
    /// only once: the next flush would succeed. So none may, until somebody has looked after the disk and the
    /// process is started anew.
    lost_writes: bool,
}

impl Lun {
    /// An operation has failed for good: remembers what that means and says so.
    fn failed(&mut self, kind: Kind, error: &std::io::Error) {
        let (lun, path) = (self.lun, self.path.display());
        if kind.is_promise() && sense::may_lose_writes(error) && !self.lost_writes {
            self.lost_writes = true;
            tracing::error!(
                lun,
                "{path}: {kind:?} failed: {error}; writes that were acknowledged may be lost, so flushes of this \
                 disk fail until its process is started anew"
            );
        }
        self.failures += 1;
        if self.failures.is_power_of_two() {
            tracing::error!(lun, so_far = self.failures, "{path}: {kind:?} failed: {error}");
        }
    }

    /// What an operation's success is worth: nothing, if it promises what cannot be kept any more.
    fn succeeded(&self, kind: Kind, moved: u32) -> Result<u32, Sense> {
        if self.lost_writes && kind.is_promise() { Err(Sense::WRITE_ERROR) } else { Ok(moved) }
    }
}

/// How far the guest's driver has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The channel is open.
    Opened,
    /// It has begun to introduce itself.
    Begun,
    /// A protocol version is agreed on.
    Versioned,
    /// Commands may come.
    Ready,
}

/// A reset, answered when the commands that were in flight when it came have ended.
#[derive(Debug)]
struct Reset {
    request: Request,
    /// Commands that began in an epoch before this one are waited for.
    epoch: u32,
    /// How many of those there still are.
    waiting: usize,
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    luns: Vec<Lun>,
    /// The numbers of all units, sorted, as REPORT LUNS tells them.
    numbers: Vec<u8>,
    uring: Uring<Job>,
    ram: Option<Arc<GuestRam>>,
    phase: Phase,
    epoch: u32,
    resets: Vec<Reset>,
    /// Page lists that could not be used, for the log.
    bad_lists: u64,
}

impl Controller {
    /// Opens the disks and the ring. Nothing is opened afterwards.
    pub fn open(device: &str, specs: &[DiskSpec]) -> Result<Controller, OpenError> {
        let disks = disk::open_all(device, specs)?;
        let files: Vec<_> = disks.iter().map(|disk| disk.file.as_fd()).collect();
        let uring = Uring::new(&files)?;
        drop(files);
        let mut luns = Vec::with_capacity(disks.len());
        for disk in disks {
            let (lun, blocks, size) = (disk.lun, disk.unit.blocks, disk.unit.block_size);
            tracing::info!(
                lun,
                blocks,
                block_size = size,
                read_only = disk.unit.read_only,
                "{}",
                disk.path.display()
            );
            // The file's descriptor is closed here; the ring holds the file and its lock.
            luns.push(Lun { lun, unit: disk.unit, path: disk.path, failures: 0, lost_writes: false });
        }
        let numbers = luns.iter().map(|lun| lun.lun).collect();
        let phase = Phase::Opened;
        Ok(Controller { luns, numbers, uring, ram: None, phase, epoch: 0, resets: Vec::new(), bad_lists: 0 })
    }

    fn execute(&mut self, srb: Srb, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let buffer = match self.buffer(&srb, packet) {
            Ok(buffer) => buffer,
            Err(sense) => return fail(&srb, sense, request, channels),
        };
        let Some(cdb) = srb.cdb() else { return fail(&srb, Sense::INVALID_FIELD, request, channels) };
        let address = srb.address();
        let Some(index) = self.find(address) else {
            // Other targets do not exist at all; on ours, other units might.
            let luns = if is_our_target(address) { &self.numbers[..] } else { &[] };
            let outcome = match plan_without_unit(luns, cdb) {
                Some(data) => respond(&srb, &data, buffer.as_ref()),
                None => Ok(Outcome::NoUnit),
            };
            return end(&srb, outcome, request, channels);
        };
        let planned = plan(&self.luns[index].unit, &self.numbers, cdb);
        match planned.and_then(|planned| self.prepare(index, planned, &srb, buffer)) {
            Ok(Prepared::Done(outcome)) => end(&srb, Ok(outcome), request, channels),
            Ok(Prepared::Start(work, operation)) => {
                let job = Job { request, srb, unit: index, epoch: self.epoch, work };
                self.start(operation, job);
            }
            Err(sense) => fail(&srb, sense, request, channels),
        }
    }

    /// Turns a plan into an outcome, or into the first operation of a job.
    fn prepare(
        &self,
        index: usize,
        planned: Plan,
        srb: &Srb,
        buffer: Option<GuestBuffer>,
    ) -> Result<Prepared, Sense> {
        // Registered in the order of `luns`.
        let file = index as u32;
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
                let unit = &self.luns[index].unit;
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
                let block_size = self.luns[index].unit.block_size;
                let mut block = vec![0; block_size as usize].into_boxed_slice();
                let moved = if no_data { 0 } else { block_size };
                if !no_data {
                    whole(buffer, block_size.into(), srb, Direction::ToDevice)?.read(&mut block);
                }
                start(Work::same(file, offset, len, unmap, block, moved))
            }
        }
    }

    fn find(&self, address: Address) -> Option<usize> {
        if !is_our_target(address) {
            return None;
        }
        self.luns.binary_search_by_key(&address.lun, |lun| lun.lun).ok()
    }

    /// The buffer that the packet names, no longer than the command says.
    fn buffer(&mut self, srb: &Srb, packet: Packet<'_>) -> Result<Option<GuestBuffer>, Sense> {
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

    fn start(&mut self, operation: Operation, job: Job) {
        if let Err(error) = self.uring.start(operation, job) {
            broken(&error);
        }
    }

    /// Hands over what is queued and finishes what has ended, until neither is left or it takes too long.
    fn pump(&mut self, channels: &mut Channels) {
        for _ in 0..ROUNDS {
            self.submit_queued();
            let mut ended = false;
            while let Some((mut job, operation, result)) = self.uring.take_ended() {
                ended = true;
                let kind = operation.kind;
                match job.work.step(operation, result) {
                    Next::Again(operation) => self.start(operation, job),
                    Next::Done(moved) => match self.luns[job.unit].succeeded(kind, moved) {
                        Ok(moved) => self.finish(job, Outcome::Good(moved), channels),
                        Err(sense) => self.finish(job, Outcome::Check(&sense.to_fixed()), channels),
                    },
                    Next::Failed(sense, error) => {
                        self.luns[job.unit].failed(kind, &error);
                        self.finish(job, Outcome::Check(&sense.to_fixed()), channels);
                    }
                }
            }
            if !ended {
                return;
            }
        }
        // What of this completes at once is announced by the ring, so the next turn goes on with it.
        self.submit_queued();
    }

    fn submit_queued(&mut self) {
        if let Err(error) = self.uring.submit() {
            broken(&error);
        }
    }

    fn finish(&mut self, job: Job, outcome: Outcome<'_>, channels: &mut Channels) {
        let answer = wire::answer_command(&job.srb, outcome);
        job.request.complete(channels, &answer);
        for reset in &mut self.resets {
            if job.epoch < reset.epoch {
                reset.waiting -= 1;
            }
        }
        for reset in self.resets.extract_if(.., |reset| reset.waiting == 0) {
            reset.request.complete(channels, &wire::answer(status::SUCCESS));
        }
    }

    /// What a packet other than a command is answered with; `None`: later.
    fn introduce(&mut self, message: &Message) -> [u8; wire::PACKET_LEN] {
        let (phase, answer) = match (message, self.phase) {
            (Message::Begin, _) => (Phase::Begun, wire::answer(status::SUCCESS)),
            (Message::Version(version), Phase::Begun) if wire::VERSIONS.contains(version) => {
                (Phase::Versioned, wire::answer(status::SUCCESS))
            }
            (Message::Version(_), Phase::Begun) => (Phase::Begun, wire::answer(status::REVISION_MISMATCH)),
            (Message::Properties, Phase::Versioned | Phase::Ready) => {
                let properties = Properties { max_subchannels: 0, max_transfer_bytes: MAX_TRANSFER };
                (self.phase, wire::answer_properties(properties))
            }
            (Message::End, Phase::Versioned) => (Phase::Ready, wire::answer(status::SUCCESS)),
            (Message::FibreChannel | Message::SubChannels(_), phase) => {
                (phase, wire::answer(status::NOT_SUPPORTED))
            }
            (Message::Unknown(_), phase) => (phase, wire::answer(status::INVALID_PARAMETER)),
            (_, phase) => (phase, wire::answer(status::INVALID_DEVICE_STATE)),
        };
        self.phase = phase;
        answer
    }
}

/// What becomes of a plan.
enum Prepared {
    Done(Outcome<'static>),
    Start(Work, Operation),
}

impl Device for Controller {
    fn offer(&self) -> Offer {
        Offer { class: class::SCSI.to_string(), ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.uring.source()]
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.uring.source()]
    }

    fn attached(&mut self, vm: Vm) -> Result<(), String> {
        match vm.ram {
            Some(ram) => self.ram = Some(Arc::new(ram)),
            None => return Err("a SCSI controller needs guest RAM: its device slot has to say so".into()),
        }
        Ok(())
    }

    fn open(&mut self, _channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        if request.subchannel != 0 {
            return Err(Refused::default());
        }
        self.phase = Phase::Opened;
        Ok(())
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let payload = match packet.header.packet_type {
            PacketType::IN_BAND | PacketType::GPA_DIRECT => packet.header.payload(packet.bytes),
            _ => &[],
        };
        let Some(message) = Message::parse(payload) else {
            return request.complete(channels, &wire::answer(status::INVALID_PARAMETER));
        };
        match message {
            Message::Execute(srb) if self.phase == Phase::Ready => {
                self.execute(srb, packet, request, channels)
            }
            Message::Reset if self.phase == Phase::Ready && self.uring.in_flight() > 0 => {
                self.epoch += 1;
                self.resets.push(Reset { request, epoch: self.epoch, waiting: self.uring.in_flight() });
            }
            Message::Reset if self.phase == Phase::Ready => {
                request.complete(channels, &wire::answer(status::SUCCESS));
            }
            other => request.complete(channels, &self.introduce(&other)),
        }
    }

    fn submit(&mut self, channels: &mut Channels) {
        self.pump(channels);
    }

    fn ready(&mut self, _source: usize, channels: &mut Channels) {
        self.pump(channels);
    }

    fn closing(&mut self, _channel: ChannelId) {
        self.phase = Phase::Opened;
    }
}

fn is_our_target(address: Address) -> bool {
    (address.path, address.target) == (0, 0)
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
fn respond(srb: &Srb, data: &[u8], buffer: Option<&GuestBuffer>) -> Result<Outcome<'static>, Sense> {
    match buffer {
        Some(_) if srb.direction() == Direction::ToDevice => Err(Sense::INVALID_FIELD),
        Some(buffer) => Ok(Outcome::Good(buffer.write(data) as u32)),
        None => Ok(Outcome::Good(0)),
    }
}

fn end(srb: &Srb, outcome: Result<Outcome<'_>, Sense>, request: Request, channels: &mut Channels) {
    match outcome {
        Ok(outcome) => request.complete(channels, &wire::answer_command(srb, outcome)),
        Err(sense) => fail(srb, sense, request, channels),
    }
}

fn fail(srb: &Srb, sense: Sense, request: Request, channels: &mut Channels) {
    request.complete(channels, &wire::answer_command(srb, Outcome::Check(&sense.to_fixed())));
}

/// Without the ring there is nothing that this process could still do; a successor can.
fn broken(error: &std::io::Error) -> ! {
    tracing::error!("the io_uring does not work any more: {error}");
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::scsi::plan::tests::unit;

    const FLUSH: Kind = Kind::Flush;
    const FUA: Kind = Kind::Write { offset: 0, stable: true };
    const WRITE: Kind = Kind::Write { offset: 0, stable: false };

    fn lun() -> Lun {
        Lun { lun: 0, unit: unit(), path: PathBuf::new(), failures: 0, lost_writes: false }
    }

    /// The kernel reports a write-back error to one `fsync` and calls the pages clean; Linux guests try a failed
    /// flush again, and would take the second one's success for theirs.
    #[test]
    fn a_flush_that_failed_cannot_be_made_up_for() {
        for (kind, code) in [(FLUSH, libc::EIO), (FLUSH, libc::ENOSPC), (FUA, libc::EIO)] {
            let mut lun = lun();
            assert_eq!(lun.succeeded(FLUSH, 0), Ok(0));
            lun.failed(kind, &io::Error::from_raw_os_error(code));
            assert_eq!(lun.succeeded(FLUSH, 0), Err(Sense::WRITE_ERROR));
            assert_eq!(lun.succeeded(FUA, 512), Err(Sense::WRITE_ERROR));
            assert_eq!(lun.succeeded(WRITE, 512), Ok(512), "it promises nothing");
            assert_eq!(lun.succeeded(Kind::Read { offset: 0 }, 512), Ok(512));
        }
    }

    #[test]
    fn failures_that_lose_nothing_are_forgotten() {
        let failures = [(FLUSH, libc::EINTR), (FUA, libc::EROFS), (WRITE, libc::EIO), (WRITE, libc::ENOSPC)];
        for (kind, code) in failures {
            let mut lun = lun();
            lun.failed(kind, &io::Error::from_raw_os_error(code));
            assert_eq!(lun.succeeded(FLUSH, 0), Ok(0));
        }
    }
}
