//! A disk that is full to the last block and the last inode: room is made without any, and what must stay free does.

use crate::far::Remote;
use crate::picture::picture;
use crate::prune::{nights, nine_nights, rules_there};
use crate::world::{Disk, World, dates, fill, first, folder, ok, told, warnings};

/// Disks of each kind that stores lie on, and what fills up first on them.
fn disks() -> Vec<(&'static str, Disk)> {
    vec![
        ("ext4", Disk::of("ext4", 48, &[])),
        ("ext4 without inodes", Disk::of("ext4", 48, &["-N", "800"])),
        ("xfs", Disk::of("xfs", 320, &[])),
        ("btrfs", Disk::of("btrfs", 128, &[])),
    ]
}

#[test]
fn a_prune_needs_no_room_at_all() {
    for (kind, disk) in disks() {
        for old in [false, true] {
            // Given a store with seven nights, also one that an older version made, whose state lies on the same disk,
            let world = World::on(&disk);
            nights(&world, 7);
            let (history, all) = (world.history(), world.dates());
            if old {
                for name in [".pruned", ".prune.json"] {
                    ok("rm", &["-rf", world.store.join(name).to_str().unwrap()]);
                }
            }
            // on a disk that is full to the last block and name,
            fill(&disk.path);
            assert!(std::fs::create_dir(disk.path.join("one-more")).is_err(), "{kind} is full");
            // then what the rules do not keep goes, the rest stays as it was,
            let pruned = world.act("prune", &["--keep-last=4", "--min-age=1d"]).expect(0);
            assert_eq!(
                pruned.json["data"]["removed"].as_array().unwrap().len(),
                3,
                "{kind}, old {old}: {pruned:?}"
            );
            assert_eq!(world.dates(), all[3..], "{kind}");
            assert_eq!(world.history(), history[3..], "{kind}");
            // the clock is remembered, if there was ever room for that,
            assert!(old || warnings(&pruned).is_empty(), "{kind}: {pruned:?}");
            assert!(
                world.store.join(".prune.json").exists() || warnings(&pruned) == ["clock-not-noted"],
                "{pruned:?}"
            );
            // and a second time changes nothing.
            let again = world.act("prune", &["--keep-last=4", "--min-age=1d"]).expect(0);
            assert_eq!(again.json["changed"], false);
            for folder in ["filler", "store", "state", "source"] {
                ok("rm", &["-rf", disk.path.join(folder).to_str().unwrap()]);
            }
        }
    }
}

#[test]
fn a_date_by_hand_and_one_that_is_read_on_a_full_disk() {
    let disk = Disk::of("btrfs", 128, &[]);
    let world = World::on(&disk);
    nights(&world, 5);
    let all = world.dates();
    fill(&disk.path);
    let reader = std::fs::File::open(world.store.join(&all[0]).join(".meta/lock")).unwrap();
    reader.lock_shared().unwrap();
    let then = picture(&world.store.join(&all[0]));
    world.act("prune", &["--date", &all[1], "--yes"]).expect(0);
    world.act("prune", &["--date", &all[0], "--yes"]).expect(3);
    picture(&world.store.join(&all[0])).same_as(&then);
    assert_eq!(world.dates(), [&all[..1], &all[2..]].concat());
}

#[test]
fn removed_in_place_and_cut_short_the_next_prune_goes_on() {
    // Given a date that stopped being a snapshot where there was no room to rename it, and a run that was killed then,
    let world = World::new();
    nights(&world, 6);
    let all = world.dates();
    world.act("prune", &["--keep-last=6", "--min-age=0d"]).expect(0);
    let file = world.store.join(".prune.json");
    note_going(&file, &all[0]);
    // whether or not it came to that,
    assert_eq!(world.act("prune", &["--keep-last=6", "--min-age=0d"]).expect(0).json["changed"], false);
    assert_eq!(world.dates(), all);
    note_going(&file, &all[0]);
    std::fs::remove_file(world.store.join(&all[0]).join(".meta/snapshot.json")).unwrap();
    let next = world.act("prune", &["--keep-last=6", "--min-age=0d"]).expect(0);
    // then it is completed, and nothing else is touched.
    assert_eq!(next.json["data"]["completed"], serde_json::json!([all[0]]), "{next:?}");
    assert!(warnings(&next).is_empty(), "{next:?}");
    assert_eq!(world.dates(), all[1..]);
}

/// What a prune notes before it removes a date where it lies.
fn note_going(file: &std::path::Path, date: &str) {
    let text = std::fs::read(file).unwrap();
    let halves = text.chunks(2048).map(|half| serde_json::from_slice::<serde_json::Value>(half).unwrap());
    let newest = halves.max_by_key(|half| half["ledger"]["turn"].as_u64()).unwrap();
    let plain = serde_json::json!({"believed_at": newest["ledger"]["believed_at"], "going": date});
    std::fs::write(file, plain.to_string()).unwrap();
}

