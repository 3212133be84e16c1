//! A hostile guest and its screen, keyboard and mouse: whatever it says, the processes live, nothing but the VM's own
//! device memory is mapped, the console shows what there is, and an honest guest finds devices that work.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform,
    screen::{
        Canvas, Rig,
        rig::{DEVICES, PLACE, VRAM},
    },
    steps::{Dice, LIMIT},
};
use core_vmm::layout::{VMBUS_HIGH_MMIO_BASE, VMBUS_LOW_MMIO, vmbus_high_mmio};
use vmbus::packet::{Outgoing, PacketType, gpa_direct_header};
use vsc::{
    Error, Platform,
    keyboard::{self, Keyboard},
    mouse::{self, Mouse},
    video::{Rect, Shape, Situation, Video, VideoOptions, wire},
};

const SMALL: Situation = Situation::of(640, 480);
/// How long an answer that does not come is waited for.
const SHORT: Duration = Duration::from_millis(300);

/// Everybody is as well as before, for a guest that comes after a reset.
fn lives(mut rig: Rig) -> anyhow::Result<()> {
    rig.all_live()?;
    rig.reset()?;
    let mut canvas = rig.canvas(SMALL).context("the screen does not recover")?;
    let (mut keyboard, mut mouse) = (rig.keyboard()?, rig.mouse()?);
    rig.console()?.wait("ready", |state| state["keyboard"] == true && state["mouse"] == true)?;
    let mut viewer = rig.viewer()?;
    let mut dice = Dice(3);
    for _ in 0..5 {
        canvas.scribble(&mut dice)?;
        viewer.until_same(&canvas.picture).context("the picture does not recover")?;
    }
    for down in [true, false] {
        viewer.key(down, 0x61)?;
        keyboard.stroke(LIMIT)?.context("the keyboard does not recover")?;
    }
    viewer.pointer(0, 77, 78)?;
    mouse.report(LIMIT)?.context("the mouse does not recover")?;
    rig.all_live()
}

/// A screen whose driver expects that it is not answered.
fn impatient(rig: &mut Rig) -> anyhow::Result<Video<SoftPlatform>> {
    let offer = rig.guest.offer(0)?;
    let options = VideoOptions { timeout: SHORT, ..VideoOptions::default() };
    Ok(Video::open(&mut rig.guest.client, &offer, &options)?)
}

