//! The image lies behind an sshfs, which may hang or die.

use std::time::{Duration, Instant};

use crate::world::{World, elsewhere, warnings};

/// An sshfs on the folder of the image, by way of a server without ssh. Its process id.
fn mount(world: &World) -> String {
    // As sshfs-mount's relay would count: nothing has left for a while.
    world.sh("mkdir -m 700 -p run; echo 1 0 0 >run/s3.wire");
    testkit::script(&world.path("server"), "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n");
    world.sh("mkdir -p link; sshfs -o ssh_command=$PWD/server far:$PWD/s3 $PWD/link; mountpoint -q link
         pgrep -x sshfs")
}

fn world() -> World {
    let world = World::with(64, "ext4");
    let text = world.sh("cat *.toml").replace("/s3/c.img", "/link/c.img");
    std::fs::write(world.sh("ls $PWD/*.toml"), text).unwrap();
    world
}

#[test]
fn a_dead_link_is_told_and_ended_in_order() {
    if elsewhere("link::a_dead_link_is_told_and_ended_in_order") {
        return;
    }
    let world = world();
    let not_mounted = world.attach().expect(69);
    assert!(not_mounted.json["error"]["hint"].as_str().unwrap().contains("sshfs-mount mount"));
    for (signal, link) in [("KILL", "dead"), ("STOP", "hung")] {
        let sshfs = mount(&world);
        let up = world.attach().expect(0);
        assert_eq!(up.json["data"]["link"], "healthy");
        // After the first round it is not believed that nothing was lost.
        assert_eq!(up.json["data"]["fsck"] == "not-needed", link == "dead", "{:#}", up.json);
        world.sh(&format!("head -c 5M /dev/urandom >run/container/{link}; sync run/container/{link}"));
        world.sh(&format!(
            "(while :; do head -c 1M /dev/urandom; done >run/container/f) >/dev/null 2>&1 & sleep 1
             kill -{signal} {sshfs}; sleep 1; kill %1 2>/dev/null || :"
        ));
        let begin = Instant::now();
        let seen = world.run("status", [""; 0]).expect(0);
        assert_eq!(
            (&seen.json["data"]["state"], &seen.json["data"]["link"]),
            (&"attached".into(), &link.into())
        );
        let down = world.detach().expect(0);
        assert!(begin.elapsed() < Duration::from_secs(60), "{link}: {:?}", begin.elapsed());
        assert!(warnings(&down).contains(&"link-dead"), "{:#}", down.json);
        assert_eq!(down.json["data"]["clean"], false);
        world.sh("grep -q '\"check_needed\": true' state/container.json");
        world.nothing_is_up();
        world.attach().expect(69);
        world.sh("umount link");
    }
    // What had been written before is there.
    mount(&world);
    world.attach().expect(0);
    for link in ["dead", "hung"] {
        assert_eq!(world.sh(&format!("stat -c %s run/container/{link}")), (5 << 20).to_string());
    }
    world.detach().expect(0);
    world.sh("umount link");
    world.nothing_is_up();
}

#[test]
fn a_link_that_dies_while_detaching_is_noticed() {
    if elsewhere("link::a_link_that_dies_while_detaching_is_noticed") {
        return;
    }
    let world = world();
    // Dirty at the moment of the detach, and stopped a moment later: while it is flushed, unmounted, closed.
    for moment in ["0.05", "0.09", "0.2"] {
        let sshfs = mount(&world);
        world.attach().expect(0);
        world.sh(&format!(
            "head -c 4M /dev/urandom >run/container/f; (sleep {moment}; kill -STOP {sshfs}) >/dev/null 2>&1 &"
        ));
        let begin = Instant::now();
        let down = world.detach();
        assert!(begin.elapsed() < Duration::from_secs(75), "{moment}: {:?}", begin.elapsed());
        assert_eq!(down.code, 0, "{moment}: {:#}", down.json);
        if down.json["data"]["clean"] == false {
            assert!(warnings(&down).contains(&"link-dead"), "{moment}: {:#}", down.json);
        }
        world.nothing_is_up();
        world.sh(&format!("kill -KILL {sshfs} 2>/dev/null || :; sleep 0.5; umount link"));
    }
}

#[test]
fn through_a_link_everything_works_as_on_a_disk() {
    if elsewhere("link::through_a_link_everything_works_as_on_a_disk") {
        return;
    }
    let world = world();
    world.sh("rm s3/c.img state/container.*");
    mount(&world);
    world.create(&["--size", "100M"]).expect(0);
    let key = world.key("second");
    let args = ["--new-key-file", key.to_str().unwrap()].into_iter().chain(crate::world::CHEAP);
    world.run("add-key", args).expect(0);
    world.run("grow", ["--size", "200M"]).expect(0);
    let up = world.attach().expect(0);
    assert_eq!(warnings(&up), Vec::<&str>::new());
    world.sh("head -c 3M /dev/urandom >run/container/f; cp run/container/f kept");
    world.detach().expect(0);
    // A link that the far end made is not followed.
    world.sh("umount link; mv s3/c.img s3/real; ln -s real s3/c.img");
    mount(&world);
    world.attach().expect(78);
    world.sh("rm s3/c.img; mv s3/real s3/c.img; umount link; mv s3 link2; rmdir link; mv link2 link");
    world.attach().expect(0);
    world.sh("cmp run/container/f kept");
    world.detach().expect(0);
    world.nothing_is_up();
}
