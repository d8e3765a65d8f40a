//! `scripts/restore`: a damaged instance comes back exactly, and stays closed until all of it is there.

use std::process::{Command, Stdio};

use testkit::{Ran, run, scripts};

use crate::world::World;

/// `restore home --yes`, as the cluster's administrator.
fn restore(world: &World) -> Command {
    let mut command = Command::new(scripts().join("restore"));
    command.args(["home", "--yes", "--admin-user", "postgres", "--admin-host"]);
    command.arg(format!("{}:{}", world.cluster.socket.display(), world.cluster.port));
    command.arg("--config").arg(world.path("home.toml")).arg("--bin").arg(world.tools());
    command
}

fn sql(world: &World, text: &str) -> String {
    world.cluster.psql(&world.database, text)
}

/// All rows of all tables, in a number each.
fn rows(world: &World) -> String {
    let tables =
        sql(world, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'oc_%' ORDER BY 1;");
    let count = |t: &str| {
        format!("SELECT '{t}', count(*), md5(string_agg(x::text, '' ORDER BY x::text)) FROM {t} x;")
    };
    sql(world, &tables.lines().map(count).collect::<String>())
}

/// What rsync finds different between the instance and its `copy`: content, owners, modes, times, attributes.
fn differences(world: &World, copy: &str) -> String {
    let mut rsync = Command::new("rsync");
    rsync.args(["-naHAXic", "--modify-window=-1", "--delete", "--exclude=/config/config.php"]);
    // Not saved, and so not restored.
    rsync.args([
        "--exclude=/data/*/cache/",
        "--exclude=/data/*/uploads/",
        "--exclude=/data/appdata_*/preview/",
    ]);
    rsync.args([
        "--exclude=/data/appdata_*/js/",
        "--exclude=/data/updater-*",
        "--exclude=/data/nextcloud.log",
    ]);
    let told = rsync.arg(world.path(copy).join("")).arg(world.root().join("")).output().unwrap();
    assert!(told.status.success());
    // The configuration was written by occ since, so its folder has another time; so has the top.
    let lines = String::from_utf8(told.stdout).unwrap();
    lines.lines().filter(|l| !l.ends_with(" config/") && !l.ends_with(" ./")).collect::<Vec<_>>().join("\n")
}

fn damage(world: &World) {
    let script = "set -eu; cd \"$1\"; find data -type f -name '*.txt' -print0 | head -z -n 5 | xargs -0r rm; \
        find data/alice/files -type f -print0 | head -z -n 8 | xargs -0r truncate -s 1; chown -R 0:0 data/bob; \
        chmod -R go+w lib; echo new >data/alice/files/new; rm -r core; printf '<?php $CONFIG = 1;' >version.php";
    assert!(Command::new("sh").args(["-c", script, "sh"]).arg(world.root()).status().unwrap().success());
    sql(world, "DELETE FROM oc_filecache; DROP TABLE oc_share; CREATE TABLE oc_later (x int);");
}

fn closed(world: &World) -> bool {
    std::fs::read_to_string(world.root().join("config/config.php"))
        .unwrap()
        .trim_end()
        .ends_with("$CONFIG['maintenance'] = true;")
}

fn step(ran: &Ran, name: &str) -> bool {
    ran.json["data"]["steps"].as_array().unwrap().iter().any(|s| s["step"] == name)
}

#[test]
fn a_damaged_instance_comes_back_exactly_and_is_closed_until_all_is_there() {
    // Given an instance that was saved and then damaged in every way,
    let world = World::new("back");
    run(&mut world.backup()).expect(0);
    assert!(
        Command::new("cp").arg("-a").arg(world.root()).arg(world.path("copy")).status().unwrap().success()
    );
    let before = rows(&world);
    damage(&world);
    assert_ne!(differences(&world, "copy"), "");

    // when the database cannot be restored, or the restore dies in the middle, it stays closed, and nothing opens it;
    let mut files_are_back = false;
    let mark = world.path("state/restore.json");
    let dies_when_it_replaces = format!(
        "\"$real\" \"$@\" & p=$!; i=0; until [ -e '{}' ] || [ $i -gt 500 ]; do i=$((i+1)); sleep 0.02; done; \
         kill -9 $p; exit 137",
        mark.display()
    );
    for (tool, pattern, instead) in [
        ("link-sync", "*'--keep-replaced'*", dies_when_it_replaces.as_str()),
        ("pg-snap", "restore*'--keep-replaced'*", "echo injected >&2; exit 69"),
        ("pg-snap", "restore*'--keep-replaced'*", "kill -9 $$"),
        ("nc-maint", "off*", "echo injected >&2; exit 1"),
        ("nc-maint", "off*", "kill -9 $$"),
    ] {
        world.inject(tool, pattern, instead);
        let ran = run(&mut restore(&world));
        assert_ne!(ran.code, 0, "{:#}", ran.json);
        assert_eq!(ran.json["data"]["closed"], true, "{:#}", ran.json);
        // What an attempt has done, the next one does not do again: nothing piles up.
        assert_eq!(step(&ran, "files"), !files_are_back, "{tool}: {:#}", ran.json);
        // Only when all is back is opening tried.
        assert_eq!(step(&ran, "open"), tool == "nc-maint", "{tool}: {:#}", ran.json);
        assert!(closed(&world) && world.in_maintenance(), "{tool}: {:#}", ran.json);
        files_are_back |= tool != "link-sync";
        world.restore_tools();
        // What is half restored does not become the newest snapshot, whoever else has it in maintenance.
        let saved = world.dates();
        let refused = run(&mut world.backup()).expect(75);
        let text = refused.json["error"].to_string();
        assert!(text.contains("is not finished") && text.contains("nc-maint off"), "{text}");
        assert_eq!(world.dates(), saved);
        assert!(closed(&world));
    }
    // One that fails before it has begun says that an earlier one holds it closed.
    let early = run(restore(&world).args(["--date", "2001-01-01T00-00-00Z"])).expect(78);
    assert_eq!(early.json["data"]["closed"], true);
    assert!(early.stderr.contains("stays closed"), "{}", early.stderr);

    // and the same command goes on, and ends with everything as it was, open, and clients told.
    let ran = run(&mut restore(&world)).expect(0);
    assert_eq!(ran.json["data"]["database"], "back");
    // That it was not finished before is no news of a restore that is.
    assert_eq!(ran.json["warnings"], serde_json::json!([]));
    assert!(world.root().join("data/nextcloud.log").exists(), "what backups leave out has gone");
    // Of all attempts.
    let kept = "SELECT count(*) FROM pg_database WHERE datname LIKE 'back%pgsnap%'";
    assert_eq!(ran.json["data"]["kept_databases"], serde_json::json!([]));
    assert_eq!(world.cluster.psql("postgres", kept).trim(), "0");
    assert!(!world.in_maintenance());
    assert_eq!(differences(&world, "copy"), "");
    assert_eq!(rows(&world), before);
    let config = std::fs::read_to_string(world.root().join("config/config.php")).unwrap();
    assert!(config.contains("'data-fingerprint' => '"), "{config}");
    let left = Command::new("find").arg(world.dir.path()).args(["-name", ".nc-restore-*"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    // On a new machine there is nothing at all.
    std::fs::remove_dir_all(world.root()).unwrap();
    world.cluster.psql("postgres", "DROP DATABASE back WITH (FORCE);");
    run(&mut restore(&world)).expect(0);
    assert!(!world.in_maintenance());
    assert_eq!(differences(&world, "copy"), "");
    assert_eq!(rows(&world), before);
    // It is an instance that can be saved again.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    run(&mut world.backup()).expect(0);
}

#[test]
fn what_was_used_between_two_attempts_is_restored_again_and_what_was_kept_before_stays() {
    // Given a restore of yesterday that kept what it had replaced, and another of the same date that came to a halt when all
    // was in place, as something that is in no snapshot cannot be moved back,
    let world = World::new("between");
    let profile = std::fs::read_to_string(world.path("home.toml")).unwrap();
    let excluded = "name = \"data\"\nexclude = [\"/*/files/Videos/\"]\n";
    std::fs::write(world.path("home.toml"), profile.replace("name = \"data\"\n", excluded)).unwrap();
    let sh = |text: &str| {
        let mut command = Command::new("sh");
        let output = command.args(["-euc", text]).current_dir(world.root()).output().unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    sh("mkdir data/alice/files/Videos; touch data/alice/files/Videos/v");
    run(&mut world.backup()).expect(0);
    sh("cp -a . ../../copy; echo 1 >data/alice/files/precious");
    run(restore(&world).arg("--keep-replaced")).expect(0);
    let kept = sh("find \"$PWD\" -name precious");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    sh("chattr +i data/alice/files/Videos");
    run(&mut restore(&world)).expect(4);
    assert!(closed(&world));
    // when it is opened as it is, and used, and restored then,
    run(Command::new(world.tools().join("nc-maint"))
        .args(["off", "home", "--config"])
        .arg(world.path("home.toml")))
    .expect(0);
    sh("find data/alice/files -type f -name '*.*' -exec truncate -s 1 {} +; echo 1 >data/alice/files/since");
    sh("chattr -i $(find \"$PWD\" -name Videos)");
    let ran = run(&mut restore(&world)).expect(0);
    // then all is as it was, and what was kept before is still there, and told.
    let folder = &kept[..kept.find("/old/").expect("kept, and not in its place")];
    assert!(ran.stderr.contains(&format!("an earlier restore has kept {folder}:")), "{}", ran.stderr);
    assert_eq!(sh("find \"$PWD\" -name precious"), kept);
    // (the one that was given up has kept the code that it had replaced)
    sh(&format!(
        "rm -r '{folder}' .nc-restore-*.replaced; touch -r ../../copy/data data; ! find . -name '.nc-restore-*' | grep ."
    ));
    assert_eq!(differences(&world, "copy"), "");
}

#[test]
fn nothing_is_changed_before_it_is_known_that_the_dump_comes_back() {
    let world = World::new("unsure");
    run(&mut world.backup()).expect(0);
    let before = rows(&world);
    assert!(
        Command::new("cp").arg("-a").arg(world.root()).arg(world.path("copy")).status().unwrap().success()
    );
    // What lies where the scripts have their locks is not a restore's to remove, however early it ends.
    let others = tempfile::Builder::new().prefix(".others").tempdir_in("/run/nc-backup/home").unwrap();
    // A dump that does not restore, a date that is not there, nobody to ask.
    world.inject("pg-snap", "verify*", "exit 1");
    run(&mut restore(&world)).expect(1);
    world.restore_tools();
    run(restore(&world).args(["--date", "2001-01-01T00-00-00Z"])).expect(78);
    let mut unasked = Command::new(scripts().join("restore"));
    unasked.arg("home").arg("--config").arg(world.path("home.toml")).stdin(Stdio::null());
    run(&mut unasked).expect(2);
    // "Stays closed" is said only if it is.
    let open = run(restore(&world).args(["--date", "2001-01-01T00-00-00Z"])).expect(78);
    assert_eq!(open.json["data"]["closed"], false, "{:#}", open.json);
    assert!(
        open.stderr.contains("nothing was changed") && !open.stderr.contains("stays closed"),
        "{}",
        open.stderr
    );
    let missing = run(restore(&world).arg("--config").arg(world.path("none.toml"))).expect(78);
    assert_eq!(missing.json["data"]["failed_step"], "profile");
    assert!(missing.json["error"]["message"].as_str().unwrap().contains("none.toml"));
    // A source that the profile does not know: it lies in html, and would be missed.
    let profile = std::fs::read_to_string(world.path("home.toml")).unwrap();
    let (before_data, data) = profile.split_once("[[snapshot.source]]\nname = \"data\"").unwrap();
    let after = data.find("[[").map_or("", |at| &data[at..]);
    std::fs::write(world.path("home.toml"), format!("{before_data}{after}")).unwrap();
    let unknown = run(&mut restore(&world)).expect(78);
    assert_eq!(unknown.json["data"]["failed_step"], "plan");
    assert!(unknown.json["error"]["message"].as_str().unwrap().contains("--without"), "{:#}", unknown.json);
    std::fs::write(world.path("home.toml"), profile).unwrap();
    // A backup and a restore keep each other out.
    // (tools are started by descriptor: no `$0` says where they lie)
    let begun = format!("touch '{}'; exec sleep 60", world.tools().join("begun").display());
    world.inject("pg-snap", "verify*", &begun);
    let first = restore(&world).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    World::until("the rehearsal begins", || world.tools().join("begun").exists());
    run(&mut world.backup()).expect(75);
    let second = run(&mut restore(&world)).expect(75);
    assert_eq!(second.json["changed"], false);
    assert!(others.path().exists());
    // Stopped before it has changed anything, it says so.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let stopped = testkit::judge(first.wait_with_output().unwrap()).expect(143);
    assert!(stopped.stderr.contains("nothing was changed"), "{}", stopped.stderr);
    assert_eq!(stopped.json["data"]["failed_step"], "rehearse");
    world.restore_tools();
    // Nobody else does: whoever can read the profile has no lock of theirs.
    let foreign = std::fs::File::open(world.path("home.toml")).unwrap();
    foreign.lock().unwrap();
    run(restore(&world).args(["--date", "2001-01-01T00-00-00Z"])).expect(78);
    run(&mut world.backup()).expect(0);
    drop(foreign);
    assert!(!world.in_maintenance());
    assert_eq!(differences(&world, "copy"), "");
    assert_eq!(rows(&world), before);
}

/// The state that a profile without `state_dir` has; gone afterwards.
struct StateOf(&'static str);

impl Drop for StateOf {
    fn drop(&mut self) {
        for folder in ["/var/lib/nc-backup", "/run/nc-backup"] {
            drop(std::fs::remove_dir_all(std::path::Path::new(folder).join(self.0)));
        }
    }
}

#[test]
fn a_new_machine_needs_a_store_and_nothing_else() {
    // Given a snapshot, and a machine that has neither profile nor code, data, database or role,
    let world = World::on("fresh", std::sync::Arc::new(testkit::postgres::Cluster::start()));
    let _state = StateOf("newbox");
    run(&mut world.backup()).expect(0);
    assert!(
        Command::new("cp").arg("-a").arg(world.root()).arg(world.path("copy")).status().unwrap().success()
    );
    let before = rows(&world);
    let password = "grep dbpassword \"$1/config/config.php\" | cut -d\"'\" -f4";
    let password = Command::new("sh").args(["-c", password, "sh"]).arg(world.root()).output().unwrap();
    let password = String::from_utf8(password.stdout).unwrap().trim().to_owned();
    let cluster = world.cluster.socket.parent().unwrap().to_owned();
    world.cluster.stop();
    std::fs::remove_dir_all(cluster.join("data")).unwrap();
    let mut again = Command::new(testkit::lab("postgres"));
    again.arg("start").arg(&cluster).arg(world.cluster.port.to_string());
    assert!(again.output().unwrap().status.success());
    std::fs::remove_dir_all(world.root()).unwrap();
    assert_eq!(
        world.cluster.psql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'oc_fresh'"),
        "0"
    );

    let profile = world.path("etc/newbox.toml");
    let begin = || {
        let mut command = Command::new(scripts().join("restore"));
        command.args(["newbox", "--yes", "--from"]).arg(world.store());
        command.args(["--admin-user", "postgres", "--admin-host"]);
        command.arg(format!("{}:{}", world.cluster.socket.display(), world.cluster.port));
        command.arg("--config").arg(&profile).arg("--bin").arg(world.tools());
        command
    };
    // a date that is not there, or a store that is not, leaves nothing at all;
    let none = run(begin().args(["--date", "2001-01-01T00-00-00Z"])).expect(78);
    assert_eq!(none.json["data"]["failed_step"], "snapshots", "{:#}", none.json);
    assert!(!profile.exists() && !world.root().exists());
    // one that dies when the files are back has written the profile, and
    world.inject("pg-snap", "restore*'--keep-replaced'*", "kill -9 $$");
    let died = run(&mut begin());
    assert_ne!(died.code, 0);
    assert_eq!(died.json["data"]["closed"], true, "{:#}", died.json);
    world.restore_tools();
    // the same command goes on from there: the files are not restored once more, and all is as it was.
    let ran = run(&mut begin()).expect(0);
    assert!(!step(&ran, "files") && step(&ran, "database"), "{:#}", ran.json);
    assert!(!world.in_maintenance());
    assert_eq!(differences(&world, "copy"), "");
    assert_eq!(rows(&world), before);
    let left = Command::new("find").arg(world.dir.path()).args(["-name", ".nc-restore-*"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    // Nextcloud's role can log in, with the password that config.php has.
    let mut login = Command::new("psql");
    login.env("PGPASSWORD", &password).args(["-X", "-w", "-At", "-h", "127.0.0.1", "-p"]);
    login.arg(world.cluster.port.to_string()).args(["-U", "oc_fresh", "-d", "fresh", "-c", "SELECT 1"]);
    let told = login.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "1", "{told:?}");
    // The profile is one, and the next night uses it.
    let text = std::fs::read_to_string(&profile).unwrap();
    assert!(text.contains(&format!("root = \"{}\"", world.root().display())), "{text}");
    let mut night = Command::new(scripts().join("backup-local"));
    night.arg("newbox").arg("--config").arg(&profile).arg("--bin").arg(world.tools());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    run(&mut night).expect(0);
    assert_eq!(world.dates().len(), 2);
}

#[test]
fn a_configuration_that_is_read_only_is_restored_like_any_other() {
    // Given an instance whose administrator lets nothing write its configuration,
    let world = World::new("fixed");
    let config = world.root().join("config/config.php");
    let text = std::fs::read_to_string(&config).unwrap();
    let at = text.rfind(");").expect("the end of the array");
    std::fs::write(&config, format!("{}  'config_is_read_only' => true,\n{}", &text[..at], &text[at..]))
        .unwrap();
    run(&mut world.backup()).expect(0);
    let before = rows(&world);
    damage(&world);
    // when it is restored, by somebody who has closed all that could be read and written, it is open, clients are told, and
    // nothing is left beside it.
    let command = restore(&world);
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).arg(command.get_program()).args(command.get_args());
    assert!(closed.status().unwrap().success());
    assert!(!world.in_maintenance());
    assert_eq!(rows(&world), before);
    let after = std::fs::read_to_string(&config).unwrap();
    assert!(after.contains("config_is_read_only") && after.contains("data-fingerprint"), "{after}");
    let left = Command::new("find").arg(world.dir.path()).args(["-name", ".nc-restore-*"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}
