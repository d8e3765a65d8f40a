//! The container's file, touched: by a child of ours and by nothing else ([`crate::image`] starts it).
//! It may lie on a file system whose server stops answering in any moment, and who waits for that cannot be ended.
//!
//! Somebody else may have put the file there: it is opened without following any link, and written at its header only.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use common::fault::{Fault, kind_of};
use common::{mutant, status};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::cryptsetup::Cryptsetup;
use crate::lease::Held;
use crate::lease_file::{Answer, Folder, Over};
use crate::losetup;

/// What the child is told.
#[derive(Args, Debug)]
pub(crate) struct Touch {
    /// What is to be done.
    #[arg(value_enum)]
    what: What,
    /// The container's file.
    #[arg(long)]
    image: PathBuf,
    /// This machine's copy of the header.
    #[arg(long)]
    header: Option<PathBuf>,
    /// A number of bytes.
    #[arg(long, default_value_t = 0)]
    bytes: u64,
    /// For a loop device.
    #[arg(long)]
    read_only: bool,
    /// Where this machine's container should be, if it has one, for people.
    #[arg(long)]
    home: Option<String>,
    /// A word of cryptsetup's command line.
    #[arg(long, allow_hyphen_values = true)]
    cryptsetup: Vec<String>,
    /// Whose lease it is.
    #[arg(long)]
    holder: Option<String>,
    /// How often that was renewed.
    #[arg(long, default_value_t = 0)]
    serial: u64,
    /// The lease that may be there already.
    #[arg(long, default_value = "nothing")]
    over: Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Its size, whether its first bytes are those of the header, and the UUID of a LUKS container.
    Look,
    /// Makes it, empty.
    Make,
    /// Gives it its size, durably.
    Size,
    /// Writes the header, where it differs; how much.
    PutHeader,
    /// Copies its header to the file `header`, which is not there yet.
    GetHeader,
    /// Makes a loop device; its name.
    Loop,
    /// Makes all that was written durable.
    Sync,
    /// Removes it.
    Remove,
    /// Tells what lease is beside it.
    LeaseLook,
    /// Puts the holder's there.
    LeasePut,
    /// Removes that, if it is the holder's.
    LeaseDrop,
}

/// The child's side: does it, and answers on stdout with the outcome, or with the error.
pub(crate) fn answer(touch: &Touch) -> ExitCode {
    let (code, text) = match common::process::normal().and_then(|()| touch.run()) {
        Ok(value) => (0, value),
        Err(error) => (kind_of(&error).exit_code(), status::describe(&error)),
    };
    // Whoever does not read it any more has given us up.
    drop(writeln!(std::io::stdout(), "{text}"));
    ExitCode::from(code)
}

impl Touch {
    fn run(&self) -> Result<Value> {
        let image = &self.image;
        let header = || self.header.as_deref().context("no header is named");
        Ok(match self.what {
            What::Look => {
                let file = self.open(false)?;
                let same = match self.bytes {
                    0 => true,
                    bytes => same_header(&file, header()?, usize::try_from(bytes)?)?,
                };
                let bytes = file.metadata().context("cannot look at the image")?.len();
                json!({"bytes": bytes, "same_header": same, "uuid": uuid(&file)})
            }
            What::Make => make(image).map(|()| Value::Null)?,
            What::Size => {
                let file = self.open(true)?;
                file.set_len(self.bytes).context("cannot give the image its size")?;
                file.sync_all().context("cannot make the image's size durable")?;
                Value::Null
            }
            What::PutHeader => {
                let path = header()?;
                let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                json!(put_header(&self.open(true)?, &bytes)?)
            }
            What::GetHeader => {
                use std::os::fd::AsFd as _;
                let file = self.open(false)?;
                Cryptsetup::new(self.cryptsetup.clone()).header_backup(file.as_fd(), header()?)?;
                Value::Null
            }
            What::Loop => json!(losetup::attach(image, &self.open(false)?, self.read_only)?.name),
            What::Sync => {
                self.open(true)?.sync_all().context("cannot make the image durable")?;
                Value::Null
            }
            What::Remove => {
                std::fs::remove_file(image).with_context(|| format!("cannot remove {}", image.display()))?;
                Value::Null
            }
            What::LeaseLook | What::LeasePut | What::LeaseDrop => {
                serde_json::to_value(self.lease().map_err(|e| not_done(self.what, &e))?)?
            }
        })
    }

