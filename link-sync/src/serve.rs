//! The far end: answers one source over stdin and stdout, holding the store's lock while it writes.
//!
//! It decides everything about the store itself: the place (its own profile), the dates (its own clock),
//! rsync's arguments. What it is given are names and paths, and every path is opened below the open partial
//! snapshot, through no symlink. It ends when its input does; nothing is then published.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use common::fault::Fault;
use common::mutant;
use common::profile::check_name;
use common::retention::Retention;
use common::run::{Cmd, tail};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::{Value, json};

use crate::protocol::{
    self, Cloned, GREETING, Hello, Kind, MAX_FRAME, Opened, Received, Record, Reply, Request,
};
use crate::reading::{self, Reading};
use crate::rsync::xattr_rules;
use crate::signs::{Alive, Frames};
use crate::store::damaged::Damaged;
use crate::store::merge::Merge;
use crate::store::open::{self, Writable, discard};
use crate::store::publish::{AllDone, Done, publish};
use crate::store::{
    INCOMING, PARTIAL, Store, clone, diff, manifest, open_dir, pace, remove, verified, verify,
};
use crate::tree::{Census, Stamp};

/// How often the source is told how far a clone has come.
const TELL: Duration = Duration::from_millis(200);

/// What has been asked for so far.
struct Serving {
    store: Store,
    retention: Retention,
    writable: Option<Writable>,
    done: AllDone,
    reading: Option<Reading>,
}

/// Serves until the input ends. `retention` is what this machine's profile says.
pub fn serve(store: &Store, retention: Retention, input: impl Read, output: impl Write + Send) -> Result<()> {
    let alive = Alive::default();
    let output = Mutex::new(output);
    std::thread::scope(|scope| {
        scope.spawn(|| alive.tell(&output));
        let done = converse_with(store, retention, input, Frames::on(&output), &alive);
        alive.end();
        done
    })
}

fn converse_with(
    store: &Store,
    retention: Retention,
    input: impl Read,
    mut output: impl Write + Send,
    alive: &Alive,
) -> Result<()> {
    let mut input = BufReader::with_capacity(MAX_FRAME, input);
    output.write_all(GREETING)?;
    output.flush()?;
    let mut serving =
        Serving { store: store.clone(), retention, writable: None, done: HashMap::new(), reading: None };
    let mut frame = Vec::new();
    while let Some(kind) = protocol::receive(&mut input, &mut frame)? {
        ensure!(kind == Kind::Message, "a request was expected");
        let request: Request = serde_json::from_slice(&frame).context("a request that is not understood")?;
        let working = alive.working();
        let reply = match serving.answer(request, &mut input, &mut output) {
            Ok(value) => Reply::Ok(value),
            Err(error) => {
                let code = i32::from(common::fault::kind_of(&error).exit_code());
                Reply::Err(code, common::status::describe(&error))
            }
        };
        protocol::send_message(&mut output, &reply)?;
        drop(working);
    }
    Ok(())
}

/// Tells the source how far long work has come, a few times a second.
fn teller<W: Write + Send>(output: &mut W) -> impl Fn(u64, u64) -> Result<()> + Sync {
    let watcher = Mutex::new((output, Instant::now()));
    move |done, total| {
        let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.1.elapsed() >= TELL {
            watcher.1 = Instant::now();
            let count = [done.to_be_bytes(), total.to_be_bytes()].concat();
            protocol::send(watcher.0, Kind::Count, &count)?;
            watcher.0.flush()?;
        }
        Ok(())
    }
}

fn value(answer: impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).context("cannot encode an answer")
}

impl Serving {
    fn reading(&self) -> Result<&Reading> {
        self.reading.as_ref().context("no snapshot is held")
    }

    fn writable(&self) -> Result<&Writable> {
        self.writable.as_ref().context("no snapshot has been begun")
    }

