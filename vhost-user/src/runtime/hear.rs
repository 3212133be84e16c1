//! What the front end says, and what it is told.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use ipc::event::Doorbell;
use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::{FIRST_QUEUE, MESSAGES, Runtime, RuntimeError};
use crate::connection::ConnectionError;
use crate::face::Face;
use crate::session::{Answer, Effect};
use crate::wire::request;

impl<F: Face> Runtime<F> {
    /// Hears what the front end has said.
    pub(super) fn hear(&mut self) -> Result<(), RuntimeError> {
        for _ in 0..MESSAGES {
            let Some(front_end) = &mut self.front_end else { return Ok(()) };
            if !front_end.speaks || front_end.stopping.is_some() {
                return Ok(());
            }
            let (header, message) = match front_end.connection.hear() {
                Ok(Some(heard)) => heard,
                Ok(None) => {
                    front_end.speaks = false;
                    return Ok(());
                }
                Err(ConnectionError::Closed) => {
                    tracing::info!("the front end has left");
                    self.disconnect()?;
                    return Ok(());
                }
                Err(error) => return self.cut_off(&error.to_string()),
            };
            let ack = header.need_reply && !message.is_question() && front_end.session.acknowledges();
            tracing::trace!(?message, "heard");
            let mut effect = Effect::default();
            let obeyed = front_end.session.obey(message, &mut self.face, &mut self.queues, &mut effect);
            if let Some(bell) = effect.forget.take() {
                self.forget(&bell);
            }
            let said = match obeyed {
                Ok(answer) => {
                    self.follow(effect)?;
                    self.say(header.request, answer, ack)
                }
                Err(fault) => {
                    if ack && let Some(front_end) = &self.front_end {
                        let _ = front_end.connection.answer(header.request, &1u64.to_ne_bytes(), None);
                    }
                    return self.cut_off(&fault.to_string());
                }
            };
            if let Err(error) = said {
                return self.cut_off(&format!("an answer cannot be sent: {error}"));
            }
        }
        Ok(())
    }

    fn follow(&mut self, effect: Effect) -> Result<(), RuntimeError> {
        if let Some(queue) = effect.watch
            && let Some(number) =
                self.queues.slots.get(usize::from(queue)).and_then(|slot| slot.kick_number())
        {
            let token = Token(FIRST_QUEUE + usize::from(queue));
            let watched = self.poll.registry().register(&mut SourceFd(&number), token, Interest::READABLE);
            if let Err(error) = watched {
                return self.cut_off(&format!("an event descriptor cannot be watched: {error}"));
            }
        }
        if let Some(queue) = effect.started {
            tracing::debug!(queue, "started");
            self.face.started(queue, &mut self.queues);
        }
        Ok(())
    }

    /// A doorbell is not watched any more. Closing it would not do: the front end has it open, too, and epoll watches what is open.
    fn forget(&self, bell: &Doorbell) {
        if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&bell.as_raw_fd())) {
            tracing::debug!("a doorbell cannot be forgotten: {error}");
        }
    }

    fn say(&mut self, what: u32, answer: Answer, ack: bool) -> io::Result<()> {
        let Some(front_end) = &mut self.front_end else { return Ok(()) };
        let connection = &front_end.connection;
        match answer {
            Answer::Refused(why) => {
                // A guest can do that as often as it likes.
                self.refused += 1;
                if self.refused.is_power_of_two() {
                    let so_far = self.refused;
                    tracing::warn!(so_far, "a write to the configuration space is refused: {why}");
                }
                if ack { connection.answer(what, &1u64.to_ne_bytes(), None) } else { Ok(()) }
            }
            Answer::Done if ack => connection.answer(what, &0u64.to_ne_bytes(), None),
            Answer::Done => Ok(()),
            Answer::Long(value) => connection.answer(what, &value.to_ne_bytes(), None),
            Answer::Inflight(layout, memory) => {
                connection.answer(what, &layout.encode(), Some(memory.as_fd()))
            }
            Answer::Config { offset, flags, bytes } => {
                let mut payload = Vec::with_capacity(12 + bytes.len());
                for word in [offset, bytes.len() as u32, flags] {
                    payload.extend_from_slice(&word.to_ne_bytes());
                }
                payload.extend_from_slice(&bytes);
                connection.answer(what, &payload, None)
            }
            Answer::AfterStop(queue) => {
                front_end.stopping = Some(queue);
                if let Some(live) =
                    self.queues.slots.get_mut(usize::from(queue)).and_then(|slot| slot.live.as_mut())
                {
                    live.stopping = true;
                    self.face.stopping(queue, &mut self.queues);
                }
                Ok(())
            }
        }
    }

    /// Answers a front end that waits for the end of a queue, if it has come.
    pub(super) fn report_stop(&mut self) {
        let Some(front_end) = &mut self.front_end else { return };
        let Some(queue) = front_end.stopping else { return };
        if !self.queues.is_over(queue) {
            return;
        }
        front_end.stopping = None;
        front_end.speaks = true;
        let (base, kick) = self.queues.stop(queue);
        tracing::debug!(queue, base, "stopped");
        let payload: Vec<u8> =
            [u32::from(queue), base.into()].iter().flat_map(|word| word.to_ne_bytes()).collect();
        // If it cannot be sent the front end is gone, which is noticed when it is read from.
        let _ = front_end.connection.answer(request::GET_VRING_BASE, &payload, None);
        if let Some(kick) = kick {
            self.forget(&kick);
        }
    }

    fn cut_off(&mut self, why: &str) -> Result<(), RuntimeError> {
        tracing::error!("the front end is cut off: {why}");
        self.disconnect()
    }

    fn disconnect(&mut self) -> Result<(), RuntimeError> {
        let Some(front_end) = self.front_end.take() else { return Ok(()) };
        // Answers that are ready are the guest's.
        self.queues.publish_all();
        drop(front_end);
        for kick in self.queues.slots.iter().filter_map(|slot| slot.kick.as_ref()) {
            self.forget(kick);
        }
        self.queues.end_session();
        self.face.disconnected(&mut self.queues);
        self.knocks = true;
        self.notifier.status(true, "waiting for a front end");
        Ok(())
    }
}
