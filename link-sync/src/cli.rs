//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::profile::Span;

use crate::session::Allow;
use crate::settings::Options;

/// Dated hard-link snapshots: complete and immutable, or absent.
///
/// A snapshot is one folder STORE/DATE that holds every source of the profile (data, html, database, …).
/// Files that did not change share their disk space with the snapshot before; files that did are
/// sent by rsync. A published snapshot never changes.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 80, after_help = AFTER)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

const AFTER: &str = "\
Examples:
  link-sync snapshot home                    all steps, for profile home
  link-sync snapshot --source docs=/srv/docs --store /mnt/usb/docs \\
      --crash-consistent                     by hand, without a profile
  link-sync diff home --from latest --to 2026-11-22T03-30-00Z

stdout carries one JSON object (docs/status.schema.json).
Exit codes: 0 done, 1 failed (what arrived is kept for the next run), 2 usage,
69 a program or host is missing, 75 another run holds the lock, 77 rights,
78 profile, source or store is not what it should be, 128+N signal N.";

/// The actions.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Bring the next snapshot up to date while Nextcloud is up; any number of
    /// times. Starts a background process that holds it until publish or abort,
    /// with the options of the first stage. Source `database` is staged by name,
    /// after the dump was made.
    Stage(Run),
    /// Take what changed since stage: the only step inside maintenance. Seals the
    /// snapshot if the same nc-maint run is on at its beginning and end.
    Settle(Run),
    /// Make it durable and publish it under its date, atomically; move `latest`.
    Publish(Run),
    /// Give up the snapshot under way; what has arrived is kept for the next run.
    Abort(Abort),
    /// stage, settle and publish in one.
    Snapshot(Run),
    /// The published snapshots.
    List(Profile),
    /// What differs between two published snapshots.
    Diff(Diff),
    /// Copy a snapshot of a local store into another folder of snapshots, with its
    /// date: onto another disk, or into the off-site container. What changed is
    /// told by names and inode numbers of two local snapshots; the copy's files
    /// are not read.
    Copy(Copy),
    /// Bring back a file, a folder, a user or whole sources as they were at a
    /// date, to where they were or elsewhere, with owners, modes, times,
    /// attributes. What is replaced is kept aside until all has succeeded; an
    /// interrupted restore is continued by the same command.
    Restore(Restore),
    /// The far end, for an authorized_keys forced command:
    /// command="/usr/sbin/link-sync serve home",restrict ssh-ed25519 …
    /// Speaks its own protocol on stdin and stdout instead of printing JSON.
    Serve(Serve),
    #[command(hide = true)]
    Agent(Agent),
    #[command(hide = true)]
    Tunnel(Tunnel),
}

/// Options every action understands.
#[derive(Args, Clone, Debug)]
pub struct Profile {
    /// Profile: /etc/nc-backup/PROFILE.toml.
    pub profile: Option<String>,
    /// A profile elsewhere.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The store: /path, or user@host:/path.
    #[arg(long)]
    pub store: Option<String>,
    /// Where the index is kept [default: /var/lib/nc-backup/PROFILE].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the background process listens [default: /run/nc-backup/PROFILE].
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// ssh: private key.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// ssh: port.
    #[arg(long)]
    pub port: Option<u16>,
    /// ssh: known hosts file.
    #[arg(long, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
    /// link-sync on the store's machine [default: /usr/sbin/link-sync].
    #[arg(long, value_name = "PROGRAM")]
    pub remote_program: Option<String>,
}

/// Options of the steps of a snapshot.
#[derive(Args, Clone, Debug)]
pub struct Run {
    #[command(flatten)]
    pub profile: Profile,
    /// Only this source of the profile, or NAME=/path; repeatable.
    #[arg(long, value_name = "NAME[=PATH]")]
    pub source: Vec<String>,
    /// Leave out what matches; repeatable. /a is anchored, a/ is folders only.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Take Nextcloud's caches, previews and logs too.
    #[arg(long)]
    pub no_default_excludes: bool,
    /// Where the index cannot be used, compare by size and time only.
    #[arg(long)]
    pub no_checksum: bool,
    /// End the background process after so long without a next step, like 24h.
    #[arg(long, value_name = "TIME")]
    pub max: Option<Span>,
    /// Believe a source that lost more than 30 % of its paths.
    #[arg(long)]
    pub allow_shrink: bool,
    /// Believe a source that is on another file system than last time.
    #[arg(long)]
    pub allow_new_filesystem: bool,
    /// Use a store that is not the one of last time.
    #[arg(long)]
    pub new_store: bool,
    /// Publish although not sealed: files may be of different moments. The
    /// snapshot says so.
    #[arg(long)]
    pub crash_consistent: bool,
}

