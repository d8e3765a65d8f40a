//! The guest for what needs a device mapper: `tests/vm-run`, and the tests that go there by themselves.
#![expect(clippy::disallowed_methods, reason = "tests start what they test by hand")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::guest::{self, Options};

const SMALL: Options = Options { memory: 512, seconds: 120 };

fn sh(options: Options, script: &str) -> Output {
    let _turn = guest::turn();
    guest::vm_run(options).args(["--", "sh", "-c", script]).output().expect("vm-run starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_test_that_asks_for_it_meets_a_device_mapper() {
    if guest::run_me("a_test_that_asks_for_it_meets_a_device_mapper", SMALL) {
        return;
    }
    let dir = testkit::scratch();
    let script = r#"
        set -eu
        cd "$1"
        truncate -s 32M image
        head -c 64 /dev/urandom >key
        cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file key image
        loop=$(losetup --find --show image)
        cryptsetup open --key-file key "$loop" "$2"
        mkfs.ext4 -q "/dev/mapper/$2"
        mkdir there
        mount "/dev/mapper/$2" there
        echo seen >there/file
        umount there
        cryptsetup close "$2"
        losetup -d "$loop"
    "#;
    let name = format!("ncb-test-luks-{}", std::process::id());
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(dir.path()).arg(&name);
    if !Path::new("/run/udev/control").exists() {
        command.env("DM_DISABLE_UDEV", "1");
    }
    let output = command.output().expect("sh starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_guest_has_the_built_binaries_and_a_place_for_files() {
    if guest::run_me_there("the_guest_has_the_built_binaries_and_a_place_for_files", SMALL) {
        return;
    }
    assert!(Path::new("/dev/mapper/control").exists());
    assert!(Path::new("/dev/fuse").exists());
    assert!(testkit::repo().join("tests/vm-run").exists());
    assert_eq!(std::env::var("CARGO_PKG_NAME").as_deref(), Ok("testkit"));
    let dir = testkit::scratch();
    assert!(dir.path().starts_with("/run/tmp"), "{}", dir.path().display());
    std::fs::write(dir.path().join("file"), "text").expect("it is writable");
    // Overlaid: what is written elsewhere stays here as well.
    std::fs::write("/etc/nc-backup-guest-was-here", "").expect("so is the rest");
}

#[test]
fn what_is_written_in_the_guest_does_not_reach_this_machine() {
    let output = sh(SMALL, "echo lost >/etc/nc-backup-guest-wrote && cat /etc/nc-backup-guest-wrote");
    assert_eq!(text(&output.stdout), "lost\n", "{}", text(&output.stderr));
    assert!(!Path::new("/etc/nc-backup-guest-wrote").exists());
}

#[test]
#[should_panic(expected = "there is no test that_does_not_exist")]
fn a_misspelt_name_is_an_error() {
    guest::run_me_there("that_does_not_exist", SMALL);
}

#[test]
#[should_panic(expected = "failing_helper in the guest: failed")]
fn a_failure_there_is_a_failure_here() {
    guest::run_me_there("failing_helper", SMALL);
}

#[test]
#[ignore = "fails on purpose, in the guest of a_failure_there_is_a_failure_here"]
fn failing_helper() {
    assert!(!guest::in_guest(), "as it should");
}

#[test]
fn output_exit_code_variables_and_the_shared_folder_come_through() {
    let dir = testkit::scratch();
    let _turn = guest::turn();
    let output = guest::vm_run(SMALL)
        .args(["-e", "WORDS=a  'b'", "--share"])
        .arg(dir.path())
        .args(["--", "sh", "-c", "echo \"$WORDS\"; echo loud >&2; pwd >/run/vm/pwd; exit 23"])
        .output()
        .expect("vm-run starts");
    assert_eq!(output.status.code(), Some(23), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "a  'b'\n");
    assert!(text(&output.stderr).ends_with("loud\n"), "{}", text(&output.stderr));
    let pwd = std::fs::read_to_string(dir.path().join("pwd")).expect("the guest wrote it");
    let here = std::env::current_dir().expect("a working directory");
    assert_eq!(Path::new(pwd.trim_end()), here);
}

#[test]
fn a_guest_that_takes_too_long_is_ended() {
    let begun = Instant::now();
    let output = sh(Options { memory: 512, seconds: 6 }, "sleep 100");
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert!(begun.elapsed() < Duration::from_secs(900), "{:?}", begun.elapsed());
}

#[test]
fn a_dead_guest_shows_its_console() {
    let output = sh(SMALL, "echo c >/proc/sysrq-trigger");
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("sysrq"), "{}", text(&output.stderr));
}

#[test]
fn whatever_ends_vm_run_ends_its_guest() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let _turn = guest::turn();
        let mark = format!("mark-{}-{signal}", std::process::id());
        let mut child = guest::vm_run(SMALL)
            .args(["-e", &format!("MARK={mark}"), "--", "sh", "-c", "echo up; exec sleep 100"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("vm-run starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("it can be read");
        assert_eq!(line, "up\n");
        let run = run_folder(&mark).expect("its folder");
        assert_ne!(guests(&run), 0);
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is there");
        let status = child.wait().expect("it ends");
        match signal {
            Signal::SIGKILL => assert_eq!(status.signal(), Some(9)),
            _ => assert_eq!(status.code(), Some(143)),
        }
        let begun = Instant::now();
        while guests(&run) != 0 || Path::new(&run).exists() {
            assert!(begun.elapsed() < Duration::from_secs(10), "after {signal}: {run} is still in use");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn wrong_options_start_nothing() {
    for (args, words) in [
        (vec![], "no command"),
        (vec!["-t", "soon", "true"], "not a number of seconds"),
        (vec!["-m", "1", "true"], "128 MiB"),
        (vec!["-e", "no-value", "true"], "not NAME=VALUE"),
        (vec!["--share", "/nonexistent", "true"], "no such folder"),
        (vec!["--shared", "/", "true"], "unknown option"),
    ] {
        let output =
            Command::new(testkit::repo().join("tests/vm-run")).args(&args).output().expect("vm-run starts");
        assert_eq!(output.status.code(), Some(125), "{args:?}");
        assert!(text(&output.stderr).contains(words), "{args:?}: {}", text(&output.stderr));
    }
}

/// The folder of the guest whose command has this mark.
fn run_folder(mark: &str) -> Option<String> {
    let output = Command::new("sh")
        .args(["-c", "grep -l \"$1\" \"${NCB_VM_CACHE:-/var/cache/nc-backup-vm}\"/run.*/job", "sh", mark])
        .output()
        .expect("sh starts");
    Some(text(&output.stdout).trim_end().strip_suffix("/job")?.to_owned())
}

/// How many processes have this folder in their command line.
fn guests(run: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let lines = entries.filter_map(|e| std::fs::read(e.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| text(line).contains(run)).count()
}
