//! What is done inside the mounted container: by a child of ours with a time limit.
//! Whoever touches a file system whose server has stopped answering cannot be ended.

use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use common::fault::{Failure, Fault};
use common::program::Program;
use common::run::Cmd;
use common::{durable, offsite};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde_json::Value;

use crate::disk::Disk;
use crate::generation::{Content, Stamp};
use crate::{layered, store};

/// For ourselves: what is done in the container is done by a child, because S3 may stop answering.
#[derive(Args, Debug)]
pub(crate) struct Inside {
    /// What to do there.
    pub(crate) what: What,
    /// The mounted container.
    #[arg(long, value_name = "DIR")]
    pub(crate) container: PathBuf,
    /// The container's file, for `room`.
    #[arg(long, value_name = "FILE", required_if_eq("what", "room"))]
    pub(crate) image: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum What {
    /// Tell the generation and the dates; of the dates that are on stdin not what is in their lists.
    Read,
    /// Tell how much room there is, also on the disk below.
    Room,
    /// Make the folder of the snapshots.
    Prepare,
    /// Write the generation that is on stdin.
    Write,
    /// Do with layers what stdin says.
    Layers,
}

/// The file of the generation, in the container.
const FILE: &str = "generation.json";

/// The longest `generation.json` that is read, in bytes: S3 can damage it, though not forge it.
const LONGEST: u64 = 64 << 10;

/// Reads what is in the container mounted at `dir`.
pub(crate) fn read(dir: &Path, patience: Duration) -> Result<Content> {
    read_but(dir, patience, &[])
}

/// The same, but for the lists of dates that this machine knows: through a slow link each costs a round trip, and they never
/// change but by us.
pub(crate) fn read_but(dir: &Path, patience: Duration, known: &[&String]) -> Result<Content> {
    let output = child("read", dir, None, patience, serde_json::to_vec(known)?)?;
    serde_json::from_slice(&output).context("the answer about the container's content is damaged")
}

/// Asks for the room in the container mounted at `dir`, and below its `image`.
pub(crate) fn room(dir: &Path, image: &Path, patience: Duration) -> Result<Disk> {
    let output = child("room", dir, Some(image), patience, Vec::new())?;
    serde_json::from_slice(&output).context("the answer about the room below the container is damaged")
}

/// Makes the folder of the snapshots, if it is not there.
pub(crate) fn prepare(dir: &Path, patience: Duration) -> Result<()> {
    child("prepare", dir, None, patience, Vec::new()).map(drop)
}

/// Gives the container `stamp`, durably.
pub(crate) fn write(dir: &Path, patience: Duration, stamp: &Stamp) -> Result<()> {
    child("write", dir, None, patience, serde_json::to_vec(stamp)?).map(drop)
}

/// Does with the layers in the container mounted at `dir` what `request` says (`layered/mod.rs`); the answer.
pub(crate) fn layers(dir: &Path, patience: Duration, request: &Value) -> Result<Value> {
    let cmd = command("layers", dir, serde_json::to_vec(request)?)?;
    let output = outcome(cmd, dir, patience)?;
    serde_json::from_slice(&output).context("the answer about the layers in the container is damaged")
}

/// The same when all is taken down: no signal stops it.
pub(crate) fn layers_at_the_end(dir: &Path, patience: Duration, request: &Value) -> Result<Value> {
    let cmd = command("layers", dir, serde_json::to_vec(request)?)?.uninterruptible();
    let output = outcome(cmd, dir, patience)?;
    serde_json::from_slice(&output).context("the answer about the layers in the container is damaged")
}

fn child(
    what: &str,
    dir: &Path,
    image: Option<&Path>,
    patience: Duration,
    stdin: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut cmd = command(what, dir, stdin)?;
    if let Some(image) = image {
        cmd = cmd.arg("--image").arg(image);
    }
    outcome(cmd, dir, patience)
}

fn command(what: &str, dir: &Path, stdin: Vec<u8>) -> Result<Cmd> {
    Ok(Program::own()?.cmd().args(["inside", what, "--container"]).arg(dir).stdin(stdin))
}

fn outcome(cmd: Cmd, dir: &Path, patience: Duration) -> Result<Vec<u8>> {
    let cmd = cmd.timeout(patience);
    match cmd.output() {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let said = if said.is_empty() { cmd.failure(&output).to_string() } else { said };
            Err(Fault::failed(format!("the container at {}: {said}", dir.display())).into())
        }
        Err(error) if error.downcast_ref::<Failure>().is_some() => {
            let message = format!("the container at {} has not answered for {patience:?}", dir.display());
            Err(Fault::unavailable(message).hint("is the link to S3 up?").into())
        }
        Err(error) => Err(error),
    }
}

/// The child's side: does it and answers on stdout.
pub(crate) fn answer(inside: &Inside) -> ExitCode {
    let dir = &inside.container;
    let result = common::process::normal().and_then(|()| match inside.what {
        What::Read => {
            known().and_then(|known| content(dir, &known)).and_then(|c| Ok(serde_json::to_vec(&c)?))
        }
        What::Room => {
            let image = inside.image.as_deref().unwrap_or(dir);
            Disk::ask(image, dir).and_then(|disk| Ok(serde_json::to_vec(&disk)?))
        }
        What::Prepare => make_folder(dir).map(|()| Vec::new()),
        What::Write => stamp(dir).map(|()| Vec::new()),
        What::Layers => layered::answer(dir),
    });
    match result.and_then(|bytes| Ok(std::io::stdout().write_all(&bytes)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            common::status::tell(format_args!("{error:#}"));
            if matches!(inside.what, What::Layers) {
                // Who asked tells it in its own object. One that has gone needs nothing more.
                std::io::stdout().write_all(&layered::failed(&error)).ok();
            }
            ExitCode::FAILURE
        }
    }
}

