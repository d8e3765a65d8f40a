//! Dates of layers, seen, pruned and verified by the whole tool: the real link-sync, images and overlays; stand-ins for what mounts
//! S3 and opens the container.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Ran, bin};

use crate::layers::{ok, text, walk};
use crate::world::{World, steps};

/// The store's dates, oldest first, and the world around it.
struct Kept {
    world: World,
    dates: Vec<String>,
}

/// A date so many days ago.
fn ago(days: i64) -> String {
    let then = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days + 1);
    then.strftime("%Y-%m-%dT%H-%M-%SZ").to_string()
}

impl Kept {
    /// An empty store, and a profile of the layout of layers with these further lines.
    fn new(lines: &str) -> Kept {
        let world = World::new();
        for entry in std::fs::read_dir(world.path("store")).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        for action in ["layer", "prune", "verify", "restore"] {
            world.plan(
                &format!("link-sync-{action}"),
                &format!("exec '{}' \"$@\"\n", text(&bin("link-sync"))),
            );
        }
        let kept = Kept { world, dates: Vec::new() };
        kept.profile("layers", lines);
        kept
    }

    fn profile(&self, layout: &str, lines: &str) {
        let s3 = "[offsite.sshfs]\nhost = \"nc@s3\"\ndirectory = \"/srv/backup\"\n";
        let offsite = format!("[offsite]\nreserve_bytes = 0\nlayout = \"{layout}\"\n{lines}\n{s3}");
        self.world.write_profile(&offsite, "container.img");
    }

    /// A snapshot of `date`, which shares its files with the one before but for what `change` does.
    fn snapshot(&mut self, date: &str, change: impl FnOnce(&Path)) {
        let top = self.world.path("store").join(date);
        match self.dates.last() {
            Some(base) => drop(ok("cp", &["-al", text(&self.world.path("store").join(base)), text(&top)])),
            None => std::fs::create_dir_all(top.join("data")).unwrap(),
        }
        std::fs::remove_dir_all(top.join(".meta")).ok();
        change(&top.join("data"));
        std::fs::create_dir(top.join(".meta")).unwrap();
        let meta = json!({"schema": 1, "id": format!("{:032x}", self.dates.len() + 1), "date": date, "base_id": null,
            "base_date": null, "run_id": null, "consistency": "sealed", "started_at": "", "published_at": "",
            "tool_version": "", "fake_super": false, "sources": []});
        std::fs::write(top.join(".meta/snapshot.json"), meta.to_string()).unwrap();
        std::fs::write(top.join(".meta/lock"), "").unwrap();
        self.dates.push(date.to_owned());
    }

    /// A few dates, a day apart, the newest of today: each has a file more, and one that changes.
    fn days(&mut self, days: i64) {
        for n in (0..days).rev() {
            self.day(n);
            self.world.push().expect(0);
        }
    }

    fn day(&mut self, n: i64) {
        self.snapshot(&ago(n), |top| {
            std::fs::create_dir_all(top.join("folder")).unwrap();
            std::fs::write(top.join(format!("folder/of {n}")), format!("{n} ").repeat(2000)).unwrap();
            std::fs::remove_file(top.join("changes")).ok();
            std::fs::write(top.join("changes"), n.to_string()).unwrap();
        });
    }

    /// A date newer than that of `day(0)`.
    fn one_more(&mut self) {
        let then = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(10);
        let date = then.strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
        self.snapshot(&date, |top| std::fs::write(top.join("one more"), "small").unwrap());
    }

    /// A snapshot by link-sync itself.
    fn with_checksums(&self, change: &str) {
        let source = self.world.path("source");
        std::fs::write(source.join("changes"), change).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        let mut snapshot = Command::new(bin("link-sync"));
        snapshot.args(["snapshot", "--crash-consistent", "--store"]).arg(self.world.path("store"));
        snapshot.arg("--state-dir").arg(self.world.path("index"));
        testkit::run(snapshot.arg(format!("--source=data={}", source.display()))).expect(0);
    }

    fn store_of_view(&self) -> PathBuf {
        self.world.path("run/view/snapshots")
    }

    /// What is seen of a date in the open view is what the store has.
    #[track_caller]
    fn sees(&self, date: &str) {
        let seen =
            self.world.root().join(self.store_of_view().strip_prefix("/").unwrap()).join(date).join("data");
        assert_eq!(walk(&seen), walk(&self.world.path("store").join(date).join("data")), "{date}");
    }

    /// Nothing of a view is left, and nobody holds the container.
    #[track_caller]
    fn nothing_is_up(&self) {
        assert!(self.world.is_down());
        let loops = ok("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
        assert!(!loops.contains(text(&self.world.path("disk"))), "{loops}");
    }

    fn images(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.world.path("disk/layers/images")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".sqfs"));
        names.sort();
        names
    }

    fn lists(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.world.path("disk/layers/dates")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Each date in the container shows what it was.
    #[track_caller]
    fn all_are_whole(&self) {
        let view = self.world.run("view", &[]).expect(0);
        for date in view.json["data"]["dates"].as_array().unwrap() {
            self.sees(date.as_str().unwrap());
        }
        self.world.run("unview", &[]).expect(0);
        self.nothing_is_up();
    }
}

