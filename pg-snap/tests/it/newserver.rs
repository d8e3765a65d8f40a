//! A restore where nothing of the old server is there.
//! Nextcloud can log in afterwards, or it is said that it cannot; and what its database had that not every server or
//! role has does not stop it.

use std::process::Command;

use testkit::Ran;
use testkit::postgres::{identifier, literal};

use crate::lab::{Lab, PASSWORD, private};

fn kinds(ran: &Ran) -> Vec<String> {
    let warnings = ran.json["warnings"].as_array().unwrap();
    warnings.iter().map(|w| w["kind"].as_str().unwrap().to_owned()).collect()
}

fn drop_all(lab: &Lab) {
    let sql = format!("DROP DATABASE {};\nDROP ROLE {};", identifier(&lab.database), identifier(&lab.role));
    lab.cluster.psql("postgres", &sql);
}

#[test]
fn a_missing_role_gets_the_password_that_nextcloud_has_and_the_login_is_tried() {
    let lab = Lab::filled();
    let dump = lab.dump();
    drop_all(&lab);
    let ran = lab.restore(&lab.database, ["--from", dump.to_str().unwrap()]).expect(0);
    assert_eq!(ran.json["data"]["login"], true);
    assert_eq!(kinds(&ran), Vec::<String>::new());
    // With the password of the profile.
    lab.dump();
}

#[test]
fn a_role_that_was_made_by_hand_without_a_password_gets_it_too() {
    let lab = Lab::filled();
    let dump = lab.dump();
    lab.cluster.psql("postgres", &format!("ALTER ROLE {} PASSWORD NULL", identifier(&lab.role)));
    let ran = lab.restore(&lab.database, ["--from", dump.to_str().unwrap(), "--yes"]).expect(0);
    assert_eq!(ran.json["data"]["login"], true);
    lab.dump();
}

#[test]
fn a_login_that_fails_is_said_and_another_password_is_not_taken_away() {
    let lab = Lab::filled();
    lab.dump();
    lab.cluster.psql("postgres", &format!("ALTER ROLE {} PASSWORD 'another'", identifier(&lab.role)));
    let ran = lab.restore(&lab.database, ["--yes"]).expect(3);
    assert_eq!(
        (ran.json["data"]["login"].clone(), kinds(&ran)),
        (false.into(), vec!["login-failed".to_owned()])
    );
    testkit::script(&lab.path("password"), "another\n");
    private(&lab.path("password"));
    lab.dump();
}

#[test]
fn who_connects_comes_back_with_its_settings_even_as_a_mere_member_of_the_owner() {
    let lab = Lab::filled();
    let owner = format!("{} owner", lab.role);
    let (role, owner_id, database) = (identifier(&lab.role), identifier(&owner), identifier(&lab.database));
    lab.cluster.psql(
        &lab.database,
        &format!(
            "CREATE ROLE {owner_id} NOLOGIN; REASSIGN OWNED BY {role} TO {owner_id}; GRANT {owner_id} TO {role};
             ALTER ROLE {role} SET work_mem = '7MB'; ALTER ROLE {role} IN DATABASE {database} SET statement_timeout = '1h';"
        ),
    );
    let dump = lab.dump();
    lab.cluster
        .psql("postgres", &format!("DROP DATABASE {database}; DROP ROLE {role}; DROP ROLE {owner_id};"));
    let ran = lab.restore(&lab.database, ["--from", dump.to_str().unwrap()]).expect(0);
    assert_eq!(ran.json["data"]["login"], true, "{:#}", ran.json);
    let sql = format!(
        "SELECT pg_get_userbyid(datdba) = {}, (SELECT count(*) FROM pg_db_role_setting WHERE setrole = r.oid)
         FROM pg_database, pg_roles r WHERE datname = {} AND rolname = {}",
        literal(&owner),
        literal(&lab.database),
        literal(&lab.role)
    );
    assert_eq!(lab.cluster.psql("postgres", &sql), "t|2");
    assert_eq!(
        lab.cluster.psql(
            &lab.database,
            "SELECT DISTINCT tableowner = 'x' FROM pg_tables WHERE schemaname = 'public'"
        ),
        "f"
    );
    lab.dump();
    lab.cluster
        .psql("postgres", &format!("DROP DATABASE {database}; DROP ROLE {role}; DROP ROLE {owner_id};"));
}

