//! What a person does at a viewer and what the guest gets.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform,
    screen::{
        Rig, Viewer,
        viewer::{Options, encoding},
    },
    steps::LIMIT,
};
use vsc::{
    keyboard::{Key, Keyboard, Stroke},
    mouse::{Mouse, Report},
    video::Situation,
};

/// How long nothing has to come for it to mean that nothing comes.
const QUIET: Duration = Duration::from_millis(80);

const SHIFT: u32 = 0xffe1;
const CONTROL: u32 = 0xffe3;
const ALT: u32 = 0xffe9;
const ENTER: u32 = 0xff0d;
const UP: u32 = 0xff52;

fn next(keyboard: &mut Keyboard<SoftPlatform>) -> anyhow::Result<Stroke> {
    keyboard.stroke(LIMIT)?.context("a stroke is lost")
}

/// A rig whose guest listens to all devices, and a viewer.
fn seated() -> anyhow::Result<(Rig, Keyboard<SoftPlatform>, Mouse<SoftPlatform>, Viewer)> {
    let mut rig = Rig::new()?;
    let (keyboard, mouse) = (rig.keyboard()?, rig.mouse()?);
    rig.console()?.wait("ready", |state| state["keyboard"] == true && state["mouse"] == true)?;
    let viewer = rig.viewer()?;
    Ok((rig, keyboard, mouse, viewer))
}

/// What somebody types who holds shift where a capital needs it, as every viewer sends it.
fn typed(viewer: &mut Viewer, text: &str) -> anyhow::Result<()> {
    for c in text.chars() {
        let shifted = c.is_ascii_uppercase() || "~!@#$%^&*()_+{}|:\"<>?".contains(c);
        let keysym = if c == '\n' { ENTER } else { c as u32 };
        if shifted {
            viewer.key(true, SHIFT)?;
        }
        viewer.key(true, keysym)?;
        viewer.key(false, keysym)?;
        if shifted {
            viewer.key(false, SHIFT)?;
        }
    }
    Ok(())
}

/// The characters that a US keyboard's strokes stand for.
fn read(keyboard: &mut Keyboard<SoftPlatform>, count: usize) -> anyhow::Result<String> {
    const PLAIN: &str = "\0\x1b1234567890-=\x08\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0\0\0 ";
    const SHIFTED: &str = "\0\x1b!@#$%^&*()_+\x08\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0\0\0 ";
    let mut text = String::new();
    let mut shift = false;
    while text.chars().count() < count {
        let Stroke { key, up } = next(keyboard)?;
        match key.code {
            0x2a | 0x36 if !key.e0 => shift = !up,
            0x1d | 0x38 => {}
            code if !up && !key.e0 => {
                let table = if shift { SHIFTED } else { PLAIN };
                text.push(table.chars().nth(code.into()).with_context(|| format!("{key:?}"))?);
            }
            _ => {}
        }
    }
    Ok(text)
}

#[test]
fn text_arrives_as_it_was_typed() -> anyhow::Result<()> {
    let (_rig, mut keyboard, _mouse, mut viewer) = seated()?;
    let text = "The quick brown fox jumps over the lazy dog.\n~`!1@2#3$4%5^6&7*8(9)0_-+={[}]|\\:;\"'<,>.?/\n";
    typed(&mut viewer, text)?;
    let came = read(&mut keyboard, text.chars().count())?;
    ensure!(came == text, "{came:?}");
    while keyboard.stroke(QUIET)?.is_some() {}
    ensure!(keyboard.held().is_empty(), "{:?} are held", keyboard.held());
    Ok(())
}

