//! The profile: `/etc/nc-backup/PROFILE.toml`, one file for all tools.
//!
//! Every tool validates the whole file and uses what concerns it. A file that root reads must be
//! root's, as must its directory, and writable by nobody else: what is judged is the opened file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use serde::{Deserialize, Deserializer, Serialize};

use crate::fault::Fault;
use crate::retention::Retention;

/// Where profiles are.
pub const DIR: &str = "/etc/nc-backup";

/// A whole profile; tables that are absent have their defaults.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The profile's name; not in the file.
    #[serde(skip)]
    pub name: String,
    /// The file it came from; not in the file.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Instead of `/var/lib/nc-backup/PROFILE`.
    pub state_dir: Option<PathBuf>,
    /// Instead of `/run/nc-backup/PROFILE`.
    pub runtime_dir: Option<PathBuf>,
    /// The instance.
    pub nextcloud: Option<Nextcloud>,
    /// Its database.
    #[serde(default)]
    pub database: Database,
    /// What is taken, and where it goes.
    #[serde(default)]
    pub snapshot: Snapshot,
    /// On S2: the store.
    pub store: Option<Store>,
    /// The off-site copy, on S2.
    #[serde(default)]
    pub offsite: Offsite,
    /// The rehearsal: where a scratch database may be made.
    #[serde(default)]
    pub drill: Drill,
}

/// `[nextcloud]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nextcloud {
    /// The folder that holds `occ` and `config/`, as this machine sees it.
    pub root: PathBuf,
    /// argv of occ, e.g. `["sudo", "-u", "www-data", "php", "/var/www/nextcloud/occ"]`.
    /// Default: `php ROOT/occ`, run as the owner of config.php.
    #[serde(default)]
    pub occ: Vec<String>,
    /// Base URL; if set, the switch is believed only when `status.php` there shows it.
    pub url: Option<String>,
    /// How the switch is thrown. Default: `drop-in` where that is possible, else `occ`.
    pub method: Option<Method>,
    /// Longest time maintenance may last when `run` is not told otherwise. Default 30 minutes.
    pub max: Option<Span>,
    /// How long the drop-in of a run lasts when everything of ours is killed at once. Default 60 seconds.
    pub lease: Option<Span>,
    /// How long clients may need to see the switch. Default 30 seconds.
    pub url_timeout: Option<Span>,
    /// How long one call of occ may take before it is ended. Default 60 seconds.
    pub occ_timeout: Option<Span>,
}

/// How the maintenance switch is thrown.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A file beside config.php that carries its own deadline.
    DropIn,
    /// `occ maintenance:mode`.
    Occ,
}

impl Method {
    /// Its word in profiles, records and reports.
    pub fn word(self) -> &'static str {
        match self {
            Method::DropIn => "drop-in",
            Method::Occ => "occ",
        }
    }
}

/// `[database]`; what is absent is asked from Nextcloud.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// As `dbhost` in config.php: host, host:port, address, /socket/dir, /socket/dir:port, :/socket/dir.
    pub host: Option<String>,
    /// Database name.
    pub name: Option<String>,
    /// Role.
    pub user: Option<String>,
    /// File that holds the password and nothing else.
    pub password_file: Option<PathBuf>,
    /// Where dumps are kept. Default: `dumps` in the state folder.
    pub dumps: Option<PathBuf>,
    /// Dumps to keep there. Default 2.
    pub keep: Option<u32>,
    /// argv of pg_dump, e.g. `["docker", "exec", "-i", "db", "pg_dump"]`.
    #[serde(default)]
    pub pg_dump: Vec<String>,
    /// argv of pg_restore.
    #[serde(default)]
    pub pg_restore: Vec<String>,
    /// argv of psql.
    #[serde(default)]
    pub psql: Vec<String>,
    /// Parallel jobs of pg_dump and pg_restore. Default 2.
    pub jobs: Option<u32>,
    /// Application names or addresses of sessions that only read, and may stay open in maintenance.
    #[serde(default)]
    pub readers: Vec<String>,
    /// Commands that pause background workers, each a list of words.
    #[serde(default)]
    pub pause: Vec<Vec<String>>,
    /// Commands that resume them.
    #[serde(default)]
    pub resume: Vec<Vec<String>>,
    /// How long to wait for cron, workers and long uploads before the switch. Default 5 minutes.
    pub wait: Option<Span>,
    /// How long running requests may take to end in maintenance. Default 30 seconds.
    pub drain_timeout: Option<Span>,
    /// What is waited instead where sessions cannot be told apart. Default 15 seconds.
    pub settle: Option<Span>,
}

