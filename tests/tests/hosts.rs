//! Three hosts on this machine, and the slow link between two of them: `tests/lab/hosts`.
#![expect(clippy::disallowed_methods, reason = "tests start what they test by hand")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::guest::{self, Options};
use testkit::hosts::{Host, Hosts, Setting};

/// Sends this many bytes by ssh and says how long it took.
fn send(from: &Host, to: &Host, bytes: usize) -> Duration {
    let begun = Instant::now();
    let mut ssh = from.ssh(to);
    let mut child =
        ssh.arg("wc -c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ssh starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(&vec![7; bytes]).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), bytes.to_string(), "{output:?}");
    begun.elapsed()
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").expect("/proc")
}

#[test]
fn the_slow_link_is_slow_and_its_bytes_are_counted() {
    let hosts = Hosts::start(Setting { up_kbit: 4000, down_kbit: 4000, ..Setting::default() });
    assert!(["netem", "tbf"].contains(&hosts.link.as_str()), "{}", hosts.link);
    assert_eq!(hosts.bytes(), hosts.bytes(), "nothing talks by itself");
    send(&hosts.s1, &hosts.s2, 1_000_000);
    let before = hosts.bytes();
    assert_eq!((before.sent, before.received), (0, 0), "S1 to S2 goes another way");

    // 500 kB/s, less the 200 ms that may be on their way and what the counters see of headers.
    let took = send(&hosts.s2, &hosts.s3, 1_000_000);
    assert!(took > Duration::from_millis(1500), "{took:?}");
    let after = hosts.bytes();
    assert!((1_000_000..1_300_000).contains(&after.sent), "{after:?}");
    assert!(after.received < 200_000, "{after:?}");
    assert!(hosts.s3.log.metadata().expect("its log").len() > 0);
}

#[test]
fn a_cut_link_is_silent_until_it_is_mended() {
    let hosts = Hosts::start(Setting { up_kbit: 0, down_kbit: 0, delay_ms: 0, ..Setting::default() });
    assert_eq!(hosts.link, "none");
    send(&hosts.s2, &hosts.s3, 1000);
    hosts.cut();
    for (from, to) in [(&hosts.s2, &hosts.s3), (&hosts.s3, &hosts.s2)] {
        let address = if to.address == hosts.s2.address { &hosts.s2_far } else { &to.address };
        let output = from
            .command("timeout")
            .args(["1", "bash", "-c", &format!("exec 3<>/dev/tcp/{address}/22")])
            .output()
            .expect("timeout starts");
        // No answer at all, not an error.
        assert_eq!(output.status.code(), Some(124), "{output:?}");
    }
    send(&hosts.s1, &hosts.s2, 1000);
    hosts.mend();
    send(&hosts.s2, &hosts.s3, 1000);
}

#[test]
fn what_runs_there_ends_with_the_hosts_and_nothing_stays() {
    let hosts = Hosts::start(Setting::default());
    let dir = hosts.s1.netns.parent().expect("its folder").to_owned();
    // Deaf to a polite signal.
    let mut stubborn = hosts
        .s2
        .command("sh")
        .args(["-c", "trap '' TERM; while :; do sleep 1; done"])
        .spawn()
        .expect("sh starts");
    assert!(mounts().contains(&*dir.to_string_lossy()));
    drop(hosts);
    assert!(stubborn.try_wait().expect("our child").is_some(), "it still runs");
    assert!(!dir.exists());
    assert!(!mounts().contains(&*dir.to_string_lossy()));
}

#[test]
fn the_end_of_a_killed_test_is_the_end_of_its_hosts() {
    const NAME: &str = "the_end_of_a_killed_test_is_the_end_of_its_hosts";
    if let Some(file) = std::env::var_os("NCB_TEST_HOSTS_FILE").map(PathBuf::from) {
        let hosts = Hosts::start(Setting::default());
        let ready = file.with_extension("new");
        std::fs::write(&ready, hosts.s1.netns.to_string_lossy().as_bytes()).expect("it is writable");
        std::fs::rename(&ready, &file).expect("it can be renamed");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let dir = testkit::scratch();
    let file = dir.path().join("netns");
    let mut child = Command::new(std::env::current_exe().expect("our path"))
        .args(["--exact", NAME])
        .env("NCB_TEST_HOSTS_FILE", &file)
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    wait(Duration::from_secs(30), || file.exists());
    let netns = std::fs::read_to_string(&file).expect("it wrote it");
    child.kill().expect("it is there");
    child.wait().expect("it ends");
    wait(Duration::from_secs(20), || !Path::new(&netns).exists() && !mounts().contains(&netns));
}

#[test]
fn accounts_and_forced_commands_are_per_host() {
    let hosts = Hosts::start(Setting { users: ["root", "nobody", "root"], ..Setting::default() });
    assert_eq!(hosts.s2.user, "nobody");
    hosts.s3.set_key_options("command=\"echo forced\",restrict");
    let output = hosts.s2.ssh(&hosts.s3).arg("id").stdin(Stdio::null()).output().expect("ssh starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "forced\n", "{output:?}");
    // S3's key opens nothing elsewhere.
    let output = hosts
        .s1
        .ssh(&Host { identity: hosts.s3.identity.clone(), ..hosts.s2.clone() })
        .arg("true")
        .stdin(Stdio::null())
        .output()
        .expect("ssh starts");
    assert_eq!(output.status.code(), Some(255), "{output:?}");
}

#[test]
fn in_the_guest_the_link_has_a_delay_too() {
    if guest::run_me_there(
        "in_the_guest_the_link_has_a_delay_too",
        Options { memory: 512, ..Options::default() },
    ) {
        return;
    }
    let hosts = Hosts::start(Setting { delay_ms: 100, ..Setting::default() });
    assert_eq!(hosts.link, "netem");
    let begun = Instant::now();
    let output = hosts
        .s2
        .command("bash")
        .args([
            "-c",
            &format!("exec 3<>/dev/tcp/{}/22 && read -r line <&3 && echo \"$line\"", hosts.s3.address),
        ])
        .output()
        .expect("bash starts");
    assert!(output.status.success() && output.stdout.starts_with(b"SSH-2.0"), "{output:?}");
    assert!(begun.elapsed() > Duration::from_millis(200), "{:?}", begun.elapsed());
    send(&hosts.s2, &hosts.s3, 100_000);
    hosts.cut();
    hosts.mend();
    send(&hosts.s2, &hosts.s3, 1000);
}

#[track_caller]
fn wait(limit: Duration, mut until: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !until() {
        assert!(begun.elapsed() < limit, "not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
