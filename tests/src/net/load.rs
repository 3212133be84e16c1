//! Frames both ways through a guest, all of them counted and every byte checked.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use vsc::net::{Delivery, Event, Net, NetQueue, Room, TxInfo};

use super::Wire;
use super::frame::{Seen, Series};
use crate::guest::SoftPlatform;
use crate::load::Pulse;
use crate::steps::LIMIT;

/// How long a queue waits for something to happen before it looks around.
const TURN: Duration = Duration::from_millis(2);
/// The wire's address.
pub const PEER: [u8; 6] = [0x02, 0, 0, 0, 0xbe, 0xef];
/// Sends under way on a queue: more than the send buffer has sections, so that some go by lists of pages.
const WINDOW: usize = 24;

/// What everybody who has to do with a load shares.
#[derive(Debug)]
struct Shared {
    pulse: Arc<Pulse>,
    out: Series,
    into: Series,
    /// Number of the next frame out.
    next: AtomicU64,
    /// Frames in that there will be, once that is known.
    total_in: AtomicU64,
    seen_in: Mutex<Seen>,
    link_changes: AtomicU64,
    /// The guest has sent everything and has it all completed.
    guest_done: AtomicBool,
}

/// What came of a load.
#[derive(Debug, Default)]
pub struct Tally {
    /// Frames that the guest sent; each send was completed once.
    pub sent: u64,
    /// Those that came out.
    pub came_out: Seen,
    /// Frames that the wire sent.
    pub sent_in: u64,
    /// Those that came to the guest.
    pub came_in: Seen,
    /// Times that the link changed.
    pub link_changes: u64,
}

impl Tally {
    /// Every frame came, the link did not flap, and no frame came again, unless processes have died: those deliver again
    /// what they have not finished.
    pub fn check(&self, deaths: u64) -> anyhow::Result<()> {
        let (out, into) = (self.came_out.missing(self.sent), self.came_in.missing(self.sent_in));
        ensure!(out.is_empty(), "of {} frames from the guest these are lost: {out:?}", self.sent);
        ensure!(into.is_empty(), "of {} frames to the guest these are lost: {into:?}", self.sent_in);
        ensure!(self.link_changes == 0, "the link changed {} times", self.link_changes);
        ensure!(self.sent > 0 && self.sent_in > 0, "nothing was done");
        if deaths == 0 {
            let again = (self.came_out.again, self.came_in.again);
            ensure!(again == (0, 0), "frames came again (out, in): {again:?}");
        }
        Ok(())
    }
}

type Queue = NetQueue<SoftPlatform>;

/// A load that goes on in threads of its own.
pub struct Load {
    /// Its life.
    pub pulse: Arc<Pulse>,
    shared: Arc<Shared>,
    guest: JoinHandle<anyhow::Result<Net<SoftPlatform>>>,
    others: Vec<JoinHandle<anyhow::Result<Queue>>>,
    sender: JoinHandle<anyhow::Result<u64>>,
    receiver: JoinHandle<anyhow::Result<Seen>>,
}

impl Load {
    /// Starts one over all queues of a device.
    pub fn start(net: Net<SoftPlatform>, others: Vec<Queue>, wire: &Wire) -> anyhow::Result<Self> {
        let (mac, longest) = (net.device().mac, net.device().mtu as usize + 14);
        let pulse = Arc::new(Pulse::default());
        let shared = Arc::new(Shared {
            pulse: Arc::clone(&pulse),
            out: Series { to: PEER, from: mac, name: 1, longest },
            into: Series { to: mac, from: PEER, name: 2, longest },
            next: AtomicU64::new(0),
            total_in: AtomicU64::new(u64::MAX),
            seen_in: Mutex::default(),
            link_changes: AtomicU64::new(0),
            guest_done: AtomicBool::new(false),
        });
        let (mut writer, mut reader) = (wire.split()?, wire.split()?);
        let with = || Arc::clone(&shared);
        let (first, to, from) = (with(), with(), with());
        let guest = thread::spawn(move || {
            let mut net = net;
            work(net.queue(), &first)?;
            Ok(net)
        });
        let other = |mut queue: Queue| {
            let shared = with();
            thread::spawn(move || work(&mut queue, &shared).map(|()| queue))
        };
        let others = others.into_iter().map(other).collect();
        let sender = thread::spawn(move || send(&mut writer, &to));
        let receiver = thread::spawn(move || receive(&mut reader, &from));
        Ok(Self { pulse, shared, guest, others, sender, receiver })
    }

    /// Ends it: nothing new is sent, and what is under way is waited for.
    pub fn finish(self) -> anyhow::Result<(Tally, Net<SoftPlatform>, Vec<Queue>)> {
        self.pulse.stop();
        let sent_in = joined(self.sender).context("the wire's sender")?;
        self.shared.total_in.store(sent_in, Ordering::SeqCst);
        let net = joined(self.guest).context("the first queue");
        let others: anyhow::Result<Vec<Queue>> =
            self.others.into_iter().map(|thread| joined(thread).context("a sub-channel")).collect();
        self.shared.guest_done.store(true, Ordering::SeqCst);
        let came_out = joined(self.receiver).context("the wire's receiver");
        let (net, others, came_out) = (net?, others?, came_out?);
        let tally = Tally {
            sent: self.shared.next.load(Ordering::SeqCst),
            came_out,
            sent_in,
            came_in: lock(&self.shared.seen_in).clone(),
            link_changes: self.shared.link_changes.load(Ordering::SeqCst),
        };
        Ok((tally, net, others))
    }
}

