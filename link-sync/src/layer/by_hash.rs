//! The plan for a snapshot over one that is not in the store any more, and of which only the hashes of its files are known.
//!
//! Nothing of the base is believed but contents: whatever lies at its top is hidden, all names and attributes are stored anew, and a
//! file whose content the base has leads to a path of the base by which that is found.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use serde_json::Value;

use super::beside::Beside;
use super::manifest::Base;
use super::plan::{Part, Plan, SMALL, describe};
use crate::names::show;
use crate::store::held::Held;
use crate::store::layout::META;
use crate::store::manifest::{SUMS, check_one};
use crate::store::sums::{self, Lines, Sum};
use crate::store::{open_dir, open_file, open_file_at, visit};
use crate::tree::join;

/// The plan for `wanted`.
pub fn plan(base: &Base, wanted: &Held) -> Result<Plan> {
    let sums = Sums::of(base, wanted)?;
    let (mut plan, mut waiting) = (Plan::new(), vec![Vec::new()]);
    while let Some(folder) = waiting.pop() {
        common::signals::check()?;
        let context = || format!("cannot compare the folder {}", show(&folder));
        let dir = open_dir(&wanted.top, &folder).with_context(context)?;
        for (name, is_dir, _) in visit::names(&dir).with_context(context)? {
            let (path, at_top) = (join(&folder, &name), folder.is_empty());
            if path == META.as_bytes() {
                continue;
            }
            let part = match is_dir {
                // In it nothing shows through, however deep.
                true if at_top && !mutant::active("nothing-of-an-unseen-base-shows") => Part::Fresh,
                true => Part::Folder,
                false => match sums.content(base, &dir, &name, &path).with_context(|| show(&path))? {
                    Some(from) => Part::Content(Some(from)),
                    None => Part::Whole { over: at_top },
                },
            };
            if is_dir {
                waiting.push(path.clone());
            }
            plan.insert(path, part);
        }
    }
    for top in &base.tops {
        plan.entry(top.clone()).or_insert(Part::Gone);
    }
    describe(&mut plan, true);
    Ok(plan)
}

/// The hashes of the snapshot's files.
enum Sums {
    /// As its checksums have them: of those that the base has, too.
    Known(HashMap<Vec<u8>, Sum>),
    /// It has none, or they have rotted: what is as long as a file of the base is read.
    Unknown(HashSet<u64>),
}

impl Sums {
    fn of(base: &Base, wanted: &Held) -> Result<Sums> {
        let unknown = || Sums::Unknown(base.sizes().collect());
        let Some(manifest) = &wanted.meta.manifest else { return Ok(unknown()) };
        if check_one(&wanted.top, SUMS, &manifest.sha256sums).is_err() {
            common::signals::check()?;
            return Ok(unknown());
        }
        let mut lines = Lines::new(open_file(&wanted.top, &format!("{META}/{SUMS}"))?);
        let mut known = HashMap::new();
        while let Some(line) = lines.next()? {
            if let Some((sum, path)) = sums::parse(line).filter(|line| base.of(&line.0).is_some()) {
                known.insert(path.into_owned(), sum);
            }
        }
        Ok(Sums::Known(known))
    }

    /// Where in the base the content of the file `name` in `dir` is.
    fn content(&self, base: &Base, dir: &File, name: &[u8], path: &[u8]) -> Result<Option<Vec<u8>>> {
        let known = match self {
            Sums::Known(known) => known.get(path).copied(),
            Sums::Unknown(_) => None,
        };
        if known.is_none() && matches!(self, Sums::Known(_)) {
            return Ok(None);
        }
        let stat = fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_size < SMALL {
            return Ok(None);
        }
        let size = stat.st_size.unsigned_abs();
        let sum = match self {
            Sums::Unknown(sizes) if sizes.contains(&size) => {
                Some(sums::of_file(&mut open_file_at(dir, name)?, |_| common::signals::check())?.0)
            }
            _ => known,
        };
        // One that is not as long as its hash's content has been damaged here since: it is stored as it is.
        let found = sum.and_then(|sum| base.of(&sum));
        let same = |content: &(&[u8], u64)| content.1 == size || mutant::active("a-content-has-its-length");
        Ok(found.filter(same).map(|content| content.0.to_vec()))
    }
}

/// Takes out of what is known of the base the files of which `list`, the contents beside its images, tells something else: they
/// were damaged before they were sent.
pub fn correct(base: &mut Base, list: &[Beside]) -> Result<()> {
    let mut known = HashMap::new();
    for one in list {
        known.insert(one.path()?, sums::unhex(one.sha256.as_bytes()).context("a hash is none")?);
    }
    base.correct(&known);
    Ok(())
}

/// Of the contents that `list` names: those that files of `plan` lead to, with such a file's path.
pub fn kept(list: &[Beside], base: &Base, plan: &Plan) -> Result<Vec<Value>> {
    let mut needed: HashMap<&[u8], &[u8]> = HashMap::new();
    for (path, part) in plan {
        if let Part::Content(Some(from)) = part {
            needed.insert(from, path);
        }
    }
    let mut kept = Vec::new();
    for one in list {
        let sum = sums::unhex(one.sha256.as_bytes());
        match sum.and_then(|sum| base.of(&sum)) {
            Some((from, _)) => kept.extend(needed.get(from).map(|path| one.told(path))),
            // What the base's checksums do not know was never ours to judge: it stays.
            None => kept.push(one.told(&one.path()?)),
        }
    }
    Ok(kept)
}
