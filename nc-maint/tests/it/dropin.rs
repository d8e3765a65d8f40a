//! The method drop-in: chosen where it can be, proven, and gone afterwards whatever is killed.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::script;

use crate::world::{World, alive, eventually, guardian, signal};

/// A write of the configuration by Nextcloud itself, as an app's setting would cause it.
const NEXTCLOUD_WRITES: &str = "cd nc && php -r 'require \"standin.php\"; (new Standin(getcwd()))->write();'";

impl World {
    fn nextcloud_writes(&self) {
        let written = Command::new("sh").args(["-c", NEXTCLOUD_WRITES]).current_dir(self.path()).status();
        assert!(written.unwrap().success());
    }
}

/// A run whose every process is killed at once, in the middle.
fn killed(world: &World, max: &str) {
    let mut child = world.start(&["--max", max], "echo $$ > command; touch ready; exec sleep 300", "ready");
    let guardian = guardian(child.id());
    for pid in [child.id(), guardian, world.pid("command")] {
        signal(pid.into(), "STOP");
    }
    for pid in [world.pid("command"), guardian, child.id()] {
        signal(pid.into(), "KILL");
    }
    child.wait().unwrap();
    eventually("all is dead", || !alive(guardian) && !alive(world.pid("command")));
    std::fs::remove_file(world.path().join("ready")).unwrap();
    // Two for a moment of each renewal.
    assert!((1..=2).contains(&world.drop_ins().len()), "{:?}", world.drop_ins());
}

fn warned(json: &serde_json::Value, kind: &str) -> bool {
    json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == kind)
}

#[test]
fn it_is_chosen_proven_recorded_and_gone_and_config_php_is_never_written() {
    let world = World::auto();
    let before = std::fs::read(world.config()).unwrap();
    let config = std::fs::metadata(world.config()).unwrap();
    let see = format!(
        "stat -c '{{\"uid\":%u,\"gid\":%g,\"mode\":\"%a\",\"name\":\"%n\"}}' {root}/config/zz-nc-*.config.php; cat {}; echo; \
         ls -A {root}/config >&2",
        world.record().display(),
        root = world.root().display()
    );
    let ran = world.run(&["--max", "60s"], &see).expect(0);
    let data = &ran.json["data"];
    assert_eq!((&data["method"], &ran.json["changed"]), (&"drop-in".into(), &true.into()));
    assert!(data["method_reason"].as_str().unwrap().contains("can be written"));
    let (file, record) = (&data["command"]["output"][0], &data["command"]["output"][1]);
    assert_eq!((&file["uid"], &file["gid"]), (&config.uid().into(), &config.gid().into()));
    assert_eq!(file["mode"], "640", "as config.php, whatever our umask is");
    assert_eq!((&record["method"], &record["run_id"]), (&"drop-in".into(), &data["run_id"]));
    let run_id = data["run_id"].as_str().unwrap();
    assert!(
        file["name"].as_str().unwrap().contains(&format!("zz-nc-backup-maintenance-{run_id}-0.config.php")),
        "{file}"
    );
    assert!(!ran.stderr.contains(".new"), "the draft is gone once the file is there: {}", ran.stderr);
    for part in ["on_ms", "proof_ms", "off_ms"] {
        assert!(data[part].as_u64().unwrap() < 1000, "{part} {}", data[part]);
    }
    world.is_clean();
    assert_eq!(std::fs::read(world.config()).unwrap(), before);
    // Nor does occ have to be able to write.
    world.configure("'config_is_read_only' => true,");
    world.run(&[], "true").expect(0);
    world.is_clean();
}

#[test]
fn clients_are_refused_and_an_occ_that_says_off_is_not_believed() {
    let mut world = World::auto();
    let url = world.serve();
    let occ = world.root().join("occ");
    let try_to_end = format!(
        "curl -s -o /dev/null -w '{{\"code\":%{{http_code}}}}\\n' {url}index.php\n\
         php {} maintenance:mode --off >&2\n\
         curl -s {url}status.php; echo",
        occ.display()
    );
    let ran = world.run(&["--url", &url], &try_to_end).expect(0);
    assert!(ran.stderr.contains("Maintenance mode disabled"), "{}", ran.stderr);
    let output = &ran.json["data"]["command"]["output"];
    assert_eq!((&output[0]["code"], &output[1]["maintenance"]), (&503.into(), &true.into()));
    assert!(!world.clients(&url));
    world.is_clean();
}

#[test]
fn a_configuration_written_meanwhile_does_not_keep_nextcloud_closed() {
    let world = World::auto();
    let mut child = world.start(&[], &format!("({NEXTCLOUD_WRITES}); touch ready"), "ready");
    assert!(child.wait().unwrap().success());
    world.is_clean();
    let ran = world.run(&[], &format!("cd {}; {NEXTCLOUD_WRITES}", world.path().display())).expect(0);
    assert!(warned(&ran.json, "persisted"));
    world.is_clean();
    // The same for a plain `off`.
    world.ask("on", &["--max", "60s"]).expect(0);
    world.nextcloud_writes();
    assert!(warned(&world.ask("off", &[]).expect(0).json, "persisted"));
    world.is_clean();
}

