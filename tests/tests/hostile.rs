//! Names, profiles, folders and callers made to mislead: every tool and script is asked, none is misled.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use testkit::{bin, scratch, scripts};

/// Each tool with an action that asks, and one that does.
const TOOLS: [(&str, &[&str]); 11] = [
    ("nc-maint", &["status"]),
    ("nc-maint", &["off"]),
    ("pg-snap", &["list"]),
    ("pg-snap", &["release"]),
    ("link-sync", &["list"]),
    ("link-sync", &["prune"]),
    ("sshfs-mount", &["status"]),
    ("sshfs-mount", &["unmount"]),
    ("luks-mount", &["status"]),
    ("luks-mount", &["detach"]),
    ("offsite-push", &["status"]),
];

const SCRIPTS: [(&str, &[&str]); 6] = [
    ("backup-local", &[]),
    ("drill", &[]),
    ("push-offsite", &[]),
    ("view-offsite", &[]),
    ("settle-and-hold", &[]),
    ("restore", &["--yes"]),
];

/// A command of a tool or a script, which has a minute.
fn commands() -> impl Iterator<Item = (&'static str, Command)> {
    let tools = TOOLS.iter().map(|(name, words)| (*name, bin(name), *words));
    let scripts = SCRIPTS.iter().map(|(name, words)| (*name, scripts().join(name), *words));
    tools.chain(scripts).map(|(name, path, words)| {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60"]).arg(path).args(words).stdin(Stdio::null());
        for variable in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
            command.env_remove(variable);
        }
        (name, command)
    })
}

fn scripts_need_tools(name: &str, command: &mut Command) {
    if SCRIPTS.iter().any(|(script, _)| *script == name) {
        command.arg("--bin").arg(bin("link-sync").parent().unwrap());
    }
}

/// What a command needs behind all else.
fn end(name: &str) -> &'static [&'static str] {
    if name == "view-offsite" { &["--", "true"] } else { &[] }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn no_name_of_a_profile_leads_anywhere() {
    let long = "x".repeat(5000);
    let just = "x".repeat(33);
    let names = [
        "..",
        ".",
        "../home",
        "a/b",
        "/etc/passwd",
        "-h0me",
        "--",
        "",
        "HOME",
        "ho me",
        "hömé",
        "%i",
        "$(id)",
        "*",
        "home\nx",
        "home\u{1b}[2J",
        "-",
        &just,
        &long,
    ];
    for name in names {
        for (tool, mut command) in commands() {
            scripts_need_tools(tool, &mut command);
            let output = command
                .args(["--"].iter().filter(|_| !SCRIPTS.iter().any(|s| s.0 == tool)))
                .arg(name)
                .args(end(tool))
                .output()
                .unwrap();
            let words = said(&output);
            assert_eq!(output.status.code(), Some(2), "{tool} {name:?}: {words}");
            assert!(!words.contains('\u{1b}'), "{tool} {name:?}: a command to the terminal");
        }
        let output = setup(&["--root", "/nowhere", "--profile", name]);
        // None is given: it is called home, and there is no Nextcloud.
        let code = if name.is_empty() { 78 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "setup {name:?}: {}", said(&output));
    }
    for made in ["/run/home", "/var/lib/home", "/run/nc-backup/a", "/run/nc-backup/HOME"] {
        assert!(!Path::new(made).exists(), "{made}");
    }
}

/// Nothing is asked.
fn setup(words: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60"]).arg(scripts().join("setup")).arg("--yes").arg("--bin");
    let command = command.arg(bin("link-sync").parent().unwrap()).args(words);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn what_lies_in_the_place_of_a_new_profile_is_left_as_it_is() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("nc")).unwrap();
    std::fs::write(at("nc/occ"), "<?php").unwrap();
    std::fs::write(at("victim"), "root's").unwrap();
    symlink(at("victim"), at("link")).unwrap();
    symlink(at("none"), at("dangling")).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let root = at("nc").display().to_string();
    for place in ["victim", "link", "dangling", "folder", "fifo"] {
        let place = at(place).display().to_string();
        let output = setup(&["--root", &root, "--store", "/nowhere", "--output", &place]);
        assert_eq!(output.status.code(), Some(1), "{place}: {}", said(&output));
        assert!(said(&output).contains("it is left as it is"), "{}", said(&output));
    }
    assert_eq!(std::fs::read(at("victim")).unwrap(), b"root's");
    assert!(!at("none").exists());
    assert_eq!(std::fs::read_dir(at("folder")).unwrap().count(), 0);
}

