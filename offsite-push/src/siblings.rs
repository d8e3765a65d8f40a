//! The tools this one is composed of: run as children, their status objects collected as steps.
//!
//! A sibling talks to people itself: its stderr is ours. When a signal asks us to stop, it is asked to stop, too, and
//! has time to undo and to report. A killed push leaves its lock free at once, even if a child is stuck in the kernel:
//! the next push must be able to clear what that child hangs on, and it can write nothing into what was unmounted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::program::Program;
use common::progress::{Quiet, Sources};
use common::run::Child;
use common::status::Report;
use common::{mutant, pidfd, say, signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lease_keeper::Keeper;
use crate::link::Watch;
use crate::settings::Settings;
use crate::stop::Stop;

/// How long a sibling that was asked to stop may take to undo.
const UNDO: Duration = Duration::from_secs(60);

/// How long a tool may take to tell its version.
const ASKED: Duration = Duration::from_secs(60);

/// How long it may take if S3 is silent: it cannot undo much then, the take-down can.
const UNDO_SILENT: Duration = Duration::from_secs(10);

/// The tools, and what they said so far.
#[derive(Debug)]
pub(crate) struct Siblings<'s> {
    /// Whose run this is.
    pub(crate) settings: &'s Settings,
    /// Of each step: its name, exit code, duration and the sibling's object.
    pub(crate) steps: Vec<Value>,
    /// What is being done, for `failed_step`.
    pub(crate) doing: &'static str,
    /// Notices when S3 falls silent during a step.
    pub(crate) watch: Option<Watch>,
    /// Notices when another machine takes the container over.
    pub(crate) lease: Option<Keeper>,
    tools: Vec<(&'static str, Program)>,
}

/// One call of a sibling.
#[derive(Debug)]
pub(crate) struct Call<'c> {
    /// Its name among the steps.
    pub(crate) step: &'static str,
    /// The program.
    pub(crate) tool: &'static str,
    /// Its action.
    pub(crate) action: &'static str,
    /// Options besides the profile.
    pub(crate) args: &'c [OsString],
    /// The longest it may take, or rest.
    pub(crate) limit: Option<Limit>,
    /// Runs to its end although a signal asked us to stop.
    pub(crate) cleanup: bool,
}

/// When a sibling is ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// After so long, whatever it does.
    Time(Duration),
    /// When nothing of any kind has moved for so long.
    Rest(Duration),
}

/// How a sibling ended.
#[derive(Debug)]
pub(crate) struct Answer {
    name: String,
    /// Its exit code, 128+N if signal N ended it.
    pub(crate) code: i32,
    /// Its object; `None` if it printed none that is right.
    object: Option<Value>,
}

impl Answer {
    /// It did what it was asked to.
    pub(crate) fn done(&self) -> bool {
        self.object.is_some() && matches!(self.code, 0 | 3)
    }
    /// It says that something is left behind.
    pub(crate) fn dirty(&self) -> bool {
        self.object.is_some() && self.code == 4
    }
    /// It did nothing, and says so itself: there is nothing to take down.
    pub(crate) fn undone(&self) -> bool {
        self.object.is_some() && !self.done() && !self.dirty()
    }
    /// `data.KEY` of its object.
    pub(crate) fn data(&self, key: &str) -> &Value {
        self.object.as_ref().map_or(&Value::Null, |o| &o["data"][key])
    }
    /// All of `data`.
    pub(crate) fn all_data(&self) -> Value {
        self.object.as_ref().map_or(Value::Null, |o| o["data"].clone())
    }
    /// Whether it changed something.
    pub(crate) fn changed(&self) -> bool {
        self.object.as_ref().is_some_and(|o| o["changed"] == true)
    }
    /// Whether it warned of `kind`.
    pub(crate) fn warned(&self, kind: &str) -> bool {
        let warnings = self.object.as_ref().and_then(|o| o["warnings"].as_array());
        warnings.into_iter().flatten().any(|w| w["kind"] == kind)
    }
    /// Itself, if it did what it was asked to, else why not.
    pub(crate) fn checked(self) -> Result<Answer> {
        if self.done() { Ok(self) } else { Err(self.fault()) }
    }
    /// Why it did not do it.
    pub(crate) fn fault(&self) -> anyhow::Error {
        let said = self.object.as_ref().map(|o| &o["error"]).filter(|e| e["message"].is_string());
        if let Some(error) = said {
            return Fault::relay(self.code, error.clone()).already_said().into();
        }
        let how = match self.code {
            code if code > 128 => format!("was ended by signal {}", code - 128),
            code => format!("ended with exit code {code}"),
        };
        if self.object.is_some() {
            return Fault::failed(format!("{} {how}", self.name)).into();
        }
        Fault::failed(format!("{} {how}, without a status object", self.name))
            .hint("are all tools of the same version?")
            .into()
    }
}

