//! Two machines with one container: an S2 that was restored from a backup, and the old one, which still runs.

use testkit::Ran;

use crate::world::{World, elsewhere, warnings};

/// Refused with `code` and these words, and not a byte of the image is another.
#[track_caller]
fn refused(world: &World, code: i32, words: &str) -> Ran {
    let before = world.sh("sha256sum s3/c.img");
    let ran = world.attach().expect(code);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains(words), "{message}");
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("--accept-container"), "{:#}", ran.json);
    assert_eq!(world.sh("sha256sum s3/c.img"), before, "refused, and yet written to");
    world.nothing_is_up();
    ran
}

fn both(file_system: &str) -> (World, World) {
    let old = World::with(300, file_system);
    old.attach().expect(0);
    old.sh("echo one >run/container/f");
    old.detach().expect(0);
    let restored = old.twin();
    (old, restored)
}

fn each_order(file_system: &str) {
    let (old, restored) = both(file_system);
    for (first, second, strange) in [(&old, &restored, false), (&restored, &old, true)] {
        // In turn: whoever was not the last one is refused, can look, and takes it over only if told to.
        let taken = first.run("attach", ["--accept-container"]).expect(0);
        // Told from now on, so that whoever trusts what is inside looks at it.
        assert_eq!(taken.json["data"]["accepted_at"].is_string(), strange, "{:#}", taken.json);
        first.sh("date >run/container/g");
        assert!(first.path("s3/c.img.lease").exists());
        // At once.
        let busy = second.attach().expect(75);
        assert!(busy.stderr.contains("open for writing"), "{}", busy.stderr);
        second.nothing_is_up();
        first.detach().expect(0);
        assert!(!first.path("s3/c.img.lease").exists());
        refused(second, 78, "not as this machine left it");
        let looked = second.run("attach", ["--read-only"]).expect(0);
        assert_eq!(warnings(&looked), ["not-as-left"]);
        second.detach().expect(0);
        refused(second, 78, "not as this machine left it");
        // Being refused has changed nothing for the one that goes on.
        let again = first.attach().expect(0);
        assert_eq!(
            (warnings(&again), &again.json["data"]["accepted_at"]),
            (vec![], &taken.json["data"]["accepted_at"])
        );
        first.detach().expect(0);
    }
}

#[test]
fn of_two_machines_only_the_last_one_goes_on_ext4() {
    if elsewhere("two::of_two_machines_only_the_last_one_goes_on_ext4") {
        return;
    }
    each_order("ext4");
}

#[test]
fn of_two_machines_only_the_last_one_goes_on_btrfs() {
    if elsewhere("two::of_two_machines_only_the_last_one_goes_on_btrfs") {
        return;
    }
    each_order("btrfs");
}

/// One is cut off in the middle of its work, as by a power cut; the other one comes.
#[test]
fn what_one_was_cut_off_in_the_other_does_not_replay() {
    if elsewhere("two::what_one_was_cut_off_in_the_other_does_not_replay") {
        return;
    }
    for file_system in ["ext4", "btrfs"] {
        let (old, restored) = both(file_system);
        old.attach().expect(0);
        old.sh(
            "for n in $(seq 50); do echo $n >run/container/$n; done; sync run/container/50
             cp --sparse=always s3/c.img cut; cp -p s3/c.img.lease cut.lease; cp -p state/container.json record",
        );
        old.detach().expect(0);
        old.sh("mv cut s3/c.img; mv cut.lease s3/c.img.lease; mv record state/container.json");
        refused(&restored, 75, "open for writing");
        // A lease that S3 lost, or never had.
        old.sh("mv s3/c.img.lease aside");
        refused(&restored, 78, "wants to be replayed");
        old.sh("mv aside s3/c.img.lease");
        // Its own machine goes on.
        old.attach().expect(0);
        assert_eq!(old.sh("cat run/container/50"), "50");
        old.detach().expect(0);
        assert!(!old.path("s3/c.img.lease").exists());
        old.nothing_is_up();
        // And a cut-off machine whose container another one was told to take over does not go on there.
        old.attach().expect(0);
        old.sh("cp --sparse=always s3/c.img cut; cp -p s3/c.img.lease cut.lease; cp -p state/container.json record");
        old.detach().expect(0);
        old.sh("mv cut s3/c.img; mv cut.lease s3/c.img.lease; mv record state/container.json");
        let taken = restored.run("attach", ["--accept-container"]).expect(0);
        assert!(warnings(&taken).contains(&"lease-taken-over"), "{:#}", taken.json);
        restored.detach().expect(0);
        if file_system == "ext4" {
            refused(&old, 78, "not as this machine left it");
        }
    }
}

