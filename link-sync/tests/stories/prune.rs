//! What goes, what stays, and that a date is whole or gone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::far::Remote;
use crate::picture::picture;
use crate::world::{World, dates, kill, ok, told, until, warnings};

const FORMAT: &str = "%Y-%m-%dT%H-%M-%SZ";

/// A date so many hours ago.
pub fn ago(hours: i64) -> String {
    (Timestamp::now() - SignedDuration::from_hours(hours)).strftime(FORMAT).to_string()
}

/// The moment that a date says.
fn taken(date: &str) -> String {
    let civil = jiff::civil::DateTime::strptime(FORMAT, date).unwrap();
    civil.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp().to_string()
}

/// Makes one more snapshot in `store` out of the newest, which it shares its files with.
pub fn copy(store: &Path, date: &str, consistency: &str) {
    let newest = store.join(dates(store).pop().unwrap());
    let new = store.join(date);
    ok("cp", &["-al", newest.to_str().unwrap(), new.to_str().unwrap()]);
    let file = new.join(".meta/snapshot.json");
    let mut meta: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    meta["date"] = json!(date);
    meta["id"] =
        json!(format!("{:032x}", date.bytes().fold(7u128, |n, b| n.wrapping_mul(257) + u128::from(b))));
    meta["consistency"] = json!(consistency);
    meta["started_at"] = json!(taken(date));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, meta.to_string()).unwrap();
    std::fs::remove_file(new.join(".meta/lock")).unwrap();
    std::fs::write(new.join(".meta/lock"), "").unwrap();
    // Not through the link to the other one's.
    std::fs::remove_file(new.join("docs/only-here")).ok();
    std::fs::write(new.join("docs/only-here"), date).unwrap();
}

/// A store with a snapshot each night for so many nights; the newest is of last night.
pub fn nights(world: &World, nights: i64) {
    for n in 0..30 {
        world.file(&format!("d{}/f{n}", n % 4), &format!("content {n}"));
    }
    let first = world.publish();
    let newest = world.store.join(ago(20));
    std::fs::rename(first, &newest).unwrap();
    for n in 1..nights {
        copy(&world.store, &ago(20 + 24 * n), "sealed");
    }
    ok("ln", &["-sfn", &ago(20 + 24), world.store.join("latest").to_str().unwrap()]);
}

/// The same, of nine nights, in a store behind ssh.
pub fn nine_nights(remote: &Remote) {
    remote.world.snapshot(&[]).expect(0);
    let first = dates(&remote.store).pop().unwrap();
    std::fs::rename(remote.store.join(first), remote.store.join(ago(20))).unwrap();
    for n in 1..9 {
        copy(&remote.store, &ago(20 + 24 * n), "sealed");
    }
    ok("chown", &["-Rh", &remote.account.name, remote.store.to_str().unwrap()]);
}

