//! Wall-clock time as text, in UTC. Local time would need files that a closed compartment cannot open.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in UTC, as a calendar and a clock show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Utc {
    year: i64,
    month: u32,
    day: u32,
    hour: u64,
    minute: u64,
    second: u64,
    micros: u32,
}

impl From<SystemTime> for Utc {
    fn from(time: SystemTime) -> Self {
        // A clock before 1970 is broken; 1970 says so as well as anything.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = date(days);
        Self {
            year,
            month,
            day,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
            micros: since.subsec_micros(),
        }
    }
}

impl Utc {
    /// `12:34:56.789`
    pub(crate) fn time_of_day(self) -> String {
        let mut text = String::with_capacity(12);
        // Writing to a `String` cannot fail.
        let _ = self.write_time_of_day(&mut text);
        text
    }

    /// The same, into what is there.
    pub(crate) fn write_time_of_day(self, out: &mut impl Write) -> fmt::Result {
        write!(out, "{:02}:{:02}:{:02}.{:03}", self.hour, self.minute, self.second, self.micros / 1000)
    }

    /// RFC 3339: `2026-11-21T12:34:56.789012Z`
    pub(crate) fn rfc3339(self) -> String {
        let mut text = String::with_capacity(27);
        let _ = self.write_rfc3339(&mut text);
        text
    }

    /// The same, into what is there.
    pub(crate) fn write_rfc3339(self, out: &mut impl Write) -> fmt::Result {
        let Self { year, month, day, hour, minute, second, micros } = self;
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// The proleptic Gregorian date of a day counted from 1970-01-01.
///
/// Counts from 1 March 0000, so that the leap day is the last day of a year: then a month's first day is
/// a linear function of the month.
fn date(days_since_1970: u64) -> (i64, u32, u32) {
    const DAYS_IN_400_YEARS: i64 = 146_097;
    let days = i64::try_from(days_since_1970).unwrap_or(0) + 719_468;
    let era = days.div_euclid(DAYS_IN_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_IN_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, u32::try_from(month).unwrap_or(0), u32::try_from(day).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> String {
        Utc::from(UNIX_EPOCH + Duration::from_secs(seconds)).rfc3339()
    }

    #[test]
    fn known_moments() {
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000000Z");
        assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00.000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn time_of_day_has_milliseconds() {
        let time = UNIX_EPOCH + Duration::from_millis(86_400_000 + 3_723_045);
        assert_eq!(Utc::from(time).time_of_day(), "01:02:03.045");
    }
}
