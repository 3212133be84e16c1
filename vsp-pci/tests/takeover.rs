//! Real processes in their compartments that die at each kill point and of SIGKILL: the guest sees each question answered once, the
//! function is not reset under it, and its interrupts come.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod process;

use std::time::Duration;

use process::{PATIENCE, World};
use vsp::channel::KillPoint;
use vsp_pci::mock::Model;

/// What a process exits with at a kill point.
const KILLED: i32 = 137;

#[test]
fn each_question_is_answered_once_wherever_a_process_dies() {
    let points = KillPoint::ALL.into_iter().chain(KillPoint::NOTICES);
    let mut died = Vec::new();
    for point in points {
        for count in [1, 2, 5, 11] {
            let order = format!("{}:{count}", point.name());
            let mut world = World::new(Model::nic(), &["--kill-point".into(), order.clone()]);
            world.live(|_| {});
            // Once when the guest left the bus; perhaps twice, if the process died before it could say so.
            assert!((1..=2).contains(&world.hardware.resets()), "{order}: {}", world.hardware.resets());
            match world.deaths[..] {
                [] => break,
                [Some(KILLED)] => died.push(order),
                ref other => panic!("{order}: {other:?}"),
            }
        }
    }
    assert!(died.len() >= 20, "{died:?}");
}

#[test]
fn a_function_survives_a_storm_of_kills() {
    let mut world = World::new(Model::nic(), &[]);
    for round in 0..6u64 {
        let resets = world.hardware.resets();
        let mut step = 0;
        world.live(|world| {
            step += 1;
            if (step + round) % 2 == 0 {
                std::thread::sleep(Duration::from_micros(37 * (round * 7 + step) % 900));
                world.process.kill();
                world.revive();
            }
        });
        let resets = world.hardware.resets() - resets;
        assert!((1..=2).contains(&resets), "{resets}");
    }
    assert!(world.deaths.len() >= 20, "{}", world.deaths.len());
}

#[test]
fn the_function_is_reset_when_the_last_who_has_it_goes() {
    let World { hardware, core, mut process, .. } = World::new(Model::nic(), &[]);
    let resets = hardware.resets();
    process.kill();
    std::thread::sleep(Duration::from_millis(50));
    assert!(hardware.is_open(), "the core keeps it");
    drop(core);
    assert!(hardware.wait_closed(PATIENCE));
    assert_eq!(hardware.resets(), resets + 1);
}
