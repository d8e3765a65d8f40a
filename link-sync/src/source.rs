//! A source, checked before it is believed: an unmounted disk must not become an empty snapshot.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::exclude::{self, Excludes};
use common::fault::Fault;
use common::outward::leads_out;
use common::{mounts, mutant};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde_json::Value;

use crate::fsid::{FsId, distrust};
use crate::names::show;
use crate::store::meta::{DATE_FORMAT, is_date};
use crate::tree::Tree;
use crate::walk::Mounts;

/// The name of the source that holds the dump.
pub const DATABASE: &str = "database";
/// The name of the source that is the instance.
pub const HTML: &str = "html";

/// What a source is, from the profile or the command line.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its folder in the snapshot.
    pub name: String,
    /// Its folder here.
    pub path: PathBuf,
    /// Patterns left out, defaults included.
    pub exclude: Vec<String>,
    /// One path of each group must exist in it.
    pub must_contain: Vec<Vec<PathBuf>>,
}

/// What a dump says of itself.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    /// The run it was made in.
    pub run: Option<String>,
    /// When its state was held, and when it was begun to show that nothing was written since, in milliseconds since this machine
    /// was started. Files that were taken in between are of its moment.
    pub window: Option<(u64, u64)>,
}

/// A source that has been opened and checked.
#[derive(Debug)]
pub struct Checked {
    /// Its directory.
    pub dir: File,
    /// Its file system.
    pub fs_id: FsId,
    /// Where it lies in that file system, escaped for people.
    pub fs_path: Option<String>,
    /// The inode number of its folder.
    pub inode: u64,
    /// What is mounted below it.
    pub mounts: Mounts,
    /// Why its inode numbers and change times cannot be relied on, if so.
    pub distrust: Option<String>,
    /// Patterns, compiled.
    pub excludes: Excludes,
}

impl Source {
    /// The paths without which a source of this name is not believed.
    pub fn default_must_contain(name: &str) -> Vec<Vec<PathBuf>> {
        match name {
            // .ocdata before Nextcloud 31.
            "data" => vec![vec![".ncdata".into(), ".ocdata".into()]],
            HTML => vec![vec!["config/config.php".into()]],
            _ => Vec::new(),
        }
    }

    /// The default patterns of this name.
    pub fn default_excludes(name: &str) -> Vec<String> {
        exclude::defaults(name)
    }

    /// Opens it and checks all that can be seen without walking. `others` are all sources: one that lies
    /// in this one is not taken twice.
    pub fn check(&self, others: &[Source]) -> Result<Checked> {
        let shown = self.path.display();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&self.path, flags, Mode::empty()).map_err(|e| {
            Fault::config(format!("source {}: {shown} cannot be opened as a folder: {e}", self.name))
                .hint("is its disk mounted? Is the path in the profile right?")
        })?;
        let dir = File::from(fd);
        for group in &self.must_contain {
            if !group.iter().any(|p| self.path.join(p).symlink_metadata().is_ok()) {
                let wanted: Vec<_> = group.iter().map(|p| p.display().to_string()).collect();
                let fault = Fault::config(format!(
                    "source {}: {shown} does not contain {}: this is not what it should be",
                    self.name,
                    wanted.join(" or ")
                ));
                return Err(fault
                    .hint(format!("is its disk mounted on {shown}? (see must_contain in the profile)"))
                    .into());
            }
            self.not_elsewhere(group, others)?;
        }
        let real = self.path.canonicalize().with_context(|| format!("cannot resolve {shown}"))?;
        let mounts = mounts::below(&real)?.into_iter().filter_map(|m| {
            let below = m.target.strip_prefix(&real).ok()?.as_os_str().as_bytes().to_vec();
            Some((below, m.fs_type))
        });
        let inside = others.iter().filter(|o| o.name != self.name).filter_map(|o| o.path.canonicalize().ok());
        let inside = inside
            .filter(|o| *o != real)
            .filter_map(|o| o.strip_prefix(&real).ok().map(|p| p.as_os_str().as_bytes().to_vec()));
        Ok(Checked {
            fs_id: FsId::of(&dir)?,
            fs_path: mounts::place_in_file_system(&real).ok().map(|p| show(p.as_os_str().as_bytes())),
            inode: dir.metadata().with_context(|| format!("cannot look at {shown}"))?.ino(),
            mounts: mounts.filter(|_| !mutant::active("bind-mounts-are-known")).collect(),
            distrust: distrust(&dir, || mounts::of_path(&self.path).ok().map(|m| m.fs_type))?
                .map(|kind| format!("{shown} lies on {kind}, not on ext4, xfs, btrfs or zfs")),
            excludes: Excludes::new(&self.exclude, inside.collect())?,
            dir,
        })
    }
}

