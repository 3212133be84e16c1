//! How a disk is used, one `[[storage.disk]]`: what lies between it and the guest, how it looks, and how much the guest may ask of it.

use std::fmt;

use super::Loader;
use super::reader::Section;
use super::size::{self, Bytes};

/// Longest serial number in characters: what `vsp-storage` takes.
const LONGEST_SERIAL: usize = 32;
/// Commands a second: more than any disk does.
const IOPS: std::ops::RangeInclusive<u64> = 1..=1_000_000_000;
/// The least bandwidth: the largest command, of 512 KiB, would take eight seconds.
const LEAST_BANDWIDTH: u64 = 64 * 1024;
/// Seconds of a burst: an hour's worth of a limit at once is none.
const BURST: std::ops::RangeInclusive<u64> = 1..=3600;

/// How a disk is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What lies between the guest and the disk.
    pub cache: Cache,
    /// Bytes of a logical block; `None`: as the disk has it, 512 of a file.
    pub block_size: Option<u32>,
    /// Serial number; `None`: made of the device's name and the LUN.
    pub serial: Option<String>,
    /// Most commands a second.
    pub iops: Option<u64>,
    /// Most bytes a second.
    pub bandwidth: Option<u64>,
    /// For how many seconds what is not used of a limit is saved up.
    pub burst: Option<u64>,
}

/// What lies between the guest and a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The host's page cache; what the guest has flushed is safe.
    #[default]
    WriteBack,
    /// The host's page cache for reading; what is written is safe at once.
    WriteThrough,
    /// Nothing of the host's; what the guest has flushed is safe.
    None,
}

impl Cache {
    const ALL: [(&'static str, Cache); 3] =
        [("writeback", Cache::WriteBack), ("writethrough", Cache::WriteThrough), ("none", Cache::None)];

    /// As people write it.
    pub fn name(self) -> &'static str {
        Cache::ALL.iter().find(|(_, cache)| *cache == self).map_or("", |(name, _)| name)
    }
}

impl Options {
    /// The options for `vsp-storage`'s `--disk`, each with a comma before it.
    pub fn words(&self) -> String {
        let mut words = String::new();
        let mut word = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.push_str(&format!(",{name}={}", value.replace(',', ",,")));
            }
        };
        word("cache", (self.cache != Cache::default()).then(|| self.cache.name().to_owned()));
        word("block_size", self.block_size.map(|size| size.to_string()));
        word("serial", self.serial.clone());
        word("iops", self.iops.map(|iops| iops.to_string()));
        word("bandwidth", self.bandwidth.map(|bytes| bytes.to_string()));
        word("burst", self.burst.map(|seconds| seconds.to_string()));
        words
    }
}

/// For people: what is not usual, each with a comma before it.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cache {
            Cache::WriteBack => {}
            Cache::WriteThrough => f.write_str(", write-through")?,
            Cache::None => f.write_str(", past the page cache")?,
        }
        if let Some(size) = self.block_size {
            write!(f, ", blocks of {size} bytes")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ", serial {serial}")?;
        }
        let mut before = ", at most ";
        let limits = [
            self.iops.map(|iops| format!("{iops} commands")),
            self.bandwidth.map(|bytes| Bytes(bytes).to_string()),
        ];
        for limit in limits.into_iter().flatten() {
            write!(f, "{before}{limit}")?;
            before = " and ";
        }
        if before == " and " {
            f.write_str(" a second")?;
        }
        Ok(())
    }
}

impl Loader<'_> {
    /// `None` if anything is wrong; each mistake is reported.
    pub(super) fn disk_options(&mut self, section: &Section<'_, '_>) -> Option<Options> {
        let before = self.report.errors();
        let options = Options {
            cache: self.cache(section),
            block_size: self.block_size(section),
            serial: self.serial(section),
            iops: section.integer("iops", IOPS, self.report).map(|iops| iops.value),
            bandwidth: self.bandwidth(section),
            burst: section.integer("burst", BURST, self.report).map(|burst| burst.value),
        };
        if options.burst.is_some() && !section.has("iops") && !section.has("bandwidth") {
            let span = section.integer("burst", BURST, self.report).map(|burst| burst.span);
            let fix = "add iops = 500 or bandwidth = \"100MiB\", or remove it";
            self.report.error(span, "`burst` means nothing without a limit", fix);
        }
        (self.report.errors() == before).then_some(options)
    }

    fn cache(&mut self, section: &Section<'_, '_>) -> Cache {
        let Some(cache) = section.string("cache", self.report) else { return Cache::default() };
        let found = Cache::ALL.iter().find(|(name, _)| *name == cache.value);
        found.map_or_else(
            || {
                let message = format!("`cache` cannot be \"{}\"", cache.value);
                let fix = "write \"writeback\", \"writethrough\" or \"none\" (past the host's page cache)";
                self.report.error(cache.span, message, fix);
                Cache::default()
            },
            |(_, cache)| *cache,
        )
    }

    fn block_size(&mut self, section: &Section<'_, '_>) -> Option<u32> {
        let size = section.integer("block_size", 0..=u64::MAX, self.report)?;
        match size.value {
            512 => Some(512),
            4096 => Some(4096),
            other => {
                let message = format!("`block_size` cannot be {other}");
                self.report.error(size.span, message, "write 512 or 4096");
                None
            }
        }
    }

    fn serial(&mut self, section: &Section<'_, '_>) -> Option<String> {
        let serial = section.string("serial", self.report)?;
        let text = serial.value;
        let problem = if text.is_empty() {
            "is empty".to_owned()
        } else if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
            format!("may not contain {bad:?}")
        } else if text.len() > LONGEST_SERIAL {
            format!("is longer than {LONGEST_SERIAL} characters")
        } else {
            return Some(text);
        };
        let fix = "use ASCII letters, digits and signs, no spaces; or remove it, and it is made of the device's name";
        self.report.error(serial.span, format!("`serial` {problem}"), fix);
        None
    }

    fn bandwidth(&mut self, section: &Section<'_, '_>) -> Option<u64> {
        let bytes = section.size("bandwidth", self.report)?;
        if bytes.value >= LEAST_BANDWIDTH {
            return Some(bytes.value);
        }
        let fix = match bytes.value {
            0 => "remove it: a disk without `bandwidth` has no limit".to_owned(),
            few @ 1..10_000 => format!("a plain number is bytes; did you mean \"{few}MiB\"?"),
            _ => format!("write at least \"{}KiB\"", LEAST_BANDWIDTH / size::KIB),
        };
        let message = format!("{} a second are too few for a disk to be used", Bytes(bytes.value));
        self.report.error(bytes.span, message, fix);
        None
    }
}
