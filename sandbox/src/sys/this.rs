//! What the calling process does to itself.

use std::io;
use std::os::fd::RawFd;

use super::check;

/// Bytes of one `struct sock_filter`.
pub(crate) const INSTRUCTION: usize = 8;

/// `prctl` with up to two numeric arguments; the rest are 0.
fn prctl(option: libc::c_int, a: u64, b: u64) -> io::Result<i64> {
    // SAFETY: every option this file passes takes numbers, no pointers.
    check(unsafe { libc::prctl(option, a, b, 0u64, 0u64) }.into())
}

/// Empties the capability bounding set. Needs CAP_SETPCAP.
pub(crate) fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            // Beyond the last one that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes uid 0 mean nothing to capabilities, for good. Needs CAP_SETPCAP.
pub(crate) fn lock_securebits() -> io::Result<()> {
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    prctl(libc::PR_SET_SECUREBITS, bits as u64, 0).map(drop)
}

/// Drops every capability: effective, permitted, inheritable and ambient.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    // struct __user_cap_header_struct {version, pid}; version 3 is followed by two data blocks of three u32.
    let header: [u32; 2] = [0x2008_0522, 0];
    let data = [0u32; 6];
    // SAFETY: both pointers are to live arrays of the size that version 3 asks for; the kernel only reads.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// `no_new_privs`, for this thread and all that it starts.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// No core dumps, no ptrace by others of the same user, `/proc/self` owned by root.
pub(crate) fn undumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// SIGKILL when the thread that started this process ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map(drop)
}

/// A panic must not try to print a backtrace, which opens files.
pub(crate) fn forget_backtraces() {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: the caller has checked that this process has one thread.
        unsafe { std::env::remove_var(name) };
    }
}

/// Ends the process without running anything else.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` to `last`, both included.
pub(crate) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the caller of `Compartment::enter` gave up every descriptor that it did not list.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

/// Whether `fd` is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD on any number is harmless.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes the number `to` a duplicate of `from`, closing what `to` was.
pub(crate) fn duplicate_to(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: both are plain numbers; the caller owns what `to` was.
    check(unsafe { libc::dup2(from, to) }.into()).map(drop)
}

/// Runs `act` in a forked child and returns whether it returned Ok there; the child is gone afterwards.
/// The calling process must have one thread.
pub(crate) fn succeeds_in_child(act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    wait_for(fork(act)?)
}

/// Forks a child that runs `act` and exits with the errno it failed with. The caller has one thread.
pub(crate) fn fork(act: impl FnOnce() -> io::Result<()>) -> io::Result<i32> {
    // SAFETY: with one thread no lock is held by anybody else, so the child may do as it likes.
    let pid = check(unsafe { libc::fork() }.into())?;
    if pid == 0 {
        let code = match act() {
            Ok(()) => 0,
            Err(e) => e.raw_os_error().filter(|code| (1..256).contains(code)).unwrap_or(libc::EIO),
        };
        exit_now(code);
    }
    Ok(pid as i32)
}

/// Waits for a child of [`fork`].
pub(crate) fn wait_for(pid: i32) -> io::Result<()> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }.into()) {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, code) => Err(io::Error::from_raw_os_error(code)),
        (false, _) => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Installs a seccomp filter on the calling thread. `program` is `struct sock_filter`s in memory order.
pub(crate) fn install_filter(program: &[u8]) -> io::Result<()> {
    let (instructions, rest) = program.as_chunks::<INSTRUCTION>();
    if instructions.is_empty() || !rest.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let filter: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|i| libc::sock_filter {
            code: u16::from_le_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_le_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let len = filter.len().try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    let fprog = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `fprog` describes a live array; the kernel copies it and does not write to it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u64, &raw const fprog) })
        .map(drop)
}
