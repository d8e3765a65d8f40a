//! Nextcloud's folder, opened without following a link in it, and the account that its PHP may run as.
//!
//! occ wants to run as config.php's owner, and whoever owns what PHP reads decides what it does. So the owner of one file
//! is not enough: a web user who puts a link to a file of root's there, or a file that root once made, must not get his
//! own occ run as root. PHP runs as an account only if config.php is its own, and `config/`, Nextcloud's folder and occ are
//! its own or root's. As root it runs only what nobody else can write: config.php, the code, the apps, and all folders above.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use common::account::Account;
use common::fault::Fault;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, geteuid};

/// Programs that start another one as the same account.
const WRAPPERS: [&str; 8] = ["env", "nice", "ionice", "chrt", "timeout", "stdbuf", "nohup", "setsid"];

/// Nextcloud's folder. Links above it are followed, as root wrote its name; none is from then on.
pub(crate) fn open_root(root: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let real = std::fs::canonicalize(root).map_err(|e| missing(root, root, e))?;
    let mut fd = open("/", flags, Mode::empty()).context("cannot open /")?;
    for part in real.components() {
        if let Component::Normal(name) = part {
            fd = openat(&fd, name, flags, Mode::empty()).map_err(|e| missing(root, &real, e.into()))?;
        }
    }
    Ok(fd)
}

/// The account that PHP runs as in `root`; `None` if that is who we are. An error if it may not run.
pub(crate) fn account(root: &Path) -> Result<Option<Account>> {
    let real = std::fs::canonicalize(root).map_err(|e| missing(root, root, e))?;
    let (config, occ) = (real.join("config"), real.join("occ"));
    let file = config.join("config.php");
    let meta = look(root, &file)?;
    if occ.symlink_metadata().is_err() {
        return Err(Fault::unavailable(format!("there is no {}", occ.display()))
            .hint("give the command that runs occ with --occ, or `occ = [\"docker\", …]` in the profile")
            .into());
    }
    let account = match common::mutant::active("owner-fits-all") {
        true => Account::of_files(&[&file])?,
        false => Account::of_files(&[&file, &config, &real, &occ])?,
    };
    if !meta.is_file() && !meta.is_symlink() {
        return Err(Fault::config(format!("{} is not a file", file.display())).into());
    }
    match account.uid().is_root() {
        true => only_roots_code(&real)?,
        false => planted(&look(root, &config)?, &meta, &account, &file)?,
    }
    let us = geteuid();
    if !us.is_root() && us != account.uid() && !common::mutant::active("php-as-another-user") {
        return Err(Fault::denied(format!(
            "{} belongs to {}: PHP runs what is in it, and that must not be as somebody else (user id {us})",
            file.display(),
            account.name
        ))
        .hint("run this as root, or as that user")
        .into());
    }
    Ok(us.is_root().then_some(account))
}

fn look(root: &Path, path: &Path) -> Result<Metadata> {
    path.symlink_metadata().map_err(|e| missing(root, path, e))
}

/// What occ loads as root is root's, and nobody else can write it: what lies in `root` and in the folders there. (`data` holds
/// no code; the folders above have been looked at.)
fn only_roots_code(root: &Path) -> Result<()> {
    for top in names(root)?.into_iter().filter(|path| path.file_name() != Some(OsStr::new("data"))) {
        if only_roots(&top)?.is_dir() {
            only_roots_entries(&top)?;
        }
    }
    Ok(())
}

/// The same for a folder of apps, wherever it is: all above it, itself and what is in it.
pub(crate) fn only_roots_apps(folder: &Path) -> Result<()> {
    let real = std::fs::canonicalize(folder).with_context(|| format!("cannot find {}", folder.display()))?;
    if !Account::of_files(&[&real])?.uid().is_root() {
        only_roots(&real)?;
    }
    only_roots_entries(&real)
}

fn only_roots_entries(folder: &Path) -> Result<()> {
    names(folder)?.iter().try_for_each(|entry| only_roots(entry).map(drop))
}

