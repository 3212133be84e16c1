//! A screen: what a guest's driver says to it, what it and the console say to each other, and the whole device between them.

use std::os::fd::OwnedFd;

use seat::shape::Assembly;
use seat::video::{ConsoleEnd, DeviceEnd, FromConsole, MAX_RECTS, ToConsole};
use seat::{MAX_MESSAGE, Message, keyboard, mouse};
use vmbus::packet::Outgoing;
use vsp::testing::{Bench, GuestEnd};
use vsp_video::cli::Setting;
use vsp_video::device::Video;
use vsp_video::pointer::Pointer;
use vsp_video::state::{Situation, State};
use vsp_video::wire::{GuestMessage, HostMessage, PointerPart, Resolution, Version};

use crate::Script;

/// Video memory, and where the guest has it.
const VRAM: u64 = 8 << 20;
const GPA: u64 = 0xf800_0000;
/// Rings so small that packets wrap after a few.
const RING_PAGES: u32 = 2;
const CHANNEL: u32 = 1;
/// Steps of a script; more would only make it slow.
const STEPS: usize = 64;

/// Datagrams, each behind its length (16 bits): what is understood is said again in the same way, and is sound.
pub fn seat(data: &[u8]) {
    let (mut script, mut assembly) = (Script::new(data), Assembly::new());
    while let Some(len) = script.word() {
        let rest = script.rest();
        let (datagram, rest) = rest.split_at(rest.len().min(len.into()));
        script = Script::new(rest);
        if let Some(message) = again::<ToConsole>(datagram) {
            match message {
                ToConsole::Surface(surface) => assert_eq!(surface.fault(), None),
                ToConsole::Dirty(rects) => {
                    assert!(rects.len() <= MAX_RECTS);
                    for cut in rects.iter().filter_map(|rect| rect.within(1024, 768)) {
                        assert!(cut.x1 >= 0 && cut.x1 < cut.x2 && cut.x2 <= 1024);
                        assert!(cut.y1 >= 0 && cut.y1 < cut.y2 && cut.y2 <= 768);
                    }
                }
                ToConsole::PointerShape(part) => {
                    if let Some(shape) = assembly.add(part) {
                        assert_eq!(shape.fault(), None);
                    }
                }
                _ => {}
            }
        }
        again::<FromConsole>(datagram);
        if let Some(keyboard::FromConsole::Key(key)) = again::<keyboard::FromConsole>(datagram) {
            assert_eq!(key.fault(), None);
        }
        again::<keyboard::ToConsole>(datagram);
        if let Some(mouse::FromConsole::Motion { x, y }) = again::<mouse::FromConsole>(datagram) {
            assert!(x <= mouse::MAX_POSITION && y <= mouse::MAX_POSITION);
        }
        again::<mouse::ToConsole>(datagram);
    }
}

fn again<M: Message + PartialEq + std::fmt::Debug>(datagram: &[u8]) -> Option<M> {
    let message = M::parse(datagram).ok()?;
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert!(bytes.len() <= MAX_MESSAGE);
    assert_eq!(M::parse(&bytes).as_ref(), Ok(&message));
    Some(message)
}

/// A byte: 0 for a packet's payload from either side, 1 for a state from a ledger, 2 for parts of a pointer, otherwise for steps of a
/// guest, a console and a core around the whole device; see [`step`].
pub fn synthvid(data: &[u8]) {
    let mut script = Script::new(data);
    match script.byte() {
        Some(0) => message(script.rest()),
        Some(1) => state(script.rest()),
        Some(2) => pointer(script),
        Some(_) => device(script),
        None => {}
    }
}

fn message(payload: &[u8]) {
    if let Ok(message) = GuestMessage::parse(payload) {
        assert_eq!(GuestMessage::parse(&message.encode()), Ok(message));
        if let GuestMessage::SituationUpdate { situation: Some(situation), .. } = message
            && let Ok(Some(surface)) = situation.surface(VRAM)
        {
            assert_eq!(surface.fault(), None);
        }
    }
    if let Ok(message) = HostMessage::parse(payload) {
        let again = HostMessage::parse(&message.encode());
        let is_longer =
            matches!(&message, HostMessage::ResolutionResponse { resolutions, .. } if resolutions.len() > 64);
        assert!(is_longer || again == Ok(message));
    }
}

fn state(bytes: &[u8]) {
    if let Ok(state) = State::decode(bytes) {
        assert_eq!(State::decode(&state.encode()), Ok(state));
    }
}

/// Numbers and sizes of parts, and how many bytes each has.
fn pointer(mut script: Script<'_>) {
    let mut pointer = Pointer::default();
    let mut part = || {
        let (index, flags) = (script.byte()?, script.byte()?);
        let (width, height) = (script.byte()?, script.byte()?);
        let bytes = vec![flags; usize::from(script.word()?)];
        let huge = if flags & 2 == 0 { 0 } else { u32::MAX << 8 };
        let (hot_x, hot_y) = (u32::from(flags >> 4), u32::from(flags >> 2 & 3));
        let (width, height) = (u32::from(width) | huge, u32::from(height));
        let is_argb = flags & 1 == 0;
        let shape = pointer.add(&PointerPart { index, is_argb, width, height, hot_x, hot_y, bytes: &bytes });
        if let Some(shape) = shape {
            assert_eq!(shape.fault(), None);
        }
        Some(())
    };
    while part().is_some() {}
}

/// The device, and what is around it.
struct Rig {
    seat: OwnedFd,
    console: ConsoleEnd,
    /// Always there, but for a moment between two processes.
    bench: Option<Bench<Video>>,
    guest: Option<GuestEnd>,
}

