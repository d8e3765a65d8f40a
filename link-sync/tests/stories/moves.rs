//! What was moved at the source, or copied, is neither sent nor stored again; and what only looks like it is.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::json;
use testkit::Ran;

use crate::talk::{At, Talk};
use crate::world::{Disk, World, first, folder, ok};

/// A file of so many bytes that no other has.
fn file(world: &World, path: &str, bytes: usize, seed: u64) {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .flatten()
    .take(bytes)
    .collect();
    let path = world.source.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn rename(world: &World, from: &str, to: &str) {
    let to = world.source.join(to);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(world.source.join(from), to).unwrap();
}

fn inode(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

/// A snapshot that holds what the source does, while all before stay what they were, down to the checksums.
#[track_caller]
fn next(world: &World) -> Ran {
    let history = world.history();
    let ran = world.snapshot(&["--allow-shrink"]).expect(0);
    world.newest_is_source();
    for (date, was) in history {
        was.same_as(&crate::picture::picture(&world.store.join(date)));
    }
    world.act("verify", &["--date", "all"]).expect(0);
    ran
}

#[track_caller]
fn count(ran: &Ran, key: &str) -> u64 {
    first(ran)[key].as_u64().unwrap_or_else(|| panic!("{key}: {}", first(ran)))
}

#[test]
fn a_folder_that_is_renamed_is_neither_sent_nor_stored_again() {
    let world = World::new();
    for n in 0..300 {
        file(&world, &format!("photos/{}/{n}", n % 7), 4096, n);
    }
    file(&world, "photos/film", 8 << 20, 1000);
    let before = folder(&next(&world));
    rename(&world, "photos", "albums/2026");
    let ran = next(&world);
    let after = folder(&ran);
    for path in ["film", "0/7", "6/6"] {
        let (old, new) = (before.join("docs/photos").join(path), after.join("docs/albums/2026").join(path));
        assert_eq!(inode(&old), inode(&new), "{path}");
    }
    assert_eq!((count(&ran, "moved_files"), count(&ran, "moved_linked_files")), (301, 301));
    assert!(count(&ran, "sent_bytes") < 100_000, "{}", first(&ran));
    assert_eq!(ran.json["data"]["hashed_files"], 0, "it is known what they hold");
    assert!(!world.store.join(".reuse").exists());
    // And back, as from a trashbin.
    rename(&world, "albums/2026", "photos");
    let ran = next(&world);
    assert_eq!(count(&ran, "moved_linked_files"), 301);
    assert_eq!(inode(&before.join("docs/photos/film")), inode(&folder(&ran).join("docs/photos/film")));
}

#[test]
fn other_attributes_make_a_copy_at_the_store_and_leave_history_as_it_was() {
    let world = World::new();
    for name in ["mode", "owner", "attribute", "acl", "same"] {
        file(&world, &format!("old/{name}"), 1 << 20, name.len() as u64);
    }
    let before = folder(&next(&world));
    rename(&world, "old", "new");
    let path = |name: &str| world.source.join("new").join(name);
    fs::set_permissions(path("mode"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(path("owner"), Some(33), Some(44)).unwrap();
    xattr::set(path("attribute"), "user.colour", b"blue").unwrap();
    ok("setfacl", &["-m", "u:33:r", path("acl").to_str().unwrap()]);
    let ran = next(&world);
    assert_eq!((count(&ran, "moved_files"), count(&ran, "moved_linked_files")), (5, 1));
    assert!(count(&ran, "sent_bytes") < 100_000, "{}", first(&ran));
    let same = |name: &str| {
        inode(&before.join("docs/old").join(name)) == inode(&folder(&ran).join("docs/new").join(name))
    };
    assert!(same("same") && !same("mode") && !same("owner") && !same("attribute") && !same("acl"));
}

#[test]
fn also_in_a_store_of_an_account_attributes_go_and_history_stays() {
    use crate::world::{Rsyncs, give_back, private, rsyncs};
    for (n, Rsyncs { near, far }) in rsyncs().into_iter().enumerate() {
        let remote = crate::far::Remote::new();
        let rsync = remote.account.home.join(format!("rsync-{n}"));
        ok("sh", &["-c", "cp \"$(command -v \"$1\")\" \"$2\"", "sh", &far, rsync.to_str().unwrap()]);
        let serve = remote.account.home.join("serve");
        let words = format!("exec '{}' \"$@\" --rsync '{}'", remote.program, rsync.display());
        testkit::script(&serve, &format!("#!/bin/sh\n{words}\n"));
        let world = &remote.world;
        let text = fs::read_to_string(&world.config).unwrap();
        let text = text.replace(&format!("\"{}\"", remote.program), &format!("\"{}\"", serve.display()));
        fs::write(
            &world.config,
            text.replace("[snapshot]\n", &format!("[snapshot]\nrsync = [\"{near}\"]\n")),
        )
        .unwrap();
        for name in
            ["lost-its-acl", "lost-an-attribute", "got-an-acl", "other-acl", "owner", "same", "same-acl"]
        {
            file(world, &format!("old/{name}"), 100_000, name.len() as u64);
        }
        let path =
            |folder: &str, name: &str| world.source.join(folder).join(name).to_str().unwrap().to_owned();
        for name in ["lost-its-acl", "other-acl", "same-acl"] {
            ok("setfacl", &["-m", "u:33:r", &path("old", name)]);
        }
        for name in ["lost-an-attribute", "lost-its-acl"] {
            xattr::set(path("old", name), "user.colour", b"blue").unwrap();
        }
        let held = folder(&world.snapshot(&[]).expect(0));
        let before = crate::picture::picture(&held);
        rename(world, "old", "new");
        ok("setfacl", &["-b", &path("new", "lost-its-acl")]);
        ok("setfacl", &["-m", "u:33:rw", &path("new", "other-acl")]);
        ok("setfacl", &["-m", "u:33:rw", &path("new", "got-an-acl")]);
        xattr::remove(path("new", "lost-an-attribute"), "user.colour").unwrap();
        std::os::unix::fs::chown(path("new", "owner"), Some(33), Some(44)).unwrap();
        let ran = world.snapshot(&["--allow-shrink"]).expect(0);
        before.same_as(&crate::picture::picture(&held));
        let to = world.dir.join("restored");
        private(&to);
        give_back(&near, &folder(&ran).join("docs"), &to);
        crate::picture::picture(&world.source).same_as(&crate::picture::picture(&to));
        assert_eq!(count(&ran, "moved_files"), 4, "all but those with an ACL: {}", first(&ran));
    }
}

#[test]
fn what_moved_and_was_edited_with_the_time_it_had_is_sent() {
    let world = World::new();
    file(&world, "a", 200_000, 1);
    file(&world, "b", 200_000, 2);
    let time = world.source.join("a").metadata().unwrap().modified().unwrap();
    let keep = |name: &str| {
        let file = fs::File::options().write(true).open(world.source.join(name)).unwrap();
        file.set_modified(time).unwrap();
    };
    keep("b");
    next(&world);
    rename(&world, "a", "moved");
    // In place: the inode, the size and the time are what they were.
    use std::os::unix::fs::FileExt as _;
    fs::File::options()
        .write(true)
        .open(world.source.join("moved"))
        .unwrap()
        .write_all_at(b"edited", 100_000)
        .unwrap();
    keep("moved");
    let ran = next(&world);
    assert_eq!(count(&ran, "moved_files"), 0);
    // Two of one size and one time change their names: each has the content of the other.
    rename(&world, "moved", "x");
    rename(&world, "b", "moved");
    rename(&world, "x", "b");
    let ran = next(&world);
    assert_eq!(count(&ran, "moved_linked_files"), 2);
}

#[test]
fn a_copy_is_linked_or_made_at_the_store_and_small_ones_are_sent() {
    let world = World::new();
    file(&world, "film", 3 << 20, 1);
    file(&world, "small", 10_000, 2);
    file(&world, "other", (3 << 20) + 1, 3);
    let before = folder(&next(&world));
    let copy = |from: &str, to: &str, options: &[&str]| {
        let (from, to) = (world.source.join(from), world.source.join(to));
        ok("cp", &[options, &[from.to_str().unwrap(), to.to_str().unwrap()]].concat());
    };
    copy("film", "exact", &["-p"]);
    copy("film", "film.v1700000000", &[]);
    copy("small", "small.v1700000000", &["-p"]);
    // As large as one that is there, and something else.
    file(&world, "lookalike", 3 << 20, 4);
    let ran = next(&world);
    let after = folder(&ran).join("docs");
    assert_eq!(inode(&after.join("exact")), inode(&before.join("docs/film")));
    assert_ne!(inode(&after.join("film.v1700000000")), inode(&before.join("docs/film")));
    assert_eq!(count(&ran, "moved_files"), 1);
    let sent = count(&ran, "sent_bytes");
    assert!((3 << 20..4 << 20).contains(&sent), "the one that is new: {sent}");
}

#[test]
fn what_is_damaged_in_the_newest_snapshot_is_not_used_again() {
    let world = World::new();
    file(&world, "rotten", 300_000, 1);
    file(&world, "copied", 300_001, 2);
    file(&world, "good", 300_002, 3);
    let held = world.publish().join("docs");
    let damage = |name: &str| {
        let (path, time) = (held.join(name), held.join(name).metadata().unwrap().modified().unwrap());
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"rot", 1000).unwrap();
        file.set_modified(time).unwrap();
    };
    damage("rotten");
    damage("copied");
    world.act("verify", &[]).expect(1);
    rename(&world, "rotten", "d/rotten");
    rename(&world, "good", "d/good");
    ok(
        "cp",
        &["-p", world.source.join("copied").to_str().unwrap(), world.source.join("d/copy").to_str().unwrap()],
    );
    let ran = world.snapshot(&["--allow-shrink"]).expect(0);
    world.newest_is_source();
    assert_eq!(count(&ran, "moved_files"), 1, "the good one");
}

#[test]
fn a_manifest_that_is_not_what_it_was_is_believed_nothing() {
    let world = World::new();
    file(&world, "one", 100_000, 1);
    file(&world, "two", 100_000, 2);
    let same = world.source.join("one").metadata().unwrap().modified().unwrap();
    fs::File::options().write(true).open(world.source.join("two")).unwrap().set_modified(same).unwrap();
    let meta = world.publish().join(".meta/sha256sums");
    // It says of each what the other one holds.
    let text = fs::read_to_string(&meta).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    fs::write(
        &meta,
        format!("{}{}\n{}{}\n", &lines[1][..64], &lines[0][64..], &lines[0][..64], &lines[1][64..]),
    )
    .unwrap();
    ok(
        "cp",
        &["-p", world.source.join("one").to_str().unwrap(), world.source.join("copy").to_str().unwrap()],
    );
    let ran = world.snapshot(&[]).expect(0);
    world.newest_is_source();
    assert_eq!(count(&ran, "moved_files"), 0);
}

#[test]
fn what_moved_needs_no_room_and_no_day() {
    // Of its own, as what is free is what counts.
    let disk = Disk::new(300);
    let world = World::on(&disk);
    file(&world, "films/one", 24 << 20, 1);
    next(&world);
    world.profile("", "max_bytes_per_day = \"4m\"");
    rename(&world, "films", "cinema");
    let ran = next(&world);
    assert_eq!(count(&ran, "moved_linked_files"), 1);
}

#[test]
fn what_is_copied_at_the_store_is_of_a_day_too() {
    let disk = Disk::new(300);
    let world = World::on(&disk);
    file(&world, "film", 16 << 20, 1);
    next(&world);
    let history = world.history();
    world.profile("", "max_bytes_per_day = \"40m\"");
    // No byte of them is sent, and none is in the estimate. The day begins after they came to the disk, which is the source's, too.
    for name in ["one", "two", "three"] {
        let to = world.source.join(name);
        ok("cp", &["-p", world.source.join("film").to_str().unwrap(), to.to_str().unwrap()]);
        fs::set_permissions(to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let full = world.snapshot(&[]).expect(1);
    assert!(full.stderr.contains("one day may add"), "{full:?}");
    for (date, was) in history {
        was.same_as(&crate::picture::picture(&world.store.join(date)));
    }
    world.profile("", "max_bytes_per_day = \"200m\"");
    let ran = next(&world);
    assert_eq!(count(&ran, "moved_files"), 3);
    assert!(count(&ran, "sent_bytes") < 100_000, "{}", first(&ran));
}

#[test]
fn a_killed_run_leaves_links_that_the_next_one_clears() {
    let world = World::new();
    for n in 0..40 {
        file(&world, &format!("d/{n}"), 100_000, n);
    }
    next(&world);
    let history = world.history();
    rename(&world, "d", "e");
    // All that moved is copied at the store, so the links stay.
    for n in 0..40 {
        fs::set_permissions(world.source.join(format!("e/{n}")), fs::Permissions::from_mode(0o600)).unwrap();
    }
    world.act("stage", &["--allow-shrink"]).expect(0);
    assert!(world.store.join(".reuse/docs/e/7").exists());
    let mut killed = 0;
    for (pid, line) in
        crate::world::descendants(1).into_iter().chain(crate::world::descendants(std::process::id()))
    {
        if line.contains("link-sync") && line.contains(world.dir.to_str().unwrap()) {
            crate::world::kill(pid, "-9");
            killed += 1;
        }
    }
    assert!(killed >= 2, "the background process and its far end");
    crate::world::until("the store is free", || {
        let ran = world.snapshot(&["--allow-shrink"]);
        assert!(ran.code == 0 || ran.code == 75, "{ran:?}");
        ran.code == 0
    });
    world.newest_is_source();
    assert!(!world.store.join(".reuse").exists());
    for (date, was) in history {
        was.same_as(&crate::picture::picture(&world.store.join(date)));
    }
    next(&world);
}

#[test]
fn a_claim_gives_a_name_to_what_the_base_holds_and_reaches_nothing_else() {
    let world = World::new();
    file(&world, "secret", 70_000, 1);
    let held = world.publish().join("docs/secret");
    let history = world.history();
    let sum = |path: &Path| -> Vec<u8> {
        let hex = ok("sha256sum", &[path.to_str().unwrap()]);
        (0..32).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect()
    };
    let right = sum(&held);
    let claim = |sum: &[u8], size: u64, old: &str, path: &str| -> Vec<u8> {
        let (time, old) = (held.metadata().unwrap(), old.as_bytes());
        let numbers =
            [&size.to_le_bytes()[..], &time.mtime().to_le_bytes(), &(time.mtime_nsec() as u32).to_le_bytes()]
                .concat();
        [sum, &numbers, &(old.len() as u32).to_le_bytes(), old, path.as_bytes()].concat()
    };
    let ask = |talk: &mut Talk, claims: &[Vec<u8>]| {
        talk.ask_with(&json!({"ask": "reuse", "source": "docs", "fresh": true}), claims)
    };
    let mut talk = Talk::begun(&world.store, &[]);
    // Not what it holds, not its size; where it was is only a word.
    let wrong = [
        claim(&[7; 32], 70_000, "secret", "x1"),
        claim(&right, 70_001, "secret", "x2"),
        claim(&right, 70_000, "nothing", "x3"),
        claim(&right, 70_000, "../docs/secret", "x4"),
        claim(&[7; 32], 70_000, "", "x5"),
        claim(&right, 70_000, "secret", "good"),
        claim(&right, 70_000, "secret", "good/below"),
        claim(&right, 70_000, "", "copy"),
    ];
    let answer = ask(&mut talk, &wrong);
    assert_eq!(answer["ok"], json!({"ranges": [[2, 4], [5, 6], [7, 8]], "alike": 0}), "{answer}");
    assert_eq!(inode(&world.store.join(".reuse/docs/good")), inode(&held));
    for bad in ["../x", "/etc/x", "a/../../x", ""] {
        crate::talk::refused(
            &ask(&mut talk, &[claim(&right, 70_000, "secret", bad)]),
            77,
            "leads out of the snapshot",
        );
    }
    crate::talk::refused(
        &talk.ask_with(&json!({"ask": "reuse", "source": "../docs", "fresh": true}), &[]),
        77,
        "",
    );
    let broken = ask(&mut talk, &[vec![0; 50]]);
    crate::talk::refused(&broken, 1, "broken claim");
    // What was not found cannot be put anywhere.
    ask(&mut talk, &[claim(&right, 70_000, "secret", "mine")]);
    let merge = json!({"ask": "merge", "source": "docs", "times": true, "again": true, "reused": true});
    let time = held.metadata().unwrap();
    let record = |path: &str| {
        let numbers = [
            &70_000u64.to_le_bytes()[..],
            &time.mtime().to_le_bytes(),
            &(time.mtime_nsec() as u32).to_le_bytes(),
        ]
        .concat();
        [&libc::S_IFREG.to_le_bytes()[..], &numbers, path.as_bytes()].concat()
    };
    let merged = talk.ask_with(&merge, &[record("mine"), record("secret"), record("other")]);
    assert_eq!((&merged["ok"]["reused"], &merged["ok"]["missing"]), (&json!(1), &json!(2)), "{merged}");
    assert_eq!(inode(&world.store.join(".partial/docs/mine")), inode(&held));
    assert_eq!(talk.end().0, 0);
    // Who copies and who reads cannot say it.
    let mut reader = Talk::at(At::Read, &world.store, &[]);
    crate::talk::refused(&ask(&mut reader, &[]), 77, "'reuse'");
    let mut copier = Talk::at(At::Copy, &world.store, &[]);
    copier.ask(&json!({"ask": "open", "base": null}));
    crate::talk::refused(&ask(&mut copier, &[]), 1, "'reuse'");
    for (date, was) in history {
        was.same_as(&crate::picture::picture(&world.store.join(date)));
    }
}

#[test]
fn what_had_another_name_when_the_rest_had_no_time_is_in_no_snapshot() {
    let world = World::new();
    world.profile("rsync = [\"rsync\", \"--bwlimit=4m\"]", "");
    file(&world, "stays", 1000, 1);
    file(&world, "moves", 1000, 2);
    next(&world);
    world.act("stage", &[]).expect(0);
    rename(&world, "moves", "moved");
    file(&world, "large", 12 << 20, 3);
    let late = world.act("settle", &["--max-time", "1500ms", "--allow-shrink"]).expect(1);
    assert_eq!(late.json["data"]["reason"], "over-budget");
    for name in ["moved", "large"] {
        fs::remove_file(world.source.join(name)).unwrap();
    }
    world.act("settle", &["--allow-shrink"]).expect(0);
    world.act("publish", &["--crash-consistent"]).expect(0);
    world.newest_is_source();
}

#[test]
fn what_was_claimed_and_had_no_time_is_not_compared_with_later() {
    let world = World::new();
    world.profile("rsync = [\"rsync\", \"--bwlimit=512\"]", "");
    file(&world, "moves", 1000, 1);
    file(&world, "stays", 1000, 2);
    next(&world);
    world.act("stage", &[]).expect(0);
    rename(&world, "moves", "moved");
    file(&world, "large", 6 << 20, 3);
    let late = world.act("settle", &["--max-time", "4s", "--allow-shrink"]).expect(1);
    assert_eq!(late.json["data"]["reason"], "over-budget");
    assert!(world.store.join(".reuse/docs/moved").exists(), "it was claimed: {late:?}");
    fs::remove_file(world.source.join("large")).unwrap();
    // Another file that is the same in all: it has not moved, and is too small to be looked up as a copy.
    let (moved, copy) = (world.source.join("moved"), world.source.join("copy"));
    ok("cp", &["-p", moved.to_str().unwrap(), copy.to_str().unwrap()]);
    rename(&world, "copy", "moved");
    let settled = world.act("settle", &["--allow-shrink"]).expect(0);
    assert_eq!(count(&settled, "moved_files"), 0);
    world.act("publish", &["--crash-consistent"]).expect(0);
    world.newest_is_source();
}

#[test]
fn what_was_put_in_its_place_before_the_time_was_over_is_in_no_snapshot() {
    let world = World::new();
    file(&world, "stays", 1000, 1);
    file(&world, "rots", 8 << 20, 2);
    let held = folder(&next(&world)).join("docs/rots");
    let time = held.metadata().unwrap().modified().unwrap();
    let open = fs::File::options().write(true).open(&held).unwrap();
    std::io::Write::write_all(&mut &open, &vec![7; 8 << 20]).unwrap();
    open.set_modified(time).unwrap();
    world.profile("rsync = [\"rsync\", \"--bwlimit=1m\"]", "");
    world.act("stage", &[]).expect(0);
    rename(&world, "rots", "d/rots");
    fs::set_permissions(world.source.join("d/rots"), fs::Permissions::from_mode(0o600)).unwrap();
    file(&world, "new", 1000, 3);
    // What rotted is found out when the rest is in its place already, and there is no time to send it.
    let late = world.act("settle", &["--max-time", "5s", "--allow-shrink"]).expect(1);
    assert_eq!(late.json["data"]["reason"], "over-budget");
    assert!(world.store.join(".partial/docs/new").exists(), "it was in its place: {late:?}");
    fs::remove_file(world.source.join("new")).unwrap();
    world.act("settle", &["--allow-shrink"]).expect(0);
    world.act("publish", &["--crash-consistent"]).expect(0);
    world.newest_is_source();
}

#[test]
fn a_file_with_all_the_links_it_may_have_begins_anew() {
    let disk = Disk::new(300);
    let world = World::on(&disk);
    file(&world, "many", 100_000, 1);
    file(&world, "other", 100_000, 2);
    let held = folder(&next(&world)).join("docs/many");
    let links = disk.path.join("links");
    fs::create_dir(&links).unwrap();
    let mut made = 0;
    // What is left is for the dates to come, and not for other names.
    while held.metadata().unwrap().nlink() < 1000 {
        made += 1;
        fs::hard_link(&held, links.join(made.to_string())).unwrap();
    }
    let copy = world.source.join("copy");
    ok("cp", &["-p", world.source.join("many").to_str().unwrap(), copy.to_str().unwrap()]);
    rename(&world, "many", "moved");
    // What changed within two seconds of a walk is looked at again the next time, and not linked as it was.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(count(&next(&world), "moved_files"), 0);
    fs::remove_file(copy).unwrap();
    let held = folder(&next(&world)).join("docs/moved");
    fill(&held, &links, &mut made);
    let ran = next(&world);
    assert_eq!((count(&ran, "lacking_paths"), count(&ran, "received_files")), (0, 1));
    assert_eq!(crate::world::warnings(&ran), ["no-more-links"], "{ran:?}");
    let anew = folder(&ran).join("docs/moved");
    assert_ne!(inode(&anew), inode(&held));
    // The checksums of what did not change are links, too.
    let ran = next(&world);
    assert_eq!(inode(&folder(&ran).join("docs/moved")), inode(&anew));
    let sums = folder(&ran).join(".meta/sha256sums");
    assert_eq!(sums.metadata().unwrap().nlink(), 2);
    fill(&sums, &links, &mut made);
    let ran = next(&world);
    assert_ne!(inode(&folder(&ran).join(".meta/sha256sums")), inode(&sums));
    assert_eq!(inode(&folder(&next(&world)).join("docs/moved")), inode(&anew));
    // Without an index all is compared, and what is the same is linked; but for what can have no link more.
    fill(&anew, &links, &mut made);
    fs::remove_file(world.state.join("index-docs")).unwrap();
    let ran = next(&world);
    assert_eq!((&first(&ran)["way"], count(&ran, "received_files")), (&json!("full"), 1), "{ran:?}");
    assert_ne!(inode(&folder(&ran).join("docs/moved")), inode(&anew));
    assert_eq!(inode(&folder(&ran).join("docs/other")), inode(&folder(&next(&world)).join("docs/other")));
}

/// Gives a file all the names that it can have.
fn fill(file: &Path, names: &Path, made: &mut u32) {
    let full = loop {
        *made += 1;
        if let Err(e) = fs::hard_link(file, names.join(made.to_string())) {
            break e;
        }
    };
    assert_eq!(full.raw_os_error(), Some(libc::EMLINK));
}

#[test]
fn what_rotted_at_the_store_and_moved_with_another_mode_is_sent() {
    let world = World::new();
    file(&world, "rots", 300_000, 1);
    file(&world, "good", 300_000, 2);
    let held = world.publish().join("docs/rots");
    let time = held.metadata().unwrap().modified().unwrap();
    use std::os::unix::fs::FileExt as _;
    let open = fs::File::options().write(true).open(&held).unwrap();
    open.write_all_at(b"rot", 1000).unwrap();
    open.set_modified(time).unwrap();
    // Nobody has verified it yet.
    for name in ["rots", "good"] {
        rename(&world, name, &format!("d/{name}"));
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(world.source.join("d").join(name), mode).unwrap();
    }
    let ran = world.snapshot(&["--allow-shrink"]).expect(0);
    world.newest_is_source();
    assert!(crate::world::warnings(&ran).contains(&"moved-and-sent"), "{ran:?}");
    assert_eq!(count(&ran, "moved_files"), 1);
    assert!((300_000..400_000).contains(&count(&ran, "sent_bytes")), "{}", first(&ran));
    let date = folder(&ran);
    world.act("verify", &["--date", date.file_name().unwrap().to_str().unwrap()]).expect(0);
}

#[test]
fn a_folder_of_nearly_all_may_get_another_name_and_is_not_lost() {
    let world = World::new();
    for n in 0..40 {
        file(&world, &format!("photos/{n}"), 70_000 + n, 1);
    }
    world.publish();
    rename(&world, "photos", "pictures");
    let ran = world.snapshot(&[]).expect(0);
    world.newest_is_source();
    assert_eq!(count(&ran, "moved_files"), 40);
    // Others in their place are no other names.
    for n in 0..20 {
        fs::remove_file(world.source.join(format!("pictures/{n}"))).unwrap();
        file(&world, &format!("pictures/new{n}"), 70_000 + n, 2);
    }
    let refused = world.snapshot(&[]).expect(78);
    let message = refused.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("20 of 41 paths of the last snapshot are gone"), "{message}");
}
