//! Attaching: loop device, mapping by our own header, check if needed, mount. A failure undoes what was done.

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::{Report, now};
use common::{mutant, signals};

use crate::begun::Begun;
use crate::detach::take_down;
use crate::fs::{self, FileSystem};
use crate::header::Header;
use crate::marks::{self, Left, Marks};
use crate::record::Record;
use crate::settings::Settings;
use crate::stack::{self, Mapping, State};
use crate::watch::Watch;
use crate::{dmsetup, facts, holding, image, key, writeback};

/// What it is attached for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Looking and restoring.
    Reading,
    /// `accept`: also one that is not as this machine left it.
    Writing { accept: bool },
}

/// `attach`.
pub(crate) fn run(settings: &Settings, how: How, report: &mut Report) -> Result<()> {
    let read_only = how == How::Reading;
    let _lock = settings.lock()?;
    let mut record = Record::need(settings)?;
    let stack = stack::look(settings, Some(&record))?;
    let done = match stack.state {
        State::Detached => false,
        State::Attached if stack.mapping.as_ref().is_some_and(|m| m.read_only == read_only) => true,
        State::Foreign => {
            let what = stack.foreign.clone().unwrap_or_default();
            return Err(Fault::busy(format!("it is in use already: {what}")).into());
        }
        state => {
            let mode = if read_only { "read-only" } else { "for writing" };
            let what = format!("the container is {} already, not attached {mode}", state.word());
            return Err(Fault::busy(what).hint(format!("{} first", settings.hint("detach"))).into());
        }
    };
    if !done {
        ready(settings, &record)?;
        settings.prepare_mount_point()?;
        up(settings, &mut record, how, report)?;
        report.changed = true;
    }
    facts::tell_what_can_be(settings, &record, report);
    let already = if done { " already" } else { "" };
    common::say!(crate::TOOL, "{} is attached{already} on {}", settings.name, settings.mount_point.display());
    Ok(())
}

/// Everything that can be judged before anything is touched: key, our header, reachability.
pub(crate) fn ready(settings: &Settings, record: &Record) -> Result<()> {
    key::check(&settings.key_file)?;
    let header = Header::read(&settings.cryptsetup, &settings.header)?;
    record.agrees(&header, settings)?;
    header.strong()?;
    settings.reachable()
}

/// Brings all layers up, or none.
pub(crate) fn up(settings: &Settings, record: &mut Record, how: How, report: &mut Report) -> Result<()> {
    let read_only = how == How::Reading;
    let mut watch = settings.watch(false)?;
    compare(settings, record, &mut watch, report)?;
    undoing(settings, Some(&record.clone()), report, |report| {
        match how {
            How::Reading => holding::tell(settings, record, &mut watch, report)?,
            How::Writing { accept } => holding::take(settings, record, accept, &mut watch, report)?,
        }
        let mapping = open(settings, &record.cipher, read_only, &mut watch, report)?;
        let file_system = match record.file_system.as_deref() {
            Some(word) => FileSystem::from_word(word)?,
            None => FileSystem::find(&mapping.device(), &mut watch)?,
        };
        as_it_was_left(settings, record, file_system, &mapping, how, &mut watch, report)?;
        let way = fs::How { read_only, suspect: record.check_needed, layers: settings.layers };
        file_system.mount(&mapping.device(), &settings.mount_point, way, &mut watch, report)?;
        let stack = stack::look(settings, Some(record))?;
        let Some(mount) = stack.mounts.last().filter(|_| stack.state == State::Attached) else {
            let state = stack.state.word();
            return Err(Fault::failed(format!("it was mounted, and now it is {state}")).into());
        };
        if !read_only {
            writeback::set(&mapping, mount);
        }
        signals::check()?;
        let mut known = record.clone();
        known.file_system = Some(file_system.word().to_owned());
        // It has been checked.
        known.check_needed &= read_only;
        if !read_only {
            known.left = Some(Left::Open(Marks::read(file_system, &mapping.device(), &mut watch)?));
        }
        if known != *record {
            known.save(settings)?;
            *record = known;
        }
        Ok(())
    })
}

