//! A local user who means harm leads root nowhere else, whatever lies in folders that root works in.
//! Also what is exchanged there all the time; and whatever root's right to be somebody comes to, it is never used by
//! mistake.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use testkit::{ODD_CALLERS, Ran, judge, oddly, run, script};

use crate::checksums::flip;
use crate::picture::{Picture, picture};
use crate::world::{Account, Mounted, World, folder, ok, private, told, until};

/// A store that an account owns, with two dates; and what is none of its business, which it would like root to change or read.
struct Theirs {
    world: World,
    account: Account,
    outside: PathBuf,
    before: Picture,
    first: PathBuf,
    second: PathBuf,
}

impl Theirs {
    fn new() -> Theirs {
        let (world, account) = (World::new(), Account::new());
        for n in 0..20 {
            world.file(&format!("d/{n}"), &format!("{n} ").repeat(400));
        }
        std::thread::sleep(Duration::from_millis(2100));
        // The account itself has written it.
        std::fs::set_permissions(&world.dir, PermissionsExt::from_mode(0o711)).unwrap();
        ok("chown", &[&account.name, world.store.to_str().unwrap()]);
        let program = account.home.join("link-sync");
        std::fs::copy(testkit::bin("link-sync"), &program).unwrap();
        let config = account.folder("etc").join("home.toml");
        let profile = std::fs::read_to_string(&world.config).unwrap();
        let (ours, theirs) =
            (world.state.display().to_string(), account.folder("state").display().to_string());
        std::fs::write(&config, profile.replace(&ours, &theirs)).unwrap();
        std::fs::set_permissions(&config, PermissionsExt::from_mode(0o600)).unwrap();
        ok("chown", &[&account.name, config.to_str().unwrap()]);
        let publish = || {
            let mut snapshot = Command::new("runuser");
            snapshot.args(["-u", &account.name, "--"]).arg(&program).args(["snapshot", "--crash-consistent"]);
            folder(&run(snapshot.arg("--config").arg(&config).current_dir("/")).expect(0))
        };
        let first = publish();
        world.file("new", "new");
        let second = publish();
        let outside = world.dir.join("outside");
        private(&outside.join("d"));
        private(&outside.join("docs/d"));
        for name in ["secret", "d/3", "docs/d/3"] {
            std::fs::write(outside.join(name), "root's own").unwrap();
            std::fs::set_permissions(outside.join(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        let before = picture(&outside);
        Theirs { world, account, outside, before, first, second }
    }

    fn date(&self) -> &str {
        self.first.file_name().unwrap().to_str().unwrap()
    }

    /// What root does with such a store.
    fn works(&self) -> Vec<(&'static str, Vec<String>)> {
        let copies = self.world.dir.join("copies").display().to_string();
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect();
        vec![
            ("list", words(&[])),
            ("list", words(&["--sizes"])),
            ("find", words(&["--name", "3"])),
            ("diff", words(&["--from", self.date()])),
            ("verify", words(&[])),
            ("verify", words(&["--repair"])),
            ("copy", words(&["--to", &copies, "--reserve-bytes", "1"])),
            ("restore", words(&["--to", &format!("{copies}-restored"), "--yes"])),
            ("prune", words(&["--keep-last", "9", "--dry-run"])),
            ("prune", words(&["--keep-last", "9"])),
            ("prune", words(&["--date", self.date(), "--yes"])),
        ]
    }

    #[track_caller]
    fn does(&self, action: &str, options: &[String]) -> Ran {
        let command = self.world.command(action, &options.iter().map(String::as_str).collect::<Vec<_>>());
        let mut bounded = Command::new("timeout");
        bounded.args(["-s", "KILL", "60"]).arg(command.get_program()).args(command.get_args());
        run(&mut bounded)
    }

    #[track_caller]
    fn outside_is_as_it_was(&self, what: &str) {
        let list = self.before.differences(&picture(&self.outside));
        assert!(list.is_empty(), "{what}:\n{}", list.join("\n"));
    }
}

#[test]
fn a_right_that_cannot_be_given_back_ends_it() {
    // Given a store of an account, something damaged in it, and a copy that only root can read,
    let theirs = Theirs::new();
    let (world, store) = (&theirs.world, &theirs.world.store);
    let copies = world.dir.join("copies");
    ok("cp", &["-a", store.to_str().unwrap(), copies.to_str().unwrap()]);
    ok("chown", &["0", copies.to_str().unwrap()]);
    ok("chmod", &["0700", copies.to_str().unwrap()]);
    world.file("d/3", "changed");
    let mut ended = 0;
    for n in 1..=8 {
        flip(&theirs.second.join("docs/d/3"), n);
        // when the kernel refuses one change of rights or the other,
        let mut refused = Command::new("strace");
        refused.args(["-f", "-o", "/dev/null", "-e", "trace=setresuid", "-e"]);
        refused.arg(format!("inject=setresuid:error=EPERM:when={n}"));
        let verify = world.command("verify", &["--repair", "--from", copies.to_str().unwrap()]);
        refused.arg(verify.get_program()).args(verify.get_args());
        let out = refused.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        // then it fails, or does without, or ends at once,
        let aborted = out.status.signal() == Some(6);
        let said = String::from_utf8_lossy(&out.stderr).contains("ended at once");
        // (without a word where only one of several threads was refused: then glibc ends it, nptl/nptl_setxid.c)
        assert!(aborted || !said, "refusal {n}: {out:?}");
        ended += u32::from(aborted);
        // (what cannot become root to look elsewhere looks at the next place)
        assert!(aborted || text.contains("exit_code"), "refusal {n}: {out:?}");
        // and nothing in the store has become root's.
        assert_eq!(
            ok("find", &[store.to_str().unwrap(), "!", "-user", &theirs.account.name]),
            "",
            "refusal {n}"
        );
        ok("rm", &["-rf", store.join(".repair").to_str().unwrap()]);
        world.act("verify", &["--repair", "--from", copies.to_str().unwrap()]);
        let text = std::fs::read_to_string(theirs.second.join("docs/d/3")).unwrap();
        assert_eq!(text, "3 ".repeat(400), "refusal {n}");
    }
    assert!(ended >= 2, "a return to the account, and one to root: {ended}");
}

#[test]
fn a_store_is_not_where_somebody_elses_link_leads() {
    // Given a store of root's own, and an account that has put a link to it where its own store was,
    let world = World::new();
    world.file("a", "a");
    world.publish();
    world.publish();
    let date = world.dates().remove(0);
    let before = world.history();
    let account = Account::new();
    let link = account.home.join("store");
    symlink(&world.store, &link).unwrap();
    ok("chown", &["-h", &account.name, link.to_str().unwrap()]);
    let link = link.to_str().unwrap();
    // when root works on that store,
    for options in [
        &["prune", "--date", &date, "--yes"][..],
        &["prune", "--keep-last", "1"],
        &["verify"],
        &["verify", "--repair"],
        &["list"],
        &["snapshot", "--crash-consistent"],
    ] {
        // then it is told, and nothing happens to the other one.
        let ran = world.act(options[0], &[&options[1..], &["--store", link]].concat()).expect(77);
        assert!(told(&ran).contains("symbolic link"), "{options:?}: {ran:?}");
        assert_eq!(world.history(), before, "{options:?}");
    }
}

#[test]
fn what_an_account_plants_in_its_store_leads_root_nowhere() {
    // Given each name that link-sync uses in a store, and each thing that can be planted there,
    type Plant<'a> = (&'a str, &'a dyn Fn(&Path, &Path));
    let plants: [Plant<'_>; 6] = [
        ("a link to a file", &|at, outside| symlink(outside.join("secret"), at).unwrap()),
        ("a link to a folder", &|at, outside| symlink(outside, at).unwrap()),
        ("a link to nothing", &|at, outside| symlink(outside.join("made"), at).unwrap()),
        ("a FIFO", &|at, _| drop(ok("mkfifo", &[at.to_str().unwrap()]))),
        ("a device", &|at, _| drop(ok("mknod", &[at.to_str().unwrap(), "c", "1", "5"]))),
        ("a folder of links", &|at, outside| {
            private(at);
            for name in ["d", "new", "docs", "snapshot.json", "lock", "0", "2001-01-01T00-00-00Z"] {
                symlink(outside.join("docs"), at.join(name)).unwrap();
            }
        }),
    ];
    let names = [
        ".lock",
        ".prune.lock",
        ".prune.json",
        ".verified",
        ".damaged",
        ".pins",
        ".pruned",
        ".repair",
        ".set-aside",
        ".store-id",
        "latest",
        "FIRST/.meta",
        "FIRST/.meta/lock",
        "FIRST/.meta/mtree",
        "FIRST/.meta/sha256sums",
        "FIRST/.meta/snapshot.json",
        "FIRST/docs",
        "FIRST/docs/d",
        "FIRST/docs/d/3",
    ];
    let theirs = Theirs::new();
    let (world, store) = (&theirs.world, &theirs.world.store);
    let whole = world.dir.join("whole");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    ok("cp", &["-a", &text(store), &text(&whole)]);
    let works = theirs.works();
    for (n, name) in names.iter().enumerate() {
        for (m, (kind, plant)) in plants.iter().enumerate() {
            let at = store.join(name.replace("FIRST", theirs.date()));
            ok("rm", &["-rf", &text(&at)]);
            plant(&at, &theirs.outside);
            ok("chown", &["-hR", &theirs.account.name, &text(&at)]);
            // when root works on it (all of it over all names, some for each),
            for (k, (action, options)) in works.iter().enumerate() {
                if (n + m + k) % 3 != 0 && *action != "verify" {
                    continue;
                }
                let ran = theirs.does(action, options);
                // then it ends, whatever comes of it, and nothing outside has been changed, or read into what it makes.
                let what = format!("{kind} as {name}, {action} {options:?}");
                assert!([0, 1, 3, 69, 75, 77, 78].contains(&ran.code), "{what}: {ran:?}");
                theirs.outside_is_as_it_was(&what);
                for made in ["copies", "copies-restored"] {
                    let made = world.dir.join(made);
                    if made.exists() {
                        let read = ["-rl", "root's own", made.to_str().unwrap()];
                        let grep = Command::new("grep").args(read).output().unwrap();
                        assert!(grep.stdout.is_empty(), "{what}: {}", String::from_utf8_lossy(&grep.stdout));
                        std::fs::remove_dir_all(&made).unwrap();
                    }
                }
            }
            ok("rm", &["-rf", &text(store)]);
            ok("cp", &["-a", &text(&whole), &text(store)]);
        }
    }
}

/// Exchanges two names for each other, as fast as it goes, until it is dropped.
struct Swapping<'scope> {
    stop: &'scope AtomicBool,
}

impl Drop for Swapping<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Does `work` while the account `uid` exchanges each pair of names all the time; at least `times`.
fn while_swapping(uid: u32, pairs: &[(PathBuf, PathBuf)], times: u64, mut work: impl FnMut()) {
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = Swapping { stop: &stop };
        scope.spawn(|| {
            // This thread alone, and with it go root's rights to files.
            nix::unistd::setfsuid(uid.into());
            while !stop.load(Ordering::Relaxed) {
                for (one, two) in pairs {
                    let swapped = renameat2(AT_FDCWD, one, AT_FDCWD, two, RenameFlags::RENAME_EXCHANGE);
                    swaps.fetch_add(u64::from(swapped.is_ok()), Ordering::Relaxed);
                }
            }
        });
        let mut rounds = 0;
        while swaps.load(Ordering::Relaxed) < times || rounds < 12 {
            work();
            rounds += 1;
            assert!(rounds < 300, "{} swaps only", swaps.load(Ordering::Relaxed));
        }
    });
}

