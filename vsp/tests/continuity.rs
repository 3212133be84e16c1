//! What a device author gets without asking: processes come, die, stand by and hand over, and the guest sees each request
//! end once. The device lives in the test's own process; real ones die in the tests of `vsp-echo` and `vsp-storage`.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use ipc::ledger::{CRASH_AT, LedgerMapping, LedgerMemory};
use ipc::message::{STATUS_LEDGER, STATUS_OK, STATUS_REFUSED, ToCore, ToVsp};
use ipc::shm::SharedMemory;
use ipc::socket::Peer;
use vmbus::packet::{Outgoing, PacketType};
use vmbus::ring::{ControlWord, RingMemory};
use vsp::channel::MAX_ATTEMPTS;
use vsp::notify::Notifier;
use vsp::testing::{Bench, FakeCore, GuestEnd};
use vsp::{
    ChannelId, Channels, Device, Flow, Offer, OpenRequest, Packet, Refused, Request, Runtime, Setting, ipc,
    vmbus,
};

/// What a device does, and what has happened to it; the test holds the other end.
#[derive(Debug, Default)]
struct Script {
    /// Requests are kept instead of being answered.
    hold: bool,
    held: Vec<Request>,
    /// Requests with this first byte kill the process.
    poison: Option<u8>,
    /// What is passed on with each answer.
    state: Option<Vec<u8>>,
    /// Outcomes are recorded, and the requests kept.
    record: bool,
    /// Requests with this first byte have begun to have their effect, and are kept.
    begin: Option<u8>,
    /// How often the resource is not ours yet.
    in_use: u32,
    ran: Vec<u64>,
    rejected: Vec<u64>,
    restored: Option<Vec<u8>>,
    restores: bool,
    released: u32,
}

#[derive(Clone, Debug, Default)]
struct Actor(Rc<RefCell<Script>>);

impl Actor {
    fn new(script: Script) -> Actor {
        Actor(Rc::new(RefCell::new(script)))
    }
}

impl Device for Actor {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), max_subchannels: 3, ..Offer::default() }
    }

    fn depth(&self) -> u32 {
        16
    }

    fn resource(&self) -> String {
        "the stage".into()
    }

    fn fence(&mut self, _predecessor: bool) -> Result<bool, String> {
        let mut script = self.0.borrow_mut();
        let free = script.in_use == 0;
        script.in_use = script.in_use.saturating_sub(1);
        Ok(free)
    }

    fn release(&mut self) {
        self.0.borrow_mut().released += 1;
    }

    fn open(&mut self, _channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        if request.subchannel <= 3 { Ok(()) } else { Err(Refused::default()) }
    }

    fn restore(&mut self, _channel: ChannelId, state: &[u8]) -> Result<(), String> {
        let mut script = self.0.borrow_mut();
        if !script.restores {
            return Err("a foreign state".into());
        }
        script.restored = Some(state.to_vec());
        Ok(())
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let mut script = self.0.borrow_mut();
        script.ran.push(request.transaction_id());
        let payload = packet.header.payload(packet.bytes);
        assert!(script.poison != payload.first().copied(), "as a bug would have it");
        if script.record {
            assert!(request.record_outcome(channels, b"recorded"));
        }
        let begins = script.begin.is_some() && script.begin == payload.first().copied();
        if begins {
            assert!(request.note_begun(channels));
        }
        if script.hold || script.record || begins {
            script.held.push(request);
        } else if let Some(state) = &script.state {
            request.complete_with_state(channels, payload, state);
        } else {
            request.complete(channels, payload);
        }
    }

    fn reject(&mut self, packet: Option<Packet<'_>>, request: Request, channels: &mut Channels) {
        self.0.borrow_mut().rejected.push(request.transaction_id());
        request.complete(channels, if packet.is_some() { b"poison.." } else { b"damaged." });
    }
}

fn holding() -> Actor {
    Actor::new(Script { hold: true, ..Script::default() })
}

fn restoring() -> Actor {
    Actor::new(Script { restores: true, ..Script::default() })
}

fn send(guest: &mut GuestEnd, id: u64, payload: &[u8; 8]) {
    assert!(guest.send(&Outgoing::in_band(id, true), &[payload]));
}

