//! Half of it is up, made by hand: told apart, not attached over, and cleared by detach.

use std::path::Path;

use crate::world::{World, elsewhere};

fn told_and_cleared(world: &World, state: &str) {
    assert_eq!(world.state(), state);
    world.attach().expect(75);
    assert_eq!(world.state(), state, "attach has changed nothing");
    assert_eq!(world.detach().expect(0).json["changed"], true);
    world.nothing_is_up();
    assert_eq!(world.state(), "detached");
}

fn open(world: &World) {
    world.sh(&format!(
        "cryptsetup open --header state/container.header --key-file key $(losetup --find --show s3/c.img) {}",
        world.mapping()
    ));
}

#[test]
fn every_half_state_is_told_and_cleared() {
    if elsewhere("half::every_half_state_is_told_and_cleared") {
        return;
    }
    let world = World::with(64, "ext4");
    assert_eq!(world.state(), "detached");
    world.sh("losetup --find s3/c.img");
    told_and_cleared(&world, "loop-only");
    world.sh("losetup --find s3/c.img; losetup --find --read-only s3/c.img");
    told_and_cleared(&world, "loop-only");
    open(&world);
    told_and_cleared(&world, "mapped");
    open(&world);
    world.sh(&format!("mkdir elsewhere; mount /dev/mapper/{} elsewhere", world.mapping()));
    told_and_cleared(&world, "mounted-elsewhere");
    world.attach().expect(0);
    world.sh("mount --bind run/container elsewhere");
    assert_eq!(world.state(), "mounted-elsewhere");
    world.detach().expect(0);
    world.nothing_is_up();
    open(&world);
    world.sh("mv s3/c.img away; cp away s3/c.img; rm away");
    told_and_cleared(&world, "mapping-without-image");
    // Another image took its name: still attachable.
    world.attach().expect(0);
    world.detach().expect(0);
    world.nothing_is_up();
}

#[test]
fn what_is_not_ours_is_left_alone() {
    if elsewhere("half::what_is_not_ours_is_left_alone") {
        return;
    }
    let world = World::with(64, "ext4");
    // The image opened by somebody under another name.
    world.sh(&format!(
        "cryptsetup open --header state/container.header --key-file key $(losetup --find --show s3/c.img) other-{}",
        std::process::id()
    ));
    assert_eq!(world.state(), "foreign");
    world.attach().expect(75);
    world.detach().expect(78);
    world.sh(&format!(
        "cryptsetup close other-{}; losetup -d $(losetup -nO NAME -j s3/c.img)",
        std::process::id()
    ));
    // Our name taken by another device.
    world.sh(&format!(
        "truncate -s 8M x; cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 --key-file key x {}",
        world.mapping()
    ));
    assert_eq!(world.state(), "foreign");
    world.attach().expect(75);
    world.detach().expect(78);
    world.sh(&format!("cryptsetup close {}", world.mapping()));
    // Something else on the mount point.
    world.sh("mkdir -p -m 700 run/container; mount -t tmpfs none run/container");
    assert_eq!(world.state(), "foreign");
    world.attach().expect(75);
    world.detach().expect(78);
    world.sh("umount run/container");
    world.attach().expect(0);
    world.detach().expect(0);
    world.nothing_is_up();
}

