//! Whole pushes in the layout of layers: the real link-sync, real images and overlays; stand-ins for what mounts S3 and opens the container.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use testkit::{Ran, bin};

use crate::layers::{Picture, ok, text, walk};
use crate::world::{World, steps};

const S3: &str = "[offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/srv/backup\"\n";

pub(crate) struct Nights {
    pub(crate) world: World,
}

pub(crate) fn date(n: usize) -> String {
    format!("2026-10-{:02}T03-30-00Z", n + 1)
}

pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
    noise
}

/// So many bytes of contents, and the snapshot's description.
#[track_caller]
fn near(bytes: &Value, contents: u64) {
    assert!(
        bytes.as_u64().is_some_and(|bytes| (contents..contents + 300).contains(&bytes)),
        "{bytes}, not {contents}"
    );
}

impl Nights {
    pub(crate) fn new() -> Nights {
        let world = World::new();
        for entry in std::fs::read_dir(world.path("store")).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        world.plan("link-sync-layer", &format!("exec '{}' \"$@\"\n", text(&bin("link-sync"))));
        let nights = Nights { world };
        nights.profile("layout = \"layers\"");
        nights
    }

    /// The profile with these lines in `[offsite]`.
    pub(crate) fn profile(&self, lines: &str) {
        self.world.write_profile(&format!("[offsite]\nreserve_bytes = 0\n{lines}\n{S3}"), "container.img");
    }

    pub(crate) fn store(&self, n: usize) -> PathBuf {
        self.world.path("store").join(date(n))
    }

    /// A push that is killed, or a child of it, at the rename of that number; true if it did not come so far.
    pub(crate) fn killed_at_rename(&self, kill: u32, options: &[&str]) -> bool {
        let push = self.world.command("push", options);
        let mut command = self.world.enter("strace");
        let inject = format!("inject=rename,renameat:signal=KILL:when={kill}");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=rename,renameat", "-e", &inject]);
        let words: Vec<_> = push.get_args().collect();
        let at = words.iter().position(|word| *word == "--").unwrap() + 1;
        let out = command.args(&words[at..]).stdin(Stdio::null()).output().unwrap();
        assert!(kill < 60, "{}", String::from_utf8_lossy(&out.stderr));
        out.status.success()
    }

    /// Snapshot `n`, which shares its files with `base` but for what `change` does.
    pub(crate) fn snapshot(&self, n: usize, base: Option<usize>, change: impl FnOnce(&Path)) {
        let top = self.store(n);
        match base {
            Some(base) => drop(ok("cp", &["-al", text(&self.store(base)), text(&top)])),
            None => std::fs::create_dir_all(top.join("data")).unwrap(),
        }
        std::fs::remove_dir_all(top.join(".meta")).ok();
        change(&top.join("data"));
        std::fs::create_dir(top.join(".meta")).unwrap();
        let meta = json!({"schema": 1, "id": format!("{n:032x}"), "date": date(n), "base_id": null, "base_date": null,
            "run_id": null, "consistency": "crash-consistent", "started_at": "", "published_at": "",
            "tool_version": "", "fake_super": false, "sources": []});
        std::fs::write(top.join(".meta/snapshot.json"), meta.to_string()).unwrap();
        std::fs::write(top.join(".meta/lock"), "").unwrap();
    }

    /// A first snapshot of a few files.
    pub(crate) fn first(&self) {
        self.snapshot(0, None, |top| {
            std::fs::create_dir(top.join("folder")).unwrap();
            for n in 0..20 {
                std::fs::write(top.join(format!("folder/{n}")), noise(3000)).unwrap();
            }
            std::fs::write(top.join("large"), noise(300_000)).unwrap();
            std::fs::write(top.join("goes"), noise(200_000)).unwrap();
        });
    }

    pub(crate) fn push(&self, options: &[&str]) -> Ran {
        self.world.run("push", &[&["--big-bytes", "100k"], options].concat())
    }

