//! What a person sees of a night, and whether all is well.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;
use testkit::terminal::on_terminal;
use testkit::{Ran, run, scripts};

use crate::world::World;

fn status(world: &World, options: &[&str]) -> Command {
    let mut command = Command::new(scripts().join("status"));
    command
        .arg("home")
        .arg("--config")
        .arg(world.path("home.toml"))
        .arg("--bin")
        .arg(world.tools())
        .args(options);
    command
}

/// What is not well.
fn findings(ran: &Ran) -> Vec<String> {
    let all = ran.json["data"]["findings"].as_array().expect("findings").iter();
    all.map(|f| {
        format!("{} {}: {}", f["severity"].as_str().unwrap(), f["where"].as_str().unwrap(), f["what"])
    })
    .collect()
}

#[test]
fn a_night_on_a_terminal_is_a_table_and_in_a_pipe_the_object() {
    let world = World::new("seennight");
    let seen = on_terminal(&world.backup(), "2>/dev/null").fits();
    assert_eq!(seen.code, 0, "{}", seen.text);
    assert!(
        seen.text.contains("published 20") && seen.text.contains("Nextcloud was closed for"),
        "{}",
        seen.text
    );
    assert!(seen.text.contains("backup-local home: ok"), "{}", seen.text);
    // In all, it is said once.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let all = on_terminal(&world.backup(), "");
    assert_eq!(all.text.matches("published 20").count(), 1, "{}", all.text);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mut forced = world.backup();
    forced.arg("--json");
    let seen = on_terminal(&forced, "2>/dev/null");
    let json: Value = serde_json::from_str(seen.lines().last().unwrap()).unwrap();
    testkit::check_status(&json);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let piped = run(&mut world.backup()).expect(0);
    assert!(piped.stderr.contains("published 20"), "{}", piped.stderr);
    let keys = |json: &Value| json["data"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), keys(&piped.json));
    // What fails says where, and why.
    world.inject("pg-snap", "dump*", "exit 69");
    let failed = on_terminal(&world.backup(), "2>/dev/null").fits();
    assert_eq!(failed.code, 69, "{}", failed.text);
    assert!(failed.text.contains("nothing was published: failed at dump"), "{}", failed.text);
}

