//! The line between the software partition's two processes: what exits and interrupts are to KVM.
//!
//! JSON datagrams, as on control sockets. Trusted on both sides: it stands for the processor.

use ipc::message::RamRegion;
use serde::{Deserialize, Serialize};

/// Guest to partition.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToPartition {
    /// `HvPostMessage`; answered by [`ToGuest::Status`].
    PostMessage {
        /// Connection id.
        connection: u32,
        /// Payload.
        payload: Vec<u8>,
    },
    /// SynIC registers of a VP; answered by [`ToGuest::Status`].
    Synic {
        /// VP index.
        vp: u32,
        /// `SCONTROL`.
        control: u64,
        /// `SIEFP`.
        event_page: u64,
        /// `SIMP`.
        message_page: u64,
    },
    /// The guest wrote the end-of-message register.
    EndOfMessage {
        /// VP index.
        vp: u32,
    },
    /// A change of the address space has been followed; the answer to [`ToGuest::Moved`], [`ToGuest::DeviceMemory`] and
    /// [`ToGuest::NoDeviceMemory`].
    Followed,
    /// A VP reads or writes where it has no memory; answered by [`ToGuest::Value`]. One at a time for each VP.
    Access {
        /// VP index.
        vp: u32,
        /// Where.
        gpa: u64,
        /// 1, 2, 4 or 8.
        bytes: u8,
        /// What it writes.
        write: Option<u64>,
    },
    /// A VP has met a region that does not answer; answered by [`ToGuest::Status`], not 0 if there is none.
    Fault {
        /// Where, if it is known.
        gpa: Option<u64>,
    },
    /// A hypercall with its input in memory; answered by [`ToGuest::Status`].
    Hypercall {
        /// Control word.
        control: u64,
        /// Where its input lies.
        input: u64,
    },
    /// The guest resets; answered by [`ToGuest::Status`] once everything is closed.
    Reset,
}

/// Partition to guest.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToGuest {
    /// The first message. Descriptor: RAM.
    Ram {
        /// Where it lies.
        regions: Vec<RamRegion>,
        /// VPs.
        vps: u32,
    },
    /// Interrupt wire of a VP. Descriptor: eventfd.
    Wire {
        /// VP index.
        vp: u32,
    },
    /// All devices have attached; the guest may start.
    Start,
    /// Answer to a question.
    Status {
        /// Hypercall status.
        status: u16,
    },
    /// A connection rings an eventfd from now on. Descriptor: eventfd.
    Doorbell {
        /// Connection id.
        connection: u32,
    },
    /// A connection rings nothing any more.
    NoDoorbell {
        /// Connection id.
        connection: u32,
    },
    /// Pages changed place; answered by [`ToPartition::Followed`]. Descriptor: the new backing; none means RAM.
    Moved {
        /// First page.
        gpa: u64,
        /// Number of pages.
        pages: u64,
        /// Byte offset in the backing.
        offset: u64,
    },
    /// Memory of a device's own is seen from now on; answered by [`ToPartition::Followed`]. Descriptor: the memfd.
    DeviceMemory {
        /// From here on.
        gpa: u64,
        /// Where it begins in the memfd.
        offset: u64,
        /// Length.
        bytes: u64,
    },
    /// The answer to an access.
    Value {
        /// Whose.
        vp: u32,
        /// What was read.
        value: u64,
    },
    /// An eventfd raises an interrupt from now on. Descriptor: the eventfd.
    Route {
        /// Names it.
        route: u32,
        /// VP index.
        vp: u32,
        /// Vector.
        vector: u8,
    },
    /// The interrupt goes elsewhere.
    Reroute {
        /// Names it.
        route: u32,
        /// VP index.
        vp: u32,
        /// Vector.
        vector: u8,
    },
    /// There is no such interrupt any more.
    NoRoute {
        /// Names it.
        route: u32,
    },
    /// It is not seen any more; answered by [`ToPartition::Followed`].
    NoDeviceMemory {
        /// As before.
        gpa: u64,
    },
}
