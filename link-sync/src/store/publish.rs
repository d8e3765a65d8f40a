//! From partial to published: times, what is known about it, durable, one rename, `latest`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use common::fault::Fault;
use common::mutant;
use common::record::random_id;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::attributes::set_modified;
use super::beneath::{ensure_dir, open_dir};
use super::clear::remove;
use super::done::{AllDone, DirTimes, Done};
use super::latest::point_latest;
use super::layout::{INCOMING, META, PARTIAL, RESUME};
use super::meta::{Consistency, DATE_FORMAT, SnapshotMeta, SourceMeta};
use super::open::Writable;
use super::{manifest, visit};
use crate::names::show;

/// What is said of the snapshot that is to be published.
#[derive(Debug)]
pub enum Described {
    /// What the source knows of one it has made; the date is by the store's clock.
    Source(Description),
    /// The whole `snapshot.json` of one of another store, which is kept byte for byte, with its date.
    Copy(String),
}

/// What a source knows of the snapshot it has made. All else is known to the store.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The maintenance run it was sealed in.
    pub run_id: Option<String>,
    /// How far its parts belong together.
    pub consistency: Consistency,
    /// When staging began, by the source's clock.
    pub started_at: String,
    /// link-sync's version there.
    pub tool_version: String,
    /// Its sources.
    pub sources: Vec<SourceMeta>,
}

/// A snapshot that has been published.
#[derive(Debug, Deserialize, Serialize)]
pub struct Published {
    /// What a person should know.
    pub warnings: Vec<Value>,
    /// Its random id.
    pub id: String,
    /// Its name.
    pub date: String,
    /// Its folder.
    pub path: String,
    /// Files that were hashed for the checksums.
    #[serde(default)]
    pub hashed_files: u64,
    /// Their bytes.
    #[serde(default)]
    pub hashed_bytes: u64,
}

