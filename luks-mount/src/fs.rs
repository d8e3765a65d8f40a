//! The file system in the container: made, checked, mounted, grown. ext4 or btrfs.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use common::fault::Fault;
use common::mounts::Mount;
use common::run::Cmd;
use common::status::Report;

use crate::watch::Watch;

/// What can be on an encrypted file system that somebody else stores: files to read, nothing to run.
const COMMON: &str = "nosuid,nodev,noexec,noatime";
/// For ext4 that is written to: nothing behind our back, and no more writing after what could not be written.
const WRITING: &str = ",noinit_itable,errors=remount-ro";

/// For layers, where a push writes a few large files and syncs each: btrfs writes its trees once, at the end, and not every 30 s.
const WRITING_LAYERS: &str = ",commit=300";
/// For layers, of which few inodes and no free blocks are looked for: ext4 reads what it needs and no more.
const EXT4_LAYERS: &str = ",inode_readahead_blks=0,no_prefetch_block_bitmaps";

/// How it is to be mounted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    pub(crate) read_only: bool,
    /// ext4 that is to be written is checked whatever it says.
    pub(crate) suspect: bool,
    /// It holds, or is to hold, layers.
    pub(crate) layers: bool,
}

impl How {
    /// The options of mount(8), as far as the way alone decides.
    fn options(self, file_system: FileSystem) -> String {
        let ro = if self.read_only { ",ro" } else { "" };
        let layers = match file_system {
            FileSystem::Ext4 => EXT4_LAYERS,
            FileSystem::Btrfs if self.read_only => "",
            FileSystem::Btrfs => WRITING_LAYERS,
        };
        format!("{COMMON}{ro}{}", if self.layers { layers } else { "" })
    }
}

/// What a new container holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileSystem {
    /// The one to take for trees.
    Ext4,
    /// Checks contents by itself; the one to take for layers.
    Btrfs,
}

impl FileSystem {
    /// The kernel's name.
    pub(crate) fn word(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Btrfs => "btrfs",
        }
    }

    /// From the kernel's name.
    pub(crate) fn from_word(word: &str) -> Result<FileSystem> {
        match word {
            "ext4" => Ok(FileSystem::Ext4),
            "btrfs" => Ok(FileSystem::Btrfs),
            "" => Err(Fault::config("there is no file system in the container").into()),
            other => {
                Err(Fault::config(format!("the container holds {other}; ext4 and btrfs are known")).into())
            }
        }
    }

    /// What the opened container holds.
    pub(crate) fn find(device: &Path, watch: &mut Watch) -> Result<FileSystem> {
        let cmd = Cmd::new("blkid").args(["--probe", "-o", "value", "-s", "TYPE"]).arg(device);
        let out = watch.output(&cmd)?;
        // Exit code 2: nothing found.
        if !out.status.success() && out.status.code() != Some(2) {
            return Err(cmd.failure(&out).into());
        }
        FileSystem::from_word(&out.text())
    }

    /// Makes it, writing as little as possible: no discard, inode tables left as they are.
    pub(crate) fn make(
        self,
        device: &Path,
        size: u64,
        bytes_per_inode: u32,
        watch: &mut Watch,
    ) -> Result<()> {
        let cmd = match self {
            FileSystem::Ext4 => mkfs_ext4(size, bytes_per_inode),
            FileSystem::Btrfs => Cmd::new("mkfs.btrfs")
                .args(["--quiet", "--nodiscard", "--metadata=single", "--data=single"])
                .args(["--nodesize=4096", "--sectorsize=4096"]),
        };
        watch.checked(&cmd.arg(device)).context("cannot make the file system")?;
        Ok(())
    }

    /// Checks it if it needs that, or is suspect, and mounts it; `data.fsck` says whether something
    /// was repaired, `data.checked_before` when ext4 had been checked before, by whomever, and `data.checked_at` when it was now.
    pub(crate) fn mount(
        self,
        device: &Path,
        target: &Path,
        how: How,
        watch: &mut Watch,
        report: &mut Report,
    ) -> Result<()> {
        report.set("fsck", "not-needed");
        let How { read_only, suspect, .. } = how;
        let mut options = how.options(self);
        if self == FileSystem::Ext4 {
            let found = Super::read(device, watch)?;
            report.set("checked_before", found.last_checked.clone());
            report.set("checked_at", found.last_checked.clone());
            if read_only && found.needs_replay {
                let what =
                    "it was not unmounted cleanly: shown as it is, without what its journal still holds";
                report.warn("unclean", what);
                options.push_str(",noload");
            } else if !read_only {
                if found.needs_replay {
                    report
                        .warn("unclean", "the container was not unmounted cleanly: its journal is replayed");
                }
                if found.needs_check || suspect {
                    check(device, found.needs_check, watch, report)?;
                    report.set("checked_at", Super::read(device, watch)?.last_checked);
                }
                options.push_str(WRITING);
                if found.has_journal {
                    // The same for file contents; not known without a journal.
                    options.push_str(",data_err=abort");
                }
            }
        }
        let mount = |options: &str| {
            let cmd = Cmd::new("mount").args(["-i", "-t", self.word(), "-o", options, "--"]);
            cmd.arg(device).arg(target)
        };
        let cmd = mount(&options);
        let out = watch.output(&cmd)?;
        if out.status.success() {
            return Ok(());
        }
        if self == FileSystem::Btrfs && read_only {
            // Its log cannot be replayed without writing.
            let again = mount(&format!("{options},rescue=nologreplay"));
            if watch.output(&again)?.status.success() {
                let what = "it was not unmounted cleanly: shown as it is, without what its log still holds";
                report.warn("unclean", what);
                return Ok(());
            }
        }
        Err(anyhow::Error::from(cmd.failure(&out)).context("cannot mount the container"))
    }

    /// Lets it take all of its device, while it is mounted.
    pub(crate) fn grow(self, device: &Path, target: &Path, watch: &mut Watch) -> Result<()> {
        if self == FileSystem::Btrfs {
            let cmd = Cmd::new("btrfs").args(["filesystem", "resize", "max"]).arg(target);
            watch.checked(&cmd).context("cannot grow the file system")?;
            return Ok(());
        }
        // With noinit_itable the kernel writes the new inode tables at once. Without, it would in the background: so
        // slowly that it does not get beyond the first one before it is told not to.
        remount(device, target, "init_itable=1000000", watch)?;
        let grown = watch.checked(&Cmd::new("resize2fs").arg(device));
        remount(device, target, "noinit_itable", watch)?;
        grown.context("cannot grow the file system")?;
        Ok(())
    }
}

