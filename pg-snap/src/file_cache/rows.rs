//! The rows of `oc_filecache`, streamed from psql in the order of their paths in the tree.
//!
//! The server joins each row with the folder of its storage and sorts (on its disk, if there are many); here one row is held
//! at a time.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::AsFd as _;
use std::process::ChildStdout;

use anyhow::{Context as _, Result};
use common::signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;

use crate::file_cache::sizes::Promised;
use crate::file_cache::storages::{Place, Row as Storage};
use crate::psql::{Psql, Running, identifier, literal};

/// One row, with its path in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Which of the places it belongs to.
    pub(crate) place: usize,
    /// Relative to the data directory.
    pub(crate) path: Vec<u8>,
    pub(crate) is_folder: bool,
    pub(crate) promised: Promised,
}

/// What the database holds, before the rows are read.
#[derive(Debug, Deserialize)]
pub(crate) struct Overview {
    /// Whether there is an `oc_filecache` and what belongs to it.
    pub(crate) storages: Vec<Storage>,
    /// `home::USER` and its md5, where that is longer than 64 bytes.
    pub(crate) long_homes: HashMap<String, String>,
    /// Users whose home is somewhere else.
    pub(crate) homes: HashMap<String, String>,
    /// `appdata_…` folders: numeric id of the storage, and name.
    pub(crate) appdata: Vec<(i64, String)>,
    /// The newest time a file has.
    pub(crate) newest_mtime: Option<i64>,
    folder_type: Option<i64>,
    has_unencrypted_size: bool,
}

/// Nextcloud's tables: the schema they lie in, and what their names begin with.
#[derive(Debug)]
pub(crate) struct Tables {
    schema: String,
    prefix: String,
}

impl Tables {
    /// Where they are, if they have this prefix here.
    pub(crate) fn find(psql: &Psql, database: &str, prefix: &str) -> Result<Option<Tables>> {
        let names = ["filecache", "storages", "mimetypes", "users", "mounts", "preferences"];
        let list = names.map(|n| literal(&format!("{prefix}{n}"))).join(", ");
        let schema: Option<String> = psql.query(
            database,
            &format!(
                "SELECT coalesce((SELECT to_json(n.nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE c.relname IN ({list}) AND c.relkind IN ('r', 'p', 'v', 'm') GROUP BY n.nspname
                   HAVING count(*) = {} ORDER BY n.nspname <> 'public', n.nspname LIMIT 1), 'null');",
                names.len()
            ),
        )?;
        Ok(schema.map(|schema| Tables { schema, prefix: prefix.to_owned() }))
    }

    /// The one that Nextcloud calls `name`, for SQL.
    fn named(&self, name: &str) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&format!("{}{name}", self.prefix)))
    }
}

/// Asks for the overview.
pub(crate) fn overview(psql: &Psql, database: &str, tables: &Tables) -> Result<Overview> {
    let table = |name: &str| tables.named(name);
    let prefix = &tables.prefix;
    let (cache, storages, types) = (table("filecache"), table("storages"), table("mimetypes"));
    let (users, mounts, preferences) = (table("users"), table("mounts"), table("preferences"));
    let sql = format!(
        "SELECT json_build_object(
          'storages', (SELECT coalesce(json_agg(json_build_object('numeric_id', s.numeric_id, 'id', coalesce(s.id, ''), 'rows', coalesce(c.n, 0))
              ORDER BY s.numeric_id), '[]') FROM
              (SELECT numeric_id, id FROM {storages} UNION ALL
               SELECT DISTINCT storage, 'no entry in {prefix}storages' FROM {cache} WHERE storage NOT IN (SELECT numeric_id FROM {storages})) s
              LEFT JOIN (SELECT storage, count(*) AS n FROM {cache} GROUP BY storage) c ON c.storage = s.numeric_id),
          'long_homes', (SELECT coalesce(json_object_agg(md5(h), h), '{{}}') FROM (SELECT DISTINCT 'home::' || uid AS h FROM
              (SELECT uid FROM {users} UNION SELECT user_id FROM {mounts} UNION SELECT userid FROM {preferences}) u) l WHERE octet_length(h) > 64),
          'homes', (SELECT coalesce(json_object_agg(userid, configvalue), '{{}}') FROM {preferences}
              WHERE appid = 'user_ldap' AND configkey = 'homePath' AND configvalue <> ''),
          'appdata', (SELECT coalesce(json_agg(json_build_array(storage, path) ORDER BY path), '[]') FROM {cache}
              WHERE path LIKE 'appdata\\_%' AND path NOT LIKE '%/%'),
          'newest_mtime', (SELECT max(storage_mtime) FROM {cache}),
          'folder_type', (SELECT min(id) FROM {types} WHERE mimetype = 'httpd/unix-directory'),
          'has_unencrypted_size', EXISTS (SELECT FROM pg_attribute WHERE attrelid = {regclass}::regclass AND attname = 'unencrypted_size'));",
        regclass = literal(&cache)
    );
    psql.query(database, &sql).context("cannot read Nextcloud's storages from the dump")
}

