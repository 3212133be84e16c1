//! Reads strace logs of a whole workload and fails if a policy in force has a rule that nothing used.
//!
//! As root: `strace -f --pidns-translation -e raw='!seccomp' -o LOG COMMAND...`, then `seccomp-audit LOG...`

use std::process::ExitCode;

use policies::audit::Usage;

fn main() -> ExitCode {
    let mut usage = Usage::default();
    for path in std::env::args().skip(1) {
        match std::fs::read(&path) {
            Ok(log) => usage.read(&String::from_utf8_lossy(&log)),
            Err(e) => {
                eprintln!("{path}: {e}");
                return ExitCode::from(2);
            }
        }
    }
    let mut clean = true;
    for policy in usage.policies() {
        println!("{}: {} syscalls, {} rules", policy.name, policy.syscalls().len(), policy.rules().len());
        for rule in usage.unused(&policy) {
            clean = false;
            println!("  never used: {}{} ({})", rule.syscall, conditions(rule), rule.reason);
        }
        for rule in usage.rare_but_used(&policy) {
            println!("  rare, and used: {}{}", rule.syscall, conditions(rule));
        }
    }
    for (policy, call) in usage.denied() {
        clean = false;
        println!("{policy}: denied: {call}");
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn conditions(rule: &policies::Rule) -> String {
    let names: Vec<_> = rule.conditions.iter().map(|condition| condition.name).collect();
    if names.is_empty() { String::new() } else { format!(" with {}", names.join(", ")) }
}
