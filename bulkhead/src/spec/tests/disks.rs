//! What a person can get wrong about a disk.

use std::fs;

use super::{Files, GOOD};
use crate::spec::{Cache, Options};

#[test]
fn disks_that_cannot_be_used() {
    let files = Files::new("disks");
    fs::write(files.0.join("empty.raw"), "").unwrap();
    fs::write(files.0.join("odd.raw"), [0; 700]).unwrap();
    let with = |to: &str| {
        let (place, message, fix) = files.only(&GOOD.replace("path = \"root.img\"", to));
        format!("{} {message} / {fix}", place.trim_start_matches("vm.toml:"))
    };
    for (to, expected) in [
        (
            "path = \"empty.raw\"",
            "12:8 the disk DIR/empty.raw is empty / give it a size: truncate -s 4G DIR/empty.raw",
        ),
        (
            "path = \"odd.raw\"",
            "12:8 the disk DIR/odd.raw has 700 bytes, which is not a multiple of 512 / round it up: truncate -s 1024 \
             DIR/odd.raw",
        ),
        ("path = \"/\"", "12:8 the disk / is a directory / name a raw image or a block device"),
        (
            "path = \"/dev/null\"",
            "12:8 the disk /dev/null is neither a file nor a block device / name a raw image or a block device",
        ),
        (
            "path = \"root.img\"\nblock_size = 4096",
            "12:8 the disk DIR/root.img has 1024 bytes, which is not a multiple of 4096 / round it up: truncate -s 4096 \
             DIR/root.img",
        ),
        (
            "path = \"root.img\"\nserial = \"A\"\n[[storage.disk]]\npath = \"data.img\"\nserial = \"A\"",
            "9:1 the serial number A of LUN 1 of disk0 is that of LUN 0 of disk0 already / give each disk a `serial` of \
             its own, or none",
        ),
        (
            "path = \"root.img\"\nserial = \"disk0-1\"\n[[storage.disk]]\npath = \"data.img\"",
            "9:1 the serial number disk0-1 of LUN 1 of disk0 is that of LUN 0 of disk0 already / give each disk a \
             `serial` of its own, or none",
        ),
        ("lun = 0", "11:1 `path` is missing in [[storage.disk]] / add path = \"root.img\""),
        (
            "path = \"root.img\"\nlun = 64",
            "13:7 `lun` must be from 0 to 63, not 64 / write a number from 0 to 63",
        ),
        (
            "path = \"root.img\"\n[[storage.disk]]\npath = \"data.img\"\nlun = 0",
            "15:7 LUN 0 is taken by disk 1 of this controller / write lun = 1",
        ),
        (
            "path = \"root.img\"\n[[storage.disk]]\npath = \"./root.img\"",
            "14:8 the disk DIR/./root.img is in this spec already, as DIR/root.img / give each disk a file of its own, \
             or make both readonly = true",
        ),
        (
            "path = \"root.img\"\n[[storage]]\nname = \"disk0\"\n[[storage.disk]]\npath = \"data.img\"",
            "14:8 device 1 is called \"disk0\" already / give each device a name of its own: \"disk1\"",
        ),
        (
            "path = \"root.img\"\n[[storage]]\nname = \"core\"\n[[storage.disk]]\npath = \"data.img\"",
            "14:8 a device cannot be called \"core\": that is the VM's own process / call it \"disk1\"",
        ),
        (
            "path = \"root.img\"\n[[storage]]\nname = \"disk1\"",
            "13:1 `disk` is missing in [[storage]] / add [[storage.disk]] with path = \"root.img\"",
        ),
    ] {
        assert_eq!(with(to), expected);
    }
}

