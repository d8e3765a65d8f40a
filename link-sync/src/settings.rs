//! What a run works with: the profile, and the options that win over it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::places;
use common::profile::{self, Profile, Span, Ssh, check_name};

use crate::source::{HTML, Source};

/// Options that have a place in the profile too.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Name in `/etc/nc-backup`.
    pub profile: Option<String>,
    /// A profile elsewhere.
    pub config: Option<PathBuf>,
    /// `NAME` or `NAME=PATH`.
    pub source: Vec<String>,
    /// Local path or `user@host:path`.
    pub store: Option<String>,
    /// More patterns for all chosen sources.
    pub exclude: Vec<String>,
    /// Without Nextcloud's.
    pub no_default_excludes: bool,
    /// Compare by size and time where the index cannot be used.
    pub no_checksum: bool,
    /// Where state lives.
    pub state_dir: Option<PathBuf>,
    /// Where sockets live.
    pub runtime_dir: Option<PathBuf>,
    /// ssh key.
    pub identity: Option<PathBuf>,
    /// ssh port.
    pub port: Option<u16>,
    /// ssh known hosts.
    pub known_hosts: Option<PathBuf>,
    /// link-sync at the far end.
    pub remote_program: Option<String>,
    /// Longest wait for the next step.
    pub max: Option<Span>,
}

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Local(PathBuf),
    /// `user@host:path`.
    Ssh {
        /// `user@host`
        host: String,
        /// Path there.
        path: String,
    },
}

/// Everything a run needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The profile.
    pub profile: Profile,
    /// Folder for what outlives a reboot.
    pub state: PathBuf,
    /// Folder for sockets.
    pub runtime: PathBuf,
    /// All sources of the snapshot.
    pub sources: Vec<Source>,
    /// Names chosen with `--source`; all if empty.
    pub chosen: Vec<String>,
    /// The store.
    pub store: Place,
    /// How it is reached.
    pub ssh: Ssh,
    /// Compare contents where the index cannot be used.
    pub checksum: bool,
    /// argv of rsync.
    pub rsync: Vec<String>,
    /// Longest wait for the next step.
    pub max: Duration,
}

impl Options {
    /// The profile these options name.
    pub fn load_profile(&self) -> Result<Profile> {
        let mut profile = Profile::load(self.profile.as_deref(), self.config.as_deref())?;
        profile.state_dir = self.state_dir.clone().or(profile.state_dir);
        profile.runtime_dir = self.runtime_dir.clone().or(profile.runtime_dir);
        Ok(profile)
    }

    /// Merges profile and options.
    pub fn settings(&self) -> Result<Settings> {
        let profile = self.load_profile()?;
        let state = places::state(&profile)?;
        let (sources, chosen) = self.sources(&profile, &state)?;
        let store = self.store.clone().or_else(|| profile.snapshot.store.clone());
        let local = || profile.store.as_ref().map(|s| Place::Local(s.path.clone()));
        let store = match store {
            Some(text) => parse_place(&text)?,
            None => local().ok_or_else(|| {
                Fault::config("no store is named").hint("set store in [snapshot], or give --store")
            })?,
        };
        let snapshot = &profile.snapshot;
        let mut ssh = snapshot.ssh.clone();
        ssh.port = self.port.or(ssh.port);
        // ssh runs in another folder than the one relative paths are meant from.
        let absolute =
            |p: &PathBuf| std::path::absolute(p).with_context(|| format!("cannot resolve {}", p.display()));
        ssh.identity = self.identity.as_ref().map(absolute).transpose()?.or(ssh.identity);
        if self.identity.is_some() {
            ssh.restore_identity = None;
        }
        ssh.known_hosts = self.known_hosts.as_ref().map(absolute).transpose()?.or(ssh.known_hosts);
        ssh.remote_program = self.remote_program.clone().or(ssh.remote_program);
        let day = Span(Duration::from_secs(24 * 3600));
        Ok(Settings {
            runtime: places::runtime(&profile)?,
            state,
            sources,
            chosen,
            store,
            ssh,
            checksum: !self.no_checksum && snapshot.checksum.unwrap_or(true),
            rsync: rsync_argv(&snapshot.rsync),
            max: self.max.or(snapshot.max).unwrap_or(day).0,
            profile,
        })
    }

