//! Which part of the tree belongs to which storage; where every file has a row; and what a snapshot leaves out.

use std::collections::HashMap;

use anyhow::Result;
use common::exclude::Excludes;

use crate::file_cache::rows::{self, Overview};
use crate::file_cache::storages::{self, Known, Place, Unchecked, is_hash};
use crate::file_cache::tree::Tree;
use crate::psql::Psql;

/// Folders of a home that Nextcloud keeps in its index. Others hold keys, caches and uploads under way.
const INDEXED: [&[u8]; 3] = [b"files", b"files_trashbin", b"files_versions"];

/// The storages of an instance.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) list: Vec<Place>,
    pub(crate) unchecked: Vec<Unchecked>,
    /// Folder to user, for storages below the top.
    folders: HashMap<Vec<u8>, Option<String>>,
}

impl Places {
    /// Finds them. `data_directory` is what config.php says.
    pub(crate) fn find(
        psql: &Psql,
        database: &str,
        tree: &Tree,
        overview: &Overview,
        data_directory: Option<&str>,
    ) -> Result<Places> {
        let mut known = Known {
            data_directories: data_directory.into_iter().map(str::to_owned).collect(),
            homes: overview.homes.clone(),
            long_ids: overview.long_homes.clone(),
        };
        if let Some(dir) = data_directory
            && overview.storages.iter().any(|s| is_hash(&s.id) && !known.long_ids.contains_key(&s.id))
        {
            let dir = storages::plain(dir);
            let mut long = vec![format!("local::{dir}/")];
            long.extend(tree.names(b"")?.iter().map(|n| format!("local::{dir}/{n}/")));
            long.extend(
                tree.names(b"__groupfolders")?.iter().map(|n| format!("local::{dir}/__groupfolders/{n}/")),
            );
            known.long_ids.extend(rows::hashes(psql, database, &long)?);
        }
        let (mut list, mut unchecked) = storages::place(&overview.storages, &known);
        if !list.iter().any(|p| p.prefix.is_empty()) {
            // Not where config.php says, or config.php is not there: what holds the instance's own data is it.
            let holder = overview.appdata.iter().find_map(|(storage, _)| {
                overview.storages.iter().find(|s| s.numeric_id == *storage)?.id.strip_prefix("local::")
            });
            if let Some(dir) = holder {
                known.data_directories.push(dir.to_owned());
                (list, unchecked) = storages::place(&overview.storages, &known);
            }
        }
        Ok(Places::new(list, unchecked))
    }

    fn new(list: Vec<Place>, unchecked: Vec<Unchecked>) -> Places {
        let folders =
            list.iter().filter(|p| !p.prefix.is_empty()).map(|p| (p.prefix.clone(), p.user.clone()));
        Places { folders: folders.collect(), list, unchecked }
    }

    /// Whether a file at `path` should have a row; then whose it is, if it is a user's.
    pub(crate) fn indexed(&self, path: &[u8]) -> Option<Option<String>> {
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        let (name, first) = (parts.last()?, parts.first()?);
        // Nextcloud's scanner passes these over (`isPartialFile`, `blacklisted_files`).
        if *name == b".htaccess" || name.ends_with(b".part") {
            return None;
        }
        let in_home = |parts: &[&[u8]]| {
            parts.len() > 1
                && INDEXED.contains(&parts[0])
                && !(parts[0] == b"files_trashbin" && parts[1] == b"keys")
        };
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        // The innermost storage counts.
        for (depth, at) in slashes.enumerate().collect::<Vec<_>>().into_iter().rev() {
            if let Some(user) = self.folders.get(&path[..at]) {
                return match user {
                    Some(_) => in_home(&parts[depth + 1..]).then(|| user.clone()),
                    None => Some(None),
                };
            }
        }
        if *first == b"__groupfolders" {
            return Some(None);
        }
        // A home that no storage knows: of a user who is newer than the dump.
        let home = !first.starts_with(b"appdata_") && in_home(&parts[1..]);
        home.then(|| Some(String::from_utf8_lossy(first).into_owned()))
    }
}

/// What a snapshot leaves out, asked for many paths in their order.
#[derive(Debug)]
pub(crate) struct LeftOut<'e> {
    excludes: &'e Excludes,
    /// The folders above the last path, and whether they are left out.
    above: Vec<(Vec<u8>, bool)>,
}

impl<'e> LeftOut<'e> {
    /// Asks `excludes`.
    pub(crate) fn new(excludes: &'e Excludes) -> LeftOut<'e> {
        LeftOut { excludes, above: Vec::new() }
    }

    /// Whether `path`, or a folder above it, is left out.
    pub(crate) fn matches(&mut self, path: &[u8], is_folder: bool) -> bool {
        let mut out = false;
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for (depth, at) in slashes.enumerate() {
            let folder = &path[..at];
            if self.above.get(depth).is_none_or(|(known, _)| known != folder) {
                self.above.truncate(depth);
                self.above.push((folder.to_vec(), out || self.excludes.matches(folder, true)));
            }
            out = self.above[depth].1;
            if out {
                return true;
            }
        }
        self.excludes.matches(path, is_folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::exclude::defaults;

    fn places() -> Places {
        let place = |prefix: &str, user: Option<&str>| Place {
            numeric_id: 1,
            prefix: prefix.into(),
            user: user.map(str::to_owned),
            rows: 1,
        };
        let list = vec![
            place("", None),
            place("anna", Some("anna")),
            place("ldap/otto", Some("uuid")),
            place("__groupfolders/1", None),
        ];
        Places::new(list, Vec::new())
    }

    #[test]
    fn where_every_file_has_a_row() {
        for (path, user) in [
            ("anna/files/a", Some("anna")),
            ("anna/files_trashbin/files/a.d1", Some("anna")),
            ("anna/files_versions/a.v1", Some("anna")),
            ("ldap/otto/files/x", Some("uuid")),
            ("new/files/x", Some("new")),
            ("__groupfolders/1/x", None),
            ("__groupfolders/trash/1/x", None),
        ] {
            assert_eq!(places().indexed(path.as_bytes()), Some(user.map(str::to_owned)), "{path}");
        }
    }

    #[test]
    fn where_nextcloud_keeps_files_without_one() {
        for path in [
            ".ncdata",
            "index.html",
            "nextcloud.log",
            "appdata_oc1/avatar/x",
            "appdata_oc1/files/x",
            "files_external/rootcerts.crt",
            "files_encryption/key",
            "anna/files_encryption/keys/files/a/fileKey",
            "anna/files_trashbin/keys/a",
            "anna/cache/x",
            "anna/files/a.part",
            "anna/files/a.ocTransferId1.part",
            "anna/files/.htaccess",
            "anna/notes",
        ] {
            assert_eq!(places().indexed(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn below_a_folder_that_is_left_out_everything_is() {
        let excludes = Excludes::new(&defaults("data"), vec![]).unwrap();
        let mut left_out = LeftOut::new(&excludes);
        for (path, expected) in [
            ("anna", false),
            ("anna/cache", true),
            ("anna/cache/a/b", true),
            ("anna/cache/a/c", true),
            ("anna/files/cache/a", false),
            ("appdata_oc1/preview/1/2", true),
            ("appdata_oc1/avatar/1/2", false),
            ("otto/cache/a", true),
        ] {
            assert_eq!(left_out.matches(path.as_bytes(), path.ends_with("cache")), expected, "{path}");
        }
    }
}
