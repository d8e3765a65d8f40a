//! `scripts/push-offsite` and `scripts/view-offsite`, and the units that systemd runs.
//! The same object around the tools, and nothing left open.

use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{Ran, judge, scripts};

use crate::world::{DATES, World, eventually, signal, steps};

fn script(world: &World, name: &str, arguments: &[&str]) -> Command {
    let mut command = world.enter(scripts().join(name));
    command.args(["home", "--config"]).arg(world.path("home.toml")).arg("--bin").arg(world.path("bin"));
    command.args(arguments).stdin(Stdio::null());
    command
}

#[track_caller]
fn call(world: &World, name: &str, arguments: &[&str]) -> Ran {
    judge(script(world, name, arguments).output().unwrap())
}

#[test]
fn push_offsite_passes_the_push_on() {
    let world = World::new();
    let ran = call(&world, "push-offsite", &[]).expect(0);
    assert_eq!(ran.json["tool"], "push-offsite");
    assert_eq!((steps(&ran), &ran.json["changed"]), (vec!["push"], &true.into()));
    assert_eq!(ran.json["data"]["push"]["sent_bytes"], 1_234_567);
    assert_eq!(ran.json["warnings"][0]["kind"], "header-differs");
    world.snapshot(DATES[1]);
    world.plan("link-sync-copy", "object 69 false '{}'; exit 69");
    let ran = call(&world, "push-offsite", &[]).expect(69);
    assert_eq!((&ran.json["data"]["failed_step"], steps(&ran)), (&"copy".into(), vec!["push"]));
    assert_eq!(ran.json["error"]["message"], "link-sync copy said 69");
    world.plan("sshfs-mount-unmount", "object 1 false '{}'; exit 1");
    let ran = call(&world, "push-offsite", &[]).expect(4);
    assert_eq!(ran.json["left_behind"].as_array().unwrap().len(), 1);
}

#[test]
fn push_offsite_clears_up_after_a_kill_and_passes_signals_on() {
    let world = World::new();
    world.plan("copying", "kill -KILL $PPID; kill -KILL $$");
    let ran = call(&world, "push-offsite", &[]).expect(137);
    assert_eq!(steps(&ran), ["push", "clear"]);
    assert!(world.is_down());
    world.plan("copying", "pause");
    let mut command = script(&world, "push-offsite", &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the copy waits", || !world.read("paused").is_empty());
    signal(child.id(), "TERM");
    let ran = judge(child.wait_with_output().unwrap()).expect(143);
    assert_eq!(ran.json["data"]["steps"][0]["output"]["status"], "interrupted");
    assert!(world.is_down());
}

#[test]
fn view_offsite_runs_a_command_there_and_closes() {
    let world = World::new();
    world.push_ok();
    let ran = call(&world, "view-offsite", &["--", "sh", "-c", "pwd; ls -A; exit 7"]).expect(7);
    assert!(ran.stderr.contains(&format!("snapshots/{}\n.meta\n", DATES[0])), "{}", ran.stderr);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("exit code 7"));
    assert_eq!(steps(&ran), ["view", "unview"]);
    assert!(world.is_down());
    call(&world, "view-offsite", &["--", "true"]).expect(0);
    call(&world, "view-offsite", &["--date", DATES[2], "--", "true"]).expect(78);
    assert!(world.is_down());
    // Without a command, a shell needs somebody.
    call(&world, "view-offsite", &[]).expect(2);
    // One that was open before stays open.
    world.run("view", &[]).expect(0);
    call(&world, "view-offsite", &["--", "true"]).expect(0);
    assert!(!world.is_down());
    world.run("unview", &[]).expect(0);
}

#[test]
fn view_offsite_closes_after_a_signal() {
    let world = World::new();
    world.push_ok();
    let mut command = script(&world, "view-offsite", &["--", "sh", "-c", "echo there >&2; exec sleep 60"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it is open", || !world.is_down() && world.read("run/view.json").contains("\"open\""));
    std::thread::sleep(Duration::from_millis(300));
    signal(child.id(), "TERM");
    judge(child.wait_with_output().unwrap()).expect(143);
    assert!(world.is_down());
}