/// Drains what comes and is not understood; a dishonest guest may be answered anything, but its ring stays whole.
fn drain(video: &mut Video<SoftPlatform>) -> anyhow::Result<()> {
    let until = Instant::now() + LIMIT;
    loop {
        ensure!(Instant::now() < until, "it does not end");
        match video.handle(Duration::from_millis(20)) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) | Err(Error::Protocol(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn video_memory_goes_nowhere_but_into_the_window() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let ram = 64 << 20;
    let high = vmbus_high_mmio(ram);
    let outside = [
        0,
        4096,
        ram - VRAM,
        ram - 4096,
        ram,
        1 << 31,
        VMBUS_LOW_MMIO.0 - 4096,
        VMBUS_LOW_MMIO.0 - VRAM,
        VMBUS_LOW_MMIO.0 - VRAM / 2,
        VMBUS_LOW_MMIO.1 + 1 - VRAM + 4096,
        VMBUS_LOW_MMIO.1 + 1 - 4096,
        VMBUS_LOW_MMIO.1 + 1,
        0xfec0_0000,
        0xfee0_0000,
        1 << 32,
        VMBUS_HIGH_MMIO_BASE - 4096,
        high.0 - 4096,
        high.1 + 1 - VRAM + 4096,
        high.1 + 1,
        1 << 52,
        1 << 63,
        u64::MAX - VRAM + 1,
        u64::MAX - 4095,
        u64::MAX,
        PLACE + 1,
        PLACE + 2048,
    ];
    for gpa in outside {
        let mut video = impatient(&mut rig)?;
        // Not answered, or answered with something else: the driver gives up either way.
        match video.locate(gpa, Some(gpa)) {
            Ok(context) => ensure!(context != gpa, "video memory is said to be at {gpa:#x}"),
            Err(Error::Timeout(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("{gpa:#x}")),
        }
        let all = rig.vm.platform().device_memory();
        ensure!(all.is_empty(), "{gpa:#x}: {all:x?}");
        // It is what it was for another try.
        video.place(PLACE).with_context(|| format!("after {gpa:#x}"))?;
        rig.guest.client.close(video.into_channel())?;
    }
    // Refused when it has a place: it stays there, or is nowhere, but not where it was refused.
    let mut video = impatient(&mut rig)?;
    video.place(PLACE)?;
    let _ = video.locate(7, Some(0x1000));
    let all = rig.vm.platform().device_memory();
    ensure!(all.iter().all(|&(gpa, _)| gpa == PLACE), "{all:x?}");
    // Far up is as good a place.
    video.place(high.0)?;
    video.place(high.1 + 1 - VRAM)?;
    let all = rig.vm.platform().device_memory();
    ensure!(all.iter().map(|(_, bytes)| bytes).sum::<u64>() <= 4 * VRAM, "{all:x?}");
    rig.guest.client.close(video.into_channel())?;
    lives(rig)
}

#[test]
fn many_places() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut video = impatient(&mut rig)?;
    // Some are refused in the end: each costs the host something.
    let mut refused = 0;
    for n in 0..300 {
        refused += u32::from(video.place(PLACE + (n % 100) * 4096 * 3).is_err());
        let all = rig.vm.platform().device_memory();
        ensure!(all.len() <= 1 && (n > 50 || all.len() == 1), "{n}: {all:x?}");
        ensure!(refused == 0 || n > 50, "{n}");
    }
    ensure!(refused > 0, "as often as it likes");
    drop(video);
    // After a while it may again.
    std::thread::sleep(Duration::from_secs(1));
    lives(rig)
}

#[test]
fn absurd_modes() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut viewer = rig.viewer()?;
    let mut video = impatient(&mut rig)?;
    video.place(PLACE)?;
    let edge =
        [0, 1, 31, 639, 3840, 3841, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x4000_0000, 0x7fff_ffff, u32::MAX];
    let mut modes = Vec::new();
    for value in edge {
        modes.extend([
            Situation { width: value, ..SMALL },
            Situation { height: value, ..SMALL },
            Situation { pitch: value, ..SMALL },
            Situation { offset: value, ..SMALL },
            Situation { width: value, height: value, pitch: value.wrapping_mul(4), ..SMALL },
            Situation { width: value, height: value, pitch: u32::MAX, offset: u32::MAX, ..SMALL },
            Situation { depth: value as u8, ..SMALL },
        ]);
    }
    for offset in [VRAM - 4, VRAM - 640 * 480 * 4, VRAM - 640 * 480 * 4 + 4, VRAM, VRAM - 1] {
        modes.push(Situation { offset: offset as u32, ..SMALL });
    }
    for situation in modes {
        video.show(situation)?;
        // Whatever it is, it is acknowledged, since the driver has been told nothing else.
        video.settle().with_context(|| format!("{situation:?}"))?;
        video.dirt(&[Rect { x1: 0, y1: 0, x2: i32::MAX, y2: i32::MAX }])?;
        viewer.refresh(false)?;
        viewer.next_update(LIMIT).with_context(|| format!("{situation:?}"))?;
        let (width, height) = viewer.size();
        ensure!(width <= 3840 && height <= 2160, "{width}x{height}");
    }
    // More outputs than there are, and none.
    for count in [0, 2, 3, 16] {
        let _ = video.update_situation(9, &vec![SMALL; count]);
        let _ = video.settle();
        drain(&mut video)?;
    }
    drop(video);
    lives(rig)
}

#[test]
fn dirt_from_outside() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewer = rig.viewer()?;
    viewer.until_same(&canvas.picture)?;
    let edge = [i32::MIN, i32::MIN + 1, -1, 0, 1, 479, 480, 639, 640, 641, 65_536, i32::MAX - 1, i32::MAX];
    let mut rects = Vec::new();
    for x1 in edge {
        for y2 in edge {
            rects.extend([
                Rect { x1, y1: 0, x2: y2, y2 },
                Rect { x1, y1: x1, x2: y2, y2: 10 },
                Rect { x1: y2, y1: x1, x2: x1, y2 },
            ]);
        }
    }
    for some in rects.chunks(100) {
        canvas.video.dirt(some)?;
        canvas.listen()?;
    }
    let mut dice = Dice(7);
    for _ in 0..2000 {
        let mut side = || dice.number() as i32;
        canvas.video.dirt(&[Rect { x1: side(), y1: side(), x2: side(), y2: side() }])?;
    }
    canvas.scribble(&mut dice)?;
    viewer.until_same(&canvas.picture)?;
    // Counts that lie.
    for (count, rects) in [(255u8, 0usize), (1, 0), (0, 3), (200, 100)] {
        let body = [vec![0, count], vec![1; rects * 16]].concat();
        canvas.video.send(&wire::message(wire::DIRT, &[&body]))?;
    }
    canvas.video.send(&wire::message(wire::DIRT, &[&[7, 1], &[0; 16]]))?;
    drop(canvas);
    lives(rig)
}