fn remount(device: &Path, target: &Path, option: &str, watch: &mut Watch) -> Result<()> {
    let options = format!("remount,{COMMON},{option}");
    let cmd = Cmd::new("mount").args(["-i", "-t", "ext4", "-o", &options, "--"]).arg(device).arg(target);
    watch.checked(&cmd).context("cannot change a mount option")?;
    Ok(())
}

/// What an ext4 of ours can do: named one by one, for else the machine's mke2fs.conf decides. Newer ones add what an older
/// e2fsck on a rescue system refuses, and what is written at once (orphan_file: 2 MiB).
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize,metadata_csum";

/// What mkfs.ext4 is told. The journal bounds how much metadata can be waiting to be written. Small descriptors, and
/// room to grow to four times the size, not to a thousand times: both are written once for each copy.
fn mkfs_ext4(size: u64, bytes_per_inode: u32) -> Cmd {
    const SMALL_DESCRIPTORS: u64 = 2 << 40;
    let journal = match size >> 20 {
        0..256 => 4,
        256..2048 => 16,
        _ => 32,
    };
    let mut extended = "lazy_itable_init=1,lazy_journal_init=1,nodiscard".to_owned();
    let mut features = FEATURES.to_owned();
    if size <= SMALL_DESCRIPTORS {
        extended.push_str(&format!(",resize={}", size / 4096 * 4));
    } else {
        features.push_str(",64bit");
    }
    let cmd = Cmd::new("mkfs.ext4").args(["-q", "-b", "4096", "-m", "0", "-I", "256", "-O", &features]);
    let (inodes, journal) = (bytes_per_inode.to_string(), format!("size={journal}"));
    cmd.args(["-i", &inodes, "-J", &journal, "-E", &extended])
}

/// Repairs what can be repaired without a question. All of it is looked at, whatever its marks say.
fn check(device: &Path, marked: bool, watch: &mut Watch, report: &mut Report) -> Result<()> {
    let why = if marked { "is marked as faulty" } else { "was not taken down cleanly the last time" };
    common::say!(crate::TOOL, "the file system {why}: checking it");
    let cmd = Cmd::new("e2fsck").args(["-f", "-p"]).arg(device);
    let out = watch.output(&cmd)?;
    // 1: errors, all corrected.
    if !matches!(out.status.code(), Some(0 | 1)) {
        let mut failure = cmd.failure(&out);
        // e2fsck tells what it found on stdout.
        failure.stderr_tail = common::complaint::tail(&[out.stdout, out.stderr].concat());
        failure.hint =
            Some("`luks-mount attach --read-only` may still show it; to repair it, cryptsetup open, then e2fsck -f".into());
        return Err(anyhow::Error::from(failure).context("the file system in the container is damaged"));
    }
    if marked || out.status.code() == Some(1) {
        report.warn("repaired", format!("the file system in the container {why}; e2fsck has seen to it"));
        report.set("fsck", "repaired");
    } else {
        report.set("fsck", "checked");
    }
    Ok(())
}

/// Why not all that was written to this mount can have reached the image, if it cannot. Only for a container that was
/// opened for writing. Who was told by a sync of its own has used up that error: nobody else is told it.
pub(crate) fn failed(mount: &Mount, dm: &str) -> Option<String> {
    if has_turned_read_only(mount) {
        return Some("the file system has stopped writing because of an error".into());
    }
    // Zero at each mount for writing: it would have been checked otherwise.
    let count = std::fs::read_to_string(Path::new("/sys/fs/ext4").join(dm).join("errors_count")).ok()?;
    let count = count.trim();
    (mount.fs_type == "ext4" && count != "0").then(|| format!("the file system has counted {count} errors"))
}

