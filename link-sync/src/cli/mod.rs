//! The command line: its tables.

mod given;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::profile::Span;
use common::retention::{Length, Zone};

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
    /// Print the JSON object on stdout even where that is a terminal.
    #[arg(long, global = true)]
    pub json: bool,
}

const AFTER: &str = "\
Examples:
  link-sync snapshot home                    all steps, for profile home
  link-sync snapshot --source docs=/srv/docs --store /mnt/usb/docs \\
      --crash-consistent                     by hand, without a profile
  link-sync find home --name 'report*.odt' --user alice
  link-sync restore home --path alice/files/report.odt --to /tmp/back
  link-sync diff home --from yesterday --to latest

A date is also meant by its beginning (2026-11-22), latest, today, yesterday.
stdout carries one JSON object (docs/status.schema.json); on a terminal a table
for people, unless --json is given.
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
    /// snapshot if the same nc-maint run is on at its beginning and end. `data`
    /// tells where the time went; that of `stage` what a settle would take.
    Settle(Settle),
    /// Make it durable and publish it under its date, atomically; move `latest`.
    Publish(Run),
    /// Give up the snapshot under way; what has arrived is kept for the next run.
    Abort(Abort),
    /// stage, settle and publish in one.
    Snapshot(Run),
    /// The published snapshots: dates, size, age, the last drill and verification.
    List(List),
    /// What differs between two published snapshots.
    ///
    /// data: from, to, counts (of each kind, complete), changes (what: added,
    /// removed, retyped, content, attributes; path: SOURCE/PATH), truncated. Of a
    /// folder that is only in one of them, all that is in it counts, and only the
    /// folder is listed.
    Diff(Diff),
    /// In which snapshots a file is, and where it changed.
    ///
    /// data: found, truncated, dates, passed_over (being removed), paths: of each
    /// its path (SOURCE/PATH), dates (how many hold it), in_newest, and events
    /// (date, what: appeared, changed, gone; size_bytes, mtime).
    Find(Find),
    /// Copy a snapshot of a local store into another folder of snapshots, with its
    /// date: onto another disk, or into the off-site container. What changed is
    /// told by names and inode numbers of two local snapshots; the copy's files
    /// are not read. A date of the copy keeps the checksums of what is new in it;
    /// the lists of names and attributes stay in the store (verify --against).
    Copy(Copy),
    /// Make one read-only squashfs image of what makes a snapshot of another one, for
    /// an overlay: 0/0 device for what is gone, trusted.overlay.opaque, redirect and
    /// metacopy. Contents are read where they lie. Beside FILE lies FILE.json, which
    /// tells also what an image cannot hold. Exit code 3 if there is such.
    ///
    /// data: image, image_bytes, sha256, date, id, base_date, base_id, files,
    /// content_bytes, big, big_bytes, files_by_content, others, folders, moved_folders, deleted,
    /// left_out (path, what; the first 10), left_out_total, last (with --most-bytes:
    /// the last path in it, if more follow).
    #[command(hide = true)]
    Layer(Layer),
    /// Bring back a file, a folder, a user or whole sources as they were at a
    /// date, to where they were or elsewhere, with owners, modes, times,
    /// attributes. What is replaced is kept aside until all has succeeded; what
    /// backups leave out on purpose goes back to its place. An interrupted restore
    /// is continued by the same command.
    ///
    /// data: date, id, consistency, items (source, path, target, folder, paths,
    /// allocated_bytes, replaces, kept_at, left_out_at, not_put_back: what has no
    /// place any more; finished_first: these three of an interrupted restore that
    /// was finished and then done once more), left_out_sources (of the snapshot,
    /// that the profile does not know), verified. Exit code 3 if anything of that
    /// is to be looked at.
    Restore(Restore),
    /// Check the snapshots against the checksums and attributes noted when they
    /// were published. Each distinct file is read once, however many dates share
    /// it; a rotten one is named with every date that shares it, and the exit
    /// code is 1; it is 3 if a date has no checksums, or as a copy only those of
    /// the contents (see --against), or is being removed, or there is none. Files
    /// are read from the disk, not from memory, where the kernel allows. The store
    /// records when it was last verified; what is damaged in the newest snapshot is
    /// taken anew by the next backup.
    ///
    /// data: dates, paths, inodes, inodes_read, bytes_read, sample_percent, seed,
    /// counts (of each kind: all), findings (kind, paths, dates, found; at most
    /// --limit), findings_total, findings_truncated, weaker_dates (without
    /// checksums), skipped_dates (removed meanwhile); with --repair also repaired,
    /// repaired_total, not_repaired (why: the first 1,000), not_repaired_total, and
    /// findings is what is still wrong.
    Verify(Verify),
    /// Remove the snapshots that the rules do not keep, fast; or tell what would go,
    /// and why each one stays (--dry-run). The rules are [store.retention] of the
    /// profile on the store's machine, or the options. Through ssh only the
    /// store's own profile counts.
    ///
    /// Never removed: the newest, the newest sealed one, what an off-site push
    /// needs, what is younger than --min-age, what is in use (exit code 3), and
    /// what is damaged, or odd: dated in the future, say.
    Prune(Box<Prune>),
    /// What the profile says, checked as all tools check it.
    ///
    /// data: file, profile (its tables and keys as they are written; defaults are
    /// not filled in), and what they mean: state_dir, has_store, local_store,
    /// has_offsite, nextcloud_root, notify, metrics. For scripts.
    Profile(Profile),
    /// The far end, for an authorized_keys forced command:
    /// command="/usr/sbin/link-sync serve home",restrict ssh-ed25519 …
    /// Speaks its own protocol on stdin and stdout instead of printing JSON.
    Serve(Serve),
    /// The background process between two steps; started by the first.
    #[command(hide = true)]
    Agent(Agent),
    /// What rsync takes for its ssh.
    #[command(hide = true)]
    Tunnel(Tunnel),
    /// The far end of `copy`; started by it.
    #[command(hide = true)]
    CopyEnd(CopyEnd),
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

