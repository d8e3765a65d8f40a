//! The layout of layers: images and lists in a container (a folder here), real images by link-sync, real loop devices and overlays.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use testkit::{bin, scratch, tool};

/// A store, a folder for images on their way, a container, a place for views.
struct Shop {
    dir: tempfile::TempDir,
    random: u64,
}

pub(crate) type Picture = BTreeMap<PathBuf, (u32, u32, u32, i64, Vec<u8>)>;

impl Shop {
    fn new(seed: u64) -> Shop {
        let shop = Shop { dir: scratch(), random: seed };
        for name in ["store", "images", "container", "container/snapshots", "view"] {
            std::fs::create_dir(shop.path(name)).unwrap();
            std::fs::set_permissions(shop.path(name), PermissionsExt::from_mode(0o700)).unwrap();
        }
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn next(&mut self, below: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.random >> 33).unwrap() % below
    }

    /// A snapshot that shares all files with `base`, then changed by `change`.
    fn snapshot(&mut self, n: usize, base: Option<&str>, change: impl FnOnce(&mut Shop, &Path)) -> String {
        let date = date(n);
        let top = self.path("store").join(&date);
        match base {
            Some(base) => drop(ok("cp", &["-al", text(&self.path("store").join(base)), text(&top)])),
            None => std::fs::create_dir_all(top.join("data")).unwrap(),
        }
        std::fs::remove_dir_all(top.join(".meta")).ok();
        change(self, &top.join("data"));
        std::fs::create_dir(top.join(".meta")).unwrap();
        let meta = json!({"schema": 1, "id": format!("{n:032x}"), "date": date, "base_id": null, "base_date": null,
            "run_id": null, "consistency": "crash-consistent", "started_at": "", "published_at": "",
            "tool_version": "", "fake_super": false, "sources": []});
        std::fs::write(top.join(".meta/snapshot.json"), meta.to_string()).unwrap();
        std::fs::write(top.join(".meta/lock"), "").unwrap();
        date
    }

    /// Files written, removed, moved; folders moved; attributes changed.
    fn change(&mut self, top: &Path) {
        for _ in 0..self.next(6) + 1 {
            let all: Vec<PathBuf> = walk(top).into_keys().filter(|p| !p.as_os_str().is_empty()).collect();
            let (what, a, b) = (self.next(6), self.next(1000), self.next(1000));
            let any = all.get(a % all.len().max(1)).map(|p| top.join(p));
            let folders: Vec<PathBuf> = all.iter().map(|p| top.join(p)).filter(|p| p.is_dir()).collect();
            let into = folders.get(b % folders.len().max(1)).cloned().unwrap_or_else(|| top.to_owned());
            let free = into.join(format!("n{}", a % 40));
            let Some(any) = any.filter(|_| what > 2) else {
                if free.symlink_metadata().is_err() {
                    match what {
                        0 => std::fs::create_dir(&free).unwrap(),
                        _ => std::fs::write(&free, format!("{a} {b}").repeat(100)).unwrap(),
                    }
                }
                continue;
            };
            match what {
                3 if any.is_dir() => std::fs::remove_dir_all(&any).unwrap(),
                3 => std::fs::remove_file(&any).unwrap(),
                4 if !free.starts_with(&any) && free.symlink_metadata().is_err() => {
                    std::fs::rename(&any, &free).unwrap()
                }
                5 if any.is_file() => {
                    let new = top.join("new");
                    ok("cp", &["-a", text(&any), text(&new)]);
                    std::os::unix::fs::chown(&new, Some(1000 + u32::try_from(a).unwrap()), Some(7)).unwrap();
                    std::fs::rename(&new, &any).unwrap();
                }
                _ => {}
            }
        }
    }

    /// Its image, on its way.
    fn image(&self, date: &str, base: Option<&str>) -> Value {
        let image = self.path("images").join(format!("{date}.sqfs"));
        let (store, image) = (self.path("store"), text(&image).to_owned());
        let mut args =
            vec!["layer", "--big-bytes", "1m", "--store", text(&store), "--date", date, "--to", &image];
        args.extend(base.into_iter().flat_map(|base| ["--base", base]));
        tool("link-sync", args).expect(0).json["data"].clone()
    }

    fn put(&self, date: &str, told: &Value) -> Value {
        let name = format!("{date}.sqfs");
        json!({"put": {"image": name, "from": self.path("images").join(&name), "bytes": told["image_bytes"], "sha256": told["sha256"]}})
    }

    fn start(&self, request: &Value) -> Child {
        self.start_as(&[text(&bin("offsite-push"))], request)
    }

    fn ask_as(&self, program: &[&str], request: &Value) -> Output {
        self.start_as(program, request).wait_with_output().unwrap()
    }

