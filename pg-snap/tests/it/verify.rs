//! `pg-snap verify`: an instance is dumped and copied, the copy is damaged, and what would be lost is named.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use testkit::Ran;
use testkit::postgres::Cluster;

use crate::lab::{finish, private, wait_for};

/// A sample instance, its dump, and a tree as a snapshot holds it.
struct World {
    dir: tempfile::TempDir,
    database: String,
    cluster: Arc<Cluster>,
}

impl World {
    fn new() -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let database = format!("verify{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let world = World { dir: testkit::scratch(), database, cluster: Cluster::shared() };
        world.sample("sample-instance", &["--files", "300"]);
        let role = format!("Drill \"{}\"", world.database);
        world.cluster.create_role(&role, "drill");
        world
            .cluster
            .psql("postgres", &format!("ALTER ROLE {} CREATEDB;", testkit::postgres::identifier(&role)));
        fs::write(world.path("password"), "drill\n").unwrap();
        private(&world.path("password"));
        let text = format!(
            "state_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[database]\nhost = \"{1}:{2}\"\nname = \"{3}\"\nuser = \"postgres\"\n\
             [drill]\nuser = {4:?}\npassword_file = \"{0}/password\"\n\
             [[snapshot.source]]\nname = \"data\"\npath = \"{0}/sample/nextcloud/data\"\nexclude = [\"/*/files/not-kept/\"]\n",
            world.dir.path().display(),
            world.cluster.socket.display(),
            world.cluster.port,
            world.database,
            role,
        );
        fs::write(world.path("home.toml"), text).unwrap();
        world.dump();
        world.copy();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path in the tree's data.
    fn data(&self, name: &str) -> PathBuf {
        self.path("tree/data").join(name)
    }

    fn sample(&self, script: &str, args: &[&str]) {
        let mut command = Command::new(testkit::lab(script));
        command.env("PGHOST", &self.cluster.socket).env("PGPORT", self.cluster.port.to_string());
        command
            .env("PGUSER", "postgres")
            .arg(self.path("sample"))
            .args(["--database", &self.database])
            .args(args);
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    }

    fn sql(&self, sql: &str) -> String {
        self.cluster.psql(&self.database, sql)
    }

    fn command(&self, action: &str) -> Command {
        let mut command = Command::new(testkit::bin("pg-snap"));
        command.arg(action).arg("--config").arg(self.path("home.toml"));
        command
    }

    fn dump(&self) {
        testkit::run(&mut self.command("dump")).expect(0);
    }

    /// Copies the instance, without what a snapshot leaves out.
    fn copy(&self) {
        let mut rsync = Command::new("rsync");
        rsync.args([
            "-a",
            "--delete",
            "--exclude=/data/*/cache/",
            "--exclude=/data/*/uploads/",
            "--exclude=/data/updater-*",
        ]);
        rsync.args(["--exclude=/data/nextcloud.log*", "--exclude=/data/*/files/not-kept/"]);
        rsync.args(
            ["preview", "js", "css", "appstore"].map(|name| format!("--exclude=/data/appdata_*/{name}/")),
        );
        fs::create_dir_all(self.path("tree")).unwrap();
        let from = self.path("sample/nextcloud");
        rsync.arg(from.join("data")).arg(self.path("tree/"));
        assert!(rsync.status().unwrap().success());
        fs::create_dir_all(self.path("tree/html/config")).unwrap();
        for name in ["config/config.php", "version.php"] {
            fs::copy(from.join(name), self.path("tree/html").join(name)).unwrap();
        }
    }

    fn verify_command(&self) -> Command {
        let mut command = self.command("verify");
        command.arg("--against").arg(self.path("tree"));
        command
    }

    #[track_caller]
    fn verify(&self) -> Ran {
        let ran = testkit::run(&mut self.verify_command());
        assert_eq!(self.scratch_databases(), "", "a scratch database was left");
        ran
    }

    /// Expects exactly these findings, and gives the examples.
    #[track_caller]
    fn findings(&self, expected: &Value) -> Vec<Value> {
        let ran = self.verify().expect(1);
        let found = ran.json["data"]["findings"].as_object().unwrap();
        let found: serde_json::Map<_, _> =
            found.iter().filter(|(_, n)| **n != 0).map(|(k, n)| (k.clone(), n.clone())).collect();
        assert_eq!(Value::from(found), *expected, "{:#}\n{}", ran.json, ran.stderr);
        ran.json["data"]["examples"].as_array().unwrap().clone()
    }

    fn scratch_databases(&self) -> String {
        // Those of tests that run beside this one belong to other roles.
        let sql = format!(
            "SELECT datname FROM pg_database WHERE datname LIKE 'nc\\_backup\\_drill\\_%' AND pg_get_userbyid(datdba) = 'Drill \"{}\"';",
            self.database
        );
        self.cluster.psql("postgres", &sql)
    }

    /// Some file of a user: its path in `data/`.
    fn file_of(&self, user: &str) -> String {
        let sql = format!(
            "SELECT '{user}/' || path FROM oc_filecache JOIN oc_storages ON numeric_id = storage WHERE id = 'home::{user}' \
             AND path LIKE 'files/%' AND mimetype <> 2 AND size > 100 ORDER BY path LIMIT 1;"
        );
        self.sql(&sql)
    }

    /// A verification that waits in the middle of its restore.
    fn stuck(&self) -> Child {
        let script = self.path("pg_restore");
        testkit::script(
            &script,
            "#!/bin/sh\ncase \"$*\" in *--exit-on-error*) exec sleep 60 ;; esac\nexec pg_restore \"$@\"\n",
        );
        let mut command = self.verify_command();
        command.arg("--pg-restore").arg(&script);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the scratch database is there", || !self.scratch_databases().is_empty());
        child
    }
}

fn pid(child: &Child) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_whole_copy_fits_and_what_is_left_out_is_not_missed() {
    let world = World::new();
    let ran = world.verify().expect(0);
    let data = &ran.json["data"];
    let rows: u64 = world.sql("SELECT count(*) FROM oc_filecache;").parse().unwrap();
    assert_eq!(data["rows"], rows);
    assert!(
        data["left_out_rows"].as_u64().unwrap() > 50 && data["files"].as_u64().unwrap() > 200,
        "{data:#}"
    );
    assert_eq!(data["would_lose"], json!({"files": 0, "bytes": 0, "users": []}));
    assert_eq!((&data["unchecked"], &data["tables"]), (&json!([]), &json!(28)));
    assert!(ran.stderr.contains("nothing would be lost"), "{}", ran.stderr);
    // Without a tree it is restored and counted.
    let ran = testkit::run(&mut world.command("verify")).expect(0);
    assert_eq!(ran.json["data"]["table_rows"], data["table_rows"]);
    assert_eq!(ran.json["data"]["rows"], Value::Null);
}

#[test]
fn every_sort_of_damage_is_named_with_user_and_path() {
    let world = World::new();
    let [gone, cut, folder] = ["alice", "bob", "carol"].map(|user| world.file_of(user));
    let size = |path: &str| fs::metadata(world.data(path)).unwrap().len();
    let (gone_bytes, cut_bytes, folder_bytes) = (size(&gone), size(&cut), size(&folder));
    fs::remove_file(world.data(&gone)).unwrap();
    fs::OpenOptions::new().write(true).open(world.data(&cut)).unwrap().set_len(cut_bytes - 7).unwrap();
    fs::remove_file(world.data(&folder)).unwrap();
    fs::create_dir(world.data(&folder)).unwrap();
    fs::write(world.data("alice/files/new\n😀.txt"), "12345").unwrap();
    fs::remove_dir(world.data("bob/files/Empty folder")).unwrap();
    let examples = world.findings(&json!({
        "missing_file": 1, "size_differs": 1, "type_differs": 1, "file_without_row": 1, "missing_folder": 1
    }));
    let example = |class: &str| examples.iter().find(|e| e["class"] == class).unwrap();
    assert_eq!(example("missing-file")["path"], gone);
    assert_eq!(example("missing-file")["user"], "alice");
    assert_eq!(example("size-differs")["path"], cut);
    assert_eq!(example("size-differs")["file_bytes"], cut_bytes - 7);
    assert_eq!(example("type-differs")["path"], folder);
    assert_eq!(example("type-differs")["user"], "carol");
    assert_eq!(example("file-without-row")["path"], "alice/files/new\n😀.txt");
    assert_eq!(example("missing-folder")["path"], "bob/files/Empty folder");
    let lost = &world.verify().json["data"]["would_lose"];
    assert_eq!(lost["files"], 3);
    assert_eq!(lost["bytes"], gone_bytes + 7 + folder_bytes);
    assert_eq!(lost["users"][0], json!({"user": "alice", "files": 1, "bytes": gone_bytes}));
}

#[test]
fn a_row_without_a_file_and_a_dump_older_than_the_files_are_found() {
    let world = World::new();
    // A day later the files are copied again, and the dump is not.
    world.sample("sample-change", &["--count", "60"]);
    world.copy();
    let ran = world.verify().expect(1);
    let findings = &ran.json["data"]["findings"];
    for class in ["missing_file", "size_differs", "file_without_row"] {
        assert!(findings[class].as_u64().unwrap() > 3, "{findings}");
    }
    assert!(ran.stderr.contains("the dump looks older than the files"), "{}", ran.stderr);
    // The other way round: a newer dump with the older files.
    world.dump();
    world.verify().expect(0);
    world.sql(
        "INSERT INTO oc_filecache (storage, path, path_hash, name, mimetype, size) SELECT numeric_id, 'files/ghost.txt', 'x', \
         'ghost.txt', 11, 4711 FROM oc_storages WHERE id = 'home::bob';",
    );
    world.dump();
    let examples = world.findings(&json!({ "missing_file": 1 }));
    assert_eq!(
        (&examples[0]["path"], &examples[0]["row_bytes"]),
        (&json!("bob/files/ghost.txt"), &json!(4711))
    );
}

#[test]
fn a_snapshot_says_which_dump_is_its_own() {
    let world = World::new();
    let run = "0123456789abcdef0123456789abcdef";
    let snapshot = json!({"schema": 1, "date": "2026-11-22T03-30-00Z", "run_id": run, "consistency": "sealed",
        "started_at": "2026-11-22T03:29:00Z", "fake_super": false});
    fs::create_dir(world.path("tree/.meta")).unwrap();
    fs::write(world.path("tree/.meta/snapshot.json"), snapshot.to_string()).unwrap();
    fs::write(world.path("tree/.meta/lock"), "").unwrap();
    world.findings(&json!({ "dump": 1 }));
    // The dump that lies in it is taken without being named.
    let mut dump = world.command("dump");
    dump.args(["--run-id", run]);
    let path = testkit::run(&mut dump).expect(0).json["data"]["path"].as_str().unwrap().to_owned();
    assert!(
        Command::new("cp").arg("-a").arg(&path).arg(world.path("tree/database")).status().unwrap().success()
    );
    world.dump();
    let ran = world.verify().expect(0);
    assert_eq!(ran.json["data"]["dump"], world.path("tree/database").to_str().unwrap());
    assert_eq!(ran.json["data"]["run_id"], run);
    // One that is asked for wins.
    testkit::run(world.verify_command().args(["--date", "latest"])).expect(1);
}

#[test]
fn a_configuration_of_another_instance_is_found() {
    let world = World::new();
    let config = world.path("tree/html/config/config.php");
    edit(&config, "ocsample1234", "ocother99999");
    let examples = world.findings(&json!({ "config": 2 }));
    assert!(examples[0]["problem"].as_str().unwrap().contains("instanceid ocother99999"), "{}", examples[0]);
    edit(&config, "ocother99999", "ocsample1234");
    edit(&config, &format!("'{}'", world.database), "'elsewhere'");
    edit(&config, "'secret'", "'secreted'");
    world.findings(&json!({ "config": 2 }));
    // Its code is never run.
    fs::write(&config, format!("<?php touch('{}'); $CONFIG = 5;", world.path("run-by-us").display()))
        .unwrap();
    assert!(world.verify().expect(1).stderr.contains("no $CONFIG"));
    assert!(!world.path("run-by-us").exists());
}

#[test]
fn nothing_cries_wolf_where_nextcloud_is_only_odd() {
    let world = World::new();
    // Server-side encryption: the row has the plain size, the file a header and longer blocks.
    let encrypted = world.file_of("alice");
    let plain = fs::metadata(world.data(&encrypted)).unwrap().len();
    world.sql(&format!(
        "UPDATE oc_filecache SET encrypted = 1, unencrypted_size = size WHERE path = '{}' AND size = {plain};",
        encrypted.strip_prefix("alice/").unwrap().replace('\'', "''")
    ));
    fs::write(
        world.data(&encrypted),
        vec![1; usize::try_from(8192 + plain / 8096 * 8192 + plain % 8096 + 96).unwrap()],
    )
    .unwrap();
    // Places without rows, keys, uploads; the source's own pattern; a folder not scanned yet.
    for name in [
        "alice/files_encryption/keys/k",
        "files_external/c.crt",
        "bob/files/x.part",
        "alice/files/.htaccess",
        "appdata_ocsample1234/x/y",
    ] {
        fs::create_dir_all(world.data(name).parent().unwrap()).unwrap();
        fs::write(world.data(name), "x").unwrap();
    }
    world.sql(
        "INSERT INTO oc_filecache (storage, path, path_hash, name, mimetype, size) SELECT numeric_id, 'files/not-kept/a', 'y', 'a', 11, 5 \
         FROM oc_storages WHERE id = 'home::bob';
         UPDATE oc_filecache SET size = -1 WHERE path = 'files/Photos';",
    );
    // An id that is too long is stored as its md5; object storage and a disk elsewhere are named, not checked.
    let long = "u".repeat(64);
    world.sql(&format!(
        "INSERT INTO oc_users (uid) VALUES ('{long}'); INSERT INTO oc_storages (id, numeric_id) VALUES (md5('home::{long}'), 901), \
         ('object::user:zoe', 902), ('local::/mnt/usb/', 903);
         INSERT INTO oc_filecache (storage, path, path_hash, mimetype, size) VALUES (901, '', 'z', 2, 0), (901, 'files', 'z1', 2, 3), \
         (901, 'files/a', 'z2', 11, 3), (902, 'files/b', 'z3', 11, 3), (903, 'c', 'z4', 11, 3);"
    ));
    fs::create_dir_all(world.data(&format!("{long}/files"))).unwrap();
    fs::write(world.data(&format!("{long}/files/a")), "abc").unwrap();
    // Names whose order is easily got wrong.
    for (n, name) in
        ["o", "o/b", "o\u{1}a", "o\u{1}z", "o\u{2}", "o b", "o.b", "o/b/c", "o\u{1}a/x"].iter().enumerate()
    {
        let (folder, path) = (["o", "o/b", "o\u{1}a"].contains(name), world.data("bob/files").join(name));
        if folder {
            fs::create_dir_all(path).unwrap()
        } else {
            fs::write(path, "1").unwrap()
        }
        let kind = if folder { 2 } else { 11 };
        world.sql(&format!(
            "INSERT INTO oc_filecache (storage, path, path_hash, mimetype, size) SELECT numeric_id, 'files/{name}', 'odd{n}', {kind}, 1 \
             FROM oc_storages WHERE id = 'home::bob';"
        ));
    }
    // What an old scan of the data directory left about a home is not used any more.
    world.sql(
        "INSERT INTO oc_filecache (storage, path, path_hash, mimetype, size) VALUES (1, 'alice', 'old1', 2, 0), \
         (1, 'alice/files/gone-for-years', 'old2', 11, 5);",
    );
    // A store without root keeps a link as a file; here one that is a real link.
    let link = world.file_of("carol");
    fs::remove_file(world.data(&link)).unwrap();
    symlink("/etc/passwd", world.data(&link)).unwrap();
    // Nextcloud has no row for a link that leads nowhere.
    symlink("nowhere", world.data("bob/files/dangling")).unwrap();
    world.dump();
    let ran = world.verify().expect(0);
    let data = &ran.json["data"];
    assert_eq!(
        (&data["encrypted_rows"], &data["links"], &data["unused_rows"]),
        (&json!(1), &json!(2), &json!(2))
    );
    let unchecked: Vec<&str> =
        data["unchecked"].as_array().unwrap().iter().map(|u| u["why"].as_str().unwrap()).collect();
    assert_eq!(unchecked, ["object-storage", "outside-data-directory"]);
    // Cut, it is found all the same.
    fs::write(world.data(&encrypted), vec![1; 8192]).unwrap();
    world.findings(&json!({ "size_differs": 1 }));
}

#[test]
fn the_scratch_database_goes_whatever_happens() {
    let world = World::new();
    // SQL that fails.
    let script = world.path("failing");
    testkit::script(
        &script,
        "#!/bin/sh\ncase \"$*\" in *--exit-on-error*) echo broken >&2; exit 1 ;; esac\nexec pg_restore \"$@\"\n",
    );
    testkit::run(world.verify_command().arg("--pg-restore").arg(&script)).expect(1);
    assert_eq!(world.scratch_databases(), "");
    // SIGTERM.
    let child = world.stuck();
    kill(pid(&child), Signal::SIGTERM).unwrap();
    finish(child).expect(143);
    assert_eq!(world.scratch_databases(), "");
    // SIGKILL: it stays; another run that is alive keeps its own, the next one takes it away.
    let mut child = world.stuck();
    let left = world.scratch_databases();
    kill(pid(&child), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert_eq!(world.scratch_databases(), left);
    let ran = world.verify().expect(0);
    assert_eq!(ran.json["data"]["cleared"], json!([left]));
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    let world = World::new();
    let refused = |code: i32, args: &[&str], words: &str| {
        let ran = testkit::run(world.command("verify").args(args)).expect(code);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    };
    refused(78, &["--against", "/nowhere"], "cannot be opened as a folder");
    refused(78, &["--against", "/etc"], "/etc/data cannot be opened");
    refused(1, &["--date", "2020-01-01T00-00-00Z"], "there is no dump");
    refused(1, &["--from", "/etc"], "is damaged");
    refused(78, &["--exclude", "/a["], "exclude = \"/a[\"");
    refused(69, &["--admin-host", "127.0.0.1:1"], "is PostgreSQL running");
    world.cluster.psql("postgres", &format!("CREATE ROLE weak_{} LOGIN PASSWORD 'drill';", world.database));
    let password = world.path("password");
    let weak = [
        "--admin-user",
        &format!("weak_{}", world.database),
        "--admin-password-file",
        password.to_str().unwrap(),
    ];
    refused(77, &weak, "may not make databases");
    assert_eq!(world.scratch_databases(), "");
}

#[test]
fn a_store_without_root_keeps_links_as_files_and_sizes_as_they_are() {
    let world = World::new();
    world.dump();
    fs::create_dir(world.path("tree/.meta")).unwrap();
    let snapshot = json!({"schema": 1, "date": "2026-11-22T03-30-00Z", "run_id": null, "consistency": "crash-consistent",
        "started_at": "2026-11-22T03:29:00Z", "fake_super": true});
    fs::write(world.path("tree/.meta/snapshot.json"), snapshot.to_string()).unwrap();
    let set = |path: &str, text: &str, stat: &str| {
        fs::write(world.data(path), text).unwrap();
        let mut attribute = Command::new("setfattr");
        attribute.args(["-n", "user.rsync.%stat", "-v", stat]).arg(world.data(path));
        assert!(attribute.status().unwrap().success());
    };
    let [link, cut] = ["alice", "bob"].map(|user| world.file_of(user));
    set(&link, "../elsewhere", "120777 0,0 33:33");
    set("bob/files/dangling", "nowhere", "120777 0,0 33:33");
    let ran = world.verify().expect(0);
    assert_eq!(ran.json["data"]["links"], 2);
    set(&cut, "short", "100640 0,0 33:33");
    let examples = world.findings(&json!({ "size_differs": 1 }));
    assert_eq!((&examples[0]["path"], &examples[0]["file_bytes"]), (&json!(cut), &json!(5)));
}
