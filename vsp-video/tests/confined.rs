//! The real program in its compartment: what it can do, and what it cannot.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod process;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use process::{Ends, PROGRAM, Process, live};
use vsp::testing::FakeCore;

#[test]
fn a_confined_process_shows_a_picture_that_it_never_sees() {
    let ends = Ends::new();
    let (core, socket) = FakeCore::new(0);
    let mut process = Process::start(socket, &ends, &[]);
    let offer = core.welcome();
    assert_eq!((offer.class, offer.mmio_megabytes), (vsp::vmbus::guid::class::VIDEO.to_string(), 8));
    for _ in 0..3 {
        live(&core, &ends, || {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid())).unwrap();
            assert!(maps.contains("test-channel") && !maps.contains("vram"), "{maps}");
        });
    }
    drop(core);
    assert_eq!(process.wait().code(), Some(0), "it has to end with its core");
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

#[test]
fn what_cannot_start_says_why_in_one_sentence() {
    let modes = ["--device", "d", "--policy-test", "open", "--seat-fd", "50"];
    for (arguments, words) in [
        (&["--device", "d", "--seat-fd", "50"][..], "--core PATH"),
        (&modes, "descriptor 50 is no end"),
        (&["--device", "d", "--policy-test", "open", "--seat-socket", "/nonexistent"], "from /nonexistent"),
    ] {
        let output = run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn every_forbidden_act_is_the_last_one() {
    for act in sandbox::policy_test::FORBIDDEN.iter().map(|act| act.name) {
        let ends = Ends::new();
        let (_core, socket) = FakeCore::new(0);
        let mut process = Process::start(socket, &ends, &["--policy-test".into(), act.into()]);
        let status = process.wait();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{act}: {status:?}");
    }
}

#[test]
fn the_policy_has_at_most_15_calls() {
    let calls = vsp::policies::VSP_VIDEO.syscalls();
    assert!(calls.len() <= 15, "{calls:?}");
}