#[test]
fn folders_of_a_store_that_are_exchanged_all_the_time_lead_root_nowhere() {
    // Given an account that exchanges folders of its store for links, thousands of times,
    let theirs = Theirs::new();
    let (world, store) = (&theirs.world, &theirs.world.store);
    let room = theirs.account.folder("room");
    // (a rename leaves the file system where a home is on another one)
    let room = if room.metadata().unwrap().dev() == store.metadata().unwrap().dev() {
        room
    } else {
        store.join(".x")
    };
    std::fs::create_dir_all(&room).unwrap();
    let pair = |at: PathBuf, to: &Path, n: u32| {
        let link = room.join(n.to_string());
        symlink(to, &link).unwrap();
        (at, link)
    };
    private(&store.join(".repair"));
    private(&store.join(".pruned"));
    let pairs = [
        pair(theirs.second.join("docs/d"), &theirs.outside.join("docs/d"), 0),
        pair(theirs.first.join("docs"), &theirs.outside.join("docs"), 1),
        pair(store.join(".repair"), &theirs.outside, 2),
        pair(store.join(".pruned"), &theirs.outside, 3),
    ];
    ok("chown", &["-hR", &theirs.account.name, store.to_str().unwrap(), room.to_str().unwrap()]);
    std::fs::set_permissions(&world.dir, PermissionsExt::from_mode(0o711)).unwrap();
    let uid = std::fs::metadata(store).unwrap().uid();
    // when root works on it meanwhile,
    let works = theirs.works();
    let mut round = 0;
    while_swapping(uid, &pairs, 5000, || {
        let (action, options) = &works[round % (works.len() - 1)];
        round += 1;
        let ran = theirs.does(action, options);
        assert!([0, 1, 3, 69, 75, 77, 78].contains(&ran.code), "{action}: {ran:?}");
    });
    // then nothing outside has been changed, and nothing of it has been read into a copy.
    theirs.outside_is_as_it_was("swapped");
    let made = ["copies", "copies-restored"].map(|name| world.dir.join(name));
    let read = Command::new("grep").args(["-rl", "root's own"]).args(made).output().unwrap();
    assert!(read.stdout.is_empty(), "{}", String::from_utf8_lossy(&read.stdout));
}

