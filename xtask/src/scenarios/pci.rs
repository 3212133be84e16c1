//! Devices of the lab host that are a guest's own: stock drivers, stock guests, and everything that can happen to the process in between.

use super::{Guest, Scenario, Spec};
use crate::images::HostKernel;
use crate::job::Card;

macro_rules! guest {
    ($name:literal) => {
        concat!(
            include_str!("../../recipes/guest-scripts/net"),
            include_str!("../../recipes/guest-scripts/pci"),
            include_str!(concat!("../../recipes/guest-scripts/", $name))
        )
    };
}
macro_rules! script {
    ($text:expr) => {
        concat!(include_str!("../../recipes/lab/pci.sh"), "\n", $text)
    };
}

/// A NIC: kills of its process while traffic runs both ways, and times that it is taken out and put in again.
macro_rules! nic_script {
    ($kills:literal, $cycles:literal) => {
        script!(concat!(
            "cable && take_card nic 0x8086 0x10d3 || exit; at=$(card 0x8086 0x10d3); guest_start\n\
             kill_device_while_loaded nic ",
            $kills,
            "; killed=$?\nfor n in $(seq ",
            $cycles,
            "); do out_and_in nic $at \"cycle $n\" || { bad=1; break; }; done\n\
             bulkhead device ls lab; guest_end && [ $killed = 0 ] && [ ! $bad ] && bulkhead pci unbind $at && echo nic: back"
        ))
    };
}

fn nic(
    name: &'static str,
    cmdline: &'static str,
    script: &'static str,
    expect: &'static [&'static str],
) -> Scenario {
    Scenario {
        name,
        // Debian's kernels for clouds have no driver for this NIC.
        spec: Spec {
            job: guest!("pci-nic"),
            cards: &[Card::Nic, Card::Neighbour],
            passed: &["nic"],
            ..Spec::new(Guest::Trixie, cmdline)
        },
        script,
        status: 0,
        expect,
        limit: 1500,
        visit: None,
    }
}

/// Only if asked for by name.
pub fn at_length() -> Vec<Scenario> {
    let mut all = vec![nic(
        "pci-nic-storm",
        "bulkhead.cycles=20",
        nic_script!("100", "20"),
        &[
            "driver: e1000e",
            "kills: 100",
            "cycles: 20",
            "link: down and up",
            "net: end well",
            "dmesg: clean",
            "nic: back",
        ],
    )];
    // Debian 13's guests crash on that lab host within seconds, under QEMU's own VMM as well: the emulated CMPXCHG16B leaves words of
    // another register in their flags when it has to be begun again.
    all.extend(
        self::all().into_iter().filter(|scenario| scenario.spec.guest == Guest::Bookworm).map(by_iommufd),
    );
    all
}