    fn start_as(&self, program: &[&str], request: &Value) -> Child {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .args(["inside", "layers", "--container"])
            .arg(self.path("container"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).ok();
        child
    }

    fn try_ask(&self, request: &Value) -> Result<Value, String> {
        let out = self.ask_as(&[text(&bin("offsite-push"))], request);
        match out.status.success() {
            true => Ok(serde_json::from_slice(&out.stdout).unwrap()),
            false => Err(String::from_utf8(out.stderr).unwrap()),
        }
    }

    #[track_caller]
    fn ask(&self, request: &Value) -> Value {
        self.try_ask(request).unwrap()
    }

    /// Asks again and again, killed at the first such system call, then at the second, until none is left: how often. Each time
    /// `then` looks.
    fn killed_at_each(&self, call: &str, request: &Value, then: impl Fn(&Shop)) -> usize {
        for kills in 0.. {
            let inject = format!("inject={call}:signal=KILL:when={}", kills + 1);
            let out = self.ask_as(
                &["strace", "-qq", "-o", "/dev/null", "-e", &inject, text(&bin("offsite-push"))],
                request,
            );
            if out.status.success() {
                return kills;
            }
            assert!(kills < 99, "{}", String::from_utf8_lossy(&out.stderr));
            then(self);
        }
        unreachable!()
    }

    /// Makes a date of the container out of one of the store.
    fn push(&self, date: &str, base: Option<&str>, below: &[String]) -> Vec<String> {
        let told = self.image(date, base);
        let layers: Vec<String> = [format!("{date}.sqfs")].iter().chain(below).cloned().collect();
        self.ask(&json!({"intend": {"date": date, "layers": layers}}));
        self.ask(&self.put(date, &told));
        self.ask(&json!({"publish": {"date": date, "layers": layers}}));
        layers
    }

    #[track_caller]
    fn shows(&self, date: &str) {
        let shown = self.ask(&json!({"show": {"dates": [date], "at": self.path("view")}}));
        assert_eq!(shown["dates"], json!([date]), "{shown}");
        let seen = walk(&self.path("view/snapshots").join(date).join("data"));
        let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounted.lines().find(|l| l.contains(text(&self.path("view"))) && l.starts_with("overlay"));
        let options = line.unwrap().split(' ').nth(3).unwrap();
        let safe =
            ["ro", "nosuid", "nodev", "noexec"].iter().all(|o| options.split(',').any(|have| have == *o));
        self.ask(&json!({"hide": {"at": self.path("view")}}));
        assert!(safe, "{options}");
        assert_eq!(seen, walk(&self.path("store").join(date).join("data")), "{date}");
        self.nothing_is_shown();
    }

    #[track_caller]
    fn nothing_is_shown(&self) {
        let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounted.contains(text(&self.path("view"))), "{mounted}");
        assert_eq!(std::fs::read_dir(self.path("view")).unwrap().count(), 0);
        let loops = ok("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
        assert!(!loops.contains(text(&self.path("container/layers"))), "{loops}");
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.path("container/layers").join(folder)).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Each date that is there has all its images, and each of them is what was made.
    #[track_caller]
    fn is_whole(&self) -> BTreeSet<String> {
        let lists = self.ask(&json!({"lists": {}}));
        let dates = lists["dates"].as_array().unwrap();
        for layer in dates.iter().flat_map(|d| d["layers"].as_array().unwrap()) {
            let name = layer.as_str().unwrap();
            let image = std::fs::read(self.path("container/layers/images").join(name)).unwrap();
            assert_eq!(image, std::fs::read(self.path("images").join(name)).unwrap(), "{name}");
        }
        dates.iter().map(|d| d["date"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.try_ask(&json!({"hide": {"at": self.path("view")}})).ok();
    }
}

fn date(n: usize) -> String {
    format!("2020-01-{:02}T00-00-00Z", n + 1)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
pub(crate) fn ok(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// What squashfs itself holds; link-sync's stories compare the rest.
pub(crate) fn walk(top: &Path) -> Picture {
    let (mut found, mut waiting) = (Picture::new(), vec![PathBuf::new()]);
    while let Some(path) = waiting.pop() {
        let full = top.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let content = if meta.is_file() { std::fs::read(&full).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            waiting.extend(std::fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())));
        }
        found.insert(path, (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), content));
    }
    found
}

#[test]
fn whatever_is_dropped_in_whatever_order_the_rest_shows_what_it_was() {
    for seed in [3, 14] {
        let mut shop = Shop::new(seed);
        let mut dates: Vec<String> = Vec::new();
        let mut layers: Vec<String> = Vec::new();
        for n in 0..6 {
            let base = dates.last().cloned();
            let date = shop.snapshot(n, base.as_deref(), |shop, top| {
                for _ in 0..if base.is_none() { 6 } else { 2 } {
                    shop.change(top);
                }
            });
            layers = shop.push(&date, base.as_deref(), &layers);
            shop.shows(&date);
            dates.push(date);
        }
        while !dates.is_empty() {
            let going = shop.next(dates.len());
            let going = dates.remove(going);
            assert_eq!(shop.ask(&json!({"drop": {"date": going}}))["changed"], true);
            assert_eq!(shop.is_whole(), dates.iter().cloned().collect());
            // Each lies upon all older ones: what is newer than the newest is needed by none.
            let needed: BTreeSet<String> =
                (0..6).map(date).filter(|d| dates.last().is_some_and(|last| d <= last)).collect();
            let there =
                shop.names("images").into_iter().filter_map(|n| n.strip_suffix(".sqfs").map(str::to_owned));
            assert_eq!(there.collect::<BTreeSet<_>>(), needed);
            if let Some(date) = dates.get(shop.next(dates.len().max(1))).cloned() {
                shop.shows(&date);
            }
        }
        assert_eq!((shop.names("images").len(), shop.names("dates").len()), (0, 0));
    }
}

#[test]
fn killed_at_any_step_each_date_that_is_there_is_whole_and_the_next_try_succeeds() {
    const CALLS: [&str; 6] = ["fsync", "fdatasync", "rename", "unlink", "write", "openat"];
    let mut shop = Shop::new(1);
    let first = shop.snapshot(0, None, |shop, top| shop.change(top));
    let below = shop.push(&first, None, &[]);
    let second = shop.snapshot(1, Some(&first), |shop, top| shop.change(top));
    let told = shop.image(&second, Some(&first));
    let layers = [vec![format!("{second}.sqfs")], below].concat();
    let requests = [
        json!({"intend": {"date": second, "layers": layers}}),
        shop.put(&second, &told),
        json!({"publish": {"date": second, "layers": layers}}),
        json!({"drop": {"date": second}}),
    ];
    for (n, request) in requests.iter().enumerate() {
        let mut kills = 0;
        for call in CALLS {
            shop.ask(&requests[3]);
            requests[..n].iter().for_each(|before| drop(shop.ask(before)));
            kills += shop.killed_at_each(call, request, |shop| {
                let dates = shop.is_whole();
                assert!(dates.contains(&first) && dates.len() <= 2);
            });
            // What was on its way is not swept.
            shop.ask(&json!({"sweep": {}}));
            assert_eq!(shop.names("images").contains(&layers[0]), n == 1 || n == 2, "{request}");
        }
        assert!(kills >= 8, "{request}: killed {kills} times");
    }
    assert_eq!(shop.is_whole(), [first.clone()].into());
    let (image, beside) = (format!("{first}.sqfs"), format!("{first}.sqfs.json"));
    assert_eq!(shop.names("images"), [image, beside].into());
    shop.shows(&first);
}

#[test]
fn a_date_without_all_its_images_is_not_published_and_none_is_changed() {
    let mut shop = Shop::new(5);
    let first = shop.snapshot(0, None, |shop, top| shop.change(top));
    let second = shop.snapshot(1, Some(&first), |shop, top| shop.change(top));
    let below = shop.push(&first, None, &[]);
    let missing = [vec![format!("{second}.sqfs")], below.clone()].concat();
    assert!(
        shop.try_ask(&json!({"publish": {"date": second, "layers": missing}}))
            .unwrap_err()
            .contains("cannot look")
    );
    std::fs::write(shop.path("container/layers/images").join(&missing[0]), "").unwrap();
    assert!(
        shop.try_ask(&json!({"publish": {"date": second, "layers": missing}}))
            .unwrap_err()
            .contains("is no layer")
    );
    shop.ask(&json!({"sweep": {}}));
    assert_eq!(shop.is_whole(), [first.clone()].into());
    // The same again is nothing new; other layers are refused.
    shop.push(&second, Some(&first), &below);
    assert_eq!(shop.ask(&json!({"publish": {"date": second, "layers": missing}}))["changed"], false);
    let refused = shop.try_ask(&json!({"publish": {"date": first, "layers": missing}})).unwrap_err();
    assert!(refused.contains("with other layers"), "{refused}");
}

#[test]
fn an_image_that_is_not_what_was_made_does_not_get_its_name_and_none_is_replaced() {
    let mut shop = Shop::new(6);
    let date = shop.snapshot(0, None, |shop, top| shop.change(top));
    let told = shop.image(&date, None);
    let image = shop.path("images").join(format!("{date}.sqfs"));
    let right = std::fs::read(&image).unwrap();
    let mut wrong = right.clone();
    wrong[200] ^= 1;
    std::fs::write(&image, &wrong).unwrap();
    let refused = shop.try_ask(&shop.put(&date, &told)).unwrap_err();
    assert!(refused.contains("is not what was made"), "{refused}");
    assert_eq!(shop.names("images").len(), 0);
    std::fs::write(&image, &right).unwrap();
    assert_eq!(shop.ask(&shop.put(&date, &told))["copied"], true);
    assert_eq!(shop.ask(&shop.put(&date, &told))["copied"], false);
    let mut other = told.clone();
    other["sha256"] = "0".repeat(64).into();
    let refused = shop.try_ask(&shop.put(&date, &other)).unwrap_err();
    assert!(refused.contains("another image"), "{refused}");
    let link = shop.path("images").join("link");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    std::fs::copy(shop.path("images").join(format!("{date}.sqfs.json")), shop.path("images/link.json"))
        .unwrap();
    let by_link = json!({"put": {"image": format!("{date}.2.sqfs"), "from": link, "bytes": 1, "sha256": ""}});
    assert!(shop.try_ask(&by_link).unwrap_err().contains("cannot copy"));
}

#[test]
fn an_image_that_was_cut_off_is_gone_on_with_and_what_is_there_is_not_sent_again() {
    let mut shop = Shop::new(11);
    let date = shop.snapshot(0, None, |_, top| {
        let mut noise = vec![0; 5 << 20];
        let mut random = std::fs::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut random, &mut noise).unwrap();
        // (Less than what lies beside.)
        for (n, part) in noise.chunks(1_000_000).enumerate() {
            std::fs::write(top.join(n.to_string()), part).unwrap();
        }
    });
    let told = shop.image(&date, None);
    let put = shop.put(&date, &told);
    let log = shop.path("log");
    let ask = |more: &[&str]| {
        let strace = ["strace", "-qq", "-e", "trace=pwrite64", "-o", text(&log)];
        let out = shop.ask_as(&[&strace, more, &[text(&bin("offsite-push"))]].concat(), &put);
        (out.status.success(), std::fs::read_to_string(&log).unwrap().matches("pwrite64(").count())
    };
    let layers = json!({"intend": {"date": date, "layers": [format!("{date}.sqfs")]}});
    shop.ask(&layers);
    assert!(!ask(&["-e", "inject=pwrite64:signal=KILL:when=4"]).0);
    // What is on its way is not swept out.
    shop.ask(&json!({"sweep": {}}));
    let passing = shop.path("container/layers/images").join(format!(".{date}.sqfs.new"));
    assert!(passing.metadata().unwrap().len() >= 3 << 20);
    // A byte of it is not what was sent: from there on it is sent again.
    let (there, written) = ask(&[]);
    assert!(there && (2..=3).contains(&written), "{written}");
    assert!(
        shop.ask(&json!({"check": {"layers": [[format!("{date}.sqfs"), told["sha256"]]]}}))["wrong"]
            == json!([])
    );
    shop.ask(&json!({"drop": {"date": date}}));
    shop.ask(&layers);
    assert!(!ask(&["-e", "inject=pwrite64:signal=KILL:when=4"]).0);
    let mut rotten = std::fs::read(&passing).unwrap();
    rotten[100] ^= 1;
    std::fs::write(&passing, rotten).unwrap();
    let (there, written) = ask(&[]);
    assert!(there && written >= 5, "{written}");
    assert!(
        shop.ask(&json!({"check": {"layers": [[format!("{date}.sqfs"), told["sha256"]]]}}))["wrong"]
            == json!([])
    );
}

#[test]
fn an_image_that_has_rotted_is_told_without_being_mounted() {
    let mut shop = Shop::new(10);
    let first = shop.snapshot(0, None, |shop, top| shop.change(top));
    let name = shop.push(&first, None, &[]).remove(0);
    let images = shop.path("container/layers/images");
    let check = |sum: Option<&str>| shop.ask(&json!({"check": {"layers": [[name, sum]]}}))["wrong"].clone();
    let sum = ok("sha256sum", &[text(&images.join(&name))])[..64].to_owned();
    assert_eq!((check(None), check(Some(&sum))), (json!([]), json!([])));
    let mut rotten = std::fs::read(images.join(&name)).unwrap();
    rotten[300] ^= 4;
    std::fs::write(images.join(&name), rotten).unwrap();
    for told in [check(None), check(Some(&sum))] {
        assert_eq!(told[0]["layer"], *name);
        assert!(told[0]["why"].as_str().unwrap().ends_with(&format!("not {sum}")), "{told}");
    }
    std::fs::remove_file(images.join(format!("{name}.json"))).unwrap();
    assert_eq!(check(None)[0]["why"], "its hash is not known");
    std::fs::remove_file(images.join(&name)).unwrap();
    assert_eq!(check(Some(&sum))[0]["why"], "it is not there");
    let tree = json!({"check": {"layers": [[format!("snapshots/{first}/"), null]]}});
    assert!(shop.try_ask(&tree).is_err());
}

#[test]
fn while_a_list_is_not_understood_no_image_goes() {
    let mut shop = Shop::new(7);
    let first = shop.snapshot(0, None, |shop, top| shop.change(top));
    shop.push(&first, None, &[]);
    let dates = shop.path("container/layers/dates");
    let list = std::fs::read_to_string(dates.join(&first)).unwrap();
    std::fs::write(dates.join(&first), list.strip_suffix("end\n").unwrap()).unwrap();
    let refused = shop.try_ask(&json!({"sweep": {}})).unwrap_err();
    assert!(refused.contains("no image is removed") && refused.contains("is damaged"), "{refused}");
    std::fs::rename(dates.join(&first), dates.join("kept by hand")).unwrap();
    assert!(shop.try_ask(&json!({"drop": {"date": first}})).is_err());
    assert_eq!(shop.names("images").len(), 2);
    std::fs::remove_file(dates.join("kept by hand")).unwrap();
    assert_eq!(shop.ask(&json!({"sweep": {}}))["removed"], json!([format!("{first}.sqfs")]));
    assert_eq!(shop.names("images").len(), 0);
}

#[test]
fn a_view_that_was_killed_at_any_step_is_taken_down() {
    let mut shop = Shop::new(8);
    let first = shop.snapshot(0, None, |shop, top| shop.change(top));
    let below = shop.push(&first, None, &[]);
    let second = shop.snapshot(1, Some(&first), |shop, top| shop.change(top));
    shop.push(&second, Some(&first), &below);
    let show = json!({"show": {"dates": [], "at": shop.path("view")}});
    let hide = json!({"hide": {"at": shop.path("view")}});
    let mut kills = 0;
    for call in ["mkdir", "mount", "clone", "clone3", "futex", "chdir"] {
        shop.ask(&hide);
        kills += shop.killed_at_each(call, &show, |shop| {
            // What was started by what was killed ends with it.
            std::thread::sleep(std::time::Duration::from_millis(200));
            shop.ask(&hide);
            shop.nothing_is_shown();
        });
    }
    assert!(kills >= 4, "killed {kills} times");
    // In the middle of what its threads do.
    for n in 0..25 {
        let mut child = shop.start(&show);
        std::thread::sleep(std::time::Duration::from_millis(4 * n));
        child.kill().ok();
        child.wait().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        shop.ask(&hide);
        shop.nothing_is_shown();
    }
    // What somebody works in stays, and who it is is told.
    let shown = shop.ask(&show);
    assert_eq!((&shown["dates"], &shown["images"]), (&json!([first, second]), &2.into()));
    let mounts =
        || std::fs::read_to_string("/proc/self/mounts").unwrap().matches(text(&shop.path("view"))).count();
    let (inside, before) =
        (std::fs::File::open(shop.path("view/snapshots").join(&second)).unwrap(), mounts());
    let told = shop.ask(&hide);
    let held = told["held"].as_str().unwrap();
    assert!(held.contains(&second) && held.contains(&format!("process {}", std::process::id())), "{held}");
    // An overlay holds what is below it, mounted or not: what nobody sees any more would keep the container open.
    assert_eq!((mounts(), &told["changed"]), (before, &false.into()));
    drop(inside);
    assert_eq!(shop.ask(&hide), json!({"changed": true, "held": null}));
    shop.nothing_is_shown();
}

#[test]
fn all_dates_are_shown_at_once_trees_beside_lists_and_what_is_damaged_keeps_only_its_own_away() {
    let mut shop = Shop::new(11);
    let show = |shop: &Shop, dates: &[&String]| {
        shop.ask(&json!({"show": {"dates": dates, "at": shop.path("view")}}))
    };
    // A tree, two lists above it, and one list of its own.
    let tree = shop.snapshot(0, None, |shop, top| shop.change(top));
    ok("cp", &["-a", text(&shop.path("store").join(&tree)), text(&shop.path("container/snapshots"))]);
    let second = shop.snapshot(1, Some(&tree), |shop, top| shop.change(top));
    let below = shop.push(&second, Some(&tree), &[format!("snapshots/{tree}/")]);
    let third = shop.snapshot(2, Some(&second), |shop, top| shop.change(top));
    shop.push(&third, Some(&second), &below);
    let fourth = shop.snapshot(3, None, |shop, top| shop.change(top));
    shop.push(&fourth, None, &[]);
    let seen = |shop: &Shop, date: &String| {
        assert_eq!(
            walk(&shop.path("view/snapshots").join(date).join("data")),
            walk(&shop.path("store").join(date).join("data")),
            "{date}"
        );
    };
    // One, another beside it, all.
    assert_eq!(show(&shop, &[&third])["images"], 2);
    assert_eq!(show(&shop, &[&third])["images"], 0);
    assert_eq!(show(&shop, &[&fourth])["images"], 1);
    seen(&shop, &third);
    let all = show(&shop, &[]);
    assert_eq!(all, json!({"dates": [tree, second, third, fourth], "failed": {}, "images": 0}));
    [&tree, &second, &third, &fourth].into_iter().for_each(|date| seen(&shop, date));
    let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for line in mounted.lines().filter(|l| l.contains(text(&shop.path("view")))) {
        let options = line.split(' ').nth(3).unwrap();
        let safe =
            ["ro", "nosuid", "nodev", "noexec"].iter().all(|o| options.split(',').any(|have| have == *o));
        assert!(safe, "{line}");
    }
    assert_eq!(shop.ask(&json!({"hide": {"at": shop.path("view")}})), json!({"changed": true, "held": null}));
    shop.nothing_is_shown();

    // An image that is none any more, a list that is cut, a date that is not there.
    let image = shop.path("container/layers/images").join(format!("{third}.sqfs"));
    std::fs::write(&image, "no image").unwrap();
    let list = shop.path("container/layers/dates").join(&fourth);
    std::fs::write(&list, "nc-backup layers 1\n").unwrap();
    let all = show(&shop, &[]);
    assert_eq!(all["dates"], json!([tree, second]));
    let failed = |date: &String| all["failed"][date].as_str().unwrap();
    assert!(failed(&third).contains("cannot mount"), "{all}");
    assert!(failed(&fourth).contains("is damaged"), "{all}");
    [&tree, &second].into_iter().for_each(|date| seen(&shop, date));
    shop.ask(&json!({"hide": {"at": shop.path("view")}}));
    let none = show(&shop, &[&third, &date(9)]);
    assert_eq!((&none["dates"], none["failed"].as_object().unwrap().len()), (&json!([]), 2));
    shop.nothing_is_shown();
}

#[test]
fn one_image_takes_the_place_of_several_in_every_list_or_in_some_and_nothing_shown_changes() {
    let mut shop = Shop::new(21);
    let (mut dates, mut layers) = (Vec::new(), Vec::new());
    for n in 0..5 {
        let base: Option<String> = dates.last().cloned();
        let date = shop.snapshot(n, base.as_deref(), |shop, top| (0..5).for_each(|_| shop.change(top)));
        layers = shop.push(&date, base.as_deref(), &layers);
        dates.push(date);
    }
    // What was between the first and the fourth.
    shop.ask(&json!({"drop": {"date": dates[1]}}));
    shop.ask(&json!({"drop": {"date": dates[2]}}));
    let several: Vec<String> = [3, 2, 1].map(|n| format!("{}.sqfs", dates[n])).into();
    let name = format!("{}.m1.sqfs", dates[3]);
    std::fs::rename(shop.path("images").join(&several[0]), shop.path("images/aside")).unwrap();
    std::fs::rename(shop.path("images").join(format!("{}.json", several[0])), shop.path("images/aside.json"))
        .unwrap();
    let told = shop.image(&dates[3], Some(&dates[0]));
    for end in ["", ".json"] {
        let made = shop.path("images").join(format!("{}{end}", several[0]));
        std::fs::rename(made, shop.path("images").join(format!("{name}{end}"))).unwrap();
        let aside = shop.path(&format!("images/aside{end}"));
        std::fs::rename(aside, shop.path("images").join(format!("{}{end}", several[0]))).unwrap();
    }
    let replace = json!({"replace": {"layers": several, "by": name}});
    assert!(shop.try_ask(&replace).unwrap_err().contains("cannot look at"), "before it is there");
    let put = json!({"put": {"image": name, "from": shop.path("images").join(&name), "bytes": told["image_bytes"],
        "sha256": told["sha256"]}});
    shop.ask(&put);
    let stay = [&dates[0], &dates[3], &dates[4]];
    let as_before = |shop: &Shop| stay.iter().for_each(|date| shop.shows(date));
    let mut kills = 0;
    for call in ["rename", "fsync"] {
        kills += shop.killed_at_each(call, &replace, |shop| {
            shop.is_whole();
            as_before(shop);
        });
    }
    assert!(kills >= 3, "killed {kills} times");
    let first = format!("{}.sqfs", dates[0]);
    let lists = shop.ask(&json!({"lists": {}}))["dates"].clone();
    assert_eq!(lists[1]["layers"], json!([name, first]));
    assert_eq!(lists[2]["layers"], json!([format!("{}.sqfs", dates[4]), name, first]));
    let mut gone = several.clone();
    gone.sort();
    assert_eq!(shop.ask(&json!({"sweep": {}}))["removed"], json!(gone));
    assert_eq!(shop.ask(&replace)["lists"], 0);
    as_before(&shop);
}

/// A file system of its own for the container; gone when dropped.
struct Disk(PathBuf);

impl Disk {
    fn of(kind: &str, shop: &Shop) -> Disk {
        let (image, place) = (shop.path("disk.img"), shop.path("container"));
        std::fs::File::create(&image).unwrap().set_len(300 << 20).unwrap();
        ok(&format!("mkfs.{kind}"), &["-q", text(&image)]);
        ok("mount", &["-o", "loop", text(&image), text(&place)]);
        Disk(place)
    }

