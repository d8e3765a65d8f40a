//! `scripts/add-offsite`: from a store on S2 to the first push, with an S3 that does not answer, hangs, or is not yet ready.
#![expect(clippy::disallowed_methods, reason = "tests start the scripts as their users do")]

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use testkit::guest::{Options, in_guest, run_me_there};
use testkit::machine::Machine;

const PROFILE: &str = "[store]\\npath = \\\"/srv/backup/home\\\"\\n";

fn s2() -> Machine {
    let s2 = Machine::start();
    s2.sh(&format!("mkdir -p -m 0700 /srv/backup/home; printf \"{PROFILE}\" >/etc/nc-backup/home.toml; chmod 0644 /etc/nc-backup/home.toml"));
    s2
}

fn add(s2: &Machine, more: &[&str]) -> Output {
    s2.script("add-offsite").arg("home").args(more).output().unwrap()
}

fn state(s2: &Machine) -> String {
    let places = "/etc/nc-backup /etc/cron.d /etc/systemd/system /root/.ssh";
    s2.sh(&format!("find {places} -printf '%p %u %m %y\\n' 2>/dev/null | sort; find {places} -type f -exec sha256sum {{}} + 2>/dev/null | sort"))
}

#[track_caller]
fn says(output: &Output, code: i32, words: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(code) && said.contains(words), "{:?} {said}", output.status);
    said
}

#[test]
fn answers_that_cannot_be_are_refused_and_nothing_is_done() {
    let s2 = s2();
    let before = state(&s2);
    for bad in [
        "s3.example",
        "a@b@c",
        "-oProxyCommand=id@h",
        "a@h:99x",
        "a@h:",
        "a b@h",
        "a@h;id",
        "a@h\n",
        "a@-h",
        "a@h:1:2",
    ] {
        says(&add(&s2, &["--to", bad, "--size", "1G", "--yes"]), 2, "--to");
    }
    for bad in ["x", "-1G", "1G;id", "0G", "10"] {
        says(&add(&s2, &["--to", "a@h", "--size", bad, "--yes"]), 2, "--size");
    }
    says(&add(&s2, &["--to", "a@h", "--yes"]), 2, "--size");
    says(&add(&s2, &["--size", "1G", "--yes"]), 2, "--to");
    for bad in ["22-06", "22:00", "25:00-06:00", "22:00-06:60", "22:00-06:00\n"] {
        says(&add(&s2, &["--to", "a@h", "--size", "1G", "--window", bad, "--yes"]), 2, "--window");
    }
    // What is pasted on S3 leaves the account nothing but sftp.
    says(&add(&s2, &["--to", "root@h", "--size", "1G", "--yes"]), 2, "not root");
    says(&add(&s2, &["--to", "a@h", "--size", "1G", "--directory", "rel", "--yes"]), 2, "--directory");
    says(&add(&s2, &["--to", "a@h", "--size", "1G", "--directory", "/a\nb", "--yes"]), 2, "--directory");
    says(
        &add(&s2, &["--to", "a@h", "--size", "1G", "--host-key", "ssh-ed25519 AAAA", "--yes"]),
        2,
        "--host-key",
    );
    says(
        &add(&s2, &["--to", "a@h", "--size", "1G", "--kept-at", "a", "--keep-in", "/tmp", "--yes"]),
        2,
        "one of",
    );
    says(&add(&s2, &["--to", "a@h", "--size", "1G"]), 2, "--yes");
    says(&add(&s2, &["--kept-at", "nowhere"]), 78, "no container yet");
    s2.sh("mv /etc/nc-backup/home.toml /root/");
    says(&add(&s2, &["--to", "a@h", "--size", "1G", "--yes"]), 78, "add-store");
    s2.sh("mv /root/home.toml /etc/nc-backup/");
    assert_eq!(state(&s2), before);
}

