//! What attaching and detaching a device consist of, in which order, and what is undone when something fails on the way.
//!
//! Nothing may be taken back that was there before, and no process may be left of a device that is gone.

use super::{CoreError, Error, Told, failed};

/// Who does it.
pub(super) trait Hands {
    /// What the device is called.
    fn device(&self) -> &str;
    /// Whether the core has the device.
    fn is_there(&mut self) -> Result<bool, Error>;
    /// Writes its units.
    fn write(&mut self) -> Result<(), Error>;
    /// Has the core have it.
    fn add(&mut self) -> Result<(), CoreError>;
    /// Has it served.
    fn start(&mut self) -> Result<(), Error>;
    /// Has the guest let go of it.
    fn eject(&mut self) -> Result<Told, Error>;
    /// Has the core have it no more.
    fn remove(&mut self) -> Result<(), Error>;
    /// Ends its processes, and removes its units.
    fn end(&mut self) -> Result<(), Error>;
}

/// Gives the VM the device.
pub(super) fn attach(hands: &mut impl Hands) -> Result<(), Error> {
    // The core may know more than there are units: it is the one who has it.
    if hands.is_there()? {
        let name = hands.device();
        return Err(Error::Failed(format!("the VM has a device {name} already: give another --name")));
    }
    let mut may_be_added = false;
    let begun = hands
        .write()
        .and_then(|()| {
            let added = hands.add();
            // One that says nothing may have done it.
            may_be_added = !matches!(added, Err(CoreError::Failed(_)));
            added.map_err(failed)
        })
        .and_then(|()| hands.start());
    begun.inspect_err(|_| {
        // What fails now fails for the reason that is given.
        if may_be_added {
            let _ = hands.remove();
        }
        let _ = hands.end();
    })
}