#[test]
fn pointers_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewer = rig.viewer()?;
    let edge = [0, 1, 95, 96, 97, 0xffff, 0x1_0000, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    for width in edge {
        for height in edge {
            for bits in [0, 4, 36_864, 8192] {
                let shape =
                    Shape { argb: bits % 8 == 0, width, height, hot: (height, width), bits: vec![1; bits] };
                for index in [0, 1, 2, 254, wire::POINTER_COMPLETE] {
                    canvas.video.send(&shape.part(index, &shape.bits[..bits.min(8192)]))?;
                }
            }
        }
    }
    // Parts without an end, and parts of what has not begun.
    let large = Shape { argb: true, width: 96, height: 96, hot: (0, 0), bits: vec![3; 8192] };
    for round in 0..1000u32 {
        canvas.video.send(&large.part(round as u8, &large.bits))?;
    }
    for (x, y) in [(i32::MIN, i32::MAX), (i32::MAX, i32::MIN), (-1, -1)] {
        canvas.video.point(true, x, y)?;
    }
    let good = Shape { argb: true, width: 5, height: 4, hot: (2, 2), bits: vec![0xff; 80] };
    canvas.video.shape(&good)?;
    viewer.until(|viewer| {
        viewer.cursor.as_ref().is_some_and(|cursor| (cursor.width, cursor.height) == (5, 4))
    })?;
    // Two masks of a bit a pixel: whatever becomes of it, nobody minds.
    let mono = Shape { argb: false, width: 32, height: 32, hot: (0, 0), bits: vec![0xaa; 256] };
    canvas.video.shape(&mono)?;
    canvas.scribble(&mut Dice(1))?;
    viewer.until_same(&canvas.picture)?;
    drop((canvas, viewer));
    lives(rig)
}

#[test]
fn floods() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut canvas = rig.canvas(SMALL)?;
    let mut viewer = rig.viewer()?;
    viewer.until_same(&canvas.picture)?;
    let mut dice = Dice(11);
    let all = [Rect { x1: 0, y1: 0, x2: 640, y2: 480 }; 255];
    for n in 0..5000u32 {
        match n % 4 {
            0 => canvas.video.dirt(&all)?,
            1 => canvas.video.hide_pointer()?,
            2 => canvas.video.update_situation(u64::from(n), &[SMALL])?,
            _ => canvas.video.send(&wire::version_request(wire::VERSION_3_5))?,
        }
        // It reads seldom.
        if n % 500 == 0 {
            drain(&mut canvas.video)?;
        }
    }
    drain(&mut canvas.video)?;
    canvas.scribble(&mut dice)?;
    viewer.until_same(&canvas.picture)?;
    drop((canvas, viewer));
    lives(rig)
}

