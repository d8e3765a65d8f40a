//! Requests that had read the configuration before the switch, and connect long after it.

use std::time::{Duration, Instant};

use testkit::Ran;
use testkit::postgres::identifier;

use crate::hold::{end, lab, nothing_is_left, open_session, session, switch};
use crate::lab::{Lab, wait_for};

/// Drained and held, in maintenance that stays on.
#[track_caller]
fn drained_and_held(lab: &Lab) {
    lab.run("drain", []).expect(0);
    lab.run("hold", []).expect(0);
}

#[track_caller]
fn refused_as_moved(ran: Ran, lab: &Lab) {
    let ran = ran.expect(75);
    assert_eq!(ran.json["data"]["moved"], true, "{}", ran.json);
    assert_eq!(
        lab.sessions("application_name = 'pg-snap' AND state = 'idle in transaction'"),
        0,
        "{}",
        ran.json
    );
    lab.run("dump", ["--held"]).expect(1);
}

#[test]
fn what_a_latecomer_wrote_is_noticed_and_the_next_try_holds_it() {
    let lab = lab("");
    lab.run("drain", ["--look"]).expect(0);
    switch(&lab);
    drained_and_held(&lab);
    // It has come and gone while the files were taken.
    end(session(&lab, "late", "INSERT INTO oc_empty VALUES (1)"));
    refused_as_moved(lab.run("confirm", []), &lab);
    drained_and_held(&lab);
    let confirmed = lab.run("confirm", []).expect(0);
    assert_eq!((&confirmed.json["data"]["moved"], &confirmed.json["changed"]), (&false.into(), &true.into()));
    lab.run("dump", ["--held"]).expect(0);
    lab.run("release", []).expect(0);
    nothing_is_left(&lab);
}

#[test]
fn a_latecomer_that_may_still_write_is_waited_for() {
    let lab = lab("");
    lab.run("drain", ["--look"]).expect(0);
    switch(&lab);
    // It has written a file, and its row comes in a moment.
    drained_and_held(&lab);
    let late = open_session(&lab, "late", "SELECT pg_sleep(1.5); INSERT INTO oc_empty VALUES (1)");
    refused_as_moved(lab.run("confirm", []), &lab);
    end(late);
    // One that was only told that Nextcloud is closed.
    drained_and_held(&lab);
    let refused = open_session(&lab, "late", "SELECT pg_sleep(1)");
    let confirmed = lab.run("confirm", []).expect(0);
    assert_eq!(confirmed.json["data"]["seen_sessions"], 1);
    assert_eq!(lab.sessions("application_name = 'late'"), 0, "it has ended");
    end(refused);
    // One that does not end.
    lab.run("release", []).expect(0);
    drained_and_held(&lab);
    let stays = open_session(&lab, "late", "SELECT pg_sleep(60)");
    let ran = lab.run("confirm", ["--timeout", "500ms"]).expect(75);
    assert_eq!(ran.json["data"]["sessions"][0]["application_name"], "late");
    lab.run("dump", ["--held"]).expect(1);
    lab.run("release", []).expect(0);
    lab.terminate("application_name = 'late'");
    end(stays);
}

#[test]
fn what_is_written_in_another_database_of_the_server_does_not_count() {
    let lab = lab("");
    lab.run("drain", ["--look"]).expect(0);
    switch(&lab);
    drained_and_held(&lab);
    let before = lab.cluster.psql("postgres", "SELECT pg_current_snapshot();");
    lab.cluster.psql(
        "postgres",
        "CREATE TABLE elsewhere (x int); INSERT INTO elsewhere VALUES (1); DROP TABLE elsewhere;",
    );
    assert_ne!(lab.cluster.psql("postgres", "SELECT pg_current_snapshot();"), before);
    lab.run("confirm", []).expect(0);
    lab.run("release", []).expect(0);
}

#[test]
fn without_a_drain_for_this_run_nothing_is_confirmed() {
    let lab = lab("");
    switch(&lab);
    lab.run("hold", []).expect(0);
    let ran = lab.run("confirm", []).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("not drained"), "{}", ran.json);
    lab.run("confirm", []).expect(1);
    lab.run("release", []).expect(0);
    lab.run("confirm", []).expect(1);
}

#[test]
fn a_session_of_another_role_is_waited_for_and_denied_only_if_it_stays() {
    let lab = lab("wait = \"4s\"");
    let watch = |seconds: u32| {
        let mut psql = lab.cluster.superuser(&lab.database);
        psql.args(["-c", &format!("SELECT pg_sleep({seconds})")]);
        psql.env("PGAPPNAME", "monitoring");
        lab.start(&mut psql)
    };
    let there = || lab.sessions("application_name = 'monitoring'") == 1;
    let short = watch(2);
    wait_for("it is there", there);
    let clock = Instant::now();
    lab.run("drain", ["--look"]).expect(0);
    assert!(clock.elapsed() > Duration::from_secs(1), "it was waited for");
    end(short);
    lab.run("release", []).expect(0);

    let long = watch(60);
    wait_for("it is there", there);
    let ran = lab.run("drain", ["--look", "--wait", "1s"]).expect(77);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("readers"), "{}", ran.json);
    assert_eq!(ran.json["data"]["sessions"][0]["hidden"], true);
    crate::hold::settings(&lab, "readers = [\"postgres\"]");
    lab.run("drain", ["--look", "--wait", "1s"]).expect(0);
    switch(&lab);
    drained_and_held(&lab);
    lab.run("confirm", []).expect(0);
    lab.run("release", []).expect(0);
    lab.terminate("application_name = 'monitoring'");
    end(long);
}

#[test]
fn what_the_role_may_not_read_is_found_before_the_switch() {
    let lab = lab("");
    lab.cluster.psql(&lab.database, "CREATE SCHEMA foreign_app; CREATE TABLE foreign_app.t (x int);");
    lab.cluster.psql("postgres", &format!("GRANT pg_read_all_stats TO {};", identifier(&lab.role)));
    let ran = lab.run("drain", ["--look"]).expect(77);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("pg_read_all_data"), "{}", ran.json);
    nothing_is_left(&lab);
    lab.cluster.psql(&lab.database, "DROP SCHEMA foreign_app CASCADE; CREATE SEQUENCE hidden;");
    let ran = lab.run("drain", ["--look"]).expect(77);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("hidden"), "{}", ran.json);
    // A table that is locked for a moment is waited for, while Nextcloud is up.
    lab.cluster.psql(&lab.database, "DROP SEQUENCE hidden;");
    let blocker = lab.block();
    lab.run("drain", ["--look", "--wait", "1s"]).expect(75);
    lab.unblock(blocker);
    lab.run("drain", ["--look"]).expect(0);
    lab.run("release", []).expect(0);
}
