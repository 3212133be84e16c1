//! What the core orders right after the order to serve, while the resource is not ours yet.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;

use ipc::event::Doorbell;
use ipc::message::{EARLY_VERSION, Offer, STATUS_OK, ToCore, ToVsp};
use ipc::shm::{Mapping, PAGE, SharedMemory};
use vmbus::packet::Outgoing;
use vsp::testing::{Bench, FakeCore, GuestEnd};
use vsp::{ChannelId, Channels, Device, OpenRequest, Packet, Refused, Request};

/// Notes what it is told; answers with what it is asked.
#[derive(Clone, Default)]
struct Guarded {
    log: Rc<RefCell<Vec<&'static str>>>,
    /// Another process has the resource still.
    is_taken: Rc<Cell<bool>>,
    /// Keeps what it is asked to itself.
    is_mute: bool,
    kept: Rc<RefCell<Vec<Request>>>,
}

impl Guarded {
    fn says(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.log.borrow_mut())
    }

    fn notes(&self, what: &'static str) {
        self.log.borrow_mut().push(what);
    }
}

impl Device for Guarded {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), max_subchannels: 3, ..Offer::default() }
    }

    fn fence(&mut self, _: bool) -> Result<bool, String> {
        if !self.is_taken.get() {
            self.notes("fence");
        }
        Ok(!self.is_taken.get())
    }

    fn open(&mut self, _: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        self.notes(if request.subchannel == 0 { "open" } else { "open sub" });
        Ok(())
    }

    fn adopted(&mut self, _: &mut Channels) {
        self.notes("adopted");
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        self.notes("packet");
        if self.is_mute {
            return self.kept.borrow_mut().push(request);
        }
        let payload = packet.header.payload(packet.bytes).to_vec();
        request.complete(channels, &payload);
    }

    fn closing(&mut self, _: ChannelId) {
        self.notes("closing");
    }
}

/// A device that serves a channel and a sub-channel, which are its guest's.
fn serving() -> (Bench<Guarded>, Guarded, [GuestEnd; 2]) {
    let device = Guarded::default();
    let mut bench = Bench::new(device.clone(), 0);
    let guests = [bench.open(1, 1), bench.open_subchannel(2, 1, 1)];
    device.says();
    (bench, device, guests)
}

fn opened(channel: u32) -> ToCore {
    ToCore::OpenResult { channel, status: STATUS_OK, reason: None }
}

fn contents(memory: &SharedMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len() as usize];
    Mapping::new(memory, 0, memory.len()).unwrap().read(0, &mut bytes);
    bytes
}

/// All that two processes could disagree about.
fn shared(core: &FakeCore) -> Vec<Vec<u8>> {
    let of = |channel| [core.rings(channel).unwrap(), core.ledger(channel).unwrap()];
    [1, 2].into_iter().flat_map(of).map(|memory| contents(&memory)).collect()
}

fn asks(guest: &mut GuestEnd, id: u64) {
    assert!(guest.send(&Outgoing::in_band(id, true), &[b"question"]));
}

#[test]
fn channels_wait_for_the_resource_and_nothing_is_touched_before() {
    let (mut bench, device, mut guests) = serving();
    bench.quiesce();
    device.is_taken.set(true);
    guests.iter_mut().for_each(|guest| asks(guest, 7));
    let before = shared(&bench.core);
    bench.core.send(&ToVsp::Serve { predecessor: true });
    (0..20).for_each(|_| bench.turn(1));
    assert_eq!(bench.core.try_answer(), None);
    assert!(device.says().is_empty() && shared(&bench.core) == before);
    assert_eq!(bench.runtime.open_channels(), 0);
    // Then it has all that it needs: nobody is asked, and the guest has its answers.
    device.is_taken.set(false);
    while device.log.borrow().is_empty() {
        bench.turn(1);
    }
    let all = ["fence", "open", "open sub", "packet", "packet", "adopted"];
    assert_eq!(device.says(), all, "in one turn");
    assert!(
        guests.iter_mut().all(|guest| guest.poll().is_some_and(|(header, _)| header.transaction_id == 7))
    );
    let answers: Vec<ToCore> = std::iter::from_fn(|| bench.core.try_answer()).collect();
    assert_eq!(answers, [ToCore::Serving {}, opened(1), opened(2)]);
    bench.settle();
    assert!(device.says().is_empty() && guests.iter_mut().all(|guest| guest.poll().is_none()));
}

