//! S1, S2 and S3 as network namespaces for tests: `tests/lab/hosts`, with its end tied to ours.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::keeper::{Keeper, value};

/// The slow link between S2 and S3, and who may log in where.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// From S2 to S3, in kbit/s; 0 for no limit.
    pub up_kbit: u32,
    /// From S3 to S2, in kbit/s; 0 for no limit.
    pub down_kbit: u32,
    /// There and back, in milliseconds. Only where the kernel has netem: see [`Hosts::link`].
    pub delay_ms: u32,
    /// The account that the sshd of S1, S2 and S3 lets in.
    pub users: [&'a str; 3],
}

impl Default for Setting<'_> {
    fn default() -> Self {
        Setting { up_kbit: 8000, down_kbit: 8000, delay_ms: 40, users: ["root"; 3] }
    }
}

/// One host: files, processes and accounts are this machine's, the network is its own.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its network namespace, for `nsenter --net=`.
    pub netns: PathBuf,
    /// Its address; for S2, the one that S1 sees.
    pub address: String,
    /// Its sshd's port.
    pub port: u16,
    /// The only account its sshd lets in.
    pub user: String,
    /// The private key of its clients.
    pub identity: PathBuf,
    /// A known_hosts file that holds its host key.
    pub known_hosts: PathBuf,
    /// The file that decides what its clients' key may do; read at every connection.
    pub authorized_keys: PathBuf,
    /// What its sshd logged.
    pub log: PathBuf,
}

/// The three hosts; ended with everything that runs in them when dropped, and also when the test is killed.
#[derive(Debug)]
pub struct Hosts {
    /// The host of Nextcloud.
    pub s1: Host,
    /// The host of the snapshots.
    pub s2: Host,
    /// The host of the container.
    pub s3: Host,
    /// S2's address as S3 sees it.
    pub s2_far: String,
    /// What slows the link down: `netem` (rate and delay), `tbf` (rate only) or `none`.
    pub link: String,
    dir: PathBuf,
    _keeper: Keeper,
}

/// What has passed S2's side of the link to S3, headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// From S2.
    pub sent: u64,
    /// To S2.
    pub received: u64,
}

impl Hosts {
    /// Starts the hosts. Wants root.
    #[track_caller]
    pub fn start(setting: Setting<'_>) -> Hosts {
        // Not a private folder: the sshds read authorized_keys as the accounts.
        let parent =
            tempfile::Builder::new().prefix("ncb-hosts-").tempdir().expect("a temporary folder").keep();
        std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o711)).expect("chmod works");
        let dir = parent.join("hosts");
        let keeper = Keeper::new(&script(), &dir, &parent);
        let output = Command::new(script())
            .args(["start", "--up", &setting.up_kbit.to_string(), "--down", &setting.down_kbit.to_string()])
            .args(["--delay", &setting.delay_ms.to_string(), "--users", &setting.users.join(",")])
            .arg(&dir)
            .stdin(Stdio::null())
            .output()
            .expect("the script starts");
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "the hosts do not start");
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        let host = |name: &str| {
            let value = |key: &str| value(&told, &format!("{name}_{key}"));
            let identity = PathBuf::from(value("IDENTITY"));
            Host {
                netns: value("NETNS").into(),
                address: value("ADDRESS"),
                port: value("PORT").parse().expect("a port"),
                user: value("USER"),
                authorized_keys: identity.with_file_name("authorized_keys"),
                identity,
                known_hosts: value("KNOWNHOSTS").into(),
                log: value("LOG").into(),
            }
        };
        Hosts {
            s1: host("S1"),
            s2: host("S2"),
            s3: host("S3"),
            s2_far: value(&told, "S2_FAR_ADDRESS"),
            link: value(&told, "LINK"),
            dir,
            _keeper: keeper,
        }
    }

    /// From now on nothing passes between S2 and S3, and nobody is told.
    #[track_caller]
    pub fn cut(&self) {
        self.ask("cut");
    }

    /// Ends [`Hosts::cut`].
    #[track_caller]
    pub fn mend(&self) {
        self.ask("mend");
    }

    /// The counters of S2's interface towards S3, since the start.
    #[track_caller]
    pub fn bytes(&self) -> Bytes {
        let told = self.ask("bytes");
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        let value = |key: &str| told[key].as_u64().unwrap_or_else(|| panic!("no {key} in {told}"));
        Bytes { sent: value("sent_bytes"), received: value("received_bytes") }
    }

    #[track_caller]
    fn ask(&self, action: &str) -> String {
        let output = Command::new(script()).arg(action).arg(&self.dir).output().expect("the script starts");
        assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Host {
    /// A command that runs on this host. It is `program` itself, under its own process id.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut option = std::ffi::OsString::from("--net=");
        option.push(&self.netns);
        let mut command = Command::new("nsenter");
        command.arg(option).arg("--").arg(program);
        command
    }

    /// `ssh` on this host, up to and including the destination `user@address` of the other one.
    pub fn ssh(&self, to: &Host) -> Command {
        let mut ssh = self.command("ssh");
        ssh.arg("-p").arg(to.port.to_string()).arg("-i").arg(&to.identity);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", to.known_hosts.display()));
        ssh.args(["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]);
        ssh.arg(format!("{}@{}", to.user, to.address));
        ssh
    }

    /// Lets its clients' key in with other options (`command="…",restrict`) from the next connection on.
    #[track_caller]
    pub fn set_key_options(&self, key_options: &str) {
        let key = std::fs::read_to_string(self.identity.with_extension("pub")).expect("the public key");
        std::fs::write(&self.authorized_keys, format!("{key_options} {key}"))
            .expect("authorized_keys can be written");
    }
}

fn script() -> PathBuf {
    crate::lab("hosts")
}
