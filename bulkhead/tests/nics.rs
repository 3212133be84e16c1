//! `bulkhead run` with NICs: what they are connected to is opened once, given to every process, and replaced when it dies. With fake programs.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::fs;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use world::{FOREVER, UNTIL_EOF, World, children, eventually, is_alive, stderr};

/// A NIC's process that says how it is, writes down its arguments and what its descriptors are, and sends what it has sent back.
const NIC: &str = r#"PATH=/usr/bin:/bin
echo "$@" >> "$0.calls"
fds=
while [ $# -gt 0 ]; do
    case $1 in
        --core-fd) core=$2 ;;
        --notify-fd) notify=$2 ;;
        --stream-fd) stream=$2; fds="$fds stream" ;;
        --tap-fd) fds="$fds $(readlink /proc/self/fd/$2)" ;;
    esac
    shift
done
echo "$fds" >> "$0.fds"
if [ -n "$stream" ]; then
    printf 'frame %s' "$$" >&$stream
    sleep 0.2
    head -c 5 <&$stream >> "$0.echo" 2>/dev/null
fi
printf 'STATUS=serving' >&$notify
exec cat <&$core > /dev/null"#;

/// Says that it has come and sends back what it is sent.
const PASST: &str = r#"PATH=/usr/bin:/bin
echo "$@" >> "$0.calls"
exec cat <&3 >&3"#;

fn world(test: &str, net: &str) -> World {
    let world = World::new(test, FOREVER, UNTIL_EOF);
    world.program("vsp-net", "/bin/bash", NIC);
    world.program("passt", "/bin/bash", PASST);
    let file = world.path.join("vm.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}[[net]]\nname = \"nic0\"\n{net}")).unwrap();
    world
}

fn written(world: &World, name: &str) -> Vec<String> {
    let text = fs::read_to_string(world.path.join("bin").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// What `bulkhead device ls --json` says of the NIC.
fn nic(world: &World) -> serde_json::Value {
    let rows: serde_json::Value =
        serde_json::from_slice(&world.device(&["ls", "toy", "--json"]).stdout).unwrap_or_default();
    rows[1].clone()
}

fn child(of: Pid, program: &str) -> Option<Pid> {
    let is_it = |pid: &Pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(program)
    };
    children(of).into_iter().find(|pid| is_it(pid))
}

#[test]
fn a_passt_that_dies_is_replaced_and_the_nic_gets_a_new_stream() {
    let world = world("passt", "mtu = 1400\n");
    // A name that outlives the shell's becoming another program.
    world.program("passt", "/bin/bash", &PASST.replace("exec cat", "exec -a fake-passt cat"));
    let running = world.start();
    let me = running.pid();
    eventually("the NIC serves", || nic(&world)["state"] == "serving");
    let row = nic(&world);
    assert_eq!((row["name"].as_str(), row["restarts"].as_u64()), (Some("nic0"), Some(0)));
    let calls = written(&world, "vsp-net.calls");
    assert!(calls[0].contains("--device nic0 --mac "), "{calls:?}");
    assert!(calls[0].contains("--mtu 1400 --memory confined --queues 1 --link up"), "{calls:?}");
    assert!(calls[0].ends_with("--stream-fd 5"), "{calls:?}");
    assert!(written(&world, "passt.calls")[0].starts_with("--foreground --quiet --fd 3 --mtu 1400"));
    assert_eq!(written(&world, "vsp-net.echo").concat(), "frame", "frames go there and back");

    kill(child(me, "fake-passt").unwrap(), Signal::SIGKILL).unwrap();
    eventually("another NIC process serves", || {
        nic(&world)["state"] == "serving" && nic(&world)["restarts"] == 1
    });
    assert_eq!(nic(&world)["last_death"], "was restarted for a new connection, as its passt had died");
    eventually("frames go there and back again", || written(&world, "vsp-net.echo").concat() == "frameframe");
    // The death of the NIC's own process is none of passt's business.
    let passt = child(me, "fake-passt").unwrap();
    kill(Pid::from_raw(nic(&world)["pid"].as_i64().unwrap().try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("the third one serves", || nic(&world)["state"] == "serving" && nic(&world)["restarts"] == 2);
    assert_eq!(child(me, "fake-passt"), Some(passt));
    assert_eq!(written(&world, "passt.calls").len(), 2);

    kill(me, Signal::SIGTERM).unwrap();
    let output = running.wait();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(stderr(&output).contains("nic0/passt"), "{}", stderr(&output));
    assert!(!is_alive(passt), "nothing is left");
}

#[test]
fn without_passt_a_sentence_names_the_package() {
    let world = world("no-passt", "");
    fs::remove_file(world.path.join("bin/passt")).unwrap();
    let output = world.command().env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("sudo apt install passt"), "{}", stderr(&output));
}

#[test]
fn a_tap_that_is_not_there_is_no_start() {
    let world = world("no-tap", "tap = \"bh-no-tap\"\n");
    let output = world.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the tap bh-no-tap does not exist"), "{}", stderr(&output));
    assert!(stderr(&output).contains("sudo bulkhead net port add bh-no-tap"), "{}", stderr(&output));
}

#[test]
fn every_process_of_a_nic_on_a_tap_has_its_queues() {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("SKIPPED: a network namespace takes root here ({error})");
        return;
    }
    let made =
        Command::new(env!("CARGO_BIN_EXE_bulkhead")).args(["net", "port", "add", "tap0"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let queues = || {
        let shown =
            Command::new(env!("CARGO_BIN_EXE_bulkhead")).args(["net", "ls", "--json"]).output().unwrap();
        let ports: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        ports[0]["queues"].as_u64()
    };
    let world = world("tap", "tap = \"tap0\"\nqueues = 2\n");
    let file = world.path.join("vm.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("vcpus = 1", "vcpus = 2")).unwrap();
    let running = world.start();
    eventually("the NIC serves", || nic(&world)["state"] == "serving");
    assert_eq!(queues(), Some(2));
    let pid = nic(&world)["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("another one serves", || nic(&world)["state"] == "serving" && nic(&world)["restarts"] == 1);
    assert_eq!(queues(), Some(2), "the same ones");
    assert_eq!(written(&world, "vsp-net.fds"), [" /dev/net/tun /dev/net/tun"; 2]);
    // The kernel would give each of two VMs some of the frames.
    let second = crate::world("tap-again", "tap = \"tap0\"\n").command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("tap0 is in use by another process"), "{}", stderr(&second));
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let output = running.wait();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert_eq!(queues(), Some(0), "closed, and still there");
}
