//! The real program in its compartment: what it can do, and what it cannot.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod process;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use process::{Process, RAM, World, hardware};
use vsp::ipc::message::ToCore;
use vsp::testing::FakeCore;
use vsp_pci::mock::Model;

/// What issue 7 asks, in KiB.
const MEMORY: u64 = 3 << 10;

#[test]
fn a_confined_process_passes_a_function_through() {
    let mut world = World::new(Model::nic(), &[]);
    for _ in 0..3 {
        world.live(|_| {});
    }
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", world.process.pid()));
    if let Ok(text) = text {
        let dirty = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        let kilobytes: u64 = dirty.trim().trim_end_matches(" kB").parse().unwrap();
        // Without optimization, the program itself is bigger.
        let most = if cfg!(debug_assertions) { 2 * MEMORY } else { MEMORY };
        assert!(kilobytes <= most, "{kilobytes} KiB");
    } else {
        eprintln!("SKIPPED: only root may look at the memory of a process in its compartment");
    }
    world.core.close(1);
    assert_eq!(world.core.answer(), ToCore::Closed { channel: 1 });
    drop(world.core);
    assert_eq!(world.process.wait().code(), Some(0), "it has to end with its core");
}

#[test]
fn nobody_gets_a_function_that_somebody_has() {
    let world = World::new(Model::nic(), &[]);
    // Another VM.
    let (core, socket) = FakeCore::new(RAM);
    let mut process = Process::start(socket, &world.hardware, &[]);
    core.greet(false);
    core.send(&vsp::ipc::message::ToVsp::Serve { predecessor: false });
    assert_eq!(process.wait().code(), Some(1));
    assert!(world.hardware.is_open());
}

#[test]
fn what_cannot_start_says_why_in_one_sentence() {
    let mock = env!("CARGO_BIN_EXE_mock-pci");
    let real = env!("CARGO_BIN_EXE_vsp-pci");
    let line_only = hardware(Model { msi: 0, msix: None, ..Model::nic() });
    let no_reset = hardware(Model { is_resettable: false, ..Model::nic() });
    let at = |hardware: &vsp_pci::mock::Hardware| hardware.path().to_str().unwrap().to_owned();
    let (core, socket) = FakeCore::new(0);
    drop((core, socket));
    for (program, arguments, words) in [
        (mock, vec!["--mock".to_owned(), at(&line_only)], "interrupts by a line only"),
        (mock, vec!["--mock".to_owned(), at(&no_reset)], "cannot be reset"),
        (mock, vec!["--mock".to_owned(), "/nonexistent".to_owned()], "No such file"),
        (real, vec![], "/dev/vfio/99999"),
    ] {
        let (core, socket) = FakeCore::new(0);
        let mut command = Command::new(program);
        command.args(["--device", "d", "--address", "0000:00:05.0", "--group", "99999"]).args(arguments);
        let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let output = command.args(["--core-fd", &number.to_string()]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words) && text.lines().count() == 1, "{text}");
        drop((core, socket));
    }
}

#[test]
fn every_forbidden_act_is_the_last_one() {
    for act in sandbox::policy_test::FORBIDDEN.iter().map(|act| act.name) {
        let hardware = hardware(Model::nic());
        let (_core, socket) = FakeCore::new(0);
        let mut process = Process::start(socket, &hardware, &["--policy-test".into(), act.into()]);
        let status = process.wait();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{act}: {status:?}");
    }
}

#[test]
fn the_policy_has_at_most_20_calls() {
    let calls = vsp::policies::VSP_PCI.syscalls();
    assert!(calls.len() <= 20, "{calls:?}");
}
