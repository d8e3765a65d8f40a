//! The index: what the base snapshot holds of a source, as the source's own walk saw it.
//!
//! One file per source in the state folder, written after publish with the snapshot's id, durable
//! and replaced by rename. It is a cache: one that is missing, damaged or of another snapshot only
//! costs time (the full way), never correctness. Format: a JSON line ([`Header`]), then per directory
//! its path and entries in little-endian binary, then the CRC-32 of everything before.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::tree::{Dir, Meta, Stamp, Tree};

/// Changes with every incompatible change of the format.
const FORMAT: u32 = 1;

/// What an index belongs to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Header {
    format: u32,
    /// The snapshot it describes.
    pub snapshot_id: String,
    /// The source's path, as [`encode_path`] makes it. Its key is older than its form.
    #[serde(rename = "path_b64")]
    pub path: String,
    /// The source's file system.
    pub fs_id: Option<String>,
    dirs: u64,
    submounts: Vec<Vec<u8>>,
    walked_at: (i64, u32),
}

/// The file for source `name`.
pub fn path(state: &Path, name: &str) -> PathBuf {
    state.join(format!("index-{name}"))
}

/// Passes bytes on and keeps their CRC.
struct Summed<T> {
    inner: T,
    crc: crc32fast::Hasher,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.crc.update(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(bytes)?;
        self.crc.update(&bytes[..n]);
        Ok(n)
    }
}

/// Writes `tree` as the index of `source` in snapshot `snapshot_id`; durable on return.
pub fn save(file: &Path, source: &Path, fs_id: Option<&str>, snapshot_id: &str, tree: &Tree) -> Result<()> {
    let context = || format!("cannot write the index {}", file.display());
    let header = Header {
        format: FORMAT,
        snapshot_id: snapshot_id.to_owned(),
        path: encode_path(source),
        fs_id: fs_id.map(str::to_owned),
        dirs: tree.dirs.len() as u64,
        submounts: tree.submounts.clone(),
        walked_at: (tree.walked_at.sec, tree.walked_at.nsec),
    };
    let temporary = file.with_extension("new");
    let out = File::create(&temporary).with_context(context)?;
    let mut out = Summed { inner: BufWriter::with_capacity(1 << 20, out), crc: crc32fast::Hasher::new() };
    let write = |out: &mut Summed<BufWriter<File>>| -> std::io::Result<()> {
        serde_json::to_writer(&mut *out, &header)?;
        out.write_all(b"\n")?;
        put_meta(out, &tree.root)?;
        for (path, dir) in &tree.dirs {
            put(out, path)?;
            out.write_all(&(dir.len() as u64).to_le_bytes())?;
            for (name, entry) in dir.entries() {
                put(out, name)?;
                put_meta(out, &entry.meta)?;
            }
        }
        let sum = out.crc.clone().finalize();
        out.inner.write_all(&sum.to_le_bytes())?;
        out.inner.flush()?;
        out.inner.get_ref().sync_all()
    };
    write(&mut out).and_then(|()| std::fs::rename(&temporary, file)).with_context(context)?;
    common::durable::sync_dir(file.parent().unwrap_or(Path::new("/")))
}

/// Reads only the header.
pub fn header(file: &Path) -> Result<Option<Header>> {
    match File::open(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
        Ok(f) => Ok(Some(read_header(&mut BufReader::new(f))?)),
    }
}

/// Reads a whole index. Any damage is an error.
pub fn load(file: &Path) -> Result<(Header, Tree)> {
    let input = File::open(file)?;
    let mut input = Summed { inner: BufReader::with_capacity(1 << 20, input), crc: crc32fast::Hasher::new() };
    let header = read_header(&mut input)?;
    let mut tree = Tree {
        root: get_meta(&mut input)?,
        submounts: header.submounts.clone(),
        walked_at: Stamp { sec: header.walked_at.0, nsec: header.walked_at.1 },
        ..Tree::default()
    };
    for _ in 0..header.dirs {
        let path = get(&mut input)?;
        let count = u64::from_le_bytes(take(&mut input)?);
        let mut list = Vec::new();
        for _ in 0..count {
            let name = get(&mut input)?;
            list.push((name, get_meta(&mut input)?, 0));
        }
        tree.dirs.insert(path, Dir::new(list));
    }
    let sum = input.crc.clone().finalize();
    ensure!(u32::from_le_bytes(take(&mut input)?) == sum, "its checksum does not match");
    Ok((header, tree))
}

