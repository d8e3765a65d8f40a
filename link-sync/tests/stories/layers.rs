//! Images of what changed: laid over each other they show each snapshot, with all its attributes.
//!
//! `LAYERS_CASES=200` tries more, `LAYERS_SEED=7` the same as the run that said so.

use std::collections::HashMap;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use proptest::collection::vec;
use proptest::prelude::any;
use testkit::Ran;

use crate::changes::{self, Change, KINDS};
use crate::picture::{Picture, Seen, picture};
use crate::random;
use crate::world::{Mounted, World, ok, private, warnings};

/// From so many bytes on, contents lie beside: the largest that the changes make do.
const BIG: &str = "60000";

/// A store whose snapshots share inodes also where a path was moved, as link-sync makes them where it sees that; made here from
/// a tree that changes.
pub struct History {
    pub world: World,
    /// One of link-sync's own, to describe the others.
    pub described: serde_json::Value,
    /// Inodes of the tree to paths of the last snapshot.
    last: HashMap<u64, PathBuf>,
    pub dates: Vec<String>,
    pub images: PathBuf,
}

impl History {
    pub fn new() -> History {
        let world = World::new();
        let first = world.publish();
        let described = std::fs::read(first.join(".meta/snapshot.json")).unwrap();
        let images = world.dir.join("images");
        private(&images);
        let described = serde_json::from_slice(&described).unwrap();
        History { world, described, last: HashMap::new(), dates: Vec::new(), images }
    }

