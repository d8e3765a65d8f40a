//! config.php, written by us: where occ cannot, or must not be run.
//!
//! Nextcloud refuses to write a configuration that says `config_is_read_only`, and occ needs a database. So what must be
//! said is put at the end of the file, as statements that win over all before them, whatever the file looks like. Nothing
//! of it is executed. The file is replaced as a whole, with its owner, group, mode and access list, and what we put there is
//! taken out again when it is not needed any more: then it is as it was. No link is followed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, UnlinkatFlags, unlinkat};

use crate::dropin::copy_access_list;

/// What it is called until it is whole: left out of snapshots, as drafts of the drop-in are.
const DRAFT: &str = ".zz-nc-backup-maintenance-config.new";
/// More bytes than a configuration has.
const LONGEST: u64 = 4 << 20;
/// How long Nextcloud may take to write the file, meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is set here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Maintenance,
    DataFingerprint,
}

impl Key {
    fn begins(self) -> &'static [u8] {
        match self {
            Key::Maintenance => b"$CONFIG['maintenance'] = ",
            Key::DataFingerprint => b"$CONFIG['data-fingerprint'] = ",
        }
    }
}

/// The file of one instance, and its folder, held open.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    dir: OwnedFd,
    path: PathBuf,
}

impl ConfigFile {
    /// `ROOT/config/config.php`; neither it nor `config` may be a link.
    pub(crate) fn open(root: &Path) -> Result<ConfigFile> {
        let path = root.join("config/config.php");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = open(root, flags, Mode::empty()).map_err(|e| missing(&path, e))?;
        let dir = openat(&dir, "config", flags, Mode::empty()).map_err(|e| missing(&path, e))?;
        Ok(ConfigFile { dir, path })
    }

    /// For messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `config`.
    pub(crate) fn folder(&self) -> &OwnedFd {
        &self.dir
    }

    /// Lets `key` be `value` (PHP) from now on; with `None`, takes out what was set here before. Whether that changed
    /// anything; durable on return.
    pub(crate) fn set(&self, key: Key, value: Option<&str>) -> Result<bool> {
        let what = || format!("cannot write {}", self.path.display());
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let opened = openat(&self.dir, "config.php", flags, Mode::empty());
        let mut file = File::from(opened.map_err(|e| missing(&self.path, e))?);
        let meta = file.metadata().with_context(what)?;
        if !meta.is_file() || meta.len() > LONGEST {
            return Err(Fault::config(format!("{} is no configuration file", self.path.display())).into());
        }
        self.turn(&file)?;
        let mut text = Vec::new();
        (&mut file).take(LONGEST).read_to_end(&mut text).with_context(what)?;
        let Some(changed) = with(&text, key, value) else {
            return Err(Fault::config(format!("{} does not set $CONFIG", self.path.display()))
                .hint("is this Nextcloud's configuration?")
                .into());
        };
        if changed == text {
            return Ok(false);
        }
        // A draft that was left is ours: nobody else makes files of this name.
        match unlinkat(&self.dir, DRAFT, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e).with_context(what),
        }
        let written = self.replace(&changed, &file, &meta).with_context(what);
        if written.is_err() {
            unlinkat(&self.dir, DRAFT, UnlinkatFlags::NoRemoveDir).ok();
        }
        written.map(|()| true)
    }

    fn replace(&self, text: &[u8], model: &File, meta: &std::fs::Metadata) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut draft = File::from(openat(&self.dir, DRAFT, flags, Mode::from_bits_truncate(0o600))?);
        draft.write_all(text)?;
        fchown(&draft, Some(meta.uid()), Some(meta.gid())).with_context(|| {
            let (user, group) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
            format!("cannot give it to user id {user}, group id {group}")
        })?;
        fchmod(&draft, Mode::from_bits_truncate(meta.mode() & 0o7777))?;
        copy_access_list(model, &draft)?;
        draft.sync_all()?;
        renameat(&self.dir, DRAFT, &self.dir, "config.php")?;
        nix::unistd::fsync(&self.dir)?;
        Ok(())
    }

    /// Nextcloud writes it in place under a lock: half of it must not be taken for all.
    fn turn(&self, file: &File) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => {
                    let busy =
                        Fault::busy(format!("{} is locked by another program: {e}", self.path.display()));
                    return Err(busy.into());
                }
            }
        }
    }
}

fn missing(path: &Path, e: Errno) -> anyhow::Error {
    Fault::config(format!("{} cannot be opened: {e}", path.display()))
        .hint("name the folder that holds occ and config/; its config must be no link")
        .into()
}

/// `text` with the statement at its end; `None` if it is no configuration.
fn with(text: &[u8], key: Key, value: Option<&str>) -> Option<Vec<u8>> {
    let set = b"$CONFIG";
    text.windows(set.len()).find(|w| w == set)?;
    // What we put there: whole lines at the end.
    let mut body = text.trim_ascii_end();
    let mut ours: Vec<&[u8]> = Vec::new();
    while let Some(at) = body.iter().rposition(|b| *b == b'\n')
        && [Key::Maintenance, Key::DataFingerprint].iter().any(|k| body[at + 1..].starts_with(k.begins()))
    {
        ours.insert(0, &body[at + 1..]);
        body = body[..at].trim_ascii_end();
    }
    let known = ours.len();
    let wanted = value.map(|value| [key.begins(), value.as_bytes(), b";"].concat());
    if wanted.as_deref().is_some_and(|w| ours.contains(&w)) {
        return Some(text.to_vec());
    }
    ours.retain(|line| !line.starts_with(key.begins()));
    if wanted.is_none() && ours.len() == known {
        return Some(text.to_vec());
    }
    let body = body.strip_suffix(b"?>").unwrap_or(body).trim_ascii_end();
    let mut out = body.to_vec();
    // A comment at the end must not swallow what follows.
    out.push(b'\n');
    for line in ours.into_iter().chain(wanted.as_deref()) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_comes_last_and_once_and_goes_without_a_trace() {
        let text = b"<?php\n$CONFIG = array (\n  'maintenance' => false,\n);\n// end\n";
        let once = with(text, Key::Maintenance, Some("true")).unwrap();
        assert!(
            once.ends_with(b"// end\n$CONFIG['maintenance'] = true;\n"),
            "{}",
            String::from_utf8_lossy(&once)
        );
        assert_eq!(with(&once, Key::Maintenance, Some("true")).unwrap(), once);
        let both = with(&once, Key::DataFingerprint, Some("'a'")).unwrap();
        let other = with(&both, Key::DataFingerprint, Some("'b'")).unwrap();
        assert!(other.ends_with(b"$CONFIG['maintenance'] = true;\n$CONFIG['data-fingerprint'] = 'b';\n"));
        let open = with(&other, Key::Maintenance, None).unwrap();
        assert!(open.ends_with(b"// end\n$CONFIG['data-fingerprint'] = 'b';\n"));
        assert_eq!(with(&once, Key::Maintenance, None).unwrap(), text);
        assert_eq!(with(text, Key::Maintenance, None).unwrap(), text, "nothing of ours: not a byte");
        assert_eq!(with(b"<html>", Key::Maintenance, Some("true")), None);
        let php = with(b"<?php $CONFIG = [];\n// x ?>\n", Key::Maintenance, Some("true")).unwrap();
        assert!(php.ends_with(b"// x\n$CONFIG['maintenance'] = true;\n"));
    }
}
