//! The last moments of a process: what it leaves behind for its successor, and what it says.
//!
//! * A fatal signal (SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS) or a panic stamps every registered [`Witness`] with
//!   the signal's number, and the process dies of that signal as it would have: SIGABRT excepted, which ends in exit code 134
//!   (nothing in a compartment can send a signal). SIGKILL stamps nothing; whoever sends it means the process, not its work.
//! * A forbidden system call is not made. The process says which one it was, on standard error and to whoever supervises it,
//!   and dies of SIGSYS by making another one: with SIGSYS blocked, the kernel's own kill cannot be handled.
//! * `abort` begins with a call that is forbidden, too, and is told apart: "STATUS=aborted", and exit code 134 like SIGABRT.
//!
//! It must never allocate, lock or wait once the process is dying, and never come back from there. One wait cannot be ruled
//! out, and comes last: for the reader of standard error. It ends with the supervisor's patience.

use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError};

use crate::sys::fatal;
use crate::{Error, syscalls};

/// Something that outlives the process and is told that it crashed.
pub trait Witness: Send + Sync {
    /// Takes note of `signal`. Called in a signal handler: plain atomic stores, nothing else.
    fn stamp(&self, signal: i32);
}

impl Witness for AtomicU32 {
    fn stamp(&self, signal: i32) {
        self.store(signal.cast_unsigned(), Ordering::Release);
    }
}

/// Witnesses that a process can have: one for each open channel, of which a device has a primary one and one for each of
/// 64 virtual processors at most. Four times that.
pub const MOST_WITNESSES: usize = 256;

/// All places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST_WITNESSES} witnesses of a crash")]
pub struct Full;

/// A handler takes a lock only if it is free (`try_lock` is one atomic exchange) and keeps it: nobody takes a witness away
/// from under it.
type Place = Mutex<Option<Arc<dyn Witness>>>;

static WITNESSES: [Place; MOST_WITNESSES] = [const { Mutex::new(None) }; MOST_WITNESSES];

/// Where "STATUS=..." goes; [`NOBODY`] if nobody listens.
static NOTIFY: AtomicI32 = AtomicI32::new(NOBODY);
const NOBODY: RawFd = -1;

/// How a line on standard error looks.
static SPEAK: OnceLock<Speak> = OnceLock::new();

/// Writes a message into a buffer as a whole line and returns its length. Called in a signal handler: it must not allocate or
/// lock.
pub type Speak = fn(buffer: &mut [u8], message: &str) -> usize;

