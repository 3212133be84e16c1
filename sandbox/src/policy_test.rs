//! Things that a compartment must not be able to do, for tests to try.
//!
//! Each act is the bare system call: [`run`] returns only to a process that has survived it. A program offers
//! it behind a flag (`--policy-test NAME`), calls it after [`crate::Compartment::enter`], and a test expects
//! the program to die of SIGSYS.
#![allow(unsafe_code)]

use std::io;

use crate::{Policy, sys};

/// A forbidden act.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    /// What [`run`] calls it.
    pub name: &'static str,
    /// The system call.
    pub syscall: &'static str,
    /// What a hijacked process would gain by it.
    pub gain: &'static str,
    number: libc::c_long,
    arguments: fn() -> [u64; 6],
}

impl Act {
    /// Whether `policy` lets it happen.
    pub fn is_allowed_by(&self, policy: &Policy) -> bool {
        u32::try_from(self.number).is_ok_and(|number| policy.verdict(number, &(self.arguments)()).is_some())
    }
}

/// What is tried in place of a pid: no process has it, so that an act which is let through harms nobody.
const NOBODY: u64 = 0x3fff_fffe;

macro_rules! acts {
    ($($name:literal $syscall:ident ($($argument:expr),*) $gain:literal;)*) => {
        &[$(Act {
            name: $name,
            syscall: stringify!($syscall),
            gain: $gain,
            number: libc::$syscall,
            arguments: || {
                let mut arguments = [0u64; 6];
                let given: &[u64] = &[$($argument as u64),*];
                arguments[..given.len()].copy_from_slice(given);
                arguments
            },
        }),*]
    };
}

/// The acts that [`run`] knows; no VSP may survive any of them. (The core may do a few of them: see
/// its policy.)
pub const FORBIDDEN: &[Act] = acts! {
    "open" SYS_open(c"/".as_ptr(), libc::O_RDONLY) "a file";
    "openat" SYS_openat(libc::AT_FDCWD, c"/".as_ptr(), libc::O_RDONLY) "a file";
    "openat2" SYS_openat2(libc::AT_FDCWD, c"/".as_ptr(), 0, 0) "a file";
    "creat" SYS_creat(c"/new".as_ptr(), 0o600) "a file";
    "stat-path" SYS_newfstatat(libc::AT_FDCWD, c"/".as_ptr(), 0, 0) "knowledge of the file system";
    "unlink" SYS_unlinkat(libc::AT_FDCWD, c"/x".as_ptr(), 0) "a file's end";
    "chroot" SYS_chroot(c"/".as_ptr()) "another root";
    "mount" SYS_mount(c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, 0) "a file system";
    "umount" SYS_umount2(c"/".as_ptr(), libc::MNT_DETACH) "what lies below a mount";
    "pivot-root" SYS_pivot_root(c"/".as_ptr(), c"/".as_ptr()) "another root";
    "open-by-handle" SYS_open_by_handle_at(-1i32, 0, 0) "a file, past every path check";
    "socket" SYS_socket(libc::AF_INET, libc::SOCK_STREAM, 0) "the network";
    "socket-unix" SYS_socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) "a local service";
    "socketpair" SYS_socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, 0) "sockets";
    "connect" SYS_connect(-1i32, 0, 0) "a peer";
    "bind" SYS_bind(-1i32, 0, 0) "an address";
    "execve" SYS_execve(c"/bin/sh".as_ptr(), 0, 0) "another program";
    "execveat" SYS_execveat(-1i32, c"".as_ptr(), 0, 0, libc::AT_EMPTY_PATH) "another program, from a memfd";
    "fork" SYS_fork() "another process";

    "clone" SYS_clone(libc::SIGCHLD) "another process";
    "ptrace" SYS_ptrace(libc::PTRACE_ATTACH, NOBODY, 0, 0) "another process's insides";
    "process-vm-readv" SYS_process_vm_readv(NOBODY, 0, 0, 0, 0, 0) "another process's memory";
    "pidfd-open" SYS_pidfd_open(NOBODY, 0) "a handle to another process";
    "pidfd-getfd" SYS_pidfd_getfd(-1i32, 0, 0) "another process's descriptors";
    "kill" SYS_kill(NOBODY, 0) "another process's end";
    "unshare" SYS_unshare(libc::CLONE_NEWUSER) "capabilities in a new user namespace";
    "setns" SYS_setns(-1i32, 0) "somebody else's namespace";
    "setuid" SYS_setuid(0) "another user";
    "setresuid" SYS_setresuid(0, 0, 0) "another user";
    "setgid" SYS_setgid(0) "another group";
    "capset" SYS_capset(0, 0) "capabilities";
    "prctl" SYS_prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) "its own protection undone";
    "seccomp" SYS_seccomp(libc::SECCOMP_GET_ACTION_AVAIL, 0, 0) "knowledge of its own filter";
    "io-uring-setup" SYS_io_uring_setup(1, 0) "system calls that no filter sees";
    "io-uring-register" SYS_io_uring_register(-1i32, 0, 0, 0) "operations that its ring was denied";
    "mmap-exec" SYS_mmap(0, 4096, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1i32, 0)
        "code of its own";
    "mprotect-exec" SYS_mprotect(0, 0, libc::PROT_READ | libc::PROT_EXEC) "code of its own";
    "pkey-mprotect" SYS_pkey_mprotect(0, 0, libc::PROT_EXEC, -1i32) "code of its own";
    "personality" SYS_personality(0x040_0000) "readable memory that is executable";
    "bpf" SYS_bpf(0, 0, 0) "code in the kernel";
    "perf-event-open" SYS_perf_event_open(0, 0, -1i32, -1i32, 0) "a look at the rest of the machine";
    "userfaultfd" SYS_userfaultfd(libc::O_CLOEXEC) "races in the kernel made easy";
    "keyctl" SYS_keyctl(0, 0, 0, 0, 0) "the key ring";
    "add-key" SYS_add_key(0, 0, 0, 0, 0) "the key ring";
    "memfd-secret" SYS_memfd_secret(0) "memory out of sight";
    "init-module" SYS_finit_module(-1i32, c"".as_ptr(), 0) "code in the kernel";
    "kexec" SYS_kexec_load(0, 0, 0, 0) "another kernel";
    "reboot" SYS_reboot(0, 0, 0, 0) "the host's end";
    "ioctl" SYS_ioctl(0, libc::TIOCSTI, c"x".as_ptr()) "keystrokes on the terminal";
    "dup2" SYS_dup2(-1i32, 0) "other descriptors in known places";
    "setrlimit" SYS_prlimit64(0, 0, 0, 0) "higher limits";
    "memfd-create" SYS_memfd_create(c"x".as_ptr(), 0) "files in memory";
    "eventfd" SYS_eventfd2(0, 0) "descriptors";
    "accept" SYS_accept4(-1i32, 0, 0, 0) "peers";
};

/// Tries the forbidden act `name`. Returning at all means that it did not kill the process: what the
/// kernel answered. `None`: there is no such act.
pub fn run(name: &str) -> Option<io::Result<i64>> {
    let act = FORBIDDEN.iter().find(|act| act.name == name)?;
    // SAFETY: no act touches memory of ours: pointers are to constants that are read, or null.
    Some(unsafe { sys::raw(act.number, (act.arguments)()) })
}
