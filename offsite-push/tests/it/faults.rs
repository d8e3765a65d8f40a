//! A sibling that fails: at each step, in each way. Whatever it is, nothing stays up, and the next push succeeds.

use std::process::Stdio;
use std::time::{Duration, Instant};

use testkit::judge;

use crate::world::{DATES, World, steps};

const STEPS: [(&str, &str); 5] = [
    ("sshfs-mount-status", "status-s3"),
    ("luks-mount-status", "status-container"),
    ("sshfs-mount-mount", "mount"),
    ("luks-mount-attach", "attach"),
    ("link-sync-copy", "copy"),
];

#[track_caller]
fn next_push_succeeds(world: &World, step: &str) {
    world.no_plan(step);
    world.push().expect(0);
    assert!(world.is_down());
    assert_eq!(world.container(), [DATES[0]]);
    assert_eq!(world.record()["generation"], world.stamp()["generation"]);
    assert!(world.record()["next_generation"].is_null());
}

#[test]
fn the_first_failing_step_decides_the_exit_code() {
    for (step, name) in STEPS {
        for code in [1, 69, 75, 77, 78, 143] {
            let world = World::new();
            world.plan(step, &format!("object {code} false '{{}}'; exit {code}"));
            let ran = world.push().expect(code);
            assert_eq!(ran.json["data"]["failed_step"], name);
            let (tool, action) = step.rsplit_once('-').unwrap();
            assert_eq!(ran.json["error"]["message"], format!("{tool} {action} said {code}"));
            assert_eq!(ran.json["error"]["hint"], "a hint");
            assert!(world.is_down(), "{step} {code}");
            assert!(world.container().is_empty());
            assert!(world.record()["date"].is_null());
            next_push_succeeds(&world, step);
        }
    }
}

#[test]
fn what_refused_to_begin_is_not_taken_down() {
    // It may be somebody else's: the image attached by hand, another file system at the mount point.
    let world = World::new();
    world.plan("luks-mount-attach", "object 75 false '{}'; exit 75");
    let ran = world.push().expect(75);
    assert_eq!(steps(&ran), ["status-container", "status-s3", "mount", "attach", "unmount"]);
    world.plan("sshfs-mount-mount", "object 78 false '{}'; exit 78");
    assert_eq!(steps(&world.push().expect(78)), ["status-container", "status-s3", "mount"]);
}

#[test]
fn a_sibling_that_says_nothing_right_has_failed_and_is_cleaned_up_after() {
    for (step, _) in STEPS {
        for (what, code) in [
            ("echo garbage; exit 0", 1),
            ("exit 0", 1),
            ("exit 69", 1),
            ("exit 2", 1),
            ("object 69 false '{}'; exit 1", 1),
            ("object 0 true '{}'; object 0 true '{}'; exit 0", 1),
            ("tool=other; object 0 true '{}'; exit 0", 1),
            ("kill -KILL $$", 1),
        ] {
            let world = World::new();
            world.plan(step, what);
            let ran = world.push().expect(code);
            let message = ran.json["error"]["message"].as_str().unwrap();
            assert!(message.ends_with("without a status object"), "{step}, {what}: {message}");
            let last = ran.json["data"]["steps"].as_array().unwrap().last().unwrap().clone();
            assert!(world.is_down(), "{step}, {what}: {last}");
            next_push_succeeds(&world, step);
        }
    }
}

#[test]
fn killed_after_it_has_done_its_work_it_is_still_taken_down() {
    let world = World::new();
    for (step, work) in [
        ("sshfs-mount-mount", "echo healthy >\"$w/s3\""),
        (
            "luks-mount-attach",
            "mkdir -p \"$w/run/container\"; mount --bind \"$w/disk\" \"$w/run/container\"; echo attached >\"$w/luks\"",
        ),
    ] {
        world.plan(step, &format!("{work}; kill -KILL $$"));
        let ran = world.push().expect(1);
        assert!(
            ran.json["error"]["message"].as_str().unwrap().contains("ended by signal 9"),
            "{:#}",
            ran.json
        );
        assert!(world.is_down(), "{step}");
        world.no_plan(step);
    }
    world.push().expect(0);
}

