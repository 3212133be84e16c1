//! The command line.

use std::str::FromStr;

use clap::{Parser, ValueEnum};
use thiserror::Error;
use vsp::policies::{self, Policy};

use crate::backend::BackendArgs;

/// A Bulkhead NIC: serves a TAP, a macvtap or passt to one guest, of Bulkhead's own core or, with --vhost-user, of QEMU, Cloud Hypervisor or
/// crosvm
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What every device process takes.
    #[command(flatten)]
    pub common: vsp::Common,

    /// Where front ends of the other face connect.
    #[command(flatten)]
    pub vhost_user: vhost_face::Listen,

    /// What is behind the NIC.
    #[command(flatten)]
    pub backend: BackendArgs,

    /// The NIC's address: six bytes in hexadecimal, with colons
    #[arg(long, value_name = "ADDRESS")]
    pub mac: Mac,

    /// Longest packet without its Ethernet header, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..=9000))]
    pub mtu: u16,

    /// `confined`: the process sees its rings and the two network buffers. `full`: it sees all of the guest's memory. With --vhost-user it sees
    /// what the front end gives it, which is all
    #[arg(long, value_name = "HOW", default_value = "confined")]
    pub memory: Memory,

    /// Drop what the guest sends with another address than the NIC's
    #[arg(long)]
    pub antispoof: bool,

    /// State of the link
    #[arg(long, value_name = "STATE", default_value = "up")]
    pub link: Link,
}

/// What of the guest's memory the process sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Memory {
    /// What it needs. The guest copies what it sends, as long as there is room in its buffer.
    Confined,
    /// All. On a TAP the guest does not copy large frames.
    Full,
}

/// State of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// Connected.
    Up,
    /// Not connected.
    Down,
}

/// The same as data.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Name of the device; the guest is told.
    pub device: String,
    /// Address.
    pub mac: Mac,
    /// Longest packet.
    pub mtu: u16,
    /// What is seen of the guest's memory.
    pub memory: Memory,
    /// The guest may not send with other addresses.
    pub antispoof: bool,
    /// State of the link.
    pub link_up: bool,
    /// Most channels that the guest may have, the primary one included.
    pub queues: u16,
}

impl Args {
    /// What the process may do once it serves: that depends on what is behind it, and on who is before it.
    pub fn policy(&self) -> Policy {
        match (self.backend.is_stream(), self.vhost_user.is_wanted()) {
            (false, false) => policies::VSP_NET,
            (true, false) => policies::VSP_NET_STREAM,
            (false, true) => policies::VSP_NET_VHOST,
            (true, true) => policies::VSP_NET_STREAM_VHOST,
        }
    }

    /// What of it is about the NIC.
    pub fn setting(&self) -> Setting {
        Setting {
            device: self.common.device.clone(),
            mac: self.mac,
            mtu: self.mtu,
            memory: self.memory,
            antispoof: self.antispoof,
            link_up: self.link == Link::Up,
            queues: self.backend.queues(),
        }
    }
}

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// A text that is no such address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MacError {
    /// Not six bytes.
    #[error("`{0}` is no address: write six bytes in hexadecimal, as in 02:00:5e:10:00:01")]
    Form(String),
    /// The address of a group, or of nobody.
    #[error("`{0}` is not the address of one station: the first byte has to be even, and not all can be 0")]
    NotOne(String),
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(form)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() || text.contains('+') {
            return Err(form());
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(MacError::NotOne(text.to_owned()));
        }
        Ok(Mac(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisors_line_parses() {
        let line = "vsp-net --core-fd 3 --notify-fd 4 --device net0 --mac 02:00:5E:10:00:01 --mtu 9000 \
                    --memory full --antispoof --link down --tap-fd 5 --tap-fd 6";
        let setting = Args::try_parse_from(line.split_whitespace()).unwrap().setting();
        assert_eq!(setting.mac, Mac([2, 0, 0x5e, 0x10, 0, 1]));
        assert_eq!((setting.mtu, setting.memory), (9000, Memory::Full));
        assert!(setting.antispoof && !setting.link_up);
        let line = "vsp-net --device net0 --mac 02:00:5e:10:00:01 --stream-fd 5";
        let setting = Args::try_parse_from(line.split_whitespace()).unwrap().setting();
        assert_eq!((setting.mtu, setting.memory), (1500, Memory::Confined));
        assert!(!setting.antispoof && setting.link_up);
    }

    #[test]
    fn a_front_end_takes_the_place_of_the_core() {
        let line = |line: &str| {
            let line = format!("vsp-net --mac 02:00:5e:10:00:01 --stream-fd 5 {line}");
            Args::try_parse_from(line.split_whitespace())
        };
        let args = line("--vhost-user /run/net.sock").unwrap();
        assert!(args.vhost_user.is_wanted());
        assert_eq!(args.policy().name, "vsp-net-stream-vhost");
        assert!(line("--vhost-user-fd 3").unwrap().vhost_user.is_wanted());
        let args = line("--device net0 --core /run/core.sock").unwrap();
        assert!(!args.vhost_user.is_wanted());
        assert_eq!(args.policy().name, "vsp-net-stream");
        assert!(line("--vhost-user /run/net.sock --core /run/core.sock").is_err());
        let tap = "vsp-net --mac 02:00:5e:10:00:01 --tap tap0 --queues 4 --vhost-user /run/net.sock";
        let args = Args::try_parse_from(tap.split_whitespace()).unwrap();
        assert_eq!((args.setting().queues, args.policy().name), (4, "vsp-net-vhost"));
    }

    #[test]
    fn mistakes_are_named() {
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "02:00:5e:10:00:1",
            "02:00:5e:10:00:+1",
            "x2:00:5e:10:00:01",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Form(text.to_owned())), "{text}");
        }
        for text in ["01:00:5e:10:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::NotOne(text.to_owned())), "{text}");
        }
        for line in ["--mtu 67", "--mtu 9001", "--memory some", "--link sideways"] {
            let line = format!("vsp-net --device n --mac 02:00:5e:10:00:01 --stream-fd 5 {line}");
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