fn warned(ran: &Ran, kind: &str) -> Option<String> {
    let warnings = ran.json["warnings"].as_array().unwrap();
    warnings.iter().find(|w| w["kind"] == kind).map(|w| w["message"].as_str().unwrap().to_owned())
}

#[test]
fn a_view_shows_trees_and_lists_one_or_all_and_is_gone_when_it_is_closed() {
    let mut kept = Kept::new("");
    // The oldest as a tree, as the container's layout was before.
    kept.profile("hardlink", "");
    kept.day(2);
    kept.world.push().expect(0);
    kept.profile("layers", "");
    kept.days(2);
    let dates = kept.dates.clone();
    let one = kept.world.run("view", &["--date", &dates[1]]).expect(0);
    let data = &one.json["data"];
    assert_eq!(data["path"], text(&kept.store_of_view().join(&dates[1])));
    assert_eq!((&data["store"], &data["dates"]), (&json!(kept.store_of_view()), &json!(dates)));
    assert_eq!((&data["view"]["dates"], &data["view"]["images"]), (&json!([dates[1]]), &1.into()));
    assert!(data["view"]["duration_ms"].is_u64() && data["view"]["failed"] == json!({}), "{data}");
    kept.sees(&dates[1]);
    // All: what is there already is not mounted again.
    let all = kept.world.run("view", &[]).expect(0);
    let data = &all.json["data"];
    assert_eq!((&all.json["changed"], &data["date"]), (&false.into(), &json!(dates[2])));
    assert_eq!((&data["view"]["dates"], &data["view"]["images"]), (&json!(dates), &1.into()));
    dates.iter().for_each(|date| kept.sees(date));

    // Who works in it is told, and then nothing is half closed.
    let inside = kept.world.root().join(kept.store_of_view().strip_prefix("/").unwrap()).join(&dates[2]);
    let file = std::fs::File::open(inside.join("data/changes")).unwrap();
    let ran = kept.world.run("unview", &[]).expect(4);
    let left = ran.json["left_behind"][0].clone();
    assert!(left["what"].as_str().unwrap().contains(&dates[2]), "{left}");
    assert!(left["clear"].as_str().unwrap().contains("unview"), "{left}");
    kept.sees(&dates[2]);
    // What was taken down before that is seen again when somebody asks for it.
    kept.world.run("view", &[]).expect(0);
    dates.iter().for_each(|date| kept.sees(date));
    drop(file);
    assert_eq!(kept.world.run("unview", &[]).expect(0).json["changed"], true);
    kept.nothing_is_up();
    assert_eq!(kept.world.run("unview", &[]).expect(0).json["changed"], false);
    kept.world.run("view", &["--date", &ago(9)]).expect(78);
    kept.nothing_is_up();
}

#[test]
fn a_view_that_was_killed_with_all_that_it_started_is_cleared_by_unview_and_by_push() {
    let mut kept = Kept::new("");
    for n in (12..15).rev() {
        kept.day(n);
        kept.world.push().expect(0);
    }
    for n in 0..12 {
        let mut view = kept.world.command("view", &[]);
        let mut child =
            view.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(60 * n));
        child.kill().unwrap();
        child.wait().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        match n % 2 {
            0 => drop(kept.world.run("unview", &[]).expect(0)),
            _ => {
                kept.day(11 - i64::try_from(n).unwrap());
                let pushed = kept.world.push();
                // It was quick enough to open it: then that is somebody's.
                if pushed.json["exit_code"] == 75 {
                    kept.world.run("unview", &[]).expect(0);
                } else {
                    pushed.expect(0);
                }
            }
        }
        kept.nothing_is_up();
    }
    // Opened well, and whoever opened it is gone long since.
    kept.world.run("view", &[]).expect(0);
    kept.world.run("unview", &["--if-killed"]).expect(0);
    assert!(!kept.world.is_down());
    kept.world.run("unview", &[]).expect(0);
    kept.nothing_is_up();
}

#[test]
fn one_date_that_cannot_be_shown_keeps_no_other_away() {
    let mut kept = Kept::new("");
    kept.days(3);
    let newest = format!("{}.sqfs", kept.dates[2]);
    std::fs::write(kept.world.path("disk/layers/images").join(&newest), "no image").unwrap();
    let ran = kept.world.run("view", &[]).expect(3);
    assert_eq!(ran.json["data"]["date"], *kept.dates[1]);
    assert!(warned(&ran, "not-shown").unwrap().contains(&kept.dates[2]));
    kept.sees(&kept.dates[0]);
    kept.world.run("unview", &[]).expect(0);
    let ran = kept.world.run("view", &["--date", &kept.dates[2]]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("cannot mount"), "{}", ran.json);
    kept.nothing_is_up();
}