#[test]
fn a_lease_moves_on_and_its_loss_is_noticed() {
    if elsewhere("two::a_lease_moves_on_and_its_loss_is_noticed") {
        return;
    }
    let world = World::with(64, "ext4");
    assert_eq!(world.run("renew", [""; 0]).expect(0).json["changed"], false);
    world.attach().expect(0);
    // The state as a backup has it that was made in the middle of this.
    let copy = world.twin();
    let text = world.sh("cat s3/c.img.lease");
    assert!(text.contains("\"until\"") && !text.contains("key"), "{text}");
    assert_eq!(world.run("renew", [""; 0]).expect(0).json["changed"], true);
    assert_ne!(world.sh("cat s3/c.img.lease"), text);
    world.run("renew", [""; 0]).expect(0);
    let busy = copy.attach().expect(75);
    assert!(busy.stderr.contains("open for writing"), "{}", busy.stderr);
    // Somebody was told to take it over.
    world.sh(
        "sed -i 's/\"holder\":\"[0-9a-f]*/\"holder\":\"00000000000000000000000000000000/' s3/c.img.lease",
    );
    let lost = world.run("renew", [""; 0]).expect(78);
    assert!(lost.stderr.contains("taken over"), "{}", lost.stderr);
    let down = world.detach().expect(0);
    assert_eq!((warnings(&down), &down.json["data"]["clean"]), (vec!["lease-lost"], &false.into()));
    assert!(world.path("s3/c.img.lease").exists(), "it is the other one's");
    world.nothing_is_up();
}

/// Taken over, used and given back between two renewals: nothing but the lease that is gone tells of it.
#[test]
fn a_lease_that_is_gone_is_lost() {
    if elsewhere("two::a_lease_that_is_gone_is_lost") {
        return;
    }
    let world = World::with(64, "ext4");
    world.attach().expect(0);
    world.sh("mv s3/c.img.lease aside");
    let lost = world.run("renew", [""; 0]).expect(78);
    assert!(lost.stderr.contains("the lease is gone") && lost.json["data"]["lease_lost"] == true, "{lost:?}");
    assert!(!world.path("s3/c.img.lease").exists());
    let down = world.detach().expect(0);
    assert_eq!((warnings(&down), &down.json["data"]["clean"]), (vec!["lease-lost"], &false.into()));
    world.nothing_is_up();
    // If it was removed by mistake, this machine goes on.
    world.attach().expect(0);
    world.detach().expect(0);
    world.nothing_is_up();
}

/// S3 answers late, or its disk is full: renewals fail, one after the other. That is nobody else's lease for it.
#[test]
fn renewals_that_fail_do_not_make_the_lease_somebody_elses() {
    if elsewhere("two::renewals_that_fail_do_not_make_the_lease_somebody_elses") {
        return;
    }
    let world = World::with(64, "ext4");
    let stop = "mount --bind s3/c.img.lease s3/c.img.lease; mount -o remount,bind,ro s3/c.img.lease";
    world.attach().expect(0);
    world.sh(stop);
    for _ in 0..3 {
        let ran = world.run("renew", [""; 0]).expect(1);
        assert_ne!(ran.json["data"]["lease_lost"], true, "{:#}", ran.json);
    }
    world.sh("umount s3/c.img.lease");
    assert_eq!(world.run("renew", [""; 0]).expect(0).json["changed"], true);
    world.sh(stop);
    world.run("renew", [""; 0]).expect(1);
    world.run("renew", [""; 0]).expect(1);
    // Cut off, and its lease cannot be written by the next ones either: they go on, and say so.
    world
        .sh("cp --sparse=always s3/c.img cut; cp -p state/container.json record; cp -p s3/c.img.lease lease");
    world.detach().expect(0);
    world.sh(
        "umount s3/c.img.lease; mv cut s3/c.img; mv record state/container.json; mv lease s3/c.img.lease",
    );
    world.sh(stop);
    for _ in 0..3 {
        let up = world.attach().expect(0);
        assert!(warnings(&up).contains(&"no-lease"), "{:#}", up.json);
        world.detach().expect(0);
    }
    world.sh("umount s3/c.img.lease");
    let up = world.attach().expect(0);
    assert_eq!(warnings(&up), [""; 0]);
    world.detach().expect(0);
    assert!(!world.path("s3/c.img.lease").exists());
    world.nothing_is_up();
}

/// What cannot be read is somebody else's, which keeps nobody from looking.
#[test]
fn a_lease_that_cannot_be_opened_is_taken_over_like_any_other() {
    if elsewhere("two::a_lease_that_cannot_be_opened_is_taken_over_like_any_other") {
        return;
    }
    let world = World::with(64, "ext4");
    drop(std::os::unix::net::UnixListener::bind(world.path("s3/c.img.lease")).unwrap());
    assert_eq!(warnings(&world.run("attach", ["--read-only"]).expect(0)), ["lease-of-another"]);
    world.detach().expect(0);
    refused(&world, 75, "cannot be read");
    let up = world.run("attach", ["--accept-container"]).expect(0);
    assert_eq!(warnings(&up), ["lease-taken-over"]);
    world.detach().expect(0);
    world.nothing_is_up();
}
