//! `run` when it is killed: whatever dies, Nextcloud comes back, and nothing of the command lives on.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{bin, judge};

use crate::world::{World, alive, eventually, guardian, signal};

/// A command with a child in its group, and a grandchild in a session of its own whose parent is gone.
const FAMILY: &str = "echo $$ > command; sleep 300 & echo $! > child\n\
    (setsid sh -c 'echo $$ > orphan; trap : TERM; while :; do sleep 0.1; done' &) \n\
    while [ ! -s orphan ]; do sleep 0.02; done; touch ready; wait";

fn start(world: &World, options: &[&str]) -> (Child, Vec<u32>) {
    let child = world.start(options, FAMILY, "ready");
    let family: Vec<u32> = ["command", "child", "orphan"].iter().map(|n| world.pid(n)).collect();
    assert!(family.iter().all(|p| alive(*p)) && world.maintenance());
    (child, family)
}

#[track_caller]
fn all_gone(family: &[u32]) {
    let left: Vec<_> = family.iter().filter(|p| alive(**p)).collect();
    assert!(left.is_empty(), "still alive of {family:?}: {left:?}");
}

#[test]
fn when_max_runs_out_the_command_and_all_it_started_end() {
    let world = World::new();
    let (child, family) = start(&world, &["--max", "1500ms"]);
    let begin = Instant::now();
    let ran = judge(child.wait_with_output().unwrap()).expect(1);
    assert!(begin.elapsed() < Duration::from_secs(10), "also with a descendant that ignores SIGTERM");
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("did not end within 1.5s"));
    assert_eq!(ran.json["data"]["command"]["signal"], 15);
    all_gone(&family);
    world.is_clean();
}

#[test]
fn after_sigkill_of_run_the_guardian_ends_everything() {
    let world = World::new();
    let (mut child, family) = start(&world, &[]);
    signal(child.id().into(), "KILL");
    child.wait().unwrap();
    eventually("maintenance is off", || !world.maintenance() && !world.state().join("switch.json").exists());
    all_gone(&family);
    world.is_clean();
}

#[test]
fn after_sigkill_while_the_switch_is_thrown_nothing_stays_on() {
    let world = World::new();
    world.misbehave("delay_on_ms = 800");
    let mut child = world.spawn(&[], "touch ran");
    eventually("the switch is being thrown", || world.state().join("switch.json").exists());
    signal(child.id().into(), "KILL");
    child.wait().unwrap();
    eventually("the claim is gone", || !world.state().join("switch.json").exists());
    std::thread::sleep(Duration::from_millis(300));
    assert!(!world.path().join("ran").exists());
    world.is_clean();
}

#[test]
fn term_then_kill_of_the_whole_group_leaves_the_guardian_to_finish() {
    let world = World::new();
    let (mut child, family) = start(&world, &[]);
    let group = -i64::from(child.id());
    signal(group, "TERM");
    signal(group, "KILL");
    child.wait().unwrap();
    eventually("the claim is gone", || !world.state().join("switch.json").exists());
    all_gone(&family);
    world.is_clean();
}

#[test]
fn term_to_every_process_of_a_unit_is_an_orderly_end() {
    let world = World::new();
    let (child, family) = start(&world, &[]);
    let guardian = guardian(child.id());
    for pid in family.iter().copied().chain([guardian, child.id()]) {
        signal(pid.into(), "TERM");
    }
    judge(child.wait_with_output().unwrap()).expect(143);
    all_gone(&family);
    world.is_clean();
}

#[test]
fn a_guardian_that_is_told_to_stop_stops_the_run() {
    let world = World::new();
    let (child, family) = start(&world, &[]);
    signal(guardian(child.id()).into(), "TERM");
    let ran = judge(child.wait_with_output().unwrap()).expect(143);
    assert_eq!(ran.json["status"], "interrupted");
    all_gone(&family);
    world.is_clean();
}

#[test]
fn when_the_guardian_is_killed_the_front_takes_its_place() {
    let world = World::new();
    let (child, family) = start(&world, &[]);
    signal(guardian(child.id()).into(), "KILL");
    let ran = judge(child.wait_with_output().unwrap()).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("guardian process was killed"));
    all_gone(&family);
    world.is_clean();
}

