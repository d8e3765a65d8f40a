//! One instance and how to reach it: the profile with the command line's options over it.
//!
//! Everything the guardian needs is in here, and it travels to it as it is: the guardian reads no
//! profile, so that editing one during a run changes nothing about how the run ends.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::account::Account;
use common::fault::Fault;
use common::places;
use common::profile::{Method, Profile, Span};
use common::status::Report;
use serde::{Deserialize, Serialize};

use crate::cli::Options;
use crate::instance;
use crate::method::{self, Choice, Php};

/// What is known before anything is asked. Paths are `OsString`s as they may be any bytes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Settings {
    /// The profile's name.
    pub(crate) name: String,
    root: Option<OsString>,
    /// argv of occ.
    pub(crate) occ: Vec<OsString>,
    /// Who occ runs as, where we change that.
    pub(crate) occ_account: Option<Account>,
    /// Longest time for one occ call.
    pub(crate) occ_timeout: Duration,
    /// The PHP behind it.
    pub(crate) php: Option<Php>,
    /// How the switch is thrown.
    pub(crate) choice: Choice,
    /// Base URL.
    pub(crate) url: Option<String>,
    /// Longest time until clients must have seen the switch.
    pub(crate) url_timeout: Duration,
    /// Longest time for a run.
    pub(crate) max: Duration,
    /// How long a run's drop-in lasts when nobody is left to renew it.
    pub(crate) lease: Duration,
    /// The folders that are backed up, as far as the profile says.
    sources: Vec<OsString>,
    state: OsString,
    runtime: OsString,
    /// The words that name this instance on a command line, for advice.
    pub(crate) words: String,
}

impl Settings {
    /// Puts `options` over `profile`, and looks at what is there.
    pub(crate) fn new(profile: &Profile, options: &Options) -> Result<Settings> {
        let mut profile = profile.clone();
        for (given, place) in
            [(&options.state_dir, &mut profile.state_dir), (&options.runtime_dir, &mut profile.runtime_dir)]
        {
            if let Some(dir) = given {
                *place = Some(absolute(dir)?);
            }
        }
        let root = match &options.root {
            Some(root) => Some(absolute(root)?),
            None if !options.occ.is_empty() && profile.nextcloud.is_none() => None,
            None => Some(profile.nextcloud()?.root.clone()),
        };
        let table = profile.nextcloud.as_ref();
        let configured = table.map(|t| t.occ.iter().map(OsString::from).collect()).unwrap_or_default();
        let mut occ = if options.occ.is_empty() { configured } else { options.occ.clone() };
        let mut occ_account = None;
        if let (Some(root), true) = (&root, occ.is_empty()) {
            occ_account = instance::account(root)?;
            occ = vec!["php".into(), root.join("occ").into_os_string()];
        } else if let Some(folder) = instance::runs_here(&occ) {
            let folder = folder.or_else(|| root.clone()).ok_or_else(|| {
                Fault::config(format!("occ {occ:?} names no path to occ: whose it is cannot be told"))
                    .hint("give the path of occ in it, or --root")
            })?;
            occ_account = instance::account(&folder)?;
        }
        let php = Php::behind(&occ);
        let wanted = options.method.or_else(|| table?.method);
        let choice = method::choose(wanted, root.as_deref(), php.as_ref());
        let url = options.url.clone().or_else(|| table?.url.clone());
        if let Some(url) = &url
            && !url.starts_with("http://")
            && !url.starts_with("https://")
        {
            return Err(
                Fault::config(format!("--url {url}: this must start with http:// or https://")).into()
            );
        }
        let span = |option: Option<Span>, set: Option<Span>, default: u64| {
            option.or(set).map_or(Duration::from_secs(default), |s| s.0)
        };
        Ok(Settings {
            words: words(&profile, options, root.as_deref()),
            occ,
            occ_account,
            php,
            choice,
            occ_timeout: span(options.occ_timeout, table.and_then(|t| t.occ_timeout), 60),
            url,
            url_timeout: span(options.url_timeout, table.and_then(|t| t.url_timeout), 30),
            max: span(None, table.and_then(|t| t.max), 30 * 60),
            lease: lease(span(options.lease, table.and_then(|t| t.lease), 60))?,
            sources: profile.snapshot.source.iter().filter_map(|s| s.path.clone().map(Into::into)).collect(),
            state: places::state(&profile)?.into_os_string(),
            runtime: places::runtime(&profile)?.into_os_string(),
            name: profile.name,
            root: root.map(PathBuf::into_os_string),
        })
    }

