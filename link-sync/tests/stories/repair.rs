//! `verify --repair`: what is damaged comes back from another copy, in every date that shared it, and nothing else moves.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::changes::acl;
use crate::checksums::{flip, found};
use crate::far::Remote;
use crate::picture::{Picture, picture};
use crate::world::{World, folder, ok, private, told, until, warnings};

/// What is older than two seconds is shared by snapshots without being compared.
fn age() {
    std::thread::sleep(Duration::from_millis(2100));
}

#[track_caller]
fn as_it_was(before: &[(String, Picture)], world: &World) {
    for (date, then) in before {
        let list = then.differences(&picture(&world.store.join(date)));
        assert!(list.is_empty(), "{date}:\n{}", list.join("\n"));
    }
    assert!(!world.store.join(".repair").exists());
}

fn ino(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn a_rotten_file_comes_back_from_the_source_or_another_copy_in_all_dates() {
    let world = World::new();
    for name in ["a", "d/b", "twice"] {
        world.file(name, &name.repeat(3000));
    }
    xattr::set(world.source.join("d/b"), "user.note", b"x").unwrap();
    ok("chown", &["33:44", world.source.join("d/b").to_str().unwrap()]);
    age();
    let first = world.publish();
    world.file("new", "new");
    let second = world.publish();
    let copies = world.dir.join("copies");
    private(&copies);
    for date in world.dates() {
        world
            .act("copy", &["--date", &date, "--to", copies.to_str().unwrap(), "--reserve-bytes", "1"])
            .expect(0);
    }
    let before = world.history();
    for name in ["a", "d/b"] {
        flip(&second.join("docs").join(name), 77);
    }
    let rotten = ino(&first.join("docs/a"));
    let repaired = world.act("verify", &["--repair"]).expect(0);
    assert_eq!(repaired.json["data"]["repaired_total"], 2);
    assert!(warnings(&repaired).contains(&"repaired"), "{repaired:?}");
    as_it_was(&before, &world);
    // A new inode, and one for both dates.
    assert_ne!(ino(&first.join("docs/a")), rotten);
    assert_eq!(ino(&first.join("docs/a")), ino(&second.join("docs/a")));
    let nothing = world.act("verify", &["--repair"]).expect(0);
    assert_eq!((&nothing.json["changed"], found(&nothing).len()), (&false.into(), 0));

    // The source has changed since: it does not help, and a copy does. One that rotted, too, does not.
    world.file("a", &"b".repeat(3000));
    flip(&second.join("docs/a"), 77);
    let damaged = world.history();
    let failed = world.act("verify", &["--repair"]).expect(1);
    assert!(failed.json["data"]["not_repaired"][0].as_str().unwrap().contains("--from"), "{failed:?}");
    assert_eq!(found(&failed), [("content".into(), "docs/a".into(), 2)]);
    as_it_was(&damaged, &world);
    let from = ["--repair", "--from", copies.to_str().unwrap()];
    let date = &world.dates()[0];
    flip(&copies.join(date).join("docs/a"), 5);
    world.act("verify", &from).expect(1);
    flip(&copies.join(date).join("docs/a"), 5);
    world.act("verify", &from).expect(0);
    as_it_was(&before, &world);

    // The same content under another name of another date is good enough.
    world.file("other-name", &"twice".repeat(3000));
    world.publish();
    let before = world.history();
    world.file("twice", "changed");
    world.file("other-name", "changed");
    flip(&second.join("docs/twice"), 3);
    world.act("verify", &["--repair"]).expect(0);
    as_it_was(&before, &world);

    // The next snapshot goes on with what was repaired.
    world.publish();
    world.newest_is_source();
    world.act("verify", &[]).expect(0);
}

#[test]
fn names_types_and_attributes_come_back() {
    let world = World::new();
    for name in ["missing", "everywhere", "mode", "type", "xattr", "gone/a", "gone/deep/b"] {
        world.file(name, name);
    }
    let source = |name: &str| world.source.join(name);
    xattr::set(source("xattr"), "user.note", b"x").unwrap();
    xattr::set(source("gone"), "user.note", b"y").unwrap();
    xattr::set(source("gone/a"), "system.posix_acl_access", &acl(33, 4)).unwrap();
    std::os::unix::fs::symlink("there", source("link")).unwrap();
    ok("mkfifo", &[source("pipe").to_str().unwrap()]);
    ok("mknod", &[source("device").to_str().unwrap(), "b", "7", "300"]);
    age();
    let first = world.publish();
    world.file("new", "new");
    let second = world.publish();
    let before = world.history();
    for (snapshot, name) in [
        (&first, "missing"),
        (&first, "everywhere"),
        (&second, "everywhere"),
        (&second, "pipe"),
        (&first, "device"),
    ] {
        std::fs::remove_file(snapshot.join("docs").join(name)).unwrap();
    }
    std::fs::remove_file(first.join("docs/link")).unwrap();
    std::os::unix::fs::symlink("elsewhere", first.join("docs/link")).unwrap();
    ok("rm", &["-r", first.join("docs/gone").to_str().unwrap()]);
    std::fs::set_permissions(second.join("docs/mode"), PermissionsExt::from_mode(0o4777)).unwrap();
    ok("chown", &["1:2", second.join("docs/mode").to_str().unwrap()]);
    ok("touch", &["-d", "@1", second.join("docs/mode").to_str().unwrap()]);
    xattr::remove(second.join("docs/xattr"), "user.note").unwrap();
    std::fs::remove_file(first.join("docs/type")).unwrap();
    std::fs::create_dir_all(first.join("docs/type/below")).unwrap();
    world.act("verify", &["--repair"]).expect(0);
    as_it_was(&before, &world);
    // One that was missing in one date shares the other's again, and nothing was deleted.
    assert_eq!(ino(&first.join("docs/missing")), ino(&second.join("docs/missing")));
    let aside = world.store.join(".set-aside");
    assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 1);

    // What is in no manifest stays, and is told.
    std::fs::write(first.join("docs/extra"), "?").unwrap();
    let left = world.act("verify", &["--repair"]).expect(1);
    assert_eq!(found(&left), [("extra".into(), "docs/extra".into(), 1)]);
    assert_eq!(std::fs::read(first.join("docs/extra")).unwrap(), b"?");
    std::fs::remove_file(first.join("docs/extra")).unwrap();
    world.act("verify", &["--repair"]).expect(0);
    as_it_was(&before, &world);

    // Manifests, from a second disk.
    let disk = world.dir.join("disk");
    ok("cp", &["-a", world.store.to_str().unwrap(), disk.to_str().unwrap()]);
    flip(&first.join(".meta/sha256sums"), 9);
    flip(&second.join(".meta/mtree"), 9);
    flip(&first.join("docs/mode"), 9);
    let left = world.act("verify", &["--repair"]).expect(1);
    assert_eq!(left.json["data"]["counts"]["manifest"], 2);
    let all = world.act("verify", &["--repair", "--from", disk.to_str().unwrap()]).expect(0);
    assert_eq!(all.json["data"]["repaired_total"], 3);
    // A manifest's own time is told nowhere.
    for (snapshot, name) in [(&first, "sha256sums"), (&second, "mtree")] {
        let like = disk.join(snapshot.file_name().unwrap()).join(".meta").join(name);
        ok("touch", &["-r", like.to_str().unwrap(), snapshot.join(".meta").join(name).to_str().unwrap()]);
    }
    as_it_was(&before, &world);

    for (options, code, what) in [
        (vec!["--repair", "--from", "/nowhere"], 78, "cannot be read"),
        (vec!["--repair", "--from", first.to_str().unwrap()], 78, "the folder that holds the dates"),
        (vec!["--repair", "--store", "a@b:/c"], 78, "the machine that holds the store"),
    ] {
        assert!(told(&world.act("verify", &options).expect(code)).contains(what), "{options:?}");
    }
}

