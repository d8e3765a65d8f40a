//! What a good dump is.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::Value;

use crate::lab::{Lab, assert_same, content};

fn manifest(dump: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dump.join("dump.json")).unwrap()).unwrap()
}

fn files(dump: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dump.join("files")).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_dump_says_what_it_is_and_is_private() {
    let lab = Lab::filled();
    let ran = lab.run("dump", []).expect(0);
    let data = &ran.json["data"];
    let dump = Path::new(data["path"].as_str().unwrap());
    let manifest = manifest(dump);
    assert_eq!(manifest["date"], data["date"]);
    assert_eq!(dump.file_name().unwrap().to_str(), data["date"].as_str());
    assert_eq!(manifest["database"], lab.database.as_str());
    assert_eq!(manifest["definition"]["owner"], lab.role.as_str());
    assert_eq!(manifest["definition"]["encoding"], "UTF8");
    assert_eq!(manifest["run_id"], Value::Null);
    assert_eq!(manifest["roles"], serde_json::json!([lab.role]));
    assert_eq!(manifest["role_passwords"], false, "an ordinary role may not read hashes");
    assert!(manifest["server_version"].as_str().unwrap().starts_with(|c: char| c.is_ascii_digit()));
    assert!(manifest["size_bytes"].as_u64().unwrap() > 0 && manifest["duration_ms"].as_u64().unwrap() > 0);
    assert_eq!(manifest["tables"], 10);
    let mut stack = vec![lab.dumps.clone(), dump.to_owned(), dump.join("files")];
    for dir in &stack {
        assert_eq!(std::fs::metadata(dir).unwrap().mode() & 0o7777, 0o700, "{}", dir.display());
    }
    for file in std::fs::read_dir(stack.pop().unwrap()).unwrap().chain(std::fs::read_dir(dump).unwrap()) {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o077, 0, "{}", file.path().display());
    }
    let list = lab.run("list", []).expect(0);
    assert_eq!(list.json["data"]["newest"], data["date"]);
    assert_eq!(list.json["data"]["list"][0]["state"], "complete");
    assert!(list.stderr.contains(data["date"].as_str().unwrap()), "{}", list.stderr);
}

#[test]
fn files_are_named_by_table_and_odd_names_stay_apart() {
    let lab = Lab::filled();
    let names: Vec<String> = files(&lab.dump()).into_keys().collect();
    for expected in [
        "public.oc_filecache.dat.gz",
        "public.case.dat.gz",
        "public.%43%41%53%45.dat.gz",
        "public.odd%2F%2E%2E%2F%4Eame%20%22q%22%20%3B%0Ax.dat.gz",
        "%53ch%2Eema.t%20%54%41%42%4C%45%20%44%41%54%41%20%C3%A9.dat.gz",
        "public.parts_1.dat.gz",
        "toc.dat",
    ] {
        assert!(names.iter().any(|n| n == expected), "{expected} is not among {names:#?}");
    }
    assert!(!names.iter().any(|n| n.starts_with(|c: char| c.is_ascii_digit())), "{names:#?}");
    // The list of large objects: before PostgreSQL 17 there is one, without a number.
    let lists: Vec<_> = names.iter().filter_map(|n| n.strip_prefix("blobs")?.strip_suffix(".toc")).collect();
    assert!(lists.len() == 1 && (lists[0].is_empty() || lists[0].starts_with('.')), "{names:#?}");
}

#[test]
fn an_unchanged_table_is_the_same_file_even_when_a_table_was_added_before_it() {
    let lab = Lab::filled();
    let first = lab.dump();
    lab.sql("CREATE TABLE a_new_one (x int); INSERT INTO a_new_one VALUES (1); INSERT INTO oc_share VALUES (101, 101);");
    let second = lab.dump();
    let originals = |dump: &Path| {
        let stored = manifest(dump)["files"].as_array().unwrap().clone();
        let entry = stored.iter().find(|f| f["name"] == "files/public.oc_filecache.dat.gz").unwrap();
        entry["original"].clone()
    };
    assert_ne!(originals(&first), originals(&second), "pg_dump did renumber its files");
    let (first, second) = (files(&first), files(&second));
    for (name, bytes) in &first {
        let changed = name == "toc.dat" || name == "public.oc_share.dat.gz";
        assert_eq!(second.get(name) != Some(bytes), changed, "{name}");
    }
    assert_eq!(second.len(), first.len() + 1);
}

