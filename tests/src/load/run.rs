//! A disk under load through several queues, from the first request to the last check.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use vsc::storage::{Storage, StorageOptions};
use vsc::{Client, OpenOptions};

use super::block::BLOCK;
use super::pulse::Pulse;
use super::queue::{Queue, Tally};
use super::shadow::Shadow;
use crate::disk::Disk;
use crate::guest::SoftPlatform;

/// How heavy a load is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Channels of the controller, each with a thread that works on it.
    pub queues: usize,
    /// Requests under way in each.
    pub depth: usize,
    /// Longest request, in blocks; up to [`Shape::LONGEST`].
    pub longest: u32,
}

impl Shape {
    /// 64 KiB.
    pub const LONGEST: u32 = 128;
    /// The campaigns': four queues, each 32 deep.
    pub const FULL: Self = Self { queues: 4, depth: 32, longest: Self::LONGEST };
}

/// Pages of the rings to the host, by queue: large ones as Linux makes them, and such that are run around all the
/// time and full now and then.
const TO_HOST_PAGES: [u32; 4] = [32, 3, 9, 5];
/// Pages of the rings to the guest.
const TO_GUEST_PAGES: [u32; 4] = [32, 2, 3, 2];

/// Queues at work.
pub struct Load {
    /// When what died came back.
    pub pulse: Arc<Pulse>,
    shadow: Arc<Shadow>,
    threads: Vec<JoinHandle<(Tally, Option<Storage<SoftPlatform>>)>>,
}

impl Load {
    /// Opens a controller, and starts a load on its first unit.
    pub fn start(
        client: &mut Client<SoftPlatform>,
        offer: &vmbus::message::Offer,
        shape: Shape,
        blocks: u64,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let options = |queue: usize| StorageOptions {
            open: OpenOptions {
                to_host_pages: TO_HOST_PAGES[queue % 4],
                to_guest_pages: TO_GUEST_PAGES[queue % 4],
                ..OpenOptions::default()
            },
            depth: shape.depth,
            ..StorageOptions::default()
        };
        let mut primary = Storage::open(client, offer, &options(0)).context("opening the controller")?;
        let mut storages = Vec::new();
        if shape.queues > 1 {
            let more = u16::try_from(shape.queues - 1)?;
            storages = primary
                .open_sub_channels_as(client, more, |index| options(usize::from(index)))
                .context("opening sub-channels")?;
        }
        storages.insert(0, primary);
        let (pulse, shadow) = (Arc::new(Pulse::default()), Arc::new(Shadow::new(blocks)));
        let start = |(n, storage): (u64, Storage<SoftPlatform>)| {
            let queue = Queue::new(storage, shape, &shadow, &pulse, seed ^ (n + 1) << 40)?;
            let thread = std::thread::Builder::new().name(format!("queue {n}"));
            Ok(thread.spawn(move || queue.run())?)
        };
        let threads = (0..).zip(storages).map(start).collect::<anyhow::Result<_>>()?;
        Ok(Self { pulse, shadow, threads })
    }

    /// Ends the load: everything under way is waited for, every block looked at behind the device's back. Returns the
    /// idle channels too.
    pub fn finish(self, disk: &Disk) -> anyhow::Result<(Tally, Vec<Storage<SoftPlatform>>)> {
        self.pulse.stop();
        let (mut tally, mut storages) = (Tally::default(), Vec::new());
        for thread in self.threads {
            let (part, storage) = thread.join().map_err(|_| anyhow::anyhow!("a queue panicked"))?;
            tally.add(part);
            storages.extend(storage);
        }
        if tally.lost == 0 {
            let wrong = self.shadow.check(&disk.file).context("reading the disk")?;
            tally.corrupt += wrong.len() as u64;
            wrong.into_iter().for_each(|what| tally.complain(what));
        }
        Ok((tally, storages))
    }

    /// Blocks of a disk of `bytes`.
    pub fn blocks(bytes: u64) -> u64 {
        bytes / BLOCK as u64
    }
}
