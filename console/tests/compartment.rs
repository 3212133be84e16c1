//! The real program in its compartment, with the descriptors that a supervisor gives it.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use world::{PROGRAM, Seat, browser, greeted, http};

#[test]
fn a_console_serves_people_from_its_compartment_and_its_successor_knows_them() {
    let seat = Seat::new("serves");
    let first = seat.start();
    let mut greeting = [0; 12];
    seat.connect("vnc").read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB 003.008\n");
    assert!(seat.ask("{\"state\":{}}")["state"].is_object());
    assert!(seat.ask("{\"screenshot\":{}}").is_object(), "a picture, or a sentence that there is none");

    let invitation = seat.ask("{\"token\":{}}");
    let address = invitation["address"].as_str().unwrap().to_owned();
    let mut page = browser(&address);
    let head = http(&mut page, &format!("/?token={}", invitation["token"].as_str().unwrap()), "");
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{head}"))
    };
    let session = field("Location: /").split('/').next().unwrap().to_owned();
    let cookie = format!("Cookie: {}\r\n", field("Set-Cookie: ").split(';').next().unwrap());
    assert!(http(&mut page, &format!("/{session}/vnc.html"), &cookie).starts_with("HTTP/1.1 200 "));
    greeted(&address, &session, &cookie);

    // Whoever comes while there is none is served by the next one; the browser's cookie is good there, and its port the same.
    first.child.kill().unwrap();
    drop(first);
    let mut early = seat.connect("vnc");
    let _second = seat.start();
    early.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB 003.008\n");
    greeted(&address, &session, &cookie);
    let stale = http(&mut browser(&address), "/?token=0123456789abcdef0123456789abcdef", "");
    assert!(stale.starts_with("HTTP/1.1 403 "), "{stale}");
}

#[test]
fn every_forbidden_act_is_the_last_one() {
    for act in sandbox::policy_test::FORBIDDEN {
        let output =
            Command::new(PROGRAM).args(["--device", "console", "--policy-test", act.name]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        if act.is_allowed_by(&sandbox::policies::CONSOLE) {
            // It takes connections on the sockets that it was given, and cannot make others.
            assert_eq!(act.name, "accept");
            assert_eq!(output.status.code(), Some(1), "{}: {text}", act.name);
        } else {
            assert_eq!(
                output.status.signal(),
                Some(Signal::SIGSYS as i32),
                "{}: {:?} {text}",
                act.name,
                output.status
            );
        }
    }
}

/// As the rest of the machine sees it.
#[test]
fn a_console_has_nothing_but_what_it_was_given() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look into a compartment");
        return;
    }
    let seat = Seat::new("alone");
    let running = seat.start();
    let folder = PathBuf::from(format!("/proc/{}", running.child.pid()));
    let status = std::fs::read_to_string(folder.join("status")).unwrap();
    for line in [
        "Seccomp:\t2",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "Threads:\t1",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let namespace = |folder: &Path, kind: &str| std::fs::read_link(folder.join("ns").join(kind)).unwrap();
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(&folder, kind), namespace(Path::new("/proc/self"), kind), "{kind}");
    }
    assert_eq!(std::fs::read_dir(folder.join("root")).unwrap().count(), 0);
    let sockets = std::fs::read_dir(folder.join("fd")).unwrap();
    let sockets = sockets.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let sockets = sockets.filter(|target| target.to_string_lossy().starts_with("socket:")).count();
    // Three to devices, three on which people come, one to the supervisor. The secret is closed once it is read.
    assert_eq!(sockets, 7);
    let maps = std::fs::read_to_string(folder.join("maps")).unwrap();
    assert!(!maps.contains("memfd:"), "no video memory yet, and nothing else ever: {maps}");
}
