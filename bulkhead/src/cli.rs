//! The command line.

use std::path::PathBuf;

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Args, Parser, Subcommand};

use crate::device::command as device;
use crate::disk::command as disk;
use crate::net::command as net;
use crate::pci::command as pci;
use crate::screen::{command as screen, holder as seat};

const ABOUT: &str = "Runs virtual machines whose devices are sandboxed processes";

const LONG_ABOUT: &str = "\
Bulkhead runs Linux virtual machines on KVM. Every device of a VM is a process of its own, with a user, namespaces and a \
system-call filter of its own, and holds nothing but what it serves: one disk, one channel. The guest sees Hyper-V's \
VMBus and uses the drivers that every Linux distribution ships; it is not modified.";

const AFTER_HELP: &str = "\
Examples:
  bulkhead check vm.toml      What is wrong in the spec, or what would run
  bulkhead run vm.toml        Boot it; the guest's console is this terminal (Ctrl-] q ends it)

  bulkhead device ls          The device processes of the VMs that run
  bulkhead disk add debian disk0 path=data.img     A disk more
  bulkhead net ls             Bridges, ports, VLANs and limits
  bulkhead pci ls             PCI devices of this host that a VM can have
  bulkhead console debian --web --open             Its screen in a browser
  bulkhead screenshot debian out.png; bulkhead type debian root --enter

More: bulkhead run --help, bulkhead check --help, bulkhead device --help, bulkhead disk --help, bulkhead net --help, bulkhead pci --help, bulkhead console --help, bulkhead units --help";

const RUN_ABOUT: &str = "Boots a VM and stays with it until it ends";

const RUN_LONG_ABOUT: &str = "\
Boots the VM that a spec describes and supervises its processes in the foreground: core-vmm, one vsp-storage for each [[storage]], \
one vsp-net for each [[net]] and, where a NIC is connected to one, a passt; one vsp-pci for each [[pci]]; with [screen], one vsp-video, two vsp-hid (keyboard and mouse) \
and one bulkhead-console. None of them outlives this command, however it ends.

A device process that dies, hangs or makes a system call that its policy forbids is replaced by a new one at once, and what the guest \
has asked of it is done by that: the guest notices a pause of milliseconds. With spare = true a second process stands by, started and \
sandboxed, and takes over in its place. If a device's processes keep dying before they can serve, the next ones are started after \
pauses of up to 10 seconds; the VM runs on, the device's I/O waits, and the log and the terminal say so. `bulkhead device` shows and \
replaces them. Only the end of core-vmm is the end of the VM.

With mode = \"terminal\" under [console] (the default) the guest's serial console is this terminal. Every key goes to the \
guest, Ctrl-C too, except Ctrl-]:
  Ctrl-] q        ends the VM at once, like pulling its plug
  Ctrl-] Ctrl-]   types Ctrl-] to the guest
When standard input is not a terminal, it is the guest's input as it is.

SIGTERM, SIGINT, SIGHUP and SIGQUIT end the VM and everything it left in the runtime directory.";

const RUN_AFTER_HELP: &str = "\
Exit codes:
  0       The guest powered off (or was ended with Ctrl-] q)
  1       It cannot run: a mistake in the spec, or a host without what it needs
  2       A mistake on the command line
  3       The guest's kernel crashed
  4       core-vmm failed, or a device could not be started
  128+N   Signal N ended it: 143 for SIGTERM, 130 for SIGINT

Examples:
  bulkhead run vm.toml
  bulkhead run vm.toml < /dev/null > console.log       Nobody at the console
  bulkhead --log-format json run vm.toml 2> log.json   Records for a machine to read
  sudo bulkhead run vm.toml                            As root, each process gets a user of its own

Files:
  /run/bulkhead/NAME               The VM's runtime directory, for root
  $XDG_RUNTIME_DIR/bulkhead/NAME   The same for others";

const CHECK_ABOUT: &str = "Says what is wrong in a spec, where, and how to put it right";

const CHECK_LONG_ABOUT: &str = "\
Reads a spec and the files it names and shows every mistake with its line, its column and its remedy; or, if there is none, what \
would run. Starts, locks and changes nothing. Exits with 0 if the spec is good and 1 if not; whether this host could run it is \
said, but decides nothing.";

