//! From nothing to a container with something in it, and back.

use std::time::{Duration, Instant};

use crate::world::{World, elsewhere, warnings};

fn whole_story(file_system: &str, mib: u32) {
    let world = World::new();
    let made = world.create(&["--size", &format!("{mib}M"), "--file-system", file_system]).expect(0);
    assert_eq!(made.json["changed"], true);
    world.nothing_is_up();
    assert_eq!(world.sh("stat -c %a state/container.header state/container.json"), "600\n600");
    assert_eq!(world.sh("ls -A state"), "container.header\ncontainer.json\ncontainer.lock");

    let up = world.attach().expect(0);
    let data = &up.json["data"];
    assert_eq!((&up.json["changed"], &data["state"]), (&true.into(), &"attached".into()));
    assert_eq!((&data["file_system"], &data["cipher"]), (&file_system.into(), &"aes-xts-plain64".into()));
    assert!(data["free_bytes"].as_u64().unwrap() > u64::from(mib) << 19, "{data:#}");
    let options = world.sh("grep run/container /proc/self/mountinfo");
    for option in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(options.contains(option), "{options}");
    }
    assert_eq!(world.attach().expect(0).json["changed"], false);
    assert_eq!(
        world.run("attach", ["--read-only"]).expect(75).json["data"]["state"],
        serde_json::Value::Null
    );

    world.sh("head -c 3000000 /dev/urandom >run/container/f; cp run/container/f kept");
    let down = world.detach().expect(0);
    assert_eq!((&down.json["changed"], &down.json["data"]["clean"]), (&true.into(), &true.into()));
    let written = down.json["data"]["written_bytes"].as_u64().unwrap();
    assert!((3_000_000..10_000_000).contains(&written), "{written}");
    world.nothing_is_up();
    assert_eq!(world.detach().expect(0).json["changed"], false);

    let up = world.run("attach", ["--read-only"]).expect(0);
    assert_eq!((&up.json["data"]["read_only"], warnings(&up)), (&true.into(), vec![]));
    world.sh("cmp run/container/f kept; ! touch run/container/x 2>/dev/null");
    let down = world.detach().expect(0);
    assert_eq!(down.json["data"]["written_bytes"], 0, "nothing is written by looking");
    world.nothing_is_up();
}

#[test]
fn ext4() {
    if elsewhere("story::ext4") {
        return;
    }
    whole_story("ext4", 64);
}

#[test]
fn btrfs() {
    if elsewhere("story::btrfs") {
        return;
    }
    whole_story("btrfs", 300);
}

#[test]
fn a_large_container_costs_little_and_nothing_happens_behind_our_back() {
    if elsewhere("story::a_large_container_costs_little_and_nothing_happens_behind_our_back") {
        return;
    }
    let world = World::new();
    world.create(&["--size", "776G"]).expect(0);
    assert!(world.allocated() < 8 << 20, "create wrote {}", world.allocated());
    world.attach().expect(0);
    // The same on every machine, and nothing that a rescue system of some age does not know.
    let features = world.sh(&format!(
        "dumpe2fs -h /dev/mapper/{} 2>&1 | sed -n 's/^Filesystem features: *//p'",
        world.mapping()
    ));
    assert_eq!(
        features.trim(),
        "has_journal ext_attr resize_inode dir_index filetype needs_recovery extent flex_bg sparse_super large_file \
         huge_file dir_nlink extra_isize metadata_csum"
    );
    std::thread::sleep(Duration::from_secs(60));
    assert!(world.allocated() < 16 << 20, "after a minute: {}", world.allocated());
    let before = world.allocated();
    let grown = world.run("grow", ["--size", "1000G"]).expect(0);
    assert!(grown.json["data"]["size_bytes"].as_u64().unwrap() > 990 << 30, "{:#}", grown.json);
    std::thread::sleep(Duration::from_secs(10));
    assert!(world.allocated() < before + (8 << 20), "grow wrote {}", world.allocated() - before);
    assert!(world.sh("grep run/container /proc/self/mountinfo").contains("noinit_itable"));
    world.detach().expect(0);
    // The same again has nothing to do; less is refused.
    assert_eq!(world.run("grow", ["--size", "1000G"]).expect(0).json["changed"], false);
    world.run("grow", ["--size", "999G"]).expect(78);
    world.nothing_is_up();
}

