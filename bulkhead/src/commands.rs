//! What each command does.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::cli::{Check, Cli, Command, Run};
use crate::plan::Plan;
use crate::programs::Programs;
use crate::runtime_dir::{self, RuntimeDir};
use crate::spec::diagnostic::Report;
use crate::spec::size::Bytes;
use crate::spec::{self, Console, HostLimits, OnCrash, Spec};
use crate::supervise::machine::policy::WATCHDOG;
use crate::supervise::{self, Fate, Logging, Options, Signals};
use crate::{device, host, man, screen};

/// Exit code for a spec that is wrong or a host that cannot run it.
pub const CANNOT_RUN: u8 = 1;

/// Does what the command line says. An error means that nothing was left running, and [`CANNOT_RUN`].
pub fn execute(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Run(options) => run(cli, options),
        Command::Check(options) => Ok(check(options)),
        Command::Device(options) => device::command::execute(options),
        Command::Disk(options) => crate::disk::command::execute(options),
        Command::Net(options) => {
            if let crate::net::command::Command::Hold(_) = options.command {
                logs::init(cli.log_format, cli.log_level.unwrap_or(logs::Level::INFO), "bulkhead");
            }
            crate::net::command::execute(options)
        }
        Command::Pci(options) => crate::pci::command::execute(options),
        Command::Console(options) => screen::command::console(options),
        Command::Screenshot(options) => screen::command::screenshot(options),
        Command::Type(options) => screen::command::type_text(options),
        Command::Key(options) => screen::command::key(options),
        Command::HoldSeat(hold) => {
            logs::init(cli.log_format, cli.log_level.unwrap_or(logs::Level::INFO), "bulkhead");
            screen::holder::execute(hold)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Units(options) => crate::units::command::execute(options),
        Command::Man { directory } => {
            man::write_pages(directory)
                .with_context(|| format!("cannot write to {}", directory.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run(cli: &Cli, options: &Run) -> anyhow::Result<ExitCode> {
    let (spec, report) = spec::load(&options.spec, limits(options.overcommit));
    show(&report);
    let Some(spec) = spec else { return Ok(ExitCode::from(CANNOT_RUN)) };
    if !options.skip_host_checks {
        host::check(&spec.machine, options.overcommit).with_context(|| spec.name.clone())?;
    }
    let programs = Programs::find(options.bin_dir.as_deref(), &spec)?;
    let logging = Logging { format: cli.log_format, level: log_level(cli, &spec) };
    logs::init(logging.format, logging.level, "bulkhead");
    let signals = Signals::take().context("cannot listen for signals")?;
    let runtime = RuntimeDir::claim(&runtime_dir::base(options.runtime_dir.as_deref()), &spec.name)?;
    let plan = Plan::new(&spec, &programs, runtime.first_id());
    let fate = supervise::run(&plan, &runtime, &signals, Options { logging, watchdog: watchdog() });
    drop(runtime);
    announce(&plan.name, &fate, logging.format);
    Ok(ExitCode::from(fate.exit_code()))
}

/// One line about what happened, in the form of everything else on standard error.
fn announce(name: &str, fate: &Fate, format: logs::Format) {
    match format {
        logs::Format::Human => eprintln!("bulkhead: {name}: {fate}"),
        logs::Format::Json if fate.is_failure() => {
            tracing::error!(vm = name, exit_code = fate.exit_code(), "{fate}");
        }
        logs::Format::Json => tracing::info!(vm = name, exit_code = fate.exit_code(), "{fate}"),
    }
}

/// How long a device process may be silent; tests have less patience than [`WATCHDOG`].
fn watchdog() -> Duration {
    let given = std::env::var("BULKHEAD_WATCHDOG_MS").ok().and_then(|text| text.parse().ok());
    given.filter(|ms| *ms > 0).map_or(WATCHDOG, Duration::from_millis)
}

/// Beside a guest's console, only what matters is worth a line.
fn log_level(cli: &Cli, spec: &Spec) -> logs::Level {
    let beside_console = spec.console == Console::Terminal && std::io::stderr().is_terminal();
    cli.log_level.unwrap_or(if beside_console { logs::Level::WARN } else { logs::Level::INFO })
}

fn check(options: &Check) -> ExitCode {
    let (spec, report) = spec::load(&options.spec, limits(options.overcommit));
    show(&report);
    let Some(spec) = spec else { return ExitCode::from(CANNOT_RUN) };
    print!("{}", summary(&spec));
    if let Err(unfit) = host::check(&spec.machine, options.overcommit) {
        println!("but not here: {unfit}");
    }
    ExitCode::SUCCESS
}

fn limits(overcommit: bool) -> HostLimits {
    HostLimits { memory: if overcommit { None } else { host::total_memory() }, ..HostLimits::default() }
}

pub(crate) fn show(report: &Report) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    eprint!("{}", report.render(colour));
}

/// The processes of a screen.
fn of_screen(screen: &spec::Screen) -> String {
    let spare = if screen.spare { ", and a spare" } else { "" };
    let mut out = format!("    vsp-video video{spare}\n      {} of video memory\n", Bytes(screen.vram));
    for device in [spec::screen::KEYBOARD, spec::screen::MOUSE] {
        out.push_str(&format!("    vsp-hid {device}{spare}\n"));
    }
    let encrypted = if screen.tls.is_some() { ", encrypted" } else { "" };
    let of = |what: &str, address: SocketAddr| format!("      {what} at {address}{encrypted}\n");
    out.push_str(&format!("    bulkhead-console {}\n", spec::screen::CONSOLE));
    out.extend(screen.listen.map(|address| of("VNC", address)));
    out.extend(screen.web.map(|address| of("web", address)));
    out
}

/// What would run, for people.
fn summary(spec: &Spec) -> String {
    let machine = &spec.machine;
    let plural = if machine.vcpus == 1 { "" } else { "s" };
    let mut out =
        format!("ok: {}: {} vCPU{plural}, {} of memory", spec.name, machine.vcpus, Bytes(machine.memory));
    for (set, text) in
        [(machine.hugepages, " in huge pages"), (machine.prefault, ", touched before the start")]
    {
        if set {
            out.push_str(text);
        }
    }
    out.push_str(&format!("\n  boot      {} ({})\n", spec.boot.kernel.display(), spec.boot.kernel_kind));
    if let Some(initrd) = &spec.boot.initrd {
        out.push_str(&format!("            {}\n", initrd.display()));
    }
    out.push_str(&format!("            {}\n", spec.boot.cmdline));
    let console = match &spec.console {
        Console::Terminal => "this terminal".to_owned(),
        Console::Socket(path) => path.display().to_string(),
    };
    out.push_str(&format!("  console   {console}\n"));
    let crash = match spec.on_crash {
        OnCrash::Exit => "the VM ends, exit code 3",
        OnCrash::Continue => "the VM goes on",
    };
    out.push_str(&format!("  on crash  {crash}\n  processes\n    core-vmm\n"));
    for storage in &spec.storage {
        let spare = if storage.spare { ", and a spare" } else { "" };
        out.push_str(&format!("    vsp-storage {}{spare}\n", storage.name));
        for disk in &storage.disks {
            let access = if disk.readonly { ", read-only" } else { "" };
            let (path, size) = (disk.path.display(), Bytes(disk.bytes));
            out.push_str(&format!("      LUN {}  {path}, {size}{access}{}\n", disk.lun, disk.options));
        }
    }
    for net in &spec.net {
        let spare = if net.spare { ", and a spare" } else { "" };
        let mac = net.mac.map_or(String::new(), |mac| format!(", {mac}"));
        let queues = if net.queues == 1 { String::new() } else { format!(", {} queues", net.queues) };
        let link = if net.link { "" } else { ", link down" };
        out.push_str(&format!(
            "    vsp-net {}{spare}\n      {}{mac}, MTU {}{queues}{link}\n",
            net.name, net.backend, net.mtu
        ));
    }
    for pci in &spec.pci {
        let spare = if pci.spare { ", and a spare" } else { "" };
        let (name, address, group) = (&pci.name, pci.address, pci.group);
        out.push_str(&format!("    vsp-pci {name}{spare}\n      {address}, IOMMU group {group}\n"));
    }
    if let Some(screen) = &spec.screen {
        out.push_str(&of_screen(screen));
    }
    out
}
