//! Work for the disks: handed to the ring, stepped on when an operation has ended, answered when it is over.

use vsp::{Channels, Request};

use super::Controller;
use crate::job::{Job, Next};
use crate::lun::succeeded;
use crate::scsi::Repeat;
use crate::uring::Operation;
use crate::wire::{self, Outcome, status};

/// How often in one turn operations are handed over whose predecessors completed at once. One command can have
/// hundreds in a row (WRITE SAME, UNMAP), and meanwhile no answer becomes visible and the core is not heard.
const ROUNDS: usize = 4;

/// A reset, answered when the commands that were in flight when it came have ended.
#[derive(Debug)]
pub(super) struct Reset {
    pub request: Request,
    /// Commands that began in an epoch before this one are waited for.
    pub epoch: u64,
    /// How many of those there still are.
    pub waiting: usize,
}

impl Controller {
    pub(super) fn start(&mut self, operation: Operation, job: Job) {
        if let Err(error) = self.uring.start(operation, job) {
            broken(&error);
        }
    }

    /// Hands over what is queued and finishes what has ended, until neither is left or it takes too long.
    pub(super) fn pump(&mut self, channels: &mut Channels) {
        for _ in 0..ROUNDS {
            self.submit_queued();
            let mut ended = false;
            while let Some((mut job, operation, result)) = self.uring.take_ended() {
                ended = true;
                let kind = operation.kind;
                let lun = &mut self.luns[job.unit];
                let lost_writes = self.state.lost_writes.has(lun.lun);
                match job.work.step(operation, result) {
                    Next::Again(operation) => self.start(operation, job),
                    Next::Done(moved) => match succeeded(kind, moved, lost_writes) {
                        Ok(moved) => self.finish(job, Outcome::Good(moved), channels),
                        Err(sense) => self.finish(job, Outcome::Check(&sense.to_fixed()), channels),
                    },
                    Next::Failed(sense, error) => {
                        if lun.failed(kind, &error, lost_writes) && !lost_writes {
                            self.state.lost_writes.insert(lun.lun);
                            self.state_changed();
                        }
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

    pub(super) fn submit_queued(&mut self) {
        if let Err(error) = self.uring.submit() {
            broken(&error);
        }
    }

    pub(super) fn finish(&mut self, job: Job, outcome: Outcome<'_>, channels: &mut Channels) {
        let answer = wire::answer_command(&job.srb, outcome);
        match job.repeat {
            Repeat::Same => self.answer(job.request, &answer, channels),
            // A recorded outcome comes without a state; the channel's next answer brings what is stale.
            Repeat::Differs => {
                job.request.record_outcome(channels, &answer);
                job.request.complete(channels, &answer);
            }
        }
        for reset in &mut self.resets {
            if job.epoch < reset.epoch {
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