/// Of the options, those of the mount point come first, then those of the file system: either begin with rw or ro. An
/// error changes the second only, who mounts it read-only by hand both.
fn has_turned_read_only(mount: &Mount) -> bool {
    let stopped = mount.options.iter().any(|o| o == "emergency_ro" || o == "shutdown");
    let mut modes = mount.options.iter().filter(|o| *o == "rw" || *o == "ro");
    stopped || modes.next().zip(modes.next_back()).is_some_and(|(own, all)| own == "rw" && all == "ro")
}

/// What an ext4 superblock says.
#[derive(Debug, PartialEq, Eq)]
struct Super {
    has_journal: bool,
    needs_replay: bool,
    needs_check: bool,
    /// As dumpe2fs writes it.
    last_checked: Option<String>,
}

impl Super {
    fn read(device: &Path, watch: &mut Watch) -> Result<Super> {
        // Times in one zone, as they are compared.
        let out = watch.checked(&Cmd::new("dumpe2fs").env("TZ", "UTC0").arg("-h").arg(device));
        let out = out.context("cannot read the file system in the container")?;
        Ok(Super::parse(&out.text()))
    }

    /// Parses what `dumpe2fs -h` prints. What is not understood is checked.
    fn parse(text: &str) -> Super {
        let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
        let counted = |key: &str| value(key).is_some_and(|number| number != "0");
        let features = value("Filesystem features:").unwrap_or_default();
        let has = |feature| features.split_whitespace().any(|f| f == feature);
        Super {
            has_journal: has("has_journal"),
            needs_replay: has("needs_recovery"),
            // The journal keeps an error that the superblock could not be told of any more.
            needs_check: value("Filesystem state:") != Some("clean")
                || counted("Journal errno:")
                || counted("FS Error count:"),
            last_checked: value("Last checked:").map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superblock_says_what_is_needed() {
        let text = |features: &str, state: &str| {
            format!(
                "Filesystem UUID: x\nFilesystem features:      has_journal {features}extent\nFilesystem state:         {state}\n"
            )
        };
        let parse = |features, state| {
            let found = Super::parse(&text(features, state));
            (found.needs_replay, found.needs_check)
        };
        assert_eq!(parse("", "clean"), (false, false));
        assert!(Super::parse(&text("", "clean")).has_journal);
        assert_eq!(parse("needs_recovery ", "clean"), (true, false));
        assert_eq!(parse("", "clean with errors"), (false, true));
        assert_eq!(parse("", "not clean"), (false, true));
        let with = |more: &str| Super::parse(&format!("{}{more}", text("", "clean"))).needs_check;
        assert!(!with("FS Error count:           0\nJournal errno:            0\n"));
        assert!(with("Journal errno:            -5\n"));
        assert!(with("FS Error count:           2\n"));
        assert_eq!(
            Super::parse("garbage"),
            Super { has_journal: false, needs_replay: false, needs_check: true, last_checked: None }
        );
        let when = Super::parse("Last checked:             Thu Nov 26 17:00:00 2026\n").last_checked;
        assert_eq!(when.as_deref(), Some("Thu Nov 26 17:00:00 2026"));
    }

    #[test]
    fn a_file_system_that_stopped_writing_is_told_from_a_read_only_bind_mount() {
        let stopped = |options: &str| {
            let line = "40 27 254:0 / /c ";
            let (own, of_all) = options.split_once(' ').unwrap();
            let text = format!("{line}{own} - ext4 /dev/dm-77 {of_all}\n");
            failed(&common::mounts::parse(text.as_bytes()).unwrap()[0], "dm-77").is_some()
        };
        assert!(!stopped("rw,noatime rw,errors=remount-ro"));
        assert!(!stopped("ro,noatime rw,errors=remount-ro"));
        assert!(!stopped("ro,noatime ro"));
        assert!(stopped("rw,noatime ro,errors=remount-ro"));
        assert!(stopped("rw,noatime rw,emergency_ro"));
        assert!(stopped("rw,noatime rw,shutdown"));
    }

    #[test]
    fn for_layers_little_is_read_and_written_besides() {
        let options =
            |file_system, read_only, layers| How { read_only, layers, suspect: false }.options(file_system);
        for file_system in [FileSystem::Ext4, FileSystem::Btrfs] {
            assert_eq!(options(file_system, false, false), COMMON);
            assert_eq!(options(file_system, true, false), format!("{COMMON},ro"));
        }
        assert_eq!(options(FileSystem::Btrfs, false, true), format!("{COMMON},commit=300"));
        assert_eq!(options(FileSystem::Btrfs, true, true), format!("{COMMON},ro"));
        assert!(
            options(FileSystem::Ext4, true, true)
                .ends_with(",ro,inode_readahead_blks=0,no_prefetch_block_bitmaps")
        );
    }

    #[test]
    fn only_what_we_know_is_mounted() {
        assert!(FileSystem::from_word("ext4").is_ok());
        for word in ["", "xfs", "vfat"] {
            assert!(FileSystem::from_word(word).is_err());
        }
    }
}
