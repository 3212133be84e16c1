//! From a spec to processes: what is started, as which user, with which arguments. Pure: it starts nothing.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::slice;

use ipc::config::{Console, CoreConfig, DeviceSlot, OnCrash};

use crate::programs::Programs;
use crate::spec::net::{Backend, Exposure, Mac};
use crate::spec::{self, Disk, Net, Spec, Storage};

/// Numbers of the user and group ids that Bulkhead's processes run as when root starts them: from this one ("BH" in
/// ASCII, so that it is recognised in `ps`), a block of [`IDS_PER_VM`] for each VM of the host. They are far above people, services
/// and systemd's dynamic users (61184 to 65519), but not above everything: systemd-nspawn picks ranges for its containers
/// between 524288 and 1879048191, and finds ours free, because they are in no passwd file. A host that has both gives its
/// containers ranges elsewhere. VMs that systemd runs have their ids in a range right behind this one (`units::ids`).
pub const FIRST_ID: u32 = 0x4248_0000;
/// The core has the first id of its VM's block, and the devices the following ones in the order of the spec.
pub const IDS_PER_VM: u32 = 256;
/// Blocks, and so the VMs that one host can run as root at a time.
pub const ID_BLOCKS: u32 = 256;

/// Everything that runs for one VM.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VM's name.
    pub name: String,
    /// The program of the core.
    pub core_program: PathBuf,
    /// What the core is told.
    pub core: CoreConfig,
    /// The device processes.
    pub devices: Vec<Device>,
}

/// One device process.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name in the spec.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// Its arguments, without those that depend on the run (`--core-fd`, `--notify-fd`, logging).
    pub args: Vec<OsString>,
    /// The user and group it becomes; `None`: it stays what bulkhead is.
    pub id: Option<u32>,
    /// A second process stands by.
    pub spare: bool,
    /// What a NIC is connected to. Its descriptors are opened once, and outlive its processes.
    pub network: Option<Network>,
}

/// The other end of a NIC's cable, and what opening it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A TAP: its name, and how many queues.
    Tap {
        /// The interface.
        name: String,
        /// Descriptors.
        queues: u32,
    },
    /// A macvtap, in the same way.
    Macvtap {
        /// The interface.
        name: String,
        /// Descriptors.
        queues: u32,
    },
    /// A process of its own.
    Passt {
        /// Its program.
        program: PathBuf,
        /// What it tells the guest.
        mtu: u16,
        /// The user and group that it becomes; `None`: it stays what bulkhead is.
        id: Option<u32>,
    },
}

impl Plan {
    /// The processes of `spec`. `first_id` is the first user id of the VM's block, `None` without root's rights.
    pub fn new(spec: &Spec, programs: &Programs, first_id: Option<u32>) -> Self {
        let ids = |position: usize| -> Option<u32> {
            // At most `MOST_DEVICES` positions: they fit in a block.
            first_id.map(|first| first + u32::try_from(position).unwrap_or(0))
        };
        let mut devices: Vec<Device> = spec
            .storage
            .iter()
            .enumerate()
            .map(|(position, storage)| storage_device(storage, programs, ids(position + 1)))
            .collect();
        // Behind the devices come the users of what NICs are connected to: one each, so that none moves when a backend changes.
        let (first, count) = (devices.len() + 1, spec.net.len());
        devices.extend(spec.net.iter().enumerate().map(|(position, net)| {
            let position = first + position;
            net_device(&spec.name, net, programs, ids(position), ids(position + count))
        }));
        // Storage requests name guest pages; what a NIC's do is in its buffers, but for a few that the core fetches.
        let names_pages = spec.storage.iter().map(|_| true);
        let names_pages = names_pages.chain(spec.net.iter().map(|net| net.memory == Exposure::Full));
        let slots = devices.iter().zip(names_pages).map(|(device, guest_ram)| DeviceSlot {
            name: device.name.clone(),
            instance: instance_guid(&spec.name, &device.name),
            uid: device.id,
            guest_ram,
            fetch: !guest_ram,
        });
        let core = CoreConfig {
            name: spec.name.clone(),
            vcpus: spec.machine.vcpus,
            memory: spec.machine.memory,
            hugepages: spec.machine.hugepages,
            prefault: spec.machine.prefault,
            kernel: spec.boot.kernel.clone(),
            initrd: spec.boot.initrd.clone(),
            cmdline: spec.boot.cmdline.clone(),
            console: match &spec.console {
                spec::Console::Terminal => Console::Stdio,
                spec::Console::Socket(path) => Console::Socket(path.clone()),
            },
            devices: slots.collect(),
            uid: ids(0),
            gid: ids(0),
            on_crash: match spec.on_crash {
                spec::OnCrash::Exit => OnCrash::Exit,
                spec::OnCrash::Continue => OnCrash::Continue,
            },
            sandbox: true,
        };
        Self { name: spec.name.clone(), core_program: programs.core_vmm.clone(), core, devices }
    }
}

