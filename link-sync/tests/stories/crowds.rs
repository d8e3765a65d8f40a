//! Many dates, deep folders, thousands of damaged paths: neither descriptors nor memory nor work grow beyond what they must.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{Ran, judge};

use crate::checksums::{flip, found};
use crate::world::{World, dates, descendants, folder, kill, ok, private, until, warnings};

/// Does `action` with so few descriptors at most.
#[track_caller]
fn within(world: &World, descriptors: u32, action: &str, options: &[&str]) -> Ran {
    let command = world.command(action, options);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={descriptors}")).arg(command.get_program()).args(command.get_args());
    testkit::run(&mut limited)
}

/// Copies the snapshot at `first` to `many` further dates, with hard links, as if each had been published.
fn multiply(first: &Path, many: u32) -> Vec<PathBuf> {
    let store = first.parent().unwrap();
    let text = std::fs::read_to_string(first.join(".meta/snapshot.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
    let [id, date, begun] = ["id", "date", "started_at"].map(|key| meta[key].as_str().unwrap());
    let mut made = Vec::new();
    for n in 0..many {
        let day = format!("{}-{:02}-{:02}", 2020 + n / 336, 1 + n / 28 % 12, 1 + n % 28);
        let name = format!("{day}T01-{:02}-00Z", n % 60);
        let at = store.join(&name);
        ok("cp", &["-al", first.to_str().unwrap(), at.to_str().unwrap()]);
        for own in ["snapshot.json", "lock"] {
            std::fs::remove_file(at.join(".meta").join(own)).unwrap();
        }
        let own = text.replace(id, &format!("{n:032x}")).replace(date, &name);
        let own = own.replace(begun, &format!("{day}T01:00:00Z"));
        std::fs::write(at.join(".meta/snapshot.json"), own).unwrap();
        std::fs::write(at.join(".meta/lock"), "").unwrap();
        made.push(at);
    }
    made
}

#[test]
fn a_thousand_dates_and_a_deep_tree_need_few_descriptors() {
    // Given 1,101 dates of a tree that is 300 folders deep,
    let world = World::new();
    world.file("a", "a");
    world.file("b", "b");
    let deep: PathBuf = std::iter::repeat_n("d", 300).collect();
    world.file(deep.join("end").to_str().unwrap(), "end");
    std::thread::sleep(Duration::from_millis(2100));
    let first = world.publish();
    // (the deep part once: it would only take time)
    let small = world.dir.join("small");
    std::fs::rename(world.source.join("d"), &small).unwrap();
    let second = folder(&world.snapshot(&["--allow-shrink"]).expect(0));
    let many = multiply(&second, 1100);
    flip(&many[1000].join("docs/a"), 0);
    std::fs::remove_file(many[7].join("docs/b")).unwrap();
    // when each action gets as few descriptors as a careful caller gives,
    let wrong = within(&world, 64, "verify", &[]).expect(1);
    assert_eq!(wrong.json["data"]["dates"].as_array().unwrap().len(), 1102);
    assert_eq!(
        found(&wrong).iter().map(|f| (f.0.as_str(), f.1.as_str())).collect::<Vec<_>>(),
        [("attributes", "docs"), ("content", "docs/a"), ("missing", "docs/b")]
    );
    let listed = wrong.json["data"]["findings"].as_array().unwrap();
    let content = listed.iter().find(|f| f["kind"] == "content").unwrap();
    assert_eq!((&content["dates_total"], content["dates"].as_array().unwrap().len()), (&1102.into(), 100));
    // then all of them work.
    let mended = within(&world, 64, "verify", &["--repair"]).expect(0);
    assert_eq!(mended.json["data"]["repaired_total"], 3);
    let found = within(&world, 64, "find", &["--name", "end"]).expect(0);
    assert_eq!(
        (&found.json["data"]["found"], &found.json["data"]["paths"][0]["dates"]),
        (&1.into(), &1.into())
    );
    let list = within(&world, 64, "list", &[]).expect(0);
    assert_eq!(list.json["data"]["snapshots"].as_array().unwrap().len(), 1102);
    let (from, to) = (first.file_name().unwrap().to_str().unwrap(), "latest");
    within(&world, 64, "diff", &["--from", from, "--to", to]).expect(0);
    let copies = world.dir.join("copies");
    private(&copies);
    // (rsync itself keeps a descriptor for each folder of a path)
    for (date, descriptors) in [(from, 400), ("latest", 64)] {
        let to = ["--date", date, "--to", copies.to_str().unwrap(), "--reserve-bytes", "1"];
        within(&world, descriptors, "copy", &to).expect(0);
    }
    let both = ["--store", copies.to_str().unwrap(), "--against", world.store.to_str().unwrap()];
    within(&world, 64, "verify", &both).expect(0);
    let pruned = within(&world, 64, "prune", &["--keep-yearly", "9", "--max-gap", "9y"]).expect(0);
    assert!(pruned.json["data"]["removed"].as_array().unwrap().len() > 1000);
    within(&world, 64, "verify", &[]).expect(0);
}

/// Seconds of a processor that `command` took itself: a busy machine does not change them as it does the time of day.
#[track_caller]
fn worked(mut command: Command, code: i32) -> (serde_json::Value, f64) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let out = tempfile::NamedTempFile::new().unwrap();
    command.stdin(Stdio::null()).stdout(out.reopen().unwrap()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: f64 = fields[11].parse().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(code));
    (serde_json::from_slice(&std::fs::read(out.path()).unwrap()).unwrap(), ticks / 100.0)
}

/// How often `command` asks the kernel for `call`.
#[track_caller]
fn calls(command: &Command, call: &str, code: i32) -> u64 {
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-c", "-S", "name", "-e", &format!("trace={call}"), "-o"]).arg(out.path());
    traced.arg(command.get_program()).args(command.get_args());
    assert_eq!(traced.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code(), Some(code));
    let table = std::fs::read_to_string(out.path()).unwrap();
    let line = table.lines().find(|l| l.ends_with(&format!(" {call}"))).unwrap_or_else(|| panic!("{table}"));
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// A published snapshot with `many` files in one folder, which are nowhere else; `same`: of one content.
fn crowd(many: u32, same: bool) -> (World, PathBuf) {
    let world = World::new();
    world.file("stays", "x");
    for n in 0..many {
        std::fs::create_dir_all(world.source.join("d")).unwrap();
        let text = if same { "same".to_owned() } else { format!("{n}") };
        std::fs::write(world.source.join(format!("d/{n:06}")), text).unwrap();
    }
    let date = world.publish();
    std::fs::remove_dir_all(world.source.join("d")).unwrap();
    (world, date)
}

fn lose(date: &Path) {
    for entry in std::fs::read_dir(date.join("docs/d")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// Four times as much is four times the work; were it quadratic, sixteen times.
#[track_caller]
fn linear(what: &str, few: f64, many: f64) {
    eprintln!("{what}: {few} and {many}, {:.1} times", many / few);
    assert!(many < 8.0 * few, "{what}: {few} for some, {many} for four times as many");
}

#[test]
fn files_that_are_lost_for_good_cost_a_repair_no_more_each_if_they_are_many() {
    let cost = |many: u32| {
        let (world, date) = crowd(many, false);
        lose(&date);
        let (told, seconds) = worked(world.command("verify", &["--repair", "--limit", "1"]), 1);
        assert_eq!(told["data"]["findings_total"], many);
        assert_eq!(told["data"]["not_repaired_total"], many);
        assert_eq!(told["data"]["not_repaired"].as_array().unwrap().len(), 1000.min(many) as usize);
        seconds
    };
    linear("seconds for 3,000 and 12,000 lost files", cost(3000), cost(12_000));
}

#[test]
fn files_of_one_content_that_are_lost_are_not_each_looked_for_in_all_the_others() {
    let cost = |many: u32| {
        let (world, date) = crowd(many, true);
        lose(&date);
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let calls = calls(&world.command("verify", &["--repair", "--limit", "1"]), "openat2", 1) as f64;
        calls
    };
    linear("openat2 for 250 and 1,000 lost files of one content", cost(250), cost(1000));
}

#[test]
fn folders_that_are_in_no_manifest_cost_a_verification_no_more_each_if_they_are_many() {
    let cost = |many: u32| {
        let (world, date) = crowd(1, false);
        for n in 0..many {
            std::fs::create_dir(date.join(format!("docs/d/extra{n:06}"))).unwrap();
        }
        let (told, seconds) = worked(world.command("verify", &["--limit", "1"]), 1);
        assert_eq!(told["data"]["counts"]["extra"], many);
        seconds
    };
    linear("seconds for 5,000 and 20,000 extra folders", cost(5000), cost(20_000));
}

#[test]
fn one_that_is_mended_serves_the_others_of_its_content() {
    // Given three files of one content, of which the source still has the last one only,
    let (world, date) = crowd(3, true);
    world.file("d/000002", "same");
    lose(&date);
    // when they are lost, and repaired as often as something comes back,
    while world.act("verify", &["--repair"]).json["changed"] == true {}
    // then each holds what it held.
    for n in 0..3 {
        assert_eq!(std::fs::read(date.join(format!("docs/d/{n:06}"))).unwrap(), b"same");
    }
}

#[test]
fn a_date_that_is_pruned_while_it_is_read_is_no_damage_and_what_others_share_is_read() {
    // Given a file that takes a while to read, and files after it, in two dates,
    let world = World::new();
    for name in ["0slow", "1shared", "2rotten", "3first"] {
        world.file(name, &name.repeat(50));
    }
    std::thread::sleep(Duration::from_millis(2100));
    let first = world.publish();
    for name in ["0slow", "3first"] {
        std::fs::remove_file(world.source.join(name)).unwrap();
    }
    let second = world.publish();
    flip(&first.join("docs/2rotten"), 3);
    let date = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    // when the first is pruned while that is read,
    let slow = "inject=fadvise64:delay_enter=9000000:when=1";
    let mut run = Command::new("strace");
    run.args(["-f", "-o", "/dev/null", "-e", "trace=fadvise64", "-e", slow]);
    let verify = world.command("verify", &[]);
    run.arg(verify.get_program()).args(verify.get_args());
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let opened = |(pid, _): &(u32, String)| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|path| path.ends_with("0slow"))
    };
    until("it reads", || descendants(run.id()).iter().any(opened));
    world.act("prune", &["--date", &date(&first), "--yes"]).expect(0);
    assert_eq!(dates(&world.store), [date(&second)]);
    let ran = judge(run.wait_with_output().unwrap()).expect(1);
    // then what the other date holds of it is found there, and nothing else is told to be wrong.
    assert_eq!(found(&ran), [("content".into(), "docs/2rotten".into(), 1)]);
    assert_eq!(ran.json["data"]["findings"][0]["dates"][0], date(&second));
    assert_eq!(ran.json["data"]["skipped_dates"][0], date(&first));
    assert!(warnings(&ran).contains(&"being-removed"), "{ran:?}");
    assert_eq!(std::fs::metadata(second.join("docs/1shared")).unwrap().nlink(), 1);
}

#[test]
fn a_find_neither_keeps_a_prune_waiting_nor_tells_of_what_went_meanwhile() {
    let world = World::new();
    world.file("letter", "v1");
    let first = world.publish();
    world.file("letter", "v2!");
    let second = world.publish();
    // Given a find that is slow at looking,
    let slow = "inject=getdents64:delay_enter=400000";
    let mut run = Command::new("strace");
    run.args(["-f", "-o", "/dev/null", "-e", "trace=getdents64", "-e", slow]);
    let find = world.command("find", &["--name", "letter"]);
    run.arg(find.get_program()).args(find.get_args());
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let opened = |(pid, _): &(u32, String)| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|path| path.starts_with(&first))
    };
    until("it looks", || descendants(run.id()).iter().any(opened));
    // when the first date is removed,
    let date = first.file_name().unwrap().to_str().unwrap();
    world.act("prune", &["--date", date, "--yes"]).expect(0);
    // then what is told is how things are now.
    let ran = judge(run.wait_with_output().unwrap()).expect(0);
    assert_eq!(ran.json["data"]["dates"], serde_json::json!([second.file_name().unwrap().to_str()]));
    assert_eq!(ran.json["data"]["passed_over"], serde_json::json!([date]));
    assert_eq!(ran.json["data"]["paths"][0]["dates"], 1);
}

