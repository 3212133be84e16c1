//! `bulkhead device ls --stats`: what each unit of the storage devices has done, in their processes' own figures.
//!
//! A figure is of the process that serves: it begins at 0 with each one. What a process says is shown, never acted upon.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::disk::{Told, shown};
use crate::spec::size::Bytes;

/// The most answers that one device is asked for: more units than any has.
const MOST_PAGES: usize = 64;

/// One logical unit of a storage device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unit {
    /// Its number.
    pub lun: u8,
    /// Its file, as its process knows it.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The guest can only read it.
    pub read_only: bool,
    /// Commands of the guest that have ended, by kind: READ,
    pub reads: u64,
    /// WRITE (of any kind),
    pub writes: u64,
    /// SYNCHRONIZE CACHE,
    pub flushes: u64,
    /// UNMAP and WRITE SAME.
    pub discards: u64,
    /// Bytes moved to the guest.
    pub read_bytes: u64,
    /// Bytes moved from the guest.
    pub written_bytes: u64,
    /// Commands that failed for the host's fault.
    pub errors: u64,
    /// Commands that had to wait for a limit.
    pub throttled: u64,
    /// Commands that had to wait because the disk had enough to do.
    pub queued: u64,
    /// Commands that went through memory of the process, as the guest's was not aligned for the disk.
    pub bounced: u64,
    /// Commands under way.
    pub in_flight: u64,
    /// How long commands took, from the ring to the answer, in nanoseconds; 0: nothing to say. Half of the reads took no longer,
    pub read_p50_ns: u64,
    /// of a hundred reads 99;
    pub read_p99_ns: u64,
    /// half of the writes,
    pub write_p50_ns: u64,
    /// of a hundred writes 99;
    pub write_p99_ns: u64,
    /// half of the flushes,
    pub flush_p50_ns: u64,
    /// and of a hundred flushes 99.
    pub flush_p99_ns: u64,
}

/// An answer of a storage process.
#[derive(Debug, Deserialize)]
struct Page {
    luns: Vec<Unit>,
    /// The first unit that is not in it.
    #[serde(default)]
    next: Option<u8>,
}

/// The units of a device; `tell` says something to its process. None for one that has no units, or that nobody serves.
pub fn units(mut tell: impl FnMut(&str) -> Result<Told, Error>) -> Vec<Unit> {
    let (mut units, mut first) = (Vec::new(), 0);
    for _ in 0..MOST_PAGES {
        let question = serde_json::json!({ "stats": { "first": first } }).to_string();
        let Ok(Told::Done(answer)) = tell(&question) else { break };
        let Ok(page) = serde_json::from_str::<Page>(&answer) else { break };
        units.extend(page.luns.into_iter().map(|unit| Unit { path: shown(&unit.path), ..unit }));
        match page.next {
            Some(next) if next > first => first = next,
            _ => break,
        }
    }
    units
}

/// Titles of the columns.
pub const TITLES: [&str; 11] =
    ["DEVICE", "LUN", "SIZE", "READS", "READ", "p50/p99", "WRITES", "WRITTEN", "p50/p99", "ERRORS", "FILE"];

/// A line of the table.
pub fn cells(device: &str, unit: &Unit) -> [String; 11] {
    let file = if unit.read_only { format!("{} (read-only)", unit.path) } else { unit.path.clone() };
    [
        device.to_owned(),
        unit.lun.to_string(),
        Bytes(unit.bytes).to_string(),
        unit.reads.to_string(),
        Bytes(unit.read_bytes).to_string(),
        percentiles(unit.reads, unit.read_p50_ns, unit.read_p99_ns),
        unit.writes.to_string(),
        Bytes(unit.written_bytes).to_string(),
        percentiles(unit.writes, unit.write_p50_ns, unit.write_p99_ns),
        unit.errors.to_string(),
        file,
    ]
}

fn percentiles(count: u64, p50: u64, p99: u64) -> String {
    if count == 0 { "-".to_owned() } else { format!("{}/{}", time(p50), time(p99)) }
}

/// Three digits at most, but for times that nobody wants.
fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{}.{}us", ns / 1000, ns / 100 % 10),
        10_000..1_000_000 => format!("{}us", ns / 1000),
        1_000_000..10_000_000 => format!("{}.{}ms", ns / 1_000_000, ns / 100_000 % 10),
        10_000_000..1_000_000_000 => format!("{}ms", ns / 1_000_000),
        _ => format!("{}s", ns / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pages_are_asked_for_and_no_more() {
        let mut asked = Vec::new();
        let found = units(|question| {
            asked.push(question.to_owned());
            let next = if asked.len() == 1 { "2" } else { "null" };
            let lun = asked.len() - 1;
            Ok(Told::Done(format!(
                r#"{{"luns":[{{"lun":{lun},"path":"/a\u001b[2J","new":1}}],"next":{next}}}"#
            )))
        });
        assert_eq!(asked, [r#"{"stats":{"first":0}}"#, r#"{"stats":{"first":2}}"#]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].path, "/a?[2J", "nothing for the terminal to obey");
    }

    #[test]
    fn who_answers_nonsense_for_ever_has_no_units_for_ever() {
        assert_eq!(units(|_| Ok(Told::Done("[]".into()))), []);
        assert_eq!(units(|_| Err(Error::Failed("no".into()))), []);
        let mut times = 0;
        units(|_| {
            times += 1;
            Ok(Told::Done(r#"{"luns":[],"next":0}"#.into()))
        });
        assert_eq!(times, 1);
    }

    #[test]
    fn a_line_is_short() {
        let unit = Unit {
            lun: 3,
            path: "/x".into(),
            bytes: 1 << 30,
            reads: 5,
            read_bytes: 20480,
            read_p50_ns: 6_200,
            read_p99_ns: 12_345_678,
            ..Unit::default()
        };
        let line = cells("disk0", &unit).join(" ");
        assert_eq!(line, "disk0 3 1 GiB 5 20 KiB 6.2us/12ms 0 0 bytes - 0 /x");
    }
}
