//! `scripts/add-store`: S2 made ready for the keys of S1, again and again, cut off, and taken back.
#![expect(clippy::disallowed_methods, reason = "tests start the scripts as their users do")]

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use testkit::machine::Machine;
use testkit::scratch;

struct World {
    s2: Machine,
    keys: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { s2: Machine::start(), keys: scratch() };
        for name in ["backup", "restore", "third"] {
            let mut made = Command::new("ssh-keygen");
            made.args([
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "my key; $(touch /tmp/ncb-key-was-here)",
                "-f",
            ]);
            assert!(made.arg(world.keys.path().join(name)).status().unwrap().success());
        }
        world
    }
    fn public(&self, name: &str) -> String {
        std::fs::read_to_string(self.keys.path().join(name).with_extension("pub")).unwrap().trim().to_owned()
    }
    fn add(&self, more: &[&str]) -> Output {
        self.s2.script("add-store").arg("home").args(more).output().unwrap()
    }
    fn both(&self, more: &[&str]) -> Output {
        let (backup, restore) = (self.public("backup"), self.public("restore"));
        self.add(&[&["--key", &backup, "--restore-key", &restore], more].concat())
    }
    /// All that there is of it: accounts, files, owners, modes, contents.
    fn state(&self) -> String {
        let places = "/etc/passwd /etc/group /etc/shadow /etc/nc-backup /etc/ssh /etc/cron.d /etc/systemd/system /srv /home";
        self.s2.sh(&format!(
            "find {places} -printf '%p %u %m %y %l\\n' | sort; find {places} -type f -exec sha256sum {{}} + | sort"
        ))
    }
    fn keys_file(&self) -> String {
        self.s2.sh("cat /home/nc-backup/.ssh/authorized_keys 2>/dev/null || true")
    }
}

#[track_caller]
fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(code) && said.contains(words), "{:?} {said}", output.status);
}

#[test]
fn both_keys_get_exactly_their_doors_and_the_same_command_again_changes_nothing() {
    let mut world = World::new();
    let port = world.s2.sshd();
    // What is shown is not done; and what is done is what was shown.
    let before = world.state();
    let shown = world.both(&["--dry-run"]);
    assert!(shown.status.success());
    assert_eq!(world.state(), before);
    let shown = String::from_utf8(shown.stderr).unwrap();
    let line = ok(world.both(&["--yes"]));
    for made in [
        "useradd ",
        "/srv/backup/home",
        "/etc/nc-backup/home.toml",
        "restrict ssh-ed25519",
        "ClientAliveInterval 30",
        "link-sync verify home",
    ] {
        assert!(shown.contains(made), "{made}: {shown}");
    }
    let after = world.state();
    assert_ne!(after, before);
    ok(world.both(&["--yes"]));
    assert_eq!(world.state(), after);
    // One line for each key, which has lost its own words.
    let words = |name: &str| world.public(name).split(' ').take(2).collect::<Vec<_>>().join(" ");
    assert_eq!(
        world.keys_file(),
        format!(
            "command=\"/usr/sbin/link-sync serve home\",restrict {} nc-backup home\n\
             command=\"/usr/sbin/link-sync serve home --read-only\",restrict {} nc-backup-restore home",
            words("backup"),
            words("restore")
        )
    );
    // What it printed is the host key by which S1 knows it; with that, each key opens its door and no other.
    let known = world.keys.path().join("known");
    std::fs::write(&known, format!("[127.0.0.1]:{port} {line}")).unwrap();
    let list = |key: &str, door: &str| {
        let mut list = Command::new(testkit::bin("link-sync"));
        list.args([
            "list",
            "--store",
            "nc-backup@127.0.0.1:/srv/backup/home",
            "--port",
            &port.to_string(),
            "--identity",
        ]);
        list.arg(world.keys.path().join(key))
            .arg("--known-hosts")
            .arg(&known)
            .arg("--state-dir")
            .arg(world.keys.path().join("state"));
        let ran = testkit::run(&mut list).expect(0);
        assert_eq!(ran.json["data"]["door"], door, "{:#}", ran.json);
        assert_eq!(ran.json["data"]["store_has_retention"], true);
        assert!(ran.json["data"]["room"]["free_bytes"].as_u64().unwrap() > 0);
    };
    list("backup", "backup");
    list("restore", "read");
    // And check agrees.
    let checked = testkit::run(world.s2.script("check").arg("home"));
    assert!(!checked.stderr.contains("authorized_keys has no line"), "{}", checked.stderr);
}

