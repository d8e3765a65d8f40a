//! Signals and kills, at every step; two at once.

use std::process::Child;

use serde_json::json;
use testkit::judge;

use crate::world::{DATES, World, eventually, signal, steps};

/// Where a run can be held: the stand-in waits before its work, or in the middle of the copy.
const MOMENTS: [&str; 6] = [
    "sshfs-mount-status",
    "luks-mount-status",
    "sshfs-mount-mount",
    "luks-mount-attach",
    "link-sync-copy",
    "copying",
];

fn reap(mut child: Child) {
    child.wait().unwrap();
}

#[test]
fn term_at_any_step_takes_everything_down() {
    for moment in MOMENTS {
        let world = World::new();
        world.plan(moment, "pause");
        let child = world.start_until_paused("push");
        signal(child.id(), "TERM");
        let ran = judge(child.wait_with_output().unwrap()).expect(143);
        assert_eq!(ran.json["status"], "interrupted");
        // The step was asked to end, and its object is there.
        let stopped =
            ran.json["data"]["steps"].as_array().unwrap().iter().find(|s| s["exit_code"] == 143).unwrap();
        assert_eq!(stopped["output"]["status"], "interrupted", "{moment}");
        assert_eq!(ran.json["left_behind"], json!([]));
        assert!(world.is_down(), "{moment}");
        world.no_plan(moment);
        world.push().expect(0);
        assert_eq!(world.container(), [DATES[0]]);
    }
}

#[test]
fn a_signal_during_the_take_down_does_not_stop_it_and_what_is_done_is_done() {
    for moment in ["luks-mount-detach", "sshfs-mount-unmount"] {
        let world = World::new();
        // Ignores the signal if it should ever get it, as nothing must interrupt this.
        world.plan(moment, "trap 'echo interrupted >\"$w/wrong\"' TERM; echo $$ >\"$w/paused\"; sleep 0.7");
        let child = world.start_until_paused("push");
        signal(child.id(), "TERM");
        signal(child.id(), "HUP");
        let ran = judge(child.wait_with_output().unwrap()).expect(0);
        assert_eq!(ran.json["changed"], true);
        assert!(world.is_down() && !world.path("wrong").exists());
        assert_eq!(world.record()["date"], DATES[0]);
    }
}

#[test]
fn after_sigkill_at_any_step_the_next_push_clears_and_succeeds() {
    for moment in MOMENTS.iter().chain(&["luks-mount-detach", "sshfs-mount-unmount"]) {
        let world = World::new();
        world.plan(moment, "pause");
        let child = world.start_until_paused("push");
        let paused: u32 = world.read("paused").parse().unwrap();
        signal(child.id(), "KILL");
        reap(child);
        // The sibling dies with it.
        eventually("the sibling is gone", || !std::path::Path::new(&format!("/proc/{paused}")).exists());
        let up = !world.is_down();
        world.no_plan(moment);
        let ran = world.push().expect(0);
        let warned = ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "leftovers");
        assert_eq!(warned, up, "{moment}: {:#}", ran.json["warnings"]);
        assert!(world.is_down(), "{moment}");
        assert_eq!(world.container(), [DATES[0]], "{moment}");
        assert_eq!(world.record()["generation"], world.stamp()["generation"]);
        assert!(world.record()["next_generation"].is_null());
    }
}

#[test]
fn leftovers_are_cleared_also_when_there_is_nothing_new() {
    let world = World::new();
    world.push().expect(0);
    world.snapshot(DATES[1]);
    world.plan("link-sync-copy", "pause");
    let child = world.start_until_paused("push");
    signal(child.id(), "KILL");
    reap(child);
    world.no_plan("link-sync-copy");
    // The store has lost that night since.
    std::fs::rename(world.path("store").join(DATES[1]), world.path("gone")).unwrap();
    // It was begun, so what the container holds is not known without looking.
    let ran = world.push().expect(0);
    assert!(steps(&ran).starts_with(&[
        "status-container",
        "status-s3",
        "clear-container",
        "clear-s3",
        "mount"
    ]));
    world.write("s3", "healthy");
    let ran = world.push().expect(0);
    assert_eq!(steps(&ran), ["status-container", "status-s3", "clear-s3"]);
    assert!(world.is_down());
}

#[test]
fn unview_if_killed_clears_what_a_killed_push_left_and_nothing_else() {
    let world = World::new();
    world.plan("link-sync-copy", "pause");
    let child = world.start_until_paused("push");
    // A push that lives keeps what it has.
    for options in [&["--if-killed"][..], &[]] {
        assert_eq!(world.run("unview", options).expect(0).json["changed"], false);
    }
    assert!(!world.is_down());
    signal(child.id(), "KILL");
    reap(child);
    let ran = world.run("unview", &["--if-killed"]).expect(0);
    assert_eq!((&ran.json["changed"], world.is_down()), (&true.into(), true));
    world.no_plan("link-sync-copy");
    // An open view stays.
    world.push().expect(0);
    world.run("view", &[]).expect(0);
    assert_eq!(world.run("unview", &["--if-killed"]).expect(0).json["changed"], false);
    assert!(!world.is_down());
    world.run("unview", &[]).expect(0);
    assert!(world.is_down());
}

#[test]
fn of_two_pushes_the_second_is_told_who_is_at_work() {
    let world = World::new();
    world.plan("copying", "pause");
    let child = world.start_until_paused("push");
    let pid = child.id().to_string();
    let ran = world.push().expect(75);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains(&pid), "{:#}", ran.json);
    world.run("view", &[]).expect(75);
    let status = world.run("status", &[]).expect(0).json;
    assert_eq!((&status["data"]["pushing"], &status["data"]["unconfirmed"]), (&true.into(), &true.into()));
    signal(child.id(), "INT");
    judge(child.wait_with_output().unwrap()).expect(130);
    assert!(world.is_down());
}
