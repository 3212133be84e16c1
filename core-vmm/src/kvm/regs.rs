//! Registers of the boot VP at its first instruction.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::{boot::Entry, layout, memory::Ram};

/// Why registers could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RegsError {
    /// KVM refused.
    #[error("cannot set {0}: {1}")]
    Kvm(&'static str, kvm_ioctls::Error),
    /// The descriptor table does not fit.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// `MXCSR` and x87 control word after reset.
const MXCSR_RESET: u32 = 0x1f80;
const FCW_RESET: u16 = 0x37f;

/// First of the five MSRs in which a guest says why it crashed (TLFS, "Partition crash enlightenment").
const MSR_CRASH_P0: u32 = 0x4000_0100;

/// What the guest left in its crash registers. KVM passes on that it crashed, and not these.
pub fn crash_parameters(vcpu: &VcpuFd) -> [u64; 5] {
    let entries: [kvm_msr_entry; 5] =
        std::array::from_fn(|i| kvm_msr_entry { index: MSR_CRASH_P0 + i as u32, ..Default::default() });
    let mut values = [0; 5];
    if let Ok(mut msrs) = Msrs::from_entries(&entries)
        && vcpu.get_msrs(&mut msrs).is_ok()
    {
        for (value, msr) in values.iter_mut().zip(msrs.as_slice()) {
            *value = msr.data;
        }
    }
    values
}

/// State that every VP has after reset and that KVM does not set by itself.
pub fn set_common(vcpu: &VcpuFd) -> Result<(), RegsError> {
    let fpu = kvm_fpu { fcw: FCW_RESET, mxcsr: MXCSR_RESET, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(|e| RegsError::Kvm("FPU", e))?;
    let entries = [
        kvm_msr_entry { index: MSR_MISC_ENABLE, data: MISC_ENABLE_FAST_STRING, ..Default::default() },
        kvm_msr_entry { index: MSR_MTRR_DEF_TYPE, data: MTRR_WRITE_BACK, ..Default::default() },
    ];
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| RegsError::Kvm("MSR list", kvm_ioctls::Error::new(libc::ENOMEM)))?;
    vcpu.set_msrs(&msrs).map_err(|e| RegsError::Kvm("MSRs", e))?;
    Ok(())
}

/// The boot VP's entry state.
pub fn set_entry(vcpu: &VcpuFd, ram: &Ram, entry: Entry) -> Result<(), RegsError> {
    let (long, regs) = match entry {
        Entry::Linux64 { rip } => (
            true,
            kvm_regs {
                rip,
                rsi: layout::ZERO_PAGE,
                rsp: layout::BOOT_STACK,
                rflags: 2,
                ..Default::default()
            },
        ),
        Entry::Pvh { eip } => {
            (false, kvm_regs { rip: eip, rbx: layout::PVH_INFO, rflags: 2, ..Default::default() })
        }
    };
    // Selectors of the boot protocol (boot.rst): __BOOT_CS 0x10, __BOOT_DS 0x18; a task segment at 0x20 because
    // the processor insists on one.
    let code = segment(2, 0xb, long, !long);
    let data = segment(3, 0x3, false, true);
    let task = kvm_segment { s: 0, limit: 0x67, g: 0, ..segment(4, 0xb, false, false) };
    for (i, d) in [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)].iter().enumerate() {
        ram.write(layout::GDT + i as u64 * 8, &d.to_le_bytes())?;
    }
    let mut sregs = vcpu.get_sregs().map_err(|e| RegsError::Kvm("system registers", e))?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if long {
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs).map_err(|e| RegsError::Kvm("system registers", e))?;
    vcpu.set_regs(&regs).map_err(|e| RegsError::Kvm("registers", e))
}

/// A flat segment of 4 GiB at GDT index `index`.
fn segment(index: u16, kind: u8, long: bool, default_32: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: default_32.into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    }
}

/// The same segment as an entry of the descriptor table.
fn descriptor(s: &kvm_segment) -> u64 {
    let limit = u64::from(if s.g == 1 { s.limit >> 12 } else { s.limit });
    let access = u64::from(s.type_ | s.s << 4 | s.dpl << 5 | s.present << 7);
    let flags = u64::from(s.l << 1 | s.db << 2 | s.g << 3);
    (limit & 0xffff) | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(descriptor(&segment(2, 0xb, true, false)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(2, 0xb, false, true)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(3, 0x3, false, true)), 0x00cf_9300_0000_ffff);
    }
}