#[test]
fn on_a_full_disk_another_machine_removes_no_more_than_its_limit() {
    for (kind, disk) in disks().into_iter().filter(|d| d.0 != "xfs") {
        let remote = Remote::new();
        let world = &remote.world;
        disk.unmount();
        disk.mount_at(&remote.store);
        let _mounted = crate::world::Mounted(remote.store.clone());
        let store = remote.store.to_str().unwrap();
        let owner = format!("{0}:{0}", remote.account.name);
        ok("chown", &[&owner, store]);
        ok("chmod", &["0700", store]);
        let rules = "keep_last = 2\nmin_age = \"0d\"\nmax_removals_per_day = 3\ntimezone = \"UTC\"";
        rules_there(&remote, "reserve_bytes = 0", rules);
        nine_nights(&remote);
        fill(&remote.store);
        let all = dates(&remote.store);
        // Three, and not one more today.
        world.act("prune", &[]).expect(0);
        assert_eq!(dates(&remote.store), all[3..], "{kind}");
        fill(&remote.store);
        assert_eq!(world.act("prune", &[]).expect(0).json["changed"], false, "{kind}");
        assert_eq!(dates(&remote.store), all[3..], "{kind}");
        // Where it could not be noted, nothing goes.
        std::fs::remove_file(remote.store.join(".prune.json")).unwrap();
        fill(&remote.store);
        let refused = world.act("prune", &[]).expect(1);
        assert!(told(&refused).contains("on the store's machine"), "{kind}: {refused:?}");
        assert_eq!(dates(&remote.store), all[3..], "{kind}");
    }
}

/// As a btrfs says it that is full, until its transaction has ended.
#[test]
fn a_removal_that_finds_no_room_is_tried_again() {
    let world = World::new();
    for n in 0..20 {
        world.file(&format!("d/f{n}"), "x");
    }
    let first = world.publish();
    world.publish();
    let date = first.file_name().unwrap().to_str().unwrap();
    let mut refused = std::process::Command::new("strace");
    refused.args(["-f", "-o", "/dev/null", "-e", "trace=unlinkat"]);
    // Every other one.
    refused.args(["-e", "inject=unlinkat:error=ENOSPC:when=1+2"]);
    let prune = world.command("prune", &["--date", date, "--yes"]);
    refused.arg(prune.get_program()).args(prune.get_args());
    testkit::run(&mut refused).expect(0);
    assert!(!first.exists() && std::fs::read_dir(world.store.join(".pruned")).unwrap().next().is_none());
}

#[test]
fn what_was_begun_is_given_up_and_cleared_on_a_full_disk() {
    for (kind, disk) in disks() {
        let world = World::new();
        let store = disk.path.join("store");
        crate::world::private(&store);
        let text = std::fs::read_to_string(&world.config).unwrap();
        std::fs::write(&world.config, text.replace(world.store.to_str().unwrap(), store.to_str().unwrap()))
            .unwrap();
        for n in 0..20 {
            world.file(&format!("d{}/f{n}", n % 3), &format!("content {n}"));
        }
        world.snapshot(&[]).expect(0);
        let then = picture(&store.join(dates(&store).pop().unwrap()));
        world.file("new", "new");
        world.act("stage", &[]).expect(0);
        fill(&disk.path);
        world.act("abort", &["--discard"]).expect(0);
        for name in [".partial", ".incoming", ".resume", ".reuse", ".trash"] {
            assert!(!store.join(name).exists(), "{kind}: {name}");
        }
        // The next one does not fit, says so, and leaves what is there as it is.
        fill(&disk.path);
        let full = world.snapshot(&[]);
        assert_eq!(full.code, 1, "{kind}: {full:?}");
        picture(&store.join(dates(&store).pop().unwrap())).same_as(&then);
        std::fs::remove_dir_all(disk.path.join("filler")).unwrap();
        world.snapshot(&[]).expect(0);
    }
}

/// Free bytes and inodes of the disk that `path` lies on.
fn free(path: &std::path::Path) -> (u64, u64) {
    let stat = nix::sys::statvfs::statvfs(path).unwrap();
    (stat.blocks_available() * stat.fragment_size(), stat.files_available())
}

/// A world whose store is on `disk`, and where it is.
fn apart(disk: &Disk) -> (World, std::path::PathBuf) {
    let world = World::new();
    let store = disk.path.join("store");
    crate::world::private(&store);
    reserve(&world, &store, 0);
    (world, store)
}

fn reserve(world: &World, store: &std::path::Path, bytes: u64) {
    world.write_profile(&format!(
        "[snapshot]\nstore = \"{0}\"\n[[snapshot.source]]\nname = \"docs\"\npath = \"{1}\"\n[store]\npath = \"{0}\"\nreserve_bytes = {bytes}\n",
        store.display(),
        world.source.display(),
    ));
}

/// Other content in each file of the same size.
fn contents(world: &World, files: usize, size: usize, letter: char) {
    for n in 0..files {
        world.file(&format!("d{}/f{n}", n % 3), &letter.to_string().repeat(size));
    }
}