/// Options of `settle`.
#[derive(Args, Clone, Debug)]
pub struct Settle {
    #[command(flatten)]
    pub run: Run,
    /// Fail rather than take longer, like 2s or 500ms, and keep the snapshot under
    /// way for another stage and settle (data.reason is over-budget). The deadline
    /// of the nc-maint run counts too.
    #[arg(long, value_name = "TIME")]
    pub max_time: Option<Span>,
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

/// Options of `list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    #[command(flatten)]
    pub profile: Profile,
    /// Only this one: a date, the beginning of one, latest, today, yesterday; data
    /// has the whole date.
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
    /// Add up what each date holds alone: what removing it would free. Looks at
    /// every file of every date.
    #[arg(long)]
    pub sizes: bool,
    /// Fail (exit code 1) if the newest is older, like 26h or 2d: for monitoring.
    #[arg(long, value_name = "TIME")]
    pub max_age: Option<Length>,
    /// On a terminal, show all dates, not only as many as fit.
    #[arg(long)]
    pub all: bool,
}

/// Options of `diff`.
#[derive(Args, Clone, Debug)]
pub struct Diff {
    #[command(flatten)]
    pub profile: Profile,
    /// The earlier one: a date, the beginning of one, latest, today, yesterday.
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
    /// On a terminal, show all lines, not only as many as fit.
    #[arg(long)]
    pub all: bool,
}

/// Options of `find`.
#[derive(Args, Clone, Debug)]
pub struct Find {
    #[command(flatten)]
    pub profile: Profile,
    /// A name at any depth, like 'report*.odt', or a path from the source's top,
    /// like '/alice/files/**/*.odt'.
    #[arg(long, value_name = "PATTERN")]
    pub name: String,
    /// Only in this source.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Only in this user's folder of the source data.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Tell of at most so many paths; the count is always complete.
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    /// On a terminal, show all lines, not only as many as fit.
    #[arg(long)]
    pub all: bool,
}

/// Options of `copy`.
#[derive(Args, Clone, Debug)]
pub struct Copy {
    #[command(flatten)]
    pub profile: Profile,
    /// The folder of snapshots to copy into; it must exist.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The snapshot: a date, the beginning of one, latest, today, yesterday.
    #[arg(long, value_name = "DATE", default_value = "latest")]
    pub date: String,
    /// Bytes that must stay free there [default: 64 MiB].
    #[arg(long, value_name = "BYTES")]
    pub reserve_bytes: Option<common::profile::Bytes>,
    /// Write no more than this ahead of the disk.
    #[arg(long, value_name = "BYTES", default_value = "4m")]
    pub flush_bytes: common::profile::Bytes,
}

