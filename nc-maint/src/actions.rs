//! `status`, `on` and `off`: the switch without a command.

use std::time::Instant;

use anyhow::Result;
use common::account::Account;
use common::record;
use common::restoring;
use common::signals;
use common::status::Report;
use serde_json::{Value, json};

use crate::claim::{Claim, Ledger};
use crate::dropin::Present;
use crate::mark::Mark;
use crate::occ::Occ;
use crate::settings::Settings;
use crate::switch::{self, millis};
use crate::{TOOL, curl};

/// Tells how things are; changes nothing.
pub(crate) fn status(settings: &Settings, report: &mut Report) -> Result<()> {
    let ledger = Ledger::new(settings);
    let found = ledger.find();
    let active = ledger.run_active()?;
    let seen = switch::look(settings, None, Occ::new(settings), &mut signals::check)?;
    let (on, present) = (seen.on, switch::present(settings));
    report.set("maintenance", on);
    settings.tell_method(report);
    report.set("held_by", seen.by.filter(|_| on));
    report.set("drop_in", present.json());
    report.set("run_active", active);
    let root = settings.root().ok().and_then(|root| root.canonicalize().ok());
    report.set("root", root.map(|root| root.display().to_string()));
    let drop_in = switch::own(settings, found.run_id());
    report.set("ours", (found.any() && !found.found_on()) || drop_in.is_some());
    report.set("run_id", found.run_id());
    report.set("record", serde_json::to_value(&found.record)?);
    report.set("clients_maintenance", Value::Null);
    let restoring = restoring::load(settings.state_dir()).unwrap_or_else(|e| {
        report.warn("restore-unknown", format!("{e:#}"));
        None
    });
    if let Some(mark) = &restoring {
        report.warn(
            "restore-unfinished",
            format!("a restore of {} is not finished: nothing is backed up until it is", mark.date),
        );
    }
    report.set("restoring", serde_json::to_value(restoring)?);
    if found.damaged {
        report.warn("record-damaged", "a run record is damaged; `nc-maint off` removes it");
    }
    if let Some(url) = &settings.url {
        match curl::ask(url, settings.url_timeout) {
            Ok(seen) => {
                report.set("clients_maintenance", seen);
                if seen != on {
                    report.warn(
                        "clients-differ",
                        format!("Nextcloud's configuration says {}, {url} says {}", word(on), word(seen)),
                    );
                }
            }
            Err(e) => report.warn("url-unavailable", format!("{e:#}")),
        }
    }
    if on && found.by_run() && !active {
        report.warn("run-killed", format!("a run was killed; `nc-maint off {}` ends it", settings.words));
    }
    about_drop_in(settings, &present, active, report);
    report.show(format!("{TOOL}: maintenance is {}", word(on)));
    Ok(())
}

/// Shows a notification to each of `users`; one that is not there keeps it from no other.
pub(crate) fn notify(
    settings: &Settings,
    users: &[String],
    subject: &str,
    message: &str,
    report: &mut Report,
) -> Result<()> {
    let mut failed = None;
    let mut told = Vec::new();
    for user in users {
        match Occ::new(settings).notify(user, subject, message) {
            Ok(()) => told.push(json!(user)),
            Err(error) if failed.is_none() => failed = Some(error.context(format!("cannot notify {user}"))),
            Err(_) => {}
        }
    }
    report.changed = !told.is_empty();
    report.set("told", told);
    failed.map_or(Ok(()), Err)
}

