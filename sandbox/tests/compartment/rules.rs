//! Every rule of every policy, executed: what it allows is survived, everything else is not.
//!
//! Each call is made in a forked child that has installed just the filter, with arguments that meet the rule's
//! conditions and otherwise make no sense, so that a call which is let through fails or does nothing.

use std::collections::BTreeSet;

use sandbox::policies::{self, ALL, Policy, Rule, Test};

/// Beyond the last system call that this code has heard of (470 or so).
const HIGHEST: u32 = 480;
/// Calls of the x32 ABI carry this bit.
const X32: u32 = 0x4000_0000;
/// `uretprobe` and `uprobe`.
const UPROBES: [u32; 2] = [335, 336];
/// How a child says that the call returned.
const SURVIVED: i32 = 42;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The call returned, or ended the process as it should.
    Survived,
    /// Killed by this signal.
    Signal(i32),
    /// The call returned something that the rule does not say.
    Wrong(i32),
}

const KILLED: End = End::Signal(libc::SIGSYS);

pub fn policies_keep_their_promised_size() {
    for (policy, limit) in [
        (policies::VSP_STORAGE, 20),
        (policies::VSP_NET, 20),
        (policies::VSP_NET_STREAM, 19),
        (policies::VSP_STORAGE_VHOST, 24),
        (policies::VSP_NET_VHOST, 24),
        (policies::VSP_NET_STREAM_VHOST, 23),
        (policies::VSP_ECHO, 20),
        (policies::VSP_HID, 12),
        (policies::VSP_PCI, 17),
        (policies::CONSOLE, 25),
        (policies::VCPU, 27),
    ] {
        let calls = policy.syscalls();
        assert!(calls.len() <= limit, "{}: {} calls: {calls:?}", policy.name, calls.len());
    }
    let core = policies::CORE.syscalls();
    assert!(!core.contains(&"clone3"), "refused, not allowed");
    for policy in ALL {
        for call in ["openat", "socket", "execve", "io_uring_setup", "io_uring_register", "ptrace", "unshare"]
        {
            assert!(!policy.syscalls().contains(&call), "{} allows {call}", policy.name);
        }
    }
}

pub fn a_vcpu_may_nothing_that_its_process_may_not() {
    for rule in policies::VCPU.rules() {
        let arguments = arguments(rule);
        assert!(policies::CORE.verdict(rule.number, &arguments).is_some(), "{rule:?}");
    }
}

pub fn every_rule_lets_its_call_through() {
    for policy in ALL {
        for rule in policy.rules() {
            let end = match rule.syscall {
                "exit" | "exit_group" => behind(policy, || {
                    raw(rule.number, &[SURVIVED as u64, 0, 0, 0, 0, 0]);
                    unreachable!()
                }),
                "rt_sigreturn" => in_child(|| interrupted(policy)),
                _ => behind(policy, || {
                    let refused = policy.rules().iter().any(|r| r.refused && r.number == rule.number);
                    let answer = raw(rule.number, &arguments(rule));
                    if (answer == -i64::from(libc::ENOSYS)) == refused { SURVIVED } else { 1 }
                }),
            };
            assert_eq!(end, End::Survived, "{}: {rule:?}", policy.name);
        }
    }
}

pub fn every_other_call_kills() {
    for policy in ALL {
        let allowed: BTreeSet<u32> = policy.rules().iter().map(|rule| rule.number).collect();
        for number in (0..HIGHEST).filter(|n| !allowed.contains(n)).chain([X32, X32 + 1, X32 + 512, u32::MAX])
        {
            let end = behind(policy, || {
                raw(number, &[u64::MAX, 0, 0, 0, 0, 0]);
                SURVIVED
            });
            // Newer kernels keep filters away from uprobes' trampolines. Called by hand they end the process or fail.
            let ended = end == KILLED || UPROBES.contains(&number);
            assert!(ended, "{}: call {number}: {end:?}", policy.name);
        }
    }
}

