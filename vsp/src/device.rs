//! What a device implements, and what it is given.

use std::os::fd::{OwnedFd, RawFd};
use std::time::Instant;

use ipc::message::{Offer, STATUS_REFUSED};
use ipc::shm::{GuestRam, SharedMemory};
use vmbus::packet::PacketHeader;

use crate::channels::{ChannelId, Channels};
use crate::control::Control;
use crate::request::Request;

/// A device: answers the packets of the channels that a guest opens to it.
///
/// Everything runs on one thread. A method must not wait: what takes time is started in
/// [`Device::packet`] or [`Device::submit`] and finished in [`Device::ready`].
pub trait Device {
    /// What the guest is offered. Called once, when attaching.
    fn offer(&self) -> Offer;

    /// Descriptors that the device keeps when the compartment closes.
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Descriptors to watch, a subset of [`Device::descriptors`]; see [`Device::ready`].
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Most requests of one channel that the device takes before it has completed some. Bounds what a guest
    /// can make it hold in memory.
    fn depth(&self) -> u32 {
        256
    }

    /// Most packets of one channel that are taken in one turn, before what was completed becomes visible. A device whose guest can have
    /// few requests under way wants fewer of them, or the two of them work by turns.
    fn batch(&self) -> usize {
        crate::runtime::BATCH
    }

    /// The core has welcomed the device. An error ends the process with this sentence.
    fn attached(&mut self, vm: Vm) -> Result<(), String> {
        let _ = vm;
        Ok(())
    }

    /// The guest opens a channel, or has opened it when a predecessor served; packets follow if it is not refused. The
    /// primary channel comes before its sub-channels.
    fn open(&mut self, channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        let _ = (channel, request);
        Ok(())
    }