#[test]
fn when_the_guardian_is_killed_in_the_middle_of_a_switch_occ_may_finish_first() {
    let world = World::new();
    world.misbehave("delay_on_ms = 800");
    let child = world.spawn(&[], "touch ran");
    eventually("the switch is being thrown", || world.state().join("switch.json").exists());
    signal(guardian(child.id()).into(), "KILL");
    judge(child.wait_with_output().unwrap()).expect(1);
    assert!(!world.path().join("ran").exists());
    world.is_clean();
}

#[test]
fn sigkill_at_any_moment_of_a_run_is_followed_by_off() {
    let world = World::new();
    for moment in (0..300).step_by(23) {
        let mut child = world.spawn(&[], "sleep 0.05");
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the guardian has ended", || {
            world.ask("status", &[]).expect(0).json["data"]["run_active"] == false
                && !world.state().join("switch.json").exists()
        });
        world.is_clean();
    }
}

#[test]
fn sigkill_of_front_and_guardian_at_any_moment_is_cleaned_up_by_off_if_ours() {
    let world = World::new();
    world.misbehave("delay_on_ms = 60");
    for moment in (40..340).step_by(23) {
        let mut child = world.spawn(&[], "sleep 0.05");
        let guardian = guardian(child.id());
        std::thread::sleep(Duration::from_millis(moment));
        for pid in [guardian, child.id()] {
            // Both may have ended by themselves.
            Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status().unwrap();
        }
        child.wait().unwrap();
        eventually("the guardian is dead", || !alive(guardian));
        // An occ in flight may still switch on: then it is waited for, and switched off.
        world.ask("off", &["--if-ours"]).expect(0);
        std::thread::sleep(Duration::from_millis(150));
        world.is_clean();
    }
}

#[test]
fn an_occ_that_was_just_being_started_when_all_was_killed_is_waited_for() {
    let world = World::new();
    // Every program is started half a second late: between the fork and that, a child holds all that its parent held.
    let tool = world.nc_maint("run");
    let mut slow = Command::new("strace");
    slow.args(["-f", "-o", "/dev/null", "-e", "trace=execve", "-e", "inject=execve:delay_enter=500000"]);
    slow.arg(tool.get_program()).args(tool.get_args()).args(["--", "true"]).current_dir(world.path());
    let mut strace = slow.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let claim = world.state().join("switch.json");
    let mut guardian = 0;
    eventually("occ is being started", || {
        let text = std::fs::read(&claim).unwrap_or_default();
        let claim: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        guardian = claim["pid"].as_u64().unwrap_or_default();
        guardian > 0
    });
    let children = || {
        let words = ["-o", "pid=", "--ppid", &guardian.to_string()];
        !Command::new("ps").args(words).output().unwrap().stdout.trim_ascii().is_empty()
    };
    eventually("it has a child", children);
    let front =
        Command::new("ps").args(["-o", "ppid=", "-p", &guardian.to_string()]).output().unwrap().stdout;
    let front = String::from_utf8(front).unwrap().trim().to_owned();
    for pid in [guardian.to_string(), front] {
        Command::new("kill").args(["-KILL", &pid]).status().unwrap();
    }
    eventually("the guardian is dead", || !alive(u32::try_from(guardian).unwrap()));
    world.ask("off", &["--if-ours"]).expect(0);
    strace.wait().unwrap();
    world.is_clean();
}

/// What systemd does to a unit that does not end: SIGTERM to all of its processes, then SIGKILL to all. Here without
/// the time between, so that nobody can clean up.
fn kill_everybody(world: &World) {
    let (mut child, family) = start(world, &[]);
    let guardian = guardian(child.id());
    let all: Vec<u32> = family.iter().copied().chain([guardian, child.id()]).collect();
    for pid in &all {
        signal((*pid).into(), "STOP");
    }
    for name in ["TERM", "KILL"] {
        for pid in &all {
            signal((*pid).into(), name);
        }
    }
    child.wait().unwrap();
    eventually("all are dead", || !all.iter().any(|p| alive(*p)));
    assert!(world.maintenance(), "nobody was left to switch off");
}

#[test]
fn when_everybody_is_killed_off_if_ours_brings_nextcloud_back() {
    let world = World::new();
    kill_everybody(&world);
    let status = world.ask("status", &[]).expect(0).json;
    assert_eq!(status["warnings"][0]["kind"], "run-killed");
    assert_eq!(status["data"]["run_active"], false);
    // ExecStopPost= and the boot unit run this. After a reboot the runtime folder is empty.
    std::fs::remove_file(world.state().join("run/maintenance.lock")).unwrap();
    let ran = world.ask("off", &["--if-ours"]).expect(0);
    assert_eq!(ran.json["changed"], true);
    world.is_clean();
}

