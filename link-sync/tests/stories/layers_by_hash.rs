//! Images upon a snapshot that is gone from the store, and of which only the hashes of its files were kept.
//!
//! `LAYERS_CASES=200` tries more, `LAYERS_SEED=7` the same as the run that said so.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::any;
use sha2::{Digest as _, Sha256};
use testkit::Ran;

use crate::changes::{self, Change, KINDS};
use crate::layers::{History, MOVES, change, lay, shown};
use crate::picture::picture;
use crate::random;
use crate::world::{ok, private, warnings};

fn hex(sum: &[u8]) -> String {
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As vis(3) has it.
fn escaped(text: &[u8], odd: impl Fn(u8) -> bool) -> String {
    let one = |byte: &u8| match odd(*byte) {
        true => format!("\\{byte:03o}"),
        false => char::from(*byte).to_string(),
    };
    text.iter().map(one).collect()
}

/// Gives the snapshot checksums, as link-sync has them.
fn add_checksums(history: &History, date: &str) {
    let top = history.world.store.join(date);
    let (mut sums, mut mtree) =
        (Vec::new(), String::from("#mtree\n. type=dir\n./.meta type=dir ignore optional\n"));
    for (path, seen) in picture(&top).0 {
        if path.is_empty() || path.starts_with(b".meta") {
            continue;
        }
        let shown = escaped(&path, |b| !(0x21..=0x7e).contains(&b) || b"#*?[\\".contains(&b));
        if seen.mode & libc::S_IFMT != libc::S_IFREG {
            mtree += &format!("./{shown} type=other\n");
            continue;
        }
        mtree += &format!("./{shown} type=file mode=0644 size={} time=1.000000000\n", seen.content.len());
        let odd = path.iter().any(|b| b"\\\n\r".contains(b));
        sums.extend_from_slice(if odd { b"\\" } else { b"" });
        sums.extend_from_slice(hex(&Sha256::digest(&seen.content)).as_bytes());
        sums.extend_from_slice(b"  ");
        for byte in path {
            match byte {
                b'\\' if odd => sums.extend_from_slice(b"\\\\"),
                b'\n' => sums.extend_from_slice(b"\\n"),
                b'\r' => sums.extend_from_slice(b"\\r"),
                other => sums.push(other),
            }
        }
        sums.push(b'\n');
    }
    let digest =
        |bytes: &[u8]| serde_json::json!({"sha256": hex(&Sha256::digest(bytes)), "bytes": bytes.len()});
    let description = top.join(".meta/snapshot.json");
    let mut described: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&description).unwrap()).unwrap();
    described["manifest"] =
        serde_json::json!({"sha256sums": digest(&sums), "mtree": digest(mtree.as_bytes())});
    std::fs::write(top.join(".meta/sha256sums"), sums).unwrap();
    std::fs::write(top.join(".meta/mtree"), mtree).unwrap();
    std::fs::write(description, described.to_string()).unwrap();
}

fn kept(history: &History, n: usize) -> PathBuf {
    history.images.join(format!("{n}.base"))
}

/// Keeps what is needed of snapshot `n`, which has checksums.
fn keep(history: &History, n: usize) -> Ran {
    let aside = history.images.join("aside");
    let ran = history
        .layer(&aside, &["--date", &history.dates[n], "--keep-manifest", kept(history, n).to_str().unwrap()]);
    for end in ["", ".json"] {
        std::fs::remove_file(format!("{}{end}", aside.display())).unwrap();
    }
    ran
}

/// How a snapshot is laid upon the one before it.
const WAYS: u8 = 4;

#[test]
fn whatever_changes_a_snapshot_upon_one_that_is_known_by_its_hashes_shows_what_it_is() {
    let step = || (vec((0..KINDS + MOVES, any::<u32>(), any::<u32>()), 0..20), 0..WAYS);
    let (seed, cases) = (random::seed("LAYERS_SEED"), random::number("LAYERS_CASES", 8));
    random::try_many(seed, cases, 60, &vec(step(), 1..5), |steps| story(steps));
}