fn joined<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("it panicked"))?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wire sends frame after frame.
fn send(wire: &mut Wire, shared: &Shared) -> anyhow::Result<u64> {
    let mut number = 0;
    while !shared.pulse.is_stopped() {
        wire.send(&shared.into.frame(number))?;
        number += 1;
    }
    Ok(number)
}

/// The wire takes what comes, until all that was sent has come.
fn receive(wire: &mut Wire, shared: &Shared) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let mut quiet = Instant::now();
    loop {
        if let Some(frame) = wire.receive(Duration::from_millis(50))? {
            quiet = Instant::now();
            let number = shared.out.check(&frame)?;
            seen.add(number.with_context(|| format!("a frame that nobody sent: {:02x?}", &frame[..30]))?);
            continue;
        }
        // What is lost shows in the tally.
        let all = seen.different == shared.next.load(Ordering::SeqCst);
        if shared.guest_done.load(Ordering::SeqCst) && (all || quiet.elapsed() > Duration::from_secs(2)) {
            return Ok(seen);
        }
    }
}

/// A queue of the guest: sends and receives until all is done.
fn work(queue: &mut Queue, shared: &Shared) -> anyhow::Result<()> {
    let done = serve(queue, shared);
    if done.is_err() {
        // Nobody waits for beats that do not come.
        shared.pulse.stop();
    }
    done
}

fn serve(queue: &mut Queue, shared: &Shared) -> anyhow::Result<()> {
    let mut waiting = VecDeque::new();
    let mut survived = 0;
    let mut moved = Instant::now();
    loop {
        let stopped = shared.pulse.is_stopped();
        while queue.in_flight() < WINDOW && (!stopped || !waiting.is_empty()) {
            if !send_some(queue, shared, &mut waiting, stopped)? {
                break;
            }
        }
        queue.flush()?;
        let deaths = shared.pulse.deaths();
        if deaths > survived {
            // What its predecessor did proves nothing about a successor.
            while let Some(event) = queue.poll()? {
                take(queue, shared, event)?;
            }
        }
        if let Some(event) = queue.wait(TURN)? {
            moved = Instant::now();
            take(queue, shared, event)?;
            if deaths > survived {
                shared.pulse.revived(deaths);
                survived = deaths;
            }
        }
        let total = shared.total_in.load(Ordering::SeqCst);
        if stopped && queue.in_flight() == 0 && waiting.is_empty() {
            let all_came = lock(&shared.seen_in).different >= total;
            // What is lost shows in the tally.
            if all_came || total != u64::MAX && moved.elapsed() > Duration::from_secs(2) {
                return Ok(());
            }
        } else if stopped {
            ensure!(moved.elapsed() < LIMIT, "{} sends are not completed", queue.in_flight());
        }
    }
}

/// Sends one frame or several, in one of the ways in which a driver does it. False if there is no room.
fn send_some(
    queue: &mut Queue,
    shared: &Shared,
    waiting: &mut VecDeque<Vec<u8>>,
    stopped: bool,
) -> anyhow::Result<bool> {
    let info = TxInfo::default();
    if waiting.is_empty() {
        if stopped {
            return Ok(false);
        }
        let first = shared.next.fetch_add(1, Ordering::SeqCst);
        waiting.push_back(shared.out.frame(first));
        // Now and then the stack has several at once.
        for _ in 0..if first.is_multiple_of(5) { 3 } else { 0 } {
            waiting.push_back(shared.out.frame(shared.next.fetch_add(1, Ordering::SeqCst)));
        }
    }
    if waiting.len() > 1 {
        let Some(mut section) = queue.take_section() else { return one(queue, waiting, &info) };
        let fit = waiting.iter().take_while(|frame| queue.add(&mut section, frame, &info)).count();
        if fit > 0 && queue.push_section(section)? != Room::None {
            waiting.drain(..fit);
            return Ok(true);
        }
        queue.drop_section(section);
        return Ok(false);
    }
    one(queue, waiting, &info)
}

fn one(queue: &mut Queue, waiting: &mut VecDeque<Vec<u8>>, info: &TxInfo) -> anyhow::Result<bool> {
    let Some(frame) = waiting.front() else { return Ok(false) };
    let sent = queue.send(frame, info)?;
    let is_sent = sent != Room::None;
    if is_sent {
        waiting.pop_front();
    }
    Ok(is_sent)
}

fn take(queue: &mut Queue, shared: &Shared, event: Event) -> anyhow::Result<()> {
    match event {
        Event::Sent(sent) => {
            shared.pulse.beat();
            ensure!(sent.status == vsc::net::wire::STATUS_SUCCESS, "{sent:?}");
        }
        Event::Delivery(delivery) => {
            shared.pulse.beat();
            check(queue, shared, &delivery)?;
            queue.give_back(delivery)?;
        }
        Event::Link { .. } => drop(shared.link_changes.fetch_add(1, Ordering::SeqCst)),
        Event::SendTable(_) | Event::Vf { .. } => {}
        other => anyhow::bail!("nobody has asked for {other:?}"),
    }
    Ok(())
}

fn check(queue: &Queue, shared: &Shared, delivery: &Delivery) -> anyhow::Result<()> {
    for frame in &delivery.frames {
        let bytes = queue.read(frame);
        let number = shared.into.check(&bytes)?;
        let number = number.with_context(|| format!("a frame that nobody sent: {:02x?}", &bytes[..14]))?;
        lock(&shared.seen_in).add(number);
    }
    Ok(())
}
