//! Images that were made by hand, with the original instructions.

use crate::world::{World, elsewhere, warnings};

const PBKDF: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file key -q";

fn make_by_hand(world: &World, options: &str) {
    world.sh(&format!(
        "truncate -s 64M s3/c.img; cryptsetup luksFormat {PBKDF} {options} s3/c.img
         cryptsetup open --key-file key s3/c.img by-hand-{0}; mkfs.ext4 -q /dev/mapper/by-hand-{0}
         mkdir m; mount /dev/mapper/by-hand-{0} m; echo mine >m/f; umount m; cryptsetup close by-hand-{0}",
        std::process::id()
    ));
}

fn taken_over(options: &str, version: u32, cipher: &str) {
    let world = World::new();
    make_by_hand(&world, options);
    world.attach().expect(78);
    let ran = world.run("adopt", [""; 0]).expect(0);
    let data = &ran.json["data"];
    assert_eq!((&ran.json["changed"], warnings(&ran)), (&true.into(), vec!["header-believed"]));
    assert_eq!((&data["luks_version"], &data["cipher"]), (&version.into(), &cipher.into()));
    assert_eq!(data["key_slots"], serde_json::json!([0]));
    assert_eq!(world.run("adopt", [""; 0]).expect(0).json["changed"], false);
    let up = world.attach().expect(0);
    assert_eq!((&up.json["data"]["file_system"], warnings(&up)), (&"ext4".into(), vec![]));
    assert_eq!(world.sh("cat run/container/f"), "mine");
    world.sh("echo more >run/container/g");
    world.detach().expect(0);
    // Still an ordinary LUKS image for everybody else, and for our copy of the header alone.
    world.sh("cryptsetup open --test-passphrase --key-file key s3/c.img");
    if version == 1 {
        // The first sector of the image is not needed.
        world.sh("dd if=/dev/zero of=s3/c.img bs=512 count=1 conv=notrunc 2>/dev/null");
        assert_eq!(warnings(&world.attach().expect(0)), ["header-differs"]);
        assert_eq!(world.sh("cat run/container/g"), "more");
        world.detach().expect(0);
    }
    world.nothing_is_up();
}

#[test]
fn luks1() {
    if elsewhere("adopt::luks1") {
        return;
    }
    taken_over("--type luks1", 1, "aes-xts-plain64");
}

#[test]
fn luks1_with_an_older_cipher() {
    if elsewhere("adopt::luks1_with_an_older_cipher") {
        return;
    }
    taken_over("--type luks1 --cipher aes-cbc-essiv:sha256 --key-size 256", 1, "aes-cbc-essiv:sha256");
}

#[test]
fn luks2() {
    if elsewhere("adopt::luks2") {
        return;
    }
    taken_over("--type luks2", 2, "aes-xts-plain64");
}

#[test]
fn what_is_no_encryption_or_another_container_is_refused() {
    if elsewhere("adopt::what_is_no_encryption_or_another_container_is_refused") {
        return;
    }
    let world = World::new();
    for cipher in ["--type luks1 --cipher cipher_null-ecb", "--type luks1 --cipher aes-ecb --key-size 256"] {
        world.sh(&format!("truncate -s 64M s3/c.img; cryptsetup luksFormat {PBKDF} {cipher} s3/c.img"));
        world.run("adopt", [""; 0]).expect(78);
        assert!(!world.header().exists() && !world.path("state/container.json").exists());
    }
    world.sh("head -c 20M /dev/urandom >s3/c.img");
    world.run("adopt", [""; 0]).expect(78);
    // The wrong key.
    world.sh(&format!(
        "rm s3/c.img; truncate -s 64M s3/c.img; cryptsetup luksFormat {PBKDF} s3/c.img; mv key right"
    ));
    world.key("key");
    world.run("adopt", [""; 0]).expect(78);
    assert!(!world.header().exists());
    world.sh("mv right key");
    world.run("adopt", [""; 0]).expect(0);
    // Another container under the same name.
    world.sh(&format!("cp state/container.header was; cryptsetup luksFormat {PBKDF} s3/c.img"));
    let refused = world.run("adopt", [""; 0]).expect(78);
    assert!(refused.stderr.contains("another container"), "{}", refused.stderr);
    world.sh("cmp was state/container.header");
    assert_eq!(world.sh("ls -A state"), "container.header\ncontainer.json\ncontainer.lock");
    // A container without a file system is told, and nothing stays up.
    world.sh("rm state/container.*");
    world.run("adopt", [""; 0]).expect(0);
    let empty = world.attach().expect(78);
    assert!(empty.stderr.contains("no file system"), "{}", empty.stderr);
    world.nothing_is_up();
}
