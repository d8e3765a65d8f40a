//! A plan as the stream that an image is made from: contents are read where they lie, and go nowhere else.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::b64;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::entry::{Entry, mtime, stat, whiteout};
use super::plan::{Part, Plan};
use super::tar::{self, Kind};
use crate::names::show;
use crate::store::layout::META;
use crate::store::{open_dir, open_file_at, split, sums};

/// Bytes handed on at once.
const PIECE: usize = 256 << 10;

/// What went into an image.
#[derive(Debug, Default, Serialize)]
pub struct Packed {
    /// Files stored whole.
    pub files: u64,
    /// Their bytes.
    pub content_bytes: u64,
    /// Larger files whose content is to lie beside the images, under its hash: all of them, also those of one content.
    pub big: Vec<Value>,
    /// The bytes of these contents.
    pub big_bytes: u64,
    /// Files of which the base has the content.
    pub files_by_content: u64,
    /// Other things that are no folders.
    pub others: u64,
    /// Folders.
    pub folders: u64,
    /// Folders among them that are elsewhere in the base.
    pub moved_folders: u64,
    /// Paths that are gone, without what was in them.
    pub deleted: u64,
    /// What an image cannot hold.
    pub left_out: Vec<Value>,
    /// Paths that the image has: all of these, less what was left out.
    pub paths: u64,
    /// The hash of these, each followed by a NUL.
    pub names_sha256: String,
}

/// The folder of contents that lie beside, in an overlay whose lowest layer has it.
const BESIDE: &[u8] = b"/.big/";

/// Writes what `plan` says of `wanted` in pieces to `put`. Of a file with `big` bytes or more there are the attributes, and where
/// its content is.
pub fn pack(
    plan: &Plan,
    wanted: &File,
    big: u64,
    mut put: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Packed> {
    let out = Vec::with_capacity(2 * PIECE);
    let mut packing = Packing { packed: Packed::default(), names: Sha256::new(), big, out, put: &mut put };
    let mut folder: Option<(Vec<u8>, File)> = None;
    for (path, part) in plan {
        common::signals::check()?;
        let (above, name) = split(path);
        let context = || format!("cannot store {}", show(path));
        let dir = match folder.take().filter(|f| f.0 == above) {
            Some(open) => open,
            None => (above.to_vec(), open_dir(wanted, above).with_context(context)?),
        };
        packing.path(path, part, &dir.1, name).with_context(context)?;
        folder = Some(dir);
    }
    packing.flush(0)?;
    let names: sums::Sum = packing.names.finalize().into();
    let names_sha256 = sums::hex(&names);
    Ok(Packed { names_sha256, ..packing.packed })
}

/// The latest of the times, in the seconds that an image has.
pub fn latest(plan: &Plan, wanted: &File) -> Result<u32> {
    let mut latest = 0;
    for path in plan.iter().filter(|p| *p.1 != Part::Gone).map(|p| p.0) {
        common::signals::check()?;
        latest = latest.max(mtime(&stat(wanted, path)?));
    }
    Ok(latest)
}

struct Packing<'a> {
    packed: Packed,
    names: Sha256,
    big: u64,
    out: Vec<u8>,
    put: &'a mut dyn FnMut(&[u8]) -> Result<()>,
}

