//! The promise itself: the newest snapshot is what the source is, and every older one is what it was.
//! Whatever happens to a source between snapshots.
//!
//! `LINK_SYNC_CASES=500` tries more, `LINK_SYNC_SEED=7` the same as the run that said so, and `LINK_SYNC_THREADS=16` so
//! many at once; a failure prints the smallest list of changes that was found.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};

use testkit::Ran;

use crate::changes::{self, Change, KINDS};
use crate::picture::{Picture, picture};
use crate::random;
use crate::world::{Account, Disk, Rsyncs, World, first, give_back, ok, private, rsyncs};

/// Snapshots that were compared with their source.
static COMPARED: AtomicU32 = AtomicU32::new(0);
/// Files that had moved, and were not sent.
static MOVED: AtomicU32 = AtomicU32::new(0);

/// One step of a story: one more snapshot.
#[derive(Clone, Debug)]
struct Step {
    /// The index is lost before it.
    lose: bool,
    /// What changes before anything is taken.
    first: Vec<Change>,
    /// What changes between `stage` and each `settle`. All but the last settle have so many milliseconds, and
    /// may fail for want of time. None: one `snapshot` does it all.
    rounds: Vec<(u64, Vec<Change>)>,
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let change = || vec((0..KINDS, any::<u32>(), any::<u32>()), 0..25);
    let rounds = vec((0..250u64, change()), 0..=3);
    let step = (proptest::bool::weighted(0.3), change(), rounds);
    vec(step.prop_map(|(lose, first, rounds)| Step { lose, first, rounds }), 1..=most)
}

fn cases(usual: u32) -> u32 {
    random::number("LINK_SYNC_CASES", usual)
}

/// Stories told at once.
fn threads() -> u32 {
    random::number("LINK_SYNC_THREADS", 6)
}

/// Another one each time, unless one is asked for.
fn seed() -> u32 {
    random::seed("LINK_SYNC_SEED")
}

/// Runs `story` for many random lists of steps, with panics as failures that can be shrunk.
fn try_many(seed: u32, cases: u32, most: usize, story: impl Fn(&[Step])) {
    random::try_many(seed, cases, 80, &steps(most), |steps| {
        let story = std::panic::AssertUnwindSafe(|| story(steps));
        let Err(panic) = std::panic::catch_unwind(story) else { return String::new() };
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let said = text.or_else(|| panic.downcast_ref::<String>().cloned());
        said.unwrap_or_else(|| "it panicked".into())
    });
    let (compared, moved) = (COMPARED.load(Ordering::Relaxed), MOVED.load(Ordering::Relaxed));
    eprintln!("{compared} snapshots were compared so far, with {moved} files that had moved");
    assert!(moved > 0 || compared < 50, "no file that moved was found");
}

/// Forgets what the store holds, so that the next run must compare everything.
fn lose_index(world: &World) -> bool {
    std::fs::remove_file(world.state.join("index-docs")).is_ok()
}

/// What the newest snapshot of a store under an ordinary account gives back.
fn restored(rsync: &str, snapshot: &Path, to: &Path) -> Picture {
    private(to);
    give_back(rsync, snapshot, to);
    picture(to)
}

/// stage, a settle after each change (all but the last in a hurry), publish. Also what the source was before the last.
fn in_steps(world: &World, hurried: &[(u64, Vec<Change>)], last: &[Change]) -> (Picture, Ran) {
    world.act("stage", &["--allow-shrink"]).expect(0);
    for (milliseconds, list) in hurried {
        changes::apply_all(&world.source, list);
        let settled = world.act("settle", &["--allow-shrink", "--max-time", &format!("{milliseconds}ms")]);
        let over = settled.json["data"]["reason"] == "over-budget";
        assert_eq!(settled.code, i32::from(over), "{settled:?}");
    }
    changes::apply_all(&world.source, last);
    let before = picture(&world.source);
    world.act("settle", &["--allow-shrink"]).expect(0);
    (before, world.act("publish", &["--crash-consistent"]).expect(0))
}

/// With `restore`, an rsync, the store keeps owners in attributes, and what is compared is what comes back. `program` is
/// link-sync where the store's account can run it.
fn story(
    disk: &RefCell<Disk>,
    steps: &[Step],
    make: impl Fn(&Disk) -> World,
    restore: Option<&str>,
    program: &Path,
) {
    let disk = disk.borrow();
    let world = make(&disk);
    changes::begin(&world.source);
    // What is older than two seconds may be believed by its stamps.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    world.snapshot(&[]).expect(0);
    let mut history: Vec<(String, Picture)> = Vec::new();
    let quiet = Step { lose: false, first: Vec::new(), rounds: Vec::new() };
    for (n, step) in std::iter::once(&quiet).chain(steps).enumerate() {
        changes::apply_all(&world.source, &step.first);
        let full = step.lose && lose_index(&world);
        let (before, ran) = match step.rounds.split_last() {
            None => (picture(&world.source), world.snapshot(&["--allow-shrink"]).expect(0)),
            Some((last, hurried)) => in_steps(&world, hurried, &last.1),
        };
        assert_eq!(first(&ran)["way"], if full { "full" } else { "index" });
        before.same_as(&picture(&world.source));
        let date = ran.json["data"]["date"].as_str().unwrap().to_owned();
        let newest = world.store.join(&date);
        let held = match restore {
            Some(rsync) => restored(rsync, &newest.join("docs"), &world.dir.join(format!("restored-{n}"))),
            None => picture(&newest.join("docs")),
        };
        let wrong = before.differences(&held);
        assert!(
            wrong.is_empty(),
            "step {n} (full: {full}), the newest is not the source:\n{}",
            wrong.join("\n")
        );
        for (old, then) in &history {
            let wrong = then.differences(&picture(&world.store.join(old)));
            assert!(wrong.is_empty(), "step {n} (full: {full}) changed {old}:\n{}", wrong.join("\n"));
        }
        // Its checksums name every path of it as it is, and none more.
        world.act("verify", &["--date", &date]).expect(0);
        // A copy now and then: each must be the snapshot, and change none before it.
        if n % 2 == 0 {
            let copies = world.dir.join("copies");
            private(&copies);
            let mut copy = std::process::Command::new(program);
            copy.arg("copy").arg("--config").arg(&world.config).args(["--reserve-bytes", "1"]);
            testkit::run(copy.arg("--store").arg(&world.store).arg("--to").arg(&copies)).expect(0);
            for copied in crate::world::dates(&copies) {
                let original = picture(&world.store.join(&copied).join("docs"));
                let wrong = original.differences(&picture(&copies.join(&copied).join("docs")));
                assert!(wrong.is_empty(), "step {n}, the copy of {copied} differs:\n{}", wrong.join("\n"));
            }
        }
        history.push((date, picture(&newest)));
        COMPARED.fetch_add(1, Ordering::Relaxed);
        let moved = first(&ran)["moved_files"].as_u64().unwrap();
        MOVED.fetch_add(u32::try_from(moved).unwrap(), Ordering::Relaxed);
    }
}

