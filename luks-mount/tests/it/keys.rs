//! More keys, and headers for somewhere else.

use crate::world::{CHEAP, World, elsewhere, warnings};

#[test]
fn three_keys_fit_and_each_opens_image_and_copy() {
    if elsewhere("keys::three_keys_fit_and_each_opens_image_and_copy") {
        return;
    }
    let world = World::with(64, "ext4");
    for name in ["second", "third"] {
        let key = world.key(name);
        let args = ["--new-key-file", key.to_str().unwrap()].into_iter().chain(CHEAP);
        let added = world.run("add-key", args.clone()).expect(0);
        assert_eq!(added.json["changed"], true);
        assert_eq!(world.run("add-key", args).expect(0).json["changed"], false);
    }
    for file in ["state/container.header", "s3/c.img"] {
        for key in ["key", "second", "third"] {
            world.sh(&format!("cryptsetup open --test-passphrase --key-file {key} {file}"));
        }
    }
    let up = world.attach().expect(0);
    assert_eq!((&up.json["data"]["key_slots"], warnings(&up)), (&serde_json::json!([0, 1, 2]), vec![]));
    world.detach().expect(0);
    let third = world.path("third");
    world.run("attach", ["--key-file".as_ref(), third.as_os_str()]).expect(0);
    world.detach().expect(0);
    // A fourth fits, a fifth does not, and nothing is broken by trying.
    let mut codes = Vec::new();
    for name in ["fourth", "fifth"] {
        let key = world.key(name);
        codes.push(
            world.run("add-key", ["--new-key-file", key.to_str().unwrap()].into_iter().chain(CHEAP)).code,
        );
    }
    assert_eq!(codes, [0, 1]);
    world.sh("cryptsetup open --test-passphrase --key-file key state/container.header");
    assert_eq!(world.sh("ls -A state"), "container.header\ncontainer.json\ncontainer.lock");
}

#[test]
fn a_header_that_would_reach_into_the_data_is_not_written() {
    if elsewhere("keys::a_header_that_would_reach_into_the_data_is_not_written") {
        return;
    }
    let world = World::with(64, "ext4");
    let key = world.key("second");
    let before = world.sh("sha256sum s3/c.img");
    world.sh("cp state/container.header good; truncate -s 3M state/container.header");
    let args = || ["--new-key-file", key.to_str().unwrap()].into_iter().chain(CHEAP);
    let refused = world.run("add-key", args()).expect(78);
    assert!(refused.stderr.contains("data begins at 2097152"), "{}", refused.stderr);
    assert_eq!(world.sh("sha256sum s3/c.img"), before);
    world.sh("cat good >state/container.header");
    world.run("add-key", args()).expect(0);
}

#[test]
fn a_header_backup_opens_and_overwrites_nothing() {
    if elsewhere("keys::a_header_backup_opens_and_overwrites_nothing") {
        return;
    }
    let world = World::with(64, "ext4");
    let to = world.path("backup");
    let args = || ["--to".as_ref(), to.as_os_str()];
    assert_eq!(world.run("backup-header", args()).expect(0).json["changed"], true);
    world.sh("cmp backup state/container.header; [ $(stat -c %a backup) = 600 ]");
    world.run("backup-header", args()).expect(78);
    world.sh("rm backup; ln -s state/container.header backup");
    world.run("backup-header", args()).expect(78);
    world.run("backup-header", ["--to", "/nonexistent/x"]).expect(78);
    // It does not need the image; it does need the right key.
    world.sh("rm backup; mv s3 gone; mv key right");
    world.key("key");
    world.run("backup-header", args()).expect(78);
    assert!(!to.exists());
    world.sh("mv right key");
    world.run("backup-header", args()).expect(0);
}
