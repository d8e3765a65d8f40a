//! Options, the profile, rights.

use std::process::Command;

use testkit::{run, tool};

use crate::world::World;

#[test]
fn wrong_words_are_usage() {
    for words in [
        &["push", "home", "extra"][..],
        &["push", "home", "--date", "yesterday"],
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