#[test]
fn folders_of_a_restores_target_that_are_exchanged_all_the_time_lead_root_nowhere() {
    // Given a web server's account that exchanges folders of the data folder for links to what is root's, thousands of times,
    let world = World::new();
    for n in 0..30 {
        world.file(&format!("alice/files/{n}"), &format!("{n}").repeat(100));
    }
    world.publish();
    let outside = world.dir.join("outside");
    private(&outside.join("files"));
    std::fs::write(outside.join("files/3"), "root's own").unwrap();
    let before = picture(&outside);
    let room = world.source.join("room");
    std::fs::create_dir(&room).unwrap();
    let links = [room.join("0"), room.join("1")];
    symlink(&outside, &links[0]).unwrap();
    symlink(outside.join("files"), &links[1]).unwrap();
    let pairs = [
        (world.source.join("alice"), links[0].clone()),
        (world.source.join("alice/files"), links[1].clone()),
    ];
    ok("chown", &["-hR", "33:33", world.source.to_str().unwrap()]);
    std::fs::set_permissions(&world.dir, PermissionsExt::from_mode(0o711)).unwrap();
    // when a file, a folder, all of it are restored, some with what was replaced kept,
    let mut round = 0;
    while_swapping(33, &pairs, 5000, || {
        let wishes = [&["--path", "alice/files/3"][..], &["--path", "alice/files"], &["--path", "alice"]];
        let mut options = wishes[round % 3].to_vec();
        options.extend(["--source", "docs", "--in-place", "--yes"]);
        options.extend((round % 2 == 0).then_some("--keep-replaced"));
        round += 1;
        let ran = world.act("restore", &options);
        assert!([0, 1, 3, 4, 75, 77, 78].contains(&ran.code), "{ran:?}");
    });
    // then nothing outside of it has been touched.
    before.same_as(&picture(&outside));
}

