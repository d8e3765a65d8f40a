//! What the stories happen in: a source, a store, a profile; disks, accounts, processes.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{Ran, bin, run};

use crate::picture::{Picture, picture};

/// A machine with one source `docs` and a store, in a folder of its own.
pub struct World {
    pub dir: PathBuf,
    pub source: PathBuf,
    pub store: PathBuf,
    pub state: PathBuf,
    pub config: PathBuf,
    _scratch: tempfile::TempDir,
}

impl World {
    pub fn new() -> World {
        World::below(testkit::scratch(), None)
    }

    /// With source, store and state on `disk`, so that its syncs wait for nobody else's.
    pub fn on(disk: &Disk) -> World {
        World::below(testkit::scratch(), Some(disk))
    }

    fn below(scratch: tempfile::TempDir, disk: Option<&Disk>) -> World {
        let dir = disk.map_or(scratch.path(), |d| &d.path).to_owned();
        let world = World {
            source: dir.join("source"),
            store: dir.join("store"),
            state: dir.join("state"),
            config: scratch.path().join("etc/home.toml"),
            dir,
            _scratch: scratch,
        };
        std::fs::create_dir(&world.source).unwrap();
        private(&world.store);
        private(world.config.parent().unwrap());
        world.profile("", "");
        world
    }

    /// Writes the profile; `snapshot` is added to `[snapshot]`, `rest` at the end (in `[store]`).
    pub fn profile(&self, snapshot: &str, rest: &str) {
        self.write_profile(&format!(
            "[snapshot]\nstore = \"{store}\"\n{snapshot}\n\
             [[snapshot.source]]\nname = \"docs\"\npath = \"{source}\"\n\
             [store]\npath = \"{store}\"\nreserve_bytes = 0\n{rest}\n",
            store = self.store.display(),
            source = self.source.display(),
        ));
    }

