//! What S3's sftp server can do: asked once for each mount, in a session of its own.
//!
//! sshfs passes an fsync on only if the server knows `fsync@openssh.com`; else it says that all is well, and what was
//! synced may be gone when S3 loses power. The server's first packet lists what it knows; sshfs does not tell it.

use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::mutant;
use common::run::Cmd;
use common::signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::settings::Settings;
use crate::sshfs;

/// SFTP: a packet's length, its type (1, INIT) and the version that is spoken.
const INIT: [u8; 9] = [0, 0, 0, 5, 1, 0, 0, 0, 3];
/// The type of its answer.
const VERSION: u8 = 2;
/// The longest answer that is read.
const LONGEST: usize = 64 << 10;
/// What makes an fsync reach the disk.
const FSYNC: &[u8] = b"fsync@openssh.com";

/// Whether a sync reaches S3's disk. An error: it could not be found out, or was `given_up`.
pub(crate) fn syncs(settings: &Settings, limit: Duration, given_up: &AtomicBool) -> Result<bool> {
    let mut child = command(settings)?.spawn_piped()?;
    let mut stdin = child.take_stdin().context("ssh has no stdin")?;
    let mut stdout = child.take_stdout().context("ssh has no stdout")?;
    let end = Instant::now() + limit;
    stdin.write_all(&INIT).context("ssh does not listen")?;
    let mut answer = Vec::new();
    let extensions = loop {
        if let Some(extensions) = extensions(&answer)? {
            break extensions;
        }
        signals::check()?;
        anyhow::ensure!(!given_up.load(Ordering::SeqCst), "nobody waits for it any more");
        let left = end.saturating_duration_since(Instant::now());
        anyhow::ensure!(!left.is_zero(), "S3's sftp server did not answer within {limit:?}");
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let timeout =
            PollTimeout::try_from(left.min(Duration::from_millis(100))).unwrap_or(PollTimeout::ZERO);
        if poll(&mut fds, timeout).unwrap_or(0) > 0 {
            let mut piece = [0; 4096];
            let bytes = stdout.read(&mut piece).context("cannot read ssh's output")?;
            anyhow::ensure!(bytes > 0, "ssh ended without an answer of S3's sftp server");
            answer.extend_from_slice(piece.get(..bytes).unwrap_or_default());
        }
    };
    // Its end: the server ends with its input, and ssh with the server, as its relay writes its last numbers.
    drop(stdin);
    drop(stdout);
    child.wait(Some(Duration::from_secs(5)), true).ok();
    child.end();
    Ok(extensions.iter().any(|name| name == FSYNC) || mutant::active("any-server-syncs"))
}

/// ssh as sshfs runs it.
fn command(settings: &Settings) -> Result<Cmd> {
    let mut cmd = Cmd::new("ssh").args(["-x", "-a", "-oClearAllForwardings=yes"]);
    for (name, value) in sshfs::ssh_options(settings)? {
        cmd = cmd.arg(format!("-o{name}={value}"));
    }
    Ok(cmd.args(["-s", "--"]).arg(&settings.sshfs.host).arg("sftp"))
}

/// The names of the extensions in a VERSION packet; `None` as long as it is not whole.
fn extensions(answer: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
    let Some((head, rest)) = answer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    anyhow::ensure!((5..=LONGEST).contains(&length), "S3's sftp server answers with something else");
    let Some(packet) = rest.get(..length) else { return Ok(None) };
    anyhow::ensure!(packet.first() == Some(&VERSION), "S3's sftp server answers with something else");
    let mut names = Vec::new();
    let mut pairs = packet.get(5..).unwrap_or_default();
    while !pairs.is_empty() {
        let (name, rest) = text(pairs).context("S3's sftp server answers with half a packet")?;
        let (_, rest) = text(rest).context("S3's sftp server answers with half a packet")?;
        names.push(name.to_vec());
        pairs = rest;
    }
    Ok(Some(names))
}

/// A text with its length before it, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*head) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut body = vec![VERSION, 0, 0, 0, 3];
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            body.extend(text.as_bytes());
        }
        [&u32::try_from(body.len()).unwrap().to_be_bytes(), &body[..]].concat()
    }

    #[test]
    fn the_extensions_of_a_server_are_read_whole_or_not_at_all() {
        let whole = packet(&[("posix-rename@openssh.com", "1"), ("fsync@openssh.com", "1")]);
        for end in 0..whole.len() {
            assert_eq!(extensions(&whole[..end]).unwrap(), None);
        }
        assert_eq!(extensions(&whole).unwrap().unwrap()[1], FSYNC);
        assert_eq!(extensions(&packet(&[])).unwrap().unwrap(), [b""; 0]);
        let half = [0, 0, 0, 9, VERSION, 0, 0, 0, 3, 0, 0, 0, 9];
        for odd in [&b"Welcome to S3!"[..], &[0, 0, 0, 5, 101, 0, 0, 0, 3], &[255; 9], &half] {
            assert!(extensions(odd).is_err(), "{odd:?}");
        }
    }
}
