//! A private sshd on loopback for tests: `tests/lab/sshd`, with its end tied to ours.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::keeper::{Keeper, value};

/// A running server for one account; stopped and removed when dropped, and also when the test is killed.
#[derive(Debug)]
pub struct Sshd {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The only account it lets in.
    pub user: String,
    /// The client's private key.
    pub identity: PathBuf,
    /// A known_hosts file that holds its host key.
    pub known_hosts: PathBuf,
    /// The file that decides what the client's key may do; read at every connection.
    pub authorized_keys: PathBuf,
    /// What it logged.
    pub log: PathBuf,
    _keeper: Keeper,
}

impl Sshd {
    /// Starts a server that lets `user` in with the client's key, for any command.
    pub fn start(user: &str) -> Sshd {
        Sshd::start_with(user, "")
    }

    /// Like [`Sshd::start`], with what stands before the key in authorized_keys, for example
    /// `command="…",restrict`.
    pub fn start_with(user: &str, key_options: &str) -> Sshd {
        // Not a private folder: sshd reads authorized_keys as the account.
        let parent =
            tempfile::Builder::new().prefix("ncb-ssh-").tempdir().expect("a temporary folder").keep();
        std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o711)).expect("chmod works");
        let dir = parent.join("sshd");
        let keeper = Keeper::new(&script(), &dir, &parent);
        let output = Command::new(script())
            .arg("start")
            .arg(&dir)
            .args([user, key_options])
            .stdin(Stdio::null())
            .output()
            .expect("the script starts");
        assert!(output.status.success(), "sshd: {}", String::from_utf8_lossy(&output.stderr));
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        let value = |name: &str| value(&told, name);
        Sshd {
            port: value("SSHPORT").parse().expect("a port"),
            user: user.to_owned(),
            identity: value("SSHIDENTITY").into(),
            known_hosts: value("SSHKNOWNHOSTS").into(),
            authorized_keys: dir.join("authorized_keys"),
            log: value("SSHLOG").into(),
            _keeper: keeper,
        }
    }

    /// Lets the client's key in with other options from the next connection on.
    pub fn set_key_options(&self, key_options: &str) {
        let key = std::fs::read_to_string(self.identity.with_extension("pub")).expect("the public key");
        let mut file = std::fs::File::create(&self.authorized_keys).expect("authorized_keys");
        writeln!(file, "{key_options} {}", key.trim()).expect("authorized_keys can be written");
    }

    /// The `ssh` command line up to and including `user@127.0.0.1`.
    pub fn client(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-p").arg(self.port.to_string()).arg("-i").arg(&self.identity);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", self.known_hosts.display()));
        ssh.args(["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]);
        ssh.arg(format!("{}@127.0.0.1", self.user));
        ssh
    }
}

fn script() -> PathBuf {
    crate::lab("sshd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_runs_the_forced_command_and_is_gone_afterwards() {
        let sshd = Sshd::start("root");
        sshd.set_key_options("command=\"echo forced: $SSH_ORIGINAL_COMMAND\",restrict");
        let output = sshd.client().arg("id").stdin(Stdio::null()).output().expect("ssh starts");
        let dir = sshd.log.parent().expect("its folder").to_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "forced: id\n", "{output:?}");
        drop(sshd);
        assert!(!dir.exists(), "{} is still there", dir.display());
    }
}
