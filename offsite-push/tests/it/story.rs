//! Night after night.

use testkit::check_status;

use crate::world::{DATES, World, steps};

const WHOLE: [&str; 7] = ["status-container", "status-s3", "mount", "attach", "copy", "detach", "unmount"];

#[test]
fn each_night_the_newest_snapshot_is_pushed_and_nothing_stays_up() {
    let world = World::new();
    world.snapshot(DATES[1]);
    // The first push takes the newest date only,
    let first = world.push().expect(0);
    assert_eq!(steps(&first), WHOLE);
    assert_eq!(first.json["changed"], true);
    let push = &first.json["data"]["push"];
    assert_eq!((&push["date"], &push["behind"]), (&DATES[1].into(), &0.into()));
    assert_eq!((&push["sent_bytes"], &push["copied_bytes"]), (&1_234_567.into(), &42.into()));
    assert_eq!((&push["received_bytes"], &push["written_bytes"]), (&7654.into(), &2_000_000.into()));
    assert_eq!(world.container(), [DATES[1]]);
    assert!(world.is_down());
    // with the siblings' objects in it, and what they warned about,
    for step in first.json["data"]["steps"].as_array().unwrap() {
        check_status(&step["output"]);
    }
    assert_eq!(first.json["warnings"][0]["kind"], "header-differs");
    assert!(first.stderr.contains("mounting nc@s3:/srv/backup"), "{}", first.stderr);
    assert!(first.stderr.contains(&format!("pushed {}: 1.2 MiB sent in", DATES[1])), "{}", first.stderr);
    // and both sides have the same generation.
    let record = world.record();
    assert_eq!(record["generation"], world.stamp()["generation"]);
    assert_eq!(record["generation"].as_str().unwrap().len(), 32);
    assert!(record["next_generation"].is_null());
    assert_eq!(world.stamp()["container_uuid"], "uuid-1");

    // With nothing new the container is not opened.
    world.calls();
    let second = world.push().expect(0);
    assert_eq!(second.json["changed"], false);
    assert_eq!(second.json["data"]["push"]["sent_bytes"], 0);
    assert_eq!(world.calls(), ["luks-mount status", "sshfs-mount status"]);

    // The next night has a new date and another generation.
    world.snapshot(DATES[2]);
    let status = world.run("status", &[]).expect(0).json;
    assert_eq!((&status["data"]["behind"], &status["data"]["newest"]["date"]), (&1.into(), &DATES[2].into()));
    assert_eq!(status["data"]["last_push"]["sent_bytes"], 1_234_567);
    assert_eq!(status["data"]["container"]["state"], "detached");
    world.push().expect(0);
    assert_eq!(world.container(), DATES[1..]);
    assert_ne!(world.record()["generation"], record["generation"]);
    assert_eq!(world.record()["generation"], world.stamp()["generation"]);
    assert_eq!(world.run("status", &[]).expect(0).json["data"]["behind"], 0);
}

#[test]
fn an_older_date_is_pushed_by_name_and_the_newest_stays_known() {
    let world = World::new();
    world.snapshot(DATES[1]);
    world.push().expect(0);
    let ran = world.run("push", &["--date", DATES[0]]).expect(0);
    assert_eq!(
        (&ran.json["changed"], world.container()),
        (&true.into(), DATES[..2].iter().map(|d| (*d).to_owned()).collect())
    );
    assert_eq!(world.record()["date"], DATES[1]);
    // Again: it is opened, as only the newest is known, but nothing in it changes.
    let stamp = world.stamp();
    let again = world.run("push", &["--date", DATES[0]]).expect(0);
    assert_eq!((&again.json["changed"], &world.stamp()), (&false.into(), &stamp));
    assert!(world.record()["next_generation"].is_null());
    // And the newest one is still known without opening.
    world.calls();
    assert_eq!(world.push().expect(0).json["changed"], false);
    assert_eq!(world.calls().len(), 2);
    world.run("push", &["--date", DATES[2]]).expect(78);
}

