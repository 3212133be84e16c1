//! The control protocol between a VSP and the core: one JSON datagram a message.
//!
//! Messages are self-describing so that builds a release apart can talk: unknown fields are
//! ignored, fields that came later have defaults, and an unknown *kind* of message is an error for
//! the peer that sent it only. Descriptors travel beside a message (`SCM_RIGHTS`) in the order that
//! each variant documents.
//!
//! This module is data only; [`crate::socket`] carries it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The versions of this protocol that this build speaks.
///
/// Version 1, without ledgers and standbys, was in no release. Version 3 has [`ToVsp::Control`] and
/// [`ToVsp::Adopted`], version 4 [`ToCore::ShareGpadl`] and [`ToCore::Fetch`], version 5 [`ToCore::MapMemory`], version 6
/// [`ToVsp::ChannelPrepare`], version 7 [`ToCore::Keep`], [`ToCore::MapRegion`], [`ToCore::Trap`] and [`ToCore::Interrupt`].
/// From version 8 on channels may come [ahead](EARLY_VERSION).
pub const VERSIONS: Versions = Versions { min: 2, max: 8 };

/// The first version in which a process understands [`ToVsp::Control`] and waits for [`ToVsp::Adopted`].
pub const CONTROL_VERSION: u32 = 3;
/// The first version in which a core understands [`ToCore::ShareGpadl`], [`ToCore::ReturnGpadl`] and [`ToCore::Fetch`].
pub const GPADL_VERSION: u32 = 4;
/// The first version in which a core understands [`ToCore::MapMemory`] and [`ToCore::UnmapMemory`], and a process [`ToVsp::Memory`].
pub const MEMORY_VERSION: u32 = 5;
/// The first version in which a process understands [`ToVsp::ChannelPrepare`] and [`ToVsp::ChannelForget`].
pub const PREPARE_VERSION: u32 = 6;
/// The first version in which a core understands what devices of the host's need that are passed through ([`ToCore::Keep`], [`ToCore::MapRegion`],
/// [`ToCore::Trap`], [`ToCore::Interrupt`]), and a process what it hears of that. All of it is for devices whose slot says so
/// ([`crate::config::DeviceSlot::passthrough`]).
pub const PASSTHROUGH_VERSION: u32 = 7;
/// The first version in which a process keeps what follows [`ToVsp::Serve`] at once ([`ToVsp::ChannelOpen`], [`ToVsp::Adopted`]) until the resource is its own:
/// the core need not be asked, and answer, while the guest waits.
pub const EARLY_VERSION: u32 = 8;
/// Things under keys of their own that the core keeps for a device.
pub const MAX_KEPT: usize = 64;
/// Descriptors that the core keeps for a device under all keys together: an eventfd for each of [`MAX_INTERRUPTS`], what a group of devices needs, and
/// room for what is being replaced.
pub const MAX_KEPT_FDS: usize = 512;
/// Longest [note](ToCore::Keep) to something kept, in bytes.
pub const MAX_NOTE: usize = 1024;
/// Pieces of a host device that the guest may see at a time: six base address registers, each around a table in its midst, and some room.
pub const MAX_REGIONS: usize = 16;
/// Ranges that a device may have trapped at a time.
pub const MAX_TRAPS: usize = 16;
/// Interrupts that a device may have routed at a time.
pub const MAX_INTERRUPTS: usize = 128;
/// The lowest vector that an interrupt can have: those before are exceptions of the processor's, and an APIC does not accept them.
pub const MIN_VECTOR: u8 = 16;
/// Pieces of its own memory that a device may have mapped at a time. A PCI function has six base address registers, of which two make a 64-bit
/// one; a screen needs one.
pub const MAX_DEVICE_MAPPINGS: usize = 4;
/// GPADLs of one channel that may be shared with its device at a time. Linux' netvsc needs two.
pub const MAX_SHARED_GPADLS: usize = 8;
/// Largest GPADL that is shared with a device, in bytes. One range of a GPADL cannot have more than half of it
/// (its length on the wire has 16 bits).
pub const MAX_SHARED_GPADL: u64 = 64 << 20;
/// Most bytes that one [`ToCore::Fetch`] brings: twice the largest frame of a network.
pub const MAX_FETCH: u32 = 128 << 10;
/// Longest payload of a [`ToVsp::Control`] and longest answer to it, in bytes: in JSON once more (where a quote takes two) it still fits into
/// a message.
pub const MAX_CONTROL: usize = 16 << 10;
/// Most descriptors with a [`ToVsp::Control`].
pub const MAX_CONTROL_FDS: usize = 4;

