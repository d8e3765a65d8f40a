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

/// What a person or a repair of the file system does to a snapshot in the copy: everything that can go, goes.
fn damage(date: &Path) {
    let docs = date.join("docs");
    std::fs::remove_file(docs.join("gone")).unwrap();
    std::fs::remove_dir_all(docs.join("d/e")).unwrap();
    std::fs::remove_file(docs.join("link")).unwrap();
    // Other things in the place of what was there.
    std::fs::remove_dir_all(docs.join("f")).unwrap();
    std::os::unix::fs::symlink("/etc", docs.join("f")).unwrap();
    std::fs::remove_file(docs.join("file")).unwrap();
    std::fs::create_dir(docs.join("file")).unwrap();
    std::fs::write(docs.join("file/in"), "foreign").unwrap();
    std::fs::write(docs.join("d/foreign"), "foreign").unwrap();
    // Cut off.
    std::fs::File::options().write(true).open(docs.join("short")).unwrap().set_len(3).unwrap();
    let top = std::fs::File::open(docs.join("g")).unwrap();
    top.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
}

#[test]
fn what_the_base_has_lost_is_sent_again_and_never_handed_on() {
    let world = World::new();
    for name in ["gone", "file", "short", "kept", "edited", "d/kept", "d/e/1", "d/e/2", "f/1", "g/1"] {
        world.file(name, &format!("{name} as it was"));
    }
    std::os::unix::fs::symlink("kept", world.source.join("link")).unwrap();
    std::fs::create_dir(world.source.join("empty")).unwrap();
    // A time no ext4 has room for is no hole.
    ok("touch", &["-d", "1800-01-01", world.source.join("g/1").to_str().unwrap()]);
    world.publish();
    let to = folder(&world);
    copy(&world, &to, &[]).expect(0);
    let first = world.dates().remove(0);
    // All there: nothing to be said.
    world.file("edited", "two");
    world.publish();
    let whole = copy(&world, &to, &["--date", &world.dates()[1]]).expect(0);
    assert_eq!((&whole.json["data"]["lacking_paths"], warnings(&whole).len()), (&0.into(), 0), "{whole:?}");

    let second = world.dates().remove(1);
    damage(&to.join(&second));
    world.file("edited", "three");
    world.publish();
    let third = world.dates().remove(2);
    let filled = copy(&world, &to, &[]).expect(0);
    assert_eq!(filled.json["data"]["base_date"], *second);
    // gone, d/e, d/e/1, d/e/2, link, f, f/1, file, short.
    assert_eq!(filled.json["data"]["lacking_paths"], 9, "{filled:?}");
    assert_eq!(warnings(&filled), ["base-lacks", "base-has-more"]);
    // It was noted before the copy that fills them was published.
    let noted = std::fs::read_to_string(world.state.join("copy-lacks.json")).unwrap();
    let noted: serde_json::Value = serde_json::from_str(&noted).unwrap();
    assert_eq!((&noted["base_date"], &noted["lacking_paths"]), (&second.as_str().into(), &9.into()));
    let said = filled.json["warnings"][0]["message"].as_str().unwrap();
    assert!(said.contains("9 paths are missing in the copy of") && said.contains("d/e/1"), "{said}");
    assert!(filled.json["warnings"][1]["message"].as_str().unwrap().contains("d/foreign"));
    same(&world, &to, &third);
    // What is still good is shared, and what was sent again has its line in the new date's list.
    let inode = |date: &str| to.join(date).join("docs/d/kept").metadata().unwrap().ino();
    assert_eq!(inode(&first), inode(&third));
    let list = std::fs::read_to_string(to.join(&third).join(".meta/sha256sums.part")).unwrap();
    for name in ["gone", "short", "d/e/2", "f/1", "file", "edited"] {
        assert!(list.contains(&format!("  docs/{name}\n")), "{name}: {list}");
    }

    // A whole source.
    std::fs::remove_dir_all(to.join(&third).join("docs")).unwrap();
    world.file("edited", "four");
    world.publish();
    let fourth = world.dates().remove(3);
    let filled = copy(&world, &to, &[]).expect(0);
    assert_eq!((filled.json["data"]["base_date"].as_str(), warnings(&filled).len()), (Some(&*third), 1));
    same(&world, &to, &fourth);
    // Whole again.
    world.file("edited", "five");
    world.publish();
    let last = copy(&world, &to, &[]).expect(0);
    assert_eq!((&last.json["data"]["copied_files"], warnings(&last).len()), (&1.into(), 0), "{last:?}");
    same(&world, &to, &world.dates()[4]);

    // A date that has lost its description is named, and not begun with.
    std::fs::remove_file(to.join(&world.dates()[4]).join(".meta/snapshot.json")).unwrap();
    world.file("edited", "six");
    world.publish();
    let last = copy(&world, &to, &[]).expect(0);
    assert_eq!(last.json["data"]["damaged_dates"], serde_json::json!([world.dates()[4]]));
    assert_eq!(last.json["data"]["base_date"], *fourth);
    same(&world, &to, &world.dates()[5]);
}

