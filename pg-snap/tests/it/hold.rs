//! Drained, held, dumped as it was, given back; and what happens when any of that goes wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::Ran;
use testkit::postgres::{Cluster, identifier};

use crate::lab::{Lab, PASSWORD, finish, wait_for};

const RUN: &str = "0123456789abcdef0123456789abcdef";

/// An instance beside the database; `more` are further lines of `[database]`.
pub(crate) fn lab(more: &str) -> Lab {
    let lab = Lab::filled();
    settings(&lab, more);
    // The sessions that filled it are gone: the role may not see an administrator's.
    wait_for("the database is quiet", || lab.sessions("true") == 0);
    lab
}

pub(crate) fn settings(lab: &Lab, more: &str) {
    let host = format!("{}:{}", Cluster::HOST, lab.cluster.port);
    nextcloud(lab, &host, &lab.database);
    // With a root of its own, occ of other instances on this machine does not count.
    let occ = lab.path("says");
    lab.profile(&host, &format!("{more}\n[nextcloud]\nroot = {:?}\nocc = [{occ:?}]", lab.dir.path()));
}

/// What Nextcloud itself uses, as its occ tells.
pub(crate) fn nextcloud(lab: &Lab, host: &str, name: &str) {
    std::fs::create_dir_all(lab.path("config")).unwrap();
    std::fs::write(lab.path("config/config.php"), "<?php $CONFIG = array();\n").unwrap();
    let system = serde_json::json!({ "system": {
        "datadirectory": lab.path("data"), "dbtype": "pgsql", "dbhost": host, "dbname": name, "dbuser": lab.role,
        "dbpassword": PASSWORD, "version": "32.0.1.2",
    }});
    std::fs::write(lab.path("says.json"), system.to_string()).unwrap();
    let file = lab.path("says.json");
    testkit::script(
        &lab.path("says"),
        &format!("#!/bin/sh\ncase \"$*\" in *config:list*) cat '{}' ;; *) exit 1 ;; esac\n", file.display()),
    );
}

