//! File systems that were not unmounted, or are marked as faulty.

use crate::world::{World, elsewhere, warnings};

/// A container whose image and record were copied while it was mounted: as after a power cut.
fn cut_short(file_system: &str) -> World {
    let world = World::with(300, file_system);
    world.attach().expect(0);
    world.sh(
        "echo one >run/container/f; sync; for n in $(seq 50); do echo $n >run/container/$n; done; sync run/container/50
         cp --sparse=always s3/c.img cut; cp -p state/container.json record",
    );
    world.detach().expect(0);
    world.sh("mv cut s3/c.img; mv record state/container.json");
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
    // (ext4 notes seconds)
    std::thread::sleep(std::time::Duration::from_millis(1100));
    mark(&format!("debugfs -w -R 'ssv state 2' /dev/mapper/{} >/dev/null 2>&1", world.mapping()));
    // Not by this machine, as far as it knows.
    world.attach().expect(78);
    let up = world.run("attach", ["--accept-container"]).expect(0);
    assert_eq!(
        (warnings(&up), &up.json["data"]["fsck"]),
        (vec!["container-accepted", "repaired"], &"repaired".into())
    );
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
    let damaged = world.run("attach", ["--accept-container"]).expect(1);
    assert!(damaged.json["error"]["hint"].as_str().unwrap().contains("e2fsck"), "{:#}", damaged.json);
    world.nothing_is_up();
}

/// The image's file system is full, and has room again later: what has failed by then is not written a second time.
#[test]
fn an_error_that_somebody_else_was_told_is_not_forgotten() {
    if elsewhere("unclean::an_error_that_somebody_else_was_told_is_not_forgotten") {
        return;
    }
    let world = World::new();
    world.sh("mount -t tmpfs -o size=24M none s3");
    world.create(&["--size", "64M"]).expect(0);
    world.attach().expect(0);
    let options = world.sh("grep run/container /proc/self/mountinfo");
    assert!(options.contains("errors=remount-ro"), "{options}");
    world.sh("echo one >run/container/f; sync -f run/container");
    // Whoever syncs next is told, and uses the error up.
    world.sh("head -c 30M /dev/zero >s3/filler 2>/dev/null || :
         ! dd if=/dev/urandom of=run/container/g bs=1M count=4 conv=fsync 2>/dev/null
         ! mkdir run/container/d || sync -f run/container || :
         rm s3/filler; sync -f run/container || :");
    let down = world.detach().expect(0);
    assert_eq!((&down.json["data"]["clean"], warnings(&down)), (&false.into(), vec!["sync-failed"]));
    world.nothing_is_up();
    world.sh("grep -q '\"check_needed\": true' state/container.json");
    // Looking does not repair, so it does not forget either.
    world.run("attach", ["--read-only"]).expect(0);
    world.detach().expect(0);
    let up = world.attach().expect(0);
    assert_ne!(up.json["data"]["fsck"], "not-needed", "{:#}", up.json);
    assert_eq!(world.sh("cat run/container/f; echo two >run/container/h"), "one");
    assert_eq!(world.detach().expect(0).json["data"]["clean"], true);
    world.sh(&format!(
        "L=$(losetup --find --show --read-only s3/c.img)
         cryptsetup open --readonly --header state/container.header --key-file key $L {0}
         e2fsck -fn /dev/mapper/{0}
         cryptsetup close {0}; losetup -d $L",
        world.mapping()
    ));
    let up = world.attach().expect(0);
    assert_eq!((warnings(&up), &up.json["data"]["fsck"]), (vec![], &"not-needed".into()));
    world.detach().expect(0);
    world.sh("umount s3");
}

#[test]
fn what_the_kernel_has_counted_is_not_clean_even_if_the_sync_succeeds() {
    if elsewhere("unclean::what_the_kernel_has_counted_is_not_clean_even_if_the_sync_succeeds") {
        return;
    }
    let world = World::with(64, "ext4");
    for mode in ["remount-ro", "continue"] {
        world.attach().expect(0);
        world.sh(&format!(
            "DM=$(basename $(readlink -f /dev/mapper/{0})); [ -e /sys/fs/ext4/$DM ] || DM=$(dmsetup info -c --noheadings -o blkdevname {0})
             mount -i -o remount,errors={mode} /dev/mapper/{0} run/container
             echo x >/sys/fs/ext4/$DM/trigger_fs_error",
            world.mapping()
        ));
        let down = world.detach().expect(0);
        assert_eq!(
            (&down.json["data"]["clean"], warnings(&down)),
            (&false.into(), vec!["sync-failed"]),
            "{mode}"
        );
        world.sh("grep -q '\"check_needed\": true' state/container.json");
        let up = world.attach().expect(0);
        assert_eq!(up.json["data"]["fsck"], "repaired", "{mode}: {:#}", up.json);
        world.sh("grep -q '\"check_needed\": false' state/container.json; echo x >run/container/f");
        assert_eq!(world.detach().expect(0).json["data"]["clean"], true, "{mode}");
    }
    world.nothing_is_up();
}
