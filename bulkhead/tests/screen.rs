//! `bulkhead run` with a screen: what lies between its processes outlives them, and the console is supervised like a device. With fake programs.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use world::{FOREVER, UNTIL_EOF, World, eventually, is_alive, stderr};

/// A device of the screen: says so at its seat, in one datagram, and serves.
const DEVICE: &str = r#"PATH=/usr/bin:/bin
echo "$@" >> "$0.calls"
while [ $# -gt 0 ]; do
    case $1 in
        --core-fd) core=$2 ;;
        --notify-fd) notify=$2 ;;
        --seat-fd) seat=$2 ;;
        --device) device=$2 ;;
    esac
    shift
done
printf 'hello from %s' "$device" >&$seat
printf 'STATUS=serving' >&$notify
exec cat <&$core > /dev/null"#;

/// A console: writes down what its devices say, and does what it is told.
const CONSOLE: &str = r#"
import json, os, select, socket, sys
words = sys.argv[1:]
given = {}
for option, value in zip(words, words[1:]):
    if option.endswith("-fd"):
        given.setdefault(option, []).append(int(value))
with open(sys.argv[0] + ".calls", "a") as calls:
    print(" ".join(words), file=calls)
devices = {fd: socket.socket(fileno=fd) for name in ("--video-fd", "--keyboard-fd", "--mouse-fd") for fd in given[name]}
control, vnc = (socket.socket(fileno=given[name][0]) for name in ("--control-fd", "--rfb-fd"))
web = socket.socket(fileno=given["--web-fd"][0])
secret = os.pread(given["--secret-fd"][0], 64, 0)
os.write(given["--notify-fd"][0], b"STATUS=serving")
while True:
    ready, _, _ = select.select([*devices.values(), control, vnc], [], [])
    for source in ready:
        if source is vnc:
            source.accept()[0].sendall(b"RFB 003.008\n")
        elif source is control:
            client = source.accept()[0].makefile("rwb")
            for line in client:
                asked = json.loads(line)
                with open(sys.argv[0] + ".asked", "a") as file:
                    print(line.decode().strip(), file=file)
                if "screenshot" in asked:
                    client.write(b'{"png":8}\n\x89PNG\r\n\x1a\n')
                elif "token" in asked:
                    web.listen()
                    at = "%s:%d" % web.getsockname()
                    client.write(json.dumps({"token": "abc", "address": at, "https": False}).encode() + b"\n")
                elif "state" in asked:
                    client.write(b'{"state":{"width":640,"height":480,"keyboard":true,"mouse":true}}\n')
                elif asked.get("key") == "nonsense":
                    client.write(b'{"error":"there is no such key"}\n')
                else:
                    client.write(b'{"done":{}}\n')
                client.flush()
        else:
            said = source.recv(100).decode()
            with open(sys.argv[0] + ".heard", "a") as heard:
                print(said, len(secret), file=heard)
"#;

fn world(test: &str) -> Option<World> {
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("SKIPPED: there is no python3 here");
        return None;
    }
    let world = World::new(test, FOREVER, UNTIL_EOF);
    for name in ["vsp-video", "vsp-hid"] {
        world.program(name, "/bin/bash", DEVICE);
    }
    world.program("bulkhead-console", "/usr/bin/python3", CONSOLE);
    let file = world.path.join("vm.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}[screen]\nvram = \"8MiB\"\n")).unwrap();
    Some(world)
}

