//! The other end of the holder's socket: finding it, starting it, asking it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::fault::Fault;
use common::lock::Lock;
use common::processes::{Identity, Process};
use common::profile::Profile;
use common::program::Program;
use common::{durable, places, signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use crate::holder::{Reply, Request};

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
    let child = Program::own()?
        .cmd()
        .arg("holder")
        .arg(format!("--listen-fd={}", listener.as_raw_fd()))
        .arg(format!("--lock-fd={}", lock.fd()))
        .args(argv)
        .inherit(listener.as_raw_fd())
        .inherit(lock.fd())
        .outlives_us()
        .own_session()
        // Relative paths among the options mean here what they mean there. Of a folder that is gone there are none.
        .dir(std::env::current_dir().unwrap_or_else(|_| "/".into()))
        .start(Stdio::null(), Stdio::null())
        .context("cannot start the background process")?;
    // For who has to end it: the lock file names whoever started it.
    let noted = serde_json::to_vec(&Identity::of(child.id())).map_err(anyhow::Error::from);
    let noted = noted.and_then(|text| durable::write_soon(&path.with_extension("pid"), &text, 0o600));
    child.detach();
    noted?;
    // From here on it is the one that listens.
    drop((listener, lock));
    call(profile, &Request::Ready)
}

/// Asks; [`common::fault::Kind::Failed`] if there is nobody, and [`common::fault::Kind::Unavailable`] if it says nothing.
pub(crate) fn call<T: DeserializeOwned>(profile: &Profile, request: &Request) -> Result<T> {
    let lost = || Fault::failed("the background process that holds the database is gone");
    let stream = connect(&socket(profile)?).map_err(|e| anyhow::Error::from(e).context(lost()))?;
    writeln!(&stream, "{}", serde_json::to_string(request)?)
        .map_err(|e| anyhow::Error::from(e).context(lost()))?;
    let line = answer(&stream, request, request.patience(profile))?;
    match serde_json::from_slice(&line).map_err(|e| anyhow::Error::from(e).context(lost()))? {
        Reply::Ok(value) => {
            serde_json::from_value(value).context("the background process said something odd")
        }
        Reply::Err(code, described) => Err(Fault::relay(code, described).into()),
    }
}

/// Reads up to the end, which comes with the answer: not for ever, and not when we are asked to stop, unless it is to clean up.
fn answer(mut stream: &UnixStream, request: &Request, patience: Duration) -> Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let heed = signals::caught().is_none() && !matches!(request, Request::Release);
    let mut line = Vec::new();
    loop {
        if heed {
            signals::check()?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        fds.extend(signals::fd().filter(|_| heed).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) => {
                let secs = patience.as_secs();
                return Err(Fault::unavailable(format!(
                    "the background process that holds the database has not answered for {secs} s"
                ))
                .hint("`pg-snap release` ends it")
                .into());
            }
            Ok(_) if !fds[0].any().unwrap_or(true) => continue,
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e).context("cannot wait for the background process"),
        }
        let mut buffer = [0; 16384];
        match stream.read(&mut buffer).context("cannot read from the background process")? {
            0 => return Ok(line),
            n => line.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Ends a holder that does not answer. Its sessions end with it.
pub(crate) fn end_by_force(profile: &Profile) -> Result<()> {
    let path = socket(profile)?;
    let text = std::fs::read(path.with_extension("pid")).context("its number is not known")?;
    let holder: Identity = serde_json::from_slice(&text).context("its number is not known")?;
    ensure!(holder.lives(), "process {} is gone, or another one", holder.pid);
    ensure!(holder.end(Duration::from_secs(5))?, "process {} is stuck in the kernel", holder.pid);
    common::say!("pg-snap", "the background process did not answer, and was ended");
    std::fs::remove_file(&path).ok();
    Ok(())
}

/// Who started us, beyond sudo: the run that this is a part of. None if it is gone.
pub(crate) fn caller() -> Option<u32> {
    let mut pid = u32::try_from(nix::unistd::getppid().as_raw()).ok()?;
    // sudo has a process of its own for the terminal, too.
    for _ in 0..4 {
        let process = Process::find(pid)?;
        if process.name != "sudo" {
            break;
        }
        pid = process.parent;
    }
    (pid > 1).then_some(pid)
}
