//! The relay: what ssh uses as its connection (`ProxyCommand`) instead of a socket of its own.
//!
//! It carries bytes between ssh and the other machine, limits what goes there, and counts. A limit here holds for
//! everything, also for what the file system does behind our back; the count is of what has really left.

use std::fs::File;
use std::io::{PipeWriter, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::{Family, Relay};
use crate::wire::{Counts, Line};

/// How often the count is written down.
const TICK: Duration = Duration::from_millis(500);

/// How long what is still on its way may take after the end.
const DRAIN: Duration = Duration::from_secs(1);

/// How many bytes wait in the socket beyond what the network takes: more would only delay and be counted late.
const WAITING: libc::c_int = 128 * 1024;

#[derive(Debug, Default)]
struct State {
    written: AtomicU64,
    received: AtomicU64,
    /// Set when the other machine has closed, or the connection broke.
    closed: AtomicBool,
    broken: AtomicBool,
}

/// Relays until either side is gone.
pub(crate) fn run(wish: &Relay) -> Result<()> {
    signals::install()?;
    let line = Line::add(&wish.counter)?;
    let socket = connect(wish)?;
    prepare(&socket)?;
    let state = Arc::new(State::default());
    let (mut woken, wake) = std::io::pipe().context("cannot make a pipe")?;
    let upload = (socket.try_clone()?, Arc::clone(&state), Pace::new(wish.bwlimit));
    let download = (socket.try_clone()?, Arc::clone(&state), wake);
    // Both may be stuck for ever in a system call; the end of the process ends them.
    drop(std::thread::spawn(move || send(&upload.0, &upload.1, upload.2)));
    drop(std::thread::spawn(move || receive(&download.0, &download.1, download.2)));

    let mut counts = Counts::default();
    let mut count = |socket: &TcpStream| {
        counts = measure(socket, &state, counts);
        // A count that cannot be written must not stop a backup.
        line.write(counts).ok();
    };
    while !state.closed.load(Ordering::SeqCst) && signals::caught().is_none() && ssh_lives()? {
        count(&socket);
        wait(woken.as_fd(), TICK)?;
    }
    if state.closed.load(Ordering::SeqCst) {
        // The thread is through: nothing comes any more.
        woken.read_to_end(&mut Vec::new()).context("cannot read a pipe")?;
    }
    let end = Instant::now() + DRAIN;
    while Instant::now() < end && !state.broken.load(Ordering::SeqCst) && queued(&socket) > 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    count(&socket);
    Ok(())
}

fn connect(wish: &Relay) -> Result<TcpStream> {
    let (host, port) = (&wish.host, wish.port);
    let found = (host.as_str(), port)
        .to_socket_addrs()
        .map_err(|e| Fault::unavailable(format!("cannot find {host}: {e}")))?;
    let wanted = |a: &SocketAddr| match wish.family {
        Family::Any => true,
        Family::Inet => a.is_ipv4(),
        Family::Inet6 => a.is_ipv6(),
    };
    let mut last = format!("cannot find {host}: it has no address of this kind");
    for address in found.filter(wanted) {
        match TcpStream::connect_timeout(&address, Duration::from_secs(wish.connect_timeout)) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = format!("cannot connect to {host} port {port} ({}): {e}", address.ip()),
        }
    }
    Err(Fault::unavailable(last).into())
}

#[expect(unsafe_code, reason = "these socket options have no wrapper")]
fn prepare(socket: &TcpStream) -> Result<()> {
    // As ssh does with a socket of its own.
    socket.set_nodelay(true).context("cannot prepare the connection")?;
    let set = |level, name, value: libc::c_int| {
        let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(4);
        // SAFETY: a plain system call that reads an integer that lives until it returns.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), size)
        };
        nix::errno::Errno::result(result).map(drop)
    };
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).context("cannot prepare the connection")?;
    set(libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, WAITING).context("cannot prepare the connection")
}

/// ssh → other machine.
fn send(mut socket: &TcpStream, state: &State, mut pace: Pace) {
    let Ok(mut stdin) = raw(std::io::stdin().as_fd()) else { return };
    let mut buffer = vec![0; pace.chunk];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                pace.wait(n);
                if socket.write_all(&buffer[..n]).is_err() {
                    state.broken.store(true, Ordering::SeqCst);
                    break;
                }
                state.written.fetch_add(n as u64, Ordering::SeqCst);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // ssh says no more, but may still listen.
    socket.shutdown(Shutdown::Write).ok();
}

/// Other machine → ssh. Dropping `wake` tells the main thread that this one is through.
fn receive(mut socket: &TcpStream, state: &State, wake: PipeWriter) {
    let Ok(mut stdout) = raw(std::io::stdout().as_fd()) else { return };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                state.received.fetch_add(n as u64, Ordering::SeqCst);
                if stdout.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => {
                state.broken.store(true, Ordering::SeqCst);
                break;
            }
        }
    }
    state.closed.store(true, Ordering::SeqCst);
    drop(wake);
}

/// A stream without the standard library's buffer.
fn raw(fd: BorrowedFd) -> std::io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

/// Whether anybody reads our stdout any more.
fn ssh_lives() -> Result<bool> {
    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(!fds[0].any().unwrap_or(false)),
        Err(e) => Err(e).context("cannot watch ssh"),
    }
}

/// Sleeps until something ends or `limit` has passed.
fn wait(woken: BorrowedFd, limit: Duration) -> Result<()> {
    let stdout = std::io::stdout();
    let mut fds =
        vec![PollFd::new(woken, PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
    fds.extend(signals::fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    match poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e).context("cannot wait"),
    }
}

/// What has left and was acknowledged. Never less than before: a connection that broke forgets its queue.
fn measure(socket: &TcpStream, state: &State, before: Counts) -> Counts {
    let received = state.received.load(Ordering::SeqCst);
    let written = state.written.load(Ordering::SeqCst);
    let left = written.saturating_sub(queued(socket));
    let sent = if state.broken.load(Ordering::SeqCst) { before.sent } else { left.max(before.sent) };
    Counts { sent, received }
}

/// Bytes given to the socket that the other machine has not acknowledged.
#[expect(unsafe_code, reason = "SIOCOUTQ has no wrapper")]
fn queued(socket: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) writes one integer, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Keeps to a number of bytes a second, with at most a tenth of a second saved up.
#[derive(Debug)]
struct Pace {
    rate: Option<u64>,
    free_at: Instant,
    chunk: usize,
}

impl Pace {
    fn new(rate: Option<u64>) -> Pace {
        // Small enough that a slow link goes on evenly.
        let chunk = rate.map_or(64 * 1024, |r| (r / 20).clamp(1024, 32 * 1024));
        Pace { rate, free_at: Instant::now(), chunk: usize::try_from(chunk).unwrap_or(1024) }
    }

    /// Waits until `bytes` more may go.
    #[expect(clippy::cast_precision_loss, reason = "a length of time need not be exact")]
    fn wait(&mut self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let saved = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
        self.free_at = self.free_at.max(saved);
        if self.free_at > now {
            std::thread::sleep(self.free_at - now);
        }
        self.free_at += Duration::from_secs(1).mul_f64(bytes as f64 / rate as f64);
    }
}
