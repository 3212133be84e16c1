//! `vm.toml`: what a VM is, as a person writes it, into typed values.
//!
//! [`load`] reports every mistake at once, each with its place and its remedy. It must never start, lock or change
//! anything: a spec can be checked while its VM runs elsewhere.

pub mod diagnostic;
mod disk;
mod files;
mod kernel;
pub mod net;
pub mod pci;
mod reader;
pub mod screen;
pub mod size;
mod storage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub use self::disk::{Cache, Options};
pub use self::kernel::KernelKind;
pub use self::net::Net;
pub use self::pci::Pci;
pub use self::reader::Located;
pub use self::screen::Screen;

use self::diagnostic::Report;
use self::reader::{Section, Shape};
use self::size::{Bytes, MIB};
use crate::pci::Host;

/// Virtual processors that a VM may have.
pub const VCPUS: std::ops::RangeInclusive<u64> = 1..=64;
/// The least memory that a stock kernel, its initrd and a shell fit into.
pub const LEAST_MEMORY: u64 = 64 * MIB;
/// Guest memory comes in pieces of this size, so that huge pages can back it.
pub const MEMORY_STEP: u64 = 2 * MIB;
/// LUNs of one controller: what Hyper-V's synthetic SCSI controller offers.
pub const LUNS: std::ops::RangeInclusive<u64> = 0..=63;
/// Devices of one VM: with the core they share a block of 256 user ids.
pub const MOST_DEVICES: usize = 255;
/// Longest kernel command line of x86 (`COMMAND_LINE_SIZE` less the final zero).
pub const LONGEST_CMDLINE: usize = 2047;
/// Longest name of a VM or a device: it becomes part of host names, paths and unit names.
const LONGEST_NAME: usize = 63;
/// Longest path of a unix socket, without the final zero (`sockaddr_un`).
const LONGEST_SOCKET_PATH: usize = 107;

const TOP: Shape = Shape {
    title: "the top of the file",
    keys: &["name", "machine", "boot", "console", "on", "screen", "storage", "net", "pci"],
};
const MACHINE: Shape = Shape { title: "[machine]", keys: &["vcpus", "memory", "hugepages", "prefault"] };
const BOOT: Shape = Shape { title: "[boot]", keys: &["kernel", "initrd", "cmdline"] };
const CONSOLE: Shape = Shape { title: "[console]", keys: &["mode", "path"] };
const ON: Shape = Shape { title: "[on]", keys: &["crash"] };
/// Where a key that is out of place may belong.
const HOMES: [&Shape; 8] =
    [&MACHINE, &BOOT, &CONSOLE, &ON, &screen::SCREEN, &storage::DISK, &net::NET, &pci::PCI];

/// A VM, checked.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name, `[a-z0-9-]`.
    pub name: String,
    /// Processors and memory.
    pub machine: Machine,
    /// What it boots.
    pub boot: Boot,
    /// Where its serial console goes.
    pub console: Console,
    /// What becomes of it when its kernel crashes.
    pub on_crash: OnCrash,
    /// Its SCSI controllers, each a process.
    pub storage: Vec<Storage>,
    /// Its NICs, each a process.
    pub net: Vec<Net>,
    /// Devices of the host that are its own, each served by a process.
    pub pci: Vec<Pci>,
    /// Its screen, keyboard and mouse, each a process, and what shows them to people.
    pub screen: Option<Screen>,
}

/// Processors and memory.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Back the memory with 2 MiB pages.
    pub hugepages: bool,
    /// Touch all memory before the guest starts.
    pub prefault: bool,
}

/// What a VM boots.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel; absolute.
    pub kernel: PathBuf,
    /// What the kernel's file is.
    pub kernel_kind: KernelKind,
    /// The initial RAM disk; absolute.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Where the serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// The terminal (or whatever standard input and output are) of `bulkhead run`.
    Terminal,
    /// A unix stream socket at this absolute path.
    Socket(PathBuf),
}

/// What becomes of a VM whose kernel has crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    /// It ends, with exit code 3.
    Exit,
    /// It goes on, so that its own kdump can run.
    Continue,
}

