//! The disk images and kernels of the lab: the lab host, stock Debian guests, and two tiny initramfs.
//!
//! Everything comes from Debian's archive, through the mirrors that this machine's apt uses, but for another kernel that the lab host can have, which is
//! Ubuntu's; nothing of a guest's kernel is ours. Needs root only if the machine does not allow user namespaces.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::{apt, cache, guest_kernel, sh};

/// Size of every guest disk; all have the same, because the frozen lab host has seen that size.
pub const GUEST_DISK: &str = "2G";
const HOST_DISK: &str = "4G";

/// An initrd with all of Debian's drivers, packed so that an emulated processor has less to do.
const INITRD_RECIPE: &str = "mkdir -p \"$1/etc/initramfs-tools/conf.d\" && \
    echo COMPRESS=lz4 > \"$1/etc/initramfs-tools/conf.d/bulkhead\"";
const HOST_RECIPE: &str = include_str!("../recipes/host.sh");
const GUEST_RECIPE: &str = include_str!("../recipes/guest.sh");
const TINY_INIT: &str = include_str!("../recipes/tiny-init");
const PROBE_INIT: &str = include_str!("../recipes/probe-init");
const JOBS: [(&str, &str); 8] = [
    ("info", include_str!("../recipes/guest-jobs/info")),
    ("demo", include_str!("../recipes/guest-jobs/demo")),
    ("fio", include_str!("../recipes/guest-jobs/fio")),
    ("reboots", include_str!("../recipes/guest-jobs/reboots")),
    ("kexec", include_str!("../recipes/guest-jobs/kexec")),
    ("crash", include_str!("../recipes/guest-jobs/crash")),
    ("memory", include_str!("../recipes/guest-jobs/memory")),
    ("reads", include_str!("../recipes/guest-jobs/reads")),
];

const HOST_PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,util-linux,psmisc,socat,strace,jq,\
    e2fsprogs,busybox-static,initramfs-tools,lz4,libcap2-bin,qemu-system-x86,qemu-utils,linux-image-cloud-amd64,\
    passt,iperf3,ethtool,dnsmasq-base,openssh-server";
const GUEST_PACKAGES: &str = "systemd,systemd-sysv,udev,kmod,fio,e2fsprogs,xfsprogs,util-linux,procps,kexec-tools,initramfs-tools,lz4,\
    sg3-utils,libiscsi-bin,lsscsi,iproute2,iputils-ping,iperf3,ethtool,udhcpc,openssh-client,evtest,fbset,libdrm-tests";

/// A kernel with iommufd, and its modules: addresses and checksums (SHA-256).
const UBUNTU_KERNEL: [(&str, &str); 2] = [
    (
        "http://archive.ubuntu.com/ubuntu/pool/main/l/linux/linux-image-unsigned-6.8.0-31-generic_6.8.0-31.31_amd64.deb",
        "35115ceb5ddc1e73034a73d6b064b9c6d38c534f20279fd7229c510515b931d8",
    ),
    (
        "http://archive.ubuntu.com/ubuntu/pool/main/l/linux/linux-modules-6.8.0-31-generic_6.8.0-31.31_amd64.deb",
        "3f17f2c279257eb50e40da44390bdf8272c440ca078831c348773d1314b5c2fe",
    ),
];
const UBUNTU_VERSION: &str = "6.8.0-31-generic";

/// Which guests a task wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// Debian 12 with its cloud kernel (6.1).
    Bookworm,
    /// And Debian 13 with its generic kernel (6.12).
    Trixie,
}

/// Which kernel the lab host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum HostKernel {
    /// Debian 12's for clouds (6.1): VFIO by groups and containers.
    #[default]
    Debian,
    /// Ubuntu 24.04's first (6.8): iommufd, and a node for each function, as well. No kernel of Debian's has these.
    Ubuntu,
}

/// Directories of what has been made.
#[derive(Debug)]
pub struct Images {
    /// `root.qcow2`, `vmlinuz`, `initrd.img`, `busybox`.
    pub host: PathBuf,
    /// Whose kernel that is.
    pub host_kernel: HostKernel,
    /// `root.img` (raw ext4), `vmlinuz`, `initrd.img`, `vmlinux` (ELF with a PVH note), `packages.txt`.
    pub bookworm: PathBuf,
    /// The same of Debian 13.
    pub trixie: Option<PathBuf>,
    /// `tiny.cpio` and `probe.cpio`.
    pub tiny: PathBuf,
}

