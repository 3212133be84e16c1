//! `bulkhead device swap` under systemd: the other unit of a device is started, the core hands over to it, the first one is stopped.
//!
//! Any process may die meanwhile, and then the core chooses another one than was meant. So whoever serves *afterwards* decides what is
//! stopped: this module must never stop a unit whose process serves.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::device::{Pair, Systemd, failed};
use super::systemctl::{RUNTIME_UNITS, Systemctl};
use super::{Names, content, disks, escape, install};
use crate::device::{Error, check_binary};

/// How long the core waits for the new process to be welcomed: it says that it is ready only then, so it has been already.
const WELCOME: Duration = Duration::from_secs(5);
/// How long systemd may take to hear from the processes who serves. Their words are with it before the core has ours.
const SETTLING: Duration = Duration::from_secs(5);
/// How long to wait before it is asked again.
const AGAIN: Duration = Duration::from_millis(20);
/// The drop-in that gives a unit another program until the next boot, or until the VM's units are written anew. Read after our own.
pub(super) const BINARY: &str = "60-swap.conf";

/// Nobody else swaps or restarts the same device while this exists.
pub(super) struct Alone {
    _locked: File,
}

impl Alone {
    /// Of the VM's `device`, which there is. The file is in the VM's runtime directory and goes with it.
    pub(super) fn with(names: Names<'_>, device: &str) -> Result<Self, Error> {
        Self::at(&names.runtime().join(format!("{device}.lock")), device)
    }

    fn at(path: &Path, device: &str) -> Result<Self, Error> {
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let file =
            open.map_err(|error| Error::Failed(format!("cannot create {}: {error}", path.display())))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::Failed(format!(
                "{device} is being swapped or restarted by somebody else: wait for that to end"
            ))),
            // A runtime directory knows locks.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { _locked: file }),
        }
    }
}

/// Does it; what was done, as a sentence.
pub(super) fn swap(vm: &Systemd, device: &str, binary: Option<&Path>) -> Result<String, Error> {
    let before = vm.pair(device)?;
    let new = 1 - before.main();
    let had_spare = before.spare().is_some();
    let programs = before.names.each_ref().map(|unit| Override::of(unit));
    if let Some(binary) = binary
        && let Err(error) = replace_programs(&programs, binary)
    {
        // What is left of it would come into force with somebody's next reload.
        return Err(match restore(&programs) {
            Ok(()) => error,
            Err(then) => also(&error, &then),
        });
    }
    let handed_over = hand_over(vm, device, &before, new);
    let now = settled(vm, device);
    let outcome = outcome(handed_over, new, now.as_ref().and_then(Pair::serving), device, &before.names);
    let undone = match &outcome {
        Err(_) if binary.is_some() => restore(&programs),
        _ => Ok(()),
    };
    let tidied = now.as_ref().and_then(Pair::serving).map_or(Ok(()), |serving| {
        // What has retired has ended, and systemd starts it again: that is right for a spare. One of a failed swap has another program.
        let verb = match (had_spare, &outcome) {
            (true, Ok(_)) => "start",
            (true, Err(_)) => "restart",
            (false, _) => "stop",
        };
        Systemctl.tell(verb, &before.names[1 - serving]).map_err(failed)
    });
    match (outcome, undone.and(tidied)) {
        (outcome, Ok(())) => outcome,
        (Ok(done), Err(then)) => Err(Error::Failed(format!("{done}, but then: {then}"))),
        (Err(error), Err(then)) => Err(also(&error, &then)),
    }
}

/// Starts the unit `new` with the program in force and lets the core hand over to it. How long nobody served; `None` if it did not
/// have to be asked for.
fn hand_over(vm: &Systemd, device: &str, pair: &Pair, new: usize) -> Result<Option<Duration>, Error> {
    // Returns once it stands by; or serves, if the old one has died.
    Systemctl.tell("restart", &pair.names[new]).map_err(failed)?;
    if vm.pair(device)?.serving() == Some(new) {
        return Ok(None);
    }
    vm.operator()?.swap(device, WELCOME).map(Some).map_err(failed)
}

