//! The ways, each with a real receiver, and receivers that do what they should not.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::script;

use crate::world::{SECRET, World, object};

const ALL: &str = "[notify]\ntimeout = \"20s\"\n[notify.ping]\nbackup = \"DIR/ping\"\n\
    [notify.mail]\nto = [\"admin@example.org\", \"root\"]\nfrom = \"nc@example.org\"\nsendmail = [\"DIR/sendmail\"]\n\
    [notify.ntfy]\nurl_file = \"DIR/ntfy\"\ntoken_file = \"DIR/token\"\n\
    [notify.command]\nargv = [\"DIR/command\", \"a word\"]\nuser = \"nobody\"\n\
    [notify.apprise]\nconfig_file = \"DIR/apprise.yml\"\n";

#[test]
fn a_failure_is_told_once_by_every_way_and_so_is_that_it_is_over() {
    assert!(Command::new("apprise").arg("--version").output().is_ok(), "apt-get install apprise");
    let world = World::new("heard", ALL);
    let told = world.path("told");
    std::fs::create_dir(&told).unwrap();
    std::fs::set_permissions(&told, std::fs::Permissions::from_mode(0o777)).unwrap();
    script(
        &world.path("command"),
        &format!("#!/bin/sh\n{{ id -un; echo \"$1\"; env; tty; cat; }} >>'{}/told' 2>&1\n", told.display()),
    );

    let ran =
        world.ended("backup", &object(69, "s2 does not \u{1b}[31manswer\nBcc: x@example.org")).expect(0);
    assert_eq!(ran.json["data"]["told"].as_array().unwrap().len(), 5, "{:#}", ran.json);
    let arrived = world.receiver.take();
    let of = |path: &str| arrived.iter().filter(|r| r.path.starts_with(path)).collect::<Vec<_>>();
    let (ping, ntfy, apprise) = (of("/ping/"), of("/topic"), of("/apprise/"));
    assert_eq!((ping.len(), ntfy.len(), apprise.len()), (1, 1, 1), "{arrived:#?}");
    assert_eq!(ping[0].path, format!("/ping/{SECRET}/fail?create=1"));
    assert!(ping[0].body.contains("the first cause") && ping[0].body.contains("a hint"), "{}", ping[0].body);
    assert!(ntfy[0].head.contains(&format!("Authorization: Bearer {SECRET}")), "{}", ntfy[0].head);
    assert!(ntfy[0].head.contains("Priority: high") && !ntfy[0].head.contains("\nBcc"), "{}", ntfy[0].head);
    assert!(apprise[0].body.contains("\"type\": \"failure\"") && apprise[0].body.contains("does not"));
    let mails = world.mails();
    let (head, body) = mails[0].split_once("\n\n").unwrap();
    assert!(head.starts_with("to -i -f nc@example.org admin@example.org root\n"), "{head}");
    assert!(
        head.contains("\nSubject: [nc-backup] heard on ") && head.contains("backup FAILED: s2 does not"),
        "{head}"
    );
    assert!(
        !head.contains("\nBcc") && !mails[0].contains('\u{1b}'),
        "what failed is no line of a mail: {head}"
    );
    assert!(body.contains("exit code 69") && body.contains("history.jsonl"), "{body}");
    let said = std::fs::read_to_string(told.join("told")).unwrap();
    assert!(said.starts_with("nobody\na word\n") && said.contains("NC_BACKUP_EVENT=failure"), "{said}");
    assert!(said.contains("not a tty") && said.contains("s2 does not") && !said.contains(SECRET), "{said}");

    // The next tries: only the ping, which wants to be asked for each time.
    for code in [69, 1] {
        world.ended("backup", &object(code, "again")).expect(0);
    }
    assert_eq!(world.receiver.take().len(), 2);
    assert!(world.mails().is_empty());
    // Worse: something was left behind.
    world.ended("backup", &object(4, "maintenance is on")).expect(0);
    assert!(world.mails()[0].contains("left something behind"));
    world.receiver.take();
    // Another kind of run has nothing to do with it.
    world.ended("verify", &object(0, "")).expect(0);
    assert!(world.mails().is_empty() && world.receiver.take().is_empty());
    // And it is well again.
    world.ended("backup", &object(0, "")).expect(0);
    assert!(world.mails()[0].contains("backup is well again"));
    let arrived = world.receiver.take();
    assert!(arrived.iter().any(|r| r.path == format!("/ping/{SECRET}?create=1")), "{arrived:#?}");
    world.ended("backup", &object(0, "")).expect(0);
    assert!(world.mails().is_empty());
    // That one begins is told to those who asked for it.
    world.receiver.take();
    world.notify(&["--begun", "backup"]).expect(0);
    world.notify(&["--begun", "verify"]).expect(0);
    let arrived = world.receiver.take();
    assert_eq!(arrived.len(), 1);
    assert_eq!(arrived[0].path, format!("/ping/{SECRET}/start?create=1"));
}

