//! Paths that another end names: believed only if they stay in the snapshot.

use anyhow::Result;
use common::fault::Fault;
use common::mutant;

use crate::names::show;

/// The longest path that is believed, in bytes, and how deep it may lead: four times what the kernel takes at once.
const MAX_PATH: usize = 16 << 10;
const MAX_DEPTH: usize = 4096;

/// A relative path that stays below where it starts: no empty, `.` or `..` part, no leading slash.
pub fn check_path(path: &[u8]) -> Result<()> {
    let part_ok = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    let deep = path.iter().filter(|b| **b == b'/').count() >= MAX_DEPTH;
    if (path.len() > MAX_PATH || deep) && !mutant::active("paths-of-any-length") {
        return Err(Fault::denied(format!("a path of {} bytes is too long: refused", path.len())).into());
    }
    if path.split(|b| *b == b'/').all(part_ok) || mutant::active("paths-lead-anywhere") {
        return Ok(());
    }
    Err(Fault::denied(format!("the path '{}' leads out of the snapshot: refused", show(path))).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_snapshot_are_refused() {
        for bad in ["", "/etc", "../x", "a/../../b", "a//b", "./a", "a/", "a\0b"] {
            assert!(check_path(bad.as_bytes()).is_err(), "{bad:?}");
        }
        check_path(b"a/..b/.c").unwrap();
    }
}
