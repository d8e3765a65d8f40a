//! Nothing is missing without a message when a random block of the container is garbled.
//! It is pushed to, repaired as the hint says, pushed to and verified; then every date in it is compared with S2's by
//! other means.
//!
//! The rounds are seeded and so can be had again: `NC_BACKUP_ROUNDS` and `NC_BACKUP_SEED`, which by hand are like
//! `NC_BACKUP_ROUNDS=200 cargo test -p testkit --test garbled -- --nocapture plain`. Each round prints a line, and the end a
//! table. In the guest all tools are the real ones, with sshfs and LUKS; here, where the kernel has no dm-crypt, a
//! stand-in for luks-mount mounts a plain image.
#![expect(clippy::disallowed_methods, reason = "tests start what they test by hand")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use testkit::guest::{Options, in_guest, run_me_there};
use testkit::sshd::Sshd;
use testkit::{bin, scratch, script};

/// Bytes of a block.
const BLOCK: u64 = 4096;

/// What a block can be of, and how many of each are tried in turn.
const KINDS: [&str; 8] = [
    "inode table",
    "directory",
    "data",
    "journal",
    "block bitmap",
    "inode bitmap",
    "superblock",
    "descriptors",
];

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
    fn noise(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|_| self.next() as u8).collect()
    }
}

/// What one run of a tool said.
#[derive(Debug)]
struct Said {
    code: i32,
    json: Value,
}

