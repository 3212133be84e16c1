//! Amounts of traffic as people write them.

use std::fmt;
use std::str::FromStr;

/// Bits a second and their thousandfolds; and bytes a second in powers of two, as for disks.
const UNITS: [(&str, u64, u64); 7] = [
    ("gbit", 1_000_000_000, 8),
    ("mbit", 1_000_000, 8),
    ("kbit", 1000, 8),
    ("bit", 1, 8),
    ("gib", 1 << 30, 1),
    ("mib", 1 << 20, 1),
    ("kib", 1 << 10, 1),
];
/// The least that a packet scheduler can be told of and a guest can use.
const LEAST: u64 = 1000;
/// The most: what 32 bits of bytes a second can say to the kernel.
const MOST: u64 = u32::MAX as u64;

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim().trim_end_matches("/s").to_ascii_lowercase();
        let found = UNITS.iter().find(|(name, ..)| *name == unit);
        let (Ok(number), Some((_, factor, divisor))) = (number.parse::<f64>(), found) else {
            return Err(format!("`{text}` is no rate: write 100Mbit, 1Gbit or 12.5MiB"));
        };
        // No digit that matters is lost: rates are round numbers.
        let bytes = (number * *factor as f64 / *divisor as f64).round() as u64;
        if (LEAST..=MOST).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(format!("{text} is out of range: use {} to {}", Rate(LEAST), Rate(MOST)))
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.saturating_mul(8);
        let (size, name) = match bits {
            1_000_000_000.. => (1_000_000_000, "Gbit"),
            1_000_000.. => (1_000_000, "Mbit"),
            1000.. => (1000, "kbit"),
            _ => (1, "bit"),
        };
        let text = format!("{:.2}", bits as f64 / size as f64);
        write!(f, "{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("100Mbit", 12_500_000, "100Mbit"),
            ("1gbit/s", 125_000_000, "1Gbit"),
            ("2.5Gbit", 312_500_000, "2.5Gbit"),
            ("1MiB", 1 << 20, "8.39Mbit"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.0, rate.to_string().as_str()), (bytes, shown), "{text}");
        }
        for text in ["", "100", "Mbit", "100Mb", "1bit", "100Gbit", "-1Mbit"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
