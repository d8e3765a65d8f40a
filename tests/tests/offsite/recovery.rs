//! `docs/disaster-recovery.md`, word for word: every command block of the page is run, in order.

use std::path::Path;
use std::process::{Command, Stdio};

use testkit::guest::{Options, run_me};
use testkit::hosts::Setting;
use testkit::postgres::Cluster;
use testkit::repo;

use crate::world::{World, same};

/// The page's commands, or the first blocks of them, with other values for the names at its top.
fn commands(values: &[(&str, String)], first: usize) -> String {
    let page = std::fs::read_to_string(repo().join("docs/disaster-recovery.md")).unwrap();
    let mut script = String::from("set -eux\n");
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 6, "the page has lost its commands");
    for line in blocks[..first.min(blocks.len())].concat().lines() {
        let value = values.iter().find(|(name, _)| line.starts_with(&format!("{name}=")));
        script += &value.map_or(line.to_owned(), |(name, value)| format!("{name}='{value}'"));
        script.push('\n');
    }
    for (name, _) in values {
        assert!(script.contains(&format!("\n{name}='")), "the page does not name {name}");
    }
    script
}

#[test]
fn with_nothing_but_the_disk_and_the_key() {
    if run_me("recovery::with_nothing_but_the_disk_and_the_key", Options { memory: 3072, seconds: 1200 }) {
        return;
    }
    let world = World::new(Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, ..Setting::default() });
    world.create("200M");
    let cluster = Cluster::start();
    // Debian's rules, but for root, who is let in as postgres for what is looked at here.
    let rules =
        "local all postgres peer map=lab\nlocal all all peer\nhost all all 127.0.0.1/32 scram-sha-256\n";
    let folder = cluster.psql("postgres", "SHOW data_directory");
    std::fs::write(Path::new(&folder).join("pg_hba.conf"), rules).unwrap();
    cluster.psql("postgres", "SELECT pg_reload_conf()");
    let psql = |database: &str, sql: &str| {
        let mut command = Command::new("psql");
        command
            .env("PGHOST", &cluster.socket)
            .env("PGPORT", cluster.port.to_string())
            .env("PGUSER", "postgres");
        let out = command.args(["-qXAt", "-d", database, "-c", sql]).stdin(Stdio::null()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    psql("postgres", "CREATE ROLE oc_owner LOGIN");
    psql("postgres", "CREATE DATABASE origin OWNER oc_owner");
    psql("origin", "CREATE TABLE oc_files AS SELECT n, md5(n::text) AS name FROM generate_series(1, 5000) n");
    psql(
        "origin",
        "CREATE TABLE \"Odd Name\" (t text); INSERT INTO \"Odd Name\" VALUES ('x'); ALTER TABLE oc_files OWNER TO oc_owner",
    );
    let rows = "SELECT count(*), md5(string_agg(f::text, ',' ORDER BY n)) FROM oc_files f";
    let before = psql("origin", rows);

    // A snapshot with a dump in it, in the container.
    let dumps = world.path("dumps");
    let mut dump = Command::new(testkit::bin("pg-snap"));
    dump.args(["dump", "--name", "origin", "--user", "postgres", "--host"]);
    dump.arg(format!("{}:{}", cluster.socket.display(), cluster.port)).arg("--dumps").arg(&dumps);
    testkit::run(&mut dump).expect(0);
    world.snapshot(30, 5000);
    let source = world.path("source");
    let mut snapshot = Command::new(testkit::bin("link-sync"));
    snapshot
        .arg("snapshot")
        .arg("--config")
        .arg(world.config())
        .arg("--crash-consistent")
        .arg("--store")
        .arg(world.store());
    snapshot.arg("--source").arg(format!("data={}", source.display())).arg("--no-default-excludes");
    snapshot.arg("--source").arg(format!("database={}", dumps.display()));
    std::fs::write(source.join(".ncdata"), "").unwrap();
    testkit::run(&mut snapshot).expect(0);
    world.push().expect(0);
    let header = world.path("escrow.header");
    world.act("luks-mount", "backup-header", &["--to", header.to_str().unwrap()]).expect(0);

    for header in [header.display().to_string(), String::new()] {
        let out = world.path("out");
        let values = [
            ("IMAGE", world.image().display().to_string()),
            ("KEY", world.key().display().to_string()),
            ("HEADER", header),
            ("WHERE", world.path("rescue").display().to_string()),
            ("OUT", out.display().to_string()),
            ("SOCKET", cluster.socket.display().to_string()),
        ];
        // Roles that are there already do no harm; the database must be new.
        psql("postgres", "DROP DATABASE IF EXISTS nextcloud");
        let mut shell = Command::new("sh");
        shell.env("PGPORT", cluster.port.to_string()).env_remove("PGHOST").env_remove("PGUSER");
        shell.env("DM_DISABLE_UDEV", "1").arg("-c").arg(commands(&values, usize::MAX)).stdin(Stdio::null());
        let ran = shell.output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{said}");
        let told = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(told.contains("aes-xts-plain64"), "the cipher is not shown");
        let counted = told.lines().find_map(|l| l.strip_prefix("checked: ")).unwrap();
        let (covered, files) = counted.strip_suffix(" files").unwrap().split_once(" of ").unwrap();
        assert_eq!(covered, files, "{told}");
        assert!(files.parse::<u32>().unwrap() > 30 && !told.contains("NOT CHECKED"), "{told}");
        assert!(!told.contains("MISSING in"), "{told}");
        same(&source, &out.join("data"));
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&out).unwrap().permissions());
        assert_eq!(mode & 0o7777, 0o755, "the database server's account could not look into it");
        assert_eq!(psql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'root'"), "0");
        assert_eq!(psql("nextcloud", rows), before);
        assert_eq!(psql("nextcloud", "SELECT t FROM \"Odd Name\""), "x");
        world.nothing_is_up();
        std::fs::remove_dir_all(Path::new(&out)).unwrap();
    }
}