#[test]
fn pruned_are_dates_then_images_that_no_list_needs_and_never_a_tree_below_one() {
    let mut kept = Kept::new("");
    kept.profile("hardlink", "");
    kept.day(12);
    kept.world.push().expect(0);
    kept.profile("layers", "");
    kept.days(12);
    let rules =
        "[offsite.retention]\nkeep_last = 2\nkeep_daily = 4\nmin_age = \"1d\"\nmax_removals_per_day = 5";
    kept.profile("layers", rules);
    let before = kept.images();
    let look = kept.world.run("prune", &["--dry-run"]).expect(0);
    assert_eq!(look.json["data"]["prune"]["removed"], json!(kept.dates[1..6]));
    assert_eq!(kept.images(), before);
    let ran = kept.world.run("prune", &[]).expect(0);
    let told = &ran.json["data"]["prune"];
    // The tree is what all lists lie upon.
    assert_eq!((&told["removed"], &told["postponed"]), (&json!(kept.dates[1..6]), &json!(kept.dates[6..9])));
    assert!(told["snapshots"][0]["reasons"][0].as_str().unwrap().contains("needed"), "{told}");
    // What those that stay lie upon stays with them.
    assert_eq!((kept.images(), &told["layers_removed"]), (before.clone(), &json!([])));
    assert_eq!(kept.lists(), kept.dates[6..]);
    assert_eq!(kept.world.record()["dates"], json!([&kept.dates[..1], &kept.dates[6..]].concat()));
    // No more on one day.
    let ran = kept.world.run("prune", &[]).expect(0);
    assert_eq!((&ran.json["changed"], &ran.json["data"]["prune"]["removed"]), (&false.into(), &json!([])));
    kept.all_are_whole();
    kept.nothing_is_up();
}

#[test]
fn what_only_dropped_dates_needed_goes_with_them_and_a_cut_at_any_step_is_made_good() {
    let mut kept = Kept::new("");
    for n in [3, 2] {
        kept.day(n);
        kept.world.push().expect(0);
    }
    // The newest two lie upon nothing that is older.
    for image in kept.images() {
        std::fs::write(kept.world.path("disk/layers/images").join(image), "x").unwrap();
    }
    for n in [1, 0] {
        kept.day(n);
        kept.world.push().expect(3);
    }
    kept.profile("layers", "[offsite.retention]\nkeep_last = 2\nmin_age = \"0d\"\nmax_gap = \"30d\"");
    let (old, new) = (kept.dates[..2].to_vec(), kept.dates[2..].to_vec());
    for kill in ["link-sync-prune", "luks-mount-detach"] {
        kept.world.plan(kill, "kill -9 $PPID; exit 9");
        let mut command = kept.world.command("prune", &[]);
        assert!(!command.output().unwrap().status.success());
        kept.world.no_plan(kill);
        if kill.starts_with("link") {
            kept.world.plan(kill, &format!("exec '{}' \"$@\"\n", text(&bin("link-sync"))));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    let ran = kept.world.run("prune", &[]).expect(0);
    assert_eq!(kept.lists(), new, "{}", ran.json);
    let expected: Vec<String> = new.iter().map(|date| format!("{date}.sqfs")).collect();
    assert_eq!(kept.images(), expected);
    let record: Value = serde_json::from_str(&kept.world.read("state/offsite.layers.json")).unwrap();
    assert_eq!(record["images"].as_object().unwrap().keys().cloned().collect::<Vec<_>>(), expected);
    assert!(old.iter().all(|date| record["dates"][date].is_null()));
    kept.all_are_whole();
}

#[test]
fn while_a_list_cannot_be_read_nothing_is_removed() {
    let mut kept = Kept::new("[offsite.retention]\nkeep_last = 1\nmin_age = \"0d\"");
    kept.days(3);
    let list = kept.world.path("disk/layers/dates").join(&kept.dates[2]);
    let text = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, &text[..30]).unwrap();
    let (lists, images) = (kept.lists(), kept.images());
    let ran = kept.world.run("prune", &[]).expect(1);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("cannot be read"),
        "{}",
        ran.json["error"]
    );
    assert_eq!((kept.lists(), kept.images()), (lists, images));
    kept.nothing_is_up();
}

/// What a push sends, by the image; the days' changes are those of a month.
#[test]
fn a_month_of_dailies_thinned_to_weeks_costs_little_more_than_it_was() {
    let mut kept = Kept::new("");
    let noise = |bytes: usize| {
        let mut noise = vec![0; bytes];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
        noise
    };
    let mut sent = 0;
    for n in (0..30).rev() {
        kept.snapshot(&ago(n), |top| {
            for file in 0..if n == 29 { 60 } else { 6 } {
                let path = top.join(format!("{}", (n * 7 + file) % 60));
                std::fs::remove_file(&path).ok();
                std::fs::write(path, noise(40_000)).unwrap();
            }
        });
        let ran = kept.world.push().expect(0);
        sent += ran.json["data"]["push"]["layers"]["image_bytes"].as_u64().unwrap();
    }
    kept.profile(
        "layers",
        "[offsite.retention]\nkeep_daily = 1\nkeep_weekly = 8\nmin_age = \"1d\"\nmax_removals_per_day = 100",
    );
    let ran = kept.world.run("prune", &[]).expect(0);
    assert!(kept.lists().len() <= 7, "{}", ran.json["data"]["prune"]);
    let there: u64 = kept
        .images()
        .iter()
        .map(|i| kept.world.path("disk/layers/images").join(i).metadata().unwrap().len())
        .sum();
    let merged = ran.json["data"]["prune"]["merged"].as_array().unwrap();
    let again: u64 = merged.iter().map(|m| m["bytes"].as_u64().unwrap()).sum();
    eprintln!("sent {sent}, for thinning {again}, in the container then {there}");
    assert!((sent + again) * 10 <= sent * 13 && there <= sent, "{sent}, {again}, {there}");
    kept.all_are_whole();
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
    noise
}

