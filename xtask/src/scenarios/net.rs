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

/// A file of so many bytes, as `head` counts them, and how many kills are the least.
macro_rules! kill_script {
    ($bytes:literal, $least:literal) => {
        concat!(
            include_str!("../../recipes/lab/net.sh"),
            "\nneighbour_start 1500 && neighbour_serves || exit; head -c ",
            $bytes,
            " /dev/urandom > copy; sha256sum copy > copy.sum\n\
             guest_start; kill_nic_while_loaded ",
            $least,
            "; killed=$?; guest_end && [ $killed = 0 ]"
        )
    };
}

/// On the bridge of `neighbour_start`.
const TAP: &str = "tap = \"tap0\"";
/// The same with a process that sees all of the guest's memory: the guest sends large frames by their pages.
const TAP_FULL: &str = "tap = \"tap0\"\nmemory = \"full\"";

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
            script: script!(
                "world_start || exit; guest_start; kill_passt; bulkhead device ls lab; guest_end"
            ),
            status: 0,
            expect: &[
                "driver: hv_netvsc",
                "dhcp: well",
                "ping: well",
                "198.51.100.1",
                "passt: killed",
                "out again: ",
                "net: end well",
                "dmesg: clean",
            ],
            limit: 400,
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
                    && systemctl kill --signal=KILL vsp-net@lab:nic0.service && echo nic: killed; kill_passt; units_end"
            ),
            status: 0,
            expect: &[
                "dhcp: well",
                "nic: killed",
                "passt: killed",
                "out again: ",
                "ping: well",
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
            script: kill_script!("200M", "5"),
            expect: &["copied: 209715200 bytes", "copy: OK", "kills: ", "net: end well", "dmesg: clean"],
            ..net_kill("net-kill")
        },
        Scenario {
            spec: Spec { job: guest!("net-kill-send"), nics: &[TAP_FULL], ..Spec::new(Guest::Bookworm, "") },
            script: script!(
                "neighbour_start 1500 && neighbour_serves || exit\n\
                 guest_start; kill_nic_while_loaded 3; killed=$?; guest_end && [ $killed = 0 ]"
            ),
            expect: &["came: the same", "kills: ", "net: end well", "dmesg: clean"],
            ..net_kill("net-kill-send")
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

/// Only if asked for by name.
pub fn at_length() -> Vec<Scenario> {
    let kill = net_kill("net-kill-storm");
    vec![Scenario {
        script: kill_script!("500MB", "20"),
        expect: &["copied: 500000000 bytes", "copy: OK", "kills: ", "net: end well", "dmesg: clean"],
        // The file has to fit into half of it.
        spec: Spec { memory: 1280, ..kill.spec },
        limit: 1800,
        ..kill
    }]
}

/// A file comes by scp while the NIC's process is killed each second.
fn net_kill(name: &'static str) -> Scenario {
    Scenario {
        name,
        spec: Spec { job: guest!("net-kill"), nics: &[TAP], ..Spec::new(Guest::Bookworm, "") },
        script: "",
        status: 0,
        expect: &[],
        limit: 600,
        visit: None,
    }
}
