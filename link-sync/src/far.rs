//! The conversation with the far end: a child process, here or behind ssh, and its two pipes.

use std::io::{BufReader, BufWriter, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use common::complaint::tail;
use common::fault::{Fault, Kind};
use common::program::Program;
use common::run::{Child, Cmd};
use common::signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::budget::Budget;
use crate::protocol::{
    self, Door, Frame, GREETING, Hello, Knock, ListWriter, MAX_ANSWER, MAX_FRAME, READING, Reply, WRITING,
};
use crate::pulse::{Pipe, Pulse};
use crate::settings::{Place, Settings};
use crate::ssh;

/// What a login shell may print before the far end's greeting, in bytes.
const NOISE: usize = 64 * 1024;

/// How long the far end may stay silent at first.
const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// The far end. Dropping it ends the conversation; nothing is published then.
#[derive(Debug)]
pub struct Far {
    /// What it writes.
    pub input: BufReader<Pipe<ChildStdout>>,
    /// What it reads; taken away to end it.
    pub output: Option<BufWriter<Pipe<ChildStdin>>>,
    /// What it said of itself.
    pub hello: Hello,
    /// Changed parts of files are worth looking for: there is a network between.
    pub remote: bool,
    child: Child,
    /// Ends the child when nothing should wait for it any longer. Gone before the child is reaped, so that its number is
    /// its own.
    pulse: Option<Pulse>,
}

impl Far {
    /// Starts the far end and greets it.
    pub fn connect(settings: &Settings) -> Result<Far> {
        Far::connect_anywhere(settings)?.at(Door::Backup)
    }

    /// The same, at whichever door the key opens.
    pub fn connect_anywhere(settings: &Settings) -> Result<Far> {
        let (cmd, remote) = match &settings.store {
            Place::Local(path) => (local(settings, path)?, None),
            Place::Ssh { host, path } => (ssh::far_end(settings, host, path, false)?, Some(host.as_str())),
        };
        let wanted = match &settings.store {
            Place::Local(path) => path.as_path(),
            Place::Ssh { path, .. } => Path::new(path),
        };
        Far::meet(&cmd, remote, wanted, Door::Backup)
    }

    /// Like [`Far::connect`], for reading alone: with the key that can do no more.
    pub fn connect_reading(settings: &Settings) -> Result<Far> {
        let mut reading = settings.clone();
        reading.ssh.identity = settings.ssh.restore_identity.clone().or(settings.ssh.identity.clone());
        let (cmd, remote, wanted) = match &reading.store {
            Place::Local(path) => (local(&reading, path)?.arg("--read-only"), None, path.clone()),
            Place::Ssh { host, path } => {
                (ssh::far_end(&reading, host, path, true)?, Some(host.as_str()), path.into())
            }
        };
        Far::start(&cmd, remote, &wanted, Door::Read)
    }

    /// Starts `cmd`, a far end, and greets it. It must serve the store `wanted`, at `door`.
    pub fn start(cmd: &Cmd, remote: Option<&str>, wanted: &Path, door: Door) -> Result<Far> {
        Far::meet(cmd, remote, wanted, door)?.at(door)
    }

    /// It must be at `door`.
    fn at(self, door: Door) -> Result<Far> {
        match (door, self.hello.door) {
            (wanted, is) if wanted == is => Ok(self),
            (Door::Read, _) => {
                Err(Fault::denied("this key may write snapshots and not read them").hint(READING).into())
            }
            _ => Err(Fault::denied("this key may read the store and not change it").hint(WRITING).into()),
        }
    }

    fn meet(cmd: &Cmd, remote: Option<&str>, wanted: &Path, door: Door) -> Result<Far> {
        let mut child = cmd.spawn_piped()?;
        let output = child.take_stdin().context("no pipe to the far end")?;
        let input = child.take_stdout().context("no pipe from the far end")?;
        let pulse = Pulse::watch(child.id())?;
        let mut far = Far {
            input: BufReader::with_capacity(MAX_FRAME, pulse.pipe(input)),
            output: Some(BufWriter::with_capacity(MAX_FRAME, pulse.pipe(output))),
            hello: Hello { protocol: 0, door, version: String::new(), store: String::new(), root: false },
            remote: remote.is_some(),
            child,
            pulse: Some(pulse),
        };
        if let Err(error) = far.greeting() {
            return Err(far.why_no_greeting(error, remote));
        }
        far.hello = far.ask(&Knock::Hello { protocol: protocol::VERSION })?;
        if Path::new(&far.hello.store).components().ne(wanted.components()) {
            let wanted = wanted.display();
            return Err(Fault::config(format!(
                "store = \"{wanted}\" is asked for, but the other machine serves {}",
                far.hello.store
            ))
            .hint("make store in [snapshot] here and path in [store] there the same")
            .into());
        }
        Ok(far)
    }

    /// Skips what the login shell printed.
    fn greeting(&mut self) -> Result<()> {
        let mut seen = Vec::new();
        // The greeting begins with a newline, which may be the shell's last.
        while !seen.ends_with(GREETING) {
            if self.input.buffer().is_empty() {
                let mut fds = [PollFd::new(self.input.get_ref().as_fd(), PollFlags::POLLIN)];
                let limit = PollTimeout::try_from(GREETING_LIMIT).unwrap_or(PollTimeout::MAX);
                if poll(&mut fds, limit).is_ok_and(|n| n == 0) {
                    self.child.end();
                    bail!("the other end said nothing for {GREETING_LIMIT:?}");
                }
            }
            let mut byte = [0];
            self.input.read_exact(&mut byte)?;
            seen.push(byte[0]);
            if seen.len() > NOISE {
                bail!("the other end printed {NOISE} bytes that are no greeting: {}", tail(&seen));
            }
        }
        Ok(())
    }

    fn why_no_greeting(&mut self, error: anyhow::Error, remote: Option<&str>) -> anyhow::Error {
        if let Err(stopped) = signals::check() {
            return stopped;
        }
        self.output = None;
        self.pulse = None;
        let status = match self.child.wait(Some(Duration::from_secs(10)), true) {
            Ok(status) => status,
            Err(e) => return e,
        };
        let mut failure = match self.child.failure_for(status) {
            Ok(failure) => failure,
            Err(e) => return e,
        };
        let code = failure.exit_code.unwrap_or(255);
        failure.kind = match code {
            69..=78 => Kind::from_exit_code(code),
            _ if failure.stderr_tail.contains("Permission denied (") => Kind::Denied,
            _ => Kind::Unavailable,
        };
        let Some(host) = remote else {
            return anyhow::Error::from(failure).context("the store could not be opened");
        };
        let said = failure.stderr_tail.clone();
        failure.hint = Some(ssh::hint(&failure, host));
        drop(error);
        if let Some(theirs) = said.lines().find_map(|line| line.strip_prefix("link-sync: ")) {
            // Not once more.
            let rest = said.lines().filter(|line| !line.starts_with("link-sync: "));
            failure.stderr_tail = rest.collect::<Vec<_>>().join("\n");
            return anyhow::Error::from(failure).context(format!("link-sync on {host}: {theirs}"));
        }
        anyhow::Error::from(failure)
            .context(format!("{host} could not be reached, or link-sync does not run there"))
    }

    /// From now on there is no more time than `budget` has left.
    pub fn within(&mut self, budget: &Budget) {
        if let Some(pulse) = &self.pulse {
            pulse.within(budget);
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &impl Serialize) -> Result<T> {
        self.send(request)?;
        self.answer()
    }

    /// Asks with a list.
    pub fn ask_with_list<T: DeserializeOwned>(
        &mut self,
        request: &impl Serialize,
        fill: impl FnOnce(&mut ListWriter<'_, BufWriter<Pipe<ChildStdin>>>) -> Result<()>,
    ) -> Result<T> {
        self.ask_with_list_watched(request, fill, |_| ())
    }

    /// Asks with a list; `watch` is told how far the far end has come.
    pub fn ask_with_list_watched<T: DeserializeOwned>(
        &mut self,
        request: &impl Serialize,
        fill: impl FnOnce(&mut ListWriter<'_, BufWriter<Pipe<ChildStdin>>>) -> Result<()>,
        mut watch: impl FnMut(u64),
    ) -> Result<T> {
        self.send(request)?;
        let output = self.output.as_mut().context("the conversation has ended")?;
        let mut list = ListWriter::new(output);
        let sent = fill(&mut list).and_then(|()| list.finish());
        sent.map_err(|e| self.lost(e))?;
        self.answer_watched(|done, _| watch(done))
    }

    /// Asks; `watch` is told how far the far end has come, and of how much.
    pub fn ask_watched<T: DeserializeOwned>(
        &mut self,
        request: &impl Serialize,
        watch: impl FnMut(u64, u64),
    ) -> Result<T> {
        self.send(request)?;
        self.answer_watched(watch)
    }

    /// Asks for an object whose array `parts` may be long, and comes part by part.
    pub fn ask_in_parts(
        &mut self,
        request: &impl Serialize,
        parts: &str,
        watch: impl FnMut(u64, u64),
    ) -> Result<Value> {
        self.send(request)?;
        let mut list = Vec::new();
        let mut answer: Value = self.answer_with(watch, |part| {
            list.push(serde_json::from_slice::<Value>(part).context("an answer that is not understood")?);
            Ok(())
        })?;
        answer[parts] = Value::Array(list);
        Ok(answer)
    }

    /// Sends a request.
    pub fn send(&mut self, request: &impl Serialize) -> Result<()> {
        signals::check()?;
        let output = self.output.as_mut().context("the conversation has ended")?;
        protocol::send_message(output, request).map_err(|e| self.lost(e))
    }

    /// Waits for an answer.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.answer_watched(|_, _| ())
    }

    fn answer_watched<T: DeserializeOwned>(&mut self, watch: impl FnMut(u64, u64)) -> Result<T> {
        self.answer_with(watch, |_| bail!("the other end is out of step"))
    }

    fn answer_with<T: DeserializeOwned>(
        &mut self,
        mut watch: impl FnMut(u64, u64),
        mut part: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<T> {
        let mut frame = Vec::new();
        loop {
            let kind =
                protocol::receive(&mut self.input, &mut frame, MAX_ANSWER).map_err(|e| self.lost(e))?;
            match kind {
                Some(Frame::Message) => return decode(&frame),
                Some(Frame::Alive) => {}
                Some(Frame::Item) => part(&frame)?,
                Some(Frame::Count) => {
                    let number = |at: usize| {
                        let bytes = frame.get(at..).and_then(|rest| rest.first_chunk());
                        bytes.map_or(0, |n| u64::from_be_bytes(*n))
                    };
                    watch(number(0), number(8));
                }
                Some(_) => bail!("the other end is out of step"),
                None => return Err(self.lost(anyhow::anyhow!("it closed the connection"))),
            }
        }
    }

    /// What it means that the conversation broke.
    pub fn lost(&self, error: anyhow::Error) -> anyhow::Error {
        if let Err(stopped) = signals::check() {
            return stopped;
        }
        let said = match self.pulse.as_ref().and_then(Pulse::ended) {
            Some(why) => why.to_owned(),
            None => self.child.stderr().map(|s| tail(&s)).unwrap_or_default(),
        };
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        error.context(
            Fault::unavailable(format!("the connection to the store broke{said}"))
                .hint("nothing is published; what has arrived is kept, and the next run continues with it"),
        )
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.output = None;
        self.pulse = None;
        if self.child.wait(Some(Duration::from_secs(5)), false).is_err() {
            self.child.end();
        }
    }
}

/// Decodes an answer.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T> {
    match serde_json::from_slice(frame).context("an answer that is not understood")? {
        Reply::Ok(value) => serde_json::from_value(value).context("an answer that is not understood"),
        Reply::Err(code, described) => Err(Fault::relay(code, described).into()),
    }
}

fn local(settings: &Settings, path: &Path) -> Result<Cmd> {
    let mut cmd = Program::own()?.cmd().arg("serve").arg("--store").arg(path);
    if let Some(store) = settings.profile.store.as_ref().filter(|s| s.path == path) {
        if let Some(mount) = &store.mount {
            cmd = cmd.arg("--mount").arg(mount);
        }
        for (option, number) in [
            ("--reserve-bytes", store.reserve_bytes),
            ("--max-bytes-per-day", store.max_bytes_per_day),
            ("--max-inodes-per-day", store.max_inodes_per_day),
        ] {
            if let Some(number) = number {
                cmd = cmd.arg(option).arg(number.to_string());
            }
        }
        for word in &store.rsync {
            cmd = cmd.arg(format!("--rsync={word}"));
        }
    }
    Ok(cmd)
}