    /// Writes a whole profile, except for the place of its state.
    pub fn write_profile(&self, text: &str) {
        let text = format!("state_dir = \"{}\"\n{text}", self.state.display());
        std::fs::write(&self.config, text).unwrap();
        std::fs::set_permissions(&self.config, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn command(&self, action: &str, options: &[&str]) -> Command {
        let mut command = Command::new(bin("link-sync"));
        command.arg(action).arg("--config").arg(&self.config).args(options);
        command
    }

    #[track_caller]
    pub fn act(&self, action: &str, options: &[&str]) -> Ran {
        run(&mut self.command(action, options))
    }

    /// A snapshot without maintenance.
    #[track_caller]
    pub fn snapshot(&self, options: &[&str]) -> Ran {
        let options: Vec<_> = ["--crash-consistent"].iter().chain(options).copied().collect();
        self.act("snapshot", &options)
    }

    /// A snapshot that succeeds; its folder.
    #[track_caller]
    pub fn publish(&self) -> PathBuf {
        folder(&self.snapshot(&[]).expect(0))
    }

    pub fn file(&self, path: &str, text: &str) {
        let path = self.source.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The names of the published snapshots.
    pub fn dates(&self) -> Vec<String> {
        dates(&self.store)
    }

    /// Everything that is published, to be compared later.
    pub fn history(&self) -> Vec<(String, Picture)> {
        self.dates().into_iter().map(|d| (d.clone(), picture(&self.store.join(d)))).collect()
    }

    /// Asserts that the newest snapshot holds what the source does.
    #[track_caller]
    pub fn newest_is_source(&self) {
        let newest = self.store.join(self.dates().pop().expect("a snapshot")).join("docs");
        picture(&self.source).same_as(&picture(&newest));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // An agent that a failed story left behind; nothing to do if there is none.
        if self.state.join("run/agent.sock").exists() {
            self.command("abort", &[]).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
        }
    }
}

pub fn private(dir: &Path) {
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(dir).unwrap();
}

pub fn dates(store: &Path) -> Vec<String> {
    let names = std::fs::read_dir(store).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut list: Vec<_> = names.filter(|n| n.starts_with("20")).collect();
    list.sort();
    list
}

/// The folder a run published.
#[track_caller]
pub fn folder(ran: &Ran) -> PathBuf {
    ran.json["data"]["path"].as_str().expect("a path").into()
}

/// The kinds of a run's warnings.
pub fn warnings(ran: &Ran) -> Vec<&str> {
    ran.json["warnings"].as_array().unwrap().iter().map(|w| w["kind"].as_str().unwrap()).collect()
}

/// What a run says of its first source.
pub fn first(ran: &Ran) -> &Value {
    &ran.json["data"]["sources"][0]
}

/// The error's message, its causes, and its hint.
pub fn told(ran: &Ran) -> String {
    format!("{:#}", ran.json["error"])
}

#[track_caller]
pub fn ok(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// The rsync of the source's machine and that of the store's.
#[derive(Clone, Debug)]
pub struct Rsyncs {
    pub near: String,
    pub far: String,
}

/// Each version of rsync that this machine's archives have, with each; those that cannot be had are named.
pub fn rsyncs() -> Vec<Rsyncs> {
    let place = bin("link-sync").parent().unwrap().with_file_name("rsyncs");
    let out = Command::new(testkit::lab("rsyncs")).arg(&place).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    let mut programs: Vec<String> = String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|line| line.split_once(' ').expect("VERSION PROGRAM").1.to_owned())
        .collect();
    if programs.len() < 2 || !out.status.success() {
        eprintln!("NOT TRIED with other versions of rsync than this machine's own: {}", told.trim());
        programs = vec!["rsync".into()];
    }
    eprintln!("rsync at either end: {}", programs.join(", "));
    let pairs = programs.iter().flat_map(|n| programs.iter().map(move |f| (n.clone(), f.clone())));
    pairs.map(|(near, far)| Rsyncs { near, far }).collect()
}

/// What a store under an ordinary account holds in `from`, given back to `to`, as rsync alone can do it.
#[track_caller]
pub fn give_back(rsync: &str, from: &Path, to: &Path) {
    // Told of only one side of a local copy, rsync 3.2.7 writes into a folder with a name of random bytes. So it shall
    // think that it reads from another machine. Without the window, it leaves a new folder's time as it is if it
    // is of the same second.
    let shell = "sh -c 'shift; eval \"$*\"' sh";
    let path = format!("--rsync-path={rsync}");
    let (from, to) = (format!("here:{}/", from.display()), format!("{}/", to.display()));
    let options = ["-aAX", "--modify-window=-1", "--numeric-ids", "-M--fake-super"];
    ok(rsync, &[&options[..], &["-e", shell, &path, &from, &to]].concat());
}

/// A small disk of its own, mounted; gone when dropped.
pub struct Disk {
    pub path: PathBuf,
    pub image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    pub fn new(megabytes: u64) -> Disk {
        Disk::with(megabytes, &[])
    }

    pub fn with(megabytes: u64, options: &[&str]) -> Disk {
        Disk::of("ext4", megabytes, options)
    }

    /// With a file system of another kind.
    pub fn of(kind: &str, megabytes: u64, options: &[&str]) -> Disk {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("ncb-disk-").tempdir_in(parent).unwrap();
        let disk = Disk { path: dir.path().join("mnt"), image: dir.path().join("image"), _dir: dir };
        std::fs::File::create(&disk.image).unwrap().set_len(megabytes << 20).unwrap();
        let image = disk.image.to_str().unwrap();
        let quiet: &[&str] = if kind == "ext4" { &["-q", "-F"] } else { &["-q"] };
        let args: Vec<_> = quiet.iter().chain(options).copied().chain([image]).collect();
        ok(&format!("mkfs.{kind}"), &args);
        std::fs::create_dir(&disk.path).unwrap();
        disk.mount();
        disk
    }

    pub fn mount(&self) {
        self.mount_at(&self.path);
    }

    pub fn mount_at(&self, place: &Path) {
        ok("mount", &["-o", "loop", self.image.to_str().unwrap(), place.to_str().unwrap()]);
    }

    pub fn unmount(&self) {
        unmount(&self.path);
    }
}

/// Fills the disk that `dir` lies on: to the last byte, and to the last name.
pub fn fill(dir: &Path) {
    let top = dir.join("filler");
    std::fs::create_dir_all(&top).unwrap();
    let mut names = 0..;
    let more = |path: PathBuf, size: usize, wide: bool| -> std::io::Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::File::create(&path)?;
        file.write_all(&vec![b'x'; size])?;
        file.sync_all()?;
        if wide {
            // Most of a block of what btrfs keeps apart from content.
            xattr::set(&path, "user.wide", &vec![b'x'; 3000])?;
        }
        Ok(())
    };
    let kinds = [
        (8 << 20, false),
        (1 << 20, false),
        (64 << 10, false),
        (4096, false),
        (0, true),
        (1, false),
        (0, false),
    ];
    // Again, as what was written may take more or less when it reaches the disk.
    for (size, wide) in kinds.into_iter().chain(kinds) {
        let full = loop {
            let name = names.next().unwrap();
            if let Err(e) = more(top.join(format!("f{name}")), size, wide) {
                break e;
            }
        };
        assert_eq!(full.raw_os_error(), Some(28), "{full}");
    }
}

pub fn unmount(path: &Path) {
    let begin = Instant::now();
    while !Command::new("umount").arg(path).stderr(Stdio::null()).status().unwrap().success() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{} stays busy", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for _ in 0..100 {
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            if !table.contains(self.path.to_str().unwrap()) {
                return;
            }
            Command::new("umount").arg(&self.path).stderr(Stdio::null()).status().ok();
            std::thread::sleep(Duration::from_millis(50));
        }
        Command::new("umount").arg("-l").arg(&self.path).status().ok();
    }
}