    fn sources(&self, profile: &Profile, state: &Path) -> Result<(Vec<Source>, Vec<String>)> {
        let mut sources = Vec::new();
        for source in &profile.snapshot.source {
            sources.push(self.source(source, profile, state)?);
        }
        let mut chosen = Vec::new();
        for given in &self.source {
            let (name, path) = given.split_once('=').map_or((given.as_str(), None), |(n, p)| (n, Some(p)));
            check_name(name).map_err(Fault::usage)?;
            let at = sources.iter().position(|s| s.name == name);
            match (path, at) {
                (Some(path), at) => {
                    let path = std::path::absolute(path).with_context(|| format!("--source {given}"))?;
                    let raw = profile::Source {
                        name: name.to_owned(),
                        path: Some(path),
                        exclude: Vec::new(),
                        default_excludes: None,
                        must_contain: None,
                    };
                    let source = self.source(&raw, profile, state)?;
                    match at {
                        Some(at) => sources[at].path = source.path,
                        None => sources.push(source),
                    }
                }
                (None, None) => {
                    let known: Vec<_> = sources.iter().map(|s| s.name.as_str()).collect();
                    return Err(Fault::config(format!("there is no source '{name}' in the profile"))
                        .hint(format!("known: {}; or give --source {name}=/path", known.join(", ")))
                        .into());
                }
                (None, Some(_)) => {}
            }
            chosen.push(name.to_owned());
        }
        Ok((sources, chosen))
    }

    fn source(&self, raw: &profile::Source, profile: &Profile, state: &Path) -> Result<Source> {
        let dumps = || profile.database.dumps.clone().unwrap_or_else(|| state.join("dumps"));
        let path = raw.path.clone().unwrap_or_else(dumps);
        let mut exclude = raw.exclude.clone();
        if raw.default_excludes.unwrap_or(true) && !self.no_default_excludes {
            exclude.extend(Source::default_excludes(&raw.name));
        }
        exclude.extend(self.exclude.iter().cloned());
        let must_contain = match &raw.must_contain {
            Some(paths) => paths.iter().map(|p| vec![p.clone()]).collect(),
            None => Source::default_must_contain(&raw.name),
        };
        // Compiled once here, so that a bad pattern is told before anything is touched.
        drop(common::exclude::Excludes::new(&exclude, Vec::new())?);
        Ok(Source { name: raw.name.clone(), path, exclude, must_contain })
    }
}

impl Settings {
    /// Where the instance is.
    pub fn html(&self) -> Option<&Path> {
        self.sources.iter().find(|s| s.name == HTML).map(|s| &*s.path)
    }

    /// The sources to be taken now: those chosen, else all. At least one.
    pub fn wanted(&self) -> Result<Vec<Source>> {
        if let Some(name) = self.chosen.iter().find(|c| !self.sources.iter().any(|s| s.name == **c)) {
            return Err(Fault::config(format!("the snapshot under way has no source '{name}'"))
                .hint("name all sources in the profile, or in the first stage")
                .into());
        }
        let wanted = |s: &&Source| self.chosen.is_empty() || self.chosen.contains(&s.name);
        let list: Vec<_> = self.sources.iter().filter(wanted).cloned().collect();
        if list.is_empty() {
            return Err(Fault::config("no source is named")
                .hint("add [[snapshot.source]] to the profile, or give --source NAME=/path")
                .into());
        }
        Ok(list)
    }
}

/// The configured argv, or plain rsync.
pub fn rsync_argv(configured: &[String]) -> Vec<String> {
    if configured.is_empty() { vec!["rsync".to_owned()] } else { configured.to_vec() }
}

/// `/path` or `user@host:path`.
pub fn parse_place(text: &str) -> Result<Place> {
    let wrong = |why: &str| {
        Err(Fault::config(format!("store = \"{text}\": {why}"))
            .hint("write /path for a local store, user@host:/path for one reached with ssh")
            .into())
    };
    if text.starts_with('/') {
        return Ok(Place::Local(PathBuf::from(text)));
    }
    let Some((host, path)) = text.split_once(':') else {
        return wrong("this is neither an absolute path nor user@host:path");
    };
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if host.is_empty() || host.starts_with('-') || host.chars().any(odd) {
        return wrong("the host's name is not one");
    }
    if !path.starts_with('/') {
        return wrong("the path on the other machine must start with /");
    }
    Ok(Place::Ssh { host: host.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(parse_place("/srv/b").unwrap(), Place::Local("/srv/b".into()));
        let ssh = parse_place("backup@s2:/srv/b").unwrap();
        assert_eq!(ssh, Place::Ssh { host: "backup@s2".into(), path: "/srv/b".into() });
        for bad in ["srv/b", "-oProxyCommand=x:/b", ":/b", "host:b", "a b:/c"] {
            assert!(parse_place(bad).is_err(), "{bad}");
        }
    }
}
