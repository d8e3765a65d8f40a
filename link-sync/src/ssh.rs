//! ssh: how the far end on another machine is started, and what its failures mean.

use std::path::Path;

use anyhow::Result;
use common::fault::{Failure, Fault};
use common::run::Cmd;

use crate::settings::Settings;

/// Reaches `host`, and starts the far end of its store `path` there.
pub fn far_end(settings: &Settings, host: &str, path: &str, read_only: bool) -> Result<Cmd> {
    let ssh = &settings.ssh;
    let mut cmd = if ssh.program.is_empty() { Cmd::new("ssh") } else { Cmd::from_argv(&ssh.program)? };
    for option in [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ConnectTimeout=20",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
        "ForwardAgent=no",
        "ForwardX11=no",
        "ClearAllForwardings=yes",
        "RequestTTY=no",
    ] {
        cmd = cmd.arg("-o").arg(option);
    }
    if let Some(port) = ssh.port {
        cmd = cmd.arg("-p").arg(port.to_string());
    }
    if let Some(identity) = &ssh.identity {
        cmd = cmd.arg("-o").arg("IdentitiesOnly=yes").arg("-i").arg(identity);
    }
    if let Some(hosts) = &ssh.known_hosts {
        cmd = cmd.arg("-o").arg(format!("UserKnownHostsFile=\"{}\"", hosts.display()));
    }
    let program = ssh.remote_program.as_deref().unwrap_or("/usr/sbin/link-sync");
    let mut words = vec![quote(program), "serve".to_owned()];
    if settings.profile.file.is_some() {
        words.push(settings.profile.name.clone());
    }
    words.push(format!("--store={}", quote(path)));
    if read_only {
        words.push("--read-only".to_owned());
    }
    Ok(cmd.arg("--").arg(host).arg(words.join(" ")))
}

/// What can be done about `failure`, where no far end of `host` answered.
pub fn hint(failure: &Failure, host: &str) -> String {
    let says = |words: &str| failure.stderr_tail.contains(words);
    if says("Host key verification failed") || says("host key is known") {
        return format!(
            "compare the key's fingerprint on {host} (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then add it here: {}",
            keyscan(&failure.args, host)
        );
    }
    if says("Permission denied (") {
        return which_key(&failure.args, host);
    }
    let theirs = failure.stderr_tail.lines().find_map(|line| line.strip_prefix("link-sync: "));
    let missing = matches!(failure.exit_code, Some(126 | 127)) || says("not found") || says("No such file");
    if theirs.is_none() && missing {
        return format!("install link-sync on {host}, or set remote_program in [snapshot.ssh]");
    }
    let hint = failure.stderr_tail.lines().find_map(|line| line.strip_prefix("link-sync: hint: "));
    // What is wrong in a profile is told with its name and the line.
    let place = theirs.and_then(|said| said.split_once(": ")).map(|said| said.0);
    match (place.filter(|place| place.contains(".toml, line ")), hint) {
        (Some(place), None) => format!("on {host}: correct {place}"),
        (Some(place), Some(hint)) => format!("on {host}: correct {place}; {hint}"),
        (None, Some(hint)) => format!("on {host}: {hint}"),
        (None, None) if theirs.is_some() => {
            format!("link-sync runs on {host}, and does not serve for that reason")
        }
        (None, None) => format!("does `ssh {host} link-sync --version` work by hand?"),
    }
}

/// An error that the far end sent, whose cure is for its machine.
pub fn on(host: &str, mut error: anyhow::Error) -> anyhow::Error {
    if let Some(hint) = error.downcast_mut::<Fault>().and_then(|fault| fault.hint.as_mut()) {
        *hint = format!("on {host}: {hint}");
    }
    error
}

/// What the other machine lacks: one key backs up, another one restores.
fn which_key(args: &[String], host: &str) -> String {
    let (what, line) = match args.last().is_some_and(|words| words.ends_with("--read-only")) {
        true => ("for restoring", "the line whose command ends in `--read-only`"),
        false => ("for backups", "a line of its own"),
    };
    let Some(key) = args.iter().skip_while(|a| *a != "-i").nth(1) else {
        return format!(
            "put this machine's public key {what} into ~/.ssh/authorized_keys of {host} (docs/setup.md, Prepare S2)"
        );
    };
    if !Path::new(key).exists() {
        let another = match what {
            "for backups" => {
                format!("/usr/lib/nc-backup/setup makes another and prints what {host} needs")
            }
            _ => format!(
                "make another (ssh-keygen -t ed25519 -N '' -f {key}) and put {key}.pub into ~/.ssh/authorized_keys of {host}, as {line}"
            ),
        };
        return format!("there is no key {key} here, the one {what}: bring it back, or {another}");
    }
    format!(
        "the key {what} is not let in: put {key}.pub into ~/.ssh/authorized_keys of {host}, as {line} (docs/setup.md, Prepare S2)"
    )
}

/// How the host's key comes into the file in which ssh looks for it.
fn keyscan(args: &[String], host: &str) -> String {
    let port = args.iter().skip_while(|a| *a != "-p").nth(1).map_or(String::new(), |p| format!("-p {p} "));
    let file =
        args.iter().find_map(|a| a.strip_prefix("UserKnownHostsFile=")).unwrap_or("~/.ssh/known_hosts");
    let machine = host.rsplit_once('@').map_or(host, |(_, machine)| machine);
    format!("ssh-keyscan {port}{machine} >>{file}")
}

/// Quotes a word for the far account's shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_survive_a_shell() {
        for word in ["plain", "it's", "a b;$(c)`d`\\"] {
            let script = format!("printf %s {}", super::quote(word));
            let out = common::run::Cmd::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(out.text(), word);
        }
    }
}
