//! The device with a guest's driver, a core, and hardware that a test plays.

mod continuity;
mod hostile;
mod resets;
mod rig;

use rig::{PLACE, Rig, WINDOW};

use crate::mock::Model;
use crate::wire::Status;

#[test]
fn a_driver_finds_its_function_and_uses_it() {
    let mut rig = Rig::new(Model::nic());
    let description = rig.probe();
    assert_eq!(description, (0x8086, 0x10d3));
    assert_eq!(rig.bench.core.traps()[0], (WINDOW, 0x2000));
    rig.place();
    let mapped: Vec<_> = rig.bench.core.regions().iter().map(|(gpa, bytes, _)| (*gpa, *bytes)).collect();
    assert_eq!(mapped, [(PLACE, 0x2_0000), (PLACE + 0x2_0000, 0x2_0000), (PLACE + 0x4_2000, 0x2000)]);
    assert_eq!(rig.hardware.command() & 6, 2, "it answers on the host's bus, and does not write memory yet");
    rig.write_config(4, 2, 0x406);
    assert_eq!(rig.hardware.command(), 0x406);
    assert_eq!(rig.hardware.dma(), [(0, 4 << 20)], "all of RAM, where the guest has it");

    // Three messages, as e1000e has them: receive, transmit, and all else.
    rig.write_config(0xc2, 2, 0xc000);
    assert_eq!(rig.hardware.messages(), Some((true, 5)));
    for vector in 0..3 {
        let number = rig.create(0x40 + vector, 1, 0);
        assert_eq!(number, vector);
        rig.set_entry(PLACE + 0x4_0000, vector, number, false);
    }
    assert!(!rig.hardware.interrupt(0), "all are masked still");
    rig.write_config(0xc2, 2, 0x8000);
    for vector in 0..3 {
        assert!(rig.hardware.interrupt(vector as usize));
        assert!(rig.interrupted(vector), "{vector}");
    }
    assert!(!rig.hardware.interrupt(3));

    // Another processor is to have the second one.
    rig.mask_entry(PLACE + 0x4_0000, 1, true);
    rig.delete(1, 1);
    let number = rig.create(0x51, 1, 0);
    rig.set_entry(PLACE + 0x4_0000, 1, number, false);
    assert_eq!(number, 1);
    assert!(rig.interrupted(1), "what may have been lost comes again");
    assert!(rig.hardware.interrupt(1) && rig.interrupted(1));
    assert_eq!(rig.hardware.attachments(), 3, "the function was not told");

    let resets = rig.hardware.resets();
    rig.exit();
    assert_eq!((rig.hardware.resets(), rig.hardware.messages()), (resets + 1, None));
    assert_eq!(
        (rig.bench.core.regions(), rig.bench.core.traps(), rig.bench.core.interrupts()),
        (vec![], vec![], vec![])
    );
    rig.probe();
    rig.place();
}

#[test]
fn a_wide_register_with_the_table_among_the_others() {
    let mut rig = Rig::new(Model::drive());
    rig.probe();
    rig.place();
    assert_eq!(rig.bench.core.traps(), [(WINDOW, 0x2000), (PLACE + 0x2000, 0x2000)]);
    rig.write_config(0xc2, 2, 0x8000);
    assert_eq!(rig.hardware.messages(), Some((true, 65)));
    let number = rig.create(0x60, 1, 0);
    rig.set_entry(PLACE + 0x2000, 64, number, false);
    assert!(rig.hardware.interrupt(64) && rig.interrupted(number));
    assert_eq!(rig.bench.read_trap(PLACE + 0x2000 + 64 * 16 + 8, 4), u64::from(number));
    assert_eq!(rig.bench.read_trap(PLACE + 0x2000 + 65 * 16, 8), 0, "behind the table");
    assert_eq!(rig.bench.read_trap(PLACE + 0x3000, 8), 0, "no interrupt waits");
}

#[test]
fn some_messages_in_a_row() {
    let mut rig = Rig::new(Model::small());
    rig.probe();
    rig.place();
    assert_eq!(rig.create(0x30, 1, 0), 0);
    let number = rig.create(0x20, 4, 0);
    assert_eq!(number, 4);
    rig.write_config(0xa4, 4, 0xfee0_0000);
    rig.write_config(0xac, 2, number.into());
    rig.write_config(0xa2, 2, 0x21);
    assert_eq!(rig.hardware.messages(), Some((false, 4)));
    for message in 0..4 {
        assert!(rig.hardware.interrupt(message as usize) && rig.interrupted(number + message));
    }
    rig.write_config(0xa2, 2, 0x20);
    rig.delete(number, 4);
    assert_eq!(rig.bench.core.interrupts().len(), 1);
}

#[test]
fn versions_are_negotiated_downwards() {
    let mut rig = Rig::new(Model::nic());
    assert_eq!(rig.version(0x1_0005), Status::REVISION_MISMATCH);
    assert_eq!(rig.version(0x2_0001), Status::REVISION_MISMATCH);
    for version in [0x1_0004, 0x1_0003, 0x1_0002, 0x1_0001] {
        assert_eq!(rig.version(version), Status::SUCCESS);
    }
    let relations = rig.relations();
    assert_eq!(relations.len(), 8 + 20 + 4, "the short list, padded");
}

#[test]
fn memory_that_is_turned_off_is_not_seen() {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.place();
    rig.write_config(4, 2, 0x400);
    assert_eq!((rig.bench.core.regions().len(), rig.bench.core.traps().len()), (0, 1));
    assert_eq!(rig.hardware.command() & 2, 2, "the function itself stays where it is");
    rig.write_config(4, 2, 0x402);
    assert_eq!(rig.bench.core.regions().len(), 3);
    // A driver that moves a register.
    rig.write_config(0x10, 4, PLACE + 0x10_0000);
    assert!(rig.bench.core.regions().iter().any(|(gpa, ..)| *gpa == PLACE + 0x10_0000));
    rig.bench.core.lose_region(PLACE + 0x10_0000);
    rig.bench.settle();
    assert_eq!(rig.read_config(0, 4), 0x10d3_8086, "nothing else is lost");
}

#[test]
fn an_operator_has_the_guest_let_it_go() {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.place();
    let resets = rig.hardware.resets();
    rig.wish(1, r#"{"eject":{}}"#);
    assert_eq!(rig.told(), 0x4249_000b);
    rig.say(&rig::words(&[0x4249_000f, 0, 0]), false);
    assert_eq!(rig.wish_answer(1), Ok(r#"{"ejected":true}"#.to_owned()));
    assert_eq!(rig.hardware.resets(), resets + 1);
    assert_eq!(rig.relations()[4..8], [0; 4], "no function");
    // Again, and when nobody is there at all.
    rig.wish(2, r#"{"eject":{}}"#);
    assert_eq!(rig.wish_answer(2), Ok(r#"{"ejected":true}"#.to_owned()));
    rig.wish(3, "dance");
    assert!(rig.wish_answer(3).is_err());
}

#[test]
fn a_guest_that_goes_leaves_nothing_behind() {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.place();
    rig.write_config(4, 2, 0x406);
    rig.write_config(0xc2, 2, 0x8000);
    rig.hardware.write(0, 0x100, b"secret");
    let resets = rig.hardware.resets();
    rig.bench.close(1);
    let mut bytes = [9; 6];
    rig.hardware.read(0, 0x100, &mut bytes);
    assert_eq!((rig.hardware.resets(), rig.hardware.command(), bytes), (resets + 1, 0, [0; 6]));
    rig.reopen();
    rig.probe();
    rig.place();
    assert_eq!(rig.read_config(4, 2), 0x402);
}
