//! The Debian package, under systemd in a guest: what an upgrade leaves alone, and what a removal and a purge take away.
//! (What it holds: tests/lab/check-package; how it is used: tests/lab/try-package.)
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::path::Path;
use std::process::{Command, Stdio};

use testkit::guest::{Options, boot, in_guest};
use testkit::{lab, scratch};

const TIMERS: [&str; 2] = ["nc-backup@home.timer", "nc-backup-offsite@home.timer"];
const RUN: &str = "nc-backup@home.service";

/// Runs it to its end, which must be a good one; what it printed, both ways.
#[track_caller]
fn sh(script: &str) -> String {
    println!("{script}");
    let mut shell = Command::new("sh");
    shell.args(["-euc", &format!("{{ {script}\n}} 2>&1")]).stdin(Stdio::null());
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{script}\n{}: {said}", output.status);
    said
}

/// Two versions of it, with stand-ins for the tools, which are not started here.
fn packages(dir: &Path) {
    for sub in ["tools", "pages/man/man1"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    for tool in ["nc-maint", "pg-snap", "link-sync", "sshfs-mount", "luks-mount", "offsite-push"] {
        std::fs::copy("/bin/true", dir.join("tools").join(tool)).unwrap();
    }
    std::fs::write(dir.join("pages/man/man1/nc-backup.1"), ".TH NC-BACKUP 1\n").unwrap();
    for version in ["1", "2"] {
        let mut package = Command::new(lab("package"));
        package.arg("--bin").arg(dir.join("tools")).arg("--pages").arg(dir.join("pages"));
        let output = package.arg("--output").arg(dir).args(["--version", version]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let made = String::from_utf8(output.stdout).unwrap();
        std::fs::rename(made.trim(), dir.join(format!("{version}.deb"))).unwrap();
    }
}

#[test]
fn an_upgrade_stops_nothing_and_a_purge_takes_no_profile_no_state_and_no_snapshot() {
    let shared = scratch();
    packages(shared.path());
    boot("in_the_guest", Options { memory: 1024, seconds: 1200 }, shared.path());
}

#[test]
#[ignore = "the guest of an_upgrade_stops_nothing_and_a_purge_takes_no_profile_no_state_and_no_snapshot"]
fn in_the_guest() {
    assert!(in_guest(), "only for a guest that was booted for it");
    let property = |unit: &str, name: &str| sh(&format!("systemctl show --value -p {name} {unit}"));
    let since = || TIMERS.map(|timer| property(timer, "ActiveEnterTimestampMonotonic"));
    // (Not the triggers of others: man-db reads all pages of this machine.)
    let dpkg = |words: &str| sh(&format!("dpkg --force-depends --force-unsafe-io --no-triggers {words}"));

    // In use: enabled timers, and a run that takes long. One unit is hidden by scripts/install's.
    dpkg("-i /run/vm/1.deb");
    sh("mkdir -p /etc/nc-backup /var/lib/nc-backup/home /etc/systemd/system/nc-backup@.service.d
        echo mine >/etc/nc-backup/home.toml; echo state >/var/lib/nc-backup/home/state
        printf '[Service]\\nExecStart=\\nExecStart=/bin/sleep 600\\nExecStopPost=\\n' >/etc/systemd/system/nc-backup@.service.d/long.conf
        cp /usr/lib/systemd/system/nc-backup-drill@.timer /etc/systemd/system/
        systemctl daemon-reload");
    sh(&format!("systemctl enable --now {} {}", TIMERS[0], TIMERS[1]));
    sh(&format!("systemctl start --no-block {RUN}; sleep 1"));
    let (run, begun) = (property(RUN, "MainPID"), since());
    assert_ne!(run, "0");

    // An upgrade: nothing has stopped, nothing has started.
    let said = dpkg("-i /run/vm/2.deb");
    assert!(said.contains("/etc/systemd/system/nc-backup-drill@.timer, of scripts/install, hides"), "{said}");
    assert_eq!((property(RUN, "MainPID"), since()), (run.clone(), begun));
    assert!(property(RUN, "Result") == "success" && property(TIMERS[0], "NeedDaemonReload") == "no");

    // Removed: no timer fires any more, and the run goes on. Installed again: so do the timers that were running.
    sh(&format!("systemctl stop {}", TIMERS[1]));
    let said = dpkg("-r nc-backup");
    assert!(said.contains("no backups any more: stopped nc-backup@home.timer"), "{said}");
    assert!(said.contains(&format!("still at work, and left to end by itself: {RUN}")), "{said}");
    assert_eq!(property(RUN, "MainPID"), run);
    assert_eq!(property(TIMERS[0], "ActiveState"), "inactive");
    dpkg("-i /run/vm/2.deb");
    assert_eq!(TIMERS.map(|timer| property(timer, "ActiveState")), ["active", "inactive"]);
    assert_eq!(property(RUN, "MainPID"), run);

    // Purged: what is the package's own is gone, what is the user's is there and told.
    let said = dpkg("-P nc-backup");
    for left in ["/etc/nc-backup", "/var/lib/nc-backup", "/etc/systemd/system/nc-backup@.service.d"] {
        let told = said.lines().find(|l| l.contains("not removed")).unwrap_or_else(|| panic!("{said}"));
        assert!(told.contains(left), "{told}");
    }
    assert_eq!(sh("cat /etc/nc-backup/home.toml /var/lib/nc-backup/home/state"), "mine\nstate");
    let links =
        sh("find /etc/systemd/system /var/lib/systemd/timers -name '*nc-backup*home*' -o -name '.stopped*'");
    assert_eq!(links, "");
    sh(&format!("systemctl stop {RUN}"));
}
