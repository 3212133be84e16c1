//! A VM with one NIC on a stream, for tests.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ipc::operator::{Reply, Request};
use vsc::net::{Delivery, Event, Net, NetOptions, NetQueue, Room, SendId, TxInfo, wire};

use super::{Backend, Nic, Wire};
use crate::steps::{Guest, LIMIT};
use crate::{SoftPlatform, Vm, VmBuilder};

/// The device's name.
pub const DEVICE: &str = "net0";

/// A VM with a NIC, and the other end of its wire.
pub struct Rig {
    /// What the guest is connected with; it ends before the machine.
    pub guest: Guest,
    /// The other end.
    pub wire: Wire,
    /// The machine.
    pub vm: Vm,
}

impl Rig {
    /// The usual NIC.
    pub fn new() -> anyhow::Result<Self> {
        Self::with(|vm| vm, |_| {})
    }

    /// A machine and a NIC that are changed first.
    pub fn with(
        machine: impl FnOnce(VmBuilder) -> VmBuilder,
        change: impl FnOnce(&mut Nic),
    ) -> anyhow::Result<Self> {
        let (wire, theirs) = Wire::new()?;
        let mut nic = Nic::new(Backend::Stream(theirs));
        change(&mut nic);
        let vm = machine(Vm::builder()).net(DEVICE, &nic).start()?;
        let guest = Guest::connect(&vm)?;
        Ok(Self { guest, wire, vm })
    }

    /// The NIC, brought up.
    pub fn open(&mut self, options: &NetOptions) -> anyhow::Result<Net<SoftPlatform>> {
        let offer = self.guest.offer(0)?;
        Ok(Net::open(&mut self.guest.client, &offer, options)?)
    }

    /// Closes it, and proves that it can be opened again and works.
    pub fn prove(&mut self) -> anyhow::Result<()> {
        let mut net = self.open(&NetOptions::small())?;
        exercise(&mut net, &mut self.wire)?;
        Ok(net.close(&mut self.guest.client, Vec::new())?)
    }

    /// Asks the process for something; its answer.
    pub fn control(&self, payload: &str) -> anyhow::Result<String> {
        let request = Request::Control { device: DEVICE.into(), payload: payload.into() };
        match self.vm.operator()?.ask(&request)? {
            Reply::Control { result: Ok(answer), .. } => Ok(answer),
            other => bail!("{payload} is answered with {other:?}"),
        }
    }
}

/// Some frames each way, each of which comes once and in order.
pub fn exercise(net: &mut Net<SoftPlatform>, wire: &mut Wire) -> anyhow::Result<()> {
    let (mac, longest) = (net.device().mac, net.device().mtu as usize + 14);
    let out = super::frame::Series { to: super::load::PEER, from: mac, name: 77, longest };
    let into = super::frame::Series { to: mac, from: super::load::PEER, name: 78, longest };
    for number in 0..20 {
        let id = sent(net.queue().send(&out.frame(number), &TxInfo::default())?)?;
        let came = wire.receive(LIMIT)?.with_context(|| format!("frame {number} does not come out"))?;
        ensure!(out.check(&came)? == Some(number), "another frame came out");
        completed(net.queue(), id)?;
        wire.send(&into.frame(number))?;
        let delivery = delivery(net.queue())?;
        ensure!(delivery.frames.len() == 1);
        ensure!(into.check(&net.queue().read(&delivery.frames[0]))? == Some(number), "another frame came");
        net.queue().give_back(delivery)?;
    }
    Ok(())
}

/// The id of what was sent.
pub fn sent(room: Room) -> anyhow::Result<SendId> {
    match room {
        Room::Sent(id) => Ok(id),
        Room::None => bail!("there is no room"),
    }
}

/// Waits for a completion; it has to be of this send and say that all is well.
pub fn completed(queue: &mut NetQueue<SoftPlatform>, id: SendId) -> anyhow::Result<()> {
    let status = ended(queue, id)?;
    ensure!(status == wire::STATUS_SUCCESS, "{id:?} is completed with {status}");
    Ok(())
}

/// Waits for a completion; it has to be of this send. Its status.
pub fn ended(queue: &mut NetQueue<SoftPlatform>, id: SendId) -> anyhow::Result<u32> {
    match queue.wait(LIMIT)?.with_context(|| format!("{id:?} is not completed"))? {
        Event::Sent(sent) if sent.id == id => Ok(sent.status),
        other => bail!("{id:?} is due and not {other:?}"),
    }
}

/// Waits for frames.
pub fn delivery(queue: &mut NetQueue<SoftPlatform>) -> anyhow::Result<Delivery> {
    match queue.wait(LIMIT)?.context("no frame comes")? {
        Event::Delivery(delivery) => Ok(delivery),
        other => bail!("a frame is due and not {other:?}"),
    }
}

/// Takes deliveries, and keeps them, until none comes for a moment.
pub fn hoard(queue: &mut NetQueue<SoftPlatform>) -> anyhow::Result<Vec<Delivery>> {
    let mut all = Vec::new();
    let until = Instant::now() + LIMIT;
    while let Some(event) = queue.wait(Duration::from_millis(300))? {
        ensure!(Instant::now() < until, "it does not end");
        match event {
            Event::Delivery(delivery) => all.push(delivery),
            other => bail!("frames are due and not {other:?}"),
        }
    }
    Ok(all)
}
