//! What is refused before anything is touched. No device mapper needed.

use crate::world::World;

#[test]
fn key_files_that_are_not_private_are_refused() {
    let world = World::new();
    for (change, code, word) in [
        ("chmod 644 key", 77, "mode 0644"),
        ("chmod 640 key", 77, "mode 0640"),
        ("chown nobody key", 77, "user id 65534"),
        (": >key", 78, "is empty"),
        ("mv key k; ln -s k key", 78, "symbolic link"),
        ("rm key; mkdir key", 78, "not a regular file"),
        ("rm -r key", 78, "does not exist"),
    ] {
        world.sh("rm -rf key k");
        world.key("key");
        world.sh(change);
        let ran = world.create(&["--size", "64M"]).expect(code);
        assert!(ran.stderr.contains(word), "{change}: {}", ran.stderr);
        assert_eq!(world.sh("ls -A s3; ls -A state"), "container.lock", "{change}");
    }
    world.nothing_is_up();
}

#[test]
fn create_overwrites_nothing() {
    let world = World::new();
    for (change, word) in [
        ("echo x >s3/c.img", "c.img"),
        ("ln -s /etc/passwd s3/c.img", "c.img"),
        ("mkdir -m 700 -p state; echo x >state/container.header", "container.header"),
        ("mkdir -m 700 -p state; echo x >state/container.json", "container.json"),
    ] {
        world.sh("rm -rf s3/* state");
        world.sh(change);
        let before = world.sh("sha256sum s3/* state/* 2>/dev/null | grep -v lock || :");
        let ran = world.create(&["--size", "64M"]).expect(78);
        assert!(ran.stderr.contains(word), "{change}: {}", ran.stderr);
        assert_eq!(world.sh("sha256sum s3/* state/* 2>/dev/null | grep -v lock || :"), before);
    }
    for (size, code) in [("31M", 78), ("0", 2), ("much", 2)] {
        world.sh("rm -rf s3/* state");
        assert_eq!(world.create(&["--size", size]).code, code, "{size}");
    }
    world.nothing_is_up();
}

#[test]
fn without_a_container_or_a_profile_it_says_what_to_do() {
    let world = World::new();
    for action in ["attach", "detach", "status"] {
        let ran = world.run(action, [""; 0]);
        assert_eq!(ran.code, if action == "attach" { 78 } else { 0 }, "{action}: {}", ran.stderr);
    }
    assert_eq!(world.state(), "detached");
    let ran = testkit::tool("luks-mount", ["attach", "no-such-profile"]).expect(78);
    assert!(ran.stderr.contains("no-such-profile.toml"), "{}", ran.stderr);
    let ran = testkit::tool("luks-mount", ["attach"]).expect(78);
    assert!(ran.stderr.contains("[offsite.luks]"), "{}", ran.stderr);
    testkit::tool("luks-mount", ["attach", "a", "b"]).expect(2);
    testkit::tool("luks-mount", ["attach", "../a"]).expect(2);
}

#[test]
fn others_than_root_are_told() {
    let world = World::new();
    let program = testkit::bin("luks-mount");
    // Somebody else cannot look into the build folder.
    let text = format!(
        "d=$(mktemp -d); chmod 755 $d; cp {} $d/x; setpriv --reuid=65534 --clear-groups $d/x status >out 2>&1 && exit 1
         rm -r $d; grep -q 'run it as root' out && grep -q '\"exit_code\":77' out",
        program.display()
    );
    world.sh(&text);
}