#[test]
fn a_diff_counts_all_that_is_in_a_folder_and_lists_what_was_asked_for() {
    let world = World::new();
    for n in 0..500 {
        world.file(&format!("gone/deep/{n}"), "x");
    }
    world.file("becomes/a", "x");
    world.file("was", "x");
    world.publish();
    std::fs::remove_dir_all(world.source.join("gone")).unwrap();
    std::fs::remove_dir_all(world.source.join("becomes")).unwrap();
    world.file("becomes", "a file");
    std::fs::remove_file(world.source.join("was")).unwrap();
    for n in 0..500 {
        world.file(&format!("new/{n}"), "x");
        world.file(&format!("was/{n}"), "x");
    }
    world.snapshot(&["--allow-shrink"]).expect(0);
    let from = world.dates().remove(0);
    let told = world.act("diff", &["--from", &from, "--limit", "3"]).expect(0);
    let counts = &told.json["data"]["counts"];
    // Each folder and what is in it: new, was/*; gone, gone/deep, becomes/a.
    assert_eq!(counts["added"], 501 + 500);
    assert_eq!(counts["removed"], 502 + 1);
    assert_eq!((&counts["retyped"], &counts["attributes"]), (&2.into(), &1.into()));
    assert_eq!(told.json["data"]["changes"].as_array().unwrap().len(), 3);
    assert_eq!(told.json["data"]["truncated"], true);
    let all = world.act("diff", &["--from", &from]).expect(0);
    assert_eq!(all.json["data"]["changes"].as_array().unwrap().len(), 5, "folders stand for what is in them");
    assert_eq!(all.json["data"]["truncated"], false);
}

