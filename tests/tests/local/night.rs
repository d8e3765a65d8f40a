//! A whole night, and what is left when something fails at each of its steps.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{Ran, bin, run, scripts};

use crate::world::World;

/// The steps of a night in which all goes well.
const STEPS: [&str; 12] = [
    "look-nextcloud",
    "release-earlier",
    "look-database",
    "stage",
    "look",
    "stage-again",
    "maintenance",
    "dump",
    "release",
    "stage-database",
    "publish",
    "prune",
];

fn steps(ran: &Ran) -> Vec<&str> {
    let list = ran.json["data"]["steps"].as_array().expect("steps");
    list.iter().map(|s| s["step"].as_str().expect("a name")).collect()
}

fn same_content(a: &Path, b: &Path) -> bool {
    Command::new("cmp").arg("-s").args([a, b]).status().unwrap().success()
}

#[test]
fn a_night_saves_files_and_database_together_and_the_next_one_only_what_changed() {
    // Given an instance that was never saved, when a backup runs,
    let world = World::new("night");
    let first = run(&mut world.backup()).expect(0);
    // then everything is there under one date, taken in maintenance, which is over.
    assert_eq!(steps(&first), STEPS);
    let date = first.json["data"]["date"].as_str().unwrap();
    assert_eq!(world.dates(), [date]);
    assert!(first.json["data"]["maintenance_ms"].as_u64().unwrap() > 0);
    assert!(!world.in_maintenance());
    let one = world.store().join(date);
    assert!(same_content(&world.root().join("data/.ncdata"), &one.join("data/.ncdata")));
    let config = "config/config.php";
    assert!(same_content(&world.root().join(config), &one.join("html").join(config)), "never written");
    let maintenance =
        first.json["data"]["steps"].as_array().unwrap().iter().find(|s| s["step"] == "maintenance");
    assert_eq!(maintenance.unwrap()["output"]["data"]["method"], "drop-in");
    let saved = std::fs::read_dir(one.join("html/config")).unwrap().map(|e| e.unwrap().file_name());
    let drop_ins = saved.filter(|name| name.to_string_lossy().contains("zz-nc-backup-maintenance"));
    assert_eq!(drop_ins.count(), 0, "an instance made from it would start closed");
    assert!(!one.join("html/data").exists(), "the data directory is a source of its own");
    assert!(one.join("database/dump.json").exists());
    let dump: Value =
        serde_json::from_slice(&std::fs::read(one.join("database/dump.json")).unwrap()).unwrap();
    assert_eq!(dump["run_id"].as_str().map(str::len), Some(32), "{dump}");

    // And after a day's changes the next one has the new state, and the first is what it was.
    let before = Command::new("tar").arg("-cC").arg(&one).arg(".").output().unwrap().stdout;
    assert!(world.sample_script("sample-change").args(["--count", "30"]).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(1100));
    let second = run(&mut world.backup()).expect(0);
    assert_eq!(world.dates().len(), 2);
    let data = &second.json["data"]["sources"][0];
    assert_eq!(data["name"], "data");
    assert!(data["linked_paths"].as_u64().unwrap() > data["received_files"].as_u64().unwrap(), "{data}");
    let two = world.store().join(second.json["data"]["date"].as_str().unwrap());
    let args =
        ["-naHAXic", "--delete", "--exclude=/*/cache/", "--exclude=/*/uploads/", "--exclude=/updater-*"];
    let args = args.iter().chain(&[
        "--exclude=/appdata_*/preview/",
        "--exclude=/appdata_*/js/",
        "--exclude=/nextcloud.log",
    ]);
    let differs = Command::new("rsync")
        .args(args)
        .arg(world.root().join("data/"))
        .arg(two.join("data/"))
        .output()
        .unwrap();
    assert!(differs.status.success());
    assert_eq!(String::from_utf8_lossy(&differs.stdout), "");
    let after = Command::new("tar").arg("-cC").arg(&one).arg(".").output().unwrap().stdout;
    assert!(before == after, "the first snapshot has changed");
}