impl Said {
    fn done(&self) -> bool {
        matches!(self.code, 0 | 3)
    }
    /// Whether it says of `date` that not all of it is there, or that it failed: then nobody takes it for good.
    fn tells(&self, date: &str) -> bool {
        const KINDS: [&str; 5] =
            ["container-damaged", "base-lacks", "base-has-more", "damaged-snapshot", "not-all-compared"];
        let warnings = self.json["warnings"].as_array().into_iter().flatten();
        let mut told = warnings.filter(|w| KINDS.iter().any(|k| w["kind"] == *k));
        let findings = self.json["data"]["verify"]["findings"].as_array().into_iter().flatten();
        let mut found =
            findings.filter(|f| f["dates"].as_array().is_some_and(|d| d.iter().any(|d| d == date)));
        let error = self.json["error"]["message"].as_str().unwrap_or_default();
        told.any(|w| w["message"].as_str().is_some_and(|m| m.contains(date)))
            || found.next().is_some()
            || error.contains(date)
    }
    fn short(&self) -> String {
        let error = self.json["error"]["message"].as_str().unwrap_or_default();
        let kinds: BTreeSet<_> = self.json["warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|w| w["kind"].as_str())
            .collect();
        format!("{} {kinds:?} {}", self.code, error.chars().take(90).collect::<String>())
    }
}

/// A file of a date, as the judge sees it: type, size, mode, owner, time, link target; and its hash.
type Tree = BTreeMap<String, (String, String)>;

/// S2, its store, and a container with the first three of five dates.
struct World {
    dir: tempfile::TempDir,
    real: bool,
    dates: Vec<String>,
    _sshd: Option<Sshd>,
}

impl World {
    fn new(real: bool, chance: &mut Chance) -> World {
        let dir = scratch();
        let sshd = real.then(|| Sshd::start("root"));
        let path = |name: &str| dir.path().join(name);
        for name in ["bin", "s3", "source", "store", "state", "run"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for name in ["store", "state", "run"] {
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(path(name), private).unwrap();
        }
        for tool in ["offsite-push", "link-sync", "sshfs-mount", "luks-mount"] {
            std::fs::copy(bin(tool), path("bin").join(tool)).unwrap();
        }
        let text = dir.path().display();
        let s3 = sshd.as_ref().map_or(String::new(), |sshd| {
            format!(
                "[offsite.sshfs]\nhost = \"root@127.0.0.1\"\nport = {}\nidentity = \"{}\"\nknown_hosts = \"{}\"\ndirectory = \"{text}/s3\"\n",
                sshd.port, sshd.identity.display(), sshd.known_hosts.display()
            )
        });
        let image = if real { "container.img".into() } else { format!("{text}/s3/container.img") };
        let profile = format!(
            "state_dir = \"{text}/state\"\nruntime_dir = \"{text}/run\"\n[store]\npath = \"{text}/store\"\n[offsite]\nlayout = \"hardlink\"\n\
             reserve_bytes = 1048576\n{s3}[offsite.luks]\nimage = \"{image}\"\nkey_file = \"{text}/key\"\n"
        );
        std::fs::write(path("home.toml"), profile).unwrap();
        std::fs::write(path("key"), "not much of a key, but enough for this").unwrap();
        std::fs::set_permissions(path("key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        if !real {
            let stand_in = include_str!("luks-mount.sh")
                .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
                .replace("@WORLD@", dir.path().to_str().unwrap());
            script(&path("bin/luks-mount"), &stand_in);
        }
        let mut world = World { dir, real, dates: Vec::new(), _sshd: sshd };
        world.store(chance);
        world.container();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Five dates of some 200 files, each with changes.
    fn store(&mut self, chance: &mut Chance) {
        let source = self.path("source");
        for n in 0..200 {
            let file = source.join(format!("d{}/e{}/f{n}", n % 7, n % 3));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            let bytes = [0, 30, 900, 5000, 20_000][chance.below(5)];
            std::fs::write(&file, chance.noise(bytes)).unwrap();
        }
        std::fs::write(source.join("large"), chance.noise(400_000)).unwrap();
        for n in 0..12 {
            std::os::unix::fs::symlink(format!("to/{n}"), source.join(format!("d{}/link{n}", n % 7)))
                .unwrap();
            std::fs::create_dir(source.join(format!("d{}/empty{n}", n % 7))).unwrap();
        }
        for day in 0..5 {
            for n in 0..8 {
                let n = (day * 31 + n * 17) % 200;
                std::fs::write(source.join(format!("d{}/e{}/f{n}", n % 7, n % 3)), chance.noise(1500))
                    .unwrap();
            }
            std::fs::write(source.join(format!("d{day}/new")), chance.noise(9000)).unwrap();
            // Dates are seconds.
            std::thread::sleep(std::time::Duration::from_millis(1100));
            let mut command = Command::new(self.path("bin/link-sync"));
            command.args(["snapshot", "--crash-consistent", "--store"]).arg(self.path("store"));
            command.arg("--state-dir").arg(self.path("index"));
            command.arg(format!("--source=docs={}", source.display()));
            let ran = testkit::run(&mut command).expect(0);
            self.dates.push(ran.json["data"]["date"].as_str().unwrap().to_owned());
        }
    }

    /// The container with the first three, kept aside.
    fn container(&self) {
        if self.real {
            self.sshfs("mount");
            let size = ["--size", "300m", "--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000"];
            let mut command = self.command("luks-mount", "create", &size);
            testkit::run(&mut command).expect(0);
            self.sshfs("unmount");
        } else {
            let image = self.path("s3/container.img");
            std::fs::File::create(&image).unwrap().set_len(300 << 20).unwrap();
            let options = ["-q", "-b", "4096", "-m", "0", "-I", "256", "-O", "^64bit", "-J", "size=4", "-E"];
            let extended = ["lazy_itable_init=1,lazy_journal_init=1,nodiscard"];
            let mut command = Command::new("mkfs.ext4");
            assert!(command.args(options).args(extended).arg(&image).status().unwrap().success());
        }
        for date in &self.dates[..3] {
            let pushed = self.push(&["--date", date]);
            assert_eq!(pushed.code, 0, "{pushed:?}");
        }
        for (from, to) in [("s3/container.img", "image"), ("state", "kept")] {
            copy(&self.path(from), &self.path(to));
        }
    }

    /// As it was before the round.
    fn renew(&self) {
        for (from, to) in [("image", "s3/container.img"), ("kept", "state")] {
            std::fs::remove_dir_all(self.path(to)).or_else(|_| std::fs::remove_file(self.path(to))).unwrap();
            copy(&self.path(from), &self.path(to));
        }
        std::fs::remove_file(self.path("check-needed")).ok();
    }

    /// A tool in a mount namespace of its own: whatever it leaves mounted is gone with it.
    fn command(&self, tool: &str, action: &str, options: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "120"]);
        if !self.real {
            command.args(["unshare", "--mount", "--propagation", "private"]);
        }
        command.arg(self.path("bin").join(tool)).args([action, "home", "--config"]);
        command.arg(self.path("home.toml")).args(options).stdin(Stdio::null());
        command
    }

    fn sshfs(&self, action: &str) {
        testkit::run(&mut self.command("sshfs-mount", action, &[])).expect(0);
    }

    fn run(&self, action: &str, options: &[&str]) -> Said {
        let output = self.command("offsite-push", action, options).output().unwrap();
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        Said { code: output.status.code().unwrap_or(-1), json }
    }

    fn push(&self, options: &[&str]) -> Said {
        self.run("push", options)
    }

    /// Runs `work` with the path of what holds the file system: the image, or what LUKS shows of it.
    fn device<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let image = self.path("s3/container.img");
        if !self.real {
            return work(&image);
        }
        let header = self.path("state/container.header");
        let device = sh(&format!("losetup --find --show {}", image.display()));
        let device = device.trim();
        let (key, header) = (self.path("key"), header.display().to_string());
        sh(&format!("cryptsetup open --header {header} --key-file {} {device} garbled", key.display()));
        let done = work(Path::new("/dev/mapper/garbled"));
        sh(&format!("sync; udevadm settle 2>/dev/null; cryptsetup close garbled; losetup --detach {device}"));
        done
    }

