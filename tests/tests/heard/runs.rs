//! Runs of every kind, however they end: noted, told, and silent where nobody reads along and all is well.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::run;

use crate::world::{World, object};

const MAIL: &str = "[notify.mail]\nto = [\"root\"]\nsendmail = [\"DIR/sendmail\"]\n";
const ID: &str = "0123456789abcdef0123456789abcdef";

/// As systemd starts it after a unit.
fn unit(world: &World, kind: &str, result: &str, code: &str, status: &str) -> Command {
    let mut command = Command::new(testkit::scripts().join("notify"));
    command
        .arg(format!("{kind}:heard"))
        .arg("--unit")
        .args(["--bin".as_ref(), world.path("bin").as_os_str()]);
    command.args(["--config".as_ref(), world.path("heard.toml").as_os_str()]);
    command
        .env("MONITOR_INVOCATION_ID", ID)
        .env("MONITOR_SERVICE_RESULT", result)
        .env("MONITOR_EXIT_CODE", code);
    command.env("MONITOR_EXIT_STATUS", status).env("MONITOR_UNIT", "nc-backup-verify@heard.service");
    command
}

#[test]
fn each_run_is_a_line_of_the_history_which_has_an_end() {
    let world = World::new("heard", "");
    for code in [0, 3, 69] {
        world.ended("backup", &object(code, "x")).expect(0);
    }
    let history = world.history();
    assert_eq!(history.len(), 3);
    assert_eq!((&history[2]["exit_code"], &history[2]["kind"]), (&69.into(), &"backup".into()));
    assert!(history[0]["ended_at"].as_str().unwrap().ends_with('Z'));
    let file = world.path("state/history.jsonl");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // The power failed in the middle of a line: that one is lost, and no other.
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{whole}{{\"schema\":1,\"to")).unwrap();
    world.ended("push", &object(0, "")).expect(0);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        text.lines().filter(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()).count(),
        4,
        "{text}"
    );
    // An object of megabytes is kept without its steps; and after four megabytes it begins anew.
    let mut large = object(1, "large");
    large["data"]["steps"] = vec!["x".repeat(1000); 1000].into();
    world.ended("backup", &large).expect(0);
    assert!(std::fs::metadata(&file).unwrap().len() < 100_000);
    std::fs::write(&file, "{}\n".repeat(1_500_000)).unwrap();
    world.ended("backup", &object(0, "")).expect(0);
    assert_eq!(world.history().len(), 1);
    // What was set aside is as long, without the steps: so it knows of years, and has an end, too.
    let before = world.path("state/history.1.jsonl");
    std::fs::remove_file(&before).unwrap();
    for round in 0..3 {
        let mut night = object(0, "");
        night["data"]["steps"] = vec!["x".repeat(1000); 14].into();
        night["round"] = round.into();
        std::fs::write(&file, format!("{night}\ntorn{{\n").repeat(300)).unwrap();
        world.ended("backup", &object(0, "")).expect(0);
        assert_eq!(world.history().len(), 1);
        let text = std::fs::read_to_string(&before).unwrap();
        assert_eq!(text.lines().count(), 300 * (round + 1), "{}", text.len());
        assert!(text.contains(r#""maintenance_ms":900"#) && !text.contains("steps"), "{}", &text[..900]);
        assert_eq!(std::fs::metadata(&before).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let many = std::fs::read_to_string(&before).unwrap().repeat(10);
    std::fs::write(&before, many).unwrap();
    std::fs::write(&file, format!("{{\"newest\":\"{}\"}}\n", "x".repeat(1000)).repeat(4300)).unwrap();
    world.ended("backup", &object(0, "")).expect(0);
    assert!(std::fs::read_to_string(&before).unwrap().ends_with("x\"}\n"));
    assert!(std::fs::metadata(&before).unwrap().len() <= 4_194_304);
    assert!(!world.path("state/history.1.jsonl.new").exists());
}

#[test]
fn a_unit_that_was_killed_is_told_and_one_that_told_itself_is_not_told_twice() {
    let world = World::new("heard", MAIL);
    run(&mut unit(&world, "verify", "signal", "killed", "KILL")).expect(0);
    let mail = world.mails().concat();
    assert!(
        mail.contains("verification FAILED") && mail.contains("signal") && mail.contains("KILL"),
        "{mail}"
    );
    assert_eq!(world.history()[0]["exit_code"], 137);
    // The same again is no news: the unit has been heard.
    run(&mut unit(&world, "verify", "signal", "killed", "KILL")).expect(0);
    assert_eq!(world.history().len(), 1);

    // The run notes itself in its unit, without telling; the unit's end tells.
    let note = |code, told: &str| {
        let mut command = world.command(&["--ended", "backup", "--only-note"]);
        command.env("INVOCATION_ID", ID).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        serde_json::to_writer(child.stdin.take().unwrap(), &object(code, told)).unwrap();
        assert!(child.wait().unwrap().success());
    };
    note(69, "s2 is away");
    assert!(world.mails().is_empty());
    run(&mut unit(&world, "backup", "exit-code", "exited", "69")).expect(0);
    let mail = world.mails().concat();
    assert!(mail.contains("s2 is away"), "{mail}");
    assert_eq!(world.history().len(), 2);
    // Success with something left out is one.
    run(unit(&world, "prune", "success", "exited", "3").env("MONITOR_INVOCATION_ID", "ab")).expect(0);
    assert!(world.mails().is_empty());
    assert_eq!(world.history()[2]["exit_code"], 3);
    // A systemd that tells nothing: the name of the unit does.
    let mut silent = Command::new(testkit::scripts().join("notify"));
    silent.args(["prune:heard:ok", "--unit", "--bin"]).arg(world.path("bin"));
    run(silent.arg("--config").arg(world.path("heard.toml"))).expect(0);
    assert!(world.mails().is_empty());
    assert_eq!(world.history()[3]["exit_code"], 0);
    for odd in ["nothing:heard", "backup:../x", "backup", "backup:Heard"] {
        let mut command = Command::new(testkit::scripts().join("notify"));
        run(command.args([odd, "--unit", "--bin"]).arg(world.path("bin"))).expect(2);
    }
}

#[test]
fn a_run_under_cron_is_silent_if_it_is_well_and_says_all_if_not() {
    let world = World::new("heard", MAIL);
    let runs = |options: &[&str], script: &str| {
        let mut command = world.command(&["--run", "verify"]);
        command.args(options).args(["--", "sh", "-c", script]).output().unwrap()
    };
    let told = object(0, "").to_string();
    let well = runs(&[], &format!("echo loud >&2; echo '{told}'"));
    assert_eq!((well.status.code(), well.stderr.len()), (Some(0), 0), "{well:?}");
    assert_eq!(String::from_utf8_lossy(&well.stdout).trim(), told);
    let verbose = runs(&["--verbose"], &format!("echo loud >&2; echo '{told}'"));
    assert!(String::from_utf8_lossy(&verbose.stderr).contains("loud"));
    assert!(world.mails().is_empty());
    // An object that is not that of its end does not count.
    let failed = runs(&[], &format!("echo 'what was wrong' >&2; echo '{told}'; exit 7"));
    assert_eq!(failed.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("what was wrong"), "{failed:?}");
    let mail = world.mails().concat();
    assert!(mail.contains("verification FAILED") && mail.contains("  what was wrong"), "{mail}");
    let killed = runs(&[], "kill -9 $$");
    assert_eq!(killed.status.code(), Some(137));
    assert_eq!(world.history().last().unwrap()["exit_code"], 137);
}

#[test]
fn whatever_is_killed_or_comes_at_once_it_is_told() {
    let world = World::new("heard", "[notify]\ntimeout = \"9s\"\n[notify.ntfy]\nurl_file = \"DIR/ntfy\"\n");
    let port = world.receiver.port;
    world.secret("ntfy", &format!("http://127.0.0.1:{port}/hang/"));
    let begin = |code| {
        let mut command = world.command(&["--ended", "backup"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        serde_json::to_writer(child.stdin.take().unwrap(), &object(code, "it broke")).unwrap();
        child
    };
    let mut child = begin(1);
    while world.receiver.take().is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    world.secret("ntfy", &format!("http://127.0.0.1:{port}/topic"));
    // Three at once.
    let children = [begin(1), begin(1), begin(1)];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let arrived = world.receiver.take();
    assert_eq!(arrived.len(), 1, "{arrived:#?}");
    assert!(arrived[0].body.contains("it broke"));
    assert_eq!(world.history().len(), 4);
    assert_eq!(world.state()["kinds"]["backup"]["failures"], 4);
}

#[test]
fn a_profile_that_cannot_be_read_is_told_to_those_it_named_before() {
    let world = World::new("heard", MAIL);
    world.ended("backup", &object(0, "")).expect(0);
    world.profile("[notify.mial]\n");
    // The state is where it says, also in a profile that is wrong.
    world.ended("backup", &object(78, "unknown field")).expect(0);
    assert!(world.mails().concat().contains("backup FAILED: unknown field"));
    // If others can write it, it says nothing; and then only the usual place is known.
    let file = world.path("heard.toml");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    world.ended("backup", &object(77, "anybody's")).expect(77);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let usual = std::path::Path::new("/var/lib/nc-backup/heard-usual");
    std::fs::create_dir_all("/var/lib/nc-backup").unwrap();
    std::fs::remove_dir_all(usual).ok();
    let settled = || {
        let text = format!(
            "[notify.mail]\nto = [\"root\"]\nsendmail = [\"{}\"]\n",
            world.path("sendmail").display()
        );
        std::fs::write(world.path("heard-usual.toml"), text).unwrap();
        let mut command = Command::new(testkit::scripts().join("notify"));
        command
            .args(["heard-usual", "--bin"])
            .arg(world.path("bin"))
            .arg("--config")
            .arg(world.path("heard-usual.toml"));
        command
    };
    let ended = |mut command: Command, code| {
        let mut child = command
            .args(["--ended", "backup"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        serde_json::to_writer(child.stdin.take().unwrap(), &object(code, "broken profile")).unwrap();
        testkit::judge(child.wait_with_output().unwrap())
    };
    ended(settled(), 0).expect(0);
    let broken = settled();
    std::fs::write(world.path("heard-usual.toml"), "[notify.mial]\n").unwrap();
    let ran = ended(broken, 78);
    std::fs::remove_dir_all(usual).unwrap();
    ran.expect(0);
    assert!(world.mails().concat().contains("broken profile"));
}

#[test]
fn warnings_are_told_only_if_that_is_wanted_and_once() {
    let world = World::new("heard", MAIL);
    let mut warned = object(3, "");
    warned["warnings"] = serde_json::json!([{"kind": "passed-over", "message": "a file was passed over"}]);
    world.ended("backup", &warned).expect(0);
    assert!(world.mails().is_empty());
    world.profile(&format!("[notify]\nwarnings = true\nrecovery = false\n{MAIL}"));
    for _ in 0..2 {
        world.ended("backup", &warned).expect(0);
    }
    let mails = world.mails();
    assert!(mails.len() == 1 && mails[0].contains("a file was passed over"), "{mails:?}");
    warned["warnings"][0]["kind"] = "another".into();
    world.ended("backup", &warned).expect(0);
    assert_eq!(world.mails().len(), 1);
    world.ended("backup", &object(1, "x")).expect(0);
    assert_eq!(world.mails().len(), 1);
    world.ended("backup", &object(0, "")).expect(0);
    assert!(world.mails().is_empty(), "recovery = false");
    // Stopped by whoever sat before it.
    world.ended("backup", &object(130, "")).expect(0);
    assert!(world.mails().is_empty());
}

#[test]
fn an_answer_or_a_state_of_another_form_keeps_nobody_from_being_told() {
    let world = World::new("heard", MAIL);
    let mut odd = object(1, "x");
    odd["error"] = "boom".into();
    odd["duration_ms"] = "long".into();
    world.ended("verify", &odd).expect(0);
    assert!(world.mails().concat().contains("verification FAILED: it ended with exit code 1"));
    std::fs::write(world.path("state/notify.json"), "{\"schema\":1,\"kinds\":[],\"pending\":7}").unwrap();
    world.ended("backup", &object(69, "s2 is away")).expect(0);
    assert!(world.mails().concat().contains("backup FAILED: s2 is away"));
}

#[test]
fn who_asks_or_sends_for_long_keeps_no_run_from_being_noted() {
    let world = World::new("heard", MAIL);
    world.ended("backup", &object(0, "")).expect(0);
    // S2 does not answer the one that looks at ages.
    let tool = std::fs::read_to_string(world.path("bin/link-sync")).unwrap();
    let slow = tool.replacen("#!/bin/sh\n", "#!/bin/sh\n[ \"$1\" != list ] || exec sleep 600\n", 1);
    testkit::script(&world.path("bin/link-sync"), &slow);
    let mut watch = world.command(&["--watch"]);
    let mut watch = watch.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let begun = std::time::Instant::now();
    world.ended("backup", &object(69, "s2 is away")).expect(0);
    assert!(begun.elapsed() < Duration::from_secs(50), "it waited for the one that asks");
    assert!(world.mails().concat().contains("s2 is away"));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(watch.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    watch.wait().unwrap();
}

#[test]
fn what_ends_maintenance_at_boot_is_told_and_never_gives_up() {
    let text = std::fs::read_to_string(testkit::scripts().join("systemd/nc-backup-off@.service")).unwrap();
    for line in ["OnSuccess=nc-backup-notify@off:%i:ok.service", "OnFailure=nc-backup-notify@off:%i.service"]
    {
        assert!(text.lines().any(|l| l == line), "{line}");
    }
    // It begins anew for ever: an end of maintenance is not given up.
    assert!(text.contains("Restart=on-failure") && !text.contains("StartLimit"));
    let world = World::new("heard", MAIL);
    run(&mut unit(&world, "off", "exit-code", "exited", "1")).expect(0);
    assert!(world.mails().concat().contains("ending maintenance at boot FAILED"));
    run(unit(&world, "off", "success", "exited", "0").env("MONITOR_INVOCATION_ID", "ab")).expect(0);
    assert!(world.mails().concat().contains("ending maintenance at boot is well again"));
}
