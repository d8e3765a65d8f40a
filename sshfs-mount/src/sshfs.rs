//! The program sshfs: its command line, and what its complaints mean.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use common::fault::{Failure, Fault};
use common::mutant;
use common::program::Program;
use common::run::Cmd;

use crate::settings::Settings;
use crate::wire;

/// Seconds to wait for a connection, unless the profile says otherwise.
pub(crate) const CONNECT_TIMEOUT: u32 = 20;

/// The options that a profile may add which are sshfs's own; all others are ssh's.
const OWN: [&str; 3] = ["compression", "dir_cache", "max_conns"];

/// The command that mounts and serves. It stays in the foreground of a session of its own, and lives on without us.
/// `before`: the words that start it in a scope of its own.
pub(crate) fn command(settings: &Settings, before: &[OsString]) -> Result<Cmd> {
    let program: Vec<OsString> = match settings.sshfs.program.as_slice() {
        [] => vec!["sshfs".into()],
        words => words.iter().map(OsString::from).collect(),
    };
    let cmd = Cmd::from_argv(&[before, &program].concat())?;
    let mut cmd = cmd.arg("-f").arg(settings.source()).arg(&settings.mount_point);
    for option in options(settings)? {
        cmd = cmd.arg("-o").arg(option);
    }
    Ok(cmd.outlives_us().own_session())
}

/// What follows each `-o`.
fn options(settings: &Settings) -> Result<Vec<String>> {
    // Without sshfs_sync a write that S3 refuses (its disk is full) is reported as done, and once, later, as an error of
    // some flush: a file system in the container could then be closed as clean although parts of it are missing.
    let mut words: Vec<String> = ["nosuid", "nodev", "noexec", "sshfs_sync"].map(str::to_owned).into();
    let own = settings.options.iter().filter(|(name, _)| OWN.contains(name));
    let list = ssh_options(settings)?.into_iter().chain(own.map(|(name, value)| (name, value.to_owned())));
    words.extend(list.map(|(name, value)| format!("{name}={}", fuse_value(&value))));
    Ok(words)
}

