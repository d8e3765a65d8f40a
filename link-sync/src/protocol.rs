//! What the two ends say to each other, over one pair of pipes or one ssh connection.
//!
//! `serve` first prints [`GREETING`] (whatever a login shell printed before it is skipped); after that
//! both directions carry frames: one byte for the kind, four for the length (big-endian), then the
//! payload. The source asks with a [`Request`] (JSON), some followed by a list of records ended by an
//! empty list frame; the far end answers each with one [`Reply`]. During [`Request::Receive`] stream frames
//! carry rsync's own protocol in both directions until each side has sent an end frame.

use std::io::{Read, Write};

use anyhow::{Context as _, Result, bail};
use common::fault::Fault;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tree::Census;

/// Raised with every incompatible change; the two ends must agree.
pub const VERSION: u32 = 3;

/// The first thing the far end prints.
pub const GREETING: &[u8] = b"\nlink-sync serve: ready\n";

/// The largest payload, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Request`] or a [`Reply`].
    Message,
    /// A piece of a list of records; an empty one ends the list.
    List,
    /// A piece of rsync's conversation.
    Stream,
    /// This direction of rsync's conversation has ended.
    End,
    /// How far the far end has come, eight bytes (big-endian), and of how much, eight more where that is known: while
    /// it copies from another store, hashes, or verifies.
    Count,
    /// Nothing but a sign of life: the far end sends one every second while it works on a request.
    Alive,
}

/// What the source asks for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// First of all: who is there? Answer: [`Hello`].
    Hello {
        /// [`VERSION`] of the source.
        protocol: u32,
    },
    /// Take the lock, clear what an interrupted run left (keeping what it had received), begin a new partial
    /// snapshot. Answer: [`Opened`].
    Open {
        /// A snapshot of another store is to be copied, not one of this source's made.
        #[serde(default)]
        copy: bool,
        /// For a copy: the snapshot here that shares its unchanged files, by date.
        #[serde(default)]
        base: Option<String>,
    },
    /// For a copy, after `Open`: the snapshot's id, and what to do with what an interrupted copy received. A list of
    /// `SOURCE/PATH` follows that must not be taken from it.
    Resume {
        /// The snapshot.
        id: String,
        /// Keep the rest; else all of it is removed.
        keep: bool,
    },
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
    /// Compare the clone with what it should hold: for each folder, sorted, a [`Record`] of kind 0 and one for everything
    /// that is expected in it. Answer: [`crate::store::clone::Lacking`].
    Compare {
        /// Name of the source.
        source: String,
    },
    /// Remove the paths in the list that follows from the partial snapshot.
    Drop {
        /// Name of the source.
        source: String,
    },
    /// Start the receiving rsync. Answer, after the stream: its exit code and stderr.
    Receive {
        /// Name of the source.
        source: String,
        /// What the sending rsync can do, from its own argv (`e.` and letters).
        capabilities: String,
        /// Content is compared, not size and time.
        checksum: bool,
        /// Modification times count.
        times: bool,
        /// Send only the changed parts of changed files.
        delta: bool,
        /// Compare with the partial snapshot instead of the base: any pass but the first.
        again: bool,
        /// Also the attributes rsync itself keeps owners in (a copy of a store without root).
        #[serde(default)]
        all_xattrs: bool,
        /// Once more over what the run before has received, for ACLs and no extended attributes.
        #[serde(default)]
        acls_only: bool,
    },
    /// Put what was received into the partial snapshot, and take what rsync found unchanged from where it
    /// found it. A list of [`Record`]s follows. Answer: [`Merged`].
    Merge {
        /// Name of the source.
        source: String,
        /// As in `Receive`.
        times: bool,
        /// As in `Receive`.
        again: bool,
    },
    /// Write to the disk what is still in memory, so that this need not be done later, in a hurry.
    Flush,
    /// For a copy, before `Publish`: the lines of its part of the checksums, in the list that follows.
    Part,
    /// Make the partial snapshot durable and publish it. Answer: [`Published`].
    Publish {
        /// The `snapshot.json` to be stored, without what only the store knows. For a copy: its whole text.
        meta: Value,
    },
    /// Remove the partial snapshot and all that an interrupted run left.
    Discard,
    /// Keep a published snapshot from being removed as long as the conversation lasts. Answer: its `snapshot.json`.
    Hold {
        /// Date, or `latest`.
        date: String,
    },
    /// What are these paths of the held snapshot? A list of `SOURCE/PATH` follows. Answer: for each an
    /// [`Option`] of [`Looked`].
    Look,
    /// Start the sending rsync with one path of the held snapshot; a list with that path follows. Answer, after
    /// the stream: [`Received`].
    Send {
        /// So many of the path's first parts are not part of the names that are sent.
        strip: usize,
        /// What the receiving rsync can do, as in `Receive`.
        capabilities: String,
        /// Content is compared, not size and time.
        checksum: bool,
        /// Nothing is sent, only compared.
        dry: bool,
        /// Extended attributes.
        xattrs: bool,
        /// ACLs.
        acls: bool,
    },
    /// The published snapshots. Answer: `snapshots` (`snapshot.json` objects with `alone_bytes`), `damaged`, `verified`,
    /// and `now` by the store's clock.
    List {
        /// Add up what each one holds alone.
        #[serde(default)]
        sizes: bool,
    },
    /// Remove the snapshots that the rules of the store's own profile do not keep; nothing here says which.
    /// Answer: [`crate::store::prune::Pruned`].
    Prune {
        /// Only tell.
        dry_run: bool,
    },
    /// In which snapshots something is. Answer: as [`crate::store::find::find`] tells.
    Find(crate::store::find::Wanted),
    /// What is different between two published snapshots. Answer: [`crate::store::diff::Difference`]s.
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
    /// Check snapshots against their manifests; nothing is changed. Answer: what [`crate::store::verify::Outcome`]
    /// describes.
    Verify {
        /// What is to be checked.
        options: crate::store::verify::Options,
    },
}

