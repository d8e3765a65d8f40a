//! A Nextcloud stand-in of one's own, and what a test asks about it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{Ran, bin, repo, scratch};

/// One instance with nothing else on the machine knowing of it. Gone with the value.
pub(crate) struct World {
    dir: tempfile::TempDir,
    web: Option<Child>,
    /// How the switch is thrown, or the tool's own choice.
    method: Option<&'static str>,
}

impl World {
    /// Where occ throws the switch.
    pub(crate) fn new() -> World {
        World::with(Some("occ"))
    }

    /// Where the drop-in is chosen by the tool itself.
    pub(crate) fn auto() -> World {
        World::with(None)
    }

    fn with(method: Option<&'static str>) -> World {
        let uid = Command::new("id").arg("-u").output().unwrap().stdout;
        assert_eq!(uid, b"0\n", "these tests need root: occ has to change its user");
        let world = World { dir: scratch(), web: None, method };
        // The web user must get through to its files.
        std::fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        for dir in ["config", "data"] {
            std::fs::create_dir_all(world.root().join(dir)).unwrap();
        }
        let fake = repo().join("tests/fakes/nextcloud");
        for file in std::fs::read_dir(fake).unwrap().map(|e| e.unwrap().path()) {
            std::fs::copy(&file, world.root().join(file.file_name().unwrap())).unwrap();
        }
        std::fs::write(world.data().join(".ncdata"), "# Nextcloud data directory").unwrap();
        world.configure("");
        world
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("nc")
    }
    pub(crate) fn data(&self) -> PathBuf {
        self.root().join("data")
    }
    pub(crate) fn config(&self) -> PathBuf {
        self.root().join("config/config.php")
    }
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
    pub(crate) fn record(&self) -> PathBuf {
        self.state().join("maintenance.json")
    }

    /// Writes config.php with `more` in it, owned by the web user.
    pub(crate) fn configure(&self, more: &str) {
        let data = self.data();
        let text = format!(
            "<?php\n$CONFIG = array (\n 'instanceid' => 'ocstandin', 'version' => '32.0.1.2', 'installed' => true,\n \
             'datadirectory' => '{}', 'dbtype' => 'pgsql', 'dbhost' => '/run/postgresql', 'dbname' => 'nextcloud',\n \
             'dbuser' => 'nextcloud', 'dbpassword' => 'pass\"word', 'dbtableprefix' => 'oc_',\n {more}\n);\n",
            data.display()
        );
        std::fs::write(self.config(), text).unwrap();
        std::fs::set_permissions(self.config(), PermissionsExt::from_mode(0o640)).unwrap();
        let chown = Command::new("chown").args(["-R", "www-data:www-data"]).arg(self.root()).status();
        assert!(chown.unwrap().success());
    }

    /// Orders misbehaviour; see the stand-in.
    pub(crate) fn misbehave(&self, ini: &str) {
        std::fs::write(self.root().join("config/standin.ini"), ini).unwrap();
    }

