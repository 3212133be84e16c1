//! A function as its guest has it: what it has written, what it sees, and what that means for the function itself.
//!
//! No channel and no core here: what the core has to be told comes out as [`Order`]s. `access` is what processors do where it is trapped.
//!
//! The function answers to its addresses, on the host's bus, for as long as the guest has the vPCI bus in use: whether the guest *sees* it
//! there is decided by what the core maps, so that a guest that turns its memory off, or a process that dies, never makes
//! a page fault that nobody can answer. Whether the function may write memory by itself is the guest's own word.

mod access;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use logs::Ration;
use vsp::GuestBuffer;

use crate::backend::{Backend, Kind};
use crate::config::{Config, Unfit, command, register};
use crate::interrupts::{ADDRESS, Bells, Interrupts, Wanted};
use crate::msix::Table;
use crate::places::{Order, Place, Places, What};
use crate::state::{ACCESSES, State};
use crate::wire::SLOT;
pub use access::NOTHING;

/// Between two attempts to reset a function. The kernel refuses while somebody else has the device's lock, for a moment.
const RESET_AGAIN: Duration = Duration::from_millis(20);
/// Times that the core takes something out of the guest's sight that is shown again. Kernels before 6.8 do not say which of a VM's functions did not
/// answer, so all lose what they have; one that answers is not to be lost for it.
const MAX_LOSSES: u32 = 16;
static RESETS: Ration = Ration::new();

/// A function and its guest.
#[derive(Debug)]
pub struct Function {
    backend: Box<dyn Backend>,
    bells: Bells,
    config: Config,
    table: Table,
    /// Who has which interrupt.
    pub interrupts: Interrupts,
    /// What the guest sees where.
    pub places: Places,
    /// Version of the protocol.
    pub version: Option<u32>,
    window: Option<u64>,
    is_ejected: bool,
    selected: u32,
    /// Accesses that have reached the function.
    reached: VecDeque<(u64, u64)>,
    orders: Vec<Order>,
    /// Something has changed that a successor has to know.
    pub is_dirty: bool,
    /// The function has been used since it was reset.
    is_used: bool,
    /// It can reach all of guest RAM.
    reaches_ram: bool,
    /// It has to be reset, which did not work so far; when to try again.
    reset_again: Option<Instant>,
    /// What was last written into its own command register.
    command: Option<u16>,
    /// Times that the core has taken what the guest sees away since the guest began with the bus.
    losses: u32,
}

impl Function {
    /// A function that no guest has used.
    pub fn new(backend: Box<dyn Backend>, bells: Bells) -> Result<Function, Unfit> {
        let config = Config::of(&*backend)?;
        let table = Table::new(config.msix().map_or(0, |msix| msix.vectors));
        Ok(Function {
            backend,
            bells,
            config,
            table,
            interrupts: Interrupts::default(),
            places: Places::default(),
            version: None,
            window: None,
            is_ejected: false,
            selected: SLOT,
            reached: VecDeque::new(),
            orders: Vec::new(),
            is_dirty: false,
            is_used: false,
            reaches_ram: false,
            reset_again: None,
            command: None,
            losses: 0,
        })
    }

    /// The function itself.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// It reaches all of guest RAM, or not.
    pub fn reaches_ram(&self) -> bool {
        self.reaches_ram
    }

    /// It has been given all of it.
    pub fn set_reaches_ram(&mut self) {
        (self.reaches_ram, self.is_dirty) = (true, true);
    }

    /// Takes a piece of guest RAM away from it, if it has it. A predecessor may have given it other pieces: then this does nothing.
    pub fn unmap_piece(&mut self, piece: (u64, u64)) {
        self.reaches_ram = false;
        if let Err(error) = self.backend.unmap_dma(Some(piece)) {
            tracing::debug!(?piece, "a piece of guest RAM cannot be taken away by itself: {error}");
        }
    }

    /// Takes guest RAM away from it. Pages that it could reach are not the guest's any more when the next one begins.
    pub fn unmap_dma(&mut self) {
        self.reaches_ram = false;
        if let Err(error) = self.backend.unmap_dma(None) {
            tracing::error!("guest RAM cannot be taken away from the function: {error}");
        }
    }

    /// Has it read and write guest RAM.
    pub fn map_dma(&mut self, gpa: u64, memory: &GuestBuffer) -> std::io::Result<()> {
        let mut at = gpa;
        for span in memory.spans() {
            self.backend.map_dma(at, *span)?;
            at += span.len() as u64;
        }
        Ok(())
    }

