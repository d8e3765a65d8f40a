//! The receiving side of a restore, through the one conversation with the far end.
//! The far end decides what is sent; rsync writes in a folder that nobody but root can enter.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::argv::{self, Fetch};
use super::named_files;
use super::tunnel::{self, Started, carry};
use crate::far::Far;
use crate::progress::Progress;
use crate::protocol::{ListWriter, ReadHolding, Sending};

impl Fetch<'_> {
    /// Runs it. Returns rsync's lines about what it changed, or, in a dry run, what differs.
    pub fn run(&self, far: &mut Far, progress: &Progress) -> Result<Vec<String>> {
        let mut told = told_file()?;
        let stdout = Stdio::from(told.try_clone().context("cannot copy a descriptor")?);
        let started = tunnel::start(|fd| argv::fetch(self, fd), Stdio::null(), stdout)?;
        let Started { mut child, capabilities, pipes, tunnel } = started;
        far.send(&ReadHolding::Send(Sending {
            strip: self.strip,
            capabilities,
            checksum: self.checksum,
            dry: self.dry,
            xattrs: self.xattrs,
            acls: self.acls,
        }))?;
        let output = far.output.as_mut().context("the conversation has ended")?;
        let mut list = ListWriter::new(output);
        let sent = list.path(self.path).and_then(|()| list.finish());
        sent.map_err(|e| far.lost(e))?;
        let (_, there) = carry(true, far, pipes, tunnel, &mut child, progress)?;
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
                anyhow::Error::from(failure).context(format!("{}: {names}", crate::names::show(self.path)))
            );
        }
        let mut text = Vec::new();
        told.rewind().and_then(|()| told.read_to_end(&mut text)).context("cannot read rsync's list")?;
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }
}

/// A file without a name, for what rsync prints.
fn told_file() -> Result<File> {
    let fd = rustix::fs::memfd_create("told", rustix::fs::MemfdFlags::CLOEXEC);
    Ok(File::from(fd.context("cannot make a file in memory")?))
}
