//! A driver and a console with the device between them.

mod continuity;
mod hostile;
mod rig;

use std::time::{Duration, Instant};

use seat::shape::Assembly;
use seat::video::{Depth, FromConsole, Rect, Surface, ToConsole};
use vsp::Device;
use vsp::ipc::shm::Mapping;

use crate::state::Situation;
use crate::wire::{Dirt, Features, GuestMessage, HostMessage, PointerPart, Version};
use rig::{Ends, GPA, Rig, SITUATION, VRAM};

const SURFACE: Surface =
    Surface { width: 1024, height: 768, stride: 4096, depth: Depth::Xrgb8888, offset: 0, vram_bytes: VRAM };

fn rect(x1: i32, y1: i32, x2: i32, y2: i32) -> Rect {
    Rect { x1, y1, x2, y2 }
}

/// All rectangles that the console hears of, or `None` if it hears that all is dirty.
fn drawn(messages: &[ToConsole]) -> Option<Vec<Rect>> {
    let mut all = Vec::new();
    for message in messages {
        match message {
            ToConsole::Dirty(rects) => all.extend_from_slice(rects),
            ToConsole::AllDirty => return None,
            other => panic!("{other:?}"),
        }
    }
    Some(all)
}

#[test]
fn a_picture_appears() {
    let mut rig = Rig::new();
    rig.introduce();
    assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
    let mut heard = rig.ends.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    let received = heard.remove(0);
    assert_eq!(received.message, ToConsole::Surface(SURFACE));
    // What the guest draws is what the console sees.
    let guest = Mapping::new(&rig.bench.core.mapped_memory(GPA).unwrap(), 0, VRAM).unwrap();
    let console = Mapping::new(&received.memory.unwrap(), 0, VRAM).unwrap();
    guest.write(4096 * 100, b"pixels");
    let mut pixels = [0; 6];
    console.read(4096 * 100, &mut pixels);
    assert_eq!(&pixels, b"pixels");
}

#[test]
fn what_is_drawn_is_told_to_who_looks() {
    let mut rig = Rig::shown();
    rig.say_bytes(&Dirt::message(&[rect(0, 0, 10, 10), rect(1000, 700, 2000, 2000), rect(-5, -5, 0, 0)]));
    rig.say_bytes(&Dirt::message(&[rect(5, 6, 7, 8)]));
    rig.settle();
    let drawn_now = drawn(&rig.ends.messages()).unwrap();
    assert_eq!(drawn_now, [rect(0, 0, 10, 10), rect(1000, 700, 1024, 768), rect(5, 6, 7, 8)]);
    rig.ends.say(FromConsole::Watched(false));
    rig.settle();
    rig.say_bytes(&Dirt::message(&[rect(0, 0, 10, 10)]));
    rig.settle();
    assert!(rig.ends.messages().is_empty());
    rig.ends.say(FromConsole::Watched(true));
    rig.settle();
    assert_eq!(drawn(&rig.ends.messages()), None, "who begins to look looks at everything");
}

#[test]
fn more_rectangles_than_a_message_holds_are_everything() {
    let mut rig = Rig::shown();
    let rects: Vec<Rect> = (0..65).map(|at| rect(at, at, at + 1, at + 1)).collect();
    rig.say_bytes(&Dirt::message(&rects[..64]));
    rig.settle();
    assert_eq!(drawn(&rig.ends.messages()).unwrap(), rects[..64]);
    rig.say_bytes(&Dirt::message(&rects));
    rig.settle();
    assert_eq!(rig.ends.messages(), [ToConsole::AllDirty]);
}

#[test]
fn a_guest_is_asked_to_tell_once() {
    let mut rig = Rig::new();
    rig.introduce();
    // As hyperv_fb answers.
    for _ in 0..3 {
        rig.say(&GuestMessage::PointerPosition { visible: true, x: 0, y: 0 });
        rig.situation(SITUATION);
        assert!(rig.told().is_empty());
    }
    rig.ends.messages();
    rig.ends.say(FromConsole::Watched(true));
    rig.ends.say(FromConsole::Watched(false));
    rig.ends.say(FromConsole::Watched(true));
    assert!(rig.told().is_empty(), "somebody might have looked all the time");
}

#[test]
fn a_guest_that_nobody_looks_at_need_not_tell() {
    let mut rig = Rig::new();
    rig.introduce();
    assert!(rig.bench.runtime.device().wake_at().is_some());
    rig.bench.runtime.with_device(|video, _| {
        video.wanted.reopen();
        video.attention = true;
    });
    assert_eq!(rig.told(), [HostMessage::FeatureChange(Features::NONE)]);
    rig.ends.say(FromConsole::Watched(true));
    assert_eq!(rig.told(), [HostMessage::FeatureChange(Features::ALL)]);
    rig.ends.say(FromConsole::Watched(false));
    assert!(rig.told().is_empty());
    let due = rig.bench.runtime.device().wanted.due().unwrap();
    assert!(due <= Instant::now() + Duration::from_secs(5));
}

