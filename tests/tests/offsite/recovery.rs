//! `docs/disaster-recovery.md`, word for word: every command block of the page is run, in order.

use std::path::Path;
use std::process::{Command, Stdio};

use testkit::guest::{Options, run_me};
use testkit::hosts::Setting;
use testkit::postgres::Cluster;
use testkit::repo;

use crate::world::{World, same};

/// The page's commands, with other values for the names at its top.
fn commands(values: &[(&str, String)]) -> String {
    let page = std::fs::read_to_string(repo().join("docs/disaster-recovery.md")).unwrap();
    let mut script = String::from("set -eux\n");
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 6, "the page has lost its commands");
    for line in blocks.concat().lines() {
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
    if run_me("recovery::with_nothing_but_the_disk_and_the_key", Options { memory: 3072, seconds: 600 }) {
        return;
    }
    let world = World::new(Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, ..Setting::default() });
    world.create("200M");
    let cluster = Cluster::start();
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
        ];
        // Roles that are there already do no harm; the database must be new.
        psql("postgres", "DROP DATABASE IF EXISTS nextcloud");
        let mut shell = Command::new("sh");
        shell
            .env("PGHOST", &cluster.socket)
            .env("PGPORT", cluster.port.to_string())
            .env("PGUSER", "postgres");
        shell.env("DM_DISABLE_UDEV", "1").arg("-c").arg(commands(&values)).stdin(Stdio::null());
        let ran = shell.output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{said}");
        assert!(String::from_utf8_lossy(&ran.stdout).contains("aes-xts-plain64"), "the cipher is not shown");
        same(&source, &out.join("data"));
        assert_eq!(psql("nextcloud", rows), before);
        assert_eq!(psql("nextcloud", "SELECT t FROM \"Odd Name\""), "x");
        world.nothing_is_up();
        std::fs::remove_dir_all(Path::new(&out)).unwrap();
    }
}
