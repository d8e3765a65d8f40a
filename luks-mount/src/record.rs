//! What this machine knows of its container, whatever the image says: `container.json` in the state folder.

use std::path::PathBuf;

use anyhow::Result;
use common::durable;
use common::fault::Fault;
use serde::{Deserialize, Serialize};

use crate::header::Header;
use crate::lease::Held;
use crate::marks::{Left, Marks};
use crate::settings::Settings;

/// The content of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// As LUKS writes it.
    pub(crate) uuid: String,
    /// 1 or 2.
    pub(crate) luks_version: u32,
    /// Like `aes-xts-plain64`. No other is ever opened.
    pub(crate) cipher: String,
    /// Bytes.
    pub(crate) sector_size: u64,
    /// Size of the volume key.
    pub(crate) key_bytes: u64,
    /// Where the image was, for people.
    pub(crate) image: String,
    /// `ext4` or `btrfs`; not known until an adopted container was first opened.
    pub(crate) file_system: Option<String>,
    /// RFC 3339 UTC.
    #[serde(default)]
    pub(crate) created_at: Option<String>,
    /// RFC 3339 UTC.
    #[serde(default)]
    pub(crate) adopted_at: Option<String>,
    /// Not all that was written may have reached the image: ext4 is checked before it is written to again.
    #[serde(default)]
    pub(crate) check_needed: bool,
    /// How this machine left the file system; not known of one that was adopted.
    #[serde(default)]
    pub(crate) left: Option<Left>,
    /// When it was last opened for writing though it was not as this machine left it, RFC 3339 UTC.
    #[serde(default)]
    pub(crate) accepted_at: Option<String>,
    /// Its lease, while it writes, and after it was cut off.
    #[serde(default)]
    pub(crate) lease: Option<Held>,
}

impl Record {
    /// A record of a container with this header.
    pub(crate) fn of(header: &Header, settings: &Settings) -> Record {
        Record {
            uuid: header.uuid.clone(),
            luks_version: header.luks_version,
            cipher: header.cipher.clone(),
            sector_size: header.sector_size,
            key_bytes: header.key_bytes,
            image: settings.image.to_string_lossy().into_owned(),
            file_system: None,
            created_at: None,
            adopted_at: None,
            check_needed: false,
            left: None,
            accepted_at: None,
            lease: None,
        }
    }

    /// Where it is.
    pub(crate) fn path(settings: &Settings) -> PathBuf {
        settings.state.join("container.json")
    }

    /// The record, if there is one.
    pub(crate) fn load(settings: &Settings) -> Result<Option<Record>> {
        let path = Record::path(settings);
        let Some(bytes) = durable::read(&path)? else { return Ok(None) };
        let damaged = |e| Fault::config(format!("{} is damaged: {e}", path.display()));
        Ok(Some(serde_json::from_slice(&bytes).map_err(damaged)?))
    }

    /// The record, or an error that says how to get one.
    pub(crate) fn need(settings: &Settings) -> Result<Record> {
        Record::load(settings)?.ok_or_else(|| {
            let what = format!("this machine knows no container of {}", settings.name);
            let (create, adopt) = (settings.hint("create"), settings.hint("adopt"));
            Fault::config(what).hint(format!("{create} makes one, {adopt} takes over an image")).into()
        })
    }

    /// Writes it; durable on return.
    pub(crate) fn save(&self, settings: &Settings) -> Result<()> {
        durable::write(&Record::path(settings), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// Notes that the file system is to be checked before the next writing; durable on return. Without a record, as
    /// while a container is being made, there is nothing to be noted.
    pub(crate) fn note_check(settings: &Settings) -> Result<()> {
        match Record::load(settings)? {
            Some(mut record) if !record.check_needed => {
                record.check_needed = true;
                record.save(settings)
            }
            _ => Ok(()),
        }
    }

    /// Notes how the file system was left; durable on return. Without a record there is nothing to be noted.
    pub(crate) fn note_closed(settings: &Settings, marks: Marks) -> Result<()> {
        match Record::load(settings)? {
            Some(mut record) => {
                record.left = Some(Left::Closed(marks));
                record.save(settings)
            }
            None => Ok(()),
        }
    }

    /// Says what must be known to recognise the container without this machine.
    pub(crate) fn tell_recovery_sheet(&self, data_offset: u64) {
        let (cipher, sector) = (&self.cipher, data_offset / 512);
        common::say!(
            crate::TOOL,
            "for docs/disaster-recovery.md, to be noted beside the key: CIPHER={cipher} OFFSET={sector}"
        );
    }

    /// An error unless `header` is of this container, with the very encryption it had from the beginning.
    pub(crate) fn agrees(&self, header: &Header, settings: &Settings) -> Result<()> {
        let ours = (&self.uuid, self.luks_version, &self.cipher, self.sector_size, self.key_bytes);
        let copy = (&header.uuid, header.luks_version, &header.cipher, header.sector_size, header.key_bytes);
        if ours == copy {
            return Ok(());
        }
        let what = format!(
            "the header {} is not that of the recorded container: it says {} {}, {} says {} {}",
            settings.header.display(),
            header.uuid,
            header.cipher,
            Record::path(settings).display(),
            self.uuid,
            self.cipher
        );
        Err(Fault::config(what).hint("put back the header of a backup that `backup-header` made").into())
    }
}