/// Answer to [`Request::Hello`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Hello {
    /// [`VERSION`] of the far end.
    pub protocol: u32,
    /// Version of its program.
    pub version: String,
    /// The store's folder.
    pub store: String,
    /// Whether it can set owners itself; if not, rsync keeps them in an attribute (fake-super).
    pub root: bool,
}

/// Answer to [`Request::Open`].
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

/// Answer to [`Request::Clone`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Cloned {
    /// Files and links that were linked.
    pub linked: u64,
    /// What is there now.
    pub census: Census,
    /// Modification times count in that.
    pub times: bool,
}

/// Answer to [`Request::Merge`].
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Merged {
    /// Files received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Files linked from the base although they were listed: rsync found them unchanged.
    pub linked: u64,
    /// Files taken over from an interrupted run.
    pub resumed: u64,
    /// Listed paths that were nowhere: they vanished at the source, or rsync passed over them.
    pub missing: u64,
    /// The first of them.
    pub missing_names: Vec<String>,
}

/// Answer to [`Request::Receive`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Received {
    /// Exit code of the receiving rsync, 255 if a signal ended it.
    pub exit_code: i32,
    /// The end of what it said.
    pub stderr: String,
}

/// A path of a snapshot, in the answer to [`Request::Look`].
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

/// Answer to [`Request::Publish`].
#[derive(Debug, Deserialize, Serialize)]
pub struct Published {
    /// What a person should know.
    pub warnings: Vec<Value>,
    /// Its random id.
    pub id: String,
    /// Its name.
    pub date: String,
    /// Its folder.
    pub path: String,
    /// Files that were hashed for the checksums.
    #[serde(default)]
    pub hashed_files: u64,
    /// Their bytes.
    #[serde(default)]
    pub hashed_bytes: u64,
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

/// One path of a [`Request::Merge`] list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `st_mode` type bits.
    pub kind: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Relative to the source.
    pub path: Vec<u8>,
}

/// Writes one frame; `payload` is at most [`MAX_FRAME`] long.
pub fn send(out: &mut impl Write, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
    let mut head = [0u8; 5];
    head[0] = match kind {
        Kind::Message => b'M',
        Kind::List => b'L',
        Kind::Stream => b'S',
        Kind::End => b'E',
        Kind::Count => b'C',
        Kind::Alive => b'A',
    };
    head[1..].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.write_all(&head)?;
    out.write_all(payload)
}

/// Reads one frame into `payload`; `None` at the end of the input.
pub fn receive(input: &mut impl Read, payload: &mut Vec<u8>) -> Result<Option<Kind>> {
    let mut head = [0u8; 5];
    match input.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => input.read_exact(&mut head[1..])?,
    }
    let kind = match head[0] {
        b'M' => Kind::Message,
        b'L' => Kind::List,
        b'S' => Kind::Stream,
        b'E' => Kind::End,
        b'C' => Kind::Count,
        b'A' => Kind::Alive,
        other => bail!("the other end sent a frame of kind {other}: it does not speak this protocol"),
    };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if len > MAX_FRAME && kind != Kind::Message || len > 64 * MAX_FRAME {
        bail!("the other end sent a frame of {len} bytes");
    }
    payload.resize(len, 0);
    input.read_exact(payload)?;
    Ok(Some(kind))
}

/// Sends a message.
pub fn send_message(out: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(message).context("cannot encode a message")?;
    send(out, Kind::Message, &text)?;
    out.flush()?;
    Ok(())
}

/// Collects records and sends them in frames.
#[derive(Debug)]
pub struct ListWriter<'a, W: Write> {
    out: &'a mut W,
    buffer: Vec<u8>,
}

