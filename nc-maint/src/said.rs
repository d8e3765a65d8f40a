//! What people and logs may see of what PHP and occ said.
//!
//! A message of PHP's quotes what it stumbles over: of a broken config.php that is the password. A configuration may print
//! anything, an exception lists its arguments. So nothing is passed on but what is known to quote nothing: of PHP's own
//! messages their kind, file and line; occ's known sentences; the SQLSTATE of a database error; and what the program
//! before PHP (sudo, docker) says of itself. Whoever may see the rest can run the command himself.

use std::path::Path;

use common::fault::Failure;
use common::run::Output;

/// Messages of PHP, as they begin.
const DIAGNOSTICS: [&str; 9] = [
    "Parse error",
    "Fatal error",
    "Recoverable fatal error",
    "Compile error",
    "Core error",
    "Core warning",
    "Warning",
    "Notice",
    "Deprecated",
];

/// What occ says of itself, and names nothing that could be secret.
const SENTENCES: [&str; 15] = [
    "Cannot write into \"config\" directory!",
    "Console has to be executed with the user that owns the file config/config.php",
    "Config is set to be read-only via option \"config_is_read_only\".",
    "Your data directory is invalid",
    "Environment not properly prepared.",
    "Nextcloud is in maintenance mode",
    "Nextcloud or one of the apps require upgrade",
    "Nextcloud is not installed",
    "There are no commands defined in the",
    "Could not open input file",
    "Maintenance mode enabled",
    "Maintenance mode disabled",
    "Maintenance mode already enabled",
    "Maintenance mode already disabled",
    "Maintenance mode is currently",
];

/// Programs that bring PHP about, and how their messages begin.
const BEFORE_PHP: [&str; 14] = [
    "sudo: ",
    "runuser: ",
    "su: ",
    "env: ",
    "sh: ",
    "bash: ",
    "ssh: ",
    "docker: ",
    "podman: ",
    "kubectl: ",
    "Error response from daemon: ",
    "Error: No such container: ",
    "Cannot connect to the Docker daemon",
    "OCI runtime exec failed: ",
];

/// Said where nothing may be shown.
const HIDDEN: &str = "what it says is not shown, as it may quote the configuration";
/// For the one who wants to see it.
const LOOK: &str = "run the command yourself to see all of what it says";

/// What may be shown of `text`, line by line.
pub(crate) fn shown(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().filter_map(line).collect();
    lines.dedup();
    if lines.is_empty() && !text.trim().is_empty() {
        return HIDDEN.to_owned();
    }
    lines.join("\n")
}

/// `failure`, with nothing in it but what may be shown.
pub(crate) fn failure(mut failure: Failure, output: &Output) -> anyhow::Error {
    let all = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).join("\n");
    failure.stderr_tail = shown(&all);
    failure.hint.get_or_insert_with(|| LOOK.to_owned());
    failure.into()
}

/// The same where PHP alone was run, whose own messages are all that can help.
pub(crate) fn diagnostics_only(mut failure: Failure) -> anyhow::Error {
    failure.stderr_tail = shown(&failure.stderr_tail);
    failure.into()
}

/// `error`, if it is of a program that failed by itself (its time was up): the same.
pub(crate) fn clean(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Failure>() {
        Ok(failure) => diagnostics_only(failure),
        Err(other) => other,
    }
}

fn line(line: &str) -> Option<String> {
    if common::mutant::active("show-what-php-says") {
        return Some(line.to_owned());
    }
    let line = line.trim();
    let known = SENTENCES.iter().find(|s| line.starts_with(**s)).map(|s| (*s).to_owned());
    known
        .or_else(|| diagnostic(line))
        .or_else(|| sqlstate(line))
        .or_else(|| BEFORE_PHP.iter().any(|p| line.starts_with(p)).then(|| line.to_owned()))
}

