//! The command line.

use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A Bulkhead SCSI controller, or with --vhost-user a virtio block device: serves raw disk images and block devices to one guest
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What every device process takes.
    #[command(flatten)]
    pub common: vsp::Common,

    /// The other face.
    #[command(flatten)]
    pub listen: vhost_face::Listen,

    /// A disk: `path=FILE` and, after commas, any of `lun=N`, `ro`, `serial=TEXT`, `cache=writeback|writethrough|none`,
    /// `block_size=512|4096`, `iops=N`, `bandwidth=BYTES` (a second; with KiB, MiB, GiB or TiB if you like) and `burst=SECONDS`;
    /// a comma in a value is written twice
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<DiskSpec>,

    /// Open the only disk for another process of this device, give it to the inherited socket FD, and end
    #[arg(long, value_name = "FD", hide = true)]
    pub open_for: Option<RawFd>,

    /// Die of a command with this operation code, or of a request of this kind (hexadecimal), as a bug would have it; debug builds only
    #[arg(long, value_name = "OPCODE", hide = true, value_parser = hexadecimal)]
    pub crash_on_opcode: Option<u8>,
}

fn hexadecimal(text: &str) -> Result<u8, String> {
    if !cfg!(debug_assertions) {
        return Err("it is for debug builds; this is a release build".into());
    }
    u8::from_str_radix(text, 16).map_err(|error| error.to_string())
}

/// One `--disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskSpec {
    /// File or block device.
    pub path: PathBuf,
    /// Logical unit number; `None`: its position on the command line.
    pub lun: Option<u8>,
    /// The guest may not write.
    pub read_only: bool,
    /// Serial number that the guest sees; `None`: made from the device's name and the LUN.
    pub serial: Option<String>,
    /// What lies between the guest and the disk.
    pub cache: Cache,
    /// Bytes of a logical block, 512 or 4096; `None`: 512 of a file, its own of a block device.
    pub block_size: Option<u32>,
    /// How much the guest may ask of it.
    pub limits: Limits,
}

/// What lies between the guest and the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// The host's page cache; what the guest has flushed is safe.
    #[default]
    WriteBack,
    /// The host's page cache for reading; what is written is safe at once, and the guest sees no write cache.
    WriteThrough,
    /// Nothing of the host's (`O_DIRECT`); what the guest has flushed is safe.
    None,
}

impl Cache {
    /// All of them with their names.
    const NAMES: [(&'static str, Cache); 3] =
        [("writeback", Cache::WriteBack), ("writethrough", Cache::WriteThrough), ("none", Cache::None)];
}

/// How much a guest may ask of a disk; what is `None` is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Commands a second.
    pub iops: Option<NonZeroU64>,
    /// Bytes a second.
    pub bandwidth: Option<NonZeroU64>,
    /// For how many seconds what is not used may be saved up, to be used at once later.
    pub burst: Option<NonZeroU32>,
}

/// A `--disk` that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiskSpecError {
    /// No file.
    #[error("no path: write path=FILE")]
    NoPath,
    /// A LUN that is no number, or too large.
    #[error("`{0}` is no LUN: use 0 to 254")]
    Lun(String),
    /// A serial number that does not fit.
    #[error("a serial number has 1 to 32 printable ASCII characters without spaces")]
    Serial,
    /// A cache mode that there is not.
    #[error("`{0}` is no way to cache: use writeback, writethrough or none")]
    Cache(String),
    /// Blocks of an odd size.
    #[error("`{0}` is no block size: use 512 or 4096")]
    BlockSize(String),
    /// A limit that is no number, or 0.
    #[error("`{0}={1}` is no limit: use a whole number from 1 on; bandwidth takes KiB, MiB, GiB and TiB")]
    Limit(&'static str, String),
    /// A burst that is no number, or too long.
    #[error("`{0}` is no burst: use 1 to 3600 seconds, with iops= or bandwidth=")]
    Burst(String),
    /// Something else.
    #[error(
        "unknown option `{0}`: use path=, lun=, ro, serial=, cache=, block_size=, iops=, bandwidth=, burst="
    )]
    Unknown(String),
}