#[test]
fn an_s3_that_is_off_or_hangs_or_is_another_is_told_within_a_limit_and_undone() {
    let mut s2 = s2();
    let before = state(&s2);
    let port = s2.sshd();
    // A machine that takes connections and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let hangs = silent.local_addr().unwrap().port();
    let key = s2.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
    let other = s2.sh("ssh-keygen -q -t ed25519 -N '' -f /tmp/ncb-other-$$ && cut -d' ' -f1,2 /tmp/ncb-other-$$.pub; rm -f /tmp/ncb-other-$$ /tmp/ncb-other-$$.pub");
    let to = |port: u16| format!("ncb-off@127.0.0.1:{port}");
    let within = |more: &[&str], words: &str| {
        let begun = Instant::now();
        let output = add(&s2, more);
        let said = says(&output, 69, words);
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}: {said}", begun.elapsed());
        String::from_utf8(output.stdout).unwrap()
    };
    // Nobody there; then somebody who says nothing, before and after its key is known: what S3 needs is printed each time.
    let lines = within(&["--to", &to(1), "--size", "1G", "--yes"], "does not answer on port 1");
    assert!(lines.contains("On S3 (127.0.0.1)") && lines.contains("echo 'restrict ssh-ed25519 "), "{lines}");
    says(&add(&s2, &["--to", &to(2), "--size", "1G", "--yes"]), 1, "already");
    let undo = || says(&add(&s2, &["--undo", "--yes"]), 0, "");
    undo();
    assert_eq!(state(&s2), before);
    within(&["--to", &to(hangs), "--size", "1G", "--yes"], "does not answer on port");
    within(&["--to", &to(hangs), "--size", "1G", "--yes", "--host-key", &key], "S3 (ncb-off@127.0.0.1:");
    undo();
    assert_eq!(state(&s2), before);
    // The key is asked for, and another one is not taken for it.
    within(&["--to", &to(port), "--size", "1G", "--yes"], "its host key is not known here yet");
    within(&["--to", &to(port), "--size", "1G", "--yes", "--host-key", &other], "S3 (ncb-off@127.0.0.1:");
    says(&add(&s2, &["--to", &to(port), "--size", "1G", "--yes", "--host-key", &key]), 1, "by another key");
    undo();
    // The machine is the one, and does not let the key in yet; then the lines are given there, but not the folder.
    let lines =
        within(&["--to", &to(port), "--size", "1G", "--yes", "--host-key", &key], "does not let the key");
    let paste: String = lines
        .lines()
        .filter(|l| {
            l.starts_with("id -u")
                || l.starts_with("install")
                || l.starts_with("grep")
                || l.starts_with("chown")
        })
        .map(|l| format!("{l}\n"))
        .collect();
    s2.sh(&format!("{paste}{paste}rmdir /home/ncb-off/container"));
    assert_eq!(s2.sh("wc -l </home/ncb-off/.ssh/authorized_keys"), "1");
    within(&["--to", &to(port), "--size", "1G", "--yes"], "");
    undo();
    assert_eq!(state(&s2), before);
}