#[test]
fn a_repair_that_is_killed_is_continued() {
    let world = World::new();
    for n in 0..150 {
        world.file(&format!("{}/{n}", n % 9), &format!("{n} ").repeat(2000));
    }
    age();
    let first = world.publish();
    world.file("new", "new");
    let second = world.publish();
    let before = world.history();
    for n in 0..150 {
        match n % 3 {
            0 => flip(&second.join(format!("docs/{}/{n}", n % 9)), n),
            1 => std::fs::remove_file(first.join(format!("docs/{}/{n}", n % 9))).unwrap(),
            _ => {}
        }
    }
    for wait in [0, 15, 40, 80] {
        let mut run = world.command("verify", &["--repair"]);
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("it repairs", || world.store.join(".repair").exists() || run.try_wait().unwrap().is_some());
        std::thread::sleep(Duration::from_millis(wait));
        run.kill().unwrap();
        run.wait().unwrap();
        // Whatever is there is whole: as it was, or as it was damaged.
        for (date, then) in &before {
            let now = picture(&world.store.join(date));
            for (path, seen) in &now.0 {
                let was = then.0.get(path).unwrap_or_else(|| panic!("{}", path.escape_ascii()));
                assert_eq!(seen.content.len(), was.content.len(), "{}", path.escape_ascii());
                assert_eq!((seen.mode, seen.owner), (was.mode, was.owner), "{}", path.escape_ascii());
            }
        }
    }
    world.act("verify", &["--repair"]).expect(0);
    as_it_was(&before, &world);
    for n in 0..150 {
        let path = format!("docs/{}/{n}", n % 9);
        assert_eq!(ino(&first.join(&path)), ino(&second.join(&path)), "{path}");
    }
}

