//! Pushes when no date of the container is in the store any more: S2's disk died, and a new store was begun.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testkit::Ran;

use crate::layers::{ok, text, walk};
use crate::nights_of_layers::{Nights, date, noise};

/// Large contents lie beside, and nothing of an image is small.
const PARTS: [&str; 4] = ["--big-bytes", "100k", "--image-bytes", "120k"];

fn sum(path: &Path) -> String {
    ok("sha256sum", &[text(path)])[..64].to_owned()
}

/// Gives the snapshot `top` checksums, as link-sync has them.
pub(crate) fn add_checksums(top: &Path) {
    let (mut sums, mut mtree) = (String::new(), String::from("#mtree\n. type=dir\n"));
    let mut paths: Vec<PathBuf> = walk(top).into_keys().filter(|path| !path.starts_with(".meta")).collect();
    paths.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    for path in paths.iter().filter(|path| !path.as_os_str().is_empty()) {
        let (full, shown) = (top.join(path), path.display());
        let meta = full.symlink_metadata().unwrap();
        let escaped = text(path).replace(' ', "\\040");
        if meta.is_file() {
            sums += &format!("{}  {shown}\n", sum(&full));
            mtree += &format!("./{escaped} type=file size={} time=1.0\n", meta.len());
        } else {
            mtree += &format!("./{escaped} type=dir\n");
        }
    }
    let description = top.join(".meta/snapshot.json");
    let mut meta: Value = serde_json::from_slice(&std::fs::read(&description).unwrap()).unwrap();
    meta["manifest"] = json!({});
    for (key, text) in [("sha256sums", sums), ("mtree", mtree)] {
        let path = top.join(".meta").join(key);
        std::fs::write(&path, &text).unwrap();
        meta["manifest"][key] = json!({"sha256": sum(&path), "bytes": text.len()});
    }
    std::fs::write(description, meta.to_string()).unwrap();
}

/// Snapshot `n` of a store that was begun anew: as the one before it, but for what `change` does, and with no inode of another's.
fn anew(nights: &Nights, n: usize, change: impl FnOnce(&Path)) {
    nights.snapshot(n, Some(n - 1), |_| {});
    let (top, aside) = (nights.store(n), nights.world.path("aside"));
    std::fs::rename(&top, &aside).unwrap();
    ok("cp", &["-a", "--no-preserve=links", text(&aside), text(&top)]);
    std::fs::remove_dir_all(aside).unwrap();
    change(&top.join("data"));
    add_checksums(&nights.store(n));
}

/// The store's disk died. The dates lie aside, to be compared with.
struct Died<'n>(&'n Nights, Vec<usize>);

