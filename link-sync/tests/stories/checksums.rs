//! Manifests and `verify`: what other programs check, and what is found.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::Ran;

use crate::far::Remote;
use crate::world::{World, folder, ok, private, told, warnings};

/// Changes one bit of a file, as a disk does: size and times stay.
pub fn flip(path: &Path, bit: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let meta = file.metadata().unwrap();
    let at = bit / 8 % meta.len();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], at).unwrap();
    file.set_times(
        std::fs::FileTimes::new()
            .set_accessed(meta.accessed().unwrap())
            .set_modified(meta.modified().unwrap()),
    )
    .unwrap();
    file.sync_all().unwrap();
}

/// What a verification found: kind, paths, dates.
pub fn found(ran: &Ran) -> Vec<(String, String, usize)> {
    let list = ran.json["data"]["findings"].as_array().unwrap().iter();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let mut list: Vec<_> = list
        .map(|f| (text(&f["kind"]), text(&f["paths"][0]), f["dates"].as_array().unwrap().len()))
        .collect();
    list.sort();
    list
}

fn finding(kind: &str, path: &str, dates: usize) -> (String, String, usize) {
    (kind.to_owned(), path.to_owned(), dates)
}

#[test]
fn other_programs_accept_the_manifests_whatever_the_names_are() {
    let world = World::new();
    for name in [
        "plain",
        "a b",
        "back\\slash",
        "new\nline",
        "cr\r",
        "d/#[*?]",
        "d/ \u{fc} =x",
        "-dash",
        "*",
        "p*/\\?[x",
    ] {
        world.file(name, name);
    }
    std::os::unix::fs::symlink("to a\nplace", world.source.join("link")).unwrap();
    ok("mkfifo", &[world.source.join("pipe").to_str().unwrap()]);
    ok("mknod", &[world.source.join("device").to_str().unwrap(), "c", "1", "3"]);
    xattr::set(world.source.join("plain"), "user.note", b"x").unwrap();
    let first = folder(&world.snapshot(&[]).expect(0));
    // Nothing new: the same manifests, in no room of their own.
    let second = world.snapshot(&[]).expect(0);
    assert_eq!(second.json["data"]["hashed_files"], 0);
    let second = folder(&second);
    for name in ["sha256sums", "mtree"] {
        let ino = |snapshot: &Path| std::fs::metadata(snapshot.join(".meta").join(name)).unwrap().ino();
        assert_eq!(ino(&first), ino(&second), "{name}");
    }
    // A little new: only that is read, and what went is in no list.
    world.file("d/new", "new");
    std::fs::remove_file(world.source.join("a b")).unwrap();
    std::fs::remove_file(world.source.join("plain")).unwrap();
    world.file("plain/is/a/folder", "now");
    std::fs::set_permissions(world.source.join("d"), PermissionsExt::from_mode(0o750)).unwrap();
    let third = world.snapshot(&[]).expect(0);
    assert_eq!(third.json["data"]["hashed_files"], 2);
    let third = folder(&third);
    let sums = std::fs::read_to_string(third.join(".meta/sha256sums")).unwrap();
    assert!(
        sums.contains("docs/d/new") && !sums.contains("docs/a b") && sums.lines().count() == 10,
        "{sums}"
    );
    for snapshot in [&first, &second, &third] {
        let mut check = Command::new("sha256sum");
        let check = check.current_dir(snapshot).args(["-c", "--strict", "--quiet", ".meta/sha256sums"]);
        assert!(check.status().unwrap().success(), "{}", snapshot.display());
        // Where NetBSD's mtree is installed, it agrees, too.
        if Path::new("/usr/bin/mtree").exists() {
            let mut mtree = Command::new("mtree");
            let out = mtree.current_dir(snapshot).args(["-f", ".meta/mtree", "-p", "."]).output().unwrap();
            assert!(
                out.status.success() && out.stdout.is_empty(),
                "{}",
                String::from_utf8_lossy(&out.stdout)
            );
        } else {
            eprintln!("not checked with mtree: mtree-netbsd is not installed");
        }
    }
    let verified = world.act("verify", &[]).expect(0);
    assert_eq!(verified.json["data"]["dates"].as_array().unwrap().len(), 3);
    // Ten files, of which two went and two came: twelve distinct ones, each read once.
    assert_eq!(verified.json["data"]["inodes_read"], 12);
    let record: Value =
        serde_json::from_slice(&std::fs::read(world.store.join(".verified")).unwrap()).unwrap();
    assert_eq!(record["last_full"]["findings"], 0);
}

