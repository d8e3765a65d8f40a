//! What front and guardian tell each other: one JSON object a line, on a socket that ends with either.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use common::account::Account;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::settings::Settings;

/// Front to guardian, first: all it needs.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Job {
    pub(crate) settings: Settings,
    pub(crate) run_id: String,
    pub(crate) command: Vec<OsString>,
    pub(crate) dir: OsString,
    pub(crate) account: Account,
}

/// Front to guardian, later: a signal it got.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Forward {
    pub(crate) signal: i32,
}

/// Guardian to front.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The command is being started.
    Started,
    /// It has ended or been stopped; the switch is being thrown back.
    Ended,
    /// All is over.
    Done(Box<Outcome>),
}

/// How the run went.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// Maintenance was on before, and was left on.
    pub(crate) found_on: bool,
    /// The switch was thrown and thrown back.
    pub(crate) switched: bool,
    pub(crate) on_ms: Option<u64>,
    /// The part of `on_ms` that asking took.
    pub(crate) proof_ms: Option<u64>,
    pub(crate) off_ms: Option<u64>,
    pub(crate) maintenance_ms: Option<u64>,
    pub(crate) command: Option<Ended>,
    /// (kind, message)
    pub(crate) warnings: Vec<(String, String)>,
    /// (what, how to clear it)
    pub(crate) left_behind: Vec<(String, String)>,
    /// Exit code and description of what went wrong apart from the command.
    pub(crate) error: Option<(i32, Value)>,
}

/// How the command ended.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Ended {
    /// As waitpid(2) gives it; `None` if it could not be ended.
    pub(crate) status: Option<i32>,
    pub(crate) duration_ms: u64,
}

impl Outcome {
    /// Keeps the first error: a later one must not hide it.
    pub(crate) fn fail(&mut self, error: &anyhow::Error) {
        if self.error.is_none() {
            let kind = common::fault::kind_of(error);
            self.error = Some((kind.exit_code().into(), common::status::describe(error)));
        }
    }
}

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// The other end is gone.
    pub(crate) closed: bool,
}

impl Line {
    pub(crate) fn new(stream: UnixStream) -> Line {
        Line { stream, buffer: Vec::new(), closed: false }
    }

    /// For poll.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends `message`; an error if the other end is gone.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.stream.write_all(&line).context("the other half of nc-maint is gone")
    }

    /// A message, if a whole one is there; does not wait.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        while !self.closed {
            let mut chunk = [0u8; 8192];
            match recv(self.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => self.closed = true,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => self.closed = true,
            }
        }
        let Some(end) = self.buffer.iter().position(|b| *b == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        serde_json::from_slice(&line).map(Some).context("the other half of nc-maint sent something odd")
    }
}
