//! What comes through the door is bounded: memory, time, what a day may add; and what is learned there.

use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::talk::{At, Talk, list, record, refused};
use crate::world::{Disk, World, ok, private, told};

/// What the far end takes besides what it remembers of lists.
const BASE: u64 = 48 << 20;

fn world() -> World {
    let world = World::new();
    world.file("a", "a");
    world.file("dir/b", "b");
    world.publish();
    world
}

/// Sends `frames` frames of paths in ever new folders; stops when the far end has more memory than `bound`.
fn flood(talk: &mut Talk, frames: u32, bound: u64, item: impl Fn(&[u8]) -> Vec<u8>) {
    for frame in 0..frames {
        let items: Vec<_> = (0..4000).map(|n| item(format!("{frame:x}-{n:x}/x").as_bytes())).collect();
        assert!(talk.frame(b'L', &list(&items)), "it ended");
        if talk.peak > bound {
            return;
        }
    }
}

#[test]
fn a_list_without_end_takes_no_more_memory_than_is_allowed() {
    let world = world();
    let bound = BASE + (32 << 20);
    for ask in ["clone", "drop", "merge"] {
        let mut talk = Talk::begun(&world.store, &["--max-memory", "32m"]);
        let request = json!({"ask": ask, "source": "docs", "times": true, "again": false});
        let request = if ask == "merge" { request } else { json!({"ask": ask, "source": "docs"}) };
        talk.frame(b'M', request.to_string().as_bytes());
        flood(&mut talk, 400, bound, |path| {
            if ask == "merge" { record(libc::S_IFREG, path) } else { path.to_vec() }
        });
        assert!(talk.peak <= bound, "{ask}: {} MB", talk.peak >> 20);
        talk.frame(b'L', b"");
        refused(&talk.answer(), 77, "the list is too long");
        // It is as if nothing had been asked.
        assert!(talk.ask(&json!({"ask": "flush"})).get("ok").is_some());
        eprintln!("{ask}: at most {} MB after 1,600,000 paths", talk.peak >> 20);
        assert_eq!(talk.end().0, 0);
    }
    // Nor is a list read where none is expected, or one that only fails.
    let mut idle = Talk::at(At::Backup, &world.store, &[]);
    idle.frame(b'L', &list(&[b"a".to_vec()]));
    let (code, said) = idle.ended();
    assert!(code == 1 && said.contains("a request was expected"), "{code} {said}");
    let mut reader = Talk::at(At::Read, &world.store, &["--max-memory", "32m"]);
    assert!(reader.ask(&json!({"ask": "hold", "date": "latest"})).get("ok").is_some());
    reader.frame(b'M', br#"{"ask":"look"}"#);
    flood(&mut reader, 100, bound, <[u8]>::to_vec);
    assert!(reader.peak <= bound, "{} MB", reader.peak >> 20);
    reader.frame(b'L', b"");
    refused(&reader.answer(), 77, "the list is too long");
    world.publish();
    world.newest_is_source();
}

#[test]
fn a_frame_is_no_larger_than_its_kind_may_be() {
    let world = world();
    for (kind, len) in
        [(b'M', 200u32 << 20), (b'L', 200 << 20), (b'S', 200 << 20), (b'M', 3 << 20), (b'I', 3 << 20)]
    {
        let mut talk = Talk::at(At::Backup, &world.store, &[]);
        talk.say(&[&[kind][..], &len.to_be_bytes()].concat());
        let begin = Instant::now();
        while !talk.has_ended() {
            assert!(begin.elapsed() < Duration::from_secs(30), "it waits for {len} bytes");
            talk.look();
        }
        assert!(talk.peak < BASE, "{} MB", talk.peak >> 20);
        let (code, said) = talk.ended();
        assert!(code == 1 && said.contains("are the most"), "{code} {said}");
    }
    // JSON that is more in memory than on the wire, at its worst.
    for text in
        ["[".repeat(1 << 20), format!("{{\"ask\":\"publish\",\"meta\":[{}0]}}", "0,".repeat(1_000_000))]
    {
        let mut talk = Talk::begun(&world.store, &[]);
        talk.frame(b'M', text.as_bytes());
        let answer = talk.answer();
        assert!(answer["err"][0].is_number(), "{answer}");
        assert!(talk.peak < 4 * BASE, "{} MB", talk.peak >> 20);
    }
}

#[test]
fn who_keeps_the_far_end_waiting_is_not_waited_for() {
    let world = world();
    let options = ["--max-silence", "4s"];
    let silent = |mut talk: Talk| {
        let (code, said) = talk.ended();
        assert!(code == 128 + 15 && said.contains("silent for"), "{code} {said}");
    };
    // Before hello, after it, with the store's lock, in the middle of a list, of rsync's conversation, with a snapshot held.
    silent(Talk::silent(At::Backup, &world.store, &options));
    silent(Talk::at(At::Backup, &world.store, &options));
    silent(Talk::begun(&world.store, &options));
    let mut listing = Talk::begun(&world.store, &options);
    listing.frame(b'M', br#"{"ask":"drop","source":"docs"}"#);
    listing.frame(b'L', &list(&[b"x".to_vec()]));
    silent(listing);
    let mut sending = Talk::begun(&world.store, &options);
    let receive = json!({"ask": "receive", "source": "docs", "capabilities": ".LsfxCIvu", "checksum": false, "times": true,
        "delta": false, "again": false, "all_xattrs": false, "acls_only": false});
    sending.frame(b'M', receive.to_string().as_bytes());
    silent(sending);
    let mut reader = Talk::at(At::Read, &world.store, &options);
    assert!(reader.ask(&json!({"ask": "hold", "date": "latest"})).get("ok").is_some());
    silent(reader);
    // One who asks and asks, and takes no answer.
    let mut deaf = Talk::at(At::Backup, &world.store, &options);
    deaf.stuff(b'M', br#"{"ask":"list"}"#);
    silent(deaf);
    // The store is free, and what had been begun is in nobody's way.
    assert_eq!(world.dates().len(), 1);
    world.publish();
    world.newest_is_source();
}

fn publish(more: &[String]) -> Value {
    json!({"ask": "publish", "meta": {"run_id": null, "consistency": "crash-consistent", "started_at": "",
        "tool_version": "", "sources": [
            {"name": "docs", "path": "/", "fs_id": null, "submounts": more, "paths": 0, "bytes": 0}]}})
}

#[test]
fn a_description_that_could_not_be_read_again_is_not_published() {
    let world = world();
    let before = world.dates();
    let mut talk = Talk::begun(&world.store, &[]);
    let many: Vec<String> = (0..60_000).map(|n| format!("mount/point/{n}")).collect();
    refused(&talk.ask(&publish(&many)), 78, "it is not published");
    assert_eq!(world.dates(), before);
    std::thread::sleep(Duration::from_millis(1050));
    let published = talk.ask(&publish(&many[..100]));
    assert!(published.get("ok").is_some(), "{published}");
    talk.end();
    let listed = world.act("list", &[]).expect(0);
    assert_eq!(listed.json["data"]["damaged"], json!([]), "{listed:?}");
    assert_eq!(world.dates().len(), 2);
}

#[test]
fn one_day_may_add_so_much_and_no_more() {
    let disk = Disk::new(200);
    let world = World::on(&disk);
    let limit = |bytes: u64| world.profile("", &format!("max_bytes_per_day = {bytes}"));
    let grow = |name: &str| std::fs::write(world.source.join(name), vec![1; 12 << 20]).unwrap();
    // The source lies on the same disk, and what fills that counts.
    limit(30 << 20);
    // What changed in the last two seconds before a walk is sent again, and might take room again.
    let grow = |name: &str| {
        std::thread::sleep(Duration::from_millis(2100));
        grow(name);
    };
    grow("a");
    std::thread::sleep(Duration::from_millis(2100));
    world.publish();
    grow("b");
    world.publish();
    std::thread::sleep(Duration::from_millis(2100));
    // Each is small enough; together they are not. The day began with the second, as the first may be as large as it is.
    grow("c");
    let full = world.snapshot(&[]).expect(1);
    assert!(told(&full).contains("one day may add") && told(&full).contains("max_bytes_per_day"), "{full:?}");
    assert!(told(&full).contains("whatever else is written to that disk"), "{full:?}");
    assert_eq!(world.dates().len(), 2);
    // Who does not ask whether there is room is told when there is none.
    std::thread::sleep(Duration::from_millis(1050));
    let limits = ["--max-bytes-per-day", &(30 << 20).to_string()];
    let mut talk = Talk::begun(&world.store, &limits);
    let room = |bytes: u64| json!({"ask": "room", "source": null, "bytes": bytes, "inodes": 1});
    assert!(talk.ask(&room(1)).get("ok").is_some());
    refused(&talk.ask(&room(12 << 20)), 1, "one day may add");
    std::fs::write(world.store.join(".partial/elsewhere"), vec![1; 12 << 20]).unwrap();
    let receive = json!({"ask": "receive", "source": "docs", "capabilities": ".LsfxCIvu", "checksum": false, "times": true,
        "delta": false, "again": false, "all_xattrs": false, "acls_only": false});
    talk.frame(b'M', receive.to_string().as_bytes());
    for _ in 0..200 {
        talk.frame(b'S', &[0; 200_000]);
    }
    talk.frame(b'E', b"");
    refused(&talk.answer(), 1, "one day may add");
    talk.end();
    // Files and folders, too; and the next day, or another limit, lets it through.
    world.profile("", "max_inodes_per_day = 3");
    let many = world.snapshot(&[]).expect(1);
    assert!(told(&many).contains("max_inodes_per_day"), "{many:?}");
    world.profile("", "max_bytes_per_day = 30000000");
    let day = world.store.join(".day.json");
    let text = std::fs::read_to_string(&day).unwrap();
    std::fs::write(&day, text.replacen("20", "19", 1)).unwrap();
    world.publish();
    world.newest_is_source();
    // One every five minutes.
    let today = jiff::Timestamp::now().strftime("%F").to_string();
    for n in 0..300 {
        private(&world.store.join(format!("{today}T00-{:02}-{:02}Z", n / 60, n % 60)));
    }
    refused(&Talk::at(At::Backup, &world.store, &limits).ask(&json!({"ask": "open"})), 1, "that is enough");
}

/// As if the day had ended: the next snapshot begins a new one.
fn the_day_ends(world: &World) {
    std::fs::remove_file(world.store.join(".day.json")).ok();
}

#[test]
fn the_first_snapshot_may_be_larger_than_what_a_day_may_add() {
    let disk = Disk::new(100);
    let world = World::on(&disk);
    world.profile("", "max_bytes_per_day = 4000000\nmax_inodes_per_day = 2");
    for name in ["a", "b", "c"] {
        std::fs::write(world.source.join(name), vec![1; 8 << 20]).unwrap();
    }
    world.publish();
    world.newest_is_source();
}

#[test]
fn what_is_more_than_a_day_may_add_comes_in_as_many_days() {
    let disk = Disk::new(300);
    let world = World::on(&disk);
    world.file("old", "old");
    std::thread::sleep(Duration::from_millis(2100));
    world.publish();
    for n in 0..6 {
        std::fs::write(world.source.join(format!("new{n}")), vec![n; 15 << 20]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(2100));
    // 90 MB in parts of at most 40.
    world.profile("", "max_bytes_per_day = 40000000");
    let mut days = 0;
    loop {
        the_day_ends(&world);
        days += 1;
        let ran = world.snapshot(&[]);
        if ran.code == 0 {
            break;
        }
        let ran = ran.expect(1);
        assert!(told(&ran).contains("one day may add") && days < 6, "{ran:?}");
        assert_eq!(world.dates().len(), 1);
        // Not a second time on the same day.
        world.snapshot(&[]).expect(1);
    }
    assert!(days >= 2, "{days}");
    world.newest_is_source();
}

#[test]
fn what_arrived_on_another_day_is_not_counted_again() {
    let disk = Disk::new(200);
    let world = World::on(&disk);
    world.file("old", "old");
    world.publish();
    std::fs::write(world.source.join("new"), vec![1; 40 << 20]).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    world.act("stage", &[]).expect(0);
    world.act("abort", &[]).expect(0);
    std::fs::write(world.source.join("newer"), vec![2; 4 << 20]).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    the_day_ends(&world);
    // All of it is less than a day may add, but not what is left of this one.
    world.profile("", "max_bytes_per_day = 60000000");
    std::fs::write(world.dir.join("elsewhere"), vec![1; 4 << 20]).unwrap();
    let talk = Talk::begun(&world.store, &["--max-bytes-per-day", "60000000"]);
    talk.end();
    std::fs::write(world.dir.join("elsewhere too"), vec![1; 30 << 20]).unwrap();
    world.publish();
    world.newest_is_source();
}

#[test]
fn a_day_that_a_clock_ahead_has_noted_ends() {
    let world = world();
    let day = world.store.join(".day.json");
    std::fs::write(&day, r#"{"day":"2999-01-01","bytes":1000,"inodes":1000}"#).unwrap();
    std::thread::sleep(Duration::from_millis(1050));
    world.profile("", "max_bytes_per_day = 40000000");
    world.publish();
    let noted: Value = serde_json::from_str(&std::fs::read_to_string(&day).unwrap()).unwrap();
    let today = jiff::Timestamp::now().strftime("%F").to_string();
    // The clock that was put back adds nothing to today; tomorrow is a new day.
    assert_eq!(noted, json!({"day": today, "bytes": 1000, "inodes": 1000, "inodes_used": null}));
}

#[test]
fn what_is_found_in_a_store_that_can_only_be_read_is_told() {
    let disk = Disk::new(50);
    let world = World::on(&disk);
    world.file("rots", "as it was hashed");
    let newest = world.publish();
    std::fs::write(newest.join("docs/rots"), "as it has rotten, and longer").unwrap();
    let mounted = disk.path.to_str().unwrap();
    ok("mount", &["-o", "remount,ro", mounted]);
    let mut talk = Talk::at(At::Backup, &world.store, &[]);
    let answer = talk.ask(&json!({"ask": "verify",
        "options": {"date": "all", "sample": 100.0, "seed": 1, "limit": 10}}));
    talk.end();
    ok("mount", &["-o", "remount,rw", mounted]);
    assert_eq!(answer["ok"]["findings_total"], 2, "{answer}");
    assert!(answer["ok"]["not_recorded"].as_str().is_some_and(|why| why.contains("recorded")), "{answer}");
}

#[test]
fn bytes_are_no_inodes_where_any_block_may_hold_some() {
    let disk = Disk::of("xfs", 1000, &[]);
    let world = World::on(&disk);
    world.file("old", "old");
    world.publish();
    // With less than a quarter free, each block that is taken is room for eight inodes less.
    std::fs::write(world.dir.join("elsewhere"), vec![1; 700 << 20]).unwrap();
    std::fs::write(world.source.join("new"), vec![1; 20 << 20]).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    world.profile("", "max_inodes_per_day = 1000");
    world.publish();
    world.newest_is_source();
}

#[test]
fn a_copy_keeps_its_date_unless_that_is_still_to_come() {
    let world = world();
    let date = world.dates().remove(0);
    let future = "2999-01-01T00-00-00Z";
    std::fs::rename(world.store.join(&date), world.store.join(future)).unwrap();
    let to = world.dir.join("copies");
    private(&to);
    let copy = |date: &str| {
        world.act("copy", &["--date", date, "--to", to.to_str().unwrap(), "--reserve-bytes", "1"])
    };
    let refused = copy(future).expect(78);
    assert!(
        told(&refused).contains("is of the future") && told(&refused).contains("prune --date 2999"),
        "{refused:?}"
    );
    assert_eq!(crate::world::dates(&to), [""; 0]);
    std::fs::rename(world.store.join(future), world.store.join(&date)).unwrap();
    copy(&date).expect(0);
    assert_eq!(crate::world::dates(&to), [date]);
}

#[test]
fn the_key_for_backups_learns_no_name_of_what_was_deleted() {
    let world = World::new();
    world.file("kept", "kept");
    world.file("secret/deleted", "deleted");
    let first = world.publish();
    std::fs::remove_dir_all(world.source.join("secret")).unwrap();
    std::thread::sleep(Duration::from_millis(1050));
    world.publish();
    for name in ["kept", "secret/deleted"] {
        let path = first.join("docs").join(name);
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_at(b"X", 0).unwrap();
        file.set_modified(time).unwrap();
    }
    let mut talk = Talk::at(At::Backup, &world.store, &[]);
    let verify =
        json!({"ask": "verify", "options": {"date": "all", "sample": 100.0, "seed": 1, "limit": 100}});
    let answer = talk.ask(&verify);
    assert_eq!(
        (&answer["ok"]["findings_total"], answer["parts"].as_array().unwrap().len()),
        (&2.into(), 2),
        "{answer}"
    );
    let mut said = answer.to_string();
    assert!(said.contains("docs/kept") && said.contains("only older snapshots hold it"), "{said}");
    said += &talk.ask(&json!({"ask": "list"})).to_string();
    said += &talk.ask(&json!({"ask": "prune", "dry_run": true})).to_string();
    said += &talk.ask(&json!({"ask": "open"})).to_string();
    assert!(!said.contains("deleted") && !said.contains("secret"), "{said}");
    talk.end();
    // Here, all are named.
    let here = world.act("verify", &[]).expect(1);
    assert!(here.json["data"]["findings"].to_string().contains("secret/deleted"), "{here:?}");
}

#[test]
fn long_answers_come_in_parts_and_take_no_more_memory_than_is_allowed() {
    let world = World::new();
    let folder = world.source.join("d");
    std::fs::DirBuilder::new().mode(0o755).create(&folder).unwrap();
    for n in 0..3000 {
        std::fs::write(folder.join(format!("{n}-{}", "n".repeat(220))), "").unwrap();
    }
    world.publish();
    let first = world.dates();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    for n in 0..3000 {
        std::fs::write(folder.join(format!("{n}-{}", "m".repeat(220))), "").unwrap();
    }
    std::thread::sleep(Duration::from_millis(1050));
    world.snapshot(&["--allow-shrink"]).expect(0);
    // Whole, with a limit above all that there is.
    let found = world.act("find", &["--name", "*-*", "--limit", "400000"]).expect(0).json["data"].clone();
    assert_eq!((&found["found"], &found["truncated"]), (&6_000.into(), &false.into()));
    assert_eq!(found["paths"].as_array().unwrap().len(), 6_000);
    let differ =
        world.act("diff", &["--from", &first[0], "--limit", "400000"]).expect(0).json["data"].clone();
    assert_eq!((differ["changes"].as_array().unwrap().len(), &differ["truncated"]), (6_002, &false.into()));
    // As many as there is memory for; the counts are complete.
    let mut talk = Talk::at(At::Read, &world.store, &["--max-memory", "500k"]);
    let find = json!({"ask": "find", "pattern": "*-*", "source": null, "user": null, "limit": 400_000});
    let some = talk.ask(&find);
    let parts = some["parts"].as_array().unwrap().len();
    assert!((100..3000).contains(&parts), "{parts}");
    assert_eq!((&some["ok"]["found"], &some["ok"]["truncated"]), (&6_000.into(), &true.into()));
    let diff = json!({"ask": "diff", "from": first[0], "to": "latest", "source": null, "limit": 400_000});
    let some = talk.ask(&diff);
    let parts = some["parts"].as_array().unwrap().len();
    assert!((100..3000).contains(&parts), "{parts}");
    assert_eq!((&some["ok"]["counts"]["added"], &some["ok"]["truncated"]), (&3000.into(), &true.into()));
    assert!(talk.peak < BASE, "{} MB", talk.peak >> 20);
    talk.end();
}
