//! What is said to the device that passes a host device through (`passing-device`), whose host device is a piece of memory and some bells. Requests of four words
//! of 64 bits, each answered by a completion of one. Nobody distrusts anybody.

use anyhow::Context;
use vmbus::packet::{Outgoing, PacketType};
use vsc::Channel;

use crate::{
    SoftPlatform,
    steps::{Guest, LIMIT, small},
};

/// Bells of the device; interrupt `n` is raised by bell `n`.
pub const BELLS: usize = 4;
/// Bytes of its memory.
pub const BYTES: u64 = 64 << 10;

/// Registers in each page that the device traps. What is none of them reads as its place and the size of the access.
pub mod register {
    /// Keeps what is written, beyond the process.
    pub const KEEPS: u64 = 0;
    /// Ends the first process that is asked; the next says the how-manieth it is.
    pub const KILLS: u64 = 8;
    /// Is never answered.
    pub const STALLS: u64 = 16;
    /// First of those that are none.
    pub const NONE: u64 = 32;
}

/// What the guest wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Which process of the device's this is, counted from 1.
    Lives,
    /// Trap this.
    Trap {
        /// From here on.
        gpa: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Do not any more.
    Untrap {
        /// As before.
        gpa: u64,
    },
    /// Have a part of your memory seen.
    Region {
        /// There.
        gpa: u64,
        /// So much.
        bytes: u64,
        /// From here on.
        offset: u64,
    },
    /// Not any more.
    Unmap {
        /// As before.
        gpa: u64,
    },
    /// Make an interrupt.
    Interrupt {
        /// Number, and bell.
        id: u64,
        /// Vector.
        vector: u64,
        /// VP.
        vp: u64,
    },
    /// Make it no more.
    Delete {
        /// As before.
        id: u64,
    },
    /// Ring a bell.
    Ring {
        /// Which.
        id: u64,
    },
    /// How many regions have been lost.
    Lost,
}

impl Wish {
    /// On the wire.
    pub fn bytes(self) -> [u8; 32] {
        let words = match self {
            Self::Lives => [0; 4],
            Self::Trap { gpa, bytes } => [1, gpa, bytes, 0],
            Self::Untrap { gpa } => [2, gpa, 0, 0],
            Self::Region { gpa, bytes, offset } => [3, gpa, bytes, offset],
            Self::Unmap { gpa } => [4, gpa, 0, 0],
            Self::Interrupt { id, vector, vp } => [5, id, vector, vp],
            Self::Delete { id } => [6, id, 0, 0],
            Self::Ring { id } => [7, id, 0, 0],
            Self::Lost => [8, 0, 0, 0],
        };
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        bytes
    }

    /// From the wire.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(match [word(0)?, word(8)?, word(16)?, word(24)?] {
            [0, ..] => Self::Lives,
            [1, gpa, bytes, _] => Self::Trap { gpa, bytes },
            [2, gpa, ..] => Self::Untrap { gpa },
            [3, gpa, bytes, offset] => Self::Region { gpa, bytes, offset },
            [4, gpa, ..] => Self::Unmap { gpa },
            [5, id, vector, vp] => Self::Interrupt { id, vector, vp },
            [6, id, ..] => Self::Delete { id },
            [7, id, ..] => Self::Ring { id },
            [8, ..] => Self::Lost,
            _ => return None,
        })
    }
}

/// The guest's driver.
#[allow(missing_debug_implementations, reason = "a channel has none")]
pub struct Passer {
    channel: Channel<SoftPlatform>,
}

impl Passer {
    /// Opens the guest's device number `n`.
    pub fn open(guest: &mut Guest, n: u64) -> anyhow::Result<Self> {
        let offer = guest.offer(n)?;
        Ok(Self { channel: guest.client.open(&offer, &small())? })
    }

    /// Its channel, to be closed.
    pub fn into_channel(self) -> Channel<SoftPlatform> {
        self.channel
    }

    /// A wish, and what the device says to it: 1 if it was granted.
    pub fn wish(&mut self, wish: Wish) -> anyhow::Result<u64> {
        self.channel.send_waiting(&Outgoing::in_band(1, true), &[&wish.bytes()], LIMIT)?;
        let packet = self.channel.receive(LIMIT)?.with_context(|| format!("{wish:?}: no answer"))?;
        anyhow::ensure!(packet.header.packet_type == PacketType::COMPLETION, "{wish:?}");
        let bytes = packet.payload().first_chunk().context("a short answer")?;
        Ok(u64::from_le_bytes(*bytes))
    }

    /// A wish that is granted.
    pub fn has(&mut self, wish: Wish) -> anyhow::Result<()> {
        anyhow::ensure!(self.wish(wish)? == 1, "{wish:?} is refused");
        Ok(())
    }
}