    /// Its eventfds.
    pub fn bells(&self) -> &Bells {
        &self.bells
    }

    /// Its configuration space.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the core has to be told.
    pub fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// The guest has removed it.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected
    }

    /// Where the configuration window is.
    pub fn window(&self) -> Option<u64> {
        self.window
    }

    /// The guest uses the bus from now on, with its window there.
    pub fn enter(&mut self, window: u64) {
        self.window = Some(window);
        (self.is_used, self.is_dirty, self.losses) = (true, true, 0);
        self.follow();
    }

    /// The core does not let it have its window there.
    pub fn refuse_window(&mut self) {
        self.window = None;
        self.is_dirty = true;
        self.follow();
    }

    /// The guest has removed the function.
    pub fn eject(&mut self) {
        self.is_ejected = true;
        self.leave();
    }

    /// The guest does not use the bus any more: the function is as if nobody ever had.
    pub fn leave(&mut self) {
        self.window = None;
        self.quiesce();
        self.interrupts.reset();
        self.is_dirty = true;
        self.follow();
    }

    /// The channel has closed: all that hung on it is gone by itself. Guest RAM is not.
    pub fn close(&mut self) {
        self.quiesce();
        self.forget();
    }

    /// Somebody else serves from now on, or a guest begins anew; nothing is done to the function.
    pub fn forget(&mut self) {
        self.config.reset();
        self.table.reset();
        self.interrupts.reset();
        self.places.clear();
        (self.version, self.window, self.is_ejected, self.selected) = (None, None, false, SLOT);
        self.reached.clear();
        self.orders.clear();
        (self.is_dirty, self.reaches_ram, self.command) = (false, false, None);
    }

    /// What a predecessor has done to the function nobody knows.
    pub fn suspect(&mut self) {
        self.is_used = true;
    }

    /// Stops it, and has it forget everything: it writes no memory, then it does not interrupt, then it is reset.
    pub fn quiesce(&mut self) {
        if !std::mem::take(&mut self.is_used) {
            return;
        }
        self.command = None;
        self.set_command(command::NO_LINE);
        if self.interrupts.kind().is_none() {
            // A predecessor may have turned them on and died; what is off stays off.
            let _ = self.backend.disable(Kind::MsiX);
            let _ = self.backend.disable(Kind::Msi);
        }
        self.interrupts.turn_off(&mut *self.backend);
        self.reset();
        self.config.reset();
        self.table.reset();
        self.interrupts.reset();
        (self.selected, self.command) = (SLOT, None);
    }

    fn reset(&mut self) {
        match self.backend.reset() {
            Ok(()) => self.reset_again = None,
            Err(error) => {
                if let Some(times) = RESETS.another() {
                    tracing::error!(
                        times,
                        "the function cannot be reset, and is nobody's until it can: {error}"
                    );
                }
                self.reset_again = Some(Instant::now() + RESET_AGAIN);
            }
        }
    }

    /// Tries again to reset it, if it is time.
    pub fn reset_if_due(&mut self) {
        if self.reset_again.is_some_and(|when| when <= Instant::now()) {
            self.command = None;
            self.set_command(command::NO_LINE);
            self.reset();
            self.command = None;
            // The guest may have come in between.
            self.follow();
        }
    }

    /// It still has what its last user has made of it; when it is tried again to reset it.
    pub fn reset_again(&self) -> Option<Instant> {
        self.reset_again
    }

    /// The core has taken a part of it out of the guest's sight, since it, or another function, did not answer there. If it does now, the
    /// guest may see it again.
    pub fn lost(&mut self, gpa: u64) {
        self.places.lost(gpa);
        self.losses += 1;
        if self.losses <= MAX_LOSSES {
            self.follow();
        }
    }

    fn set_command(&mut self, value: u16) {
        if self.command == Some(value) {
            return;
        }
        match self.backend.write_config(register::COMMAND, &value.to_le_bytes()) {
            Ok(()) => self.command = Some(value),
            Err(error) => tracing::error!("the function's command register cannot be written: {error}"),
        }
    }

    /// Has the core and the function do what the guest has written. As long as the function has to be reset nobody sees its registers, and it does
    /// nothing: every attempt at the reset turns it off.
    fn follow(&mut self) {
        let is_owed = self.reset_again.is_some();
        let own = match self.window {
            Some(_) if !is_owed => command::MEMORY | (self.config.command() & command::GUESTS),
            _ => 0,
        };
        self.set_command(own | command::NO_LINE);
        let regions = if is_owed { &Default::default() } else { &self.backend.info().regions };
        let wanted = Places::wanted(self.window, &self.config, regions);
        let orders = self.places.want(&wanted);
        self.orders.extend(orders);
    }

    /// What the guest wants of each vector.
    fn wanted(&self) -> Vec<Wanted> {
        let valid =
            |address: u64, data: u32| (address == ADDRESS && self.interrupts.has(data)).then_some(data);
        match self.config.kind() {
            None => Vec::new(),
            Some(Kind::MsiX) => {
                let is_masked = self.config.is_masked();
                let entries = (0..self.table.len()).map(|vector| self.table.get(vector));
                let number = |entry: crate::msix::Entry| {
                    valid(entry.address, entry.data).filter(|_| !entry.is_masked && !is_masked)
                };
                entries.map(number).collect()
            }
            Some(Kind::Msi) => {
                let Some((address, data, count)) = self.config.message() else { return Vec::new() };
                (0..count).map(|message| valid(address, data | message)).collect()
            }
        }
    }

    fn interrupt(&mut self) {
        let wanted = self.wanted();
        self.interrupts.apply(self.config.kind(), &wanted, &self.bells, &mut *self.backend);
    }

    /// An interrupt that the guest had is gone, or a new one is there.
    pub fn interrupts_changed(&mut self) {
        self.is_dirty = true;
        self.interrupt();
    }

    /// For the ledger; without the interrupts that the guest has asked for and not been given yet.
    pub fn save(&self, without: &[u32]) -> State {
        State {
            version: self.version,
            window: self.window,
            is_ejected: self.is_ejected,
            reaches_ram: self.reaches_ram,
            selected: self.selected,
            config: self.config.save(),
            given: self.interrupts.given().filter(|(first, _)| !without.contains(first)).collect(),
            entries: self.table.entries().collect(),
            accesses: self.reached.iter().copied().collect(),
        }
    }

    /// What a predecessor has left. The function goes on as it is.
    pub fn restore(&mut self, state: &State) {
        self.forget();
        (self.version, self.window, self.is_ejected) = (state.version, state.window, state.is_ejected);
        (self.selected, self.reaches_ram) = (state.selected, state.reaches_ram);
        self.config.restore(state.config.iter().copied());
        for (first, count) in &state.given {
            if let Ok(count) = u16::try_from(*count) {
                self.interrupts.give(*first, count);
            }
        }
        state.entries.iter().for_each(|(vector, entry)| self.table.set(*vector, *entry));
        self.reached = state.accesses.iter().copied().take(ACCESSES).collect();
        self.is_used = true;
        let wanted = self.wanted();
        self.interrupts.resume(self.config.kind(), wanted);
    }

    /// A predecessor has had the core do this for the guest.
    pub fn found(&mut self, place: FoundPlace) {
        let is_it = |known: &&Place| match (place, known.what) {
            (FoundPlace::Trap { gpa, bytes }, What::Window | What::Trap { .. }) => {
                (gpa, bytes) == (known.gpa, known.bytes)
            }
            (FoundPlace::Region { gpa, bytes, offset }, What::Map { offset: known_offset }) => {
                (gpa, bytes, offset) == (known.gpa, known.bytes, known_offset)
            }
            _ => false,
        };
        let wanted = Places::wanted(self.window, &self.config, &self.backend.info().regions);
        match wanted.iter().find(is_it) {
            Some(place) => self.places.found(*place),
            // It died on the way from one thing to another.
            None => self.orders.push(match place {
                FoundPlace::Trap { gpa, .. } => Order::Untrap { gpa },
                FoundPlace::Region { gpa, .. } => Order::Unmap { gpa },
            }),
        }
    }

    /// All of a predecessor's is known: what is missing is done.
    pub fn resume(&mut self) {
        self.follow();
    }
}

/// What a predecessor has had the core do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundPlace {
    /// A trap.
    Trap {
        /// From here on.
        gpa: u64,
        /// So many bytes.
        bytes: u64,
    },
    /// A mapping.
    Region {
        /// From here on.
        gpa: u64,
        /// So many bytes.
        bytes: u64,
        /// From this byte of the function's file on.
        offset: u64,
    },
}
