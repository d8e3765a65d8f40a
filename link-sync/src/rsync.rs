//! rsync, the sending side. link-sync decides what is sent, rsync moves it.
//!
//! rsync believes it talks through a remote shell. The "shell" is this program ([`tunnel`]): it hands the two
//! pipes rsync gave it to us, and we carry them in frames of the one conversation with the far end, which starts
//! the receiving rsync as its own child. So there is one connection, the receiver inherits the store's
//! lock from the process that holds it, and the far end needs no second door.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, IoSlice, IoSliceMut, Read, Seek as _, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use common::account::Account;
use common::fault::Fault;
use common::program::Program;
use common::run::{Child, Cmd};
use common::signals;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::budget::Budget;
use crate::far::Far;
use crate::progress::Progress;
use crate::protocol::{self, Kind, MAX_ANSWER, MAX_FRAME, Making, Receive, Received};
use crate::watch::Watch;

/// rsync's way of saying that a file vanished before it could be sent.
pub const VANISHED: i32 = 24;
/// rsync's way of saying that some files could not be sent.
const PARTIAL: i32 = 23;
/// How long rsync may take to start its "remote shell".
pub const START: Duration = Duration::from_secs(30);

/// Options for an rsync that is root's: XFS shows root its ACLs a second time, as attributes of its own. Sent as such they
/// mean nothing elsewhere, and an rsync that removes what was not sent removes the ACL with them. (With a rule for
/// attributes rsync's own one, for `system.*`, no longer holds.)
pub fn xattr_rules(cmd: Cmd, root: bool) -> Cmd {
    match root && !common::mutant::active("rsync-sends-acls-of-xfs-raw") {
        true => cmd.arg("--filter=-x system.*").arg("--filter=-x trusted.SGI_ACL_*"),
        false => cmd,
    }
}

/// One run of rsync.
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

/// What a run of rsync did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Bytes of rsync's conversation towards the store.
    pub bytes: u64,
    /// Some file vanished meanwhile: another pass is needed.
    pub vanished: bool,
}

impl Transfer<'_> {
    /// Runs it. Anything that could not be sent is an error that names the files.
    pub fn run(self, far: &mut Far, progress: &Progress) -> Result<Sent> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let cmd = self.command(far.remote, theirs.as_raw_fd())?;
        let stdin = Stdio::from(self.list.try_clone().context("cannot copy a descriptor")?);
        let mut child = cmd.start(stdin, Stdio::null())?;
        drop(theirs);
        let Some((argv, pipes)) = accept(&ours, &mut child)? else {
            let status = child.wait(Some(START), true)?;
            return Err(anyhow::Error::from(child.failure_for(status)?).context("rsync could not be started"));
        };
        let request = Making::Receive(Receive {
            source: self.source.to_owned(),
            capabilities: capabilities(&argv)?,
            checksum: self.checksum,
            times: self.times,
            delta: far.remote,
            again: self.again,
            all_xattrs: self.all_xattrs,
            acls_only: self.acls_only,
        });
        far.send(&request)?;
        let limit = self.budget.left().map(|left| end_after(&child, left)).transpose()?;
        let (bytes, received) = carry(false, far, pipes, ours, &mut child, progress)?;
        // Before the child is reaped, as long as the number is its own.
        drop(limit);
        let status = child.wait(None, true)?;
        self.budget.check()?;
        self.judge(status, &child, &received).map(|vanished| Sent { bytes, vanished })
    }

    fn command(&self, remote: bool, fd: RawFd) -> Result<Cmd> {
        let own = Program::own()?;
        let mut cmd = Cmd::from_argv(self.rsync)?.args(["-lpgoDS", "--modify-window=-1", "--numeric-ids"]);
        for (option, wanted) in [
            ("--times", self.times),
            ("--checksum", self.checksum),
            ("--whole-file", !remote),
            ("--acls", self.acls),
            ("--xattrs", self.xattrs && !self.acls_only),
            ("--xattrs", self.all_xattrs),
        ] {
            if wanted {
                cmd = cmd.arg(option);
            }
        }
        cmd = xattr_rules(cmd, self.account.is_none() && nix::unistd::geteuid().is_root());
        if let Some(account) = self.account {
            cmd = cmd.run_as(account);
        }
        if self.only_itself {
            // A listed "." would bring what is in it.
            cmd = cmd.arg("--exclude=/*");
        }
        cmd = cmd.args(["--files-from=-", "--from0", "--ignore-missing-args"]);
        let mut source = OsString::from(self.path);
        source.push("/");
        cmd = cmd
            .arg("-e")
            .arg(format!("{} tunnel --fd={fd}", own.inherited().display()))
            .arg("--")
            .arg(source);
        Ok(cmd.arg("store:incoming/").inherit(fd).inherit(own.fd()))
    }

    /// What rsync's end means: `Ok(true)` if a file vanished.
    fn judge(&self, status: std::process::ExitStatus, child: &Child, received: &Received) -> Result<bool> {
        let code = status.code().unwrap_or(255);
        if status.success() && received.exit_code == 0 {
            return Ok(false);
        }
        if code == VANISHED && matches!(received.exit_code, 0 | VANISHED) {
            return Ok(true);
        }
        let sender = String::from_utf8_lossy(&child.stderr()?).into_owned();
        let files = named_files(&sender);
        if code == PARTIAL
            && !files.is_empty()
            && named_files(&received.stderr).is_empty()
            && all_gone(&files)
            && child.stderr_is_whole()
        {
            return Ok(true);
        }
        let said = sender + &received.stderr;
        let files = named_files(&said);
        let mut failure = child.failure_for(status)?;
        if !received.stderr.is_empty() {
            failure.stderr_tail = format!("{}\nat the store: {}", failure.stderr_tail, received.stderr);
        }
        let message = match code {
            PARTIAL if !files.is_empty() => {
                format!(
                    "source {}: {} could not be read or stored: {}",
                    self.source,
                    count(&files),
                    files[..files.len().min(10)].join(", ")
                )
            }
            _ => format!("source {}: rsync failed", self.source),
        };
        let full = said.contains("No space left") || said.contains("Disk quota exceeded");
        failure.hint = Some(match full {
            true => "the store is full: make room, then run again; what has arrived is kept".into(),
            false => "nothing is published; mend the cause and run again: what has arrived is kept".into(),
        });
        Err(anyhow::Error::from(failure).context(message))
    }
}