/// Publishes the partial snapshot. On return it is durable: every block of it, its name, and `latest` unless a
/// warning says that it could not be moved.
///
/// A copy of another store's snapshot keeps its date and all that is known about it. `told` hears how much of what is
/// new is hashed.
pub fn publish(
    writable: &Writable,
    described: Described,
    done: &AllDone,
    watch: &(impl Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Published> {
    let partial = open_dir(&writable.dir, PARTIAL.as_bytes()).context("there is no partial snapshot")?;
    let (mut meta, mut text): (SnapshotMeta, String) = match described {
        Described::Copy(text) => {
            let meta: SnapshotMeta =
                serde_json::from_str(&text).context("the source described the snapshot wrongly")?;
            check_date(&meta.date)?;
            (meta, text)
        }
        Described::Source(description) => (complete(writable, description)?, String::new()),
    };
    let names: Vec<_> =
        visit::names(&partial)?.into_iter().map(|n| n.0).filter(|n| n != META.as_bytes()).collect();
    let mut wanted: Vec<_> = meta.sources.iter().map(|s| s.name.clone().into_bytes()).collect();
    wanted.sort();
    ensure!(names == wanted, "the partial snapshot holds {names:?}, not the sources {wanted:?}");
    for source in &meta.sources {
        let Some(Done { times, .. }) = done.get(&source.name) else { continue };
        let dir = writable.source_dir(PARTIAL, &source.name)?;
        set_times(&dir, writable.base_dir(&source.name)?.as_ref(), times)
            .with_context(|| format!("cannot set the times of {}", source.name))?;
    }
    if !writable.copy {
        // What an attempt that failed has left.
        remove(&partial, Path::new(META))?;
    }
    ensure_dir(&partial, META.as_bytes())?;
    let (mut warnings, mut hashed) = (Vec::new(), (0, 0));
    if !writable.copy {
        let made =
            manifest::make(writable, &partial, &names, done, watch).context("cannot make the checksums")?;
        (warnings, hashed) = (made.warnings, made.hashed);
        meta.manifest = Some(made.manifest);
        // After what took time.
        meta.date = free_date(writable)?;
        meta.published_at = common::status::now();
        text = format!("{}\n", serde_json::to_string_pretty(&meta)?);
    }
    let date = meta.date.clone();
    ensure!(super::meta::is_date(&date), "'{date}' is not a snapshot's date");
    check_length(&text, writable.copy)?;
    let folder = writable.store.path.join(PARTIAL).join(META);
    common::durable::write(&folder.join("snapshot.json"), text.as_bytes(), 0o600)?;
    common::durable::write(&folder.join("lock"), b"", 0o600)?;
    // Before the name changes: what an interrupted run received was compared with this base, not with the next.
    for leftover in [INCOMING, RESUME] {
        writable.discard(leftover)?;
    }
    writable.store.check().context("the store changed while the snapshot was made")?;
    // One call for the whole file system: it returns when all of it is on the disk, or says why not.
    writable.pace.sync().context("cannot make the snapshot durable")?;
    // Also when all of it came between two looks.
    if !mutant::active("the-room-is-not-looked-at-last") {
        writable.pace.room()?;
    }
    common::rename::noreplace(&writable.dir, PARTIAL, &writable.dir, date.as_str())
        .context("cannot publish the snapshot")?;
    writable.dir.sync_all().context("cannot make the new snapshot's name durable")?;
    // It is published now, whatever else happens; the next run puts `latest` right.
    let newest = writable.newest.clone().filter(|n| *n > date).unwrap_or_else(|| date.clone());
    let latest = point_latest(&writable.dir, &newest, true).err();
    warnings.extend(latest.map(|e| json!({"kind": "latest-not-moved", "message": format!("{e:#}")})));
    let path = writable.store.path.join(&date).display().to_string();
    let (hashed_files, hashed_bytes) = hashed;
    Ok(Published { warnings, id: meta.id, path, date, hashed_files, hashed_bytes })
}

/// The first whole second from now that no snapshot is named after, and that is later than all.
fn free_date(writable: &Writable) -> Result<String> {
    for _ in 0..3 {
        let date = jiff::Timestamp::now().strftime(DATE_FORMAT).to_string();
        // A damaged snapshot is no base, but its name is taken.
        let taken = writable.store.path.join(&date).symlink_metadata().is_ok();
        if !taken && writable.newest.as_ref().is_none_or(|newest| *newest < date) {
            return Ok(date);
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    Err(Fault::unavailable("the store's clock went back while the snapshot was made").into())
}

/// The description without what is known last: the date and the checksums.
fn complete(writable: &Writable, description: Description) -> Result<SnapshotMeta> {
    let base = writable.base.as_ref();
    let Description { run_id, consistency, started_at, tool_version, sources } = description;
    Ok(SnapshotMeta {
        schema: 1,
        id: random_id()?,
        date: String::new(),
        base_id: base.map(|b| b.id.clone()),
        base_date: base.map(|b| b.date.clone()),
        run_id,
        consistency,
        started_at,
        published_at: String::new(),
        tool_version,
        fake_super: !nix::unistd::geteuid().is_root(),
        sources,
        manifest: None,
    })
}

/// A copy has a date, and none that is still to come: it would be the newest for ever.
fn check_date(date: &str) -> Result<()> {
    if super::meta::taken(date)? <= super::meta::tomorrow() || mutant::active("copies-of-the-future") {
        return Ok(());
    }
    Err(Fault::config(format!("the snapshot {date} is of the future, by this machine's clock: it is not copied"))
        .hint(format!(
            "set the clock if it is wrong; else who made that date? `link-sync prune --date {date} --yes` removes it"
        ))
        .into())
}

/// A description of a source's own making: all of them are read whenever there is another.
const DESCRIPTION: usize = 256 << 10;

/// What could not be read again must not be published.
fn check_length(text: &str, copy: bool) -> Result<()> {
    let most = if copy { super::meta::LONGEST } else { DESCRIPTION };
    if text.len() < most || mutant::active("descriptions-of-any-length") {
        return Ok(());
    }
    Err(Fault::config(format!(
        "the snapshot's description takes {} bytes, and {most} are the most that it may: it is not published",
        text.len(),
    ))
    .hint("does a source hold many thousand mount points? exclude them, or make sources of their own of them")
    .into())
}

/// Sets the directories' modification times: as the source said, else as in the base.
fn set_times(dir: &File, base: Option<&File>, times: &DirTimes) -> Result<()> {
    for (path, time) in times {
        let context = || format!("cannot set the time of the folder {}", show(path));
        let open = match open_dir(dir, path) {
            Ok(open) => open,
            // Taken out by a later pass.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
            Err(e) => return Err(e).with_context(context),
        };
        // Only a folder that came and went while it was taken (so never in a sealed snapshot) is unknown to both.
        let (sec, nsec) = match (time, base.map(|b| open_dir(b, path))) {
            (Some((sec, nsec)), _) => (*sec, i64::from(*nsec)),
            (None, Some(Ok(old))) => {
                let old = nix::sys::stat::fstat(&old).with_context(context)?;
                (old.st_mtime, old.st_mtime_nsec)
            }
            (None, None | Some(Err(Errno::ENOENT))) => continue,
            (None, Some(Err(e))) => return Err(e).with_context(context),
        };
        set_modified(&open, &TimeSpec::new(sec, nsec)).with_context(context)?;
    }
    Ok(())
}
