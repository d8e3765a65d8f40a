//! What is refused, with the exit code and the words.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::world::{World, table, told};

#[track_caller]
fn refused(world: &World, options: &[&str], code: i32, words: &[&str]) {
    let ran = world.run("mount", options).expect(code);
    for word in words {
        assert!(told(&ran).contains(word), "no '{word}' in: {}", told(&ran));
    }
    assert_eq!(ran.json["changed"], false);
    assert!(!table().contains(world.path().to_str().unwrap()), "something is mounted");
    world.is_clean();
}

#[test]
fn a_machine_that_is_not_who_it_should_be() {
    let world = World::new();
    let known = world.path().join("known");
    std::fs::write(&known, "").unwrap();
    let known = known.to_str().unwrap();
    refused(&world, &["--known-hosts", known], 69, &["not known", "ssh-keyscan -p", "ssh-keygen -lf", known]);
    let missing = world.path().join("none");
    refused(&world, &["--known-hosts", missing.to_str().unwrap()], 69, &["not known", "ssh-keyscan"]);

    let other = world.path().join("other");
    keygen(&other);
    let key = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    std::fs::write(known, format!("[127.0.0.1]:{} {key}", world.sshd.port)).unwrap();
    refused(&world, &["--known-hosts", known], 78, &["another host key", "attack"]);
}

#[test]
fn a_key_that_is_not_let_in_or_not_fit() {
    let world = World::new();
    let other = world.path().join("other key");
    keygen(&other);
    let name = other.to_str().unwrap();
    refused(
        &world,
        &["--identity", name],
        69,
        &["does not let our key in", "authorized_keys", "other key.pub"],
    );
    let said = world.run("mount", &["--identity", name]).expect(69).stderr;
    assert_eq!(said.matches("Permission denied").count(), 1, "{said}");
    std::fs::set_permissions(&other, PermissionsExt::from_mode(0o640)).unwrap();
    refused(&world, &["--identity", name], 77, &["root's alone", "chmod 0600"]);
    refused(&world, &["--identity", "/no/such/key"], 78, &["/no/such/key", "ssh-keygen"]);
}

#[test]
fn a_machine_or_folder_that_is_not_there() {
    let world = World::new();
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().to_string()
    };
    refused(&world, &["--port", &port], 69, &["cannot connect to 127.0.0.1", "refused"]);
    refused(&world, &["--host", "root@no-such-host.invalid"], 69, &["cannot find no-such-host.invalid"]);
    refused(&world, &["--directory", "/no/such/folder"], 78, &["/no/such/folder", "No such file"]);
    world.sshd.set_key_options("command=\"echo hello\",restrict");
    refused(&world, &[], 69, &["127.0.0.1"]);
    refused(&world, &["--program", "no-such-sshfs"], 69, &["no-such-sshfs", "apt-get install sshfs"]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    refused(&world, &["--port", &port, "--options", "ConnectTimeout=1"], 69, &["no connection", "timed out"]);
}

#[test]
fn a_mount_point_that_would_hide_or_betray() {
    let world = World::new();
    let at = |name: &str| world.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir_all(at("full/inside")).unwrap();
    refused(&world, &["--mount-point", &at("full")], 78, &["not empty", "inside"]);
    std::fs::create_dir(at("real")).unwrap();
    symlink(at("real"), at("link")).unwrap();
    refused(&world, &["--mount-point", &at("link")], 78, &["symbolic link"]);
    refused(&world, &["--mount-point", &at("home.toml")], 78, &["not a folder"]);
    refused(&world, &["--mount-point", &at("no/such")], 78, &["No such file"]);
    std::fs::set_permissions(at("real"), PermissionsExt::from_mode(0o777)).unwrap();
    refused(&world, &["--mount-point", &at("real")], 78, &["writable by nobody else", "chmod"]);
}

#[test]
fn a_foreign_mount_is_told_and_neither_mounted_over_nor_taken_off() {
    let world = World::new();
    world.mount(&[]);
    world.run("unmount", &[]).expect(0);
    let near = world.near();
    let mount =
        |args: &[&str]| assert!(Command::new("mount").args(args).arg(&near).status().unwrap().success());
    mount(&["-t", "tmpfs", "tmpfs"]);
    assert_eq!(world.state(), "foreign");
    for action in ["mount", "unmount"] {
        let ran = world.run(action, &[]).expect(78);
        assert!(told(&ran).contains("tmpfs"), "{}", told(&ran));
    }
    assert!(world.mounted());
    assert!(Command::new("umount").arg(&near).status().unwrap().success());

    // The same machine, but another folder of it.
    let other = world.path().join("far");
    std::fs::create_dir(&other).unwrap();
    world.mount(&["--directory", other.to_str().unwrap()]);
    assert_eq!(world.state(), "foreign");
    world.run("mount", &[]).expect(78);
    world.run("unmount", &[]).expect(78);
    world.run("unmount", &["--directory", other.to_str().unwrap()]).expect(0);
    world.is_clean();
}

#[test]
fn options_outside_the_list_and_values_that_are_none() {
    let world = World::new();
    let options = |text: &str| world.run("mount", &["--options", text]).expect(78);
    for bad in ["reconnect", "StrictHostKeyChecking=no", "ProxyCommand=sh", "allow_other", "Compression=1"] {
        let ran = options(bad);
        assert!(told(&ran).contains(bad.split('=').next().unwrap()), "{}", told(&ran));
    }
    assert!(told(&options("reconnect")).contains("ServerAliveInterval"), "the list is named");
    for bad in ["a b@c", "a@b;id", "-oProxyCommand=x", "a@b:/c"] {
        world.run("mount", &[&format!("--host={bad}")]).expect(78);
    }
    world.run("mount", &["--directory", "relative"]).expect(78);
    world.run("mount", &["--bwlimit", "100"]).expect(78);
    world.run("mount", &["--bwlimit", "1m", "--options", "ProxyJump=x"]).expect(78);
    world.run("mount", &["--bwlimit", "fast"]).expect(2);
    world.is_clean();
}

#[test]
fn without_root_it_says_so() {
    // Where an ordinary account can reach it.
    let dir = testkit::scratch();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::copy(testkit::bin("sshfs-mount"), dir.path().join("sshfs-mount")).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(dir.path().join("sshfs-mount"));
    let ran = testkit::run(command.args(["status", "--host", "a", "--directory", "/b"])).expect(77);
    assert!(told(&ran).contains("as root"));
}

fn keygen(path: &std::path::Path) {
    let out = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(out.unwrap().success());
}