/// Longest device-defined part of an offer or of an open request, in bytes (`MAX_USER_DEFINED_BYTES` of the
/// VMBus protocol).
pub const MAX_USER_DATA: usize = 120;

/// `OpenResult::status` of a channel that was opened.
pub const STATUS_OK: u32 = 0;
/// `OpenResult::status` of a channel that the device refuses (`STATUS_UNSUCCESSFUL` to the guest).
pub const STATUS_REFUSED: u32 = 0xC000_0001;
/// `OpenResult::status` of a channel whose ledger the process cannot read (another format, or damaged), or whose device state
/// it does not understand. Whoever is given the ledger next finds every request in it. Never shown to a guest: the core gives the channel to nobody else meanwhile, or back to the
/// process that had it.
pub const STATUS_LEDGER: u32 = 0xC000_0032;

/// Largest ledger that a device can ask for, in bytes. Ledgers are sparse: only what is used takes memory.
pub const MAX_LEDGER: u64 = 64 << 20;

/// Most sub-channels that a device can offer besides its primary channel: with it, one channel for each virtual processor of the
/// largest VM.
pub const MAX_SUBCHANNELS: u16 = 63;

/// An inclusive range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest version spoken.
    pub min: u32,
    /// Newest version spoken.
    pub max: u32,
}

