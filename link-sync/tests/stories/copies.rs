//! Copies of snapshots in another store: dates kept, changes only, nothing half, nothing old taken for new.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use testkit::{Ran, judge};

use crate::picture::picture;
use crate::world::{Account, Disk, World, dates, give_back, kill, ok, private, told, until, warnings};

/// A folder for copies beside the world's store.
fn folder(world: &World) -> PathBuf {
    let to = world.dir.join("copies");
    private(&to);
    to
}

#[track_caller]
fn copy(world: &World, to: &Path, options: &[&str]) -> Ran {
    let all: Vec<&str> =
        ["--to", to.to_str().unwrap(), "--reserve-bytes", "1"].iter().chain(options).copied().collect();
    world.act("copy", &all)
}

/// Asserts that all of `date`'s source is the same in both.
#[track_caller]
fn same(world: &World, to: &Path, date: &str) {
    picture(&world.store.join(date).join("docs")).same_as(&picture(&to.join(date).join("docs")));
}

#[test]
fn each_date_arrives_whole_and_shares_what_did_not_change() {
    let world = World::new();
    world.file("same", "same");
    world.file("d/edited", "one");
    world.file("d/gone", "x");
    world.publish();
    let to = folder(&world);
    let first = copy(&world, &to, &[]).expect(0);
    assert_eq!(
        (&first.json["changed"], &first.json["data"]["base_date"]),
        (&true.into(), &serde_json::Value::Null)
    );
    assert_eq!(copy(&world, &to, &[]).expect(0).json["changed"], false);

    world.file("d/edited", "two");
    std::fs::remove_file(world.source.join("d/gone")).unwrap();
    world.publish();
    world.file("new", "new");
    world.publish();
    let third = copy(&world, &to, &[]).expect(0);
    let names = world.dates();
    assert_eq!(third.json["data"]["base_date"], *names[0]);
    assert_eq!(
        (&third.json["data"]["copied_files"], &third.json["data"]["linked_paths"]),
        (&2.into(), &1.into())
    );
    // The one between, later: the newest stays the newest.
    let second = copy(&world, &to, &["--date", &names[1]]).expect(0);
    assert_eq!(second.json["data"]["base_date"], *names[2]);
    assert_eq!(dates(&to), names);
    assert_eq!(std::fs::read_link(to.join("latest")).unwrap(), Path::new(&names[2]));
    for date in &names {
        same(&world, &to, date);
        let meta = |store: &Path| std::fs::read(store.join(date).join(".meta/snapshot.json")).unwrap();
        assert_eq!(meta(&world.store), meta(&to));
    }
    let inode = |date: &str| to.join(date).join("docs/same").metadata().unwrap().ino();
    assert_eq!((inode(&names[0]), inode(&names[0])), (inode(&names[1]), inode(&names[2])));
}

