//! What is asked for: sources and paths in them, as the command line names them and the snapshot holds them.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, PathBuf};

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use common::status::Report;

use crate::cli::Restore;
use crate::far::Far;
use crate::names::show;
use crate::protocol::{Looked, ReadHolding};
use crate::settings::Settings;
use crate::source::DATABASE;
use crate::store::meta::SnapshotMeta;
use crate::store::path::check_path;
use crate::tree::join;

/// One path that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The source it is in.
    pub source: String,
    /// Relative to the source; empty: all of it.
    pub path: Vec<u8>,
}

impl Wish {
    /// A whole source.
    fn all(source: &str) -> Wish {
        Wish { source: source.to_owned(), path: Vec::new() }
    }

    /// `SOURCE/PATH`.
    pub fn full(&self) -> Vec<u8> {
        match self.path.is_empty() {
            true => self.source.as_bytes().to_vec(),
            false => join(self.source.as_bytes(), &self.path),
        }
    }

    /// It is `other`, or lies below it.
    fn is_in(&self, other: &Wish) -> bool {
        let below = |rest: &[u8]| rest.is_empty() || other.path.is_empty() || rest.starts_with(b"/");
        other.source == self.source && self.path.strip_prefix(&other.path[..]).is_some_and(below)
    }
}

/// What the command line asks for.
pub fn wishes(args: &Restore) -> Result<Vec<Wish>> {
    for source in &args.source {
        common::profile::check_name(source).map_err(Fault::usage)?;
    }
    let mut wishes = Vec::new();
    if args.path.is_empty() && args.user.is_empty() {
        wishes.extend(args.source.iter().map(|s| Wish::all(s)));
    } else if args.source.len() > 1 || (!args.user.is_empty() && args.source.iter().any(|s| s != "data")) {
        return Err(Fault::usage("--path is in one --source, and a --user's files are in data")
            .hint("restore in two steps")
            .into());
    }
    let source = args.source.first().map_or("data", String::as_str);
    for path in &args.path {
        let plain: PathBuf = path.components().filter(|c| *c != Component::CurDir).collect();
        let bytes = plain.as_os_str().as_bytes().to_vec();
        if path.is_absolute() || check_path(&bytes).is_err() {
            return Err(Fault::usage(format!(
                "--path {} is not relative to the source {source}",
                path.display()
            ))
            .hint("write it as in STORE/DATE/SOURCE, without a slash at the beginning and without ..")
            .into());
        }
        wishes.push(Wish { source: source.to_owned(), path: bytes });
    }
    for user in &args.user {
        let bytes = user.as_os_str().as_bytes().to_vec();
        if bytes.is_empty() || bytes.contains(&b'/') || bytes == b"." || bytes == b".." {
            return Err(Fault::usage(format!("--user {} is not the name of a user", user.display())).into());
        }
        wishes.push(Wish { source: "data".to_owned(), path: bytes });
    }
    if args.closed && !args.in_place {
        return Err(Fault::usage("--closed is for an instance that comes to its place")
            .hint("give --in-place, too")
            .into());
    }
    if args.in_place && args.source.iter().any(|s| s == DATABASE) {
        return Err(Fault::usage("the database is not restored by copying files")
            .hint("`link-sync restore --source database --to DIR`, then `pg-snap restore --dump DIR/database/DUMP`")
            .into());
    }
    for (n, wish) in wishes.iter().enumerate() {
        if wishes.iter().enumerate().any(|(m, other)| m != n && wish.is_in(other)) {
            return Err(Fault::usage(format!("{} is named twice", show(&wish.full()))).into());
        }
    }
    Ok(wishes)
}

/// All that the snapshot holds; in place, what the profile knows a place for. The database is not files to be copied there.
pub fn everything(
    args: &Restore,
    settings: &Settings,
    meta: &SnapshotMeta,
    report: &mut Report,
) -> Vec<Wish> {
    let names = meta.sources.iter().map(|s| s.name.clone());
    if !args.in_place {
        return names.map(|name| Wish::all(&name)).collect();
    }
    let known = |name: &String| settings.sources.iter().any(|s| s.name == *name);
    let (known, unknown): (Vec<_>, Vec<_>) = names.filter(|name| name != DATABASE).partition(known);
    if !unknown.is_empty() {
        report.warn(
            "sources-left-out",
            format!(
                "the profile does not say where these sources belong, so they stay where they are: {}",
                unknown.join(", ")
            ),
        );
        report.set_partial();
    }
    report.set("left_out_sources", unknown);
    known.iter().map(|name| Wish::all(name)).collect()
}