/// Each day writes the same file anew, and one that stays: of a week nearly all is superseded. The oldest and the newest two are to
/// stay, so what was between the oldest and the one before the newest is one gap.
fn week() -> Kept {
    let mut kept = Kept::new("");
    for n in (0..8).rev() {
        kept.snapshot(&ago(n), |top| {
            std::fs::remove_file(top.join("each day")).ok();
            std::fs::write(top.join("each day"), noise(400_000)).unwrap();
            std::fs::write(top.join(format!("of {n}")), noise(4000)).unwrap();
            if n == 5 {
                std::fs::create_dir(top.join("folder")).unwrap();
                std::fs::rename(top.join("of 7"), top.join("folder/moved")).unwrap();
            }
            if n == 4 {
                std::fs::rename(top.join("folder"), top.join("renamed")).unwrap();
            }
        });
        kept.world.push().expect(0);
    }
    std::fs::create_dir(kept.world.path("disk/snapshots/.pins")).unwrap();
    let pin = json!({"dates": [kept.dates[0]]}).to_string();
    kept.world.write("disk/snapshots/.pins/test", &pin);
    kept.profile(
        "layers",
        "[offsite.retention]\nkeep_last = 2\nmin_age = \"1d\"\nmax_removals_per_day = 100",
    );
    kept
}

fn layers_record(kept: &Kept) -> Value {
    serde_json::from_str(&kept.world.read("state/offsite.layers.json")).unwrap()
}

#[test]
fn images_of_which_most_is_superseded_become_one_and_a_cut_at_any_step_shows_what_it_did() {
    let kept = week();
    let ran = kept.world.run("prune", &[]).expect(0);
    let merged = &ran.json["data"]["prune"]["merged"];
    assert_eq!(merged.as_array().unwrap().len(), 1, "{}", ran.json["data"]["prune"]);
    assert_eq!((&merged[0]["images"], &merged[0]["date"]), (&6.into(), &json!(kept.dates[6])));
    assert!(
        merged[0]["bytes"].as_u64().unwrap() * 4 <= merged[0]["images_bytes"].as_u64().unwrap(),
        "{merged}"
    );
    assert_eq!(kept.lists(), [&kept.dates[..1], &kept.dates[6..]].concat());
    let name = |n: usize, m: &str| format!("{}{m}.sqfs", kept.dates[n]);
    assert_eq!(kept.images(), [name(0, ""), name(6, ".m1"), name(7, "")]);
    kept.all_are_whole();
    let record: Value = serde_json::from_str(&kept.world.read("state/offsite.layers.json")).unwrap();
    assert_eq!(record["dates"][&kept.dates[7]]["layers"], json!([name(7, ""), name(6, ".m1"), name(0, "")]));
    // What is verified is what was noted of it.
    kept.world.run("verify", &["--date", &kept.dates[7]]).expect(0);

    // Killed while the image is made, and when all is done but not confirmed.
    for kill in ["link-sync-layer", "luks-mount-detach"] {
        let kept = week();
        kept.world.plan(kill, "kill -9 $PPID; exit 9");
        assert!(!kept.world.command("prune", &[]).output().unwrap().status.success());
        kept.world.no_plan(kill);
        if kill.starts_with("link") {
            kept.world.plan(kill, &format!("exec '{}' \"$@\"\n", text(&bin("link-sync"))));
        }
        std::thread::sleep(Duration::from_millis(500));
        kept.world.run("prune", &[]).expect(0);
        kept.all_are_whole();
        assert_eq!(kept.lists(), [&kept.dates[..1], &kept.dates[6..]].concat(), "{kill}");
        assert_eq!(kept.world.read("state/layers"), "");
    }
}

