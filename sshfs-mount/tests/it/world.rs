//! An S3 of one's own, played by sshd on loopback, and what a test asks about its mount.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::sshd::Sshd;
use testkit::{Ran, bin, scratch};

/// One S3, one profile, one mount point. Gone with the value, whatever the test left mounted.
pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) sshd: Sshd,
}

impl World {
    pub(crate) fn new() -> World {
        let uid = Command::new("id").arg("-u").output().unwrap().stdout;
        assert_eq!(uid, b"0\n", "these tests need root: they mount");
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        let world = World { dir: scratch(), sshd: Sshd::start("root") };
        std::fs::create_dir(world.far()).unwrap();
        let profile = format!(
            "state_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[offsite.sshfs]\nhost = \"root@127.0.0.1\"\n\
             directory = \"{1}\"\nport = {2}\nidentity = \"{3}\"\nknown_hosts = \"{4}\"\n",
            world.path().display(),
            world.far().display(),
            world.sshd.port,
            world.sshd.identity.display(),
            world.sshd.known_hosts.display()
        );
        std::fs::write(world.profile(), profile).unwrap();
        std::fs::set_permissions(world.profile(), PermissionsExt::from_mode(0o600)).unwrap();
        world
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
    /// The folder on S3.
    pub(crate) fn far(&self) -> PathBuf {
        self.path().join("far, 100%")
    }
    /// Where it is mounted.
    pub(crate) fn near(&self) -> PathBuf {
        self.path().join("run/s3")
    }
    fn profile(&self) -> PathBuf {
        self.path().join("home.toml")
    }

    /// The tool's command line.
    pub(crate) fn command(&self, action: &str, options: &[&str]) -> Command {
        let mut command = Command::new(bin("sshfs-mount"));
        command.arg(action).arg("--config").arg(self.profile()).args(options);
        command
    }

    /// Runs the tool.
    #[track_caller]
    pub(crate) fn run(&self, action: &str, options: &[&str]) -> Ran {
        testkit::run(&mut self.command(action, options))
    }

    /// Starts the tool.
    pub(crate) fn spawn(&self, action: &str, options: &[&str]) -> Child {
        let mut command = self.command(action, options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Mounts, and returns the sshfs.
    #[track_caller]
    pub(crate) fn mount(&self, options: &[&str]) -> u32 {
        pid(&self.run("mount", options).expect(0))
    }

    /// `data.state` of `status`.
    #[track_caller]
    pub(crate) fn state(&self) -> String {
        let ran = self.run("status", &[]).expect(0);
        assert_eq!(ran.json["changed"], false);
        ran.json["data"]["state"].as_str().unwrap().to_owned()
    }

    /// What is mounted at the mount point.
    pub(crate) fn mounted(&self) -> bool {
        table().lines().any(|l| l.split(' ').nth(4) == self.near().to_str())
    }

    /// Asserts that nothing is mounted, no process of ours is left and nothing is remembered.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert!(!self.mounted(), "still mounted");
        eventually("all processes have ended", || self.processes().is_empty());
        let mut left: Vec<_> = std::fs::read_dir(self.path().join("run"))
            .map(|dir| dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        left.retain(|name| name != "s3" && name != "s3.lock");
        assert_eq!(left, [""; 0], "left in the runtime folder");
    }

    /// The living processes that have this world's folder among their arguments: sshfs, ssh, relay.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let ours = |pid: &u32| {
            let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let argv = String::from_utf8_lossy(&argv).into_owned();
            argv.contains(&format!("{}/run/s3", self.path().display()))
        };
        let name = |pid: u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, name.trim().to_owned())
        };
        pids.filter(ours).map(name).collect()
    }

    /// The one of them with this name.
    #[track_caller]
    pub(crate) fn process(&self, name: &str) -> u32 {
        let all = self.processes();
        all.iter().find(|p| p.1 == name).unwrap_or_else(|| panic!("no {name} in {all:?}")).0
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            signal(pid, "KILL");
        }
        for line in table().lines() {
            let target = line.split(' ').nth(4).unwrap_or_default();
            if Path::new(target).starts_with(self.path()) {
                Command::new("umount").args(["-i", "-c", "-l", target]).status().ok();
            }
        }
    }
}

/// `data.pid`.
#[track_caller]
pub(crate) fn pid(ran: &Ran) -> u32 {
    u32::try_from(ran.json["data"]["pid"].as_u64().unwrap()).unwrap()
}

pub(crate) fn table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

pub(crate) fn signal(pid: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), "--", &pid.to_string()]).status().unwrap();
}

/// Whether it runs: one that waits to be collected has ended.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The kinds of the warnings.
pub(crate) fn warnings(ran: &Ran) -> Vec<&str> {
    ran.json["warnings"].as_array().unwrap().iter().filter_map(|w| w["kind"].as_str()).collect()
}

/// The error's message, its hint after it.
pub(crate) fn told(ran: &Ran) -> String {
    let text = |key: &str| ran.json["error"][key].as_str().unwrap_or_default().to_owned();
    text("message") + " // " + &text("hint")
}
