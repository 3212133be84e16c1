//! The operator's terminal while a guest uses it as its serial console.
//!
//! The guest's output goes from the core straight to the terminal. Input passes through here, because one key is
//! ours: Ctrl-] is how the operator speaks to bulkhead instead of the guest. Whatever happens, the
//! terminal is given back as it was found.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use nix::unistd::{getpgrp, tcgetpgrp};

/// Ctrl-], the key that virsh, telnet and systemd-nspawn leave by; shells, editors and screen do not use it.
const ESCAPE: u8 = 0x1d;

/// Typed input that a guest does not read is kept up to this many bytes beyond what the pipe holds, and then lost, as on
/// any serial line: the escape has to work most of all when the guest hangs.
const MOST_PENDING: usize = 4096;

/// What the operator asked for with the escape key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End the VM now.
    Quit,
    /// Show what the escape key can do.
    Help,
}

/// What [`Request::Help`] shows.
pub const HELP: &str = "Ctrl-] q ends the VM at once, like pulling its plug; Ctrl-] Ctrl-] types Ctrl-] to the guest; \
                        any other key goes on";

/// The settings to go back to. Global because a panic has to find them.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Separates the operator's requests from what is typed to the guest.
#[derive(Debug, Default)]
enum Keys {
    #[default]
    Plain,
    /// Ctrl-] was the last key.
    Escaped,
}

impl Keys {
    /// Appends what the guest gets of `typed` to `guest`; stops at a request.
    fn feed(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Request> {
        for &key in typed {
            match (std::mem::take(self), key) {
                (Self::Plain, ESCAPE) => *self = Self::Escaped,
                (Self::Plain, key) | (Self::Escaped, key @ ESCAPE) => guest.push(key),
                (Self::Escaped, b'q' | b'Q') => return Some(Request::Quit),
                (Self::Escaped, _) => return Some(Request::Help),
            }
        }
        None
    }
}

/// The terminal in raw mode, and the pipe through which the core gets what is typed. Dropping it restores the terminal.
#[derive(Debug)]
pub struct Terminal {
    /// `None` once the core has closed its end.
    pipe: Option<PipeWriter>,
    pending: VecDeque<u8>,
    keys: Keys,
    raw: Termios,
}

impl Terminal {
    /// Takes over standard input if it is a terminal and we are in its foreground. Comes with the end of the pipe that
    /// is to be the core's standard input.
    pub fn take() -> io::Result<Option<(Self, PipeReader)>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin) != Ok(getpgrp()) {
            return Ok(None);
        }
        let saved = termios::tcgetattr(&stdin)?;
        let (reader, writer) = io::pipe()?;
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut raw = saved.clone();
        termios::cfmakeraw(&mut raw);
        // Our own lines, and those of the device processes, still need a carriage return for each line feed.
        raw.output_flags.insert(OutputFlags::OPOST);
        *saved_settings() = Some(saved);
        let keep = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            keep(info);
        }));
        let terminal = Self { pipe: Some(writer), pending: VecDeque::new(), keys: Keys::Plain, raw };
        terminal.enter_raw_mode()?;
        Ok(Some((terminal, reader)))
    }

    /// Switches to raw mode (again): a shell that stopped and continued us has changed the settings.
    pub fn enter_raw_mode(&self) -> io::Result<()> {
        Ok(termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.raw)?)
    }

    /// The pipe, if it should be watched for room.
    pub fn wants_room(&self) -> Option<BorrowedFd<'_>> {
        if self.pending.is_empty() { None } else { self.pipe.as_ref().map(AsFd::as_fd) }
    }

    /// Takes what was typed, passes it on as far as there is room, and returns what the operator asked for. `Err` when
    /// the terminal is gone.
    pub fn read(&mut self) -> io::Result<Option<Request>> {
        let mut typed = [0; 1024];
        let count = match nix::unistd::read(io::stdin(), &mut typed) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut guest = Vec::with_capacity(count);
        let request = self.keys.feed(&typed[..count], &mut guest);
        let room = MOST_PENDING - self.pending.len();
        self.pending.extend(guest.into_iter().take(room));
        self.flush();
        Ok(request)
    }

    /// Passes on what waits, as far as there is room.
    pub fn flush(&mut self) {
        while let (Some(pipe), false) = (&mut self.pipe, self.pending.is_empty()) {
            match pipe.write(self.pending.make_contiguous()) {
                Ok(count) => _ = self.pending.drain(..count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
        if self.pipe.is_none() {
            self.pending.clear();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

fn saved_settings() -> std::sync::MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Gives the terminal back; does nothing the second time.
fn restore() {
    if let Some(saved) = saved_settings().take() {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &saved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &mut Keys, text: &[u8]) -> (Vec<u8>, Option<Request>) {
        let mut guest = Vec::new();
        let request = keys.feed(text, &mut guest);
        (guest, request)
    }

    #[test]
    fn everything_but_the_escape_goes_to_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(typed(&mut keys, b"ls\r\x03\x01x"), (b"ls\r\x03\x01x".to_vec(), None));
    }

    #[test]
    fn the_escape_works_across_reads_and_types_itself_when_doubled() {
        let mut keys = Keys::default();
        assert_eq!(typed(&mut keys, b"a\x1d"), (b"a".to_vec(), None));
        assert_eq!(typed(&mut keys, b"\x1db\x1d"), (b"\x1db".to_vec(), None));
        assert_eq!(typed(&mut keys, b"q"), (vec![], Some(Request::Quit)));
        assert_eq!(typed(&mut keys, b"c\x1d?"), (b"c".to_vec(), Some(Request::Help)));
        assert_eq!(typed(&mut keys, b"d"), (b"d".to_vec(), None));
    }
}