/// What the store here has lost, the container still has.
#[test]
fn what_a_merged_image_would_not_show_keeps_it_out() {
    let mut kept = week();
    let (date, images) = (kept.dates[6].clone(), kept.images());
    let lost = kept.world.path("store").join(&date).join("data/of 4");
    let content = std::fs::read(&lost).unwrap();
    let folder = std::fs::File::open(lost.parent().unwrap()).unwrap();
    let time = folder.metadata().unwrap().modified().unwrap();
    std::fs::remove_file(&lost).unwrap();
    folder.set_modified(time).unwrap();
    let ran = kept.world.run("prune", &[]).expect(3);
    assert_eq!(ran.json["data"]["prune"]["merged"], json!([]));
    let told = warned(&ran, "not-merged").unwrap();
    assert!(told.contains(&date) && told.contains("1 paths") && told.contains("data/of 4"), "{told}");
    assert_eq!(kept.images(), images);
    assert_eq!(kept.lists(), [&kept.dates[..1], &kept.dates[6..]].concat());
    std::fs::write(&lost, &content).unwrap();
    ok("touch", &["-r", text(&kept.world.path("store").join(&kept.dates[7]).join("data/of 4")), text(&lost)]);
    folder.set_modified(time).unwrap();
    kept.all_are_whole();
    // It is not looked at each time.
    assert_eq!(warned(&kept.world.run("prune", &[]).expect(0), "not-merged"), None);

    // The same size and time, and other bytes.
    kept = week();
    let date = kept.dates[6].clone();
    let rotten = kept.world.path("store").join(&date).join("data/of 3");
    let (mut bytes, time) = (std::fs::read(&rotten).unwrap(), rotten.metadata().unwrap().modified().unwrap());
    bytes[2000] ^= 1;
    std::fs::write(&rotten, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&rotten).unwrap();
    file.set_modified(time).unwrap();
    let ran = kept.world.run("prune", &[]).expect(3);
    assert!(warned(&ran, "not-merged").unwrap().contains("data/of 3"), "{}", ran.json);
    kept.nothing_is_up();
    bytes[2000] ^= 1;
    std::fs::write(&rotten, &bytes).unwrap();
    file.set_modified(time).unwrap();
    kept.all_are_whole();
}

/// As a kill leaves it: the image is sent, and no list has it, or not each.
#[test]
fn a_merge_that_was_cut_is_gone_on_with_and_nothing_is_sent_twice() {
    for lists_that_have_it in [0, 1] {
        let mut kept = week();
        let disk = kept.world.path("disk");
        let there = |name: &str| std::fs::read_to_string(disk.join("layers/dates").join(name)).unwrap();
        let before = (layers_record(&kept), there(&kept.dates[6]), there(&kept.dates[7]));
        ok("cp", &["-a", text(&disk.join("layers/images")), text(&kept.world.path("kept"))]);
        kept.world.run("prune", &[]).expect(0);
        let by = format!("{}.m1.sqfs", kept.dates[6]);
        let inode =
            std::os::unix::fs::MetadataExt::ino(&disk.join("layers/images").join(&by).metadata().unwrap());

        // Back to before the lists were written.
        let mut record = layers_record(&kept);
        let old: Vec<String> = (1..7).rev().map(|n| format!("{}.sqfs", kept.dates[n])).collect();
        record["merging"] = json!({"by": by, "layers": old});
        record["dropped"] = json!(kept.dates[1..6]);
        for name in &old {
            record["images"][name] = before.0["images"][name].clone();
            for name in [name.clone(), format!("{name}.json")] {
                ok(
                    "cp",
                    &["-a", text(&kept.world.path("kept").join(&name)), text(&disk.join("layers/images"))],
                );
            }
        }
        for (n, list) in [(6, &before.1), (7, &before.2)].into_iter().skip(lists_that_have_it) {
            std::fs::write(disk.join("layers/dates").join(&kept.dates[n]), list).unwrap();
        }
        for n in [6, 7] {
            record["dates"][&kept.dates[n]] = before.0["dates"][&kept.dates[n]].clone();
        }
        kept.world.write("state/offsite.layers.json", &record.to_string());
        kept.all_are_whole();

        // The next push finds nothing that is to go, and looks nevertheless.
        kept.profile("layers", "[offsite.retention]\nkeep_last = 9\nmin_age = \"1d\"");
        kept.one_more();
        let ran = kept.world.push().expect(0);
        let merged = ran.json["data"]["prune"]["merged"].as_array().unwrap().len();
        assert_eq!(merged, 1 - lists_that_have_it, "{}", ran.json["data"]["prune"]);
        let name = |n: usize| format!("{}.sqfs", kept.dates[n]);
        assert_eq!(kept.images(), [name(0), by.clone(), name(7), name(8)]);
        let now = disk.join("layers/images").join(&by).metadata().unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&now), inode);
        let record = layers_record(&kept);
        assert_eq!((&record["merging"], &record["dropped"]), (&Value::Null, &json!([])));
        assert!(record["images"][&by]["sha256"].is_string());
        for n in [6, 7] {
            assert!(record["dates"][&kept.dates[n]]["layers"].as_array().unwrap().contains(&json!(by)));
        }
        kept.all_are_whole();
    }
}

