//! Debian's own rules of who may connect: over the socket only the account that is named like the role.

use std::path::Path;
use std::process::Command;

use testkit::postgres::Cluster;

use crate::lab::Lab;

/// A cluster with Debian's pg_hba.conf. Needs root, who alone may become postgres.
fn debians() -> Cluster {
    let cluster = Cluster::start();
    let folder = cluster.psql("postgres", "SHOW data_directory");
    cluster.psql("postgres", "ALTER SYSTEM SET lc_messages = 'C'");
    let rules = "local all postgres peer\nlocal all all peer\nhost all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(Path::new(&folder).join("pg_hba.conf"), rules).unwrap();
    cluster.psql("postgres", "SELECT pg_reload_conf()");
    cluster
}

/// SQL as the account postgres.
fn sql(cluster: &Cluster, sql: &str) -> String {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "postgres",
        "--regid",
        "postgres",
        "--init-groups",
        "psql",
        "-XqAt",
        "-d",
        "postgres",
    ]);
    command.arg("-h").arg(&cluster.socket).args(["-p", &cluster.port.to_string(), "-c", sql]);
    let output = command.current_dir("/").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn root_restores_and_rehearses_as_postgres_over_the_socket() {
    let cluster = debians();
    let lab = Lab::filled();
    let dump = lab.dump();
    let host = format!("{}:{}", cluster.socket.display(), cluster.port);
    let from = ["--from", dump.to_str().unwrap(), "--admin-user", "postgres", "--admin-host", &host];
    // A role that is not there is made, and not asked for an account.
    let root = ["--from", from[1], "--admin-user", "root", "--admin-host", &host];
    let ran = testkit::run(lab.command("verify").args(root)).expect(77);
    assert!(ran.json["error"]["hint"].to_string().contains("createuser --createdb root"), "{:?}", ran.json);
    testkit::run(lab.command("verify").args(from)).expect(0);
    let ran = testkit::run(lab.command("restore").args(from).args(["--database", "cloud"])).expect(0);
    assert_eq!(ran.json["data"]["roles_created"][0], lab.role.as_str());
    assert_eq!(sql(&cluster, "SELECT count(*) FROM pg_database WHERE datname = 'cloud'"), "1");
    let ran = testkit::run(lab.command("drop-replaced").args([
        "--admin-user",
        "postgres",
        "--admin-host",
        &host,
        "--database",
        "cloud",
    ]));
    assert_eq!(ran.code, 78, "it is asked, and is none that was kept");
}

#[test]
fn a_role_that_comes_by_its_account_gets_the_cure_for_dumps() {
    let cluster = debians();
    sql(&cluster, "CREATE ROLE \"www-data\" LOGIN");
    sql(&cluster, "CREATE DATABASE nextcloud OWNER \"www-data\"");
    let lab = Lab::empty();
    let host = format!("{}:{}", cluster.socket.display(), cluster.port);
    let text = std::fs::read_to_string(lab.path("home.toml")).unwrap();
    let without: String =
        text.lines().filter(|l| !l.starts_with("password_file")).map(|l| format!("{l}\n")).collect();
    std::fs::write(lab.path("home.toml"), without).unwrap();
    let args = ["--host", &host, "--user", "www-data", "--name", "nextcloud"];
    for action in ["check", "dump"] {
        let ran = testkit::run(lab.command(action).args(args)).expect(77);
        let hint = ran.json["error"]["hint"].as_str().unwrap();
        assert!(hint.contains("CREATE ROLE root LOGIN") && hint.contains("user = \"root\""), "{hint}");
    }
    // It is a cure.
    sql(&cluster, "CREATE ROLE root LOGIN");
    sql(&cluster, "GRANT pg_read_all_data, pg_read_all_stats TO root");
    let args = ["--host", &host, "--user", "root", "--name", "nextcloud"];
    testkit::run(lab.command("check").args(args)).expect(0);
    testkit::run(lab.command("dump").args(args)).expect(0);
}
