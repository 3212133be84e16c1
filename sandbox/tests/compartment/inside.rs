//! What happens inside: `inside MODE ARGUMENTS`.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, RawFd};
use std::sync::mpsc;

use sandbox::{Compartment, Ids, Namespaces, Policy, Want, policies, policy_test};

/// A user that no machine has.
pub const STRANGER: Ids = Ids { uid: 424_242, gid: 434_343 };
/// A user that the compartment can tell apart.
pub const PEER: u32 = 414_141;
/// The descriptor that is there for the compartment to keep.
pub const KEPT: RawFd = 5;

fn compartment(policy: Policy) -> Compartment {
    let root = nix::unistd::geteuid().is_root();
    Compartment {
        name: "test",
        ids: root.then_some(STRANGER),
        keep: vec![0, 1, 2],
        policy,
        namespaces: Namespaces::all(),
        heir: false,
    }
}

pub fn main(args: &[String]) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        // Says what was achieved, then waits for the other end of standard input, a socket, to close.
        ["hold", policy] | ["hold", policy, "heir"] => {
            let mut here = compartment(Policy::named(policy).unwrap());
            here.keep.push(KEPT);
            here.heir = args.len() == 3;
            let entered = here.enter().unwrap();
            say(&format!("{entered}\n"));
            let (mut byte, stdin) = ([0], std::io::stdin());
            let mut buffer = [std::io::IoSliceMut::new(&mut byte)];
            let nothing = nix::sys::socket::MsgFlags::empty();
            let _ = nix::sys::socket::recvmsg::<()>(stdin.as_raw_fd(), &mut buffer, None, nothing);
        }
        ["act", policy, act] => {
            compartment(Policy::named(policy).unwrap()).enter().unwrap();
            say(&format!("survived: {:?}\n", policy_test::run(act)));
        }
        ["vcpu-act", act] => {
            compartment(policies::CORE).enter().unwrap();
            let act = act.to_owned();
            let vcpu = std::thread::spawn(move || {
                sandbox::restrict_thread(policies::VCPU).unwrap();
                policy_test::run(&act)
            });
            say(&format!("survived: {:?}\n", vcpu.join().unwrap()));
        }
        ["vcpu"] => vcpu(),
        ["panic"] => {
            compartment(policies::VSP_STORAGE).enter().unwrap();
            panic!("as the test wants it");
        }
        ["fault"] => {
            compartment(policies::VSP_STORAGE).enter().unwrap();
            // SAFETY: there is none; the kernel is to end us here.
            unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
        }
        // Says that it crashed, from the handler.
        ["crash", how] => {
            let _registration = sandbox::crash::register(std::sync::Arc::new(Loud)).unwrap();
            compartment(policies::VSP_STORAGE).enter().unwrap();
            crash(how);
        }
        // And to a supervisor.
        ["crash-report", how] => {
            let _registration = sandbox::crash::register(std::sync::Arc::new(Loud)).unwrap();
            sandbox::crash::notify(KEPT);
            let mut here = compartment(policies::VSP_STORAGE);
            here.keep.push(KEPT);
            here.enter().unwrap();
            crash(how);
        }
        ["return"] => {
            compartment(policies::VSP_STORAGE).enter().unwrap();
        }
        ["threads"] => {
            let (_hold, held) = mpsc::channel::<()>();
            std::thread::spawn(move || held.recv());
            fails(compartment(policies::VSP_STORAGE));
        }
        ["foreign-ids"] => {
            fails(Compartment { ids: Some(STRANGER), ..compartment(policies::VSP_STORAGE) });
        }
        // Not started by `spawn`, so not in a PID namespace.
        ["required"] => {
            let namespaces = Namespaces { pid: Want::Require, ..Namespaces::all() };
            fails(Compartment { namespaces, ..compartment(policies::VSP_STORAGE) });
        }
        ["descriptors"] => {
            let open = std::fs::read_dir("/proc/self/fd").unwrap();
            let mut open: Vec<RawFd> =
                open.map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
            open.sort_unstable();
            let env: Vec<_> = std::env::vars().collect();
            // SAFETY: the test handed it over under this number.
            let mut given = unsafe { std::fs::File::from_raw_fd(KEPT) };
            given.write_all(format!("{} {open:?} {env:?}", std::process::id()).as_bytes()).unwrap();
        }
        // Starts a compartment and waits to be killed.
        ["parent"] => {
            let exe = std::env::current_exe().unwrap();
            let stdin = std::io::stdin();
            let stdout = std::io::stdout();
            let child = sandbox::spawn::Command::new(exe)
                .args(["inside", "hold", "vsp-storage"])
                .fd(stdin.as_fd(), 0)
                .fd(stdout.as_fd(), 1)
                .fd(stdin.as_fd(), KEPT)
                .spawn()
                .unwrap();
            say(&format!("{}\n", child.pid()));
            loop {
                std::thread::park();
            }
        }
        // Accepts a connection on the kept socket and says who is there.
        ["peer", recognise] => {
            let mut here = compartment(policies::CORE);
            here.keep.push(KEPT);
            here.namespaces = Namespaces::all().recognising((recognise == "yes").then_some(PEER));
            here.enter().unwrap();
            // SAFETY: the test handed it over under this number.
            let listener = unsafe { std::os::unix::net::UnixListener::from_raw_fd(KEPT) };
            let (socket, _) = listener.accept().unwrap();
            let who = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials);
            say(&format!("{}\n", who.unwrap().uid()));
        }
        _ => panic!("{args:?}"),
    }
}

