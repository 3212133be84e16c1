//! What a device implements.

use std::os::fd::RawFd;
use std::time::Instant;

use crate::chain::Chain;
use crate::queues::Queues;
use crate::request::Request;

/// Bits of virtio features that are the ring's; all are offered whatever the device is.
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VHOST_USER_F_PROTOCOL_FEATURES.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;

    /// All of them.
    pub const RING: u64 = INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES | VERSION_1;
}

/// A device: ends the requests of the queues that a virtio driver fills.
///
/// Everything runs on one thread. A method must not wait: what takes time is started in [`Face::request`] or [`Face::submit`] and finished
/// in [`Face::ready`].
///
/// A device has state in one place only, [`Queues::marks`]: the front end keeps the requests in flight and one byte of the device's for a
/// successor. Whatever else it needs the front end says anew ([`Face::negotiated`], the configuration space).
pub trait Face {
    /// The device's own features (those of the ring are [`feature::RING`]).
    fn features(&self) -> u64;

    /// Most queues.
    fn queues(&self) -> u16;

    /// Copies the configuration space from `offset` on; what there is not stays zero. `offset + into.len()` is 256 at most.
    fn config(&self, offset: usize, into: &mut [u8]);

    /// The driver writes into the configuration space. Refused: nothing has changed, and the log says this sentence.
    fn set_config(&mut self, offset: usize, bytes: &[u8], queues: &mut Queues) -> Result<(), String> {
        let _ = (offset, bytes, queues);
        Err("nothing in the configuration space of this device can be written".into())
    }

    /// Descriptors that the device keeps when the compartment closes.
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Descriptors to watch, a subset of [`Face::descriptors`]; see [`Face::ready`].
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// For whom the device is, before anything else: a name that a successor has as well and nobody else (the place of the socket).
    fn identify(&mut self, place: &str) {
        let _ = place;
    }

    /// What [`Face::fence`] waits for, for people: "the disk x.img", say.
    fn resource(&self) -> String {
        "its resource".into()
    }

    /// Makes the resource this process's alone, without waiting. True: it is, and nothing that a predecessor began is in flight any more.
    /// False: not yet; it is asked again soon. An error ends the process with this sentence.
    ///
    /// No front end is heard before: nobody may touch the resource or guest memory.
    fn fence(&mut self) -> Result<bool, String> {
        Ok(true)
    }

    /// A front end has connected; everything begins anew. [`Queues::marks`] come with the first queue that starts.
    fn connected(&mut self) {}

    /// The driver's features, those of the ring included. May come again, while no queue runs.
    fn negotiated(&mut self, features: u64) {
        let _ = features;
    }

    /// A queue starts. What a predecessor has left undone comes first.
    fn started(&mut self, queue: u16, queues: &mut Queues) {
        let _ = (queue, queues);
    }

    /// A queue is to stop as soon as all its requests have ended: whatever holds them back on purpose may not do so any longer, and what
    /// was taken ahead of its time goes back ([`Request::give_back`]).
    fn stopping(&mut self, queue: u16, queues: &mut Queues) {
        let _ = (queue, queues);
    }

    /// The front end has left, or was cut off. Requests still in flight have to end as ever ([`Request::complete`]; nobody sees it), and
    /// soon: the next front end waits for that. What was held back must not begin: the next front end asks for it again.
    fn disconnected(&mut self, queues: &mut Queues) {
        let _ = queues;
    }

    /// Most requests of one queue that the device takes before it has completed some. Bounds what a guest can make it hold in memory.
    fn depth(&self) -> u32 {
        crate::ring::MAX_ENTRIES.into()
    }

    /// What the device has of this queue waits, and more would only wait with it: it stays in the ring, unless the queue is to stop.
    fn holds_back(&self, queue: u16) -> bool {
        let _ = queue;
        false
    }

    /// Most requests of one queue that are taken in one turn, before what was completed becomes visible.
    fn batch(&self) -> usize {
        crate::runtime::BATCH
    }

    /// The device takes the requests of this queue itself, when it wants them ([`Queues::take`]): a NIC's receive buffers. It is told by
    /// [`Face::filled`] that there are some.
    fn takes_itself(&self, queue: u16) -> bool {
        let _ = queue;
        false
    }

    /// There are requests in a queue of which the device takes them itself. Said once after the queue has started, and once each time after
    /// [`Queues::take`] has found none.
    fn filled(&mut self, queue: u16, queues: &mut Queues) {
        let _ = (queue, queues);
    }

    /// A request. What `chain` names was checked for its form only: addresses are the guest's word. `request` is completed now or later,
    /// never dropped.
    fn request(&mut self, chain: &Chain, request: Request, queues: &mut Queues);

    /// Ends a request without trying it: it has killed too many processes. The guest should get an error as of a broken device. As little as
    /// possible should look at the chain.
    fn reject(&mut self, chain: &Chain, request: Request, queues: &mut Queues) {
        let _ = chain;
        request.complete(queues, 0);
    }

    /// The requests at hand have been delivered: start all I/O in one go.
    fn submit(&mut self, queues: &mut Queues) {
        let _ = queues;
    }

    /// The source number `source` of [`Face::sources`] became readable. Signalled once for each time it does (edge-triggered): take all
    /// there is.
    fn ready(&mut self, source: usize, queues: &mut Queues) {
        let _ = (source, queues);
    }

    /// Takes what has ended, without having been told by a source; true if anything had. Asked again and again while the loop looks for
    /// work before it sleeps, so it costs little if there is nothing.
    fn poll(&mut self, queues: &mut Queues) -> bool {
        let _ = queues;
        false
    }

    /// When the device wants [`Face::submit`] to be called though nothing has happened. To the millisecond.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Whether nothing is in flight that touches the resource or guest memory. A front end is let in only then.
    fn is_idle(&self) -> bool {
        true
    }
}
