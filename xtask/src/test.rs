//! `cargo xtask test`: every check there is, the cheap ones first.
//!
//! Goes on after a failure, and ends with the line `N passed, N failed`.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::images::{HostKernel, Images, With};
use crate::{apt, build, chaos, lab, scenarios, sh, vhost_user};

/// How long each fuzz target runs after its corpus, in seconds: two dozen of them are to end in minutes. Whoever changes a parser lets its target run for longer:
/// `fuzz/run 600 TARGET`.
const FUZZ_SECONDS: u32 = 15;
/// Processes killed in the campaign; the README names the command for ten thousand.
const CHAOS_KILLS: u64 = 1000;
/// Times that two builds take turns.
const CHAOS_SWAPS: u64 = 200;
/// They are a workspace of their own.
const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";
/// Fuzz targets that run at the same time.
const FUZZ_JOBS: usize = 2;

/// Options.
#[derive(clap::Args)]
pub struct Arguments {
    /// Without the lab and without fuzzing: what a developer runs before each commit.
    #[arg(long)]
    fast: bool,
    /// Only checks whose name contains this ("lab" is the prefix of the lab's).
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Show all output.
    #[arg(long, short)]
    verbose: bool,
    /// List the checks.
    #[arg(long)]
    list: bool,
    /// Begin no scenario in the lab later than so many minutes from now, and say which were left out. Which ones come first changes from commit
    /// to commit.
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
}

/// Single tests, not checks: a check may stand for many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
}

struct Check {
    name: String,
    /// Whether it may be left out for want of time.
    can_wait: bool,
    run: Box<dyn Fn(bool) -> Result<Count>>,
}

impl Check {
    fn new(name: &str, run: impl Fn(bool) -> Result<Count> + 'static) -> Self {
        Self { name: name.to_owned(), can_wait: false, run: Box::new(run) }
    }
}

