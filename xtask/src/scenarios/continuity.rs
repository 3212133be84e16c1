//! Device processes die and are replaced, and a stock guest must not notice: under `bulkhead run` and under systemd.

use super::{Guest, Scenario, Spec};

/// What the guest does meanwhile, and how it judges it.
const LOAD: &str = include_str!("../../recipes/guest-scripts/load");
/// The functions that the scripts here use.
macro_rules! script {
    ($text:literal) => {
        concat!(include_str!("../../recipes/lab/continuity.sh"), "\n", $text)
    };
}

const fn spec(arguments: &'static str) -> Spec {
    Spec { job: LOAD, disks: &["path = \"/dev/vde\""], ..Spec::new(Guest::Bookworm, arguments) }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "continuity",
            spec: spec("bulkhead.seconds=120"),
            script: script!(
                "guest_start; kill_while_loaded kill_by_pid 30; killed=$?; guest_end && never_reset && [ $killed = 0 ]"
            ),
            status: 0,
            expect: &["load: end well", "fsck: clean", "dmesg: clean", "kills: "],
            limit: 420,
            visit: None,
        },
        Scenario {
            name: "continuity-systemd",
            spec: spec("bulkhead.seconds=120"),
            script: script!(
                "units_start && units_secure vsp-storage@lab:disk0.service=15 bulkhead-core@lab.service=22 || exit; kill_while_loaded kill_by_systemd 20; killed=$?; units_end && units_orphans && never_reset && [ $killed = 0 ]"
            ),
            status: 0,
            expect: &[
                "load: end well",
                "fsck: clean",
                "dmesg: clean",
                "kills: ",
                "orphans: none",
                "units: removed",
            ],
            limit: 480,
            visit: None,
        },
        Scenario {
            name: "swap",
            spec: spec("bulkhead.seconds=40"),
            script: script!(
                "guest_start; swap_while_loaded 5; swapped=$?; guest_end && never_reset && [ $swapped = 0 ]"
            ),
            status: 0,
            expect: &["load: end well", "fsck: clean", "dmesg: clean", "failures: 0"],
            limit: 300,
            visit: None,
        },
        Scenario {
            name: "swap-systemd",
            spec: spec("bulkhead.seconds=40"),
            script: script!(
                "units_start || exit; swap_while_loaded 3; swapped=$?; units_end && never_reset && [ $swapped = 0 ]"
            ),
            status: 0,
            expect: &["load: end well", "fsck: clean", "dmesg: clean", "failures: 0"],
            limit: 360,
            visit: None,
        },
        Scenario {
            name: "spare",
            spec: Spec { spare: true, ..spec("bulkhead.seconds=40") },
            script: script!(
                "guest_start; kill_while_loaded kill_by_pid 10; killed=$?; guest_end && never_reset && [ $killed = 0 ]"
            ),
            status: 0,
            expect: &["load: end well", "fsck: clean", "dmesg: clean", "kills: "],
            limit: 300,
            visit: None,
        },
    ]
}
