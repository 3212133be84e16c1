//! What the guest sees of the function in its address space: what it should be, what the core has been asked for, and what there is.
//!
//! The configuration window and those pages of registers where the guest's word must not reach the function are **trapped**: each
//! access is asked of this process. All other pages of registers are **mapped**, and nobody is between guest and function.

use std::collections::VecDeque;

use crate::backend::Region;
use crate::config::bars::{Bar, PAGE};
use crate::config::{Config, Table};
use crate::wire::CONFIG_WINDOW;

/// Ranges of each kind that the core has for a device.
const MOST: usize = 16;

/// Pages of the guest's, and what it sees there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From here on.
    pub gpa: u64,
    /// So many bytes, in whole pages.
    pub bytes: u64,
    /// What it is.
    pub what: What,
}

/// What a guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The configuration window.
    Window,
    /// Registers, by way of this process.
    Trap {
        /// Behind which base address register.
        bar: usize,
        /// From which byte of them on.
        at: u64,
    },
    /// Registers, as they are.
    Map {
        /// From which byte of the function's file on.
        offset: u64,
    },
}

impl Place {
    fn is_trap(&self) -> bool {
        !matches!(self.what, What::Map { .. })
    }

    fn overlaps(&self, other: &Place) -> bool {
        self.gpa < other.gpa.saturating_add(other.bytes) && other.gpa < self.gpa.saturating_add(self.bytes)
    }

    /// Where in it an access lies, if it does.
    pub fn find(&self, gpa: u64, bytes: u64) -> Option<u64> {
        let at = gpa.checked_sub(self.gpa)?;
        at.checked_add(bytes).is_some_and(|end| end <= self.bytes).then_some(at)
    }
}

/// What the core is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Accesses there are to come to this process.
    Trap {
        /// From here on.
        gpa: u64,
        /// So many bytes.
        bytes: u64,
    },
    /// No longer.
    Untrap {
        /// As it was given.
        gpa: u64,
    },
    /// The function's file is to be seen there.
    Map {
        /// From here on.
        gpa: u64,
        /// So many bytes.
        bytes: u64,
        /// From this byte of the file on.
        offset: u64,
    },
    /// No longer.
    Unmap {
        /// As it was given.
        gpa: u64,
    },
}

/// How far the core is with a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It has been asked, and this is the number of the question.
    Asked(u64),
    /// The guest sees it.
    There,
    /// The guest cannot have it there, and is not asked for again as long as it is wanted there.
    Refused,
}

/// All places of a function.
#[derive(Debug, Default)]
pub struct Places {
    all: Vec<(Place, Progress)>,
    /// Questions that the core has not answered: address, and number.
    asked: VecDeque<(u64, bool, u64)>,
    questions: u64,
}

impl Places {
    /// What a function's places should be, from what its guest has written.
    pub fn wanted(window: Option<u64>, config: &Config, regions: &[Option<Region>]) -> Vec<Place> {
        let mut all: Vec<Place> =
            window.map(|gpa| Place { gpa, bytes: CONFIG_WINDOW, what: What::Window }).into_iter().collect();
        // Only in the power state in which the guest has the bus are there registers.
        for (index, bar) in config.bars().iter().filter(|_| window.is_some()) {
            let (Some(gpa), Some(region)) =
                (config.place(index), regions.get(index).and_then(Option::as_ref))
            else {
                continue;
            };
            all.extend(pieces(index, bar, region, gpa, &tables(config, index)));
        }
        // What a guest puts over something else of its own is not seen: the core would take one for the other.
        let mut kept: Vec<Place> = Vec::new();
        for place in all {
            if !kept.iter().any(|other| other.overlaps(&place)) {
                kept.push(place);
            }
        }
        let mut all = kept;
        for is_trap in [true, false] {
            let mut count = 0;
            all.retain(|place| {
                count += usize::from(place.is_trap() == is_trap);
                place.is_trap() != is_trap || count <= MOST
            });
        }
        all
    }

    /// A predecessor has had the core do this.
    pub fn found(&mut self, place: Place) {
        self.all.push((place, Progress::There));
    }

