//! `inspect`: what a backup needs, and what it must be warned about.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};

use serde_json::{Value, json};
use testkit::Ran;

use crate::world::World;

fn kinds(ran: &Ran) -> Vec<&str> {
    ran.json["warnings"].as_array().unwrap().iter().map(|w| w["kind"].as_str().unwrap()).collect()
}

#[test]
fn it_tells_where_everything_is_and_keeps_the_password() {
    let world = World::new();
    let ran = world.ask("inspect", &[]).expect(0);
    let data = &ran.json["data"];
    assert_eq!(data["data_directory"], world.data().to_str().unwrap());
    assert_eq!(data["log_file"], world.data().join("nextcloud.log").to_str().unwrap());
    assert_eq!((&data["version"], &data["instance_id"]), (&json!("32.0.1.2"), &json!("ocstandin")));
    let database = json!({"type": "pgsql", "host": "/run/postgresql", "name": "nextcloud", "user": "nextcloud",
        "password": "***", "table_prefix": "oc_", "persistent": false});
    assert_eq!(data["database"], database);
    assert_eq!(data["maintenance"], false);
    assert!(!ran.json.to_string().contains("pass\\\"word") && !ran.stderr.contains("pass\"word"));
    assert_eq!(kinds(&ran), ["data-directory-in-root"]);
}

#[test]
fn drop_ins_are_part_of_the_configuration() {
    let world = World::new();
    let drop_in = |name: &str, text: &str| {
        std::fs::write(world.root().join("config").join(name), format!("<?php $CONFIG = {text};")).unwrap();
    };
    drop_in("b.config.php", "array('dbhost' => 'db2:5433')");
    drop_in(
        "a.config.php",
        "array('dbhost' => 'db1', 'apps_paths' => [['path' => '/srv/apps', 'writable' => true]])",
    );
    let ran = world.ask("inspect", &[]).expect(0);
    assert_eq!(ran.json["data"]["database"]["host"], "db2:5433", "the last in name order wins");
    assert_eq!(ran.json["data"]["apps_paths"], json!([{"path": "/srv/apps", "writable": true}]));
    assert!(kinds(&ran).contains(&"apps-path-outside-root"));
}

#[test]
fn the_password_goes_into_a_private_file_and_nowhere_else() {
    let world = World::new();
    let secrets = world.path().join("secrets.json");
    let path = secrets.to_str().unwrap();
    for _ in 0..2 {
        let ran = world.ask("inspect", &["--secrets-to", path]).expect(0);
        assert_eq!(ran.json["data"]["secrets_to"], path);
    }
    let written: Value = serde_json::from_slice(&std::fs::read(&secrets).unwrap()).unwrap();
    assert_eq!(written["database_password"], "pass\"word");
    let meta = std::fs::metadata(&secrets).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
}

#[test]
fn a_link_or_a_file_of_somebody_else_is_never_written() {
    let world = World::new();
    let victim = world.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let link = world.path().join("link");
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    let theirs = world.path().join("theirs");
    std::fs::write(&theirs, "precious").unwrap();
    std::os::unix::fs::chown(&theirs, Some(33), Some(33)).unwrap();
    for path in [&link, &theirs] {
        world.ask("inspect", &["--secrets-to", path.to_str().unwrap()]).expect(77);
    }
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert_eq!(std::fs::read(&theirs).unwrap(), b"precious");
}

#[test]
fn databases_that_cannot_be_backed_up_are_refused_by_name() {
    let world = World::new();
    for (kind, name) in [("mysql", "MariaDB"), ("sqlite3", "SQLite")] {
        world.configure(&format!("'dbtype' => '{kind}',"));
        let ran = world.ask("inspect", &[]).expect(78);
        assert!(ran.json["error"]["message"].as_str().unwrap().contains(name), "{}", ran.stderr);
    }
}

