//! The far end while a snapshot is being made: what is done to the partial one, for a backup and for a copy.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use common::fault::Fault;
use common::mutant;
use common::profile::check_name;
use common::run::Cmd;
use serde::Serialize;
use serde_json::{Value, json};

use super::counting::{TIME, fits, remember, wrote};
use super::line::{Line, TELL, or_skip_list, teller};
use super::pipe::converse;
use super::reusing::Reusing;
use crate::protocol::{self, Cloned, Frame, Kept, Making, Opened, Receive};
use crate::rsync::argv;
use crate::store::allowance::{Allowance, Limits};
use crate::store::damaged::Damaged;
use crate::store::done::{AllDone, Done};
use crate::store::merge::{Listed, Merge};
use crate::store::open::{self, Writable};
use crate::store::path::check_path;
use crate::store::publish::{Described, publish};
use crate::store::{
    INCOMING, PARTIAL, RESUME, REUSE, Store, clone, ensure_dir, manifest, open_dir, pace, remove, split,
};
use crate::tree::{Census, Stamp};

/// A snapshot under way.
#[derive(Debug)]
pub struct Writing {
    writable: Writable,
    done: AllDone,
    reusing: Reusing,
    /// Nothing but the reserve counts for a copy.
    allowance: Option<Allowance>,
    /// For what is remembered until the end.
    kept: Kept,
    /// For what is remembered during a request.
    memory: u64,
}

fn value(answer: impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).context("cannot encode an answer")
}

fn named(source: &str) -> Result<()> {
    // Not where it would lead anywhere else on the machine.
    if mutant::active("sources-of-any-name") && !source.contains('/') {
        return Ok(());
    }
    check_name(source).map_err(|message| Fault::denied(message).into())
}

impl Writing {
    /// Begins one of this store's own.
    pub fn backup(store: &Store, limits: Option<Limits>, memory: u64) -> Result<(Writing, Opened)> {
        let writable = open::open(store, None)?;
        let first = writable.base.is_none();
        let limits = limits.map(|limits| Allowance::today(store, &writable.dir, limits, first));
        let damaged = writable.base.as_ref().map(|base| Damaged::of(store, base)).unwrap_or_default();
        Ok(Writing::begin(writable, limits.transpose()?, damaged, memory))
    }

    /// Begins the copy of another store's, with the snapshot `base` here.
    pub fn copy(store: &Store, base: Option<&str>, memory: u64) -> Result<(Writing, Opened)> {
        Ok(Writing::begin(open::open(store, Some(base))?, None, Damaged::default(), memory))
    }

    fn begin(
        writable: Writable,
        allowance: Option<Allowance>,
        damaged: Damaged,
        memory: u64,
    ) -> (Writing, Opened) {
        let opened = Opened {
            resumed_id: open::copying(&writable.store),
            store_id: writable.id.clone(),
            damaged: damaged.clone(),
            base: writable.base.clone(),
            resumed: writable.resumed,
            xattrs: writable.keeps.xattrs,
            acls: writable.keeps.acls,
            warnings: writable.warnings.clone(),
        };
        let share = memory / 10;
        let writing = Writing {
            writable,
            done: HashMap::new(),
            reusing: Reusing::new(damaged, share),
            allowance,
            kept: Kept::at_most(4 * share),
            memory: 4 * share,
        };
        (writing, opened)
    }

    /// What any partial snapshot can be asked.
    pub fn make<I: Read, O: Write + Send>(
        &mut self,
        request: Making,
        line: &mut Line<'_, I, O>,
    ) -> Result<Value> {
        match request {
            Making::Room { source, bytes, inodes } => {
                source.as_deref().map_or(Ok(()), named)?;
                let (more, more_inodes) = self.writable.room(source.as_deref(), bytes, inodes)?;
                let (bytes, inodes) = match mutant::active("a-day-counts-what-is-there") {
                    true => (bytes, inodes),
                    false => (more, more_inodes),
                };
                self.allowance.as_ref().map_or(Ok(()), |a| a.room(bytes, inodes)).map(|()| Value::Null)
            }
            Making::Fresh { source } => {
                named(&source)?;
                self.done.remove(&source);
                self.fresh(&source).and_then(|_| self.wrote(pace::FOLDER)).map(|()| Value::Null)
            }
            Making::Clone { source } => self.clone_base(&source, line),
            Making::Compare { source } => self.compare(&source, &mut line.input),
            Making::Receive(receive) => {
                let cmd = self.receiver(&receive);
                let room = || fits(&self.writable, self.allowance.as_ref());
                value(converse(
                    cmd,
                    Some(&room),
                    |bytes| self.wrote(bytes),
                    &mut line.input,
                    &mut line.output,
                )?)
            }
            Making::Merge { source, times, again, reused } => {
                self.merge(source, times, again, reused, &mut line.input)
            }
            Making::Flush {} => {
                self.writable.pace.sync()?;
                Ok(Value::Null)
            }
        }
    }

