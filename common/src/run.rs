//! Running other programs.
//!
//! Every child gets: an absolute program, a cleared environment (`LC_ALL=C.UTF-8`, a fixed PATH),
//! a process group of its own, SIGKILL when the thread that started it dies, and nothing of ours but
//! stdin, stdout, stderr and descriptors named with [`Cmd::inherit`]. Captured output goes to
//! memory files, so a child can never block on us and no grandchild can keep us waiting.
//! A signal to us stops the child's group (TERM, then KILL after five seconds); a child that is stuck in the
//! kernel even then is left behind after five more.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid};

use crate::account::Account;
use crate::fault::{Fault, Kind};
use crate::{mutant, signals};

/// Where programs are looked for, whatever the caller's PATH says.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a child that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// How much of a child's stderr goes into an error, in bytes.
const TAIL: usize = 2048;

/// A child that did not do its work.
#[derive(Debug)]
pub struct Failure {
    /// Decides our exit code.
    pub kind: Kind,
    /// Absolute program.
    pub program: String,
    /// Its arguments. Never holds a secret, because no argv of ours does.
    pub args: Vec<String>,
    /// Exit code, if it exited.
    pub exit_code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// The end of what it said.
    pub stderr_tail: String,
    /// What to do about it.
    pub hint: Option<String>,
    timed_out: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.program)?;
        match (self.timed_out, self.exit_code, self.signal) {
            (Some(limit), ..) => write!(f, "did not finish within {limit:?}")?,
            (_, Some(code), _) => write!(f, "failed with exit code {code}")?,
            (_, _, Some(signal)) => write!(f, "was ended by signal {signal}")?,
            _ => write!(f, "failed")?,
        }
        if let Some(line) = self.stderr_tail.lines().rev().find(|l| !l.trim().is_empty()) {
            write!(f, ": {}", line.trim())?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// What a child printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
}

impl Output {
    /// stdout as text, trimmed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// A command to be run. Building it changes nothing.
#[derive(Debug)]
pub struct Cmd {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    dir: Option<PathBuf>,
    timeout: Option<Duration>,
    inherit: Vec<RawFd>,
    heed_signals: bool,
    die_with_parent: bool,
    account: Option<(Uid, Gid, Vec<Gid>)>,
    own_session: bool,
}

/// The absolute path of `name`, from the fixed [`PATH`]; an absolute name is returned as it is.
pub fn program(name: &OsStr) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if path.components().count() == 1 {
        for dir in PATH.split(':') {
            let candidate = Path::new(dir).join(path);
            if nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK).is_ok() {
                return Ok(candidate);
            }
        }
    }
    let name = path.display();
    Err(Fault::unavailable(format!("program '{name}' not found in {PATH}"))
        .hint(format!(
            "install the package that holds {name}, or name it by its absolute path in the profile"
        ))
        .into())
}

impl Cmd {
    /// A command from a program name (looked up in [`PATH`] unless absolute).
    pub fn new(program: impl Into<OsString>) -> Cmd {
        Cmd {
            argv: vec![program.into()],
            env: Vec::new(),
            stdin: Vec::new(),
            dir: None,
            timeout: None,
            inherit: Vec::new(),
            heed_signals: true,
            die_with_parent: true,
            account: None,
            own_session: false,
        }
    }

