//! What goes from the container, when, and what a blow in the middle of it means.

use crate::world::{DATES, World, signal, steps};

const MORE: &str = "2026-11-23T03-30-00Z";

/// Three dates pushed, then rules that keep two.
fn with_rules() -> World {
    let world = World::new();
    for date in DATES {
        world.snapshot(date);
        world.push_ok();
    }
    world.write_profile(
        "[offsite.retention]\nkeep_last = 2\nkeep_within = \"1d\"\ntimezone = \"UTC\"\n\
         [offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/srv/backup\"\n",
        "container.img",
    );
    world.calls();
    world
}

#[test]
fn after_a_confirmed_push_the_container_is_opened_again() {
    let world = with_rules();
    world.snapshot(MORE);
    let ran = world.push().expect(0);
    let wanted = [
        "copy",
        "prune-look",
        "detach",
        "unmount",
        "mount",
        "attach",
        "prune-look",
        "prune",
        "detach",
        "unmount",
    ];
    assert_eq!(steps(&ran)[4..], wanted);
    assert_eq!(ran.json["data"]["prune"]["removed"], serde_json::json!(DATES[..2]));
    assert_eq!(world.container(), [DATES[2], MORE]);
    assert!(world.is_down());
    assert_eq!(world.record()["generation"], world.stamp()["generation"]);
    assert_eq!((&world.record()["date"], &world.stamp()["date"]), (&MORE.into(), &MORE.into()));
    assert_eq!(world.record()["dates"], serde_json::json!([DATES[2], MORE]));
    let status = world.run("status", &[]).expect(0);
    assert_eq!(status.json["data"]["dates"], world.record()["dates"]);
    // The store knows what is needed there.
    assert_eq!(world.read("store/.pins/offsite-home"), format!("{{\"dates\":[\"{MORE}\"]}}"));
    let log = world.read("log");
    let line = log.lines().rfind(|l| l.starts_with("link-sync prune")).unwrap();
    let rules = format!(
        "--keep-last 2 --max-removals-per-day 10 --keep-within 1d --timezone UTC --keep {} --keep {MORE} --flush-bytes 4m",
        DATES[2]
    );
    assert!(line.ends_with(&rules), "{line}");
}

#[test]
fn nothing_goes_before_the_copy_is_confirmed() {
    let world = with_rules();
    world.snapshot(MORE);
    world.plan("luks-mount-detach", "object() { printf '{\"schema\":1,\"tool\":\"luks-mount\",\"version\":\"0.1.0\",\"action\":\"detach\",\"profile\":null,\"status\":\"ok\",\"exit_code\":0,\"changed\":true,\"started_at\":\"2026-11-22T23:12:22Z\",\"duration_ms\":1,\"data\":{},\"warnings\":[{\"kind\":\"sync-failed\",\"message\":\"lost\"}],\"error\":null,\"left_behind\":[]}\\n'; }\n");
    world.push().expect(69);
    assert_eq!(world.container().len(), 4);
    world.no_plan("luks-mount-detach");
    // The next one looks again, confirms, and then removes.
    world.push().expect(0);
    assert_eq!(world.container(), [DATES[2], MORE]);
}

#[test]
fn rules_that_cannot_be_followed_make_a_push_partial_not_failed() {
    let world = with_rules();
    world.snapshot(MORE);
    world.plan("link-sync-prune", "object 69 false '{}'; exit 69\n");
    let ran = world.push().expect(3);
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "not-pruned"));
    assert_eq!(world.record()["date"], MORE);
    assert_eq!(world.container().len(), 4);
    assert!(world.run("prune", &[]).expect(69).json["error"]["message"].is_string());
    assert!(world.is_down());
    world.no_plan("link-sync-prune");
    world.run("prune", &[]).expect(0);
    assert_eq!(world.container().len(), 2);
    assert_eq!(world.push().expect(0).json["changed"], false);
}

#[test]
fn a_dry_run_opens_it_read_only_and_changes_nothing() {
    let world = with_rules();
    let (record, stamp) = (world.record(), world.stamp());
    let ran = world.run("prune", &["--dry-run"]).expect(0);
    assert_eq!(ran.json["data"]["prune"]["removed"], serde_json::json!(DATES[..1]));
    assert_eq!(ran.json["changed"], false);
    assert_eq!((world.record(), world.stamp()), (record, stamp));
    assert!(world.read("log").contains("--read-only"));
    assert_eq!(world.container(), DATES);
    assert!(world.is_down());
}

#[test]
fn killed_in_the_middle_the_next_push_knows_the_container() {
    let world = with_rules();
    world.plan("pruning", "pause\n");
    let mut child = world.start_until_paused("prune");
    signal(child.id(), "KILL");
    child.wait().unwrap();
    std::fs::remove_file(world.path("plan/pruning")).unwrap();
    // It was noted before that this one goes; that it is gone is no alarm.
    assert_eq!(world.record()["going"], serde_json::json!(DATES[..1]));
    assert_eq!(world.record()["dates"], serde_json::json!(DATES));
    assert_eq!(world.container(), DATES[1..]);
    world.snapshot(MORE);
    world.push().expect(0);
    assert_eq!(world.container(), [DATES[2], MORE]);
    assert_eq!(world.record()["generation"], world.stamp()["generation"]);
    assert_eq!(
        (&world.record()["dates"], &world.record()["going"]),
        (&serde_json::json!([DATES[2], MORE]), &serde_json::json!([]))
    );
}

#[test]
fn every_key_of_the_profile_has_its_effect() {
    let world = with_rules();
    let rules = "keep_last = 2\nkeep_hourly = 3\nkeep_daily = 4\nkeep_weekly = 5\nkeep_monthly = 6\nkeep_yearly = 7\n\
         keep_within = \"1d\"\nmin_age = \"2d\"\nmax_gap = \"9d\"\nmax_removals_per_day = 1\ntimezone = \"UTC\"\n";
    let sshfs = "[offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/srv/backup\"\n";
    world.write_profile(&format!("[offsite.retention]\n{rules}{sshfs}"), "container.img");
    world.run("prune", &[]).expect(0);
    let log = world.read("log");
    let calls: Vec<_> = log.lines().filter(|l| l.starts_with("link-sync prune")).collect();
    assert_eq!(calls.len(), 2, "{calls:?}");
    let words = "--keep-last 2 --keep-hourly 3 --keep-daily 4 --keep-weekly 5 --keep-monthly 6 --keep-yearly 7 \
         --max-removals-per-day 1 --keep-within 1d --min-age 2d --max-gap 9d --timezone UTC ";
    assert!(calls.iter().all(|l| l.contains(words)), "{calls:?}");
    // What is no key is refused, with the nearest one that is.
    world.write_profile(&format!("[offsite.retention]\nmax_removals = 1\n{sshfs}"), "container.img");
    assert!(world.run("prune", &[]).expect(78).json["error"].to_string().contains("max_removals_per_day"));
}

#[test]
fn without_rules_or_a_push_nothing_is_removed() {
    let world = World::new();
    assert!(
        world.run("prune", &[]).expect(78).json["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("[offsite.retention]")
    );
    assert!(world.calls().is_empty());
    world.write_profile(
        "[offsite.retention]\nkeep_last = 2\n[offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/d\"\n",
        "container.img",
    );
    assert!(
        world.run("prune", &[]).expect(78).json["error"]["message"]
            .as_str()
            .unwrap()
            .contains("pushed nothing")
    );
    // Not the one that was left behind.
    world.push_ok();
    world.write("uuid", "uuid-2");
    world.run("prune", &[]).expect(78);
    assert!(world.is_down());
}
