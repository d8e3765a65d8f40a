//! What is left out of a source.
//!
//! A pattern with a leading `/` is anchored at the source, one without matches at any depth; with a
//! trailing `/` it matches directories only. `*` and `?` stop at `/`, `**` does not; `{a,b}` and
//! `[abc]` work as in a shell. A directory that matches is left out with all that is in it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::fault::Fault;
use anyhow::Result;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// The maintenance drop-ins, whatever run they are of, and what they are called before they count: never part of a
/// snapshot, or a restored instance would start closed.
const DROP_IN: [&str; 2] =
    ["/config/zz-nc-backup-maintenance*.config.php", "/config/.zz-nc-backup-maintenance*.new"];

/// What Nextcloud makes again by itself. Anchored, so that no user's folder of such a name is lost.
/// Without `preview`, previews are remade by `occ files:scan-app-data` after a restore.
const REMADE: [&str; 4] =
    ["/*/cache/", "/*/uploads/", "/appdata_*/{preview,js,css,appstore}/", "*.ocTransferId*.part"];

/// Logs, and what the updater saved.
const LOGS: [&str; 3] = ["/updater-*", "/nextcloud.log*", "/audit.log*"];

/// The default patterns for a source called `name`.
pub fn defaults(name: &str) -> Vec<String> {
    let mut patterns = match name {
        "data" => REMADE.iter().chain(&LOGS).map(|&p| p.to_owned()).collect(),
        "html" => DROP_IN.map(str::to_owned).to_vec(),
        _ => Vec::new(),
    };
    // What a restore works in, and what it replaced.
    patterns.push(".nc-restore-*/".to_owned());
    patterns
}

/// Whether what a default pattern leaves out must not outlive an instance that goes back in time: a drop-in that holds
/// maintenance.
pub fn is_drop_in(pattern: &str) -> bool {
    DROP_IN.contains(&pattern)
}

/// Whether Nextcloud makes again what this default pattern leaves out. Previews are found by the numbers of files,
/// which a database that goes back in time gives to other files.
pub fn is_remade(pattern: &str) -> bool {
    REMADE.contains(&pattern)
}

/// Compiled patterns, and directories left out by their exact path.
#[derive(Debug)]
pub struct Excludes {
    any: GlobSet,
    dirs_only: GlobSet,
    exact: Vec<Vec<u8>>,
}

impl Excludes {
    /// Compiles `patterns`; `exact` are paths relative to the source (other sources that lie in it).
    pub fn new(patterns: &[String], exact: Vec<Vec<u8>>) -> Result<Excludes> {
        let (mut any, mut dirs_only) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let body = pattern.strip_suffix('/').unwrap_or(pattern);
            let glob = match body.strip_prefix('/') {
                Some(anchored) => anchored.to_owned(),
                None => format!("**/{body}"),
            };
            if body.trim_matches('/').is_empty() {
                return Err(Fault::config(format!(
                    "exclude = \"{pattern}\": this would leave out everything"
                ))
                .into());
            }
            let glob = GlobBuilder::new(&glob).literal_separator(true).backslash_escape(true).build();
            let glob = glob.map_err(|e| {
                Fault::config(format!("exclude = \"{pattern}\": {}", e.kind()))
                    .hint("write it like /*/cache/ or *.part; escape special characters with \\")
            })?;
            if body.len() < pattern.len() {
                dirs_only.add(glob)
            } else {
                any.add(glob)
            };
        }
        Ok(Excludes { any: any.build()?, dirs_only: dirs_only.build()?, exact })
    }

    /// Whether `path` (relative to the source) is left out.
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        let as_path = Path::new(OsStr::from_bytes(path));
        self.any.is_match(as_path)
            || (is_dir && (self.dirs_only.is_match(as_path) || self.exact.iter().any(|e| e == path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_take_nothing_a_user_made() {
        let excludes = Excludes::new(&defaults("data"), vec![]).unwrap();
        for out in [
            "anna/cache",
            "anna/uploads",
            "appdata_oc1/preview",
            "updater-oc1",
            "nextcloud.log",
            "nextcloud.log.1",
        ] {
            assert!(excludes.matches(out.as_bytes(), true), "{out}");
        }
        assert!(excludes.matches(b"anna/files/f.ocTransferId12.part", false));
        for kept in [
            "anna/files/cache",
            "anna/files/uploads",
            "anna/files/preview",
            "anna/files/nextcloud.log",
            "appdata_oc1/avatar",
            "appdata_oc1/theming",
            "anna/files_trashbin",
            "anna/files_versions",
            ".ncdata",
            "anna/files/updater-x",
        ] {
            assert!(!excludes.matches(kept.as_bytes(), true), "{kept}");
        }
        assert!(!excludes.matches(b"anna/cache", false), "a file of that name stays");
    }

    #[test]
    fn anchoring_names_that_are_not_utf8_and_exact_paths() {
        let excludes = Excludes::new(&["/top".into(), "*.tmp".into()], vec![b"data".to_vec()]).unwrap();
        assert!(excludes.matches(b"top", false));
        assert!(!excludes.matches(b"a/top", false));
        assert!(excludes.matches(b"a/\xff\n.tmp", false));
        assert!(excludes.matches(b"data", true));
        assert!(!excludes.matches(b"a/data", true));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = Excludes::new(&["/a[".into()], vec![]).unwrap_err();
        assert!(error.to_string().contains("exclude = \"/a[\""), "{error}");
        assert!(Excludes::new(&["/".into()], vec![]).is_err());
    }
}