#[test]
fn orders_are_carried_out_in_the_order_in_which_they_came() {
    let (mut bench, device, mut guests) = serving();
    bench.quiesce();
    device.is_taken.set(true);
    bench.core.send(&ToVsp::Serve { predecessor: true });
    let bell = Doorbell::new().unwrap();
    let flags = SharedMemory::create("test-flags", PAGE as u64).unwrap();
    let retarget = ToVsp::Retarget { channel: 1, target_vp: 1 };
    bench.core.peer().send(&retarget, &[bell.as_fd(), flags.as_fd()]).unwrap();
    bench.core.close(2);
    bench.turn(1);
    assert!(device.says().is_empty());
    device.is_taken.set(false);
    let answers: Vec<ToCore> = (0..4).map(|_| bench.answer()).collect();
    assert_eq!(
        answers,
        [ToCore::Serving {}, opened(1), opened(2), ToCore::Closed { channel: 2 }],
        "{:?}",
        device.log
    );
    assert_eq!(device.says(), ["fence", "open", "open sub", "closing", "adopted"]);
    bell.drain().unwrap();
    asks(&mut guests[0], 1);
    bench.wait(&mut guests[0]);
    assert!(bell.drain().unwrap(), "interrupts go where the guest wants them");
}

#[test]
fn a_process_that_is_to_hand_over_before_it_has_the_resource_forgets_them() {
    let (mut bench, device, mut guests) = serving();
    bench.quiesce();
    device.is_taken.set(true);
    asks(&mut guests[0], 7);
    let before = shared(&bench.core);
    bench.core.send(&ToVsp::Serve { predecessor: true });
    (0..3).for_each(|_| bench.turn(1));
    bench.quiesce();
    device.is_taken.set(false);
    bench.settle();
    assert!(device.says().is_empty() && shared(&bench.core) == before);
    // What it is told the next time is what counts: nothing is there twice.
    bench.serve(true);
    bench.reopen_all();
    bench.wait(&mut guests[0]);
    assert_eq!(device.says(), ["fence", "open", "open sub", "packet", "adopted"]);
    assert_eq!(bench.core.try_answer(), None);
}

#[test]
fn a_core_that_knows_of_none_of_this_gives_them_when_the_process_serves() {
    let (mut core, vsp) = FakeCore::new(0);
    core.version = EARLY_VERSION - 1;
    let device = Guarded::default();
    let mut bench = Bench::with_core(core, vsp, device.clone());
    let mut guest = bench.open(1, 1);
    bench.quiesce();
    device.says();
    asks(&mut guest, 7);
    bench.serve(true);
    bench.settle();
    assert_eq!(device.says(), ["fence"]);
    bench.reopen_all();
    bench.wait(&mut guest);
    assert_eq!(device.says(), ["fence", "open", "packet", "adopted"][1..]);
}

#[test]
fn one_that_dies_before_it_has_the_resource_has_done_nothing() {
    let device = Guarded { is_mute: true, ..Guarded::default() };
    let mut bench = Bench::new(device, 0);
    let mut guests = [bench.open(1, 1), bench.open_subchannel(2, 1, 1)];
    (0..3).for_each(|id| asks(&mut guests[0], id));
    bench.settle();
    let mut core = bench.kill();
    let before = shared(&core);
    // This one waits, and is killed.
    let (_, vsp) = core.successor();
    let device = Guarded::default();
    device.is_taken.set(true);
    let mut bench = Bench::greeted(core, vsp, device);
    bench.core.send(&ToVsp::Serve { predecessor: true });
    (0..5).for_each(|_| bench.turn(1));
    let core = bench.kill();
    assert!(shared(&core) == before);
    let mut bench = Bench::take_over(core, Guarded::default());
    for id in 0..3 {
        assert_eq!(bench.wait(&mut guests[0]).0.transaction_id, id);
    }
    bench.settle();
    assert!(guests[0].poll().is_none(), "each once");
}

/// Looks at the guest's end whenever it is polled.
struct Watcher {
    guest: Rc<RefCell<Option<GuestEnd>>>,
    answered: usize,
    seen: Rc<Cell<usize>>,
}

impl Device for Watcher {
    fn offer(&self) -> Offer {
        Guarded::default().offer()
    }

    fn packet(&mut self, _: Packet<'_>, request: Request, channels: &mut Channels) {
        request.complete(channels, &[]);
        self.answered += 1;
    }

    fn poll(&mut self, _: &mut Channels) -> bool {
        if let Some(guest) = &mut *self.guest.borrow_mut() {
            while guest.poll().is_some() {
                self.seen.set(self.seen.get() + 1);
            }
            assert_eq!(self.seen.get(), self.answered, "what was answered before is visible");
        }
        false
    }
}

#[test]
fn a_device_that_is_polled_between_batches_has_told_its_guest_what_it_has_answered() {
    let mut bench = Bench::new(Guarded { is_mute: true, ..Guarded::default() }, 0);
    let mut guest = bench.open(1, 4);
    (0..10).for_each(|id| asks(&mut guest, id));
    bench.settle();
    let core = bench.kill();
    let (guest, seen) = (Rc::new(RefCell::new(Some(guest))), Rc::new(Cell::new(0)));
    let watcher = Watcher { guest: Rc::clone(&guest), answered: 0, seen: Rc::clone(&seen) };
    let mut bench = Bench::take_over(core, watcher);
    bench.settle();
    assert_eq!(seen.get(), 10);
}
