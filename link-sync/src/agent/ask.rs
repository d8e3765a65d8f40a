//! Who asks the agent: starts it if need be, shows its steps, and passes on its answer.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::Report;
use common::{background, signals};

use super::{Ask, Ended, Say, Task, lock, socket};
use crate::progress::Shown;
use crate::session::Allow;
use crate::settings::Settings;
use crate::watch::Watch;

/// How long the agent may take to end what it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether an agent answers for `runtime`.
pub fn running(runtime: &Path) -> Option<UnixStream> {
    background::connect(&socket(runtime)).ok()
}

/// Starts the agent, with the same options as `stage` got. Returns a connection to it.
pub fn start(settings: &Settings, argv: &[OsString]) -> Result<UnixStream> {
    let path = socket(&settings.runtime);
    let lock = lock(&settings.runtime)?;
    let (child, _listener) = background::start(&path, &lock, "agent", argv)?;
    child.detach();
    background::connect(&path).with_context(|| format!("cannot connect to {}", path.display()))
}

/// Asks the agent at the other end of `stream`, shows its steps, and fills the report with its answer.
pub fn ask(
    stream: UnixStream,
    action: Task,
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
    let shown = Shown::begin();
    let mut done = None;
    for line in BufReader::new(&stream).lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line).context("the background process said something odd")? {
            Say::Step(step) => shown.step(&step),
            Say::Done(end) => done = Some(end),
        }
    }
    drop((watch, late, shown));
    signals::check()?;
    let Ended { changed, partial, data, warnings, error } = done.ok_or_else(lost)?;
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