    pub(crate) fn ask(&self, request: &Value) -> Value {
        use std::io::Write as _;
        let mut command = self.world.enter(bin("offsite-push"));
        command.args(["inside", "layers", "--container"]).arg(self.world.path("disk"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{request}: {}", String::from_utf8_lossy(&out.stdout));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// The lists in the container.
    pub(crate) fn lists(&self) -> Value {
        self.ask(&json!({"lists": {}}))
    }

    /// The layers of a date in the container.
    pub(crate) fn layers(&self, n: usize) -> Vec<String> {
        let lists = self.lists();
        let all = lists["dates"].as_array().unwrap();
        let list = all.iter().find(|list| list["date"] == date(n).as_str()).unwrap();
        list["layers"].as_array().unwrap().iter().map(|l| l.as_str().unwrap().to_owned()).collect()
    }

    /// Date `n` in the container is what it is in the store.
    #[track_caller]
    pub(crate) fn shows(&self, n: usize) {
        let view = self.world.path("view");
        std::fs::create_dir_all(&view).unwrap();
        std::fs::set_permissions(&view, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let shown = self.ask(&json!({"show": {"dates": [date(n)], "at": view}}));
        assert_eq!(shown["dates"], json!([date(n)]), "{shown}");
        let path = view.join("snapshots").join(date(n)).join("data");
        let path = self.world.root().join(path.strip_prefix("/").unwrap());
        let seen: Picture = walk(&path);
        let said: Vec<PathBuf> = walk(&path.with_file_name(".meta")).into_keys().collect();
        assert!(said.iter().any(|path| path.ends_with("snapshot.json")), "{said:?}");
        self.ask(&json!({"hide": {"at": view}}));
        let stored = walk(&self.store(n).join("data"));
        assert_eq!(said, ["", "lock", "snapshot.json"].map(PathBuf::from), "{n}");
        let differs: Vec<_> =
            stored.iter().filter(|(path, what)| seen.get(*path) != Some(what)).map(|s| s.0).collect();
        assert!(
            differs.is_empty() && seen.len() == stored.len(),
            "{n}: {differs:?}, {} of {}",
            seen.len(),
            stored.len()
        );
    }

    /// Whatever happened: nothing is up, no image lies here but one that is on its way, and each date is whole.
    #[track_caller]
    pub(crate) fn each_date_is_whole(&self) {
        for list in self.lists()["dates"].as_array().unwrap() {
            let n: usize = list["date"].as_str().unwrap()[8..10].parse().unwrap();
            self.shows(n - 1);
        }
    }

    pub(crate) fn workshop(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.world.path("state/layers")).into_iter().flatten();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(crate) fn record(&self) -> Value {
        serde_json::from_str(&self.world.read("state/offsite.layers.json")).unwrap()
    }
}

#[test]
fn each_night_sends_what_changed_and_every_date_stays_what_it_was() {
    let nights = Nights::new();
    nights.first();
    let ran = nights.push(&[]).expect(0);
    let push = &ran.json["data"]["push"];
    assert_eq!((&push["date"], &push["base_date"]), (&date(0).into(), &Value::Null));
    assert_eq!((&push["layers"]["images"], &push["layers"]["big_bytes"]), (&1.into(), &500_000.into()));
    near(&push["copied_bytes"], 560_000);
    assert!(
        push["unfinished"].is_null()
            && ran.json["warnings"].as_array().unwrap().iter().all(|w| w["kind"] == "header-differs"),
        "{}",
        ran.json
    );
    assert!(nights.world.is_down());
    nights.shows(0);
    let known = nights.world.record();
    assert_eq!((&known["date"], &known["dates"]), (&date(0).into(), &json!([date(0)])));
    assert_eq!(known["generation"], nights.world.stamp()["generation"]);
    assert_eq!(nights.workshop(), Vec::<String>::new());
    // S2 has the hash of what it sent.
    let name = format!("{}.sqfs", date(0));
    let sum = ok("sha256sum", &[text(&nights.world.path("disk/layers/images").join(&name))]);
    assert_eq!(nights.record()["images"][&name]["sha256"], sum[..64]);

    // Nothing new: it is not opened.
    nights.world.calls();
    assert_eq!(nights.push(&[]).expect(0).json["changed"], false);
    assert_eq!(nights.world.calls(), ["luks-mount status", "sshfs-mount status"]);

    // Moved, changed, gone, new: only what is new is sent.
    nights.snapshot(1, Some(0), |top| {
        std::fs::rename(top.join("folder"), top.join("moved")).unwrap();
        std::fs::rename(top.join("large"), top.join("moved/large")).unwrap();
        std::fs::remove_file(top.join("goes")).unwrap();
        std::fs::remove_file(top.join("moved/3")).unwrap();
        std::fs::write(top.join("moved/3"), noise(3000)).unwrap();
    });
    let ran = nights.push(&[]).expect(0);
    let push = &ran.json["data"]["push"];
    assert_eq!(push["base_date"], date(0));
    near(&push["copied_bytes"], 3000);
    assert_eq!(
        steps(&ran),
        ["status-container", "status-s3", "mount", "attach", "layer", "detach", "unmount"]
    );
    nights.each_date_is_whole();
    // What is gone is not needed by the new date, what was moved is.
    let (old, new) = (nights.layers(0), nights.layers(1));
    let big = |layers: &[String]| layers.iter().filter(|l| l.starts_with("big/")).count();
    assert_eq!((big(&old), big(&new)), (2, 1));
    assert_eq!(new[..2], [format!("{}.sqfs", date(1)), format!("{}.sqfs", date(0))]);
    assert!(nights.world.read("store/.pins/offsite-home").contains(&date(1)));

    // The store forgets the first; the next one lies upon the second.
    std::fs::remove_dir_all(nights.store(0)).unwrap();
    nights.snapshot(2, Some(1), |top| std::fs::write(top.join("more"), noise(500)).unwrap());
    assert_eq!(nights.push(&[]).expect(0).json["data"]["push"]["base_date"], date(1));
    nights.shows(2);
    assert_eq!(nights.layers(2).len(), 4);
    // S2's own record is lost: nothing is taken for gone, and nothing sent again.
    std::fs::remove_file(nights.world.path("state/offsite.layers.json")).unwrap();
    nights.snapshot(3, Some(2), |top| std::fs::write(top.join("still-more"), noise(700)).unwrap());
    let ran = nights.push(&[]).expect(0);
    near(&ran.json["data"]["push"]["copied_bytes"], 700);
    assert_eq!(big(&nights.layers(3)), 1);
    nights.shows(3);
}

#[test]
fn a_container_of_trees_goes_on_with_images_above_its_newest_tree_and_takes_no_tree_more() {
    let nights = Nights::new();
    nights.profile("layout = \"hardlink\"");
    nights.first();
    // A tree has lists, which are not those of what lies upon it.
    std::fs::write(nights.store(0).join(".meta/sha256sums"), "").unwrap();
    nights.push(&[]).expect(0);
    nights.profile("layout = \"layers\"");
    nights.snapshot(1, Some(0), |top| {
        std::fs::rename(top.join("folder"), top.join("moved")).unwrap();
        std::fs::write(top.join("new"), noise(1000)).unwrap();
    });
    let ran = nights.push(&[]).expect(0);
    near(&ran.json["data"]["push"]["copied_bytes"], 1000);
    assert_eq!(nights.layers(1), [format!("{}.sqfs", date(1)), format!("snapshots/{}/", date(0))]);
    assert_eq!(nights.world.record()["dates"], json!([date(0), date(1)]));
    nights.shows(1);
    nights.snapshot(2, Some(1), |top| std::fs::remove_file(top.join("large")).unwrap());
    nights.push(&[]).expect(0);
    assert_eq!(nights.layers(2).len(), 3);
    nights.shows(2);
    nights.profile("layout = \"hardlink\"");
    nights.snapshot(3, Some(2), |_| {});
    nights.push(&["--until", "07:00"]).expect(2);
    let ran = nights.push(&[]).expect(78);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("layout = \"layers\""), "{}", ran.json);
    assert!(nights.world.is_down());
}

#[test]
fn a_first_push_is_made_of_images_and_goes_on_the_next_night_where_the_time_was_over() {
    let nights = Nights::new();
    nights.snapshot(0, None, |top| {
        for n in 0..60 {
            std::fs::write(top.join(format!("{n:02}")), noise(20_000)).unwrap();
        }
        std::fs::write(top.join("large"), noise(150_000)).unwrap();
    });
    // Each image is made at once, and the time is over after the second of them.
    let now = ok("date", &["+%s"]).trim().parse::<u64>().unwrap();
    let end = ((now + 25) / 60 + 1) * 60;
    let until = ok("date", &["-d", &format!("@{end}"), "+%H:%M"]);
    let slow = format!(
        "\"{}\" \"$@\" >\"$w/out\" || exit\necho x >>\"$w/made\"\n[ $(wc -l <\"$w/made\") != 2 ] || \
         while [ $(date +%s) -lt {end} ]; do sleep .2; done\ncat \"$w/out\"; exit\n",
        text(&bin("link-sync")),
    );
    nights.world.plan("link-sync-layer", &slow);
    let few = ["--image-bytes", "300k"];
    let ran = nights.push(&[&few[..], &["--until", until.trim()]].concat()).expect(3);
    let push = &ran.json["data"]["push"];
    assert_eq!(
        (&push["unfinished"]["date"], &push["unfinished"]["images"]),
        (&date(0).into(), &2.into()),
        "{push}"
    );
    assert_eq!(push["layers"]["images"], 1, "{push}");
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "unfinished"));
    assert!(nights.world.is_down());
    assert_eq!(nights.lists()["dates"], json!([]));
    // What was made and not sent is kept, and the store is to keep the date.
    assert_eq!(nights.workshop().len(), 2);
    assert!(nights.world.read("store/.pins/offsite-home").contains(&date(0)));
    assert_eq!(nights.world.record()["generation"], nights.world.stamp()["generation"]);

    let told = nights.world.run("status", &[]).expect(0).json["data"]["unfinished"].clone();
    assert_eq!((&told["date"], &told["images"]), (&date(0).into(), &2.into()));

    // A newer snapshot has come: what was begun goes first, then the newer one upon it.
    nights.snapshot(1, Some(0), |top| std::fs::write(top.join("new"), noise(1000)).unwrap());
    let ran = nights.push(&few).expect(0);
    let push = &ran.json["data"]["push"];
    assert_eq!((&push["date"], &push["base_date"]), (&date(1).into(), &date(0).into()));
    let (first, second) = (nights.layers(0), nights.layers(1));
    assert!(first.len() >= 5 && second.len() == first.len() + 1, "{first:?} {second:?}");
    assert_eq!(push["layers"]["images"], second.len() - 2, "{push}");
    nights.each_date_is_whole();
    assert_eq!(nights.workshop(), Vec::<String>::new());
    assert!(nights.record()["unfinished"].is_null());

    // What was begun is gone from the store: it is given up, and the rest is sent.
    nights.snapshot(2, Some(1), |top| {
        for n in 0..40 {
            std::fs::write(top.join(format!("more-{n:02}")), noise(20_000)).unwrap();
        }
    });
    nights.world.plan(
        "link-sync-layer",
        &format!("[ ! -e \"$w/one\" ] || exit 1; >\"$w/one\"; exec '{}' \"$@\"\n", text(&bin("link-sync"))),
    );
    nights.push(&few).expect(1);
    assert_eq!(nights.lists()["unfinished"].as_array().unwrap().len(), 1);
    nights.world.plan("link-sync-layer", &format!("exec '{}' \"$@\"\n", text(&bin("link-sync"))));
    std::fs::rename(nights.store(2), nights.store(3)).unwrap();
    nights.snapshot(3 + 1, Some(1), |top| std::fs::write(top.join("else"), noise(9)).unwrap());
    std::fs::remove_dir_all(nights.store(3)).unwrap();
    let ran = nights.push(&few).expect(0);
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "unfinished-given-up"));
    assert_eq!(nights.lists()["unfinished"], json!([]));
    nights.shows(4);
}