    fn answer(
        &mut self,
        request: Request,
        input: &mut impl Read,
        output: &mut (impl Write + Send),
    ) -> Result<Value> {
        reading::check_door(&request, self.store.read_only)?;
        match request {
            Request::Hello { protocol: theirs } => {
                if theirs != protocol::VERSION {
                    return Err(Fault::config(format!(
                        "the source speaks protocol {theirs}, link-sync {} on the store's machine speaks {}",
                        env!("CARGO_PKG_VERSION"),
                        protocol::VERSION
                    ))
                    .hint("install the same version on both machines")
                    .into());
                }
                value(Hello {
                    protocol: protocol::VERSION,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    store: self.store.path.display().to_string(),
                    root: nix::unistd::geteuid().is_root(),
                })
            }
            Request::Open { copy, base } => self.open(copy.then_some(base.as_deref())),
            Request::Resume { id, keep } => self.resume(&id, keep, input),
            Request::Room { source, bytes, inodes } => {
                source.as_deref().map_or(Ok(()), check_name).map_err(Fault::denied)?;
                self.writable()?.room(source.as_deref(), bytes, inodes).map(|()| Value::Null)
            }
            Request::Fresh { source } => {
                check_name(&source).map_err(Fault::denied)?;
                self.done.remove(&source);
                self.fresh(&source).map(|_| Value::Null)
            }
            Request::Clone { source } => self.clone_base(&source, input, output),
            Request::Compare { source } => self.compare(&source, input),
            Request::Drop { source } => self.drop_paths(&source, input),
            Request::Receive { .. } => self.receive(&request, input, output),
            Request::Merge { source, times, again } => self.merge(source, times, again, input),
            Request::Flush => {
                self.writable()?.pace.sync()?;
                Ok(Value::Null)
            }
            Request::Part => {
                let mut part = or_skip_list(self.writable().and_then(manifest::Part::begin), input)?;
                protocol::read_list(input, |line| part.add(line))?;
                part.finish().map(|()| Value::Null)
            }
            Request::Publish { meta } => {
                let published = publish(self.writable()?, meta, &self.done, &teller(output))?;
                self.writable = None;
                value(published)
            }
            Request::Discard => discard(&self.store).map(|()| Value::Null),
            Request::List { sizes } => crate::list::answer(&self.store, sizes),
            Request::Prune { dry_run } => {
                ensure!(self.writable.is_none(), "a snapshot has been begun");
                value(crate::prune::for_client(&self.store, &self.retention, dry_run)?)
            }
            Request::Hold { date } => {
                let (reading, meta) = Reading::hold(&self.store, &date)?;
                self.reading = Some(reading);
                value(meta)
            }
            Request::Look => {
                let reading = or_skip_list(self.reading(), input)?;
                value(reading.look(input)?)
            }
            Request::Send { .. } => {
                let cmd = or_skip_list(self.reading(), input)
                    .and_then(|reading| reading.sender(&request, &self.store.rsync, input));
                converse(cmd, None, input, output)
            }
            Request::Find(wanted) => crate::store::find::find(&self.store, &wanted),
            Request::Diff { from, to, source, limit } => {
                value(diff::diff(&self.store, &from, &to, source.as_deref(), limit)?)
            }
            Request::Verify { options } => {
                let outcome = verify::verify(&self.store, None, &options, &teller(output))?;
                verified::record(&self.store, &options, &outcome, 0)?;
                outcome.describe(&options)
            }
        }
    }

    fn open(&mut self, copy_from: Option<Option<&str>>) -> Result<Value> {
        ensure!(self.writable.is_none(), "a snapshot has been begun already");
        let writable = open::open(&self.store, copy_from)?;
        let opened = Opened {
            resumed_id: open::copying(&self.store),
            store_id: writable.id.clone(),
            damaged: match &writable.base {
                Some(base) if copy_from.is_none() => Damaged::of(&self.store, base),
                _ => Damaged::default(),
            },
            base: writable.base.clone(),
            resumed: writable.resumed,
            xattrs: writable.keeps.xattrs,
            acls: writable.keeps.acls,
            warnings: writable.warnings.clone(),
        };
        self.writable = Some(writable);
        self.done.clear();
        value(opened)
    }