#[test]
fn a_list_that_cannot_be_read_is_written_again_if_this_machine_knows_it() {
    let mut kept = Kept::new("[offsite.retention]\nkeep_last = 9\nmin_age = \"1d\"");
    kept.days(3);
    let path = |date: &str| kept.world.path("disk/layers/dates").join(date);
    let right = std::fs::read_to_string(path(&kept.dates[1])).unwrap();
    std::fs::write(path(&kept.dates[1]), &right[..40]).unwrap();
    // Of a newer version: that is left alone.
    let newer = std::fs::read_to_string(path(&kept.dates[0])).unwrap().replace("layers 1", "layers 2");
    std::fs::write(path(&kept.dates[0]), &newer).unwrap();
    let paths = (path(&kept.dates[0]), path(&kept.dates[1]));
    // A push reads none that this machine has noted; what looks at all of them notes what it finds.
    let read = kept.world.run("verify", &[]).expect(1);
    assert!(read.json["error"]["message"].is_string(), "{}", read.json);
    kept.one_more();
    let ran = kept.world.push().expect(3);
    assert!(warned(&ran, "list-written-again").unwrap().contains(&kept.dates[1]));
    let damaged = warned(&ran, "container-damaged").unwrap();
    assert!(damaged.contains(&kept.dates[0]) && !damaged.contains(&kept.dates[1]), "{damaged}");
    assert_eq!(std::fs::read_to_string(&paths.1).unwrap(), right);
    assert_eq!(std::fs::read_to_string(&paths.0).unwrap(), newer);
    std::fs::write(&paths.0, newer.replace("layers 2", "layers 1")).unwrap();
    kept.all_are_whole();
    assert_eq!(warned(&kept.world.run("prune", &[]).expect(0), "not-pruned"), None);
}