#[test]
fn what_cannot_be_sent_fails_no_night_takes_no_secret_along_and_is_sent_later() {
    let world = World::new(
        "heard",
        "[notify]\ntimeout = \"4s\"\n[notify.ping]\nbackup = \"DIR/ping\"\n[notify.ntfy]\nurl_file = \"DIR/ntfy\"\ntoken_file = \"DIR/token\"\n\
         [notify.mail]\nto = [\"root\"]\nsendmail = [\"DIR/sendmail\"]\n",
    );
    let port = world.receiver.port;
    let mail = std::fs::read_to_string(world.path("sendmail")).unwrap();
    for (what, ntfy, why) in [
        ("an answer that is none", format!("http://127.0.0.1:{port}/garbage/"), ""),
        ("a redirect to a file", format!("http://127.0.0.1:{port}/away/"), "302"),
        ("an error", format!("http://127.0.0.1:{port}/broken/"), "500"),
        ("a file", "file:///etc/passwd".into(), "does not hold a URL"),
        (
            "an option of curl",
            format!("http://127.0.0.1:{port}/\" \noutput = \"/tmp/x"),
            "does not hold a URL",
        ),
        ("nobody there", "http://127.0.0.1:1/".into(), ""),
        ("an answer that never comes", format!("http://127.0.0.1:{port}/hang/"), ""),
    ] {
        world.secret("ntfy", &ntfy);
        let begun = Instant::now();
        // Each is a failure of its own kind of run, and so is told.
        std::fs::remove_dir_all(world.path("state")).ok();
        let ran = world.ended("backup", &object(1, what));
        assert!(begun.elapsed() < Duration::from_secs(40), "{what}: {:?}", begun.elapsed());
        let ran = ran.expect(1);
        let told = ran.json["data"]["told"].as_array().unwrap();
        let of = |way: &str| told.iter().find(|t| t["way"] == way).unwrap();
        assert_eq!(
            (&of("mail")["ok"], &of("ping")["ok"], &of("ntfy")["ok"]),
            (&true.into(), &true.into(), &false.into())
        );
        let message = of("ntfy")["message"].as_str().unwrap();
        assert!(message.contains(why) && !message.is_empty(), "{what}: {message}");
        assert!(!format!("{} {}", ran.json, ran.stderr).contains(SECRET), "{what}: {:#}", ran.json);
    }
    // It is kept, and sent as soon as that is possible, once.
    assert_eq!(world.state()["pending"].as_array().unwrap().len(), 1);
    world.secret("ntfy", &format!("http://127.0.0.1:{port}/topic"));
    world.receiver.take();
    world.ended("verify", &object(0, "")).expect(0);
    let arrived = world.receiver.take();
    assert_eq!(arrived.len(), 1);
    assert!(arrived[0].body.contains("an answer that never comes"), "{arrived:#?}");
    assert_eq!(world.state()["pending"], serde_json::json!([]));

    // sendmail hangs, and what it has started with it; the others are told meanwhile.
    script(&world.path("sendmail"), "#!/bin/sh\nsleep 987 & sleep 987\n");
    world.ended("backup", &object(0, "")).expect(1);
    assert_eq!(world.receiver.take().len(), 2);
    let left = Command::new("pgrep").args(["-f", "sleep 98[7]"]).output().unwrap();
    assert!(left.stdout.is_empty(), "it is still there");
    script(&world.path("sendmail"), &mail);
}

