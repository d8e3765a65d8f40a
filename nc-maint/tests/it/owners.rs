//! Whom PHP may run as: whoever owns what it reads decides what it does, and nobody below root becomes root by that.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::world::World;

fn chown(owner: &str, path: &Path) {
    let done = Command::new("chown").args(["-h", owner]).arg(path).status().unwrap();
    assert!(done.success(), "chown {owner} {}", path.display());
}

fn chmod(mode: u32, path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

type Row = (&'static str, &'static str, u32, &'static str, u32, Result<&'static str, i32>);
type Spoil = fn(&World);

impl World {
    /// All of the code, and config/ with what is in it.
    fn own(&self, code: &str, config: &str, file: &str) {
        let root = self.root();
        let all = Command::new("chown").args(["-R", code]).arg(&root).status().unwrap();
        assert!(all.success());
        chown(config, &root.join("config"));
        chown(file, &self.config());
        chown("www-data:www-data", &self.data());
    }

    /// occ that also writes down who ran it, as an attacker would find out.
    fn tell_who(&self) {
        let occ = self.root().join("occ");
        let who = self.path().join("who");
        let tell = format!(
            "<?php\nfile_put_contents('{}', posix_geteuid() . \"\\n\", FILE_APPEND);\n",
            who.display()
        );
        let text = std::fs::read_to_string(&occ).unwrap();
        std::fs::write(&occ, text.replacen("<?php\n", &tell, 1)).unwrap();
        std::fs::write(&who, "").unwrap();
        chmod(0o666, &who);
    }

    fn who(&self) -> String {
        std::fs::read_to_string(self.path().join("who")).unwrap()
    }
}

#[test]
fn a_link_to_a_file_of_roots_does_not_run_the_web_users_occ_as_root() {
    let world = World::auto();
    world.tell_who();
    let aside = world.path().join("config.php");
    std::fs::rename(world.config(), &aside).unwrap();
    symlink("/etc/passwd", world.config()).unwrap();
    chown("www-data", &world.config());
    for action in ["status", "on", "off", "inspect"] {
        let ran = world.ask(action, &[]).expect(77);
        let message = ran.json["error"]["message"].as_str().unwrap();
        assert!(message.contains("config/config.php is a symbolic link"), "{message}");
        assert!(ran.json["error"]["hint"].as_str().unwrap().contains("sudo"), "{:#}", ran.json);
    }
    world.run(&[], "true").expect(77);
    // Nor where the words of occ are given, and run it as who we are.
    let occ = world.root().join("occ");
    let occ = occ.to_str().unwrap();
    for words in [vec!["php", occ], vec![occ], vec!["env", "A=b", "php", occ]] {
        let words: Vec<String> = words.iter().map(|w| format!("--occ={w}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.ask("status", &words).expect(77);
    }
    // A folder that is a link is no better.
    std::fs::remove_file(world.config()).unwrap();
    std::fs::rename(&aside, world.config()).unwrap();
    std::fs::rename(world.root().join("config"), world.path().join("elsewhere")).unwrap();
    symlink(world.path().join("elsewhere"), world.root().join("config")).unwrap();
    world.ask("status", &[]).expect(77);
    assert_eq!(world.who(), "", "occ ran");
}

#[test]
fn php_runs_as_an_account_only_if_all_of_it_fits() {
    let (web, root, other) = ("www-data:www-data", "root:root", "nobody:nogroup");
    // code, config/, its mode, config.php, its mode; who occ runs as, or the exit code.
    let table: [Row; 14] = [
        (web, web, 0o750, web, 0o640, Ok("33")),
        // Code that the web user cannot change.
        (root, web, 0o750, web, 0o640, Ok("33")),
        (root, "root:www-data", 0o750, web, 0o640, Ok("33")),
        (root, "root:www-data", 0o770, web, 0o640, Ok("33")),
        // All is root's, and nobody else can write.
        (root, root, 0o755, root, 0o644, Ok("0")),
        // Somebody else can.
        (root, web, 0o750, "root:www-data", 0o640, Err(77)),
        (web, web, 0o750, "root:www-data", 0o640, Err(77)),
        (root, "root:www-data", 0o770, "root:www-data", 0o640, Err(77)),
        (root, "root:www-data", 0o750, "root:www-data", 0o660, Err(77)),
        (web, root, 0o755, root, 0o644, Err(77)),
        // A third account's code or folder, or its file in the web user's.
        (other, web, 0o750, web, 0o640, Err(77)),
        (root, other, 0o755, web, 0o640, Err(77)),
        (root, web, 0o750, other, 0o640, Err(77)),
        (root, "root:www-data", 0o770, other, 0o640, Err(77)),
    ];
    for (row, (code, config, mode, file, file_mode, wanted)) in table.into_iter().enumerate() {
        let world = World::new();
        world.tell_who();
        world.own(code, config, file);
        chmod(mode, &world.root().join("config"));
        chmod(file_mode, &world.config());
        let ran = world.ask("status", &[]);
        match wanted {
            Ok(who) => {
                ran.expect(0);
                assert_eq!(world.who().lines().next(), Some(who), "row {row}");
            }
            Err(exit) => {
                let ran = ran.expect(exit);
                assert!(
                    ran.json["error"]["hint"].as_str().unwrap().contains("chown"),
                    "row {row}: {:#}",
                    ran.json
                );
                assert_eq!(world.who(), "", "row {row}: occ ran");
            }
        }
    }
}

#[test]
fn as_root_it_runs_only_what_nobody_else_can_write_in_any_folder() {
    let spoil: [(&str, Spoil); 5] = [
        ("an app", |w| {
            std::fs::create_dir_all(w.root().join("apps/mail")).unwrap();
            chown("www-data", &w.root().join("apps/mail"));
        }),
        ("custom_apps", |w| {
            std::fs::create_dir(w.root().join("custom_apps")).unwrap();
            chown("www-data", &w.root().join("custom_apps"));
        }),
        ("a file beside config.php", |w| {
            let file = w.root().join("config/a.config.php");
            std::fs::write(&file, "<?php $CONFIG = [];").unwrap();
            chown("www-data", &file);
        }),
        ("the folder above", |w| chmod(0o777, w.path())),
        ("apps elsewhere", |w| {
            let apps = w.path().join("apps");
            std::fs::create_dir(&apps).unwrap();
            chown("www-data", &apps);
            let text = std::fs::read_to_string(w.config()).unwrap();
            let more =
                format!("$CONFIG['apps_paths'] = [['path' => '{}', 'writable' => true]];\n", apps.display());
            std::fs::write(w.config(), text + &more).unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        let world = World::new();
        world.tell_who();
        world.own("root:root", "root:root", "root:root");
        chmod(0o644, &world.config());
        world.ask("status", &[]).expect(0);
        std::fs::write(world.path().join("who"), "").unwrap();
        spoil(&world);
        let ran = world.ask("status", &[]).expect(77);
        assert!(ran.json["error"]["message"].as_str().unwrap().contains("nothing is run as root"), "{what}");
        assert_eq!(world.who(), "", "{what}");
    }
}

#[test]
fn a_file_of_another_account_that_a_member_of_the_group_put_there_runs_nothing_as_that_account() {
    // `config/` of root's that the group www-data can write; a hard link to a file of an account in that group.
    let world = World::new();
    world.tell_who();
    world.own("root:root", "root:www-data", "www-data:www-data");
    chmod(0o770, &world.root().join("config"));
    world.ask("status", &[]).expect(0);
    std::fs::write(world.path().join("who"), "").unwrap();
    std::fs::hard_link(world.config(), world.path().join("theirs")).unwrap();
    world.ask("status", &[]).expect(77);
    assert_eq!(world.who(), "");
}

#[test]
fn php_does_not_run_somebody_elses_configuration_as_an_ordinary_user() {
    let world = World::auto();
    std::fs::write(world.config(), "<?php touch(dirname(__DIR__, 2) . '/ran'); $CONFIG = [];").unwrap();
    chmod(0o644, &world.config());
    chmod(0o755, &world.root().join("config"));
    let state = world.path().join("nobody");
    std::fs::create_dir(&state).unwrap();
    chmod(0o700, &state);
    chown("nobody", &state);
    chmod(0o777, world.path());
    let tool = testkit::bin("nc-maint");
    let copy = world.path().join("nc-maint");
    std::fs::copy(tool, &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]).arg(&copy);
    command.args(["status", "--root"]).arg(world.root()).arg("--state-dir").arg(&state);
    let ran = testkit::run(&mut command).expect(77);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("must not be as somebody else"),
        "{:#}",
        ran.json
    );
    assert!(!world.path().join("ran").exists());
}