/// Runs the checks.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut checks = checks(arguments.fast, arguments.only.as_deref())?;
    if let Some(only) = &arguments.only {
        checks.retain(|check| check.name.contains(only.as_str()));
    }
    if arguments.list {
        for check in &checks {
            println!("{}", check.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut total = Count::default();
    let (mut failures, mut left_out) = (Vec::new(), Vec::new());
    let count = checks.len();
    let begun = Instant::now();
    let limit = arguments.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    if limit.is_some() {
        take_turns(&mut checks);
    }
    for (index, check) in checks.iter().enumerate() {
        if check.can_wait && limit.is_some_and(|limit| begun.elapsed() > limit) {
            left_out.push(check.name.as_str());
            continue;
        }
        let label = format!("[{}/{count}] {}", index + 1, check.name);
        sh::say(&format!("{label} ..."));
        let start = Instant::now();
        let result = (check.run)(arguments.verbose);
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(count) => {
                total.passed += count.passed;
                total.failed += count.failed;
                if count.failed > 0 {
                    failures.push(check.name.clone());
                }
                let passed = count.passed;
                match count.failed {
                    0 => sh::say(&format!("{label}: ok ({passed} passed, {seconds} s)")),
                    failed => sh::say(&format!("{label}: {failed} FAILED ({passed} passed, {seconds} s)")),
                }
            }
            Err(error) => {
                total.failed += 1;
                failures.push(check.name.clone());
                sh::say(&format!("{label}: FAILED ({seconds} s)\n{error:#}"));
            }
        }
    }
    if !failures.is_empty() {
        println!("failed: {}", failures.join(", "));
    }
    if !left_out.is_empty() {
        println!(
            "NOT RUN, the time was up: {} (each by `cargo xtask test --only NAME`)",
            left_out.join(", ")
        );
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has other scenarios come first with each commit, so that each is run now and then where not all can be.
fn take_turns(checks: &mut [Check]) {
    let commit = sh::output(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(build::workspace()));
    let first = checks.iter().position(|check| check.can_wait).unwrap_or(checks.len());
    let last = checks.iter().rposition(|check| check.can_wait).map_or(first, |last| last + 1);
    let turns = &mut checks[first..last];
    if let Some(start) = commit.ok().and_then(|commit| turn(&commit, turns.len())) {
        turns.rotate_left(start);
    }
}

/// Which of `count` comes first with this commit.
fn turn(commit: &str, count: usize) -> Option<usize> {
    usize::from_str_radix(commit.get(..8)?, 16).ok()?.checked_rem(count)
}

fn checks(fast: bool, only: Option<&str>) -> Result<Vec<Check>> {
    let mut checks = vec![
        Check::new("format", |_| {
            cargo(&["fmt", "--all", "--check"])?;
            cargo(&["fmt", "--all", "--check", "--manifest-path", FUZZ_MANIFEST])
        }),
        Check::new("lints", |_| {
            cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
        }),
        Check::new("dependencies", move |_| dependencies(fast)),
        Check::new("build", |_| {
            cargo(&["build", "--quiet", "--workspace"])?;
            build::binaries("release", true).map(|_| PASSED)
        }),
        Check::new("tests", unit_tests),
        Check::new("documentation", |verbose| counted(&["test", "--quiet", "--workspace", "--doc"], verbose)),
    ];
    if fast {
        return Ok(checks);
    }
    checks.push(Check::new("chaos storage", |_| chaos::check_kills(CHAOS_KILLS).map(|()| PASSED)));
    checks.push(Check::new("chaos swap", |_| {
        chaos::check_swaps(CHAOS_SWAPS).map(|done| if done { PASSED } else { Count::default() })
    }));
    checks.push(Check::new("vhost-user", |verbose| vhost_user::check(verbose).map(|()| PASSED)));
    let targets = fuzz_targets()?;
    if !targets.is_empty() {
        checks.push(Check::new("fuzz", move |_| fuzz(&targets)));
    }
    checks.push(Check::new("lab images", |_| {
        lab::freeze::frozen_host(&Images::ready(With::Trixie, HostKernel::Debian)?, false).map(|_| PASSED)
    }));
    checks.extend(scenarios::all().into_iter().map(in_the_lab));
    if let Some(only) = only {
        checks.extend(scenarios::at_length().into_iter().map(in_the_lab).filter(|check| check.name == only));
    }
    checks.push(Check::new("lab policies", |verbose| scenarios::policies::audit(verbose).map(|_| PASSED)));
    Ok(checks)
}

fn in_the_lab(scenario: scenarios::Scenario) -> Check {
    let check = Check::new(&format!("lab {}", scenario.name), move |verbose| {
        Ok(if scenario.run(verbose)?.is_some() { PASSED } else { Count::default() })
    });
    Check { can_wait: true, ..check }
}

const PASSED: Count = Count { passed: 1, failed: 0 };

fn cargo(arguments: &[&str]) -> Result<Count> {
    sh::run(build::cargo().args(arguments)).map(|()| PASSED)
}

fn unit_tests(verbose: bool) -> Result<Count> {
    if apt::is_root() {
        // Policies are audited with strace; nobody else may look into a compartment. NICs are connected to what the others make.
        apt::ensure(&["strace", "iproute2", "passt"])?;
    }
    if build::cargo().args(["nextest", "--version"]).output().is_ok_and(|output| output.status.success()) {
        counted(
            &[
                "nextest",
                "run",
                "--workspace",
                "--no-fail-fast",
                "--failure-output=immediate-final",
                "--color=never",
            ],
            verbose,
        )
    } else {
        counted(&["test", "--workspace", "--no-fail-fast"], verbose)
    }
}

/// How the line begins in which nextest says what has become of all tests.
const NEXTESTS: &str = "Summary [";

/// Runs a test runner and adds up what it says of itself.
fn counted(arguments: &[&str], verbose: bool) -> Result<Count> {
    let mut command = build::cargo();
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Of a failure its place and its reason are read; a stack below each would drive the others out of what is shown.
    command.env("RUST_BACKTRACE", "0");
    let mut child = command.spawn().context("starting cargo")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let from_stderr = std::thread::spawn(move || follow(stderr, verbose));
    let stdout = follow(child.stdout.take().context("no standard output")?, verbose);
    let text = format!("{stdout}{}", from_stderr.join().unwrap_or_default());
    let status = child.wait()?;
    let count = total(&text);
    if !status.success() {
        let count = Count { failed: count.failed.max(1), ..count };
        sh::say(&sh::tail(&text, 80));
        for test in failures(&text) {
            sh::say(test);
        }
        return Ok(count);
    }
    Ok(count)
}

fn follow(stream: impl std::io::Read, verbose: bool) -> String {
    let mut text = String::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if verbose {
            eprintln!("{line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// All that the runner has counted. Nextest counts once, and what it shows of a test that failed is a count of cargo's runner.
fn total(text: &str) -> Count {
    let of_nextest = |line: &&str| line.trim().starts_with(NEXTESTS);
    let counts = if text.lines().any(|line| of_nextest(&line)) {
        text.lines().filter(of_nextest).filter_map(summary).collect::<Vec<_>>()
    } else {
        text.lines().filter_map(summary).collect()
    };
    counts.into_iter().fold(Count::default(), |sum, count| Count {
        passed: sum.passed + count.passed,
        failed: sum.failed + count.failed,
    })
}

/// The tests of which nextest says that they failed, each once.
fn failures(text: &str) -> std::collections::BTreeSet<&str> {
    // A signal is told by its name.
    let is_bad =
        |status: &str| ["FAIL", "FAIL + LEAK", "TIMEOUT"].contains(&status) || status.starts_with("SIG");
    let failed = |line: &&str| line.split_once(" [").is_some_and(|(status, _)| is_bad(status));
    text.lines().map(str::trim).filter(failed).collect()
}

/// The counts in a summary line of cargo's test runner or of nextest.
fn summary(line: &str) -> Option<Count> {
    let line = line.trim();
    let counts = if line.starts_with(NEXTESTS) {
        line.split_once("run:")?.1
    } else {
        line.strip_prefix("test result:")?.split_once('.')?.1
    };
    let of = |word: &str| {
        counts.split([',', ';']).find_map(|part| {
            let (number, rest) = part.trim().split_once(' ')?;
            rest.starts_with(word).then(|| number.parse::<u32>().ok())?
        })
    };
    let (passed, failed) = (of("passed").unwrap_or(0), of("failed").unwrap_or(0));
    let lost = of("timed out").unwrap_or(0) + of("exec failed").unwrap_or(0);
    Some(Count { passed, failed: failed + lost })
}

/// Licences, bans and sources always; advisories if their database can be had.
fn dependencies(fast: bool) -> Result<Count> {
    let present =
        || build::cargo().args(["deny", "--version"]).output().is_ok_and(|out| out.status.success());
    if !present() {
        if fast {
            sh::say("SKIPPED: cargo-deny is not installed (`cargo install cargo-deny --locked`)");
            return Ok(Count::default());
        }
        sh::step("installing cargo-deny (some minutes)", || {
            sh::run(build::cargo().args(["install", "cargo-deny", "--locked", "--quiet", "--debug"]))
        })?;
    }
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let rest = ["--log-level", "error", "check", "bans", "licenses", "sources"];
        sh::run(build::cargo().args(["deny", "--manifest-path", manifest]).args(rest))?;
    }
    match sh::output(build::cargo().args(["deny", "--log-level", "error", "check", "advisories"])) {
        Ok(_) => Ok(Count { passed: 2, failed: 0 }),
        Err(error) => {
            let text = error.to_string();
            if text.contains("fetch") || text.contains("advisory database") || text.contains("advisory-db") {
                sh::say(
                    "SKIPPED: the advisory database cannot be reached: known vulnerabilities were NOT checked",
                );
                Ok(PASSED)
            } else {
                Err(error)
            }
        }
    }
}

fn fuzz_targets() -> Result<Vec<String>> {
    let directory = build::workspace().join("fuzz/targets");
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut targets: Vec<String> = std::fs::read_dir(directory)?
        .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    targets.sort();
    Ok(targets)
}

/// Runs every target for a while from the committed corpus.
fn fuzz(targets: &[String]) -> Result<Count> {
    apt::ensure(&["g++"])?;
    sh::step("building the fuzz targets and replaying the corpus", || fuzz_run(0, None))?;
    let mut count = Count::default();
    for group in targets.chunks(FUZZ_JOBS) {
        sh::say(&format!("fuzzing {} for {FUZZ_SECONDS} s", group.join(" and ")));
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let running: Vec<_> = group
                .iter()
                .map(|target| scope.spawn(|| fuzz_run(FUZZ_SECONDS, Some(target.as_str()))))
                .collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("the fuzzing thread panicked")))
                .collect()
        });
        for result in results {
            match result {
                Ok(()) => count.passed += 1,
                Err(error) => {
                    count.failed += 1;
                    sh::say(&format!("{error:#}"));
                }
            }
        }
    }
    Ok(count)
}

fn fuzz_run(seconds: u32, target: Option<&str>) -> Result<()> {
    sh::run(
        Command::new(build::workspace().join("fuzz/run"))
            .arg(seconds.to_string())
            .args(target)
            .env("CARGO_TARGET_DIR", build::target_directory().join("fuzz")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_commit_begins_elsewhere() {
        assert_eq!(turn("0000000a55", 7), Some(3));
        assert_eq!(turn("ffffffff00\n", 1), Some(0));
        assert_eq!((turn("0000000a", 0), turn("nothing!", 7), turn("", 7)), (None, None, None));
    }

    #[test]
    fn summaries_of_both_runners_are_understood() {
        let nextest =
            "     Summary [   0.1s] 7 tests run: 4 passed (1 slow), 2 failed, 1 timed out, 0 skipped";
        assert_eq!(summary(nextest), Some(Count { passed: 4, failed: 3 }));
        let cargo = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(summary(cargo), Some(Count { passed: 12, failed: 0 }));
        assert_eq!(summary("test ring::wraps ... ok"), None);
    }

    #[test]
    fn a_failure_that_is_shown_twice_is_counted_and_named_once() {
        let shown = "\
            FAIL [   0.504s] ( 2/3) tests::rings wraps\n\
            test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 8 filtered out\n";
        let summary = "Summary [   0.9s] 3 tests run: 2 passed, 1 failed, 0 skipped\n";
        let text = format!("{shown}{summary}    {shown}");
        assert_eq!(total(&text), Count { passed: 2, failed: 1 });
        assert_eq!(Vec::from_iter(failures(&text)), ["FAIL [   0.504s] ( 2/3) tests::rings wraps"]);
        let of_cargo = "test result: ok. 2 passed; 0 failed; 0 ignored\n".repeat(2);
        assert_eq!(total(&of_cargo), Count { passed: 4, failed: 0 });
    }
}
