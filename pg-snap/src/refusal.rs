//! What psql, or a server behind it, means when it fails.
//! By SQLSTATE where there is one, by words that nobody translates where there is none.

use common::fault::{Failure, Kind};

/// How psql says that it could not connect.
pub(crate) const NO_CONNECTION: i32 = 2;

/// What psql means by the way it failed.
pub(crate) fn explain(mut failure: Failure) -> Failure {
    if failure.exit_code == Some(NO_CONNECTION) && sqlstate_in(&failure.stderr_tail).is_none() {
        return no_connection(failure);
    }
    let lines = failure.stderr_tail.lines().filter(|l| !is_location(l));
    failure.stderr_tail = lines.collect::<Vec<_>>().join("\n");
    match sqlstate_in(&failure.stderr_tail) {
        Some("42501") => failure.kind = Kind::Denied,
        Some("53100") => failure.hint = Some("the server's disk is full: make room there".into()),
        Some(code) if is_temporary(code) => failure.kind = Kind::Unavailable,
        _ => {}
    }
    failure
}

/// The server takes no connections at the moment, or ends them.
pub(crate) fn is_temporary(code: &str) -> bool {
    matches!(code, "53300" | "57P01" | "57P02" | "57P03")
}

/// `LOCATION:  aclcheck_error, aclchk.c:3650`, in the server's language: of use to nobody here.
fn is_location(line: &str) -> bool {
    let source = line.rsplit_once(", ").map(|(_, s)| s).filter(|_| line.contains(":  "));
    source
        .and_then(|s| s.split_once(".c:"))
        .is_some_and(|(file, number)| !file.contains(' ') && number.bytes().all(|b| b.is_ascii_digit()))
}

/// The first SQLSTATE in what psql says when it is verbose: `FEHLER:  42501: keine Berechtigung …`.
pub(crate) fn sqlstate_in(stderr: &str) -> Option<&str> {
    stderr.lines().find_map(|line| {
        line.match_indices(":  ").find_map(|(at, between)| {
            let rest = &line[at + between.len()..];
            let (code, _) = rest.split_once(": ")?;
            let is_code =
                code.len() == 5 && code.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
            is_code.then_some(code)
        })
    })
}

/// The SQLSTATE of the statement that failed, if one did.
pub(crate) fn sqlstate(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Failure>().and_then(|f| sqlstate_in(&f.stderr_tail))
}

/// A failure to connect, as what its words mean, as far as these are known.
pub(crate) fn no_connection(mut failure: Failure) -> Failure {
    // Without the indented questions, which our hint asks, and the name of the password file.
    let noise = |l: &&str| l.starts_with('\t') || l.starts_with("password retrieved from file");
    let lines = failure.stderr_tail.lines().filter(|l| !noise(l));
    failure.stderr_tail = lines.collect::<Vec<_>>().join("\n");
    classify(&failure.stderr_tail).tell(&mut failure);
    failure
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    NoServer,
    NotNow,
    NoDatabase,
    Denied,
}

impl Meaning {
    pub(crate) fn tell(self, failure: &mut Failure) {
        let (kind, hint) = match self {
            Meaning::NoServer => (
                Kind::Unavailable,
                "is PostgreSQL running, and are host and port right? A port other than 5432 stands after the host, /run/postgresql:5433",
            ),
            Meaning::NotNow => {
                (Kind::Unavailable, "PostgreSQL takes no connections at the moment: try again later")
            }
            Meaning::NoDatabase => {
                (Kind::Config, "`psql -l` lists the databases; name one with --name or [database] name")
            }
            Meaning::Denied => (
                Kind::Denied,
                "check role and password (--user, --password-file, or what Nextcloud's config.php says) and pg_hba.conf",
            ),
        };
        (failure.kind, failure.hint) = (kind, Some(hint.into()));
    }
}

/// What the words of a failed connection mean. Without "FATAL" it is the client that speaks, and in English; with it,
/// the server was reached, and speaks the language it is set to.
pub(crate) fn classify(stderr: &str) -> Meaning {
    if !stderr.contains("FATAL") && !stderr.contains("no password supplied") {
        return Meaning::NoServer;
    }
    if stderr.contains("starting up") || stderr.contains("shutting down") || stderr.contains("too many") {
        return Meaning::NotNow;
    }
    if stderr.contains("database \"") && stderr.contains("does not exist") {
        return Meaning::NoDatabase;
    }
    Meaning::Denied
}

/// Adds what to do about a failure of a child.
pub(crate) fn hint(mut error: anyhow::Error, text: impl Into<String>) -> anyhow::Error {
    if let Some(failure) = error.downcast_mut::<Failure>() {
        failure.hint = Some(text.into());
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_connections_are_told_apart() {
        for (text, meaning) in [
            (
                "psql: error: connection to server at \"127.0.0.1\", port 1 failed: Connection refused",
                Meaning::NoServer,
            ),
            ("could not translate host name \"x\" to address", Meaning::NoServer),
            ("failed: FATAL:  password authentication failed for user \"oc\"", Meaning::Denied),
            ("failed: FATAL:  Passwort-Authentifizierung für Benutzer »oc« fehlgeschlagen", Meaning::Denied),
            ("failed: fe_sendauth: no password supplied", Meaning::Denied),
            ("failed: FATAL:  database \"x\" does not exist", Meaning::NoDatabase),
            ("failed: FATAL:  role \"x\" does not exist", Meaning::Denied),
            ("failed: FATAL:  the database system is starting up", Meaning::NotNow),
        ] {
            assert_eq!(classify(text), meaning, "{text}");
        }
    }

    #[test]
    fn an_sqlstate_is_found_in_any_language() {
        let text = "psql:<stdin>:7: FEHLER:  42501: keine Berechtigung für Tabelle x\nORT:  aclcheck_error, aclchk.c:3650";
        assert_eq!(sqlstate_in(text), Some("42501"));
        assert_eq!(sqlstate_in("psql: error: connection failed: FATAL:  nothing: here"), None);
        assert!(
            is_location("ORT:  aclcheck_error, aclchk.c:3650") && !is_location("ERROR:  42501: no, x.c:y")
        );
    }
}
