//! What goes wrong with a mount that was healthy: it is told from the outside, ended, and never another's.

use std::time::{Duration, Instant};

use crate::world::{World, alive, eventually, signal, warnings};

/// The contract's limit for ending a hung mount.
const LIMIT: Duration = Duration::from_secs(15);

#[test]
fn a_hung_one_is_told_and_ended_and_its_neighbour_lives() {
    let (world, other) = (World::new(), World::new());
    let (hung, neighbour) = (world.mount(&[]), other.mount(&[]));
    // Not in the first half second, in which the relay has not written its numbers.
    std::thread::sleep(Duration::from_millis(700));
    signal(hung, "STOP");
    let begin = Instant::now();
    assert_eq!(world.state(), "hung");
    assert!(begin.elapsed() < LIMIT);
    let begin = Instant::now();
    let ran = world.run("unmount", &[]).expect(0);
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
    assert_eq!((ran.json["changed"].as_bool(), warnings(&ran)), (Some(true), vec!["link-dead"]));
    assert!(!alive(hung));
    world.is_clean();
    assert!(alive(neighbour) && other.state() == "healthy");
    other.run("unmount", &[]).expect(0);
}

#[test]
fn one_that_hangs_behind_sshfs_with_somebody_waiting_in_it_is_mounted_anew() {
    let world = World::new();
    let old = world.mount(&[]);
    std::thread::sleep(Duration::from_millis(700));
    let ssh = world.process("ssh");
    // The connection is silent: requests reach sshfs and are never answered, so who asks cannot be killed.
    signal(ssh, "STOP");
    let near = world.near();
    let waits = std::thread::spawn(move || std::fs::read_dir(near.join("x")).is_err());
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    let ran = world.run("mount", &[]).expect(0);
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
    assert_eq!((ran.json["changed"].as_bool(), warnings(&ran)), (Some(true), vec!["stale-mount"]));
    assert!(!alive(old) && !alive(ssh));
    assert!(waits.join().unwrap(), "who waited is told");
    // (a moment later also of those that the mount itself had at work)
    eventually("one sshfs, one ssh, one relay", || world.processes().len() == 3);
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}

#[test]
fn a_killed_sshfs_is_dead_and_cleared_by_unmount_and_by_mount() {
    let world = World::new();
    signal(world.mount(&[]), "KILL");
    eventually("its ssh and relay end by themselves", || world.processes().is_empty());
    assert!(world.mounted());
    assert_eq!(world.state(), "dead");
    let ran = world.run("unmount", &[]).expect(0);
    assert_eq!((ran.json["changed"].as_bool(), warnings(&ran)), (Some(true), vec!["link-dead"]));
    world.is_clean();

    signal(world.mount(&[]), "KILL");
    let ran = world.run("mount", &[]).expect(0);
    assert_eq!(warnings(&ran), ["stale-mount"]);
    assert_eq!(world.state(), "healthy");
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}

#[test]
fn when_the_connection_breaks_sshfs_ends_by_itself_and_that_is_told() {
    let world = World::new();
    world.mount(&[]);
    signal(world.process("ssh"), "KILL");
    eventually("it ends", || !world.mounted() && world.processes().is_empty());
    assert_eq!(world.state(), "unmounted");
    let ran = world.run("unmount", &[]).expect(0);
    assert_eq!((ran.json["changed"].as_bool(), warnings(&ran)), (Some(false), vec!["ended-by-itself"]));
    assert!(ran.json["data"]["sent_bytes"].is_u64(), "{}", ran.json);
    world.is_clean();
}

#[test]
fn without_its_record_a_hung_one_is_still_found() {
    let world = World::new();
    let hung = world.mount(&[]);
    std::thread::sleep(Duration::from_millis(700));
    std::fs::remove_file(world.path().join("run/s3.json")).unwrap();
    signal(hung, "STOP");
    let begin = Instant::now();
    world.run("unmount", &[]).expect(0);
    assert!(begin.elapsed() < LIMIT && !alive(hung));
    world.is_clean();
}

#[test]
fn a_record_that_names_a_stranger_harms_nobody() {
    let world = World::new();
    world.mount(&[]);
    world.run("unmount", &[]).expect(0);
    let mut stranger = std::process::Command::new("setsid").args(["sleep", "300"]).spawn().unwrap();
    let record = format!(
        "{{\"pid\":{},\"start_time\":1,\"source\":\"x\",\"mount_point\":\"{}\",\"since\":\"x\",\"bwlimit_bytes\":null}}",
        stranger.id(),
        world.near().display()
    );
    std::fs::write(world.path().join("run/s3.json"), record).unwrap();
    world.run("unmount", &[]).expect(0);
    assert!(alive(stranger.id()));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    world.is_clean();
}

#[test]
fn a_record_of_another_boot_harms_nobody() {
    // The runtime folder may lie where it survives a reboot, and numbers and times of start come again.
    let world = World::new();
    world.mount(&[]);
    world.run("unmount", &[]).expect(0);
    let mut stranger =
        std::process::Command::new("setsid").args(["sh", "-c", "sleep 300; :"]).spawn().unwrap();
    let start = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", stranger.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned()
    };
    for boot in [",\"boot_id\":\"6cf9a5f0-0000-4000-8000-000000000000\"", ""] {
        let record = format!(
            "{{\"pid\":{},\"start_time\":{}{boot},\"name\":\"sh\",\"source\":\"x\",\"mount_point\":\"{}\",\"since\":\"x\",\
             \"bwlimit_bytes\":null}}",
            stranger.id(),
            start(),
            world.near().display()
        );
        std::fs::write(world.path().join("run/s3.json"), record).unwrap();
        std::fs::write(world.path().join("run/s3.wire"), "1 7000 7000\n").unwrap();
        assert!(world.run("status", &[]).expect(0).json["data"]["sent_bytes"].is_null());
        world.run("unmount", &[]).expect(0);
        assert!(alive(stranger.id()), "{boot}");
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    world.is_clean();
}
