//! A VM with a PCI function passed through, whose hardware the test plays.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use core_vmm::layout::{VMBUS_HIGH_MMIO_BASE, VMBUS_LOW_MMIO};
use ipc::operator::{Reply, Request};
use vsc::pci::{Bus, BusOptions, Message, Table};
use vsc::platform::Platform;
use vsp_pci::mock::{Hardware, Model};

use crate::steps::{Guest, LIMIT};
use crate::{SoftPlatform, Vm, VmBuilder};

/// The device's name.
pub const DEVICE: &str = "nic";

/// New hardware.
pub fn hardware(model: Model) -> anyhow::Result<Hardware> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path: PathBuf = std::env::temp_dir().join(format!("bulkhead-mock-{}-{number}", std::process::id()));
    Hardware::start(&path, model).context("the hardware does not start")
}

impl VmBuilder {
    /// Adds a PCI function, started as the supervisor starts one but for where it comes from.
    pub fn pci(self, hardware: &Hardware) -> Self {
        let path = hardware.path().display().to_string();
        let args = ["--address", "0000:00:05.0", "--group", "7", "--mock", &path].map(str::to_owned);
        self.device("mock-pci", DEVICE, args.into(), true).passthrough()
    }
}

/// The machine, its guest, and what is passed through. The guest ends before the machine.
pub struct Rig {
    /// What the guest is connected with.
    pub guest: Guest,
    /// The machine.
    pub vm: Vm,
    /// What is passed through.
    pub hardware: Hardware,
}

/// Where a guest's interrupts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handler {
    /// Vector of the function.
    pub number: u32,
    /// What it writes.
    pub message: Message,
    /// The processor's vector.
    pub vector: u8,
    /// The processor.
    pub vp: u32,
}

impl Rig {
    /// The usual one.
    pub fn new(model: Model) -> anyhow::Result<Self> {
        Self::with(model, |vm| vm)
    }

    /// One with a machine that is changed first.
    pub fn with(model: Model, machine: impl FnOnce(VmBuilder) -> VmBuilder) -> anyhow::Result<Self> {
        let hardware = hardware(model)?;
        let vm = machine(Vm::builder().pci(&hardware)).start()?;
        let guest = Guest::connect(&vm)?;
        Ok(Self { guest, vm, hardware })
    }

    /// What a driver does until it has its function.
    pub fn bus(&mut self) -> anyhow::Result<Bus<SoftPlatform>> {
        self.bus_with(&BusOptions::at(VMBUS_LOW_MMIO.0, VMBUS_HIGH_MMIO_BASE))
    }

    /// The same, as the options say.
    pub fn bus_with(&mut self, options: &BusOptions) -> anyhow::Result<Bus<SoftPlatform>> {
        let offer = self.guest.offer(0)?;
        Ok(Bus::open(&mut self.guest.client, &offer, options)?)
    }

    /// Resets the guest and connects another one.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.vm.platform().reset()?;
        (0..2).try_for_each(|vp| self.vm.platform().set_synic(vp, true))?;
        self.guest = Guest::connect(&self.vm)?;
        Ok(())
    }

    /// The function interrupts, and its handler hears it.
    pub fn interrupts(&self, handler: &Handler) -> anyhow::Result<()> {
        let platform = self.vm.platform();
        let before = platform.vector_interrupts(handler.vp, handler.vector);
        ensure!(self.hardware.interrupt(handler.number as usize), "{handler:?}: nobody listens");
        let end = Instant::now() + LIMIT;
        while platform.vector_interrupts(handler.vp, handler.vector) == before {
            ensure!(Instant::now() < end, "{handler:?} hears nothing");
            platform.wait_vector(handler.vp, handler.vector, before, Duration::from_millis(100));
        }
        Ok(())
    }

    /// An operator wants something of the device.
    pub fn wish(&self, payload: &str) -> anyhow::Result<Result<String, String>> {
        let request = Request::Control { device: DEVICE.into(), payload: payload.into() };
        match self.vm.operator()?.ask(&request)? {
            Reply::Control { result, .. } => Ok(result),
            other => anyhow::bail!("{other:?}"),
        }
    }
}

/// Has a vector of the function's go somewhere.
pub fn handle(
    bus: &mut Bus<SoftPlatform>,
    table: &Table,
    number: u32,
    (vector, vp): (u8, u32),
    before: Option<&Handler>,
) -> anyhow::Result<Handler> {
    let message =
        bus.set_vector(table, number, (vector, vp as u16), before.map(|handler| &handler.message))?;
    Ok(Handler { number, message, vector, vp })
}