#[test]
fn who_may_only_connect_to_the_administrators_database_may_do_so_again() {
    // As in the usual container: the image makes the database, and Nextcloud its own role, to which that is closed but for this.
    let lab = Lab::filled();
    let (role, database) = (identifier(&lab.role), identifier(&lab.database));
    lab.cluster.psql(
        "postgres",
        &format!(
            "ALTER DATABASE {database} OWNER TO postgres; REVOKE ALL ON DATABASE {database} FROM PUBLIC;
             GRANT CONNECT ON DATABASE {database} TO {role};"
        ),
    );
    let dump = lab.dump();
    lab.cluster.psql("postgres", &format!("DROP DATABASE {database}"));
    let ran = lab.restore(&lab.database, ["--from", dump.to_str().unwrap()]).expect(0);
    assert_eq!(ran.json["data"]["login"], true, "{:#}", ran.json);
    let sql = format!(
        "SELECT pg_get_userbyid(datdba), datacl FROM pg_database WHERE datname = {}",
        literal(&lab.database)
    );
    let told = lab.cluster.psql("postgres", &sql);
    assert!(
        told.starts_with("postgres|")
            && told.contains("=c/postgres")
            && !told.contains("{=")
            && !told.contains(",="),
        "{told}"
    );
    lab.dump();
}

/// What is set for a database, and what only a superuser can have made in it.
fn laden(lab: &Lab) {
    let database = identifier(&lab.database);
    lab.cluster.psql(
        &lab.database,
        &format!(
            "CREATE EXTENSION pg_stat_statements; CREATE EXTENSION pg_trgm;
             CREATE FUNCTION tell() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
             CREATE EVENT TRIGGER told ON ddl_command_end EXECUTE FUNCTION tell();
             ALTER FUNCTION tell() OWNER TO {};
             ALTER DATABASE {database} SET statement_timeout = '50ms';
             ALTER DATABASE {database} SET default_transaction_read_only = on;",
            identifier(&lab.role)
        ),
    );
}

#[test]
fn what_only_a_superuser_can_make_is_left_out_and_said_by_rehearsal_and_restore_alike() {
    let lab = Lab::filled();
    laden(&lab);
    lab.dump();
    let role = identifier(&lab.role);
    lab.cluster.psql("postgres", &format!("ALTER ROLE {role} CREATEDB"));
    let expected = ["left-out", "extension-left-out"];
    // By an ordinary role, and by one that an administrator makes.
    let ran = lab.run("verify", []).expect(0);
    assert_eq!(kinds(&ran), expected);
    let host = format!("{}:{}", lab.cluster.socket.display(), lab.cluster.port);
    let ran = lab.run("verify", ["--admin-user", "postgres", "--admin-host", &host]).expect(0);
    assert_eq!(kinds(&ran), expected);
    let ran = lab.restore(&lab.database, ["--yes"]).expect(3);
    assert_eq!(kinds(&ran), expected);
    let sql = "SET statement_timeout = 0;
        SELECT string_agg(extname, ',' ORDER BY extname), (SELECT count(*) FROM pg_event_trigger) FROM pg_extension";
    assert_eq!(lab.cluster.psql(&lab.database, sql), "pg_trgm,plpgsql|0");
    let sql = format!(
        "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = {}",
        literal(&lab.database)
    );
    assert_eq!(
        lab.cluster.psql("postgres", &sql),
        "{default_transaction_read_only=on,statement_timeout=50ms}"
    );
}

#[test]
fn a_tablespace_that_is_not_there_any_more_is_said_and_done_without() {
    let lab = Lab::filled();
    let space = format!("space {}", lab.role);
    let id = identifier(&space);
    let dir = tempfile::Builder::new().prefix("ncb-space-").tempdir().unwrap();
    let owner = std::process::Command::new("chown").arg("postgres").arg(dir.path()).status();
    if !owner.is_ok_and(|s| s.success()) {
        eprintln!("not tried: a tablespace needs a folder of the account postgres");
        return;
    }
    lab.cluster.psql(
        "postgres",
        &format!("CREATE TABLESPACE {id} LOCATION {}", literal(dir.path().to_str().unwrap())),
    );
    lab.cluster.psql(&lab.database, &format!("ALTER TABLE oc_share SET TABLESPACE {id}"));
    let dump = lab.dump();
    lab.drop_database(&lab.database);
    lab.cluster.psql("postgres", &format!("DROP TABLESPACE {id}"));
    let ran = lab.restore(&lab.database, ["--from", dump.to_str().unwrap()]).expect(0);
    assert_eq!(kinds(&ran), ["no-tablespaces"]);
    assert_eq!(lab.sql("SELECT count(*) FROM oc_share"), "100");
}

