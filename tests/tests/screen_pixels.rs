//! What a guest draws is what a viewer sees, to the pixel: in every encoding and format, in every mode, over random
//! rectangles.

use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::{
    screen::{
        Area, Canvas, Format, Rig, Viewer,
        picture::{Picture, texture},
        viewer::{Event, Options, encoding},
    },
    steps::{Dice, LIMIT},
};
use vsc::video::{Driver, Shape, Situation, VideoOptions};

const SMALL: Situation = Situation::of(640, 480);
/// How long nothing has to come for it to mean that nothing comes.
const QUIET: Duration = Duration::from_millis(150);

const RAW: &[i32] = &[encoding::RAW, encoding::DESKTOP_SIZE];
const TIGHT: &[i32] = &[encoding::TIGHT, encoding::DESKTOP_SIZE];
const ZRLE: &[i32] = &[encoding::ZRLE, encoding::DESKTOP_SIZE];

/// A guest draws `count` times; after each the viewers have the same picture.
fn draw_and_look(canvas: &mut Canvas, viewers: &mut [Viewer], count: u32, seed: u64) -> anyhow::Result<()> {
    let mut dice = Dice(seed);
    for viewer in viewers.iter_mut() {
        viewer.until(|viewer| viewer.size() == (canvas.picture.width, canvas.picture.height))?;
        viewer.refresh(false)?;
        viewer.next_update(LIMIT)?;
        viewer.until_same(&canvas.picture)?;
    }
    for n in 0..count {
        for _ in 0..1 + dice.roll(4) {
            canvas.scribble(&mut dice)?;
        }
        for viewer in viewers.iter_mut() {
            viewer.until_same(&canvas.picture).with_context(|| format!("picture {n}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_encoding_in_every_format() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let formats = [
        Format::RGB32,
        Format::BGR32_BIG,
        Format::RGB32_HIGH,
        Format::RGB565,
        Format::RGB565_BIG,
        Format::RGB332,
    ];
    for (n, format) in (1..).zip(formats) {
        let mut viewers = Vec::new();
        for encodings in [RAW, ZRLE, TIGHT] {
            viewers.push(rig.console()?.viewer(&Options { encodings, format, password: None })?);
        }
        draw_and_look(&mut canvas, &mut viewers, 12, n).with_context(|| format!("{format:?}"))?;
    }
    rig.all_live()
}

#[test]
fn many_pictures_one_after_the_other() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewers = [rig.viewer()?];
    draw_and_look(&mut canvas, &mut viewers, 250, 77)?;
    let [viewer] = viewers;
    ensure!(viewer.counts.sizes <= 2, "the size was told {} times", viewer.counts.sizes);
    Ok(())
}

#[test]
fn modes_of_all_kinds() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewers =
        [rig.viewer()?, rig.console()?.viewer(&Options { encodings: RAW, ..Options::default() })?];
    let odd = Situation { active: true, offset: 12_288, depth: 32, width: 803, height: 601, pitch: 4096 };
    for (n, situation) in (1..).zip([
        Situation::of(800, 600),
        odd,
        Situation::of(1920, 1080),
        Situation::of(641, 481),
        Situation::of(3840, 2160),
        SMALL,
    ]) {
        canvas = canvas.change(situation)?;
        let count = if situation.width > 2000 { 2 } else { 8 };
        draw_and_look(&mut canvas, &mut viewers, count, n).with_context(|| format!("{situation:?}"))?;
    }
    Ok(())
}

#[test]
fn sixteen_bits_a_pixel() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let situation = Situation { depth: 16, pitch: 1280, ..SMALL };
    let mut canvas = rig.canvas(situation)?;
    let mut viewer = rig.viewer()?;
    let mut dice = Dice(5);
    for n in 0..20 {
        canvas.scribble(&mut dice)?;
        // However the bits are widened, the upper ones are those that were drawn.
        let wanted = canvas.picture.clone().masked(0xf8_fcf8);
        let mut why = None;
        let same = viewer.until(|viewer| {
            why = viewer.picture().masked(0xf8_fcf8).difference(&wanted, 0);
            why.is_none()
        });
        same.with_context(|| format!("picture {n}: {why:?}"))?;
    }
    Ok(())
}

/// The brightest of 16 bits is white and not nearly so.
#[test]
fn white_is_white() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(Situation { depth: 16, pitch: 1280, ..SMALL })?;
    let all = canvas.whole();
    canvas.paint(all, &vec![0xff_ffff; all.pixels()])?;
    let mut viewer = rig.viewer()?;
    viewer.until_same(&canvas.picture)
}

