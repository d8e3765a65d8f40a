//! What the profile and the options say, with every path as the kernel names it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use common::fault::Fault;
use common::fuse::{self, Health};
use common::lock::Lock;
use common::mounts::{self, Mount};
use common::profile::{Layout, Luks, Profile};
use common::{offsite, places};

use crate::cryptsetup::Cryptsetup;
use crate::watch::{PROBE, Watch};

/// What options say; each wins over the profile.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Profile: /etc/nc-backup/PROFILE.toml.
    pub(crate) profile: Option<String>,
    /// Another file as the profile.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The container's file; a relative one lies in the folder of
    /// [offsite.sshfs], or in the current one if there is no such table.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// The file with the key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// This machine's own copy of the header. Default: container.header in the
    /// state folder.
    #[arg(long, value_name = "FILE")]
    pub(crate) header: Option<PathBuf>,
    /// Where it is mounted. Default: 'container' in the runtime folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) mount_point: Option<PathBuf>,
    /// Command line of cryptsetup, words separated by blanks.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) cryptsetup: Option<String>,
    /// Where header and record are [default: /var/lib/nc-backup/PROFILE].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where mount points are [default: /run/nc-backup/PROFILE].
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
}

/// All an action needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The profile's name, as hints write it.
    pub(crate) name: String,
    /// The container's file. No symbolic link above the mount it lies on.
    pub(crate) image: PathBuf,
    pub(crate) key_file: PathBuf,
    /// Our own copy of the header.
    pub(crate) header: PathBuf,
    pub(crate) mount_point: PathBuf,
    /// Name in the device mapper.
    pub(crate) mapping: String,
    /// The folder for what must outlive a reboot.
    pub(crate) state: PathBuf,
    /// The folder for what must not.
    pub(crate) runtime: PathBuf,
    pub(crate) cryptsetup: Cryptsetup,
    /// The profile's layout: images instead of trees.
    pub(crate) layers: bool,
    configured_mount_point: bool,
}

impl Settings {
    /// Loads the profile and lays the options over it. Needs root, as everything here does.
    pub(crate) fn load(place: &Place) -> Result<Settings> {
        if !nix::unistd::geteuid().is_root() {
            let fault = Fault::denied("loop devices, the device mapper and mounts are root's");
            return Err(fault.hint("run it as root").into());
        }
        let mut profile = Profile::load(place.profile.as_deref(), place.config.as_deref())?;
        let absolute = |path: &PathBuf| std::path::absolute(path).context("cannot tell the current folder");
        if let Some(dir) = &place.state_dir {
            profile.state_dir = Some(absolute(dir)?);
        }
        if let Some(dir) = &place.runtime_dir {
            profile.runtime_dir = Some(absolute(dir)?);
        }
        if profile.offsite.luks.is_none()
            && let (Some(image), Some(key_file)) = (&place.image, &place.key_file)
        {
            profile.offsite.luks = Some(Luks {
                image: image.clone(),
                key_file: key_file.clone(),
                header: None,
                mount_point: None,
                cryptsetup: Vec::new(),
            });
        }
        let has_sshfs = profile.offsite.sshfs.is_some();
        if let Some(luks) = &mut profile.offsite.luks {
            if let Some(image) = &place.image {
                luks.image = if has_sshfs { inside(image.clone())? } else { absolute(image)? };
            }
            if let Some(key) = &place.key_file {
                luks.key_file = absolute(key)?;
            }
            luks.header = place.header.as_ref().map(absolute).transpose()?.or(luks.header.take());
            luks.mount_point =
                place.mount_point.as_ref().map(absolute).transpose()?.or(luks.mount_point.take());
            if let Some(text) = &place.cryptsetup {
                luks.cryptsetup = text.split_whitespace().map(str::to_owned).collect();
            }
        }
        let luks = offsite::luks(&profile)?.clone();
        Ok(Settings {
            image: resolve(&offsite::image(&profile)?)?,
            header: offsite::header(&profile)?,
            mount_point: resolve(&offsite::container_mount_point(&profile)?)?,
            mapping: offsite::mapping(&profile),
            state: places::state(&profile)?,
            runtime: places::runtime(&profile)?,
            layers: profile.offsite.layout == Layout::Layers,
            configured_mount_point: luks.mount_point.is_some(),
            key_file: luks.key_file,
            cryptsetup: Cryptsetup::new(luks.cryptsetup),
            name: profile.name,
        })
    }

    /// Settings for tests of what only compares names.
    #[cfg(test)]
    pub(crate) fn for_test(image: &Path, mount_point: &Path, cryptsetup: Cryptsetup) -> Settings {
        Settings {
            name: "test".into(),
            image: image.into(),
            key_file: "/key".into(),
            header: "/header".into(),
            mount_point: mount_point.into(),
            mapping: "nc-backup-test".into(),
            state: "/state".into(),
            runtime: "/runtime".into(),
            cryptsetup,
            layers: false,
            configured_mount_point: false,
        }
    }

    /// Our tool's command line for `action`, for hints.
    pub(crate) fn hint(&self, action: &str) -> String {
        format!("`luks-mount {action} {}`", self.name)
    }

    /// The lock that all actions that change something hold.
    pub(crate) fn lock(&self) -> Result<Lock> {
        Lock::exclusive(&self.state.join("container.lock"), &format!("the container of {}", self.name))
    }

