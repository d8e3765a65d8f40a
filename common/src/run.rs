//! Running other programs.
//!
//! Every child gets: an absolute program, a cleared environment (`LC_ALL=C.UTF-8`, a fixed PATH),
//! a process group of its own, SIGKILL when the thread that started it dies, and nothing of ours but
//! stdin, stdout, stderr and descriptors named with [`Cmd::inherit`]. What is captured is captured within limits
//! (`capture.rs`), so a child can neither block on us nor fill the memory, and no grandchild can keep us waiting.
//! Nothing waits without a limit (`child.rs`): without one of its own, [`QUIET`] is a child's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};

use crate::account::Account;
use crate::capture::{Capture, Limits, STDERR};
pub use crate::child::{Child, QUIET};
use crate::complaint::tail;
use crate::fault::{Failure, Fault, Kind};
use crate::{descriptors, mutant, signals};

/// Where programs are looked for, whatever the caller's PATH says.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of stdout is captured where no other limit is set, in bytes.
const STDOUT: u64 = 64 * 1024 * 1024;

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
    held: Option<Arc<OwnedFd>>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    dir: Option<PathBuf>,
    timeout: Option<Duration>,
    quiet: Option<Duration>,
    stdout_limit: u64,
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
            held: None,
            env: Vec::new(),
            stdin: Vec::new(),
            dir: None,
            timeout: None,
            quiet: None,
            stdout_limit: STDOUT,
            inherit: Vec::new(),
            heed_signals: true,
            die_with_parent: true,
            account: None,
            own_session: false,
        }
    }

    /// A command that runs the program behind `file`, whatever lies at `path` by then.
    pub(crate) fn held(path: PathBuf, file: Arc<OwnedFd>) -> Cmd {
        // Inherited, as a script is read by name.
        let cmd = Cmd::new(path).inherit(file.as_raw_fd());
        Cmd { held: Some(file), ..cmd }
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

    /// Ended (group and all) when it has done nothing for so long: no output, nothing read or written, no work to speak
    /// of. For what may take hours as long as it goes on.
    #[must_use]
    pub fn quiet_limit(mut self, limit: Duration) -> Cmd {
        self.quiet = Some(limit);
        self
    }

    /// How many bytes of stdout [`Cmd::output`] takes; with more, the child is ended and that is an error.
    #[must_use]
    pub fn stdout_limit(mut self, bytes: u64) -> Cmd {
        self.stdout_limit = bytes;
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
        let most = usize::try_from(self.stdout_limit).unwrap_or(usize::MAX);
        let (out, stdout) = self.capture(Limits { head: most, tail: 0, flood: self.stdout_limit })?;
        let (err, stderr) = self.capture(STDERR)?;
        let mut child = self.launch(stdin.into(), stdout, stderr, out, err)?;
        let status = child.wait(self.timeout, self.heed_signals)?;
        // A child may have said too much in its last moment.
        child.check_flood()?;
        Ok(Output { status, stdout: child.stdout()?, stderr: child.stderr()? })
    }

    /// What a captured stream goes to: where the child can still write when we are gone, if it may outlive us.
    fn capture(&self, limits: Limits) -> Result<(Capture, Stdio)> {
        if self.die_with_parent { Capture::pipe(limits) } else { Capture::fixed(limits.flood) }
    }

    /// Runs it to its end; anything but exit code 0 is a [`Failure`].
    pub fn checked(&self) -> Result<Output> {
        let output = self.output()?;
        if output.status.success() { Ok(output) } else { Err(self.failure(&output).into()) }
    }

    /// The [`Failure`] that `output` amounts to.
    pub fn failure(&self, output: &Output) -> Failure {
        Failure::blank(&self.argv).ending(output.status, tail(&output.stderr))
    }

    /// Starts it with pipes to its stdin and stdout; stderr is captured.
    pub fn spawn_piped(&self) -> Result<Child> {
        self.start(Stdio::piped(), Stdio::piped())
    }

    /// Starts it with the given stdin and stdout; stderr is captured.
    pub fn start(&self, stdin: Stdio, stdout: Stdio) -> Result<Child> {
        let (err, stderr) = self.capture(STDERR)?;
        self.launch(stdin, stdout, stderr, Capture::No, err)
    }

    /// Starts it without input; stdout is captured like stderr, and may be of any length: of very much, the beginning and the
    /// end are kept. For what must not be ended because it says too much.
    pub fn start_captured(&self) -> Result<Child> {
        let (out, stdout) = match self.die_with_parent {
            true => Capture::pipe(Limits { flood: u64::MAX, ..STDERR })?,
            false => Capture::fixed(STDERR.flood)?,
        };
        let (err, stderr) = self.capture(STDERR)?;
        self.launch(Stdio::null(), stdout, stderr, out, err)
    }

    /// Starts it with the given stdin, stdout and stderr; nothing is captured.
    pub fn start_streams(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        self.launch(stdin, stdout, stderr, Capture::No, Capture::No)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts children")]
    #[expect(unsafe_code, reason = "pre_exec: only async-signal-safe calls between fork and exec")]
    fn launch(
        &self,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
        out: Capture,
        err: Capture,
    ) -> Result<Child> {
        if self.heed_signals {
            signals::check()?;
        }
        let path = match &self.held {
            Some(file) => by_descriptor(file),
            None => program(&self.argv[0])?,
        };
        let mut command = Command::new(&path);
        if self.held.is_some() {
            command.arg0(&self.argv[0]);
        }
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
                descriptors::for_child()?;
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
        let shown = if self.held.is_some() { Path::new(&self.argv[0]) } else { &path };
        let child = command.spawn().map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::NotFound => Kind::Unavailable,
                std::io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Failed,
            };
            anyhow::Error::from(Fault::new(kind, format!("cannot start {}: {e}", shown.display())))
        })?;
        let limits = (self.quiet, self.stdout_limit);
        Child::begin(child, out, err, limits, Failure::blank(&self.argv))
    }
}

