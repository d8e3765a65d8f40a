//! Every way to the server, and what is said when there is none.

use std::path::PathBuf;
use std::process::Command;

use testkit::postgres::Cluster;

use crate::lab::{Lab, PASSWORD, finish, private};

#[test]
fn every_dbhost_form_reaches_the_server() {
    let lab = Lab::empty();
    let (port, socket) = (lab.cluster.port, lab.cluster.socket.display().to_string());
    let mut forms = vec![
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("{socket}:{port}"),
        format!(":{socket}:{port}"),
    ];
    if std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|t| t.contains(" lo\n")) {
        forms.push(format!("[::1]:{port}"));
    }
    for form in forms {
        lab.profile(&form, "");
        let ran =
            lab.command("dump").env("PGHOST", "192.0.2.1").env("PGPORT", "1").env("PGUSER", "x").output();
        testkit::judge(ran.unwrap()).expect(0);
    }
}

/// The command on a machine without servers: with a loopback of its own, and an empty folder for PostgreSQL's sockets.
fn alone(command: &Command) -> Command {
    let mut alone = Command::new("unshare");
    alone.args(["--net", "--mount", "sh", "-c"]);
    alone.arg(
        "ip link set lo up; [ ! -d /run/postgresql ] || mount -t tmpfs none /run/postgresql; exec \"$@\"",
    );
    alone.arg("sh").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => alone.env(name, value),
            None => alone.env_remove(name),
        };
    }
    alone
}

#[test]
fn forms_without_a_port_mean_5432_whatever_dbport_says() {
    let lab = Lab::empty();
    // Nothing listens on 5432 where it is run, whatever servers this machine has, so each form must fail by naming where
    // it looked.
    let dir = lab.path("nosocket");
    std::fs::create_dir(&dir).unwrap();
    let dir = dir.display().to_string();
    for (form, looked) in [
        ("127.0.0.9".to_owned(), "\"127.0.0.9\", port 5432".to_owned()),
        (dir.clone(), format!("{dir}/.s.PGSQL.5432")),
        (format!(":{dir}"), format!("{dir}/.s.PGSQL.5432")),
        (format!("localhost:{dir}"), "\"localhost\"".to_owned()),
        (String::new(), "/.s.PGSQL.5432".to_owned()),
        ("no-such-host.invalid".to_owned(), "no-such-host.invalid".to_owned()),
    ] {
        lab.profile(&form, "");
        let mut ran = alone(&lab.command("dump"));
        let ran = ran.env("PGPORT", lab.cluster.port.to_string()).output().unwrap();
        let ran = testkit::judge(ran).expect(69);
        assert_eq!(ran.json["error"]["kind"], "unavailable");
        let said = ran.json["error"]["command"]["stderr_tail"].as_str().unwrap();
        assert!(said.contains(&looked), "{form}: {said}");
    }
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn what_the_server_refuses_is_told_apart() {
    let lab = Lab::empty();
    let ran = lab.run("dump", ["--name", "no such database"]).expect(78);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("--name"));
    lab.run("dump", ["--host", "a:b:c"]).expect(78);
    testkit::script(&lab.path("password"), "wrong\n");
    let ran = lab.run("dump", []).expect(77);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("readable") || ran.stderr.contains("0755")
    );
    private(&lab.path("password"));
    let ran = lab.run("dump", []).expect(77);
    assert!(ran.stderr.contains("password authentication failed"), "{}", ran.stderr);
    std::fs::write(lab.path("password"), "a\nb\n").unwrap();
    lab.run("dump", []).expect(78);
    std::fs::write(lab.path("password"), "").unwrap();
    lab.run("dump", []).expect(78);
    std::fs::remove_file(lab.path("password")).unwrap();
    lab.run("dump", []).expect(78);
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn a_role_that_may_not_read_a_table_makes_no_dump() {
    let lab = Lab::filled();
    let other = format!("{} other", lab.role);
    lab.cluster.create_role(&other, PASSWORD);
    let ran = lab.run("dump", ["--user", &other]).expect(77);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("pg_read_all_data"), "{:#}", ran.json);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("permission denied"), "{:#}", ran.json);
    assert_eq!(lab.traces(), [""; 0]);
    let role = testkit::postgres::identifier(&other);
    lab.cluster.psql("postgres", &format!("GRANT pg_read_all_data TO {role};"));
    lab.cluster
        .psql(&lab.database, "DO $$ BEGIN PERFORM lo_unlink(oid) FROM pg_largeobject_metadata; END $$;");
    lab.run("dump", ["--user", &other]).expect(0);
    lab.cluster.psql("postgres", &format!("DROP ROLE {role};"));
}

