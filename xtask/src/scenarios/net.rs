//! A NIC, driven by the stock `hv_netvsc`: through passt and on a bridge, with its process killed, and limited.

use super::{Guest, Scenario, Spec};

/// A guest's script, after the functions that all of them use.
macro_rules! guest {
    ($name:literal) => {
        concat!(
            include_str!("../../recipes/guest-scripts/net"),
            include_str!(concat!("../../recipes/guest-scripts/", $name))
        )
    };
}
/// The functions that the scripts here use.
macro_rules! script {
    ($text:literal) => {
        concat!(include_str!("../../recipes/lab/net.sh"), "\n", $text)
    };
}

/// On the bridge of `neighbour_start`.
const TAP: &str = "tap = \"tap0\"";

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "net-passt",
            spec: Spec {
                job: guest!("net-passt"),
                nics: &["backend = \"passt\""],
                ..Spec::new(Guest::Bookworm, "")
            },
            script: script!("world_start || exit; guest_start; guest_end"),
            status: 0,
            expect: &[
                "driver: hv_netvsc",
                "dhcp: well",
                "3 received",
                "198.51.100.1",
                "net: end well",
                "dmesg: clean",
            ],
            limit: 300,
            visit: None,
        },
        Scenario {
            name: "net-systemd",
            spec: Spec {
                job: guest!("net-passt"),
                nics: &["backend = \"passt\""],
                ..Spec::new(Guest::Bookworm, "")
            },
            script: concat!(
                include_str!("../../recipes/lab/continuity.sh"),
                include_str!("../../recipes/lab/net.sh"),
                "world_start && units_start || exit; guest_wait_for 'dhcp: well' 300 \
                    && systemctl kill --signal=KILL vsp-net@lab:nic0.service && echo nic: killed; units_end"
            ),
            status: 0,
            expect: &[
                "dhcp: well",
                "nic: killed",
                "3 received",
                "198.51.100.1",
                "net: end well",
                "dmesg: clean",
            ],
            limit: 300,
            visit: None,
        },
        Scenario {
            name: "net-tap",
            spec: Spec {
                vcpus: 4,
                job: guest!("net-tap"),
                nics: &["tap = \"tap0\"\nmtu = 9000"],
                ..Spec::new(Guest::Bookworm, "")
            },
            script: script!(
                "neighbour_start 9000 || exit; guest_start; guest_wait_for 'net: end' 400 && bulkhead net show lab nic0; guest_end"
            ),
            status: 0,
            expect: &["driver: hv_netvsc", "queues: 4, channels: 4", "net: end well", "dmesg: clean"],
            limit: 400,
            visit: None,
        },
        Scenario {
            name: "net-kill",
            spec: Spec { job: guest!("net-kill"), nics: &[TAP], ..Spec::new(Guest::Bookworm, "") },
            script: script!(
                "neighbour_start 1500 && neighbour_serves || exit; head -c 200M /dev/urandom > copy; sha256sum copy > copy.sum\n\
                 guest_start; kill_nic_while_loaded 5; killed=$?; guest_end && [ $killed = 0 ]"
            ),
            status: 0,
            expect: &["copied: 209715200 bytes", "copy: OK", "kills: ", "net: end well", "dmesg: clean"],
            limit: 400,
            visit: None,
        },
        Scenario {
            name: "net-limit",
            spec: Spec { job: guest!("net-limit"), nics: &[TAP], ..Spec::new(Guest::Bookworm, "") },
            script: script!(
                "neighbour_start 1500 && bulkhead net limit tap0 --max 10Mbit || exit; bulkhead net ls; guest_start; guest_end"
            ),
            status: 0,
            expect: &["limit: send", "limit: receive", "net: end well", "dmesg: clean"],
            limit: 300,
            visit: None,
        },
    ]
}
