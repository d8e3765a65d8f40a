//! When nothing happens: what is too old is told, and the figures say so.

use std::process::Command;

use serde_json::json;

use crate::world::{World, object};

const MAIL: &str = "[notify.mail]\nto = [\"root\"]\nsendmail = [\"DIR/sendmail\"]\n";

/// What `link-sync list` answers: snapshots so many hours old, the newest not sealed.
fn listed(world: &World, hours: &[i64], verified_hours: Option<i64>, verified_well: bool) {
    let date = |hours: i64, format: &str| {
        let when = format!("@{}", seconds() - hours * 3600);
        let printed = Command::new("date").args(["-u", "-d", &when, format]).output().unwrap();
        String::from_utf8(printed.stdout).unwrap().trim().to_owned()
    };
    let snapshots: Vec<_> = hours
        .iter()
        .enumerate()
        .map(|(n, h)| {
            let consistency = if n == 0 { "crash-consistent" } else { "sealed" };
            json!({"date": date(*h, "+%Y-%m-%dT%H-%M-%SZ"), "consistency": consistency, "odd": null})
        })
        .collect();
    let verify =
        verified_hours.map(|h| json!({"at": date(h, "+%Y-%m-%dT%H:%M:%S.123456Z"), "ok": verified_well}));
    let mut list = object(0, "");
    list["data"] = json!({"snapshots": snapshots, "last_verify": verify, "last_drill": null});
    std::fs::write(world.path("instead.list"), list.to_string()).unwrap();
}

fn seconds() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

#[test]
fn what_is_too_old_is_told_once_and_when_it_is_young_again() {
    let world = World::new("heard", MAIL);
    // Not yet: the one that is not sealed proves nothing, the sealed one is of yesterday.
    listed(&world, &[1, 30], None, true);
    world.notify(&["--watch"]).expect(0);
    assert!(world.mails().is_empty());
    listed(&world, &[1, 40], None, true);
    let ran = world.notify(&["--watch"]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("40 h old"), "{:#}", ran.json);
    world.notify(&["--watch"]).expect(1);
    let mails = world.mails();
    assert!(mails.len() == 1 && mails[0].contains("the newest sealed snapshot is 40 h old"), "{mails:?}");
    // The store does not answer: what was known goes on ageing, and is not forgotten.
    std::fs::write(world.path("instead.list"), object(69, "no route to s2").to_string()).unwrap();
    let ran = world.notify(&["--watch"]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("no route to s2"), "{:#}", ran.json);
    assert!(world.mails().is_empty());
    listed(&world, &[1, 2], None, true);
    world.notify(&["--watch"]).expect(0);
    assert!(world.mails()[0].contains("well again"));
    // A verification is watched once there was one; and what it found, too.
    listed(&world, &[1, 2], Some(17 * 24), true);
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails()[0].contains("the last verification is 17 days old"));
    listed(&world, &[1, 2], Some(1), false);
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails()[0].contains("found something wrong"));
    // As it is wanted.
    world.profile(&format!("{MAIL}[notify.ages]\nsnapshot = \"1h\"\nverify = \"0d\"\n"));
    listed(&world, &[1, 2], Some(17 * 24), true);
    world.notify(&["--watch"]).expect(1);
    let mails = world.mails().concat();
    assert!(mails.contains("snapshot is 2 h old"), "{mails}");
}

#[test]
fn a_store_that_never_had_a_snapshot_is_told_when_it_should_have_one() {
    let world = World::new("heard", MAIL);
    listed(&world, &[], None, true);
    world.notify(&["--watch"]).expect(0);
    assert!(world.mails().is_empty());
    // Two days later.
    let mut state = world.state();
    state["watching_since"] = (seconds() - 2 * 86_400).into();
    std::fs::write(world.path("state/notify.json"), state.to_string()).unwrap();
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails()[0].contains("there is no newest sealed snapshot yet"));
}

#[test]
fn a_clock_that_went_back_makes_nothing_untold_and_what_stays_wrong_is_told_again_in_time() {
    let world = World::new("heard", MAIL);
    world.ended("backup", &object(1, "x")).expect(0);
    assert_eq!(world.mails().len(), 1);
    let told = |at: i64| {
        let mut state = world.state();
        state["kinds"]["backup"]["told_at"] = at.into();
        std::fs::write(world.path("state/notify.json"), state.to_string()).unwrap();
        world.ended("backup", &object(1, "x")).expect(0);
        world.mails().len()
    };
    // It was told in a year to come; a week counts from now.
    assert_eq!(told(seconds() + 400 * 86_400), 0);
    assert!(world.state()["kinds"]["backup"]["told_at"].as_i64().unwrap() <= seconds());
    assert_eq!(told(seconds() - 6 * 86_400), 0);
    assert_eq!(told(seconds() - 8 * 86_400), 1);
    // What cannot be read is begun anew, and the failure told rather twice than never.
    std::fs::write(world.path("state/notify.json"), "{\"schema\":1,\"kin").unwrap();
    world.ended("backup", &object(1, "x")).expect(0);
    assert_eq!(world.mails().len(), 1);
}