impl<'s> Siblings<'s> {
    /// The tools beside this program, opened: from now on these, whatever an upgrade puts in their place. All that are
    /// needed must be there, and of this version.
    pub(crate) fn find(settings: &'s Settings) -> Result<Siblings<'s>> {
        let mut needed = vec!["luks-mount", "link-sync"];
        if settings.s3.is_some() {
            needed.insert(0, "sshfs-mount");
        }
        let mut tools = Vec::new();
        for tool in needed {
            let program = Program::beside(tool)?;
            same_version(tool, &program)?;
            tools.push((tool, program));
        }
        Ok(Siblings { settings, steps: Vec::new(), doing: "store", watch: None, lease: None, tools })
    }

    /// Has the lease of a container that is open for writing renewed.
    pub(crate) fn keep_lease(&mut self) {
        let luks_mount = self.tools.iter().find(|t| t.0 == "luks-mount");
        self.lease = luks_mount.map(|(_, program)| Keeper::start(program, self.settings));
    }

    /// Runs a sibling to its end and notes the step. An error: it was not started, or it did not end by itself.
    pub(crate) fn run(&mut self, call: &Call<'_>) -> Result<Answer> {
        if !call.cleanup {
            signals::check()?;
        }
        self.doing = call.step;
        let begun = Instant::now();
        let fd = memfd_create(c"status", MFdFlags::MFD_CLOEXEC).context("cannot make a memory file")?;
        let stdout = File::from(fd);
        let program = self.tools.iter().find(|(tool, _)| *tool == call.tool);
        let (_, program) = program.with_context(|| format!("{} was not asked for", call.tool))?;
        let mut cmd = program.cmd().arg(call.action).args(&self.settings.words);
        cmd = cmd.args(call.args);
        if let Some(term) = std::env::var_os("TERM") {
            // Its progress bar looks at it.
            cmd = cmd.env("TERM", term);
        }
        if call.cleanup {
            cmd = cmd.uninterruptible();
        }
        // What `status` would say is told by us, if it matters.
        let stderr = if call.action == "status" { Stdio::null() } else { Stdio::inherit() };
        let mut child = cmd.start_streams(Stdio::null(), stdout.try_clone()?.into(), stderr)?;
        let (status, stop) = self.wait(&mut child, call)?;
        let code = exit_code(status);
        let object = read_object(stdout, call.tool, code);
        self.steps.push(json!({
            "step": call.step, "exit_code": code,
            "duration_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), "output": object,
        }));
        let answer = Answer { name: format!("{} {}", call.tool, call.action), code, object };
        match stop {
            // It was ready in the same moment: the next step will not begin.
            Some(stop) if !answer.done() => Err(self.stopped(stop, &answer.name)),
            _ => Ok(answer),
        }
    }

    /// Waits for the child, and ends it when there is a reason: that one.
    pub(crate) fn wait(&self, child: &mut Child, call: &Call) -> Result<(ExitStatus, Option<Stop>)> {
        let pidfd = pidfd::open(child.id())?;
        let begun = Instant::now();
        let wire = Some(self.settings.runtime.join("s3.wire"));
        let mut quiet = Quiet::begin(Sources { wire, device: None, tree: Some(child.id()) });
        let step = |pid| self.watch.iter().for_each(|watch| watch.step(pid));
        step(child.id());
        let mut stop: Option<(Stop, Instant)> = None;
        loop {
            if let Some(status) = child.try_wait()? {
                step(0);
                return Ok((status, stop.map(|s| s.0)));
            }
            match &stop {
                None => {
                    if let Some(why) = self.reason_to_stop(call, begun, &mut quiet) {
                        child.signal(Signal::SIGTERM);
                        let grace = if matches!(why, Stop::Signal(_)) { UNDO } else { UNDO_SILENT };
                        stop = Some((why, Instant::now() + grace));
                    }
                }
                Some((_, deadline)) if Instant::now() >= *deadline => child.end(),
                Some(_) => {}
            }
            let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if !call.cleanup
                && stop.is_none()
                && let Some(fd) = signals::fd()
            {
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::from(500u16)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e).context("cannot wait for a child"),
            }
        }
    }

    fn reason_to_stop(&self, call: &Call, begun: Instant, quiet: &mut Quiet) -> Option<Stop> {
        let over = |limit: &Limit| match limit {
            Limit::Rest(limit) if !mutant::active("a-slow-detach-is-ended") => quiet.time() >= *limit,
            Limit::Time(limit) | Limit::Rest(limit) => begun.elapsed() >= *limit,
        };
        if let Some(limit) = call.limit.filter(over) {
            return Some(Stop::Limit(limit));
        }
        if call.cleanup {
            return None;
        }
        if let Some(signal) = signals::caught() {
            return Some(Stop::Signal(signal));
        }
        if self.lease.as_ref().is_some_and(Keeper::is_lost) {
            return Some(Stop::Lost);
        }
        self.watch.as_ref().and_then(Watch::silence).map(Stop::Silent)
    }

