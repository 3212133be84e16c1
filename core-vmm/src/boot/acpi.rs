//! ACPI tables of a hardware-reduced PC: processors, the I/O APIC, one serial port, power-off and
//! reset, and the VMBUS device that makes stock `hv_vmbus` attach.

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        self, AddressSpace, AddressSpaceCacheable, EISAName, IO, Interrupt, Name, Package, ResourceTemplate,
    },
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace as GasSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

use super::BootError;
use crate::{layout, memory::Ram};

const OEM: [u8; 6] = *b"BLKHD ";
const TABLE: [u8; 8] = *b"BULKHEAD";
const REVISION: u32 = 1;

/// IA-PC boot flags of the FADT (ACPI 6.5, table 5.10): no VGA. A CMOS clock is there, an 8042 is not.
const NO_VGA: u16 = 1 << 2;

/// Writes all tables from [`layout::ACPI_START`] on and returns the address of the root pointer.
pub fn write_tables(ram: &Ram, vps: u32) -> Result<u64, BootError> {
    let mut at = layout::ACPI_START + Rsdp::len() as u64;
    let mut put = |table: &dyn Aml| -> Result<u64, BootError> {
        let bytes = bytes_of(table);
        at = at.next_multiple_of(16);
        let start = at;
        at += bytes.len() as u64;
        if at > layout::HIGH_MEMORY_START {
            return Err(BootError::TooSmall { what: "ACPI tables", need: at - layout::ACPI_START });
        }
        ram.write(start, &bytes)?;
        Ok(start)
    };
    let dsdt = put(&dsdt(ram.end(), vps))?;
    let fadt = put(&fadt(dsdt))?;
    let madt = put(&madt(vps))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;
    ram.write(layout::ACPI_START, &bytes_of(&Rsdp::new(OEM, xsdt)))?;
    Ok(layout::ACPI_START)
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(address))
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.preferred_pm_profile = PmProfile::EnterpriseServer as u8;
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_CONTROL_PORT + 1);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

fn madt(vps: u32) -> impl Aml {
    let apic = LocalInterruptController::Address(layout::LAPIC);
    let mut madt = MADT::new(OEM, TABLE, REVISION, apic);
    for vp in 0..vps {
        madt.add_structure(ProcessorLocalApic::new(vp as u8, vp as u8, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vps as u8, layout::IOAPIC, 0));
    madt
}

fn dsdt(ram_end: u64, vps: u32) -> Sdt {
    let mut body = Body(Vec::new());
    let s5 = layout::S5_SLEEP_TYPE;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &aml::ZERO, &aml::ZERO, &aml::ZERO]))
        .to_aml_bytes(&mut body);

    let processors: Vec<Processor> = (0..vps).map(Processor).collect();
    let (low_start, low_end) = layout::VMBUS_LOW_MMIO;
    let (high_start, high_end) = layout::vmbus_high_mmio(ram_end);
    let low = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low_start as u32,
        low_end as u32,
        None,
    );
    let high =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, high_start, high_end, None);
    let windows = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&low, &high]));
    // hv_vmbus binds to _HID "VMBUS" and walks _CRS for memory windows (drivers/hv/vmbus_drv.c).
    let hid = Name::new("_HID".into(), &"VMBUS");
    let uid = Name::new("_UID".into(), &aml::ZERO);
    let vmbus = aml::Device::new("VMBS".into(), vec![&hid, &uid, &windows]);

    let serial_hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let serial_uid = Name::new("_UID".into(), &aml::ZERO);
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    let line = Interrupt::new(true, true, false, false, layout::SERIAL_IRQ);
    let serial_crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &line]));
    let serial = aml::Device::new("COM1".into(), vec![&serial_hid, &serial_uid, &serial_crs]);

    let mut children: Vec<&dyn Aml> = processors.iter().map(|p| p as &dyn Aml).collect();
    children.push(&vmbus);
    children.push(&serial);
    aml::Scope::new("_SB_".into(), children).to_aml_bytes(&mut body);

    let mut sdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    sdt.append_slice(&body.0);
    sdt
}

struct Body(Vec<u8>);

impl AmlSink for Body {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

/// A processor device (`ACPI0007`) whose `_UID` is the VP index, as in the MADT.
struct Processor(u32);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let name = format!("C{:03X}", self.0);
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &self.0);
        aml::Device::new(name.as_str().into(), vec![&hid, &uid]).to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_summed_and_linked() {
        let ram = Ram::new(64 << 20, false).unwrap();
        let rsdp = write_tables(&ram, 64).unwrap();
        let mut root = [0; 36];
        ram.read(rsdp, &mut root).unwrap();
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!(root.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
        let xsdt = u64::from_le_bytes(root[24..32].try_into().unwrap());
        for i in 0..2 {
            let mut at = [0; 8];
            ram.read(xsdt + 36 + i * 8, &mut at).unwrap();
            let at = u64::from_le_bytes(at);
            let mut head = [0; 8];
            ram.read(at, &mut head).unwrap();
            let len = u32::from_le_bytes(head[4..].try_into().unwrap());
            let mut table = vec![0; len as usize];
            ram.read(at, &mut table).unwrap();
            assert_eq!(table.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0, "{:?}", &head[..4]);
        }
    }
}
