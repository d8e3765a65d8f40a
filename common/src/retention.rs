//! `[store.retention]` and `[offsite.retention]`: which snapshots are kept, as the profile says it.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer};

/// The rules as written; what is absent is not a rule, or has its default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// The newest N.
    pub keep_last: Option<u32>,
    /// One for each of the last N hours that have one.
    pub keep_hourly: Option<u32>,
    /// One for each of the last N days that have one.
    pub keep_daily: Option<u32>,
    /// The same for weeks (Monday to Sunday).
    pub keep_weekly: Option<u32>,
    /// The same for months.
    pub keep_monthly: Option<u32>,
    /// The same for years.
    pub keep_yearly: Option<u32>,
    /// Everything that is not older than this, counted from the newest snapshot.
    pub keep_within: Option<Length>,
    /// Nothing younger is ever removed. Default 3 days.
    pub min_age: Option<Length>,
    /// A longer pause between snapshots, or since the newest, looks like a clock that jumped. Default 7 days.
    pub max_gap: Option<Length>,
    /// Removals within 24 hours: those that another machine may ask for, and all from the container. Default 10.
    pub max_removals_per_day: Option<u32>,
    /// Where days begin and end, like `Europe/Vienna`. Default: this machine's.
    pub timezone: Option<Zone>,
}

impl Retention {
    /// These rules, and those of `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: &Retention) -> Retention {
        Retention {
            keep_last: self.keep_last.or(other.keep_last),
            keep_hourly: self.keep_hourly.or(other.keep_hourly),
            keep_daily: self.keep_daily.or(other.keep_daily),
            keep_weekly: self.keep_weekly.or(other.keep_weekly),
            keep_monthly: self.keep_monthly.or(other.keep_monthly),
            keep_yearly: self.keep_yearly.or(other.keep_yearly),
            keep_within: self.keep_within.or(other.keep_within),
            min_age: self.min_age.or(other.min_age),
            max_gap: self.max_gap.or(other.max_gap),
            max_removals_per_day: self.max_removals_per_day.or(other.max_removals_per_day),
            timezone: self.timezone.or_else(|| other.timezone.clone()),
        }
    }

    /// Whether anything says what is to be kept.
    pub fn has_rule(&self) -> bool {
        let counts = [self.keep_last, self.keep_hourly, self.keep_daily];
        let longer = [self.keep_weekly, self.keep_monthly, self.keep_yearly];
        let within = self.keep_within.is_some_and(|w| !w.0.is_zero());
        within || counts.iter().chain(&longer).flatten().any(|n| *n > 0)
    }
}

/// A length of time in the calendar, `7d`, `4w`, `6mo`, `1y`, `36h`: a day may have 23 hours.
#[derive(Clone, Copy, Debug)]
pub struct Length(pub jiff::Span);

impl PartialEq for Length {
    fn eq(&self, other: &Length) -> bool {
        self.0.fieldwise() == other.0.fieldwise()
    }
}

impl Eq for Length {}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Length, String> {
        let right = "write it like 36h, 7d, 4w, 6mo or 1y";
        let span: jiff::Span =
            text.parse().map_err(|_| format!("'{text}' is not a length of time: {right}"))?;
        if span.is_negative() {
            return Err(format!("'{text}' is negative: {right}"));
        }
        // restic and borg write months so; nobody keeps backups for minutes.
        if span.get_minutes() != 0 {
            return Err(format!("'{text}' says minutes: {right}"));
        }
        // So long that the calendar ends is not "for ever" but a slip of the finger.
        let epoch = jiff::civil::date(2000, 1, 1).at(0, 0, 0, 0);
        if epoch.checked_sub(span).is_err() {
            return Err(format!("'{text}' is too long: {right}"));
        }
        Ok(Length(span))
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Length, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A time zone of the zone database, or `UTC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(pub TimeZone);

impl FromStr for Zone {
    type Err = String;

    fn from_str(text: &str) -> Result<Zone, String> {
        TimeZone::get(text).map(Zone).map_err(|_| {
            format!("'{text}' is not a time zone this machine knows: write it like Europe/Vienna or UTC")
        })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Zone, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_people_do() {
        for good in ["36h", "7d", "4w", "6mo", "1y 6mo", "0d"] {
            assert!(good.parse::<Length>().is_ok(), "{good}");
        }
        for bad in ["", "7", "-7d", "5m", "1y5m7d", "soon", "19000y"] {
            assert!(bad.parse::<Length>().is_err(), "{bad}");
        }
        assert_eq!("7d".parse::<Length>().unwrap().to_string(), "7d");
    }

    #[test]
    fn nothing_and_zero_are_no_rule() {
        let zero = Retention { keep_daily: Some(0), keep_within: "0d".parse().ok(), ..Retention::default() };
        assert!(!Retention::default().has_rule() && !zero.has_rule());
        let profile = Retention { keep_daily: Some(7), keep_weekly: Some(4), ..Retention::default() };
        assert!(profile.has_rule());
        let both = zero.or(&profile);
        assert_eq!((both.keep_daily, both.keep_weekly), (Some(0), Some(4)));
    }

    #[test]
    fn zones() {
        assert!("UTC".parse::<Zone>().is_ok() && "Europe/Vienna".parse::<Zone>().is_ok());
        assert!("Middle/Earth".parse::<Zone>().is_err());
    }
}
