//! From specs to arguments.

use super::*;
use crate::spec::{Boot, Cache, KernelKind, Machine, Options, Pci};

fn spec() -> Spec {
    let disk = |path: &str, readonly, lun| Disk {
        path: path.into(),
        bytes: 512,
        readonly,
        lun,
        options: Options::default(),
    };
    Spec {
        name: "debian".to_owned(),
        machine: Machine { vcpus: 2, memory: 1 << 30, hugepages: false, prefault: false },
        boot: Boot {
            kernel: "/boot/vmlinuz".into(),
            kernel_kind: KernelKind::BzImage,
            initrd: None,
            cmdline: String::new(),
        },
        console: spec::Console::Terminal,
        on_crash: spec::OnCrash::Exit,
        storage: vec![
            Storage {
                name: "disk0".to_owned(),
                disks: vec![disk("/a.img", false, 0), disk("/b.img", true, 5)],
                spare: true,
            },
            Storage { name: "disk1".to_owned(), disks: vec![disk("/c.img", false, 0)], spare: false },
        ],
        net: Vec::new(),
        pci: Vec::new(),
        screen: None,
    }
}

fn programs() -> Programs {
    Programs {
        bulkhead: "/bin/bulkhead".into(),
        core_vmm: "/bin/core-vmm".into(),
        vsp_storage: "/bin/vsp-storage".into(),
        vsp_net: Some("/bin/vsp-net".into()),
        passt: Some("/bin/passt".into()),
        vsp_pci: Some("/bin/vsp-pci".into()),
        vsp_video: Some("/bin/vsp-video".into()),
        vsp_hid: Some("/bin/vsp-hid".into()),
        console: Some("/bin/bulkhead-console".into()),
    }
}

#[test]
fn every_process_of_a_vm_started_by_root_has_a_user_of_its_own() {
    let plan = Plan::new(&spec(), &programs(), Some(FIRST_ID + 512));
    assert_eq!((plan.core.uid, plan.core.gid), (Some(FIRST_ID + 512), Some(FIRST_ID + 512)));
    assert_eq!(plan.devices[0].id, Some(FIRST_ID + 513));
    assert_eq!(plan.devices[1].id, Some(FIRST_ID + 514));
    assert_eq!(plan.core.devices[1].uid, Some(FIRST_ID + 514));
}

#[test]
fn a_storage_process_is_told_its_disks_and_its_user() {
    let plan = Plan::new(&spec(), &programs(), Some(1000));
    let expected = [
        "--device",
        "disk0",
        "--disk",
        "lun=0,path=/a.img",
        "--disk",
        "lun=5,path=/b.img,ro",
        "--uid",
        "1001",
        "--gid",
        "1001",
    ];
    assert_eq!(plan.devices[0].args, expected);
    assert_eq!((plan.devices[0].spare, plan.devices[1].spare), (true, false));
    let unprivileged = Plan::new(&spec(), &programs(), None);
    assert_eq!(unprivileged.devices[0].args, expected[..6]);
    assert_eq!(unprivileged.core.uid, None);
}

#[test]
fn a_storage_process_is_told_how_its_disks_are_used() {
    let mut spec = spec();
    spec.storage[0].disks[0] = Disk {
        path: "/a,b.img".into(),
        options: Options {
            cache: Cache::None,
            block_size: Some(4096),
            serial: Some("X,1".into()),
            iops: Some(500),
            bandwidth: Some(100 << 20),
            burst: Some(2),
        },
        ..spec.storage[0].disks[0].clone()
    };
    let plan = Plan::new(&spec, &programs(), None);
    assert_eq!(
        plan.devices[0].args[3],
        "lun=0,path=/a,,b.img,cache=none,block_size=4096,serial=X,,1,iops=500,bandwidth=104857600,burst=2"
    );
}

fn nic(name: &str, backend: Backend) -> Net {
    Net {
        name: name.to_owned(),
        mac: None,
        backend,
        queues: 2,
        memory: Exposure::Confined,
        antispoof: true,
        mtu: 1500,
        link: true,
        spare: true,
    }
}

