//! Asks systemd about units and tells it what to do with them, by `systemctl`: its `show` is made for machines, and a D-Bus library
//! would be more code than all of this.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::supervise::Death;

/// Where drop-ins last until the next boot.
pub const RUNTIME_UNITS: &str = "/run/systemd/system";

/// `WatchdogSec=` of our templates: the silence after which systemd calls a process hung.
pub const WATCHDOG: Duration = Duration::from_secs(3);

/// systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none, or not in this form.
    #[error("cannot run systemctl: {0}")]
    Run(io::Error),
    /// It said no.
    #[error("systemctl {what}: {said}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its answer, in one line.
        said: String,
    },
}

/// The system's service manager.
#[derive(Clone, Copy, Debug, Default)]
pub struct Systemctl;

/// What systemd knows of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit(HashMap<String, String>);

impl Systemctl {
    /// The `properties` of each of `units`, in order.
    pub fn show(self, properties: &[&str], units: &[&str]) -> Result<Vec<Unit>, Error> {
        let properties = format!("--property={}", properties.join(","));
        let mut arguments = vec!["show", "--no-pager", &properties, "--"];
        arguments.extend(units);
        let output = run(&arguments)?;
        Ok(parse(&output, units.len()))
    }

    /// Whether the unit is up, or about to be.
    pub fn is_running(self, unit: &str) -> Result<bool, Error> {
        let shown = self.show(&["ActiveState"], &[unit])?;
        Ok(shown.first().is_some_and(Unit::is_up))
    }

    /// Starts, stops or restarts a unit, and waits for that.
    pub fn tell(self, verb: &str, unit: &str) -> Result<(), Error> {
        run(&[verb, "--", unit]).map(drop)
    }

    /// Makes it read the units again.
    pub fn reload(self) -> Result<(), Error> {
        run(&["daemon-reload"]).map(drop)
    }
}

impl Unit {
    /// A property; empty if there is none.
    pub fn text(&self, property: &str) -> &str {
        self.0.get(property).map_or("", String::as_str)
    }

    /// A property that is a number; 0 if it is none.
    pub fn number(&self, property: &str) -> u64 {
        self.text(property).parse().unwrap_or(0)
    }

    /// It is up, or about to be.
    pub fn is_up(&self) -> bool {
        matches!(self.text("ActiveState"), "active" | "activating" | "reloading")
    }
}

/// What `systemctl show` says of `count` units: `NAME=VALUE` lines, an empty line between units. Values have no line breaks.
pub(super) fn parse(output: &str, count: usize) -> Vec<Unit> {
    let mut units = vec![Unit::default()];
    for line in output.lines() {
        match (line.split_once('='), units.last_mut()) {
            (Some((name, value)), Some(unit)) => _ = unit.0.insert(name.to_owned(), value.to_owned()),
            (None, Some(unit)) if !unit.0.is_empty() => units.push(Unit::default()),
            _ => {}
        }
    }
    units.resize(count, Unit::default());
    units
}

fn run(arguments: &[&str]) -> Result<String, Error> {
    let output = command(arguments).output().map_err(Error::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Refused { what: arguments.join(" "), said: one_line(&output) })
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null()).env("LC_ALL", "C").env("SYSTEMD_COLORS", "0");
    command
}

fn one_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let mut line = String::new();
    for part in said.lines().map(str::trim).filter(|part| !part.is_empty()) {
        // Infallible on a string.
        let _ = write!(line, "{}{part}", if line.is_empty() { "" } else { " " });
    }
    if line.is_empty() { output.status.to_string() } else { line }
}

/// How and when the main process of a unit ended last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How.
    pub death: Death,
    /// When.
    pub at: SystemTime,
}

/// The last time since the boot that the main process of `unit` ended badly, as systemd told the journal; `None` if it never did, or the
/// journal is gone.
pub fn last_ending(unit: &str) -> Option<Ending> {
    // SD_MESSAGE_UNIT_PROCESS_EXIT, a constant of systemd's (sd-messages.h).
    const PROCESS_EXIT: &str = "MESSAGE_ID=98e322203f7a4ed290d09fe03c09fe15";
    // SD_MESSAGE_UNIT_FAILURE_RESULT.
    const FAILURE_RESULT: &str = "MESSAGE_ID=d9b373ed55a64feb8242e02dbe79a49c";
    let record = journal(1, &[PROCESS_EXIT, &format!("UNIT={unit}")])?.pop()?;
    let field = |name: &str| record.get(name).and_then(serde_json::Value::as_str);
    let mut death = death(field("EXIT_CODE")?, field("EXIT_STATUS")?)?;
    if death == Death::Killed(Signal::SIGSYS) {
        // A process that met its policy has said at what: one of its last words.
        let said = journal(5, &[&format!("_SYSTEMD_UNIT={unit}"), "PRIORITY=3"]).unwrap_or_default();
        let said = said.iter().rev().filter_map(|record| record.get("MESSAGE")?.as_str());
        if let Some(call) = said.filter_map(forbidden_call).next() {
            death = Death::Forbidden(call.to_owned());
        }
    }
    // What systemd made of it comes after it. It kills for silence itself, and the signal alone does not tell.
    let verdict =
        journal(1, &[FAILURE_RESULT, &format!("UNIT={unit}")]).and_then(|mut records| records.pop());
    if verdict.is_some_and(|verdict| is_watchdog(&verdict, &record)) {
        death = Death::Hung(WATCHDOG);
    }
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(time(&record)?);
    Some(Ending { death, at })
}

