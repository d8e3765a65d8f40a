//! Which of the contents that lie beside the base's images the snapshot still has. The others need not be kept for it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use common::durable;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstatat};
use serde::Deserialize;
use serde_json::{Value, json};

use super::packing::told;
use super::plan::{Part, Plan};
use crate::store::{open_dir, open_file_at, split, sums, visit};
use crate::tree::join;

/// A content and a file of the base that has it.
#[derive(Clone, Debug, Deserialize)]
struct Beside {
    sha256: String,
    bytes: u64,
    path: String,
    path_b64: Option<String>,
}

impl Beside {
    fn path(&self) -> Result<Vec<u8>> {
        let decoded =
            self.path_b64.as_ref().map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        Ok(decoded
            .transpose()
            .context("path_b64 is no base64")?
            .unwrap_or_else(|| self.path.clone().into_bytes()))
    }

    fn told(&self, path: &[u8]) -> Value {
        let (path, base64) = told(path);
        json!({"sha256": self.sha256, "bytes": self.bytes, "path": path, "path_b64": base64})
    }
}

/// Of the contents that `list` names, a JSON array as this one: those that files of `wanted` have, with such a file's path. They are
/// the same inodes as in `base`, or were found to have the same bytes.
pub fn kept(list: &Path, base: &File, wanted: &File, plan: &Plan) -> Result<Vec<Value>> {
    let text = durable::read(list)?.with_context(|| format!("there is no {}", list.display()))?;
    let all: Vec<Beside> =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", list.display()))?;
    let mut inodes: HashMap<u64, Beside> = HashMap::new();
    let mut kept: BTreeMap<Vec<u8>, Value> = BTreeMap::new();
    let by_hash: HashMap<String, Beside> = all.iter().map(|one| (one.sha256.clone(), one.clone())).collect();
    for one in all {
        common::signals::check()?;
        let path = one.path()?;
        // What the base does not have there any more was never ours to judge: it stays.
        let Some(inode) = file(base, &path)?.map(|stat| stat.st_ino) else {
            kept.insert(path.clone(), one.told(&path));
            continue;
        };
        match file(wanted, &path)? {
            Some(stat) if stat.st_ino == inode => drop(kept.insert(path.clone(), one.told(&path))),
            _ => drop(inodes.insert(inode, one)),
        }
    }
    if !inodes.is_empty() {
        moved(wanted, &inodes, &mut kept)?;
    }
    // Another inode with the same bytes.
    for path in plan.iter().filter(|p| *p.1 == Part::Content(None)).map(|p| p.0) {
        let Some(stat) = file(wanted, path)? else { continue };
        if by_hash.values().any(|one| one.bytes == stat.st_size.unsigned_abs()) {
            let (above, name) = split(path);
            let mut content = open_file_at(&open_dir(wanted, above)?, name)?;
            let (sum, _) = sums::of_file(&mut content, |_| common::signals::check())?;
            if let Some(one) = by_hash.get(&sums::hex(&sum)) {
                kept.insert(path.clone(), one.told(path));
            }
        }
    }
    Ok(kept.into_values().collect())
}

/// Looks for the inodes at all other paths.
fn moved(wanted: &File, inodes: &HashMap<u64, Beside>, kept: &mut BTreeMap<Vec<u8>, Value>) -> Result<()> {
    let mut waiting = vec![Vec::new()];
    while let Some(folder) = waiting.pop() {
        common::signals::check()?;
        for (name, is_dir, inode) in visit::names(&open_dir(wanted, &folder)?)? {
            let path = join(&folder, &name);
            if is_dir {
                waiting.push(path);
            } else if let Some(one) = inodes.get(&inode) {
                let told = one.told(&path);
                kept.insert(path, told);
            }
        }
    }
    Ok(())
}

/// The file at `path`, if there is one.
fn file(top: &File, path: &[u8]) -> Result<Option<FileStat>> {
    let (above, name) = split(path);
    let Ok(dir) = open_dir(top, above) else { return Ok(None) };
    let stat = fstatat(&dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW);
    Ok(stat.ok().filter(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG))
}
