//! The tables of a profile, and what each key means.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::units::{Bytes, Span, TimeOfDay, amount};
use crate::retention::Retention;

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
    /// How a date lies in the container. Default `layers`.
    #[serde(default)]
    pub layout: Layout,
    /// Layout `layers`: where an image lies until it is sent. Default: `layers` in the state folder.
    pub image_dir: Option<PathBuf>,
    /// Layout `layers`: no image is begun after this time of the day.
    pub until: Option<TimeOfDay>,
    /// How S3 is reached. Absent: the container lies on this machine.
    pub sshfs: Option<Sshfs>,
    /// The container.
    pub luks: Option<Luks>,
    /// Which snapshots are kept in the container.
    #[serde(default)]
    pub retention: Retention,
}

/// How a date lies in the container.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// As a tree, which shares its files with the dates before it.
    Hardlink,
    /// As a list of read-only images, each of what changed since an older date.
    #[default]
    Layers,
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
