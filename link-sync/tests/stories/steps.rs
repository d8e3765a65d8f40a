//! stage, settle, publish: the order, the seal, and the process between them.

use std::process::{Command, Stdio};
use std::time::Duration;

use common::lock::Lock;
use testkit::{Ran, bin, judge, run};

use crate::world::{World, descendants, first, folder, kill, ok, told, until, warnings};

/// An instance of the stand-in, with a profile that holds data and html.
fn instance() -> World {
    let world = World::new();
    let fakes = testkit::repo().join("tests/fakes/nextcloud");
    for entry in std::fs::read_dir(fakes).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), world.source.join(entry.file_name())).unwrap();
    }
    let data = world.source.join("data");
    world.file("data/.ncdata", "");
    world.file("data/anna/files/a.txt", "a");
    world.file(
        "config/config.php",
        &format!("<?php\n$CONFIG = array (\n  'datadirectory' => '{}',\n  'installed' => true,\n  'dbtype' => 'pgsql',\n  'version' => '32.0.1.2',\n);\n", data.display()),
    );
    profile(&world, "");
    world
}

fn profile(world: &World, more: &str) {
    world.write_profile(&format!(
        "[nextcloud]\nroot = \"{root}\"\nocc = [\"php\", \"{root}/occ\"]\n\
         [snapshot]\nstore = \"{store}\"\n\
         [[snapshot.source]]\nname = \"data\"\npath = \"{root}/data\"\n\
         [[snapshot.source]]\nname = \"html\"\npath = \"{root}\"\n{more}\
         [store]\npath = \"{store}\"\nreserve_bytes = 0\n",
        root = world.source.display(),
        store = world.store.display(),
    ));
}

/// `script` within maintenance; `$0` is link-sync, `$1` the profile.
fn in_maintenance(world: &World, script: &str) -> Ran {
    let mut command = Command::new(bin("nc-maint"));
    command.args(["run", "--config"]).arg(&world.config).args(["--max", "2m", "--", "sh", "-c", script]);
    run(command.arg(bin("link-sync")).arg(&world.config))
}

const SETTLE: &str = "\"$0\" settle --config \"$1\"";

/// What link-sync said inside a run of nc-maint.
fn inner(ran: &Ran) -> &serde_json::Value {
    &ran.json["data"]["command"]["output"][0]
}

#[test]
fn settled_in_maintenance_it_is_sealed_and_published() {
    let world = instance();
    world.act("stage", &[]).expect(0);
    world.file("data/anna/files/late.txt", "written after stage");
    std::fs::remove_file(world.source.join("data/anna/files/a.txt")).unwrap();
    let settled = in_maintenance(&world, SETTLE).expect(0);
    assert_eq!(inner(&settled)["data"]["sealed"], true, "{settled:?}");
    let published = world.act("publish", &[]).expect(0);
    assert_eq!(published.json["data"]["consistency"], "sealed");
    let held = folder(&published);
    assert!(held.join("data/anna/files/late.txt").exists() && !held.join("data/anna/files/a.txt").exists());
    // And again at once: the old process is gone before its last answer is read.
    for _ in 0..5 {
        world.act("stage", &[]).expect(0);
        world.act("publish", &["--crash-consistent"]).expect(0);
    }
}

