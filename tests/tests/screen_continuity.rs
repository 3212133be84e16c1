//! Processes of screen, keyboard, mouse and console that die or are replaced while a guest draws and a person types: the
//! picture comes back by itself, each key comes once, and none stays pressed.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use bulkhead_tests::{
    SoftPlatform,
    screen::{
        Canvas, Rig, Viewer,
        rig::{DEVICES, KEYBOARD, MOUSE, PLACE, VIDEO, VRAM},
        seats::{PlayedKeyboard, PlayedMouse, PlayedVideo},
        viewer::Options,
    },
    steps::{Dice, LIMIT},
};
use ipc::operator::Reply;
use seat::{keyboard as keys, mouse as moves, video::ToConsole};
use vsc::{
    keyboard::Keyboard,
    mouse::Mouse,
    video::{Shape, Situation, wire},
};

const SMALL: Situation = Situation::of(640, 480);
const QUIET: Duration = Duration::from_millis(100);
const SHIFT: u32 = 0xffe1;

/// A viewer, as soon as one gets in: a console that has just been started is not there at once, and its sockets wait.
fn viewer(rig: &mut Rig) -> anyhow::Result<Viewer> {
    rig.console()?.viewer(&Options::default()).context("no viewer gets in")
}

/// The picture is what was drawn, for a viewer that was there and for one that comes.
fn same(rig: &mut Rig, canvas: &Canvas, old: &mut Viewer) -> anyhow::Result<()> {
    old.until_same(&canvas.picture).context("who was there")?;
    viewer(rig)?.until_same(&canvas.picture).context("who comes")
}

#[test]
fn the_screens_process_dies_again_and_again() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut old = viewer(&mut rig)?;
    let mut dice = Dice(21);
    for n in 0..25 {
        rig.vm.restart(VIDEO)?;
        // Some of it while nobody serves, some while somebody takes over.
        for _ in 0..dice.roll(5) {
            canvas.scribble(&mut dice)?;
            thread::sleep(Duration::from_micros(dice.roll(4000).into()));
        }
        canvas.video.settle()?;
        same(&mut rig, &canvas, &mut old).with_context(|| format!("death {n}"))?;
        let all = rig.vm.platform().device_memory();
        ensure!(all == [(PLACE, VRAM)], "{all:x?}");
    }
    // Whoever it is that serves now, it changes modes as ever.
    canvas = canvas.change(Situation::of(800, 600))?;
    canvas.scribble(&mut dice)?;
    same(&mut rig, &canvas, &mut old)?;
    rig.guest.client.close(canvas.video.into_channel())?;
    ensure!(rig.vm.platform().device_memory().is_empty());
    Ok(())
}

#[test]
fn a_mode_is_acknowledged_once_whoever_dies() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let canvas = rig.canvas(SMALL)?;
    let mut video = canvas.video;
    let mut dice = Dice(4);
    let stop = AtomicBool::new(false);
    let settled = AtomicU64::new(0);
    let done = thread::scope(|scope| {
        let (stop, settled) = (&stop, &settled);
        let guest = scope.spawn(move || -> anyhow::Result<_> {
            let mut context = 0;
            while !stop.load(Ordering::SeqCst) {
                for _ in 0..4 {
                    context += 1;
                    let width = 640 + (context % 300) as u32;
                    video.update_situation(context, &[Situation::of(width, 480)])?;
                }
                // An acknowledgement that comes twice, or of another, is an error in here.
                video.settle()?;
                settled.store(context, Ordering::SeqCst);
            }
            Ok(video)
        });
        for _ in 0..25 {
            thread::sleep(Duration::from_micros(dice.roll(6000).into()));
            rig.vm.restart(VIDEO)?;
        }
        // How many changes there are meanwhile is the machine's affair; it goes on as ever afterwards.
        let so_far = settled.load(Ordering::SeqCst);
        while !guest.is_finished() && settled.load(Ordering::SeqCst) <= so_far {
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::SeqCst);
        guest.join().map_err(|_| anyhow!("no panic"))?
    });
    Ok(rig.guest.client.close(done?.into_channel())?)
}