impl Versions {
    /// The newest version that both sides speak, if there is one.
    pub fn common(self, other: Versions) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

/// From a VSP to the core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToCore {
    /// The first message, once. No descriptors.
    Hello {
        /// Versions of this protocol that the VSP speaks.
        versions: Versions,
        /// Name of the device slot that it serves ([`crate::config::DeviceSlot::name`]).
        device: String,
        /// What the guest is to be offered.
        offer: Offer,
        /// Bytes of ledger that each of its channels needs; 0 (none) to [`MAX_LEDGER`].
        #[serde(default)]
        ledger: u64,
        /// Version of the program, for people.
        #[serde(default)]
        build: String,
    },
    /// The first message of an operator's connection, instead of a hello; only users that the core trusts may send it. From here on
    /// the connection speaks [`crate::operator`]. There is no answer but [`ToVsp::Refused`] to those who are not wanted. No descriptors.
    Operator {
        /// Versions of this protocol that the operator speaks.
        versions: Versions,
    },
    /// The answer to [`ToVsp::Serve`]: the resource is this process's alone, and nothing that a predecessor began is in
    /// flight any more. No descriptors.
    Serving {},
    /// The answer to [`ToVsp::Quiesce`]: nothing of ours is in flight, the resource is free for another process, all channels are
    /// forgotten. What may still have to be done is in their ledgers. No descriptors.
    Quiesced {},
    /// The device has agreed with the guest on this many sub-channels besides the primary channel (at most
    /// [`Offer::max_subchannels`]): the core offers those that are not offered yet. It means nothing while the primary channel is not
    /// open, and what was agreed ends when that closes. No descriptors.
    OfferSubchannels {
        /// How many.
        count: u16,
    },
    /// The answer to [`ToVsp::Control`]. No descriptors.
    ControlDone {
        /// Of the request.
        id: u64,
        /// What the device says to it: at most [`MAX_CONTROL`] bytes that the core passes on unread; or why it was not done, a sentence.
        result: Result<String, String>,
    },
    /// The device wants the pages of a GPADL that the guest has made for this channel (or its primary channel): one range of whole
    /// pages, at most [`MAX_SHARED_GPADL`] bytes, at most [`MAX_SHARED_GPADLS`] a channel. Answered by [`ToVsp::GpadlShared`]. They stay
    /// shared, beyond the process too, until the guest tears the GPADL down, closes the primary channel or begins anew, or the
    /// device [returns](ToCore::ReturnGpadl) it. A successor asks again and gets the same memory. From version [`GPADL_VERSION`] on. No
    /// descriptors.
    ShareGpadl {
        /// Channel concerned.
        channel: u32,
        /// The guest's number of the GPADL.
        gpadl: u32,
    },
    /// The device is done with a GPADL; the guest may have torn it down already. It is not shared again. No answer, no
    /// descriptors.
    ReturnGpadl {
        /// Channel concerned.
        channel: u32,
        /// The guest's number of the GPADL.
        gpadl: u32,
    },
    /// The device wants bytes of the guest pages that a GPA-direct packet names. The packet has to lie in the channel's guest-to-host ring,
    /// not published as read; the core reads its page list there itself. Answered by [`ToVsp::Fetched`], at once. Only for devices whose
    /// slot says so ([`crate::config::DeviceSlot::fetch`]), from version [`GPADL_VERSION`] on. No descriptors.
    Fetch {
        /// Channel concerned.
        channel: u32,
        /// Where the packet begins in the ring's data, in bytes.
        offset: u32,
        /// Most bytes wanted, from the first that the packet names on; at most [`MAX_FETCH`].
        len: u32,
    },
    /// The device wants memory of its own to be seen by the guest, from this guest-physical address on: whole pages in a window for MMIO that
    /// the guest gives to VMBus devices, while the primary channel is open. Only for devices whose slot says so
    /// ([`crate::config::DeviceSlot::device_memory`]), at most [`MAX_DEVICE_MAPPINGS`] at a time, from version [`MEMORY_VERSION`] on.
    /// Answered by [`ToVsp::MemoryMapped`], in the order of the questions. What the device has at that address already is replaced.
    ///
    /// It stays, beyond the process too, until the guest closes the primary channel or begins anew, or the device
    /// [takes it back](ToCore::UnmapMemory). A successor is given it by [`ToVsp::Memory`]. Descriptors: a memfd sealed as
    /// [`crate::shm::SharedMemory`] has to be, of at least `bytes`, with pages of the usual size; its first `bytes` are mapped.
    MapMemory {
        /// Where the guest is to see it.
        gpa: u64,
        /// How much of it.
        bytes: u64,
    },
    /// The guest is not to see the memory any more that the device has mapped at this address. No answer, no descriptors.
    UnmapMemory {
        /// As in [`ToCore::MapMemory`].
        gpa: u64,
    },
    /// The core is to hold these descriptors beyond the process, for the next one ([`ToVsp::Kept`]), in the place of what it holds under this key. Without
    /// descriptors: it forgets the key. At most [`MAX_KEPT`] keys and [`MAX_KEPT_FDS`] descriptors a device; more is a breach. They end with the core, or
    /// when the device's slot is removed. From version [`PASSTHROUGH_VERSION`] on. No answer. Descriptors: at most
    /// [`crate::socket::MAX_FDS`], of any kind.
    Keep {
        /// Names them.
        key: u32,
        /// What they are, for the process that gets them; at most [`MAX_NOTE`] bytes that the core does not read.
        #[serde(default)]
        note: String,
    },
    /// The guest is to see a part of a host device from this guest-physical address on. As [`ToCore::MapMemory`] in everything but that the core
    /// maps a file as it is, which may stop answering at any moment, and at most [`MAX_REGIONS`] a device. Answered by [`ToVsp::MemoryMapped`], taken back by
    /// [`ToCore::UnmapMemory`]; a successor is told of it by [`ToVsp::Region`]. From version [`PASSTHROUGH_VERSION`] on. Descriptors: a
    /// file with `mmap`.
    MapRegion {
        /// Where the guest is to see it.
        gpa: u64,
        /// How much of it; whole pages.
        bytes: u64,
        /// Where it begins in the file, in bytes; whole pages.
        offset: u64,
    },
    /// The guest's accesses to these addresses are the device's to answer ([`ToVsp::Access`]): whole pages in a window for MMIO that the guest gives to
    /// VMBus devices, where nothing is mapped or trapped, while the primary channel is open. At most [`MAX_TRAPS`] at a time. Answered by
    /// [`ToVsp::Trapped`]. Ends as mappings do; a successor is told of it by [`ToVsp::TrapThere`]. The very same again is no error. From version
    /// [`PASSTHROUGH_VERSION`] on. No descriptors.
    Trap {
        /// From here on.
        gpa: u64,
        /// So many bytes.
        bytes: u64,
    },
    /// The guest's accesses are not trapped any more that were from this address on: it finds nothing there. No answer, no descriptors.
    Untrap {
        /// As in [`ToCore::Trap`].
        gpa: u64,
    },
    /// The answer to [`ToVsp::Access`]. No descriptors.
    AccessDone {
        /// Of the access.
        id: u64,
        /// What the guest has read; of a write it says nothing.
        #[serde(default)]
        value: u64,
    },
    /// From now on this eventfd raises an interrupt in the guest, without anybody in between, in the place of the one with this number. The guest may
    /// have its vector and processor changed by itself ([`ToVsp::InterruptReady`]). At most [`MAX_INTERRUPTS`] a device, while the primary channel is
    /// open. Ends as mappings do, and outlives the process as they do. From version [`PASSTHROUGH_VERSION`] on. Descriptors: the eventfd, which nothing else
    /// of the core's may be attached to.
    Interrupt {
        /// The device's number of it.
        id: u32,
        /// [`MIN_VECTOR`] or higher.
        vector: u8,
        /// Index of the VP.
        vp: u32,
    },
    /// This interrupt is no more. No answer, no descriptors.
    InterruptDelete {
        /// As in [`ToCore::Interrupt`].
        id: u32,
    },
    /// The answer to [`ToVsp::ChannelOpen`]. No descriptors.
    OpenResult {
        /// Channel of the request.
        channel: u32,
        /// [`STATUS_OK`], [`STATUS_LEDGER`], or the status that the guest sees.
        status: u32,
        /// Why not, for people.
        #[serde(default)]
        reason: Option<String>,
    },
    /// The answer to [`ToVsp::ChannelClose`]: no access of the VSP's to the ring or to guest memory
    /// is in flight for this channel any more. No descriptors.
    Closed {
        /// Channel of the request.
        channel: u32,
    },
}