/// A repair of the file system took a folder's names away: what they led to is whole, and on the list of an older date.
#[test]
fn a_name_that_only_an_older_date_still_has_is_missed() {
    let dir = testkit::scratch();
    let at = |name: &str| dir.path().join(name);
    for name in ["source/folder", "store", "rescue/snapshots", "index"] {
        std::fs::create_dir_all(at(name)).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(at(name), private).unwrap();
    }
    for n in 0..3 {
        std::fs::write(at(&format!("source/folder/{n}")), format!("file {n}")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let mut snapshot = Command::new(testkit::bin("link-sync"));
        snapshot.args(["snapshot", "--crash-consistent", "--store"]).arg(at("store"));
        snapshot.arg("--state-dir").arg(at("index"));
        testkit::run(snapshot.arg(format!("--source=docs={}", at("source").display()))).expect(0);
        let mut copy = Command::new(testkit::bin("link-sync"));
        testkit::run(copy.args(["copy", "--to"]).arg(at("rescue/snapshots")).arg("--store").arg(at("store")))
            .expect(0);
    }
    let page = std::fs::read_to_string(repo().join("docs/disaster-recovery.md")).unwrap();
    let block = page.split("```sh\n").find(|b| b.contains("NOT CHECKED")).unwrap();
    let say = |place: &Path| {
        let script = format!("set -eu\n{}", block.split("```").next().unwrap());
        Command::new("sh").args(["-c", &script]).env("WHERE", place).output().unwrap()
    };
    let look = || String::from_utf8(say(&at("rescue")).stdout).unwrap();
    assert_eq!(look(), "checked: 3 of 3 files\n");
    let mut dates: Vec<_> =
        std::fs::read_dir(at("rescue/snapshots")).unwrap().map(|e| e.unwrap().path()).collect();
    dates.retain(|d| d.file_name().unwrap().to_str().unwrap().starts_with("20"));
    dates.sort();
    let newest = dates.last().unwrap();
    std::fs::remove_file(newest.join("docs/folder/0")).unwrap();
    let said = look();
    assert!(said.contains(&format!("MISSING in {}/docs: 3 of 4 names", newest.display())), "{said}");
    assert!(said.ends_with("checked: 3 of 3 files\n") && said.lines().count() == 2, "{said}");
    std::fs::remove_file(newest.join(".meta/snapshot.json")).unwrap();
    assert!(look().contains("of ? names"), "{}", look());
    // Nothing is mounted there: nothing was checked, and nothing is missing either.
    let ran = say(&at("source"));
    assert!(
        !ran.status.success() && String::from_utf8_lossy(&ran.stderr).contains("STOP: there is no snapshot")
    );
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "checked: 0 of 0 files\n");
}

/// What somebody who holds S3 puts in the place of the container: a file system of his own, which looks like ours.
struct Evil<'w> {
    world: &'w World,
    key: String,
    header: String,
}