#[test]
fn the_console_dies_again_and_again() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let (mut keyboard, mut mouse) = (rig.keyboard()?, rig.mouse()?);
    let mut dice = Dice(33);
    let pointer = Shape { argb: true, width: 8, height: 8, hot: (1, 1), bits: vec![0xff; 256] };
    canvas.video.shape(&pointer)?;
    for n in 0..15 {
        let mut viewer = viewer(&mut rig)?;
        canvas.scribble(&mut dice)?;
        viewer.until_same(&canvas.picture).with_context(|| format!("death {n}"))?;
        viewer.until(|viewer| viewer.cursor.as_ref().is_some_and(|cursor| cursor.width == 8))?;
        viewer.key(true, SHIFT)?;
        viewer.key(true, 0x61)?;
        viewer.pointer(1, 20, 20)?;
        if n % 3 > 0 {
            while keyboard.held().len() < 2 {
                keyboard.stroke(LIMIT)?.context("a stroke is lost")?;
            }
        }
        if n % 3 > 1 {
            while mouse.last().is_none_or(|report| report.buttons == 0) {
                mouse.report(LIMIT)?.context("a click is lost")?;
            }
        }
        rig.console()?.restart()?;
        canvas.scribble(&mut dice)?;
        released(&mut rig, &mut keyboard, &mut mouse).with_context(|| format!("death {n}"))?;
    }
    rig.all_live()
}

