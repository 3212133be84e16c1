//! How the guest of a benchmark waits for the end of its reads.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a processor that has nothing to do is kept by KVM before it goes to sleep: `halt_poll_ns` of x86, as Linux has it unless told
/// otherwise.
pub const HALT_POLL: Duration = Duration::from_micros(200);

/// How a guest waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Wait {
    /// As a stock driver on a processor under KVM: for an interrupt, of which KVM looks out for [`HALT_POLL`] before the processor's thread
    /// sleeps.
    #[default]
    Halt,
    /// For an interrupt, and the processor's thread sleeps at once.
    Sleep,
    /// Looks at the ring all the time.
    Poll,
}

impl Wait {
    /// How long to look out before sleeping.
    pub fn looks_out(self) -> Duration {
        if self == Wait::Halt { HALT_POLL } else { Duration::ZERO }
    }
}

/// Waits until one of `wires` is readable, at most `timeout`, and looks out for it for a while before it sleeps. True: one is.
pub fn readable(wires: &[BorrowedFd<'_>], looks_out: Duration, timeout: Duration) -> bool {
    let mut wires: Vec<PollFd<'_>> = wires.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    if !looks_out.is_zero() {
        let begin = Instant::now();
        while begin.elapsed() < looks_out.min(timeout) {
            if poll(&mut wires, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
                return true;
            }
        }
    }
    // Rounded up, or a wait of less than a millisecond would be none.
    let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    poll(&mut wires, timeout).is_ok_and(|ready| ready > 0)
}
