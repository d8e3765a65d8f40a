//! What a file system's superblock says of its last use, read before anything changes it.
//! Before anything is replayed, checked or mounted: so that a container in which another machine has been since is
//! known while it is still as that machine left it.
//!
//! Two machines that write to one container (an S2 restored from a backup, the old one still running) make noise of
//! it. ext4 counts how often it was mounted for writing, and says when; btrfs counts its transactions; both say that a
//! journal (a log) wants to be replayed. What they said when this machine closed the container is noted in its
//! record. If they say anything else later, it was not this machine.

use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::run::Cmd;
use common::status::utc;
use serde::{Deserialize, Serialize};

use crate::fs::FileSystem;
use crate::watch::Watch;

/// What is read at once: the superblock is in it, and every device can be read in such pieces.
const BLOCK: usize = 4096;

/// What a superblock says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "file_system", rename_all = "kebab-case")]
pub(crate) enum Marks {
    /// Times are seconds since 1970.
    Ext4 {
        /// How often it was mounted for writing since it was last checked.
        mounts: u64,
        mounted_at: u64,
        written_at: u64,
        wants_replay: bool,
    },
    Btrfs {
        /// Of the last transaction.
        generation: u64,
        wants_replay: bool,
    },
}

/// How this machine left the file system in the container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "how", content = "marks", rename_all = "kebab-case")]
pub(crate) enum Left {
    /// Unmounted, all of it on the image.
    Closed(Marks),
    /// About to be checked and mounted for writing; it said this before.
    Opening(Marks),
    /// Mounted for writing; it said this then.
    Open(Marks),
}

impl Marks {
    /// Reads the superblock on the opened container, past all caches. Nothing is written.
    pub(crate) fn read(file_system: FileSystem, device: &Path, watch: &mut Watch) -> Result<Marks> {
        let at = match file_system {
            FileSystem::Ext4 => 0,
            FileSystem::Btrfs => (64 << 10) / BLOCK,
        };
        let mut from = std::ffi::OsString::from("if=");
        from.push(device);
        let cmd = Cmd::new("dd").arg(from).args(["iflag=direct,fullblock", "count=1", "status=none"]);
        let cmd = cmd.arg(format!("bs={BLOCK}")).arg(format!("skip={at}"));
        let block = watch.checked(&cmd).context("cannot read the file system in the container")?.stdout;
        Marks::parse(file_system, &block).ok_or_else(|| {
            let what = format!("what is there holds no {} that our key opens", file_system.word());
            let hint = "this may be another file: is the right disk mounted on S3? If it is surely our container, its first \
                        blocks there are damaged: look for an older copy of the file";
            Fault::failed(what).hint(hint).into()
        })
    }

