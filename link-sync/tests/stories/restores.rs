//! Bringing back files, users and whole sources: from here, through ssh, interrupted, and out of odd places.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use testkit::sshd::Sshd;
use testkit::{Ran, script};

use crate::picture::{Picture, picture};
use crate::world::{Account, World, kill, ok, told, until, warnings};

/// A small instance, `data` inside of `html`, and its profile.
struct Instance {
    world: World,
    html: PathBuf,
    data: PathBuf,
}

impl Instance {
    fn new() -> Instance {
        let world = World::new();
        let html = world.source.clone();
        let data = html.join("data");
        let instance = Instance { html, data, world };
        instance.profile(&format!("store = \"{}\"", instance.world.store.display()), "");
        instance.world.file("config/config.php", "<?php");
        instance.world.file("core/a", "code");
        instance.world.file("data/.ncdata", "");
        instance.world.file("data/admin/files/letter.odt", "Dear");
        instance.world.file("data/admin/files/sub/a[1]*\n.txt", "odd");
        instance.world.file("data/bob/files/b", "b");
        symlink("/etc/passwd", instance.data.join("admin/files/link")).unwrap();
        let letter = instance.data.join("admin/files/letter.odt").display().to_string();
        ok("setfattr", &["-n", "user.tag", "-v", "hi", &letter]);
        ok("setfacl", &["-m", "u:daemon:r", &letter]);
        ok("chown", &["-hR", "33:44", instance.html.to_str().unwrap()]);
        ok("chmod", &["2750", instance.data.join("admin").to_str().unwrap()]);
        ok(
            "find",
            &[
                instance.html.to_str().unwrap(),
                "-exec",
                "touch",
                "-hd",
                "2020-01-02 03:04:05.123456789",
                "{}",
                "+",
            ],
        );
        instance
    }

    fn profile(&self, snapshot: &str, ssh: &str) {
        self.world.write_profile(&format!(
            "[snapshot]\n{snapshot}\n{ssh}\n\
             [[snapshot.source]]\nname = \"html\"\npath = \"{}\"\n\
             [[snapshot.source]]\nname = \"data\"\npath = \"{}\"\n\
             [store]\npath = \"{}\"\nreserve_bytes = 0\n",
            self.html.display(),
            self.data.display(),
            self.world.store.display(),
        ));
    }

    fn restore(&self, options: &[&str]) -> Ran {
        self.world.act("restore", options)
    }

    fn damage(&self) {
        std::fs::remove_dir_all(self.data.join("bob")).unwrap();
        std::fs::write(self.data.join("admin/files/letter.odt"), "Deaf").unwrap();
        std::fs::write(self.data.join("encrypted.by.them"), "!").unwrap();
        std::fs::remove_file(self.html.join("core/a")).unwrap();
        ok("chown", &["-R", "0:0", self.data.join("admin").to_str().unwrap()]);
    }

    /// Nothing of a restore is left in it.
    #[track_caller]
    fn clean(&self) {
        let left = ok("find", &[self.html.to_str().unwrap(), "-name", ".nc-restore-*"]);
        assert_eq!(left, "");
    }
}

#[track_caller]
fn same(before: &Picture, path: &Path) {
    before.same_as(&picture(path));
}

#[test]
fn whole_sources_come_back_exactly_and_leave_each_other_alone() {
    let instance = Instance::new();
    let before = picture(&instance.html);
    instance.world.publish();
    instance.damage();
    // Nobody there to ask.
    let asked = instance.restore(&["--source", "data", "--in-place"]).expect(2);
    assert!(told(&asked).contains("--yes"), "{asked:?}");
    let damaged = picture(&instance.html);
    instance.restore(&["--source", "data", "--in-place", "--dry-run"]).expect(0);
    same(&damaged, &instance.html);

    let ran = instance.restore(&["--source", "data", "--in-place", "--yes", "--verify"]).expect(0);
    assert_eq!(ran.json["data"]["verified"], true);
    assert!(!instance.html.join("core/a").exists(), "html was not asked for");
    let ran = instance.restore(&["--source", "html", "--in-place", "--yes", "--keep-replaced"]).expect(0);
    let kept = PathBuf::from(ran.json["data"]["items"][0]["kept_at"].as_str().unwrap());
    assert!(kept.join("core").is_dir() && !kept.join("data").exists());
    std::fs::remove_dir_all(kept.parent().unwrap()).unwrap();
    ok("touch", &["-d", "2020-01-02 03:04:05.123456789", instance.html.to_str().unwrap()]);
    same(&before, &instance.html);
    instance.clean();
}