#[test]
fn a_hundred_flipped_bits_of_a_hundred_are_found() {
    let world = World::new();
    for n in 0..120u64 {
        world.file(&format!("{}/{n}", n % 7), &"content ".repeat(usize::try_from(n * n + 1).unwrap()));
    }
    let first = world.publish();
    world.file("more", "more");
    world.publish();
    world.act("verify", &[]).expect(0);
    let mut expected = Vec::new();
    for n in 0..100u64 {
        let path = format!("docs/{}/{n}", n % 7);
        flip(&first.join(&path), n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        expected.push(finding("content", &path, 2));
    }
    expected.sort();
    assert_eq!(found(&world.act("verify", &[]).expect(1)), expected);

    // What was found stays the last word until as much has been found well.
    let last = || world.act("list", &[]).expect(0).json["data"]["last_verify"].clone();
    assert_eq!(last()["ok"], false);
    world.act("verify", &["--date", "latest", "--sample", "0.000001%"]).expect(0);
    assert_eq!((&last()["findings"], &last()["ok"]), (&json!(0), &json!(false)));
    assert_eq!(last()["unresolved"]["findings"], 100);

    // A sample finds its share, and the same again; names and attributes are always checked.
    let sample = world.act("verify", &["--sample", "30%", "--date", "latest"]).expect(1);
    let part = found(&sample);
    assert!(part.len() > 10 && part.len() < 60, "{}", part.len());
    let seed = sample.json["data"]["seed"].to_string();
    let again = world.act("verify", &["--sample", "30", "--date", "latest", "--seed", &seed]).expect(1);
    assert_eq!(found(&again), part);
    for wrong in ["0", "101%", "many", "NaN", "-3"] {
        let option = format!("--sample={wrong}");
        assert_eq!(world.command("verify", &[&option]).output().unwrap().status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn whatever_is_wrong_is_named_with_every_date() {
    let world = World::new();
    for name in ["rotten", "missing", "mode", "longer", "type", "d/in", "gone/a", "gone/b"] {
        world.file(name, "content");
    }
    std::os::unix::fs::symlink("there", world.source.join("link")).unwrap();
    // What is older than two seconds is not compared again, so that damage is not noticed by the way.
    std::thread::sleep(Duration::from_millis(2100));
    let first = world.publish();
    world.file("new", "new");
    let second = world.publish();
    flip(&second.join("docs/rotten"), 5);
    std::fs::remove_file(second.join("docs/missing")).unwrap();
    std::fs::set_permissions(second.join("docs/mode"), PermissionsExt::from_mode(0o600)).unwrap();
    xattr::set(second.join("docs/d/in"), "user.note", b"x").unwrap();
    let longer = std::fs::File::options().append(true).open(first.join("docs/longer")).unwrap();
    let time = longer.metadata().unwrap().modified().unwrap();
    std::io::Write::write_all(&mut &longer, b"!").unwrap();
    longer.set_modified(time).unwrap();
    std::fs::remove_file(first.join("docs/type")).unwrap();
    std::fs::create_dir_all(first.join("docs/type/below")).unwrap();
    std::fs::create_dir_all(second.join("docs/extra/below")).unwrap();
    ok("rm", &["-r", second.join("docs/gone").to_str().unwrap()]);
    // What was put in and taken out moved the folder's time, and that is put right, so that the rest is seen alone.
    for snapshot in [&first, &second] {
        let like = if snapshot == &first { &second } else { &first };
        ok("touch", &["-d", "@1000000000", like.join("docs").to_str().unwrap()]);
    }
    let verified = world.act("verify", &[]).expect(1);
    assert_eq!(
        found(&verified),
        [
            finding("attributes", "docs", 1),
            finding("attributes", "docs", 1),
            finding("attributes", "docs/d/in", 2),
            finding("attributes", "docs/mode", 2),
            finding("content", "docs/longer", 2),
            finding("content", "docs/rotten", 2),
            finding("extra", "docs/extra", 1),
            finding("missing", "docs/gone", 1),
            finding("missing", "docs/gone/a", 1),
            finding("missing", "docs/gone/b", 1),
            finding("missing", "docs/missing", 1),
            finding("type", "docs/type", 1),
        ]
    );
    assert!(told(&verified).contains("2 content"), "{verified:?}");

    // Manifests rot, too. The next snapshot builds on older ones then, so that what rotted is not taken for good.
    flip(&second.join(".meta/mtree"), 1000);
    // As if nobody had verified it: what is found is taken anew otherwise.
    std::fs::remove_file(world.store.join(".damaged")).unwrap();
    let next = world.snapshot(&[]).expect(0);
    assert_eq!(warnings(&next), ["base-lacks", "base-has-more", "checksums-damaged"]);
    let verified = world.act("verify", &["--date", "latest"]).expect(1);
    assert_eq!(
        found(&verified)[..2],
        [finding("attributes", "docs/d/in", 3), finding("attributes", "docs/mode", 3)]
    );
    // The one whose size was another has been taken again.
    assert_eq!(verified.json["data"]["counts"]["content"], 1);
    // A snapshot that does not say what it is cannot be verified.
    std::fs::write(first.join(".meta/snapshot.json"), "{").unwrap();
    let verified = found(&world.act("verify", &[]).expect(1));
    assert!(verified.contains(&finding("manifest", ".meta/mtree", 1)), "{verified:?}");
    assert!(verified.contains(&finding("snapshot", ".", 1)), "{verified:?}");
}

#[test]
fn a_store_without_checksums_gets_them_with_the_next_snapshot() {
    let world = World::new();
    let empty = world.act("verify", &[]).expect(3);
    assert_eq!(warnings(&empty), ["no-snapshot"]);
    world.file("a", "a");
    let first = world.publish();
    for name in ["sha256sums", "mtree"] {
        std::fs::remove_file(first.join(".meta").join(name)).unwrap();
    }
    let file = first.join(".meta/snapshot.json");
    let mut meta: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    meta.as_object_mut().unwrap().remove("manifest");
    std::fs::write(&file, meta.to_string()).unwrap();
    assert_eq!(warnings(&world.act("verify", &[]).expect(3)), ["no-checksums"]);
    let next = world.snapshot(&[]).expect(0);
    assert!(warnings(&next).contains(&"hashes-everything"), "{next:?}");
    assert_eq!(next.json["data"]["hashed_files"], 1);
    assert_eq!(world.act("verify", &["--date", "latest"]).expect(0).json["data"]["inodes_read"], 1);
    assert!(
        told(&world.act("verify", &["--date", "2001-01-01T00-00-00Z"]).expect(78)).contains("no snapshot")
    );
}

#[test]
fn an_accounts_store_is_verified_from_the_source_and_beside_a_copy() {
    let remote = Remote::new();
    let world = &remote.world;
    world.file("d/owned", "x");
    ok("chown", &["33:44", world.source.join("d/owned").to_str().unwrap()]);
    std::os::unix::fs::symlink("a", world.source.join("link")).unwrap();
    let first = folder(&world.snapshot(&[]).expect(0));
    let clean = world.act("verify", &[]).expect(0);
    // With fake-super a symlink is a file.
    assert_eq!(clean.json["data"]["inodes_read"], 3);
    // The owner that rsync keeps in an attribute is part of what is checked.
    let kept = xattr::get(first.join("docs/d/owned"), "user.rsync.%stat").unwrap().unwrap();
    xattr::set(first.join("docs/d/owned"), "user.rsync.%stat", b"100644 0,0 0:0").unwrap();
    flip(&first.join("docs/a"), 3);
    let expected = [finding("attributes", "docs/d/owned", 1), finding("content", "docs/a", 1)];
    assert_eq!(found(&world.act("verify", &[]).expect(1)), expected);
    // Root on the store's machine sees the same, and the same snapshots.
    let here = ["--store", remote.store.to_str().unwrap()];
    assert_eq!(found(&world.act("verify", &here).expect(1)), expected);
    let [there, here] = [&[][..], &here].map(|at| {
        let mut listed = world.act("list", at).expect(0).json["data"]["snapshots"].take();
        // (a second may have passed)
        listed.as_array_mut().unwrap().iter_mut().for_each(|s| s["age_seconds"] = 0.into());
        listed
    });
    assert_eq!(there, here);
    xattr::set(first.join("docs/d/owned"), "user.rsync.%stat", &kept).unwrap();
    flip(&first.join("docs/a"), 3);

    // A copy reads meanwhile: both share. One that removes is alone, and its snapshot is passed over.
    let lock = first.join(".meta/lock");
    let lock = lock.to_str().unwrap();
    let under = |how: &str| {
        let mut flock = Command::new("flock");
        flock
            .arg(how)
            .arg(lock)
            .arg(testkit::bin("link-sync"))
            .arg("verify")
            .arg("--config")
            .arg(&world.config);
        testkit::run(&mut flock)
    };
    assert_eq!(under("--shared").expect(0).json["data"]["inodes_read"], 3);
    assert_eq!(warnings(&under("--exclusive").expect(3)), ["being-removed", "no-snapshot"]);
}

#[test]
fn a_copy_is_verified_against_the_store_it_came_from() {
    let world = World::new();
    world.file("a", "a");
    world.file("b", "b");
    world.publish();
    let to = world.dir.join("copies");
    private(&to);
    let to_text = to.to_str().unwrap().to_owned();
    let copy = || world.act("copy", &["--to", &to_text, "--reserve-bytes", "1"]).expect(0);
    copy();
    world.file("c", "c");
    world.publish();
    copy();
    let store = world.store.to_str().unwrap().to_owned();
    let verify = ["--store", &to_text, "--against", &store];
    assert_eq!(world.act("verify", &verify).expect(0).json["data"]["inodes_read"], 3);
    let dates = world.dates();
    flip(&to.join(&dates[0]).join("docs/a"), 1);
    flip(&to.join(&dates[1]).join("docs/c"), 1);
    let both = [finding("content", "docs/a", 2), finding("content", "docs/c", 1)];
    assert_eq!(found(&world.act("verify", &verify).expect(1)), both);

    // Alone it tells of the contents what it knows, and no more; one that has lost its checksums is no copy.
    let alone = world.act("verify", &["--store", &to_text]).expect(1);
    assert_eq!((found(&alone), warnings(&alone)), (both.to_vec(), vec!["no-checksums"]));
    flip(&to.join(&dates[0]).join("docs/a"), 1);
    flip(&to.join(&dates[1]).join("docs/c"), 1);
    let alone = world.act("verify", &["--store", &to_text]).expect(3);
    assert_eq!(alone.json["data"]["inodes_read"], 3);
    // What it lost comes back from the store it came from, with its lists; then it can be verified wholly.
    let again = world.dir.join("again");
    ok("cp", &["-a", &to_text, again.to_str().unwrap()]);
    flip(&again.join(&dates[0]).join("docs/a"), 1);
    let repair = ["--store", again.to_str().unwrap(), "--repair"];
    assert!(
        world.act("verify", &repair).expect(1).json["data"]["not_repaired"].to_string().contains("came from")
    );
    world.act("verify", &[&repair[..], &["--from", &store]].concat()).expect(0);
    world.act("verify", &repair[..2]).expect(0);
    let list = world.act("list", &["--store", &to_text]).expect(0);
    assert_eq!(list.json["data"]["last_verify"]["ok"], true);
    let its = to.join(&dates[1]).join(".meta/sha256sums.part");
    std::fs::rename(&its, its.with_extension("away")).unwrap();
    assert_eq!(found(&world.act("verify", &["--store", &to_text]).expect(1))[0].0, "manifest");
    std::fs::rename(its.with_extension("away"), &its).unwrap();
    flip(&to.join(&dates[0]).join("docs/a"), 1);
    flip(&to.join(&dates[1]).join("docs/c"), 1);

    // Dates the store no longer has: only what the copy says of what was new in it.
    let part = |n: usize| std::fs::read_to_string(to.join(&dates[n]).join(".meta/sha256sums.part")).unwrap();
    assert_eq!((part(0).lines().count(), part(1).lines().count()), (2, 1));
    ok(
        "rm",
        &["-r", world.store.join(&dates[0]).to_str().unwrap(), world.store.join(&dates[1]).to_str().unwrap()],
    );
    let weaker = world.act("verify", &verify).expect(1);
    assert_eq!(found(&weaker), both);
    assert_eq!(warnings(&weaker), ["no-checksums"]);
    assert_eq!(weaker.json["data"]["weaker_dates"].as_array().unwrap().len(), 2);
}

/// A manifest as an older version wrote it, which noted the store's account everywhere.
fn with_the_account(snapshot: &Path, uid: u32, gid: u32) {
    let file = snapshot.join(".meta/mtree");
    let lines = std::fs::read_to_string(&file).unwrap();
    let of = |line: &str| match line.split_once(" mode=") {
        Some((before, after)) if line.contains(" tags=") => {
            let (mode, rest) = after.split_once(' ').unwrap();
            format!("{before} mode={mode} uid={uid} gid={gid} {rest}")
        }
        _ => line.to_owned(),
    };
    let text: String = lines.lines().map(|line| of(line) + "\n").collect();
    // Not through a link to another date's.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, &text).unwrap();
    let json = snapshot.join(".meta/snapshot.json");
    let mut meta: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let sum = ok("sha256sum", &[file.to_str().unwrap()]);
    meta["manifest"]["mtree"] = json!({"sha256": sum[..64], "bytes": text.len()});
    std::fs::write(&json, meta.to_string()).unwrap();
}

#[test]
fn a_store_whose_account_has_another_number_is_what_was_published() {
    // Given a store of an account, with files of several owners, of which one has the account's own number,
    let remote = Remote::new();
    let world = &remote.world;
    let number = |path: &Path| {
        let meta = path.symlink_metadata().unwrap();
        (meta.uid(), meta.gid())
    };
    let (uid, gid) = number(&remote.store);
    let owners = [
        ("root", (0, 0)),
        ("www", (33, 33)),
        ("own/file", (uid, gid)),
        ("own", (uid, gid)),
        ("gone", (5, 5)),
    ];
    for (name, (uid, gid)) in owners {
        if name != "own" {
            world.file(name, name);
        }
        std::os::unix::fs::chown(world.source.join(name), Some(uid), Some(gid)).unwrap();
    }
    std::os::unix::fs::symlink("root", world.source.join("link")).unwrap();
    let first = folder(&world.snapshot(&[]).expect(0));
    let text = std::fs::read_to_string(first.join(".meta/mtree")).unwrap();
    assert!(text.contains("tags=") && !text.contains("uid="), "{text}");
    world.file("new", "new");
    let second = folder(&world.snapshot(&[]).expect(0));
    with_the_account(&second, uid, gid);
    // when it is moved to a machine where the account has other numbers,
    let there = Remote::new();
    let world = &there.world;
    let store = there.store.to_str().unwrap();
    ok("cp", &["-a", &format!("{}/.", remote.store.display()), store]);
    ok("cp", &["-a", &format!("{}/.", remote.world.source.display()), world.source.to_str().unwrap()]);
    ok("chown", &["-Rh", &format!("{0}:{0}", there.account.name), store]);
    assert_ne!(number(&there.store), (uid, gid));
    let (first, second) = (first.file_name().unwrap(), second.file_name().unwrap());
    // then a verification finds nothing,
    let here = ["--store", store];
    world.act("verify", &here).expect(0);
    // what is lost is fetched from the other date, though one manifest notes the account and the other does not,
    std::fs::remove_file(there.store.join(first).join("docs/gone")).unwrap();
    world.act("verify", &[&here[..], &["--repair"]].concat()).expect(0);
    std::fs::remove_file(there.store.join(second).join("docs/gone")).unwrap();
    let file = there.store.join(second).join("docs/www");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666)).unwrap();
    world.act("verify", &[&here[..], &["--repair"]].concat()).expect(0);
    world.act("verify", &here).expect(0);
    // the account backs up there (of a source that lies elsewhere in this test), as if nothing had been,
    world.file("newer", "newer");
    let third = folder(&world.snapshot(&["--allow-new-filesystem"]).expect(0));
    world.snapshot(&[]).expect(0);
    world.act("verify", &here).expect(0);
    // and everything comes back to whom it belonged.
    for date in [first, second, third.file_name().unwrap()] {
        let (date, to) = (date.to_str().unwrap(), world.dir.join("to"));
        world.act("restore", &["--store", store, "--date", date, "--to", to.to_str().unwrap()]).expect(0);
        for (name, owner) in owners {
            assert_eq!(number(&to.join("docs").join(name)), owner, "{date} {name}");
        }
        std::fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn the_owners_of_a_store_of_roots_are_compared() {
    let world = World::new();
    world.file("a", "a");
    let held = world.publish();
    std::os::unix::fs::chown(held.join("docs/a"), Some(5), Some(6)).unwrap();
    let wrong = world.act("verify", &[]).expect(1);
    assert_eq!(found(&wrong), [finding("attributes", "docs/a", 1)]);
    world.act("verify", &["--repair"]).expect(0);
    assert_eq!(held.join("docs/a").metadata().unwrap().uid(), 0);
}