#[test]
fn the_figures_are_what_prometheus_reads() {
    let world = World::new("heard", &format!("{MAIL}[metrics]\ndirectory = \"DIR/metrics\"\n"));
    let dir = world.path("metrics");
    std::fs::create_dir(&dir).unwrap();
    // Somebody else's folder, with a link where they would be written.
    let file = dir.join("nc-backup-heard.prom");
    let roots = world.path("of-root");
    std::fs::write(&roots, "root's").unwrap();
    std::os::unix::fs::symlink(&roots, &file).unwrap();
    std::fs::create_dir(world.path("store")).unwrap();
    listed(&world, &[1, 40], Some(1), true);
    world.ended("backup", &object(0, "")).expect(0);
    world.ended("verify", &object(69, "x")).expect(0);
    world.notify(&["--watch"]).expect(1);
    assert_eq!(std::fs::read_to_string(&roots).unwrap(), "root's");
    let text = std::fs::read_to_string(&file).unwrap();
    for line in [
        "nc_backup_run_failed{profile=\"heard\",kind=\"backup\"} 0",
        "nc_backup_run_failed{profile=\"heard\",kind=\"verify\"} 1",
        "nc_backup_run_maintenance_seconds{profile=\"heard\",kind=\"backup\"} 0.9",
        "nc_backup_run_sent_bytes{profile=\"heard\",kind=\"backup\"} 12",
        "nc_backup_newest_alarm{profile=\"heard\",what=\"snapshot\"} 1",
        "nc_backup_store_free_bytes{profile=\"heard\"} ",
        "nc_backup_snapshots{profile=\"heard\"} 2",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left there");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
    assert_eq!(mode & 0o777, 0o644);
    // Every metric of the rules and of the dashboard is one of these, or of node_exporter.
    let monitoring = testkit::scripts().join("monitoring");
    let mut wanted = 0;
    for name in ["rules.yml", "dashboard.json"] {
        let used = std::fs::read_to_string(monitoring.join(name)).unwrap();
        let boundary = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        for metric in used.split(boundary).filter(|w| w.starts_with("nc_backup_")) {
            let known = include_str!("../../../scripts/metrics.jq").contains(&format!("\"{metric}\""));
            assert!(known, "{name} uses {metric}, which nothing writes");
            wanted += 1;
        }
    }
    assert!(wanted > 15);
    // What Prometheus itself says of them, where it is.
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("promtool is not there: the rules are not checked by it");
        return;
    }
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
    for words in [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]] {
        let checked = Command::new("promtool").args(words).current_dir(&monitoring).output().unwrap();
        let said =
            String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{said}");
    }
}

#[test]
fn what_cannot_be_asked_is_not_well_again_and_damage_that_is_still_there_is_not_either() {
    let world = World::new("heard", MAIL);
    listed(&world, &[1, 2], Some(1), false);
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails()[0].contains("found something wrong"));
    // S2 is away for an hour: that says nothing of what was found there.
    let found = std::fs::read_to_string(world.path("instead.list")).unwrap();
    std::fs::write(world.path("instead.list"), object(69, "no route to s2").to_string()).unwrap();
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails().is_empty());
    std::fs::write(world.path("instead.list"), &found).unwrap();
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails().is_empty());
    // A later look at another date was well; what was found before was not looked at.
    let mut partly: serde_json::Value = serde_json::from_str(&found).unwrap();
    partly["data"]["last_verify"]["ok"] = true.into();
    partly["data"]["last_verify"]["unresolved"] = json!({"findings": 1});
    std::fs::write(world.path("instead.list"), partly.to_string()).unwrap();
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails().is_empty());
    listed(&world, &[1, 2], Some(1), true);
    world.notify(&["--watch"]).expect(0);
    assert!(world.mails()[0].contains("well again"));
}

#[test]
fn what_a_clock_wrote_that_was_ahead_is_not_young_for_ever() {
    let world = World::new("heard", MAIL);
    listed(&world, &[], None, true);
    world.notify(&["--watch"]).expect(0);
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut state = world.state();
        change(&mut state);
        std::fs::write(world.path("state/notify.json"), state.to_string()).unwrap();
    };
    change(&|state| state["watching_since"] = (seconds() + 400 * 86_400).into());
    world.notify(&["--watch"]).expect(0);
    assert!(world.state()["watching_since"].as_i64().unwrap() <= seconds());
    // A verification of a year to come counts as of when it was seen first.
    listed(&world, &[1, 2], Some(-400 * 24), true);
    world.notify(&["--watch"]).expect(0);
    change(&|state| state["ages"]["verify"]["at"] = (seconds() - 17 * 86_400).into());
    world.notify(&["--watch"]).expect(1);
    assert!(world.mails().concat().contains("the last verification is 17 days old"));
}

#[test]
fn a_pipe_or_a_device_that_was_planted_where_the_figures_go_is_not_opened() {
    let world = World::new("heard", &format!("{MAIL}[metrics]\ndirectory = \"DIR/metrics\"\n"));
    let dir = world.path("metrics");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("nc-backup-heard.prom");
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    world.ended("backup", &object(1, "x")).expect(0);
    assert!(std::fs::metadata(&file).unwrap().is_file());
    // Whatever is under the name of the draft: it is made anew, or not at all.
    let text = std::fs::read_to_string(testkit::scripts().join("notify.sh")).unwrap();
    assert!(text.contains("conv=excl") && !text.contains("set -C"));
}
