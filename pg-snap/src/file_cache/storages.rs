//! Where the files of each of Nextcloud's storages lie in a tree.
//!
//! `oc_storages.id` is `home::USER`, `local::/folder/`, `object::…`, or, where that is longer than 64 bytes, its md5
//! (lib/private/Files/Cache/Storage.php, `adjustStorageId`). The tree's `data/` is the data directory: a storage in it can
//! be checked, any other is named as unchecked.

use std::collections::HashMap;

use serde::Deserialize;

/// One storage, as the database tells it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Row {
    pub(crate) numeric_id: i64,
    pub(crate) id: String,
    /// Its rows in `oc_filecache`.
    pub(crate) rows: u64,
}

/// What the database says besides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The data directory as Nextcloud sees it, without a slash at its end; the first one is config.php's.
    pub(crate) data_directories: Vec<String>,
    /// Home folders that are not `DATADIRECTORY/USER` (user_ldap's `homePath`).
    pub(crate) homes: HashMap<String, String>,
    /// md5 of ids that are longer than 64 bytes.
    pub(crate) long_ids: HashMap<String, String>,
}

/// A storage in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) numeric_id: i64,
    /// Its folder below `data/`; empty: that folder itself.
    pub(crate) prefix: Vec<u8>,
    /// Whose home it is.
    pub(crate) user: Option<String>,
    pub(crate) rows: u64,
}

/// A storage that cannot be checked, and why: `object-storage`, `outside-data-directory`, `not-local`, `unknown-id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unchecked {
    pub(crate) id: String,
    pub(crate) rows: u64,
    pub(crate) why: &'static str,
}

/// Whether `id` is the md5 of a longer one.
pub(crate) fn is_hash(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The storages in the tree, and those that are not.
pub(crate) fn place(storages: &[Row], known: &Known) -> (Vec<Place>, Vec<Unchecked>) {
    let (mut places, mut unchecked) = (Vec::new(), Vec::new());
    for row in storages {
        match find(&row.id, known) {
            Ok((prefix, user)) => {
                places.push(Place { numeric_id: row.numeric_id, prefix, user, rows: row.rows });
            }
            // A storage without rows has nothing to check.
            Err(_) if row.rows == 0 => {}
            Err(why) => {
                let id = known.long_ids.get(&row.id).unwrap_or(&row.id).clone();
                unchecked.push(Unchecked { id, rows: row.rows, why });
            }
        }
    }
    (places, unchecked)
}

fn find(id: &str, known: &Known) -> Result<(Vec<u8>, Option<String>), &'static str> {
    let id = known.long_ids.get(id).map_or(id, String::as_str);
    if let Some(user) = id.strip_prefix("home::") {
        let prefix = match known.homes.get(user) {
            Some(home) => inside(home, known)?,
            None if is_plain(user) => user.into(),
            None => return Err("outside-data-directory"),
        };
        return Ok((prefix, Some(user.to_owned())));
    }
    match id.split_once("::") {
        Some(("local", path)) => Ok((inside(path, known)?, None)),
        Some(("object", _)) => Err("object-storage"),
        None if is_hash(id) => Err("unknown-id"),
        _ => Err("not-local"),
    }
}

/// `path` relative to the data directory.
fn inside(path: &str, known: &Known) -> Result<Vec<u8>, &'static str> {
    let path = plain(path);
    let below = known.data_directories.iter().find_map(|dir| {
        let rest = path.strip_prefix(plain(dir).as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/').to_owned())
    });
    let below = below.ok_or("outside-data-directory")?;
    let sound = below.is_empty() || below.split('/').all(is_plain);
    if sound { Ok(below.into_bytes()) } else { Err("outside-data-directory") }
}

/// Without doubled slashes and the one at the end, as Nextcloud itself reads it.
pub(crate) fn plain(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

/// Whether `name` is one component of a path.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> Row {
        Row { numeric_id: 1, id: id.into(), rows: 3 }
    }

    fn known() -> Known {
        Known {
            data_directories: vec!["/srv/nc//data/".into()],
            homes: HashMap::from([
                ("uuid-1".to_owned(), "/srv/nc/data/ldap/anna".to_owned()),
                ("uuid-2".to_owned(), "/home/otto".to_owned()),
            ]),
            long_ids: HashMap::from([(
                "d41d8cd98f00b204e9800998ecf8427e".to_owned(),
                "local::/srv/nc/data/".to_owned(),
            )]),
        }
    }

    #[test]
    fn every_form_of_an_id() {
        for (id, prefix) in [
            ("home::anna", "anna"),
            ("home::uuid-1", "ldap/anna"),
            ("local::/srv/nc/data/", ""),
            ("local::/srv/nc/data/__groupfolders/1/", "__groupfolders/1"),
            ("d41d8cd98f00b204e9800998ecf8427e", ""),
        ] {
            let (places, unchecked) = place(&[row(id)], &known());
            assert!(unchecked.is_empty(), "{id}: {unchecked:?}");
            assert_eq!(places[0].prefix, prefix.as_bytes(), "{id}");
        }
        for (id, why) in [
            ("home::uuid-2", "outside-data-directory"),
            ("home::..", "outside-data-directory"),
            ("local::/srv/nc/database/", "outside-data-directory"),
            ("local::/srv/nc/data/../x/", "outside-data-directory"),
            ("object::user:anna", "object-storage"),
            ("smb::anna@host//share//", "not-local"),
            ("d41d8cd98f00b204e9800998ecf8427f", "unknown-id"),
        ] {
            assert_eq!(place(&[row(id)], &known()).1[0].why, why, "{id}");
        }
    }

    #[test]
    fn a_storage_without_rows_is_nothing_to_worry_about() {
        let empty = Row { numeric_id: 1, id: "local::/mnt/usb/".into(), rows: 0 };
        assert_eq!(place(&[empty], &known()), (vec![], vec![]));
    }
}