/// Files of `to` that no list covers: none of the dates that have the inode lists it under a name it has there. What is
/// listed must be right, too.
#[track_caller]
fn uncovered(to: &Path) -> Vec<String> {
    let mut listed = std::collections::HashSet::new();
    for date in dates(to) {
        let top = to.join(&date);
        let Ok(list) = std::fs::read_to_string(top.join(".meta/sha256sums.part")) else { continue };
        if list.is_empty() {
            continue;
        }
        let mut check = std::process::Command::new("sha256sum");
        check.args(["-c", "--quiet", "--strict", ".meta/sha256sums.part"]).current_dir(&top);
        let checked = check.output().unwrap();
        assert!(checked.status.success(), "{date}: {}", String::from_utf8_lossy(&checked.stdout));
        for line in list.lines() {
            listed.insert(top.join(&line[66..]).symlink_metadata().unwrap().ino());
        }
    }
    let mut missing = Vec::new();
    for date in dates(to) {
        let find = ok("find", &[to.join(&date).join("docs").to_str().unwrap(), "-type", "f"]);
        let files =
            find.lines().filter(|f| !listed.contains(&Path::new(f).symlink_metadata().unwrap().ino()));
        missing.extend(files.map(str::to_owned));
    }
    missing
}

/// Seven dates, one of them copied late, each with its part of a list.
fn seven_dates(world: &World) -> PathBuf {
    let to = folder(world);
    for n in 0..60 {
        world.file(&format!("d{}/f{n}", n % 5), &format!("content {n}"));
        world.file(&format!("d{}.txt", n % 5), "beside a folder");
    }
    for day in 0..7 {
        world.file(&format!("d1/new{day}"), &format!("of day {day}"));
        world.file("d0/f5", &format!("edited on day {day}"));
        if day > 0 {
            world.file(&format!("d2/f{}", 2 + 5 * day), &format!("edited on day {day}"));
            std::fs::remove_file(world.source.join(format!("d3/f{}", 3 + 5 * day))).unwrap();
        }
        if day == 4 {
            // A folder that comes and goes.
            std::fs::rename(world.source.join("d4"), world.source.join("moved")).unwrap();
        }
        world.publish();
        if day != 2 {
            copy(world, &to, &[]).expect(0);
        }
    }
    let late = copy(world, &to, &["--date", &world.dates()[2]]).expect(0);
    assert_eq!(late.json["data"]["base_date"], *world.dates()[6]);
    to
}

/// The store is lost, and comes back from the copy.
#[test]
fn a_copy_is_copied_back_date_by_date_with_its_lists() {
    let world = World::new();
    let to = seven_dates(&world);
    let back = world.dir.join("back");
    private(&back);
    // In the order in which they came.
    let mut order = world.dates();
    let late = order.remove(2);
    order.push(late);
    for date in order {
        let from = ["--store", to.to_str().unwrap(), "--date", &date];
        let mut command = std::process::Command::new(testkit::bin("link-sync"));
        command.args(["copy", "--reserve-bytes", "1", "--to"]).arg(&back).args(from);
        testkit::run(command.arg("--state-dir").arg(world.dir.join("another"))).expect(0);
        same(&world, &back, &date);
    }
    assert_eq!(dates(&back), world.dates());
    assert_eq!(uncovered(&back), Vec::<String>::new());
}

#[track_caller]
fn prune(world: &World, to: &Path, options: &[&str]) -> Ran {
    let store = ["--store", to.to_str().unwrap(), "--min-age", "0d"];
    world.act("prune", &store.iter().chain(options).copied().collect::<Vec<_>>())
}

#[test]
fn each_file_of_each_date_stays_in_a_list_whatever_goes() {
    let world = World::new();
    let to = seven_dates(&world);
    let names = world.dates();
    assert_eq!(uncovered(&to), [""; 0]);
    // The oldest; one in the middle; the one that was copied late; several at once.
    for date in [&names[0], &names[3], &names[2]] {
        prune(&world, &to, &["--date", date, "--yes"]).expect(0);
        assert_eq!(uncovered(&to), [""; 0], "after {date}");
    }
    // What a run left that was killed before or after it had replaced a list: nothing is added twice.
    let list = |date: &str| to.join(date).join(".meta/sha256sums.part");
    let (old, kept) = (std::fs::read_to_string(list(&names[1])).unwrap(), &names[6]);
    let own = std::fs::read_to_string(list(kept)).unwrap();
    let twice = prune(&world, &to, &["--keep-last", "2", "--dry-run"]).expect(0);
    assert_eq!(twice.json["data"]["removed"], serde_json::json!([names[1], names[4]]));
    std::fs::write(to.join(&names[5]).join(".meta/.sha256sums.part.new"), &old[..old.len() / 2]).unwrap();
    prune(&world, &to, &["--keep-last", "2"]).expect(0);
    assert_eq!((uncovered(&to), dates(&to).len()), (Vec::new(), 2));
    assert!(!to.join(&names[5]).join(".meta/.sha256sums.part.new").exists());
    prune(&world, &to, &["--keep-last", "1"]).expect(0);
    assert_eq!((uncovered(&to), dates(&to)), (Vec::new(), vec![kept.clone()]));
    let all = std::fs::read_to_string(list(kept)).unwrap();
    assert!(own.lines().all(|line| all.lines().any(|l| l == line)));
    // As the store here knows it: the same files, each once.
    let here = std::fs::read_to_string(world.store.join(kept).join(".meta/sha256sums")).unwrap();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&all), sorted(&here));
}

