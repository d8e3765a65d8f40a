//! A container of one's own, and what a test asks about it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use testkit::guest::Options;
use testkit::{Ran, bin, scratch};

/// True if the test has been done in the guest.
#[track_caller]
pub(crate) fn elsewhere(test: &str) -> bool {
    testkit::guest::run_me(test, Options { memory: 2048, seconds: 1200 })
}

/// Cheap keys: what makes guessing hard is not what is tested.
pub(crate) const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000"];

/// A profile with its key; no container yet. Detached when dropped.
pub(crate) struct World {
    dir: tempfile::TempDir,
    name: String,
}

impl World {
    pub(crate) fn new() -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let world = World { dir: scratch(), name };
        world.key("key");
        std::fs::create_dir(world.path("s3")).unwrap();
        world.configure("");
        world
    }

    /// With a container of so many MiB.
    pub(crate) fn with(mib: u32, file_system: &str) -> World {
        let world = World::new();
        world.create(&["--size", &format!("{mib}M"), "--file-system", file_system]).expect(0);
        world
    }

    /// Another machine with a copy of this one's state, as if that had been restored from a backup: the same key and
    /// image.
    pub(crate) fn twin(&self) -> World {
        let twin = World::new();
        twin.sh(&format!(
            "mount --bind {0}/s3 s3; cp -p {0}/key key; cp -rp {0}/state state",
            self.dir.path().display()
        ));
        twin
    }

    pub(crate) fn configure(&self, more: &str) {
        self.configure_for("hardlink", more);
    }

    /// With a layout, which says what file system a new container gets.
    pub(crate) fn configure_for(&self, layout: &str, more: &str) {
        let text = format!(
            "state_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[offsite]\nlayout = \"{layout}\"\n[offsite.luks]\nimage = \"{0}/s3/c.img\"\n\
             key_file = \"{0}/key\"\n{more}",
            self.dir.path().display()
        );
        std::fs::write(self.path(&format!("{}.toml", self.name)), text).unwrap();
        self.sh(&format!("chmod 644 {}.toml", self.name));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub(crate) fn image(&self) -> PathBuf {
        self.path("s3/c.img")
    }
    pub(crate) fn header(&self) -> PathBuf {
        self.path("state/container.header")
    }
    pub(crate) fn container(&self) -> PathBuf {
        self.path("run/container")
    }
    pub(crate) fn mapping(&self) -> String {
        format!("nc-backup-{}", self.name)
    }

    /// A file with a random key.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.sh(&format!("umask 077; head -c 64 /dev/urandom >{name}"));
        self.path(name)
    }

    /// Runs luks-mount with this profile.
    #[track_caller]
    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        action: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Ran {
        let mut command = Command::new(bin("luks-mount"));
        command.arg(action).arg("--config").arg(self.path(&format!("{}.toml", self.name))).args(args);
        testkit::run(&mut command)
    }

    #[track_caller]
    pub(crate) fn create(&self, args: &[&str]) -> Ran {
        self.run("create", args.iter().chain(&CHEAP))
    }
    #[track_caller]
    pub(crate) fn attach(&self) -> Ran {
        self.run("attach", [""; 0])
    }
    #[track_caller]
    pub(crate) fn detach(&self) -> Ran {
        self.run("detach", [""; 0])
    }
    #[track_caller]
    pub(crate) fn state(&self) -> Value {
        self.run("status", [""; 0]).expect(0).json["data"]["state"].clone()
    }

    /// Runs a shell command in the world's folder; its stdout.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(self.dir.path()).env("DM_DISABLE_UDEV", "1");
        if Path::new("/run/udev/control").exists() {
            command.env_remove("DM_DISABLE_UDEV");
        }
        let out = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{script}: {}\n{stderr}", out.status);
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// Nothing of this world is mounted, mapped or held by a loop device.
    #[track_caller]
    pub(crate) fn nothing_is_up(&self) {
        let here = self.dir.path().display();
        let left = self.sh(&format!(
            "losetup --list --noheadings --output NAME,BACK-FILE | grep -F {here}/ || :; dmsetup ls | grep -F {} || :; \
             grep -F {here}/run/ /proc/self/mountinfo || :",
            self.mapping()
        ));
        assert_eq!(left, "");
    }

    /// Bytes that the image really takes.
    pub(crate) fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(self.image()).unwrap().blocks() * 512
    }

    /// How often `text` stands in the image.
    pub(crate) fn occurs(&self, text: &str) -> usize {
        self.sh(&format!("grep -aoF {text} s3/c.img | wc -l")).parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if testkit::guest::in_guest() {
            return;
        }
        // For a test that failed on a machine that lives on.
        let script = format!(
            "for m in $(grep -F {0}/ /proc/self/mountinfo | cut -d' ' -f5 | tac); do umount $m; done
             cryptsetup close {1}
             losetup -nO NAME,BACK-FILE | grep -F {0}/ | while read l f; do losetup -d $l; done",
            self.dir.path().display(),
            self.mapping()
        );
        Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).status().ok();
    }
}

/// The kinds of the warnings.
pub(crate) fn warnings(ran: &Ran) -> Vec<&str> {
    ran.json["warnings"].as_array().unwrap().iter().filter_map(|w| w["kind"].as_str()).collect()
}
