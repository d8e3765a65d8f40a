//! The source is not believed: what an unmounted disk or a broken rsync must not turn into a snapshot.

use testkit::script;

use crate::world::{Disk, Mounted, World, first, told, warnings};

/// `n` small files.
fn files(world: &World, n: u32) {
    for i in 0..n {
        world.file(&format!("f{i}"), &i.to_string());
    }
}

/// Overwrites `f1` keeping its size and its mtime.
fn sly_edit(world: &World) {
    let path = world.source.join("f1");
    let mtime = path.metadata().unwrap().modified().unwrap();
    std::fs::write(&path, "X").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
}

#[test]
fn an_edit_that_keeps_size_and_mtime_is_caught() {
    let world = World::new();
    files(&world, 5);
    let old = world.publish();

    sly_edit(&world);
    assert_eq!(first(&world.snapshot(&[]).expect(0))["way"], "index");
    world.newest_is_source();

    world.file("f1", "1");
    world.publish();
    sly_edit(&world);
    std::fs::remove_file(world.state.join("index-docs")).unwrap();
    let full = world.snapshot(&[]).expect(0);
    assert_eq!((first(&full)["way"].as_str(), warnings(&full)), (Some("full"), vec!["full-way"]));
    world.newest_is_source();

    std::fs::remove_file(world.state.join("index-docs")).unwrap();
    let blind = world.snapshot(&["--no-checksum"]).expect(0);
    assert!(warnings(&blind).contains(&"no-checksum"), "{blind:?}");
    assert_eq!(std::fs::read_to_string(old.join("docs/f1")).unwrap(), "1");
}

#[test]
fn a_damaged_index_only_costs_time() {
    let world = World::new();
    files(&world, 5);
    world.publish();
    let index = world.state.join("index-docs");
    let mut bytes = std::fs::read(&index).unwrap();
    let at = bytes.len() - 30;
    bytes[at] ^= 4;
    std::fs::write(&index, bytes).unwrap();
    let ran = world.snapshot(&[]).expect(0);
    assert!(ran.json["warnings"][0]["message"].as_str().unwrap().contains("damaged"), "{ran:?}");
    assert_eq!(first(&ran)["received_files"], 0);
    world.newest_is_source();
}

#[test]
fn nextcloud_without_its_marks_is_not_nextcloud() {
    let world = World::new();
    world.file("data/.ncdata", "");
    world.file("html/config/config.php", "<?php");
    let path = |name: &str| world.source.join(name).display().to_string();
    world.write_profile(&format!(
        "[snapshot]\nstore = \"{}\"\n[[snapshot.source]]\nname = \"data\"\npath = \"{}\"\n\
         [[snapshot.source]]\nname = \"html\"\npath = \"{}\"\n",
        world.store.display(),
        path("data"),
        path("html")
    ));
    world.publish();
    for mark in ["data/.ncdata", "html/config/config.php"] {
        std::fs::rename(world.source.join(mark), world.dir.join("away")).unwrap();
        let refused = world.snapshot(&[]).expect(78);
        assert!(told(&refused).contains("is its disk mounted"), "{refused:?}");
        std::fs::rename(world.dir.join("away"), world.source.join(mark)).unwrap();
    }
    assert_eq!(world.dates().len(), 1);
}

#[test]
fn a_source_that_is_no_folder_or_not_there() {
    let world = World::new();
    std::fs::remove_dir(&world.source).unwrap();
    assert!(told(&world.snapshot(&[]).expect(78)).contains("cannot be opened as a folder"));
    std::fs::write(&world.source, "a file").unwrap();
    world.snapshot(&[]).expect(78);
    assert!(world.dates().is_empty());
}

#[test]
fn an_unmounted_disk_becomes_no_snapshot() {
    let world = World::new();
    let (disk, other) = (Disk::new(16), Disk::new(16));
    disk.unmount();
    other.unmount();
    disk.mount_at(&world.source);
    let mounted = Mounted(world.source.clone());
    files(&world, 30);
    world.publish();

    drop(mounted);
    let refused = world.snapshot(&[]).expect(78);
    assert!(told(&refused).contains("is its disk mounted"), "{refused:?}");

    other.mount_at(&world.source);
    let mounted = Mounted(world.source.clone());
    files(&world, 30);
    assert!(told(&world.snapshot(&[]).expect(78)).contains("is on file system"));
    assert_eq!(world.dates().len(), 1);
    world.snapshot(&["--allow-new-filesystem"]).expect(0);
    world.newest_is_source();
    drop(mounted);
}

#[test]
fn a_disk_unmounted_between_stage_and_settle() {
    let world = World::new();
    let disk = Disk::new(16);
    disk.unmount();
    disk.mount_at(&world.source);
    let mounted = Mounted(world.source.clone());
    files(&world, 30);
    world.act("stage", &[]).expect(0);
    drop(mounted);
    let refused = world.act("settle", &[]).expect(78);
    assert!(told(&refused).contains("is its disk mounted"), "{refused:?}");
    world.act("publish", &["--crash-consistent"]).expect(1);
    assert!(world.dates().is_empty());
}