/// Everything that the guest finds in its ring: ids and payloads.
fn drain(guest: &mut GuestEnd) -> Vec<(u64, Vec<u8>)> {
    std::iter::from_fn(|| {
        let (header, payload) = guest.poll()?;
        assert_eq!(header.packet_type, PacketType::COMPLETION);
        Some((header.transaction_id, payload))
    })
    .collect()
}

fn ids(guest: &mut GuestEnd) -> Vec<u64> {
    drain(guest).into_iter().map(|(id, _)| id).collect()
}

fn forget(actor: &Actor) {
    actor.0.borrow_mut().held.drain(..).for_each(std::mem::forget);
}

#[test]
fn a_standby_serves_when_it_is_told_and_not_before() {
    let (core, vsp) = FakeCore::new(0);
    let mut runtime = greet(&core, vsp, Actor::default(), true);
    let mut turn = || runtime.turn(Some(Duration::ZERO)).unwrap();
    turn();
    assert_eq!(core.try_answer(), None, "it stands by");
    let _end = core.open(1, 1);
    turn();
    let ToCore::OpenResult { status, reason, .. } = core.answer() else { panic!() };
    assert!(status == STATUS_REFUSED && reason.unwrap().contains("does not serve"));
    core.send(&ToVsp::Serve { predecessor: true });
    turn();
    assert_eq!(core.answer(), ToCore::Serving {});
    core.reopen(1);
    turn();
    assert_eq!(core.answer(), ToCore::OpenResult { channel: 1, status: STATUS_OK, reason: None });
    core.send(&ToVsp::Retire {});
    assert_eq!(turn(), Flow::Retired);
}

/// A process that has said hello and been welcomed.
fn greet(core: &FakeCore, vsp: Peer, actor: Actor, standby: bool) -> Runtime<Actor> {
    greet_with(core, vsp, actor, standby, true)
}

fn greet_with(core: &FakeCore, vsp: Peer, actor: Actor, standby: bool, ledger: bool) -> Runtime<Actor> {
    let setting = Setting { name: "test".into(), ledger, notifier: Notifier::silent() };
    let mut runtime = Runtime::new(actor, setting).unwrap();
    runtime.greet(vsp).unwrap();
    core.greet(standby);
    runtime
}

#[test]
fn the_core_is_heard_while_the_resource_is_waited_for() {
    let actor = Actor::new(Script { in_use: u32::MAX, ..Script::default() });
    let (core, vsp) = FakeCore::new(0);
    let mut runtime = greet(&core, vsp, actor, false);
    core.send(&ToVsp::Serve { predecessor: true });
    for _ in 0..50 {
        assert_eq!(runtime.turn(None).unwrap(), Flow::Continue, "a turn does not wait for it");
    }
    assert_eq!(core.try_answer(), None);
    core.send(&ToVsp::Quiesce {});
    runtime.turn(None).unwrap();
    assert_eq!(core.answer(), ToCore::Quiesced {}, "it has nothing to hand over");
    core.send(&ToVsp::Serve { predecessor: true });
    runtime.turn(None).unwrap();
    drop(core);
    assert_eq!(runtime.turn(None).unwrap(), Flow::CoreGone);
}

#[test]
fn a_resource_that_becomes_free_is_taken() {
    let actor = Actor::new(Script { in_use: 30, ..Script::default() });
    let mut bench = Bench::new(actor, 0);
    let mut guest = bench.open(1, 1);
    send(&mut guest, 1, b"it works");
    assert_eq!(bench.wait(&mut guest).1, b"it works");
}

#[test]
fn what_a_dead_process_held_is_run_again_and_answered_once() {
    let actor = holding();
    let mut bench = Bench::new(actor.clone(), 0);
    let mut guest = bench.open(1, 1);
    (1..=5).for_each(|id| send(&mut guest, id, b"question"));
    bench.settle();
    // It has answered the third, and the guest has not looked yet.
    let third = actor.0.borrow_mut().held.remove(2);
    bench.runtime.with_channels(|channels| third.complete(channels, b"answer.."));
    bench.settle();
    send(&mut guest, 6, b"question");
    forget(&actor);
    let core = bench.kill();
    guest.interrupt.drain().unwrap();

    let successor = Actor::default();
    let mut bench = Bench::take_over(core, successor.clone());
    bench.settle();
    assert!(guest.signalled(), "whatever wake-up died with the old one");
    assert_eq!(ids(&mut guest), [3, 1, 2, 4, 5, 6]);
    assert_eq!(successor.0.borrow().ran, [1, 2, 4, 5, 6], "in the order of the ring");
    bench.close(1);
}

