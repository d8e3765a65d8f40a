//! Nothing waits for ever: for a server that stopped, for a background process that stopped, or for a run that is gone.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::hold::{hold, holder, kill, lab, nothing_is_left, switch};
use crate::lab::{Lab, finish, wait_for};

/// The server's processes of our sessions.
fn backends(lab: &Lab) -> Vec<i32> {
    let db = testkit::postgres::literal(&lab.database);
    let sql =
        format!("SELECT pid FROM pg_stat_activity WHERE datname = {db} AND application_name = 'pg-snap';");
    lab.cluster.psql("postgres", &sql).lines().map(|l| l.parse().unwrap()).collect()
}

#[test]
fn a_stopped_server_process_ends_the_step_and_a_signal_ends_it_at_once() {
    let lab = lab("");
    lab.run("drain", ["--look"]).expect(0);
    switch(&lab);
    let stopped = backends(&lab);
    assert_eq!(stopped.len(), 2);
    for pid in &stopped {
        kill(*pid, Signal::SIGSTOP);
    }
    // With a signal, at once.
    let drain = lab.start(&mut lab.command("drain"));
    std::thread::sleep(Duration::from_millis(500));
    let clock = Instant::now();
    kill(i32::try_from(drain.id()).unwrap(), Signal::SIGTERM);
    finish(drain).expect(143);
    assert!(clock.elapsed() < Duration::from_secs(3), "{:?}", clock.elapsed());
    // And without one, soon.
    let clock = Instant::now();
    lab.run("drain", []).expect(1);
    lab.run("release", []).expect(0);
    assert!(clock.elapsed() < Duration::from_secs(40), "{:?}", clock.elapsed());
    wait_for("the background process ends", || holder(&lab).is_none());
    for pid in &stopped {
        kill(*pid, Signal::SIGCONT);
    }
    nothing_is_left(&lab);
    lab.run("drain", ["--look"]).expect(0);
    lab.run("release", []).expect(0);
}

#[test]
fn release_ends_a_background_process_that_does_not_answer() {
    let lab = lab("");
    hold(&lab);
    kill(holder(&lab).unwrap(), Signal::SIGSTOP);
    let clock = Instant::now();
    lab.run("release", []).expect(0);
    assert!(clock.elapsed() < Duration::from_secs(30), "{:?}", clock.elapsed());
    nothing_is_left(&lab);
    hold(&lab);
    lab.run("release", []).expect(0);
}

#[test]
fn what_is_held_goes_with_the_run_that_it_is_held_for() {
    let lab = lab("");
    // A run: a process that looks, holds, and goes on to live.
    let script = format!(
        "set -e; say() {{ '{0}' \"$@\" --config '{1}' >/dev/null; }}; say drain --look; touch '{2}'; \
         until [ -e '{3}' ]; do sleep 0.05; done; say drain; say hold; say confirm; touch '{4}'; sleep 60",
        testkit::bin("pg-snap").display(),
        lab.path("home.toml").display(),
        lab.path("looked").display(),
        lab.path("state/maintenance.json").display(),
        lab.path("held").display(),
    );
    let mut run = std::process::Command::new("sh");
    let mut run = lab.start(run.args(["-c", &script]));
    wait_for("it has looked", || lab.path("looked").exists());
    switch(&lab);
    wait_for("it holds", || lab.path("held").exists());
    assert_eq!(lab.run("status", []).expect(0).json["data"]["held"]["confirmed"], true);
    run.kill().unwrap();
    run.wait().unwrap();
    nothing_is_left(&lab);
}