#[test]
fn an_older_client_is_refused_before_anything_is_written() {
    let lab = Lab::empty();
    let old = lab.path("old");
    testkit::script(&old, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n");
    let ran = lab.run("dump", ["--pg-dump", old.to_str().unwrap()]).expect(78);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("postgresql-client-"), "{:#}", ran.json);
    lab.run("dump", ["--pg-dump", "no-such-program"]).expect(69);
    lab.run("dump", ["--pg-dump", "/bin/true"]).expect(78);
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn the_password_is_in_no_argument_and_no_environment() {
    let lab = Lab::filled();
    // Given a table that somebody has locked, so that pg_dump has to wait.
    let blocker = lab.block();
    let child = lab.start(&mut lab.command("dump"));
    lab.wait_until_blocked();
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let Ok(bytes) = std::fs::read(entry.path().join(file)) else { continue };
            seen += usize::from(bytes.windows(18).any(|w| w == b"--format=directory"));
            for secret in [PASSWORD.as_bytes(), br"p\:a\\ss"] {
                let found = bytes.windows(secret.len()).any(|w| w == secret);
                assert!(!found, "{}/{file}: {}", entry.path().display(), String::from_utf8_lossy(&bytes));
            }
        }
    }
    assert!(seen > 0, "pg_dump was among the processes looked at");
    lab.unblock(blocker);
    let ran = finish(child).expect(0);
    assert!(!ran.json.to_string().contains("ss'w") && !ran.stderr.contains("ss'w"));
}

/// pg-snap with a stand-in for nc-maint beside it, and a profile that names only Nextcloud.
fn beside(lab: &Lab, nc_maint: &str) -> Command {
    let bin = lab.path("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let program: PathBuf = bin.join("pg-snap");
    if !program.exists() {
        std::fs::copy(testkit::bin("pg-snap"), &program).unwrap();
    }
    testkit::script(&bin.join("nc-maint"), nc_maint);
    let quote = |name: &str| serde_json::to_string(lab.path(name).to_str().unwrap()).unwrap();
    let text = format!(
        "state_dir = {}\nruntime_dir = {}\n[nextcloud]\nroot = \"/srv/nextcloud\"\n[database]\ndumps = {}\n",
        quote("state"),
        quote("run"),
        quote("dumps")
    );
    std::fs::write(lab.path("cloud.toml"), text).unwrap();
    let mut command = Command::new(program);
    command.current_dir(lab.dir.path()).args(["dump", "--config", "cloud.toml"]);
    command
}

#[test]
fn nextcloud_is_asked_for_what_nobody_said() {
    let lab = Lab::empty();
    let host = format!("{}:{}", Cluster::HOST, lab.cluster.port);
    let object = serde_json::json!({"data": {"database": {
        "type": "pgsql", "host": host, "name": lab.database, "user": lab.role}}});
    std::fs::write(lab.path("answer"), object.to_string()).unwrap();
    let secrets = serde_json::json!({"database_password": PASSWORD});
    std::fs::write(lab.path("secrets"), secrets.to_string()).unwrap();
    let (dir, log) = (lab.dir.path().display(), lab.path("asked"));
    let script = format!(
        "#!/bin/sh\necho \"$*\" >'{}'\nwhile [ \"$1\" != --secrets-to ]; do shift; done\n\
         umask 077; cat '{dir}/secrets' >\"$2\"; cat '{dir}/answer'\n",
        log.display()
    );
    let ran = testkit::run(&mut beside(&lab, &script)).expect(0);
    assert_eq!(ran.json["data"]["database"], lab.database.as_str());
    let asked = std::fs::read_to_string(log).unwrap();
    assert!(asked.starts_with("inspect cloud --config /"), "{asked}");
    let secrets_file = asked.trim().rsplit(' ').next().unwrap();
    assert!(secrets_file.starts_with(lab.path("run").to_str().unwrap()), "{asked}");
    assert!(!std::path::Path::new(secrets_file).exists(), "the password was left in {secrets_file}");
}

#[test]
fn what_nextcloud_cannot_tell_is_passed_on() {
    let lab = Lab::empty();
    let refused = r#"{"data":{},"error":{"message":"occ cannot be started","hint":"look at it"}}"#;
    let ran = testkit::run(&mut beside(&lab, &format!("#!/bin/sh\necho '{refused}'\nexit 77\n"))).expect(77);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("occ cannot be started"));
    assert_eq!(ran.json["error"]["hint"], "look at it");
    let mysql = r#"{"data":{"database":{"type":"mysql","host":"","name":"a","user":"b"}}}"#;
    let ran = testkit::run(&mut beside(&lab, &format!("#!/bin/sh\necho '{mysql}'\n"))).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("mysql"));
    testkit::run(&mut beside(&lab, "#!/bin/sh\necho nonsense\n")).expect(78);
    let mut command = beside(&lab, "");
    std::fs::remove_file(lab.path("bin/nc-maint")).unwrap();
    testkit::run(&mut command).expect(69);
    assert_eq!(lab.traces(), [""; 0]);
}
