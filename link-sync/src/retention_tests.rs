//! The rules over made-up calendars.

use std::collections::{BTreeMap, BTreeSet};

use common::retention::Retention;
use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use proptest::prelude::*;

use super::*;

fn vienna() -> TimeZone {
    TimeZone::get("Europe/Vienna").unwrap()
}

fn rules(written: Retention) -> Rules {
    Rules::new(written, vienna(), false)
}

fn none() -> Retention {
    Retention { min_age: "0d".parse().ok(), ..Retention::default() }
}

/// A snapshot at a time in Vienna.
fn at(text: &str) -> Snapshot {
    let civil: jiff::civil::DateTime = text.parse().unwrap();
    Snapshot { taken: civil.to_zoned(vienna()).unwrap().timestamp(), sealed: true }
}

/// The indices of what is kept.
fn kept(rules: &Rules, snapshots: &[Snapshot]) -> Vec<usize> {
    let now = snapshots.last().unwrap().taken + SignedDuration::from_mins(1);
    let verdicts = rules.decide(snapshots, now).unwrap();
    verdicts.iter().enumerate().filter(|(_, v)| v.keep).map(|(n, _)| n).collect()
}

#[test]
fn last_and_within_count_from_the_newest() {
    let all = ["2026-03-01T03:30", "2026-03-02T03:30", "2026-03-03T03:30", "2026-03-09T03:30"].map(at);
    assert_eq!(kept(&rules(Retention { keep_last: Some(2), ..none() }), &all), [2, 3]);
    // Six days to the hour; a little less is not enough.
    assert_eq!(kept(&rules(Retention { keep_within: "6d".parse().ok(), ..none() }), &all), [2, 3]);
    assert_eq!(kept(&rules(Retention { keep_within: "143h".parse().ok(), ..none() }), &all), [3]);
    assert_eq!(kept(&rules(Retention { keep_within: "1mo".parse().ok(), ..none() }), &all), [0, 1, 2, 3]);
}

#[test]
fn days_without_a_snapshot_do_not_count_and_the_newest_stands_for_its_day() {
    let all =
        ["2026-01-01T03:30", "2026-03-01T03:30", "2026-03-02T03:30", "2026-03-02T15:00", "2026-03-09T03:30"];
    let all = all.map(at);
    let daily = rules(Retention { keep_daily: Some(3), ..none() });
    assert_eq!(kept(&daily, &all), [1, 3, 4]);
    let verdicts = daily.decide(&all, all[4].taken).unwrap();
    assert_eq!(verdicts[2].reasons, ["daily: another one stands for 2026-03-02"]);
    assert_eq!(verdicts[0].reasons, ["daily: older than the last 3"]);
    assert_eq!(verdicts[3].reasons, ["daily 2 (2026-03-02)"]);
}

#[test]
fn fewer_than_asked_for_keep_the_oldest_too() {
    let all = ["2026-03-01T03:30", "2026-03-02T03:30", "2026-03-03T03:30"].map(at);
    assert_eq!(kept(&rules(Retention { keep_monthly: Some(2), ..none() }), &all), [0, 2]);
    assert_eq!(kept(&rules(Retention { keep_monthly: Some(1), ..none() }), &all), [2]);
}

#[test]
fn days_are_those_of_the_time_zone_and_an_hour_that_comes_twice_is_two() {
    // Half past midnight in Vienna is the day before in UTC.
    let all = ["2026-06-10T12:00", "2026-06-11T00:30"].map(at);
    let daily = Retention { keep_daily: Some(2), ..none() };
    assert_eq!(kept(&rules(daily.clone()), &all).len(), 2);
    let utc = Retention { keep_daily: Some(1), timezone: "UTC".parse().ok(), ..none() };
    assert_eq!(kept(&rules(utc), &all), [1]);
    // The night of 25 October 2026 has 02:30 twice; that of 29 March has none.
    let before: Timestamp = "2026-10-25T00:30:00Z".parse().unwrap();
    let twice = [before, before + 1.hour(), before + 2.hours()].map(|taken| Snapshot { taken, sealed: true });
    assert_eq!(kept(&rules(Retention { keep_hourly: Some(3), ..none() }), &twice), [0, 1, 2]);
    assert_eq!(kept(&rules(daily), &twice), [0, 2], "one day; and the oldest, as there is no other");
}

