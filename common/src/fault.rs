//! Typed failures: what decides the exit code, and the cure a person is told.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;

use crate::complaint;

/// Why something failed, as far as the caller's next step depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was tried and did not work; this run's traces have been undone.
    Failed,
    /// A program or a host that is needed is not there.
    Unavailable,
    /// Somebody else holds the lock.
    Busy,
    /// The rights do not suffice.
    Denied,
    /// The profile is wrong, or a source or store is not what it was.
    Config,
    /// The command line is wrong.
    Usage,
    /// Signal number N asked us to stop.
    Interrupted(i32),
}

impl Kind {
    /// Exit code of the contract.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Unavailable => 69,
            Kind::Busy => 75,
            Kind::Denied => 77,
            Kind::Config => 78,
            Kind::Interrupted(signal) => 128 + u8::try_from(signal).unwrap_or(0),
        }
    }

    /// The word used for `status` and `error.kind`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::Usage => "usage",
            Kind::Unavailable => "unavailable",
            Kind::Busy => "busy",
            Kind::Denied => "denied",
            Kind::Config => "config",
            Kind::Interrupted(_) => "interrupted",
        }
    }

    /// The inverse of [`Kind::exit_code`], for a status read from another tool or from the far end.
    pub fn from_exit_code(code: i32) -> Kind {
        match code {
            2 => Kind::Usage,
            69 => Kind::Unavailable,
            75 => Kind::Busy,
            77 => Kind::Denied,
            78 => Kind::Config,
            129..=192 => Kind::Interrupted(code - 128),
            _ => Kind::Failed,
        }
    }
}

/// An error with a kind and, where we know one, the cure.
#[derive(Debug)]
pub struct Fault {
    /// Decides the exit code.
    pub kind: Kind,
    /// One sentence in the user's terms.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// An error described elsewhere ([`crate::status::describe`]) that this one passes on.
    pub relayed: Option<Value>,
}

impl Fault {
    /// A fault of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into(), hint: None, relayed: None }
    }
    /// Tried and failed.
    pub fn failed(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Failed, message)
    }
    /// Program or host missing.
    pub fn unavailable(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Unavailable, message)
    }
    /// Lock held.
    pub fn busy(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Busy, message)
    }
    /// Rights missing.
    pub fn denied(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Denied, message)
    }
    /// Profile, source or store wrong.
    pub fn config(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Config, message)
    }
    /// Command line wrong.
    pub fn usage(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Usage, message)
    }
    /// Signal `signal` stopped us.
    pub fn interrupted(signal: i32) -> Fault {
        Fault::new(Kind::Interrupted(signal), format!("stopped by signal {signal}"))
    }
    /// An error that another process described: same kind, same words, its causes and command kept.
    pub fn relay(exit_code: i32, described: Value) -> Fault {
        let text = |key: &str| described[key].as_str().map(str::to_owned);
        Fault {
            kind: Kind::from_exit_code(exit_code),
            message: text("message").unwrap_or_else(|| "failed without a word".into()),
            hint: text("hint"),
            relayed: Some(described),
        }
    }

    /// Adds the cure.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// A child that did not do its work.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Decides our exit code.
    pub kind: Kind,
    /// Absolute program.
    pub program: String,
    /// Its arguments. Never holds a secret, because no argv of ours does.
    pub args: Vec<String>,
    /// Exit code, if it exited.
    pub exit_code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// The end of what it said.
    pub stderr_tail: String,
    /// What to do about it.
    pub hint: Option<String>,
    pub(crate) ended: Option<Ended>,
}

/// Why we ended a child.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// It took longer than this.
    Late(Duration),
    /// It did nothing for this long.
    Quiet(Duration),
    /// It said more than so many bytes.
    Flood(&'static str, u64),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.program)?;
        match (self.ended, self.exit_code, self.signal) {
            (Some(Ended::Late(limit)), ..) => write!(f, "did not finish within {limit:?}")?,
            (Some(Ended::Quiet(limit)), ..) => write!(f, "did nothing for {limit:?} and was ended")?,
            (Some(Ended::Flood(stream, limit)), ..) => {
                write!(f, "wrote more than {limit} bytes to {stream} and was ended")?;
            }
            (_, Some(code), _) => write!(f, "failed with exit code {code}")?,
            (_, _, Some(signal)) => write!(f, "was ended by signal {signal}")?,
            _ => write!(f, "failed")?,
        }
        if let Some(line) = complaint::line(&self.stderr_tail) {
            write!(f, ": {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// Of a child with this argv that has not ended yet.
    pub(crate) fn blank(argv: &[OsString]) -> Failure {
        let mut argv = argv.iter().map(|a| a.to_string_lossy().into_owned());
        Failure {
            kind: Kind::Failed,
            program: argv.next().unwrap_or_default(),
            args: argv.collect(),
            exit_code: None,
            signal: None,
            stderr_tail: String::new(),
            hint: None,
            ended: None,
        }
    }

    /// With how it ended. That a program is missing, or that sudo lets nobody start it, is of a kind of its own.
    pub(crate) fn ending(mut self, status: ExitStatus, stderr_tail: String) -> Failure {
        let sudo = Path::new(&self.program).file_name() == Some(OsStr::new("sudo"))
            && stderr_tail.lines().any(|line| line.starts_with("sudo: "));
        self.kind = match status.code() {
            Some(127) => Kind::Unavailable,
            // What sudo started ends with codes of its own, and says other things.
            Some(1) if sudo => Kind::Denied,
            _ => self.kind,
        };
        (self.exit_code, self.signal) = (status.code(), status.signal());
        self.stderr_tail = stderr_tail;
        self
    }
}

/// The kind an error carries anywhere in its chain; `Failed` if none does.
pub fn kind_of(error: &anyhow::Error) -> Kind {
    if let Some(fault) = error.downcast_ref::<Fault>() {
        return fault.kind;
    }
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.kind;
    }
    if let Some(io) = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>())
        && io.kind() == std::io::ErrorKind::PermissionDenied
    {
        return Kind::Denied;
    }
    Kind::Failed
}

/// Whether a disk, or what an account may take of it, is full.
pub fn no_room(error: &anyhow::Error) -> bool {
    let full = [nix::errno::Errno::ENOSPC, nix::errno::Errno::EDQUOT];
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        let code = cause.downcast_ref::<nix::errno::Errno>().copied();
        code.or_else(|| io.map(nix::errno::Errno::from_raw)).is_some_and(|code| full.contains(&code))
    })
}
