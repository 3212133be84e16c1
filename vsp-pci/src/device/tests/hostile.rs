//! A guest that means harm.

use super::rig::{PLACE, Rig, WINDOW, words};
use crate::mock::Model;
use crate::wire::Status;

#[test]
fn nothing_before_a_version_and_no_other_function() {
    let mut rig = Rig::new(Model::nic());
    assert_eq!(rig.enter(WINDOW), Status::INVALID_STATE);
    assert_eq!(rig.status(&words(&[0x4249_0005, 0])), Status::INVALID_STATE);
    rig.version(0x1_0004);
    assert_eq!(rig.status(&words(&[0x4249_0005, 1])), Status::NO_SUCH_DEVICE);
    assert_eq!(rig.status(&words(&[0x4249_0011, 0x100])), Status::NO_SUCH_DEVICE);
    assert_eq!(rig.status(&words(&[0x4249_0009, 0, 0, 4])), Status::NOT_SUPPORTED);
    for nonsense in [&[][..], &[1], &[0; 8], &words(&[0x4249_0007, 0]), &words(&[0x4249_00ff])] {
        assert_eq!(rig.status(nonsense), Status::INVALID_PARAMETER);
    }
}

#[test]
fn a_window_where_none_may_be() {
    let mut rig = Rig::new(Model::nic());
    rig.version(0x1_0004);
    rig.bench.core.refuse_mappings(Some("it lies in RAM"));
    assert_eq!(rig.enter(0x1000), Status::INVALID_PARAMETER);
    rig.bench.core.refuse_mappings(None);
    assert_eq!(rig.enter(WINDOW), Status::SUCCESS);
    assert_eq!(rig.enter(WINDOW), Status::SUCCESS, "again");
    assert_eq!(rig.enter(WINDOW + 0x10_0000), Status::SUCCESS, "somewhere else");
    assert_eq!(rig.bench.core.traps(), [(WINDOW + 0x10_0000, 0x2000)]);
}

#[test]
fn registers_where_none_may_be() {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.bench.core.refuse_mappings(Some("it lies in RAM"));
    rig.place();
    assert_eq!(rig.bench.core.regions(), []);
    assert_eq!(rig.read_config(4, 2), 0x402, "the guest goes on");
    rig.bench.core.refuse_mappings(None);
    rig.write_config(4, 2, 0x400);
    rig.write_config(4, 2, 0x402);
    assert_eq!(rig.bench.core.regions().len(), 3);
    // Sizing with memory on: every step is an address of its own.
    for value in [u32::MAX, 0, 0xfee0_0000, 0xf910_0000] {
        rig.write_config(0x10, 4, value.into());
    }
    assert_eq!(rig.read_config(0x10, 4), 0xf910_0000);
}

#[test]
fn accesses_of_all_sizes_everywhere() {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.place();
    for bytes in [1, 2, 4, 8] {
        for at in (0..0x2000).step_by(usize::from(bytes) * 37) {
            let at = at / u64::from(bytes) * u64::from(bytes);
            rig.bench.read_trap(WINDOW + at, bytes);
            rig.bench.write_trap(WINDOW + at, bytes, u64::MAX);
        }
        for at in (0..0x2000).step_by(usize::from(bytes) * 61) {
            let at = at / u64::from(bytes) * u64::from(bytes);
            rig.bench.core.traps();
            if rig
                .bench
                .core
                .traps()
                .iter()
                .any(|(gpa, len)| (*gpa..gpa + len).contains(&(PLACE + 0x4_0000 + at)))
            {
                rig.bench.write_trap(PLACE + 0x4_0000 + at, bytes, 0x0102_0304_0506_0708);
                rig.bench.read_trap(PLACE + 0x4_0000 + at, bytes);
            }
        }
    }
    rig.bench.write_trap(WINDOW, 4, 5);
    assert_eq!(rig.bench.read_trap(WINDOW + 0x1000, 2), 0xffff, "there is one function only");
    assert_eq!(rig.read_config(0, 4), 0x10d3_8086);
    assert_eq!(rig.read_config(0xff8, 8), 0);
}

#[test]
fn more_interrupts_than_there_are() {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.place();
    for (vector, count, vp) in
        [(15, 1, 0), (256, 1, 0), (250, 8, 0), (0x40, 0, 0), (0x40, 1, 2), (0x40, 1, u16::MAX)]
    {
        let answer = rig.try_create(vector, count, vp);
        assert_eq!(answer[..4], Status::INVALID_PARAMETER.0.to_le_bytes(), "{vector} {count} {vp}");
    }
    assert_eq!(rig.try_create(0x40, 3, 0)[..4], Status::INSUFFICIENT_RESOURCES.0.to_le_bytes());
    let given = (0..200).filter(|_| rig.try_create(0x40, 1, 1)[..4] == [0; 4]).count();
    assert_eq!((given, rig.bench.core.interrupts().len()), (13, 13));
    rig.delete(3, 1);
    rig.delete(3, 1);
    rig.delete(u32::MAX, u16::MAX);
    assert_eq!(rig.bench.core.interrupts().len(), 12);
    // The same message for all vectors, and others that are nobody's.
    rig.write_config(0xc2, 2, 0x8000);
    for vector in 0..5 {
        rig.set_entry(PLACE + 0x4_0000, vector, 1, false);
    }
    assert_eq!((0..5).filter(|vector| rig.hardware.interrupt(*vector)).count(), 1);
    for number in [3, 13, 128, u32::MAX] {
        rig.set_entry(PLACE + 0x4_0000, 0, number, false);
    }
    rig.bench.core.refuse_mappings(Some("no more routes"));
    assert_eq!(rig.try_create(0x40, 1, 0)[..4], Status::INSUFFICIENT_RESOURCES.0.to_le_bytes());
    rig.bench.core.refuse_mappings(None);
    assert_eq!(rig.create(0x40, 1, 0), 3);
}

#[test]
fn a_channel_that_closes_in_the_middle() {
    let mut rig = Rig::new(Model::nic());
    rig.version(0x1_0004);
    let mut enter = words(&[0x4249_0007, 0]);
    enter.extend(WINDOW.to_le_bytes());
    for _ in 0..3 {
        for _ in 0..8 {
            rig.say(&enter, true);
            let mut create = words(&[0x4249_001b, 0, 0x41]);
            create.extend([0, 0, 1, 0, 1, 0, 0, 0]);
            create.resize(12 + 4 + 2 + 64, 0);
            rig.say(&create, true);
        }
        rig.bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
        rig.bench.close(1);
        rig.reopen();
        rig.version(0x1_0004);
    }
    rig.probe();
    rig.place();
}
