//! A snapshot of a local store, copied into another one: onto another disk, or into the off-site container.
//!
//! What changed is told by two snapshots of the local store, the wanted one and the newest that the other store
//! holds too; both are kept from being removed meanwhile. Nothing of the other store's files is read, but what is linked
//! there is counted: what the other store has lost of its base is sent again. There is no
//! source to be checked and nothing to be sealed: a snapshot is what it is, and keeps its date.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::account::Account;
use common::durable;
use common::fault::Fault;
use common::lock::Lock;
use common::mutant;
use common::places;
use common::profile::{Bytes, Profile};
use common::program::Program;
use common::run::Cmd;
use common::status::Report;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{geteuid, getppid};
use serde_json::{Value, json};

use crate::budget::Budget;
use crate::cli::Copy;
use crate::far::Far;
use crate::holes::{Holes, Two};
use crate::names::some;
use crate::progress::Progress;
use crate::protocol::{Cloned, CopyIdle, CopyOnly, Door, Making, Opened};
use crate::rsync::{Transfer, list_file, uncommented};
use crate::settings::rsync_argv;
use crate::store::changes::{self, Changes, Marked};
use crate::store::merge::Merged;
use crate::store::meta::SnapshotMeta;
use crate::store::publish::Published;
use crate::store::{META, Store, manifest, open_dir, open_file, pace};
use crate::tree::join;

/// Bytes that stay free unless told otherwise.
const RESERVE: Bytes = Bytes(64 << 20);
/// Estimated bytes of a file's line among the checksums.
const LINE: u64 = 160;

/// In the state folder: what the last copy that found something lacking in its base has found.
const LACKS: &str = "copy-lacks.json";

/// A snapshot of the local store, kept from being removed as long as this lives.
struct Held {
    meta: SnapshotMeta,
    /// Its description, byte for byte.
    text: String,
    dir: File,
    path: PathBuf,
    _lock: Lock,
}

/// One source of the wanted snapshot.
struct Part {
    name: String,
    path: PathBuf,
    changes: Changes,
    /// The source's folder in the wanted snapshot, and in the base.
    wanted: File,
    base: Option<File>,
}

/// What the copying came to.
#[derive(Default)]
struct Total {
    merged: Merged,
    linked: u64,
    lacking: u64,
}

