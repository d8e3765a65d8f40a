//! What is not whole in the container is told, and not forgotten; after a repair everything is compared.

use serde_json::json;
use testkit::Ran;

use crate::world::{DATES, World, steps};

const NEXT: &str = "2026-11-23T03-30-00Z";
const LAST: &str = "2026-11-25T03-30-00Z";
const MORE: &str = "2026-11-24T03-30-00Z";

/// Two dates pushed, a third waits.
fn two_pushed() -> World {
    let world = World::new();
    world.push_ok();
    world.snapshot(DATES[1]);
    world.push_ok();
    world.snapshot(DATES[2]);
    world
}

/// What `link-sync verify` finds: of the oldest date one path is missing.
fn finds(world: &World) {
    let text = format!(
        r#"object 1 false '{{"dates":["{0}","{1}"],"sample_percent":0,"findings_total":1,"weaker_dates":[],"findings":[{{"kind":"missing","paths":["docs/a"],"dates":["{0}"]}}]}}'; exit 1"#,
        DATES[0], DATES[1]
    );
    world.plan("link-sync-verify", &text);
}

#[track_caller]
fn damaged(ran: &Ran) -> String {
    let all = ran.json["warnings"].as_array().unwrap();
    let told = all.iter().find(|w| w["kind"] == "container-damaged");
    told.unwrap_or_else(|| panic!("{:#}", ran.json))["message"].as_str().unwrap().to_owned()
}

#[test]
fn after_a_repair_all_names_are_compared_before_the_push_is_confirmed() {
    let world = two_pushed();
    world.write("fsck", "repaired");
    world.write("checked", "today");
    let ran = world.push().expect(0);
    assert!(steps(&ran).windows(2).any(|s| s == ["copy", "compare"]), "{:?}", steps(&ran));
    let log = world.read("log");
    let line = log.lines().rfind(|l| l.starts_with("link-sync verify")).unwrap();
    assert!(
        line.ends_with("--date all --sample 0.000001% --limit 10000") && line.contains("--against"),
        "{line}"
    );
    // Nothing was wrong: once is enough.
    world.write("fsck", "not-needed");
    world.snapshot(MORE);
    assert!(!steps(&world.push().expect(0)).contains(&"compare"));
}

#[test]
fn a_check_that_somebody_else_made_counts_as_a_repair() {
    let world = two_pushed();
    world.write("checked", "by hand, today");
    finds(&world);
    let ran = world.push().expect(3);
    assert!(damaged(&ran).contains(&format!("{}: 1 paths are missing", DATES[0])), "{}", damaged(&ran));
    assert_eq!(world.record()["date"], DATES[2]);
}

/// Another machine wrote to it, or somebody mounted it, and a person said that it is to be taken: by this push, by one that was
/// killed then, or by hand.
#[test]
fn what_was_accepted_is_compared_once() {
    let world = two_pushed();
    world.write("accepted", "\"2026-11-22T05:00:00Z\"");
    finds(&world);
    world.plan("link-sync-copy", "kill -KILL $PPID; kill -KILL $$\n");
    assert!(!world.command("push", &[]).output().unwrap().status.success());
    world.no_plan("link-sync-copy");
    let ran = world.push().expect(3);
    assert!(steps(&ran).contains(&"compare"), "{:?}", steps(&ran));
    damaged(&ran);
    world.snapshot(MORE);
    assert!(!steps(&world.push().expect(3)).contains(&"compare"));
    world.write("accepted", "\"2026-11-24T05:00:00Z\"");
    world.snapshot(LAST);
    assert!(steps(&world.push().expect(3)).contains(&"compare"));
}

