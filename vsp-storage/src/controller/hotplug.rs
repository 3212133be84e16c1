//! Disks that come, go and grow while the guest runs.
//!
//! What a successor starts with is its supervisor's affair and has changed before: here the process that serves catches up. So everything
//! may be asked for twice, and is then told to the guest again: whoever was told to before may have died of it.
//!
//! A unit keeps its place, and so do the commands under way in it: one that is taken away is gone for the guest at once, and its
//! place is free when the last of its commands has ended.

use std::fs::File;
use std::os::fd::OwnedFd;

use vsp::{Channels, Control};

use super::Controller;
use crate::cli::DiskSpec;
use crate::control::{Answer, Page, UnitReport, Wanted, json, parse};
use crate::disk::{self, Given};
use crate::identity;
use crate::lun::Lun;
use crate::scsi::attention::Attention;
use crate::shape::Shape;
use crate::state::Phase;
use crate::stats::Class;
use crate::wire;

/// Somebody waits for a unit to be gone.
#[derive(Debug)]
pub(super) struct Removal {
    place: usize,
    control: Control,
}

impl Controller {
    /// Does what an operator wants.
    pub(super) fn obey(&mut self, mut control: Control, channels: &mut Channels) {
        let fds = std::mem::take(&mut control.fds);
        let answer = match parse(&control.payload) {
            Err(why) => Err(why),
            Ok(Wanted::Add { disk, shape, keeper }) => self.add(&disk, shape, keeper, fds).map(size),
            Ok(Wanted::Remove { lun }) => {
                self.remove(lun, control);
                self.notify(channels);
                return self.bury(channels);
            }
            Ok(Wanted::Resize { lun }) => self.resize(lun).map(size),
            Ok(Wanted::Stats { first }) => Ok(json(&self.report(first))),
        };
        // Before the answer: when the operator has that, the guest knows.
        self.notify(channels);
        control.answer(channels, answer);
    }

    /// The place of the unit with this number.
    pub(super) fn place_of(&self, number: u8) -> Option<usize> {
        self.engine.luns.iter().position(|lun| lun.lun == number && !lun.gone)
    }

    fn add(&mut self, spec: &DiskSpec, shape: Shape, keeper: bool, fds: Vec<OwnedFd>) -> Result<u64, String> {
        let number = spec.lun.ok_or("the disk has no LUN")?;
        if let Some(place) = self.place_of(number) {
            let lun = &self.engine.luns[place];
            if lun.path != spec.path {
                return Err(format!("LUN {number} is {} already", lun.path.display()));
            }
            self.owes_notice = true;
            return Ok(lun.bytes());
        }
        let others = || self.engine.luns.iter().filter(|lun| !lun.gone);
        if others().count() >= identity::MOST {
            return Err(format!("a controller has {} disks at most", identity::MOST));
        }
        if self.engine.luns.iter().any(|lun| lun.lun == number) && self.is_being_removed(number) {
            return Err(format!("the disk that was LUN {number} is not gone yet"));
        }
        let mut fds = fds.into_iter().map(File::from);
        let file = fds.next().ok_or("the disk itself has not come")?;
        let keeper = if keeper { Some(fds.next().ok_or("a descriptor has not come")?) } else { None };
        let given = Given { file, keeper, shape };
        let disk = disk::adopt(&self.device, number, spec, given).map_err(|error| error.to_string())?;
        disk::check_limit(&disk.file, &disk.path, disk.unit.read_only, self.file_limit)
            .map_err(|error| error.to_string())?;
        if let Some(other) = others().find(|other| other.unit.serial == disk.unit.serial) {
            return Err(format!("LUN {} has the same serial number: give it another serial=", other.lun));
        }
        let (mut lun, file) = Lun::new(disk);
        lun.identify(self.memory, &self.device);
        if !lun.take(&file)? {
            return Err(format!("{} is in use by another process", lun.waits_for()));
        }
        let (bytes, path) = (lun.bytes(), lun.path.display());
        tracing::info!(lun = number, bytes, read_only = lun.unit.read_only, "added: {path}");
        self.remember_unit(number, lun.identity);
        let place = self.engine.uring.add_file(file);
        self.engine.uring.align(place, lun.direct);
        match self.engine.luns.get_mut(place) {
            Some(free) => *free = lun,
            None => self.engine.luns.push(lun),
        }
        self.renumber();
        Ok(bytes)
    }

