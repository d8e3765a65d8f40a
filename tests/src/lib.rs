//! What the tests share: binaries, the check of every status object, servers on loopback, hosts and guests.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub mod guest;
pub mod help;
pub mod hosts;
mod keeper;
pub mod luks;
pub mod machine;
pub mod pages;
pub mod postgres;
pub mod sshd;
pub mod terminal;

/// The repository's root.
pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// The folder of the scripts: the repository's, or a copy in which a check is taken out (`tests/mutants/run`).
pub fn scripts() -> PathBuf {
    match std::env::var_os("NC_BACKUP_TEST_SCRIPTS").filter(|dir| !dir.is_empty()) {
        Some(dir) => dir.into(),
        None => repo().join("scripts"),
    }
}

/// One of the developers' helpers: `tests/lab`.
pub fn lab(name: &str) -> PathBuf {
    repo().join("tests/lab").join(name)
}

/// A built binary of the workspace. Tests of one package do not build the others' binaries:
/// `scripts/test` builds all of them first.
pub fn bin(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let dir = exe.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = dir.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// A copy of a built binary in `dir`, where every account may start it: where it was built may be closed to them.
pub fn placed(dir: &Path, name: &str) -> PathBuf {
    let tool = dir.join(name);
    std::fs::copy(bin(name), &tool).expect("the tool can be copied");
    for path in [dir, &tool] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod works");
    }
    tool
}

/// A private folder (root's, 0700) that goes away with the value. Under `TMPDIR` or `/tmp`.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ncb-test-").tempdir().expect("a temporary folder")
}

/// What a tool did.
#[derive(Debug)]
pub struct Ran {
    /// Exit code (128+N if a signal ended it).
    pub code: i32,
    /// Its status object, checked against `docs/status.schema.json`; null for usage errors and `--help`.
    pub json: Value,
    /// What it told people.
    pub stderr: String,
}

impl Ran {
    /// Asserts the exit code and says everything if it is another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "stderr:\n{}\njson: {:#}", self.stderr, self.json);
        self
    }
}

/// Runs a command and reads its status object. Exit code 2 with empty stdout is a usage error.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    judge(command.stdin(Stdio::null()).output().expect("the command starts"))
}

/// Runs a built tool with arguments.
#[expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]
#[track_caller]
pub fn tool<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Ran {
    run(Command::new(bin(name)).args(args))
}

/// Reads what a command printed; panics unless stdout ends in exactly one valid status object.
#[track_caller]
pub fn judge(output: Output) -> Ran {
    use std::os::unix::process::ExitStatusExt as _;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code =
        output.status.code().unwrap_or_else(|| 128 + output.status.signal().expect("ended by a signal"));
    let stdout = String::from_utf8(output.stdout).expect("stdout is UTF-8");
    if stdout.is_empty() && (code == 2 || code == 137) {
        return Ran { code, json: Value::Null, stderr };
    }
    let line = stdout
        .strip_suffix('\n')
        .unwrap_or_else(|| panic!("stdout does not end in a newline: {stdout:?}\n{stderr}"));
    assert!(!line.contains('\n'), "more than one line on stdout: {stdout}");
    let json: Value =
        serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}\n{stderr}"));
    check_status(&json);
    assert_eq!(json["exit_code"], code, "exit_code is not the exit code: {json:#}\n{stderr}");
    Ran { code, json, stderr }
}

/// Panics unless `object` keeps the contract in `docs/status.schema.json`.
#[track_caller]
pub fn check_status(object: &Value) {
    let schema =
        std::fs::read_to_string(repo().join("docs/status.schema.json")).expect("the schema is there");
    let schema: Value = serde_json::from_str(&schema).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let errors: Vec<String> =
        validator.iter_errors(object).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "the status object breaks its schema:\n{}\n{object:#}", errors.join("\n"));
}

/// Callers that leave the process of a tool in an odd state: what it is, and what the shell and then perl do
/// before they become the tool.
pub const ODD_CALLERS: [(&str, &str, &str); 9] = [
    ("ignores SIGCHLD", "", "$SIG{CHLD} = 'IGNORE';"),
    ("blocks signals", "", "sigprocmask(SIG_BLOCK, POSIX::SigSet->new(1 .. 31));"),
    ("has an alarm set", "", "alarm(1);"),
    ("allows no file any size", "ulimit -S -f 0;", ""),
    ("allows few descriptors", "ulimit -S -n 20;", ""),
    ("has an umask that takes everything", "umask 0777;", ""),
    ("is in a folder that is gone", "cd \"$(mktemp -d)\" && rmdir \"$PWD\";", ""),
    (
        "leaves descriptors open",
        "",
        "$^F = 100; for (1 .. 50) { open(my $f, '<', '/etc/passwd'); push(@f, $f) }",
    ),
    ("has a full disk for stderr", "exec 2>/dev/full;", ""),
];

/// `command` as one of [`ODD_CALLERS`] starts it.
#[expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]
pub fn oddly(command: &Command, (_, shell, perl): (&str, &str, &str)) -> Command {
    let mut odd = Command::new("sh");
    odd.args(["-c", &format!("{shell} exec \"$@\""), "sh"]);
    odd.args(["perl", "-e", &format!("use POSIX; {perl} exec {{ $ARGV[0] }} @ARGV;")]);
    odd.arg(command.get_program()).args(command.get_args());
    for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
        odd.env_remove(name);
    }
    odd
}

/// Writes an executable script.
pub fn script(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the script can be written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod works");
}
