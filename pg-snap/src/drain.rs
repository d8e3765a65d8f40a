//! `pg-snap drain`, `hold`, `release` and `status`: what is asked of the holder, and in which order.
//!
//! A request of Nextcloud reads the configuration first, opens its session later, and writes while that is open. How much
//! later has no bound. So nothing rests on a time: `drain` waits for every session that is there, `confirm` for every one that
//! came since, and then nothing may have been written in between (docs/consistency.md has the argument).

use std::ffi::OsString;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::{Fault, Kind, kind_of};
use common::mutant;
use common::profile::Profile;
use common::record::RunRecord;
use common::signals;
use common::status::Report;
use serde::Deserialize;
use serde_json::Value;

use crate::activity::{self, Client, Id, Job, Which};
use crate::client::{call, caller, end_by_force, running, start};
use crate::hold::Held;
use crate::holder::Request;
use crate::horizon::Horizon;
use crate::pause::Pause;

/// Between the proven switch and the drain: most requests that had read the configuration have connected by then. Only a
/// courtesy, as what comes later costs a second try; with each lost one the next waits twice as long.
const GAP: Duration = Duration::from_millis(50);
const LONGEST_GAP: Duration = Duration::from_millis(1600);
/// The same where nothing else can be had: between reading the configuration and connecting, 217 ms have been seen.
const BLIND_GAP: Duration = Duration::from_millis(250);
/// How often a dump says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// How often it is looked again, in maintenance and before it.
const TICK: Duration = Duration::from_millis(10);
const SLOW_TICK: Duration = Duration::from_millis(500);
/// A session that is open for longer than this would not have ended by itself in a moment.
const LONG_MS: u64 = 5_000;

/// Defaults of what the profile may say.
pub(crate) const WAIT: Duration = Duration::from_secs(300);
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const SETTLE: Duration = Duration::from_secs(15);
pub(crate) const MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default, Deserialize)]
pub(crate) struct InTheWay {
    clients: Vec<Client>,
    jobs: Vec<Job>,
}

/// A moment of the database.
#[derive(Debug, Deserialize)]
pub(crate) struct Present {
    pub(crate) horizon: Horizon,
    pub(crate) clients: Vec<Client>,
    lost: u32,
}

impl InTheWay {
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.jobs.is_empty()
    }

    /// For people: the first few.
    fn show(&self) -> String {
        let all: Vec<String> =
            self.jobs.iter().map(Job::show).chain(self.clients.iter().map(Client::show)).collect();
        let more = if all.len() > 3 { format!(" and {} more", all.len() - 3) } else { String::new() };
        format!("{}{more}", all[..all.len().min(3)].join("; "))
    }

    pub(crate) fn tell(&self, report: &mut Report) -> Result<()> {
        report.set("sessions", serde_json::to_value(&self.clients)?);
        report.set("jobs", serde_json::to_value(&self.jobs)?);
        Ok(())
    }
}

/// Why sessions cannot be told apart, if so; said as a warning.
pub(crate) fn fallback(profile: &Profile, report: &mut Report) -> Result<bool> {
    let answer: Value = call(profile, &Request::Fallback)?;
    for warning in answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        report.warn("database-not-compared", warning);
    }
    let Some(why) = answer["fallback"].as_str() else { return Ok(false) };
    report.warn(
        "no-drain-proof",
        format!("{why}: when running requests have ended cannot be seen; a fixed time is waited ([database] settle)"),
    );
    Ok(true)
}

/// Before the switch: waits, for `wait` at most, for what would not drain, and leaves the sessions open for what comes: for as
/// long as the one lives who asks.
pub(crate) fn look(profile: &Profile, argv: &[OsString], wait: Duration, report: &mut Report) -> Result<()> {
    report.changed = !running(profile)?;
    start(profile, argv)?;
    let clock = Instant::now();
    let looked = wait_while_up(profile, clock, wait, report);
    report.set("waited_ms", millis(clock.elapsed()));
    if looked.is_err() {
        // Nothing follows: no session stays open, and paused workers go on.
        // (It may have ended already; why is told by the error that we have.)
        call::<Value>(profile, &Request::Release).ok();
    }
    looked
}