/// Nothing is pressed, or it is not for long.
fn released(
    rig: &mut Rig,
    keyboard: &mut Keyboard<SoftPlatform>,
    mouse: &mut Mouse<SoftPlatform>,
) -> anyhow::Result<()> {
    // Whoever has taken over is there, and has said so.
    rig.console()?.wait("ready", |state| state["keyboard"] == true && state["mouse"] == true)?;
    let until = Instant::now() + LIMIT;
    loop {
        while keyboard.stroke(Duration::from_millis(20))?.is_some() {}
        while mouse.report(Duration::from_millis(20))?.is_some() {}
        let clicked = mouse.last().is_some_and(|report| report.buttons != 0);
        if keyboard.held().is_empty() && !clicked {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{:?} and {:?} stay pressed", keyboard.held(), mouse.last());
    }
}

/// Strokes go out as fast as they are taken while the process dies: all of them come, once, in order.
#[test]
fn each_stroke_comes_once_whoever_dies() -> anyhow::Result<()> {
    let mut rig = Rig::without_console(|vm| vm)?;
    let seat = PlayedKeyboard::new(&rig.seats.keyboard)?;
    let mut keyboard = rig.keyboard()?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut dice = Dice(55);
    let stroke =
        |n: u64| keys::Key { scancode: 1 + (n / 2 % 0x50) as u16, e0: false, e1: false, up: n % 2 == 1 };
    thread::scope(|scope| -> anyhow::Result<()> {
        let (stop, sent, stroke) = (&stop, &sent, &stroke);
        let person = scope.spawn(move || -> anyhow::Result<()> {
            while !stop.load(Ordering::SeqCst) || sent.load(Ordering::SeqCst) % 2 == 1 {
                seat.say(&keys::FromConsole::Key(stroke(sent.load(Ordering::SeqCst))))?;
                sent.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let keyboard = &mut keyboard;
        let guest = scope.spawn(move || -> anyhow::Result<u64> {
            let mut came = 0;
            loop {
                match keyboard.stroke(Duration::from_millis(500))? {
                    Some(got) => {
                        let wanted = stroke(came);
                        let good = (got.key.code, got.up) == (wanted.scancode, wanted.up);
                        ensure!(good, "stroke {came} is {got:?} and not {wanted:?}");
                        came += 1;
                    }
                    None if stop.load(Ordering::SeqCst) && came == sent.load(Ordering::SeqCst) => {
                        return Ok(came);
                    }
                    None => ensure!(!stop.load(Ordering::SeqCst), "{came} of {sent:?} strokes came"),
                }
            }
        });
        for _ in 0..25 {
            thread::sleep(Duration::from_micros(dice.roll(20_000).into()));
            rig.vm.restart(KEYBOARD)?;
        }
        thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::SeqCst);
        person.join().map_err(|_| anyhow!("no panic"))??;
        let came = guest.join().map_err(|_| anyhow!("no panic"))??;
        ensure!(came > 100, "only {came} strokes");
        Ok(())
    })?;
    ensure!(keyboard.held().is_empty(), "{:?} stay pressed", keyboard.held());
    Ok(())
}

#[test]
fn each_click_and_each_notch_comes_once_whoever_dies() -> anyhow::Result<()> {
    let mut rig = Rig::without_console(|vm| vm)?;
    let seat = PlayedMouse::new(&rig.seats.mouse)?;
    let mut mouse = rig.mouse()?;
    let mut dice = Dice(56);
    let (mut clicks, mut notches, mut clicked, mut turned) = (0, 0, 0, 0);
    let mut down = false;
    let mut take = |mouse: &mut Mouse<SoftPlatform>, timeout| -> anyhow::Result<bool> {
        let Some(report) = mouse.report(timeout)? else { return Ok(false) };
        clicked += u32::from(down && report.buttons == 0);
        down = report.buttons != 0;
        turned += report.wheel;
        Ok(true)
    };
    for n in 0..600u16 {
        seat.say(&moves::FromConsole::Motion { x: n * 7, y: n })?;
        seat.say(&moves::FromConsole::Buttons(1))?;
        seat.say(&moves::FromConsole::Buttons(0))?;
        seat.say(&moves::FromConsole::Wheel { vertical: 1, horizontal: 0 })?;
        (clicks, notches) = (clicks + 1, notches + 1);
        if n % 20 == 0 {
            rig.vm.restart(MOUSE)?;
            thread::sleep(Duration::from_micros(dice.roll(5000).into()));
        }
        while take(&mut mouse, Duration::from_micros(200))? {}
    }
    while take(&mut mouse, Duration::from_millis(500))? {}
    ensure!(
        (clicked, turned) == (clicks, notches),
        "{clicked} clicks and {turned} notches of {clicks} and {notches}"
    );
    let last = mouse.last().context("a report")?;
    ensure!((last.x, last.y, last.buttons) == (599 * 7, 599, 0), "{last:?}");
    Ok(())
}

/// What was held when the process died is still held, or is released; never both.
#[test]
fn what_is_held_survives_and_can_be_let_go() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let (mut keyboard, mut mouse) = (rig.keyboard()?, rig.mouse()?);
    let _canvas = rig.canvas(SMALL)?;
    rig.console()?.wait("ready", |state| state["keyboard"] == true && state["mouse"] == true)?;
    let mut viewer = viewer(&mut rig)?;
    for n in 0..8 {
        // A capital, so that nobody lets go of shift in between.
        for keysym in [SHIFT, 0x41 + n] {
            viewer.key(true, keysym)?;
            keyboard.stroke(LIMIT)?.context("a stroke is lost")?;
        }
        viewer.pointer(1, 10, 10)?;
        while mouse.last().is_none_or(|report| report.buttons == 0) {
            mouse.report(LIMIT)?.context("a click is lost")?;
        }
        rig.vm.restart(KEYBOARD)?;
        rig.vm.restart(MOUSE)?;
        thread::sleep(Duration::from_millis(30));
        while let Some(stroke) = keyboard.stroke(Duration::from_millis(30))? {
            ensure!(stroke.up, "death {n}: {stroke:?} again");
        }
        for keysym in [SHIFT, 0x41 + n] {
            viewer.key(false, keysym)?;
        }
        viewer.pointer(0, 10, 10)?;
        released(&mut rig, &mut keyboard, &mut mouse).with_context(|| format!("death {n}"))?;
    }
    Ok(())
}

/// Everything at once, for a while.
#[test]
fn whoever_dies_the_picture_comes_back() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let (mut keyboard, mut mouse) = (rig.keyboard()?, rig.mouse()?);
    let mut dice = Dice(99);
    for n in 0..30 {
        let mut viewer = viewer(&mut rig)?;
        viewer.key(true, SHIFT)?;
        viewer.pointer(1, 5, 5)?;
        canvas.scribble(&mut dice)?;
        for _ in 0..1 + dice.roll(2) {
            match dice.roll(4) {
                0 => rig.console()?.restart()?,
                who => rig.vm.restart(DEVICES[who as usize - 1])?,
            }
            thread::sleep(Duration::from_micros(dice.roll(10_000).into()));
        }
        if n % 5 == 4 {
            let size = 640 + 8 * dice.roll(40);
            canvas = canvas.change(Situation::of(size, 480 + n))?;
        }
        canvas.scribble(&mut dice)?;
        canvas.video.settle()?;
        let mut new = rig.viewer()?;
        new.until_same(&canvas.picture).with_context(|| format!("round {n}"))?;
        drop((viewer, new));
        released(&mut rig, &mut keyboard, &mut mouse).with_context(|| format!("round {n}"))?;
    }
    rig.all_live()
}

#[test]
fn standbys_take_over_and_are_swapped() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let (mut keyboard, mut mouse) = (rig.keyboard()?, rig.mouse()?);
    let mut viewer = viewer(&mut rig)?;
    let mut dice = Dice(12);
    let operator = rig.vm.operator()?;
    let mut use_all = |rig: &mut Rig, what: &str| -> anyhow::Result<()> {
        canvas.scribble(&mut dice)?;
        same(rig, &canvas, &mut viewer).with_context(|| what.to_owned())?;
        viewer.key(true, 0x61)?;
        ensure!(!keyboard.stroke(LIMIT)?.with_context(|| format!("{what}: a stroke is lost"))?.up);
        viewer.key(false, 0x61)?;
        ensure!(keyboard.stroke(LIMIT)?.with_context(|| format!("{what}: a stroke is lost"))?.up);
        viewer.pointer(0, dice.roll(600) as u16, 3)?;
        mouse.report(LIMIT)?.with_context(|| format!("{what}: a move is lost"))?;
        while mouse.report(Duration::from_millis(5))?.is_some() {}
        Ok(())
    };
    rig.console()?.wait("ready", |state| state["keyboard"] == true && state["mouse"] == true)?;
    use_all(&mut rig, "at first")?;
    for name in DEVICES {
        for n in 1..=3 {
            rig.vm.spare(name)?;
            operator.wait(name, "stood by for", |device| device.standby && device.serving)?;
            // A process that stands by takes nothing away from the one that serves.
            use_all(&mut rig, name)?;
            rig.vm.device(name).kill()?;
            operator.wait(name, "taken over", |device| device.serving && device.takeovers == n)?;
            rig.vm.promoted(name)?.wait()?;
            use_all(&mut rig, name)?;
        }
        for n in 0..3 {
            rig.vm.spare(name)?;
            let reply = operator.swap(name)?;
            let Reply::Swapped { .. } = reply else { bail!("swap {n} of {name}: {reply:?}") };
            let status = rig.vm.promoted(name)?.wait()?;
            ensure!(status.success(), "the old process of {name} {status}");
            use_all(&mut rig, name)?;
        }
    }
    Ok(())
}

