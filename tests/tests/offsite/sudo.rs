//! The rules of docs/offsite.md, word for word: S1 starts the push on S2 as an ordinary account, and can do nothing else there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::guest::{Options, run_me_there};
use testkit::hosts::Setting;
use testkit::{bin, judge, repo};

use crate::world::{World, ok};

/// The lines of docs/offsite.md that hold `what`.
fn documented(what: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repo().join("docs/offsite.md")).unwrap();
    text.lines().filter(|l| l.contains(what)).map(str::to_owned).collect()
}

#[test]
fn s1_may_start_the_push_and_nothing_else() {
    // It puts files into /usr/sbin and /etc.
    if run_me_there("sudo::s1_may_start_the_push_and_nothing_else", Options { memory: 3072, seconds: 1200 }) {
        return;
    }
    ok("useradd", &["--create-home", "--shell", "/bin/sh", "--password", "*", "nc-backup"]);
    let setting = Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, users: ["root", "nc-backup", "root"] };
    let world = World::new(setting);
    world.create("64M");
    let date = world.snapshot(5, 1000);
    for tool in ["link-sync", "sshfs-mount", "luks-mount", "offsite-push"] {
        let to = Path::new("/usr/sbin").join(tool);
        std::fs::copy(bin(tool), &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    ok("install", &["-D", "-m", "0600", world.config().to_str().unwrap(), "/etc/nc-backup/home.toml"]);

    let rules = documented("nc-backup ALL=(root) NOPASSWD: /usr/sbin/offsite-push");
    assert_eq!(rules.len(), 1, "{rules:?}");
    let file = "/etc/sudoers.d/nc-backup-offsite";
    std::fs::write(file, rules.join("\n") + "\n").unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o440)).unwrap();
    ok("visudo", &["-c"]);
    let line = documented("offsite-push push home\",restrict").pop().expect("the line for authorized_keys");
    let (options, _) = line.split_once(" ssh-ed25519").unwrap();
    world.hosts.s2.set_key_options(options);

    // What S1 asks for makes no difference.
    let (s1, s2) = (&world.hosts.s1, &world.hosts.s2);
    let mut ask = s1.ssh(s2);
    let ran = judge(ask.args(["cat", "/etc/shadow"]).stdin(Stdio::null()).output().unwrap()).expect(0);
    assert_eq!((&ran.json["tool"], &ran.json["changed"]), (&"offsite-push".into(), &true.into()));
    assert_eq!(ran.json["data"]["push"]["date"], *date);
    let again = judge(s1.ssh(s2).stdin(Stdio::null()).output().unwrap()).expect(0);
    assert_eq!(again.json["changed"], false);
    world.nothing_is_up();
    world.container_holds(&[&date]);

    // The account itself has these words and no others.
    for words in [
        "offsite-push unview home --if-killed",
        "offsite-push push home --accept-container",
        "offsite-push push other",
        "offsite-push view home",
        "luks-mount attach home",
    ] {
        let script = format!("sudo -n /usr/sbin/{words}");
        let done =
            Command::new("runuser").args(["-u", "nc-backup", "--", "sh", "-c", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success(), "{words}: {said}");
        assert!(said.contains("password is required") || said.contains("not allowed"), "{said}");
    }
    world.nothing_is_up();
}