#[test]
fn a_container_for_layers_is_a_btrfs_of_small_nodes_that_is_seldom_written_and_ext4_reads_no_more_than_it_needs()
 {
    if elsewhere(
        "story::a_container_for_layers_is_a_btrfs_of_small_nodes_that_is_seldom_written_and_ext4_reads_no_more_than_it_needs",
    ) {
        return;
    }
    let world = World::new();
    world.configure_for("layers", "");
    world.create(&["--size", "300M"]).expect(0);
    let options = || world.sh("grep run/container /proc/self/mountinfo");
    assert_eq!(world.attach().expect(0).json["data"]["file_system"], "btrfs");
    assert!(options().contains("commit=300"), "{}", options());
    let device = format!("/dev/mapper/{}", world.mapping());
    let nodes = world
        .sh(&format!("btrfs inspect-internal dump-super {device} | awk '$1 == \"nodesize\" {{ print $2 }}'"));
    assert_eq!(nodes, "4096");
    assert!(world.sh("btrfs filesystem df run/container").contains("Metadata, single"));
    world.detach().expect(0);
    world.run("attach", ["--read-only"]).expect(0);
    assert!(!options().contains("commit=300"), "{}", options());
    world.detach().expect(0);

    let world = World::new();
    world.configure_for("layers", "");
    world.create(&["--size", "64M", "--file-system", "ext4"]).expect(0);
    let options = || world.sh("grep run/container /proc/self/mountinfo");
    for words in [&[][..], &["--read-only"]] {
        world.run("attach", words).expect(0);
        let seen = options();
        assert!(
            seen.contains("inode_readahead_blks=0") && seen.contains("no_prefetch_block_bitmaps"),
            "{seen}"
        );
        world.detach().expect(0);
    }
    world.nothing_is_up();
}

#[test]
fn btrfs_grows_too() {
    if elsewhere("story::btrfs_grows_too") {
        return;
    }
    let world = World::with(300, "btrfs");
    let grown = world.run("grow", ["--size", "400M"]).expect(0);
    assert_eq!(grown.json["data"]["state"], "detached");
    assert!(grown.json["data"]["size_bytes"].as_u64().unwrap() > 390 << 20, "{:#}", grown.json);
    world.nothing_is_up();
}

#[test]
fn what_waits_to_be_written_is_bounded() {
    if elsewhere("story::what_waits_to_be_written_is_bounded") {
        return;
    }
    for (file_system, mib) in [("ext4", 300), ("btrfs", 300)] {
        let world = World::with(mib, file_system);
        let up = world.attach().expect(0);
        let limit = &up.json["data"]["dirty_limit"];
        if limit["method"] != "max-bytes" {
            eprintln!("this kernel has no limit in bytes: {limit}");
            continue;
        }
        assert!(limit["bytes"].as_u64().unwrap() < 10 << 20, "{limit}");
        world.sh("sync; head -c 64M /dev/zero >run/container/f");
        let dirty = world.sh("sed -n 's/^Dirty: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
        assert!(dirty.parse::<u64>().unwrap() < 16 << 10, "{file_system}: {dirty} kB are dirty");
        let begin = Instant::now();
        world.detach().expect(0);
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
        world.nothing_is_up();
    }
}

#[test]
fn a_busy_container_names_who_holds_it_and_goes_when_it_is_let_go() {
    if elsewhere("story::a_busy_container_names_who_holds_it_and_goes_when_it_is_let_go") {
        return;
    }
    let world = World::with(64, "ext4");
    world.attach().expect(0);
    let mut holder =
        std::process::Command::new("sleep").arg("120").current_dir(world.container()).spawn().unwrap();
    let busy = world.detach().expect(4);
    let left = busy.json["left_behind"][0].to_string();
    assert!(left.contains(&format!("sleep (process {})", holder.id())), "{left}");
    assert!(left.contains("luks-mount detach"), "{left}");
    assert_eq!(world.state(), "attached");
    holder.kill().unwrap();
    holder.wait().unwrap();
    world.detach().expect(0);
    world.nothing_is_up();

    // One that lets go in time is waited for.
    world.attach().expect(0);
    let mut holder =
        std::process::Command::new("sleep").arg("3").current_dir(world.container()).spawn().unwrap();
    world.detach().expect(0);
    holder.wait().unwrap();
    world.nothing_is_up();
}
