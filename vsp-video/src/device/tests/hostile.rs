//! A guest and a console that mean no good.

use seat::video::{FromConsole, Rect, ToConsole};
use vsp::Device;
use vsp::vmbus::packet::{Outgoing, PacketType};

use super::rig::{GPA, Rig, SITUATION, VRAM};
use super::{SURFACE, rect};
use crate::state::Situation;
use crate::wire::{Dirt, GuestMessage, HostMessage, Version};

#[test]
fn nonsense_is_answered_by_nothing_and_harms_nothing() {
    let mut rig = Rig::shown();
    let good = GuestMessage::SituationUpdate { context: 9, situation: Some(SITUATION) }.encode();
    // Rings pad to eight bytes.
    for len in 0..=good.len() / 8 * 8 {
        rig.say_bytes(&good[..len]);
    }
    for kind in 0..=255u8 {
        let mut message = good.clone();
        message[8] = kind.max(15);
        rig.say_bytes(&message);
    }
    rig.say_bytes(&[0xff; 3000]);
    assert!(rig.told().is_empty());
    rig.situation(SITUATION);
    // Whoever wants completions gets them.
    assert!(rig.guest.send(&Outgoing::in_band(5, true), &[&good[..10]]));
    let (header, payload) = rig.bench.wait(&mut rig.guest);
    assert_eq!((header.packet_type, header.transaction_id), (PacketType::COMPLETION, 5));
    assert!(payload.is_empty());
    assert!(rig.guest.send(&Outgoing::in_band(6, true), &[&good]));
    let (header, _) = rig.bench.wait(&mut rig.guest);
    assert_eq!((header.packet_type, header.transaction_id), (PacketType::COMPLETION, 6));
    let (_, payload) = rig.bench.wait(&mut rig.guest);
    assert_eq!(HostMessage::parse(&payload), Ok(HostMessage::SituationUpdateAck { context: 9 }));
}

#[test]
fn nothing_goes_before_a_version() {
    let mut rig = Rig::new();
    rig.say(&GuestMessage::ResolutionRequest { most: 64 });
    rig.say(&GuestMessage::VramLocation { context: GPA, gpa: Some(GPA) });
    rig.say(&GuestMessage::SituationUpdate { context: 1, situation: Some(SITUATION) });
    rig.say_bytes(&Dirt::message(&[rect(0, 0, 10, 10)]));
    assert!(rig.told().is_empty());
    assert!(rig.bench.core.mapped().is_empty() && rig.ends.messages().is_empty());
    rig.introduce();
}

#[test]
fn absurd_modes_are_no_pictures() {
    let mut rig = Rig::shown();
    for broken in [
        Situation { width: 0, ..SITUATION },
        Situation { height: 0, ..SITUATION },
        Situation { width: u32::MAX, height: u32::MAX, pitch: u32::MAX, offset: u32::MAX, ..SITUATION },
        Situation { pitch: 4095, ..SITUATION },
        Situation { depth_bits: 8, ..SITUATION },
        Situation { depth_bits: 255, ..SITUATION },
        Situation { offset: VRAM as u32 - 4096, ..SITUATION },
        Situation { height: 2049, pitch: 4096, ..SITUATION },
    ] {
        rig.situation(broken);
        rig.settle();
        assert_eq!(rig.ends.messages().last(), Some(&ToConsole::NoSurface), "{broken:?}");
        rig.situation(SITUATION);
        rig.settle();
        assert_eq!(rig.ends.messages().last(), Some(&ToConsole::Surface(SURFACE)));
    }
}

#[test]
fn dirt_outside_of_the_picture_is_none() {
    let mut rig = Rig::shown();
    let extremes = [i32::MIN, -1, 0, 1, 1023, 1024, 1025, i32::MAX];
    for x1 in extremes {
        for x2 in extremes {
            let rects: Vec<Rect> =
                extremes.iter().flat_map(|y1| extremes.map(|y2| rect(x1, *y1, x2, y2))).collect();
            rig.say_bytes(&Dirt::message(&rects));
        }
        rig.settle();
        for message in rig.ends.messages() {
            let ToConsole::Dirty(rects) = message else { continue };
            for rect in rects.iter() {
                assert_eq!(rect.within(1024, 768), Some(*rect));
            }
        }
    }
}

#[test]
fn a_flood_of_places_is_worked_off_in_order() {
    let mut rig = Rig::shown();
    let mut expected = Vec::new();
    let mut told = Vec::new();
    for round in 0..100u64 {
        let gpa = (round % 7 != 0).then_some(GPA + (round % 3) * VRAM);
        rig.say(&GuestMessage::VramLocation { context: round, gpa });
        expected.push(HostMessage::VramLocationAck { context: round });
        told.extend(rig.told());
    }
    rig.pass(std::time::Duration::from_millis(20));
    told.extend(rig.told());
    assert_eq!(told, expected);
    assert!(rig.bench.core.mapped().len() <= 1);
}

