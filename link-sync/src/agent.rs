//! The process that owns a snapshot between `stage`, `settle` and `publish`: the connection, the store's
//! lock, and what is known of the partial snapshot. Started by the first `stage`; ends with `publish`, `abort`, any
//! failure, or when nobody asks for `--max`. It holds no file of the caller.
//!
//! It listens on `agent.sock` in the runtime folder (0700). One JSON line asks, JSON lines answer: steps, then
//! `done`. When the one who asked goes away, the work is stopped as by a signal.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::lock::Lock;
use common::program::Program;
use common::status::{Report, describe};
use common::{places, signals};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::budget::is_over;
use crate::progress::{self, Progress, Step};
use crate::session::{Allow, Session};
use crate::settings::{Options, Settings};
use crate::source::DATABASE;
use crate::watch::Watch;

/// How often the one who waits looks whether it is still wanted.
const TICK: u64 = 100;

/// How long the agent may take to end what it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked of the agent.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Bring the partial snapshot up to date.
    Stage,
    /// The last pass.
    Settle,
    /// Make it a snapshot.
    Publish,
    /// Give up, keep what has arrived.
    Abort,
}

#[derive(Debug, Deserialize, Serialize)]
struct Ask {
    action: Action,
    chosen: Vec<String>,
    allow: Allow,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Say {
    Step(Step),
    Done {
        changed: bool,
        partial: bool,
        data: Map<String, Value>,
        warnings: Vec<Value>,
        error: Option<(i32, Value)>,
    },
}

/// The lock of a snapshot under way on this side, for the agent and for `snapshot` alike.
pub fn lock(runtime: &Path) -> Result<Lock> {
    Lock::exclusive(&runtime.join("agent.lock"), "the snapshot under way")
}

/// Waits until no snapshot is under way on this side, a minute at most; it is then ours.
pub fn wait_for_end(runtime: &Path) -> Result<Lock> {
    let begin = Instant::now();
    loop {
        match lock(runtime) {
            Err(e) if kind_of(&e) == Kind::Busy && begin.elapsed() < Duration::from_secs(60) => {
                signals::check()?
            }
            other => return other,
        }
        std::thread::sleep(Duration::from_millis(TICK));
    }
}

fn socket(runtime: &Path) -> PathBuf {
    runtime.join("agent.sock")
}

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
            Say::Done { changed, partial, data, warnings, error } => {
                done = Some((changed, partial, data, warnings, error));
            }
        }
    }
    drop((watch, late));
    bar.finish_and_clear();
    signals::check()?;
    let (changed, partial, data, warnings, error) = done.ok_or_else(lost)?;
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

/// The agent's whole life. `listen` and `lock` are descriptors inherited from [`start`].
#[expect(unsafe_code, reason = "descriptors inherited over exec come as numbers")]
pub fn live(options: &Options, listen: RawFd, lock: RawFd) -> Result<()> {
    let open = |fd: RawFd| Path::new("/proc/self/fd").join(fd.to_string()).symlink_metadata().is_ok();
    if [listen, lock].into_iter().any(|fd| fd < 3 || !open(fd)) {
        return Err(Fault::usage("agent is started by stage, never by hand").into());
    }
    // SAFETY: `start` left these two open for us; nothing else in this new process knows them.
    let (listener, lock) = unsafe { (OwnedFd::from_raw_fd(listen), OwnedFd::from_raw_fd(lock)) };
    for fd in [&listener, &lock] {
        // Our children have no use for them.
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("fcntl failed")?;
    }
    let listener = UnixListener::from(listener);
    let settings = options.settings()?;
    let path = socket(&places::runtime(&settings.profile)?);
    let (to_main, asked) = sync_channel(0);
    let busy = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let busy = Arc::clone(&busy);
        move || accept(&listener, &to_main, &busy)
    });
    // Whatever folder we were started in can be unmounted now.
    nix::unistd::chdir("/").context("cannot leave the folder")?;
    let mut lock = Some(lock);
    work(&settings, &asked, &busy, || {
        // Before the last answer, so that whoever comes next starts an agent of its own.
        std::fs::remove_file(&path).ok();
        drop(lock.take());
    })
}

