//! Real processes in their compartments that die at each kill point and of SIGKILL: the guest sees each question answered once, and
//! the console has the picture in the end.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod process;

use std::time::{Duration, Instant};

use process::{Ends, GPA, Process, SITUATION, VRAM};
use seat::video::{FromConsole, Rect, ToConsole};
use vsp::channel::KillPoint;
use vsp::ipc::message::{STATUS_OK, ToCore};
use vsp::testing::{FakeCore, GuestEnd};
use vsp::vmbus::packet::Outgoing;
use vsp_video::state::Situation;
use vsp_video::wire::{Dirt, GuestMessage, HostMessage, PointerPart, Version};

/// What a process exits with at a kill point.
const KILLED: i32 = 137;

/// A VM whose device process may die at any moment and is then replaced.
struct World {
    core: FakeCore,
    ends: Ends,
    process: Process,
    end: GuestEnd,
    /// What the guest has been told and not looked at.
    told: Vec<HostMessage>,
    deaths: Vec<Option<i32>>,
}

impl World {
    fn new(arguments: &[String]) -> World {
        let ends = Ends::new();
        let (core, socket) = FakeCore::new(0);
        let process = Process::start(socket, &ends, arguments);
        core.welcome();
        let end = core.open(1, 4);
        let mut world = World { core, ends, process, end, told: Vec::new(), deaths: Vec::new() };
        world.opened();
        world
    }

    /// Waits until the channel is open, with whichever process.
    fn opened(&mut self) {
        let start = Instant::now();
        loop {
            match self.core.try_answer() {
                Some(ToCore::OpenResult { status, reason, .. }) => {
                    assert_eq!(status, STATUS_OK, "{reason:?}");
                    return;
                }
                Some(other) => panic!("{other:?}"),
                None if self.process.is_dead() => {
                    self.replace();
                    self.core.reopen(1);
                }
                None => {}
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the channel does not open");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Starts the next process in place of one that is dead or dying.
    fn replace(&mut self) {
        self.deaths.push(self.process.wait().code());
        let (_, socket) = self.core.successor();
        self.process = Process::start(socket, &self.ends, &[]);
        self.core.greet(false);
        self.core.serve(true);
    }

    fn revive(&mut self) {
        self.core.attend();
        if self.process.is_dead() {
            self.replace();
            self.core.reopen(1);
            self.opened();
        }
    }

    fn send(&mut self, payload: &[u8]) {
        let start = Instant::now();
        while !self.end.send(&Outgoing::in_band(1, false), &[payload]) {
            self.revive();
            self.collect();
            assert!(start.elapsed() < Duration::from_secs(20), "the ring stays full");
        }
    }

    fn collect(&mut self) {
        while let Some((_, payload)) = self.end.poll() {
            match HostMessage::parse(&payload).unwrap() {
                // As often as somebody begins to serve.
                HostMessage::FeatureChange(_) => {}
                message => self.told.push(message),
            }
        }
    }

    /// Waits for as many answers as there are expected, then for more that must not come.
    fn answers(&mut self, count: usize) -> Vec<HostMessage> {
        let start = Instant::now();
        while self.told.len() < count {
            self.revive();
            self.collect();
            assert!(start.elapsed() < Duration::from_secs(20), "lost: {:?}", self.told);
            std::thread::sleep(Duration::from_micros(50));
        }
        std::mem::take(&mut self.told)
    }

    fn ask(&mut self, message: &GuestMessage<'_>) -> HostMessage {
        self.send(&message.encode());
        self.answers(1).remove(0)
    }

    /// What a driver does, `disturb` between its steps.
    fn live(&mut self, mut disturb: impl FnMut(&mut World)) {
        let version = Version::V3_5;
        let expected = HostMessage::VersionResponse { version, accepted: true };
        assert_eq!(self.ask(&GuestMessage::VersionRequest(version)), expected);
        disturb(self);
        let answer = self.ask(&GuestMessage::ResolutionRequest { most: 64 });
        assert!(matches!(answer, HostMessage::ResolutionResponse { .. }));
        disturb(self);
        for context in [GPA + VRAM, GPA] {
            let answer = self.ask(&GuestMessage::VramLocation { context, gpa: Some(context) });
            assert_eq!(answer, HostMessage::VramLocationAck { context });
            disturb(self);
        }
        // Many at once: answers come once each, and in order.
        let mut expected = Vec::new();
        for context in 0..100 {
            let situation = Situation { height: 400 + context as u32, ..SITUATION };
            self.send(&GuestMessage::SituationUpdate { context, situation: Some(situation) }.encode());
            self.send(&Dirt::message(&[Rect { x1: 0, y1: 0, x2: 9, y2: 9 }]));
            self.send(&GuestMessage::PointerPosition { visible: true, x: 1, y: 2 }.encode());
            let (index, bytes) = (PointerPart::LAST, &[0, 1, 1, 1]);
            let part = PointerPart { index, is_argb: true, width: 1, height: 1, hot_x: 0, hot_y: 0, bytes };
            self.send(&GuestMessage::PointerShape(part).encode());
            expected.push(HostMessage::SituationUpdateAck { context });
            if context % 25 == 0 {
                disturb(self);
            }
        }
        assert_eq!(self.answers(100), expected);
        disturb(self);
        let answer = self.ask(&GuestMessage::SituationUpdate { context: 5, situation: Some(SITUATION) });
        assert_eq!(answer, HostMessage::SituationUpdateAck { context: 5 });
    }

    /// Nothing came twice, the guest has its memory, and the console the picture.
    fn check(&mut self) {
        self.ends.say(FromConsole::Watched(true));
        let start = Instant::now();
        let mut messages = Vec::new();
        let is_whole = |messages: &[ToConsole]| {
            let last = messages.iter().rfind(|message| matches!(message, ToConsole::Surface(_)));
            matches!(last, Some(ToConsole::Surface(surface)) if surface.height == 768)
                && messages.contains(&ToConsole::AllDirty)
        };
        while !is_whole(&messages) {
            self.revive();
            messages.extend(self.ends.messages());
            assert!(start.elapsed() < Duration::from_secs(20), "{messages:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
        assert_eq!(self.core.mapped(), [(GPA, VRAM)]);
        self.collect();
        assert!(self.told.is_empty(), "{:?}", self.told);
    }
}

#[test]
fn each_question_is_answered_once_wherever_a_process_dies() {
    let points = KillPoint::ALL.into_iter().chain(KillPoint::NOTICES);
    let mut died = Vec::new();
    for point in points {
        for count in [1, 2, 4, 30] {
            let order = format!("{}:{count}", point.name());
            let mut world = World::new(&["--kill-point".into(), order.clone()]);
            world.live(|_| {});
            world.check();
            match world.deaths[..] {
                [] => break,
                [Some(KILLED)] => died.push(order),
                ref other => panic!("{order}: {other:?}"),
            }
        }
    }
    // Loans and recorded outcomes are not for a screen; taking, answering with a state and telling are.
    assert!(died.len() >= 30, "{died:?}");
    assert!(died.contains(&"notified:1".to_owned()), "{died:?}");
}

#[test]
fn a_screen_survives_a_storm_of_kills() {
    let mut world = World::new(&[]);
    for round in 0..6u64 {
        let mut step = 0;
        world.live(|world| {
            step += 1;
            if (step + round) % 2 == 0 {
                std::thread::sleep(Duration::from_micros(37 * (round * 7 + step) % 900));
                world.process.kill();
            }
        });
    }
    world.check();
    assert!(world.deaths.len() >= 20, "{}", world.deaths.len());
}