#[test]
fn status_says_whether_all_is_well_and_what_to_do_and_ends_with_a_code_for_monitors() {
    let world = World::new("seenstatus");
    std::fs::set_permissions(world.path("home.toml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    // Nothing was backed up yet.
    let none = run(&mut status(&world, &[])).expect(1);
    assert!(
        findings(&none)[0].contains("critical S2: \"there is no snapshot yet\""),
        "{:?}",
        findings(&none)
    );
    run(&mut world.backup()).expect(0);

    let well = run(&mut status(&world, &[])).expect(0);
    assert_eq!(well.json["data"]["well"], true, "{:#}", well.json);
    assert_eq!(well.json["data"]["s1"]["maintenance"], false);
    assert_eq!(well.json["data"]["s2"]["newest"], world.dates()[0].as_str());
    assert!(well.json["data"]["s2"]["room"]["free_bytes"].as_u64().unwrap() > 0);
    let seen = on_terminal(&status(&world, &[]), "2>/dev/null").fits();
    assert_eq!(seen.code, 0, "{}", seen.text);
    assert!(
        seen.lines()[0].contains("all is well") && seen.text.contains(&world.dates()[0]),
        "{}",
        seen.text
    );

    // A date that is none ends a restore of the whole instance before it begins.
    let mut back = Command::new(scripts().join("restore"));
    back.args(["home", "--yes", "--date", "1999-01", "--config"]).arg(world.path("home.toml"));
    let back = run(back.arg("--bin").arg(world.tools())).expect(78);
    assert_eq!(back.json["data"]["failed_step"], "date", "{:#}", back.json);
    assert!(back.json["error"]["hint"].as_str().unwrap().contains(&world.dates()[0]), "{:#}", back.json);
    assert!(!world.in_maintenance());

    // Too old.
    let late = run(&mut status(&world, &["--max-backup-age", "0h"])).expect(1);
    assert!(findings(&late)[0].contains("critical S2: \"the newest snapshot is"), "{:?}", findings(&late));
    let seen = on_terminal(&status(&world, &["--max-backup-age", "0h"]), "2>/dev/null").fits();
    assert!(seen.lines()[0].contains("NOT WELL") && seen.text.contains("do: "), "{}", seen.text);
    run(&mut status(&world, &["--max-backup-age", "soon"])).expect(2);

    // The history of the runs tells of one that failed after it, and of one that went well since.
    let history = world.path("state/history.jsonl");
    let line = |at: &str, code: i32| {
        format!(
            "{{\"kind\":\"backup\",\"status\":\"failed\",\"exit_code\":{code},\"ended_at\":\"{at}\",\"data\":{{}},\"error\":{{\"message\":\"S2 \\u001b[31mis away\"}}}}\n"
        )
    };
    std::fs::write(&history, format!("{}torn{{\n", line("2099-01-01T00:00:00Z", 69))).unwrap();
    let failed = run(&mut status(&world, &[])).expect(1);
    assert!(findings(&failed)[0].contains("the last backup failed"), "{:?}", findings(&failed));
    let seen = on_terminal(&status(&world, &[]), "2>/dev/null").fits();
    assert!(seen.text.contains("is away"), "{}", seen.text);
    std::fs::write(&history, line("2020-01-01T00:00:00Z", 69)).unwrap();
    run(&mut status(&world, &[])).expect(0);

    // A store that is not there, while all else is.
    std::fs::rename(world.store(), world.path("away")).unwrap();
    let away = run(&mut status(&world, &[])).expect(1);
    assert!(findings(&away)[0].starts_with("critical S2: "), "{:?}", findings(&away));
    assert_eq!(away.json["data"]["s1"]["maintenance"], false);
    std::fs::rename(world.path("away"), world.store()).unwrap();

    // Somebody is at work on Nextcloud.
    let mut on = Command::new(testkit::bin("nc-maint"));
    on.args(["on", "home", "--max", "10m", "--config"]).arg(world.path("home.toml"));
    run(&mut on).expect(0);
    let closed = run(&mut status(&world, &[]));
    let mut off = Command::new(testkit::bin("nc-maint"));
    off.args(["off", "home", "--config"]).arg(world.path("home.toml"));
    run(&mut off).expect(0);
    let closed = closed.expect(3);
    assert!(findings(&closed)[0].contains("warning S1: \"somebody has switched"), "{closed:?}");

    // A run that was killed with all that would have ended maintenance: what is left, and how to clear it.
    let notes = r#"printf '%s' '{"schema":1,"tool":"nc-maint","version":"0.1.0","action":"status","profile":"home","status":"ok","exit_code":0,"changed":false,"started_at":"2026-11-27T03:30:00Z","duration_ms":1,"data":{"maintenance":true,"run_active":false,"ours":true,"restoring":null,"clients_maintenance":null},"warnings":[{"kind":"run-killed","message":"a run was killed"}],"error":null,"left_behind":[]}'; exit 0"#;
    world.inject("nc-maint", "status*", notes);
    let left = run(&mut status(&world, &[])).expect(4);
    assert_eq!(left.json["status"], "dirty");
    assert_eq!(left.json["left_behind"][0]["clear"], "nc-maint off home --if-ours", "{left:?}");
    let seen = on_terminal(&status(&world, &[]), "2>/dev/null").fits();
    assert!(seen.text.contains("LEFT BEHIND: Nextcloud is in maintenance"), "{}", seen.text);

    // No profile, and what is no option.
    let mut nobody = Command::new(scripts().join("status"));
    run(nobody.args(["nobody", "--bin"]).arg(world.tools())).expect(78);
}
