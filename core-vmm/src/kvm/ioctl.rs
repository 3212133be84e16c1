//! The unsafe corner of KVM: the Hyper-V ioctls and the exit union that `kvm-ioctls` does not wrap.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use kvm_bindings::{
    CpuId, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC, KVM_HYPERV_EVENTFD_DEASSIGN, kvm_cpuid2,
    kvm_hyperv_eventfd, kvm_irqfd, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{Ram, device::DeviceMemory};

const KVMIO: u64 = 0xae;
const READ: u64 = 2;
const WRITE: u64 = 1;

const fn request(direction: u64, number: u64, size: usize) -> libc::c_ulong {
    (direction << 30) | ((size as u64) << 16) | (KVMIO << 8) | number
}

/// `KVM_GET_SUPPORTED_HV_CPUID`
const GET_SUPPORTED_HV_CPUID: libc::c_ulong = request(READ | WRITE, 0xc1, size_of::<kvm_cpuid2>());
/// `KVM_HYPERV_EVENTFD`
const HYPERV_EVENTFD: libc::c_ulong = request(WRITE, 0xbd, size_of::<kvm_hyperv_eventfd>());
/// `KVM_IRQFD`
const IRQFD: libc::c_ulong = request(WRITE, 0x76, size_of::<kvm_irqfd>());
/// `KVM_IRQFD_FLAG_DEASSIGN`
const KVM_IRQFD_FLAG_DEASSIGN: u32 = 1 << 0;
/// `KVM_IRQFD_FLAG_RESAMPLE`
const KVM_IRQFD_FLAG_RESAMPLE: u32 = 1 << 1;

/// Entries that we leave room for; kernels up to 6.12 fill ten.
const HV_CPUID_ROOM: usize = 32;

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The Hyper-V CPUID leaves that this KVM can serve (needs `KVM_CAP_SYS_HYPERV_CPUID`).
pub fn supported_hv_cpuid(kvm: &Kvm) -> std::io::Result<CpuId> {
    let mut leaves = CpuId::new(HV_CPUID_ROOM).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    // SAFETY: the pointer is to a kvm_cpuid2 followed by as many entries as its `nent` says, which
    // `CpuId` guarantees; the kernel writes no further and updates `nent`.
    check(unsafe { libc::ioctl(kvm.as_raw_fd(), GET_SUPPORTED_HV_CPUID, leaves.as_mut_fam_struct_ptr()) })?;
    Ok(leaves)
}

fn eventfd_ioctl(vm: &VmFd, connection: u32, fd: RawFd, flags: u32) -> std::io::Result<()> {
    let args = kvm_hyperv_eventfd { conn_id: connection, fd, flags, padding: [0; 3] };
    // SAFETY: the kernel only reads the struct, which lives across the call.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), HYPERV_EVENTFD, &args) })
}

/// From now on `HvSignalEvent` on `connection` (24 bits) writes `kick`, inside the kernel.
pub fn bind_doorbell(vm: &VmFd, connection: u32, kick: BorrowedFd<'_>) -> std::io::Result<()> {
    eventfd_ioctl(vm, connection, kick.as_raw_fd(), 0)
}

/// Undoes [`bind_doorbell`].
pub fn unbind_doorbell(vm: &VmFd, connection: u32) -> std::io::Result<()> {
    eventfd_ioctl(vm, connection, -1, KVM_HYPERV_EVENTFD_DEASSIGN)
}

/// Gives stretch `slot` of `ram` to KVM, as the slot of that number. The machine has to keep `ram` for as
/// long as `vm` lives.
pub fn set_memory(vm: &VmFd, slot: u32, ram: &Ram) -> std::io::Result<()> {
    let region = ram.map_ref().iter().nth(slot as usize).ok_or(std::io::ErrorKind::InvalidInput)?;
    let area = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the area is a whole mapping of guest RAM, which stays mapped while `ram` or a clone of it
    // lives; the only callers, machines, hold one and drop it after the VM. Pages that are laid over
    // it later stay inside it.
    unsafe { vm.set_user_memory_region(area) }.map_err(Into::into)
}

/// Gives a device's memory to KVM at `gpa`, as the slot of that number. It has to stay mapped until [`clear_memory`] has taken
/// it back or `vm` is no more.
pub fn set_device_memory(vm: &VmFd, slot: u32, gpa: u64, memory: &DeviceMemory) -> std::io::Result<()> {
    let area = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: memory.bytes(),
        userspace_addr: memory.address(),
    };
    // SAFETY: the area is a whole mapping of our own that nothing in this process reads, writes or points into. The only callers,
    // machines, keep it until they have taken it back, and drop it after the VM.
    unsafe { vm.set_user_memory_region(area) }.map_err(Into::into)
}