/// One SCSI controller.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Its name, `[a-z0-9-]`.
    pub name: String,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// A second process stands by to take over.
    pub spare: bool,
}

/// One disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image or block device; absolute.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The guest cannot write to it.
    pub readonly: bool,
    /// Its logical unit number.
    pub lun: u8,
    /// How it is used.
    pub options: Options,
}

/// What the host has, as far as a spec depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostLimits {
    /// Memory in bytes, if a VM may not have more than that.
    pub memory: Option<u64>,
    /// The disks may be in use: the VM perhaps runs already, and nothing is about to be started.
    pub disks_in_use: bool,
}

/// Reads and checks the spec at `path`, the files it names included. The report holds every mistake; there is a spec
/// if none of them is an error.
pub fn load(path: &Path, host: HostLimits) -> (Option<Spec>, Report) {
    let source = match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(source)) => source,
        Ok(Err(_)) => {
            let mut report = Report::new(path, "");
            report.error(None, "this file is not text", "save it as UTF-8");
            return (None, report);
        }
        Err(error) => {
            let mut report = Report::new(path, "");
            let fix = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "check the path; `bulkhead check --help` shows an example spec"
                }
                std::io::ErrorKind::PermissionDenied => "give yourself the right to read it",
                _ => "name a readable TOML file",
            };
            report.error(None, format!("cannot read this file: {}", reason(&error)), fix);
            return (None, report);
        }
    };
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    parse(path, &source, &directory, host)
}

/// Checks the text of a spec; paths in it are relative to `directory`.
pub fn parse(path: &Path, source: &str, directory: &Path, host: HostLimits) -> (Option<Spec>, Report) {
    let mut report = Report::new(path, source);
    let (document, mistakes) = DeTable::parse_recoverable(source);
    for mistake in &mistakes {
        let message = format!("this is not TOML: {}", mistake.message().replace('\n', ", "));
        report.error(mistake.span(), message, "see https://toml.io for how to write it");
    }
    if !mistakes.is_empty() {
        return (None, report); // What follows from broken text would only mislead.
    }
    let spec = Loader { directory, host, report: &mut report }.spec(document.get_ref());
    let spec = if report.errors() == 0 { spec } else { None };
    (spec, report)
}

/// The text of an I/O error without its number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_ascii_lowercase().to_string() + chars.as_str()).unwrap_or_default()
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

/// What is wrong with the name of a VM or a device, as the rest of a sentence.
fn bad_name(text: &str) -> Option<String> {
    if text.is_empty() {
        Some("is empty".to_owned())
    } else if let Some(bad) = text.chars().find(|c| !is_of_name(*c)) {
        Some(format!("may not contain {bad:?}"))
    } else if text.starts_with('-') || text.ends_with('-') {
        Some("may not start or end with `-`".to_owned())
    } else if text.len() > LONGEST_NAME {
        Some(format!("is longer than {LONGEST_NAME} characters"))
    } else {
        None
    }
}

/// Whether a device can be called that; why not, as a sentence.
pub fn device_name(text: &str) -> Result<(), String> {
    match bad_name(text) {
        Some(problem) => Err(format!("the name {text:?} {problem}: use lower-case letters, digits and `-`")),
        None if text == "core" => {
            Err("a device cannot be called \"core\": that is the VM's own process".to_owned())
        }
        None => Ok(()),
    }
}

struct Loader<'a> {
    directory: &'a Path,
    host: HostLimits,
    report: &'a mut Report,
}

