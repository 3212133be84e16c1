//! Interrupts: numbers that a guest is given, eventfds that the function makes count, and who has which.
//!
//! A guest asks for an interrupt and is given a value for the function to write: the **number** of one of our eventfds, of which the core
//! knows which processor and vector it raises. When the guest has written that value into the function's table (or its register), the
//! vector is **attached** to the eventfd of that number. From then on nobody but the kernel is between function and
//! processor.
//!
//! Guests change where an interrupt goes by giving it back and asking for another one. The lowest number that is free is given, so
//! it is the same one as a rule, and the function need not be told. An interrupt that came between the two may have been
//! lost, so a vector that is let loose again after a change gets one more, which finds nothing to do.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vsp::ipc::event::Doorbell;

use crate::backend::{Backend, Kind, MAX_VECTORS};
use crate::wire::MAX_MESSAGES;

/// Where messages are written: the processors' interrupt controllers, as on every PC. Which of them the core knows by the value.
pub const ADDRESS: u64 = 0xfee0_0000;

/// Numbers beyond one for each vector: a guest may ask for a new one before it gives the old one back.
const SPARE: u32 = 8;

/// Numbers that a guest can have, and their eventfds.
#[derive(Debug)]
pub struct Bells(Vec<Arc<OwnedFd>>);

impl Bells {
    /// How many a function needs.
    pub fn count(vectors: u32) -> u32 {
        vectors.saturating_add(SPARE).min(MAX_VECTORS)
    }

    /// New ones. They do not block.
    pub fn new(count: u32) -> io::Result<Bells> {
        let bell = |_| Doorbell::new().map(|bell| Arc::new(OwnedFd::from(bell)));
        (0..count.min(MAX_VECTORS)).map(bell).collect::<io::Result<_>>().map(Bells)
    }

    /// A predecessor's.
    pub fn adopt(fds: Vec<OwnedFd>) -> Bells {
        Bells(fds.into_iter().map(Arc::new).collect())
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them.
    pub fn get(&self, number: u32) -> Option<&Arc<OwnedFd>> {
        self.0.get(number as usize)
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<OwnedFd>] {
        &self.0
    }

    fn ring(&self, number: u32) {
        let Some(bell) = self.get(number) else { return };
        match nix::unistd::write(bell, &1u64.to_ne_bytes()) {
            // A counter at its limit counts already.
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => tracing::debug!(number, "an interrupt cannot be repeated: {error}"),
        }
    }
}

/// What the guest wants of a vector: the number of an interrupt.
pub type Wanted = Option<u32>;

/// Who has which.
#[derive(Debug, Default)]
pub struct Interrupts {
    /// First number and length of what the guest has been given.
    given: BTreeMap<u32, u32>,
    /// How the function is set up now.
    kind: Option<Kind>,
    /// The number that each vector has in the function.
    attached: Vec<Wanted>,
    /// Numbers that have been given since the vector that has them was let loose.
    fresh: Vec<bool>,
}

impl Interrupts {
    /// The lowest numbers in a row that are free. Several begin at a multiple of their count, a power of two: the function puts the
    /// number of the message into the lowest bits of the value.
    pub fn find(&self, count: u16, bells: &Bells) -> Option<u32> {
        let is_possible = count.is_power_of_two() && count <= MAX_MESSAGES;
        let count = u32::from(count);
        let mut places = (0..bells.len()).step_by(count.max(1) as usize).filter(|_| is_possible);
        places.find(|first| {
            let end = first + count;
            end <= bells.len() && self.given.iter().all(|(at, len)| at + len <= *first || *at >= end)
        })
    }

    /// The guest has been given these.
    pub fn give(&mut self, first: u32, count: u16) {
        self.given.insert(first, count.into());
        self.fresh.resize(MAX_VECTORS as usize, false);
        for number in first..first + u32::from(count) {
            if let Some(fresh) = self.fresh.get_mut(number as usize) {
                *fresh = true;
            }
        }
    }

