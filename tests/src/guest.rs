//! The guest's side of the software partition: a [`Platform`] for `vsc`.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use anyhow::Context;
use core_vmm::memory::{Ram, Stretch};
use ipc::{
    event::Doorbell,
    socket::{Listener, Peer, SocketError},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};
use vmbus::synic::{
    EVENT_FLAGS_SIZE, MESSAGE_FLAG_PENDING, MESSAGE_FLAGS_OFFSET, MESSAGE_SIZE, VMBUS_SINT, parse_message,
};
use vsc::{
    memory::{Pages, Wrapping},
    platform::{BoxError, Platform, PostError},
};

use crate::bench::wait::readable;
use crate::device_memory::DeviceMemory;
use crate::line::{ToGuest, ToPartition};
use crate::passing::Passing;

const PAGE: u64 = 4096;
/// SynIC pages: two a VP, from here on. The page at zero stays unused, as in a real guest.
const SYNIC_PAGES: u64 = PAGE;

/// State shared with the thread that plays the processor.
#[derive(Debug)]
struct Shared {
    ram: Ram,
    device_memory: DeviceMemory,
    passing: Passing,
    line: Arc<Peer>,
    doorbells: Mutex<HashMap<u32, Doorbell>>,
    /// Interrupts each VP has had.
    interrupts: Mutex<Vec<u64>>,
    interrupted: Condvar,
    /// If there are any, interrupts are not for the thread that plays the processor but for whoever waits for one.
    direct: Option<Direct>,
    answers: Mutex<Vec<u16>>,
    answered: Condvar,
    started: Mutex<bool>,
    start: Condvar,
}

/// How a waiting thread gets to know of an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interrupts {
    /// From the thread that plays the processor; any number of threads may wait for each VP.
    #[default]
    Shared,
    /// By itself, without a change of threads: as a VP that looks out for so long, then sleeps and is woken. One thread a VP.
    Direct(Duration),
}

/// Wires that the waiting threads listen to themselves.
#[derive(Debug)]
struct Direct {
    /// How long an interrupt is looked out for before the thread sleeps.
    looks_out: Duration,
    wires: Mutex<Vec<Arc<Doorbell>>>,
    /// Interrupts so far, of all VPs.
    count: AtomicU64,
}

impl Direct {
    fn wait(&self, vp: u32, timeout: Duration) {
        self.wait_besides(vp, &[], timeout);
    }

