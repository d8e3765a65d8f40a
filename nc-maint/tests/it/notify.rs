//! Nextcloud's own notifications, through occ.

use std::os::unix::fs::PermissionsExt as _;

use crate::world::World;

fn shown(world: &World) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(world.data().join("notifications")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn users_are_shown_what_is_told_and_what_is_too_long_is_cut() {
    let world = World::new();
    let long = "ö".repeat(3000);
    let subject = format!("--off {}", "ä".repeat(200));
    let words = ["--user=admin", "--user=alice", "--message", &long, &format!("--subject={subject}")];
    let ran = world.ask("notify", &words).expect(0);
    assert_eq!(ran.json["data"]["told"], serde_json::json!(["admin", "alice"]));
    let shown = shown(&world);
    assert_eq!(shown.len(), 2);
    assert_eq!((shown[0].0.as_str(), shown[1].0.as_str()), ("admin", "alice"));
    // It is no option of occ, whatever it looks like.
    assert!(subject.starts_with(&shown[0].1) && shown[0].1.len() == 254, "{}", shown[0].1);
    assert_eq!(shown[0].2.len(), 4000);
    assert!(!world.maintenance());
}

#[test]
fn one_who_is_not_there_keeps_it_from_no_other_and_fails() {
    let world = World::new();
    let words = ["--user=nobody-at-all", "--user=-q", "--user=alice", "--subject=it failed"];
    let ran = world.ask("notify", &words).expect(1);
    assert!(format!("{:#}", ran.json["error"]).contains("nobody-at-all"), "{:#}", ran.json);
    assert_eq!(shown(&world).len(), 1);
}

#[test]
fn in_maintenance_and_with_an_occ_that_does_nothing_it_is_not_shown_and_said() {
    let world = World::new();
    world.occ(&["maintenance:mode", "--on"]);
    let ran = world.ask("notify", &["--user=admin", "--subject=x"]).expect(1);
    assert!(format!("{:#}", ran.json["error"]).contains("notification"), "{:#}", ran.json);
    world.occ(&["maintenance:mode", "--off"]);
    // occ exits with 0 then.
    std::fs::set_permissions(world.config(), std::fs::Permissions::from_mode(0o440)).unwrap();
    world.ask("notify", &["--user=admin", "--subject=x"]).expect(77);
    assert!(shown(&world).is_empty());
}
