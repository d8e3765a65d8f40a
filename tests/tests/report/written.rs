//! Where the page goes: whole or not at all, through no link, readable for nobody who could not read it before.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::run;
use testkit::terminal::on_terminal;

use crate::world::World;

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_written_whole_with_mode_0600_or_the_one_it_has() {
    let world = World::new(&["--nights", "5"]);
    let dir = world.path("pages");
    std::fs::create_dir(&dir).unwrap();
    let at = dir.join("a page.html");
    let write = |at: &Path| run(world.report(&["--output"]).arg(at));
    let ran = write(&at).expect(0);
    assert_eq!(ran.json["data"]["output"], at.to_str().unwrap());
    assert_eq!(ran.json["changed"], true);
    assert!(ran.json["data"]["nights"].as_array().unwrap().len() > 3);
    assert_eq!(mode(&at), 0o600);
    let page = std::fs::read_to_string(&at).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    // What somebody has opened to a group of his own stays so, and is another file then: who reads it reads a whole page.
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o640)).unwrap();
    chown(&at, None, Some(33)).unwrap();
    let inode = at.metadata().unwrap().ino();
    write(&at).expect(0);
    assert_eq!((mode(&at), at.metadata().unwrap().gid()), (0o640, 33));
    assert_ne!(at.metadata().unwrap().ino(), inode);
    // A mode that somebody else has chosen, or that comes by another name of a file, is none.
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o4666)).unwrap();
    chown(&at, Some(65534), None).unwrap();
    write(&at).expect(0);
    assert_eq!((mode(&at), at.metadata().unwrap().uid()), (0o600, 0));
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::hard_link(&at, dir.join("other")).unwrap();
    write(&at).expect(0);
    assert_eq!((mode(&at), mode(&dir.join("other"))), (0o600, 0o644));
    assert_eq!(names(&dir), ["a page.html", "other"]);
}

#[test]
fn no_link_is_followed_and_what_is_no_file_is_refused() {
    let world = World::new(&["--nights", "2"]);
    let precious = world.path("precious");
    std::fs::write(&precious, "precious").unwrap();
    symlink(&precious, world.path("link.html")).unwrap();
    nix::unistd::mkfifo(&world.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (output, says) in [
        ("link.html", "is a symbolic link"),
        ("state", "is a folder"),
        ("pipe", "is no regular file"),
        ("none/page.html", "there is no folder"),
    ] {
        let ran = run(world.report(&["--output"]).arg(world.path(output))).expect(78);
        assert!(ran.json["error"]["message"].as_str().unwrap().contains(says), "{:#}", ran.json);
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    assert!(world.path("link.html").is_symlink());
    // One that is planted while the page is made: nothing is opened under a name that somebody else could know.
    let slow = format!(
        "#!/bin/sh\n[ $1 != status ] || ln -sf '{0}' '{1}'\nexec cat '{2}.'$1\n",
        precious.display(),
        world.path("planted.html").display(),
        world.path("nc-maint").display()
    );
    testkit::script(&world.path("bin/nc-maint"), &slow);
    run(world.report(&["--output"]).arg(world.path("planted.html"))).expect(0);
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    assert!(std::fs::read_to_string(world.path("planted.html")).unwrap().starts_with("<!DOCTYPE"));
}

#[test]
fn a_page_that_cannot_be_written_leaves_the_one_before_and_says_so() {
    let world = World::new(&["--nights", "2"]);
    let full = Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" >/dev/full"])
        .arg(testkit::scripts().join("report"))
        .arg("home")
        .arg("--config")
        .arg(world.path("home.toml"))
        .arg("--bin")
        .arg(world.path("bin"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(1), "{}", String::from_utf8_lossy(&full.stderr));
    // A disk with no room for it.
    let small = world.path("small");
    std::fs::create_dir(&small).unwrap();
    let at = small.join("page.html");
    let script = format!(
        "mount -t tmpfs -o size=16k none '{0}' && echo before >'{1}' && \"$@\" --output '{1}'; rc=$?; cat '{1}'; ls -A '{0}'; exit $rc",
        small.display(),
        at.display()
    );
    let ran = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, "sh"])
        .arg(testkit::scripts().join("report"))
        .arg("home")
        .arg("--config")
        .arg(world.path("home.toml"))
        .arg("--bin")
        .arg(world.path("bin"))
        .output()
        .unwrap();
    let out = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{out}");
    assert!(out.contains("the page cannot be written to") && out.ends_with("before\npage.html\n"), "{out}");
}

#[test]
fn on_a_terminal_it_goes_into_the_state_folder_and_the_place_is_told() {
    let world = World::new(&["--nights", "3"]);
    std::fs::set_permissions(world.path("state"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let seen = on_terminal(&world.report(&[]), "2>/dev/null");
    assert_eq!(seen.code, 0, "{}", seen.text);
    let at = world.path("state/report.html");
    assert!(
        seen.text.contains(at.to_str().unwrap()) && seen.text.contains("report home: ok"),
        "{}",
        seen.text
    );
    assert!(!seen.text.contains('<'), "{}", seen.text);
    assert_eq!(mode(&at), 0o600);
    let seen = on_terminal(&world.report(&["--json"]), "2>/dev/null");
    let json: serde_json::Value = serde_json::from_str(seen.lines().last().unwrap()).unwrap();
    testkit::check_status(&json);
    assert_eq!(json["data"]["verdict"], "well");
}

#[test]
fn what_is_wrong_with_the_profile_is_the_exit_code() {
    let world = World::new(&["--nights", "2"]);
    let report = |options: &[&str]| {
        let mut command = Command::new(testkit::scripts().join("report"));
        command.args(options).arg("--bin").arg(world.path("bin"));
        run(&mut command)
    };
    let none = report(&["nobody"]).expect(78);
    assert!(
        none.json["error"]["message"]
            .as_str()
            .unwrap()
            .contains("there is no profile /etc/nc-backup/nobody.toml")
    );
    report(&["Not-A-Name"]).expect(2);
    report(&["home", "--what"]).expect(2);
    report(&[]).expect(2);
    let soon = world.report(&["--max-backup-age", "soon"]).output().unwrap();
    assert_eq!(soon.status.code(), Some(2), "{}", String::from_utf8_lossy(&soon.stderr));
    world.answers("link-sync.profile", |object| {
        object["exit_code"] = 78.into();
        object["status"] = "config".into();
        object["error"] = serde_json::json!({"kind": "config", "message": "snapshot.store is missing", "causes": [], "hint": null, "command": null});
    });
    testkit::script(
        &world.path("bin/link-sync"),
        &format!("#!/bin/sh\ncat '{}.'$1\nexit 78\n", world.path("link-sync").display()),
    );
    for script in ["status", "report"] {
        let wrong = run(&mut world.script(script, &[])).expect(78);
        assert_eq!(wrong.json["error"]["message"], "snapshot.store is missing", "{:#}", wrong.json);
    }
}