/// Whether `verdict`, on how a unit ended, is that on `ending` and says that the process gave no sign of life.
fn is_watchdog(verdict: &serde_json::Value, ending: &serde_json::Value) -> bool {
    let said = verdict.get("UNIT_RESULT").and_then(serde_json::Value::as_str);
    said == Some("watchdog") && time(verdict) >= time(ending)
}

/// When a record was written, in microseconds since 1970.
fn time(record: &serde_json::Value) -> Option<u64> {
    record.get("__REALTIME_TIMESTAMP")?.as_str()?.parse().ok()
}

/// The last `lines` records of this boot that match, oldest first.
fn journal(lines: u32, matches: &[&str]) -> Option<Vec<serde_json::Value>> {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--boot", "--output=json", &format!("--lines={lines}")]).args(matches);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// `EXIT_CODE` and `EXIT_STATUS` of systemd.exec(5).
fn death(code: &str, status: &str) -> Option<Death> {
    match code {
        "exited" => status.parse().ok().map(Death::Exited),
        // A number, or a name without its SIG.
        "killed" | "dumped" => match status.parse::<i32>() {
            Ok(number) => Signal::try_from(number).ok().map(Death::Killed),
            Err(_) => format!("SIG{status}").parse().ok().map(Death::Killed),
        },
        _ => None,
    }
}

/// The call in the last words of a process that made one which its policy forbids (`sandbox::crash`).
fn forbidden_call(message: &str) -> Option<&str> {
    message.split_once("seccomp: the system call ")?.1.split_once(' ').map(|(call, _)| call)
}

/// The program of an `ExecStart` property: `{ path=/usr/bin/x ; argv[]=... }`.
pub fn program(exec_start: &str) -> Option<PathBuf> {
    let (_, rest) = exec_start.split_once("path=")?;
    rest.split_once(" ; argv[]=").map(|(path, _)| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_read_unit_by_unit() {
        let output = "MainPID=7\nStatusText=serving: a=b\n\nMainPID=0\nStatusText=\n";
        let units = parse(output, 3);
        assert_eq!(units[0].number("MainPID"), 7);
        assert_eq!(units[0].text("StatusText"), "serving: a=b");
        assert_eq!(units[1].number("MainPID"), 0);
        assert_eq!(units[2], Unit::default(), "one that it says nothing of");
    }

    #[test]
    fn deaths_are_read_from_the_journal() {
        assert_eq!(death("killed", "9"), Some(Death::Killed(Signal::SIGKILL)));
        assert_eq!(death("dumped", "SYS"), Some(Death::Killed(Signal::SIGSYS)));
        assert_eq!(death("exited", "1"), Some(Death::Exited(1)));
        assert_eq!(death("", ""), None);
        let said = "disk0: seccomp: the system call socket(41) is forbidden here and was not made; this process ends";
        assert_eq!(forbidden_call(said), Some("socket(41)"));
        assert_eq!(forbidden_call("cannot open /x"), None);
    }

    #[test]
    fn a_kill_by_the_watchdog_is_a_hang() {
        let record = |time: &str, result: &str| serde_json::json!({"__REALTIME_TIMESTAMP": time, "UNIT_RESULT": result});
        let ending = record("20", "");
        assert!(is_watchdog(&record("21", "watchdog"), &ending));
        assert!(!is_watchdog(&record("19", "watchdog"), &ending), "that was the one before");
        assert!(!is_watchdog(&record("21", "signal"), &ending));
        let (_, template) = super::super::content::TEMPLATES[3];
        assert!(template.contains(&format!("\nWatchdogSec={}\n", WATCHDOG.as_secs())));
    }

    #[test]
    fn a_program_is_found_in_exec_start() {
        let shown = "{ path=/opt/a b/vsp-storage ; argv[]=/opt/a b/vsp-storage --device x ; ignore_errors=no ; pid=0 }";
        assert_eq!(program(shown), Some("/opt/a b/vsp-storage".into()));
        assert_eq!(program(""), None);
    }
}
