//! When the time for a push is over.

use anyhow::Result;
use common::profile::TimeOfDay;

/// The next such time of the day from now on, if one is set.
pub(crate) fn after_now(time: Option<TimeOfDay>) -> Result<Option<jiff::Timestamp>> {
    time.map(|time| next(time, &jiff::Zoned::now())).transpose()
}

/// The next `time` of the day after `now`.
fn next(time: TimeOfDay, now: &jiff::Zoned) -> Result<jiff::Timestamp> {
    let hours = i8::try_from(time.0 / 60).unwrap_or(0);
    let at = jiff::civil::time(hours, i8::try_from(time.0 % 60).unwrap_or(0), 0, 0);
    let mut then = now.date().to_datetime(at).to_zoned(now.time_zone().clone())?;
    if then <= *now {
        then = now.date().tomorrow()?.to_datetime(at).to_zoned(now.time_zone().clone())?;
    }
    Ok(then.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_over_at_the_next_such_time_of_the_day() {
        let now: jiff::Zoned = "2026-11-22T03:30:00+01:00[Europe/Berlin]".parse().unwrap();
        let at = |text: &str| next(text.parse().unwrap(), &now).unwrap().to_string();
        assert_eq!(at("07:00"), "2026-11-22T06:00:00Z");
        assert_eq!(
            (at("03:30"), at("03:31")),
            ("2026-11-23T02:30:00Z".into(), "2026-11-22T02:31:00Z".into())
        );
        assert_eq!(at("03:00"), "2026-11-23T02:00:00Z");
        // In the night that has no such time, an hour later.
        let now: jiff::Zoned = "2026-03-29T01:00:00+01:00[Europe/Berlin]".parse().unwrap();
        assert_eq!(next("02:30".parse().unwrap(), &now).unwrap().to_string(), "2026-03-29T01:30:00Z");
    }
}
