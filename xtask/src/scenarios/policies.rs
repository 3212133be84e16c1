//! The audit of the seccomp policies on the whole product: under strace a guest boots, works, reboots and powers off.
//!
//! A rule that nothing used and that is not marked `rare:` is an error, and so is a call that no rule allows. The
//! workload does each thing once: every system call stops its process twice.

use std::fs;
use std::time::{Duration, Instant};

use ::policies::audit::Usage;
use ::policies::{self as rules, Policy, Rule};
use anyhow::{Context, Result, bail, ensure};

use super::{GUEST_FUNCTIONS, Guest, Spec};
use crate::job::Job;
use crate::{build, cache, lab, sh};

/// The policies that have to be in force at some time.
const POLICIES: [Policy; 3] = [rules::CORE, rules::VCPU, rules::VSP_STORAGE];

/// What the guest does: writes, flushes, trims; reboots; does it again and powers off.
const GUEST: &str = "touch /var/lib/boot; dd if=/dev/zero of=/var/tmp/file bs=64k count=20 conv=fsync 2> /dev/null; \
    rm /var/tmp/file; fstrim /; echo \"boots: $(wc -l < /var/lib/boot)\"; \
    if [ ! -s /var/lib/boot ]; then echo >> /var/lib/boot; sync; systemctl reboot 2> /dev/null; sleep 600; fi";

/// A second disk, because those that are only read are locked in another way.
const READ_ONLY: &str = "path = \"/job/tiny.cpio\"\nreadonly = true";

/// What the host does. Something is typed, too. strace finds the program, not the function.
const HOST: &str = "bulkhead() { strace -f --pidns-translation -e raw='!seccomp' -o out/strace bulkhead \"$@\"; }\n\
    truncate -s %512 tiny.cpio; guest_start; guest_wait_for 'boots: 0' 900 && guest_type hello; guest_end";

const LIMIT: Duration = Duration::from_secs(1800);

/// Runs the workload and judges the rules.
pub fn audit(verbose: bool) -> Result<Duration> {
    let start = Instant::now();
    let directory = cache::root()?.join("runs").join(format!("policies-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let specification = directory.join("vm.toml");
    let spec =
        Spec { memory: 512, job: GUEST, disks: &[READ_ONLY], screen: true, ..Spec::new(Guest::Bookworm, "") };
    fs::write(&specification, spec.to_toml())?;
    let mut job = Job::new("policies").timeout(LIMIT);
    (job.verbose, job.live) = (verbose, verbose);
    job.file("vm.toml", &specification);
    job.binaries(&build::binaries("release", false)?);
    job.script(&format!("{GUEST_FUNCTIONS}\n{HOST}"));
    job.results = Some(directory.clone());
    let outcome = lab::run(&job)?;
    let log = fs::read(directory.join("strace"));
    // What cannot be removed is only in the way.
    let _ = fs::remove_dir_all(&directory);
    ensure!(outcome.status == 0, "status {}\n{}", outcome.status, sh::tail(&outcome.output, 50));
    ensure!(outcome.output.contains("boots: 1"), "no reboot\n{}", sh::tail(&outcome.output, 50));
    judge(&String::from_utf8_lossy(&log.context("strace wrote nothing")?))?;
    Ok(start.elapsed())
}

fn judge(log: &str) -> Result<()> {
    let mut usage = Usage::default();
    usage.read(log);
    let mut wrong: Vec<String> = Vec::new();
    for policy in POLICIES {
        if !usage.policies().any(|seen| seen.name == policy.name) {
            wrong.push(format!("{} was never in force", policy.name));
            continue;
        }
        for rule in usage.unused(&policy) {
            wrong.push(format!("{}: never used: {}", policy.name, text(rule)));
        }
        for rule in usage.rare_but_used(&policy) {
            sh::say(&format!("{}: rare, but used: {}", policy.name, text(rule)));
        }
    }
    wrong.extend(usage.denied().iter().map(|(policy, call)| format!("{policy}: denied: {call}")));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn text(rule: &Rule) -> String {
    let names = rule.conditions.iter().map(|condition| format!(" {}", condition.name));
    format!("{}{} ({})", rule.syscall, names.collect::<String>(), rule.reason)
}
