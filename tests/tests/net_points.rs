//! Every named kill point, those of loans included, at the level of processes: a NIC process that ends exactly there loses
//! no send, no frame and no part of the receive buffer.

#![cfg(debug_assertions)]

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bulkhead_tests::{
    SoftPlatform,
    net::{Rig, Wire, frame::Series, load::PEER, rig::DEVICE},
    steps::{Guest, LIMIT},
};
use vmbus::ring::{ControlWord, RingMemory};
use vsc::{
    OpenOptions,
    net::{
        Delivery, Event, Net, NetOptions, Room, TxInfo,
        control::{FILTER_UP, oid},
        wire::STATUS_SUCCESS,
    },
};
use vsp::channel::KillPoint;

/// Frames of a batch each way.
const BATCH: u64 = 6;
/// More completions than the ring to the guest has room for.
const CROWD: usize = 70;

/// Not to be reached: a NIC's requests have no outcome that a repetition would change.
const OUT_OF_REACH: [KillPoint; 3] = [KillPoint::Begun, KillPoint::OutcomeDue, KillPoint::OutcomeNoted];

/// A guest with a NIC, and the other end.
struct Life<'a> {
    net: Net<SoftPlatform>,
    wire: &'a mut Wire,
    out: Series,
    into: Series,
    next: u64,
}

/// What a guest does in its life: everything that has a kill point on its way.
fn live(guest: &mut Guest, wire: &mut Wire) -> anyhow::Result<()> {
    let offer = guest.offer(0)?;
    // Rings of two pages and of one: packets run around their ends, each at another place.
    let open = OpenOptions { to_host_pages: 3, to_guest_pages: 2, ..OpenOptions::default() };
    let options = NetOptions { open, depth: 128, receive_buffer: 1 << 20, ..NetOptions::default() };
    let net = Net::open(&mut guest.client, &offer, &options).context("opening")?;
    let mac = net.device().mac;
    let out = Series { to: PEER, from: mac, name: 1, longest: 1514 };
    let into = Series { to: mac, from: PEER, name: 2, longest: 1514 };
    let mut life = Life { net, wire, out, into, next: 0 };
    for round in 0..4 {
        life.batch().with_context(|| format!("round {round}"))?;
        life.net.set_filter(FILTER_UP)?;
    }
    life.hold().context("held deliveries")?;
    ensure!(life.net.query_word(oid::MEDIA_CONNECT_STATUS)? == 0, "the link is down");
    life.crowd().context("a crowd")?;
    life.batch().context("the last round")?;
    ensure!(life.event(Duration::from_millis(20))?.is_none(), "something came twice");
    life.net.close(&mut guest.client, Vec::new()).context("closing")?;
    Ok(())
}

impl Life<'_> {
    /// The next event that is not a frame which comes again.
    fn event(&mut self, timeout: Duration) -> anyhow::Result<Option<Event>> {
        loop {
            match self.net.queue().wait(timeout)? {
                Some(Event::Delivery(delivery)) if self.is_old(&delivery)? => {
                    self.net.queue().give_back(delivery)?;
                }
                Some(Event::Link { up }) => bail!("the link flaps: {up}"),
                other => return Ok(other),
            }
        }
    }

    fn numbers(&mut self, delivery: &Delivery) -> anyhow::Result<Vec<u64>> {
        let frames = delivery.frames.iter();
        frames.map(|frame| self.into.check(&self.net.queue().read(frame))?.context("whose is it?")).collect()
    }

    fn is_old(&mut self, delivery: &Delivery) -> anyhow::Result<bool> {
        let next = self.next;
        Ok(self.numbers(delivery)?.iter().all(|&number| number < next))
    }

    /// Frames at once both ways; each send is completed once, each frame comes.
    fn batch(&mut self) -> anyhow::Result<()> {
        let mut ids = Vec::new();
        for number in self.next..self.next + BATCH {
            let frame = self.out.frame(number);
            let room = match number % 3 {
                0 => self.net.queue().send_pages(&frame, &TxInfo::default())?,
                _ => self.net.queue().send(&frame, &TxInfo::default())?,
            };
            let Room::Sent(id) = room else { bail!("no room") };
            ids.push(id);
            self.wire.send(&self.into.frame(number))?;
        }
        let mut wanted: BTreeSet<u64> = (self.next..self.next + BATCH).collect();
        while !ids.is_empty() || !wanted.is_empty() {
            match self.event(LIMIT)?.with_context(|| format!("{ids:?} and frames {wanted:?} are lost"))? {
                Event::Sent(sent) => {
                    let at = ids.iter().position(|id| *id == sent.id).context("nobody has sent that")?;
                    ids.swap_remove(at);
                    ensure!(sent.status == STATUS_SUCCESS);
                }
                Event::Delivery(delivery) => {
                    for number in self.numbers(&delivery)? {
                        wanted.remove(&number);
                    }
                    self.net.queue().give_back(delivery)?;
                }
                other => bail!("{other:?}"),
            }
        }
        let mut wanted: BTreeSet<u64> = (self.next..self.next + BATCH).collect();
        while !wanted.is_empty() {
            let frame = self.wire.receive(LIMIT)?.with_context(|| format!("{wanted:?} did not come out"))?;
            wanted.remove(&self.out.check(&frame)?.context("whose is it?")?);
        }
        self.next += BATCH;
        Ok(())
    }

    /// What the guest keeps for a while, over whatever happens, it gives back in the other order.
    fn hold(&mut self) -> anyhow::Result<()> {
        let (first, count) = (self.next, 3);
        let mut held = Vec::new();
        let mut wanted: BTreeSet<u64> = BTreeSet::new();
        for number in first..first + count {
            self.wire.send(&self.into.frame(number))?;
            wanted.insert(number);
            while wanted.contains(&number) {
                let Some(Event::Delivery(delivery)) = self.event(LIMIT)? else {
                    bail!("frame {number} is lost")
                };
                for number in self.numbers(&delivery)? {
                    wanted.remove(&number);
                }
                held.push(delivery);
            }
        }
        self.next += count;
        for delivery in held.into_iter().rev() {
            self.net.queue().give_back(delivery)?;
        }
        Ok(self.net.queue().flush()?)
    }

    /// So many that the device has to wait for room.
    fn crowd(&mut self) -> anyhow::Result<()> {
        let frame = Series { longest: 100, ..self.out }.frame(3);
        let mut pushed = 0;
        let until = Instant::now() + LIMIT;
        let asked = |life: &mut Self| {
            let ring = life.net.queue().channel().reader().memory();
            ring.load(ControlWord::PendingSendSize) != 0
        };
        while pushed < CROWD {
            match self.net.queue().send_pages(&frame, &TxInfo::default())? {
                Room::Sent(_) => pushed += 1,
                // The device stops taking requests when it cannot complete any more.
                Room::None if asked(self) => break,
                Room::None => thread::sleep(Duration::from_micros(200)),
            }
            ensure!(Instant::now() < until, "{pushed} sends are stuck");
        }
        while !asked(self) {
            ensure!(Instant::now() < until, "the device does not wait for room");
            thread::sleep(Duration::from_micros(500));
        }
        for n in 0..pushed {
            match self.event(LIMIT)?.with_context(|| format!("{n} of {pushed} are completed"))? {
                Event::Sent(sent) => ensure!(sent.status == STATUS_SUCCESS),
                other => bail!("{other:?}"),
            }
        }
        while self.wire.receive(Duration::from_millis(20))?.is_some() {}
        Ok(())
    }
}

