//! `bulkhead run` and `bulkhead device` when device processes die, hang, loop, stand by and are replaced: with fake programs.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use world::{FOREVER, World, children, eventually, is_alive, last_line, stderr};

/// The beginning of a device that says how it is; $life counts the processes so far, this one included.
const DEVICE: &str = r#"
while [ $# -gt 0 ]; do
    [ "$1" = --core-fd ] && core=$2
    [ "$1" = --notify-fd ] && notify=$2
    shift
done
say() { printf '%s' "$1" >&$notify; }
echo >> "$0.lives"; life=$(wc -l < "$0.lives")
"#;
/// It serves until its socket to the core closes.
const SERVES: &str = r#"say STATUS=serving; exec cat <&$core > /dev/null"#;

fn device(rest: &str) -> String {
    format!("{DEVICE}\n{rest}")
}

fn pid_of(row: &serde_json::Value, field: &str) -> Option<Pid> {
    row[field].as_i64().map(|pid| Pid::from_raw(pid.try_into().unwrap()))
}

fn serves(row: &serde_json::Value) -> bool {
    row["state"] == "serving"
}

fn last_death(row: &serde_json::Value) -> &str {
    row["last_death"].as_str().unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_device_that_is_killed_is_replaced_and_the_vm_runs_on() {
    let world = World::new("restart", FOREVER, &device(SERVES));
    let running = world.start();
    let mut pid = pid_of(&world.until("it serves", serves), "pid").unwrap();
    for restarts in 1..10 {
        kill(pid, Signal::SIGKILL).unwrap();
        let row = world.until("another one serves", |row| serves(row) && row["restarts"] == restarts);
        assert_ne!(pid_of(&row, "pid"), Some(pid));
        assert_eq!(last_death(&row), "was killed by SIGKILL");
        pid = pid_of(&row, "pid").unwrap();
    }
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let output = running.wait();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("disk0\" role=\"serving\" next=\"a new one starts\""),
        "{}",
        stderr(&output)
    );
    assert!(!is_alive(pid) && !world.path.join("run").exists());
}

#[test]
fn processes_that_keep_dying_are_slowed_down_and_the_vm_runs_on() {
    let world = World::new("loop", FOREVER, &device("exit 9"));
    let running = world.start();
    let row = world
        .until("it backs off", |row| row["state"] == "backing-off" && row["restarts"].as_u64() > Some(5));
    assert_eq!((last_death(&row), row["pid"].as_i64()), ("exited with code 9", None));
    // What it lacked is there: the next one serves, without waiting for the end of the pause.
    world.program("vsp-storage", "/bin/bash", &device(&format!("PATH=/usr/bin:/bin\n{SERVES}")));
    let output = world.device(&["restart", "toy", "disk0"]);
    assert!(text(&output.stdout).starts_with("disk0: process "), "{output:?}");
    assert!(text(&output.stdout).contains(" serves it after "), "{output:?}");
    assert!(serves(&world.disk0()));
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let output = running.wait();
    assert!(stderr(&output).contains("ERROR bulkhead: its processes keep dying"), "{}", stderr(&output));
}

#[test]
fn a_spare_takes_over_and_is_replaced() {
    let standby = r#"
if [ "$life" = 1 ]; then say STATUS=serving; else say 'STATUS=standing by'; fi
exec cat <&$core > /dev/null"#;
    let world = World::new("spare", FOREVER, &device(standby)).with_spare();
    let _running = world.start();
    let both = |row: &serde_json::Value| serves(row) && row["spare_ready"] == true;
    let row = world.until("one serves and one stands by", both);
    let (main, spare) = (pid_of(&row, "pid").unwrap(), pid_of(&row, "spare").unwrap());
    kill(main, Signal::SIGKILL).unwrap();
    let row = world
        .until("the spare takes over", |row| pid_of(row, "pid") == Some(spare) && row["spare_ready"] == true);
    assert_ne!(pid_of(&row, "spare"), Some(spare), "and another one stands by");
    assert_eq!(row["restarts"], 1);
}

#[test]
fn a_process_that_hangs_is_killed_and_replaced() {
    // Alive and ignoring everything, the first time.
    let hangs = format!(
        "[ $life = 1 ] && {{ say STATUS=serving; trap '' ABRT TERM; while :; do sleep 0.1; done; }}\n{}",
        "say STATUS=serving; while :; do sleep 0.05; say WATCHDOG=1; done"
    );
    let world = World::new("hang", FOREVER, &device(&hangs));
    let mut command = world.command();
    command.env("BULKHEAD_WATCHDOG_MS", "400");
    let mut child = command.spawn().unwrap();
    let row = world.until("it is replaced", |row| serves(row) && row["restarts"].as_u64() >= Some(1));
    assert_eq!(last_death(&row), "hung and was killed: no sign of life for 400 ms");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(world.disk0()["restarts"], 1, "signs of life count");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
}

/// Dies of a filter like a real device process, having said of which call.
const FORBIDDEN: &str = r#"
import ctypes, os, struct, sys
notify = int(sys.argv[sys.argv.index("--notify-fd") + 1])
if os.path.exists(sys.argv[0] + ".once"):
    os.write(notify, b"STATUS=serving"); os.read(int(sys.argv[sys.argv.index("--core-fd") + 1]), 1); sys.exit(0)
open(sys.argv[0] + ".once", "w")
os.write(notify, b"STATUS=serving")
os.write(notify, b"STATUS=seccomp: socket(41)")
code = b"".join(struct.pack("HBBI", *i) for i in [(0x20, 0, 0, 0), (0x15, 0, 1, 110), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7fff0000)])
held = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(held))), 0, 0)
os.getppid()
sys.exit(7)"#;

