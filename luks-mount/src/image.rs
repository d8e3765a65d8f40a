//! The container's file, as seen from here: never touched by this process.
//! Each touch is a child's ([`crate::touch`]), which is watched, given up when nothing moves any more, and freed by
//! ending the link below it.

use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind};
use common::fuse;
use common::program::Program;
use common::run::Cmd;
use nix::sys::stat::SFlag;
use serde_json::Value;

use crate::losetup::{self, Loop};
use crate::record::Record;
use crate::settings::Settings;
use crate::watch::{PROBE, Watch};

/// What a look at the image tells.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// Its size.
    pub(crate) bytes: u64,
    /// Its header is ours.
    pub(crate) same_header: bool,
    /// Of the LUKS container that its header says it is.
    uuid: Option<String>,
}

impl Look {
    /// The UUID of a container that is not the recorded one.
    pub(crate) fn stranger(&self, record: &Record) -> Option<&str> {
        self.uuid.as_deref().filter(|uuid| *uuid != record.uuid)
    }
}

/// Has a child of ours do `what` with it, told as `with` says; its answer.
pub(crate) fn touch(
    settings: &Settings,
    what: &str,
    watch: &mut Watch,
    with: impl FnOnce(Cmd) -> Cmd,
) -> Result<Value> {
    let cmd = with(Program::own()?.cmd().args(["touch", what, "--image"]).arg(&settings.image));
    let cmd = if Record::path(settings).exists() { cmd.arg("--home").arg(settings.home()?) } else { cmd };
    let output = watch.output(&cmd)?;
    match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(value) if output.status.success() => Ok(value),
        Ok(mut error) => {
            let code = output.status.code().unwrap_or(1);
            if Kind::from_exit_code(code) == Kind::Unavailable && error["hint"].is_null() {
                error["hint"] = format!("`sshfs-mount mount {}`", settings.name).into();
            }
            Err(Fault::relay(code, error).into())
        }
        Err(_) => Err(cmd.failure(&output).into()),
    }
}

/// Looks at it, and compares its first `compared` bytes with this machine's header.
pub(crate) fn look(settings: &Settings, compared: usize, watch: &mut Watch) -> Result<Look> {
    let with = |cmd: Cmd| cmd.arg("--header").arg(&settings.header).arg("--bytes").arg(compared.to_string());
    let told = touch(settings, "look", watch, with)?;
    let bytes = told["bytes"].as_u64().context("the image's size is not told")?;
    let uuid = told["uuid"].as_str().map(str::to_owned);
    Ok(Look { bytes, same_header: told["same_header"] == true, uuid })
}

/// Makes a new one; an existing file is never touched.
pub(crate) fn make(settings: &Settings, watch: &mut Watch) -> Result<()> {
    touch(settings, "make", watch, |cmd| cmd).map(drop)
}

/// Gives it its size; durable on return.
pub(crate) fn set_size(settings: &Settings, bytes: u64, watch: &mut Watch) -> Result<()> {
    touch(settings, "size", watch, |cmd| cmd.arg("--bytes").arg(bytes.to_string())).map(drop)
}

/// Writes this machine's header, which [`fits`], at its start, where it differs from what is there; durable on return. The
/// number of bytes written.
pub(crate) fn put_header(settings: &Settings, watch: &mut Watch) -> Result<u64> {
    let told = touch(settings, "put-header", watch, |cmd| cmd.arg("--header").arg(&settings.header))?;
    told.as_u64().context("it is not told how much was written")
}

/// Copies its header to the local file `to`, which must not exist.
pub(crate) fn get_header(settings: &Settings, to: &Path, watch: &mut Watch) -> Result<()> {
    let words = settings.cryptsetup.argv().iter().map(|word| format!("--cryptsetup={word}"));
    touch(settings, "get-header", watch, |cmd| cmd.arg("--header").arg(to).args(words)).map(drop)
}

/// Makes a loop device for it.
pub(crate) fn attach(settings: &Settings, read_only: bool, watch: &mut Watch) -> Result<Loop> {
    let told = touch(settings, "loop", watch, |cmd| cmd.args(read_only.then_some("--read-only")))?;
    told.as_str().and_then(losetup::one).context("the loop device is not there any more")
}

/// Makes all that was written to it durable.
pub(crate) fn sync(settings: &Settings, watch: &mut Watch) -> Result<()> {
    touch(settings, "sync", watch, |cmd| cmd).map(drop)
}

/// Removes it.
pub(crate) fn remove(settings: &Settings, watch: &mut Watch) -> Result<()> {
    touch(settings, "remove", watch, Cmd::uninterruptible).map(drop)
}

/// Its size, if it can be told. A link that answered a moment ago may hang now, and is not waited for.
pub(crate) fn size(settings: &Settings) -> Result<Option<u64>> {
    let stat = Cmd::new("stat").args(["-c", "%f %s", "--"]).arg(&settings.image).uninterruptible();
    let Some(output) = fuse::ask(&stat, PROBE)?.filter(|o| o.status.success()) else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stdout);
    let (mode, bytes) = text.trim().split_once(' ').unwrap_or_default();
    let is_file =
        u32::from_str_radix(mode, 16).is_ok_and(|m| m & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits());
    Ok(bytes.parse().ok().filter(|_| is_file))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_never_reaches_into_the_data() {
        assert!(fits(&[0; 4096], 4096).is_ok());
        let error = fits(&[0; 4097], 4096).unwrap_err();
        assert_eq!(common::fault::kind_of(&error), common::fault::Kind::Config);
    }
}