/// Options of `layer`.
#[derive(Args, Clone, Debug)]
pub struct Layer {
    #[command(flatten)]
    pub profile: Profile,
    /// The image's path; its folder must be ours alone.
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// The snapshot: a date, or latest.
    #[arg(long, value_name = "DATE", default_value = "latest")]
    pub date: String,
    /// The snapshot whose images it is to be laid over [default: none: all of it].
    #[arg(long, value_name = "DATE", group = "upon")]
    pub base: Option<String>,
    /// The same, of one that is gone from the store: what --keep-manifest wrote when
    /// its image was made. Contents that it had are not stored again.
    #[arg(long, value_name = "FILE", group = "upon")]
    pub base_manifest: Option<PathBuf>,
    /// With the last image of the snapshot: write what --base-manifest of a later one
    /// needs, if it has checksums.
    #[arg(long, value_name = "FILE")]
    pub keep_manifest: Option<PathBuf>,
    /// No more than so many bytes of contents, and at least one file: the first of
    /// several images, which has all but contents, too.
    #[arg(long, value_name = "BYTES")]
    pub most_bytes: Option<common::profile::Bytes>,
    /// The content of larger files is to lie beside the images, as .big/SHA256 in an
    /// overlay's lowest layer; FILE.json names them (big: sha256, bytes, path).
    #[arg(long, value_name = "BYTES", default_value = "64m")]
    pub big_bytes: common::profile::Bytes,
    /// The contents that lie beside the base's images, as JSON (sha256, bytes, path,
    /// path_b64); FILE.json tells which of them the snapshot still has (base_big).
    #[arg(long, value_name = "FILE", requires = "upon")]
    pub base_big: Option<PathBuf>,
    /// Paths of the base that its images may not show as they are here, as JSON (paths:
    /// path, path_b64; or all: true): what the snapshot has of them is stored.
    #[arg(long, value_name = "FILE", requires = "base")]
    pub anew: Option<PathBuf>,
    /// Only contents after this path, which the image before it ended with.
    #[arg(long, value_name = "PATH", requires = "most_bytes")]
    pub after: Option<OsString>,
}

/// Options of `restore`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("place").required(true))]
pub struct Restore {
    #[command(flatten)]
    pub profile: Profile,
    /// The snapshot: a date, the beginning of one, latest, today, yesterday.
    #[arg(long, value_name = "DATE", default_value = "latest")]
    pub date: String,
    /// A source [default: all, in place without the database; with --path:
    /// data]; repeatable without --path.
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
    /// Say what would be restored and replaced, and whether there is room; change
    /// nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Compare all bytes and attributes with the snapshot before anything is
    /// replaced.
    #[arg(long)]
    pub verify: bool,
    /// Let nc-maint write maintenance into the configuration that comes (source
    /// html) before it is put in place, and note that the instance is being
    /// restored: until `nc-maint off` opens it, nothing is backed up.
    #[arg(long)]
    pub closed: bool,
    /// Do not remove what was replaced; data.items names the place.
    #[arg(long)]
    pub keep_replaced: bool,
    /// Restore set-user-id and set-group-id bits of files, devices, capabilities,
    /// and a config.php that is root's, also from a store that is not root's: its
    /// account could have made them up.
    #[arg(long)]
    pub set_id_and_devices: bool,
}

/// Options of `verify`.
#[derive(Args, Clone, Debug)]
pub struct Verify {
    #[command(flatten)]
    pub profile: Profile,
    /// The snapshot: a date, the beginning of one, latest, today, yesterday, or all.
    #[arg(long, value_name = "DATE", default_value = "all")]
    pub date: String,
    /// Read only so many percent of the distinct files, chosen at random; names
    /// and attributes are always checked.
    #[arg(long, value_name = "N%", default_value = "100%")]
    pub sample: Percent,
    /// Choose the sample as the run did that told this number.
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// The store is a copy (another disk, the opened off-site container): check
    /// it against the checksums of this store. Dates it no longer has are checked
    /// against what the copy says of itself, and so are all without this option:
    /// that is contents, neither attributes nor names.
    #[arg(long, value_name = "DIR")]
    pub against: Option<PathBuf>,
    /// Fetch back what is damaged, as a new inode in every date that shared the
    /// old one: from another date, from --from, or from the source if that still
    /// has the content that was hashed. Only on the store's machine. What is in
    /// the way moves to .set-aside in the store; nothing is deleted.
    #[arg(long, conflicts_with = "against")]
    pub repair: bool,
    /// Another folder of dated snapshots to fetch from: a second disk, or the
    /// off-site copy that `offsite-push view` opened; repeatable.
    #[arg(long, value_name = "DIR", requires = "repair")]
    pub from: Vec<PathBuf>,
    /// List at most so many findings; the counts are always complete.
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    /// On a terminal, show all lines, not only as many as fit.
    #[arg(long)]
    pub all: bool,
}