/// `[drill]`: the server of the scratch database, which may be another one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// As in `[database]`. Default: that one.
    pub host: Option<String>,
    /// A role that may make databases. Default: `user` of `[database]`.
    pub user: Option<String>,
    /// File that holds its password and nothing else.
    pub password_file: Option<PathBuf>,
    /// The database to connect to for making others. Default `postgres`.
    pub admin_database: Option<String>,
}

/// `[snapshot]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// A local path or `user@host:path`.
    pub store: Option<String>,
    /// Compare contents where the index cannot be used. Default true.
    pub checksum: Option<bool>,
    /// How long a started snapshot may wait for its next step. Default 24 hours.
    pub max: Option<Span>,
    /// argv of rsync. Default `rsync`.
    #[serde(default)]
    pub rsync: Vec<String>,
    /// How S2 is reached.
    #[serde(default)]
    pub ssh: Ssh,
    /// The sources, in order.
    #[serde(default)]
    pub source: Vec<Source>,
}

/// `[snapshot.ssh]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// argv of ssh. Default `ssh`.
    #[serde(default)]
    pub program: Vec<String>,
    /// Port. Default 22.
    pub port: Option<u16>,
    /// Private key.
    pub identity: Option<PathBuf>,
    /// Private key that S2 lets read and nothing else: what a restore uses. Default: `identity`.
    pub restore_identity: Option<PathBuf>,
    /// Known hosts. Default: the account's.
    pub known_hosts: Option<PathBuf>,
    /// link-sync on S2. Default `/usr/sbin/link-sync`.
    pub remote_program: Option<String>,
}

/// `[[snapshot.source]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its folder in the snapshot: `data`, `html`, `database`, or any other `[a-z0-9][a-z0-9-]*`.
    pub name: String,
    /// The folder on this machine. For `database`, the folder that holds the dumps (default: `[database]` dumps).
    pub path: Option<PathBuf>,
    /// Glob patterns of what is left out, besides the defaults for this name.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Leave out Nextcloud's regenerable folders and logs. Default true.
    pub default_excludes: Option<bool>,
    /// Paths in it without which it is not believed. Default by name: data `.ncdata`, html `config/config.php`.
    pub must_contain: Option<Vec<PathBuf>>,
}

/// `[store]`, on S2.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The folder of the dated snapshots.
    pub path: PathBuf,
    /// A path at or above it that must be a mount point: the disk that has to be there.
    pub mount: Option<PathBuf>,
    /// Room that must stay free, in bytes. Default 1 GiB.
    #[serde(default, deserialize_with = "amount")]
    pub reserve_bytes: Option<u64>,
    /// Bytes that the snapshots of one day may add. Default: half of what is free when it begins, at least 16 GiB.
    #[serde(default, deserialize_with = "amount")]
    pub max_bytes_per_day: Option<u64>,
    /// Files and folders that the snapshots of one day may add. Default: half of the free inodes, at least 1,000,000.
    pub max_inodes_per_day: Option<u64>,
    /// argv of rsync. Default `rsync`.
    #[serde(default)]
    pub rsync: Vec<String>,
    /// Which snapshots are kept.
    #[serde(default)]
    pub retention: Retention,
}

/// `[offsite]`, on S2: the encrypted copy elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offsite {
    /// The store whose newest snapshot is pushed. Default: `[store]` path.
    pub store: Option<PathBuf>,
    /// Room that must stay free in the container, in bytes. Default 64 MiB.
    #[serde(default, deserialize_with = "amount")]
    pub reserve_bytes: Option<u64>,
    /// How S3 is reached. Absent: the container lies on this machine.
    pub sshfs: Option<Sshfs>,
    /// The container.
    pub luks: Option<Luks>,
    /// Which snapshots are kept in the container.
    #[serde(default)]
    pub retention: Retention,
}

