//! The first copy through no link at all: S3's disk is plugged into S2, filled, and carried away.

use testkit::guest::{Options, run_me};
use testkit::hosts::Setting;

use crate::world::{World, ok};

#[test]
fn a_disk_is_filled_here_and_carried_to_s3() {
    if run_me("carry::a_disk_is_filled_here_and_carried_to_s3", Options { memory: 3072, seconds: 1200 }) {
        return;
    }
    let world = World::new(Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, ..Setting::default() });
    let disk = world.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let image = disk.join("container.img");
    let text = format!(
        "state_dir = \"{dir}/state\"\n[store]\npath = \"{dir}/store\"\n[offsite]\nlayout = \"hardlink\"\nreserve_bytes = 1000000\n\
         [offsite.luks]\nimage = \"{}\"\nkey_file = \"{}\"\n",
        image.display(),
        world.key().display(),
        dir = world.dir.path().display(),
    );
    std::fs::write(world.config(), text).unwrap();
    let options = ["--size", "100M", "--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000"];
    world.act("luks-mount", "create", &options).expect(0);
    let first = world.snapshot(10, 100_000);
    world.push().expect(0);
    world.nothing_is_up();

    ok("mv", &[image.to_str().unwrap(), world.image().to_str().unwrap()]);
    let owner = format!("{0}:{0}", world.hosts.s3.user);
    ok("chown", &[&owner, world.image().to_str().unwrap()]);
    world.profile("");
    assert_eq!(world.push().expect(0).json["changed"], false);
    let second = world.snapshot(3, 1000);
    let pushed = world.push().expect(0);
    assert_eq!(pushed.json["data"]["push"]["base_date"], *first);
    world.container_holds(&[&first, &second]);
}