#[test]
fn what_must_stay_free_does_also_when_the_estimate_is_nothing() {
    for (kind, disk) in [("ext4", Disk::of("ext4", 128, &[])), ("btrfs", Disk::of("btrfs", 256, &[]))] {
        // Given a store whose index is lost, and a source of which every byte is another one, at the same sizes,
        let (world, store) = apart(&disk);
        contents(&world, 30, 1 << 20, 'a');
        world.snapshot(&[]).expect(0);
        let then = picture(&store.join(dates(&store).pop().unwrap()));
        contents(&world, 30, 1 << 20, 'b');
        for index in std::fs::read_dir(&world.state).unwrap().flatten() {
            if index.file_name().to_string_lossy().contains("index") {
                ok("rm", &["-rf", index.path().to_str().unwrap()]);
            }
        }
        // when ten of its thirty megabytes are more than may be taken,
        ok("sync", &["-f", store.to_str().unwrap()]);
        let wanted = free(&store).0 - (10 << 20);
        reserve(&world, &store, wanted);
        let stopped = world.snapshot(&[]).expect(1);
        // then it stops in good order, says how much is free and what to do, and no more than a few blocks are taken.
        let said = told(&stopped);
        for word in
            [&format!("{wanted} bytes must stay free")[..], "reserve_bytes", "prune", "the next run goes on"]
        {
            assert!(said.contains(word), "{kind}: {word}: {stopped:?}");
        }
        ok("sync", &["-f", store.to_str().unwrap()]);
        assert!(free(&store).0 > wanted - (4 << 20), "{kind}: {} of {wanted}", free(&store).0);
        assert_eq!(dates(&store).len(), 1);
        picture(&store.join(&dates(&store)[0])).same_as(&then);
        // What arrived is not sent again.
        reserve(&world, &store, 0);
        let next = world.snapshot(&[]).expect(0);
        assert!(first(&next)["resumed_files"].as_u64().unwrap() > 2, "{kind}: {next:?}");
        picture(&world.source).same_as(&picture(&folder(&next).join("docs")));
    }
}

#[test]
fn inodes_stay_free_too() {
    let disk = Disk::of("ext4", 64, &["-N", "1200"]);
    let (world, store) = apart(&disk);
    contents(&world, 300, 100, 'a');
    world.snapshot(&[]).expect(0);
    contents(&world, 300, 100, 'b');
    ok("rm", &["-rf", world.state.to_str().unwrap()]);
    // Half of the disk, and so half of the inodes, of which some 900 are free.
    reserve(&world, &store, 32 << 20);
    let stopped = world.snapshot(&[]).expect(1);
    assert!(told(&stopped).contains("inodes"), "{stopped:?}");
    assert!(free(&store).1 > 560, "{}", free(&store).1);
    assert_eq!(dates(&store).len(), 1);
    reserve(&world, &store, 0);
    world.snapshot(&[]).expect(0);
}

#[test]
fn a_copy_leaves_free_what_must_stay_free_whoever_else_writes_there() {
    // Given a snapshot of 60 MB, and a disk with room enough for it when it is looked at,
    let world = World::new();
    contents(&world, 2, 1000, 'o');
    world.publish();
    let disk = Disk::of("ext4", 160, &[]);
    let to = disk.path.join("copies");
    crate::world::private(&to);
    let copy = |reserve: u64| {
        let options =
            ["--to", to.to_str().unwrap(), "--reserve-bytes", &reserve.to_string()].map(str::to_owned);
        let mut command = world.command("copy", &[]);
        command.args(options).args(["--flush-bytes", "262144"]);
        command
    };
    testkit::run(&mut copy(1)).expect(0);
    let then = picture(&to.join(&dates(&to)[0]));
    contents(&world, 60, 1 << 20, 'n');
    world.publish();
    let reserve = free(&to).0 - (70 << 20);
    let filler = disk.path.join("filler");
    let mut running = copy(reserve);
    let ran = std::thread::scope(|scope| {
        let running = scope.spawn(|| testkit::run(&mut running));
        // when somebody takes half of that while it is copied,
        crate::world::until("it is copied", || {
            std::fs::read_dir(to.join(".incoming/docs")).is_ok_and(|list| list.count() > 0)
        });
        ok("fallocate", &["-l", "40M", filler.to_str().unwrap()]);
        running.join().unwrap()
    });
    // then it stops, and goes on when there is room.
    assert!(told(&ran.expect(1)).contains("as full as it may be"));
    assert!(free(&to).0 > reserve - (4 << 20), "{} of {reserve}", free(&to).0);
    picture(&to.join(&dates(&to)[0])).same_as(&then);
    std::fs::remove_file(&filler).unwrap();
    let next = testkit::run(&mut copy(1)).expect(0);
    assert!(next.json["data"]["resumed_files"].as_u64().unwrap() > 0, "{next:?}");
    let newest = to.join(dates(&to).pop().unwrap()).join("docs");
    picture(&world.source).same_as(&picture(&newest));
}
