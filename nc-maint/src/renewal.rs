//! The renewal of a lease: a run's drop-in lasts a minute, and is renewed for as long as the guardian lives.
//!
//! So Nextcloud is back within a minute when everything of ours is killed at once. Each renewal is a new file under a new
//! name (opcache may show an old name's old deadline); the one before goes a second later, so that whoever
//! lists the folder meanwhile finds one of the two. A renewal that comes too late, or after somebody removed the file,
//! would hide that Nextcloud was open in between: then the lease is lost, and the run fails.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::dropin::Placed;
use crate::mark::Mark;
use crate::settings::Settings;

/// How long the file before stays.
const OVERLAP: Duration = Duration::from_secs(1);

/// The drop-in of a run that is at work.
#[derive(Debug)]
pub(crate) struct Renewal {
    placed: Placed,
    number: u32,
    /// The one before, and when it goes.
    before: Option<(OsString, Instant)>,
    renew_at: Instant,
    /// The run's own end, in seconds since 1970.
    end: i64,
}

impl Renewal {
    /// Of the run's first file.
    pub(crate) fn new(settings: &Settings, placed: Placed, end: i64) -> Renewal {
        let left = placed.mark.until - jiff::Timestamp::now().as_second();
        let first = first_pause(left, pause(settings));
        Renewal { placed, number: 0, before: None, renew_at: Instant::now() + first, end }
    }

    /// When [`Renewal::keep`] has something to do.
    pub(crate) fn due(&self) -> Instant {
        self.before.as_ref().map_or(self.renew_at, |(_, at)| (*at).min(self.renew_at))
    }

    /// Does what is due; an error says why maintenance may have ended.
    pub(crate) fn keep(&mut self, settings: &Settings) -> Result<(), String> {
        let now = Instant::now();
        if let Some((name, _)) = self.before.take_if(|(_, at)| now >= *at) {
            // One that stays ends by itself.
            self.placed.folder.forget(&name).ok();
        }
        if now < self.renew_at || common::mutant::active("lease-not-renewed") {
            return Ok(());
        }
        let renewed = self.renew(settings);
        // Also when that failed: the one that is in place may have been lost.
        self.held()?;
        match renewed {
            Ok(next) => {
                let last = std::mem::replace(&mut self.placed, next);
                self.number += 1;
                let earlier = self.before.replace((last.name, Instant::now() + OVERLAP));
                if let Some((name, _)) = earlier {
                    self.placed.folder.forget(&name).ok();
                }
                self.renew_at = now + pause(settings);
            }
            // Again in a moment: there is time until the deadline.
            Err(_) => self.renew_at = Instant::now() + OVERLAP,
        }
        Ok(())
    }

    fn renew(&self, settings: &Settings) -> Result<Placed> {
        let old = &self.placed.mark;
        let mark = Mark::leased(&settings.name, settings.lease, &old.run_id, &old.user, self.end);
        self.placed.folder.again()?.draft(mark, self.number + 1)?.place()
    }

    /// The file is there and counts: with the next one in place already, there was no moment without.
    fn held(&self) -> Result<(), String> {
        let there =
            self.placed.folder.mark(&self.placed.name).ok().flatten().as_ref() == Some(&self.placed.mark);
        let why = match (there, self.placed.mark.expired()) {
            (true, false) => return Ok(()),
            (false, _) => "somebody removed its file",
            (true, true) => "its file could not be renewed in time, or the clock was set",
        };
        if common::mutant::active("lease-lost-unnoticed") {
            return Ok(());
        }
        // What was put there just now must not hold it on for ever, with nobody who answers for it.
        self.placed.folder.remove().ok();
        Err(why.to_owned())
    }
}

/// After how long the first file is renewed that lasts for `left` seconds more: on a slow disk it was written some time ago, and
/// two thirds shall be left for later troubles all the same.
fn first_pause(left: i64, pause: Duration) -> Duration {
    Duration::from_secs(u64::try_from(left).unwrap_or(0)).saturating_sub(2 * pause).min(pause)
}

fn pause(settings: &Settings) -> Duration {
    settings.lease / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_slowly_is_renewed_the_sooner() {
        let pause = Duration::from_secs(20);
        for (left, first) in [(61, 20), (60, 20), (50, 10), (40, 0), (3, 0), (-1, 0)] {
            assert_eq!(first_pause(left, pause), Duration::from_secs(first), "{left}");
        }
    }
}
