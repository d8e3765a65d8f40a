//! Making a new container: header, image, file system.
//! Little is written, so that it can be made through a slow link.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::{Fault, Kind, kind_of};
use common::fuse::{self, Health};
use common::status::{self, Report};

use crate::attach::{open, undoing};
use crate::cryptsetup::Pbkdf;
use crate::detach::take_down;
use crate::fs::FileSystem;
use crate::header::Header;
use crate::marks::{Left, Marks};
use crate::record::Record;
use crate::settings::Settings;
use crate::stack::{self, State};
use crate::watch::{PROBE, Watch};
use crate::{TOOL, facts, image, key};

/// Where the encrypted data begins: after 32 KiB of metadata and 1 MiB of key slots, aligned.
const DATA_OFFSET: u64 = 2 << 20;
/// The smallest image that holds a file system worth the name.
const LEAST: u64 = 32 << 20;

/// What is to be made.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Of the image, in bytes.
    pub(crate) size: u64,
    pub(crate) file_system: FileSystem,
    pub(crate) bytes_per_inode: u32,
    pub(crate) pbkdf: Pbkdf,
}

/// `create`.
pub(crate) fn run(settings: &Settings, wanted: &Wanted, report: &mut Report) -> Result<()> {
    // Whole MiB: ends of sectors, blocks and pages all agree then.
    let size = wanted.size & !0xF_FFFF;
    if size < LEAST {
        return Err(Fault::config("--size: a container has at least 32 MiB").into());
    }
    let _lock = settings.lock()?;
    key::check(&settings.key_file)?;
    nothing_there(settings)?;
    let stack = stack::look(settings, None)?;
    if stack.state != State::Detached {
        let hint = format!("{} if that is what an interrupted run left", settings.hint("detach"));
        return Err(Fault::busy(format!("something is {} already", stack.state.word())).hint(hint).into());
    }
    settings.reachable()?;
    let header = new_header(settings, &wanted.pbkdf)?;
    report.changed = true;
    let mut watch = settings.watch(false)?;
    image::make(settings, &mut watch).inspect_err(|error| doubt(settings, error, report))?;
    let result =
        undoing(settings, None, report, |report| fill(settings, wanted, size, &header, &mut watch, report));
    match result {
        Ok(record) => {
            facts::tell(settings, Some(&record), &stack::look(settings, Some(&record))?, report)?;
            let (image, size) = (settings.image.display(), size >> 20);
            common::say!(
                TOOL,
                "made {image}, {size} MiB; keep the key and a header backup somewhere else too"
            );
            record.tell_recovery_sheet(DATA_OFFSET);
            Ok(())
        }
        Err(error) => {
            remove(settings, report);
            report.changed = !report.leftovers().is_empty();
            Err(error)
        }
    }
}

fn nothing_there(settings: &Settings) -> Result<()> {
    let (header, record) = (&settings.header, Record::path(settings));
    for path in [header, &record] {
        if path.symlink_metadata().is_ok() {
            let what =
                format!("{} exists: this machine has a container of {}", path.display(), settings.name);
            let hint = format!(
                "nothing is overwritten. Is its image not there? Then S3's disk is not mounted there. Only if that container \
                 is given up for good, or was never finished: move {} and {} away; nothing else here opens it",
                header.display(),
                record.display()
            );
            return Err(Fault::config(what).hint(hint).into());
        }
    }
    Ok(())
}

/// A new header in memory. It is made in local files that only root can read, which are gone afterwards.
fn new_header(settings: &Settings, pbkdf: &Pbkdf) -> Result<Vec<u8>> {
    let scratch = Scratch::new(settings)?;
    let whole = scratch.file("new")?;
    std::fs::File::options().write(true).open(&whole)?.set_len(DATA_OFFSET + (1 << 20))?;
    let tool = &settings.cryptsetup;
    tool.format(&whole, &settings.key_file, DATA_OFFSET, pbkdf)?;
    let file = std::fs::File::open(&whole)?;
    scratch.header_by(|to| tool.header_backup(file.as_fd(), to))
}