#[test]
fn state_goes_with_the_answer_that_changed_it() {
    let actor = Actor::new(Script { state: Some(b"version 7".to_vec()), ..Script::default() });
    let mut bench = Bench::new(actor.clone(), 0);
    let mut guest = bench.open(1, 1);
    send(&mut guest, 1, b"question");
    bench.settle();
    actor.0.borrow_mut().state = Some(b"version 8".to_vec());
    actor.0.borrow_mut().hold = true;
    send(&mut guest, 2, b"question");
    bench.settle();
    forget(&actor);
    let successor = restoring();
    let bench = Bench::take_over(bench.kill(), successor.clone());
    assert_eq!(successor.0.borrow().restored.as_deref(), Some(&b"version 7"[..]));
    drop(bench);
}

#[test]
fn a_state_that_is_not_understood_is_refused_and_stays() {
    let actor = Actor::new(Script { state: Some(b"version 7".to_vec()), ..Script::default() });
    let mut bench = Bench::new(actor, 0);
    let mut guest = bench.open(1, 1);
    send(&mut guest, 1, b"question");
    bench.settle();
    bench.quiesce();
    let mut core = bench.core;
    let (old, vsp) = core.successor();
    let mut newer = attach(&core, vsp, Actor::default());
    core.reopen(1);
    newer.turn(Some(Duration::ZERO)).unwrap();
    let ToCore::OpenResult { status, reason, .. } = core.answer() else { panic!() };
    assert_eq!((status, reason.as_deref()), (STATUS_LEDGER, Some("a foreign state")));
    // The old one goes on.
    core.go_on_with(old);
    let mut bench = Bench { core, runtime: bench.runtime };
    bench.runtime.device().0.borrow_mut().restores = true;
    bench.serve(true);
    bench.reopen_all();
    send(&mut guest, 2, b"and then");
    assert_eq!(ids_after(&mut bench, &mut guest), [1, 2]);
}

fn ids_after(bench: &mut Bench<Actor>, guest: &mut GuestEnd) -> Vec<u64> {
    bench.settle();
    ids(guest)
}

/// Another process, told to serve.
fn attach(core: &FakeCore, vsp: Peer, actor: Actor) -> Runtime<Actor> {
    let mut runtime = greet(core, vsp, actor, false);
    core.send(&ToVsp::Serve { predecessor: true });
    runtime.turn(None).unwrap();
    assert_eq!(core.answer(), ToCore::Serving {});
    runtime
}

#[test]
fn a_ledger_of_nonsense_is_refused_and_stays_as_it_is() {
    let mut bench = Bench::new(Actor::default(), 0);
    let _guest = bench.open(1, 1);
    let mut core = bench.kill();
    let ledger = mapping(&core.ledger(1).unwrap());
    ledger.store(0, 0xDEAD_BEEF);
    let mut before = vec![0; 4096];
    ledger.read(0, &mut before);
    let (_, vsp) = core.successor();
    let mut newer = attach(&core, vsp, Actor::default());
    core.reopen(1);
    newer.turn(Some(Duration::ZERO)).unwrap();
    let ToCore::OpenResult { status: STATUS_LEDGER, reason: Some(reason), .. } = core.answer() else {
        panic!()
    };
    assert!(reason.contains("ledger"), "{reason}");
    let mut after = vec![0; 4096];
    ledger.read(0, &mut after);
    assert!(before == after);
}

fn mapping(memory: &SharedMemory) -> LedgerMapping {
    LedgerMapping::new(memory).unwrap()
}

#[test]
fn handing_over_waits_for_what_is_in_flight_and_takes_nothing_more() {
    let actor = holding();
    let mut bench = Bench::new(actor.clone(), 0);
    let mut guest = bench.open(1, 1);
    send(&mut guest, 1, b"in hands");
    bench.settle();
    bench.core.send(&ToVsp::Quiesce {});
    bench.settle();
    send(&mut guest, 2, b"too late");
    bench.settle();
    assert_eq!((bench.core.try_answer(), actor.0.borrow().released), (None, 0));
    bench.runtime.with_channels(|channels| {
        actor.0.borrow_mut().held.drain(..).for_each(|request| request.complete(channels, b"answer.."));
    });
    assert_eq!(bench.answer(), ToCore::Quiesced {});
    assert_eq!((actor.0.borrow().released, bench.runtime.open_channels()), (1, 0));
    assert_eq!(ids(&mut guest), [1]);
    bench.settle();
    assert_eq!(actor.0.borrow().ran, [1], "the other one is the successor's");

    let successor = Actor::default();
    let mut bench = Bench::take_over(bench.kill(), successor.clone());
    assert_eq!(ids_after(&mut bench, &mut guest), [2]);
}