/// Has the store behind ssh served by a profile of its own, with these rules; the profile.
pub fn rules_there(remote: &Remote, store: &str, rules: &str) -> PathBuf {
    let file = remote.account.folder("etc").join("home.toml");
    let text =
        format!("[store]\npath = \"{}\"\n{store}\n[store.retention]\n{rules}\n", remote.store.display());
    std::fs::write(&file, text).unwrap();
    ok("chown", &[&remote.account.name, file.to_str().unwrap()]);
    ok("chmod", &["0600", file.to_str().unwrap()]);
    let forced = format!("command=\"{} serve --config {}\",restrict", remote.program, file.display());
    remote.sshd.set_key_options(&forced);
    file
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

#[test]
fn the_rules_are_kept_and_what_stays_stays_as_it_is() {
    let world = World::new();
    nights(&world, 10);
    let history = world.history();
    let all = world.dates();
    world.profile("", "[store.retention]\nkeep_daily = 4\ntimezone = \"UTC\"");

    let noted = std::fs::read(world.store.join(".prune.json")).unwrap();
    let dry = world.act("prune", &["--dry-run"]).expect(0);
    assert_eq!(dry.json["changed"], false);
    assert!(dry.stderr.contains("another one stands") || dry.stderr.contains("daily: older than"), "{dry:?}");
    assert!(dry.stderr.contains("daily 2") && dry.stderr.contains("the newest sealed one"), "{dry:?}");
    assert_eq!(world.history(), history);
    assert_eq!(std::fs::read(world.store.join(".prune.json")).unwrap(), noted);

    let pruned = world.act("prune", &[]).expect(0);
    assert_eq!(strings(&pruned.json["data"]["removed"]), all[..6]);
    assert_eq!(pruned.json["data"]["removed"], dry.json["data"]["removed"]);
    assert_eq!(pruned.json["data"]["timezone"], "UTC");
    assert_eq!(world.dates(), all[6..]);
    // Byte for byte, although all of it was linked to what went.
    assert_eq!(world.history(), history[6..]);
    assert_eq!(std::fs::read_link(world.store.join("latest")).unwrap().to_str(), Some(all[9].as_str()));
    assert_eq!(std::fs::read_dir(world.store.join(".pruned")).unwrap().count(), 0);

    assert_eq!(world.act("prune", &[]).expect(0).json["changed"], false);
    // Options win; but nothing young goes.
    let last = world.act("prune", &["--keep-daily=0", "--keep-last=1"]).expect(0);
    assert_eq!(strings(&last.json["data"]["removed"]), all[6..7], "{last:?}");
    world.publish();
    world.newest_is_source();
}

#[test]
fn no_rule_and_bad_rules() {
    let world = World::new();
    nights(&world, 6);
    let history = world.history();
    let none = world.act("prune", &[]).expect(78);
    assert!(told(&none).contains("keep_daily = "), "{none:?}");
    world.act("prune", &["--keep-daily=0"]).expect(78);
    world.profile("", "[store.retention]\nkeep_dayly = 4");
    assert!(told(&world.act("prune", &[]).expect(78)).contains("keep_daily"));
    for bad in ["keep_within = \"5m\"", "min_age = \"-1d\"", "timezone = \"Middle/Earth\"", "keep_last = -1"]
    {
        world.profile("", &format!("[store.retention]\n{bad}"));
        world.act("prune", &[]).expect(78);
    }
    // Rules of another store are not for this one.
    world.profile("", "[store.retention]\nkeep_last = 1\nmin_age = \"0d\"");
    let other = world.dir.join("other");
    ok("cp", &["-a", world.store.to_str().unwrap(), other.to_str().unwrap()]);
    world.act("prune", &["--store", other.to_str().unwrap()]).expect(78);
    assert_eq!(dates(&other).len(), 6);
    assert_eq!(world.history(), history);
}

#[test]
fn one_date_by_hand() {
    let world = World::new();
    nights(&world, 4);
    let all = world.dates();
    world.act("prune", &["--date", &all[0]]).expect(2);
    assert_eq!(world.dates(), all);
    world.act("prune", &["--date", &all[0], "--yes"]).expect(0);
    // The newest, and the newest sealed one.
    for good in &all[2..] {
        assert!(told(&world.act("prune", &["--date", good, "--yes"]).expect(78)).contains("last good"));
    }
    world.act("prune", &["--date", "2020-01-01T00-00-00Z", "--yes"]).expect(78);
    // A damaged one is touched by no rule, only by hand.
    std::fs::remove_file(world.store.join(&all[1]).join(".meta/snapshot.json")).unwrap();
    let ruled = world.act("prune", &["--keep-last=1", "--min-age=0d"]).expect(0);
    assert_eq!(warnings(&ruled), ["damaged-snapshot"]);
    assert_eq!(world.dates(), all[1..]);
    world.act("prune", &["--date", &all[1], "--yes"]).expect(0);
    assert_eq!(world.dates(), all[2..]);
}

#[test]
fn what_is_in_use_stays() {
    let world = World::new();
    nights(&world, 7);
    let all = world.dates();
    let reader = File::open(world.store.join(&all[0]).join(".meta/lock")).unwrap();
    reader.lock_shared().unwrap();
    std::fs::create_dir(world.store.join(".pins")).unwrap();
    std::fs::write(world.store.join(".pins/offsite"), json!({"dates": [all[1], "gone"]}).to_string())
        .unwrap();
    let options = ["--keep-last=1", "--min-age=50h", "--keep", all[2].as_str()];
    let partly = world.act("prune", &options).expect(3);
    assert_eq!(warnings(&partly), ["in-use"]);
    assert_eq!(partly.json["data"]["skipped"], json!([all[0]]));
    assert_eq!(partly.json["data"]["snapshots"][1]["reasons"], json!(["pinned by offsite"]));
    assert_eq!(world.dates(), [&all[..3], &all[4..]].concat());
    drop(reader);
    assert!(
        told(&world.act("prune", &["--date", &all[1], "--yes"]).expect(78)).contains("pinned by offsite")
    );
    world.act("prune", &options).expect(0);
    assert_eq!(world.dates(), [&all[1..3], &all[4..]].concat());
    // A pin that says nothing stops everything.
    std::fs::write(world.store.join(".pins/offsite"), "{").unwrap();
    assert!(told(&world.act("prune", &["--keep-last=1"]).expect(78)).contains(".pins/offsite"));
    assert_eq!(world.dates().len(), 5);
}

#[test]
fn while_a_backup_runs() {
    let world = World::new();
    nights(&world, 6);
    world.act("stage", &[]).expect(0);
    let all = world.dates();
    world.act("prune", &["--keep-last=1"]).expect(75);
    assert_eq!(world.dates(), all);
    world.act("abort", &[]).expect(0);
    world.act("prune", &["--keep-last=1"]).expect(0);
    assert!(world.dates().len() < all.len());
}

#[test]
fn a_clock_that_jumped_removes_nothing() {
    let world = World::new();
    nights(&world, 6);
    let all = world.dates();
    let prune = || world.act("prune", &["--keep-last=1", "--min-age=0d"]);
    let rename =
        |from: &str, to: &str| std::fs::rename(world.store.join(from), world.store.join(to)).unwrap();
    // One a little ahead: somebody has just set the clock.
    let soon = (Timestamp::now() + SignedDuration::from_mins(5)).strftime(FORMAT).to_string();
    rename(&all[5], &soon);
    assert!(told(&prune().expect(69)).contains("it is only"));
    rename(&soon, &all[5]);
    // All of them: it is the clock that is wrong.
    let to_come: Vec<String> = (1..=6).map(|n| ago(-24 * n)).collect();
    all.iter().zip(&to_come).for_each(|(date, to_come)| rename(date, to_come));
    assert!(told(&prune().expect(69)).contains("are of the future"));
    all.iter().zip(&to_come).for_each(|(date, to_come)| rename(to_come, date));
    // All of it moved back by nine days: as if the clock were nine days ahead.
    for (n, date) in all.iter().enumerate() {
        rename(date, &ago(20 + 24 * (14 - i64::try_from(n).unwrap())));
    }
    assert!(told(&prune().expect(69)).contains("more than 7d ago"));
    // With the night after that, too.
    copy(&world.store, &ago(2), "sealed");
    assert!(told(&prune().expect(69)).contains("the clock jumped"));
    assert_eq!(world.dates().len(), 7);
    // A person who knows better.
    world.act("prune", &["--keep-last=3", "--max-gap=30d", "--min-age=0d"]).expect(0);
    assert_eq!(world.dates().len(), 3);
    // The clock went back: younger than what it said before.
    let state = json!({"believed_at": (Timestamp::now() + SignedDuration::from_hours(1)).to_string()});
    std::fs::write(world.store.join(".prune.json"), state.to_string()).unwrap();
    assert!(told(&prune().expect(69)).contains("before"));
    assert_eq!(world.dates().len(), 3);
}

#[test]
fn killed_at_any_moment_a_date_is_whole_or_gone() {
    let world = World::new();
    for n in 0..4000 {
        world.file(&format!("d{}/f{n}", n % 40), "x");
    }
    let first = world.publish();
    let newest = ago(20);
    std::fs::rename(first, world.store.join(&newest)).unwrap();
    let mut completed = 0;
    for round in 0..8u64 {
        for n in 1..=3 {
            let date = ago(20 + 24 * n);
            if !world.store.join(&date).exists() {
                copy(&world.store, &date, "crash-consistent");
            }
        }
        let history = world.history();
        let options = ["--keep-last=1", "--min-age=0d"];
        let mut command = world.command("prune", &options);
        let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        match round {
            // As soon as the first one is away, or a little later each time.
            0 => until("it removes", || {
                std::fs::read_dir(world.store.join(".pruned")).is_ok_and(|d| d.count() > 0)
            }),
            _ => std::thread::sleep(Duration::from_millis(4 + 14 * round)),
        }
        kill(run.id(), "-KILL");
        run.wait().unwrap();
        for (date, then) in &history {
            if world.store.join(date).exists() {
                picture(&world.store.join(date)).same_as(then);
            }
        }
        let next = world.act("prune", &options).expect(0);
        completed += next.json["data"]["completed"].as_array().unwrap().len();
        assert_eq!(world.dates(), [newest.as_str()]);
        assert_eq!(std::fs::read_dir(world.store.join(".pruned")).unwrap().count(), 0);
    }
    assert!(completed > 0, "no blow fell while something was being removed");
    world.newest_is_source();
}

#[test]
fn through_ssh_the_rules_are_the_stores_and_so_is_the_limit() {
    let remote = Remote::new();
    let world = &remote.world;
    nine_nights(&remote);
    // A flood of one day, by somebody who would like to see the old ones go.
    for minute in 0..9 {
        let date = (Timestamp::now() - SignedDuration::from_mins(30 + minute)).strftime(FORMAT).to_string();
        copy(&remote.store, &date, "sealed");
    }
    ok("chown", &["-Rh", &remote.account.name, remote.store.to_str().unwrap()]);
    rules_there(&remote, "", "");
    assert!(told(&world.act("prune", &[]).expect(78)).contains("[store.retention]"));
    assert_eq!(world.act("prune", &["--keep-last=1"]).code, 2);
    let rules = "keep_last = 4\nmin_age = \"0d\"\nmax_removals_per_day = 2\ntimezone = \"UTC\"";
    let profile = rules_there(&remote, "", rules);
    let all = dates(&remote.store);
    let pruned = world.act("prune", &[]).expect(0);
    assert_eq!(strings(&pruned.json["data"]["removed"]), all[..2]);
    assert_eq!(warnings(&pruned), ["removal-limit"]);
    // Not one more today; and those of the days before the flood count.
    let again = world.act("prune", &[]).expect(0);
    assert_eq!(again.json["changed"], false);
    let postponed = strings(&again.json["data"]["postponed"]);
    assert_eq!(again.json["data"]["postponed"], pruned.json["data"]["postponed"]);
    // Of nine nights before the flood two are gone, and three or four (by the hour of this test) are kept.
    assert!((3..=4).contains(&postponed.len()), "{again:?}");
    // Root on that machine may do all of it at once, with the account's rights.
    let mut command = std::process::Command::new(testkit::bin("link-sync"));
    command.arg("prune").arg("--config").arg(&profile);
    ok("chown", &["-R", "root:root", profile.parent().unwrap().to_str().unwrap()]);
    command.arg("--state-dir").arg(world.dir.join("s2"));
    testkit::run(&mut command).expect(0);
    assert_eq!(dates(&remote.store), all[all.len() - 4..]);
    let state = std::fs::metadata(remote.store.join(".prune.json")).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&state),
        std::os::unix::fs::MetadataExt::uid(&remote.store.metadata().unwrap())
    );
}

