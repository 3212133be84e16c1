//! The MC146818 clock, read-only: Linux sets its time from it once, at boot.

use std::time::{SystemTime, UNIX_EPOCH};

/// The clock: it shows the host's time in UTC, 24-hour BCD.
#[derive(Debug, Default)]
pub struct Rtc {
    index: u8,
}

/// Register numbers of the data sheet.
mod register {
    pub const SECONDS: u8 = 0x00;
    pub const MINUTES: u8 = 0x02;
    pub const HOURS: u8 = 0x04;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const STATUS_A: u8 = 0x0a;
    pub const STATUS_B: u8 = 0x0b;
    pub const STATUS_D: u8 = 0x0d;
    /// Where PCs keep the century (the FADT names it too).
    pub const CENTURY: u8 = 0x32;
}

/// 32.768 kHz base, no update under way; a clock that never updates under the reader's eyes is one
/// that Linux waits for, so the update flag is shown for part of every second.
const STATUS_A: u8 = 0x26;
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// 24-hour mode, BCD.
const STATUS_B: u8 = 0x02;
/// Battery good.
const STATUS_D: u8 = 0x80;

impl Rtc {
    /// Port 0x70: chooses a register; the top bit masks NMIs and is not ours.
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// Port 0x71.
    pub fn read(&self) -> u8 {
        self.read_at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn read_at(&self, since_epoch: std::time::Duration) -> u8 {
        let seconds = since_epoch.as_secs();
        let days = seconds / 86_400;
        let (year, month, day) = civil(days);
        match self.index {
            register::SECONDS => bcd(seconds % 60),
            register::MINUTES => bcd(seconds / 60 % 60),
            register::HOURS => bcd(seconds / 3600 % 24),
            register::WEEKDAY => bcd((days + 4) % 7 + 1),
            register::DAY => bcd(day),
            register::MONTH => bcd(month),
            register::YEAR => bcd(year % 100),
            register::CENTURY => bcd(year / 100),
            register::STATUS_A if since_epoch.subsec_millis() >= 998 => STATUS_A | UPDATE_IN_PROGRESS,
            register::STATUS_A => STATUS_A,
            register::STATUS_B => STATUS_B,
            register::STATUS_D => STATUS_D,
            _ => 0,
        }
    }
}

fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

/// Year, month, day of a day number since 1970-01-01, by counting eras of 400 years from 0000-03-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let from_march = days + 719_468;
    let (era, of_era) = (from_march / 146_097, from_march % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_a_known_moment() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let at = std::time::Duration::from_secs(1_709_251_198);
        let show = |index| Rtc { index }.read_at(at);
        let all = [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00, 0x06].map(show);
        assert_eq!(all, [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 0x05]);
    }

    #[test]
    fn civil_at_the_edges() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(365 + 365 + 31 + 28), (1972, 2, 29));
        assert_eq!(civil(10_957), (2000, 1, 1));
    }
}