/// A witness is told of a crash for as long as this is there.
#[derive(Debug)]
#[must_use = "dropping it takes the witness away"]
pub struct Registration(&'static Mutex<Option<Arc<dyn Witness>>>);

/// Has `witness` told of a crash. Drop what is returned before what the witness writes to goes away.
///
/// # Errors
/// [`Full`] if there are [`MOST_WITNESSES`] already.
pub fn register(witness: Arc<dyn Witness>) -> Result<Registration, Full> {
    for place in &WITNESSES {
        let mut taken = lock(place);
        if taken.is_none() {
            *taken = Some(witness);
            return Ok(Registration(place));
        }
    }
    Err(Full)
}

impl Drop for Registration {
    fn drop(&mut self) {
        let witness = lock(self.0).take();
        drop(witness);
    }
}

fn lock(place: &'static Place) -> MutexGuard<'static, Option<Arc<dyn Witness>>> {
    place.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sends "STATUS=seccomp: NAME(NUMBER)" to this datagram socket (sd_notify's protocol) when a forbidden call is made.
pub fn notify(socket: RawFd) {
    NOTIFY.store(socket, Ordering::Relaxed);
}

/// Has last words look like `speak` makes them (`logs::last_words`). The first caller counts.
pub fn speak_with(speak: Speak) {
    let _ = SPEAK.set(speak);
}

/// Installs the handlers for fatal signals. [`crate::Compartment::enter`] does it: they have to be there before the filter is, which
/// lets nobody change them any more.
///
/// # Errors
/// [`Error::Step`].
pub fn install() -> Result<(), Error> {
    fatal::install().map_err(Error::step("install handlers for fatal signals"))
}

/// Tells every witness. For handlers and the panic hook.
pub(crate) fn stamp(signal: i32) {
    for place in &WITNESSES {
        let taken = match place.try_lock() {
            Ok(taken) => taken,
            Err(TryLockError::Poisoned(taken)) => taken.into_inner(),
            // Being registered or let go of at this very moment, perhaps by this very thread.
            Err(TryLockError::WouldBlock) => continue,
        };
        if let Some(witness) = &*taken {
            witness.stamp(signal);
            // Not given back: the process ends here, and unlocking may take a system call.
            mem::forget(taken);
        }
    }
}

/// What to say about the forbidden call `number`: `say` is given the line for standard error, `report`, before that, the
/// message for the supervisor's socket.
pub(crate) fn tell_forbidden(number: i32, say: impl FnOnce(&[u8]), report: impl FnOnce(RawFd, &[u8])) {
    let (mut status, mut message) = (Text::new(), Text::new());
    status.push("STATUS=seccomp: ");
    status.push_call(number);
    message.push("seccomp: the system call ");
    message.push_call(number);
    message.push(" is forbidden here and was not made; this process ends");
    tell(status.as_str(), message.as_str(), say, report);
}

/// The same about a call of `abort`.
pub(crate) fn tell_aborted(say: impl FnOnce(&[u8]), report: impl FnOnce(RawFd, &[u8])) {
    tell("STATUS=aborted", "aborted: this process has given itself up, and ends", say, report);
}

fn tell(status: &str, message: &str, say: impl FnOnce(&[u8]), report: impl FnOnce(RawFd, &[u8])) {
    let socket = NOTIFY.load(Ordering::Relaxed);
    if socket != NOBODY {
        report(socket, status.as_bytes());
    }
    let mut line = [0; LINE];
    let len = match SPEAK.get() {
        Some(speak) => speak(&mut line, message),
        None => plain(&mut line, message),
    };
    say(line.get(..len).unwrap_or_default());
}

/// Bytes of a line on standard error at most.
const LINE: usize = 512;

fn plain(buffer: &mut [u8], message: &str) -> usize {
    let bytes = message.as_bytes();
    let len = bytes.len().min(buffer.len().saturating_sub(1));
    let Some((text, rest)) = buffer.split_at_mut_checked(len) else { return 0 };
    text.copy_from_slice(&bytes[..len]);
    rest.iter_mut().take(1).for_each(|end| *end = b'\n');
    len + 1
}

/// Text that is put together without memory from anywhere; what does not fit is left out.
struct Text {
    bytes: [u8; 160],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 160], len: 0 }
    }

    fn push(&mut self, text: &str) {
        let end = self.len + text.len();
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(text.as_bytes());
            self.len = end;
        }
    }

    /// `name(number)`
    fn push_call(&mut self, number: i32) {
        self.push(syscalls::name(number));
        self.push("(");
        // Ten digits and a sign are the longest.
        let (mut digits, mut first, mut rest) = ([0u8; 11], 11, number.unsigned_abs());
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            first -= 1;
            digits[first] = b'-';
        }
        self.push(std::str::from_utf8(&digits[first..]).unwrap_or_default());
        self.push(")");
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl std::fmt::Debug for dyn Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Witness")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn witnesses_come_and_go() {
        let words: Vec<Arc<AtomicU32>> = (0..3).map(|_| Arc::new(AtomicU32::new(0))).collect();
        let mut registrations: Vec<_> =
            words.iter().map(|word| register(Arc::clone(word) as Arc<dyn Witness>).unwrap()).collect();
        drop(registrations.remove(1));
        assert_eq!(Arc::strong_count(&words[1]), 1, "let go of at once");
        // `stamp` itself keeps its locks for ever and is tried by processes that die of it: tests/compartment.
        let all: Vec<_> = std::iter::from_fn(|| register(Arc::new(AtomicU32::new(0))).ok()).collect();
        assert_eq!(all.len(), MOST_WITNESSES - 2);
        assert_eq!(register(Arc::new(AtomicU32::new(0))).map(drop), Err(Full));
    }

    #[test]
    fn the_forbidden_call_is_named() {
        let (mut line, mut told) = (Vec::new(), Vec::new());
        notify(7);
        tell_forbidden(
            41,
            |said| line = said.to_vec(),
            |socket, status| told = [&[socket as u8], status].concat(),
        );
        notify(NOBODY);
        let expected =
            "seccomp: the system call socket(41) is forbidden here and was not made; this process ends\n";
        assert_eq!(String::from_utf8(line).unwrap(), expected);
        assert_eq!(told, b"\x07STATUS=seccomp: socket(41)");
    }

    #[test]
    fn odd_numbers_have_names_too() {
        for (number, expected) in
            [(0, "read(0)"), (i32::MIN, "?(-2147483648)"), (0x4000_0001, "?(1073741825)")]
        {
            let mut text = Text::new();
            text.push_call(number);
            assert_eq!(text.as_str(), expected);
        }
    }
}
