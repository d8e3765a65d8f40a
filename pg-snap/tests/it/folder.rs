//! The folder of the dumps: private or refused; listed, pruned, and damage found.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::Value;

use crate::lab::{Lab, assert_same, content};

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn states(lab: &Lab) -> Vec<(String, String)> {
    let ran = lab.run("list", []).expect(0);
    let rows = ran.json["data"]["list"].as_array().unwrap();
    rows.iter().map(|r| (r["date"].as_str().unwrap().into(), r["state"].as_str().unwrap().into())).collect()
}

#[test]
fn a_folder_that_is_not_private_is_refused_by_every_action() {
    let lab = Lab::empty();
    std::fs::create_dir(&lab.dumps).unwrap();
    chmod(&lab.dumps, 0o750);
    for action in ["dump", "list", "prune"] {
        let ran = lab.run(action, []).expect(77);
        assert!(ran.json["error"]["hint"].as_str().unwrap().contains("0700"));
    }
    lab.restore("copy", []).expect(77);
    chmod(&lab.dumps, 0o700);
    std::os::unix::fs::chown(&lab.dumps, Some(65534), None).unwrap();
    lab.run("dump", []).expect(77);
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn a_symbolic_link_is_refused_also_with_a_slash_behind_it() {
    let lab = Lab::empty();
    let elsewhere = lab.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    chmod(&elsewhere, 0o700);
    symlink(&elsewhere, &lab.dumps).unwrap();
    let with_slash = format!("{}/", lab.dumps.display());
    lab.run("dump", []).expect(77);
    lab.run("dump", ["--dumps", &with_slash]).expect(77);
    std::fs::remove_file(&lab.dumps).unwrap();
    std::fs::write(&lab.dumps, "a file").unwrap();
    assert!(lab.run("dump", []).code != 0);
    assert_eq!(std::fs::read_dir(elsewhere).unwrap().count(), 0);
}

#[test]
fn a_folder_that_becomes_public_meanwhile_gets_no_dump() {
    let lab = Lab::filled();
    for spoil in
        ["chmod 755 \"$D\"", "chmod 755 \"$D\"/*.partial", "mv \"$D\" \"$D.away\"; mkdir -m 700 \"$D\""]
    {
        lab.odd_pg_dump("", &format!("D='{}'; {spoil}", lab.dumps.display()));
        let ran = lab.run("dump", []);
        assert!([1, 77, 78].contains(&ran.code), "{spoil}: {}", ran.stderr);
        if lab.dumps.exists() {
            chmod(&lab.dumps, 0o700);
        }
        assert_eq!(lab.traces(), [""; 0], "{spoil}: {}", ran.stderr);
    }
}

#[test]
fn a_damaged_dump_is_named_not_restored_and_not_counted() {
    let lab = Lab::filled();
    let dumps = [lab.dump(), lab.dump(), lab.dump(), lab.dump()];
    let date = |n: usize| dumps[n].file_name().unwrap().to_str().unwrap().to_owned();
    let file = dumps[1].join("files/public.oc_filecache.dat.gz");
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100).unwrap();
    std::fs::remove_file(dumps[2].join("files/toc.dat")).unwrap();
    std::fs::write(dumps[3].join("dump.json"), "{\"schema\":1").unwrap();
    std::fs::create_dir(lab.dumps.join("2020-01-01T00-00-00Z")).unwrap();
    let ran = lab.run("list", []).expect(0);
    assert_eq!(ran.json["data"]["newest"], date(0).as_str());
    assert_eq!(ran.json["warnings"].as_array().unwrap().len(), 4);
    let problem = |n: usize| ran.json["data"]["list"][n]["problem"].as_str().unwrap_or("").to_owned();
    assert!(problem(0).contains("dump.json"), "{}", problem(0));
    assert_eq!(problem(1), "");
    assert!(problem(2).contains("public.oc_filecache.dat.gz has 100 bytes"), "{}", problem(2));
    assert!(problem(3).contains("toc.dat is missing"), "{}", problem(3));
    assert!(problem(4).contains("damaged"), "{}", problem(4));

    let copy = format!("{} copy", lab.database);
    for n in [1, 2, 3] {
        let ran = lab.restore(&copy, ["--date", &date(n)]).expect(1);
        assert!(ran.json["error"]["message"].as_str().unwrap().contains("damaged"));
    }
    assert!(!lab.exists(&copy));
    let ran = lab.restore(&copy, []).expect(0);
    assert_eq!(ran.json["data"]["date"], date(0).as_str(), "latest is the newest complete one");
    lab.drop_database(&copy);

    // One complete dump is kept; the younger, damaged ones too, for whoever wants to look.
    let ran = lab.run("prune", ["--keep", "1"]).expect(0);
    assert_eq!(ran.json["data"]["removed"], serde_json::json!(["2020-01-01T00-00-00Z"]));
    assert_eq!(lab.traces().len(), 4);
}