#[test]
fn what_was_begun_by_another_plan_or_is_not_known_any_more_is_made_anew() {
    let nights = Nights::new();
    nights.snapshot(0, None, |top| {
        for n in 0..40 {
            std::fs::write(top.join(format!("{n:02}")), noise(20_000)).unwrap();
        }
    });
    let few = ["--image-bytes", "300k"];
    let real = format!("exec '{}' \"$@\"\n", text(&bin("link-sync")));
    let stop_after_one = format!("[ ! -e \"$w/one\" ] || exit 1; >\"$w/one\"; {real}");
    nights.world.plan("link-sync-layer", &stop_after_one);
    nights.push(&few).expect(1);
    let mut record = nights.record();
    record["unfinished"]["plan_sha256"] = "0".repeat(64).into();
    nights.world.write("state/offsite.layers.json", &record.to_string());
    nights.world.plan("link-sync-layer", &real);
    let ran = nights.push(&few).expect(0);
    assert!(ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == "unfinished-given-up"));
    nights.shows(0);

    // Begun, and then S2 lost its record: nothing of it stays in the way, nor for ever.
    nights.snapshot(1, Some(0), |top| {
        for n in 0..40 {
            std::fs::write(top.join(format!("more-{n:02}")), noise(20_000)).unwrap();
        }
    });
    std::fs::remove_file(nights.world.path("one")).unwrap();
    nights.world.plan("link-sync-layer", &stop_after_one);
    nights.push(&few).expect(1);
    std::fs::remove_file(nights.world.path("state/offsite.layers.json")).unwrap();
    nights.world.plan("link-sync-layer", &real);
    nights.push(&["--image-bytes", "200k"]).expect(0);
    nights.each_date_is_whole();
    assert_eq!(nights.lists()["unfinished"], json!([]));
}

