//! The container is the one that was left behind, or it is refused before anything is written in it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::world::{DATES, World};

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Two nights, with the container of the first one kept aside.
fn two_nights() -> World {
    let world = World::new();
    world.push().expect(0);
    copy(&world.path("disk"), &world.path("old-disk"));
    world.snapshot(DATES[1]);
    world.push().expect(0);
    world.snapshot(DATES[2]);
    world
}

fn swap(world: &World, disk: &str) {
    std::fs::rename(world.path("disk"), world.path("disk-away")).unwrap();
    copy(&world.path(disk), &world.path("disk"));
}

/// It is refused with a reason, nothing in it or on S2 is changed, all is down.
#[track_caller]
fn refused(world: &World, reason: &str) {
    let before = (world.record(), world.stamp(), world.container());
    world.calls();
    let ran = world.push().expect(78);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains(reason), "{message}");
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("--accept-container"));
    assert_eq!(ran.json["data"]["failed_step"], "check");
    assert_eq!((world.record(), world.stamp(), world.container()), before);
    assert!(world.is_down());
    assert!(!world.calls().iter().any(|c| c.starts_with("link-sync")));
}

#[track_caller]
fn accepted_once(world: &World) {
    let ran = world.run("push", &["--accept-container"]).expect(0);
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "container-accepted"));
    assert!(world.container().iter().any(|d| d == DATES[2]));
    assert_eq!(world.record()["generation"], world.stamp()["generation"]);
    assert_eq!(world.push().expect(0).json["changed"], false);
}

#[test]
fn an_older_container_is_refused_until_it_is_accepted() {
    let world = two_nights();
    swap(&world, "old-disk");
    refused(&world, "not the state that was left behind");
    refused(&world, "not the state that was left behind");
    accepted_once(&world);
}

#[test]
fn a_confirmed_date_that_is_gone_is_refused_until_it_is_accepted() {
    let world = two_nights();
    std::fs::remove_dir_all(world.path("disk/snapshots").join(DATES[0])).unwrap();
    refused(&world, &format!("is gone: {}", DATES[0]));
    // Whoever looks hears it, too.
    assert!(
        world.run("verify", &[]).expect(1).json["error"]["message"].as_str().unwrap().contains("is gone")
    );
    let view = world.run("view", &[]).expect(0);
    assert!(view.json["warnings"].to_string().contains("is gone"));
    world.run("unview", &[]).expect(0);
    accepted_once(&world);
    assert_eq!(world.record()["dates"], serde_json::json!(DATES[1..]));
}

#[test]
fn another_container_is_refused() {
    let world = two_nights();
    world.write("uuid", "uuid-2");
    refused(&world, "its UUID is uuid-2, expected uuid-1");
    accepted_once(&world);
}

#[test]
fn a_container_that_lost_its_generation_is_refused() {
    let world = two_nights();
    std::fs::remove_file(world.path("disk/generation.json")).unwrap();
    refused(&world, "its generation is missing");
    std::fs::write(world.path("disk/generation.json"), "{").unwrap();
    refused(&world, "cannot be read");
    std::fs::create_dir(world.path("empty-disk")).unwrap();
    swap(&world, "empty-disk");
    refused(&world, "its generation is missing");
    accepted_once(&world);
}

#[test]
fn a_container_of_which_this_machine_knows_nothing_is_refused() {
    let world = two_nights();
    std::fs::remove_file(world.path("state/offsite.json")).unwrap();
    refused(&world, "of which this machine knows nothing");
    std::fs::remove_file(world.path("disk/generation.json")).unwrap();
    refused(&world, "of which this machine knows nothing");
    accepted_once(&world);
}

#[test]
fn a_damaged_record_is_told_and_nothing_is_put_up() {
    let world = two_nights();
    world.write("state/offsite.json", "{");
    world.calls();
    let ran = world.push().expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("offsite.json is damaged"));
    assert!(!world.calls().iter().any(|c| c == "sshfs-mount mount"));
}

/// Cuts a push off at `cut`: what the copy did stays, what was not reached is missing.
fn cut_off(world: &World, cut: &str) {
    match cut {
        // S2 has noted the next generation; the copy is half done.
        "copying" => world.plan("copying", "object 1 false '{}'; exit 1"),
        // Published, but the generation was not written.
        "published" => {
            world.plan("copying", "mv \"$to/.partial\" \"$to/$date\"; kill -KILL $PPID; kill -KILL $$")
        }
        // Written, but the container was not closed.
        "stamped" => world.plan("luks-mount-detach", "kill -KILL $PPID; kill -KILL $$"),
        // Closed, but not confirmed.
        _ => world.plan(
            "luks-mount-detach",
            "umount \"$w/run/container\"; echo detached >\"$w/luks\"; kill -KILL $PPID; kill -KILL $$",
        ),
    }
    let output = world.command("push", &[]).output().unwrap();
    assert!(!output.status.success(), "{cut}");
    world.no_plan(if matches!(cut, "copying" | "published") { "copying" } else { "luks-mount-detach" });
}

#[test]
fn cut_off_between_any_two_steps_the_next_push_knows_its_container() {
    for first in [true, false] {
        for cut in ["copying", "published", "stamped", "closed"] {
            let world = World::new();
            if !first {
                world.push().expect(0);
                world.snapshot(DATES[1]);
            }
            let known = world.record()["generation"].clone();
            cut_off(&world, cut);
            let record = world.record();
            assert_eq!(
                (&record["generation"], record["next_generation"].is_string()),
                (&known, true),
                "{cut}"
            );
            assert!(!world.run("status", &[]).expect(0).json["data"]["unconfirmed"].eq(&false));
            copy(&world.path("disk"), &world.path("cut-disk"));
            // The next push takes it, and gives it a value it never had.
            let old = world.stamp();
            world.push().expect(0);
            let (record, stamp) = (world.record(), world.stamp());
            assert_eq!(record["generation"], stamp["generation"]);
            assert_ne!(stamp["generation"], old["generation"]);
            assert_eq!(record["next_generation"], Value::Null);
            // The state from the cut is out of date from now on.
            world.snapshot(DATES[2]);
            swap(&world, "cut-disk");
            refused(&world, "");
        }
    }
}

#[test]
fn a_new_container_after_a_first_push_that_never_ended_well_is_taken() {
    let world = World::new();
    cut_off(&world, "copying");
    world.write("uuid", "uuid-2");
    std::fs::create_dir(world.path("empty-disk")).unwrap();
    swap(&world, "empty-disk");
    world.push().expect(0);
    assert_eq!(world.record()["container_uuid"], "uuid-2");
}
