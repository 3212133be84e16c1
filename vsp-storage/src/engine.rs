//! What both faces of a disk have in common: the units, the ring to them, and the commands that are under way.
//!
//! Who has asked, in which protocol, and how he is answered is the face's affair (`C`, what it wants back with the end of a command): the SCSI
//! controller of a VMBus guest, or the block device of a virtio guest. It must know neither.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use crate::disk::Disk;
use crate::job::{Job, Next};
use crate::limit::Cost;
use crate::lun::{Lun, succeeded};
use crate::queue::Entry;
use crate::scsi::{Repeat, Sense};
use crate::stats::Class;
use crate::uring::{Kind, Memory, Operation, Uring, UringError};

/// How often in one turn operations are handed over whose predecessors completed at once. One command can have
/// hundreds in a row (WRITE SAME, UNMAP), and meanwhile no answer becomes visible and nobody is heard.
pub(crate) const ROUNDS: usize = 4;

/// Requests that are taken at a time, and begun with in one system call, where the resource answers at once.
const AT_ONCE: usize = 16;

/// The same where it takes its time: it has something to do the sooner.
const BESIDES: usize = 4;

/// A command under way, and when it came.
#[derive(Debug)]
pub(crate) struct Flight<C> {
    pub job: Job<C>,
    pub trace: Trace,
}

/// What is to be known of a command when it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    pub unit: usize,
    began: Instant,
    class: Class,
}

/// A command that has not begun, or what it does next.
pub(crate) type Pending<C> = (Operation, Flight<C>);

/// What has become of a command.
pub(crate) enum Step<C> {
    /// It goes on.
    Again,
    /// It goes on, with [`Engine::again`], once the face has noted that its effect begins.
    Begin(Operation, Flight<C>),
    /// It is over.
    Over(Flight<C>, Kind, Result<u32, Failure>),
}

/// Why a command has failed.
#[derive(Debug)]
pub(crate) struct Failure {
    sense: Sense,
    /// The host's error; `None`: it is nobody's fault but the guest's.
    error: Option<io::Error>,
}

/// Units, ring and commands.
#[derive(Debug)]
pub(crate) struct Engine<C> {
    /// Their files have the same numbers.
    pub luns: Vec<Lun<Pending<C>>>,
    pub uring: Uring<Flight<C>>,
    /// Commands under way, those that wait included.
    pub under_way: usize,
    /// The time, where it was looked at in this batch.
    clock: Option<Instant>,
}

impl<C: std::fmt::Debug> Engine<C> {
    /// For these disks; none of them is ours yet.
    pub fn new(disks: Vec<Disk>) -> Result<Engine<C>, UringError> {
        let (luns, files): (Vec<_>, Vec<_>) = disks.into_iter().map(Lun::new).unzip();
        let mut uring = Uring::new(files)?;
        for (place, lun) in luns.iter().enumerate() {
            uring.align(place, lun.direct);
        }
        Ok(Engine { luns, uring, under_way: 0, clock: None })
    }

