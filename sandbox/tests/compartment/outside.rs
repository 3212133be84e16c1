//! What the rest of the machine sees of a compartment.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use sandbox::{Want, policies, policy_test::FORBIDDEN, spawn};

use crate::inside::{KEPT, PEER, STRANGER};

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// This program, as it would be found by a child.
fn me() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Runs `inside ARGUMENTS` to its end, the ordinary way.
fn run(args: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(me()).arg("inside").args(args).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

/// Runs `inside ARGUMENTS` as the supervisor would; what it said, and how it ended.
fn supervised(args: &[&str]) -> (ExitStatus, String) {
    let (mut output, input) = std::io::pipe().unwrap();
    let command =
        spawn::Command::new(me()).arg("inside").args(args).fd(input.as_fd(), 1).fd(input.as_fd(), 2);
    let mut child = command.spawn().unwrap();
    drop(input);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    (child.wait().unwrap(), text)
}

fn assert_sigsys(name: &str, (status, text): (ExitStatus, String)) {
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {status}: {text}");
}

pub fn a_compartment_looks_closed_from_outside() {
    for policy in ["vsp-storage", "vsp-echo", "core-vmm"] {
        looks_closed(policy);
    }
}

fn looks_closed(policy: &str) {
    let (answer, stdout) = std::io::pipe().unwrap();
    let (stdin, hold) = UnixStream::pair().unwrap();
    // More than it may keep: the test's own files, and one that is handed over but not listed.
    let _ours = fs::File::open("/").unwrap();
    let unlisted = fs::File::open("/proc/self/exe").unwrap();
    let mut child = spawn::Command::new(me())
        .args(["inside", "hold", policy])
        .fd(stdin.as_fd(), 0)
        .fd(stdout.as_fd(), 1)
        .fd(stdin.as_fd(), KEPT)
        .fd(unlisted.as_fd(), 9)
        .spawn()
        .unwrap();
    drop((stdin, stdout));
    let mut report = String::new();
    BufReader::new(answer).read_line(&mut report).unwrap();
    println!("    {}", report.trim());

    let of = |what: &str| PathBuf::from(format!("/proc/{}/{what}", child.pid()));
    let status = fs::read_to_string(of("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).split_whitespace().collect::<Vec<_>>()
    };
    let zero = ["0000000000000000"];
    assert_eq!(field("Seccomp"), ["2"]);
    assert_eq!(field("NoNewPrivs"), ["1"]);
    assert_eq!(field("Threads"), ["1"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(set), zero, "{set}");
    }
    assert!(
        report.starts_with("test: uid ") && report.contains(&format!("seccomp {policy}; 4 fds")),
        "{report}"
    );
    // Landlock depends on the kernel, namespaces on its administrator; on this machine the rest is there.
    let missing: Vec<_> = report.split("; no ").skip(1).filter(|m| !m.starts_with("landlock")).collect();
    let groups_stay = |m: &&str| m.starts_with("dropped groups");
    if is_root() {
        assert!(missing.is_empty(), "{report}");
        assert_eq!(field("CapBnd"), zero);
        assert_eq!(field("Uid"), vec![STRANGER.uid.to_string(); 4]);
        assert_eq!(field("Gid"), vec![STRANGER.gid.to_string(); 4]);
        assert_eq!(field("Groups"), [""; 0]);
        assert_eq!(field("NSpid").len(), 2, "in a PID namespace below ours");
        in_other_namespaces(&of("."));
        inspect(&of("."));
    } else if missing.iter().all(groups_stay) {
        assert_eq!(field("CapBnd"), zero);
        assert_eq!(field("NSpid").len(), 2, "in a PID namespace below ours");
        in_other_namespaces(&of("."));
    } else {
        println!("    (this host lets ordinary users have less: {missing:?})");
    }

    drop(hold);
    assert!(child.wait().unwrap().success());
}

fn in_other_namespaces(process: &Path) {
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let theirs = fs::read_link(process.join("ns").join(kind)).unwrap();
        let ours = fs::read_link(Path::new("/proc/self/ns").join(kind)).unwrap();
        assert_ne!(theirs, ours, "{kind} namespace");
    }
}

/// What only root may look at.
fn inspect(process: &Path) {
    assert_eq!(fs::read_dir(process.join("root")).unwrap().count(), 0, "nothing in its root directory");
    let made = fs::write(process.join("root/new"), "").unwrap_err();
    assert_eq!(made.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
    let mounts = fs::read_to_string(process.join("mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let mut open: Vec<i32> = fs::read_dir(process.join("fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    open.sort_unstable();
    assert_eq!(open, [0, 1, 2, KEPT]);
    let network = fs::read_to_string(process.join("net/dev")).unwrap();
    assert!(network.lines().skip(2).all(|line| line.trim_start().starts_with("lo:")), "{network}");
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

pub fn no_forbidden_act_is_survived() {
    let devices = [policies::VSP_STORAGE, policies::VSP_NET, policies::VSP_NET_STREAM, policies::VSP_ECHO];
    let vhost = [policies::VSP_STORAGE_VHOST, policies::VSP_NET_VHOST, policies::VSP_NET_STREAM_VHOST];
    for policy in devices.into_iter().chain(vhost).chain([policies::CORE]) {
        for act in FORBIDDEN {
            let allowed = act.is_allowed_by(&policy);
            // Only the core makes anything, and only what page donation and its listener need.
            let core_may = ["memfd-create", "eventfd", "accept"].contains(&act.name);
            // A front end connects, and gets memory for what is in flight.
            let vhost_may = ["memfd-create", "accept"].contains(&act.name);
            let may = policy == policies::CORE && core_may || vhost.contains(&policy) && vhost_may;
            assert_eq!(allowed, may, "{} {}", policy.name, act.name);
            if !allowed {
                assert_sigsys(act.name, run(&["act", policy.name, act.name]));
            }
        }
    }
    // And in a PID namespace, whose first process other signals do not reach.
    assert_sigsys("openat", supervised(&["act", "vsp-storage", "openat"]));
}

pub fn no_forbidden_act_is_survived_by_a_vcpu() {
    for act in FORBIDDEN {
        assert!(!act.is_allowed_by(&policies::VCPU), "{}", act.name);
        assert_sigsys(act.name, run(&["vcpu-act", act.name]));
    }
}

pub fn threads_start_narrow_themselves_and_end() {
    for how in [run, supervised] {
        let (status, text) = how(&["vcpu"]);
        assert!(status.success(), "{status}: {text}");
        assert_eq!(text, "done\n");
    }
}

pub fn main_returns() {
    let (status, text) = run(&["return"]);
    assert!(status.success(), "{status}: {text}");
}

pub fn a_panic_is_told_and_has_its_own_exit_code() {
    for how in [run, supervised] {
        let (status, text) = how(&["panic"]);
        assert_eq!(status.code(), Some(101), "{status}: {text}");
        assert!(text.contains("as the test wants it"), "{text}");
    }
}

pub fn a_fault_is_seen_as_one() {
    for how in [run, supervised] {
        let (status, text) = how(&["fault"]);
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}: {text}");
    }
}

pub fn a_crash_is_told_before_the_process_dies_of_it() {
    for how in [run, supervised] {
        for (fault, signal) in [
            ("segv", libc::SIGSEGV),
            ("ill", libc::SIGILL),
            ("fpe", libc::SIGFPE),
            ("overflow", libc::SIGSEGV),
        ] {
            let (status, text) = how(&["crash", fault]);
            assert_eq!(status.signal(), Some(signal), "{fault}: {status}: {text}");
            assert_eq!(text, format!("stamped {signal}\n"), "{fault}");
        }
        let (status, text) = how(&["crash", "panic"]);
        assert_eq!(status.code(), Some(101), "{status}: {text}");
        assert!(text.contains("stamped 6\n") && text.contains("as the test wants it"), "{text}");
    }
}

pub fn a_forbidden_call_is_named_and_kills() {
    for how in [run, supervised] {
        let (status, text) = how(&["crash", "socket"]);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}: {text}");
        for expected in ["stamped 31\n", "the system call socket(41) is forbidden here and was not made"] {
            assert!(text.contains(expected), "no {expected:?} in {text}");
        }
    }
}

pub fn abort_is_told_apart_from_a_forbidden_call() {
    for how in [run, supervised] {
        let (status, text) = how(&["crash", "abort"]);
        assert_eq!(status.code(), Some(134), "{status}: {text}");
        assert!(text.starts_with("stamped 6\naborted: "), "{text}");
    }
}

pub fn last_words_reach_a_supervisor_that_listens_and_wait_for_none() {
    for (how, report) in [("socket", "STATUS=seccomp: socket(41)"), ("abort", "STATUS=aborted")] {
        for deaf in [false, true] {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            if deaf {
                theirs.set_nonblocking(true).unwrap();
                while theirs.send(b"WATCHDOG=1").is_ok() {}
                // The child's too, as systemd's socket is: it is one and the same.
                theirs.set_nonblocking(false).unwrap();
            }
            let command = spawn::Command::new(me()).args(["inside", "crash-report", how]);
            let null = fs::File::options().write(true).open("/dev/null").unwrap();
            let command = command.fd(null.as_fd(), 1).fd(null.as_fd(), 2).fd(theirs.as_fd(), KEPT);
            let mut child = command.spawn().unwrap();
            let begun = Instant::now();
            while child.try_wait().unwrap().is_none() {
                if begun.elapsed() > Duration::from_secs(10) {
                    child.kill().unwrap();
                    panic!("it waits for a supervisor");
                }
                thread::sleep(Duration::from_millis(2));
            }
            if !deaf {
                let mut said = [0; 100];
                let len = ours.recv(&mut said).unwrap();
                assert_eq!(String::from_utf8_lossy(&said[..len]), report);
            }
        }
    }
}

pub fn a_signal_from_outside_ends_the_first_process_of_a_namespace_too() {
    for (signal, code) in [(libc::SIGSEGV, None), (libc::SIGBUS, None), (libc::SIGABRT, Some(134))] {
        let (output, input) = std::io::pipe().unwrap();
        let command = spawn::Command::new(me()).args(["inside", "crash", "wait"]).fd(input.as_fd(), 1);
        let mut child = command.spawn().unwrap();
        drop(input);
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        assert_eq!(lines.next().as_deref(), Some("waiting"));
        child.signal(signal).unwrap();
        assert_eq!(lines.next(), Some(format!("stamped {signal}")));
        let status = child.wait().unwrap();
        match code {
            Some(code) => assert_eq!(status.code(), Some(code)),
            None if signal == libc::SIGBUS => assert!(!status.success()),
            None => assert_eq!(status.signal(), Some(signal)),
        }
    }
}

pub fn a_compartment_dies_with_its_parent() {
    // Its standard input stays open: nothing but the parent's death ends it.
    let (stdin, _hold) = UnixStream::pair().unwrap();
    let mut parent = Command::new(me())
        .args(["inside", "parent"])
        .stdin(std::os::fd::OwnedFd::from(stdin))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(parent.stdout.take().unwrap());
    let mut pid = String::new();
    output.read_line(&mut pid).unwrap();
    let mut report = String::new();
    // It may be the other way round.
    output.read_line(&mut report).unwrap();
    if pid.starts_with("test:") {
        std::mem::swap(&mut pid, &mut report);
    }
    assert!(report.starts_with("test: uid"), "{report}");
    let child = PathBuf::from(format!("/proc/{}", pid.trim()));
    assert!(child.exists());
    parent.kill().unwrap();
    parent.wait().unwrap();
    let mut rest = String::new();
    let begun = Instant::now();
    output.read_to_string(&mut rest).unwrap();
    while child.exists() && begun.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!child.exists() || is_zombie(&child), "outlived its parent");
}

/// Orphans wait for init to collect them, which not every container has.
/// A compartment with an heir, both ends of a socket that it holds, and the heir's pid.
fn with_heir() -> (spawn::Child, UnixStream, u32) {
    let (answer, stdout) = std::io::pipe().unwrap();
    let (stdin, hold) = UnixStream::pair().unwrap();
    let child = spawn::Command::new(me())
        .args(["inside", "hold", "vsp-storage", "heir"])
        .fd(stdin.as_fd(), 0)
        .fd(stdout.as_fd(), 1)
        .fd(stdin.as_fd(), KEPT)
        .spawn()
        .unwrap();
    drop((stdin, stdout));
    let mut report = String::new();
    BufReader::new(answer).read_line(&mut report).unwrap();
    assert!(report.contains("; 5 fds"), "{report}");
    let pid = child.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    (child, hold, children.trim().parse().unwrap_or_else(|_| panic!("one child: {children:?}")))
}

fn status_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

pub fn an_heir_holds_nothing_but_the_memory() {
    let (mut child, hold, heir) = with_heir();
    let status = status_of(heir);
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "Threads:\t1"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    if is_root() {
        assert_eq!(fs::read_dir(format!("/proc/{heir}/fd")).unwrap().count(), 1);
    }
    drop(hold);
    assert!(child.wait().unwrap().success());
    gone(heir);
}

pub fn a_stopped_heir_holds_nothing_up() {
    let (mut child, mut hold, heir) = with_heir();
    let stopped = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(heir.cast_signed()), signal);
    stopped(nix::sys::signal::Signal::SIGSTOP).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.pid().cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    hold.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(hold.read(&mut [0]).unwrap(), 0, "the socket closes");
    child.wait().unwrap();
    // Stopped or not, it does not outlive the other one's world.
    let _ = stopped(nix::sys::signal::Signal::SIGCONT);
    gone(heir);
}

/// Waits until a process is no more.
fn gone(pid: u32) {
    let begun = Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(Path::new(&format!("/proc/{pid}"))) {
        assert!(begun.elapsed() < Duration::from_secs(20), "process {pid} stays");
        thread::sleep(Duration::from_millis(1));
    }
}

fn is_zombie(process: &Path) -> bool {
    fs::read_to_string(process.join("stat")).is_ok_and(|stat| stat.contains(") Z "))
}

pub fn more_than_one_thread_is_an_error() {
    let (_, text) = run(&["threads"]);
    assert!(text.contains("has 2"), "{text}");
}

pub fn foreign_ids_are_an_error_without_root() {
    if !is_root() {
        let (_, text) = run(&["foreign-ids"]);
        assert!(text.contains("cannot become uid 424242"), "{text}");
    }
}

pub fn what_is_required_and_missing_is_an_error() {
    let (_, text) = run(&["required"]);
    assert!(text.contains("no pid namespace of its own: not started in one"), "{text}");
}

pub fn spawn_hands_over_exactly_what_is_listed() {
    let (mut output, input) = std::io::pipe().unwrap();
    let secret = fs::File::open("/proc/self/exe").unwrap();
    // A descriptor that any exec would inherit.
    nix::fcntl::fcntl(&secret, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    for want in [Want::Try, Want::No] {
        let mut child = spawn::Command::new(me())
            .args(["inside", "descriptors"])
            .env("ONE", "1")
            .fd(input.as_fd(), KEPT)
            .pid_namespace(want)
            .spawn()
            .unwrap();
        assert!(child.wait().unwrap().success());
        assert!(child.try_wait().unwrap().unwrap().success(), "a status stays known");
        child.kill().unwrap();
        let mut text = [0; 200];
        let len = output.read(&mut text).unwrap();
        let text = std::str::from_utf8(&text[..len]).unwrap();
        let (pid, rest) = text.split_once(' ').unwrap();
        assert_eq!(pid == "1", child.own_pid_namespace(), "{text}");
        // 3 is the directory that the child reads.
        assert_eq!(rest, "[0, 1, 2, 3, 5] [(\"ONE\", \"1\")]");
    }
}

pub fn spawn_tells_what_failed() {
    let error = spawn::Command::new("/no/such/program").spawn().unwrap_err().to_string();
    assert!(error.starts_with("cannot start /no/such/program: execute it: No such file"), "{error}");
}

pub fn peers_are_recognised() {
    if !is_root() {
        return;
    }
    for (recognise, expected) in [("yes", PEER), ("no", 65534)] {
        let place = std::env::temp_dir().join(format!("bulkhead-peer-{}", std::process::id()));
        let _ = fs::remove_file(&place);
        let listener = std::os::unix::net::UnixListener::bind(&place).unwrap();
        fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let (mut output, input) = std::io::pipe().unwrap();
        let mut child = spawn::Command::new(me())
            .args(["inside", "peer", recognise])
            .fd(listener.as_fd(), KEPT)
            .fd(input.as_fd(), 1)
            .spawn()
            .unwrap();
        drop(input);
        let mut peer = std::os::unix::process::CommandExt::uid(&mut Command::new("/usr/bin/python3"), PEER)
            .arg("-c")
            .arg("import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)")
            .arg(&place)
            .spawn()
            .unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success());
        peer.wait().unwrap();
        fs::remove_file(&place).unwrap();
        assert_eq!(text.trim(), expected.to_string());
    }
}

pub fn the_audit_sees_what_happens_in_a_pid_namespace() {
    // Strace cannot read the memory of an undumpable process without privilege.
    if !is_root() {
        return;
    }
    let log = std::env::temp_dir().join(format!("bulkhead-strace-{}", std::process::id()));
    let strace = Command::new("strace")
        .args(["-f", "--pidns-translation", "-e", "raw=!seccomp", "-o"])
        .arg(&log)
        .arg(me())
        .args(["threads_start_narrow", "--once"])
        .stdout(Stdio::null())
        .status();
    let Ok(status) = strace else {
        println!("    (no strace on this machine)");
        return;
    };
    assert!(status.success());
    let mut usage = policies::audit::Usage::default();
    usage.read(&fs::read_to_string(&log).unwrap());
    fs::remove_file(&log).unwrap();
    let unused = |policy| usage.unused(&policy).iter().map(|rule| rule.syscall).collect::<Vec<_>>();
    assert!(usage.denied().is_empty(), "{:?}", usage.denied());
    let (core, vcpu) = (unused(policies::CORE), unused(policies::VCPU));
    for call in ["clone3", "clone", "seccomp", "prctl", "sigaltstack", "tgkill", "exit_group", "rseq"] {
        assert!(!core.contains(&call), "{call} in {core:?}");
    }
    for call in ["futex", "exit", "madvise", "rt_sigreturn", "sigaltstack", "munmap"] {
        assert!(!vcpu.contains(&call), "{call} in {vcpu:?}");
    }
    assert!(vcpu.contains(&"ioctl") && core.contains(&"accept4"), "what did not happen is not there");
    let _ = std::io::stdout().flush();
}