    fn resume(&mut self, id: &str, keep: bool, input: &mut impl Read) -> Result<Value> {
        let writable = self.writable.as_mut().context("no snapshot has been begun")?;
        let forgotten = if keep { Ok(()) } else { writable.forget(None) };
        protocol::read_list(input, |path| {
            protocol::check_path(path)?;
            writable.forget(Some(path))
        })?;
        forgotten?;
        writable.begin_copy(id)?;
        Ok(Value::Null)
    }

    fn clone_base(
        &mut self,
        source: &str,
        input: &mut impl Read,
        output: &mut (impl Write + Send),
    ) -> Result<Value> {
        let mut left_out = clone::LeftOut::default();
        let mut done = Done { cloned: true, ..Done::default() };
        protocol::read_list(input, |path| {
            protocol::check_path(path)?;
            left_out.add(path);
            done.times.insert(crate::store::split(path).0.to_vec(), None);
            Ok(())
        })?;
        check_name(source).map_err(Fault::denied)?;
        // What was known of another clone does not hold for one that fails halfway.
        self.done.remove(source);
        let writable = self.writable()?;
        let times = writable.keeps.times();
        let Some(base) = writable.base_dir(source)? else {
            ensure!(writable.copy, "the base does not hold this source");
            // What the copy has lost is sent again, all of it.
            self.fresh(source)?;
            self.done.insert(source.to_owned(), Done::default());
            return value(Cloned { linked: 0, census: Census::default(), times });
        };
        let watcher = Mutex::new((output, Instant::now(), 0u64));
        let wrote = |links: u64| -> Result<()> {
            writable.pace.wrote(links * pace::LINK + pace::FOLDER)?;
            let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
            watcher.2 += links + 1;
            if writable.copy && watcher.1.elapsed() >= TELL {
                watcher.1 = Instant::now();
                let count = watcher.2.to_be_bytes();
                protocol::send(watcher.0, Kind::Count, &count)?;
                watcher.0.flush()?;
            }
            Ok(())
        };
        let census = clone::clone(&base, &self.fresh(source)?, &left_out, times, &wrote)?;
        self.done.insert(source.to_owned(), done);
        value(Cloned { linked: census.files, census, times })
    }

    fn compare(&mut self, source: &str, input: &mut impl Read) -> Result<Value> {
        let ready = check_name(source).map_err(|m| Fault::denied(m).into()).and_then(|()| {
            let writable = self.writable()?;
            Ok(clone::Compare::new(writable.source_dir(PARTIAL, source)?, writable.keeps.times()))
        });
        let mut compare = or_skip_list(ready, input)?;
        protocol::read_list(input, |item| {
            let Record { kind, size, mtime, path } = Record::decode(item)?;
            if !path.is_empty() {
                protocol::check_path(&path)?;
            }
            if kind == 0 {
                return compare.folder(&path);
            }
            let mtime = Stamp { sec: mtime.0, nsec: mtime.1 };
            compare.entry(crate::store::split(&path).1, kind == libc::S_IFDIR, size, mtime)
        })?;
        value(compare.finish()?)
    }

    /// The folder of `source` in the partial snapshot, made anew.
    fn fresh(&self, source: &str) -> Result<File> {
        let writable = self.writable()?;
        let top = open_dir(&writable.dir, PARTIAL.as_bytes()).context("there is no partial snapshot")?;
        remove(&top, Path::new(source))?;
        writable.source_dir(PARTIAL, source)
    }