    /// A command from a configured argv; `argv` must not be empty.
    pub fn from_argv<S: AsRef<OsStr>>(argv: &[S]) -> Result<Cmd> {
        let (first, rest) =
            argv.split_first().ok_or_else(|| Fault::config("a command in the profile is an empty list"))?;
        Ok(Cmd::new(first.as_ref()).args(rest))
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Cmd {
        self.argv.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the child's environment (which is otherwise cleared).
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Cmd {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What the child reads; nothing by default.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Cmd {
        self.stdin = bytes.into();
        self
    }

    /// Its working directory; `/` by default.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Cmd {
        self.dir = Some(dir.into());
        self
    }

    /// Ended (group and all) when it takes longer.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Cmd {
        self.timeout = Some(limit);
        self
    }

    /// Keeps `fd` open, under its number, in the child: a lock that outlives us while it writes.
    /// The caller keeps the descriptor open until the child has been started.
    #[must_use]
    pub fn inherit(mut self, fd: RawFd) -> Cmd {
        self.inherit.push(fd);
        self
    }

    /// For clean-up: runs to its end (or its timeout) even though a signal asked us to stop.
    #[must_use]
    pub fn uninterruptible(mut self) -> Cmd {
        self.heed_signals = false;
        self
    }

    /// For background processes of ours: lives on when the thread that started it ends.
    #[must_use]
    pub fn outlives_us(mut self) -> Cmd {
        self.die_with_parent = false;
        self
    }

    /// Runs it as `account`: its user, groups, HOME, USER and LOGNAME. Needs root, unless that is who we are.
    ///
    /// The one way to give a child another account. It always leaves our session, and with that our terminal: a
    /// program that has a terminal of root's could type commands into it (TIOCSTI).
    #[must_use]
    pub fn run_as(mut self, account: &Account) -> Cmd {
        self.env.splice(0..0, account.environment().map(|(key, value)| (key.into(), value)));
        if nix::unistd::geteuid() != account.uid() {
            self.account = Some((account.uid(), account.gid(), account.groups()));
            self.own_session = self.own_session || !mutant::active("another-account-keeps-the-terminal");
        }
        self
    }

    /// In a session of its own, out of reach of the terminal's signals; its group is new as ever.
    #[must_use]
    pub fn own_session(mut self) -> Cmd {
        self.own_session = true;
        self
    }

    /// Runs it to its end and captures everything; the exit status is the caller's to judge.
    pub fn output(&self) -> Result<Output> {
        let mut stdin = memory_file()?;
        stdin.write_all(&self.stdin).and_then(|()| stdin.rewind()).context("cannot prepare stdin")?;
        let stdout = memory_file()?;
        let mut child = self.start(stdin.into(), stdout.try_clone()?.into())?;
        let status = child.wait(self.timeout, self.heed_signals)?;
        Ok(Output { status, stdout: read_back(&stdout)?, stderr: child.stderr()? })
    }

    /// Runs it to its end; anything but exit code 0 is a [`Failure`].
    pub fn checked(&self) -> Result<Output> {
        let output = self.output()?;
        if output.status.success() { Ok(output) } else { Err(self.failure(&output).into()) }
    }

    /// The [`Failure`] that `output` amounts to.
    pub fn failure(&self, output: &Output) -> Failure {
        let missing = output.status.code() == Some(127);
        Failure {
            kind: if missing { Kind::Unavailable } else { Kind::Failed },
            exit_code: output.status.code(),
            signal: output.status.signal(),
            stderr_tail: tail(&output.stderr),
            ..self.blank_failure()
        }
    }

    fn blank_failure(&self) -> Failure {
        let mut argv = self.argv.iter().map(|a| a.to_string_lossy().into_owned());
        Failure {
            kind: Kind::Failed,
            program: argv.next().unwrap_or_default(),
            args: argv.collect(),
            exit_code: None,
            signal: None,
            stderr_tail: String::new(),
            hint: None,
            timed_out: None,
        }
    }

    /// Starts it with pipes to its stdin and stdout; stderr is captured.
    pub fn spawn_piped(&self) -> Result<Child> {
        self.start(Stdio::piped(), Stdio::piped())
    }

    /// Starts it with the given stdin and stdout; stderr is captured.
    pub fn start(&self, stdin: Stdio, stdout: Stdio) -> Result<Child> {
        let stderr = memory_file()?;
        let shared = stderr.try_clone().context("cannot prepare stderr")?;
        self.launch(stdin, stdout, shared.into(), stderr)
    }

    /// Starts it with the given stdin, stdout and stderr; nothing is captured.
    pub fn start_streams(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        self.launch(stdin, stdout, stderr, memory_file()?)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts children")]
    #[expect(unsafe_code, reason = "pre_exec: only async-signal-safe calls between fork and exec")]
    fn launch(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio, captured: File) -> Result<Child> {
        if self.heed_signals {
            signals::check()?;
        }
        let path = program(&self.argv[0])?;
        let mut command = Command::new(&path);
        command.args(&self.argv[1..]).env_clear().env("LC_ALL", "C.UTF-8").env("PATH", PATH);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command.current_dir(self.dir.as_deref().unwrap_or(Path::new("/")));
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        if !self.own_session {
            command.process_group(0);
        }
        let (inherit, die) = (self.inherit.clone(), self.die_with_parent);
        let (account, own_session) = (self.account.clone(), self.own_session);
        let parent = nix::unistd::getpid();
        // SAFETY: the closure makes plain system calls only, and does not allocate.
        unsafe {
            command.pre_exec(move || {
                // What our own caller left open without close-on-exec is not the child's either.
                libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
                for fd in &inherit {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) == -1 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                if own_session {
                    nix::unistd::setsid()?;
                }
                if let Some((user, group, groups)) = &account {
                    nix::unistd::setgroups(groups)?;
                    nix::unistd::setresgid(*group, *group, *group)?;
                    nix::unistd::setresuid(*user, *user, *user)?;
                } else {
                    // Root that has taken an account's rights for a while gives a child nothing else of root.
                    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
                    if nix::unistd::getuid() != user {
                        nix::unistd::setresgid(group, group, group)?;
                        nix::unistd::setresuid(user, user, user)?;
                    }
                }
                // Last: a change of user clears it.
                if die {
                    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                    if nix::unistd::getppid() != parent {
                        return Err(nix::errno::Errno::ESRCH.into());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::NotFound => Kind::Unavailable,
                std::io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Failed,
            };
            anyhow::Error::from(Fault::new(kind, format!("cannot start {}: {e}", path.display())))
        })?;
        let pidfd = pidfd(child.id())?;
        Ok(Child { child, pidfd, stderr: captured, failure: self.blank_failure(), done: None })
    }
}

/// A running child. Dropping it ends its whole group, without grace.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
    stderr: File,
    failure: Failure,
    done: Option<ExitStatus>,
}

impl Child {
    /// Its process id, which is its group's id too.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The writing end of its stdin, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The reading end of its stdout, once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The reading end of its stderr: `None`, as stderr is captured; see [`Child::stderr`].
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }

    /// What it said on stderr so far.
    pub fn stderr(&self) -> Result<Vec<u8>> {
        read_back(&self.stderr)
    }

    /// Lets it live on without us: for background processes of ours.
    pub fn detach(self) {
        // Its Drop would end it; the descriptors it holds are given up with this process.
        std::mem::forget(self);
    }

    /// Waits for its end. On the timeout, or on a signal to us, its group is ended and the error says why.
    pub fn wait(&mut self, timeout: Option<Duration>, heed_signals: bool) -> Result<ExitStatus> {
        let deadline = timeout.map(|t| Instant::now() + t);
        while !self.ended_by(deadline, heed_signals)? {
            if heed_signals && let Some(signal) = signals::caught() {
                self.end();
                return Err(crate::status::interrupted(signal).into());
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                self.end();
                let stderr_tail = tail(&self.stderr()?);
                let mut failure = self.failure.clone_shape();
                failure.timed_out = timeout;
                failure.stderr_tail = stderr_tail;
                return Err(failure.into());
            }
        }
        self.reap()
    }

    /// Its end, if it has come.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.done.is_none() {
            self.done = self.child.try_wait().context("cannot wait for a child")?;
        }
        Ok(self.done)
    }