    /// A packet. `packet` is a private copy, checked for its form, its content still the guest's word.
    /// `request` is completed now or later, never dropped.
    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels);

    /// The packets at hand have been delivered, and their being taken is published: start all I/O in one go.
    fn submit(&mut self, channels: &mut Channels) {
        let _ = channels;
    }

    /// The source number `source` of [`Device::sources`] became readable. Signalled once for each time it does
    /// (edge-triggered): take all there is.
    fn ready(&mut self, source: usize, channels: &mut Channels) {
        let _ = (source, channels);
    }

    /// Takes what has ended, without having been told by a source; true if anything had. Asked again and again while the
    /// loop looks for work before it sleeps, so it costs little if there is nothing: some loads, or the cheapest of system calls where
    /// nothing in memory tells.
    fn poll(&mut self, channels: &mut Channels) -> bool {
        let _ = channels;
        false
    }

    /// When the device wants [`Device::submit`] to be called though nothing has happened. To the millisecond.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Whether the requests of this device are kept in a ledger, so that a successor can end them. A device that can do
    /// without saves a few memory accesses a packet; its guest loses what is in flight when its process dies.
    fn ledger(&self) -> bool {
        true
    }

    /// How many loans ([`Channels::lend`]) a channel of this device may have out at a time, at most [`MAX_LOANS`]: their numbers go
    /// from 0 to one less. Asked once for each channel, before it is opened. 0: completions that the guest sends are requests like
    /// everything else. A device with loans needs a ledger: without one, a successor does not know what the guest still has.
    ///
    /// [`MAX_LOANS`]: ipc::ledger::MAX_LOANS
    fn loans(&self) -> u32 {
        0
    }

    /// On a channel that a predecessor has served, after [`Device::open`] and before [`Device::restore`]: the guest still has this
    /// loan. Once for each.
    fn lent(&mut self, channel: ChannelId, loan: u32) {
        let _ = (channel, loan);
    }

    /// The guest has given a loan back. That it has is published: the device may lend the same number again at once. `payload` is what
    /// the guest says to it, its first [`RETURN_PAYLOAD`](crate::RETURN_PAYLOAD) bytes.
    fn returned(&mut self, channel: ChannelId, loan: u32, payload: &[u8], channels: &mut Channels) {
        let _ = (channel, loan, payload, channels);
    }

    /// There is room in the ring again, after [`Channels::notify`], [`Channels::lend`] or [`Channels::has_room`] has found none.
    fn room(&mut self, channel: ChannelId, channels: &mut Channels) {
        let _ = (channel, channels);
    }

    /// A channel that a predecessor has served is this process's: the last step, after [`Device::open`], [`Device::lent`] and
    /// [`Device::restore`], and the first that can send and ask. What a predecessor has left undone comes to [`Device::packet`]
    /// after that, and after the answers to all [`Channels::share_gpadl`], which come when all channels have been taken over.
    fn resumed(&mut self, channel: ChannelId, channels: &mut Channels) {
        let _ = (channel, channels);
    }

    /// All channels that were open when the process began to serve have been taken over, if there were any: what has not come by
    /// now never will. Once after each [`Device::fence`] that has succeeded. A core that is too old to say so is given a second.
    fn adopted(&mut self, channels: &mut Channels) {
        let _ = channels;
    }

    /// The answer to [`Channels::share_gpadl`]: the pages of a GPADL, or why there are none. No packet of any channel comes
    /// between question and answer. Pages may be taken back at any time: then what the device has mapped is nobody's any more.
    fn gpadl_shared(
        &mut self,
        channel: ChannelId,
        gpadl: u32,
        pages: Result<SharedMemory, String>,
        channels: &mut Channels,
    ) {
        let _ = (channel, gpadl, pages, channels);
    }

    /// On taking over from a predecessor, before any channel is opened: the guest sees the first `bytes` bytes of this memory from
    /// the guest-physical address `gpa` on. Once for each [mapping](Channels::map_memory) that there is; there are none other.
    fn memory(&mut self, gpa: u64, memory: SharedMemory, bytes: u64) {
        let _ = (gpa, memory, bytes);
    }

    /// The answer to [`Channels::map_memory`]: the guest sees it, or why not, and then it sees there what it has seen before. Not
    /// called any more if the primary channel has been closed meanwhile, which ends all mappings.
    fn memory_mapped(&mut self, gpa: u64, result: Result<(), String>, channels: &mut Channels) {
        let _ = (gpa, result, channels);
    }

    /// What this device's processes have had the core [keep](Channels::keep). Once for each key, before [`Device::fence`]; again if the process is told to serve
    /// again. Nothing may be done with it before the device fences. The default closes the descriptors.
    fn kept(&mut self, key: u32, note: String, fds: Vec<OwnedFd>) {
        let _ = (key, note, fds);
    }

    /// As [`Device::memory`], of a [region](Channels::map_region): the guest sees `bytes` bytes of the file that was mapped, from its byte `offset` on.
    fn region(&mut self, gpa: u64, bytes: u64, offset: u64) {
        let _ = (gpa, bytes, offset);
    }

    /// The guest has looked at a [region](Channels::map_region) when the host's device did not answer. The mapping has ended, as if the
    /// device had taken it back; the guest finds nothing there.
    fn region_lost(&mut self, gpa: u64, channels: &mut Channels) {
        let _ = (gpa, channels);
    }

    /// As [`Device::memory`], of a [trap](Channels::trap).
    fn trap(&mut self, gpa: u64, bytes: u64) {
        let _ = (gpa, bytes);
    }

    /// The answer to [`Channels::trap`]: the guest's accesses come, or why not. Not called any more if the primary channel has been closed meanwhile, which ends
    /// all traps.
    fn trapped(&mut self, gpa: u64, result: Result<(), String>, channels: &mut Channels) {
        let _ = (gpa, result, channels);
    }

    /// A VP has met a [trap](Channels::trap) and waits for [`Channels::access_done`], now or later, but soon: a core ends a process that takes
    /// seconds. One at a time for each VP. Asked after [`Device::adopted`], and of a successor again if the process has died meanwhile: a second time must do no
    /// harm, and no ledger knows of it.
    fn access(&mut self, access: Access, channels: &mut Channels) {
        channels.access_done(access.id, u64::MAX);
    }

    /// The answer to [`Channels::interrupt`]: it is raised from now on, or why not, and then nothing is any more under this number. Not called any more if the
    /// primary channel has been closed meanwhile, which ends all interrupts.
    fn interrupt_ready(&mut self, id: u32, result: Result<(), String>, channels: &mut Channels) {
        let _ = (id, result, channels);
    }

    /// How many bytes of the guest pages that this GPA-direct packet names the device wants to see as [`Packet::fetched`]; 0 is none,
    /// [`MAX_FETCH`](ipc::message::MAX_FETCH) the most. For devices without guest RAM, and dear: a question to the core, which is
    /// waited for. The packet has been neither taken nor handed out yet.
    fn fetches(&self, header: &PacketHeader, packet: &[u8]) -> u32 {
        let _ = (header, packet);
        0
    }

    /// What [`Device::fence`] waits for, for people: "the disk x.img", say.
    fn resource(&self) -> String {
        "its resource".into()
    }

    /// Makes the resource this process's alone, without waiting. True: it is, and nothing that a predecessor began is in
    /// flight any more. False: not yet; it is asked again soon. An error ends the process with this sentence.
    ///
    /// Nobody may touch the resource or guest memory before. [`Device::open`] may follow in the same turn. `predecessor`: another process has served this device.
    fn fence(&mut self, predecessor: bool) -> Result<bool, String> {
        let _ = predecessor;
        Ok(true)
    }

    /// The process is to hand over: no packet follows, and there is little time for those that came. Whatever holds them
    /// back on purpose may not do so any longer. [`Device::release`] follows when they have ended.
    fn quiescing(&mut self) {}

    /// Gives the resource up for a successor. All channels have been forgotten, nothing is in flight. The process may be
    /// told to serve again, as if it were new.
    fn release(&mut self) {}

    /// Whether nothing is in flight that touches the resource or guest memory; asked before [`Device::release`]. Requests
    /// that have not been completed count by themselves.
    fn is_idle(&self) -> bool {
        true
    }

    /// Follows [`Device::open`] on a channel that a predecessor has served: what it last passed to
    /// [`Request::complete_with_state`] there. Perhaps it was another build: the format wants a version. An error says why
    /// it cannot be understood; the channel is then not served by this process. It is the successor's by then, and may be
    /// another's again: the state and the requests stay in the ledger as they are.
    fn restore(&mut self, channel: ChannelId, state: &[u8]) -> Result<(), String> {
        let _ = (channel, state);
        Err("there is a state in the ledger, of which this build knows nothing".into())
    }

    /// Ends a request without trying it: it has killed too many processes, or (`None`) its packet was damaged in the
    /// ledger. The guest should get an error as of a broken device. As little as possible should look at the packet.
    fn reject(&mut self, packet: Option<Packet<'_>>, request: Request, channels: &mut Channels) {
        let _ = packet;
        request.complete(channels, &[]);
    }

    /// An operator wants something; only while the device serves. What it means is the device's own affair. Answered now or later
    /// ([`Control::answer`]), but before [`Device::release`]: nobody hears it any more after that.
    fn control(&mut self, control: Control, channels: &mut Channels) {
        control.answer(channels, Err("this device can do nothing of the kind".into()));
    }

    /// Whether what closed channels have left behind has ended, besides their requests: the core is told that a channel is closed when it has. Asked
    /// again in each turn; [`Device::wake_at`] has them come.
    fn is_clean(&self) -> bool {
        true
    }

    /// The guest closed the channel: no packet follows. Requests still in flight are completed as ever (the
    /// guest does not see it); the sooner they are, the sooner the guest goes on.
    fn closing(&mut self, channel: ChannelId) {
        let _ = channel;
    }
}