    fn drop_paths(&mut self, source: &str, input: &mut impl Read) -> Result<Value> {
        let ready = check_name(source)
            .map_err(|m| Fault::denied(m).into())
            .and_then(|()| self.writable()?.source_dir(PARTIAL, source));
        let partial = or_skip_list(ready, input)?;
        let times = &mut self.done.entry(source.to_owned()).or_default().times;
        let mut count = 0;
        protocol::read_list(input, |path| {
            protocol::check_path(path)?;
            let (dir, name) = crate::store::split(path);
            count += 1;
            times.entry(dir.to_vec()).or_insert(None);
            match open_dir(&partial, dir) {
                Ok(dir) => remove(
                    &dir,
                    Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name)),
                ),
                Err(nix::errno::Errno::ENOENT) => Ok(()),
                Err(e) => Err(e).with_context(|| format!("cannot remove {}", crate::walk::show(path))),
            }
        })?;
        Ok(json!({"dropped": count}))
    }

    fn merge(&mut self, source: String, times: bool, again: bool, input: &mut impl Read) -> Result<Value> {
        let mut merge = or_skip_list(self.merger(&source, times, again), input)?;
        let dir_times = &mut self.done.entry(source).or_default().times;
        let pace = &self.writable.as_ref().context("no snapshot has been begun")?.pace;
        protocol::read_list(input, |item| {
            merge.take(&Record::decode(item)?, dir_times)?;
            pace.wrote(pace::LINK)
        })?;
        pace.flush()?;
        value(merge.finish())
    }

    fn merger(&self, source: &str, times: bool, again: bool) -> Result<Merge> {
        check_name(source).map_err(Fault::denied)?;
        let writable = self.writable()?;
        // A later pass was compared with the partial snapshot alone.
        let (resume, base) = match again {
            true => (None, None),
            false if writable.copy => (writable.resume_dir(source)?, None),
            false => (if times { writable.resume_dir(source)? } else { None }, writable.base_dir(source)?),
        };
        let (partial, incoming) =
            (writable.source_dir(PARTIAL, source)?, writable.source_dir(INCOMING, source)?);
        Ok(Merge::new(partial, incoming, resume, base, again, times))
    }

    /// Runs the receiving rsync. It inherits the lock, so that nobody else writes as long as it lives, whatever
    /// happens to us.
    fn receive(
        &self,
        request: &Request,
        input: &mut impl Read,
        output: &mut (impl Write + Send),
    ) -> Result<Value> {
        let pace = self.writable.as_ref().map(|w| &w.pace);
        converse(self.receiver(request), pace, input, output)
    }

    fn receiver(&self, request: &Request) -> Result<Cmd> {
        let Request::Receive { source, capabilities, checksum, times, delta, again, all_xattrs, acls_only } =
            request
        else {
            bail!("not a request to receive");
        };
        check_name(source).map_err(Fault::denied)?;
        let letters =
            capabilities.len() <= 32 && capabilities.bytes().all(|b| b.is_ascii_alphabetic() || b == b'.');
        ensure!(letters, "the source's rsync says odd things of itself: '{capabilities}'");
        let writable = self.writable()?;
        if *acls_only && nix::unistd::geteuid().is_root() {
            // It writes over what another run has received, which as root is never needed.
            return Err(Fault::denied("ACLs are sent apart only to a store of an account").into());
        }
        if !acls_only {
            drop(writable.fresh_incoming(source)?);
        }
        let path = |parts: [&str; 2]| writable.store.path.join(parts[0]).join(parts[1]);
        let mut short = "-lgoDpRS".to_owned();
        for (letter, wanted) in [
            ("t", *times),
            ("c", *checksum),
            ("W", !*delta),
            ("A", writable.keeps.acls),
            ("X", writable.keeps.xattrs && !acls_only),
            ("X", *all_xattrs),
        ] {
            if wanted {
                short.push_str(letter);
            }
        }
        short.push('e');
        short.push_str(capabilities);
        let mut compare = Vec::new();
        if *acls_only {
            // Compared with what has been received.
        } else if *again {
            compare.push(path([PARTIAL, source]));
        } else {
            if *times
                && (*checksum || writable.copy || mutant::active("resumed-by-size-and-time"))
                && writable.resume_dir(source)?.is_some()
            {
                compare.push(path([crate::store::RESUME, source]));
            }
            if let Some(base) = writable.base.as_ref().filter(|_| !writable.copy)
                && writable.base_dir(source)?.is_some()
            {
                compare.push(path([&base.date, source]));
            }
        }
        let mut cmd = Cmd::from_argv(&writable.store.rsync)?.args([
            "--server",
            &short,
            "--modify-window=-1",
            "--numeric-ids",
        ]);
        if *acls_only {
            cmd = cmd.arg("--existing");
        }
        for dir in compare {
            cmd = cmd.arg("--compare-dest").arg(dir);
        }
        let root = nix::unistd::geteuid().is_root();
        cmd = xattr_rules(cmd, root);
        if !root {
            cmd = cmd.arg("--fake-super");
        }
        let into = Path::new(INCOMING).join(source).join("");
        Ok(cmd.arg(".").arg(into).dir(&writable.store.path).inherit(writable.lock.fd()))
    }
}

