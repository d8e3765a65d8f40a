//! On a terminal stdout is for people; everywhere else it carries the object.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::terminal::on_terminal;

use crate::far::Remote;
use crate::prune::nights;
use crate::world::World;

/// 37 nights, each longer than a screen.
fn months() -> World {
    let world = World::new();
    nights(&world, 37);
    for n in 0..300 {
        world.file(&format!("new/report {n}.odt"), "x");
    }
    world.publish();
    world.profile("", "[store.retention]\nkeep_daily = 7\nkeep_weekly = 4\ntimezone = \"UTC\"");
    world
}

#[test]
fn on_a_terminal_a_table_that_fits_and_no_object() {
    let world = months();
    let dates = world.dates();
    let (newest, before) = (&dates[37], &dates[36]);
    for (action, options, said) in [
        ("list", vec![], "38 snapshots in "),
        ("list", vec!["--sizes"], "ALONE"),
        ("find", vec!["--name", "*.odt"], "300 more lines: --all"),
        ("diff", vec!["--from", before, "--to", newest], " added"),
        ("verify", vec!["--sample", "5%"], "38 snapshots, "),
        ("prune", vec!["--dry-run"], " would be removed"),
    ] {
        for (redirected, terminal) in [("", "xterm"), ("2>/dev/null", "xterm"), ("2>/dev/null", "dumb")] {
            let mut command = world.command(action, &options);
            command.env("TERM", terminal).env("NO_COLOR", "1");
            let seen = on_terminal(&command, redirected);
            assert_eq!(seen.code, i32::from(action == "verify"), "{action}: {}", seen.text);
            // A bar may have been drawn on stderr and be gone again.
            let seen = if redirected.is_empty() { seen } else { seen.fits() };
            assert!(seen.text.contains(said) || action == "find", "{action} {redirected}: {}", seen.text);
        }
    }
    // The newest are seen, and all of them if wanted.
    let seen = on_terminal(&world.command("list", &[]), "2>/dev/null").fits();
    assert!(seen.text.contains(newest) && !seen.text.contains(&dates[0]), "{}", seen.text);
    assert!(seen.text.contains("dates before these: --all"), "{}", seen.text);
    let all = on_terminal(&world.command("list", &["--all"]), "2>/dev/null");
    assert!(dates.iter().all(|date| all.text.contains(date)), "{}", all.text);
    // What fails says so there, too.
    let failed = on_terminal(&world.command("list", &["--max-age", "0s"]), "2>/dev/null").fits();
    assert_eq!(failed.code, 1);
    assert!(failed.text.contains("link-sync list: failed (exit code 1)"), "{}", failed.text);
}

