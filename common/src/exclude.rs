//! What is left out of a source.
//!
//! A pattern with a leading `/` is anchored at the source, one without matches at any depth; with a
//! trailing `/` it matches directories only, with `file:` in front of it anything but directories. `*` and `?` stop
//! at `/`, `**` does not; `{a,b}` and `[abc]` work as in a shell. A directory that matches is left out with all that
//! is in it, unless a default pattern meets a user's home: that is never left out.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::Fault;
use anyhow::Result;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

/// In front of a pattern that matches no directories.
const FILE: &str = "file:";

/// The maintenance drop-ins, whatever run they are of, and what they are called before they count: never part of a
/// snapshot, or a restored instance would start closed.
const DROP_IN: [&str; 2] =
    ["/config/zz-nc-backup-maintenance*.config.php", "/config/.zz-nc-backup-maintenance*.new"];

/// What Nextcloud makes again by itself. Anchored, so that no user's folder of such a name is lost.
/// Without `preview`, previews are remade by `occ files:scan-app-data` after a restore.
const REMADE: [&str; 4] =
    ["/*/cache/", "/*/uploads/", "/appdata_*/{preview,js,css,appstore}/", "file:*.ocTransferId*.part"];

/// Logs, and what the updater saved: its folder is named after the instance, `oc` and ten characters. Users may be
/// called `audit.logistics` or `updater-bob`: logs are files, and a home is spared.
const LOGS: [&str; 3] = ["/updater-oc??????????/", "file:/nextcloud.log*", "file:/audit.log*"];

/// What a restore works in, and what it replaced; it lies beside what is restored, so anywhere.
const RESTORE: &str = ".nc-restore-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]-[0-9][0-9]-[0-9][0-9]Z-*.{partial,replaced}/";

/// The default patterns that a user's home could meet: homes lie at the top of the data folder, or one folder deeper.
const SPARE_HOMES: [&str; 3] = ["/*/cache/", "/*/uploads/", "/updater-oc??????????/"];

/// The default patterns for a source called `name`.
pub fn defaults(name: &str) -> Vec<String> {
    let mut patterns = match name {
        "data" => REMADE.iter().chain(&LOGS).map(|&p| p.to_owned()).collect(),
        "html" => DROP_IN.map(str::to_owned).to_vec(),
        _ => Vec::new(),
    };
    patterns.push(RESTORE.to_owned());
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
    patterns: Vec<Pattern>,
    set: GlobSet,
    exact: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    meets: Meets,
    /// Paths it left out so far, each with all that is in it.
    left_out: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    All,
    Dirs,
    Files,
}

impl Excludes {
    /// Compiles `patterns`; `exact` are paths relative to the source (other sources that lie in it).
    pub fn new(patterns: &[String], exact: Vec<Vec<u8>>) -> Result<Excludes> {
        let (mut set, mut list) = (GlobSetBuilder::new(), Vec::with_capacity(patterns.len()));
        for text in patterns {
            let (of_files, body) = text.strip_prefix(FILE).map_or((false, &**text), |rest| (true, rest));
            let (of_dirs, body) = body.strip_suffix('/').map_or((false, body), |rest| (true, rest));
            let meets = match (of_dirs, of_files) {
                (true, true) => {
                    return Err(Fault::config(format!(
                        "exclude = \"{text}\": `file:` means no folders, the `/` at its end only folders"
                    ))
                    .hint("leave out one of the two")
                    .into());
                }
                (true, false) => Meets::Dirs,
                (false, true) => Meets::Files,
                (false, false) => Meets::All,
            };
            let glob = match body.strip_prefix('/') {
                Some(anchored) => anchored.to_owned(),
                None => format!("**/{body}"),
            };
            if body.trim_matches('/').is_empty() {
                return Err(
                    Fault::config(format!("exclude = \"{text}\": this would leave out everything")).into()
                );
            }
            let glob = GlobBuilder::new(&glob).literal_separator(true).backslash_escape(true).build();
            let glob = glob.map_err(|e| {
                Fault::config(format!("exclude = \"{text}\": {}", e.kind()))
                    .hint("write it like /*/cache/ or *.part; escape special characters with \\")
            })?;
            set.add(glob);
            list.push(Pattern { text: text.clone(), meets, left_out: AtomicU64::new(0) });
        }
        Ok(Excludes { patterns: list, set: set.build()?, exact })
    }

