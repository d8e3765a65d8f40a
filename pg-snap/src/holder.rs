//! The background process that keeps the database's sessions open, so that in maintenance nothing has to be started.
//!
//! It holds no descriptor of its caller, runs in a session of its own, and answers on a socket in the runtime folder, one
//! question a connection. It ends by itself: when released, when the run that it serves is gone, when nobody has asked it
//! anything for [`IDLE`], when its time is over, on a signal, and when a session of it dies; then the background workers are
//! resumed and the sessions closed. Killed, its psql die with it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::fault::{Fault, kind_of};
use common::mutant;
use common::profile::Profile;
use common::signals;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activity::{self, Client, Which};
use crate::hold::{self, Held};
use crate::horizon::Horizon;
use crate::pause::Pause;
use crate::programs::Program;
use crate::psql::Psql;
use crate::same;
use crate::session::Session;
use crate::target::Target;

/// How often it is looked whether the sessions are still there.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Without a question for so long, nobody is there any more. (A dump asks all the time.)
const IDLE: Duration = Duration::from_secs(3600);

/// What is asked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Whether its sessions are open.
    Ready,
    /// From now on it serves the run of this process, and ends with it.
    Serve { pid: u32 },
    /// Whether sessions can be told apart, and what else is to be said: `{"fallback": reason or null, "warnings": []}`.
    Fallback,
    /// Whether a state could be held.
    Rehearse,
    /// Who is at work: `{"clients": [], "jobs": []}`.
    InTheWay(Which),
    /// Where the database is, and then who is there: `{"horizon", "clients": [], "lost": times a state was given back}`.
    Present,
    /// Where the database is.
    Horizon,
    /// Drained for a run: what was there at this horizon has ended.
    Drained { run_id: String, horizon: Horizon },
    /// Pauses the background workers.
    Pause,
    /// Resumes them.
    Resume,
    /// Holds the state of now, for a run, for so many milliseconds at most.
    Hold { run_id: String, max_ms: u64 },
    /// What is held, or null; an error if it was lost.
    Held,
    /// Nothing was written until now: what is held may be dumped.
    Confirm { began_ms: u64 },
    /// Something was: gives back what is held, and stays.
    GiveBack,
    /// The end.
    Release,
}

impl Request {
    /// The longest that an answer may take, with the session's own patience in it.
    pub(crate) fn patience(&self, profile: &Profile) -> Duration {
        let commands = !profile.database.resume.is_empty();
        Duration::from_secs(match self {
            // Nextcloud is asked, and connections are made.
            Request::Ready => 240,
            // Commands of the profile run.
            Request::Pause | Request::Resume | Request::Release if commands => 300,
            Request::Release => 20,
            _ => 40,
        })
    }
}

/// The answer: a value, or an exit code and the error as the status object has it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Reply {
    Ok(Value),
    Err(i32, Value),
}

/// The state.
struct Holder<'h> {
    profile: &'h Profile,
    pause: Pause,
    /// For questions about others, also while a state is held.
    watch: Session,
    /// For the held state.
    keep: Session,
    held: Option<Held>,
    /// The run that was drained for, and since when nothing may have been written.
    drained: Option<(String, Horizon)>,
    lost: u32,
    fallback: Option<String>,
    warnings: Vec<String>,
    /// The run that it serves.
    serves: Option<OwnedFd>,
    asked: Instant,
    end: Instant,
}

/// The holder's whole life. The descriptors are inherited from [`crate::client::start`].
#[expect(unsafe_code, reason = "descriptors inherited over exec come as numbers")]
pub(crate) fn live(
    profile: &Profile,
    target: &Target,
    socket: &Path,
    listen: RawFd,
    lock: RawFd,
    max: Duration,
) -> Result<()> {
    let open = |fd: RawFd| Path::new("/proc/self/fd").join(fd.to_string()).symlink_metadata().is_ok();
    if [listen, lock].into_iter().any(|fd| fd < 3 || !open(fd)) {
        return Err(Fault::usage("the holder is started by drain and hold, never by hand").into());
    }
    // SAFETY: `start` left these two open for us; nothing else in this new process knows them.
    let (listener, lock) = unsafe { (OwnedFd::from_raw_fd(listen), OwnedFd::from_raw_fd(lock)) };
    for fd in [&listener, &lock] {
        // psql has no use for them.
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("fcntl failed")?;
    }
    let listener = UnixListener::from(listener);
    let closing = || {
        // Before the last answer, so that whoever comes next starts a holder of its own.
        std::fs::remove_file(socket).ok();
    };
    match Holder::begin(profile, target, max) {
        Ok(holder) => holder.work(&listener, closing),
        Err(error) => {
            // The one who started us is about to ask, unless it has gone; this is its answer.
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let asked = poll(&mut fds, PollTimeout::from(10_000u16)).is_ok_and(|n| n > 0);
            let stream = if asked { listener.accept().ok() } else { None };
            closing();
            if let Some((stream, _)) = stream {
                read_request(&stream).ok();
                reply(&stream, Err(error));
            }
            Ok(())
        }
    }
}

