//! A machine after so many nights, made up by `tests/lab/sample-history`.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use testkit::{Ran, lab, run, scratch, scripts};

pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// With these options of `sample-history`.
    pub fn new(options: &[&str]) -> World {
        let world = World { dir: scratch() };
        let made = Command::new(lab("sample-history")).arg(world.path("")).args(options).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        world
    }

    /// One that knows of nothing.
    pub fn empty() -> World {
        World::new(&["--nights", "0"])
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("world").join(name)
    }

    pub fn script(&self, name: &str, options: &[&str]) -> Command {
        let mut command = Command::new(scripts().join(name));
        command.arg("home").arg("--config").arg(self.path("home.toml")).arg("--bin").arg(self.path("bin"));
        command.args(options).stdin(Stdio::null());
        command
    }

    pub fn report(&self, options: &[&str]) -> Command {
        self.script("report", options)
    }

    /// The page, from stdout.
    pub fn page(&self) -> String {
        page(self.report(&[]).output().unwrap())
    }

    /// What it tells, as an object.
    pub fn told(&self) -> Ran {
        run(&mut self.report(&["--json"])).expect(0)
    }

    /// The answer of a tool, changed.
    pub fn answers(&self, answer: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path(answer);
        let mut object: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut object);
        std::fs::write(path, format!("{object}\n")).unwrap();
    }

    /// The history is these lines.
    pub fn history(&self, lines: &[String]) {
        std::fs::write(self.path("state/history.jsonl"), lines.join("\n") + "\n").unwrap();
    }
}

/// What was printed, if all went well.
#[track_caller]
pub fn page(output: Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = String::from_utf8_lossy(&output.stdout).chars().take(2000).collect::<String>();
    assert!(output.status.success(), "{:?} {told} {said}", output.status.code());
    assert_eq!(told, "");
    // (jq's versions differ.)
    String::from_utf8(output.stdout).expect("the page is UTF-8").replace("&apos;", "&#39;")
}

/// A moment so many days before today, at `hour`, in UTC.
pub fn at(days_before: i64, hour: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let at = (now / 86400 - days_before) * 86400 + hour * 3600;
    let out = Command::new("date").args(["-u", "-d", &format!("@{at}"), "+%Y-%m-%dT%H:%M:%SZ"]).output();
    String::from_utf8(out.unwrap().stdout).unwrap().trim().to_owned()
}

/// A line of the history.
pub fn ran(kind: &str, at: &str, code: i32, message: &str) -> String {
    let error = json!({"message": message});
    json!({"kind": kind, "started_at": at, "ended_at": at, "exit_code": code, "duration_ms": 61_000,
        "data": {"maintenance_ms": 900, "sources": [{"sent_bytes": 5, "bytes": 10}, {"sent_bytes": 7, "bytes": 20}], "push": {"sent_bytes": 3}},
        "warnings": if code == 3 { json!([{"kind": "odd", "message": message}]) } else { json!([]) }, "left_behind": [],
        "error": if code == 0 || code == 3 { Value::Null } else { error }})
    .to_string()
}
