//! A restore replaces a database wholly or leaves it as it was.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::postgres::identifier;

use crate::lab::{Lab, PASSWORD, assert_same, content, finish, wait_for};

#[test]
fn an_existing_database_is_replaced_only_when_told_even_while_in_use() {
    let lab = Lab::filled();
    let before = content(&lab.cluster, &lab.database);
    lab.dump();
    lab.sql("DELETE FROM oc_share; CREATE TABLE later (x int);");
    let after = content(&lab.cluster, &lab.database);
    let ran = lab.restore(&lab.database, []).expect(1);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("--yes"));
    assert_same(&content(&lab.cluster, &lab.database), &after);

    let blocker = lab.block();
    let ran = lab.restore(&lab.database, ["--yes"]).expect(0);
    assert_eq!(ran.json["data"]["replaced"], true);
    assert_same(&content(&lab.cluster, &lab.database), &before);
    assert_eq!(lab.temporary(&lab.database), "");
    assert!(!blocker.wait_with_output().unwrap().status.success(), "the old session was ended");
}

#[test]
fn what_is_replaced_can_be_kept_and_dropped_later() {
    let lab = Lab::filled();
    lab.dump();
    lab.sql("CREATE TABLE later (x int);");
    let after = content(&lab.cluster, &lab.database);
    let ran = lab.restore(&lab.database, ["--yes", "--dry-run"]).expect(0);
    assert_eq!(ran.json["changed"], false);
    assert_same(&content(&lab.cluster, &lab.database), &after);

    let ran = lab.restore(&lab.database, ["--yes", "--keep-replaced"]).expect(0);
    let kept = ran.json["data"]["kept_database"].as_str().unwrap().to_owned();
    assert_same(&content(&lab.cluster, &kept), &after);
    // No later restore takes it for its own, nor does anybody drop what no restore has kept.
    lab.restore(&lab.database, ["--yes"]).expect(0);
    assert!(lab.exists(&kept));
    lab.run("drop-replaced", ["--database", &lab.database]).expect(78);
    let other = format!("{}_pgsnap_other", lab.database);
    lab.cluster.create_database(&other, &lab.role);
    lab.run("drop-replaced", ["--database", &other]).expect(78);
    lab.drop_database(&other);
    assert_eq!(lab.run("drop-replaced", ["--database", &kept]).expect(0).json["changed"], true);
    assert!(!lab.exists(&kept));
    assert_eq!(lab.run("drop-replaced", ["--database", &kept]).expect(0).json["changed"], false);
}

#[test]
fn an_sql_error_in_the_middle_leaves_the_old_database() {
    let lab = Lab::filled();
    // A rule that the rows already there break: the data cannot be loaded again.
    lab.sql(
        "CREATE FUNCTION rule(int) RETURNS bool LANGUAGE sql AS 'SELECT true';\n\
         CREATE TABLE ruled (x int CHECK (rule(x))); INSERT INTO ruled VALUES (1);\n\
         CREATE OR REPLACE FUNCTION rule(int) RETURNS bool LANGUAGE sql AS 'SELECT false';",
    );
    lab.dump();
    let before = content(&lab.cluster, &lab.database);
    let ran = lab.restore(&lab.database, ["--yes"]).expect(1);
    let said = ran.json["error"]["command"]["stderr_tail"].as_str().unwrap();
    assert!(said.contains("violates check constraint"), "{said}");
    assert!(ran.stderr.contains("is as it was"), "{}", ran.stderr);
    assert_eq!(ran.json["changed"], false);
    assert_same(&content(&lab.cluster, &lab.database), &before);
    assert_eq!(lab.temporary(&lab.database), "");
}

#[test]
fn a_flipped_byte_is_found_before_the_old_database_goes() {
    let lab = Lab::filled();
    let dump = lab.dump();
    let file = dump.join("files/public.oc_filecache.dat.gz");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    let before = content(&lab.cluster, &lab.database);
    lab.restore(&lab.database, ["--yes"]).expect(1);
    assert_same(&content(&lab.cluster, &lab.database), &before);
    assert_eq!(lab.temporary(&lab.database), "");
}

