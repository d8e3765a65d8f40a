//! A client that means harm: at all doors, in every state, right, wrong, huge, late and reordered, by a seed.
//!
//! `NCB_HOSTILE_ROUNDS=N NCB_HOSTILE_SEED=S` tries longer, or again what failed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::picture::{Picture, picture};
use crate::talk::{At, PROTOCOL, Talk, list, record};
use crate::world::{World, private};

/// Conversations in scripts/test, and how long they may take together.
const ROUNDS: u64 = 600;
const AT_MOST: Duration = Duration::from_secs(40);
/// What the far end may remember of lists, and the most memory it may have in all.
const MEMORY: &str = "16m";
const BOUND: u64 = 96 << 20;
/// A far end that has lost the other one ends within this, however loaded the machine is.
const ENDS: Duration = Duration::from_secs(60);

/// Of the store's own files, those that a conversation may change.
const OURS: [&str; 15] = [
    ".partial",
    ".incoming",
    ".resume",
    ".reuse",
    ".trash",
    ".lock",
    ".latest",
    "latest",
    ".verified",
    ".damaged",
    ".copying",
    ".flushed",
    ".day.json",
    ".pruned",
    ".prune.lock",
];

/// A generator of numbers that needs nothing: xorshift.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << shift } else { self.0 >> shift };
        }
        (self.0 >> 11) as usize % sides
    }
    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.roll(all.len())]
    }
}

/// Everything in the store that no conversation may change: names, inodes, content, attributes.
#[derive(PartialEq)]
struct Truth {
    seen: BTreeMap<String, Picture>,
    inodes: BTreeMap<(String, Vec<u8>), u64>,
}

impl Truth {
    fn of(store: &Path) -> Truth {
        let (mut seen, mut inodes) = (BTreeMap::new(), BTreeMap::new());
        for entry in std::fs::read_dir(store).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if OURS.contains(&name.as_str()) {
                continue;
            }
            let all = picture(&store.join(&name));
            for path in all.0.keys() {
                let name_here = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path);
                let top = store.join(&name);
                let full = if path.is_empty() { top } else { top.join(name_here) };
                inodes.insert((name.clone(), path.clone()), full.symlink_metadata().unwrap().ino());
            }
            seen.insert(name, all);
        }
        Truth { seen, inodes }
    }

    fn dates(&self) -> Vec<&String> {
        self.seen.keys().filter(|name| !name.starts_with('.')).collect()
    }
}

fn requests(date: &str) -> Vec<Value> {
    let source = json!({"name": "docs", "path": "/", "fs_id": null, "submounts": [], "paths": 0, "bytes": 0});
    let described = json!({"run_id": null, "consistency": "sealed", "started_at": "now", "tool_version": "0",
        "sources": [source]});
    let mut whole = described.clone();
    whole.as_object_mut().unwrap().extend(
        json!({"schema": 1, "id": "f".repeat(32), "date": "2020-01-01T00-00-00Z", "base_id": null, "base_date": null,
            "published_at": "", "fake_super": false, "manifest": null})
        .as_object()
        .unwrap()
        .clone(),
    );
    vec![
        json!({"ask": "hello", "protocol": PROTOCOL}),
        json!({"ask": "open"}),
        json!({"ask": "open", "copy": true}),
        json!({"ask": "open", "base": date}),
        json!({"ask": "open", "base": null}),
        json!({"ask": "discard"}),
        json!({"ask": "list"}),
        json!({"ask": "list", "sizes": true}),
        json!({"ask": "prune", "dry_run": false}),
        json!({"ask": "verify", "options": {"date": "all", "sample": 50.0, "seed": 1, "limit": 10}}),
        json!({"ask": "room", "source": "docs", "bytes": 1, "inodes": 1}),
        json!({"ask": "fresh", "source": "docs"}),
        json!({"ask": "clone", "source": "docs"}),
        json!({"ask": "compare", "source": "docs"}),
        json!({"ask": "drop", "source": "docs"}),
        json!({"ask": "receive", "source": "docs", "capabilities": ".LsfxCIvu", "checksum": false, "times": true,
            "delta": false, "again": false, "all_xattrs": false, "acls_only": false}),
        json!({"ask": "merge", "source": "docs", "times": true, "again": false}),
        json!({"ask": "reuse", "source": "docs", "fresh": true}),
        json!({"ask": "receive", "source": "docs", "capabilities": ".LsfxCIvu", "checksum": false, "times": true,
            "delta": false, "again": true, "all_xattrs": false, "acls_only": false, "reused": true, "more": true}),
        json!({"ask": "merge", "source": "docs", "times": true, "again": true, "reused": true}),
        json!({"ask": "flush"}),
        json!({"ask": "publish", "meta": described}),
        json!({"ask": "publish", "text": whole.to_string()}),
        json!({"ask": "resume", "id": "0".repeat(32), "keep": true}),
        json!({"ask": "part"}),
        json!({"ask": "hold", "date": "latest"}),
        json!({"ask": "look"}),
        json!({"ask": "send", "strip": 0, "capabilities": ".LsfxCIvu", "checksum": false, "dry": false,
            "xattrs": true, "acls": true}),
        json!({"ask": "find", "pattern": "*", "source": null, "user": null, "limit": 5}),
        json!({"ask": "diff", "from": date, "to": "latest", "source": null, "limit": 5}),
    ]
}

