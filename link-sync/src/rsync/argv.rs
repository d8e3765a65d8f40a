//! rsync's command lines, and what they are made of.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use common::account::Account;
use common::fault::Fault;
use common::mutant;
use common::program::Program;
use common::run::Cmd;

use crate::budget::Budget;
use crate::protocol::{Receive, Sending};

/// In the folder of what arrives: rsync's half-written files.
pub const TEMPORARY: &str = ".nc-restore-tmp";

/// One run of rsync that sends.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// argv of rsync.
    pub rsync: &'a [String],
    /// The source's folder.
    pub path: &'a Path,
    /// NUL-separated paths to send.
    pub list: File,
    /// The list is `.`, and nothing in it is meant.
    pub only_itself: bool,
    /// What the far end is asked for; its capabilities are filled in.
    pub source: &'a str,
    /// Compare contents.
    pub checksum: bool,
    /// Modification times count.
    pub times: bool,
    /// Compare with the partial snapshot.
    pub again: bool,
    /// Compare attributes alone, with what is at hand.
    pub reused: bool,
    /// What the run before has received stays.
    pub more: bool,
    /// rsync reads as this account.
    pub account: Option<&'a Account>,
    /// Also the attributes rsync itself keeps owners in.
    pub all_xattrs: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// ACLs.
    pub acls: bool,
    /// Once more over what was sent, for ACLs and no extended attributes.
    pub acls_only: bool,
    /// rsync is ended when the time is over.
    pub budget: &'a Budget,
}

/// One run of rsync that fetches, for a restore.
#[derive(Debug)]
pub struct Fetch<'a> {
    /// argv of rsync.
    pub rsync: &'a [String],
    /// The private folder; rsync inherits it, and with it the lock.
    pub folder: &'a File,
    /// `SOURCE/PATH` in the snapshot.
    pub path: &'a [u8],
    /// The folder of what arrives that it goes to.
    pub into: &'a File,
    /// Folders, by their names there, whose content is none of this run's business.
    pub without: Vec<Vec<u8>>,
    /// So many of its first parts are not part of the names that come.
    pub strip: usize,
    /// Compare contents of what is there already.
    pub checksum: bool,
    /// Only compare.
    pub dry: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// ACLs.
    pub acls: bool,
}

/// Options for an rsync that is root's: XFS shows root its ACLs a second time, as attributes of its own. Sent as such they
/// mean nothing elsewhere, and an rsync that removes what was not sent removes the ACL with them. (With a rule for
/// attributes rsync's own one, for `system.*`, no longer holds.)
fn xattr_rules(cmd: Cmd, root: bool) -> Cmd {
    match root && !mutant::active("rsync-sends-acls-of-xfs-raw") {
        true => cmd.arg("--filter=-x system.*").arg("--filter=-x trusted.SGI_ACL_*"),
        false => cmd,
    }
}

/// The sending rsync of `transfer`, whose "remote shell" is to use the descriptor `fd`.
pub(super) fn send(transfer: &Transfer, remote: bool, fd: RawFd) -> Result<Cmd> {
    let own = Program::own()?;
    let mut cmd = Cmd::from_argv(transfer.rsync)?.args(["-lpgoDS", "--modify-window=-1", "--numeric-ids"]);
    for (option, wanted) in [
        ("--times", transfer.times),
        ("--checksum", transfer.checksum),
        ("--whole-file", !remote),
        ("--acls", transfer.acls),
        ("--xattrs", transfer.xattrs && !transfer.acls_only),
        ("--xattrs", transfer.all_xattrs),
    ] {
        if wanted {
            cmd = cmd.arg(option);
        }
    }
    cmd = xattr_rules(cmd, transfer.account.is_none() && nix::unistd::geteuid().is_root());
    if let Some(account) = transfer.account {
        cmd = cmd.run_as(account);
    }
    if transfer.only_itself {
        // A listed "." would bring what is in it.
        cmd = cmd.arg("--exclude=/*");
    }
    cmd = cmd.args(["--files-from=-", "--from0", "--ignore-missing-args"]);
    let mut source = OsString::from(transfer.path);
    source.push("/");
    cmd = cmd.arg("-e").arg(format!("{} tunnel --fd={fd}", own.inherited().display())).arg("--").arg(source);
    Ok(cmd.arg("store:incoming/").inherit(fd).inherit(own.fd()))
}

/// The receiving rsync of `fetch`, likewise.
pub(super) fn fetch(fetch: &Fetch, fd: RawFd) -> Result<Cmd> {
    let own = Program::own()?;
    let mut cmd =
        Cmd::from_argv(fetch.rsync)?.args(["-rlptgoDRS", "--modify-window=-1", "--numeric-ids", "--delete"]);
    // What an interrupted rsync left half-written lies where no name of the snapshot can be.
    cmd = cmd.arg(format!("--temp-dir={TEMPORARY}")).arg(format!("--filter=P /{TEMPORARY}"));
    for (option, wanted) in [
        ("--checksum", fetch.checksum),
        ("--dry-run", fetch.dry),
        ("--itemize-changes", fetch.dry),
        ("--acls", fetch.acls),
        ("--xattrs", fetch.xattrs),
    ] {
        if wanted {
            cmd = cmd.arg(option);
        }
    }
    cmd = cmd.arg("-e").arg(format!("{} tunnel --fd={fd}", own.inherited().display())).inherit(own.fd());
    cmd = xattr_rules(cmd, nix::unistd::geteuid().is_root());
    for path in &fetch.without {
        let mut rule = OsString::from("--exclude=/");
        rule.push(OsStr::from_bytes(&literal(path)));
        rule.push("/*");
        cmd = cmd.arg(rule);
    }
    let folder = format!("/proc/{}/fd/{}", std::process::id(), fetch.into.as_raw_fd());
    // The far end decides what is sent; here `.` stands for whatever that is.
    let cmd = cmd.args(["--", "store:.", "./"]).dir(folder);
    Ok(cmd.inherit(fd).inherit(fetch.folder.as_raw_fd()))
}

