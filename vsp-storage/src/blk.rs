//! The device behind vhost-user: one disk as a virtio-blk device, over the same engine as the SCSI controller's disks.
//!
//! * [`wire`]: the protocol.
//! * `plan`: from a request to an answer, or to work for the disk.
//!
//! What is acknowledged stays what it was when a process dies: requests in flight are the front end's to remember, and what else a successor
//! has to know is one byte ([`marks`]).

mod plan;
#[cfg(test)]
mod tests;
pub mod wire;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use vhost_face::{Chain, Face, Queues, Request};
use vsp::GuestRam;

use self::plan::{Asked, Planned};
use self::wire::{Config, feature, status};
use crate::cli::DiskSpec;
use crate::controller::OpenError;
use crate::disk;
use crate::engine::{Engine, Failure, Flight, ROUNDS, Step};
use crate::job::Job;
use crate::scsi::Repeat;
use crate::uring::Kind;

/// Most queues: one a processor is what drivers use, and a guest with more of them shares.
const QUEUES: u16 = 16;
/// Most pieces of data in a request: what fits into a queue of 128 with header and status, QEMU's default.
const SEG_MAX: u32 = 126;
/// Requests of a queue that are under way at most, as Linux' own queues have: what each may name takes up to 16 KiB here.
const DEPTH: u32 = 256;

/// The device's byte that a successor finds.
mod marks {
    /// Writes that were acknowledged may be lost: no flush succeeds any more.
    pub const LOST_WRITES: u8 = 1;
    /// The driver has switched the write cache off.
    pub const WRITE_THROUGH: u8 = 2;
}

/// A request under way.
#[derive(Debug)]
struct Command {
    request: Request,
    /// Where its status goes.
    status: u64,
    /// In which memory: another may be the guest's when it ends.
    ram: Arc<GuestRam>,
    /// Its data goes to the guest.
    reads: bool,
}

/// A disk.
#[derive(Debug)]
pub struct Blk {
    device: String,
    engine: Engine<Command>,
    /// Whether the driver asks for flushes; else everything has to be stable when it is answered (5.2.6.2).
    flushes: bool,
    /// The driver has switched the write cache off.
    write_through: bool,
    bad: u64,
    /// Writes may be lost of which a front end was told that had left by then.
    lost_writes: bool,
    /// A request that this process dies of; for tests.
    crash_on: Option<u8>,
}

impl Blk {
    /// Opens the disk and the ring. Nothing is opened afterwards; the disk is not ours yet.
    pub fn open(device: &str, specs: &[DiskSpec]) -> Result<Blk, OpenError> {
        if specs.len() != 1 {
            return Err(OpenError::OneDisk(specs.len()));
        }
        let disks = disk::open_all(device, specs)?;
        for disk in &disks {
            let (blocks, block_size, read_only) =
                (disk.unit.blocks, disk.unit.block_size, disk.unit.read_only);
            tracing::info!(blocks, block_size, read_only, "{}", disk.path.display());
            disk::check_limit(&disk.file, &disk.path, read_only, disk::file_limit()?)?;
        }
        let engine = Engine::new(disks)?;
        Ok(Blk {
            device: device.to_owned(),
            engine,
            flushes: true,
            write_through: false,
            bad: 0,
            lost_writes: false,
            crash_on: None,
        })
    }

    /// Has the process die of a request, as a bug would have it; for tests.
    pub fn crashing_on(self, kind: Option<u8>) -> Blk {
        Blk { crash_on: kind, ..self }
    }

    fn describe(&self) -> Config {
        let unit = &self.engine.luns[0].unit;
        let sectors = u64::from(unit.block_size) / wire::SECTOR;
        let most = |ranges: bool| if ranges { plan::MAX_RANGE } else { 0 };
        Config {
            capacity: unit.blocks.saturating_mul(sectors),
            seg_max: SEG_MAX,
            block_size: unit.block_size,
            physical_exponent: unit.physical_exponent,
            write_back: unit.write_cache && !self.write_through,
            queues: QUEUES,
            max_discard: most(unit.can_unmap),
            max_discard_ranges: if unit.can_unmap { plan::MAX_DISCARDS } else { 0 },
            discard_alignment: (sectors << unit.physical_exponent.min(15)) as u32,
            max_zeroes: most(!unit.read_only),
            max_zeroes_ranges: u32::from(!unit.read_only),
            zeroes_may_unmap: unit.can_unmap,
        }
    }