/// `PHP Parse error:  syntax error, unexpected … in FILE on line N`: kind, file and line.
fn diagnostic(line: &str) -> Option<String> {
    // A log's time stamp.
    let line = line.strip_prefix('[').and_then(|l| l.split_once("] ")).map_or(line, |(_, rest)| rest);
    if let Some(rest) = line.strip_prefix("thrown in ") {
        return place(&format!(" in {rest}"));
    }
    let line = line.strip_prefix("PHP ").unwrap_or(line);
    // An exception as it shows itself: `ParseError: syntax error, unexpected … in FILE:LINE`.
    if let Some((class, rest)) = line.split_once(": ")
        && (class.ends_with("Error") || class.ends_with("Exception"))
        && class.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '\\')
    {
        return place(rest).map(|place| format!("{class} {place}"));
    }
    let kind =
        DIAGNOSTICS.iter().find(|k| line.strip_prefix(**k).is_some_and(|rest| rest.starts_with(':')))?;
    Some(place(line).map_or_else(|| (*kind).to_owned(), |place| format!("{kind} {place}")))
}

/// `in FILE on line N` at the end of a message, or `in FILE:N`. A file is an absolute path without spaces or quotes; what
/// is none could be part of what is quoted.
fn place(message: &str) -> Option<String> {
    let (_, place) = message.rsplit_once(" in ")?;
    let (file, line) = place.rsplit_once(" on line ").or_else(|| place.rsplit_once(':'))?;
    let plain = |c: char| c.is_alphanumeric() || "/._-+@".contains(c);
    let is_file = Path::new(file).is_absolute()
        && (file.ends_with(".php") || file.ends_with("/occ"))
        && file.chars().all(plain);
    (is_file && line.parse::<u32>().is_ok()).then(|| format!("in {file} on line {line}"))
}

/// The code, not the text: that is the driver's, and may quote how it connects.
fn sqlstate(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("SQLSTATE[")?;
    let code = rest.get(..5).filter(|c| c.chars().all(|c| c.is_ascii_alphanumeric()))?;
    let meaning = match code {
        "08006" | "08001" => ": the database cannot be reached, or refuses the login",
        "28000" | "28P01" => ": the database refuses the login",
        "57P03" => ": the database is starting up",
        "53300" => ": the database has too many connections",
        "42P01" => ": a table is missing",
        _ => "",
    };
    Some(format!("SQLSTATE[{code}]{meaning}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_phps_messages_kind_file_and_line_are_shown() {
        for (said, seen) in [
            (
                "PHP Parse error:  syntax error, unexpected identifier \"s3cret\", expecting \")\" in /nc/config/config.php on line 7",
                "Parse error in /nc/config/config.php on line 7",
            ),
            (
                "[26-Nov-2026 13:00:00 UTC] PHP Warning:  Undefined variable $s3cret in /nc/config/a.config.php on line 3",
                "Warning in /nc/config/a.config.php on line 3",
            ),
            (
                "PHP Fatal error:  Uncaught Exception: s3cret in /nc/x.php:3\nStack trace:\n#0 /nc/x.php(3): f('s3cret')\n  thrown in /nc/x.php on line 3",
                "Fatal error in /nc/x.php on line 3\nin /nc/x.php on line 3",
            ),
            ("Parse error: unexpected 's in /s3cret' on line 5", "Parse error"),
            ("Notice: s3cret", "Notice"),
            (
                "An unhandled exception has been thrown:\nParseError: unexpected \"s3cret\" in /nc/config/config.php:7\n#0 …",
                "ParseError in /nc/config/config.php on line 7",
            ),
            ("OCP\\HintException: s3cret in /nc/x.php:3", "OCP\\HintException in /nc/x.php on line 3"),
        ] {
            assert_eq!(shown(said), seen);
        }
    }

    #[test]
    fn what_may_quote_the_configuration_is_not_shown() {
        for said in [
            "string(6) \"s3cret\"",
            "  'dbpassword' => 's3cret',",
            "#0 /nc/lib/x.php(3): PDO->__construct('pgsql:…', 'nextcloud', 's3cret')",
            "Exception: s3cret",
            "s3cret Exception: s3cret in /nc/x.php:3",
            "Warningly s3cret",
        ] {
            assert_eq!(shown(said), HIDDEN, "{said}");
        }
        assert_eq!(shown(" \n"), "");
        let said =
            "Environment not properly prepared.\ns3cret\nSQLSTATE[08006] [7] missing \"=\" after \"s3cret\"";
        assert_eq!(
            shown(said),
            "Environment not properly prepared.\nSQLSTATE[08006]: the database cannot be reached, or refuses the login"
        );
        assert_eq!(shown("sudo: a password is required"), "sudo: a password is required");
    }
}