#[test]
fn what_lies_outside_the_data_directory_is_warned_about() {
    let world = World::new();
    world.configure("'objectstore' => ['class' => 'S3'], 'dbpersistent' => true,");
    let list = json!([
        {"mount_point": "/Archive", "storage": "\\OC\\Files\\Storage\\Local", "configuration": {"datadir": "/srv/archive"}},
        {"mount_point": "/NAS", "storage": "\\OCA\\Files_External\\Lib\\Storage\\SMB", "configuration": {"host": "nas"}},
    ]);
    std::fs::write(world.root().join("config/standin-external.json"), list.to_string()).unwrap();
    let ran = world.ask("inspect", &[]).expect(0);
    for kind in ["object-storage", "external-storage-local", "dbpersistent"] {
        assert_eq!(kinds(&ran).iter().filter(|k| **k == kind).count(), 1, "{kind}: {:?}", kinds(&ran));
    }
    assert!(ran.stderr.contains("/srv/archive"));

    // In maintenance the list cannot be had: said, not silently left out.
    world.occ(&["maintenance:mode", "--on"]);
    let ran = world.ask("inspect", &[]).expect(0);
    assert!(kinds(&ran).contains(&"external-storages-unknown"));
    assert_eq!(ran.json["data"]["external_storages"], Value::Null);
}

#[test]
fn a_data_directory_that_is_not_there_is_warned_about() {
    let world = World::new();
    world.configure("");
    world.misbehave("");
    // As with a container: occ sees the folder, we do not.
    let config = std::fs::read_to_string(world.config()).unwrap();
    let moved = world.path().join("elsewhere");
    std::fs::rename(world.data(), &moved).unwrap();
    let occ = world.path().join("docker");
    let seen = config.replace(world.data().to_str().unwrap(), moved.to_str().unwrap());
    std::fs::write(world.config(), seen).unwrap();
    testkit::script(
        &occ,
        &format!("#!/bin/sh\nphp {}/occ \"$@\" | sed 's,elsewhere,unseen,'\n", world.root().display()),
    );
    std::fs::set_permissions(&moved, PermissionsExt::from_mode(0o755)).unwrap();
    let ran = world.ask("inspect", &["--occ", occ.to_str().unwrap()]).expect(0);
    assert!(kinds(&ran).contains(&"data-directory-not-here"), "{:?}", ran.json["warnings"]);
}

#[test]
fn places_in_a_container_are_seen_where_this_machine_has_them() {
    let world = World::new();
    // As in the usual image: code at /var/www/html, the data in a volume of its own below it, more apps beside the code.
    let volume = world.path().join("volume");
    std::fs::rename(world.data(), &volume).unwrap();
    let config = std::fs::read_to_string(world.config()).unwrap();
    let inner = config
        .replace(world.data().to_str().unwrap(), volume.to_str().unwrap())
        .replace(");", "'apps_paths' => [['path' => 'HTML/custom_apps', 'writable' => true]],\n);");
    std::fs::write(world.config(), inner).unwrap();
    let docker = world.path().join("docker");
    let text = format!(
        "#!/bin/sh\nshift 6\nphp {}/occ \"$@\" | sed 's,{},/var/www/html/data,; s,HTML,/var/www/html,'\n",
        world.root().display(),
        volume.display().to_string().replace('/', "[\\\\]*/")
    );
    testkit::script(&docker, &text);
    let profile = world.path().join("contained.toml");
    let words = format!(
        "[\"{}\", \"exec\", \"-u\", \"www-data\", \"app\", \"php\", \"/var/www/html/occ\"]",
        docker.display()
    );
    let sources = format!("[[snapshot.source]]\nname = \"data\"\npath = \"{}\"\n", volume.display());
    std::fs::write(
        &profile,
        format!("[nextcloud]\nroot = \"{}\"\nocc = {words}\n{sources}", world.root().display()),
    )
    .unwrap();
    let ran = testkit::run(world.nc_maint("inspect").args(["contained", "--config"]).arg(&profile)).expect(0);
    assert_eq!(ran.json["data"]["data_directory"], "/var/www/html/data", "as Nextcloud has it");
    assert_eq!(ran.json["data"]["apps_paths"][0]["path"], world.root().join("custom_apps").to_str().unwrap());
    assert_eq!(kinds(&ran), [""; 0], "{:#}", ran.json["warnings"]);
}

#[test]
fn a_link_that_leads_out_of_all_sources_is_told() {
    let world = World::new();
    let elsewhere = world.path().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("bob")).unwrap();
    std::os::unix::fs::symlink(elsewhere.join("bob"), world.data().join("bob")).unwrap();
    std::fs::create_dir(world.data().join("anna")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, world.data().join("anna/files")).unwrap();
    std::os::unix::fs::symlink("anna", world.data().join("anne")).unwrap();
    let ran = world.ask("inspect", &[]).expect(0);
    assert_eq!(kinds(&ran).iter().filter(|k| **k == "link-leads-out").count(), 2, "{:#}", ran.json);
    let links = &ran.json["data"]["links_that_lead_out"];
    assert_eq!(links[0], json!({"path": world.data().join("bob"), "target": elsewhere.join("bob")}));
    assert_eq!(links.as_array().unwrap().len(), 2, "{links}");
}

