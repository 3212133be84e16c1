//! An honest front end: it connects, sets everything up as QEMU does, and connects again when its daemon has died.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::line::Line;
use super::memory::Memory;
use super::protocol::{self, Region, feature, protocol_feature, request};
use super::ring::{Place, Ring, Wires};

/// How the guest's memory is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// All at once (`SET_MEM_TABLE`).
    Table,
    /// Region by region (`ADD_MEM_REG`).
    Regions,
}

/// Whose manners it has when it connects again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// What is in flight is told first; a ring goes on behind its last completion, and is kicked.
    Qemu,
    /// What is in flight is told after memory and the rings' sizes; a ring goes on behind its last *available* request, whatever of it has been
    /// fetched, and is not kicked (`virtio-devices/src/vhost_user/vu_common_ctrl.rs` of version 54).
    CloudHypervisor,
}

/// What a front end wants.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Features, as far as the daemon has them.
    pub features: u64,
    /// Protocol features, likewise.
    pub protocol: u64,
    /// Rings.
    pub rings: u32,
    /// Entries of each.
    pub size: u16,
    /// Descriptors of a request.
    pub hand: u16,
    /// How memory is told.
    pub tell: Tell,
    /// In which way.
    pub manner: Manner,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: u64::MAX,
            protocol: protocol_feature::MQ
                | protocol_feature::REPLY_ACK
                | protocol_feature::CONFIG
                | protocol_feature::INFLIGHT_SHMFD,
            rings: 1,
            size: 128,
            hand: 4,
            tell: Tell::Table,
            manner: Manner::Qemu,
        }
    }
}

/// A front end. Its rings work without it.
#[derive(Debug)]
pub struct Front {
    /// The guest's memory.
    pub memory: Arc<Memory>,
    /// What it says to the daemon.
    pub line: Line,
    /// What was negotiated.
    pub features: u64,
    /// Likewise.
    pub protocol: u64,
    options: Options,
    rings: Vec<(Place, Wires)>,
    /// What is in flight, in memory that outlives the daemon: what `SET_INFLIGHT_FD` says, and the file.
    inflight: Option<(Vec<u8>, OwnedFd)>,
}

impl Front {
    /// Connects, and starts empty rings.
    pub fn connect(
        socket: &Path,
        memory: &Arc<Memory>,
        options: Options,
    ) -> anyhow::Result<(Self, Vec<Ring>)> {
        let (line, features, protocol) = introduce(socket, &options)?;
        let (event_index, memory) = (features & feature::EVENT_IDX != 0, Arc::clone(memory));
        let ring = |index| Ring::new(&memory, index, options.size, options.hand, event_index);
        let rings: Vec<Ring> = (0..options.rings).map(ring).collect::<anyhow::Result<_>>()?;
        let places = rings.iter().map(|ring| (ring.place, ring.wires.clone())).collect();
        let mut front = Self { memory, line, features, protocol, options, rings: places, inflight: None };
        front.set_up()?;
        Ok((front, rings))
    }

    /// Connects to a successor, and lets it go on where the dead one was.
    pub fn reconnect(&mut self, socket: &Path) -> anyhow::Result<()> {
        let (line, features, protocol) = introduce(socket, &self.options)?;
        ensure!((features, protocol) == (self.features, self.protocol), "the successor has other features");
        self.line = line;
        self.set_up()
    }

    /// The file with what is in flight.
    pub fn inflight(&self) -> Option<&OwnedFd> {
        self.inflight.as_ref().map(|(_, fd)| fd)
    }

    /// The config space from its beginning.
    pub fn config(&self, size: u32) -> anyhow::Result<Vec<u8>> {
        let question = protocol::config(0, size, 0, &vec![0; size as usize]);
        let answer = self.line.ask(request::GET_CONFIG, &question, &[])?;
        ensure!(answer.payload.len() == question.len(), "{} bytes of config space", answer.payload.len());
        Ok(answer.payload[12..].to_vec())
    }

    /// Where a ring is, and its wires.
    pub fn ring(&self, index: usize) -> (Place, Wires) {
        self.rings[index].clone()
    }

    /// Stops a ring; where the daemon was in it.
    pub fn stop(&self, index: u32) -> anyhow::Result<u16> {
        let answer = self.line.ask(request::GET_VRING_BASE, &protocol::vring(index, 0), &[])?;
        Ok((answer.number()? >> 32) as u16)
    }