/// Longest serial number in characters.
pub const MAX_SERIAL: usize = 32;
/// Highest LUN: storvsc scans 255 of them, from 0.
pub const MAX_LUN: u8 = 254;
/// Longest burst in seconds: an hour's worth of a limit at once is none.
pub const MAX_BURST: u32 = 3600;

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<DiskSpec, DiskSpecError> {
        let mut path = None;
        let mut spec = DiskSpec::default();
        for option in split(text) {
            match option.split_once('=') {
                Some(("path", value)) if !value.is_empty() => path = Some(PathBuf::from(value)),
                Some(("path", _)) => return Err(DiskSpecError::NoPath),
                Some(("lun", value)) => match value.parse() {
                    Ok(lun) if lun <= MAX_LUN => spec.lun = Some(lun),
                    _ => return Err(DiskSpecError::Lun(value.to_owned())),
                },
                Some(("serial", value)) => {
                    let fits = (1..=MAX_SERIAL).contains(&value.len());
                    if !fits || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                        return Err(DiskSpecError::Serial);
                    }
                    spec.serial = Some(value.to_owned());
                }
                Some(("cache", value)) => {
                    let found = Cache::NAMES.iter().find(|(name, _)| *name == value);
                    spec.cache = found.ok_or_else(|| DiskSpecError::Cache(value.to_owned()))?.1;
                }
                Some(("block_size", value)) => {
                    let size = value.parse().ok().filter(|size| matches!(size, 512 | 4096));
                    spec.block_size = Some(size.ok_or_else(|| DiskSpecError::BlockSize(value.to_owned()))?);
                }
                Some(("iops", value)) => {
                    let iops = value.parse().map_err(|_| DiskSpecError::Limit("iops", value.to_owned()))?;
                    spec.limits.iops = Some(iops);
                }
                Some(("bandwidth", value)) => {
                    let bytes =
                        bytes(value).ok_or_else(|| DiskSpecError::Limit("bandwidth", value.to_owned()))?;
                    spec.limits.bandwidth = Some(bytes);
                }
                Some(("burst", value)) => {
                    let burst = value.parse().ok().filter(|burst: &NonZeroU32| burst.get() <= MAX_BURST);
                    spec.limits.burst = Some(burst.ok_or_else(|| DiskSpecError::Burst(value.to_owned()))?);
                }
                None if option == "ro" => spec.read_only = true,
                _ => return Err(DiskSpecError::Unknown(option)),
            }
        }
        let Limits { iops, bandwidth, burst } = spec.limits;
        if let (None, None, Some(burst)) = (iops, bandwidth, burst) {
            return Err(DiskSpecError::Burst(burst.to_string()));
        }
        spec.path = path.ok_or(DiskSpecError::NoPath)?;
        Ok(spec)
    }
}

/// An amount of bytes, not 0: a number, perhaps with a unit.
fn bytes(text: &str) -> Option<NonZeroU64> {
    const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let unit = UNITS.iter().find_map(|(name, shift)| Some((text.strip_suffix(name)?, *shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let number: u64 = number.trim_end().parse().ok()?;
    NonZeroU64::new(number.checked_mul(1 << shift)?)
}

/// Splits at single commas; a double one is a comma.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        match parts.last_mut() {
            Some(part) if c != ',' || doubled => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_understood() {
        let spec: DiskSpec = "lun=3,path=/a b,,c.img,ro,serial=X-1".parse().unwrap();
        assert_eq!(spec.path, PathBuf::from("/a b,c.img"));
        assert_eq!((spec.lun, spec.read_only, spec.serial.as_deref()), (Some(3), true, Some("X-1")));
        let spec: DiskSpec = "path=x".parse().unwrap();
        assert_eq!(spec, DiskSpec { path: "x".into(), ..DiskSpec::default() });
    }

    #[test]
    fn caches_blocks_and_limits_are_understood() {
        let spec: DiskSpec =
            "path=x,cache=none,block_size=4096,iops=500,bandwidth=100MiB,burst=2".parse().unwrap();
        assert_eq!((spec.cache, spec.block_size), (Cache::None, Some(4096)));
        let Limits { iops, bandwidth, burst } = spec.limits;
        assert_eq!((iops, bandwidth), (NonZeroU64::new(500), NonZeroU64::new(100 << 20)));
        assert_eq!(burst, NonZeroU32::new(2));
        let spec: DiskSpec = "path=x,cache=writethrough,bandwidth=7".parse().unwrap();
        assert_eq!((spec.cache, spec.limits.bandwidth), (Cache::WriteThrough, NonZeroU64::new(7)));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<DiskSpec>().unwrap_err();
        assert_eq!(error(""), DiskSpecError::Unknown(String::new()));
        assert_eq!(error("ro"), DiskSpecError::NoPath);
        assert_eq!(error("path="), DiskSpecError::NoPath);
        assert_eq!(error("path=x,lun=255"), DiskSpecError::Lun("255".into()));
        assert_eq!(error("path=x,rw"), DiskSpecError::Unknown("rw".into()));
        assert_eq!(error("path=x,serial="), DiskSpecError::Serial);
        assert_eq!(error("path=x,serial=a b"), DiskSpecError::Serial);
        assert_eq!(error("path=x,cache=unsafe"), DiskSpecError::Cache("unsafe".into()));
        assert_eq!(error("path=x,block_size=1024"), DiskSpecError::BlockSize("1024".into()));
        for (text, option, value) in [
            ("path=x,iops=0", "iops", "0"),
            ("path=x,iops=1k", "iops", "1k"),
            ("path=x,bandwidth=0MiB", "bandwidth", "0MiB"),
            ("path=x,bandwidth=1MB", "bandwidth", "1MB"),
            ("path=x,bandwidth=17179869184GiB", "bandwidth", "17179869184GiB"),
        ] {
            assert_eq!(error(text), DiskSpecError::Limit(option, value.into()));
        }
        assert_eq!(error("path=x,iops=1,burst=3601"), DiskSpecError::Burst("3601".into()));
        assert_eq!(error("path=x,burst=2"), DiskSpecError::Burst("2".into()), "a burst of what?");
    }
}
