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
        "themes/x",
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
    let next = world.snapshot(&["--exclude", "/themes/"]).expect(0);
    assert!(!crate::world::folder(&next).join("html/themes").exists());
    assert!(held.join("html/themes").exists());
    world.snapshot(&["--exclude", "/a["]).expect(78);
    // What makes it Nextcloud is not left out without a word.
    let refused = world.snapshot(&["--exclude", "/config/"]).expect(78);
    assert!(told(&refused).contains("config/config.php is not among what is taken"), "{refused:?}");
}

/// A profile with the sources `data` and `html`, as `setup` writes it.
fn nextcloud(world: &World) {
    let source = world.source.display();
    world.write_profile(&format!(
        "[snapshot]\nstore = \"{}\"\n[[snapshot.source]]\nname = \"data\"\npath = \"{source}/data\"\n\
         [[snapshot.source]]\nname = \"html\"\npath = \"{source}/html\"\n[store]\npath = \"{}\"\nreserve_bytes = 0\n",
        world.store.display(),
        world.store.display(),
    ));
    world.file("data/.ncdata", "x");
    world.file("html/config/config.php", "<?php");
}

#[test]
fn users_named_like_what_is_left_out_are_in_the_snapshot() {
    let world = World::new();
    nextcloud(&world);
    let users = [
        "updater-bob",
        "updater-oc0123456789",
        "audit.logistics",
        "nextcloud.login",
        "nextcloud.log",
        "audit.log.2",
        "me.ocTransferId1.part",
        "ldap/cache",
        "ldap/uploads",
    ];
    for user in users {
        world.file(&format!("data/{user}/files/letter"), user);
        world.file(&format!("data/{user}/files/.nc-restore-notes/letter"), user);
    }
    world.file("data/.nc-restore-notes/letter", "x");
    let out =
        ["updater-oc9876543210/old", "nextcloud.log.1", "audit.log", "alice/cache/x", "alice/uploads/y"];
    for path in out {
        world.file(&format!("data/{path}"), "x");
    }
    let ran = world.snapshot(&[]).expect(0);
    let held = crate::world::folder(&ran).join("data");
    for user in users {
        for path in ["files/letter", "files/.nc-restore-notes/letter"] {
            assert_eq!(std::fs::read_to_string(held.join(user).join(path)).unwrap(), user, "{user}/{path}");
        }
    }
    assert!(held.join(".nc-restore-notes/letter").exists());
    for path in out {
        assert!(!held.join(path).exists(), "{path}");
    }
    let told = first(&ran)["excluded"].as_array().unwrap();
    let count =
        |pattern: &str| told.iter().find(|e| e["pattern"] == pattern).map(|e| e["paths"].as_u64().unwrap());
    assert_eq!(count("/updater-oc??????????/"), Some(1), "{ran:?}");
    assert_eq!((count("/*/cache/"), count("file:/audit.log*")), (Some(1), Some(1)), "{ran:?}");
}

#[test]
fn a_configuration_behind_a_link_that_leads_out_is_refused() {
    let world = World::new();
    nextcloud(&world);
    let etc = world.dir.join("elsewhere");
    for what in ["config", "config/config.php"] {
        let place = world.source.join("html").join(what);
        std::fs::rename(&place, &etc).unwrap();
        std::os::unix::fs::symlink(&etc, &place).unwrap();
        let refused = world.snapshot(&[]).expect(78);
        let message = refused.json["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("is a symbolic link to") && message.contains(etc.to_str().unwrap()),
            "{message}"
        );
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(&etc, &place).unwrap();
    }
    // Into another source, it is in the snapshot.
    world.file("data/nc-config/config.php", "<?php");
    std::fs::remove_dir_all(world.source.join("html/config")).unwrap();
    std::os::unix::fs::symlink("../data/nc-config", world.source.join("html/config")).unwrap();
    world.snapshot(&[]).expect(0);
}

#[test]
fn links_that_lead_out_of_all_sources_are_told() {
    let world = World::new();
    nextcloud(&world);
    let big = world.dir.join("big");
    std::fs::create_dir_all(big.join("anna")).unwrap();
    world.file("data/otto/files/x", "x");
    std::os::unix::fs::symlink(big.join("anna"), world.source.join("data/anna")).unwrap();
    std::os::unix::fs::symlink(&big, world.source.join("data/otto/extra")).unwrap();
    std::os::unix::fs::symlink("files/x", world.source.join("data/otto/inside")).unwrap();
    std::os::unix::fs::symlink("/mnt/no/such/disk", world.source.join("data/gone")).unwrap();
    let ran = world.snapshot(&[]).expect(0);
    assert_eq!(warnings(&ran).iter().filter(|k| **k == "link-leads-out").count(), 1, "{ran:?}");
    let message = told_by(&ran, "link-leads-out");
    for link in ["anna -> ", "otto/extra -> ", "gone -> /mnt/no/such/disk"] {
        assert!(message.contains(link), "{link}: {message}");
    }
    assert!(!message.contains("inside"), "{message}");
}

/// What the warning `kind` of a run says.
fn told_by(ran: &testkit::Ran, kind: &str) -> String {
    let all = ran.json["warnings"].as_array().unwrap();
    all.iter().find(|w| w["kind"] == kind).and_then(|w| w["message"].as_str()).unwrap_or_default().to_owned()
}

#[test]
fn a_wrong_nextcloud_folder_is_known_before_anything_is_sent() {
    let world = World::new();
    nextcloud(&world);
    std::fs::rename(world.source.join("html/config"), world.dir.join("away")).unwrap();
    let refused = world.act("stage", &["--source", "data"]).expect(78);
    assert!(told(&refused).contains("config/config.php"), "{refused:?}");
    assert!(!world.store.join(".store-id").exists(), "the store was not even opened");
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

#[test]
fn what_is_too_long_is_named_and_the_rest_is_saved() {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};
    let world = World::new();
    world.file("bob/here", "here");
    world.file("carol/files/letter", "x");
    let name = "n".repeat(200);
    let mut dir = std::fs::File::open(world.source.join("bob")).unwrap();
    for _ in 0..21 {
        mkdirat(&dir, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
        dir = openat(&dir, name.as_str(), OFlag::O_DIRECTORY, Mode::empty()).unwrap().into();
    }
    let ran = world.snapshot(&[]).expect(3);
    assert_eq!(warnings(&ran), ["too-deep"]);
    let message = told_by(&ran, "too-deep");
    assert!(message.contains("bob/nnn"), "{message}");
    assert_eq!(first(&ran)["left_out_too_deep"], 1, "{ran:?}");
    let held = crate::world::folder(&ran).join("docs");
    for path in ["bob/here", "carol/files/letter"] {
        assert!(held.join(path).exists(), "{path}");
    }
    // In steps, each says so, and publish does: the snapshot lacks them.
    world.act("stage", &[]).expect(3);
    world.act("publish", &["--crash-consistent"]).expect(3);
}