#[test]
fn the_container_is_made_and_pushed_to_and_its_key_is_asked_for_until_it_is_kept_elsewhere() {
    let test = "the_container_is_made_and_pushed_to_and_its_key_is_asked_for_until_it_is_kept_elsewhere";
    // It mounts, and makes accounts.
    if run_me_there(test, Options { memory: 2048, seconds: 1500 }) {
        return;
    }
    assert!(in_guest());
    let sh = |text: &str| {
        let output = Command::new("sh").args(["-euc", text]).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let tools = testkit::bin("link-sync").parent().unwrap().display().to_string();
    // A weak pass-phrase function: the key is random, and this guest is slow.
    sh(&format!(
        "for t in link-sync sshfs-mount luks-mount offsite-push pg-snap nc-maint; do ln -sf '{tools}'/$t /usr/sbin/$t; done
         mkdir -p /usr/lib/nc-backup /etc/cron.d /run/sshd; for f in '{0}'/*; do [ ! -f \"$f\" ] || cp \"$f\" /usr/lib/nc-backup/; done
         rm -rf /etc/nc-backup /var/lib/nc-backup /root/.ssh; mkdir -p /etc/nc-backup; ssh-keygen -A >/dev/null
         mv /usr/sbin/cryptsetup /usr/sbin/cryptsetup.real
         printf '#!/bin/sh\\ncase \" $* \" in *\" luksFormat \"*) set -- --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \"$@\" ;; esac\\nexec /usr/sbin/cryptsetup.real \"$@\"\\n' >/usr/sbin/cryptsetup
         chmod 0755 /usr/sbin/cryptsetup
         mkdir -p -m 0700 /srv/backup/home; printf \"{PROFILE}\" >/etc/nc-backup/home.toml; chmod 0644 /etc/nc-backup/home.toml
         mkdir -p /srv/source; head -c 300000 /dev/urandom >/srv/source/photo
         link-sync snapshot --source docs=/srv/source --store /srv/backup/home --crash-consistent >/dev/null
         /usr/sbin/sshd -p 2222 -o ListenAddress=127.0.0.1 -o PidFile=/run/sshd.pid",
        testkit::scripts().display()
    ));
    let add = |more: &[&str]| {
        Command::new("/usr/lib/nc-backup/add-offsite")
            .arg("home")
            .args(more)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let words = ["--to", "offsite@127.0.0.1:2222", "--size", "300M", "--yes"];
    // What S3 needs is printed, given there as it is, and the line it ends with is what is asked for.
    let told = add(&words);
    says(&told, 69, "its host key is not known here yet");
    let told = String::from_utf8(told.stdout).unwrap();
    let paste = told
        .split("authorized_keys):\n")
        .nth(1)
        .unwrap()
        .replace("systemctl reload ssh", "kill -HUP $(cat /run/sshd.pid)");
    let host_key = sh(&format!("{{ {paste} }} 2>/dev/null | tail -n 1"));
    assert!(host_key.starts_with("ssh-ed25519 AAAA"), "{host_key}");
    let done = add(&[&words[..], &["--host-key", &host_key, "--window", "00:00-23:59"]].concat());
    let said = says(&done, 0, "made the container");
    assert!(said.contains("key and header are nowhere but here"), "{said}");
    let push: serde_json::Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!((&push["tool"], &push["status"]), (&"push-offsite".into(), &"ok".into()), "{push:#}");
    // Nothing stays mounted; the same again does nothing but look; the container is not made anew.
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains("sshfs"));
    let header = sh("sha256sum /var/lib/nc-backup/home/container.header /etc/nc-backup/home.key");
    says(&add(&[&words[..], &["--no-push"]].concat()), 0, "the container was made before");
    assert_eq!(sh("sha256sum /var/lib/nc-backup/home/container.header /etc/nc-backup/home.key"), header);
    // check asks for the key until it is kept elsewhere: not on the same disk; and whole.
    let check = || {
        let ran = Command::new("/usr/lib/nc-backup/check").arg("home").stdin(Stdio::null()).output().unwrap();
        let object: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        let findings = object["data"]["findings"].as_array().unwrap().iter();
        let kinds: Vec<String> = findings.map(|f| f["kind"].as_str().unwrap().to_owned()).collect();
        (kinds, String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let (kinds, said) = check();
    assert!(kinds.contains(&"key-only-here".to_owned()), "{said}");
    assert!(
        said.contains("the key opens the header of the container")
            && said.contains("answers, and has the folder"),
        "{said}"
    );
    sh("mkdir -p /etc/stick /run/stick; mount -t tmpfs stick /run/stick");
    says(&add(&["--keep-in", "/etc/stick"]), 1, "the same disk");
    says(&add(&["--keep-in", "/run/stick"]), 0, "take it away");
    assert!(sh("cat /run/stick/*/README.txt").contains("aes-xts"), "{}", sh("cat /run/stick/*/README.txt"));
    sh(
        "cmp /run/stick/*/home.key /etc/nc-backup/home.key; cmp /run/stick/*/home.header /var/lib/nc-backup/home/container.header",
    );
    let (kinds, said) = check();
    assert!(
        !kinds.contains(&"key-only-here".to_owned()) && said.contains("are kept elsewhere: /run/stick/"),
        "{said}"
    );
    // A header that has changed since asks again, and what is said by hand is believed.
    sh("printf x >>/var/lib/nc-backup/home/container.header");
    assert!(check().0.contains(&"kept-is-old".to_owned()));
    sh("truncate -s -1 /var/lib/nc-backup/home/container.header");
    says(&add(&["--kept-at", "in the safe, and at Ada's"]), 0, "");
    assert!(check().1.contains("are kept elsewhere: in the safe, and at Ada's"));
    // A container that is not where it was is told, too: the next push would fail.
    sh("mv /home/offsite/container/container.img /home/offsite/moved");
    assert!(check().0.contains(&"no-image".to_owned()));
    sh("mv /home/offsite/moved /home/offsite/container/container.img");
    assert!(!check().0.contains(&"no-image".to_owned()));
    // Taken back: timers and tables go; the key and the header of the container that was made stay.
    let said = says(&add(&["--undo", "--yes"]), 0, "stays: /etc/nc-backup/home.key");
    assert!(said.contains("stays: the container"), "{said}");
    assert_eq!(sh("sha256sum /var/lib/nc-backup/home/container.header /etc/nc-backup/home.key"), header);
    assert_eq!(sh("cat /etc/nc-backup/home.toml"), "[store]\npath = \"/srv/backup/home\"");
    assert!(sh("ls /home/offsite/container").contains("container.img"));
    sh("umount /run/stick; kill $(cat /run/sshd.pid)");
}