    /// What the core has to be told so that things are as they should be: what goes first, and then what comes.
    pub fn want(&mut self, wanted: &[Place]) -> Vec<Order> {
        let mut orders = Vec::new();
        self.all.retain(|(place, progress)| {
            let stays = wanted.contains(place);
            if !stays && *progress != Progress::Refused {
                orders.push(match place.is_trap() {
                    true => Order::Untrap { gpa: place.gpa },
                    false => Order::Unmap { gpa: place.gpa },
                });
            }
            stays
        });
        for place in wanted {
            if self.all.iter().any(|(there, _)| there == place) {
                continue;
            }
            self.questions += 1;
            self.asked.push_back((place.gpa, place.is_trap(), self.questions));
            self.all.push((*place, Progress::Asked(self.questions)));
            let Place { gpa, bytes, what } = *place;
            orders.push(match what {
                What::Map { offset } => Order::Map { gpa, bytes, offset },
                What::Window | What::Trap { .. } => Order::Trap { gpa, bytes },
            });
        }
        orders
    }

    /// The core has answered; the place, if it is still wanted.
    pub fn answered(&mut self, gpa: u64, is_trap: bool, is_there: bool) -> Option<Place> {
        let place = self.asked.iter().position(|(at, trap, _)| *at == gpa && *trap == is_trap)?;
        let (_, _, number) = self.asked.remove(place)?;
        let (place, progress) =
            self.all.iter_mut().find(|(_, progress)| *progress == Progress::Asked(number))?;
        *progress = if is_there { Progress::There } else { Progress::Refused };
        Some(*place)
    }

    /// The core has taken a mapping away, since the function did not answer there.
    pub fn lost(&mut self, gpa: u64) {
        self.all.retain(|(place, _)| place.is_trap() || place.find(gpa, 1).is_none());
    }

    /// The core has answered everything.
    pub fn is_settled(&self) -> bool {
        !self.all.iter().any(|(_, progress)| matches!(progress, Progress::Asked(_)))
    }

    /// What an access means, and where in it it lies. A place that is not there yet is one that was there for whoever served before.
    pub fn find(&self, gpa: u64, bytes: u64) -> Option<(What, u64)> {
        let traps =
            self.all.iter().filter(|(place, progress)| place.is_trap() && *progress != Progress::Refused);
        traps.filter_map(|(place, _)| Some((place.what, place.find(gpa, bytes)?))).next()
    }

    /// Nothing is there any more: the core has taken it all away itself.
    pub fn clear(&mut self) {
        self.all.clear();
        self.asked.clear();
    }
}

/// What of a function's messages lies behind this base address register.
fn tables(config: &Config, bar: usize) -> Vec<Table> {
    let Some(msix) = config.msix() else { return Vec::new() };
    [msix.table, msix.pending].into_iter().filter(|table| table.bar == bar).collect()
}

/// A base address register page by page, what is alike in one piece.
fn pieces(bar: usize, asked: &Bar, region: &Region, gpa: u64, tables: &[Table]) -> Vec<Place> {
    // The borders at which something may change; there are few of them, whatever the size.
    let end = asked.bytes;
    let down = |at: u64| at / PAGE * PAGE;
    let up = |at: u64| at.div_ceil(PAGE).saturating_mul(PAGE).min(end);
    let mut cuts = vec![0, up(asked.size), end];
    for (at, len) in &region.mappable {
        cuts.extend([up(*at), down(at + len), up(at + len)]);
    }
    for table in tables {
        cuts.extend([down(table.at), up(table.at + table.bytes)]);
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut all: Vec<Place> = Vec::new();
    for pair in cuts.windows(2) {
        let (first, last) = (pair[0], pair[1]);
        if first >= asked.size {
            // Rounded up; nothing is there.
            continue;
        }
        let in_table = tables.iter().any(|table| table.at < last && table.at + table.bytes > first);
        let reach = last.min(asked.size);
        let is_mappable = region.mappable.iter().any(|(at, len)| *at <= first && reach <= at + len);
        let what = match is_mappable && !in_table {
            true => What::Map { offset: region.offset + first },
            false => What::Trap { bar, at: first },
        };
        let Some(from) = gpa.checked_add(first) else { continue };
        let next = Place { gpa: from, bytes: last - first, what };
        match all.last_mut() {
            Some(before) if before.is_trap() && next.is_trap() && before.gpa + before.bytes == from => {
                before.bytes += next.bytes;
            }
            Some(before) if !before.is_trap() && !next.is_trap() && before.gpa + before.bytes == from => {
                before.bytes += next.bytes;
            }
            _ => all.push(next),
        }
    }
    all
}

#[cfg(test)]
mod tests;