/// Which of the requests are followed by a list.
const LISTED: [&str; 9] = ["clone", "compare", "drop", "merge", "reuse", "resume", "part", "look", "send"];

/// Things that somebody might write where something else belongs.
fn odd(dice: &mut Dice) -> Value {
    match dice.roll(14) {
        0 => Value::Null,
        1 => json!(-1),
        2 => json!(u64::MAX),
        3 => json!(1e300),
        4 => json!("../../etc"),
        5 => json!("/etc/passwd"),
        6 => json!(".meta"),
        7 => json!("2999-12-31T23-59-59Z"),
        8 => json!("a".repeat(100_000)),
        9 => json!("--config=/x;\u{1b}[2J\n\0"),
        10 => (0..100).fold(json!(0), |inner, _| json!([inner])),
        11 => json!({"ask": "open", "copy": true}),
        12 => json!(vec![0; 20_000]),
        _ => json!(true),
    }
}

fn mutate(dice: &mut Dice, request: &mut Value) {
    let other = requests("2020-01-01T00-00-00Z");
    let Some(fields) = request.as_object_mut() else { return };
    let names: Vec<String> = fields.keys().cloned().collect();
    let name = dice.of(&names).clone();
    match dice.roll(6) {
        0 => drop(fields.remove(&name)),
        1 => drop(fields.insert("copy".into(), true.into())),
        2 => drop(fields.insert("ask".into(), dice.of(&other)["ask"].clone())),
        3 if fields[&name].is_object() => mutate(dice, &mut fields[&name]),
        _ => drop(fields.insert(name, odd(dice))),
    }
}

fn item(dice: &mut Dice) -> Vec<u8> {
    let paths = [
        "a",
        "dir",
        "dir/b",
        "link",
        "link/treasure",
        "link/new/deep",
        "docs/a",
        "../a",
        "/etc/passwd",
        "a/../../b",
        ".meta/snapshot.json",
        "docs/.meta",
        "",
        ".",
        "..",
        "dir/",
        "a\0b",
        "new/file",
        "dir/new",
    ];
    let mut path = dice.of(&paths).as_bytes().to_vec();
    if dice.one_in(8) {
        path = ["d"; 3000].join("/").into_bytes();
    } else if dice.one_in(8) {
        path = (0..dice.roll(300)).map(|_| dice.roll(256) as u8).collect();
    }
    let kinds = [0, libc::S_IFDIR, libc::S_IFREG, libc::S_IFLNK, libc::S_IFCHR, u32::MAX];
    match dice.roll(5) {
        0 | 1 => record(*dice.of(&kinds), &path),
        2 => claim(dice, &path),
        _ => path,
    }
}

