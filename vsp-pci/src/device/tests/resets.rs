//! A function that cannot be reset just now, which is nobody's until it can.

use std::time::Instant;

use vsp::ipc::message::{ToCore, ToVsp};
use vsp::testing::PATIENCE;

use super::rig::{PLACE, Rig, WINDOW, words};
use crate::mock::Model;
use crate::wire::Status;

/// A guest that uses its function, which cannot be reset from now on.
fn stubborn() -> Rig {
    let mut rig = Rig::new(Model::nic());
    rig.probe();
    rig.place();
    rig.write_config(4, 2, 0x406);
    rig.hardware.write(0, 0x100, b"secret");
    rig.hardware.refuse_resets(u32::MAX);
    rig
}

impl Rig {
    /// Takes turns until it was tried to reset the function so often in vain.
    fn wait_refused(&mut self, times: u32) {
        let start = Instant::now();
        while self.hardware.refused_resets() < times {
            assert!(start.elapsed() < PATIENCE, "it is not tried again");
            self.bench.turn(1);
        }
    }

    fn is_secret(&self) -> bool {
        let mut bytes = [0; 6];
        self.hardware.read(0, 0x100, &mut bytes);
        bytes == *b"secret"
    }
}

fn entry() -> Vec<u8> {
    let mut entry = words(&[0x4249_0007, 0]);
    entry.extend(WINDOW.to_le_bytes());
    entry
}

#[test]
fn a_guest_has_not_gone_before_the_function_was_reset() {
    let mut rig = stubborn();
    rig.bench.core.close(1);
    rig.wait_refused(4);
    assert_eq!(rig.bench.core.try_answer(), None, "the channel is not closed");
    assert!(rig.is_secret());
    rig.hardware.refuse_resets(2);
    assert_eq!(rig.bench.answer(), ToCore::Closed { channel: 1 });
    assert_eq!((rig.hardware.refused_resets(), rig.is_secret(), rig.hardware.dma()), (2, false, vec![]));
    rig.reopen();
    rig.probe();
    rig.place();
}

#[test]
fn a_guest_that_comes_back_waits_for_the_reset() {
    let mut rig = stubborn();
    rig.exit();
    rig.say(&entry(), true);
    rig.wait_refused(4);
    assert!(rig.guest.poll().is_none(), "it is not let in");
    // It need not wait for an answer. What it turns on is not there before the reset, and is afterwards.
    rig.write_config(0x10, 4, PLACE);
    rig.write_config(4, 2, 0x406);
    assert_eq!((rig.hardware.command() & 6, rig.bench.core.regions()), (0, vec![]));
    rig.hardware.refuse_resets(0);
    let (_, payload) = rig.bench.wait(&mut rig.guest);
    assert_eq!((&payload[..4], rig.is_secret()), (&Status::SUCCESS.0.to_le_bytes()[..], false));
    assert_eq!(rig.hardware.command() & 6, 6);
    rig.bench.settle();
    assert!(rig.bench.core.regions().iter().any(|(gpa, ..)| *gpa == PLACE));
}

#[test]
fn nobody_is_handed_a_function_that_has_to_be_reset() {
    let mut rig = stubborn();
    rig.exit();
    rig.bench.core.send(&ToVsp::Quiesce {});
    rig.wait_refused(4);
    assert_eq!(rig.bench.core.try_answer(), None, "it is not handed over");
    rig.hardware.refuse_resets(0);
    assert_eq!(rig.bench.answer(), ToCore::Quiesced {});
    assert!(!rig.is_secret());
}

#[test]
fn nor_does_a_successor_give_it_to_the_next_guest() {
    let rig = stubborn();
    // The guest is gone; the process dies before it has done anything about it.
    rig.bench.core.close(1);
    let Rig { hardware, bench, guest, version } = rig;
    let core = bench.kill();
    core.forget(1);
    let mut rig = Rig::take_over(hardware, core, guest, version);
    rig.reopen();
    assert_eq!(rig.version(0x1_0004), Status::SUCCESS);
    rig.say(&entry(), true);
    rig.wait_refused(4);
    assert!(rig.guest.poll().is_none(), "it is not let in");
    assert!(rig.is_secret());
    rig.hardware.refuse_resets(0);
    let (_, payload) = rig.bench.wait(&mut rig.guest);
    assert_eq!((&payload[..4], rig.is_secret()), (&Status::SUCCESS.0.to_le_bytes()[..], false));
}
