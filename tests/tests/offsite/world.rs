//! S2 with a store and a profile, S3 with an empty folder, and the slow link between them.

use std::io::Read;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testkit::hosts::{Hosts, Setting};
use testkit::{Ran, bin, judge, run, scratch};

/// Nothing that hangs may take longer: ssh gives up a silent S3 after seconds here (see the profile).
pub const BOUND: Duration = Duration::from_secs(90);

pub struct World {
    pub dir: tempfile::TempDir,
    pub hosts: Hosts,
    account: Account,
}

impl World {
    pub fn new(setting: Setting<'_>) -> World {
        let dir = scratch();
        // S3's account must reach its folder.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let account = Account::new(&dir.path().join("s3"));
        let hosts =
            Hosts::start(Setting { users: [setting.users[0], setting.users[1], &account.0], ..setting });
        hosts.s3.set_key_options("command=\"internal-sftp\",restrict");
        let world = World { dir, hosts, account };
        for folder in ["etc", "store"] {
            std::fs::DirBuilder::new().mode(0o700).create(world.path(folder)).unwrap();
        }
        let key: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(73) ^ 0xa5).collect();
        std::fs::write(world.key(), key).unwrap();
        std::fs::set_permissions(world.key(), std::fs::Permissions::from_mode(0o600)).unwrap();
        world.profile("");
        world
    }

    /// S2's profile; `more` comes into `[offsite.sshfs]`.
    pub fn profile(&self, more: &str) {
        let s3 = &self.hosts.s3;
        let text = format!(
            "state_dir = \"{dir}/state\"\n[store]\npath = \"{dir}/store\"\n[offsite]\nlayout = \"hardlink\"\nreserve_bytes = 1000000\n\
             [offsite.sshfs]\nhost = \"{}@{}\"\ndirectory = \"{}\"\nport = {}\nidentity = \"{}\"\nknown_hosts = \"{}\"\n\
             options = [\"ServerAliveInterval=2\", \"ServerAliveCountMax=3\", \"ConnectTimeout=8\"]\n{more}\n\
             [offsite.luks]\nimage = \"container.img\"\nkey_file = \"{}\"\n",
            s3.user,
            s3.address,
            self.s3().display(),
            s3.port,
            s3.identity.display(),
            s3.known_hosts.display(),
            self.key().display(),
            dir = self.dir.path().display(),
        );
        std::fs::write(self.config(), text).unwrap();
        std::fs::set_permissions(self.config(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn config(&self) -> PathBuf {
        self.path("etc/home.toml")
    }
    pub fn key(&self) -> PathBuf {
        self.path("etc/home.key")
    }
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }
    /// S3's folder, seen from S3.
    pub fn s3(&self) -> PathBuf {
        self.path("s3")
    }
    /// A disk of its own for S3's folder, so small; gone when dropped.
    pub fn small_disk(&self, size: &str) -> Disk {
        let options = format!("size={size},mode=0700,uid={}", ok("id", &["-u", &self.account.0]));
        ok("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", self.s3().to_str().unwrap()]);
        Disk(self.s3())
    }
    pub fn image(&self) -> PathBuf {
        self.s3().join("container.img")
    }

    /// A tool on S2.
    pub fn s2(&self, tool: &str, action: &str) -> Command {
        let mut command = self.hosts.s2.command(bin(tool));
        command.arg(action).arg("home").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    pub fn act(&self, tool: &str, action: &str, options: &[&str]) -> Ran {
        run(self.s2(tool, action).args(options))
    }

    #[track_caller]
    pub fn push(&self) -> Ran {
        self.act("offsite-push", "push", &[])
    }

    /// An empty container on S3.
    pub fn create(&self, size: &str) {
        self.act("sshfs-mount", "mount", &[]).expect(0);
        let options = ["--size", size, "--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000"];
        self.act("luks-mount", "create", &options).expect(0);
        self.act("sshfs-mount", "unmount", &[]).expect(0);
        self.nothing_is_up();
    }

    /// A snapshot of `files` random files of `size` bytes each in S2's store, made on the spot; its date.
    pub fn snapshot(&self, files: usize, size: usize) -> String {
        let source = self.path("source");
        std::fs::create_dir_all(&source).unwrap();
        for n in 0..files {
            let path = source.join(format!("d{}", n % 7)).join(format!("file-{n}"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, noise(size)).unwrap();
        }
        std::fs::write(source.join("marker"), MARKER.repeat(50)).unwrap();
        let mut command = Command::new(bin("link-sync"));
        command.arg("snapshot").arg("--config").arg(self.config()).arg("--crash-consistent");
        command.arg("--source").arg(format!("docs={}", source.display())).arg("--store").arg(self.store());
        let ran = run(command.arg("--allow-shrink")).expect(0);
        ran.json["data"]["date"].as_str().unwrap().to_owned()
    }

    /// Asserts that nothing of the off-site copy is mounted, mapped or attached, and no sshfs runs.
    #[track_caller]
    pub fn nothing_is_up(&self) {
        assert_eq!(self.up(), Vec::<String>::new());
    }

    fn up(&self) -> Vec<String> {
        let mut found = Vec::new();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(
            table.lines().filter(|l| l.contains("sshfs") || l.contains("/dev/mapper")).map(str::to_owned),
        );
        for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file"));
            if name.starts_with("dm-") || backing.is_ok() {
                found.push(format!("{name} {}", backing.unwrap_or_default().trim()));
            }
        }
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            if std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|c| c.trim() == "sshfs") {
                found.push(format!("sshfs {}", entry.file_name().display()));
            }
        }
        found
    }

    /// The file system in the container is whole, by its own checker, and holds exactly these dates, each equal to
    /// the store's.
    #[track_caller]
    pub fn container_holds(&self, dates: &[&str]) {
        let view = self.act("offsite-push", "view", &[]).expect(0);
        let inside = Path::new(view.json["data"]["mount_point"].as_str().unwrap()).join("snapshots");
        let held: Vec<_> =
            view.json["data"]["dates"].as_array().unwrap().iter().map(|d| d.as_str().unwrap()).collect();
        assert_eq!(held, dates);
        for date in dates {
            let (there, here) = (inside.join(date), self.store().join(date));
            let meta = ".meta/snapshot.json";
            assert_eq!(std::fs::read(there.join(meta)).unwrap(), std::fs::read(here.join(meta)).unwrap());
            let mut sources = 0;
            for source in
                std::fs::read_dir(&here).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n != ".meta")
            {
                same(&here.join(&source), &there.join(&source));
                sources += 1;
            }
            assert!(sources > 0 && sources + 1 == std::fs::read_dir(&there).unwrap().count());
        }
        self.act("offsite-push", "unview", &[]).expect(0);
        self.nothing_is_up();
        self.fsck();
    }

    #[track_caller]
    pub fn fsck(&self) {
        let image = self.image();
        // A copy, as its journal may have to be replayed; of the blocks that are there.
        let copy = self.path("copy.img");
        ok("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]);
        let device = ok("losetup", &["--find", "--show", copy.to_str().unwrap()]);
        let key = self.key();
        ok("cryptsetup", &["open", "--key-file", key.to_str().unwrap(), &device, "ncb-fsck"]);
        let journal = Command::new("e2fsck").args(["-p", "/dev/mapper/ncb-fsck"]).output().unwrap();
        let full = Command::new("e2fsck").args(["-fn", "/dev/mapper/ncb-fsck"]).output().unwrap();
        ok("cryptsetup", &["close", "ncb-fsck"]);
        ok("losetup", &["--detach", &device]);
        std::fs::remove_file(&copy).unwrap();
        assert!(matches!(journal.status.code(), Some(0 | 1)), "{}", said(&journal));
        assert_eq!(full.status.code(), Some(0), "{}", said(&full));
    }

    /// Starts a push; it is looked at with [`ended`].
    pub fn start_push(&self) -> Child {
        self.s2("offsite-push", "push").spawn().unwrap()
    }

    /// Waits until files of the next snapshot arrive in the container.
    #[track_caller]
    pub fn until_it_copies(&self) {
        let incoming = self.path("state/run/container/snapshots/.incoming/docs/d0");
        until("the copy is under way", || incoming.exists());
    }
}

