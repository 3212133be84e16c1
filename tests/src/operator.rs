//! A test as the core's operator: what the supervisor asks of a core, without the supervisor.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ipc::{
    message::{ToCore, VERSIONS},
    operator::{Device, Reply, Request},
    socket::Peer,
};

use crate::steps::LIMIT;

/// A connection to the core that began with [`ToCore::Operator`].
#[derive(Debug)]
pub struct Operator(Peer);

impl Operator {
    /// Connects; refused users learn that with their first question.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let peer = Peer::connect(socket)?;
        peer.send(&ToCore::Operator { versions: VERSIONS }, &[])?;
        Ok(Self(peer))
    }

    /// Asks, and returns the answer. What the core says unasked is passed over.
    pub fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        self.0.send(request, &[])?;
        loop {
            match self.0.recv()?.0 {
                Reply::CutOff { .. } => {}
                reply => return Ok(reply),
            }
        }
    }

    /// Waits until the core gives a process up: its device, and why.
    pub fn cut_off(&self) -> anyhow::Result<(String, String)> {
        loop {
            if let Reply::CutOff { device, reason, .. } = self.0.recv()?.0 {
                return Ok((device, reason));
            }
        }
    }

    /// What the core knows of a device.
    pub fn device(&self, name: &str) -> anyhow::Result<Device> {
        let Reply::Devices(devices) = self.ask(&Request::Devices {})? else { bail!("no list of devices") };
        devices.into_iter().find(|device| device.name == name).with_context(|| format!("no device {name}"))
    }

    /// Waits until a device is as it should be.
    pub fn wait(&self, name: &str, what: &str, is: impl Fn(&Device) -> bool) -> anyhow::Result<Device> {
        let until = Instant::now() + LIMIT;
        loop {
            let device = self.device(name)?;
            if is(&device) {
                return Ok(device);
            }
            anyhow::ensure!(Instant::now() < until, "{name} is not {what}: {device:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Hands a device over to its standby.
    pub fn swap(&self, device: &str) -> anyhow::Result<Reply> {
        self.ask(&Request::Swap { device: device.into(), wait_ms: LIMIT.as_millis() as u64 })
    }
}
