//! `link-sync verify`: is every snapshot still what was published?

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::figures::{self, count};
use common::screen::End;
use common::status::Report;
use serde_json::Value;

use crate::account::AsOwner;
use crate::cli;
use crate::far::Far;
use crate::meant;
use crate::progress::Progress;
use crate::protocol::BackupIdle;
use crate::settings::{Place, Settings, rsync_argv};
use crate::store::fetch::Elsewhere;
use crate::store::meta::is_date;
use crate::store::odd::Known;
use crate::store::outcome::{Outcome, Scope};
use crate::store::repair::repair;
use crate::store::verify::verify;
use crate::store::{Store, verified};

/// Findings that are listed unless told otherwise, for people.
const SHOWN: usize = 20;

/// Does it.
pub fn run(args: &cli::Verify, report: &mut Report) -> Result<()> {
    let settings = args.profile.options().settings()?;
    let mut scope = scope(args)?;
    let progress = Progress::shown();
    progress.begin("looking at names and attributes", 0);
    let answer = match &settings.store {
        Place::Local(path) => local(args, &settings, path.clone(), &mut scope, &progress, report)?,
        Place::Ssh { .. } => {
            if args.against.is_some() || args.repair {
                let option = if args.repair { "--repair" } else { "--against" };
                return Err(Fault::config(format!("{option} is for the machine that holds the store"))
                    .hint("run it there, as the account that owns the store, with --store /path")
                    .into());
            }
            let mut far = Far::connect(&settings)?;
            if scope.date != "all" {
                scope.date = meant::at(&mut far, &scope.date)?;
            }
            // What is told of is what has been read.
            let watch = |done, total| progress.reached_of("reading", done, total);
            let request = BackupIdle::Verify { options: scope.clone() };
            let mut answer: Value = far.ask_in_parts(&request, "findings", watch)?;
            report.set("store", far.hello.store.as_str());
            if let Some(Value::String(why)) = answer.as_object_mut().and_then(|a| a.remove("not_recorded")) {
                report.warn("not-recorded", why);
            }
            answer
        }
    };
    // Its line goes away before what was found is said.
    drop(progress);
    tell(answer, args, report)
}

fn scope(args: &cli::Verify) -> Result<Scope> {
    // 48 bits: a number that every JSON reader keeps.
    let random = || {
        let id = common::record::random_id()?;
        u64::from_str_radix(&id[..12], 16).context("a random number is none")
    };
    Ok(Scope {
        date: args.date.clone(),
        sample: args.sample.0,
        seed: args.seed.map_or_else(random, Ok)?,
        limit: args.limit,
    })
}

fn local(
    args: &cli::Verify,
    settings: &Settings,
    path: PathBuf,
    scope: &mut Scope,
    progress: &Progress,
    report: &mut Report,
) -> Result<Value> {
    let store = store(settings, path);
    report.set_text("store", store.path.as_os_str());
    let against = args.against.as_ref().map(|path| {
        let path = std::path::absolute(path).with_context(|| format!("--against {}", path.display()))?;
        Ok::<_, anyhow::Error>(Store { path, mount: None, ..store.clone() })
    });
    let against = against.transpose()?;
    drop(store.check()?);
    for warning in Known::of(&store, jiff::Timestamp::now())?.warnings() {
        report.warn_value(warning);
    }
    if scope.date != "all" {
        scope.date = meant::here(&store, &scope.date)?;
    }
    let watch = |done, total| {
        progress.reached_of("reading", done, total);
        Ok(())
    };
    if args.repair {
        let store = Store { read_only: false, ..store };
        let mut elsewhere = elsewhere(args, settings)?;
        elsewhere.account = AsOwner::of(&store)?;
        let (outcome, repaired) = repair(&store, scope, elsewhere, &watch)?;
        let (list, total) = repaired.describe(scope.limit);
        record(&store, scope, &outcome, total, report);
        report.changed = total > 0;
        if total > 0 {
            report.warn("repaired", format!("fetched back: {} damaged", count(total, "thing")));
        }
        report.set("repaired", list);
        report.set("repaired_total", total);
        report.set("not_repaired", repaired.reasons);
        report.set("not_repaired_total", repaired.left);
        return outcome.describe(scope);
    }
    let outcome = verify(&store, against.as_ref(), scope, &watch)?;
    if against.is_none() {
        record(&store, scope, &outcome, 0, report);
    }
    outcome.describe(scope)
}

