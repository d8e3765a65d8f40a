//! The command's two output streams: objects are kept for the report, the rest goes to people.

use std::io::{PipeReader, Read as _};
use std::os::fd::AsFd as _;

use common::show;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

/// How much of the command's stderr goes into an error, in bytes.
const TAIL: usize = 2048;
/// How many bytes of objects are kept, and how long one line may be.
const LIMIT: usize = 4 * 1024 * 1024;
/// How long a line of stderr may be before its end is no longer waited for.
const LINE: usize = 64 * 1024;

/// What came out of the command so far.
#[derive(Debug)]
pub(crate) struct Relay {
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    line: Vec<u8>,
    /// A line of stderr that has no end yet.
    said: Vec<u8>,
    kept: usize,
    /// The JSON objects, in order.
    pub(crate) objects: Vec<Value>,
    /// The end of what it said.
    pub(crate) tail: Vec<u8>,
    /// Objects that were too much to keep.
    pub(crate) dropped: usize,
}

impl Relay {
    pub(crate) fn new(stdout: PipeReader, stderr: PipeReader) -> Relay {
        let (stdout, stderr) = (Some(stdout), Some(stderr));
        Relay {
            stdout,
            stderr,
            line: Vec::new(),
            said: Vec::new(),
            kept: 0,
            objects: Vec::new(),
            tail: Vec::new(),
            dropped: 0,
        }
    }

    /// The streams that are still open, for poll.
    pub(crate) fn open(&self) -> impl Iterator<Item = &PipeReader> {
        self.stdout.iter().chain(&self.stderr)
    }

    /// Takes what is there, without waiting. With `last`, also a line without an end.
    pub(crate) fn pump(&mut self, last: bool) {
        while let Some(bytes) = ready(&mut self.stdout) {
            self.feed(&bytes);
        }
        while let Some(bytes) = ready(&mut self.stderr) {
            self.tail.extend_from_slice(&bytes);
            let surplus = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..surplus);
            self.said.extend_from_slice(&bytes);
        }
        self.tell_lines();
        if last {
            show::passage(&std::mem::take(&mut self.said));
        }
        if last && !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.take_line(&line);
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() > LIMIT {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line);
            }
        }
    }

    fn take_line(&mut self, line: &[u8]) {
        match serde_json::from_slice::<Value>(line) {
            Ok(object @ Value::Object(_)) if self.kept + line.len() <= LIMIT => {
                self.kept += line.len();
                self.objects.push(object);
            }
            Ok(Value::Object(_)) => self.dropped += 1,
            _ => show::passage(line),
        }
    }

    /// Whole lines to people, so that no character is cut in two; what has no line's end waits for it, within limits.
    fn tell_lines(&mut self) {
        let end = self.said.iter().rposition(|b| *b == b'\n').map_or(0, |last| last + 1);
        let end = if self.said.len() - end > LINE { self.said.len() } else { end };
        show::passage(&self.said[..end]);
        self.said.drain(..end);
    }
}

/// Some bytes, if there are any now; a stream that has ended is closed.
fn ready(stream: &mut Option<PipeReader>) -> Option<Vec<u8>> {
    let reader = stream.as_mut()?;
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
        return None;
    }
    let mut chunk = vec![0; 65536];
    match reader.read(&mut chunk) {
        Ok(n) if n > 0 => {
            chunk.truncate(n);
            Some(chunk)
        }
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => None,
        _ => {
            *stream = None;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn objects_are_kept_in_order_and_a_last_line_needs_no_end() {
        let (out, mut write) = std::io::pipe().unwrap();
        let (err, _keep) = std::io::pipe().unwrap();
        let mut relay = Relay::new(out, err);
        write.write_all(b"{\"a\":1}\n[1]\nplain\n{\"b\":").unwrap();
        relay.pump(false);
        assert_eq!(relay.objects.len(), 1);
        write.write_all(b"2}").unwrap();
        drop(write);
        relay.pump(true);
        assert_eq!(relay.objects[1]["b"], 2);
        assert_eq!(relay.open().count(), 1, "stdout has ended, stderr not");
    }
}
