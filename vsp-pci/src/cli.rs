//! The command line.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use thiserror::Error;
use vsp::{Program, policies};

use crate::backend::Backend;
use crate::device::{OpenError, Origin, Pci};
use crate::vfio;

const PROGRAM: Program = Program { name: "vsp-pci", policy: policies::VSP_PCI };

/// A Bulkhead PCI device: passes one function of the host's through to a guest
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What every device process takes.
    #[command(flatten)]
    pub common: vsp::Common,

    /// The function, bound to vfio-pci, as in 0000:03:00.0
    #[arg(long, value_name = "ADDRESS")]
    pub address: Address,

    /// Its IOMMU group
    #[arg(long, value_name = "NUMBER")]
    pub group: u32,
}

/// Where a function is on the host: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no address of a PCI function: write it as in 0000:03:00.0")]
pub struct NoAddress(String);

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Address, NoAddress> {
        let number = |text: &str, digits: std::ops::RangeInclusive<usize>| {
            let is_one = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_one.then(|| u32::from_str_radix(text, 16).ok())?
        };
        let parsed = || {
            let (place, function) = text.split_once('.')?;
            let [domain, bus, device] = place.splitn(3, ':').collect::<Vec<_>>().try_into().ok()?;
            Some(Address {
                domain: number(domain, 4..=8)?,
                bus: number(bus, 2..=2)?.try_into().ok()?,
                device: number(device, 2..=2)?.try_into().ok().filter(|device| *device < 32)?,
                function: number(function, 1..=1)?.try_into().ok().filter(|function| *function < 8)?,
            })
        };
        parsed().ok_or_else(|| NoAddress(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl Address {
    /// A number that tells functions of a host apart: the name of the slot in the guest.
    pub fn serial(self) -> u32 {
        self.domain << 16 | u32::from(self.bus) << 8 | u32::from(self.device) << 3 | u32::from(self.function)
    }
}

/// Serves until the core is gone.
pub fn run(args: &Args) -> ExitCode {
    vsp::serve(PROGRAM, &args.common, || open(args))
}

fn open(args: &Args) -> Result<Pci, OpenError> {
    let adopter = Box::new(vfio::Adopter);
    if args.common.policy_test.is_some() {
        // Nothing is opened to try what is forbidden.
        return Pci::open(origin(args, adopter), None);
    }
    let address = args.address.to_string();
    let opening = vfio::open(&address, args.group).map_err(|error| OpenError::Backend(error.to_string()))?;
    let found = match opening {
        vfio::Opening::Open(function) => Some(function as Box<dyn Backend>),
        vfio::Opening::Busy => None,
    };
    Pci::open(origin(args, adopter), found)
}

fn origin(args: &Args, adopter: Box<dyn crate::backend::Adopt>) -> Origin {
    Origin { name: args.address.to_string(), serial: args.address.serial(), adopter }
}

/// The same with a function that is none, for tests.
#[cfg(feature = "mock")]
#[derive(Debug, Parser)]
#[command(version)]
pub struct MockArgs {
    /// What the real one takes.
    #[command(flatten)]
    pub args: Args,

    /// Where the hardware listens
    #[arg(long, value_name = "PATH")]
    pub mock: std::path::PathBuf,
}

/// Serves a function that is none until the core is gone, in the real one's compartment.
#[cfg(feature = "mock")]
pub fn run_mock(args: &MockArgs) -> ExitCode {
    vsp::serve(PROGRAM, &args.args.common, || {
        let found = crate::mock::open(&args.mock).map_err(|error| OpenError::Backend(error.to_string()))?;
        Pci::open(origin(&args.args, Box::new(crate::mock::Adopter)), found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisors_line_parses() {
        let line = "vsp-pci --core-fd 3 --notify-fd 4 --device nic --address 0000:03:1f.7 --group 7";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        assert_eq!((args.address.to_string(), args.group), ("0000:03:1f.7".to_owned(), 7));
        assert_eq!(args.address.serial(), 0x3ff);
        assert!(Args::try_parse_from(["vsp-pci", "--device", "d", "--group", "1"]).is_err());
    }

    #[test]
    fn addresses_are_written_in_full() {
        assert_eq!("10000:E1:00.0".parse::<Address>().unwrap().to_string(), "10000:e1:00.0");
        for text in [
            "",
            "03:00.0",
            "0000:03:00",
            "0000:03:00.8",
            "0000:03:20.0",
            "0000:3:00.0",
            "0000:03:00.0 ",
            "+000:03:00.0",
        ] {
            assert_eq!(text.parse::<Address>(), Err(NoAddress(text.to_owned())), "{text}");
        }
    }
}
