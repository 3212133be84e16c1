//! A host that misbehaves: what the guest is told, and that everything else goes on.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::{Disk, Guest, Outcome};
use vsp_storage::controller::Controller;

const MIB: u64 = 1 << 20;
const FLUSH: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const MEDIUM_READ: Outcome = Outcome::Check(3, 0x11, 0);
const MEDIUM_WRITE: Outcome = Outcome::Check(3, 0x0C, 0);
const NO_SPACE: Outcome = Outcome::Check(7, 0x27, 7);
const NOT_PRESENT: Outcome = Outcome::Check(2, 0x3A, 0);

fn read_10(lba: u64, blocks: u8) -> [u8; 10] {
    let [a, b, c, d] = (lba as u32).to_be_bytes();
    [0x28, 0, a, b, c, d, 0, 0, blocks, 0]
}

fn write_10(lba: u64, blocks: u8) -> [u8; 10] {
    let mut cdb = read_10(lba, blocks);
    cdb[0] = 0x2A;
    cdb
}

/// A file system of a fixed size in memory.
struct Small(PathBuf);

impl Small {
    /// `None` where this process may not mount one; the test says so and is over.
    fn mount(name: &str, bytes: u64) -> Option<Small> {
        let path = std::env::temp_dir().join(format!("bulkhead-small-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "small"])
            .arg(&path)
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Small(path));
        }
        eprintln!("SKIPPED: only root may mount a file system");
        fs::remove_dir(path).unwrap();
        None
    }

    /// A file in it of so many bytes, all of them holes.
    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.0.join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

/// A block device that is a file.
struct Loop(String);

impl Loop {
    /// `None` where this host has none; the test says so and is over.
    fn new(file: &Path, block_size: u32) -> Option<Loop> {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block_size.to_string()])
            .arg(file)
            .output();
        match made {
            Ok(output) if output.status.success() => {
                Some(Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
            }
            other => {
                eprintln!("SKIPPED: no loop devices here: {other:?}");
                None
            }
        }
    }

