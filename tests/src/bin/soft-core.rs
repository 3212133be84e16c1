//! The real VMBus server on a software partition, in the compartment of the real core. Started by the test
//! harness only: descriptor 3 is the line to the guest, 4 the listening control socket, the argument a `CoreConfig`.

#![forbid(unsafe_code)]

use std::{
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bulkhead_tests::{
    line::{ToGuest, ToPartition},
    partition::SoftPartition,
};
use core_vmm::{memory::Ram, partition::SynicRegisters, server::Server};
use ipc::{
    config::CoreConfig,
    message::RamRegion,
    socket::{Listener, Peer, SocketError},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sandbox::{Compartment, Namespaces, policies};

const GUEST_FD: i32 = 3;
const LISTENER_FD: i32 = 4;

fn main() -> anyhow::Result<()> {
    let level = std::env::var("BULKHEAD_TEST_LOG").ok().and_then(|l| l.parse().ok());
    logs::init(logs::Format::Human, level.unwrap_or(logs::Level::ERROR), "soft-core");
    let text = std::env::args().nth(1).context("one argument: the configuration as JSON")?;
    let config: CoreConfig = serde_json::from_str(&text)?;
    let guest = Peer::inherited(GUEST_FD)?;
    guest.set_nonblocking(true)?;
    let listener = Listener::inherited(LISTENER_FD)?;
    let ram = Ram::new(config.memory, config.prefault)?;
    let own = nix::unistd::geteuid().as_raw();
    let server = Server::new(&config.name, ram.clone(), config.vcpus, &config.devices, vec![0, own])?;
    let partition = SoftPartition::new(guest, config.vcpus)?;
    close_door(&config, &ram, &server, &partition)?;
    introduce(&partition, &ram, config.vcpus);
    Loop { partition, server, listener, started: false, resetting: false }.run()
}

/// As `core_vmm::setup::close_door` does it, with this partition's descriptors.
fn close_door(
    config: &CoreConfig,
    ram: &Ram,
    server: &Server,
    partition: &SoftPartition,
) -> anyhow::Result<()> {
    use core_vmm::partition::Partition;
    if !config.sandbox {
        return Ok(());
    }
    let mut keep = vec![2, GUEST_FD, LISTENER_FD, ram.memfd().as_raw_fd()];
    keep.extend(logs::descriptors());
    keep.extend(server.descriptors());
    keep.extend((0..config.vcpus).map(|vp| partition.interrupt(vp).as_raw_fd()));
    let namespaces = Namespaces::all().recognising([0]);
    let entered =
        Compartment { name: "soft-core", ids: None, keep, policy: policies::CORE, namespaces }.enter()?;
    tracing::debug!(?entered, "compartment closed");
    Ok(())
}

fn introduce(partition: &SoftPartition, ram: &Ram, vps: u32) {
    use core_vmm::partition::Partition;
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
            if self.resetting && self.server.is_quiet() {
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
