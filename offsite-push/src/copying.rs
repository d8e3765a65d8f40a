//! Copying a snapshot into the open container, as a tree or as layers.

use std::ffi::OsString;

use anyhow::Result;
use common::fault::Fault;
use common::offsite;
use common::status::Report;
use serde_json::{Value, json};

use crate::generation::Content;
use crate::layered;
use crate::layered::record::Record;
use crate::layered::sending::{self, Job};
use crate::layers::Up;
use crate::siblings::{Call, option};
use crate::store::Snapshot;
use crate::whole::{self, Damaged};

/// What the copying was, in one layout or the other.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    /// The container is not as it was.
    pub(crate) changed: bool,
    /// Something was left out.
    pub(crate) partial: bool,
    /// What it was compared with.
    pub(crate) base_date: Option<String>,
    /// That is not in the store: what was kept of its checksums was compared with.
    pub(crate) base_by_manifest: bool,
    /// Of contents that were new.
    pub(crate) bytes: Option<u64>,
    /// The dates in the container.
    pub(crate) dates: Vec<String>,
    /// The newest date that is there wholly now, and its id; `None` if the time was over before.
    pub(crate) ended: Option<(String, String)>,
    /// Dates that the next push needs here, besides the newest that both hold.
    pub(crate) needed: Vec<String>,
    /// What is not whole.
    pub(crate) damaged: Damaged,
    /// Dates of which that was told, and whose lists were written again.
    pub(crate) mended: Vec<String>,
    /// Images, and their bytes.
    pub(crate) layers: Value,
    /// What is on its way.
    pub(crate) unfinished: Value,
}

/// In the layout `layers`.
pub(crate) fn as_layers(
    up: &mut Up,
    job: &Job,
    content: &Content,
    layers: Record,
    report: &mut Report,
) -> Result<Copied> {
    let sent = sending::send(up.siblings, job, content, layers, report)?;
    let mut damaged = sent.damaged;
    for (name, why) in content.unread.iter().filter(|(name, _)| !sent.written_again.contains(name)) {
        damaged.insert(name.clone(), format!("its list cannot be read: {why}"));
    }
    Ok(Copied {
        changed: sent.changed,
        partial: sent.left_out,
        base_by_manifest: sent.base.as_ref().is_some_and(|base| base.by_manifest),
        base_date: sent.base.map(|base| base.date),
        bytes: Some(sent.content_bytes.saturating_add(sent.big_bytes)),
        dates: sent.dates,
        ended: sent.published,
        needed: sent.needed,
        damaged,
        mended: sent.written_again,
        layers: json!({"images": sent.images, "image_bytes": sent.image_bytes, "big_bytes": sent.big_bytes}),
        unfinished: json!(sent.unfinished),
    })
}

/// In the layout `hardlink`; `dates` are there already.
pub(crate) fn as_tree(up: &mut Up, reserve: u64, wanted: &Snapshot, dates: &[String]) -> Result<Copied> {
    let settings = up.siblings.settings;
    let args: Vec<OsString> = [
        option("--to", offsite::store(&settings.container)),
        option("--store", settings.store()?),
        option("--date", &wanted.date),
        option("--reserve-bytes", reserve.to_string()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let call =
        Call { step: "copy", tool: "link-sync", action: "copy", args: &args, limit: None, cleanup: false };
    let answer = up.siblings.run(&call)?.checked().map_err(|error| larger(error, &settings.profile.name))?;
    let mut dates = dates.to_vec();
    dates.push(wanted.date.clone());
    dates.sort_unstable();
    dates.dedup();
    Ok(Copied {
        changed: answer.changed(),
        partial: answer.code == 3,
        base_date: answer.data("base_date").as_str().map(str::to_owned),
        bytes: answer.data("copied_bytes").as_u64(),
        dates,
        ended: Some((wanted.date.clone(), wanted.id.clone())),
        damaged: whole::noticed(&answer, settings)?,
        ..Copied::default()
    })
}

/// link-sync tells how to make room in a store; this one is a file that can grow.
fn larger(error: anyhow::Error, name: &str) -> anyhow::Error {
    match error.downcast::<Fault>() {
        Ok(mut fault) => {
            if fault.hint.as_ref().is_some_and(|hint| hint.contains("reserve_bytes")) {
                fault.said = false;
                fault.hint = Some(layered::full(name));
            }
            fault.into()
        }
        Err(other) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_is_full_can_grow() {
        let full = Fault::failed("as full as it may be").hint("or set another reserve_bytes").already_said();
        let error = larger(full.into(), "home");
        let fault = error.downcast_ref::<Fault>().unwrap();
        assert!(fault.hint.as_ref().unwrap().contains("luks-mount grow home") && !fault.said);
        let other = larger(Fault::busy("held").hint("wait").already_said().into(), "home");
        assert!(other.downcast_ref::<Fault>().is_some_and(|f| f.said && f.hint.as_deref() == Some("wait")));
    }
}
