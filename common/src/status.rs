//! The one JSON object every tool prints, last, on success and on failure.
//!
//! [`run`] is the whole life of a tool after its arguments are parsed: a normal process, signals, the work,
//! the report. Only it prints to stdout. A closed stdout changes nothing about the work. Where stdout is a terminal
//! ([`Screen`] decides), a person gets a table or a sentence there instead of the object.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use base64::Engine as _;
use serde_json::{Map, Value, json};

use crate::fault::{self, Failure, Fault};
use crate::screen::{End, Screen};
use crate::{figures, show};

/// Version of the object's schema (`docs/status.schema.json`). Keys are only ever added.
pub const SCHEMA: u32 = 1;

/// Actions that write nothing that matters.
const UNDOING: [&str; 7] = ["off", "release", "status", "unmount", "detach", "unview", "abort"];

/// What a tool tells about its run; filled while it works.
#[derive(Debug)]
pub struct Report {
    tool: &'static str,
    /// Whether the world is different from before.
    pub changed: bool,
    /// The tool's own facts.
    pub data: Map<String, Value>,
    partial: bool,
    passed_code: Option<u8>,
    warnings: Vec<Value>,
    left_behind: Vec<Value>,
    screen: Option<Screen>,
    shown: bool,
}

impl Report {
    /// An empty report of `tool`.
    pub fn new(tool: &'static str) -> Report {
        Report {
            tool,
            changed: false,
            data: Map::new(),
            partial: false,
            passed_code: None,
            warnings: Vec::new(),
            left_behind: Vec::new(),
            screen: None,
            shown: false,
        }
    }

    /// Sets `data.key`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.data.insert(key.to_owned(), value.into());
    }

    /// Sets `data.key` to text that may not be UTF-8; if it is not, `data.key_b64` holds the bytes.
    pub fn set_text(&mut self, key: &str, text: &OsStr) {
        put_text(&mut self.data, key, text);
    }

    /// A person should know, though the run goes on. `kind` is kebab-case and stable.
    pub fn warn(&mut self, kind: &str, message: impl Into<String>) {
        let message = message.into();
        let warning = json!({"kind": kind, "message": message});
        // Once is enough, however often it is found.
        if !self.warnings.contains(&warning) {
            tell(format_args!("{}: warning: {message}", self.tool));
            self.warnings.push(warning);
        }
    }

    /// Takes over a warning made elsewhere (the far end), in the shape of [`Report::warn`].
    pub fn warn_value(&mut self, warning: Value) {
        tell(format_args!("{}: warning: {}", self.tool, warning["message"].as_str().unwrap_or("?")));
        self.warnings.push(warning);
    }

    /// Takes over a warning of a child that has told people itself: it is not said again.
    pub fn nest_warning(&mut self, warning: Value) {
        self.warnings.push(warning);
    }

    /// A line of the answer, for people: on stdout where they look at it, else on stderr.
    pub fn show(&mut self, line: impl std::fmt::Display) {
        self.shown = true;
        match &self.screen {
            Some(screen) => screen.line(format_args!("{line}")),
            None => tell(format_args!("{line}")),
        }
    }

    /// A list of such lines: on a screen as many as fit, from that `end`, and how many more `what` there are, unless `all`
    /// are wanted.
    pub fn show_list(&mut self, lines: &[String], end: End, what: &str, all: bool) {
        let screen = self.screen.clone().filter(|_| !all);
        let (part, more) = screen.as_ref().map_or((lines, None), |screen| screen.part(lines, end, what));
        let (before, after) = if end == End::Last { (more, None) } else { (None, more) };
        for line in before.iter().chain(part).chain(&after) {
            self.show(line);
        }
    }

    /// Something is still mounted, mapped, held or in maintenance: exit code 4, whatever else happens.
    pub fn left_behind(&mut self, what: impl Into<String>, clear: impl Into<String>) {
        let (what, clear) = (what.into(), clear.into());
        tell(format_args!("{}: left behind: {what}; to clear it: {clear}", self.tool));
        self.left_behind.push(json!({"what": what, "clear": clear}));
    }

    /// Finished, but some items were skipped: exit code 3.
    pub fn set_partial(&mut self) {
        self.partial = true;
    }

    /// Whether something was left out.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Ends with a caller's command's exit code instead of our own (only our code 4 outranks it).
    pub fn pass_exit_code(&mut self, code: u8) {
        self.passed_code = Some(code);
    }

    /// The warnings so far.
    pub fn warnings(&self) -> &[Value] {
        &self.warnings
    }

    /// What is left behind so far.
    pub fn leftovers(&self) -> &[Value] {
        &self.left_behind
    }
}

