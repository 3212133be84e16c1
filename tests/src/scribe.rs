//! What is said to the test device (`test-device`), and what it says. Three words of 64 bits each; nobody distrusts anybody.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vmbus::packet::{Outgoing, PacketType};
use vsc::Channel;

use crate::{
    SoftPlatform,
    steps::{Guest, LIMIT, small},
};

/// Guest to device. Each is answered by a [`Word::Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Do nothing.
    Count,
    /// Have the first bytes of your memory mapped.
    Map {
        /// From here on.
        gpa: u64,
        /// How many.
        bytes: u64,
    },
    /// Have it mapped no more.
    Unmap {
        /// As before.
        gpa: u64,
    },
    /// Say so many things besides.
    Notify {
        /// How many.
        count: u64,
    },
    /// Keep this by yourself.
    Save {
        /// More than the last time.
        value: u64,
    },
}

/// Device to guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// An order is carried out.
    Done {
        /// How many are, over all processes of the device.
        number: u64,
        /// What the core has said to a mapping, or what is kept.
        value: u64,
    },
    /// Something besides.
    Notice {
        /// Counted from 1 for each [`Order::Notify`].
        number: u64,
    },
}

impl Order {
    /// On the wire.
    pub fn bytes(self) -> [u8; 24] {
        words(match self {
            Self::Count => [0, 0, 0],
            Self::Map { gpa, bytes } => [1, gpa, bytes],
            Self::Unmap { gpa } => [2, gpa, 0],
            Self::Notify { count } => [3, count, 0],
            Self::Save { value } => [4, value, 0],
        })
    }

    /// From the wire.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(match parse(bytes)? {
            [0, _, _] => Self::Count,
            [1, gpa, bytes] => Self::Map { gpa, bytes },
            [2, gpa, _] => Self::Unmap { gpa },
            [3, count, _] => Self::Notify { count },
            [4, value, _] => Self::Save { value },
            _ => return None,
        })
    }
}

impl Word {
    /// On the wire.
    pub fn bytes(self) -> [u8; 24] {
        words(match self {
            Self::Done { number, value } => [0, number, value],
            Self::Notice { number } => [1, number, 0],
        })
    }

    /// From the wire.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(match parse(bytes)? {
            [0, number, value] => Self::Done { number, value },
            [1, number, _] => Self::Notice { number },
            _ => return None,
        })
    }
}

fn words(words: [u64; 3]) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
    bytes
}

fn parse(bytes: &[u8]) -> Option<[u64; 3]> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some([word(0)?, word(8)?, word(16)?])
}

/// The guest's driver.
#[allow(missing_debug_implementations, reason = "a channel has none")]
pub struct Scribe {
    channel: Channel<SoftPlatform>,
    /// Orders that were answered.
    answered: u64,
    /// Notices that have come.
    pub notices: Vec<u64>,
}

impl Scribe {
    /// Opens the guest's device number `n`.
    pub fn open(guest: &mut Guest, n: u64) -> anyhow::Result<Self> {
        let offer = guest.offer(n)?;
        let channel = guest.client.open(&offer, &small())?;
        Ok(Self { channel, answered: 0, notices: Vec::new() })
    }

    /// Its channel, to be closed.
    pub fn into_channel(self) -> Channel<SoftPlatform> {
        self.channel
    }

    /// Sends an order without waiting. `completion`: an answer of the usual kind is wanted besides.
    pub fn send(&mut self, order: Order, completion: bool) -> anyhow::Result<()> {
        let packet = Outgoing::in_band(u64::from(completion), completion);
        Ok(self.channel.send_waiting(&packet, &[&order.bytes()], LIMIT)?)
    }

    /// The next answer, which has to be the one after the last; notices that come before it are kept.
    pub fn answer(&mut self) -> anyhow::Result<u64> {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let word =
                self.hear(left)?.with_context(|| format!("no answer comes after {}", self.answered))?;
            match word {
                Word::Notice { number } => self.notices.push(number),
                Word::Done { number, value } => {
                    self.answered += 1;
                    ensure!(number == self.answered, "answer {number} comes as number {}", self.answered);
                    return Ok(value);
                }
            }
        }
    }

    /// An order and its answer.
    pub fn order(&mut self, order: Order) -> anyhow::Result<u64> {
        self.send(order, false)?;
        self.answer().with_context(|| format!("{order:?}"))
    }

    /// Takes notices until there are so many, or time is over.
    pub fn wait_for_notices(&mut self, count: usize, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        while self.notices.len() < count {
            match self.hear(until.saturating_duration_since(Instant::now()))? {
                Some(Word::Notice { number }) => self.notices.push(number),
                Some(word) => bail!("{word:?} came"),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn hear(&mut self, limit: Duration) -> anyhow::Result<Option<Word>> {
        loop {
            let Some(packet) = self.channel.receive(limit)? else { return Ok(None) };
            if packet.header.packet_type == PacketType::COMPLETION {
                ensure!(packet.payload().is_empty(), "a completion that says something");
                continue;
            }
            return Ok(Some(Word::parse(packet.payload()).context("nonsense came")?));
        }
    }
}
