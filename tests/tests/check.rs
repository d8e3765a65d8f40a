//! `scripts/check`: what a night needs is looked at before it is needed, and each cure that it prints cures.

use serde_json::Value;
use testkit::Ran;
use testkit::machine::{Instance, Machine};

/// A sample Nextcloud, its database, and a machine with a profile for it.
struct World {
    machine: Machine,
    instance: Instance,
}

impl World {
    fn new(database: &str, store: &str) -> World {
        let world = World { instance: Instance::new(database), machine: Machine::start() };
        world.profile(&format!(
            "[nextcloud]\nroot = \"{0}\"\n[snapshot]\nstore = \"{store}\"\n[store]\npath = \"{store}\"\n\
             [[snapshot.source]]\nname = \"data\"\npath = \"{0}/data\"\n[[snapshot.source]]\nname = \"html\"\npath = \"{0}\"\n\
             [[snapshot.source]]\nname = \"database\"\n",
            world.instance.root.display()
        ));
        world
    }
    fn profile(&self, text: &str) {
        let file = "cat >/etc/nc-backup/home.toml <<'END'\n";
        self.machine.sh(&format!("{file}{text}\nEND\nchmod 0600 /etc/nc-backup/home.toml"));
    }
    fn check(&self) -> Ran {
        testkit::run(self.machine.script("check").arg("home"))
    }
}

fn findings(ran: &Ran) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = ran.json["data"]["findings"].as_array().unwrap();
    all.iter().map(|f| (text(&f["level"]), text(&f["kind"]))).collect()
}

fn has(ran: &Ran, level: &str, kind: &str) -> bool {
    findings(ran).contains(&(level.to_owned(), kind.to_owned()))
}

#[test]
fn the_cures_that_it_prints_cure_until_a_backup_succeeds() {
    // Given a profile for a store that is not there, with nothing that starts a backup, and a role that lacks a right,
    let mut world = World::new("cures", "/srv/cures/home");
    world.instance.cluster.psql("cures", "ALTER TABLE oc_share OWNER TO postgres;");
    let first = world.check().expect(1);
    for kind in ["no-store", "not-scheduled", "no-read-right", "no-stats-right"] {
        assert!(has(&first, "error", kind), "{kind}: {:?}", findings(&first));
    }
    assert!(has(&first, "warning", "no-retention"));
    // a night says so before it sends anything, and before maintenance;
    let night = testkit::run(world.machine.script("backup-local").arg("home")).expect(77);
    assert_eq!(night.json["data"]["failed_step"], "look-database");
    let steps = night.json["data"]["steps"].as_array().unwrap();
    assert!(!steps.iter().any(|s| ["stage", "maintenance"].contains(&s["step"].as_str().unwrap())));
    // what is said to people has every message, and each cure alone on its line.
    for finding in first.json["data"]["findings"].as_array().unwrap() {
        assert!(first.stderr.contains(finding["message"].as_str().unwrap()), "{}", first.stderr);
        if let Some(cure) = finding["cure"].as_str() {
            assert!(first.stderr.contains(&format!("\n    {cure}\n")), "{}", first.stderr);
        }
    }
    // When each cure is pasted (SQL by the test's superuser: its server is another one than the machine's own),
    world.machine.cron();
    for finding in first.json["data"]["findings"].as_array().unwrap() {
        let cure = finding["cure"].as_str().unwrap_or("true");
        match finding["kind"].as_str().unwrap() {
            "no-read-right" | "no-stats-right" => {
                let sql = cure.split(" -c '").nth(1).unwrap().trim_end_matches('\'');
                world.instance.cluster.psql("cures", &format!("{sql};"));
            }
            "drill-role" => {}
            _ => drop(world.machine.sh(cure)),
        }
    }
    // then nothing is wrong any more, the cures that were pasted are not asked for again, and a backup succeeds.
    let second = world.check();
    let rest: Vec<String> = findings(&second).into_iter().map(|f| f.1).collect();
    assert!(
        rest.iter().all(|kind| ["drill-role", "no-snapshot-yet", "not-scheduled"].contains(&kind.as_str())),
        "{rest:?}"
    );
    assert!(!findings(&second).iter().any(|f| f.0 == "error"), "{}", second.stderr);
    assert_eq!(second.code, 3);
    testkit::run(world.machine.script("backup-local").arg("home")).expect(0);
    assert!(!has(&world.check(), "warning", "no-snapshot-yet"));
    world.machine.stop_servers();
    // With cron gone, the line in its table starts nothing.
    assert!(has(&world.check().expect(1), "error", "cron-not-running"));
}

#[test]
fn it_changes_nothing_and_a_wrong_profile_or_a_wrong_caller_is_told() {
    let world = World::new("nothing", "/srv/nothing/home");
    // What it does before it was ever run in this world leaves no store, no dump, no key.
    world.check().expect(1);
    assert!(
        world.machine.holds(
            "test ! -e /srv/nothing && test ! -e /var/lib/nc-backup/home/dumps && test ! -e /root/.ssh"
        )
    );
    assert!(
        !world.instance.root.join("config").read_dir().unwrap().any(|f| f
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("zz-nc-backup"))
    );
    world.profile("[snapshot]\nstoer = \"/b\"");
    let wrong = world.check().expect(78);
    assert!(
        wrong.json["error"]["message"].as_str().unwrap().contains("home.toml, line 2"),
        "{:#}",
        wrong.json
    );
    world.profile("[drill]\nuser = \"root\"");
    assert!(has(&world.check().expect(1), "error", "empty"));
    let mut other = world.machine.command("setpriv");
    other.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "/usr/lib/nc-backup/check",
        "home",
    ]);
    testkit::run(&mut other).expect(77);
}

#[test]
fn a_mount_that_is_missing_a_nextcloud_that_is_not_there_and_names_from_elsewhere_are_told() {
    let world = World::new("odd", "/srv/odd/home");
    world.profile(
        "[nextcloud]\nroot = \"/srv/gone \\u001b[31m'$(touch /tmp/ncb-check-was-here)\"\n[snapshot]\nstore = \"/srv/odd/home\"\n\
         [store]\npath = \"/srv/odd/home\"\nmount = \"/srv/odd\"\n[[snapshot.source]]\nname = \"database\"",
    );
    world.machine.sh("install -d -m 0700 /srv/odd/home");
    let ran = world.check().expect(1);
    assert!(has(&ran, "error", "nextcloud") && has(&ran, "error", "store"), "{:?}", findings(&ran));
    let store =
        ran.json["data"]["findings"].as_array().unwrap().iter().find(|f| f["kind"] == "store").unwrap();
    assert!(store["message"].as_str().unwrap().contains("/srv/odd is not a mount point"), "{store}");
    // Nothing foreign is a command to the terminal, or to a shell.
    assert!(!ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
    assert!(!world.machine.holds("test -e /tmp/ncb-check-was-here"));
}
