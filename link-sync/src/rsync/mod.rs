//! rsync, the sending side. link-sync decides what is sent, rsync moves it.
//!
//! rsync believes it talks through a remote shell. The "shell" is this program ([`tunnel()`]): it hands the two
//! pipes rsync gave it to us, and we carry them in frames of the one conversation with the far end, which starts
//! the receiving rsync as its own child. So there is one connection, the receiver inherits the store's
//! lock from the process that holds it, and the far end needs no second door.

pub mod argv;
mod fetch;
mod tunnel;

use std::fs::File;
use std::io::{BufWriter, Seek as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::run::Child;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::far::Far;
use crate::progress::Progress;
use crate::protocol::{Making, Receive, Received};
use crate::watch::Watch;
pub use argv::{Fetch, TEMPORARY, Transfer};
use tunnel::{Started, carry};
pub use tunnel::{inherited, tunnel};

/// rsync's way of saying that a file vanished before it could be sent.
pub const VANISHED: i32 = 24;
/// rsync's way of saying that some files could not be sent.
const PARTIAL: i32 = 23;
/// What a run of rsync did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Bytes of rsync's conversation towards the store.
    pub bytes: u64,
    /// Some file vanished meanwhile: another pass is needed.
    pub vanished: bool,
}

impl Transfer<'_> {
    /// Runs it. Anything that could not be sent is an error that names the files.
    pub fn run(self, far: &mut Far, progress: &Progress) -> Result<Sent> {
        let stdin = Stdio::from(self.list.try_clone().context("cannot copy a descriptor")?);
        let cmd = |fd| argv::send(&self, far.remote, fd);
        let Started { mut child, capabilities, pipes, tunnel } = tunnel::start(cmd, stdin, Stdio::null())?;
        let request = Making::Receive(Receive {
            source: self.source.to_owned(),
            capabilities,
            checksum: self.checksum,
            times: self.times,
            delta: far.remote,
            again: self.again,
            reused: self.reused,
            more: self.more,
            all_xattrs: self.all_xattrs,
            acls_only: self.acls_only,
        });
        far.send(&request)?;
        let limit = self.budget.left().map(|left| end_after(&child, left)).transpose()?;
        let (bytes, received) = carry(false, far, pipes, tunnel, &mut child, progress)?;
        // Before the child is reaped, as long as the number is its own.
        drop(limit);
        let status = child.wait(None, true)?;
        self.budget.check()?;
        self.judge(status, &child, &received).map(|vanished| Sent { bytes, vanished })
    }

    /// What rsync's end means: `Ok(true)` if a file vanished.
    fn judge(&self, status: std::process::ExitStatus, child: &Child, received: &Received) -> Result<bool> {
        let code = status.code().unwrap_or(255);
        if status.success() && received.exit_code == 0 {
            return Ok(false);
        }
        if code == VANISHED && matches!(received.exit_code, 0 | VANISHED) {
            return Ok(true);
        }
        let sender = String::from_utf8_lossy(&child.stderr()?).into_owned();
        let files = named_files(&sender);
        if code == PARTIAL
            && !files.is_empty()
            && named_files(&received.stderr).is_empty()
            && all_gone(&files)
            && child.stderr_is_whole()
        {
            return Ok(true);
        }
        let said = sender + &received.stderr;
        let files = named_files(&said);
        let mut failure = child.failure_for(status)?;
        if !received.stderr.is_empty() {
            failure.stderr_tail = format!("{}\nat the store: {}", failure.stderr_tail, received.stderr);
        }
        let message = match code {
            PARTIAL if !files.is_empty() => {
                format!(
                    "source {}: {} could not be read or stored: {}",
                    self.source,
                    count(&files),
                    files[..files.len().min(10)].join(", ")
                )
            }
            _ => format!("source {}: rsync failed", self.source),
        };
        let full = said.contains("No space left") || said.contains("Disk quota exceeded");
        failure.hint = Some(match full {
            true => "the store is full: make room, then run again; what has arrived is kept".into(),
            false => "nothing is published; mend the cause and run again: what has arrived is kept".into(),
        });
        Err(anyhow::Error::from(failure).context(message))
    }
}

/// Ends rsync after `limit`; the far end's notices that, and the conversation stays in step.
fn end_after(child: &Child, limit: Duration) -> Result<Watch> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id out of range")?);
    Watch::after(limit, move || killpg(pid, Signal::SIGKILL).unwrap_or(()))
}

fn count(files: &[String]) -> String {
    if files.len() == 1 { "a file".into() } else { format!("{} files", files.len()) }
}

/// Whether none of `files` is there any more: for example its folder became a file, which rsync counts as an error
/// where a file that is simply gone is none.
fn all_gone(files: &[String]) -> bool {
    let gone = |e: std::io::Error| {
        matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
    };
    files.iter().all(|f| Path::new(f).symlink_metadata().is_err_and(gone))
}

/// The names in rsync's complaints, as it wrote them.
pub fn named_files(said: &str) -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    for line in said.lines().filter(|l| ["failed", "cannot", "read errors"].iter().any(|w| l.contains(w))) {
        let Some((_, rest)) = line.split_once('"') else { continue };
        let Some((name, _)) = rest.rsplit_once('"') else { continue };
        if !files.iter().any(|f| f == name) {
            files.push(name.to_owned());
        }
    }
    files
}

/// rsync takes a listed path that begins with `#` or `;` for a comment, also in a list of NUL-separated paths.
pub fn uncommented(path: Vec<u8>) -> Vec<u8> {
    if path.starts_with(b"#") || path.starts_with(b";") { [b"./", &path[..]].concat() } else { path }
}

/// The NUL-separated list of `paths` for rsync, in a file that has no name, so it is gone with us.
pub fn list_file(dir: &Path, paths: impl Iterator<Item = impl AsRef<[u8]>>) -> Result<File> {
    let context = || format!("cannot write a temporary file in {}", dir.display());
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let fd = open(dir, flags, Mode::from_bits_truncate(0o600)).with_context(context)?;
    let mut out = BufWriter::new(File::from(fd));
    for path in paths {
        out.write_all(path.as_ref()).and_then(|()| out.write_all(&[0])).with_context(context)?;
    }
    let mut file = out.into_inner().with_context(context)?;
    file.rewind().with_context(context)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_complaints_are_named() {
        let said = "rsync: [sender] send_files failed to open \"/a \"b\"/c\": Permission denied (13)\n\
            rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c(1338)\n";
        assert_eq!(named_files(said), ["/a \"b\"/c"]);
    }
}
