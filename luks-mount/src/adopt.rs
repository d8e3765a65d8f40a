//! Taking over an image that exists: its header is copied, judged, and believed this one time.

use anyhow::Result;
use common::durable;
use common::fault::Fault;
use common::status::{self, Report};

use crate::create::Scratch;
use crate::header::Header;
use crate::record::Record;
use crate::settings::Settings;
use crate::{TOOL, facts, image, key, stack};

/// `adopt`.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let _lock = settings.lock()?;
    key::check(&settings.key_file)?;
    settings.reachable()?;
    let known = Record::load(settings)?;
    if known.is_none() && settings.header.symlink_metadata().is_ok() {
        let what = format!("{} exists, but nothing is recorded of its container", settings.header.display());
        return Err(Fault::config(what).hint("nothing is overwritten; move it away").into());
    }
    let mut watch = settings.watch(false)?;
    let scratch = Scratch::new(settings)?;
    let bytes = scratch.header_by(|to| image::get_header(settings, to, &mut watch))?;
    let copy = scratch.with("new", &bytes)?;
    let header = Header::read(&settings.cryptsetup, &copy)?;
    header.strong()?;
    if let Some(known) = &known {
        same(known, &header, settings)?;
    } else {
        settings.cryptsetup.must_open(&copy, &settings.key_file)?;
        take(settings, &header, &bytes)?;
        report.changed = true;
        let slots: Vec<String> = header.key_slots.iter().map(u32::to_string).collect();
        report.warn(
            "header-believed",
            format!(
                "the image's header is believed this once; keys are in its slots {}: any that is not yours opens the \
                 container too",
                slots.join(", ")
            ),
        );
    }
    let record = Record::need(settings)?;
    facts::tell(settings, Some(&record), &stack::look(settings, Some(&record))?, report)?;
    common::say!(TOOL, "{}: LUKS{}, {}, {}", settings.name, header.luks_version, header.cipher, header.uuid);
    record.tell_recovery_sheet(header.data_offset);
    Ok(())
}

/// Header first: a record without one could not be told from a header that was lost.
fn take(settings: &Settings, header: &Header, bytes: &[u8]) -> Result<()> {
    durable::write(&settings.header, bytes, 0o600)?;
    let mut record = Record::of(header, settings);
    record.adopted_at = Some(status::now());
    record.save(settings).inspect_err(|_| {
        // The first error is the one that matters.
        drop(std::fs::remove_file(&settings.header));
    })
}

/// What is recorded is not believed anew.
fn same(known: &Record, header: &Header, settings: &Settings) -> Result<()> {
    if known.uuid != header.uuid {
        let what = format!(
            "this machine has another container of {}: recorded is {}, the image says {}",
            settings.name, known.uuid, header.uuid
        );
        let paths = (settings.header.display(), Record::path(settings));
        let hint = format!(
            "is it the right image? If the recorded one is given up, move {} and {} away",
            paths.0,
            paths.1.display()
        );
        return Err(Fault::config(what).hint(hint).into());
    }
    let ours = Header::read(&settings.cryptsetup, &settings.header)?;
    known.agrees(&ours, settings)
}
