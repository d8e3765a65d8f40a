//! What was given on the command line, as the rest of the program takes it.

use common::retention::Retention;

use super::{Percent, Profile, RuleOptions, Run, Settle};
use crate::session::Allow;
use crate::settings::Options;

impl Profile {
    /// How it was named, for a command that is suggested.
    pub fn words(&self) -> String {
        match (&self.profile, &self.config) {
            (_, Some(file)) => format!("--config {}", file.display()),
            (Some(name), None) => name.clone(),
            (None, None) => "PROFILE".to_owned(),
        }
    }

    /// As options without sources.
    pub fn options(&self) -> Options {
        Options {
            profile: self.profile.clone(),
            config: self.config.clone(),
            store: self.store.clone(),
            state_dir: self.state_dir.clone(),
            runtime_dir: self.runtime_dir.clone(),
            identity: self.identity.clone(),
            port: self.port,
            known_hosts: self.known_hosts.clone(),
            remote_program: self.remote_program.clone(),
            ..Options::default()
        }
    }
}

impl Run {
    /// As options.
    pub fn options(&self) -> Options {
        Options {
            source: self.source.clone(),
            exclude: self.exclude.clone(),
            no_default_excludes: self.no_default_excludes,
            no_checksum: self.no_checksum,
            max: self.max,
            ..self.profile.options()
        }
    }

    /// What is allowed this once.
    pub fn allow(&self) -> Allow {
        Allow {
            shrink: self.allow_shrink,
            new_filesystem: self.allow_new_filesystem,
            new_store: self.new_store,
            crash_consistent: self.crash_consistent,
            max_time: None,
        }
    }

    /// The profile's name, for the status object.
    pub fn name(&self) -> Option<&str> {
        self.profile.profile.as_deref()
    }
}

impl Settle {
    /// What is allowed this once.
    pub fn allow(&self) -> Allow {
        Allow { max_time: self.max_time.map(|t| t.0), ..self.run.allow() }
    }
}

impl RuleOptions {
    /// As the profile has them.
    pub fn retention(&self) -> Retention {
        Retention {
            keep_last: self.keep_last,
            keep_hourly: self.keep_hourly,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
            keep_within: self.keep_within,
            min_age: self.min_age,
            max_gap: self.max_gap,
            max_removals_per_day: self.max_removals_per_day,
            timezone: self.timezone.clone(),
        }
    }
}

impl std::str::FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Percent, String> {
        let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
        let percent = number.ok().filter(|n| *n > 0.0 && *n <= 100.0);
        percent.map(Percent).ok_or_else(|| "write a share like 5%, more than 0 and at most 100".into())
    }
}
