//! `[notify]` and `[metrics]`: who is told how runs ended, and where figures about them are written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::units::Span;
use crate::retention::Length;

/// `[notify]`: what is told; the tables below it say by which ways.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Tell also of runs that succeeded with warnings. Default false.
    pub warnings: Option<bool>,
    /// Tell when what had failed is well again. Default true.
    pub recovery: Option<bool>,
    /// Tell again after so long what is still wrong; `0d`: never. Default 7 days.
    #[serde(serialize_with = "seconds")]
    pub remind: Option<Length>,
    /// How long each way may take. Default 30 seconds.
    #[serde(serialize_with = "span_seconds")]
    pub timeout: Option<Span>,
    /// What is too old.
    #[serde(default)]
    pub ages: Ages,
    /// URLs that are asked for at each run.
    pub ping: Option<Ping>,
    /// Mail.
    pub mail: Option<Mail>,
    /// A topic of ntfy.
    pub ntfy: Option<Ntfy>,
    /// Nextcloud's own notifications.
    pub nextcloud: Option<ToUsers>,
    /// A program of the administrator's.
    pub command: Option<Command>,
    /// Every service that apprise knows.
    pub apprise: Option<Apprise>,
}

/// `[notify.ages]`: how old each of these may become; `0d`: as old as it likes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ages {
    /// The newest sealed snapshot. Default 36 hours.
    #[serde(serialize_with = "seconds")]
    pub snapshot: Option<Length>,
    /// The last successful push to S3. Default 3 days, where there is an off-site copy.
    #[serde(serialize_with = "seconds")]
    pub offsite: Option<Length>,
    /// The last verification. Default 16 days, once there was one.
    #[serde(serialize_with = "seconds")]
    pub verify: Option<Length>,
    /// The last rehearsal. Default 16 days, once there was one.
    #[serde(serialize_with = "seconds")]
    pub drill: Option<Length>,
}

/// `[notify.ping]`: for each kind of run a file with the URL that is asked for when one begins (`/start`), has
/// succeeded, or has failed (`/fail`).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// For backups.
    pub backup: Option<PathBuf>,
    /// For pushes to S3.
    pub push: Option<PathBuf>,
    /// For verifications.
    pub verify: Option<PathBuf>,
    /// For rehearsals.
    pub drill: Option<PathBuf>,
    /// For prunes.
    pub prune: Option<PathBuf>,
    /// For the watch over ages.
    pub watch: Option<PathBuf>,
}

/// `[notify.mail]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// Addresses, or local accounts.
    pub to: Vec<String>,
    /// The sender. Default: what sendmail takes.
    pub from: Option<String>,
    /// argv of sendmail. Default `/usr/sbin/sendmail`.
    #[serde(default)]
    pub sendmail: Vec<String>,
}

/// `[notify.ntfy]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ntfy {
    /// File with the topic's URL.
    pub url_file: PathBuf,
    /// File with an access token.
    pub token_file: Option<PathBuf>,
}

/// `[notify.nextcloud]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ToUsers {
    /// The users who see it.
    pub users: Vec<String>,
}

/// `[notify.command]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program, absolute, and its arguments.
    pub argv: Vec<String>,
    /// The account that it runs as.
    pub user: String,
}

/// `[notify.apprise]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Apprise {
    /// apprise's configuration file, with the URLs of the services.
    pub config_file: PathBuf,
    /// argv of apprise. Default `apprise`.
    #[serde(default)]
    pub program: Vec<String>,
}

/// `[metrics]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// The folder that node_exporter reads (`--collector.textfile.directory`).
    pub directory: PathBuf,
}

/// A key, its value, and what would be right.
pub(super) type Wrong = (&'static str, String, &'static str);