/// What a push that was started did, within [`BOUND`].
#[track_caller]
pub fn ended(mut push: Child) -> Ran {
    let begin = Instant::now();
    let stdout = Reader::of(push.stdout.take().unwrap());
    let stderr = Reader::of(push.stderr.take().unwrap());
    let status = loop {
        if let Some(status) = push.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > BOUND {
            push.kill().unwrap();
            let output = [stdout.text(), stderr.text()].map(|b| String::from_utf8_lossy(&b).into_owned());
            panic!("it has not ended after {BOUND:?}; it said:\n{}", output.concat());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    judge(Output { status, stdout: stdout.text(), stderr: stderr.text() })
}

/// Reads a pipe while its writers work.
struct Reader {
    thread: std::thread::JoinHandle<()>,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Reader {
    fn of(mut pipe: impl Read + Send + 'static) -> Reader {
        let text = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&text);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Reader { thread, text }
    }

    /// All there is. A child of a push that hangs may keep the pipe open for ever: it is not waited for long.
    fn text(self) -> Vec<u8> {
        let begin = Instant::now();
        while !self.thread.is_finished() && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.text.lock().unwrap().clone()
    }
}

#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < BOUND, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asserts that two trees are the same, byte for byte, with owners, modes, times, links and attributes.
#[track_caller]
pub fn same(one: &Path, other: &Path) {
    let folder = |path: &Path| format!("{}/", path.display());
    let told = ok("rsync", &["-naHAXXic", "--numeric-ids", "--delete", &folder(one), &folder(other)]);
    assert_eq!(told, "", "{} differs from {}", other.display(), one.display());
}

#[track_caller]
pub fn ok(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    if program == "cryptsetup" {
        command.env("DM_DISABLE_UDEV", "1");
    }
    let out = command.args(args).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", said(&out));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub const MARKER: &str = "this text must never be seen on S3. ";

/// Bytes that no compression makes smaller.
pub fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// Whether `file` holds `text` anywhere.
pub fn holds(file: &Path, text: &[u8]) -> bool {
    let mut file = std::fs::File::open(file).unwrap();
    let (mut buffer, mut kept) = (vec![0; 1 << 20], 0);
    loop {
        let n = file.read(&mut buffer[kept..]).unwrap();
        let end = kept + n;
        if buffer[..end].windows(text.len()).any(|w| w == text) {
            return true;
        }
        if n == 0 {
            return false;
        }
        // What may be the beginning of it.
        kept = end.min(text.len() - 1);
        buffer.copy_within(end - kept..end, 0);
    }
}

/// A mounted file system.
pub struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

/// An account that may move files and nothing else; gone when dropped.
pub struct Account(pub String);

impl Account {
    fn new(home: &Path) -> Account {
        let name = format!("ncbs3-{}", std::process::id());
        let home = home.to_str().unwrap();
        ok(
            "useradd",
            &["--no-create-home", "--home-dir", home, "--shell", "/bin/sh", "--password", "*", &name],
        );
        ok("install", &["-d", "-m", "0700", "-o", &name, home]);
        Account(name)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        Command::new("userdel").args(["--force", &self.0]).stderr(Stdio::null()).status().ok();
    }
}
