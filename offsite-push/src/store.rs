//! The local store: which snapshots there are. One that cannot be read is told and passed over.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::status::Report;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::Deserialize;

/// The form of the dates that name snapshots.
const DATE_FORMAT: &str = "%Y-%m-%dT%H-%M-%SZ";

/// The longest `snapshot.json` that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Whether `name` has the form of a date.
pub(crate) fn is_date(name: &str) -> bool {
    name.len() == 20 && jiff::civil::DateTime::strptime(DATE_FORMAT, name).is_ok()
}

/// How old the snapshot `date` is; `None` if that is no date, or of the future.
pub(crate) fn age_seconds(date: &str) -> Option<u64> {
    let civil = jiff::civil::DateTime::strptime(DATE_FORMAT, date).ok()?;
    let taken = civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    u64::try_from(jiff::Timestamp::now().duration_since(taken).as_secs()).ok()
}

/// A complete snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Its folder's name.
    pub(crate) date: String,
    /// What it calls itself.
    pub(crate) id: String,
    /// Sum of its files' sizes.
    pub(crate) bytes: u64,
    /// Its files and its database belong together.
    pub(crate) sealed: bool,
}

#[derive(Deserialize)]
struct Meta {
    id: String,
    #[serde(default)]
    consistency: String,
    #[serde(default)]
    sources: Vec<Source>,
}

#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    bytes: u64,
}

/// The dated names in the folder `dir`, oldest first.
pub(crate) fn dates(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut dates = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if let Some(name) = entry?.file_name().to_str().filter(|n| is_date(n)) {
            dates.push(name.to_owned());
        }
    }
    dates.sort_unstable();
    Ok(dates)
}

/// The complete snapshots of `store`, oldest first; the others are warned about.
pub(crate) fn list(store: &Path, report: &mut Report) -> Result<Vec<Snapshot>> {
    let dates = dates(store).map_err(|e| {
        let fault = match e.kind() {
            std::io::ErrorKind::NotFound => Fault::config(format!("there is no store {}", store.display()))
                .hint("is its disk mounted? path in [store], or store in [offsite], names it"),
            _ => Fault::failed(format!("cannot list the store {}: {e}", store.display())),
        };
        anyhow::Error::from(fault)
    })?;
    let dir = File::open(store).with_context(|| format!("cannot open the store {}", store.display()))?;
    let mut list = Vec::new();
    for date in dates {
        if age_seconds(&date).is_none() && !mutant::active("a-date-to-come-is-pushed") {
            // As link-sync has it, which tells it with the cure: it counts for nothing.
            let why = format!("{date} is dated in the future and is passed over: `link-sync list` says more");
            report.warn("odd-snapshot", why);
            continue;
        }
        match read(&dir, &date) {
            Ok(snapshot) => list.push(snapshot),
            Err(e) => report.warn(
                "damaged-snapshot",
                format!(
                    "{} is not a complete snapshot and is passed over: {e:#}",
                    store.join(&date).display()
                ),
            ),
        }
    }
    Ok(list)
}

/// Reads what the snapshot says of itself. The store may be an account's, which can have put anything there: a symlink
/// is not followed, a pipe is not waited for, and nothing is read without end.
fn read(store: &File, date: &str) -> Result<Snapshot> {
    const NAME: &str = ".meta/snapshot.json";
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let path = Path::new(date).join(NAME);
    let file = loop {
        match openat2(store, &path, OpenHow::new().flags(flags).resolve(resolve)) {
            // It may have to be tried again when something is renamed meanwhile (openat2(2)).
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::ELOOP) => anyhow::bail!("{NAME} is a symlink, or behind one"),
            other => break File::from(other.with_context(|| format!("cannot open {NAME}"))?),
        }
    };
    if !file.metadata().with_context(|| format!("cannot look at {NAME}"))?.is_file() {
        anyhow::bail!("{NAME} is not a file");
    }
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text).with_context(|| format!("cannot read {NAME}"))?;
    if text.len() as u64 > LONGEST {
        anyhow::bail!("{NAME} is longer than {LONGEST} bytes");
    }
    let meta: Meta = serde_json::from_slice(&text).with_context(|| format!("{NAME} is damaged"))?;
    if meta.id.is_empty() {
        anyhow::bail!("{NAME} has no id");
    }
    let bytes = meta.sources.iter().map(|s| s.bytes).fold(0, u64::saturating_add);
    Ok(Snapshot { date: date.to_owned(), id: meta.id, bytes, sealed: meta.consistency == "sealed" })
}