#[test]
fn a_drop_in_that_is_renewed_meanwhile_breaks_no_seal_and_costs_no_pass() {
    let world = instance();
    world.act("stage", &[]).expect(0);
    world.file("data/anna/files/late.txt", "written after stage");
    let mut command = Command::new(bin("nc-maint"));
    // Each settle meets a renewal, or what one left: config/ changes every second.
    let script =
        "for i in 1 2 3 4 5 6; do sleep 0.4; \"$0\" settle --config \"$1\"; done; ls \"$2\"/config >&2";
    command.args(["run", "--config"]).arg(&world.config).args(["--lease", "3s", "--", "sh", "-c", script]);
    let ran = run(command.arg(bin("link-sync")).arg(&world.config).arg(&world.source)).expect(0);
    assert!(!ran.stderr.contains("-0.config.php"), "it was renewed: {}", ran.stderr);
    let settled = ran.json["data"]["command"]["output"].as_array().unwrap();
    assert_eq!(settled.len(), 6);
    for one in settled {
        assert_eq!(one["data"]["sealed"], true, "{one:#}");
    }
    let published = world.act("publish", &[]).expect(0);
    assert_eq!(published.json["data"]["consistency"], "sealed");
    let config = std::fs::read_dir(folder(&published).join("html/config")).unwrap();
    assert_eq!(config.count(), 1, "config.php alone");
}

#[test]
fn a_run_that_was_killed_seals_nothing() {
    let world = instance();
    world.act("stage", &[]).expect(0);
    let mut command = Command::new(bin("nc-maint"));
    command.args(["run", "--config"]).arg(&world.config).args(["--", "sleep", "100"]);
    let mut front = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("maintenance is proven", || world.state.join("maintenance.json").exists());
    let mut all = descendants(front.id());
    all.push((front.id(), String::new()));
    // All at once: none of them sees another one's end.
    all.iter().for_each(|(pid, _)| kill(*pid, "-STOP"));
    all.iter().for_each(|(pid, _)| kill(*pid, "-KILL"));
    front.wait().unwrap();
    // Its drop-in lasts for a while, and somebody else may switch on after that; its record is there all the time.
    let settled = world.act("settle", &[]).expect(0);
    assert_eq!((warnings(&settled), &settled.json["data"]["sealed"]), (vec!["not-sealed"], &false.into()));
    assert!(settled.stderr.contains("was killed"), "{settled:?}");
    world.act("publish", &[]).expect(1);
    world.act("abort", &[]).expect(0);
}

#[test]
fn what_is_not_sealed_is_not_published() {
    let world = instance();
    world.act("settle", &[]).expect(1);
    assert!(told(&world.act("publish", &[]).expect(1)).contains("no snapshot is under way"));

    world.act("stage", &["--source", "data"]).expect(0);
    assert!(told(&world.act("publish", &["--crash-consistent"]).expect(1)).contains("not yet staged: html"));
    world.act("stage", &["--source", "html"]).expect(0);
    assert!(told(&world.act("publish", &[]).expect(1)).contains("not sealed"));
    let settled = world.act("settle", &[]).expect(0);
    assert_eq!((warnings(&settled), &settled.json["data"]["sealed"]), (vec!["not-sealed"], &false.into()));
    world.act("publish", &[]).expect(1);

    in_maintenance(&world, SETTLE).expect(0);
    // Whatever is staged afterwards was not there when Nextcloud stood still.
    world.act("stage", &["--source", "data"]).expect(0);
    assert!(told(&world.act("publish", &[]).expect(1)).contains("not sealed"));

    // Half of it inside maintenance is no seal either.
    let half = in_maintenance(&world, "\"$0\" settle --config \"$1\" --source data").expect(0);
    assert_eq!(inner(&half)["data"]["sealed"], false, "{half:?}");
    world.act("publish", &[]).expect(1);
    assert!(world.dates().is_empty());
    in_maintenance(&world, SETTLE).expect(0);
    world.act("publish", &[]).expect(0);
}

