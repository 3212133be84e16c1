//! A screen in a guest's hands, with the test for a console: what it says about itself, and what comes out of it.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt},
    time::Duration,
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform,
    screen::{
        Area, Canvas, Rig,
        rig::{PLACE, VIDEO, VRAM},
        seats::PlayedVideo,
    },
    steps::LIMIT,
};
use seat::{
    shape::Assembly,
    video::{Depth, FromConsole, Surface, ToConsole},
};
use vsc::video::{Driver, Shape, Situation, Video, VideoOptions, wire};

/// How long nothing has to come for it to mean that nothing comes.
const QUIET: Duration = Duration::from_millis(60);
const SMALL: Situation = Situation::of(640, 480);

fn rig() -> anyhow::Result<(Rig, PlayedVideo)> {
    let rig = Rig::without_console(|vm| vm)?;
    let seat = PlayedVideo::new(&rig.seats.video)?;
    Ok((rig, seat))
}

/// The next surface, and its memory.
fn surface(seat: &PlayedVideo) -> anyhow::Result<(Surface, Memory)> {
    let (surface, memory) = seat.until("a surface", |received| match received.message {
        ToConsole::Surface(surface) => Some((surface, received.memory)),
        _ => None,
    })?;
    let memory = memory.context("no memory")?;
    Ok((surface, Memory(memory.as_fd().try_clone_to_owned()?.into())))
}

/// Video memory, as a console sees it.
struct Memory(File);

impl Memory {
    fn word(&self, at: u64) -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, at)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Handles what the device says until it wants to be told of dirt, or not.
fn until_dirt_is(video: &mut Video<SoftPlatform>, wanted: bool) -> anyhow::Result<()> {
    let until = std::time::Instant::now() + LIMIT;
    while video.features().dirt != wanted {
        ensure!(std::time::Instant::now() < until, "dirt wanted: {}", video.features().dirt);
        video.handle(Duration::from_millis(100))?;
    }
    Ok(())
}

#[test]
fn every_version_is_spoken() -> anyhow::Result<()> {
    let (mut rig, _seat) = rig()?;
    for version in [wire::VERSION_3_5, wire::VERSION_3_4, wire::VERSION_3_3, wire::VERSION_3_2] {
        let options = VideoOptions { versions: vec![version], ..VideoOptions::default() };
        let video = rig.video(&options).with_context(|| format!("{version:#x}"))?;
        ensure!(video.version() == version);
        let mut canvas = Canvas::new(video, SMALL).with_context(|| format!("{version:#x}"))?;
        canvas.listen()?;
        rig.guest.client.close(canvas.video.into_channel())?;
    }
    let offer = rig.guest.offer(0)?;
    let channel = rig.guest.client.open(&offer, &VideoOptions::default().open)?;
    let mut video = Video::over(channel, &VideoOptions::default());
    for version in [0, 3, wire::version(3, 1), wire::version(4, 0), wire::version(3, 99), u32::MAX] {
        ensure!(!video.propose(version)?, "{version:#x} is spoken");
    }
    ensure!(video.propose(wire::VERSION_3_2)?, "after those that it does not speak");
    Ok(rig.guest.client.close(video.into_channel())?)
}

