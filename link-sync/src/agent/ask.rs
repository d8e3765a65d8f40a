//! Who asks the agent: starts it if need be, shows its steps, and passes on its answer.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::program::Program;
use common::signals;
use common::status::Report;

use super::{Action, Ask, Done, Say, lock, socket};
use crate::progress;
use crate::session::Allow;
use crate::settings::Settings;
use crate::watch::Watch;

/// How long the agent may take to end what it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether an agent answers for `runtime`.
pub fn running(runtime: &Path) -> Option<UnixStream> {
    connect(&socket(runtime)).ok()
}

/// Socket addresses hold 107 bytes; a path through an open directory is always short.
fn connect(path: &Path) -> std::io::Result<UnixStream> {
    with_short_name(path, |p| UnixStream::connect(p))
}

fn with_short_name<T>(path: &Path, then: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(dir)?;
    then(&Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
}

/// Starts the agent, with the same options as `stage` got. Returns a connection to it.
pub fn start(settings: &Settings, argv: &[OsString]) -> Result<UnixStream> {
    let path = socket(&settings.runtime);
    let lock = lock(&settings.runtime)?;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    let listener = with_short_name(&path, |p| UnixListener::bind(p))
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let child = Program::own()?
        .cmd()
        .arg("agent")
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
    child.detach();
    connect(&path).with_context(|| format!("cannot connect to {}", path.display()))
}

/// Asks the agent at the other end of `stream`, shows its steps, and fills the report with its answer.
pub fn ask(
    stream: UnixStream,
    action: Action,
    chosen: &[String],
    allow: Allow,
    report: &mut Report,
) -> Result<()> {
    let ask = Ask { action, chosen: chosen.to_vec(), allow };
    let lost = || {
        Fault::failed("the background process of this snapshot died")
            .hint("run again: what has arrived is kept")
    };
    writeln!(&stream, "{}", serde_json::to_string(&ask)?)
        .map_err(|e| anyhow::Error::from(e).context(lost()))?;
    let stopper = stream.try_clone().context("cannot copy a socket")?;
    // The agent sees that nothing more will come, stops, and answers.
    let stop = move || {
        stopper.shutdown(Shutdown::Write).unwrap_or(());
        // One that does not even answer that (it may be stopped itself) is waited for no longer.
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            stopper.shutdown(Shutdown::Both).unwrap_or(());
        });
    };
    let watch = signals::fd().map(|signal| Watch::start(signal, stop)).transpose()?;
    let late = stream.try_clone().context("cannot copy a socket")?;
    let late = allow.max_time.map(|limit| {
        Watch::after(limit.saturating_add(PATIENCE), move || late.shutdown(Shutdown::Both).unwrap_or(()))
    });
    let late = late.transpose()?;
    let bar = progress::terminal_bar();
    let mut done = None;
    for line in BufReader::new(&stream).lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line).context("the background process said something odd")? {
            Say::Step(step) => progress::show(&bar, &step),
            Say::Done(end) => done = Some(end),
        }
    }
    drop((watch, late));
    bar.finish_and_clear();
    signals::check()?;
    let Done { changed, partial, data, warnings, error } = done.ok_or_else(lost)?;
    report.changed = changed;
    if partial {
        report.set_partial();
    }
    report.data.extend(data);
    for warning in warnings {
        report.warn_value(warning);
    }
    error.map_or(Ok(()), |(code, described)| Err(Fault::relay(code, described).into()))
}
