//! What a store without root cannot vouch for is not restored unasked.
//! Owners, modes and attributes lie there in what its account can write (rsync's fake-super), and the far end itself
//! runs as that account: it could make a shell of root's, a disk's device, or a program with capabilities appear on
//! this machine. So those do not arrive unless somebody says that they should; the rest does, in a folder that nobody
//! but root can enter until this has been looked at.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::names::show;
use crate::settings::{Place, Settings};
use crate::store::{open_file_at, visit};

/// So many paths are named.
const NAMED: usize = 100;

/// What did not come as the store has it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Tamed {
    /// Paths.
    pub total: u64,
    /// The first of them, escaped for people, with what they lack.
    pub first: Vec<String>,
}

impl Tamed {
    fn add(&mut self, path: &[u8], what: &str) {
        self.total += 1;
        if self.first.len() < NAMED {
            self.first.push(format!("{}: {what}", show(path)));
        }
    }
}

/// Whether nobody but root (or we ourselves) could have written what is in the store.
/// `fake_super`: the snapshot keeps owners in an attribute, so an account wrote it.
pub fn trusted(settings: &Settings, fake_super: bool) -> bool {
    if mutant::active("restore-believes-any-store") {
        return true;
    }
    match &settings.store {
        Place::Ssh { host, .. } => host.starts_with("root@"),
        Place::Local(path) => {
            let owner = std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::uid(&m));
            let ours = [0, nix::unistd::geteuid().as_raw()];
            owner.is_ok_and(|uid| ours.contains(&uid)) && !fake_super
        }
    }
}

/// Takes set-id bits of files, devices, and attributes that only the system may set, from all that is below `new`.
pub fn tame(new: &File) -> Result<Tamed> {
    let mut tamed = Tamed::default();
    visit::each(new, |found| {
        let context = || format!("cannot look at {}", show(&found.path()));
        let stat = fstatat(found.parent, found.name, AtFlags::AT_SYMLINK_NOFOLLOW).with_context(context)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFCHR | libc::S_IFBLK => {
                unlinkat(found.parent, found.name, UnlinkatFlags::NoRemoveDir).with_context(context)?;
                tamed.add(&found.path(), "a device");
                return Ok(());
            }
            libc::S_IFREG if stat.st_mode & 0o6000 != 0 => {
                let file = open_file_at(found.parent, found.name.as_bytes()).with_context(context)?;
                fchmod(&file, Mode::from_bits_truncate(stat.st_mode & 0o1777)).with_context(context)?;
                tamed.add(&found.path(), &format!("mode {:04o}", stat.st_mode & 0o7777));
            }
            libc::S_IFREG | libc::S_IFDIR => {}
            _ => return Ok(()),
        }
        // The folder is ours alone, so the name still is what it was.
        let path = format!("/proc/self/fd/{}", found.parent.as_raw_fd());
        let path = Path::new(&path).join(found.name);
        let names = match xattr::list(&path) {
            Ok(names) => names,
            Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(()),
            Err(e) => return Err(e).with_context(context),
        };
        for name in names.filter(|name| of_the_system(name.as_bytes())) {
            xattr::remove(&path, &name).with_context(context)?;
            tamed.add(&found.path(), &name.to_string_lossy());
        }
        Ok(())
    })?;
    Ok(tamed)
}

/// Capabilities, labels, and what overlayfs obeys. This machine's own label is given by the kernel, and stays.
fn of_the_system(name: &[u8]) -> bool {
    (name.starts_with(b"security.") || name.starts_with(b"trusted.")) && name != b"security.selinux"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn set_id_bits_of_files_go_and_those_of_folders_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str, mode| {
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        for name in ["folder/shell", "plain"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        mode("folder", 0o2750);
        mode("folder/shell", 0o6755);
        mode("plain", 0o644);
        let tamed = tame(&File::open(dir.path()).unwrap()).unwrap();
        assert_eq!(tamed.first, ["folder/shell: mode 6755"]);
        let now = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!((now("folder"), now("folder/shell"), now("plain")), (0o2750, 0o755, 0o644));
    }
}