#[test]
fn keys_without_a_character() -> anyhow::Result<()> {
    let (_rig, mut keyboard, _mouse, mut viewer) = seated()?;
    // Names of X11's, and the scan codes of set 1.
    let keys = [
        (0xff1b, Key::plain(0x01)),
        (0xff09, Key::plain(0x0f)),
        (0xff08, Key::plain(0x0e)),
        (ENTER, Key::plain(0x1c)),
        (0xffbe, Key::plain(0x3b)),
        (0xffc7, Key::plain(0x44)),
        (0xffc8, Key::plain(0x57)),
        (0xffc9, Key::plain(0x58)),
        (UP, Key::extended(0x48)),
        (0xff54, Key::extended(0x50)),
        (0xff51, Key::extended(0x4b)),
        (0xff53, Key::extended(0x4d)),
        (0xff50, Key::extended(0x47)),
        (0xff57, Key::extended(0x4f)),
        (0xff55, Key::extended(0x49)),
        (0xff56, Key::extended(0x51)),
        (0xff63, Key::extended(0x52)),
        (0xffff, Key::extended(0x53)),
        (SHIFT, Key::plain(0x2a)),
        (0xffe2, Key::plain(0x36)),
        (CONTROL, Key::plain(0x1d)),
        (0xffe4, Key::extended(0x1d)),
        (ALT, Key::plain(0x38)),
        (0xffea, Key::extended(0x38)),
        (0xffe5, Key::plain(0x3a)),
        (0xffeb, Key::extended(0x5b)),
        (0xff8d, Key::extended(0x1c)),
    ];
    for (keysym, key) in keys {
        viewer.key(true, keysym)?;
        let stroke = next(&mut keyboard).with_context(|| format!("{keysym:#x}"))?;
        ensure!(stroke == Stroke { key, up: false }, "{keysym:#x} is {stroke:x?} and not {key:x?}");
        viewer.key(false, keysym)?;
        let stroke = next(&mut keyboard).with_context(|| format!("{keysym:#x}"))?;
        ensure!(stroke == Stroke { key, up: true }, "{keysym:#x} is {stroke:x?} and not {key:x?}");
    }
    ensure!(keyboard.held().is_empty(), "{:?} are held", keyboard.held());
    Ok(())
}

#[test]
fn keys_by_their_codes() -> anyhow::Result<()> {
    let (rig, mut keyboard, _mouse, mut viewer) = seated()?;
    viewer.refresh(false)?;
    viewer.next_update(LIMIT)?;
    viewer.until(|viewer| viewer.takes_codes)?;
    for code in [1u32, 0x10, 0x1e, 0x39, 0x53, 0x56, 0x58] {
        for (sent, key) in [(code, Key::plain(code as u16)), (0x80 | code, Key::extended(code as u16))] {
            if sent & 0x80 != 0 && ![0x10, 0x53].contains(&code) {
                continue;
            }
            // What the key is called does not matter.
            viewer.key_code(true, 0x61, sent)?;
            ensure!(next(&mut keyboard)? == Stroke { key, up: false }, "{sent:#x}");
            viewer.key_code(false, 0x61, sent)?;
            ensure!(next(&mut keyboard)? == Stroke { key, up: true }, "{sent:#x}");
        }
    }
    drop(rig);
    Ok(())
}

/// Whoever goes leaves nothing pressed, in whatever way.
#[test]
fn nothing_stays_pressed_when_a_viewer_goes() -> anyhow::Result<()> {
    let (mut rig, mut keyboard, mut mouse, mut first) = seated()?;
    for round in 0..6 {
        let mut second = rig.viewer()?;
        first.key(true, SHIFT)?;
        next(&mut keyboard)?;
        for keysym in [CONTROL, ALT, 0x61] {
            second.key(true, keysym)?;
            next(&mut keyboard)?;
        }
        second.pointer(5, 10, 10)?;
        while mouse.last().is_none_or(|report| report.buttons == 0) {
            mouse.report(LIMIT)?.context("a click is lost")?;
        }
        match round % 3 {
            0 => drop(second),
            1 => {
                second.raw(&[0xee; 32])?;
                second.wire().until_end(LIMIT)?;
            }
            // In the middle of a message.
            _ => {
                second.raw(&[4, 1, 0])?;
                drop(second);
            }
        }
        for _ in 0..3 {
            let stroke = next(&mut keyboard).with_context(|| format!("round {round}"))?;
            ensure!(stroke.up, "round {round}: {stroke:?}");
        }
        while mouse.last().is_some_and(|report| report.buttons != 0) {
            mouse.report(LIMIT)?.with_context(|| format!("round {round}: a button stays pressed"))?;
        }
        // The other one's key is its own.
        ensure!(keyboard.held().len() == 1, "round {round}: {:?}", keyboard.held());
        first.key(false, SHIFT)?;
        next(&mut keyboard)?;
    }
    ensure!(keyboard.stroke(QUIET)?.is_none() && keyboard.held().is_empty(), "{:?}", keyboard.held());
    Ok(())
}