    /// Whether `path` (relative to the source) is left out by its name and type alone.
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        self.is_exact(path, is_dir) || self.meeting(path, is_dir).next().is_some()
    }

    /// Whether `path` is left out, the home of a user spared; `name` is what it is called in the open folder
    /// `parent`. Counts what is left out.
    pub fn leaves_out(&self, parent: impl AsFd, name: &OsStr, path: &[u8], is_dir: bool) -> bool {
        if self.is_exact(path, is_dir) {
            return true;
        }
        let mut home = None;
        let met = self.meeting(path, is_dir).find(|pattern| {
            let may_be_home =
                SPARE_HOMES.contains(&&*pattern.text) && !crate::mutant::active("homes-are-spared");
            !(may_be_home && *home.get_or_insert_with(|| is_home(&parent, name)))
        });
        if let Some(pattern) = met {
            pattern.left_out.fetch_add(1, Ordering::Relaxed);
        }
        met.is_some()
    }

    /// Each pattern that left something out, and how many paths, by [`Excludes::leaves_out`].
    pub fn counts(&self) -> Vec<(String, u64)> {
        let all = self.patterns.iter().map(|p| (p.text.clone(), p.left_out.load(Ordering::Relaxed)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    fn is_exact(&self, path: &[u8], is_dir: bool) -> bool {
        is_dir && self.exact.iter().any(|e| e == path)
    }

    /// The patterns that meet `path`.
    fn meeting(&self, path: &[u8], is_dir: bool) -> impl Iterator<Item = &Pattern> {
        let as_path = Path::new(OsStr::from_bytes(path));
        // Nearly all paths meet none, which is told faster than which.
        let found = if self.set.is_match(as_path) { self.set.matches(as_path) } else { Vec::new() };
        found.into_iter().map(|at| &self.patterns[at]).filter(move |p| match p.meets {
            Meets::All => true,
            Meets::Dirs => is_dir,
            Meets::Files => !is_dir || crate::mutant::active("logs-are-files"),
        })
    }
}

/// Whether the folder `name` in `parent` is the home of a user: it holds a folder (or a link) `files`.
fn is_home(parent: &impl AsFd, name: &OsStr) -> bool {
    let files = Path::new(name).join("files");
    fstatat(parent, &files, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| matches!(stat.st_mode & libc::S_IFMT, libc::S_IFDIR | libc::S_IFLNK))
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
            "updater-oc0123456789",
            ".nc-restore-2026-11-22T03-30-00Z-0a1b2c3d.partial",
            "anna/files/.nc-restore-2026-11-22T03-30-00Z-0a1b2c3d.replaced",
        ] {
            assert!(excludes.matches(out.as_bytes(), true), "{out}");
        }
        for out in ["anna/files/f.ocTransferId12.part", "nextcloud.log", "nextcloud.log.1", "audit.log"] {
            assert!(excludes.matches(out.as_bytes(), false), "{out}");
        }
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
            "anna/files/.nc-restore-notes",
            ".nc-restore-notes",
            "updater-bob",
            "nextcloud.log",
            "nextcloud.login",
            "audit.logistics",
            "x.ocTransferId1.part",
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
    fn a_home_is_never_left_out_and_what_is_left_out_is_counted() {
        let top = tempfile::tempdir().unwrap();
        for home in ["ldap/cache/files", "updater-oc0123456789/files", "anna/files", "anna/cache/x"] {
            std::fs::create_dir_all(top.path().join(home)).unwrap();
        }
        let open = |path: &str| std::fs::File::open(top.path().join(path)).unwrap();
        let excludes = Excludes::new(&defaults("data"), vec![]).unwrap();
        let asked = |parent: &str, name: &str| {
            let path = Path::new(parent).join(name);
            excludes.leaves_out(open(parent), OsStr::new(name), path.as_os_str().as_bytes(), true)
        };
        assert!(!asked("ldap", "cache"));
        assert!(!asked("", "updater-oc0123456789"));
        assert!(asked("anna", "cache"));
        assert_eq!(excludes.counts(), [("/*/cache/".to_owned(), 1)]);
        // What a person wrote into the profile is meant.
        let own = Excludes::new(&["/ldap/*/".into()], vec![]).unwrap();
        assert!(own.leaves_out(open("ldap"), OsStr::new("cache"), b"ldap/cache", true));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = Excludes::new(&["/a[".into()], vec![]).unwrap_err();
        assert!(error.to_string().contains("exclude = \"/a[\""), "{error}");
        for bad in ["/", "file:", "file:/a/"] {
            assert!(Excludes::new(&[bad.into()], vec![]).is_err(), "{bad}");
        }
    }
}