#[test]
fn a_part_is_asked_for() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewer = rig.viewer()?;
    viewer.until_same(&canvas.picture)?;
    let mut dice = Dice(8);
    for _ in 0..10 {
        canvas.scribble(&mut dice)?;
    }
    viewer.until_same(&canvas.picture)?;
    // Asked for as it is, a part comes whether or not it has changed, and nothing else does.
    for _ in 0..10 {
        let area = Area::random(&mut dice, 640, 480);
        let before = viewer.counts;
        viewer.request(false, area)?;
        viewer.next_update(LIMIT)?;
        let pixels = viewer.counts.pixels - before.pixels;
        ensure!(pixels as usize >= area.pixels(), "{pixels} pixels of {area:?}");
        ensure!(viewer.picture() == canvas.picture);
    }
    // Nothing changes, so nothing comes.
    viewer.refresh(true)?;
    ensure!(viewer.receive(QUIET)?.is_none(), "something comes that has not changed");
    // What is drawn again as it was is no change either.
    let all = canvas.whole();
    let same = canvas.picture.part(all);
    canvas.paint(all, &same)?;
    if let Some(event) = viewer.receive(QUIET)? {
        ensure!(event == Event::Update(0), "{event:?} for what has not changed");
        viewer.refresh(true)?;
    }
    let before = viewer.counts.pixels;
    canvas.paint(Area { x: 1, y: 1, width: 1, height: 1 }, &[0x01_0203])?;
    viewer.next_update(LIMIT)?;
    let pixels = viewer.counts.pixels - before;
    ensure!(viewer.picture() == canvas.picture && pixels <= 64 * 64, "{pixels} pixels for one");
    Ok(())
}

/// hyperv_drm draws after the mode is set and tells no dirt of the first picture.
#[test]
fn a_picture_that_nobody_told_of_is_seen_by_who_asks_for_all() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let video = rig.video(&VideoOptions { driver: Driver::Drm, ..VideoOptions::default() })?;
    let mut canvas = Canvas::new(video, SMALL)?;
    let all = canvas.whole();
    let pixels = texture(&mut Dice(4), all);
    canvas.paint_silently(all, &pixels)?;
    let mut viewer = rig.viewer()?;
    viewer.refresh(false)?;
    viewer.next_update(LIMIT)?;
    viewer.until_same(&canvas.picture)
}

#[test]
fn without_a_picture_there_is_something_to_look_at() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut viewer = rig.viewer()?;
    let (width, height) = viewer.size();
    ensure!(width >= 64 && height >= 64, "{width}x{height} before there is a picture");
    viewer.refresh(false)?;
    viewer.next_update(LIMIT)?;
    for round in 0..3 {
        let mut canvas = rig.canvas(SMALL)?;
        let mut dice = Dice(round + 1);
        canvas.scribble(&mut dice)?;
        viewer.until_same(&canvas.picture).with_context(|| format!("round {round}"))?;
        rig.guest.client.close(canvas.video.into_channel())?;
        // What was there is not shown for ever: but a viewer that asks is answered.
        viewer.refresh(false)?;
        viewer.next_update(LIMIT)?;
    }
    Ok(())
}

#[test]
fn viewers_of_all_kinds_at_once() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewers = Vec::new();
    for n in 0..16 {
        let format = [Format::RGB32, Format::RGB565, Format::BGR32_BIG][n % 3];
        let encodings = [encoding::ALL, RAW, ZRLE, TIGHT][n % 4];
        viewers.push(rig.console()?.viewer(&Options { encodings, format, password: None })?);
    }
    draw_and_look(&mut canvas, &mut viewers, 10, 3)?;
    // There is room for no more, until one goes.
    ensure!(rig.viewer().is_err(), "a seventeenth viewer");
    viewers.truncate(12);
    rig.console()?.wait("rid of four viewers", |state| state["viewers"] == 12)?;
    viewers.push(rig.viewer()?);
    draw_and_look(&mut canvas, &mut viewers, 3, 4)
}

