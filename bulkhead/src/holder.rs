//! Keeps open what processes of a VM under systemd are connected to, in a process of its own: it opens that once and gives it to
//! each of them that connects to a socket of its.
//!
//! So what has to outlive the processes does, and they need no right to open anything. systemd holds the sockets, so nobody comes too early.
//! It must never wait for anybody who comes, and never read from or write to what it keeps.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Instant;

use anyhow::Context;
use ipc::socket::{Listener, SocketError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

/// The first of the sockets that systemd hands over (`sd_listen_fds(3)`).
pub const FIRST_LISTENER: i32 = 3;

/// What is kept.
pub trait Held {
    /// What a process is told beside the descriptors.
    type Handed: Serialize;

    /// What is handed over at the counter with that number.
    fn hand(&self, counter: usize) -> (Self::Handed, Vec<BorrowedFd<'_>>);

    /// Whether there is something at that counter yet. Until then whoever comes there waits in its queue.
    fn is_open(&self, _counter: usize) -> bool {
        true
    }

    /// Readable when [`Held::tick`] has something to do.
    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// When [`Held::tick`] has something to do.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Time has passed.
    fn tick(&mut self, _now: Instant) {}
}

/// Where somebody is given something.
#[derive(Debug)]
pub struct Counter {
    /// The socket.
    pub listener: Listener,
    /// Who is given it.
    pub users: Vec<u32>,
}

/// Hands over at the counters to those who may come there, as long as `goes_on` says so after each round.
pub fn serve<H: Held>(
    counters: &[Counter],
    mut held: H,
    mut goes_on: impl FnMut(&H) -> bool,
) -> anyhow::Result<()> {
    while goes_on(&held) {
        let watch = |number| if held.is_open(number) { PollFlags::POLLIN } else { PollFlags::empty() };
        let watched = counters.iter().enumerate();
        let watched = watched.map(|(number, counter)| PollFd::new(counter.listener.as_fd(), watch(number)));
        let own = held.pidfd().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = watched.chain(own).collect();
        let timeout = held.deadline().map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
        let somebody: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        // Who has something old sees its end, ends, and comes again: nothing has to be told to anybody.
        held.tick(Instant::now());
        for (number, (counter, _)) in counters.iter().zip(&somebody).enumerate().filter(|(_, (_, is))| **is) {
            if let Err(error) = hand_over(counter, number, &held) {
                tracing::warn!(%error, "somebody came and was given nothing");
            }
        }
    }
    Ok(())
}

fn hand_over(counter: &Counter, number: usize, held: &impl Held) -> Result<(), SocketError> {
    let peer = match counter.listener.accept() {
        Err(SocketError::WouldBlock) => return Ok(()),
        peer => peer?,
    };
    peer.check_user(&counter.users)?;
    // Whoever does not listen is not waited for.
    peer.set_nonblocking(true)?;
    let (handed, fds) = held.hand(number);
    peer.send(&handed, &fds)
}

/// Says that we are there, as systemd wants to know it (`sd_notify(3)`). Without systemd nobody is told.
pub fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = path.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = told {
        tracing::warn!(%error, "systemd cannot be told that we are ready");
    }
}