/// Puts text that may not be UTF-8 under `key`, with a `_b64` twin when it is not.
pub fn put_text(map: &mut Map<String, Value>, key: &str, text: &OsStr) {
    map.insert(key.to_owned(), json!(text.to_string_lossy()));
    if let Some(bytes) = b64(text) {
        map.insert(format!("{key}_b64"), json!(bytes));
    }
}

/// The bytes of text that is not UTF-8, in base64.
#[must_use]
pub fn b64(text: &OsStr) -> Option<String> {
    let odd = text.to_str().is_none();
    odd.then(|| base64::engine::general_purpose::STANDARD.encode(text.as_bytes()))
}

/// The bytes of the text that [`put_text`] put under `key`.
#[must_use]
pub fn text_bytes(of: &Value, key: &str) -> Vec<u8> {
    let twin = of[format!("{key}_b64")].as_str();
    let twin = twin.and_then(|twin| base64::engine::general_purpose::STANDARD.decode(twin).ok());
    twin.unwrap_or_else(|| of[key].as_str().unwrap_or("?").as_bytes().to_vec())
}

/// Puts the twin of a list of paths that are shown under `key`: their bytes, `null` where the path is UTF-8; nothing if
/// all are.
pub fn put_list_b64<'a>(map: &mut Map<String, Value>, key: &str, paths: impl Iterator<Item = &'a [u8]>) {
    let twins: Vec<Option<String>> = paths.map(|path| b64(OsStr::from_bytes(path))).collect();
    if twins.iter().any(Option::is_some) {
        map.insert(format!("{key}_b64"), json!(twins));
    }
}

/// Says a line to people: `tool: message`, on stderr.
#[macro_export]
macro_rules! say {
    ($tool:expr, $($arg:tt)*) => {
        $crate::status::tell(format_args!("{}: {}", $tool, format_args!($($arg)*)))
    };
}

/// A line on stderr, with everything foreign in it escaped ([`crate::show`]).
pub fn tell(line: std::fmt::Arguments) {
    show::line(line);
}

/// Runs `work` as `tool action [profile]` and reports; with `json` by the object wherever stdout leads. The returned code
/// goes back from `main`.
pub fn run(
    tool: &'static str,
    version: &str,
    action: &str,
    profile: Option<&str>,
    json: bool,
    work: impl FnOnce(&mut Report) -> Result<()>,
) -> ExitCode {
    let normal = match crate::process::normal() {
        // What only tells or takes down must work in the worst place.
        Err(_) if UNDOING.contains(&action) => Ok(()),
        normal => normal,
    };
    let started_at = now();
    let clock = Instant::now();
    let mut report = Report::new(tool);
    report.screen = Screen::find(json);
    let result = normal.and_then(|()| crate::signals::install()).and_then(|()| {
        std::panic::catch_unwind(AssertUnwindSafe(|| work(&mut report))).unwrap_or_else(|panic| {
            let what = panic.downcast_ref::<String>().map(String::as_str);
            let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
            Err(Fault::failed(format!("internal error: {what}"))
                .hint("this is a bug in the tool: please report it with this output")
                .into())
        })
    });
    let (status, code) = outcome(&report, result.as_ref().err());
    let error = result.err().map(|e| error_value(tool, &e));
    if let Some(screen) = report.screen.take() {
        sum_up(&screen, &report, action, profile, (status, code), clock.elapsed());
        return ExitCode::from(code);
    }
    let object = json!({
        "schema": SCHEMA, "tool": tool, "version": version, "action": action, "profile": profile,
        "status": status, "exit_code": code, "changed": report.changed,
        "started_at": started_at,
        "duration_ms": u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX),
        "data": report.data, "warnings": report.warnings, "error": error,
        "left_behind": report.left_behind,
    });
    let mut out = std::io::stdout().lock();
    let text = show::escaped_json(object.to_string());
    if let Err(e) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        tell(format_args!("{tool}: the status object could not be written: {e}"));
    }
    ExitCode::from(code)
}

/// How it ended, for people who are not told by what was shown: the plain facts, and a sentence.
fn sum_up(
    screen: &Screen,
    report: &Report,
    action: &str,
    profile: Option<&str>,
    (status, code): (&str, u8),
    took: std::time::Duration,
) {
    if report.shown && code == 0 && !report.changed {
        return;
    }
    if !report.shown && matches!(code, 0 | 3) {
        for line in screen.facts(&report.data) {
            screen.line(format_args!("{line}"));
        }
    }
    let of = profile.map_or(String::new(), |name| format!(" {name}"));
    let how = match status {
        "ok" if code == 0 => status.to_owned(),
        "partial" => format!("done, with something left out (exit code {code})"),
        "dirty" => format!("something is left behind (exit code {code})"),
        "failed" => format!("failed (exit code {code})"),
        why => format!("failed: {why} (exit code {code})"),
    };
    screen.line(format_args!("{} {action}{of}: {how}, in {}", report.tool, figures::time(took)));
}