#[test]
fn a_file_a_user_and_another_place() {
    let instance = Instance::new();
    let before = picture(&instance.data);
    let date = instance.world.publish();
    let odd = "admin/files/sub/a[1]*\n.txt";
    std::fs::remove_file(instance.data.join(odd)).unwrap();
    instance.restore(&["--path", odd, "--in-place"]).expect(0);
    std::fs::remove_dir_all(instance.data.join("admin")).unwrap();
    instance.restore(&["--user", "admin", "--in-place"]).expect(0);
    // A folder above it is missing too: it comes back as it was.
    std::fs::remove_dir_all(instance.data.join("bob")).unwrap();
    instance.restore(&["--path", "bob/files/b", "--in-place"]).expect(0);
    ok("touch", &["-d", "2020-01-02 03:04:05.123456789", instance.data.to_str().unwrap()]);
    same(&before, &instance.data);

    let to = instance.world.dir.join("elsewhere");
    instance.restore(&["--source", "data", "--source", "html", "--to", to.to_str().unwrap()]).expect(0);
    for source in ["data", "html"] {
        same(&picture(&date.join(source)), &to.join(source));
    }
    for (bad, code) in [
        (&["--path", "../x", "--in-place"][..], 2),
        (&["--path", "/etc", "--in-place"], 2),
        (&["--in-place"], 2),
        (&["--user", "a/b", "--in-place"], 2),
        (&["--path", "admin", "--path", "admin/files", "--in-place"], 2),
        (&["--source", "database", "--in-place"], 2),
        (&["--path", "nobody", "--in-place"], 78),
        (&["--date", "2020-01-01T00-00-00Z", "--user", "bob", "--in-place"], 78),
        (&["--user", "bob", "--to", instance.world.store.to_str().unwrap()], 78),
    ] {
        assert!(!told(&instance.restore(bad).expect(code)).contains("internal"));
    }
    // As `find` and `diff` print it.
    let refused = told(&instance.restore(&["--path", "html/config/config.php", "--in-place"]).expect(78));
    assert!(refused.contains("--source html --path config/config.php"), "{refused}");
}

#[test]
fn what_backups_leave_out_is_not_lost_by_a_restore() {
    let instance = Instance::new();
    instance.world.file("data/alice/files/a", "a");
    let profile = std::fs::read_to_string(&instance.world.config).unwrap();
    let excluded =
        profile.replace("name = \"data\"\n", "name = \"data\"\nexclude = [\"/*/files/Videos/\"]\n");
    std::fs::write(&instance.world.config, excluded).unwrap();
    for path in ["alice/files/Videos/v", "bob/files/Videos/v", "nextcloud.log", "alice/cache/c"] {
        instance.world.file(&format!("data/{path}"), path);
    }
    instance.world.publish();
    let there = |path: &str| std::fs::read_to_string(instance.data.join(path)).is_ok_and(|text| text == path);

    // One user: the instance does not go back, so nothing of it is out of place.
    std::fs::write(instance.data.join("alice/files/a"), "changed").unwrap();
    let time = || std::fs::metadata(instance.data.join("alice/files")).unwrap().modified().unwrap();
    let before = time();
    instance.restore(&["--user", "alice", "--in-place", "--yes"]).expect(0);
    assert_eq!(std::fs::read_to_string(instance.data.join("alice/files/a")).unwrap(), "a");
    assert!(there("alice/files/Videos/v") && there("alice/cache/c"));
    assert_eq!(time(), before);

    // All of it: caches belong to what was there before, what users and logs hold does not.
    instance.restore(&["--source", "data", "--in-place", "--yes"]).expect(0);
    for path in ["alice/files/Videos/v", "bob/files/Videos/v", "nextcloud.log"] {
        assert!(there(path), "{path}");
    }
    assert!(!instance.data.join("alice/cache").exists());
    instance.clean();

    // What has no place any more is kept, and said.
    instance.world.file("data/carol/files/Videos/v", "carol/files/Videos/v");
    let ran = instance.restore(&["--source", "data", "--in-place", "--yes"]).expect(3);
    assert_eq!(ran.json["data"]["items"][0]["not_put_back"], serde_json::json!(["carol/files/Videos"]));
    assert_eq!(ran.json["data"]["items"][0]["kept_at"], serde_json::Value::Null);
    let kept = PathBuf::from(ran.json["data"]["items"][0]["left_out_at"].as_str().unwrap());
    assert!(kept.to_str().unwrap().ends_with(".kept") && kept.join("carol/files/Videos/v").exists());
    let all = ok("find", &[kept.to_str().unwrap(), "-type", "f"]);
    assert_eq!(all, kept.join("carol/files/Videos/v").display().to_string(), "only what has no place");
    assert!(there("alice/files/Videos/v") && !instance.data.join("carol").exists());
}

