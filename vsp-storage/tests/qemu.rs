//! QEMU's programs keep off what we serve, and we keep off what they use. With the real ones, if there are any.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;
mod process;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest::{Disk, Guest, Outcome};
use nix::fcntl::{FcntlArg, fcntl};
use process::Storage;
use vsp::ipc::message::{ToCore, ToVsp};
use vsp::testing::FakeCore;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// True if there is a QEMU; otherwise the test says so and is over.
fn there_is_qemu() -> bool {
    let programs = ["qemu-img", "qemu-io"];
    let there = programs.iter().all(|name| Command::new(name).arg("--version").output().is_ok());
    if !there {
        eprintln!("SKIPPED: qemu-img and qemu-io (Debian: qemu-utils) are not installed");
    }
    there
}

/// Whether QEMU's programs may write to the image of 1 MiB, all of them or none. They do not change it.
fn may_write(image: &Path) -> bool {
    let works = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || said.contains("lock"), "{command:?}: {said}");
        output.status.success()
    };
    assert!(works(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 512"]).arg(image)));
    assert!(works(Command::new("qemu-img").args(["info", "-U"]).arg(image)));
    let open = works(Command::new("qemu-io").args(["-f", "raw", "-c", "length"]).arg(image));
    let resize = works(Command::new("qemu-img").args(["resize", "-f", "raw"]).arg(image).arg("1M"));
    assert_eq!(open, resize);
    // This one would empty it first.
    let create = open || works(Command::new("qemu-img").args(["create", "-f", "raw"]).arg(image).arg("1M"));
    assert_eq!(open, create);
    open
}

/// A program of QEMU's that has an image open until it is dropped.
struct Qemu(Child);

impl Qemu {
    fn open(image: &Path, arguments: &[&str]) -> Qemu {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(arguments).arg(image).stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let ours = File::open(image).unwrap();
        let start = Instant::now();
        while !reads(&ours) {
            assert!(start.elapsed() < Duration::from_secs(20), "QEMU does not open it");
            std::thread::sleep(Duration::from_millis(10));
        }
        Qemu(child)
    }

    fn quit(mut self) {
        self.0.stdin.take().unwrap().write_all(b"quit\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a program of QEMU's has an image open: it locks byte 100 to read.
fn reads(image: &File) -> bool {
    let (l_type, l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    let mut found = libc::flock { l_type, l_whence, l_start: 100, l_len: 1, l_pid: 0 };
    fcntl(image, FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
    i32::from(found.l_type) != libc::F_UNLCK
}

/// A process that is gone may have had a thread whose end takes a moment longer.
fn wait_until_free(image: &File) {
    let start = Instant::now();
    while reads(image) {
        assert!(start.elapsed() < Duration::from_secs(20), "it is not free");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn qemu_keeps_off_a_disk_that_is_served() {
    if !there_is_qemu() {
        return;
    }
    let disk = Disk::new("kept", 1 << 20);
    for options in ["", ",cache=none", ",cache=writethrough", ",ro"] {
        let (mut core, socket) = FakeCore::new(guest::RAM);
        let mut process = Storage::start(socket, &disk.argument(options), &[]);
        core.greet(true);
        assert!(may_write(&disk.path), "who stands by has nothing");
        core.serve(false);
        assert!(!may_write(&disk.path), "{options}");
        // Handed over to a successor, who holds the same.
        core.quiesce();
        assert!(may_write(&disk.path), "{options}");
        core.serve(true);
        process.kill();
        let (old, socket) = core.successor();
        drop(old);
        let mut process = Storage::start(socket, &disk.argument(options), &[]);
        core.welcome();
        assert!(!may_write(&disk.path), "{options}");
        process.kill();
        wait_until_free(&disk.file);
    }
    assert!(may_write(&disk.path));
}

#[test]
fn a_disk_that_qemu_writes_to_is_refused_with_the_reason() {
    if !there_is_qemu() {
        return;
    }
    let disk = Disk::new("refused", 1 << 20);
    let qemu = Qemu::open(&disk.path, &[]);
    let (core, socket) = FakeCore::new(guest::RAM);
    let mut process = Storage::heard(socket, &disk.argument(""));
    core.greet(false);
    core.send(&ToVsp::Serve { predecessor: false });
    let words = process.last_words();
    assert!(words.contains("refused.img (a QEMU program has it open and writes to it)"), "{words}");
    assert_eq!(process.wait().code(), Some(1));
    qemu.quit();
}

#[test]
fn readers_of_both_kinds_share_an_image() {
    if !there_is_qemu() {
        return;
    }
    let disk = Disk::new("shared", 1 << 20);
    let qemu = Qemu::open(&disk.path, &["-r"]);
    let mut guest = Guest::new(&[&disk.argument(",ro")]);
    assert_eq!(guest.read(&READ, 512).0, Outcome::Good(512));
    qemu.quit();
}

/// As at a takeover: a short visit of `qemu-img` to the image in between must not cost the guest its disk.
#[test]
fn a_successor_waits_until_qemu_has_gone() {
    if !there_is_qemu() {
        return;
    }
    let disk = Disk::new("visited", 1 << 20);
    let (mut core, socket) = FakeCore::new(guest::RAM);
    let mut process = Storage::start(socket, &disk.argument(""), &[]);
    core.welcome();
    process.kill();
    wait_until_free(&disk.file);
    let qemu = Qemu::open(&disk.path, &[]);
    let (old, socket) = core.successor();
    drop(old);
    let _process = Storage::start(socket, &disk.argument(""), &[]);
    core.greet(false);
    core.send(&ToVsp::Serve { predecessor: true });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(core.try_answer(), None, "it serves what QEMU writes to");
    qemu.quit();
    assert_eq!(core.answer(), ToCore::Serving {});
}
