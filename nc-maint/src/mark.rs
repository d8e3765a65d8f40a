//! What a drop-in says: whose it is, and from when until when it holds.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The line that makes a file ours begins so.
const OURS: &str = "// nc-backup ";
/// How much longer than a run may take its file lasts, in seconds.
const SPARE: i64 = 5;
/// How far the clock may be set back before a run's file says nothing any more, in seconds: it must not last for hours
/// more, and a clock that is kept right goes back by less.
const SET_BACK: i64 = 60;
/// Whose a drop-in is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Mark {
    pub(crate) run_id: String,
    pub(crate) profile: String,
    /// `on` or `run`.
    pub(crate) action: String,
    /// Who asked for it.
    pub(crate) user: String,
    /// Of nc-maint.
    pub(crate) version: String,
    /// RFC 3339 UTC: when it was written, a moment before it counts.
    pub(crate) since: String,
    /// Seconds since 1970 by the wall clock: before this it says nothing.
    #[serde(default)]
    pub(crate) from: i64,
    /// And from this on.
    pub(crate) until: i64,
}

impl Mark {
    /// For `on`: from now for `max`.
    pub(crate) fn lasting(profile: &str, max: Duration, run_id: &str, user: &str) -> Mark {
        let until = jiff::Timestamp::now().as_second() + seconds(max);
        Mark::new(profile, run_id, "on", user, 0, until)
    }

    /// For a run that ends at `end` (seconds since 1970) at the latest: from now for the time of a lease, and never much longer
    /// than the run, whose own end comes first.
    pub(crate) fn leased(profile: &str, lease: Duration, run_id: &str, user: &str, end: i64) -> Mark {
        let now = jiff::Timestamp::now().as_second();
        let until = (now + seconds(lease)).min(end + SPARE);
        Mark::new(profile, run_id, "run", user, now - SET_BACK, until)
    }

    fn new(profile: &str, run_id: &str, action: &str, user: &str, from: i64, until: i64) -> Mark {
        Mark {
            run_id: run_id.to_owned(),
            profile: profile.to_owned(),
            action: action.to_owned(),
            user: user.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: common::status::now(),
            from,
            // A part of a second counts as a whole one: never shorter than asked.
            until: until + 1,
        }
    }

    /// A run wrote it, not a plain `on`.
    pub(crate) fn by_run(&self) -> bool {
        self.action == "run"
    }

    /// Its deadline has passed (or the clock was set back before its time): it holds nothing any more.
    pub(crate) fn expired(&self) -> bool {
        !(self.from..self.until).contains(&jiff::Timestamp::now().as_second())
    }

    /// The same, RFC 3339 UTC.
    pub(crate) fn deadline(&self) -> String {
        jiff::Timestamp::from_second(self.until).map_or_else(|_| self.until.to_string(), |t| t.to_string())
    }

    /// The file. Every word in it is of a kind that cannot end the comment (`?>`) or the line.
    pub(crate) fn php(&self) -> Result<String> {
        let plain = |text: &str| -> String {
            text.chars()
                .map(|c| if c.is_ascii_alphanumeric() || "-_.:".contains(c) { c } else { '_' })
                .collect()
        };
        let mark = Mark {
            run_id: plain(&self.run_id),
            profile: plain(&self.profile),
            action: plain(&self.action),
            user: plain(&self.user),
            version: plain(&self.version),
            since: plain(&self.since),
            ..self.clone()
        };
        Ok(format!(
            "<?php\n// Maintenance for a backup, by nc-maint: it ends by itself at {}.\n\
             // `nc-maint off` ends it now; without nc-maint, delete this file.\n{OURS}{}\n\
             if (time() >= {} && time() < {}) {{\n    $CONFIG = array('maintenance' => true);\n}}\n",
            mark.deadline(),
            serde_json::to_string(&mark)?,
            mark.from,
            mark.until
        ))
    }

    pub(crate) fn parse(text: &str) -> Option<Mark> {
        let line = text.lines().find_map(|l| l.strip_prefix(OURS))?;
        serde_json::from_str(line).ok()
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A mark of nobody's, made by `user`.
    pub(crate) fn mark(user: &str) -> Mark {
        let text = |t: &str| t.to_owned();
        Mark {
            run_id: text("0123456789abcdef"),
            profile: text("home"),
            action: text("run"),
            user: text(user),
            version: text("0.1.0"),
            since: text("2026-01-01T00:00:00Z"),
            from: 0,
            until: 32_503_680_000,
        }
    }

    #[test]
    fn it_says_whose_it_is_and_no_name_ends_the_comment() {
        let text = mark("a?>\n<b").php().unwrap();
        assert_eq!(Mark::parse(&text).unwrap(), mark("a____b"));
        assert!(!text.contains("?>"));
        assert_eq!(Mark::parse("<?php $CONFIG = array('maintenance' => true);"), None);
    }

    #[test]
    fn it_holds_between_two_moments_so_that_a_clock_set_back_does_not_prolong_it_for_hours() {
        let text = mark("root").php().unwrap();
        assert!(text.contains("if (time() >= 0 && time() < 32503680000)"), "{text}");
        assert!(!mark("root").expired());
        let now = jiff::Timestamp::now().as_second();
        assert!(Mark { from: now + 2, ..mark("root") }.expired(), "the clock was set back");
        assert!(Mark { until: now, ..mark("root") }.expired());
        // A file of an earlier version has one moment only.
        let old = text.replace("\"from\":0,", "");
        assert_eq!(Mark::parse(&old).unwrap(), mark("root"));
    }
}