#[test]
fn a_restore_that_is_interrupted_while_it_puts_back_is_continued() {
    let instance = Instance::new();
    let profile = std::fs::read_to_string(&instance.world.config).unwrap();
    let excluded =
        profile.replace("name = \"data\"\n", "name = \"data\"\nexclude = [\"/*/files/Videos/\"]\n");
    std::fs::write(&instance.world.config, excluded).unwrap();
    let before = picture(&instance.html);
    instance.world.publish();
    for user in ["admin", "bob"] {
        instance.world.file(&format!("data/{user}/files/Videos/v"), user);
    }
    // The one that comes second (bob is looked at first) cannot be moved.
    let stuck = instance.data.join("admin/files/Videos");
    ok("chattr", &["+i", stuck.to_str().unwrap()]);
    let all = ["--source", "data", "--in-place", "--yes", "--keep-replaced"];
    // All else is done, and it is told what is not.
    let ran = instance.restore(&all).expect(4);
    let left = ran.json["left_behind"][0]["what"].as_str().unwrap();
    assert!(left.contains("admin/files/Videos"), "{ran:?}");
    let find = ["-name", "Videos", "-path", "*admin*"];
    let stuck = ok("find", &[&[instance.data.to_str().unwrap()], &find[..]].concat());
    assert!(stuck.contains(".partial/old/"), "{stuck}");
    ok("chattr", &["-i", &stuck]);
    // What is in its place already is in use, and changes: that is no part of what is restored, either.
    instance.world.file("data/bob/files/later", "made since");
    instance.world.file("data/admin/files/letter.odt", "Deaf");
    let ran = instance.restore(&[&all[..], &["--verify"]].concat()).expect(0);
    assert_eq!(ran.json["data"]["verified"], true, "{ran:?}");
    // Both of what it was and what it has become since are told.
    let item = &ran.json["data"]["items"][0];
    let kept =
        [&item["finished_first"]["kept_at"], &item["kept_at"]].map(|at| PathBuf::from(at.as_str().unwrap()));
    assert!(
        !kept[0].join("bob/files/later").exists() && kept[1].join("bob/files/later").exists(),
        "{kept:?}"
    );
    for kept in kept {
        std::fs::remove_dir_all(kept.parent().unwrap()).unwrap();
    }
    ok("touch", &["-d", "2020-01-02 03:04:05.123456789", instance.data.to_str().unwrap()]);
    for user in ["admin", "bob"] {
        let videos = instance.data.join(user).join("files/Videos");
        assert_eq!(std::fs::read_to_string(videos.join("v")).unwrap(), user);
        std::fs::remove_dir_all(&videos).unwrap();
        ok("touch", &["-d", "2020-01-02 03:04:05.123456789", videos.parent().unwrap().to_str().unwrap()]);
    }
    same(&before, &instance.html);
    instance.clean();
}

#[test]
fn what_is_deeper_than_a_path_may_be_long_does_not_stop_a_restore() {
    let instance = Instance::new();
    let before = picture(&instance.html);
    instance.world.publish();
    instance.damage();
    // As a program that wants to be in the way makes it.
    let deep = "chdir shift; my $d = 'x' x 200; for (1 .. 30) { mkdir $d or die; chdir $d or die } open F, '>x' or die";
    ok("perl", &["-e", deep, instance.data.join("admin/files").to_str().unwrap()]);
    instance.restore(&["--in-place", "--yes"]).expect(0);
    let top = instance.html.to_str().unwrap();
    ok("touch", &["-d", "2020-01-02 03:04:05.123456789", instance.data.to_str().unwrap(), top]);
    same(&before, &instance.html);
    instance.clean();
}

