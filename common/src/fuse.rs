//! File systems served by a process: asking whether one still answers, and ending the process that serves it.
//!
//! A process that waits for a server that is gone cannot be killed, so nothing here touches such a file system
//! itself: a child does, and is left behind if it must be.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::mounts::{self, Mount};
use crate::run::Cmd;
use crate::{complaint, mutant, pidfd};

/// What a mounted file system answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Healthy,
    /// Its server is gone; what the kernel says.
    Dead(String),
    /// No answer within the time given.
    Hung,
}

/// The type that the kernel gives every FUSE file system (statfs(2)), as stat(1) prints it.
const FUSE: &[u8] = b"65735546";

/// Asks the FUSE file system mounted at `target` for its size, which its server must answer (nothing is cached).
///
/// A server that fails to connect takes its mount away again. So what answers must be a FUSE file system: the folder
/// below would answer for one that went between a look at the mount table and the question.
pub fn probe(target: &Path, limit: Duration) -> Result<Health> {
    let stat = Cmd::new("stat").args(["-f", "-c", "%t", "--"]).arg(target).uninterruptible();
    Ok(match ask(&stat, limit)? {
        Some(output) if !output.status.success() => Health::Dead(complaint::tail(&output.stderr)),
        Some(output) if output.stdout.trim_ascii() == FUSE || mutant::active("any-file-system-answers") => {
            Health::Healthy
        }
        Some(_) => Health::Dead("nothing is mounted there any more".into()),
        None => Health::Hung,
    })
}

/// Runs `cmd`, which asks a file system that may hang, and whose output is small. `None` if it has not ended within
/// `limit`; then it is ended, or left to the kernel that does not let go of it.
pub fn ask(cmd: &Cmd, limit: Duration) -> Result<Option<Output>> {
    let mut child = cmd.start(Stdio::null(), Stdio::piped())?;
    let watch = pidfd::open(child.id())?;
    if !pidfd::gone_within(&watch, limit) {
        child.signal(Signal::SIGKILL);
        if !pidfd::gone_within(&watch, Duration::from_millis(200)) {
            child.detach();
        }
        return Ok(None);
    }
    let status = child.wait(None, false)?;
    let mut stdout = Vec::new();
    if let Some(mut pipe) = child.take_stdout() {
        pipe.read_to_end(&mut stdout).context("cannot read a child's output")?;
    }
    Ok(Some(Output { status, stdout, stderr: child.stderr()? }))
}

/// The FUSE mount that `path` lies on, if it lies on one. Only names are compared, the file system is not asked.
pub fn mount_below(path: &Path) -> Result<Option<Mount>> {
    let holds = |m: &Mount| path.starts_with(&m.target);
    let mount = mounts::table()?.into_iter().filter(holds).max_by_key(|m| m.target.as_os_str().len());
    Ok(mount.filter(|m| m.fs_type.starts_with("fuse.")))
}

/// The processes that serve the sshfs mounted at `target`: those that run sshfs in our mount namespace, have
/// `/dev/fuse` open, and name exactly this mount point among their arguments.
pub fn servers(target: &Path) -> Vec<u32> {
    let Ok(ours) = std::fs::read_link("/proc/self/ns/mnt") else { return Vec::new() };
    let list = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = list.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let dir = Path::new("/proc").join(pid.to_string());
        serves(&dir, target.as_os_str()) && std::fs::read_link(dir.join("ns/mnt")).is_ok_and(|ns| ns == ours)
    })
    .collect()
}

fn serves(dir: &Path, target: &OsStr) -> bool {
    // First: unlike the command line, the name of a process that is stuck in the kernel can always be read.
    if !std::fs::read_to_string(dir.join("comm")).is_ok_and(|c| c.trim() == "sshfs") {
        return false;
    }
    let Ok(argv) = std::fs::read(dir.join("cmdline")) else { return false };
    let named = argv.split(|b| *b == 0).any(|word| word == target.as_bytes());
    let fds = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    named
        && fds.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|l| l == Path::new("/dev/fuse")))
}

/// Ends process `pid` with SIGKILL and waits until it is gone; false if it is not within `limit`. `still` is asked
/// after the process has been pinned, so that a number that was used again in between never hits another one.
pub fn end(pid: u32, still: impl Fn(u32) -> bool, limit: Duration) -> Result<bool> {
    let Ok(watch) = pidfd::open(pid) else { return Ok(true) };
    if !still(pid) {
        return Ok(true);
    }
    pidfd::signal(&watch, Signal::SIGKILL);
    Ok(pidfd::gone_within(&watch, limit))
}

/// Ends what serves the sshfs at `target`; then everything that waits for it fails instead of waiting. Returns the
/// processes that were ended.
pub fn end_servers(target: &Path, limit: Duration) -> Result<Vec<u32>> {
    let found = servers(target);
    let still = |pid: u32| serves(&Path::new("/proc").join(pid.to_string()), target.as_os_str());
    for pid in &found {
        end(*pid, still, limit)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_below_does_not_answer_for_a_mount_that_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let health = probe(dir.path(), Duration::from_secs(5)).unwrap();
        assert_eq!(health, Health::Dead("nothing is mounted there any more".into()));
    }
}
