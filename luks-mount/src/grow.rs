//! Making the container bigger: image, loop device, mapping, file system, while it is mounted.

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::Report;

use crate::attach::{How, ready, up};
use crate::detach::take_down;
use crate::fs::FileSystem;
use crate::record::Record;
use crate::settings::Settings;
use crate::stack::{self, State};
use crate::watch::Watch;
use crate::{TOOL, facts, image, losetup};

/// `grow`: attaches what is detached for the time of it. Once the image is bigger, the same again finishes what an
/// interrupted run began.
pub(crate) fn run(settings: &Settings, size: u64, report: &mut Report) -> Result<()> {
    let size = size & !0xF_FFFF;
    let _lock = settings.lock()?;
    let mut record = Record::need(settings)?;
    ready(settings, &record)?;
    let mut watch = settings.watch(false)?;
    let before = image::look(settings, 0, &mut watch)?.bytes;
    if size < before {
        let what = format!("--size: the image has {before} bytes; a container only grows");
        return Err(Fault::config(what).into());
    }
    let stack = stack::look(settings, Some(&record))?;
    let was_attached = match stack.state {
        State::Detached => false,
        State::Attached if stack.mapping.as_ref().is_some_and(|m| !m.read_only) => true,
        state => {
            let what = format!("the container is {} (or read-only)", state.word());
            return Err(Fault::busy(what).hint(format!("{} first", settings.hint("detach"))).into());
        }
    };
    if !was_attached {
        settings.prepare_mount_point()?;
        up(settings, &mut record, How::Writing { accept: false }, report)?;
    }
    let grown = (|| {
        if size > before {
            image::set_size(settings, size, &mut watch).context("cannot make the image bigger")?;
        }
        layers(settings, &record, &mut watch)
    })();
    facts::tell_what_can_be(settings, &record, report);
    if !was_attached {
        let down = take_down(settings, Some(&record), report);
        if grown.is_ok() && !down?.clean {
            return Err(Fault::unavailable("the link to the image died before all was written").into());
        }
        facts::tell(settings, Some(&record), &stack::look(settings, Some(&record))?, report)?;
    }
    report.changed =
        grown.context("if the image is bigger already, the same again continues")? || size > before;
    common::say!(TOOL, "{} has {} MiB now", settings.name, size >> 20);
    Ok(())
}

/// Each layer takes what the one below it has. Whether the file system became bigger.
fn layers(settings: &Settings, record: &Record, watch: &mut Watch) -> Result<bool> {
    let stack = stack::look(settings, Some(record))?;
    let (Some(device), Some(mapping)) = (stack.loops.first(), &stack.mapping) else {
        return Err(Fault::failed("the container is not attached any more").into());
    };
    watch.device = Some(device.name.clone());
    losetup::refresh(device, watch)?;
    let sectors = || std::fs::read_to_string(losetup::sys(&mapping.dm).join("size")).unwrap_or_default();
    let before = sectors();
    settings.cryptsetup.resize(&settings.header, &settings.key_file, &mapping.name, watch)?;
    let word = record.file_system.as_deref().unwrap_or_default();
    FileSystem::from_word(word)?.grow(&mapping.device(), &settings.mount_point, watch)?;
    Ok(sectors() != before)
}
