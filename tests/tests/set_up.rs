//! `scripts/setup` from an empty machine to the first backup: by one command, again and again, cut off, and taken back.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use testkit::machine::{Instance, Machine};

/// S1 with a Nextcloud where one usually lies.
struct World {
    s1: Machine,
    instance: Instance,
}

impl World {
    fn new(database: &str) -> World {
        let world = World { instance: Instance::new(database), s1: Machine::start() };
        world.place("/var/www/nextcloud");
        world
    }
    /// A copy of the instance there.
    fn place(&self, to: &str) {
        let from = self.instance.root.display();
        self.s1.sh(&format!(
            "rm -rf /var/www/html/nextcloud; mkdir -p '{to}'; rmdir '{to}'; cp -a '{from}' '{to}'; sed -i \"s#{from}#{to}#g\" '{to}/config/config.php'"
        ));
    }
    fn setup(&self, more: &[&str]) -> Output {
        self.s1.script("setup").args(more).output().unwrap()
    }
    /// All that there is of it; without the hosts that ssh knows: it adds their other keys by itself.
    fn state(&self) -> String {
        let places = "/etc/passwd /etc/group /etc/nc-backup /etc/cron.d /etc/sudoers.d /etc/systemd/system /srv /home /root/.ssh";
        self.s1.sh(&format!(
            "{{ find {places} -printf '%p %u %m %y %l\\n' 2>/dev/null | sort; find {places} -type f -exec sha256sum {{}} + 2>/dev/null | sort; }} | grep -v known_hosts"
        ))
    }
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
fn one_command_sets_up_s1_and_s2_and_makes_the_first_backup() {
    // Given S1 with a Nextcloud, and an S2 with nothing but sshd, which lets S1's administrator in,
    let mut world = World::new("one_command");
    let mut s2 = Machine::start();
    s2.sh("rm -rf /usr/sbin/link-sync /usr/lib/nc-backup; mkdir -p -m 0700 /root/.ssh");
    let port = s2.sshd();
    world.s1.cron();
    world.s1.sh(&format!(
        "mkdir -p -m 0700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
         echo '[127.0.0.1]:{port} {}' >/root/.ssh/known_hosts",
        s2.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_rsa_key.pub")
    ));
    let key = world.s1.sh("cat /root/.ssh/id_ed25519.pub");
    s2.sh(&format!("echo '{key}' >/root/.ssh/authorized_keys"));
    let port = port.to_string();
    let words = [
        "--yes",
        "--store",
        "nc-backup@127.0.0.1:/srv/backup/home",
        "--port",
        &port,
        "--via",
        "root@127.0.0.1",
        "--url",
        "",
        "--backup",
    ];
    let before = world.state();
    // what is shown is not done, on either machine;
    let shown = ok(&world.setup(&[&words[..], &["--dry-run"]].concat()));
    assert!(shown.contains("/etc/nc-backup/home.toml") && shown.contains("on root@127.0.0.1:"), "{shown}");
    assert_eq!(world.state(), before);
    assert!(!s2.holds("id nc-backup"));
    // then one command does all of it.
    let done = world.setup(&words);
    let said = ok(&done);
    let night: serde_json::Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!((&night["tool"], &night["status"]), (&"backup-local".into(), &"ok".into()), "{said}");
    assert!(
        said.contains("lets the key for backups in")
            && said.contains("lets the key for restoring in, to read"),
        "{said}"
    );
    assert_eq!(s2.sh("ls /srv/backup/home | grep -c ^20"), "1");
    // Again: nothing changes but that the profile is found.
    let after = world.state();
    let (again, theirs) = (
        world.setup(&["home", "--yes"]),
        s2.sh("sha256sum /home/nc-backup/.ssh/authorized_keys /etc/nc-backup/home.toml"),
    );
    ok(&again);
    ok(&world.setup(&["home", "--yes", "--via", "root@127.0.0.1"]));
    assert_eq!(world.state(), after);
    assert_eq!(s2.sh("sha256sum /home/nc-backup/.ssh/authorized_keys /etc/nc-backup/home.toml"), theirs);
    // Taken back on S1, S1 is as before; what S2 holds stays, also when it is taken back there.
    ok(&world.setup(&["home", "--undo", "--yes"]));
    assert_eq!(world.state(), before);
    ok(&s2.script("add-store").args(["home", "--undo", "--yes"]).output().unwrap());
    assert_eq!(s2.sh("ls /srv/backup/home | grep -c ^20"), "1");
    assert_eq!(s2.sh("cat /home/nc-backup/.ssh/authorized_keys 2>/dev/null | wc -l"), "0");
}

#[test]
fn an_account_gets_its_words_and_saves_with_them() {
    let mut world = World::new("account");
    world.s1.cron();
    ok(&world.setup(&["--yes", "--store", "/srv/backup/home", "--url", "", "--account", "ncb-saver"]));
    assert_eq!(
        world.s1.sh(
            "stat -c '%a %U' /etc/sudoers.d/nc-backup-home; grep -c ^ncb-saver /etc/sudoers.d/nc-backup-home"
        ),
        "440 root\n16"
    );
    assert!(
        world
            .s1
            .sh("cat /etc/cron.d/nc-backup-home")
            .contains("  ncb-saver  /usr/lib/nc-backup/backup-local home")
    );
    let mut night = world.s1.command("setpriv");
    night.args([
        "--reuid",
        "ncb-saver",
        "--regid",
        "ncb-saver",
        "--init-groups",
        "env",
        "HOME=/home/ncb-saver",
        "/usr/lib/nc-backup/backup-local",
        "home",
    ]);
    testkit::run(&mut night).expect(0);
    let said =
        String::from_utf8_lossy(&world.s1.script("check").arg("home").output().unwrap().stderr).into_owned();
    assert!(said.contains("sudo lets ncb-saver run the 16 commands"), "{said}");
    // So is one for which sudo would ask, and a rule that is gone; both are named.
    world.s1.sh("chmod u+w /etc/sudoers.d/nc-backup-home; sed -i '/pg-snap confirm home/s/NOPASSWD: //' /etc/sudoers.d/nc-backup-home; chmod 0440 /etc/sudoers.d/nc-backup-home");
    let said =
        String::from_utf8_lossy(&world.s1.script("check").arg("home").output().unwrap().stderr).into_owned();
    assert!(
        said.contains("sudo does not let ncb-saver run, without a password: pg-snap confirm home"),
        "{said}"
    );
    world.s1.sh("chmod u+w /etc/sudoers.d/nc-backup-home; sed -i '/pg-snap hold home/d' /etc/sudoers.d/nc-backup-home; chmod 0440 /etc/sudoers.d/nc-backup-home");
    let said =
        String::from_utf8_lossy(&world.s1.script("check").arg("home").output().unwrap().stderr).into_owned();
    assert!(
        said.contains("sudo does not let ncb-saver run, without a password: pg-snap hold home"),
        "{said}"
    );
    // Nor does another profile's line, or a file that cron does not read, start this one.
    world.s1.sh("cd /etc/cron.d; sed 's/backup-local home/&-two/' nc-backup-home >other; mv nc-backup-home nc-backup-home.off");
    let said =
        String::from_utf8_lossy(&world.s1.script("check").arg("home").output().unwrap().stderr).into_owned();
    assert!(said.contains("nothing starts the backup"), "{said}");
}

#[test]
fn what_nextclouds_account_writes_is_no_line_of_roots_profile() {
    let world = World::new("foreign_version");
    world.s1.sh("cat >>/var/www/nextcloud/config/config.php <<'END'
$CONFIG['version'] = \"32\\n[drill]\\nuser = 'mallory'\\n\";
END");
    ok(&world.setup(&["--yes", "--url", "", "--store", "/srv/backup/home", "--no-timers"]));
    let profile = world.s1.sh("cat /etc/nc-backup/home.toml");
    assert!(profile.starts_with("# Written by setup for Nextcloud 32. docs"), "{profile}");
    assert!(!profile.contains("mallory"), "{profile}");
}

#[test]
fn what_cannot_be_is_said_at_once_and_nothing_is_done() {
    let world = World::new("cannot");
    let before = world.state();
    let base = ["--yes", "--url", ""];
    let with = |more: &[&str]| world.setup(&[&base[..], more].concat());
    refused(&with(&["--store", ""]), 2, "--store");
    refused(&with(&["--store", "relative/path"]), 2, "is none");
    refused(&with(&["--store", "-oProxyCommand=id@h:/p"]), 2, "is none");
    refused(&with(&["--store", "/srv/a\"b"]), 2, "has a character");
    refused(&with(&["--store", "/var/www/nextcloud/data/backup"]), 2, "inside of Nextcloud");
    refused(&with(&["--store", "/etc/passwd/x"]), 2, "is no folder");
    refused(&with(&["--store", "/srv/x", "--root", "/srv"]), 78, "no occ");
    for bad in ["root", "a b", "x;id", "-x"] {
        refused(&with(&["--store", "/srv/x", "--account", bad]), 2, "--account");
    }
    for bad in ["-oProxyCommand=id", "a b@c", "x@", "a@b@c", "root@h;id"] {
        refused(&with(&["--store", "b@h:/srv/x", "--via", bad]), 2, "--via");
    }
    refused(&with(&["--store", "b@h:/srv/x", "--host-key", "ssh-ed25519 AAAA"]), 2, "not a public key");
    refused(&with(&["--store", "/srv/x", "--keep", "daily=1;id"]), 2, "--keep");
    refused(&with(&["../../etc/x", "--store", "/srv/x"]), 2, "not the name");
    refused(&world.setup(&["--store", "/srv/x"]), 2, "--yes");
    assert_eq!(world.state(), before);
    // Two instances: which one is meant is not guessed; the web server's configuration is read for where they are.
    world.place("/srv/cloud two/nextcloud");
    world.s1.sh("mkdir -p /etc/nginx/sites-enabled; printf 'server {\\n  root \"/srv/elsewhere\";\\n}\\n' >/etc/nginx/sites-enabled/a; cp -a /var/www/nextcloud /srv/elsewhere");
    refused(&with(&["--store", "/srv/x"]), 2, "more than one Nextcloud");
    refused(&with(&["--store", "/srv/x"]), 2, "/srv/elsewhere");
    // One with a space in its name, given: it is taken.
    ok(&with(&["--store", "/srv/my store", "--root", "/srv/cloud two/nextcloud", "--no-timers"]));
    assert!(world.s1.holds("test -d '/srv/my store' && test ! -e /etc/cron.d/nc-backup-home"));
    let profile = world.s1.sh("cat /etc/nc-backup/home.toml");
    assert!(
        profile.contains("root = \"/srv/cloud two/nextcloud\"") && profile.contains("keep_daily = 14"),
        "{profile}"
    );
    // A profile that was written otherwise since stays, also when all else is taken back.
    world.s1.sh("echo '# mine' >>/etc/nc-backup/home.toml");
    refused(&world.setup(&["--undo", "--yes"]), 0, "stays: /etc/nc-backup/home.toml");
    assert!(world.s1.holds("test -e /etc/nc-backup/home.toml && test ! -e '/srv/my store'"));
}

#[test]
fn another_host_key_is_not_taken_for_the_known_one() {
    let world = World::new("hostkey");
    let key = |name: &str| {
        world
            .s1
            .sh(&format!("ssh-keygen -q -t ed25519 -N '' -f /root/{name}; cut -d' ' -f1,2 /root/{name}.pub"))
    };
    let (first, second) = (key("first"), key("second"));
    ok(&world.setup(&[
        "--yes",
        "--url",
        "",
        "--store",
        "nc-backup@127.0.0.1:/srv/backup/home",
        "--port",
        "9",
        "--no-timers",
    ]));
    let with = |key: &str| world.setup(&["home", "--yes", "--no-timers", "--host-key", key]);
    ok(&with(&first));
    assert_eq!(world.s1.sh("cat /root/.ssh/known_hosts"), format!("[127.0.0.1]:9 {first}"));
    ok(&with(&format!("[127.0.0.1]:9 {first} comment")));
    assert_eq!(world.s1.sh("wc -l </root/.ssh/known_hosts"), "1");
    refused(&with(&second), 1, "by another key");
    assert_eq!(world.s1.sh("cat /root/.ssh/known_hosts"), format!("[127.0.0.1]:9 {first}"));
    // A second profile gets a key of its own: a key opens one store.
    let second_profile = [
        "work",
        "--yes",
        "--url",
        "",
        "--store",
        "nc-backup@127.0.0.1:/srv/backup/work",
        "--port",
        "9",
        "--no-timers",
    ];
    ok(&world.setup(&second_profile));
    assert!(world.s1.holds("grep -qF '\"/root/.ssh/nc-backup-work\"' /etc/nc-backup/work.toml && test -s /root/.ssh/nc-backup-work-restore"));
    ok(&world.setup(&["work", "--undo", "--yes"]));
    assert!(world.s1.holds("test -s /root/.ssh/nc-backup && test ! -e /root/.ssh/nc-backup-work"));
    // What others wrote there stays when ours goes.
    world.s1.sh("echo \"other $(cat /root/second.pub)\" >>/root/.ssh/known_hosts");
    ok(&world.setup(&["home", "--undo", "--yes"]));
    assert_eq!(world.s1.sh("wc -l </root/.ssh/known_hosts; test ! -e /root/.ssh/nc-backup"), "1");
}

#[test]
fn killed_at_any_moment_it_goes_on_or_is_taken_back() {
    let world = World::new("killed_setup");
    let words = ["--yes", "--url", "", "--store", "/srv/backup/home", "--account", "ncb-saver"];
    let before = world.state();
    ok(&world.setup(&words));
    let whole = world.state();
    ok(&world.setup(&["--undo", "--yes"]));
    assert_eq!(world.state(), before);
    let mut cut = 0;
    for wait in (0..12).map(|n| Duration::from_millis(400 * n)) {
        let mut child: Command = world.s1.script("setup");
        let mut child = child.args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(wait);
        cut += usize::from(child.try_wait().unwrap().is_none());
        drop(child.kill());
        drop(child.wait());
        std::thread::sleep(Duration::from_millis(500));
        if wait.as_millis() % 800 == 0 {
            ok(&world.setup(&words));
            assert_eq!(world.state(), whole, "after {wait:?}");
        }
        ok(&world.setup(&["--undo", "--yes"]));
        assert_eq!(world.state(), before, "after {wait:?}");
    }
    assert!(cut > 3, "{cut}");
}
