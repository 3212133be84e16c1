//! Hypercalls that the core answers: what a guest has put into their input, read once and checked.
//!
//! Layouts are those of the TLFS as Linux fills them in (`include/asm-generic/hyperv-tlfs.h`, and `hv_arch_irq_unmask` in
//! `drivers/pci/controller/pci-hyperv.c`).

use crate::{layout::PAGE, memory::Ram, partition::HvStatus};

/// `HVCALL_RETARGET_INTERRUPT`, in the low 16 bits of a control word.
pub const RETARGET_INTERRUPT: u16 = 0x7e;

/// Control word: the input is in registers.
const FAST: u64 = 1 << 16;
/// Control word: length of the variable part of the input, in units of eight bytes.
const VARIABLE_SHIFT: u32 = 17;
const VARIABLE_MASK: u64 = 0x3ff;

/// `HV_PARTITION_ID_SELF`
const SELF: u64 = u64::MAX;
/// `HV_INTERRUPT_SOURCE_MSI`
const SOURCE_MSI: u32 = 1;
/// `HV_DEVICE_INTERRUPT_TARGET_PROCESSOR_SET`
const TARGET_SET: u32 = 2;
/// `HV_GENERIC_SET_SPARSE_4K`
const SPARSE: u64 = 0;
/// `HV_GENERIC_SET_ALL`
const ALL: u64 = 1;
/// VPs of one bank of a set; the banks that a set has are bits of a word.
const BANK: u32 = 64;

/// `struct hv_retarget_device_interrupt` up to the processors, and with as many banks as there can be.
const FIXED: usize = 48;
const LONGEST: usize = FIXED + 16 + 64 * 8;

/// A guest wants an interrupt of a device to be raised elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retarget {
    /// Which device: of its instance GUID, see [`device_id`]. The lowest three bits are the device's own.
    pub device: u32,
    /// Which of its interrupts: the data of its MSI.
    pub data: u32,
    /// The new vector.
    pub vector: u32,
    /// The new VP: the first of those that the guest gives to choose from.
    pub vp: u32,
}

/// What a guest calls a device with this instance GUID (in wire form) in hypercalls, the lowest three bits aside.
pub fn device_id(instance: [u8; 16]) -> u32 {
    let [_, _, _, _, b4, b5, b6, b7, ..] = instance;
    u32::from_be_bytes([b5, b4, b7, b6 & 0xf8])
}

/// Reads the input of [`RETARGET_INTERRUPT`] at `input`, whose control word is `control`.
pub fn retarget(ram: &Ram, control: u64, input: u64) -> Result<Retarget, HvStatus> {
    if control & FAST != 0 || control as u16 != RETARGET_INTERRUPT {
        return Err(HvStatus::InvalidHypercallInput);
    }
    if !input.is_multiple_of(8) {
        return Err(HvStatus::InvalidAlignment);
    }
    // The mask of the short form is not in the variable part, the format of a set neither: both are eight bytes.
    let variable = (control >> VARIABLE_SHIFT & VARIABLE_MASK) as usize * 8;
    let len = FIXED + 8 + variable;
    if len > LONGEST || input % PAGE + len as u64 > PAGE {
        return Err(HvStatus::InvalidHypercallInput);
    }
    let mut bytes = [0; LONGEST];
    ram.read(input, &mut bytes[..len]).map_err(|_| HvStatus::InvalidParameter)?;
    parse(&bytes[..len]).ok_or(HvStatus::InvalidParameter)
}

fn parse(bytes: &[u8]) -> Option<Retarget> {
    let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    if long(0)? != SELF || word(16)? != SOURCE_MSI {
        return None;
    }
    let vp = if word(44)? & TARGET_SET == 0 {
        first(long(48)?)?
    } else {
        match long(48)? {
            ALL => 0,
            SPARSE => {
                // Banks that are not there have no place; those that are may be empty.
                let banks = long(56)?;
                let present = (0..BANK).filter(|bank| banks >> bank & 1 != 0).enumerate();
                let of = |(at, bank): (usize, u32)| Some(bank * BANK + first(long(64 + at * 8)?)?);
                present.map(of).find(Option::is_some)??
            }
            _ => return None,
        }
    };
    // The guest extends the sign of a number of 32 bits (a C `int` that is shifted into its top bit).
    Some(Retarget { device: long(8)? as u32, data: word(28)?, vector: word(40)?, vp })
}

