//! mksquashfs: an image from a tar stream, the same bytes each time. Made for 4.5.1 (Debian 12), which knows neither pseudo files
//! nor the root's owner and time with a stream; those are the view's to give.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::run::{Child, Cmd, QUIET};
use common::{durable, signals};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};

use super::tar;
use crate::store::sums::{self, Sum};

/// What makes the uplink's bytes few; `-no-exports` leaves out what NFS would need.
const OPTIONS: [&str; 14] = [
    "-tar",
    "-comp",
    "zstd",
    "-Xcompression-level",
    "19",
    "-b",
    "1M",
    "-noappend",
    "-no-exports",
    "-no-recovery",
    "-mem",
    "256M",
    "-quiet",
    "-no-progress",
];

/// An image that is being made: gone, unless it was finished.
#[derive(Debug)]
pub struct Making {
    child: Child,
    stdin: Option<ChildStdin>,
    partial: PathBuf,
    done: bool,
}

impl Making {
    /// Starts mksquashfs, which writes beside `image`. `epoch`: no time in it is later.
    pub fn start(image: &Path, epoch: u32) -> Result<Making> {
        let partial = partial(image)?;
        match std::fs::remove_file(&partial) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", partial.display()));
            }
            _ => {}
        }
        // Else it notes when it was made, and gives the root that time.
        let cmd = Cmd::new("mksquashfs").arg("-").arg(&partial).args(OPTIONS);
        let cmd = cmd.args(["-root-mode", "755"]).env("SOURCE_DATE_EPOCH", epoch.to_string());
        let mut child = cmd.start(Stdio::piped(), Stdio::null())?;
        let stdin = child.take_stdin().context("mksquashfs has no stdin")?;
        let flags = OFlag::from_bits_retain(fcntl(&stdin, FcntlArg::F_GETFL)?);
        fcntl(&stdin, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Making { child, stdin: Some(stdin), partial, done: false })
    }

    /// Hands it a piece of the stream.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match self.write(bytes) {
            // It has ended, and says why.
            Err(e) if has_ended(&e) => {
                self.stdin = None;
                let status = self.child.wait(None, true)?;
                Err(self.child.failure_for(status)?.into())
            }
            other => other,
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let Some(stdin) = self.stdin.as_mut() else { anyhow::bail!("the stream has ended") };
        let mut moved = Instant::now();
        while !bytes.is_empty() {
            signals::check()?;
            match stdin.write(bytes) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    moved = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if moved.elapsed() > QUIET {
                        return Err(
                            Fault::failed(format!("mksquashfs has taken nothing for {QUIET:?}")).into()
                        );
                    }
                    let second = u16::try_from(Duration::from_secs(1).as_millis()).unwrap_or(u16::MAX);
                    match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)], second) {
                        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                        Err(e) => return Err(e).context("cannot wait for mksquashfs"),
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("cannot write to mksquashfs"),
            }
        }
        Ok(())
    }

    /// After the last piece: the image, which must have so many `paths`, is at its place, durably. Its bytes and their hash.
    pub fn finish(mut self, image: &Path, paths: u64) -> Result<(u64, Sum)> {
        let mut end = Vec::new();
        tar::end(&mut end);
        match self.write(&end) {
            // It needs no more than the beginning of that; its exit code tells, and the count below.
            Err(e) if has_ended(&e) => {}
            other => other?,
        }
        self.stdin = None;
        let status = self.child.wait(None, true)?;
        if !status.success() {
            return Err(self.child.failure_for(status)?.into());
        }
        let context = || format!("cannot keep {}", self.partial.display());
        let mut file = File::open(&self.partial).with_context(context)?;
        file.set_permissions(Permissions::from_mode(0o600)).with_context(context)?;
        // The root is not in the stream.
        let held = inodes(&file).with_context(context)?;
        anyhow::ensure!(
            held == paths + 1,
            "mksquashfs was given {paths} paths, and the image has {held} with its root"
        );
        let (sum, bytes) = sums::of_file(&mut file, |_| signals::check()).with_context(context)?;
        file.sync_all().with_context(context)?;
        std::fs::rename(&self.partial, image).with_context(context)?;
        self.done = true;
        durable::sync_dir(folder(image)?)?;
        Ok((bytes, sum))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.done {
            self.stdin = None;
            self.child.end();
            // The next one clears what cannot be removed now.
            std::fs::remove_file(&self.partial).ok();
        }
    }
}

/// Whether an error is that nobody reads the stream any more.
fn has_ended(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

/// How many inodes the image has, by its superblock: the second of its numbers.
fn inodes(image: &File) -> Result<u64> {
    let mut head = [0; 8];
    image.read_exact_at(&mut head, 0)?;
    let [m, a, g, i, count @ ..] = head;
    anyhow::ensure!([m, a, g, i] == *b"hsqs", "it is no squashfs image");
    Ok(u32::from_le_bytes(count).into())
}

/// The folder that `image` is to be in: ours alone, as its files are opened by name.
pub fn folder(image: &Path) -> Result<&Path> {
    let dir = image.parent().filter(|_| image.is_absolute()).context("--to is no absolute path")?;
    let meta = std::fs::symlink_metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    let ours = meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if meta.is_dir() && ours {
        return Ok(dir);
    }
    Err(Fault::config(format!(
        "--to: {} is not a folder of ours that nobody else can write to",
        dir.display()
    ))
    .hint(format!("install -d -m 0700 {}", dir.display()))
    .into())
}

/// Its name until it is whole.
fn partial(image: &Path) -> Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(image.file_name().context("--to names no file")?);
    name.push(".partial");
    Ok(folder(image)?.join(name))
}