    /// The guest gives them back: how many, if it had them.
    pub fn take_back(&mut self, first: u32) -> Option<u32> {
        self.given.remove(&first)
    }

    /// All that the guest has: first numbers and lengths.
    pub fn given(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.given.iter().map(|(first, count)| (*first, *count))
    }

    /// Whether the guest has this one.
    pub fn has(&self, number: u32) -> bool {
        let last = self.given.range(..=number).next_back();
        last.is_some_and(|(first, count)| number - first < *count)
    }

    /// How the function is set up.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// Nothing of a predecessor's is done again: the function is set up like this.
    pub fn resume(&mut self, kind: Option<Kind>, attached: Vec<Wanted>) {
        (self.kind, self.attached) = (kind, attached);
    }

    /// A guest begins anew; the function has been turned off.
    pub fn reset(&mut self) {
        *self = Interrupts::default();
    }

    /// Has the function do what the guest wants: of each vector, which number it has. A vector that wants nothing for now keeps what it has:
    /// nobody hears it, and most want the same again.
    pub fn apply(&mut self, kind: Option<Kind>, wanted: &[Wanted], bells: &Bells, backend: &mut dyn Backend) {
        if self.kind != kind {
            self.turn_off(backend);
            if let Some(kind) = kind {
                self.turn_on(kind, wanted, bells, backend);
            }
            return;
        }
        let Some(kind) = kind else { return };
        for (vector, number) in wanted.iter().enumerate().take(self.attached.len()) {
            let Some(number) = *number else { continue };
            let was = self.attached[vector];
            if was != Some(number) {
                self.detach_others(kind, number, backend);
                self.attach(kind, vector, Some(number), bells, backend);
            }
            let is_fresh = self.fresh.get_mut(number as usize).is_some_and(std::mem::take);
            if is_fresh && was.is_some() {
                bells.ring(number);
            }
        }
    }

    fn turn_on(&mut self, kind: Kind, wanted: &[Wanted], bells: &Bells, backend: &mut dyn Backend) {
        let bell = |number: &Wanted| number.and_then(|number| bells.get(number)).map(AsFd::as_fd);
        let fds: Vec<_> = wanted.iter().map(bell).collect();
        match backend.enable(kind, &fds) {
            Ok(()) => {
                self.kind = Some(kind);
                self.attached = wanted.to_vec();
                for number in wanted.iter().flatten() {
                    if let Some(fresh) = self.fresh.get_mut(*number as usize) {
                        *fresh = false;
                    }
                }
            }
            Err(error) => tracing::error!(?kind, "the function's interrupts cannot be turned on: {error}"),
        }
    }

    /// Turns the function's interrupts off.
    pub fn turn_off(&mut self, backend: &mut dyn Backend) {
        if let Some(kind) = self.kind.take()
            && let Err(error) = backend.disable(kind)
        {
            tracing::error!(?kind, "the function's interrupts cannot be turned off: {error}");
        }
        self.attached.clear();
    }

    fn attach(
        &mut self,
        kind: Kind,
        vector: usize,
        number: Wanted,
        bells: &Bells,
        backend: &mut dyn Backend,
    ) {
        let bell = number.and_then(|number| bells.get(number)).map(AsFd::as_fd);
        match backend.attach(kind, vector as u32, bell) {
            Ok(()) => self.attached[vector] = number,
            Err(error) => {
                tracing::error!(?kind, vector, "the function's interrupt cannot be changed: {error}")
            }
        }
    }

    /// A number belongs to one vector.
    fn detach_others(&mut self, kind: Kind, number: u32, backend: &mut dyn Backend) {
        for vector in 0..self.attached.len() {
            if self.attached[vector] == Some(number) {
                if let Err(error) = backend.attach(kind, vector as u32, None) {
                    tracing::error!(?kind, vector, "the function's interrupt cannot be taken away: {error}");
                }
                self.attached[vector] = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