    /// Answered by [`Controller::bury`].
    fn remove(&mut self, number: u8, control: Control) {
        let place = self.place_of(number);
        if let Some(place) = place {
            self.engine.luns[place].gone = true;
            self.hurry(place, |_| true);
            self.forget_unit(number);
            self.renumber();
            tracing::info!(lun = number, "removed: {}", self.engine.luns[place].path.display());
        }
        self.owes_notice = true;
        // Nobody has asked before, or somebody waits still, or it has been gone for long: then any place will do that is free.
        let buried = || self.engine.luns.iter().position(|lun| lun.lun == number && lun.gone);
        let place = place.or_else(buried).unwrap_or(usize::MAX);
        self.removals.push(Removal { place, control });
    }

    fn is_being_removed(&self, number: u8) -> bool {
        self.engine
            .luns
            .iter()
            .enumerate()
            .any(|(place, lun)| lun.lun == number && lun.gone && self.engine.uring.file(place).is_some())
    }

    /// Lets go of units that are gone and of which nothing is under way any more.
    pub(super) fn bury(&mut self, channels: &mut Channels) {
        if self.removals.is_empty() {
            return;
        }
        for place in 0..self.engine.luns.len() {
            if self.engine.luns[place].gone
                && !self.is_busy(place)
                && let Some(file) = self.engine.uring.remove_file(place)
            {
                self.engine.luns[place].release(&file);
                self.engine.luns[place].close();
            }
        }
        let uring = &self.engine.uring;
        for removal in self.removals.extract_if(.., |removal| uring.file(removal.place).is_none()) {
            removal.control.answer(channels, Ok(json(&Answer::default())));
        }
    }

    /// Whether anything of a unit is under way.
    fn is_busy(&self, place: usize) -> bool {
        self.engine.luns[place].queue.len() > 0
    }

    fn resize(&mut self, number: u8) -> Result<u64, String> {
        let place = self.place_of(number).ok_or_else(|| format!("there is no LUN {number}"))?;
        let file = self.engine.uring.file(place).ok_or("its file is not open")?;
        let lun = &mut self.engine.luns[place];
        disk::check_limit(file, &lun.path, lun.unit.read_only, self.file_limit)
            .map_err(|error| error.to_string())?;
        lun.measure(file)?;
        // The guest looks only at those that tell it to.
        self.attend(number, Attention::CapacityChanged);
        self.owes_notice = true;
        Ok(self.engine.luns[place].bytes())
    }

    fn renumber(&mut self) {
        self.numbers = self.engine.luns.iter().filter(|lun| !lun.gone).map(|lun| lun.lun).collect();
        self.numbers.sort_unstable();
        self.owes_notice = true;
    }

    /// Tells the guest to look what units there are, as soon as it can be told.
    ///
    /// Not before its driver has sent a command: between the end of its introduction and its first look at the units, Linux (6.1) has
    /// nothing ready that would deal with it, and dies of it. Whatever has changed by then, it sees by itself.
    pub(super) fn notify(&mut self, channels: &mut Channels) {
        if !self.owes_notice {
            return;
        }
        let ready = self.state.phase == Phase::Ready && self.has_looked;
        if let Some(primary) = self.primary.filter(|_| ready) {
            self.owes_notice = !channels.send(primary, 0, &wire::enumerate_bus());
        }
    }

    /// Units from the number `first` on, and what they have done.
    fn report(&self, first: u8) -> Page {
        let numbers = self.numbers.iter().filter(|number| **number >= first);
        Page::of(numbers.filter_map(|number| Some(unit_report(&self.engine.luns[self.place_of(*number)?]))))
    }
}

fn size(bytes: u64) -> String {
    json(&Answer { bytes })
}

fn unit_report<P>(lun: &Lun<P>) -> UnitReport {
    let (stats, (throttled, queued)) = (&lun.stats, lun.queue.waits());
    let nanoseconds = |class, percent| stats.latency(class).percentile(percent).as_nanos() as u64;
    UnitReport {
        lun: lun.lun,
        path: lun.path.display().to_string(),
        bytes: lun.bytes(),
        read_only: lun.unit.read_only,
        in_flight: lun.queue.len() as u64,
        reads: stats.count(Class::Read),
        writes: stats.count(Class::Write),
        flushes: stats.count(Class::Flush),
        discards: stats.count(Class::Discard),
        read_bytes: stats.bytes(Class::Read),
        written_bytes: stats.bytes(Class::Write),
        errors: stats.errors,
        throttled,
        queued,
        bounced: stats.bounced,
        read_p50_ns: nanoseconds(Class::Read, 50),
        read_p99_ns: nanoseconds(Class::Read, 99),
        write_p50_ns: nanoseconds(Class::Write, 50),
        write_p99_ns: nanoseconds(Class::Write, 99),
        flush_p50_ns: nanoseconds(Class::Flush, 50),
        flush_p99_ns: nanoseconds(Class::Flush, 99),
    }
}
