//! What is kept of a snapshot so that another one can be laid upon it when it is gone from the store: the names at its top, and
//! its files' paths, sizes and hashes, as its checksums have them.
//!
//! ```text
//! nc-backup base 1
//! {"date": …, "id": …, "tops": [base64, …], "files": 2}
//! ```
//! Then each file, by path: how many bytes of the path are those of the one before, how many follow, these, its size, its hash (32
//! bytes). Numbers have seven bits a byte, the lowest first, and the top bit where more follow. A third of the text that it is of.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{durable, signals};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::plan::SMALL;
use crate::store::held::Held;
use crate::store::layout::META;
use crate::store::manifest::{MTREE, SUMS};
use crate::store::meta::FileDigest;
use crate::store::sums::{self, Lines, Sum};
use crate::store::{mtree, open_dir, open_file, visit};

/// The first line, with the format's number.
const FIRST: &[u8] = b"nc-backup base 1\n";

/// What was kept.
#[derive(Debug, Serialize)]
pub struct Kept {
    /// The file's hash.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
    /// Files in it.
    pub files: u64,
}

#[derive(Deserialize, Serialize)]
struct Head {
    date: String,
    id: String,
    tops: Vec<String>,
    files: u64,
}

/// Puts what is to be kept of a snapshot at `to`, durably; `None` if it has no checksums.
pub fn keep(of: &Held, to: &Path) -> Result<Option<Kept>> {
    let Some(manifest) = &of.meta.manifest else { return Ok(None) };
    let (mut sums, mut attributes) =
        (Checked::open(of, SUMS, &manifest.sha256sums)?, Checked::open(of, MTREE, &manifest.mtree)?);
    let (mut body, mut files, mut before) = (Vec::new(), 0, Vec::new());
    // Both lists are sorted by path; the latter has more of them.
    let mut looked: Option<(Vec<u8>, Option<u64>)> = attributes.next(size)?;
    while let Some((sum, path)) =
        sums.next(|line| sums::parse(line).map(|(sum, path)| (sum, path.into_owned())))?
    {
        while looked.as_ref().is_some_and(|looked| looked.0 < path) {
            looked = attributes.next(size)?;
        }
        let size = looked.as_ref().filter(|looked| looked.0 == path).and_then(|looked| looked.1);
        if let Some(size) = size.filter(|size| *size >= SMALL.unsigned_abs() && is_path(&path)) {
            signals::check()?;
            entry(&mut body, &before, &path, size, &sum);
            files += 1;
            before = path;
        }
    }
    while attributes.next(|_| Some(()))?.is_some() {}
    sums.finish()?;
    attributes.finish()?;
    let names = visit::names(&open_dir(&of.top, b"")?)?;
    let tops = names.iter().filter(|name| name.0 != META.as_bytes()).map(|name| STANDARD.encode(&name.0));
    let (date, id) = (of.meta.date.clone(), of.meta.id.clone());
    let head = serde_json::to_vec(&Head { date, id, tops: tops.collect(), files })?;
    let all = [FIRST, &head, b"\n", &body].concat();
    durable::write(to, &all, 0o600)?;
    Ok(Some(Kept { sha256: sums::hex(&Sha256::digest(&all)), bytes: all.len() as u64, files }))
}

/// A path and the size of a file, of a line of attributes.
fn size(line: &[u8]) -> Option<(Vec<u8>, Option<u64>)> {
    let (path, body) = mtree::parse(line)?;
    let size = body.split(|b| *b == b' ').find_map(|word| word.strip_prefix(b"size="));
    let size = size.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    Some((path.into_owned(), size))
}

/// Whether an overlay would look for it: it has no empty names, and none that lead elsewhere.
fn is_path(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').all(|name| !matches!(name, b"" | b"." | b"..") && !name.contains(&0))
}

/// The lines of a list of the snapshot, hashed on the way.
struct Checked<'a> {
    name: &'static str,
    lines: Lines,
    hash: Sha256,
    digest: &'a FileDigest,
}

impl<'a> Checked<'a> {
    fn open(of: &Held, name: &'static str, digest: &'a FileDigest) -> Result<Checked<'a>> {
        let lines = Lines::new(open_file(&of.top, &format!("{META}/{name}"))?);
        Ok(Checked { name, lines, hash: Sha256::new(), digest })
    }

    /// The next line that means something to `parse`.
    fn next<T>(&mut self, parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
        while let Some(line) = self.lines.next()? {
            self.hash.update(line);
            self.hash.update(b"\n");
            if let Some(parsed) = parse(line) {
                return Ok(Some(parsed));
            }
        }
        Ok(None)
    }

    /// After the last line: an error unless it is what it was when the snapshot was published.
    fn finish(self) -> Result<()> {
        let right = sums::hex(&self.hash.finalize()) == self.digest.sha256;
        anyhow::ensure!(right, "{META}/{} is not what it was when the snapshot was published", self.name);
        Ok(())
    }
}

