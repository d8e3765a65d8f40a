//! rsync's own protocol, passed on in stream frames between its pipes and the other end.

use std::io::{Read, Write};

use anyhow::{Context as _, Result, bail};
use common::complaint::tail;
use common::run::Cmd;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::protocol::{self, Frame, MAX_FRAME, Received};
use crate::store::pace::RoomWatch;

/// Runs rsync with its stdin and stdout in stream frames; `wrote` hears how many bytes it was sent before it gets more, and `room`
/// is asked again and again whether it may write: it copies much that it was not sent.
pub fn converse(
    cmd: Result<Cmd>,
    room: Option<&(dyn Fn() -> Result<()> + Sync)>,
    wrote: impl Fn(u64) -> Result<()>,
    input: &mut impl Read,
    output: &mut (impl Write + Send),
) -> Result<Received> {
    let child = cmd.and_then(|cmd| cmd.spawn_piped());
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            // The source's rsync is waiting: end both directions, then say why.
            protocol::send(output, Frame::End, &[])?;
            output.flush()?;
            swallow_stream(input)?;
            return Err(error);
        }
    };
    let (mut to_child, mut from_child) =
        (child.take_stdin(), child.take_stdout().context("rsync has no stdout")?);
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id out of range")?);
    let (mut unflushed, mut fits) = (Ok(()), Ok(()));
    let piped: Result<()> = std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            let mut buffer = vec![0; MAX_FRAME];
            loop {
                let n = from_child.read(&mut buffer)?;
                if n == 0 {
                    // The source's rsync waits for its "remote shell" to end, and only then ends itself.
                    protocol::send(output, Frame::End, &[exit_code(pid)?])?;
                    return Ok(output.flush()?);
                }
                protocol::send(output, Frame::Stream, &buffer[..n])?;
                output.flush()?;
            }
        });
        let watch = room.map(|room| RoomWatch::begin(scope, room, pid));
        let mut frame = Vec::new();
        let received = loop {
            match protocol::receive(input, &mut frame, 0) {
                Ok(Some(Frame::Stream)) => {
                    // An rsync that has ended takes no more; the source is told by the other direction.
                    if to_child.as_mut().is_some_and(|pipe| pipe.write_all(&frame).is_err()) {
                        to_child = None;
                    }
                    // Nothing more is taken before this has reached the disk.
                    if unflushed.is_ok() {
                        unflushed = wrote(frame.len() as u64);
                    }
                    if unflushed.is_err() {
                        // What still comes is read, so that the conversation stays in step.
                        to_child = None;
                    }
                }
                Ok(Some(Frame::End)) => break Ok(()),
                Ok(_) => break Err(anyhow::anyhow!("the source went away")),
                Err(e) => break Err(e),
            }
        };
        drop(to_child);
        if received.is_err() {
            child.end();
        }
        let sent = sender.join().unwrap_or_else(|_| bail!("internal error while passing on rsync's output"));
        fits = watch.zip(room).map_or(Ok(()), |(watch, room)| watch.end(room));
        received.and(sent)
    });
    piped?;
    if let Err(error) = unflushed.and(fits) {
        child.end();
        return Err(error);
    }
    let status = child.wait(None, false)?;
    Ok(Received { exit_code: status.code().unwrap_or(255), stderr: tail(&child.stderr()?) })
}

/// Waits for child `pid` without taking its status away; 255 if a signal ended it.
fn exit_code(pid: Pid) -> Result<u8> {
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(255)),
            Ok(_) => return Ok(255),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot wait for rsync"),
        }
    }
}

fn swallow_stream(input: &mut impl Read) -> Result<()> {
    let mut frame = Vec::new();
    loop {
        match protocol::receive(input, &mut frame, 0)? {
            Some(Frame::Stream) => {}
            Some(Frame::End) => return Ok(()),
            _ => bail!("the source went away"),
        }
    }
}
