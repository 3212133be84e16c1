//! The real VMBus server on a software partition, in the compartment of the real core and behind its command line, so
//! that a supervisor cannot tell it from `core-vmm`. Where the guest listens is in its kernel command line:
//! `guest=PATH`. Started by tests only.

#![forbid(unsafe_code)]

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bulkhead_tests::{
    line::{ToGuest, ToPartition},
    partition::SoftPartition,
};
use clap::Parser;
use core_vmm::{
    hypercall,
    memory::Ram,
    partition::{Partition, SynicRegisters},
    server::Server,
    setup,
};
use ipc::{
    config::CoreConfig,
    message::RamRegion,
    socket::{Listener, Peer, SocketError},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sandbox::{Compartment, Ids, Namespaces, policies};

/// `core-vmm`'s own arguments.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    config: PathBuf,
    #[arg(long)]
    listen_fd: RawFd,
    #[arg(long, default_value = "human")]
    log_format: logs::Format,
    #[arg(long, default_value = "error")]
    log_level: logs::Level,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    logs::init(args.log_format, args.log_level, "soft-core");
    let listener = Listener::inherited(args.listen_fd)?;
    let config = setup::read_config(&args.config)?;
    let path = config.cmdline.strip_prefix("guest=").context("no guest=PATH in the command line")?;
    let guest = Peer::connect(Path::new(path)).with_context(|| format!("nobody listens at {path}"))?;
    guest.set_nonblocking(true)?;
    let ram = Ram::new(config.memory, config.prefault)?;
    let own = nix::unistd::geteuid().as_raw();
    let mut trusted = vec![0, own];
    trusted.extend(config.uid);
    let server = Server::new(&config.name, ram.clone(), config.vcpus, &config.devices, trusted)?;
    let partition = SoftPartition::new(guest, config.vcpus)?;
    close_door(&config, &listener, &ram, &server, &partition)?;
    introduce(&partition, &ram, config.vcpus);
    Loop { partition, server, ram, listener, started: false, resetting: false }.run()
}

/// As `core_vmm::setup::close_door` does it, with this partition's descriptors.
fn close_door(
    config: &CoreConfig,
    listener: &Listener,
    ram: &Ram,
    server: &Server,
    partition: &SoftPartition,
) -> anyhow::Result<()> {
    if !config.sandbox {
        return Ok(());
    }
    let guest = partition.guest().as_raw_fd();
    let mut keep = vec![2, guest, listener.as_raw_fd(), ram.memfd().as_raw_fd()];
    keep.extend(logs::descriptors());
    keep.extend(server.descriptors());
    keep.extend((0..config.vcpus).map(|vp| partition.interrupt(vp).as_raw_fd()));
    let ids = config.uid.map(|uid| Ids { uid, gid: config.gid.unwrap_or(uid) });
    let peers = config.devices.iter().filter_map(|device| device.uid);
    let namespaces = Namespaces::all().recognising(peers.chain([0]));
    let entered =
        Compartment { name: "soft-core", ids, keep, policy: policies::CORE, namespaces, heir: false }
            .enter()?;
    tracing::debug!(?entered, "compartment closed");
    Ok(())
}

fn introduce(partition: &SoftPartition, ram: &Ram, vps: u32) {
    let region = |s: &core_vmm::memory::Stretch| RamRegion { gpa: s.gpa, len: s.len, offset: s.offset };
    let regions = ram.stretches().iter().map(region).collect();
    partition.say(&ToGuest::Ram { regions, vps }, &[ram.memfd()]);
    for vp in 0..vps {
        partition.say(&ToGuest::Wire { vp }, &[partition.interrupt(vp)]);
    }
}

struct Loop {
    partition: SoftPartition,
    server: Server,
    ram: Ram,
    listener: Listener,
    started: bool,
    resetting: bool,
}

impl Loop {
    fn run(mut self) -> anyhow::Result<()> {
        loop {
            if !self.started && self.server.missing_devices().is_empty() {
                self.started = true;
                self.partition.say(&ToGuest::Start, &[]);
            }
            if self.resetting && self.server.is_quiet() && self.server.missing_devices().is_empty() {
                self.resetting = false;
                self.partition.say(&ToGuest::Status { status: 0 }, &[]);
            }
            self.wait();
            self.server.accept(&self.listener);
            let peers: Vec<i32> = self.server.peers().map(|p| p.as_raw_fd()).collect();
            for fd in peers {
                self.server.peer_ready(&self.partition, fd);
            }
            self.server.tick(&self.partition, Instant::now());
            loop {
                match self.partition.next() {
                    Ok(Some(message)) => self.guest_says(message)?,
                    Ok(None) => break,
                    Err(SocketError::Closed) => return Ok(()),
                    Err(e) => bail!("the guest's line: {e}"),
                }
            }
        }
    }

    fn wait(&self) {
        let mut fds = vec![
            PollFd::new(self.partition.guest().as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.server.peers().map(|p| PollFd::new(p, PollFlags::POLLIN)));
        let timeout = self.server.deadline().map_or(PollTimeout::NONE, |by| {
            let left = by.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut fds, timeout);
    }

    fn guest_says(&mut self, message: ToPartition) -> anyhow::Result<()> {
        let status = match message {
            ToPartition::PostMessage { connection, payload } => {
                self.server.post_message(&self.partition, connection, &payload) as u16
            }
            ToPartition::Synic { vp, control, event_page, message_page } => {
                let registers = SynicRegisters { control, event_page, message_page };
                self.server.set_synic(&self.partition, vp, registers);
                0
            }
            ToPartition::EndOfMessage { vp } => {
                if self.partition.is_watched(vp) {
                    self.server.end_of_message(&self.partition, vp);
                }
                return Ok(());
            }
            ToPartition::Access { vp, gpa, bytes, write } => {
                if let Some(value) = self.server.access(&self.partition, vp, gpa, bytes, write) {
                    self.partition.access_done(vp, value);
                }
                return Ok(());
            }
            ToPartition::Fault { gpa } => u16::from(!self.server.region_fault(&self.partition, 0, gpa)),
            ToPartition::Hypercall { control, input } => match hypercall::retarget(&self.ram, control, input)
            {
                Ok(retarget) => self.server.retarget_interrupt(&self.partition, &retarget) as u16,
                Err(status) => status as u16,
            },
            ToPartition::Reset => {
                self.server.reset(&self.partition);
                self.resetting = true;
                return Ok(());
            }
            ToPartition::Followed => bail!("the guest follows what has not moved"),
        };
        self.partition.say(&ToGuest::Status { status }, &[]);
        Ok(())
    }
}
