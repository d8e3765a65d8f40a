//! Verifying the container.

use serde_json::json;
use testkit::judge;

use crate::world::{DATES, World, signal, steps};

#[test]
fn the_container_is_opened_read_only_compared_and_closed() {
    let world = World::new();
    world.push_ok();
    let ran = world.run("verify", &["--sample", "5%", "--seed", "7"]).expect(0);
    assert_eq!(
        steps(&ran),
        ["status-container", "status-s3", "mount", "attach", "verify", "detach", "unmount"]
    );
    assert_eq!((&ran.json["changed"], &ran.json["data"]["fresh"]), (&false.into(), &true.into()));
    assert_eq!(ran.json["data"]["verify"]["bytes_read"], 99);
    assert_eq!(ran.json["data"]["received_bytes"], 7654);
    assert!(world.is_down());
    let log = world.read("log");
    let line = |start: &str| log.lines().rfind(|l| l.starts_with(start)).unwrap().to_owned();
    assert!(line("luks-mount attach").contains("--read-only"));
    let dir = world.path("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    assert_eq!(
        line("link-sync verify"),
        format!(
            "link-sync verify home --config {dir}/home.toml --store {dir}/run/container/snapshots --against {dir}/store --date all --sample 5% --seed 7"
        )
    );
    let status = world.run("status", &[]).expect(0);
    let last = &status.json["data"]["last_verify"];
    assert_eq!(
        (&last["fresh"], &last["findings"], &last["sample_percent"]),
        (&true.into(), &0.into(), &json!(5.0))
    );
    world.run("verify", &["--sample", "0"]).expect(2);
    world.run("verify", &["--date", "nonsense"]).expect(2);
}

#[test]
fn damage_and_an_older_container_are_failures_and_are_remembered() {
    let world = World::new();
    world.push_ok();
    let stand_in =
        r#"object 1 false '{"dates":["d"],"sample_percent":100,"bytes_read":9,"findings_total":2}'; exit 1"#;
    world.plan("link-sync-verify", stand_in);
    let ran = world.run("verify", &[]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("link-sync verify said 1"));
    assert_eq!(world.run("status", &[]).expect(0).json["data"]["last_verify"]["findings"], 2);
    world.no_plan("link-sync-verify");
    // What is right in itself, but not what was left behind.
    let stamp = world.read("disk/generation.json");
    let older = stamp.replace(world.stamp()["generation"].as_str().unwrap(), "older");
    world.write("disk/generation.json", &older);
    let ran = world.run("verify", &[]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("not the state that was left behind"));
    assert_eq!(ran.json["data"]["fresh"], false);
    assert_eq!(world.run("status", &[]).expect(0).json["data"]["last_verify"]["fresh"], false);
    world.write("disk/generation.json", &stamp);
    // The snapshot that was pushed last is gone from it.
    std::fs::rename(world.path("disk/snapshots").join(DATES[0]), world.path("disk/aside")).unwrap();
    let ran = world.run("verify", &[]).expect(1);
    assert!(ran.json["data"]["not_fresh_because"].as_str().unwrap().contains(DATES[0]));
    assert!(world.is_down());
}

#[test]
fn a_view_keeps_it_out_and_a_signal_ends_it_with_everything_down() {
    let world = World::new();
    world.push_ok();
    world.run("view", &[]).expect(0);
    world.run("verify", &[]).expect(75);
    world.run("unview", &[]).expect(0);
    world.plan("link-sync-verify", "pause");
    let child = world.start_until_paused("verify");
    signal(child.id(), "TERM");
    judge(child.wait_with_output().unwrap()).expect(143);
    assert!(world.is_down());
    world.plan("luks-mount-attach", "object 77 false '{}'; exit 77");
    world.run("verify", &[]).expect(77);
    assert!(world.is_down());
}