#[test]
fn sources_without_a_place_are_said_and_what_other_restores_left_too() {
    let instance = Instance::new();
    let with_all = std::fs::read_to_string(&instance.world.config).unwrap();
    instance.world.file("custom_apps/mine", "mine");
    let apps = instance.html.join("custom_apps");
    let more = format!("[[snapshot.source]]\nname = \"apps\"\npath = \"{}\"\n[store]", apps.display());
    std::fs::write(&instance.world.config, with_all.replace("[store]", &more)).unwrap();
    instance.world.publish();
    std::fs::write(&instance.world.config, &with_all).unwrap();
    let left = instance.data.join(".nc-restore-2001-01-01T00-00-00Z-00000000.replaced");
    std::fs::create_dir(&left).unwrap();
    for options in [&["--in-place", "--dry-run"][..], &["--in-place", "--yes"]] {
        let ran = instance.restore(options).expect(3);
        assert_eq!(ran.json["data"]["left_out_sources"], serde_json::json!(["apps"]));
        assert!(warnings(&ran).contains(&"sources-left-out"));
        assert_eq!(warnings(&ran).contains(&"earlier-restore"), options.contains(&"--yes"), "{ran:?}");
        // It lies in html, whose part of the snapshot does not hold it.
        assert_eq!(std::fs::read_to_string(apps.join("mine")).unwrap(), "mine");
    }
    assert!(left.exists());
}

#[test]
fn planted_links_lead_nowhere() {
    let instance = Instance::new();
    instance.world.publish();
    let away = instance.world.dir.join("away");
    std::fs::create_dir_all(away.join("files")).unwrap();
    std::fs::remove_dir_all(instance.data.join("admin")).unwrap();
    symlink(&away, instance.data.join("admin")).unwrap();
    instance.restore(&["--path", "admin/files/letter.odt", "--in-place", "--yes"]).expect(78);
    instance.restore(&["--user", "admin", "--in-place", "--yes"]).expect(0);
    assert!(instance.data.join("admin").symlink_metadata().unwrap().is_dir());
    // The data folder itself, in a folder that is the web server's.
    std::fs::rename(&instance.data, instance.world.dir.join("aside")).unwrap();
    symlink(&away, &instance.data).unwrap();
    instance.restore(&["--user", "admin", "--in-place", "--yes"]).expect(77);
    assert_eq!(std::fs::read_dir(away.join("files")).unwrap().count(), 0);
}

#[test]
fn what_was_replaced_is_not_mixed_with_what_is_replaced_later() {
    // Given a restore that was killed while it was about to keep what it had replaced, so that nothing says any more
    // how far it had come,
    let instance = Instance::new();
    instance.world.publish();
    let saved = picture(&instance.data);
    instance.damage();
    let ran = instance.restore(&["--source", "data", "--in-place", "--yes", "--keep-replaced"]).expect(0);
    let kept = PathBuf::from(ran.json["data"]["items"][0]["kept_at"].as_str().unwrap());
    let folder = kept.parent().unwrap().to_owned();
    let partial = PathBuf::from(folder.to_str().unwrap().replace(".replaced", ".partial"));
    std::fs::rename(&folder, &partial).unwrap();
    // when the same is restored again,
    std::fs::write(instance.data.join("admin/files/letter.odt"), "Dead").unwrap();
    instance.restore(&["--source", "data", "--in-place", "--yes"]).expect(0);
    // then it succeeds, and what the first one replaced is still there.
    assert!(folder.join("old/encrypted.by.them").exists());
    std::fs::remove_dir_all(&folder).unwrap();
    ok("touch", &["-d", "2020-01-02 03:04:05.123456789", instance.data.to_str().unwrap()]);
    same(&saved, &instance.data);
}

