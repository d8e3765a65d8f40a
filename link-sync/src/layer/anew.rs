//! What the base's images may not show as the base here is: it was repaired here since, or is damaged there. All of that which the
//! snapshot has is stored, so that what is wrong in the base's images is right from here on.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use common::durable;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use serde::Deserialize;

use crate::store::repaired::Mended;
use crate::store::{open_dir, split};

/// As it is given with `--anew`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    /// Everything.
    #[serde(default)]
    all: bool,
    #[serde(default)]
    paths: Vec<Named>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    path: String,
    #[serde(default)]
    path_b64: Option<String>,
}

/// Paths of the base, and the files that are there.
#[derive(Debug, Default)]
pub struct Anew {
    all: bool,
    paths: BTreeSet<Vec<u8>>,
    inodes: HashSet<u64>,
}

impl Anew {
    /// What was `mended` in `base`, and what the file `list` names.
    pub fn new(base: &File, mended: Mended, list: Option<&Path>) -> Result<Anew> {
        let Mended { mut paths, mut all } = mended;
        if let Some(list) = list {
            let (also_all, named) = given(list)?;
            all |= also_all;
            paths.extend(named);
        }
        paths.remove(&b""[..]);
        let mut inodes = HashSet::new();
        for path in &paths {
            common::signals::check()?;
            let (above, name) = split(path);
            let Ok(dir) = open_dir(base, above) else { continue };
            if let Ok(stat) = fstatat(&dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW)
                && stat.st_mode & libc::S_IFMT != libc::S_IFDIR
            {
                inodes.insert(stat.st_ino);
            }
        }
        Ok(Anew { all, paths, inodes })
    }

    /// Whether this file of the base, which is no folder, is among it.
    pub fn has_file(&self, inode: u64) -> bool {
        self.all || self.inodes.contains(&inode)
    }

    /// Whether this folder of the base is.
    pub fn has_path(&self, path: &[u8]) -> bool {
        self.all || self.paths.contains(path)
    }

    /// The paths, as far as they are known.
    pub fn paths(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.paths.iter()
    }
}

/// What the file `list` names: whether everything, and which paths.
pub fn given(list: &Path) -> Result<(bool, BTreeSet<Vec<u8>>)> {
    let text = durable::read(list)?.with_context(|| format!("there is no {}", list.display()))?;
    let context = || format!("{} is damaged", list.display());
    let Given { all, paths } = serde_json::from_slice(&text).with_context(context)?;
    let decode = |named: Named| {
        let decoded = named.path_b64.map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        Ok(decoded.transpose().with_context(context)?.unwrap_or_else(|| named.path.into_bytes()))
    };
    Ok((all, paths.into_iter().map(decode).collect::<Result<_>>()?))
}
