//! One virtual processor: a thread that runs the guest and answers its exits. Whatever concerns
//! the VMBus is passed to the main thread, which owns it; the VP waits for the answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::eventfd::EventFd;

use super::{
    ioctl::{self, HypervExit},
    mmio, page, regs,
};
use crate::{
    hypercall::{self, Retarget},
    layout,
    legacy::{Outcome, Platform},
    memory::Ram,
    partition::{HvStatus, SynicRegisters},
};

/// What a VP asks the main thread.
#[derive(Debug)]
pub enum Question {
    /// `HvPostMessage`: connection and payload.
    PostMessage {
        /// Connection id.
        connection: u32,
        /// At most 240 bytes.
        payload: Vec<u8>,
    },
    /// SynIC MSRs changed.
    Synic(SynicRegisters),
    /// Where there is no memory, in a window for VMBus devices, a VP reads or writes (`write`) 1, 2, 4 or 8 bytes; it wants an
    /// [`Answer::Value`].
    Access {
        /// A multiple of `bytes`.
        gpa: u64,
        /// How many.
        bytes: u8,
        /// What.
        write: Option<u64>,
    },
    /// A device's interrupt is to go elsewhere.
    Retarget(Retarget),
    /// KVM could not go on because of memory that does not answer (where, if it says so). Answered, it tries again.
    MemoryFault(Option<u64>),
    /// The guest reports a crash and goes on if it is answered.
    Crash([u64; 5]),
    /// The guest is done, one way or another; the VP's thread has ended and no answer follows.
    End(Outcome),
}

/// What it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// How it went.
    Status(HvStatus),
    /// What was read.
    Value(u64),
}

/// A question and who asks.
#[derive(Debug)]
pub struct Asked {
    /// VP index.
    pub vp: u32,
    /// The question.
    pub question: Question,
}

/// The VP's end of the line to the main thread.
#[derive(Debug)]
pub struct Line {
    /// VP index.
    pub vp: u32,
    /// Questions go here...
    pub ask: mpsc::SyncSender<Asked>,
    /// ...and this wakes the main thread.
    pub wake: Arc<EventFd>,
    /// Answers.
    pub answers: mpsc::Receiver<Answer>,
    /// Set when the VP is to stop.
    pub stop: Arc<AtomicBool>,
}

impl Line {
    fn send(&self, question: Question) -> bool {
        let sent = self.ask.send(Asked { vp: self.vp, question }).is_ok();
        sent && self.wake.write(1).is_ok()
    }

    /// `None`: the machine is being taken down.
    fn ask(&self, question: Question) -> Option<HvStatus> {
        match self.answer_to(question)? {
            Answer::Status(status) => Some(status),
            Answer::Value(_) => None,
        }
    }

    fn answer_to(&self, question: Question) -> Option<Answer> {
        if self.send(question) { self.answers.recv().ok() } else { None }
    }

    /// What an access brings, if one of the windows for devices is concerned; elsewhere is nothing. `None`: the machine is being taken down.
    fn access(&self, ram_end: u64, gpa: u64, bytes: usize, write: Option<u64>) -> Option<u64> {
        if !layout::is_in_window(gpa, bytes as u64, ram_end) {
            return Some(u64::MAX);
        }
        match self.answer_to(Question::Access { gpa, bytes: bytes as u8, write })? {
            Answer::Value(value) => Some(value),
            Answer::Status(_) => None,
        }
    }
}

/// Hypercall codes that reach us (TLFS, appendix A) and the flag for register parameters.
const HVCALL_POST_MESSAGE: u64 = 0x5c;
const HVCALL_SIGNAL_EVENT: u64 = 0x5d;
const HVCALL_FAST: u64 = 1 << 16;

/// `HV_INPUT_POST_MESSAGE`: connection, reserved, message type, payload size, then the payload.
const POST_MESSAGE_HEADER: usize = 16;
const POST_MESSAGE_PAYLOAD: usize = 240;

