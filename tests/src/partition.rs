//! The core's side of the software partition.

use std::{
    cell::RefCell,
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
};

use core_vmm::{
    memory::donation::Follow,
    partition::{Partition, Target},
};
use ipc::socket::{Peer, SocketError};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::line::{ToGuest, ToPartition};

/// A partition whose guest is the process at the other end of a socket.
#[derive(Debug)]
pub struct SoftPartition {
    guest: Peer,
    wires: Vec<EventFd>,
    /// What the guest asked while we waited for it to follow a change of its address space.
    early: RefCell<VecDeque<ToPartition>>,
    watched: RefCell<Vec<bool>>,
}

impl SoftPartition {
    /// A partition of `vps` VPs.
    pub fn new(guest: Peer, vps: u32) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wires =
            (0..vps).map(|_| EventFd::from_value_and_flags(0, flags)).collect::<Result<Vec<_>, _>>()?;
        let watched = RefCell::new(vec![false; vps as usize]);
        Ok(Self { guest, wires, early: RefCell::default(), watched })
    }

    /// The socket, to poll.
    pub fn guest(&self) -> &Peer {
        &self.guest
    }

    /// The next thing that the guest asks; `None` if there is nothing now.
    pub fn next(&self) -> Result<Option<ToPartition>, SocketError> {
        if let Some(early) = self.early.borrow_mut().pop_front() {
            return Ok(Some(early));
        }
        match self.guest.recv() {
            Ok((message, _)) => Ok(Some(message)),
            Err(SocketError::WouldBlock) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the server wants to hear of ended messages of `vp`.
    pub fn is_watched(&self, vp: u32) -> bool {
        self.watched.borrow().get(vp as usize).copied().unwrap_or(false)
    }

    /// Says something to the guest. The guest always listens, so a full socket means waiting a moment; if it has
    /// gone, the main loop sees that.
    pub fn say(&self, message: &ToGuest, fds: &[BorrowedFd<'_>]) {
        while let Err(SocketError::WouldBlock) = self.guest.send(message, fds) {
            self.wait(PollFlags::POLLOUT);
        }
    }

    fn wait(&self, flags: PollFlags) {
        let _ = poll(&mut [PollFd::new(self.guest.as_fd(), flags)], PollTimeout::NONE);
    }
}

impl Partition for SoftPartition {
    fn bind_doorbell(&self, connection: u32, kick: BorrowedFd<'_>) -> std::io::Result<()> {
        self.say(&ToGuest::Doorbell { connection }, &[kick]);
        Ok(())
    }

    fn unbind_doorbell(&self, connection: u32) {
        self.say(&ToGuest::NoDoorbell { connection }, &[]);
    }

    fn interrupt(&self, vp: u32) -> BorrowedFd<'_> {
        self.wires[vp as usize].as_fd()
    }

    fn message_interrupt(&self, vp: u32) {
        let _ = self.wires[vp as usize].write(1);
    }

    fn map_device_memory(
        &self,
        gpa: u64,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
    ) -> std::io::Result<()> {
        self.say(&ToGuest::DeviceMemory { gpa, offset, bytes }, &[file]);
        self.wait_until_followed();
        Ok(())
    }

    fn unmap_device_memory(&self, gpa: u64) -> std::io::Result<()> {
        self.say(&ToGuest::NoDeviceMemory { gpa }, &[]);
        self.wait_until_followed();
        Ok(())
    }

    fn access_done(&self, vp: u32, value: u64) {
        self.say(&ToGuest::Value { vp, value }, &[]);
    }

    fn route_interrupt(&self, route: u32, to: Target, bell: BorrowedFd<'_>) -> std::io::Result<()> {
        self.say(&ToGuest::Route { route, vp: to.vp, vector: to.vector }, &[bell]);
        Ok(())
    }

    fn move_interrupt(&self, route: u32, to: Target) -> std::io::Result<()> {
        self.say(&ToGuest::Reroute { route, vp: to.vp, vector: to.vector }, &[]);
        Ok(())
    }

    fn end_interrupt(&self, route: u32, _: BorrowedFd<'_>) {
        self.say(&ToGuest::NoRoute { route }, &[]);
    }

    fn watch_end_of_message(&self, vp: u32, on: bool) {
        self.watched.borrow_mut()[vp as usize] = on;
    }
}

impl Follow for SoftPartition {
    fn moved(&self, gpa: u64, pages: u64, backing: Option<(BorrowedFd<'_>, u64)>) {
        match backing {
            Some((fd, offset)) => self.say(&ToGuest::Moved { gpa, pages, offset }, &[fd]),
            None => self.say(&ToGuest::Moved { gpa, pages, offset: 0 }, &[]),
        }
        self.wait_until_followed();
    }
}

impl SoftPartition {
    fn wait_until_followed(&self) {
        loop {
            match self.guest.recv::<ToPartition>() {
                Ok((ToPartition::Followed, _)) => return,
                Ok((other, _)) => self.early.borrow_mut().push_back(other),
                Err(SocketError::WouldBlock) => self.wait(PollFlags::POLLIN),
                // It has gone and follows nothing any more.
                Err(_) => return,
            }
        }
    }
}