/// The switch, as nc-maint leaves it when it is proven.
pub(crate) fn switch(lab: &Lab) -> jiff::Timestamp {
    let since = jiff::Timestamp::now();
    std::fs::create_dir_all(lab.path("state")).unwrap();
    std::fs::set_permissions(lab.path("state"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let text =
        format!(r#"{{"run_id":"{RUN}","since":"{since}","method":"drop-in","deadline":null,"pid":null}}"#);
    std::fs::write(lab.path("state/maintenance.json"), text).unwrap();
    since
}

pub(crate) fn switch_back(lab: &Lab) {
    std::fs::remove_file(lab.path("state/maintenance.json")).unwrap();
}

/// Switched, drained and held.
#[track_caller]
pub(crate) fn hold(lab: &Lab) -> Value {
    lab.run("drain", ["--look"]).expect(0);
    switch(lab);
    lab.run("drain", []).expect(0);
    let ran = lab.run("hold", []).expect(0);
    lab.run("confirm", []).expect(0);
    switch_back(lab);
    ran.json["data"].clone()
}

/// A session of the role, as a request of Nextcloud has one.
pub(crate) fn session(lab: &Lab, application: &str, sql: &str) -> Child {
    let name = lab.database.replace('\\', "\\\\").replace('\'', "\\'");
    let mut psql = Command::new("psql");
    psql.env_clear().env("PATH", "/usr/bin:/bin").env("PGPASSWORD", PASSWORD).env("PGAPPNAME", application);
    psql.args([
        "-X",
        "-q",
        "-A",
        "-t",
        "-h",
        Cluster::HOST,
        "-p",
        &lab.cluster.port.to_string(),
        "-U",
        &lab.role,
    ]);
    psql.args(["-d", &format!("dbname='{name}'"), "-c", sql]);
    lab.start(&mut psql)
}

/// The same, until it is there.
pub(crate) fn open_session(lab: &Lab, application: &str, sql: &str) -> Child {
    let child = session(lab, application, sql);
    wait_for("the session is open", || lab.sessions(&format!("application_name = '{application}'")) == 1);
    child
}

#[track_caller]
pub(crate) fn end(mut child: Child) {
    child.wait().unwrap();
}

/// The background process of this lab.
pub(crate) fn holder(lab: &Lab) -> Option<i32> {
    let config = lab.path("home.toml");
    let ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.split('\0').nth(1) == Some("holder") && line.contains(config.to_str().unwrap())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).find(ours)
}

pub(crate) fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// Nothing of ours is left: no process, no session.
#[track_caller]
pub(crate) fn nothing_is_left(lab: &Lab) {
    wait_for("the background process ends", || holder(lab).is_none());
    wait_for("its sessions end", || lab.sessions("application_name = 'pg-snap'") == 0);
}

/// A dump of the held state is refused, and leaves nothing.
#[track_caller]
fn nothing_can_be_dumped(lab: &Lab) {
    let before = lab.traces();
    let ran = lab.run("dump", ["--held"]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("not held"), "{}", ran.json);
    assert_eq!(lab.traces(), before);
}

#[track_caller]
fn count(lab: &Lab, database: &str, table: &str) -> String {
    lab.cluster.psql(database, &format!("SELECT count(*) FROM {table};"))
}

/// What the dump of `ran` brings back.
#[track_caller]
fn restored(lab: &Lab, ran: &Ran) -> String {
    let copy = format!("{} copy", lab.database);
    lab.restore(&copy, ["--yes", "--from", ran.json["data"]["path"].as_str().unwrap()]).expect(0);
    copy
}

#[test]
fn what_is_held_is_dumped_whatever_is_written_meanwhile() {
    let lab = lab("");
    // Limits that would end a session that only waits.
    let role = identifier(&lab.role);
    lab.cluster.psql(
        "postgres",
        &format!(
            "ALTER ROLE {role} SET idle_in_transaction_session_timeout = '300ms';\n\
             ALTER ROLE {role} SET idle_session_timeout = '300ms';\nALTER ROLE {role} SET statement_timeout = '5s';"
        ),
    );
    let looked = lab.run("drain", ["--look"]).expect(0);
    assert_eq!(looked.json["changed"], true);
    assert_eq!(looked.json["data"]["settle_fallback"], false);
    assert_eq!(lab.run("drain", ["--look"]).expect(0).json["changed"], false, "sessions are open already");

    switch(&lab);
    let drained = lab.run("drain", []).expect(0);
    assert_eq!(drained.json["data"]["run_id"], RUN);
    assert!(drained.json["data"]["drain_ms"].as_u64().unwrap() < 5_000, "{}", drained.json);
    let held = lab.run("hold", []).expect(0);
    assert_eq!((&held.json["data"]["run_id"], &held.json["changed"]), (&RUN.into(), &true.into()));
    assert_eq!(held.json["data"]["tables"], 11, "the partitioned one, too");
    assert!(held.json["data"]["hold_ms"].is_u64());
    lab.run("dump", ["--held"]).expect(1);
    assert_eq!(lab.run("confirm", []).expect(0).json["data"]["moved"], false);
    let again = lab.run("hold", []).expect(75);
    assert!(again.json["error"]["hint"].as_str().unwrap().contains("release"), "{}", again.json);
    switch_back(&lab);

    let status = lab.run("status", []).expect(0);
    assert_eq!(status.json["data"]["held"]["snapshot"], held.json["data"]["snapshot"]);
    end(session(&lab, "web", "INSERT INTO oc_empty VALUES (1); DELETE FROM oc_share"));
    assert_eq!(
        (count(&lab, &lab.database, "oc_empty"), count(&lab, &lab.database, "oc_share")),
        ("1".into(), "0".into())
    );
    std::thread::sleep(Duration::from_secs(1));
    let dumped = lab.run("dump", ["--held"]).expect(0);
    assert_eq!(dumped.json["data"]["run_id"], RUN, "maintenance is over, the run is known");
    let released = lab.run("release", []).expect(0);
    assert_eq!(released.json["changed"], true);
    nothing_is_left(&lab);
    assert_eq!(lab.run("release", []).expect(0).json["changed"], false);
    assert_eq!(lab.run("status", []).expect(0).json["data"]["held"], Value::Null);

    let copy = restored(&lab, &dumped);
    assert_eq!((count(&lab, &copy, "oc_empty"), count(&lab, &copy, "oc_share")), ("0".into(), "100".into()));
    lab.drop_database(&copy);
}

#[test]
fn a_truncate_waits_until_the_state_is_given_back() {
    let lab = lab("");
    hold(&lab);
    let mut truncate = open_session(&lab, "repair", "TRUNCATE oc_blob");
    wait_for("it waits", || lab.sessions("application_name = 'repair' AND wait_event_type = 'Lock'") == 1);
    // Whoever comes after it waits behind it, pg_dump too: the dump fails, rather than be without these rows.
    let dumped = lab.run("dump", ["--held"]);
    assert!(truncate.try_wait().unwrap().is_none(), "it still waits");
    lab.run("release", []).expect(0);
    end(truncate);
    assert_eq!(count(&lab, &lab.database, "oc_blob"), "0");
    dumped.expect(75);
}

#[test]
fn a_request_from_before_the_switch_is_waited_for() {
    let lab = lab("");
    lab.run("drain", ["--look"]).expect(0);
    let request = open_session(&lab, "web", "SELECT pg_sleep(2)");
    switch(&lab);
    let drained = lab.run("drain", []).expect(0);
    assert_eq!(lab.sessions("application_name = 'web'"), 0, "it has ended");
    assert_eq!(drained.json["data"]["seen_sessions"], 1);
    assert!(drained.json["data"]["waited_ms"].as_u64() > drained.json["data"]["drain_ms"].as_u64());
    end(request);
    lab.run("release", []).expect(0);
}

#[test]
fn who_does_not_end_is_named_and_readers_may_stay() {
    let lab = lab("");
    let request = open_session(&lab, "notify_push", "SELECT pg_sleep(60) /* secret */");
    switch(&lab);
    let ran = lab.run("drain", ["--timeout", "1s"]).expect(75);
    let who = &ran.json["data"]["sessions"][0];
    assert_eq!(
        (&who["application_name"], &who["address"], &who["state"]),
        (&"notify_push".into(), &"127.0.0.1".into(), &"active".into())
    );
    assert!(who["pid"].is_i64() && who["age_ms"].as_u64() > Some(200), "{who}");
    assert!(!ran.json.to_string().contains("secret") && !ran.stderr.contains("secret"), "{}", ran.json);
    for reader in ["notify_push", Cluster::HOST] {
        lab.run("release", []).expect(0);
        settings(&lab, &format!("readers = [\"{reader}\"]"));
        lab.run("drain", []).expect(0);
    }
    lab.run("release", []).expect(0);
    lab.terminate("application_name = 'notify_push'");
    end(request);
}

#[test]
fn before_the_switch_workers_and_long_sessions_are_found() {
    let lab = lab("");
    std::os::unix::fs::symlink("/bin/sh", lab.path("php8.2")).unwrap();
    std::fs::write(lab.path("occ"), "read line\n").unwrap();
    let mut worker = Command::new(lab.path("php8.2"));
    worker
        .arg(lab.path("occ"))
        .args(["background-job:worker", "--secret"])
        .stdin(std::process::Stdio::piped());
    let mut worker = worker.spawn().unwrap();
    let upload = open_session(&lab, "upload", "SELECT pg_sleep(60)");
    std::thread::sleep(Duration::from_secs(5));
    let ran = lab.run("drain", ["--look", "--wait", "1s"]).expect(75);
    let data = &ran.json["data"];
    assert_eq!(data["jobs"][0]["pid"], worker.id());
    assert!(data["jobs"][0]["command"].as_str().unwrap().ends_with("occ background-job:worker"), "{data}");
    assert_eq!(data["sessions"][0]["application_name"], "upload");
    assert!(data["waited_ms"].as_u64() >= Some(1_000));
    nothing_is_left(&lab);

    // As soon as they have ended, it goes on.
    let look = lab.start(lab.command("drain").args(["--look", "--wait", "20s"]));
    wait_for("it looks", || holder(&lab).is_some());
    lab.terminate("application_name = 'upload'");
    drop(worker.stdin.take());
    worker.wait().unwrap();
    end(upload);
    finish(look).expect(0);
    lab.run("release", []).expect(0);
}

#[test]
fn a_role_that_cannot_see_the_sessions_of_others_is_refused_before_the_switch() {
    let lab = lab("");
    // Connects as somebody who may read everything, and still does not see who is there.
    let reader = format!("{} reader", lab.role);
    lab.cluster.create_role(&reader, PASSWORD);
    lab.cluster.psql("postgres", &format!("GRANT pg_read_all_data TO {};", identifier(&reader)));
    let as_reader = ["--look", "--user", &reader];
    let ran = lab.run("drain", as_reader).expect(77);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("GRANT pg_read_all_stats"), "{}", ran.json);
    nothing_is_left(&lab);
    switch(&lab);
    let request = open_session(&lab, "web", "SELECT pg_sleep(60)");
    lab.run("drain", ["--user", &reader]).expect(77);
    nothing_is_left(&lab);
    lab.cluster.psql("postgres", &format!("GRANT pg_read_all_stats TO {};", identifier(&reader)));
    let ran = lab.run("drain", ["--user", &reader, "--timeout", "500ms"]).expect(75);
    assert_eq!(ran.json["data"]["sessions"][0]["application_name"], "web");
    lab.run("release", []).expect(0);
    lab.terminate("application_name = 'web'");
    end(request);
    lab.cluster.psql("postgres", &format!("DROP ROLE {};", identifier(&reader)));
}

#[test]
fn without_a_run_nothing_is_drained_or_held() {
    let lab = lab("");
    for action in ["drain", "hold"] {
        let ran = lab.run(action, []).expect(1);
        assert!(
            ran.json["error"]["message"].as_str().unwrap().contains("not in maintenance"),
            "{}",
            ran.json
        );
        assert!(ran.json["error"]["hint"].as_str().unwrap().contains("nc-maint run"), "{}", ran.json);
    }
    nothing_can_be_dumped(&lab);
    assert_eq!(holder(&lab), None);
}

#[test]
fn a_table_locked_against_readers_is_named() {
    let lab = lab("");
    switch(&lab);
    let blocker = lab.block();
    let clock = Instant::now();
    let ran = lab.run("hold", []).expect(75);
    assert!(clock.elapsed() < Duration::from_secs(10), "people are kept out meanwhile");
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("oc_share"), "{}", ran.json);
    lab.unblock(blocker);
    lab.run("hold", []).expect(0);
    lab.run("release", []).expect(0);
    nothing_is_left(&lab);
}

