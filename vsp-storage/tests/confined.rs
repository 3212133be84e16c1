//! The real program in its real compartment.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;
mod process;

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use guest::{Disk, INTRODUCTION, Outcome, UNIT};
use process::{PROGRAM, Storage};
use vsp::ipc::message::ToCore;
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp_storage::wire::{self, Direction};

fn start(disk: &Disk) -> (FakeCore, Storage) {
    let (core, socket) = FakeCore::new(guest::RAM);
    let child = Storage::start(socket, &disk.argument(""), &[]);
    assert_eq!(core.welcome().class, vsp::vmbus::guid::class::SCSI.to_string());
    (core, child)
}

fn open(core: &FakeCore) -> GuestEnd {
    let mut end = core.open(1, 16);
    assert_eq!(core.answer(), ToCore::OpenResult { channel: 1, status: 0, reason: None });
    for (operation, word) in INTRODUCTION {
        assert!(end.send(&Outgoing::in_band(1, true), &[&wire::simple(operation, word)]));
        assert_eq!(end.wait().1[8..12], [0; 4]);
    }
    end
}

fn command(end: &mut GuestEnd, direction: Direction, cdb: &[u8], len: u32) -> Outcome {
    let packet = wire::command(UNIT, direction, cdb, len);
    let pages: Vec<u64> = (0..u64::from(len.div_ceil(4096))).map(|page| 7 + 2 * page).collect();
    let header = gpa_direct_header(&[(0, len, &pages)]);
    if len == 0 {
        assert!(end.send(&Outgoing::in_band(2, true), &[&packet]));
    } else {
        assert!(end.send(&Outgoing::gpa_direct(2, &header), &[&header, &packet]));
    }
    Outcome::of(&end.wait().1)
}

#[test]
fn a_confined_process_serves_a_disk() {
    let disk = Disk::new("served", 16 << 20);
    disk.file.write_all_at(b"root", 4096).unwrap();
    let (core, mut child) = start(&disk);
    let mut end = open(&core);
    let ram = core.ram.as_ref().unwrap();
    for round in 0..200u8 {
        let read = [0x28, 0, 0, 0, 0, 8, 0, 0, 16, 0];
        assert_eq!(command(&mut end, Direction::FromDevice, &read, 8192), Outcome::Good(8192));
        let mut bytes = [0; 4];
        ram.read(7 * 4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"root");
        ram.write(9 * 4096, &[round; 4096]).unwrap();
        let write = [0x2A, 8, 0, 0, 0, 8, 0, 0, 16, 0];
        assert_eq!(command(&mut end, Direction::ToDevice, &write, 8192), Outcome::Good(8192));
    }
    let mut tail = [0; 4096];
    disk.file.read_exact_at(&mut tail, 8192).unwrap();
    assert_eq!(tail, [199; 4096]);
    // All that a guest may ask for works with the door closed: flush, UNMAP, WRITE SAME (with and without
    // data).
    let flush = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(command(&mut end, Direction::None, &flush, 0), Outcome::Good(0));
    ram.write(7 * 4096, &vsp_storage::scsi::unmap::list(&[(16, 16)])).unwrap();
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(command(&mut end, Direction::ToDevice, &unmap, 24), Outcome::Good(24));
    ram.write(7 * 4096, &[0xAB; 512]).unwrap();
    let mut same = [0x41, 0, 0, 0, 0, 0, 0, 0x10, 0xFF, 0];
    assert_eq!(command(&mut end, Direction::ToDevice, &same, 512), Outcome::Good(512));
    ram.write(7 * 4096, &[0; 512]).unwrap();
    same[1] = 8;
    assert_eq!(command(&mut end, Direction::ToDevice, &same, 512), Outcome::Good(512));
    core.close(1);
    assert_eq!(core.answer(), ToCore::Closed { channel: 1 });
    drop(open(&core));
    drop(core);
    assert_eq!(child.wait().code(), Some(0), "it has to end with its core");
}

#[test]
fn a_disk_is_free_again_when_its_process_dies() {
    let disk = Disk::new("freed", 1 << 20);
    for _ in 0..3 {
        let (core, mut child) = start(&disk);
        let _end = open(&core);
        child.kill();
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

#[test]
fn what_cannot_start_says_why_in_one_sentence() {
    for (arguments, words) in [
        (&["--device", "d"][..], "--core PATH"),
        (&["--device", "d", "--core", "/nonexistent/socket"], "cannot talk to the core"),
        (
            &["--device", "d", "--policy-test", "open", "--disk", "path=/nonexistent"],
            "cannot open /nonexistent",
        ),
    ] {
        let output = run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(words) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn every_forbidden_act_is_the_last_one() {
    let disk = Disk::new("forbidden", 1 << 20);
    for act in sandbox::policy_test::FORBIDDEN.iter().map(|act| act.name) {
        let output = run(&["--device", "d", "--disk", &disk.argument(""), "--policy-test", act]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{act}: {:?} {text}", output.status);
    }
}
