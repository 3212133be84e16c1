//! A partition for unit tests that only remembers what it was asked, and the guest's side of a message slot.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use ipc::event::Doorbell;
use vmbus::{
    message::HostMessage,
    synic::{MESSAGE_FLAG_PENDING, MESSAGE_FLAGS_OFFSET, MESSAGE_SIZE, parse_message},
};

use crate::{
    layout::PAGE,
    memory::{Ram, donation::Follow},
    partition::{Partition, SynicRegisters, Target, VMBUS_SINT},
};

/// Remembers.
#[derive(Debug)]
pub(crate) struct Mock {
    pub wires: Vec<Doorbell>,
    pub bells: RefCell<BTreeMap<u32, OwnedFd>>,
    /// Message interrupts of each VP.
    pub interrupts: RefCell<Vec<u32>>,
    pub watched: RefCell<Vec<bool>>,
    /// Device memory that the guest sees: where, how much, and the file.
    pub mapped: RefCell<BTreeMap<u64, (u64, OwnedFd)>>,
    /// Accesses that were answered later: whose, and what with.
    pub accesses: RefCell<Vec<(u32, u64)>>,
    /// Interrupts of devices, by route.
    pub routes: RefCell<BTreeMap<u32, (Target, OwnedFd)>>,
    /// How many of the next attempts to map device memory fail,
    pub failing_maps: Cell<u32>,
    /// and whether taking it back does.
    pub fails_to_unmap: Cell<bool>,
    /// Whether doorbells can be bound.
    pub has_bells: bool,
}

impl Mock {
    pub fn new(vps: usize) -> Self {
        Self {
            wires: (0..vps).map(|_| Doorbell::new().unwrap()).collect(),
            bells: RefCell::default(),
            interrupts: RefCell::new(vec![0; vps]),
            watched: RefCell::new(vec![false; vps]),
            mapped: RefCell::default(),
            accesses: RefCell::default(),
            routes: RefCell::default(),
            failing_maps: Cell::new(0),
            fails_to_unmap: Cell::new(false),
            has_bells: true,
        }
    }
}

impl Follow for Mock {
    fn moved(&self, _: u64, _: u64, _: Option<(BorrowedFd<'_>, u64)>) {}
}

impl Partition for Mock {
    fn bind_doorbell(&self, connection: u32, kick: BorrowedFd<'_>) -> std::io::Result<()> {
        if !self.has_bells {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let before = self.bells.borrow_mut().insert(connection, kick.try_clone_to_owned()?);
        assert!(before.is_none(), "connection {connection:#x} is bound twice");
        Ok(())
    }

    fn unbind_doorbell(&self, connection: u32) {
        self.bells.borrow_mut().remove(&connection);
    }

    fn interrupt(&self, vp: u32) -> BorrowedFd<'_> {
        self.wires[vp as usize].as_fd()
    }

    fn message_interrupt(&self, vp: u32) {
        self.interrupts.borrow_mut()[vp as usize] += 1;
    }

    fn access_done(&self, vp: u32, value: u64) {
        self.accesses.borrow_mut().push((vp, value));
    }

    fn route_interrupt(&self, route: u32, to: Target, bell: BorrowedFd<'_>) -> std::io::Result<()> {
        let before = self.routes.borrow_mut().insert(route, (to, bell.try_clone_to_owned()?));
        assert!(before.is_none(), "route {route} is taken");
        Ok(())
    }

    fn move_interrupt(&self, route: u32, to: Target) -> std::io::Result<()> {
        self.routes.borrow_mut().get_mut(&route).expect("a route").0 = to;
        Ok(())
    }

    fn end_interrupt(&self, route: u32, _: BorrowedFd<'_>) {
        assert!(self.routes.borrow_mut().remove(&route).is_some(), "route {route} is free");
    }

    fn map_device_memory(&self, gpa: u64, memfd: BorrowedFd<'_>, _: u64, bytes: u64) -> std::io::Result<()> {
        if let Some(left) = self.failing_maps.get().checked_sub(1) {
            self.failing_maps.set(left);
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let before = self.mapped.borrow_mut().insert(gpa, (bytes, memfd.try_clone_to_owned()?));
        assert!(before.is_none(), "{gpa:#x} is mapped twice");
        Ok(())
    }

    fn unmap_device_memory(&self, gpa: u64) -> std::io::Result<()> {
        if self.fails_to_unmap.get() {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        assert!(self.mapped.borrow_mut().remove(&gpa).is_some(), "nothing is mapped at {gpa:#x}");
        Ok(())
    }

    fn watch_end_of_message(&self, vp: u32, on: bool) {
        self.watched.borrow_mut()[vp as usize] = on;
    }
}

/// Where the tests' guests have the message page of `vp`; the event-flag page is the next one.
pub(crate) fn message_page(vp: u32) -> u64 {
    0x10_0000 + u64::from(vp) * 2 * PAGE
}

/// A SynIC that is switched on, with these pages.
pub(crate) fn registers(vp: u32) -> SynicRegisters {
    let page = message_page(vp);
    SynicRegisters { control: 1, event_page: (page + PAGE) | 1, message_page: page | 1 }
}

/// Where the message slot of `vp` is.
pub(crate) fn slot(vp: u32) -> u64 {
    message_page(vp) + u64::from(VMBUS_SINT) * MESSAGE_SIZE as u64
}

/// Takes the message in the slot as a guest does. The flag says whether the host is to be told.
pub(crate) fn take_slot(ram: &Ram, vp: u32) -> Option<(Vec<u8>, bool)> {
    let at = slot(vp);
    let mut bytes = [0; MESSAGE_SIZE];
    if ram.load_u32(at).unwrap() == 0 {
        return None;
    }
    ram.read(at, &mut bytes).unwrap();
    let payload = parse_message(&bytes).unwrap()?.1.to_vec();
    ram.store_u32(at, 0).unwrap();
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    let mut flags = [0];
    ram.read(at + MESSAGE_FLAGS_OFFSET as u64, &mut flags).unwrap();
    Some((payload, flags[0] & MESSAGE_FLAG_PENDING != 0))
}

/// The same, understood.
pub(crate) fn take_message(ram: &Ram, vp: u32) -> Option<(HostMessage, bool)> {
    take_slot(ram, vp).map(|(bytes, pending)| (HostMessage::parse(&bytes).unwrap(), pending))
}