#[test]
fn the_object_is_the_same_in_a_pipe_and_by_json_and_nobody_who_reads_fails_nothing() {
    let world = World::new();
    world.file("a", "x");
    world.publish();
    let keys = |json: &Value| -> BTreeSet<String> {
        let top = json.as_object().unwrap().keys().cloned();
        top.chain(json["data"].as_object().unwrap().keys().map(|key| format!("data.{key}"))).collect()
    };
    let piped = world.act("list", &[]).expect(0).json;
    for redirected in ["2>/dev/null", "</dev/null 2>/dev/null"] {
        let seen = on_terminal(&world.command("list", &["--json"]), redirected);
        assert_eq!((seen.code, seen.lines().len()), (0, 1), "{}", seen.text);
        let json: Value = serde_json::from_str(seen.lines()[0]).unwrap();
        testkit::check_status(&json);
        assert_eq!(keys(&json), keys(&piped));
    }
    // The background process of stage is started with the words of the command line.
    for words in [&["--json", "stage"][..], &["stage", "--json"]] {
        let mut stage = Command::new(testkit::bin("link-sync"));
        stage.args(words).arg("--config").arg(&world.config);
        let seen = on_terminal(&stage, "2>/dev/null");
        assert_eq!(seen.code, 0, "{}", seen.text);
        assert!(seen.text.contains("\"action\":\"stage\""), "{}", seen.text);
        world.act("abort", &[]).expect(0);
    }
    for redirected in [">&-", ">/dev/full", ">/dev/null"] {
        let seen = on_terminal(&world.command("list", &[]), redirected);
        assert_eq!(seen.code, 0, "{redirected}: {}", seen.text);
    }
    let closed = world.command("list", &[]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(closed.success());
}

#[test]
fn a_name_in_a_table_is_no_command_to_the_terminal() {
    let world = World::new();
    world.file("bob/plain", "x");
    let first = world.publish();
    let name = std::ffi::OsStr::from_bytes(b"bob/a\x1b]0;owned\x07\nall is well\xff\xe2\x80\xae'");
    std::fs::write(world.source.join(name), "x").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    world.publish();
    let first = first.file_name().unwrap().to_str().unwrap().to_owned();
    for (action, options) in [("find", vec!["--name", "a*"]), ("diff", vec!["--from", &first])] {
        let seen = on_terminal(&world.command(action, &options), "2>/dev/null").fits();
        let shown = r"$'bob/a\033]0;owned\007\012all is well\377\342\200\256\'' --source docs";
        assert!(seen.text.contains(shown), "{action}: {:?}", seen.text);
    }
}

#[test]
fn on_a_terminal_what_others_wrote_is_no_command() {
    let world = World::new();
    nights(&world, 3);
    // Whoever may write to the store may say that it needs a date.
    let pins = world.store.join(".pins");
    std::fs::create_dir(&pins).unwrap();
    let pin = serde_json::json!({"dates": [world.dates()[0]]});
    std::fs::write(pins.join("a\x1b[2J\u{202e}"), pin.to_string()).unwrap();
    let seen = on_terminal(&world.command("prune", &["--dry-run", "--keep-last", "1"]), "2>/dev/null").fits();
    assert!(seen.text.contains("a\\u{1b}[2J\\u{202e}"), "{:?}", seen.text);
}

#[test]
fn what_find_shows_is_pasted_into_restore_whatever_the_name() {
    let world = World::new();
    let names: [&[u8]; 6] = [
        b"plain.odt",
        b"it's $(me).odt",
        b"-rf.odt",
        b"\xff\n\x1b[2J\\.odt",
        b"~.odt",
        "ü 日本 *.odt".as_bytes(),
    ];
    for name in names {
        std::fs::write(world.source.join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    world.publish();
    let found = on_terminal(&world.command("find", &["--name", "*.odt"]), "2>/dev/null").fits();
    let pasted: Vec<&str> = found
        .lines()
        .into_iter()
        .filter(|l| l.ends_with("--source docs") && !l.starts_with("back: "))
        .collect();
    assert_eq!(pasted.len(), names.len(), "{}", found.text);
    for (n, words) in pasted.into_iter().enumerate() {
        let to = world.dir.join(format!("back{n}"));
        let tool = testkit::bin("link-sync");
        let line = format!(
            "{} restore --config {} --to {} --path {words}",
            tool.display(),
            world.config.display(),
            to.display()
        );
        let ran = testkit::run(Command::new("bash").args(["-c", &line])).expect(0);
        assert_eq!(ran.json["data"]["items"][0]["paths"], 1, "{line}");
        let back: Vec<_> =
            std::fs::read_dir(to.join("docs")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.contains(&back[0].as_bytes()), "{back:?}");
    }
}

#[test]
fn a_verification_through_ssh_says_that_it_reads_and_leaves_no_bar() {
    let remote = Remote::new();
    remote.world.file("large", &"x".repeat(40 << 20));
    remote.world.snapshot(&[]).expect(0);
    let seen = on_terminal(&remote.world.command("verify", &[]), "");
    assert!(seen.text.contains("reading"), "{:?}", seen.text);
    let last = seen.text.rfind("looking at names").map_or(0, |at| at);
    assert!(last < seen.text.rfind("reading").unwrap(), "{:?}", seen.text);
    // What is said last stands alone on its lines.
    let said = seen.text.rfind("all as published").expect("how it ended");
    let after = &seen.text[said..];
    assert!(!after.contains("reading") && !after.contains("left"), "{after:?}");
}
