//! rsync, the receiving side of a restore: as in [`crate::rsync`], through the one conversation with the far end,
//! which decides what is sent. It writes in a folder that nobody but root can enter.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use common::program::Program;
use common::run::Cmd;

use super::partial::TEMPORARY;
use crate::far::Far;
use crate::progress::Progress;
use crate::protocol::{ListWriter, ReadHolding, Sending};
use crate::rsync::{START, accept, capabilities, carry, named_files, xattr_rules};

/// One run of rsync.
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

impl Fetch<'_> {
    /// Runs it. Returns rsync's lines about what it changed, or, in a dry run, what differs.
    pub fn run(&self, far: &mut Far, progress: &Progress) -> Result<Vec<String>> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let mut told = told_file()?;
        let stdout = Stdio::from(told.try_clone().context("cannot copy a descriptor")?);
        let mut child = self.command(theirs.as_raw_fd())?.start(Stdio::null(), stdout)?;
        drop(theirs);
        let Some((argv, pipes)) = accept(&ours, &mut child)? else {
            let status = child.wait(Some(START), true)?;
            return Err(anyhow::Error::from(child.failure_for(status)?).context("rsync could not be started"));
        };
        far.send(&ReadHolding::Send(Sending {
            strip: self.strip,
            capabilities: capabilities(&argv)?,
            checksum: self.checksum,
            dry: self.dry,
            xattrs: self.xattrs,
            acls: self.acls,
        }))?;
        let output = far.output.as_mut().context("the conversation has ended")?;
        let mut list = ListWriter::new(output);
        let sent = list.path(self.path).and_then(|()| list.finish());
        sent.map_err(|e| far.lost(e))?;
        let (_, there) = carry(true, far, pipes, ours, &mut child, progress)?;
        let status = child.wait(None, true)?;
        if !status.success() || there.exit_code != 0 {
            let mut failure = child.failure_for(status)?;
            let files = named_files(&(failure.stderr_tail.clone() + "\n" + &there.stderr));
            if !there.stderr.is_empty() {
                failure.stderr_tail = format!("{}\nat the store: {}", failure.stderr_tail, there.stderr);
            }
            failure.hint = Some(
                "nothing was replaced; mend the cause and give the same command again: it continues".into(),
            );
            let names = if files.is_empty() {
                "rsync failed".to_owned()
            } else {
                format!("not restored: {}", files[..files.len().min(10)].join(", "))
            };
            return Err(
                anyhow::Error::from(failure).context(format!("{}: {names}", crate::walk::show(self.path)))
            );
        }
        let mut text = Vec::new();
        told.rewind().and_then(|()| told.read_to_end(&mut text)).context("cannot read rsync's list")?;
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }

    fn command(&self, fd: std::os::fd::RawFd) -> Result<Cmd> {
        let own = Program::own()?;
        let mut cmd = Cmd::from_argv(self.rsync)?.args([
            "-rlptgoDRS",
            "--modify-window=-1",
            "--numeric-ids",
            "--delete",
        ]);
        // What an interrupted rsync left half-written lies where no name of the snapshot can be.
        cmd = cmd.arg(format!("--temp-dir={TEMPORARY}")).arg(format!("--filter=P /{TEMPORARY}"));
        for (option, wanted) in [
            ("--checksum", self.checksum),
            ("--dry-run", self.dry),
            ("--itemize-changes", self.dry),
            ("--acls", self.acls),
            ("--xattrs", self.xattrs),
        ] {
            if wanted {
                cmd = cmd.arg(option);
            }
        }
        cmd = cmd.arg("-e").arg(format!("{} tunnel --fd={fd}", own.inherited().display())).inherit(own.fd());
        cmd = xattr_rules(cmd, nix::unistd::geteuid().is_root());
        for path in &self.without {
            let mut rule = OsString::from("--exclude=/");
            rule.push(OsStr::from_bytes(&literal(path)));
            rule.push("/*");
            cmd = cmd.arg(rule);
        }
        let folder = format!("/proc/{}/fd/{}", std::process::id(), self.into.as_raw_fd());
        // The far end decides what is sent; here `.` stands for whatever that is.
        let cmd = cmd.args(["--", "store:.", "./"]).dir(folder);
        Ok(cmd.inherit(fd).inherit(self.folder.as_raw_fd()))
    }
}

/// `path` in a pattern of rsync's that means nothing else.
fn literal(path: &[u8]) -> Vec<u8> {
    let special = |b: &u8| matches!(b, b'\\' | b'*' | b'?' | b'[');
    path.iter().flat_map(|b| special(b).then_some(b'\\').into_iter().chain([*b])).collect()
}

/// A file without a name, for what rsync prints.
fn told_file() -> Result<File> {
    let fd = rustix::fs::memfd_create("told", rustix::fs::MemfdFlags::CLOEXEC);
    Ok(File::from(fd.context("cannot make a file in memory")?))
}