/// Options of `abort`.
#[derive(Args, Clone, Debug)]
pub struct Abort {
    #[command(flatten)]
    pub run: Run,
    /// Remove what has arrived, too.
    #[arg(long)]
    pub discard: bool,
}

/// Options of `diff`.
#[derive(Args, Clone, Debug)]
pub struct Diff {
    #[command(flatten)]
    pub profile: Profile,
    /// The earlier one: a date, or latest.
    #[arg(long, value_name = "DATE")]
    pub from: String,
    /// The later one.
    #[arg(long, value_name = "DATE", default_value = "latest")]
    pub to: String,
    /// Only this source.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// List at most so many paths; the counts are always complete.
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
}

/// Options of `copy`.
#[derive(Args, Clone, Debug)]
pub struct Copy {
    #[command(flatten)]
    pub profile: Profile,
    /// The folder of snapshots to copy into; it must exist.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The snapshot: a date, or latest.
    #[arg(long, value_name = "DATE", default_value = "latest")]
    pub date: String,
    /// Bytes that must stay free there [default: 64 MiB].
    #[arg(long, value_name = "BYTES")]
    pub reserve_bytes: Option<common::profile::Bytes>,
    /// Write no more than this ahead of the disk.
    #[arg(long, value_name = "BYTES", default_value = "4m")]
    pub flush_bytes: common::profile::Bytes,
}

/// Options of `restore`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("place").required(true))]
pub struct Restore {
    #[command(flatten)]
    pub profile: Profile,
    /// The snapshot: a date, or latest.
    #[arg(long, value_name = "DATE", default_value = "latest")]
    pub date: String,
    /// A source [default with --path: data]; repeatable without --path.
    #[arg(long, value_name = "NAME")]
    pub source: Vec<String>,
    /// A file or folder of that source, like admin/files/letter.odt; repeatable.
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,
    /// Everything in the data folder of this user; repeatable.
    #[arg(long, value_name = "USER")]
    pub user: Vec<PathBuf>,
    /// Into this folder, as DIR/SOURCE/PATH; made if it is not there.
    #[arg(long, value_name = "DIR", group = "place")]
    pub to: Option<PathBuf>,
    /// To where it was taken from, by the profile.
    #[arg(long, group = "place")]
    pub in_place: bool,
    /// Replace what is there without asking.
    #[arg(long)]
    pub yes: bool,
    /// Say what would be restored and replaced, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Compare all bytes and attributes with the snapshot before anything is
    /// replaced.
    #[arg(long)]
    pub verify: bool,
    /// Do not remove what was replaced; data.items names the place.
    #[arg(long)]
    pub keep_replaced: bool,
}

/// Options of `serve`.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Profile on this machine; its `store` table fixes the place.
    pub profile: Option<String>,
    /// A profile elsewhere.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The store's folder, where there is no profile.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// A folder that must be a mount point: the disk that has to be there.
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Bytes that must stay free [default: 1 GiB].
    #[arg(long, value_name = "BYTES")]
    pub reserve_bytes: Option<u64>,
    /// Flush to the disk whenever so many bytes were written.
    #[arg(long, value_name = "BYTES", hide = true)]
    pub flush_bytes: Option<u64>,
    /// Only what reads is allowed: for the key that restores.
    #[arg(long)]
    pub read_only: bool,
    /// A word of rsync's argv; repeatable.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub rsync: Vec<String>,
}

/// Options of the background process.
#[derive(Args, Clone, Debug)]
pub struct Agent {
    #[command(flatten)]
    pub run: Run,
    /// Socket.
    #[arg(long)]
    pub listen_fd: i32,
    /// Lock.
    #[arg(long)]
    pub lock_fd: i32,
}

/// What rsync gives its "remote shell".
#[derive(Args, Clone, Debug)]
pub struct Tunnel {
    /// Socket.
    #[arg(long)]
    pub fd: i32,
    /// Host and command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub argv: Vec<OsString>,
}

impl Profile {
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
        }
    }
}

impl Run {
    /// The profile's name, for the status object.
    pub fn name(&self) -> Option<&str> {
        self.profile.profile.as_deref()
    }
}
