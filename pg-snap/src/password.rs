//! The password: read from a file, handed to libpq as a password file that has no name.
//!
//! It is never an argument or a variable of any process. The password file lives in memory, is
//! inherited as a descriptor, and is gone when the last process that holds it ends, however it ends.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::run::Cmd;
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::geteuid;

/// A password; cannot be printed by mistake.
#[derive(Clone)]
pub(crate) struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Password {
    /// A password as Nextcloud holds it.
    pub(crate) fn new(text: String) -> Result<Password> {
        if text.contains(['\n', '\r', '\0']) {
            return Err(Fault::config("the database password holds a line break, which libpq cannot read")
                .hint("give the role another password: ALTER ROLE … PASSWORD …")
                .into());
        }
        Ok(Password(text))
    }

    /// For a statement that gives it to a role.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Reads `file`, which only its owner may read: root or this account.
    pub(crate) fn read(path: &Path) -> Result<Password> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let what = || format!("cannot read the password file {}", path.display());
        let fd = open(path, flags, Mode::empty()).map_err(|e| match e {
            nix::errno::Errno::EACCES => Fault::denied(format!("{}: permission denied", what())),
            e => Fault::config(format!("{}: {e}", what())),
        })?;
        let mut file = File::from(fd);
        let meta = file.metadata().with_context(what)?;
        let owner_ok = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
        if !meta.is_file() || !owner_ok || meta.mode() & 0o077 != 0 {
            return Err(Fault::denied(format!(
                "the password file {} must be a file of root or user id {} that nobody else can read; \
                 it belongs to user id {} and has mode {:04o}",
                path.display(),
                geteuid(),
                meta.uid(),
                meta.mode() & 0o7777
            ))
            .hint(format!("chmod 0600 {}", path.display()))
            .into());
        }
        let mut text = String::new();
        file.read_to_string(&mut text)
            .map_err(|e| Fault::config(format!("{} as UTF-8 text: {e}", what())))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(Fault::config(format!("the password file {} is empty", path.display())).into());
        }
        Password::new(text.to_owned())
    }
}

/// libpq's password file, in memory.
#[derive(Clone, Debug)]
pub(crate) struct Passfile {
    file: Option<Arc<File>>,
}

impl Passfile {
    /// For `password`; without one, libpq looks where it always does (`~/.pgpass`, peer, trust).
    pub(crate) fn new(password: Option<&Password>) -> Result<Passfile> {
        let Some(Password(password)) = password else { return Ok(Passfile { file: None }) };
        let fd = memfd_create(c"pgpass", MFdFlags::MFD_CLOEXEC).context("cannot make a memory file")?;
        // libpq ignores a password file that others could read.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).context("cannot make the password file private")?;
        let mut file = File::from(fd);
        file.write_all(line(password).as_bytes()).context("cannot write the password file")?;
        Ok(Passfile { file: Some(Arc::new(file)) })
    }

    /// `cmd`, with the password file at hand.
    pub(crate) fn lend(&self, cmd: Cmd) -> Cmd {
        match &self.file {
            Some(file) => {
                let fd = file.as_raw_fd();
                cmd.env("PGPASSFILE", format!("/proc/self/fd/{fd}")).inherit(fd)
            }
            None => cmd,
        }
    }
}

/// The one line of the password file: any server, database and role.
fn line(password: &str) -> String {
    format!("*:*:*:*:{}\n", password.replace('\\', "\\\\").replace(':', "\\:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_and_backslashes_are_escaped() {
        assert_eq!(line(r"a:b\c"), "*:*:*:*:a\\:b\\\\c\n");
    }

    #[test]
    fn a_line_break_is_refused() {
        assert!(Password::new("a\nb".into()).is_err());
    }

    #[test]
    fn it_is_not_printed() {
        assert_eq!(format!("{:?}", Password::new("secret".into()).unwrap()), "***");
    }
}
