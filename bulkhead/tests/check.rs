//! `bulkhead check`: what it prints, where, and its exit code.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

#[test]
fn a_spec_is_summed_up_or_taken_apart() {
    let directory = std::env::temp_dir().join(format!("bulkhead-check-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let mut kernel = vec![0; 0x400];
    kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
    kernel[0x211] = 1;
    fs::write(directory.join("vmlinuz"), kernel).unwrap();
    fs::write(directory.join("root.img"), [0; 4096]).unwrap();
    let spec = "name = \"toy\"\n[machine]\nvcpus = 2\nmemory = \"64MiB\"\n[boot]\nkernel = \"vmlinuz\"\n\
                [[storage]]\nname = \"disk0\"\n[[storage.disk]]\npath = \"root.img\"\nreadonly = true\n";
    let check = |spec: &str| {
        fs::write(directory.join("vm.toml"), spec).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        let output =
            command.args(["check", "--overcommit", "vm.toml"]).current_dir(&directory).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&directory.display().to_string(), "DIR");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };

    let (code, out, err) = check(spec);
    let summary = "\
ok: toy: 2 vCPUs, 64 MiB of memory
  boot      DIR/vmlinuz (bzImage)
            console=ttyS0
  console   this terminal
  on crash  the VM ends, exit code 3
  processes
    core-vmm
    vsp-storage disk0
      LUN 0  DIR/root.img, 4 KiB, read-only
";
    assert!(out.starts_with(summary), "{out}");
    assert_eq!((code, err.as_str()), (Some(0), ""));

    let (_, out, _) = check(&format!("{spec}[screen]\nspare = true\nweb = \"127.0.0.1:6080\"\n"));
    let screen = "\
    vsp-video video, and a spare
      32 MiB of video memory
    vsp-hid keyboard, and a spare
    vsp-hid mouse, and a spare
    bulkhead-console console
      web at 127.0.0.1:6080
";
    assert!(out.contains(screen) && out.contains("console=tty0 console=ttyS0\n"), "{out}");

    let (code, out, err) = check(&spec.replace("vcpus = 2", "vcpus = 99"));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(
        err,
        "error: `vcpus` must be from 1 to 64, not 99\n --> vm.toml:3:9\n  |\n3 | vcpus = 99\n  |         ^^\n  = fix: write \
         a number from 1 to 64\n\nvm.toml: 1 error\n"
    );
    fs::remove_dir_all(&directory).unwrap();
}
