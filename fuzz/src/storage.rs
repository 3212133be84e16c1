//! What a guest sends to a SCSI controller.

use vsp_storage::scsi::plan::plan_without_unit;
use vsp_storage::scsi::unmap;
use vsp_storage::scsi::{Condition, Plan, Unit, plan};
use vsp_storage::wire::{Message, Outcome, PACKET_LEN, answer_command};

use crate::Script;

const LUNS: [u8; 3] = [0, 1, 9];

/// A disk whose odd or even traits are the bits of `traits`.
fn unit(traits: u8) -> Unit {
    Unit {
        blocks: if traits & 1 == 0 { 1 << 20 } else { (1 << 40) + 3 },
        block_size: if traits & 2 == 0 { 512 } else { 4096 },
        physical_exponent: if traits & 2 == 0 { 3 } else { 0 },
        read_only: traits & 4 != 0,
        can_unmap: traits & 8 != 0,
        write_cache: traits & 16 == 0,
        serial: "fuzz".into(),
        naa: 0x1234_5678,
    }
}

/// A byte of the disk's traits, then a packet's payload. A command is planned and answered in every way.
pub fn storvsc_packet(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(traits) = script.byte() else { return };
    let Some(message) = Message::parse(script.rest()) else { return };
    let Message::Execute(srb) = message else { return };
    for outcome in [Outcome::Good(srb.transfer_length()), Outcome::Check(&[0x70; 300]), Outcome::NoUnit] {
        assert_eq!(answer_command(&srb, outcome).len(), PACKET_LEN);
    }
    if let Some(cdb) = srb.cdb() {
        assert!((1..=16).contains(&cdb.len()));
        command(traits, cdb);
    }
}

/// A byte of the disk's traits, then a command of any length.
pub fn scsi_command(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(traits) = script.byte() else { return };
    command(traits, script.rest());
}

/// What is planned lies inside the disk (that the guest's buffer is as long is checked later), and changes nothing on a disk that is read-only.
fn command(traits: u8, cdb: &[u8]) {
    let unit = unit(traits);
    let capacity = unit.blocks * u64::from(unit.block_size);
    let inside = |offset: u64, len: u64| {
        assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= capacity));
        assert!(offset.is_multiple_of(unit.block_size.into()) && len.is_multiple_of(unit.block_size.into()));
    };
    match plan(&unit, &Condition::default(), &LUNS, cdb) {
        Ok(Plan::Read { offset, len } | Plan::Verify { offset, len, .. }) => {
            inside(offset, len);
        }
        Ok(Plan::CompareAndWrite { len: 0, .. }) => assert!(!unit.read_only),
        Ok(
            Plan::Write { offset, len, .. }
            | Plan::WriteVerify { offset, len, .. }
            | Plan::CompareAndWrite { offset, len, .. },
        ) => {
            inside(offset, len);
            assert!(!unit.read_only);
        }
        Ok(Plan::WriteSame { offset, len, unmap, .. }) => {
            inside(offset, len);
            assert!(!unit.read_only && (unit.can_unmap || !unmap));
        }
        Ok(Plan::Unmap { list }) => {
            assert!((1..=unmap::MAX_LIST).contains(&list) && unit.can_unmap && !unit.read_only);
        }
        Ok(Plan::Respond(data)) => assert!(data.len() <= 4096),
        Ok(Plan::ModeSelect { list, .. } | Plan::Reserve { list, .. }) => assert!((1..=512).contains(&list)),
        Ok(Plan::Good | Plan::Flush) | Err(_) => {}
    }
    if let Some(data) = plan_without_unit(&LUNS, cdb) {
        assert!(data.len() <= 4096);
    }
}

/// Capacity (4 bytes), then a parameter list of UNMAP.
pub fn unmap_list(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(capacity) = script.dword() else { return };
    let capacity = u64::from(capacity);
    if let Ok(ranges) = unmap::parse(script.rest(), capacity) {
        assert!(ranges.len() <= unmap::MAX_DESCRIPTORS as usize);
        let mut total = 0;
        for range in ranges {
            assert!(range.count > 0 && range.lba + u64::from(range.count) <= capacity);
            total += range.count;
        }
        assert!(total <= unmap::MAX_BLOCKS);
    }
}