#[test]
fn maintenance_that_was_on_stays_on_without_a_drop_in() {
    let world = World::auto();
    world.occ(&["maintenance:mode", "--on"]);
    let ran = world.run(&[], &format!("ls {} >&2", world.root().join("config").display())).expect(0);
    assert_eq!(ran.json["data"]["found_on"], true);
    assert!(!ran.stderr.contains("zz-nc-backup"), "{}", ran.stderr);
    assert!(world.maintenance());
    world.ask("off", &[]).expect(0);
    world.is_clean();
}

#[test]
fn nextcloud_comes_back_by_itself_when_everything_is_killed_at_once() {
    let mut world = World::auto();
    let url = world.serve();
    let begin = Instant::now();
    killed(&world, "1s");
    assert!(world.clients(&url), "nobody is left to end it");
    eventually("Nextcloud is back", || !world.clients(&url));
    assert!(begin.elapsed() > Duration::from_secs(1), "not before the run's own end");
    let status = world.ask("status", &[]).expect(0).json;
    assert_eq!(status["data"]["maintenance"], false);
    assert_eq!(status["data"]["drop_in"]["expired"], true);
    assert!(warned(&status, "drop-in-left"));
    // What is left is cleared by the next run, which says so.
    assert!(warned(&world.run(&[], "true").expect(0).json, "run-killed"));
    world.is_clean();
}

#[test]
fn a_leftover_is_known_as_ours_by_the_boot_unit_by_off_and_by_the_next_run() {
    let world = World::auto();
    killed(&world, "60s");
    let status = world.ask("status", &[]).expect(0).json;
    let drop_in = &status["data"]["drop_in"];
    assert_eq!((&drop_in["action"], &drop_in["user"]), (&"run".into(), &"root".into()));
    assert_eq!((&drop_in["expired"], &drop_in["run_id"]), (&false.into(), &status["data"]["run_id"]));
    assert!(warned(&status, "run-killed"));
    assert_eq!(world.ask("off", &["--if-ours"]).expect(0).json["changed"], true);
    world.is_clean();

    // Even if all that was written down is lost, the file itself says whose it is.
    killed(&world, "60s");
    for file in ["switch.json", "maintenance.json"] {
        std::fs::remove_file(world.state().join(file)).unwrap();
    }
    assert_eq!(world.ask("off", &["--if-ours"]).expect(0).json["changed"], true);
    world.is_clean();

    killed(&world, "60s");
    assert!(warned(&world.run(&[], "true").expect(0).json, "run-killed"));
    world.is_clean();

    // And a tool that was told to use occ clears it, too, also when Nextcloud has written it down.
    killed(&world, "60s");
    world.nextcloud_writes();
    world.ask("off", &["--method", "occ"]).expect(0);
    world.is_clean();
}

#[test]
fn whichever_half_is_killed_the_other_removes_it() {
    let world = World::auto();
    for half in ["front", "guardian"] {
        let mut child = world.start(&[], "touch ready; exec sleep 300", "ready");
        let pid = if half == "front" { child.id() } else { guardian(child.id()) };
        signal(pid.into(), "KILL");
        child.wait().unwrap();
        eventually("the claim is gone", || !world.state().join("switch.json").exists());
        world.is_clean();
        std::fs::remove_file(world.path().join("ready")).unwrap();
    }
    // --max is the guardian's to keep, before the file's own end.
    let ran = world.run(&["--max", "1s"], "sleep 300").expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("did not end within 1s"));
    world.is_clean();
}

#[test]
fn on_lasts_until_off_or_as_long_as_it_was_asked_to() {
    let world = World::auto();
    let ran = world.ask("on", &[]).expect(0).json;
    assert_eq!((&ran["data"]["method"], &ran["data"]["deadline"]), (&"occ".into(), &().into()));
    assert!(ran["data"]["method_reason"].as_str().unwrap().contains("until `off`"));
    world.ask("off", &[]).expect(0);
    world.is_clean();

    let ran = world.ask("on", &["--max", "60s"]).expect(0).json;
    assert_eq!(ran["data"]["method"], "drop-in");
    // Asked again, it is renewed; then it ends with nobody there.
    assert_eq!(world.ask("on", &["--max", "1s"]).expect(0).json["changed"], true);
    assert!(world.maintenance());
    eventually("it has ended", || !world.maintenance());
    world.ask("off", &["--if-ours"]).expect(0);
    world.is_clean();

    let ran = world.ask("on", &["--method", "occ", "--max", "60s"]).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("needs the method drop-in"));
    world.is_clean();
}

