//! The key file: looked at before anything is opened with it. Its content never passes through here.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Result;
use common::fault::Fault;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// What cryptsetup reads of a key file at most.
const MOST: u64 = 8 << 20;

/// An error unless `path` is a regular file, root's alone, and not empty.
pub(crate) fn check(path: &Path) -> Result<()> {
    let name = path.display();
    let config = |what: &str| Fault::config(format!("the key file {name} {what}"));
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = match open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {
            let make = format!("a new container's key: (umask 077; head -c 64 /dev/urandom >{name})");
            return Err(config("does not exist").hint(make).into());
        }
        Err(nix::errno::Errno::ELOOP) => return Err(config("is a symbolic link").into()),
        Err(e) => return Err(config(&format!("cannot be opened: {e}")).into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(config("is not a regular file").into());
    }
    if meta.uid() != 0 {
        let what = format!("the key file {name} belongs to user id {}, not to root", meta.uid());
        return Err(Fault::denied(what).hint(format!("chown root:root {name} && chmod 600 {name}")).into());
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o7777;
        let what = format!("the key file {name} has mode {mode:04o}: others than root can read or change it");
        let hint = format!("chmod 600 {name}; if others were on this machine, think of a new key");
        return Err(Fault::denied(what).hint(hint).into());
    }
    if meta.len() == 0 {
        return Err(config("is empty").into());
    }
    if meta.len() > MOST {
        return Err(config("is larger than 8 MiB, more than cryptsetup reads").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::fault::{Kind, kind_of};
    use std::os::unix::fs::PermissionsExt as _;

    fn kind(path: &Path) -> Kind {
        kind_of(&check(path).unwrap_err())
    }

    #[test]
    fn only_a_private_file_of_root_with_something_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert_eq!(kind(&path), Kind::Config);
        std::fs::write(&path, "secret").unwrap();
        let mode = |m| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(m)).unwrap();
        mode(0o600);
        check(&path).unwrap();
        mode(0o400);
        check(&path).unwrap();
        for open in [0o640, 0o604, 0o610, 0o644] {
            mode(open);
            assert_eq!(kind(&path), Kind::Denied, "{open:o}");
        }
        mode(0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(kind(&link), Kind::Config);
        assert_eq!(kind(dir.path()), Kind::Config);
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert_eq!(kind(&path), Kind::Denied);
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        std::fs::write(&path, "").unwrap();
        assert_eq!(kind(&path), Kind::Config);
    }
}