    /// All drop-ins of any run.
    pub(crate) fn drop_ins(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.root().join("config")).unwrap().map(|e| e.unwrap().path());
        let ours =
            |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().contains("zz-nc-backup-maintenance");
        let mut found: Vec<PathBuf> = entries.filter(ours).collect();
        found.sort();
        found
    }

    /// Where earlier versions put it, always.
    pub(crate) fn old_drop_in(&self) -> PathBuf {
        self.root().join("config/zz-nc-backup-maintenance.config.php")
    }

    /// What config.php and the drop-in say, whatever occ is ordered to say.
    pub(crate) fn maintenance(&self) -> bool {
        let code = "$CONFIG = []; include $argv[1]; foreach (glob(dirname($argv[1]) . '/zz-nc-*.php') as $f) include $f; \
                    echo empty($CONFIG['maintenance']) ? 'off' : 'on';";
        let out = Command::new("php").args(["-r", code, "--"]).arg(self.config()).output().unwrap();
        match out.stdout.as_slice() {
            b"on" => true,
            b"off" => false,
            other => panic!("config.php cannot be read: {}", String::from_utf8_lossy(other)),
        }
    }

    /// Switches as an administrator would.
    pub(crate) fn occ(&self, args: &[&str]) {
        let done = Command::new("php").arg(self.root().join("occ")).args(args).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    /// `nc-maint ACTION` on this instance; more arguments may follow.
    pub(crate) fn nc_maint(&self, action: &str) -> Command {
        let mut command = Command::new(bin("nc-maint"));
        command.arg(action).arg("--root").arg(self.root()).arg("--state-dir").arg(self.state());
        command.args(self.method.map(|m| format!("--method={m}")));
        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
            command.env_remove(name);
        }
        command
    }

    #[track_caller]
    pub(crate) fn ask(&self, action: &str, args: &[&str]) -> Ran {
        testkit::run(self.nc_maint(action).args(args))
    }

    /// The same without the method that the world stands for.
    #[track_caller]
    pub(crate) fn ask_plainly(&self, action: &str, args: &[&str]) -> Ran {
        let mut command = Command::new(bin("nc-maint"));
        command.arg(action).arg("--root").arg(self.root()).arg("--state-dir").arg(self.state()).args(args);
        testkit::run(&mut command)
    }

    /// Runs a shell script in maintenance.
    #[track_caller]
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Ran {
        testkit::run(self.nc_maint("run").args(options).args(["--", "sh", "-c", script]))
    }

    /// Starts the same in the background, in a group of its own, and waits until the script has made `ready`.
    pub(crate) fn start(&self, options: &[&str], script: &str, ready: &str) -> Child {
        let child = self.spawn(options, script);
        eventually("the command is ready", || self.path().join(ready).exists());
        child
    }

    pub(crate) fn spawn(&self, options: &[&str], script: &str) -> Child {
        use std::os::unix::process::CommandExt as _;
        let mut command = self.nc_maint("run");
        command.args(options).args(["--", "sh", "-c", script]).current_dir(self.path());
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Starts PHP's web server on this instance; its URL.
    pub(crate) fn serve(&mut self) -> String {
        self.serve_with(&[])
    }

    /// The same with settings of PHP.
    pub(crate) fn serve_with(&mut self, ini: &[&str]) -> String {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut php = Command::new("php");
        php.args(ini.iter().flat_map(|i| ["-d", i]))
            .args(["-S", &address, "-t"])
            .arg(self.root())
            .current_dir(self.root());
        let web = php.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.web = Some(web);
        eventually("the web server answers", || std::net::TcpStream::connect(&address).is_ok());
        format!("http://{address}/")
    }

    /// What clients are told.
    pub(crate) fn clients(&self, url: &str) -> bool {
        let out = Command::new("curl").args(["-s", &format!("{url}status.php")]).output().unwrap();
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["maintenance"].as_bool().unwrap()
    }

    /// The number a script wrote into `name`.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        let text = std::fs::read_to_string(self.path().join(name)).unwrap();
        text.trim().parse().unwrap()
    }

    /// Nothing is left of a run: no maintenance, no record.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert!(!self.maintenance(), "maintenance is still on");
        let left: Vec<_> = ["maintenance.json", "switch.json"]
            .into_iter()
            .filter(|f| self.state().join(f).exists())
            .collect();
        assert!(left.is_empty(), "still written down: {left:?}");
        assert!(self.drop_ins().is_empty(), "a drop-in is still there: {:?}", self.drop_ins());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(web) = &mut self.web {
            web.kill().unwrap();
            web.wait().unwrap();
        }
    }
}

/// Waits for `condition`, at most fifteen seconds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to a process, or with a negative number to its group.
pub(crate) fn signal(pid: i64, name: &str) {
    let sent = Command::new("kill").args(["-s", name, "--", &pid.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -s {name} {pid}");
}

/// Whether a process lives (one that only waits to be reaped does not).
pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The guardian of a running `nc-maint run`: its only child.
pub(crate) fn guardian(front: u32) -> u32 {
    let mut found = None;
    eventually("there is a guardian", || {
        let front = front.to_string();
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &front]).output().unwrap();
        let text = String::from_utf8(children.stdout).unwrap();
        found = text.split_whitespace().next().map(|pid| pid.parse().unwrap());
        found.is_some()
    });
    found.unwrap()
}
