//! Who keeps a file system busy: so that a person can be told what to end.
//!
//! Only names the kernel tells are compared (links in `/proc`, files in `/sys`); the file system itself is never
//! touched, so a hung one keeps nobody waiting. Needs root to see other accounts' processes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::mounts::{self, Mount};

/// One that keeps a file system busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process; `None` for what the kernel itself holds: a loop device, another mount.
    pub pid: Option<u32>,
    /// The process's name, the device, or where the other mount is.
    pub name: String,
    /// What it holds, in words that follow the name.
    pub what: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (process {pid}) {}", self.name, self.what),
            None => write!(f, "{} {}", self.name, self.what),
        }
    }
}

/// The first few of `holders` in one line.
pub fn line(holders: &[Holder]) -> String {
    const SHOWN: usize = 5;
    let mut parts: Vec<String> = holders.iter().take(SHOWN).map(Holder::to_string).collect();
    if holders.len() > SHOWN {
        parts.push(format!("and {} more", holders.len() - SHOWN));
    }
    parts.join("; ")
}

/// What keeps the file system mounted at `target` busy: processes with a folder, a program, an open file or a
/// mapped one in it, mounts and loop devices on top of it, and other mount namespaces that have it too.
pub fn of_mount(target: &Path) -> Vec<Holder> {
    let table = mounts::table().unwrap_or_default();
    let device = table.iter().rev().find(|m| m.target == target).map(|m| m.device);
    let mut found: Vec<Holder> = pids().into_iter().filter_map(|pid| of_process(pid, target)).collect();
    found.extend(table.iter().filter(|m| m.target != target && m.target.starts_with(target)).map(|m| {
        let what = format!("is mounted on top ({})", m.fs_type);
        Holder { pid: None, name: m.target.display().to_string(), what }
    }));
    found.extend(loops_below(target).into_iter().map(|(name, file)| {
        let what = format!("is a loop device on {}", file.display());
        Holder { pid: None, name: name.display().to_string(), what }
    }));
    found.extend(device.map(of_device).unwrap_or_default());
    found
}

/// Processes of other mount namespaces that have the file system with this device number mounted: it lives on there
/// when it is unmounted here. One for each namespace.
pub fn of_device(device: (u32, u32)) -> Vec<Holder> {
    elsewhere(|m| m.device == device)
}

/// Likewise, for any mount that `wanted` is true of.
pub fn elsewhere(wanted: impl Fn(&Mount) -> bool) -> Vec<Holder> {
    let mut seen: BTreeSet<PathBuf> = std::fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let has_it = |pid: &u32| {
        let text = std::fs::read(proc(*pid).join("mountinfo")).unwrap_or_default();
        mounts::parse(&text).is_ok_and(|table| table.iter().any(&wanted))
    };
    let new = |pid: &u32| std::fs::read_link(proc(*pid).join("ns/mnt")).is_ok_and(|ns| seen.insert(ns));
    let found = pids().into_iter().filter(new).filter(has_it);
    found.map(|pid| holder(pid, "has it mounted in a mount namespace of its own".into())).collect()
}

/// Loop devices whose file lies in `dir`: the device and the file.
pub fn loops_below(dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|e| {
            let mut text = std::fs::read(e.path().join("loop/backing_file")).ok()?;
            text.pop_if(|last| *last == b'\n');
            let file = PathBuf::from(OsString::from_vec(text));
            file.starts_with(dir).then(|| (Path::new("/dev").join(e.file_name()), file))
        })
        .collect();
    found.sort();
    found
}

fn of_process(pid: u32, target: &Path) -> Option<Holder> {
    let dir = proc(pid);
    let below = |link: &Path| std::fs::read_link(link).ok().filter(|to| to.starts_with(target));
    for (link, what) in
        [("cwd", "works in the folder"), ("root", "has as its root"), ("exe", "runs the program")]
    {
        if let Some(to) = below(&dir.join(link)) {
            return Some(holder(pid, format!("{what} {}", to.display())));
        }
    }
    let files = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    if let Some(file) = files.into_iter().find_map(|fd| below(&fd.path())) {
        return Some(holder(pid, format!("has {} open", file.display())));
    }
    let maps = std::fs::read(dir.join("maps")).unwrap_or_default();
    let mapped = maps.split(|b| *b == b'\n').find_map(|line| {
        // Five fields, then the path, padded with blanks.
        let start = line.iter().position(|b| *b == b'/')?;
        let file = PathBuf::from(OsString::from_vec(line[start..].to_vec()));
        file.starts_with(target).then_some(file)
    });
    mapped.map(|file| holder(pid, format!("has {} mapped", file.display())))
}

fn holder(pid: u32, what: String) -> Holder {
    let name = std::fs::read(proc(pid).join("comm")).unwrap_or_default();
    Holder { pid: Some(pid), name: String::from_utf8_lossy(&name).trim().to_owned(), what }
}

fn proc(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Cmd;

    fn names(target: &Path) -> Vec<String> {
        let ours: Vec<Holder> = of_mount(target);
        ours.iter().map(Holder::to_string).collect()
    }

    #[test]
    fn a_folder_and_an_open_file_are_told_and_a_neighbour_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (here, beside) = (dir.path().join("s3"), dir.path().join("s3-old"));
        for dir in [&here, &beside] {
            std::fs::create_dir(dir).unwrap();
        }
        let mut neighbour = Cmd::new("sleep").arg("60").dir(&beside).spawn_piped().unwrap();
        assert_eq!(names(&here), Vec::<String>::new());
        let mut there = Cmd::new("sleep").arg("60").dir(&here).spawn_piped().unwrap();
        let told = format!("sleep (process {}) works in the folder {}", there.id(), here.display());
        assert_eq!(names(&here), [told]);
        there.end();
        let file = std::fs::File::create(here.join("f")).unwrap();
        let me = std::process::id().to_string();
        let open = names(&here);
        assert!(open.len() == 1 && open[0].contains(&me) && open[0].contains("/f open"), "{open:?}");
        drop(file);
        neighbour.end();
    }

    #[test]
    fn many_are_counted() {
        let one = Holder { pid: Some(1), name: "init".into(), what: "has /a open".into() };
        assert_eq!(line(std::slice::from_ref(&one)), "init (process 1) has /a open");
        assert!(line(&vec![one; 7]).ends_with("; and 2 more"));
    }
}