#[test]
fn a_dump_under_another_date_or_with_paths_that_lead_outside_is_damaged() {
    let lab = Lab::filled();
    let dump = lab.dump();
    let moved = lab.dumps.join("2020-01-01T00-00-00Z");
    std::fs::rename(&dump, &moved).unwrap();
    assert_eq!(states(&lab)[0].1, "damaged");
    std::fs::rename(&moved, &dump).unwrap();
    assert_eq!(states(&lab)[0].1, "complete");
    let text = std::fs::read_to_string(dump.join("dump.json")).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["files"][0]["name"] = "../../password".into();
    std::fs::write(dump.join("dump.json"), value.to_string()).unwrap();
    assert_eq!(states(&lab)[0].1, "damaged");
    value["schema"] = 99.into();
    std::fs::write(dump.join("dump.json"), value.to_string()).unwrap();
    assert_eq!(states(&lab)[0].1, "damaged");
}

#[test]
fn pruning_keeps_the_newest_and_touches_nothing_else() {
    let lab = Lab::empty();
    assert_eq!(lab.run("prune", []).expect(0).json["changed"], false);
    assert_eq!(states(&lab), []);
    let dumps = [lab.dump(), lab.dump(), lab.dump()];
    std::fs::create_dir(lab.dumps.join("mine")).unwrap();
    std::fs::write(lab.dumps.join("2001-01-01"), "").unwrap();
    symlink("/etc", lab.dumps.join("2002-01-01T00-00-00Z")).unwrap();
    std::fs::create_dir_all(lab.dumps.join("2003-01-01T00-00-00Z.removed/files")).unwrap();
    let ran = lab.run("prune", ["--keep", "2"]).expect(0);
    assert_eq!(ran.json["changed"], true);
    assert!(!dumps[0].exists() && dumps[1].exists() && dumps[2].exists());
    assert!(lab.dumps.join("mine").exists() && lab.dumps.join("2001-01-01").exists());
    assert!(lab.dumps.join("2002-01-01T00-00-00Z").is_symlink() && Path::new("/etc/passwd").exists());
    assert!(!lab.dumps.join("2003-01-01T00-00-00Z.removed").exists(), "what a killed prune left goes");
    assert_eq!(lab.run("prune", ["--keep", "2"]).expect(0).json["changed"], false);
    lab.run("prune", ["--keep", "1"]).expect(0);
    assert!(!dumps[1].exists() && dumps[2].exists());
    assert_eq!(lab.run("prune", ["--keep", "0"]).code, 2);
    let host = format!("127.0.0.1:{}", lab.cluster.port);
    lab.profile(&host, "keep = 0");
    lab.run("prune", []).expect(78);
    assert!(dumps[2].exists());
}

#[test]
fn a_dump_can_be_restored_by_hand_with_the_map() {
    let lab = Lab::filled();
    let dump = lab.dump();
    // The documentation's lines for the day when pg-snap is not at hand.
    let script = r#"set -eu; cd "$1"; mkdir "$2"
        jq -r '.files[] | select(.original) | [.name, .original] | @tsv' dump.json |
            while IFS="$(printf '\t')" read -r name original; do cp "$1/$name" "$2/$original"; done
        pg_restore --exit-on-error -h "$3" -p "$4" -U postgres -d "dbname='by hand'" "$2""#;
    lab.cluster.psql("postgres", "CREATE DATABASE \"by hand\" TEMPLATE template0;");
    let status = std::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .args([&dump, &lab.path("links"), &lab.cluster.socket])
        .arg(lab.cluster.port.to_string())
        .status()
        .unwrap();
    assert!(status.success());
    let (mut hand, mut here) = (content(&lab.cluster, "by hand"), content(&lab.cluster, &lab.database));
    hand.remove("database");
    here.remove("database");
    assert_same(&hand, &here);
    lab.drop_database("by hand");
}
