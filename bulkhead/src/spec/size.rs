//! Amounts of memory as people write them.

use std::fmt;

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;

/// Units that are understood, largest first.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Why a text is not a size; displays as the rest of a sentence, with the remedy beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSize {
    /// What is wrong.
    pub why: String,
    /// What to write instead.
    pub fix: String,
}

/// Bytes in a text such as `"512MiB"`, `"2 GiB"` or `"1073741824"`.
pub fn parse(text: &str) -> Result<u64, BadSize> {
    const EXAMPLE: &str = "write a whole number and a unit, such as \"512MiB\" or \"2GiB\"";
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let bad = |why: String, fix: &str| BadSize { why, fix: fix.to_owned() };
    if number.is_empty() {
        return Err(bad(format!("\"{text}\" does not start with a number"), EXAMPLE));
    }
    let number: u64 = number.parse().map_err(|_| bad(format!("\"{text}\" is too large"), EXAMPLE))?;
    if unit.is_empty() {
        return Ok(number);
    }
    if let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) {
        let bytes = number.checked_mul(1 << shift);
        return bytes.ok_or_else(|| bad(format!("\"{text}\" is too large"), EXAMPLE));
    }
    let initial = unit.chars().next().map(|c| c.to_ascii_uppercase());
    let meant = UNITS.iter().find(|(name, _)| name.chars().next() == initial);
    Err(match meant {
        Some((name, _)) if unit.len() <= 3 => {
            bad(format!("`{unit}` is not a unit"), &format!("did you mean \"{number}{name}\"?"))
        }
        _ if unit.starts_with('.') => bad(format!("\"{text}\" is not a whole number"), EXAMPLE),
        _ => bad(format!("`{unit}` is not a unit"), EXAMPLE),
    })
}

/// Bytes for people: the largest unit that is exact, else one decimal of the largest that fits.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (name, shift) in UNITS {
            if bytes >= 1 << shift {
                let tenths = (u128::from(bytes) * 10) >> shift;
                return if bytes.trailing_zeros() >= shift || tenths % 10 == 0 {
                    write!(f, "{} {name}", tenths / 10)
                } else {
                    write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_people_write() {
        assert_eq!(parse("512MiB"), Ok(512 * MIB));
        assert_eq!(parse("2 GiB"), Ok(2048 * MIB));
        assert_eq!(parse("64KiB"), Ok(65_536));
        assert_eq!(parse("1TiB"), Ok(1 << 40));
        assert_eq!(parse("4096"), Ok(4096));
    }

    #[test]
    fn sizes_that_are_not_say_what_was_meant() {
        assert_eq!(parse("2G").unwrap_err().fix, "did you mean \"2GiB\"?");
        assert_eq!(parse("2gb").unwrap_err().fix, "did you mean \"2GiB\"?");
        assert_eq!(parse("512M").unwrap_err().fix, "did you mean \"512MiB\"?");
        assert_eq!(parse("1.5GiB").unwrap_err().why, "\"1.5GiB\" is not a whole number");
        assert_eq!(parse("lots").unwrap_err().why, "\"lots\" does not start with a number");
        assert_eq!(parse("").unwrap_err().why, "\"\" does not start with a number");
        assert_eq!(parse("9 parsecs").unwrap_err().why, "`parsecs` is not a unit");
        assert_eq!(parse("99999999999TiB").unwrap_err().why, "\"99999999999TiB\" is too large");
        assert_eq!(
            parse("99999999999999999999999").unwrap_err().why,
            "\"99999999999999999999999\" is too large"
        );
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(Bytes(2 << 30).to_string(), "2 GiB");
        assert_eq!(Bytes(1536 * MIB).to_string(), "1.5 GiB");
        assert_eq!(Bytes(512).to_string(), "512 bytes");
        assert_eq!(Bytes(1025).to_string(), "1 KiB");
    }
}