#[test]
fn a_disk_inside_the_source_that_is_gone() {
    let world = World::new();
    let disk = Disk::new(16);
    disk.unmount();
    files(&world, 100);
    let place = world.source.join("photos");
    std::fs::create_dir(&place).unwrap();
    disk.mount_at(&place);
    let mounted = Mounted(place);
    world.file("photos/p1", "p");
    world.publish();
    world.newest_is_source();
    drop(mounted);
    let refused = world.snapshot(&[]).expect(78);
    assert!(told(&refused).contains("was a mount point"), "{refused:?}");
    world.snapshot(&["--allow-new-filesystem"]).expect(0);
}

#[test]
fn most_of_a_source_vanished() {
    let world = World::new();
    files(&world, 50);
    world.publish();
    for i in 0..20 {
        std::fs::remove_file(world.source.join(format!("f{i}"))).unwrap();
    }
    let refused = world.snapshot(&[]).expect(78);
    assert!(told(&refused).contains("--allow-shrink"), "{refused:?}");
    std::fs::remove_file(world.state.join("index-docs")).unwrap();
    world.snapshot(&[]).expect(78);
    world.snapshot(&["--allow-shrink"]).expect(0);
    world.newest_is_source();

    files(&world, 50);
    world.act("stage", &[]).expect(0);
    for i in 0..40 {
        std::fs::remove_file(world.source.join(format!("f{i}"))).unwrap();
    }
    assert!(
        told(&world.act("settle", &[]).expect(78)).contains("--allow-shrink"),
        "also between stage and settle"
    );
    assert_eq!(world.dates().len(), 2);
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_nothing_is_published() {
    let world = World::new();
    files(&world, 3);
    let failing = world.dir.join("rsync-23");
    let f1 = world.source.join("f1").display().to_string();
    script(
        &failing,
        &format!(
            "#!/bin/sh\nrsync \"$@\"\n\
             echo 'rsync: [sender] read errors mapping \"{f1}\": Input/output error (5)' >&2\n\
             echo 'rsync error: some files/attrs were not transferred (see previous errors) (code 23)' >&2\nexit 23\n"
        ),
    );
    world.profile(&format!("rsync = [\"{}\"]", failing.display()), "");
    let failed = world.snapshot(&[]).expect(1);
    let message = failed.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("could not be read") && message.contains(&f1), "{failed:?}");
    assert_eq!(failed.json["error"]["command"]["exit_code"], 23);
    assert!(world.dates().is_empty());

    world.profile("", "");
    world.publish();
    world.newest_is_source();
}

#[test]
fn files_that_vanish_only_mean_another_pass() {
    let world = World::new();
    files(&world, 3);
    let once = world.dir.join("rsync-24");
    script(
        &once,
        &format!(
            "#!/bin/sh\nrsync \"$@\" || exit\nmkdir '{}' 2>/dev/null || exit 0\n\
             echo 'file has vanished: \"/srv/data/f\"' >&2\nexit 24\n",
            world.dir.join("was-here").display()
        ),
    );
    world.profile(&format!("rsync = [\"{}\"]", once.display()), "");
    let ran = world.snapshot(&[]).expect(0);
    assert!(first(&ran)["passes"].as_u64().unwrap() > 1, "{ran:?}");
    world.newest_is_source();
}

#[test]
fn excludes_defaults_and_a_source_inside_another() {
    let world = World::new();
    for path in [
        "data/.ncdata",
        "data/anna/files/cache/kept",
        "data/anna/cache/no",
        "data/nextcloud.log",
        "data/a.tmp",
        "config/config.php",
        "config/zz-nc-backup-maintenance.config.php",
        "config/zz-nc-backup-maintenance-0f-12.config.php",
        "config/.zz-nc-backup-maintenance-0f-13.new",
        "config/zz-mine.config.php",
    ] {
        world.file(path, "x");
    }
    world.write_profile(&format!(
        "[snapshot]\nstore = \"{}\"\n[[snapshot.source]]\nname = \"data\"\npath = \"{1}/data\"\nexclude = [\"*.tmp\"]\n\
         [[snapshot.source]]\nname = \"html\"\npath = \"{1}\"\n",
        world.store.display(),
        world.source.display()
    ));
    let held = world.publish();
    for (path, there) in [
        ("data/.ncdata", true),
        ("data/anna/files/cache/kept", true),
        ("data/anna/cache", false),
        ("data/nextcloud.log", false),
        ("data/a.tmp", false),
        ("html/config/config.php", true),
        ("html/config/zz-nc-backup-maintenance.config.php", false),
        ("html/config/zz-nc-backup-maintenance-0f-12.config.php", false),
        ("html/config/.zz-nc-backup-maintenance-0f-13.new", false),
        ("html/config/zz-mine.config.php", true),
        ("html/data", false),
    ] {
        assert_eq!(held.join(path).exists(), there, "{path}");
    }
    // What is excluded from now on leaves the next snapshot, and stays in the old one.
    let next = world.snapshot(&["--exclude", "/config/"]).expect(0);
    assert!(!crate::world::folder(&next).join("html/config").exists());
    assert!(held.join("html/config").exists());
    world.snapshot(&["--exclude", "/a["]).expect(78);
}

#[test]
fn hard_links_in_a_source_become_files_of_their_own() {
    let world = World::new();
    world.file("a", "shared");
    std::fs::hard_link(world.source.join("a"), world.source.join("b")).unwrap();
    let held = world.publish().join("docs");
    use std::os::unix::fs::MetadataExt as _;
    assert_ne!(held.join("a").metadata().unwrap().ino(), held.join("b").metadata().unwrap().ino());
    world.newest_is_source();
}
