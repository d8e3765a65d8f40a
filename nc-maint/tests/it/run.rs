//! `run`: on, command, off, and what is told about it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{bin, judge, run};

use crate::world::{World, alive, eventually, signal};

#[test]
fn the_command_runs_in_proven_maintenance_and_is_reported() {
    let mut world = World::new();
    let url = world.serve();
    let script = format!(
        "printf '{{\"run_id\":\"%s\",\"profile\":\"%s\"}}\\n' \"$NC_BACKUP_RUN_ID\" \"$NC_BACKUP_PROFILE\"\n\
         cat {}; echo; echo plain; echo 'not {{json}}' >&2; curl -s {url}status.php; printf '\\n{{\"last\":1}}'",
        world.record().display()
    );
    let ran = world.run(&["--url", &url], &script).expect(0);
    let data = &ran.json["data"];
    let output = data["command"]["output"].as_array().unwrap();
    assert_eq!(output[0], json!({"run_id": data["run_id"], "profile": "manual"}));
    assert_eq!(output[1]["run_id"], data["run_id"], "the record was there while it ran");
    assert!(output[1]["deadline"].as_str().unwrap() > output[1]["since"].as_str().unwrap());
    assert_eq!(output[2]["maintenance"], true, "clients were refused");
    assert_eq!(output[3], json!({"last": 1}), "a last line needs no end");
    assert!(ran.stderr.contains("plain\n") && ran.stderr.contains("not {json}\n"), "{}", ran.stderr);
    let ms = |key: &str| data[key].as_u64().unwrap();
    let inside = data["command"]["duration_ms"].as_u64().unwrap();
    assert!((inside..inside + ms("on_ms") + ms("off_ms")).contains(&ms("maintenance_ms")), "{data:#}");
    assert_eq!((&ran.json["changed"], &data["found_on"]), (&json!(true), &json!(false)));
    assert!(!world.clients(&url));
    world.is_clean();
}

#[test]
fn the_exit_code_and_the_signal_of_the_command_are_passed_on() {
    let world = World::new();
    let ran = world.run(&[], "echo 'no space left' >&2; exit 3").expect(3);
    assert_eq!(ran.json["data"]["command"]["exit_code"], 3);
    assert!(ran.json["error"]["command"]["stderr_tail"].as_str().unwrap().contains("no space left"));
    let ran = world.run(&[], "kill -USR1 $$").expect(128 + 10);
    assert_eq!(ran.json["data"]["command"]["signal"], 10);
    let ran = world.run(&[], "exit 200").expect(1);
    assert_eq!(ran.json["data"]["command"]["exit_code"], 200);
    world.is_clean();
}

#[test]
fn arguments_arrive_as_they_were_given() {
    let world = World::new();
    let odd =
        [OsStr::new("a b"), OsStr::new("c\nd"), OsStr::new(""), OsStr::new("$HOME;*"), OsStr::new("--max")];
    let mut command = world.nc_maint("run");
    command.args(["--", "sh", "-c", "printf '%s|' \"$@\" | od -An -v -tx1 | tr -d ' \\n' >&2", "sh"]);
    let ran = run(command.args(odd).arg(OsStr::from_bytes(b"\xff"))).expect(0);
    let hex: String = b"a b|c\nd||$HOME;*|--max|\xff|".iter().map(|b| format!("{b:02x}")).collect();
    assert!(ran.stderr.contains(&hex), "{}", ran.stderr);
}

#[test]
fn a_command_that_does_not_exist_is_noticed_before_the_switch() {
    let world = World::new();
    run(world.nc_maint("run").args(["--", "no-such-command"])).expect(69);
    assert!(!std::fs::read_to_string(world.config()).unwrap().contains("maintenance"));
    world.is_clean();
    // One that cannot be executed is noticed after it, and switched back.
    run(world.nc_maint("run").args(["--", "/etc/passwd"])).expect(77);
    world.is_clean();
}

#[test]
fn maintenance_that_was_on_stays_on() {
    let world = World::new();
    world.occ(&["maintenance:mode", "--on"]);
    let ran = world.run(&[], &format!("cat {}", world.record().display())).expect(0);
    assert_eq!((&ran.json["data"]["found_on"], &ran.json["changed"]), (&json!(true), &json!(false)));
    assert_eq!(ran.json["data"]["command"]["output"][0]["run_id"], ran.json["data"]["run_id"]);
    assert_eq!(ran.json["warnings"][0]["kind"], "found-on");
    assert!(world.maintenance());
    assert!(!world.record().exists());

    // The same after `nc-maint on`, whose record is there again afterwards.
    world.ask("off", &[]).expect(0);
    world.ask("on", &[]).expect(0);
    let before = std::fs::read(world.record()).unwrap();
    world.run(&[], "true").expect(0);
    assert!(world.maintenance());
    assert_eq!(std::fs::read(world.record()).unwrap(), before);
}

#[test]
fn an_end_by_somebody_else_makes_the_run_fail() {
    let world = World::new();
    let off = format!("php {}/occ maintenance:mode --off >&2", world.root().display());
    let ran = world.run(&[], &off).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("something else ended maintenance"));
    world.is_clean();
}

