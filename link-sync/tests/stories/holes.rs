//! What somebody changed by hand in the newest snapshot is not handed on to the next ones.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::world::{World, first, folder, warnings};

/// A source with files, links, and folders, an empty one among them.
fn world() -> World {
    let world = World::new();
    fill(&world);
    world
}

fn fill(world: &World) {
    for n in 0..30 {
        world.file(&format!("alice/Photos/{n}"), &format!("photo {n}"));
        world.file(&format!("alice/Notes/deep/{n}"), &format!("note {n}"));
    }
    world.file("top", "at the top");
    std::fs::create_dir(world.source.join("alice/empty")).unwrap();
    symlink("Photos/1", world.source.join("alice/link")).unwrap();
    settled();
}

/// What changed within two seconds of a walk is sent again in any case.
fn settled() {
    std::thread::sleep(std::time::Duration::from_millis(2100));
}

/// What the warning `kind` of a run says.
fn said(ran: &testkit::Ran, kind: &str) -> String {
    let all = ran.json["warnings"].as_array().unwrap();
    let found = all.iter().find(|w| w["kind"] == kind);
    found.and_then(|w| w["message"].as_str()).unwrap_or_else(|| panic!("no {kind}: {ran:?}")).to_owned()
}

/// After `harm` was done to the newest snapshot, the next one holds all again, and says that it names `named`.
#[track_caller]
fn mended(harm: impl Fn(&Path), named: &str) {
    let world = world();
    let held = world.publish().join("docs");
    harm(&held);
    let ran = world.snapshot(&[]).expect(0);
    world.newest_is_source();
    let told = said(&ran, "base-lacks");
    assert!(told.contains(named), "{told}");
    assert!(first(&ran)["lacking_paths"].as_u64().unwrap() > 0, "{ran:?}");
    settled();
    let again = world.snapshot(&[]).expect(0);
    assert_eq!((warnings(&again), &first(&again)["lacking_paths"]), (vec![], &Value::from(0)), "whole again");
    world.newest_is_source();
}

#[test]
fn a_folder_deleted_in_the_newest_snapshot_is_taken_again_and_told() {
    mended(|held| std::fs::remove_dir_all(held.join("alice/Notes")).unwrap(), "alice/Notes");
}

#[test]
fn so_is_a_file() {
    mended(|held| std::fs::remove_file(held.join("alice/Photos/7")).unwrap(), "alice/Photos/7");
}

#[test]
fn so_is_a_file_at_the_top() {
    mended(|held| std::fs::remove_file(held.join("top")).unwrap(), "top");
}

#[test]
fn so_is_a_symbolic_link() {
    mended(|held| std::fs::remove_file(held.join("alice/link")).unwrap(), "alice/link");
}

#[test]
fn so_is_an_empty_folder() {
    mended(|held| std::fs::remove_dir(held.join("alice/empty")).unwrap(), "alice/empty");
}

#[test]
fn so_is_a_file_that_another_was_put_in_place_of() {
    let harm = |held: &Path| {
        // The names and their number stay.
        std::fs::remove_file(held.join("alice/Photos/7")).unwrap();
        std::fs::write(held.join("alice/Photos/7"), "something quite different").unwrap();
    };
    mended(harm, "alice/Photos/7");
}

#[test]
fn so_is_a_file_that_became_a_folder_and_the_other_way_round() {
    let harm = |held: &Path| {
        std::fs::remove_file(held.join("alice/Photos/7")).unwrap();
        std::fs::create_dir(held.join("alice/Photos/7")).unwrap();
        std::fs::remove_dir(held.join("alice/empty")).unwrap();
        std::fs::write(held.join("alice/empty"), "").unwrap();
    };
    mended(harm, "alice/Photos/7");
}

#[test]
fn what_nobody_stored_is_left_out_and_told() {
    let world = world();
    let held = world.publish().join("docs");
    std::fs::create_dir(held.join("alice/planted")).unwrap();
    std::fs::write(held.join("alice/planted/file"), "x").unwrap();
    // One went and one came: their number is as it was.
    std::fs::rename(held.join("alice/Photos/3"), held.join("alice/Photos/03")).unwrap();
    let ran = world.snapshot(&[]).expect(0);
    world.newest_is_source();
    assert!(said(&ran, "base-has-more").contains("alice/planted"), "{ran:?}");
    assert!(said(&ran, "base-lacks").contains("alice/Photos/3"), "{ran:?}");
}

#[test]
fn what_changed_meanwhile_does_not_hide_a_hole() {
    let world = world();
    let held = world.publish().join("docs");
    std::fs::remove_dir_all(held.join("alice/Notes")).unwrap();
    world.file("alice/Notes/deep/5", "changed meanwhile");
    world.file("alice/new/one", "new");
    std::fs::remove_file(world.source.join("alice/Notes/deep/6")).unwrap();
    std::fs::rename(world.source.join("alice/empty"), world.source.join("alice/void")).unwrap();
    let ran = world.act("stage", &[]).expect(0);
    assert!(said(&ran, "base-lacks").contains("alice/Notes"), "{ran:?}");
    world.act("settle", &[]).expect(0);
    folder(&world.act("publish", &["--crash-consistent"]).expect(0));
    world.newest_is_source();
}

#[test]
fn a_store_of_an_account_behind_ssh_is_counted_too() {
    let remote = crate::far::Remote::new();
    fill(&remote.world);
    let fifo = remote.world.source.join("alice/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    crate::world::ok("chown", &["-hR", "33:33", remote.world.source.join("alice").to_str().unwrap()]);
    settled();
    let held = folder(&remote.world.snapshot(&[]).expect(0)).join("docs");
    let quiet = remote.world.snapshot(&[]).expect(0);
    assert_eq!(warnings(&quiet), Vec::<&str>::new(), "whole");
    assert_eq!(first(&quiet)["changed_paths"].as_u64(), Some(0), "{quiet:?}");
    drop(held);

    let held = folder(&quiet).join("docs");
    std::fs::remove_dir_all(held.join("alice/Notes")).unwrap();
    std::fs::remove_file(held.join("alice/link")).unwrap();
    let ran = remote.world.snapshot(&[]).expect(0);
    let told = said(&ran, "base-lacks");
    assert!(told.contains("alice/Notes") && told.contains("alice/link"), "{told}");
    let held = folder(&ran).join("docs");
    assert_eq!(std::fs::read_to_string(held.join("alice/Notes/deep/4")).unwrap(), "note 4");
    assert!(held.join("alice/link").symlink_metadata().is_ok());
    assert_eq!(warnings(&remote.world.snapshot(&[]).expect(0)), Vec::<&str>::new());
}
