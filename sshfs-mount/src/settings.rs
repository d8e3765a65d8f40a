//! What a run works with: the profile, and the options that win over it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use common::fault::Fault;
use common::profile::{Bytes, Profile, Sshfs};
use common::{offsite, places};
use nix::unistd::geteuid;

use crate::options::Options;

/// Below this many bytes a second, ssh itself gives up.
const SLOWEST: u64 = 4096;

/// Which mount.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// Profile: /etc/nc-backup/PROFILE.toml.
    pub(crate) profile: Option<String>,
    /// Another file as the profile.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The machine: user@host.
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// The folder there, an absolute path.
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<String>,
    /// Port of its sshd. Default 22.
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Private key, mode 0600.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// File with the machine's host key. Default: root's.
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,
    /// Where it is mounted. Default: 's3' in the runtime folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) mount_point: Option<PathBuf>,
    /// One more option for sshfs or ssh, see below; repeatable.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) options: Vec<String>,
    /// Command line of sshfs, words separated by blanks.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) program: Option<String>,
    /// Send at most so many bytes a second, like 500k or 1.5m.
    #[arg(long, value_name = "RATE")]
    pub(crate) bwlimit: Option<Bytes>,
    /// Instead of /var/lib/nc-backup/PROFILE.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Instead of /run/nc-backup/PROFILE.
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
}

/// Everything a run needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The profile.
    profile: Profile,
    /// `[offsite.sshfs]`, with what the options put over it.
    pub(crate) sshfs: Sshfs,
    /// Its `options`, checked.
    pub(crate) options: Options,
    /// Folder for what belongs to the running system.
    pub(crate) runtime: PathBuf,
    /// Where it is mounted, as the mount table names it.
    pub(crate) mount_point: PathBuf,
}

impl Settings {
    /// Loads, merges and checks.
    pub(crate) fn new(place: Place) -> Result<Settings> {
        if !geteuid().is_root() {
            return Err(Fault::denied("mounting with sshfs needs root: root cannot read another account's")
                .hint("run it as root")
                .into());
        }
        let mut profile = Profile::load(place.profile.as_deref(), place.config.as_deref())?;
        profile.state_dir = absolute(place.state_dir)?.or(profile.state_dir);
        profile.runtime_dir = absolute(place.runtime_dir)?.or(profile.runtime_dir);
        if let (Some(host), Some(directory), None) = (&place.host, &place.directory, &profile.offsite.sshfs) {
            profile.offsite.sshfs = Some(nothing_but(host, directory));
        }
        let mut sshfs = offsite::sshfs(&profile)?.clone();
        sshfs.host = place.host.unwrap_or(sshfs.host);
        sshfs.directory = place.directory.unwrap_or(sshfs.directory);
        sshfs.port = place.port.or(sshfs.port);
        sshfs.identity = absolute(place.identity)?.or(sshfs.identity);
        sshfs.known_hosts = absolute(place.known_hosts)?.or(sshfs.known_hosts);
        sshfs.mount_point = absolute(place.mount_point)?.or(sshfs.mount_point);
        sshfs.options.extend(place.options);
        let program = place.program.map(|p| p.split_whitespace().map(str::to_owned).collect());
        sshfs.program = program.unwrap_or(sshfs.program);
        sshfs.bwlimit = place.bwlimit.or(sshfs.bwlimit);
        let options = Options::parse(&sshfs.options)?;
        check(&sshfs, &options)?;
        profile.offsite.sshfs = Some(sshfs.clone());
        // All paths are absolute by now, and the folder we were started in may be the one to be unmounted.
        std::env::set_current_dir("/").context("cannot change to /")?;
        Ok(Settings {
            runtime: places::runtime(&profile)?,
            mount_point: resolve(&offsite::sshfs_mount_point(&profile)?)?,
            profile,
            sshfs,
            options,
        })
    }

    /// What is mounted, as the mount table writes it.
    pub(crate) fn source(&self) -> String {
        format!("{}:{}", self.sshfs.host, self.sshfs.directory)
    }

    /// The machine without the account.
    pub(crate) fn machine(&self) -> &str {
        self.sshfs.host.rsplit_once('@').map_or(self.sshfs.host.as_str(), |(_, host)| host)
    }

    /// The upload limit, in bytes a second.
    pub(crate) fn bwlimit(&self) -> Option<u64> {
        self.sshfs.bwlimit.map(|b| b.0)
    }

    /// Whether bytes go through our relay, which counts them.
    pub(crate) fn counted(&self) -> bool {
        self.options.get("ProxyJump").is_none()
    }