/// Where what is damaged may be fetched from.
fn elsewhere(args: &cli::Verify, settings: &Settings) -> Result<Elsewhere> {
    let mut elsewhere = Elsewhere::default();
    for path in &args.from {
        let shown = path.display();
        let names = std::fs::read_dir(path)
            .map_err(|e| Fault::config(format!("--from {shown} cannot be read: {e}")))?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<Vec<_>>>()
            .with_context(|| format!("cannot list {shown}"))?;
        let mut dates: Vec<_> =
            names.iter().filter_map(|n| n.to_str()).filter(|n| is_date(n)).map(str::to_owned).collect();
        if dates.is_empty() {
            return Err(Fault::config(format!("--from {shown}: there is no snapshot in it"))
                .hint("name the folder that holds the dates, not one of them")
                .into());
        }
        dates.sort_unstable();
        elsewhere.from.push((File::open(path).with_context(|| format!("cannot open {shown}"))?, dates));
    }
    // One that is not on this machine is simply no help.
    let sources = settings.sources.iter();
    let opened = sources.filter_map(|s| Some((s.name.clone().into_bytes(), File::open(&s.path).ok()?)));
    elsewhere.sources = opened.collect();
    Ok(elsewhere)
}

/// The local store, to be read.
fn store(settings: &Settings, path: PathBuf) -> Store {
    let table = settings.profile.store.as_ref().filter(|t| t.path == path);
    Store {
        mount: table.and_then(|t| t.mount.clone()),
        rsync: rsync_argv(table.map_or(&[], |t| &t.rsync)),
        path,
        reserve_bytes: 0,
        read_only: true,
        flush_bytes: None,
    }
}

/// Notes it with the rights of the store's owner, who is to read it. A store that cannot be written to, like an opened
/// copy, is verified all the same.
fn record(store: &Store, scope: &Scope, outcome: &Outcome, repaired: u64, report: &mut Report) {
    let noted = AsOwner::of(store).and_then(|_account| verified::record(store, scope, outcome, repaired));
    if let Err(error) = noted {
        report.warn("not-recorded", format!("{error:#}"));
    }
}

/// Dates, sorted, for people.
fn within(dates: &[String]) -> String {
    match dates {
        [first, .., last] if dates.len() > 3 => format!("{} dates from {first} to {last}", dates.len()),
        few => few.join(", "),
    }
}

/// Fills the report from the answer; fails if anything is wrong.
fn tell(answer: Value, args: &cli::Verify, report: &mut Report) -> Result<()> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    let (weaker, skipped) = (texts(&answer["weaker_dates"]), texts(&answer["skipped_dates"]));
    if !weaker.is_empty() {
        report.warn(
            "no-checksums",
            format!(
                "without checksums of their own, or copies, which hold only those of what was new in each: names and attributes were not \
                 compared (of a copy, --against the store it came from does): {}",
                weaker.join(", ")
            ),
        );
        // A copy keeps dates that its store no longer has.
        if args.against.is_none() {
            report.set_partial();
        }
    }
    if !skipped.is_empty() {
        report.warn("being-removed", format!("being removed, so not verified: {}", skipped.join(", ")));
        report.set_partial();
    }
    if texts(&answer["dates"]).is_empty() {
        report.warn("no-snapshot", "the store holds no snapshot that could be verified");
        report.set_partial();
    }
    let listed = answer["findings"].as_array().cloned().unwrap_or_default();
    let finding = |finding: &Value| {
        format!(
            "link-sync: {}: {} in {}: {}",
            finding["kind"].as_str().unwrap_or("?"),
            texts(&finding["paths"]).join(", "),
            within(&texts(&finding["dates"])),
            finding["found"].as_str().unwrap_or("?")
        )
    };
    let shown = if args.all { usize::MAX } else { SHOWN };
    let lines: Vec<String> = listed.iter().take(shown).map(finding).collect();
    report.show_list(&lines, End::First, "findings", args.all);
    let total = number("findings_total");
    report.show(format!(
        "link-sync: {}, {} names, {} of {} distinct files read ({}): {}",
        count(texts(&answer["dates"]).len() as u64, "snapshot"),
        number("paths"),
        number("inodes_read"),
        number("inodes"),
        figures::bytes(number("bytes_read")),
        if total == 0 { "all as published".into() } else { format!("wrong: {}", count(total, "thing")) }
    ));
    let counts = answer["counts"].as_object().cloned().unwrap_or_default();
    if let Value::Object(fields) = answer {
        report.data.extend(fields);
    }
    if total == 0 {
        return Ok(());
    }
    let counts: Vec<_> = counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    Err(Fault::failed(format!("the store is not what was published: {}", counts.join(", ")))
        .hint("data.findings names the files and dates; `link-sync verify --repair` on the store's machine fetches back what another copy holds")
        .into())
}
