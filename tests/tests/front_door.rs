//! `nc-backup`, the one command in /usr/bin: what it starts, from where, and what it says where there is nothing to start.
#![expect(clippy::disallowed_methods, reason = "tests start the scripts as their users do")]

use std::path::Path;
use std::process::{Command, Output};

use testkit::{bin, scratch, script, scripts};

fn door(at: &Path, words: &[&str]) -> Output {
    Command::new(at).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Its table: verb, words that it starts, what for.
fn verbs() -> Vec<(String, String, String)> {
    let source = std::fs::read_to_string(scripts().join("nc-backup")).unwrap();
    let table = source.split("<<'VERBS'\n").nth(1).unwrap().split("\nVERBS\n").next().unwrap();
    let row = |line: &str| {
        let mut parts = line.split('|').map(str::to_owned);
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
    };
    table.lines().map(row).collect()
}

/// A folder with it, and in the place of all that it starts something that says how it was started.
fn recorders() -> tempfile::TempDir {
    let dir = scratch();
    for file in ["nc-backup", "lib.sh"] {
        std::fs::copy(scripts().join(file), dir.path().join(file)).unwrap();
    }
    for (_, words, _) in verbs() {
        let program = dir.path().join(words.split(' ').next().unwrap());
        script(
            &program,
            "#!/bin/sh\nprintf '%s' \"${0##*/}\"; printf ' <%s>' \"$@\"; echo; echo \"$PATH\"; exit 75\n",
        );
    }
    dir
}

#[test]
fn every_verb_starts_a_program_that_is_installed_and_has_a_line_on_the_page() {
    let page = text(&door(&scripts().join("nc-backup"), &["--help"]).stdout);
    let install = std::fs::read_to_string(scripts().join("install")).unwrap();
    let installed = install.lines().find_map(|l| l.strip_prefix("scripts=")).unwrap();
    assert!(verbs().len() > 11);
    for (verb, words, what) in verbs() {
        assert!(page.lines().any(|l| l.starts_with(&format!("  {verb} ")) && l.ends_with(&what)), "{verb}");
        match words.split_once(' ').filter(|(_, action)| !action.starts_with('-')) {
            None => {
                let script = words.split(' ').next().unwrap();
                assert!(
                    installed.trim_matches('\'').split(' ').any(|s| s == script),
                    "{script} is not installed"
                );
                assert!(scripts().join(script).exists(), "{script}");
            }
            Some((tool, action)) => {
                let help = Command::new(bin(tool)).args([action, "--help"]).output().unwrap();
                assert!(help.status.success(), "{words}: {}", text(&help.stderr));
            }
        }
    }
    assert!(page.lines().all(|l| l.chars().count() <= 80), "{page}");
    // Without a word, it is the page, too; but that is no answer.
    let none = door(&scripts().join("nc-backup"), &[]);
    assert_eq!((none.status.code(), text(&none.stderr), none.stdout.len()), (Some(2), page, 0));
}

#[test]
fn it_hands_on_the_arguments_as_they_are_and_the_exit_code_with_its_own_path() {
    let dir = recorders();
    let at = dir.path().join("nc-backup");
    let odd = ["home", "--x", "two words", "", "*", "-h"];
    for (verb, words, _) in verbs() {
        if verb.contains(' ') {
            continue;
        }
        // A program of the caller's own is never what it takes for one of the system.
        let mut command = Command::new(&at);
        let ran = command.arg(&verb).args(odd).env("PATH", dir.path()).output().unwrap();
        let mut expected = words.split(' ').map(str::to_owned);
        let program = expected.next().unwrap();
        let all: String = expected.chain(odd.map(str::to_owned)).map(|w| format!(" <{w}>")).collect();
        let clean = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(text(&ran.stdout), format!("{program}{all}\n{clean}\n"), "{}", text(&ran.stderr));
        assert_eq!(ran.status.code(), Some(75));
        // `help VERB` asks the program.
        let help = door(&at, &["help", &verb]);
        assert!(text(&help.stdout).contains(" <--help>\n"), "{}", text(&help.stdout));
    }
}

#[test]
fn restore_is_the_whole_instance_unless_a_part_of_it_is_named() {
    let dir = recorders();
    let at = dir.path().join("nc-backup");
    let started = |words: &[&str]| text(&door(&at, words).stdout).lines().next().unwrap().to_owned();
    assert_eq!(started(&["restore", "home", "--date", "latest"]), "restore <home> <--date> <latest>");
    for part in ["--path=a/files/b", "--user", "--source=html", "--to", "--in-place"] {
        assert_eq!(started(&["restore", "home", part]), format!("link-sync <restore> <home> <{part}>"));
    }
}

#[test]
fn a_verb_that_is_not_there_is_told_with_the_nearest_ones() {
    let at = scripts().join("nc-backup");
    for (word, says) in [
        ("lst", "there is no verb 'lst': did you mean list? "),
        ("ver", "did you mean view or verify? "),
        ("bakcup", "did you mean backup? "),
        ("snapshots", "there is no verb 'snapshots': there are setup add-store "),
        ("restore --path", "there is no verb 'restore --path': "),
        ("\u{1b}[31mx", "there is no verb '?[31mx': there are "),
        ("--profile", "the verb comes first, not '--profile' "),
    ] {
        let ran = door(&at, &[word, "home"]);
        assert_eq!((ran.status.code(), ran.stdout.len()), (Some(2), 0), "{word}");
        assert!(text(&ran.stderr).contains(says), "{word}: {}", text(&ran.stderr));
    }
    // And a program that is not there, as any tool tells it.
    let dir = recorders();
    std::fs::remove_file(dir.path().join("drill")).unwrap();
    let object = testkit::judge(door(&dir.path().join("nc-backup"), &["drill", "home"])).expect(69).json;
    assert!(object["error"]["message"].as_str().unwrap().contains("/drill is not there"), "{object}");
}

#[test]
fn installed_it_is_a_link_in_usr_bin_that_finds_the_scripts() {
    let dir = scratch();
    let (built, root) = (dir.path().join("built"), dir.path().join("root"));
    std::fs::create_dir(&built).unwrap();
    for tool in ["nc-maint", "pg-snap", "link-sync", "sshfs-mount", "luks-mount", "offsite-push"] {
        std::fs::copy("/bin/true", built.join(tool)).unwrap();
    }
    let install = |more: &[&str]| {
        let mut install = Command::new(scripts().join("install"));
        let ran = install.env("DESTDIR", &root).arg("--bin").arg(&built).args(more).output().unwrap();
        assert!(ran.status.success(), "{}", text(&ran.stderr));
    };
    install(&[]);
    let at = root.join("usr/bin/nc-backup");
    assert_eq!(std::fs::read_link(&at).unwrap(), Path::new("../lib/nc-backup/nc-backup"));
    let help = text(&door(&at, &["backup", "--help"]).stdout);
    assert!(help.contains("backup-local PROFILE"), "{help}");
    install(&[]);
    install(&["--remove"]);
    assert!(at.symlink_metadata().is_err() && !root.join("usr/lib/nc-backup").exists());
}
