//! `bulkhead run` with a core and a storage process that are shell scripts: exit codes, deaths, signals, and that
//! nothing is left behind.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A core that lives until it is killed.
const FOREVER: &str = "exec -a core-vmm sleep 1000";
/// A device that does what a real one does: it ends when its socket to the core closes.
const UNTIL_EOF: &str = r#"
while [ $# -gt 0 ]; do [ "$1" = --core-fd ] && fd=$2; shift; done
eval "exec 5<&$fd"; cat <&5 > /dev/null 2>&1; exit 0"#;

/// A directory with a spec, what it names, and fake programs; removed when dropped.
struct World {
    path: PathBuf,
}

impl World {
    fn new(test: &str, core: &str, device: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bulkhead-run-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("bin")).unwrap();
        let mut kernel = vec![0; 0x400];
        kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        kernel[0x211] = 1;
        fs::write(path.join("vmlinuz"), kernel).unwrap();
        fs::write(path.join("root.img"), [0; 4096]).unwrap();
        fs::write(
            path.join("vm.toml"),
            "name = \"toy\"\n[machine]\nvcpus = 1\nmemory = \"64MiB\"\n[boot]\nkernel = \"vmlinuz\"\n\
             [[storage]]\nname = \"disk0\"\n[[storage.disk]]\npath = \"root.img\"\n",
        )
        .unwrap();
        for (name, body) in [("core-vmm", core), ("vsp-storage", device)] {
            let file = path.join("bin").join(name);
            fs::write(&file, format!("#!/bin/bash\nPATH=/usr/bin:/bin\n{body}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { path }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(["run", "--skip-host-checks", "--overcommit"]).arg(self.path.join("vm.toml"));
        command.arg("--bin-dir").arg(self.path.join("bin")).arg("--runtime-dir").arg(self.path.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Running<'_> {
        Running { child: Some(self.command().spawn().unwrap()), world: self }
    }

    /// Runs the VM to its end; nothing may be left of it.
    fn run(&self) -> Output {
        let output = self.command().output().unwrap();
        assert!(!self.path.join("run").exists(), "the runtime directory is left");
        output
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A VM that was started and has not ended yet.
struct Running<'w> {
    child: Option<Child>,
    world: &'w World,
}

impl Running<'_> {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().try_into().unwrap())
    }

    /// The processes of the VM once all of them run: the core's and the device's.
    fn members(&self) -> [Pid; 2] {
        let [mut core, mut device] = [None, None];
        eventually("the processes run", || {
            for pid in children(self.pid()) {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).into_owned();
                // A script that has replaced itself has another name; it is known already.
                if command.contains("core-vmm") {
                    core = Some(pid);
                } else if command.contains("vsp-storage") {
                    device = Some(pid);
                }
            }
            core.is_some() && device.is_some()
        });
        [core.unwrap(), device.unwrap()]
    }

    fn wait(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.world;
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_line(output: &Output) -> String {
    stderr(output).lines().last().unwrap_or_default().to_owned()
}

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
fn a_device_that_is_killed_ends_the_vm_and_says_how() {
    let world = World::new("device-dies", FOREVER, "exec -a vsp-storage sleep 1000");
    let running = world.start();
    let [core, device] = running.members();
    kill(device, Signal::SIGKILL).unwrap();
    let output = running.wait();
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(last_line(&output), "bulkhead: toy: ended, because its device disk0 was killed by SIGKILL");
    assert!(!is_alive(core));
    assert!(!world.path.join("run").exists());
}

#[test]
fn a_device_that_exits_ends_the_vm() {
    let output = World::new("device-exits", FOREVER, "exit 9").run();
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(last_line(&output), "bulkhead: toy: ended, because its device disk0 exited with code 9");
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
