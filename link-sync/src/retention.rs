//! Which snapshots are kept: pure arithmetic over dates, as restic and borg count. No clock, no disk.
//!
//! A rule like `daily` looks at calendar days with a snapshot, the newest first; days without one do not count. Of each
//! one stands for all: the newest that is sealed, else the newest. When there are fewer days than the rule asks for, the
//! oldest snapshot is kept, too, as restic does. A snapshot that one rule keeps counts for the others as well. All of it
//! is such that what is kept today was kept on every day before: pruning every night or once a year gives the same.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use common::mutant;
use common::retention::{Length, Retention};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// Nothing younger is removed, unless told otherwise.
const MIN_AGE: i32 = 3;
/// A longer pause looks like a clock that jumped.
const MAX_GAP: i32 = 7;
/// Removals a day that a client may ask for.
const MAX_REMOVALS: u32 = 10;

/// A published, readable snapshot. Damaged and partial ones are no backups and never get here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// When it was taken: its name.
    pub taken: Timestamp,
    /// Its files and its database belong together.
    pub sealed: bool,
}

/// What becomes of a snapshot, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It stays.
    pub keep: bool,
    /// All that keeps it; or, for each rule, why that does not.
    pub reasons: Vec<String>,
}

/// The rules, complete.
#[derive(Clone, Debug)]
pub struct Rules {
    written: Retention,
    zone: TimeZone,
    /// Another machine asks: `last` and `hourly` count days, so that many snapshots of one day displace nothing.
    pub for_client: bool,
}

/// The calendar's units: how they are called, what is the same within one, how many are kept.
type Unit = (&'static str, &'static str, fn(&Retention) -> Option<u32>);
const UNITS: [Unit; 5] = [
    // With the offset, as one hour comes twice in autumn.
    ("hourly", "%Y-%m-%d %H:00 %:z", |r| r.keep_hourly),
    ("daily", "%Y-%m-%d", |r| r.keep_daily),
    ("weekly", "%G-W%V", |r| r.keep_weekly),
    ("monthly", "%Y-%m", |r| r.keep_monthly),
    ("yearly", "%Y", |r| r.keep_yearly),
];

impl Rules {
    /// What `written` means on a machine in `system`'s time zone.
    pub fn new(written: Retention, system: TimeZone, for_client: bool) -> Rules {
        let zone = written.timezone.clone().map_or(system, |z| z.0);
        Rules { written, zone, for_client }
    }

    /// The time zone days are counted in, by name.
    pub fn zone(&self) -> String {
        let name = self.zone.iana_name().map(str::to_owned);
        name.unwrap_or_else(|| Timestamp::UNIX_EPOCH.to_zoned(self.zone.clone()).strftime("%:z").to_string())
    }

    /// Removals within 24 hours, for whoever is given a limit.
    pub fn max_removals(&self) -> u64 {
        self.written.max_removals_per_day.unwrap_or(MAX_REMOVALS).into()
    }

    fn min_age(&self) -> Length {
        self.written.min_age.unwrap_or(Length(Span::new().days(MIN_AGE)))
    }

    fn max_gap(&self) -> Length {
        self.written.max_gap.unwrap_or(Length(Span::new().days(MAX_GAP)))
    }

    fn local(&self, at: Timestamp) -> Zoned {
        at.to_zoned(self.zone.clone())
    }

    fn before(&self, at: Timestamp, length: Length) -> Result<Timestamp> {
        let early = self.local(at).checked_sub(length.0);
        Ok(early.with_context(|| format!("{length} before {at} is no date"))?.timestamp())
    }

    /// What becomes of each of `snapshots` (oldest first) at the time `now`.
    pub fn decide(&self, snapshots: &[Snapshot], now: Timestamp) -> Result<Vec<Verdict>> {
        let mut kept: Vec<Vec<String>> = vec![Vec::new(); snapshots.len()];
        let mut not: Vec<Vec<String>> = kept.clone();
        let Some(newest) = snapshots.last() else { return Ok(Vec::new()) };
        let last = snapshots.len() - 1;
        kept[last].push("the newest".into());
        if let Some(good) = snapshots.iter().rposition(|s| s.sealed)
            && good != last
        {
            kept[good].push("the newest sealed one".into());
        }
        self.last(snapshots, &mut kept, &mut not);
        for unit in UNITS {
            self.unit(unit, snapshots, &mut kept, &mut not);
        }
        if let Some(within) = self.written.keep_within.filter(|w| !w.0.is_zero()) {
            let since = self.before(newest.taken, within)?;
            for (at, snapshot) in snapshots.iter().enumerate() {
                match snapshot.taken >= since {
                    true => kept[at].push(format!("within {within}")),
                    false => not[at].push(format!("within {within}: older")),
                }
            }
        }
        // A clock that is ahead makes nothing older than the newest snapshot says.
        let young = self.before(now.min(newest.taken), self.min_age())?;
        for (at, _) in snapshots.iter().enumerate().filter(|(_, s)| s.taken > young) {
            kept[at].push(format!("younger than {}", self.min_age()));
        }
        let verdict = |(kept, not): (Vec<String>, Vec<String>)| Verdict {
            keep: !kept.is_empty(),
            reasons: if kept.is_empty() { not } else { kept },
        };
        Ok(kept.into_iter().zip(not).map(verdict).collect())
    }

