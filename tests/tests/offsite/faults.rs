//! What can go wrong with a push, and that the next one succeeds.
//! Each time: it ends, says so with the right code, leaves nothing mounted (or the next run clears it), the dates that
//! are there stay whole, and the next push succeeds.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use testkit::guest::{Options, run_me};
use testkit::hosts::Setting;

use crate::world::{World, ended, until};

const GUEST: Options = Options { memory: 3072, seconds: 1200 };

/// A container that holds one date, and a second snapshot that takes a while to push; both dates.
fn ready() -> (World, [String; 2]) {
    let world = World::new(Setting::default());
    world.create("200M");
    let first = world.snapshot(20, 10_000);
    world.push().expect(0);
    let second = world.snapshot(12, 1 << 20);
    (world, [first, second])
}

/// The end of every story.
fn all_is_well(world: &World, [first, second]: &[String; 2]) {
    world.push().expect(0);
    world.nothing_is_up();
    world.container_holds(&[first, second]);
}

#[test]
fn the_link_is_cut_before_and_in_the_middle() {
    if run_me("faults::the_link_is_cut_before_and_in_the_middle", GUEST) {
        return;
    }
    let (world, dates) = ready();
    // Before anything is mounted.
    world.hosts.cut();
    let refused = ended(world.start_push()).expect(69);
    assert_eq!(refused.json["left_behind"].as_array().unwrap().len(), 0);
    world.nothing_is_up();
    world.hosts.mend();

    // In the middle of the copy.
    let push = world.start_push();
    world.until_it_copies();
    std::thread::sleep(Duration::from_secs(3));
    world.hosts.cut();
    let broken = ended(push);
    assert!([1, 69].contains(&broken.code), "{broken:?}");
    assert_eq!(broken.json["left_behind"].as_array().unwrap().len(), 0, "{broken:?}");
    assert_eq!(broken.json["data"]["failed_step"], "copy", "{broken:?}");
    world.nothing_is_up();
    world.hosts.mend();
    all_is_well(&world, &dates);
}

#[test]
fn the_link_is_cut_while_it_is_taken_down() {
    if run_me("faults::the_link_is_cut_while_it_is_taken_down", GUEST) {
        return;
    }
    let (world, dates) = ready();
    let push = world.start_push();
    // The copy is published; what follows is the record and the way down.
    let published = world.path(&format!("state/run/container/snapshots/{}", dates[1]));
    until("it is published", || published.exists());
    world.hosts.cut();
    let broken = ended(push);
    assert!([1, 69].contains(&broken.code), "{broken:?}");
    world.nothing_is_up();
    world.hosts.mend();
    all_is_well(&world, &dates);
}

#[test]
fn sshfs_is_killed() {
    if run_me("faults::sshfs_is_killed", GUEST) {
        return;
    }
    let (world, dates) = ready();
    let push = world.start_push();
    world.until_it_copies();
    let sshfs = world.act("sshfs-mount", "status", &[]).expect(0).json["data"]["pid"].as_u64().unwrap();
    kill("-KILL", sshfs);
    let broken = ended(push);
    assert!([1, 69].contains(&broken.code), "{broken:?}");
    assert_eq!(broken.json["left_behind"].as_array().unwrap().len(), 0, "{broken:?}");
    world.nothing_is_up();
    all_is_well(&world, &dates);
}

#[test]
fn the_push_is_stopped_or_killed() {
    if run_me("faults::the_push_is_stopped_or_killed", GUEST) {
        return;
    }
    let (world, dates) = ready();
    let push = world.start_push();
    world.until_it_copies();
    kill("-TERM", push.id().into());
    let stopped = ended(push).expect(143);
    assert_eq!(stopped.json["left_behind"].as_array().unwrap().len(), 0, "{stopped:?}");
    world.nothing_is_up();

    let push = world.start_push();
    world.until_it_copies();
    kill("-KILL", push.id().into());
    ended(push).expect(137);
    // What it left is the next run's to clear: that one says so.
    let next = world.push().expect(0);
    assert_eq!(next.json["changed"], true);
    assert!(next.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "leftovers"), "{next:?}");
    world.nothing_is_up();
    all_is_well(&world, &dates);
}