#[test]
fn a_failure_at_any_step_undoes_the_earlier_ones() {
    if elsewhere("half::a_failure_at_any_step_undoes_the_earlier_ones") {
        return;
    }
    let world = World::with(64, "ext4");
    // The key does not fit: after the loop device.
    world.sh("mv key right");
    world.key("key");
    let wrong = world.attach().expect(78);
    assert!(wrong.stderr.contains("does not open"), "{}", wrong.stderr);
    world.nothing_is_up();
    world.sh("mv right key");
    // Garbage where the file system should be: after the mapping.
    world.sh("cp --sparse=always s3/c.img good; dd if=/dev/urandom of=s3/c.img bs=1M seek=2 count=62 conv=notrunc 2>/dev/null");
    world.attach().expect(1);
    world.nothing_is_up();
    world.sh("cp --sparse=always good s3/c.img");
    // mount fails, as the file system wants a newer kernel than there is.
    world.sh(&format!(
        "L=$(losetup --find --show s3/c.img)
         cryptsetup open --header state/container.header --key-file key $L {0}
         debugfs -w -R 'feature FEATURE_I31' /dev/mapper/{0} >/dev/null 2>&1
         cryptsetup close {0}; losetup -d $L",
        world.mapping()
    ));
    assert_ne!(world.attach().code, 0);
    world.nothing_is_up();
    world.sh("cp --sparse=always good s3/c.img");
    // cryptsetup itself fails, or is not there.
    let failing = world.path("failing");
    testkit::script(&failing, "#!/bin/sh\n[ $1 = open ] && exit 4\nexec cryptsetup \"$@\"\n");
    for (program, code) in [(failing.as_path(), 1), (Path::new("/nonexistent/cryptsetup"), 69)] {
        world.run("attach", ["--cryptsetup".as_ref(), program.as_os_str()]).expect(code);
        world.nothing_is_up();
    }
    // A signal in the middle.
    testkit::script(
        &world.path("slow"),
        "#!/bin/sh\ncase $1 in open) sleep 60 ;; esac\nexec cryptsetup \"$@\"\n",
    );
    let config = world.sh("ls $PWD/*.toml");
    let slow = world.path("slow");
    let child = std::process::Command::new(testkit::bin("luks-mount"))
        .args([
            "attach".as_ref(),
            "--config".as_ref(),
            config.as_ref(),
            "--cryptsetup".as_ref(),
            slow.as_os_str(),
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while world.sh("losetup -nO NAME -j s3/c.img").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    world.sh(&format!("kill -TERM {}", child.id()));
    testkit::judge(child.wait_with_output().unwrap()).expect(143);
    world.nothing_is_up();
    world.attach().expect(0);
    world.detach().expect(0);
}

#[test]
fn what_a_killed_create_leaves_is_cleared_and_told() {
    if elsewhere("half::what_a_killed_create_leaves_is_cleared_and_told") {
        return;
    }
    let world = World::new();
    // The mapping is there, the file system is not.
    let reached = world.path("reached");
    let text = format!("#!/bin/sh\ntouch {}; sleep 60\n", reached.display());
    let slow = std::path::Path::new("/usr/local/sbin/dmsetup");
    testkit::script(slow, &text);
    let config = world.sh("ls $PWD/*.toml");
    let mut child = std::process::Command::new(testkit::bin("luks-mount"))
        .args(["create", "--config", &config, "--size", "64M"])
        .args(crate::world::CHEAP)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !reached.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it asked for the mapping");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_file(slow).unwrap();
    assert_eq!(world.state(), "mapped");
    world.create(&["--size", "64M"]).expect(78);
    world.detach().expect(0);
    world.nothing_is_up();
    let told = world.create(&["--size", "64M"]).expect(78);
    assert!(told.json["error"]["hint"].as_str().unwrap().contains("never finished"), "{:#}", told.json);
    world.sh("rm state/container.header s3/c.img");
    world.create(&["--size", "64M"]).expect(0);
    // A damaged record keeps nobody from detaching.
    world.attach().expect(0);
    world.sh("echo x >state/container.json");
    world.attach().expect(78);
    let down = world.detach().expect(0);
    assert_eq!(crate::world::warnings(&down), ["no-record", "not-noted"]);
    world.nothing_is_up();
}

#[test]
fn a_failed_create_leaves_nothing() {
    if elsewhere("half::a_failed_create_leaves_nothing") {
        return;
    }
    let world = World::new();
    // mkfs.btrfs refuses so small a device, at the very end.
    world.create(&["--size", "32M", "--file-system", "btrfs"]).expect(1);
    assert_eq!(world.sh("ls -A s3; ls -A state"), "container.lock");
    world.nothing_is_up();
    world.create(&["--size", "64M"]).expect(0);
    world.attach().expect(0);
    world.detach().expect(0);
    world.nothing_is_up();
}

#[test]
fn a_loop_device_of_another_boot_is_a_strangers() {
    // The runtime folder may lie where it survives a reboot; then a stranger's device has the same name and number.
    let world = World::new();
    world.sh("mkdir -p -m 700 run; truncate -s 1M stranger");
    let device = world.sh("losetup --find --show stranger");
    let name = device.trim_start_matches("/dev/");
    let seq = world.sh(&format!("cat /sys/block/{name}/diskseq"));
    let boot = world.sh("cat /proc/sys/kernel/random/boot_id");
    let record = |boot: &str| {
        let text =
            format!("{{\"device\":\"{name}\",\"diskseq\":{seq},\"read_bytes\":0,\"written_bytes\":0{boot}}}");
        std::fs::write(world.path("run/container.loop.json"), text).unwrap();
    };
    for other in ["", ",\"boot_id\":\"6cf9a5f0-0000-4000-8000-000000000000\""] {
        record(other);
        assert_eq!(world.state(), "detached");
        assert_eq!(world.detach().expect(0).json["changed"], false);
        assert_eq!(world.sh("losetup -nO NAME -j stranger"), device);
    }
    // The same record of this boot is proof.
    record(&format!(",\"boot_id\":\"{boot}\""));
    assert_eq!(world.state(), "loop-only");
    assert_eq!(world.detach().expect(0).json["changed"], true);
    assert_eq!(world.sh("losetup -nO NAME -j stranger"), "");
}