#[test]
fn an_interrupted_copy_is_continued_but_never_with_what_is_old() {
    let disk = Disk::new(400);
    let world = World::on(&disk);
    for n in 0..40 {
        world.file(&format!("f{n:02}"), &"a".repeat(1 << 20));
    }
    world.publish();
    let to = folder(&world);
    let slow = "rsync = [\"rsync\", \"--bwlimit=8m\"]";
    for (signal, code) in [("-TERM", 143), ("-KILL", 137)] {
        world.profile("", slow);
        let run = world
            .command("copy", &["--to", to.to_str().unwrap(), "--reserve-bytes", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until("some files arrived and were flushed", || to.join(".incoming/docs/f12").exists());
        kill(run.id(), signal);
        judge(run.wait_with_output().unwrap()).expect(code);
        assert!(dates(&to).is_empty());
    }
    // The same size and time, another content: what the interrupted copy received is not this any more.
    let path = world.source.join("f03");
    let time = path.metadata().unwrap().modified().unwrap();
    std::fs::write(&path, "b".repeat(1 << 20)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    world.profile("", "");
    world.publish();
    let done = copy(&world, &to, &[]).expect(0);
    assert!(warnings(&done).contains(&"continues"), "{done:?}");
    let data = &done.json["data"];
    assert!(data["resumed_files"].as_u64().unwrap() >= 3, "{done:?}");
    assert_eq!(data["resumed_files"].as_u64().unwrap() + data["copied_files"].as_u64().unwrap(), 40);
    same(&world, &to, &world.dates()[1]);
    for leftover in [".resume", ".incoming", ".partial"] {
        assert!(!to.join(leftover).exists(), "{leftover}");
    }
}

#[test]
fn too_little_room_is_known_before_copying_and_a_full_disk_leaves_no_half() {
    let world = World::new();
    world.file("a", &"x".repeat(20 << 20));
    world.publish();
    let disk = Disk::new(16);
    let to = disk.path.join("copies");
    private(&to);
    assert!(told(&copy(&world, &to, &[]).expect(1)).contains("not enough room"));
    assert!(!to.join(".incoming/docs/a").exists());
    let few = Disk::with(32, &["-N", "32"]);
    let to = few.path.join("copies");
    private(&to);
    for n in 0..40 {
        world.file(&format!("d/{n}"), "x");
    }
    world.publish();
    assert!(told(&copy(&world, &to, &[]).expect(1)).contains("not enough inodes"));

    // Enough at first, but another fills the disk meanwhile.
    let small = Disk::new(40);
    let to = small.path.join("copies");
    private(&to);
    world.profile("", "rsync = [\"rsync\", \"--bwlimit=10m\"]");
    let run = world
        .command("copy", &["--to", to.to_str().unwrap(), "--reserve-bytes", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it copies", || to.join(".incoming/docs").exists());
    std::fs::write(small.path.join("other"), vec![1u8; 24 << 20]).ok();
    let full = judge(run.wait_with_output().unwrap()).expect(1);
    let said = told(&full);
    // Whichever is noticed first: the disk's end, or the byte that must stay free.
    let words = ["the store is full", "No space left", "as full as it may be"];
    assert!(words.iter().any(|word| said.contains(word)), "{full:?}");
    assert!(dates(&to).is_empty());
    std::fs::remove_file(small.path.join("other")).unwrap();
    world.profile("", "");
    copy(&world, &to, &[]).expect(0);
    same(&world, &to, &world.dates()[1]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let world = World::new();
    world.file("a", "a");
    world.publish();
    let to = folder(&world);
    for (options, code, what) in [
        (vec!["--date", "2001-01-01T00-00-00Z"], 78, "there is no snapshot"),
        (vec!["--store", "relative"], 78, "not an absolute path"),
        (vec!["--store", "/nowhere/at/all"], 78, "there is no store"),
    ] {
        let refused = copy(&world, &to, &options).expect(code);
        assert!(told(&refused).contains(what), "{refused:?}");
    }
    let inside = world.store.join("copies");
    private(&inside);
    assert!(told(&copy(&world, &inside, &[]).expect(78)).contains("lie in each other"));
    std::fs::remove_dir(&inside).unwrap();
    assert!(told(&copy(&world, &world.dir.join("nowhere"), &[]).expect(78)).contains("there is no store"));
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o777)).unwrap();
    copy(&world, &to, &[]).expect(77);
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o700)).unwrap();
    copy(&world, &to, &[]).expect(0);

    // Another store's snapshot of the same date.
    let date = world.dates().remove(0);
    let meta = to.join(&date).join(".meta/snapshot.json");
    let text = std::fs::read_to_string(&meta).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["id"] = "0123456789abcdef0123456789abcdef".into();
    std::fs::write(&meta, other.to_string()).unwrap();
    assert!(told(&copy(&world, &to, &[]).expect(78)).contains("holds another snapshot"));

    // None in common: all of it is copied, and said.
    world.file("a", "b");
    world.publish();
    let all = copy(&world, &to, &[]).expect(0);
    assert!(warnings(&all).contains(&"no-common-base"), "{all:?}");
    assert_eq!(all.json["data"]["base_date"], serde_json::Value::Null);
    same(&world, &to, &world.dates()[1]);
}

#[test]
fn an_accounts_store_is_read_with_its_rights_and_owners_arrive() {
    let account = Account::new();
    let mut world = World::new();
    ok("chmod", &["0711", world.dir.to_str().unwrap()]);
    world.store = account.folder("store");
    let program = account.home.join("link-sync");
    std::fs::copy(testkit::bin("link-sync"), &program).unwrap();
    let sshd = testkit::sshd::Sshd::start(&account.name);
    let store = world.store.display().to_string();
    world.write_profile(&format!(
        "[snapshot]\nstore = \"{}@127.0.0.1:{store}\"\n[snapshot.ssh]\nport = {}\nidentity = \"{}\"\nknown_hosts = \"{}\"\nremote_program = \"{}\"\n\
         [[snapshot.source]]\nname = \"docs\"\npath = \"{}\"\n[store]\npath = \"{store}\"\nreserve_bytes = 0\n",
        account.name, sshd.port, sshd.identity.display(), sshd.known_hosts.display(), program.display(), world.source.display()
    ));
    world.file("private", "x");
    world.file("d/shared", "y");
    ok("chown", &["33:33", world.source.join("d/shared").to_str().unwrap()]);
    ok("chmod", &["0640", world.source.join("d/shared").to_str().unwrap()]);
    std::os::unix::fs::symlink("target", world.source.join("link")).unwrap();
    world.publish();
    let to = folder(&world);
    // rsync's helper is this program: the account must be able to run it.
    let run = |world: &World| {
        let mut command = std::process::Command::new(&program);
        command
            .arg("copy")
            .arg("--config")
            .arg(&world.config)
            .args(["--reserve-bytes", "1", "--to"])
            .arg(&to);
        testkit::run(&mut command)
    };
    run(&world).expect(0);
    same(&world, &to, &world.dates()[0]);
    let back = world.dir.join("back");
    private(&back);
    give_back("rsync", &to.join(&world.dates()[0]).join("docs"), &back);
    picture(&world.source).same_as(&picture(&back));

    // The account puts something in the place of what root reads: it is no snapshot then, and nothing is waited for.
    let meta = world.store.join(&world.dates()[0]).join(".meta");
    std::fs::rename(meta.join("snapshot.json"), meta.join("kept")).unwrap();
    ok("mkfifo", &[meta.join("snapshot.json").to_str().unwrap()]);
    run(&world).expect(78);
    std::fs::remove_file(meta.join("snapshot.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", meta.join("snapshot.json")).unwrap();
    run(&world).expect(78);
    std::fs::rename(meta.join("kept"), meta.join("snapshot.json")).unwrap();
    let elsewhere = world.dir.join("elsewhere");
    std::fs::rename(&meta, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &meta).unwrap();
    run(&world).expect(78);
    std::fs::remove_file(&meta).unwrap();
    std::fs::rename(&elsewhere, &meta).unwrap();

    // The account swaps a folder for a link to what only root may read.
    world.file("private", "z");
    world.publish();
    let secret = world.dir.join("secret");
    private(&secret);
    std::fs::write(secret.join("key"), "key").unwrap();
    let newest = world.store.join(&world.dates()[1]);
    std::fs::rename(newest.join("docs"), newest.join("moved")).unwrap();
    std::os::unix::fs::symlink(&secret, newest.join("docs")).unwrap();
    run(&world).expect(1);
    assert_eq!(dates(&to).len(), 1);
}