#[test]
fn a_sealed_one_stands_for_its_day_and_the_newest_sealed_one_stays() {
    let mut all = ["2026-03-01T03:30", "2026-03-01T18:00", "2026-03-02T03:30", "2026-03-03T03:30"].map(at);
    for n in [1, 2, 3] {
        all[n].sealed = false;
    }
    let daily = rules(Retention { keep_daily: Some(3), ..none() });
    assert_eq!(kept(&daily, &all), [0, 2, 3]);
    let last = rules(Retention { keep_last: Some(1), ..none() });
    assert_eq!(kept(&last, &all), [0, 3]);
    assert_eq!(last.decide(&all, all[3].taken).unwrap()[0].reasons, ["the newest sealed one"]);
}

#[test]
fn the_young_stay() {
    let all = ["2026-03-01T03:30", "2026-03-08T03:30", "2026-03-09T03:30", "2026-03-10T03:30"].map(at);
    let standard = rules(Retention { keep_last: Some(1), min_age: None, ..none() });
    assert_eq!(kept(&standard, &all), [1, 2, 3]);
}

#[test]
fn many_of_one_day_displace_nothing_when_a_client_asks() {
    let mut all: Vec<_> = (1..=9).map(|d| at(&format!("2026-03-0{d}T03:30"))).collect();
    all.extend((0..24).flat_map(|h| [0, 20, 40].map(|m| at(&format!("2026-03-10T{h:02}:{m:02}")))));
    let written = Retention { keep_last: Some(5), keep_hourly: Some(3), ..none() };
    let client = Rules::new(written.clone(), vienna(), true);
    let kept_days: BTreeSet<_> = kept(&client, &all).into_iter().filter(|n| *n < 9).collect();
    assert_eq!(kept_days, BTreeSet::from([5, 6, 7, 8]));
    assert!(kept(&Rules::new(written, vienna(), false), &all).iter().all(|n| *n >= 9), "as restic counts");
}

#[test]
fn a_clock_that_jumped_or_backups_that_fail() {
    let rules = rules(none());
    let nights: Vec<_> = (1..=9).map(|d| at(&format!("2026-03-0{d}T03:30"))).collect();
    let newest = nights[8].taken;
    let doubt = |list: &[Snapshot], now: Timestamp, believed: Option<Timestamp>| {
        rules.doubt(list, now, believed).unwrap().unwrap_or_default()
    };
    assert_eq!(doubt(&nights, newest + 10.minutes(), None), "");
    assert!(doubt(&nights, newest - 1.second(), None).contains("the newest snapshot is of"));
    assert!(doubt(&nights, newest + 1.hour(), Some(newest + 2.hours())).contains("said"));
    assert!(doubt(&nights, newest + (8 * 24).hours(), None).contains("backups fail"));
    // The clock jumped by a month, and a backup was made since: it is as new as can be.
    let mut jumped = nights.clone();
    jumped.push(at("2026-04-12T03:30"));
    let now = jumped[9].taken + 10.minutes();
    assert!(doubt(&jumped, now, Some(newest)).contains("no backup"));
    assert!(doubt(&jumped, now, None).contains("no backup"));
    // After a week of nights it was a holiday. What prune itself left out is no gap.
    let mut after = jumped.clone();
    after.extend((13..=20).map(|d| at(&format!("2026-04-{d}T03:30"))));
    let now = after[after.len() - 1].taken + 10.minutes();
    assert_eq!(doubt(&after, now, Some(newest)), "");
    let thinned = [after[0].clone(), after[17].clone()];
    assert_eq!(doubt(&thinned, now, Some(after[17].taken)), "");
}

/// A year of nights, with some missing, some with several, some not sealed.
fn year() -> impl Strategy<Value = Vec<Snapshot>> {
    // Of each day: minutes of its snapshots, and whether they are sealed; a pause of weeks comes, too.
    let day = prop::collection::vec((0i64..1440, prop::bool::weighted(0.8)), 0..3);
    (prop::collection::vec(day, 400), 0usize..380, 0usize..30).prop_map(|(days, from, len)| {
        let mut all = BTreeMap::new();
        let begin = date(2026, 1, 1).to_zoned(vienna()).unwrap();
        for (n, list) in days.into_iter().enumerate().filter(|(n, _)| !(from..from + len).contains(n)) {
            let midnight = begin.checked_add(i64::try_from(n).unwrap().days()).unwrap();
            for (minute, sealed) in list {
                // On two days of the year not what the clock on the wall says: any moment is fine.
                all.insert(midnight.timestamp() + minute.minutes(), sealed);
            }
        }
        all.into_iter().map(|(taken, sealed)| Snapshot { taken, sealed }).collect()
    })
}