    /// The same with another `max`, if one is given; it must make sense for a run.
    pub(crate) fn with_max(mut self, max: Option<Span>) -> Result<Settings> {
        self.max = max.map_or(self.max, |m| m.0);
        if (Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600)).contains(&self.max) {
            return Ok(self);
        }
        Err(Fault::config(format!("max is {:?}: it must be between 1 second and 7 days", self.max)).into())
    }

    /// The same for a plain `on`, and when that ends by itself. Only the drop-in can, and nobody who
    /// did not ask for an end gets one by default.
    pub(crate) fn lasting(self, max: Option<Span>) -> Result<(Settings, bool)> {
        let mut settings = self;
        match (settings.choice.method, max) {
            (Method::DropIn, None) if settings.choice.automatic => {
                settings.choice.method = Method::Occ;
                settings.choice.reason =
                    "`on` without --max stays on until `off`: a drop-in ends by itself".into();
                Ok((settings, false))
            }
            (Method::DropIn, max) => Ok((settings.with_max(max)?, true)),
            (Method::Occ, None) => Ok((settings, false)),
            (Method::Occ, Some(_)) => Err(Fault::config(format!(
                "`on --max` needs the method drop-in, as nobody would be there to end it; occ is used: {}",
                settings.choice.reason
            ))
            .hint("use `on` without --max and then `off`, or `run --max TIME -- CMD`")
            .into()),
        }
    }

    /// Says in the report how the switch is thrown, and why so.
    pub(crate) fn tell_method(&self, report: &mut Report) {
        report.set("method", self.choice.method.word());
        report.set("method_reason", self.choice.reason.as_str());
    }

    /// Nextcloud's folder.
    pub(crate) fn root(&self) -> Result<&Path> {
        self.root.as_deref().map(Path::new).ok_or_else(|| {
            Fault::config("Nextcloud's folder is not known").hint("give --root, or a profile").into()
        })
    }

    /// The folders that are backed up, as far as the profile says.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(Path::new)
    }

    /// The state folder.
    pub(crate) fn state_dir(&self) -> &Path {
        Path::new(&self.state)
    }

    /// A file in the state folder.
    pub(crate) fn state_file(&self, name: &str) -> PathBuf {
        Path::new(&self.state).join(name)
    }

    /// A file in the runtime folder.
    pub(crate) fn runtime_file(&self, name: &str) -> PathBuf {
        Path::new(&self.runtime).join(name)
    }
}

fn lease(time: Duration) -> Result<Duration> {
    if (Duration::from_secs(3)..=Duration::from_secs(600)).contains(&time) {
        return Ok(time);
    }
    Err(Fault::config(format!("lease is {time:?}: it must be between 3 seconds and 10 minutes"))
        .hint("60s is the default: how long Nextcloud stays closed if everything is killed at once")
        .into())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}

/// `home`, or `--config FILE`, or the options that stand for a profile.
fn words(profile: &Profile, options: &Options, root: Option<&Path>) -> String {
    let mut words = Vec::new();
    match (&options.profile, &options.config) {
        (Some(name), None) => words.push(name.clone()),
        (_, Some(file)) => words.push(format!("--config {}", file.display())),
        (None, None) => words.extend(root.map(|r| format!("--root {}", r.display()))),
    }
    words.extend(options.occ.iter().map(|a| format!("--occ {}", a.display())));
    if options.state_dir.is_some() {
        words.extend(profile.state_dir.iter().map(|d| format!("--state-dir {}", d.display())));
    }
    words.join(" ")
}