    /// Publishes it, and answers; what could not be published is still being written.
    pub fn publish<I: Read, O: Write + Send>(
        self,
        described: Described,
        line: &mut Line<'_, I, O>,
    ) -> Result<Option<Writing>> {
        let published =
            publish(&self.writable, described, &self.done, self.reusing.found(), &teller(&mut line.output));
        let still = published.is_err();
        line.reply(published)?;
        Ok(still.then_some(self))
    }

    /// So many bytes more are in the store, or on their way.
    fn wrote(&self, bytes: u64) -> Result<()> {
        wrote(&self.writable, self.allowance.as_ref(), bytes)
    }

    /// Takes of what an interrupted copy received all that is not in the list, if it is to be kept.
    pub fn resume(&mut self, id: &str, keep: bool, input: &mut impl Read) -> Result<Value> {
        let writable = &mut self.writable;
        let forgotten = if keep { Ok(()) } else { writable.forget(None) };
        protocol::read_list(input, |path| {
            check_path(path)?;
            writable.forget(Some(path))
        })?;
        forgotten?;
        writable.begin_copy(id)?;
        Ok(Value::Null)
    }

    /// Takes a part of the checksums of a copy.
    pub fn part(&mut self, input: &mut impl Read) -> Result<Value> {
        let mut part = or_skip_list(manifest::Part::begin(&self.writable), input)?;
        protocol::read_list(input, |line| part.add(line))?;
        part.finish().map(|()| Value::Null)
    }

    fn clone_base<I: Read, O: Write + Send>(
        &mut self,
        source: &str,
        line: &mut Line<'_, I, O>,
    ) -> Result<Value> {
        let mut left_out = clone::LeftOut::default();
        let mut done = Done { cloned: true, ..Done::default() };
        let mut kept = Kept::at_most(self.memory);
        protocol::read_list(&mut line.input, |path| {
            check_path(path)?;
            kept.more(left_out.add(path))?;
            remember(&mut kept, &mut done.times, split(path).0)
        })?;
        named(source)?;
        // What was known of another clone does not hold for one that fails halfway.
        self.done.remove(source);
        let writable = &self.writable;
        let times = writable.keeps.times();
        let Some(base) = writable.base_dir(source)? else {
            ensure!(writable.copy, "the base does not hold this source");
            // What the copy has lost is sent again, all of it.
            self.fresh(source)?;
            self.done.insert(source.to_owned(), Done::default());
            return value(Cloned { linked: 0, census: Census::default(), times, full: 0 });
        };
        let watcher = Mutex::new((&mut line.output, Instant::now(), 0u64));
        let linked = |links: u64| -> Result<()> {
            self.wrote(links * pace::LINK + pace::FOLDER)?;
            let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
            watcher.2 += links + 1;
            if writable.copy && watcher.1.elapsed() >= TELL {
                watcher.1 = Instant::now();
                let count = watcher.2.to_be_bytes();
                protocol::send(watcher.0, Frame::Count, &count)?;
                watcher.0.flush()?;
            }
            Ok(())
        };
        let (census, full) = clone::clone(&base, &self.fresh(source)?, &left_out, times, &linked)?;
        self.done.insert(source.to_owned(), done);
        value(Cloned { linked: census.files, census, times, full })
    }

    fn compare(&mut self, source: &str, input: &mut impl Read) -> Result<Value> {
        let writable = &self.writable;
        let ready = named(source).and_then(|()| {
            Ok(crate::store::compare::Compare::new(
                writable.source_dir(PARTIAL, source)?,
                writable.keeps.times(),
            ))
        });
        let mut compare = or_skip_list(ready, input)?;
        protocol::read_list(input, |item| {
            let Listed { kind, size, mtime, path } = protocol::listed(item)?;
            if !path.is_empty() {
                check_path(&path)?;
            }
            if kind == 0 {
                return compare.folder(&path);
            }
            let mtime = Stamp { sec: mtime.0, nsec: mtime.1 };
            compare.entry(split(&path).1, kind == libc::S_IFDIR, size, mtime)
        })?;
        value(compare.finish()?)
    }

    /// The folder of `source` in the partial snapshot, made anew.
    fn fresh(&self, source: &str) -> Result<File> {
        drop(open_dir(&self.writable.dir, PARTIAL.as_bytes()).context("there is no partial snapshot")?);
        self.fresh_in(PARTIAL, source)
    }

    /// The folder of `source` in `top`, made anew.
    fn fresh_in(&self, top: &str, source: &str) -> Result<File> {
        let folder = ensure_dir(&self.writable.dir, top.as_bytes())?;
        remove(&folder, Path::new(source))?;
        self.writable.source_dir(top, source)
    }