/// A witness that can be heard.
struct Loud;

impl sandbox::crash::Witness for Loud {
    fn stamp(&self, signal: i32) {
        say(&format!("stamped {signal}\n"));
    }
}

/// Dies, by a fault of its own or by waiting for a signal.
fn crash(how: &str) {
    // SAFETY: there is none; the kernel is to end us here.
    unsafe {
        match how {
            "segv" => std::ptr::without_provenance_mut::<u8>(8).write_volatile(1),
            "ill" => std::arch::asm!("ud2"),
            "fpe" => {
                std::arch::asm!("xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _)
            }
            "overflow" => println!("{}", deep(1)),
            "panic" => panic!("as the test wants it"),
            "socket" => _ = policy_test::run("socket"),
            "abort" => std::process::abort(),
            "wait" => {
                say("waiting\n");
                // Ends when the test sends a signal.
                loop {
                    std::hint::spin_loop();
                }
            }
            _ => {}
        }
    }
}

/// Uses up the stack.
#[expect(unconditional_recursion)]
fn deep(n: u64) -> u64 {
    let room = std::hint::black_box([n; 512]);
    deep(n + 1) + room[3]
}

/// One `write`, without Rust's buffers and locks.
fn say(text: &str) {
    nix::unistd::write(std::io::stdout(), text.as_bytes()).unwrap();
}

fn fails(compartment: Compartment) {
    let error = compartment.enter().unwrap_err();
    say(&format!("{error}\n"));
}

extern "C" fn nothing(_: libc::c_int) {}

/// What the core does with its threads.
fn vcpu() {
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as usize) };
    compartment(policies::CORE).enter().unwrap();
    for _ in 0..2 {
        let (ask, asked) = mpsc::sync_channel::<std::os::unix::thread::RawPthread>(1);
        let (answer, answered) = mpsc::channel();
        let thread = std::thread::Builder::new().name("vp0".into());
        let vcpu = thread.spawn(move || {
            sandbox::restrict_thread(policies::VCPU).unwrap();
            // SAFETY: no argument.
            ask.send(unsafe { libc::pthread_self() }).unwrap();
            answered.recv().unwrap()
        });
        let vcpu = vcpu.unwrap();
        let id = asked.recv().unwrap();
        // SAFETY: the thread waits for our answer, so it is there.
        assert_eq!(unsafe { libc::pthread_kill(id, libc::SIGUSR1) }, 0);
        answer.send(7).unwrap();
        assert_eq!(vcpu.join().unwrap(), 7);
    }
    say("done\n");
}