fn wait_while_up(profile: &Profile, clock: Instant, wait: Duration, report: &mut Report) -> Result<()> {
    if let Some(pid) = caller() {
        let () = call(profile, &Request::Serve { pid })?;
    }
    let unseen = fallback(profile, report)?;
    report.set("settle_fallback", unseen);
    let () = call(profile, &Request::Pause)?;
    let mut told = false;
    loop {
        let mut found: InTheWay = call(profile, &Request::InTheWay(Which::Older(LONG_MS)))?;
        if unseen {
            found.clients.clear();
        }
        // What would end the night in maintenance ends it here; a table that is locked may be free in a moment.
        let locked: Result<()> = call(profile, &Request::Rehearse);
        found.tell(report)?;
        match &locked {
            Ok(()) if !found.is_empty() => {}
            Err(e) if kind_of(e) == Kind::Busy => {}
            _ => return locked,
        }
        if clock.elapsed() >= wait {
            if found.is_empty() {
                return locked;
            }
            if found.jobs.is_empty()
                && let Some(fault) = activity::all_hidden(&found.clients)
            {
                return Err(fault.into());
            }
            return Err(Fault::busy(format!(
                "still at work after {} s, so Nextcloud was not switched off for it: {}",
                wait.as_secs(),
                found.show()
            ))
            .hint("a permanent worker needs [database] pause and resume; a program that only reads belongs into readers; else wait longer ([database] wait)")
            .into());
        }
        if !told {
            told = true;
            let what = locked.map_or_else(|e| e.to_string(), |()| found.show());
            common::say!("pg-snap", "waiting for {what}");
        }
        pause(SLOW_TICK)?;
    }
}

/// In maintenance: waits until every session is gone that may belong to a request from before the switch.
pub(crate) fn drain(
    profile: &Profile,
    argv: &[OsString],
    timeout: Duration,
    settle: Duration,
    report: &mut Report,
) -> Result<()> {
    let clock = Instant::now();
    let record = run_of(profile, "drain")?;
    start(profile, argv)?;
    report.set("run_id", record.run_id.as_str());
    // By now they are paused, unless nobody has looked before the switch.
    let () = call(profile, &Request::Pause)?;
    let unseen = fallback(profile, report)?;
    report.set("settle_fallback", unseen);
    let lost = if unseen { 0 } else { call::<Present>(profile, &Request::Present)?.lost };
    // A clock that was set back in between must not shorten the gap.
    let since: jiff::Timestamp = record.since.parse()?;
    let passed = Duration::try_from(jiff::Timestamp::now().duration_since(since)).unwrap_or(Duration::ZERO);
    let courtesy =
        if lost == 0 { GAP.saturating_sub(passed) } else { LONGEST_GAP.min(GAP * 2u32.pow(lost.min(9))) };
    pause(if unseen { BLIND_GAP.saturating_sub(passed) } else { courtesy })?;
    let gap = clock.elapsed();
    if unseen {
        pause(settle)?;
        report.set("waited_ms", millis(clock.elapsed()));
        report.set("drain_ms", millis(clock.elapsed() - gap));
        return Ok(());
    }
    let end = clock + timeout;
    let mut seen = 0;
    let drained = loop {
        let present: Present = call(profile, &Request::Present)?;
        seen = seen.max(present.clients.len());
        let left = wait_for(profile, &present.clients, end)?;
        if !left.clients.is_empty() {
            break Err(left);
        }
        let now: Horizon = call(profile, &Request::Horizon)?;
        if !now.moved_since(&present.horizon) {
            break Ok(present.horizon);
        }
        // Those that ended have written: begin anew, where nothing is written any more.
        if Instant::now() >= end {
            break Err(left);
        }
    };
    report.set("seen_sessions", seen);
    report.set("waited_ms", millis(clock.elapsed()));
    report.set("drain_ms", millis(clock.elapsed() - gap));
    match drained {
        Ok(horizon) => {
            InTheWay::default().tell(report)?;
            call(profile, &Request::Drained { run_id: record.run_id, horizon })
        }
        Err(left) => {
            left.tell(report)?;
            Err(not_ended(&left, timeout).into())
        }
    }
}

/// Waits until these are gone, until `end` at most; who is left.
pub(crate) fn wait_for(profile: &Profile, clients: &[Client], end: Instant) -> Result<InTheWay> {
    let ids: Vec<Id> = clients.iter().map(Client::id).collect();
    let mut left = InTheWay::default();
    while !ids.is_empty() && !mutant::active("sessions-of-the-window") {
        left = call(profile, &Request::InTheWay(Which::These(ids.clone())))?;
        if left.is_empty() || Instant::now() >= end {
            break;
        }
        pause(TICK)?;
    }
    Ok(left)
}

