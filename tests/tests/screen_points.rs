//! Every named kill point, those of notices included, at the level of processes: a process of a screen, a keyboard or a
//! mouse that ends exactly there loses no acknowledgement, no picture and no key.

#![cfg(debug_assertions)]

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use bulkhead_tests::{
    SoftPlatform, VmBuilder,
    screen::{
        Area, Canvas, Rig,
        rig::{KEYBOARD, MOUSE, PLACE, VIDEO},
        seats::{PlayedKeyboard, PlayedMouse, PlayedVideo},
    },
    steps::{Guest, LIMIT},
};
use seat::{keyboard as keys, mouse as moves, video as pictures};
use vsc::{
    keyboard::Keyboard,
    mouse::Mouse,
    video::{Driver, Situation, Video, VideoOptions},
};
use vsp::channel::KillPoint;

/// Not to be reached: no request has an outcome that a repetition would change.
const OUT_OF_REACH: [KillPoint; 3] = [KillPoint::Begun, KillPoint::OutcomeDue, KillPoint::OutcomeNoted];

/// Strokes in a life: more than go at once, not so many that they take their time (they are paced).
const STROKES: u16 = 28;
/// What belongs to full rings, and to requests that are not answered, is met by the devices whose guests fill rings and send such ones.
const FULL: &str = "room-asked";
const UNANSWERED: &str = "ended";

/// What a guest and the person at it do in their lives.
type Life = fn(&mut Guest, &Ends) -> anyhow::Result<()>;

/// The console's ends.
struct Ends {
    video: PlayedVideo,
    keyboard: PlayedKeyboard,
    mouse: PlayedMouse,
}

fn look(guest: &mut Guest, ends: &Ends) -> anyhow::Result<()> {
    let offer = guest.offer(0)?;
    for driver in [Driver::Framebuffer, Driver::Drm] {
        let options = VideoOptions { driver, ..VideoOptions::default() };
        let mut video: Video<SoftPlatform> =
            Video::open(&mut guest.client, &offer, &options).context("opening")?;
        video.place(PLACE).context("placing")?;
        let mut canvas = Canvas::new(video, Situation::of(640, 480)).context("the mode")?;
        ends.video.say(&pictures::FromConsole::Watched(true))?;
        for n in 0..8u32 {
            let until = std::time::Instant::now() + LIMIT;
            while !canvas.video.features().dirt {
                // A successor does not know that somebody looks; it is told when it says hello.
                while let Some(received) = ends.video.hear(Duration::ZERO)? {
                    if matches!(received.message, pictures::ToConsole::Hello { .. }) {
                        ends.video.say(&pictures::FromConsole::Watched(true))?;
                    }
                }
                ensure!(std::time::Instant::now() < until, "round {n}: {:?}", canvas.video.features());
                canvas.video.handle(Duration::from_millis(10))?;
            }
            let area = Area { x: n, y: n, width: 9, height: 9 };
            canvas.paint(area, &vec![n; area.pixels()])?;
            canvas.video.update_situation(u64::from(n), &[Situation::of(640 + 2 * n, 480)])?;
            canvas.video.settle().with_context(|| format!("round {n}"))?;
        }
        while ends.video.hear(Duration::ZERO)?.is_some() {}
        guest.client.close(canvas.video.into_channel())?;
    }
    Ok(())
}

fn typing(guest: &mut Guest, ends: &Ends) -> anyhow::Result<()> {
    let offer = guest.offer(1)?;
    for _ in 0..2 {
        let mut keyboard: Keyboard<SoftPlatform> =
            Keyboard::open(&mut guest.client, &offer).context("opening")?;
        ends.keyboard.until("a driver listens", |received| {
            (received.message == keys::ToConsole::Ready(true)).then_some(())
        })?;
        let key = |n: u16| keys::Key { scancode: 1 + n / 2 % 0x50, e0: n % 4 > 1, e1: false, up: n % 2 == 1 };
        for n in 0..STROKES {
            ends.keyboard.say(&keys::FromConsole::Key(key(n)))?;
        }
        for n in 0..STROKES {
            let stroke = keyboard.stroke(LIMIT)?.with_context(|| format!("stroke {n} is lost"))?;
            let wanted = (key(n).scancode, key(n).e0, key(n).up);
            ensure!((stroke.key.code, stroke.key.e0, stroke.up) == wanted, "stroke {n} is {stroke:?}");
        }
        keyboard.set_leds(2)?;
        ends.keyboard.until("the lamps", |received| match received.message {
            keys::ToConsole::Leds(leds) => leds.num.then_some(()),
            _ => None,
        })?;
        for scancode in [0x1d, 0x2a] {
            ends.keyboard.say(&keys::FromConsole::Key(keys::Key { scancode, ..key(0) }))?;
            keyboard.stroke(LIMIT)?.context("a stroke is lost")?;
        }
        ends.keyboard.say(&keys::FromConsole::ReleaseAll)?;
        while !keyboard.held().is_empty() {
            keyboard.stroke(LIMIT)?.context("a key stays pressed")?;
        }
        ensure!(keyboard.completions_due() == 0);
        guest.client.close(keyboard.into_channel())?;
    }
    Ok(())
}

