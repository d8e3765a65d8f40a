//! What runs at boot, after a crash or a power cut in the middle of a backup.

use std::process::Command;

use testkit::{bin, run, scripts};

use crate::world::World;

/// The values of a key in the unit.
fn values(unit: &str, key: &str) -> Vec<String> {
    unit.lines().filter_map(|l| Some(l.strip_prefix(key)?.strip_prefix('=')?.to_owned())).collect()
}

#[test]
fn at_boot_maintenance_ends_and_workers_go_on_wherever_the_state_is_and_without_postgresql() {
    let unit = std::fs::read_to_string(scripts().join("systemd/nc-backup-off@.service")).unwrap();
    let world = World::new();
    let resumed = world.path().join("resumed");
    let profile = world.path().join("home.toml");
    let text = format!(
        "state_dir = \"{}\"\n[nextcloud]\nroot = \"{}\"\nmethod = \"occ\"\n\
         [database]\npause = [[\"true\"]]\nresume = [[\"touch\", \"{}\"]]\n",
        world.state().display(),
        world.root().display(),
        resumed.display()
    );
    std::fs::write(&profile, text).unwrap();
    // Power went while a backup was in maintenance, with the workers paused; PostgreSQL is not up yet.
    run(Command::new(bin("nc-maint")).args(["on", "--config"]).arg(&profile)).expect(0);
    std::fs::write(world.state().join("jobs-paused"), "").unwrap();
    world.misbehave("fail = all");
    assert!(world.maintenance());

    // The unit asks for nothing but the profile.
    let conditions: Vec<&str> = unit.lines().filter(|l| l.starts_with("Condition")).collect();
    assert_eq!(conditions, ["ConditionPathExists=/etc/nc-backup/%i.toml"]);
    let commands = [values(&unit, "ExecStart"), values(&unit, "ExecStopPost")].concat();
    assert_eq!(commands.len(), 2);
    for line in commands {
        let mut words = line.split(' ');
        let tool = words.next().unwrap().strip_prefix("/usr/sbin/").unwrap();
        let words = words.filter(|w| *w != "%i");
        run(Command::new(bin(tool)).args(words).arg("--config").arg(&profile)).expect(0);
    }
    world.is_clean();
    assert!(resumed.exists() && !world.state().join("jobs-paused").exists());
}

#[test]
fn systemd_understands_the_unit() {
    let dir = testkit::scratch();
    let unit = dir.path().join("nc-backup-off@home.service");
    let text = std::fs::read_to_string(scripts().join("systemd/nc-backup-off@.service")).unwrap();
    std::fs::write(&unit, text.replace("/usr/sbin/", "/bin/true #")).unwrap();
    let out = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