/// Takes the device from the VM; with `force`, without asking the guest.
pub(super) fn detach(hands: &mut impl Hands, force: bool) -> Result<(), Error> {
    if !hands.is_there()? {
        // An earlier attempt has got so far.
        return hands.end();
    }
    if !force {
        match hands.eject()? {
            Told::Done(_) => {}
            Told::Refused(why) | Told::Again(why) => {
                let name = hands.device();
                let why = format!("{name} was not detached: {why}; --force takes it away all the same");
                return Err(Error::Failed(why));
            }
        }
    }
    let removed = hands.remove();
    // In any case: what the core could not do because of its processes, or has only begun, it can do without them.
    let ended = hands.end();
    match removed {
        // A core that does not answer has ended, most likely, and everything with it.
        Err(error) if hands.is_there().unwrap_or(false) => match hands.remove() {
            Err(_) if hands.is_there().unwrap_or(false) => Err(error),
            _ => ended,
        },
        _ => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands that do what they are told to, and remember.
    #[derive(Default)]
    struct Fake {
        /// The core has it.
        is_there: bool,
        /// What fails, and how often.
        failing: Vec<&'static str>,
        /// The core says nothing when it is to have it, and has it.
        silent: bool,
        done: Vec<&'static str>,
    }

    impl Fake {
        fn act(&mut self, what: &'static str) -> Result<(), Error> {
            self.done.push(what);
            match self.failing.iter().position(|failing| *failing == what) {
                Some(place) => {
                    self.failing.remove(place);
                    Err(Error::Failed(what.to_owned()))
                }
                None => Ok(()),
            }
        }

        fn attached(failing: &[&'static str]) -> (Self, String) {
            let mut fake = Self { failing: failing.to_vec(), ..Self::default() };
            let result = attach(&mut fake);
            (fake, result.map_or_else(|error| error.to_string(), |()| String::new()))
        }

        fn detached(is_there: bool, force: bool, failing: &[&'static str]) -> (Self, String) {
            let mut fake = Self { is_there, failing: failing.to_vec(), ..Self::default() };
            let result = detach(&mut fake, force);
            (fake, result.map_or_else(|error| error.to_string(), |()| String::new()))
        }
    }

    impl Hands for Fake {
        fn device(&self) -> &str {
            "nic"
        }

        fn is_there(&mut self) -> Result<bool, Error> {
            Ok(self.is_there)
        }

        fn write(&mut self) -> Result<(), Error> {
            self.act("write")
        }

        fn add(&mut self) -> Result<(), CoreError> {
            self.act("add").map_err(|error| CoreError::Failed(error.to_string()))?;
            self.is_there = true;
            if self.silent { Err(CoreError::Silent) } else { Ok(()) }
        }

        fn start(&mut self) -> Result<(), Error> {
            self.act("start")
        }

        fn eject(&mut self) -> Result<Told, Error> {
            Ok(self
                .act("eject")
                .map_or_else(|why| Told::Refused(why.to_string()), |()| Told::Done(String::new())))
        }

        fn remove(&mut self) -> Result<(), Error> {
            self.act("remove")?;
            self.is_there = false;
            Ok(())
        }

        fn end(&mut self) -> Result<(), Error> {
            self.act("end")
        }
    }

    #[test]
    fn what_fails_on_the_way_is_undone_and_nothing_else() {
        let done = |failing| {
            let (fake, why) = Fake::attached(failing);
            assert!(!fake.is_there || failing.is_empty());
            assert_eq!(why, failing.first().copied().unwrap_or_default());
            fake.done
        };
        assert_eq!(done(&[]), ["write", "add", "start"]);
        assert_eq!(done(&["write"]), ["write", "end"]);
        assert_eq!(done(&["add"]), ["write", "add", "end"], "the core has none of ours");
        assert_eq!(done(&["start"]), ["write", "add", "start", "remove", "end"]);
        assert_eq!(done(&["start", "end"]), ["write", "add", "start", "remove", "end"]);
        let mut silent = Fake { silent: true, ..Fake::default() };
        assert!(attach(&mut silent).is_err() && !silent.is_there);
        assert_eq!(silent.done, ["write", "add", "remove", "end"]);
    }

    #[test]
    fn a_device_that_the_core_has_is_not_touched() {
        let mut fake = Fake { is_there: true, ..Fake::default() };
        let why = attach(&mut fake).unwrap_err().to_string();
        assert!(why.contains("has a device nic already"), "{why}");
        assert!(fake.done.is_empty() && fake.is_there);
    }

    #[test]
    fn nothing_is_left_of_a_device_that_goes() {
        let (fake, why) = Fake::detached(true, false, &[]);
        assert_eq!((fake.done.as_slice(), why.as_str()), (&["eject", "remove", "end"][..], ""));
        let (fake, why) = Fake::detached(true, false, &["eject"]);
        assert_eq!(fake.done, ["eject"], "the VM keeps it");
        assert!(why.contains("nic was not detached: eject; --force"), "{why}");
        let (fake, _) = Fake::detached(true, true, &[]);
        assert_eq!(fake.done, ["remove", "end"]);
        let (fake, why) = Fake::detached(false, false, &[]);
        assert_eq!((fake.done.as_slice(), why.as_str()), (&["end"][..], ""), "the core has it no more");
    }

    #[test]
    fn its_processes_end_even_if_the_core_does_not_give_it_up_at_once() {
        let (fake, why) = Fake::detached(true, true, &["remove"]);
        assert_eq!((fake.done.as_slice(), why.as_str()), (&["remove", "end", "remove"][..], ""));
        let (fake, why) = Fake::detached(true, true, &["remove", "remove"]);
        assert_eq!((fake.done.as_slice(), why.as_str()), (&["remove", "end", "remove"][..], "remove"));
        let (fake, why) = Fake::detached(true, true, &["remove", "end"]);
        assert_eq!((fake.done.as_slice(), why.as_str()), (&["remove", "end", "remove"][..], "end"));
    }
}