impl Images {
    /// Makes what is not in the cache yet.
    pub fn ready(with: With, kernel: HostKernel) -> Result<Self> {
        let mut packages = vec![
            "qemu-system-x86",
            "qemu-utils",
            "mmdebstrap",
            "debian-archive-keyring",
            "e2fsprogs",
            "lz4",
            "zstd",
            "xz-utils",
            "tar",
        ];
        if !apt::is_root() {
            packages.extend(["fakeroot", "uidmap"]);
        }
        apt::ensure(&packages)?;
        let host = host(kernel)?;
        let bookworm = guest("bookworm", "linux-image-cloud-amd64")?;
        let trixie = match with {
            With::Bookworm => None,
            With::Trixie => Some(guest("trixie", "linux-image-amd64")?),
        };
        let tiny = tiny(&host, &bookworm)?;
        Ok(Self { host, host_kernel: kernel, bookworm, trixie, tiny })
    }
}

impl fmt::Display for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lab host:         {}", self.host.display())?;
        writeln!(f, "Debian 12 guest:  {}", self.bookworm.display())?;
        if let Some(trixie) = &self.trixie {
            writeln!(f, "Debian 13 guest:  {}", trixie.display())?;
        }
        write!(f, "tiny initramfs:   {}", self.tiny.display())
    }
}

fn host(kernel: HostKernel) -> Result<PathBuf> {
    let mut parts = vec!["host 1", "bookworm", HOST_PACKAGES, INITRD_RECIPE, HOST_RECIPE, HOST_DISK];
    let name = match kernel {
        HostKernel::Debian => "host",
        HostKernel::Ubuntu => {
            parts.extend(UBUNTU_KERNEL.iter().flat_map(|(url, sha256)| [*url, *sha256]));
            "host-ubuntu"
        }
    };
    cache::entry(name, &cache::key(parts), |directory| {
        sh::step("making the lab host's image (about a minute)", || {
            let mut recipe = HOST_RECIPE.to_owned();
            if kernel == HostKernel::Ubuntu {
                recipe += &ubuntu_kernel(directory)?;
            }
            let root = debootstrap(directory, "bookworm", HOST_PACKAGES, &recipe)?;
            boot_files(&root, directory)?;
            if kernel == HostKernel::Ubuntu {
                boot_ubuntu(&root, directory)?;
            }
            fs::copy(root.join("bin/busybox"), directory.join("busybox")).context("busybox")?;
            let raw = file_system(directory, &root, "lab", HOST_DISK)?;
            sh::run(
                Command::new("qemu-img")
                    .args(["convert", "-O", "qcow2"])
                    .arg(&raw)
                    .arg(directory.join("root.qcow2")),
            )?;
            fs::remove_file(raw)?;
            Ok(())
        })
    })
}

/// What puts Ubuntu's kernel beside Debian's, as a recipe.
fn ubuntu_kernel(directory: &Path) -> Result<String> {
    let mut recipe = String::new();
    for (url, sha256) in UBUNTU_KERNEL {
        let package = apt::fetch(url, sha256, directory)?;
        // /lib is a link here, and a directory in the package.
        let package = sh::quote(&package);
        recipe +=
            &format!("dpkg-deb --fsys-tarfile {package} | tar -x -C \"$root\" --keep-directory-symlink\n");
    }
    Ok(recipe + &format!("chroot \"$root\" depmod {UBUNTU_VERSION}\n"))
}

/// Has the lab host boot with it. What it needs to have its root file system is built in.
fn boot_ubuntu(root: &Path, directory: &Path) -> Result<()> {
    let kernel = root.join("boot").join(format!("vmlinuz-{UBUNTU_VERSION}"));
    fs::copy(kernel, directory.join("vmlinuz")).context("no kernel in Ubuntu's package")?;
    fs::write(directory.join("initrd.img"), Archive::new().finish())?;
    for (url, _) in UBUNTU_KERNEL {
        fs::remove_file(directory.join(apt::name(url)))?;
    }
    Ok(())
}