#[test]
fn a_nic_is_told_how_it_is_and_what_it_is_connected_to_is_opened_by_others() {
    let mut spec = spec();
    spec.net = vec![
        nic("nic0", Backend::Passt),
        Net {
            mac: Some(Mac([2, 0, 0, 0, 0, 9])),
            memory: Exposure::Full,
            ..nic("nic1", Backend::Tap("t0".into()))
        },
    ];
    let plan = Plan::new(&spec, &programs(), Some(1000));
    let words = |device: &Device| {
        device.args.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    let (first, second) = (&plan.devices[2], &plan.devices[3]);
    let mac = made_up_mac("debian", "nic0");
    assert_eq!(
        words(first),
        format!(
            "--device nic0 --mac {mac} --mtu 1500 --memory confined --queues 2 --link up --antispoof --uid 1003 --gid 1003"
        )
    );
    assert!(words(second).contains("--mac 02:00:00:00:00:09 --mtu 1500 --memory full"));
    assert_eq!((first.id, second.id, first.spare), (Some(1003), Some(1004), true));
    let passt = Network::Passt { program: "/bin/passt".into(), mtu: 1500, user: 5, id: Some(1005) };
    assert_eq!(first.network, Some(passt));
    assert_eq!(second.network, Some(Network::Tap { name: "t0".into(), queues: 2 }));
    let ram: Vec<bool> = plan.core.devices.iter().map(|slot| slot.guest_ram).collect();
    assert_eq!(ram, [true, true, false, true]);
    let fetch: Vec<bool> = plan.core.devices.iter().map(|slot| slot.fetch).collect();
    assert_eq!(fetch, [false, false, true, false], "only those that are confined");
}

fn screen() -> crate::spec::Screen {
    crate::spec::Screen {
        vram: 16 << 20,
        spare: true,
        listen: None,
        password_file: Some("/p".into()),
        web: None,
        tls: None,
        novnc: None,
    }
}

#[test]
fn a_screen_is_four_processes_of_which_three_are_the_guests() {
    let mut spec = spec();
    spec.net = vec![nic("nic0", Backend::Passt)];
    spec.screen = Some(screen());
    let plan = Plan::new(&spec, &programs(), Some(1000));
    let words = |device: &Device| {
        device.args.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    // Behind the user of what the NIC is connected to.
    let told: Vec<String> = plan.devices[3..].iter().map(words).collect();
    assert_eq!(
        told,
        [
            "--device video --vram 16 --uid 1005 --gid 1005",
            "--device keyboard --keyboard --uid 1006 --gid 1006",
            "--device mouse --mouse --uid 1007 --gid 1007",
            "--device console --name debian --password-file /p --uid 1008 --gid 1008",
        ]
    );
    let of_core: Vec<(bool, bool)> =
        plan.devices[3..].iter().map(|device| (device.is_of_core(), device.spare)).collect();
    assert_eq!(of_core, [(true, true), (true, true), (true, true), (false, false)]);
    let slots: Vec<_> = plan.core.devices[3..]
        .iter()
        .map(|slot| (slot.name.as_str(), slot.uid, slot.guest_ram || slot.fetch, slot.device_memory))
        .collect();
    assert_eq!(
        slots,
        [
            ("video", Some(1005), false, 16 << 20),
            ("keyboard", Some(1006), false, 0),
            ("mouse", Some(1007), false, 0)
        ]
    );
    assert!(plan.core.efi);
    assert_eq!(plan.seat, Some(Seat { user: 9, listen: None, web: None }));
    let without = Plan::new(&self::spec(), &programs(), None);
    assert!(!without.core.efi && without.seat.is_none());
}

#[test]
fn made_up_addresses_never_change_and_are_nobodys() {
    assert_eq!(made_up_mac("debian", "nic0"), made_up_mac("debian", "nic0"));
    assert_ne!(made_up_mac("debian", "nic0"), made_up_mac("debian", "nic1"));
    for n in 0..1000 {
        let Mac([first, ..]) = made_up_mac("vm", &format!("nic{n}"));
        assert_eq!(first & 3, 2, "one station's, locally administered");
    }
}

#[test]
fn instance_guids_never_change() {
    // A change of this value renames the devices of every guest.
    assert_eq!(instance_guid("debian", "disk0"), "acfe36eb-44a9-8e43-83df-75dba5584515");
    assert_ne!(instance_guid("debian", "disk0"), instance_guid("debian", "disk1"));
    assert_ne!(instance_guid("debian", "disk0"), instance_guid("debia", "n-disk0"));
}

#[test]
fn id_blocks_stay_in_their_range() {
    for n in 0..1000 {
        assert!(preferred_id_block(&format!("vm{n}")) < ID_BLOCKS);
    }
    assert!(spec::MOST_DEVICES < IDS_PER_VM as usize);
}

#[test]
fn a_pci_device_is_told_where_it_is_and_has_all_memory() {
    let mut spec = spec();
    spec.net = vec![nic("nic0", Backend::Passt)];
    spec.screen = Some(screen());
    let nic = Pci { name: "pci-03-00-0".into(), address: "03:00.0".parse().unwrap(), group: 7, spare: true };
    spec.pci = vec![nic.clone()];
    let plan = Plan::new(&spec, &programs(), Some(1000));
    let device = plan.devices.last().unwrap();
    // Behind the one that keeps what lies between the screen and its console.
    let expected = "--device pci-03-00-0 --address 0000:03:00.0 --group 7 --uid 1010 --gid 1010";
    assert_eq!(device.args.join(" ".as_ref()), expected);
    assert!(device.spare && device.is_of_core());
    let slot = plan.core.devices.last().unwrap();
    assert!(slot.guest_ram && slot.passthrough && !slot.fetch && slot.device_memory == 0);
    assert_eq!(plan.core.devices.iter().filter(|slot| slot.passthrough).count(), 1);
    assert_eq!(plan.core.later_uids, (1011..1011 + 8).collect::<Vec<u32>>());
}

#[test]
fn a_vm_is_given_devices_while_it_runs_until_it_has_enough() {
    let plan = Plan::new(&spec(), &programs(), Some(1000));
    let nic = Pci { name: "nic".into(), address: "03:00.0".parse().unwrap(), group: 7, spare: false };
    let mut taken = Vec::new();
    for _ in 0..MOST_LATER {
        let (device, slot) = plan.later.device(&nic, &taken).unwrap();
        assert!(plan.core.later_uids.contains(&slot.uid.unwrap()));
        taken.push(device.user);
    }
    assert!(plan.later.device(&nic, &taken).unwrap_err().contains("detach one first"));
    let unprivileged = Plan::new(&spec(), &programs(), None);
    assert!(unprivileged.core.later_uids.is_empty());
    assert_eq!(unprivileged.later.device(&nic, &[]).unwrap().1.uid, None);
    let without = Plan::new(&spec(), &Programs { vsp_pci: None, ..programs() }, None);
    assert!(without.later.device(&nic, &[]).unwrap_err().contains("install it"));
}