    /// Whether what is answered has to be stable.
    fn is_stable(&self) -> bool {
        self.write_through || !self.flushes
    }

    fn answer(&mut self, request: Request, to: (&GuestRam, u64), status: u8, data: u32, queues: &mut Queues) {
        if to.0.write(to.1, &[status]).is_err() {
            // It was RAM when the request came, and its mapping is still there.
            tracing::debug!("a request's status cannot be written");
        }
        request.complete(queues, data.saturating_add(1));
    }

    /// Hands over what is queued and finishes what has ended; again as long as something is queued by that, unless it takes too long. What
    /// ends meanwhile is the next turn's: the guest has the answers to the first while it does.
    fn pump(&mut self, queues: &mut Queues) {
        // Nothing here is done once only, so nothing waits for answers.
        self.engine.wake(0);
        for _ in 0..ROUNDS {
            self.engine.submit();
            let mut ended = false;
            while let Some(step) = self.engine.next() {
                ended = true;
                match step {
                    Step::Again => {}
                    Step::Begin(operation, flight) => self.engine.again(operation, flight),
                    Step::Over(flight, kind, outcome) => self.over(flight, kind, outcome, queues),
                }
            }
            if !ended || !self.engine.has_queued() {
                return;
            }
        }
        self.engine.submit();
    }

    fn over(
        &mut self,
        flight: Flight<Command>,
        kind: Kind,
        outcome: Result<u32, Failure>,
        queues: &mut Queues,
    ) {
        let Flight { job, trace } = flight;
        let lost_before = queues.marks() & marks::LOST_WRITES != 0;
        let (outcome, lost) = self.engine.judge(trace.unit, kind, outcome, lost_before);
        if lost {
            queues.set_marks(queues.marks() | marks::LOST_WRITES);
            // The kernel says so once, and a front end that has left and comes back runs it again.
            self.lost_writes |= queues.is_orphan(&job.context.request);
        }
        let Command { request, status, ram, reads } = job.context;
        match outcome {
            Ok(moved) => {
                let data = if reads { moved } else { 0 };
                self.answer(request, (&ram, status), status::OK, data, queues);
                self.engine.over(trace, Some(moved), 0);
            }
            Err(_) => {
                self.answer(request, (&ram, status), status::IOERR, 0, queues);
                self.engine.over(trace, None, 0);
            }
        }
    }
}

impl Face for Blk {
    fn features(&self) -> u64 {
        let unit = &self.engine.luns[0].unit;
        let mut features =
            feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY | feature::MQ;
        if unit.read_only {
            features |= feature::RO;
        } else {
            features |= feature::WRITE_ZEROES;
        }
        if unit.write_cache {
            features |= feature::CONFIG_WCE;
        }
        if unit.can_unmap {
            features |= feature::DISCARD;
        }
        features
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn config(&self, offset: usize, into: &mut [u8]) {
        let bytes = self.describe().encode();
        let part = bytes.get(offset..).unwrap_or_default();
        let len = part.len().min(into.len());
        into[..len].copy_from_slice(&part[..len]);
    }

    fn set_config(&mut self, offset: usize, bytes: &[u8], queues: &mut Queues) -> Result<(), String> {
        let &[write_back @ (0 | 1)] = bytes else { return Err("only the write cache can be set".into()) };
        if offset != wire::WRITEBACK || self.features() & feature::CONFIG_WCE == 0 {
            return Err("only the write cache can be set".into());
        }
        self.write_through = write_back == 0;
        let rest = queues.marks() & !marks::WRITE_THROUGH;
        queues.set_marks(rest | if self.write_through { marks::WRITE_THROUGH } else { 0 });
        Ok(())
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.engine.descriptors()
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.engine.uring.source()]
    }