    /// A command line for a person, for the same mount.
    pub(crate) fn command(&self, tool: &str, action: &str) -> String {
        let file = self.profile.file.as_deref();
        match file {
            Some(f) if f.parent() == Some(Path::new(common::profile::DIR)) => {
                format!("{tool} {action} {}", self.profile.name)
            }
            Some(f) => format!("{tool} {action} --config {}", f.display()),
            None => format!("{tool} {action} with the options of this run"),
        }
    }
}

fn absolute(path: Option<PathBuf>) -> Result<Option<PathBuf>> {
    // sshfs runs in another folder than the one relative paths are meant from.
    let resolve =
        |p: PathBuf| std::path::absolute(&p).with_context(|| format!("cannot resolve {}", p.display()));
    path.map(resolve).transpose()
}

fn nothing_but(host: &str, directory: &str) -> Sshfs {
    Sshfs {
        host: host.to_owned(),
        directory: directory.to_owned(),
        port: None,
        identity: None,
        known_hosts: None,
        mount_point: None,
        options: Vec::new(),
        program: Vec::new(),
        bwlimit: None,
    }
}

/// Symlinks above the last name are resolved. The last name is not touched: what is mounted there may be hung.
fn resolve(path: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::config(format!("{} cannot be a mount point", path.display())).into());
    };
    let parent = parent.canonicalize().map_err(|e| {
        Fault::config(format!("the folder of the mount point {} cannot be used: {e}", path.display()))
            .hint(format!("mkdir -p {}", parent.display()))
    })?;
    Ok(parent.join(name))
}

fn check(sshfs: &Sshfs, options: &Options) -> Result<()> {
    let wrong = |key: &str, value: &str, right: &str| {
        Err(Fault::config(format!("offsite.sshfs.{key} = \"{value}\": {right}")).into())
    };
    let (user, host) = sshfs.host.rsplit_once('@').unwrap_or(("root", &sshfs.host));
    let plain = |text: &str, more: &str| {
        let ok = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
        !text.is_empty() && !text.starts_with('-') && text.chars().all(ok)
    };
    if !plain(user, "-._@+") || !plain(host, "-._") {
        return wrong("host", &sshfs.host, "this must be user@host");
    }
    if !sshfs.directory.starts_with('/') || sshfs.directory.chars().any(char::is_control) {
        return wrong("directory", &sshfs.directory, "this must be an absolute path on that machine");
    }
    for (key, path) in [("identity", &sshfs.identity), ("known_hosts", &sshfs.known_hosts)] {
        let Some(path) = path else { continue };
        let text = path.to_string_lossy();
        if path.to_str().is_none() || text.contains(|c: char| c.is_control() || "\"\\$".contains(c)) {
            return wrong(key, &text, "ssh cannot be given a path with quotes, backslashes or '$'");
        }
    }
    if let Some(Bytes(rate)) = sshfs.bwlimit {
        let rate_text = rate.to_string();
        if options.get("ProxyJump").is_some() {
            return wrong("bwlimit", &rate_text, "this cannot be kept together with ProxyJump");
        }
        if options.number("max_conns", 1) > 1 {
            return wrong("bwlimit", &rate_text, "this cannot be kept together with max_conns");
        }
        if rate < SLOWEST {
            return wrong("bwlimit", &rate_text, "this must be 4096 bytes a second or more");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_a_shell_or_ssh_would_misread_are_refused() {
        let check = |host: &str| check(&nothing_but(host, "/d"), &Options::default()).is_ok();
        for good in ["backup@s3", "s3.example.org", "u.v-w@10.0.0.1"] {
            assert!(check(good), "{good}");
        }
        for bad in ["", "-oProxyCommand=x", "a@-x", "a@b c", "a@b'c", "a@$(id)", "a@b:c", "@b", "a@"] {
            assert!(!check(bad), "{bad}");
        }
    }

    #[test]
    fn a_limit_that_cannot_be_kept_is_refused() {
        let mut sshfs = nothing_but("a@b", "/d");
        sshfs.bwlimit = Some(Bytes(100_000));
        let with = |options: &[&str]| {
            Options::parse(&options.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        check(&sshfs, &with(&["max_conns=1"])).unwrap();
        check(&sshfs, &with(&["max_conns=2"])).unwrap_err();
        check(&sshfs, &with(&["ProxyJump=j"])).unwrap_err();
        sshfs.bwlimit = Some(Bytes(4095));
        check(&sshfs, &with(&[])).unwrap_err();
    }
}