/// A key that two hold is up when both have let go.
#[test]
fn two_hold_the_same_key() -> anyhow::Result<()> {
    let (mut rig, mut keyboard, _mouse, mut first) = seated()?;
    let mut second = rig.viewer()?;
    first.key(true, SHIFT)?;
    ensure!(!next(&mut keyboard)?.up);
    second.key(true, SHIFT)?;
    // Perhaps said again, as a key that repeats.
    while let Some(stroke) = keyboard.stroke(QUIET)? {
        ensure!(!stroke.up, "{stroke:?}");
    }
    first.key(false, SHIFT)?;
    while let Some(stroke) = keyboard.stroke(QUIET)? {
        ensure!(!stroke.up, "the other one still holds it");
    }
    drop(second);
    ensure!(next(&mut keyboard)?.up);
    ensure!(keyboard.held().is_empty());
    Ok(())
}

/// Takes reports until one is as it should be.
fn until(mouse: &mut Mouse<SoftPlatform>, is: impl Fn(&Report) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + LIMIT;
    while !mouse.last().is_some_and(|report| is(&report)) {
        ensure!(Instant::now() < until, "the last report is {:?}", mouse.last());
        mouse.report(Duration::from_millis(100))?;
    }
    Ok(())
}

#[test]
fn the_pointer_goes_where_it_is_put() -> anyhow::Result<()> {
    let (mut rig, _keyboard, mut mouse, _) = seated()?;
    for (width, height) in [(640, 480), (1920, 1080)] {
        let canvas = rig.canvas(Situation::of(width, height))?;
        let mut viewer = rig.viewer()?;
        viewer.until(|viewer| viewer.size() == (width, height))?;
        let places =
            [(0, 0), (width - 1, height - 1), (width / 2, height / 3), (17, 401), (1, 0), (width - 1, 0)];
        for (x, y) in places {
            viewer.pointer(0, x as u16, y as u16)?;
            // As Linux scales it: the pixel that the position falls into.
            let pixel = |at: i32, side: u32| (i64::from(at) * i64::from(side) / 32768) as u32;
            let there = |report: &Report| (pixel(report.x, width), pixel(report.y, height)) == (x, y);
            until(&mut mouse, there).with_context(|| format!("({x}, {y}) of {width}x{height}"))?;
        }
        // Outside is the edge.
        viewer.pointer(0, u16::MAX, u16::MAX)?;
        until(&mut mouse, |report| report.x >= 32700 && report.y >= 32700).context("outside")?;
        rig.guest.client.close(canvas.video.into_channel())?;
    }
    Ok(())
}