/// Lets a guest live with processes that end where `orders` say, one after the other; each death is followed by a
/// successor with the next order, and in the end by one without. True if the last order was followed too.
fn die_at(orders: &[String]) -> anyhow::Result<bool> {
    let Rig { mut vm, mut guest, mut wire } = Rig::with(|vm| vm.quiet(), |_| {})?;
    let first = orders.first().context("an order")?;
    vm.restart_with(DEVICE, &["--kill-point", first])?;
    let mut left = orders[1..].iter();
    let (mut deaths, mut ended) = (0, false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| live(&mut guest, &mut wire));
        while !ended {
            ended = guest.is_finished();
            if vm.device(DEVICE).try_wait()?.is_some() {
                deaths += 1;
                match left.next() {
                    Some(order) => vm.restart_with(DEVICE, &["--kill-point", order])?,
                    None => vm.restart(DEVICE)?,
                }
            }
            thread::sleep(Duration::from_micros(300));
        }
        guest.join().map_err(|_| anyhow::anyhow!("no panic"))?
    })?;
    Ok(deaths >= orders.len())
}

fn is_of_a_successor(point: KillPoint) -> bool {
    point.name().starts_with("adopt")
}

/// In which orders a point may be met: at once, in the middle, later; a successor's own points after deaths that leave
/// it something to do.
fn orders(point: KillPoint) -> Vec<Vec<String>> {
    let order = |name: &str, count: u32| format!("{name}:{count}");
    if !is_of_a_successor(point) {
        return [1, 5, 23].map(|count| vec![order(point.name(), count)]).to_vec();
    }
    let before = ["taken", "completing", "write-published", "state-written", "lent", "returning"];
    before
        .iter()
        .flat_map(|name| [1, 5].map(|count| vec![order(name, count), order(point.name(), 1)]))
        .chain([2, 3].map(|count| vec![order("write-published", 30), order(point.name(), count)]))
        .collect()
}

fn try_points(points: impl Iterator<Item = KillPoint>) -> anyhow::Result<()> {
    let mut missed = Vec::new();
    for point in points.filter(|point| !OUT_OF_REACH.contains(point)) {
        let mut met = 0;
        for orders in orders(point) {
            met += u32::from(die_at(&orders).with_context(|| format!("{orders:?}"))?);
        }
        if met == 0 {
            missed.push(point);
        }
    }
    ensure!(missed.is_empty(), "never met: {missed:?}");
    Ok(())
}

fn all() -> impl Iterator<Item = KillPoint> {
    KillPoint::ALL.into_iter().chain(KillPoint::LOANS)
}

#[test]
fn on_the_way_of_a_frame() -> anyhow::Result<()> {
    try_points(all().filter(|point| !is_of_a_successor(*point)))
}

#[test]
fn while_a_successor_takes_over() -> anyhow::Result<()> {
    try_points(all().filter(|point| is_of_a_successor(*point)))
}
