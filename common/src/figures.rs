//! Numbers as people read them.

use std::time::Duration;

use serde_json::Value;

/// `93.6 MiB`; powers of 1024, as everywhere.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn bytes(bytes: u64) -> String {
    let mut rest = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if rest < 1023.95 || unit == "TiB" {
            return if unit == "B" { format!("{bytes} B") } else { format!("{rest:.1} {unit}") };
        }
        rest /= 1024.0;
    }
    format!("{bytes} B")
}

/// `3 min 2 s`.
pub fn time(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        s @ 1..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

/// How old something is, in its two largest units' one: `40 min`, `5 h`, `12 days`.
pub fn age(seconds: i64) -> String {
    let count = |n: i64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match seconds {
        ..0 => "to come".to_owned(),
        s @ 0..60 => format!("{s} s"),
        s @ 60..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => count(s / 86_400, "day"),
    }
}

/// `526.4 KiB/s`.
pub fn rate(sent: u64, time: Duration) -> String {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("{}/s", bytes(sent.saturating_mul(1000) / ms))
}

/// `1 thing`, `2 things`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The key of a status object as people call it.
pub(crate) fn name(key: &str) -> String {
    let plain = ["_bytes", "_ms", "_seconds"].iter().find_map(|unit| key.strip_suffix(unit));
    plain.unwrap_or(key).replace('_', " ")
}

/// A plain value of a status object; `None` for one that is not known, or is not plain.
pub(crate) fn value(key: &str, value: &Value) -> Option<String> {
    Some(match value {
        Value::Bool(is) => if *is { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(n) => match n.as_u64() {
            Some(n) if key.ends_with("_bytes") => bytes(n),
            Some(n) if key.ends_with("_ms") => time(Duration::from_millis(n)),
            Some(n) if key.ends_with("_seconds") => age(n.cast_signed()),
            _ => n.to_string(),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_123_456), "93.6 MiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(time(Duration::from_millis(1500)), "1 s");
        assert_eq!(time(Duration::from_secs(182)), "3 min 2 s");
        assert_eq!(time(Duration::from_secs(3723)), "1 h 2 min");
        assert_eq!(rate(98_100_000, Duration::from_secs(182)), "526.4 KiB/s");
        assert_eq!(
            ["0", "119", "7199", "172799", "172800"].map(|s| age(s.parse().unwrap())),
            ["0 s", "1 min", "119 min", "47 h", "2 days"]
        );
        assert_eq!(
            (age(-1), count(1, "date"), count(2, "date")),
            ("to come".into(), "1 date".into(), "2 dates".into())
        );
    }
}