    fn argument(&self, options: &str) -> String {
        format!("path={}{options}", self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_full_host_is_a_disk_without_room_until_there_is_some() {
    let Some(small) = Small::mount("full", MIB) else { return };
    let ballast = small.file("ballast", 0);
    fs::write(&ballast, vec![1; 1 << 19]).unwrap();
    let image = small.file("disk.img", 4 * MIB);
    let healthy = Disk::new("beside-a-full-one", MIB);
    let mut guest = Guest::new(&[&format!("path={}", image.display()), &healthy.argument("")]);
    let data = [7; 64 * 1024];
    let outcomes: Vec<Outcome> = (0..16).map(|n| guest.write(&write_10(n * 128, 128), &data)).collect();
    assert_eq!(outcomes[0], Outcome::Good(64 * 1024));
    assert_eq!(outcomes[15], NO_SPACE);
    assert!(outcomes.iter().all(|outcome| [Outcome::Good(64 * 1024), NO_SPACE].contains(outcome)));
    assert_eq!(guest.read(&read_10(0, 128), data.len()), (Outcome::Good(64 * 1024), data.to_vec()));
    assert_eq!(guest.write(&FLUSH, &[]), Outcome::Good(0), "nothing that was acknowledged is lost");
    guest.unit.lun = 1;
    assert_eq!(guest.write(&write_10(0, 128), &data), Outcome::Good(64 * 1024), "the other disk is well");
    guest.unit.lun = 0;
    fs::remove_file(ballast).unwrap();
    assert_eq!(guest.write(&write_10(15 * 128, 128), &data), Outcome::Good(64 * 1024));
}

#[test]
fn a_disk_that_fails_is_a_medium_error_and_the_others_go_on() {
    let Some(small) = Small::mount("failing", MIB) else { return };
    let image = small.file("disk.img", 4 * MIB);
    fs::write(small.0.join("ballast"), vec![1; 900 * 1024]).unwrap();
    // What is written to this device has no room behind it: its driver can only say that it failed.
    let Some(device) = Loop::new(&image, 512) else { return };
    let healthy = Disk::new("beside-a-failing-one", MIB);
    let data = [7; 64 * 1024];
    {
        let mut guest = Guest::new(&[&device.argument(",cache=none"), &healthy.argument("")]);
        let outcomes: Vec<Outcome> = (0..8).map(|n| guest.write(&write_10(n * 128, 128), &data)).collect();
        assert!(
            outcomes.iter().any(|outcome| [MEDIUM_WRITE, NO_SPACE].contains(outcome)),
            "past the page cache each write says so itself: {outcomes:?}"
        );
        guest.unit.lun = 1;
        assert_eq!(guest.write(&write_10(0, 128), &data), Outcome::Good(64 * 1024));
        guest.bench.quiesce();
    }
    {
        let mut guest = Guest::new(&[&device.argument(",cache=writethrough"), &healthy.argument("")]);
        let outcomes: Vec<Outcome> = (16..24).map(|n| guest.write(&write_10(n * 128, 128), &data)).collect();
        assert!(
            outcomes.iter().any(|outcome| [MEDIUM_WRITE, NO_SPACE].contains(outcome)),
            "and when what is written is safe at once: {outcomes:?}"
        );
        guest.bench.quiesce();
    }
    let mut guest = Guest::new(&[&device.argument(""), &healthy.argument("")]);
    for n in 32..40 {
        assert_eq!(guest.write(&write_10(n * 128, 128), &data), Outcome::Good(64 * 1024));
    }
    let flush = guest.write(&FLUSH, &[]);
    assert!([MEDIUM_WRITE, NO_SPACE].contains(&flush), "{flush:?}");
    assert_eq!(guest.write(&FLUSH, &[]), MEDIUM_WRITE, "what was lost stays lost");
    // Behind the end of what there is, nothing can be read either.
    File::options().write(true).open(&image).unwrap().set_len(2 * MIB).unwrap();
    let (outcome, _) = guest.read(&read_10(7 * 1024, 8), 4096);
    assert_eq!(outcome, MEDIUM_READ);
    assert_eq!(guest.read(&[0x12, 0, 0, 0, 36, 0], 36).0, Outcome::Good(36), "the unit is there");
    guest.unit.lun = 1;
    assert_eq!(guest.write(&write_10(0, 128), &data), Outcome::Good(64 * 1024));
    assert_eq!(guest.write(&FLUSH, &[]), Outcome::Good(0));
}

#[test]
fn a_file_in_the_place_of_another_is_not_touched_until_the_guest_begins_anew() {
    let (disk, healthy) = (Disk::new("replaced", MIB), Disk::new("beside-a-replaced-one", MIB));
    let arguments = [disk.argument(""), healthy.argument("")];
    let arguments = [&*arguments[0], &*arguments[1]];
    let mut guest = Guest::new(&arguments);
    let data = [7; 4096];
    assert_eq!(guest.write(&write_10(0, 8), &data), Outcome::Good(4096));

    let first = disk.path.with_extension("first");
    fs::rename(&disk.path, &first).unwrap();
    fs::write(&disk.path, vec![0; 1 << 20]).unwrap();
    assert_eq!(guest.write(&write_10(8, 8), &data), Outcome::Good(4096), "an open file is an open file");
    guest.bench.quiesce();
    let mut guest = guest.taken_over(&arguments);
    assert_eq!(guest.read(&read_10(0, 8), 4096).0, NOT_PRESENT);
    assert_eq!(guest.write(&write_10(0, 8), &data), NOT_PRESENT);
    assert_eq!(guest.write(&FLUSH, &[]), NOT_PRESENT);
    assert_eq!(guest.write(&[0; 6], &[]), NOT_PRESENT);
    assert_eq!(guest.read(&[0x12, 0, 0, 0, 36, 0], 36).0, Outcome::Good(36));
    guest.unit.lun = 1;
    assert_eq!(guest.write(&write_10(0, 8), &data), Outcome::Good(4096), "the other disk is well");
    assert_eq!(fs::read(&disk.path).unwrap(), vec![0; 1 << 20], "the stranger's file was written to");

    // Nor does the next process, whose predecessor knew no better...
    guest.bench.quiesce();
    let mut guest = guest.taken_over(&arguments);
    guest.unit.lun = 0;
    assert_eq!(guest.write(&write_10(0, 8), &data), NOT_PRESENT);
    // ...but the one that finds the first file does.
    guest.bench.quiesce();
    fs::rename(&first, &disk.path).unwrap();
    let mut guest = guest.taken_over(&arguments);
    assert_eq!(guest.read(&read_10(8, 8), 4096), (Outcome::Good(4096), data.to_vec()));

    // A guest that begins anew takes what is there.
    guest.bench.quiesce();
    fs::write(&first, vec![9; 1 << 20]).unwrap();
    fs::rename(&first, &disk.path).unwrap();
    let mut guest = guest.taken_over(&arguments);
    assert_eq!(guest.read(&read_10(0, 8), 4096).0, NOT_PRESENT);
    guest.bench.close(1);
    guest.end = guest.bench.open(1, 16);
    let mut guest = guest.introduced();
    assert_eq!(guest.read(&read_10(0, 8), 4096), (Outcome::Good(4096), vec![9; 4096]));
}

#[test]
fn each_way_to_cache_reads_and_writes_and_tells_the_guest() {
    let caching = [0x1A, 8, 8, 0, 255, 0];
    for (cache, write_cache) in [("writeback", 4), ("writethrough", 0), ("none", 4)] {
        let disk = Disk::new(cache, MIB);
        let mut guest = Guest::new(&[&disk.argument(&format!(",cache={cache}"))]);
        let (outcome, page) = guest.read(&caching, 255);
        assert!(matches!(outcome, Outcome::Good(_)), "{outcome:?}");
        assert_eq!((page[4], page[6] & 4), (8, write_cache), "{cache}");
        let data = [7; 4096];
        assert_eq!(guest.write(&write_10(8, 8), &data), Outcome::Good(4096));
        assert_eq!(guest.read(&read_10(8, 8), 4096), (Outcome::Good(4096), data.to_vec()));
        assert_eq!(guest.write(&FLUSH, &[]), Outcome::Good(0));
        let mut there = [0; 4096];
        disk.file.read_exact_at(&mut there, 4096).unwrap();
        assert_eq!(there, data, "{cache}");
    }
}

#[test]
fn blocks_of_4096_bytes_are_what_the_guest_sees_and_counts_in() {
    let capacity = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let disk = Disk::new("4kn", 4 * MIB);
    let device = Loop::new(&disk.path, 4096);
    let file = disk.argument(",block_size=4096");
    let device_argument = device.as_ref().map(|device| device.argument(""));
    let direct = device.as_ref().map(|device| device.argument(",cache=none"));
    for argument in [Some(file), device_argument, direct].into_iter().flatten() {
        let mut guest = Guest::new(&[&argument]);
        let (outcome, answer) = guest.read(&capacity, 8);
        assert_eq!((outcome, &answer[..]), (Outcome::Good(8), &[0, 0, 3, 0xFF, 0, 0, 0x10, 0][..]));
        assert_eq!(guest.write(&write_10(1, 1), &[7; 4096]), Outcome::Good(4096));
        assert_eq!(guest.read(&read_10(1, 1), 4096), (Outcome::Good(4096), vec![7; 4096]));
        assert_eq!(guest.read(&read_10(1024, 1), 4096).0, Outcome::Check(5, 0x21, 0));
        guest.bench.quiesce();
    }
    if let Some(device) = &device {
        let smaller = device.argument(",block_size=512").parse().unwrap();
        let error = Controller::open("test", &[smaller]).map(drop).unwrap_err().to_string();
        assert!(error.contains("use block_size=4096, not 512"), "{error}");
    }
}