/// Looks, before anything is replayed, checked or changed, whether this is what this machine left behind, and notes
/// durably that it is about to be changed.
///
/// Once that holds, mounting it for writing does no harm, though only what is inside tells the generation: a container
/// whose superblock is the one that this machine closed is the one whose generation it was content with then.
fn as_it_was_left(
    settings: &Settings,
    record: &mut Record,
    file_system: FileSystem,
    mapping: &Mapping,
    how: How,
    watch: &mut Watch,
    report: &mut Report,
) -> Result<()> {
    let found = Marks::read(file_system, &mapping.device(), watch)?;
    let why = marks::objection(record.left.as_ref(), &found, record.check_needed);
    match (why, how) {
        (None, _) => {}
        (Some(why), How::Reading) => {
            report.warn("not-as-left", format!("the container is not as this machine left it: {why}"));
        }
        (Some(why), How::Writing { accept: true }) => {
            report.warn("container-accepted", format!("the container is taken as it is: {why}"));
            record.accepted_at = Some(now());
        }
        (Some(why), How::Writing { accept: false }) => return Err(marks::refusal(&why, &settings.name)),
    }
    report.set("accepted_at", record.accepted_at.clone());
    if how != How::Reading {
        record.left = Some(Left::Opening(found));
        record.save(settings)?;
    }
    Ok(())
}

/// Does `work`, and takes everything down again if it fails. The first error is the one that is told.
pub(crate) fn undoing<T>(
    settings: &Settings,
    record: Option<&Record>,
    report: &mut Report,
    work: impl FnOnce(&mut Report) -> Result<T>,
) -> Result<T> {
    let result = work(report);
    if let Err(error) = &result {
        // All of it is told at the end. This is here for the case that something worse follows.
        let what = error.to_string();
        common::say!(crate::TOOL, "undoing: {}", what.split(": ").next().unwrap_or(&what));
        if let Err(second) = take_down(settings, record, report) {
            report.warn("undo-failed", format!("while undoing: {second:#}"));
        }
    }
    result
}

/// The loop device and the mapping on it. Its cipher is looked at before anything is read or written through it.
pub(crate) fn open(
    settings: &Settings,
    cipher: &str,
    read_only: bool,
    watch: &mut Watch,
    report: &mut Report,
) -> Result<Mapping> {
    let device =
        image::attach(settings, read_only, watch).context("cannot make a loop device for the image")?;
    Begun::save(settings, &device)?;
    watch.device = Some(device.name.clone());
    if !device.is_direct() {
        report
            .warn("not-direct", "the image goes through the page cache: its file system knows no direct I/O");
    }
    signals::check()?;
    let (name, tool) = (&settings.mapping, &settings.cryptsetup);
    tool.open(&settings.header, &settings.key_file, &device.device(), name, read_only, watch)?;
    let active = dmsetup::cipher(name, watch)?;
    if active != cipher && !mutant::active("any-cipher-will-do") {
        return Err(Fault::config(format!("it was opened with {active} instead of {cipher}")).into());
    }
    let mapping = stack::find_mapping(name).context("the mapping is not there")?;
    signals::check()?;
    Ok(mapping)
}

/// Says if the image's header is not ours. It makes no difference to us, but this may be another file, or somebody may have
/// tried something.
fn compare(settings: &Settings, record: &Record, watch: &mut Watch, report: &mut Report) -> Result<()> {
    let header = Header::read(&settings.cryptsetup, &settings.header)?;
    let image = image::look(settings, header.compared(), watch)?;
    if image.bytes <= header.data_offset {
        let what = format!("the image {} is too short to hold anything", settings.image.display());
        return Err(Fault::config(what).into());
    }
    if !image.same_header {
        let image_name = settings.image.display();
        let what = match image.stranger(record) {
            Some(uuid) => format!(
                "{image_name} says that it is another container, {uuid}, and not this machine's, {}: is the right disk \
                 mounted at {}? Its header is not used, and not touched",
                record.uuid,
                settings.home()?
            ),
            None => format!(
                "the header in {image_name} is not the one it should have. This may be another file: is the right disk \
                 mounted at {}? The header is not used. Only if this is surely our container, and its header damaged or \
                 changed by somebody: {} with the present key puts ours there again",
                settings.home()?,
                settings.hint("add-key")
            ),
        };
        report.warn("header-differs", what);
    }
    Ok(())
}