/// Runs rsync with its stdin and stdout in stream frames; what it is sent is flushed at the `pace`.
fn converse(
    cmd: Result<Cmd>,
    pace: Option<&pace::Pace>,
    input: &mut impl Read,
    output: &mut (impl Write + Send),
) -> Result<Value> {
    let child = cmd.and_then(|cmd| cmd.spawn_piped());
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            // The source's rsync is waiting: end both directions, then say why.
            protocol::send(output, Kind::End, &[])?;
            output.flush()?;
            swallow_stream(input)?;
            return Err(error);
        }
    };
    let (mut to_child, mut from_child) =
        (child.take_stdin(), child.take_stdout().context("rsync has no stdout")?);
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id out of range")?);
    let (mut unflushed, mut room) = (Ok(()), Ok(()));
    let piped: Result<()> = std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            let mut buffer = vec![0; MAX_FRAME];
            loop {
                let n = from_child.read(&mut buffer)?;
                if n == 0 {
                    // The source's rsync waits for its "remote shell" to end, and only then ends itself.
                    protocol::send(output, Kind::End, &[exit_code(pid)?])?;
                    return Ok(output.flush()?);
                }
                protocol::send(output, Kind::Stream, &buffer[..n])?;
                output.flush()?;
            }
        });
        let watch = pace.map(|pace| pace::Watch::begin(scope, pace, pid));
        let mut frame = Vec::new();
        let received = loop {
            match protocol::receive(input, &mut frame) {
                Ok(Some(Kind::Stream)) => {
                    // An rsync that has ended takes no more; the source is told by the other direction.
                    if to_child.as_mut().is_some_and(|pipe| pipe.write_all(&frame).is_err()) {
                        to_child = None;
                    }
                    // Nothing more is taken before this has reached the disk.
                    if let (Ok(()), Some(pace)) = (&unflushed, pace) {
                        unflushed = pace.wrote(frame.len() as u64);
                    }
                    if unflushed.is_err() {
                        // What still comes is read, so that the conversation stays in step.
                        to_child = None;
                    }
                }
                Ok(Some(Kind::End)) => break Ok(()),
                Ok(_) => break Err(anyhow::anyhow!("the source went away")),
                Err(e) => break Err(e),
            }
        };
        drop(to_child);
        if received.is_err() {
            child.end();
        }
        let sent = sender.join().unwrap_or_else(|_| bail!("internal error while passing on rsync's output"));
        room = watch.map_or(Ok(()), pace::Watch::end);
        received.and(sent)
    });
    piped?;
    if let Err(error) = unflushed.and(room) {
        child.end();
        return Err(error);
    }
    let status = child.wait(None, false)?;
    value(Received { exit_code: status.code().unwrap_or(255), stderr: tail(&child.stderr()?) })
}

/// `ready`, or its error after the list that follows the request has been read, so that the conversation stays
/// in step.
fn or_skip_list<T>(ready: Result<T>, input: &mut impl Read) -> Result<T> {
    if ready.is_err() {
        protocol::read_list(input, |_| Ok(()))?;
    }
    ready
}

/// Waits for child `pid` without taking its status away; 255 if a signal ended it.
fn exit_code(pid: Pid) -> Result<u8> {
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(255)),
            Ok(_) => return Ok(255),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot wait for rsync"),
        }
    }
}

fn swallow_stream(input: &mut impl Read) -> Result<()> {
    let mut frame = Vec::new();
    loop {
        match protocol::receive(input, &mut frame)? {
            Some(Kind::Stream) => {}
            Some(Kind::End) => return Ok(()),
            _ => bail!("the source went away"),
        }
    }
}
