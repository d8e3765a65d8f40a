//! Which dated folder a person means: by its whole date, the beginning of one, or a word.
//!
//! The one place that knows. Whoever is asked for a date resolves it here, among the dates that there are, before anything
//! else is asked; what is passed on, to the far end or to a sibling, is a whole date. So nothing that is done later in a run
//! can mean another one. **What removes or keeps from removal does not ask here**: it takes whole dates only, because what
//! was the only one of a day yesterday need not be tomorrow.

use anyhow::Result;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::fault::Fault;

/// The form of the dates, UTC.
pub const FORMAT: &str = "%Y-%m-%dT%H-%M-%SZ";
/// So many candidates are named.
const NAMED: usize = 8;

/// Whether `name` is a whole date.
pub fn is_date(name: &str) -> bool {
    name.len() == 20 && DateTime::strptime(FORMAT, name).is_ok()
}

/// The moment that a date says.
pub fn moment(date: &str) -> Option<Timestamp> {
    let civil = DateTime::strptime(FORMAT, date).ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Whether `text` can be the beginning of a date, or is one of the words: for a command line.
pub fn is_meant(text: &str) -> bool {
    ["latest", "today", "yesterday"].contains(&text) || begins(text).is_some()
}

/// The one of `known`, sorted and oldest first, that is meant by `wanted`: `latest`, `today` or `yesterday` (days of this
/// machine's time zone), a whole date, or the beginning of one (`2026-11-26`, in UTC, as the dates are). A whole date need
/// not be known: who uses it says best what is wrong with it. `what` they are (`snapshot`), and where, is for the error.
pub fn resolve(wanted: &str, known: &[String], what: &str, place: &str) -> Result<String> {
    let zone = TimeZone::try_system().unwrap_or(TimeZone::UTC);
    one_of(wanted, known, (what, place), Timestamp::now(), &zone)
}

fn one_of(
    wanted: &str,
    known: &[String],
    (what, place): (&str, &str),
    now: Timestamp,
    zone: &TimeZone,
) -> Result<String> {
    if is_date(wanted) {
        return Ok(wanted.to_owned());
    }
    let today = now.to_zoned(zone.clone()).date();
    let of_day =
        |day| move |date: &&String| moment(date).is_some_and(|m| m.to_zoned(zone.clone()).date() == day);
    let meant: Vec<&String> = match wanted {
        "latest" => known.last().into_iter().collect(),
        "today" => known.iter().filter(of_day(today)).collect(),
        "yesterday" => known.iter().filter(of_day(today.saturating_sub(jiff::Span::new().days(1)))).collect(),
        _ => match begins(wanted) {
            Some(beginning) => known.iter().filter(|date| date.starts_with(&beginning)).collect(),
            None => Vec::new(),
        },
    };
    match meant[..] {
        [one] => Ok(one.clone()),
        [] if known.is_empty() => {
            Err(Fault::config(format!("there is no {what} '{wanted}' in {place}: there is none at all"))
                .into())
        }
        [] => Err(Fault::config(format!("there is no {what} '{wanted}' in {place}"))
            .hint(format!("the newest are {}", named(known)))
            .into()),
        _ if crate::mutant::active("the-newest-of-several-is-meant") => Ok(meant[meant.len() - 1].clone()),
        _ => {
            let candidates: Vec<String> = meant.iter().map(|date| (*date).clone()).collect();
            Err(Fault::config(format!("'{wanted}' may be any of {} {what}s in {place}", candidates.len()))
                .hint(format!("give more of one of these: {}", named(&candidates)))
                .into())
        }
    }
}

/// `text` as the beginning of a date is written, if it can be one: `2026-11-26 03:30` as `2026-11-26T03-30`.
fn begins(text: &str) -> Option<String> {
    let written = text.replacen(' ', "T", 1).replace(':', "-");
    // Whole numbers only: `2026-11-2` is the 2nd to whoever writes it, and not the only one of the twenties.
    let whole = [4, 7, 10, 13, 16, 19, 20].contains(&written.len());
    let fits = |(is, form): (u8, u8)| if form == b'0' { is.is_ascii_digit() } else { is == form };
    (whole && written.bytes().zip(*b"0000-00-00T00-00-00Z").all(fits)).then_some(written)
}

/// The newest of `dates`, newest first.
fn named(dates: &[String]) -> String {
    let shown: Vec<&str> = dates.iter().rev().take(NAMED).map(String::as_str).collect();
    let more = dates.len() - shown.len();
    let more = if more > 0 { format!(" and {more} older ones") } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<String> {
        ["2026-11-24T02-30-00Z", "2026-11-25T02-30-00Z", "2026-11-25T23-30-00Z", "2026-11-26T02-30-00Z"]
            .map(str::to_owned)
            .to_vec()
    }

    #[track_caller]
    fn meant(wanted: &str, zone: &TimeZone) -> Result<String> {
        one_of(wanted, &known(), ("snapshot", "/store"), "2026-11-26T09:00:00Z".parse().unwrap(), zone)
    }

    #[test]
    fn a_beginning_or_a_word_means_the_only_one_that_fits() {
        let utc = TimeZone::UTC;
        for (wanted, date) in [
            ("latest", "2026-11-26T02-30-00Z"),
            ("today", "2026-11-26T02-30-00Z"),
            ("2026-11-24", "2026-11-24T02-30-00Z"),
            ("2026-11-25T23", "2026-11-25T23-30-00Z"),
            ("2026-11-25 02:30", "2026-11-25T02-30-00Z"),
            // Not known, and told by who uses it.
            ("2025-01-01T00-00-00Z", "2025-01-01T00-00-00Z"),
        ] {
            assert_eq!(meant(wanted, &utc).unwrap(), date, "{wanted}");
        }
        // Two of that day here; east of here one of them is of today.
        let error = meant("yesterday", &utc).unwrap_err();
        assert!(error.to_string().contains("any of 2 snapshots"), "{error}");
        let vienna = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(meant("yesterday", &vienna).unwrap(), "2026-11-25T02-30-00Z");
    }

    #[test]
    fn what_is_unknown_or_may_be_several_is_an_error_that_names_them() {
        for (wanted, hint) in [
            (
                "2026-11",
                "2026-11-26T02-30-00Z, 2026-11-25T23-30-00Z, 2026-11-25T02-30-00Z, 2026-11-24T02-30-00Z",
            ),
            ("2026-11-25", "2026-11-25T23-30-00Z, 2026-11-25T02-30-00Z"),
            ("2025-01-01", "the newest are 2026-11-26T02-30-00Z"),
            ("../../etc", "the newest are"),
            ("", "the newest are"),
            ("2", "the newest are"),
            // One day is meant, or the first of the month; not what happens to begin so.
            ("2026-11-2", "the newest are"),
            ("2026-1", "the newest are"),
            ("2026-11-24T0", "the newest are"),
        ] {
            let error = meant(wanted, &TimeZone::UTC).unwrap_err();
            let described = crate::status::describe(&error);
            assert_eq!(described["kind"], "config", "{wanted}");
            assert!(described["hint"].as_str().unwrap().contains(hint), "{wanted}: {described}");
        }
        let none =
            one_of("latest", &[], ("snapshot", "/store"), Timestamp::now(), &TimeZone::UTC).unwrap_err();
        assert!(none.to_string().contains("none at all"), "{none}");
    }

    #[test]
    fn many_candidates_are_counted() {
        let many: Vec<String> = (10..30).map(|day| format!("2026-11-{day}T02-30-00Z")).collect();
        assert!(named(&many).ends_with("2026-11-22T02-30-00Z and 12 older ones"), "{}", named(&many));
    }
}
