//! A sample instance with its database, a local store, a profile, and the real tools.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use testkit::postgres::Cluster;
use testkit::{bin, lab, scratch, script, scripts};

/// An instance with its database, a local store, a profile, and a folder of tools.
pub struct World {
    /// Everything lies in it.
    pub dir: tempfile::TempDir,
    /// The instance's.
    pub database: String,
    /// The server.
    pub cluster: Arc<Cluster>,
}

impl World {
    pub fn new(database: &str) -> World {
        World::on(database, Cluster::shared())
    }

    /// With a server of its own.
    pub fn on(database: &str, cluster: Arc<Cluster>) -> World {
        let dir = scratch();
        // The web user must reach the instance in it.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let world = World { dir, database: database.into(), cluster };
        let mut sample = world.sample_script("sample-instance");
        assert!(sample.args(["--files", "150"]).status().unwrap().success());
        std::fs::create_dir(world.tools()).unwrap();
        world.restore_tools();
        std::fs::create_dir(world.store()).unwrap();
        world.write_profile("");
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn root(&self) -> PathBuf {
        self.path("sample/nextcloud")
    }
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }
    pub fn tools(&self) -> PathBuf {
        self.path("tools")
    }

    pub fn sample_script(&self, name: &str) -> Command {
        let mut command = Command::new(lab(name));
        command.env("PGHOST", &self.cluster.socket).env("PGPORT", self.cluster.port.to_string());
        command.env("PGUSER", "postgres").arg(self.path("sample")).args(["--database", &self.database]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    pub fn write_profile(&self, database_keys: &str) {
        let text = format!(
            "state_dir = \"{0}/state\"\n[nextcloud]\nroot = \"{1}\"\n[database]\n{database_keys}\n\
             [snapshot]\nstore = \"{0}/store\"\n\
             [[snapshot.source]]\nname = \"data\"\npath = \"{1}/data\"\n\
             [[snapshot.source]]\nname = \"html\"\npath = \"{1}\"\n\
             [[snapshot.source]]\nname = \"database\"\n",
            self.dir.path().display(),
            self.root().display()
        );
        std::fs::write(self.path("home.toml"), text).unwrap();
    }

    pub fn restore_tools(&self) {
        for tool in ["nc-maint", "pg-snap", "link-sync"] {
            script(&self.tools().join(tool), &format!("#!/bin/sh\nexec '{}' \"$@\"\n", bin(tool).display()));
        }
    }

    /// Puts something before a tool: where its arguments match `pattern`, `instead` is done.
    pub fn inject(&self, tool: &str, pattern: &str, instead: &str) {
        let real = bin(tool);
        let text = format!(
            "#!/bin/sh\nreal='{0}' tools='{1}'\ncase \"$*\" in {pattern}) {instead} ;; esac\nexec \"$real\" \"$@\"\n",
            real.display(),
            self.tools().display()
        );
        script(&self.tools().join(tool), &text);
    }

    pub fn backup(&self) -> Command {
        let mut command = Command::new(scripts().join("backup-local"));
        command.arg("home").arg("--config").arg(self.path("home.toml")).arg("--bin").arg(self.tools());
        // What it says is looked at also when all is well.
        command.arg("--verbose");
        command
    }

    /// One of pg-snap's actions, by hand.
    pub fn pg_snap(&self, action: &str) -> Command {
        let mut command = Command::new(bin("pg-snap"));
        command.args([action, "home", "--config"]).arg(self.path("home.toml"));
        command
    }

    /// The dates that are published.
    pub fn dates(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.store()).unwrap().map(|e| e.unwrap().file_name());
        let mut dates: Vec<_> =
            names.filter_map(|n| n.into_string().ok()).filter(|n| n.starts_with("20")).collect();
        dates.sort();
        dates
    }

    pub fn in_maintenance(&self) -> bool {
        let output =
            Command::new("php").arg(self.root().join("occ")).arg("maintenance:mode").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("currently"), "{text}");
        text.contains("enabled")
    }

    /// Waits for `what`, for at most 30 seconds.
    pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}: not within 30 seconds");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
