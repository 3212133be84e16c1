//! The process dies, and the function does not notice.

use std::time::Instant;

use vsp::ipc::message::{ToCore, ToVsp};
use vsp::testing::PATIENCE;

use super::rig::{PLACE, Rig, WINDOW, words};
use crate::mock::Model;

const TABLE: u64 = PLACE + 0x4_0000;

/// A guest whose driver has a message for receiving.
fn running() -> Rig {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.place();
    rig.write_config(4, 2, 0x406);
    rig.write_config(0xc2, 2, 0x8000);
    let number = rig.create(0x41, 1, 0);
    rig.set_entry(TABLE, 0, number, false);
    rig
}

#[test]
fn a_death_is_not_noticed() {
    let mut rig = running();
    let before = (rig.hardware.resets(), rig.hardware.attachments());
    let (regions, traps) = (rig.bench.core.regions(), rig.bench.core.traps());
    for round in 0..20 {
        rig = rig.die();
        assert_eq!((rig.bench.core.regions(), rig.bench.core.traps()), (regions.clone(), traps.clone()));
        assert!(rig.hardware.interrupt(0) && rig.interrupted(0), "round {round}");
        assert_eq!(rig.hardware.command(), 0x406);
        assert_eq!(rig.read_config(0x10, 4), PLACE);
        assert_eq!(rig.bench.read_trap(TABLE + 8, 4), 0);
        assert_eq!(rig.bench.read_trap(TABLE + 12, 4), 0);
    }
    assert_eq!((rig.hardware.resets(), rig.hardware.attachments()), before);
    // And the last of them can do all that the first could.
    let number = rig.create(0x42, 1, 1);
    assert_eq!(number, 1);
    rig.set_entry(TABLE, 1, number, false);
    assert!(rig.hardware.interrupt(1) && rig.interrupted(1));
    rig.exit();
    assert_eq!(rig.hardware.resets(), before.0 + 1);
}

#[test]
fn a_planned_change_is_not_noticed_either() {
    let mut rig = running();
    let resets = rig.hardware.resets();
    rig.bench.quiesce();
    // Its successor cannot take over, and it goes on itself.
    rig.bench.serve(true);
    rig.bench.reopen_all();
    assert!(rig.hardware.interrupt(0) && rig.interrupted(0));
    assert_eq!(rig.read_config(0, 2), 0x8086);
    assert_eq!(rig.hardware.resets(), resets);
    assert_eq!(rig.bench.read_trap(TABLE, 4), 0xfee0_0000);
}

#[test]
fn an_access_that_was_asked_twice_reaches_the_function_once() {
    let mut model = Model::small();
    model.bars[0].as_mut().unwrap().is_mappable = false;
    let mut rig = Rig::new(model);
    rig.probe();
    rig.place();
    let access = rig.bench.core.access(PLACE + 8, 4, Some(5));
    let start = Instant::now();
    while !matches!(rig.bench.core.try_answer(), Some(ToCore::AccessDone { id, .. }) if id == access) {
        assert!(start.elapsed() < PATIENCE);
        rig.bench.turn(1);
    }
    let mut bytes = [0; 4];
    rig.hardware.read(0, 8, &mut bytes);
    assert_eq!(bytes, [5, 0, 0, 0]);
    rig.hardware.write(0, 8, &[1, 1, 1, 1]);
    // It died before the core heard of it.
    let mut rig = rig.die();
    rig.bench.core.send(&ToVsp::Access { id: access, gpa: PLACE + 8, bytes: 4, write: Some(5) });
    assert_eq!(rig.bench.answer(), ToCore::AccessDone { id: access, value: 5 });
    rig.hardware.read(0, 8, &mut bytes);
    assert_eq!(bytes, [1; 4]);
}

#[test]
fn a_successor_goes_on_where_it_was_interrupted() {
    // Between what the core was asked for and the answer.
    let mut rig = running();
    let access = rig.bench.core.access(WINDOW + 0x1004, 2, Some(0x400));
    rig.bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    let mut rig = rig.die();
    rig.bench.core.send(&ToVsp::Access { id: access, gpa: WINDOW + 0x1004, bytes: 2, write: Some(0x400) });
    let start = Instant::now();
    while !matches!(rig.bench.core.try_answer(), Some(ToCore::AccessDone { id, .. }) if id == access) {
        assert!(start.elapsed() < PATIENCE);
        rig.bench.turn(1);
    }
    assert_eq!(rig.bench.core.regions(), []);
    assert_eq!(rig.read_config(4, 2), 0x400);
    // An interrupt that was asked for and not given.
    let mut message = words(&[0x4249_001b, 0, 0x43]);
    message.extend([0, 0, 1, 0, 1, 0, 0, 0]);
    message.resize(12 + 4 + 2 + 64, 0);
    rig.say(&message, true);
    rig.bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    let mut rig = rig.die();
    let (_, payload) = rig.bench.wait(&mut rig.guest);
    assert_eq!(payload[..4], [0; 4]);
    assert_eq!(payload[12], 1, "the same number");
}

#[test]
fn a_successor_without_a_guest_resets_the_function() {
    let rig = running();
    let resets = rig.hardware.resets();
    // The guest is gone; the process dies before it has done anything about it.
    rig.bench.core.close(1);
    let Rig { hardware, bench, guest, version } = rig;
    let core = bench.kill();
    core.forget(1);
    let mut rig = Rig::take_over(hardware, core, guest, version);
    assert_eq!(rig.hardware.resets(), resets + 1);
    assert_eq!((rig.hardware.command() & 6, rig.hardware.messages()), (0, None));
    rig.reopen();
    rig.probe();
    rig.place();
}
