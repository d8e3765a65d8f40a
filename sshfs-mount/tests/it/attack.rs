//! Somebody with an account of this machine, or with a sudo rule of fixed words: what he plants, and what he leaves to us.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{ODD_CALLERS, bin, oddly, run};

use crate::world::{World, alive, eventually};

#[track_caller]
fn sh(world: &World, script: &str) -> String {
    let out = Command::new("sh").args(["-euc", script]).current_dir(world.path()).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Our program, where an ordinary account can reach it.
fn for_all() -> (tempfile::TempDir, PathBuf) {
    let dir = testkit::scratch();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let program = dir.path().join("sshfs-mount");
    std::fs::copy(bin("sshfs-mount"), &program).unwrap();
    (dir, program)
}

const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

#[test]
fn whatever_its_caller_left_it_it_mounts_and_unmounts() {
    let world = World::new();
    for caller in ODD_CALLERS {
        for action in ["mount", "status", "unmount"] {
            let ran = run(&mut oddly(&world.command(action, &[]), caller));
            assert_eq!(ran.code, 0, "a caller that {}: {action}: {}\n{}", caller.0, ran.stderr, ran.json);
        }
        world.is_clean();
    }
    // Standard streams that are closed: no file of ours gets one of their numbers and what is said to it.
    for action in ["mount", "unmount"] {
        let mut closed = oddly(&world.command(action, &[]), ("", "umask 0; exec <&- >&- 2>&-;", ""));
        assert_eq!(closed.stdin(Stdio::null()).status().unwrap().code(), Some(0), "{action}");
    }
    world.is_clean();
    // What it starts lives on with nothing of the caller's: a lock or a pipe he waits for would never come free.
    let mut leaky = oddly(
        &world.command("mount", &[]),
        ("", "umask 0;", "$^F = 100; open(my $f, '>', \"/dev/null\") for 1 .. 9;"),
    );
    run(&mut leaky).expect(0);
    let pid = world.process("sshfs");
    let open = sh(&world, &format!("ls -l /proc/{pid}/fd"));
    assert!(open.lines().filter(|l| l.contains("/dev/null") && l.contains(" -> ")).count() <= 3, "{open}");
    assert_eq!(sh(&world, "find run -maxdepth 1 ! -type l -perm /077 ! -path run/s3"), "");
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}

#[test]
fn the_environment_and_the_folder_of_its_caller_lead_nowhere() {
    let world = World::new();
    sh(
        &world,
        "mkdir -m 1777 evil; cd evil
        for p in sshfs ssh umount mount stat fusermount3 fusermount sshfs-mount; do
            printf '#!/bin/sh\ntouch %s/hit\n' $PWD >$p; chmod 755 $p
        done; ln -s /etc home.toml; chown -R nobody: .; ls -A | sort >../planted",
    );
    let evil = world.path().join("evil");
    for action in ["mount", "status", "unmount"] {
        let mut here = world.command(action, &[]);
        here.current_dir(&evil).env("PATH", &evil).env("TMPDIR", &evil).env("HOME", &evil).env("IFS", "/");
        here.env("LD_LIBRARY_PATH", &evil)
            .env("SSH_ASKPASS", evil.join("ssh"))
            .env("SSH_AUTH_SOCK", evil.join("x"));
        here.env("SSH_ASKPASS_REQUIRE", "force")
            .env("DISPLAY", ":9")
            .env("FUSERMOUNT_PROG", evil.join("fusermount"));
        run(&mut here).expect(0);
    }
    sh(&world, "cd evil; ls -A | sort | cmp - ../planted");
    world.is_clean();
}

#[test]
fn another_account_neither_sees_s3_nor_ends_it_nor_becomes_root_by_the_hidden_action() {
    let world = World::new();
    let (_dir, program) = for_all();
    let sshfs = world.mount(&[]);
    std::fs::write(world.near().join("f"), "secret").unwrap();
    // Even where every folder above is open to all, the mount is root's.
    sh(&world, "chmod 755 . run");
    let near = world.near().display().to_string();
    let as_nobody = |words: &[&str]| Command::new("setpriv").args(NOBODY).args(words).output().unwrap();
    for words in [
        &["ls", &near][..],
        &["cat", &format!("{near}/f")],
        &["umount", &near],
        &["fusermount3", "-u", &near],
    ] {
        assert!(!as_nobody(words).status.success(), "{words:?}");
    }
    assert!(!as_nobody(&["kill", "-KILL", &sshfs.to_string()]).status.success());
    sh(&world, "chmod 700 run");
    let program = program.to_str().unwrap();
    for action in ["mount", "unmount", "status"] {
        let said =
            as_nobody(&[program, action, "--config", world.path().join("home.toml").to_str().unwrap()]);
        assert!([77, 78].contains(&said.status.code().unwrap()), "{action}: {:?}", said.status);
    }
    // The relay writes its numbers with the caller's rights, and follows nothing.
    sh(&world, "echo precious >victim; chmod 600 victim; mkdir -m 777 open; ln -s ../victim open/wire");
    for counter in ["victim", "open/wire"] {
        let counter = world.path().join(counter).display().to_string();
        let said = as_nobody(&[
            program,
            "relay",
            "--counter",
            &counter,
            "--connect-timeout",
            "2",
            "--",
            "127.0.0.1",
            "1",
        ]);
        assert!(!said.status.success());
    }
    let mut root = Command::new(bin("sshfs-mount"));
    let wire = world.path().join("open/wire");
    root.arg("relay").arg("--counter").arg(wire).args(["--connect-timeout", "2", "--", "127.0.0.1"]);
    let port = world.sshd.port.to_string();
    assert!(!root.arg(port).stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success());
    sh(&world, "grep -qx precious victim");
    assert!(alive(sshfs));
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}

#[test]
fn what_is_planted_where_it_keeps_its_records() {
    let world = World::new();
    sh(&world, "mkdir -m 700 run state; echo precious >victim; chmod 600 victim");
    for (spoil, mend) in [
        ("chown nobody run", "chown root run"),
        ("chmod 770 run", "chmod 700 run"),
        ("mv run r; ln -s r run", "rm run; mv r run"),
    ] {
        sh(&world, spoil);
        for action in ["mount", "status", "unmount"] {
            world.run(action, &[]).expect(77);
        }
        sh(&world, mend);
    }
    for file in ["run/s3.json", "run/s3.wire", "run/s3.lock"] {
        for plant in ["ln -s ../victim", "mkfifo", "mkdir", "ln -s /dev/zero", "ln victim"] {
            sh(&world, &format!("rm -rf {file}; {plant} {file}"));
            for action in ["status", "mount", "unmount"] {
                // It may do without the record, or refuse; it does not follow, nor wait.
                let ran = world.run(action, &[]);
                assert!(
                    [0, 1, 77, 78].contains(&ran.code),
                    "{plant} {file} {action}: {} {}",
                    ran.code,
                    ran.stderr
                );
            }
            sh(&world, &format!("rm -rf {file}"));
            world.run("unmount", &[]).expect(0);
            // The lock file says who holds it: by a second name that is what a victim would say, too.
            if !(plant == "ln victim" && file == "run/s3.lock") {
                assert_eq!(sh(&world, "cat victim; stat -c %a victim"), "precious\n600", "{plant} {file}");
            }
        }
    }
    eventually("nothing is left", || world.processes().is_empty());
    world.is_clean();
}

#[test]
fn signals_at_any_moment_leave_nothing_or_a_whole_mount() {
    let world = World::new();
    for (n, wait) in [0, 20, 60, 150, 300, 600].into_iter().enumerate() {
        let child = world.spawn("mount", &[]);
        std::thread::sleep(Duration::from_millis(wait));
        for name in ["WINCH", "PIPE", "HUP", "INT", "TERM"].iter().skip(n % 2) {
            Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).output().unwrap();
        }
        child.wait_with_output().unwrap();
        let state = world.state();
        assert!(["unmounted", "healthy", "dead"].contains(&state.as_str()), "{state}");
        world.run("unmount", &[]).expect(0);
        world.is_clean();
    }
}
