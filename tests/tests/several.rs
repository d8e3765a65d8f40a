//! Several instances: what is made for one profile, and what runs for it, leaves the others alone.

use std::process::{Command, Output, Stdio};

use testkit::machine::{Instance, Machine};

/// An S1 with an instance at `to`, which S2's administrator lets in by ssh.
fn s1_with(instance: &Instance, to: &str) -> Machine {
    let s1 = Machine::start();
    place(&s1, instance, to);
    s1
}
fn place(s1: &Machine, instance: &Instance, to: &str) {
    let from = instance.root.display();
    s1.sh(&format!(
        "rm -rf /var/www/html/nextcloud; mkdir -p '{to}'; rmdir '{to}'; cp -a '{from}' '{to}'; sed -i \"s#{from}#{to}#g\" '{to}/config/config.php'"
    ));
}
/// An S2 that has nothing, and lets the administrators of `s1s` in; its port.
fn s2_for(s1s: &[&Machine]) -> (Machine, String) {
    let mut s2 = Machine::start();
    s2.sh("mkdir -p -m 0700 /root/.ssh");
    let port = s2.sshd();
    let host = s2.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_rsa_key.pub");
    for s1 in s1s {
        s1.sh(&format!(
            "mkdir -p -m 0700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
             echo '[127.0.0.1]:{port} {host}' >/root/.ssh/known_hosts"
        ));
        let key = s1.sh("cat /root/.ssh/id_ed25519.pub");
        s2.sh(&format!("echo '{key}' >>/root/.ssh/authorized_keys"));
    }
    (s2, port.to_string())
}
/// `setup NAME` on S1, by ssh to S2, without a question.
fn setup(s1: &Machine, name: &str, port: &str, more: &[&str]) -> Command {
    let mut command = s1.script("setup");
    command.args([name, "--yes", "--url", "", "--port", port, "--via", "root@127.0.0.1", "--store"]);
    command.arg(format!("nc-backup@127.0.0.1:/srv/backup/{name}")).args(more);
    command
}
fn undo(machine: &Machine, script: &str, name: &str) -> String {
    ok(&machine.script(script).args([name, "--undo", "--yes"]).output().unwrap())
}
fn night(s1: &Machine, name: &str) -> Command {
    let mut night = s1.script("backup-local");
    night.arg(name).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    night
}
fn dates(s2: &Machine, name: &str) -> String {
    s2.sh(&format!("ls /srv/backup/{name} | grep -c ^20 || true"))
}

#[track_caller]
fn ok(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}
#[track_caller]
fn refused(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(code) && said.contains(words), "{:?} {said}", output.status);
}

#[test]
fn two_instances_of_one_machine_are_saved_at_once_and_one_that_is_taken_back_leaves_the_other() {
    // Given two instances on one S1, and one S2,
    let (first, second) = (Instance::new("several_first"), Instance::new("several_second"));
    let mut s1 = s1_with(&first, "/var/www/nextcloud");
    place(&s1, &second, "/srv/office/nextcloud");
    s1.sh(
        "mkdir -p /etc/nginx/sites-enabled; echo 'root /srv/office/nextcloud;' >/etc/nginx/sites-enabled/office",
    );
    s1.cron();
    let (s2, port) = s2_for(&[&s1]);
    // when both are set up, the second without a word about which one it is, as only one is left,
    refused(&setup(&s1, "home", &port, &[]).output().unwrap(), 2, "more than one Nextcloud");
    ok(&setup(&s1, "home", &port, &["--root", "/var/www/nextcloud"]).output().unwrap());
    ok(&setup(&s1, "work", &port, &[]).output().unwrap());
    let stores = |name: &str| {
        s1.sh(&format!(
            "link-sync profile {name} | jq -r '.data.profile | .nextcloud.root, .snapshot.ssh.identity'"
        ))
    };
    assert_eq!(stores("home"), "/var/www/nextcloud\n/root/.ssh/nc-backup");
    assert_eq!(stores("work"), "/srv/office/nextcloud\n/root/.ssh/nc-backup-work");
    // a third profile finds no store of its own in another's,
    let taken = [
        "third",
        "--yes",
        "--url",
        "",
        "--root",
        "/srv/office/nextcloud",
        "--store",
        "nc-backup@127.0.0.1:/srv/backup/work",
    ];
    refused(&s1.script("setup").args(taken).output().unwrap(), 2, "another profile has its snapshots");
    // then both are saved at the same time, each into its own store.
    let nights = [night(&s1, "home").spawn().unwrap(), night(&s1, "work").spawn().unwrap()];
    for night in nights {
        testkit::judge(night.wait_with_output().unwrap()).expect(0);
    }
    assert_eq!((dates(&s2, "home").as_str(), dates(&s2, "work").as_str()), ("1", "1"));
    for (name, database) in [("home", "several_first"), ("work", "several_second")] {
        assert!(s2.holds(&format!("grep -qF '{database}' /srv/backup/{name}/20*/html/config/config.php")));
    }
    // The first one taken back on both machines, also what the second one needs of it stays: it is saved as before.
    let said = undo(&s1, "setup", "home");
    assert!(said.contains("/root/.ssh/known_hosts, which work needs, too"), "{said}");
    undo(&s2, "add-store", "home");
    assert!(s2.holds("test -s /etc/ssh/sshd_config.d/nc-backup-nc-backup.conf && id nc-backup"));
    assert!(s1.holds("test ! -e /etc/nc-backup/home.toml && test ! -e /root/.ssh/nc-backup"));
    testkit::judge(night(&s1, "work").output().unwrap()).expect(0);
    assert_eq!((dates(&s2, "home").as_str(), dates(&s2, "work").as_str()), ("1", "2"));
    // With the second one goes what both needed; not the account whose snapshots are still there.
    undo(&s1, "setup", "work");
    undo(&s2, "add-store", "work");
    assert!(s1.holds("! ls /etc/cron.d | grep -q nc-backup"));
    assert!(s2.holds("test ! -e /etc/ssh/sshd_config.d/nc-backup-nc-backup.conf && id nc-backup && test -d /srv/backup/home"));
}