/// Narrows the thread's own filter, then runs the guest.
pub fn run_restricted(
    vcpu: VcpuFd,
    line: &Line,
    ram: &Ram,
    platform: &Platform,
    restrict: fn() -> Result<(), String>,
) {
    match restrict() {
        Ok(()) => run(vcpu, line, ram, platform),
        Err(e) => {
            line.send(Question::End(Outcome::Failed(format!("VP {} has no compartment: {e}", line.vp))));
        }
    }
}

/// Runs the guest until told to stop. Reports an [`Outcome`] when the guest or KVM ends it.
pub fn run(mut vcpu: VcpuFd, line: &Line, ram: &Ram, platform: &Platform) {
    while !line.stop.load(Ordering::Acquire) {
        match step(&mut vcpu, line, ram, platform) {
            Ok(()) => {}
            Err(Some(outcome)) => {
                line.send(Question::End(outcome));
                return;
            }
            Err(None) => return,
        }
    }
}

/// One `KVM_RUN`. An error ends the thread, with an outcome to report or silently.
fn step(vcpu: &mut VcpuFd, line: &Line, ram: &Ram, platform: &Platform) -> Result<(), Option<Outcome>> {
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => return Ok(()),
        Err(e) if e.errno() == libc::EFAULT => {
            let question = Question::MemoryFault(ioctl::fault_address(vcpu));
            return line.ask(question).map(|_| ()).ok_or(None);
        }
        Err(e) => return Err(Some(Outcome::Failed(format!("KVM_RUN on VP {}: {e}", line.vp)))),
    };
    match exit {
        VcpuExit::IoOut(layout::HYPERCALL_PORT, _) => hypercall(vcpu, line, ram),
        VcpuExit::IoOut(port, data) => platform.write(port, data).map_or(Ok(()), |end| Err(Some(end))),
        VcpuExit::IoIn(port, data) => {
            platform.read(port, data);
            Ok(())
        }
        VcpuExit::MmioRead(gpa, data) => {
            for (gpa, at, len) in mmio::pieces(gpa, data.len()) {
                let value = line.access(ram.end(), gpa, len, None).ok_or(None)?;
                mmio::fill(&mut data[at..at + len], value);
            }
            Ok(())
        }
        VcpuExit::MmioWrite(gpa, data) => {
            for (gpa, at, len) in mmio::pieces(gpa, data.len()) {
                let value = mmio::value(&data[at..at + len]);
                line.access(ram.end(), gpa, len, Some(value)).ok_or(None)?;
            }
            Ok(())
        }
        VcpuExit::X86Wrmsr(write) => {
            let (index, value) = (write.index, write.data);
            let error = u8::from(!page::write(vcpu, ram, index, value));
            ioctl::set_msr_error(vcpu, error);
            Ok(())
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => Ok(()),
        VcpuExit::Hyperv => hyperv(vcpu, line, ram),
        VcpuExit::Shutdown => Err(Some(Outcome::TripleFault)),
        VcpuExit::SystemEvent(kind, _) => match kind {
            kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Err(Some(Outcome::PowerOff)),
            kvm_bindings::KVM_SYSTEM_EVENT_RESET => Err(Some(Outcome::Reset)),
            kvm_bindings::KVM_SYSTEM_EVENT_CRASH => {
                let parameters = regs::crash_parameters(vcpu);
                line.ask(Question::Crash(parameters)).map(|_| ()).ok_or(None)
            }
            other => Err(Some(Outcome::Failed(format!("VP {}: unknown system event {other}", line.vp)))),
        },
        other => Err(Some(Outcome::Failed(format!("VP {}: KVM exit {other:?}", line.vp)))),
    }
}