#[test]
fn a_file_of_somebody_else_under_its_name_is_left_alone_and_told() {
    let world = World::auto();
    let theirs = "<?php $CONFIG = array('loglevel' => 2);";
    let victim = world.path().join("victim");
    std::fs::write(&victim, theirs).unwrap();
    let old = world.old_drop_in();
    let like_ours = old.with_file_name("zz-nc-backup-maintenance-of-mine.config.php");
    for planted in ["file", "link"] {
        for name in [&old, &like_ours] {
            match planted {
                "file" => std::fs::write(name, theirs).unwrap(),
                _ => std::os::unix::fs::symlink(&victim, name).unwrap(),
            }
            assert!(warned(&world.ask("status", &[]).expect(0).json, "drop-in-foreign"));
            // It is in nobody's way: a run's file has a name of its own.
            assert_eq!(world.run(&[], "true").expect(0).json["data"]["method"], "drop-in");
            assert!(warned(&world.ask("off", &[]).expect(0).json, "drop-in-foreign"));
            assert_eq!(std::fs::read_to_string(name).unwrap(), theirs, "{planted}");
            std::fs::remove_file(name).unwrap();
        }
    }
    world.is_clean();
}

#[test]
fn a_merge_that_does_not_honour_it_means_no_command_and_names_the_file() {
    let world = World::auto();
    let last = world.root().join("config/zzz.config.php");
    std::fs::write(&last, "<?php $CONFIG = array('maintenance' => false);").unwrap();
    let ran = world.run(&[], "touch ran").expect(1);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("config/zzz.config.php"));
    assert!(!world.path().join("ran").exists());
    world.is_clean();
    // One that ends it while the command runs is found out afterwards.
    std::fs::remove_file(last).unwrap();
    let ran = world.run(&[], &format!("rm {}/config/zz-nc-*", world.root().display())).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("something else ended maintenance"));
    world.is_clean();
}

#[test]
fn in_a_container_its_own_php_is_asked() {
    let world = World::auto();
    let docker = world.path().join("docker");
    let text = format!(
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'exec -u www-data' ] || exit 125\nshift 4\ncd {}\n\
         printf 'x' >> {}\nexec sudo -u www-data \"$@\" </dev/null\n",
        world.root().display(),
        world.path().join("asked").display()
    );
    script(&docker, &text);
    let words = [docker.to_str().unwrap(), "exec", "-u", "www-data", "nextcloud", "php", "occ"];
    let occ: Vec<String> = words.iter().map(|w| format!("--occ={w}")).collect();
    let run = |more: &[&str]| {
        let mut options: Vec<&str> = occ.iter().map(String::as_str).collect();
        options.extend(more);
        world.run(&options, &format!("ls {}/config/zz-nc-*", world.root().display()))
    };
    let ran = run(&[]).expect(2);
    assert_eq!(ran.json["data"]["method"], "occ", "what the container sees is not known");
    let ran = run(&["--method", "drop-in"]).expect(0);
    assert_eq!(ran.json["data"]["method"], "drop-in");
    assert!(std::fs::metadata(world.path().join("asked")).unwrap().len() > 3);
    world.is_clean();
}

/// The names of drop-ins, once a tenth of a second for this time.
fn watch(world: &World, time: Duration) -> Vec<Vec<std::path::PathBuf>> {
    let end = Instant::now() + time;
    let mut seen = Vec::new();
    while Instant::now() < end {
        seen.push(world.drop_ins());
        std::thread::sleep(Duration::from_millis(100));
    }
    seen
}

#[test]
fn killed_all_at_once_nextcloud_is_back_when_the_lease_ends_however_long_the_run_might_have_taken() {
    let world = World::auto();
    let mut command = ["--max", "30m", "--lease", "3s"].to_vec();
    command.extend(["--", "sh", "-c", "echo $$ > command; touch ready; exec sleep 300"]);
    let mut child = world.nc_maint("run").args(command).current_dir(world.path()).spawn().unwrap();
    eventually("the command is ready", || world.path().join("ready").exists());
    // Longer than a lease: it is renewed.
    std::thread::sleep(Duration::from_secs(5));
    assert!(world.maintenance());
    let guardian = guardian(child.id());
    for pid in [child.id(), guardian, world.pid("command")] {
        signal(pid.into(), "STOP");
    }
    for pid in [world.pid("command"), guardian, child.id()] {
        signal(pid.into(), "KILL");
    }
    child.wait().unwrap();
    let begin = Instant::now();
    eventually("Nextcloud is back", || !world.maintenance());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let status = world.ask("status", &[]).expect(0).json;
    assert_eq!(
        (&status["data"]["maintenance"], &status["data"]["drop_in"]["expired"]),
        (&false.into(), &true.into())
    );
    assert!(warned(&status, "drop-in-left"), "{status:#}");
    world.ask("off", &["--if-ours"]).expect(0);
    world.is_clean();
}

