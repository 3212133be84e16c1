//! The heir's own code: it runs in the memory of another process, whose heap, locks and `errno` are not its to touch. Bare
//! system calls on a stack of its own, and a call that fails ends it.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::check;
use super::this::INSTRUCTION;

/// Bytes of the heir's stack. It calls nothing but system calls; a signal frame would fit several times.
const STACK: usize = 16 * 1024;

/// Set by the heir, in the memory that it shares: its door is closed.
static SEALED: AtomicBool = AtomicBool::new(false);

/// Starts a process that shares the memory of this one (which has one thread) and ends when the other end of the pipe
/// `until` is closed. Returns when it holds nothing besides any more: what it still held would outlive us.
pub(crate) fn start(until: RawFd) -> io::Result<()> {
    // SAFETY: an anonymous mapping that nobody else knows of. It is never unmapped: the heir stands on it.
    let stack = unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), STACK, access, kind, -1, 0)
    };
    if stack == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // Blocked for the heir's whole life: our handlers are not made for it, and what is to end us ends it by the pipe.
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are live; `sigfillset` and `pthread_sigmask` fill them in before they are read.
    let masked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    if masked != 0 {
        return Err(io::Error::from_raw_os_error(masked));
    }
    // SAFETY: the stack is the child's alone and stays mapped, and `heir` keeps to what its own comment promises, so two
    // processes in one memory are never in each other's way. No signal at its end: its parent is usually gone by then.
    let started = check(
        unsafe {
            libc::clone(
                heir,
                stack.byte_add(STACK),
                libc::CLONE_VM,
                std::ptr::without_provenance_mut(until as usize),
            )
        }
        .into(),
    );
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    let pid = started? as libc::pid_t;
    while !SEALED.load(Ordering::Acquire) {
        // SAFETY: no status is asked for, and nothing else is written to.
        if unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) } != 0 {
            return Err(io::Error::other("it ended at once"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// The heir's life. Nothing here allocates, unwinds or keeps anything outside of its stack.
extern "C" fn heir(until: *mut libc::c_void) -> libc::c_int {
    let until = until.addr() as u64;
    let filter = policies::HEIR.program;
    let program = libc::sock_fprog {
        len: (filter.len() / INSTRUCTION) as u16,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    let mut byte = 0u8;
    // SAFETY: plain numbers, a filter that is only read, and a byte on this stack. The descriptors are this process's own
    // copies: its table is not shared.
    unsafe {
        let below = until == 0 || libc::syscall(libc::SYS_close_range, 0u64, until - 1, 0u64) == 0;
        if !below || libc::syscall(libc::SYS_close_range, until + 1, u64::from(u32::MAX), 0u64) != 0 {
            return 1;
        }
        // The pipe is for an heir that does as it is told; whoever writes to its stack cannot talk his way out of this. It comes
        // after our parent's descriptors have gone, as it should.
        if libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0u64, 0u64, 0u64) != 0
        {
            return 1;
        }
        if libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u64, &raw const program) != 0 {
            return 1;
        }
        SEALED.store(true, Ordering::Release);
        libc::syscall(libc::SYS_read, until, &raw mut byte, 1usize);
        libc::syscall(libc::SYS_exit_group, 0);
    }
    0
}
