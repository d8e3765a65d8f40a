//! Who writes to the container: `IMAGE.lease`, a small file beside the image, so that another machine sees it.
//!
//! Whoever attaches for writing puts it there, in one step that only one machine can win, moves it on while it works
//! (`renew`) and removes it after a clean detach. Whose it is, is told by a random value and a number that grows with
//! each renewal, both of them noted on this machine first: a copy of this machine's state, in a backup that was
//! restored elsewhere, soon knows an older number, and is refused. Somebody else's lease is refused whatever it says,
//! until it is gone or the person in charge says `--accept-container`: so no clock decides anything; the times in it
//! are for people. A lease that outlived its machine costs that one word, and nothing but this machine's record can be
//! lost by it.
//!
//! It is a word between honest machines. S3 can change or remove it at will: then the marks of the file system
//! ([`crate::marks`]) still tell that another machine wrote. What is read is bounded, and shown only if it is plain.
//!
//! Here is what stands in it; [`crate::lease_file`] puts it there, [`crate::holding`] decides.

use common::mutant;
use common::status::{now, utc};
use serde::{Deserialize, Serialize};

use anyhow::Result;

/// How long a lease says it lasts. Nothing depends on it.
const LENGTH_SECONDS: u64 = 24 * 3600;
/// All of them have this size: nobody reads half of one because a cache knew an older size.
pub(crate) const BYTES: usize = 512;
/// What this machine noted of its lease.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Held {
    /// 32 random hexadecimal digits.
    pub(crate) holder: String,
    /// The one in the file, or the one before.
    pub(crate) serial: u64,
}

impl Held {
    /// The next one, where `text`, which is ours, is in the file. One that did not arrive is tried again: this machine's
    /// number is the one in the file or the one after it, however often a renewal fails.
    pub(crate) fn after(&self, text: &[u8]) -> Held {
        let there = Lease::parse(text).map_or(self.serial, |lease| lease.serial);
        let there = if mutant::active("a-renewal-that-failed") { self.serial } else { there };
        Held { serial: there.saturating_add(1), ..self.clone() }
    }
}

/// The content of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Lease {
    /// 1
    pub(crate) schema: u32,
    pub(crate) holder: String,
    pub(crate) serial: u64,
    /// A name for people.
    pub(crate) host: String,
    /// RFC 3339 UTC, by that machine's clock.
    pub(crate) renewed: String,
    pub(crate) until: String,
}

impl Lease {
    pub(crate) fn of(held: &Held) -> Lease {
        let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seconds = seconds.map_or(0, |d| d.as_secs());
        Lease {
            schema: 1,
            holder: held.holder.clone(),
            serial: held.serial,
            host: host(),
            renewed: now(),
            until: utc(seconds + LENGTH_SECONDS),
        }
    }

    /// As it is written: one line of a fixed size.
    pub(crate) fn text(&self) -> Result<String> {
        let mut text = serde_json::to_string(self)?;
        text.extend(std::iter::repeat_n(' ', BYTES.saturating_sub(text.len() + 1)));
        text.push('\n');
        Ok(text)
    }

    /// Nothing that is not plain is taken over.
    pub(crate) fn parse(text: &[u8]) -> Option<Lease> {
        let lease: Lease = serde_json::from_slice(text).ok()?;
        let plain = |text: &str, most: usize, more: &str| {
            !text.is_empty()
                && text.len() <= most
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let time = |text: &str| plain(text, 20, "-:") && text.len() == 20;
        let right = plain(&lease.holder, 32, "")
            && plain(&lease.host, 64, "-._")
            && time(&lease.renewed)
            && time(&lease.until);
        right.then_some(lease)
    }

    fn is_of(&self, held: &Held) -> bool {
        self.holder == held.holder
            && (self.serial == held.serial || self.serial.checked_add(1) == Some(held.serial))
    }
}

fn host() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name: String =
        name.to_string_lossy().chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
    if name.is_empty() { "unnamed".into() } else { name.chars().take(64).collect() }
}

/// Whether `text` is the lease that this machine noted.
pub(crate) fn is_ours(text: &[u8], held: Option<&Held>) -> bool {
    Lease::parse(text).zip(held).is_some_and(|(lease, held)| lease.is_of(held))
}

/// What stands in somebody else's lease, as a sentence.
pub(crate) fn whose(text: &[u8]) -> String {
    match Lease::parse(text) {
        Some(lease) => format!(
            "{} has it open for writing: its lease was renewed at {}, and is good until {}",
            lease.host, lease.renewed, lease.until
        ),
        None => "somebody has it open for writing, whose lease cannot be read".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, serial: u64) -> Held {
        Held { holder: holder.repeat(32), serial }
    }

    #[test]
    fn a_lease_reads_as_it_was_written() {
        let lease = Lease::of(&held("a", 3));
        assert_eq!(Lease::parse(lease.text().unwrap().as_bytes()), Some(lease.clone()));
        assert!(lease.until > lease.renewed && lease.until.len() == 20);
        assert!(lease.is_of(&held("a", 3)) && lease.is_of(&held("a", 4)));
        assert!(!lease.is_of(&held("a", 2)) && !lease.is_of(&held("a", 5)) && !lease.is_of(&held("b", 3)));
    }
}