impl Source {
    /// Refuses when what it must contain is behind a symbolic link that leads out of all sources: the snapshot would
    /// hold the link alone.
    fn not_elsewhere(&self, group: &[PathBuf], others: &[Source]) -> Result<()> {
        let sources = real_paths([self].into_iter().chain(others));
        for mark in group.iter().filter(|p| self.path.join(p).symlink_metadata().is_ok()) {
            // The link may be the mark itself, or a folder on the way to it.
            let links =
                mark.ancestors().map(|p| self.path.join(p)).filter(|p| p.is_symlink() && *p != self.path);
            let out = links.filter_map(|link| Some((leads_out(&link, &sources)?, link))).last();
            if let Some((to, link)) = out.filter(|_| !mutant::active("landmark-is-a-real-file")) {
                return Err(Fault::config(format!(
                    "source {}: {} is a symbolic link to {}, which is in no source: {} would be in no snapshot",
                    self.name,
                    link.display(),
                    to.display(),
                    mark.display()
                ))
                .hint(format!(
                    "put the real file in its place, or add a [[snapshot.source]] with path = \"{}\"",
                    if to.is_dir() { to.display() } else { to.parent().unwrap_or(Path::new("/")).display() }
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Refuses when what it must contain was left out: then it would be in no snapshot either.
    pub fn holds_its_marks(&self, tree: &Tree) -> Result<()> {
        for group in &self.must_contain {
            // Behind a link it lies in another source.
            let there =
                |p: &PathBuf| {
                    tree.find(p.as_os_str().as_bytes()).is_some()
                        || self.path.join(p).canonicalize().is_ok_and(|real| {
                            self.path.canonicalize().is_ok_and(|top| !real.starts_with(top))
                        })
                };
            if !group.iter().any(there) && !mutant::active("landmark-is-not-left-out") {
                let wanted: Vec<_> = group.iter().map(|p| p.display().to_string()).collect();
                return Err(Fault::config(format!(
                    "source {}: {} is not among what is taken, so it would be in no snapshot",
                    self.name,
                    wanted.join(" or ")
                ))
                .hint("look at exclude in the profile and --exclude; must_contain = [] in the profile says that it is not needed")
                .into());
            }
        }
        Ok(())
    }

    /// For the database: in the folder of dumps that of `run`, else the newest complete one, and the run it was made in. One
    /// of a time to come was made when the clock was ahead: by its name it would be the newest until then.
    pub fn resolve(&self, run: Option<&str>) -> Result<(Source, Dump)> {
        if self.name != DATABASE {
            return Ok((self.clone(), Dump::default()));
        }
        let shown = self.path.display();
        let list = std::fs::read_dir(&self.path)
            .map_err(|e| Fault::config(format!("source {}: {shown} cannot be read: {e}", self.name)))?;
        let dated = list.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let dates: Vec<String> = dated.filter(|n| is_date(n)).collect();
        let of_run = |date: &&String| run.is_some() && run_of(&self.path.join(date)).as_deref() == run;
        let now = jiff::Timestamp::now().strftime(DATE_FORMAT).to_string();
        let known = |date: &&String| **date <= now;
        let newest = match mutant::active("the-clock-was-never-ahead") {
            true => dates.iter().max(),
            false => dates
                .iter()
                .filter(of_run)
                .max()
                .or_else(|| dates.iter().filter(known).max())
                .or_else(|| dates.iter().max()),
        };
        let path = match newest {
            Some(date) => self.path.join(date),
            None => self.path.clone(),
        };
        let dump: Value = std::fs::read(path.join("dump.json"))
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(serde_json::from_slice(&text)?))
            .map_err(|e| {
                Fault::config(format!("source {}: {} holds no complete dump: {e}", self.name, path.display()))
                    .hint("`pg-snap dump` makes one")
            })?;
        let run = dump["run_id"].as_str().map(str::to_owned);
        let at = |which: &str| dump["window"][which].as_u64();
        let window = at("held_ms").zip(at("confirmed_ms"));
        Ok((Source { path, ..self.clone() }, Dump { run, window }))
    }

    /// Symbolic links at its top, or in a folder there (the home of a user), that lead out of all sources, and where to.
    pub fn leading_out(&self, tree: &Tree, others: &[Source]) -> Vec<(Vec<u8>, PathBuf)> {
        let sources = real_paths([self].into_iter().chain(others));
        let links = |dir: &[u8]| -> Vec<Vec<u8>> {
            let entries = tree.dirs.get(dir).into_iter().flat_map(|d| d.entries());
            let links = entries.filter(|(_, e)| e.meta.kind() == libc::S_IFLNK);
            links.map(|(name, _)| crate::tree::join(dir, name)).collect()
        };
        let homes = tree.dirs.get(&b""[..]).into_iter().flat_map(|d| d.entries());
        let homes = homes.filter(|(_, e)| e.meta.is_dir()).flat_map(|(name, _)| links(name));
        let all = links(b"").into_iter().chain(homes);
        let out = all.filter_map(|path| {
            let to = leads_out(&self.path.join(std::ffi::OsStr::from_bytes(&path)), &sources)?;
            Some((path, to))
        });
        out.collect()
    }
}

/// The run that a dump was made in.
fn run_of(dump: &Path) -> Option<String> {
    let dump: Value = serde_json::from_slice(&std::fs::read(dump.join("dump.json")).ok()?).ok()?;
    dump["run_id"].as_str().map(str::to_owned)
}

fn real_paths<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<PathBuf> {
    sources.filter_map(|s| s.path.canonicalize().ok()).collect()
}
