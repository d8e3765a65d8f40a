//! `scripts/push-offsite` and `scripts/view-offsite` with an `offsite-push` that does what it is told.
//! What they make of its answers, of none, and of signals. (With the real one: tests/offsite.)

use std::path::Path;
use std::process::{Command, Stdio};

use testkit::{Ran, judge, run, scratch, script, scripts};

use crate::world::World;

fn object(action: &str, code: i32, changed: bool, data: &str, left: &str) -> String {
    let (status, error) = match code {
        0 => ("ok", "null"),
        4 => ("dirty", r#"{"kind":"failed","message":"no","causes":[],"hint":null,"command":null}"#),
        _ => ("failed", r#"{"kind":"failed","message":"no","causes":[],"hint":null,"command":null}"#),
    };
    format!(
        r#"{{"schema":1,"tool":"offsite-push","version":"0.1.0","action":"{action}","profile":"far","status":"{status}","exit_code":{code},"changed":{changed},"started_at":"2026-11-22T23:12:22Z","duration_ms":1,"data":{{{data}}},"warnings":[],"error":{error},"left_behind":[{left}]}}"#
    )
}

/// For each action, what the tool does; it notes what it was asked in `asked`.
fn tool(dir: &Path, actions: &[(&str, String)]) {
    let mut text = format!("#!/bin/sh\necho \"$*\" >>'{}/asked'\ncase $1 in\n", dir.display());
    for (action, does) in actions {
        text += &format!("{action}) {does} ;;\n");
    }
    script(&dir.join("offsite-push"), &(text + "esac\n"));
    drop(std::fs::remove_file(dir.join("asked")));
}

fn says(object: &str, code: i32) -> String {
    format!("echo '{object}'; exit {code}")
}

fn call(dir: &Path, name: &str, words: &[&str]) -> Ran {
    let mut command = Command::new(scripts().join(name));
    run(command.arg("far").arg("--bin").arg(dir).args(words))
}

fn asked(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("asked")).unwrap()
}

const LEFT: &str = r#"{"what":"a mount","clear":"offsite-push unview far"}"#;

#[test]
fn a_push_is_believed_by_its_object_and_one_that_was_killed_is_cleared() {
    let dir = scratch();
    let clear = ("unview", says(&object("unview", 0, false, "", ""), 0));
    tool(dir.path(), &[("push", says(&object("push", 0, true, r#""date":"d""#, ""), 0)), clear.clone()]);
    let ran = call(dir.path(), "push-offsite", &[]).expect(0);
    assert_eq!((&ran.json["data"]["date"], &ran.json["changed"]), (&"d".into(), &true.into()));
    assert_eq!(asked(dir.path()).lines().count(), 1);
    // Killed, or an exit code with nothing said: not a success, and what it may have left is cleared.
    for (does, code) in [("kill -9 $$", 137), ("exit 0", 1), ("exit 4", 1), ("exit 2", 1)] {
        tool(dir.path(), &[("push", does.into()), clear.clone()]);
        let ran = call(dir.path(), "push-offsite", &[]).expect(code);
        assert_eq!(ran.json["data"]["failed_step"], "push", "{does}");
        assert!(asked(dir.path()).contains("unview far --if-killed"), "{does}");
    }
    // What it has left behind outranks everything.
    tool(dir.path(), &[("push", says(&object("push", 4, true, "", LEFT), 4)), clear]);
    let ran = call(dir.path(), "push-offsite", &[]).expect(4);
    assert_eq!(ran.json["left_behind"][0]["what"], "a mount");
    // A tool that is not there.
    std::fs::remove_file(dir.path().join("offsite-push")).unwrap();
    assert_eq!(call(dir.path(), "push-offsite", &[]).expect(69).json["status"], "unavailable");
}

#[test]
fn a_view_is_closed_whatever_the_command_does() {
    let dir = scratch();
    let there = format!(r#""date":"d","path":"{}","dates":["d"]"#, dir.path().display());
    let view = |changed: bool| ("view", says(&object("view", 0, changed, &there, ""), 0));
    let closes = ("unview", says(&object("unview", 0, true, "", ""), 0));
    for (command, code, status) in [
        ("pwd >seen", 0, "ok"),
        ("exit 7", 7, "failed"),
        ("exit 4", 4, "failed"),
        ("kill -9 $$", 137, "interrupted"),
    ] {
        tool(dir.path(), &[view(true), closes.clone()]);
        let ran = call(dir.path(), "view-offsite", &["--", "sh", "-c", command]).expect(code);
        assert_eq!(ran.json["status"], status, "{command}: {:#}", ran.json);
        assert_eq!(ran.json["data"]["date"], "d");
        assert!(asked(dir.path()).ends_with("unview far\n"), "{command}");
    }
    assert!(dir.path().join("seen").exists(), "the command did not run there");
    // It was open already: it is another's, and stays.
    tool(dir.path(), &[view(false), closes.clone()]);
    call(dir.path(), "view-offsite", &["--", "true"]).expect(0);
    assert!(!asked(dir.path()).contains("unview"));
    // It does not open: only what a kill has left is cleared.
    tool(dir.path(), &[("view", says(&object("view", 1, false, "", ""), 1)), closes.clone()]);
    call(dir.path(), "view-offsite", &["--", "true"]).expect(1);
    assert!(asked(dir.path()).ends_with("unview far --if-killed\n"));
    // A signal that comes while it opens: it is closed, and the command is not run.
    let opens = format!("trap '' TERM; kill -TERM $PPID; {}", view(true).1);
    tool(dir.path(), &[("view", opens), closes.clone()]);
    let ran = call(dir.path(), "view-offsite", &["--", "touch", "seen-too"]).expect(143);
    assert!(!dir.path().join("seen-too").exists());
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("at the step view"), "{:#}", ran.json);
    assert!(asked(dir.path()).ends_with("unview far\n"));
    // It does not close.
    tool(dir.path(), &[view(true), ("unview", says(&object("unview", 4, false, "", LEFT), 4))]);
    assert_eq!(call(dir.path(), "view-offsite", &["--", "true"]).expect(4).json["status"], "dirty");
    // A signal reaches the command, and then it is closed.
    tool(dir.path(), &[view(true), closes]);
    let mut command = Command::new(scripts().join("view-offsite"));
    command.args(["far", "--bin"]).arg(dir.path()).args(["--", "sh", "-c", "touch begun; exec sleep 60"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    World::until("the command runs", || dir.path().join("begun").exists());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    judge(child.wait_with_output().unwrap()).expect(143);
    assert!(asked(dir.path()).ends_with("unview far\n"));
}