    /// The layouts are those of the kernel's fs/ext4/ext4.h and uapi/linux/btrfs_tree.h, all little endian.
    fn parse(file_system: FileSystem, block: &[u8]) -> Option<Marks> {
        let number = |at: usize, bytes: usize| -> Option<u64> {
            let field = block.get(at..at + bytes)?;
            Some(field.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        match file_system {
            FileSystem::Ext4 => {
                const SUPER: usize = 1024;
                const NEEDS_RECOVERY: u64 = 4;
                let number = |at, bytes| number(SUPER + at, bytes);
                (number(0x38, 2)? == 0xEF53).then_some(())?;
                Some(Marks::Ext4 {
                    mounts: number(0x34, 2)?,
                    mounted_at: number(0x2C, 4)? | number(0x275, 1)? << 32,
                    written_at: number(0x30, 4)? | number(0x274, 1)? << 32,
                    wants_replay: number(0x60, 4)? & NEEDS_RECOVERY != 0,
                })
            }
            FileSystem::Btrfs => {
                (block.get(0x40..0x48)? == b"_BHRfS_M").then_some(())?;
                Some(Marks::Btrfs { generation: number(0x48, 8)?, wants_replay: number(0x60, 8)? != 0 })
            }
        }
    }

    fn wants_replay(&self) -> bool {
        let (Marks::Ext4 { wants_replay, .. } | Marks::Btrfs { wants_replay, .. }) = self;
        *wants_replay
    }

    /// The same but for whether something wants to be replayed.
    fn same_use(&self, other: &Marks) -> bool {
        let quiet = |marks: &Marks| match marks.clone() {
            Marks::Ext4 { mounts, mounted_at, written_at, .. } => {
                Marks::Ext4 { mounts, mounted_at, written_at, wants_replay: false }
            }
            Marks::Btrfs { generation, .. } => Marks::Btrfs { generation, wants_replay: false },
        };
        quiet(self) == quiet(other)
    }

    fn say(&self) -> String {
        let journal = if self.wants_replay() { ", with a journal that wants to be replayed" } else { "" };
        match self {
            Marks::Ext4 { mounts, mounted_at, written_at, .. } => format!(
                "at mount {mounts} for writing, made at {}, and written at {}{journal}",
                utc(*mounted_at),
                utc(*written_at)
            ),
            Marks::Btrfs { generation, .. } => format!("of transaction {generation}{journal}"),
        }
    }
}

/// Why what is `found` is not what this machine left; `None` if it is. `suspect`: this machine noted that not all it
/// wrote may have arrived.
pub(crate) fn objection(left: Option<&Left>, found: &Marks, suspect: bool) -> Option<String> {
    let foreign_journal = found.wants_replay() && !mutant::active("journal-of-another");
    let (how, was) = match left {
        // Adopted, or last closed by a version that noted nothing.
        None => {
            return (foreign_journal && !suspect).then(|| {
                format!(
                    "this machine knows of no writing of its own that was cut off, and it is {}",
                    found.say()
                )
            });
        }
        Some(Left::Closed(was)) => {
            let used = !found.same_use(was) && !mutant::active("mounted-by-another");
            let replay = foreign_journal && !was.wants_replay();
            if !used && !replay {
                return None;
            }
            ("closed", was)
        }
        // A check may have been at work on it, which sets the count to nothing.
        Some(Left::Opening(was)) => match (was, found) {
            (Marks::Ext4 { mounts: was, .. }, Marks::Ext4 { mounts: now, .. }) if *now <= was + 1 => {
                return None;
            }
            (Marks::Btrfs { .. }, Marks::Btrfs { .. }) => return None,
            _ => ("opened", was),
        },
        // The same mount: its own end, or a journal of its own.
        Some(Left::Open(was)) => match (was, found) {
            (
                Marks::Ext4 { mounts: was, mounted_at: at, .. },
                Marks::Ext4 { mounts: now, mounted_at: now_at, .. },
            ) if (was, at) == (now, now_at) || mutant::active("cut-off-by-another") => return None,
            (Marks::Btrfs { generation: was, .. }, Marks::Btrfs { generation: now, .. }) if now >= was => {
                return None;
            }
            _ => ("opened", was),
        },
    };
    Some(format!("when this machine last {how} it, it was {}; now it is {}", was.say(), found.say()))
}

/// A container that was objected to, as an error that says what can be done.
pub(crate) fn refusal(why: &str, name: &str) -> anyhow::Error {
    Fault::config(format!("the container is not as this machine left it: {why}"))
        .hint(format!(
            "nothing was changed. Does another machine push to it too, such as the one this was restored from? Stop \
             that. Or S3's disk was restored, or somebody mounted or repaired the container. If this machine is to go on: \
             look at it with `offsite-push view {name}`, close it, then `offsite-push push {name} --accept-container`, once"
        ))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(mounts: u64, mounted_at: u64, written_at: u64, wants_replay: bool) -> Marks {
        Marks::Ext4 { mounts, mounted_at, written_at, wants_replay }
    }
    fn btrfs(generation: u64, wants_replay: bool) -> Marks {
        Marks::Btrfs { generation, wants_replay }
    }
    fn refused(left: &Left, found: &Marks) -> bool {
        objection(Some(left), found, false).is_some()
    }

    #[test]
    fn superblocks_are_read_as_the_kernel_lays_them_out() {
        let mut block = vec![0; BLOCK];
        assert_eq!(Marks::parse(FileSystem::Ext4, &block), None);
        block[1024 + 0x38..1024 + 0x3A].copy_from_slice(&[0x53, 0xEF]);
        block[1024 + 0x34..1024 + 0x36].copy_from_slice(&[0x01, 0x02]);
        block[1024 + 0x2C] = 9;
        block[1024 + 0x275] = 1;
        block[1024 + 0x30] = 7;
        block[1024 + 0x60] = 0x46;
        assert_eq!(Marks::parse(FileSystem::Ext4, &block), Some(ext4(0x201, 9 + (1 << 32), 7, true)));
        block[1024 + 0x60] = 0x42;
        assert_eq!(Marks::parse(FileSystem::Ext4, &block), Some(ext4(0x201, 9 + (1 << 32), 7, false)));
        assert_eq!(Marks::parse(FileSystem::Ext4, &block[..1500]), None);
        let mut block = vec![0; BLOCK];
        block[0x40..0x48].copy_from_slice(b"_BHRfS_M");
        (block[0x48], block[0x60]) = (5, 1);
        assert_eq!(Marks::parse(FileSystem::Btrfs, &block), Some(btrfs(5, true)));
        block[0x60] = 0;
        assert_eq!(Marks::parse(FileSystem::Btrfs, &block), Some(btrfs(5, false)));
    }

    #[test]
    fn what_was_closed_is_opened_only_as_it_was_closed() {
        let left = Left::Closed(ext4(3, 100, 200, false));
        assert!(!refused(&left, &ext4(3, 100, 200, false)));
        for other in [ext4(4, 100, 200, false), ext4(3, 101, 200, false), ext4(3, 100, 201, false)] {
            assert!(refused(&left, &other), "{other:?}");
        }
        assert!(refused(&Left::Closed(btrfs(7, false)), &btrfs(8, false)));
        assert!(refused(&left, &btrfs(7, false)));
    }

    #[test]
    fn a_journal_of_somebody_else_is_never_replayed() {
        // A log of btrfs is written without a new transaction.
        for (left, found) in [
            (Some(Left::Closed(ext4(3, 100, 200, false))), ext4(3, 100, 200, true)),
            (Some(Left::Closed(btrfs(7, false))), btrfs(7, true)),
            (None, ext4(3, 100, 200, true)),
        ] {
            assert!(objection(left.as_ref(), &found, false).is_some(), "{left:?}");
        }
        assert!(objection(None, &ext4(3, 100, 200, false), false).is_none());
        assert!(objection(None, &ext4(3, 100, 200, true), true).is_none(), "noted by an older version");
    }

    #[test]
    fn what_this_machine_was_cut_off_in_it_goes_on_with() {
        let left = Left::Open(ext4(4, 300, 300, true));
        assert!(!refused(&left, &ext4(4, 300, 350, true)));
        assert!(!refused(&left, &ext4(4, 300, 350, false)));
        assert!(refused(&left, &ext4(5, 300, 350, true)), "mounted by another since");
        assert!(refused(&left, &ext4(4, 400, 400, true)), "checked and mounted by another since");
        assert!(refused(&left, &ext4(3, 200, 250, false)), "put back to an older state");
        let opening = Left::Opening(ext4(3, 100, 200, false));
        for found in [ext4(3, 100, 200, false), ext4(4, 300, 300, true), ext4(0, 100, 250, true)] {
            assert!(!refused(&opening, &found), "{found:?}");
        }
        assert!(refused(&opening, &ext4(5, 400, 400, true)));
        assert!(!refused(&Left::Open(btrfs(7, false)), &btrfs(9, true)));
        assert!(refused(&Left::Open(btrfs(7, false)), &btrfs(6, false)));
    }
}
