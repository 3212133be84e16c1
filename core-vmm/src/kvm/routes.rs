//! KVM's table of interrupt routes, which is replaced as a whole whenever one changes: pins of the I/O APIC, SINTs, interrupts of devices.

use kvm_bindings::{
    KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;

use crate::{
    layout::LAPIC,
    partition::{Target, VMBUS_SINT},
};

/// Pins of the I/O APIC; SINT routes come after them, and then devices' interrupts.
const IOAPIC_PINS: u32 = 24;

/// The table, as KVM has it.
#[derive(Debug)]
pub struct Routes {
    vps: u32,
    /// Where devices' interrupts go, by their numbers.
    devices: Vec<Option<Target>>,
}

impl Routes {
    /// Routes of a machine with `vps` VPs and no devices.
    pub fn new(vps: u32) -> Self {
        Self { vps, devices: Vec::new() }
    }

    /// The number by which KVM knows the SINT of a VP.
    pub fn sint(vp: u32) -> u32 {
        IOAPIC_PINS + vp
    }

    /// The number by which it knows a device's interrupt.
    pub fn device(&self, route: u32) -> u32 {
        IOAPIC_PINS + self.vps + route
    }

    /// Has a device's interrupt go there, or (`None`) nowhere. If this fails, all is as it was.
    pub fn set(&mut self, vm: &VmFd, route: u32, to: Option<Target>) -> Result<(), kvm_ioctls::Error> {
        let at = route as usize;
        if self.devices.len() <= at {
            self.devices.resize(at + 1, None);
        }
        let before = std::mem::replace(&mut self.devices[at], to);
        if before == to {
            return Ok(());
        }
        let done = self.give(vm);
        if done.is_err() {
            self.devices[at] = before;
        }
        done
    }

    /// Gives KVM the whole table.
    pub fn give(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let table =
            KvmIrqRouting::from_entries(&self.entries()).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        vm.set_gsi_routing(&table)
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let new = |gsi, type_| kvm_irq_routing_entry { gsi, type_, ..Default::default() };
        let mut routes = Vec::new();
        for pin in 0..IOAPIC_PINS {
            let mut route = new(pin, KVM_IRQ_ROUTING_IRQCHIP);
            route.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
            routes.push(route);
        }
        for vp in 0..self.vps {
            let mut route = new(Self::sint(vp), KVM_IRQ_ROUTING_HV_SINT);
            route.u.hv_sint = kvm_bindings::kvm_irq_routing_hv_sint { vcpu: vp, sint: u32::from(VMBUS_SINT) };
            routes.push(route);
        }
        for (route, to) in (0..).zip(&self.devices) {
            let Some(to) = to else { continue };
            let mut entry = new(self.device(route), KVM_IRQ_ROUTING_MSI);
            let (address_lo, data) = message(*to);
            entry.u.msi = kvm_bindings::kvm_irq_routing_msi { address_lo, data, ..Default::default() };
            routes.push(entry);
        }
        routes
    }
}

/// The MSI that raises an interrupt: fixed delivery, edge-triggered, to the local APIC with that number, which is the VP's index (Intel SDM, volume 3,
/// "Message Signalled Interrupts").
fn message(to: Target) -> (u32, u32) {
    (LAPIC | (to.vp & 0xff) << 12, u32::from(to.vector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_processor_and_vector() {
        assert_eq!(message(Target { vp: 3, vector: 0x41 }), (0xfee0_3000, 0x41));
        assert_eq!(message(Target { vp: 63, vector: 0xef }), (0xfee3_f000, 0xef));
    }

    #[test]
    fn each_route_has_a_number_of_its_own() {
        let mut routes = Routes::new(4);
        routes.devices = vec![Some(Target { vp: 0, vector: 32 }), None, Some(Target { vp: 1, vector: 33 })];
        let entries = routes.entries();
        let numbers: Vec<u32> = entries.iter().map(|entry| entry.gsi).collect();
        assert_eq!(numbers, (0..29).chain([30]).collect::<Vec<_>>());
        assert_eq!(numbers[29], routes.device(2));
        assert_eq!(entries[28].type_, KVM_IRQ_ROUTING_MSI);
    }
}