fn first(mask: u64) -> Option<u32> {
    (mask != 0).then(|| mask.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use vmbus::guid::Guid;

    use super::*;

    const INPUT: u64 = 0x3000;

    /// The input as Linux fills it in.
    fn input(target: &[u64], flags: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(SELF.to_le_bytes());
        bytes.extend(0xffff_ffff_9102_0300u64.to_le_bytes());
        bytes.extend([SOURCE_MSI, 0, 0xfee0_0000, 7].iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(0u64.to_le_bytes());
        bytes.extend([0x41, flags].iter().flat_map(|word: &u32| word.to_le_bytes()));
        bytes.extend(target.iter().flat_map(|long| long.to_le_bytes()));
        bytes
    }

    fn call(bytes: &[u8], control: u64, at: u64) -> Result<Retarget, HvStatus> {
        let ram = Ram::new(1 << 20, false).unwrap();
        ram.write(INPUT, bytes).unwrap();
        retarget(&ram, u64::from(RETARGET_INTERRUPT) | control, at)
    }

    fn variable(longs: u64) -> u64 {
        longs << VARIABLE_SHIFT
    }

    #[test]
    fn both_forms_are_understood() {
        let wanted = |vp| Ok(Retarget { device: 0x9102_0300, data: 7, vector: 0x41, vp });
        assert_eq!(call(&input(&[0b1100], 0), 0, INPUT), wanted(2));
        let set = |target: &[u64]| call(&input(target, TARGET_SET), variable(target.len() as u64 - 1), INPUT);
        assert_eq!(set(&[SPARSE, 1, 1 << 5]), wanted(5));
        assert_eq!(set(&[SPARSE, 0b110, 0, 1]), wanted(128), "the first bank that is there is empty");
        assert_eq!(set(&[ALL]), wanted(0));
    }

    #[test]
    fn what_names_no_processor_or_no_msi_is_refused() {
        let bad = Err(HvStatus::InvalidParameter);
        assert_eq!(call(&input(&[0], 0), 0, INPUT), bad);
        let set = |target: &[u64]| call(&input(target, TARGET_SET), variable(target.len() as u64 - 1), INPUT);
        assert_eq!(set(&[SPARSE, 0]), bad);
        assert_eq!(set(&[SPARSE, 0b11, 0, 0]), bad);
        assert_eq!(set(&[SPARSE, 0b11, 0]), bad, "the second bank has not come");
        assert_eq!(set(&[SPARSE]), bad);
        assert_eq!(set(&[2, 1, 1]), bad);
        for (at, wrong) in [(0, 1), (16, 2)] {
            let mut bytes = input(&[1], 0);
            bytes[at] = wrong;
            assert_eq!(call(&bytes, 0, INPUT), bad);
        }
    }

    #[test]
    fn input_lies_whole_in_a_page_of_ram() {
        let bytes = input(&[1], 0);
        assert_eq!(call(&bytes, 0, INPUT + 4), Err(HvStatus::InvalidAlignment));
        assert_eq!(call(&bytes, FAST, INPUT), Err(HvStatus::InvalidHypercallInput));
        assert_eq!(call(&bytes, 0, INPUT + PAGE - 48), Err(HvStatus::InvalidHypercallInput));
        assert_eq!(call(&bytes, variable(0x3ff), INPUT), Err(HvStatus::InvalidHypercallInput));
        assert_eq!(call(&bytes, 0, 1 << 20), Err(HvStatus::InvalidParameter));
        assert_eq!(call(&bytes, 0, u64::MAX - 4095), Err(HvStatus::InvalidParameter));
        assert_eq!(
            call(&bytes, variable(0x41), INPUT),
            Ok(Retarget { device: 0x9102_0300, data: 7, vector: 0x41, vp: 0 })
        );
    }

    #[test]
    fn a_device_is_named_as_linux_names_it() {
        let guid: Guid = "b01ce4ad-0291-07ff-8000-000000000001".parse().unwrap();
        // Bytes 4 to 7 of the wire form: 91, 02, ff, 07.
        assert_eq!(device_id(guid.to_wire()), 0x0291_07f8);
    }
}