#[test]
fn whatever_ends_the_background_process_nothing_stays_and_nothing_is_dumped() {
    use nix::sys::signal::Signal;
    let lab = lab("");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        hold(&lab);
        let pid = holder(&lab).unwrap();
        let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
        assert_eq!(session.as_raw(), pid, "in a session of its own");
        kill(pid, signal);
        nothing_is_left(&lab);
        nothing_can_be_dumped(&lab);
        assert_eq!(lab.run("status", []).expect(0).json["data"]["holder"], false);
    }
    // Its session on the server, while nobody asks it anything.
    hold(&lab);
    lab.terminate("application_name = 'pg-snap' AND state = 'idle in transaction'");
    nothing_is_left(&lab);
    nothing_can_be_dumped(&lab);
    // Its time.
    lab.run("drain", ["--look"]).expect(0);
    switch(&lab);
    lab.run("hold", ["--max", "1s"]).expect(0);
    nothing_is_left(&lab);
    nothing_can_be_dumped(&lab);
}

#[test]
fn a_dump_whose_state_was_lost_meanwhile_is_void() {
    let lab = lab("");
    hold(&lab);
    let socket = lab.cluster.socket.display();
    let end = format!(
        "psql -q -h {socket} -p {} -U postgres -d postgres -c \"SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'pg-snap' AND state = 'idle in transaction'\" >/dev/null",
        lab.cluster.port
    );
    lab.odd_pg_dump("", &end);
    let ran = lab.run("dump", ["--held"]).expect(1);
    assert_eq!(ran.json["changed"], false);
    assert_eq!(lab.traces(), Vec::<String>::new());
    nothing_is_left(&lab);
}