    /// What the tree is now, as a snapshot.
    pub fn shoot(&mut self) -> String {
        let date = format!("2020-01-{:02}T00-00-00Z", self.dates.len() + 1);
        let (top, source) = (self.world.store.join(&date), self.world.source.clone());
        private(&top.join(".meta"));
        let docs = top.join("docs");
        let paths = [source.as_os_str(), docs.as_os_str()].map(|p| p.to_str().unwrap());
        ok("cp", &["-a", "--no-preserve=links", paths[0], paths[1]]);
        let mut inodes = HashMap::new();
        let mut folders = Vec::new();
        for (path, seen) in picture(&docs).0 {
            let path = std::ffi::OsString::from_vec(path);
            let (here, there) = (docs.join(&path), source.join(&path));
            if seen.mode & libc::S_IFMT == libc::S_IFDIR {
                folders.push((here, seen.mtime));
                continue;
            }
            let inode = there.symlink_metadata().unwrap().ino();
            let same = self.last.get(&inode).filter(|old| picture(old).0[&Vec::new()] == seen);
            if let Some(old) = same {
                std::fs::remove_file(&here).unwrap();
                std::fs::hard_link(old, &here).unwrap();
            }
            inodes.insert(inode, here);
        }
        for (folder, (sec, nsec)) in folders {
            let time = TimeSpec::new(sec, nsec);
            let at = nix::fcntl::AT_FDCWD;
            utimensat(at, &folder, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
        }
        self.last = inodes;
        self.described["date"] = date.clone().into();
        self.described["id"] = format!("{:032x}", self.dates.len() + 1).into();
        std::fs::write(top.join(".meta/snapshot.json"), self.described.to_string()).unwrap();
        std::fs::write(top.join(".meta/lock"), "").unwrap();
        self.dates.push(date.clone());
        date
    }

    pub fn image(&self, n: usize) -> PathBuf {
        self.images.join(format!("{n}.sqfs"))
    }

    pub fn layer(&self, to: &Path, options: &[&str]) -> Ran {
        let place = ["--to", to.to_str().unwrap(), "--big-bytes", BIG];
        let options: Vec<_> = place.iter().chain(options).copied().collect();
        let ran = self.world.act("layer", &options);
        if ran.json["data"]["big"].as_u64().is_some_and(|big| big > 0) {
            self.lay_beside(to, ran.json["data"]["date"].as_str().unwrap());
        }
        ran
    }

    /// The contents that are not in the image, under their hashes.
    fn lay_beside(&self, image: &Path, date: &str) {
        let folder = self.images.join("big/.big");
        std::fs::create_dir_all(&folder).unwrap();
        let told = std::fs::read(format!("{}.json", image.display())).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        for big in told["big"].as_array().unwrap() {
            // Of names that are no text the test's own hash must do.
            let same = |path: &PathBuf| {
                ok("sha256sum", &["--", path.to_str().unwrap()]).contains(big["sha256"].as_str().unwrap())
            };
            let top = self.world.store.join(date);
            let path = match big["path_b64"].is_null() {
                true => top.join(big["path"].as_str().unwrap()),
                false => {
                    let files =
                        picture(&top).0.into_keys().map(|p| top.join(std::ffi::OsString::from_vec(p)));
                    let link = self.images.join("found");
                    let found =
                        files.filter(|p| p.symlink_metadata().unwrap().len() == big["bytes"]).find(|p| {
                            std::fs::hard_link(p, &link).unwrap();
                            let same = same(&link);
                            std::fs::remove_file(&link).unwrap();
                            same
                        });
                    found.unwrap()
                }
            };
            std::fs::copy(path, folder.join(big["sha256"].as_str().unwrap())).unwrap();
        }
    }

    /// The image of snapshot `n` over the one before it.
    pub fn next(&self, n: usize) -> Ran {
        let date = &self.dates[n];
        match n.checked_sub(1) {
            None => self.layer(&self.image(n), &["--date", date]),
            Some(base) => self.layer(&self.image(n), &["--date", date, "--base", &self.dates[base]]),
        }
    }

    /// The images of no more than 200 KiB each that make a snapshot, the newest first, and the bytes stored in all of them.
    pub fn parts(&self, of: &[&str]) -> (Vec<PathBuf>, u64) {
        let (mut stack, mut bytes): (Vec<PathBuf>, u64) = (Vec::new(), 0);
        let (mut after, mut plan): (Option<String>, Option<String>) = (None, None);
        loop {
            let to = self.images.join(format!("part-{}", std::fs::read_dir(&self.images).unwrap().count()));
            let options = [of, &["--most-bytes", "200k"]].concat();
            let more: Vec<&str> = after.iter().flat_map(|after| ["--after", after]).collect();
            let ran = self.layer(&to, &[options, more].concat()).expect(0);
            let data = &ran.json["data"];
            let stored = data["content_bytes"].as_u64().unwrap();
            assert!(stored <= 200 << 10, "{data}");
            let digest = data["plan_sha256"].as_str().unwrap().to_owned();
            assert_eq!(*plan.get_or_insert_with(|| digest.clone()), digest);
            bytes += stored;
            stack.insert(0, to);
            after = data["last"].as_str().map(str::to_owned);
            if after.is_none() {
                return (stack, bytes);
            }
        }
    }

    /// Everything at `date`, as the store has it.
    pub fn stored(&self, date: &str) -> Picture {
        picture(&self.world.store.join(date).join("docs"))
    }
}

/// An overlay of images, the newest first, with what the images hold for squashfs given back.
pub fn shown(dir: &Path, images: &[PathBuf]) -> Picture {
    let view = dir.join("view");
    let laid = lay(dir, images, &view);
    assert!(!view.join(".big").exists());
    let mut seen = picture(&view.join("docs"));
    drop(laid);
    seen.0.values_mut().for_each(give_back);
    seen
}

/// Mounts them at `view`. (What is dropped first is what lies upon the others.)
pub fn lay(dir: &Path, images: &[PathBuf], view: &Path) -> (Mounted, Vec<Mounted>) {
    let mut mounted = Vec::new();
    let top = dir.join("top");
    private(&top);
    let mut lower = top.to_str().unwrap().to_owned();
    for (n, image) in images.iter().enumerate() {
        let place = dir.join(format!("layer-{n}"));
        private(&place);
        ok("mount", &["-o", "loop,ro", image.to_str().unwrap(), place.to_str().unwrap()]);
        lower = format!("{lower}:{}", place.display());
        mounted.push(Mounted(place));
    }
    if dir.join("big").exists() {
        mknod(&top.join(".big"), SFlag::S_IFCHR, Mode::empty(), 0).ok();
        lower = format!("{lower}:{}", dir.join("big").display());
    }
    private(view);
    let options =
        format!("ro,nosuid,nodev,noexec,redirect_dir=follow,metacopy=on,index=off,lowerdir={lower}");
    ok("mount", &["-t", "overlay", "overlay", "-o", &options, view.to_str().unwrap()]);
    (Mounted(view.to_owned()), mounted)
}

fn give_back(seen: &mut Seen) {
    const OURS: &[u8] = b"trusted.nc-backup.";
    for (name, value) in std::mem::take(&mut seen.xattrs) {
        match name.strip_prefix(OURS) {
            None => drop(seen.xattrs.insert(name, value)),
            Some(b"mtime") => {
                let text = String::from_utf8(value).unwrap();
                let (seconds, fraction) = text.split_once('.').unwrap();
                let (whole, nanoseconds) =
                    (seconds.parse::<i64>().unwrap(), fraction.parse::<i64>().unwrap());
                seen.mtime = match seconds.starts_with('-') && nanoseconds > 0 {
                    true => (whole - 1, 1_000_000_000 - nanoseconds),
                    false => (whole, nanoseconds),
                };
            }
            Some(acl) => drop(seen.xattrs.insert([b"system.", acl].concat(), value)),
        }
    }
}

#[test]
fn whatever_changes_an_overlay_of_the_images_shows_each_snapshot() {
    let change = || vec((0..KINDS + MOVES, any::<u32>(), any::<u32>()), 0..20);
    let (seed, cases) = (random::seed("LAYERS_SEED"), random::number("LAYERS_CASES", 8));
    random::try_many(seed, cases, 60, &vec(change(), 1..5), |steps| story(steps));
}

/// More changes than those of others: whole folders go into each other, swap, are copied by links.
pub const MOVES: u8 = 4;

pub fn change(top: &Path, change: Change) {
    let (kind, a, b) = change;
    if kind < KINDS {
        return changes::apply(top, change);
    }
    let folders: Vec<PathBuf> = picture(top)
        .0
        .into_iter()
        .filter(|(path, seen)| !path.is_empty() && seen.mode & libc::S_IFMT == libc::S_IFDIR)
        .map(|(path, _)| top.join(std::ffi::OsString::from_vec(path)))
        .collect();
    if folders.len() < 2 {
        return;
    }
    let (one, other) = (&folders[a as usize % folders.len()], &folders[b as usize % folders.len()]);
    let free = other.join(format!("moved-{}", b % 3));
    if one == other || free.symlink_metadata().is_ok() {
        return;
    }
    let nested = one.starts_with(other) || other.starts_with(one);
    let paths = [one.to_str(), free.to_str()];
    match (kind - KINDS, paths) {
        (0 | 1, _) if !other.starts_with(one) => std::fs::rename(one, &free).unwrap(),
        (2, _) if !nested => {
            let aside = top.join("aside-for-a-moment");
            std::fs::rename(one, &aside).unwrap();
            std::fs::rename(other, one).unwrap();
            std::fs::rename(&aside, other).unwrap();
        }
        (3, [Some(from), Some(to)]) if !other.starts_with(one) => drop(ok("cp", &["-al", from, to])),
        _ => {}
    }
}

/// What went wrong.
fn story(steps: &[Vec<Change>]) -> String {
    let mut history = History::new();
    changes::begin(&history.world.source);
    let mut stack: Vec<PathBuf> = Vec::new();
    let nothing = Vec::new();
    for (n, step) in std::iter::once(&nothing).chain(steps).enumerate() {
        step.iter().for_each(|c| change(&history.world.source, *c));
        let date = history.shoot();
        history.next(n).expect(0);
        stack.insert(0, history.image(n));
        let wrong = history.stored(&date).differences(&shown(&history.images, &stack));
        if !wrong.is_empty() {
            return format!("snapshot {n}:\n{}", wrong.join("\n"));
        }
    }
    String::new()
}

#[test]
fn what_was_moved_is_not_stored_again() {
    let mut history = History::new();
    for n in 0..200 {
        history.world.file(&format!("photos/2024/{n}.jpg"), &format!("{n}").repeat(4000));
    }
    history.world.file("photos/one", &"1".repeat(5000));
    history.shoot();
    history.next(0).expect(0);
    let source = &history.world.source;
    std::fs::create_dir(source.join("trash")).unwrap();
    std::fs::rename(source.join("photos/2024"), source.join("trash/2024.d1")).unwrap();
    std::fs::remove_file(source.join("trash/2024.d1/7.jpg")).unwrap();
    std::fs::rename(source.join("photos/one"), source.join("trash/two")).unwrap();
    std::os::unix::fs::chown(source.join("trash/2024.d1/8.jpg"), Some(33), Some(33)).unwrap();
    let date = history.shoot();
    let ran = history.next(1).expect(0);
    let data = &ran.json["data"];
    assert_eq!((&data["moved_folders"], &data["files_by_content"]), (&1.into(), &2.into()), "{data}");
    // 7.jpg in its new folder; the old folder, and the file.
    assert_eq!(data["deleted"], 3);
    // What the snapshot says of itself, and its lock.
    assert_eq!(data["files"], 2);
    let wrong =
        history.stored(&date).differences(&shown(&history.images, &[history.image(1), history.image(0)]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_large_content_lies_beside_once_wherever_its_file_goes() {
    let mut history = History::new();
    let large = "large".repeat(20_000);
    history.world.file("a/one", &large);
    history.world.file("a/same", &large);
    history.shoot();
    let first = history.next(0).expect(0);
    assert_eq!((&first.json["data"]["big"], &first.json["data"]["big_bytes"]), (&2.into(), &100_000.into()));
    let source = &history.world.source;
    std::fs::rename(source.join("a/one"), source.join("moved")).unwrap();
    std::os::unix::fs::chown(source.join("moved"), Some(33), Some(33)).unwrap();
    std::fs::rename(source.join("a/same"), source.join("also-moved")).unwrap();
    let date = history.shoot();
    // The first has other attributes, so it is another inode: its content is told by its hash.
    let second = history.next(1).expect(0);
    assert_eq!(
        (&second.json["data"]["files_by_content"], &second.json["data"]["big"]),
        (&1.into(), &1.into())
    );
    let beside = std::fs::read_dir(history.images.join("big/.big")).unwrap().count();
    assert_eq!(beside, 1);
    let wrong =
        history.stored(&date).differences(&shown(&history.images, &[history.image(1), history.image(0)]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_image_is_the_same_each_time_and_its_hash_is_told() {
    let mut history = History::new();
    history.world.file("d/a", "a");
    history.shoot();
    let one = history.layer(&history.images.join("one"), &["--date", &history.dates[0]]).expect(0);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let other = history.layer(&history.images.join("other"), &["--date", &history.dates[0]]).expect(0);
    assert_eq!(one.json["data"]["sha256"], other.json["data"]["sha256"]);
    let told = ok("sha256sum", &[history.images.join("one").to_str().unwrap()]);
    assert!(told.starts_with(one.json["data"]["sha256"].as_str().unwrap()));
    let beside = std::fs::read(history.images.join("one.json")).unwrap();
    let beside: serde_json::Value = serde_json::from_slice(&beside).unwrap();
    assert_eq!(beside["sha256"], one.json["data"]["sha256"]);
    // Nothing is left of the making; and nothing that is there is written to.
    assert_eq!(std::fs::read_dir(&history.images).unwrap().count(), 4);
    let again = history.layer(&history.images.join("one"), &["--date", &history.dates[0]]);
    assert_eq!(again.code, 78, "{again:?}");
}

#[test]
fn what_would_make_an_overlay_lie_is_left_out_and_told() {
    let mut history = History::new();
    let source = history.world.source.clone();
    history.world.file("d/hidden", "seen");
    history.world.file("d/kept", "kept");
    history.world.file("d/becomes", "a file");
    history.shoot();
    history.next(0).expect(0);
    let device = |path: &str| mknod(&source.join(path), SFlag::S_IFCHR, Mode::S_IRWXU, 0).unwrap();
    device("d/new-device");
    std::fs::remove_file(source.join("d/becomes")).unwrap();
    device("d/becomes");
    for (name, value) in [("trusted.overlay.opaque", &b"y"[..]), ("trusted.nc-backup.mtime", b"1.5")] {
        xattr::set(source.join("d"), name, value).unwrap();
    }
    xattr::set(source.join("d/kept"), "trusted.overlay.redirect", b"/docs/d/hidden").unwrap();
    xattr::set(source.join("d/kept"), "user.own", b"1").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("d/socket")).unwrap();
    let date = history.shoot();
    let ran = history.next(1).expect(3);
    assert_eq!(
        (warnings(&ran), &ran.json["data"]["left_out_total"]),
        (vec!["left-out"], &6.into()),
        "{ran:?}"
    );
    let seen = shown(&history.images, &[history.image(1), history.image(0)]);
    let mut stored = history.stored(&date);
    for path in ["d/new-device", "d/becomes", "d/socket"] {
        stored.0.remove(path.as_bytes()).unwrap();
    }
    for xattrs in stored.0.values_mut().map(|s| &mut s.xattrs) {
        xattrs.retain(|name, _| !name.starts_with(b"trusted."));
    }
    let wrong = stored.differences(&seen);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.0[&b"d/kept"[..]].xattrs.contains_key(&b"user.own"[..]));
}

#[test]
fn what_squashfs_cannot_hold_is_given_back_by_verify_and_restore() {
    let history = History::new();
    let world = &history.world;
    changes::begin(&world.source);
    for n in 0..250 {
        changes::apply(&world.source, (u8::try_from(n).unwrap_or(u8::MAX) % KINDS, n * 7919, n * 104_729));
    }
    std::os::unix::fs::symlink("nowhere", world.source.join("link")).unwrap();
    let snapshot = world.publish();
    let date = snapshot.file_name().unwrap().to_str().unwrap();
    history.layer(&history.image(0), &["--date", date]).expect(0);
    let view = history.images.join("store").join(date);
    private(&view);
    let laid = lay(&history.images, &[history.image(0)], &view);
    let store = view.parent().unwrap().to_str().unwrap();
    let verified = world.act("verify", &["--store", store, "--against", world.store.to_str().unwrap()]);
    let restored = history.images.join("restored");
    private(&restored);
    let options =
        ["--store", store, "--source", "docs", "--set-id-and-devices", "--to", restored.to_str().unwrap()];
    let ran = world.act("restore", &options);
    drop(laid);
    assert_eq!((verified.code, ran.code), (0, 0), "{verified:?} {ran:?}");
    picture(&snapshot.join("docs")).same_as(&picture(&restored.join("docs")));
}

#[test]
fn a_first_copy_is_made_of_several_images_one_after_the_other() {
    let mut history = History::new();
    changes::begin(&history.world.source);
    for n in 0..40 {
        history.world.file(&format!("many/{}/\"{n}\"", n % 4), &"x".repeat(1000 * (n + 1)));
    }
    let date = history.shoot();
    let (stack, bytes) = history.parts(&["--date", &date]);
    assert!(stack.len() >= 4, "{bytes} bytes in {} images", stack.len());
    let wrong = history.stored(&date).differences(&shown(&history.images, &stack));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_later_copy_too_is_made_of_several_images_and_what_was_moved_is_found_below_all_of_them() {
    let mut history = History::new();
    changes::begin(&history.world.source);
    for n in 0..30 {
        history.world.file(&format!("a-folder/sub/{n}"), &format!("{n}").repeat(2000));
        history.world.file(&format!("many/{n}"), &"y".repeat(1000 * (n + 1)));
    }
    let base = history.shoot();
    history.next(0).expect(0);
    let source = history.world.source.clone();
    let rename = |from: &str, to: &str| std::fs::rename(source.join(from), source.join(to)).unwrap();
    // Where they were, nothing is, something else is, and a file is.
    rename("a-folder/sub", "z-moved");
    rename("many/7", "zz-moved");
    rename("many/8", "a-folder/8");
    std::fs::create_dir(source.join("many/8")).unwrap();
    std::fs::remove_dir_all(source.join("many")).unwrap();
    history.world.file("many", "now a file");
    for n in 0..40 {
        history.world.file(&format!("new/{}/{n}", n % 4), &format!("{n} ").repeat(400 * (n + 1)));
        history.world.file(&format!("z-moved/new-{n}"), &format!("{n}-").repeat(400 * (n + 1)));
    }
    let date = history.shoot();
    let (mut stack, bytes) = history.parts(&["--date", &date, "--base", &base]);
    assert!(stack.len() >= 4, "{bytes} bytes in {} images", stack.len());
    stack.push(history.image(0));
    let wrong = history.stored(&date).differences(&shown(&history.images, &stack));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn of_the_large_contents_of_the_base_those_are_named_that_are_still_there() {
    let mut history = History::new();
    let large = |n: usize| format!("{n} large").repeat(20_000);
    for (n, name) in ["stays", "same", "moves", "goes", "owned", "copied"].iter().enumerate() {
        history.world.file(name, &large(n.saturating_sub(1)));
    }
    history.shoot();
    history.next(0).expect(0);
    let images = history.images.clone();
    let beside = |n: usize| {
        let text = std::fs::read(images.join(format!("{n}.sqfs.json"))).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()
    };
    let list = history.images.join("list");
    std::fs::write(&list, beside(0)["big"].to_string()).unwrap();
    let source = history.world.source.clone();
    std::fs::remove_file(source.join("same")).unwrap();
    std::fs::remove_file(source.join("goes")).unwrap();
    std::fs::create_dir(source.join("folder")).unwrap();
    std::fs::rename(source.join("moves"), source.join("folder/moved")).unwrap();
    std::os::unix::fs::chown(source.join("owned"), Some(33), Some(33)).unwrap();
    let date = history.shoot();
    let options = ["--date", &date, "--base", &history.dates[0], "--base-big", list.to_str().unwrap()];
    history.layer(&history.image(1), &options).expect(0);
    let told = beside(1);
    let named = |list: &str| -> Vec<(String, String)> {
        let text = |big: &serde_json::Value, key: &str| big[key].as_str().unwrap().to_owned();
        let mut all: Vec<_> =
            told[list].as_array().unwrap().iter().map(|b| (text(b, "path"), text(b, "sha256"))).collect();
        all.sort();
        all
    };
    let mut there = named("base_big");
    there.extend(named("big"));
    there.sort();
    // With what is new: each large file of the snapshot, with the content that it has.
    let files = ["docs/copied", "docs/folder/moved", "docs/owned", "docs/stays"];
    assert_eq!(there.iter().map(|t| &t.0[..]).collect::<Vec<_>>(), files);
    for (path, hash) in &there {
        let sum = ok("sha256sum", &[history.world.store.join(&date).join(path).to_str().unwrap()]);
        assert_eq!(sum.split(' ').next(), Some(&hash[..]), "{path}");
    }
    // One of the two that were alike is gone, its content is not; of the one that is gone it is.
    let kept: Vec<String> = named("base_big").into_iter().map(|k| k.0).collect();
    assert!(kept.contains(&"docs/stays".into()) && kept.contains(&"docs/folder/moved".into()), "{kept:?}");
}

#[test]
fn an_image_that_lacks_something_is_none_even_if_mksquashfs_is_content() {
    let mut history = History::new();
    history.world.file("a", &"a".repeat(1 << 20));
    history.shoot();
    let dir = &history.world.dir;
    let real = ok("which", &["mksquashfs"]);
    std::fs::copy(&real, dir.join("real")).unwrap();
    let fake = format!(
        "#!/bin/sh\nhead -c 1024 /dev/zero | {}/real \"$@\"\ncat >/dev/null\nexit 0\n",
        dir.display()
    );
    testkit::script(&dir.join("fake"), &fake);
    let to = history.images.join("x");
    let tool = history.world.command("layer", &["--date", &history.dates[0], "--to", to.to_str().unwrap()]);
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$1\" \"$2\"; shift 2; exec \"$@\"", "sh"]);
    command.arg(dir.join("fake")).arg(real).arg(tool.get_program()).args(tool.get_args());
    let ran = testkit::run(&mut command).expect(1);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("the image has 1 with its root"),
        "{ran:?}"
    );
    assert_eq!(std::fs::read_dir(&history.images).unwrap().count(), 0);
}

#[test]
fn an_image_goes_only_where_nobody_else_can_exchange_it() {
    let mut history = History::new();
    history.world.file("a", "a");
    history.shoot();
    let open = history.world.dir.join("open");
    std::fs::create_dir(&open).unwrap();
    ok("chmod", &["0777", open.to_str().unwrap()]);
    let ran = history.layer(&open.join("x"), &["--date", &history.dates[0]]);
    assert_eq!(ran.code, 78, "{ran:?}");
    assert_eq!(std::fs::read_dir(&open).unwrap().count(), 0);
    let own =
        history.layer(&history.images.join("x"), &["--date", &history.dates[0], "--base", &history.dates[0]]);
    assert_eq!(own.code, 2, "{own:?}");
    assert!(
        !history.images.join("x").as_os_str().as_bytes().is_empty() && !history.images.join("x").exists()
    );
}

/// A snapshot that was damaged here when its image was made, and repaired afterwards: its images have what was damaged, so the next
/// one has all of that again, whatever names and inodes say.
#[test]
fn what_was_repaired_since_the_base_was_packed_is_stored_again() {
    let history = History::new();
    let world = &history.world;
    for name in ["d/rotten", "d/moves", "d/lost", "d/mode", "d/fine", "gone/with/it"] {
        world.file(name, &name.repeat(1000));
    }
    let first = world.publish();
    let damage = "cd \"$1\" && for f in d/rotten d/moves; do touch -r $f time; printf ROT | dd of=$f conv=notrunc status=none; touch -r time $f; done; \
                  rm -r time d/lost gone; chmod 640 d/mode";
    ok("sh", &["-ec", damage, "sh", first.join("docs").to_str().unwrap()]);
    let date = |top: &Path| top.file_name().unwrap().to_str().unwrap().to_owned();
    history.layer(&history.image(0), &["--date", &date(&first)]).expect(0);
    world.act("verify", &["--repair"]).expect(0);
    std::fs::rename(world.source.join("d/moves"), world.source.join("moved")).unwrap();
    world.file("d/new", "new");
    let second = world.publish();
    let layer = |n: usize, of: &Path, base: &Path| {
        let ran = history.layer(&history.image(n), &["--date", &date(of), "--base", &date(base)]).expect(0);
        ran.json["data"]["files"].as_u64().unwrap()
    };
    layer(1, &second, &first);
    let wrong = history
        .stored(&date(&second))
        .differences(&shown(&history.images, &[history.image(1), history.image(0)]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Of a base that came after the repair, nothing is: but what it says of itself.
    world.file("d/new", "newer");
    assert_eq!(layer(2, &world.publish(), &second), 3);
}

#[test]
fn what_the_base_s_images_do_not_show_is_stored_again_and_what_only_they_have_is_hidden() {
    let mut history = History::new();
    for name in ["d/it's", "d/fine", "f/a", "f/b"] {
        history.world.file(name, &name.repeat(100));
    }
    history.shoot();
    let top = history.world.store.join(&history.dates[0]).join("docs");
    let keep = history.images.join("keep");
    ok("cp", &["-al", top.to_str().unwrap(), keep.to_str().unwrap()]);
    let damage =
        "cd \"$1\" && rm \"d/it's\" && touch d/extra && chmod 700 f && rm f/a && mkdir f/a && touch f/a/b";
    ok("sh", &["-ec", damage, "sh", top.to_str().unwrap()]);
    history.next(0).expect(0);
    ok("rm", &["-r", top.to_str().unwrap()]);
    ok("mv", &[keep.to_str().unwrap(), top.to_str().unwrap()]);
    history.world.file("new", "new");
    let date = history.shoot();
    let list = history.images.join("list");
    let paths = ["docs/d", "docs/d/it's", "docs/d/extra", "docs/f", "docs/f/a", "docs/f/a/b"];
    let paths: Vec<_> = paths.iter().map(|path| serde_json::json!({"path": path})).collect();
    let some = serde_json::json!({"paths": paths}).to_string();
    for given in [some, r#"{"all": true}"#.to_owned()] {
        let whole = given.contains("all");
        std::fs::write(&list, given).unwrap();
        std::fs::remove_file(history.image(1)).ok();
        let options = ["--date", &date, "--base", &history.dates[0], "--anew", list.to_str().unwrap()];
        history.layer(&history.image(1), &options).expect(0);
        let mut seen = shown(&history.images, &[history.image(1), history.image(0)]);
        if whole {
            // Nobody said what else there is.
            seen.0.remove(&b"d/extra"[..]).unwrap();
        }
        let wrong = history.stored(&date).differences(&seen);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