#[test]
fn a_seccomp_violation_is_told_with_the_calls_name() {
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: there is no python3 here");
        return;
    }
    let world = World::new("seccomp", FOREVER, "");
    world.program("vsp-storage", "/usr/bin/python3", FORBIDDEN);
    let running = world.start();
    let row = world.until("it is replaced", |row| serves(row) && row["restarts"] == 1);
    let expected =
        "was killed for a seccomp violation (SIGSYS): it called socket(41), which its policy forbids";
    assert_eq!(last_death(&row), expected);
    let table = text(&world.device(&["ls", "toy"]).stdout);
    assert!(table.starts_with("NAME   STATE    PID") && table.contains(expected), "{table}");
    kill(running.pid(), Signal::SIGTERM).unwrap();
    assert!(stderr(&running.wait()).contains(expected));
}

/// A core that answers operators: closes the first device's socket for a swap, unless the file `refuse` is there.
const CORE: &str = r#"
import json, os, select, socket, sys
listener = socket.socket(fileno=int(sys.argv[sys.argv.index("--listen-fd") + 1]))
refuse = os.path.join(os.path.dirname(sys.argv[0]), "refuse")
devices, operators = [], []
while True:
    ready, _, _ = select.select([listener] + devices + operators, [], [])
    for s in ready:
        if s is listener:
            peer, _ = s.accept()
            peer.settimeout(0.05)
            try:
                first = peer.recv(65536)
            except OSError:
                first = b""
            (operators if b"Operator" in first else devices).append(peer)
        elif s in devices:
            if not s.recv(65536): devices.remove(s)
        else:
            text = s.recv(65536)
            if not text:
                operators.remove(s); continue
            request = json.loads(text)
            if "Swap" in request:
                device = request["Swap"]["device"]
                if os.path.exists(refuse):
                    reply = {"Failed": {"device": device, "reason": "the new process cannot read the ledger (format 9)"}}
                else:
                    devices.pop(0).close()
                    reply = {"Swapped": {"device": device, "pause_us": 800}}
            else:
                reply = {"Devices": [{"name": "disk0", "serving": True, "build": "1.2", "channels": 3, "exposed_bytes": 67108864}]}
            s.send(json.dumps(reply).encode())
