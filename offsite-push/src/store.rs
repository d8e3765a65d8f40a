//! The local store: which snapshots there are. One that cannot be read is told and passed over.

use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::Report;
use serde::Deserialize;

/// The form of the dates that name snapshots.
const DATE_FORMAT: &str = "%Y-%m-%dT%H-%M-%SZ";

/// Whether `name` has the form of a date.
pub(crate) fn is_date(name: &str) -> bool {
    name.len() == 20 && jiff::civil::DateTime::strptime(DATE_FORMAT, name).is_ok()
}

/// A complete snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Its folder's name.
    pub(crate) date: String,
    /// What it calls itself.
    pub(crate) id: String,
}

#[derive(Deserialize)]
struct Meta {
    id: String,
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
    let mut list = Vec::new();
    for date in dates {
        match read(&store.join(&date)) {
            Ok(id) => list.push(Snapshot { date, id }),
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

fn read(dir: &Path) -> Result<String> {
    let file = dir.join(".meta/snapshot.json");
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let meta: Meta =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?;
    if meta.id.is_empty() {
        anyhow::bail!("{} has no id", file.display());
    }
    Ok(meta.id)
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
}