/// The dates on stdin.
fn known() -> Result<Vec<String>> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    serde_json::from_slice(&text).context("the request is not understood")
}

fn content(dir: &Path, known: &[String]) -> Result<Content> {
    let snapshots = offsite::store(dir);
    let mut dates = match store::dates(&snapshots) {
        Ok(dates) => dates,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e).with_context(|| format!("cannot list {}", snapshots.display())),
    };
    let layered::Told { layered, unread, unfinished, not_read } = layered::told(dir, known)?;
    dates.extend(not_read.iter().cloned());
    // A list that cannot be read is still a date that was pushed.
    dates.extend(layered.keys().chain(unread.keys().filter(|name| store::is_date(name))).cloned());
    dates.sort_unstable();
    dates.dedup();
    let found = Content { dates, layered, unread, unfinished, not_read, ..Content::default() };
    let file = dir.join(FILE);
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let fd = match open(&file, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(nix::errno::Errno::ENOENT) => return Ok(found),
        Err(nix::errno::Errno::ELOOP) => {
            return Ok(Content { damaged: Some(format!("{FILE} is a symlink")), ..found });
        }
        Err(e) => return Err(e).with_context(|| format!("cannot open {}", file.display())),
    };
    let mut text = Vec::new();
    let read = File::from(fd).take(LONGEST).read_to_end(&mut text);
    let stamp = match read {
        Ok(_) => serde_json::from_slice::<Stamp>(&text).map_err(|e| e.to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::IsADirectory => Err(e.to_string()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
    };
    Ok(match stamp {
        Ok(stamp) => Content { stamp: Some(stamp), ..found },
        Err(why) => Content { damaged: Some(format!("{FILE}: {why}")), ..found },
    })
}

fn make_folder(dir: &Path) -> Result<()> {
    let snapshots = offsite::store(dir);
    match DirBuilder::new().mode(0o700).create(&snapshots) {
        Ok(()) => durable::sync_dir(dir)?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(|| format!("cannot make {}", snapshots.display())),
    }
    let meta = std::fs::symlink_metadata(&snapshots)?;
    if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        anyhow::bail!("{} is not a folder that only root can write to", snapshots.display());
    }
    Ok(())
}

fn stamp(dir: &Path) -> Result<()> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    // Whatever it stands for is durable before. It is itself when the container is closed, and until then nobody believes in it.
    durable::write_after_all(&dir.join(FILE), &text, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(content(dir.path(), &[]).unwrap(), Content::default());
        make_folder(dir.path()).unwrap();
        make_folder(dir.path()).unwrap();
        for name in ["2026-11-22T03-30-00Z", "2026-11-21T03-30-00Z", ".partial", "lost+found"] {
            std::fs::create_dir(dir.path().join("snapshots").join(name)).unwrap();
        }
        let found = content(dir.path(), &[]).unwrap();
        assert_eq!(found.dates, ["2026-11-21T03-30-00Z", "2026-11-22T03-30-00Z"]);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(content(dir.path(), &[]).unwrap().damaged.is_some());
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(FILE)).unwrap();
        assert_eq!(
            content(dir.path(), &[]).unwrap().damaged.as_deref(),
            Some("generation.json is a symlink")
        );
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        assert!(content(dir.path(), &[]).unwrap().damaged.is_some());
    }

    #[test]
    fn dates_of_both_layouts_are_told_and_a_list_that_cannot_be_read_is_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("snapshots/2026-11-21T03-30-00Z")).unwrap();
        let lists = dir.path().join("layers/dates");
        std::fs::create_dir_all(&lists).unwrap();
        let (good, bad) = ("2026-11-22T03-30-00Z", "2026-11-23T03-30-00Z");
        let text = format!("nc-backup layers 1\n{good}.sqfs\nsnapshots/2026-11-21T03-30-00Z/\nend\n");
        std::fs::write(lists.join(good), &text).unwrap();
        std::fs::write(lists.join(bad), &text[..30]).unwrap();
        std::fs::write(lists.join("2026-11-24T03-30-00Z.unfinished"), &text).unwrap();
        std::fs::write(lists.join("else"), "").unwrap();
        let found = content(dir.path(), &[]).unwrap();
        assert_eq!(found.dates, ["2026-11-21T03-30-00Z", good, bad]);
        assert_eq!(found.trees().collect::<Vec<_>>(), ["2026-11-21T03-30-00Z"]);
        assert_eq!(found.layered.keys().collect::<Vec<_>>(), [good]);
        assert_eq!(found.layered[good], [format!("{good}.sqfs"), "snapshots/2026-11-21T03-30-00Z/".into()]);
        assert_eq!(found.unread.keys().collect::<Vec<_>>(), [bad, "else"]);
        assert_eq!(found.unfinished, ["2026-11-24T03-30-00Z"]);
    }

    #[test]
    fn a_folder_of_snapshots_that_is_a_symlink_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", dir.path().join("snapshots")).unwrap();
        assert!(make_folder(dir.path()).is_err());
    }
}
