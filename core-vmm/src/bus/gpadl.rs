//! The guest's page lists (GPADLs): assembled from messages, claimed by channels, torn down.

use std::collections::BTreeMap;

use vmbus::{
    gpadl::{Assembly, GpadlRange, Limits, Progress},
    message::{GpadlBody, GpadlCreated, GpadlHeader, HostMessage, kind},
};

use super::{GuestFault, Relid, STATUS_UNSUCCESSFUL};
use crate::layout::PAGE;

/// GPADLs that a guest may hold at a time. Linux needs one or two a channel, netvsc three.
const MAX_GPADLS: usize = 4096;
/// Ranges of one GPADL. Linux sends one.
const MAX_RANGES: u32 = 64;
/// Pages of a ring: 128 MiB, far beyond what any driver asks.
const MAX_RING_PAGES: usize = 32 * 1024;
/// Pages of a GPADL that a device is given.
const MAX_SHARED_PAGES: usize = (ipc::message::MAX_SHARED_GPADL / PAGE) as usize;
/// The least that a ring can be: a control page and a data page.
const MIN_RING_PAGES: u32 = 2;

#[derive(Debug)]
enum State {
    Assembling(Assembly),
    Ready(Vec<GpadlRange>),
    /// In use as the ring of its channel.
    Claimed,
    /// A device has its pages.
    Shared,
    /// To be torn down as soon as the channel lets go of it.
    TearingDown,
    /// Torn down, the guest not told yet.
    TornDown,
}

#[derive(Debug)]
struct Gpadl {
    relid: Relid,
    pages: u64,
    state: State,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Gpadls {
    all: BTreeMap<u32, Gpadl>,
    max_pages: u64,
    pages: u64,
}

/// An answer for the guest, and what it did wrong if the answer is a refusal.
type Reply = Option<(HostMessage, Option<GuestFault>)>;

impl Gpadls {
    /// A guest cannot share more pages than it has; a page may be named by two GPADLs at most.
    pub fn new(ram_pages: u64) -> Self {
        Self { all: BTreeMap::new(), max_pages: ram_pages.saturating_mul(2), pages: 0 }
    }

    pub fn header(&mut self, header: &GpadlHeader<'_>) -> Result<Reply, GuestFault> {
        let (relid, gpadl) = (header.relid, header.gpadl);
        if self.all.contains_key(&gpadl) {
            return Err(GuestFault::BadGpadl { kind: kind::GPADL_HEADER, gpadl });
        }
        let left = self.max_pages.saturating_sub(self.pages);
        let limits = Limits { ranges: MAX_RANGES, pages: u32::try_from(left).unwrap_or(u32::MAX) };
        // Pages are counted from the announced length on, so that unfinished GPADLs are bounded too.
        let pages = u64::from(header.range_buffer_len / 8);
        if self.all.len() >= MAX_GPADLS || pages > left {
            return Ok(refuse(relid, gpadl, "the guest shares too much memory already".into()));
        }
        self.progress(relid, gpadl, pages, Assembly::begin(header, limits))
    }

    pub fn body(&mut self, body: &GpadlBody<'_>) -> Result<Reply, GuestFault> {
        let gpadl = body.gpadl;
        let fault = GuestFault::BadGpadl { kind: kind::GPADL_BODY, gpadl };
        match self.remove(gpadl) {
            Some(Gpadl { relid, pages, state: State::Assembling(assembly) }) => {
                self.progress(relid, gpadl, pages, assembly.append(body))
            }
            Some(other) => {
                self.insert(gpadl, other);
                Err(fault)
            }
            None => Err(fault),
        }
    }

    fn progress(
        &mut self,
        relid: Relid,
        gpadl: u32,
        pages: u64,
        progress: Result<Progress, vmbus::gpadl::GpadlError>,
    ) -> Result<Reply, GuestFault> {
        match progress {
            Ok(Progress::Partial(assembly)) => {
                self.insert(gpadl, Gpadl { relid, pages, state: State::Assembling(assembly) });
                Ok(None)
            }
            Ok(Progress::Complete(ranges)) => {
                self.insert(gpadl, Gpadl { relid, pages, state: State::Ready(ranges) });
                let created = GpadlCreated { relid, gpadl, status: 0 };
                Ok(Some((HostMessage::GpadlCreated(created), None)))
            }
            Err(e) => Ok(refuse(relid, gpadl, e.to_string())),
        }
    }

    fn insert(&mut self, number: u32, gpadl: Gpadl) {
        self.pages += gpadl.pages;
        self.all.insert(number, gpadl);
    }

    fn remove(&mut self, number: u32) -> Option<Gpadl> {
        let gpadl = self.all.remove(&number)?;
        self.pages -= gpadl.pages;
        Some(gpadl)
    }

