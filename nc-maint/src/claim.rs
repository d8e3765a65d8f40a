//! What is written down so that maintenance ends even if everybody who knew of it is killed.
//!
//! Two files in the state folder. The *claim* (`switch.json`) is there from before the switch is thrown until
//! off is proven: whoever finds it without a run at work may switch off. The *record* (`maintenance.json`,
//! [`common::record`]) is there only while maintenance is proven on; other tools trust it.
//! A run is at work exactly as long as its guardian holds the lock in the runtime folder: unlike
//! a process number, that means nothing else after a reboot.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::{Kind, kind_of};
use common::lock::Lock;
use common::mutant;
use common::processes::Process;
use common::profile::Method;
use common::record::RunRecord;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// How long a child of a killed guardian may need to become the program it is to be.
const ORPHAN: Duration = Duration::from_secs(10);

/// Who wants maintenance, and what was found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Claim {
    /// 32 hexadecimal digits.
    pub(crate) run_id: String,
    /// RFC 3339 UTC: when the switch was about to be thrown.
    pub(crate) since: String,
    /// RFC 3339 UTC: when it ends at the latest; `None` for a plain `on`.
    pub(crate) deadline: Option<String>,
    /// The guardian; `None` for a plain `on`.
    pub(crate) pid: Option<u32>,
    /// Maintenance was on before: it is not ours to end.
    pub(crate) found_on: bool,
    /// How the switch is thrown.
    pub(crate) method: Method,
}

/// The files of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    claim: PathBuf,
    record: PathBuf,
    lock: PathBuf,
}

/// What was found there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The claim, if it can be read.
    pub(crate) claim: Option<Claim>,
    /// The record, if it can be read.
    pub(crate) record: Option<RunRecord>,
    /// A file is there and cannot be read.
    pub(crate) damaged: bool,
}

impl Claim {
    /// The record that says this claim is proven, as of now: to the microsecond, as the sessions of requests
    /// that began before are told apart by it.
    pub(crate) fn proven(&self) -> RunRecord {
        RunRecord {
            run_id: self.run_id.clone(),
            since: format!("{:.6}", jiff::Timestamp::now()),
            method: self.method.word().into(),
            deadline: self.deadline.clone(),
            pid: self.pid,
        }
    }
}

impl Found {
    /// Something of ours is written down.
    pub(crate) fn any(&self) -> bool {
        self.claim.is_some() || self.record.is_some() || self.damaged
    }

    /// Maintenance was on before the run that is written down.
    pub(crate) fn found_on(&self) -> bool {
        self.claim.as_ref().is_some_and(|c| c.found_on)
    }

    /// A run (not a plain `on`) switched it on. If none is at work, it was killed.
    pub(crate) fn by_run(&self) -> bool {
        let pid = |c: &Claim| c.pid.is_some();
        self.claim.as_ref().map_or(self.record.as_ref().is_some_and(|r| r.pid.is_some()), pid)
    }

    /// The id of the run that is written down.
    pub(crate) fn run_id(&self) -> Option<&str> {
        let claim = self.claim.as_ref().map(|c| c.run_id.as_str());
        claim.or(self.record.as_ref().map(|r| r.run_id.as_str()))
    }

    /// Its latest end has passed.
    pub(crate) fn overdue(&self) -> bool {
        let claim = self.claim.as_ref().and_then(|c| c.deadline.as_ref());
        let deadline = claim.or(self.record.as_ref().and_then(|r| r.deadline.as_ref()));
        let deadline = deadline.and_then(|d| d.parse::<jiff::Timestamp>().ok());
        deadline.is_some_and(|d| d < jiff::Timestamp::now())
    }
}

impl Ledger {
    /// The ledger of an instance; nothing is read yet.
    pub(crate) fn new(settings: &Settings) -> Ledger {
        Ledger {
            claim: settings.state_file("switch.json"),
            record: settings.state_file("maintenance.json"),
            lock: settings.runtime_file("maintenance.lock"),
        }
    }