impl Packing<'_> {
    fn path(&mut self, path: &[u8], part: &Part, dir: &File, name: &[u8]) -> Result<()> {
        if *part == Part::Gone {
            self.packed.deleted += 1;
            self.count(path);
            whiteout(path, &mut self.out);
            return self.flush(PIECE);
        }
        let mut entry = Entry::look(dir, name)?;
        if path == META.as_bytes() {
            entry.mark();
        }
        for what in &entry.left_out {
            let (path, base64) = told(path);
            self.packed.left_out.push(json!({"path": path, "path_b64": base64, "what": what}));
        }
        let Some(kind) = entry.kind else {
            if *part == (Part::Whole { over: true }) {
                self.count(path);
                whiteout(path, &mut self.out);
            }
            return self.flush(PIECE);
        };
        let folder = matches!(part, Part::Folder | Part::Fresh | Part::MovedFolder(_));
        if folder != (kind == Kind::Folder) {
            return Err(changed().into());
        }
        match part {
            Part::Gone => {}
            Part::Folder => entry.write(path, kind, &[], &mut self.out),
            Part::Fresh => entry.write(path, kind, &[("opaque", b"y")], &mut self.out),
            Part::MovedFolder(from) => {
                self.packed.moved_folders += 1;
                entry.write(path, kind, &[("redirect", &from_top(from))], &mut self.out);
            }
            Part::Content(from) => {
                self.packed.files_by_content += 1;
                let redirect = from.as_ref().map(|from| from_top(from));
                let marks = [("metacopy", &b""[..])].into_iter();
                let marks: Vec<_> = marks.chain(redirect.as_ref().map(|to| ("redirect", &to[..]))).collect();
                entry.write(path, kind, &marks, &mut self.out);
                self.zeros(entry.stat.st_size.unsigned_abs())?;
            }
            Part::Whole { .. } if kind == Kind::File && entry.stat.st_size.unsigned_abs() >= self.big => {
                let hash = self.beside(path, dir, name, entry.stat.st_size.unsigned_abs())?;
                let redirect = [BESIDE, hash.as_bytes()].concat();
                entry.write(path, kind, &[("metacopy", b""), ("redirect", &redirect)], &mut self.out);
                self.zeros(entry.stat.st_size.unsigned_abs())?;
            }
            Part::Whole { .. } => {
                entry.write(path, kind, &[], &mut self.out);
                match kind {
                    Kind::File => self.content(dir, name, entry.stat.st_size.unsigned_abs())?,
                    _ => self.packed.others += 1,
                }
            }
        }
        self.count(path);
        self.packed.folders += u64::from(folder);
        self.flush(PIECE)
    }

    fn count(&mut self, path: &[u8]) {
        self.packed.paths += 1;
        self.names.update(path);
        self.names.update([0]);
    }

    /// A file that says its size and holds nothing: mksquashfs makes holes of zeros. (What tar has for holes it reads wrongly.)
    fn zeros(&mut self, size: u64) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.out.resize(self.out.len() + take, 0);
            left -= take as u64;
            self.flush(PIECE)?;
        }
        tar::padding(&mut self.out, size);
        Ok(())
    }

    /// The hash of a content that is to lie beside.
    fn beside(&mut self, path: &[u8], dir: &File, name: &[u8], size: u64) -> Result<String> {
        let (sum, bytes) = sums::of_file(&mut open_file_at(dir, name)?, |_| common::signals::check())?;
        if bytes != size {
            return Err(changed().into());
        }
        let hash = sums::hex(&sum);
        if self.packed.big.iter().all(|b| b["sha256"] != hash) {
            self.packed.big_bytes += size;
        }
        let (path, base64) = told(path);
        self.packed.big.push(json!({"sha256": hash, "bytes": size, "path": path, "path_b64": base64}));
        Ok(hash)
    }

    /// Exactly so many bytes, as was promised.
    fn content(&mut self, dir: &File, name: &[u8], size: u64) -> Result<()> {
        let mut file = open_file_at(dir, name)?;
        let mut left = size;
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let begin = self.out.len();
            self.out.resize(begin + take, 0);
            file.read_exact(&mut self.out[begin..]).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => changed().into(),
                _ => anyhow::Error::from(e),
            })?;
            left -= take as u64;
            self.flush(PIECE)?;
        }
        if file.read(&mut [0])? != 0 {
            return Err(changed().into());
        }
        tar::padding(&mut self.out, size);
        self.packed.files += 1;
        self.packed.content_bytes += size;
        Ok(())
    }

    /// Hands on what there is, if it is more than `enough`.
    fn flush(&mut self, enough: usize) -> Result<()> {
        if self.out.len() > enough {
            (self.put)(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }
}

/// A path as JSON can have it, and as it is if that is not the same.
pub fn told(path: &[u8]) -> (String, Option<String>) {
    (String::from_utf8_lossy(path).into_owned(), b64(OsStr::from_bytes(path)))
}

/// A path as overlayfs looks for it.
fn from_top(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

fn changed() -> Fault {
    Fault::failed("it was changed meanwhile")
        .hint("a published snapshot never changes: who writes to the store?")
}