#[test]
fn what_is_not_a_key_a_folder_or_an_account_is_refused_and_nothing_is_done() {
    let world = World::new();
    let before = world.state();
    let good = world.public("backup");
    let two_lines = format!("{good}\n{}", world.public("third"));
    let options = format!("command=\"/bin/sh\" {good}");
    let private = std::fs::read_to_string(world.keys.path().join("backup")).unwrap();
    for bad in [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "AAAAC3Nza",
        &two_lines,
        &options,
        &private,
        &format!("{good}\r"),
        "ssh-ed25519 $(id) x",
    ] {
        refused(&world.add(&["--key", bad, "--yes"]), 2, "key");
    }
    refused(&world.add(&["--key", &good, "--restore-key", &good, "--yes"]), 2, "the same");
    for bad in ["srv/home", "/", "/srv", "/srv/../etc/x", "/srv/a\nb", "/srv//x", "/srv/x/"] {
        refused(&world.add(&["--key", &good, "--path", bad, "--yes"]), 2, "--path");
    }
    for bad in ["root", "a b", "-x", "../x", "ÄÖ", "a;id"] {
        refused(&world.add(&["--key", &good, "--account", bad, "--yes"]), 2, "--account");
    }
    for bad in ["daily", "daily=x", "daily=99999", "fortnightly=3", "within=3", "daily=1;id"] {
        refused(&world.add(&["--key", &good, "--keep", bad, "--yes"]), 2, "--keep");
    }
    refused(&world.add(&["--key", &good, "--mount", "/nonesuch", "--yes"]), 2, "--mount");
    refused(&world.add(&["--key", &good]), 2, "--yes");
    let mut stranger = world.s2.command("setpriv");
    stranger.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "/usr/lib/nc-backup/add-store",
        "home",
        "--yes",
    ]);
    refused(&stranger.output().unwrap(), 77, "root");
    assert_eq!(world.state(), before);
    assert!(!world.s2.holds("test -e /tmp/ncb-key-was-here"));
}

