//! What is mounted inside a source: it must be there, and be trusted no more than it deserves.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::script;

use crate::world::{Mounted, World, first, ok, told, unmount, warnings};

fn settled() {
    std::thread::sleep(std::time::Duration::from_millis(2100));
}

fn bind(from: &Path, to: &Path) -> Mounted {
    ok("mount", &["--bind", from.to_str().unwrap(), to.to_str().unwrap()]);
    Mounted(to.to_owned())
}

/// sshfs without ssh: a file system whose change times are the modification times, so that an edit can hide.
fn sshfs(world: &World, from: &Path, to: &Path) -> Mounted {
    let ssh = world.dir.join("no-ssh");
    script(&ssh, "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n");
    let program = format!("ssh_command={},cache=no", ssh.display());
    ok("sshfs", &["-o", &program, &format!("x:{}", from.display()), to.to_str().unwrap()]);
    Mounted(to.to_owned())
}

fn folder(path: PathBuf) -> PathBuf {
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Other content of the same size, and the time as it was.
fn sly_edit(path: &Path, text: &str) {
    let mtime = path.metadata().unwrap().modified().unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(mtime).unwrap();
}

#[test]
fn a_bind_mount_that_is_gone_is_no_empty_folder() {
    let world = World::new();
    let disk = folder(world.dir.join("disk"));
    std::fs::write(disk.join("photo"), "a photo").unwrap();
    world.file("other", "o");
    let mounted = bind(&disk, &folder(world.source.join("photos")));
    world.publish();
    world.newest_is_source();
    drop(mounted);
    let refused = world.snapshot(&[]).expect(78);
    assert!(told(&refused).contains("photos was a mount point"), "{refused:?}");
    assert_eq!(world.dates().len(), 1);
    world.snapshot(&["--allow-new-filesystem"]).expect(0);
    world.snapshot(&[]).expect(0);
}

#[test]
fn a_file_that_was_mounted_is_not_the_one_below() {
    let world = World::new();
    let real = world.dir.join("config.php");
    std::fs::write(&real, "the real one").unwrap();
    world.file("config.php", "");
    let mounted = bind(&real, &world.source.join("config.php"));
    world.publish();
    drop(mounted);
    assert!(told(&world.snapshot(&[]).expect(78)).contains("config.php was a mount point"));
}

#[test]
fn a_source_that_is_a_bind_mount_and_is_gone() {
    let world = World::new();
    let disk = folder(world.dir.join("disk"));
    std::fs::write(disk.join("photo"), "a photo").unwrap();
    let mounted = bind(&disk, &world.source);
    world.publish();
    drop(mounted);
    let refused = world.snapshot(&[]).expect(78);
    assert!(told(&refused).contains("a bind mount?"), "{refused:?}");
    assert_eq!(world.dates().len(), 1);
    world.snapshot(&["--allow-new-filesystem"]).expect(0);
}

#[test]
fn a_source_that_was_renamed_or_made_anew_is_the_same() {
    let world = World::new();
    world.file("a", "a");
    world.publish();
    let away = world.dir.join("away");
    std::fs::rename(&world.source, &away).unwrap();
    ok("cp", &["-a", away.to_str().unwrap(), world.source.to_str().unwrap()]);
    world.publish();
    world.newest_is_source();
}

#[test]
fn an_edit_that_hides_on_another_file_system_inside_is_found() {
    let world = World::new();
    for n in 0..20 {
        world.file(&format!("f{n}"), "trusted");
    }
    let disk = folder(world.dir.join("disk"));
    std::fs::write(disk.join("photo"), "a photo").unwrap();
    std::fs::write(disk.join("still"), "as it was").unwrap();
    let mounted = sshfs(&world, &disk, &folder(world.source.join("photos")));
    settled();
    world.publish();
    sly_edit(&disk.join("photo"), "a photA");
    let ran = world.snapshot(&[]).expect(0);
    world.newest_is_source();
    assert_eq!(warnings(&ran), ["full-way"]);
    assert!(ran.json["warnings"][0]["message"].as_str().unwrap().contains("photos (fuse.sshfs)"), "{ran:?}");
    // What is trusted is not looked at, and what was found the same is not stored again.
    assert_eq!(first(&ran)["way"], "index");
    assert_eq!(first(&ran)["received_files"], 1, "{ran:?}");
    assert!(first(&ran)["changed_paths"].as_u64().unwrap() < 10, "{ran:?}");

    world.act("stage", &[]).expect(0);
    sly_edit(&disk.join("photo"), "a photB");
    world.act("settle", &[]).expect(0);
    world.act("publish", &["--crash-consistent"]).expect(0);
    world.newest_is_source();
    let place = mounted.0.clone();
    drop(mounted);
    let gone = Command::new("mountpoint").arg("-q").arg(&place).stderr(Stdio::null()).status().unwrap();
    if gone.success() {
        unmount(&place);
    }
}

/// The source is on a btrfs of its own; `None` where that cannot be made.
fn btrfs(world: &World) -> Option<Mounted> {
    let image = world.dir.join("btrfs.img");
    std::fs::File::create(&image).unwrap().set_len(200 << 20).unwrap();
    folder(world.source.clone());
    let run = |program: &str, args: &[&str]| {
        Command::new(program).args(args).status().is_ok_and(|status| status.success())
    };
    let (image, at) = (image.to_str().unwrap(), world.source.to_str().unwrap());
    if !run("mkfs.btrfs", &["-q", image]) || !run("mount", &["-o", "loop", image, at]) {
        eprintln!("skipped: there is no btrfs here");
        return None;
    }
    Some(Mounted(world.source.clone()))
}

#[test]
fn a_folder_that_stands_for_a_subvolume_is_at_rest() {
    // Given a snapshot of a subvolume that held another: a folder is in its place, whose times are always now,
    let world = World::new();
    let Some(_mounted) = btrfs(&world) else { return };
    let at = |name: &str| world.source.join(name).to_str().unwrap().to_owned();
    ok("btrfs", &["subvolume", "create", &at("a")]);
    ok("btrfs", &["subvolume", "create", &at("a/inner")]);
    ok("btrfs", &["subvolume", "snapshot", &at("a"), &at("b")]);
    world.file("b/f", "x");
    settled();
    // then it does not count as something that moves, and is no change in the next night.
    let ran = world.snapshot(&[]).expect(0);
    assert!(warnings(&ran).is_empty(), "{ran:?}");
    let ran = world.snapshot(&[]).expect(0);
    assert!(warnings(&ran).is_empty(), "{ran:?}");
    assert_eq!(first(&ran)["changed_paths"], 0, "{ran:?}");
    assert!(world.store.join(world.dates().pop().unwrap()).join("docs/b/inner").is_dir());
}

#[test]
fn a_time_that_the_store_has_no_room_for_is_no_hole() {
    let world = World::new();
    let Some(_mounted) = btrfs(&world) else { return };
    for (name, date) in [("early", "1601-01-01"), ("late", "2500-01-01"), ("folder/f", "2025-01-01")] {
        world.file(name, name);
        ok("touch", &["-d", date, world.source.join(name).to_str().unwrap()]);
    }
    ok("touch", &["-d", "2500-01-01", world.source.join("folder").to_str().unwrap()]);
    settled();
    world.publish();
    for _ in 0..2 {
        let ran = world.snapshot(&[]).expect(0);
        assert!(warnings(&ran).is_empty(), "{ran:?}");
        assert_eq!(first(&ran)["changed_paths"], 0, "{ran:?}");
    }
}

/// The CRC-32 at the end of an index.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// Makes the last snapshot and its index say that the source's file system was called `id`.
fn noted_as(world: &World, id: &str) {
    let file = world.store.join(world.dates().pop().unwrap()).join(".meta/snapshot.json");
    let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let was = meta["sources"][0]["fs_id"].as_str().unwrap().to_owned();
    meta["sources"][0]["fs_id"] = id.into();
    std::fs::write(&file, meta.to_string()).unwrap();
    let index = world.state.join("index-docs");
    let bytes = std::fs::read(&index).unwrap();
    let (head, rest) = bytes.split_at(bytes.iter().position(|b| *b == b'\n').unwrap());
    let head = String::from_utf8(head.to_vec()).unwrap().replace(&was, id);
    let mut bytes = [head.as_bytes(), &rest[..rest.len() - 4]].concat();
    bytes.extend(crc(&bytes).to_le_bytes());
    std::fs::write(&index, bytes).unwrap();
}

/// The id that statfs gives, which is all that some kernels tell.
fn statfs_id(path: &std::path::Path) -> String {
    format!("fsid-{:x}", nix::sys::statvfs::statvfs(path).unwrap().filesystem_id())
}

#[test]
fn what_another_kernel_calls_a_file_system_is_the_same_one() {
    // Given sources on a subvolume of btrfs, on ext4 and on XFS, noted as a kernel does that tells no UUID,
    for kind in ["btrfs", "ext4", "xfs"] {
        let mut world = World::new();
        let disk = crate::world::Disk::of(kind, if kind == "xfs" { 320 } else { 128 }, &[]);
        world.source = disk.path.join("source");
        match kind {
            "btrfs" => drop(ok("btrfs", &["subvolume", "create", world.source.to_str().unwrap()])),
            _ => std::fs::create_dir(&world.source).unwrap(),
        }
        world.profile("", "");
        world.file("a", "a");
        settled();
        world.publish();
        let id = || {
            let file = world.store.join(world.dates().pop().unwrap()).join(".meta/snapshot.json");
            let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            meta["sources"][0]["fs_id"].as_str().unwrap().to_owned()
        };
        assert_eq!(id().matches('-').count(), 4, "{kind}: {}", id());
        let uuid = id();
        noted_as(&world, &statfs_id(&world.source));
        // then neither the snapshot nor the index is of another one, and the next night notes what does not change.
        let ran = world.snapshot(&[]).expect(0);
        assert_eq!(first(&ran)["way"], "index", "{kind}: {ran:?}");
        assert!(warnings(&ran).is_empty(), "{kind}: {ran:?}");
        assert_eq!(id(), uuid);
        // What really is another one is refused, in whichever form it was noted,
        noted_as(&world, "fsid-1234abcd");
        for noted in [
            "fsid-1234abcd",
            "0f0f0f0f-0000-4000-8000-000000000001",
            "0f0f0f0f-0000-4000-8000-000000000001/5",
        ] {
            noted_as(&world, noted);
            let refused = world.snapshot(&[]).expect(78);
            assert!(crate::world::told(&refused).contains("--allow-new-filesystem"), "{kind}: {refused:?}");
        }
        // until somebody says that it is meant.
        world.snapshot(&["--allow-new-filesystem"]).expect(0);
    }
}

#[test]
fn another_subvolume_in_the_place_of_the_source_is_refused() {
    let mut world = World::new();
    let disk = crate::world::Disk::of("btrfs", 128, &[]);
    let at = |name: &str| disk.path.join(name).to_str().unwrap().to_owned();
    for name in ["one", "two"] {
        ok("btrfs", &["subvolume", "create", &at(name)]);
    }
    world.source = disk.path.join("source");
    ok("mv", &[&at("one"), &at("source")]);
    world.profile("", "");
    world.file("a", "a");
    world.publish();
    ok("mv", &[&at("source"), &at("one")]);
    ok("mv", &[&at("two"), &at("source")]);
    world.file("a", "a");
    assert!(crate::world::told(&world.snapshot(&[]).expect(78)).contains("--allow-new-filesystem"));
    ok("mv", &[&at("source"), &at("two")]);
    ok("mv", &[&at("one"), &at("source")]);
    world.snapshot(&[]).expect(0);
}