#[test]
fn a_killed_restore_is_continued_and_no_backup_runs_meanwhile() {
    let instance = Instance::new();
    let before = picture(&instance.data);
    instance.world.publish();
    instance.damage();
    let damaged = picture(&instance.data);
    let slow = instance.world.dir.join("slow-rsync");
    script(&slow, "#!/bin/sh\nrsync \"$@\" && exec sleep 30\n");
    let store = format!("store = \"{}\"", instance.world.store.display());
    instance.profile(&store, "");
    let text = std::fs::read_to_string(&instance.world.config).unwrap();
    std::fs::write(&instance.world.config, format!("{text}rsync = [\"{}\"]\n", slow.display())).unwrap();
    let mut command = instance.world.command("restore", &["--source", "data", "--in-place", "--yes"]);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let arrived = || ok("find", &[instance.data.to_str().unwrap(), "-path", "*/new/bob/files/b"]);
    until("a file arrives", || !arrived().is_empty());
    instance.world.snapshot(&[]).expect(75);
    kill(child.id(), "-KILL");
    child.wait().unwrap();
    // What is in use is as it was.
    let left = ok("find", &[instance.data.to_str().unwrap(), "-maxdepth", "1", "-name", ".nc-restore-*"]);
    std::fs::rename(&left, instance.world.dir.join("partial")).unwrap();
    let now = picture(&instance.data);
    std::fs::rename(instance.world.dir.join("partial"), &left).unwrap();
    assert!(damaged.0.keys().eq(now.0.keys()));

    instance.profile(&store, "");
    until("the children of the killed one have ended", || {
        instance.restore(&["--source", "data", "--in-place", "--yes"]).json["exit_code"] == 0
    });
    same(&before, &instance.data);
    instance.clean();
}

#[test]
fn a_store_without_root_behind_ssh_gives_back_owners_to_the_key_that_reads() {
    let instance = Instance::new();
    let before = picture(&instance.html);
    let account = Account::new();
    let sshd = Sshd::start(&account.name);
    let store = account.folder("store");
    let program = account.home.join("link-sync");
    std::fs::copy(testkit::bin("link-sync"), &program).unwrap();
    let ssh = format!(
        "[snapshot.ssh]\nport = {}\nidentity = \"/nowhere\"\nrestore_identity = \"{}\"\nknown_hosts = \"{}\"\nremote_program = \"{}\"",
        sshd.port,
        sshd.identity.display(),
        sshd.known_hosts.display(),
        program.display()
    );
    let place = format!("store = \"{}@127.0.0.1:{}\"", account.name, store.display());
    instance.profile(&place, &ssh);
    let key = sshd.identity.display().to_string();
    let backup = ["--crash-consistent", "--identity", &key];
    instance.world.act("snapshot", &backup).expect(0);
    instance.damage();

    // A key for backups does not read; one for reading does not write.
    let door = |options: &str| {
        let serve =
            format!("command=\"{} serve --store {}{options}\",restrict", program.display(), store.display());
        sshd.set_key_options(&serve);
    };
    door("");
    let refused = instance.restore(&["--source", "html", "--in-place", "--yes"]).expect(77);
    assert!(told(&refused).contains("restore_identity"), "{refused:?}");
    door(" --read-only");
    instance.world.act("snapshot", &backup).expect(77);
    instance.restore(&["--source", "html", "--source", "data", "--in-place", "--yes", "--verify"]).expect(0);
    same(&before, &instance.html);
    instance.clean();
}

/// Gives the store to an account, as if that had written it.
fn hand_over(instance: &Instance, account: &Account, date: &Path) {
    let text = std::fs::read_to_string(date.join(".meta/snapshot.json")).unwrap();
    let own = text.replace("\"fake_super\": false", "\"fake_super\": true");
    assert_ne!(own, text);
    std::fs::write(date.join(".meta/snapshot.json"), own).unwrap();
    ok("chown", &["-hR", &account.name, instance.world.store.to_str().unwrap()]);
}

fn plant(path: &Path, name: &str, value: &str) {
    ok("setfattr", &["-n", name, "-v", value, path.to_str().unwrap()]);
}

