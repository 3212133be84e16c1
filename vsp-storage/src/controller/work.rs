//! Work for the disks: handed to the ring, stepped on when an operation has ended, answered when it is over.

use std::io;
use std::time::{Duration, Instant};

use vsp::{Channels, Request};

use super::Controller;
use crate::job::{Job, Next};
use crate::limit::Cost;
use crate::lun::succeeded;
use crate::queue::Entry;
use crate::scsi::Repeat;
use crate::stats::Class;
use crate::uring::{Kind, Memory, Operation};
use crate::wire::{self, Address, Outcome, status};

/// How often in one turn operations are handed over whose predecessors completed at once. One command can have
/// hundreds in a row (WRITE SAME, UNMAP), and meanwhile no answer becomes visible and the core is not heard.
const ROUNDS: usize = 4;

/// How long a command that must come after answers waits before it looks whether the guest has made room for them.
const BLOCKED: Duration = Duration::from_millis(1);

/// A command under way, and when it came.
#[derive(Debug)]
pub(crate) struct Flight {
    job: Job,
    began: Instant,
    class: Class,
}

/// A command that has not begun, or what it does next.
pub(crate) type Pending = (Operation, Flight);

/// A reset, answered when the commands that were under way when it came have ended.
#[derive(Debug)]
pub(super) struct Reset {
    pub request: Request,
    /// Whose commands; `None`: those of all units.
    pub place: Option<usize>,
    /// Commands that began in an epoch before this one are waited for.
    pub epoch: u64,
    /// How many of those there still are.
    pub waiting: usize,
}

