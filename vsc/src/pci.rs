//! The consumer of a vPCI bus: what `pci-hyperv` is in a kernel, with the checks of a test.
//!
//! [`Bus`] does what the driver does: agrees on a version, takes the one function, uses the bus with a configuration window, puts the base address
//! registers somewhere, and has interrupts made, moved and taken back. A completion that nobody waits for is an error, as it is for the
//! driver's table of requests. [`wire`] has the messages.

mod msix;
pub mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus::PAGE_SIZE;
use vmbus::message::Offer;
use vmbus::packet::{Outgoing, PacketType};

use crate::channel::Channel;
use crate::client::{Client, OpenOptions};
use crate::error::Error;
use crate::platform::Platform;
pub use msix::Table;
pub use wire::{Function, Message};

/// Bytes of each ring, as the driver has it.
const RING: u32 = 16 << 10;
/// Bytes of the configuration window: a page that selects, a page that shows.
pub const WINDOW: u64 = 0x2000;

/// How to use a bus.
#[derive(Debug, Clone)]
pub struct BusOptions {
    /// How to open its channel.
    pub open: OpenOptions,
    /// Versions to propose, in this order.
    pub versions: Vec<u32>,
    /// Where the configuration window goes; registers of 32 bits go behind it.
    pub low: u64,
    /// Where registers of 64 bits go.
    pub high: u64,
    /// How long the device may take for an answer.
    pub timeout: Duration,
}