/// That `path` holds what `a` does, which was moved there, or copied.
fn claim(dice: &mut Dice, path: &[u8]) -> Vec<u8> {
    // SHA-256 of what is in `a`, and of nothing.
    let sums = [
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    let hex = *dice.of(&sums);
    let sum: Vec<u8> = (0..32).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect();
    let old = *dice.of(&["a", "", "dir/b", "../docs/a", "link/treasure"]);
    let size = (dice.roll(2) as u64).to_le_bytes();
    let length = (if dice.one_in(10) { u32::MAX } else { old.len() as u32 }).to_le_bytes();
    [&sum[..], &size, &[0; 12], &length, old.as_bytes(), path].concat()
}

/// A list: some frames of some items, and perhaps its end.
fn send_list(dice: &mut Dice, talk: &mut Talk) {
    for _ in 0..dice.roll(4) {
        let items: Vec<_> = (0..dice.roll(40)).map(|_| item(dice)).collect();
        let mut bytes = list(&items);
        if dice.one_in(10) {
            bytes.truncate(dice.roll(bytes.len() + 1));
        }
        if !bytes.is_empty() {
            talk.frame(b'L', &bytes);
        }
    }
    if dice.one_in(40) {
        // So many that they may not all be remembered.
        for frame in 0..60 {
            let many: Vec<_> = (0..6000).map(|n| format!("{frame:x}/{n:x}/x").into_bytes()).collect();
            talk.frame(b'L', &list(&many));
        }
    }
    match dice.roll(12) {
        0 => {}
        1 => drop((talk.frame(b'L', b""), talk.frame(b'L', b""))),
        _ => drop(talk.frame(b'L', b"")),
    }
}

fn send_stream(dice: &mut Dice, talk: &mut Talk) {
    for _ in 0..dice.roll(6) {
        let bytes: Vec<u8> = (0..dice.roll(4000)).map(|_| dice.roll(256) as u8).collect();
        talk.frame(b'S', &bytes);
    }
    if !dice.one_in(6) {
        talk.frame(b'E', b"");
    }
}

/// Frames that mean nothing where they come.
fn noise(dice: &mut Dice, talk: &mut Talk) {
    let kind = *dice.of(b"MILSECAZ\0\xff");
    let bytes: Vec<u8> = (0..dice.roll(300)).map(|_| dice.roll(256) as u8).collect();
    match dice.roll(4) {
        0 => drop(talk.say(&[&[kind][..], &0x7fff_ffffu32.to_be_bytes(), &bytes].concat())),
        1 => drop(talk.say(&bytes)),
        2 => drop(talk.frame(b'M', &bytes)),
        _ => drop(talk.frame(kind, &bytes)),
    }
}

/// One conversation. Returns the peak of its memory.
fn converse(dice: &mut Dice, store: &Path, date: &str, said: &mut Vec<String>) -> u64 {
    let at = *dice.of(&[At::Backup, At::Backup, At::Backup, At::Read, At::Copy]);
    let memory = ["--max-memory", MEMORY];
    let mut talk = Talk::silent(at, store, if at == At::Copy { &[] } else { &memory });
    said.push(format!("at {at:?}"));
    let all = requests(date);
    if !dice.one_in(10) {
        talk.ask(&all[0]);
    }
    // Mostly into a state in which there is something to be done.
    let into: &[&str] = match at {
        At::Backup => &["open", "clone", "publish"],
        At::Read => &["hold"],
        At::Copy => &["open", "resume", "fresh", "publish"],
    };
    for ask in &into[..dice.roll(into.len() + 1)] {
        let request = match (at, *ask) {
            (At::Copy, "open") => json!({"ask": "open", "base": date}),
            (At::Copy, "publish") => all.iter().find(|r| r.get("text").is_some()).unwrap().clone(),
            _ => all.iter().find(|r| r["ask"] == *ask).unwrap().clone(),
        };
        said.push(request.to_string());
        if LISTED.contains(ask) {
            talk.ask_with(&request, &[])
        } else {
            talk.ask(&request)
        };
    }
    for _ in 0..dice.roll(10) {
        let mut request = dice.of(&all).clone();
        if dice.one_in(3) {
            mutate(dice, &mut request);
        }
        if request["ask"] == "publish" && dice.one_in(2) {
            continue;
        }
        said.push(request.to_string().chars().take(300).collect());
        let ask = request["ask"].as_str().unwrap_or("").to_owned();
        if !talk.frame(b'M', request.to_string().as_bytes()) {
            break;
        }
        if dice.one_in(15) {
            noise(dice, &mut talk);
        }
        if LISTED.contains(&ask.as_str()) != dice.one_in(15) {
            send_list(dice, &mut talk);
        }
        if matches!(ask.as_str(), "receive" | "send") != dice.one_in(20) {
            send_stream(dice, &mut talk);
        }
        // It may wait for more, as it should.
        let patience = Duration::from_millis(if dice.one_in(3) { 0 } else { 150 });
        while talk.hear(patience).is_some_and(|(kind, _)| kind != b'M') {}
        if talk.has_ended() {
            break;
        }
    }
    talk.look();
    let peak = talk.peak;
    let begin = Instant::now();
    let (code, stderr) = talk.end();
    assert!(begin.elapsed() < ENDS, "it took {:?} to end", begin.elapsed());
    assert!(code < 128, "it did not end by itself: {code} {stderr}");
    peak
}

#[test]
fn a_hostile_client_changes_nothing_but_what_has_not_been_published() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let (rounds, by_hand) =
        (number("NCB_HOSTILE_ROUNDS").unwrap_or(ROUNDS), number("NCB_HOSTILE_ROUNDS").is_some());
    let seed = number("NCB_HOSTILE_SEED").unwrap_or(2026);
    let world = World::new();
    let outside = world.dir.join("outside");
    private(&outside);
    std::fs::write(outside.join("treasure"), "t").unwrap();
    world.file("a", "a");
    world.file("dir/b", "b");
    std::os::unix::fs::symlink(&outside, world.source.join("link")).unwrap();
    world.publish();
    std::thread::sleep(Duration::from_millis(1050));
    world.file("dir/b", "b, later");
    world.publish();
    let date = world.dates().remove(0);
    let elsewhere = || (picture(&outside), picture(&world.source));
    let (truth, others) = (Truth::of(&world.store), elsewhere());
    let (begin, mut peak, mut published, mut done) = (Instant::now(), 0, 0, 0);
    for round in 0..rounds {
        if !by_hand && begin.elapsed() > AT_MOST {
            break;
        }
        let mut dice = Dice((seed + round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut said = Vec::new();
        let from = jiff::Timestamp::now();
        let memory = converse(&mut dice, &world.store, &date, &mut said);
        let to = jiff::Timestamp::now();
        let fail =
            |what: String| -> ! { panic!("seed {}: {what}, after\n{}", seed + round, said.join("\n")) };
        if memory > BOUND {
            fail(format!("{} MB of memory", memory >> 20));
        }
        let now = Truth::of(&world.store);
        for new in now.dates().into_iter().filter(|date| !truth.seen.contains_key(*date)) {
            // A backup has a date of this moment and is whole. A copy, which only we can make, keeps the date it has.
            let format = |t: jiff::Timestamp| t.strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
            let backup = *new >= format(from) && *new <= format(to);
            let whole = world.store.join(new).join(".meta/mtree").exists();
            if said[0] != "at Copy" && !(backup && whole) || said[0] == "at Copy" && *new > format(to) {
                fail(format!("{new} was published"));
            }
            published += 1;
            std::fs::remove_dir_all(world.store.join(new)).unwrap();
        }
        let now = Truth::of(&world.store);
        if now != truth {
            let lost: Vec<_> = truth
                .seen
                .iter()
                .flat_map(|(n, p)| now.seen.get(n).map_or(vec![n.clone()], |there| p.differences(there)))
                .collect();
            let new: Vec<_> = now.seen.keys().filter(|n| !truth.seen.contains_key(*n)).collect();
            fail(format!("the store is not what it was: {lost:?} {new:?}"));
        }
        if elsewhere() != others {
            fail("something else is not what it was".into());
        }
        peak = peak.max(memory);
        done += 1;
    }
    eprintln!(
        "{done} conversations, {published} published, at most {} MB, {:?}",
        peak >> 20,
        begin.elapsed()
    );
    assert!(done >= 10, "only {done} conversations");
    world.act("verify", &[]).expect(0);
    world.publish();
    world.newest_is_source();
}
