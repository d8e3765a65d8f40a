//! How much goes through the connection: limited as asked, and counted as it was.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::world::{World, eventually, told, warnings};

const MIB: u64 = 1 << 20;

fn noise(bytes: u64) -> Vec<u8> {
    let mut noise = Vec::new();
    std::fs::File::open("/dev/urandom").unwrap().take(bytes).read_to_end(&mut noise).unwrap();
    noise
}

/// Writes and makes durable, and says how long it took.
fn write(world: &World, bytes: &[u8]) -> Duration {
    let begin = Instant::now();
    let mut file = std::fs::File::create(world.near().join("f")).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    begin.elapsed()
}

#[test]
fn what_is_sent_is_counted_also_after_the_end() {
    let world = World::new();
    world.mount(&[]);
    write(&world, &noise(3 * MIB));
    let sent = || world.run("status", &[]).expect(0).json["data"]["sent_bytes"].as_u64().unwrap();
    eventually("the count has caught up", || sent() >= 3 * MIB);
    let ran = world.run("unmount", &[]).expect(0);
    let (sent, received) = (&ran.json["data"]["sent_bytes"], &ran.json["data"]["received_bytes"]);
    let (sent, received) = (sent.as_u64().unwrap(), received.as_u64().unwrap());
    assert!((3 * MIB..4 * MIB).contains(&sent), "sent {sent}");
    assert!((1000..MIB).contains(&received), "received {received}");

    // Each mount begins at nothing.
    world.mount(&[]);
    let back = std::fs::read(world.near().join("f")).unwrap();
    assert_eq!(back.len() as u64, 3 * MIB);
    let ran = world.run("unmount", &[]).expect(0);
    assert!(ran.json["data"]["sent_bytes"].as_u64().unwrap() < MIB);
    assert!(ran.json["data"]["received_bytes"].as_u64().unwrap() >= 3 * MIB);
}

/// sshfs makes a further connection when a file is opened while others are: long after the tool that mounted has ended.
#[test]
fn several_connections_are_counted_together_and_made_when_they_are_needed() {
    let world = World::new();
    world.mount(&["--options", "max_conns=3"]);
    let relays = || world.processes().iter().filter(|p| p.1 == "sshfs-mount").count();
    // That of the question what S3's server can do ends a moment after its answer.
    eventually("one connection", || relays() == 1);
    let mut files: Vec<_> =
        (0..6).map(|n| std::fs::File::create(world.near().join(format!("f{n}"))).unwrap()).collect();
    assert_eq!(relays(), 3);
    for file in &mut files {
        file.write_all(&noise(MIB / 2)).unwrap();
        file.sync_all().unwrap();
    }
    drop(files);
    let ran = world.run("unmount", &["--options", "max_conns=3"]).expect(0);
    let sent = ran.json["data"]["sent_bytes"].as_u64().unwrap();
    assert!((3 * MIB..4 * MIB).contains(&sent), "sent {sent}");
    world.is_clean();
}

#[test]
fn a_limit_limits_and_a_slow_mount_is_not_a_hung_one() {
    let world = World::new();
    let bytes = noise(MIB);
    world.mount(&[]);
    let free = write(&world, &bytes);
    world.run("unmount", &[]).expect(0);

    let ran = world.run("mount", &["--bwlimit", "100k"]).expect(0);
    assert_eq!(ran.json["data"]["bwlimit_bytes"], 102_400);
    let (limited, slow) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&world, &bytes));
        std::thread::sleep(Duration::from_secs(1));
        let slow = world.run("status", &[]).expect(0);
        (writer.join().unwrap(), slow)
    });
    // 1 MiB at 100 KiB a second takes 10.24 s.
    assert!((Duration::from_secs(9)..Duration::from_secs(30)).contains(&limited), "limited: {limited:?}");
    assert!(limited > free * 3, "limited {limited:?}, free {free:?}");
    assert_eq!(slow.json["data"]["state"], "healthy", "{:?}", warnings(&slow));

    let again = world.run("mount", &["--bwlimit", "200k"]).expect(0);
    assert_eq!(warnings(&again), ["bwlimit-differs"]);
    assert_eq!(again.json["data"]["bwlimit_bytes"], 102_400);
    world.run("unmount", &[]).expect(0);
    world.is_clean();
}

#[test]
fn with_a_jump_host_nothing_is_counted() {
    let world = World::new();
    // No such jump host: what matters is that ssh is told to use it, and that nobody claims a count.
    let ran = world.run("mount", &["--options", "ProxyJump=no-such-host.invalid"]).expect(69);
    let args = ran.json["error"]["command"]["args"].to_string();
    assert!(args.contains("ProxyJump=no-such-host.invalid") && !args.contains("ProxyCommand"), "{args}");
    assert!(ran.json["data"]["sent_bytes"].is_null(), "{}", told(&ran));
    world.is_clean();
}