fn storage_device(storage: &Storage, programs: &Programs, id: Option<u32>) -> Device {
    let mut args: Vec<OsString> = vec!["--device".into(), storage.name.clone().into()];
    for disk in &storage.disks {
        args.extend(["--disk".into(), disk_word(disk)]);
    }
    if let Some(id) = id {
        args.extend(["--uid".into(), id.to_string().into(), "--gid".into(), id.to_string().into()]);
    }
    Device {
        name: storage.name.clone(),
        program: programs.vsp_storage.clone(),
        args,
        id,
        spare: storage.spare,
        network: None,
    }
}

/// `helper` is the user of what it is connected to, where that is a process.
fn net_device(vm: &str, net: &Net, programs: &Programs, id: Option<u32>, helper: Option<u32>) -> Device {
    let mac = net.mac.unwrap_or_else(|| made_up_mac(vm, &net.name));
    let mut args: Vec<OsString> = Vec::new();
    for (option, value) in [
        ("--device", net.name.clone()),
        ("--mac", mac.to_string()),
        ("--mtu", net.mtu.to_string()),
        ("--memory", net.memory.name().to_owned()),
        ("--queues", net.queues.to_string()),
        (LINK, link_word(net.link).to_owned()),
    ] {
        args.extend([option.into(), value.into()]);
    }
    if net.antispoof {
        args.push("--antispoof".into());
    }
    if let Some(id) = id {
        args.extend(["--uid".into(), id.to_string().into(), "--gid".into(), id.to_string().into()]);
    }
    let queues = net.queues;
    let network = match &net.backend {
        Backend::Tap(name) => Network::Tap { name: name.clone(), queues },
        Backend::Macvtap(name) => Network::Macvtap { name: name.clone(), queues },
        Backend::Passt => {
            Network::Passt { program: programs.passt.clone().unwrap_or_default(), mtu: net.mtu, id: helper }
        }
    };
    Device {
        name: net.name.clone(),
        program: programs.vsp_net.clone().unwrap_or_default(),
        args,
        id,
        spare: net.spare,
        network: Some(network),
    }
}

/// Before the state of the cable that a process begins with.
pub const LINK: &str = "--link";

/// The state of a cable, as `vsp-net` takes it.
pub fn link_word(is_up: bool) -> &'static str {
    if is_up { "up" } else { "down" }
}

/// The address of a NIC that is given none: the same for the same names for ever, like [`instance_guid`], and locally administered.
fn made_up_mac(vm: &str, device: &str) -> Mac {
    let [.., a, b, c, d, e, f] = fnv1a(format!("{vm}/{device}").as_bytes(), 2).to_be_bytes();
    // The two lowest bits of the first byte: one station's, and of no manufacturer.
    Mac([a & 0xfc | 2, b, c, d, e, f])
}

/// A disk as `vsp-storage` takes it.
fn disk_word(disk: &Disk) -> OsString {
    let mut word = format!("lun={},path=", disk.lun).into_bytes();
    for byte in disk.path.as_os_str().as_bytes() {
        // A single comma would end the value.
        word.extend(if *byte == b',' { &b",,"[..] } else { slice::from_ref(byte) });
    }
    if disk.readonly {
        word.extend(b",ro");
    }
    word.extend(disk.options.words().into_bytes());
    OsString::from_vec(word)
}

/// The instance GUID of a device: the same for the same names for ever, or the guest would find its devices
/// renamed. Version 8 of RFC 9562, that is, bits of our own choosing.
fn instance_guid(vm: &str, device: &str) -> String {
    // A slash is in no name, so no two pairs of names make the same text.
    let text = format!("{vm}/{device}");
    let (a, b) = (fnv1a(text.as_bytes(), 0), fnv1a(text.as_bytes(), 1));
    format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 48 & 0x3fff),
        b & 0xffff_ffff_ffff
    )
}

/// The block that a VM's ids are looked for in first: mostly the same one on every run.
pub fn preferred_id_block(vm: &str) -> u32 {
    u32::try_from(fnv1a(vm.as_bytes(), 0) % u64::from(ID_BLOCKS)).unwrap_or(0)
}

/// FNV-1a, 64 bits, with the salt as the first byte: stable over builds, which the standard hasher is not.
fn fnv1a(bytes: &[u8], salt: u8) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(step(0xcbf2_9ce4_8422_2325, salt), |hash, byte| step(hash, *byte));
    // FNV mixes the last bytes into the high bits only a little: finish it (MurmurHash3's finalizer).
    let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Boot, Cache, KernelKind, Machine, Options};

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
        }
    }

    fn programs() -> Programs {
        Programs {
            bulkhead: "/bin/bulkhead".into(),
            core_vmm: "/bin/core-vmm".into(),
            vsp_storage: "/bin/vsp-storage".into(),
            vsp_net: Some("/bin/vsp-net".into()),
            passt: Some("/bin/passt".into()),
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
        let passt = Network::Passt { program: "/bin/passt".into(), mtu: 1500, id: Some(1005) };
        assert_eq!(first.network, Some(passt));
        assert_eq!(second.network, Some(Network::Tap { name: "t0".into(), queues: 2 }));
        let ram: Vec<bool> = plan.core.devices.iter().map(|slot| slot.guest_ram).collect();
        assert_eq!(ram, [true, true, false, true]);
        let fetch: Vec<bool> = plan.core.devices.iter().map(|slot| slot.fetch).collect();
        assert_eq!(fetch, [false, false, true, false], "only those that are confined");
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
}
