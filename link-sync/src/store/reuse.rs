//! Files of the base are used again under another name where they were moved at the source, or copied.
//!
//! The source claims what a file of its holds, by its SHA-256. Where the base's manifest says the same of a file, that
//! file is linked into `.reuse`, under the name it has now. There rsync compares its attributes with the source's, and makes
//! a copy of it where they differ; what is the same in all goes on into the partial snapshot, by `merge`. A claim is worth as
//! much as what it is compared with: it gives a new name to what the base holds, and tells nobody what that is.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::Result;
use common::mutant;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::linkat;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::beneath::{ensure_dir, existing, open_file};
use super::damaged::Damaged;
use super::layout::{META, REUSE};
use super::manifest::SUMS;
use super::merge::OpenTree;
use super::open::Writable;
use super::ranges::{Ranges, add};
use super::sums::{self, Lines, Sum, hex};
use crate::tree::split;

/// A file with so many links is sent: each date needs one for each of its names, and ext4 allows 65,000.
const LINKS: u64 = 1000;

/// What the source says of a file that is new there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Of its content.
    pub sum: Sum,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Where it may have been, relative to the source: of many of one content, that one is meant. Empty if that is not known.
    pub old: Vec<u8>,
    /// Where it is now.
    pub path: Vec<u8>,
}

impl Claim {
    /// What it takes in memory.
    pub fn memory(&self) -> usize {
        300 + 2 * (self.old.len() + self.path.len())
    }
}

/// Which claims are met.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Found {
    /// By their numbers in the list, from and to before: those whose size and time are the base's, too. They need not be sent.
    pub ranges: Ranges,
    /// Others: content is all that is the same. They are at hand to be compared with.
    pub alike: u64,
}

/// Links what the base holds of `claims`, whose paths were checked, into `.reuse`. What cannot be linked is sent, as ever. `note`
/// is told of each link before it is made, its inode and what that holds, and says whether there is room to remember it.
pub fn link(
    writable: &Writable,
    damaged: &Damaged,
    source: &str,
    claims: &[Claim],
    mut note: impl FnMut(&[u8], (u64, Sum)) -> Result<bool>,
) -> Result<Found> {
    let mut found = Found::default();
    if claims.is_empty() {
        return Ok(found);
    }
    let Some(places) = look_up(writable, damaged, source, claims)? else { return Ok(found) };
    let Some(base) = writable.base_dir(source)? else { return Ok(found) };
    let mut base = OpenTree::new(base);
    let top = writable.source_dir(REUSE, source)?;
    let mut into: Option<(&[u8], File)> = None;
    for (number, (claim, place)) in claims.iter().zip(&places).enumerate() {
        let Some(place) = place else { continue };
        let ((from, name), (dir, new_name)) = (split(place), split(&claim.path));
        let Ok(Some(from)) = base.dir(from) else { continue };
        let name = OsStr::from_bytes(name);
        let Ok(stat) = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        let is_it =
            stat.st_mode & libc::S_IFMT == libc::S_IFREG && u64::try_from(stat.st_size) == Ok(claim.size);
        if !is_it || stat.st_nlink >= LINKS {
            continue;
        }
        if into.as_ref().is_none_or(|(open, _)| *open != dir) {
            // A folder where another claim put a file: this one is sent.
            into = ensure_dir(&top, dir).ok().map(|open| (dir, open));
        }
        let Some((_, open)) = &into else { continue };
        // A copy that is made of it is compared with its sum, and so is what it holds from then on.
        if !note(&claim.path, (stat.st_ino, claim.sum))?
            || linkat(from, name, open, OsStr::from_bytes(new_name), AtFlags::empty()).is_err()
        {
            continue;
        }
        if (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)) == claim.mtime {
            add(&mut found.ranges, number as u64);
        } else {
            found.alike += 1;
        }
    }
    Ok(found)
}

/// Where the base holds what is claimed, relative to `source`: where it was, if its sum there is the one that is claimed, else
/// the first place with that sum. `None` if the base has no manifest that can be believed.
fn look_up(
    writable: &Writable,
    damaged: &Damaged,
    source: &str,
    claims: &[Claim],
) -> Result<Option<Vec<Option<Vec<u8>>>>> {
    let Some(base) = writable.base.as_ref().filter(|_| !damaged.all) else { return Ok(None) };
    let Some(manifest) = &base.manifest else { return Ok(None) };
    let Some(dir) = existing(&writable.dir, &[&base.date])? else { return Ok(None) };
    let Ok(list) = open_file(&dir, &format!("{META}/{SUMS}")) else { return Ok(None) };
    let (mut by_name, mut by_sum) =
        (HashMap::<&[u8], Vec<usize>>::new(), HashMap::<Sum, Option<Vec<u8>>>::new());
    for (number, claim) in claims.iter().enumerate() {
        by_sum.entry(claim.sum).or_default();
        if !claim.old.is_empty() {
            by_name.entry(&claim.old).or_default().push(number);
        }
    }
    let mut places = vec![None; claims.len()];
    let (mut lines, mut hash) = (Lines::new(list), Sha256::new());
    loop {
        // What cannot be read is told of when the next manifest is made.
        let Ok(next) = lines.next() else { return Ok(None) };
        let Some(line) = next else { break };
        hash.update(line);
        hash.update(b"\n");
        let Some((sum, path)) = sums::parse(line) else { continue };
        let Some(inside) = path.strip_prefix(source.as_bytes()).and_then(|p| p.strip_prefix(b"/")) else {
            continue;
        };
        for number in by_name.get(inside).into_iter().flatten() {
            let met = claims[*number].sum == sum || mutant::active("a-claim-is-compared");
            places[*number] = (met && !is_damaged(&damaged.paths, &path)).then(|| inside.to_vec());
        }
        if let Some(place @ None) = by_sum.get_mut(&sum)
            && !is_damaged(&damaged.paths, &path)
        {
            *place = Some(inside.to_vec());
        }
    }
    if hex(&hash.finalize()) != manifest.sha256sums.sha256 && !mutant::active("a-rotten-manifest-is-believed")
    {
        return Ok(None);
    }
    for (claim, place) in claims.iter().zip(&mut places) {
        if place.is_none() {
            *place = by_sum.get(&claim.sum).cloned().flatten();
        }
    }
    Ok(Some(places))
}

/// A verification found it not to be what the manifest says.
fn is_damaged(paths: &BTreeSet<Vec<u8>>, path: &[u8]) -> bool {
    paths.contains(path) && !mutant::active("what-is-damaged-is-used-again")
}