impl Loader<'_> {
    /// Every part is read even if another one is wrong; `None` if anything that must be there is not.
    fn spec(&mut self, document: &DeTable<'_>) -> Option<Spec> {
        let top = Section::new(document, &TOP, None, &HOMES, self.report);
        let name = self.name(&top, "name", "name = \"debian\"");
        let empty = DeTable::new();
        let section = |key: &str, shape: &'static Shape, report: &mut Report| {
            let (table, span) = match top.table(key, report) {
                Some((table, span)) => (table, Some(span)),
                None => (&empty, None),
            };
            Section::new(table, shape, span, &HOMES, report)
        };
        let machine = section("machine", &MACHINE, self.report);
        let boot = section("boot", &BOOT, self.report);
        let console = section("console", &CONSOLE, self.report);
        let on = section("on", &ON, self.report);

        let machine = self.machine(&machine);
        let boot = self.boot(&boot, top.has("screen"));
        let console = self.console(&console);
        let on_crash = self.on_crash(&on);
        let mut names = HashMap::new();
        let storage = self.storage(&top, &mut names);
        let net = self.net(&top, machine.as_ref().map_or(1, |machine| machine.vcpus), &mut names);
        // A second one for what each NIC is connected to.
        let users = names.len() + net.as_ref().map_or(0, Vec::len);
        let screen = self.screen(&top, &names, users);
        if screen.as_ref().is_some_and(Option::is_some) {
            names
                .extend(screen::DEVICES.iter().chain([&screen::CONSOLE]).map(|name| ((*name).to_owned(), 0)));
        }
        // Two more for what lies between a screen and its console, and for the core.
        let users = names.len() + net.as_ref().map_or(0, Vec::len) + 2;
        let pci = self.pci(&top, &Host::this(), &mut names, users);
        Some(Spec {
            name: name?.value,
            machine: machine?,
            boot: boot?,
            console: console?,
            on_crash: on_crash?,
            storage: storage?,
            net: net?,
            pci: pci?,
            screen: screen?,
        })
    }

    fn name(&mut self, section: &Section<'_, '_>, key: &str, example: &str) -> Option<Located<String>> {
        let Some(name) = section.string(key, self.report) else {
            section.missing(key, example, self.report);
            return None;
        };
        let text = &name.value;
        let Some(problem) = bad_name(text) else { return Some(name) };
        let lower = text.to_lowercase().replace(|c: char| !is_of_name(c), "-");
        let better: String = lower.trim_matches('-').chars().take(LONGEST_NAME).collect();
        let fix = if better.is_empty() {
            "use lower-case letters, digits and `-`".to_owned()
        } else {
            format!("use lower-case letters, digits and `-`: \"{}\"", better.trim_end_matches('-'))
        };
        self.report.error(name.span, format!("`{key}` {problem}"), fix);
        None
    }

    fn machine(&mut self, section: &Section<'_, '_>) -> Option<Machine> {
        let vcpus = section.integer("vcpus", VCPUS, self.report);
        if vcpus.is_none() {
            section.missing("vcpus", "vcpus = 2", self.report);
        }
        let memory = section.size("memory", self.report);
        if memory.is_none() {
            section.missing("memory", "memory = \"2GiB\"", self.report);
        }
        let memory = memory.and_then(|memory| self.memory(memory));
        let hugepages = section.boolean("hugepages", false, self.report);
        let prefault = section.boolean("prefault", false, self.report);
        let vcpus = u32::try_from(vcpus?.value).ok()?;
        Some(Machine { vcpus, memory: memory?, hugepages, prefault })
    }

    fn memory(&mut self, memory: Located<u64>) -> Option<u64> {
        let Located { value: bytes, span } = memory;
        if bytes < LEAST_MEMORY {
            let fix = match bytes {
                1..65_536 => format!("a plain number is bytes; did you mean \"{bytes}MiB\"?"),
                _ => format!("write at least \"{}MiB\"", LEAST_MEMORY / MIB),
            };
            let message = format!("{} of memory is too little for a Linux kernel", Bytes(bytes));
            self.report.error(span, message, fix);
            return None;
        }
        if let Some(host) = self.host.memory.filter(|&host| bytes > host) {
            let message = format!("{} is more memory than this host has ({})", Bytes(bytes), Bytes(host));
            let fix = format!("write at most \"{}MiB\", or use --overcommit", host / MEMORY_STEP * 2);
            self.report.error(span, message, fix);
            return None;
        }
        if bytes % MEMORY_STEP != 0 {
            let fix = format!("write \"{}MiB\"", bytes.next_multiple_of(MEMORY_STEP) / MIB);
            self.report.error(span, "`memory` must be a multiple of 2 MiB", fix);
            return None;
        }
        Some(bytes)
    }

    fn boot(&mut self, section: &Section<'_, '_>, has_screen: bool) -> Option<Boot> {
        let kernel = section.string("kernel", self.report);
        if kernel.is_none() {
            section.missing("kernel", "kernel = \"vmlinuz\"", self.report);
        }
        let kernel = kernel.and_then(|kernel| {
            let kernel = kernel.map(|path| self.directory.join(path));
            kernel::check(&kernel, self.report).map(|kind| (kernel.value, kind))
        });
        let initrd = section.string("initrd", self.report).map(|path| path.map(|p| self.directory.join(p)));
        if let Some(initrd) = &initrd {
            files::initrd(initrd, self.report);
        }
        let cmdline = section.string("cmdline", self.report);
        if let Some(Located { value, span }) = &cmdline {
            if value.len() > LONGEST_CMDLINE {
                let message =
                    format!("`cmdline` has {} bytes; a kernel takes {LONGEST_CMDLINE}", value.len());
                self.report.error(span.clone(), message, "shorten it");
            } else if value.contains(|c: char| c.is_control()) {
                let message = "`cmdline` has a line break or another control character";
                self.report.error(span.clone(), message, "write it as one line");
            } else if !value.split_ascii_whitespace().any(|word| word.starts_with("console=ttyS0")) {
                let message = "`cmdline` has no console=ttyS0: the console will show nothing";
                self.report.warning(span.clone(), message, format!("write \"{value} console=ttyS0\""));
            }
        }
        let (kernel, kernel_kind) = kernel?;
        // The last one is what init talks to.
        let usual = if has_screen { "console=tty0 console=ttyS0" } else { "console=ttyS0" };
        let cmdline = cmdline.map_or_else(|| usual.to_owned(), |cmdline| cmdline.value);
        Some(Boot { kernel, kernel_kind, initrd: initrd.map(|initrd| initrd.value), cmdline })
    }

    fn console(&mut self, section: &Section<'_, '_>) -> Option<Console> {
        let mode = section.string("mode", self.report);
        let path = section.string("path", self.report);
        match mode.as_ref().map_or("terminal", |mode| mode.value.as_str()) {
            "terminal" => {
                if let Some(path) = path {
                    let message = "`path` means nothing with mode = \"terminal\"";
                    self.report.error(path.span, message, "remove it, or write mode = \"socket\"");
                    return None;
                }
                Some(Console::Terminal)
            }
            "socket" => {
                let Some(path) = path else {
                    section.missing("path", "path = \"console.sock\"", self.report);
                    return None;
                };
                let socket = self.directory.join(&path.value);
                if socket.as_os_str().len() > LONGEST_SOCKET_PATH {
                    let message = format!(
                        "the socket's path has {} bytes; the kernel allows {LONGEST_SOCKET_PATH}: {}",
                        socket.as_os_str().len(),
                        socket.display()
                    );
                    self.report.error(path.span, message, "choose a shorter one, under /run for instance");
                    return None;
                }
                if !socket.parent().is_some_and(Path::is_dir) {
                    let message = format!("there is no directory for the socket {}", socket.display());
                    self.report.error(path.span, message, "create it, or choose another path");
                    return None;
                }
                Some(Console::Socket(socket))
            }
            other => {
                let message = format!("`mode` cannot be \"{other}\"");
                let span = mode.map(|mode| mode.span);
                self.report.error(span, message, "write \"terminal\" or \"socket\"");
                None
            }
        }
    }

    fn on_crash(&mut self, section: &Section<'_, '_>) -> Option<OnCrash> {
        let Some(crash) = section.string("crash", self.report) else { return Some(OnCrash::Exit) };
        match crash.value.as_str() {
            "exit" => Some(OnCrash::Exit),
            "continue" => Some(OnCrash::Continue),
            other => {
                let fix = "write \"exit\", or \"continue\" to let the guest's own kdump run";
                self.report.error(crash.span, format!("`crash` cannot be \"{other}\""), fix);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
