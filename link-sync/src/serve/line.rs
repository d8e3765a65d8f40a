//! One conversation, seen from the far end: what is asked, in the state it may be asked in, and what is answered.

use std::io::{BufReader, Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::fault::Fault;
use common::retention::Retention;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protocol::{self, Door, Frame, Hello, Knock, MAX_FRAME, MAX_REQUEST, READING, Reply, WRITING};
use crate::signs::{Alive, Watched, Working};
use crate::store::allowance::Limits;

/// How often the source is told how far long work has come.
pub const TELL: Duration = Duration::from_millis(200);

/// Requests in one conversation.
const REQUESTS: u64 = 1_000_000;

/// What one conversation may do.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whose it is.
    pub door: Door,
    /// Which snapshots this machine's profile keeps.
    pub retention: Retention,
    /// What a day may add; `None` where nothing but the reserve counts.
    pub limits: Option<Limits>,
    /// How long the other end may be silent.
    pub silence: Duration,
    /// How many bytes of what it says in lists are remembered at a time.
    pub memory: u64,
}

/// The two directions, and whose they are.
#[derive(Debug)]
pub struct Line<'a, I: Read, O: Write + Send> {
    /// What the other end says.
    pub input: BufReader<Watched<'a, I>>,
    /// What it is told; goes out when it is flushed, in whole frames.
    pub output: O,
    door: Door,
    alive: &'a Alive,
    working: Option<Working<'a>>,
    frame: Vec<u8>,
    asked: u64,
}

/// What every request says.
#[derive(Deserialize)]
struct Asked {
    ask: String,
}

impl<'a, I: Read, O: Write + Send> Line<'a, I, O> {
    /// A conversation at `door`.
    pub fn new(door: Door, input: I, output: O, alive: &'a Alive) -> Line<'a, I, O> {
        let input = BufReader::with_capacity(MAX_FRAME, Watched::new(input, alive));
        Line { input, output, door, alive, working: None, frame: Vec::new(), asked: 0 }
    }

    /// Prints the greeting and learns who is there; `false` if nobody stays.
    pub fn greet(&mut self, store: String) -> Result<bool> {
        self.output.write_all(protocol::GREETING)?;
        self.output.flush()?;
        let Some(Knock::Hello { protocol: theirs }) =
            self.next::<Knock, Knock>("nobody has said hello yet")?
        else {
            return Ok(false);
        };
        if theirs != protocol::VERSION {
            let fault = Fault::config(format!(
                "the source speaks protocol {theirs}, link-sync {} on the store's machine speaks {}",
                env!("CARGO_PKG_VERSION"),
                protocol::VERSION
            ))
            .hint("install the same version on both machines");
            self.reply::<()>(Err(fault.into()))?;
            return Ok(false);
        }
        self.reply(Ok(Hello {
            protocol: protocol::VERSION,
            door: self.door,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store,
            root: nix::unistd::geteuid().is_root(),
        }))?;
        self.alive.met();
        Ok(true)
    }

    /// The next request, which must be one of `Now`; `All` are those of this door, and `state` says why they are not all asked
    /// now. Anything else is answered, and ends the conversation: who asks it is out of step, or at the wrong door. `None` at
    /// the end of the input.
    pub fn next<Now: DeserializeOwned, All: DeserializeOwned>(&mut self, state: &str) -> Result<Option<Now>> {
        match protocol::receive(&mut self.input, &mut self.frame, MAX_REQUEST)? {
            None => return Ok(None),
            Some(kind) => ensure!(kind == Frame::Message, "a request was expected"),
        }
        self.asked += 1;
        self.working = Some(self.alive.working());
        let refused = match serde_json::from_slice(&self.frame) {
            Ok(request) if self.asked <= REQUESTS => return Ok(Some(request)),
            Ok(_) => Fault::denied(format!("more than {REQUESTS} requests in one conversation")),
            Err(_) => self.refuse::<All>(state),
        };
        let said = Fault::new(refused.kind, refused.message.clone());
        self.reply::<()>(Err(refused.into()))?;
        Err(said.into())
    }

    fn refuse<All: DeserializeOwned>(&self, state: &str) -> Fault {
        let Ok(Asked { ask }) = serde_json::from_slice(&self.frame) else {
            return Fault::failed("a request that is not understood")
                .hint("install the same version on both machines");
        };
        let ask: String = ask.chars().take(32).collect();
        if serde_json::from_slice::<All>(&self.frame).is_ok() {
            return Fault::failed(format!("'{ask}' cannot be asked now: {state}"));
        }
        match self.door {
            Door::Backup => Fault::denied(format!(
                "this key may write snapshots and not read them: '{ask}', as it was asked, is no request for it"
            ))
            .hint(READING),
            Door::Read => Fault::denied(format!(
                "this key may read the store and not change it: '{ask}', as it was asked, is no request for it"
            ))
            .hint(WRITING),
            Door::Copy => Fault::failed(format!("'{ask}', as it was asked, is no request of a copy")),
        }
    }

    /// Answers a request. An error that the other end is told is no error of the conversation.
    pub fn reply<T: Serialize>(&mut self, answer: Result<T>) -> Result<()> {
        let reply =
            match answer.and_then(|value| serde_json::to_value(value).context("cannot encode an answer")) {
                Ok(value) => Reply::Ok(value),
                Err(error) => {
                    let code = i32::from(common::fault::kind_of(&error).exit_code());
                    Reply::Err(code, common::status::describe(&error))
                }
            };
        protocol::send_message(&mut self.output, &reply)?;
        self.working = None;
        Ok(())
    }

    /// Answers a request with an object whose array `parts` may be long: its parts go one by one, before the rest.
    pub fn reply_in_parts(&mut self, answer: Result<Value>, parts: &str) -> Result<()> {
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => return self.reply::<()>(Err(error)),
        };
        if let Some(Value::Array(list)) = answer.get_mut(parts).map(Value::take) {
            for part in &list {
                protocol::send_item(&mut self.output, part)?;
            }
        }
        self.reply(Ok(answer))
    }
}

/// Tells the source how far long work has come, a few times a second.
pub fn teller<W: Write + Send>(output: &mut W) -> impl Fn(u64, u64) -> Result<()> + Sync {
    let watcher = Mutex::new((output, Instant::now()));
    move |done, total| {
        let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.1.elapsed() >= TELL {
            watcher.1 = Instant::now();
            let count = [done.to_be_bytes(), total.to_be_bytes()].concat();
            protocol::send(watcher.0, Frame::Count, &count)?;
            watcher.0.flush()?;
        }
        Ok(())
    }
}

/// `ready`, or its error after the list that follows the request has been read, so that the conversation stays
/// in step.
pub fn or_skip_list<T>(ready: Result<T>, input: &mut impl Read) -> Result<T> {
    if ready.is_err() {
        protocol::read_list(input, |_| Ok(()))?;
    }
    ready
}