/// A guest that never reads its ring: the device waits and does not grow.
#[test]
fn a_guest_that_never_reads() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let canvas = rig.canvas(SMALL)?;
    let mut video = canvas.video;
    let message = wire::situation_update(3, &[SMALL]);
    let mut sent = 0;
    while sent < 20_000 {
        match video.channel().send(&Outgoing::in_band(sent, true), &[&message]) {
            Ok(()) => sent += 1,
            // Once nothing is taken any more, no room comes.
            Err(Error::Push(_)) => {
                std::thread::sleep(Duration::from_millis(20));
                if video.channel().send(&Outgoing::in_band(sent, true), &[&message]).is_err() {
                    break;
                }
                sent += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (mut keyboard, mut viewer) = (rig.keyboard()?, rig.viewer()?);
    rig.console()?.wait("ready", |state| state["keyboard"] == true)?;
    // Nobody reads that either.
    for _ in 0..20_000 {
        viewer.key(true, 0x61)?;
        viewer.key(false, 0x61)?;
    }
    let resident = rig.vm.device(DEVICES[1]).pid();
    ensure!(resident_bytes(resident)? < 64 << 20, "the keyboard's process has grown");
    // Those that come are in pairs, and at the end nothing is pressed.
    while keyboard.stroke(Duration::from_millis(300))?.is_some() {}
    drop(viewer);
    while keyboard.stroke(Duration::from_millis(300))?.is_some() {}
    ensure!(keyboard.held().is_empty(), "{:?}", keyboard.held());
    lives(rig)
}

/// One that hangs and is reset: what was typed at it is not for the next one, who can be typed at.
#[test]
fn a_guest_that_never_read_is_reset() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let (unread, mut viewer) = (rig.keyboard()?, rig.viewer()?);
    rig.console()?.wait("ready", |state| state["keyboard"] == true)?;
    // More than its ring and the console's socket have room for.
    for _ in 0..5_000 {
        viewer.key(true, 0x61)?;
        viewer.key(false, 0x61)?;
    }
    drop(viewer);
    rig.reset()?;
    drop(unread);
    rig.console()?.wait("nobody listens", |state| state["keyboard"] == false)?;
    // What the console has sent before it heard that.
    std::thread::sleep(SHORT);
    let mut keyboard = rig.keyboard()?;
    ensure!(keyboard.stroke(SHORT)?.is_none(), "keys of the past");
    drop(keyboard);
    lives(rig)
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split_whitespace().nth(1).context("no pages")?.parse()?;
    Ok(pages * 4096)
}

/// Any bytes, of any packet type, to any of the three; in between good messages at the wrong time.
#[test]
fn nonsense() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut dice = Dice(17);
    for round in 0..12 {
        let open = keyboard::rings();
        for n in 0..3 {
            let offer = rig.guest.offer(n)?;
            let mut channel = rig.guest.client.open(&offer, &open)?;
            let good = [
                wire::vram_location(5, Some(PLACE)),
                wire::vram_location(5, None),
                wire::situation_update(1, &[SMALL]),
                wire::version_request(wire::VERSION_3_5),
                wire::resolution_request(0),
                wire::resolution_request(255),
                wire::message(wire::FEATURE_CHANGE, &[&[1, 1, 1, 1]]),
                wire::message(wire::VERSION_RESPONSE, &[&[1; 6]]),
                wire::message(wire::RESOLUTION_RESPONSE, &[&[1; 131]]),
                keyboard::message(keyboard::PROTOCOL_REQUEST, &keyboard::VERSION_1_0.to_le_bytes()),
                keyboard::message(keyboard::EVENT, &[1; 8]),
                keyboard::message(keyboard::LED_INDICATORS, &[7]),
                mouse::message(mouse::PROTOCOL_REQUEST, &mouse::VERSION_2_0.to_le_bytes()),
                mouse::message(mouse::DEVICE_INFO_ACK, &[0]),
                mouse::message(mouse::INPUT_REPORT, &[1; 16]),
            ];
            for id in 0..400u64 {
                let mut message = good[dice.roll(good.len() as u32) as usize].clone();
                match dice.roll(4) {
                    0 => dice.fill(&mut message),
                    1 => message.truncate(dice.roll(message.len() as u32 + 1) as usize),
                    2 => {
                        let at = dice.roll(message.len() as u32) as usize;
                        message[at] = dice.number() as u8;
                    }
                    _ => {}
                }
                let page = channel.gpadl().address / 4096;
                let header = gpa_direct_header(&[(16, 64, &[page])]);
                let (kind, parts): (_, Vec<&[u8]>) = match dice.roll(8) {
                    0 => (PacketType::GPA_DIRECT, vec![&header, &message]),
                    1 => (PacketType::COMPLETION, vec![&message]),
                    2 => (PacketType::CANCEL, vec![&message]),
                    3 => (PacketType(dice.number() as u16), vec![&message]),
                    _ => (PacketType::IN_BAND, vec![&message]),
                };
                let type_header_len = if parts.len() == 2 { header.len() as u32 } else { 0 };
                let flags = dice.roll(2) as u16;
                let packet = Outgoing { packet_type: kind, flags, transaction_id: id, type_header_len };
                match channel.send_waiting(&packet, &parts, SHORT) {
                    // What it does not read it does not get.
                    Ok(()) | Err(Error::Timeout(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                while channel.poll()?.is_some() {}
            }
            rig.guest.client.close(channel).with_context(|| format!("round {round}, device {n}"))?;
        }
        rig.all_live().with_context(|| format!("round {round}"))?;
        let all = rig.vm.platform().device_memory();
        ensure!(all.is_empty(), "{all:x?}");
    }
    lives(rig)
}

#[test]
fn keyboard_and_mouse_agree_on_what_is_sent_only_after_they_have_agreed() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let (one, other) = (rig.guest.offer(1)?, rig.guest.offer(2)?);
    let keyboard = rig.guest.client.open(&one, &keyboard::rings())?;
    let mouse = rig.guest.client.open(&other, &keyboard::rings())?;
    let mut viewer = rig.viewer()?;
    for n in 0..100 {
        viewer.key(true, 0x61)?;
        viewer.key(false, 0x61)?;
        viewer.pointer(1, n, n)?;
        viewer.pointer(0, n, n)?;
    }
    std::thread::sleep(SHORT);
    for mut channel in [keyboard, mouse] {
        ensure!(channel.poll()?.is_none(), "something comes before the version is agreed on");
        rig.guest.client.close(channel)?;
    }
    // Whoever comes then is not flooded with the past.
    let mut keyboard: Keyboard<SoftPlatform> = rig.keyboard()?;
    let mut mouse: Mouse<SoftPlatform> = rig.mouse()?;
    ensure!(keyboard.stroke(SHORT)?.is_none(), "keys of the past");
    ensure!(mouse.report(SHORT)?.is_none_or(|report| report.buttons == 0), "clicks of the past");
    lives(rig)
}

/// Video memory changes while it is looked at.
#[test]
fn memory_that_never_stands_still() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut canvas = rig.canvas(Situation::of(800, 600))?;
    let mut viewers = [rig.viewer()?, rig.viewer()?];
    let platform = rig.vm.platform().clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let stop = &stop;
        let noise = scope.spawn(move || {
            let mut dice = Dice(5);
            let mut bytes = vec![0; 3200];
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                dice.fill(&mut bytes);
                let row = u64::from(dice.roll(600));
                platform.write(PLACE + row * 3200, &bytes);
            }
        });
        let all = canvas.whole();
        let mut look = || -> anyhow::Result<()> {
            for _ in 0..20 {
                canvas.tell(&[all])?;
                for viewer in &mut viewers {
                    // A stream that does not unpack would be an error in here.
                    viewer.refresh(true)?;
                    viewer.next_update(LIMIT)?;
                }
            }
            Ok(())
        };
        let looked = look();
        // Also after an error, or the scope would wait for it for ever.
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        noise.join().map_err(|_| anyhow::anyhow!("no panic"))?;
        looked
    })?;
    let all = canvas.whole();
    let pixels = vec![0x44_5566; all.pixels()];
    canvas.paint(all, &pixels)?;
    for viewer in &mut viewers {
        viewer.until_same(&canvas.picture)?;
    }
    drop((canvas, viewers));
    lives(rig)
}

#[test]
fn a_screen_that_goes_and_comes() -> anyhow::Result<()> {
    let mut rig = Rig::quiet()?;
    let mut viewer = rig.viewer()?;
    for n in 0..50 {
        let mut video = impatient(&mut rig)?;
        video.place(PLACE)?;
        video.update_situation(1, &[Situation::of(640 + n, 480)])?;
        // Closed in the middle of whatever happens.
        rig.guest.client.close(video.into_channel())?;
        if n % 10 == 0 {
            viewer.refresh(false)?;
            viewer.next_update(LIMIT)?;
        }
    }
    let canvas: Canvas = rig.canvas(SMALL)?;
    viewer.until_same(&canvas.picture)?;
    drop((canvas, viewer));
    lives(rig)
}