fn guest(suite: &str, kernel: &str) -> Result<PathBuf> {
    let mut recipe = GUEST_RECIPE.to_owned();
    recipe += "mkdir -p \"$root/usr/lib/bulkhead/jobs\"\n";
    for (name, text) in JOBS {
        recipe += &format!("cat > \"$root/usr/lib/bulkhead/jobs/{name}\" <<'JOB_ENDS'\n{text}JOB_ENDS\n");
    }
    let packages = format!("{GUEST_PACKAGES},{kernel}");
    let key = cache::key(["guest 1", suite, &packages, INITRD_RECIPE, &recipe, GUEST_DISK]);
    let name = format!("guest-{suite}");
    cache::entry(&name, &key, |directory| {
        sh::step(&format!("making the {suite} guest's image (about a minute)"), || {
            let root = debootstrap(directory, suite, &packages, &recipe)?;
            boot_files(&root, directory)?;
            guest_kernel::extract(&directory.join("vmlinuz"), &directory.join("vmlinux"))?;
            if let Some(module) = find(&root.join("usr/lib/modules"), "hv_vmbus.ko") {
                fs::copy(module, directory.join("hv_vmbus.ko"))?;
            }
            file_system(directory, &root, "guest", GUEST_DISK).map(drop)
        })
    })
}

fn tiny(host: &Path, bookworm: &Path) -> Result<PathBuf> {
    let made_from = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let key = cache::key(["tiny 1", TINY_INIT, PROBE_INIT, &made_from(host), &made_from(bookworm)]);
    cache::entry("tiny", &key, |directory| {
        let busybox = fs::read(host.join("busybox"))?;
        let archive = |init: &str| {
            let mut archive = Archive::new();
            for path in ["bin", "dev", "proc", "sys"] {
                archive.directory(path);
            }
            archive.device("dev/console", 5, 1);
            archive.device("dev/null", 1, 3);
            archive.file("bin/busybox", &busybox);
            archive.file("init", init.as_bytes());
            archive
        };
        fs::write(directory.join("tiny.cpio"), archive(TINY_INIT).finish())?;
        let mut probe = archive(PROBE_INIT);
        probe.file("hv_vmbus.ko", &fs::read(bookworm.join("hv_vmbus.ko"))?);
        fs::write(directory.join("probe.cpio"), probe.finish())?;
        Ok(())
    })
}

/// A Debian root directory under `directory`; `recipe` is a shell script that gets it as `$1`.
fn debootstrap(directory: &Path, suite: &str, packages: &str, recipe: &str) -> Result<PathBuf> {
    let root = directory.join("root");
    let target = if apt::is_root() { root.clone() } else { directory.join("root.tar") };
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--quiet", &format!("--include={packages}")]);
    for option in apt::proxy_options() {
        command.arg(format!("--aptopt={option}"));
    }
    command.arg(format!("--essential-hook={INITRD_RECIPE}"));
    command.arg(format!("--customize-hook={recipe}")).arg(suite).arg(&target);
    command.args(apt::sources(suite));
    sh::run(&mut command)?;
    if target != root {
        fs::create_dir(&root)?;
        // Device nodes cannot be made here, and nothing needs them: devtmpfs has its own.
        sh::run(
            Command::new("tar").arg("-xf").arg(&target).arg("-C").arg(&root).args(["--exclude=./dev/*"]),
        )?;
    }
    Ok(root)
}

/// Copies the kernel, its initrd and the list of packages out of `root`.
fn boot_files(root: &Path, directory: &Path) -> Result<()> {
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let file = fs::read_dir(root.join("boot"))?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .with_context(|| format!("no {prefix}* in /boot"))?;
        fs::copy(file.path(), directory.join(name))?;
    }
    let packages =
        sh::output(
            Command::new("dpkg-query")
                .arg(format!("--admindir={}", root.join("var/lib/dpkg").display()))
                .args(["-W", "-f", "${Package} ${Version}\\n"]),
        )?;
    fs::write(directory.join("packages.txt"), packages)?;
    Ok(())
}

/// Turns `root` into a raw ext4 image and removes it.
fn file_system(directory: &Path, root: &Path, label: &str, size: &str) -> Result<PathBuf> {
    let image = directory.join("root.img");
    let tar = directory.join("root.tar");
    let make = format!(
        "PATH=$PATH:/usr/sbin:/sbin; mkfs.ext4 -q -F -L {label} -m 0 -E lazy_itable_init=0 -d {} {} {size}",
        sh::quote(root),
        sh::quote(&image)
    );
    if tar.exists() {
        // Ownership is only remembered inside one fakeroot: unpack again there.
        let unpack = format!("tar -xf {} -C {}", sh::quote(&tar), sh::quote(root));
        fs::remove_dir_all(root)?;
        fs::create_dir(root)?;
        sh::run(Command::new("fakeroot").args(["sh", "-ec", &format!("{unpack}; {make}")]))?;
        fs::remove_file(&tar)?;
    } else {
        sh::run(Command::new("sh").args(["-ec", &make]))?;
    }
    fs::remove_dir_all(root)?;
    Ok(image)
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        if entry.file_type().ok()?.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(path);
        }
    }
    None
}