#[test]
fn whatever_fails_maintenance_ends_nothing_is_published_and_the_next_run_succeeds() {
    let world = World::new("faults");
    let fails = |code: i32| format!("echo 'injected failure' >&2; exit {code}");
    let killed = "kill -9 $$".to_owned();
    // The tool itself dies without any chance to clean up, while Nextcloud is in maintenance.
    let dies_in_maintenance = format!(
        "\"$real\" \"$@\" & p=$!; i=0; until ls '{}'/zz-nc-backup-maintenance-* >/dev/null 2>&1 || [ $i -gt 500 ]; do \
         i=$((i+1)); sleep 0.02; done; kill -9 $p; kill -9 $$",
        world.root().join("config").display()
    );
    for (tool, pattern, instead, code, failed_step) in [
        ("link-sync", "'stage home'*toml", fails(69), 69, "stage"),
        ("link-sync", "'stage home'*toml", killed.clone(), 137, "stage"),
        ("nc-maint", "run*", fails(77), 77, "maintenance"),
        ("nc-maint", "run*", killed.clone(), 137, "maintenance"),
        ("nc-maint", "run*", dies_in_maintenance, 137, "maintenance"),
        ("link-sync", "settle*", fails(1), 1, "maintenance"),
        ("link-sync", "settle*", killed.clone(), 137, "maintenance"),
        ("pg-snap", "*--look", fails(75), 75, "look"),
        ("pg-snap", "*--look", killed.clone(), 137, "look"),
        ("pg-snap", "drain*toml", fails(75), 75, "maintenance"),
        ("pg-snap", "hold*", fails(1), 1, "maintenance"),
        ("pg-snap", "hold*", killed.clone(), 137, "maintenance"),
        ("pg-snap", "dump*", fails(69), 69, "dump"),
        ("pg-snap", "dump*", killed.clone(), 137, "dump"),
        ("pg-snap", "release*", fails(1), 1, "release"),
        ("link-sync", "*'--source database'", fails(78), 78, "stage-database"),
        ("link-sync", "publish*", fails(1), 1, "publish"),
        ("link-sync", "publish*", killed, 137, "publish"),
    ] {
        world.inject(tool, pattern, &instead);
        let ran = run(&mut world.backup());
        let what = format!("{tool} {pattern}: {:#}\n{}", ran.json, ran.stderr);
        // nc-maint passes on only codes below 128; then it is 1.
        assert!(ran.code == code || (code == 137 && failed_step == "maintenance" && ran.code == 1), "{what}");
        assert_eq!(ran.json["data"]["failed_step"], failed_step, "{what}");
        assert_eq!(ran.json["changed"], false, "{what}");
        assert_eq!(world.dates(), [""; 0], "{what}");
        assert!(!world.store().join("latest").exists(), "{what}");
        World::until("maintenance is off", || !world.in_maintenance());
        world.restore_tools();
        run(&mut world.pg_snap("release")).expect(0);
    }
    // The database's own program fails.
    world.write_profile("pg_dump = [\"/bin/false\"]");
    let ran = run(&mut world.backup());
    assert_eq!(ran.json["data"]["failed_step"], "look-database", "{:#}", ran.json);
    assert!(ran.code != 0 && world.dates().is_empty() && !world.in_maintenance());

    // With nothing broken any more, the next run continues and publishes.
    world.write_profile("");
    run(&mut world.backup()).expect(0);
    assert_eq!(world.dates().len(), 1);
}

#[test]
fn old_dumps_that_cannot_be_pruned_do_not_unmake_a_snapshot() {
    let world = World::new("prune");
    world.inject("pg-snap", "prune*", "exit 1");
    let ran = run(&mut world.backup()).expect(3);
    assert_eq!(ran.json["status"], "partial");
    assert_eq!(ran.json["warnings"].as_array().unwrap().last().unwrap()["kind"], "prune-failed");
    assert_eq!(world.dates().len(), 1);
}

#[test]
fn a_signal_in_maintenance_or_in_the_dump_ends_the_run_and_leaves_nothing() {
    let world = World::new("signal");
    for (tool, pattern, in_maintenance) in [("link-sync", "settle*", true), ("pg-snap", "dump*", false)] {
        world.inject(tool, pattern, "touch \"$tools/begun\"; sleep 60");
        let mut backup = world.backup();
        let child =
            backup.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        World::until("the step begins", || world.tools().join("begun").exists());
        assert_eq!(world.in_maintenance(), in_maintenance, "{tool}");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ran = testkit::judge(child.wait_with_output().unwrap()).expect(143);
        assert_eq!(ran.json["status"], "interrupted");
        assert!(!world.in_maintenance());
        assert!(world.dates().is_empty());
        let held = run(&mut world.pg_snap("release")).expect(0);
        assert_eq!(held.json["changed"], false, "nothing is held any more: {:#}", held.json);
        std::fs::remove_file(world.tools().join("begun")).unwrap();
        world.restore_tools();
    }
}

