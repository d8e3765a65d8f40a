//! Whoever calls: a snapshot is published, and restored as it was.

use std::os::unix::fs::MetadataExt as _;

use testkit::{ODD_CALLERS, oddly, run};

use crate::picture::picture;
use crate::world::World;

#[test]
fn whatever_its_caller_left_it_a_night_is_published_and_private() {
    let world = World::new();
    for (n, caller) in ODD_CALLERS.into_iter().enumerate() {
        world.file(&format!("d/{n}"), &"x".repeat(n * 1000));
        let ran = run(&mut oddly(&world.command("snapshot", &["--crash-consistent"]), caller));
        assert_eq!(ran.code, 0, "a caller that {}: {}\n{:#}", caller.0, ran.stderr, ran.json);
        let date = world.store.join(ran.json["data"]["date"].as_str().unwrap());
        assert_eq!(picture(&date.join("docs")), picture(&world.source), "a caller that {}", caller.0);
        assert_eq!(date.join(".meta/snapshot.json").metadata().unwrap().mode() & 0o7777, 0o600);
    }
}

#[test]
fn a_terminal_that_is_gone_is_no_reason_not_to_publish() {
    let world = World::new();
    for (n, streams) in ["2>&-", ">&- 2>&-", "<&- >/dev/full 2>/dev/full"].into_iter().enumerate() {
        world.file("a", &"x".repeat(n));
        let caller = ("", &*format!("exec {streams};"), "");
        let mut odd = oddly(&world.command("snapshot", &["--crash-consistent"]), caller);
        let status = odd.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(0), "with {streams}");
        let list = world.act("list", &[]).expect(0);
        assert_eq!(list.json["data"]["snapshots"].as_array().unwrap().len(), n + 1);
        std::thread::sleep(std::time::Duration::from_millis(1050));
    }
}
