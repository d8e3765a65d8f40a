//! What a role of the old server has planted in its database, or wrote into a dump, has no rights where it is restored.

use std::path::Path;

use serde_json::Value;
use testkit::postgres::{identifier, literal};

use crate::lab::Lab;

/// A role's own tables and functions that take what rights they meet: at load, at ANALYZE, and after RESET ROLE.
fn planted(lab: &Lab) {
    let (role, id) = (literal(&lab.role), identifier(&lab.role));
    lab.sql(&format!(
        r#"
CREATE FUNCTION grab(int) RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog AS $f$
BEGIN
  BEGIN
    EXECUTE 'RESET ROLE';
    EXECUTE 'RESET SESSION AUTHORIZATION';
    EXECUTE format('ALTER ROLE %I SUPERUSER', {role});
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
  RETURN $1;
END $f$;
CREATE FUNCTION grab_again(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN public.grab($1); END';
CREATE TABLE trap (a int CHECK (public.grab(a) > 0), b int DEFAULT 1);
INSERT INTO trap (a) SELECT generate_series(1, 50);
SET ROLE {id};
CREATE INDEX trap_index ON trap (public.grab_again(a));
CREATE TABLE "\! touch /tmp/planted ; :x" (a int);
COMMENT ON TABLE trap IS E'x\n\\connect postgres\n\\! id';
CREATE SCHEMA "\q ""s""";
CREATE FUNCTION unused() RETURNS text LANGUAGE sql AS 'SELECT ''\! id''';
"#
    )); // To plant it here was to run it once as the superuser of these tests.
    lab.cluster.psql("postgres", &format!("ALTER ROLE {} NOSUPERUSER", identifier(&lab.role)));
}

fn is_superuser(lab: &Lab) -> bool {
    let sql = format!("SELECT rolsuper FROM pg_roles WHERE rolname = {}", literal(&lab.role));
    lab.cluster.psql("postgres", &sql) == "t"
}

#[test]
fn what_is_in_a_dump_never_runs_as_the_administrator() {
    let lab = Lab::empty();
    planted(&lab);
    lab.dump();
    let host = format!("{}:{}", lab.cluster.socket.display(), lab.cluster.port);
    lab.run("verify", ["--admin-user", "postgres", "--admin-host", &host]).expect(0);
    assert!(!is_superuser(&lab), "the rehearsal ran it as the administrator");
    lab.restore(&lab.database, ["--yes"]).expect(0);
    assert!(!is_superuser(&lab), "the restore ran it as the administrator");
    let sql = "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'nc_backup_load_') AND NOT EXISTS
        (SELECT FROM pg_stat_activity WHERE usename = rolname)";
    // Those of other tests may just have been made.
    let left: u32 = lab.cluster.psql("postgres", sql).parse().unwrap();
    assert!(left < 8, "the roles that load are dropped: {left}");
    let owner = lab.cluster.psql(&lab.database, "SELECT tableowner FROM pg_tables WHERE tablename = 'trap'");
    assert_eq!(owner, lab.role);
}

#[test]
fn a_search_path_comes_back_as_names_whatever_they_are() {
    let lab = Lab::empty();
    let mark = lab.path("mark");
    let name = identifier(&lab.database);
    // As a role can have it: set as it is, not as ALTER DATABASE would write it.
    let odd = format!("public;\\!\\id>{}", mark.display());
    lab.sql(&format!(
        "SELECT set_config('search_path', {}, false); ALTER DATABASE {name} SET search_path FROM CURRENT;",
        literal(&odd)
    ));
    lab.dump();
    lab.restore(&lab.database, ["--yes"]).expect(0);
    assert!(!mark.exists(), "psql ran what the database held");
    let settings = |database: &str| {
        let sql = format!(
            "SELECT setconfig FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE datname = {}",
            literal(database)
        );
        lab.cluster.psql("postgres", &sql)
    };
    assert!(settings(&lab.database).contains("\\\\id>"), "{}", settings(&lab.database));

    lab.sql(&format!("ALTER DATABASE {name} SET search_path = \"$user\", public, \"od\"\"d, x\";"));
    let before = settings(&lab.database);
    lab.dump();
    lab.restore(&lab.database, ["--yes"]).expect(0);
    assert_eq!(settings(&lab.database), before);
}

/// Makes a dump look as one from before `facts.json` did.
fn as_before(dump: &Path, roles: &str, settings: &str) {
    std::fs::write(dump.join("roles.sql"), roles).unwrap();
    std::fs::write(dump.join("settings.sql"), settings).unwrap();
    let path = dump.join("dump.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["schema"] = 1.into();
    let object = manifest.as_object_mut().unwrap();
    object.remove("facts_file");
    object.insert("roles_file".into(), "roles.sql".into());
    object.insert("settings_file".into(), "settings.sql".into());
    let files = manifest["files"].as_array_mut().unwrap();
    files.retain(|f| !["facts.json", "roles.sql", "settings.sql"].iter().any(|n| f["name"] == *n));
    for (name, text) in [("roles.sql", roles), ("settings.sql", settings)] {
        files.push(serde_json::json!({"name": name, "original": null, "size_bytes": text.len()}));
    }
    std::fs::write(&path, manifest.to_string()).unwrap();
}

#[test]
fn an_older_dump_comes_back_without_its_scripts_being_run() {
    let lab = Lab::filled();
    let dump = lab.dump();
    let mark = lab.path("mark");
    let settings = format!(
        "-- Settings of and grants on the database itself. For psql -v db=NAME.\n\
         ALTER DATABASE :\"db\" SET \"search_path\" TO public;\\!\\id>{};\n\
         ALTER DATABASE :\"db\" SET \"work_mem\" TO '5MB';\n",
        mark.display()
    );
    as_before(&dump, "-- Roles.\n", &settings);
    lab.restore(&lab.database, ["--yes"]).expect(0);
    assert!(!mark.exists());
    let sql = "SELECT setting FROM pg_settings WHERE name = 'work_mem'";
    assert_eq!(lab.cluster.psql(&lab.database, sql), "5120");

    as_before(&dump, &format!("\\! id > {}\n", mark.display()), &settings);
    let ran = lab.restore(&lab.database, ["--yes"]).expect(1);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("roles.sql holds what no dump writes"), "{message}");
    assert!(!mark.exists());
}

#[test]
fn nobody_becomes_a_member_of_a_role_that_may_do_more_than_others() {
    let lab = Lab::filled();
    let dump = lab.dump();
    let path = dump.join("facts.json");
    let mut facts: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // Another program's role, which has a database of its own.
    let other = Lab::empty();
    facts["memberships"] = serde_json::json!([{"role": "postgres", "member": lab.role},
        {"role": "pg_execute_server_program", "member": lab.role}, {"role": other.role, "member": lab.role}]);
    let text = facts.to_string();
    std::fs::write(&path, &text).unwrap();
    let manifest = dump.join("dump.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    for file in value["files"].as_array_mut().unwrap() {
        if file["name"] == "facts.json" {
            file["size_bytes"] = text.len().into();
        }
    }
    std::fs::write(&manifest, value.to_string()).unwrap();
    let drop = format!("DROP DATABASE {};\nDROP ROLE {};", identifier(&lab.database), identifier(&lab.role));
    lab.cluster.psql("postgres", &drop);
    let ran = lab.restore(&lab.database, []).expect(3);
    let kinds: Vec<&str> =
        ran.json["warnings"].as_array().unwrap().iter().filter_map(|w| w["kind"].as_str()).collect();
    assert_eq!(kinds, ["membership-left-out"; 3]);
    for role in ["postgres", &other.role] {
        let sql = format!("SELECT pg_has_role({}, {}, 'MEMBER')", literal(&lab.role), literal(role));
        assert_eq!(lab.cluster.psql("postgres", &sql), "f");
    }
}

#[test]
fn what_a_role_made_never_becomes_an_administrators() {
    let lab = Lab::empty();
    // A database whose tables an administrator made, and another role's function among them, to be run with its owner's rights.
    lab.cluster.psql(
        &lab.database,
        &format!(
            "CREATE TABLE one (a int); CREATE TABLE two (a int); GRANT SELECT ON one, two TO {};",
            identifier(&lab.role)
        ),
    );
    lab.sql(
        "CREATE FUNCTION grab() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN current_user; END';
         CREATE TABLE trap (a int);",
    );
    lab.dump();
    let ran = lab.restore(&lab.database, ["--yes"]).expect(0);
    assert_eq!(ran.json["data"]["login"], true, "{:#}", ran.json);
    let sql = "SELECT DISTINCT rolname FROM pg_roles r WHERE EXISTS (SELECT FROM pg_proc WHERE proname = 'grab' AND proowner = r.oid)
        OR EXISTS (SELECT FROM pg_class WHERE relname IN ('one', 'two', 'trap') AND relowner = r.oid)";
    assert_eq!(lab.cluster.psql(&lab.database, sql), lab.role);

    // Nor where no other role is to be had.
    let everything = format!("REASSIGN OWNED BY {} TO postgres", identifier(&lab.role));
    lab.cluster.psql(&lab.database, &everything);
    lab.cluster.psql("postgres", &format!("ALTER ROLE {} CREATEROLE", identifier(&lab.role)));
    lab.cluster.psql(
        &lab.database,
        &format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}", identifier(&lab.role)),
    );
    lab.dump();
    let profile = std::fs::read_to_string(lab.path("home.toml")).unwrap();
    let unnamed =
        profile.lines().filter(|l| !l.starts_with("user")).map(|l| format!("{l}\n")).collect::<String>();
    std::fs::write(lab.path("home.toml"), unnamed).unwrap();
    let before =
        lab.cluster.psql(&lab.database, "SELECT oid FROM pg_database WHERE datname = current_database()");
    let ran = lab.restore(&lab.database, ["--yes"]).expect(77);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("user in [database]"), "{:#}", ran.json);
    let after =
        lab.cluster.psql(&lab.database, "SELECT oid FROM pg_database WHERE datname = current_database()");
    assert_eq!(after, before);
}

#[test]
fn who_can_become_an_administrator_loads_no_dump_itself() {
    let lab = Lab::empty();
    let role = identifier(&lab.role);
    lab.sql("CREATE TABLE one (a int)");
    lab.dump();
    lab.cluster.psql("postgres", &format!("ALTER ROLE {role} CREATEDB; GRANT postgres TO {role};"));
    let ran = lab.run("verify", []).expect(77);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("would run with these rights"), "{message}");
    lab.run("restore", ["--database", &lab.database, "--yes"]).expect(77);
}