fn written(world: &World, name: &str) -> Vec<String> {
    let text = fs::read_to_string(world.path.join("bin").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// What `bulkhead device ls --json` says of a device.
fn row(world: &World, name: &str) -> serde_json::Value {
    let rows: serde_json::Value =
        serde_json::from_slice(&world.device(&["ls", "toy", "--json"]).stdout).unwrap_or_default();
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.into_iter().find(|row| row["name"] == name).unwrap_or_default()
}

fn serves(world: &World, name: &str, restarts: u64) -> bool {
    let row = row(world, name);
    row["state"] == "serving" && row["restarts"] == restarts
}

fn end(world: &World, name: &str) {
    let pid = row(world, name)["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
}

fn bulkhead(world: &World, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(arguments).arg("--runtime-dir").arg(world.path.join("run")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_lies_between_a_screen_and_its_console_outlives_both() {
    let Some(world) = world("screen") else { return };
    let running = world.start();
    for device in ["video", "keyboard", "mouse", "console"] {
        eventually("it serves", || serves(&world, device, 0));
    }
    let heard = |what: &str| {
        eventually("the console hears it", || {
            written(&world, "bulkhead-console.heard").iter().any(|line| line == what)
        });
    };
    for device in ["video", "keyboard", "mouse"] {
        heard(&format!("hello from {device} 32"));
    }
    assert!(written(&world, "vsp-video.calls")[0].contains("--device video --vram 8"));
    assert!(written(&world, "vsp-video.calls")[0].ends_with("--seat-fd 5"));
    let hid = written(&world, "vsp-hid.calls").join("\n");
    assert!(hid.contains("--device keyboard --keyboard") && hid.contains("--device mouse --mouse"), "{hid}");
    let console = &written(&world, "bulkhead-console.calls")[0];
    assert!(!console.contains("--core-fd") && console.contains("--device console --name toy"), "{console}");

    // A viewer comes while there is no console, and a device speaks meanwhile: the next console has both.
    fs::remove_file(world.path.join("bin/bulkhead-console.heard")).unwrap();
    world.program("bulkhead-console", "/bin/bash", "exit 7");
    end(&world, "console");
    eventually("there is none", || row(&world, "console")["state"] == "backing-off");
    let mut viewer = UnixStream::connect(world.path.join("run/toy/vnc.sock")).unwrap();
    end(&world, "video");
    eventually("another screen serves", || serves(&world, "video", 1));
    world.program("bulkhead-console", "/usr/bin/python3", CONSOLE);
    let restarted = world.device(&["restart", "toy", "console"]);
    assert!(text(&restarted.stdout).starts_with("console: process "), "{restarted:?}");
    heard("hello from video 32");
    let mut greeting = [0; 12];
    viewer.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB 003.008\n");

    let swapped = world.device(&["swap", "toy", "console"]);
    assert!(stderr(&swapped).contains("has nothing to hand over: restart it"), "{swapped:?}");

    let pids: Vec<Pid> = ["video", "keyboard", "mouse", "console"]
        .map(|name| Pid::from_raw(row(&world, name)["pid"].as_i64().unwrap().try_into().unwrap()))
        .to_vec();
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let output = running.wait();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(pids.iter().all(|pid| !is_alive(*pid)) && !world.path.join("run").exists(), "nothing is left");
}

#[test]
fn commands_reach_the_console_and_its_refusals_the_operator() {
    let Some(world) = world("screen-commands") else { return };
    let _running = world.start();
    eventually("the console serves", || serves(&world, "console", 0));
    let picture = world.path.join("out.png");
    let saved = bulkhead(&world, &["screenshot", "toy", picture.to_str().unwrap()]);
    assert!(saved.status.success(), "{}", stderr(&saved));
    assert_eq!(fs::read(&picture).unwrap(), b"\x89PNG\r\n\x1a\n");
    assert_eq!(bulkhead(&world, &["screenshot", "toy", "-"]).stdout, b"\x89PNG\r\n\x1a\n");
    assert!(bulkhead(&world, &["type", "toy", "-x \"y\"", "--enter"]).status.success());
    assert!(bulkhead(&world, &["key", "toy", "ctrl-alt-del", "up"]).status.success());
    let refused = bulkhead(&world, &["key", "toy", "nonsense"]);
    assert_eq!(
        (refused.status.code(), stderr(&refused).as_str()),
        (Some(1), "bulkhead: toy: there is no such key\n")
    );
    let asked = written(&world, "bulkhead-console.asked");
    assert!(asked.contains(&r#"{"type":"-x \"y\"\n"}"#.to_owned()), "{asked:?}");
    assert!(asked.contains(&r#"{"key":"up"}"#.to_owned()), "{asked:?}");

    let summary = text(&bulkhead(&world, &["console", "toy"]).stdout);
    let vnc = world.path.join("run/toy/vnc.sock");
    assert!(summary.starts_with("screen    640 x 480\n"), "{summary}");
    assert_eq!(text(&bulkhead(&world, &["console", "toy", "--vnc"]).stdout), format!("{}\n", vnc.display()));
    let url = text(&bulkhead(&world, &["console", "toy", "--web"]).stdout);
    let address = url.strip_prefix("http://").and_then(|url| url.strip_suffix("/?token=abc\n")).unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{url}");
    std::net::TcpStream::connect(address).unwrap();
}

#[test]
fn a_page_at_a_named_address_is_closed_as_well_until_one_is_wanted() {
    let Some(world) = world("screen-web") else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = world.path.join("vm.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}web = \"{free}\"\n")).unwrap();
    let _running = world.start();
    eventually("the console serves", || serves(&world, "console", 0));
    assert!(std::net::TcpStream::connect(free).is_err());
    let url = self::text(&bulkhead(&world, &["console", "toy", "--web"]).stdout);
    assert_eq!(url, format!("http://{free}/?token=abc\n"));
    std::net::TcpStream::connect(free).unwrap();
}

#[test]
fn a_browser_is_opened_and_no_command_line_has_its_token() {
    let Some(world) = world("screen-open") else { return };
    let running = world.start();
    eventually("the console serves", || serves(&world, "console", 0));
    let open = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(["console", "toy", "--web", "--open", "--runtime-dir"]).arg(world.path.join("run"));
        command.env("PATH", world.path.join("browser")).output().unwrap()
    };
    let output = open();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("there is no xdg-open") && said.contains("bulkhead console toy --web"), "{said}");
    assert!(!said.contains("token"), "{said}");

    // What it is called with, and what that leads to.
    fs::create_dir(world.path.join("browser")).unwrap();
    let opener = world.program("xdg-open", "/bin/bash", "echo \"$#\" \"$@\" > \"$0.called\"");
    fs::rename(opener, world.path.join("browser/xdg-open")).unwrap();
    let output = open();
    assert!(output.status.success() && output.stdout.is_empty(), "{}", stderr(&output));
    let page = world.path.join("run/toy/web.html");
    let called = fs::read_to_string(world.path.join("browser/xdg-open.called")).unwrap();
    assert_eq!(called, format!("1 {}\n", page.display()));
    assert_eq!(fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("http://127.0.0.1:") && text.contains("/?token=abc"), "{text}");

    // It goes with the VM.
    kill(running.pid(), Signal::SIGTERM).unwrap();
    eventually("its directory is gone", || !world.path.join("run/toy").exists());
}

#[test]
fn a_vm_without_a_screen_says_how_to_get_one() {
    let world = World::new("no-screen", FOREVER, UNTIL_EOF);
    let _running = world.start();
    eventually("it runs", || world.path.join("run/toy/supervisor.sock").exists());
    let output = bulkhead(&world, &["console", "toy"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "bulkhead: VM toy has no screen: add a section [screen] to its spec\n");
}

#[test]
fn a_port_that_is_taken_is_no_start() {
    let Some(world) = world("screen-port") else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let file = world.path.join("vm.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}web = \"{address}\"\n")).unwrap();
    let output = world.run();
    assert_eq!(output.status.code(), Some(1));
    let said = format!("cannot listen at {address}");
    assert!(
        stderr(&output).contains(&said) && stderr(&output).contains("choose another `web`"),
        "{}",
        stderr(&output)
    );
}
