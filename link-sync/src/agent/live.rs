//! The agent's own life: takes one request at a time, and holds the session between them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::{Fault, kind_of};
use common::status::{Report, describe};
use common::{background, places, signals};
use nix::sys::signal::Signal;

use super::{Ask, Ended, Say, TICK, Task, nothing_staged, socket};
use crate::budget::is_over;
use crate::progress::Progress;
use crate::session::Session;
use crate::settings::{Options, Settings};
use crate::source::DATABASE;
use crate::watch::Watch;

/// The agent's whole life. `listen` and `lock` are descriptors inherited from [`super::ask::start`].
pub fn live(options: &Options, listen: RawFd, lock: RawFd) -> Result<()> {
    let by_hand = "agent is started by stage, never by hand";
    let (listener, lock) = background::handed_down(listen, lock, by_hand)?;
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
        let give_up = ask.action == Task::Abort;
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
        Task::Stage => {
            let mut current = match session.take() {
                Some(current) => current,
                None => Session::begin(settings, ask.allow, report)?,
            };
            current.stage(&wanted, ask.allow, &progress, report)?;
            *session = Some(current);
        }
        Task::Settle => {
            let mut current = session.take().ok_or_else(nothing_staged)?;
            let settled = current.settle(&wanted, ask.allow, &progress, report);
            if settled.as_ref().err().is_none_or(is_over) {
                *session = Some(current);
            }
            settled?;
        }
        Task::Publish => {
            let current = session.as_ref().ok_or_else(nothing_staged)?;
            current.may_publish(ask.allow)?;
            session.take().ok_or_else(nothing_staged)?.publish(ask.allow, &progress, report)?;
        }
        Task::Abort => {
            report.changed = true;
            drop(session.take());
        }
    }
    Ok(())
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
    let done = Ended {
        changed: report.changed,
        partial: report.is_partial(),
        data: report.data.clone(),
        warnings: report.warnings().to_vec(),
        error,
    };
    if let Ok(line) = serde_json::to_string(&Say::Done(done)) {
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
