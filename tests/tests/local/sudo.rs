//! The rules of docs/setup.md, word for word: an ordinary account backs up by them, and can do nothing else with them.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use testkit::guest::{Options, run_me_there};
use testkit::{judge, repo, run, scripts};

use crate::world::World;

/// The words that docs/setup.md lets the account say, in its order.
fn rules() -> Vec<String> {
    let text = std::fs::read_to_string(repo().join("docs/setup.md")).unwrap();
    let begin = text.find("As\n`/etc/sudoers.d/nc-backup`").expect("the rules of S1");
    let lines = text[begin..].lines().skip_while(|l| !l.starts_with("nc-backup ALL"));
    lines
        .take_while(|l| l.starts_with("nc-backup ALL=(root) NOPASSWD: /usr/sbin/"))
        .map(str::to_owned)
        .collect()
}

fn words(rule: &str) -> &str {
    rule.split_once("NOPASSWD: ").unwrap().1
}

#[track_caller]
fn ok(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the account does, in a shell of its own.
fn as_account(script: &str) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", "nc-backup", "--", "timeout", "-k", "5", "120", "sh", "-c", script]);
    for variable in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

fn output(script: &str) -> Output {
    as_account(script).output().unwrap()
}

#[test]
fn the_account_saves_by_its_rules_and_can_do_nothing_else_with_them() {
    // It puts files into /usr/sbin and /etc.
    let test = "sudo::the_account_saves_by_its_rules_and_can_do_nothing_else_with_them";
    if run_me_there(test, Options { memory: 3072, seconds: 1200 }) {
        return;
    }
    ok("useradd", &["--create-home", "--shell", "/bin/sh", "--password", "*", "nc-backup"]);
    let world = World::new("by_rules");
    let bin = testkit::bin("link-sync").parent().unwrap().to_owned();
    ok(scripts().join("install").to_str().unwrap(), &["--bin", bin.to_str().unwrap()]);
    let profile = world.path("home.toml");
    ok("install", &["-m", "0600", profile.to_str().unwrap(), "/etc/nc-backup/home.toml"]);
    let rules = rules();
    assert_eq!(rules.len(), 15, "{rules:#?}");
    let file = "/etc/sudoers.d/nc-backup";
    std::fs::write(file, rules.join("\n") + "\n").unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o440)).unwrap();
    ok("visudo", &["-c"]);

    let night = "cd /; /usr/lib/nc-backup/backup-local home";
    let ran = run(&mut as_account(night)).expect(0);
    assert_eq!((&ran.json["tool"], &ran.json["status"]), (&"backup-local".into(), &"ok".into()));
    assert_eq!(world.dates().len(), 1);

    // Other words, more words, less words, other names, another account's rights: sudo knows none of them.
    for words in [
        "/usr/sbin/nc-maint on home",
        "/usr/sbin/nc-maint off home",
        "/usr/sbin/nc-maint status home --root /tmp",
        "/usr/sbin/nc-maint status other",
        "/usr/sbin/nc-maint run home -- /bin/sh",
        "/usr/sbin/nc-maint run home -- /usr/lib/nc-backup/settle-and-hold home --bin /tmp",
        "/usr/sbin/link-sync stage home --source /etc",
        "/usr/sbin/link-sync prune home",
        "/usr/sbin/link-sync restore home",
        "/usr/sbin/pg-snap dump home",
        "/usr/sbin/pg-snap drain home --config /tmp/home.toml",
        "/usr/lib/nc-backup/settle-and-hold home",
        "-E /usr/sbin/nc-maint status home",
        "-D /tmp /usr/sbin/nc-maint status home",
        "-C 9 /usr/sbin/nc-maint status home",
        "LD_PRELOAD=/tmp/evil.so /usr/sbin/nc-maint status home",
        "PATH=/tmp/evil /usr/sbin/nc-maint status home",
        "NC_BACKUP_TOOLS=/tmp/evil /usr/sbin/nc-maint status home",
    ] {
        let done = output(&format!("sudo -n {words}"));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && done.stdout.is_empty(), "{words}: {said}");
        let refused = ["password is required", "not allowed", "not permitted"];
        assert!(refused.iter().any(|r| said.contains(r)), "{words}: {said}");
    }

    // Each of its words in every state of a night, in a wrong order, from a folder and an environment made to mislead:
    // an answer each time, nothing of the account's is run or written to, and Nextcloud is open.
    let evil = "mkdir -p /tmp/evil; for p in php psql pg_dump rsync ssh jq id sh flock link-sync pg-snap nc-maint; do \
         printf '#!/bin/sh\\nid -u >>/tmp/evil/ran\\n' >/tmp/evil/$p; chmod 755 /tmp/evil/$p; done; cd /tmp/evil; \
         export PATH=/tmp/evil:$PATH LD_PRELOAD=/tmp/evil/none.so LD_LIBRARY_PATH=/tmp/evil ENV=/tmp/evil/sh BASH_ENV=/tmp/evil/sh \
         NC_BACKUP_TOOLS=/tmp/evil TMPDIR=/tmp/evil HOME=/tmp/evil PHPRC=/tmp/evil PGHOST=/tmp/evil PGSERVICEFILE=/tmp/evil/sh \
         RSYNC_RSH=/tmp/evil/ssh LANGUAGE=de; umask 0; ulimit -n 64; ulimit -c unlimited; ";
    for before in ["", "/usr/sbin/link-sync stage home", "/usr/sbin/pg-snap drain home --look"] {
        if !before.is_empty() {
            output(&format!("sudo -n {before}"));
        }
        for rule in rules.iter().rev() {
            let done = output(&format!("{evil} /usr/bin/sudo -n {} 2>&1 >/tmp/evil/out", words(rule)));
            let said = String::from_utf8_lossy(&done.stdout);
            let code = done.status.code().unwrap_or(-1);
            assert!([0, 1, 69, 75, 77, 78].contains(&code), "{rule}: {code}: {said}");
            assert!(!said.contains("password is required"), "{rule}: {said}");
            assert!(!world.in_maintenance(), "{rule} has left maintenance on: {said}");
        }
    }
    let evil = std::path::Path::new("/tmp/evil");
    assert!(!evil.join("ran").exists(), "{:?}", std::fs::read_to_string(evil.join("ran")));
    use std::os::unix::fs::MetadataExt as _;
    for entry in std::fs::read_dir(evil).unwrap().map(|e| e.unwrap()) {
        assert_ne!(entry.metadata().unwrap().uid(), 0, "root has made {}", entry.path().display());
    }

    // And the next night is as any other.
    let ran = judge(output(night)).expect(0);
    assert_eq!(ran.json["status"], "ok");
    assert_eq!(world.dates().len(), 2);
}