#[test]
fn a_private_folder_that_somebody_made_before_is_not_used() {
    // Given the name that a restore's private folder will have (anybody can work it out),
    let world = World::new();
    world.file("letter", "v1");
    world.publish();
    let broken = world.dir.join("broken");
    script(&broken, "#!/bin/sh\nexit 12\n");
    world.profile(&format!("rsync = [\"{}\"]", broken.display()), "");
    let options = ["--source", "docs", "--path", "letter", "--in-place", "--yes"];
    let failed = world.act("restore", &options).expect(1);
    assert!(told(&failed).contains("exit code 12"), "{failed:?}");
    let name = ok("find", &[world.source.to_str().unwrap(), "-maxdepth", "1", "-name", ".nc-restore-*"]);
    let place = PathBuf::from(&name);
    std::fs::remove_dir_all(&place).unwrap();
    world.profile("", "");
    let outside = world.dir.join("outside");
    private(&outside);
    std::fs::write(outside.join("state.json"), "root's own").unwrap();
    let before = picture(&outside);
    // when something else is there,
    let plants: [(&str, &dyn Fn()); 5] = [
        ("a link", &|| symlink(&outside, &place).unwrap()),
        ("a FIFO", &|| drop(ok("mkfifo", &[&name]))),
        ("a file", &|| std::fs::write(&place, "x").unwrap()),
        ("a folder of theirs", &|| {
            std::fs::create_dir(&place).unwrap();
            symlink(&outside, place.join("new")).unwrap();
            ok("chown", &["-h", "33:33", &name]);
        }),
        ("a folder that they can enter", &|| {
            std::fs::create_dir(&place).unwrap();
            std::fs::set_permissions(&place, PermissionsExt::from_mode(0o711)).unwrap();
        }),
    ];
    for (what, plant) in plants {
        plant();
        // then the restore refuses, and has changed nothing.
        let ran = world.act("restore", &options);
        assert!([1, 77].contains(&ran.code), "{what}: {ran:?}");
        assert_eq!(std::fs::read_to_string(world.source.join("letter")).unwrap(), "v1", "{what}");
        before.same_as(&picture(&outside));
        ok("rm", &["-rf", &name]);
    }
    world.act("restore", &options).expect(0);
}

