//! The virtual machine of KVM: memory slots, interrupt routes, and the threads of its VPs.
//!
//! A guest reset makes a new virtual machine around the same memory and the same eventfds: nothing that
//! the old guest left in a register can survive, and no list of registers to clear has to be kept.

use std::{
    cell::RefCell,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::thread::JoinHandleExt,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use kvm_bindings::{CpuId, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    Host, cpuid, ioctl, page, regs,
    routes::Routes,
    signal,
    vcpu::{self, Answer, Asked, Line},
};
use crate::{
    boot::Entry,
    layout,
    legacy::Platform,
    memory::{Ram, device::DeviceMemory, donation::Follow},
    partition::{HvStatus, Partition, Target},
};

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// An ioctl failed.
    #[error("{what}: {source}")]
    Kvm {
        /// What was attempted.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Registers.
    #[error(transparent)]
    Regs(#[from] regs::RegsError),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |e| MachineError::Kvm { what, source: e.into() }
}

/// KVM's memory slots for device memory begin with this number; those of RAM, two at most, come before.
const DEVICE_SLOTS: u32 = 16;

/// Device memory that the guest sees.
#[derive(Debug)]
struct Shown {
    gpa: u64,
    _memory: DeviceMemory,
}

/// Eventfds that outlive a guest reset.
#[derive(Debug)]
pub struct Wires {
    /// Device processes interrupt VP `n` through the `n`th.
    device: Vec<EventFd>,
    /// Never written: a resampled irqfd, which exists while a message waits, needs one...
    watch: Vec<EventFd>,
    /// ...and these then tell that VP `n` has ended a message or an interrupt on the SINT.
    ended: Vec<EventFd>,
    /// Serial port.
    serial: Arc<EventFd>,
    /// VP threads wake the main thread.
    pub wake: Arc<EventFd>,
}

impl Wires {
    /// Makes them.
    pub fn new(vps: u32) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let one = || EventFd::from_value_and_flags(0, flags);
        let many = || (0..vps).map(|_| one()).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            device: many()?,
            watch: many()?,
            ended: many()?,
            serial: Arc::new(one()?),
            wake: Arc::new(one()?),
        })
    }

    /// The serial port's interrupt line.
    pub fn serial(&self) -> Arc<EventFd> {
        Arc::clone(&self.serial)
    }

    /// Readable when VP `n` has ended something on the SINT.
    pub fn ended(&self) -> &[EventFd] {
        &self.ended
    }
}

/// A machine whose VPs do not run yet, or run.
#[derive(Debug)]
pub struct Machine {
    vm: VmFd,
    /// KVM's memory slots point into it, so it goes after `vm`.
    ram: Ram,
    /// KVM's memory slots from [`DEVICE_SLOTS`] on point into these, which go after `vm` as well. None: the slot is free.
    device_memory: RefCell<Vec<Option<Shown>>>,
    routes: RefCell<Routes>,
    wires: Arc<Wires>,
    vcpus: Vec<VcpuFd>,
    threads: Vec<(JoinHandle<()>, mpsc::Sender<Answer>)>,
    stop: Arc<AtomicBool>,
}