#[test]
fn workers_are_paused_before_the_switch_and_resumed_whatever_happens() {
    let lab = Lab::filled();
    let say = |word: &str| {
        let script = lab.path(word);
        testkit::script(&script, &format!("#!/bin/sh\necho {word} >>'{}'\n", lab.path("said").display()));
        format!("{word} = [[{:?}]]", script)
    };
    let more = format!("{}\n{}", say("pause"), say("resume"));
    settings(&lab, &more);
    wait_for("the database is quiet", || lab.sessions("true") == 0);
    let said = || std::fs::read_to_string(lab.path("said")).unwrap_or_default();
    // From look to dump, and not once more at the release.
    hold(&lab);
    assert_eq!(said(), "pause\n");
    lab.run("dump", ["--held"]).expect(0);
    assert_eq!(said(), "pause\nresume\n");
    lab.run("release", []).expect(0);
    assert_eq!(said(), "pause\nresume\n");
    // Without a look before: by drain itself.
    switch(&lab);
    lab.run("drain", []).expect(0);
    assert_eq!(said(), "pause\nresume\npause\n");
    // Killed: by whoever comes next.
    kill(holder(&lab).unwrap(), nix::sys::signal::Signal::SIGKILL);
    nothing_is_left(&lab);
    assert_eq!(lab.run("release", []).expect(0).json["changed"], true);
    assert_eq!(said(), "pause\nresume\npause\nresume\n");
    assert!(!Path::new(&lab.path("state/jobs-paused")).exists());
    // One without the other is refused.
    settings(&lab, &say("pause"));
    lab.run("drain", ["--look"]).expect(78);
}