#[test]
fn the_container_is_full_or_too_small() {
    if run_me("faults::the_container_is_full_or_too_small", GUEST) {
        return;
    }
    let world = World::new(Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, ..Setting::default() });
    world.create("64M");
    let first = world.snapshot(10, 100_000);
    world.push().expect(0);
    // Known before anything is copied.
    world.snapshot(80, 1 << 20);
    let refused = world.push().expect(1);
    assert!(refused.json["error"].to_string().contains("not enough room"), "{refused:?}");
    world.nothing_is_up();
    world.container_holds(&[&first]);
    // A larger one holds both.
    world.act("sshfs-mount", "mount", &[]).expect(0);
    world.act("luks-mount", "grow", &["--size", "300M"]).expect(0);
    world.act("sshfs-mount", "unmount", &[]).expect(0);
    let third = world.snapshot(10, 1 << 20);
    world.push().expect(0);
    world.container_holds(&[&first, &third]);
}

#[test]
fn the_disk_of_s3_is_too_small_or_becomes_full() {
    if run_me("faults::the_disk_of_s3_is_too_small_or_becomes_full", GUEST) {
        return;
    }
    let world = World::new(Setting::default());
    let disk = world.small_disk("40m");
    // Larger than the disk below it, and sparse.
    world.create("200M");

    // Known before anything is copied.
    let too_large = world.snapshot(60, 1 << 20);
    let refused = ended(world.start_push()).expect(1);
    let message = refused.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("not enough room below the container"), "{refused:?}");
    assert_eq!(refused.json["data"]["failed_step"], "room", "{refused:?}");
    assert!(refused.json["data"]["steps"].as_array().unwrap().iter().all(|s| s["step"] != "copy"));
    world.nothing_is_up();
    std::fs::remove_dir_all(world.store().join(&too_large)).unwrap();
    std::fs::remove_dir_all(world.path("source")).unwrap();
    let first = world.snapshot(20, 10_000);
    ended(world.start_push()).expect(0);
    world.container_holds(&[&first]);

    // Somebody else fills it in the middle of the copy.
    let second = world.snapshot(12, 1 << 20);
    let push = world.start_push();
    world.until_it_copies();
    let other = world.s3().join("of-somebody-else");
    let mut file = std::fs::File::create(&other).unwrap();
    let full = std::iter::repeat_with(|| file.write_all(&[1; 1 << 16])).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    drop(file);
    let broken = ended(push);
    eprintln!("the disk is full: {broken:?}");
    assert!([1, 69].contains(&broken.code), "{broken:?}");
    assert_eq!(broken.json["left_behind"].as_array().unwrap().len(), 0, "{broken:?}");
    world.nothing_is_up();

    // Still full: told at once. With room it goes on.
    ended(world.start_push()).expect(1);
    world.nothing_is_up();
    std::fs::remove_file(&other).unwrap();
    ended(world.start_push()).expect(0);
    world.nothing_is_up();
    world.container_holds(&[&first, &second]);
    drop(disk);
}

#[test]
fn an_older_or_another_container_is_refused() {
    if run_me("faults::an_older_or_another_container_is_refused", GUEST) {
        return;
    }
    let world = World::new(Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, ..Setting::default() });
    world.create("64M");
    let first = world.snapshot(5, 1000);
    world.push().expect(0);
    let older = world.path("older.img");
    crate::world::ok("cp", &["--sparse=always", world.image().to_str().unwrap(), older.to_str().unwrap()]);
    let second = world.snapshot(5, 1000);
    world.push().expect(0);
    // Nothing new: the container is not even opened.
    std::fs::rename(world.image(), world.path("away")).unwrap();
    assert_eq!(world.push().expect(0).json["changed"], false);
    std::fs::rename(world.path("away"), world.image()).unwrap();

    // S3 puts an older state back.
    crate::world::ok("cp", &["--sparse=always", older.to_str().unwrap(), world.image().to_str().unwrap()]);
    let third = world.snapshot(6, 1000);
    let refused = world.push().expect(78);
    assert!(refused.json["error"]["hint"].as_str().unwrap().contains("--accept-container"), "{refused:?}");
    world.nothing_is_up();
    world.act("offsite-push", "push", &["--accept-container"]).expect(0);
    world.container_holds(&[&first, &third]);
    assert_ne!(second, third);
    assert_eq!(world.push().expect(0).json["changed"], false);
}

fn kill(signal: &str, pid: u64) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}