/// The receiving rsync at the far end, as `receive` asks for it; what is alike in one of the folders `compare` is not
/// received. Where it puts things is to be added.
pub fn serve_receiving(
    rsync: &[String],
    receive: &Receive,
    xattrs: bool,
    acls: bool,
    compare: &[PathBuf],
) -> Result<Cmd> {
    let mut short = "-lgoDpRS".to_owned();
    for (letter, wanted) in [
        ("t", receive.times),
        ("c", receive.checksum),
        ("W", !receive.delta),
        ("A", acls),
        ("X", xattrs && !receive.acls_only),
        ("X", receive.all_xattrs),
    ] {
        if wanted {
            short.push_str(letter);
        }
    }
    short.push('e');
    short.push_str(&receive.capabilities);
    let mut cmd = Cmd::from_argv(rsync)?.args(["--server", &short, "--modify-window=-1", "--numeric-ids"]);
    if receive.acls_only {
        cmd = cmd.arg("--existing");
    }
    for dir in compare {
        cmd = cmd.arg("--compare-dest").arg(dir);
    }
    let root = nix::unistd::geteuid().is_root();
    cmd = xattr_rules(cmd, root);
    if !root {
        cmd = cmd.arg("--fake-super");
    }
    Ok(cmd)
}

/// The sending rsync at the far end, as `sending` asks for it: of `path`, with the rights of `account`. With `fake_super`
/// owners are kept in an attribute.
pub fn serve_sending(
    rsync: &[String],
    sending: &Sending,
    fake_super: bool,
    account: Option<&Account>,
    path: &[u8],
) -> Result<Cmd> {
    let mut short = "-".to_owned();
    for (letters, wanted) in [
        ("n", sending.dry),
        ("lgoDtprR", true),
        ("c", sending.checksum),
        ("A", sending.acls),
        ("X", sending.xattrs),
        ("S", true),
        ("e", true),
        (sending.capabilities.as_str(), true),
    ] {
        if wanted {
            short.push_str(letters);
        }
    }
    let mut cmd = Cmd::from_argv(rsync)?.args(["--server", "--sender", &short, "--numeric-ids"]);
    if fake_super {
        cmd = cmd.arg("--fake-super");
    }
    let root = account.is_none() && nix::unistd::geteuid().is_root();
    cmd = xattr_rules(cmd, root && !fake_super);
    if let Some(account) = account {
        cmd = cmd.run_as(account);
    }
    Ok(cmd.arg(".").arg(marked(path, sending.strip)?))
}

/// `path` with rsync's mark after its first `strip` parts: what stands before it is not part of the names sent.
fn marked(path: &[u8], strip: usize) -> Result<OsString> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    ensure!(strip <= parts.len(), "the path is shorter than that");
    let mut words: Vec<&[u8]> = parts[..strip].to_vec();
    words.push(b".");
    words.extend(&parts[strip..]);
    let mut marked = words.join(&b'/');
    if strip == parts.len() {
        // All that is in the folder, and its own attributes.
        marked.push(b'/');
    }
    Ok(OsString::from_vec(marked))
}

/// `path` in a pattern of rsync's that means nothing else.
fn literal(path: &[u8]) -> Vec<u8> {
    let special = |b: &u8| matches!(b, b'\\' | b'*' | b'?' | b'[');
    path.iter().flat_map(|b| special(b).then_some(b'\\').into_iter().chain([*b])).collect()
}

/// The letters after `e` in the options rsync would give its peer: what it can do.
pub fn capabilities(argv: &[OsString]) -> Result<String> {
    let find = |word: &OsString| {
        let word = word.to_str()?;
        let letters = word.strip_prefix('-').filter(|w| !w.starts_with('-'))?;
        letters.split_once('e').map(|(_, caps)| caps.to_owned())
    };
    argv.iter().find_map(find).context("rsync did not say what it can do: is it rsync 3.1 or later?")
}

/// What an rsync says it can do becomes a word of another one's command line.
pub fn check_capabilities(said: &str) -> Result<()> {
    let letters = said.len() <= 32 && said.bytes().all(|b| b.is_ascii_alphabetic() || b == b'.');
    if letters || mutant::active("rsync-options-of-the-source") {
        return Ok(());
    }
    let said: String = said.chars().take(64).collect();
    Err(Fault::denied(format!("the other rsync says odd things of itself: '{said}'")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_taken_from_a_real_argv() {
        let argv: Vec<OsString> = "store rsync --server -logDtpAXcRSe.LsfxCIvu --numeric-ids . incoming/"
            .split(' ')
            .map(Into::into)
            .collect();
        assert_eq!(capabilities(&argv).unwrap(), ".LsfxCIvu");
    }

    #[test]
    fn the_mark_stands_where_names_begin() {
        for (path, strip, wanted) in
            [("data/a/b", 2, "data/a/./b"), ("data/a", 0, "./data/a"), ("data", 1, "data/./")]
        {
            assert_eq!(marked(path.as_bytes(), strip).unwrap(), wanted);
        }
        assert!(marked(b"data", 2).is_err());
    }
}
