//! The supervisor's own socket: operators ask, and are answered when there is something to say.
//!
//! It must never wait for an operator, and never serve one who is not root or the user that the VM belongs to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipc::socket::{Listener, Peer, SocketError};
use nix::unistd::geteuid;

use super::machine::ProcessId;
use super::machine::policy::{CANDIDATE_PATIENCE, SWAP_PATIENCE};
use crate::device::core::{CONTROL_PATIENCE, REMOVAL_PATIENCE};
use crate::device::protocol::{Reply, Request};

/// Operators at a time. People and their scripts come one by one; a flood of connections costs itself.
const MOST_CLIENTS: usize = 32;

/// A connection on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// How long the core may take to say what it knows, before a list is given without.
const LIST_PATIENCE: Duration = Duration::from_millis(500);

/// How long an operator waits for a restarted device: longer than the longest pause between two attempts.
const RESTART_PATIENCE: Duration = Duration::from_secs(15);

/// How long an operator waits for the end of a swap. The state machine has time limits for every step of it, and answers after them:
/// this one is for none of them.
const SWAP_ANSWER: Duration = Duration::from_secs(60);
const _: () = assert!(CANDIDATE_PATIENCE.as_secs() + SWAP_PATIENCE.as_secs() + 10 < SWAP_ANSWER.as_secs());

/// How long an operator waits for a device that is new. Its memory has to be pinned first, all of it: some seconds for a large VM whose memory was
/// not there yet.
const ATTACH_PATIENCE: Duration = Duration::from_secs(60);

/// How long an operator waits for the end of a device: the guest's driver may take its time, which is limited by its process, and then processes have
/// to end and memory to be unpinned.
const DETACH_PATIENCE: Duration = Duration::from_secs(120);
const _: () = assert!(CONTROL_PATIENCE.as_secs() + REMOVAL_PATIENCE.as_secs() <= DETACH_PATIENCE.as_secs());

/// When nobody can be taken in, because there are no descriptors left, the next attempt is after this time: who waits is still there,
/// and trying without a pause would be all that we do.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an operator waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing yet.
    Nothing,
    /// The list, with what the core knows.
    List,
    /// That another process than this one serves the device.
    Restart {
        /// The device's number.
        device: usize,
        /// The process that served it.
        old: Option<ProcessId>,
    },
    /// The end of a swap.
    Swap {
        /// The device's number.
        device: usize,
    },
    /// That the process that serves the device has answered about its disks.
    Change {
        /// The device's number.
        device: usize,
    },
    /// That a device is served that was not there before.
    Attach {
        /// Which of those that were wanted so far.
        ticket: u64,
    },
    /// That a device is gone.
    Detach {
        /// The device's number.
        device: usize,
    },
}

#[derive(Debug)]
struct Client {
    peer: Peer,
    wish: Wish,
    until: Instant,
}

/// The socket, and the operators on it.
#[derive(Debug)]
pub struct Control {
    listener: Listener,
    /// Who may ask: root, and the user that the supervisor runs as.
    users: [u32; 2],
    clients: Vec<Client>,
    /// Until then nobody is taken in.
    paused: Option<Instant>,
}

impl Control {
    /// Listens at `path`.
    pub fn new(path: &Path) -> Result<Self, SocketError> {
        let listener = Listener::bind(path)?;
        Ok(Self { listener, users: [0, geteuid().as_raw()], clients: Vec::new(), paused: None })
    }