    /// The same, for clean-up: a holder has half a minute to go.
    pub(crate) fn lock_patiently(&self) -> Result<Lock> {
        let what = format!("the container of {}", self.name);
        Lock::exclusive_within(&self.state.join("container.lock"), &what, Duration::from_secs(30))
    }

    /// The FUSE mount that the image lies on, if any.
    pub(crate) fn link(&self) -> Result<Option<Mount>> {
        fuse::mount_below(&self.image)
    }

    /// Watches the link to the image, for work (`clean_up` false) or for clean-up.
    pub(crate) fn watch(&self, clean_up: bool) -> Result<Watch> {
        let link = self.link()?.map(|m| m.target);
        Ok(Watch::new(link, self.runtime.join("s3.wire"), clean_up))
    }

    /// Where the folder of the image really is, for people: on S3, if it is mounted from there.
    pub(crate) fn home(&self) -> Result<String> {
        let folder = self.image.parent().unwrap_or(Path::new("/"));
        Ok(match self.link()? {
            Some(link) => {
                let below = folder.strip_prefix(&link.target).unwrap_or(Path::new(""));
                Path::new(&link.source).join(below).display().to_string().trim_end_matches('/').to_owned()
            }
            None => folder.display().to_string(),
        })
    }

    /// An error unless the image's file system answers. Everything that touches the image asks first.
    pub(crate) fn reachable(&self) -> Result<()> {
        let hint = format!("`sshfs-mount mount {}`", self.name);
        let unavailable = |what: String| -> anyhow::Error { Fault::unavailable(what).hint(&hint).into() };
        if let Some(link) = self.link()? {
            let at = link.target.display();
            match fuse::probe(&link.target, PROBE)? {
                Health::Healthy => {}
                Health::Dead(why) => {
                    return Err(unavailable(format!("{at} is mounted, but what serves it is gone: {why}")));
                }
                Health::Hung => return Err(unavailable(format!("{at} is mounted, but does not answer"))),
            }
        }
        Ok(())
    }

    /// Makes sure that the mount point can be mounted on: an empty folder that is root's alone.
    pub(crate) fn prepare_mount_point(&self) -> Result<()> {
        let dir = &self.mount_point;
        let wrong = |why: &str| -> anyhow::Error {
            Fault::config(format!("the mount point {} {why}", dir.display())).into()
        };
        if mounts::table()?.iter().any(|m| m.target == *dir) {
            return Err(wrong("has something else mounted on it"));
        }
        match std::fs::symlink_metadata(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if self.configured_mount_point && !dir.parent().is_some_and(Path::is_dir) {
                    return Err(wrong("does not exist, nor does the folder it would be in"));
                }
                let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
                return made.with_context(|| format!("cannot make the mount point {}", dir.display()));
            }
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", dir.display())),
            Ok(meta) if meta.is_symlink() => return Err(wrong("is a symbolic link")),
            Ok(meta) if !meta.is_dir() => return Err(wrong("is not a folder")),
            Ok(meta) if meta.uid() != 0 => return Err(wrong("does not belong to root")),
            Ok(meta) if meta.mode() & 0o022 != 0 => return Err(wrong("can be written by others than root")),
            Ok(_) => {}
        }
        let mut entries =
            std::fs::read_dir(dir).with_context(|| format!("cannot look into {}", dir.display()))?;
        if entries.next().is_some() { Err(wrong("is not empty")) } else { Ok(()) }
    }
}

/// A relative image must stay inside the folder of S3.
fn inside(image: PathBuf) -> Result<PathBuf> {
    let plain = image.components().all(|c| matches!(c, Component::Normal(_)));
    if image.is_absolute() || plain {
        return Ok(image);
    }
    let what = format!("--image {}: this must be a path inside the folder of S3", image.display());
    Err(Fault::config(what).into())
}

/// `path` without symbolic links, as the kernel names it in `/sys` and in the mount table. A file system that a
/// process serves is not asked: the rest of the path is taken as it is.
fn resolve(path: &Path) -> Result<PathBuf> {
    let table = mounts::table()?;
    let served = |p: &Path| table.iter().any(|m| m.target == p && m.fs_type.starts_with("fuse."));
    let mut todo: VecDeque<OsString> = path.components().map(|c| c.as_os_str().to_owned()).collect();
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        if served(&next) {
            done = todo.iter().fold(next, |path, part| path.join(part));
            break;
        }
        // The last part is never followed: an image or a mount point that is a link is refused where it is used.
        if !todo.is_empty() && std::fs::symlink_metadata(&next).is_ok_and(|m| m.is_symlink()) {
            links += 1;
            if links > 40 {
                return Err(Fault::config(format!("{}: too many symbolic links", path.display())).into());
            }
            let target = std::fs::read_link(&next)?;
            for part in target.components().rev() {
                todo.push_front(part.as_os_str().to_owned());
            }
        } else {
            done = next;
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_above_the_last_part_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", base.join("real/image")).unwrap();
        assert_eq!(resolve(&base.join("link/image")).unwrap(), base.join("real/image"));
        assert_eq!(resolve(&base.join("link/../link/x/y")).unwrap(), base.join("real/x/y"));
        std::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        assert!(resolve(&base.join("loop/x")).is_err());
    }

    #[test]
    fn an_image_outside_the_folder_is_refused() {
        assert!(inside("../x".into()).is_err());
        assert!(inside("a/b.img".into()).is_ok());
    }
}
