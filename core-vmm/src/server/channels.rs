//! Channels between the guest, which opens and closes them, and the process that happens to serve the device. A channel lives on
//! while processes come and go: pages, doorbell and ledger are the core's.

use std::{os::fd::AsFd, time::Instant};

use ipc::{
    event::Doorbell,
    message::{CONTROL_VERSION, EARLY_VERSION, STATUS_LEDGER, ToVsp},
    shm::SharedMemory,
};

use super::{
    PRIMARIES, Server, TELL_AGAIN,
    device::Device,
    live::{Hold, Live, Wish, Word},
    memory::Desk,
    prepare,
    slot::{Leave, Role},
};
use crate::{
    bus::{Bus, Open, Relid, STATUS_UNSUCCESSFUL},
    memory::donation::{self, Donation},
    partition::Partition,
};

impl Server {
    fn live(&mut self, relid: Relid) -> Option<&mut Live> {
        self.live.iter_mut().find(|l| l.relid == relid)
    }

    /// The guest opens a channel.
    pub(super) fn begin_open<P: Partition>(&mut self, partition: &P, open: &Open) {
        if let Err(reason) = self.try_open(partition, open) {
            self.refuse_open(partition, open.relid, STATUS_UNSUCCESSFUL, &reason);
        }
    }

    fn try_open<P: Partition>(&mut self, partition: &P, open: &Open) -> Result<(), String> {
        let device =
            self.devices.iter().position(|d| d.is_primary(open.primary)).ok_or("nobody's channel")?;
        let reserved = if open.subchannel > 0 { PRIMARIES } else { 0 };
        if self.live.len() + reserved >= self.channels_max {
            return Err(format!("{} channels are open already", self.live.len()));
        }
        let kick = Doorbell::new().map_err(|e| e.to_string())?;
        let pages = self
            .donations
            .donate(&self.ram, "bulkhead-ring", open.pages.clone(), partition)
            .map_err(|e| e.to_string())?;
        let live = Live::new(open, device, pages, kick);
        let bound = partition.bind_doorbell(Bus::connection_id(open.relid), live.kick.as_fd());
        self.live.push(live);
        bound.map_err(|e| format!("doorbell: {e}"))?;
        self.give(partition, open.relid)
    }

    fn refuse_open<P: Partition>(&mut self, partition: &P, relid: Relid, status: u32, reason: &str) {
        if let Some(times) = self.complaints.another() {
            tracing::warn!(channel = relid, %reason, times, "cannot be opened");
        }
        self.take_down(partition, relid);
        self.bus.opened(relid, status);
        self.apply(partition);
    }

    /// Gives a channel to the process that serves; one that comes later is given it then.
    fn give<P: Partition>(&mut self, partition: &P, relid: Relid) -> Result<(), String> {
        let Some(live) = self.live.iter_mut().find(|l| l.relid == relid && l.hold == Hold::Free) else {
            return Ok(());
        };
        let Some((_, process)) = self.devices[live.device].slot.taker() else { return Ok(()) };
        if live.ledger.is_none() && process.ledger > 0 {
            let ledger = SharedMemory::create("bulkhead-ledger", process.ledger);
            live.ledger = Some(ledger.map_err(|e| format!("its ledger: {e}"))?);
        }
        live.hold = Hold::Asked(Instant::now() + self.devices[live.device].open_grace());
        self.tell(partition, relid, Word::Open);
        Ok(())
    }

    /// Tells a process that has just been told to serve of the channels that another one has served, so that it need not ask, and wait for the answer, once
    /// it has the device. What it cannot be told now it is told then, and so is what comes after a channel that the guest still opens: the order stays.
    ///
    /// Not where a device's memory, or a device of the host's, comes before the channels.
    pub(super) fn give_early<P: Partition>(&mut self, partition: &P, device: usize, role: Role) {
        let Device { slot, passthrough, device_memory, .. } = &self.devices[device];
        let Some(process) = slot.get(role).filter(|process| process.version >= EARLY_VERSION) else { return };
        if *passthrough || *device_memory > 0 {
            return;
        }
        let is_due = |l: &&mut Live| l.device == device && l.wish != Wish::Closing;
        let mut channels: Vec<&mut Live> = self.live.iter_mut().filter(is_due).collect();
        if channels.is_empty() {
            return;
        }
        channels.sort_unstable_by_key(|live| (live.subchannel, live.relid));
        for live in channels {
            debug_assert_eq!(live.hold, Hold::Free, "nobody has it");
            if live.wish == Wish::Opening {
                return;
            }
            let fds = prepare::descriptors_for(live, process.id, &self.synic, partition);
            if process.peer.send(&live.message(Word::Open), &fds).is_err() {
                return;
            }
            live.prepared = None;
            live.hold = Hold::Early(live.target_vp);
        }
        // Said again when it serves.
        let _ = process.peer.send(&ToVsp::Adopted {}, &[]);
    }

