//! Which of the container's layers are up: loop device, mapping, mount.
//! Everything here is read from `/sys` and the mount table, so it can be told even when the image's file system hangs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use common::mounts::{self, Mount};

use crate::begun::Begun;
use crate::losetup::{self, Loop, names, sys};
use crate::record::Record;
use crate::settings::Settings;

/// How far the container is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No layer is up.
    Detached,
    /// A loop device has the image, and nothing is on it.
    LoopOnly,
    /// Opened, but not mounted.
    Mapped,
    /// Mounted where it should be.
    Attached,
    /// Opened, and mounted somewhere else (too).
    MountedElsewhere,
    /// Opened, but the image below it is gone.
    MappingWithoutImage,
    /// Our name, image or mount point is used by something that is not ours.
    Foreign,
}

impl State {
    /// The word in the status object.
    pub(crate) fn word(self) -> &'static str {
        match self {
            State::Detached => "detached",
            State::LoopOnly => "loop-only",
            State::Mapped => "mapped",
            State::Attached => "attached",
            State::MountedElsewhere => "mounted-elsewhere",
            State::MappingWithoutImage => "mapping-without-image",
            State::Foreign => "foreign",
        }
    }
}

/// The opened container in the device mapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Like `dm-0`.
    pub(crate) dm: String,
    /// Under `/dev/mapper`.
    pub(crate) name: String,
    /// The device mapper's UUID: type, LUKS UUID, name.
    pub(crate) uuid: String,
    /// Block devices below it.
    pub(crate) slaves: Vec<String>,
    pub(crate) read_only: bool,
}

impl Mapping {
    /// `/dev/mapper/NAME`
    pub(crate) fn device(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }
}

/// The layers that are up.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    pub(crate) state: State,
    /// Loop devices on the image, and those below our mapping.
    pub(crate) loops: Vec<Loop>,
    pub(crate) mapping: Option<Mapping>,
    /// Where the mapping is mounted, in mount order.
    pub(crate) mounts: Vec<Mount>,
    /// What is not ours, in words.
    pub(crate) foreign: Option<String>,
    /// The loop device that we made, if we remember.
    pub(crate) begun: Option<Begun>,
}

impl Stack {
    /// Bytes read and written through the loop device since it was made, if that is known.
    pub(crate) fn traffic(&self) -> Option<(u64, u64)> {
        let begun = self.begun.as_ref()?;
        self.loops.iter().find_map(|l| begun.traffic(l))
    }
}

/// Looks.
pub(crate) fn look(settings: &Settings, record: Option<&Record>) -> Result<Stack> {
    let mapping = find_mapping(&settings.mapping);
    let loops = losetup::all();
    let uuid = record.map(|r| r.uuid.as_str());
    Ok(judge(settings, uuid, Begun::load(settings), loops, mapping, mounts::table()?))
}

/// The mapping of that name, if there is one.
pub(crate) fn find_mapping(name: &str) -> Option<Mapping> {
    let text = |path: PathBuf| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
    let dm = names(Path::new("/sys/block")).into_iter().find(|dm| text(sys(dm).join("dm/name")) == name)?;
    Some(Mapping {
        name: name.to_owned(),
        uuid: text(sys(&dm).join("dm/uuid")),
        slaves: names(&sys(&dm).join("slaves")),
        read_only: text(sys(&dm).join("ro")) == "1",
        dm,
    })
}

fn judge(
    settings: &Settings,
    uuid: Option<&str>,
    begun: Option<Begun>,
    all: Vec<Loop>,
    mapping: Option<Mapping>,
    table: Vec<Mount>,
) -> Stack {
    let below = |l: &Loop| mapping.as_ref().is_some_and(|m| m.slaves.contains(&l.name));
    let is_on_image = |l: &Loop| l.is_of(&settings.image) || begun.as_ref().is_some_and(|b| b.is(l));
    let on_image: Vec<&Loop> = all.iter().filter(|l| is_on_image(l)).collect();
    let loops: Vec<Loop> = all.iter().filter(|l| is_on_image(l) || below(l)).cloned().collect();
    let mounts: Vec<Mount> =
        table.iter().filter(|m| mapping.as_ref().is_some_and(|map| mounted_from(m, map))).cloned().collect();
    let foreign = mapping
        .as_ref()
        .and_then(|m| not_ours(m, uuid, on_image.iter().any(|l| below(l))))
        .or_else(|| on_image.iter().find_map(|l| held(l, mapping.as_ref(), &table)))
        .or_else(|| {
            let other = table.iter().rev().find(|m| m.target == settings.mount_point)?;
            let what = format!("{} is mounted on {}", other.source.display(), other.target.display());
            (!mounts.contains(other)).then_some(what)
        });
    let state = match &mapping {
        _ if foreign.is_some() => State::Foreign,
        None if loops.is_empty() => State::Detached,
        None => State::LoopOnly,
        Some(m) if !on_image.iter().any(|l| m.slaves == [l.name.as_str()] && l.file == settings.image) => {
            State::MappingWithoutImage
        }
        Some(_) if mounts.is_empty() => State::Mapped,
        Some(_) if mounts.iter().all(|m| m.target == settings.mount_point) => State::Attached,
        Some(_) => State::MountedElsewhere,
    };
    Stack { state, loops, mapping, mounts, foreign, begun }
}