    /// The [`Failure`] for the way it ended.
    pub fn failure_for(&self, status: ExitStatus) -> Result<Failure> {
        let mut failure = self.failure.clone_shape();
        failure.exit_code = status.code();
        failure.signal = status.signal();
        failure.stderr_tail = tail(&self.stderr()?);
        Ok(failure)
    }

    /// Ends the whole group: TERM, five seconds, KILL, at most five more.
    pub fn end(&mut self) {
        if self.done.is_some() {
            return;
        }
        self.signal(Signal::SIGTERM);
        let deadline = Some(Instant::now() + GRACE);
        while deadline.is_some_and(|d| Instant::now() < d) {
            if self.ended_by(deadline, false).unwrap_or(true) {
                break;
            }
        }
        self.signal(Signal::SIGKILL);
        self.reap_or_abandon();
    }

    /// After SIGKILL: takes its status, or gives it up if it is stuck in the kernel (a file system whose server is
    /// gone). It ends as soon as the kernel lets it go; to wait for that could be for ever.
    fn reap_or_abandon(&mut self) {
        if self.ended_by(Some(Instant::now() + GRACE), false).unwrap_or(true) {
            drop(self.reap());
        } else {
            // As the status of a process that SIGKILL ended, which is what it will be.
            self.done = Some(ExitStatus::from_raw(Signal::SIGKILL as i32));
        }
    }

    /// Sends `signal` to its group.
    pub fn signal(&self, signal: Signal) {
        if self.done.is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            // It may have ended in this very moment: nothing to do then.
            killpg(Pid::from_raw(pid), signal).ok();
        }
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("cannot wait for a child")?;
        self.done = Some(status);
        Ok(status)
    }

    /// Waits for the end, a signal to us or the deadline; true if the child has ended.
    pub fn ended_by(&self, deadline: Option<Instant>, heed_signals: bool) -> Result<bool> {
        let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        if heed_signals && let Some(fd) = signals::fd() {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout =
            left.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot wait for a child"),
        }
        Ok(fds[0].any().unwrap_or(false))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.done.is_none() {
            self.signal(Signal::SIGKILL);
            self.reap_or_abandon();
        }
    }
}

