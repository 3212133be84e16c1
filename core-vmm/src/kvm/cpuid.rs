//! What the processor tells the guest: KVM's own leaves, a topology of one socket with one thread
//! a core, and Hyper-V's identification in place of KVM's.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Hyper-V and KVM share this range; Linux takes whoever sits at its start (or higher up) for the hypervisor.
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;

/// Processor topology, one sub-leaf a level.
const EXTENDED_TOPOLOGY: u32 = 0xb;
/// Leaves that we fill ourselves (KVM gives one empty level), and those that we do not show: the second form of the topology,
/// and nested SVM, which nobody has asked for.
const REPLACED_LEAVES: [u32; 3] = [EXTENDED_TOPOLOGY, 0x1f, 0x8000_000a];
/// Virtualization extensions: leaf 1 ECX and leaf 0x80000001 ECX.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Leaf 0x80000001 ECX: "several processors a package are cores, not threads" (AMD).
const CMP_LEGACY: u32 = 1 << 1;

/// Leaf numbers as in the Hypervisor Top-Level Functional Specification, "Feature and interface discovery".
mod leaf {
    pub const VENDOR: u32 = 0x4000_0000;
    pub const FEATURES: u32 = 0x4000_0003;
    pub const RECOMMENDATIONS: u32 = 0x4000_0004;
    pub const LIMITS: u32 = 0x4000_0005;
}

/// TLFS, "HypervisorFeatures": privileges EBX bit 11, features EDX bits 1 and 11 are about the debugger.
const EBX_DEBUGGING: u32 = 1 << 11;
const EDX_DEBUGGING: u32 = 1 << 1 | 1 << 11;
/// TLFS, "HypervisorFeatures": privileges EBX bit 20, calls from 0x8001 on. KVM has it since Linux 6.3 and leaves them all to us; we answer none, and Linux
/// complains of that in its log where it was told that there are some.
const EBX_EXTENDED_CALLS: u32 = 1 << 20;
/// TLFS, "HypervisorFeatures": privileges EAX bit 3, synthetic timers, and features EDX bit 19, their interrupts without a message.
const EAX_SYNTHETIC_TIMERS: u32 = 1 << 3;
const EDX_DIRECT_TIMERS: u32 = 1 << 19;
/// TLFS, "ImplementationRecommendations" EAX bit 14: enlightened VMCS, of use to nested Hyper-V only.
const EAX_NESTED_VMCS: u32 = 1 << 14;
/// Times that a guest spins before it tells the hypervisor (the value Hyper-V itself reports).
const SPIN_RETRIES: u32 = 0xfff;

/// Leaf 1 ECX: TSC-deadline timer and "runs under a hypervisor".
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1 EDX: hyper-threading, which here means "EBX bits 16-23 count processors".
const HTT: u32 = 1 << 28;

/// The leaves of VP `vp` of `vps`, made from what KVM supports.
pub fn leaves(host: &CpuId, hyperv: &CpuId, vp: u32, vps: u32, tsc_deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let mut out: Vec<kvm_cpuid_entry2> = host
        .as_slice()
        .iter()
        .filter(|e| !HYPERVISOR_LEAVES.contains(&e.function) && !REPLACED_LEAVES.contains(&e.function))
        .map(|e| topology(*e, vp, vps, tsc_deadline))
        .collect();
    if host.as_slice().iter().any(|e| e.function == EXTENDED_TOPOLOGY) {
        out.extend((0..3).map(|level| extended_topology(level, vp, vps)));
    }
    out.extend(hyperv.as_slice().iter().filter_map(|e| hyperv_leaf(*e, tsc_deadline)));
    out
}

/// Bits of an APIC id that number the processors of one socket.
fn id_bits(vps: u32) -> u32 {
    vps.next_power_of_two().trailing_zeros()
}

fn topology(mut e: kvm_cpuid_entry2, vp: u32, vps: u32, tsc_deadline: bool) -> kvm_cpuid_entry2 {
    match e.function {
        1 => {
            e.ebx = (e.ebx & 0x0000_ffff) | (vp << 24) | (vps.min(255) << 16);
            e.ecx = (e.ecx | HYPERVISOR_PRESENT) & !VMX;
            e.ecx = if tsc_deadline { e.ecx | TSC_DEADLINE } else { e.ecx & !TSC_DEADLINE };
            e.edx = if vps > 1 { e.edx | HTT } else { e.edx & !HTT };
        }
        // Deterministic cache parameters: cores a package, and sharing of each cache by one thread.
        4 if e.eax & 0x1f != 0 => {
            e.eax = (e.eax & 0x0000_3fff) | ((vps - 1).min(63) << 26);
            if e.eax >> 5 & 7 == 3 {
                e.eax |= (vps - 1).min(0xfff) << 14;
            }
        }
        0x8000_0001 => {
            e.ecx = if vps > 1 { e.ecx | CMP_LEGACY } else { e.ecx & !CMP_LEGACY } & !SVM;
        }
        0x8000_0008 => {
            let bits = if vps > 1 { id_bits(vps) } else { 0 };
            e.ecx = (e.ecx & !0xf0ff) | (bits << 12) | (vps - 1).min(255);
        }
        // AMD cache topology: the last level is shared by all, the others by nobody.
        0x8000_001d => {
            let sharing = if e.eax >> 5 & 7 == 3 { vps - 1 } else { 0 };
            e.eax = (e.eax & !(0xfff << 14)) | (sharing.min(0xfff) << 14);
        }
        0x8000_001e => {
            e.eax = vp;
            e.ebx = vp & 0xff;
            e.ecx = 0;
        }
        _ => {}
    }
    e
}

