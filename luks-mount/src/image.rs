//! The container's file, which somebody else may have put there: opened without following any link, written at
//! its header only.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::fuse;
use common::run::Cmd;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag};

use crate::settings::{PROBE, Settings};

/// The header is written in blocks of this size, and only those that differ.
const BLOCK: usize = 4096;

fn open_as(settings: &Settings, flags: OFlag) -> nix::Result<File> {
    // The far end could turn any part of the path into a link to one of our own disks.
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .mode(if flags.contains(OFlag::O_CREAT) { Mode::S_IRUSR | Mode::S_IWUSR } else { Mode::empty() })
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, &settings.image, how).map(File::from)
}

/// The image, for reading, or for writing too; a regular file or an error.
pub(crate) fn open(settings: &Settings, write: bool) -> Result<File> {
    let name = settings.image.display();
    let file = match open_as(settings, if write { OFlag::O_RDWR } else { OFlag::O_RDONLY }) {
        Ok(file) => file,
        Err(nix::errno::Errno::ENOENT) => {
            let fault = Fault::config(format!("there is no image {name}"));
            return Err(fault.hint(format!("{} makes one", settings.hint("create"))).into());
        }
        Err(nix::errno::Errno::ELOOP) => {
            return Err(
                Fault::config(format!("the image {name} is a symbolic link, or lies behind one")).into()
            );
        }
        Err(e) => {
            return Err(std::io::Error::from(e)).with_context(|| format!("cannot open the image {name}"));
        }
    };
    if !file.metadata().with_context(|| format!("cannot look at the image {name}"))?.is_file() {
        return Err(Fault::config(format!("the image {name} is not a regular file")).into());
    }
    Ok(file)
}

/// The image's size, if it can be told. A link that answered a moment ago may hang now, and is not waited for.
pub(crate) fn size(settings: &Settings) -> Result<Option<u64>> {
    let stat = Cmd::new("stat").args(["-c", "%f %s", "--"]).arg(&settings.image).uninterruptible();
    let Some(output) = fuse::ask(&stat, PROBE)?.filter(|o| o.status.success()) else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stdout);
    let (mode, bytes) = text.trim().split_once(' ').unwrap_or_default();
    let is_file =
        u32::from_str_radix(mode, 16).is_ok_and(|m| m & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits());
    Ok(bytes.parse().ok().filter(|_| is_file))
}

/// A new image; an existing file is never touched.
pub(crate) fn make(settings: &Settings) -> Result<Made> {
    let file = open_as(settings, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL).map_err(|e| {
        let what = format!("cannot make the image {}: {e}", settings.image.display());
        match e {
            nix::errno::Errno::EEXIST => Fault::config(what).hint("nothing is overwritten"),
            nix::errno::Errno::EACCES | nix::errno::Errno::EROFS => Fault::denied(what),
            _ => Fault::failed(what),
        }
    })?;
    Ok(Made { file, path: settings.image.clone(), keep: false })
}

/// An image that goes away again unless it is kept.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) file: File,
    path: PathBuf,
    keep: bool,
}

impl Made {
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }

    /// Removes it again.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.keep = true;
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.keep {
            // Only on a panic: everything else says keep or remove.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// An error unless `header` ends before the encrypted data begins, at `data_offset`: it would overwrite some of it.
pub(crate) fn fits(header: &[u8], data_offset: u64) -> Result<()> {
    let bytes = u64::try_from(header.len())?;
    if bytes <= data_offset {
        return Ok(());
    }
    let what = format!(
        "this machine's header has {bytes} bytes, and the container's data begins at {data_offset}: it is not \
         written to the image"
    );
    Err(Fault::config(what).hint("put back the header of a backup that `backup-header` made").into())
}

/// Writes `header`, which [`fits`], at the image's start, where it differs from what is there; durable on return. The number of
/// bytes written.
pub(crate) fn put_header(image: &File, header: &[u8]) -> Result<u64> {
    let mut written = 0;
    let mut there = [0; BLOCK];
    for (n, block) in header.chunks(BLOCK).enumerate() {
        let at = u64::try_from(n * BLOCK)?;
        let there = &mut there[..block.len()];
        image.read_exact_at(there, at).context("cannot read the image's header")?;
        if there != block {
            image.write_all_at(block, at).context("cannot write the image's header")?;
            written += u64::try_from(block.len())?;
        }
    }
    image.sync_all().context("cannot make the image's header durable")?;
    Ok(written)
}

/// Whether the first `bytes` of the image are those of the header copy.
pub(crate) fn same_header(image: &File, copy: &Path, bytes: usize) -> Result<bool> {
    let mut ours = vec![0; bytes];
    let mut file = File::open(copy).with_context(|| format!("cannot read {}", copy.display()))?;
    file.read_exact(&mut ours).with_context(|| format!("{} is too short", copy.display()))?;
    let mut theirs = vec![0; bytes];
    match image.read_exact_at(&mut theirs, 0) {
        Ok(()) => Ok(ours == theirs),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e).context("cannot read the image's header"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_never_reaches_into_the_data() {
        assert!(fits(&[0; BLOCK], 4096).is_ok());
        let error = fits(&[0; BLOCK + 1], 4096).unwrap_err();
        assert_eq!(common::fault::kind_of(&error), common::fault::Kind::Config);
    }

    #[test]
    fn only_blocks_that_differ_are_written() {
        let mut image = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut image, &[0; 4 * BLOCK]).unwrap();
        let mut header = vec![0; 3 * BLOCK + 100];
        assert_eq!(put_header(&image, &header).unwrap(), 0);
        header[BLOCK] = 1;
        header[3 * BLOCK] = 2;
        assert_eq!(put_header(&image, &header).unwrap(), 4096 + 100);
        let mut back = vec![0; header.len()];
        image.read_exact_at(&mut back, 0).unwrap();
        assert!(back == header);
    }
}
