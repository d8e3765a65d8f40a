//! Numbers of bytes and lengths of time, as people write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A number of bytes as people write it: `4096`, `500k`, `1.5m`, `776G`; k, m, g and t are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        Bytes::at_least(1.0, text)
    }
}

impl Bytes {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "checked"
    )]
    fn at_least(least: f64, text: &str) -> Result<Bytes, String> {
        let wrong = || format!("'{text}' is not a number of bytes: write it like 4096, 500k, 1.5m or 776G");
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(wrong()),
        };
        if !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(wrong());
        }
        let number: f64 = digits.parse().map_err(|_| wrong())?;
        let bytes = (number * (1u64 << shift) as f64).round();
        if bytes < least || bytes > i64::MAX as f64 {
            return Err(wrong());
        }
        Ok(Bytes(bytes as u64))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_any(AtLeast(1.0))
    }
}

/// Reads [`Bytes`], of which there are at least so many.
struct AtLeast(f64);

impl serde::de::Visitor<'_> for AtLeast {
    type Value = Bytes;
    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a number of bytes, like 4096 or \"500k\"")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
        Bytes::at_least(self.0, text).map_err(E::custom)
    }
    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Bytes, E> {
        Bytes::at_least(self.0, &number.to_string()).map_err(E::custom)
    }
}

/// Bytes of which there may be none.
pub(super) fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(AtLeast(0.0)).map(|bytes| Some(bytes.0))
}

/// A length of time as people write it: `90s`, `30m`, `2h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let wrong = || format!("'{text}' is not a length of time: write it like 90s, 30m or 2h");
        let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
        Duration::try_from(span).map(Span).map_err(|_| wrong())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A time of the day as people write it: `07:00`; minutes after midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeOfDay(pub u16);

impl std::str::FromStr for TimeOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<TimeOfDay, String> {
        let number = |text: &str, below: u16| {
            let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u16>().ok().filter(|n| digits && *n < below)
        };
        let parts = text.split_once(':').and_then(|(h, m)| Some((number(h, 24)?, number(m, 60)?)));
        parts
            .map(|(hours, minutes)| TimeOfDay(60 * hours + minutes))
            .ok_or_else(|| format!("'{text}' is not a time of the day: write it like 07:00 or 23:30"))
    }
}

impl<'de> Deserialize<'de> for TimeOfDay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TimeOfDay, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_people_do() {
        for (text, bytes) in
            [("4096", 4096), ("500k", 512_000), ("1.5m", 1_572_864), ("776G", 776 << 30), ("1KiB", 1024)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
        }
        for bad in ["", "k", "-1", "0", "1e9", "inf", "1x", "1 m"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_of_the_day_are_written_as_people_do() {
        for (text, minutes) in [("00:00", 0), ("07:05", 425), ("23:59", 1439)] {
            let time: TimeOfDay = text.parse().unwrap();
            assert_eq!((time, time.to_string().as_str()), (TimeOfDay(minutes), text));
        }
        for bad in ["", "7:00", "24:00", "07:60", "07:0", "07", "+7:00", "07:00:00"] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_are_written_as_people_do() {
        assert_eq!("90s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("2h 30m".parse(), Ok(Span(Duration::from_secs(9000))));
        assert!("-5s".parse::<Span>().is_err());
    }
}