/// Now, RFC 3339 UTC in whole seconds.
pub fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// A moment in seconds since 1970, as RFC 3339 UTC.
pub fn utc(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    moment.map_or_else(|| format!("second {seconds}"), |m| m.to_string())
}

fn outcome(report: &Report, error: Option<&anyhow::Error>) -> (&'static str, u8) {
    if !report.left_behind.is_empty() {
        return ("dirty", 4);
    }
    match error {
        Some(e) => {
            let kind = fault::kind_of(e);
            (kind.word(), report.passed_code.unwrap_or(kind.exit_code()))
        }
        None if report.partial => ("partial", report.passed_code.unwrap_or(3)),
        None => match report.passed_code {
            None | Some(0) => ("ok", 0),
            Some(code) => ("failed", code),
        },
    }
}

/// `error` of the status object; also says it on stderr.
fn error_value(tool: &str, error: &anyhow::Error) -> Value {
    let described = describe(error);
    for line in lines(error, &described) {
        tell(format_args!("{tool}: {line}"));
    }
    described
}

/// What people are told of it: in short, where another process has just told them.
fn lines(error: &anyhow::Error, described: &Value) -> Vec<String> {
    let message = error.to_string();
    if error.downcast_ref::<Fault>().is_some_and(|f| f.said) {
        return vec![format!("{} (see above)", message.split(": ").next().unwrap_or(&message))];
    }
    // The causes are told too, also those of an error that another process described.
    let causes = described["causes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let line = causes.fold(message, |line, cause| line + ": " + cause);
    let hint = described["hint"].as_str().map(|hint| format!("hint: {hint}"));
    std::iter::once(line).chain(hint).collect()
}

/// An error as the `error` object of the contract, for the report or for another process.
pub fn describe(error: &anyhow::Error) -> Value {
    let fault = error.downcast_ref::<Fault>();
    let failure = error.downcast_ref::<Failure>();
    let relayed = fault.and_then(|f| f.relayed.as_ref());
    let mut causes: Vec<Value> = error.chain().skip(1).map(|e| json!(e.to_string())).collect();
    causes.extend(relayed.and_then(|r| r["causes"].as_array()).into_iter().flatten().cloned());
    causes.dedup();
    let command = failure.map(|f| {
        json!({
            "program": f.program, "args": f.args, "exit_code": f.exit_code, "signal": f.signal,
            "stderr_tail": f.stderr_tail,
        })
    });
    json!({
        "kind": fault::kind_of(error).word(),
        "message": error.to_string(),
        "causes": causes,
        "hint": fault.and_then(|f| f.hint.clone()).or_else(|| failure.and_then(|f| f.hint.clone())),
        "command": command.or_else(|| relayed.map(|r| r["command"].clone())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_behind_outranks_everything() {
        let mut report = Report::new("test");
        report.pass_exit_code(9);
        report.left_behind("a mount", "umount it");
        let error = Fault::busy("held").into();
        assert_eq!(outcome(&report, Some(&error)), ("dirty", 4));
    }

    #[test]
    fn text_that_is_not_utf8_has_a_twin() {
        let mut report = Report::new("test");
        report.set_text("path", OsStr::from_bytes(b"/a\xff"));
        assert_eq!(report.data["path_b64"], "L2H/");
        report.set_text("other", OsStr::from_bytes(b"/a"));
        assert!(!report.data.contains_key("other_b64"));
        let data = Value::Object(report.data);
        assert_eq!(
            (text_bytes(&data, "path"), text_bytes(&data, "other")),
            (b"/a\xff".to_vec(), b"/a".to_vec())
        );
    }

    #[test]
    fn what_a_child_has_said_is_not_said_again() {
        let described = serde_json::json!({"message": "not as left: a, b", "hint": "look", "causes": ["c"]});
        let lines = |fault: Fault| {
            let error = fault.into();
            lines(&error, &describe(&error))
        };
        assert_eq!(lines(Fault::relay(78, described.clone())), ["not as left: a, b: c", "hint: look"]);
        assert_eq!(lines(Fault::relay(78, described).already_said()), ["not as left (see above)"]);
    }

    #[test]
    fn the_kind_is_found_below_context() {
        let error = anyhow::Error::from(Fault::config("bad")).context("while trying");
        assert_eq!(fault::kind_of(&error).exit_code(), 78);
    }
}
