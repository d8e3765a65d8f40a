//! Files and database are of one moment.
//! While workers write pairs of both all the time, every backup holds whole pairs only, however long a request waits
//! between reading the configuration and connecting.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::{bin, lab, run};

use crate::world::World;

/// Backups of the test that must find nothing, unless `NC_BACKUP_TORN_RUNS` says otherwise.
const RUNS: u32 = 6;

/// A request may wait as long as this between reading the configuration and connecting.
const GAP: Duration = Duration::from_secs(2);

/// Workers that write until this value goes.
struct Writers {
    stop: std::path::PathBuf,
    child: Option<Child>,
}

impl Writers {
    /// Each connects up to `gap` after it has read the configuration.
    fn start(world: &World, gap: Duration) -> Writers {
        let stop = world.path("sample/writers.stop");
        let mut php = Command::new("php");
        php.arg(lab("writers.php")).arg("write").arg(world.root());
        php.args(["--workers", "5", "--seconds", "7200", "--gap", &gap.as_millis().to_string()]);
        let child = php.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let writers = Writers { stop, child: Some(child) };
        World::until("pairs are written", || {
            world.root().join("data/writers").read_dir().is_ok_and(|d| d.count() > 10)
        });
        writers
    }

    /// Ends them; what they tell.
    fn stop(mut self) -> Value {
        std::fs::write(&self.stop, "").unwrap();
        let told = self.child.take().unwrap().wait_with_output().unwrap();
        std::fs::remove_file(&self.stop).unwrap();
        serde_json::from_slice(&told.stdout).unwrap()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            std::fs::write(&self.stop, "").ok();
            child.wait().ok();
        }
    }
}

/// Restores the snapshot of `date` and judges its pairs.
fn judge(world: &World, date: &str) -> Value {
    let snapshot = world.store().join(date);
    let mut restore = Command::new(bin("pg-snap"));
    restore.args([
        "restore",
        "home",
        "--yes",
        "--database",
        "judged",
        "--admin-user",
        "postgres",
        "--config",
    ]);
    restore.arg(world.path("home.toml")).arg("--from").arg(snapshot.join("database"));
    restore.arg("--admin-host").arg(format!("{}:{}", world.cluster.socket.display(), world.cluster.port));
    run(&mut restore).expect(0);
    let mut psql = Command::new("psql");
    psql.arg("-h").arg(&world.cluster.socket).args(["-p", &world.cluster.port.to_string(), "-U", "postgres"]);
    psql.args(["-qXd", "judged", "-c"]);
    psql.arg("COPY (SELECT id, state, name, size, checksum FROM oc_writers) TO STDOUT");
    let mut rows = psql.stdout(Stdio::piped()).spawn().unwrap();
    let mut php = Command::new("php");
    php.arg(lab("writers.php")).arg("judge").arg(snapshot.join("data"));
    let told = php.stdin(rows.stdout.take().unwrap()).output().unwrap();
    assert!(rows.wait().unwrap().success());
    serde_json::from_slice(&told.stdout).unwrap()
}

#[test]
fn every_backup_among_writers_holds_whole_pairs_only() {
    let runs = std::env::var("NC_BACKUP_TORN_RUNS").map_or(RUNS, |n| n.parse().unwrap());
    let world = World::new("pairs");
    let (mut pairs, mut down, mut tries) = (0, Vec::new(), 0);
    let writers = Writers::start(&world, GAP);
    for _ in 0..runs {
        let ran = run(&mut world.backup()).expect(0);
        let judged = judge(&world, ran.json["data"]["date"].as_str().unwrap());
        assert_eq!(judged["torn"], 0, "{judged:#}\n{:#}", ran.json);
        pairs += judged["pairs"].as_u64().unwrap();
        down.push(ran.json["data"]["maintenance_ms"].as_u64().unwrap());
        tries += ran.stderr.matches("a request came late").count();
        // Shown with --nocapture.
        println!("{} backups, {pairs} pairs whole, {tries} tries more", down.len());
        std::thread::sleep(Duration::from_millis(200));
    }
    let told = writers.stop();
    assert_eq!(told["errors"], serde_json::json!([]), "{told:#}");
    assert!(pairs > 0 && told["refused"].as_u64().unwrap() > 0, "{told:#}");
    println!("maintenance {down:?} ms, writers {told}");
}

#[test]
fn files_that_are_taken_before_the_drain_are_torn_and_the_judge_finds_them() {
    let world = World::new("torn");
    // What comes before settle comes after it.
    let late = "shift; sleep 0.5; \"$real\" drain \"$@\" >/dev/null && \"$real\" hold \"$@\" >/dev/null || exit; set -- confirm \"$@\"";
    world.inject("pg-snap", "drain*toml | hold*", &format!("exit 0 ;; confirm*) {late}"));
    // It would not be sealed.
    world.inject("link-sync", "publish*", "set -- \"$@\" --crash-consistent");
    let writers = Writers::start(&world, GAP);
    let torn = (0..15).any(|_| {
        let ran = run(&mut world.backup());
        // Some fail, as files move in maintenance.
        let date = ran.json["data"]["date"].as_str();
        let steps = ran.json["data"]["steps"].as_array().unwrap();
        if let Some(published) = steps.iter().find(|s| s["step"] == "publish" && s["exit_code"] == 0) {
            assert_eq!(published["output"]["data"]["consistency"], "crash-consistent", "{:#}", ran.json);
        }
        ran.code == 0 && date.is_some_and(|date| judge(&world, date)["torn"] != 0)
    });
    drop(writers);
    assert!(torn, "fifteen backups without a drain before the files, and no torn pair");
}