    /// The process that was told of channels ahead serves: it has to answer for them now, and hears what has changed.
    fn await_early<P: Partition>(&mut self, partition: &P, device: usize) {
        let by = Instant::now() + self.devices[device].open_grace();
        let mut changed = Vec::new();
        for live in self.live.iter_mut().filter(|l| l.device == device) {
            let Hold::Early(vp) = live.hold else { continue };
            live.hold = Hold::Asked(by);
            if live.wish == Wish::Closing || vp != live.target_vp {
                changed.push((live.relid, live.wish));
            }
        }
        for (relid, wish) in changed {
            match wish {
                Wish::Closing => self.ask_close(partition, relid),
                Wish::Opening | Wish::Open => self.tell(partition, relid, Word::Retarget),
            }
        }
    }

    /// Gives all that the device has to the process that has begun to serve: what the guest sees of its memory, then its channels.
    pub(super) fn give_all<P: Partition>(&mut self, partition: &P, device: usize) {
        if !self.has_memory(partition, device) {
            return;
        }
        self.await_early(partition, device);
        self.settle(partition, device);
        let own = self.live.iter().filter(|l| l.device == device && l.wish != Wish::Closing);
        let mut relids: Vec<(u16, Relid)> = own.map(|l| (l.subchannel, l.relid)).collect();
        // The primary channel first: the others mean nothing without it.
        relids.sort_unstable();
        for (_, relid) in relids {
            if let Err(reason) = self.give(partition, relid) {
                // Only a channel without a ledger can fail, and nobody has served that one yet.
                self.refuse_open(partition, relid, STATUS_UNSUCCESSFUL, &reason);
            }
        }
        self.tell_all_given(partition, device);
        self.check_adopted(partition, device);
    }

    /// Tells the process that serves that there are no more channels to take over, as soon as it has been told of all.
    fn tell_all_given<P: Partition>(&mut self, partition: &P, device: usize) {
        let is_told = !self.live.iter().any(|l| l.device == device && l.is_untold());
        let Device { slot, owes_adopted, is_adopted, .. } = &mut self.devices[device];
        *is_adopted = true;
        *owes_adopted = match slot.taker() {
            Some((_, process)) if process.version >= CONTROL_VERSION => {
                let is_over = is_told && process.peer.send(&ToVsp::Adopted {}, &[]).is_ok();
                (!is_over).then(|| Instant::now() + TELL_AGAIN)
            }
            _ => None,
        };
        self.tell_accesses(partition, device);
    }

    /// No process has any of the device's channels.
    pub(super) fn release<P: Partition>(&mut self, partition: &P, device: usize) {
        for live in self.live.iter_mut().filter(|l| l.device == device) {
            (live.hold, live.owed) = (Hold::Free, None);
        }
        (self.devices[device].owes_adopted, self.devices[device].is_adopted) = (None, false);
        self.traps.release(device);
        self.devices[device].desk = Desk::default();
        self.settle(partition, device);
    }

    /// Finishes what the guest has closed and nobody has, if nothing can be under way to its memory any more.
    pub(super) fn settle<P: Partition>(&mut self, partition: &P, device: usize) {
        let owner = &self.devices[device];
        let may_close = owner.may_close();
        let may_ask = owner.acts_by_itself() && owner.slot.taker().is_some();
        let left = self.live.iter().filter(|l| l.device == device && l.is_left());
        let relids: Vec<Relid> = left.map(|l| l.relid).collect();
        for relid in relids {
            if may_close {
                self.finish_close(partition, relid);
            } else if may_ask {
                self.ask_close(partition, relid);
            }
        }
    }

