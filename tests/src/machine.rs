//! A machine of its own for a test (`tests/lab/machine`): accounts, /etc, /root and /home can be changed and are as they
//! were afterwards, whatever ends the test.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::postgres::Cluster;

/// The machine, with the tools in /usr/sbin and the scripts in /usr/lib/nc-backup; its processes end with it.
#[derive(Debug)]
pub struct Machine {
    dir: tempfile::TempDir,
    keeper: Child,
    servers: Vec<Child>,
}

impl Machine {
    /// Starts one. Wants root.
    #[track_caller]
    pub fn start() -> Machine {
        let dir = crate::scratch();
        let mut keeper = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(crate::lab("machine"))
            .arg(dir.path())
            .args(["sh", "-c", "echo ready; exec sleep 100000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the machine starts");
        let mut said = String::new();
        let out = keeper.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut said).expect("it says so");
        assert_eq!(said, "ready\n", "the machine does not start");
        let machine = Machine { dir, keeper, servers: Vec::new() };
        let tools = crate::bin("link-sync").parent().expect("target/debug").to_owned();
        machine.sh(&format!(
            "for t in nc-maint pg-snap link-sync sshfs-mount luks-mount offsite-push; do ln -sf '{0}'/$t /usr/sbin/$t; done
             rm -rf /etc/nc-backup /var/lib/nc-backup /root/.ssh; mkdir -p /etc/nc-backup /usr/lib/nc-backup /etc/cron.d
             for f in '{1}'/*; do [ ! -f \"$f\" ] || cp \"$f\" /usr/lib/nc-backup/; done",
            tools.display(),
            crate::scripts().display()
        ));
        machine
    }

    /// A command on it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()))
            .args(["--wdns=/", "--"])
            .arg(program);
        command.stdin(Stdio::null()).env("HOME", "/root").current_dir("/");
        command
    }

    /// One of the installed scripts.
    pub fn script(&self, name: &str) -> Command {
        self.command(&format!("/usr/lib/nc-backup/{name}"))
    }

    /// Runs shell text, which must succeed: what it printed.
    #[track_caller]
    pub fn sh(&self, text: &str) -> String {
        let output = self.command("sh").args(["-euc", text]).output().expect("sh starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{}: {said}", output.status);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Whether shell text succeeds.
    pub fn holds(&self, text: &str) -> bool {
        let ran = self.command("sh").args(["-c", text]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        ran.is_ok_and(|status| status.success())
    }

    /// Where a file of it that was changed lies on the real machine.
    pub fn changed(&self, path: &str) -> PathBuf {
        self.dir.path().join("upper").join(path.trim_start_matches('/'))
    }

    /// Its sshd, by its own configuration, on a free port of 127.0.0.1.
    #[track_caller]
    pub fn sshd(&mut self) -> u16 {
        self.sh("ssh-keygen -A >/dev/null; mkdir -p /run/sshd");
        for _ in 0..20 {
            let port = free_port();
            let mut server = self.command("setpriv");
            server.args(["--pdeathsig", "KILL", "--", "/usr/sbin/sshd", "-D", "-e"]);
            server.args(["-p", &port.to_string(), "-o", "ListenAddress=127.0.0.1", "-o", "PidFile=none"]);
            let log = std::fs::File::create(self.dir.path().join("sshd.log")).expect("a log");
            server.stderr(log).stdout(Stdio::null());
            let mut server = server.spawn().expect("sshd starts");
            for _ in 0..200 {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    self.servers.push(server);
                    return port;
                }
                if server.try_wait().is_ok_and(|ended| ended.is_some()) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            drop(server.kill());
            drop(server.wait());
        }
        panic!("no sshd: {}", std::fs::read_to_string(self.dir.path().join("sshd.log")).unwrap_or_default());
    }

    /// Something that looks like cron, for who looks whether it runs.
    #[track_caller]
    pub fn cron(&mut self) {
        let program = self.dir.path().join("cron");
        std::fs::copy("/bin/sleep", &program).expect("sleep can be copied");
        let mut cron = self.command("setpriv");
        let cron = cron.args(["--pdeathsig", "KILL", "--"]).arg(program).arg("3600").spawn();
        self.servers.push(cron.expect("it starts"));
    }

    /// Ends its servers.
    pub fn stop_servers(&mut self) {
        for mut child in self.servers.drain(..) {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// The folder of the real machine that all of it lies in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().chain([&mut self.keeper]) {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A sample Nextcloud with its database, which every machine sees under the same path.
#[derive(Debug)]
pub struct Instance {
    /// Its server.
    pub cluster: std::sync::Arc<Cluster>,
    /// Nextcloud's folder.
    pub root: PathBuf,
    _dir: tempfile::TempDir,
}

impl Instance {
    /// Makes one, with a database of this name on the shared server.
    #[track_caller]
    pub fn new(database: &str) -> Instance {
        let (dir, cluster) = (crate::scratch(), Cluster::shared());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod works");
        let sample = dir.path().join("sample");
        let mut make = Command::new(crate::lab("sample-instance"));
        make.env("PGHOST", &cluster.socket).env("PGPORT", cluster.port.to_string()).env("PGUSER", "postgres");
        make.arg(&sample).args(["--files", "30", "--database", database]).stdin(Stdio::null());
        let made = make.output().expect("the script starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Instance { cluster, root: sample.join("nextcloud"), _dir: dir }
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_on_it_is_not_changed_here() {
        let machine = Machine::start();
        machine.sh("useradd --create-home ncb-only-there; touch /etc/ncb-only-there");
        assert!(machine.changed("/etc/ncb-only-there").exists());
        assert!(machine.holds("id ncb-only-there"));
        assert!(!Path::new("/etc/ncb-only-there").exists() && !Path::new("/home/ncb-only-there").exists());
        assert!(!std::fs::read_to_string("/etc/passwd").unwrap().contains("ncb-only-there"));
    }
}