/// `[offsite.sshfs]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sshfs {
    /// `user@host` of S3.
    pub host: String,
    /// The folder there.
    pub directory: String,
    /// Port. Default 22.
    pub port: Option<u16>,
    /// Private key.
    pub identity: Option<PathBuf>,
    /// Known hosts. Default: root's.
    pub known_hosts: Option<PathBuf>,
    /// Where it is mounted here. Default: `s3` in the runtime folder.
    pub mount_point: Option<PathBuf>,
    /// More options for sshfs and ssh, of a list that is known to be harmless.
    #[serde(default)]
    pub options: Vec<String>,
    /// argv of sshfs. Default `sshfs`.
    #[serde(default)]
    pub program: Vec<String>,
    /// Upload limit in bytes a second.
    pub bwlimit: Option<Bytes>,
}

/// `[offsite.luks]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Luks {
    /// The container's file; a relative one lies in the folder of S3.
    pub image: PathBuf,
    /// File with the key, mode 0600 or less.
    pub key_file: PathBuf,
    /// S2's own copy of the container's header. Default: `container.header` in the state folder.
    pub header: Option<PathBuf>,
    /// Where the container is mounted. Default: `container` in the runtime folder.
    pub mount_point: Option<PathBuf>,
    /// argv of cryptsetup. Default `cryptsetup`.
    #[serde(default)]
    pub cryptsetup: Vec<String>,
}

/// A number of bytes as people write it: `4096`, `500k`, `1.5m`, `776G`; k, m, g and t are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        Bytes::at_least(1.0, text)
    }
}

impl Bytes {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "checked"
    )]
    fn at_least(least: f64, text: &str) -> Result<Bytes, String> {
        let wrong = || format!("'{text}' is not a number of bytes: write it like 4096, 500k, 1.5m or 776G");
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(wrong()),
        };
        if !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(wrong());
        }
        let number: f64 = digits.parse().map_err(|_| wrong())?;
        let bytes = (number * (1u64 << shift) as f64).round();
        if bytes < least || bytes > i64::MAX as f64 {
            return Err(wrong());
        }
        Ok(Bytes(bytes as u64))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_any(AtLeast(1.0))
    }
}

/// Reads [`Bytes`], of which there are at least so many.
struct AtLeast(f64);

impl serde::de::Visitor<'_> for AtLeast {
    type Value = Bytes;
    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a number of bytes, like 4096 or \"500k\"")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
        Bytes::at_least(self.0, text).map_err(E::custom)
    }
    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Bytes, E> {
        Bytes::at_least(self.0, &number.to_string()).map_err(E::custom)
    }
}

/// Bytes of which there may be none.
fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(AtLeast(0.0)).map(|bytes| Some(bytes.0))
}

/// A length of time as people write it: `90s`, `30m`, `2h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let wrong = || format!("'{text}' is not a length of time: write it like 90s, 30m or 2h");
        let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
        Duration::try_from(span).map(Span).map_err(|_| wrong())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Profile {
    /// Loads `/etc/nc-backup/NAME.toml`, or `config` whatever it is called. Neither: an empty profile
    /// called `manual`, for trying a tool with options alone.
    pub fn load(name: Option<&str>, config: Option<&Path>) -> Result<Profile> {
        let file = match (name, config) {
            (_, Some(file)) => file.to_owned(),
            (Some(name), None) => {
                check_name(name).map_err(Fault::usage)?;
                Path::new(DIR).join(format!("{name}.toml"))
            }
            (None, None) => return Ok(Profile { name: "manual".into(), ..Profile::default() }),
        };
        let stem = || file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.map_or_else(stem, str::to_owned);
        check_name(&name).map_err(Fault::usage)?;
        let mut profile = parse(&read_trusted(&file)?, &file)?;
        profile.name = name;
        profile.file = Some(file);
        Ok(profile)
    }

    /// `[nextcloud]`, or an error that says what to write.
    pub fn nextcloud(&self) -> Result<&Nextcloud> {
        self.nextcloud.as_ref().ok_or_else(|| {
            let file = self.file.as_ref().map_or("the profile".into(), |f| f.display().to_string());
            Fault::config(format!("{file} has no [nextcloud] table"))
                .hint("add [nextcloud] with root = \"/var/www/nextcloud\", or give --root")
                .into()
        })
    }
}

