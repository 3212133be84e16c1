//! What many tests do: connect a guest, find its devices, and prove that a device is alive.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use vmbus::message::{HostMessage, Offer};
use vsc::{Client, OpenOptions, Options, echo::Echo};

use crate::{SoftPlatform, Vm};

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A guest of the software partition and the offers that it has had, by number of the device.
pub struct Guest {
    /// Its connection to the bus.
    pub client: Client<SoftPlatform>,
    /// What it has been offered.
    pub offers: BTreeMap<u64, Offer>,
}

impl Guest {
    /// A guest that has connected and taken its offers.
    pub fn connect(vm: &Vm) -> anyhow::Result<Self> {
        Self::connect_with(vm, Options::default())
    }

    /// The same, as the options say.
    pub fn connect_with(vm: &Vm, options: Options) -> anyhow::Result<Self> {
        let client = Client::connect(vm.platform().clone(), options)?;
        let mut guest = Self { client, offers: BTreeMap::new() };
        guest.ask_offers()?;
        Ok(guest)
    }

    /// Asks for the offers (again).
    pub fn ask_offers(&mut self) -> anyhow::Result<()> {
        for offer in self.client.request_offers()? {
            self.offers.insert(number(&offer), offer);
        }
        Ok(())
    }

    /// The offer of the VM's device number `n`, in the order in which they were added.
    pub fn offer(&self, n: u64) -> anyhow::Result<Offer> {
        self.offers.get(&n).copied().with_context(|| format!("device {n} has not been offered"))
    }

    /// Opens an echo device.
    pub fn echo(&mut self, n: u64) -> anyhow::Result<Echo<SoftPlatform>> {
        let offer = self.offer(n)?;
        Ok(Echo::open(&mut self.client, &offer, &small())?)
    }

    /// Opens an echo device, uses it in earnest, closes it.
    pub fn prove(&mut self, n: u64) -> anyhow::Result<()> {
        let mut echo = self.echo(n).with_context(|| format!("device {n} does not open"))?;
        exercise(&mut echo).with_context(|| format!("device {n} does not echo"))?;
        self.client.close(echo.into_channel()).with_context(|| format!("device {n} does not close"))
    }

    /// Takes all messages that come until there is none for a moment.
    pub fn drain(&mut self) -> anyhow::Result<Vec<HostMessage>> {
        self.drain_until(Duration::from_millis(50))
    }

    /// Takes messages that are there, or nearly.
    pub fn drain_quickly(&mut self) -> anyhow::Result<Vec<HostMessage>> {
        self.drain_until(Duration::from_millis(2))
    }

    fn drain_until(&mut self, silence: Duration) -> anyhow::Result<Vec<HostMessage>> {
        let mut all = Vec::new();
        while let Some(message) = self.client.next_message(silence)? {
            all.push(message);
        }
        Ok(all)
    }
}

/// The device's number, which the harness puts at the end of its instance GUID.
fn number(offer: &Offer) -> u64 {
    let text = offer.instance.to_string();
    text.rsplit('-').next().and_then(|end| u64::from_str_radix(end, 16).ok()).unwrap_or(u64::MAX)
}

/// Small rings, so that tests run around them.
pub fn small() -> OpenOptions {
    OpenOptions { to_host_pages: 4, to_guest_pages: 4, ..OpenOptions::default() }
}

/// Echoes some hundred packets, alone and many at a time.
pub fn exercise(echo: &mut Echo<SoftPlatform>) -> anyhow::Result<()> {
    for n in 0..100u32 {
        echo.echo(&vec![n as u8; (n * 13 % 1200) as usize], LIMIT)?;
    }
    let mut sent = Vec::new();
    for n in 0..40u8 {
        let payload = vec![n; usize::from(n) * 5];
        sent.push((echo.send(&payload, LIMIT)?, payload));
    }
    for (id, payload) in sent {
        echo.expect(id, &payload, LIMIT)?;
    }
    ensure!(echo.channel().poll()?.is_none(), "nothing comes that was not sent");
    Ok(())
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: u32) -> u32 {
        ((self.number() >> 33) % u64::from(sides)) as u32
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.number().to_le_bytes()[..part.len()]);
        }
    }
}
