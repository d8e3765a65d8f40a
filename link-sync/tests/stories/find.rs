//! Where a file is, and where it changed.

use serde_json::Value;

use crate::world::World;

/// Dates and what happened there.
fn events(path: &Value) -> Vec<(&str, &str)> {
    let list = path["events"].as_array().unwrap();
    list.iter().map(|e| (e["date"].as_str().unwrap(), e["what"].as_str().unwrap())).collect()
}

fn night(world: &World) -> String {
    let date = world.publish();
    // Dates are whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1050));
    date.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_name_is_found_in_every_date_that_holds_it_and_its_changes_are_told() {
    let world = World::new();
    world.file("alice/report.odt", "one");
    world.file("bob/deep/er/report.odt", "never touched");
    let first = night(&world);
    let second = night(&world);
    // Same size: only its inode tells.
    world.file("alice/report.odt", "two");
    let third = night(&world);
    std::fs::remove_file(world.source.join("alice/report.odt")).unwrap();
    world.file("bob/report.txt", "another name");
    let fourth = night(&world);

    let found = world.act("find", &["--name", "report*.odt"]).expect(0).json["data"].clone();
    assert_eq!(found["found"], 2);
    assert_eq!(found["dates"].as_array().unwrap().len(), 4);
    let alice = &found["paths"][0];
    assert_eq!(alice["path"], "docs/alice/report.odt");
    assert_eq!(events(alice), [(first.as_str(), "appeared"), (&third, "changed"), (&fourth, "gone")]);
    assert_eq!((&alice["dates"], &alice["in_newest"]), (&3.into(), &false.into()), "not {second}");
    let bob = &found["paths"][1];
    assert_eq!((events(bob), &bob["dates"]), (vec![(first.as_str(), "appeared")], &4.into()));

    // Anchored, limited, none, and nonsense.
    let anchored = world.act("find", &["--name", "/alice/*"]).expect(0);
    assert_eq!(anchored.json["data"]["found"], 1);
    let limited = world.act("find", &["--name", "report.*", "--limit", "1"]).expect(0);
    assert_eq!(limited.json["data"]["found"], 3);
    assert_eq!(limited.json["data"]["truncated"], true);
    assert!(world.act("find", &["--name", "nothing"]).expect(0).stderr.contains("no snapshot holds it"));
    world.act("find", &["--name", "a[b"]).expect(78);
    world.act("find", &["--name", "x", "--user", "../bob"]).expect(2);
}

#[test]
fn a_name_that_is_found_does_nothing_to_a_terminal() {
    let world = World::new();
    world.file("bob/a\u{1b}]0;owned\u{7}\nlink-sync: all is well\u{202e}", "x");
    night(&world);
    let found = world.act("find", &["--name", "a*"]).expect(0);
    let shown = "$'bob/a\\033]0;owned\\007\\012link-sync: all is well\\342\\200\\256' --source docs\n";
    assert!(found.stderr.contains(shown), "{:?}", found.stderr);
    let exact = "docs/bob/a\u{1b}]0;owned\u{7}\nlink-sync: all is well\u{202e}";
    assert_eq!(found.json["data"]["paths"][0]["path"], exact);
}