/// Names of profiles and sources: lower-case letters, digits and `-`, at most 32.
pub fn check_name(name: &str) -> Result<(), String> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !name.is_empty() && name.len() <= 32 && name.bytes().all(ok) && !name.starts_with('-') {
        return Ok(());
    }
    Err(format!("'{name}' is not a name: use 1 to 32 of a-z, 0-9 and '-', not starting with '-'"))
}

/// Reads a file whose content this program will obey: it and its directory must belong to root (or
/// to us, when we are not root) and be writable by nobody else.
pub fn read_trusted(path: &Path) -> Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let fd = open(path, flags, Mode::empty()).map_err(|e| {
        let fault = match e {
            nix::errno::Errno::ENOENT => Fault::config(format!("there is no profile {}", path.display()))
                .hint("`scripts/setup` writes one; the name is the file's name without .toml"),
            nix::errno::Errno::EACCES => {
                Fault::denied(format!("{} cannot be read by this account", path.display()))
                    .hint("the profile is root's: put `sudo` before the command; on S2, where the store's account reads it, give it mode 0644")
            }
            e => Fault::config(format!("cannot open {}: {e}", path.display())),
        };
        anyhow::Error::from(fault)
    })?;
    let mut file = File::from(fd);
    let meta = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    if !meta.is_file() {
        return Err(Fault::config(format!("{} is not a regular file", path.display())).into());
    }
    trusted(path, &meta)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir_meta = dir.metadata().with_context(|| format!("cannot look at {}", dir.display()))?;
    trusted(dir, &dir_meta)?;
    let mut text = String::new();
    file.read_to_string(&mut text)
        .map_err(|e| Fault::config(format!("cannot read {} as UTF-8 text: {e}", path.display())))?;
    Ok(text)
}

fn trusted(path: &Path, meta: &std::fs::Metadata) -> Result<()> {
    let owner_ok = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
    if owner_ok && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    let who = if geteuid().is_root() { "root".into() } else { format!("root or user id {}", geteuid()) };
    Err(Fault::denied(format!(
        "{} must belong to {who} and be writable by nobody else; it belongs to user id {} and has mode {:04o}",
        path.display(),
        meta.uid(),
        meta.mode() & 0o7777
    ))
    .hint(format!("chown root:root {0} && chmod go-w {0}", path.display()))
    .into())
}

