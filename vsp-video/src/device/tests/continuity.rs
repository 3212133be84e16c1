//! The process dies, or hands over.

use seat::video::{FromConsole, Rect, ToConsole};
use vsp::Device;
use vsp::ipc::shm::Mapping;

use super::rig::{GPA, NO_POINTER, Rig, SITUATION, VRAM};
use super::{SURFACE, rect};
use crate::wire::{Dirt, Features, GuestMessage, HostMessage, Version};

#[test]
fn the_picture_comes_back_with_its_pixels() {
    let mut rig = Rig::shown();
    let guest = Mapping::new(&rig.bench.core.mapped_memory(GPA).unwrap(), 0, VRAM).unwrap();
    for round in 0..3u8 {
        guest.write(4096, &[round; 8]);
        rig = rig.die();
        let heard = rig.ends.heard();
        let messages: Vec<_> = heard.iter().map(|received| &received.message).collect();
        let [ToConsole::Hello { .. }, ToConsole::Surface(SURFACE), &NO_POINTER] = messages[..] else {
            panic!("{messages:?}");
        };
        let memory = heard[1].memory.as_ref().unwrap();
        let mut pixels = [0xff; 8];
        Mapping::new(memory, 0, VRAM).unwrap().read(4096, &mut pixels);
        assert_eq!(pixels, [round; 8], "the memory that the guest draws into");
        assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
        assert_eq!(rig.told(), [HostMessage::FeatureChange(Features::ALL)], "its pointer is asked for");
        rig.ends.say(FromConsole::Watched(true));
        rig.settle();
        assert_eq!(rig.ends.messages(), [ToConsole::AllDirty]);
        rig.say_bytes(&Dirt::message(&[rect(1, 2, 3, 4)]));
        rig.settle();
        let Some(ToConsole::Dirty(rects)) = rig.ends.messages().pop() else { panic!() };
        assert_eq!(rects[..], [Rect { x1: 1, y1: 2, x2: 3, y2: 4 }]);
    }
}

#[test]
fn whatever_was_agreed_on_holds() {
    let mut rig = Rig::new().die();
    rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
    rig = rig.die();
    rig.locate(GPA);
    rig = rig.die();
    assert_eq!(rig.bench.runtime.device().state().vram, Some(GPA));
    rig.situation(SITUATION);
    let state = rig.bench.runtime.device().state();
    rig = rig.die();
    assert_eq!(rig.bench.runtime.device().state(), state);
    assert!(rig.ends.messages().contains(&ToConsole::Surface(SURFACE)));
}

#[test]
fn a_question_without_an_answer_is_answered_by_the_next() {
    let mut rig = Rig::new();
    rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
    // The core is asked, and the process dies before it hears the answer.
    rig.say(&GuestMessage::VramLocation { context: 1, gpa: Some(GPA) });
    rig.say(&GuestMessage::SituationUpdate { context: 2, situation: Some(SITUATION) });
    rig.bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    let mut rig = rig.die();
    let mut told = rig.told();
    told.sort_by_key(|message| format!("{message:?}"));
    // Whether the dead process has asked for its pictures is not known.
    told.dedup();
    assert_eq!(
        told,
        [
            HostMessage::FeatureChange(Features::ALL),
            HostMessage::SituationUpdateAck { context: 2 },
            HostMessage::VramLocationAck { context: 1 },
        ]
    );
    assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
    assert!(rig.ends.messages().contains(&ToConsole::Surface(SURFACE)));
}

#[test]
fn a_mapping_that_was_lost_is_made_again() {
    let mut rig = Rig::shown();
    rig.bench.runtime.with_channels(|channels| channels.unmap_memory(GPA));
    rig.settle();
    assert!(rig.bench.core.mapped().is_empty());
    let mut rig = rig.die();
    rig.settle();
    assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
    assert!(rig.ends.messages().contains(&ToConsole::Surface(SURFACE)));
}

#[test]
fn a_mapping_of_which_the_guest_was_never_told_does_not_stay() {
    let mut rig = Rig::new();
    rig.ask(&GuestMessage::VersionRequest(Version::V3_5));
    rig.bench.runtime.with_device(|video, channels| {
        let memory = video.location.memory().clone();
        channels.map_memory(GPA, &memory, VRAM);
    });
    rig.settle();
    assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
    let mut rig = rig.die();
    assert!(rig.bench.core.mapped().is_empty(), "nobody has asked for it");
    rig.locate(GPA);
    assert_eq!(rig.bench.core.mapped(), [(GPA, VRAM)]);
}

#[test]
fn a_pointer_of_a_predecessor_s_goes_with_it() {
    let mut rig = Rig::shown();
    rig.say(&GuestMessage::PointerPosition { visible: true, x: 30, y: 40 });
    rig.settle();
    assert_eq!(rig.ends.messages(), [ToConsole::PointerPosition { x: 30, y: 40, visible: true }]);
    let rig = rig.die();
    assert_eq!(rig.ends.messages().last(), Some(&NO_POINTER));
}

#[test]
fn a_console_hears_nothing_before_it_is_known_whether_there_is_a_picture() {
    let rig = Rig::shown();
    let Rig { ends, bench, guest } = rig;
    let core = bench.kill();
    let mut rig = Rig::take_over(ends, core, guest);
    let messages = rig.ends.messages();
    assert!(!messages.contains(&ToConsole::NoSurface), "viewers would see it: {messages:?}");
    // However long it takes until it is given its channel.
    rig.bench.quiesce();
    rig.bench.serve(true);
    rig.pass(std::time::Duration::from_millis(500));
    assert!(rig.ends.messages().is_empty());
    assert!(rig.bench.runtime.device().wake_at().is_none_or(|then| then > std::time::Instant::now()));
    rig.bench.reopen_all();
    rig.settle();
    assert!(rig.ends.messages().contains(&ToConsole::Surface(SURFACE)));
    // Without a channel it is known as soon as the core says that there is none.
    rig.bench.close(1);
    rig.settle();
    assert_eq!(rig.ends.messages().last(), Some(&ToConsole::NoSurface), "of the one that dies");
    let rig = rig.die();
    assert!(matches!(rig.ends.messages()[..], [ToConsole::Hello { .. }, ToConsole::NoSurface, NO_POINTER]));
}

#[test]
fn a_process_hands_over_and_serves_again() {
    let mut rig = Rig::shown();
    for _ in 0..3 {
        rig.bench.quiesce();
        rig.ends.say(FromConsole::Ask);
        rig.settle();
        assert!(rig.ends.messages().is_empty(), "it does not serve");
        rig.bench.serve(true);
        rig.bench.reopen_all();
        rig.settle();
        let messages = rig.ends.messages();
        assert!(messages.contains(&ToConsole::Surface(SURFACE)), "{messages:?}");
        assert!(!messages.contains(&ToConsole::NoSurface), "{messages:?}");
        rig.told();
        rig.situation(SITUATION);
    }
}

#[test]
fn a_state_of_a_newer_build_is_refused_in_one_sentence() {
    let ends = super::rig::Ends::new();
    let mut video = ends.video();
    let mut state = video.state().encode();
    (state[0], state[1]) = (9, 2);
    let mut rig = Rig::new();
    let channel = rig.bench.runtime.with_device(|video, _| video.channel).unwrap();
    let why = vsp::Device::restore(&mut video, channel, &state).unwrap_err();
    assert!(why.contains("format 9"), "{why}");
}
