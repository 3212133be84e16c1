//! What a device process says about itself: systemd's notify protocol (`sd_notify(3)`), over a socket of its own.
//!
//! The same process says the same to systemd where that supervises it. Whatever comes is bounded, and nothing in it is believed
//! beyond what it means for the process that said it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

use super::machine::Word;

/// Longest message that is read, in bytes; the rest of a longer one is ignored.
const LONGEST: usize = 512;

/// Messages that are read in one go: more than the queue of a socket holds by default (`net.unix.max_dgram_qlen`), and an
/// end for a process that never stops.
const AT_ONCE: usize = 64;

/// Longest status that is kept, in characters.
const LONGEST_STATUS: usize = 120;

/// Begins the status of a process that has made a forbidden system call; its name follows (`sandbox::crash`).
const SECCOMP: &str = "seccomp: ";

/// The supervisor's end.
#[derive(Debug)]
pub struct Notify(OwnedFd);

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it means to the state machine.
    pub word: Word,
    /// The forbidden system call that the process dies of.
    pub forbidden: Option<String>,
}

impl Notify {
    /// A new socket, and its other end for the process. Neither end ever waits.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags)?;
        Ok((Self(ours), theirs))
    }

    /// What has come.
    pub fn messages(&self) -> impl Iterator<Item = Message> + '_ {
        let next = || loop {
            let mut buffer = [0; LONGEST];
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return None,
                Ok(len) => return Some(parse(buffer.get(..len).unwrap_or_default())),
                Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        };
        std::iter::from_fn(next).take(AT_ONCE)
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn parse(message: &[u8]) -> Message {
    let text = String::from_utf8_lossy(message);
    let mut found = Message { word: Word::Alive, forbidden: None };
    for line in text.lines() {
        match line.split_once('=') {
            // A status says more than that it is ready.
            Some(("READY", "1")) if found.word == Word::Alive => found.word = Word::Ready,
            Some(("STATUS", status)) if status.starts_with("serving") => found.word = Word::Serving,
            Some(("STATUS", status)) if status.starts_with("standing by") => found.word = Word::StandingBy,
            Some(("STATUS", status)) if status.starts_with("quiet") => found.word = Word::Quiet,
            Some(("STATUS", status)) => {
                found.forbidden = status.strip_prefix(SECCOMP).map(printable).or(found.forbidden);
            }
            _ => {}
        }
    }
    found
}

/// Text of a process's, fit for a terminal: it may be a guest that has written it.
pub fn printable(text: &str) -> String {
    text.chars().take(LONGEST_STATUS).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(message: &str) -> Word {
        parse(message.as_bytes()).word
    }

    #[test]
    fn a_status_says_more_than_readiness_and_the_rest_is_a_sign_of_life() {
        assert_eq!(word("READY=1"), Word::Ready);
        assert_eq!(word("READY=1\nSTATUS=standing by"), Word::StandingBy);
        assert_eq!(word("STATUS=quiet"), Word::Quiet);
        assert_eq!(word("STATUS=serving: 2 disks\nREADY=1\n"), Word::Serving);
        for other in ["WATCHDOG=1", "READY=0", "STATUS=fencing", "", "=", "nonsense", "\u{0}"] {
            assert_eq!(word(other), Word::Alive, "{other}");
        }
        assert_eq!(parse(b"\xff\xfe=\xff").word, Word::Alive);
    }

    #[test]
    fn a_forbidden_call_is_kept_and_made_harmless() {
        assert_eq!(parse(b"STATUS=seccomp: socket(41)").forbidden.as_deref(), Some("socket(41)"));
        assert_eq!(parse(b"STATUS=seccomp: \x1b[2Jx").forbidden.as_deref(), Some("?[2Jx"));
        let long = format!("STATUS=seccomp: {}", "x".repeat(400));
        assert_eq!(parse(long.as_bytes()).forbidden.map(|call| call.len()), Some(LONGEST_STATUS));
    }

    #[test]
    fn messages_travel_and_an_endless_stream_ends() {
        let (ours, theirs) = Notify::new().unwrap();
        let say = |text: &str| nix::unistd::write(&theirs, text.as_bytes());
        say("READY=1").unwrap();
        say("STATUS=serving").unwrap();
        assert_eq!(ours.messages().map(|m| m.word).collect::<Vec<_>>(), [Word::Ready, Word::Serving]);
        while say("WATCHDOG=1").is_ok() {}
        assert!(ours.messages().count() <= AT_ONCE);
        drop(theirs);
        while ours.messages().count() > 0 {}
    }
}