#[test]
fn an_accounts_store_is_repaired_with_its_rights() {
    let remote = Remote::new();
    let world = &remote.world;
    // rsync's helper is this program: the account must be able to run it.
    let act = |action: &str, options: &[&str]| {
        let mut command = std::process::Command::new(&remote.program);
        testkit::run(command.arg(action).arg("--config").arg(&world.config).args(options))
    };
    world.file("d/owned", "x");
    ok("chown", &["33:44", world.source.join("d/owned").to_str().unwrap()]);
    let first = crate::world::folder(&world.snapshot(&[]).expect(0));
    let before = picture(&first);
    let store = remote.store.to_str().unwrap();
    // Only root can read what is fetched from.
    let copies = world.dir.join("copies");
    private(&copies);
    act("copy", &["--store", store, "--to", copies.to_str().unwrap(), "--reserve-bytes", "1"]).expect(0);
    act("verify", &["--store", copies.to_str().unwrap(), "--against", store]).expect(0);
    flip(&first.join("docs/d/owned"), 3);
    std::fs::remove_file(first.join("docs/a")).unwrap();
    world.file("a", "other");
    let from = ["--store", store, "--repair", "--from", copies.to_str().unwrap()];
    act("verify", &from).expect(0);
    before.same_as(&picture(&first));

    // The account cannot make root give it more than it has: here its own manifest asks for a file that root would be.
    let mtree = first.join(".meta/mtree");
    let text = std::fs::read_to_string(&mtree).unwrap();
    let line = text.lines().find(|l| l.starts_with("./docs/a ")).unwrap();
    let (evil, _) = line.split_once(" tags=").unwrap();
    let evil = evil.replace("mode=0644", "mode=4755 uid=0 gid=0");
    assert_ne!(line, evil);
    std::fs::write(&mtree, text.replace(line, &evil)).unwrap();
    let sum = ok("sha256sum", &[mtree.to_str().unwrap()]);
    let json = first.join(".meta/snapshot.json");
    let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    meta["manifest"]["mtree"]["sha256"] = sum[..64].into();
    std::fs::write(&json, meta.to_string()).unwrap();
    std::fs::remove_file(first.join("docs/a")).unwrap();
    act("verify", &from).expect(1);
    assert!(std::fs::symlink_metadata(first.join("docs/a")).is_err());

    // The account itself may, too, with what it can read.
    let disk = remote.account.home.join("disk");
    ok("cp", &["-a", store, disk.to_str().unwrap()]);
    flip(&first.join("docs/d/owned"), 3);
    let mut run = std::process::Command::new("runuser");
    run.args(["-u", &remote.account.name, "--"]).arg(&remote.program).args(["verify", "--store", store]);
    run.args(["--repair", "--from", disk.to_str().unwrap(), "--state-dir"])
        .arg(remote.account.folder("state"));
    flip(&disk.join(first.file_name().unwrap()).join("docs/d/owned"), 0);
    let left = testkit::run(run.current_dir("/")).expect(1);
    assert_eq!(found(&left).iter().filter(|f| f.1 == "docs/d/owned").count(), 1);
    flip(&disk.join(first.file_name().unwrap()).join("docs/d/owned"), 0);
    let right = testkit::run(&mut run).expect(1);
    assert_eq!(found(&right).iter().filter(|f| f.1 == "docs/d/owned").count(), 0);
}

