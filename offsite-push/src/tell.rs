//! Numbers as people read them.

use std::time::Duration;

/// `93.6 MiB`; powers of 1024, as everywhere.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn bytes(bytes: u64) -> String {
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
pub(crate) fn time(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        s @ 1..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

/// `526.4 KiB/s`.
pub(crate) fn rate(sent: u64, time: Duration) -> String {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("{}/s", bytes(sent.saturating_mul(1000) / ms))
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
    }
}