/// Parses and validates the text of a profile; `file` is for messages.
pub fn parse(text: &str, file: &Path) -> Result<Profile> {
    let profile: Profile = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let at = line.map_or(String::new(), |l| format!(", line {l}"));
        let mut message = e.message().trim().to_owned();
        for number in ["u16", "u32", "u64"] {
            message = message.replace(&format!("expected {number}"), "expected a whole number");
        }
        if let Some(key) = e.span().and_then(|s| text.get(s)).filter(|_| message == "duplicate key") {
            message = format!("`{}` is written a second time", key.trim());
        }
        let mut fault = Fault::config(format!("{}{at}: {message}", file.display()));
        fault.hint = cure(&message);
        fault
    })?;
    let wrong = |key: &str, value: &str, right: &str| {
        Err(Fault::config(format!("{}: {key} = \"{value}\": {right}", file.display())).into())
    };
    let sources = &profile.snapshot.source;
    for (n, source) in sources.iter().enumerate() {
        if let Err(message) = check_name(&source.name) {
            return wrong("snapshot.source.name", &source.name, &message);
        }
        if sources[..n].iter().any(|other| other.name == source.name) {
            return wrong("snapshot.source.name", &source.name, "this name is used twice");
        }
        if source.path.is_none() && source.name != "database" {
            return wrong("snapshot.source.name", &source.name, "this source has no path");
        }
    }
    let store = profile.store.as_ref();
    let (sshfs, luks) = (profile.offsite.sshfs.as_ref(), profile.offsite.luks.as_ref());
    let paths = [
        ("state_dir", profile.state_dir.as_ref()),
        ("runtime_dir", profile.runtime_dir.as_ref()),
        ("nextcloud.root", profile.nextcloud.as_ref().map(|n| &n.root)),
        ("database.dumps", profile.database.dumps.as_ref()),
        ("database.password_file", profile.database.password_file.as_ref()),
        ("snapshot.ssh.identity", profile.snapshot.ssh.identity.as_ref()),
        ("snapshot.ssh.known_hosts", profile.snapshot.ssh.known_hosts.as_ref()),
        ("store.path", store.map(|s| &s.path)),
        ("store.mount", store.and_then(|s| s.mount.as_ref())),
        ("offsite.store", profile.offsite.store.as_ref()),
        ("offsite.sshfs.identity", sshfs.and_then(|s| s.identity.as_ref())),
        ("offsite.sshfs.known_hosts", sshfs.and_then(|s| s.known_hosts.as_ref())),
        ("offsite.sshfs.mount_point", sshfs.and_then(|s| s.mount_point.as_ref())),
        ("offsite.luks.key_file", luks.map(|l| &l.key_file)),
        ("offsite.luks.header", luks.and_then(|l| l.header.as_ref())),
        ("offsite.luks.mount_point", luks.and_then(|l| l.mount_point.as_ref())),
    ];
    let of_sources = sources.iter().map(|s| ("snapshot.source.path", s.path.as_ref()));
    for (key, path) in paths.into_iter().chain(of_sources) {
        if let Some(path) = path.filter(|p| !p.is_absolute()) {
            return wrong(key, &path.to_string_lossy(), "this must be an absolute path, starting with /");
        }
    }
    if let Some(Store { path, mount: Some(mount), .. }) = store
        && !path.starts_with(mount)
    {
        return wrong(
            "store.mount",
            &mount.to_string_lossy(),
            "this must be store.path or a folder above it",
        );
    }
    if let Some(luks) = luks {
        let inside = luks.image.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if luks.image.is_relative() && (!inside || sshfs.is_none()) {
            let right = "this must be a path inside the folder of [offsite.sshfs], or an absolute path";
            return wrong("offsite.luks.image", &luks.image.to_string_lossy(), right);
        }
    }
    if let Some(sshfs) = sshfs {
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == ':';
        if sshfs.host.is_empty() || sshfs.host.starts_with('-') || sshfs.host.chars().any(odd) {
            return wrong("offsite.sshfs.host", &sshfs.host, "this must be user@host");
        }
        if !sshfs.directory.starts_with('/') || sshfs.directory.chars().any(char::is_control) {
            return wrong(
                "offsite.sshfs.directory",
                &sshfs.directory,
                "this must be an absolute path on that machine",
            );
        }
    }
    if let Some(url) = profile.nextcloud.as_ref().and_then(|n| n.url.as_ref())
        && !url.starts_with("http://")
        && !url.starts_with("https://")
    {
        return wrong("nextcloud.url", url, "this must start with http:// or https://");
    }
    Ok(profile)
}

/// What to do about what toml says.
fn cure(message: &str) -> Option<String> {
    match message {
        // The only table that needs one.
        "missing field `path`" => Some(
            "[store] is for the folder of snapshots on this machine, path = \"/…\"; where the store is on another machine, leave out \
             [store] and its retention: they belong into the profile there"
                .into(),
        ),
        _ if message.ends_with("is written a second time") => {
            Some("each key and each [table] once: put the lines of both into the first one".into())
        }
        _ => nearest_key(message),
    }
}