    /// All that is needed once nothing can be opened any more.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all = self.uring.descriptors();
        all.extend(self.luns.iter().filter_map(Lun::descriptor));
        all
    }

    /// For whom the disks are served: what tells the VM apart from others, and the name of the device.
    pub fn identify(&mut self, vm: u64, device: &str) {
        self.luns.iter_mut().for_each(|lun| lun.identify(vm, device));
    }

    /// What is waited for, and for whom.
    pub fn resource(&self) -> String {
        let waiting = self.luns.iter().find(|lun| !lun.gone && !lun.is_ours());
        waiting.map_or_else(|| "its disks".into(), Lun::waits_for)
    }

    /// Makes all disks ours if that can be done at once.
    pub fn fence(&mut self) -> Result<bool, String> {
        for (number, lun) in self.luns.iter_mut().enumerate() {
            if let Some(file) = self.uring.file(number)
                && !lun.take(file)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives them up.
    pub fn release(&mut self) {
        for (number, lun) in self.luns.iter_mut().enumerate() {
            if let Some(file) = self.uring.file(number) {
                lun.release(file);
            }
        }
    }

    /// A command needs the disk. It begins as soon as its unit's queue lets it. `answered`: the guest has the answers of all rounds before
    /// this one.
    pub fn start(&mut self, operation: Operation, job: Job<C>, answered: u64) {
        let now = self.now();
        let class = match operation.kind {
            Kind::Read { .. } => Class::Read,
            Kind::Write { .. } => Class::Write,
            Kind::Flush => Class::Flush,
            Kind::Punch { .. } | Kind::Zero { .. } => Class::Discard,
        };
        let (unit, alone, cost) = (job.unit, job.exclusive, Cost::of(&operation));
        let once = job.repeat == Repeat::Differs;
        let item = (operation, Flight { job, trace: Trace { unit, began: now, class } });
        self.under_way += 1;
        let queue = &mut self.luns[unit].queue;
        queue.answered(answered);
        if let Some((operation, flight)) = queue.come(Entry { item, cost, alone, once }, now) {
            self.hand_over(operation, flight);
        }
    }

    /// What a unit's queue lets through now.
    fn go_on(&mut self, place: usize) {
        if !self.luns[place].queue.has_waiting() {
            return;
        }
        let now = self.now();
        while let Some((operation, flight)) = self.luns[place].queue.next(now) {
            self.hand_over(operation, flight);
        }
    }

    fn hand_over(&mut self, operation: Operation, flight: Flight<C>) {
        let place = flight.trace.unit;
        match self.uring.start(operation, flight) {
            Ok(bounced) => self.luns[place].stats.bounced += u64::from(bounced),
            Err(error) => broken(&error),
        }
    }

    /// The next operation of a command that has begun.
    pub fn again(&mut self, operation: Operation, flight: Flight<C>) {
        // The rest of a transfer has been paid for with its beginning; what we repeat for the guest has not.
        let cost = Cost::of(&operation);
        if !matches!(operation.memory, Memory::Guest(_)) && cost.bytes > 0 {
            let now = self.now();
            self.luns[flight.trace.unit].queue.moved(now, cost);
        }
        self.hand_over(operation, flight);
    }

    /// Somebody waits for the end of these commands of a unit: no limit holds them up any more.
    pub fn hurry(&mut self, place: usize, which: impl Fn(&C) -> bool) {
        if self.luns[place].queue.has_waiting() {
            // What they are let through by is the next turn: they are due now, and the loop is told so by `wake_at`.
            let now = self.now();
            self.luns[place].queue.hurry(now, |(_, flight)| which(&flight.job.context));
        }
    }

    /// The same of all units.
    pub fn hurry_all(&mut self, which: impl Fn(&C) -> bool + Copy) {
        (0..self.luns.len()).for_each(|place| self.hurry(place, which));
    }

    /// Whether any of these commands waits, where its unit has limits.
    pub fn holds_back(&self, which: impl Fn(&C) -> bool) -> bool {
        self.luns.iter().any(|lun| lun.queue.holds_back(|(_, flight)| which(&flight.job.context)))
    }

    /// Whoever has asked has left, and will ask again for what has no answer: what has not begun need not. What each was about.
    pub fn abandon(&mut self) -> Vec<C> {
        let waiting = self.luns.iter_mut().flat_map(|lun| lun.queue.abandon());
        let left: Vec<C> = waiting.map(|(_, flight)| flight.job.context).collect();
        self.under_way -= left.len();
        left
    }

    /// The time, as it was when this batch first asked.
    fn now(&mut self) -> Instant {
        *self.clock.get_or_insert_with(Instant::now)
    }

    /// Has the queues go on whose limits allow it by now, or whose answers the guest has (see [`Engine::start`]).
    pub fn wake(&mut self, answered: u64) {
        for place in 0..self.luns.len() {
            if let Some(then) = self.luns[place].queue.wake_at()
                && then <= self.now()
            {
                self.go_on(place);
            }
            if self.luns[place].queue.awaits_answers() {
                self.luns[place].queue.answered(answered);
                self.go_on(place);
            }
        }
    }

    /// When to [wake](Engine::wake) them though nothing has ended.
    pub fn wake_at(&self) -> Option<Instant> {
        self.luns.iter().filter_map(|lun| lun.queue.wake_at()).min()
    }

    /// Whether a unit's queue waits for answers.
    pub fn awaits_answers(&self) -> bool {
        self.luns.iter().any(|lun| lun.queue.awaits_answers())
    }

    /// Hands over what is queued. The time is asked anew afterwards.
    pub fn submit(&mut self) {
        if let Err(error) = self.uring.submit() {
            broken(&error);
        }
        self.clock = None;
    }

    /// How many requests are to be taken at a time.
    pub fn batch(&self) -> usize {
        if self.under_way == 0 { AT_ONCE } else { BESIDES }
    }

    /// Whether something is queued that has not been handed over.
    pub fn has_queued(&mut self) -> bool {
        self.uring.has_queued()
    }

    /// What has become of the next command that something has ended of.
    pub fn next(&mut self) -> Option<Step<C>> {
        let (mut flight, operation, result) = self.uring.take_ended()?;
        let kind = operation.kind;
        Some(match flight.job.work.step(operation, result) {
            Next::Again(operation) => {
                self.again(operation, flight);
                Step::Again
            }
            Next::Begin(operation) => Step::Begin(operation, flight),
            Next::Refused(sense) => Step::Over(flight, kind, Err(Failure { sense, error: None })),
            Next::Done(moved) => Step::Over(flight, kind, Ok(moved)),
            Next::Failed(sense, error) => {
                Step::Over(flight, kind, Err(Failure { sense, error: Some(error) }))
            }
        })
    }

    /// What an end is worth, where `lost_writes` says that promises of this unit cannot be kept any more; and whether that has just become so.
    pub fn judge(
        &mut self,
        place: usize,
        kind: Kind,
        outcome: Result<u32, Failure>,
        lost_writes: bool,
    ) -> (Result<u32, Sense>, bool) {
        match outcome {
            Ok(moved) => (succeeded(kind, moved, lost_writes), false),
            Err(Failure { sense, error }) => {
                let failed = |error: &io::Error| self.luns[place].failed(kind, error, lost_writes);
                let lost = error.as_ref().is_some_and(failed);
                (Err(sense), lost && !lost_writes)
            }
        }
    }

    /// A command is over and answered. `moved`: it went well, and moved so many bytes. `round`: in which the guest gets the answer.
    pub fn over(&mut self, trace: Trace, moved: Option<u32>, round: u64) {
        let took = self.now().saturating_duration_since(trace.began);
        self.under_way -= 1;
        let lun = &mut self.luns[trace.unit];
        match moved {
            Some(moved) => lun.stats.ended(trace.class, moved.into(), took),
            None => lun.stats.errors += 1,
        }
        lun.queue.ended(round);
        self.go_on(trace.unit);
    }
}

/// Without the ring there is nothing that this process could still do; a successor can.
fn broken(error: &io::Error) -> ! {
    tracing::error!("the io_uring does not work any more: {error}");
    std::process::exit(1)
}
