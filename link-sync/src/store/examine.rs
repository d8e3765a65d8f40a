//! One path on the disk against what the manifests say of it: attributes first, then its bytes.

use std::fs::File;

use anyhow::Result;

use super::beneath::open_dir;
use super::findings::Damage;
use super::scan::{self, ManifestLine};
use super::{mtree, sums};
use crate::names::show;
use crate::tree::{join, split};

/// An inode to be looked at.
#[derive(Debug)]
pub struct Job {
    /// Its number.
    pub ino: u64,
    /// With the inode: what makes it the same in all dates.
    pub key: u64,
    /// What is expected of it.
    pub line: ManifestLine,
    /// Its bytes, too.
    pub read: bool,
    /// Where it was seen first, among the snapshots compared.
    pub date: usize,
}

impl Job {
    /// What is wrong with it, in the snapshot `date`.
    pub fn examine(
        &self,
        store: &File,
        date: &str,
        read: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<(Damage, String)>> {
        let (parent, name) = split(&self.line.path);
        let looked = mtree::look(&open_dir(store, &join(date.as_bytes(), parent))?, name)?;
        let mut wrong = compare(&self.line, &looked.body);
        if let Some(mut file) = looked.file
            && self.read
            && wrong.iter().all(|w| w.0 == Damage::Attributes)
        {
            let sum = scan::hash(&mut file, read)?;
            if self.line.sum != Some(sum) {
                wrong.push((Damage::Content, format!("sha256={}", sums::hex(&sum))));
            }
        }
        Ok(wrong)
    }
}

/// What is wrong with what is found, as far as its attributes tell.
pub fn compare(line: &ManifestLine, found: &[u8]) -> Vec<(Damage, String)> {
    let expected = mtree::comparable(&line.body, found);
    if line.body.is_empty() || *expected == *found {
        return Vec::new();
    }
    if scan::kind(found) != line.kind() {
        return vec![(Damage::Type, format!("type={}", String::from_utf8_lossy(scan::kind(found))))];
    }
    let (size, other): (Vec<_>, Vec<_>) =
        differences(&expected, found).into_iter().partition(|o| o.starts_with("size="));
    // Another size is other content.
    let all = [(Damage::Content, size), (Damage::Attributes, other)].into_iter();
    all.filter(|w| !w.1.is_empty()).map(|(kind, list)| (kind, list.join(" "))).collect()
}

/// What the disk says where it is not what the manifest says.
fn differences(expected: &[u8], found: &[u8]) -> Vec<String> {
    let (mut before, after) = (mtree::words(expected), mtree::words(found));
    let mut list: Vec<String> = Vec::new();
    for (key, value) in &after {
        let was = before.remove(key);
        if was.as_deref() != Some(value) {
            let was = was.map_or_else(|| "none".into(), |w| show(&w));
            list.push(format!("{key}={} (was {was})", show(value)));
        }
    }
    list.extend(before.into_iter().map(|(key, was)| format!("{key}=none (was {})", show(&was))));
    list
}