fn device(mut script: Script<'_>) {
    let (seat, console) = DeviceEnd::pair().expect("a pair");
    let mut rig = Rig { seat: seat.into(), console, bench: None, guest: None };
    rig.bench = Some(Bench::new(rig.video(), 0));
    rig.open();
    for _ in 0..STEPS {
        if step(&mut rig, &mut script).is_none() {
            break;
        }
    }
    rig.finish();
}

/// One step: a byte says what, and what follows is its own.
fn step(rig: &mut Rig, script: &mut Script<'_>) -> Option<()> {
    let what = script.byte()?;
    match what % 16 {
        0..=2 => rig.send(script.string()?, what & 16 != 0),
        3 => rig
            .send(&GuestMessage::VersionRequest(Version::new(3, u16::from(script.byte()?))).encode(), false),
        4 => {
            let gpa = GPA + VRAM * u64::from(script.byte()?);
            let gpa = (what & 16 == 0).then_some(gpa);
            rig.send(&GuestMessage::VramLocation { context: 7, gpa }.encode(), false);
        }
        5 => {
            let (width, height) = (u32::from(script.word()?), u32::from(script.word()?));
            let (offset, pitch) = (u32::from(script.byte()?) << 16, width.wrapping_mul(4));
            let (active, depth_bits) = (what & 16 == 0, if what & 32 == 0 { 32 } else { 16 });
            let situation = Some(Situation { active, offset, depth_bits, width, height, pitch });
            rig.send(&GuestMessage::SituationUpdate { context: 8, situation }.encode(), false);
        }
        6 | 7 => rig.bench().turn(0),
        8 => {
            let message = match script.byte()? % 3 {
                0 => FromConsole::Ask,
                1 => FromConsole::Watched(false),
                _ => FromConsole::Watched(true),
            };
            let _ = rig.console.send(&message, None).expect("sent");
        }
        9 => {
            let _ = rig.console.send_bytes(script.string()?, &[]).expect("sent");
        }
        10 => rig.hear(),
        11 => rig.bench().core.refuse_mappings((what & 16 == 0).then_some("no")),
        12 => {
            rig.bench().close(CHANNEL);
            rig.open();
        }
        13 => {
            // A process that is killed is not for here: what it leaves behind (witnesses of crashes among it) is the real process's to free.
            rig.drain();
            rig.bench().quiesce();
            let Bench { core, runtime } = rig.bench.take().expect("a device");
            drop(runtime);
            rig.bench = Some(Bench::take_over(core, rig.video()));
        }
        14 => _ = rig.drain(),
        _ => {
            rig.drain();
            rig.bench().quiesce();
            rig.bench().serve(true);
            rig.bench().reopen_all();
        }
    }
    Some(())
}

impl Rig {
    fn video(&self) -> Video {
        let seat = DeviceEnd::from_fd(self.seat.try_clone().expect("duplicated")).expect("an end");
        let preferred = Resolution { width: 800, height: 600 };
        Video::open(Setting { vram_megabytes: (VRAM >> 20) as u16, preferred }, seat).expect("a screen")
    }

    fn bench(&mut self) -> &mut Bench<Video> {
        self.bench.as_mut().expect("a device")
    }

    fn open(&mut self) {
        let guest = self.bench().open(CHANNEL, RING_PAGES);
        self.guest = Some(guest);
    }

    fn send(&mut self, payload: &[u8], wants_completion: bool) {
        if let Some(guest) = &mut self.guest {
            guest.send(&Outgoing::in_band(1, wants_completion), &[payload]);
        }
    }

    /// The guest looks at what it has been told.
    fn drain(&mut self) -> Vec<HostMessage> {
        self.bench().settle();
        let mut told = Vec::new();
        while let Some((_, payload)) = self.guest.as_mut().and_then(GuestEnd::poll) {
            if !payload.is_empty() {
                told.push(HostMessage::parse(&payload).expect("a message of synthvid"));
            }
            self.bench().turn(0);
        }
        told
    }

    /// The console hears what there is to hear, which is sound.
    fn hear(&mut self) {
        while let Some(received) = self.console.receive().expect("a message of the seat") {
            if let ToConsole::Surface(surface) = received.message {
                assert_eq!(surface.fault(), None);
                assert!(received.memory.is_some_and(|memory| memory.len() == VRAM));
            }
        }
    }

    /// An honest guest that comes after all this is served.
    fn finish(&mut self) {
        self.hear();
        self.drain();
        assert!(self.bench().core.mapped().len() <= 1);
        self.bench().core.refuse_mappings(None);
        self.bench().close(CHANNEL);
        assert!(self.bench().core.mapped().is_empty());
        self.open();
        let situation =
            Situation { active: true, offset: 0, depth_bits: 32, width: 800, height: 600, pitch: 3200 };
        for (question, answer) in [
            (
                GuestMessage::VersionRequest(Version::V3_5),
                HostMessage::VersionResponse { version: Version::V3_5, accepted: true },
            ),
            (
                GuestMessage::VramLocation { context: 1, gpa: Some(GPA) },
                HostMessage::VramLocationAck { context: 1 },
            ),
            (
                GuestMessage::SituationUpdate { context: 2, situation: Some(situation) },
                HostMessage::SituationUpdateAck { context: 2 },
            ),
        ] {
            self.send(&question.encode(), false);
            assert!(self.drain().contains(&answer), "{question:?}");
        }
        assert_eq!(self.bench().core.mapped(), [(GPA, VRAM)]);
    }
}
