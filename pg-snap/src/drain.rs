//! `pg-snap drain`, `hold`, `release` and `status`: what is asked of the holder, and in which order.
//!
//! A request of Nextcloud reads the configuration first and opens its session later. So the sessions that must end are all that began
//! until [`GAP`] after the switch was proven, by the database's own clock.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;
use common::profile::Profile;
use common::record::RunRecord;
use common::signals;
use common::status::Report;
use serde::Deserialize;
use serde_json::Value;

use crate::activity::{Before, Client, Job};
use crate::ask::{ask, running, start};
use crate::hold::Held;
use crate::holder::Ask;
use crate::pause::Pause;

/// Between reading the configuration and opening the connection up to 76 ms were seen on an idle machine.
const GAP: Duration = Duration::from_millis(250);
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
struct InTheWay {
    clients: Vec<Client>,
    jobs: Vec<Job>,
}

impl InTheWay {
    fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.jobs.is_empty()
    }

    /// For people: the first few.
    fn show(&self) -> String {
        let all: Vec<String> =
            self.jobs.iter().map(Job::show).chain(self.clients.iter().map(Client::show)).collect();
        let more = if all.len() > 3 { format!(" and {} more", all.len() - 3) } else { String::new() };
        format!("{}{more}", all[..all.len().min(3)].join("; "))
    }

    fn tell(&self, report: &mut Report) -> Result<()> {
        report.set("sessions", serde_json::to_value(&self.clients)?);
        report.set("jobs", serde_json::to_value(&self.jobs)?);
        Ok(())
    }
}

/// Why sessions cannot be told apart, if so; said as a warning.
fn fallback(profile: &Profile, report: &mut Report) -> Result<bool> {
    let answer: Value = ask(profile, &Ask::Fallback)?;
    let Some(why) = answer["fallback"].as_str() else { return Ok(false) };
    report.warn(
        "no-drain-proof",
        format!("{why}: when running requests have ended cannot be seen; a fixed time is waited ([database] settle)"),
    );
    Ok(true)
}

/// Before the switch: waits, for `wait` at most, for what would not drain, and leaves the sessions open for what comes.
pub(crate) fn look(profile: &Profile, argv: &[OsString], wait: Duration, report: &mut Report) -> Result<()> {
    report.changed = !running(profile)?;
    start(profile, argv)?;
    let clock = Instant::now();
    let looked = wait_while_up(profile, clock, wait, report);
    report.set("waited_ms", millis(clock.elapsed()));
    if looked.is_err() {
        // Nothing follows: no session stays open, and paused workers go on.
        // (It may have ended already; why is told by the error that we have.)
        ask::<Value>(profile, &Ask::Release).ok();
    }
    looked
}

fn wait_while_up(profile: &Profile, clock: Instant, wait: Duration, report: &mut Report) -> Result<()> {
    let unseen = fallback(profile, report)?;
    report.set("settle_fallback", unseen);
    let () = ask(profile, &Ask::Pause)?;
    loop {
        let mut found: InTheWay = ask(profile, &Ask::InTheWay(Before::Age(LONG_MS)))?;
        if unseen {
            found.clients.clear();
        }
        found.tell(report)?;
        if found.is_empty() {
            return Ok(());
        }
        if clock.elapsed() >= wait {
            return Err(Fault::busy(format!(
                "still at work after {} s, so Nextcloud was not switched off for it: {}",
                wait.as_secs(),
                found.show()
            ))
            .hint("a permanent worker needs [database] pause and resume; a program that only reads belongs into readers; else wait longer ([database] wait)")
            .into());
        }
        if clock.elapsed() < SLOW_TICK {
            common::say!("pg-snap", "waiting for {}", found.show());
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
    let () = ask(profile, &Ask::Pause)?;
    let unseen = fallback(profile, report)?;
    report.set("settle_fallback", unseen);
    // A clock that was set back in between must not shorten the gap.
    let since: jiff::Timestamp = record.since.parse()?;
    let passed = Duration::try_from(jiff::Timestamp::now().duration_since(since)).unwrap_or(Duration::ZERO);
    pause(GAP.saturating_sub(passed))?;
    let gap = clock.elapsed();
    if unseen {
        pause(settle)?;
        report.set("waited_ms", millis(clock.elapsed()));
        report.set("drain_ms", millis(clock.elapsed() - gap));
        return Ok(());
    }
    let before = Before::Clock(ask(profile, &Ask::Clock)?);
    let mut most = 0;
    loop {
        let found: InTheWay = ask(profile, &Ask::InTheWay(before.clone()))?;
        most = most.max(found.clients.len());
        if found.is_empty() || clock.elapsed() >= timeout {
            found.tell(report)?;
            report.set("seen_sessions", most);
            report.set("waited_ms", millis(clock.elapsed()));
            report.set("drain_ms", millis(clock.elapsed() - gap));
            return if found.is_empty() {
                Ok(())
            } else {
                Err(Fault::busy(format!(
                    "requests have not ended within {} s: {}",
                    timeout.as_secs_f32(),
                    found.show()
                ))
                .hint("try again later; a program that only reads belongs into [database] readers")
                .into())
            };
        }
        pause(TICK)?;
    }
}

/// Holds the database's state of now.
pub(crate) fn hold(profile: &Profile, argv: &[OsString], max: Duration, report: &mut Report) -> Result<()> {
    let record = run_of(profile, "hold")?;
    start(profile, argv)?;
    let held: Held = ask(profile, &Ask::Hold { run_id: record.run_id, max_ms: millis(max) })?;
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

/// What is held, for a dump; an error if nothing is, or no longer. Paused workers go on: maintenance is over.
pub(crate) fn held(profile: &Profile) -> Result<Held> {
    if !running(profile)? {
        return Err(nothing().into());
    }
    let _resumed: bool = ask(profile, &Ask::Resume)?;
    let held: Option<Held> = ask(profile, &Ask::Held)?;
    held.ok_or_else(|| nothing().into())
}

/// Still the same: what was dumped of it since is of one state.
pub(crate) fn still_held(profile: &Profile, held: &Held) -> Result<()> {
    let now: Option<Held> = ask(profile, &Ask::Held)?;
    if now.is_some_and(|n| n.snapshot == held.snapshot) {
        return Ok(());
    }
    Err(Fault::failed("the held state was given back while it was dumped: the dump is void").into())
}

fn nothing() -> Fault {
    Fault::failed("the database's state is not held")
        .hint("`pg-snap hold` holds it, in maintenance; its session may have died since")
}

/// Gives everything back; fine if nothing is held.
pub(crate) fn release(profile: &Profile, report: &mut Report) -> Result<()> {
    if running(profile)? {
        let told: Result<Value> = ask(profile, &Ask::Release);
        // One that ended by itself in this moment has done the same.
        if let Err(e) = told
            && running(profile)?
        {
            return Err(e);
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
        let held: Value = ask(profile, &Ask::Held)?;
        match held["since"].as_str() {
            Some(since) => common::say!(
                "pg-snap",
                "held since {since}: snapshot {}",
                held["snapshot"].as_str().unwrap_or("?")
            ),
            None => common::say!("pg-snap", "connected, nothing is held"),
        }
        report.set("held", held);
        let found: InTheWay = ask(profile, &Ask::InTheWay(Before::Age(LONG_MS)))?;
        found.tell(report)?;
    } else {
        common::say!("pg-snap", "nothing is held");
    }
    Ok(())
}

fn run_of(profile: &Profile, action: &str) -> Result<RunRecord> {
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
