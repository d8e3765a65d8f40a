//! `nc-maint close`: a copy of an instance that has not been put in place yet shall not open by itself.
//!
//! A configuration that was saved under the drop-in says `maintenance => false`. So the restore writes the opposite into
//! it, before anybody is served: as a last statement, which wins over all before it, whatever the file looks like.
//! Nothing of the file is executed. Nextcloud itself tidies it away when it switches maintenance off.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::Report;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, UnlinkatFlags, unlinkat};

use crate::dropin;

/// The statement.
const CLOSED: &str = "$CONFIG['maintenance'] = true;";
/// What it is called until it is whole.
const DRAFT: &str = ".zz-nc-backup-closed.new";
/// More bytes than a configuration has.
const LONGEST: u64 = 4 << 20;

/// Closes the instance in `root`.
pub(crate) fn close(root: &Path, report: &mut Report) -> Result<()> {
    let shown = root.join("config/config.php");
    let what = || format!("cannot close {}", shown.display());
    let folder = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let missing = |e: Errno| {
        Fault::config(format!("{} cannot be opened: {e}", shown.display()))
            .hint("name the folder that holds occ and config/; its config must be no link")
    };
    let dir = open(root, folder, Mode::empty()).map_err(missing)?;
    let dir = openat(&dir, "config", folder, Mode::empty()).map_err(missing)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(&dir, "config.php", flags, Mode::empty()).map_err(missing)?);
    let meta = file.metadata().with_context(what)?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(Fault::config(format!("{} is no configuration file", shown.display())).into());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).with_context(what)?;
    report.set_text("file", shown.as_os_str());
    // One that the snapshot's instance was held in maintenance with, if it was taken along.
    for name in [dropin::NAME, dropin::DRAFT] {
        match unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => report.changed = true,
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot remove {name}")),
        }
    }
    let Some(closed) = closed(&text) else {
        return Err(Fault::config(format!("{} does not set $CONFIG", shown.display()))
            .hint("is this Nextcloud's configuration?")
            .into());
    };
    if closed == text {
        return Ok(());
    }
    // A draft that was left is ours: nobody else makes files of this name.
    match unlinkat(&dir, DRAFT, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(e).with_context(what),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut draft =
        File::from(openat(&dir, DRAFT, flags, Mode::from_bits_truncate(0o600)).with_context(what)?);
    draft.write_all(&closed).with_context(what)?;
    fchown(&draft, Some(meta.uid()), Some(meta.gid())).with_context(|| {
        format!(
            "{}: cannot give it to user id {}, group id {}",
            shown.display(),
            Uid::from_raw(meta.uid()),
            Gid::from_raw(meta.gid())
        )
    })?;
    fchmod(&draft, Mode::from_bits_truncate(meta.mode() & 0o7777)).with_context(what)?;
    draft.sync_all().with_context(what)?;
    renameat(&dir, DRAFT, &dir, "config.php").with_context(what)?;
    File::from(dir).sync_all().with_context(what)?;
    report.changed = true;
    Ok(())
}

/// `text` with the statement at its end; `None` if it is no configuration.
fn closed(text: &[u8]) -> Option<Vec<u8>> {
    let set = b"$CONFIG";
    text.windows(set.len()).find(|w| w == set)?;
    let text_end = text.trim_ascii_end();
    if text_end.ends_with(CLOSED.as_bytes()) {
        return Some(text.to_vec());
    }
    let body = text_end.strip_suffix(b"?>").unwrap_or(text_end);
    let mut out = body.trim_ascii_end().to_vec();
    // A comment at the end must not swallow it.
    out.push(b'\n');
    out.extend_from_slice(CLOSED.as_bytes());
    out.push(b'\n');
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_comes_last_and_once() {
        let text = b"<?php\n$CONFIG = array (\n  'maintenance' => false,\n);\n// end ?>\n";
        let once = closed(text).unwrap();
        assert!(
            once.ends_with(b"// end\n$CONFIG['maintenance'] = true;\n"),
            "{}",
            String::from_utf8_lossy(&once)
        );
        assert_eq!(closed(&once).unwrap(), once);
        assert_eq!(closed(b"<html>"), None);
    }

    #[test]
    fn owner_and_mode_stay_and_links_are_not_followed() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let file = config.join("config.php");
        std::fs::write(&file, "<?php $CONFIG = [];").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::fs::write(config.join(dropin::NAME), "<?php").unwrap();
        let mut report = Report::new("nc-maint");
        close(dir.path(), &mut report).unwrap();
        assert!(report.changed && !config.join(dropin::NAME).exists());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        let mut again = Report::new("nc-maint");
        close(dir.path(), &mut again).unwrap();
        assert!(!again.changed);

        let victim = dir.path().join("victim");
        std::fs::rename(&file, &victim).unwrap();
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        assert!(close(dir.path(), &mut Report::new("nc-maint")).is_err());
    }
}