"#;

#[test]
fn a_swap_brings_another_build_which_stays_in_force() {
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: there is no python3 here");
        return;
    }
    let stands_by = r#"
if [ "$life" = 1 ]; then say STATUS=serving; else say 'STATUS=standing by'; fi
cat <&$core > /dev/null; exit 0"#;
    let world = World::new("swap", "", &device(stands_by));
    world.program("core-vmm", "/usr/bin/python3", CORE);
    let newer =
        world.program("vsp-newer", "/bin/bash", &device(&format!("PATH=/usr/bin:/bin\nlife=2\n{stands_by}")));
    let newer = newer.to_str().unwrap();
    let _running = world.start();
    let old = pid_of(&world.until("it serves", serves), "pid").unwrap();
    let row = world.disk0();
    assert_eq!(
        (&row["build"], &row["exposed_bytes"]),
        (&"1.2".into(), &(64 << 20).into()),
        "what the core knows"
    );

    fs::write(world.path.join("bin/refuse"), "").unwrap();
    let output = world.device(&["swap", "toy", "disk0", "--binary", newer]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "bulkhead: disk0 was not swapped: the new process cannot read the ledger (format 9); the old process serves as before\n"
    );
    assert_eq!(pid_of(&world.disk0(), "pid"), Some(old));
    eventually("the new one is gone", || children(_running.pid()).len() == 2);

    fs::remove_file(world.path.join("bin/refuse")).unwrap();
    let output = world.device(&["swap", "toy", "disk0", "--binary", newer]);
    assert!(text(&output.stdout).starts_with("disk0: a new process serves it"), "{output:?}");
    let row = world.disk0();
    assert!(serves(&row) && row["restarts"] == 0 && row["program"] == newer, "{row}");
    eventually("the old one is gone", || !is_alive(old));
    let new = pid_of(&row, "pid").unwrap();
    kill(new, Signal::SIGKILL).unwrap();
    let row =
        world.until("it is replaced", |row| row["restarts"] == 1 && row["pid"] != serde_json::Value::Null);
    assert_eq!(row["program"], newer, "later ones are of the new build");
}