/// Why a mapping with our name is not ours.
fn not_ours(mapping: &Mapping, uuid: Option<&str>, on_image: bool) -> Option<String> {
    let wrong =
        format!("the device mapper's name {} belongs to another device ({})", mapping.name, mapping.uuid);
    let rest = mapping.uuid.strip_prefix("CRYPT-LUKS1-").or(mapping.uuid.strip_prefix("CRYPT-LUKS2-"));
    match (rest, uuid) {
        (Some(rest), Some(uuid)) => {
            (!rest.starts_with(&format!("{}-", uuid.replace('-', "")))).then_some(wrong)
        }
        // No record: a `create` that was killed. Then the image tells.
        (Some(_), None) if on_image => None,
        _ => Some(wrong),
    }
}

/// What else uses a loop device of the image.
fn held(device: &Loop, ours: Option<&Mapping>, table: &[Mount]) -> Option<String> {
    let file = device.file.display();
    if let Some(other) = device.holders.iter().find(|h| ours.is_none_or(|m| m.dm != **h)) {
        let name = std::fs::read_to_string(sys(other).join("dm/name")).unwrap_or_default();
        return Some(format!("{file} is opened by {other} {}", name.trim()).trim().to_owned());
    }
    let mounted = table.iter().find(|m| Path::new(&m.source) == device.device())?;
    Some(format!("{file} is mounted on {} as it is", mounted.target.display()))
}

fn mounted_from(mount: &Mount, mapping: &Mapping) -> bool {
    let source = Path::new(&mount.source);
    source == mapping.device() || source == Path::new("/dev").join(&mapping.dm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cryptsetup::Cryptsetup;

    fn settings() -> Settings {
        Settings::for_test(Path::new("/s3/img"), Path::new("/c"), Cryptsetup::new(Vec::new()))
    }
    fn device(name: &str, file: &str, holders: &[&str]) -> Loop {
        let holders = holders.iter().map(|h| (*h).to_owned()).collect();
        Loop { name: name.into(), file: file.into(), holders, diskseq: None }
    }
    fn mapping(slaves: &[&str]) -> Option<Mapping> {
        Some(Mapping {
            dm: "dm-0".into(),
            name: "nc-backup-test".into(),
            uuid: "CRYPT-LUKS2-aabb-nc-backup-test".into(),
            slaves: slaves.iter().map(|s| (*s).to_owned()).collect(),
            read_only: false,
        })
    }
    fn mount(source: &str, target: &str) -> Mount {
        Mount {
            id: 1,
            device: (254, 0),
            root: "/".into(),
            target: target.into(),
            fs_type: "ext4".into(),
            source: source.into(),
            options: Vec::new(),
        }
    }
    fn state(loops: Vec<Loop>, mapping: Option<Mapping>, table: Vec<Mount>) -> State {
        judge(&settings(), Some("aa-bb"), None, loops, mapping, table).state
    }

    #[test]
    fn every_half_state_is_told_apart() {
        let ours = || device("loop1", "/s3/img", &["dm-0"]);
        let dev = "/dev/mapper/nc-backup-test";
        let other = || device("loop0", "/x", &[]);
        assert_eq!(state(vec![other()], None, vec![]), State::Detached);
        assert_eq!(state(vec![other(), device("loop1", "/s3/img", &[])], None, vec![]), State::LoopOnly);
        assert_eq!(state(vec![ours()], mapping(&["loop1"]), vec![]), State::Mapped);
        assert_eq!(state(vec![ours()], mapping(&["loop1"]), vec![mount(dev, "/c")]), State::Attached);
        assert_eq!(state(vec![ours()], mapping(&["loop1"]), vec![mount("/dev/dm-0", "/c")]), State::Attached);
        let twice = vec![mount(dev, "/c"), mount(dev, "/d")];
        assert_eq!(state(vec![ours()], mapping(&["loop1"]), twice), State::MountedElsewhere);
        let gone = vec![device("loop1", "/s3/img (deleted)", &["dm-0"])];
        assert_eq!(state(gone, mapping(&["loop1"]), vec![]), State::MappingWithoutImage);
        assert_eq!(state(vec![], mapping(&[]), vec![]), State::MappingWithoutImage);
        let moved = vec![device("loop1", "/img", &["dm-0"])];
        assert_eq!(state(moved, mapping(&["loop1"]), vec![]), State::MappingWithoutImage);
    }

    #[test]
    fn what_is_not_ours_is_foreign() {
        let ours = || device("loop1", "/s3/img", &["dm-0"]);
        assert_eq!(state(vec![], None, vec![mount("/dev/sda1", "/c")]), State::Foreign);
        assert_eq!(state(vec![device("loop1", "/s3/img", &["dm-7"])], None, vec![]), State::Foreign);
        assert_eq!(state(vec![ours()], None, vec![mount("/dev/loop1", "/mnt")]), State::Foreign);
        let mut other = mapping(&["loop1"]);
        other.as_mut().unwrap().uuid = "CRYPT-LUKS2-ccdd-nc-backup-test".into();
        assert_eq!(state(vec![ours()], other, vec![]), State::Foreign);
        let mut linear = mapping(&["loop1"]);
        linear.as_mut().unwrap().uuid = "LVM-x".into();
        assert_eq!(state(vec![ours()], linear, vec![]), State::Foreign);
    }

    #[test]
    fn a_killed_create_leaves_what_can_be_recognised() {
        let ours = device("loop1", "/s3/img", &["dm-0"]);
        let stack = judge(&settings(), None, None, vec![ours], mapping(&["loop1"]), vec![]);
        assert_eq!(stack.state, State::Mapped);
        let other = device("loop1", "/y", &["dm-0"]);
        assert_eq!(
            judge(&settings(), None, None, vec![other], mapping(&["loop1"]), vec![]).state,
            State::Foreign
        );
    }
}