#[test]
fn the_account_of_a_store_makes_nothing_of_roots_here() {
    // Given a store whose account made up a shell of root's, a disk, and a program with all capabilities,
    let instance = Instance::new();
    let account = Account::new();
    for name in ["shell", "disk", "able", "folder/x"] {
        instance.world.file(&format!("data/bob/files/{name}"), name);
    }
    let date = instance.world.publish();
    let planted = date.join("data/bob/files");
    plant(&planted.join("shell"), "user.rsync.%stat", "104755 0,0 0:0");
    plant(&planted.join("disk"), "user.rsync.%stat", "60666 254,0 0:0");
    plant(&planted.join("folder"), "user.rsync.%stat", "42770 0,0 33:33");
    let all = "0x0100000201000000000000000000000000000000";
    plant(&planted.join("able"), "user.rsync.security.capability", all);
    hand_over(&instance, &account, &date);
    // when its files are restored,
    let ran = instance.restore(&["--user", "bob", "--in-place", "--yes"]).expect(3);
    // then they come without, and it is said.
    let files = instance.data.join("bob/files");
    let mode = |name: &str| std::fs::metadata(files.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("shell"), mode("folder")), (0o755, 0o2770));
    assert!(!files.join("disk").exists());
    let capable = || {
        ok(
            "getfattr",
            &["--absolute-names", "-m", "^security.cap", "-d", files.join("able").to_str().unwrap()],
        )
    };
    assert_eq!(capable(), "");
    assert_eq!(warnings(&ran), ["set-id-and-devices-left-out"]);
    let told = &ran.json["data"]["items"][0]["set_id_and_devices_left_out"];
    assert_eq!(told["total"], 3);
    assert_eq!(told["first"][2], "bob/files/shell: mode 4755");
    // Who wants them asks for them.
    instance.restore(&["--user", "bob", "--in-place", "--yes", "--set-id-and-devices"]).expect(0);
    assert_eq!(mode("shell"), 0o4755);
    assert_ne!(capable(), "");
    assert!(!std::fs::metadata(files.join("disk")).unwrap().is_file());
    std::fs::remove_file(files.join("disk")).unwrap();
}

#[test]
fn what_root_saved_in_a_store_of_roots_comes_back_with_its_set_id_bits() {
    let instance = Instance::new();
    let tool = instance.html.join("core/a");
    ok("chmod", &["4755", tool.to_str().unwrap()]);
    let before = picture(&instance.html);
    instance.world.publish();
    std::fs::remove_file(&tool).unwrap();
    instance.restore(&["--source", "html", "--in-place", "--yes"]).expect(0);
    ok("touch", &["-d", "2020-01-02 03:04:05.123456789", instance.html.to_str().unwrap()]);
    same(&before, &instance.html);
}

#[test]
fn the_account_of_a_store_does_not_make_occ_run_as_root() {
    let instance = Instance::new();
    let account = Account::new();
    let date = instance.world.publish();
    plant(&date.join("html/config/config.php"), "user.rsync.%stat", "100640 0,0 0:0");
    hand_over(&instance, &account, &date);
    let config = instance.html.join("config/config.php");
    let owner = || std::fs::metadata(&config).unwrap().uid();
    for part in [&["--source", "html"][..], &["--source", "html", "--path", "config/config.php"]] {
        let ran = instance.restore(&[part, &["--in-place", "--yes"]].concat()).expect(77);
        assert!(told(&ran).contains("occ would run as root"), "{ran:?}");
        assert_eq!(owner(), 33);
    }
    let asked = ["--source", "html", "--in-place", "--yes", "--set-id-and-devices"];
    instance.restore(&[&asked[..], &["--path", "config/config.php"]].concat()).expect(3);
    assert_eq!(owner(), 0);
    instance.restore(&asked).expect(0);
    // It is root's already, so nothing is won by it.
    instance.restore(&["--source", "html", "--in-place", "--yes"]).expect(0);
}

