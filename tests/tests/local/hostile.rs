//! A caller whose environment is made to mislead, and neighbours that plant things: a night among them is as any other.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::{Command, Stdio};

use testkit::run;

use crate::world::World;

/// Programs that the night runs, and what shells and interpreters would read.
const PROGRAMS: [&str; 16] = [
    "php",
    "psql",
    "pg_dump",
    "pg_restore",
    "rsync",
    "ssh",
    "sudo",
    "jq",
    "date",
    "flock",
    "mktemp",
    "sh",
    "id",
    "cat",
    "nc-maint",
    "cp",
];

#[test]
fn a_night_runs_nothing_that_its_caller_names() {
    let world = World::new("hostile_caller");
    let evil = world.path("evil");
    std::fs::create_dir(&evil).unwrap();
    let ran = world.path("ran");
    let text = format!("#!/bin/sh\necho \"$0 $*\" >>'{}'\nexit 1\n", ran.display());
    for program in PROGRAMS {
        testkit::script(&evil.join(program), &text);
    }
    for name in ["rc", ".psqlrc", ".bashrc", ".profile", ".ssh-config"] {
        testkit::script(&evil.join(name), &text);
    }
    // What PHP and the database's clients would read.
    std::fs::write(
        evil.join("php.ini"),
        format!("auto_prepend_file = {}\n", evil.join("prepend.php").display()),
    )
    .unwrap();
    std::fs::write(evil.join("prepend.php"), format!("<?php file_put_contents('{}', 'php');", ran.display()))
        .unwrap();
    std::fs::write(evil.join("pg_service.conf"), "[x]\nhost=/nowhere\n").unwrap();
    std::fs::write(evil.join(".pgpass"), "*:*:*:*:wrong\n").unwrap();
    let at = |name: &str| evil.join(name).display().to_string();
    let dir = evil.display().to_string();
    // TMPDIR is a folder of somebody else, open to all.
    let temporary = world.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o777)).unwrap();
    chown(&temporary, Some(65534), Some(65534)).unwrap();
    let mut command = world.backup();
    for (name, value) in [
        ("PATH", format!("{dir}:/usr/bin:/bin")),
        ("HOME", dir.clone()),
        ("TMPDIR", temporary.display().to_string()),
        ("IFS", "/:-ae".into()),
        ("ENV", at("rc")),
        ("BASH_ENV", at("rc")),
        ("CDPATH", dir.clone()),
        ("PS4", format!("$(touch '{}')", ran.display())),
        ("LANG", "tr_TR.UTF-8".into()),
        ("LC_ALL", "de_DE.UTF-8".into()),
        ("LOCPATH", dir.clone()),
        ("NLSPATH", at("%N")),
        ("LANGUAGE", "de".into()),
        ("TZ", format!(":{dir}/zone")),
        ("POSIXLY_CORRECT", "1".into()),
        ("PGHOST", "/nowhere".into()),
        ("PGPORT", "1".into()),
        ("PGUSER", "nobody".into()),
        ("PGDATABASE", "template1".into()),
        ("PGOPTIONS", "-c statement_timeout=1".into()),
        ("PGSERVICE", "x".into()),
        ("PGSERVICEFILE", at("pg_service.conf")),
        ("PGPASSFILE", at(".pgpass")),
        ("PGSSLMODE", "require".into()),
        ("PSQLRC", at(".psqlrc")),
        ("PSQL_PAGER", at("rc")),
        ("PHPRC", dir.clone()),
        ("PHP_INI_SCAN_DIR", dir.clone()),
        ("RSYNC_RSH", at("ssh")),
        ("RSYNC_CONNECT_PROG", at("rc")),
        ("RSYNC_PASSWORD", "x".into()),
        ("RSYNC_PARTIAL_DIR", at("partial")),
        ("SSH_AUTH_SOCK", at("agent")),
        ("SSH_ASKPASS", at("rc")),
        ("SSH_ASKPASS_REQUIRE", "force".into()),
        ("SUDO_ASKPASS", at("rc")),
        ("JQ_COLORS", "x".into()),
        ("TERM", "../../../evil".into()),
        ("COLUMNS", "1".into()),
        ("GCONV_PATH", dir.clone()),
        ("MALLOC_CHECK_", "3".into()),
        ("RUST_BACKTRACE", "full".into()),
        ("RUST_LOG", "trace".into()),
        ("NC_BACKUP_TOOLS", dir.clone()),
        ("XDG_CONFIG_HOME", dir.clone()),
        ("SYSTEMD_EXEC_PID", "1".into()),
        ("INVOCATION_ID", "x".into()),
        ("bin", dir.clone()),
        ("config", at("rc")),
        ("failed", "x".into()),
        ("held", "1".into()),
        ("sudo", at("sudo")),
    ] {
        command.env(name, value);
    }
    let night = run(&mut command).expect(0);
    assert_eq!(world.dates().len(), 1);
    assert_eq!(std::fs::read_to_string(&ran).unwrap_or_default(), "", "nothing of the caller's was run");
    assert!(
        night.json["data"]["steps"].as_array().unwrap().iter().all(|s| s["exit_code"] == 0),
        "{:#}",
        night.json
    );
    let left = Command::new("find").arg(&temporary).args(["-mindepth", "1"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "nothing was written to somebody else's TMPDIR");
    assert!(!world.in_maintenance());
}

#[test]
fn a_night_with_no_streams_no_umask_and_deaf_to_signals_is_private_and_whole() {
    let world = World::new("hostile_limits");
    let backup = world.backup();
    let mut odd = Command::new("bash");
    let shell = "trap '' HUP INT TERM QUIT PIPE CHLD ALRM USR1 USR2; umask 0; ulimit -c unlimited; ulimit -S -n 64; ulimit -S -f 100; \
                 d=$(mktemp -d); cd \"$d\"; rmdir \"$d\"; exec 20</etc/passwd 21</etc/group 22>>/dev/null; exec \"$@\" <&- >&- 2>&-";
    odd.args(["-c", shell, "bash"]).arg(backup.get_program()).args(backup.get_args());
    let ended = odd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert_eq!(ended.code(), Some(0));
    assert_eq!(world.dates().len(), 1);
    assert!(!world.in_maintenance());
    // What this run made is nobody else's: the state, and what describes the snapshot.
    let meta = world.store().join(&world.dates()[0]).join(".meta");
    for made in [world.path("state"), meta] {
        let open =
            Command::new("find").arg(&made).args(["-perm", "/077", "-not", "-type", "l"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&open.stdout), "", "{}", made.display());
    }
}