/// From the header to a file system, all of it durable; what is returned is recorded.
fn fill(
    settings: &Settings,
    wanted: &Wanted,
    size: u64,
    header: &[u8],
    watch: &mut Watch,
    report: &mut Report,
) -> Result<Record> {
    let (copy, tool) = (&settings.header, &settings.cryptsetup);
    durable::write(copy, header, 0o600)?;
    let facts = Header::read(tool, copy)?;
    facts.strong()?;
    tool.must_open(copy, &settings.key_file)?;
    image::set_size(settings, size, watch)?;
    image::fits(header, facts.data_offset)?;
    image::put_header(settings, watch)?;
    let mapping = open(settings, &facts.cipher, false, watch, report)?;
    let device = mapping.device();
    wanted.file_system.make(&device, size - DATA_OFFSET, wanted.bytes_per_inode, watch)?;
    let mut record = Record::of(&facts, settings);
    record.left = Some(Left::Closed(Marks::read(wanted.file_system, &device, watch)?));
    record.file_system = Some(wanted.file_system.word().into());
    record.created_at = Some(status::now());
    if !take_down(settings, Some(&record), report)?.clean {
        return Err(Fault::unavailable("the link to the image died before all was written").into());
    }
    image::sync(settings, watch)?;
    record.save(settings)?;
    Ok(record)
}

/// Takes back what a failed `create` made.
fn remove(settings: &Settings, report: &mut Report) {
    for path in [&settings.header, &Record::path(settings)] {
        if path.exists()
            && let Err(e) = std::fs::remove_file(path)
        {
            report.left_behind(format!("{} of an unfinished container: {e}", path.display()), "remove it");
        }
    }
    // A file system that does not answer would keep us waiting for ever.
    let link = settings.link().ok().flatten();
    let answers = link.is_none_or(|l| fuse::probe(&l.target, PROBE).is_ok_and(|h| h == Health::Healthy));
    let removed = match answers {
        true => settings.watch(true).and_then(|mut watch| image::remove(settings, &mut watch)),
        false => Err(anyhow::anyhow!("its file system does not answer")),
    };
    if let Err(e) = removed {
        let what = format!("the unfinished image {}: {e:#}", settings.image.display());
        report.left_behind(what, "remove the file");
    }
}

/// Whoever was given up while it made the image may have made it.
fn doubt(settings: &Settings, error: &anyhow::Error, report: &mut Report) {
    if matches!(kind_of(error), Kind::Unavailable | Kind::Interrupted(_)) && mounts_fuse(settings) {
        let what = format!("the unfinished image {} may be there", settings.image.display());
        report.left_behind(what, "look once S3 answers again, and remove it if it is empty");
    }
}

fn mounts_fuse(settings: &Settings) -> bool {
    settings.link().is_ok_and(|link| link.is_some())
}

/// Files of the moment in the state folder, 0600. What a killed run left is replaced.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    const NAMES: [&str; 2] = ["new", "backup"];

    /// The caller holds the container's lock.
    pub(crate) fn new(settings: &Settings) -> Result<Scratch> {
        let scratch = Scratch { dir: settings.state.clone() };
        for name in Scratch::NAMES {
            durable::remove(&scratch.path(name))?;
        }
        Ok(scratch)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".container.header.{name}"))
    }

    /// A new empty file.
    fn file(&self, name: &str) -> Result<PathBuf> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path(name);
        let made = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// A new file with `bytes`.
    pub(crate) fn with(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.file(name)?;
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The header that `copy` brings into a new file.
    pub(crate) fn header_by(&self, copy: impl FnOnce(&Path) -> Result<()>) -> Result<Vec<u8>> {
        let path = self.path("backup");
        copy(&path)?;
        read(&path)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for name in Scratch::NAMES {
            // The next run replaces what stays.
            drop(std::fs::remove_file(self.path(name)));
        }
    }
}
