//! Options, the profile, rights.

use std::process::Command;

use testkit::{run, tool};

use crate::world::World;

#[test]
fn wrong_words_are_usage() {
    for words in [
        &["push", "home", "extra"][..],
        &["push", "home", "--bwlimit", "fast"],
        &["push", "home", "--patience", "long"],
        &["view", "home", "--bwlimit", "1m"],
        &["push", "../home"],
        &["sync", "home"],
        &[],
    ] {
        tool("offsite-push", words).expect(2);
    }
}

#[test]
fn what_the_profile_lacks_is_named() {
    let world = World::new();
    let profile = |text: &str| {
        std::fs::write(world.path("home.toml"), text).unwrap();
        let ran = world.push().expect(78);
        assert!(world.calls().is_empty());
        let error = &ran.json["error"];
        format!("{} {}", error["message"].as_str().unwrap(), error["hint"].as_str().unwrap_or_default())
    };
    let dir = world.path("");
    let state = format!("state_dir = \"{0}state\"\nruntime_dir = \"{0}run\"\n", dir.display());
    assert!(profile(&state).contains("[offsite.luks]"));
    let luks = "[offsite.luks]\nimage = \"/c.img\"\nkey_file = \"/k\"\n";
    assert!(profile(&format!("{state}{luks}")).contains("no store is named"));
    assert!(profile(&format!("{state}[store]\npath = \"/no/store\"\n{luks}")).contains("/no/store"));
    let store = format!("[store]\npath = \"{0}store\"\nmount = \"{0}store\"\n", dir.display());
    assert!(profile(&format!("{state}{store}{luks}")).contains("nothing is mounted at"));
    assert!(profile(&format!("{state}[offsite]\nstroe = \"/s\"\n{luks}")).contains("did you mean 'store'?"));
}

#[test]
fn without_root_it_is_denied_with_the_cure() {
    let world = World::new();
    // Where cargo builds may be closed to other accounts.
    let dir = testkit::scratch();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = dir.path().join("offsite-push");
    std::fs::copy(testkit::bin("offsite-push"), &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    let ran = run(command.args(["push", "--config"]).arg(world.path("home.toml")));
    assert!(ran.expect(77).json["error"]["hint"].as_str().unwrap().contains("as root"));
}

#[test]
fn a_sibling_that_others_can_write_to_is_not_run() {
    let world = World::new();
    let sibling = world.path("bin/luks-mount");
    let text = std::fs::read_to_string(&sibling).unwrap();
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    for (what, says) in
        [("group", "written to by others"), ("others", "written to by others"), ("owner", "user 65534")]
    {
        match what {
            "group" => std::fs::set_permissions(&sibling, mode(0o775)).unwrap(),
            "others" => std::fs::set_permissions(&sibling, mode(0o757)).unwrap(),
            _ => std::os::unix::fs::chown(&sibling, Some(65534), None).unwrap(),
        }
        let error = &world.push().expect(77).json["error"];
        assert!(error["message"].as_str().unwrap().contains(says), "{what}: {error:#}");
        assert!(error["hint"].as_str().unwrap().contains("chown root:root"), "{what}: {error:#}");
        assert!(world.calls().is_empty(), "{what}: nothing was begun");
        std::fs::remove_file(&sibling).unwrap();
        testkit::script(&sibling, &text);
    }
    // Nor is what is no program; through a link of root's, as some packages make them, it may be found.
    std::fs::set_permissions(&sibling, mode(0o644)).unwrap();
    world.push().expect(77);
    std::fs::rename(&sibling, world.path("elsewhere")).unwrap();
    let error = &world.push().expect(69).json["error"];
    assert!(error["hint"].as_str().unwrap().contains("install luks-mount beside offsite-push"), "{error:#}");
    std::fs::set_permissions(world.path("elsewhere"), mode(0o755)).unwrap();
    std::os::unix::fs::symlink(world.path("elsewhere"), &sibling).unwrap();
    world.push().expect(0);
}

#[test]
fn tools_of_two_versions_do_nothing_together() {
    let world = World::new();
    let sibling = world.path("bin/link-sync");
    let text = std::fs::read_to_string(&sibling).unwrap();
    testkit::script(&sibling, &text.replace("echo \"$tool 0.1.0\"", "echo \"$tool 0.2.0\""));
    let error = &world.push().expect(69).json["error"];
    assert!(error["message"].as_str().unwrap().contains("'link-sync 0.2.0'"), "{error:#}");
    assert!(error["hint"].as_str().unwrap().contains("an upgrade"), "{error:#}");
    assert!(world.calls().is_empty(), "nothing was begun");
}