impl<'n> Died<'n> {
    fn of(nights: &'n Nights, dates: &[usize]) -> Died<'n> {
        let died = Died(nights, dates.to_vec());
        std::fs::create_dir_all(died.aside()).unwrap();
        died.move_to(|n| died.aside().join(date(n)), |n| nights.store(n));
        died
    }

    fn aside(&self) -> PathBuf {
        self.0.world.path("died")
    }

    fn move_to(&self, to: impl Fn(usize) -> PathBuf, from: impl Fn(usize) -> PathBuf) {
        self.1.iter().for_each(|n| std::fs::rename(from(*n), to(*n)).unwrap());
    }

    /// Each date of the container is what it was.
    #[track_caller]
    fn each_date_is_whole(&self) {
        self.move_to(|n| self.0.store(n), |n| self.aside().join(date(n)));
        self.0.each_date_is_whole();
        self.move_to(|n| self.aside().join(date(n)), |n| self.0.store(n));
    }
}

fn warned(ran: &Ran, kind: &str) -> bool {
    ran.json["warnings"].as_array().unwrap().iter().any(|w| w["kind"] == kind)
}

fn kept(nights: &Nights) -> Vec<String> {
    let entries = std::fs::read_dir(nights.world.path("state/manifests")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// So many bytes of contents, and the snapshot's description.
#[track_caller]
fn sends(push: &Value, contents: u64) {
    let bytes = push["copied_bytes"].as_u64().unwrap();
    assert!((contents..contents + 600).contains(&bytes), "{bytes}, not {contents}");
}

/// The record names what is there, and nothing else is.
#[track_caller]
fn what_is_kept_is_named(nights: &Nights, n: usize) {
    assert_eq!(kept(nights), [date(n)]);
    let file = nights.world.path("state/manifests").join(date(n));
    assert_eq!(
        nights.record()["kept"],
        json!({"date": date(n), "id": format!("{n:032x}"), "sha256": sum(&file)})
    );
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
}

/// Two nights in the container, and a third in a store that was begun anew.
fn two_nights_and_a_new_store(nights: &Nights) -> Died<'_> {
    nights.first();
    add_checksums(&nights.store(0));
    nights.push(&[]).expect(0);
    what_is_kept_is_named(nights, 0);
    std::fs::copy(nights.world.path("state/manifests").join(date(0)), nights.world.path("of-the-first"))
        .unwrap();
    nights.snapshot(1, Some(0), |top| {
        std::fs::rename(top.join("folder"), top.join("moved")).unwrap();
        std::fs::rename(top.join("moved/5"), top.join("five")).unwrap();
        std::fs::write(top.join("moved/one-more"), noise(5000)).unwrap();
    });
    add_checksums(&nights.store(1));
    nights.push(&[]).expect(0);
    what_is_kept_is_named(nights, 1);
    anew(nights, 2, |top| {
        std::fs::rename(top.join("moved/6"), top.join("six")).unwrap();
        std::os::unix::fs::chown(top.join("five"), Some(7), Some(8)).unwrap();
        std::fs::remove_file(top.join("goes")).unwrap();
        std::fs::write(top.join("new"), noise(1000)).unwrap();
    });
    Died::of(nights, &[0, 1])
}

#[test]
fn upon_a_date_that_is_gone_from_the_store_only_what_is_new_is_sent() {
    let nights = Nights::new();
    let died = two_nights_and_a_new_store(&nights);
    let ran = nights.push(&[]).expect(0);
    let push = &ran.json["data"]["push"];
    assert_eq!((&push["base_date"], &push["base_by_manifest"]), (&date(1).into(), &true.into()));
    assert!(!warned(&ran, "no-base"), "{}", ran.json);
    sends(push, 1000);
    let bytes = push["layers"]["image_bytes"].as_u64().unwrap();
    assert!(bytes < 8 << 10, "{bytes}");
    died.each_date_is_whole();
    let layers = nights.layers(2);
    assert_eq!(layers[..3], [2, 1, 0].map(|n| format!("{}.sqfs", date(n))));
    // What is gone is not needed by the new date; nor does it need anything in the store.
    assert_eq!(layers.len(), 4);
    let pinned = nights.world.read("store/.pins/offsite-home");
    assert!(pinned.contains(&date(2)) && !pinned.contains(&date(1)), "{pinned}");
    what_is_kept_is_named(&nights, 2);

    // From here on as always; and once more, upon what was laid so.
    nights.snapshot(3, Some(2), |top| std::fs::rename(top.join("moved/7"), top.join("seven")).unwrap());
    add_checksums(&nights.store(3));
    let push = nights.push(&[]).expect(0).json["data"]["push"].clone();
    assert_eq!((&push["base_date"], &push["base_by_manifest"]), (&date(2).into(), &false.into()));
    anew(&nights, 4, |top| std::fs::rename(top.join("moved"), top.join("moved-again")).unwrap());
    let died = Died(&nights, vec![0, 1, 2, 3]);
    died.move_to(
        |n| died.aside().join(date(n)),
        |n| if n < 2 { died.aside().join(date(n)) } else { nights.store(n) },
    );
    let push = nights.push(&[]).expect(0).json["data"]["push"].clone();
    assert_eq!((&push["base_date"], &push["base_by_manifest"]), (&date(3).into(), &true.into()));
    sends(&push, 0);
    died.each_date_is_whole();
}

#[test]
fn the_lowest_layer_may_be_a_tree_and_what_is_new_may_need_several_nights() {
    let nights = Nights::new();
    nights.profile("layout = \"hardlink\"");
    nights.first();
    nights.push(&[]).expect(0);
    nights.profile("layout = \"layers\"");
    nights.snapshot(1, Some(0), |top| std::fs::write(top.join("one"), noise(1000)).unwrap());
    add_checksums(&nights.store(1));
    nights.push(&[]).expect(0);
    anew(&nights, 2, |top| {
        std::fs::rename(top.join("folder/6"), top.join("six")).unwrap();
        for n in 0..20 {
            std::fs::write(top.join(format!("new-{n:02}")), noise(20_000)).unwrap();
        }
    });
    let died = Died::of(&nights, &[0, 1]);
    let real = nights.world.read("plan/link-sync-layer");
    nights.world.plan("link-sync-layer", &format!("[ ! -e \"$w/one\" ] || exit 1; >\"$w/one\"; {real}"));
    nights.world.run("push", &PARTS).expect(1);
    assert_eq!(nights.record()["unfinished"]["base_date"], date(1));
    nights.world.plan("link-sync-layer", &real);
    let ran = nights.world.run("push", &PARTS).expect(0);
    let push = &ran.json["data"]["push"];
    assert_eq!((&push["base_date"], &push["base_by_manifest"]), (&date(1).into(), &true.into()));
    assert!(!warned(&ran, "unfinished-given-up"), "{}", ran.json);
    assert!(push["layers"]["images"].as_u64().unwrap() >= 3, "{push}");
    let layers = nights.layers(2);
    assert_eq!(layers.last().unwrap(), &format!("snapshots/{}/", date(0)));
    died.each_date_is_whole();
    what_is_kept_is_named(&nights, 2);
}

#[test]
fn what_was_kept_is_of_no_use_if_it_is_another_or_if_the_date_is_not_what_was_sent() {
    for case in ["exchanged", "of another date", "gone", "an image of another", "an image cut off"] {
        let nights = Nights::new();
        let died = two_nights_and_a_new_store(&nights);
        let file = nights.world.path("state/manifests").join(date(1));
        let image = format!("{}.sqfs", date(0));
        let told = match case {
            "exchanged" => {
                // The hashes of two files of one size.
                let mut bytes = std::fs::read(&file).unwrap();
                let mut at = ["five", "moved/7"].map(|name| {
                    let sum = sum(&died.aside().join(date(1)).join("data").join(name));
                    let sum: Vec<u8> =
                        (0..32).map(|n| u8::from_str_radix(&sum[2 * n..2 * n + 2], 16).unwrap()).collect();
                    bytes.windows(32).position(|window| window == sum).unwrap()
                });
                at.sort_unstable();
                let (first, second) = bytes.split_at_mut(at[1]);
                first[at[0]..at[0] + 32].swap_with_slice(&mut second[..32]);
                std::fs::write(&file, bytes).unwrap();
                "manifest-damaged"
            }
            "of another date" => {
                std::fs::copy(nights.world.path("of-the-first"), &file).unwrap();
                "manifest-damaged"
            }
            "gone" => {
                std::fs::remove_file(&file).unwrap();
                "manifest-damaged"
            }
            "an image of another" => {
                let mut record = nights.record();
                record["images"].as_object_mut().unwrap().remove(&image).unwrap();
                nights.world.write("state/offsite.layers.json", &record.to_string());
                "no-base"
            }
            _ => {
                let path = nights.world.path("disk/layers/images").join(&image);
                let whole = std::fs::read(&path).unwrap();
                std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
                "damaged-dates"
            }
        };
        let ran = nights.push(&[]);
        assert_eq!(ran.code, if case == "an image cut off" { 3 } else { 0 }, "{case}: {ran:?}");
        let push = &ran.json["data"]["push"];
        assert_eq!((&push["base_date"], &push["base_by_manifest"]), (&Value::Null, &false.into()), "{case}");
        assert!(
            warned(&ran, "no-base") && (warned(&ran, told) || told.starts_with("damaged")),
            "{case}: {}",
            ran.json
        );
        nights.shows(2);
        if case != "an image cut off" {
            died.each_date_is_whole();
        }
        what_is_kept_is_named(&nights, 2);
    }
}

#[test]
fn killed_at_any_step_upon_a_date_that_is_gone_the_next_push_goes_on() {
    let nights = Nights::new();
    let died = two_nights_and_a_new_store(&nights);
    for n in 0..10 {
        std::fs::write(nights.store(2).join(format!("data/new-{n}")), noise(20_000)).unwrap();
    }
    add_checksums(&nights.store(2));
    let mut kills = 0;
    for kill in 1.. {
        if nights.killed_at_rename(kill, &PARTS) {
            break;
        }
        kills += 1;
        died.each_date_is_whole();
        if kill % 3 == 0 {
            nights.world.run("unview", &["--if-killed"]);
        }
    }
    assert!(kills >= 5, "killed {kills} times");
    let ran = nights.world.run("push", &PARTS).expect(0);
    assert!(!warned(&ran, "no-base"), "{}", ran.json);
    died.each_date_is_whole();
    assert!(nights.layers(2).contains(&format!("{}.sqfs", date(1))));
    assert_eq!(nights.workshop(), Vec::<String>::new());
    what_is_kept_is_named(&nights, 2);
}

#[test]
fn a_disk_too_full_to_keep_it_is_told_and_the_push_is_made_all_the_same() {
    let nights = Nights::new();
    nights.first();
    add_checksums(&nights.store(0));
    nights.push(&[]).expect(0);
    let folder = nights.world.path("state/manifests");
    let was = std::fs::read(folder.join(date(0))).unwrap();
    let mounted = nights.world.enter("mount");
    let mut mounted = mounted;
    mounted.args(["-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", text(&folder)]);
    assert!(mounted.status().unwrap().success());
    nights.snapshot(1, Some(0), |top| {
        for n in 0..200 {
            std::fs::write(top.join(format!("new-{n}")), noise(100)).unwrap();
        }
    });
    add_checksums(&nights.store(1));
    let ran = nights.push(&[]).expect(0);
    assert!(warned(&ran, "manifest-not-kept"), "{}", ran.json);
    nights.each_date_is_whole();
    // What was kept before counts as long as the container has that date.
    assert_eq!(nights.record()["kept"]["date"], date(0));
    assert!(nights.world.enter("umount").arg(&folder).status().unwrap().success());
    assert_eq!(std::fs::read(folder.join(date(0))).unwrap(), was);
}
