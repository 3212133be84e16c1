//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use thiserror::Error;

/// A Bulkhead SCSI controller: serves raw disk images and block devices to one guest
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What every device process takes.
    #[command(flatten)]
    pub common: vsp::Common,

    /// A disk: `path=FILE[,lun=N][,ro][,serial=TEXT]`; a comma in a value is written twice
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<DiskSpec>,

    /// Die of a command with this operation code (hexadecimal), as a bug would have it; debug builds only
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// File or block device.
    pub path: PathBuf,
    /// Logical unit number; `None`: its position on the command line.
    pub lun: Option<u8>,
    /// The guest may not write.
    pub read_only: bool,
    /// Serial number that the guest sees; `None`: made from the device's name and the LUN.
    pub serial: Option<String>,
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
    /// Something else.
    #[error("unknown option `{0}`: use path=, lun=, ro, serial=")]
    Unknown(String),
}

/// Longest serial number in characters.
pub const MAX_SERIAL: usize = 32;
/// Highest LUN: storvsc scans 255 of them, from 0.
pub const MAX_LUN: u8 = 254;

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<DiskSpec, DiskSpecError> {
        let mut path = None;
        let mut spec = DiskSpec { path: PathBuf::new(), lun: None, read_only: false, serial: None };
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
                None if option == "ro" => spec.read_only = true,
                _ => return Err(DiskSpecError::Unknown(option)),
            }
        }
        spec.path = path.ok_or(DiskSpecError::NoPath)?;
        Ok(spec)
    }
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
        assert_eq!((spec.lun, spec.read_only, spec.serial), (None, false, None));
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
    }
}
