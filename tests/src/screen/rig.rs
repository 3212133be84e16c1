//! A VM with a screen, a keyboard and a mouse, and the console that shows them.

use anyhow::Context;
use core_vmm::layout::VMBUS_LOW_MMIO;
use vsc::keyboard::Keyboard;
use vsc::mouse::Mouse;
use vsc::video::{Situation, Video, VideoOptions};

use super::console::Setup;
use super::viewer::{Options, Viewer};
use super::{Canvas, Console, Seats};
use crate::steps::Guest;
use crate::{SoftPlatform, Vm, VmBuilder};

/// The screen's name.
pub const VIDEO: &str = "video";
/// The keyboard's name.
pub const KEYBOARD: &str = "keyboard";
/// The mouse's name.
pub const MOUSE: &str = "mouse";
/// All of them, in the order in which they are added.
pub const DEVICES: [&str; 3] = [VIDEO, KEYBOARD, MOUSE];
/// Bytes of video memory.
pub const VRAM: u64 = 32 << 20;
/// Where a guest puts it: at the beginning of what it may use.
pub const PLACE: u64 = VMBUS_LOW_MMIO.0;

/// The machine and who sits at it.
pub struct Rig {
    /// What the guest is connected with; it ends before the machine.
    pub guest: Guest,
    /// The console, if the test does not play it.
    pub console: Option<Console>,
    /// The pairs.
    pub seats: Seats,
    /// The machine.
    pub vm: Vm,
}

impl VmBuilder {
    /// Adds a screen, a keyboard and a mouse, started as the supervisor starts them.
    pub fn screen(self, seats: &Seats) -> Self {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let vram = (VRAM >> 20).to_string();
        self.device("vsp-video", VIDEO, words(&["--vram", &vram, "--seat-fd", "4"]), false)
            .device_memory(VRAM)
            .given(&seats.video.device)
            .device("vsp-hid", KEYBOARD, words(&["--keyboard", "--seat-fd", "4"]), false)
            .given(&seats.keyboard.device)
            .device("vsp-hid", MOUSE, words(&["--mouse", "--seat-fd", "4"]), false)
            .given(&seats.mouse.device)
    }
}

impl Rig {
    /// The usual one, with a console.
    pub fn new() -> anyhow::Result<Self> {
        Self::with(|vm| vm, &Setup::default())
    }

    /// One whose errors are expected.
    pub fn quiet() -> anyhow::Result<Self> {
        Self::with(VmBuilder::quiet, &Setup { quiet: true, ..Setup::default() })
    }

    /// One with a machine that is changed first.
    pub fn with(machine: impl FnOnce(VmBuilder) -> VmBuilder, setup: &Setup) -> anyhow::Result<Self> {
        let mut rig = Self::without_console(machine)?;
        rig.console = Some(Console::start(rig.vm.directory(), &rig.seats, setup)?);
        Ok(rig)
    }

    /// One whose console the test plays.
    pub fn without_console(machine: impl FnOnce(VmBuilder) -> VmBuilder) -> anyhow::Result<Self> {
        let seats = Seats::new()?;
        let vm = machine(Vm::builder().screen(&seats)).start()?;
        let guest = Guest::connect(&vm)?;
        Ok(Self { guest, console: None, seats, vm })
    }

    /// The console.
    pub fn console(&mut self) -> anyhow::Result<&mut Console> {
        self.console.as_mut().context("the test plays the console")
    }

    /// A viewer that knows everything.
    pub fn viewer(&mut self) -> anyhow::Result<Viewer> {
        self.console()?.viewer(&Options::default())
    }

    /// The screen, as far as a driver goes before it sets a mode.
    pub fn video(&mut self, options: &VideoOptions) -> anyhow::Result<Video<SoftPlatform>> {
        let offer = self.guest.offer(0)?;
        let mut video = Video::open(&mut self.guest.client, &offer, options)?;
        video.place(PLACE)?;
        Ok(video)
    }

    /// A black screen in a mode.
    pub fn canvas(&mut self, situation: Situation) -> anyhow::Result<Canvas> {
        let video = self.video(&VideoOptions::default())?;
        Canvas::new(video, situation)
    }

    /// The keyboard.
    pub fn keyboard(&mut self) -> anyhow::Result<Keyboard<SoftPlatform>> {
        let offer = self.guest.offer(1)?;
        Ok(Keyboard::open(&mut self.guest.client, &offer)?)
    }

    /// The mouse.
    pub fn mouse(&mut self) -> anyhow::Result<Mouse<SoftPlatform>> {
        let offer = self.guest.offer(2)?;
        Ok(Mouse::open(&mut self.guest.client, &offer)?)
    }

    /// Resets the guest and connects another one.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.vm.platform().reset()?;
        (0..2).try_for_each(|vp| self.vm.platform().set_synic(vp, true))?;
        self.guest = Guest::connect(&self.vm)?;
        Ok(())
    }

    /// All processes live.
    pub fn all_live(&mut self) -> anyhow::Result<()> {
        for name in DEVICES {
            anyhow::ensure!(self.vm.device(name).try_wait()?.is_none(), "the process of {name} has ended");
        }
        anyhow::ensure!(self.vm.core().try_wait()?.is_none(), "the core has ended");
        if let Some(console) = &mut self.console {
            anyhow::ensure!(console.process().try_wait()?.is_none(), "the console has ended");
        }
        Ok(())
    }
}
