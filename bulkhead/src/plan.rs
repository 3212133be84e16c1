//! From a spec to processes: what is started, as which user, with which arguments. Pure: it starts nothing.

mod pci;
mod screen;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::slice;

use ipc::config::{Console, CoreConfig, DeviceSlot, OnCrash};

use crate::programs::Programs;
use crate::spec::net::{Backend, Exposure, Mac};
use crate::spec::{self, Disk, Net, Spec, Storage};

pub use self::pci::{Later, MOST_LATER, Passed, later};
pub use self::screen::{Part, Seat};

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
    /// What lies between the processes of a screen, and where people get to it.
    pub seat: Option<Seat>,
    /// What devices are made of that it is given while it runs.
    pub later: Later,
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
    /// The number of its user in the VM's block.
    pub user: usize,
    /// The user and group it becomes; `None`: it stays what bulkhead is.
    pub id: Option<u32>,
    /// A second process stands by.
    pub spare: bool,
    /// What a NIC is connected to. Its descriptors are opened once, and outlive its processes.
    pub network: Option<Network>,
    /// Its place at the seat, for what belongs to a screen.
    pub part: Option<Part>,
    /// The device of the host that it passes on.
    pub pci: Option<Passed>,
}

impl Device {
    /// Whether it is a device of the guest's, attached to the core. The console is not: it serves people.
    pub fn is_of_core(&self) -> bool {
        self.part != Some(Part::Console)
    }
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
        /// The number of its user in the VM's block.
        user: usize,
        /// The user and group that it becomes; `None`: it stays what bulkhead is.
        id: Option<u32>,
    },
}

/// The users of a VM's processes.
#[derive(Clone, Copy, Debug)]
struct Users {
    /// The first id of the VM's block, `None` without root's rights.
    first: Option<u32>,
}

impl Users {
    /// At most `MOST_DEVICES` numbers: they fit in a block.
    fn id(self, number: usize) -> Option<u32> {
        self.first.map(|first| first + u32::try_from(number).unwrap_or(0))
    }

    /// The arguments by which a process becomes user `number`.
    fn words(self, number: usize) -> Vec<OsString> {
        let words = |id: u32| ["--uid".into(), id.to_string().into(), "--gid".into(), id.to_string().into()];
        self.id(number).map(words).into_iter().flatten().collect()
    }
}

impl Plan {
    /// The processes of `spec`. `first_id` is the first user id of the VM's block, `None` without root's rights.
    pub fn new(spec: &Spec, programs: &Programs, first_id: Option<u32>) -> Self {
        let users = Users { first: first_id };
        let mut devices: Vec<Device> = Vec::new();
        for storage in &spec.storage {
            devices.push(storage_device(storage, programs, users, devices.len() + 1));
        }
        // Behind them come the users of what NICs are connected to: one each, so that none moves when a backend changes.
        let count = spec.net.len();
        for net in &spec.net {
            devices.push(net_device(&spec.name, net, programs, users, devices.len() + 1, count));
        }
        // Storage requests name guest pages; what a NIC's do is in its buffers, but for a few that the core fetches.
        let names_pages = spec.storage.iter().map(|_| true);
        let names_pages = names_pages.chain(spec.net.iter().map(|net| net.memory == Exposure::Full));
        let mut slots: Vec<DeviceSlot> = devices
            .iter()
            .zip(names_pages)
            .map(|(device, guest_ram)| DeviceSlot {
                guest_ram,
                fetch: !guest_ram,
                ..slot(&spec.name, device)
            })
            .collect();
        if let Some(screen) = &spec.screen {
            let first = devices.len() + count + 1;
            let of_screen = screen::devices(&spec.name, screen, programs, users, first);
            slots.extend(of_screen.iter().filter(|device| device.is_of_core()).map(|device| DeviceSlot {
                device_memory: if device.part == Some(Part::Video) { screen.vram } else { 0 },
                ..slot(&spec.name, device)
            }));
            devices.extend(of_screen);
        }
        let user = devices.last().map_or(1, |device| device.user + 1);
        let seat = spec.screen.as_ref().map(|screen| Seat::of(screen, user));
        // The last ones, so that no other user moves for them.
        let first = user.max(devices.len() + count + 1) + usize::from(seat.is_some());
        let program = programs.vsp_pci.clone().unwrap_or_default();
        for (user, pci) in (first..).zip(&spec.pci) {
            let device = pci::device(pci, program.clone(), users, user);
            slots.push(pci::slot_of(&spec.name, &device));
            devices.push(device);
        }
        let later = Later::new(&spec.name, programs, users, first + spec.pci.len());
        let core = CoreConfig {
            name: spec.name.clone(),
            vcpus: spec.machine.vcpus,
            memory: spec.machine.memory,
            hugepages: spec.machine.hugepages,
            prefault: spec.machine.prefault,
            kernel: spec.boot.kernel.clone(),
            initrd: spec.boot.initrd.clone(),
            cmdline: spec.boot.cmdline.clone(),
            // Linux looks for a screen on VMBus only if it believes that EFI has started it.
            efi: spec.screen.is_some(),
            console: match &spec.console {
                spec::Console::Terminal => Console::Stdio,
                spec::Console::Socket(path) => Console::Socket(path.clone()),
            },
            devices: slots,
            later_uids: later.ids(),
            uid: users.id(0),
            gid: users.id(0),
            on_crash: match spec.on_crash {
                spec::OnCrash::Exit => OnCrash::Exit,
                spec::OnCrash::Continue => OnCrash::Continue,
            },
            sandbox: true,
        };
        Self { name: spec.name.clone(), core_program: programs.core_vmm.clone(), core, devices, seat, later }
    }
}

/// The place of a device at the core. It sees no guest memory but its rings.
fn slot(vm: &str, device: &Device) -> DeviceSlot {
    DeviceSlot {
        name: device.name.clone(),
        instance: instance_guid(vm, &device.name),
        uid: device.id,
        guest_ram: false,
        fetch: false,
        device_memory: 0,
        passthrough: false,
    }
}

fn storage_device(storage: &Storage, programs: &Programs, users: Users, user: usize) -> Device {
    let mut args: Vec<OsString> = vec!["--device".into(), storage.name.clone().into()];
    for disk in &storage.disks {
        args.extend(["--disk".into(), disk_word(disk)]);
    }
    args.extend(users.words(user));
    Device {
        name: storage.name.clone(),
        program: programs.vsp_storage.clone(),
        args,
        user,
        id: users.id(user),
        spare: storage.spare,
        network: None,
        part: None,
        pci: None,
    }
}

/// What it is connected to has the user that is `count` behind its own, where that is a process.
fn net_device(vm: &str, net: &Net, programs: &Programs, users: Users, user: usize, count: usize) -> Device {
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
    args.extend(users.words(user));
    let queues = net.queues;
    let network = match &net.backend {
        Backend::Tap(name) => Network::Tap { name: name.clone(), queues },
        Backend::Macvtap(name) => Network::Macvtap { name: name.clone(), queues },
        Backend::Passt => {
            let (program, user) = (programs.passt.clone().unwrap_or_default(), user + count);
            Network::Passt { program, mtu: net.mtu, user, id: users.id(user) }
        }
    };
    Device {
        name: net.name.clone(),
        program: programs.vsp_net.clone().unwrap_or_default(),
        args,
        user,
        id: users.id(user),
        spare: net.spare,
        network: Some(network),
        part: None,
        pci: None,
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
mod tests;