/// With a real unit where systemd runs; elsewhere `kill_everybody` and the tests around it do what it does.
#[test]
fn a_unit_that_is_killed_whole_is_cleaned_up_by_exec_stop_post() {
    let world = World::new();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let place = ["--root", &text(&world.root()), "--state-dir", &text(&world.state())].map(str::to_owned);
    let off = format!("{} off --if-ours {}", text(&bin("nc-maint")), place.join(" "));
    if Path::new("/run/systemd/system").exists() {
        let unit = format!("nc-maint-test-{}", std::process::id());
        let script = format!("cd {}; {FAMILY}", text(world.path()));
        let mut start = Command::new("systemd-run");
        start.args(["--collect", "--unit", &unit, "-p", &format!("ExecStopPost={off}")]);
        start.arg(bin("nc-maint")).arg("run").args(&place).args(["--", "sh", "-c", &script]);
        assert!(start.status().unwrap().success());
        eventually("the command is ready", || world.path().join("ready").exists());
        let kill = Command::new("systemctl").args(["kill", "--signal=KILL", &unit]).status();
        assert!(kill.unwrap().success());
        eventually("maintenance is off", || {
            !world.maintenance() && !world.state().join("switch.json").exists()
        });
    } else {
        eprintln!("no systemd here: its SIGKILL to every process, then ExecStopPost=, done by hand");
        kill_everybody(&world);
        let words: Vec<&str> = off.split(' ').collect();
        assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());
    }
    world.is_clean();
}

#[test]
fn when_everybody_is_killed_the_next_run_takes_over_and_ends_it() {
    let world = World::new();
    kill_everybody(&world);
    let ran = world.run(&[], "true").expect(0);
    assert_eq!((&ran.json["data"]["found_on"], &ran.json["changed"]), (&json!(false), &json!(true)));
    assert_eq!(ran.json["warnings"][0]["kind"], "run-killed");
    world.is_clean();
}

#[test]
fn maintenance_that_was_on_before_a_killed_run_is_not_ended() {
    let world = World::new();
    world.occ(&["maintenance:mode", "--on"]);
    kill_everybody(&world);
    let ran = world.ask("off", &["--if-ours"]).expect(0);
    assert_eq!(ran.json["data"]["kept_because"], "on-before-run");
    assert!(world.maintenance());
    assert!(!world.state().join("switch.json").exists());
}

/// A configuration whose evaluation does this.
fn spoiled(world: &World, code: &str) {
    world.configure(&format!("'x' => (function () {{ {code} }})(),"));
}

#[test]
fn a_configuration_that_prints_without_end_ends_the_run_in_time_and_sigterm_counts() {
    let endless = "ob_implicit_flush(); while (true) { echo str_repeat(\"noise\\n\", 2000); }";
    for (method, code) in [("drop-in", endless), ("drop-in", "sleep(3600);"), ("occ", "sleep(3600);")] {
        let world = World::auto();
        spoiled(&world, code);
        let limits = ["--method", method, "--max", "5s", "--occ-timeout", "3s"];
        let begin = Instant::now();
        let ran = world.run(&limits, "touch ran");
        assert_ne!(ran.code, 0, "{method} {code}");
        assert!(begin.elapsed() < Duration::from_secs(15), "{method} {code}: {:?}", begin.elapsed());
        assert!(!world.path().join("ran").exists());
        // Asked to stop, it stops.
        for action in ["status", "run"] {
            let begin = Instant::now();
            let mut command = world.nc_maint(action);
            command.args(["--method", method, "--occ-timeout", "60s"]);
            if action == "run" {
                command.args(["--", "true"]);
            }
            let quiet = || std::process::Stdio::null();
            let mut child = command.stdout(quiet()).stderr(quiet()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(700));
            if child.try_wait().unwrap().is_none() {
                signal(child.id().into(), "TERM");
            }
            child.wait().unwrap();
            assert!(
                begin.elapsed() < Duration::from_secs(12),
                "{action} {method} {code}: {:?}",
                begin.elapsed()
            );
        }
        world.configure("");
        world.is_clean();
    }
}

#[test]
fn what_a_configuration_prints_by_the_way_costs_no_time() {
    let world = World::auto();
    spoiled(&world, "echo str_repeat(\"a line\\n\", 500000);");
    let begin = Instant::now();
    world.run(&[], "true").expect(0);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    world.configure("");
    world.is_clean();
}