impl BusOptions {
    /// As Linux does it, in these windows for devices.
    pub fn at(low: u64, high: u64) -> Self {
        let pages = RING / PAGE_SIZE + 1;
        Self {
            open: OpenOptions { to_host_pages: pages, to_guest_pages: pages, ..OpenOptions::default() },
            versions: wire::VERSIONS.to_vec(),
            low,
            high,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What the host says: whose completion it is, if it is one, and the payload.
type Heard = (Option<u64>, Vec<u8>);

/// A bus with one function.
pub struct Bus<P: Platform> {
    channel: Channel<P>,
    timeout: Duration,
    next_id: u64,
    version: u32,
    function: Option<Function>,
    probed: [u32; 6],
    window: u64,
    places: [Option<u64>; 6],
    /// The host has asked for the function.
    is_ejected: bool,
    /// A page for the input of hypercalls.
    input: u64,
}

impl<P: Platform> Bus<P> {
    /// Opens a bus and brings it to the point where a driver of the function's would begin.
    pub fn open(client: &mut Client<P>, offer: &Offer, options: &BusOptions) -> Result<Self, Error> {
        let channel = client.open(offer, &options.open)?;
        let mut bus = Self::over(channel, options)?;
        bus.agree(&options.versions)?;
        bus.query_relations()?;
        bus.enter(options.low)?;
        bus.place(options.low + WINDOW, options.high)?;
        Ok(bus)
    }

    /// Takes a channel that is open already, and says nothing.
    pub fn over(channel: Channel<P>, options: &BusOptions) -> Result<Self, Error> {
        let input = channel.platform().allocate(1).map_err(Error::Platform)?;
        Ok(Self {
            channel,
            timeout: options.timeout,
            next_id: 1,
            version: 0,
            function: None,
            probed: [0; 6],
            window: 0,
            places: [None; 6],
            is_ejected: false,
            input,
        })
    }

    /// Proposes versions until one is accepted.
    pub fn agree(&mut self, versions: &[u32]) -> Result<(), Error> {
        for &version in versions {
            match wire::status(&self.ask(&wire::query_version(version))?)? {
                0 => {
                    self.version = version;
                    return Ok(());
                }
                wire::REVISION_MISMATCH => {}
                status => return Err(refused("version", status)),
            }
        }
        Err(Error::Protocol("the device speaks none of the proposed vPCI versions".into()))
    }

    /// Asks for the functions, and what the first needs.
    pub fn query_relations(&mut self) -> Result<Option<Function>, Error> {
        self.send(&wire::query_relations(), false)?;
        let payload = self
            .await_message("list of functions", |kind| matches!(kind, wire::RELATIONS | wire::RELATIONS_2))?;
        let functions = wire::functions(&payload)?;
        if functions.len() > 1 {
            return Err(Error::Protocol(format!("{} functions", functions.len())));
        }
        self.function = functions.first().copied();
        if let Some(function) = self.function {
            let payload = self.ask(&wire::query_requirements(function.slot))?;
            success("requirements", &payload)?;
            self.probed = wire::requirements(&payload)?;
            let mut bar = 0;
            while let Some(probed) = self.probed.get(bar) {
                if probed & 1 != 0 {
                    return Err(Error::Protocol("a base address register for ports".into()));
                }
                bar += if probed & 4 != 0 { 2 } else { 1 };
            }
        }
        Ok(self.function)
    }

    /// Uses the bus, with its window there.
    pub fn enter(&mut self, window: u64) -> Result<(), Error> {
        success("D0 entry", &self.ask(&wire::d0_entry(window))?)?;
        self.window = window;
        let slot = self.slot();
        success("resources", &self.ask(&wire::resources_assigned(self.version, slot))?)
    }

    /// Puts the function's registers somewhere and turns its memory on, as `prepopulate_bars` and the PCI core do.
    pub fn place(&mut self, low: u64, high: u64) -> Result<(), Error> {
        let command = self.read_config(4, 2)?;
        self.write_config(4, 2, command & !2)?;
        let (mut low, mut high, mut bar) = (low, high, 0);
        while bar < 6 {
            let probed = self.probed[bar];
            let is_wide = probed & 4 != 0;
            if probed != 0 {
                let upper = if is_wide { self.probed.get(bar + 1).copied().unwrap_or(0) } else { u32::MAX };
                let size = (!(u64::from(probed & !0xf) | u64::from(upper) << 32)).wrapping_add(1);
                let next = if is_wide { &mut high } else { &mut low };
                let place = next.next_multiple_of(size.max(u64::from(PAGE_SIZE)));
                *next = place + size;
                let at = 0x10 + 4 * bar as u16;
                // Asked in the old way as well: all ones, and what comes back.
                self.write_config(at, 4, u32::MAX)?;
                if self.read_config(at, 4)? != probed {
                    return Err(Error::Protocol(format!("base address register {bar} is not as announced")));
                }
                self.write_config(at, 4, place as u32)?;
                if is_wide {
                    self.write_config(at + 4, 4, (place >> 32) as u32)?;
                }
                self.places[bar] = Some(place);
            }
            bar += if is_wide { 2 } else { 1 };
        }
        self.write_config(4, 2, command | 0x402)
    }

    /// Where the function's registers are.
    pub fn bar(&self, bar: usize) -> Option<u64> {
        self.places.get(bar).copied().flatten()
    }

    /// The function.
    pub fn function(&self) -> Option<Function> {
        self.function
    }

    /// The version that is spoken.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether the host has asked for the function.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected
    }

    /// The machine below.
    pub fn platform(&self) -> &Arc<P> {
        self.channel.platform()
    }

    /// The channel, for what a test does besides.
    pub fn channel(&mut self) -> &mut Channel<P> {
        &mut self.channel
    }

    /// The channel, to close it.
    pub fn into_channel(self) -> Channel<P> {
        self.channel
    }

    fn slot(&self) -> u32 {
        self.function.map_or(0, |function| function.slot)
    }

    /// Reads configuration space by the window.
    pub fn read_config(&mut self, at: u16, bytes: u8) -> Result<u32, Error> {
        self.select();
        let mut value = [0; 4];
        let place = self.window + 0x1000 + u64::from(at);
        self.platform().read(place, &mut value[..usize::from(bytes.min(4))]);
        Ok(u32::from_le_bytes(value))
    }

    /// Writes it.
    pub fn write_config(&mut self, at: u16, bytes: u8, value: u32) -> Result<(), Error> {
        self.select();
        let place = self.window + 0x1000 + u64::from(at);
        self.platform().write(place, &value.to_le_bytes()[..usize::from(bytes.min(4))]);
        Ok(())
    }

    fn select(&self) {
        self.platform().write(self.window, &self.slot().to_le_bytes());
    }

    /// Where a capability is.
    pub fn capability(&mut self, wanted: u8) -> Result<Option<u16>, Error> {
        let mut at = self.read_config(0x34, 1)? as u16;
        for _ in 0..48 {
            if at == 0 {
                return Ok(None);
            }
            if self.read_config(at, 1)? as u8 == wanted {
                return Ok(Some(at));
            }
            at = self.read_config(at + 1, 1)? as u16;
        }
        Err(Error::Protocol("the chain of capabilities does not end".into()))
    }

    /// Has an interrupt made, or several in a row.
    pub fn create_interrupt(&mut self, vector: u8, count: u16, vp: u16) -> Result<Message, Error> {
        let wish = wire::create_interrupt(self.version, self.slot(), vector, count, vp);
        let payload = self.ask(&wish)?;
        success("interrupt", &payload)?;
        wire::interrupt(&payload)
    }

    /// Gives it back.
    pub fn delete_interrupt(&mut self, message: &Message) -> Result<(), Error> {
        let wish = wire::delete_interrupt(self.slot(), message);
        self.send(&wish, false).map(drop)
    }

    /// Moves it, by a hypercall; its status.
    pub fn retarget(&mut self, message: &Message, vector: u8, vps: u64) -> Result<u16, Error> {
        let instance = self.channel.offer().instance.to_wire();
        let device = wire::device_id(&instance, self.slot());
        let (control, input) = wire::retarget(self.version, device, message, vector, vps);
        self.platform().write(self.input, &input);
        let result = self.platform().hypercall(control, self.input).map_err(Error::Platform)?;
        Ok(result as u16)
    }

    /// Leaves the bus, as the driver does when it is removed.
    pub fn exit(&mut self) -> Result<(), Error> {
        let slot = self.slot();
        self.send(&wire::resources_released(slot), false)?;
        success("D0 exit", &self.ask(&wire::d0_exit())?)
    }

    /// Says that the function has been removed.
    pub fn eject(&mut self) -> Result<(), Error> {
        let slot = self.slot();
        self.send(&wire::ejection_complete(slot), false).map(drop)
    }

    /// Sends any bytes.
    pub fn send(&mut self, message: &[u8], wants_completion: bool) -> Result<u64, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let id = if wants_completion { id } else { 0 };
        let packet = Outgoing::in_band(id, wants_completion);
        self.channel.send_waiting(&packet, &[message], self.timeout)?;
        Ok(id)
    }

    /// Sends any bytes, and waits for the completion.
    pub fn ask(&mut self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let wanted = self.send(message, true)?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)?.ok_or(Error::Timeout("completion"))? {
                (Some(id), payload) if id == wanted => return Ok(payload),
                (Some(id), _) => return Err(Error::UnknownCompletion(id)),
                (None, payload) => self.handle(&payload)?,
            }
        }
    }

    /// Takes a message of the host's own; false: none came.
    pub fn listen(&mut self, timeout: Duration) -> Result<bool, Error> {
        match self.receive(timeout)? {
            None => Ok(false),
            Some((Some(id), _)) => Err(Error::UnknownCompletion(id)),
            Some((None, payload)) => self.handle(&payload).map(|()| true),
        }
    }

    fn handle(&mut self, payload: &[u8]) -> Result<(), Error> {
        match wire::kind(payload)? {
            wire::EJECT => {
                self.is_ejected = true;
                Ok(())
            }
            // The driver looks at each list that comes.
            wire::RELATIONS | wire::RELATIONS_2 => wire::functions(payload).map(drop),
            kind => Err(Error::Protocol(format!("an unknown message {kind:#x}"))),
        }
    }

    /// The next packet.
    fn receive(&mut self, timeout: Duration) -> Result<Option<Heard>, Error> {
        let Some(packet) = self.channel.receive(timeout)? else { return Ok(None) };
        let payload = packet.payload().to_vec();
        match packet.header.packet_type {
            PacketType::COMPLETION => Ok(Some((Some(packet.header.transaction_id), payload))),
            PacketType::IN_BAND if !packet.header.completion_requested() => Ok(Some((None, payload))),
            _ => Err(Error::Protocol(format!("a message was due, not {:?}", packet.header))),
        }
    }

    fn await_message(&mut self, what: &'static str, is: impl Fn(u32) -> bool) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)?.ok_or(Error::Timeout(what))? {
                (Some(id), _) => return Err(Error::UnknownCompletion(id)),
                (None, payload) if is(wire::kind(&payload)?) => return Ok(payload),
                (None, payload) => self.handle(&payload)?,
            }
        }
    }
}

fn refused(what: &str, status: u32) -> Error {
    Error::Protocol(format!("{what} was refused with status {status:#x}"))
}

fn success(what: &str, payload: &[u8]) -> Result<(), Error> {
    match wire::status(payload)? {
        status if (status as i32) < 0 => Err(refused(what, status)),
        _ => Ok(()),
    }
}