    fn set_up(&mut self) -> anyhow::Result<()> {
        self.tell(request::SET_FEATURES, &protocol::number(self.features))?;
        match self.options.manner {
            Manner::Qemu => {
                self.set_up_inflight()?;
                self.set_up_memory()?;
            }
            Manner::CloudHypervisor => {
                self.set_up_memory()?;
                for (place, _) in &self.rings {
                    self.tell(request::SET_VRING_NUM, &protocol::vring(place.index, place.size.into()))?;
                }
                self.set_up_inflight()?;
            }
        }
        for (place, wires) in &self.rings {
            self.start(place, wires).with_context(|| format!("ring {}", place.index))?;
        }
        Ok(())
    }

    fn set_up_memory(&self) -> anyhow::Result<()> {
        let region = self.memory.region();
        match self.options.tell {
            Tell::Table => self.tell_with_memory(request::SET_MEM_TABLE, &protocol::table(&[region])),
            Tell::Regions => self.add(&region),
        }
        .context("the guest's memory")
    }

    fn add(&self, region: &Region) -> anyhow::Result<()> {
        self.tell_with_memory(request::ADD_MEM_REG, &protocol::one_region(region))
    }

    /// Starts a ring where it was.
    pub fn start(&self, place: &Place, wires: &Wires) -> anyhow::Result<()> {
        let index = place.index;
        self.tell(request::SET_VRING_NUM, &protocol::vring(index, place.size.into()))?;
        let base = match self.options.manner {
            Manner::Qemu => place.used_index(&self.memory)?,
            Manner::CloudHypervisor => place.available_index(&self.memory)?,
        };
        self.tell(request::SET_VRING_BASE, &protocol::vring(index, base.into()))?;
        self.tell(request::SET_VRING_ADDR, &place.message())?;
        let number = protocol::number(index.into());
        ensure!(self.order(request::SET_VRING_CALL, &number, &[wires.call.as_fd()])?, "call");
        ensure!(self.order(request::SET_VRING_KICK, &number, &[wires.kick.as_fd()])?, "kick");
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            self.tell(request::SET_VRING_ENABLE, &protocol::vring(index, 1))?;
        }
        if self.options.manner == Manner::Qemu {
            wires.kick.write(1)?;
        }
        Ok(())
    }

    fn set_up_inflight(&mut self) -> anyhow::Result<()> {
        if self.protocol & protocol_feature::INFLIGHT_SHMFD == 0 {
            return Ok(());
        }
        if self.inflight.is_none() {
            let (rings, size) = (self.options.rings as u16, self.options.size);
            let wish = protocol::inflight(0, 0, rings, size);
            let mut answer = self.line.ask(request::GET_INFLIGHT_FD, &wish, &[])?;
            let file = answer.fds.pop().context("the in-flight region has no file")?;
            ensure!(answer.fds.is_empty() && answer.payload.len() == wish.len(), "{answer:?}");
            ensure!(answer.payload[16..20] == wish[16..20], "for other rings: {answer:?}");
            ensure!(answer.number()? > 0, "an empty file: {answer:?}");
            self.inflight = Some((answer.payload, file));
        }
        if let Some((payload, file)) = &self.inflight {
            ensure!(
                self.order(request::SET_INFLIGHT_FD, payload, &[file.as_fd()])?,
                "the in-flight region is refused"
            );
        }
        Ok(())
    }

    fn tell(&self, request: u32, payload: &[u8]) -> anyhow::Result<()> {
        ensure!(self.order(request, payload, &[])?, "request {request} is refused");
        Ok(())
    }

    fn tell_with_memory(&self, request: u32, payload: &[u8]) -> anyhow::Result<()> {
        ensure!(self.order(request, payload, &[self.memory.fd()])?, "request {request} is refused");
        Ok(())
    }

    /// Says something; waits for the word that it is done if there is such a word.
    fn order(
        &self,
        request: u32,
        payload: &[u8],
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> anyhow::Result<bool> {
        if self.protocol & protocol_feature::REPLY_ACK != 0 {
            return self.line.order(request, payload, fds);
        }
        self.line.send(request, payload, fds).map(|()| true)
    }
}

/// Connects and negotiates: features and protocol features.
fn introduce(socket: &Path, options: &Options) -> anyhow::Result<(Line, u64, u64)> {
    let line = Line::connect(socket)?;
    let offered = line.ask_number(request::GET_FEATURES)?;
    let mut protocol = 0;
    if offered & options.features & feature::PROTOCOL_FEATURES != 0 {
        protocol = line.ask_number(request::GET_PROTOCOL_FEATURES)? & options.protocol;
        line.send(request::SET_PROTOCOL_FEATURES, &protocol::number(protocol), &[])?;
    }
    if protocol & protocol_feature::MQ != 0 {
        let rings = line.ask_number(request::GET_QUEUE_NUM)?;
        ensure!(rings >= options.rings.into(), "the daemon has {rings} rings");
    }
    line.send(request::SET_OWNER, &[], &[])?;
    Ok((line, offered & options.features, protocol))
}