#[test]
fn no_secret_is_seen_by_others_while_it_is_used() {
    let world = World::new(
        "heard",
        "[notify]\ntimeout = \"6s\"\n[notify.ping]\nbackup = \"DIR/ping\"\n[notify.ntfy]\nurl_file = \"DIR/ntfy\"\ntoken_file = \"DIR/token\"\n",
    );
    world.secret("ping", &format!("http://127.0.0.1:{}/hang/{SECRET}", world.receiver.port));
    world.secret("ntfy", &format!("http://127.0.0.1:{}/hang/", world.receiver.port));
    let mut child = world.command(&["--ended", "backup"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &object(1, "x")).unwrap();
    let (mut curls, mut seen) = (0, Vec::new());
    while child.try_wait().unwrap().is_none() {
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let read = |file: &str| {
                String::from_utf8_lossy(&std::fs::read(process.path().join(file)).unwrap_or_default())
                    .into_owned()
            };
            let (words, around) = (read("cmdline"), read("environ"));
            curls += usize::from(words.starts_with("curl\0"));
            if words.contains(SECRET) || around.contains(SECRET) {
                seen.push(words);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(curls > 0, "curl was at work");
    assert!(seen.is_empty(), "{seen:?}");
    for file in ["state/notify.json", "state/history.jsonl"] {
        assert!(!std::fs::read_to_string(world.path(file)).unwrap().contains(SECRET), "{file}");
    }
}

#[test]
fn a_secret_that_others_can_read_or_plant_is_not_used() {
    let world = World::new("heard", "[notify.ntfy]\nurl_file = \"DIR/s/ntfy\"\n");
    let dir = world.path("s");
    std::fs::create_dir(&dir).unwrap();
    let fails = |right: &str| {
        std::fs::remove_dir_all(world.path("state")).ok();
        let ran = world.ended("backup", &object(1, "x")).expect(1);
        let message = ran.json["data"]["told"][0]["message"].as_str().unwrap();
        assert!(message.contains(right), "{message}");
        assert!(world.receiver.take().is_empty(), "it was used");
    };
    fails("is not there");
    world.secret("s/ntfy", &format!("http://127.0.0.1:{}/topic", world.receiver.port));
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
    };
    mode(&dir.join("ntfy"), 0o644);
    fails("0600");
    mode(&dir.join("ntfy"), 0o600);
    nix::unistd::chown(&dir.join("ntfy"), Some(65534.into()), None).unwrap();
    fails("root's");
    nix::unistd::chown(&dir.join("ntfy"), Some(0.into()), None).unwrap();
    mode(&dir, 0o777);
    fails("writable by nobody else");
    mode(&dir, 0o700);
    std::fs::remove_dir_all(world.path("state")).unwrap();
    world.ended("backup", &object(1, "x")).expect(0);
    assert_eq!(world.receiver.take().len(), 1);
}

#[test]
fn a_command_that_is_not_roots_is_not_run() {
    let world = World::new("heard", "[notify.command]\nargv = [\"DIR/command\"]\nuser = \"root\"\n");
    script(&world.path("command"), &format!("#!/bin/sh\ntouch '{}'\n", world.path("was-run").display()));
    nix::unistd::chown(&world.path("command"), Some(65534.into()), None).unwrap();
    let ran = world.ended("backup", &object(1, "x")).expect(1);
    assert!(
        ran.json["data"]["told"][0]["message"].as_str().unwrap().contains("must be root's"),
        "{:#}",
        ran.json
    );
    assert!(!world.path("was-run").exists());
}

#[test]
fn a_test_message_goes_each_way_and_says_which_arrived() {
    let world = World::new(
        "heard",
        "[notify.ping]\nverify = \"DIR/ping\"\n[notify.ntfy]\nurl_file = \"DIR/none\"\n[notify.mail]\nto = [\"root\"]\nsendmail = [\"DIR/sendmail\"]\n",
    );
    let ran = world.notify(&["--test"]).expect(1);
    for line in ["mail: sent", "ping (verify): sent", "ntfy: FAILED"] {
        assert!(ran.stderr.contains(line), "{}", ran.stderr);
    }
    assert!(world.mails()[0].contains("a test") && world.receiver.take().len() == 1);
    assert!(!world.path("state/notify.json").exists(), "nothing is kept of it");
    world.profile("");
    assert!(world.notify(&["--test"]).expect(78).stderr.contains("no [notify]"));
}

#[test]
fn nextclouds_own_users_are_told_and_after_maintenance_if_it_is_on() {
    let world = World::new("heard", "");
    let root = world.path("nc");
    for dir in ["config", "data"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in std::fs::read_dir(testkit::repo().join("tests/fakes/nextcloud")).unwrap().flatten() {
        std::fs::copy(file.path(), root.join(file.file_name())).unwrap();
    }
    std::fs::write(root.join("data/.ncdata"), "# Nextcloud data directory").unwrap();
    let config = |more: &str| {
        let data = root.join("data");
        let text = format!(
            "<?php\n$CONFIG = array('instanceid' => 'ocheard', 'installed' => true, 'dbtype' => 'pgsql', 'datadirectory' => '{}', {more});\n",
            data.display()
        );
        std::fs::write(root.join("config/config.php"), text).unwrap();
        assert!(
            Command::new("chown").args(["-R", "www-data:www-data"]).arg(&root).status().unwrap().success()
        );
    };
    world.profile(
        "[nextcloud]\nroot = \"DIR/nc\"\nmethod = \"occ\"\n[notify.nextcloud]\nusers = [\"admin\", \"alice\"]\n",
    );
    config("'maintenance' => true");
    let ran = world.ended("backup", &object(4, "maintenance is still on")).expect(1);
    assert!(ran.stderr.contains("nextcloud: "), "{}", ran.stderr);
    config("");
    world.ended("verify", &object(0, "")).expect(0);
    let shown = std::fs::read_to_string(root.join("data/notifications")).unwrap();
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(
        shown.contains("[\"alice\",\"[nc-backup] heard on ") && shown.contains("maintenance is still on"),
        "{shown}"
    );
}

#[test]
fn a_message_that_is_never_taken_keeps_no_other_one_back() {
    let world = World::new("heard", "[notify.mail]\nto = [\"root\"]\nsendmail = [\"DIR/sendmail\"]\n");
    let mail = std::fs::read_to_string(world.path("sendmail")).unwrap();
    let picky = mail.replacen(
        "#!/bin/sh\n",
        "#!/bin/sh\nt=$(cat); case $t in *poison*) exit 1 ;; esac; exec <<END\n$t\nEND\n",
        1,
    );
    script(&world.path("sendmail"), &picky);
    world.ended("backup", &object(1, "poison")).expect(1);
    world.ended("verify", &object(1, "another")).expect(1);
    let mails = world.mails();
    assert!(mails.len() == 1 && mails[0].contains("another"), "{mails:?}");
    assert_eq!(world.state()["pending"].as_array().unwrap().len(), 1);
}

#[test]
fn what_apprise_says_of_a_service_it_does_not_know_shows_no_secret() {
    let world = World::new("heard", "[notify.apprise]\nconfig_file = \"DIR/apprise.yml\"\n");
    world.secret("apprise.yml", &format!("urls:\n  - nosuchservice://{SECRET}/room\n"));
    let ran = world.ended("backup", &object(1, "x")).expect(1);
    let state = std::fs::read_to_string(world.path("state/notify.json")).unwrap();
    assert!(!format!("{} {} {state}", ran.json, ran.stderr).contains(SECRET), "{:#}", ran.json);
}
