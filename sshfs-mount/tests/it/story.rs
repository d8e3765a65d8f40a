//! A mount from its beginning to its end, and everything said twice.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::world::{World, alive, eventually, pid, signal, table, told};

#[test]
fn mount_use_and_unmount_each_said_twice() {
    let world = World::new();
    assert_eq!(world.state(), "unmounted");
    let again = world.run("unmount", &[]).expect(0);
    assert_eq!(again.json["changed"], false);

    let ran = world.run("mount", &[]).expect(0);
    let (data, source) = (&ran.json["data"], format!("root@127.0.0.1:{}", world.far().display()));
    assert_eq!(ran.json["changed"], true);
    assert_eq!((&data["state"], &data["source"]), (&"healthy".into(), &source.into()));
    assert_eq!(data["mount_point"], world.near().to_str().unwrap());
    assert!(data["since"].is_string() && data["bwlimit_bytes"].is_null() && data["sent_bytes"].is_u64());
    let line = table().lines().find(|l| l.contains(world.near().to_str().unwrap())).unwrap().to_owned();
    let options = line.split(' ').nth(5).unwrap();
    assert!(["nosuid", "nodev", "noexec"].iter().all(|o| options.split(',').any(|is| is == *o)), "{line}");
    assert!(!line.contains("allow_other"), "{line}");

    std::fs::write(world.near().join("f"), "through").unwrap();
    assert_eq!(std::fs::read_to_string(world.far().join("f")).unwrap(), "through");

    let again = world.run("mount", &[]).expect(0);
    assert_eq!((&again.json["changed"], pid(&again)), (&false.into(), pid(&ran)));
    assert_eq!(world.state(), "healthy");

    let end = world.run("unmount", &[]).expect(0);
    assert_eq!((&end.json["changed"], &end.json["data"]["state"]), (&true.into(), &"unmounted".into()));
    assert!(end.json["data"]["sent_bytes"].as_u64().unwrap() > 1000, "{}", end.json);
    assert!(!alive(pid(&ran)));
    world.is_clean();
    assert_eq!(world.run("unmount", &[]).expect(0).json["changed"], false);
    let mode = std::fs::metadata(world.near()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700, "the mount point is root's alone");
}

#[test]
fn options_alone_are_enough_and_a_profile_without_the_table_says_what_to_write() {
    let world = World::new();
    let (near, run) = (world.path().join("elsewhere"), world.path().join("run/s3-alone"));
    let options = |action: &str| {
        let mut command = Command::new(testkit::bin("sshfs-mount"));
        command.arg(action).args(["--host", "root@127.0.0.1", "--directory"]).arg(world.far());
        command.arg("--port").arg(world.sshd.port.to_string()).arg("--identity").arg(&world.sshd.identity);
        command.arg("--known-hosts").arg(&world.sshd.known_hosts).arg("--runtime-dir").arg(&run);
        command.arg("--mount-point").arg(&near).args(["--options", "Ciphers=aes256-ctr,aes128-ctr"]);
        testkit::run(&mut command)
    };
    let ran = options("mount").expect(0);
    assert_eq!(ran.json["data"]["mount_point"], near.to_str().unwrap());
    let argv = std::fs::read(format!("/proc/{}/cmdline", pid(&ran))).unwrap();
    assert!(String::from_utf8_lossy(&argv).contains("Ciphers=aes256-ctr\\,aes128-ctr"));
    options("unmount").expect(0);
    assert_eq!(std::fs::read_dir(&near).unwrap().count(), 0);

    let empty = world.path().join("empty.toml");
    std::fs::write(&empty, "").unwrap();
    let ran = testkit::tool("sshfs-mount", ["mount", "--config", empty.to_str().unwrap()]).expect(78);
    assert!(told(&ran).contains("[offsite.sshfs]"), "{}", told(&ran));
}