    /// The blocks of the file system, by what they are of.
    fn blocks(&self) -> BTreeMap<&'static str, Vec<u64>> {
        let inodes = self.device(|device| {
            in_namespace(&format!(
                "mount -o ro,noload{} {} /mnt && cd /mnt && find . -printf '%i %y\\n'",
                if self.real { "" } else { ",loop" },
                device.display()
            ))
        });
        let inodes: BTreeSet<(u64, bool)> = inodes
            .lines()
            .filter_map(|l| l.split_once(' '))
            .map(|(ino, kind)| (ino.parse().unwrap(), kind == "d"))
            .collect();
        assert!(inodes.len() > 200, "{inodes:?}");
        let mut blocks: BTreeMap<&'static str, Vec<u64>> =
            BTreeMap::from([("superblock", vec![0]), ("descriptors", vec![1])]);
        self.device(|device| {
            let text = sh(&format!("dumpe2fs {} 2>/dev/null", device.display()));
            let field = |name: &str| -> u64 {
                let line = text.lines().find(|l| l.starts_with(name)).unwrap();
                line.split_whitespace().last().unwrap().parse().unwrap()
            };
            let per_group = field("Inodes per group:");
            let mut tables = Vec::new();
            for line in text.lines().map(str::trim) {
                let at = |line: &str, after: &str| -> Option<u64> {
                    let rest = line.strip_prefix(after)?;
                    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
                };
                if let Some(at) = at(line, "Block bitmap at ") {
                    blocks.entry("block bitmap").or_default().push(at);
                }
                for part in line.split(", ") {
                    if let Some(at) = at(part.trim(), "Inode bitmap at ") {
                        blocks.entry("inode bitmap").or_default().push(at);
                    }
                }
                if let Some(at) = at(line, "Inode bitmap at ") {
                    blocks.entry("inode bitmap").or_default().push(at);
                }
                tables.extend(at(line, "Inode table at "));
            }
            let mut used = BTreeSet::new();
            for (ino, _) in &inodes {
                let group = usize::try_from((ino - 1) / per_group).unwrap();
                used.insert(tables[group] + (ino - 1) % per_group * 256 / BLOCK);
            }
            blocks.insert("inode table", used.into_iter().collect());
            let all = inodes.iter().map(|(ino, dir)| (*ino, if *dir { "directory" } else { "data" }));
            for (ino, kind) in all.chain([(8, "journal")]) {
                let list = sh(&format!("debugfs -R 'blocks <{ino}>' {} 2>/dev/null", device.display()));
                blocks
                    .entry(kind)
                    .or_default()
                    .extend(list.split_whitespace().filter_map(|b| b.parse::<u64>().ok()));
            }
        });
        blocks
    }