/// A hypercall that our page has sent here, with its registers as they are: the input's address in RDX, the control word in RCX, the status in RAX (TLFS,
/// "Hypercall Interface").
fn hypercall(vcpu: &VcpuFd, line: &Line, ram: &Ram) -> Result<(), Option<Outcome>> {
    let failed = |e| Some(Outcome::Failed(format!("VP {}: registers of a hypercall: {e}", line.vp)));
    let mut registers = vcpu.get_regs().map_err(failed)?;
    if registers.rcx as u16 != hypercall::RETARGET_INTERRUPT {
        // Whoever writes to the port without our page finds nothing there.
        return Ok(());
    }
    let status = match hypercall::retarget(ram, registers.rcx, registers.rdx) {
        Ok(retarget) => line.ask(Question::Retarget(retarget)).ok_or(None)?,
        Err(status) => status,
    };
    registers.rax = status as u64;
    vcpu.set_regs(&registers).map_err(failed)
}

fn hyperv(vcpu: &mut VcpuFd, line: &Line, ram: &Ram) -> Result<(), Option<Outcome>> {
    match ioctl::hyperv_exit(vcpu) {
        HypervExit::Synic { control, event_page, message_page } => {
            let registers = SynicRegisters { control, event_page, message_page };
            line.ask(Question::Synic(registers)).map(|_| ()).ok_or(None)
        }
        HypervExit::Hypercall { input, param } => {
            let status = match input & 0xffff {
                HVCALL_POST_MESSAGE if input & HVCALL_FAST != 0 => HvStatus::InvalidHypercallInput,
                HVCALL_POST_MESSAGE => match read_message(ram, param) {
                    Ok((connection, payload)) => {
                        line.ask(Question::PostMessage { connection, payload }).ok_or(None)?
                    }
                    Err(status) => status,
                },
                // Bound connections never leave the kernel.
                HVCALL_SIGNAL_EVENT => HvStatus::InvalidConnectionId,
                _ => HvStatus::InvalidHypercallInput,
            };
            ioctl::set_hypercall_result(vcpu, status as u64);
            Ok(())
        }
        HypervExit::Other(kind) => {
            Err(Some(Outcome::Failed(format!("VP {}: unknown Hyper-V exit {kind}", line.vp))))
        }
    }
}

/// Copies the input page of `HvPostMessage` out of guest memory, once, and checks it.
fn read_message(ram: &Ram, gpa: u64) -> Result<(u32, Vec<u8>), HvStatus> {
    if !gpa.is_multiple_of(8) {
        return Err(HvStatus::InvalidAlignment);
    }
    let mut page = [0; POST_MESSAGE_HEADER + POST_MESSAGE_PAYLOAD];
    ram.read(gpa, &mut page).map_err(|_| HvStatus::InvalidParameter)?;
    let word = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let (connection, kind, len) = (word(0), word(8), word(12) as usize);
    // The top bit of a message type belongs to the hypervisor.
    if len > POST_MESSAGE_PAYLOAD || kind == 0 || kind >> 31 != 0 {
        return Err(HvStatus::InvalidParameter);
    }
    Ok((connection, page[POST_MESSAGE_HEADER..POST_MESSAGE_HEADER + len].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_checked() {
        let ram = Ram::new(1 << 20, false).unwrap();
        let put = |kind: u32, len: u32| {
            ram.write(0x1000, &4u32.to_le_bytes()).unwrap();
            ram.write(0x1008, &kind.to_le_bytes()).unwrap();
            ram.write(0x100c, &len.to_le_bytes()).unwrap();
            read_message(&ram, 0x1000)
        };
        assert_eq!(put(1, 8).unwrap(), (4, vec![0; 8]));
        assert_eq!(put(1, 241), Err(HvStatus::InvalidParameter));
        assert_eq!(put(1 << 31, 8), Err(HvStatus::InvalidParameter));
        assert_eq!(read_message(&ram, 0x1001), Err(HvStatus::InvalidAlignment));
        assert_eq!(read_message(&ram, u64::MAX - 7), Err(HvStatus::InvalidParameter));
        assert_eq!(read_message(&ram, (1 << 20) - 8), Err(HvStatus::InvalidParameter));
    }
}