#[test]
fn answers_that_the_guest_leaves_no_room_for_do_not_keep_a_process() {
    let mut bench = Bench::new(Actor::default(), 0);
    let mut guest = bench.open(1, 1);
    // Far more answers than the one page of the guest's ring holds; it does not look.
    let mut sent = 0;
    for _ in 0..50 {
        while guest.send(&Outgoing::in_band(sent, true), &[&[7; 256]]) {
            sent += 1;
        }
        bench.settle();
    }
    bench.quiesce();
    let mut bench = Bench::take_over(bench.kill(), Actor::default());
    let mut seen = Vec::new();
    while seen.len() < sent as usize {
        let more = ids_after(&mut bench, &mut guest);
        assert!(!more.is_empty(), "stuck at {} of {sent}", seen.len());
        seen.extend(more);
    }
    assert!(seen.iter().copied().eq(0..sent), "each once, in order");
}

#[test]
fn a_process_that_handed_over_serves_again_if_it_is_told() {
    let actor = Actor::default();
    let mut bench = Bench::new(actor.clone(), 0);
    let mut guest = bench.open(1, 1);
    for round in 0..20 {
        send(&mut guest, 2 * round, b"in a row");
        bench.quiesce();
        send(&mut guest, 2 * round + 1, b"in a row");
        bench.serve(true);
        bench.reopen_all();
        assert_eq!(ids_after(&mut bench, &mut guest), [2 * round, 2 * round + 1]);
    }
    assert_eq!(actor.0.borrow().released, 20);
}

#[test]
fn a_request_that_kills_its_processes_is_failed_and_the_others_are_answered() {
    let mut bench = Bench::new(Actor::new(Script { poison: Some(b'!'), ..Script::default() }), 0);
    let mut guest = bench.open(1, 1);
    send(&mut guest, 1, b"harmless");
    send(&mut guest, 2, b"!!!!!!!!");
    send(&mut guest, 3, b"harmless");
    let mut deaths = 0;
    let actor = loop {
        let survived = catch_unwind(AssertUnwindSafe(|| bench.settle())).is_ok();
        if survived {
            break bench.runtime.device().clone();
        }
        deaths += 1;
        let mut core = bench.kill();
        // In a process of its own a handler does this.
        mapping(&core.ledger(1).unwrap()).store(CRASH_AT, 6);
        let (_, vsp) = core.successor();
        // The next death is to be met above.
        core.early = false;
        let next = Actor::new(Script { poison: Some(b'!'), ..Script::default() });
        bench = Bench { runtime: attach(&core, vsp, next), core };
        bench.core.reopen(1);
        assert!(deaths < 10, "it kills for ever");
    };
    assert_eq!(deaths, MAX_ATTEMPTS);
    assert_eq!(actor.0.borrow().rejected, [2]);
    let mut answers = drain(&mut guest);
    answers.sort();
    let expected: Vec<(u64, Vec<u8>)> =
        vec![(1, b"harmless".to_vec()), (2, b"poison..".to_vec()), (3, b"harmless".to_vec())];
    assert_eq!(answers, expected);
}