fn only_roots(path: &Path) -> Result<Metadata> {
    let meta = path.symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    let why = match (meta.uid(), meta.mode() & 0o022) {
        _ if meta.is_symlink() => "is a symbolic link".to_owned(),
        (0, 0) => return Ok(meta),
        (0, _) => format!("can be written by others (mode {:04o})", meta.mode() & 0o7777),
        (uid, _) => format!("belongs to user id {uid}"),
    };
    if common::mutant::active("root-runs-only-roots") {
        return Ok(meta);
    }
    Err(Fault::denied(format!(
        "config.php is root's, so PHP would run as root, but {} {why}: nothing is run as root for that",
        path.display()
    ))
    .hint(
        "give config.php to the web user (chown www-data), or let nobody but root write the code and config/",
    )
    .into())
}

fn names(folder: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("cannot list {}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(what)? {
        paths.push(entry.with_context(what)?.path());
    }
    Ok(paths)
}

/// The names in a folder that is open for reading.
pub(crate) fn list(dir: &OwnedFd) -> std::io::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// A `config/` of root's that others can write holds what they put there: a file of a third account, moved or linked
/// there, does not make PHP run as that account.
fn planted(config: &Metadata, file: &Metadata, owner: &Account, path: &Path) -> Result<()> {
    let mode = config.mode();
    if config.uid() != 0 || mode & 0o022 == 0 {
        return Ok(());
    }
    let member = mode & 0o002 == 0 && owner.groups().contains(&Gid::from_raw(config.gid()));
    if (member && file.nlink() == 1) || common::mutant::active("planted-config") {
        return Ok(());
    }
    Err(Fault::denied(format!(
        "the folder of {} is root's and can be written by others (mode {:04o}): any of them could have put that file there, \
         which belongs to {}",
        path.display(),
        mode & 0o7777,
        owner.name
    ))
    .hint(format!("chown {} the folder, or take the right to write from others (chmod go-w)", owner.name))
    .into())
}

fn missing(root: &Path, path: &Path, e: std::io::Error) -> anyhow::Error {
    if e.kind() == std::io::ErrorKind::PermissionDenied {
        return Fault::denied(format!("cannot look at {}", path.display()))
            .hint("run this as root or as the web user")
            .into();
    }
    if e.raw_os_error() == Some(Errno::ENOTDIR as i32) {
        return Fault::config(format!("{} is not a folder itself", path.display())).into();
    }
    Fault::config(format!("there is no Nextcloud in {}: cannot find {}: {e}", root.display(), path.display()))
        .hint("root is the folder that holds occ and config/; with a container, give occ's argv too")
        .into()
}

/// Whether this is a PHP by its name.
pub(crate) fn is_php(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|n| n.as_bytes().starts_with(b"php"))
}

/// Where occ lies, if `argv` runs it on this machine as the account that we are: then that must be the right one.
/// sudo, runuser, docker and the like decide for themselves. `None`: they do; `Some(None)`: it cannot be told.
pub(crate) fn runs_here(argv: &[OsString]) -> Option<Option<PathBuf>> {
    let program = Path::new(argv.first()?).file_name()?;
    let direct = is_php(program)
        || program == "occ"
        || program == "console.php"
        || WRAPPERS.iter().any(|w| program == *w);
    if !direct {
        return None;
    }
    let script = argv
        .iter()
        .rev()
        .map(Path::new)
        .find(|word| word.file_name().is_some_and(|name| name == "occ" || name == "console.php"));
    // Children start in /.
    Some(script.map(|s| Path::new("/").join(s.parent().unwrap_or(Path::new("")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_runs_occ_directly_is_told_from_what_changes_the_account() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let dir = |text: &str| runs_here(&words(text));
        assert_eq!(dir("php /nc/occ"), Some(Some("/nc".into())));
        assert_eq!(dir("/usr/bin/php8.2 -d memory_limit=1G /nc/occ"), Some(Some("/nc".into())));
        assert_eq!(dir("env A=b php /nc/occ"), Some(Some("/nc".into())));
        assert_eq!(dir("/nc/occ"), Some(Some("/nc".into())));
        assert_eq!(dir("php occ"), Some(Some("/".into())));
        assert_eq!(dir("php -r x"), Some(None));
        for other in ["sudo -u www-data php /nc/occ", "docker exec nc php occ", "/snap/bin/nextcloud.occ"] {
            assert_eq!(dir(other), None, "{other}");
        }
    }
}