/// "unknown field `stor`, expected one of `store`, `mount`": which was meant?
fn nearest_key(message: &str) -> Option<String> {
    let mut words = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let given = words.next()?;
    let nearest = words.min_by_key(|known| strsim::damerau_levenshtein(given, known))?;
    Some(format!("did you mean '{nearest}'?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn fails(text: &str) -> (String, Option<String>) {
        let error = parse(text, Path::new("/etc/nc-backup/home.toml")).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Config);
        (error.to_string(), error.downcast_ref::<Fault>().and_then(|f| f.hint.clone()))
    }

    #[test]
    fn an_unknown_key_names_file_line_and_the_nearest_known_one() {
        let (message, hint) = fails("[snapshot]\nstoer = \"/b\"\n");
        assert!(message.starts_with("/etc/nc-backup/home.toml, line 2: unknown field `stoer`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean 'store'?"));
    }

    #[test]
    fn what_toml_says_has_its_cure() {
        let (message, hint) = fails("[snapshot]\nstore = \"/b\"\n[store.retention]\nkeep_daily = 3\n");
        assert!(message.contains("missing field `path`"), "{message}");
        assert!(hint.unwrap().contains("the profile there"));
        for twice in
            ["[store]\npath = \"/b\"\n[store]\nmount = \"/b\"\n", "[store]\npath = \"/b\"\npath = \"/c\"\n"]
        {
            let (message, hint) = fails(twice);
            assert!(message.contains(" is written a second time") && message.contains("line 3"), "{message}");
            assert!(message.contains("`store`") || message.contains("`path`"), "{message}");
            assert!(hint.unwrap().contains("once"));
        }
        let (message, _) = fails("[store.retention]\nkeep_daily = \"3\"\n");
        assert!(message.ends_with("expected a whole number"), "{message}");
    }

    #[test]
    fn bytes_of_the_profile_may_have_a_suffix_and_be_none() {
        let store = |text: &str| {
            let text = format!("[store]\npath = \"/b\"\n{text}");
            parse(&text, Path::new("p")).unwrap().store.unwrap()
        };
        assert_eq!(store("").reserve_bytes, None);
        assert_eq!(store("reserve_bytes = 0").reserve_bytes, Some(0));
        assert_eq!(store("reserve_bytes = \"2G\"").reserve_bytes, Some(2 << 30));
        assert_eq!(store("max_bytes_per_day = 4096").max_bytes_per_day, Some(4096));
        let (message, _) = fails("[offsite]\nreserve_bytes = \"much\"");
        assert!(message.contains("'much' is not a number of bytes"), "{message}");
        fails("[offsite]\nreserve_bytes = -1");
    }

    #[test]
    fn wrong_values_name_key_value_and_what_would_be_right() {
        for (text, key) in [
            ("[store]\npath = \"backup\"", "store.path"),
            ("[store]\npath = \"/a\"\nmount = \"/b\"", "store.mount"),
            ("[[snapshot.source]]\nname = \"Data\"\npath = \"/d\"", "snapshot.source.name"),
            ("[[snapshot.source]]\nname = \"data\"", "snapshot.source.name"),
            ("[nextcloud]\nroot = \"/n\"\nurl = \"cloud.example\"", "nextcloud.url"),
            ("[snapshot]\nmax = \"soon\"", "soon"),
            ("[offsite.luks]\nimage = \"../x\"\nkey_file = \"/k\"", "offsite.luks.image"),
            ("[offsite.luks]\nimage = \"x\"\nkey_file = \"/k\"", "offsite.luks.image"),
            ("[offsite.sshfs]\nhost = \"-oProxyCommand=x\"\ndirectory = \"/d\"", "offsite.sshfs.host"),
            ("[offsite.sshfs]\nhost = \"a@b\"\ndirectory = \"d\"", "offsite.sshfs.directory"),
            ("[offsite.sshfs]\nhost = \"a@b\"\ndirectory = \"/d\"\nbwlimit = \"fast\"", "'fast'"),
        ] {
            let (message, _) = fails(text);
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn bytes_are_written_as_people_do() {
        for (text, bytes) in
            [("4096", 4096), ("500k", 512_000), ("1.5m", 1_572_864), ("776G", 776 << 30), ("1KiB", 1024)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
        }
        for bad in ["", "k", "-1", "0", "1e9", "inf", "1x", "1 m"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_are_written_as_people_do() {
        assert_eq!("90s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("2h 30m".parse(), Ok(Span(Duration::from_secs(9000))));
        assert!("-5s".parse::<Span>().is_err());
    }

    #[test]
    fn a_profile_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home.toml");
        std::fs::write(&path, "").unwrap();
        Profile::load(None, Some(&path)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = Profile::load(None, Some(&path)).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Denied);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Profile::load(None, Some(&path)).is_err());
    }

    #[test]
    fn a_name_that_would_leave_the_folder_is_usage() {
        let error = Profile::load(Some("../passwd"), None).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Usage);
    }
}
