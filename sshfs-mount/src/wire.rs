//! How many bytes have gone through the relays of a mount: `s3.wire` in the runtime folder.
//!
//! One line of fixed width for each connection, rewritten in place by its relay: process, bytes that have left
//! this machine and were acknowledged, bytes that arrived.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::durable;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::settings::Settings;

/// Payload of TCP, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Where the numbers of this mount are.
pub(crate) fn path(settings: &Settings) -> PathBuf {
    settings.runtime.join("s3.wire")
}

/// Begins with nothing.
pub(crate) fn reset(settings: &Settings) -> Result<()> {
    remove(settings)?;
    let path = path(settings);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = open(&path, flags, Mode::from_bits_truncate(0o600));
    made.map(drop).with_context(|| format!("cannot make {}", path.display()))
}

/// Forgets the numbers; fine if there are none.
pub(crate) fn remove(settings: &Settings) -> Result<()> {
    durable::remove(&path(settings)).map(drop)
}

/// The sums over all connections; `None` if nothing is counted.
pub(crate) fn read(settings: &Settings) -> Option<Counts> {
    let path = path(settings);
    let mut last = durable::read(&path).ok()??;
    // A line may be rewritten while it is read: believe what two readings agree on.
    for _ in 0..5 {
        let again = durable::read(&path).ok()??;
        if again == last {
            return sum(&String::from_utf8(last).ok()?);
        }
        last = again;
    }
    None
}

fn sum(text: &str) -> Option<Counts> {
    text.lines().try_fold(Counts::default(), |total, line| {
        let mut fields = line.split_whitespace().skip(1).map(str::parse::<u64>);
        let (sent, received) = (fields.next()?.ok()?, fields.next()?.ok()?);
        Some(Counts { sent: total.sent + sent, received: total.received + received })
    })
}

/// The line of one relay.
#[derive(Debug)]
pub(crate) struct Line {
    file: File,
    at: u64,
}

impl Line {
    /// Adds a line for this process.
    pub(crate) fn add(path: &Path) -> Result<Line> {
        let what = || format!("cannot count in {}", path.display());
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut append = File::from(open(path, flags, Mode::empty()).with_context(what)?);
        let first = text(Counts::default());
        // One write with O_APPEND: lines of several relays never mix.
        append.write_all(first.as_bytes()).with_context(what)?;
        let at = append.stream_position().with_context(what)? - first.len() as u64;
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Line { file: File::from(open(path, flags, Mode::empty()).with_context(what)?), at })
    }

    /// Rewrites it.
    pub(crate) fn write(&self, counts: Counts) -> std::io::Result<()> {
        self.file.write_all_at(text(counts).as_bytes(), self.at)
    }
}

fn text(counts: Counts) -> String {
    format!("{:>10} {:>20} {:>20}\n", std::process::id(), counts.sent, counts.received)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_relay_has_its_line_and_they_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3.wire");
        Line::add(&path).unwrap_err();
        std::fs::write(&path, "").unwrap();
        let (one, two) = (Line::add(&path).unwrap(), Line::add(&path).unwrap());
        one.write(Counts { sent: 5, received: 7 }).unwrap();
        two.write(Counts { sent: u64::MAX / 2, received: 1 }).unwrap();
        one.write(Counts { sent: 6, received: 9 }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(sum(&text), Some(Counts { sent: u64::MAX / 2 + 6, received: 10 }), "{text}");
        assert_eq!(sum(""), Some(Counts::default()));
        assert_eq!(sum("x y\n"), None);
    }
}