const CHECK_AFTER_HELP: &str = "\
A spec:
  name = \"debian\"               # a-z, 0-9 and -

  [machine]
  vcpus = 2                     # 1 to 64
  memory = \"2GiB\"
  hugepages = false             # gather memory into 2 MiB pages even where the host's own policy does not
  prefault = false              # touch all memory before the start

  [boot]
  kernel = \"vmlinuz\"            # a bzImage, or ELF with a PVH note
  initrd = \"initrd.img\"         # paths are relative to the spec
  cmdline = \"root=/dev/sda rw console=ttyS0\"

  [console]
  mode = \"terminal\"             # or \"socket\", with path = \"console.sock\"

  [screen]                      # a screen, a keyboard and a mouse, and a console that shows them (bulkhead console)
  vram = \"32MiB\"                # 4 to 128 MiB; what is there if left out is enough for 3840 x 2160
  spare = false                 # a second process of each device stands by
  listen = \"127.0.0.1:5900\"     # VNC by TCP; if left out: on a Unix socket only. It takes
  password_file = \"vnc-password\"  # a password, the first line of this file, of which VNC uses 8 characters; and elsewhere than on
  tls = { cert = \"cert.pem\", key = \"key.pem\" }  # 127.0.0.1, encryption (VeNCrypt), which the web page has then, too
  web = \"127.0.0.1:6080\"        # the web page; if left out: at a port that bulkhead console --web says
  novnc = \"/usr/share/novnc\"    # where noVNC is, of which the page is made

  [on]
  crash = \"exit\"                # or \"continue\": the guest's kdump runs

  [[storage]]                   # one SCSI controller, one process
  name = \"disk0\"
  [[storage.disk]]
  path = \"root.img\"             # a raw image or a block device
  readonly = false
  lun = 0                       # if left out: its position
  cache = \"writeback\"           # or \"writethrough\": safe when written; or \"none\": past the host's page cache
  block_size = 512              # or 4096; if left out: the device's, 512 for an image
  serial = \"A-1\"                # if left out: made of the names above
  iops = 500                    # at most so many commands a second; if left out: no limit
  bandwidth = \"100MiB\"          # at most so much data a second
  burst = 2                     # seconds for which what is not used of the limits is saved up

  [[net]]                       # one NIC, one process
  name = \"nic0\"
  backend = \"passt\"             # NAT, DHCP and DNS without any privilege; the default. The guest reaches what
                                # listens on this host's own 127.0.0.1 at the address of its gateway. Or one of
  # tap = \"tap0\"                # a TAP (bulkhead net port add), on a bridge for instance
  # macvtap = \"macvtap0\"        # a macvtap
  mac = \"02:00:00:12:34:56\"     # if left out: made of the names above, always the same; a macvtap's own
  queues = 1                    # up to 8, one a processor; if left out: 1, on a TAP as many as processors
  mtu = 1500                    # the largest, up to 9000; on a TAP, its own has to be as large, and the bridge's
  memory = \"confined\"           # its process maps its rings and buffers, and can have no guest memory written;
                                # but taken over by a guest, it can have the core copy any of it out, by a forged
                                # packet. Or \"full\": it maps all guest memory,
                                # and on a TAP the guest need not copy the large frames that it sends
  antispoof = false             # drop what the guest sends from another address than `mac`
  link = \"up\"                   # or \"down\": the cable is not plugged in at first
  spare = false                 # a second process stands by

  [[pci]]                       # a PCI device of the host that is the VM's own, one process. All of the VM's memory is pinned for it
  address = \"0000:03:00.0\"      # bulkhead pci ls; it has to be bound (bulkhead pci bind)
  name = \"nic1\"                 # if left out: made of the address, pci-03-00-0
  spare = false                 # a second process stands by";

const UNITS_ABOUT: &str = "Writes the systemd units of a VM";

const UNITS_LONG_ABOUT: &str = "\
Writes what systemd needs to run the VM that a spec describes, every process as a unit of its own: bulkhead-vm@NAME.target is the \
VM, bulkhead-core@NAME.service its core, vsp-storage@NAME:DEVICE.service, vsp-net@NAME:DEVICE.service or vsp-pci@NAME:DEVICE.service a device, \
bulkhead-net@NAME:DEVICE.service what a NIC is connected to, bulkhead-console@NAME:console.service the console of a screen and \
bulkhead-seat@NAME.service what lies between that and its devices. Starts nothing. Doing it again after a change of the spec changes what has to change.

A PCI device has to be bound when the VM starts (bulkhead pci bind, in a unit of yours before the VM's target for instance). A TAP has to be its device's: sudo bulkhead net port add tap0 --bridge br0 --owner NAME:DEVICE, once the units are written.

The VM may run meanwhile. After systemctl daemon-reload, a process that is started again is what is written now: do not change the \
disks of a VM that runs.

Devices are started again whenever they end; the end of the core is the end of all. A core that ends with 0 (the guest powered off) \
leaves its unit inactive, any other end leaves it failed.";

const UNITS_AFTER_HELP: &str = "\
Examples:
  sudo bulkhead units vm.toml             Writes them; says how to start the VM and where its console is
  bulkhead units vm.toml --output /tmp/x  The same below /tmp/x, to look at or to pack
  sudo bulkhead units --remove debian     Removes them

Files:
  /etc/systemd/system    Templates, and a drop-in 50-bulkhead.conf for each unit; drop-ins of your own stay
  /etc/bulkhead/NAME     The core's configuration
  /etc/sysusers.d        A user for each process
  /run/bulkhead@NAME     While it runs: the console's socket and the core's";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default().bold())
    .usage(AnsiColor::Yellow.on_default().bold())
    .literal(AnsiColor::Green.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP, styles = STYLES,
    max_term_width = 100, disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How log records look on standard error: `human` (under systemd, journald gets them with their fields) or `json`
    #[arg(long, global = true, value_name = "FORMAT", default_value_t, hide_default_value = true)]
    pub log_format: logs::Format,

    /// How much is logged: off, error, warn, info, debug or trace [default: info, but warn beside a console]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<logs::Level>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(about = RUN_ABOUT, long_about = RUN_LONG_ABOUT, after_help = RUN_AFTER_HELP)]
    /// Boots a VM and stays with it until it ends.
    Run(Run),
    #[command(about = CHECK_ABOUT, long_about = CHECK_LONG_ABOUT, after_help = CHECK_AFTER_HELP)]
    /// Says what is wrong in a spec.
    Check(Check),
    #[command(about = device::ABOUT, long_about = device::LONG_ABOUT, after_help = device::AFTER_HELP)]
    /// Lists, restarts and replaces the device processes of running VMs.
    Device(device::Device),
    #[command(about = disk::ABOUT, long_about = disk::LONG_ABOUT, after_help = disk::AFTER_HELP)]
    /// Adds, removes and resizes disks of running VMs.
    Disk(disk::Disk),
    #[command(about = net::ABOUT, long_about = net::LONG_ABOUT, after_help = net::AFTER_HELP)]
    /// Bridges, ports and cables.
    Net(net::Net),
    #[command(about = pci::ABOUT, long_about = pci::LONG_ABOUT, after_help = pci::AFTER_HELP)]
    /// PCI devices of the host.
    Pci(pci::Pci),
    #[command(
        about = screen::CONSOLE_ABOUT, long_about = screen::CONSOLE_LONG_ABOUT, after_help = screen::CONSOLE_AFTER_HELP
    )]
    /// How to get to the screen of a running VM.
    Console(screen::Console),
    #[command(about = screen::SCREENSHOT_ABOUT)]
    /// Saves the screen of a running VM.
    Screenshot(screen::Screenshot),
    #[command(about = screen::TYPE_ABOUT, long_about = screen::TYPE_LONG_ABOUT)]
    /// Types a text.
    Type(screen::Type),
    #[command(about = screen::KEY_ABOUT, long_about = screen::KEY_LONG_ABOUT, after_help = screen::KEY_AFTER_HELP)]
    /// Presses keys.
    Key(screen::Key),
    #[command(about = UNITS_ABOUT, long_about = UNITS_LONG_ABOUT, after_help = UNITS_AFTER_HELP)]
    /// Writes the systemd units of a VM.
    Units(Units),
    /// Keeps what lies between the processes of a screen, for systemd.
    #[command(hide = true)]
    HoldSeat(seat::Hold),
    /// Writes the man pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        directory: PathBuf,
    },
}

