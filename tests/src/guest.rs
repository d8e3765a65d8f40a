//! Tests that need a device mapper: here where this kernel has one, else in the guest of `tests/vm-run`.
//!
//! Such a test begins with
//! `if testkit::guest::run_me("module::name_of_the_test", Options::default()) { return; }`.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How many guests may run at once, over all tests of this machine: most of the time they wait.
const GUESTS: usize = 3;

/// How long a test waits for its turn.
const TURN: Duration = Duration::from_secs(3600);

/// What of our environment a test needs in the guest too.
const KEPT: [&str; 8] = [
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_BIN_EXE_",
    "RUST_BACKTRACE",
    "PROPTEST_",
    "NC_BACKUP_ROUNDS",
    "NC_BACKUP_SEED",
    "NC_BACKUP_TEST_SCRIPTS",
];

/// What a test needs of its guest.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Memory in MiB. What the test writes (`TMPDIR` is a tmpfs) is in it.
    pub memory: u32,
    /// It is ended after these seconds, and the test fails.
    pub seconds: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { memory: 2048, seconds: 300 }
    }
}

/// Whether this process runs in the guest.
pub fn in_guest() -> bool {
    std::env::var_os("NCB_IN_GUEST").is_some()
}

/// Runs the calling test, named as libtest names it, in the guest if that is needed; panics if it fails there,
/// or if there is no guest. True: it is done. False: go on, here is a device mapper.
#[track_caller]
pub fn run_me(test: &str, options: Options) -> bool {
    if in_guest() || native() {
        return false;
    }
    run_there(test, options, None);
    true
}

/// Like [`run_me`], but always in the guest: for what would disturb this machine.
#[track_caller]
pub fn run_me_there(test: &str, options: Options) -> bool {
    if in_guest() {
        return false;
    }
    run_there(test, options, None);
    true
}

/// Boots a guest with systemd as its init, and runs one test of this executable there, as a unit, which is an ignored
/// one here; then the guest is powered off in order. `shared` is its /run/vm, which outlives it. Panics unless the
/// test passed.
#[track_caller]
pub fn boot(test: &str, options: Options, shared: &Path) {
    assert!(!in_guest(), "guests boot no guests");
    run_there(test, options, Some(shared));
}

/// Runs one test of this executable in a guest. Panics unless it passed.
#[track_caller]
fn run_there(test: &str, options: Options, booted: Option<&Path>) {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let mut command = vm_run(options);
    if let Some(shared) = booted {
        command.arg("--systemd").arg("--share").arg(shared);
    }
    for (name, value) in std::env::vars() {
        // CARGO_BIN_EXE_NAME of a program with a dash is no name for a shell's variable.
        if KEPT.iter().any(|kept| name.starts_with(kept)) && !name.contains('-') {
            command.arg("-e").arg(format!("{name}={value}"));
        }
    }
    command.arg("--").arg(exe).args([
        "--exact",
        test,
        "--nocapture",
        "--test-threads=1",
        "--include-ignored",
    ]);
    let turn = turn();
    let output = command.output().expect("vm-run starts");
    drop(turn);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // Seen with --nocapture only, or when this test fails.
    print!("{stdout}");
    eprint!("{stderr}");
    assert!(output.status.success(), "{test} in the guest: {}", verdict(&output));
    assert!(stdout.contains("test result: ok. 1 passed"), "there is no test {test} in this executable");
}

fn verdict(output: &Output) -> String {
    match output.status.code() {
        Some(124) => "not finished in time".to_owned(),
        Some(125) => "there is no guest, or it died: see above".to_owned(),
        _ => format!("failed ({}): see above", output.status),
    }
}

/// `tests/vm-run` with its options, ended with the thread that starts it. Add `--` and a command, and hold a
/// [`turn`] while it runs.
pub fn vm_run(options: Options) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(crate::repo().join("tests/vm-run"));
    command.args(["-m", &options.memory.to_string(), "-t", &options.seconds.to_string()]);
    command.stdin(Stdio::null());
    command
}

/// The right to run one guest, until it is dropped. Waits for it.
pub fn turn() -> Flock<File> {
    let dir = cache();
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let begun = Instant::now();
    while begun.elapsed() < TURN {
        for n in 0..GUESTS {
            let file = File::create(dir.join(format!("turn-{n}"))).expect("a lock file");
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return lock,
                Err((_, Errno::EWOULDBLOCK)) => {}
                Err((_, e)) => panic!("flock in {}: {e}", dir.display()),
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no turn for a guest within {TURN:?}: who holds {}/turn-*?", dir.display());
}

fn cache() -> PathBuf {
    std::env::var_os("NCB_VM_CACHE").map_or_else(|| "/var/cache/nc-backup-vm".into(), PathBuf::from)
}

/// Whether dm-crypt works here. It is tried: a node in /dev proves nothing in a container.
fn native() -> bool {
    static NATIVE: OnceLock<bool> = OnceLock::new();
    *NATIVE.get_or_init(|| match try_mapping() {
        Ok(works) => works,
        Err(e) => panic!("whether there is a device mapper cannot be told: {e}"),
    })
}

fn try_mapping() -> std::io::Result<bool> {
    match File::options().read(true).write(true).open("/dev/mapper/control") {
        Ok(_) => {}
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => return Ok(false),
        // The node is there, the driver behind it is not.
        Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENODEV | Errno::ENXIO)) => {
            return Ok(false);
        }
        Err(e) => return Err(e),
    }
    let dir = crate::scratch();
    let image = dir.path().join("image");
    File::create(&image)?.set_len(1 << 20)?;
    let key = dir.path().join("key");
    std::fs::write(&key, [7; 64])?;
    let name = format!("ncb-test-{}", std::process::id());
    let opened = cryptsetup()
        .args(["open", "--type", "plain", "--cipher", "aes-xts-plain64", "--key-size", "512", "--key-file"])
        .args([key.as_path(), &image, Path::new(&name)])
        .output()?;
    if !opened.status.success() {
        eprintln!("no dm-crypt here: {}", String::from_utf8_lossy(&opened.stderr).trim());
        return Ok(false);
    }
    let closed = cryptsetup().args(["close", &name]).output()?;
    assert!(closed.status.success(), "{name} stays open: {}", String::from_utf8_lossy(&closed.stderr));
    Ok(true)
}

fn cryptsetup() -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "30", "cryptsetup"]).stdin(Stdio::null());
    if !Path::new("/run/udev/control").exists() {
        command.env("DM_DISABLE_UDEV", "1");
    }
    command
}