#[test]
fn killed_at_any_step_the_next_push_goes_on_and_no_date_is_harmed() {
    let nights = Nights::new();
    nights.first();
    nights.push(&[]).expect(0);
    nights.snapshot(1, Some(0), |top| {
        std::fs::rename(top.join("folder"), top.join("moved")).unwrap();
        std::fs::remove_file(top.join("large")).unwrap();
        std::fs::write(top.join("large"), noise(300_000)).unwrap();
        for n in 0..10 {
            std::fs::write(top.join(format!("new-{n}")), noise(20_000)).unwrap();
        }
    });
    let options = ["--big-bytes", "100k", "--image-bytes", "120k"];
    // The push itself is killed, or a child of it: after the record, the list, an image, a content, the date.
    let mut kills = 0;
    for kill in 1.. {
        if nights.killed_at_rename(kill, &options) {
            break;
        }
        kills += 1;
        nights.each_date_is_whole();
        // What the next one does first.
        if kill % 3 == 0 {
            nights.world.run("unview", &["--if-killed"]);
            assert!(nights.world.is_down());
        }
    }
    assert!(kills >= 5, "killed {kills} times");
    nights.push(&options[2..]).expect(0);
    assert!(nights.world.is_down());
    nights.each_date_is_whole();
    assert_eq!(nights.lists()["dates"].as_array().unwrap().len(), 2);
    assert_eq!(nights.workshop(), Vec::<String>::new());
    nights.ask(&json!({"sweep": {}}));
    nights.snapshot(2, Some(1), |top| std::fs::write(top.join("second-night"), noise(10)).unwrap());
    nights.push(&[]).expect(0);
    nights.each_date_is_whole();
}