/// A path in the header's form.
pub fn encode_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

fn read_header(input: &mut impl Read) -> Result<Header> {
    let mut line = Vec::new();
    loop {
        match take::<1>(input)?[0] {
            b'\n' => break,
            _ if line.len() > 1 << 20 => bail!("it does not begin with a header"),
            byte => line.push(byte),
        }
    }
    let header: Header = serde_json::from_slice(&line).context("its header is damaged")?;
    ensure!(header.format == FORMAT, "it has format {}, this program writes {FORMAT}", header.format);
    Ok(header)
}

fn put(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    let len = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(bytes)
}

fn get(input: &mut impl Read) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(u16::from_le_bytes(take(input)?))];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take<const N: usize>(input: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn put_meta(out: &mut impl Write, meta: &Meta) -> std::io::Result<()> {
    let mut bytes = [0u8; 44];
    bytes[..4].copy_from_slice(&meta.mode.to_le_bytes());
    bytes[4..12].copy_from_slice(&meta.size.to_le_bytes());
    bytes[12..20].copy_from_slice(&meta.ino.to_le_bytes());
    bytes[20..28].copy_from_slice(&meta.mtime.sec.to_le_bytes());
    bytes[28..32].copy_from_slice(&meta.mtime.nsec.to_le_bytes());
    bytes[32..40].copy_from_slice(&meta.ctime.sec.to_le_bytes());
    bytes[40..].copy_from_slice(&meta.ctime.nsec.to_le_bytes());
    out.write_all(&bytes)
}

fn get_meta(input: &mut impl Read) -> Result<Meta> {
    let mode = u32::from_le_bytes(take(input)?);
    let (size, ino) = (u64::from_le_bytes(take(input)?), u64::from_le_bytes(take(input)?));
    let mut stamp = || -> Result<Stamp> {
        Ok(Stamp { sec: i64::from_le_bytes(take(input)?), nsec: u32::from_le_bytes(take(input)?) })
    };
    Ok(Meta { mode, size, ino, mtime: stamp()?, ctime: stamp()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back_and_damage_noticed() {
        let meta = Meta {
            mode: 0o100_640,
            size: 1 << 40,
            ino: 7,
            mtime: Stamp { sec: -5, nsec: 9 },
            ctime: Stamp::now(),
        };
        let list = vec![(b"\xff\n".to_vec(), meta, 0), (b"a".to_vec(), Meta::default(), 0)];
        let tree = Tree {
            root: meta,
            dirs: [(b"".to_vec(), Dir::new(list))].into(),
            submounts: vec![b"m".to_vec()],
            walked_at: Stamp { sec: 3, nsec: 4 },
            ..Tree::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path(), "data");
        save(&file, Path::new("/src"), Some("uuid"), "id", &tree).unwrap();
        let (header, back) = load(&file).unwrap();
        assert_eq!(header.snapshot_id, "id");
        assert_eq!(back.submounts, tree.submounts);
        assert_eq!(back.walked_at, tree.walked_at);
        let entries: Vec<_> =
            back.dirs[&b""[..].to_vec()].entries().map(|(n, e)| (n.to_vec(), e.meta)).collect();
        assert_eq!(entries, [(b"a".to_vec(), Meta::default()), (b"\xff\n".to_vec(), meta)]);

        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(load(&file).is_err(), "a flipped bit");
        std::fs::write(&file, &bytes[..at]).unwrap();
        assert!(load(&file).is_err(), "cut short");
    }
}