pub fn every_condition_counts() {
    let mut tried = 0;
    for policy in ALL {
        for rule in policy.rules() {
            for condition in rule.conditions {
                let mut arguments = arguments(rule);
                arguments[usize::from(condition.argument)] = match condition.test {
                    Test::Equal => condition.value ^ 0x8000,
                    Test::AtMost => condition.value + 1,
                    Test::Masked(mask) => condition.value ^ mask,
                };
                assert_eq!(policy.verdict(rule.number, &arguments), None, "{}: {rule:?}", policy.name);
                let end = behind(policy, || {
                    raw(rule.number, &arguments);
                    SURVIVED
                });
                assert_eq!(end, KILLED, "{}: {rule:?} against {condition:?}", policy.name);
                tried += 1;
            }
        }
    }
    assert!(tried > 10);
}

pub fn other_architectures_calls_kill() {
    let end = behind(&policies::VSP_STORAGE, || {
        // SAFETY: 20 is i386's getpid; the call changes eax only.
        unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _, options(nostack)) };
        SURVIVED
    });
    // A kernel without support for 32-bit programs answers with a fault.
    assert!(matches!(end, End::Signal(libc::SIGSYS | libc::SIGSEGV)), "{end:?}");
}

pub fn a_filter_that_is_not_installed_is_an_error() {
    let end = in_child(|| {
        let nonsense = Policy { program: &[0xff; 8], ..policies::VSP_ECHO };
        let cut = Policy { program: &policies::VSP_ECHO.program[..12], ..policies::VSP_ECHO };
        let empty = Policy { program: &[], ..policies::VSP_ECHO };
        let refused = [nonsense, cut, empty].map(|policy| sandbox::restrict_thread(policy).is_err());
        if refused == [true; 3] { SURVIVED } else { 1 }
    });
    assert_eq!(end, End::Survived);
}

/// Arguments that meet the rule and make no sense otherwise.
fn arguments(rule: &Rule) -> [u64; 6] {
    let mut arguments = [u64::MAX, 0, 0, 0, 0, 0];
    if rule.syscall == "clone" {
        // A thread-local area outside user space: the kernel makes no thread.
        arguments[4] = u64::MAX;
    }
    for condition in rule.conditions {
        arguments[usize::from(condition.argument)] = condition.value;
    }
    arguments
}

/// A signal arrives behind the filter, and its handler returns.
fn interrupted(policy: &Policy) -> i32 {
    use std::sync::atomic::{AtomicBool, Ordering};
    static ARRIVED: AtomicBool = AtomicBool::new(false);
    extern "C" fn note(_: libc::c_int) {
        ARRIVED.store(true, Ordering::SeqCst);
    }
    let soon = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    let once = libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: soon };
    // SAFETY: the handler only stores to an atomic; the timer's value is alive.
    unsafe {
        libc::signal(libc::SIGALRM, note as *const () as usize);
        libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &raw const once, 0);
    }
    sandbox::restrict_thread(*policy).unwrap();
    while !ARRIVED.load(Ordering::SeqCst) {
        std::hint::spin_loop();
    }
    SURVIVED
}

/// Runs `act` behind the filter of `policy`, in a child, and says how it ended.
fn behind(policy: &Policy, act: impl FnOnce() -> i32) -> End {
    in_child(|| {
        sandbox::restrict_thread(*policy).unwrap();
        act()
    })
}

/// Runs `act` in a child and says how it ended.
fn in_child(act: impl FnOnce() -> i32) -> End {
    // SAFETY: this program has one thread while it tests.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: numbers only.
        unsafe {
            // No call of these tests is meant to wait.
            libc::alarm(20);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
        let code = act();
        raw(libc::SYS_exit_group as u32, &[code as u64, 0, 0, 0, 0, 0]);
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, SURVIVED) => End::Survived,
        (true, code) => End::Wrong(code),
        (false, _) => End::Signal(libc::WTERMSIG(status)),
    }
}

/// The bare call: its result, or minus its errno.
fn raw(number: u32, a: &[u64; 6]) -> i64 {
    // SAFETY: the arguments are chosen to make no sense: no pointer among them is valid.
    let result = unsafe { libc::syscall(number.into(), a[0], a[1], a[2], a[3], a[4], a[5]) };
    if result >= 0 { result } else { -std::io::Error::last_os_error().raw_os_error().map_or(1, i64::from) }
}
