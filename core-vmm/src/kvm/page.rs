//! The hypercall page. KVM fills it with an instruction by which every hypercall stays in the kernel, which refuses those that it does not know without
//! asking anybody. One of them is the core's to answer: hence a page that leaves the guest for that one, and does for all others what KVM's does.
//!
//! The page is the guest's own memory, where a hypervisor would lay one of its own over it: KVM does the same.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use crate::{hypercall::RETARGET_INTERRUPT, layout::HYPERCALL_PORT, memory::Ram};

/// `HV_X64_MSR_HYPERCALL`: bit 0 enables, the page's address above bit 12 (TLFS, "Establishing the Hypercall Interface").
const HYPERCALL: u32 = 0x4000_0001;
const ENABLE: u64 = 1;
const ADDRESS: u64 = !0xfff;

/// What KVM writes there (`kvm_hv_set_msr_pw` in `arch/x86/kvm/hyperv.c`): the host processor's instruction, and a return.
const KVMS: usize = 4;
const RETURN: u8 = 0xc3;

/// Has writes to the register come to us. All else of it, and every other register, stays as it is.
pub fn watch(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let cap = kvm_bindings::kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(MsrExitReason::Filter.bits()), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)?;
    // The kernel reads whole words of it.
    let bitmap = &[0; 8];
    let range = MsrFilterRange { flags: MsrFilterRangeFlags::WRITE, base: HYPERCALL, msr_count: 1, bitmap };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
}

/// The guest writes a register that we watch. False: it is to have a fault for it.
pub fn write(vcpu: &VcpuFd, ram: &Ram, index: u32, value: u64) -> bool {
    if index != HYPERCALL || !set(vcpu, value) {
        return false;
    }
    // KVM has done what it does. Without the guest's identity, for one, that is nothing.
    if value & ENABLE != 0 && get(vcpu) == Some(value) {
        extend(ram, value & ADDRESS);
    }
    true
}

fn set(vcpu: &VcpuFd, value: u64) -> bool {
    let entry = kvm_msr_entry { index: HYPERCALL, data: value, ..Default::default() };
    Msrs::from_entries(&[entry]).is_ok_and(|msrs| matches!(vcpu.set_msrs(&msrs), Ok(1)))
}

fn get(vcpu: &VcpuFd) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: HYPERCALL, ..Default::default() }]).ok()?;
    let read = vcpu.get_msrs(&mut msrs).ok()?;
    msrs.as_slice().first().filter(|_| read == 1).map(|entry| entry.data)
}

/// Puts our page in the place of KVM's. One that is not KVM's stays: another processor of the guest writes there, which is its own affair.
fn extend(ram: &Ram, gpa: u64) {
    let mut kvms = [0; KVMS];
    if ram.read(gpa, &mut kvms).is_ok()
        && let Some(code) = code(kvms)
    {
        // It was KVM's to write a moment ago.
        let _ = ram.write(gpa, &code);
    }
}

/// The page of a 64-bit guest, which has the control word in RCX. (In a 32-bit guest's CX is the low part of an address, which can be the call's number only in
/// a hypercall that has no address.)
fn code(kvms: [u8; KVMS]) -> Option<[u8; 18]> {
    let [0x0f, 0x01, instruction @ (0xc1 | 0xd9), RETURN] = kvms else { return None };
    const { assert!(RETARGET_INTERRUPT <= 0x7f, "an immediate byte is sign-extended") };
    Some([
        // endbr64: guests that check where they jump to need not stop doing so because of us.
        0xf3,
        0x0f,
        0x1e,
        0xfa,
        // cmp cx, RETARGET_INTERRUPT
        0x66,
        0x83,
        0xf9,
        RETARGET_INTERRUPT as u8,
        // je, over the next two
        0x74,
        0x04,
        // vmcall or vmmcall; ret
        0x0f,
        0x01,
        instruction,
        RETURN,
        // out HYPERCALL_PORT, al; ret
        0xe6,
        HYPERCALL_PORT as u8,
        RETURN,
        // int3, never reached
        0xcc,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvms_page_is_extended_and_nothing_else() {
        let ram = Ram::new(1 << 20, false).unwrap();
        let read = |gpa| {
            let mut bytes = [0; 18];
            ram.read(gpa, &mut bytes).unwrap();
            bytes
        };
        for instruction in [0xc1, 0xd9] {
            ram.write(0x5000, &[0x0f, 0x01, instruction, RETURN]).unwrap();
            extend(&ram, 0x5000);
            let code = read(0x5000);
            assert_eq!(code[10..14], [0x0f, 0x01, instruction, RETURN]);
            let target = 10 + usize::from(code[9]);
            assert_eq!(code[target..target + 3], [0xe6, HYPERCALL_PORT as u8, RETURN], "the jump meets it");
        }
        ram.write(0x6000, &[0x0f, 0x01, 0xc2, RETURN]).unwrap();
        let before = read(0x6000);
        extend(&ram, 0x6000);
        assert_eq!(read(0x6000), before);
        extend(&ram, 1 << 30);
    }
}