impl Failure {
    fn clone_shape(&self) -> Failure {
        Failure {
            kind: self.kind,
            program: self.program.clone(),
            args: self.args.clone(),
            exit_code: None,
            signal: None,
            stderr_tail: String::new(),
            hint: self.hint.clone(),
            timed_out: None,
        }
    }
}

/// A file that lives in memory and has no name.
fn memory_file() -> Result<File> {
    let fd = memfd_create(c"nc-backup", MFdFlags::MFD_CLOEXEC).context("cannot make a memory file")?;
    Ok(File::from(fd))
}

/// Reads a memory file from its start. By position: the child shares the offset and may be writing.
fn read_back(file: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).context("too much output")?];
    file.read_exact_at(&mut bytes, 0).context("cannot read a child's output back")?;
    Ok(bytes)
}

/// The last part of what a program said, from a line's start.
pub fn tail(bytes: &[u8]) -> String {
    let cut = bytes.len().saturating_sub(TAIL);
    let part = &bytes[cut..];
    let part =
        if cut == 0 { part } else { part.iter().position(|b| *b == b'\n').map_or(part, |n| &part[n + 1..]) };
    String::from_utf8_lossy(part).trim_end().to_owned()
}

/// A descriptor that stands for process `pid`: never another one, even when numbers are used again.
#[expect(unsafe_code, reason = "pidfd_open has no wrapper in nix")]
pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    // SAFETY: a plain system call; a descriptor it returns is ours alone.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = nix::errno::Errno::result(fd).with_context(|| format!("cannot watch process {pid}"))?;
    let fd = RawFd::try_from(fd).context("a descriptor out of range")?;
    // SAFETY: as above; pidfds are close-on-exec from birth.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process that `pidfd` stands for; fine if it is gone.
#[expect(unsafe_code, reason = "pidfd_send_signal has no wrapper in nix")]
pub fn pidfd_signal(pidfd: &OwnedFd, signal: Signal) {
    // SAFETY: a plain system call on a descriptor that is open; no memory is passed.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_cleared_and_output_captured() {
        let out = Cmd::new("/usr/bin/env").output().unwrap();
        let text = out.text();
        let mut names: Vec<_> = text.lines().filter_map(|l| l.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[test]
    fn stdin_is_given_and_exit_code_kept() {
        let cmd = Cmd::new("sh").args(["-c", "cat; echo oops >&2; exit 3"]).stdin("hello");
        let out = cmd.output().unwrap();
        assert_eq!((out.text().as_str(), out.status.code()), ("hello", Some(3)));
        let failure = cmd.failure(&out);
        assert_eq!(failure.to_string(), "sh failed with exit code 3: oops");
    }

    #[test]
    fn a_timeout_ends_the_whole_group() {
        let cmd = Cmd::new("sh").args(["-c", "sleep 60 & wait"]).timeout(Duration::from_millis(100));
        let begin = Instant::now();
        let error = cmd.output().unwrap_err();
        assert!(error.to_string().contains("did not finish"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn descriptors_are_not_inherited_unless_named() {
        let file = memory_file().unwrap();
        let list = Cmd::new("ls").arg("/proc/self/fd").output().unwrap().text();
        assert_eq!(list.lines().count(), 4, "stdin, stdout, stderr and the directory itself: {list}");
        let list = Cmd::new("ls").arg("/proc/self/fd").inherit(file.as_raw_fd()).output().unwrap().text();
        assert_eq!(list.lines().count(), 5, "{list}");
    }

    #[test]
    fn another_account_is_another_session() {
        let script = "echo $(id -u) $(id -G); ps -o sid= -p $$";
        let out = Cmd::new("sh").args(["-c", script]).run_as(&Account::named("nobody").unwrap());
        let mut child = out.start(Stdio::null(), Stdio::piped()).unwrap();
        let id = child.id();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.take_stdout().unwrap(), &mut text).unwrap();
        child.wait(None, false).unwrap();
        let mut lines = text.lines().map(str::trim);
        assert_eq!(lines.next(), Some("65534 65534"));
        assert_eq!(lines.next(), Some(id.to_string().as_str()), "a session leader");
    }

    #[test]
    fn an_unknown_program_names_its_cure() {
        let error = program(OsStr::new("no-such-program-here")).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), Kind::Unavailable);
    }
}