impl Machine {
    /// Makes the machine and its VPs, in VP-index order.
    pub fn new(host: &Host, ram: &Ram, wires: Arc<Wires>, vps: u32) -> Result<Self, MachineError> {
        let vm = host.kvm.create_vm().map_err(kvm("cannot create a virtual machine"))?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm("cannot set the TSS address"))?;
        vm.create_irq_chip().map_err(kvm("cannot create interrupt controllers"))?;
        for slot in 0..ram.stretches().len() {
            let failed = |source| MachineError::Kvm { what: "cannot give guest memory to KVM", source };
            ioctl::set_memory(&vm, slot as u32, ram).map_err(failed)?;
        }
        let mut vcpus = Vec::with_capacity(vps as usize);
        for vp in 0..vps {
            vcpus.push(make_vcpu(host, &vm, vp, vps)?);
        }
        let routes = Routes::new(vps);
        routes.give(&vm).map_err(kvm("cannot route interrupts"))?;
        page::watch(&vm).map_err(kvm("cannot watch the hypercall page"))?;
        attach_wires(&vm, &wires, vps)?;
        Ok(Self {
            vm,
            ram: ram.clone(),
            device_memory: RefCell::default(),
            routes: RefCell::new(routes),
            wires,
            vcpus,
            threads: Vec::new(),
            stop: Arc::default(),
        })
    }

    /// Starts the VPs: the boot VP at `entry`, the others waiting for their start-up interrupt.
    /// `restrict` runs on each thread before its first instruction.
    pub fn start(
        &mut self,
        entry: Entry,
        platform: &Arc<Platform>,
        ask: &mpsc::SyncSender<Asked>,
        restrict: fn() -> Result<(), String>,
    ) -> Result<(), MachineError> {
        for (vp, vcpu) in std::mem::take(&mut self.vcpus).into_iter().enumerate() {
            if vp == 0 {
                regs::set_entry(&vcpu, &self.ram, entry)?;
            }
            let (answer, answers) = mpsc::channel();
            let line = Line {
                vp: vp as u32,
                ask: ask.clone(),
                wake: Arc::clone(&self.wires.wake),
                answers,
                stop: Arc::clone(&self.stop),
            };
            let (ram, platform) = (self.ram.clone(), Arc::clone(platform));
            let body = move || vcpu::run_restricted(vcpu, &line, &ram, &platform, restrict);
            let thread = std::thread::Builder::new()
                .name(format!("vp{vp}"))
                .stack_size(VP_STACK)
                .spawn(body)
                .map_err(|source| MachineError::Kvm { what: "cannot start a VP thread", source })?;
            self.threads.push((thread, answer));
        }
        Ok(())
    }

    /// Answers VP `vp`'s question.
    pub fn answer(&self, vp: u32, status: HvStatus) {
        self.send(vp, Answer::Status(status));
    }

    fn send(&self, vp: u32, message: Answer) {
        if let Some((_, answer)) = self.threads.get(vp as usize) {
            // A thread that has ended has no use for an answer.
            let _ = answer.send(message);
        }
    }

    /// Stops and joins all VPs. None may be waiting in the console (see `Console::release`).
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Frees VPs that wait for an answer.
        let threads: Vec<JoinHandle<()>> = self.threads.drain(..).map(|(thread, _)| thread).collect();
        // A signal may come just before its thread enters KVM_RUN, and be lost; hence again.
        while threads.iter().any(|thread| !thread.is_finished()) {
            for thread in threads.iter().filter(|thread| !thread.is_finished()) {
                let _ = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), signal::KICK);
            }
            std::thread::sleep(KICK_INTERVAL);
        }
        for thread in threads {
            // Its panic has ended the process, and it has no result.
            let _ = thread.join();
        }
    }
}

/// A VP thread calls nothing deep; pages of the stack that are not touched cost nothing.
const VP_STACK: usize = 256 * 1024;
/// Between two kicks of a VP that is to stop.
const KICK_INTERVAL: Duration = Duration::from_micros(500);

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Partition for Machine {
    fn bind_doorbell(&self, connection: u32, kick: BorrowedFd<'_>) -> std::io::Result<()> {
        ioctl::bind_doorbell(&self.vm, connection, kick)
    }

    fn unbind_doorbell(&self, connection: u32) {
        // Not bound: nothing to undo.
        let _ = ioctl::unbind_doorbell(&self.vm, connection);
    }

    fn interrupt(&self, vp: u32) -> BorrowedFd<'_> {
        self.wires.device[vp as usize].as_fd()
    }

    fn message_interrupt(&self, vp: u32) {
        // An eventfd at its maximum is signalled already.
        let _ = self.wires.device[vp as usize].write(1);
    }

    fn map_device_memory(
        &self,
        gpa: u64,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
    ) -> std::io::Result<()> {
        let memory = DeviceMemory::new(file, offset, bytes)?;
        let mut shown = self.device_memory.borrow_mut();
        let at = shown.iter().position(Option::is_none).unwrap_or_else(|| {
            shown.push(None);
            shown.len() - 1
        });
        ioctl::set_device_memory(&self.vm, DEVICE_SLOTS + at as u32, gpa, &memory)?;
        shown[at] = Some(Shown { gpa, _memory: memory });
        Ok(())
    }

    fn unmap_device_memory(&self, gpa: u64) -> std::io::Result<()> {
        let mut shown = self.device_memory.borrow_mut();
        let there = |shown: &Option<Shown>| shown.as_ref().is_some_and(|shown| shown.gpa == gpa);
        let Some(at) = shown.iter().position(there) else { return Ok(()) };
        // If this fails the guest still sees it, and so it stays.
        ioctl::clear_memory(&self.vm, DEVICE_SLOTS + at as u32, gpa)?;
        shown[at] = None;
        Ok(())
    }

    fn access_done(&self, vp: u32, value: u64) {
        self.send(vp, Answer::Value(value));
    }

    fn route_interrupt(&self, route: u32, to: Target, bell: BorrowedFd<'_>) -> std::io::Result<()> {
        let mut routes = self.routes.borrow_mut();
        routes.set(&self.vm, route, Some(to))?;
        let attached = ioctl::irqfd(&self.vm, routes.device(route), bell, None);
        if attached.is_err() {
            // One that nothing raises does no harm.
            let _ = routes.set(&self.vm, route, None);
        }
        attached
    }

    fn move_interrupt(&self, route: u32, to: Target) -> std::io::Result<()> {
        Ok(self.routes.borrow_mut().set(&self.vm, route, Some(to))?)
    }

    fn end_interrupt(&self, route: u32, bell: BorrowedFd<'_>) {
        let mut routes = self.routes.borrow_mut();
        let ended = ioctl::remove_irqfd(&self.vm, routes.device(route), bell)
            .and_then(|()| Ok(routes.set(&self.vm, route, None)?));
        if let Err(error) = ended {
            tracing::error!(route, %error, "an interrupt cannot be taken back");
        }
    }

    fn watch_end_of_message(&self, vp: u32, on: bool) {
        let (watch, ended) = (&self.wires.watch[vp as usize], &self.wires.ended[vp as usize]);
        let result = if on {
            ioctl::irqfd(&self.vm, Routes::sint(vp), watch.as_fd(), Some(ended.as_fd()))
        } else {
            ioctl::remove_irqfd(&self.vm, Routes::sint(vp), watch.as_fd())
        };
        if let Err(error) = result {
            tracing::error!(vp, on, %error, "cannot watch for the end of messages");
        }
    }
}

