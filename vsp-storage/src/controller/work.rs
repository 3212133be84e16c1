//! Work for the disks: handed to the engine, noted when its effect begins, answered when it is over.

use std::time::{Duration, Instant};

use vsp::{Channels, Request};

use super::Controller;
use crate::engine::{Failure, Flight, ROUNDS, Step};
use crate::job::Job;
use crate::scsi::Repeat;
use crate::uring::{Kind, Operation};
use crate::wire::{self, Address, Outcome, Srb, status};

/// How long a command that must come after answers waits before it looks whether the guest has made room for them.
const BLOCKED: Duration = Duration::from_millis(1);

/// A SCSI command under way.
#[derive(Debug)]
pub(super) struct Command {
    /// What the guest waits for.
    pub request: Request,
    /// Its words, for the answer.
    pub srb: Srb,
    /// How many resets had been asked for when it began.
    pub epoch: u64,
}

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
    /// A command needs the disk.
    pub(super) fn start(&mut self, operation: Operation, job: Job<Command>) {
        self.engine.start(operation, job, self.answered);
    }

    /// Somebody waits for the end of these requests of a unit: no limit holds them up any more.
    pub(super) fn hurry(&mut self, place: usize, which: impl Fn(&Request) -> bool) {
        self.engine.hurry(place, |command| which(&command.request));
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

    /// Hands over what is queued and finishes what has ended; again as long as something is queued by that, unless it takes too long. What
    /// ends meanwhile is the next turn's: the guest has the answers to the first while it does.
    pub(super) fn pump(&mut self, channels: &mut Channels) {
        self.notify(channels);
        self.engine.wake(self.answered);
        for _ in 0..ROUNDS {
            self.engine.submit();
            let mut ended = false;
            while let Some(step) = self.engine.next() {
                ended = true;
                match step {
                    Step::Again => {}
                    Step::Begin(operation, flight) => {
                        flight.job.context.request.note_begun(channels);
                        self.engine.again(operation, flight);
                    }
                    Step::Over(flight, kind, outcome) => self.over(flight, kind, outcome, channels),
                }
            }
            if !ended || !self.engine.has_queued() {
                return;
            }
        }
        // What of this completes at once, the next turn finds.
        self.engine.submit();
    }

    fn over(
        &mut self,
        flight: Flight<Command>,
        kind: Kind,
        outcome: Result<u32, Failure>,
        channels: &mut Channels,
    ) {
        let place = flight.trace.unit;
        let number = self.engine.luns[place].lun;
        let lost_before = self.state.lost_writes.has(number);
        let (outcome, lost) = self.engine.judge(place, kind, outcome, lost_before);
        if lost {
            self.state.lost_writes.insert(number);
            self.state_changed();
        }
        match outcome {
            Ok(moved) => self.finish(flight, Outcome::Good(moved), channels),
            Err(sense) => self.finish(flight, Outcome::Check(&sense.to_fixed()), channels),
        }
    }

    fn finish(&mut self, flight: Flight<Command>, outcome: Outcome<'_>, channels: &mut Channels) {
        let Flight { job, trace } = flight;
        let Command { request, srb, epoch } = job.context;
        let answer = wire::answer_command(&srb, outcome);
        match job.repeat {
            Repeat::Same => self.answer(request, &answer, channels),
            // A recorded outcome comes without a state; the channel's next answer brings what is stale.
            Repeat::Differs => {
                request.record_outcome(channels, &answer);
                request.complete(channels, &answer);
            }
        }
        let moved = if let Outcome::Good(moved) = outcome { Some(moved) } else { None };
        self.engine.over(trace, moved, self.round);
        if !self.resets.is_empty() {
            self.ended_before_reset(trace.unit, epoch, channels);
        }
        self.bury(channels);
    }

    /// Answers a reset, or waits with it for the commands that are under way.
    pub(super) fn reset(&mut self, address: Option<Address>, request: Request, channels: &mut Channels) {
        let place = address.map(|address| self.find(address));
        let waiting = match place {
            None => self.engine.under_way,
            Some(Some(place)) => self.engine.luns[place].queue.len(),
            Some(None) => 0,
        };
        if waiting == 0 {
            return self.answer(request, &wire::answer(status::SUCCESS), channels);
        }
        match place.flatten() {
            Some(place) => self.hurry(place, |_| true),
            None => self.engine.hurry_all(|_| true),
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