impl<'h> Holder<'h> {
    fn begin(profile: &'h Profile, target: &Target, max: Duration) -> Result<Holder<'h>> {
        let pause = Pause::new(profile)?;
        let (server, database) = target.resolve(profile)?;
        let psql = Psql::new(Program::find("psql", &profile.database.psql, None), &server)?;
        let mut watch = Session::open(&psql, &database)?;
        same::refuse_standby(&mut watch)?;
        activity::check_rights(&mut watch)?;
        let compared = same::compare(profile, target, &server, &database, &mut watch)?;
        let keep = Session::open(&psql, &database)?;
        let fallback = if watch.pooled || keep.pooled {
            Some("a connection pooler stands before the database".to_owned())
        } else if server.persistent || compared.persistent {
            Some("Nextcloud keeps its database sessions (dbpersistent)".to_owned())
        } else {
            None
        };
        Ok(Holder {
            profile,
            pause,
            watch,
            keep,
            held: None,
            drained: None,
            lost: 0,
            fallback,
            warnings: compared.unknown.iter().map(|why| same::warning(why)).collect(),
            serves: None,
            asked: Instant::now(),
            end: Instant::now() + max,
        })
    }

    fn work(mut self, listener: &UnixListener, closing: impl FnOnce()) -> Result<()> {
        let served = self.serve(listener);
        let held = self.held.is_some();
        closing();
        let gone = self.keep.backend;
        self.keep.close();
        activity::wait_for_end(&mut self.watch, gone);
        self.watch.close();
        let resumed = self.pause.resume();
        if let Some(stream) = served? {
            reply(&stream, resumed.map(|resumed| json!({"held": held, "resumed": resumed})));
        }
        Ok(())
    }

    /// Answers until the end; the one who asked for it, if somebody did.
    fn serve(&mut self, listener: &UnixListener) -> Result<Option<UnixStream>> {
        while let Some(stream) = self.next(listener)? {
            let Ok(request) = read_request(&stream) else { continue };
            self.asked = Instant::now();
            if matches!(request, Request::Release) {
                return Ok(Some(stream));
            }
            let answer = self.answer(&request);
            reply(&stream, answer);
        }
        Ok(None)
    }

    /// The next one who asks; `None` when it is time to end.
    fn next(&mut self, listener: &UnixListener) -> Result<Option<UnixStream>> {
        loop {
            let end = self.end.min(self.asked + IDLE);
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || signals::caught().is_some() {
                return Ok(None);
            }
            let sessions = [borrow(self.watch.ended()), borrow(self.keep.ended())];
            let mut fds: Vec<BorrowedFd> = vec![listener.as_fd()];
            fds.extend(sessions);
            fds.extend(
                self.serves.as_ref().filter(|_| !mutant::active("ends-with-its-run")).map(AsFd::as_fd),
            );
            fds.extend(signals::fd());
            let mut fds: Vec<PollFd> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::try_from(left.min(HEARTBEAT)).unwrap_or(PollTimeout::MAX)) {
                Ok(0) => {
                    if self.watch.touch().is_err() || self.keep.touch().is_err() {
                        return Ok(None);
                    }
                    continue;
                }
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(e).context("cannot wait"),
            }
            let ready = |n: usize| fds.get(n).is_some_and(|f| f.any().unwrap_or(false));
            if (1..=4).any(ready) {
                // A session that died takes what it held with it; a run that died needs nothing any more.
                return Ok(None);
            }
            if ready(0) {
                return Ok(Some(listener.accept().context("cannot accept a connection")?.0));
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Result<Value> {
        match request {
            Request::Ready => Ok(Value::Null),
            Request::Serve { pid } => {
                // One that has ended meanwhile would be taken for another later.
                self.serves = Some(common::pidfd::open(*pid)?);
                self.lost = 0;
                Ok(Value::Null)
            }
            Request::Fallback => Ok(json!({"fallback": self.fallback, "warnings": self.warnings})),
            Request::Rehearse if self.held.is_some() || mutant::active("rights-before-the-switch") => {
                Ok(Value::Null)
            }
            Request::Rehearse => hold::rehearse(&mut self.keep).map(|()| Value::Null),
            Request::InTheWay(which) => {
                let clients = self.clients(which)?;
                let jobs = match which {
                    Which::Older(_) => {
                        activity::jobs(self.profile.nextcloud.as_ref().map(|n| n.root.as_path()))
                    }
                    // Their sessions tell.
                    Which::All | Which::These(_) => Vec::new(),
                };
                Ok(json!({"clients": clients, "jobs": jobs}))
            }
            Request::Present => {
                // In this order: what is not among the clients has written nothing until the horizon.
                let horizon = Horizon::now(&mut self.watch)?;
                Ok(json!({"horizon": horizon, "clients": self.clients(&Which::All)?, "lost": self.lost}))
            }
            Request::Horizon => Ok(serde_json::to_value(Horizon::now(&mut self.watch)?)?),
            Request::Drained { run_id, horizon } => {
                self.drained = Some((run_id.clone(), horizon.clone()));
                Ok(Value::Null)
            }
            Request::Pause => self.pause.pause().map(|()| Value::Null),
            Request::Resume => self.pause.resume().map(Value::from),
            Request::Hold { run_id, max_ms } => {
                if let Some(held) = &self.held {
                    return Err(Fault::busy(format!(
                        "the database's state is held already, since {}",
                        held.since
                    ))
                    .hint("`pg-snap release` gives it back")
                    .into());
                }
                let horizon =
                    self.drained.take().filter(|(run, _)| run == run_id).map(|(_, horizon)| horizon);
                let held = hold::take(&mut self.keep, run_id, horizon)?;
                self.end = Instant::now() + Duration::from_millis(*max_ms);
                let told = serde_json::to_value(&held)?;
                self.held = Some(held);
                Ok(told)
            }
            Request::Held => {
                if self.held.is_some() {
                    hold::alive(&mut self.keep)?;
                }
                Ok(serde_json::to_value(&self.held)?)
            }
            Request::Confirm { began_ms } => {
                if let Some(held) = &mut self.held {
                    hold::alive(&mut self.keep)?;
                    held.confirmed = true;
                    held.window.confirmed_ms = *began_ms;
                }
                Ok(serde_json::to_value(&self.held)?)
            }
            Request::GiveBack => {
                self.held = None;
                self.lost += 1;
                hold::give_back(&mut self.keep);
                Ok(Value::Null)
            }
            Request::Release => Ok(Value::Null),
        }
    }

    fn clients(&mut self, which: &Which) -> Result<Vec<Client>> {
        let ours = [self.watch.backend, self.keep.backend];
        activity::clients(&mut self.watch, &ours, &self.profile.database.readers, which)
    }
}

#[expect(unsafe_code, reason = "the session outlives the poll it is borrowed for")]
fn borrow<'f>(fd: RawFd) -> BorrowedFd<'f> {
    // SAFETY: a pidfd of a session that the caller owns while it polls.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn read_request(stream: &UnixStream) -> Result<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(2))).context("cannot limit a read")?;
    let mut line = String::new();
    BufReader::new(stream).take(1 << 16).read_line(&mut line)?;
    ensure!(line.ends_with('\n'), "half a question");
    Ok(serde_json::from_str(&line)?)
}

fn reply(mut stream: &UnixStream, result: Result<Value>) {
    let answer = match result {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Err(i32::from(kind_of(&error).exit_code()), common::status::describe(&error)),
    };
    if let Ok(line) = serde_json::to_string(&answer) {
        // One who has gone does not want it any more.
        writeln!(stream, "{line}").ok();
    }
}
