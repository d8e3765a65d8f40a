//! rsync's "remote shell", and how what goes through it is carried in the conversation with the far end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use common::fault::Fault;
use common::run::{Child, Cmd};
use common::signals;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::argv::capabilities;
use crate::far::Far;
use crate::progress::Progress;
use crate::protocol::{self, Frame, MAX_ANSWER, MAX_FRAME, Received};

/// How long rsync may take to start its "remote shell".
const START: Duration = Duration::from_secs(30);

/// What rsync says, and what it hears: the pipes that it gave its "remote shell".
pub type Pipes = (OwnedFd, OwnedFd);

/// An rsync of ours that has started its "remote shell".
#[derive(Debug)]
pub struct Started {
    /// It.
    pub child: Child,
    /// What it can do, for its peer.
    pub capabilities: String,
    /// What it says and hears.
    pub pipes: Pipes,
    /// Where its "remote shell" waits for the end.
    pub tunnel: UnixStream,
}

/// Starts the rsync of `command`, which gets the descriptor that its "remote shell" needs.
pub fn start(command: impl FnOnce(RawFd) -> Result<Cmd>, stdin: Stdio, stdout: Stdio) -> Result<Started> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let mut child = command(theirs.as_raw_fd())?.start(stdin, stdout)?;
    drop(theirs);
    let Some((argv, pipes)) = accept(&ours, &mut child)? else {
        let status = child.wait(Some(START), true)?;
        return Err(anyhow::Error::from(child.failure_for(status)?).context("rsync could not be started"));
    };
    Ok(Started { child, capabilities: capabilities(&argv)?, pipes, tunnel: ours })
}

/// Takes the pipes that rsync gave its "remote shell"; `None` if that was not started.
fn accept(ours: &UnixStream, child: &mut Child) -> Result<Option<(Vec<OsString>, Pipes)>> {
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
                    protocol::send(output, Frame::End, &[])?;
                    output.flush()?;
                    return Ok(sent);
                }
                protocol::send(output, Frame::Stream, &buffer[..n])?;
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
            Some(Frame::Stream) => {
                came(frame.len() as u64);
                // An rsync that has ended takes no more; its exit code tells.
                if to_rsync.as_mut().is_some_and(|pipe| pipe.write_all(&frame).is_err()) {
                    to_rsync = None;
                }
            }
            Some(Frame::End) => {
                // The receiving rsync has ended, so the "remote shell" ends as it did; rsync waits for that. One
                // that has gone already needs no word.
                to_rsync = None;
                tunnel.write_all(frame.get(..1).unwrap_or(&[255])).ok();
            }
            Some(Frame::Message) => return Ok(frame),
            Some(Frame::Alive) => {}
            Some(Frame::List | Frame::Count | Frame::Item) => bail!("the other end is out of step"),
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
