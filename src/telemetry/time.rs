//! Points in time as logs show them, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, split as the calendar has it; UTC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Utc {
    pub(crate) year: i64,
    /// 1 to 12.
    pub(crate) month: u8,
    /// 1 to 31.
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
    pub(crate) nanos: u32,
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Utc {
    /// Splits a system time; one before 1970 becomes 1970.
    pub(crate) fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (days, secs) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Days to a date in the proleptic Gregorian calendar, counted in eras of 400 years (146,097
        // days) from 1 March of year 0, so that the leap day is the last of its year.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self {
            year: i64::try_from(year).unwrap_or(i64::MAX),
            month: month as u8,
            day: day as u8,
            hour: (secs / 3_600) as u8,
            minute: (secs / 60 % 60) as u8,
            second: (secs % 60) as u8,
            nanos: since.subsec_nanos(),
        }
    }

    /// `2006-01-02T15:04:05.000000000Z` (RFC 3339).
    pub(crate) fn rfc3339_nanos(&self) -> String {
        format!("{}.{:09}Z", self.to_second(), self.nanos)
    }

    /// `2006-01-02T15:04:05.000Z` (RFC 3339).
    pub(crate) fn rfc3339_millis(&self) -> String {
        format!("{}.{:03}Z", self.to_second(), self.nanos / 1_000_000)
    }

    /// `2006-01-02T15:04:05Z` (RFC 3339).
    pub(crate) fn rfc3339(&self) -> String {
        format!("{}Z", self.to_second())
    }

    /// `02/Jan/2006:15:04:05 +0000`, as the common log format has it.
    pub(crate) fn common_log(&self) -> String {
        let month = MONTHS[usize::from(self.month - 1)];
        let Self { year, day, hour, minute, second, .. } = self;
        format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
    }

    fn to_second(self) -> String {
        let Self { year, month, day, hour, minute, second, .. } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_136_214_245, "2006-01-02T15:04:05Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Utc::of(UNIX_EPOCH + Duration::from_secs(secs)).rfc3339(), text);
        }
    }

    #[test]
    fn the_common_log_names_the_month() {
        let time = UNIX_EPOCH + Duration::from_secs(1_136_214_245);
        assert_eq!(Utc::of(time).common_log(), "02/Jan/2006:15:04:05 +0000");
    }
}