/// What the snapshot holds of it.
pub fn look(far: &mut Far, meta: &SnapshotMeta, wishes: &[Wish]) -> Result<Vec<Looked>> {
    for Wish { source, .. } in wishes {
        if meta.source(source).is_none() {
            let known: Vec<_> = meta.sources.iter().map(|s| s.name.as_str()).collect();
            return Err(Fault::config(format!("the snapshot {} holds no source '{source}'", meta.date))
                .hint(format!("it holds {}", known.join(", ")))
                .into());
        }
    }
    let looked: Vec<Option<Looked>> = far.ask_with_list(&ReadHolding::Look {}, |list| {
        wishes.iter().try_for_each(|wish| list.path(&wish.full()))
    })?;
    let missing = wishes.iter().zip(&looked).find(|(_, l)| l.is_none());
    if let Some((wish, _)) = missing {
        // As `find` and `diff` print it.
        let mut names = wish.path.splitn(2, |b| *b == b'/');
        let first = names.next().and_then(|name| std::str::from_utf8(name).ok());
        let hint = match (first.filter(|name| meta.source(name).is_some()), names.next()) {
            (Some(name), Some(rest)) => {
                format!("without the source's name: --source {name} --path {}", show(rest))
            }
            _ => "--path is written without the source's name; `link-sync find PROFILE --name NAME` says where it is, and when it \
                  was there"
                .into(),
        };
        return Err(Fault::config(format!("{} is not in the snapshot {}", show(&wish.full()), meta.date))
            .hint(hint)
            .into());
    }
    let looked: Vec<Looked> = looked.into_iter().flatten().collect();
    for (wish, looked) in wishes.iter().zip(&looked) {
        let above = join(&wish.full(), b"");
        let below = |deep: &Vec<u8>| deep.starts_with(&above) && check_path(deep).is_ok();
        if !looked.deep.iter().all(below) {
            return Err(Fault::failed("the other end named folders that were not asked for").into());
        }
    }
    Ok(looked)
}

/// What the far end says of the snapshot becomes names of folders here.
pub fn plausible(meta: &SnapshotMeta, asked: &str) -> Result<()> {
    let wrong = |what: String| {
        Fault::failed(format!("the other end described the snapshot wrongly: {what}"))
            .hint("is it link-sync of this version, and has somebody written to the store?")
    };
    if mutant::active("restore-believes-descriptions") {
        return Ok(());
    }
    if !crate::store::meta::is_date(&meta.date) || asked != meta.date {
        return Err(wrong(format!("its date is '{}'", meta.date.escape_debug())).into());
    }
    if meta.id.len() != 32 || !meta.id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong(format!("its id is '{}'", meta.id.escape_debug())).into());
    }
    match meta.sources.iter().find(|s| common::profile::check_name(&s.name).is_err()) {
        Some(source) => Err(wrong(format!("a source is called '{}'", source.name.escape_debug())).into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_description_that_would_lead_elsewhere_is_refused() {
        let good = json!({
            "schema": 1, "id": "0123456789abcdef0123456789abcdef", "date": "2026-01-02T03-04-05Z", "base_id": null,
            "base_date": null, "run_id": null, "consistency": "sealed", "started_at": "", "published_at": "",
            "tool_version": "", "fake_super": true,
            "sources": [{"name": "data", "path": "/", "fs_id": null, "submounts": [], "paths": 1, "bytes": 1}],
        });
        let check = |change: &dyn Fn(&mut Value), asked: &str| {
            let mut meta = good.clone();
            change(&mut meta);
            plausible(&serde_json::from_value(meta)?, asked)
        };
        assert!(check(&|_| {}, "latest").is_err());
        check(&|_| {}, "2026-01-02T03-04-05Z").unwrap();
        assert!(check(&|_| {}, "2026-01-02T03-04-06Z").is_err());
        for (key, bad) in [("date", "x/../../../../etc/2026"), ("date", "latest"), ("id", "/"), ("id", "")] {
            assert!(check(&|meta| meta[key] = bad.into(), "2026-01-02T03-04-05Z").is_err(), "{key} {bad}");
        }
        for bad in ["..", "../etc", "a/b", "", ".meta"] {
            assert!(
                check(&|meta| meta["sources"][0]["name"] = bad.into(), "2026-01-02T03-04-05Z").is_err(),
                "{bad}"
            );
        }
    }
}
