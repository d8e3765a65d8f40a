//! The tree that a dump is compared with: a snapshot's folder, or one that was restored from it.
//!
//! It may belong to another account, which may have put anything there: no symbolic link is followed, and what is read is
//! bounded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::lock::Lock;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::Deserialize;

use crate::dumps::is_ahead;
use crate::dumps::is_date;
use crate::file_cache::files::{open_below, open_file, open_folder};
use crate::file_cache::php::{self, Value};

/// More bytes than a configuration or a description has.
const LONGEST: u64 = 1 << 20;

/// What `.meta/snapshot.json` says that matters here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) date: String,
    pub(crate) run_id: Option<String>,
    pub(crate) consistency: String,
    /// When staging began: the dump is younger.
    pub(crate) started_at: String,
    #[serde(default)]
    pub(crate) fake_super: bool,
}

/// An opened tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    root: File,
    /// Its `data/`.
    pub(crate) data: File,
    /// `None`: not a snapshot of link-sync's, or one without its description.
    pub(crate) snapshot: Option<Snapshot>,
    /// Kept from being pruned meanwhile.
    _lock: Option<Lock>,
}

impl Tree {
    /// Opens `path`, and takes the lock that readers of a snapshot share. What a person named may be a link.
    pub(crate) fn open(path: &Path) -> Result<Tree> {
        Tree::open_with(path, OFlag::empty())
    }

    /// The newest snapshot in `store`; what stands there under a date must be a folder.
    pub(crate) fn newest(store: &Path) -> Result<Tree> {
        let what = || format!("cannot list the store {}", store.display());
        let mut dates = Vec::new();
        for entry in std::fs::read_dir(store).with_context(what)? {
            dates.extend(entry.with_context(what)?.file_name().into_string().ok().filter(|n| is_date(n)));
        }
        // One of a time to come, of a clock that was ahead, only if there is no other.
        let newest =
            dates.into_iter().max_by_key(|date| (!is_ahead(date), date.clone())).ok_or_else(|| {
                Fault::failed(format!("there is no snapshot in {}", store.display()))
                    .hint("`backup-local` makes one; is the store's disk mounted?")
            })?;
        Tree::open_with(&store.join(newest), OFlag::O_NOFOLLOW)
    }

    fn open_with(path: &Path, more: OFlag) -> Result<Tree> {
        let shown = path.display();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | more;
        let root = open(path, flags, Mode::empty())
            .map(File::from)
            .map_err(|e| Fault::config(format!("{shown} cannot be opened as a folder: {e}")))?;
        let lock =
            match open_below(&root, b".meta/lock", OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
                Ok(file) => {
                    let file = File::from(file);
                    Some(Lock::shared_file(file, &path.join(".meta/lock"), &format!("the snapshot {shown}"))?)
                }
                Err(Errno::ENOENT) => None,
                Err(e) => return Err(e).with_context(|| format!("cannot open the lock of {shown}")),
            };
        let data = open_folder(&root, b"data").map_err(|e| {
            Fault::config(format!("{shown}/data cannot be opened as a folder: {e}"))
                .hint("name the folder that holds data/ and html/, for example STORE/DATE")
        })?;
        let snapshot = match read(&root, b".meta/snapshot.json")? {
            Some(text) => Some(
                serde_json::from_str(&text)
                    .with_context(|| format!("{shown}/.meta/snapshot.json is damaged"))?,
            ),
            None => None,
        };
        Ok(Tree { path: path.to_owned(), root, data, snapshot, _lock: lock })
    }

    /// The folder of its own dump, if there is one.
    pub(crate) fn dump(&self) -> Option<PathBuf> {
        let is_there = open_file(&self.root, b"database/dump.json").is_ok()
            && open_folder(&self.root, b"database/files").is_ok();
        is_there.then(|| self.path.join("database"))
    }

    /// What config.php says; `None` if it is not there.
    pub(crate) fn config(&self) -> Result<Option<HashMap<String, Value>>> {
        let Some(text) = read(&self.root, b"html/config/config.php")? else { return Ok(None) };
        let config = php::config(&text).ok_or_else(|| {
            Fault::failed(format!(
                "{}/html/config/config.php holds no $CONFIG that can be read",
                self.path.display()
            ))
        })?;
        Ok(Some(config))
    }

    /// The version of the code, `32.0.1.2`.
    pub(crate) fn version(&self) -> Result<Option<String>> {
        Ok(read(&self.root, b"html/version.php")?.and_then(|text| php::version(&text)))
    }

    /// The names in a folder of `data/`; none if it is not there.
    pub(crate) fn names(&self, folder: &[u8]) -> Result<Vec<String>> {
        let dir = match open_folder(&self.data, folder) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Vec::new()),
            Err(e) => return Err(e).context("cannot list the tree's data"),
        };
        let mut dir = nix::dir::Dir::from_fd(dir.into())?;
        // What is not UTF-8 is no storage's folder.
        let names = dir.iter().map(|e| Ok(e?.file_name().to_str().ok().map(str::to_owned)));
        let names: Vec<Option<String>> = names.collect::<nix::Result<_>>()?;
        Ok(names.into_iter().flatten().filter(|n| n != "." && n != "..").collect())
    }
}

/// The text of a regular file in the tree; `None` if there is nothing of that name.
fn read(root: &File, path: &[u8]) -> Result<Option<String>> {
    let what = || format!("cannot read {}", String::from_utf8_lossy(path));
    let file = match open_file(root, path) {
        Ok(file) => file,
        Err(e) if matches!(e.downcast_ref(), Some(Errno::ENOENT | Errno::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e).with_context(what),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).with_context(what)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