    /// Removes what is in the list.
    pub fn drop_paths(&mut self, source: &str, input: &mut impl Read) -> Result<Value> {
        let ready = named(source).and_then(|()| self.writable.source_dir(PARTIAL, source));
        let partial = or_skip_list(ready, input)?;
        let times = &mut self.done.entry(source.to_owned()).or_default().times;
        let kept = &mut self.kept;
        let mut count = 0;
        protocol::read_list(input, |path| {
            check_path(path)?;
            let (dir, name) = split(path);
            count += 1;
            remember(kept, times, dir)?;
            match open_dir(&partial, dir) {
                Ok(dir) => remove(&dir, Path::new(OsStr::from_bytes(name))),
                Err(nix::errno::Errno::ENOENT) => Ok(()),
                Err(e) => Err(e).with_context(|| format!("cannot remove {}", crate::names::show(path))),
            }
        })?;
        Ok(json!({"dropped": count}))
    }

    /// Makes what the base holds of the claimed files in the list ready to be compared with.
    pub fn reuse(&mut self, source: &str, fresh: bool, input: &mut impl Read) -> Result<Value> {
        let ready = named(source).and_then(|()| match fresh {
            true => self.fresh_in(REUSE, source).map(drop),
            false => Ok(()),
        });
        or_skip_list(ready, input)?;
        let Writing { writable, allowance, reusing, .. } = self;
        let wrote = |bytes| wrote(writable, allowance.as_ref(), bytes);
        value(reusing.take(writable, source, wrote, input)?)
    }

    fn merge(
        &mut self,
        source: String,
        times: bool,
        again: bool,
        reused: bool,
        input: &mut impl Read,
    ) -> Result<Value> {
        let mut merge = or_skip_list(self.merger(&source, times, again, reused), input)?;
        let mut done = self.done.remove(&source).unwrap_or_default();
        let mut kept = std::mem::replace(&mut self.kept, Kept::at_most(0));
        let merged = protocol::read_list(input, |item| {
            let record = protocol::listed(item)?;
            let before = done.times.len();
            let sum = if reused { self.reusing.sum(&source, &record.path) } else { None };
            merge.take(&record, &mut done.times, sum)?;
            if done.times.len() > before {
                kept.more(TIME + 2 * record.path.len())?;
            }
            self.wrote(pace::LINK)
        });
        self.done.insert(source, done);
        self.kept = kept;
        merged?;
        self.writable.pace.flush()?;
        value(merge.finish())
    }

    fn merger(&self, source: &str, times: bool, again: bool, reused: bool) -> Result<Merge> {
        named(source)?;
        let writable = &self.writable;
        if reused {
            ensure!(!writable.copy, "only a backup uses files again");
            let dir = |top: &str| writable.source_dir(top, source);
            return Ok(Merge::of_reused(dir(PARTIAL)?, dir(INCOMING)?, dir(REUSE)?));
        }
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

    /// The receiving rsync. It inherits the lock, so that nobody else writes as long as it lives, whatever
    /// happens to us.
    fn receiver(&self, receive: &Receive) -> Result<Cmd> {
        let Receive { source, checksum, times, again, acls_only, reused, more, .. } = receive;
        named(source)?;
        argv::check_capabilities(&receive.capabilities)?;
        let writable = &self.writable;
        if *acls_only && nix::unistd::geteuid().is_root() {
            // It writes over what another run has received, which as root is never needed.
            return Err(Fault::denied("ACLs are sent apart only to a store of an account").into());
        }
        if !acls_only && !more {
            drop(writable.fresh_incoming(source)?);
        }
        let path = |parts: [&str; 2]| writable.store.path.join(parts[0]).join(parts[1]);
        let mut compare = Vec::new();
        let at_hand = !writable.copy && !acls_only && self.reusing.has(source);
        if *acls_only || *reused {
            // Compared with what has been received, or is at hand.
        } else if *again {
            compare.push(path([PARTIAL, source]));
        } else {
            if *times
                && (*checksum || writable.copy || mutant::active("resumed-by-size-and-time"))
                && writable.resume_dir(source)?.is_some()
            {
                compare.push(path([RESUME, source]));
            }
            if let Some(base) = writable.base.as_ref().filter(|_| !writable.copy)
                && writable.base_dir(source)?.is_some()
            {
                compare.push(path([&base.date, source]));
            }
        }
        compare.extend(at_hand.then(|| path([REUSE, source])));
        let keeps = &writable.keeps;
        let cmd = argv::serve_receiving(&writable.store.rsync, receive, keeps.xattrs, keeps.acls, &compare)?;
        let into = Path::new(INCOMING).join(source).join("");
        Ok(cmd.arg(".").arg(into).dir(&writable.store.path).inherit(writable.lock.fd()))
    }
}