impl Controller {
    /// A command needs the disk. It begins as soon as its unit's queue lets it.
    pub(super) fn start(&mut self, operation: Operation, job: Job) {
        let now = self.now();
        let class = match operation.kind {
            Kind::Read { .. } => Class::Read,
            Kind::Write { .. } => Class::Write,
            Kind::Flush => Class::Flush,
            Kind::Punch { .. } | Kind::Zero { .. } => Class::Discard,
        };
        let (place, alone, cost) = (job.unit, job.exclusive, Cost::of(&operation));
        let once = job.repeat == Repeat::Differs;
        let item = (operation, Flight { job, began: now, class });
        self.under_way += 1;
        let queue = &mut self.luns[place].queue;
        queue.answered(self.answered);
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

    fn hand_over(&mut self, operation: Operation, flight: Flight) {
        let place = flight.job.unit;
        match self.uring.start(operation, flight) {
            Ok(bounced) => self.luns[place].stats.bounced += u64::from(bounced),
            Err(error) => broken(&error),
        }
    }

    /// The next operation of a command that has begun.
    fn again(&mut self, operation: Operation, flight: Flight) {
        // The rest of a transfer has been paid for with its beginning; what we repeat for the guest has not.
        let cost = Cost::of(&operation);
        if !matches!(operation.memory, Memory::Guest(_)) && cost.bytes > 0 {
            let now = self.now();
            self.luns[flight.job.unit].queue.moved(now, cost);
        }
        self.hand_over(operation, flight);
    }

    /// Somebody waits for the end of these requests of a unit: no limit holds them up any more.
    pub(super) fn hurry(&mut self, place: usize, which: impl Fn(&Request) -> bool) {
        if self.luns[place].queue.has_waiting() {
            // What they are let through by is the next `pump`: they are due now, and the loop is told so by `wake_at`.
            let now = self.now();
            self.luns[place].queue.hurry(now, |(_, flight)| which(&flight.job.request));
        }
    }

    /// The time, as it was when this batch first asked.
    fn now(&mut self) -> Instant {
        *self.clock.get_or_insert_with(Instant::now)
    }

    /// Has the queues go on whose limits allow it by now.
    fn wake(&mut self) {
        for place in 0..self.luns.len() {
            if let Some(then) = self.luns[place].queue.wake_at()
                && then <= self.now()
            {
                self.go_on(place);
            }
            if self.luns[place].queue.awaits_answers() {
                self.luns[place].queue.answered(self.answered);
                self.go_on(place);
            }
        }
    }

    /// The runtime calls: the guest has what was submitted before, unless it has no room for it.
    pub(super) fn note_answered(&mut self, channels: &Channels) {
        if self.answered == self.round {
            return;
        }
        if !self.hands_over && self.open.iter().any(|open| channels.is_blocked(*open)) {
            self.ask_again = Instant::now() + BLOCKED;
        } else {
            self.answered = self.round;
        }
    }

    /// Hands over what is queued and finishes what has ended, until neither is left or it takes too long.
    pub(super) fn pump(&mut self, channels: &mut Channels) {
        self.notify(channels);
        self.wake();
        for _ in 0..ROUNDS {
            self.submit_queued();
            self.clock = None;
            let mut ended = false;
            while let Some((flight, operation, result)) = self.uring.take_ended() {
                ended = true;
                self.step(flight, operation, result, channels);
            }
            if !ended {
                return;
            }
        }
        // What of this completes at once, the next turn finds.
        self.submit_queued();
        self.clock = None;
    }

    fn step(
        &mut self,
        mut flight: Flight,
        operation: Operation,
        result: io::Result<u32>,
        channels: &mut Channels,
    ) {
        let kind = operation.kind;
        let job = &mut flight.job;
        let lun = &mut self.luns[job.unit];
        let lost_writes = self.state.lost_writes.has(lun.lun);
        match job.work.step(operation, result) {
            Next::Again(operation) => self.again(operation, flight),
            Next::Begin(operation) => {
                job.request.note_begun(channels);
                self.again(operation, flight);
            }
            Next::Refused(sense) => self.finish(flight, Outcome::Check(&sense.to_fixed()), channels),
            Next::Done(moved) => match succeeded(kind, moved, lost_writes) {
                Ok(moved) => self.finish(flight, Outcome::Good(moved), channels),
                Err(sense) => self.finish(flight, Outcome::Check(&sense.to_fixed()), channels),
            },
            Next::Failed(sense, error) => {
                if lun.failed(kind, &error, lost_writes) && !lost_writes {
                    self.state.lost_writes.insert(lun.lun);
                    self.state_changed();
                }
                self.finish(flight, Outcome::Check(&sense.to_fixed()), channels);
            }
        }
    }

    pub(super) fn submit_queued(&mut self) {
        if let Err(error) = self.uring.submit() {
            broken(&error);
        }
    }

    fn finish(&mut self, flight: Flight, outcome: Outcome<'_>, channels: &mut Channels) {
        let took = self.now().saturating_duration_since(flight.began);
        let Flight { job, class, .. } = flight;
        let (place, epoch) = (job.unit, job.epoch);
        let answer = wire::answer_command(&job.srb, outcome);
        match job.repeat {
            Repeat::Same => self.answer(job.request, &answer, channels),
            // A recorded outcome comes without a state; the channel's next answer brings what is stale.
            Repeat::Differs => {
                job.request.record_outcome(channels, &answer);
                job.request.complete(channels, &answer);
            }
        }
        self.under_way -= 1;
        let lun = &mut self.luns[place];
        match outcome {
            Outcome::Good(moved) => lun.stats.ended(class, moved.into(), took),
            _ => lun.stats.errors += 1,
        }
        lun.queue.ended(self.round);
        self.go_on(place);
        if !self.resets.is_empty() {
            self.ended_before_reset(place, epoch, channels);
        }
        self.bury(channels);
    }

    /// Answers a reset, or waits with it for the commands that are under way.
    pub(super) fn reset(&mut self, address: Option<Address>, request: Request, channels: &mut Channels) {
        let place = address.map(|address| self.find(address));
        let waiting = match place {
            None => self.under_way,
            Some(Some(place)) => self.luns[place].queue.len(),
            Some(None) => 0,
        };
        if waiting == 0 {
            return self.answer(request, &wire::answer(status::SUCCESS), channels);
        }
        match place.flatten() {
            Some(place) => self.hurry(place, |_| true),
            None => (0..self.luns.len()).for_each(|place| self.hurry(place, |_| true)),
        }
        self.epoch += 1;
        self.resets.push(Reset { request, place: place.flatten(), epoch: self.epoch, waiting });
    }

    fn ended_before_reset(&mut self, place: usize, epoch: u64, channels: &mut Channels) {
        for reset in &mut self.resets {
            if epoch < reset.epoch && reset.place.is_none_or(|of| of == place) {
                reset.waiting -= 1;
            }
        }
        let ended: Vec<Reset> = self.resets.extract_if(.., |reset| reset.waiting == 0).collect();
        for reset in ended {
            self.answer(reset.request, &wire::answer(status::SUCCESS), channels);
        }
    }
}

/// Without the ring there is nothing that this process could still do; a successor can.
fn broken(error: &std::io::Error) -> ! {
    tracing::error!("the io_uring does not work any more: {error}");
    std::process::exit(1)
}