/// From the core to a VSP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToVsp {
    /// The answer to [`ToCore::Hello`]. Descriptors: the guest RAM memfd if `ram` is there, else none.
    Welcome {
        /// Version of this protocol from here on.
        version: u32,
        /// Name of the VM, for logs.
        vm: String,
        /// Number of virtual processors.
        vps: u32,
        /// Where guest RAM lies in the memfd; absent for devices that need none.
        #[serde(default)]
        ram: Option<Vec<RamRegion>>,
        /// Another process serves the device, or has been cut off and not ended yet: this one stands by until it is told to
        /// [serve](ToVsp::Serve).
        #[serde(default)]
        standby: bool,
    },
    /// The device is this process's now: it makes the resource its own (waits until the last I/O of a dead predecessor has ended),
    /// touching neither the resource nor guest memory before, and answers [`ToCore::Serving`]. Channels follow after that; from version [`EARLY_VERSION`]
    /// on those that another process has served may follow at once, and are answered after [`ToCore::Serving`].
    /// Also sent to a process that has quiesced, if its successor could not take over.
    Serve {
        /// Whether another process has served this device before. If none has, whoever holds the resource is a stranger, and
        /// waiting for him is no use.
        predecessor: bool,
    },
    /// Hand over: take nothing more, end what is in flight, give up the resource, answer [`ToCore::Quiesced`]. Then wait for
    /// [`ToVsp::Serve`] or [`ToVsp::Retire`].
    Quiesce {},
    /// A successor serves: exit with code 0.
    Retire {},
    /// An operator wants something of the device, which only the device understands; answered by [`ToCore::ControlDone`], in any order,
    /// at once or when it is done. Sent to the process that serves, from version [`CONTROL_VERSION`] on. Descriptors: as many as the
    /// operator has sent, at most [`MAX_CONTROL_FDS`].
    Control {
        /// Names the request on this socket.
        id: u64,
        /// At most [`MAX_CONTROL`] bytes.
        payload: String,
    },
    /// The core does not want this VSP; the socket is closed after it.
    Refused {
        /// One sentence.
        reason: String,
    },
    /// A channel to serve: the guest opens it, or it has been open and a predecessor served it; the ledger tells (all zero: it is
    /// new). Descriptors: channel memfd, kick eventfd (guest to VSP), interrupt eventfd (VSP to guest), event-flags memfd
    /// (one page, the target VP's), and the ledger memfd if the device asked for one; or none at all, if the process has been
    /// given those of this channel [ahead of time](ToVsp::ChannelPrepare).
    ChannelOpen {
        /// Names the channel on this socket.
        channel: u32,
        /// 0 for the primary channel.
        #[serde(default)]
        subchannel: u16,
        /// How the channel memfd is divided.
        ring: RingLayout,
        /// VP index that interrupts go to.
        target_vp: u32,
        /// Event-flag number to set at SINT 2 before the interrupt eventfd is written.
        flag: u32,
        /// What the guest said when it opened the channel; at most [`MAX_USER_DATA`] bytes.
        #[serde(default)]
        user_data: Vec<u8>,
    },
    /// To a process that stands by: a channel that another one serves, and that this one may have to take over. It maps what it needs, and reads
    /// nothing of it. Said again, it replaces what was said before. From version [`PREPARE_VERSION`] on. Descriptors: as with
    /// [`ToVsp::ChannelOpen`]. No answer.
    ChannelPrepare {
        /// Names the channel on this socket.
        channel: u32,
        /// How the channel memfd is divided.
        ring: RingLayout,
    },
    /// A channel that was prepared is no more. No answer, no descriptors.
    ChannelForget {
        /// Channel concerned.
        channel: u32,
    },
    /// All channels that were open when the process began to serve have been given to it, if there were any. Sent once after each
    /// [`ToCore::Serving`], from version [`CONTROL_VERSION`] on, and from version [`EARLY_VERSION`] on perhaps before that as well, with the order
    /// to serve. Until it comes, the process takes no request from any channel: what a predecessor has left may lie in the ledger of a channel
    /// that is still to come. No answer, no descriptors.
    Adopted {},
    /// The answer to [`ToCore::ShareGpadl`], in the order of the questions. Descriptors: if it was shared, a memfd of exactly its pages, in
    /// their order.
    GpadlShared {
        /// Channel of the request.
        channel: u32,
        /// GPADL of the request.
        gpadl: u32,
        /// Its length in bytes, or why it is not shared, a sentence.
        result: Result<u64, String>,
    },
    /// The answer to [`ToCore::Fetch`]. Descriptors: with the first success of a process, a memfd of [`MAX_FETCH`] bytes; this answer's
    /// bytes and those of all later ones are put there, from its beginning on.
    Fetched {
        /// Channel of the request.
        channel: u32,
        /// How many bytes there are (no more than were wanted, nor than the packet names), or why none, a sentence.
        result: Result<u32, String>,
    },
    /// The answer to [`ToCore::MapMemory`]. No descriptors.
    MemoryMapped {
        /// Of the question.
        gpa: u64,
        /// Or why not, a sentence; then the guest sees there what it has seen before.
        result: Result<(), String>,
    },
    /// What a predecessor has mapped for the guest and the guest still sees. Once for each after [`ToCore::Serving`], before any channel;
    /// from version [`MEMORY_VERSION`] on. Descriptors: the memfd.
    Memory {
        /// Where the guest sees it.
        gpa: u64,
        /// How much of it, from its beginning on.
        bytes: u64,
    },
    /// What the core holds for this device ([`ToCore::Keep`]). Once for each key, right before [`ToVsp::Serve`]; to a process that serves again as
    /// well. From version [`PASSTHROUGH_VERSION`] on. Descriptors: those that were kept.
    Kept {
        /// Names them.
        key: u32,
        /// What they are.
        #[serde(default)]
        note: String,
    },
    /// As [`ToVsp::Memory`], of a [region](ToCore::MapRegion). No descriptors: the process has the file, or gets on without.
    Region {
        /// Where the guest sees it.
        gpa: u64,
        /// How much of it.
        bytes: u64,
        /// Where it begins in the file.
        offset: u64,
    },
    /// The guest has met a region that did not answer. It is as if the device had [taken it back](ToCore::UnmapMemory); so may be others that
    /// did answer, each with a message of its own. No answer, no descriptors.
    RegionLost {
        /// Where the guest saw it.
        gpa: u64,
    },
    /// The answer to [`ToCore::Trap`]. No descriptors.
    Trapped {
        /// Of the question.
        gpa: u64,
        /// Or why not, a sentence.
        result: Result<(), String>,
    },
    /// As [`ToVsp::Memory`], of a [trap](ToCore::Trap). No descriptors.
    TrapThere {
        /// From here on.
        gpa: u64,
        /// So many bytes.
        bytes: u64,
    },
    /// A VP has met a [trap](ToCore::Trap), and waits for [`ToCore::AccessDone`]. One at a time for each VP. If the process dies or hands over without an
    /// answer, the next one is asked, after [`ToVsp::Adopted`]: it may be the second time, and the device makes that harmless. No
    /// descriptors.
    Access {
        /// Names it; never used again.
        id: u64,
        /// Where; a multiple of `bytes`.
        gpa: u64,
        /// 1, 2, 4 or 8.
        bytes: u8,
        /// What the guest writes; `None`: it reads.
        #[serde(default)]
        write: Option<u64>,
    },
    /// The answer to [`ToCore::Interrupt`]. If it is there, the guest can move it to another vector and VP by a hypercall
    /// (`HVCALL_RETARGET_INTERRUPT`) that names the device by its instance GUID, and the interrupt by the data of an MSI, which is its number. No
    /// descriptors.
    InterruptReady {
        /// Of the question.
        id: u32,
        /// Or why not, a sentence; then the one with this number before is no more, if there was one.
        result: Result<(), String>,
    },
    /// The guest closed the channel (or was reset); answered by [`ToCore::Closed`].
    ChannelClose {
        /// Channel to close.
        channel: u32,
    },
    /// Interrupts of the channel go to another VP. Descriptors: interrupt eventfd, event-flags memfd.
    ///
    /// The device must interrupt the new VP once, unconditionally, after it has switched: what it signalled to the old
    /// one before it heard of the change may never be seen (the guest may have taken that VP down).
    Retarget {
        /// Channel concerned.
        channel: u32,
        /// New VP index.
        target_vp: u32,
    },
}