#[test]
fn a_dump_of_a_newer_version_is_told_from_a_damaged_one() {
    let lab = Lab::filled();
    let dump = lab.dump();
    let path = dump.join("dump.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&whole).unwrap();
    manifest["client_version"] = "99.1".into();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let toc = dump.join("files/toc.dat");
    let mut bytes = std::fs::read(&toc).unwrap();
    assert_eq!(&bytes[..5], b"PGDMP");
    // A version of the archive that none writes yet; pg_dump 17 writes 1.16.
    let written = std::mem::replace(&mut bytes[6], 99);
    std::fs::write(&toc, &bytes).unwrap();
    let ran = lab.restore(&lab.database, ["--yes"]).expect(78);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("99.1") && message.contains("pg_restore here is 1"), "{message}");
    // The same of a dump that says to be of this version is damage.
    std::fs::write(&path, &whole).unwrap();
    let ran = lab.restore(&lab.database, ["--yes"]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("damaged"));

    // A program that sets what the server does not know, if that is older than 17.
    if lab.sql("SHOW server_version_num").parse::<u32>().unwrap() >= 170_000 {
        return;
    }
    bytes[6] = written;
    std::fs::write(&toc, &bytes).unwrap();
    let newer = lab.path("pg_restore");
    testkit::script(
        &newer,
        "#!/bin/sh\ncase $1 in --version) echo 'pg_restore (PostgreSQL) 18.1' ;; *) exec pg_restore \"$@\" ;; esac\n",
    );
    let ran = lab.restore(&lab.database, ["--yes", "--pg-restore", newer.to_str().unwrap()]).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("transaction_timeout"));
}

#[test]
fn a_pg_restore_that_takes_only_regular_files_gets_them_and_what_is_not_ours_stays_as_it_is() {
    use std::os::unix::fs::MetadataExt as _;
    let lab = Lab::filled();
    let dump = lab.dump();
    // As the minor versions of 2026.
    let strict = lab.path("strict");
    testkit::script(
        &strict,
        "#!/bin/sh\nfor last; do :; done\nif [ -d \"$last\" ] && [ -n \"$(find \"$last\" -mindepth 1 ! -type f)\" ]; then\n\
         echo \"pg_restore: error: $last/toc.dat is not a regular file\" >&2; exit 1; fi\nexec pg_restore \"$@\"\n",
    );
    let strict = ["--yes", "--pg-restore", strict.to_str().unwrap()];
    lab.restore(&lab.database, strict).expect(0);

    let outside = lab.path("outside");
    assert!(Command::new("cp").arg("-a").arg(&dump).arg(&outside).status().unwrap().success());
    let toc = || std::fs::metadata(outside.join("files/toc.dat")).unwrap();
    let before = toc();
    lab.restore(&lab.database, [strict[0], strict[1], strict[2], "--from", outside.to_str().unwrap()])
        .expect(0);
    assert_eq!((toc().ctime(), toc().ctime_nsec()), (before.ctime(), before.ctime_nsec()));
    let left = std::fs::metadata(dump.join("files/toc.dat")).unwrap();
    assert_eq!(left.nlink(), 1, "its other name is gone again");
}

#[test]
fn what_lacks_is_found_by_check_with_its_cure() {
    let lab = Lab::filled();
    lab.run("check", []).expect(0);
    let ran = lab.run("check", ["--for", "drill"]).expect(77);
    assert_eq!(ran.json["data"]["findings"][0]["kind"], "no-createdb");

    let other = format!("{} reads", lab.role);
    let id = identifier(&other);
    lab.cluster.create_role(&other, PASSWORD);
    let as_other = ["--user", &*other];
    let ran = lab.run("check", as_other).expect(77);
    let findings = ran.json["data"]["findings"].as_array().unwrap();
    let kinds: Vec<&str> = findings.iter().filter_map(|f| f["kind"].as_str()).collect();
    assert_eq!(kinds, ["no-read-right", "no-large-object-right", "no-stats-right"], "{findings:#?}");
    // pg_dump says it in the server's language; so it is asked for.
    let ran = lab.run("dump", as_other).expect(77);
    assert_eq!(ran.json["error"]["hint"], format!("GRANT pg_read_all_data TO {id}"));
    for finding in &findings[..1] {
        lab.cluster.psql(&lab.database, finding["cure"].as_str().unwrap());
    }
    lab.cluster.psql(&lab.database, &format!("GRANT pg_read_all_stats, {} TO {id}", identifier(&lab.role)));
    lab.run("check", as_other).expect(0);
    lab.cluster.psql(&lab.database, &format!("DROP OWNED BY {id}; DROP ROLE {id};"));
}