#[test]
fn killed_at_any_moment_of_a_prune_the_lists_are_whole() {
    let world = World::new();
    let to = seven_dates(&world);
    let again = world.dir.join("again");
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    let mut left = std::collections::BTreeSet::new();
    for round in 0..24u64 {
        ok("rm", &["-rf", again.to_str().unwrap()]);
        ok("cp", &["-a", to.to_str().unwrap(), again.to_str().unwrap()]);
        let mut command = world.command("prune", &["--store", again.to_str().unwrap(), "--min-age", "0d"]);
        let mut child = command
            .args(["--keep-last", "2", "--max-gap", "30d"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let heir = again.join(&world.dates()[5]).join(".meta/sha256sums.part");
        match round {
            // As soon as the first list is handed on, or a little later each time.
            0 => until("a list grows", || lines(&heir) > lines(&to.join(heir.strip_prefix(&again).unwrap()))),
            _ => std::thread::sleep(std::time::Duration::from_millis(4 + 3 * round)),
        }
        kill(child.id(), "-KILL");
        child.wait().unwrap();
        let lists =
            dates(&again).iter().map(|d| again.join(d).join(".meta/sha256sums.part")).collect::<Vec<_>>();
        left.insert((lists.len(), lists.iter().map(|list| lines(list)).sum::<usize>()));
        assert_eq!(uncovered(&again), [""; 0], "round {round}");
        prune(&world, &again, &["--keep-last", "2"]).expect(0);
        assert_eq!((uncovered(&again), dates(&again).len()), (Vec::new(), 2), "round {round}");
    }
    eprintln!("dates and lines that were left: {left:?}");
}

#[test]
fn a_date_that_cannot_hand_on_its_list_goes_and_that_is_told() {
    let world = World::new();
    let to = seven_dates(&world);
    let oldest = world.dates().remove(0);
    let list = to.join(&oldest).join(".meta/sha256sums.part");
    let text = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, text.replacen("  docs/d0/f0\n", "\n", 1)).unwrap();
    let gone = prune(&world, &to, &["--date", &oldest, "--yes"]).expect(3);
    assert_eq!(warnings(&gone), ["list-not-handed-on"]);
    assert_eq!(gone.json["data"]["unlisted"][0][0], *oldest);
    // All but the one line.
    let missing = uncovered(&to);
    assert!(missing.iter().all(|path| path.ends_with("docs/d0/f0")) && missing.len() == 6, "{missing:?}");
}

#[test]
fn of_what_is_limited_no_more_goes_within_a_day() {
    let world = World::new();
    let to = seven_dates(&world);
    let limited = ["--keep-last", "2", "--max-removals-per-day", "3"];
    let look = prune(&world, &to, &[&limited[..], &["--dry-run"]].concat()).expect(0);
    let first = prune(&world, &to, &limited).expect(0);
    assert_eq!(look.json["data"]["removed"], first.json["data"]["removed"]);
    assert_eq!((warnings(&first), dates(&to).len()), (vec!["removal-limit"], 4));
    assert_eq!(first.json["data"]["postponed"].as_array().unwrap().len(), 2);
    // Neither the same day again, nor after a cut: it is noted before they go.
    assert_eq!(prune(&world, &to, &limited).expect(0).json["changed"], false);
    let state = to.join(".prune.json");
    let halves = std::fs::read_to_string(&state).unwrap();
    let noted = halves.lines().map(|half| serde_json::from_str::<serde_json::Value>(half).unwrap());
    let noted = noted.max_by_key(|half| half["ledger"]["turn"].as_u64()).unwrap();
    let removals = noted["ledger"]["removals"].as_array().unwrap();
    assert_eq!(removals.iter().map(|r| r[1].as_u64().unwrap()).sum::<u64>(), 3, "{halves}");
    // As it was written before there were halves, and a day ago.
    let early = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(25);
    std::fs::write(&state, serde_json::json!({"for_clients": [early.to_string()]}).to_string()).unwrap();
    prune(&world, &to, &limited).expect(0);
    assert_eq!(dates(&to).len(), 2);
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