    /// Whether what was taken at `at`, if that is known, is younger at `now` than anything that is removed.
    pub fn is_young(&self, at: Option<Timestamp>, now: Timestamp) -> Result<bool> {
        let young = self.before(now, self.min_age())?;
        Ok(at.is_some_and(|at| at > young) && !mutant::active("the-sources-clock-says-nothing"))
    }

    /// `keep_last`.
    fn last(&self, snapshots: &[Snapshot], kept: &mut [Vec<String>], not: &mut [Vec<String>]) {
        let Some(wanted) = self.written.keep_last.filter(|n| *n > 0) else { return };
        let mut count = Count::new(self, wanted);
        for (at, snapshot) in snapshots.iter().enumerate().rev() {
            match count.next(snapshot.taken) {
                Some(n) => kept[at].push(format!("last {n}")),
                None => not[at].push(format!("last: not among {wanted}")),
            }
        }
    }

    /// A rule of the calendar.
    fn unit(&self, unit: Unit, snapshots: &[Snapshot], kept: &mut [Vec<String>], not: &mut [Vec<String>]) {
        let (name, format, wanted) = unit;
        let Some(wanted) = wanted(&self.written).filter(|n| *n > 0) else { return };
        let key = |s: &Snapshot| self.local(s.taken).strftime(format).to_string();
        let mut count = Count::new(self, wanted);
        count.by_day &= name == "hourly";
        let mut all_counted = true;
        let mut end = snapshots.len();
        while end > 0 {
            let bucket = key(&snapshots[end - 1]);
            let begin = snapshots[..end].iter().rposition(|s| key(s) != bucket).map_or(0, |at| at + 1);
            let of_bucket = begin..end;
            let sealed = snapshots[of_bucket.clone()].iter().rposition(|s| s.sealed);
            let chosen = sealed.map_or(end - 1, |at| begin + at);
            let number = count.next(snapshots[chosen].taken);
            all_counted &= number.is_some();
            for at in of_bucket {
                match number {
                    Some(n) if at == chosen => kept[at].push(format!("{name} {n} ({bucket})")),
                    Some(_) => not[at].push(format!("{name}: another one stands for {bucket}")),
                    None => not[at].push(format!("{name}: older than the last {wanted}")),
                }
            }
            end = begin;
        }
        if all_counted && !count.is_full() && !kept[0].iter().any(|r| r.starts_with(name)) {
            kept[0].push(format!("{name} (the oldest)"));
        }
    }

    /// Why the clock, or the regularity of the backups, is not to be trusted; `None` if it is. `believed`: when it was last.
    pub fn doubt(
        &self,
        snapshots: &[Snapshot],
        now: Timestamp,
        believed: Option<Timestamp>,
    ) -> Result<Option<String>> {
        let Some(newest) = snapshots.last() else { return Ok(None) };
        if newest.taken > now {
            return Ok(Some(format!("the newest snapshot is of {}, but it is only {now}", newest.taken)));
        }
        if let Some(believed) = believed.filter(|b| *b > now) {
            return Ok(Some(format!("the clock says {now}, but said {believed} before")));
        }
        let (gap, recent) = (self.max_gap(), self.before(now, self.max_gap())?);
        if newest.taken < recent {
            return Ok(Some(format!(
                "the newest snapshot is of {}, more than {gap} ago: either backups fail or the clock jumped",
                newest.taken
            )));
        }
        // What is newer than the last prune was thinned by nobody: its gaps are real.
        let chain = snapshots.iter().map(|s| s.taken).filter(|t| believed.is_none_or(|b| *t > b));
        let mut before = believed;
        for taken in chain {
            if let Some(earlier) = before
                && taken > recent
                && earlier < self.before(taken, gap)?
            {
                return Ok(Some(format!(
                    "between {earlier} and {taken} there was no backup, or the clock jumped; when backups have gone on for {gap}, they are believed again"
                )));
            }
            before = Some(taken);
        }
        Ok(None)
    }
}

/// Counts up to a number of snapshots, or of days.
struct Count<'a> {
    rules: &'a Rules,
    wanted: u32,
    by_day: bool,
    so_far: u32,
    days: HashSet<String>,
}

impl<'a> Count<'a> {
    fn new(rules: &'a Rules, wanted: u32) -> Count<'a> {
        Count { rules, wanted, by_day: rules.for_client, so_far: 0, days: HashSet::new() }
    }

    /// The number of the next older one; `None` when all were counted.
    fn next(&mut self, taken: Timestamp) -> Option<u32> {
        let day = self.rules.local(taken).strftime("%F").to_string();
        if self.by_day && self.days.contains(&day) {
            return Some(self.so_far);
        }
        if self.is_full() {
            return None;
        }
        self.so_far += 1;
        self.days.insert(day);
        Some(self.so_far)
    }

    fn is_full(&self) -> bool {
        self.so_far >= self.wanted
    }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
