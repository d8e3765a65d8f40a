//! A whole night: S1 to S2 to S3 over three hosts, twice, and every file compared with S1's.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::guest::{Options, run_me};
use testkit::hosts::Setting;
use testkit::postgres::Cluster;
use testkit::{Ran, bin, run, scripts};

use crate::world::{MARKER, World, holds, ok, same};

struct Night {
    world: World,
    cluster: std::sync::Arc<Cluster>,
}

impl Night {
    fn new() -> Night {
        let world = World::new(Setting { up_kbit: 40_000, down_kbit: 40_000, ..Setting::default() });
        let night = Night { world, cluster: Cluster::shared() };
        assert!(night.sample("sample-instance").args(["--files", "400"]).status().unwrap().success());
        std::fs::write(night.root().join("data/marker.txt"), MARKER.repeat(100)).unwrap();
        // The folder of the tools, for the scripts.
        std::fs::create_dir(night.world.path("bin")).unwrap();
        for tool in ["nc-maint", "pg-snap", "link-sync", "sshfs-mount", "luks-mount", "offsite-push"] {
            std::os::unix::fs::symlink(bin(tool), night.world.path("bin").join(tool)).unwrap();
        }
        let s2 = &night.world.hosts.s2;
        let text = format!(
            "state_dir = \"{dir}/s1-state\"\n[nextcloud]\nroot = \"{root}\"\n\
             [snapshot]\nstore = \"{}@{}:{store}\"\n[snapshot.ssh]\nport = {}\nidentity = \"{}\"\nknown_hosts = \"{}\"\nremote_program = \"{}\"\n\
             [[snapshot.source]]\nname = \"data\"\npath = \"{root}/data\"\n\
             [[snapshot.source]]\nname = \"html\"\npath = \"{root}\"\n\
             [[snapshot.source]]\nname = \"database\"\n[store]\npath = \"{store}\"\nreserve_bytes = 0\n",
            s2.user,
            s2.address,
            s2.port,
            s2.identity.display(),
            s2.known_hosts.display(),
            bin("link-sync").display(),
            dir = night.world.dir.path().display(),
            root = night.root().display(),
            store = night.world.store().display(),
        );
        std::fs::write(night.world.path("etc/s1.toml"), text).unwrap();
        std::fs::set_permissions(night.world.path("etc/s1.toml"), std::fs::Permissions::from_mode(0o600))
            .unwrap();
        night
    }

    fn root(&self) -> PathBuf {
        self.world.path("sample/nextcloud")
    }

    fn sample(&self, name: &str) -> Command {
        let mut command = Command::new(testkit::lab(name));
        command.env("PGHOST", &self.cluster.socket).env("PGPORT", self.cluster.port.to_string());
        command.env("PGUSER", "postgres").arg(self.world.path("sample")).args(["--database", "night"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// A script on `host`, with this world's tools.
    #[track_caller]
    fn script(&self, host: &testkit::hosts::Host, name: &str, profile: &str, config: &Path) -> Ran {
        let mut command = host.command(scripts().join(name));
        command.arg(profile).arg("--config").arg(config).arg("--bin").arg(self.world.path("bin"));
        run(&mut command)
    }

    #[track_caller]
    fn backup(&self) -> String {
        let ran = self
            .script(&self.world.hosts.s1, "backup-local", "s1", &self.world.path("etc/s1.toml"))
            .expect(0);
        ran.json["data"]["date"].as_str().unwrap().to_owned()
    }
}

#[test]
fn everything_on_s1_is_in_the_container_and_s3_cannot_read_it() {
    if run_me(
        "night::everything_on_s1_is_in_the_container_and_s3_cannot_read_it",
        Options { memory: 4096, seconds: 1200 },
    ) {
        return;
    }
    let night = Night::new();
    let world = &night.world;
    world.create("400M");
    let first = night.backup();
    let before = world.hosts.bytes();
    let pushed = night.script(&world.hosts.s2, "push-offsite", "home", &world.config()).expect(0);
    let after = world.hosts.bytes();
    let sent = find_sent(&pushed);
    // What is told is what the wire saw, but for headers and what opening a connection takes.
    let wire = after.sent - before.sent;
    assert!(sent <= wire && wire < sent + sent / 8 + 100_000, "told {sent}, seen {wire}");

    assert!(night.sample("sample-change").status().unwrap().success());
    let second = night.backup();
    night.script(&world.hosts.s2, "push-offsite", "home", &world.config()).expect(0);
    assert_eq!(
        night.script(&world.hosts.s2, "push-offsite", "home", &world.config()).expect(0).json["changed"],
        false
    );
    world.container_holds(&[&first, &second]);

    // From the container to S1, directly: what a restore would bring.
    let view = world.act("offsite-push", "view", &[]).expect(0);
    let inside = PathBuf::from(view.json["data"]["path"].as_str().unwrap());
    assert!(inside.ends_with(&second), "{}", inside.display());
    let leave_out =
        ["/*/cache/", "/*/uploads/", "/appdata_*/preview/", "/appdata_*/js/", "/updater-*", "/nextcloud.log"];
    let mut compare = Command::new("rsync");
    compare.args(["-naHAXic", "--numeric-ids", "--delete"]).args(leave_out.map(|p| format!("--exclude={p}")));
    compare.arg(format!("{}/data/", night.root().display())).arg(format!("{}/data/", inside.display()));
    let told = compare.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), "", "{}", String::from_utf8_lossy(&told.stderr));
    assert!(holds(&inside.join("data/marker.txt"), MARKER.as_bytes()));
    let html = inside.join("html");
    for folder in ["apps", "core", "lib"].into_iter().filter(|f| night.root().join(f).exists()) {
        same(&night.root().join(folder), &html.join(folder));
    }
    world.act("offsite-push", "unview", &[]).expect(0);
    world.nothing_is_up();

    // S3's account has one file and no other, so all that travelled is in it; neither text nor key can be found there.
    // In a folder that is everybody's, it would have had to make one of its own.
    let s3 = &world.hosts.s3.user;
    let find = |args: &[&str]| ok("find", args).lines().map(str::to_owned).collect::<Vec<_>>();
    let mut found = find(&[world.dir.path().to_str().unwrap(), "-type", "f", "-user", s3]);
    for place in
        ["/run/tmp", "/tmp", "/var/tmp", "/dev/shm", "/home"].into_iter().filter(|p| Path::new(p).is_dir())
    {
        // Other tests come and go there.
        found.extend(find(&[place, "-ignore_readdir_race", "-mindepth", "1", "-maxdepth", "1", "-user", s3]));
    }
    assert_eq!(found, [world.image().display().to_string()]);
    assert!(!holds(&world.image(), MARKER.as_bytes()));
    assert!(!holds(&world.image(), b"oc_filecache"));
    assert!(!holds(&world.image(), &std::fs::read(world.key()).unwrap()));
    ok("test", &["-s", world.image().to_str().unwrap()]);
}

/// Bytes sent by the push that a script's or tool's object tells of.
fn find_sent(ran: &Ran) -> u64 {
    ran.json["data"]["push"]["sent_bytes"].as_u64().unwrap_or_else(|| panic!("{ran:?}"))
}