#[test]
fn a_channel_closes_over_open_questions() {
    let mut rig = Rig::new();
    rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
    for context in 0..10 {
        rig.say(&GuestMessage::VramLocation { context, gpa: Some(GPA + context * VRAM) });
    }
    rig.bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    rig.bench.close(1);
    rig.guest = rig.bench.open(1, 16);
    rig.introduce();
    assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
}

#[test]
fn a_guest_that_takes_no_answers_is_waited_for() {
    let mut rig = Rig::new();
    rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
    let question = GuestMessage::ResolutionRequest { most: 64 }.encode();
    let mut asked = 0;
    while asked < 2000 {
        if rig.guest.send(&Outgoing::in_band(1, false), &[&question]) {
            asked += 1;
        } else {
            rig.settle();
            if !rig.guest.send(&Outgoing::in_band(1, false), &[&question]) {
                break;
            }
            asked += 1;
        }
    }
    assert!(asked < 2000, "its memory is bounded");
    let mut answers = 0;
    while answers < asked {
        let (_, payload) = rig.bench.wait(&mut rig.guest);
        assert!(matches!(HostMessage::parse(&payload), Ok(HostMessage::ResolutionResponse { .. })));
        answers += 1;
    }
    rig.introduce();
}

#[test]
fn a_console_that_does_not_read_misses_nothing_in_the_end() {
    let mut rig = Rig::shown();
    for round in 0..5000 {
        let at = round % 700;
        rig.say_bytes(&Dirt::message(&[rect(at, at, at + 5, at + 5)]));
        if round % 100 == 0 {
            rig.situation(Situation { height: 700 + round as u32 % 11, ..SITUATION });
        }
    }
    rig.situation(SITUATION);
    rig.settle();
    assert!(rig.bench.runtime.device().console.retry_at().is_some(), "it is tried again, but not at once");
    let before = rig.ends.messages();
    rig.pass(std::time::Duration::from_millis(250));
    let messages: Vec<_> = before.into_iter().chain(rig.ends.messages()).collect();
    let last = messages.iter().rposition(|message| matches!(message, ToConsole::Surface(_))).unwrap();
    assert_eq!(messages[last], ToConsole::Surface(SURFACE), "the picture as it is, all of it new");
    assert!(messages.len() < 1000, "{}", messages.len());
}

#[test]
fn empty_datagrams_of_one_console_do_not_hide_what_the_next_one_says() {
    let mut rig = Rig::shown();
    while rig.ends.console.send_bytes(&[], &[]).unwrap() == seat::Sent::Whole {}
    rig.settle();
    rig.ends.messages();
    let wake = rig.bench.runtime.device().wake_at();
    assert!(wake.is_some_and(|then| then > std::time::Instant::now()), "it looks again, but not at once");
    // It rings once, and never again.
    rig.ends.say(FromConsole::Ask);
    rig.pass(std::time::Duration::from_millis(1500));
    assert!(rig.ends.messages().contains(&ToConsole::Surface(SURFACE)));
}

#[test]
fn a_guest_fills_no_log() {
    let lines = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
    let _logging = tracing::subscriber::set_default(Lines(lines.clone()));
    let mut rig = Rig::new();
    for _ in 0..200 {
        rig.ask(&GuestMessage::VersionRequest(Version::new(9, 9)));
        rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
        rig.bench.core.refuse_mappings(Some("no"));
        rig.ask(&GuestMessage::VramLocation { context: 1, gpa: Some(GPA) });
        rig.bench.close(1);
        rig.guest = rig.bench.open(1, 16);
    }
    // Three kinds of them, 32 and a few more of each.
    let lines = lines.load(std::sync::atomic::Ordering::Relaxed);
    assert!((90..140).contains(&lines), "{lines}");
}

/// Counts the lines that are logged by default.
struct Lines(std::sync::Arc<std::sync::atomic::AtomicU64>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_console_that_floods_holds_nobody_up() {
    let mut rig = Rig::shown();
    let flood = || {
        for _ in 0..1000 {
            for message in [FromConsole::Ask, FromConsole::Watched(false), FromConsole::Watched(true)] {
                let _ = rig.ends.console.send(&message, None).unwrap();
            }
            let _ = rig.ends.console.send_bytes(&[0xff; 100], &[]).unwrap();
            let _ = rig.ends.console.send_bytes(&[], &[]).unwrap();
        }
    };
    flood();
    rig.situation(SITUATION);
    rig.settle();
    assert!(rig.told().is_empty(), "the guest hears nothing of it");
    rig.ends.messages();
    rig.pass(std::time::Duration::from_millis(150));
    rig.ends.messages();
    rig.ends.say(FromConsole::Ask);
    rig.pass(std::time::Duration::from_millis(150));
    assert!(rig.ends.messages().contains(&ToConsole::Surface(SURFACE)));
}