    fn identify(&mut self, place: &str) {
        // What tells one VM from another here is where its front end connects.
        self.engine.identify(disk::hash(place.as_bytes()), &self.device);
    }

    fn resource(&self) -> String {
        self.engine.resource()
    }

    fn fence(&mut self) -> Result<bool, String> {
        self.engine.fence()
    }

    fn connected(&mut self) {
        (self.flushes, self.write_through) = (true, false);
    }

    fn negotiated(&mut self, features: u64) {
        self.flushes = features & feature::FLUSH != 0;
    }

    fn started(&mut self, _queue: u16, queues: &mut Queues) {
        self.write_through |= queues.marks() & marks::WRITE_THROUGH != 0;
        let lost = if std::mem::take(&mut self.lost_writes) { marks::LOST_WRITES } else { 0 };
        let rest = queues.marks() & !marks::WRITE_THROUGH;
        queues.set_marks(rest | lost | if self.write_through { marks::WRITE_THROUGH } else { 0 });
    }

    fn stopping(&mut self, queue: u16, _queues: &mut Queues) {
        self.engine.hurry_all(|command| command.request.queue() == queue);
    }

    fn disconnected(&mut self, queues: &mut Queues) {
        // What the disk has ends before anybody is let in. What waits was never begun and never answered: it is in flight for the front end, which
        // gives it back. To run it now would only have limits broken and the next front end wait.
        self.engine.abandon().into_iter().for_each(|command| command.request.complete(queues, 0));
    }

    fn batch(&self) -> usize {
        self.engine.batch()
    }

    fn depth(&self) -> u32 {
        DEPTH
    }

    /// A guest may have as many requests in its rings as it likes, and stop them at any moment, which waits for no limit. So one of each ring
    /// waits for the limits here, and the others in the ring.
    fn holds_back(&self, queue: u16) -> bool {
        self.engine.holds_back(|command| command.request.queue() == queue)
    }

    fn request(&mut self, chain: &Chain, request: Request, queues: &mut Queues) {
        if self.crash_on.is_some() && plan::kind(chain, queues.ram()) == self.crash_on.map(u32::from) {
            std::process::abort();
        }
        let (stable, queue) = (self.is_stable(), request.queue());
        let unit = &self.engine.luns[0].unit;
        let planned = plan::plan(unit, chain, queues.ram(), stable);
        match planned {
            Planned::Start { work, operation, status, reads } => {
                let context = Command { request, status, ram: Arc::clone(queues.ram()), reads };
                let job = Job { context, unit: 0, repeat: Repeat::Same, exclusive: false, work };
                self.engine.start(operation, job, 0);
                if queues.is_stopping(queue) {
                    self.stopping(queue, queues);
                }
            }
            Planned::Answer { at, status, data } => {
                let ram = Arc::clone(queues.ram());
                self.answer(request, (&ram, at), status, data, queues);
            }
            Planned::Nonsense(why) => {
                self.bad += 1;
                if self.bad.is_power_of_two() {
                    tracing::warn!(
                        so_far = self.bad,
                        "the guest has sent a request that makes no sense: {why}"
                    );
                }
                request.complete(queues, 0);
            }
        }
    }

    fn reject(&mut self, chain: &Chain, request: Request, queues: &mut Queues) {
        match Asked::status(chain) {
            Some(at) => self.answer(request, (&Arc::clone(queues.ram()), at), status::IOERR, 0, queues),
            None => request.complete(queues, 0),
        }
    }

    fn submit(&mut self, queues: &mut Queues) {
        self.pump(queues);
    }

    fn ready(&mut self, _source: usize, queues: &mut Queues) {
        self.pump(queues);
    }

    fn poll(&mut self, queues: &mut Queues) -> bool {
        let ended = self.engine.uring.has_ended();
        if ended {
            self.pump(queues);
        }
        ended
    }

    fn wake_at(&self) -> Option<Instant> {
        self.engine.wake_at()
    }

    fn is_idle(&self) -> bool {
        self.engine.under_way == 0
    }
}
