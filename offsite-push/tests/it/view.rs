//! Looking into the container.

use serde_json::json;
use testkit::judge;

use crate::world::{DATES, World, signal};

#[test]
fn a_view_shows_the_dates_keeps_pushes_out_and_is_closed() {
    let world = World::new();
    world.push().expect(0);
    world.snapshot(DATES[1]);
    world.push().expect(0);
    let view = world.run("view", &[]).expect(0);
    assert_eq!(view.json["changed"], true);
    let path = world.path("run/container/snapshots").join(DATES[1]);
    assert_eq!(view.json["data"]["path"], path.to_str().unwrap());
    let store = path.parent().unwrap().to_str().unwrap();
    assert_eq!(
        (&view.json["data"]["dates"], &view.json["data"]["store"]),
        (&json!(DATES[..2]), &store.into())
    );
    assert!(view.stderr.contains(&format!("--store {store} ")), "{}", view.stderr);
    assert!(view.stderr.contains(path.to_str().unwrap()), "{}", view.stderr);
    assert!(world.read("log").contains("--read-only"));
    // Again, and of another date: it is open already.
    world.calls();
    let again = world.run("view", &["--date", DATES[0]]).expect(0);
    assert_eq!((&again.json["changed"], &again.json["data"]["date"]), (&false.into(), &DATES[0].into()));
    assert_eq!(world.calls(), ["luks-mount status", "sshfs-mount status"]);
    // Nothing new: fine. Something new: busy, and the view is left alone.
    world.push().expect(0);
    world.snapshot(DATES[2]);
    let ran = world.push().expect(75);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("offsite-push unview home"));
    assert_eq!(world.run("status", &[]).expect(0).json["data"]["view"]["open"], true);
    assert!(!world.is_down());
    // Closed, once.
    assert_eq!(world.run("unview", &[]).expect(0).json["changed"], true);
    assert!(world.is_down());
    assert_eq!(world.run("unview", &[]).expect(0).json["changed"], false);
    world.push().expect(0);
}

#[test]
fn a_view_that_cannot_be_opened_leaves_nothing() {
    let world = World::new();
    let ran = world.run("view", &[]).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("holds no snapshot"));
    assert!(world.is_down() && !world.path("run/view.json").exists());
    world.push().expect(0);
    let ran = world.run("view", &["--date", DATES[2]]).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains(DATES[0]));
    assert!(world.is_down());
    world.plan("luks-mount-attach", "object 77 false '{}'; exit 77");
    world.run("view", &[]).expect(77);
    assert!(world.is_down() && !world.path("run/view.json").exists());
    world.plan("luks-mount-attach", "pause");
    let child = world.start_until_paused("view");
    signal(child.id(), "TERM");
    judge(child.wait_with_output().unwrap()).expect(143);
    assert!(world.is_down() && !world.path("run/view.json").exists());
    world.no_plan("luks-mount-attach");
    world.run("view", &[]).expect(0);
    world.run("unview", &[]).expect(0);
}

#[test]
fn a_view_killed_while_it_was_opened_is_cleared_by_push_and_by_unview() {
    for cure in [&["push"][..], &["unview"], &["unview", "--if-killed"], &["view"]] {
        let world = World::new();
        world.push().expect(0);
        world.snapshot(DATES[1]);
        world.plan("luks-mount-attach", "pause");
        let mut child = world.start_until_paused("view");
        signal(child.id(), "KILL");
        child.wait().unwrap();
        world.no_plan("luks-mount-attach");
        assert!(!world.is_down());
        world.run(cure[0], &cure[1..]).expect(0);
        assert_eq!(world.is_down(), cure != ["view"]);
        world.run("unview", &[]).expect(0);
        assert!(world.is_down() && !world.path("run/view.json").exists());
    }
}

#[test]
fn a_view_whose_link_is_dead_or_that_is_gone_keeps_nobody_out() {
    let world = World::new();
    world.push().expect(0);
    world.snapshot(DATES[1]);
    world.run("view", &[]).expect(0);
    world.write("s3", "dead");
    let ran = world.push().expect(0);
    assert_eq!(ran.json["warnings"][0]["kind"], "leftovers");
    assert!(world.is_down());
    // Hung may come back: it is somebody's.
    world.snapshot(DATES[2]);
    world.run("view", &[]).expect(0);
    world.write("s3", "hung");
    world.push().expect(75);
    world.run("view", &[]).expect(75);
    world.run("unview", &[]).expect(0);
    assert!(world.is_down());
    // Taken down by hand.
    world.write("run/view.json", "{\"state\":\"open\",\"since\":\"2026-11-22T23:12:22Z\"}");
    world.push().expect(0);
    assert!(!world.path("run/view.json").exists());
}

#[test]
fn unview_that_cannot_close_says_so_and_the_view_stays_known() {
    let world = World::new();
    world.push().expect(0);
    world.run("view", &[]).expect(0);
    world.plan(
        "luks-mount-detach",
        "object 4 false '{}' '[]' '[{\"what\":\"process 1 (bash)\",\"clear\":\"end it\"}]'; exit 4",
    );
    let ran = world.run("unview", &[]).expect(4);
    assert_eq!(ran.json["left_behind"][0]["what"], "process 1 (bash)");
    assert!(world.path("run/view.json").exists());
    world.no_plan("luks-mount-detach");
    world.run("unview", &[]).expect(0);
    assert!(world.is_down());
}

#[test]
fn an_older_container_is_shown_with_a_warning() {
    let world = World::new();
    world.push().expect(0);
    let stamp =
        world.read("disk/generation.json").replace(world.stamp()["generation"].as_str().unwrap(), "older");
    world.write("disk/generation.json", &stamp);
    let ran = world.run("view", &[]).expect(0);
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "container-not-known"));
    world.run("unview", &[]).expect(0);
}