/// `bulkhead run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The VM's spec; see `bulkhead check --help` for an example
    #[arg(value_name = "VM.TOML")]
    pub spec: PathBuf,

    /// Starts the VM even though the host has less memory than the VM may come to use
    #[arg(long)]
    pub overcommit: bool,

    /// Where core-vmm and the other programs are [default: beside bulkhead, then in PATH]
    #[arg(long, value_name = "DIR", env = "BULKHEAD_BIN_DIR", hide_env_values = true)]
    pub bin_dir: Option<PathBuf>,

    /// Where running VMs have their directories [default: /run/bulkhead, or $XDG_RUNTIME_DIR/bulkhead]
    #[arg(long, value_name = "DIR", env = "BULKHEAD_RUNTIME_DIR", hide_env_values = true)]
    pub runtime_dir: Option<PathBuf>,

    /// Starts without asking whether the host can run a VM: for tests of the supervisor.
    #[arg(long, hide = true)]
    pub skip_host_checks: bool,
}

/// `bulkhead check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The VM's spec
    #[arg(value_name = "VM.TOML")]
    pub spec: PathBuf,

    /// Allows more memory than this host has
    #[arg(long)]
    pub overcommit: bool,
}

/// `bulkhead units`.
#[derive(Debug, Args)]
pub struct Units {
    /// The VM's spec; with --remove its name will do
    #[arg(value_name = "VM.TOML")]
    pub spec: PathBuf,

    /// Removes the VM's units instead
    #[arg(long)]
    pub remove: bool,

    /// Puts everything below this directory instead of /; the paths in the units stay the same
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// Where core-vmm and the other programs are [default: beside bulkhead, then in PATH]
    #[arg(long, value_name = "DIR", env = "BULKHEAD_BIN_DIR", hide_env_values = true)]
    pub bin_dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