#[test]
fn what_does_not_fit_once_is_tried_once_more_and_not_all_night() {
    let world = World::new("again");
    // Not drained the first time.
    world.inject("pg-snap", "drain*toml", "[ -e \"$0.once\" ] || { touch \"$0.once\"; exit 75; }");
    let ran = run(&mut world.backup()).expect(0);
    let again = [&STEPS[..7], &["release"], &STEPS[4..]].concat();
    assert_eq!(steps(&ran), again);
    assert_eq!(world.dates().len(), 1);
    // What a moment more does not cure costs one maintenance, not two.
    for (tool, pattern, code) in
        [("pg-snap", "'hold home'*", 77), ("link-sync", "settle*", 78), ("pg-snap", "drain*toml", 69)]
    {
        world.restore_tools();
        world.inject(tool, pattern, &format!("exit {code}"));
        let ran = run(&mut world.backup()).expect(code);
        assert_eq!(steps(&ran).iter().filter(|s| **s == "maintenance").count(), 1, "{:#}", ran.json);
    }
    world.restore_tools();
    // Settle takes longer than Nextcloud may be down: it comes back in time, twice, and the run says so.
    world.inject("link-sync", "settle*", "sleep 20");
    let begun = Instant::now();
    let ran = run(world.backup().args(["--max-downtime", "2s"])).expect(1);
    assert_eq!(steps(&ran).iter().filter(|s| **s == "maintenance").count(), 2, "{:#}", ran.json);
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(!world.in_maintenance());
    assert_eq!(world.dates().len(), 1);
}

#[test]
fn what_a_killed_run_still_holds_is_given_back_before_anything_else() {
    let world = World::new("orphan");
    // A state that is held, by somebody who still lives: this test.
    let hold = "\"$0\" drain home --look --config \"$1\" && \"$2\" run home --config \"$1\" -- sh -c '\"$0\" drain home --config \"$1\" && \
                \"$0\" hold home --config \"$1\"' \"$0\" \"$1\"; exec sleep 60";
    let mut orphan = Command::new("sh");
    orphan.args(["-c", hold]).arg(bin("pg-snap")).arg(world.path("home.toml")).arg(bin("nc-maint"));
    let mut orphan = orphan.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    World::until("a state is held", || {
        run(&mut world.pg_snap("status")).json["data"]["held"]["run_id"].is_string()
    });
    World::until("maintenance is over", || !world.in_maintenance());
    let ran = run(&mut world.backup()).expect(0);
    assert_eq!(steps(&ran), STEPS, "one maintenance is enough");
    assert_eq!(ran.json["data"]["steps"][1]["output"]["changed"], true, "{:#}", ran.json);
    orphan.kill().unwrap();
    orphan.wait().unwrap();
}

#[test]
fn of_two_runs_at_once_the_second_is_busy_and_the_first_succeeds() {
    let world = World::new("two");
    world.inject("pg-snap", "dump*", "touch \"$tools/dumping\"; sleep 3");
    let first =
        world.backup().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    World::until("the dump begins", || world.tools().join("dumping").exists());
    let second = run(&mut world.backup()).expect(75);
    assert_eq!(steps(&second), [""; 0], "it has touched nothing");
    testkit::judge(first.wait_with_output().unwrap()).expect(0);
    assert_eq!(world.dates().len(), 1);
}

#[test]
fn of_two_profiles_of_one_nextcloud_the_second_waits_for_the_first() {
    // Given a second profile of the same instance, with a state and a store of its own,
    let world = World::new("two_profiles");
    let text = std::fs::read_to_string(world.path("home.toml")).unwrap();
    let (state, store) = (world.path("state"), world.store());
    let other = text
        .replace(state.to_str().unwrap(), world.path("other-state").to_str().unwrap())
        .replace(store.to_str().unwrap(), world.path("other-store").to_str().unwrap());
    std::fs::write(world.path("other.toml"), other).unwrap();
    let made = Command::new("install").args(["-d", "-m", "0700"]).arg(world.path("other-store")).status();
    assert!(made.unwrap().success());
    // when both begin while the first one holds the database,
    world.inject("pg-snap", "dump*", "touch \"$tools/dumping\"; sleep 3");
    let first =
        world.backup().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    World::until("the dump begins", || world.tools().join("dumping").exists());
    let mut second = Command::new(scripts().join("backup-local"));
    second.arg("other").arg("--config").arg(world.path("other.toml")).arg("--bin").arg(world.tools());
    second.arg("--verbose");
    let second = run(&mut second).expect(0);
    // then both succeed, and neither has Nextcloud closed for what the other one does.
    testkit::judge(first.wait_with_output().unwrap()).expect(0);
    assert_eq!(world.dates().len(), 1);
    let attempts = steps(&second).iter().filter(|step| **step == "maintenance").count();
    assert_eq!(attempts, 1, "{second:?}");
    assert!(second.stderr.contains("another profile"), "{second:?}");
}

