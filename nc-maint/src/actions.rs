//! `status`, `on` and `off`: the switch without a command.

use anyhow::Result;
use common::record;
use common::signals;
use common::status::Report;
use serde_json::{Value, json};

use crate::claim::{Claim, Ledger};
use crate::settings::Settings;
use crate::switch::{self, METHOD};
use crate::{TOOL, curl};

/// Tells how things are; changes nothing.
pub(crate) fn status(settings: &Settings, report: &mut Report) -> Result<()> {
    let ledger = Ledger::new(settings);
    let found = ledger.find();
    let active = ledger.run_active()?;
    let on = crate::occ::Occ::new(settings).mode()?;
    report.set("maintenance", on);
    report.set("method", METHOD);
    report.set("run_active", active);
    report.set("ours", found.any() && !found.found_on());
    report.set("run_id", found.run_id());
    report.set("record", serde_json::to_value(&found.record)?);
    report.set("clients_maintenance", Value::Null);
    if found.damaged {
        report.warn("record-damaged", "a run record is damaged; `nc-maint off` removes it");
    }
    if let Some(url) = &settings.url {
        match curl::ask(url, settings.url_timeout) {
            Ok(seen) => {
                report.set("clients_maintenance", seen);
                if seen != on {
                    report
                        .warn("clients-differ", format!("occ says {}, {url} says {}", word(on), word(seen)));
                }
            }
            Err(e) => report.warn("url-unavailable", format!("{e:#}")),
        }
    }
    if on && found.by_run() && !active {
        report.warn("run-killed", format!("a run was killed; `nc-maint off {}` ends it", settings.words));
    }
    common::say!(TOOL, "maintenance is {}", word(on));
    Ok(())
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Switches on, to stay on. Whoever had it on already keeps it.
pub(crate) fn on(settings: &Settings, report: &mut Report) -> Result<()> {
    let ledger = Ledger::new(settings);
    let found = ledger.find();
    let active = ledger.run_active()?;
    report.set("method", METHOD);
    report.set("run_id", found.run_id());
    if active {
        report.warn("run-active", "a run is at work: maintenance ends when it does");
    }
    let was_on = switch::state(settings)?;
    let leftover = found.by_run() && !found.found_on() && !active;
    report.set("maintenance", was_on);
    if was_on && !leftover {
        curl::until(settings, true, &mut signals::check)?;
        common::say!(TOOL, "maintenance was on already");
        return Ok(());
    }
    switch::rehearse(settings)?;
    signals::check()?;
    let run_id = record::random_id()?;
    let since = common::status::now();
    let claim = Claim { run_id: run_id.clone(), since, deadline: None, pid: None, found_on: false };
    ledger.stake(&claim)?;
    let thrown = switch::on(settings, &mut signals::check).and_then(|changed| {
        signals::check()?;
        ledger.prove(&claim)?;
        Ok(changed)
    });
    match thrown {
        Ok(changed) => {
            report.changed = changed;
            report.set("run_id", run_id);
            report.set("maintenance", true);
            common::say!(TOOL, "maintenance is on");
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
    report.set("method", METHOD);
    report.set("run_id", found.run_id());
    report.set("kept_because", Value::Null);
    if if_ours {
        let reason = match (found.any(), found.found_on()) {
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
    match switch::off(settings) {
        Ok(changed) => {
            report.changed = changed;
            report.set("maintenance", false);
            gone?;
            if if_ours || !active {
                ledger.clear()?;
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
