//! What a PCI function is called: `0000:03:00.0`.

use std::fmt;
use std::str::FromStr;

/// Domain, bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The domain (segment). Linux has numbers above 16 bits for those that it makes up itself.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus, to 31.
    pub device: u8,
    /// The function of the device, to 7.
    pub function: u8,
}

impl Address {
    /// Bus, device and function as PCI writes them in 16 bits.
    pub fn bdf(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        f.pad(&format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
    }
}

/// A text that is no such address; says how one looks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no PCI address: write it as `bulkhead pci ls` does, 0000:03:00.0")]
pub struct NoAddress(pub String);

impl FromStr for Address {
    type Err = NoAddress;

    /// With the domain or, as `lspci` does it, without one that is 0.
    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let bad = || NoAddress(text.to_owned());
        let number = |part: &str, lengths: std::ops::RangeInclusive<usize>, most: u32| {
            let is_hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let value = u32::from_str_radix(part, 16).ok().filter(|value| *value <= most);
            value.filter(|_| is_hex && lengths.contains(&part.len())).ok_or_else(bad)
        };
        let (rest, function) = text.rsplit_once('.').ok_or_else(bad)?;
        let (rest, device) = rest.rsplit_once(':').ok_or_else(bad)?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
        let byte = |value: u32| u8::try_from(value).map_err(|_| bad());
        Ok(Self {
            domain: number(domain, 4..=8, u32::MAX)?,
            bus: byte(number(bus, 2..=2, 0xff)?)?,
            device: byte(number(device, 2..=2, 31)?)?,
            function: byte(number(function, 1..=1, 7)?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        for text in ["0000:00:00.0", "0000:03:1f.7", "10000:e1:00.0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let short: Address = "3a:00.1".parse().unwrap();
        assert_eq!((short.to_string().as_str(), short.bdf()), ("0000:3a:00.1", 0x3a01));
    }

    #[test]
    fn what_is_no_address_is_said_to_be_none() {
        for text in [
            "",
            "3:00.0",
            "00:20.0",
            "00:00.8",
            "00:00",
            "0000:00:00.0 ",
            "../00:00.0",
            "000:00:00.0",
            "+0:00.0",
        ] {
            assert_eq!(text.parse::<Address>(), Err(NoAddress(text.to_owned())), "{text}");
        }
    }
}
