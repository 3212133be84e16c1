//! Guest memory that a device asks for, and what it lends.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use ipc::message::{MAX_FETCH, ToCore, ToVsp};
use ipc::shm::{Mapping, SharedMemory};
use ipc::socket::{Peer, SocketError};
use vmbus::packet::{Outgoing, PacketHeader};

use super::{FakeCore, GuestEnd};

impl FakeCore {
    /// The guest has made a GPADL: a device that asks for it gets it, and so does its successor.
    pub fn has_gpadl(&self, gpadl: u32, memory: SharedMemory) {
        self.gpadls.borrow_mut().push((gpadl, memory));
    }

    /// Whether a GPADL is there still: the device has not given it back, nor the guest torn it down.
    pub fn knows_gpadl(&self, gpadl: u32) -> bool {
        self.gpadls.borrow().iter().any(|(number, _)| *number == gpadl)
    }

    /// The guest tears a GPADL down.
    pub fn tear_down(&self, gpadl: u32) {
        self.gpadls.borrow_mut().retain(|(number, _)| *number != gpadl);
    }

    /// Answers what the device asks of GPADLs, as the core does; what else it says is kept for [`FakeCore::answer`], which does this as
    /// well. A process that has gone says nothing more.
    pub fn attend(&self) {
        loop {
            match self.peer.try_recv::<ToCore>() {
                Ok((message, fds)) => self.hear(message, fds),
                Err(SocketError::WouldBlock | SocketError::Closed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) fn hear(&self, message: ToCore, fds: Vec<OwnedFd>) {
        match message {
            ToCore::ShareGpadl { channel, gpadl } => {
                let gpadls = self.gpadls.borrow();
                let found = gpadls.iter().find(|(number, _)| *number == gpadl).map(|(_, memory)| memory);
                let result = found.map(SharedMemory::len).ok_or_else(|| "there is no such GPADL".to_owned());
                let fds: Vec<_> = found.into_iter().map(AsFd::as_fd).collect();
                self.peer.send(&ToVsp::GpadlShared { channel, gpadl, result }, &fds).expect("sent");
            }
            ToCore::ReturnGpadl { gpadl, .. } => self.tear_down(gpadl),
            ToCore::MapMemory { gpa, bytes } => self.map(gpa, bytes, fds),
            ToCore::UnmapMemory { gpa } => {
                self.unmap(gpa);
                self.unmap_region(gpa);
            }
            other => {
                let rest = self.pass(other, fds);
                self.heard.borrow_mut().extend(rest);
            }
        }
    }

    /// Answers the next message of the device, which has to be a [`ToCore::Fetch`], with these bytes, on a thread of its own since the
    /// device waits. What was asked, channel, offset and length, is the thread's result.
    pub fn answer_fetch(&self, bytes: Vec<u8>) -> JoinHandle<(u32, u32, u32)> {
        let peer =
            Peer::from_fd(self.peer.as_fd().try_clone_to_owned().expect("duplicated")).expect("a socket");
        std::thread::spawn(move || {
            let (message, _) = peer.recv::<ToCore>().expect("a question");
            let ToCore::Fetch { channel, offset, len } = message else { panic!("{message:?}") };
            let memory = SharedMemory::create("test-fetch", u64::from(MAX_FETCH)).expect("memory");
            Mapping::new(&memory, 0, memory.len()).expect("mapped").write(0, &bytes);
            let result = Ok(bytes.len() as u32);
            peer.send(&ToVsp::Fetched { channel, result }, &[memory.as_fd()]).expect("sent");
            (channel, offset, len)
        })
    }
}

impl GuestEnd {
    /// Like [`GuestEnd::poll`], but all of the packet, descriptor included.
    pub fn poll_packet(&mut self) -> Option<(PacketHeader, Vec<u8>)> {
        let mut scratch = Vec::new();
        let header = self.reader.next(&mut scratch).expect("a sound ring")?;
        if self.reader.publish() {
            self.kick.signal().expect("rung");
        }
        Some((header, scratch))
    }

    /// Gives a loan back. False: the ring is full.
    pub fn give_back(&mut self, loan: u32, payload: &[u8]) -> bool {
        self.send(&Outgoing::completion(u64::from(loan)), &[payload])
    }
}
