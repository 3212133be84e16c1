//! The scenarios.

use super::{Guest, Kernel, RUN, Scenario, Spec};

/// The storage controller's class, which a guest sees before it has a driver for it.
const STORAGE_CLASS: &str = "class {ba6163d9-04a1-4d29-b605-72e2ffb1dc7f}";

/// All of them, the quickest to break first.
pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "offers-wait",
            spec: Spec { vcpus: 1, memory: 512, ..Spec::new(Guest::Probe, "") },
            script: RUN,
            status: 0,
            expect: &[STORAGE_CLASS, "probe: done"],
            limit: 120,
            visit: None,
        },
        Scenario {
            name: "login",
            spec: Spec::new(Guest::Bookworm, ""),
            script: "guest_start; guest_wait_for 'login: ' 200 && guest_type root && guest_wait_for '# ' 60 \
                && guest_type 'systemctl poweroff'; guest_end",
            status: 0,
            expect: &["guest login: "],
            limit: 400,
            visit: None,
        },
        Scenario {
            name: "one-vcpu",
            spec: Spec { vcpus: 1, memory: 512, ..Spec::new(Guest::Bookworm, "bulkhead.job=info") },
            script: "guest_start; guest_end && grep -aE '^clocksource: (tsc|hyperv_clocksource_tsc_page)' out/console && echo clock: good",
            status: 0,
            expect: &["cpus: 1", "/dev/sda", "driver hv_storvsc", "job: info exit 0", "clock: good"],
            limit: 300,
            visit: None,
        },
        Scenario {
            name: "four-vcpus",
            spec: Spec {
                vcpus: 4,
                disks: &["path = \"/dev/vde\"", "path = \"/job/tiny.cpio\"\nreadonly = true"],
                job: "echo cpus: $(nproc); lsblk -dno NAME,SIZE,RO; lun() { echo /dev/$(ls /sys/bus/scsi/devices/0:0:0:$1/block); }; d=$(lun 1); \
                    mkfs.ext4 -q $d && mount $d /mnt && cp /boot/vmlinuz* /mnt && sync && umount /mnt \
                    && e2fsck -fn $d && echo second: clean; head -c 6 $(lun 2); echo",
                ..Spec::new(Guest::Bookworm, "")
            },
            script: "truncate -s %512 tiny.cpio; guest_start; guest_end",
            status: 0,
            expect: &["cpus: 4", "second: clean", "070701"],
            limit: 400,
            visit: None,
        },
        Scenario {
            name: "elf-kernel",
            spec: Spec { kernel: Kernel::Elf, ..Spec::new(Guest::Bookworm, "bulkhead.job=fio") },
            script: RUN,
            status: 0,
            expect: &["fio: verified", "job: fio exit 0"],
            limit: 400,
            visit: None,
        },
        Scenario {
            name: "small-memory",
            spec: Spec { memory: 512, ..Spec::new(Guest::Bookworm, "bulkhead.job=memory") },
            script: RUN,
            status: 0,
            expect: &["copies, all the same"],
            limit: 400,
            visit: None,
        },
        Scenario {
            name: "memory-above-4g",
            spec: Spec { memory: 6144, ..Spec::new(Guest::Bookworm, "bulkhead.job=memory") },
            script: RUN,
            status: 0,
            expect: &["copies, all the same"],
            limit: 600,
            visit: None,
        },
        Scenario {
            name: "kexec",
            // With one, the kernel finds what UEFI leaves, and kexec hands it on.
            spec: Spec { screen: true, ..Spec::new(Guest::Bookworm, "bulkhead.job=kexec") },
            script: RUN,
            status: 0,
            expect: &["kexec: arrived, root on /dev/sda", "job: kexec exit 0"],
            limit: 500,
            visit: None,
        },
        Scenario {
            name: "crash",
            spec: Spec::new(Guest::Bookworm, "bulkhead.job=crash"),
            script: "guest_start; guest_end; [ $? = 3 ] && echo crash: noticed",
            status: 0,
            expect: &["crash: noticed"],
            limit: 300,
            visit: None,
        },
        Scenario {
            name: "killed-supervisor",
            spec: Spec { vcpus: 1, memory: 512, ..Spec::new(Guest::Bookworm, "") },
            script: "guest_start; sleep 15; [ $(our_programs) = 3 ] && pkill -KILL -x bulkhead && nothing_left && echo all: gone",
            status: 0,
            expect: &["all: gone"],
            limit: 120,
            visit: None,
        },
        Scenario {
            name: "no-kvm",
            spec: Spec { vcpus: 1, memory: 512, ..Spec::new(Guest::Tiny, "") },
            script: "rm /dev/kvm; guest_start; guest_end; [ $? = 1 ] && [ \"$(wc -l < out/log)\" -le 2 ] && echo refused: clearly",
            status: 0,
            expect: &["/dev/kvm", "refused: clearly"],
            limit: 60,
            visit: None,
        },
        Scenario {
            name: "debian-13",
            spec: Spec { kernel: Kernel::BzImage, ..Spec::new(Guest::Trixie, "bulkhead.job=info") },
            script: RUN,
            status: 0,
            expect: &["6.12", "driver hv_storvsc", "job: info exit 0"],
            limit: 600,
            visit: None,
        },
        Scenario {
            name: "reboots",
            spec: Spec { vcpus: 1, ..Spec::new(Guest::Bookworm, "bulkhead.job=reboots bulkhead.boots=3") },
            script: RUN,
            status: 0,
            expect: &["boot 1 of 3", "boot 3 of 3"],
            limit: 1000,
            visit: None,
        },
    ]
}

/// Only if asked for by name.
pub fn at_length() -> Vec<Scenario> {
    vec![Scenario {
        name: "ten-reboots",
        spec: Spec { vcpus: 1, ..Spec::new(Guest::Bookworm, "bulkhead.job=reboots bulkhead.boots=10") },
        script: RUN,
        status: 0,
        expect: &["boot 1 of 10", "boot 10 of 10"],
        limit: 2000,
        visit: None,
    }]
}
