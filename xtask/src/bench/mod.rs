//! `cargo xtask bench NAME`: figures against a peer or a limit, taken in pairs.
//!
//! Absolute times in the lab mean nothing; ratios within one boot do. What is measured natively says so.

mod boot;
mod continuity;
mod lab;
mod net;
mod passthrough;
mod storage;
mod table;
mod vhost_user;
mod video;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::{build, sh};

/// Options.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which benchmark.
    #[arg(value_enum)]
    name: Name,
    /// Exit with 1 if a figure is not what is asked.
    #[arg(long)]
    check: bool,
    /// How often each pair is measured; the medians count.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Where the JSON goes (default: bench-NAME.json in the target directory).
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take the binaries as they are.
    #[arg(long)]
    no_build: bool,
    /// storage, net, vhost-user, video: how long each measurement takes, in milliseconds.
    #[arg(long, default_value_t = 2000, value_name = "MS")]
    time: u64,
    /// storage, vhost-user: how the guests wait for the end of a read.
    #[arg(long, value_enum, default_value_t)]
    wait: storage::Wait,
    /// storage, net: in the lab, with fio or iperf3 in a guest, against QEMU's virtio-blk or virtio-net.
    #[arg(long)]
    lab: bool,
    /// Show what the lab prints.
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Name {
    /// Time to init against QEMU, exits a read, memory.
    Boot,
    /// Natively: pauses after a kill and around a swap, what the ledger costs.
    Continuity,
    /// Natively, between two network namespaces: TCP, packet rate and round trips through vsp-net, beside a plain loop.
    Net,
    /// In the lab: iperf3 over a passed NIC, beside QEMU's own vfio-pci.
    Passthrough,
    /// Natively: reads through vsp-storage, beside fio on the same file and QEMU's vhost-user-blk server.
    Storage,
    /// Natively: reads through vsp-storage as a vhost-user server, beside QEMU's (`qemu-storage-daemon`), by the same driver.
    VhostUser,
    /// Natively: a guest's screen and keyboard, as far as a viewer on the same host.
    Video,
}

/// Runs a benchmark.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (name, figures) = match arguments.name {
        Name::Boot => (
            "boot",
            boot::measure(
                &build::binaries("release", !arguments.no_build)?,
                arguments.rounds,
                arguments.verbose,
            )?,
        ),
        Name::Continuity => ("continuity", continuity::measure(!arguments.no_build, arguments.rounds)?),
        Name::Net if arguments.lab => (
            "net-lab",
            net::in_the_lab(
                &build::binaries("release", !arguments.no_build)?,
                arguments.rounds,
                arguments.verbose,
            )?,
        ),
        Name::Net => {
            let options = net::Options {
                build: !arguments.no_build,
                rounds: arguments.rounds,
                time: Duration::from_millis(arguments.time),
            };
            ("net", net::measure(options)?)
        }
        Name::Passthrough => (
            "passthrough",
            passthrough::measure(
                &build::binaries("release", !arguments.no_build)?,
                arguments.rounds,
                arguments.verbose,
            )?,
        ),
        Name::Storage if arguments.lab => (
            "storage-lab",
            storage::in_the_lab(
                &build::binaries("release", !arguments.no_build)?,
                arguments.rounds,
                arguments.verbose,
            )?,
        ),
        Name::Storage => ("storage", storage::measure(storage_options(arguments))?),
        Name::VhostUser => ("vhost-user", vhost_user::measure(storage_options(arguments))?),
        Name::Video => {
            let time = Duration::from_millis(arguments.time);
            ("video", video::measure(!arguments.no_build, arguments.rounds, time)?)
        }
    };
    let path = match &arguments.json {
        Some(path) => path.clone(),
        None => build::target_directory().join(format!("bench-{name}.json")),
    };
    print!("{}", table::text(&figures));
    std::fs::write(&path, table::json(name, &figures))?;
    sh::say(&format!("the figures as JSON: {}", path.display()));
    let missed = figures.iter().filter(|figure| !figure.met()).count();
    if missed > 0 {
        println!("{missed} of {} figures are not what is asked", figures.len());
    }
    Ok(if arguments.check && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn storage_options(arguments: &Arguments) -> storage::Options {
    storage::Options {
        build: !arguments.no_build,
        rounds: arguments.rounds,
        time: Duration::from_millis(arguments.time),
        wait: arguments.wait,
    }
}