#[test]
fn the_databases_own_role_can_restore_if_it_may_make_databases() {
    let lab = Lab::filled();
    lab.dump();
    let before = content(&lab.cluster, &lab.database);
    let args = ["--database", &lab.database, "--yes"];
    let ran = lab.run("restore", args).expect(77);
    let hint = ran.json["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("CREATEDB") && hint.contains("--admin-user"), "{hint}");
    assert_same(&content(&lab.cluster, &lab.database), &before);

    let role = identifier(&lab.role);
    lab.cluster.psql("postgres", &format!("ALTER ROLE {role} CREATEDB;"));
    lab.sql("DROP TABLE oc_share;");
    lab.run("restore", args).expect(0);
    assert_same(&content(&lab.cluster, &lab.database), &before);
}

#[test]
fn missing_roles_are_made_without_superuser_rights_and_with_their_passwords() {
    let lab = Lab::filled();
    let (role, reader) = (identifier(&lab.role), format!("{} reader", lab.role));
    lab.cluster.create_role(&reader, PASSWORD);
    let reader_id = identifier(&reader);
    lab.cluster.psql("postgres", &format!("ALTER ROLE {role} SUPERUSER; GRANT {reader_id} TO {role};"));
    lab.cluster.psql(&lab.database, &format!("GRANT SELECT ON oc_share TO {reader_id};"));
    let before = content(&lab.cluster, &lab.database);
    // A superuser's dump has the hashes.
    let dump = lab.dump();
    let drop =
        format!("DROP DATABASE {};\nDROP ROLE {role};\nDROP ROLE {reader_id};", identifier(&lab.database));
    lab.cluster.psql("postgres", &drop);

    let ran = lab.restore(&lab.database, ["--from", dump.to_str().unwrap()]).expect(0);
    assert_eq!(ran.json["data"]["roles_created"].as_array().unwrap().len(), 2);
    assert_same(&content(&lab.cluster, &lab.database), &before);
    let literal = testkit::postgres::literal(&lab.role);
    let sql = format!(
        "SELECT rolsuper, pg_has_role(oid, {}, 'MEMBER') FROM pg_roles WHERE rolname = {literal};",
        testkit::postgres::literal(&reader)
    );
    assert_eq!(lab.cluster.psql("postgres", &sql), "f|t");
    // The old password opens it: the role can dump again.
    lab.dump();
    lab.cluster.psql(&lab.database, &format!("DROP OWNED BY {reader_id}; DROP ROLE {reader_id};"));
}

#[test]
fn a_killed_restore_leaves_the_old_database_and_the_next_one_clears_up() {
    let lab = Lab::filled();
    lab.dump();
    let before = content(&lab.cluster, &lab.database);
    let slow = lab.path("pg_restore");
    testkit::script(
        &slow,
        "#!/bin/sh\npg_restore \"$@\" || exit\ncase $* in *--exit-on-error*) sleep 60 ;; esac\n",
    );
    let option = ["--yes", "--pg-restore", slow.to_str().unwrap()];
    // The last thing pg_restore does is to fill the materialized view.
    let full = |database: &str| {
        let sql = "SELECT count(*) FROM pg_matviews WHERE ispopulated;";
        lab.cluster.try_psql(database, sql).is_ok_and(|count| count == "1")
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let child = lab.start(lab.restore_command(&lab.database).args(option));
        wait_for("the new database is filled", || {
            let new = lab.temporary(&lab.database);
            !new.is_empty() && full(&new)
        });
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        if signal == Signal::SIGTERM {
            finish(child).expect(143);
            assert_eq!(lab.temporary(&lab.database), "");
        } else {
            child.wait_with_output().unwrap();
            assert_ne!(lab.temporary(&lab.database), "");
        }
        assert_same(&content(&lab.cluster, &lab.database), &before);
    }
    // A rehearsal, with which the next one begins, has nothing to say about it.
    let mut rehearsal = lab.command("verify");
    let host = format!("{}:{}", lab.cluster.socket.display(), lab.cluster.port);
    let ran = testkit::run(rehearsal.args(["--admin-user", "postgres", "--admin-host", &host])).expect(0);
    assert_eq!(ran.json["warnings"], serde_json::json!([]), "{:#}", ran.json);
    let ran = lab.restore(&lab.database, ["--yes"]).expect(0);
    assert!(ran.stderr.contains("an earlier restore left"), "{}", ran.stderr);
    assert_eq!(ran.json["warnings"], serde_json::json!([]), "{:#}", ran.json);
    assert_eq!(lab.temporary(&lab.database), "");
    let loaders = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'nc_backup_load_%'";
    // (Other tests' restores have theirs, in the same cluster.)
    wait_for("no role of a load is left", || lab.cluster.psql("postgres", loaders) == "0");
    assert_same(&content(&lab.cluster, &lab.database), &before);
    assert_eq!(lab.traces().len(), 1, "no scratch folder is left");
}

#[test]
fn policies_that_hide_rows_from_the_owner_hinder_neither_rehearsal_nor_restore() {
    let lab = Lab::filled();
    let table = "CREATE TABLE hidden (id int); INSERT INTO hidden VALUES (1), (2); ALTER TABLE hidden OWNER TO {}; \
        ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY;";
    lab.cluster.psql(&lab.database, &table.replace("{}", &testkit::postgres::identifier(&lab.role)));
    let bypass = |word: &str| format!("ALTER ROLE {} {word}", testkit::postgres::identifier(&lab.role));
    lab.cluster.psql("postgres", &bypass("BYPASSRLS"));
    lab.dump();
    let mut rehearsal = lab.command("verify");
    let host = format!("{}:{}", lab.cluster.socket.display(), lab.cluster.port);
    testkit::run(rehearsal.args(["--admin-user", "postgres", "--admin-host", &host])).expect(0);
    lab.restore(&lab.database, ["--yes"]).expect(0);
    // As it was.
    let sql =
        "SELECT count(*), (SELECT relforcerowsecurity FROM pg_class WHERE relname = 'hidden') FROM hidden;";
    assert_eq!(lab.cluster.psql(&lab.database, sql), "2|t");
    lab.cluster.psql("postgres", &bypass("NOBYPASSRLS"));
}

#[test]
fn one_that_is_killed_while_its_database_is_made_is_not_in_the_way_of_the_next() {
    let lab = Lab::filled();
    lab.dump();
    // One that dies right after CREATE DATABASE, before anything else is said of what that made: the statements come as digits.
    let (psql, next) = (lab.path("psql"), "434f4d4d454e54204f4e204441544142415345");
    let script = format!(
        "#!/bin/sh\ntext=$(cat)\ncase $text in *{next}*) printf '%s\\n' \"$text\" | sed '/{next}/,$d' | psql \"$@\"\n\
         kill -9 $PPID; exit 1 ;; esac\nprintf '%s\\n' \"$text\" | psql \"$@\"\n"
    );
    testkit::script(&psql, &script);
    let command = &mut lab.restore_command("fresh");
    let died = lab.start(command.args(["--psql", psql.to_str().unwrap()])).wait_with_output().unwrap();
    assert_eq!(died.status.code(), None, "{}", String::from_utf8_lossy(&died.stderr));
    assert!(lab.exists("fresh_pgsnap_new"));
    let ran = lab.restore("fresh", []).expect(0);
    assert!(ran.stderr.contains("an earlier restore left"), "{}", ran.stderr);
    assert_eq!(lab.temporary("fresh"), "");
    let limit = "SELECT datconnlimit FROM pg_database WHERE datname = 'fresh'";
    assert_eq!(lab.cluster.psql("postgres", limit), "-1");
    lab.drop_database("fresh");
}

#[test]
fn somebody_elses_database_in_the_way_is_not_dropped() {
    let lab = Lab::filled();
    lab.dump();
    let other = format!("{}_pgsnap_new", lab.database);
    lab.cluster.create_database(&other, &lab.role);
    let ran = lab.restore(&lab.database, ["--yes"]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("not ours"));
    assert!(lab.exists(&other));
    lab.drop_database(&other);
}

#[test]
fn a_dump_and_a_restore_keep_out_of_each_others_way() {
    let lab = Lab::filled();
    lab.dump();
    let slow = lab.path("pg_restore");
    testkit::script(&slow, "#!/bin/sh\ncase $* in *--exit-on-error*) sleep 60 ;; esac\npg_restore \"$@\"\n");
    let child = lab.start(lab.restore_command("kept out").args(["--pg-restore", slow.to_str().unwrap()]));
    wait_for("the restore has begun", || !lab.temporary("kept out").is_empty());
    lab.run("dump", []).expect(75);
    lab.run("prune", []).expect(75);
    lab.restore("another", []).expect(75);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    finish(child).expect(143);
    assert!(!lab.exists("kept out"));
}

#[test]
fn what_cannot_be_restored_is_said_before_anything_happens() {
    let lab = Lab::filled();
    lab.restore("copy", []).expect(1);
    let dump = lab.dump();
    lab.restore("copy", ["--date", "2001-01-01T00-00-00Z"]).expect(1);
    lab.restore("copy", ["--from", "/nowhere"]).expect(1);
    lab.restore("copy", ["--admin-database", "copy"]).expect(78);
    assert_eq!(lab.restore("copy", ["--date", "yesterday"]).code, 78);
    assert_eq!(lab.restore("postgres", []).code, 2);
    let refused = ["--database", "copy", "--host", "127.0.0.1:1"];
    lab.run("restore", refused).expect(69);
    let old = lab.path("old");
    testkit::script(&old, "#!/bin/sh\necho 'pg_restore (PostgreSQL) 9.6.24'\n");
    lab.restore("copy", ["--pg-restore", old.to_str().unwrap()]).expect(78);
    assert!(!lab.exists("copy") && dump.exists());
    let help = Command::new(testkit::bin("pg-snap")).args(["restore", "--help"]).output().unwrap();
    assert!(help.status.success());
}
