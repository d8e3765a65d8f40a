//! `.prune.json`: what must be remembered between prunes.
//! In a file that is rewritten where it lies, so that noting something needs no room on a disk that is full to the last
//! block.
//!
//! The file is one block with two halves of one line each; the half that was written longer ago is written, and made
//! durable. A write that was torn is told by its checksum, and the other half counts, whose removals have all been noted
//! in it. Before anything is removed, the write has ended. On btrfs the file is exempt from copy-on-write.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use common::fault::{Fault, no_room};
use common::mutant;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::beneath::open_file;
use super::clear::remove;
use super::sums;

/// The file.
pub const FILE: &str = ".prune.json";
/// While it is made.
const NEW: &str = ".prune.json.new";
/// Bytes of a half.
const HALF: usize = 2048;
/// Removals are noted one by one up to so many, the older ones of them together.
const NOTES: usize = 40;

/// What is remembered.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Grows with each write.
    #[serde(default)]
    turn: u64,
    /// When the clock was last believed.
    #[serde(default)]
    pub believed_at: Option<Timestamp>,
    /// Removals that clients asked for within the last day: when, and how many.
    #[serde(default)]
    removals: Vec<(Timestamp, u64)>,
    /// The same one by one, as it was written before.
    #[serde(default, skip_serializing)]
    for_clients: Vec<Timestamp>,
    /// A date that is being removed where it lies.
    #[serde(default)]
    pub going: Option<String>,
}

/// A half: the ledger, and a digest of its text.
#[derive(Deserialize, Serialize)]
struct Half {
    ledger: Ledger,
    sha256: String,
}

impl Ledger {
    /// The one of the store open as `dir`; an empty one if it has none yet.
    pub fn load(dir: &File) -> Result<Ledger> {
        let mut text = Vec::new();
        match open_file(dir, FILE) {
            Ok(file) => {
                file.take(64 << 10).read_to_end(&mut text).with_context(|| format!("cannot read {FILE}"))?
            }
            Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => return Ok(Ledger::default()),
            Err(e) => return Err(e).with_context(|| format!("cannot read {FILE}")),
        };
        let halves = text.chunks(HALF).filter_map(parse);
        if let Some(newest) = halves.max_by_key(|l| l.turn) {
            return Ok(newest);
        }
        let mut old: Ledger = serde_json::from_slice(&text).map_err(|e| {
            Fault::config(format!("{FILE} in the store is damaged: {e}"))
                .hint("remove it, after looking at the clock: it says when the clock was last believed")
        })?;
        old.removals = std::mem::take(&mut old.for_clients).into_iter().map(|at| (at, 1)).collect();
        Ok(old)
    }

    /// Removals that clients asked for since `since`; what is older is forgotten.
    pub fn removals_since(&mut self, since: Timestamp) -> u64 {
        self.removals.retain(|(at, _)| *at > since);
        self.removals.iter().map(|r| r.1).sum()
    }

    /// Notes that a client has `count` dates removed.
    pub fn add_removals(&mut self, at: Timestamp, count: u64) {
        if count > 0 {
            self.removals.push((at, count));
        }
        while self.removals.len() > NOTES {
            // As if the older of them were as young as the next: they count longer, not shorter.
            let (_, count) = self.removals.remove(0);
            self.removals[0].1 += count;
        }
    }

    /// Writes it, durably: in place if the file is there, whatever room there is.
    pub fn save(&mut self, dir: &File) -> Result<()> {
        self.turn += 1;
        let context = || format!("cannot write {FILE} in the store");
        let mut half = self.text()?;
        half.resize(HALF - 1, b' ');
        half.push(b'\n');
        if let Some(file) = in_place(dir).with_context(context)? {
            let at = (self.turn % 2) * HALF as u64;
            return file.write_all_at(&half, at).and_then(|()| file.sync_data()).with_context(context);
        }
        let mut whole = half.clone();
        whole.extend_from_slice(&half);
        let made = make(dir, &whole);
        match made {
            // It was written before there were halves, and has its block.
            Err(e) if no_room(&e) && !mutant::active("the-ledger-needs-room") => {
                match open_for_writing(dir).with_context(context)? {
                    Some(file) if file.metadata()?.len() > 0 => {
                        file.write_all_at(&whole, 0).and_then(|()| file.sync_data()).with_context(context)
                    }
                    _ => Err(e).with_context(context),
                }
            }
            other => other.with_context(context),
        }
    }

    fn text(&self) -> Result<Vec<u8>> {
        let ledger = serde_json::to_vec(self)?;
        let half = Half { sha256: sums::hex(&Sha256::digest(&ledger)), ledger: self.clone() };
        let text = serde_json::to_vec(&half)?;
        ensure!(text.len() < HALF, "what is to be remembered between prunes has grown too long");
        Ok(text)
    }
}

/// Makes the file while there is room, so that a full disk finds it; that there is none is no reason to stop here.
pub fn prepare(dir: &File) {
    let there = in_place(dir).is_ok_and(|file| file.is_some());
    if !there && let Ok(mut ledger) = Ledger::load(dir) {
        ledger.save(dir).ok();
    }
}

fn parse(half: &[u8]) -> Option<Ledger> {
    let half: Half = serde_json::from_slice(half).ok()?;
    let ledger = serde_json::to_vec(&half.ledger).ok()?;
    (sums::hex(&Sha256::digest(&ledger)) == half.sha256).then_some(half.ledger)
}