impl Notify {
    /// The first value that cannot be meant.
    pub(super) fn wrong(&self) -> Option<Wrong> {
        let ping = self.ping.iter().flat_map(|p| {
            [
                ("notify.ping.backup", p.backup.as_deref()),
                ("notify.ping.push", p.push.as_deref()),
                ("notify.ping.verify", p.verify.as_deref()),
                ("notify.ping.drill", p.drill.as_deref()),
                ("notify.ping.prune", p.prune.as_deref()),
                ("notify.ping.watch", p.watch.as_deref()),
            ]
        });
        let ntfy = self.ntfy.iter().flat_map(|n| {
            [
                ("notify.ntfy.url_file", Some(n.url_file.as_path())),
                ("notify.ntfy.token_file", n.token_file.as_deref()),
            ]
        });
        let apprise =
            self.apprise.iter().map(|a| ("notify.apprise.config_file", Some(a.config_file.as_path())));
        let files = ping.chain(ntfy).chain(apprise).filter_map(|(key, path)| Some((key, path?)));
        files.filter_map(|(key, path)| relative(key, path)).next().or_else(|| {
            let limits = Duration::from_secs(1)..=Duration::from_secs(300);
            if let Some(Span(timeout)) = self.timeout
                && !limits.contains(&timeout)
            {
                return Some(("notify.timeout", format!("{timeout:?}"), "this must be between 1s and 5m"));
            }
            self.mail.as_ref().and_then(Mail::wrong).or_else(|| self.others_wrong())
        })
    }

    fn others_wrong(&self) -> Option<Wrong> {
        if let Some(ToUsers { users }) = &self.nextcloud {
            let right = "this must be names of Nextcloud's users, at least one";
            let odd = |user: &&String| user.is_empty() || user.chars().any(char::is_control);
            if users.is_empty() || users.iter().any(|user| odd(&user)) {
                return Some(("notify.nextcloud.users", users.join(", "), right));
            }
        }
        let Command { argv, user } = self.command.as_ref()?;
        let program = argv.first().map_or("", String::as_str);
        if !program.starts_with('/') {
            let right = "the first word must be the absolute path of a program";
            return Some(("notify.command.argv", program.to_owned(), right));
        }
        if !is_account(user) {
            return Some(("notify.command.user", user.clone(), "this must be the name of an account here"));
        }
        None
    }

    /// Whether it has any way of telling, or at least says what is too old.
    pub(super) fn is_for_something(&self) -> bool {
        self.ages != Ages::default()
            || self.ping.is_some()
            || self.mail.is_some()
            || self.ntfy.is_some()
            || self.nextcloud.is_some()
            || self.command.is_some()
            || self.apprise.is_some()
    }
}

impl Mail {
    /// Addresses go into a mail's head, and to a program's argv.
    fn wrong(&self) -> Option<Wrong> {
        let right = "this must be an address like admin@example.org, or a local account";
        let odd = |a: &str| {
            a.is_empty()
                || a.starts_with('-')
                || a.len() > 254
                || a.chars().any(|c| c.is_whitespace() || c.is_control() || "<>,;:\"()[]\\|".contains(c))
        };
        if self.to.is_empty() {
            return Some(("notify.mail.to", String::new(), right));
        }
        let to = self.to.iter().map(|a| ("notify.mail.to", a));
        let from = self.from.iter().map(|a| ("notify.mail.from", a));
        to.chain(from).find(|(_, a)| odd(a)).map(|(key, a)| (key, a.clone(), right))
    }
}

impl Metrics {
    /// The first value that cannot be meant.
    pub(super) fn wrong(&self) -> Option<Wrong> {
        relative("metrics.directory", &self.directory)
    }
}

fn relative(key: &'static str, path: &Path) -> Option<Wrong> {
    let right = "this must be an absolute path, starting with /";
    let odd = !path.is_absolute() || path.to_string_lossy().contains(['\n', '\r', '\0']);
    odd.then(|| (key, path.to_string_lossy().into_owned(), right))
}

fn is_account(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    !name.is_empty() && !name.starts_with('-') && name.len() <= 64 && name.chars().all(ok)
}