#[test]
fn a_guest_without_room_is_told_when_it_has_some() {
    let mut rig = Rig::shown();
    let question = GuestMessage::ResolutionRequest { most: 64 };
    for _ in 0..200 {
        rig.say(&question);
    }
    rig.settle();
    rig.bench.runtime.with_device(|video, _| {
        video.wanted.watch(false, Instant::now() - Duration::from_secs(10));
        video.attention = true;
    });
    rig.settle();
    assert_eq!(rig.bench.runtime.device().wanted.due(), None, "nothing is to be done before there is room");
    let mut told = Vec::new();
    while told.len() <= 200 {
        told.extend(rig.told());
    }
    let changes = told.iter().filter(|message| !matches!(message, HostMessage::ResolutionResponse { .. }));
    assert!(changes.eq(&[HostMessage::FeatureChange(Features::NONE)]));
}

#[test]
fn an_idle_screen_wakes_nobody() {
    let mut rig = Rig::shown();
    rig.pass(Duration::from_millis(1200));
    let refreshes = rig.ends.messages();
    assert!((1..=2).contains(&refreshes.len()), "soon and later: {refreshes:?}");
    assert_eq!(drawn(&refreshes), None);
    assert_eq!(rig.bench.runtime.device().wake_at(), None);
}

#[test]
fn a_guest_without_a_situation_wakes_nobody_for_what_it_cannot_be_told() {
    let mut rig = Rig::shown();
    let none = GuestMessage::SituationUpdate { context: 1, situation: None };
    assert_eq!(rig.ask(&none), HostMessage::SituationUpdateAck { context: 1 });
    rig.bench.runtime.with_device(|video, _| {
        video.wanted.watch(false, Instant::now() - Duration::from_secs(10));
    });
    rig.pass(Duration::from_millis(1200));
    assert!(rig.bench.runtime.device().wanted.due().is_some(), "that nobody looks any more");
    assert_eq!(rig.bench.runtime.device().wake_at(), None);
    assert!(rig.told().is_empty());
    rig.situation(SITUATION);
    assert_eq!(rig.told(), [HostMessage::FeatureChange(Features::NONE)]);
}

#[test]
fn modes_change() {
    let mut rig = Rig::shown();
    let high = Situation { depth_bits: 16, width: 640, height: 480, pitch: 2048, offset: 4096, ..SITUATION };
    rig.situation(high);
    rig.settle();
    let surface =
        Surface { width: 640, height: 480, stride: 2048, depth: Depth::Rgb565, offset: 4096, ..SURFACE };
    assert_eq!(rig.ends.messages(), [ToConsole::Surface(surface)]);
    rig.situation(Situation { active: false, ..high });
    rig.settle();
    assert_eq!(rig.ends.messages(), [ToConsole::NoSurface]);
    rig.say_bytes(&Dirt::message(&[rect(0, 0, 10, 10)]));
    rig.settle();
    assert!(rig.ends.messages().is_empty(), "there is nothing to draw on");
    let message = GuestMessage::SituationUpdate { context: 1, situation: Some(SITUATION) };
    assert_eq!(rig.ask(&message), HostMessage::SituationUpdateAck { context: 1 });
    rig.settle();
    assert_eq!(rig.ends.messages(), [ToConsole::Surface(SURFACE)]);
    let message = GuestMessage::SituationUpdate { context: 2, situation: None };
    assert_eq!(rig.ask(&message), HostMessage::SituationUpdateAck { context: 2 });
    rig.settle();
    assert_eq!(rig.ends.messages(), [ToConsole::NoSurface]);
}

#[test]
fn a_pointer_is_told() {
    let mut rig = Rig::shown();
    rig.say(&GuestMessage::PointerPosition { visible: true, x: -3, y: 40 });
    let pixels: Vec<u8> = (0..64 * 64 * 4).map(|at| (at % 255) as u8).collect();
    for (index, range) in [(0, 0..10_000), (PointerPart::LAST, 10_000..pixels.len())] {
        let (width, height, bytes) = (64, 64, &pixels[range]);
        let part = PointerPart { index, is_argb: true, width, height, hot_x: 1, hot_y: 2, bytes };
        rig.say(&GuestMessage::PointerShape(part));
    }
    rig.settle();
    for _ in 0..2 {
        let (mut assembly, mut shape, mut position) = (Assembly::new(), None, None);
        for message in rig.ends.messages() {
            match message {
                ToConsole::PointerShape(part) => shape = assembly.add(part).or(shape),
                ToConsole::PointerPosition { x, y, visible } => position = Some((x, y, visible)),
                _ => {}
            }
        }
        let shape = shape.unwrap();
        assert_eq!((shape.width, shape.height, shape.hot_x, shape.hot_y), (64, 64, 1, 2));
        assert!(shape.pixels == pixels);
        assert_eq!(position, Some((-3, 40, true)));
        // A console that begins hears it as well.
        rig.ends.say(FromConsole::Ask);
        rig.settle();
    }
}