impl Evil<'_> {
    fn sh(&self, script: &str) -> String {
        let out = Command::new("sh").env("DM_DISABLE_UDEV", "1").args(["-euc", script]).output().unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// An image made with these options, with a snapshot of his.
    fn image(&self, options: &str) -> String {
        let image = self.world.path("evil.img").display().to_string();
        let tree = self.world.path("evil").display().to_string();
        self.sh(&format!(
            "rm -f {image}; truncate -s 64M {image}; mkdir -p {tree}/snapshots/2026-01-01T00-00-00Z
             cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {options} --key-file {0} {image}
             cryptsetup open --key-file {0} {image} evil; mkfs.ext4 -q -d {tree} /dev/mapper/evil; cryptsetup close evil",
            self.key
        ));
        image
    }

    /// Runs the page as far as it mounts; `unchecked`: without what it looks at. Whether it mounted, and what it said.
    fn page(&self, image: &str, header: &str, unchecked: bool) -> (bool, String) {
        let rescue = self.world.path("rescue").display().to_string();
        let values = [
            ("IMAGE", image.to_owned()),
            ("KEY", self.key.clone()),
            ("HEADER", header.to_owned()),
            ("WHERE", rescue.clone()),
            ("OUT", self.world.path("out").display().to_string()),
        ];
        let mut script = commands(&values, 3);
        if unchecked {
            let whole = script.clone();
            script = script
                .replace("if [ \"$(dmsetup", "if : || [ \"$(dmsetup")
                .replace("grep -i null", "grep -i nothing-of-that-kind");
            assert_ne!(script, whole);
        }
        let ran = Command::new("sh")
            .env("DM_DISABLE_UDEV", "1")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let mounted = std::fs::read_to_string("/proc/mounts").unwrap().contains(&rescue);
        assert_eq!(mounted, ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        self.sh(&format!(
            "! mountpoint -q {rescue} || umount {rescue}; [ ! -e /dev/mapper/rescue ] || cryptsetup close rescue
             losetup -j {image} -n -O NAME | while read -r l; do losetup -d $l; done"
        ));
        (mounted, String::from_utf8_lossy(&ran.stderr).into_owned())
    }
}

#[test]
fn a_container_that_somebody_else_made_is_not_mounted() {
    if run_me(
        "recovery::a_container_that_somebody_else_made_is_not_mounted",
        Options { memory: 3072, seconds: 1200 },
    ) {
        return;
    }
    let world = World::new(Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, ..Setting::default() });
    world.create("64M");
    let header = world.path("escrow.header").display().to_string();
    world.act("luks-mount", "backup-header", &["--to", &header]).expect(0);
    let evil = Evil { world: &world, key: world.key().display().to_string(), header };

    // The page is right about what `luks-mount create` makes.
    let made = "--cipher aes-xts-plain64 --key-size 512 --offset 4096";
    let image = evil.image(made);
    assert!(evil.page(&image, "", false).0, "{}", evil.page(&image, "", false).1);

    // Another cipher, none at all, the data elsewhere.
    for options in [
        "--cipher aes-cbc-essiv:sha256 --key-size 256 --offset 4096",
        "--cipher cipher_null-ecb --offset 4096",
        "--cipher aes-xts-plain64 --key-size 512 --offset 8192",
    ] {
        let image = evil.image(options);
        let (mounted, said) = evil.page(&image, "", false);
        assert!(!mounted && said.contains("STOP: this"), "{options}: {said}");
        assert!(evil.page(&image, "", true).0, "{options}: it would not have been mounted anyway");
        // With S2's own header it is noise.
        assert!(!evil.page(&image, &evil.header, false).0, "{options}");
    }
    // A key slot that any key opens.
    let image = evil.image(made);
    testkit::luks::rewrite_header(
        Path::new(&image),
        "",
        "\"encryption\":\"aes-xts-plain64\"",
        "\"encryption\":\"cipher_null-ecb\"",
    );
    let (mounted, said) = evil.page(&image, "", false);
    assert!(!mounted && said.contains("STOP: this header does not encrypt"), "{said}");
    // The key of the other stick, and names that are wrong.
    let other = world.path("other.key").display().to_string();
    evil.sh(&format!("head -c 64 /dev/urandom >{other}"));
    let ours = world.image().display().to_string();
    let (mounted, said) = Evil { world: &world, key: other, header: String::new() }.page(&ours, "", false);
    assert!(!mounted && said.contains("STOP: the key") && !said.contains("not the encryption"), "{said}");
    for (image, header) in [("/none", ""), (ours.as_str(), "/none")] {
        let (mounted, said) = evil.page(image, header, false);
        assert!(!mounted && said.contains("STOP: there is no /none"), "{said}");
    }
    // No encryption whatever.
    evil.sh(&format!("mkfs.ext4 -qF -d {} {image}", world.path("evil").display()));
    for header in ["", evil.header.as_str()] {
        assert!(!evil.page(&image, header, false).0);
    }
}
