//! Where a restore writes: the folder that was named and no other, on whatever file system, whoever owns it.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::picture::picture;
use crate::world::{Disk, Mounted, World, ok, told, warnings};

/// A snapshot of a folder with a file, a subfolder and a link.
fn world() -> World {
    let world = World::new();
    world.file("letter.txt", "v1");
    world.file("sub/more.txt", "more");
    symlink("letter.txt", world.source.join("link")).unwrap();
    world.publish();
    world
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn two_dots_mean_the_folder_above_the_one_that_is_there() {
    // Given a folder that is reached through a link of root's, and one beside the link that is nobody's business,
    let world = world();
    let (sub, far) = (world.dir.join("sub"), world.dir.join("far"));
    for folder in [&sub.join("back/docs"), &far.join("place"), &world.dir.join("back")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(sub.join("back/docs/only-copy"), "precious").unwrap();
    symlink(far.join("place"), sub.join("jump")).unwrap();
    // when a restore is told to go up,
    let mut command = world.command("restore", &["--to", "../back", "--yes"]);
    let ran = testkit::run(command.current_dir(&sub)).expect(0);
    // then it goes where the kernel would, and says where that is.
    let real = world.dir.canonicalize().unwrap();
    assert_eq!(ran.json["data"]["items"][0]["target"], real.join("back/docs").to_str().unwrap());
    assert_eq!(text(&world.dir.join("back/docs/letter.txt")), "v1");
    assert_eq!(text(&sub.join("back/docs/only-copy")), "precious");
    // Through the link it is the folder above the one that the link leads to; a folder is made there, too.
    let through = sub.join("jump/../new");
    let ran = world.act("restore", &["--to", through.to_str().unwrap()]).expect(0);
    assert_eq!(ran.json["data"]["items"][0]["target"], real.join("far/new/docs").to_str().unwrap());
    assert_eq!(text(&far.join("new/docs/letter.txt")), "v1");
    assert!(!sub.join("new").exists());
    // What is not there leads nowhere.
    let nowhere = world.dir.join("nothing/../back");
    world.act("restore", &["--to", nowhere.to_str().unwrap(), "--yes"]).expect(1);
}

#[test]
fn a_source_whose_path_goes_up_comes_back_to_itself() {
    let world = world();
    std::fs::create_dir_all(world.dir.join("www/source/precious")).unwrap();
    let profile = text(&world.config);
    let up = world.dir.join("www/../source");
    let source = format!("path = \"{}\"", world.source.display());
    assert!(profile.contains(&source));
    std::fs::write(&world.config, profile.replace(&source, &format!("path = \"{}\"", up.display()))).unwrap();
    world.file("letter.txt", "v2");
    let ran = world.act("restore", &["--source", "docs", "--in-place", "--yes"]).expect(0);
    let real = world.source.canonicalize().unwrap();
    assert_eq!(ran.json["data"]["items"][0]["target"], real.to_str().unwrap());
    assert_eq!(text(&world.source.join("letter.txt")), "v1");
    assert!(world.dir.join("www/source/precious").exists());
}

#[test]
fn a_folder_is_never_made_where_somebody_elses_link_leads() {
    let world = world();
    let (web, etc) = (world.dir.join("web"), world.dir.join("system"));
    std::fs::create_dir(&web).unwrap();
    std::fs::create_dir(&etc).unwrap();
    symlink(&etc, web.join("link")).unwrap();
    ok("chown", &["-h", "33:33", web.to_str().unwrap(), web.join("link").to_str().unwrap()]);
    let ran = world.act("restore", &["--to", web.join("link/new").to_str().unwrap()]).expect(77);
    assert!(told(&ran).contains("symbolic link"), "{ran:?}");
    assert_eq!(std::fs::read_dir(&etc).unwrap().count(), 0);
    // Nor where a link of root's leads to a disk that is not there.
    symlink(world.dir.join("disk/data"), world.dir.join("mine")).unwrap();
    std::fs::create_dir(world.dir.join("disk")).unwrap();
    world.act("restore", &["--to", world.dir.join("mine").to_str().unwrap()]).expect(1);
    assert_eq!(std::fs::read_dir(world.dir.join("disk")).unwrap().count(), 0);
}

/// `real` shown at `at` by bindfs, which knows no flag of renameat2; `None` where that is not installed.
fn fuse(real: &Path, at: &Path) -> Option<Mounted> {
    std::fs::create_dir(at).unwrap();
    let mut bindfs = Command::new("bindfs");
    match bindfs.args([real, at]).status() {
        Ok(status) => {
            assert!(status.success());
            Some(Mounted(at.to_owned()))
        }
        Err(_) => {
            eprintln!("skipped: bindfs is not installed");
            None
        }
    }
}

#[test]
fn a_file_system_without_renames_that_keep_or_exchange_is_restored_in_place() {
    // Given a data folder on FUSE, with changes since the snapshot,
    let world = world();
    let real = world.dir.join("real");
    std::fs::rename(&world.source, &real).unwrap();
    let Some(_mounted) = fuse(&real, &world.source) else { return };
    std::fs::create_dir(world.source.join("sub/new")).unwrap();
    let before = picture(&world.store.join(world.dates().pop().unwrap()).join("docs"));
    world.file("letter.txt", "v2");
    std::fs::remove_file(world.source.join("link")).unwrap();
    std::fs::create_dir(world.source.join("link")).unwrap();
    // when the source, and before that one file of it, is restored,
    world.act("restore", &["--source", "docs", "--path", "letter.txt", "--in-place", "--yes"]).expect(0);
    assert_eq!(text(&real.join("letter.txt")), "v1");
    world.act("restore", &["--source", "docs", "--in-place", "--yes", "--keep-replaced"]).expect(0);
    // then it is what it was, and what was replaced is kept whole.
    let kept = ok("find", &[real.to_str().unwrap(), "-maxdepth", "1", "-name", "*.replaced"]);
    let kept = Path::new(&kept);
    assert!(kept.join("old/sub/new").is_dir() && kept.join("old/link").is_dir());
    std::fs::rename(kept, world.dir.join("kept")).unwrap();
    ok("touch", &["-r", world.dir.join("kept/old").to_str().unwrap(), "-d", "now", real.to_str().unwrap()]);
    let now = picture(&real);
    assert!(before.0.keys().eq(now.0.keys()), "{before:?} {now:?}");
    assert_eq!(std::fs::read_link(real.join("link")).unwrap(), Path::new("letter.txt"));
}

#[test]
fn a_store_without_renames_that_keep_publishes_prunes_and_repairs() {
    let world = World::new();
    world.file("a", "1");
    let real = world.dir.join("real");
    std::fs::rename(&world.store, &real).unwrap();
    let Some(_mounted) = fuse(&real, &world.store) else { return };
    ok("chmod", &["0700", world.store.to_str().unwrap()]);
    world.publish();
    world.file("a", "2");
    world.file("new/folder/b", "b");
    let second = world.publish();
    assert_eq!(text(&second.join("docs/new/folder/b")), "b");
    let first = world.dates().remove(0);
    world.act("prune", &["--date", &first, "--yes"]).expect(0);
    assert_eq!(world.dates().len(), 1);
    // What is in the way of a repair is set aside.
    std::fs::remove_file(second.join("docs/a")).unwrap();
    std::fs::create_dir(second.join("docs/a")).unwrap();
    world.act("verify", &["--repair"]).expect(0);
    assert_eq!(text(&second.join("docs/a")), "2");
    assert!(std::fs::metadata(real.join(".set-aside")).unwrap().is_dir());
    assert_eq!(std::fs::metadata(&real).unwrap().uid(), 0);
}

/// Makes `path` immutable (or what else the word says) until this is dropped.
struct Fixed(String, &'static str);

impl Fixed {
    fn new(path: &Path, how: &'static str) -> Fixed {
        ok("chattr", &[&format!("+{how}"), path.to_str().unwrap()]);
        Fixed(path.file_name().unwrap().to_str().unwrap().to_owned(), how)
    }

    /// Wherever below `top` it is by now.
    fn free(&self, top: &Path) {
        let path = ok("find", &[top.to_str().unwrap(), "-name", &self.0]);
        path.lines().for_each(|path| drop(ok("chattr", &[&format!("-{}", self.1), path])));
    }
}

fn leftovers(world: &World) -> Vec<String> {
    let names =
        std::fs::read_dir(&world.source).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(".nc-restore-")).collect()
}

#[test]
fn what_was_replaced_and_cannot_be_removed_is_told_and_removed_later() {
    for how in ["i", "a"] {
        // Given a file that cannot be removed, in a folder that is replaced,
        let world = world();
        world.file("sub/fixed", "fixed");
        let fixed = Fixed::new(&world.source.join("sub/fixed"), how);
        world.file("sub/newer", "newer");
        // when the folder is restored,
        let all = ["--source", "docs", "--path", "sub", "--in-place", "--yes"];
        let ran = world.act("restore", &all).expect(4);
        // then that is done, and what is left is named, now and by the next run of any restore there.
        assert!(!world.source.join("sub/newer").exists() && ran.json["changed"] == true);
        let left = ran.json["left_behind"][0]["what"].as_str().unwrap();
        assert!(left.contains(".removing: old/sub/fixed") || left.contains("sub/fixed"), "{left}");
        assert_eq!(ran.json["error"], serde_json::Value::Null);
        let name = leftovers(&world);
        assert_eq!(name.len(), 1, "{name:?}");
        let other = ["--source", "docs", "--path", "letter.txt", "--in-place", "--yes"];
        let ran = world.act("restore", &other).expect(3);
        assert_eq!(warnings(&ran), ["not-removed"]);
        assert_eq!(leftovers(&world), name);
        // When it can be removed, the next one does.
        fixed.free(&world.source);
        world.act("restore", &other).expect(0);
        assert_eq!(leftovers(&world), [""; 0]);
    }
}

#[test]
fn what_cannot_be_renamed_is_told_before_anything_is() {
    let world = world();
    world.file("letter.txt", "v2");
    world.file("sub/more.txt", "changed");
    let fixed = Fixed::new(&world.source.join("letter.txt"), "i");
    for options in [&["--dry-run"][..], &["--yes"], &["--yes", "--path", "letter.txt"]] {
        let all: Vec<_> = ["--source", "docs", "--in-place"].iter().chain(options).copied().collect();
        let ran = world.act("restore", &all).expect(77);
        assert!(told(&ran).contains("letter.txt") && told(&ran).contains("chattr"), "{ran:?}");
        assert_eq!(text(&world.source.join("sub/more.txt")), "changed");
        assert_eq!(leftovers(&world), [""; 0]);
    }
    fixed.free(&world.source);
}

#[test]
fn a_disk_that_is_mounted_in_what_was_replaced_is_not_emptied() {
    // Given a kept folder of an earlier restore that was being removed, in which a disk is mounted by now,
    let world = world();
    let disk = Disk::new(16);
    std::fs::write(disk.path.join("only-copy"), "precious").unwrap();
    let rubbish = world.source.join(".nc-restore-2001-01-01T00-00-00Z-00000000.removing");
    let place = rubbish.join("old/disk");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(rubbish.join("old/file"), "x").unwrap();
    ok("mount", &["--bind", disk.path.to_str().unwrap(), place.to_str().unwrap()]);
    let mounted = Mounted(place.clone());
    // when a restore tries to remove that once more,
    let one = ["--source", "docs", "--path", "letter.txt", "--in-place", "--yes"];
    let ran = world.act("restore", &one).expect(3);
    // then all but the disk goes, and nothing on the disk.
    assert_eq!(warnings(&ran), ["not-removed"]);
    assert_eq!(text(&disk.path.join("only-copy")), "precious");
    assert!(!rubbish.join("old/file").exists());
    drop(mounted);
    world.act("restore", &one).expect(0);
    assert!(!rubbish.exists());
    assert_eq!(text(&disk.path.join("only-copy")), "precious");
}

#[test]
fn paths_deeper_or_longer_than_rsync_likes_come_back() {
    // Given a file at the end of the longest path there can be, one 260 folders down, and names that mean something in
    // rsync's patterns,
    let world = World::new();
    world.file("other.txt", "hi");
    let deep = "chdir shift; \
        my ($n, $name, $times) = @ARGV; for (1 .. $times) { mkdir $name or die; chdir $name or die } \
        open F, '>', $n or die; print F 'end'; close F; utime 1, 2, $n, '.';";
    let source = world.source.to_str().unwrap();
    let file = "f".repeat(4095 - 20 * 201 - 20);
    ok("perl", &["-e", deep, source, &file, &"d*".repeat(100), "20"]);
    ok("perl", &["-e", deep, source, "g", "[", "260"]);
    world.publish();
    let before = ok("find", &[source, "-printf", "%P %s %m %T@ %y\n"]);
    assert_eq!(before.lines().count(), 1 + 1 + 20 + 1 + 260 + 1);
    // when it is restored elsewhere, and in place,
    let to = world.dir.join("to");
    world.act("restore", &["--to", to.to_str().unwrap(), "--verify"]).expect(0);
    let at = |top: &Path| {
        let found = ok("find", &[top.to_str().unwrap(), "-printf", "%P %s %m %T@ %y\n"]);
        let mut lines: Vec<_> = found.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let mut wanted: Vec<_> = before.lines().map(str::to_owned).collect();
    wanted.sort();
    assert!(at(&to.join("docs")) == wanted, "not the same");
    world.file("other.txt", "changed");
    world.act("restore", &["--source", "docs", "--in-place", "--yes"]).expect(0);
    // then all of it is there.
    assert!(at(&world.source)[1..] == wanted[1..], "not the same in place");
}