/// The snapshot `date` of `list`, or the newest for `latest`.
pub(crate) fn pick(list: &[Snapshot], date: &str, store: &Path) -> Result<Snapshot> {
    let found = match date {
        "latest" => list.last(),
        _ => list.iter().find(|s| s.date == date),
    };
    found.cloned().ok_or_else(|| match date {
        "latest" => Fault::config(format!("the store {} holds no snapshot", store.display()))
            .hint("make one first: backup-local, on S1")
            .into(),
        _ => Fault::config(format!("the store {} holds no snapshot {date}", store.display()))
            .hint(format!("`link-sync list --store {}` shows the dates", store.display()))
            .into(),
    })
}

/// How many snapshots of `list` are newer than `date`.
pub(crate) fn newer_than(list: &[Snapshot], date: Option<&str>) -> usize {
    list.iter().filter(|s| date.is_none_or(|d| s.date.as_str() > d)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_ones_are_passed_over_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let meta = |date: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(date).join(".meta")).unwrap();
            std::fs::write(dir.path().join(date).join(".meta/snapshot.json"), text).unwrap();
        };
        meta("2026-11-20T03-30-00Z", r#"{"id":"a","date":"x","more":1}"#);
        meta("2026-11-21T03-30-00Z", r#"{"id":"b"}"#);
        meta("2026-11-22T03-30-00Z", "{\"id\":");
        std::fs::create_dir(dir.path().join("2026-11-23T03-30-00Z")).unwrap();
        std::fs::create_dir(dir.path().join(".partial")).unwrap();
        let mut report = Report::new("test");
        let list = list(dir.path(), &mut report).unwrap();
        assert_eq!(list.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(report.warnings().len(), 2);
        assert_eq!(pick(&list, "latest", dir.path()).unwrap().id, "b");
        assert_eq!(pick(&list, "2026-11-20T03-30-00Z", dir.path()).unwrap().id, "a");
        let error = pick(&list, "2026-11-22T03-30-00Z", dir.path()).unwrap_err();
        assert_eq!(common::fault::kind_of(&error), common::fault::Kind::Config);
        assert_eq!(newer_than(&list, Some("2026-11-20T03-30-00Z")), 1);
        assert_eq!(newer_than(&list, None), 2);
    }

    #[test]
    fn a_date_that_is_still_to_come_is_neither_the_newest_nor_missing_in_the_container() {
        let dir = tempfile::tempdir().unwrap();
        for date in ["2026-01-20T03-30-00Z", "2999-01-01T03-30-00Z"] {
            std::fs::create_dir_all(dir.path().join(date).join(".meta")).unwrap();
            std::fs::write(
                dir.path().join(date).join(".meta/snapshot.json"),
                format!("{{\"id\":\"{date}\"}}"),
            )
            .unwrap();
        }
        let mut report = Report::new("test");
        let list = list(dir.path(), &mut report).unwrap();
        assert_eq!(pick(&list, "latest", dir.path()).unwrap().date, "2026-01-20T03-30-00Z");
        assert_eq!(newer_than(&list, Some("2026-01-20T03-30-00Z")), 0);
        assert_eq!(report.warnings()[0]["kind"], "odd-snapshot");
    }

    #[test]
    fn what_an_account_may_have_put_there_neither_hangs_nor_leads_astray() {
        let dir = tempfile::tempdir().unwrap();
        let good = r#"{"id":"a","sources":[{"name":"x","bytes":3},{"name":"y","bytes":4}]}"#;
        std::fs::write(dir.path().join("good"), good).unwrap();
        let meta = |day: u32| {
            let meta = dir.path().join(format!("2026-11-{day}T03-30-00Z/.meta"));
            std::fs::create_dir_all(&meta).unwrap();
            meta.join("snapshot.json")
        };
        std::fs::copy(dir.path().join("good"), meta(10)).unwrap();
        nix::unistd::mkfifo(&meta(11), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::os::unix::fs::symlink(dir.path().join("good"), meta(12)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", meta(13)).unwrap();
        std::fs::create_dir(meta(14)).unwrap();
        File::create(meta(15)).unwrap().set_len(LONGEST + 1).unwrap();
        // The folder of it, and the snapshot itself.
        std::fs::create_dir(dir.path().join("2026-11-16T03-30-00Z")).unwrap();
        let real = dir.path().join("2026-11-10T03-30-00Z");
        std::os::unix::fs::symlink(real.join(".meta"), dir.path().join("2026-11-16T03-30-00Z/.meta"))
            .unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("2026-11-17T03-30-00Z")).unwrap();
        let mut report = Report::new("test");
        let list = list(dir.path(), &mut report).unwrap();
        assert_eq!(
            list,
            [Snapshot { date: "2026-11-10T03-30-00Z".into(), id: "a".into(), bytes: 7, sealed: false }]
        );
        assert_eq!(report.warnings().len(), 7, "{:?}", report.warnings());
        assert!(report.warnings().iter().all(|w| w["kind"] == "damaged-snapshot"));
    }
}