    /// Takes `gpadl` as the ring of `relid`: returns its pages' addresses.
    pub fn claim_ring(
        &mut self,
        relid: Relid,
        gpadl: u32,
        to_host_pages: u32,
    ) -> Result<Vec<u64>, &'static str> {
        let found = self.all.get_mut(&gpadl).filter(|g| g.relid == relid);
        let Some(Gpadl { state, .. }) = found else { return Err("its ring GPADL does not exist") };
        let State::Ready(ranges) = state else { return Err("its ring GPADL is not ready") };
        let pfns = whole_pages(ranges).ok_or("its ring is not one range of whole pages")?;
        let to_guest_pages = (pfns.len() as u32).checked_sub(to_host_pages);
        if pfns.len() > MAX_RING_PAGES
            || to_host_pages < MIN_RING_PAGES
            || to_guest_pages.is_none_or(|pages| pages < MIN_RING_PAGES)
        {
            return Err("its ring has a size that cannot be");
        }
        let pages = pfns.iter().map(|pfn| pfn.saturating_mul(PAGE)).collect();
        *state = State::Claimed;
        Ok(pages)
    }

    /// Takes `gpadl` of `relid` for a device: returns its pages' addresses.
    pub fn share(&mut self, relid: Relid, gpadl: u32) -> Result<Vec<u64>, &'static str> {
        let found = self.all.get_mut(&gpadl).filter(|g| g.relid == relid);
        let Some(Gpadl { state, .. }) = found else { return Err("the guest has made no such GPADL") };
        let State::Ready(ranges) = state else { return Err("the GPADL is in use, or not ready") };
        let pfns = whole_pages(ranges).ok_or("the GPADL is not one range of whole pages")?;
        if pfns.len() > MAX_SHARED_PAGES {
            return Err("the GPADL is too long");
        }
        let pages = pfns.iter().map(|pfn| pfn.saturating_mul(PAGE)).collect();
        *state = State::Shared;
        Ok(pages)
    }

    /// No device has its pages any more, or any that `relid` has made (`None`: that anybody has). They are not shared again, as with
    /// rings. Returns which were.
    pub fn unshare(&mut self, relid: Option<Relid>, gpadl: Option<u32>) -> Vec<u32> {
        let is_meant = |number: u32, g: &Gpadl| {
            matches!(g.state, State::Shared)
                && relid.is_none_or(|relid| g.relid == relid)
                && gpadl.is_none_or(|gpadl| number == gpadl)
        };
        let mut shared = Vec::new();
        for (&number, g) in &mut self.all {
            if is_meant(number, g) {
                g.state = State::Ready(Vec::new());
                shared.push(number);
            }
        }
        shared
    }

    /// The channel lets go of its ring. The GPADL itself remains the guest's to tear down; as Linux never opens
    /// a channel twice with the same one, it is not made ready again.
    pub fn release(&mut self, relid: Relid) {
        for gpadl in self.all.values_mut().filter(|g| g.relid == relid) {
            if matches!(gpadl.state, State::TearingDown) {
                gpadl.state = State::TornDown;
            } else if matches!(gpadl.state, State::Claimed) {
                gpadl.state = State::Ready(Vec::new());
            }
        }
    }

    pub fn teardown(&mut self, kind: u32, relid: Relid, gpadl: u32) -> Result<(), GuestFault> {
        let fault = GuestFault::BadGpadl { kind, gpadl };
        let found = self.all.get_mut(&gpadl).filter(|g| g.relid == relid).ok_or(fault.clone())?;
        found.state = match found.state {
            State::Claimed => State::TearingDown,
            State::Ready(_) => State::TornDown,
            State::Assembling(_) | State::Shared | State::TearingDown | State::TornDown => return Err(fault),
        };
        Ok(())
    }

    /// Numbers of those that are gone and that the guest has not been told of.
    pub fn take_torn_down(&mut self) -> Vec<u32> {
        let gone: Vec<u32> = self
            .all
            .iter()
            .filter(|(_, g)| matches!(g.state, State::TornDown))
            .map(|(&number, _)| number)
            .collect();
        for number in &gone {
            self.remove(*number);
        }
        gone
    }

    /// The channel is no more.
    pub fn forget(&mut self, relid: Relid) {
        for (_, gpadl) in self.all.extract_if(.., |_, g| g.relid == relid) {
            self.pages -= gpadl.pages;
        }
    }

    pub fn clear(&mut self) {
        self.all.clear();
        self.pages = 0;
    }
}

/// The pages of a list that is one range of whole pages.
fn whole_pages(ranges: &[GpadlRange]) -> Option<&[u64]> {
    match ranges {
        [GpadlRange { len, offset: 0, pfns }] if u64::from(*len) == pfns.len() as u64 * PAGE => Some(pfns),
        _ => None,
    }
}

fn refuse(relid: Relid, gpadl: u32, reason: String) -> Reply {
    let created = GpadlCreated { relid, gpadl, status: STATUS_UNSUCCESSFUL };
    Some((HostMessage::GpadlCreated(created), Some(GuestFault::GpadlRefused { gpadl, reason })))
}
