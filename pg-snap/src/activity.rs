//! Who is at work in the database and around it: sessions, background jobs. Never the text of a query.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use serde::{Deserialize, Serialize};

use crate::psql::literal;
use crate::session::Session;

/// A client's session of this database.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Client {
    /// Its process on the server.
    pub(crate) pid: i32,
    role: Option<String>,
    application_name: Option<String>,
    /// Address; null over a local socket.
    address: Option<String>,
    /// `active`, `idle in transaction`, …
    state: Option<String>,
    /// Since it was opened.
    pub(crate) age_ms: Option<i64>,
    /// The server does not tell us about it.
    hidden: bool,
}

/// A process of Nextcloud's own beside the web server.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Job {
    pid: u32,
    command: String,
}

impl Client {
    /// For people.
    pub(crate) fn show(&self) -> String {
        let word =
            |text: &Option<String>| text.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| "?".into());
        let from = self.address.clone().unwrap_or_else(|| "a local socket".into());
        let age = self.age_ms.unwrap_or(0) / 1000;
        format!(
            "session {} of {} ({}) from {from}, {}, {age} s old",
            self.pid,
            word(&self.role),
            word(&self.application_name),
            word(&self.state)
        )
    }

    fn allowed(&self, readers: &[String]) -> bool {
        [&self.application_name, &self.address].into_iter().flatten().any(|name| readers.contains(name))
    }
}

impl Job {
    /// For people.
    pub(crate) fn show(&self) -> String {
        format!("process {} ({})", self.pid, self.command)
    }
}

/// The clients whose sessions began before `before` (a time of the database's clock, as [`clock`] gives it), or that are
/// older than `age_ms`; without `ours` and the `readers`. An error if the server hides any: to count those as none would be to
/// call a busy database quiet.
pub(crate) fn clients(
    session: &mut Session,
    ours: &[i32],
    readers: &[String],
    before: &Before,
) -> Result<Vec<Client>> {
    let since = match before {
        Before::Clock(time) => format!("backend_start < {}::timestamptz", literal(time)),
        Before::Age(ms) => format!("backend_start < clock_timestamp() - interval '{ms} milliseconds'"),
    };
    let ours = ours.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // The server's own processes at work in the database (autovacuum) have no role, and are hidden from ordinary ones;
    // every client has one, and whose it is is never hidden.
    let sql = format!(
        "SELECT coalesce(json_agg(json_build_object('pid', pid, 'role', usename, 'application_name', application_name, \
         'address', host(client_addr), 'state', state, 'age_ms', (extract(epoch FROM clock_timestamp() - backend_start) * 1000)::int8, \
         'hidden', backend_type IS NULL OR (backend_type = 'client backend' AND backend_start IS NULL)) ORDER BY pid), '[]') \
         FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN ({ours}) AND usesysid IS NOT NULL \
         AND (backend_type IS NULL OR (backend_type = 'client backend' AND (backend_start IS NULL OR {since})))"
    );
    let all: Vec<Client> =
        serde_json::from_str(&session.ask(&sql)?).context("psql answered something odd")?;
    if let Some(hidden) = all.iter().find(|c| c.hidden) {
        return Err(no_rights(hidden.role.as_deref().unwrap_or("?")).into());
    }
    Ok(all.into_iter().filter(|c| !c.allowed(readers)).collect())
}

/// An error unless the role sees the sessions of whom the tables belong to: Nextcloud's own role, by whatever name.
pub(crate) fn check_rights(session: &mut Session) -> Result<()> {
    let hidden = session.ask(
        "SELECT coalesce(min(r.rolname), '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_roles r ON r.oid = c.relowner WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
         AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT pg_has_role(r.oid, 'USAGE') \
         AND NOT pg_has_role('pg_read_all_stats', 'USAGE')",
    )?;
    if hidden.is_empty() { Ok(()) } else { Err(no_rights(&hidden).into()) }
}

fn no_rights(role: &str) -> Fault {
    Fault::denied(format!(
        "the database role may not see the sessions of others (such as those of {role}): whether they have ended cannot be known"
    ))
    .hint("connect as Nextcloud's own role, or let an administrator run: GRANT pg_read_all_stats TO role")
}

/// Waits, not for long, until the server has ended the session `pid`.
pub(crate) fn wait_for_end(session: &mut Session, pid: i32) {
    for _ in 0..200 {
        // A server that does not answer has other worries.
        if session.ask(&format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}")).is_ok_and(|a| a == "1") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        } else {
            return;
        }
    }
}

/// Which sessions count.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Before {
    /// Begun before this moment of the database's clock.
    Clock(String),
    /// Open for longer than this, in milliseconds.
    Age(u64),
}

/// Now, by the database's clock.
pub(crate) fn clock(session: &mut Session) -> Result<String> {
    session.ask("SELECT clock_timestamp()")
}

/// cron.php and occ, as far as this machine shows them. Those of another instance on this machine do not count.
pub(crate) fn jobs(root: Option<&Path>) -> Vec<Job> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| job(e.file_name().to_str()?.parse().ok()?, root)).collect()
}

fn job(pid: u32, root: Option<&Path>) -> Option<Job> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    // One that has ended meanwhile has no command line.
    let line = std::fs::read(dir.join("cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|b| *b == 0).filter(|w| !w.is_empty()).collect();
    let at = words.iter().position(|w| is_named(w, b"cron.php") || is_named(w, b"occ"))?;
    let program = Path::new(std::ffi::OsStr::from_bytes(words[0])).file_name()?;
    // PHP itself, whatever its version's name; not the sudo or ssh that started it, nor an editor.
    if !(at == 0 || program.as_bytes().starts_with(b"php")) {
        return None;
    }
    let script = Path::new(std::ffi::OsStr::from_bytes(words[at]));
    let script = if script.is_absolute() {
        script.to_owned()
    } else {
        std::fs::read_link(dir.join("cwd")).ok()?.join(script)
    };
    if let Some(root) = root
        && script.exists()
        && !script.starts_with(root)
        && script.canonicalize().ok().zip(root.canonicalize().ok()).is_none_or(|(s, r)| !s.starts_with(r))
    {
        return None;
    }
    // The first word after the script names the job; more could be anything.
    let shown = words[at..].iter().take(2).map(|w| String::from_utf8_lossy(w).escape_debug().to_string());
    Some(Job { pid, command: shown.collect::<Vec<_>>().join(" ") })
}

fn is_named(word: &[u8], name: &[u8]) -> bool {
    word == name || word.strip_suffix(name).is_some_and(|rest| rest.ends_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole() {
        assert!(is_named(b"/var/www/nextcloud/cron.php", b"cron.php") && is_named(b"occ", b"occ"));
        assert!(!is_named(b"mycron.php", b"cron.php") && !is_named(b"docc", b"occ"));
    }

    #[test]
    fn readers_are_known_by_name_or_address() {
        let client: Client = serde_json::from_str(
            r#"{"pid":1,"role":"oc","application_name":"notify_push","address":"10.0.0.7","state":"idle","age_ms":1,"hidden":false}"#,
        )
        .unwrap();
        assert!(client.allowed(&["notify_push".into()]) && client.allowed(&["10.0.0.7".into()]));
        assert!(!client.allowed(&["push".into()]));
    }
}