fn entry(out: &mut Vec<u8>, before: &[u8], path: &[u8], size: u64, sum: &Sum) {
    let shared = before.iter().zip(path).take_while(|(a, b)| a == b).count();
    number(out, shared as u64);
    number(out, (path.len() - shared) as u64);
    out.extend_from_slice(&path[shared..]);
    number(out, size);
    out.extend_from_slice(sum);
}

fn number(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or(0));
}

/// A snapshot that is known by this alone.
#[derive(Debug)]
pub struct Base {
    /// Its date.
    pub date: String,
    /// What it calls itself.
    pub id: String,
    /// The names at its top.
    pub tops: Vec<Vec<u8>>,
    /// Each content: the first path that has it, and its size.
    contents: HashMap<Sum, (Vec<u8>, u64)>,
}

impl Base {
    /// Reads what was kept.
    pub fn read(path: &Path) -> Result<Base> {
        let bytes = durable::read(path)?.with_context(|| format!("there is no {}", path.display()))?;
        Base::parse(&bytes).with_context(|| format!("{} is damaged", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Base> {
        let rest = bytes.strip_prefix(FIRST).context("its first line is another")?;
        let end = rest.iter().position(|b| *b == b'\n').context("it is cut off")?;
        let head: Head = serde_json::from_slice(&rest[..end])?;
        let tops = head.tops.iter().map(|top| STANDARD.decode(top)).collect::<Result<Vec<_>, _>>()?;
        anyhow::ensure!(tops.iter().all(|top| is_path(top) && !top.contains(&b'/')), "a name is none");
        let (mut reader, mut contents, mut path) = (Reader(&rest[end + 1..]), HashMap::new(), Vec::new());
        for _ in 0..head.files {
            let (shared, more) = (reader.length()?, reader.length()?);
            anyhow::ensure!(shared <= path.len(), "a path is none");
            path.truncate(shared);
            path.extend_from_slice(reader.take(more)?);
            anyhow::ensure!(is_path(&path), "a path is none");
            let size = reader.number()?;
            let sum: Sum = reader.take(32)?.try_into().context("it is cut off")?;
            contents.entry(sum).or_insert_with(|| (path.clone(), size));
        }
        anyhow::ensure!(reader.0.is_empty(), "more follows than it says");
        Ok(Base { date: head.date, id: head.id, tops, contents })
    }

    /// The path and the size of a file with this content.
    pub fn of(&self, sum: &Sum) -> Option<(&[u8], u64)> {
        self.contents.get(sum).map(|(path, size)| (&path[..], *size))
    }

    /// Of all contents.
    pub fn sizes(&self) -> impl Iterator<Item = u64> {
        self.contents.values().map(|content| content.1)
    }

    /// Only these of its files are counted on.
    pub fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        self.contents.retain(|_, (path, _)| keep(path));
    }

    /// Takes out those files of which another content is known to lie in the container.
    pub fn correct(&mut self, known: &HashMap<Vec<u8>, Sum>) {
        self.contents.retain(|sum, (path, _)| known.get(path).is_none_or(|known| known == sum));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes).context("it is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        anyhow::bail!("a number is too long")
    }

    fn length(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.number()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(files: &[(&str, u64, u8)]) -> Vec<u8> {
        let (mut body, mut before) = (Vec::new(), Vec::new());
        for (path, size, sum) in files {
            entry(&mut body, &before, path.as_bytes(), *size, &[*sum; 32]);
            before = path.as_bytes().to_vec();
        }
        let head = Head {
            date: "d".into(),
            id: "i".into(),
            tops: vec![STANDARD.encode("data")],
            files: files.len() as u64,
        };
        [FIRST, &serde_json::to_vec(&head).unwrap(), b"\n", &body].concat()
    }

    #[test]
    fn what_was_kept_comes_back_and_what_was_cut_off_is_damaged() {
        let long = "x".repeat(300);
        let files = [("data/a", 64, 1), ("data/a b/\n", 1 << 40, 2), ("data/b", 64, 1), (&long, 127, 3)];
        let bytes = kept(&files);
        let base = Base::parse(&bytes).unwrap();
        assert_eq!((&base.date[..], &base.tops[..]), ("d", &[b"data".to_vec()][..]));
        assert_eq!(base.of(&[1; 32]), Some((&b"data/a"[..], 64)));
        assert_eq!(base.of(&[2; 32]), Some((&b"data/a b/\n"[..], 1 << 40)));
        assert_eq!((base.of(&[3; 32]), base.of(&[4; 32])), (Some((long.as_bytes(), 127)), None));
        for cut in 0..bytes.len() {
            assert!(Base::parse(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Base::parse(&[&bytes[..], b"x"].concat()).is_err());
        for path in ["", "/a", "a//b", "a/../b", "a/."] {
            assert!(Base::parse(&kept(&[(path, 64, 1)])).is_err(), "{path}");
        }
    }
}