#[test]
fn paths_that_look_the_same_are_found_and_come_back_together() {
    // Given names that differ in bytes that are no text, and names that look like others' escapes,
    let world = World::new();
    let names: [&[u8]; 9] = [
        b"a\x80",
        b"a\xff",
        b"a\xfe\n",
        b"a\n",
        b"a\\n",
        b"a\"'",
        b"a\xc3",
        b"a\xed\xa0\x80",
        "a\u{fffd}".as_bytes(),
    ];
    let path = |top: &Path, name: &[u8]| top.join(std::ffi::OsStr::from_bytes(name));
    for name in names {
        std::fs::write(path(&world.source, name), name).unwrap();
    }
    let date = world.publish();
    // when they are looked for,
    let found = world.act("find", &["--name", "a*"]).expect(0);
    let decode = |text: &str| {
        let script = ["-c", "printf %s \"$1\" | base64 -d", "sh", text];
        std::process::Command::new("sh").args(script).output().unwrap().stdout
    };
    let paths = found.json["data"]["paths"].as_array().unwrap().iter();
    let mut told: Vec<Vec<u8>> = paths
        .map(|p| match p["path_b64"].as_str() {
            Some(bytes) => decode(bytes),
            None => p["path"].as_str().unwrap().as_bytes().to_vec(),
        })
        .map(|p| p.strip_prefix(b"docs/").unwrap().to_vec())
        .collect();
    told.sort();
    let mut all: Vec<_> = names.iter().map(|n| n.to_vec()).collect();
    all.sort();
    assert_eq!(told, all);
    // and what was found is restored at once, to another place and to its own,
    let restore = |options: &[&std::ffi::OsStr]| {
        let mut command = world.command("restore", &["--source", "docs", "--yes"]);
        for name in &told {
            command.arg("--path").arg(std::ffi::OsStr::from_bytes(name));
        }
        testkit::run(command.args(options))
    };
    let to = path(&world.dir, b"to\xff");
    let ran = restore(&["--to".as_ref(), to.as_os_str()]).expect(0);
    let items = ran.json["data"]["items"].as_array().unwrap();
    assert_eq!(items.iter().filter(|i| i["path_b64"].is_string()).count(), 5, "{items:#?}");
    for name in names {
        assert_eq!(std::fs::read(path(&to.join("docs"), name)).unwrap(), name);
        std::fs::write(path(&world.source, name), "other").unwrap();
    }
    let ran = restore(&["--in-place".as_ref(), "--keep-replaced".as_ref()]).expect(0);
    // then each is what it was, and each of what was replaced is kept by itself.
    let kept: std::collections::BTreeSet<_> = ran.json["data"]["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["kept_at"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kept.len(), names.len());
    for name in names {
        assert_eq!(std::fs::read(path(&world.source, name)).unwrap(), name);
    }
    // What is wrong with them is told in bytes, too, and so is what differs.
    for name in [b"a\x80", b"a\xff"] {
        std::fs::remove_file(path(&date.join("docs"), name)).unwrap();
    }
    let wrong = world.act("verify", &[]).expect(1);
    let listed = wrong.json["data"]["findings"].as_array().unwrap();
    let mut bytes: Vec<_> = listed.iter().filter_map(|f| f["paths_b64"][0].as_str()).map(decode).collect();
    bytes.sort();
    assert_eq!(bytes, [b"docs/a\x80", b"docs/a\xff"]);
}

#[test]
fn several_paths_come_back_into_a_folder_that_is_not_there() {
    // Given a user whose folder is gone,
    let instance = Instance::new();
    instance.world.file("data/bob/files/sub/c", "c");
    ok("chown", &["-hR", "33:44", instance.data.join("bob").to_str().unwrap()]);
    ok("touch", &["-d", "2020-01-02", instance.data.join("bob/files").to_str().unwrap()]);
    ok("touch", &["-d", "2020-01-02", instance.data.join("bob/files/sub").to_str().unwrap()]);
    let before = picture(&instance.data.join("bob"));
    instance.world.publish();
    std::fs::remove_dir_all(instance.data.join("bob")).unwrap();
    // when two of their files are asked for,
    let two = ["--source", "data", "--path", "bob/files/b", "--path", "bob/files/sub/c"];
    instance.restore(&[&two[..], &["--in-place"]].concat()).expect(0);
    // then all are there, with what they were in.
    before.same_as(&picture(&instance.data.join("bob")));
    instance.clean();
    let to = instance.world.dir.join("elsewhere");
    instance.restore(&[&two[..], &["--to", to.to_str().unwrap()]].concat()).expect(0);
    before.same_as(&picture(&to.join("data/bob")));
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1);
}