    fn lease(&self) -> Result<Answer> {
        let folder = Folder::open(&self.image)?;
        let held = self.holder.clone().map(|holder| Held { holder, serial: self.serial });
        match (self.what, held) {
            (What::LeasePut, Some(held)) => folder.put(&held, self.over),
            (What::LeaseDrop, Some(held)) => folder.drop(&held),
            (What::LeasePut | What::LeaseDrop, None) => anyhow::bail!("whose?"),
            _ => folder.look(),
        }
    }

    fn open(&self, write: bool) -> Result<File> {
        open(&self.image, write, self.home.as_deref())
    }
}

/// The cure where a lease cannot be written: sftp has one word for all that a disk may refuse.
pub(crate) const NO_ROOM: &str = "S3's disk is full, or refuses writes: make room there";

fn not_done(what: What, error: &anyhow::Error) -> Fault {
    let fault = Fault::failed(format!("the lease beside the image: {error:#}"));
    if what == What::LeasePut { fault.hint(NO_ROOM) } else { fault }
}

/// The header is written in blocks of this size, and only those that differ.
const BLOCK: usize = 4096;

fn open_as(image: &Path, flags: OFlag) -> nix::Result<File> {
    // The far end could turn any part of the path into a link to one of our own disks.
    let resolve = match mutant::active("an-image-behind-a-link") {
        true => ResolveFlag::empty(),
        false => ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .mode(if flags.contains(OFlag::O_CREAT) { Mode::S_IRUSR | Mode::S_IWUSR } else { Mode::empty() })
        .resolve(resolve);
    openat2(AT_FDCWD, image, how).map(File::from)
}

/// The image, for reading, or for writing too; a regular file or an error. `home`: where this machine's container is.
fn open(image: &Path, write: bool, home: Option<&str>) -> Result<File> {
    let name = image.display();
    let file = match open_as(image, if write { OFlag::O_RDWR } else { OFlag::O_RDONLY }) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Err(missing(image, home)),
        Err(Errno::EACCES) => {
            let fault = Fault::denied(format!("cannot open the image {name}: permission denied"));
            let hint = "give it to the account that reaches it: `chown offsite: container.img` on S3, by the names there";
            return Err(fault.hint(hint).into());
        }
        Err(Errno::ELOOP) => {
            let what = format!("the image {name} is a symbolic link, or lies behind one");
            return Err(Fault::config(what).into());
        }
        Err(e) => {
            return Err(std::io::Error::from(e)).with_context(|| format!("cannot open the image {name}"));
        }
    };
    let meta = file.metadata().with_context(|| format!("cannot look at the image {name}"))?;
    if !meta.is_file() {
        return Err(Fault::config(format!("the image {name} is not a regular file")).into());
    }
    if meta.nlink() > 1 && !mutant::active("an-image-with-another-name") {
        let what = format!("the image {name} has another name, too: it is a hard link to somebody's file");
        let hint = format!("`find {} -xdev -samefile {name}` shows its names", folder(image).display());
        return Err(Fault::config(what).hint(hint).into());
    }
    Ok(file)
}

fn folder(image: &Path) -> &Path {
    image.parent().unwrap_or(Path::new("/"))
}

fn missing(image: &Path, home: Option<&str>) -> anyhow::Error {
    let folder = folder(image);
    if !folder.is_dir() {
        return Fault::unavailable(format!("there is no folder {}", folder.display())).into();
    }
    let fault = Fault::config(format!("there is no image {}", image.display()));
    // Whoever makes another one has to give up the only header that opens this one.
    match home.filter(|_| !mutant::active("a-missing-image-is-made-anew")) {
        Some(home) => fault.hint(format!(
            "this machine's container is not there: is S3's disk mounted at {home}? Nothing was changed"
        )),
        None => fault.hint("`luks-mount create` makes one"),
    }
    .into()
}