fn dump(world: &World, date: &str, run: &str, tables: &[&str]) {
    dump_within(world, date, run, r#"{"held_ms": 0, "confirmed_ms": 18446744073709551615}"#, tables);
}

fn dump_within(world: &World, date: &str, run: &str, window: &str, tables: &[&str]) {
    let dir = world.dir.join("dumps").join(date);
    crate::world::private(&dir);
    std::fs::write(dir.join("dump.json"), format!("{{\"run_id\": {run}, \"window\": {window}}}")).unwrap();
    for table in tables {
        std::fs::write(dir.join(table), format!("rows of {table}")).unwrap();
    }
}

#[test]
fn the_dump_is_the_newest_whole_one_and_of_the_same_run() {
    let world = instance();
    profile(
        &world,
        &format!(
            "[[snapshot.source]]\nname = \"database\"\npath = \"{}\"\n",
            world.dir.join("dumps").display()
        ),
    );
    crate::world::private(&world.dir.join("dumps"));
    let nothing = world.act("stage", &["--source", "database"]).expect(78);
    assert!(told(&nothing).contains("no complete dump"), "{nothing:?}");

    dump(&world, "2026-01-01T00-00-00Z", "\"of another run\"", &["one", "two"]);
    world.act("stage", &[]).expect(0);
    world.act("stage", &["--source", "database"]).expect(0);
    in_maintenance(&world, SETTLE).expect(0);
    let refused = world.act("publish", &[]).expect(1);
    assert!(told(&refused).contains("run of another run"), "{refused:?}");

    // The dump of this run, staged after maintenance, replaces the other one completely.
    let record = "sed 's/.*\"run_id\":\"\\([0-9a-f]*\\)\".*/\\1/' ";
    let script = format!(
        "{SETTLE} && {record} '{}/maintenance.json' > '{}/run'",
        world.state.display(),
        world.dir.display()
    );
    in_maintenance(&world, &script).expect(0);
    let run = std::fs::read_to_string(world.dir.join("run")).unwrap();
    // But not one that was confirmed before the files were taken, or held after, or not held at all.
    let run = format!("\"{}\"", run.trim());
    for (n, window) in [
        r#"{"held_ms": 0, "confirmed_ms": 1}"#,
        r#"{"held_ms": 18446744073709551614, "confirmed_ms": 18446744073709551615}"#,
        "null",
    ]
    .iter()
    .enumerate()
    {
        dump_within(&world, &format!("2026-01-01T00-00-0{}Z", n + 1), &run, window, &["one"]);
        world.act("stage", &["--source", "database"]).expect(0);
        let refused = world.act("publish", &[]).expect(1);
        assert!(told(&refused).contains("between the hold and the confirmation"), "{refused:?}");
    }
    dump(&world, "2026-01-02T00-00-00Z", &run, &["one"]);
    world.act("stage", &["--source", "database"]).expect(0);
    let held = folder(&world.act("publish", &[]).expect(0)).join("database");
    let names = |dir| {
        let mut list: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        list.sort();
        list
    };
    assert_eq!(names(&held), ["dump.json", "one"]);

    // A file of the next dump that is the same but for its time is shared.
    dump(&world, "2026-01-03T00-00-00Z", "null", &["one", "three"]);
    let next = folder(&world.snapshot(&[]).expect(0)).join("database");
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(next.join("one").metadata().unwrap().ino(), held.join("one").metadata().unwrap().ino());
    assert_eq!(names(&next), ["dump.json", "one", "three"]);
}

#[test]
fn given_up_it_keeps_what_arrived_or_not() {
    let world = World::new();
    world.file("a", "something");
    world.act("stage", &[]).expect(0);
    assert_eq!(world.act("abort", &[]).expect(0).json["changed"], true);
    assert_eq!(world.act("abort", &[]).expect(0).json["changed"], false);
    let kept = world.act("stage", &[]).expect(0);
    assert_eq!(crate::world::first(&kept)["resumed_files"], 1, "{kept:?}");
    world.act("abort", &["--discard"]).expect(0);
    assert!(!world.store.join(".partial").exists() && !world.store.join(".resume").exists());
    let anew = world.act("stage", &[]).expect(0);
    assert_eq!(crate::world::first(&anew)["resumed_files"], 0);
    world.act("abort", &[]).expect(0);
    world.act("publish", &["--crash-consistent"]).expect(1);
    world.act("abort", &["--discard"]).expect(0);
    assert!(!world.store.join(".partial").exists());
    assert!(world.dates().is_empty());
}

#[test]
fn the_process_in_the_background_ends_by_itself() {
    let world = World::new();
    world.file("a", "a");
    world.act("stage", &["--max", "1s"]).expect(0);
    let socket = world.state.join("run/agent.sock");
    assert!(socket.exists());
    until("the agent ends", || !socket.exists());
    world.act("publish", &["--crash-consistent"]).expect(1);
    world.publish();
    world.newest_is_source();
}

fn slow(world: &World, megabytes: usize) {
    for n in 0..megabytes {
        world.file(&format!("f{n}"), &"z".repeat(1 << 20));
    }
    world.profile("rsync = [\"rsync\", \"--bwlimit=4m\"]", "");
}

fn start(world: &World, action: &str) -> std::process::Child {
    world
        .command(action, &["--crash-consistent"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn what_does_not_fit_into_its_time_can_be_tried_again() {
    let world = World::new();
    world.profile("rsync = [\"rsync\", \"--bwlimit=4m\"]", "");
    world.file("folder/a", "a");
    world.file("b", "b");
    world.act("stage", &[]).expect(0);

    // How fast the store is, is not known yet: rsync is stopped in the middle. What went is gone by then.
    let (folder, away) = (world.source.join("folder"), world.source.join("away"));
    std::fs::rename(&folder, &away).unwrap();
    world.file("large", &"z".repeat(12 << 20));
    let begin = std::time::Instant::now();
    let late = world.act("settle", &["--max-time", "1500ms"]).expect(1);
    assert!(begin.elapsed() < Duration::from_millis(2500));
    assert_eq!(late.json["data"]["reason"], "over-budget");
    assert!(told(&late).contains("the time is over"), "{late:?}");
    world.act("publish", &[]).expect(1);

    // It is back as it was, but not in the partial snapshot. With the rest staged, a settle fits.
    std::fs::rename(&away, &folder).unwrap();
    let staged = world.act("stage", &[]).expect(0);
    let last = &crate::world::first(&staged)["last_pass"];
    assert_eq!(last["changed_bytes"].as_u64().unwrap() >> 20, 12, "{staged:?}");
    assert!(last["pass_ms"].as_u64().unwrap() > 2000);

    // Now it is known: what would take too long is not begun.
    world.file("larger", &"y".repeat(40 << 20));
    let begin = std::time::Instant::now();
    let refused = world.act("settle", &["--max-time", "6s"]).expect(1);
    assert!(begin.elapsed() < Duration::from_secs(5));
    // `large` counts again: it changed within two seconds of the walk.
    assert!(told(&refused).contains("of changed files of source docs would take about"), "{refused:?}");
    std::fs::remove_file(world.source.join("larger")).unwrap();
    let settled = world.act("settle", &["--max-time", "20s"]).expect(0);
    assert!(settled.json["data"].get("reason").is_none());
    world.act("publish", &["--crash-consistent"]).expect(0);
    world.newest_is_source();
}

#[test]
fn the_deadline_of_the_run_counts_too() {
    let world = instance();
    world.act("stage", &[]).expect(0);
    // Maintenance itself ends after a minute; the record says when, and it may not be passed.
    in_maintenance(&world, "\"$0\" settle --config \"$1\" --max-time 50s").expect(0);
    let record = world.state.join("maintenance.json");
    let past = "{\"run_id\":\"00\",\"since\":\"2026-01-01T00:00:00Z\",\"method\":\"occ\",\"deadline\":\"2026-01-01T00:01:00Z\",\"pid\":null}";
    std::fs::write(&record, past).unwrap();
    let late = world.act("settle", &[]).expect(1);
    assert_eq!(late.json["data"]["reason"], "over-budget", "{late:?}");
    std::fs::remove_file(&record).unwrap();
    world.act("settle", &[]).expect(0);
    world.act("abort", &[]).expect(0);
}

#[test]
fn a_signal_to_the_one_who_asked_stops_the_work() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        for action in ["stage", "snapshot"] {
            let world = World::new();
            slow(&world, 40);
            let run = start(&world, action);
            until("files travel", || world.store.join(".incoming/docs").exists());
            kill(run.id(), signal);
            let begin = std::time::Instant::now();
            judge(run.wait_with_output().unwrap()).expect(code);
            assert!(begin.elapsed() < Duration::from_secs(5));
            assert!(world.dates().is_empty());
            until("the agent ends", || !world.state.join("run/agent.sock").exists());
            // And the far end, which may be flushing to a disk that others write to as well.
            until("the store is free", || Lock::exclusive(&world.store.join(".lock"), "the store").is_ok());
            world.profile("", "");
            world.publish();
            world.newest_is_source();
        }
    }
}

#[test]
fn one_at_a_time_and_the_death_of_client_and_agent() {
    let world = World::new();
    slow(&world, 16);
    let run = start(&world, "stage");
    until("files travel", || world.store.join(".incoming/docs").exists());
    assert!(told(&world.act("settle", &[]).expect(75)).contains("worked on by another command"));
    world.snapshot(&[]).expect(75);
    // The agent is told to stop by the end of its client.
    let agent =
        descendants(run.id()).into_iter().find(|(_, line)| line.contains(" agent ")).expect("an agent").0;
    kill(run.id(), "-KILL");
    run.wait_with_output().unwrap();
    until("the agent ends", || {
        !std::path::Path::new(&format!("/proc/{agent}/cwd")).exists()
            || !world.state.join("run/agent.sock").exists()
    });

    until("the next stage can begin", || {
        let run = start(&world, "stage");
        std::thread::sleep(Duration::from_millis(700));
        let agent = descendants(run.id()).into_iter().find(|(_, line)| line.contains(" agent "));
        agent.inspect(|(pid, _)| kill(*pid, "-KILL"));
        let ended = judge(run.wait_with_output().unwrap());
        assert!([1, 75].contains(&ended.code), "{ended:?}");
        ended.code == 1 && told(&ended).contains("background process")
    });
    world.profile("", "");
    let mut next = None;
    until("the dead one's children end", || {
        let ran = world.snapshot(&[]);
        let done = ran.code != 75;
        next = Some(ran);
        done
    });
    let next = next.unwrap().expect(0);
    assert!(crate::world::first(&next)["resumed_files"].as_u64().unwrap() > 0, "{next:?}");
    world.newest_is_source();
}

#[test]
fn the_profile_must_be_ours() {
    let world = World::new();
    ok("chmod", &["0666", world.config.to_str().unwrap()]);
    world.snapshot(&[]).expect(77);
    ok("chmod", &["0600", world.config.to_str().unwrap()]);
    world.profile("stoer = \"x\"", "");
    assert!(told(&world.snapshot(&[]).expect(78)).contains("did you mean 'store'"));
}

#[test]
fn what_somebody_has_open_for_writing_is_taken_until_nobody_has() {
    let world = World::new();
    for name in ["written", "mapped", "read", "still"] {
        world.file(name, "content");
    }
    std::thread::sleep(Duration::from_millis(2100));
    let written = std::fs::File::options().append(true).open(world.source.join("written")).unwrap();
    let reader = std::fs::File::open(world.source.join("read")).unwrap();
    // Python keeps the file mapped and closes its descriptor.
    let map = "import mmap, os, sys, time\nfd = os.open(sys.argv[1], os.O_RDWR)\nm = mmap.mmap(fd, 0)\nos.close(fd)\nprint('mapped', flush=True)\nsys.stdin.read()";
    let mut mapper = std::process::Command::new("python3")
        .args(["-c", map, world.source.join("mapped").to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 6];
    std::io::Read::read_exact(mapper.stdout.as_mut().unwrap(), &mut said).unwrap();

    let staged = world.act("stage", &[]).expect(0);
    assert_eq!(first(&staged)["open_for_writing"], 2, "{staged:?}");
    // Nothing changes in them; how much of a write that was under way has arrived cannot be told.
    let settled = world.act("settle", &[]).expect(0);
    assert_eq!(first(&settled)["last_pass"]["changed_paths"], 2, "{settled:?}");
    assert!(warnings(&settled).contains(&"open-for-writing"), "{settled:?}");
    world.act("publish", &["--crash-consistent"]).expect(0);
    drop((written, reader));
    drop(mapper.stdin.take());
    mapper.wait().unwrap();

    let next = world.snapshot(&[]).expect(0);
    assert_eq!(first(&next)["changed_paths"], 2, "{next:?}");
    assert_eq!(first(&next)["received_files"], 0, "their content is compared, and the same: {next:?}");
    assert_eq!(first(&world.snapshot(&[]).expect(0))["changed_paths"], 0);
}

/// The far end of the store in `world`.
fn far_end(world: &World) -> u32 {
    let store = world.store.display().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = all.filter_map(|e| {
        let pid = e.file_name().to_str()?.parse::<u32>().ok()?;
        let line = String::from_utf8(std::fs::read(e.path().join("cmdline")).ok()?).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        (words.get(1) == Some(&"serve") && words.contains(&store.as_str())).then_some(pid)
    });
    found.next().expect("a far end")
}

/// What `child` printed, if it ends within `seconds`.
#[track_caller]
fn ends_within(mut child: std::process::Child, seconds: u64, far: u32) -> Ran {
    let begin = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(seconds) {
            kill(far, "-CONT");
            child.kill().unwrap();
            panic!("it still waits for a far end that is stopped");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let gone = !std::path::Path::new(&format!("/proc/{far}")).exists();
    kill(far, "-CONT");
    assert!(gone, "the far end that was stopped has been ended");
    judge(child.wait_with_output().unwrap())
}

#[test]
fn a_far_end_that_is_stopped_does_not_hold_up_settle() {
    let world = World::new();
    world.file("a", "a");
    world.act("stage", &[]).expect(0);
    let far = far_end(&world);
    kill(far, "-STOP");
    world.file("b", "b");
    let mut settle = world.command("settle", &["--max-time", "2s"]);
    let settle = settle.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ran = ends_within(settle, 15, far).expect(69);
    assert!(told(&ran).contains("did not answer in the time there was"), "{ran:?}");
    world.publish();
    world.newest_is_source();
}

#[test]
fn a_far_end_that_is_stopped_does_not_keep_a_signal_waiting() {
    let world = World::new();
    world.file("a", "a");
    world.act("stage", &[]).expect(0);
    let far = far_end(&world);
    kill(far, "-STOP");
    world.file("b", "b");
    let again = start(&world, "stage");
    std::thread::sleep(Duration::from_millis(500));
    kill(again.id(), "-TERM");
    ends_within(again, 15, far).expect(143);
    world.publish();
    world.newest_is_source();
}

#[test]
fn a_far_end_that_works_long_gives_signs_of_life() {
    let world = World::new();
    world.file("a", "a");
    // Its rsync takes longer than the silence that is allowed once the time is over.
    let slow = world.dir.join("slow");
    testkit::script(&slow, "#!/bin/sh\ncase \"$*\" in *--server*) sleep 6 ;; esac\nexec rsync \"$@\"\n");
    world.profile("", &format!("rsync = [\"{}\"]", slow.display()));
    world.act("stage", &[]).expect(0);
    world.file("b", "b");
    let late = world.act("settle", &["--max-time", "1s"]).expect(1);
    assert!(told(&late).contains("settle does not fit into 1.0 s"), "{late:?}");
    // It is alive, so nothing is lost.
    world.act("settle", &[]).expect(0);
    world.act("publish", &["--crash-consistent"]).expect(0);
    world.newest_is_source();
}