#[test]
fn a_damaged_newest_snapshot_is_passed_over_and_an_empty_store_is_an_error() {
    let world = World::new();
    world.snapshot(DATES[1]);
    std::fs::write(world.path("store").join(DATES[1]).join(".meta/snapshot.json"), "{").unwrap();
    let ran = world.push().expect(0);
    assert_eq!(ran.json["data"]["date"], DATES[0]);
    assert_eq!(ran.json["warnings"][0]["kind"], "damaged-snapshot");
    for date in &DATES[..2] {
        std::fs::rename(world.path("store").join(date), world.path(&format!("gone-{date}"))).unwrap();
    }
    let ran = world.push().expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("holds no snapshot"), "{:#}", ran.json);
    assert_eq!(world.container(), [DATES[0]]);
}

#[test]
fn a_copy_that_left_something_out_is_partial_and_still_confirmed() {
    let world = World::new();
    world.plan("link-sync-copy", "trap 'r=$?; [ $r != 0 ] || exit 3' EXIT\nobject() { printf '{\"schema\":1,\"tool\":\"link-sync\",\"version\":\"0.1.0\",\"action\":\"copy\",\"profile\":null,\"status\":\"partial\",\"exit_code\":3,\"changed\":true,\"started_at\":\"2026-11-22T23:12:22Z\",\"duration_ms\":1,\"data\":{},\"warnings\":[{\"kind\":\"skipped\",\"message\":\"a device\"}],\"error\":null,\"left_behind\":[]}\\n'; }\n");
    let ran = world.push().expect(3);
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "skipped"));
    assert!(world.is_down());
    world.no_plan("link-sync-copy");
    assert_eq!(world.push().expect(0).json["changed"], false);
}

#[test]
fn a_container_on_this_machine_needs_no_s3() {
    let world = World::new();
    world.write_profile("", world.path("run/s3/container.img").to_str().unwrap());
    std::fs::remove_file(world.path("needs-s3")).unwrap();
    std::fs::remove_file(world.path("bin/sshfs-mount")).unwrap();
    let ran = world.push().expect(0);
    assert_eq!(steps(&ran), ["status-container", "attach", "copy", "detach"]);
    assert!(ran.json["data"]["push"]["sent_bytes"].is_null());
    assert!(world.is_down());
    assert!(world.run("status", &[]).expect(0).json["data"]["s3"].is_null());
    world.run("push", &["--bwlimit", "1m"]).expect(2);
}

#[test]
fn the_siblings_get_the_words_they_need() {
    let world = World::new();
    world.run("push", &["--bwlimit", "500k", "--reserve-bytes", "1m"]).expect(0);
    let log = world.read("log");
    let config = world.path("home.toml");
    let line = |start: &str| log.lines().find(|l| l.starts_with(start)).unwrap().to_owned();
    assert_eq!(
        line("sshfs-mount mount"),
        format!("sshfs-mount mount home --config {} --bwlimit 512000", config.display())
    );
    assert_eq!(line("luks-mount attach"), format!("luks-mount attach home --config {}", config.display()));
    let dir = world.path("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    assert_eq!(
        line("link-sync copy"),
        format!(
            "link-sync copy home --config {dir}/home.toml --to {dir}/run/container/snapshots --store {dir}/store --date {} --reserve-bytes 1048576",
            DATES[0]
        )
    );
}

#[test]
fn an_s3_without_fsync_is_remembered_and_told_by_status() {
    let world = World::new();
    assert!(world.run("status", &[]).expect(0).json["data"]["s3_fsync"].is_null());
    let mounted = |fsync: &str| {
        format!(
            "[ $1 != mount ] || {{ echo healthy >\"$w/s3\"; object 0 true '{{\"state\":\"healthy\",\"fsync\":{fsync}}}'; exit; }}\n"
        )
    };
    let told = |world: &World| {
        let ran = world.run("status", &[]).expect(0);
        let warned = ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "no-fsync");
        (ran.json["data"]["s3_fsync"].clone(), warned)
    };
    world.plan("sshfs-mount-mount", &mounted("false"));
    world.push_ok();
    assert_eq!(told(&world), (false.into(), true));
    // It could not be found out: what was known stays.
    world.snapshot(DATES[1]);
    world.plan("sshfs-mount-mount", &mounted("null"));
    world.push_ok();
    assert_eq!(told(&world), (false.into(), true));
    world.snapshot(DATES[2]);
    world.plan("sshfs-mount-mount", &mounted("true"));
    world.push_ok();
    assert_eq!(told(&world), (true.into(), false));
}