#[test]
fn after_a_crash_that_nobody_is_known_to_blame_for_one_request_runs_at_a_time() {
    let actor = holding();
    let mut bench = Bench::new(actor.clone(), 0);
    let mut guests = [bench.open(1, 1), bench.open(2, 1)];
    for guest in &mut guests {
        (1..=3).for_each(|id| send(guest, id, b"question"));
    }
    bench.settle();
    forget(&actor);
    let mut core = bench.kill();
    [1, 2].into_iter().for_each(|channel| mapping(&core.ledger(channel).unwrap()).store(CRASH_AT, 11));
    guests.iter_mut().for_each(|guest| send(guest, 4, b"question"));

    let successor = holding();
    let (_, vsp) = core.successor();
    let mut bench = Bench { runtime: attach(&core, vsp, successor.clone()), core };
    [1, 2].into_iter().for_each(|channel| bench.core.reopen(channel));
    for done in 0..6 {
        bench.settle();
        assert_eq!(successor.0.borrow().ran.len(), done + 1, "on all channels together");
        let request = successor.0.borrow_mut().held.remove(0);
        bench.runtime.with_channels(|channels| request.complete(channels, b"answer.."));
    }
    bench.settle();
    assert_eq!(successor.0.borrow().held.len(), 2, "then as ever: what is new");
    bench.runtime.with_channels(|channels| {
        successor.0.borrow_mut().held.drain(..).for_each(|request| request.complete(channels, b"answer.."));
    });
    bench.settle();
    guests.iter_mut().for_each(|guest| assert_eq!(ids(guest), [1, 2, 3, 4]));
}

#[test]
fn a_successor_begins_when_it_has_all_channels_and_with_what_was_begun() {
    let actor = Actor::new(Script { hold: true, begin: Some(b'b'), ..Script::default() });
    let mut bench = Bench::new(actor.clone(), 0);
    let mut guests = [bench.open(1, 1), bench.open(2, 1)];
    (1..=2).for_each(|id| send(&mut guests[0], id, b"question"));
    send(&mut guests[1], 3, b"question");
    send(&mut guests[1], 4, b"begun...");
    bench.settle();
    forget(&actor);
    let mut core = bench.kill();
    let successor = Actor::default();
    let (_, vsp) = core.successor();
    core.early = false;
    let mut bench = Bench { runtime: attach(&core, vsp, successor.clone()), core };
    bench.core.reopen(1);
    bench.settle();
    assert!(successor.0.borrow().ran.is_empty(), "the other channel may say what these depend on");
    bench.core.reopen(2);
    bench.settle();
    assert_eq!(successor.0.borrow().ran[0], 4);
    assert_eq!((ids(&mut guests[0]), ids(&mut guests[1])), (vec![1, 2], vec![4, 3]));
}

#[test]
fn an_outcome_that_was_recorded_is_answered_and_not_repeated() {
    let actor = Actor::new(Script { record: true, ..Script::default() });
    let mut bench = Bench::new(actor.clone(), 0);
    let mut guest = bench.open(1, 1);
    send(&mut guest, 1, b"only one");
    bench.settle();
    forget(&actor);
    let successor = Actor::default();
    let mut bench = Bench::take_over(bench.kill(), successor.clone());
    bench.settle();
    assert_eq!(drain(&mut guest), [(1, b"recorded".to_vec())]);
    assert!(successor.0.borrow().ran.is_empty());
}

#[test]
fn a_channel_that_the_guest_broke_meanwhile_harms_nobody() {
    let mut bench = Bench::new(Actor::default(), 0);
    let bad = bench.open(1, 1);
    let mut good = bench.open(2, 1);
    let mut core = bench.kill();
    bad.writer.memory().store(ControlWord::WriteIndex, 3);
    let (_, vsp) = core.successor();
    let mut bench = Bench { runtime: attach(&core, vsp, Actor::default()), core };
    for channel in [1, 2] {
        bench.core.reopen(channel);
        let ToCore::OpenResult { status, .. } = bench.answer() else { panic!() };
        assert_eq!(status, STATUS_OK, "for the guest it is open until it closes it");
    }
    send(&mut good, 1, b"question");
    assert_eq!(ids_after(&mut bench, &mut good), [1]);
    bench.close(1);
}

#[test]
fn without_a_ledger_nothing_is_kept_and_nothing_else_is_different() {
    let (core, vsp) = FakeCore::new(0);
    let runtime = greet_with(&core, vsp, Actor::default(), false, false);
    let mut bench = Bench { core, runtime };
    bench.serve(false);
    let mut guest = bench.open(1, 1);
    assert!(bench.core.ledger(1).is_none());
    send(&mut guest, 1, b"question");
    assert_eq!(ids_after(&mut bench, &mut guest), [1]);
    bench.quiesce();
    guest.interrupt.drain().unwrap();
    bench.serve(true);
    bench.reopen_all();
    bench.settle();
    assert!(guest.signalled(), "whatever wake-up died with an old one");
    send(&mut guest, 2, b"question");
    assert_eq!(ids_after(&mut bench, &mut guest), [2]);
}
