//! No rule without a use: what the program does for an honest guest and a console uses every rule of its policy, but for those marked `rare:`,
//! and nothing that is not allowed. (Each rule by itself is executed by `sandbox/tests/compartment`.)

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod process;

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use process::{Ends, PROGRAM, Process, live};
use vsp::policies::{VSP_VIDEO, audit::Usage};
use vsp::testing::FakeCore;

#[test]
fn a_screens_life_uses_every_rule() {
    // The kernel lets nobody else look at a process in its compartment.
    if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        eprintln!("SKIPPED: only root may trace a process in its compartment; the policy was NOT audited");
        return;
    }
    let log = std::env::temp_dir().join(format!("bulkhead-video-{}.strace", std::process::id()));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "raw=!seccomp", "-o"]).arg(&log).arg(PROGRAM);
    let ends = Ends::new();
    let (core, socket) = FakeCore::new(0);
    let mut process = Process::start_by(strace, socket, &ends, &[]);
    core.welcome();
    (0..2).for_each(|_| live(&core, &ends, || {}));
    drop(core);
    assert_eq!(process.wait().code(), Some(0));
    let mut usage = Usage::default();
    usage.read(&std::fs::read_to_string(&log).unwrap());
    std::fs::remove_file(&log).unwrap();
    assert!(usage.policies().any(|seen| seen.name == VSP_VIDEO.name), "the policy was never in force");
    assert!(usage.denied().is_empty(), "denied: {:?}", usage.denied());
    let unused = usage.unused(&VSP_VIDEO);
    assert!(unused.is_empty(), "unused: {unused:?}");
}