#[test]
fn the_screen_says_what_it_is() -> anyhow::Result<()> {
    let (mut rig, _seat) = rig()?;
    let offer = rig.guest.offer(0)?;
    ensure!(u64::from(offer.mmio_megabytes) == VRAM >> 20, "{} MiB", offer.mmio_megabytes);
    let mut video = rig.video(&VideoOptions::default())?;
    let all = video.resolutions().context("it says")?.clone();
    ensure!(all.modes.contains(&(3840, 2160)) && all.modes.contains(&(640, 480)), "{:?}", all.modes);
    for &(width, height) in &all.modes {
        ensure!(u64::from(width) * u64::from(height) * 4 <= VRAM, "{width}x{height} does not fit");
        // What fbdev insists on.
        ensure!(width >= 640 && height >= 480, "{width}x{height} is too small");
    }
    let mut modes = all.modes.clone();
    modes.sort_unstable();
    modes.dedup();
    ensure!(modes.len() == all.modes.len(), "one of {:?} is there twice", all.modes);
    // An EDID block is either empty or sound.
    let sum = all.edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let begins = all.edid.starts_with(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    ensure!(all.edid == [0; 128] || (sum == 0 && begins), "{:02x?}", all.edid);
    for most in [1, 2, 3, 64, 255] {
        let some = video.ask_resolutions(most)?;
        ensure!(some.modes.len() <= usize::from(most), "{} of {most}", some.modes.len());
    }
    Ok(rig.guest.client.close(video.into_channel())?)
}

#[test]
fn what_the_guest_draws_is_in_the_memory_that_the_console_gets() -> anyhow::Result<()> {
    let (mut rig, seat) = rig()?;
    let mut canvas = rig.canvas(SMALL)?;
    let (told, memory) = surface(&seat)?;
    let wanted = Surface {
        width: 640,
        height: 480,
        stride: 2560,
        depth: Depth::Xrgb8888,
        offset: 0,
        vram_bytes: VRAM,
    };
    ensure!(told == wanted, "{told:?}");
    let all = rig.vm.platform().device_memory();
    ensure!(all == [(PLACE, VRAM)], "{all:x?}");
    canvas.paint(Area { x: 3, y: 2, width: 1, height: 1 }, &[0x12_3456])?;
    ensure!(memory.word(2 * 2560 + 12)? & 0xff_ffff == 0x12_3456);
    // All of it is there, to the last byte.
    for at in [VRAM / 2, VRAM - 4] {
        vsc::Platform::write(&**rig.vm.platform(), PLACE + at, &at.to_le_bytes()[..4]);
        ensure!(memory.word(at)? == at as u32);
    }
    // Moved: the same pixels at another place.
    let elsewhere = PLACE + VRAM;
    canvas.video.place(elsewhere)?;
    let all = rig.vm.platform().device_memory();
    ensure!(all.contains(&(elsewhere, VRAM)), "{all:x?}");
    let mut bytes = [0; 4];
    ensure!(rig.vm.platform().try_read_device(elsewhere + 2 * 2560 + 12, &mut bytes));
    ensure!(u32::from_le_bytes(bytes) & 0xff_ffff == 0x12_3456);
    rig.guest.client.close(canvas.video.into_channel())?;
    seat.until("there is no picture", |received| {
        matches!(received.message, ToConsole::NoSurface).then_some(())
    })?;
    let all = rig.vm.platform().device_memory();
    ensure!(all.is_empty(), "{all:x?}");
    ensure!(!rig.vm.platform().try_read_device(PLACE, &mut bytes), "video memory outlives the channel");
    Ok(())
}

#[test]
fn modes_change() -> anyhow::Result<()> {
    let (mut rig, seat) = rig()?;
    let mut video = rig.video(&VideoOptions::default())?;
    let modes = video.resolutions().context("it says")?.modes.clone();
    for (width, height) in modes {
        let situation = Situation::of(width.into(), height.into());
        video.present(situation)?;
        video.settle()?;
        let (told, _) = surface(&seat)?;
        ensure!(
            (told.width, told.height, told.stride) == (width.into(), height.into(), u32::from(width) * 4),
            "{told:?}"
        );
    }
    // A wider pitch, another place, 16 bits.
    let odd = Situation { active: true, offset: 4096, depth: 16, width: 801, height: 603, pitch: 2048 };
    video.show(odd)?;
    video.settle()?;
    let (told, _) = surface(&seat)?;
    ensure!(
        (told.depth, told.offset, told.stride, told.width, told.height)
            == (Depth::Rgb565, 4096, 2048, 801, 603),
        "{told:?}"
    );
    // Each is acknowledged in its turn, with what it was sent with.
    for context in [1, u64::MAX, 7] {
        video.update_situation(context, &[SMALL])?;
    }
    video.settle()?;
    video.show(Situation { active: false, ..SMALL })?;
    video.settle()?;
    seat.until("there is no picture", |received| {
        matches!(received.message, ToConsole::NoSurface).then_some(())
    })?;
    video.show(SMALL)?;
    video.settle()?;
    surface(&seat)?;
    Ok(rig.guest.client.close(video.into_channel())?)
}

#[test]
fn dirt_is_told_while_somebody_looks() -> anyhow::Result<()> {
    for driver in [Driver::Framebuffer, Driver::Drm] {
        let (mut rig, seat) = rig()?;
        let video = rig.video(&VideoOptions { driver, ..VideoOptions::default() })?;
        let mut canvas = Canvas::new(video, SMALL)?;
        surface(&seat)?;
        seat.say(&FromConsole::Watched(true))?;
        until_dirt_is(&mut canvas.video, true)?;
        seat.drain()?;
        for n in 0..300 {
            let area = Area { x: n, y: 2 * (n % 200), width: 7 + n % 11, height: 1 + n % 5 };
            canvas.paint(area, &vec![n; area.pixels()])?;
            let mut missing = vec![(
                area.x as i32,
                area.y as i32,
                (area.x + area.width) as i32,
                (area.y + area.height) as i32,
            )];
            while !missing.is_empty() {
                let received = seat.hear(LIMIT)?.with_context(|| format!("rectangle {n} is not told"))?;
                match received.message {
                    ToConsole::Dirty(rects) => missing.retain(|&(x1, y1, x2, y2)| {
                        !rects.iter().any(|r| r.x1 <= x1 && r.y1 <= y1 && r.x2 >= x2 && r.y2 >= y2)
                    }),
                    ToConsole::AllDirty => missing.clear(),
                    _ => {}
                }
            }
        }
        seat.say(&FromConsole::Watched(false))?;
        until_dirt_is(&mut canvas.video, false)?;
        seat.drain()?;
        canvas.paint(Area { x: 0, y: 0, width: 1, height: 1 }, &[1])?;
        ensure!(seat.hear(QUIET)?.is_none(), "nobody looks");
        rig.guest.client.close(canvas.video.into_channel())?;
    }
    Ok(())
}

#[test]
fn many_rectangles_come_as_they_are_or_as_everything() -> anyhow::Result<()> {
    let (mut rig, seat) = rig()?;
    let mut canvas = rig.canvas(SMALL)?;
    seat.say(&FromConsole::Watched(true))?;
    until_dirt_is(&mut canvas.video, true)?;
    seat.drain()?;
    // More than one message to the console holds, more than its socket holds.
    let rects: Vec<_> = (0..255).map(|n| Area { x: n, y: n, width: 1, height: 1 }).collect();
    canvas.tell(&rects)?;
    let mut missing: Vec<i32> = (0..255).collect();
    while !missing.is_empty() {
        let received = seat.hear(LIMIT)?.with_context(|| format!("{missing:?} are not told"))?;
        match received.message {
            ToConsole::Dirty(rects) => {
                missing.retain(|&n| !rects.iter().any(|r| r.x1 <= n && r.y1 <= n && r.x2 > n && r.y2 > n));
            }
            ToConsole::AllDirty => missing.clear(),
            _ => {}
        }
    }
    for _ in 0..3000 {
        canvas.tell(&rects)?;
    }
    canvas.paint(Area { x: 600, y: 470, width: 1, height: 1 }, &[1])?;
    seat.until("the last one, or all", |received| match received.message {
        ToConsole::Dirty(rects) => {
            rects.iter().any(|r| r.x1 <= 600 && r.y1 <= 470 && r.x2 > 600 && r.y2 > 470).then_some(())
        }
        ToConsole::AllDirty => Some(()),
        _ => None,
    })?;
    Ok(rig.guest.client.close(canvas.video.into_channel())?)
}

#[test]
fn the_pointer_has_a_shape_and_a_place() -> anyhow::Result<()> {
    let (mut rig, seat) = rig()?;
    let mut canvas = rig.canvas(SMALL)?;
    seat.say(&FromConsole::Watched(true))?;
    until_dirt_is(&mut canvas.video, true)?;
    seat.drain()?;
    canvas.video.point(true, 100, -3)?;
    seat.until("where the pointer is", |received| {
        (received.message == ToConsole::PointerPosition { x: 100, y: -3, visible: true }).then_some(())
    })?;
    for side in [1, 31, 32, 64, 96] {
        let bits: Vec<u8> =
            (0..side * side).flat_map(|n| [n as u8, (n / 7) as u8, 5, 0x80 + (n % 128) as u8]).collect();
        let shape = Shape { argb: true, width: side, height: side, hot: (side / 2, side - 1), bits };
        canvas.video.shape(&shape)?;
        let mut assembly = Assembly::new();
        let came = seat.until("the pointer's shape", |received| match received.message {
            ToConsole::PointerShape(part) => assembly.add(part),
            _ => None,
        })?;
        ensure!((came.width, came.height) == (side as u16, side as u16), "{}x{}", came.width, came.height);
        ensure!((came.hot_x, came.hot_y) == ((side / 2) as u16, (side - 1) as u16));
        ensure!(came.pixels == shape.bits, "the shape of {side} pixels has changed");
    }
    Ok(rig.guest.client.close(canvas.video.into_channel())?)
}

#[test]
fn a_new_console_is_told_everything() -> anyhow::Result<()> {
    let (mut rig, seat) = rig()?;
    let mut canvas = rig.canvas(SMALL)?;
    let bits = vec![9; 32 * 32 * 4];
    canvas.video.shape(&Shape { argb: true, width: 32, height: 32, hot: (1, 2), bits: bits.clone() })?;
    canvas.video.point(true, 5, 6)?;
    // One that is heard when all of that is.
    canvas.video.show(SMALL)?;
    canvas.video.settle()?;
    seat.drain()?;
    for _ in 0..3 {
        seat.say(&FromConsole::Ask)?;
        let (mut hello, mut picture, mut shape, mut place) = (false, None, None, None);
        let mut assembly = Assembly::new();
        for message in seat.drain()? {
            match message {
                ToConsole::Hello { .. } => hello = true,
                ToConsole::Surface(surface) => picture = Some(surface),
                ToConsole::PointerShape(part) => shape = assembly.add(part).or(shape),
                ToConsole::PointerPosition { x, y, visible } => place = Some((x, y, visible)),
                _ => {}
            }
            ensure!(hello, "something comes before the hello");
        }
        ensure!(picture.is_some_and(|surface| surface.width == 640), "{picture:?}");
        ensure!(shape.is_some_and(|shape| shape.pixels == bits), "no shape");
        ensure!(place == Some((5, 6, true)), "{place:?}");
    }
    rig.guest.client.close(canvas.video.into_channel())?;
    seat.drain()?;
    seat.say(&FromConsole::Ask)?;
    let told = seat.drain()?;
    ensure!(told.iter().any(|message| matches!(message, ToConsole::NoSurface)), "{told:?}");
    ensure!(!told.iter().any(|message| matches!(message, ToConsole::Surface(_))), "{told:?}");
    Ok(())
}

#[test]
fn a_driver_is_unloaded_and_loaded_again() -> anyhow::Result<()> {
    let (mut rig, seat) = rig()?;
    for _ in 0..5 {
        let canvas = rig.canvas(SMALL)?;
        surface(&seat)?;
        rig.guest.client.close(canvas.video.into_channel())?;
        seat.until("no picture", |received| matches!(received.message, ToConsole::NoSurface).then_some(()))?;
    }
    let canvas = rig.canvas(SMALL)?;
    surface(&seat)?;
    drop(canvas);
    rig.reset()?;
    seat.until("no picture", |received| matches!(received.message, ToConsole::NoSurface).then_some(()))?;
    ensure!(rig.vm.platform().device_memory().is_empty(), "video memory outlives a reset");
    let canvas = rig.canvas(SMALL)?;
    surface(&seat)?;
    rig.guest.client.close(canvas.video.into_channel())?;
    ensure!(rig.vm.device(VIDEO).try_wait()?.is_none());
    Ok(())
}