fn moving(guest: &mut Guest, ends: &Ends) -> anyhow::Result<()> {
    let offer = guest.offer(2)?;
    for _ in 0..2 {
        let mut mouse: Mouse<SoftPlatform> = Mouse::open(&mut guest.client, &offer).context("opening")?;
        ends.mouse.until("a driver listens", |received| {
            (received.message == moves::ToConsole::Ready(true)).then_some(())
        })?;
        let (mut clicks, mut notches, mut down) = (0, 0, false);
        for n in 0..30 {
            ends.mouse.say(&moves::FromConsole::Motion { x: n * 100, y: n })?;
            ends.mouse.say(&moves::FromConsole::Buttons(1 << (n % 5)))?;
            ends.mouse.say(&moves::FromConsole::Buttons(0))?;
            ends.mouse.say(&moves::FromConsole::Wheel { vertical: 1, horizontal: 0 })?;
        }
        while (clicks, notches) != (30, 30) {
            let report =
                mouse.report(LIMIT)?.with_context(|| format!("{clicks} clicks, {notches} notches of 30"))?;
            clicks += u32::from(down && report.buttons == 0);
            down = report.buttons != 0;
            notches += report.wheel;
            ensure!(clicks <= 30 && notches <= 30, "{clicks} clicks, {notches} notches of 30");
        }
        guest.client.close(mouse.into_channel())?;
    }
    Ok(())
}

/// Lets a guest live with processes that end where `orders` say, one after the other; each death is followed by a
/// successor with the next order, and in the end by one without. True if the last order was followed too.
fn die_at(device: &'static str, life: Life, orders: &[String]) -> anyhow::Result<bool> {
    let mut rig = Rig::without_console(VmBuilder::quiet)?;
    let ends = Ends {
        video: PlayedVideo::new(&rig.seats.video)?,
        keyboard: PlayedKeyboard::new(&rig.seats.keyboard)?,
        mouse: PlayedMouse::new(&rig.seats.mouse)?,
    };
    let (vm, guest) = (&mut rig.vm, &mut rig.guest);
    vm.restart_with(device, &["--kill-point", orders.first().context("an order")?])?;
    let mut left = orders[1..].iter();
    let (mut deaths, mut ended) = (0, false);
    thread::scope(|scope| {
        let guest = scope.spawn(move || life(guest, &ends));
        while !ended {
            ended = guest.is_finished();
            if vm.device(device).try_wait()?.is_some() {
                deaths += 1;
                match left.next() {
                    Some(order) => vm.restart_with(device, &["--kill-point", order])?,
                    None => vm.restart(device)?,
                }
            }
            thread::sleep(Duration::from_micros(300));
        }
        guest.join().map_err(|_| anyhow!("no panic"))?
    })?;
    Ok(deaths >= orders.len())
}

fn is_of_a_successor(point: KillPoint) -> bool {
    point.name().starts_with("adopt")
}

/// In which orders a point may be met: at once, in the middle, later; a successor's own points after deaths that leave
/// it something to do.
fn orders(point: KillPoint) -> Vec<Vec<String>> {
    let order = |name: &str, count: u32| format!("{name}:{count}");
    if !is_of_a_successor(point) {
        return [1, 2, 3, 7, 20].map(|count| vec![order(point.name(), count)]).to_vec();
    }
    let before = ["taken", "completing", "write-published", "state-written", "notified"];
    let orders =
        before.iter().flat_map(|name| [1, 4].map(|count| vec![order(name, count), order(point.name(), 1)]));
    orders.chain([2, 3].map(|count| vec![order("write-published", 9), order(point.name(), count)])).collect()
}

/// Lives at the same time: input is paced, so that most of a life is waiting.
const AT_ONCE: usize = 6;

/// Only these `may_miss` points are not met.
fn try_points(device: &'static str, life: Life, may_miss: &[&str]) -> anyhow::Result<()> {
    let points = KillPoint::ALL.into_iter().chain(KillPoint::NOTICES);
    let points = points.filter(|point| !OUT_OF_REACH.contains(point));
    let cases: Vec<_> =
        points.flat_map(|point| orders(point).into_iter().map(move |orders| (point, orders))).collect();
    let (next, met) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
    let live = || -> anyhow::Result<()> {
        while let Some((point, orders)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if die_at(device, life, orders).with_context(|| format!("{device} {orders:?}"))? {
                met.lock().map_err(|_| anyhow!("no panic"))?.insert(point.name());
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lives: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(live)).collect();
        lives.into_iter().try_for_each(|life| life.join().map_err(|_| anyhow!("no panic"))?)
    })?;
    let met = met.into_inner().map_err(|_| anyhow!("no panic"))?;
    let missed: BTreeSet<_> =
        cases.iter().map(|(point, _)| point.name()).filter(|name| !met.contains(name)).collect();
    ensure!(missed.iter().all(|name| may_miss.contains(name)), "{device}: never met: {missed:?}");
    Ok(())
}

#[test]
fn on_the_way_of_a_picture() -> anyhow::Result<()> {
    try_points(VIDEO, look, &[FULL, UNANSWERED])
}

#[test]
fn on_the_way_of_a_key() -> anyhow::Result<()> {
    try_points(KEYBOARD, typing, &[FULL])
}

#[test]
fn on_the_way_of_a_click() -> anyhow::Result<()> {
    try_points(MOUSE, moving, &[FULL, UNANSWERED])
}