impl<'a, W: Write> ListWriter<'a, W> {
    /// A list on `out`.
    pub fn new(out: &'a mut W) -> ListWriter<'a, W> {
        ListWriter { out, buffer: Vec::with_capacity(MAX_FRAME) }
    }

    /// Adds a path.
    pub fn path(&mut self, path: &[u8]) -> Result<()> {
        self.bytes(path)
    }

    /// Adds a record.
    pub fn record(&mut self, kind: u32, size: u64, mtime: (i64, u32), path: &[u8]) -> Result<()> {
        let mut bytes = Vec::with_capacity(24 + path.len());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&mtime.0.to_le_bytes());
        bytes.extend_from_slice(&mtime.1.to_le_bytes());
        bytes.extend_from_slice(path);
        self.bytes(&bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + 4 + bytes.len() > MAX_FRAME {
            send(self.out, Kind::List, &self.buffer)?;
            self.buffer.clear();
        }
        let len = u32::try_from(bytes.len()).context("a path is too long")?;
        self.buffer.extend_from_slice(&len.to_le_bytes());
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends the rest and the end of the list.
    pub fn finish(self) -> Result<()> {
        if !self.buffer.is_empty() {
            send(self.out, Kind::List, &self.buffer)?;
        }
        send(self.out, Kind::List, &[])?;
        self.out.flush()?;
        Ok(())
    }
}

/// Reads a list and gives each item to `each`. The whole list is read even if `each` fails; its first
/// error is returned then, so that the conversation stays in step.
pub fn read_list(input: &mut impl Read, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut frame = Vec::new();
    let mut outcome = Ok(());
    loop {
        match receive(input, &mut frame)? {
            Some(Kind::List) if frame.is_empty() => return outcome,
            Some(Kind::List) => {}
            _ => bail!("the other end broke off in the middle of a list"),
        }
        let mut rest = &frame[..];
        while !rest.is_empty() && outcome.is_ok() {
            let (item, tail) = split_item(rest).context("the other end sent a broken list")?;
            rest = tail;
            outcome = each(item);
        }
    }
}

fn split_item(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

impl Record {
    /// Decodes one item of a list.
    pub fn decode(item: &[u8]) -> Result<Record> {
        let decode = || -> Option<Record> {
            let (kind, rest) = item.split_first_chunk::<4>()?;
            let (size, rest) = rest.split_first_chunk::<8>()?;
            let (sec, rest) = rest.split_first_chunk::<8>()?;
            let (nsec, path) = rest.split_first_chunk::<4>()?;
            Some(Record {
                kind: u32::from_le_bytes(*kind),
                size: u64::from_le_bytes(*size),
                mtime: (i64::from_le_bytes(*sec), u32::from_le_bytes(*nsec)),
                path: path.to_vec(),
            })
        };
        decode().context("the other end sent a broken record")
    }
}

/// A relative path that stays below where it starts: no empty, `.` or `..` part, no leading slash.
pub fn check_path(path: &[u8]) -> Result<()> {
    let part_ok = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    if path.split(|b| *b == b'/').all(part_ok) {
        return Ok(());
    }
    Err(Fault::denied(format!("the path '{}' leads out of the snapshot: refused", crate::walk::show(path)))
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_survive_any_bytes_and_many_frames() {
        let paths: Vec<Vec<u8>> = (0..20_000u32).map(|n| format!("a\n\u{fc}/{n}/").into_bytes()).collect();
        let mut wire = Vec::new();
        let mut list = ListWriter::new(&mut wire);
        for path in &paths {
            list.record(7, 8, (-9, 10), path).unwrap();
        }
        list.finish().unwrap();
        let mut back = Vec::new();
        read_list(&mut &wire[..], |item| {
            back.push(Record::decode(item)?);
            Ok(())
        })
        .unwrap();
        assert_eq!(back.len(), paths.len());
        assert_eq!(back[77], Record { kind: 7, size: 8, mtime: (-9, 10), path: paths[77].clone() });
    }

    #[test]
    fn a_list_is_read_to_its_end_although_an_item_fails() {
        let mut wire = Vec::new();
        let mut list = ListWriter::new(&mut wire);
        list.path(b"bad").unwrap();
        list.path(b"good").unwrap();
        list.finish().unwrap();
        send(&mut wire, Kind::End, b"").unwrap();
        let mut input = &wire[..];
        assert!(read_list(&mut input, |_| bail!("no")).is_err());
        assert_eq!(receive(&mut input, &mut Vec::new()).unwrap(), Some(Kind::End));
    }

    #[test]
    fn paths_that_leave_the_snapshot_are_refused() {
        for bad in ["", "/etc", "../x", "a/../../b", "a//b", "./a", "a/", "a\0b"] {
            assert!(check_path(bad.as_bytes()).is_err(), "{bad:?}");
        }
        check_path(b"a/..b/.c").unwrap();
    }
}
