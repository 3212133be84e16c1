//! On a made-up host: files in a directory, and a kernel that does what a write to one of them means.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::function::Function;
use super::host::{Host, Kernel};
use super::{Address, bind, ls, problem};

const NIC: &str = "0000:03:00.0";
const SATA: &str = "0000:00:1f.2";
const SMBUS: &str = "0000:00:1f.3";
const ISA: &str = "0000:00:1f.0";
const NVME: &str = "0000:04:00.0";

/// What the made-up kernel knows besides its files.
#[derive(Default)]
struct State {
    /// Interfaces with addresses.
    addresses: Vec<String>,
    /// Nodes that a VM has open.
    open: Vec<String>,
    /// Functions have nodes of their own, and groups have none.
    no_groups: bool,
    /// Disks that somebody has claimed.
    claimed: Vec<String>,
    /// No device can be reset by its bus.
    shares_bus: bool,
    /// Drivers that take nothing.
    unwilling: Vec<String>,
    /// The driver that is made for each device.
    made_for: Vec<(String, String)>,
}

struct Made {
    root: PathBuf,
    state: Rc<RefCell<State>>,
}

impl Made {
    fn make_node(&self, device: &Path) -> io::Result<()> {
        let node = match self.state.borrow().no_groups {
            false => fs::read_link(device.join("iommu_group"))?.file_name().unwrap().into(),
            true => {
                fs::create_dir_all(device.join("vfio-dev/vfio0"))?;
                fs::write(device.join("vfio-dev/vfio0/dev"), "511:0\n")?;
                PathBuf::from("devices/vfio0")
            }
        };
        let node = self.root.join("dev/vfio").join(node);
        fs::create_dir_all(node.parent().unwrap())?;
        fs::write(node, "")
    }
}

impl Kernel for Made {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let name = path.file_name().unwrap().to_str().unwrap();
        let devices = self.root.join("sys/bus/pci/devices");
        match name {
            "driver_override" => fs::write(path, text.trim())?,
            // With somebody else on the bus the kernel does not know that way any more.
            "reset_method" if self.state.borrow().shares_bus => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            "reset_method" => fs::write(path, format!("{text}\n"))?,
            "unbind" => fs::remove_file(devices.join(text).join("driver"))?,
            "drivers_probe" => {
                let device = devices.join(text);
                let wanted = fs::read_to_string(device.join("driver_override")).unwrap_or_default();
                let state = self.state.borrow();
                let own = state.made_for.iter().find(|(address, _)| address == text);
                let driver = match wanted.as_str() {
                    "" => own.map(|(_, driver)| driver.clone()),
                    wanted => Some(wanted.to_owned()),
                };
                if let Some(driver) = driver.filter(|driver| !state.unwilling.contains(driver)) {
                    symlink(format!("../../drivers/{driver}"), device.join("driver"))?;
                    if driver == "vfio-pci" {
                        self.make_node(&device)?;
                    }
                }
            }
            other => return Err(io::Error::other(other.to_owned())),
        }
        Ok(())
    }

    fn has_address(&self, interface: &str) -> bool {
        self.state.borrow().addresses.iter().any(|name| name == interface)
    }

    fn is_open(&self, node: &Path) -> bool {
        let name = node.file_name().unwrap().to_str().unwrap().to_owned();
        self.state.borrow().open.contains(&name)
    }

    fn is_held(&self, node: &Path) -> bool {
        self.is_open(node)
    }

    fn is_claimed(&self, node: &Path) -> bool {
        let node = node.strip_prefix(&self.root).unwrap().to_str().unwrap().to_owned();
        self.state.borrow().claimed.contains(&node)
    }

    fn load(&self, module: &str) -> io::Result<()> {
        fs::create_dir_all(self.root.join("sys/bus/pci/drivers").join(module))
    }
}

struct World {
    root: PathBuf,
    state: Rc<RefCell<State>>,
    host: Host,
}

