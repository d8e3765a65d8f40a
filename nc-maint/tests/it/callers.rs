//! Whoever calls: maintenance goes on and off.

use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{ODD_CALLERS, oddly, run};

use crate::world::World;

#[test]
fn whatever_its_caller_left_it_a_run_ends_maintenance_and_says_so() {
    let world = World::auto();
    for caller in ODD_CALLERS {
        let mut command = world.nc_maint("run");
        // Longer than the alarm; with children of its own, and what it inherited.
        let script = "umask; ulimit -Sn; ls /proc/self/fd; sleep 1.2 & wait; echo '{\"did\":true}'";
        command.args(["--", "sh", "-c", script]);
        let ran = run(&mut oddly(&command, caller));
        assert_eq!(ran.code, 0, "a caller that {}: {}\n{}", caller.0, ran.stderr, ran.json);
        assert_eq!(ran.json["data"]["command"]["output"][0]["did"], true);
        assert!(!world.maintenance());
        if caller.1 != "exec 2>/dev/full;" {
            assert!(ran.stderr.contains("\n0\n1\n2\n3\n") && !ran.stderr.contains("\n4\n"), "{}", ran.stderr);
        }
    }
}

#[test]
fn streams_that_are_closed_or_full_change_nothing() {
    let world = World::auto();
    for streams in ["2>&-", ">&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", ">/dev/full 2>&-"] {
        let command = world.nc_maint("run");
        let caller = ("", &*format!("exec {streams};"), "");
        let mut odd = oddly(&command, caller);
        odd.args(["--", "sh", "-c", "echo out; echo err >&2; touch \"$0\""]).arg(world.path().join("ran"));
        odd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert_eq!(odd.status().unwrap().code(), Some(0), "with {streams}");
        std::fs::remove_file(world.path().join("ran")).unwrap();
        assert!(!world.maintenance());
    }
    // A reader that goes away in the middle.
    let mut command = world.nc_maint("run");
    command.args([
        "--",
        "sh",
        "-c",
        "sleep 0.3; for i in $(seq 2000); do echo a long line of words $i >&2; done",
    ]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!world.maintenance());
}

/// An ordinary user cannot lift the limit: then it is said, before anything is done.
#[test]
fn a_limit_of_file_sizes_that_cannot_be_lifted_is_told() {
    let world = World::auto();
    let tools = testkit::scratch();
    let mut command = Command::new(testkit::placed(tools.path(), "nc-maint"));
    command.args(world.nc_maint("run").get_args());
    let caller = ("", "ulimit -f 1;", "setgid(33); setuid(33);");
    let mut odd = oddly(&command, caller);
    odd.args(["--", "true"]);
    let ran = run(&mut odd).expect(77);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("bytes large at most"), "{message}");
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("ulimit -f"));
}
