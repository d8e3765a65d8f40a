//! Somebody at the far end rewrites the image's header: the container must not care.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::world::{World, elsewhere, warnings};

const MARKER: &str = "MARKER-that-must-never-be-seen-outside";

/// With the image and without the key: makes both copies of the LUKS2 header say that nothing is encrypted.
fn switch_encryption_off(image: &Path) {
    testkit::luks::rewrite_header(image, "\"segments\"", "aes-xts-plain64", "cipher_null-ecb");
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

/// Whatever the header says: what the kernel really does is looked at before anything goes through it.
#[test]
fn a_mapping_that_does_not_encrypt_is_not_mounted() {
    if elsewhere("attack::a_mapping_that_does_not_encrypt_is_not_mounted") {
        return;
    }
    let world = World::with(64, "ext4");
    let fake = std::path::Path::new("/usr/local/sbin/dmsetup");
    for table in ["0 122880 crypt cipher_null-ecb - 0 7:0 4096", "0 122880 linear 7:0 4096"] {
        let text = format!(
            "#!/bin/sh\n[ \"$1\" != table ] || {{ echo '{table}'; exit; }}\nexec /usr/sbin/dmsetup \"$@\"\n"
        );
        testkit::script(fake, &text);
        let refused = world.attach();
        assert!([1, 78].contains(&refused.code), "{table}: {:#}", refused.json);
        world.nothing_is_up();
    }
    std::fs::remove_file(fake).unwrap();
    world.attach().expect(0);
    world.detach().expect(0);
}

/// No hint leads to a file of somebody else's getting our header, nor to our own header being given up.
#[test]
fn another_file_in_its_place_is_told_and_not_touched() {
    if elsewhere("attack::another_file_in_its_place_is_told_and_not_touched") {
        return;
    }
    let (world, other) = (World::with(64, "ext4"), World::with(64, "ext4"));
    let hint = |ran: &testkit::Ran| ran.json["error"]["hint"].as_str().unwrap_or_default().to_owned();
    let key = world.path("key");
    let add_key = |world: &World| world.run("add-key", ["--new-key-file".as_ref(), key.as_os_str()]);

    // S3's disk is not mounted.
    world.sh("mv s3/c.img aside");
    for ran in [world.attach(), world.run("attach", ["--read-only"]), add_key(&world)] {
        let ran = ran.expect(78);
        let said = hint(&ran);
        assert!(said.contains("disk mounted at") && !said.contains("luks-mount create"), "{said}");
    }
    let said = hint(&world.create(&["--size", "64M"]).expect(78));
    assert!(said.contains("Then S3's disk is not mounted") && said.contains("given up for good"), "{said}");

    // Another machine's container, and a file that is none at all.
    for (make, whole) in [
        (format!("cp --sparse=always {} s3/c.img", other.image().display()), false),
        ("truncate -s 64M s3/c.img; echo letters | dd of=s3/c.img conv=notrunc 2>/dev/null".to_owned(), true),
    ] {
        world.sh(&make);
        let before = world.sh("sha256sum s3/c.img");
        for args in [&[][..], &["--read-only"]] {
            let ran = world.run("attach", args).expect(1);
            let warned = ran.json["warnings"][0]["message"].as_str().unwrap();
            assert_eq!(warnings(&ran), ["header-differs"]);
            assert!(
                warned.contains("is the right disk mounted") && warned.contains("add-key") == whole,
                "{warned}"
            );
            assert!(hint(&ran).contains("this may be another file"), "{}", hint(&ran));
        }
        if !whole {
            let said = hint(&add_key(&world).expect(78));
            assert!(said.contains("is the right disk mounted"), "{said}");
        }
        assert_eq!(world.sh("sha256sum s3/c.img"), before);
        world.nothing_is_up();
    }
    world.sh("mv aside s3/c.img");
    assert_eq!(warnings(&world.attach().expect(0)), [""; 0]);
    world.detach().expect(0);
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

/// A folder that an account of its own may write to, with programs of the names we run, which would leave a trace.
fn trap(world: &World) -> PathBuf {
    world.sh("mkdir -p evil; chmod 1777 evil; cd evil
        for p in cryptsetup losetup mount umount stat sync blkid dumpe2fs e2fsck mkfs.ext4 luks-mount sshfs; do
            printf '#!/bin/sh\ntouch %s/hit\n' $PWD >$p; chmod 755 $p
        done; ln -s /etc home.toml; mkdir home; chown -R nobody: .; ls -A | sort >../planted");
    world.path("evil")
}

#[test]
fn whatever_its_caller_left_it_and_wherever_it_stands() {
    if elsewhere("attack::whatever_its_caller_left_it_and_wherever_it_stands") {
        return;
    }
    let world = World::with(64, "ext4");
    let evil = trap(&world);
    let config = world.sh("ls $PWD/*.toml");
    let command = |action: &str| {
        let mut command = Command::new(testkit::bin("luks-mount"));
        command.args([action, "--config", &config]);
        command
    };
    // What a sudo rule of fixed words leaves to its caller: environment, folder, limits, descriptors, signals.
    for caller in testkit::ODD_CALLERS {
        for action in ["attach", "status", "detach"] {
            let ran = testkit::run(&mut testkit::oddly(&command(action), caller));
            assert_eq!(ran.code, 0, "a caller that {}: {action}: {}\n{}", caller.0, ran.stderr, ran.json);
        }
        world.nothing_is_up();
    }
    for action in ["attach", "status", "detach"] {
        let mut here = command(action);
        here.current_dir(&evil).env("PATH", &evil).env("TMPDIR", &evil).env("HOME", &evil);
        here.env("LD_LIBRARY_PATH", &evil)
            .env("LD_BIND_NOW", "1")
            .env("IFS", "/")
            .env("XDG_RUNTIME_DIR", &evil);
        here.env("DM_CRYPT_KEY", "x")
            .env("LOOPDEV_DEBUG", "all")
            .env("LIBMOUNT_FSTAB", evil.join("home.toml"));
        testkit::run(&mut here).expect(0);
    }
    world.sh("cd evil; ls -A | sort | cmp - ../planted");
    // All standard streams closed: a file that gets one of their numbers must not be written to.
    for action in ["attach", "detach"] {
        let mut closed = testkit::oddly(&command(action), ("", "umask 0; exec <&- >&- 2>&-;", ""));
        assert_eq!(closed.stdin(Stdio::null()).status().unwrap().code(), Some(0), "{action}");
    }
    world.nothing_is_up();
    // Nothing of it is for others to read or write, with no umask either.
    let mut unmasked = testkit::oddly(&command("attach"), ("", "umask 0;", ""));
    testkit::run(&mut unmasked).expect(0);
    assert_eq!(world.sh("find state run -maxdepth 1 ! -type l -perm /077 ! -path run/container"), "");
    world.sh("! setpriv --reuid=65534 --regid=65534 --clear-groups ls run/container 2>/dev/null");
    world.detach().expect(0);
    // Signals in a shower, from the first moment on: it ends with one of them, and nothing is up.
    for wait in ["0", "0.05", "0.2", "0.5", "1"] {
        let child = command("attach").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        world.sh(&format!(
            "sleep {wait}; for s in HUP INT TERM USR1 PIPE; do kill -$s {} 2>/dev/null || :; done",
            child.id()
        ));
        child.wait_with_output().unwrap();
        world.detach().expect(0);
        world.nothing_is_up();
    }
    // The key and the record have suffered nothing.
    world.attach().expect(0);
    world.detach().expect(0);
}

#[test]
fn an_image_in_a_folder_of_somebody_else_leads_nowhere() {
    if elsewhere("attack::an_image_in_a_folder_of_somebody_else_leads_nowhere") {
        return;
    }
    let world = World::with(64, "ext4");
    world.sh("chmod 755 .; chown -R nobody: s3; head -c 64M /dev/urandom >victim; sha256sum victim >sum; mv s3/c.img real");
    let key = world.path("key").display().to_string();
    let tries: [&[&str]; 3] = [&["attach"], &["grow", "--size", "80M"], &["add-key", "--new-key-file", &key]];
    // A link, a second name, a pipe, a folder, one of our disks.
    for plant in [
        "ln -s ../victim s3/c.img",
        "ln victim s3/c.img",
        "mkfifo s3/c.img",
        "mkdir s3/c.img",
        "mknod s3/c.img b 7 0",
    ] {
        world.sh(plant);
        for words in tries {
            world.run(words[0], &words[1..]).expect(78);
        }
        world.sh("rm -rf s3/c.img; sha256sum -c sum >/dev/null");
        world.nothing_is_up();
    }
    // A race: image, link and second name take turns while we look.
    let swap = world.sh(
        "cat >swap <<'E'
while :; do
    ln -sfn ../victim s3/c.img; ln -f real s3/.c; mv -f s3/.c s3/c.img; rm -f s3/c.img; ln victim s3/c.img; rm -f s3/c.img
done
E
sh swap >/dev/null 2>&1 & echo $!",
    );
    for _ in 0..8 {
        for words in tries {
            let ran = world.run(words[0], &words[1..]);
            assert!([1, 78].contains(&ran.code), "{words:?}: {} {}", ran.code, ran.stderr);
            world.sh("losetup -nO BACK-FILE | grep -F victim && exit 1 || :");
        }
        world.detach().expect(0);
    }
    world.sh(&format!(
        "kill -KILL {swap}; sha256sum -c sum >/dev/null; rm -rf s3/c.img s3/.c; mv real s3/c.img"
    ));
    world.attach().expect(0);
    world.detach().expect(0);
    world.nothing_is_up();
}

#[test]
fn what_is_planted_where_it_keeps_its_records() {
    let world = World::new();
    world.sh("mkdir -p -m 700 state run; echo secret >victim; chmod 600 victim");
    // Folders that others can write to are no place for records, nor is a link to one.
    for (spoil, mend) in [
        ("chown nobody state", "chown root state"),
        ("chmod 770 run", "chmod 700 run"),
        ("mv state st; ln -s st state", "rm state; mv st state"),
    ] {
        world.sh(spoil);
        for action in ["status", "attach", "detach"] {
            world.run(action, [""; 0]).expect(77);
        }
        world.sh(mend);
    }
    // Within them, whoever got in before the mode was set right: nothing is followed, written through or waited for.
    for file in
        ["state/container.json", "state/container.lock", "run/container.loop.json", "state/container.header"]
    {
        for plant in ["ln -s ../victim", "mkfifo", "mkdir", "ln -s /dev/zero"] {
            world.sh(&format!("rm -rf {file}; {plant} {file}"));
            for action in ["status", "attach", "detach"] {
                let ran = world.run(action, [""; 0]);
                assert!(
                    [0, 1, 69, 75, 77, 78].contains(&ran.code),
                    "{plant} {file} {action}: {}",
                    ran.stderr
                );
                assert!(action != "attach" || ran.code != 0);
            }
            world.sh(&format!("rm -rf {file}; grep -qx secret victim; [ $(stat -c %a victim) = 600 ]"));
        }
    }
    world.nothing_is_up();
}

#[test]
fn what_it_does_for_itself_is_no_way_in_for_others() {
    let world = World::new();
    world.sh("chmod 755 .; echo secret >s3/c.img; chmod 600 s3/c.img");
    // Nobody's rights grow by calling the hidden action: it does what the caller may.
    let text = format!(
        "d=$(mktemp -d); chmod 755 $d; cp {} $d/x
         for w in look size put-header get-header loop sync remove make; do
             setpriv --reuid=65534 --regid=65534 --clear-groups $d/x touch $w --image $PWD/s3/c.img --header /etc/hostname --bytes 9 &&
                 exit 1
         done >out 2>&1
         rm -r $d; grep -qx secret s3/c.img; ! grep -q secret out",
        testkit::bin("luks-mount").display()
    );
    world.sh(&text);
    world.nothing_is_up();
}
