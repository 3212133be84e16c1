//! A whole keyboard or mouse: a guest that opens, closes and fills its ring, a console, and the device between them, process after process.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use seat::{Message, Seat};
use vmbus::packet::{Outgoing, PacketType};
use vsp::Device;
use vsp::testing::{Bench, GuestEnd};
use vsp_hid::device::{End, Hid};
use vsp_hid::instrument::Instrument;

use crate::Script;
use crate::hid::Driver;

/// A ring that is full after some eighty keys.
const RING_PAGES: u32 = 1;
const CHANNEL: u32 = 1;
/// Steps of a script; more would only make it slow.
const STEPS: usize = 96;
/// An event that a step sends so often fills the ring, and two of them the socket.
const MANY: usize = 200;
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(5);

type Event<D> = <<D as Driver>::I as Instrument>::Event;
type News<D> = <<D as Driver>::I as Instrument>::News;

/// The device, and what is around it.
struct Rig<'a, D: Driver> {
    blank: &'a D::I,
    seat: OwnedFd,
    console: Seat<Event<D>, News<D>>,
    /// Always there, but for a moment between two processes.
    bench: Option<Bench<Hid<D::I>>>,
    guest: Option<GuestEnd>,
    driver: D,
}

/// Steps: a byte that says what happens, and a string.
pub(crate) fn run<D: Driver>(blank: &D::I, mut script: Script<'_>) {
    let (device, console) = End::<D::I>::pair().expect("a pair");
    let (seat, driver) = (OwnedFd::from(device), D::default());
    let mut rig = Rig::<D> { blank, seat, console, bench: None, guest: None, driver };
    rig.bench = Some(Bench::new(rig.process(), 0));
    rig.open();
    for _ in 0..STEPS {
        let (Some(what), Some(bytes)) = (script.byte(), script.string()) else { break };
        rig.step(what, bytes);
    }
    rig.finish();
}

impl<D: Driver> Rig<'_, D> {
    fn step(&mut self, what: u8, bytes: &[u8]) {
        let flag = what & 16 != 0;
        match what % 8 {
            0 => self.send(bytes, flag),
            1 => self.introduce(),
            2 => match <Event<D> as Message>::parse(bytes) {
                Ok(event) => {
                    for _ in 0..if flag { MANY } else { 1 } {
                        let _ = self.console.send(&event, None).expect("sent");
                        self.bench().turn(0);
                    }
                }
                // What is none takes its turn as well; nothing at all reads like the end.
                Err(_) => _ = self.console.send_bytes(bytes, &[]).expect("sent"),
            },
            3 => self.bench().turn(0),
            4 => self.look(),
            5 => self.reopen(),
            6 if flag => self.hear(),
            6 => {
                // A process that is killed is not for here: what it leaves behind (witnesses of crashes among it) is the real process's to free.
                self.bench().quiesce();
                let Bench { core, runtime } = self.bench.take().expect("a device");
                drop(runtime);
                self.bench = Some(Bench::take_over(core, self.process()));
            }
            _ => {
                self.bench().quiesce();
                self.bench().serve(true);
                self.bench().reopen_all();
            }
        }
    }

    fn process(&self) -> Hid<D::I> {
        let seat = Seat::from_fd(self.seat.try_clone().expect("duplicated")).expect("an end");
        Hid::new(self.blank.clone(), seat, Duration::ZERO)
    }

    fn bench(&mut self) -> &mut Bench<Hid<D::I>> {
        self.bench.as_mut().expect("a device")
    }

    fn open(&mut self) {
        let guest = self.bench().open(CHANNEL, RING_PAGES);
        (self.guest, self.driver) = (Some(guest), D::default());
    }

    /// What the guest has not read it never will.
    fn reopen(&mut self) {
        self.bench().close(CHANNEL);
        self.open();
    }

    fn send(&mut self, payload: &[u8], wants_completion: bool) {
        if let Some(guest) = &mut self.guest {
            guest.send(&Outgoing::in_band(1, wants_completion), &[payload]);
        }
    }

    fn introduce(&mut self) {
        D::introduction().iter().for_each(|message| self.send(message, false));
    }

    /// The guest looks at all that it has been told, and knows then what the device takes it to know.
    fn look(&mut self) {
        self.bench().settle();
        while let Some((header, payload)) = self.guest.as_mut().and_then(GuestEnd::poll) {
            if header.packet_type == PacketType::IN_BAND {
                self.driver.hears(&payload);
            }
            self.bench().turn(0);
        }
        let bench = self.bench.as_ref().expect("a device");
        assert!(self.driver.agrees(bench.runtime.device().instrument()));
    }

    /// The console hears what there is to hear, which is sound.
    fn hear(&mut self) {
        while self.console.receive().expect("a message of the seat").is_some() {}
    }

    /// An honest guest that comes after all this hears nothing of the past, and all of what is said to it.
    fn finish(&mut self) {
        self.reopen();
        let start = Instant::now();
        while self.bench().runtime.device().wake_at().is_some() {
            self.hear();
            self.bench().turn(200);
            assert!(start.elapsed() < PATIENCE, "what waits is not forgotten");
        }
        self.introduce();
        self.look();
        assert!(self.driver.is_idle(), "something of the past");
        let _ = self.console.send(&D::press(), None).expect("sent");
        while self.driver.is_idle() {
            self.bench().turn(5);
            self.look();
            assert!(start.elapsed() < PATIENCE, "nobody is heard any more");
        }
    }
}