/// What a device offers to the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Interface type: the GUID that the guest's driver binds to.
    pub class: String,
    /// MMIO space that the device wants, in MiB.
    #[serde(default)]
    pub mmio_megabytes: u16,
    /// Channel flags of the offer message.
    #[serde(default)]
    pub flags: OfferFlags,
    /// Device-defined bytes of the offer message; at most [`MAX_USER_DATA`].
    #[serde(default)]
    pub user_defined: Vec<u8>,
    /// Sub-channels that the device is ready to serve besides the primary channel; at most [`MAX_SUBCHANNELS`].
    #[serde(default)]
    pub max_subchannels: u16,
}

/// Flags of an offer, each off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OfferFlags {
    /// `VMBUS_CHANNEL_ENUMERATE_DEVICE_INTERFACE`.
    pub enumerate_device_interface: bool,
    /// `VMBUS_CHANNEL_NAMED_PIPE_MODE`.
    pub named_pipe: bool,
    /// `VMBUS_CHANNEL_TLNPI_PROVIDER_OFFER` (Hyper-V sockets).
    pub tlnpi_provider: bool,
}

/// A stretch of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRegion {
    /// Guest-physical address of the first byte; a multiple of 4096.
    pub gpa: u64,
    /// Length in bytes; a multiple of 4096.
    pub len: u64,
    /// Where it begins in the RAM memfd, in bytes; a multiple of 4096.
    pub offset: u64,
}

