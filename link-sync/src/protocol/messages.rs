//! The messages: for each door what can be asked there, and the answers.
//!
//! A door is who may ask: the key that backs up, the process that copies from one store into another, the key that
//! restores. What one of them may ask is a type, so a request of another door cannot be said there; and of that type a part
//! is for when nothing has been begun, the other for when something has.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::publish::Description;
use crate::tree::Census;

/// Who may ask.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// The key that backs up: it adds snapshots, and reads no file nor any name that only older snapshots hold.
    Backup,
    /// `link-sync copy`, over the pipes of the process it started itself.
    Copy,
    /// The key that restores: it reads, and changes nothing.
    Read,
}

/// How the key for backups, which came to read, becomes the other one.
pub const READING: &str = "use a key of its own for reading: restore_identity in [snapshot.ssh], and on the store's machine `link-sync serve PROFILE --read-only` for it (docs/restore.md)";
/// And the other way round.
pub const WRITING: &str =
    "give the key for backups `link-sync serve PROFILE` without --read-only, on the store's machine";

/// The first message, at every door.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Knock {
    /// Who is there? Answer: [`Hello`].
    Hello {
        /// [`super::VERSION`] of the source.
        protocol: u32,
    },
}

/// All that the key for backups may ask.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum BackupRequest {
    /// As long as nothing has been begun.
    Idle(BackupIdle),
    /// Of the partial snapshot.
    Writing(BackupWriting),
}

/// What the key for backups may ask as long as it has begun nothing.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BackupIdle {
    /// Take the lock, clear what an interrupted run left (keeping what it had received), begin a new partial
    /// snapshot. Answer: [`Opened`].
    Open {},
    /// Remove the partial snapshot and all that an interrupted run left.
    Discard {},
    /// The published snapshots, by date and number: `snapshots` (`snapshot.json` objects), `damaged`, `verified`,
    /// and `now` by the store's clock.
    List {},
    /// Remove the snapshots that the rules of the store's own profile do not keep; nothing here says which.
    /// Answer: [`crate::store::prune::Pruned`].
    Prune {
        /// Only tell.
        dry_run: bool,
    },
    /// Check snapshots against their manifests; nothing is changed. Answer: what [`crate::store::outcome::Outcome`]
    /// describes, the `findings` one by one, without the names of what the newest snapshot does not hold.
    Verify {
        /// What is to be checked.
        options: crate::store::outcome::Scope,
    },
}

/// What a backup may ask about the partial snapshot it has begun.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum BackupWriting {
    /// As a copy may, too.
    Making(Making),
    /// A backup alone.
    Only(BackupOnly),
}

/// What only a backup may ask about its partial snapshot.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BackupOnly {
    /// Remove the paths in the list that follows from the partial snapshot.
    Drop {
        /// Name of the source.
        source: String,
    },
    /// Which of these new files does the base hold under another name? A list of [`crate::store::reuse::Claim`]s follows. Those
    /// it holds are at hand for the next `Receive`. Answer: [`crate::store::reuse::Found`].
    Reuse {
        /// Name of the source.
        source: String,
        /// What was at hand before is not needed any more.
        fresh: bool,
    },
    /// Make the partial snapshot durable and publish it, under a date of the store's clock. Answer: [`crate::store::publish::Published`].
    Publish {
        /// What the source knows of it.
        meta: Description,
    },
}

/// What can be asked about a partial snapshot that has been begun.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Making {
    /// Is there room for this much more?
    Room {
        /// Name of the source, or all; what an interrupted run received of it needs no room again.
        source: Option<String>,
        /// Bytes to be written.
        bytes: u64,
        /// Files and folders to be made.
        inodes: u64,
    },
    /// Begin `source` of the partial snapshot with nothing.
    Fresh {
        /// Name of the source.
        source: String,
    },
    /// Clone `source` of the base into the partial snapshot, without the paths in the list that follows. Answer:
    /// [`Cloned`].
    Clone {
        /// Name of the source.
        source: String,
    },
    /// Compare the clone with what it should hold: for each folder, sorted, a [`crate::store::merge::Listed`] of kind 0 and one for
    /// everything that is expected in it. Answer: [`crate::store::compare::Lacking`].
    Compare {
        /// Name of the source.
        source: String,
    },
    /// Start the receiving rsync. Answer, after the stream: its exit code and stderr.
    Receive(Receive),
    /// Put what was received into the partial snapshot, and take what rsync found unchanged from where it
    /// found it. A list of [`crate::store::merge::Listed`]s follows. Answer: [`crate::store::merge::Merged`].
    Merge {
        /// Name of the source.
        source: String,
        /// As in `Receive`.
        times: bool,
        /// As in `Receive`.
        again: bool,
        /// As in `Receive`.
        #[serde(default)]
        reused: bool,
    },
    /// Write to the disk what is still in memory, so that this need not be done later, in a hurry.
    Flush {},
}

/// What the receiving rsync is to do.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// Name of the source.
    pub source: String,
    /// What the sending rsync can do, from its own argv (`e.` and letters).
    pub capabilities: String,
    /// Content is compared, not size and time.
    pub checksum: bool,
    /// Modification times count.
    pub times: bool,
    /// Send only the changed parts of changed files.
    pub delta: bool,
    /// Compare with the partial snapshot instead of the base: any pass but the first.
    pub again: bool,
    /// All that is listed is at hand, as [`BackupOnly::Reuse`] found it: only attributes are compared, with that.
    #[serde(default)]
    pub reused: bool,
    /// What the run before has received stays.
    #[serde(default)]
    pub more: bool,
    /// Also the attributes rsync itself keeps owners in (a copy of a store without root).
    pub all_xattrs: bool,
    /// Once more over what the run before has received, for ACLs and no extended attributes.
    pub acls_only: bool,
}