#[test]
fn a_prune_waits_for_a_diff() {
    // Given two dates that take a while to compare,
    let world = World::new();
    for n in 0..8000 {
        std::fs::create_dir(world.source.join(format!("{n}"))).unwrap();
    }
    world.publish();
    world.file("new", "x");
    world.publish();
    let from = world.dates().remove(0);
    // when the first is pruned while they are compared,
    let mut diff = world.command("diff", &["--from", &from]);
    let diff = diff.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let at_work = || {
        descendants(diff.id()).into_iter().find(|(pid, _)| {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let mut paths = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            paths.any(|path| path.starts_with(world.store.join(&from)))
        })
    };
    let begin = std::time::Instant::now();
    let far = loop {
        match at_work() {
            Some((pid, _)) => break pid,
            None => assert!(begin.elapsed() < Duration::from_secs(20), "it never began"),
        }
    };
    kill(far, "-STOP");
    let pruned = world.act("prune", &["--date", &from, "--yes"]);
    kill(far, "-CONT");
    let told = judge(diff.wait_with_output().unwrap());
    // then it stays, and the answer is right.
    assert_eq!(pruned.expect(3).json["data"]["skipped"][0], from.as_str());
    assert_eq!(told.expect(0).json["data"]["counts"]["added"], 1);
}
