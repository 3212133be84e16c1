//! Running programs: what fails says what was run and shows the end of what it printed.
//!
//! Also the one way to report progress, so that a long step never looks like a hang.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Lines of a failed program's output that are worth showing.
const TAIL_LINES: usize = 40;

/// Runs `command` to its end, its output kept from the terminal; an error shows the last lines of it.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Like [`run`], and returns what the program printed to standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{name}`: is it installed?"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    bail!("`{name}` failed ({}):\n{}", output.status, tail(&all, TAIL_LINES))
}

/// The last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Does `body`, saying so before and how long it took after.
pub fn step<T>(what: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    say(what);
    let result = body().with_context(|| format!("while {what}"))?;
    let elapsed = start.elapsed().as_secs_f32();
    if elapsed > 1.0 {
        say(&format!("{what}: done in {elapsed:.0} s"));
    }
    Ok(result)
}

/// One line of progress, on standard error so that it never mixes with results.
pub fn say(what: &str) {
    let mut stderr = std::io::stderr().lock();
    // A closed terminal is no reason to stop working.
    let _ = writeln!(stderr, "xtask: {what}");
}

/// The path as a word that a shell reads back unchanged.
pub fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args().take(6) {
        let argument = argument.to_string_lossy();
        text.push(' ');
        text.extend(argument.chars().take(60).map(|c| if c == '\n' { ' ' } else { c }));
    }
    text
}