    /// Garbles a block; says how.
    fn garble(&self, block: u64, chance: &mut Chance) -> &'static str {
        self.device(|device| {
            let file = std::fs::File::options().read(true).write(true).open(device).unwrap();
            let mut content = vec![0; usize::try_from(BLOCK).unwrap()];
            file.read_exact_at(&mut content, block * BLOCK).unwrap();
            let how = match chance.below(4) {
                0 => {
                    content = chance.noise(content.len());
                    "noise"
                }
                1 => {
                    content.fill(0);
                    "zeros"
                }
                2 => {
                    // Where something is, if anything is.
                    let there: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
                    let at = if there.is_empty() { 0 } else { there[chance.below(there.len())] };
                    content[at] ^= 1 << chance.below(8);
                    "a bit"
                }
                _ => {
                    let (off, size) = (1 + chance.next() % 40, file.metadata().unwrap().len());
                    let behind = (block + off + 1) * BLOCK <= size;
                    let other = if behind { block + off } else { block.saturating_sub(off) };
                    file.read_exact_at(&mut content, other * BLOCK).unwrap();
                    "another block"
                }
            };
            file.write_all_at(&content, block * BLOCK).unwrap();
            file.sync_all().unwrap();
            how
        })
    }

    /// As the hint says; the exit code.
    fn repair(&self) -> i32 {
        self.device(|device| {
            let mut command = Command::new("e2fsck");
            let output = command.args(["-f", "-y"]).arg(device).output().unwrap();
            output.status.code().unwrap_or(-1)
        })
    }

    /// What the container holds, as other programs see it; `None` if it cannot be mounted.
    fn inside(&self) -> Option<BTreeMap<String, Tree>> {
        self.device(|device| {
            let mount = if self.real { "ro,noload" } else { "ro,noload,loop" };
            let ready = output(&format!(
                "mount -o {mount} {} /mnt && ls /mnt/snapshots && umount /mnt",
                device.display()
            ));
            if !ready.status.success() {
                return None;
            }
            let names = String::from_utf8_lossy(&ready.stdout).into_owned();
            let dates = names.lines().filter(|n| n.starts_with("20"));
            let tree = |date: &str| {
                let before =
                    format!("mount -o {mount} {} /mnt && cd /mnt/snapshots/{date} && ", device.display());
                (date.to_owned(), tree(&before))
            };
            Some(dates.map(tree).collect())
        })
    }

    /// The same of a date here.
    fn here(&self, date: &str) -> Tree {
        tree(&format!("cd {} && ", self.path("store").join(date).display()))
    }
}

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    assert!(command.args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap().success());
}

/// In a mount namespace of its own.
fn output(text: &str) -> Output {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", text])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn in_namespace(text: &str) -> String {
    String::from_utf8_lossy(&output(text).stdout).into_owned()
}