/// Thread level, core level, end of list.
fn extended_topology(level: u32, vp: u32, vps: u32) -> kvm_cpuid_entry2 {
    let (shift, count, kind) = match level {
        0 => (0, 1, 1),
        1 => (id_bits(vps), vps, 2),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function: EXTENDED_TOPOLOGY,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: level | kind << 8,
        edx: vp,
        ..Default::default()
    }
}

fn hyperv_leaf(mut e: kvm_cpuid_entry2, tsc_deadline: bool) -> Option<kvm_cpuid_entry2> {
    match e.function {
        leaf::VENDOR => {
            // Linux looks for this signature and for a highest leaf of at least 0x40000005
            // (arch/x86/kernel/cpu/mshyperv.c).
            e.eax = leaf::LIMITS;
            e.ebx = u32::from_le_bytes(*b"Micr");
            e.ecx = u32::from_le_bytes(*b"osof");
            e.edx = u32::from_le_bytes(*b"t Hv");
        }
        leaf::FEATURES => {
            e.ebx &= !(EBX_DEBUGGING | EBX_EXTENDED_CALLS);
            e.edx &= !EDX_DEBUGGING;
            // Linux prefers them to the APIC's own timer wherever they are. In KVM that one is the better one: its expiry costs one exit less (Linux starts
            // the next synthetic timer before it ends the interrupt, which then cannot be ended without an exit), and KVM has a fast path for it.
            if tsc_deadline {
                e.eax &= !EAX_SYNTHETIC_TIMERS;
                e.edx &= !EDX_DIRECT_TIMERS;
            }
        }
        leaf::RECOMMENDATIONS => {
            e.eax &= !EAX_NESTED_VMCS;
            e.ebx = SPIN_RETRIES;
        }
        f if f > leaf::LIMITS => return None,
        _ => {}
    }
    Some(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ..Default::default() }
    }

    #[test]
    fn hyperv_takes_the_place_of_kvm() {
        let host = CpuId::from_entries(&[entry(1), entry(0x4000_0000), entry(0x4000_0001)]).unwrap();
        let hv = CpuId::from_entries(&[entry(0x4000_0000), entry(0x4000_0003), entry(0x4000_0080)]).unwrap();
        let all = leaves(&host, &hv, 3, 4, true);
        let functions: Vec<u32> = all.iter().map(|e| e.function).collect();
        assert_eq!(functions, [1, 0x4000_0000, 0x4000_0003]);
        assert_eq!(all[0].ebx >> 24, 3);
        assert_eq!(all[0].ecx & (TSC_DEADLINE | HYPERVISOR_PRESENT), TSC_DEADLINE | HYPERVISOR_PRESENT);
        assert_eq!(&all[1].ebx.to_le_bytes(), b"Micr");
    }

    #[test]
    fn the_apics_timer_is_preferred_where_it_has_deadlines() {
        let features = kvm_cpuid_entry2 { eax: u32::MAX, edx: u32::MAX, ..entry(leaf::FEATURES) };
        let seen = |tsc_deadline| {
            let leaf = hyperv_leaf(features, tsc_deadline).unwrap();
            (leaf.eax & EAX_SYNTHETIC_TIMERS != 0, leaf.edx & EDX_DIRECT_TIMERS != 0)
        };
        assert_eq!((seen(true), seen(false)), ((false, false), (true, true)));
    }

    #[test]
    fn nobody_is_told_of_calls_that_are_not_answered() {
        let features = kvm_cpuid_entry2 { ebx: u32::MAX, ..entry(leaf::FEATURES) };
        let seen = hyperv_leaf(features, true).unwrap().ebx;
        assert_eq!(seen, !(1 << 11 | 1 << 20));
    }

    #[test]
    fn one_socket_even_where_kvm_gives_an_empty_leaf() {
        let host = CpuId::from_entries(&[entry(EXTENDED_TOPOLOGY), entry(0x1f), entry(0x8000_000a)]).unwrap();
        let all = leaves(&host, &CpuId::new(0).unwrap(), 5, 6, true);
        let cores = all[1];
        assert_eq!((cores.index, cores.eax, cores.ebx, cores.ecx, cores.edx), (1, 3, 6, 1 | 2 << 8, 5));
        assert_eq!(all.len(), 3);
        assert_eq!((all[2].ebx, all[2].ecx), (0, 2));
    }
}
