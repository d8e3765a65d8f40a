//! The store: missing, full, foreign, damaged; and what is read from it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use testkit::run;

use crate::picture::picture;
use crate::world::{Disk, Mounted, World, first, folder, ok, private, told, warnings};

#[test]
fn a_missing_disk_is_not_filled_below() {
    let world = World::new();
    world.file("a", "a");
    let disk = Disk::new(32);
    std::fs::create_dir(disk.path.join("store")).unwrap();
    std::fs::set_permissions(disk.path.join("store"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let store = disk.path.join("store");
    let profile = format!(
        "[snapshot]\nstore = \"{0}\"\n[[snapshot.source]]\nname = \"docs\"\npath = \"{1}\"\n\
         [store]\npath = \"{0}\"\nmount = \"{2}\"\nreserve_bytes = 0\n",
        store.display(),
        world.source.display(),
        disk.path.display()
    );
    world.write_profile(&profile);
    world.snapshot(&[]).expect(0);
    disk.unmount();
    // Somebody made the folder on the disk below.
    std::fs::create_dir(&store).unwrap();
    let refused = world.snapshot(&[]).expect(78);
    assert!(told(&refused).contains("is not a mount point"), "{refused:?}");
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
}

#[test]
fn too_little_room_is_known_before_copying() {
    let world = World::new();
    world.file("a", &"x".repeat(100_000));
    world.profile("", "");
    let text = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, text.replace("reserve_bytes = 0", "reserve_bytes = 1000000000000000"))
        .unwrap();
    let refused = world.snapshot(&[]).expect(1);
    assert!(told(&refused).contains("not enough room"), "{refused:?}");
    assert!(world.dates().is_empty() && !world.store.join(".incoming/docs").exists());

    let disk = Disk::with(16, &["-N", "64"]);
    let small = World::on(&disk);
    for n in 0..20 {
        small.file(&format!("f{n}"), "x");
    }
    let few = Disk::with(16, &["-N", "32"]);
    let store = few.path.join("store");
    crate::world::private(&store);
    small.write_profile(&format!(
        "[snapshot]\nstore = \"{0}\"\n[[snapshot.source]]\nname = \"docs\"\npath = \"{1}\"\n[store]\npath = \"{0}\"\nreserve_bytes = 0\n",
        store.display(),
        small.source.display()
    ));
    assert!(told(&small.snapshot(&[]).expect(1)).contains("not enough inodes"));
    assert!(crate::world::dates(&store).is_empty());
}

#[test]
fn a_disk_that_fills_up_in_the_middle() {
    let world = World::new();
    let disk = Disk::new(40);
    let store = disk.path.join("store");
    crate::world::private(&store);
    let filler = disk.path.join("filler");
    // Somebody else writes there when we have looked: the receiving rsync is started after that.
    let rsync = world.dir.join("rsync");
    testkit::script(
        &rsync,
        &format!("#!/bin/sh\nhead -c 30M /dev/zero >'{}'\nexec rsync \"$@\"\n", filler.display()),
    );
    let profile = |rsync: &str| {
        world.write_profile(&format!(
            "[snapshot]\nstore = \"{0}\"\n[[snapshot.source]]\nname = \"docs\"\npath = \"{1}\"\n[store]\npath = \"{0}\"\nreserve_bytes = 0\nrsync = [{2}]\n",
            store.display(),
            world.source.display(),
            rsync
        ));
    };
    profile("");
    world.file("old", "old");
    world.snapshot(&[]).expect(0);
    let then = picture(&folder_of_latest(&store));
    for n in 0..20 {
        world.file(&format!("f{n}"), &"y".repeat(1 << 20));
    }
    profile(&format!("\"{}\"", rsync.display()));
    let failed = world.snapshot(&[]).expect(1);
    assert!(told(&failed).contains("the store is full"), "{failed:?}");
    assert_eq!(crate::world::dates(&store).len(), 1);
    then.same_as(&picture(&folder_of_latest(&store)));

    std::fs::remove_file(&filler).unwrap();
    // What is younger than two seconds is always looked at twice, and room for it asked for twice.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    profile("");
    let next = world.snapshot(&[]).expect(0);
    assert!(crate::world::first(&next)["resumed_files"].as_u64().unwrap() > 0, "{next:?}");
    picture(&world.source).same_as(&picture(&folder(&next).join("docs")));
}

fn folder_of_latest(store: &std::path::Path) -> std::path::PathBuf {
    store.join(std::fs::read_link(store.join("latest")).unwrap())
}

#[test]
fn a_store_that_others_can_write_or_that_is_not_there() {
    let world = World::new();
    world.file("a", "a");
    std::fs::set_permissions(&world.store, std::fs::Permissions::from_mode(0o770)).unwrap();
    assert!(told(&world.snapshot(&[]).expect(77)).contains("writable by nobody else"));
    std::fs::set_permissions(&world.store, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&world.store, Some(65534), None).unwrap();
    world.snapshot(&[]).expect(77);
    std::fs::remove_dir(&world.store).unwrap();
    assert!(told(&world.snapshot(&[]).expect(78)).contains("install -d -m 0700"));
}

#[test]
fn another_store_than_last_time() {
    let world = World::new();
    world.file("a", "a");
    world.publish();
    std::fs::rename(&world.store, world.dir.join("other")).unwrap();
    crate::world::private(&world.store);
    assert!(told(&world.snapshot(&[]).expect(78)).contains("`link-sync stage PROFILE --new-store`"));
    assert!(world.dates().is_empty());
    world.snapshot(&["--new-store"]).expect(0);
    world.publish();
    world.newest_is_source();
}

#[test]
fn a_clock_behind_the_newest_snapshot() {
    let world = World::new();
    world.file("a", "a");
    let held = world.publish();
    let (date, future) = (world.dates().remove(0), "2099-01-01T00-00-00Z");
    let meta = held.join(".meta/snapshot.json");
    let text = std::fs::read_to_string(&meta).unwrap().replace(&date, future);
    std::fs::write(&meta, text).unwrap();
    std::fs::rename(held, world.store.join(future)).unwrap();
    assert!(told(&world.snapshot(&[]).expect(69)).contains("set the clock"));
    assert_eq!(world.dates(), [future]);
}

#[test]
fn latest_is_repaired_and_a_damaged_snapshot_is_never_a_base() {
    let world = World::new();
    world.file("a", "a");
    let one = world.publish();
    let two = world.publish();
    std::fs::remove_file(world.store.join("latest")).unwrap();
    std::os::unix::fs::symlink(one.file_name().unwrap(), world.store.join("latest")).unwrap();
    assert!(warnings(&world.snapshot(&[]).expect(0)).contains(&"latest-repaired"));

    std::fs::write(two.join(".meta/snapshot.json"), "{").unwrap();
    let damaged = world.dates().pop().unwrap();
    std::fs::remove_file(world.store.join(&damaged).join(".meta/snapshot.json")).unwrap();
    let ran = world.snapshot(&[]).expect(0);
    assert_eq!(warnings(&ran).iter().filter(|w| **w == "damaged-snapshot").count(), 2, "{ran:?}");
    assert_eq!(ran.json["data"]["base"], one.file_name().unwrap().to_str().unwrap());
    let list = world.act("list", &[]).expect(0);
    assert_eq!(list.json["data"]["damaged"].as_array().unwrap().len(), 2);
    assert_eq!(list.json["data"]["snapshots"].as_array().unwrap().len(), 2);
    world.newest_is_source();
}

#[test]
fn what_differs_between_two_snapshots() {
    let world = World::new();
    for path in ["same", "content", "mode", "gone/below", "type", "odd\nname"] {
        world.file(path, "x");
    }
    let one = world.publish();
    world.file("content", "y");
    world.file("new/below", "x");
    std::fs::set_permissions(world.source.join("mode"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(world.source.join("gone/below")).unwrap();
    std::fs::remove_dir(world.source.join("gone")).unwrap();
    std::fs::remove_file(world.source.join("type")).unwrap();
    std::fs::create_dir(world.source.join("type")).unwrap();
    let two = world.publish();
    let (from, to) = (one.file_name().unwrap().to_str().unwrap(), two.file_name().unwrap().to_str().unwrap());
    assert_eq!(
        one.join("docs/same").metadata().unwrap().ino(),
        two.join("docs/same").metadata().unwrap().ino()
    );

    let all = world.act("diff", &["--from", from, "--to", to]).expect(0);
    let changes: Vec<_> = all.json["data"]["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| format!("{} {}", c["what"].as_str().unwrap(), c["path"].as_str().unwrap()))
        .collect();
    assert_eq!(
        changes,
        [
            "attributes docs",
            "content docs/content",
            "removed docs/gone",
            "attributes docs/mode",
            "added docs/new",
            "retyped docs/type"
        ]
    );
    assert_eq!(all.json["data"]["truncated"], false);
    let few = world.act("diff", &["--from", from, "--limit", "2"]).expect(0);
    assert_eq!(
        (few.json["data"]["changes"].as_array().unwrap().len(), &few.json["data"]["truncated"]),
        (2, &true.into())
    );
    assert_eq!(few.json["data"]["counts"], all.json["data"]["counts"]);
    let same = world.act("diff", &["--from", "latest"]).expect(0);
    assert_eq!(same.json["data"]["changes"], serde_json::json!([]));
    assert!(
        told(&world.act("diff", &["--from", "2001-01-01T00-00-00Z"]).expect(78)).contains("link-sync list")
    );
}

#[test]
fn by_hand_without_a_profile_and_with_nobody_listening() {
    let world = World::new();
    world.file("a", "a");
    let options = [
        format!("--source=docs={}", world.source.display()),
        format!("--store={}", world.store.display()),
        format!("--state-dir={}", world.state.display()),
        "--crash-consistent".into(),
    ];
    let snapshot = || {
        let mut command = std::process::Command::new(testkit::bin("link-sync"));
        command.arg("snapshot").args(&options);
        command
    };
    run(&mut snapshot()).expect(0);
    // A closed stdout changes nothing about the work.
    let shell = "exec \"$@\" >&-";
    let program = snapshot();
    let status = std::process::Command::new("sh")
        .args(["-c", shell, "sh"])
        .arg(program.get_program())
        .args(program.get_args())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(world.dates().len(), 2);
    world.newest_is_source();
}

#[test]
fn a_store_inside_its_own_source_is_refused() {
    let world = World::new();
    world.file("a", "a");
    let inside = world.source.join("backup");
    crate::world::private(&inside);
    let refused = world.snapshot(&[&format!("--store={}", inside.display())]).expect(78);
    assert!(told(&refused).contains("lies in"), "{refused:?}");
    assert_eq!(
        std::fs::read_dir(&inside).unwrap().filter(|e| e.as_ref().unwrap().file_name() == ".partial").count(),
        0
    );
}

#[test]
fn a_store_that_keeps_less_says_so_in_one_warning_and_is_still_counted() {
    let disk = Disk::with(32, &["-I", "128"]);
    let world = World::new();
    let store = disk.path.join("store");
    private(&store);
    let profile = |world: &World| {
        world.write_profile(&format!(
            "[snapshot]\nstore = \"{0}\"\n[[snapshot.source]]\nname = \"docs\"\npath = \"{1}\"\n\
             [store]\npath = \"{0}\"\nreserve_bytes = 0\n",
            store.display(),
            world.source.display()
        ))
    };
    profile(&world);
    world.file("folder/a", "a");
    world.file("folder/b", "b");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let ran = world.snapshot(&[]).expect(0);
    assert_eq!(warnings(&ran), ["attributes-not-kept"]);
    let message = ran.json["warnings"][0]["message"].as_str().unwrap();
    assert!(message.contains("fractions of seconds") && message.contains("after January 2038"), "{message}");
    assert!(!message.contains("ACLs"), "{message}");
    std::fs::remove_file(folder(&ran).join("docs/folder/b")).unwrap();
    let ran = world.snapshot(&[]).expect(0);
    assert_eq!(warnings(&ran), ["attributes-not-kept", "base-lacks"]);
    assert_eq!(std::fs::read_to_string(folder(&ran).join("docs/folder/b")).unwrap(), "b");
    assert_eq!(first(&ran)["received_files"], 1, "{ran:?}");
}

#[test]
fn a_store_that_cannot_hold_a_snapshot_is_refused_before_anything_is_sent() {
    let world = World::new();
    world.file("a", "a");
    // sshfs without ssh, and told not to pass on hard links.
    let ssh = world.dir.join("no-ssh");
    testkit::script(&ssh, "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n");
    let (disk, place) = (world.dir.join("disk"), world.dir.join("mnt"));
    private(&disk);
    private(&place);
    let options = format!("ssh_command={},disable_hardlink", ssh.display());
    crate::world::ok("sshfs", &["-o", &options, &format!("x:{}", disk.display()), place.to_str().unwrap()]);
    let _mounted = crate::world::Mounted(place.clone());
    world.write_profile(&format!(
        "[snapshot]\nstore = \"{0}\"\n[[snapshot.source]]\nname = \"docs\"\npath = \"{1}\"\n\
         [store]\npath = \"{0}\"\nreserve_bytes = 0\n",
        place.display(),
        world.source.display()
    ));
    let refused = world.act("stage", &[]).expect(78);
    assert!(told(&refused).contains("has no hard links"), "{refused:?}");
    assert!(!disk.join(".incoming/docs").exists() && !disk.join(".partial/docs").exists());
}

/// A folder on an XFS of its own; `None` where that cannot be made.
fn xfs(world: &World) -> Option<(Mounted, std::path::PathBuf)> {
    let (image, at) = (world.dir.join("xfs.img"), world.dir.join("xfs"));
    std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    std::fs::create_dir(&at).unwrap();
    let made =
        std::process::Command::new("mkfs.xfs").arg("-q").arg(&image).status().is_ok_and(|s| s.success());
    let mount = ["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()];
    if !made || !std::process::Command::new("mount").args(mount).status().unwrap().success() {
        eprintln!("skipped: there is no XFS here");
        return None;
    }
    Some((Mounted(at.clone()), at))
}

#[test]
fn acls_in_a_store_on_xfs_are_kept_and_stop_nothing() {
    // Given a store of root's on XFS, which shows root every ACL twice, and a folder and a file with one,
    let world = World::new();
    let Some((_mounted, at)) = xfs(&world) else { return };
    world.file("shared/sub/f", "x");
    world.file("shared/g", "y");
    let shared = world.source.join("shared");
    ok("setfacl", &["-R", "-m", "u:daemon:rwx", shared.to_str().unwrap()]);
    ok("setfacl", &["-m", "d:u:daemon:rwx", shared.to_str().unwrap()]);
    let store = at.join("store");
    crate::world::private(&store);
    let profile = std::fs::read_to_string(&world.config).unwrap();
    let moved = profile.replace(world.store.to_str().unwrap(), store.to_str().unwrap());
    std::fs::write(&world.config, moved).unwrap();
    let acl = |top: &std::path::Path| {
        let names =
            ["shared", "shared/sub", "shared/sub/f", "shared/g"].map(|n| top.join(n).display().to_string());
        let names = names.iter().map(String::as_str);
        ok("getfacl", &["-cpE"].into_iter().chain(names).collect::<Vec<_>>())
    };
    // when it is backed up night after night, with changes and without,
    let first = world.publish();
    world.file("shared/new", "z");
    let second = world.publish();
    let wanted = acl(&world.source);
    assert!(wanted.contains("daemon"), "{wanted}");
    assert_eq!((acl(&first.join("docs")), acl(&second.join("docs"))), (wanted.clone(), wanted.clone()));
    ok("setfacl", &["-b", shared.join("g").to_str().unwrap()]);
    ok("setfacl", &["-b", shared.to_str().unwrap()]);
    let third = world.publish();
    assert_eq!(acl(&third.join("docs")), acl(&world.source));
    // then each date is what was taken, a verification agrees, and it comes back with them.
    assert_eq!(acl(&second.join("docs")), wanted);
    world.act("verify", &[]).expect(0);
    let date = second.file_name().unwrap().to_str().unwrap();
    world.act("restore", &["--in-place", "--source", "docs", "--yes", "--date", date, "--verify"]).expect(0);
    assert_eq!(acl(&world.source), wanted);
    let to = at.join("to");
    world.act("restore", &["--date", date, "--to", to.to_str().unwrap(), "--verify"]).expect(0);
    assert_eq!(acl(&to.join("docs")), wanted);
}

#[test]
fn a_folder_in_the_place_of_latest_keeps_no_night_from_being_saved() {
    let world = World::new();
    world.file("a", "a");
    world.publish();
    // Whoever copied the store followed its link.
    let latest = world.store.join("latest");
    std::fs::remove_file(&latest).unwrap();
    std::fs::create_dir(&latest).unwrap();
    std::fs::write(latest.join("a"), "a").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1050));
    let ran = world.snapshot(&[]).expect(0);
    assert!(warnings(&ran).contains(&"latest-not-moved"), "{ran:?}");
    world.newest_is_source();
    let pruned = world.act("prune", &["--keep-last=1", "--min-age=0d"]).expect(0);
    assert!(warnings(&pruned).contains(&"latest-not-moved"), "{pruned:?}");
    assert_eq!((world.dates().len(), latest.join("a").exists()), (1, true));
    assert_eq!(std::fs::read_dir(world.store.join(".pruned")).unwrap().count(), 0);
}