/// A new image; an existing file is never touched.
fn make(image: &Path) -> Result<()> {
    let made = open_as(image, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL);
    made.map(drop).map_err(|e| {
        let what = format!("cannot make the image {}: {e}", image.display());
        match e {
            Errno::ENOENT => return missing(image, None),
            Errno::EEXIST => Fault::config(what).hint("nothing is overwritten"),
            Errno::EACCES | Errno::EROFS => Fault::denied(what),
            _ => Fault::failed(what),
        }
        .into()
    })
}

/// Writes `header` at the image's start, where it differs from what is there; durable on return. The number of
/// bytes written.
fn put_header(image: &File, header: &[u8]) -> Result<u64> {
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

/// The UUID that a LUKS header at the image's start names: of both versions at the same place.
fn uuid(image: &File) -> Option<String> {
    let mut start = [0; 208];
    image.read_exact_at(&mut start, 0).ok()?;
    let text = start.strip_prefix(b"LUKS\xba\xbe")?.get(162..)?.split(|b| *b == 0).next()?;
    let plain = text.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-') && !text.is_empty();
    plain.then(|| String::from_utf8_lossy(text).into_owned())
}

/// Whether the first `bytes` of the image are those of the header copy.
fn same_header(image: &File, copy: &Path, bytes: usize) -> Result<bool> {
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
    fn a_link_and_a_file_of_two_names_are_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let config = |image: &Path| {
            let error = open(image, true, None).unwrap_err();
            assert_eq!(kind_of(&error), common::fault::Kind::Config, "{error:#}");
            error.to_string()
        };
        let (image, link, twin) = (base.join("img"), base.join("link"), base.join("twin"));
        std::fs::write(&image, "x").unwrap();
        open(&image, true, None).unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        assert!(config(&link).contains("symbolic link"));
        std::os::unix::fs::symlink(&base, base.join("folder")).unwrap();
        assert!(config(&base.join("folder/img")).contains("symbolic link"));
        nix::unistd::mkfifo(&base.join("pipe"), Mode::S_IRWXU).unwrap();
        assert!(config(&base.join("pipe")).contains("not a regular file"));
        std::fs::hard_link(&image, &twin).unwrap();
        assert!(config(&image).contains("hard link"));
        std::fs::remove_file(&twin).unwrap();
        open(&image, true, None).unwrap();
        assert!(make(&link).is_err() && make(&image).is_err() && make(&base.join("none/img")).is_err());
        assert!(config(&base.join("nothing")).contains("no image"));
    }

    #[test]
    fn who_has_a_container_is_not_told_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().canonicalize().unwrap().join("c.img");
        let hint = |home| status::describe(&open(&image, false, home).unwrap_err())["hint"].to_string();
        assert!(hint(None).contains("luks-mount create"), "{}", hint(None));
        let said = hint(Some("s3.example:/container"));
        assert!(said.contains("mounted at s3.example:/container?") && !said.contains("create"), "{said}");
    }

    #[test]
    fn a_disk_that_takes_no_lease_is_told_with_the_cure() {
        let hint = |what| {
            status::describe(&not_done(what, &anyhow::anyhow!("EIO: I/O error")).into())["hint"].clone()
        };
        assert_eq!(hint(What::LeasePut), NO_ROOM);
        assert!(hint(What::LeaseLook).is_null());
    }

    #[test]
    fn the_uuid_of_another_container_is_told() {
        let image = tempfile::tempfile().unwrap();
        let mut start = vec![0; 4096];
        start[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
        start[168..172].copy_from_slice(b"ab-1");
        image.write_all_at(&start, 0).unwrap();
        assert_eq!(uuid(&image).as_deref(), Some("ab-1"));
        image.write_all_at(b"\x1b[2J", 168).unwrap();
        assert_eq!(uuid(&image), None);
        image.write_all_at(b"x", 0).unwrap();
        assert_eq!(uuid(&image), None);
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