/// What is odd about the files under names of the drop-in.
fn about_drop_in(settings: &Settings, present: &Present, active: bool, report: &mut Report) {
    for (name, why) in present.foreign() {
        report.warn(
            "drop-in-foreign",
            format!(
                "config/{} has a name of the drop-in's and is not ours: it is left alone, and in no backup: {why}",
                name.display()
            ),
        );
    }
    for mark in present.ours() {
        if mark.profile != settings.name {
            report.warn(
                "drop-in-of-another-profile",
                format!("the drop-in is of profile {}: `nc-maint off` ends it all the same", mark.profile),
            );
        } else if mark.expired() && !active {
            report.warn(
                "drop-in-left",
                format!(
                    "a drop-in was left behind; its deadline has passed: `nc-maint off {}`",
                    settings.words
                ),
            );
        }
    }
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Switches on, to stay on, or to end by itself. Whoever had it on already keeps it; a drop-in that an
/// earlier `on` made is renewed.
pub(crate) fn on((settings, ends): (Settings, bool), report: &mut Report) -> Result<()> {
    let settings = &settings;
    let ledger = Ledger::new(settings);
    let found = ledger.find();
    let active = ledger.run_active()?;
    settings.tell_method(report);
    for key in ["deadline", "on_ms", "proof_ms"] {
        report.set(key, Value::Null);
    }
    report.set("run_id", found.run_id());
    if active {
        report.warn("run-active", "a run is at work: maintenance ends when it does");
    }
    let was_on = switch::state(settings, &mut signals::check)?;
    let own = switch::own(settings, found.run_id());
    let by_run = found.by_run() || own.as_ref().is_some_and(Mark::by_run);
    let leftover = by_run && !found.found_on() && !active;
    let renew = ends && own.is_some_and(|m| !m.by_run()) && !active;
    report.set("maintenance", was_on);
    if was_on && !leftover && !renew {
        curl::until(settings, true, &mut signals::check)?;
        common::say!(TOOL, "maintenance was on already");
        return Ok(());
    }
    switch::rehearse(settings)?;
    signals::check()?;
    let run_id = record::random_id()?;
    let since = common::status::now();
    let mark = Mark::lasting(&settings.name, settings.max, &run_id, &Account::invoking()?.name);
    let claim = Claim {
        run_id: run_id.clone(),
        since,
        deadline: ends.then(|| mark.deadline()),
        pid: None,
        found_on: false,
        method: settings.choice.method,
    };
    let mut ready = switch::prepare(settings, || mark, &mut signals::check)?;
    ledger.stake(&claim)?;
    let begin = Instant::now();
    let thrown = switch::throw(settings, &mut ready, &mut signals::check).and_then(|thrown| {
        let proof_ms = switch::prove(settings, &mut ready, &mut signals::check)?;
        let took = millis(begin);
        signals::check()?;
        ledger.prove(&claim)?;
        Ok((thrown.changed, proof_ms, took))
    });
    match thrown {
        Ok((changed, proof_ms, took)) => {
            report.changed = changed;
            report.set("on_ms", took);
            report.set("proof_ms", proof_ms);
            report.set("deadline", claim.deadline.as_deref());
            report.set("run_id", run_id);
            report.set("maintenance", true);
            match &claim.deadline {
                Some(end) => common::say!(TOOL, "maintenance is on, and ends by itself at {end}"),
                None => common::say!(TOOL, "maintenance is on"),
            }
            Ok(())
        }
        Err(error) => {
            common::say!(TOOL, "cannot switch on: {error:#}");
            common::say!(TOOL, "switching back");
            match switch::back(settings) {
                Ok(()) => ledger.clear()?,
                Err(e) => leave(settings, report, &e),
            }
            Err(error)
        }
    }
}

/// Switches off and proves it. With `if_ours`, ends only what nc-maint began and nobody answers for.
pub(crate) fn off(settings: &Settings, if_ours: bool, report: &mut Report) -> Result<()> {
    let ledger = Ledger::new(settings);
    let found = ledger.find();
    let active = ledger.run_active()?;
    settings.tell_method(report);
    report.set("run_id", found.run_id());
    report.set("kept_because", Value::Null);
    report.set("off_ms", Value::Null);
    let present = switch::present(settings);
    report.set("drop_in", present.json());
    if present.foreign().next().is_some() {
        about_drop_in(settings, &present, active, report);
    }
    if if_ours {
        let drop_in = switch::own(settings, found.run_id()).is_some();
        let reason = match (found.any() || drop_in, found.found_on() && !drop_in) {
            _ if active && !found.overdue() => Some("run-active"),
            (false, _) => Some("not-ours"),
            (true, true) => Some("on-before-run"),
            (true, false) => None,
        };
        if let Some(reason) = reason {
            if reason == "on-before-run" {
                ledger.clear()?;
            }
            report.set("kept_because", json!(reason));
            common::say!(TOOL, "nothing to end: {reason}");
            return Ok(());
        }
    } else if active {
        report.warn("run-active", "a run is at work: it loses its maintenance and will fail");
    }
    let gone = ledger.unprove();
    let begin = Instant::now();
    let mut waiting = crate::php::Waiting::start(settings).ok();
    match switch::off(settings, waiting.as_mut()) {
        Ok(off) => {
            report.changed = off.changed;
            report.set("off_ms", millis(begin));
            for (kind, message) in off.warnings() {
                report.warn(&kind, message);
            }
            report.set("maintenance", false);
            gone?;
            if if_ours || !active {
                ledger.clear()?;
            }
            if !if_ours && restoring::end(settings.state_dir())? {
                common::say!(TOOL, "the restore is finished: what is there now is backed up again");
            }
            common::say!(TOOL, "maintenance is off");
            Ok(())
        }
        Err(e) => {
            leave(settings, report, &e);
            Err(e)
        }
    }
}

/// Says in the report that maintenance could not be proven off.
pub(crate) fn leave(settings: &Settings, report: &mut Report, error: &anyhow::Error) {
    let (what, clear) = switch::stuck(settings, error);
    report.left_behind(what, clear);
}
