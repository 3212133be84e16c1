//! A machine to try, as the `vm.toml` that a user would write.

use std::fmt::Write as _;

use crate::images::HostKernel;
use crate::job::Card;

/// Which guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Debian 12, cloud kernel 6.1.
    Bookworm,
    /// Debian 13, generic kernel 6.12.
    Trixie,
    /// An initramfs with the bus driver only.
    Probe,
    /// An initramfs that says that it is there.
    Tiny,
}

/// In which form its kernel is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// As distributions ship it.
    BzImage,
    /// ELF with a PVH note.
    Elf,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Which guest.
    pub guest: Guest,
    /// Which kernel image.
    pub kernel: Kernel,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Added to the guest's kernel command line.
    pub arguments: &'static str,
    /// A script that the guest runs instead of a job from its image.
    pub job: &'static str,
    /// A second process stands by for the controller.
    pub spare: bool,
    /// More disks on the same controller, each with a line of its own options.
    pub disks: &'static [&'static str],
    /// NICs nic0, nic1 and so on, each with a line of its own options.
    pub nics: &'static [&'static str],
    /// A screen, a keyboard and a mouse.
    pub screen: bool,
    /// Cards in the lab host's slots.
    pub cards: &'static [Card],
    /// Those that are the guest's, by name; the script puts their addresses in the place of `@NAME@`.
    pub passed: &'static [&'static str],
    /// The lab host's kernel.
    pub host: HostKernel,
}

/// The root file system's label in the guests' images.
pub const ROOT_LABEL: &str = "guest";

/// The disk of a script that does not fit on a command line, in `/job`.
pub const JOB_DISK: &str = "guest-job.img";
const JOB_DISK_BLOCK: usize = 512;
/// Longest script for a command line: x86 takes 2,047 bytes, base64 adds a third, and there is more on it.
const LONGEST_JOB: usize = 1024;
/// What the guest runs instead of a longer one.
const RUN_JOB_DISK: &str = "cp /dev/$(ls /sys/bus/scsi/devices/0:0:0:63/block) /run/job; exec bash /run/job";

impl Spec {
    /// A machine with 2 vCPUs and 1 GiB that runs a job of the guest image (see `recipes/guest.sh`).
    pub const fn new(guest: Guest, arguments: &'static str) -> Self {
        Self {
            guest,
            kernel: Kernel::BzImage,
            vcpus: 2,
            memory: 1024,
            arguments,
            job: "",
            spare: false,
            disks: &[],
            nics: &[],
            screen: false,
            cards: &[],
            passed: &[],
            host: HostKernel::Debian,
        }
    }

    /// The specification with the lab's paths.
    pub fn to_toml(&self) -> String {
        let (directory, initrd, disk) = match self.guest {
            Guest::Bookworm => ("bookworm", "bookworm/initrd.img", Some("/dev/vdc")),
            Guest::Trixie => ("trixie", "trixie/initrd.img", Some("/dev/vdd")),
            Guest::Probe => ("bookworm", "probe.cpio", Some("/dev/vdc")),
            Guest::Tiny => ("bookworm", "tiny.cpio", None),
        };
        let kernel = match self.kernel {
            Kernel::BzImage => "vmlinuz",
            Kernel::Elf => "vmlinux",
        };
        self.with_paths(&format!("/job/{directory}/{kernel}"), &format!("/job/{initrd}"), disk)
    }

    /// The guest's script, if it is too long for a kernel's command line: the contents of [`JOB_DISK`].
    pub fn long_job(&self) -> Option<Vec<u8>> {
        let mut script = without_comments(self.job).into_bytes();
        // A disk has whole blocks.
        script.resize(script.len().next_multiple_of(JOB_DISK_BLOCK), b'\n');
        (script.len() > LONGEST_JOB).then_some(script)
    }