/// The file, if it is one with halves.
fn in_place(dir: &File) -> Result<Option<File>> {
    let file = open_for_writing(dir)?.filter(|_| !mutant::active("the-ledger-needs-room"));
    Ok(match file {
        Some(file) if file.metadata()?.len() == 2 * HALF as u64 => Some(file),
        _ => None,
    })
}

fn open_for_writing(dir: &File) -> Result<Option<File>> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match openat(dir, FILE, flags, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            ensure!(file.metadata()?.is_file(), "{FILE} is not a file");
            Ok(Some(file))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn make(dir: &File, bytes: &[u8]) -> Result<()> {
    remove(dir, std::path::Path::new(NEW))?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, NEW, flags, Mode::from_bits_truncate(0o600))?);
    not_copied_on_write(&file);
    let written = file.write_all_at(bytes, 0).and_then(|()| file.sync_all()).map_err(anyhow::Error::from);
    if let Err(error) = written {
        remove(dir, std::path::Path::new(NEW)).ok();
        return Err(error);
    }
    renameat(dir, NEW, dir, FILE)?;
    Ok(dir.sync_all()?)
}

/// `chattr +C`, which counts from before the first byte; other file systems than btrfs write in place anyway.
#[expect(unsafe_code, reason = "the ioctl has no wrapper in nix")]
fn not_copied_on_write(file: &File) {
    const GET: libc::c_ulong = 0x8008_6601;
    const SET: libc::c_ulong = 0x4008_6602;
    const NO_COW: libc::c_int = 0x0080_0000;
    let mut flags: [libc::c_int; 2] = [0; 2];
    // SAFETY: both requests read or write one int (their size field says long), and the buffer has room for a long.
    unsafe {
        if libc::ioctl(file.as_raw_fd(), GET, flags.as_mut_ptr()) == 0 {
            flags[0] |= NO_COW;
            libc::ioctl(file.as_raw_fd(), SET, flags.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_torn_write_leaves_what_was_noted_before() {
        let folder = tempfile::tempdir().unwrap();
        let dir = File::open(folder.path()).unwrap();
        assert_eq!(Ledger::load(&dir).unwrap(), Ledger::default());
        let mut ledger = Ledger { believed_at: Some(at(0)), ..Ledger::default() };
        ledger.add_removals(at(0), 3);
        ledger.save(&dir).unwrap();
        let inode =
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(folder.path().join(FILE)).unwrap());
        let before = Ledger::load(&dir).unwrap();
        assert_eq!(before, ledger);
        ledger.add_removals(at(60), 2);
        ledger.save(&dir).unwrap();
        assert_eq!(Ledger::load(&dir).unwrap().removals_since(at(-1)), 5);
        let after = std::fs::read(folder.path().join(FILE)).unwrap();
        let now = std::fs::metadata(folder.path().join(FILE)).unwrap();
        assert_eq!((std::os::unix::fs::MetadataExt::ino(&now), after.len()), (inode, 2 * HALF));
        // Whatever part of the last write arrived: the old state, or the new one.
        let older = {
            let mut text = before.text().unwrap();
            text.resize(HALF, b' ');
            text
        };
        for cut in (0..HALF).step_by(512).chain([1, 700]) {
            let begin = (ledger.turn % 2) as usize * HALF;
            let mut torn = after.clone();
            torn[begin + cut..begin + HALF].copy_from_slice(&older[cut..]);
            std::fs::write(folder.path().join(FILE), &torn).unwrap();
            let mut read = Ledger::load(&dir).unwrap();
            assert!([3, 5].contains(&read.removals_since(at(-1))), "{cut}");
        }
        std::fs::write(folder.path().join(FILE), vec![b'x'; 2 * HALF]).unwrap();
        assert!(Ledger::load(&dir).is_err());
    }

    #[test]
    fn many_removals_fit_and_none_is_forgotten_early() {
        let folder = tempfile::tempdir().unwrap();
        let dir = File::open(folder.path()).unwrap();
        let mut ledger = Ledger { going: Some("2026-01-01T00-00-00Z".into()), ..Ledger::default() };
        for n in 0..1000 {
            ledger.add_removals(at(n), 1);
        }
        ledger.save(&dir).unwrap();
        let mut read = Ledger::load(&dir).unwrap();
        assert_eq!(read.removals_since(at(-1)), 1000);
        assert!(read.removals_since(at(500)) >= 499);
        assert_eq!(read.removals_since(at(999)), 0);
    }

    #[test]
    fn what_was_written_before_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let dir = File::open(folder.path()).unwrap();
        let text = format!("{{\"believed_at\":\"{}\",\"for_clients\":[\"{}\",\"{}\"]}}", at(5), at(1), at(2));
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let mut ledger = Ledger::load(&dir).unwrap();
        assert_eq!((ledger.believed_at, ledger.removals_since(at(0))), (Some(at(5)), 2));
        prepare(&dir);
        let mut again = Ledger::load(&dir).unwrap();
        assert_eq!((again.believed_at, again.removals_since(at(0))), (Some(at(5)), 2));
        assert_eq!(std::fs::metadata(folder.path().join(FILE)).unwrap().len(), 2 * HALF as u64);
    }
}