#[test]
fn a_full_container_and_a_full_disk_here_are_told_and_the_next_push_goes_on() {
    let nights = Nights::new();
    let on = |words: &[&str]| {
        let out = nights.world.enter(words[0]).args(&words[1..]).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    on(&["mount", "-t", "tmpfs", "-o", "size=500k,mode=700", "tmpfs", text(&nights.world.path("disk"))]);
    nights.first();
    let ran = nights.push(&[]).expect(1);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("luks-mount grow home"), "{}", ran.json);
    assert_eq!(ran.json["data"]["failed_step"], "put-big");
    assert_eq!((&nights.world.read("s3")[..], &nights.world.read("luks")[..]), ("unmounted", "detached"));
    assert_eq!(nights.lists()["dates"], json!([]));
    on(&["mount", "-o", "remount,size=3m", text(&nights.world.path("disk"))]);
    nights.push(&[]).expect(0);
    nights.shows(0);

    // No room for an image here.
    let here = nights.world.path("images");
    std::fs::create_dir(&here).unwrap();
    on(&["mount", "-t", "tmpfs", "-o", "size=100m,mode=700", "tmpfs", text(&here)]);
    nights.profile(&format!("layout = \"layers\"\nimage_dir = \"{}\"", text(&here)));
    nights.snapshot(1, Some(0), |top| std::fs::write(top.join("new"), noise(10)).unwrap());
    let ran = nights.push(&[]).expect(1);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("no room to make an image"),
        "{}",
        ran.json
    );
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("image_dir"), "{}", ran.json);
    on(&["mount", "-o", "remount,size=300m", text(&here)]);
    nights.push(&[]).expect(0);
    nights.each_date_is_whole();
}

