//! `run` called through the real sudo by an ordinary user: the command must not get root's rights.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use testkit::{bin, run};

use crate::world::World;

/// A user of the test's own who may call one command, gone with the value.
struct Caller {
    name: String,
    rule: PathBuf,
}

impl Caller {
    fn new(command: &str) -> Caller {
        let name = format!("nctest{}", std::process::id());
        let rule = PathBuf::from(format!("/etc/sudoers.d/{name}"));
        let made = Command::new("useradd").args(["--no-create-home", "--groups", "www-data", &name]).status();
        assert!(made.unwrap().success(), "useradd works");
        let caller = Caller { name, rule };
        std::fs::write(&caller.rule, format!("{} ALL=(root) NOPASSWD: {command}\n", caller.name)).unwrap();
        std::fs::set_permissions(&caller.rule, PermissionsExt::from_mode(0o440)).unwrap();
        let sound = Command::new("visudo").arg("-cqf").arg(&caller.rule).status().unwrap();
        assert!(sound.success(), "the rule is one");
        caller
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        std::fs::remove_file(&self.rule).unwrap();
        assert!(Command::new("userdel").arg(&self.name).status().unwrap().success());
    }
}

#[test]
fn the_command_runs_as_the_user_who_called_sudo() {
    let world = World::new();
    let tool = bin("nc-maint");
    let caller = Caller::new(tool.to_str().unwrap());
    // A file root has opened before, and the calling user must not meet in the command.
    let script = "printf '{\"uid\":\"%s\",\"user\":\"%s\",\"home\":\"%s\",\"groups\":\"%s\",\"fds\":\"%s\"}\\n' \
                  $(id -u) \"$USER\" \"$HOME\" \"$(id -Gn)\" \"$(ls /proc/self/fd | tr '\\n' ' ')\"; env >&2; cat /etc/shadow >&2";
    let line = "exec 9</etc/shadow; exec sudo -u \"$0\" sudo -n \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", line, &caller.name]).arg(&tool).arg("run");
    command.arg("--root").arg(world.root()).arg("--state-dir").arg(world.state());
    let ran = run(command.args(["--", "sh", "-c", script])).expect(1);

    let told = &ran.json["data"]["command"]["output"][0];
    let name = caller.name.as_str();
    assert_ne!(told["uid"], "0");
    assert_eq!((&told["user"], &ran.json["data"]["command"]["user"]), (&name.into(), &name.into()));
    assert_eq!(told["home"], format!("/home/{name}"));
    let groups: Vec<&str> = told["groups"].as_str().unwrap().split(' ').collect();
    assert_eq!(groups, [name, "www-data"], "its own groups, all of them, and none of root's");
    assert_eq!(told["fds"], "0 1 2 3 ", "3 is ls's own");
    assert!(ran.stderr.contains("/etc/shadow: Permission denied"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("SUDO_"), "{}", ran.stderr);
    world.is_clean();
}

#[test]
fn without_root_it_works_for_the_web_user_and_the_command_stays_with_it() {
    let world = World::new();
    let tool = testkit::placed(world.path(), "nc-maint");
    std::fs::create_dir(world.state()).unwrap();
    std::fs::set_permissions(world.state(), PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(world.state(), Some(33), Some(33)).unwrap();
    let mut command = Command::new("sudo");
    command.args(["-u", "www-data"]).arg(&tool).arg("run").arg("--root").arg(world.root());
    command.arg("--state-dir").arg(world.state());
    let script = "printf '{\"uid\":\"%s\",\"home\":\"%s\"}' $(id -u) $HOME";
    let ran = run(command.args(["--", "sh", "-c", script])).expect(0);
    let told = &ran.json["data"]["command"]["output"][0];
    assert_eq!((&told["uid"], &told["home"]), (&"33".into(), &"/var/www".into()));
    world.is_clean();
    // A folder that the account may not enter by its path is no reason to fail.
    let closed = testkit::scratch();
    let ran = run(command.current_dir(closed.path())).expect(0);
    assert_eq!(ran.json["data"]["command"]["output"][0]["uid"], "33");
    world.is_clean();
}

#[test]
fn variables_that_sudo_would_not_set_are_refused() {
    let world = World::new();
    for (uid, gid, user) in
        [("33", "33", "root"), ("33", "0", "www-data"), ("x", "33", "www-data"), ("0", "0", "nobody")]
    {
        let mut command = world.nc_maint("run");
        command.env("SUDO_UID", uid).env("SUDO_GID", gid).env("SUDO_USER", user).args(["--", "true"]);
        run(&mut command).expect(77);
        world.is_clean();
    }
}
