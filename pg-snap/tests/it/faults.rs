//! A dump that is killed, starved or raced leaves nothing that looks like a dump.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, finish, wait_for};

fn send(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_signal_ends_the_dump_and_leaves_nothing() {
    let lab = Lab::filled();
    let blocker = lab.block();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let child = lab.start(&mut lab.command("dump"));
        lab.wait_until_blocked();
        send(&child, signal);
        let ran = finish(child).expect(code);
        assert_eq!(ran.json["status"], "interrupted");
        assert_eq!(ran.json["changed"], false);
        assert!(ran.stderr.contains("unfinished dump"), "{}", ran.stderr);
        assert_eq!(lab.traces(), [""; 0]);
        wait_for("pg_dump's session is gone", || lab.sessions("application_name = 'pg-snap'") == 0);
    }
    lab.unblock(blocker);
}

#[test]
fn a_killed_dump_is_listed_as_incomplete_and_cleared_by_the_next() {
    let lab = Lab::filled();
    let blocker = lab.block();
    let child = lab.start(&mut lab.command("dump"));
    lab.wait_until_blocked();
    send(&child, Signal::SIGKILL);
    child.wait_with_output().unwrap();
    let left = lab.traces();
    assert!(left.len() == 1 && left[0].ends_with(".partial"), "{left:?}");
    let list = lab.run("list", []).expect(0);
    assert_eq!(list.json["data"]["list"][0]["state"], "incomplete");
    assert_eq!(list.json["data"]["newest"], serde_json::Value::Null);
    lab.restore("copy", []).expect(1);
    // The server notices that pg_dump is gone when the wait for the lock is over.
    lab.unblock(blocker);
    wait_for("pg_dump died with it", || lab.sessions("application_name = 'pg-snap'") == 0);
    let ran = lab.run("dump", []).expect(0);
    assert_eq!(ran.json["data"]["cleared"], serde_json::json!(left));
    assert_eq!(lab.traces(), [ran.json["data"]["date"].as_str().unwrap()]);
}

#[test]
fn kill_at_any_moment_never_makes_half_a_dump() {
    let lab = Lab::filled();
    let mut whole = 0;
    for step in 0..14 {
        let child = lab.start(&mut lab.command("dump"));
        std::thread::sleep(Duration::from_millis(step * 40));
        send(&child, Signal::SIGKILL);
        child.wait_with_output().unwrap();
        let list = lab.run("list", []).expect(0);
        assert_eq!(
            list.json["warnings"],
            serde_json::json!([]),
            "a damaged dump after {step}: {:#}",
            list.json
        );
        let rows = list.json["data"]["list"].as_array().unwrap();
        whole = rows.iter().filter(|r| r["state"] == "complete").count();
    }
    wait_for("orphans are gone", || lab.run("dump", []).code == 0);
    let left = lab.traces();
    assert!(left.iter().all(|n| !n.contains('.')), "{left:?}");
    assert!(left.len() == whole + 1, "{left:?}");
}

