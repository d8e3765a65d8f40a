//! Somebody at the far end rewrites the image's header: the container must not care.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::world::{World, elsewhere, warnings};

const MARKER: &str = "MARKER-that-must-never-be-seen-outside";

/// With the image and without the key: makes both copies of the LUKS2 header say that nothing is encrypted.
fn switch_encryption_off(image: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let mut first = vec![0; 4096];
    file.read_exact_at(&mut first, 0).unwrap();
    let size = u64::from_be_bytes(first[8..16].try_into().unwrap());
    for at in [0, size] {
        let mut header = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut header, at).unwrap();
        let json =
            String::from_utf8(header[4096..].iter().copied().take_while(|b| *b != 0).collect()).unwrap();
        let segments = json.find("\"segments\"").unwrap();
        let changed = json[segments..].replacen("aes-xts-plain64", "cipher_null-ecb", 1);
        assert_ne!(changed, json[segments..]);
        let changed = format!("{}{changed}", &json[..segments]);
        header[4096..].fill(0);
        header[4096..4096 + changed.len()].copy_from_slice(changed.as_bytes());
        header[448..512].fill(0);
        let sum = sha256(&header);
        header[448..480].copy_from_slice(&sum);
        file.write_all_at(&header, at).unwrap();
    }
    file.sync_all().unwrap();
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    (0..32)
        .map(|n| u8::from_str_radix(std::str::from_utf8(&out[2 * n..2 * n + 2]).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn a_header_that_says_no_encryption_changes_nothing() {
    if elsewhere("attack::a_header_that_says_no_encryption_changes_nothing") {
        return;
    }
    let world = World::with(64, "ext4");
    world.attach().expect(0);
    world.sh("echo before >run/container/old");
    world.detach().expect(0);
    switch_encryption_off(&world.image());

    // The attack is real: opened by its own header, a copy of the image takes plain text.
    world.sh(&format!(
        "cp s3/c.img copy; cryptsetup open --key-file key copy evil-{0}
         echo {MARKER} | dd of=/dev/mapper/evil-{0} bs=4096 seek=1000 conv=sync,fsync 2>/dev/null
         cryptsetup close evil-{0}; grep -qaF {MARKER} copy; rm copy",
        std::process::id()
    ));

    let up = world.attach().expect(0);
    assert_eq!(warnings(&up), ["header-differs"]);
    assert_eq!(up.json["data"]["cipher"], "aes-xts-plain64");
    assert!(world.sh(&format!("dmsetup table {}", world.mapping())).contains(" crypt aes-xts-plain64 "));
    world.sh(&format!(
        "grep -q before run/container/old; for n in $(seq 1000); do echo {MARKER}; done >run/container/new"
    ));
    world.detach().expect(0);
    assert_eq!(world.occurs(MARKER), 0);

    world.attach().expect(0);
    assert_eq!(world.sh(&format!("grep -c {MARKER} run/container/new")), "1000");
    world.detach().expect(0);
    world.nothing_is_up();

    // It can be put right, and then nothing is said any more.
    let key = world.path("key");
    let put = world.run("add-key", ["--new-key-file".as_ref(), key.as_os_str()]).expect(0);
    assert_eq!(put.json["changed"], true);
    assert_eq!(warnings(&world.attach().expect(0)), Vec::<&str>::new());
    world.detach().expect(0);

    // An adopted container is not adopted anew either, and one with such a header is not adopted at all.
    switch_encryption_off(&world.image());
    world.run("adopt", [""; 0]).expect(78);
    world.sh("rm state/container.header state/container.json");
    let refused = world.run("adopt", [""; 0]).expect(78);
    assert!(refused.stderr.contains("cipher_null-ecb"), "{}", refused.stderr);
    assert!(!world.header().exists());
    world.nothing_is_up();
}

#[test]
fn our_own_header_is_not_believed_blindly() {
    if elsewhere("attack::our_own_header_is_not_believed_blindly") {
        return;
    }
    let world = World::with(64, "ext4");
    switch_encryption_off(&world.header());
    let refused = world.attach().expect(78);
    assert!(refused.stderr.contains("cipher_null-ecb"), "{}", refused.stderr);
    world.nothing_is_up();
}

#[test]
fn an_image_that_became_a_link_is_refused() {
    if elsewhere("attack::an_image_that_became_a_link_is_refused") {
        return;
    }
    let world = World::with(64, "ext4");
    world.sh("mv s3/c.img victim; ln -s ../victim s3/c.img; sha256sum victim >sum");
    world.attach().expect(78);
    world.run("grow", ["--size", "80M"]).expect(78);
    let key = world.path("key");
    world.run("add-key", ["--new-key-file".as_ref(), key.as_os_str()]).expect(78);
    world.sh("sha256sum -c sum");
    world.nothing_is_up();
}