/// A share of 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percent(pub f64);

/// Options of `prune`.
#[derive(Args, Clone, Debug)]
pub struct Prune {
    #[command(flatten)]
    pub profile: Profile,
    /// Change nothing; tell of each date why it is kept, or why not.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub rules: RuleOptions,
    /// Remove this one date, whatever the rules say; needs --yes. Also for a
    /// damaged or odd one, which no rule ever removes. A whole date: a word or a
    /// beginning might mean another one tomorrow.
    #[arg(long, value_name = "DATE")]
    pub date: Option<String>,
    /// Yes, remove --date.
    #[arg(long, requires = "date")]
    pub yes: bool,
    /// Keep this date whatever the rules say; repeatable. A whole date, too.
    #[arg(long, value_name = "DATE")]
    pub keep: Vec<String>,
    /// Count this date, too, which lies elsewhere and is told, but not removed:
    /// DATE or DATE=sealed.
    #[arg(long, value_name = "DATE", hide = true)]
    pub listed: Vec<crate::store::odd::Listed>,
    /// Write no more than this ahead of the disk.
    #[arg(long, value_name = "BYTES", hide = true)]
    pub flush_bytes: Option<common::profile::Bytes>,
    /// On a terminal, show all lines, not only as many as fit.
    #[arg(long)]
    pub all: bool,
}

/// The rules of retention; each is a key of `[store.retention]`, too.
#[derive(Args, Clone, Debug)]
pub struct RuleOptions {
    /// Keep the newest N.
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep one for each of the last N hours that have one.
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<u32>,
    /// The same for days.
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// The same for weeks, Monday to Sunday.
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// The same for months.
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// The same for years.
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<u32>,
    /// Keep all that are not older than this, counted from the newest: 14d, 6mo.
    #[arg(long, value_name = "TIME")]
    pub keep_within: Option<Length>,
    /// Never remove a younger one [default: 3d].
    #[arg(long, value_name = "TIME")]
    pub min_age: Option<Length>,
    /// A longer pause between backups, or since the newest, means that they fail or
    /// that the clock jumped: then nothing is removed [default: 7d].
    #[arg(long, value_name = "TIME")]
    pub max_gap: Option<Length>,
    /// Remove no more within 24 hours. [default: no limit on the store's machine;
    /// what S1 asks for has that of the profile, or 10]
    #[arg(long, value_name = "N")]
    pub max_removals_per_day: Option<u32>,
    /// Where days begin and end, like Europe/Vienna [default: this machine's].
    #[arg(long, value_name = "ZONE")]
    pub timezone: Option<Zone>,
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
    /// Bytes that the snapshots of one day may add [default: half of what is free
    /// when the day begins, but at least 16 GiB; with a profile].
    #[arg(long, value_name = "BYTES")]
    pub max_bytes_per_day: Option<u64>,
    /// Files and folders that the snapshots of one day may add [default: half of
    /// the inodes that are free, but at least 1,000,000; with a profile].
    #[arg(long, value_name = "N")]
    pub max_inodes_per_day: Option<u64>,
    /// Only what reads is allowed: for the key that restores.
    #[arg(long)]
    pub read_only: bool,
    /// Give up when the other end is silent for so long.
    #[arg(long, value_name = "TIME", default_value = "26h")]
    pub max_silence: Span,
    /// Remember no more than this of the paths that the other end names at once.
    #[arg(long, value_name = "BYTES", default_value = "1g")]
    pub max_memory: common::profile::Bytes,
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

/// Options of the far end of a copy.
#[derive(Args, Clone, Debug)]
pub struct CopyEnd {
    /// Socket of the process that started it.
    #[arg(long)]
    pub starter_fd: i32,
    /// The folder of snapshots.
    #[arg(long)]
    pub store: PathBuf,
    /// Bytes that must stay free.
    #[arg(long)]
    pub reserve_bytes: u64,
    /// Flush to the disk whenever so many bytes were written.
    #[arg(long)]
    pub flush_bytes: u64,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound_and_its_help_fits_80_columns_and_documents_everything() {
        testkit::help::is_sound(Cli::command());
    }
}
