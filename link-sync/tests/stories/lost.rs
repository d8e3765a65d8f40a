//! Writes that fail when nobody waits for them any more: what did not reach the disk is never called saved.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::picture::picture;
use crate::world::{World, dates, descendants, folder, ok, private, told, unmount, until, warnings};

/// An XFS whose disk has less room than it promises: content is lost when it is written back.
struct Liar {
    mount: std::path::PathBuf,
    below: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Liar {
    /// With room for so many bytes of content.
    fn new(really: u64) -> Liar {
        let dir = tempfile::Builder::new().prefix("ncb-liar-").tempdir().unwrap();
        let liar = Liar { mount: dir.path().join("mnt"), below: dir.path().join("below"), _dir: dir };
        for folder in [&liar.mount, &liar.below] {
            std::fs::create_dir(folder).unwrap();
        }
        ok("mount", &["-t", "tmpfs", "-o", "size=400m", "tmpfs", liar.below.to_str().unwrap()]);
        let image = liar.below.join("image");
        let image = image.to_str().unwrap();
        // All of it has its room at first, and what is free gives it back: names and the journal keep theirs.
        ok("fallocate", &["-l", "320M", image]);
        ok("mkfs.xfs", &["-q", "-K", image]);
        liar.mount();
        ok("fstrim", &[liar.mount.to_str().unwrap()]);
        // The loop device does that in its own time.
        let used = || {
            let stat = nix::sys::statvfs::statvfs(&liar.below).unwrap();
            (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
        };
        let mut before = used();
        until("it has given back what is free", || {
            std::thread::sleep(std::time::Duration::from_millis(500));
            let now = used();
            std::mem::replace(&mut before, now) == now && now < 100 << 20
        });
        liar.room(before + really);
        liar
    }

    fn mount(&self) {
        let (image, at) = (self.below.join("image"), &self.mount);
        ok("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
    }

    fn room(&self, bytes: u64) {
        ok("mount", &["-o", &format!("remount,size={bytes}"), self.below.to_str().unwrap()]);
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        for folder in [&self.mount, &self.below] {
            Command::new("umount").arg("-l").arg(folder).stderr(Stdio::null()).status().ok();
        }
    }
}

fn with_store(store: &Path) -> World {
    let world = World::new();
    private(store);
    let text = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, text.replace(world.store.to_str().unwrap(), store.to_str().unwrap()))
        .unwrap();
    world
}

#[test]
fn what_was_lost_on_its_way_to_the_disk_is_not_taken_out_of_memory() {
    // Given a store whose disk loses most of what is written to it,
    let liar = Liar::new(8 << 20);
    let store = liar.mount.join("store");
    let world = with_store(&store);
    for n in 0..30 {
        world.file(&format!("f{n}"), &format!("{n}").repeat(1 << 20)[..1 << 20]);
    }
    let failed = world.snapshot(&[]).expect(1);
    assert!(told(&failed).contains("did not reach its disk"), "{failed:?}");
    assert!(dates(&store).is_empty());
    // when the disk is well again, and what it lost is still in memory,
    liar.room(400 << 20);
    let next = world.snapshot(&[]).expect(0);
    // then it is sent again: what is published is what is on the disk.
    unmount(&liar.mount);
    liar.mount();
    let held = store.join(dates(&store).pop().unwrap()).join("docs");
    picture(&world.source).same_as(&picture(&held));
    world.act("verify", &[]).expect(0);
    drop(next);
}

/// The far end of the process that `stage` has left behind.
fn far_end() -> impl Fn(&World) -> u32 {
    |world| {
        let pid = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            (line.contains("agent") && line.contains(world.config.to_str()?)).then_some(id)
        });
        let agent = pid.expect("an agent");
        descendants(agent).into_iter().find(|d| d.1.contains("serve")).expect("a far end").0
    }
}

#[test]
fn after_one_failed_flush_nothing_of_the_run_is_published() {
    let world = World::new();
    world.file("a", "a");
    world.publish();
    world.file("b", "b");
    world.act("stage", &[]).expect(0);
    // The next flush fails, once; the kernel tells of an error only once, too.
    let far = far_end()(&world).to_string();
    let told_by = world.dir.join("strace");
    let mut strace = Command::new("strace")
        .args([
            "-f",
            "-o",
            told_by.to_str().unwrap(),
            "-e",
            "trace=syncfs",
            "-e",
            "inject=syncfs:error=EIO:when=1",
            "-p",
            &far,
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it is traced", || {
        std::fs::read_to_string(format!("/proc/{far}/status"))
            .unwrap()
            .lines()
            .any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"))
    });
    world.file("c", "c");
    let staged = world.act("stage", &[]).expect(1);
    assert!(told(&staged).contains("did not reach its disk"), "{staged:?}");
    let published = world.act("publish", &["--crash-consistent"]);
    assert_ne!(published.code, 0, "{published:?}");
    assert_eq!(world.dates().len(), 1);
    strace.kill().unwrap();
    strace.wait().unwrap();
    world.act("abort", &[]).expect(0);
    world.publish();
    world.newest_is_source();
}

#[test]
fn what_an_interrupted_run_left_is_compared_byte_by_byte() {
    // Given leftovers that have a size and a time, and other bytes, as after a power cut,
    // whose next run has no index,
    let world = World::new();
    world.profile("checksum = false", "");
    world.file("old", "old");
    world.publish();
    std::fs::remove_file(world.state.join("index-docs")).unwrap();
    world.file("a", "what it should be");
    world.file("b", "another one");
    let left = world.store.join(".incoming/docs");
    private(&left);
    for (name, text) in [("a", "what it should bX"), ("b", "another one")] {
        std::fs::write(left.join(name), text).unwrap();
        let from = world.source.join(name);
        ok("touch", &["-r", from.to_str().unwrap(), left.join(name).to_str().unwrap()]);
    }
    // What is younger is looked at twice, the second time by content.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    // when the next run uses them, though it was told to compare by size and time,
    let ran = world.snapshot(&[]).expect(0);
    assert!(warnings(&ran).contains(&"continues"), "{ran:?}");
    // then what is published is what is there.
    picture(&world.source).same_as(&picture(&folder(&ran).join("docs")));
}