/// The VM that a device has joined.
#[derive(Debug)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Number of its virtual processors.
    pub vps: u32,
    /// Tells its RAM apart from that of all other VMs of this host; 0 without RAM.
    pub memory: u64,
    /// Its RAM, for devices whose slot has it.
    pub ram: Option<GuestRam>,
}

/// A VP reads or writes where the device has a [trap](Channels::trap). It is the guest's word, but for its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Names it in [`Channels::access_done`].
    pub id: u64,
    /// Where; a multiple of `bytes`, in one of the device's traps when it was made.
    pub gpa: u64,
    /// 1, 2, 4 or 8.
    pub bytes: u8,
    /// What it writes, in the lowest `bytes` bytes; `None`: it reads.
    pub write: Option<u64>,
}

/// What is known of a channel when it opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// 0 for the primary channel.
    pub subchannel: u16,
    /// VP index that interrupts go to.
    pub target_vp: u32,
    /// What the guest said (at most 120 bytes).
    pub user_data: Vec<u8>,
}

/// A channel is not opened, with the status that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// An NTSTATUS, not 0.
    pub status: u32,
}

impl Default for Refused {
    fn default() -> Self {
        Refused { status: STATUS_REFUSED }
    }
}

/// A packet as the device sees it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// What kind it is, and where its parts lie in `bytes`.
    pub header: &'a PacketHeader,
    /// All of it, descriptor included; private memory.
    pub bytes: &'a [u8],
    /// Of the guest memory that it names, what [`Device::fetches`] asked for; private memory. Shorter, or empty, if the guest named less
    /// or no memory, if the core cannot fetch, and on a rerun if there was no room for it in the ledger: packet and bytes have
    /// [40 KiB](ipc::ledger::LONGEST_PACKET) together.
    pub fetched: &'a [u8],
}
