//! Keys and headers: a second key, and a copy of the header for somewhere else.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::Fault;
use common::status::Report;

use crate::create::Scratch;
use crate::cryptsetup::Pbkdf;
use crate::header::Header;
use crate::record::Record;
use crate::settings::Settings;
use crate::{TOOL, attach, facts, image, key, stack};

/// `add-key`: first our copy, proven with both keys, then the image's header. With a key that opens it already, only
/// the image's header is made equal to ours.
pub(crate) fn add(settings: &Settings, new: &Path, pbkdf: &Pbkdf, report: &mut Report) -> Result<()> {
    let new = std::path::absolute(new)?;
    let _lock = settings.lock()?;
    let record = Record::need(settings)?;
    attach::ready(settings, &record)?;
    key::check(&new)?;
    let mut watch = settings.watch(false)?;
    image::look(settings, 0, &mut watch)?;
    let (tool, copy) = (&settings.cryptsetup, &settings.header);
    tool.must_open(copy, &settings.key_file)?;
    let has_it = tool.opens(copy, &new)?;
    let bytes = std::fs::read(copy).with_context(|| format!("cannot read {}", copy.display()))?;
    image::fits(&bytes, Header::read(tool, copy)?.data_offset)?;
    if !has_it {
        let scratch = Scratch::new(settings)?;
        let next = scratch.with("new", &bytes)?;
        tool.add_key(&next, &settings.key_file, &new, pbkdf)?;
        let header = Header::read(tool, &next)?;
        record.agrees(&header, settings)?;
        tool.must_open(&next, &settings.key_file)?;
        tool.must_open(&next, &new)?;
        let bytes = std::fs::read(&next)?;
        image::fits(&bytes, header.data_offset)?;
        durable::write(copy, &bytes, 0o600)?;
        report.changed = true;
    }
    let written = image::put_header(settings, &mut watch)
        .context("this machine's header has the key, the image's has not; `add-key` again finishes it")?;
    report.changed |= written > 0;
    report.set("header_bytes_written", written);
    facts::tell(settings, Some(&record), &stack::look(settings, Some(&record))?, report)?;
    let what = if has_it { "opened it already" } else { "opens it now, too: make a new header backup" };
    common::say!(TOOL, "the key {} {what}", new.display());
    Ok(())
}

/// `backup-header`: needs no image.
pub(crate) fn backup(settings: &Settings, to: &Path, report: &mut Report) -> Result<()> {
    let to = std::path::absolute(to)?;
    let record = Record::need(settings)?;
    key::check(&settings.key_file)?;
    let tool = &settings.cryptsetup;
    record.agrees(&Header::read(tool, &settings.header)?, settings)?;
    if to.symlink_metadata().is_ok() {
        let what = format!("--to {}: this exists, and nothing is overwritten", to.display());
        return Err(Fault::config(what).into());
    }
    if !to.parent().is_some_and(Path::is_dir) {
        return Err(Fault::config(format!("--to {}: there is no such folder", to.display())).into());
    }
    let bytes = std::fs::read(&settings.header)?;
    write_new(&to, &bytes)?;
    let proven = std::fs::read(&to)
        .context("cannot read it back")
        .and_then(
            |back| if back == bytes { Ok(()) } else { Err(Fault::failed("it reads back different").into()) },
        )
        .and_then(|()| tool.must_open(&to, &settings.key_file));
    if let Err(error) = proven {
        // The first error is the one that matters.
        drop(std::fs::remove_file(&to));
        return Err(error);
    }
    report.changed = true;
    report.set_text("backup", to.as_os_str());
    facts::tell(settings, Some(&record), &stack::look(settings, Some(&record))?, report)?;
    common::say!(TOOL, "the header is in {}, and the key opens it", to.display());
    Ok(())
}

/// A new file, durable, for root alone where the file system knows that.
fn write_new(to: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let what = || format!("cannot write {}", to.display());
    let open = std::fs::File::options().write(true).create_new(true).mode(0o600).open(to);
    let mut file = open.with_context(what)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(e) = written {
        // The first error is the one that matters.
        drop(std::fs::remove_file(to));
        return Err(e).with_context(what);
    }
    // A USB stick's file system may know no modes.
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).ok();
    durable::sync_dir(to.parent().unwrap_or(Path::new("/")))
}
