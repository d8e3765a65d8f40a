//! Symbolic links near the top of a source that lead out of all sources: what they lead to is in no snapshot.
//!
//! `config` kept in /etc, a user's home moved to another disk and linked: a backup of the folders alone keeps the
//! link and loses the content. Looked for where administrators put such links: at the top of a source, and at the top of the
//! folders there (`config/config.php`, a user's `files`). Links further down are users' own, and stay what they are: links.

use std::path::{Component, Path, PathBuf};

/// How many are told; where there are more, the first ones say enough.
const MOST: usize = 100;

/// A link, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The link itself.
    pub path: PathBuf,
    /// What it leads to in the end; where that is not there, what its text says.
    pub target: PathBuf,
}

impl Link {
    /// A sentence for people.
    pub fn show(&self) -> String {
        format!(
            "{} is a link to {}, which no source holds: what is there is not in the backup",
            self.path.display(),
            self.target.display()
        )
    }
}

/// The kind of the warning that tells of one.
pub const KIND: &str = "link-leads-out";

/// The links of `sources` (folders) that lead out of all of them, at most a hundred, by name. What cannot be looked into
/// is passed over: whoever reads it will say so.
pub fn find(sources: &[&Path]) -> Vec<Link> {
    let real = |path: &&Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let inside: Vec<PathBuf> = sources.iter().map(real).collect();
    let mut found = Vec::new();
    for source in sources {
        for entry in names(source) {
            match std::fs::symlink_metadata(&entry) {
                Ok(meta) if meta.is_symlink() => note(entry, &inside, &mut found),
                Ok(meta) if meta.is_dir() => {
                    let below = names(&entry).into_iter();
                    let links = below.filter(|path| path.is_symlink());
                    links.for_each(|path| note(path, &inside, &mut found));
                }
                _ => {}
            }
            if found.len() >= MOST {
                return found;
            }
        }
    }
    // A source may lie in another one.
    found.dedup();
    found
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    paths.sort();
    paths
}

fn note(path: PathBuf, inside: &[PathBuf], found: &mut Vec<Link>) {
    if found.iter().any(|l| l.path == path) {
        return;
    }
    found.extend(leads_out(&path, inside).map(|target| Link { path, target }));
}

/// Where the link `path` leads, if that is in none of the folders `inside`, whose own paths lead through no links.
pub fn leads_out(path: &Path, inside: &[PathBuf]) -> Option<PathBuf> {
    leads_to(path).filter(|target| !inside.iter().any(|source| target.starts_with(source)))
}

/// Where `path` leads; where that is not there (in a container it may be), what it says.
fn leads_to(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok().or_else(|| {
        let folder = std::fs::canonicalize(path.parent()?).ok()?;
        Some(plain(&folder.join(std::fs::read_link(path).ok()?)))
    })
}

/// Without `.` and `..`, by the text alone.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_that_lead_out_are_found_at_the_top_and_one_below_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["html/config", "html/lib", "data/anna/files/deep", "etc", "disk/bob"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("etc/config.php"), "<?php").unwrap();
        symlink(at("etc/config.php"), at("html/config/config.php")).unwrap();
        symlink(at("disk/bob"), at("data/bob")).unwrap();
        symlink("../../disk/gone/./x/..", at("data/anna/files_versions")).unwrap();
        // These stay inside, or are a user's own.
        symlink(at("data"), at("html/data")).unwrap();
        symlink("lib", at("html/lib2")).unwrap();
        symlink("nothing", at("data/anna/nothing")).unwrap();
        symlink(at("etc"), at("data/anna/files/deep/own")).unwrap();
        // A source that is named through a link.
        symlink(at("data"), at("named")).unwrap();
        let found = find(&[&at("html"), &at("named")]);
        let real = std::fs::canonicalize(dir.path()).unwrap();
        let told: Vec<(PathBuf, PathBuf)> =
            found.iter().map(|l| (l.path.clone(), l.target.clone())).collect();
        assert_eq!(
            told,
            [
                (at("html/config/config.php"), real.join("etc/config.php")),
                (at("named/anna/files_versions"), real.join("disk/gone")),
                (at("named/bob"), real.join("disk/bob")),
            ]
        );
        assert!(found[0].show().contains("is not in the backup"), "{}", found[0].show());
        assert_eq!(find(&[&at("not there")]), []);
    }
}
