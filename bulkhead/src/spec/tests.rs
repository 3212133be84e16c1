//! Every mistake that a person can make in a spec, and what they are told.

mod disks;
mod net;
mod pci;
mod screen;

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A directory with a kernel, an initrd and two disks; removed when dropped.
struct Files(PathBuf);

impl Files {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bulkhead-spec-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let mut kernel = vec![0; 0x400];
        kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        kernel[0x211] = 1;
        fs::write(path.join("vmlinuz"), kernel).unwrap();
        fs::write(path.join("initrd.img"), "cpio").unwrap();
        for disk in ["root.img", "data.img"] {
            fs::write(path.join(disk), [0; 1024]).unwrap();
        }
        Self(path)
    }

    fn parse(&self, source: &str) -> (Option<Spec>, Report) {
        parse(
            Path::new("vm.toml"),
            source,
            &self.0,
            HostLimits { memory: Some(8 << 30), ..HostLimits::default() },
        )
    }

    /// What is reported about `source`, without this directory's name.
    fn told(&self, source: &str) -> String {
        let (spec, report) = self.parse(source);
        assert_eq!(spec.is_none(), report.errors() > 0);
        report.to_string().replace(&format!("{}/", self.0.display()), "DIR/")
    }

    /// Place, message and fix of the only finding.
    fn only(&self, source: &str) -> (String, String, String) {
        let text = self.told(source);
        let (_, report) = self.parse(source);
        assert_eq!(report.diagnostics().len(), 1, "{text}");
        let line = |start: &str| {
            let found = text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default();
            found
                .trim_start()
                .get(start.len()..)
                .unwrap_or_default()
                .trim_start_matches([':', ' '])
                .to_owned()
        };
        let message = line("error");
        (line("-->"), if message.is_empty() { line("warning") } else { message }, line("= fix"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const GOOD: &str = r#"name = "debian"
[machine]
vcpus = 2
memory = "512MiB"
[boot]
kernel = "vmlinuz"
initrd = "initrd.img"
cmdline = "root=/dev/sda console=ttyS0"
[[storage]]
name = "disk0"
[[storage.disk]]
path = "root.img"
"#;

#[test]
fn a_good_spec_is_read_with_its_defaults() {
    let files = Files::new("good");
    let (spec, report) = files.parse(GOOD);
    assert!(report.is_empty(), "{report}");
    let spec = spec.unwrap();
    assert_eq!(spec.name, "debian");
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (2, 512 << 20));
    assert_eq!((spec.machine.hugepages, spec.machine.prefault), (false, false));
    assert_eq!(spec.boot.kernel, files.0.join("vmlinuz"));
    assert_eq!(spec.console, Console::Terminal);
    assert_eq!(spec.on_crash, OnCrash::Exit);
    let disk = &spec.storage[0].disks[0];
    assert_eq!(
        (disk.path.as_path(), disk.bytes, disk.readonly, disk.lun),
        (&*files.0.join("root.img"), 1024, false, 0)
    );
}

#[test]
fn everything_that_is_written_is_taken() {
    let files = Files::new("full");
    let source = GOOD.replace("[boot]", "hugepages = true\nprefault = true\n[boot]").replace(
        "[[storage]]",
        "[console]\nmode = \"socket\"\npath = \"c.sock\"\n[on]\ncrash = \"continue\"\n[[storage]]",
    ) + "readonly = true\nlun = 9\n[[storage.disk]]\npath = \"data.img\"\n";
    let (spec, report) = files.parse(&source);
    let spec = spec.unwrap_or_else(|| panic!("{report}"));
    assert!(spec.machine.hugepages && spec.machine.prefault);
    assert_eq!(spec.console, Console::Socket(files.0.join("c.sock")));
    assert_eq!(spec.on_crash, OnCrash::Continue);
    let disks: Vec<_> = spec.storage[0].disks.iter().map(|disk| (disk.lun, disk.readonly)).collect();
    assert_eq!(disks, [(9, true), (1, false)]);
}

#[test]
fn every_mistake_is_reported_at_once() {
    let files = Files::new("all");
    let source = r#"name = "My VM"
vcpus = 2
[machine]
vcpu = 2
memory = "2G"
[boot]
kernel = "vmlinux"
[[storage]]
name = "disk0"
[[storage.disk]]
path = "rot.img"
"#;
    assert_eq!(
        files.told(source),
        r#"error: `name` may not contain 'M'
 --> vm.toml:1:8
  |
1 | name = "My VM"
  |        ^^^^^^^
  = fix: use lower-case letters, digits and `-`: "my-vm"

error: there is no `vcpus` in the top of the file
 --> vm.toml:2:1
  |
2 | vcpus = 2
  | ^^^^^
  = fix: `vcpus` belongs in [machine]

error: `vcpus` is missing in [machine]
 --> vm.toml:3:1
  |
3 | [machine]
  | ^^^^^^^^^
  = fix: add vcpus = 2

error: there is no `vcpu` in [machine]
 --> vm.toml:4:1
  |
4 | vcpu = 2
  | ^^^^
  = fix: did you mean `vcpus`?

error: `memory` is not a size: `G` is not a unit
 --> vm.toml:5:10
  |
5 | memory = "2G"
  |          ^^^^
  = fix: did you mean "2GiB"?

error: cannot read the kernel DIR/vmlinux: no such file or directory
 --> vm.toml:7:10
  |
7 | kernel = "vmlinux"
  |          ^^^^^^^^^
  = fix: did you mean DIR/vmlinuz?

error: the disk DIR/rot.img does not exist
  --> vm.toml:11:8
   |
11 | path = "rot.img"
   |        ^^^^^^^^^
   = fix: did you mean DIR/root.img?

vm.toml: 7 errors
"#
    );
}

#[test]
fn an_empty_spec_is_told_what_it_needs() {
    let files = Files::new("empty");
    assert_eq!(
        files.told(""),
        "\
error: `name` is missing
 --> vm.toml
  = fix: add name = \"debian\" at the top

error: `vcpus` is missing in [machine]
 --> vm.toml
  = fix: add vcpus = 2 under [machine]

error: `memory` is missing in [machine]
 --> vm.toml
  = fix: add memory = \"2GiB\" under [machine]

error: `kernel` is missing in [boot]
 --> vm.toml
  = fix: add kernel = \"vmlinuz\" under [boot]

vm.toml: 4 errors
"
    );
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    let files = Files::new("toml");
    let told = files.told("name = \"debian\"\n[machine\nvcpus = 2\n");
    assert!(told.starts_with("error: this is not TOML: "), "{told}");
    assert!(told.contains("--> vm.toml:2:9\n"), "{told}");
}

#[test]
fn values_out_of_range_or_of_another_type() {
    let files = Files::new("values");
    let with = |from: &str, to: &str| {
        let (place, message, fix) = files.only(&GOOD.replace(from, to));
        format!("{} {message} / {fix}", place.trim_start_matches("vm.toml:"))
    };
    for (to, expected) in [
        ("vcpus = 0", "3:9 `vcpus` must be from 1 to 64, not 0 / write a number from 1 to 64"),
        ("vcpus = 65", "3:9 `vcpus` must be from 1 to 64, not 65 / write a number from 1 to 64"),
        ("vcpus = -1", "3:9 `vcpus` must be from 1 to 64, not -1 / write a number from 1 to 64"),
        ("vcpus = \"2\"", "3:9 `vcpus` must be a number, not a string / leave out the quotes: vcpus = 2"),
        (
            "vcpus = 2.0",
            "3:9 `vcpus` must be a number, not a number with a fraction / write a number from 1 to 64",
        ),
        (
            "vcpus = 2\nprefault = 1",
            "4:12 `prefault` must be true or false, not a number / write prefault = true or prefault = false",
        ),
    ] {
        assert_eq!(with("vcpus = 2", to), expected);
    }
    for (to, expected) in [
        (
            "512",
            "4:10 512 bytes of memory is too little for a Linux kernel / a plain number is bytes; did you mean \"512MiB\"?",
        ),
        ("\"32MiB\"", "4:10 32 MiB of memory is too little for a Linux kernel / write at least \"64MiB\""),
        (
            "\"16GiB\"",
            "4:10 16 GiB is more memory than this host has (8 GiB) / write at most \"8192MiB\", or use --overcommit",
        ),
        ("\"101MiB\"", "4:10 `memory` must be a multiple of 2 MiB / write \"102MiB\""),
        (
            "true",
            "4:10 `memory` must be a size, not true or false / write memory = \"512MiB\" or memory = \"2GiB\"",
        ),
    ] {
        assert_eq!(with("\"512MiB\"", to), expected);
    }
    assert_eq!(
        with("name = \"debian\"", "name = 7"),
        "1:8 `name` must be a string, not a number / put it in quotes: name = \"7\""
    );
    assert_eq!(
        with("name = \"debian\"", "name = \"-x-\""),
        "1:8 `name` may not start or end with `-` / use lower-case letters, digits and `-`: \"x\""
    );
    assert_eq!(
        with("[[storage]]", "[console]\nmode = \"tty\"\n[[storage]]"),
        "10:8 `mode` cannot be \"tty\" / write \"terminal\" or \"socket\""
    );
    assert_eq!(
        with("[[storage]]", "[on]\ncrash = \"reboot\"\n[[storage]]"),
        "10:9 `crash` cannot be \"reboot\" / write \"exit\", or \"continue\" to let the guest's own kdump run"
    );
    assert_eq!(
        with("[[storage]]", "[console]\npath = \"c.sock\"\n[[storage]]"),
        "10:8 `path` means nothing with mode = \"terminal\" / remove it, or write mode = \"socket\""
    );
    assert_eq!(
        with("[[storage]]", "[network]\nmac = 1\n[[storage]]"),
        "9:2 there is no `network` in the top of the file / remove it; the top of the file knows `name`, `machine`, \
         `boot`, `console`, `on`, `screen`, `storage`, `net` and `pci`"
    );
    assert_eq!(
        with(" console=ttyS0", ""),
        "8:11 `cmdline` has no console=ttyS0: the console will show nothing / write \"root=/dev/sda console=ttyS0\""
    );
}

#[test]
fn kernels_and_initrds_that_cannot_boot() {
    let files = Files::new("boot");
    fs::write(files.0.join("text"), "hello").unwrap();
    fs::write(files.0.join("nothing"), "").unwrap();
    let with = |from: &str, to: &str| {
        let (place, message, _) = files.only(&GOOD.replace(from, to));
        format!("{place} {message}").replace(&format!("{}/", files.0.display()), "")
    };
    assert_eq!(
        with("vmlinuz", "text"),
        "vm.toml:6:10 DIR/text is no kernel that can be booted: neither a bzImage nor ELF"
    );
    assert_eq!(with("vmlinuz", "nothing"), "vm.toml:6:10 DIR/nothing is empty");
    assert_eq!(with("\"vmlinuz\"", "\"../\""), "vm.toml:6:10 the kernel DIR/../ is a directory");
    assert_eq!(with("initrd.img", "nothing"), "vm.toml:7:10 the initrd DIR/nothing is empty");
    assert_eq!(
        with("initrd.img", "missing"),
        "vm.toml:7:10 cannot read the initrd DIR/missing: no such file or directory"
    );
}

#[test]
fn a_spec_that_cannot_be_read() {
    let (spec, report) = load(Path::new("/nowhere/vm.toml"), HostLimits::default());
    assert!(spec.is_none());
    assert_eq!(
        report.to_string(),
        "error: cannot read this file: no such file or directory\n --> /nowhere/vm.toml\n  = fix: check the path; \
         `bulkhead check --help` shows an example spec\n\n/nowhere/vm.toml: 1 error\n"
    );
}
