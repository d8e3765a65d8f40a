//! Who is at work in the database and around it: sessions, background jobs. Never the text of a query.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// When it was opened, by the database's clock; null if the server does not tell us.
    since: Option<String>,
    role: Option<String>,
    application_name: Option<String>,
    /// Address; null over a local socket.
    address: Option<String>,
    /// `active`, `idle in transaction`, …
    state: Option<String>,
    /// Since it was opened.
    pub(crate) age_ms: Option<i64>,
    /// The server tells us no more than that it is there, and whose it is.
    pub(crate) hidden: bool,
}

/// One session and no other, also when its number is used again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Id {
    pid: i32,
    since: Option<String>,
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
        if self.hidden {
            return format!("session {} of {} (more is not shown to our role)", self.pid, word(&self.role));
        }
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
        // Of a hidden one only the role is known, which is never our own.
        let role = if self.hidden { &self.role } else { &None };
        [&self.application_name, &self.address, role].into_iter().flatten().any(|name| readers.contains(name))
    }

    /// Which one it is.
    pub(crate) fn id(&self) -> Id {
        Id { pid: self.pid, since: self.since.clone() }
    }
}

impl Job {
    /// For people.
    pub(crate) fn show(&self) -> String {
        format!("process {} ({})", self.pid, self.command)
    }
}

/// Those of the clients that are meant, without `ours` and the `readers`. One that the server hides from us is always among
/// them, whatever its age: to leave it out would be to call a busy database quiet.
pub(crate) fn clients(
    session: &mut Session,
    ours: &[i32],
    readers: &[String],
    which: &Which,
) -> Result<Vec<Client>> {
    let which = match which {
        Which::All => "true".to_owned(),
        Which::Older(ms) => {
            format!(
                "(backend_start IS NULL OR backend_start < clock_timestamp() - interval '{ms} milliseconds')"
            )
        }
        Which::These(ids) if ids.is_empty() => return Ok(Vec::new()),
        Which::These(ids) => {
            let one = |id: &Id| format!("({}, {})", id.pid, literal(id.since.as_deref().unwrap_or_default()));
            let ids = ids.iter().map(one).collect::<Vec<_>>().join(", ");
            format!("(pid, coalesce(backend_start::text, '')) IN (VALUES {ids})")
        }
    };
    let ours = ours.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // The server's own processes at work in the database (autovacuum) have no role, and are hidden from ordinary ones;
    // every client has one, and whose it is is never hidden.
    let sql = format!(
        "SELECT coalesce(json_agg(json_build_object('pid', pid, 'since', backend_start::text, 'role', usename, \
         'application_name', application_name, 'address', host(client_addr), 'state', state, \
         'age_ms', (extract(epoch FROM clock_timestamp() - backend_start) * 1000)::int8, \
         'hidden', backend_type IS NULL OR backend_start IS NULL) ORDER BY pid), '[]') \
         FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN ({ours}) AND usesysid IS NOT NULL \
         AND (backend_type IS NULL OR backend_type = 'client backend') AND {which}"
    );
    let all: Vec<Client> =
        serde_json::from_str(&session.query(&sql)?).context("psql answered something odd")?;
    Ok(all.into_iter().filter(|c| !c.allowed(readers)).collect())
}

/// A role that owns tables and whose sessions ours does not see; empty if there is none.
pub(crate) const UNSEEN: &str = "SELECT coalesce(min(r.rolname), '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_roles r ON r.oid = c.relowner WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT pg_has_role(r.oid, 'USAGE') \
    AND NOT pg_has_role('pg_read_all_stats', 'USAGE')";

/// An error unless the role sees the sessions of whom the tables belong to: Nextcloud's own role, by whatever name.
pub(crate) fn check_rights(session: &mut Session) -> Result<()> {
    let hidden = session.query(UNSEEN)?;
    if hidden.is_empty() { Ok(()) } else { Err(no_rights(&hidden).into()) }
}

/// The error for `clients` that were waited for in vain, if nothing is known of any of them.
pub(crate) fn all_hidden(clients: &[Client]) -> Option<Fault> {
    let all = clients.iter().all(|c| c.hidden);
    clients.first().filter(|_| all).map(|c| {
        let mut fault = no_rights(c.role.as_deref().unwrap_or("?"));
        fault.hint =
            fault.hint.map(|h| format!("{h}; or, if that role only reads, name it in [database] readers"));
        fault
    })
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
        let sql = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}");
        // A server that does not answer has other worries.
        if session.query_within(&sql, Duration::from_secs(1)).is_ok_and(|a| a == "1") {
            std::thread::sleep(Duration::from_millis(5));
        } else {
            return;
        }
    }
}

/// Which sessions count.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Which {
    /// All that are there.
    All,
    /// Open for longer than this, in milliseconds.
    Older(u64),
    /// Those of these that are still there.
    These(Vec<Id>),
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
            r#"{"pid":1,"since":"x","role":"oc","application_name":"notify_push","address":"10.0.0.7","state":"idle","age_ms":1,"hidden":false}"#,
        )
        .unwrap();
        assert!(client.allowed(&["notify_push".into()]) && client.allowed(&["10.0.0.7".into()]));
        assert!(!client.allowed(&["push".into()]));
        assert!(!client.allowed(&["oc".into()]), "Nextcloud's own role is no reader");
        let hidden = Client { hidden: true, ..client };
        assert!(hidden.allowed(&["oc".into()]), "of others no more than the role is known");
    }
}