/// The same on a lab host whose kernel has iommufd, which Debian's do not.
fn by_iommufd(scenario: Scenario) -> Scenario {
    // There are a handful, once.
    let name = format!("{}-iommufd", scenario.name).leak();
    let expect = [scenario.expect, &["dma: by an iommufd"]].concat().leak();
    Scenario { name, expect, spec: Spec { host: HostKernel::Ubuntu, ..scenario.spec }, ..scenario }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        nic(
            "pci-nic",
            "bulkhead.cycles=4",
            nic_script!("30", "4"),
            &[
                "driver: e1000e",
                "kills: 30",
                "cycles: 4",
                "link: down and up",
                "net: end well",
                "dmesg: clean",
                "nic: back",
            ],
        ),
        Scenario {
            name: "pci-crash",
            spec: Spec {
                job: guest!("pci-crash"),
                cards: &[Card::Nic, Card::Neighbour],
                passed: &["nic"],
                ..Spec::new(Guest::Trixie, "")
            },
            // Frames come for it all the time; but a card that may not begin a transfer reaches nobody's memory, whoever's that has become.
            script: script!(
                "cable && take_card nic 0x8086 0x10d3 || exit; at=$(card 0x8086 0x10d3)\n\
                 resets() { cat /sys/bus/pci/devices/$at/reset_method; }; [ \"$(resets)\" = 'bus pm' ] || exit\n\
                 ip -n neighbour route add 224.0.0.0/4 dev cable\n\
                 ip netns exec neighbour bash -c 'exec 7> /dev/udp/224.0.0.1/9; while :; do head -c 1400 /dev/zero >&7; done' & flood=$!\n\
                 quiet() { (( ($(od -An -tu2 -j4 -N2 /sys/bus/pci/devices/$at/config) & 4) == 0 )); }\n\
                 guest_start; guest_wait_for 'load: begin' 400 && ! quiet || exit\n\
                 kill -KILL $(pidof core-vmm); guest_end; [ $? != 99 ] && quiet && echo 'card: quiet after the crash' || exit\n\
                 guest_start; guest_wait_for 'load: begin' 400 && bulkhead device detach lab nic --force \\\n\
                 && guest_wait_for 'forced: out' 100 && quiet && echo 'card: quiet without its driver' \\\n\
                 && bulkhead device attach lab --pci $at --name nic || bad=1\n\
                 kill $flood; guest_end && [ ! $bad ] && bulkhead pci unbind $at && [ \"$(resets)\" = 'pm bus' ] && echo nic: back"
            ),
            status: 0,
            expect: &[
                "card: quiet after the crash",
                "forced: out",
                "card: quiet without its driver",
                "forced: in",
                "crash: end well",
                "nic: back",
            ],
            limit: 900,
            visit: None,
        },
        Scenario {
            name: "pci-nvme",
            spec: Spec {
                job: guest!("pci-nvme"),
                cards: &[Card::Nvme],
                passed: &["drive"],
                ..Spec::new(Guest::Bookworm, "")
            },
            // The host's own driver has it first, and a file system on it keeps it there.
            script: script!(
                "at=$(card 0x1b36 0x0010) && until [ -b /dev/nvme0n1 ]; do sleep 0.1; done\n\
                 mkfs.ext4 -qF /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && ! bulkhead pci bind $at && umount /mnt || exit\n\
                 take_card drive 0x1b36 0x0010 || exit; guest_start\n\
                 kill_device_while_loaded drive 30; killed=$?\n\
                 out_and_in drive $at drive || bad=1\n\
                 guest_end && [ $killed = 0 ] && [ ! $bad ] && bulkhead pci unbind $at && e2fsck -fn /dev/nvme0n1 && echo drive: back"
            ),
            status: 0,
            expect: &[
                "is mounted at /mnt",
                "first: verified",
                "fsck: clean",
                "fsck: clean again",
                "drive: end well",
                "dmesg: clean",
                "drive: back",
            ],
            limit: 900,
            visit: None,
        },
        Scenario {
            name: "pci-systemd",
            spec: Spec {
                job: guest!("pci-nvme"),
                cards: &[Card::Nvme],
                passed: &["drive"],
                ..Spec::new(Guest::Bookworm, "")
            },
            script: concat!(
                include_str!("../../recipes/lab/continuity.sh"),
                "\n",
                script!(
                    "take_card drive 0x1b36 0x0010 || exit; at=$(card 0x1b36 0x0010); unit=vsp-pci@lab:drive.service\n\
                     kill_serving() { [ \"$(device_row drive state)\" = serving ] && systemctl kill --signal=KILL $unit; }\n\
                     units_start && units_secure $unit=15 || exit\n\
                     kill_device_while_loaded drive 20 kill_serving; killed=$?\n\
                     out_and_in drive $at drive || bad=1\n\
                     units_end && [ $killed = 0 ] && [ ! $bad ] && ! bulkhead pci ls | grep \"^$at.*a VM has it\" \\\n\
                     && units_orphans && ! bulkhead pci ls | grep \"^$at.*a VM has it\" \\\n\
                     && bulkhead pci unbind $at && e2fsck -fn /dev/nvme0n1 && echo drive: back"
                )
            ),
            status: 0,
            expect: &[
                "first: verified",
                "fsck: clean",
                "fsck: clean again",
                "drive: end well",
                "dmesg: clean",
                "orphans: none",
                "units: removed",
                "drive: back",
            ],
            limit: 900,
            visit: None,
        },
        Scenario {
            name: "pci-dma",
            spec: Spec {
                job: guest!("pci-dma"),
                cards: &[Card::Edu],
                passed: &["edu"],
                ..Spec::new(Guest::Bookworm, "")
            },
            script: script!(
                "take_card edu 0x1234 0x11e8 || exit; guest_start; guest_wait_for 'dma: done' 300; sleep 1; dmesg | grep -i dmar | tail -n 5; guest_end"
            ),
            status: 0,
            // Where it may write it has, and elsewhere the IOMMU has kept it from that.
            expect: &["dma: 0x12345678", "DMA Write", "fault addr 0x70000000", "uptime: "],
            limit: 500,
            visit: None,
        },
    ]
}