/// What went wrong.
fn story(steps: &[(Vec<Change>, u8)]) -> String {
    let mut history = History::new();
    changes::begin(&history.world.source);
    let mut stack: Vec<PathBuf> = Vec::new();
    let first = (Vec::new(), 0);
    for (n, (step, way)) in std::iter::once(&first).chain(steps).enumerate() {
        step.iter().for_each(|c| change(&history.world.source, *c));
        let date = history.shoot();
        let with_checksums = *way != 2;
        if with_checksums {
            add_checksums(&history, &date);
        }
        let base = n.checked_sub(1).map(|base| kept(&history, base));
        let by_hash = base.as_ref().map(|base| ["--date", &date, "--base-manifest", base.to_str().unwrap()]);
        match (way, by_hash) {
            (1 | 2, Some(by_hash)) => {
                history.layer(&history.image(n), &by_hash).expect(0);
                stack.insert(0, history.image(n));
            }
            (3, Some(by_hash)) => {
                let (parts, _) = history.parts(&by_hash);
                stack.splice(0..0, parts);
            }
            _ => {
                history.next(n).expect(0);
                stack.insert(0, history.image(n));
            }
        }
        if !with_checksums {
            add_checksums(&history, &date);
        }
        keep(&history, n).expect(0);
        let wrong = history.stored(&date).differences(&shown(&history.images, &stack));
        if !wrong.is_empty() {
            return format!("snapshot {n}, {way}:\n{}", wrong.join("\n"));
        }
    }
    String::new()
}

/// The wanted snapshot as in a store that was begun anew: no inode is that of another.
fn anew(history: &History, date: &str) {
    let (top, aside) = (history.world.store.join(date), history.world.dir.join("aside"));
    std::fs::rename(&top, &aside).unwrap();
    ok("cp", &["-a", "--no-preserve=links", aside.to_str().unwrap(), top.to_str().unwrap()]);
    std::fs::remove_dir_all(&aside).unwrap();
}