#[test]
fn a_new_process_that_does_not_start_leaves_the_old_one() {
    let world = World::new("swap-dies", FOREVER, &device(SERVES));
    let bad = world.program("vsp-bad", "/bin/bash", "exit 3");
    let _running = world.start();
    let old = pid_of(&world.until("it serves", serves), "pid");
    let output = world.device(&["swap", "toy", "disk0", "--binary", bad.to_str().unwrap()]);
    assert_eq!(
        text(&output.stderr),
        "bulkhead: disk0 was not swapped: the new process exited with code 3; the old one serves as before\n"
    );
    assert_eq!(pid_of(&world.disk0(), "pid"), old);
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let world = World::new("mistakes", FOREVER, &device(SERVES));
    let says = |arguments: &[&str]| {
        let output = world.device(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        text(&output.stderr)
    };
    let base = world.path.join("run");
    assert_eq!(
        says(&["ls", "toy"]),
        format!(
            "bulkhead: no VM called toy runs here (looked in {}); `bulkhead device ls` shows those that do\n",
            base.display()
        )
    );
    let nothing = world.device(&["ls"]);
    assert!(text(&nothing.stdout).starts_with("no VM runs here (looked in "), "{nothing:?}");
    let running = world.start();
    world.until("it serves", serves);
    assert_eq!(
        says(&["restart", "toy", "disk1"]),
        "bulkhead: VM toy has no device called disk1; it has disk0\n"
    );
    assert!(
        says(&["swap", "toy", "disk0", "--binary", "/no/such/file"])
            .ends_with("does not exist: give --binary the path of a program\n")
    );
    let plain = world.path.join("root.img");
    assert!(
        says(&["swap", "toy", "disk0", "--binary", plain.to_str().unwrap()])
            .contains("is not executable: chmod +x")
    );
    assert!(says(&["ls", "../toy"]).contains("no VM called ../toy"));
    let all = text(&world.device(&["ls"]).stdout);
    assert!(all.starts_with("VM   NAME   STATE") && all.contains("\ntoy  disk0  serving"), "{all}");
    let json: serde_json::Value = serde_json::from_slice(&world.device(&["ls", "--json"]).stdout).unwrap();
    assert_eq!((&json[0]["vm"], &json[0]["devices"][0]["name"]), (&"toy".into(), &"disk0".into()));
    kill(running.pid(), Signal::SIGKILL).unwrap();
    let _ = running.wait();
    assert!(
        says(&["ls", "toy"]).starts_with("bulkhead: VM toy is not running: what its last run left"),
        "{}",
        says(&["ls", "toy"])
    );
}

#[test]
fn nothing_is_left_when_the_core_dies() {
    let world = World::new("orphans", FOREVER, &device(SERVES)).with_spare();
    let running = world.start();
    let row = world
        .until("one serves and one is there", |row| serves(row) && row["spare"] != serde_json::Value::Null);
    let (main, spare) = (pid_of(&row, "pid").unwrap(), pid_of(&row, "spare").unwrap());
    let core = children(running.pid()).into_iter().find(|pid| *pid != main && *pid != spare).unwrap();
    kill(core, Signal::SIGKILL).unwrap();
    let output = running.wait();
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(last_line(&output), "bulkhead: toy: core-vmm failed: it was killed by SIGKILL");
    assert!(![core, main, spare].into_iter().any(is_alive));
    assert!(!world.path.join("run").exists());
}

/// Processor time that a process has used, in clock ticks.
fn ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    after_name[11].parse::<u64>().unwrap() + after_name[12].parse::<u64>().unwrap()
}

#[test]
fn a_supervisor_without_descriptors_left_waits_for_some() {
    let world = World::new("descriptors", FOREVER, &device(SERVES));
    let running = world.start();
    world.until("it serves", serves);
    let open = fs::read_dir(format!("/proc/{}/fd", running.pid())).unwrap().count();
    let limit = format!("--nofile={0}:{0}", open + 2);
    let limited = Command::new("prlimit").args(["--pid", &running.pid().to_string(), &limit]).status();
    if !limited.is_ok_and(|status| status.success()) {
        eprintln!("skipped: prlimit does not work here");
        return;
    }
    let socket = world.path.join("run/toy/supervisor.sock");
    let crowd: Vec<_> = (0..8).map(|_| ipc::socket::Peer::connect(&socket).unwrap()).collect();
    let before = ticks(running.pid());
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks(running.pid()) - before;
    assert!(used < 25, "{used} hundredths of a second of one");
    drop(crowd);
    world.until("operators are answered again", serves);
}

#[test]
fn a_pci_device_that_cannot_be_had_is_refused_and_the_vm_runs_on() {
    let world = World::new("attach", FOREVER, &device(SERVES));
    let running = world.start();
    world.until("it serves", serves);
    let told = |arguments: &[&str]| {
        let output = world.device(arguments);
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    };
    let why = told(&["attach", "toy", "--pci", "ffff7777:e3:1f.7"]);
    assert!(why.contains("there is no PCI device ffff7777:e3:1f.7: bulkhead pci ls shows"), "{why}");
    let why = told(&["attach", "toy", "--pci", "00:00.0", "--name", "disk0"]);
    assert!(why.contains("has a device disk0 already"), "{why}");
    let why = told(&["attach", "toy", "--pci", "00:00.0", "--name", "../x"]);
    assert!(why.contains("the name \"../x\" may not contain"), "{why}");
    let why = told(&["detach", "toy", "disk0"]);
    assert!(why.contains("only PCI devices can be attached and detached"), "{why}");
    assert!(told(&["detach", "toy", "nic"]).contains("disk0"), "what there is");
    world.until("it still serves", serves);
    drop(running);
}