    /// The specification with these paths.
    pub fn with_paths(&self, kernel: &str, initrd: &str, disk: Option<&str>) -> String {
        // Linux names disks in the order in which it happens to finish probing them.
        let root = match (disk, self.disks) {
            (None, _) => String::new(),
            (Some(_), []) if self.long_job().is_none() => "root=/dev/sda rw ".to_owned(),
            (Some(_), _) => format!("root=LABEL={ROOT_LABEL} rw "),
        };
        let job = match self.job {
            "" => String::new(),
            _ if self.long_job().is_some() => format!(" bulkhead.run={}", base64(RUN_JOB_DISK.as_bytes())),
            script => format!(" bulkhead.run={}", base64(without_comments(script).as_bytes())),
        };
        let mut toml = format!(
            "name = \"lab\"\n[machine]\nvcpus = {}\nmemory = \"{}MiB\"\n[boot]\nkernel = \"{kernel}\"\n\
             initrd = \"{initrd}\"\ncmdline = \"{root}console=ttyS0 quiet mitigations=off {}{job}\"\n\
             [console]\nmode = \"terminal\"\n",
            self.vcpus, self.memory, self.arguments
        );
        if let Some(disk) = disk {
            toml += "[[storage]]\nname = \"disk0\"\n";
            if self.spare {
                toml += "spare = true\n";
            }
            let _ = writeln!(toml, "[[storage.disk]]\npath = \"{disk}\"");
            for options in self.disks {
                let _ = writeln!(toml, "[[storage.disk]]\n{options}");
            }
            if self.long_job().is_some() {
                let _ =
                    writeln!(toml, "[[storage.disk]]\npath = \"/job/{JOB_DISK}\"\nreadonly = true\nlun = 63");
            }
        }
        if self.screen {
            let _ = writeln!(toml, "[screen]\nweb = \"127.0.0.1:{}\"", crate::job::WEB_PORT);
        }
        for (number, options) in self.nics.iter().enumerate() {
            let _ = writeln!(toml, "[[net]]\nname = \"nic{number}\"\n{options}");
        }
        for name in self.passed {
            let _ = writeln!(toml, "[[pci]]\nname = \"{name}\"\naddress = \"@{name}@\"");
        }
        toml
    }
}

/// The script without lines that are comments: a kernel takes 2,047 bytes of command line.
fn without_comments(script: &str) -> String {
    script.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line.trim_start(), "\n"]).collect()
}

/// Standard base64, so that a script becomes one word.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit <= chunk.len() {
                text.push(char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_too_long_for_a_command_line_comes_on_a_disk() {
        let short = Spec { job: "# What for.\n  true\n", ..Spec::new(Guest::Bookworm, "") };
        assert!(short.long_job().is_none() && short.to_toml().contains(&base64(b"true\n")));
        assert!(!short.to_toml().contains(JOB_DISK));
        const LONG: &str = include_str!("../../recipes/guest-scripts/sg3-utils");
        let long = Spec { job: LONG, ..short };
        let disk = long.long_job().unwrap_or_default();
        assert!(disk.len() > 2000 && disk.len().is_multiple_of(512) && disk.ends_with(b"\n"));
        let toml = long.to_toml();
        assert!(toml.contains(JOB_DISK) && toml.contains(&base64(RUN_JOB_DISK.as_bytes())));
        let command_line = toml.lines().find(|line| line.starts_with("cmdline")).unwrap_or_default();
        assert!(command_line.len() < 2047 && command_line.contains("root=LABEL="));
    }

    #[test]
    fn nics_come_after_all_disks() {
        let spec = Spec { nics: &["tap = \"tap0\"", "mtu = 9000"], ..Spec::new(Guest::Bookworm, "") };
        let nics = "[[net]]\nname = \"nic0\"\ntap = \"tap0\"\n[[net]]\nname = \"nic1\"\nmtu = 9000\n";
        assert!(spec.to_toml().ends_with(nics));
    }

    #[test]
    fn base64_pads_every_length() {
        let encoded: Vec<String> = [&b""[..], b"f", b"fo", b"foo", b"foob"].map(base64).into();
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}