    fn wait_besides(&self, vp: u32, others: &[BorrowedFd<'_>], timeout: Duration) {
        let Some(wire) = lock(&self.wires).get(vp as usize).cloned() else { return };
        let all: Vec<BorrowedFd<'_>> = std::iter::once(wire.as_fd()).chain(others.iter().copied()).collect();
        readable(&all, self.looks_out, timeout);
        if wire.drain().unwrap_or(false) {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A guest of the software partition.
#[derive(Debug)]
pub struct SoftPlatform {
    shared: Arc<Shared>,
    vps: u32,
    /// One hypercall at a time.
    asking: Mutex<()>,
    /// Free guest pages: start to number of pages.
    free: Mutex<BTreeMap<u64, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a device may leave a VP waiting, before this guest goes on as if nothing were there: longer than any test means it to.
const ACCESSES_WITHIN: Duration = Duration::from_secs(60);
/// How long a partition may take to come up.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

impl SoftPlatform {
    /// Waits until a partition connects, and takes the line to it as [`Self::start`] does.
    pub fn listen(listener: &Listener, interrupts: Interrupts) -> anyhow::Result<Self> {
        let timeout = PollTimeout::try_from(STARTS_WITHIN)?;
        let ready = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout)?;
        anyhow::ensure!(ready == 1, "no partition comes");
        let line = listener.accept()?;
        line.set_nonblocking(false)?;
        Self::start(line, interrupts)
    }

    /// Takes the line to a partition and waits until all devices have attached. SynIC pages are set up on all VPs.
    pub fn start(line: Peer, interrupts: Interrupts) -> anyhow::Result<Self> {
        let (ram, vps) = match line.recv().context("the partition says nothing")? {
            (ToGuest::Ram { regions, vps }, fds) => {
                let memfd = fds.into_iter().next().context("no RAM came")?;
                let stretch =
                    |r: &ipc::message::RamRegion| Stretch { gpa: r.gpa, len: r.len, offset: r.offset };
                (Ram::adopt(memfd, regions.iter().map(stretch).collect())?, vps)
            }
            (other, _) => anyhow::bail!("the partition begins with {other:?}"),
        };
        let first_free = SYNIC_PAGES + u64::from(vps) * 2 * PAGE;
        let mut free = BTreeMap::new();
        for s in ram.stretches() {
            let start = s.gpa.max(first_free);
            free.insert(start, (s.gpa + s.len - start) / PAGE);
        }
        let shared = Arc::new(Shared {
            ram,
            device_memory: DeviceMemory::default(),
            passing: Passing::new(vps),
            line: Arc::new(line),
            doorbells: Mutex::default(),
            interrupts: Mutex::new(vec![0; vps as usize]),
            interrupted: Condvar::new(),
            direct: match interrupts {
                Interrupts::Shared => None,
                Interrupts::Direct(looks_out) => {
                    Some(Direct { looks_out, wires: Mutex::default(), count: AtomicU64::new(0) })
                }
            },
            answers: Mutex::default(),
            answered: Condvar::new(),
            started: Mutex::default(),
            start: Condvar::new(),
        });
        let processor = Arc::clone(&shared);
        std::thread::Builder::new().name("processor".into()).spawn(move || processor.run())?;
        let platform = Self { shared, vps, asking: Mutex::default(), free: Mutex::new(free) };
        let started = lock(&platform.shared.started);
        let (started, _) = platform
            .shared
            .start
            .wait_timeout_while(started, STARTS_WITHIN, |started| !*started)
            .unwrap_or_else(PoisonError::into_inner);
        anyhow::ensure!(*started, "the devices did not attach");
        drop(started);
        for vp in 0..vps {
            platform.set_synic(vp, true)?;
        }
        Ok(platform)
    }

    /// RAM, for hostile tests.
    pub fn ram(&self) -> &Ram {
        &self.shared.ram
    }

    /// What the guest sees of devices' own memory: addresses and lengths.
    pub fn device_memory(&self) -> Vec<(u64, u64)> {
        self.shared.device_memory.list()
    }

    /// Reads of a device's own memory; false if these bytes are not all in one piece that is there.
    pub fn try_read_device(&self, gpa: u64, into: &mut [u8]) -> bool {
        self.shared.device_memory.read(gpa, into)
    }

    /// A VP meets a region that does not answer. False: nothing that could be concerned is there, and the VM cannot go on.
    pub fn region_fault(&self, gpa: Option<u64>) -> anyhow::Result<bool> {
        let status = self.ask(&ToPartition::Fault { gpa }).map_err(anyhow::Error::from_boxed)?;
        Ok(status == 0)
    }

    fn access(&self, gpa: u64, bytes: u8, write: Option<u64>) -> u64 {
        let ask = |vp| {
            let _ = self.shared.line.send(&ToPartition::Access { vp, gpa, bytes, write }, &[]);
        };
        self.shared.passing.access(ACCESSES_WITHIN, ask).unwrap_or(u64::MAX)
    }

    /// Switches a VP's SynIC on or off.
    pub fn set_synic(&self, vp: u32, on: bool) -> anyhow::Result<()> {
        let (control, on) = if on { (1, 1) } else { (0, 0) };
        let pages = SYNIC_PAGES + u64::from(vp) * 2 * PAGE;
        self.write_synic(vp, control, pages | on, (pages + PAGE) | on)
    }

    /// Writes SynIC registers as they are.
    pub fn write_synic(
        &self,
        vp: u32,
        control: u64,
        message_page: u64,
        event_page: u64,
    ) -> anyhow::Result<()> {
        self.ask(&ToPartition::Synic { vp, control, event_page, message_page })
            .map(drop)
            .map_err(anyhow::Error::from_boxed)
    }

    /// Resets the guest: returns when the host has closed everything.
    pub fn reset(&self) -> anyhow::Result<()> {
        self.ask(&ToPartition::Reset).map(drop).map_err(anyhow::Error::from_boxed)
    }

    /// Waits for an interrupt of `vp`, or until one of these is readable, or the time is over; only if interrupts are
    /// [direct](Interrupts::Direct).
    pub fn wait_besides(&self, vp: u32, others: &[BorrowedFd<'_>], timeout: Duration) {
        if let Some(direct) = &self.shared.direct {
            direct.wait_besides(vp, others, timeout);
        }
    }

    fn ask(&self, question: &ToPartition) -> Result<u16, BoxError> {
        let _one = lock(&self.asking);
        self.shared.line.send(question, &[])?;
        let mut answers = lock(&self.shared.answers);
        loop {
            if let Some(status) = answers.pop() {
                return Ok(status);
            }
            let limit = Duration::from_secs(20);
            let (now, timeout) =
                self.shared.answered.wait_timeout(answers, limit).unwrap_or_else(PoisonError::into_inner);
            answers = now;
            if timeout.timed_out() && answers.is_empty() {
                return Err("the partition does not answer".into());
            }
        }
    }

    fn message_slot(&self, vp: u32) -> u64 {
        SYNIC_PAGES + u64::from(vp) * 2 * PAGE + u64::from(VMBUS_SINT) * MESSAGE_SIZE as u64
    }
}

impl SoftPlatform {
    /// The guest is gone, as when its processors end. Nothing else works afterwards.
    pub fn leave(&self) {
        // The processor's thread holds the line too; this makes it, and the core, see the end.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.shared.line),
            nix::sys::socket::Shutdown::Both,
        );
    }
}

impl Drop for SoftPlatform {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Platform for SoftPlatform {
    type Ring = Wrapping<GuestPages>;

    fn vp_count(&self) -> u32 {
        self.vps
    }

    fn post_message(&self, connection: u32, message: &[u8]) -> Result<(), PostError> {
        match self.ask(&ToPartition::PostMessage { connection, payload: message.to_vec() })? {
            0 => Ok(()),
            status => Err(PostError::Status(status)),
        }
    }

    fn signal_event(&self, connection: u32) -> Result<(), BoxError> {
        match lock(&self.shared.doorbells).get(&connection) {
            Some(bell) => Ok(bell.signal()?),
            None => Err(format!("connection {connection:#x} is bound to nothing").into()),
        }
    }

    fn hypercall(&self, control: u64, input: u64) -> Result<u64, BoxError> {
        self.ask(&ToPartition::Hypercall { control, input }).map(u64::from)
    }

    fn vector_interrupts(&self, vp: u32, vector: u8) -> u64 {
        self.shared.passing.count(vp, vector)
    }

    fn wait_vector(&self, vp: u32, vector: u8, seen: u64, timeout: Duration) {
        self.shared.passing.wait(vp, vector, seen, timeout);
    }

    fn take_message(&self, vp: u32) -> Result<Option<Vec<u8>>, BoxError> {
        let at = self.message_slot(vp);
        let ram = &self.shared.ram;
        if ram.load_u32(at)? == 0 {
            return Ok(None);
        }
        let mut slot = [0; MESSAGE_SIZE];
        ram.read(at, &mut slot)?;
        let message = parse_message(&slot)?.map(|(_, payload)| payload.to_vec());
        ram.store_u32(at, 0)?;
        fence(Ordering::SeqCst);
        let mut flags = [0];
        ram.read(at + MESSAGE_FLAGS_OFFSET as u64, &mut flags)?;
        if flags[0] & MESSAGE_FLAG_PENDING != 0 {
            self.shared.line.send(&ToPartition::EndOfMessage { vp }, &[])?;
        }
        Ok(message)
    }

    fn take_event(&self, vp: u32, flag: u32) -> bool {
        let page = SYNIC_PAGES + u64::from(vp) * 2 * PAGE + PAGE;
        let at = page + u64::from(VMBUS_SINT) * EVENT_FLAGS_SIZE as u64 + u64::from(flag / 32) * 4;
        let Ok(slice) = self.shared.ram.map_ref().get_slice(GuestAddress(at), 4) else { return false };
        let Ok(word) = slice.get_atomic_ref::<AtomicU32>(0) else { return false };
        let bit = 1 << (flag % 32);
        word.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    fn interrupts(&self, vp: u32) -> u64 {
        if let Some(direct) = &self.shared.direct {
            return direct.count.load(Ordering::SeqCst);
        }
        lock(&self.shared.interrupts)[vp as usize]
    }

    fn wait_interrupt(&self, vp: u32, seen: u64, timeout: Duration) {
        if let Some(direct) = &self.shared.direct {
            return direct.wait(vp, timeout);
        }
        let counts = lock(&self.shared.interrupts);
        drop(self.shared.interrupted.wait_timeout_while(counts, timeout, |c| c[vp as usize] == seen));
    }

    fn allocate(&self, pages: u32) -> Result<u64, BoxError> {
        let mut free = lock(&self.free);
        let wanted = u64::from(pages);
        let (&start, &len) = free.iter().find(|(_, len)| **len >= wanted).ok_or("guest memory is full")?;
        free.remove(&start);
        if len > wanted {
            free.insert(start + wanted * PAGE, len - wanted);
        }
        drop(free);
        for page in 0..wanted {
            self.shared.ram.write(start + page * PAGE, &[0; PAGE as usize])?;
        }
        Ok(start)
    }

    fn release(&self, address: u64, pages: u32) {
        let mut free = lock(&self.free);
        let mut len = u64::from(pages);
        if let Some(next) = free.remove(&(address + len * PAGE)) {
            len += next;
        }
        match free.range_mut(..address).next_back() {
            Some((&start, before)) if start + *before * PAGE == address => *before += len,
            _ => {
                free.insert(address, len);
            }
        }
    }

    fn read(&self, address: u64, into: &mut [u8]) {
        let ask = |gpa, bytes| self.access(gpa, bytes, None);
        if self.shared.device_memory.load(address, into, self.shared.ram.end(), ask) {
            return;
        }
        self.shared.ram.read(address, into).unwrap_or_else(|e| panic!("{e}"));
    }

    fn write(&self, address: u64, from: &[u8]) {
        let ask = |gpa, bytes, value| {
            self.access(gpa, bytes, Some(value));
        };
        if self.shared.device_memory.store(address, from, self.shared.ram.end(), ask) {
            return;
        }
        self.shared.ram.write(address, from).unwrap_or_else(|e| panic!("{e}"));
    }

    fn ring(&self, address: u64, pages: u32) -> Result<Self::Ring, BoxError> {
        Ok(Wrapping(GuestPages { ram: self.shared.ram.clone(), address, len: pages * PAGE as u32 }))
    }
}

/// A ring's pages. Page moves happen under the mapping, so it stays good.
#[derive(Debug)]
pub struct GuestPages {
    ram: Ram,
    address: u64,
    len: u32,
}

impl Pages for GuestPages {
    fn len(&self) -> u32 {
        self.len
    }

    fn load(&self, offset: usize) -> u32 {
        self.ram.load_u32(self.address + offset as u64).unwrap_or_else(|e| panic!("{e}"))
    }

    fn store(&self, offset: usize, value: u32) {
        self.ram.store_u32(self.address + offset as u64, value).unwrap_or_else(|e| panic!("{e}"));
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.ram.read(self.address + offset as u64, into).unwrap_or_else(|e| panic!("{e}"));
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.ram.write(self.address + offset as u64, from).unwrap_or_else(|e| panic!("{e}"));
    }
}

impl Shared {
    /// Plays the processor: follows page moves, counts interrupts, hands on answers. Ends with the line.
    fn run(&self) {
        let mut wires: Vec<Doorbell> = Vec::new();
        loop {
            let mut fds = vec![PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
            fds.extend(wires.iter().map(|w| PollFd::new(w.as_fd(), PollFlags::POLLIN)));
            // Nobody but this thread changes them.
            let routes = self.passing.routes();
            fds.extend(routes.values().map(|r| PollFd::new(r.bell().as_fd(), PollFlags::POLLIN)));
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect();
            drop(fds);
            for (vp, wire) in wires.iter().enumerate() {
                if ready[vp + 1] && wire.drain().unwrap_or(false) {
                    lock(&self.interrupts)[vp] += 1;
                    self.interrupted.notify_all();
                }
            }
            for (route, ready) in routes.values().zip(&ready[wires.len() + 1..]) {
                if *ready {
                    self.passing.rung(route);
                }
            }
            drop(routes);
            if ready[0] {
                match self.line.recv::<ToGuest>() {
                    Ok((message, fds)) => self.hear(message, fds, &mut wires),
                    Err(SocketError::WouldBlock) => {}
                    Err(_) => return,
                }
            }
        }
    }

    fn hear(&self, message: ToGuest, mut fds: Vec<OwnedFd>, wires: &mut Vec<Doorbell>) {
        let bell = |fds: &mut Vec<OwnedFd>| fds.pop().and_then(|fd| Doorbell::from_fd(fd).ok());
        match message {
            ToGuest::Wire { .. } => match &self.direct {
                None => wires.extend(bell(&mut fds)),
                Some(direct) => lock(&direct.wires).extend(bell(&mut fds).map(Arc::new)),
            },
            ToGuest::Start => {
                *lock(&self.started) = true;
                self.start.notify_all();
            }
            ToGuest::Status { status } => {
                lock(&self.answers).push(status);
                self.answered.notify_all();
            }
            ToGuest::Doorbell { connection } => {
                if let Some(bell) = bell(&mut fds) {
                    lock(&self.doorbells).insert(connection, bell);
                }
            }
            ToGuest::NoDoorbell { connection } => {
                lock(&self.doorbells).remove(&connection);
            }
            ToGuest::Moved { gpa, pages, offset } => {
                let backing = fds.first().map(|fd| (fd.as_fd(), offset));
                self.ram
                    .lay_over(gpa, pages, backing)
                    .unwrap_or_else(|e| panic!("cannot follow a page: {e}"));
                let _ = self.line.send(&ToPartition::Followed, &[]);
            }
            ToGuest::Value { vp, value } => self.passing.answer(vp, value),
            ToGuest::Route { route, vp, vector } => {
                if let Some(bell) = bell(&mut fds) {
                    self.passing.route(route, (vp, vector), bell);
                }
            }
            ToGuest::Reroute { route, vp, vector } => self.passing.reroute(route, (vp, vector)),
            ToGuest::NoRoute { route } => self.passing.end_route(route),
            ToGuest::DeviceMemory { gpa, offset, bytes } => {
                let memfd = fds.pop().ok_or_else(|| "no descriptor".to_owned());
                memfd
                    .and_then(|memfd| self.device_memory.map(gpa, offset, bytes, memfd))
                    .unwrap_or_else(|e| panic!("cannot see a device's memory: {e}"));
                let _ = self.line.send(&ToPartition::Followed, &[]);
            }
            ToGuest::NoDeviceMemory { gpa } => {
                self.device_memory.unmap(gpa);
                let _ = self.line.send(&ToPartition::Followed, &[]);
            }
            ToGuest::Ram { .. } => {}
        }
    }
}
