//! Two at once, and death at any moment: a snapshot is complete or absent, and what had arrived is used.

use std::process::Stdio;
use std::time::Duration;

use testkit::{judge, script};

use crate::picture::picture;
use crate::world::{Disk, World, descendants, first, folder, kill, until, warnings};

/// Files that are new each `round`, `megabytes` of them in all.
fn fill(world: &World, round: u32, megabytes: usize) {
    for n in 0..megabytes * 4 {
        let bytes: Vec<u8> = (0..256 * 1024u32).map(|i| (i / 7 + round * 31 + n as u32) as u8).collect();
        let dir = world.source.join(format!("d{}", n % 5));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("f{n}")), bytes).unwrap();
    }
}

#[test]
fn two_runs_at_once() {
    let world = World::new();
    // (16 s: whoever comes meanwhile waits for 10)
    fill(&world, 0, 64);
    world.profile("rsync = [\"rsync\", \"--bwlimit=4m\"]", "");
    let slow = world
        .command("snapshot", &["--crash-consistent"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let slow = slow.unwrap();
    until("the first one writes", || world.store.join(".incoming/docs").exists());

    let second = world.snapshot(&[]).expect(75);
    assert!(second.json["error"]["message"].as_str().unwrap().contains("locked by pid"), "{second:?}");
    // Nor one with another state, as from another machine: the store has a lock of its own.
    let other = format!("--state-dir={}", world.dir.join("other-state").display());
    let third = world.snapshot(&[&other]).expect(75);
    assert!(third.json["error"]["message"].as_str().unwrap().contains("the store"), "{third:?}");
    // Reading is nobody's business.
    world.act("list", &[]).expect(0);

    judge(slow.wait_with_output().unwrap()).expect(0);
    world.newest_is_source();
}

#[test]
fn an_orphan_that_still_writes_keeps_the_next_run_out() {
    let world = World::new();
    world.file("a", "one");
    // The receiving rsync leaves a child behind that has the lock, as one stuck in the kernel would.
    let orphan = world.dir.join("orphan");
    script(&orphan, "#!/bin/sh\n(exec >/dev/null 2>&1 </dev/null; setsid sleep 19) &\nexec rsync \"$@\"\n");
    world.profile("", &format!("rsync = [\"{}\"]", orphan.display()));
    world.publish();

    world.profile("", "");
    let refused = world.snapshot(&[]).expect(75);
    assert!(refused.json["error"]["hint"].as_str().unwrap().contains("fuser"), "{refused:?}");
    std::thread::sleep(Duration::from_secs(4));
    // It is about to end: waited for.
    world.publish();
    world.newest_is_source();
}

/// Starts a snapshot and kills the process whose command line says `victim` after `wait`.
fn killed(world: &World, victim: &str, wait: Duration) {
    let mut command = world.command("snapshot", &["--crash-consistent"]);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(wait);
    match victim {
        "" => kill(run.id(), "-KILL"),
        _ => {
            for (pid, _) in descendants(run.id()).iter().filter(|(_, line)| line.contains(victim)) {
                kill(*pid, "-KILL");
            }
        }
    }
    run.wait().unwrap();
}

#[test]
fn killed_at_any_moment_nothing_half_is_published_and_what_arrived_is_used() {
    let disk = Disk::new(2000);
    let world = World::on(&disk);
    fill(&world, 0, 1);
    world.publish();
    let mut resumed = 0;
    for round in 1..=15u32 {
        fill(&world, round, 4);
        std::fs::remove_file(world.source.join(format!("d1/f{}", 1 + 5 * (round % 3)))).ok();
        let history = world.history();
        // Slow enough that most blows fall while files travel.
        world.profile("rsync = [\"rsync\", \"--bwlimit=6m\"]", "");
        // Us, the far end, the receiving rsync, the sending one, rsync's "remote shell".
        let victims = ["", " serve ", "--server", "--files-from", " tunnel "];
        let wait = 40 + round * 7919 % 900;
        killed(&world, victims[round as usize % victims.len()], Duration::from_millis(wait.into()));
        if round % 4 == 0 {
            killed(&world, victims[round as usize / 4], Duration::from_millis(u64::from(wait) / 2));
        }

        for (date, then) in &history {
            then.same_as(&picture(&world.store.join(date)));
        }
        // One that was published in the very end is whole.
        if world.dates().len() > history.len() {
            world.newest_is_source();
        }
        world.profile("", "");
        let mut again = world.snapshot(&[]);
        for _ in 0..100 {
            // The dead one's children end a moment later.
            if again.code != 75 {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            again = world.snapshot(&[]);
        }
        let again = again.expect(0);
        resumed += first(&again)["resumed_files"].as_u64().unwrap();
        assert!(warnings(&again).iter().all(|w| ["continues", "full-way"].contains(w)), "{again:?}");
        let before: Vec<_> = world.history().into_iter().take(history.len()).collect();
        assert_eq!(before.len(), history.len());
        world.newest_is_source();
        assert!(!world.store.join(".resume").exists() && !world.store.join(".partial").exists());
        assert_eq!(folder(&again), world.store.join(std::fs::read_link(world.store.join("latest")).unwrap()));
    }
    assert!(resumed > 0, "nothing was ever reused");
}

#[test]
fn what_arrived_is_kept_whatever_its_type_becomes() {
    let world = World::new();
    world.file("a", "a file, received by a run that was interrupted");
    world.publish();
    // Two interrupted runs: for the first `new` was a file, for the second a folder, and the other way round.
    let resume = world.store.join(".resume/docs");
    std::fs::create_dir_all(resume.join("other")).unwrap();
    std::fs::write(resume.join("new"), "file").unwrap();
    std::fs::write(resume.join("other/below"), "file").unwrap();
    let incoming = world.store.join(".incoming/docs");
    std::fs::create_dir_all(incoming.join("new")).unwrap();
    std::fs::write(incoming.join("new/below"), "file").unwrap();
    std::fs::write(incoming.join("other"), "file").unwrap();

    world.file("new/below", "what it is now");
    world.publish();
    world.newest_is_source();
}
