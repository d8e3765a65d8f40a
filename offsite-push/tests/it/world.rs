//! A machine of a test's own: a store, a container, stand-ins for the siblings, a mount namespace.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{Ran, bin, judge, scratch, script};

/// Oldest first.
pub(crate) const DATES: [&str; 3] = ["2026-11-20T03-30-00Z", "2026-11-21T03-30-00Z", "2026-11-22T03-30-00Z"];

/// Everything in it goes away with the value; its mounts also when the test is killed.
pub(crate) struct World {
    dir: tempfile::TempDir,
    namespace: Child,
}

impl World {
    /// A store with the oldest date, an empty container, a profile with S3.
    pub(crate) fn new() -> World {
        let dir = scratch();
        let mut namespace = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(namespace.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let world = World { dir, namespace };
        for name in ["bin", "plan", "disk", "store", "state", "run"] {
            std::fs::create_dir(world.path(name)).unwrap();
        }
        for name in ["state", "run"] {
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(world.path(name), private).unwrap();
        }
        if std::fs::hard_link(bin("offsite-push"), world.path("bin/offsite-push")).is_err() {
            std::fs::copy(bin("offsite-push"), world.path("bin/offsite-push")).unwrap();
        }
        let text = include_str!("siblings.sh").replace("@WORLD@", dir_text(world.dir.path()));
        for tool in ["sshfs-mount", "luks-mount", "link-sync"] {
            script(&world.path("bin").join(tool), &text.replace("@TOOL@", tool));
        }
        // As if S3's folder were mounted: its disk is asked for room.
        std::fs::create_dir(world.path("run/s3")).unwrap();
        world.write("run/s3/container.img", "image");
        world.write("uuid", "uuid-1");
        world.write("needs-s3", "");
        world.write_profile(
            "[offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/srv/backup\"\n",
            "container.img",
        );
        world.snapshot(DATES[0]);
        world
    }

    pub(crate) fn write_profile(&self, sshfs: &str, image: &str) {
        let dir = self.dir.path().display();
        // Trees, where a test does not say otherwise.
        let offsite = if sshfs.contains("[offsite]") { "" } else { "[offsite]\nlayout = \"hardlink\"\n" };
        let text = format!(
            "state_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n[store]\npath = \"{dir}/store\"\n{offsite}{sshfs}\n\
             [offsite.luks]\nimage = \"{image}\"\nkey_file = \"{dir}/key\"\n"
        );
        std::fs::write(self.path("home.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default().trim().to_owned()
    }

    /// Adds a snapshot to the store.
    pub(crate) fn snapshot(&self, date: &str) {
        let meta = self.path("store").join(date).join(".meta");
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(meta.join("snapshot.json"), format!("{{\"id\":\"id-{date}\"}}")).unwrap();
    }

    /// What `TOOL-ACTION` does from now on, instead of or before its work.
    pub(crate) fn plan(&self, step: &str, text: &str) {
        std::fs::write(self.path("plan").join(step), text).unwrap();
    }
    pub(crate) fn no_plan(&self, step: &str) {
        std::fs::remove_file(self.path("plan").join(step)).unwrap();
    }

    /// Starts `program` in this machine's mount namespace.
    pub(crate) fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.namespace.id())).arg("--").arg(program);
        command
    }

    /// What is mounted in that namespace is seen below this.
    pub(crate) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.namespace.id()))
    }

    pub(crate) fn command(&self, action: &str, options: &[&str]) -> Command {
        let mut command = self.enter(self.path("bin/offsite-push"));
        command
            .args([action, "home", "--config"])
            .arg(self.path("home.toml"))
            .args(options)
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, action: &str, options: &[&str]) -> Ran {
        judge(self.command(action, options).output().unwrap())
    }
    #[track_caller]
    pub(crate) fn push(&self) -> Ran {
        self.run("push", &[])
    }

    #[track_caller]
    pub(crate) fn push_ok(&self) {
        self.push().expect(0);
    }

    /// Starts it, and returns when a stand-in has come to `pause`.
    pub(crate) fn start_until_paused(&self, action: &str) -> Child {
        std::fs::remove_file(self.path("paused")).ok();
        let mut command = self.command(action, &[]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("a stand-in waits", || !self.read("paused").is_empty());
        child
    }

    /// What was called since the last time it was asked: tools and actions.
    pub(crate) fn calls(&self) -> Vec<String> {
        let log = self.read("log");
        std::fs::remove_file(self.path("log")).ok();
        let two = |l: &str| l.split(' ').take(2).collect::<Vec<_>>().join(" ");
        log.lines().map(two).collect()
    }

    /// The dates in the container.
    pub(crate) fn container(&self) -> Vec<String> {
        let list = std::fs::read_dir(self.path("disk/snapshots")).into_iter().flatten();
        let names = list.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|n| n.starts_with("20")).collect();
        names.sort();
        names
    }

    pub(crate) fn record(&self) -> Value {
        serde_json::from_str(&self.read("state/offsite.json")).unwrap_or_default()
    }
    pub(crate) fn stamp(&self) -> Value {
        serde_json::from_str(&self.read("disk/generation.json")).unwrap_or_default()
    }

    /// Nothing is mounted, for the stand-ins and for the kernel.
    pub(crate) fn is_down(&self) -> bool {
        let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", self.namespace.id())).unwrap();
        let state = |name: &str, down: &str| {
            matches!(self.read(name).as_str(), "" | "detached") || self.read(name) == down
        };
        state("s3", "unmounted") && state("luks", "detached") && !mounts.contains(dir_text(self.dir.path()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.namespace.stdin.take());
        self.namespace.wait().unwrap();
    }
}

fn dir_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        // (many guests share a machine)
        assert!(begun.elapsed() < Duration::from_secs(120), "{what}: not within 120 seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

/// The names of the steps.
pub(crate) fn steps(ran: &Ran) -> Vec<&str> {
    ran.json["data"]["steps"].as_array().unwrap().iter().map(|s| s["step"].as_str().unwrap()).collect()
}