#[test]
fn an_orphan_that_still_writes_keeps_the_next_one_out() {
    let lab = Lab::filled();
    // A pg_dump of which a part survives the death of its parent, as a worker in the middle of a table does.
    let (flag, begun) = (lab.path("go-on"), lab.path("begun"));
    let wait = format!(
        "(touch '{}'; n=0; while [ ! -e '{}' ] && [ $n -lt 400 ]; do sleep 0.05; n=$((n + 1)); done) &\nwait",
        begun.display(),
        flag.display()
    );
    lab.odd_pg_dump("", &wait);
    let child = lab.start(&mut lab.command("dump"));
    wait_for("files are written", || begun.exists());
    let second = lab.run("dump", []).expect(75);
    assert_eq!(second.json["error"]["kind"], "busy");
    send(&child, Signal::SIGKILL);
    child.wait_with_output().unwrap();
    lab.run("dump", []).expect(75);
    lab.run("prune", []).expect(75);
    assert_eq!(lab.traces().len(), 1, "the unfinished one is not touched");
    std::fs::write(flag, "").unwrap();
    wait_for("the orphan has ended", || lab.run("prune", []).code == 0);
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn a_pg_dump_that_is_killed_or_fails_leaves_nothing() {
    let lab = Lab::filled();
    lab.odd_pg_dump("", "kill -9 $$");
    let ran = lab.run("dump", []).expect(1);
    assert_eq!(ran.json["error"]["command"]["signal"], 9);
    lab.odd_pg_dump("", "echo oops >&2; exit 3");
    let ran = lab.run("dump", []).expect(1);
    assert_eq!(ran.json["error"]["command"]["stderr_tail"], "oops");
    // Says yes, but what it wrote is not a dump, or is nowhere (a container without the folder).
    lab.odd_pg_dump("", "for f; do case $f in *.partial/files) echo x >\"$f/toc.dat\" ;; esac; done");
    let ran = lab.run("dump", []).expect(1);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("cannot read the dump"),
        "{:#}",
        ran.json
    );
    lab.odd_pg_dump("exit 0", "");
    let ran = lab.run("dump", []).expect(78);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("container"));
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn a_server_that_goes_away_in_the_middle_leaves_nothing() {
    let lab = Lab::filled();
    let blocker = lab.block();
    let child = lab.start(&mut lab.command("dump"));
    lab.wait_until_blocked();
    lab.terminate("application_name = 'pg-snap'");
    finish(child).expect(1);
    lab.unblock(blocker);
    assert_eq!(lab.traces(), [""; 0]);
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).ok();
    }
}

#[test]
fn a_full_disk_leaves_the_older_dump_and_says_what_is_full() {
    let lab = Lab::filled();
    std::fs::create_dir(&lab.dumps).unwrap();
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1400k,mode=0700", "tmpfs"])
        .arg(&lab.dumps)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "a tmpfs can be mounted");
    let _mounted = Mounted(lab.dumps.clone());
    let first = lab.dump();
    lab.sql("INSERT INTO oc_blob (data) SELECT decode(md5(n::text) || md5((n*7)::text), 'hex') FROM generate_series(1, 60000) n;");
    let ran = lab.run("dump", []).expect(1);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("full"), "{:#}", ran.json);
    assert_eq!(lab.traces(), [first.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(lab.run("list", []).expect(0).json["data"]["list"][0]["state"], "complete");
}

#[test]
fn a_dump_that_gets_nowhere_is_ended_and_the_next_one_finds_the_way_free() {
    let lab = Lab::filled();
    // Its server's process waits, as one does that was stopped.
    let blocker = lab.block();
    let clock = std::time::Instant::now();
    lab.run("dump", ["--stall", "2s"]).expect(69);
    assert!(clock.elapsed().as_secs() < 30, "{:?}", clock.elapsed());
    assert_eq!(lab.traces(), Vec::<String>::new());
    lab.unblock(blocker);
    lab.dump();
    // And one that hears nothing, not even TERM.
    let deaf = lab.path("deaf");
    testkit::script(
        &deaf,
        "#!/bin/sh\ncase $1 in --version) exec pg_dump --version ;; esac\ntrap '' TERM\nwhile :; do sleep 1; done\n",
    );
    lab.run("dump", ["--stall", "2s", "--pg-dump", deaf.to_str().unwrap()]).expect(69);
    lab.dump();
    let slow = lab.path("slow");
    testkit::script(
        &slow,
        "#!/bin/sh\ncase $* in *--use-list*) exec sleep 600 ;; esac\nexec pg_restore \"$@\"\n",
    );
    lab.restore(&lab.database, ["--yes", "--stall", "2s", "--pg-restore", slow.to_str().unwrap()]).expect(69);
    assert_eq!(lab.temporary(&lab.database), "");
}