/// md5 of each of `texts`, by the server.
pub(crate) fn hashes(psql: &Psql, database: &str, texts: &[String]) -> Result<HashMap<String, String>> {
    if texts.is_empty() {
        return Ok(HashMap::new());
    }
    let values = texts.iter().map(|t| format!("({})", literal(t))).collect::<Vec<_>>().join(", ");
    psql.query(database, &format!("SELECT json_object_agg(md5(t), t) FROM (VALUES {values}) v (t);"))
}

/// Rows being read.
#[derive(Debug)]
pub(crate) struct Rows {
    lines: BufReader<Patient>,
    running: Running,
    line: Vec<u8>,
}

impl Rows {
    /// Begins to read the rows of `places`.
    pub(crate) fn begin(
        psql: &Psql,
        database: &str,
        tables: &Tables,
        overview: &Overview,
        places: &[Place],
    ) -> Result<Rows> {
        let mut values = String::new();
        for (n, place) in places.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            let folder = literal(&String::from_utf8_lossy(&place.prefix));
            write!(values, "{comma}({n}, {}::bigint, {folder})", place.numeric_id)?;
        }
        if places.is_empty() {
            values = "(0, -1::bigint, '')".into();
        }
        let cache = tables.named("filecache");
        let unencrypted = if overview.has_unencrypted_size { "f.unencrypted_size" } else { "0" };
        let folder_type = overview.folder_type.unwrap_or(-1);
        let more = if overview.has_unencrypted_size { ", unencrypted_size" } else { "" };
        let full = "CASE WHEN s.folder = '' THEN f.path WHEN f.path = '' THEN s.folder ELSE s.folder || '/' || f.path END";
        // The order of `files::order`, as plain bytes: a slash becomes 1 1, a byte 1 becomes 1 2. Three times as fast as
        // sorting lists of components.
        let sql = format!(
            "COPY (SELECT s.n, {full}, (f.mimetype = {folder_type})::int, f.size, coalesce(f.encrypted, 0), coalesce({unencrypted}, 0)
               FROM (SELECT storage, coalesce(path, '') AS path, mimetype, size, encrypted{more} FROM {cache}) f
               JOIN (VALUES {values}) s (n, storage, folder) ON s.storage = f.storage
               ORDER BY replace(replace({full}, E'\\x01', E'\\x01\\x02'), '/', E'\\x01\\x01') COLLATE \"C\") TO STDOUT"
        );
        let mut running = psql.start(database, &["SET work_mem = '64MB'", &sql])?;
        let stdout = running.take_stdout()?;
        Ok(Rows { lines: BufReader::with_capacity(1 << 16, Patient(stdout)), running, line: Vec::new() })
    }

    /// The next row; `None` after the last one, when psql has ended well.
    pub(crate) fn next(&mut self) -> Result<Option<Row>> {
        self.line.clear();
        let read = self.lines.read_until(b'\n', &mut self.line);
        signals::check()?;
        if read.context("cannot read the rows from psql")? == 0 {
            self.running.finish()?;
            return Ok(None);
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        parse(line)
            .map(Some)
            .with_context(|| format!("psql wrote an odd row: {}", String::from_utf8_lossy(line)))
    }
}

/// A line of COPY's text format.
fn parse(line: &[u8]) -> Option<Row> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b'\t').collect();
    let [place, path, folder, size, encrypted, unencrypted] = fields.as_slice() else { return None };
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<i64>().ok();
    Some(Row {
        place: usize::try_from(number(place)?).ok()?,
        path: unescape(path),
        is_folder: *folder == b"1",
        promised: Promised {
            size: number(size)?,
            encrypted: number(encrypted)? > 0,
            unencrypted: number(unencrypted)?,
        },
    })
}

/// COPY writes a backslash before what would end a field or a line, and before a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        out.extend(bytes.next().map(|escaped| match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            other => *other,
        }));
    }
    out
}

/// Reads what a child prints, until a signal asks us to stop: then as if it had ended.
#[derive(Debug)]
struct Patient(ChildStdout);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            fds.extend(signals::fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            if signals::caught().is_some() {
                return Ok(0);
            }
            return self.0.read(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_come_through() {
        let row = parse(b"3\tanna/files/a\\\\b\\tc\\nd \xc3\xbc\t0\t-1\t1\t9").unwrap();
        assert_eq!(row.path, b"anna/files/a\\b\tc\nd \xc3\xbc");
        assert_eq!(row.promised, Promised { size: -1, encrypted: true, unencrypted: 9 });
        assert!(row.place == 3 && !row.is_folder);
        assert_eq!(parse(b"1\tx\t0"), None);
        assert_eq!(parse(b"1\tx\t0\t1\t1\tx"), None);
    }
}
