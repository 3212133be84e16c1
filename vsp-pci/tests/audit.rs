//! No rule without a use: what the program does for an honest guest uses every rule of its policy, but for those marked `rare:`,
//! and nothing that is not allowed. (Each rule by itself is executed by `sandbox/tests/compartment`.)

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod process;

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use process::{PROGRAM, Process, RAM, World, hardware};
use vsp::ipc::message::ToCore;
use vsp::policies::{VSP_PCI, audit::Usage};
use vsp::testing::FakeCore;
use vsp_pci::mock::Model;

#[test]
fn a_functions_life_uses_every_rule() {
    // The kernel lets nobody else look at a process in its compartment.
    if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        eprintln!("SKIPPED: only root may trace a process in its compartment; the policy was NOT audited");
        return;
    }
    let log = std::env::temp_dir().join(format!("bulkhead-pci-{}.strace", std::process::id()));
    let strace = || {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-A", "-e", "raw=!seccomp", "-o"]).arg(&log).arg(PROGRAM);
        strace
    };
    let hardware = hardware(Model::nic());
    let (mut core, socket) = FakeCore::new(RAM);
    let mut process = Process::start_by(strace(), socket, &hardware, &[]);
    core.welcome();
    while !core.kept().iter().any(|(key, ..)| *key == 0) {
        core.attend();
    }
    // A successor, which adopts what the first has had.
    let (_, socket) = core.successor();
    assert_eq!(process.wait().code(), Some(0));
    let process = Process::start_by(strace(), socket, &hardware, &[]);
    core.greet(false);
    core.serve(true);
    let end = core.open(1, 16);
    assert_eq!(core.answer(), ToCore::OpenResult { channel: 1, status: 0, reason: None });
    let mut world = World::with(hardware, core, process, end);
    (0..2).for_each(|_| world.live(|_| {}));
    world.core.close(1);
    assert_eq!(world.core.answer(), ToCore::Closed { channel: 1 });
    drop(world.core);
    assert_eq!(world.process.wait().code(), Some(0));
    let mut usage = Usage::default();
    usage.read(&std::fs::read_to_string(&log).unwrap());
    std::fs::remove_file(&log).unwrap();
    assert!(usage.policies().any(|seen| seen.name == VSP_PCI.name), "the policy was never in force");
    assert!(usage.denied().is_empty(), "denied: {:?}", usage.denied());
    let unused = usage.unused(&VSP_PCI);
    assert!(unused.is_empty(), "unused: {unused:?}");
}