/// A store of real snapshots, with checksums, and a container of them.
fn with_checksums() -> Kept {
    let mut kept = Kept::new("");
    let source = kept.world.path("source");
    std::fs::create_dir_all(source.join("folder")).unwrap();
    std::fs::write(source.join(".ncdata"), "").unwrap();
    ok("setfacl", &["-m", "u:1234:r", text(&source.join(".ncdata"))]);
    std::fs::create_dir(kept.world.path("index")).unwrap();
    std::fs::set_permissions(kept.world.path("index"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    for n in 0..3 {
        std::fs::write(source.join(format!("folder/{n}")), format!("file {n}\n").repeat(500)).unwrap();
        kept.with_checksums(&n.to_string());
        kept.world.push().expect(0);
    }
    kept.dates = kept.lists();
    assert_eq!(kept.dates.len(), 3);
    kept
}

#[test]
fn a_verification_hashes_images_and_compares_what_they_show() {
    let kept = with_checksums();
    let ran = kept.world.run("verify", &[]).expect(0);
    let data = &ran.json["data"];
    assert_eq!(data["layers"], json!({"needed": 3, "checked": 3, "weaker": 0, "wrong": []}));
    assert_eq!(
        (&data["verify"]["dates"], &data["verify"]["findings_total"]),
        (&json!(kept.dates), &0.into())
    );
    assert!(steps(&ran).contains(&"verify"));
    kept.nothing_is_up();
    let status = kept.world.run("status", &[]).expect(0);
    assert_eq!(status.json["data"]["last_verify"]["findings"], 0);
    let ran = kept.world.run("verify", &["--sample", "1%", "--date", "latest"]).expect(0);
    assert_eq!(
        (&ran.json["data"]["layers"]["needed"], &ran.json["data"]["layers"]["checked"]),
        (&3.into(), &1.into())
    );
    let read = |ran: &Ran| ran.json["data"]["verify"]["bytes_read"].as_u64().unwrap();
    let whole = kept.world.run("verify", &["--contents"]).expect(0);
    assert!(read(&whole) > 10_000 && read(&ran) < 5_000, "{} {}", read(&whole), read(&ran));
}

#[test]
fn a_damaged_image_is_told_with_its_dates_and_nothing_new_is_laid_upon_it() {
    let kept = with_checksums();
    let image = kept.world.path("disk/layers/images").join(format!("{}.sqfs", kept.dates[1]));
    let right = std::fs::read(&image).unwrap();
    let mut rotten = right.clone();
    // In the contents: the kernel mounts it without a word.
    rotten[120] ^= 1;
    std::fs::write(&image, &rotten).unwrap();
    let ran = kept.world.run("verify", &[]).expect(1);
    let wrong = &ran.json["data"]["layers"]["wrong"][0];
    assert_eq!(
        (&wrong["layer"], &wrong["dates"]),
        (&json!(format!("{}.sqfs", kept.dates[1])), &json!(kept.dates[1..]))
    );
    let status = kept.world.run("status", &[]).expect(0);
    let damaged = &status.json["data"]["damaged"];
    assert!(damaged[&kept.dates[1]].is_string() && damaged[&kept.dates[2]].is_string(), "{damaged}");
    assert!(damaged[&kept.dates[0]].is_null());
    // Seen again however small the sample is.
    let ran = kept.world.run("verify", &["--sample", "0.1%"]).expect(1);
    assert_eq!(ran.json["data"]["layers"]["wrong"][0]["layer"], format!("{}.sqfs", kept.dates[1]));
    // However few are to stay, a whole one does.
    kept.profile("layers", "[offsite.retention]\nkeep_last = 2\nmin_age = \"0d\"\nmax_gap = \"30d\"");
    kept.world.run("prune", &[]).expect(0);
    assert_eq!(kept.lists(), kept.dates);
    kept.profile("layers", "");
    // Who looks at one of them is told.
    for (n, told) in [(0, false), (1, true)] {
        let ran = kept.world.run("view", &["--date", &kept.dates[n]]).expect(0);
        assert_eq!(warned(&ran, "container-damaged").is_some(), told, "{}", ran.json["warnings"]);
        kept.world.run("unview", &[]).expect(0);
    }
    kept.with_checksums("more");
    let ran = kept.world.push().expect(3);
    assert!(warned(&ran, "container-damaged").is_some());
    assert_eq!(ran.json["data"]["push"]["base_date"], *kept.dates[0]);
    // Put right, and told no more.
    std::fs::write(&image, &right).unwrap();
    kept.world.run("verify", &[]).expect(0);
    assert_eq!(kept.world.run("status", &[]).expect(0).json["data"]["damaged"], json!({}));
}

/// A tree below all dates has lost a file, as after a repair of the container's file system, or as a verification finds: the dates upon it
/// are told, too, and the next one has the file again.
#[test]
fn what_a_tree_has_lost_is_told_of_the_dates_upon_it_and_sent_again_in_the_next() {
    for repaired in [true, false] {
        let mut kept = Kept::new("");
        kept.profile("hardlink", "");
        let source = kept.world.path("source");
        std::fs::create_dir_all(source.join("folder")).unwrap();
        std::fs::write(source.join(".ncdata"), "").unwrap();
        for name in ["lost", "it's \\odd", "moves", "stays"] {
            std::fs::write(source.join("folder").join(name), name.repeat(100)).unwrap();
        }
        std::fs::create_dir(kept.world.path("index")).unwrap();
        ok("chmod", &["700", text(&kept.world.path("index"))]);
        kept.with_checksums("0");
        kept.world.push().expect(0);
        kept.profile("layers", "");
        kept.with_checksums("1");
        kept.world.push().expect(0);
        let tree = kept.world.path("disk/snapshots").join(&kept.world.container()[0]);
        for name in ["lost", "it's \\odd", "moves"] {
            std::fs::remove_file(tree.join("data/folder").join(name)).unwrap();
        }
        std::fs::rename(source.join("folder/moves"), source.join("moved")).unwrap();
        match repaired {
            true => kept.world.write("fsck", "repaired"),
            false => drop(kept.world.run("verify", &[]).expect(1)),
        }
        kept.with_checksums("2");
        let ran = kept.world.push();
        kept.dates = kept.lists();
        assert_eq!(kept.dates.len(), 2);
        assert_eq!(ran.code, if repaired { 3 } else { 0 }, "{}", ran.json);
        if repaired {
            let status = kept.world.run("status", &[]).expect(0);
            let damaged = status.json["data"]["damaged"].as_object().unwrap().clone();
            let wrong = [kept.world.container()[0].clone(), kept.dates[0].clone()];
            assert_eq!(damaged.keys().collect::<Vec<_>>(), wrong.iter().collect::<Vec<_>>(), "{damaged:?}");
        }
        kept.world.run("view", &["--date", &kept.dates[1]]).expect(0);
        kept.sees(&kept.dates[1]);
        kept.world.run("unview", &[]).expect(0);
    }
}

/// Each overlay numbers its files anew: one number may be two files, of which one is damaged.
#[test]
fn a_file_that_has_the_number_of_another_dates_is_looked_at_itself() {
    let kept = with_checksums();
    let source = kept.world.path("source");
    // Each a block of its own, which lies in the image as it is.
    let files = |prefix: &str| {
        let mut noise = vec![0; 6 << 20];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
        let blocks: Vec<Vec<u8>> = noise.chunks(1 << 20).map(<[u8]>::to_vec).collect();
        for (n, block) in blocks.iter().enumerate() {
            let path = source.join(format!("{prefix}{n}"));
            std::fs::write(&path, block).unwrap();
            ok("touch", &["-d", "2026-01-01T00:00:00Z", text(&path)]);
        }
        blocks
    };
    std::fs::remove_dir_all(source.join("folder")).unwrap();
    let before = files("a").len();
    kept.with_checksums("x");
    kept.world.push().expect(0);
    for n in 0..before {
        std::fs::remove_file(source.join(format!("a{n}"))).unwrap();
    }
    let blocks = files("A");
    kept.with_checksums("y");
    kept.world.push().expect(0);
    let newest = kept.lists().pop().unwrap();
    let image = kept.world.path("disk/layers/images").join(format!("{newest}.sqfs"));
    let mut rotten = std::fs::read(&image).unwrap();
    for block in &blocks {
        let at = rotten.windows(32).position(|those| those == &block[..32]).unwrap();
        rotten[at + 1000] ^= 1;
    }
    std::fs::write(&image, rotten).unwrap();
    let ran = kept.world.run("verify", &["--contents"]).expect(1);
    let findings = ran.json["data"]["verify"]["findings"].as_array().unwrap();
    let paths = |f: &Value| {
        f["paths"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let found: std::collections::BTreeSet<String> = findings.iter().flat_map(paths).collect();
    let wanted = (0..blocks.len()).map(|n| format!("data/A{n}"));
    assert!(wanted.into_iter().all(|path| found.contains(&path)), "{found:?}");
    assert!(!found.iter().any(|path| path.starts_with("data/a")), "{found:?}");
}

#[test]
fn what_a_view_shows_is_verified_restored_and_listed_as_any_store() {
    let kept = with_checksums();
    kept.world.run("view", &[]).expect(0);
    let store = kept.store_of_view();
    let link_sync = |args: &[&str]| {
        let mut command = kept.world.enter(bin("link-sync"));
        testkit::run(command.args(args).arg("--store").arg(&store)).expect(0)
    };
    let to = kept.world.path("back");
    // A copy of it, into another store, is as it was, too.
    let copy = kept.world.path("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    link_sync(&[
        "copy",
        "--date",
        &kept.dates[2],
        "--to",
        text(&copy),
        "--state-dir",
        text(&kept.world.path("index")),
    ]);
    let exact = |top: &Path| {
        let script = "cd \"$1\" && find . -printf '%P %y %m %U %G %T@\\n' | sort && getfattr -R -P -h -e hex -d -m - . | sed '/^$/d'";
        ok("sh", &["-c", script, "sh", text(&top.join(&kept.dates[2]).join("data"))])
    };
    let was = exact(&kept.world.path("store"));
    assert_eq!(exact(&copy), was);
    assert!(was.contains("posix_acl_access") && !was.contains("nc-backup"), "{was}");
    link_sync(&["restore", "--date", &kept.dates[1], "--path", "folder", "--to", text(&to)]);
    let back = std::fs::read_to_string(ok("find", &[text(&to), "-name", "1"]).trim()).unwrap();
    assert_eq!(back, "file 1\n".repeat(500));
    assert!(ok("find", &[text(&to), "-name", "2"]).is_empty());
    let listed = link_sync(&["list", "--sizes"]);
    assert_eq!(listed.json["data"]["snapshots"].as_array().unwrap().len(), 3);
    // Each file there has one name, whatever other dates have it, too.
    assert_eq!(listed.json["data"]["snapshots"][0]["alone_bytes"], Value::Null);
    assert!(warned(&listed, "sizes-unknown").is_some());
    // What a tool notes in it goes with it: the next view is not the store that was verified.
    let mut verify = kept.world.enter(bin("link-sync"));
    let alone = testkit::run(verify.arg("verify").arg("--store").arg(&store)).expect(3);
    assert_eq!(alone.json["data"]["findings_total"], 0, "{}", alone.json);
    let diff = link_sync(&["diff", "--from", &kept.dates[0], "--to", &kept.dates[2]]);
    let told = diff.json["data"].to_string();
    assert!(told.contains("folder/1") && told.contains("changes") && !told.contains("folder/0"), "{told}");
    kept.world.run("unview", &[]).expect(0);
    kept.nothing_is_up();
    assert_eq!(std::fs::read_dir(kept.world.path("run/view")).unwrap().count(), 0);
}

#[test]
fn a_store_that_was_begun_anew_goes_on_with_what_the_container_has_and_a_verification_finds_what_had_rotted()
{
    let kept = with_checksums();
    let source = kept.world.path("source");
    let private = |path: &Path| {
        std::fs::create_dir(path).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    };
    std::fs::write(source.join("folder/rots"), "whole ".repeat(1000)).unwrap();
    kept.with_checksums("4");
    let newest = std::fs::read_dir(kept.world.path("store")).unwrap().map(|e| e.unwrap().file_name());
    let newest = newest.map(|n| n.into_string().unwrap()).filter(|n| n.starts_with("20")).max().unwrap();
    // It rots after its hash was taken, and before it is sent.
    let rotten = kept.world.path("store").join(&newest).join("data/folder/rots");
    let time = rotten.metadata().unwrap().modified().unwrap();
    std::fs::write(&rotten, "rotten".repeat(1000)).unwrap();
    std::fs::File::open(&rotten).unwrap().set_modified(time).unwrap();
    kept.world.push().expect(0);

    std::fs::rename(kept.world.path("store"), kept.world.path("died")).unwrap();
    std::fs::remove_dir_all(kept.world.path("index")).unwrap();
    private(&kept.world.path("store"));
    private(&kept.world.path("index"));
    std::fs::rename(source.join("folder/0"), source.join("moved")).unwrap();
    kept.with_checksums("5");
    let ran = kept.world.push().expect(0);
    let push = &ran.json["data"]["push"];
    assert_eq!((&push["base_date"], &push["base_by_manifest"]), (&newest.into(), &true.into()), "{push}");
    assert!(warned(&ran, "no-base").is_none());
    // What it says of itself, and a file that is too small to be looked for.
    assert!(push["copied_bytes"].as_u64().unwrap() < 2500, "{push}");
    let date = push["date"].as_str().unwrap();
    kept.world.run("verify", &["--date", date]).expect(0);
    let ran = kept.world.run("verify", &["--date", date, "--contents"]);
    let findings = &ran.json["data"]["verify"]["findings"];
    assert_ne!(ran.code, 0, "{}", ran.json);
    assert!(
        findings.to_string().contains("folder/rots") && !findings.to_string().contains("moved"),
        "{findings}"
    );
}
