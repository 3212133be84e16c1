//! Frames from one TAP to the other and back, as they are: what any way between them is measured by.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::unistd::{read, write};

use super::{LONGEST, wait};

/// Frames from one TAP before the other one has its turn.
const TURN: usize = 64;

/// Moves frames until it is stopped.
pub fn forward(taps: [&OwnedFd; 2], stop: &AtomicBool) -> anyhow::Result<()> {
    let mut frame = vec![0; LONGEST];
    while !stop.load(Ordering::Relaxed) {
        let one = turn(taps[0], taps[1], &mut frame)?;
        let other = turn(taps[1], taps[0], &mut frame)?;
        if !one && !other {
            wait(&[taps[0].as_fd(), taps[1].as_fd()]);
        }
    }
    Ok(())
}

fn turn(from: &OwnedFd, to: &OwnedFd, frame: &mut [u8]) -> anyhow::Result<bool> {
    for n in 0..TURN {
        match read(from, frame) {
            // What the stack does not want (its interface may be down) is not our concern.
            Ok(len) => drop(write(to, &frame[..len])),
            Err(Errno::EAGAIN) => return Ok(n > 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Sends the same frame again and again until it is stopped; how often.
pub fn flood(tap: &OwnedFd, frame: &[u8], stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..TURN {
            match write(tap, frame) {
                Ok(_) => count += 1,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(count)
}