#[test]
fn a_dump_comes_back_row_for_row_under_another_name() {
    let lab = Lab::filled();
    let db = testkit::postgres::identifier(&lab.database);
    lab.cluster.psql(
        "postgres",
        &format!(
            "ALTER DATABASE {db} SET search_path = \"$user\", public, \"Sch.ema\";\n\
             ALTER DATABASE {db} SET work_mem = '5MB';\nREVOKE CONNECT ON DATABASE {db} FROM PUBLIC;"
        ),
    );
    let before = content(&lab.cluster, &lab.database);
    assert!(before.len() > 40, "the comparison compares something: {before:#?}");
    lab.dump();
    let copy = format!("{} copy", lab.database);
    let ran = lab.restore(&copy, []).expect(0);
    assert_eq!(ran.json["data"]["replaced"], false);
    assert_same(&content(&lab.cluster, &copy), &before);
    let analyzed = "SELECT count(DISTINCT tablename) > 5 FROM pg_stats WHERE schemaname = 'public';";
    assert_eq!(lab.cluster.psql(&copy, analyzed), "t");
    assert_eq!(lab.temporary(&copy), "");
    lab.drop_database(&copy);
}

#[test]
fn other_encodings_and_locales_come_back_as_they_were() {
    let lab = Lab::empty();
    let odd = format!("{} latin", lab.database);
    let (db, role) = (testkit::postgres::identifier(&odd), testkit::postgres::identifier(&lab.role));
    lab.cluster.psql(
        "postgres",
        &format!("CREATE DATABASE {db} OWNER {role} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';"),
    );
    lab.cluster.psql(
        &odd,
        &format!("SET ROLE {role}; CREATE TABLE \"tä\" (x text); INSERT INTO \"tä\" VALUES ('ÿé');"),
    );
    let before = content(&lab.cluster, &odd);
    lab.run("dump", ["--name", &odd]).expect(0);
    lab.restore(&odd, ["--yes"]).expect(0);
    assert_same(&content(&lab.cluster, &odd), &before);
    lab.drop_database(&odd);
}

#[test]
fn an_icu_database_comes_back_as_one() {
    let lab = Lab::empty();
    let name = format!("{} icu", lab.database);
    let (db, role) = (testkit::postgres::identifier(&name), testkit::postgres::identifier(&lab.role));
    lab.cluster.psql(
        "postgres",
        &format!("CREATE DATABASE {db} OWNER {role} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de';"),
    );
    let locale = || {
        let name = testkit::postgres::literal(&name);
        let sql = format!(
            "SELECT datlocprovider, coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale') FROM pg_database d WHERE datname = {name};"
        );
        lab.cluster.psql("postgres", &sql)
    };
    let before = locale();
    assert_eq!(before, "i|de");
    lab.run("dump", ["--name", &name]).expect(0);
    lab.drop_database(&name);
    lab.restore(&name, []).expect(0);
    assert_eq!(locale(), before);
    lab.drop_database(&name);
}

#[test]
fn a_dump_belongs_to_the_run_that_holds_maintenance_until_it_ends() {
    let lab = Lab::empty();
    let run_id = "0123456789abcdef0123456789abcdef";
    let record = lab.path("state/maintenance.json");
    let write = || {
        let text = format!(
            r#"{{"run_id":"{run_id}","since":"2026-11-22T00:00:00Z","method":"occ","deadline":null,"pid":null}}"#
        );
        std::fs::write(&record, text).unwrap();
    };
    assert_eq!(manifest(&lab.dump())["run_id"], Value::Null);
    write();
    let dump = lab.dump();
    assert_eq!(manifest(&dump)["run_id"], run_id);
    let list = lab.run("list", []).expect(0);
    assert_eq!(list.json["data"]["list"][1]["run_id"], run_id);

    // Maintenance ends while the dump runs: what it saw cannot be vouched for.
    lab.odd_pg_dump("", &format!("rm -f '{}'", record.display()));
    let ran = lab.run("dump", []).expect(0);
    assert_eq!(ran.json["data"]["run_id"], Value::Null);
    assert_eq!(ran.json["warnings"][0]["kind"], "run-ended");

    let ran = lab.run("dump", ["--run-id", run_id]).expect(0);
    assert_eq!(ran.json["data"]["run_id"], run_id);
    std::fs::write(&record, "{").unwrap();
    lab.run("dump", []).expect(1);
    assert_eq!(lab.run("dump", ["--run-id", "xyz"]).code, 2);
}

#[test]
fn dumping_an_empty_database_works() {
    let lab = Lab::empty();
    assert_eq!(manifest(&lab.dump())["tables"], 0);
    lab.restore(&lab.database, ["--yes"]).expect(0);
}