#[test]
fn no_profile_of_somebody_else_is_believed_nor_waited_for() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = format!("state_dir = \"{}\"\n", at("state").display());
    let file = |path: &Path, mode| {
        std::fs::write(path, &text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let folder = |name: &str, mode| {
        std::fs::create_dir(at(name)).unwrap();
        file(&at(name).join("home.toml"), 0o644);
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        at(name).join("home.toml")
    };
    file(&at("theirs.toml"), 0o644);
    chown(at("theirs.toml"), Some(33), Some(33)).unwrap();
    file(&at("group.toml"), 0o664);
    file(&at("all.toml"), 0o646);
    symlink(at("theirs.toml"), at("link.toml")).unwrap();
    std::fs::create_dir(at("folder.toml")).unwrap();
    assert!(Command::new("mkfifo").arg(at("fifo.toml")).status().unwrap().success());
    let held = folder("theirs", 0o755);
    chown(at("theirs"), Some(33), Some(33)).unwrap();
    let profiles = [
        at("theirs.toml"),
        at("group.toml"),
        at("all.toml"),
        at("link.toml"),
        at("folder.toml"),
        at("fifo.toml"),
        folder("group", 0o775),
        folder("all", 0o757),
        held,
        PathBuf::from("/dev/zero"),
        PathBuf::from("/proc/self/environ"),
    ];
    for profile in profiles {
        for (tool, mut command) in commands() {
            scripts_need_tools(tool, &mut command);
            let output =
                command.arg("misled").arg("--config").arg(&profile).args(end(tool)).output().unwrap();
            let code = output.status.code().unwrap_or(-1);
            assert!([77, 78, 1].contains(&code), "{tool} {}: {code}: {}", profile.display(), said(&output));
            assert!(!at("state").exists(), "{tool} {} has made a folder", profile.display());
        }
    }
}

#[test]
fn no_folder_of_somebody_else_is_written_to() {
    let dir = scratch();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| dir.path().join(name);
    let folder = |name: &str, mode| {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    folder("victim", 0o700);
    folder("theirs", 0o700);
    chown(at("theirs"), Some(33), Some(33)).unwrap();
    folder("open", 0o777);
    symlink(at("victim"), at("link")).unwrap();
    std::fs::write(at("file"), "").unwrap();
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    std::fs::create_dir_all(at("nc/config")).unwrap();
    folder("good", 0o700);
    for planted in ["theirs", "open", "link", "file", "fifo"] {
        for key in ["state_dir", "runtime_dir"] {
            let other = if key == "state_dir" { "runtime_dir" } else { "state_dir" };
            let profile = at("home.toml");
            let text = format!(
                "{key} = \"{0}/{planted}\"\n{other} = \"{0}/good\"\n[nextcloud]\nroot = \"{0}/nc\"\n[snapshot]\nstore = \"{0}/good\"\n\
                 [store]\npath = \"{0}/good\"\n[database]\nname = \"x\"\nhost = \"/nowhere\"\nuser = \"x\"\n[offsite.sshfs]\nhost = \"a@b\"\ndirectory = \"/c\"\n\
                 [offsite.luks]\nimage = \"c\"\nkey_file = \"{0}/key\"\n",
                dir.path().display()
            );
            std::fs::write(&profile, text).unwrap();
            for (name, words) in TOOLS {
                let mut command = Command::new("timeout");
                command
                    .args(["--kill-after=5", "60"])
                    .arg(bin(name))
                    .args(words)
                    .args(["misled", "--config"])
                    .arg(&profile);
                let output = command.stdin(Stdio::null()).output().unwrap();
                let code = output.status.code().unwrap_or(-1);
                assert!(code != 124 && code != 137, "{name} {words:?} waits for ever, {key} is {planted}");
            }
            for (place, mode) in [("victim", 0o700), ("theirs", 0o700), ("open", 0o777)] {
                let inside: Vec<_> =
                    std::fs::read_dir(at(place)).unwrap().map(|e| e.unwrap().file_name()).collect();
                assert!(inside.is_empty(), "{key} is {planted}, and {inside:?} was written to {place}");
                let now = std::fs::metadata(at(place)).unwrap().permissions().mode() & 0o7777;
                assert_eq!(now, mode, "{place}");
            }
        }
    }
}

/// How the caller left things, worse than [`testkit::ODD_CALLERS`].
const CALLERS: [(&str, &str); 8] = [
    ("umask 0", "umask 0"),
    ("closed streams", "exec <&- >&- 2>&-"),
    ("ignored signals", "trap '' HUP INT QUIT TERM PIPE CHLD USR1 ALRM"),
    ("no processes", "ulimit -u 0"),
    ("huge core files", "ulimit -c unlimited"),
    ("a small stack", "ulimit -s 1024"),
    ("few files", "ulimit -n 16"),
    ("a folder that is gone", "d=$(mktemp -d); cd \"$d\"; rmdir \"$d\""),
];

#[test]
fn whoever_calls_gets_an_answer_and_leaves_nothing_open() {
    let dir = scratch();
    std::fs::create_dir(dir.path().join("nc")).unwrap();
    let profile = dir.path().join("home.toml");
    std::fs::write(
        &profile,
        format!("state_dir = \"{0}/state\"\n[store]\npath = \"{0}/none\"\n", dir.path().display()),
    )
    .unwrap();
    for (what, shell) in CALLERS {
        for (tool, mut command) in commands() {
            scripts_need_tools(tool, &mut command);
            command.arg("misled").arg("--config").arg(&profile).args(end(tool));
            let mut odd = Command::new("bash");
            odd.args(["-c", &format!("{shell}; exec \"$@\""), "bash"])
                .arg(command.get_program())
                .args(command.get_args());
            for variable in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
                odd.env_remove(variable);
            }
            let output = odd.stdin(Stdio::null()).output().unwrap();
            let code = output.status.code().unwrap_or(-1);
            assert!([0, 1, 69, 77, 78].contains(&code), "{tool}, {what}: {code}: {}", said(&output));
            let open = Command::new("find")
                .arg(dir.path())
                .args(["-mindepth", "1", "-perm", "/022", "-not", "-type", "l"])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&open.stdout), "", "{tool}, {what}");
        }
    }
}