#[test]
fn a_mount_in_a_store_of_an_account_is_not_emptied() {
    let theirs = Theirs::new();
    let place = theirs.first.join("docs/d/mounted");
    private(&place);
    ok("chown", &[&theirs.account.name, place.to_str().unwrap()]);
    ok("mount", &["--bind", theirs.outside.to_str().unwrap(), place.to_str().unwrap()]);
    // A prune renames the date, with what is mounted in it.
    let moved = theirs.world.store.join(".pruned").join(theirs.date()).join("docs/d/mounted");
    let mounted = (Mounted(moved), Mounted(place));
    theirs.does("prune", &["--date".into(), theirs.date().into(), "--yes".into()]);
    theirs.outside_is_as_it_was("pruned");
    drop(mounted);
}

#[test]
fn whatever_its_caller_left_it_a_store_is_verified_mended_pruned_and_restored() {
    let world = World::new();
    world.file("d/a", &"a".repeat(5000));
    std::thread::sleep(Duration::from_millis(2100));
    world.publish();
    for (n, caller) in ODD_CALLERS.into_iter().enumerate() {
        let first = world.dates().remove(0);
        world.file("d/b", &"x".repeat(n + 1));
        world.publish();
        let before = world.history();
        let rotten = world.store.join(&first).join("docs/d/a");
        flip(&rotten, n as u64);
        let to = world.dir.join(format!("to{n}"));
        for (action, options) in [
            ("verify", vec!["--repair"]),
            ("list", vec!["--sizes"]),
            ("diff", vec!["--from", &*first]),
            ("find", vec!["--name", "a"]),
            ("restore", vec!["--to", to.to_str().unwrap()]),
            ("prune", vec!["--date", &*first, "--yes"]),
        ] {
            let ran = run(&mut oddly(&world.command(action, &options), caller));
            assert_eq!(ran.code, 0, "{action}: a caller that {}: {}\n{:#}", caller.0, ran.stderr, ran.json);
            if action == "verify" {
                assert_eq!(world.history(), before, "a caller that {}", caller.0);
            }
        }
        picture(&world.source).same_as(&picture(&to.join("docs")));
        let private = std::fs::metadata(world.store.join(".verified")).unwrap().mode() & 0o777;
        assert_eq!(private, 0o600, "a caller that {}", caller.0);
        assert_eq!(world.dates().len(), 1);
    }
}