#[test]
fn what_others_have_there_is_left_as_it_is() {
    let world = World::new();
    let good = world.public("backup");
    // An account whose authorized_keys has a line of somebody else's, without a newline at its end, keeps it.
    world.s2.sh("useradd --create-home --shell /bin/sh nc-backup; install -d -o nc-backup -g nc-backup -m 0700 /home/nc-backup/.ssh
        printf '%s' '# mine\nssh-ed25519 AAAAold other' >/home/nc-backup/.ssh/authorized_keys; chown nc-backup: /home/nc-backup/.ssh/authorized_keys");
    let theirs = world.keys_file();
    ok(world.add(&["--key", &good, "--yes"]));
    assert!(world.keys_file().starts_with(&format!("{theirs}\ncommand=")), "{}", world.keys_file());
    ok(world.add(&["--undo", "--yes"]));
    assert_eq!(world.keys_file(), theirs);
    assert!(world.s2.holds("id nc-backup && test -d /home/nc-backup/.ssh && test ! -e /srv/backup && test ! -e /etc/nc-backup/home.toml"));
    // The same key with other words before it is no key of ours.
    world.s2.sh(&format!("echo 'command=\"/bin/true\" {good}' >/home/nc-backup/.ssh/authorized_keys"));
    refused(&world.add(&["--key", &good, "--yes"]), 1, "has this key already, with other words");
    ok(world.add(&["--undo", "--yes"]));
    assert!(world.keys_file().contains("/bin/true"));
    // Nor is a link a file of the account's, nor a folder with something of root's in it a store, nor another profile ours.
    world.s2.sh(
        "rm /home/nc-backup/.ssh/authorized_keys; ln -s /etc/passwd /home/nc-backup/.ssh/authorized_keys",
    );
    let passwd = world.s2.sh("sha256sum </etc/passwd");
    refused(&world.add(&["--key", &good, "--yes"]), 1, "link");
    assert_eq!(world.s2.sh("sha256sum </etc/passwd"), passwd);
    world
        .s2
        .sh("rm /home/nc-backup/.ssh/authorized_keys; mkdir -p /srv/other/home; touch /srv/other/home/photo");
    refused(&world.add(&["--key", &good, "--path", "/srv/other/home", "--yes"]), 1, "belongs to root");
    world.s2.sh("ln -s /srv/other /srv/link");
    refused(&world.add(&["--key", &good, "--path", "/srv/link/home", "--yes"]), 1, "is a link");
    world.s2.sh("rm -f /etc/nc-backup/home.toml; printf '[store]\\npath = \"/srv/elsewhere\"\\n' >/etc/nc-backup/home.toml");
    refused(&world.add(&["--key", &good, "--yes"]), 1, "is not for the folder");
    world.s2.sh("usermod --shell /usr/sbin/nologin nc-backup; rm /etc/nc-backup/home.toml");
    refused(&world.add(&["--key", &good, "--yes"]), 1, "usermod --shell /bin/sh nc-backup");
}

#[test]
fn a_link_that_the_account_puts_in_place_of_its_folder_leads_root_nowhere() {
    let world = World::new();
    // After the look, and before the folder is made the account's: with the first line of what was made.
    world.s2.sh("useradd --create-home --shell /bin/sh nc-backup; install -d -o nc-backup -m 0755 /home/nc-backup/store
        printf '#!/bin/sh\nrm -rf /home/nc-backup/store; ln -s /etc /home/nc-backup/store; exec /usr/bin/sync \"$@\"\n' >/usr/local/bin/sync
        chmod 0755 /usr/local/bin/sync");
    let of_etc = world.s2.sh("stat -c '%U %a' /etc");
    let words = ["--key", &world.public("backup"), "--path", "/home/nc-backup/store", "--yes"];
    refused(&world.add(&words), 1, "there is a link in its path");
    assert_eq!(world.s2.sh("stat -c '%U %a' /etc"), of_etc);
}

#[test]
fn an_undo_takes_back_what_was_made_and_never_a_snapshot() {
    let world = World::new();
    let before = world.state();
    ok(world.both(&["--path", "/srv/my photos/it's home", "--yes"]));
    let told: serde_json::Value =
        serde_json::from_str(&ok(world.s2.command("link-sync").args(["profile", "home"]).output().unwrap()))
            .unwrap();
    assert_eq!(told["data"]["local_store"], "/srv/my photos/it's home");
    let shown = world.add(&["--undo", "--dry-run"]);
    assert!(shown.status.success());
    assert!(world.s2.holds("test -d \"/srv/my photos/it's home\""));
    ok(world.add(&["--undo", "--yes"]));
    let without_locks = |state: &str| {
        state
            .lines()
            .filter(|l| !l.contains("/etc/.pwd.lock") && !l.contains("/etc/passwd-"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(without_locks(&world.state()), without_locks(&before));
    ok(world.add(&["--undo", "--yes"]));
    // With a snapshot in it, the folder stays, and its account; the profile that was changed meanwhile, too.
    ok(world.both(&["--yes"]));
    world.s2.sh("install -d -o nc-backup /srv/backup/home/2026-11-22T03-30-00Z; echo '# mine' >>/etc/nc-backup/home.toml");
    let undone = world.add(&["--undo", "--yes"]);
    refused(&undone, 0, "stays: /srv/backup/home, in which there is something");
    refused(&undone, 0, "stays: the account nc-backup");
    refused(&undone, 0, "stays: /etc/nc-backup/home.toml, which was changed since");
    assert!(world.s2.holds(
        "test -d /srv/backup/home/2026-11-22T03-30-00Z && id nc-backup && test -e /etc/nc-backup/home.toml"
    ));
    assert_eq!(world.keys_file(), "");
}

#[test]
fn killed_at_any_moment_it_goes_on_or_is_taken_back() {
    let world = World::new();
    let before = world.state();
    let whole = {
        ok(world.both(&["--yes"]));
        let whole = world.state();
        ok(world.add(&["--undo", "--yes"]));
        whole
    };
    let hide = |state: &str| {
        state
            .lines()
            .filter(|l| !l.contains("-  ") && !l.contains("/etc/shadow") && !l.contains("shadow"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let mut cut = 0;
    for wait in (0..40).map(|n| Duration::from_millis(60 * n)) {
        let mut child = world.s2.script("add-store");
        child.args([
            "home",
            "--key",
            &world.public("backup"),
            "--restore-key",
            &world.public("restore"),
            "--yes",
        ]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(wait);
        cut += usize::from(child.try_wait().unwrap().is_none());
        drop(child.kill());
        drop(child.wait());
        // What it had started in that moment ends by itself; useradd's own lock, too.
        std::thread::sleep(Duration::from_millis(300));
        if wait.as_millis() % 120 == 0 {
            ok(world.both(&["--yes"]));
            assert_eq!(hide(&world.state()), hide(&whole), "after {wait:?}");
        }
        ok(world.add(&["--undo", "--yes"]));
        assert_eq!(hide(&world.state()), hide(&before), "after {wait:?}");
    }
    assert!(cut > 5, "{cut}");
}