/// Ends rsync after `limit`; the far end's notices that, and the conversation stays in step.
fn end_after(child: &Child, limit: Duration) -> Result<Watch> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id out of range")?);
    Watch::after(limit, move || killpg(pid, Signal::SIGKILL).unwrap_or(()))
}

fn count(files: &[String]) -> String {
    if files.len() == 1 { "a file".into() } else { format!("{} files", files.len()) }
}

/// Whether none of `files` is there any more: for example its folder became a file, which rsync counts as an error
/// where a file that is simply gone is none.
fn all_gone(files: &[String]) -> bool {
    let gone = |e: std::io::Error| {
        matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
    };
    files.iter().all(|f| Path::new(f).symlink_metadata().is_err_and(gone))
}

/// The names in rsync's complaints, as it wrote them.
pub fn named_files(said: &str) -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    for line in said.lines().filter(|l| ["failed", "cannot", "read errors"].iter().any(|w| l.contains(w))) {
        let Some((_, rest)) = line.split_once('"') else { continue };
        let Some((name, _)) = rest.rsplit_once('"') else { continue };
        if !files.iter().any(|f| f == name) {
            files.push(name.to_owned());
        }
    }
    files
}

/// rsync takes a listed path that begins with `#` or `;` for a comment, also in a list of NUL-separated paths.
pub fn uncommented(path: Vec<u8>) -> Vec<u8> {
    if path.starts_with(b"#") || path.starts_with(b";") { [b"./", &path[..]].concat() } else { path }
}

/// The NUL-separated list of `paths` for rsync, in a file that has no name, so it is gone with us.
pub fn list_file(dir: &Path, paths: impl Iterator<Item = impl AsRef<[u8]>>) -> Result<File> {
    let what = || format!("cannot write a temporary file in {}", dir.display());
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let fd = open(dir, flags, Mode::from_bits_truncate(0o600)).with_context(what)?;
    let mut out = BufWriter::new(File::from(fd));
    for path in paths {
        out.write_all(path.as_ref()).and_then(|()| out.write_all(&[0])).with_context(what)?;
    }
    let mut file = out.into_inner().with_context(what)?;
    file.rewind().with_context(what)?;
    Ok(file)
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

/// The pipes rsync gave its "remote shell", and that shell's argv.
pub type Pipes = (OwnedFd, OwnedFd);

/// Takes the pipes that rsync gave its "remote shell"; `None` if that was not started.
pub fn accept(ours: &UnixStream, child: &mut Child) -> Result<Option<(Vec<OsString>, Pipes)>> {
    let mut fds = vec![PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    if let Some(signal) = signals::fd() {
        fds.push(PollFd::new(signal, PollFlags::POLLIN));
    }
    let begin = Instant::now();
    let ready = loop {
        let left = START.saturating_sub(begin.elapsed());
        let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        // Who asks us to end interrupts this, too.
        signals::check()?;
        match ready {
            Err(Errno::EINTR) => {}
            other => break other.context("cannot wait for rsync")?,
        }
    };
    if ready == 0 {
        child.end();
        bail!("rsync did not start its transfer within {START:?}");
    }
    let mut buffer = vec![0u8; 64 * 1024];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(ours.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .context("cannot take rsync's pipes")?;
    let mut pipes = Vec::new();
    for part in message.cmsgs().context("cannot take rsync's pipes")? {
        if let ControlMessageOwned::ScmRights(list) = part {
            pipes.extend(list.into_iter().map(own));
        }
    }
    for pipe in &pipes {
        // rsync makes both ends non-blocking; ours are read and written by threads that may wait.
        let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL).context("fcntl failed")?);
        fcntl(pipe, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK)).context("fcntl failed")?;
    }
    let len = message.bytes;
    let argv = buffer[..len].split(|b| *b == 0).map(|w| std::ffi::OsStr::from_bytes(w).to_owned()).collect();
    let mut pipes = pipes.into_iter();
    Ok(pipes.next().zip(pipes.next()).map(|pipes| (argv, pipes)))
}