#[test]
fn disks_are_used_as_they_are_told() {
    let files = Files::new("options");
    let source = GOOD.replace("root.img", "a,b.img")
        + "cache = \"none\"\nblock_size = 512\nserial = \"A-1\"\niops = 500\nbandwidth = \"100MiB\"\nburst = 2\n";
    fs::write(files.0.join("a,b.img"), [0; 1024]).unwrap();
    let (spec, report) = files.parse(&source);
    let disk = spec.unwrap_or_else(|| panic!("{report}")).storage.remove(0).disks.remove(0);
    let options = Options {
        cache: Cache::None,
        block_size: Some(512),
        serial: Some("A-1".into()),
        iops: Some(500),
        bandwidth: Some(100 << 20),
        burst: Some(2),
    };
    assert_eq!(disk.options, options);
    assert_eq!(
        options.to_string(),
        ", past the page cache, blocks of 512 bytes, serial A-1, at most 500 commands and 100 MiB a second"
    );
    assert_eq!(Options::default().to_string(), "");
}

#[test]
fn ways_to_use_a_disk_that_there_are_not() {
    let files = Files::new("usage");
    let with = |line: &str| {
        let (place, message, fix) = files.only(&(GOOD.to_owned() + line));
        format!("{} {message} / {fix}", place.trim_start_matches("vm.toml:"))
    };
    for (line, expected) in [
        (
            "cache = \"unsafe\"",
            "13:9 `cache` cannot be \"unsafe\" / write \"writeback\", \"writethrough\" or \"none\" (past the host's page \
             cache)",
        ),
        ("block_size = 1024", "13:14 `block_size` cannot be 1024 / write 512 or 4096"),
        (
            "serial = \"a b\"",
            "13:10 `serial` may not contain ' ' / use ASCII letters, digits and signs, no spaces; or remove it, and it is \
             made of the device's name",
        ),
        ("iops = 0", "13:8 `iops` must be from 1 to 1000000000, not 0 / write a number from 1 to 1000000000"),
        (
            "bandwidth = 100",
            "13:13 100 bytes a second are too few for a disk to be used / a plain number is bytes; did you mean \
             \"100MiB\"?",
        ),
        (
            "burst = 2",
            "13:9 `burst` means nothing without a limit / add iops = 500 or bandwidth = \"100MiB\", or remove it",
        ),
    ] {
        assert_eq!(with(line), expected);
    }
    let misplaced = GOOD.replace("name = \"disk0\"", "name = \"disk0\"\nserial = \"A\"");
    assert_eq!(files.only(&misplaced).2, "`serial` belongs in [[storage.disk]]");
}

/// What QEMU's programs lock while they use an image: a byte from 100 on for what they do, from 200 on for what others may not.
#[test]
fn a_disk_that_qemu_uses_is_in_use() {
    let files = Files::new("qemu");
    let readonly = GOOD.to_owned() + "readonly = true\n";
    let mark = |byte: i64| {
        let file = fs::File::open(files.0.join("root.img")).unwrap();
        let lock = nix::libc::flock {
            l_type: nix::libc::F_RDLCK as i16,
            l_whence: nix::libc::SEEK_SET as i16,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        file
    };
    let writer = mark(101);
    let message = "the disk DIR/root.img is in use by QEMU, which writes to it";
    assert_eq!((files.only(GOOD).1.as_str(), files.only(&readonly).1.as_str()), (message, message));
    drop(writer);
    let reader = mark(201);
    assert_eq!(
        files.only(GOOD).1,
        "the disk DIR/root.img is in use by QEMU, which lets nobody else write to it"
    );
    assert!(files.parse(&readonly).0.is_some());
    drop(reader);
    assert!(files.parse(GOOD).0.is_some());
}

#[test]
fn a_disk_may_be_shared_if_nobody_writes() {
    let files = Files::new("shared");
    let source =
        GOOD.to_owned() + "readonly = true\n[[storage.disk]]\npath = \"root.img\"\nreadonly = true\n";
    assert!(files.parse(&source).0.is_some());
}

#[test]
fn a_locked_disk_is_in_use() {
    let files = Files::new("locked");
    let disk = fs::File::open(files.0.join("root.img")).unwrap();
    disk.lock_shared().unwrap();
    let (_, message, _) = files.only(GOOD);
    assert_eq!(message, "the disk DIR/root.img is in use by another process, which has it locked");
    assert!(files.parse(&(GOOD.to_owned() + "readonly = true\n")).0.is_some());
    drop(disk);
    assert!(files.parse(GOOD).0.is_some());
}
