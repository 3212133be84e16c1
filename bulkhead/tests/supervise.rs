//! `bulkhead run` with a core and a storage process that are shell scripts: exit codes, deaths, signals, and that
//! nothing is left behind.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};

use world::{FOREVER, UNTIL_EOF, World, eventually, is_alive, last_line, stderr};

#[test]
fn the_exit_code_is_the_guests_fate() {
    for (core, code, said) in [
        ("exit 0", 0, "the guest powered off"),
        (
            "echo 'core-vmm: no such thing' >&2; exit 1",
            1,
            "core-vmm could not start the guest; its reason is above",
        ),
        ("exit 3", 3, "the guest's kernel crashed"),
        ("exit 4", 4, "core-vmm failed: it exited with code 4"),
        ("exit 77", 4, "core-vmm failed: it exited with code 77"),
    ] {
        let output = World::new("fate", core, UNTIL_EOF).run();
        assert_eq!(output.status.code(), Some(code), "{core}: {}", stderr(&output));
        assert_eq!(last_line(&output), format!("bulkhead: toy: {said}"));
    }
}

#[test]
fn the_core_gets_its_configuration_its_listener_and_our_streams() {
    let core = r#"
read line
echo "stdin: $line"
while [ $# -gt 0 ]; do
    [ "$1" = --config ] && config=$2
    [ "$1" = --listen-fd ] && listener=$2
    shift
done
cat "$config"; echo
readlink /proc/$$/fd/$listener | cut -c 1-7
exit 0"#;
    let world = World::new("core-args", core, UNTIL_EOF);
    let mut child = world.command().stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], "stdin: hello", "{stdout}{}", stderr(&output));
    let config: ipc::config::CoreConfig = serde_json::from_str(lines[1]).unwrap();
    assert_eq!((config.name.as_str(), config.vcpus, config.memory), ("toy", 1, 64 << 20));
    assert_eq!(config.kernel, world.path.join("vmlinuz"));
    assert_eq!(config.devices[0].name, "disk0");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(config.devices[0].uid, config.uid.map(|uid| uid + 1));
    }
}

#[test]
fn the_device_is_told_its_disks() {
    let device = format!("echo \"args: $*\" >&2\n{UNTIL_EOF}");
    let world = World::new("device-args", "sleep 0.5; exit 0", &device);
    let output = world.run();
    let expected = format!("--device disk0 --disk lun=0,path={}/root.img", world.path.display());
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
}

#[test]
fn a_device_that_cannot_start_ends_the_vm_and_says_so() {
    let output = World::new("device-exits", FOREVER, "exit 1").run();
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(
        last_line(&output),
        "bulkhead: toy: could not start, because its device disk0 exited with code 1"
    );
}

#[test]
fn a_device_that_ignores_the_end_is_killed() {
    let output = World::new("stubborn", "exit 0", "trap '' TERM; exec sleep 1000").run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("was killed by SIGKILL process=\"disk0\""), "{}", stderr(&output));
}

#[test]
fn signals_end_everything_and_leave_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let world = World::new("signals", FOREVER, UNTIL_EOF);
        let running = world.start();
        let members = running.members();
        assert!(world.path.join("run/toy").is_dir());
        kill(running.pid(), signal).unwrap();
        let output = running.wait();
        assert_eq!(output.status.code(), Some(128 + signal as i32), "{}", stderr(&output));
        assert_eq!(last_line(&output), format!("bulkhead: toy: ended by {signal}"));
        assert!(!members.iter().any(|pid| is_alive(*pid)));
        assert!(!world.path.join("run").exists());
    }
}

#[test]
fn nothing_survives_a_killed_supervisor_and_the_vm_can_start_again() {
    let world = World::new("killed", FOREVER, "exec -a vsp-storage sleep 1000");
    let running = world.start();
    let members = running.members();
    kill(running.pid(), Signal::SIGKILL).unwrap();
    let _ = running.wait();
    eventually("all processes are gone", || !members.iter().any(|pid| is_alive(*pid)));
    fs::write(world.path.join("bin/core-vmm"), "#!/bin/bash\nexit 0\n").unwrap();
    assert_eq!(world.run().status.code(), Some(0));
}

#[test]
fn a_vm_runs_once() {
    let world = World::new("once", FOREVER, UNTIL_EOF);
    let running = world.start();
    running.members();
    let second = world.command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(last_line(&second).starts_with("bulkhead: toy is running already"), "{}", stderr(&second));
    assert!(is_alive(running.pid()) && world.path.join("run/toy").exists());
}

#[test]
fn a_program_that_is_missing_or_cannot_start_is_named() {
    let world = World::new("missing", FOREVER, UNTIL_EOF);
    fs::write(world.path.join("bin/vsp-storage"), "#!/nowhere/interpreter\n").unwrap();
    let output = world.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        last_line(&output).contains("toy: could not be started")
            && last_line(&output).contains("vsp-storage")
    );
    fs::remove_file(world.path.join("bin/vsp-storage")).unwrap();
    let output = world.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(last_line(&output).starts_with("bulkhead: cannot find the program vsp-storage: it is not in "));
}

#[test]
fn json_logs_are_json_to_the_last_line() {
    let world = World::new("json", "exit 3", UNTIL_EOF);
    let output = world.command().args(["--log-format", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let records: Vec<serde_json::Value> =
        stderr(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = records.last().unwrap();
    assert_eq!(last["message"], "the guest's kernel crashed");
    assert_eq!((&last["fields"]["vm"], &last["fields"]["exit_code"]), (&"toy".into(), &3.into()));
}

#[test]
fn a_wrong_spec_starts_nothing() {
    let world = World::new("spec", FOREVER, UNTIL_EOF);
    fs::remove_file(world.path.join("vmlinuz")).unwrap();
    let output = world.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("vm.toml:6:10"), "{}", stderr(&output));
}

/// Runs the VM on a terminal of its own (util-linux's `script`).
#[test]
fn the_terminal_is_raw_while_the_guest_has_it_and_given_back() {
    if !Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: there is no script(1) here");
        return;
    }
    // The guest: shows the first three bytes it gets, one of which would be a signal on a cooked terminal.
    let core = "echo ready; head -c 3 | od -An -tx1; exec sleep 1000";
    let world = World::new("terminal", core, UNTIL_EOF);
    let mut command = Command::new("/usr/bin/script");
    let run = format!(
        "stty sane; stty -g; {} run --skip-host-checks --overcommit {p}/vm.toml --bin-dir {p}/bin --runtime-dir {p}/run; \
         echo code=$?; stty -g",
        env!("CARGO_BIN_EXE_bulkhead"),
        p = world.path.display()
    );
    command.args(["-q", "-c", &run, "/dev/null"]).env("SHELL", "/bin/sh");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut read_until = |what: &str| {
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(what) {
            assert_eq!(out.read(&mut byte).unwrap(), 1, "no {what:?}: {}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    };
    read_until("ready");
    keys.write_all(b"a\x03\x1d\x1d").unwrap();
    read_until("61 03 1d");
    keys.write_all(b"\x1dq").unwrap();
    let text = read_until("code=0");
    assert!(text.contains("toy: ended from the console"), "{text}");
    drop(keys);
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    child.wait().unwrap();
    let after = String::from_utf8_lossy(&rest).trim().to_owned();
    assert!(
        text.contains(&after) && !after.is_empty(),
        "the terminal's settings differ: {after} after {text}"
    );
}
