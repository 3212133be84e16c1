//! What the guest of the software partition has of devices of the host's: accesses that a device answers, and interrupts by an eventfd.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

use ipc::event::Doorbell;

/// An interrupt of a device: where it goes, and what raises it.
#[derive(Debug)]
pub struct Route {
    target: (u32, u8),
    bell: Doorbell,
}

/// All of it.
#[derive(Debug)]
pub struct Passing {
    /// Each VP has one access at a time; whoever makes one plays a VP that is free.
    vps: Vec<Mutex<()>>,
    values: Mutex<HashMap<u32, u64>>,
    answered: Condvar,
    routes: Mutex<BTreeMap<u32, Route>>,
    /// Interrupts so far, by VP and vector.
    counts: Mutex<HashMap<(u32, u8), u64>>,
    interrupted: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Passing {
    /// Of a guest with so many VPs.
    pub fn new(vps: u32) -> Self {
        Self {
            vps: (0..vps).map(|_| Mutex::default()).collect(),
            values: Mutex::default(),
            answered: Condvar::new(),
            routes: Mutex::default(),
            counts: Mutex::default(),
            interrupted: Condvar::new(),
        }
    }

    /// Makes an access as a VP that has none under way: `ask` sends it. What was read; `None`: no answer came within the limit.
    pub fn access(&self, limit: Duration, ask: impl FnOnce(u32)) -> Option<u64> {
        let free = self.vps.iter().enumerate().find_map(|(vp, mutex)| match mutex.try_lock() {
            Ok(guard) => Some((vp, guard)),
            Err(TryLockError::Poisoned(error)) => Some((vp, error.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        });
        let (vp, _one) = free.unwrap_or_else(|| (0, lock(&self.vps[0])));
        let vp = vp as u32;
        ask(vp);
        let values = lock(&self.values);
        let (mut values, _) = self
            .answered
            .wait_timeout_while(values, limit, |values| !values.contains_key(&vp))
            .unwrap_or_else(PoisonError::into_inner);
        values.remove(&vp)
    }

    /// An access has been answered.
    pub fn answer(&self, vp: u32, value: u64) {
        lock(&self.values).insert(vp, value);
        self.answered.notify_all();
    }

    /// An interrupt begins to be.
    pub fn route(&self, route: u32, target: (u32, u8), bell: Doorbell) {
        lock(&self.routes).insert(route, Route { target, bell });
    }

    /// It goes elsewhere.
    pub fn reroute(&self, route: u32, target: (u32, u8)) {
        if let Some(route) = lock(&self.routes).get_mut(&route) {
            route.target = target;
        }
    }

    /// It is no more.
    pub fn end_route(&self, route: u32) {
        lock(&self.routes).remove(&route);
    }

    /// All routes, to look at their bells.
    pub fn routes(&self) -> MutexGuard<'_, BTreeMap<u32, Route>> {
        lock(&self.routes)
    }

    /// A bell rang.
    pub fn rung(&self, route: &Route) {
        if route.bell.drain().unwrap_or(false) {
            *lock(&self.counts).entry(route.target).or_default() += 1;
            self.interrupted.notify_all();
        }
    }

    /// How many interrupts a vector of a VP has had.
    pub fn count(&self, vp: u32, vector: u8) -> u64 {
        lock(&self.counts).get(&(vp, vector)).copied().unwrap_or(0)
    }

    /// Waits until it is not `seen` any more, or the time is over.
    pub fn wait(&self, vp: u32, vector: u8, seen: u64, timeout: Duration) {
        let counts = lock(&self.counts);
        let is_same =
            |counts: &mut HashMap<(u32, u8), u64>| counts.get(&(vp, vector)).copied().unwrap_or(0) == seen;
        drop(self.interrupted.wait_timeout_while(counts, timeout, is_same));
    }
}

impl Route {
    /// What raises it.
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }
}