/// The descriptor `fd` that this process was started with; `None` if there is none.
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    let open = Path::new("/proc/self/fd").join(fd.to_string()).symlink_metadata().is_ok();
    open.then(|| own(fd))
}

#[expect(unsafe_code, reason = "descriptors received over a socket come as numbers")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Carries rsync's conversation until both sides have ended it. Returns the bytes sent and the far end's word.
/// Progress counts what we send, or what we get if our rsync is the `receiver`.
pub fn carry(
    receiver: bool,
    far: &mut Far,
    pipes: Pipes,
    tunnel: UnixStream,
    child: &mut Child,
    progress: &Progress,
) -> Result<(u64, Received)> {
    let (from_rsync, to_rsync) = (File::from(pipes.0), File::from(pipes.1));
    let (input, output) = (&mut far.input, far.output.as_mut().context("the conversation has ended")?);
    let outcome = std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<u64> {
            let (mut from_rsync, mut buffer, mut sent) = (from_rsync, vec![0; MAX_FRAME], 0u64);
            loop {
                let n = from_rsync.read(&mut buffer)?;
                if n == 0 {
                    protocol::send(output, Kind::End, &[])?;
                    output.flush()?;
                    return Ok(sent);
                }
                protocol::send(output, Kind::Stream, &buffer[..n])?;
                output.flush()?;
                sent += n as u64;
                if !receiver {
                    progress.sent(n as u64);
                }
            }
        });
        let answer = pass_back(input, to_rsync, tunnel, |n| {
            if receiver {
                progress.sent(n)
            }
        });
        if answer.is_err() {
            child.end();
        }
        let sent = sender.join().unwrap_or_else(|_| bail!("internal error while passing on rsync's output"));
        answer.and_then(|a| Ok((sent?, a)))
    });
    let (sent, frame) = outcome.map_err(|e| far.lost(e))?;
    Ok((sent, crate::far::decode(&frame)?))
}

/// Gives rsync what its peer says, until the far end's answer comes.
fn pass_back(
    input: &mut impl Read,
    to_rsync: File,
    mut tunnel: UnixStream,
    came: impl Fn(u64),
) -> Result<Vec<u8>> {
    let mut to_rsync = Some(to_rsync);
    let mut frame = Vec::new();
    loop {
        match protocol::receive(input, &mut frame, MAX_ANSWER)? {
            Some(Kind::Stream) => {
                came(frame.len() as u64);
                // An rsync that has ended takes no more; its exit code tells.
                if to_rsync.as_mut().is_some_and(|pipe| pipe.write_all(&frame).is_err()) {
                    to_rsync = None;
                }
            }
            Some(Kind::End) => {
                // The receiving rsync has ended, so the "remote shell" ends as it did; rsync waits for that. One
                // that has gone already needs no word.
                to_rsync = None;
                tunnel.write_all(frame.get(..1).unwrap_or(&[255])).ok();
            }
            Some(Kind::Message) => return Ok(frame),
            Some(Kind::Alive) => {}
            Some(Kind::List | Kind::Count | Kind::Item) => bail!("the other end is out of step"),
            None => bail!("it closed the connection"),
        }
    }
}

/// rsync's "remote shell": hands our stdin and stdout over socket `fd`, waits, and ends as the receiving
/// rsync did.
pub fn tunnel(fd: RawFd, argv: &[OsString]) -> Result<u8> {
    // Anything but the socket that was meant for us is refused: this action is of no use by hand.
    let socket = nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(fd);
    if fd < 3 || socket.is_err() {
        return Err(Fault::usage("tunnel is started by rsync, never by hand").into());
    }
    let mut socket = UnixStream::from(own(fd));
    let words: Vec<&[u8]> = argv.iter().map(|a| a.as_bytes()).collect();
    let bytes = words.join(&0);
    let pipes = [0, 1];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        &[ControlMessage::ScmRights(&pipes)],
        MsgFlags::empty(),
        None,
    )
    .context("cannot hand over rsync's pipes")?;
    close_stdio()?;
    let mut code = [255];
    match socket.read_exact(&mut code) {
        Ok(()) => Ok(code[0]),
        Err(_) => Ok(255),
    }
}

/// Our copies of the pipes would keep rsync from seeing their end.
fn close_stdio() -> Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("cannot close stdin")?;
    nix::unistd::dup2_stdout(&null).context("cannot close stdout")?;
    Ok(())
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
    fn files_in_complaints_are_named() {
        let said = "rsync: [sender] send_files failed to open \"/a \"b\"/c\": Permission denied (13)\n\
            rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c(1338)\n";
        assert_eq!(named_files(said), ["/a \"b\"/c"]);
    }
}
