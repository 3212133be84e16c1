//! `bulkhead disk`: another disk for a controller of a running VM, one less, or a larger one.
//!
//! Two things have to change together: what every later process of the device is started with, which is its supervisor's, and what the
//! process that serves has open. The first comes first, so whatever dies in between, the next process is right; and the same change asked for
//! again does the rest, so it is asked for until somebody has done it.
//!
//! * [`command`]: the command line; [`words`]: disks in the arguments of a process; [`open`]: descriptors for one that cannot open any more
//!
//! What is in a disk's options is its device's affair, and so is what is said to it: this module must never open, read or write a disk, but
//! for making a file longer when that is what was asked for.

pub mod command;
pub mod open;
pub mod words;

use std::time::{Duration, Instant};

use crate::device::Error;

/// How long a change is tried while nobody serves the device. Longer than the longest pause between two attempts to start a process.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The process that serves has done it; its answer.
    Done(String),
    /// It has not done it, and will not: why.
    Refused(String),
    /// Nobody has answered, and asking again may help: why.
    Again(String),
}

/// Characters that are shown of what a device process says: a guest may have taken it over.
const LONGEST: usize = 400;

/// What a process says, fit for a terminal.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Asks until somebody answers; what he says.
pub(crate) fn persist(mut ask: impl FnMut() -> Result<Told, Error>) -> Result<String, Error> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask()? {
            Told::Done(answer) => return Ok(answer),
            Told::Refused(why) => return Err(Error::Failed(why)),
            Told::Again(why) if Instant::now() >= end => return Err(Error::Failed(why)),
            Told::Again(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_answered_is_asked_again() {
        let mut answers =
            [Told::Again("dead".into()), Told::Again("dead".into()), Told::Done("yes".into())].into_iter();
        assert_eq!(persist(|| Ok(answers.next().unwrap())).unwrap(), "yes");
        let mut times = 0;
        let refused = persist(|| {
            times += 1;
            Ok(Told::Refused("no".into()))
        });
        assert_eq!((refused.unwrap_err().to_string(), times), ("no".to_owned(), 1));
    }
}