/// A mount made by a story, undone also when it fails.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).stderr(Stdio::null()).status().ok();
    }
}

/// An ordinary account with a home folder; gone when dropped.
pub struct Account {
    pub name: String,
    pub home: PathBuf,
    _dir: tempfile::TempDir,
}

impl Account {
    pub fn new() -> Account {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("ncb-home-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let name = format!("ncbt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let account = Account { home: dir.path().join("home"), name, _dir: dir };
        let home = account.home.to_str().unwrap();
        // Somebody else may be writing the list of accounts in this moment.
        let add =
            ["--create-home", "--home-dir", home, "--shell", "/bin/bash", "--user-group", &account.name];
        let added = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            Command::new("useradd").args(add).stderr(Stdio::null()).status().unwrap().success()
        });
        assert!(added, "no account could be made");
        account
    }

    /// A folder in its home, its own and private.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.home.join(name);
        ok("install", &["-d", "-m", "0700", "-o", &self.name, "-g", &self.name, path.to_str().unwrap()]);
        path
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        for _ in 0..50 {
            let args = ["--force", &self.name];
            if Command::new("userdel").args(args).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The descendants of `pid` with their command lines.
pub fn descendants(pid: u32) -> Vec<(u32, String)> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let after = stat.rsplit_once(") ").map(|(_, a)| a.to_owned()).unwrap_or_default();
        let parent: u32 = after.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        parents.push((id, parent, String::from_utf8_lossy(&line).replace('\0', " ")));
    }
    let mut found: Vec<(u32, String)> = Vec::new();
    let mut known = vec![pid];
    while let Some(one) = known.pop() {
        for (id, _, line) in parents.iter().filter(|p| p.1 == one) {
            known.push(*id);
            found.push((*id, line.clone()));
        }
    }
    found
}

pub fn kill(pid: u32, signal: &str) {
    // It may have ended by itself in this moment.
    Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status().unwrap();
}

/// Waits until `what` holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