#[test]
fn what_rots_is_sent_again_by_the_next_backup_and_mends_the_dates_before() {
    let remote = Remote::new();
    let world = &remote.world;
    for path in ["d/rots", "d/fades", "d/goes", "stays"] {
        world.file(path, &path.repeat(1000));
    }
    age();
    let first = folder(&world.snapshot(&[]).expect(0));
    let second = folder(&world.snapshot(&[]).expect(0));
    flip(&second.join("docs/d/rots"), 12345);
    std::fs::remove_file(second.join("docs/d/goes")).unwrap();
    xattr::set(second.join("docs/d/fades"), "user.rsync.%stat", b"100777 0,0 1:2").unwrap();
    // By root on the store's machine, with no more rights than the weekly unit has, it is noted for the account that serves.
    let here = ["--store", remote.store.to_str().unwrap()];
    let unit = std::fs::read_to_string(testkit::scripts().join("systemd/nc-backup-verify@.service")).unwrap();
    let rights = unit.lines().find_map(|l| l.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let rights: String =
        rights.split(' ').map(|r| format!(",+{}", &r.to_lowercase()["cap_".len()..])).collect();
    let mut unit = std::process::Command::new("setpriv");
    unit.arg(format!("--bounding-set=-all{rights}")).arg(testkit::bin("link-sync")).arg("verify").args(here);
    let ran = testkit::run(unit.arg("--config").arg(&world.config)).expect(1);
    assert!(warnings(&ran).is_empty(), "{ran:?}");

    // The source has not changed, and yet these are taken anew.
    let third = world.snapshot(&[]).expect(0);
    assert!(warnings(&third).contains(&"damaged-sent-again"), "{third:?}");
    // Three files, and the folder's time.
    assert_eq!(third.json["data"]["sources"][0]["changed_paths"], 4, "{:#}", third.json);
    world.act("verify", &["--date", "latest"]).expect(0);
    let third = folder(&third);
    for path in ["rots", "fades", "goes"] {
        let ino = |date: &Path| std::fs::metadata(date.join("docs/d").join(path)).map(|m| m.ino()).ok();
        assert_ne!(ino(&first), ino(&third), "{path}");
    }
    let stays = |date: &Path| std::fs::metadata(date.join("docs/stays")).unwrap().ino();
    assert_eq!(stays(&first), stays(&third));
    // Only once.
    let fourth = world.snapshot(&[]).expect(0);
    assert_eq!(fourth.json["data"]["sources"][0]["changed_paths"], 0);

    // Now another date holds what was hashed.
    world.act("verify", &[&here[..], &["--repair"]].concat()).expect(0);
    world.act("verify", &[]).expect(0);
    assert_eq!(world.act("list", &[]).expect(0).json["data"]["last_verify"]["ok"], true);
}

#[test]
fn where_a_folder_has_become_something_else_a_repair_mends_it() {
    let world = World::new();
    for path in ["d/a", "d/b", "e/c"] {
        world.file(path, path);
    }
    age();
    world.publish();
    let second = world.publish();
    // As somebody does who makes room on S2.
    std::fs::rename(second.join("docs/d"), world.dir.join("other-disk")).unwrap();
    std::os::unix::fs::symlink(world.dir.join("other-disk"), second.join("docs/d")).unwrap();
    flip(&second.join("docs/e/c"), 1);
    world.act("verify", &[]).expect(1);
    let third = world.snapshot(&[]).expect(0);
    assert_eq!(third.json["data"]["sources"][0]["changed_paths"], 4, "{:#}", third.json);
    picture(&world.source).same_as(&picture(&folder(&third).join("docs")));
    world.act("verify", &["--repair"]).expect(0);
    for date in world.dates() {
        picture(&world.source).same_as(&picture(&world.store.join(date).join("docs")));
    }
}

#[test]
fn where_much_is_damaged_everything_is_compared() {
    let world = World::new();
    for path in ["d/a", "d/b", "e/c"] {
        world.file(path, path);
    }
    age();
    let first = world.publish();
    flip(&first.join("docs/e/c"), 1);
    world.act("verify", &[]).expect(1);
    let noted = world.store.join(".damaged");
    let mut damaged: serde_json::Value = serde_json::from_slice(&std::fs::read(&noted).unwrap()).unwrap();
    assert_eq!(damaged["paths"].as_array().unwrap().len(), 1);
    (damaged["paths"], damaged["all"]) = (serde_json::json!([]), true.into());
    std::fs::write(&noted, damaged.to_string()).unwrap();
    // Also where contents are not compared as a rule.
    let second = world.snapshot(&["--no-checksum"]).expect(0);
    assert_eq!(second.json["data"]["sources"][0]["way"], "full");
    world.act("verify", &["--date", "latest"]).expect(0);
    let ino = |date: &Path, path: &str| ino(&date.join("docs").join(path));
    assert_eq!(ino(&first, "d/a"), ino(&folder(&second), "d/a"));
    assert_ne!(ino(&first, "e/c"), ino(&folder(&second), "e/c"));
    assert_eq!(world.snapshot(&[]).expect(0).json["data"]["sources"][0]["way"], "index");
}

#[test]
fn what_is_damaged_is_taken_anew_beside_a_date_that_is_to_come() {
    let world = World::new();
    world.file("rots", "as it was hashed");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let first = world.publish();
    // A clock was years ahead for a night.
    let ahead = world.store.join("2999-01-01T00-00-00Z");
    crate::world::ok("cp", &["-a", first.to_str().unwrap(), ahead.to_str().unwrap()]);
    for date in ["all", "latest"] {
        let newest = world.store.join(world.dates().pop().unwrap());
        let rots = newest.join("docs/rots");
        let time = std::fs::metadata(&rots).unwrap().modified().unwrap();
        std::fs::write(&rots, "as it has rotten").unwrap();
        std::fs::File::options().write(true).open(&rots).unwrap().set_modified(time).unwrap();
        world.act("verify", &["--date", date]).expect(1);
        std::thread::sleep(std::time::Duration::from_millis(1050));
        let next = world.snapshot(&[]).expect(0);
        assert!(warnings(&next).contains(&"damaged-sent-again"), "{next:?}");
        assert_eq!(std::fs::read_to_string(folder(&next).join("docs/rots")).unwrap(), "as it was hashed");
    }
}

#[test]
fn a_rotten_inode_of_the_newest_snapshot_keeps_no_night_from_being_saved() {
    use std::os::unix::fs::MetadataExt as _;
    let disk = crate::world::Disk::new(50);
    let world = World::on(&disk);
    for name in ["a", "rots", "z"] {
        world.file(name, name);
    }
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let newest = world.publish();
    let inode = std::fs::metadata(newest.join("docs/rots")).unwrap().ino();
    disk.unmount();
    let spoil = format!("sif <{inode}> checksum 0x1234");
    crate::world::ok("debugfs", &["-w", "-R", &spoil, disk.image.to_str().unwrap()]);
    disk.mount();
    std::fs::metadata(newest.join("docs/rots")).unwrap_err();
    let ran = world.snapshot(&[]).expect(0);
    assert!(warnings(&ran).contains(&"base-lacks") && ran.stderr.contains("rots"), "{ran:?}");
    world.newest_is_source();
    let again = world.snapshot(&[]).expect(0);
    assert!(warnings(&again).is_empty(), "{again:?}");
}