    /// Somebody uses what is shown of the container, so nothing of it can be taken down: noted as a step, like a sibling's that says so.
    pub(crate) fn held(&mut self, who: &str) -> Answer {
        self.doing = HIDE;
        say!(crate::TOOL, "what is shown of the container cannot be taken down: {who}");
        let clear = format!("end it, then {}", self.settings.command(crate::TOOL, "unview"));
        let message = format!("what is shown of the container cannot be taken down: {who}");
        let object = json!({"tool": crate::TOOL, "action": HIDE, "exit_code": 4, "changed": false, "data": {}, "warnings": [],
            "error": {"kind": "failed", "message": message, "causes": [], "hint": clear, "command": null},
            "left_behind": [{"what": who, "clear": clear}]});
        self.steps.push(json!({"step": HIDE, "exit_code": 4, "duration_ms": 0, "output": object}));
        Answer { name: HIDE.into(), code: 4, object: Some(object) }
    }

    /// Puts the steps into the report, with their warnings, and what they left behind unless a later step of the same
    /// part cleared it. `stays`: what is up now is meant to be.
    pub(crate) fn finish(self, stays: bool, report: &mut Report) {
        let looks = |s: &Value| s["step"].as_str().is_some_and(|n| n.starts_with("status-"));
        for step in self.steps.iter().filter(|s| !looks(s)) {
            for warning in step["output"]["warnings"].as_array().into_iter().flatten() {
                if !report.warnings().contains(warning) {
                    report.nest_warning(warning.clone());
                }
            }
        }
        for part in &PARTS {
            let Some(last) = self.steps.iter().rev().find(|s| part.steps.iter().any(|n| s["step"] == *n))
            else {
                continue;
            };
            let left = last["output"]["left_behind"].as_array().cloned().unwrap_or_default();
            for item in &left {
                let text = |key: &str| item[key].as_str().unwrap_or("?").to_owned();
                report.left_behind(text("what"), text("clear"));
            }
            let up = part.up.is_some_and(|up| last["step"] == up);
            let done = !last["output"].is_null() && matches!(last["exit_code"].as_i64(), Some(0 | 3));
            // Up and not taken down, or not taken down for sure.
            let doubtful = if up { done && !stays } else { !done && part.up.is_some() };
            if left.is_empty() && doubtful {
                let place = match part.tool {
                    "luks-mount" => Some(&self.settings.container),
                    _ => self.settings.s3.as_ref(),
                };
                let place = place.map_or(String::new(), |p| p.display().to_string());
                let (what, clear) = (part.what, self.settings.command(part.tool, part.down));
                report.left_behind(format!("{what} at {place}"), clear);
            }
        }
        report.set("steps", self.steps);
    }
}

/// The step that takes down what is shown of the container.
const HIDE: &str = "hide";

/// What can be left behind, by whom.
struct Part {
    tool: &'static str,
    what: &'static str,
    /// The step that puts it up.
    up: Option<&'static str>,
    /// The steps that tell how it is now, the last one counts.
    steps: &'static [&'static str],
    down: &'static str,
}

const PARTS: [Part; 3] = [
    Part {
        tool: "luks-mount",
        what: "the container may still be attached",
        up: Some("attach"),
        steps: &["attach", HIDE, "detach", "clear-container"],
        down: "detach",
    },
    Part {
        tool: "sshfs-mount",
        what: "S3 may still be mounted",
        up: Some("mount"),
        steps: &["mount", "unmount", "clear-s3"],
        down: "unmount",
    },
    Part { tool: "link-sync", what: "", up: None, steps: &["copy"], down: "" },
];

/// In the moment of an upgrade, one of them may be of before and the other of after it.
fn same_version(tool: &str, program: &Program) -> Result<()> {
    let output = program.cmd().arg("--version").timeout(ASKED).uninterruptible().checked()?;
    let (said, ours) = (output.text(), format!("{tool} {}", env!("CARGO_PKG_VERSION")));
    if said == ours || mutant::active("tools-of-any-version") {
        return Ok(());
    }
    let path = program.path().display();
    Err(Fault::unavailable(format!(
        "{path} says it is '{}', where {ours} belongs",
        common::show::escaped(&said)
    ))
    .hint("if an upgrade is under way, try again when it has ended; else install all tools of one version")
    .into())
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The one object a tool prints, if this is one: its own, with the exit code it really ended with.
fn read_object(mut stdout: File, tool: &str, code: i32) -> Option<Value> {
    let mut text = Vec::new();
    stdout.rewind().and_then(|()| stdout.read_to_end(&mut text)).ok()?;
    let object: Value = serde_json::from_slice(&text).ok()?;
    let right = object["tool"] == tool && object["exit_code"] == code && object["data"].is_object();
    right.then_some(object)
}

/// `--NAME VALUE`.
pub(crate) fn option(name: &str, value: impl AsRef<OsStr>) -> [OsString; 2] {
    [name.into(), value.as_ref().to_owned()]
}