#[test]
fn buttons_and_wheels() -> anyhow::Result<()> {
    let (mut rig, _keyboard, mut mouse, _) = seated()?;
    let _canvas = rig.canvas(Situation::of(640, 480))?;
    let mut viewer = rig.viewer()?;
    viewer.until(|viewer| viewer.size() == (640, 480))?;
    // RFB: left, middle, right; HID: left, right, middle.
    for (mask, buttons) in [(1, 1), (2, 4), (4, 2), (7, 7), (0, 0)] {
        viewer.pointer(mask, 100, 100)?;
        let until = Instant::now() + LIMIT;
        while mouse.last().is_none_or(|report| report.buttons != buttons) {
            ensure!(Instant::now() < until, "{mask:#x} is {:?}", mouse.last());
            mouse.report(Duration::from_millis(100))?;
        }
    }
    // Pressed and released at once, and that many times: none is lost.
    let mut clicks = 0;
    for _ in 0..40 {
        viewer.pointer(1, 100, 100)?;
        viewer.pointer(0, 100, 100)?;
    }
    let mut down = false;
    while clicks < 40 {
        let report = mouse.report(LIMIT)?.with_context(|| format!("{clicks} clicks of 40"))?;
        clicks += u32::from(down && report.buttons == 0);
        down = report.buttons == 1;
    }
    for (mask, wheel, pan) in [(8, 1, 0), (16, -1, 0), (32, 0, -1), (64, 0, 1)] {
        for _ in 0..5 {
            viewer.pointer(mask, 100, 100)?;
            viewer.pointer(0, 100, 100)?;
        }
        let (mut wheeled, mut panned) = (0, 0);
        while (wheeled, panned) != (5 * wheel, 5 * pan) {
            let report = mouse.report(LIMIT)?.with_context(|| format!("{mask:#x}: {wheeled}, {panned}"))?;
            (wheeled, panned) = (wheeled + report.wheel, panned + report.pan);
        }
    }
    ensure!(mouse.report(QUIET)?.is_none_or(|report| report.wheel == 0 && report.buttons == 0));
    Ok(())
}

#[test]
fn lamps_are_seen() -> anyhow::Result<()> {
    let (mut rig, mut keyboard, _mouse, mut viewer) = seated()?;
    viewer.refresh(false)?;
    viewer.next_update(LIMIT)?;
    let encodings = [encoding::RAW, encoding::LEDS];
    let mut other = rig.console()?.viewer(&Options { encodings: &encodings, ..Options::default() })?;
    for leds in [4, 2, 7, 0] {
        keyboard.set_leds(leds)?;
        for viewer in [&mut viewer, &mut other] {
            viewer.until(|viewer| viewer.leds == Some(leds as u8)).with_context(|| format!("{leds}"))?;
        }
    }
    Ok(())
}

#[test]
fn text_is_typed_by_command() -> anyhow::Result<()> {
    let (mut rig, mut keyboard, _mouse, _viewer) = seated()?;
    let text = "root\nPa55 w0rd!~\n";
    let answer = std::thread::scope(|scope| -> anyhow::Result<_> {
        let console = rig.console()?;
        let asked = scope.spawn(|| console.ask(&format!(r#"{{"type":{}}}"#, serde_json::json!(text))));
        let came = read(&mut keyboard, text.chars().count())?;
        ensure!(came == text, "{came:?}");
        Ok(asked.join().map_err(|_| anyhow::anyhow!("no panic"))??.0)
    })?;
    ensure!(answer.get("done").is_some(), "{answer}");
    while keyboard.stroke(QUIET)?.is_some() {}
    ensure!(keyboard.held().is_empty());
    rig.console()?.ask(r#"{"key":"ctrl-alt-del"}"#)?;
    let mut strokes = Vec::new();
    while let Some(stroke) = keyboard.stroke(QUIET)? {
        strokes.push((stroke.key, stroke.up));
    }
    let (control, alt, delete) = (Key::plain(0x1d), Key::plain(0x38), Key::extended(0x53));
    // In which order they go up does not matter.
    ensure!(strokes[..3] == [(control, false), (alt, false), (delete, false)], "{strokes:x?}");
    ensure!(strokes.len() == 6 && keyboard.held().is_empty(), "{strokes:x?}");
    for nonsense in [r#"{"key":"ctrl-nonsense"}"#, r#"{"key":""}"#, "{}", "[]", "nonsense", r#"{"type":5}"#] {
        let (answer, _) = rig.console()?.ask(nonsense)?;
        ensure!(answer.get("error").is_some(), "{nonsense} is answered with {answer}");
    }
    ensure!(keyboard.stroke(QUIET)?.is_none(), "nonsense presses a key");
    Ok(())
}