/// The units once one of them serves; `None` if none does for long.
fn settled(vm: &Systemd, device: &str) -> Option<Pair> {
    let end = Instant::now() + SETTLING;
    loop {
        match vm.pair(device) {
            Ok(pair) if pair.serving().is_some() => return Some(pair),
            _ if Instant::now() >= end => return None,
            _ => sleep(AGAIN),
        }
    }
}

/// What has become of it: `handed_over` by what was done, `serving` by what is.
fn outcome(
    handed_over: Result<Option<Duration>, Error>,
    new: usize,
    serving: Option<usize>,
    device: &str,
    names: &[String; 2],
) -> Result<String, Error> {
    match (handed_over, serving) {
        (Ok(Some(pause)), Some(serving)) => {
            // Or the old unit, if its process died while the new one started: then it is new itself, and was handed over to.
            let (unit, pause) = (&names[serving], pause.as_secs_f64() * 1e3);
            Ok(format!("{unit} serves {device} now, after a pause of {pause:.1} ms"))
        }
        (Ok(None) | Err(_), Some(serving)) if serving == new => {
            Ok(format!("{} serves {device} now: the process before it died meanwhile", names[new]))
        }
        (Ok(_), Some(serving)) => Err(Error::Failed(format!(
            "the new process of {device} died, and {} serves again",
            names[serving]
        ))),
        (Ok(_), None) => Err(Error::Failed(format!(
            "nobody serves {device} just now, and both of its units are left to try: see bulkhead device ls"
        ))),
        (Err(error), _) => Err(error),
    }
}

fn also(error: &Error, then: &Error) -> Error {
    Error::Failed(format!("{error}; and then: {then}"))
}

/// Gives both units the program `binary`, so that whichever is started later is of this build too.
fn replace_programs(programs: &[Override; 2], binary: &Path) -> Result<(), Error> {
    for program in programs {
        program.set(Some(&binary_drop_in(&program.unit, binary)?))?;
    }
    Systemctl.reload().map_err(failed)
}

/// Takes that back: as much as can be, and what went wrong first.
fn restore(programs: &[Override; 2]) -> Result<(), Error> {
    let set = programs.each_ref().map(|program| program.set(program.text.as_deref()));
    let reloaded = Systemctl.reload().map_err(failed);
    set.into_iter().collect::<Result<(), _>>().and(reloaded)
}

/// The drop-in that gives a unit another program. It lasts until the next boot, the next swap to another program, or
/// until the VM's units are written anew.
pub(super) struct Override {
    unit: String,
    path: PathBuf,
    /// What is in it.
    pub(super) text: Option<String>,
}

impl Override {
    fn of(unit: &str) -> Self {
        Self::below(Path::new(RUNTIME_UNITS), unit, BINARY)
    }

    /// The drop-in called `name` of `unit`, below the directory of units.
    pub(super) fn below(units: &Path, unit: &str, name: &str) -> Self {
        let path = units.join(format!("{unit}.d")).join(name);
        let text = fs::read_to_string(&path).ok();
        Self { unit: unit.to_owned(), path, text }
    }

    pub(super) fn set(&self, text: Option<&str>) -> Result<(), Error> {
        if let Some(text) = text {
            return install::replace(&self.path, text).map_err(failed);
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::Failed(format!("cannot change {}: {error}", self.path.display())))
            }
            _ => Ok(()),
        }
    }
}

/// The unit's own command line with another program.
fn binary_drop_in(unit: &str, binary: &Path) -> Result<String, Error> {
    let binary = check_binary(binary)?;
    let text = disks::in_force(unit)?;
    with_program(&text, &binary)
        .map_err(failed)?
        .ok_or_else(|| Error::Failed(format!("the drop-in of {unit} has no command line")))
}