#[test]
fn a_console_that_asks_is_told_everything() {
    let mut rig = Rig::shown();
    rig.ends.say(FromConsole::Ask);
    rig.settle();
    let heard = rig.ends.heard();
    let messages: Vec<_> = heard.iter().map(|received| &received.message).collect();
    assert!(matches!(
        messages[..],
        [ToConsole::Hello { .. }, ToConsole::Surface(SURFACE), ToConsole::PointerPosition { .. }]
    ));
    assert!(heard[1].memory.is_some());
}

#[test]
fn versions_are_negotiated() {
    let mut rig = Rig::new();
    for (major, minor) in [(3, 6), (4, 0), (3, 1)] {
        let version = Version::new(major, minor);
        let answer = rig.ask(&GuestMessage::VersionRequest(version));
        assert_eq!(answer, HostMessage::VersionResponse { version, accepted: false });
    }
    let version = Version::V3_2;
    let answer = rig.ask(&GuestMessage::VersionRequest(version));
    assert_eq!(answer, HostMessage::VersionResponse { version, accepted: true });
    rig.say(&GuestMessage::ResolutionRequest { most: 64 });
    rig.locate(GPA);
}

#[test]
fn a_guest_gets_as_many_resolutions_as_it_takes() {
    let mut rig = Rig::new();
    rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
    for most in [0, 1, 5, 255] {
        let answer = rig.ask(&GuestMessage::ResolutionRequest { most });
        let HostMessage::ResolutionResponse { resolutions, preferred: 0 } = answer else {
            panic!("{answer:?}")
        };
        assert!(resolutions.len() <= most.into() && resolutions.is_empty() == (most == 0));
        assert!(resolutions.iter().all(|one| u64::from(one.width) * u64::from(one.height) * 4 <= VRAM));
    }
}

#[test]
fn video_memory_moves() {
    let mut rig = Rig::shown();
    rig.locate(GPA);
    assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
    assert!(rig.ends.messages().is_empty(), "nothing has changed");
    rig.locate(GPA + VRAM);
    assert_eq!(rig.bench.core.mapped(), [(GPA + VRAM, VRAM)]);
    let nowhere = GuestMessage::VramLocation { context: 5, gpa: None };
    assert_eq!(rig.ask(&nowhere), HostMessage::VramLocationAck { context: 5 });
    rig.settle();
    assert!(rig.bench.core.mapped().is_empty());
    assert_eq!(rig.ends.messages().last(), Some(&ToConsole::NoSurface));
    rig.locate(GPA);
    rig.settle();
    assert_eq!(rig.ends.messages().last(), Some(&ToConsole::Surface(SURFACE)));
}

#[test]
fn a_place_that_the_core_refuses_is_refused() {
    let mut rig = Rig::new();
    rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
    rig.bench.core.refuse_mappings(Some("it lies outside of the window"));
    let context = 0x1000;
    let answer = rig.ask(&GuestMessage::VramLocation { context, gpa: Some(context) });
    let HostMessage::VramLocationAck { context: other } = answer else { panic!("{answer:?}") };
    assert_ne!(other, context, "drivers look at that");
    // hyperv_drm goes on all the same.
    rig.situation(SITUATION);
    rig.settle();
    assert!(rig.ends.messages().is_empty(), "no picture is no picture still");
}

#[test]
fn a_guest_that_goes_takes_its_picture_with_it() {
    let mut rig = Rig::shown();
    for _ in 0..3 {
        rig.bench.close(1);
        rig.settle();
        assert_eq!(rig.ends.messages().last(), Some(&ToConsole::NoSurface));
        assert!(rig.bench.core.mapped().is_empty());
        rig.guest = rig.bench.open(1, 16);
        rig.introduce();
        assert_eq!(rig.ends.messages().last(), Some(&ToConsole::Surface(SURFACE)));
    }
}

#[test]
fn a_process_that_stands_by_keeps_its_hands_off() {
    let ends = Ends::new();
    let mut video = ends.video();
    ends.say(FromConsole::Ask);
    let mut rig = Rig::new();
    rig.bench.runtime.with_channels(|real| video.ready(0, real));
    assert_eq!(video.wake_at(), None);
    rig.bench.runtime.with_channels(|real| video.submit(real));
    assert!(ends.messages().is_empty());
    // It serves, and finds what was said before.
    assert_eq!(video.fence(false), Ok(true));
    rig.bench.runtime.with_channels(|real| video.submit(real));
    assert!(matches!(ends.messages()[..], [ToConsole::Hello { .. }, ToConsole::NoSurface, ..]));
    video.release();
    ends.say(FromConsole::Ask);
    rig.bench.runtime.with_channels(|real| video.ready(0, real));
    assert!(video.wake_at().is_none());
}