#[test]
fn an_upgrade_in_the_middle_of_a_backup_changes_nothing() {
    let world = World::new("upgrade");
    let installed = world.path("installed");
    std::fs::create_dir(&installed).unwrap();
    for tool in ["nc-maint", "pg-snap", "link-sync"] {
        std::fs::copy(bin(tool), installed.join(tool)).unwrap();
    }
    for script in ["lib.sh", "status.jq", "settle-and-hold"] {
        std::fs::copy(scripts().join(script), installed.join(script)).unwrap();
    }
    // Longer than what a shell reads ahead.
    let text = std::fs::read_to_string(scripts().join("backup-local")).unwrap();
    let text = text.replace("\nstep dump ", &format!("\n#{}\nstep dump ", " longer".repeat(3000)));
    testkit::script(&installed.join("backup-local"), &text);
    // Before maintenance, a worker is paused: then new versions come, which do nothing but say that they were run.
    let upgrade = format!(
        "#!/bin/sh\ncd '{0}' || exit\nfor name in nc-maint pg-snap link-sync settle-and-hold lib.sh; do\n\
         printf '#!/bin/sh\\necho \"$0 $*\" >>{0}/called\\nexit 1\\n' >new; chmod 755 new; mv new \"$name\"\ndone\n\
         rm nc-maint lib.sh\necho 'exit 1' >backup-local\n",
        installed.display()
    );
    testkit::script(&world.path("upgrade"), &upgrade);
    world.write_profile(&format!(
        "pause = [[\"{}\"]]\nresume = [[\"true\"]]",
        world.path("upgrade").display()
    ));
    let mut backup = Command::new(installed.join("backup-local"));
    let ran = run(backup.arg("home").arg("--config").arg(world.path("home.toml"))).expect(0);
    assert_eq!(steps(&ran), STEPS);
    for step in ran.json["data"]["steps"].as_array().unwrap() {
        assert_eq!(step["output"]["version"], env!("CARGO_PKG_VERSION"), "{step:#}");
    }
    assert!(!installed.join("nc-maint").exists(), "it was upgraded");
    let called = std::fs::read_to_string(installed.join("called")).unwrap_or_default();
    assert_eq!(called, "", "what came was not run");
    assert_eq!(world.dates().len(), 1);
    assert!(!world.in_maintenance());
}

#[test]
fn maintenance_that_was_on_before_stays_on() {
    let world = World::new("before");
    let occ = |mode: &str| {
        let status = Command::new("php")
            .arg(world.root().join("occ"))
            .args(["maintenance:mode", mode])
            .output()
            .unwrap()
            .status;
        assert!(status.success());
    };
    occ("--on");
    run(&mut world.backup()).expect(0);
    assert!(world.in_maintenance());
    occ("--off");
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for args in [&[][..], &["home", "more"], &["home", "--frob"], &["home", "--config"]] {
        let ran = run(Command::new(scripts().join("backup-local")).args(args)).expect(2);
        assert!(ran.json.is_null());
        assert!(!ran.stderr.is_empty());
    }
}

#[test]
fn a_dump_of_a_night_when_the_clock_was_ahead_is_in_no_later_nights_way() {
    // Given a dump that was made when the clock was many years ahead,
    let world = World::new("ahead");
    run(&mut world.backup()).expect(0);
    let dumps = world.path("state/dumps");
    let ahead = "cd \"$1\"; for d in *Z; do mv \"$d\" 2099-01-01T00-00-00Z; sed -i \"s/$d/2099-01-01T00-00-00Z/\" */dump.json; done";
    assert!(Command::new("sh").args(["-euc", ahead, "sh"]).arg(&dumps).status().unwrap().success());
    // then the next night publishes its own, and
    let ran = run(&mut world.backup()).expect(0);
    let inside = world.store().join(ran.json["data"]["date"].as_str().unwrap()).join("database/dump.json");
    assert!(!std::fs::read_to_string(inside).unwrap().contains("2099"));
    // of those that are kept it counts for none: the newest stays, and is the newest.
    let pruned = run(world.pg_snap("prune").args(["--keep", "1"])).expect(0);
    assert_eq!(pruned.json["data"]["removed"], serde_json::json!([]), "{:#}", pruned.json);
    assert_eq!(pruned.json["warnings"][0]["kind"], "dump-ahead");
    let listed = run(&mut world.pg_snap("list")).expect(0);
    assert_ne!(listed.json["data"]["newest"], "2099-01-01T00-00-00Z", "{:#}", listed.json);
}
