//! Doorbells: non-blocking eventfds. A doorbell says "look again" and carries no data.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// One end of a doorbell. Both ends are the same open file, so either may signal or drain it.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// A new, silent doorbell.
    pub fn new() -> io::Result<Doorbell> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Doorbell { fd: EventFd::from_value_and_flags(0, flags)?.into() })
    }

    /// Takes an eventfd that was made elsewhere and makes it non-blocking.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Doorbell> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        if !flags.contains(OFlag::O_NONBLOCK) {
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Doorbell { fd })
    }

    /// Rings. A counter at its limit is already ringing, so that is no error.
    pub fn signal(&self) -> io::Result<()> {
        match nix::unistd::write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Silences it; true if it had been ringing.
    pub fn drain(&self) -> io::Result<bool> {
        match nix::unistd::read(&self.fd, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Doorbell> for OwnedFd {
    fn from(bell: Doorbell) -> OwnedFd {
        bell.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_until_drained() {
        let bell = Doorbell::new().unwrap();
        assert!(!bell.drain().unwrap());
        bell.signal().unwrap();
        bell.signal().unwrap();
        assert!(bell.drain().unwrap());
        assert!(!bell.drain().unwrap());
    }

    #[test]
    fn a_blocking_eventfd_is_tamed() {
        let fd: OwnedFd = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap().into();
        assert!(!Doorbell::from_fd(fd).unwrap().drain().unwrap());
    }
}
