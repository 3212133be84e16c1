//! Storage at full strength, judged by tools that others wrote: SCSI conformance, file systems, discards, many queues.

use super::{Guest, Scenario, Spec};

/// Disks in the lab host's memory, which gives holes back at once. No guest's disk has room for these.
const RAW: &str = "path = \"/job/raw.img\"";
const OTHER: &str = "path = \"/job/other.img\"";

const LIBISCSI: &str = include_str!("../../recipes/guest-scripts/libiscsi");
const FILE_SYSTEMS: &str = include_str!("../../recipes/guest-scripts/file-systems");
const SG3_UTILS: &str = include_str!("../../recipes/guest-scripts/sg3-utils");
const HOT_PLUG: &str = include_str!("../../recipes/guest-scripts/hot-plug");

/// Otherwise Linux wants a channel for four processors.
const EVERY_QUEUE: &str = "hv_storvsc.storvsc_vcpus_per_sub_channel=1";

/// What a disk that comes, grows and goes has to have come to.
const HOT_PLUGGED: &[&str] = &["added disk: clean", "killed", "gone: seen", "load: well", "dmesg: clean"];

/// A disk comes, grows and goes; what was added outlives the process that it was added to.
macro_rules! hot_plug {
    ($start:literal, $kill:literal, $end:literal) => {
        concat!(
            include_str!("../../recipes/lab/continuity.sh"),
            "\ntruncate -s 256M raw.img; truncate -s 128M extra.img; ",
            $start,
            "\nguest_wait_for 'add: now' 300 && bulkhead disk add lab disk0 path=/job/extra.img,lun=2 || bad=1\n\
             guest_wait_for 'grow: now' 120 && bulkhead disk resize lab disk0 2 256MiB || bad=1\n",
            $kill,
            " && echo killed\n\
             guest_wait_for 'remove: now' 120 && bulkhead disk remove lab disk0 2 || bad=1\n\
             bulkhead device ls lab --stats; guest_wait_for 'gone: seen' 90 || bad=1; ",
            $end,
            " && [ ! $bad ]"
        )
    };
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "libiscsi",
            spec: Spec { job: LIBISCSI, disks: &[RAW], ..Spec::new(Guest::Bookworm, "") },
            script: "truncate -s 256M raw.img; guest_start; guest_end",
            status: 0,
            expect: &["libiscsi: no failures"],
            limit: 600,
            visit: None,
        },
        Scenario {
            name: "file-systems",
            spec: Spec {
                vcpus: 4,
                job: FILE_SYSTEMS,
                disks: &[RAW, OTHER],
                ..Spec::new(Guest::Bookworm, EVERY_QUEUE)
            },
            script: "truncate -s 512M raw.img other.img; guest_start; guest_end",
            status: 0,
            expect: &["queues: 4", "ext4: clean", "xfs: clean", "file systems: well", "dmesg: clean"],
            limit: 600,
            visit: None,
        },
        Scenario {
            name: "sg3-utils",
            spec: Spec { job: SG3_UTILS, disks: &[RAW], ..Spec::new(Guest::Bookworm, "") },
            script: concat!(
                include_str!("../../recipes/lab/continuity.sh"),
                "\nblocks() { stat -c %b raw.img; }\n",
                "truncate -s 256M raw.img; guest_start; guest_wait_for 'reserved: here' 300 && kill_by_pid && echo killed\n",
                "guest_wait_for 'written: here' 300; a=$(blocks); guest_wait_for 'discarded: here' 100; b=$(blocks); guest_end || exit\n",
                "echo \"blocks: $a, then $b\"; [ \"$a\" -ge 65536 ] && [ \"$b\" = 0 ] && echo 'blocks: freed'",
            ),
            status: 0,
            expect: &["killed", "sg: all well", "blocks: freed"],
            limit: 400,
            visit: None,
        },
        Scenario {
            name: "hot-plug",
            spec: Spec { job: HOT_PLUG, disks: &[RAW], ..Spec::new(Guest::Bookworm, "") },
            script: hot_plug!("guest_start", "kill_by_pid", "guest_end"),
            status: 0,
            expect: HOT_PLUGGED,
            limit: 500,
            visit: None,
        },
        Scenario {
            name: "hot-plug-systemd",
            spec: Spec { job: HOT_PLUG, disks: &[RAW], ..Spec::new(Guest::Bookworm, "") },
            script: hot_plug!("units_start || exit", "kill_by_systemd", "units_end"),
            status: 0,
            expect: HOT_PLUGGED,
            limit: 600,
            visit: None,
        },
    ]
}