/// Does it.
pub fn copy(args: &Copy, report: &mut Report) -> Result<()> {
    let profile = args.profile.options().load_profile()?;
    let store = source(args, &profile)?;
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
    let wanted = hold(&store, &dir, &store.find(&args.date)?.date)?;
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
    report.set("base_date", base.as_ref().map(|b| b.meta.date.clone()));
    if base.is_none() && !there.is_empty() {
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

/// The local store: `--store`, or the profile's.
fn source(args: &Copy, profile: &Profile) -> Result<Store> {
    let table = profile.store.as_ref();
    let named = args.profile.store.as_ref().map(PathBuf::from);
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

/// The far end of the other store, as a child: its door opens to nobody but the process that has made the socket `starter`.
fn far_end(args: &Copy, profile: &Profile, to: &Path, starter: RawFd) -> Result<Cmd> {
    let reserve = args.reserve_bytes.or(profile.offsite.reserve_bytes.map(Bytes)).unwrap_or(RESERVE);
    let cmd =
        Program::own()?.cmd().arg("copy-end").arg(format!("--starter-fd={starter}")).arg("--store").arg(to);
    Ok(cmd
        .inherit(starter)
        .args([format!("--reserve-bytes={}", reserve.0), format!("--flush-bytes={}", args.flush_bytes.0)]))
}

/// What the other store holds, and which of its folders only look like snapshots.
fn there(far: &mut Far) -> Result<(Vec<SnapshotMeta>, Vec<String>)> {
    let answer = far.ask_in_parts(&CopyIdle::List {}, "snapshots", |_, _| ())?;
    let both = json!([answer["snapshots"], answer["damaged"]]);
    serde_json::from_value(both).context("an answer that is not understood")
}

/// Opens a snapshot and keeps it from being removed.
fn hold(store: &Store, top: &File, date: &str) -> Result<Held> {
    let path = store.path.join(date);
    let what = || format!("cannot open {}", path.display());
    let lock = open_file(top, &format!("{date}/{META}/lock")).with_context(what)?;
    let lock = Lock::shared_file(lock, &path.join(META).join("lock"), &format!("the snapshot {date}"))?;
    // After it was locked: it is there, and stays.
    let (meta, text) = SnapshotMeta::load(top, date).with_context(what)?;
    let dir = open_dir(top, date.as_bytes()).with_context(what)?;
    let meta = SnapshotMeta { date: date.to_owned(), ..meta };
    Ok(Held { meta, text, dir, path, _lock: lock })
}

/// The newest snapshot that both hold.
fn common_base(store: &Store, dir: &File, there: &[SnapshotMeta]) -> Result<Option<Held>> {
    let (here, _) = store.snapshots()?;
    let both = there.iter().rev().find_map(|t| here.iter().find(|h| h.id == t.id && h.date == t.date));
    both.map(|meta| hold(store, dir, &meta.date)).transpose()
}

/// Whether the process that started this one has left the socket `starter` for it: nothing that comes through a login, a forced
/// command or a shell can.
pub fn started_by_copy(starter: RawFd) -> Result<()> {
    let by_hand = || Fault::usage("copy-end is started by copy, never by hand");
    if starter < 3 {
        return Err(by_hand().into());
    }
    let socket = crate::rsync::inherited(starter).ok_or_else(by_hand)?;
    let peer = getsockopt(&socket, PeerCredentials).map_err(|_| by_hand())?;
    // A pair is made by one process: ours is the child of that.
    let ours = (peer.pid(), peer.uid()) == (getppid().as_raw(), geteuid().as_raw());
    if ours || mutant::active("copy-end-by-hand") { Ok(()) } else { Err(by_hand().into()) }
}

struct Copying<'a> {
    store: &'a Store,
    wanted: &'a Held,
    to: &'a Path,
    state: PathBuf,
    progress: Progress,
}

impl Copying<'_> {
    fn run(&self, mut far: Far, base: Option<&Held>, report: &mut Report) -> Result<()> {
        self.progress.begin("comparing", 0);
        let mut parts = Vec::new();
        for source in &self.wanted.meta.sources {
            parts.push(self.part(&source.name, base)?);
        }
        let request = CopyIdle::Open { base: base.map(|b| b.meta.date.clone()) };
        let opened: Opened = far.ask(&request)?;
        for warning in &opened.warnings {
            report.warn_value(warning.clone());
        }
        self.resume(&mut far, &opened, report)?;
        let (bytes, inodes) = estimate(&parts);
        let () = far.ask(&Making::Room { source: None, bytes, inodes })?;
        let mut total = Total::default();
        for part in &mut parts {
            self.clone(&mut far, part, &mut total, report)?;
            self.transfer(&mut far, &opened, part, &mut total.merged)?;
        }
        report.set("lacking_paths", total.lacking);
        if let Some(base) = base.filter(|_| total.lacking > 0) {
            // Once this copy is published no later one notices it any more: whoever cares must find it after a cut, too.
            let lacks = json!({"to": self.to, "base_date": base.meta.date, "date": self.wanted.meta.date,
                "lacking_paths": total.lacking});
            durable::write(&self.state.join(LACKS), lacks.to_string().as_bytes(), 0o600)?;
        }
        self.checksums(&mut far, &parts)?;
        self.progress.begin("making it durable", 0);
        let published: Published = far.ask(&CopyOnly::Publish { text: self.meta()? })?;
        report.changed = true;
        for warning in &published.warnings {
            report.warn_value(warning.clone());
        }
        let sum = |each: fn(&Part) -> u64| parts.iter().map(each).sum::<u64>();
        report.set("changed_paths", sum(|p| p.changes.marked.len() as u64));
        report.set("copied_files", total.merged.received);
        report.set("copied_bytes", total.merged.received_bytes);
        report.set("resumed_files", total.merged.resumed);
        report.set("linked_paths", total.linked);
        report.set("paths", sum(|p| p.changes.shared + p.changes.folders) + sum(|p| p.not_folders()));
        Ok(())
    }

    /// What an interrupted copy received is used if it is what this snapshot needs: a file that changed since, even
    /// with the same size and time, is not.
    fn resume(&self, far: &mut Far, opened: &Opened, report: &mut Report) -> Result<()> {
        let id = &self.wanted.meta.id;
        let mut stale: Vec<Vec<u8>> = Vec::new();
        let before = opened.resumed_id.as_ref().filter(|_| opened.resumed);
        let known = |before: &String| -> Result<_> {
            Ok(self.store.snapshots()?.0.into_iter().find(|s| s.id == *before))
        };
        let keep = match before {
            None => false,
            Some(before) if before == id => true,
            Some(before) => match known(before)? {
                None => false,
                Some(old) => {
                    let old = hold(self.store, &self.store.check()?, &old.date)?;
                    for source in &self.wanted.meta.sources {
                        let changed = self.part(&source.name, Some(&old))?.changes.left_out;
                        stale.extend(changed.iter().map(|path| join(source.name.as_bytes(), path)));
                    }
                    true
                }
            },
        };
        if keep {
            report
                .warn("continues", "an interrupted copy is continued: what had arrived is not copied again");
        }
        far.ask_with_list(&CopyOnly::Resume { id: id.clone(), keep }, |list| {
            stale.iter().try_for_each(|path| list.path(path))
        })
    }

    /// What `name` needs.
    fn part(&self, name: &str, base: Option<&Held>) -> Result<Part> {
        let open = |held: &Held| open_dir(&held.dir, name.as_bytes());
        let wanted =
            open(self.wanted).with_context(|| format!("cannot open {name} of {}", self.wanted.meta.date))?;
        let old = match base.filter(|b| b.meta.source(name).is_some()) {
            Some(base) => {
                Some(open(base).with_context(|| format!("cannot open {name} of {}", base.meta.date))?)
            }
            None => None,
        };
        let changes = changes::between(old.as_ref(), &wanted, None)?;
        Ok(Part { name: name.to_owned(), path: self.wanted.path.join(name), changes, wanted, base: old })
    }

    /// Begins the source: the base's files linked, without what changed. What the base has lost is sent with the rest.
    fn clone(&self, far: &mut Far, part: &mut Part, total: &mut Total, report: &mut Report) -> Result<()> {
        let source = part.name.clone();
        let Some(base) = &part.base else {
            return far.ask(&Making::Fresh { source });
        };
        let all = part.changes.shared + part.changes.folders;
        let bytes = part.changes.shared * pace::LINK + part.changes.folders * pace::FOLDER;
        self.progress.begin(format!("{}: {all} unchanged paths", part.name), bytes);
        let watch = |done: u64| self.progress.reached(bytes * done.min(all) / all.max(1));
        let fill = |list: &mut crate::protocol::ListWriter<'_, _>| {
            part.changes.left_out.iter().try_for_each(|path| list.path(path))
        };
        let cloned: Cloned = far.ask_with_list_watched(&Making::Clone { source }, fill, watch)?;
        let two = Two { base, wanted: &part.wanted };
        let holes = two.fill(&part.name, &cloned, far, &mut part.changes)?;
        total.linked += cloned.linked;
        total.lacking += holes.lost.len() as u64;
        self.tell(&part.name, &holes, report);
        if !holes.lost.is_empty() {
            let (bytes, inodes) = estimate(std::slice::from_ref(part));
            let () = far.ask(&Making::Room { source: Some(part.name.clone()), bytes, inodes })?;
        }
        Ok(())
    }

    /// Says what the base has lost.
    fn tell(&self, source: &str, holes: &Holes, report: &mut Report) {
        let base = report.data["base_date"].as_str().unwrap_or("?").to_owned();
        if !holes.lost.is_empty() {
            let message = format!(
                "source {source}: {} paths are missing in the copy of {base}, or are not what was copied there, and are sent \
                 again for {}: {}. What lost them? `verify` looks through all that is there",
                holes.lost.len(),
                self.wanted.meta.date,
                some(holes.names())
            );
            report.warn("base-lacks", message);
        }
        if holes.removed > 0 {
            let message = format!(
                "source {source}: {} paths that nobody has copied there are in the copy of {base}, and are left out of {}: {}",
                holes.removed,
                self.wanted.meta.date,
                holes.removed_names.join(", ")
            );
            report.warn("base-has-more", message);
        }
    }

    /// Sends what changed, and has it put in its place.
    fn transfer(&self, far: &mut Far, opened: &Opened, part: &Part, total: &mut Merged) -> Result<()> {
        let owner = self.wanted.dir.metadata().context("cannot look at the snapshot")?;
        let account = Account::of_folder(&owner)?;
        // Nobody waits for a copy.
        let budget = Budget::default();
        let transfer = |list: File, only_itself: bool| Transfer {
            rsync: &self.store.rsync,
            path: &part.path,
            list,
            only_itself,
            source: &part.name,
            checksum: false,
            times: true,
            again: false,
            // What lies in the store of an account is read with its rights: it could have put anything there.
            account: account.as_ref(),
            all_xattrs: self.wanted.meta.fake_super,
            xattrs: opened.xattrs,
            acls: opened.acls,
            acls_only: false,
            budget: &budget,
        };
        let request = Making::Merge { source: part.name.clone(), times: true, again: false };
        let changes = &part.changes;
        if let Some(root) = &changes.root {
            let list = list_file(&self.state, [&b"."[..]].into_iter())?;
            transfer(list, true).run(far, &self.progress)?;
            let _root: Merged =
                far.ask_with_list(&request, |list| list.record(root.kind, 0, root.mtime, b""))?;
        }
        if changes.marked.is_empty() {
            return Ok(());
        }
        let list = list_file(&self.state, changes.marked.iter().map(|m| uncommented(m.path.clone())))?;
        let files = changes.marked.iter().filter(|m| m.is_file());
        let bytes = files.map(|m| m.allocated.min(m.size)).sum();
        self.progress.begin(format!("{}: {} changed paths", part.name, changes.marked.len()), bytes);
        transfer(list, false).run(far, &self.progress)?;
        self.progress.begin(format!("{}: putting in place", part.name), 0);
        let merged: Merged = far.ask_with_list(&request, |list| {
            changes.marked.iter().try_for_each(|m| list.record(m.kind, m.size, m.mtime, &m.path))
        })?;
        if merged.missing > 0 {
            return Err(Fault::failed(format!(
                "{}: {} paths did not arrive: {}",
                part.name,
                merged.missing,
                merged.missing_names.join(", ")
            ))
            .hint("was the snapshot changed by hand? `link-sync diff` compares it with others")
            .into());
        }
        total.received += merged.received;
        total.received_bytes += merged.received_bytes;
        total.resumed += merged.resumed;
        Ok(())
    }

    /// Gives the copy the checksums of what is new in it: a few lines, not the whole manifest every night. They are for
    /// the day the store is lost; until then the store's own manifest counts.
    fn checksums(&self, far: &mut Far, parts: &[Part]) -> Result<()> {
        if self.wanted.meta.manifest.is_none() {
            return Ok(());
        }
        let files = |part: &Part| {
            let files = part.changes.marked.iter().filter(|m| m.is_file());
            files.map(|m| join(part.name.as_bytes(), &m.path)).collect::<Vec<_>>()
        };
        let paths: HashSet<Vec<u8>> = parts.iter().flat_map(files).collect();
        far.ask_with_list(&CopyOnly::Part {}, |list| {
            manifest::part(&self.wanted.dir, &paths, |line| list.path(line))
        })
    }

    /// What the copy says of itself: the same, byte for byte.
    fn meta(&self) -> Result<String> {
        let mut meta: Value = serde_json::from_str(&self.wanted.text).context("the snapshot is damaged")?;
        if meta["date"] == self.wanted.meta.date {
            return Ok(self.wanted.text.clone());
        }
        // The folder's name counts: a person may have put a wrong clock right.
        meta["date"] = json!(self.wanted.meta.date);
        Ok(format!("{meta:#}\n"))
    }
}

impl Part {
    fn not_folders(&self) -> u64 {
        self.changes.marked.iter().filter(|m| m.kind != libc::S_IFDIR).count() as u64
    }
}

/// Bytes and inodes it will take at most: every folder is made anew, every link touches an inode table.
fn estimate(parts: &[Part]) -> (u64, u64) {
    let size = |m: &Marked| if m.is_file() { m.allocated.min(m.size.next_multiple_of(4096)) } else { 0 };
    parts.iter().fold((0, 0), |(bytes, inodes), part| {
        let changes = &part.changes;
        let files: u64 = changes.marked.iter().map(size).sum();
        let lines = part.not_folders() * LINE;
        (
            bytes + files + lines + changes.folders * pace::FOLDER,
            inodes + changes.folders + part.not_folders(),
        )
    })
}
