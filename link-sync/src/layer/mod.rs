//! A layer: one read-only squashfs image of what makes a snapshot of another one, in overlayfs's own format, so that an overlay
//! of it above the images of the other snapshot shows this one. Made of a local store; nothing is copied on the way.

mod beside;
mod entry;
mod mksquashfs;
mod origin;
mod packing;
mod plan;
mod tar;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::Fault;
use common::status::{Report, b64};
use serde_json::{Value, json};

use crate::cli::Layer;
use crate::copy;
use crate::names::{NAMED, show};
use crate::store::held::Held;
use crate::store::sums;
use mksquashfs::Making;
use plan::Plan;

/// Makes the image.
pub fn layer(args: &Layer, report: &mut Report) -> Result<()> {
    let profile = args.profile.options().load_profile()?;
    let store = copy::source(args.profile.store.as_ref(), &profile)?;
    let dir = store.check()?;
    let to = std::path::absolute(&args.to).context("--to")?;
    mksquashfs::folder(&to)?;
    if to.starts_with(&store.path) {
        return Err(
            Fault::config(format!("--to {} is in the store {}", to.display(), store.path.display())).into()
        );
    }
    if std::fs::symlink_metadata(&to).is_ok() {
        return Err(Fault::config(format!("--to: {} is there already", to.display())).into());
    }
    let wanted = Held::open(&store, &dir, &store.find(&args.date)?.date)?;
    let base =
        args.base.as_ref().map(|date| Held::open(&store, &dir, &store.find(date)?.date)).transpose()?;
    if base.as_ref().is_some_and(|base| base.meta.id == wanted.meta.id) {
        return Err(Fault::usage(format!("{} is its own --base", wanted.meta.date)).into());
    }
    let whole = plan::plan(base.as_ref().map(|b| &b.top), &wanted.top)?;
    let kept = match (&args.base_big, &base) {
        (Some(list), Some(base)) => Some(beside::kept(list, &base.top, &wanted.top, &whole)?),
        _ => None,
    };
    let digest = sums::hex(&plan::digest(&whole, args.big_bytes.0));
    let (plan, last) = slice(args, whole, &wanted.top)?;
    let mut making = Making::start(&to, packing::latest(&plan, &wanted.top)?)?;
    let packed = packing::pack(&plan, &wanted.top, args.big_bytes.0, |piece| making.put(piece))?;
    let mut facts = json!(&packed);
    facts["date"] = json!(wanted.meta.date);
    facts["id"] = json!(wanted.meta.id);
    facts["base_date"] = json!(base.as_ref().map(|b| &b.meta.date));
    facts["base_id"] = json!(base.as_ref().map(|b| &b.meta.id));
    facts["base_big"] = json!(kept);
    facts["plan_sha256"] = json!(digest);
    facts["last"] = json!(last.as_ref().map(|last| String::from_utf8_lossy(last)));
    facts["last_b64"] = json!(last.as_ref().and_then(|last| b64(OsStr::from_bytes(last))));
    let (bytes, sum) = making.finish(&to, packed.paths)?;
    report.changed = true;
    facts["image_bytes"] = json!(bytes);
    facts["sha256"] = json!(sums::hex(&sum));
    tell(&to, facts, report)
}

/// The facts, all of them beside the image, and most of them to who asked.
fn tell(image: &std::path::Path, mut facts: Value, report: &mut Report) -> Result<()> {
    let mut beside = OsString::from(image);
    beside.push(".json");
    durable::write(beside.as_ref(), format!("{facts:#}\n").as_bytes(), 0o600)?;
    report.set_text("image", image.as_os_str());
    let left_out = facts["left_out"].as_array_mut().map(std::mem::take).unwrap_or_default();
    facts["left_out_total"] = json!(left_out.len());
    for list in ["big", "base_big"] {
        facts[list] = json!(facts[list].as_array().map(Vec::len));
    }
    if !left_out.is_empty() {
        let first = left_out.iter().take(NAMED);
        let text = |value: &Value| show(value.as_str().unwrap_or_default().as_bytes());
        let first: Vec<_> = first.map(|l| format!("{} ({})", text(&l["path"]), text(&l["what"]))).collect();
        report.warn(
            "left-out",
            format!(
                "{} things that an image cannot hold were left out, first {}",
                left_out.len(),
                first.join(", ")
            ),
        );
        report.set_partial();
    }
    facts["left_out"] = left_out.into_iter().take(NAMED).collect();
    for (key, value) in facts.as_object().into_iter().flatten() {
        report.set(key, value.clone());
    }
    Ok(())
}

/// What of the plan is asked for.
fn slice(args: &Layer, whole: Plan, wanted: &File) -> Result<(Plan, Option<Vec<u8>>)> {
    let Some(most) = args.most_bytes else { return Ok((whole, None)) };
    plan::slice(&whole, args.after.as_ref().map(|after| after.as_bytes()), most.0, |path| {
        let stat = entry::stat(wanted, path)?;
        let size = if stat.st_mode & libc::S_IFMT == libc::S_IFREG { stat.st_size.unsigned_abs() } else { 0 };
        Ok(if size < args.big_bytes.0 { size } else { 0 })
    })
}