/// A world on `disk`, in an empty folder of it.
fn fresh(disk: &Disk) -> World {
    for entry in std::fs::read_dir(&disk.path).unwrap() {
        ok("rm", &["-rf", "--", entry.unwrap().path().to_str().unwrap()]);
    }
    World::on(disk)
}

#[test]
fn a_snapshot_is_what_the_source_is_and_history_stays_what_it_was() {
    // Several at a time: each waits more than it works, as dates are whole seconds.
    let (seed, pairs) = (seed(), rsyncs());
    std::thread::scope(|scope| {
        for n in 0..threads() {
            let Rsyncs { near, far } = pairs[n as usize % pairs.len()].clone();
            scope.spawn(move || {
                let disk = RefCell::new(Disk::new(600));
                let make = |disk: &Disk| {
                    let world = fresh(disk);
                    world.profile(&format!("rsync = [\"{near}\"]"), &format!("rsync = [\"{far}\"]"));
                    world
                };
                try_many(seed.wrapping_add(n), cases(24).div_ceil(threads()), 4, |steps| {
                    story(&disk, steps, make, None, &testkit::bin("link-sync"))
                });
            });
        }
    });
}

#[test]
fn also_under_an_ordinary_account_behind_ssh_with_every_rsync_at_either_end() {
    let account = Account::new();
    let sshd = testkit::sshd::Sshd::start(&account.name);
    let program = account.home.join("link-sync");
    std::fs::copy(testkit::bin("link-sync"), &program).unwrap();
    let disk = RefCell::new(Disk::new(3000));
    let pairs = rsyncs();
    for (n, Rsyncs { near, far }) in pairs.iter().enumerate() {
        // The far end's, where the account can run it.
        let rsync = account.home.join(format!("rsync-{n}"));
        ok("sh", &["-c", "cp \"$(command -v \"$1\")\" \"$2\"", "sh", far, rsync.to_str().unwrap()]);
        let serve = account.home.join(format!("serve-{n}"));
        let words = format!("exec '{}' \"$@\" --rsync '{}'", program.display(), rsync.display());
        testkit::script(&serve, &format!("#!/bin/sh\n{words}\n"));
        let make = |disk: &Disk| {
            let mut world = fresh(disk);
            // On the same disk, in a folder the account can reach.
            let home = disk.path.join("s2");
            for (dir, mode) in [(&home, "0711"), (&home.join("store"), "0700")] {
                ok("install", &["-d", "-m", mode, "-o", &account.name, dir.to_str().unwrap()]);
            }
            ok(
                "chmod",
                &["0711", disk.path.to_str().unwrap(), disk.path.parent().unwrap().to_str().unwrap()],
            );
            world.store = home.join("store");
            world.write_profile(&format!(
                "[snapshot]\nstore = \"{}@127.0.0.1:{}\"\nrsync = [\"{near}\"]\n\
                 [snapshot.ssh]\nport = {}\nidentity = \"{}\"\nknown_hosts = \"{}\"\nremote_program = \"{}\"\n\
                 [[snapshot.source]]\nname = \"docs\"\npath = \"{}\"\n",
                account.name,
                world.store.display(),
                sshd.port,
                sshd.identity.display(),
                sshd.known_hosts.display(),
                serve.display(),
                world.source.display(),
            ));
            world
        };
        let cases = cases(24).div_ceil(4).div_ceil(u32::try_from(pairs.len()).unwrap());
        try_many(seed(), cases, 3, |steps| story(&disk, steps, make, Some(near), &program));
    }
}

#[test]
fn a_sparse_file_that_was_only_touched_stays_sparse() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let world = World::new();
    let path = world.source.join("disk.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"middle", 30_000_000).unwrap();
    drop(file);
    let touch = || {
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::now())
    };
    for _ in 0..2 {
        let held = world.publish().join("docs/disk.img");
        assert!(
            held.metadata().unwrap().blocks() * 512 < 1 << 20,
            "{} blocks",
            held.metadata().unwrap().blocks()
        );
        world.newest_is_source();
        touch().unwrap();
    }
    // In a later pass, too.
    world.act("stage", &[]).expect(0);
    touch().unwrap();
    world.act("settle", &[]).expect(0);
    world.act("publish", &["--crash-consistent"]).expect(0);
    let held = world.store.join(world.dates().pop().unwrap()).join("docs/disk.img");
    assert!(held.metadata().unwrap().blocks() * 512 < 1 << 20);
    world.newest_is_source();
}