#[test]
fn two_thousand_files_that_the_base_has_cost_their_names() {
    let mut history = History::new();
    for n in 0..2000 {
        history.world.file(&format!("photos/{}/{n}.jpg", n / 100), &format!("{n} ").repeat(100 + n % 100));
    }
    let source = history.world.source.clone();
    history.shoot();
    add_checksums(&history, &history.dates[0]);
    let first = history.next(0).expect(0);
    let ran = keep(&history, 0).expect(0);
    let file = kept(&history, 0);
    let told = &ran.json["data"]["kept_manifest"];
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(
        (&told["files"], &told["bytes"], &told["sha256"]),
        (&2000.into(), &bytes.len().into(), &hex(&Sha256::digest(&bytes)).into())
    );
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
    // Moved, re-owned, gone, new; and whatever of the base's attributes.
    std::fs::rename(source.join("photos/3"), source.join("moved")).unwrap();
    std::os::unix::fs::chown(source.join("photos/4/400.jpg"), Some(33), Some(33)).unwrap();
    std::fs::set_permissions(source.join("photos/5"), PermissionsExt::from_mode(0o711)).unwrap();
    std::fs::remove_dir_all(source.join("photos/6")).unwrap();
    history.world.file("photos/new", &"new".repeat(1000));
    let date = history.shoot();
    add_checksums(&history, &date);
    anew(&history, &date);
    std::fs::remove_dir_all(history.world.store.join(&history.dates[0])).unwrap();
    let options = ["--date", &date, "--base-manifest", file.to_str().unwrap()];
    let ran = history.layer(&history.image(1), &options).expect(0);
    let data = &ran.json["data"];
    assert_eq!((&data["files_by_content"], &data["files"]), (&1900.into(), &3.into()), "{data}");
    assert_eq!(
        (&data["base_date"], &data["base_by_manifest"]),
        (&history.dates[0].as_str().into(), &true.into())
    );
    let (all, these) = (first.json["data"]["image_bytes"].as_u64(), data["image_bytes"].as_u64().unwrap());
    eprintln!("{these} bytes for 2,000 files, {all:?} for all of them, {} kept", bytes.len());
    assert!(these < 60_000, "{these}");
    let wrong =
        history.stored(&date).differences(&shown(&history.images, &[history.image(1), history.image(0)]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_the_base_had_at_its_top_is_hidden_and_nothing_of_it_shows_through() {
    let mut history = History::new();
    let text = "content ".repeat(1000);
    history.world.file("kept/file", &text);
    history.world.file("kept/gone", "gone");
    std::fs::create_dir(history.world.source.join("empty")).unwrap();
    let base = history.shoot();
    let top = history.world.store.join(&base);
    for other in ["html", "hollow"] {
        private(&top.join(other));
    }
    std::fs::write(top.join("html/page"), &text).unwrap();
    std::fs::write(top.join("file"), &text).unwrap();
    add_checksums(&history, &base);
    history.next(0).expect(0);
    keep(&history, 0).expect(0);
    std::fs::remove_file(history.world.source.join("kept/gone")).unwrap();
    std::fs::remove_dir(history.world.source.join("empty")).unwrap();
    let date = history.shoot();
    let top = history.world.store.join(&date);
    // A folder where a file was, and the other way round.
    private(&top.join("file"));
    std::fs::write(top.join("file/x"), &text).unwrap();
    std::fs::write(top.join("hollow"), &text).unwrap();
    let base = kept(&history, 0);
    let ran = history.layer(&history.image(1), &["--date", &date, "--base-manifest", base.to_str().unwrap()]);
    assert_eq!(ran.expect(0).json["data"]["files_by_content"], 3);
    let view = history.images.join("view");
    let laid = lay(&history.images, &[history.image(1), history.image(0)], &view);
    let names =
        |top: &Path| picture(top).0.into_iter().map(|(path, seen)| (path, seen.content)).collect::<Vec<_>>();
    let (seen, wanted) = (names(&view), names(&top));
    drop(laid);
    assert_eq!(seen, wanted);
}

#[test]
fn what_was_damaged_here_since_is_stored_as_it_is_and_rotten_checksums_are_not_believed() {
    let mut history = History::new();
    let text = "content ".repeat(1000);
    for name in ["whole", "cut", "other"] {
        history.world.file(name, &format!("{name} {text}"));
    }
    let first = history.shoot();
    add_checksums(&history, &first);
    history.next(0).expect(0);
    keep(&history, 0).expect(0);
    history.world.file("new", &text);
    let second = history.shoot();
    add_checksums(&history, &second);
    anew(&history, &second);
    let top = history.world.store.join(&second);
    // The disk lost the end of one.
    std::fs::write(top.join("docs/cut"), "cut").unwrap();
    std::fs::File::options().write(true).open(top.join("docs/cut")).unwrap().set_len(4000).unwrap();
    let base = kept(&history, 0);
    let options = ["--date", &second, "--base-manifest", base.to_str().unwrap()];
    let ran = history.layer(&history.image(1), &options).expect(0);
    assert_eq!(ran.json["data"]["files_by_content"], 2);
    let stack = [history.image(1), history.image(0)];
    let wrong = history.stored(&second).differences(&shown(&history.images, &stack));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Its checksums say that one file is another: they are not what they were, so the files are read.
    let path = top.join(".meta/sha256sums");
    let sums = std::fs::read_to_string(&path).unwrap();
    let line = |name: &str| sums.lines().find(|line| line.ends_with(name)).unwrap();
    std::fs::write(&path, sums.replace(&line("/other")[..64], &line("/whole")[..64])).unwrap();
    let third = history.images.join("third");
    let ran = history.layer(&third, &options).expect(0);
    assert_eq!(ran.json["data"]["files_by_content"], 2);
    let stack = [third, history.image(0)];
    let wrong = history.stored(&second).differences(&shown(&history.images, &stack));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nor is anything kept of it; that is told, and the image is there all the same.
    let ran = history
        .layer(
            &history.images.join("fourth"),
            &["--date", &second, "--keep-manifest", kept(&history, 1).to_str().unwrap()],
        )
        .expect(0);
    assert_eq!(
        (warnings(&ran), &ran.json["data"]["kept_manifest"]),
        (vec!["manifest-not-kept"], &serde_json::Value::Null)
    );
    assert!(!kept(&history, 1).exists());
}

#[test]
fn a_large_content_that_lies_beside_is_used_by_its_hash_and_not_if_it_is_another_than_it_should_be() {
    let mut history = History::new();
    let large = |n: usize| format!("{n} large").repeat(20_000);
    for (n, name) in ["stays", "moves", "goes", "rotten"].iter().enumerate() {
        history.world.file(name, &large(n));
    }
    let first = history.shoot();
    add_checksums(&history, &first);
    // It rotted before it was sent: what lies beside is that.
    let rotten = history.world.store.join(&first).join("docs/rotten");
    let was = std::fs::read(&rotten).unwrap();
    std::fs::write(&rotten, was.to_ascii_uppercase()).unwrap();
    history.next(0).expect(0);
    keep(&history, 0).expect(0);
    let images = history.images.clone();
    let beside = |n: usize| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(images.join(format!("{n}.sqfs.json"))).unwrap()).unwrap()
    };
    let list = history.images.join("list");
    std::fs::write(&list, beside(0)["big"].to_string()).unwrap();
    let source = history.world.source.clone();
    std::fs::rename(source.join("moves"), source.join("moved")).unwrap();
    std::fs::remove_file(source.join("goes")).unwrap();
    let date = history.shoot();
    add_checksums(&history, &date);
    anew(&history, &date);
    // (the snapshot shared it with the first)
    std::fs::write(history.world.store.join(&date).join("docs/rotten"), &was).unwrap();
    let time = std::fs::metadata(source.join("rotten")).unwrap().modified().unwrap();
    std::fs::File::open(history.world.store.join(&date).join("docs/rotten"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    let base = kept(&history, 0);
    let options =
        ["--date", &date, "--base-manifest", base.to_str().unwrap(), "--base-big", list.to_str().unwrap()];
    let ran = history.layer(&history.image(1), &options).expect(0);
    assert_eq!(
        (&ran.json["data"]["files_by_content"], &ran.json["data"]["big"]),
        (&2.into(), &1.into()),
        "{}",
        ran.json
    );
    let told = beside(1);
    let mut names: Vec<&str> =
        told["base_big"].as_array().unwrap().iter().map(|b| b["path"].as_str().unwrap()).collect();
    names.sort_unstable();
    // What nobody knows by its hash is not ours to judge.
    assert_eq!(names, ["docs/moved", "docs/rotten", "docs/stays"]);
    let wrong =
        history.stored(&date).differences(&shown(&history.images, &[history.image(1), history.image(0)]));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_kept_and_is_damaged_or_of_the_snapshot_itself_makes_no_image() {
    let mut history = History::new();
    history.world.file("a", &"a".repeat(1000));
    history.world.file("b", &"b".repeat(1000));
    let date = history.shoot();
    add_checksums(&history, &date);
    keep(&history, 0).expect(0);
    let base = kept(&history, 0);
    let attempt = |base: &Path| {
        let to = history.images.join("x");
        let ran = history.layer(&to, &["--date", &date, "--base-manifest", base.to_str().unwrap()]);
        assert!(!to.exists());
        ran
    };
    assert_eq!(attempt(&base).code, 2);
    let whole = std::fs::read(&base).unwrap();
    let cut = history.images.join("cut");
    std::fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
    let ran = attempt(&cut).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("is damaged"), "{}", ran.json);
    attempt(&history.images.join("none")).expect(1);
    let both = ["--date", &date, "--base", &date, "--base-manifest", base.to_str().unwrap()];
    assert_eq!(history.layer(&history.images.join("x"), &both).code, 2);
}
