//! What was moved at the source, or copied, is neither sent nor stored again; and what only looks like it is.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use testkit::Ran;

use crate::world::{World, first, folder, ok};

/// A file of so many bytes that no other has.
fn file(world: &World, path: &str, bytes: usize, seed: u64) {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .flatten()
    .take(bytes)
    .collect();
    let path = world.source.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn rename(world: &World, from: &str, to: &str) {
    let to = world.source.join(to);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(world.source.join(from), to).unwrap();
}

fn inode(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

/// A snapshot that holds what the source does, while all before stay what they were, down to the checksums.
#[track_caller]
fn next(world: &World) -> Ran {
    let history = world.history();
    let ran = world.snapshot(&["--allow-shrink"]).expect(0);
    world.newest_is_source();
    for (date, was) in history {
        was.same_as(&crate::picture::picture(&world.store.join(date)));
    }
    world.act("verify", &["--date", "all"]).expect(0);
    ran
}

#[track_caller]
fn count(ran: &Ran, key: &str) -> u64 {
    first(ran)[key].as_u64().unwrap_or_else(|| panic!("{key}: {}", first(ran)))
}

#[test]
fn a_folder_that_is_renamed_is_neither_sent_nor_stored_again() {
    let world = World::new();
    for n in 0..300 {
        file(&world, &format!("photos/{}/{n}", n % 7), 4096, n);
    }
    file(&world, "photos/film", 8 << 20, 1000);
    let before = folder(&next(&world));
    rename(&world, "photos", "albums/2026");
    let ran = next(&world);
    let after = folder(&ran);
    for path in ["film", "0/7", "6/6"] {
        let (old, new) = (before.join("docs/photos").join(path), after.join("docs/albums/2026").join(path));
        assert_eq!(inode(&old), inode(&new), "{path}");
    }
    assert_eq!((count(&ran, "moved_files"), count(&ran, "moved_linked_files")), (301, 301));
    assert!(count(&ran, "sent_bytes") < 100_000, "{}", first(&ran));
    assert_eq!(ran.json["data"]["hashed_files"], 0, "it is known what they hold");
    assert!(!world.store.join(".reuse").exists());
    // And back, as from a trashbin.
    rename(&world, "albums/2026", "photos");
    let ran = next(&world);
    assert_eq!(count(&ran, "moved_linked_files"), 301);
    assert_eq!(inode(&before.join("docs/photos/film")), inode(&folder(&ran).join("docs/photos/film")));
}

#[test]
fn other_attributes_make_a_copy_at_the_store_and_leave_history_as_it_was() {
    let world = World::new();
    for name in ["mode", "owner", "attribute", "acl", "same"] {
        file(&world, &format!("old/{name}"), 1 << 20, name.len() as u64);
    }
    let before = folder(&next(&world));
    rename(&world, "old", "new");
    let path = |name: &str| world.source.join("new").join(name);
    fs::set_permissions(path("mode"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(path("owner"), Some(33), Some(44)).unwrap();
    xattr::set(path("attribute"), "user.colour", b"blue").unwrap();
    ok("setfacl", &["-m", "u:33:r", path("acl").to_str().unwrap()]);
    let ran = next(&world);
    assert_eq!((count(&ran, "moved_files"), count(&ran, "moved_linked_files")), (5, 1));
    assert!(count(&ran, "sent_bytes") < 100_000, "{}", first(&ran));
    let same = |name: &str| {
        inode(&before.join("docs/old").join(name)) == inode(&folder(&ran).join("docs/new").join(name))
    };
    assert!(same("same") && !same("mode") && !same("owner") && !same("attribute") && !same("acl"));
}
