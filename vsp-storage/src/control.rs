//! What an operator says to a controller that serves, and its answers: JSON, carried unread by the core. Data only.
//!
//! It comes from the host's side, and from a build that may be another: what is not known is left out, and has a default.

use serde::{Deserialize, Serialize};

use crate::cli::DiskSpec;
use crate::shape::Shape;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// One more disk. If it is there already, the guest is told again. Descriptors: the disk, opened as its options say, and, if
    /// `keeper`, the one that carries the locks.
    Add {
        /// As `--disk` describes it; with a LUN.
        disk: DiskSpec,
        /// What it is made of.
        shape: Shape,
        /// A second descriptor has come.
        #[serde(default)]
        keeper: bool,
    },
    /// A disk less; answered when nothing uses it any more. If it is not there, the guest is told again.
    Remove {
        /// Its number.
        lun: u8,
    },
    /// A disk has another size.
    Resize {
        /// Its number.
        lun: u8,
    },
    /// What the units have done; answered by a [`Page`].
    Stats {
        /// Units from this number on.
        #[serde(default)]
        first: u8,
    },
}

/// The answer about a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Its size in bytes, as the guest sees it.
    pub bytes: u64,
}

/// As many units as fit into an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Page {
    /// In the order of their numbers.
    pub luns: Vec<UnitReport>,
    /// The number of the first one that did not fit.
    pub next: Option<u8>,
}

/// What a unit has done since its process began. Times are in nanoseconds; 0 where there is nothing to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct UnitReport {
    pub lun: u8,
    pub path: String,
    pub bytes: u64,
    pub read_only: bool,
    pub in_flight: u64,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub errors: u64,
    pub throttled: u64,
    pub queued: u64,
    pub bounced: u64,
    pub read_p50_ns: u64,
    pub read_p99_ns: u64,
    pub write_p50_ns: u64,
    pub write_p99_ns: u64,
    pub flush_p50_ns: u64,
    pub flush_p99_ns: u64,
}

/// Bytes of units in a page: with what goes around them it fits into an answer.
const PAGE: usize = vsp::ipc::message::MAX_CONTROL - 1024;
/// Characters of a path that are told: the last ones.
const PATH: usize = 256;

impl Page {
    /// The first of `units`, as many as fit.
    pub fn of(units: impl IntoIterator<Item = UnitReport>) -> Page {
        let (mut page, mut len) = (Page::default(), 0);
        for mut unit in units {
            let characters = unit.path.chars().count();
            unit.path = unit.path.chars().skip(characters.saturating_sub(PATH)).collect();
            len += json(&unit).len() + 1;
            if len > PAGE {
                page.next = Some(unit.lun);
                break;
            }
            page.luns.push(unit);
        }
        page
    }
}

/// What is sent.
pub fn json(value: &impl Serialize) -> String {
    // Numbers and strings can always be written.
    serde_json::to_string(value).unwrap_or_default()
}

/// What was sent; why not.
pub fn parse(text: &str) -> Result<Wanted, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("this build of vsp-storage does not understand that: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_comes_as_json() {
        assert_eq!(parse(r#"{"remove":{"lun":3,"new":1}}"#), Ok(Wanted::Remove { lun: 3 }));
        assert_eq!(parse(r#"{"stats":{}}"#), Ok(Wanted::Stats { first: 0 }));
        assert!(parse(r#"{"defragment":{}}"#).unwrap_err().contains("does not understand"));
        let disk: DiskSpec = "path=/x,lun=7,iops=5,cache=none".parse().unwrap();
        let shape = Shape { block_size: 512, physical: 4096, can_unmap: true, local: true, sequence: 0 };
        let add = Wanted::Add { disk, shape, keeper: true };
        assert_eq!(parse(&json(&add)), Ok(add));
    }

    #[test]
    fn pages_fit_and_nothing_is_left_out() {
        let unit =
            |lun| UnitReport { lun, path: "\u{1b}".repeat(4096), reads: u64::MAX, ..UnitReport::default() };
        let (mut first, mut seen) = (Some(0), 0);
        while let Some(from) = first {
            let page = Page::of((from..64).map(unit));
            assert!(json(&page).len() <= vsp::ipc::message::MAX_CONTROL && !page.luns.is_empty());
            seen += page.luns.len();
            first = page.next;
        }
        assert_eq!(seen, 64);
    }
}
