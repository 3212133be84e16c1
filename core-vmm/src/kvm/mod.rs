//! KVM: capabilities, the virtual machine, its processors. The only code that knows that the
//! partition is one of KVM's.

pub mod cpuid;
#[allow(unsafe_code)]
pub mod ioctl;
pub mod machine;
pub mod mmio;
mod page;
pub mod regs;
mod routes;
#[allow(unsafe_code)]
pub mod signal;
pub mod vcpu;

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;

/// Why this host cannot run a guest. Each is one sentence for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `/dev/kvm` is not there.
    #[error(
        "this host has no /dev/kvm: enable virtualization (SVM or VT-x) in the firmware and load kvm_amd or kvm_intel"
    )]
    NoKvm,
    /// `/dev/kvm` may not be opened.
    #[error("/dev/kvm may not be opened by this user: add the user to the group kvm")]
    NotAllowed,
    /// `/dev/kvm` does not answer.
    #[error("/dev/kvm cannot be used: {0}")]
    Broken(std::io::Error),
    /// A capability is missing.
    #[error(
        "KVM on this host lacks {0}, which the VMBus needs; a Linux kernel of 5.12 or later with CONFIG_KVM_HYPERV on real or fully nested virtualization has it"
    )]
    Missing(&'static str),
    /// More VPs than KVM allows.
    #[error(
        "KVM on this host runs at most {max} virtual processors, {asked} were asked for; lower [machine] vcpus"
    )]
    TooManyVps {
        /// Asked for.
        asked: u32,
        /// KVM's limit.
        max: usize,
    },
}

/// Capabilities without which there is no VMBus, by number and name.
const NEEDED: [(u32, &str); 9] = [
    (kvm_bindings::KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE"),
    (kvm_bindings::KVM_CAP_HYPERV, "KVM_CAP_HYPERV"),
    (kvm_bindings::KVM_CAP_HYPERV_SYNIC2, "KVM_CAP_HYPERV_SYNIC2"),
    (kvm_bindings::KVM_CAP_HYPERV_VP_INDEX, "KVM_CAP_HYPERV_VP_INDEX"),
    (kvm_bindings::KVM_CAP_HYPERV_EVENTFD, "KVM_CAP_HYPERV_EVENTFD"),
    (kvm_bindings::KVM_CAP_SYS_HYPERV_CPUID, "KVM_CAP_SYS_HYPERV_CPUID"),
    (kvm_bindings::KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
    (kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"),
    (kvm_bindings::KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"),
];

/// An open `/dev/kvm` that can do what we need.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
    hv_cpuid: CpuId,
    tsc_deadline: bool,
}

impl Host {
    /// Opens and questions KVM. Nothing has been started when this fails.
    pub fn open(vps: u32) -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => HostError::NoKvm,
            libc::EACCES | libc::EPERM => HostError::NotAllowed,
            _ => HostError::Broken(e.into()),
        })?;
        for (cap, name) in NEEDED {
            if kvm.check_extension_raw(cap.into()) <= 0 {
                return Err(HostError::Missing(name));
            }
        }
        let max = kvm.get_max_vcpus();
        if vps as usize > max {
            return Err(HostError::TooManyVps { asked: vps, max });
        }
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| HostError::Broken(e.into()))?;
        let hv_cpuid = ioctl::supported_hv_cpuid(&kvm).map_err(HostError::Broken)?;
        let tsc_deadline = kvm.check_extension_raw(kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER.into()) > 0;
        Ok(Self { kvm, cpuid, hv_cpuid, tsc_deadline })
    }
}
