//! Handlers for signals that end the process. They only ever run towards its end; what they do is in [`crate::crash`].

use std::io;
use std::os::fd::RawFd;
use std::{mem, ptr};

use super::this::exit_now;
use crate::crash;

/// Faults, and the signal by which a watchdog ends a process that hangs. They are handled on the thread's own signal stack
/// where it has one (Rust gives one to each thread): the fault may be that its stack is used up.
const FAULTS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// A system call that is in no policy (a test sees to that) and harmless: where no filter is installed, it fails.
pub(crate) const FORBIDDEN: libc::c_long = libc::SYS_vhangup;

/// As a shell shows the death of a process by a signal.
const KILLED: libc::c_int = 128;

/// `si_code` of a SIGSYS that a filter raised.
const SYS_SECCOMP: libc::c_int = 1;

/// The start of `siginfo_t` as a filter's SIGSYS fills it (Linux UAPI, `asm-generic/siginfo.h`).
#[repr(C)]
struct ForbiddenCall {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    address: *const libc::c_void,
    number: libc::c_int,
    arch: libc::c_uint,
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs all handlers.
pub(crate) fn install() -> io::Result<()> {
    for signal in FAULTS {
        handle(signal, on_fault, libc::SA_ONSTACK)?;
    }
    // On the ordinary stack, which is larger than a signal stack: this one speaks.
    handle(libc::SIGSYS, on_forbidden_call, 0)
}

fn handle(signal: libc::c_int, handler: Handler, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: all zeros is a valid `sigaction`; the handler is a function of the type that SA_SIGINFO asks for and never returns. All
    // signals are blocked meanwhile, its own included: what it does to die must not be handled again.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags | libc::SA_SIGINFO;
        libc::sigfillset(&raw mut action.sa_mask);
        match libc::sigaction(signal, &raw const action, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    crash::stamp(signal);
    die_of(signal, info)
}

extern "C" fn on_forbidden_call(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel fills 128 bytes of `siginfo_t`, of which these are the first.
    let call = unsafe { info.cast::<ForbiddenCall>().read() };
    let filtered = call.code == SYS_SECCOMP;
    if filtered && is_abort(call.number, context) {
        crash::stamp(libc::SIGABRT);
        crash::tell_aborted(say, report);
        exit_now(KILLED + libc::SIGABRT);
    }
    crash::stamp(signal);
    if filtered {
        crash::tell_forbidden(call.number, say, report);
    }
    // SAFETY: no arguments. Behind a filter the kernel ends us here, by SIGSYS.
    unsafe { libc::syscall(FORBIDDEN) };
    exit_now(KILLED + signal)
}

/// Whether the call is one of those by which the C library's `abort` makes the signal SIGABRT come: it unblocks the signal
/// (glibc up to 2.40), then sends it to its own thread. Nothing else here does either, and whoever has other reasons to is
/// ended all the same.
fn is_abort(number: libc::c_int, context: *mut libc::c_void) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let argument = |register: libc::c_int| {
            // SAFETY: the third argument of a handler with SA_SIGINFO is a `ucontext_t` of the kernel's making.
            let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
            // An `int`: the upper half of the register means nothing.
            registers.get(register as usize).map(|value| *value as libc::c_int)
        };
        match libc::c_long::from(number) {
            libc::SYS_rt_sigprocmask => argument(libc::REG_RDI) == Some(libc::SIG_UNBLOCK),
            libc::SYS_tgkill => argument(libc::REG_RDX) == Some(libc::SIGABRT),
            _ => false,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (number, context);
        false
    }
}

/// A line on standard error. It waits if that is a pipe or a socket whose reader has stopped, and no call that the policies
/// leave us would not: whoever supervises has been told by then, so a process that hangs here has nothing left to say, and
/// is killed by the watchdog.
fn say(bytes: &[u8]) {
    // SAFETY: a live buffer. Where the write itself is forbidden, it is the forbidden call that ends us.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

/// A datagram to the supervisor; lost if he does not listen. By sendmsg, the one call to do it that the policies have.
fn report(to: RawFd, bytes: &[u8]) {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid `msghdr`, one that says nothing; the kernel only reads the live buffer that it then describes.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        libc::sendmsg(to, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    }
}

/// Dies of `signal` without a system call: the same fault again, which the kernel does not deliver while the signal is
/// blocked but kills for, even the first process of a PID namespace.
fn die_of(signal: libc::c_int, info: *mut libc::siginfo_t) -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each of these is meant to fault and does not return if it does; none writes to memory of ours. An address that is
    // not canonical is nobody's. The faulting address of a SIGBUS is read only.
    unsafe {
        use std::arch::asm;
        match signal {
            libc::SIGILL => asm!("ud2"),
            libc::SIGFPE => {
                asm!("xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _)
            }
            libc::SIGBUS => {
                let address = (*info).si_addr();
                asm!("mov {0}, [{0}]", inout(reg) address => _, options(nostack, readonly));
            }
            libc::SIGSEGV => asm!("mov {0}, [{0}]", inout(reg) 1_u64 << 63 => _, options(nostack, readonly)),
            _ => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = info;
    // SIGABRT, a signal that somebody sent and no fault of ours answers to, another architecture.
    exit_now(KILLED + signal)
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_policy_allows_the_call_that_ends_a_process() {
        let number = u32::try_from(super::FORBIDDEN).unwrap_or(u32::MAX);
        for policy in policies::ALL {
            assert_eq!(policy.verdict(number, &[0; 6]), None, "{}", policy.name);
        }
    }
}
