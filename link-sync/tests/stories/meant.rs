//! Dates as people give them.

use std::path::Path;

use serde_json::Value;

use crate::far::Remote;
use crate::prune::nights;
use crate::world::{World, private};

/// The first characters of a date.
fn day(date: &str) -> &str {
    &date[..10]
}

#[test]
fn a_beginning_means_the_only_date_that_fits_wherever_a_date_is_asked() {
    let world = World::new();
    nights(&world, 5);
    let dates = world.dates();
    let oldest = dates[0].as_str();
    let said = |value: &Value| value.as_str().unwrap().to_owned();
    let back = world.dir.join("back");
    let restored = world.act("restore", &["--date", day(oldest), "--to", back.to_str().unwrap()]).expect(0);
    assert_eq!(said(&restored.json["data"]["date"]), oldest);
    assert!(restored.stderr.contains(&format!("'{}' is {oldest}", day(oldest))), "{}", restored.stderr);
    let listed = world.act("list", &["--date", day(oldest)]).expect(0);
    assert_eq!(said(&listed.json["data"]["date"]), oldest);
    assert_eq!(listed.json["data"]["snapshots"].as_array().unwrap().len(), 1);
    let differ = world.act("diff", &["--from", day(oldest), "--to", "latest"]).expect(0);
    assert_eq!(
        (said(&differ.json["data"]["from"]), said(&differ.json["data"]["to"])),
        (oldest.into(), dates[4].clone())
    );
    let verified = world.act("verify", &["--date", day(oldest)]);
    assert_eq!(said(&verified.json["data"]["dates"][0]), oldest);
    let other = world.dir.join("other");
    private(&other);
    let copied = world.act("copy", &["--date", day(oldest), "--to", other.to_str().unwrap()]).expect(0);
    assert_eq!(said(&copied.json["data"]["date"]), oldest);
}

#[test]
fn what_is_unknown_or_several_is_refused_and_named_and_nothing_is_begun() {
    let world = World::new();
    nights(&world, 12);
    let dates = world.dates();
    let to = world.dir.join("back");
    for (wanted, says) in
        [("2026", ""), ("20", ""), ("1999-01-01", "the newest are"), ("nonsense", "the newest are")]
    {
        let ran = world.act("restore", &["--date", wanted, "--to", to.to_str().unwrap()]).expect(78);
        let hint = ran.json["error"]["hint"].as_str().unwrap();
        assert!(hint.contains(says) && hint.contains(dates[11].as_str()), "{wanted}: {ran:?}");
        assert!(!to.exists(), "{wanted}");
    }
}

#[test]
fn nothing_is_removed_or_kept_by_a_date_that_may_mean_another_one_tomorrow() {
    let world = World::new();
    nights(&world, 4);
    let before = world.dates();
    for wanted in ["latest", "today", "yesterday", day(&before[0])] {
        let ran = world.act("prune", &["--date", wanted, "--yes"]);
        assert_eq!(ran.json["data"]["removed"].as_array().map_or(0, Vec::len), 0, "{wanted}: {ran:?}");
        assert_ne!(ran.code, 0, "{wanted}: {ran:?}");
        assert_eq!(world.dates(), before, "{wanted}");
        let keep = world.act("prune", &["--keep-last", "1", "--min-age", "0d", "--keep", wanted]);
        assert_ne!(keep.code, 0, "{wanted}: {keep:?}");
        assert_eq!(world.dates(), before, "{wanted}");
    }
    world.act("prune", &["--date", &before[0], "--yes"]).expect(0);
    assert_eq!(world.dates(), before[1..]);
}

#[test]
fn the_far_end_is_asked_for_whole_dates_only() {
    let remote = Remote::new();
    remote.world.snapshot(&[]).expect(0);
    let date = crate::world::dates(&remote.store).pop().unwrap();
    // What it was asked goes through a program that notes it.
    let noted = remote.account.folder("noted").join("asked");
    let program = remote.account.home.join("noting");
    let real = Path::new(&remote.program);
    testkit::script(
        &program,
        &format!("#!/bin/sh\ntee -a '{}' | '{}' \"$@\"\n", noted.display(), real.display()),
    );
    remote.profile(program.to_str().unwrap(), &remote.sshd.known_hosts.display().to_string());
    let to = remote.world.dir.join("back");
    for wanted in ["latest", day(&date), "today"] {
        let ran = remote.world.act("restore", &["--date", wanted, "--to", to.to_str().unwrap(), "--yes"]);
        // At midnight it is of yesterday.
        if wanted != "today" {
            assert_eq!(ran.expect(0).json["data"]["date"], date.as_str());
        }
    }
    let asked = String::from_utf8_lossy(&std::fs::read(&noted).unwrap()).into_owned();
    assert!(asked.contains(&format!("\"date\":\"{date}\"")), "{asked:?}");
    assert!(!asked.contains("\"latest\"") && !asked.contains("\"today\""), "{asked:?}");
}