#[test]
fn upon_too_many_layers_no_more_are_laid_but_upon_an_older_date_with_few() {
    let nights = Nights::new();
    nights.first();
    nights.push(&[]).expect(0);
    nights.snapshot(1, Some(0), |top| std::fs::write(top.join("one"), noise(1000)).unwrap());
    nights.push(&[]).expect(0);
    // As if it had come to that in a hundred nights.
    let (images, list) =
        (nights.world.path("disk/layers/images"), nights.world.path("disk/layers/dates").join(date(1)));
    let newest = format!("{}.sqfs", date(1));
    let more: String = (0..99)
        .map(|n| {
            let name = format!("{}.{n}.sqfs", date(1));
            std::fs::copy(images.join(&newest), images.join(&name)).unwrap();
            name + "\n"
        })
        .collect();
    let text =
        std::fs::read_to_string(&list).unwrap().replace(&newest, &format!("{newest}\n{}", more.trim_end()));
    std::fs::write(&list, text).unwrap();
    let noted = nights.world.path("state/offsite.layers.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&noted).unwrap()).unwrap();
    let layers = record["dates"][date(1)]["layers"].as_array_mut().unwrap();
    more.lines().enumerate().for_each(|(n, name)| layers.insert(1 + n, name.into()));
    std::fs::write(&noted, record.to_string()).unwrap();
    nights.snapshot(2, Some(1), |top| std::fs::write(top.join("two"), noise(1000)).unwrap());
    let ran = nights.push(&[]).expect(0);
    let push = &ran.json["data"]["push"];
    assert_eq!(push["base_date"], date(0));
    near(&push["copied_bytes"], 2000);
    nights.shows(2);
    // With nothing older the newest must do.
    std::fs::remove_dir_all(nights.store(0)).unwrap();
    std::fs::remove_dir_all(nights.store(2)).unwrap();
    nights.snapshot(3, Some(1), |top| std::fs::write(top.join("three"), noise(1000)).unwrap());
    assert_eq!(nights.push(&[]).expect(0).json["data"]["push"]["base_date"], date(1));
}

/// The image is on the disk before it has its name, that is before a list names it, and the list before the container says that it
/// is in it. And of the lists that this machine has noted none is opened.
#[test]
fn each_name_waits_until_what_it_stands_for_is_durable_and_known_lists_are_not_read() {
    let nights = Nights::new();
    nights.first();
    nights.push(&[]).expect(0);
    nights.snapshot(1, Some(0), |top| std::fs::write(top.join("one"), noise(1000)).unwrap());
    let trace = nights.world.path("trace");
    let push = nights.world.command("push", &[]);
    let mut command = nights.world.enter("strace");
    command.args(["-f", "-qq", "-s", "400", "-e", "trace=syncfs,rename,openat", "-o", text(&trace)]);
    let words: Vec<_> = push.get_args().collect();
    let at = words.iter().position(|word| *word == "--").unwrap() + 1;
    let out = command.args(&words[at..]).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told = std::fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = told.lines().collect();
    let begun = format!("layers/images/.{}.sqfs.new\"", date(1));
    let mut before = calls.iter().position(|call| call.contains("openat(") && call.contains(&begun)).unwrap();
    for name in [
        format!("layers/images/{}.sqfs", date(1)),
        format!("layers/dates/{}", date(1)),
        "generation.json".into(),
    ] {
        let renamed =
            |call: &&str| call.contains("rename(") && call.contains(&format!("/container/{name}\")"));
        let at = calls.iter().position(renamed).unwrap_or_else(|| panic!("{name}: {told}"));
        assert!(calls[before..at].iter().any(|call| call.contains("syncfs(")), "{name}: {told}");
        before = at;
    }
    let known = format!("layers/dates/{}\"", date(0));
    assert!(!calls.iter().any(|call| call.contains("openat(") && call.contains(&known)), "{told}");
    nights.each_date_is_whole();
}

#[test]
fn what_makes_images_is_looked_for_before_anything_is_opened() {
    let nights = Nights::new();
    nights.first();
    let program = ok("which", &["mksquashfs"]);
    let hidden = nights.world.enter("mount").args(["--bind", "/dev/null", program.trim()]).status().unwrap();
    assert!(hidden.success());
    let ran = nights.push(&[]).expect(69);
    assert_eq!(ran.json["error"]["hint"], "apt-get install squashfs-tools");
    assert_eq!(nights.world.calls(), ["luks-mount status", "sshfs-mount status"]);
}

#[test]
fn a_base_that_is_not_what_was_sent_is_told_and_not_built_upon() {
    let nights = Nights::new();
    nights.first();
    nights.push(&[]).expect(0);
    nights.snapshot(1, Some(0), |top| std::fs::write(top.join("one"), noise(1000)).unwrap());
    nights.push(&[]).expect(0);
    let image = nights.world.path("disk/layers/images").join(format!("{}.sqfs", date(1)));
    let whole = std::fs::read(&image).unwrap();
    std::fs::write(&image, &whole[..whole.len() - 1]).unwrap();
    nights.snapshot(2, Some(1), |top| std::fs::write(top.join("two"), noise(1000)).unwrap());
    let ran = nights.push(&[]).expect(3);
    let push = &ran.json["data"]["push"];
    assert_eq!(push["base_date"], date(0));
    near(&push["copied_bytes"], 2000);
    assert!(
        nights.world.record()["damaged"][date(1)].as_str().unwrap().contains("not as large"),
        "{}",
        nights.world.record()
    );
    nights.shows(2);
    // A list that cannot be read is told, too.
    let list = nights.world.path("disk/layers/dates").join(date(1));
    std::fs::write(&list, "nc-backup layers 9\n").unwrap();
    nights.snapshot(3, Some(2), |top| std::fs::write(top.join("three"), noise(1000)).unwrap());
    let ran = nights.push(&[]).expect(3);
    assert_eq!(ran.json["data"]["push"]["base_date"], date(2));
    assert!(
        nights.world.record()["damaged"][date(1)].as_str().unwrap().contains("its list"),
        "{}",
        nights.world.record()
    );
}

/// A container with an image whose large content did not fit; then there is room.
fn cut_before_a_large_content(nights: &Nights, options: &[&str]) {
    let on = |words: &[&str]| {
        let out = nights.world.enter(words[0]).args(&words[1..]).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let disk = nights.world.path("disk");
    on(&["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", text(&disk)]);
    nights.first();
    let ran = nights.push(options).expect(1);
    assert_eq!(ran.json["data"]["failed_step"], "put-big");
    on(&["mount", "-o", "remount,size=5m", text(&disk)]);
}

/// Of a date on its way the image is there, and its large contents are not; and what was noted beside it is lost.
#[test]
fn large_contents_are_sent_though_the_image_that_came_with_them_is_not_here_any_more() {
    for options in [&[][..], &["--image-bytes", "20k"]] {
        let nights = Nights::new();
        cut_before_a_large_content(&nights, options);
        let elsewhere = nights.world.path("images");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::set_permissions(&elsewhere, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        nights.profile(&format!("layout = \"layers\"\nimage_dir = \"{}\"", text(&elsewhere)));
        nights.push(options).expect(0);
        nights.shows(0);
    }
}

/// An image in no list, and S2 has lost its record, or the list of what is on its way is damaged: neither ends all pushes.
#[test]
fn what_a_cut_push_has_left_is_not_in_the_way_of_the_next_ones() {
    let nights = Nights::new();
    cut_before_a_large_content(&nights, &[]);
    std::fs::remove_file(nights.world.path("state/offsite.layers.json")).unwrap();
    // Another plan, and so another image of that name.
    nights.world.run("push", &["--big-bytes", "250k"]).expect(0);
    nights.shows(0);

    let nights = Nights::new();
    let parts = ["--image-bytes", "20k"];
    cut_before_a_large_content(&nights, &parts);
    let unfinished = format!("disk/layers/dates/{}.unfinished", date(0));
    let mut damage = nights.world.enter("sh");
    damage.args(["-c", "echo noise >\"$1\"", "sh"]).arg(nights.world.path(&unfinished));
    assert!(damage.status().unwrap().success());
    nights.push(&parts).expect(0);
    nights.shows(0);
}

/// The image that was on its way is lost here, with the folder it lay in: it is made again, and not all that was sent before it.
#[test]
fn an_image_that_is_lost_before_it_was_sent_costs_no_more_than_itself() {
    let nights = Nights::new();
    let on = |words: &[&str]| {
        let out = nights.world.enter(words[0]).args(&words[1..]).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let disk = nights.world.path("disk");
    on(&["mount", "-t", "tmpfs", "-o", "size=300k,mode=700", "tmpfs", text(&disk)]);
    nights.snapshot(0, None, |top| {
        for n in 0..10 {
            std::fs::write(top.join(format!("{n}")), noise(60_000)).unwrap();
        }
    });
    let parts = ["--image-bytes", "70k"];
    nights.push(&parts).expect(1);
    let sent = nights.record()["unfinished"]["images"].as_array().unwrap().len() - 1;
    assert!(sent >= 2, "{sent}");
    std::fs::remove_dir_all(nights.world.path("state/layers")).unwrap();
    on(&["mount", "-o", "remount,size=5m", text(&disk)]);
    let ran = nights.push(&parts).expect(0);
    assert!(!ran.json["warnings"].to_string().contains("unfinished-given-up"), "{}", ran.json);
    let all = nights.layers(0).len();
    assert_eq!(ran.json["data"]["push"]["layers"]["images"], all - sent);
    nights.shows(0);
}