/// A successor says hello, and what there is.
#[test]
fn a_successor_tells_the_console_what_there_is() -> anyhow::Result<()> {
    let mut rig = Rig::without_console(|vm| vm)?;
    let seat = PlayedVideo::new(&rig.seats.video)?;
    let (keyboard, mouse) = (PlayedKeyboard::new(&rig.seats.keyboard)?, PlayedMouse::new(&rig.seats.mouse)?);
    let mut canvas = rig.canvas(SMALL)?;
    let (mut guest_keyboard, _guest_mouse) = (rig.keyboard()?, rig.mouse()?);
    guest_keyboard.set_leds(4)?;
    canvas.video.show(SMALL)?;
    canvas.video.settle()?;
    keyboard.until("the lamps", |received| match received.message {
        keys::ToConsole::Leds(leds) => leds.caps.then_some(()),
        _ => None,
    })?;
    for name in DEVICES {
        seat.drain()?;
        keyboard.drain()?;
        mouse.drain()?;
        rig.vm.restart(name)?;
        match name {
            VIDEO => {
                let mut hello = false;
                seat.until("hello and the surface", |received| {
                    hello |= matches!(received.message, ToConsole::Hello { .. });
                    match received.message {
                        ToConsole::Surface(told) => (hello && told.width == 640).then_some(()),
                        _ => None,
                    }
                })?;
                // The guest is asked for its pointer, and its driver tells what it always tells.
                let changes = canvas.video.feature_changes();
                canvas.video.await_features(changes + 1)?;
                seat.until("the pointer", |received| {
                    matches!(received.message, ToConsole::PointerPosition { x: 0, y: 0, visible: true })
                        .then_some(())
                })?;
            }
            KEYBOARD => {
                let (mut ready, mut lamps) = (false, false);
                keyboard.until("ready and lamps", |received| {
                    match received.message {
                        keys::ToConsole::Ready(is) => ready = is,
                        keys::ToConsole::Leds(leds) => lamps = leds.caps,
                        keys::ToConsole::Hello { .. } => {}
                    }
                    (ready && lamps).then_some(())
                })?;
            }
            _ => mouse.until("ready", |received| {
                (received.message == moves::ToConsole::Ready(true)).then_some(())
            })?,
        }
    }
    ensure!(canvas.video.version() == wire::VERSION_3_5);
    canvas.video.handle(QUIET)?;
    Ok(())
}