/// How ssh connects. `reconnect` is never among them: after it, files that were open fail one by one, so the
/// container inside would be damaged instead of detached. sshfs itself forbids ssh to forward anything.
pub(crate) fn ssh_options(settings: &Settings) -> Result<Vec<(&'static str, String)>> {
    let sshfs = &settings.sshfs;
    let mut list: Vec<(&str, String)> = [
        ("BatchMode", "yes"),
        ("StrictHostKeyChecking", "yes"),
        ("IdentitiesOnly", "yes"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
        ("PermitLocalCommand", "no"),
        ("UpdateHostKeys", "no"),
        // What ssh says is what our errors are made of.
        ("LogLevel", "INFO"),
        // A connection that others share would be counted, limited and ended with theirs.
        ("ControlMaster", "no"),
        ("ControlPath", "none"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into();
    list.push(("Port", sshfs.port.unwrap_or(22).to_string()));
    if let Some(path) = &sshfs.identity {
        list.push(("IdentityFile", ssh_path(path)));
    }
    if let Some(path) = &sshfs.known_hosts {
        list.push(("UserKnownHostsFile", ssh_path(path)));
    }
    for (name, number) in
        [("ConnectTimeout", CONNECT_TIMEOUT), ("ServerAliveInterval", 10), ("ServerAliveCountMax", 3)]
    {
        list.push((name, settings.options.number(name, number).to_string()));
    }
    for (name, value) in settings.options.iter() {
        if !OWN.contains(&name) && !list.iter().any(|(known, _)| *known == name) {
            list.push((name, value.to_owned()));
        }
    }
    if settings.counted() {
        list.push(("ProxyCommand", relay(settings)?));
    }
    Ok(list)
}

/// Our own relay as ssh's ProxyCommand, which a shell reads, after ssh has put in `%h` and `%p`.
fn relay(settings: &Settings) -> Result<String> {
    // Not by this process's number, though ssh closes what it inherits: with max_conns, sshfs connects again as long as
    // the mount lives, and by then the number may be that of anybody's program.
    let program = match mutant::active("the-relay-is-a-number") {
        true => PathBuf::from(format!("/proc/{}/exe", std::process::id())),
        false => Program::own()?.path().to_owned(),
    };
    let counter = wire::path(settings);
    let timeout = settings.options.number("ConnectTimeout", CONNECT_TIMEOUT).to_string();
    let family = settings.options.get("AddressFamily").unwrap_or("any").to_owned();
    let mut words = vec![
        text(&program)?,
        "relay".to_owned(),
        "--counter".to_owned(),
        text(&counter)?,
        "--connect-timeout".to_owned(),
        timeout,
        "--family".to_owned(),
        family,
    ];
    if let Some(rate) = settings.bwlimit() {
        words.extend(["--bwlimit".to_owned(), rate.to_string()]);
    }
    let words: Vec<String> = words.iter().map(|word| shell_word(&word.replace('%', "%%"))).collect();
    Ok(format!("{} -- %h %p", words.join(" ")))
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|t| !t.contains(char::is_control));
    let wrong = || Fault::config(format!("ssh cannot be given the path {}", path.display()));
    Ok(text.ok_or_else(wrong)?.to_owned())
}

fn shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A path as ssh's configuration takes it: blanks within quotes, and no tokens. See `settings::check`.
fn ssh_path(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('%', "%%"))
}

/// A value within sshfs's `-o`, where a comma would begin the next one.
fn fuse_value(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// The error that what sshfs and ssh said amounts to.
pub(crate) fn explain(settings: &Settings, failure: Failure) -> anyhow::Error {
    let fault = diagnose(settings, &failure.stderr_tail);
    match fault {
        Some(fault) => anyhow::Error::from(failure).context(fault),
        None => failure.into(),
    }
}

fn diagnose(settings: &Settings, said: &str) -> Option<Fault> {
    let (machine, source) = (settings.machine(), settings.source());
    let port = settings.sshfs.port.unwrap_or(22);
    let known = settings.sshfs.known_hosts.clone().unwrap_or_else(|| "/root/.ssh/known_hosts".into());
    let known = known.display();
    let line = |mark: &str| said.lines().map(str::trim).find(|l| l.contains(mark));
    let ours = |mark: &str| line(mark).map(|l| l.trim_start_matches("sshfs-mount: ").to_owned());
    let look = "is the machine on and its sshd running? right host and port? a firewall?";

    if line("REMOTE HOST IDENTIFICATION HAS CHANGED").is_some() {
        let message = format!("{machine} shows another host key than the one in {known}");
        return Some(Fault::config(message).hint(format!(
            "this may be an attack; if the machine was really set up anew: \
             `ssh-keygen -R '[{machine}]:{port}' -f {known}`, then make its new key known"
        )));
    }
    if line("Host key verification failed").is_some() || line("host key is known for").is_some() {
        let message = format!("the host key of {machine} is not known: it is not in {known}");
        return Some(Fault::unavailable(message).hint(format!(
            "`ssh-keyscan -p {port} {machine} >>{known}`, and compare what `ssh-keygen -lf {known}` then shows \
             with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on that machine"
        )));
    }
    if let Some(refused) = line("Permission denied (") {
        let message = format!("{machine} does not let our key in: {refused}");
        let key =
            settings.sshfs.identity.as_ref().map_or("our key".into(), |k| format!("{}.pub", k.display()));
        return Some(Fault::unavailable(message).hint(format!(
            "put {key} into ~/.ssh/authorized_keys of {}, and look that file's owner and mode over",
            settings.sshfs.host
        )));
    }
    if let Some(told) = ours("cannot connect to").or_else(|| ours("cannot find ")) {
        return Some(Fault::unavailable(told).hint(look));
    }
    if let Some(told) = line(&format!("{source}: ")) {
        let why = told.rsplit(": ").next().unwrap_or(told);
        let message = format!("the folder {} on {machine} cannot be used: {why}", settings.sshfs.directory);
        let hint = "is its disk mounted there? else make it, and give it to the account";
        return Some(Fault::config(message).hint(hint));
    }
    if line("ubsystem request failed").is_some() {
        return Some(Fault::unavailable(format!("{machine} does not offer sftp")).hint(
            "its sshd_config needs `Subsystem sftp internal-sftp`, and the key must not be bound to another command",
        ));
    }
    for mark in
        ["timed out", "Timeout, server", "Connection closed by", "Connection reset by", "UNKNOWN port"]
    {
        if let Some(told) = line(mark) {
            return Some(Fault::unavailable(format!("no connection to {machine}: {told}")).hint(look));
        }
    }
    if line("remote host has disconnected").is_some() {
        return Some(Fault::unavailable(format!("{machine} ended the connection without a word")).hint(look));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_gets_its_quotes() {
        assert_eq!(shell_word("a'b c"), "'a'\\''b c'");
        assert_eq!(ssh_path(Path::new("/a b/50%")), "\"/a b/50%%\"");
        assert_eq!(fuse_value("a,b\\c"), "a\\,b\\\\c");
        assert!(text(Path::new("/a\nb")).is_err());
    }
}