/// Takes memory back from KVM. When this has returned, no VP can reach it any more.
pub fn clear_memory(vm: &VmFd, slot: u32, gpa: u64) -> std::io::Result<()> {
    let nothing = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: 0,
        userspace_addr: 0,
    };
    // SAFETY: a slot of no bytes names no memory.
    unsafe { vm.set_user_memory_region(nothing) }.map_err(Into::into)
}

/// Routes an eventfd to an interrupt; with `ended`, that one is written when the guest has ended it.
pub fn irqfd(vm: &VmFd, gsi: u32, fd: BorrowedFd<'_>, ended: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    irqfd_ioctl(
        vm,
        kvm_irqfd {
            fd: fd.as_raw_fd() as u32,
            gsi,
            flags: if ended.is_some() { KVM_IRQFD_FLAG_RESAMPLE } else { 0 },
            resamplefd: ended.map_or(0, |fd| fd.as_raw_fd() as u32),
            ..Default::default()
        },
    )
}

/// Undoes [`irqfd`].
pub fn remove_irqfd(vm: &VmFd, gsi: u32, fd: BorrowedFd<'_>) -> std::io::Result<()> {
    let fd = fd.as_raw_fd() as u32;
    irqfd_ioctl(vm, kvm_irqfd { fd, gsi, flags: KVM_IRQFD_FLAG_DEASSIGN, ..Default::default() })
}

fn irqfd_ioctl(vm: &VmFd, args: kvm_irqfd) -> std::io::Result<()> {
    // SAFETY: the kernel only reads the struct, which lives across the call.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), IRQFD, &args) })
}

/// What a `KVM_EXIT_HYPERV` says, copied out.
#[derive(Debug, Clone, Copy)]
pub enum HypervExit {
    /// The guest wrote a SynIC MSR; the values are those after the write.
    Synic {
        /// `SCONTROL`.
        control: u64,
        /// `SIEFP`.
        event_page: u64,
        /// `SIMP`.
        message_page: u64,
    },
    /// A hypercall for user space.
    Hypercall {
        /// Control word: call code in the low 16 bits, fast flag in bit 16.
        input: u64,
        /// First parameter (input address, or value of a fast call).
        param: u64,
    },
    /// Nothing that we asked for.
    Other(u32),
}

/// Reads the exit record after [`kvm_ioctls::VcpuExit::Hyperv`].
pub fn hyperv_exit(vcpu: &mut VcpuFd) -> HypervExit {
    let run = vcpu.get_kvm_run();
    // SAFETY: KVM has just returned KVM_EXIT_HYPERV, so this variant of the union is the live one;
    // all its fields are integers, for which every bit pattern is valid.
    let exit = unsafe { run.__bindgen_anon_1.hyperv };
    match exit.type_ {
        KVM_EXIT_HYPERV_SYNIC => {
            // SAFETY: the type says that `synic` was written; integers only.
            let synic = unsafe { exit.u.synic };
            HypervExit::Synic {
                control: synic.control,
                event_page: synic.evt_page,
                message_page: synic.msg_page,
            }
        }
        KVM_EXIT_HYPERV_HCALL => {
            // SAFETY: the type says that `hcall` was written; integers only.
            let call = unsafe { exit.u.hcall };
            HypervExit::Hypercall { input: call.input, param: call.params[0] }
        }
        other => HypervExit::Other(other),
    }
}

/// Where in the guest's memory KVM could not go on, if it says so (from Linux 6.8 on, with `KVM_CAP_MEMORY_FAULT_INFO`); right after `KVM_RUN` has answered
/// `EFAULT`.
pub fn fault_address(vcpu: &mut VcpuFd) -> Option<u64> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_MEMORY_FAULT {
        return None;
    }
    // SAFETY: the exit reason says that this variant of the union was written; integers only.
    Some(unsafe { run.__bindgen_anon_1.memory_fault.gpa })
}

/// Says how the guest's write of a register went that just exited; not 0: it has a fault for it.
pub fn set_msr_error(vcpu: &mut VcpuFd, error: u8) {
    vcpu.get_kvm_run().__bindgen_anon_1.msr.error = error;
}

/// Sets the status that the guest sees of the hypercall that just exited.
pub fn set_hypercall_result(vcpu: &mut VcpuFd, status: u64) {
    vcpu.get_kvm_run().__bindgen_anon_1.hyperv.u.hcall.result = status;
}