/// The drop-in that runs `binary` with the arguments that `text`, a drop-in of ours, gives the unit's program.
fn with_program(text: &str, binary: &Path) -> Result<Option<String>, escape::Unwritable> {
    let command =
        text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).find(|command| !command.is_empty());
    // Words are quoted, and a quote inside of one has a backslash before it.
    let Some((_, arguments)) = command.and_then(|command| command.split_once("\" \"")) else {
        return Ok(None);
    };
    let word = escape::argument(binary.as_os_str())?;
    let mut sandbox = content::Sandbox::default();
    sandbox.read(binary)?;
    Ok(Some(format!("[Service]\nExecStart=\nExecStart={word} \"{arguments}\n{}", sandbox.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_gets_the_same_arguments() {
        let own = "[Service]\nUser=x\nExecStart=\nExecStart=\"/bin/a\\\" \\\"b\" \"--disk\" \"path=/x y%%\"\nBindPaths=\"/x y%%\"\n";
        let text = with_program(own, Path::new("/new/100%")).unwrap().unwrap();
        assert_eq!(
            text,
            "[Service]\nExecStart=\nExecStart=\"/new/100%%\" \"--disk\" \"path=/x y%%\"\nBindReadOnlyPaths=\"/new/100%%\"\n"
        );
        assert_eq!(with_program("[Service]\nExecStart=\n", Path::new("/b")).unwrap(), None);
        let text = with_program(own, Path::new("/root/vsp")).unwrap().unwrap();
        assert!(text.ends_with("ProtectHome=tmpfs\nBindReadOnlyPaths=\"/root/vsp\"\n"), "{text}");
    }

    #[test]
    fn what_became_of_a_swap_is_what_serves() {
        let names = ["a".to_owned(), "b".to_owned()];
        let pause = || Ok(Some(Duration::from_millis(3)));
        let no = || Err(Error::Failed("no".to_owned()));
        let said = |handed_over, serving| match outcome(handed_over, 1, serving, "disk0", &names) {
            Ok(done) => done,
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(said(pause(), Some(1)), "b serves disk0 now, after a pause of 3.0 ms");
        // The old one died while the new one started, came back, and got the device handed over.
        assert_eq!(said(pause(), Some(0)), "a serves disk0 now, after a pause of 3.0 ms");
        assert_eq!(said(Ok(None), Some(1)), "b serves disk0 now: the process before it died meanwhile");
        assert_eq!(said(no(), Some(1)), "b serves disk0 now: the process before it died meanwhile");
        assert_eq!(said(no(), Some(0)), "error: no");
        assert_eq!(said(no(), None), "error: no");
        assert!(said(Ok(None), Some(0)).starts_with("error: the new process of disk0 died"));
        assert!(said(pause(), None).starts_with("error: nobody serves disk0 just now"));
    }

    #[test]
    fn one_at_a_time_swaps_a_device_and_what_it_changed_is_taken_back() {
        let directory = std::env::temp_dir().join(format!("bulkhead-swap-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let lock = directory.join("disk0.lock");
        let first = Alone::at(&lock, "disk0").ok();
        assert!(first.is_some());
        assert!(Alone::at(&lock, "disk0").is_err());
        drop(first);
        assert!(Alone::at(&lock, "disk0").is_ok());

        let new = Override::below(&directory, "x.service", BINARY);
        new.set(Some("1")).unwrap();
        let later = Override::below(&directory, "x.service", BINARY);
        later.set(Some("2")).unwrap();
        later.set(later.text.as_deref()).unwrap();
        assert_eq!(fs::read_to_string(&later.path).unwrap(), "1");
        new.set(new.text.as_deref()).unwrap();
        new.set(new.text.as_deref()).unwrap();
        assert!(!new.path.exists());
        fs::remove_dir_all(&directory).unwrap();
    }
}
