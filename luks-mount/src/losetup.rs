//! Loop devices: losetup to make and end them, `/sys` to see them.
//! What is in `/sys` can be read even when the file below no longer answers.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;
use common::run::{Cmd, Output};
use nix::sys::stat::{major, minor};

use crate::watch::Watch;

const LIMIT: Duration = Duration::from_secs(60);

/// A loop device in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loop {
    /// Like `loop0`.
    pub(crate) name: String,
    /// Its file, as the kernel names it; " (deleted)" follows if it has no name any more.
    pub(crate) file: PathBuf,
    /// Block devices on top of it, like `dm-0`.
    pub(crate) holders: Vec<String>,
    /// The kernel's number for this use of it, never given twice (Linux 5.15).
    pub(crate) diskseq: Option<u64>,
}

impl Loop {
    /// `/dev/loop0`.
    pub(crate) fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether it was made for `image`.
    pub(crate) fn is_of(&self, image: &Path) -> bool {
        let mut deleted = image.as_os_str().to_owned();
        deleted.push(" (deleted)");
        self.file == image || self.file.as_os_str() == deleted
    }

    /// Whether it goes past the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        let dio = sys(&self.name).join("loop/dio");
        std::fs::read_to_string(dio).is_ok_and(|text| text.trim() == "1")
    }

    /// Bytes read and written, ever: a device that is used again goes on counting.
    pub(crate) fn traffic(&self) -> Option<(u64, u64)> {
        let text = std::fs::read_to_string(sys(&self.name).join("stat")).ok()?;
        let mut fields = text.split_whitespace().map(|n| n.parse::<u64>().ok());
        let (read, written) = (fields.nth(2)??, fields.nth(3)??);
        Some((read * 512, written * 512))
    }
}

/// `/sys/block/NAME`
pub(crate) fn sys(name: &str) -> PathBuf {
    Path::new("/sys/block").join(name)
}

/// The names in a folder of `/sys`; none if it is not there.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The loop devices in use.
pub(crate) fn all() -> Vec<Loop> {
    names(Path::new("/sys/block")).into_iter().filter_map(|name| one(&name)).collect()
}

/// The loop device `name`, if it is one and in use.
pub(crate) fn one(name: &str) -> Option<Loop> {
    let mut text = std::fs::read(sys(name).join("loop/backing_file")).ok()?;
    text.pop_if(|last| *last == b'\n');
    let file = PathBuf::from(OsString::from_vec(text));
    let diskseq = std::fs::read_to_string(sys(name).join("diskseq")).ok();
    Some(Loop {
        name: name.to_owned(),
        file,
        holders: names(&sys(name).join("holders")),
        diskseq: diskseq.and_then(|n| n.trim().parse().ok()),
    })
}

/// Makes a loop device for `image`, which must be exactly what the kernel then says it opened: this path, and the very
/// file that is `opened`. (losetup itself always opens a path, even when it is given a descriptor below `/proc`.) All of it
/// asks the file's server.
pub(crate) fn attach(image: &Path, opened: &File, read_only: bool) -> Result<Loop> {
    let cmd = Cmd::new("losetup").args(["--find", "--show", "--direct-io=on"]);
    let cmd = cmd.args(read_only.then_some("--read-only")).arg("--").arg(image).timeout(LIMIT);
    let device = cmd.checked()?.text();
    let made = device.strip_prefix("/dev/").and_then(one);
    let Some(made) = made else {
        return Err(Fault::failed(format!("losetup made {device}, which is not there")).into());
    };
    if made.file != image {
        // Ours, whatever it opened: it was made a moment ago.
        detach(&made, LIMIT, Cmd::output)?;
        let what = format!("{} turned into {} while it was opened", image.display(), made.file.display());
        return Err(Fault::config(what).into());
    }
    match is_on(&made, opened) {
        Ok(true) => Ok(made),
        other => {
            detach(&made, LIMIT, Cmd::output)?;
            other?;
            let what = format!("{} was replaced by another file while it was opened", image.display());
            Err(Fault::config(what).into())
        }
    }
}

/// Whether `device` has the very file that is `opened`, whatever its name.
fn is_on(device: &Loop, opened: &File) -> Result<bool> {
    let cmd = Cmd::new("losetup").args(["--list", "--noheadings", "--output", "BACK-INO,BACK-MAJ:MIN"]);
    let there = cmd.arg(device.device()).timeout(LIMIT).checked()?.text();
    let meta = opened.metadata()?;
    let ours = (meta.ino().to_string(), format!("{}:{}", major(meta.dev()), minor(meta.dev())));
    let mut words = there.split_whitespace();
    Ok((words.next(), words.next()) == (Some(&ours.0), Some(&ours.1)))
}

/// Ends a loop device; false if something still holds it after `patience`. `run` knows how to wait for what may hang.
pub(crate) fn detach(
    device: &Loop,
    patience: Duration,
    run: impl FnOnce(&Cmd) -> Result<Output>,
) -> Result<bool> {
    let cmd = Cmd::new("losetup").arg("--detach").arg(device.device()).timeout(LIMIT).uninterruptible();
    let output = run(&cmd)?;
    if !output.status.success() {
        return Err(cmd.failure(&output).into());
    }
    let begin = Instant::now();
    // A device in use only gets marked for its end, and losetup is content.
    while one(&device.name)
        .is_some_and(|now| (now.diskseq, now.file) == (device.diskseq, device.file.clone()))
    {
        if begin.elapsed() > patience {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(true)
}

/// Tells the kernel that the file has grown, for which it asks the file's server.
pub(crate) fn refresh(device: &Loop, watch: &mut Watch) -> Result<()> {
    watch.checked(&Cmd::new("losetup").arg("--set-capacity").arg(device.device()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_told_by_its_whole_file_name() {
        let device =
            |file: &str| Loop { name: "loop0".into(), file: file.into(), holders: Vec::new(), diskseq: None };
        assert!(device("/a/img").is_of(Path::new("/a/img")));
        assert!(device("/a/img (deleted)").is_of(Path::new("/a/img")));
        assert!(!device("/a/img2").is_of(Path::new("/a/img")));
        assert!(!device("/b/a/img").is_of(Path::new("/a/img")));
    }

    #[test]
    fn a_file_is_attached_and_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().canonicalize().unwrap().join("img");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let made = attach(&image, &File::open(&image).unwrap(), true).unwrap();
        assert!(all().contains(&made) && made.is_of(&image) && made.traffic().is_some());
        assert!(detach(&made, Duration::from_secs(5), Cmd::output).unwrap());
        // Another file took its name since it was looked at.
        let before = File::open(&image).unwrap();
        std::fs::rename(&image, dir.path().join("old")).unwrap();
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        assert!(attach(&image, &before, true).is_err());
        assert!(!all().iter().any(|l| l.is_of(&image)));
    }
}