    fn used(&self) -> u64 {
        ok("sync", &["-f", text(&self.0)]);
        let stat = nix::sys::statvfs::statvfs(&self.0).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok();
    }
}

#[test]
fn of_a_large_content_only_what_changed_is_written_where_blocks_can_be_shared() {
    for (kind, shares) in [("btrfs", true), ("ext4", false)] {
        let mut shop = Shop::new(2);
        let disk = Disk::of(kind, &shop);
        let mut large: Vec<u8> =
            (0..20 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let first = shop.snapshot(0, None, |_, top| std::fs::write(top.join("large"), &large).unwrap());
        let put = |shop: &Shop, date: &str, base: Option<&str>, like: &Value| {
            let told = shop.image(date, base);
            let told = std::fs::read(shop.path("images").join(format!("{date}.sqfs.json")))
                .map(|facts| (told, facts));
            let (told, facts) = told.unwrap();
            shop.ask(&shop.put(date, &told));
            let facts: Value = serde_json::from_slice(&facts).unwrap();
            let mut content = facts["big"][0].clone();
            content["date"] = date.into();
            let request = json!({"put-big": {"store": shop.path("store"), "content": content, "like": like}});
            (content, shop.ask(&request), request)
        };
        let (old, copied, _) = put(&shop, &first, None, &Value::Null);
        assert_eq!(copied["patched_bytes"], Value::Null);
        let lists = |date: &str, names: &[&Value], more: &[String]| -> Vec<String> {
            let big = names.iter().map(|content| format!("big/{}", content["sha256"].as_str().unwrap()));
            [format!("{date}.sqfs")].into_iter().chain(more.iter().cloned()).chain(big).collect()
        };
        let layers = lists(&first, &[&old], &[]);
        shop.ask(&json!({"publish": {"date": first, "layers": layers}}));
        let before = disk.used();

        // In the middle, and a little more at the end.
        large[10 << 20..11 << 20].fill(7);
        large.extend([9; 5000]);
        let second = shop.snapshot(1, Some(&first), |_, top| {
            std::fs::remove_file(top.join("large")).unwrap();
            std::fs::write(top.join("large"), &large).unwrap();
        });
        let (new, copied, request) = put(&shop, &second, Some(&first), &old);
        let patched = copied["patched_bytes"].as_u64();
        assert_eq!(patched.is_some(), shares, "{kind}: {copied}");
        let grown = disk.used() - before;
        assert_eq!(grown < 3 << 20, shares, "{kind}: {grown}");
        assert!(patched.is_none_or(|bytes| (1 << 20..2 << 20).contains(&bytes)), "{patched:?}");
        assert_eq!(shop.ask(&request)["copied"], false);
        let layers = lists(&second, &[&new, &old], &[format!("{first}.sqfs")]);
        shop.ask(&json!({"publish": {"date": second, "layers": layers}}));
        shop.shows(&second);
        shop.shows(&first);
        let removed = shop.ask(&json!({"drop": {"date": second}}))["removed"].clone();
        assert_eq!(removed, json!([format!("{second}.sqfs"), new["sha256"]]));
        shop.shows(&first);

        // What lies here is not what lies there: it is of no help.
        let mut like = old.clone();
        like["date"] = second.clone().into();
        let request = json!({"put-big": {"store": shop.path("store"), "content": new, "like": like}});
        assert_eq!(shop.ask(&request), json!({"copied": true, "patched_bytes": null}));
        ok(
            "cmp",
            &[
                text(&shop.path("container/layers/big/.big").join(new["sha256"].as_str().unwrap())),
                text(&shop.path("store").join(&second).join("data/large")),
            ],
        );
    }
}

#[test]
fn a_large_content_is_what_was_told_and_comes_from_the_store_alone() {
    let mut shop = Shop::new(2);
    let date = shop.snapshot(0, None, |_, top| {
        std::fs::write(top.join("large"), "large").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", top.join("link")).unwrap();
    });
    let content = |path: &str, sum: &str| json!({"sha256": sum, "bytes": 5, "date": date, "path": path, "path_b64": null});
    let put =
        |content: Value| json!({"put-big": {"store": shop.path("store"), "content": content, "like": null}});
    let sum = ok("sha256sum", &[text(&shop.path("store").join(&date).join("data/large"))])[..64].to_owned();
    let wrong = "0".repeat(64);
    for (path, sum) in [
        ("data/large", &wrong[..]),
        ("data/link", &sum),
        ("../../../etc/passwd", &sum),
        ("data/large", "../x"),
    ] {
        assert!(shop.try_ask(&put(content(path, sum))).is_err(), "{path} {sum}");
    }
    assert!(shop.names("big/.big").iter().all(|name| name.ends_with(".new")));
    assert_eq!(shop.ask(&put(content("data/large", &sum)))["copied"], true);
    assert_eq!(shop.ask(&json!({"sweep": {}}))["removed"], json!([sum]));
    assert_eq!(shop.names("big/.big").len(), 0);
}

/// Of a tree: all that a restore has to bring back.
fn picture(top: &Path) -> String {
    let names = ok("find", &[text(top), "-printf", "%P %y %m %U %G %T@ %l\\n"]);
    let mut lines: Vec<&str> = names.lines().filter(|line| !line.starts_with(' ')).collect();
    lines.sort_unstable();
    let script = "cd \"$1\" && find . -type f -exec sha256sum {} + | sort -k 2 && getfattr -R -P -h -e hex -d -m - . | sed '/^$/d'";
    lines.join("\n") + &ok("sh", &["-c", script, "sh", text(top)])
}

/// `docs/disaster-recovery.md`: the commands of these sections, with folders of the test's.
fn page(sections: std::ops::RangeInclusive<u32>, shop: &Shop) -> Vec<String> {
    let page = std::fs::read_to_string(testkit::repo().join("docs/disaster-recovery.md")).unwrap();
    let at = |n: u32| page.find(&format!("\n## {n}. ")).unwrap();
    let part = &page[at(*sections.start())..at(sections.end() + 1)];
    let block = |text: &str| text.split("```").next().unwrap().to_owned();
    let names = ["WHERE", "OUT", "BUILD"].map(|name| {
        let folder = if name == "WHERE" { "container".to_owned() } else { name.to_lowercase() };
        assert!(page.contains(&format!("\n{name}=/")), "{name}");
        format!("{name}='{}'\n", shop.path(&folder).display())
    });
    let head = format!("set -eu\nexport TMPDIR='{}'\n{}", shop.dir.path().display(), names.concat());
    [head].into_iter().chain(part.split("```sh\n").skip(1).map(block)).collect()
}

#[test]
fn by_hand_a_date_is_a_few_mounts_or_a_loop_of_unpacking_and_comes_back_whole() {
    let mut shop = Shop::new(12);
    let large: Vec<u8> = (0..2 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // A tree, and images above it, of which the second has a large content.
    let tree = shop.snapshot(0, None, |shop, top| {
        std::fs::create_dir(top.join("any")).unwrap();
        (0..8).for_each(|_| shop.change(&top.join("any")));
        std::fs::create_dir_all(top.join("a folder/in it")).unwrap();
        for n in 0..30 {
            std::fs::write(top.join(format!("a folder/in it/{n} $x")), vec![b'x'; 100 + n]).unwrap();
        }
        // Older than a second, which is as far as rsync looks at the time of a folder.
        ok("find", &[text(top), "-exec", "touch", "-h", "-d", "2026-01-01T00:00:00.25Z", "{}", "+"]);
    });
    ok("cp", &["-a", text(&shop.path("store").join(&tree)), text(&shop.path("container/snapshots"))]);
    let (mut base, mut layers) = (tree.clone(), vec![format!("snapshots/{tree}/")]);
    for n in 1..6 {
        let date = shop.snapshot(n, Some(&base), |shop, top| {
            (0..4).for_each(|_| shop.change(&top.join("any")));
            match n {
                1 => std::fs::write(top.join("large"), &large).unwrap(),
                2 => {
                    std::fs::rename(top.join("a folder"), top.join("moved")).unwrap();
                    std::fs::rename(top.join("large"), top.join("moved/large")).unwrap();
                }
                3 => {
                    // In a folder that was moved: another owner, an ACL, and a link's time.
                    let file = top.join("moved/in it/7 $x");
                    ok(
                        "sh",
                        &[
                            "-c",
                            "cp -a \"$1\" \"$1.new\"; chown 7:8 \"$1.new\"; mv \"$1.new\" \"$1\"",
                            "sh",
                            text(&file),
                        ],
                    );
                    ok("setfacl", &["-m", "u:1234:r", text(&file)]);
                    ok("ln", &["-s", "nowhere", text(&top.join("moved/link"))]);
                }
                4 => {
                    std::fs::rename(top.join("moved/in it"), top.join("out of it")).unwrap();
                    std::fs::remove_dir_all(top.join("moved")).unwrap();
                }
                _ => {}
            }
        });
        let told = shop.image(&date, Some(&base));
        let facts = std::fs::read(shop.path("images").join(format!("{date}.sqfs.json"))).unwrap();
        let facts: Value = serde_json::from_slice(&facts).unwrap();
        for content in facts["big"].as_array().unwrap() {
            let mut content = content.clone();
            layers.push(format!("big/{}", content["sha256"].as_str().unwrap()));
            content["date"] = date.clone().into();
            shop.ask(&json!({"put-big": {"store": shop.path("store"), "content": content, "like": null}}));
        }
        layers.insert(0, format!("{date}.sqfs"));
        shop.ask(&shop.put(&date, &told));
        shop.ask(&json!({"publish": {"date": date, "layers": layers}}));
        base = date;
        // As mounts, and as if there were no overlayfs.
        for mounts in [true, false] {
            let mut script = page(4..=6, &shop);
            assert_eq!(script.len(), 6, "head, hashes, mounts, unpacking, copying, times");
            if !mounts {
                script.remove(2);
            }
            script.push("[ -z \"${VIEW:-}\" ] || { umount \"$VIEW/date\" \"$VIEW\"/[0-9b]*; echo \"mounted $FROM\"; }".into());
            let ran = Command::new("sh").args(["-c", &script.concat()]).output().unwrap();
            let said = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success() && !said.contains("damaged"), "{n} {mounts}: {said}");
            assert_eq!(String::from_utf8_lossy(&ran.stdout).contains("mounted"), mounts);
            let wanted = picture(&shop.path("store").join(&base).join("data"));
            assert_eq!(picture(&shop.path("out/data")), wanted, "{n} {mounts}");
            std::fs::remove_dir_all(shop.path("out")).unwrap();
            std::fs::remove_dir_all(shop.path("build")).ok();
        }
    }
    let script = page(4..=4, &shop)[..2].concat();
    let image = shop.path("container/layers/images").join(format!("{base}.sqfs"));
    let mut rotten = std::fs::read(&image).unwrap();
    rotten[300] ^= 4;
    std::fs::write(&image, rotten).unwrap();
    let told = ok("sh", &["-c", &script]);
    assert!(
        told.contains(&format!("damaged: {}", image.display())) && told.matches("damaged").count() == 1,
        "{told}"
    );
}

#[test]
fn what_a_kernel_without_attributes_would_show_is_not_shown() {
    let mut shop = Shop::new(4);
    let date = shop.snapshot(0, None, |shop, top| shop.change(top));
    shop.push(&date, None, &[]);
    // As such a kernel sees it.
    let image = shop.path("container/layers/images").join(format!("{date}.sqfs"));
    std::fs::remove_file(&image).unwrap();
    ok(
        "mksquashfs",
        &[text(&shop.path("store").join(&date)), text(&image), "-no-xattrs", "-quiet", "-no-progress"],
    );
    let shown = shop.ask(&json!({"show": {"dates": [date], "at": shop.path("view")}}));
    let refused = shown["failed"][&date].as_str().unwrap();
    assert!(refused.contains("CONFIG_SQUASHFS_XATTR") && shown["dates"] == json!([]), "{shown}");
    shop.nothing_is_shown();
}

#[test]
fn more_layers_than_long_names_would_allow_are_shown_and_the_lowest_may_be_a_tree() {
    let mut shop = Shop::new(9);
    let first = shop.snapshot(0, None, |shop, top| shop.change(top));
    let tree = shop.path("container/snapshots").join(&first);
    ok("cp", &["-a", text(&shop.path("store").join(&first)), text(&tree)]);
    let second = shop.snapshot(1, Some(&first), |shop, top| shop.change(top));
    let told = shop.image(&second, Some(&first));
    shop.ask(&shop.put(&second, &told));
    let mut layers = vec![format!("{second}.sqfs")];
    let images = shop.path("container/layers/images");
    for n in 0..120 {
        layers.push(format!("{second}.{n}.sqfs"));
        // (Of one file there is one loop device, and a file system is not laid over itself.)
        std::fs::copy(images.join(&layers[0]), images.join(&layers[n + 1])).unwrap();
    }
    layers.push(format!("snapshots/{first}/"));
    shop.ask(&json!({"publish": {"date": second, "layers": layers}}));
    shop.shows(&second);
}
