//! Keyboard and mouse in a guest's hands, with the test for a console: what they say about themselves, and what goes in.

use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::{
    screen::{
        Rig,
        seats::{PlayedKeyboard, PlayedMouse},
    },
    steps::LIMIT,
};
use seat::{keyboard, mouse};
use vsc::keyboard::{Key, Stroke};

/// How long nothing has to come for it to mean that nothing comes.
const QUIET: Duration = Duration::from_millis(60);

#[test]
fn keys_come_in_order_and_each_once() -> anyhow::Result<()> {
    let mut rig = Rig::without_console(|vm| vm)?;
    let seat = PlayedKeyboard::new(&rig.seats.keyboard)?;
    seat.say(&keyboard::FromConsole::Key(keyboard::Key { scancode: 0x10, e0: false, e1: false, up: false }))?;
    std::thread::sleep(QUIET);
    let mut keyboard = rig.keyboard()?;
    seat.until("a driver listens", |received| {
        (received.message == keyboard::ToConsole::Ready(true)).then_some(())
    })?;
    let key = |scancode, e0, e1, up| keyboard::Key { scancode, e0, e1, up };
    let mut sent = Vec::new();
    for n in 0..150u16 {
        let scancode = 1 + n % 0x53;
        sent.extend([key(scancode, n % 3 == 0, false, false), key(scancode, n % 3 == 0, false, true)]);
    }
    // Pause is two codes.
    sent.extend([key(0x1d, false, true, false), key(0x45, false, false, false)]);
    sent.extend([key(0x1d, false, true, true), key(0x45, false, false, true)]);
    for key in &sent {
        seat.say(&keyboard::FromConsole::Key(*key))?;
    }
    for (n, sent) in sent.iter().enumerate() {
        let stroke = keyboard.stroke(LIMIT)?.with_context(|| format!("stroke {n} is lost"))?;
        let key = Key { code: sent.scancode, unicode: false, e0: sent.e0, e1: sent.e1 };
        ensure!(stroke == Stroke { key, up: sent.up }, "stroke {n} is {stroke:?} and not {sent:?}");
    }
    // What was held is released, and nothing that was not.
    for scancode in [0x1d, 0x38, 0x53] {
        seat.say(&keyboard::FromConsole::Key(key(scancode, false, false, false)))?;
        keyboard.stroke(LIMIT)?.context("it is lost")?;
    }
    ensure!(keyboard.held().len() == 3);
    seat.say(&keyboard::FromConsole::ReleaseAll)?;
    for _ in 0..3 {
        let stroke = keyboard.stroke(LIMIT)?.context("it is lost")?;
        ensure!(stroke.up, "{stroke:?}");
    }
    ensure!(keyboard.held().is_empty(), "{:?}", keyboard.held());
    seat.say(&keyboard::FromConsole::ReleaseAll)?;
    ensure!(keyboard.stroke(QUIET)?.is_none(), "nothing was held");
    seat.drain()?;
    for (leds, wanted) in [(0, (false, false, false)), (4, (false, false, true)), (3, (true, true, false))] {
        keyboard.set_leds(leds)?;
        if leds != 0 {
            seat.until("the lamps", |received| match received.message {
                keyboard::ToConsole::Leds(leds) => {
                    ((leds.scroll, leds.num, leds.caps) == wanted).then_some(())
                }
                _ => None,
            })?;
        }
    }
    rig.guest.client.close(keyboard.into_channel())?;
    seat.until("nobody listens", |received| {
        (received.message == keyboard::ToConsole::Ready(false)).then_some(())
    })
}

#[test]
fn another_version_of_the_keyboard_is_refused() -> anyhow::Result<()> {
    let mut rig = Rig::without_console(|vm| vm)?;
    let offer = rig.guest.offer(1)?;
    let channel = rig.guest.client.open(&offer, &vsc::keyboard::rings())?;
    let mut keyboard = vsc::keyboard::Keyboard::over(channel);
    for version in [0, 1, 2 << 16, u32::MAX] {
        ensure!(!keyboard.propose(version)?, "{version:#x} is spoken");
    }
    ensure!(keyboard.propose(vsc::keyboard::VERSION_1_0)?);
    ensure!(keyboard.completions_due() == 0);
    Ok(rig.guest.client.close(keyboard.into_channel())?)
}

#[test]
fn the_mouse_moves_and_clicks() -> anyhow::Result<()> {
    let mut rig = Rig::without_console(|vm| vm)?;
    let seat = PlayedMouse::new(&rig.seats.mouse)?;
    let mut mouse = rig.mouse()?;
    let layout = mouse.layout().clone();
    ensure!(layout.area() == Some([(0, 32767); 2]) && layout.buttons() == 5, "{layout:?}");
    seat.until("a driver listens", |received| {
        (received.message == mouse::ToConsole::Ready(true)).then_some(())
    })?;
    let mut at = (0, 0);
    for n in 0..200u16 {
        at = (n * 163 % 32768, 32767 - n * 97);
        seat.say(&mouse::FromConsole::Motion { x: at.0, y: at.1 })?;
        let buttons = if n % 10 == 0 { (n / 10 % 32) as u8 } else { 0 };
        if n % 10 < 2 {
            seat.say(&mouse::FromConsole::Buttons(buttons))?;
        }
        // Moves may be left out if more follow, clicks may not.
        let wanted = |report: &vsc::mouse::Report| {
            (report.x, report.y) == (at.0.into(), at.1.into())
                && (n % 10 >= 2 || report.buttons == u32::from(buttons))
        };
        let until = std::time::Instant::now() + LIMIT;
        while !mouse.last().is_some_and(|report| wanted(&report)) {
            ensure!(std::time::Instant::now() < until, "{at:?} {buttons:#x} is lost: {:?}", mouse.last());
            mouse.report(Duration::from_millis(100))?;
        }
    }
    let (mut wheel, mut pan) = (0, 0);
    for (vertical, horizontal) in [(1, 0), (-1, 0), (3, 0), (0, 1), (0, -2), (127, 0)] {
        seat.say(&mouse::FromConsole::Wheel { vertical, horizontal })?;
        (wheel, pan) = (wheel + i32::from(vertical), pan + i32::from(horizontal));
    }
    let (mut wheeled, mut panned) = (0, 0);
    while (wheeled, panned) != (wheel, pan) {
        let report =
            mouse.report(LIMIT)?.with_context(|| format!("{wheeled} and {panned} of {wheel} and {pan}"))?;
        (wheeled, panned) = (wheeled + report.wheel, panned + report.pan);
        ensure!((report.x, report.y) == (at.0.into(), at.1.into()), "a wheel moves the pointer: {report:?}");
    }
    seat.say(&mouse::FromConsole::Buttons(0x1f))?;
    while mouse.last().is_none_or(|report| report.buttons != 0x1f) {
        mouse.report(LIMIT)?.context("the buttons are lost")?;
    }
    seat.say(&mouse::FromConsole::ReleaseAll)?;
    while mouse.last().is_none_or(|report| report.buttons != 0) {
        mouse.report(LIMIT)?.context("they stay pressed")?;
    }
    rig.guest.client.close(mouse.into_channel())?;
    seat.until("nobody listens", |received| {
        (received.message == mouse::ToConsole::Ready(false)).then_some(())
    })
}