    /// Has the process that serves let go of a channel.
    fn ask_close<P: Partition>(&mut self, partition: &P, relid: Relid) {
        if let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) {
            live.hold = Hold::Leaving(Instant::now() + self.devices[live.device].close_grace());
        }
        self.tell(partition, relid, Word::Close);
    }

    /// A process says what became of a request to open. `Err`: it cannot serve.
    pub(super) fn open_result<P: Partition>(
        &mut self,
        partition: &P,
        relid: Relid,
        status: u32,
        reason: &str,
    ) -> Result<(), Leave> {
        let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) else { return Ok(()) };
        if !matches!(live.hold, Hold::Asked(_)) || live.is_untold() {
            return Ok(());
        }
        let device = live.device;
        match (status, live.wish) {
            (0, wish) => {
                live.hold = Hold::Served;
                if wish == Wish::Opening {
                    live.wish = Wish::Open;
                    self.bus.opened(relid, 0);
                    self.apply(partition);
                }
                self.prepare(partition, relid);
            }
            // A ring that the guest has broken is served, as far as that goes. What else keeps a process from serving an
            // open channel is its own trouble (no memory, no descriptors), which the next one need not have.
            (STATUS_LEDGER, _) | (_, Wish::Open) => return Err(self.cannot_take_over(device, relid, reason)),
            (_, Wish::Opening) => self.refuse_open(partition, relid, status, reason),
            (_, Wish::Closing) => {
                live.hold = Hold::Free;
                self.settle(partition, device);
            }
        }
        self.check_adopted(partition, device);
        Ok(())
    }

    /// The channel waits for a process that understands it.
    fn cannot_take_over(&self, device: usize, relid: Relid, reason: &str) -> Leave {
        let device = &self.devices[device].name;
        tracing::error!(%device, channel = relid, %reason, "a channel cannot be taken over; it waits");
        Leave::Refused(format!("it cannot take channel {relid} over: {reason}"))
    }

    /// A process says that it has let go of a channel.
    pub(super) fn close_result<P: Partition>(&mut self, partition: &P, relid: Relid) {
        let Some(live) = self.live(relid) else { return };
        let device = live.device;
        if matches!(live.hold, Hold::Leaving(_)) {
            self.finish_close(partition, relid);
            self.check_adopted(partition, device);
        }
    }

    fn check_adopted<P: Partition>(&mut self, partition: &P, device: usize) {
        let is_asked = |l: &Live| l.device == device && matches!(l.hold, Hold::Asked(_));
        if self.devices[device].slot.is_adopting() && !self.live.iter().any(is_asked) {
            let acts = self.devices[device].slot.adopted(Instant::now());
            self.perform(partition, device, acts);
        }
    }

    /// The guest closes a channel.
    pub(super) fn begin_close<P: Partition>(&mut self, partition: &P, relid: Relid) {
        let Some(live) = self.live(relid) else { return };
        live.wish = Wish::Closing;
        if live.is_untold() {
            (live.hold, live.owed) = (Hold::Free, None);
        }
        let (device, hold) = (live.device, live.hold);
        if self.devices.get(device).is_some_and(|d| d.is_primary(relid)) {
            self.take_away(partition, device);
        }
        match hold {
            Hold::Free => {
                let place = device;
                let Some(device) = self.devices.get(place) else { return };
                if device.may_close() {
                    self.finish_close(partition, relid);
                    return;
                }
                if device.slot.taker().is_some() {
                    // It has not been told of the channel, and may have to do something about it all the same.
                    self.settle(partition, place);
                    return;
                }
                tracing::warn!(device = %device.name, channel = relid, "its process has gone; the guest's close waits for the next one");
            }
            // A process that hands over lets go of all channels anyway.
            Hold::Asked(_) | Hold::Served if self.devices[device].slot.taker().is_some() => {
                self.ask_close(partition, relid);
            }
            // Who has been told ahead is told when it serves.
            Hold::Early(_) | Hold::Asked(_) | Hold::Served | Hold::Leaving(_) => {}
        }
    }

    fn finish_close<P: Partition>(&mut self, partition: &P, relid: Relid) {
        self.take_down(partition, relid);
        self.bus.closed(relid);
        self.apply(partition);
    }

    /// The guest wants another VP interrupted.
    pub(super) fn retarget<P: Partition>(&mut self, partition: &P, relid: Relid, vp: u32) {
        let Some(live) = self.live(relid) else { return };
        live.target_vp = vp;
        // Who has not been told of the channel yet hears of the VP then.
        if matches!(live.hold, Hold::Asked(_) | Hold::Served) && !live.is_untold() {
            self.tell(partition, relid, Word::Retarget);
        }
        self.prepare(partition, relid);
    }

    /// Tells the process that serves something that it has to know, now or as soon as its socket has room.
    fn tell<P: Partition>(&mut self, partition: &P, relid: Relid, word: Word) {
        let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) else { return };
        let Some((_, process)) = self.devices[live.device].slot.taker() else {
            // It hands over, and forgets the channel soon: what it was never told, it need not answer.
            live.owed = None;
            live.hold = match (word, live.hold) {
                (Word::Open, _) => Hold::Free,
                (Word::Close, _) => Hold::Served,
                (Word::Retarget, hold) => hold,
            };
            return;
        };
        let fds = match word {
            Word::Open => prepare::descriptors_for(live, process.id, &self.synic, partition),
            Word::Close => Vec::new(),
            Word::Retarget => {
                vec![partition.interrupt(live.target_vp), self.synic.event_flags(live.target_vp).as_fd()]
            }
        };
        let sent = process.peer.send(&live.message(word), &fds);
        if word == Word::Open && sent.is_ok() {
            live.prepared = None;
        }
        live.owed = sent.is_err().then(|| (word, Instant::now() + TELL_AGAIN));
    }

    /// Takes the channel's pages back. The device's consent is not needed.
    fn take_down<P: Partition>(&mut self, partition: &P, relid: Relid) {
        let Some(at) = self.live.iter().position(|l| l.relid == relid) else { return };
        let live = self.live.swap_remove(at);
        self.unprepare(live.device, relid, live.prepared.map(|(process, _)| process));
        partition.unbind_doorbell(Bus::connection_id(relid));
        self.take_back(partition, live.pages);
    }

    /// Failing at this would leave a device's process with pages that the guest uses again.
    pub(super) fn take_back<P: Partition>(&mut self, partition: &P, pages: Donation) {
        match self.donations.take_back(&self.ram, pages, partition) {
            Ok(orphan) => {
                if let Err(error) = donation::discard(&orphan) {
                    tracing::warn!(%error, "what was shared with a device stays in memory as long as it has it");
                }
            }
            Err(error) => self.failure = Some(format!("shared pages could not be taken back: {error}")),
        }
    }

    /// When [`Self::tick_channels`] has to be called at the latest.
    pub(super) fn channels_deadline(&self) -> Option<Instant> {
        let channels = self.live.iter().flat_map(|l| [l.answer_by(), l.owed.map(|(_, when)| when)]);
        channels.chain(self.devices.iter().map(|d| d.owes_adopted)).flatten().min()
    }

    /// Tells processes what they could not be told, and cuts those off that have not answered.
    pub(super) fn tick_channels<P: Partition>(&mut self, partition: &P, now: Instant) {
        let due = |l: &Live| l.owed.filter(|(_, when)| *when <= now).map(|(word, _)| (l.relid, word));
        let owed: Vec<(Relid, Word)> = self.live.iter().filter_map(due).collect();
        for (relid, word) in owed {
            self.tell(partition, relid, word);
        }
        for device in 0..self.devices.len() {
            if self.devices[device].owes_adopted.is_some_and(|when| when <= now) {
                self.tell_all_given(partition, device);
            }
        }
        let late = self.live.iter().filter(|l| l.answer_by().is_some_and(|by| by <= now));
        let mut late: Vec<(usize, bool)> =
            late.map(|l| (l.device, matches!(l.hold, Hold::Leaving(_)))).collect();
        late.dedup_by_key(|(device, _)| *device);
        for (device, is_closing) in late {
            let holder: Option<Role> = self.devices[device].slot.holder().map(|(role, _)| role);
            let still =
                self.live.iter().any(|l| l.device == device && l.answer_by().is_some_and(|by| by <= now));
            if let Some(role) = holder.filter(|_| still) {
                let verb = if is_closing { "close" } else { "open" };
                let reason = format!("it did not {verb} a channel in time");
                self.leave(partition, device, role, Leave::CutOff(reason));
            }
        }
    }
}