/// Takes connections; hands one at a time to the main thread (the one whose death would end our children).
fn accept(listener: &UnixListener, to_main: &SyncSender<(UnixStream, Ask)>, busy: &AtomicBool) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok();
        let mut line = String::new();
        if BufReader::new(&stream).take(1 << 20).read_line(&mut line).is_err() {
            continue;
        }
        let Ok(ask) = serde_json::from_str::<Ask>(&line) else { continue };
        let give_up = ask.action == Action::Abort;
        if give_up && busy.load(Ordering::SeqCst) {
            signals::pretend(Signal::SIGTERM as i32);
        }
        let begin = Instant::now();
        let mut next = Some((stream, ask));
        while let Some(job) = next.take() {
            match to_main.try_send(job) {
                Ok(()) => {}
                // The main thread is either about to wait again, or at work.
                Err(TrySendError::Full(job))
                    if begin.elapsed() < Duration::from_secs(if give_up { 60 } else { 2 }) =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                    next = Some(job);
                }
                Err(TrySendError::Full((stream, _)) | TrySendError::Disconnected((stream, _))) => {
                    let fault = Fault::busy("this snapshot is being worked on by another command")
                        .hint("wait until it has ended, or `link-sync abort`");
                    answer(&stream, &Report::new("link-sync"), Err(fault.into()));
                }
            }
        }
    }
}

fn work(
    settings: &Settings,
    asked: &Receiver<(UnixStream, Ask)>,
    busy: &AtomicBool,
    mut closing: impl FnMut(),
) -> Result<()> {
    let mut session: Option<Session> = None;
    loop {
        let begin = Instant::now();
        let job = loop {
            match asked.recv_timeout(Duration::from_millis(TICK)) {
                Ok(job) => break Some(job),
                Err(RecvTimeoutError::Timeout)
                    if begin.elapsed() < settings.max && signals::caught().is_none() => {}
                Err(_) => break None,
            }
        };
        let Some((stream, ask)) = job else {
            closing();
            return Ok(());
        };
        busy.store(true, Ordering::SeqCst);
        let mut report = Report::new("link-sync");
        let watch = stop_without(&stream)?;
        let result = act(settings, &mut session, &ask, &stream, &mut report);
        drop(watch);
        busy.store(false, Ordering::SeqCst);
        let over = session.is_none();
        if over {
            closing();
        }
        answer(&stream, &report, result);
        if over {
            return Ok(());
        }
    }
}

/// Does what was asked. After a failure there is no session any more, except when publish was refused, or when settle
/// had too little time.
fn act(
    settings: &Settings,
    session: &mut Option<Session>,
    ask: &Ask,
    stream: &UnixStream,
    report: &mut Report,
) -> Result<()> {
    let settings = Settings { chosen: ask.chosen.clone(), ..settings.clone() };
    let mut wanted = settings.wanted()?;
    if ask.chosen.is_empty() {
        // The dump is made inside maintenance, so it is staged by name, afterwards.
        wanted.retain(|s| s.name != DATABASE);
    }
    let progress = progress_to(stream)?;
    match ask.action {
        Action::Stage => {
            let mut current = match session.take() {
                Some(current) => current,
                None => Session::begin(settings, ask.allow, report)?,
            };
            current.stage(&wanted, ask.allow, &progress, report)?;
            *session = Some(current);
        }
        Action::Settle => {
            let mut current = session.take().ok_or_else(nothing_staged)?;
            let settled = current.settle(&wanted, ask.allow, &progress, report);
            if settled.as_ref().err().is_none_or(is_over) {
                *session = Some(current);
            }
            settled?;
        }
        Action::Publish => {
            let current = session.as_ref().ok_or_else(nothing_staged)?;
            current.may_publish(ask.allow)?;
            session.take().ok_or_else(nothing_staged)?.publish(ask.allow, &progress, report)?;
        }
        Action::Abort => {
            report.changed = true;
            drop(session.take());
        }
    }
    Ok(())
}

/// The error of a settle or publish without a stage.
pub fn nothing_staged() -> Fault {
    Fault::failed("no snapshot is under way")
        .hint("`link-sync stage` begins one; `link-sync snapshot` does all three steps")
}

fn progress_to(stream: &UnixStream) -> Result<Progress> {
    let stream = Mutex::new(stream.try_clone().context("cannot copy a socket")?);
    Ok(Progress::new(move |step| {
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(line) = serde_json::to_string(&Say::Step(step.clone())) {
            // One who has gone is noticed by the watcher.
            writeln!(stream, "{line}").ok();
        }
    }))
}

fn answer(mut stream: &UnixStream, report: &Report, result: Result<()>) {
    let error = result.err().map(|e| (i32::from(kind_of(&e).exit_code()), describe(&e)));
    let done = Say::Done {
        changed: report.changed,
        partial: report.is_partial(),
        data: report.data.clone(),
        warnings: report.warnings().to_vec(),
        error,
    };
    if let Ok(line) = serde_json::to_string(&done) {
        writeln!(stream, "{line}").ok();
    }
    stream.shutdown(Shutdown::Both).ok();
}

/// Stops the work when the one who asked for it goes away. Nothing more is said after the question, so readable means
/// gone.
fn stop_without(stream: &UnixStream) -> Result<Watch> {
    let stream = stream.try_clone().context("cannot copy a socket")?;
    Watch::start(stream, || signals::pretend(Signal::SIGTERM as i32))
}