/// How a channel memfd is divided in two rings. The first page of each ring is its control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingLayout {
    /// Pages of 4 KiB in all.
    pub pages: u32,
    /// Pages of the guest-to-host ring, which comes first; the rest is the host-to-guest ring.
    pub to_host_pages: u32,
}

impl RingLayout {
    /// Whether both rings have a control page and at least one data page.
    pub fn is_valid(self) -> bool {
        self.to_host_pages >= 2 && self.pages.checked_sub(self.to_host_pages).is_some_and(|rest| rest >= 2)
    }

    /// Pages of the host-to-guest ring (0 if the layout is not valid).
    pub fn to_guest_pages(self) -> u32 {
        self.pages.saturating_sub(self.to_host_pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_meet_at_the_newest_common_one() {
        let range = |min, max| Versions { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 5)), None);
        assert_eq!(range(4, 2).common(range(1, 9)), None, "an empty range meets nothing");
    }

    #[test]
    fn a_newer_peer_may_send_fields_that_we_do_not_know() {
        let text = r#"{"ChannelClose":{"channel":7,"ledger":true}}"#;
        assert_eq!(serde_json::from_str::<ToVsp>(text).unwrap(), ToVsp::ChannelClose { channel: 7 });
        let text =
            r#"{"Hello":{"versions":{"min":1,"max":9},"device":"d","offer":{"class":"c","colour":1}}}"#;
        assert!(serde_json::from_str::<ToCore>(text).is_ok());
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        assert!(serde_json::from_str::<ToCore>(r#"{"Format":{"disk":"c:"}}"#).is_err());
    }

    #[test]
    fn ring_layouts_need_two_pages_each() {
        let layout = |pages, to_host_pages| RingLayout { pages, to_host_pages };
        assert!(layout(4, 2).is_valid());
        for (pages, to_host) in [(0, 0), (4, 1), (4, 3), (4, 4), (2, u32::MAX)] {
            assert!(!layout(pages, to_host).is_valid(), "{pages} {to_host}");
        }
    }
}