#[test]
fn a_busy_one_is_told_with_who_holds_it_and_goes_when_they_let_go() {
    let world = World::new();
    world.mount(&[]);
    let mut holder = Command::new("sleep").arg("300").current_dir(world.near()).spawn().unwrap();
    let ran = world.run("unmount", &[]).expect(4);
    let left = ran.json["left_behind"][0]["what"].as_str().unwrap();
    assert!(left.contains(&format!("sleep (process {})", holder.id())), "{left}");
    assert!(told(&ran).contains("busy"), "{}", told(&ran));
    assert_eq!(world.state(), "healthy", "nothing was broken");

    let waits = world.spawn("unmount", &[]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    holder.kill().unwrap();
    holder.wait().unwrap();
    testkit::judge(waits.wait_with_output().unwrap()).expect(0);
    world.is_clean();
}

#[test]
fn a_loop_device_that_holds_it_is_named_with_its_cure() {
    let world = World::new();
    world.mount(&[]);
    let image = world.near().join("container.img");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let out = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let device = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    let ran = world.run("unmount", &[]);
    assert!(Command::new("losetup").arg("-d").arg(&device).status().unwrap().success());
    let ran = ran.expect(4);
    let left = &ran.json["left_behind"][0];
    assert!(left["what"].as_str().unwrap().contains(&device), "{left}");
    assert!(left["clear"].as_str().unwrap().starts_with("luks-mount detach"), "{left}");
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}

#[test]
fn a_copy_in_another_mount_namespace_is_named() {
    let world = World::new();
    let sshfs = world.mount(&[]);
    // It gets a copy of every mount; those of the tests beside this one it gives up at once.
    let script = "for m in $(findmnt -rn -t fuse.sshfs -o TARGET); do [ \"$m\" = \"$1\" ] || umount -l \"$m\"; done\n\
        touch \"$1.ready\"; exec sleep 300";
    let mut other = Command::new("unshare");
    other.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(world.near());
    let mut holder = other.spawn().unwrap();
    let ready = world.near().with_extension("ready");
    eventually("it has mounts of its own", || ready.exists());
    std::fs::remove_file(ready).unwrap();
    for _ in 0..2 {
        let ran = world.run("unmount", &[]).expect(4);
        let left = ran.json["left_behind"][0]["what"].as_str().unwrap();
        let told = format!("sleep (process {}) has it mounted in a mount namespace of its own", holder.id());
        assert!(left.contains(&told), "{left}");
        assert!(alive(sshfs) && !world.mounted());
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    world.run("unmount", &[]).expect(0);
    assert!(!alive(sshfs));
    world.is_clean();
}

#[test]
fn from_within_its_own_folder_only_the_others_are_named() {
    let world = World::new();
    world.mount(&[]);
    let ran = testkit::run(world.command("unmount", &[]).current_dir(world.near())).expect(0);
    assert_eq!(ran.json["changed"], true);
    world.is_clean();
}

#[test]
fn stopped_while_it_connects_it_leaves_nothing() {
    let world = World::new();
    // A server that accepts and never speaks.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    for name in ["TERM", "INT", "HUP"] {
        let child = world.spawn("mount", &["--port", &port]);
        eventually("it is connecting", || world.processes().iter().any(|p| p.1 == "ssh"));
        signal(child.id(), name);
        let number = match name {
            "TERM" => 15,
            "INT" => 2,
            _ => 1,
        };
        let ran = testkit::judge(child.wait_with_output().unwrap()).expect(128 + number);
        assert_eq!(ran.json["left_behind"], Value::Array(Vec::new()));
        world.is_clean();
    }
}

#[test]
fn killed_while_it_connects_the_next_run_clears_up() {
    let world = World::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let mut child = world.spawn("mount", &["--port", &port]);
    eventually("it is connecting", || world.processes().iter().any(|p| p.1 == "ssh"));
    eventually("it is recorded", || world.path().join("run/s3.json").exists());
    let lost = world.process("sshfs");
    signal(child.id(), "KILL");
    child.wait().unwrap();
    assert!(alive(lost), "it goes on without the tool");
    let sshfs = world.mount(&[]);
    assert!(!alive(lost) && alive(sshfs));
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}

#[test]
fn of_two_mounts_at_once_the_second_is_busy_and_unmount_waits() {
    let world = World::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let child = world.spawn("mount", &["--port", &port]);
    eventually("it is connecting", || world.processes().iter().any(|p| p.1 == "ssh"));
    world.run("mount", &[]).expect(75);
    let waits = world.command("unmount", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(child.id(), "TERM");
    testkit::judge(child.wait_with_output().unwrap()).expect(143);
    testkit::judge(waits.wait_with_output().unwrap()).expect(0);
    world.is_clean();
}

/// Whoever syncs through sshfs is told that all is well even by a server that cannot do it.
#[test]
fn a_server_without_fsync_is_warned_of_and_remembered() {
    let world = World::new();
    let ran = world.run("mount", &[]).expect(0);
    assert_eq!((&ran.json["data"]["fsync"], &ran.json["warnings"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(world.run("status", &[]).expect(0).json["data"]["fsync"], true);
    world.run("unmount", &[]).expect(0);
    assert!(world.run("status", &[]).expect(0).json["data"]["fsync"].is_null());
    world.is_clean();

    world.sshd.set_key_options("command=\"internal-sftp -P fsync\",restrict");
    let ran = world.run("mount", &[]).expect(0);
    assert_eq!(
        (&ran.json["data"]["fsync"], &ran.json["warnings"][0]["kind"]),
        (&false.into(), &"no-fsync".into())
    );
    // It is said to be synced all the same.
    let file = std::fs::File::create(world.near().join("f")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(world.run("status", &[]).expect(0).json["data"]["fsync"], false);
    let again = world.run("mount", &[]).expect(0);
    assert_eq!((&again.json["changed"], &again.json["data"]["fsync"]), (&false.into(), &false.into()));
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}