    /// What is written down. Files that cannot be read never stop a clean-up.
    pub(crate) fn find(&self) -> Found {
        let bytes = std::fs::read(&self.claim).ok();
        let claim = bytes.as_ref().and_then(|b| serde_json::from_slice(b).ok());
        let record = RunRecord::load_from(&self.record);
        let damaged = (bytes.is_some() && claim.is_none()) || record.is_err();
        Found { claim, record: record.ok().flatten(), damaged }
    }

    /// Writes the claim; durable on return.
    pub(crate) fn stake(&self, claim: &Claim) -> Result<()> {
        durable::write(&self.claim, &serde_json::to_vec(claim)?, 0o600)
    }

    /// Writes the record: the switch is proven.
    pub(crate) fn prove(&self, claim: &Claim) -> Result<()> {
        claim.proven().save(&self.record)
    }

    /// Removes the record: the switch is about to be thrown back.
    pub(crate) fn unprove(&self) -> Result<()> {
        RunRecord::remove(&self.record)
    }

    /// Removes both: off is proven, or it never was ours. Durable on return.
    pub(crate) fn clear(&self) -> Result<()> {
        self.unprove()?;
        RunRecord::remove(&self.claim)?;
        durable::sync_dir(self.claim.parent().unwrap_or(Path::new("/")))
    }

    /// Puts back what another one had written down before us.
    pub(crate) fn restore(&self, found: &Found) -> Result<()> {
        match &found.record {
            Some(record) => record.save(&self.record)?,
            None => self.unprove()?,
        }
        match &found.claim {
            Some(claim) => self.stake(claim),
            None => RunRecord::remove(&self.claim),
        }
    }

    /// Takes the lock that says "a run is at work". Waits a moment, as [`Ledger::run_active`] looks by
    /// touching it.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let end = Instant::now() + Duration::from_millis(500);
        loop {
            match Lock::exclusive(&self.lock, "the maintenance switch") {
                Err(e) if kind_of(&e) == Kind::Busy && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                taken => return taken.context("another run of nc-maint is at work"),
            }
        }
    }

    /// Whether a run is at work. A child that a killed guardian was starting holds a copy of its lock until it has become
    /// another program, and may be the occ that switches on: that is waited for.
    pub(crate) fn run_active(&self) -> Result<bool> {
        let end = Instant::now() + ORPHAN;
        loop {
            match Lock::shared(&self.lock, "the maintenance switch") {
                Ok(_probe) => return Ok(false),
                Err(e) if kind_of(&e) != Kind::Busy => return Err(e),
                Err(_) if Instant::now() < end && self.guardian_is_dead() => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => return Ok(true),
            }
        }
    }

    /// Whether the guardian that is written down has ended, or was killed and is about to.
    fn guardian_is_dead(&self) -> bool {
        let pid = self.find().claim.and_then(|claim| claim.pid);
        pid.is_some_and(|pid| Process::find(pid).is_none_or(|p| p.is_ending()))
            && !mutant::active("a-copy-of-the-lock-is-a-run")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(deadline: &str) -> Claim {
        let text = |t: &str| t.to_owned();
        Claim {
            run_id: text("r"),
            since: text("2026-01-01T00:00:00Z"),
            deadline: Some(text(deadline)),
            pid: Some(1),
            found_on: false,
            method: Method::Occ,
        }
    }

    #[test]
    fn overdue_is_past_the_deadline_and_only_with_one() {
        let with = |claim| Found { claim, ..Found::default() };
        assert!(with(Some(claim("2026-01-01T00:00:00Z"))).overdue());
        assert!(!with(Some(claim("2999-01-01T00:00:00Z"))).overdue());
        assert!(!with(Some(Claim { deadline: None, ..claim("") })).overdue());
        assert!(!with(None).overdue());
    }

    #[test]
    fn a_damaged_file_is_still_something_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let ledger = Ledger { claim: file("c"), record: file("r"), lock: file("l") };
        assert!(!ledger.find().any());
        std::fs::write(&ledger.claim, "{").unwrap();
        assert!(ledger.find().any());
        ledger.clear().unwrap();
        assert!(!ledger.find().any());
    }
}