    /// Everything to be watched.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waiting = self.clients.iter().filter(|client| client.wish == Wish::Nothing);
        let listener = self.paused.is_none().then(|| self.listener.as_fd());
        listener.into_iter().chain(waiting.map(|client| client.peer.as_fd()))
    }

    /// Takes in who has come, and returns what was asked, each with the place of the client for [`Control::wait_for`] and
    /// [`Control::answer`].
    pub fn requests(&mut self, now: Instant) -> Vec<(usize, Request, Vec<OwnedFd>)> {
        self.take_in(now);
        let mut requests = Vec::new();
        let mut gone = Vec::new();
        for (place, client) in self.clients.iter().enumerate() {
            if client.wish != Wish::Nothing {
                continue;
            }
            match client.peer.try_recv::<Request>() {
                Ok((request, fds)) => requests.push((place, request, fds)),
                Err(SocketError::WouldBlock) if now < client.until => {}
                Err(SocketError::Malformed(_)) => {
                    let reason = "this supervisor does not know that request: its bulkhead is of another release than yours";
                    let _ = client.peer.send(&Reply::Failed { reason: reason.to_owned() }, &[]);
                    gone.push(place);
                }
                Err(_) => gone.push(place),
            }
        }
        // Places must stay what they are until the requests are dealt with: a client that is gone waits for nothing.
        for place in gone {
            self.clients[place].until = now;
        }
        requests
    }

    fn take_in(&mut self, now: Instant) {
        while self.paused.is_none() {
            let peer = match self.listener.accept() {
                Ok(peer) => peer,
                Err(SocketError::WouldBlock) => return,
                Err(error) => {
                    tracing::debug!(%error, "nobody can be taken in");
                    self.paused = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            if let Err(error) = peer.check_user(&self.users) {
                tracing::warn!(%error, "somebody else wanted to manage this VM's devices");
            } else if self.clients.len() < MOST_CLIENTS && peer.set_nonblocking(true).is_ok() {
                self.clients.push(Client { peer, wish: Wish::Nothing, until: now + IDLE });
            }
        }
    }

    /// The client waits for something.
    pub fn wait_for(&mut self, place: usize, wish: Wish, now: Instant) {
        let patience = match wish {
            Wish::Nothing => IDLE,
            Wish::List => LIST_PATIENCE,
            Wish::Restart { .. } => RESTART_PATIENCE,
            Wish::Swap { .. } => SWAP_ANSWER,
            Wish::Change { .. } => CONTROL_PATIENCE,
            Wish::Attach { .. } => ATTACH_PATIENCE,
            Wish::Detach { .. } => DETACH_PATIENCE,
        };
        if let Some(client) = self.clients.get_mut(place) {
            client.wish = wish;
            client.until = now + patience;
        }
    }

    /// Answers the client; it is let go of with the next [`Control::tick`].
    pub fn answer(&mut self, place: usize, reply: &Reply, now: Instant) {
        if let Some(client) = self.clients.get_mut(place) {
            send(&client.peer, reply);
            client.wish = Wish::Nothing;
            client.until = now;
        }
    }

    /// Answers everybody whose wish this is.
    pub fn answer_all(&mut self, wish: impl Fn(Wish) -> bool, reply: &Reply) {
        self.clients.retain(|client| {
            let is_it = client.wish != Wish::Nothing && wish(client.wish);
            if is_it {
                send(&client.peer, reply);
            }
            !is_it
        });
    }

    /// Lets go of everybody whose time is over; `late` is what answers a wish then.
    pub fn tick(&mut self, now: Instant, late: impl Fn(Wish) -> Option<Reply>) {
        self.paused = self.paused.filter(|until| now < *until);
        self.clients.retain(|client| {
            let is_over = now >= client.until;
            if is_over && let Some(reply) = late(client.wish) {
                send(&client.peer, &reply);
            }
            !is_over
        });
    }

    /// Whether somebody waits for this.
    pub fn is_wished(&self, wish: Wish) -> bool {
        self.clients.iter().any(|client| client.wish == wish)
    }

    /// When [`Control::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.until).chain(self.paused).min()
    }
}

/// An operator who does not wait for the answer does not want it.
fn send(peer: &Peer, reply: &Reply) {
    if let Err(error) = peer.send(reply, &[]) {
        tracing::debug!(%error, "an operator did not wait for the answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_taken_in_waits_and_nobody_spins_for_them() {
        let path = std::env::temp_dir().join(format!("bulkhead-control-{}", std::process::id()));
        let mut control = Control::new(&path).unwrap();
        let _waiting = Peer::connect(&path).unwrap();
        let now = Instant::now();
        control.paused = Some(now + ACCEPT_PAUSE);
        assert!(control.requests(now).is_empty());
        assert_eq!((control.fds().count(), control.clients.len()), (0, 0), "the listener is not watched");
        assert_eq!(control.deadline(), Some(now + ACCEPT_PAUSE));
        control.tick(now + ACCEPT_PAUSE, |_| None);
        assert_eq!(control.fds().count(), 1);
        let _ = control.requests(now + ACCEPT_PAUSE);
        assert_eq!(control.clients.len(), 1);
        std::fs::remove_file(&path).unwrap();
    }
}
