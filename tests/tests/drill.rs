//! `scripts/drill`: the newest snapshot of a real store is rehearsed, its damage is told, and `link-sync list` remembers.
#![expect(clippy::disallowed_methods, reason = "tests start the scripts as their users do")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use testkit::postgres::Cluster;
use testkit::sshd::Sshd;
use testkit::{Ran, bin, run, scratch, scripts};

struct World {
    dir: tempfile::TempDir,
    database: &'static str,
    cluster: Arc<Cluster>,
}

impl World {
    fn new(database: &'static str) -> World {
        let world = World { dir: scratch(), database, cluster: Cluster::shared() };
        let mut sample = Command::new(testkit::lab("sample-instance"));
        sample.env("PGHOST", &world.cluster.socket).env("PGPORT", world.cluster.port.to_string());
        sample.env("PGUSER", "postgres").arg(world.path("sample"));
        sample.args(["--files", "200", "--database", database]).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(sample.status().unwrap().success());
        std::fs::create_dir(world.path("store")).unwrap();
        world.profile(&format!("store = \"{}\"", world.path("store").display()));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn profile(&self, store: &str) {
        let text = format!(
            "state_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[database]\nhost = \"{1}:{2}\"\nname = \"{3}\"\n\
             user = \"postgres\"\n[snapshot]\n{store}\n\
             [[snapshot.source]]\nname = \"data\"\npath = \"{0}/sample/nextcloud/data\"\n\
             [[snapshot.source]]\nname = \"html\"\npath = \"{0}/sample/nextcloud\"\n[[snapshot.source]]\nname = \"database\"\n",
            self.dir.path().display(),
            self.cluster.socket.display(),
            self.cluster.port,
            self.database
        );
        std::fs::write(self.path("home.toml"), text).unwrap();
    }

    /// `TOOL ACTION home --config …`
    #[track_caller]
    fn tool(&self, tool: &str, args: &[&str]) -> Ran {
        let mut command = Command::new(bin(tool));
        command.args(args).arg("--config").arg(self.path("home.toml"));
        run(&mut command)
    }

    /// A dump and a snapshot; its folder.
    fn snapshot(&self) -> PathBuf {
        self.tool("pg-snap", &["dump"]).expect(0);
        let ran = self.tool("link-sync", &["snapshot", "--crash-consistent"]).expect(0);
        self.path("store").join(ran.json["data"]["date"].as_str().unwrap())
    }

    #[track_caller]
    fn drill(&self) -> Ran {
        self.drill_with(&[])
    }

    #[track_caller]
    fn drill_with(&self, options: &[&str]) -> Ran {
        let mut command = Command::new(scripts().join("drill"));
        command.arg("home").arg("--config").arg(self.path("home.toml")).arg("--bin");
        run(command.arg(bin("pg-snap").parent().unwrap()).args(options).stdin(Stdio::null()))
    }

    fn last(&self) -> Value {
        self.tool("link-sync", &["list"]).expect(0).json["data"]["last_drill"].clone()
    }
}

/// The first file below `folder`.
fn some_file(folder: &Path) -> PathBuf {
    let find = Command::new("find").arg(folder).args(["-type", "f", "-print0"]).output().unwrap();
    let paths = String::from_utf8(find.stdout).unwrap();
    PathBuf::from(paths.split_terminator('\0').min().unwrap())
}

#[test]
fn the_newest_snapshot_is_rehearsed_and_the_outcome_remembered() {
    let world = World::new("rehearsed");
    let ran = world.drill().expect(1);
    assert!(ran.stderr.contains("there is no snapshot"), "{}", ran.stderr);
    assert_eq!(world.last()["ok"], false);

    let snapshot = world.snapshot();
    let date = snapshot.file_name().unwrap().to_str().unwrap().to_owned();
    let before = Command::new("find")
        .arg(&snapshot)
        .args(["-printf", "%p %y %s %T@ %C@ %i\\n"])
        .output()
        .unwrap()
        .stdout;
    let ran = world.drill().expect(0);
    let data = &ran.json["data"];
    assert_eq!((data["date"].as_str(), data["would_lose"]["files"].as_u64()), (Some(date.as_str()), Some(0)));
    assert!(data["rows"].as_u64().unwrap() > 200, "{data:#}");
    let after = Command::new("find")
        .arg(&snapshot)
        .args(["-printf", "%p %y %s %T@ %C@ %i\\n"])
        .output()
        .unwrap()
        .stdout;
    assert!(before == after, "the snapshot is another");
    let last = world.last();
    assert_eq!(
        (&last["ok"], &last["date"], &last["findings"]),
        (&Value::from(true), &Value::from(date.as_str()), &Value::from(0))
    );
    let mode = std::fs::metadata(world.path("state/drill.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // A file of the snapshot is lost: named, with its user.
    let file = some_file(&snapshot.join("data/bob/files"));
    let bytes = std::fs::metadata(&file).unwrap().len();
    std::fs::remove_file(&file).unwrap();
    let ran = world.drill().expect(1);
    let data = &ran.json["data"];
    let example = &data["examples"][0];
    assert_eq!((example["class"].as_str(), example["user"].as_str()), (Some("missing-file"), Some("bob")));
    assert_eq!(
        Path::new(example["path"].as_str().unwrap()),
        file.strip_prefix(snapshot.join("data")).unwrap()
    );
    assert_eq!(
        (data["would_lose"]["files"].as_u64(), data["would_lose"]["bytes"].as_u64()),
        (Some(1), Some(bytes))
    );
    let last = world.last();
    assert_eq!((&last["ok"], &last["lost_files"]), (&Value::from(false), &Value::from(1)));

    // The scratch databases are gone.
    let left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'nc\\_backup\\_drill%';";
    assert_eq!(world.cluster.psql("postgres", left), "0");
}

#[test]
fn a_snapshot_behind_ssh_is_fetched_and_one_that_cannot_be_is_remembered() {
    let world = World::new("fetched");
    let snapshot = world.snapshot();
    world.drill().expect(0);
    let sshd = Sshd::start("root");
    let ssh = format!(
        "store = \"root@127.0.0.1:{}\"\n[snapshot.ssh]\nport = {}\nidentity = \"{}\"\nknown_hosts = \"{}\"\nremote_program = \"{}\"",
        world.path("store").display(),
        sshd.port,
        sshd.identity.display(),
        sshd.known_hosts.display(),
        bin("link-sync").display()
    );
    world.profile(&ssh);
    let serve = |how: &str| {
        let store = world.path("store").display().to_string();
        sshd.set_key_options(&format!(
            "command=\"{} serve --store {store}{how}\",restrict",
            bin("link-sync").display()
        ));
    };
    // The key may list, but not read: so nothing was rehearsed, and the good outcome of before does not stand.
    serve("");
    let scratch = world.path("scratch");
    let killed = scratch.join("nc-backup-drill.killed");
    std::fs::create_dir_all(killed.join("data")).unwrap();
    let drill = || world.drill_with(&["--scratch", scratch.to_str().unwrap()]);
    let refused = drill().expect(77);
    assert_eq!(refused.json["data"]["failed_step"], "restore");
    let last = world.last();
    assert_eq!(last["ok"], false);
    assert!(last["error"].as_str().unwrap().contains("not fetched"), "{last}");
    assert!(!killed.exists(), "what a drill that was killed had fetched is removed");

    serve(" --read-only");
    // A role that may not make a database is told before anything is fetched.
    world.cluster.create_role("mere", "mere");
    let text = std::fs::read_to_string(world.path("home.toml")).unwrap();
    let password = world.path("mere");
    std::fs::write(&password, "mere").unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mere = format!(
        "{text}[drill]\nhost = \"{}:{}\"\nuser = \"mere\"\npassword_file = \"{}\"\n",
        world.cluster.socket.display(),
        world.cluster.port,
        password.display()
    );
    std::fs::write(world.path("home.toml"), mere).unwrap();
    let unable = drill().expect(77);
    assert_eq!(unable.json["data"]["failed_step"], "check");
    assert!(unable.json["error"]["hint"].to_string().contains("CREATEDB"), "{:#}", unable.json["error"]);
    assert!(!unable.stderr.contains("use `drill`"), "{}", unable.stderr);
    let asked = |ran: &Ran, step: &str| {
        ran.json["data"]["steps"].as_array().unwrap().iter().any(|s| s["step"] == step)
    };
    assert!(!asked(&unable, "restore") && !asked(&unable, "list"));
    std::fs::write(world.path("home.toml"), text).unwrap();
    let ran = drill().expect(0);
    assert_eq!(ran.json["data"]["date"], snapshot.file_name().unwrap().to_str().unwrap());
    // Which run the files are of came along, too.
    let compared = ran.json["data"]["steps"].as_array().unwrap().last().unwrap().clone();
    assert!(compared["output"]["warnings"].to_string().contains("not-sealed"), "{compared:#}");
    assert_eq!(world.last()["ok"], true);
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
}

#[test]
fn what_is_wrong_with_the_call_or_the_server_is_said() {
    let world = World::new("refused");
    world.snapshot();
    let mut usage = Command::new(scripts().join("drill"));
    assert_eq!(
        usage.args(["home", "--nonsense"]).stdin(Stdio::null()).output().unwrap().status.code(),
        Some(2)
    );
    let text = std::fs::read_to_string(world.path("home.toml")).unwrap();
    std::fs::write(world.path("home.toml"), format!("{text}[drill]\nhost = \"127.0.0.1:1\"\n")).unwrap();
    let ran = world.drill().expect(69);
    assert_eq!(ran.json["data"]["failed_step"], "verify");
    std::fs::write(world.path("home.toml"), format!("{text}[drill]\nhots = \"x\"\n")).unwrap();
    assert!(world.drill().expect(78).stderr.contains("host"), "the nearest key is named");
}