impl Follow for Machine {
    fn moved(&self, _: u64, _: u64, _: Option<(BorrowedFd<'_>, u64)>) {
        // KVM's MMU notifier has seen the mapping change.
    }
}

fn make_vcpu(host: &Host, vm: &VmFd, vp: u32, vps: u32) -> Result<VcpuFd, MachineError> {
    let vcpu = vm.create_vcpu(u64::from(vp)).map_err(kvm("cannot create a VP"))?;
    let leaves = cpuid::leaves(&host.cpuid, &host.hv_cpuid, vp, vps, host.tsc_deadline);
    let leaves = CpuId::from_entries(&leaves).map_err(|_| MachineError::Kvm {
        what: "too many CPUID leaves",
        source: std::io::ErrorKind::InvalidInput.into(),
    })?;
    vcpu.set_cpuid2(&leaves).map_err(kvm("cannot set CPUID leaves"))?;
    let synic = kvm_enable_cap { cap: kvm_bindings::KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
    vcpu.enable_cap(&synic).map_err(kvm("cannot enable the SynIC"))?;
    regs::set_common(&vcpu)?;
    Ok(vcpu)
}

fn attach_wires(vm: &VmFd, wires: &Wires, vps: u32) -> Result<(), MachineError> {
    ioctl::irqfd(vm, layout::SERIAL_IRQ, wires.serial.as_fd(), None)
        .map_err(|source| MachineError::Kvm { what: "cannot attach the serial interrupt", source })?;
    for vp in 0..vps as usize {
        let gsi = Routes::sint(vp as u32);
        let failed = |source| MachineError::Kvm { what: "cannot attach SINT interrupts", source };
        ioctl::irqfd(vm, gsi, wires.device[vp].as_fd(), None).map_err(failed)?;
        wake_reader(&wires.device[vp]);
    }
    Ok(())
}

/// Has KVM read an eventfd that it has just been given. Between two machines nobody reads, and a device's process may have filled it up; KVM reads in its
/// wake-up alone, and nobody who rings a full one wakes it: to everybody a VP would be "signalled already" for ever. To add nothing is a
/// wake-up also then. It cannot block, as reading could, whatever flags the process has given the file.
fn wake_reader(wire: &EventFd) {
    if let Err(error) = wire.write(0) {
        tracing::error!(%error, "an interrupt cannot be emptied");
    }
}

/// Descriptors that must stay open in the compartment.
pub fn descriptors(host: &Host, wires: &Wires) -> Vec<i32> {
    let mut all = vec![host.kvm.as_raw_fd(), wires.serial.as_raw_fd(), wires.wake.as_raw_fd()];
    for set in [&wires.device, &wires.watch, &wires.ended] {
        all.extend(set.iter().map(AsRawFd::as_raw_fd));
    }
    all
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;

    /// Whoever waits for edges is woken by what would wake KVM.
    #[test]
    fn whoever_reads_a_full_eventfd_is_woken() {
        // Not O_NONBLOCK: a device's process can take that flag away.
        let wire = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
        wire.write(u64::MAX - 1).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(&wire, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)).unwrap();
        let wakes = || epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO).unwrap();
        assert_eq!((wakes(), wakes()), (1, 0), "it was full already, and that is no news");
        wake_reader(&wire);
        assert_eq!(wakes(), 1);
        assert_eq!(wire.read().unwrap(), u64::MAX - 1);
        wake_reader(&wire);
        assert_eq!(wakes(), 0, "an empty one stays empty, and is not waited for");
    }
}