#[test]
fn a_lease_is_renewed_under_new_names_with_never_a_moment_without_and_nobody_sees_it_end() {
    let world = World::auto();
    let mut child = world.start(&["--lease", "3s"], "touch ready; sleep 7", "ready");
    let seen = watch(&world, Duration::from_secs(6));
    assert!(child.wait().unwrap().success());
    assert!(seen.iter().all(|names| !names.is_empty()), "a moment without");
    let counting =
        |names: &&Vec<std::path::PathBuf>| names.iter().filter(|n| n.extension().unwrap() == "php").count();
    assert!(seen.iter().all(|names| counting(&names) <= 3), "the ones before go");
    let mut all: Vec<_> = seen.into_iter().flatten().filter(|n| n.extension().unwrap() == "php").collect();
    all.sort();
    all.dedup();
    assert!(all.len() >= 4, "each renewal has a name of its own: {all:?}");
    world.is_clean();
}

#[test]
fn a_run_within_that_of_another_profile_is_refused_as_it_would_end_with_that() {
    let world = World::auto();
    let mut child = world.start(&[], "touch ready; exec sleep 20", "ready");
    let at = |name: &str| world.path().join(name);
    let text = format!(
        "state_dir = {:?}\nruntime_dir = {:?}\n[nextcloud]\nroot = {:?}\n",
        at("other-state"),
        at("other-run"),
        world.root()
    );
    std::fs::write(at("other.toml"), text).unwrap();
    let run = || {
        let mut command = std::process::Command::new(testkit::bin("nc-maint"));
        testkit::run(command.args(["run", "other", "--config"]).arg(at("other.toml")).args(["--", "true"]))
    };
    let refused = run().expect(75);
    assert!(refused.stderr.contains("ends with it"), "{refused:?}");
    assert!(world.maintenance(), "the other one's goes on");
    signal(child.id().into(), "TERM");
    child.wait().unwrap();
    run().expect(0);
    world.is_clean();
}

#[test]
fn a_guardian_that_was_stopped_for_longer_than_the_lease_does_not_pretend_that_nothing_happened() {
    let world = World::auto();
    let mut child = world.start(&["--lease", "3s"], "touch ready; exec sleep 20", "ready");
    let guardian = guardian(child.id());
    signal(guardian.into(), "STOP");
    eventually("the lease has ended", || !world.maintenance());
    signal(guardian.into(), "CONT");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("something else ended maintenance"), "{said}");
    world.is_clean();
    // The same when somebody removes the file: it does not come back.
    std::fs::remove_file(world.path().join("ready")).unwrap();
    let mut child = world.start(&["--lease", "3s"], "touch ready; exec sleep 20", "ready");
    world.ask("off", &[]).expect(0);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    world.is_clean();
}

#[test]
fn no_client_is_shown_the_deadline_of_an_earlier_run_by_an_opcache_that_looks_once_a_minute() {
    let mut world = World::auto();
    let url = world.serve_with(&[
        "opcache.enable=1",
        "opcache.restrict_api=/nowhere",
        "opcache.revalidate_freq=60",
    ]);
    let told = format!("sleep 2.5; curl -s {url}status.php; echo; curl -s {url}status.php");
    for _ in 0..2 {
        let ran = world.run(&["--max", "3s"], &told).expect(0);
        let output = &ran.json["data"]["command"]["output"];
        assert_eq!((&output[0]["maintenance"], &output[1]["maintenance"]), (&true.into(), &true.into()));
        world.is_clean();
        // Its own deadline has passed, which is what a cached file would say.
        std::thread::sleep(Duration::from_secs(8));
    }
}

#[test]
fn what_an_earlier_version_left_is_known_and_removed() {
    let world = World::auto();
    let mark = |until: i64| {
        format!(
            "<?php\n// nc-backup {{\"run_id\":\"0f\",\"profile\":\"manual\",\"action\":\"run\",\"user\":\"root\",\"version\":\"0.1.0\",\
             \"since\":\"2026-01-01T00:00:00Z\",\"until\":{until}}}\nif (time() < {until}) {{ $CONFIG = array('maintenance' => true); }}\n"
        )
    };
    std::fs::write(world.old_drop_in(), mark(32_503_680_000)).unwrap();
    let status = world.ask("status", &[]).expect(0).json;
    assert_eq!((&status["data"]["maintenance"], &status["data"]["ours"]), (&true.into(), &true.into()));
    world.ask("off", &["--if-ours"]).expect(0);
    world.is_clean();
    std::fs::write(world.old_drop_in(), mark(1)).unwrap();
    world.run(&[], "true").expect(0);
    world.is_clean();
}
