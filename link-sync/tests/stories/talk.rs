//! One who speaks the protocol with a real far end, and may say anything.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// The far end neither answers nor ends: that is a fault, however loaded the machine is.
const LIMIT: Duration = Duration::from_secs(120);
pub const PROTOCOL: u32 = 5;

pub struct Talk {
    child: Child,
    to: Option<ChildStdin>,
    from: ChildStdout,
    came: Vec<u8>,
    over: bool,
    /// The most memory it ever had, in bytes, when last looked.
    pub peak: u64,
}

/// Which door is knocked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Backup,
    Read,
    Copy,
}

impl Talk {
    /// A conversation in which nothing was said yet.
    pub fn silent(at: At, store: &Path, options: &[&str]) -> Talk {
        let mut command = Command::new(testkit::bin("link-sync"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        match at {
            At::Copy => {
                // Only one's own child is let in there.
                fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
                command.args(["copy-end", "--starter-fd", &theirs.as_raw_fd().to_string()]);
                command.args(["--flush-bytes", "4194304", "--reserve-bytes", "0"]);
            }
            At::Read => drop(command.args(["serve", "--read-only", "--reserve-bytes", "0"])),
            At::Backup => drop(command.args(["serve", "--reserve-bytes", "0"])),
        }
        command.arg("--store").arg(store).args(options);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((ours, theirs));
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        for fd in [to.as_fd(), from.as_fd()] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        }
        let mut talk = Talk { child, to: Some(to), from, came: Vec::new(), over: false, peak: 0 };
        let begin = Instant::now();
        while talk.came.len() < 24 && !talk.over {
            assert!(begin.elapsed() < LIMIT, "no greeting");
            talk.turn(b"", Duration::from_millis(100));
        }
        assert!(talk.came.starts_with(b"\nlink-sync serve: ready\n"), "{:?}", talk.said());
        drop(talk.came.drain(..24));
        talk
    }

    /// One that has said hello.
    #[track_caller]
    pub fn at(at: At, store: &Path, options: &[&str]) -> Talk {
        let mut talk = Talk::silent(at, store, options);
        let hello = talk.ask(&json!({"ask": "hello", "protocol": PROTOCOL}));
        let door = ["backup", "read", "copy"]
            [[At::Backup, At::Read, At::Copy].iter().position(|a| *a == at).unwrap()];
        assert_eq!(hello["ok"]["door"], door, "{hello}");
        talk
    }

    /// One that has begun a backup and cloned the base into it.
    #[track_caller]
    pub fn begun(store: &Path, options: &[&str]) -> Talk {
        let mut talk = Talk::at(At::Backup, store, options);
        let open = talk.ask(&json!({"ask": "open"}));
        assert!(open.get("ok").is_some(), "{open}");
        let clone = talk.ask_with(&json!({"ask": "clone", "source": "docs"}), &[]);
        assert!(clone.get("ok").is_some(), "{clone}");
        talk
    }

    /// Says `bytes`, as far as they are taken within `limit`, and takes what is said. Returns how many were taken.
    fn turn(&mut self, bytes: &[u8], limit: Duration) -> usize {
        let mut fds = vec![PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        if let Some(to) = self.to.as_ref().filter(|_| !bytes.is_empty()) {
            fds.push(PollFd::new(to.as_fd(), PollFlags::POLLOUT));
        }
        poll(&mut fds, PollTimeout::try_from(limit).unwrap()).ok();
        let mut buffer = [0; 1 << 16];
        match self.from.read(&mut buffer) {
            Ok(0) => self.over = true,
            Ok(n) => self.came.extend_from_slice(&buffer[..n]),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
        let Some(to) = self.to.as_mut().filter(|_| !bytes.is_empty()) else { return 0 };
        match to.write(bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => 0,
            // It has ended, and takes no more.
            Err(_) => {
                self.over = true;
                bytes.len()
            }
        }
    }

    /// Says `bytes`; `false` if the far end does not take them.
    pub fn say(&mut self, mut bytes: &[u8]) -> bool {
        let begin = Instant::now();
        while !bytes.is_empty() {
            assert!(begin.elapsed() < LIMIT, "it takes nothing and does not end");
            let n = self.turn(bytes, Duration::from_secs(1));
            bytes = &bytes[n..];
            if self.over {
                return false;
            }
        }
        self.look();
        true
    }

    pub fn frame(&mut self, kind: u8, payload: &[u8]) -> bool {
        let head = [&[kind][..], &(payload.len() as u32).to_be_bytes()].concat();
        self.say(&[&head, payload].concat())
    }

    /// Asks without listening, until nothing more is taken.
    pub fn stuff(&mut self, kind: u8, payload: &[u8]) {
        let frame = [&[kind][..], &(payload.len() as u32).to_be_bytes(), payload].concat();
        let to = self.to.as_mut().unwrap();
        let (mut full, mut rest) = (0, &frame[..]);
        while full < 20 {
            match to.write(rest) {
                Ok(n) => {
                    full = 0;
                    rest = if n == rest.len() { &frame } else { &rest[n..] };
                }
                Err(_) => {
                    full += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        // Not a word is heard before it has ended.
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < LIMIT, "it waits for ever");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The next frame, if one comes within `limit`.
    pub fn hear(&mut self, limit: Duration) -> Option<(u8, Vec<u8>)> {
        let begin = Instant::now();
        loop {
            if let Some((head, rest)) = self.came.split_first_chunk::<5>() {
                let len = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
                if rest.len() >= len {
                    let frame = (head[0], rest[..len].to_vec());
                    drop(self.came.drain(..5 + len));
                    return Some(frame);
                }
            }
            if self.over || begin.elapsed() >= limit {
                return None;
            }
            self.turn(b"", Duration::from_millis(20).min(limit));
        }
    }

    /// The answer; `null` if it ended instead. The parts of a long one are its `parts`.
    pub fn answer(&mut self) -> Value {
        let mut parts: Vec<Value> = Vec::new();
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < LIMIT, "it neither answers nor ends");
            match self.hear(Duration::from_secs(1)) {
                Some((b'M', text)) => {
                    let mut answer: Value = serde_json::from_slice(&text).unwrap();
                    if !parts.is_empty() {
                        answer["parts"] = parts.into();
                    }
                    return answer;
                }
                Some((b'I', text)) => parts.push(serde_json::from_slice(&text).unwrap()),
                Some(_) => {}
                None if self.over => return Value::Null,
                None => {}
            }
        }
    }

    pub fn ask(&mut self, request: &Value) -> Value {
        self.frame(b'M', request.to_string().as_bytes());
        self.answer()
    }

    pub fn ask_with(&mut self, request: &Value, items: &[Vec<u8>]) -> Value {
        self.frame(b'M', request.to_string().as_bytes());
        for piece in items.chunks(64).filter(|piece| !piece.is_empty()) {
            self.frame(b'L', &list(piece));
        }
        self.frame(b'L', b"");
        self.answer()
    }

    /// Looks how much memory it ever had.
    pub fn look(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        self.peak = self.peak.max(peak.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0) * 1024);
    }

    pub fn has_ended(&mut self) -> bool {
        self.turn(b"", Duration::from_millis(1));
        self.over
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().map(|mut e| e.read_to_string(&mut text).ok());
        text
    }

    /// Says no more, and waits for its end: the exit code, 128 and the signal if one ended it, and its stderr.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        self.look();
        drop(self.to.take());
        self.ended()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> (i32, String) {
        let begin = Instant::now();
        while !self.over {
            assert!(begin.elapsed() < LIMIT, "it does not end");
            self.turn(b"", Duration::from_millis(50));
        }
        let status = self.child.wait().unwrap();
        use std::os::unix::process::ExitStatusExt as _;
        (status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)), self.said())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Items of a list, in one frame.
pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    items.iter().flat_map(|i| [&(i.len() as u32).to_le_bytes()[..], i].concat()).collect()
}

/// A record of a list.
pub fn record(kind: u32, path: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 20], path].concat()
}

/// Asserts that `answer` is a refusal with this exit code, in words that hold `word`.
#[track_caller]
pub fn refused(answer: &Value, code: i32, word: &str) {
    let (is, message) = (&answer["err"][0], answer["err"][1].to_string());
    assert!(*is == code && message.contains(word), "not refused with {code}, \"{word}\": {answer}");
}