#[track_caller]
fn sh(text: &str) -> String {
    let output = Command::new("sh").args(["-c", text]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{text}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything of a date but what it says of itself.
fn tree(before: &str) -> Tree {
    let list = in_namespace(&format!(
        "{before} find . -path ./.meta -prune -o -printf '%p\\t%y %s %m %U %G %T@ %l\\n'"
    ));
    let sums =
        in_namespace(&format!("{before} find . -path ./.meta -prune -o -type f -exec sha256sum {{}} +"));
    let sums: BTreeMap<&str, &str> =
        sums.lines().filter_map(|l| l.split_once("  ")).map(|(s, p)| (p, s)).collect();
    let entry = |line: &str| {
        let (path, facts) = line.split_once('\t')?;
        // A folder's own size is the file system's business.
        let facts = facts
            .strip_prefix("d ")
            .map_or(facts.to_owned(), |rest| format!("d {}", rest.split_once(' ').map_or("", |r| r.1)));
        Some((path.to_owned(), (facts, sums.get(path).copied().unwrap_or_default().to_owned())))
    };
    list.lines().filter(|l| !l.starts_with(".\t")).filter_map(entry).collect()
}

/// How many rounds came to what.
#[derive(Default)]
struct Table(BTreeMap<(&'static str, String), u64>);

impl Table {
    fn add(&mut self, kind: &'static str, outcome: &str) {
        *self.0.entry((kind, outcome.to_owned())).or_default() += 1;
    }
}

/// One round; why it failed, if it did. `line` is what is printed of it.
fn round(
    world: &World,
    here: &BTreeMap<String, Tree>,
    kind: &'static str,
    block: u64,
    chance: &mut Chance,
    table: &mut Table,
    line: &mut String,
) -> Result<(), String> {
    world.renew();
    let how = world.garble(block, chance);
    *line = format!("{kind}, block {block}, {how}:");
    let mut say = |text: String| *line += &format!("\n    {text}");
    let mut said = Vec::new();
    let first = world.push(&["--date", &world.dates[3]]);
    say(format!("push    {}", first.short()));
    // The hint is for a push that failed; some do it anyway.
    let repaired = !first.done() || chance.below(3) == 0;
    let failed_first = !first.done();
    said.push(first);
    if repaired {
        say(format!("e2fsck  {}", world.repair()));
    }
    let mut last = world.push(&[]);
    say(format!("push    {}", last.short()));
    let mut refused = false;
    if last.code == 78 {
        refused = true;
        said.push(last);
        last = world.push(&["--accept-container"]);
        say(format!("accept  {}", last.short()));
    }
    let done = last.done();
    let new = done.then(|| last.json["data"]["date"].as_str().unwrap().to_owned());
    said.push(last);
    if done {
        let again = world.push(&[]);
        say(format!("again   {}", again.short()));
        said.push(again);
    }
    let verified = world.run("verify", &[]);
    say(format!("verify  {}", verified.short()));
    let Some(inside) = world.inside() else {
        table.add(kind, "unusable, and that is told");
        return if done { Err("it cannot be mounted, but the push was done".into()) } else { Ok(()) };
    };
    let (mut missing, mut rotten) = (Vec::new(), Vec::new());
    for (date, tree) in here {
        let expected = date <= &world.dates[2] || new.as_ref() == Some(date);
        let Some(there) = inside.get(date) else {
            let told = said.iter().chain([&verified]).any(|s| s.tells(date)) || !done;
            if expected && !told {
                return Err(format!("{date} is gone, and nobody said so"));
            }
            if expected {
                missing.push(date.clone());
            }
            continue;
        };
        let bare = |tree: &Tree| -> Vec<(String, String)> {
            // Type and size.
            let facts = |f: &str| {
                f.split(' ').take(if f.starts_with('d') { 1 } else { 2 }).collect::<Vec<_>>().join(" ")
            };
            tree.iter().map(|(path, (f, _))| (path.clone(), facts(f))).collect()
        };
        if tree == there {
            continue;
        }
        let lacks = bare(tree) != bare(there);
        let by_push = said.iter().any(|s| s.tells(date));
        let by_verify =
            verified.tells(date) || (!verified.done() && verified.json["data"]["verify"].is_null());
        if done && new.as_ref() == Some(date) && lacks && !by_push {
            return Err(format!("{date} was pushed and is not whole, and no push said so"));
        }
        if done && repaired && lacks && !by_push {
            return Err(format!("after the repair {date} is not whole, and no push said so"));
        }
        if !by_push && !by_verify {
            return Err(format!("{date} is not what it was, and nobody said so"));
        }
        if lacks { &mut missing } else { &mut rotten }.push(date.clone());
    }
    let reached = match (done, refused, failed_first, repaired) {
        (false, ..) => "given up, and that is told",
        (_, true, ..) => "refused, then accepted",
        (_, _, true, _) => "failed, repaired, pushed",
        (_, _, _, true) => "pushed, repaired, pushed",
        _ => "pushed, pushed",
    };
    let damage = match (missing.is_empty(), rotten.is_empty()) {
        (true, true) => "all whole",
        (true, false) => "contents or attributes damaged, told",
        _ => "paths lost in old dates, told",
    };
    say(format!("so      {reached}; {damage}"));
    table.add(kind, &format!("{reached}; {damage}"));
    Ok(())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn rounds(real: bool, default: u64) {
    let (rounds, seed) = (number("NC_BACKUP_ROUNDS", default), number("NC_BACKUP_SEED", 1));
    let mut chance = Chance(seed);
    let world = World::new(real, &mut chance);
    let blocks = world.blocks();
    for kind in KINDS {
        assert!(blocks.get(kind).is_some_and(|b| !b.is_empty()), "no {kind}: {blocks:?}");
    }
    let here: BTreeMap<String, Tree> = world.dates.iter().map(|d| (d.clone(), world.here(d))).collect();
    assert!(here.values().all(|tree| tree.len() > 200));
    let (mut table, mut failed) = (Table::default(), Vec::new());
    for n in 0..rounds {
        // Most of what can be lost is in the first three.
        let mut one = Chance(seed.wrapping_mul(1_000_003).wrapping_add(n));
        let kind = if n % 2 == 0 { KINDS[one.below(3)] } else { KINDS[one.below(KINDS.len())] };
        let list = &blocks[kind];
        let block = list[one.below(list.len())];
        let mut line = String::new();
        let result = round(&world, &here, kind, block, &mut one, &mut table, &mut line);
        println!("round {n}: {line}");
        if let Err(why) = result {
            println!("    FAILED  {why}");
            failed.push(format!("round {n} of seed {seed}: {why}: {line}"));
        }
    }
    println!(
        "{rounds} rounds of seed {seed}, {} in which something was lost without a message:",
        failed.len()
    );
    for ((kind, outcome), n) in &table.0 {
        println!("{n:5}  {kind}: {outcome}");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn plain_nothing_is_missing_without_a_message() {
    if !in_guest() {
        rounds(false, 6);
    }
}

#[test]
fn encrypted_nothing_is_missing_without_a_message() {
    let seconds = 600 + u32::try_from(number("NC_BACKUP_ROUNDS", 2)).unwrap() * 90;
    let options = Options { memory: 2048, seconds };
    if run_me_there("encrypted_nothing_is_missing_without_a_message", options) {
        return;
    }
    rounds(true, 2);
}