#[test]
fn the_pointer_is_seen() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let plain = [encoding::RAW, encoding::CURSOR, encoding::DESKTOP_SIZE];
    let mut viewers =
        [rig.viewer()?, rig.console()?.viewer(&Options { encodings: &plain, ..Options::default() })?];
    for (side, hot) in [(16, (3, 4)), (96, (95, 0)), (1, (0, 0)), (33, (32, 32))] {
        // Blue, green, red, opacity: seen or not seen at all, so that both encodings can say it.
        let pixel = |n: u32| if n.is_multiple_of(3) { [0; 4] } else { [n as u8, (n / 3) as u8, 200, 255] };
        let bits: Vec<u8> = (0..side * side).flat_map(pixel).collect();
        canvas.video.shape(&Shape { argb: true, width: side, height: side, hot, bits })?;
        let wanted: Vec<[u8; 4]> = (0..side * side)
            .map(|n| {
                let [blue, green, red, alpha] = pixel(n);
                [red, green, blue, alpha]
            })
            .collect();
        for (n, viewer) in viewers.iter_mut().enumerate() {
            let mut seen = None;
            let same = viewer.until(|viewer| {
                seen = viewer.cursor.as_ref().map(|cursor| (cursor.width, cursor.height, cursor.hot));
                let Some(cursor) = &viewer.cursor else { return false };
                (cursor.width, cursor.height, cursor.hot) == (side, side, hot) && cursor.pixels == wanted
            });
            // A pointer of nothing but one pixel that is not seen may come as none.
            if side > 1 {
                same.with_context(|| format!("viewer {n}, {side} pixels: {seen:?}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_screenshot_is_the_picture() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut dice = Dice(9);
    for _ in 0..20 {
        canvas.scribble(&mut dice)?;
    }
    // Also without anybody who looks, and so without dirt.
    for _ in 0..3 {
        canvas.scribble(&mut dice)?;
        let (answer, png) = rig.console()?.ask(r#"{"screenshot":{}}"#)?;
        ensure!(!png.is_empty(), "{answer}");
        let shot = decode(&png)?;
        ensure!(shot.difference(&canvas.picture, 0).is_none(), "{:?}", shot.difference(&canvas.picture, 0));
    }
    rig.guest.client.close(canvas.video.into_channel())?;
    rig.all_live()
}

fn decode(bytes: &[u8]) -> anyhow::Result<Picture> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("too large")?];
    let info = reader.next_frame(&mut pixels)?;
    let size = info.color_type.samples();
    ensure!(size == 3 || size == 4, "{:?}", info.color_type);
    let mut picture = Picture::new(info.width, info.height);
    let colours = pixels.chunks_exact(size).map(|p| u32::from_be_bytes([0, p[0], p[1], p[2]]));
    let area = Area { x: 0, y: 0, width: info.width, height: info.height };
    picture.put(area, &colours.collect::<Vec<_>>());
    Ok(picture)
}

#[test]
fn a_password_is_asked_for_on_tcp() -> anyhow::Result<()> {
    let setup = bulkhead_tests::screen::console::Setup {
        password: Some("s3cret".into()),
        quiet: true,
        ..Default::default()
    };
    let mut rig = Rig::with(|vm| vm, &setup)?;
    let mut canvas = rig.canvas(SMALL)?;
    canvas.scribble(&mut Dice(3))?;
    let port = rig.console()?.port()?;
    let connect = |password| -> anyhow::Result<Viewer> {
        let stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        Viewer::over(stream, &Options { password, ..Options::default() })
    };
    for wrong in [None, Some("wrong"), Some(""), Some("s3cre"), Some("s3cret1")] {
        ensure!(connect(wrong).is_err(), "{wrong:?} lets in");
    }
    connect(Some("s3cret"))?.until_same(&canvas.picture)?;
    // Nobody asks on a socket of the host's own.
    rig.viewer()?.until_same(&canvas.picture)
}

/// Nobody looks, nothing changes: nobody works.
#[test]
fn an_idle_screen_costs_nothing() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut canvas = rig.canvas(Situation::of(1920, 1080))?;
    let mut viewer = rig.viewer()?;
    canvas.scribble(&mut Dice(3))?;
    viewer.until_same(&canvas.picture)?;
    viewer.refresh(true)?;
    // All is looked at once more a second after somebody has come.
    std::thread::sleep(Duration::from_millis(1500));
    let mut pids = vec![rig.console()?.process().pid()];
    pids.extend(bulkhead_tests::screen::rig::DEVICES.map(|name| rig.vm.device(name).pid()));
    let before: Vec<u64> = pids.iter().map(|&pid| switches(pid)).collect::<anyhow::Result<_>>()?;
    std::thread::sleep(Duration::from_millis(1500));
    for (pid, before) in pids.iter().zip(before) {
        let times = switches(*pid)? - before;
        ensure!(times <= 3, "process {pid} woke {times} times in 1.5 s of nothing");
    }
    Ok(())
}

/// How often a process has gone to sleep.
fn switches(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.context("no count")?.trim().parse()?)
}
