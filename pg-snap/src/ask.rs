//! The other end of the holder's socket: finding it, starting it, asking it.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::lock::Lock;
use common::places;
use common::profile::Profile;
use common::run::Cmd;
use serde::de::DeserializeOwned;

use crate::holder::{Answer, Ask};

/// Where the holder of `profile` listens.
pub(crate) fn socket(profile: &Profile) -> Result<PathBuf> {
    Ok(places::runtime(profile)?.join("holder.sock"))
}

/// Whether one is there.
pub(crate) fn running(profile: &Profile) -> Result<bool> {
    Ok(connect(&socket(profile)?).is_ok())
}

/// Socket addresses hold 107 bytes; a path through an open directory is always short.
fn with_short_name<T>(path: &Path, then: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(dir)?;
    then(&Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
}

fn connect(path: &Path) -> std::io::Result<UnixStream> {
    with_short_name(path, |p| UnixStream::connect(p))
}

/// Starts a holder unless there is one; `argv` are its options. It answers when its sessions are open.
pub(crate) fn start(profile: &Profile, argv: &[OsString]) -> Result<()> {
    let path = socket(profile)?;
    if connect(&path).is_ok() {
        return Ok(());
    }
    // One that is about to end still has it.
    let patience = std::time::Duration::from_secs(5);
    let lock = Lock::exclusive_within(&path.with_extension("lock"), "the holder of the database", patience)?;
    if let Err(e) = std::fs::remove_file(&path)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(e).with_context(|| format!("cannot remove {}", path.display()));
    }
    let listener = with_short_name(&path, |p| UnixListener::bind(p))
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let child = Cmd::new(std::env::current_exe().context("cannot find our own program")?)
        .arg("holder")
        .arg(format!("--listen-fd={}", listener.as_raw_fd()))
        .arg(format!("--lock-fd={}", lock.fd()))
        .args(argv)
        .inherit(listener.as_raw_fd())
        .inherit(lock.fd())
        .outlives_us()
        .own_session()
        // Relative paths among the options mean here what they mean there.
        .dir(std::env::current_dir().context("cannot find the current folder")?)
        .start(Stdio::null(), Stdio::null())
        .context("cannot start the background process")?;
    child.detach();
    Ok(())
}

/// Asks; [`common::fault::Kind::Failed`] if there is nobody.
pub(crate) fn ask<T: DeserializeOwned>(profile: &Profile, question: &Ask) -> Result<T> {
    let lost = || Fault::failed("the background process that holds the database is gone");
    let stream = connect(&socket(profile)?).map_err(|e| anyhow::Error::from(e).context(lost()))?;
    writeln!(&stream, "{}", serde_json::to_string(question)?)
        .map_err(|e| anyhow::Error::from(e).context(lost()))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(|e| anyhow::Error::from(e).context(lost()))?;
    match serde_json::from_str(&line).map_err(|e| anyhow::Error::from(e).context(lost()))? {
        Answer::Ok(value) => {
            serde_json::from_value(value).context("the background process said something odd")
        }
        Answer::Err(code, described) => Err(Fault::relay(code, described).into()),
    }
}