#[test]
fn what_a_sibling_left_behind_counts_unless_it_was_cleared() {
    // A half-made attach, cleared by detach: failed, nothing left.
    let world = World::new();
    let left = "'[]' '[{\"what\":\"a loop device\",\"clear\":\"losetup -d\"}]'";
    world.plan(
        "luks-mount-attach",
        &format!("echo loop-only >\"$w/luks\"; object 4 true '{{}}' {left}; exit 4"),
    );
    let ran = world.push().expect(1);
    assert_eq!(ran.json["left_behind"], serde_json::json!([]));
    assert!(world.is_down());
    world.no_plan("luks-mount-attach");

    // A container that somebody holds: S3 stays, both are named, and the copy is not confirmed.
    world.plan("luks-mount-detach", &format!("object 4 false '{{}}' {left}; exit 4"));
    let ran = world.push().expect(4);
    let whats: Vec<_> =
        ran.json["left_behind"].as_array().unwrap().iter().map(|l| l["what"].as_str().unwrap()).collect();
    assert_eq!(whats.len(), 2, "{whats:?}");
    assert_eq!(whats[0], "a loop device");
    assert!(whats[1].starts_with("S3 may still be mounted at "), "{whats:?}");
    assert!(
        ran.json["left_behind"][1]["clear"]
            .as_str()
            .unwrap()
            .starts_with("sshfs-mount unmount home --config ")
    );
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "not-confirmed"));
    assert!(world.record()["date"].is_null());
    // The next one cannot clear it either while it is held,
    world.calls();
    let ran = world.push().expect(4);
    assert_eq!(ran.json["data"]["failed_step"], "clear-container");
    assert!(!world.calls().iter().any(|c| c == "sshfs-mount unmount"));
    // and does once it is free.
    world.no_plan("luks-mount-detach");
    let ran = world.push().expect(0);
    assert_eq!(ran.json["warnings"][0]["kind"], "leftovers");
    assert!(world.is_down() && world.record()["date"] == DATES[0]);
}

#[test]
fn a_failure_outranked_by_what_is_left() {
    let world = World::new();
    world.plan("link-sync-copy", "object 69 false '{}'; exit 69");
    world.plan("sshfs-mount-unmount", "object 1 false '{}'; exit 1");
    let ran = world.push().expect(4);
    assert_eq!(ran.json["data"]["failed_step"], "copy");
    assert_eq!(ran.json["error"]["kind"], "unavailable");
    assert!(ran.json["left_behind"][0]["what"].as_str().unwrap().starts_with("S3 may still be mounted at "));
    world.no_plan("link-sync-copy");
    world.no_plan("sshfs-mount-unmount");
    world.push().expect(0);
    assert!(world.is_down());
}

#[test]
fn a_copy_is_confirmed_once_the_container_is_closed_even_if_s3_stays_mounted() {
    let world = World::new();
    world.plan("sshfs-mount-unmount", "object 1 false '{}'; exit 1");
    world.push().expect(4);
    assert_eq!(world.record()["date"], DATES[0]);
    world.no_plan("sshfs-mount-unmount");
    let ran = world.push().expect(0);
    assert_eq!((&ran.json["data"]["push"]["sent_bytes"], world.is_down()), (&0.into(), true));
}

#[test]
fn a_detach_that_fails_is_tried_again_after_s3_was_ended() {
    let world = World::new();
    // As with a server that hangs: only when sshfs has gone can the container be closed.
    world.plan("luks-mount-detach", "if [ \"$(s3)\" = healthy ]; then object 1 false '{}'; exit 1; fi");
    world.plan(
        "sshfs-mount-unmount",
        "echo unmounted >\"$w/s3\"; object 0 true '{\"state\":\"unmounted\"}'; exit 0",
    );
    let ran = world.push().expect(1);
    assert_eq!(steps(&ran)[5..], ["detach", "unmount", "detach"]);
    assert_eq!(ran.json["left_behind"], serde_json::json!([]));
    assert!(world.is_down());
    assert!(world.record()["date"].is_null(), "it was not closed cleanly");
    world.no_plan("luks-mount-detach");
    world.no_plan("sshfs-mount-unmount");
    world.push().expect(0);
}

