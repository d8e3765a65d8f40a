//! What a restore says: what it is about to do, what did not come, and what it and others have left.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::status::{self, Report};
use nix::sys::stat::fstat;
use serde_json::{Map, Value, json};

use super::folders::set_times;
use super::item::Item;
use super::partial::{Left, OLD, PREFIX, Partial, REMOVING};
use crate::names::show;
use crate::store::clear::clear;
use crate::store::meta::SnapshotMeta;
use crate::store::{open_dir, visit};

/// Paths of one item that the report names.
const SHOWN: usize = 100;

/// Says what will be done.
pub fn tell_plan(items: &[Item], meta: &SnapshotMeta, report: &mut Report) {
    let mut list = Vec::new();
    for item in items {
        let path = item.target.path();
        report.show(format!(
            "link-sync: {} of {}: {} paths, {}, to {}{}",
            show(&item.wish.full()),
            meta.date,
            item.looked.paths,
            indicatif::BinaryBytes(item.looked.bytes),
            path.display(),
            if item.target.exists { ", replacing what is there" } else { "" }
        ));
        let mut entry = Map::new();
        entry.insert("source".into(), json!(item.wish.source));
        status::put_text(&mut entry, "path", OsStr::from_bytes(&item.wish.path));
        status::put_text(&mut entry, "target", path.as_os_str());
        entry.insert("folder".into(), json!(item.looked.folder));
        entry.insert("paths".into(), json!(item.looked.paths));
        entry.insert("allocated_bytes".into(), json!(item.looked.bytes));
        entry.insert("replaces".into(), json!(item.target.exists));
        entry.insert("kept_at".into(), Value::Null);
        entry.insert("left_out_at".into(), Value::Null);
        entry.insert("not_put_back".into(), json!([]));
        entry.insert("set_id_and_devices_left_out".into(), json!({"total": 0, "first": []}));
        entry.insert("finished_first".into(), Value::Null);
        list.push(Value::Object(entry));
    }
    report.set("items", list);
}

/// Says what of one item did not come as the store has it.
pub fn tell_tamed(at: usize, item: &Item, partial: &Partial, report: &mut Report) {
    let Some(tamed) = partial.journal.swap.as_ref().map(|plan| &plan.tamed).filter(|t| t.total > 0) else {
        return;
    };
    let first = tamed.first.first().map(String::as_str).unwrap_or_default();
    report.warn(
        "set-id-and-devices-left-out",
        format!(
            "{}: {} set-id bits, devices or attributes of the system were not restored, as the store is another account's, which \
             could have made them up; the first: {first} (--set-id-and-devices restores them)",
            show(&item.wish.full()),
            tamed.total
        ),
    );
    report.set_partial();
    if let Some(entry) = report.data["items"].get_mut(at) {
        entry["set_id_and_devices_left_out"] = json!({"total": tamed.total, "first": tamed.first});
    }
}

/// Says what is left of one item.
pub fn tell_left(at: usize, left: &Left, stuck: &[Vec<u8>], report: &mut Report) {
    let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
    if let Some(path) = text(&left.replaced) {
        status::tell(format_args!("link-sync: what was replaced is in {path}"));
    }
    if let Some(path) = text(&left.kept) {
        let first = stuck.first().map(|p| format!(" ({} of them, the first: {})", stuck.len(), show(p)));
        report.warn(
            "left-out-kept",
            format!(
                "what is in no snapshot, as backups leave it out or as it cannot be read, and could not go back to its \
                 place{} is in {path}: remove it when you need nothing of it",
                first.unwrap_or_default(),
            ),
        );
        report.set_partial();
    }
    if let Some((path, why)) = &left.stuck {
        let what = format!("what was replaced, in {}, is not all gone: {why}", path.display());
        let clear = "make it removable (chattr -R -i -a, or unmount what is in it) and remove it; any restore to that place tries again";
        report.left_behind(what, clear);
    }
    if let Some(entry) = report.data["items"].get_mut(at).and_then(Value::as_object_mut) {
        if let Some(path) = left.replaced.as_ref().map(|p| p.join(OLD)) {
            status::put_text(entry, "kept_at", path.as_os_str());
        }
        if let Some(path) = &left.kept {
            status::put_text(entry, "left_out_at", path.as_os_str());
        }
        let named = || stuck.iter().take(SHOWN);
        entry.insert("not_put_back".into(), named().map(|p| show(p)).collect());
        status::put_list_b64(entry, "not_put_back", named().map(|p| &p[..]));
    }
}

/// Says where what the items of `before` had replaced is, which an interrupted restore had begun and this one has finished.
pub fn tell_first(before: &Value, report: &mut Report) {
    let told =
        ["kept_at", "kept_at_b64", "left_out_at", "left_out_at_b64", "not_put_back", "not_put_back_b64"];
    let entries = report.data.get_mut("items").and_then(Value::as_array_mut);
    for (first, entry) in before.as_array().into_iter().flatten().zip(entries.into_iter().flatten()) {
        let known = told.iter().filter_map(|key| Some(((*key).to_owned(), first.get(key)?.clone())));
        entry["finished_first"] = Value::Object(known.collect());
    }
}

/// Says what other restores, or attempts, have left: it may be the only copy of what they replaced.
pub fn others_left(items: &[Item], meta: &SnapshotMeta, own: &[PathBuf], report: &mut Report) -> Result<()> {
    let same_date = format!("{PREFIX}{}-", meta.date);
    let mut told: Vec<PathBuf> = own.to_vec();
    for item in items {
        let home = open_dir(&item.home, b"").context("cannot open a folder again")?;
        let times = fstat(&home).context("cannot look at a folder")?;
        for (name, is_dir, _) in visit::names(&home)? {
            let path = item.home_shown.join(OsStr::from_bytes(&name));
            let asked_for = name.starts_with(same_date.as_bytes()) && name.ends_with(b".replaced");
            if !is_dir || !name.starts_with(PREFIX.as_bytes()) || asked_for || told.contains(&path) {
                continue;
            }
            let how = if name.ends_with(format!(".{REMOVING}").as_bytes()) {
                let Some(stuck) = clear(&home, &name)?.shown() else {
                    set_times(&home, &times)?;
                    continue;
                };
                report.warn(
                    "not-removed",
                    format!(
                        "what an earlier restore replaced is still not all gone: {}/{stuck}",
                        item.home_shown.display()
                    ),
                );
                report.set_partial();
                told.push(path);
                continue;
            } else if name.ends_with(b".partial") {
                "is of a restore that was not finished, and may hold the only copy of what it had replaced and of what backups leave \
                 out: look at it, or give that restore again"
            } else {
                "is of an earlier restore"
            };
            let shown = path.display();
            report.warn("earlier-restore", format!("{shown} {how}; remove it when you need nothing of it"));
            report.set_partial();
            told.push(path);
        }
    }
    Ok(())
}