#[test]
fn a_signal_at_any_time_ends_each_action_and_harms_nothing() {
    let world = World::new();
    for n in 0..150 {
        world.file(&format!("d{}/{n}", n % 7), &format!("{n} ").repeat(500));
    }
    std::thread::sleep(Duration::from_millis(2100));
    world.publish();
    let elsewhere = world.dir.join("elsewhere");
    let mut interrupted = 0;
    for (round, signal) in ["-TERM", "-INT", "-HUP"].iter().cycle().take(12).enumerate() {
        world.file("d0/0", &format!("{round}"));
        let newest = world.publish();
        let before = world.history();
        let whole = world.dir.join("whole");
        ok("rm", &["-rf", whole.to_str().unwrap()]);
        ok("cp", &["-a", world.store.to_str().unwrap(), whole.to_str().unwrap()]);
        flip(&newest.join("docs/d3/3"), round as u64);
        let to = elsewhere.to_str().unwrap().to_owned();
        for (n, (action, options)) in [
            ("verify", vec!["--repair"]),
            ("snapshot", vec!["--crash-consistent"]),
            ("restore", vec!["--to", &to, "--yes"]),
            ("restore", vec!["--source", "docs", "--in-place", "--yes"]),
            ("prune", vec!["--keep-last", "3", "--min-age", "1h"]),
        ]
        .into_iter()
        .enumerate()
        {
            let mut command = world.command(action, &options);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis((round as u64 * 37 + n as u64 * 13) % 160));
            crate::world::kill(child.id(), signal);
            let out = child.wait_with_output().unwrap();
            // Before it is ready for signals there is nothing to be undone.
            if out.status.signal().is_some() {
                interrupted += 1;
                continue;
            }
            let ran = judge(out);
            interrupted += u32::from(ran.code > 128);
            assert!([0, 3, 129, 130, 143].contains(&ran.code), "{action} {signal}: {ran:?}");
        }
        // What was published is what it was, but for what rotted, and is mended.
        // (A restore of what rotted may have reached the source.)
        let repair = ["--repair", "--from", whole.to_str().unwrap()];
        let mut again = world.act("verify", &repair);
        for _ in 0..100 {
            // The children of the one that was ended go a moment later.
            if again.code != 75 {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            again = world.act("verify", &repair);
        }
        again.expect(0);
        let kept: Vec<_> = world.history();
        for (date, then) in &before {
            if let Some((_, now)) = kept.iter().find(|k| k.0 == *date) {
                then.same_as(now);
            }
        }
        // (what came of it before it was mended has its size and time)
        world.file("d3/3", "else");
        world.act("restore", &["--source", "docs", "--in-place", "--yes"]).expect(0);
        world.newest_is_source();
        until("nothing of a restore is left", || {
            ok("find", &[world.source.to_str().unwrap(), "-name", ".nc-restore-*"]).is_empty()
        });
    }
    assert!(interrupted > 10, "{interrupted}");
}