impl World {
    /// A NIC in a group of its own; a disk controller, an SMBus and the ISA bridge in one; an NVMe drive.
    fn new(test: &str) -> Self {
        let root = std::env::temp_dir().join(format!("bulkhead-pci-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let state = Rc::new(RefCell::new(State::default()));
        let kernel = Made { root: root.clone(), state: state.clone() };
        let world = Self { host: Host::new(&root, Box::new(kernel)), state, root };
        world.device(NIC, 0x02_0000, 3, "e1000e");
        world.device(ISA, 0x06_0100, 9, "lpc_ich");
        world.device(SATA, 0x01_0601, 9, "ahci");
        world.device(SMBUS, 0x0c_0500, 9, "i801_smbus");
        world.device(NVME, 0x01_0802, 4, "nvme");
        fs::remove_file(world.sys(ISA, "driver")).unwrap();
        world
    }

    fn sys(&self, address: &str, file: &str) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address).join(file)
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn device(&self, address: &str, class: u32, group: u32, driver: &str) {
        let at = format!("sys/devices/pci0000:00/{address}");
        let mut config = vec![0; 256];
        (config[0x06], config[0x34], config[0x40]) = (0x10, 0x40, 0x05);
        for (name, text) in [
            ("class", format!("{class:#08x}\n")),
            ("vendor", "0x8086\n".into()),
            ("device", "0x10d3\n".into()),
        ] {
            self.file(&format!("{at}/{name}"), &text);
        }
        self.file(&format!("{at}/reset"), "");
        fs::write(self.root.join(&at).join("config"), config).unwrap();
        let link = |from: String, to: String| {
            let from = self.root.join(from);
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            symlink(to, from).unwrap();
        };
        link(format!("sys/bus/pci/devices/{address}"), format!("../../../devices/pci0000:00/{address}"));
        link(format!("{at}/iommu_group"), format!("../../../kernel/iommu_groups/{group}"));
        link(format!("sys/kernel/iommu_groups/{group}/devices/{address}"), format!("../../../../../{at}"));
        link(format!("{at}/driver"), format!("../../../bus/pci/drivers/{driver}"));
        self.state.borrow_mut().made_for.push((address.to_owned(), driver.to_owned()));
    }

    fn interface(&self, address: &str, name: &str, flags: &str) {
        let at = format!("sys/devices/pci0000:00/{address}/net/{name}");
        self.file(&format!("{at}/flags"), flags);
        fs::create_dir_all(self.root.join("sys/class/net")).unwrap();
        symlink(format!("../../../{at}"), self.root.join("sys/class/net").join(name)).unwrap();
    }

    /// A disk at this place below sys/devices.
    fn disk(&self, at: &str, name: &str, number: &str) {
        self.file(&format!("sys/devices/{at}/{name}/dev"), number);
        fs::create_dir_all(self.root.join("sys/class/block")).unwrap();
        symlink(format!("../../devices/{at}/{name}"), self.root.join("sys/class/block").join(name)).unwrap();
    }

    fn function(&self, address: &str) -> Function {
        Function::find(&self.host, address.parse().unwrap()).unwrap()
    }

    fn problem(&self, address: &str) -> String {
        let found = problem::of(&self.host, &self.function(address));
        found.map_or_else(|| "none".to_owned(), |problem| problem.to_string())
    }

    fn bind(&self, address: &str, group: bool) -> Result<usize, String> {
        let done = bind::bind(&self.host, address.parse().unwrap(), group);
        done.map(|done| done.len()).map_err(|error| error.to_string())
    }

    fn unbind(&self, address: &str, group: bool) -> Result<usize, String> {
        let done = bind::unbind(&self.host, address.parse().unwrap(), group);
        done.map(|done| done.len()).map_err(|error| error.to_string())
    }

    fn driver(&self, address: &str) -> Option<String> {
        self.function(address).driver
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn a_device_goes_and_comes_back() {
    let world = World::new("there-and-back");
    assert_eq!(world.problem(NIC), "none");
    assert_eq!(world.bind(NIC, false), Ok(1));
    assert_eq!(world.driver(NIC).as_deref(), Some("vfio-pci"));
    assert_eq!(world.bind(NIC, false), Ok(0), "it has it already");
    assert_eq!(world.unbind(NIC, false), Ok(1));
    assert_eq!(world.driver(NIC).as_deref(), Some("e1000e"));
    assert_eq!(fs::read_to_string(world.sys(NIC, "driver_override")).unwrap(), "");
    assert_eq!(world.unbind(NIC, false), Ok(0));
}

#[test]
fn a_device_that_is_bound_is_reset_by_its_bus_first() {
    let world = World::new("reset-method");
    let methods = || fs::read_to_string(world.sys(NIC, "reset_method")).unwrap();
    fs::write(world.sys(NIC, "reset_method"), "pm bus\n").unwrap();
    world.bind(NIC, false).unwrap();
    assert_eq!(methods(), "bus pm\n");
    world.unbind(NIC, false).unwrap();
    assert_eq!(methods(), "pm bus\n");
    // Bound by somebody else.
    world.bind(NIC, false).unwrap();
    fs::write(world.sys(NIC, "reset_method"), "pm bus\n").unwrap();
    let why = crate::spec::pci::look_up(&world.host, NIC.parse().unwrap(), false).unwrap_err().0;
    assert!(why.contains("by its power states") && why.contains(&format!("pci bind {NIC}")), "{why}");
    assert!(ls::table(&ls::lines(&world.host, false)).contains("no: it would be reset by its power states"));
    assert_eq!(world.bind(NIC, false), Ok(0));
    assert_eq!(methods(), "bus pm\n");
    crate::spec::pci::look_up(&world.host, NIC.parse().unwrap(), false).unwrap();
    // A driver that does not take it, and an operator's own order.
    world.unbind(NIC, false).unwrap();
    world.state.borrow_mut().unwilling.push("vfio-pci".into());
    world.bind(NIC, false).unwrap_err();
    assert_eq!(methods(), "pm bus\n");
    for other in ["flr\n", "flr pm bus\n"] {
        fs::write(world.sys(NIC, "reset_method"), other).unwrap();
        world.bind(NIC, false).unwrap_err();
        assert_eq!(methods(), other);
    }
}

#[test]
fn a_driver_is_not_disturbed_by_a_reset_that_cannot_be_had() {
    let world = World::new("reset-refused");
    fs::write(world.sys(NIC, "reset_method"), "pm bus\n").unwrap();
    world.state.borrow_mut().shares_bus = true;
    let why = world.bind(NIC, false).unwrap_err();
    assert!(why.contains("cannot write to /sys/bus/pci/devices/0000:03:00.0/reset_method"), "{why}");
    assert_eq!(world.driver(NIC).as_deref(), Some("e1000e"));
    assert!(!world.sys(NIC, "driver_override").exists(), "nothing was begun");
    // It comes back, whatever becomes of the order.
    world.state.borrow_mut().shares_bus = false;
    world.bind(NIC, false).unwrap();
    world.state.borrow_mut().shares_bus = true;
    assert_eq!(world.unbind(NIC, false), Ok(1));
    assert_eq!(world.driver(NIC).as_deref(), Some("e1000e"));
}

#[test]
fn a_device_that_is_not_alone_on_its_bus_has_no_better_reset() {
    let world = World::new("reset-shared");
    world.state.borrow_mut().shares_bus = true;
    for device in [SATA, SMBUS] {
        fs::write(world.sys(device, "reset_method"), "pm bus\n").unwrap();
    }
    assert_eq!(world.bind(SATA, true), Ok(2));
    crate::spec::pci::look_up(&world.host, SATA.parse().unwrap(), false).unwrap();
    fs::write(world.sys(SATA, "reset_method"), "\n").unwrap();
    assert!(world.problem(SATA).contains("cannot be reset"), "all ways are switched off");
}

#[test]
fn a_device_that_somebody_works_with_stays_where_it_is() {
    let world = World::new("in-use");
    world.interface(NIC, "eth0", "0x1003");
    assert_eq!(world.problem(NIC), "none", "up is not in use");
    world.state.borrow_mut().addresses.push("eth0".to_owned());
    let why = world.bind(NIC, false).unwrap_err();
    assert_eq!(
        why,
        "0000:03:00.0 is in use: its interface eth0 is up and has addresses: sudo ip link set eth0 down"
    );
    fs::write(world.root.join("sys/class/net/eth0/flags"), "0x1002").unwrap();
    assert_eq!(world.problem(NIC), "none", "it is down");
    assert_eq!(world.driver(NIC).as_deref(), Some("e1000e"));
}

#[test]
fn an_interface_in_a_bridge_is_in_use_without_an_address() {
    let world = World::new("bridge-port");
    world.interface(NIC, "eth0", "0x1003");
    symlink("../../br0", world.root.join("sys/class/net/eth0/master")).unwrap();
    assert!(world.problem(NIC).contains("part of a bridge"));
}

#[test]
fn a_disk_that_is_mounted_is_found_by_number_or_by_name() {
    let world = World::new("mounted");
    world.disk(&format!("pci0000:00/{NVME}/nvme/nvme0"), "nvme0n1", "259:0");
    world.disk(&format!("pci0000:00/{NVME}/nvme/nvme0/nvme0n1"), "nvme0n1p1", "259:1");
    assert_eq!(world.problem(NVME), "none");
    world.file("proc/self/mountinfo", "25 1 259:1 / /data rw,relatime shared:1 - ext4 /dev/root rw\n");
    assert_eq!(world.problem(NVME), "is in use: its disk /dev/nvme0n1p1 is mounted at /data");
    world.file("proc/self/mountinfo", "25 1 0:42 /sub /x rw shared:1 - btrfs /dev/nvme0n1 rw\n");
    assert!(world.problem(NVME).contains("mounted at /x"));
    world.file("proc/self/mountinfo", "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
    world.file("proc/swaps", "Filename Type Size\n/dev/nvme0n1p1 partition 1\n");
    assert!(world.problem(NVME).contains("swapoff"));
    world.file("proc/swaps", "");
    world.file(&format!("sys/devices/pci0000:00/{NVME}/nvme/nvme0/nvme0n1/nvme0n1p1/holders/dm-0"), "");
    assert!(world.problem(NVME).contains("part of dm-0"));
}

#[test]
fn a_disk_that_somebody_has_claimed_stays_the_hosts() {
    let world = World::new("claimed");
    world.disk(&format!("pci0000:00/{NVME}/nvme/nvme0"), "nvme0n1", "259:0");
    world.disk(&format!("pci0000:00/{NVME}/nvme/nvme0/nvme0n1"), "nvme0n1p9", "259:9");
    world.disk(&format!("pci0000:00/{SATA}/x"), "cciss!c0d0", "104:0");
    world.state.borrow_mut().claimed = vec!["dev/nvme0n1p9".into(), "dev/cciss/c0d0".into()];
    assert_eq!(world.problem(NVME), "none", "nothing is opened to look");
    assert_eq!(
        world.bind(NVME, false).unwrap_err(),
        "0000:04:00.0 is in use: its disk /dev/nvme0n1p9 is somebody's (ZFS, Btrfs, a program): lsof /dev/nvme0n1p9 may say whose"
    );
    assert_eq!(world.driver(NVME).as_deref(), Some("nvme"));
    // Nor is a disk taken away with another device.
    assert!(
        world.bind(SMBUS, true).unwrap_err().starts_with("0000:00:1f.2 is in use: its disk /dev/cciss/c0d0")
    );
    assert_eq!(world.driver(SMBUS).as_deref(), Some("i801_smbus"));
    world.state.borrow_mut().claimed.clear();
    assert_eq!((world.bind(NVME, false), world.bind(SMBUS, true)), (Ok(1), Ok(2)));
}

#[test]
fn interrupts_that_nobody_remaps_are_no_guests() {
    let world = World::new("unsafe-interrupts");
    let parameter = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    let of_iommufd = "sys/module/iommufd/parameters/allow_unsafe_interrupts";
    world.file("proc/interrupts", "  0:  48  IO-APIC  2-edge  timer\n 24:  9  PCI-MSI 1-edge  IRQ-work\n");
    assert_eq!(world.problem(NIC), "none", "VFIO minds");
    world.bind(NIC, false).unwrap();
    world.file(parameter, "Y\n");
    for later in [false, true] {
        let refusal = crate::spec::pci::look_up(&world.host, NIC.parse().unwrap(), later).unwrap_err();
        assert!(refusal.0.contains("could raise any interrupt of the host"), "{refusal:?}");
    }
    assert!(world.bind(NVME, false).unwrap_err().contains("allow_unsafe_interrupts"));
    let table = ls::table(&ls::lines(&world.host, false));
    assert!(table.contains("no: it could raise any interrupt of the host"), "{table}");
    world.file(parameter, "N\n");
    assert_eq!(world.problem(NIC), "none");
    world.file(of_iommufd, "Y\n");
    assert!(world.problem(NIC).contains("could raise any interrupt of the host"), "by an iommufd");
    world.file(of_iommufd, "N\n");
    world.file(parameter, "Y\n");
    world.file("proc/interrupts", "  0:  48  IR-IO-APIC  2-edge  timer\n");
    assert_eq!(world.problem(NIC), "none", "they are remapped all the same");
}

#[test]
fn a_drive_with_several_paths_is_found_by_its_subsystem() {
    let world = World::new("subsystem");
    world.file(&format!("sys/devices/pci0000:00/{NVME}/nvme/nvme0/model"), "x");
    world.disk("virtual/nvme-subsystem/nvme-subsys0", "nvme0n1", "259:0");
    let link = world.root.join("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0");
    symlink(format!("../../../pci0000:00/{NVME}/nvme/nvme0"), link).unwrap();
    world.file("proc/self/mountinfo", "25 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n");
    assert!(world.problem(NVME).contains("mounted at /data"));
    assert_eq!(world.problem(NIC), "none");
}

#[test]
fn a_group_goes_as_a_whole_or_not_at_all() {
    let world = World::new("group");
    let why = world.bind(SATA, false).unwrap_err();
    assert!(why.contains("can only go together with 0000:00:1f.3 of its group 9"), "{why}");
    assert!(why.contains("pci bind --group 0000:00:1f.2"), "{why}");
    assert_eq!(world.bind(SATA, true), Ok(2));
    assert_eq!(world.driver(SMBUS).as_deref(), Some("vfio-pci"));
    assert_eq!(world.driver(ISA), None, "a bridge without a driver does no harm");
    assert_eq!(world.problem(SATA), "none");
    assert_eq!(world.unbind(SATA, true), Ok(2));
    assert_eq!(world.driver(SMBUS).as_deref(), Some("i801_smbus"));
}

#[test]
fn a_neighbour_that_is_in_use_keeps_all_of_its_group() {
    let world = World::new("neighbour");
    world.disk(&format!("pci0000:00/{SATA}/ata1"), "sda", "8:0");
    world.file("proc/self/mountinfo", "25 1 8:0 / / rw - ext4 /dev/sda rw\n");
    let why = world.bind(SMBUS, true).unwrap_err();
    assert!(
        why.contains("together with 0000:00:1f.2 of its group 9, which is in use: its disk /dev/sda"),
        "{why}"
    );
    assert_eq!(world.driver(SMBUS).as_deref(), Some("i801_smbus"));
}

#[test]
fn what_cannot_be_confined_or_cleaned_is_refused_with_the_reason() {
    let world = World::new("refused");
    let refused = |address: &str, why: &str| {
        let found = world.bind(address, true).unwrap_err();
        assert!(found.contains(why), "{found}");
    };
    refused(ISA, "is a bridge");
    fs::remove_file(world.sys(NVME, "reset")).unwrap();
    refused(NVME, "cannot be reset");
    fs::write(world.sys(SMBUS, "config"), [0; 256]).unwrap();
    refused(SMBUS, "neither MSI nor MSI-X");
    world.file("sys/kernel/iommu_groups/3/name", "vfio-noiommu\n");
    refused(NIC, "no-IOMMU mode");
    fs::remove_file(world.sys(NIC, "iommu_group")).unwrap();
    refused(NIC, "no IOMMU is responsible for it");
    fs::remove_dir_all(world.root.join("sys/kernel/iommu_groups")).unwrap();
    refused(NIC, "intel_iommu=on");
    refused("0000:77:00.0", "is not there");
}

#[test]
fn what_a_vm_has_is_not_taken_away() {
    let world = World::new("assigned");
    world.bind(NIC, false).unwrap();
    world.state.borrow_mut().open.push("3".to_owned());
    let why = world.unbind(NIC, false).unwrap_err();
    assert!(why.contains("a VM has it"), "{why}");
    assert_eq!(world.driver(NIC).as_deref(), Some("vfio-pci"));
}

#[test]
fn nor_is_it_where_there_are_no_groups() {
    let world = World::new("own-node");
    world.state.borrow_mut().no_groups = true;
    world.bind(NIC, false).unwrap();
    assert_eq!(world.function(NIC).own_node(&world.host), Some("dev/vfio/devices/vfio0".into()));
    world.state.borrow_mut().open.push("vfio0".to_owned());
    let why = world.unbind(NIC, false).unwrap_err();
    assert!(why.contains("a VM has it"), "{why}");
    world.state.borrow_mut().open.clear();
    assert_eq!(world.unbind(NIC, false), Ok(1));
}

#[test]
fn what_fails_half_way_is_undone() {
    let world = World::new("half");
    world.state.borrow_mut().unwilling.push("vfio-pci".to_owned());
    let why = world.bind(SATA, true).unwrap_err();
    assert!(why.contains("has not given it to vfio-pci (it has no driver)"), "{why}");
    assert_eq!(world.driver(SATA).as_deref(), Some("ahci"));
    assert_eq!(world.driver(SMBUS).as_deref(), Some("i801_smbus"));
}

#[test]
fn a_table_says_what_stands_in_the_way() {
    let world = World::new("table");
    world.bind(NIC, false).unwrap();
    let lines = ls::lines(&world.host, false);
    let table = ls::table(&lines);
    let line = |address: &str| table.lines().find(|line| line.starts_with(address)).unwrap().to_owned();
    assert_eq!(table.lines().count(), 6);
    assert!(table.starts_with("ADDRESS       CLASS "), "{table}");
    assert!(line(NIC).ends_with("vfio-pci    yes, it is bound"), "{table}");
    assert!(line(ISA).ends_with("no: it is a bridge: what is behind it can be passed through, it cannot"));
    assert!(line(SATA).contains("9 (+2)"));
    let free = ls::lines(&world.host, true);
    let addresses: Vec<Address> = free.iter().map(|line| line.function.address).collect();
    assert_eq!(addresses, [SATA, SMBUS, NIC, NVME].map(|text| text.parse().unwrap()));
    let documents = ls::documents(&lines);
    assert_eq!(documents[3]["bound"], true);
    assert_eq!(documents[1]["assignable"], false);
}

#[test]
fn a_spec_can_name_what_is_bound_and_is_told_how_to_get_there() {
    let world = World::new("spec");
    let look_up = |address: &str, later| {
        crate::spec::pci::look_up(&world.host, address.parse().unwrap(), later)
            .map_err(|(message, fix)| format!("{message}; {fix}"))
    };
    let told = look_up(NIC, false).unwrap_err();
    assert_eq!(
        told,
        "0000:03:00.0 is the host's (driver e1000e); take it from the host: sudo bulkhead pci bind 0000:03:00.0"
    );
    assert_eq!(look_up(NIC, true), Ok(3), "units are written before");
    world.bind(NIC, false).unwrap();
    assert_eq!(look_up(NIC, false), Ok(3));
    assert!(look_up(SATA, false).unwrap_err().contains("pci bind --group"));
    assert!(look_up(ISA, true).unwrap_err().contains("is a bridge"));
    assert!(
        look_up("0000:77:00.0", true)
            .unwrap_err()
            .starts_with("there is no PCI device 0000:77:00.0; bulkhead pci ls")
    );
    world.state.borrow_mut().open.push("3".to_owned());
    assert!(look_up(NIC, false).unwrap_err().contains("a VM has it"));
    assert_eq!(look_up(NIC, true), Ok(3), "the VM itself, perhaps");
}
