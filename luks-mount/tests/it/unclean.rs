//! File systems that were not unmounted, or are marked as faulty.

use crate::world::{World, elsewhere, warnings};

/// A container whose image was copied while it was mounted: as after a power cut.
fn cut_short(file_system: &str) -> World {
    let world = World::with(300, file_system);
    world.attach().expect(0);
    world.sh(
        "echo one >run/container/f; sync; for n in $(seq 50); do echo $n >run/container/$n; done; sync run/container/50
         cp --sparse=always s3/c.img cut",
    );
    world.detach().expect(0);
    world.sh("mv cut s3/c.img");
    world
}

#[test]
fn a_journal_is_replayed_and_looking_leaves_it_alone() {
    if elsewhere("unclean::a_journal_is_replayed_and_looking_leaves_it_alone") {
        return;
    }
    let world = cut_short("ext4");
    let before = world.sh("sha256sum s3/c.img");
    let up = world.run("attach", ["--read-only"]).expect(0);
    assert_eq!(warnings(&up), ["unclean"]);
    assert_eq!(world.sh("cat run/container/f"), "one");
    assert!(world.sh("grep run/container /proc/self/mountinfo").contains("ro,"));
    world.detach().expect(0);
    assert_eq!(world.sh("sha256sum s3/c.img"), before);
    let up = world.attach().expect(0);
    assert_eq!((warnings(&up), &up.json["data"]["fsck"]), (vec!["unclean"], &"not-needed".into()));
    assert_eq!(world.sh("cat run/container/50"), "50");
    world.detach().expect(0);
    assert_eq!(warnings(&world.attach().expect(0)), Vec::<&str>::new());
    world.detach().expect(0);
    world.nothing_is_up();
}

#[test]
fn btrfs_with_a_log_is_shown_and_replayed() {
    if elsewhere("unclean::btrfs_with_a_log_is_shown_and_replayed") {
        return;
    }
    let world = cut_short("btrfs");
    let before = world.sh("sha256sum s3/c.img");
    let up = world.run("attach", ["--read-only"]).expect(0);
    assert_eq!(warnings(&up), ["unclean"]);
    assert_eq!(world.sh("cat run/container/f"), "one");
    world.detach().expect(0);
    assert_eq!(world.sh("sha256sum s3/c.img"), before);
    world.attach().expect(0);
    assert_eq!(world.sh("cat run/container/50"), "50");
    world.detach().expect(0);
    world.nothing_is_up();
}

#[test]
fn a_file_system_marked_as_faulty_is_checked_once() {
    if elsewhere("unclean::a_file_system_marked_as_faulty_is_checked_once") {
        return;
    }
    let world = World::with(64, "ext4");
    let mark = |commands: &str| {
        world.sh(&format!(
            "L=$(losetup --find --show s3/c.img)
             cryptsetup open --header state/container.header --key-file key $L {0}
             {commands}
             cryptsetup close {0}; losetup -d $L",
            world.mapping()
        ));
    };
    mark(&format!("debugfs -w -R 'ssv state 2' /dev/mapper/{} >/dev/null 2>&1", world.mapping()));
    let up = world.attach().expect(0);
    assert_eq!((warnings(&up), &up.json["data"]["fsck"]), (vec!["repaired"], &"repaired".into()));
    world.detach().expect(0);
    let up = world.attach().expect(0);
    assert_eq!((warnings(&up), &up.json["data"]["fsck"]), (vec![], &"not-needed".into()));
    world.detach().expect(0);
    // Damage that e2fsck does not repair without being asked: refused, and nothing stays up.
    mark(&format!(
        "debugfs -w -R 'ssv state 2' /dev/mapper/{0} >/dev/null 2>&1
         debugfs -w -R 'clri <2>' /dev/mapper/{0} >/dev/null 2>&1",
        world.mapping()
    ));
    let damaged = world.attach().expect(1);
    assert!(damaged.json["error"]["hint"].as_str().unwrap().contains("e2fsck"), "{:#}", damaged.json);
    world.nothing_is_up();
}