#[test]
fn a_link_that_dies_while_the_container_is_closed_leaves_the_copy_unconfirmed() {
    for kind in ["link-dead", "sync-failed"] {
        let world = World::new();
        let warning = format!("'[{{\"kind\":\"{kind}\",\"message\":\"lost\"}}]'");
        let work = "umount \"$w/run/container\"; echo detached >\"$w/luks\"";
        world.plan("luks-mount-detach", &format!("{work}; object 0 true '{{}}' {warning}; exit 0"));
        let ran = world.push().expect(69);
        assert_eq!(ran.json["data"]["failed_step"], "detach");
        assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "not-confirmed"));
        assert!(world.is_down() && world.record()["date"].is_null());
        next_push_succeeds(&world, "luks-mount-detach");
    }
}

#[test]
fn an_attach_without_a_mount_writes_nothing() {
    let world = World::new();
    world.plan(
        "luks-mount-attach",
        "echo attached >\"$w/luks\"; object 0 true '{\"uuid\":\"uuid-1\"}'; exit 0",
    );
    let ran = world.push().expect(1);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("nothing is mounted at"),
        "{:#}",
        ran.json
    );
    assert!(!world.path("run/container/snapshots").exists());
    assert!(world.is_down());
}

#[test]
fn a_missing_sibling_is_told_before_anything_is_done() {
    for tool in ["sshfs-mount", "luks-mount", "link-sync"] {
        let world = World::new();
        std::fs::remove_file(world.path("bin").join(tool)).unwrap();
        let ran = world.push().expect(69);
        assert!(ran.json["error"]["message"].as_str().unwrap().contains(tool));
        assert!(world.calls().is_empty());
    }
}

/// Takes a minute and a half: what moves must do so for longer than what rests may.
#[test]
fn a_take_down_may_take_long_as_long_as_bytes_move_but_not_rest() {
    let world = World::new();
    // 8 KiB a second, for longer than the limit: with the least patience, 35 seconds.
    world.plan(
        "luks-mount-detach",
        "n=0; while [ $n -lt 45 ]; do n=$((n + 1)); echo \"1 $((n * 8192)) 0\" >\"$w/run/s3.wire\"; sleep 1; done",
    );
    let ran = world.run("push", &["--patience", "4s"]).expect(0);
    let detach =
        ran.json["data"]["steps"].as_array().unwrap().iter().find(|s| s["step"] == "detach").unwrap();
    assert!(detach["duration_ms"].as_u64().unwrap() > 40_000, "{detach}");
    assert!(world.is_down());
    // Nothing moves, and it hears nothing.
    world.snapshot(DATES[1]);
    world
        .plan("luks-mount-detach", "[ -e \"$w/hung\" ] || { : >\"$w/hung\"; trap '' TERM; exec sleep 300; }");
    let begun = Instant::now();
    let ran = world.run("push", &["--patience", "4s"]).expect(1);
    assert!(begun.elapsed() < Duration::from_secs(150), "{:?}", begun.elapsed());
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("got nowhere for 35s"), "{message}");
    // It was tried again, once S3 was ended.
    assert!(steps(&ran).ends_with(&["detach", "unmount", "detach", "unmount"]), "{:?}", steps(&ran));
    assert!(world.is_down() && world.record()["date"] == DATES[0]);
    world.no_plan("luks-mount-detach");
    world.push().expect(0);
}

#[test]
fn a_step_that_is_stopped_here_is_ended_though_s3_answers() {
    let world = World::new();
    world.plan("copying", "kill -STOP $$");
    let mut command = world.command("push", &["--patience", "4s"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(90) {
            child.kill().unwrap();
            panic!("it waits for a step that was stopped");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let ran = judge(child.wait_with_output().unwrap()).expect(69);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("link-sync copy got nowhere for 4s"), "{message}");
    assert!(world.is_down());
    // One that works for longer than that is left alone.
    world.plan(
        "copying",
        "n=0; while [ $n -lt 16 ]; do n=$((n + 1)); head -c 200000 /dev/zero >/dev/null; sleep 0.5; done",
    );
    world.run("push", &["--patience", "4s"]).expect(0);
    assert!(world.is_down());
}