#[test]
fn what_was_found_is_told_at_each_push_until_a_verification_finds_nothing() {
    let world = two_pushed();
    world.write("fsck", "repaired");
    finds(&world);
    world.push().expect(3);
    world.write("fsck", "not-needed");
    // Nothing new, and something new.
    damaged(&world.push().expect(3));
    world.snapshot(MORE);
    damaged(&world.push().expect(3));
    assert!(world.run("status", &[]).expect(0).json["data"]["damaged"][DATES[0]].is_string());
    // Neither a verification that finds it, nor one of another date, nor one that S2 has no checksums for.
    world.run("verify", &[]).expect(1);
    world.no_plan("link-sync-verify");
    world.run("verify", &["--date", MORE]).expect(0);
    let weaker = format!(
        r#"object 0 false '{{"dates":["d"],"weaker_dates":["{}"],"findings_total":0}}'; exit 0"#,
        DATES[0]
    );
    world.plan("link-sync-verify", &weaker);
    world.run("verify", &[]).expect(0);
    damaged(&world.push().expect(3));
    world.no_plan("link-sync-verify");
    world.run("verify", &[]).expect(0);
    assert_eq!(world.push().expect(0).json["warnings"], json!([]));
}

#[test]
fn a_comparison_that_did_not_end_is_made_up_for_by_the_next_push() {
    let world = two_pushed();
    world.write("fsck", "repaired");
    world.plan("link-sync-verify", "object 69 false '{}'; exit 69\n");
    world.push().expect(69);
    assert_ne!(world.record()["date"], DATES[2]);
    assert!(world.is_down());
    // The repair itself is not told again.
    world.write("fsck", "not-needed");
    finds(&world);
    damaged(&world.push().expect(3));

    // Nor is it forgotten when it came to no copying: the room on S3 cannot be told, say.
    world.no_plan("link-sync-verify");
    world.run("verify", &[]).expect(0);
    world.snapshot(MORE);
    world.write("fsck", "repaired");
    std::fs::remove_file(world.path("run/s3/container.img")).unwrap();
    world.push().expect(1);
    world.write("run/s3/container.img", "image");
    world.write("fsck", "not-needed");
    assert!(world.record()["compare"].is_string());
    world.write_profile(
        "[offsite.retention]\nkeep_last = 2\n[offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/d\"\n",
        "container.img",
    );
    // And nothing is removed meanwhile.
    let refused = world.run("prune", &[]).expect(69);
    assert!(refused.json["error"]["message"].as_str().unwrap().contains("before the names"));
    assert_eq!(world.container().len(), 3);
    assert!(steps(&world.push().expect(0)).contains(&"compare"));
}

#[test]
fn what_the_copying_noticed_is_kept_too_and_goes_with_the_date() {
    let world = two_pushed();
    // Cut off right after the copy that fills the holes was published: no later one finds them.
    let lacking = format!(
        "printf '%s' '{{\"to\":\"{}/run/container/snapshots\",\"base_date\":\"{}\",\"date\":\"{}\",\"lacking_paths\":2}}' >\"$w/state/copy-lacks.json\"; \
         mv \"$to/.partial\" \"$to/$date\"; kill -KILL $PPID; kill -KILL $$\n",
        world.path("").display().to_string().trim_end_matches('/'),
        DATES[1],
        DATES[2]
    );
    world.plan("copying", &lacking);
    assert!(!world.command("push", &[]).output().unwrap().status.success());
    std::fs::remove_file(world.path("plan/copying")).unwrap();
    assert!(damaged(&world.push().expect(3)).contains("2 paths were missing"));
    damaged(&world.push().expect(3));
    let unread = format!(
        "mv \"$to/.partial\" \"$to/$date\"; object 0 true '{{\"damaged_dates\":[\"{}\"]}}'; exit 0\n",
        DATES[0]
    );
    world.plan("copying", &unread);
    world.snapshot(NEXT);
    assert!(damaged(&world.push().expect(3)).contains("cannot be read"));
    std::fs::remove_file(world.path("plan/copying")).unwrap();
    // Rules that keep two: the damaged ones go, and what was said of them.
    world.write_profile(
        "[offsite.retention]\nkeep_last = 2\n[offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/d\"\n",
        "container.img",
    );
    world.snapshot(MORE);
    world.push().expect(3);
    assert_eq!(world.container(), [NEXT, MORE]);
    assert_eq!(world.push().expect(0).json["warnings"], json!([]));
}