/// In seconds; a day has 24 hours here, a month 30 days.
#[expect(clippy::ref_option, reason = "serde's shape")]
fn seconds<S: Serializer>(length: &Option<Length>, serializer: S) -> Result<S::Ok, S::Error> {
    let of = |Length(span): &Length| {
        let days = i64::from(span.get_years()) * 365
            + i64::from(span.get_months()) * 30
            + i64::from(span.get_weeks()) * 7
            + i64::from(span.get_days());
        days * 86_400 + i64::from(span.get_hours()) * 3600
    };
    length.as_ref().map(of).serialize(serializer)
}

#[expect(clippy::ref_option, reason = "serde's shape")]
fn span_seconds<S: Serializer>(span: &Option<Span>, serializer: S) -> Result<S::Ok, S::Error> {
    span.map(|Span(time)| time.as_secs()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::profile::parse;

    const WAYS: &str = "[notify.mail]\nto = [\"root\"]\n";

    fn fails(text: &str) -> String {
        parse(text, Path::new("/etc/nc-backup/home.toml")).unwrap_err().to_string()
    }

    #[test]
    fn wrong_values_name_key_value_and_what_would_be_right() {
        for (text, key, value) in [
            ("[notify.ping]\nbackup = \"url\"", "notify.ping.backup", "url"),
            ("[notify.ntfy]\nurl_file = \"https://ntfy.sh/x\"", "notify.ntfy.url_file", "https://ntfy.sh/x"),
            ("[notify.ntfy]\nurl_file = \"/u\"\ntoken_file = \"t\"", "notify.ntfy.token_file", "t"),
            ("[notify.apprise]\nconfig_file = \"c\"", "notify.apprise.config_file", "c"),
            ("[notify.mail]\nto = []", "notify.mail.to", ""),
            ("[notify.mail]\nto = [\"a@b\", \"-oQ/tmp\"]", "notify.mail.to", "-oQ/tmp"),
            ("[notify.mail]\nto = [\"a@b\\nBcc: x@y\"]", "notify.mail.to", "Bcc"),
            ("[notify.mail]\nto = [\"a@b\"]\nfrom = \"a b\"", "notify.mail.from", "a b"),
            ("[nextcloud]\nroot = \"/n\"\n[notify.nextcloud]\nusers = [\"\"]", "notify.nextcloud.users", ""),
            ("[notify.nextcloud]\nusers = [\"admin\"]", "notify.nextcloud.users", "admin"),
            ("[notify.command]\nargv = [\"notify\"]\nuser = \"a\"", "notify.command.argv", "notify"),
            ("[notify.command]\nargv = []\nuser = \"a\"", "notify.command.argv", ""),
            ("[notify.command]\nargv = [\"/x\"]\nuser = \"-u 0\"", "notify.command.user", "-u 0"),
            ("[notify]\ntimeout = \"10m\"\n[notify.mail]\nto = [\"root\"]", "notify.timeout", "600s"),
            ("[notify]\nwarnings = true", "notify", "warnings"),
            ("[metrics]\ndirectory = \"node\"", "metrics.directory", "node"),
        ] {
            let message = fails(text);
            assert!(message.starts_with("/etc/nc-backup/home.toml"), "{message}");
            assert!(message.contains(key) && message.contains(value), "{text}: {message}");
        }
        assert!(fails("[notify.ages]\nsnapshot = \"soon\"").contains("'soon'"));
        assert!(fails("[notify.mial]\nto = [\"a\"]").contains("unknown field `mial`"));
    }

    #[test]
    fn what_is_told_to_scripts_is_in_seconds() {
        let text =
            format!("[notify]\nremind = \"1w\"\ntimeout = \"1m\"\n{WAYS}[notify.ages]\nsnapshot = \"36h\"\n");
        let notify = parse(&text, Path::new("p")).unwrap().notify.unwrap();
        let json = serde_json::to_value(&notify).unwrap();
        assert_eq!(json["remind"], 7 * 86_400);
        assert_eq!(json["timeout"], 60);
        assert_eq!(json["ages"]["snapshot"], 36 * 3600);
        assert_eq!(json["ages"]["drill"], serde_json::Value::Null);
    }
}