fn some_rules() -> impl Strategy<Value = (Retention, bool)> {
    let few = || prop::option::weighted(0.5, 0u32..6);
    (few(), few(), few(), few(), few(), few(), 0u32..40, 0u32..6, any::<bool>()).prop_map(
        |(
            keep_last,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly,
            within,
            young,
            client,
        )| {
            let written = Retention {
                keep_last,
                keep_hourly,
                keep_daily,
                keep_weekly,
                keep_monthly,
                keep_yearly,
                keep_within: (within > 20).then(|| format!("{within}d").parse().unwrap()),
                min_age: format!("{young}d").parse().ok(),
                ..Retention::default()
            };
            (written, client)
        },
    )
}

/// What stays of `there` at `now`.
fn after(rules: &Rules, there: &[Snapshot], now: Timestamp) -> Vec<Snapshot> {
    let verdicts = rules.decide(there, now).unwrap();
    there.iter().zip(verdicts).filter(|(_, v)| v.keep).map(|(s, _)| s.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn pruned_every_night_for_a_year(all in year(), (written, client) in some_rules()) {
        prop_assume!(!all.is_empty());
        let rules = Rules::new(written.clone(), vienna(), client);
        let mut there: Vec<Snapshot> = Vec::new();
        let mut now = all[0].taken;
        for (n, snapshot) in all.iter().enumerate() {
            there.push(snapshot.clone());
            now = snapshot.taken + 5.minutes();
            let kept = after(&rules, &there, now);
            // The newest, the newest sealed one and the young are there, always.
            prop_assert_eq!(kept.last(), Some(snapshot));
            let good = all[..=n].iter().rfind(|s| s.sealed);
            prop_assert!(good.is_none_or(|s| kept.contains(s)));
            let young = rules.before(now, rules.min_age()).unwrap();
            prop_assert!(there.iter().filter(|s| s.taken > young).all(|s| kept.contains(s)));
            // A second time removes nothing.
            if n % 37 == 0 {
                prop_assert_eq!(&after(&rules, &kept, now), &kept);
            }
            there = kept;
        }
        // The same as if nothing had been removed all year.
        prop_assert_eq!(&there, &after(&rules, &all, now));
        // Every day, week, month and year that was promised has one.
        for (_, format, wanted) in UNITS {
            let Some(wanted) = wanted(&written) else { continue };
            let key = |s: &Snapshot| s.taken.to_zoned(vienna()).strftime(format).to_string();
            let mut promised: Vec<String> = all.iter().map(key).collect();
            promised.dedup();
            let promised: BTreeSet<_> = promised.into_iter().rev().take(wanted as usize).collect();
            let held: BTreeSet<_> = there.iter().map(key).collect();
            prop_assert!(promised.is_subset(&held), "{} of {:?}", format, written);
        }
        // And not much more: without the client's way of counting, each rule keeps what it says and the oldest.
        let counts = [written.keep_last, written.keep_hourly, written.keep_daily, written.keep_weekly,
            written.keep_monthly, written.keep_yearly];
        if !client && written.keep_within.is_none() {
            let young = rules.before(now, rules.min_age()).unwrap();
            let most: u32 = 3 + counts.iter().flatten().sum::<u32>();
            let old = there.iter().filter(|s| s.taken <= young).count();
            prop_assert!(old <= most as usize, "{} kept, {:?}", old, written);
        }
    }

    #[test]
    fn a_clock_that_is_wrong_removes_nothing_that_a_right_one_keeps(
        all in year(), (written, client) in some_rules(), hours in -2000i64..72, nights in 0usize..8,
    ) {
        prop_assume!(!all.is_empty());
        let rules = Rules::new(written, vienna(), client);
        let now = all.last().unwrap().taken + 5.minutes();
        let kept = after(&rules, &all, now);
        let wrong = now + hours.hours();
        // Behind: what is still to come by that clock counts for nothing (`store::odd`), and stays. A little ahead: the
        // young are still young. Some nights may be missing, too.
        let known: Vec<_> = all.iter().filter(|s| s.taken <= wrong).cloned().collect();
        let left = after(&rules, &known, wrong);
        for snapshot in known.iter().filter(|s| kept.contains(s)) {
            prop_assert!(left.contains(snapshot), "{} goes at {}", snapshot.taken, wrong);
        }
        let fewer: Vec<_> = all.iter().take(all.len().saturating_sub(nights)).cloned().collect();
        let left = after(&rules, &fewer, now);
        for snapshot in fewer.iter().filter(|s| kept.contains(s)) {
            prop_assert!(left.contains(snapshot), "{} goes without {nights} nights", snapshot.taken);
        }
    }
}