#[test]
fn the_list_tells_ages_what_each_holds_alone_and_the_last_proofs() {
    let world = World::new();
    nights(&world, 3);
    let all = world.dates();
    let big = world.store.join(&all[1]).join("docs/big");
    std::fs::write(&big, vec![7; 3 << 20]).unwrap();
    std::fs::hard_link(&big, world.store.join(&all[1]).join("docs/d1/big")).unwrap();
    let listed = world.act("list", &["--sizes", "--max-age=24h"]).expect(0);
    let data = &listed.json["data"];
    let alone = |n: usize| data["snapshots"][n]["alone_bytes"].as_u64().unwrap();
    // Two names of one snapshot are its own; what it shares is not.
    assert!((3 << 20..4 << 20).contains(&alone(1)), "{data:#}");
    assert!(alone(0) < 200_000 && alone(2) < 200_000, "{data:#}");
    let hours = |n: usize| data["snapshots"][n]["age_seconds"].as_u64().unwrap() / 3600;
    assert_eq!((hours(0), hours(1), hours(2)), (68, 44, 20));
    assert_eq!(data["newest_age_seconds"], data["snapshots"][2]["age_seconds"]);
    assert!(data["last_verify"].is_null() && data["last_drill"].is_null());
    // These dates were made by copying, so they hold more than their lists say.
    world.act("verify", &[]).expect(1);
    std::fs::write(world.state.join("drill.json"), r#"{"at":"2026-11-21T04:00:00Z","ok":false}"#).unwrap();
    let late = world.act("list", &["--max-age=19h"]).expect(1);
    assert!(told(&late).contains("older than 19h"));
    let verify = &late.json["data"]["last_verify"];
    assert_eq!(verify["ok"], false);
    assert!(verify["at"].is_string() && verify["findings"].as_u64().unwrap() > 0, "{verify}");
    assert_eq!(late.json["data"]["last_drill"]["ok"], false);
    assert!(late.json["data"]["snapshots"][0]["alone_bytes"].is_null());
    assert!(late.stderr.contains("IT FAILED"), "{}", late.stderr);
    std::fs::write(world.store.join(".verified"), "no JSON").unwrap();
    assert!(world.act("list", &[]).expect(0).json["data"]["last_verify"].is_null());
}

#[test]
fn a_date_that_is_still_to_come_counts_for_nothing_and_blocks_nothing() {
    // Given six nights, and two dates of a clock that was years ahead for a night, or of somebody who meant harm,
    let world = World::new();
    nights(&world, 6);
    let all = world.dates();
    for date in ["2098-01-01T03-30-00Z", "2099-01-01T03-30-00Z"] {
        copy(&world.store, date, "sealed");
    }
    let odd = ["2098-01-01T03-30-00Z", "2099-01-01T03-30-00Z"];
    // when the rules are followed,
    let pruned = world.act("prune", &["--keep-last=3", "--min-age=0d"]).expect(0);
    // then they displace none of the nights, are told, and are not touched.
    assert_eq!(strings(&pruned.json["data"]["removed"]), all[..3], "{pruned:?}");
    assert_eq!(warnings(&pruned), ["odd-snapshot", "odd-snapshot"]);
    assert!(pruned.json["warnings"][0]["message"].as_str().unwrap().contains("--yes"), "{pruned:?}");
    assert_eq!(world.dates(), [&all[3..], &odd.map(str::to_owned)[..]].concat());
    // A backup is made on top of the last true night, becomes the newest, and is what `latest` means.
    let ran = world.snapshot(&[]).expect(0);
    assert_eq!(ran.json["data"]["base"], all[5].as_str());
    assert_eq!(warnings(&ran).iter().filter(|w| **w == "odd-snapshot").count(), 2, "{ran:?}");
    let made = ran.json["data"]["date"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::read_link(world.store.join("latest")).unwrap().to_str(), Some(made.as_str()));
    let to = world.dir.join("restored");
    let back = world.act("restore", &["--to", to.to_str().unwrap()]).expect(0);
    assert_eq!(back.json["data"]["date"], made.as_str(), "{back:?}");
    // They are no proof of a backup, and a verification tells them, too.
    let listed = world.act("list", &["--max-age=1h"]).expect(0);
    assert_eq!(listed.json["data"]["odd"], json!(odd));
    let each = listed.json["data"]["snapshots"].as_array().unwrap();
    assert_eq!(each.iter().filter(|s| s["odd"].is_string()).count(), 2, "{listed:?}");
    assert_eq!(warnings(&listed), ["odd-snapshot", "odd-snapshot"]);
    assert_eq!(listed.stderr.matches("sealed, but odd: ").count(), 2, "{}", listed.stderr);
    assert!(warnings(&world.act("verify", &["--date", &made]).expect(0)).contains(&"odd-snapshot"));
    // Whoever wants them gone says so.
    for date in odd {
        let gone = world.act("prune", &["--date", date, "--yes"]).expect(0);
        assert!(gone.stderr.contains("link-sync: 1 removed"), "{}", gone.stderr);
    }
    assert!(warnings(&world.act("list", &[]).expect(0)).is_empty());
}

#[test]
fn what_has_no_checksums_displaces_nothing_that_has() {
    let world = World::new();
    nights(&world, 6);
    let all = world.dates();
    // Forged ones, each newer than a night, as if it were sealed; and a true one of the time before there were checksums.
    let bare = |date: &str| {
        copy(&world.store, date, "sealed");
        let file = world.store.join(date).join(".meta/snapshot.json");
        let mut meta: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        meta["manifest"] = Value::Null;
        std::fs::write(&file, meta.to_string()).unwrap();
    };
    let forged: Vec<String> = (0..6).map(|n| ago(19 + 24 * n)).collect();
    forged.iter().for_each(|date| bare(date));
    let old = ago(20 + 24 * 9);
    bare(&old);
    let pruned = world.act("prune", &["--keep-last=7", "--min-age=0d", "--max-gap=30d"]).expect(0);
    assert_eq!(pruned.json["data"]["removed"], json!([]), "{pruned:?}");
    assert_eq!(warnings(&pruned).len(), 6, "{pruned:?}");
    let pruned = world.act("prune", &["--keep-last=6", "--min-age=0d", "--max-gap=30d"]).expect(0);
    assert_eq!(strings(&pruned.json["data"]["removed"]), [old.as_str()], "{pruned:?}");
    assert!(all.iter().all(|date| world.store.join(date).exists()));
}

#[test]
fn a_night_whose_clock_was_behind_is_not_old() {
    // Given nights, and a backup that the store's clock dated nine days back, though its source knew better.
    let world = World::new();
    nights(&world, 12);
    let behind = ago(20 + 24 * 9 - 1);
    copy(&world.store, &behind, "sealed");
    let file = world.store.join(&behind).join(".meta/snapshot.json");
    let mut meta: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    meta["started_at"] = json!(taken(&ago(19)));
    std::fs::write(&file, meta.to_string()).unwrap();
    // When the clock is right again, then no rule removes it as if it were that old.
    let pruned = world.act("prune", &["--keep-last=5"]).expect(0);
    assert_eq!(strings(&pruned.json["data"]["removed"]).len(), 7, "{pruned:?}");
    assert!(world.store.join(&behind).exists());
    assert!(
        format!("{:#}", pruned.json["data"]["snapshots"]).contains("by the source's clock"),
        "{pruned:?}"
    );
}
