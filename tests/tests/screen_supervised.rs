//! A screen under the real supervisor: `bulkhead run`, which keeps what lies between the processes, starts those again that
//! die, and lets an operator look, type and press keys.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead::device::{Backend, Row, State};
use bulkhead_tests::{
    SoftPlatform,
    screen::{
        Canvas, Viewer,
        rig::{DEVICES, PLACE},
        viewer::Options,
    },
    steps::{Dice, LIMIT},
    supervised::{RETURNS_WITHIN, Supervised},
    vm,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vmbus::{guid::class, message::Offer};
use vsc::{
    Client, Options as BusOptions,
    keyboard::Keyboard,
    mouse::Mouse,
    video::{Situation, Video, VideoOptions},
};

const CONSOLE: &str = "console";
const SMALL: Situation = Situation::of(800, 600);

/// A VM, and a guest that drives everything.
struct Desk {
    vm: Supervised,
    canvas: Canvas,
    keyboard: Keyboard<SoftPlatform>,
    mouse: Mouse<SoftPlatform>,
}

impl Desk {
    fn new(spare: bool) -> anyhow::Result<Self> {
        let mut programs = Vec::new();
        for name in ["vsp-video", "vsp-hid", "bulkhead-console"] {
            programs.push((name, vm::program(name)?));
        }
        // The supervisor wants to know where it is, whether or not there is a disk; nobody starts it.
        programs.push(("vsp-storage", vm::program("vsp-hid")?));
        let spec = format!("[screen]\nvram = \"32MiB\"\nspare = {spare}\n");
        let vm = Supervised::of(&spec, &programs, None)?;
        let mut client = Client::connect(vm.platform().clone(), BusOptions::default())?;
        let offers = client.request_offers()?;
        let offer = |class| -> anyhow::Result<Offer> {
            let found = offers.iter().find(|offer| offer.class == class);
            found.copied().with_context(|| format!("{class} is not offered: {offers:?}"))
        };
        let mut video = Video::open(&mut client, &offer(class::VIDEO)?, &VideoOptions::default())?;
        video.place(PLACE)?;
        let canvas = Canvas::new(video, SMALL)?;
        let keyboard = Keyboard::open(&mut client, &offer(class::KEYBOARD)?)?;
        let mouse = Mouse::open(&mut client, &offer(class::MOUSE)?)?;
        Ok(Self { vm, canvas, keyboard, mouse })
    }

    fn viewer(&self) -> anyhow::Result<Viewer> {
        let (runtime, name) = self.vm.runtime();
        Viewer::connect(&runtime.join(name).join("vnc.sock"), &Options::default())
    }

    fn bulkhead(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(vm::program("bulkhead")?);
        Ok(command.args(arguments).arg("--runtime-dir").arg(self.vm.runtime().0).output()?)
    }

    /// Everybody works for a viewer that comes now.
    fn works(&mut self, dice: &mut Dice) -> anyhow::Result<()> {
        let mut viewer = self.viewer()?;
        self.canvas.scribble(dice)?;
        viewer.until_same(&self.canvas.picture)?;
        for down in [true, false] {
            viewer.key(down, 0x61)?;
            let stroke = self.keyboard.stroke(LIMIT)?.context("a stroke is lost")?;
            ensure!(stroke.up != down, "{stroke:?}");
        }
        viewer.pointer(0, dice.roll(800) as u16, 5)?;
        self.mouse.report(LIMIT)?.context("a move is lost")?;
        while self.mouse.report(Duration::from_millis(5))?.is_some() {}
        Ok(())
    }
}

fn row(backend: &mut dyn Backend, name: &str) -> anyhow::Result<Row> {
    let rows = backend.list()?;
    rows.into_iter().find(|row| row.name == name).with_context(|| format!("no device {name}"))
}

/// Waits until a process other than `before` serves; its id.
fn served(backend: &mut dyn Backend, name: &str, before: Option<u32>) -> anyhow::Result<u32> {
    let until = Instant::now() + RETURNS_WITHIN;
    loop {
        let row = row(backend, name)?;
        if let (State::Serving, Some(pid)) = (row.state, row.pid)
            && Some(pid) != before
        {
            return Ok(pid);
        }
        ensure!(Instant::now() < until, "{name} does not come back: {row:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill_them_all(spare: bool) -> anyhow::Result<()> {
    let mut desk = Desk::new(spare)?;
    let mut backend = desk.vm.backend()?;
    let mut dice = Dice(8);
    for name in DEVICES.into_iter().chain([CONSOLE]) {
        served(&mut *backend, name, None)?;
    }
    desk.works(&mut dice)?;
    for round in 0..3 {
        for name in DEVICES.into_iter().chain([CONSOLE]) {
            let pid = served(&mut *backend, name, None)?;
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
            served(&mut *backend, name, Some(pid))?;
            let log = || format!("{name} in round {round}\n{}", desk.vm.log());
            let log = log();
            desk.works(&mut dice).with_context(|| log)?;
        }
    }
    // Rings, and the page of event flags with each: nothing else of the guest's memory.
    for name in DEVICES {
        let exposed = row(&mut *backend, name)?.exposed_bytes;
        ensure!(exposed > 0 && exposed <= 1 << 20, "{exposed} bytes are exposed to {name}");
    }
    ensure!(desk.keyboard.held().is_empty());
    Ok(())
}

#[test]
fn all_of_them_die_and_come_back() -> anyhow::Result<()> {
    kill_them_all(false)
}

#[test]
fn all_of_them_die_and_their_spares_take_over() -> anyhow::Result<()> {
    kill_them_all(true)
}

#[test]
fn an_operator_looks_and_types() -> anyhow::Result<()> {
    let mut desk = Desk::new(false)?;
    let mut dice = Dice(9);
    desk.works(&mut dice)?;
    let file = desk.vm.directory().join("out.png");
    let path = file.to_str().context("UTF-8")?.to_owned();
    let (_, name) = desk.vm.runtime();
    let output = desk.bulkhead(&["screenshot", name, &path])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&file)?)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("too large")?];
    let info = reader.next_frame(&mut pixels)?;
    ensure!((info.width, info.height) == (800, 600), "{info:?}");
    let size = info.color_type.samples();
    for (n, pixel) in pixels.chunks_exact(size).enumerate().step_by(97) {
        let (x, y) = (n as u32 % 800, n as u32 / 800);
        let colour = u32::from_be_bytes([0, pixel[0], pixel[1], pixel[2]]);
        ensure!(colour == desk.canvas.picture.at(x, y), "({x}, {y}) is {colour:06x}");
    }
    let output = desk.bulkhead(&["type", name, "ls -l", "--enter"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut pressed = Vec::new();
    while let Some(stroke) = desk.keyboard.stroke(Duration::from_millis(500))? {
        if !stroke.up {
            pressed.push(stroke.key.code);
        }
    }
    ensure!(pressed == [0x26, 0x1f, 0x39, 0x0c, 0x26, 0x1c], "{pressed:x?}");
    let output = desk.bulkhead(&["key", name, "ctrl-alt-del"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(desk.keyboard.stroke(LIMIT)?.is_some_and(|stroke| stroke.key.code == 0x1d));
    Ok(())
}
