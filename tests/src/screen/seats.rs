//! The socket pairs between devices and console. Whoever supervises them keeps both ends of each, so that no death is the end
//! of a file.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use seat::{Message, Received, Seat, Sent};

use crate::steps::LIMIT;

/// Two connected ends.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The device's.
    pub device: Arc<OwnedFd>,
    /// The console's.
    pub console: Arc<OwnedFd>,
}

impl Pair {
    fn new() -> anyhow::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (device, console) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok(Self { device: Arc::new(device), console: Arc::new(console) })
    }
}

/// One pair for each device.
#[derive(Debug, Clone)]
pub struct Seats {
    /// The screen's.
    pub video: Pair,
    /// The keyboard's.
    pub keyboard: Pair,
    /// The mouse's.
    pub mouse: Pair,
}

impl Seats {
    /// New ones.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { video: Pair::new()?, keyboard: Pair::new()?, mouse: Pair::new()? })
    }
}

/// A console's end, played by a test.
#[derive(Debug)]
pub struct Played<Out, In> {
    seat: Seat<Out, In>,
}

/// The screen's.
pub type PlayedVideo = Played<seat::video::FromConsole, seat::video::ToConsole>;
/// The keyboard's.
pub type PlayedKeyboard = Played<seat::keyboard::FromConsole, seat::keyboard::ToConsole>;
/// The mouse's.
pub type PlayedMouse = Played<seat::mouse::FromConsole, seat::mouse::ToConsole>;

impl<Out: Message, In: Message + std::fmt::Debug> Played<Out, In> {
    /// Takes the console's end of a pair.
    pub fn new(pair: &Pair) -> anyhow::Result<Self> {
        Ok(Self { seat: Seat::from_fd(pair.console.try_clone()?)? })
    }

    /// Says something, and waits while the socket is full.
    pub fn say(&self, message: &Out) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.seat.send(message, None)? == Sent::Full {
            ensure!(
                readable_or_writable(&self.seat, PollFlags::POLLOUT, deadline)?,
                "the device does not listen"
            );
        }
        Ok(())
    }

    /// Says something unless the socket is full; whether it did.
    pub fn try_say(&self, message: &Out) -> anyhow::Result<bool> {
        Ok(self.seat.send(message, None)? == Sent::Whole)
    }

    /// Sends any bytes; whether there was room.
    pub fn try_say_bytes(&self, bytes: &[u8]) -> anyhow::Result<bool> {
        Ok(self.seat.send_bytes(bytes, &[])? == Sent::Whole)
    }

    /// What the device says next; `None` if it says nothing in time.
    pub fn hear(&self, timeout: Duration) -> anyhow::Result<Option<Received<In>>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(received) = self.seat.receive()? {
                return Ok(Some(received));
            }
            if !readable_or_writable(&self.seat, PollFlags::POLLIN, deadline)? {
                return Ok(None);
            }
        }
    }

    /// Listens until the device says what is waited for.
    pub fn until<T>(&self, what: &str, mut pick: impl FnMut(Received<In>) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let received = self.hear(left)?.with_context(|| format!("the device does not say: {what}"))?;
            if let Some(picked) = pick(received) {
                return Ok(picked);
            }
        }
    }

    /// Everything that the device has said and says within a moment.
    pub fn drain(&self) -> anyhow::Result<Vec<In>> {
        let mut all = Vec::new();
        while let Some(received) = self.hear(Duration::from_millis(30))? {
            all.push(received.message);
        }
        Ok(all)
    }
}

fn readable_or_writable(fd: &impl AsFd, flags: PollFlags, deadline: Instant) -> anyhow::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
    let timeout = if left.is_zero() { PollTimeout::ZERO } else { timeout };
    Ok(poll(&mut [PollFd::new(fd.as_fd(), flags)], timeout)? > 0)
}
