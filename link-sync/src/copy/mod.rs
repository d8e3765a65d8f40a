//! A snapshot of a local store, copied into another one: onto another disk, or into the off-site container.
//!
//! What changed is told by two snapshots of the local store, the wanted one and the newest that the other store
//! holds too; both are kept from being removed meanwhile. Nothing of the other store's files is read, but what is linked
//! there is counted: what the other store has lost of its base is sent again. There is no
//! source to be checked and nothing to be sealed: a snapshot is what it is, and keeps its date.

mod copying;
mod far_end;
mod holes;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::places;
use common::profile::Profile;
use common::status::Report;
use serde_json::json;

use crate::cli::Copy;
use crate::far::Far;
use crate::progress::Progress;
use crate::protocol::{CopyIdle, Door};
use crate::settings::rsync_argv;
use crate::store::Store;
use crate::store::held::Held;
use crate::store::meta::SnapshotMeta;
use crate::store::shown;
use copying::Copying;
use far_end::far_end;
pub use far_end::started_by_copy;

/// Does it.
pub fn copy(args: &Copy, report: &mut Report) -> Result<()> {
    let profile = args.profile.options().load_profile()?;
    let store = source(args.profile.store.as_ref(), &profile)?;
    let dir = store.check()?;
    let to = std::path::absolute(&args.to).context("--to")?;
    if to.starts_with(&store.path) || store.path.starts_with(&to) {
        return Err(Fault::config(format!(
            "--to {} and the store {} lie in each other",
            to.display(),
            store.path.display()
        ))
        .hint("copy to another place, best on another disk")
        .into());
    }
    let wanted = Held::open(&store, &dir, &store.find(&args.date)?.date)?;
    report.set("date", wanted.meta.date.as_str());
    report.set("id", wanted.meta.id.as_str());
    report.set_text("path", to.join(&wanted.meta.date).as_os_str());
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let cmd = far_end(args, &profile, &to, theirs.as_raw_fd())?;
    let mut far = Far::start(&cmd, None, &to, Door::Copy)?;
    drop((ours, theirs));
    let (there, damaged) = there(&mut far)?;
    report.set("damaged_dates", damaged);
    if let Some(same) = there.iter().find(|s| s.date == wanted.meta.date || s.id == wanted.meta.id) {
        if (&same.date, &same.id) == (&wanted.meta.date, &wanted.meta.id) {
            return Ok(());
        }
        return Err(Fault::config(format!("{} holds another snapshot as {}", to.display(), same.date))
            .hint("is this the folder that belongs to this store? Rename or remove that snapshot if it does")
            .into());
    }
    let base = common_base(&store, &dir, &there)?;
    // Of what overlays show, numbers do not tell what is the same.
    let alone =
        shown::is_overlay(&wanted.top) || base.as_ref().is_some_and(|base| shown::is_overlay(&base.top));
    if base.is_some() && alone {
        report.warn(
            "no-common-base",
            "what is shown of images shares nothing that could be told: everything is copied",
        );
    }
    let base = base.filter(|_| !alone);
    report.set("base_date", base.as_ref().map(|b| b.meta.date.clone()));
    if base.is_none() && !alone && !there.is_empty() {
        report.warn(
            "no-common-base",
            format!(
                "the store holds none of the snapshots in {} any more: everything is copied",
                to.display()
            ),
        );
    }
    let copying = Copying {
        store: &store,
        wanted: &wanted,
        to: &to,
        state: places::state(&profile)?,
        progress: Progress::terminal(),
    };
    copying.run(far, base.as_ref(), report)
}

/// The local store that is only read: the one that was `named`, or the profile's.
pub fn source(named: Option<&String>, profile: &Profile) -> Result<Store> {
    let table = profile.store.as_ref();
    let named = named.map(PathBuf::from);
    let path = named.or_else(|| profile.offsite.store.clone()).or_else(|| table.map(|t| t.path.clone()));
    let path =
        path.ok_or_else(|| Fault::config("no store is named").hint("set path in [store], or give --store"))?;
    if !path.is_absolute() {
        let hint = "a snapshot is copied on the machine that holds it; give its folder as /path";
        return Err(Fault::config(format!("store = \"{}\" is not an absolute path", path.display()))
            .hint(hint)
            .into());
    }
    let mount = table.filter(|t| t.path == path).and_then(|t| t.mount.clone());
    let rsync = rsync_argv(table.map_or(&[], |t| &t.rsync));
    Ok(Store { path, mount, reserve_bytes: 0, rsync, read_only: true, flush_bytes: None })
}

/// What the other store holds, and which of its folders only look like snapshots.
fn there(far: &mut Far) -> Result<(Vec<SnapshotMeta>, Vec<String>)> {
    let answer = far.ask_in_parts(&CopyIdle::List {}, "snapshots", |_, _| ())?;
    let both = json!([answer["snapshots"], answer["damaged"]]);
    serde_json::from_value(both).context("an answer that is not understood")
}

/// The newest snapshot that both hold.
fn common_base(store: &Store, dir: &File, there: &[SnapshotMeta]) -> Result<Option<Held>> {
    let (here, _) = store.snapshots()?;
    let both = there.iter().rev().find_map(|t| here.iter().find(|h| h.id == t.id && h.date == t.date));
    both.map(|meta| Held::open(store, dir, &meta.date)).transpose()
}