/// All that `link-sync copy` may ask of the store it copies into.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum CopyRequest {
    /// As long as nothing has been begun.
    Idle(CopyIdle),
    /// Of the partial snapshot.
    Writing(CopyWriting),
}

/// What a copy may ask as long as it has begun nothing.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CopyIdle {
    /// The published snapshots, as in [`BackupIdle::List`].
    List {},
    /// As [`BackupIdle::Open`].
    Open {
        /// The snapshot here that shares its unchanged files, by date.
        base: Option<String>,
    },
}

/// What a copy may ask about the partial snapshot it has begun.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum CopyWriting {
    /// As a backup may, too.
    Making(Making),
    /// A copy alone.
    Only(CopyOnly),
}

/// What only a copy may ask about its partial snapshot.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CopyOnly {
    /// After `Open`: the snapshot's id, and what to do with what an interrupted copy received. A list of
    /// `SOURCE/PATH` follows that must not be taken from it.
    Resume {
        /// The snapshot.
        id: String,
        /// Keep the rest; else all of it is removed.
        keep: bool,
    },
    /// Before `Publish`: the lines of its part of the checksums, in the list that follows.
    Part {},
    /// Make the partial snapshot durable and publish it, under the date it has. Answer: [`crate::store::publish::Published`].
    Publish {
        /// The whole text of its `snapshot.json`.
        text: String,
    },
}

/// All that the key for restoring may ask.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum ReadRequest {
    /// At any time.
    Idle(ReadIdle),
    /// Of the held snapshot.
    Holding(ReadHolding),
}

/// What may be read at any time.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReadIdle {
    /// The published snapshots, as in [`BackupIdle::List`], with `alone_bytes`.
    List {
        /// Add up what each one holds alone.
        sizes: bool,
    },
    /// In which snapshots something is. Answer: as [`crate::store::find::find`] tells, the `paths` one by one.
    Find(crate::store::find::Wanted),
    /// What is different between two published snapshots. Answer: [`crate::store::diff::Difference`], its `changes` one by
    /// one.
    Diff {
        /// Date, or `latest`.
        from: String,
        /// Date, or `latest`.
        to: String,
        /// Only this source.
        source: Option<String>,
        /// At most so many paths; the counts are complete.
        limit: usize,
    },
    /// Keep a published snapshot from being removed as long as the conversation lasts, or until another one is held.
    /// Answer: its `snapshot.json`.
    Hold {
        /// Date, or `latest`.
        date: String,
    },
}

/// What may be read of the held snapshot.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReadHolding {
    /// What are these paths of it? A list of `SOURCE/PATH` follows. Answer: for each an
    /// [`Option`] of [`Looked`].
    Look {},
    /// Start the sending rsync with one path of it; a list with that path follows. Answer, after
    /// the stream: [`Received`].
    Send(Sending),
}

/// What the sending rsync is to do.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sending {
    /// So many of the path's first parts are not part of the names that are sent.
    pub strip: usize,
    /// What the receiving rsync can do, as in [`Receive`].
    pub capabilities: String,
    /// Content is compared, not size and time.
    pub checksum: bool,
    /// Nothing is sent, only compared.
    pub dry: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// ACLs.
    pub acls: bool,
}

/// Answer to [`Knock::Hello`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Hello {
    /// [`super::VERSION`] of the far end.
    pub protocol: u32,
    /// The door this is; nothing before it was asked for what it has.
    pub door: Door,
    /// Version of its program.
    pub version: String,
    /// The store's folder.
    pub store: String,
    /// Whether it can set owners itself; if not, rsync keeps them in an attribute (fake-super).
    pub root: bool,
}

/// Answer to `Open`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Opened {
    /// Random id of this store, made with its first snapshot.
    pub store_id: String,
    /// The newest snapshot, which unchanged files are shared with.
    pub base: Option<crate::store::meta::SnapshotMeta>,
    /// Something received by an interrupted run is at hand.
    pub resumed: bool,
    /// For a copy: the snapshot that was received then, by id.
    #[serde(default)]
    pub resumed_id: Option<String>,
    /// Extended attributes can be kept.
    pub xattrs: bool,
    /// ACLs can be kept.
    pub acls: bool,
    /// What was verified and found damaged in the base.
    #[serde(default)]
    pub damaged: crate::store::damaged::Damaged,
    /// What a person should know.
    pub warnings: Vec<Value>,
}

/// Answer to [`Making::Clone`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Cloned {
    /// Files and links that were linked.
    pub linked: u64,
    /// What is there now.
    pub census: Census,
    /// Modification times count in that.
    pub times: bool,
    /// Files of the base that no more links can be made to: they must be sent, with nothing to compare with.
    #[serde(default)]
    pub full: u64,
}

/// Answer to [`Making::Receive`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Received {
    /// Exit code of the receiving rsync, 255 if a signal ended it.
    pub exit_code: i32,
    /// The end of what it said.
    pub stderr: String,
}

/// A path of a snapshot, in the answer to [`ReadHolding::Look`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Looked {
    /// It is a folder.
    pub folder: bool,
    /// Paths: it, and all below it.
    pub paths: u64,
    /// Bytes they take on the disk.
    pub bytes: u64,
    /// Folders below it that are so deep that what is in them comes by itself: rsync 3.5 fails above 1,024 folders or 4,040
    /// bytes. A folder before those in it.
    #[serde(default)]
    pub deep: Vec<Vec<u8>>,
}

/// An answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It was done.
    Ok(Value),
    /// It was not: exit code, and the `error` object of the status contract.
    Err(i32, Value),
}