#[test]
fn a_second_machine_does_not_get_into_the_first_ones_store_by_its_name() {
    // Given two S1s, each with a profile home, and one S2,
    let instances = [Instance::new("several_here"), Instance::new("several_there")];
    let [mut here, mut there] = [0, 1].map(|n: usize| s1_with(&instances[n], "/var/www/nextcloud"));
    here.cron();
    there.cron();
    let (s2, port) = s2_for(&[&here, &there]);
    testkit::judge(setup(&here, "home", &port, &["--backup"]).output().unwrap()).expect(0);
    // the second one's key is not let into that store, and nothing there changes;
    let state = || s2.sh("find /etc/nc-backup /home /srv -type f -exec sha256sum {} + | sort");
    let before = state();
    refused(&setup(&there, "home", &port, &[]).output().unwrap(), 1, "another machine's");
    assert_eq!(state(), before);
    // by another name, as the message says, it has a store of its own, beside;
    undo(&there, "setup", "home");
    testkit::judge(setup(&there, "cottage", &port, &["--backup"]).output().unwrap()).expect(0);
    testkit::judge(night(&here, "home").output().unwrap()).expect(0);
    assert_eq!((dates(&s2, "home").as_str(), dates(&s2, "cottage").as_str()), ("2", "1"));
    // nor can its folder be the first one's.
    let key = there.sh("cat /root/.ssh/id_ed25519.pub");
    let words = ["third", "--yes", "--key", &key, "--path", "/srv/backup/home"];
    refused(&s2.script("add-store").args(words).output().unwrap(), 1, "the store of another profile");
    // Two that are prepared at the same time lose neither's key.
    let add = |name: &str| {
        let key = here.sh(&format!("ssh-keygen -q -t ed25519 -N '' -f /root/{name}; cat /root/{name}.pub"));
        let mut add = s2.script("add-store");
        add.args([name, "--yes", "--key", &key]).stdout(Stdio::null()).stderr(Stdio::piped());
        add
    };
    let adds: Vec<_> = ["a1", "a2", "a3", "a4"].map(add).map(|mut add| add.spawn().unwrap()).into();
    for add in adds {
        ok(&add.wait_with_output().unwrap());
    }
    assert_eq!(s2.sh("grep -c 'serve a[1-4]\"' /home/nc-backup/.ssh/authorized_keys"), "4");
}

#[test]
fn one_instance_has_two_stores_and_each_keeps_what_it_got() {
    let instance = Instance::new("several_stores");
    let mut s1 = s1_with(&instance, "/var/www/nextcloud");
    s1.cron();
    let ((near, near_port), (far, far_port)) = (s2_for(&[&s1]), s2_for(&[]));
    // The second S2 is known to the same administrator.
    let (key, host) =
        (s1.sh("cat /root/.ssh/id_ed25519.pub"), far.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_rsa_key.pub"));
    far.sh(&format!("echo '{key}' >/root/.ssh/authorized_keys"));
    s1.sh(&format!("echo '[127.0.0.1]:{far_port} {host}' >>/root/.ssh/known_hosts"));
    let account = ["--account", "ncb-saver"];
    ok(&setup(&s1, "home", &near_port, &account).output().unwrap());
    ok(&setup(&s1, "home-far", &far_port, &account).output().unwrap());
    assert!(s1.holds("test -s /etc/sudoers.d/nc-backup-home && test -s /etc/sudoers.d/nc-backup-home-far"));
    // At the same time: they take turns, and Nextcloud is open afterwards.
    let nights = [night(&s1, "home").spawn().unwrap(), night(&s1, "home-far").spawn().unwrap()];
    for night in nights {
        let night = testkit::judge(night.wait_with_output().unwrap()).expect(0);
        assert!(night.json["data"]["maintenance_ms"].is_u64(), "it was on before: {:#}", night.json);
    }
    assert_eq!((dates(&near, "home").as_str(), dates(&far, "home-far").as_str()), ("1", "1"));
    let status = |name: &str| {
        testkit::run(s1.command("nc-maint").args(["status", name])).expect(0).json["data"]["maintenance"]
            .clone()
    };
    assert_eq!((status("home"), status("home-far")), (false.into(), false.into()));
    // One taken back: the account stays for the other one, and goes with it.
    undo(&s1, "setup", "home");
    assert!(s1.holds(
        "id ncb-saver && test -s /etc/sudoers.d/nc-backup-home-far && test ! -e /etc/sudoers.d/nc-backup-home"
    ));
    testkit::judge(night(&s1, "home-far").output().unwrap()).expect(0);
    undo(&s1, "setup", "home-far");
    assert!(!s1.holds("id ncb-saver"));
}