pub(crate) fn not_ended(left: &InTheWay, timeout: Duration) -> Fault {
    if let Some(fault) = activity::all_hidden(&left.clients) {
        return fault;
    }
    let secs = timeout.as_secs_f32();
    if left.is_empty() {
        return Fault::busy(format!("something has gone on writing to the database for {secs} s"))
            .hint("not a request: a job on the server, or (before PostgreSQL 15, which cannot tell) another database of it");
    }
    Fault::busy(format!("requests have not ended within {secs} s: {}", left.show()))
        .hint("try again later; a program that only reads belongs into [database] readers")
}

/// Holds the database's state of now.
pub(crate) fn hold(profile: &Profile, argv: &[OsString], max: Duration, report: &mut Report) -> Result<()> {
    let record = run_of(profile, "hold")?;
    start(profile, argv)?;
    let held: Held = call(profile, &Request::Hold { run_id: record.run_id, max_ms: millis(max) })?;
    report.changed = true;
    tell(&held, report);
    Ok(())
}

fn tell(held: &Held, report: &mut Report) {
    report.set("snapshot", held.snapshot.as_str());
    report.set("run_id", held.run_id.as_str());
    report.set("since", held.since.as_str());
    report.set("tables", held.tables);
    report.set("hold_ms", held.hold_ms);
}

/// Keeps the holder from believing that nobody is there any more, while `work` takes its time.
pub(crate) fn in_use<T>(profile: &Profile, work: impl FnOnce() -> T) -> T {
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while wait.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Whether it is still held is looked at in the end.
                call::<Value>(profile, &Request::Held).ok();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// What is held, for a dump; an error if nothing is, or no longer. Paused workers go on: maintenance is over.
pub(crate) fn held(profile: &Profile) -> Result<Held> {
    if !running(profile)? {
        return Err(nothing().into());
    }
    let _resumed: bool = call(profile, &Request::Resume)?;
    let held: Option<Held> = call(profile, &Request::Held)?;
    let held = held.ok_or_else(nothing)?;
    if !held.confirmed && !mutant::active("dump-only-confirmed") {
        return Err(Fault::failed(
            "it is not shown that nothing was written while the database's state was held",
        )
        .hint("`pg-snap confirm` shows it, in maintenance, when the files have been taken")
        .into());
    }
    Ok(held)
}

/// Still the same: what was dumped of it since is of one state.
pub(crate) fn still_held(profile: &Profile, held: &Held) -> Result<()> {
    let now: Option<Held> = call(profile, &Request::Held)?;
    if now.is_some_and(|n| n.snapshot == held.snapshot) {
        return Ok(());
    }
    Err(Fault::failed("the held state was given back while it was dumped: the dump is void").into())
}

pub(crate) fn nothing() -> Fault {
    Fault::failed("the database's state is not held")
        .hint("`pg-snap hold` holds it, in maintenance; its session may have died since")
}

/// Gives everything back; fine if nothing is held.
pub(crate) fn release(profile: &Profile, report: &mut Report) -> Result<()> {
    if running(profile)? {
        let told: Result<Value> = call(profile, &Request::Release);
        // One that ended by itself in this moment has done the same; one that hangs is ended.
        if let Err(e) = told
            && running(profile)?
        {
            end_by_force(profile).map_err(|_| e)?;
        }
        report.changed = true;
    }
    // Those that a killed holder left paused.
    if Pause::new(profile)?.resume()? {
        report.changed = true;
        common::say!("pg-snap", "resumed the background workers");
    }
    Ok(())
}

/// What is held, and who would be in the way now.
pub(crate) fn status(profile: &Profile, report: &mut Report) -> Result<()> {
    for key in ["held", "sessions", "jobs"] {
        report.set(key, Value::Null);
    }
    let there = running(profile)?;
    report.set("holder", there);
    if there {
        let held: Value = call(profile, &Request::Held)?;
        match held["since"].as_str() {
            Some(since) => common::say!(
                "pg-snap",
                "held since {since}: snapshot {}",
                held["snapshot"].as_str().unwrap_or("?")
            ),
            None => common::say!("pg-snap", "connected, nothing is held"),
        }
        report.set("held", held);
        let found: InTheWay = call(profile, &Request::InTheWay(Which::Older(LONG_MS)))?;
        found.tell(report)?;
    } else {
        common::say!("pg-snap", "nothing is held");
    }
    Ok(())
}

pub(crate) fn run_of(profile: &Profile, action: &str) -> Result<RunRecord> {
    RunRecord::load(profile)?.ok_or_else(|| {
        Fault::failed("Nextcloud is not in maintenance by nc-maint: what is written now would not stop")
            .hint(format!("nc-maint run PROFILE -- pg-snap {action} PROFILE"))
            .into()
    })
}

fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        signals::check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
