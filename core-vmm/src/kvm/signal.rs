//! The signal that makes a VP leave `KVM_RUN`: a handler that does nothing, installed without
//! `SA_RESTART`, so that the ioctl returns `EINTR`.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Chosen because nothing else of ours uses it.
pub const KICK: Signal = Signal::SIGUSR1;

extern "C" fn nothing(_: libc::c_int) {}

/// Installs the handler for the whole process.
pub fn install() -> std::io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler touches nothing at all, so it is safe in every context that it may interrupt.
    unsafe { sigaction(KICK, &action) }?;
    Ok(())
}