#[test]
fn of_a_broken_configuration_nothing_is_quoted() {
    let secret = "s3cr3t";
    let broken = [
        // Syntax errors of several kinds.
        "'dbpassword' => 's3cr3t' 's3cr3t',",
        "'dbpassword' => pa's3cr3t',",
        "'dbpassword' => 's3cr3t,\n'secret' => 'x',",
        "'dbpassword' => \"s3cr3t\" \"s3cr3t, s3cr3t\",",
        "'a' => s3cr3t s3cr3t(,",
        "'dbpassword' => <<<S\ns3cr3t\n",
        // Constants that are none, warnings, deprecations.
        "'dbpassword' => s3cr3t,",
        "'dbpassword' => $s3cr3t . file_get_contents('/s3cr3t') . trigger_error('s3cr3t', E_USER_WARNING),",
        // Exceptions, with arguments and in lines.
        "'dbpassword' => (function ($s3cr3t) { throw new Exception(\"a\\ns3cr3t\"); })('s3cr3t'),",
        "'dbpassword' => new PDO('pgsql:s3cr3t', 's3cr3t', 's3cr3t'),",
        "'dbpassword' => trigger_error('s3cr3t in /s3cr3t.php on line 3', E_USER_ERROR),",
        // Whatever else is printed.
        "'dbpassword' => [var_dump(['dbpassword' => 's3cr3t']), print_r(['s3cr3t'], false), exit(3)],",
        "'dbpassword' => [fwrite(STDERR, \"s3cr3t\\n\"), error_log('s3cr3t'), exit(0)],",
    ];
    for (method, actions) in [("drop-in", ["inspect", "status"]), ("occ", ["on", "off"])] {
        for line in broken {
            let world = World::new();
            world.configure(&format!("'passwordsalt' => '{secret}', {line}"));
            for action in actions {
                let ran = world.ask_plainly(action, &["--method", method]);
                let all = format!("{}\n{}", ran.json, ran.stderr);
                assert!(!all.contains(secret), "{action} {line}:\n{all}");
            }
        }
    }
    // What helps is there: kind, file and line.
    let world = World::new();
    world.configure("'dbpassword' => 's3cr3t' 's3cr3t',");
    let ran = world.ask("inspect", &[]);
    let place = format!("Parse error in {} on line 6", world.config().display());
    assert!(ran.json["error"]["message"].as_str().unwrap().contains(&place), "{:#}", ran.json);
}

#[test]
fn a_password_that_is_a_number_is_one() {
    for (written, meant) in [("12345", "12345"), ("'012'", "012"), ("1.5", "1.5"), ("12.0", "12")] {
        let world = World::new();
        world.configure(&format!("'dbpassword' => {written}, 'dbuser' => 7,"));
        let secrets = world.path().join("secrets.json");
        let ran = world.ask("inspect", &["--secrets-to", secrets.to_str().unwrap()]).expect(0);
        let told: Value = serde_json::from_slice(&std::fs::read(&secrets).unwrap()).unwrap();
        assert_eq!(told["database_password"], meant);
        assert_eq!(
            (&ran.json["data"]["database"]["password"], &ran.json["data"]["database"]["user"]),
            (&json!("***"), &json!("7"))
        );
    }
}

#[test]
fn without_a_database_the_configuration_is_read_all_the_same() {
    let world = World::new();
    world.configure(
        "'dbtype' => 'pgsql', 'dbname' => 'cloud', 'dbuser' => 'carla', 'dbpassword' => 's3 \"cret',",
    );
    let secrets = world.path().join("secrets");
    let ask = || world.ask("inspect", &["--secrets-to", secrets.to_str().unwrap()]);
    world.misbehave("fail = all\nfail_message = 'Exception: SQLSTATE[08006] [7] connection refused'");
    let ran = ask().expect(0);
    assert_eq!(ran.json["data"]["database"]["user"], "carla");
    assert_eq!(ran.json["warnings"][0]["kind"], "no-database");
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&secrets).unwrap()).unwrap();
    assert_eq!(told["database_password"], "s3 \"cret");
    assert!(!ran.json.to_string().contains("s3 "), "{}", ran.json);

    // Another failure is one.
    world.misbehave("fail = all");
    ask().expect(1);
}