/// The name under which a child finds a file that it has inherited.
pub(crate) fn by_descriptor(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// A file that lives in memory and has no name.
fn memory_file() -> Result<File> {
    let fd = memfd_create(c"nc-backup", MFdFlags::MFD_CLOEXEC).context("cannot make a memory file")?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

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

    /// What is wrong, as the program itself says it, in what it really printed.
    #[test]
    fn a_flood_is_ended_and_fills_nothing() {
        let begin = Instant::now();
        let cmd = Cmd::new("sh").args(["-c", "trap '' TERM PIPE; exec yes"]).stdout_limit(1_000_000);
        let cmd = cmd.timeout(Duration::from_secs(20));
        let error = cmd.output().unwrap_err();
        assert_eq!(error.to_string(), "sh wrote more than 1000000 bytes to stdout and was ended");
        // Nobody waits for this one, and it ends all the same.
        let mut child = Cmd::new("sh").args(["-c", "yes >&2"]).start(Stdio::null(), Stdio::null()).unwrap();
        while child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = child.stderr().unwrap();
        assert!(said.len() < 4 * 1024 * 1024 && !child.stderr_is_whole(), "{}", said.len());
        let status = child.try_wait().unwrap().unwrap();
        let failure = child.failure_for(status).unwrap();
        assert!(failure.to_string().contains("bytes to stderr and was ended"), "{failure}");
        let error = Cmd::new("sh").args(["-c", "yes >&2"]).output().unwrap_err();
        assert!(error.to_string().contains("bytes to stderr and was ended"), "{error}");
    }

    #[test]
    fn the_beginning_and_the_end_of_much_are_kept() {
        let script = "echo first >&2; head -c 5000000 /dev/zero >&2; echo last >&2";
        let mut child = Cmd::new("sh").args(["-c", script]).start(Stdio::null(), Stdio::null()).unwrap();
        child.wait(None, false).unwrap();
        let said = child.stderr().unwrap();
        assert!(said.starts_with(b"first\n") && said.ends_with(b"last\n") && said.len() < 4_000_000);
        assert!(String::from_utf8_lossy(&said).contains("bytes are left out here]"));
    }

    #[test]
    fn a_child_that_may_outlive_us_writes_where_nobody_reads() {
        let cmd =
            Cmd::new("sh").args(["-c", "echo out; echo err >&2; cat /dev/zero >&2; echo on"]).outlives_us();
        let error = cmd.output().unwrap_err();
        assert!(error.to_string().contains("to stderr"), "{error}");
        let out = Cmd::new("sh").args(["-c", "echo out; echo err >&2"]).outlives_us().output().unwrap();
        assert_eq!((out.text().as_str(), out.stderr.as_slice()), ("out", &b"err\n"[..]));
    }

    #[test]
    fn who_does_nothing_is_ended_and_who_works_is_not() {
        let limit = Duration::from_millis(1500);
        let begin = Instant::now();
        let error = Cmd::new("sleep").arg("60").quiet_limit(limit).output().unwrap_err();
        assert!(error.to_string().contains("did nothing for 1.5s"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(15));
        // Says something now and then; works; moves bytes.
        for script in [
            "for i in 1 2 3 4 5; do sleep 0.6; echo .; done",
            "end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done",
            "for i in 1 2 3 4 5; do sleep 0.6; cat /proc/version >/dev/null; done",
        ] {
            Cmd::new("sh").args(["-c", script]).quiet_limit(limit).checked().unwrap();
        }
    }

    #[test]
    fn nobody_keeps_us_waiting() {
        let begin = Instant::now();
        // A grandchild of another session holds the streams.
        let out = Cmd::new("sh").args(["-c", "setsid sleep 30 & echo done"]).output().unwrap();
        assert_eq!(out.text(), "done");
        // A child that stays, whatever it is told.
        let stays = Cmd::new("sh").args(["-c", "trap '' TERM HUP INT; while :; do sleep 1; done"]);
        stays.timeout(Duration::from_millis(100)).output().unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }

    #[test]
    fn sudo_that_refuses_is_a_lack_of_rights() {
        let dir = tempfile::tempdir().unwrap();
        let sudo = dir.path().join("sudo");
        let kind = |script: &str| {
            std::os::unix::fs::symlink("/bin/sh", &sudo).ok();
            let error = Cmd::new(&sudo).args(["-c", script]).checked().unwrap_err();
            crate::fault::kind_of(&error)
        };
        assert_eq!(kind("echo 'sudo: a password is required' >&2; exit 1"), Kind::Denied);
        assert_eq!(kind("echo 'PHP Fatal error' >&2; exit 1"), Kind::Failed);
        assert_eq!(kind("exit 127"), Kind::Unavailable);
    }

    #[test]
    fn an_unknown_program_names_its_cure() {
        let error = program(OsStr::new("no-such-program-here")).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), Kind::Unavailable);
    }
}