#[test]
fn off_that_cannot_be_proven_outranks_the_command() {
    let world = World::new();
    let theirs = world.root().join("config/zz.config.php");
    let spoil = format!(
        "umask 022; echo \"<?php \\$CONFIG = array('maintenance' => true);\" > {}; exit 7",
        theirs.display()
    );
    let ran = world.run(&[], &spoil).expect(4);
    assert_eq!(ran.json["data"]["command"]["exit_code"], 7);
    assert!(ran.json["left_behind"][0]["what"].as_str().unwrap().contains("could not be proven off"));
    // As soon as that is gone, what runs at boot and after units brings Nextcloud back.
    std::fs::remove_file(theirs).unwrap();
    world.ask("off", &["--if-ours"]).expect(0);
    world.is_clean();
}

#[test]
fn of_two_runs_the_second_is_busy_and_nothing_else_is() {
    let world = World::new();
    let mut first = world.start(&[], "touch ready; while [ ! -e go ]; do sleep 0.05; done", "ready");
    let ran = world.run(&[], "true").expect(75);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("another run"));
    assert_eq!(world.ask("status", &[]).expect(0).json["data"]["run_active"], true);
    let kept = world.ask("off", &["--if-ours"]).expect(0);
    assert_eq!(kept.json["data"]["kept_because"], "run-active");
    assert!(world.maintenance());
    std::fs::write(world.path().join("go"), "").unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(0));
    world.is_clean();
}

#[test]
fn a_run_past_its_deadline_loses_its_claim() {
    let world = World::new();
    let mut first = world.start(&[], "touch ready; while [ ! -e go ]; do sleep 0.05; done", "ready");
    // As if the guardian were stuck: alive, and its time long over.
    let file = world.state().join("switch.json");
    let mut claim: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    claim["deadline"] = json!("2026-01-01T00:00:00Z");
    std::fs::write(&file, claim.to_string()).unwrap();
    world.ask("off", &["--if-ours"]).expect(0);
    assert!(!world.maintenance());
    std::fs::write(world.path().join("go"), "").unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(1), "its maintenance was taken from it");
    world.is_clean();
}

#[test]
fn a_process_the_command_leaves_behind_on_purpose_lives_and_is_not_waited_for() {
    let world = World::new();
    let pid = world.path().join("pid");
    let begin = Instant::now();
    world.run(&[], &format!("setsid sleep 60 & echo $! > {}", pid.display())).expect(0);
    assert!(begin.elapsed() < Duration::from_secs(10));
    let left = world.pid("pid");
    assert!(alive(left), "a database session held for the dump must outlive the switch");
    signal(left.into(), "KILL");
    world.is_clean();
}

#[test]
fn the_command_inherits_nothing_but_three_streams() {
    let world = World::new();
    let line = format!(
        "exec 9</etc/shadow; LEAK=1 {} run --root {} --state-dir {} -- sh -c 'ls /proc/self/fd | tr \"\\n\" \" \" >&2; env >&2; cat'",
        bin("nc-maint").display(),
        world.root().display(),
        world.state().display()
    );
    let ran = run(Command::new("bash").args(["-c", &line])).expect(0);
    assert!(ran.stderr.contains("0 1 2 3 "), "3 is ls's own: {}", ran.stderr);
    assert!(!ran.stderr.contains("0 1 2 3 4") && !ran.stderr.contains("LEAK"), "{}", ran.stderr);
    world.is_clean();
}

#[test]
fn a_reader_that_goes_away_changes_nothing_about_the_run() {
    let world = World::new();
    let mut command = world.nc_maint("run");
    command.args(["--", "sh", "-c", "yes | head -c 300000 >&2; exit 5"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(5));
    world.is_clean();
}

#[test]
fn a_flood_of_output_is_neither_lost_nor_waited_for() {
    let world = World::new();
    let ran = world.run(&[], "seq 1 20000 | sed 's/.*/{\"n\":&}/'; seq 1 20000 >&2").expect(0);
    let output = ran.json["data"]["command"]["output"].as_array().unwrap();
    assert_eq!((output.len(), &output[19999]["n"]), (20000, &json!(20000)));
    assert!(ran.stderr.contains("\n20000\n"));
}

#[test]
fn signals_are_forwarded_and_end_the_run_in_order() {
    for (name, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let world = World::new();
        let script = format!(
            "trap 'echo {{\\\"got\\\":\\\"{name}\\\"}}; exit 9' {name}; touch ready; while :; do sleep 0.05; done"
        );
        let child = world.start(&[], &script, "ready");
        signal(child.id().into(), name);
        let ran = judge(child.wait_with_output().unwrap()).expect(128 + number);
        assert_eq!(ran.json["data"]["command"]["output"][0]["got"], name);
        assert_eq!(ran.json["data"]["command"]["exit_code"], 9);
        world.is_clean();
    }
}

#[test]
fn a_signal_while_the_switch_is_thrown_means_no_command_and_no_maintenance() {
    let world = World::new();
    world.misbehave("delay_on_ms = 1000");
    let child = world.spawn(&[], "touch ran");
    eventually("the switch is being thrown", || world.state().join("switch.json").exists());
    signal(child.id().into(), "TERM");
    let ran = judge(child.wait_with_output().unwrap()).expect(143);
    assert_eq!(ran.json["data"]["command"], json!(null));
    assert!(!world.path().join("ran").exists());
    world.is_clean();
}
