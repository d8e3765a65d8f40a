//! `pg-snap confirm`: that nothing was written from the drain until the files were taken.

use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;
use common::profile::Profile;
use common::status::Report;

use crate::client::{call, running};
use crate::drain::{Present, fallback, millis, not_ended, nothing, run_of, wait_for};
use crate::hold::Held;
use crate::holder::Request;
use crate::horizon::Horizon;

/// In maintenance, when the files have been taken: shows that nothing was written since `drain` began, so that what is held
/// and the files are of one state. Otherwise gives back what is held.
pub(crate) fn confirm(profile: &Profile, timeout: Duration, report: &mut Report) -> Result<()> {
    let clock = Instant::now();
    let began_ms = common::record::uptime_ms()?;
    let record = run_of(profile, "confirm")?;
    if !running(profile)? {
        return Err(nothing().into());
    }
    let held: Option<Held> = call(profile, &Request::Held)?;
    let held = held.ok_or_else(nothing)?;
    if held.run_id != record.run_id {
        return Err(Fault::failed("what is held is of another run: Nextcloud was up in between")
            .hint("`pg-snap release`, and the whole run once more")
            .into());
    }
    let unseen = fallback(profile, report)?;
    report.set("settle_fallback", unseen);
    report.set("run_id", record.run_id.as_str());
    report.set("moved", false);
    let shown =
        if unseen { Ok(()) } else { nothing_written(profile, &held, clock + timeout, timeout, report) };
    report.set("waited_ms", millis(clock.elapsed()));
    if let Err(error) = shown {
        // Tables shall not be locked while all of it is tried again.
        let () = call(profile, &Request::GiveBack)?;
        return Err(error);
    }
    let held: Option<Held> = call(profile, &Request::Confirm { began_ms })?;
    report.changed = held.is_some_and(|h| h.confirmed);
    if report.changed { Ok(()) } else { Err(nothing().into()) }
}

/// Everybody who is there now may have written files meanwhile, and rows later: they are waited for, too.
fn nothing_written(
    profile: &Profile,
    held: &Held,
    end: Instant,
    timeout: Duration,
    report: &mut Report,
) -> Result<()> {
    let Some(drained) = &held.horizon else {
        return Err(Fault::failed(
            "what is held was not drained for this run: requests may have been at work",
        )
        .hint("nc-maint run PROFILE -- sh -c 'pg-snap drain PROFILE && pg-snap hold PROFILE && …'")
        .into());
    };
    let moved = |horizon: &Horizon, report: &mut Report| {
        let moved = horizon.moved_since(drained);
        report.set("moved", moved);
        if !moved {
            return Ok(());
        }
        Err(Fault::busy(
            "a request that had begun before the switch wrote to the database while the files were taken",
        )
        .hint("drain, hold and settle once more: it has ended, or is waited for then"))
    };
    let present: Present = call(profile, &Request::Present)?;
    report.set("seen_sessions", present.clients.len());
    moved(&present.horizon, report)?;
    let left = wait_for(profile, &present.clients, end)?;
    left.tell(report)?;
    if !left.is_empty() {
        return Err(not_ended(&left, timeout).into());
    }
    moved(&call(profile, &Request::Horizon)?, report)?;
    Ok(())
}
