//! The units of systemd: run by systemd, as the init of a guest, and stopped at the worst moments.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use testkit::guest::{Options, boot, in_guest};
use testkit::{Ran, run, scratch, scripts};

const GUEST: Options = Options { memory: 3072, seconds: 1200 };

/// The disk of the guest, which outlives it.
const DISK: &str = "/run/vm/disk";
const SRV: &str = "/srv/ncb";

fn command(program: &str, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    command
}

fn output(program: &str, words: &[&str]) -> Output {
    command(program, words).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs it to its end, which must be a good one; what it printed.
#[track_caller]
fn sh(script: &str) -> String {
    let output = output("sh", &["-eu", "-c", script]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[track_caller]
fn until(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(seconds),
            "{what}: not within {seconds} s\n{}",
            journal()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn journal() -> String {
    let words = ["-b", "--no-pager", "-o", "short-monotonic", "-n", "60"];
    let told = sh(&format!("tail -n 20 {SRV}/*.out | cut -c1-2000"));
    format!("{}\n{told}", String::from_utf8_lossy(&output("journalctl", &words).stdout))
}

/// A unit of systemd.
struct Unit(&'static str);

impl Unit {
    /// Starts it and waits for its end: its exit code.
    #[track_caller]
    fn runs(&self) -> i32 {
        output("systemctl", &["start", self.0]);
        self.ended()
    }
    fn starts(&self) {
        sh(&format!("systemctl start --no-block {}", self.0));
    }
    fn show(&self, property: &str) -> String {
        sh(&format!("systemctl show --value -p {property} {}", self.0))
    }
    fn is(&self, state: &str) -> bool {
        self.show("ActiveState") == state
    }
    /// Waits for its end: the exit code of what it runs, or 128 and the signal that ended it.
    #[track_caller]
    fn ended(&self) -> i32 {
        until(&format!("{} ends", self.0), 120, || self.is("inactive") || self.is("failed"));
        let status: i32 = self.show("ExecMainStatus").parse().unwrap();
        match self.show("ExecMainCode").as_str() {
            // It exited; or it did so well that systemd has forgotten it.
            "1" | "0" => status,
            _ => 128 + status,
        }
    }
    /// The last status object of what it runs (and not of what follows that).
    #[track_caller]
    fn told(&self) -> serde_json::Value {
        let action = sh(&format!(
            "systemctl show --value -p ExecStart {} | sed 's/.*argv\\[\\]=[^ ]* \\([^ ]*\\).*/\\1/'",
            self.0
        ));
        let text = std::fs::read_to_string(format!("{SRV}/{}.out", self.0)).unwrap_or_default();
        let mut objects =
            text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let last = objects.rfind(|o| [action.as_str(), "run"].contains(&o["action"].as_str().unwrap()));
        last.unwrap_or_else(|| panic!("{} printed no object: {text}", self.0))
    }
    /// Settings of this machine: `systemctl edit`.
    fn edit(&self, name: &str, text: &str) {
        let dir = format!("/etc/systemd/system/{}.d", self.0);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(format!("{dir}/{name}.conf"), text).unwrap();
        sh("systemctl daemon-reload");
    }
    fn unedit(&self, name: &str) {
        std::fs::remove_file(format!("/etc/systemd/system/{}.d/{name}.conf", self.0)).unwrap();
        sh("systemctl daemon-reload");
    }
}

const PUSH: Unit = Unit("nc-backup-offsite@home.service");
const VERIFY: Unit = Unit("nc-backup-verify@home.service");
const PRUNE: Unit = Unit("nc-backup-prune@home.service");

/// The tools, scripts and units, as `install` puts them there; the disk; what is printed goes where it outlives the guest.
fn install() {
    assert!(in_guest(), "only for a guest that was booted for it");
    assert_eq!(std::fs::read_to_string("/proc/1/comm").unwrap(), "systemd\n");
    sh("systemctl --quiet is-active sysinit.target");
    let bin = testkit::bin("link-sync").parent().unwrap().to_owned();
    sh(&format!("'{}/install' --bin '{}'", scripts().display(), bin.display()));
    sh(&format!("mkdir -p {SRV}; mount -o loop {DISK} {SRV}"));
    for unit in [
        "nc-backup@",
        "nc-backup-offsite@",
        "nc-backup-verify@",
        "nc-backup-prune@",
        "nc-backup-drill@",
        "nc-backup-off@",
    ] {
        let dir = format!("/etc/systemd/system/{unit}.service.d");
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!("[Service]\nStandardOutput=append:{SRV}/{unit}%i.service.out\n");
        std::fs::write(format!("{dir}/told.conf"), text).unwrap();
    }
    sh("systemctl daemon-reload");
}

/// These tests, one after the other, each in a guest of its own; what one leaves on the disk the next one finds.
fn boots(tests: &[&str]) {
    let shared = scratch();
    disk(shared.path());
    for test in tests {
        boot(test, GUEST, shared.path());
    }
}

fn disk(shared: &Path) {
    sh(&format!("truncate -s 4G '{0}/disk'; mkfs.ext4 -q -m 0 '{0}/disk'", shared.display()));
}

/// As soon as this test is over, whatever is under way then. Nothing is written any more.
fn power_fails() {
    sh(
        "systemd-run --quiet --unit=cut sh -c 'until [ -e /run/vm-run/code ]; do sleep 0.02; done; echo o >/proc/sysrq-trigger'",
    );
}

// ---- S2 ----

/// S3 is a server of its own: at shutdown it is there longer than the push, as another machine is.
fn s3() {
    let script = testkit::lab("sshd");
    sh(&format!(
        "rm -rf {SRV}/sshd; systemd-run --quiet --unit=s3 --service-type=oneshot --remain-after-exit \
         -p Before={} -p StandardOutput=truncate:{SRV}/s3.told -p DefaultDependencies=no '{}' start {SRV}/sshd root",
        PUSH.0,
        script.display()
    ));
    let told = std::fs::read_to_string(format!("{SRV}/s3.told")).unwrap();
    let value = |name: &str| {
        let line =
            told.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {told}"));
        line.trim_matches('\'').to_owned()
    };
    let profile = format!(
        "state_dir = \"{SRV}/state\"\nruntime_dir = \"/run/nc-backup/home\"\n[store]\npath = \"{SRV}/store\"\n[store.retention]\nkeep_last = 2\nmin_age = \"0s\"\n[offsite]\nreserve_bytes = 1048576\n\
         [offsite.sshfs]\nhost = \"root@127.0.0.1\"\nport = {}\nidentity = \"{}\"\nknown_hosts = \"{}\"\ndirectory = \"{SRV}/s3\"\nbwlimit = \"2m\"\n\
         [offsite.luks]\nimage = \"container.img\"\nkey_file = \"{SRV}/key\"\n",
        value("SSHPORT="),
        value("SSHIDENTITY="),
        value("SSHKNOWNHOSTS=")
    );
    std::fs::write("/etc/nc-backup/home.toml", profile).unwrap();
}

fn tool(name: &str, words: &[&str]) -> Ran {
    run(&mut command(&format!("/usr/sbin/{name}"), words))
}

/// A snapshot with so many KiB of new noise in it; its date.
fn snapshot(kib: usize) -> String {
    sh(&format!("head -c {kib}K /dev/urandom >{SRV}/source/large; sleep 1.1"));
    let source = format!("--source=docs={SRV}/source");
    let words = [
        "snapshot",
        "--crash-consistent",
        "--store",
        &format!("{SRV}/store"),
        "--state-dir",
        &format!("{SRV}/index"),
        &source,
    ];
    tool("link-sync", &words).expect(0).json["data"]["date"].as_str().unwrap().to_owned()
}

fn mounted(what: &str) -> bool {
    std::fs::read_to_string("/proc/1/mounts").unwrap().lines().any(|l| l.split(' ').nth(1) == Some(what))
}

const CONTAINER: &str = "/run/nc-backup/home/container";
const S3: &str = "/run/nc-backup/home/s3";

#[track_caller]
fn is_down() {
    assert!(!mounted(CONTAINER) && !mounted(S3), "{}", std::fs::read_to_string("/proc/mounts").unwrap());
    assert!(!Path::new("/dev/mapper/nc-backup-home").exists());
    assert_eq!(sh("losetup --all | grep -c container || true"), "0");
    // It ends a moment after its mount.
    until("sshfs has ended", 15, || sshfs().is_none());
}

/// The sshfs that serves S3, and the unit it belongs to.
fn sshfs() -> Option<(String, String)> {
    let pid = sh("pgrep -x sshfs || true");
    if pid.is_empty() {
        return None;
    }
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    Some((pid, cgroup.trim().rsplit('/').next().unwrap_or_default().to_owned()))
}

/// A push that has begun to copy so many MiB, at 2 MiB a second if nothing else is said; its date.
fn begin_push(mib: usize) -> String {
    let date = snapshot(mib << 10);
    PUSH.starts();
    until("the copy is in the middle", 240, || {
        sh(&format!("du -skc {CONTAINER}/layers/images/.[!.]* 2>/dev/null | tail -n 1 | cut -f1"))
            .parse()
            .is_ok_and(|kib: u64| kib > 1 << 10)
    });
    date
}

/// The push that follows brings everything, and the container had been closed cleanly.
#[track_caller]
fn next_push(date: &str) {
    assert_eq!(PUSH.runs(), 0, "{}", journal());
    let told = PUSH.told();
    assert_eq!(told["data"]["push"]["date"], date, "{told:#}");
    let warnings = told["warnings"].to_string();
    assert!(!warnings.contains("unclean") && !warnings.contains("journal"), "{warnings}");
    is_down();
}

/// All images in the container have their hashes. (What they show the guest's kernel cannot say: exit code 3.)
#[track_caller]
fn images_are_whole() {
    let ran = tool("offsite-push", &["verify", "home"]);
    assert!([0, 3].contains(&ran.code), "{:#}", ran.json);
    assert_eq!(ran.json["data"]["layers"]["wrong"], serde_json::json!([]), "{:#}", ran.json);
}

#[test]
fn s2_pushes_verifies_and_prunes_whatever_systemd_does() {
    boots(&["s2_first_boot", "s2_second_boot", "s2_third_boot"]);
}

#[test]
#[ignore = "a boot of s2_pushes_verifies_and_prunes_whatever_systemd_does"]
fn s2_first_boot() {
    install();
    sh(&format!(
        "cd {SRV}; mkdir -m 0700 s3 store source; (umask 077; echo not much of a key, but enough >key)"
    ));
    s3();
    let first = snapshot(100);
    tool("sshfs-mount", &["mount", "home"]).expect(0);
    tool(
        "luks-mount",
        &["create", "home", "--size", "300m", "--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000"],
    )
    .expect(0);
    tool("sshfs-mount", &["unmount", "home"]).expect(0);

    // Nights.
    assert_eq!(PUSH.runs(), 0, "{}", journal());
    assert_eq!(PUSH.told()["data"]["date"], *first);
    is_down();
    assert_eq!(VERIFY.runs(), 0, "{}", journal());
    assert_eq!(VERIFY.told()["data"]["dates"].as_array().map(Vec::len), Some(1), "{:#}", VERIFY.told());

    // Told to stop in the middle: it takes down in order, sshfs last.
    let date = begin_push(8);
    let (_, unit) = sshfs().unwrap();
    assert!(unit.ends_with(".scope"), "sshfs is in {unit}");
    assert!(mounted(CONTAINER) && mounted(S3), "what is mounted is seen by everybody");
    sh(&format!("systemctl stop {}", PUSH.0));
    assert_eq!(PUSH.ended(), 143);
    assert_eq!(PUSH.told()["status"], "interrupted");
    is_down();
    next_push(&date);

    // It does not stop: systemd kills it, and what it had mounted is taken down by the unit, not from under the container.
    PUSH.edit("stop", "[Service]\nTimeoutStopSec=25s\nKillSignal=SIGCONT\n");
    let rate =
        |rate: &str| sh(&format!("sed -i 's/^bwlimit = .*/bwlimit = \"{rate}\"/' /etc/nc-backup/home.toml"));
    rate("400k");
    let date = begin_push(16);
    rate("2m");
    sh(&format!("systemctl stop {}", PUSH.0));
    assert_eq!(PUSH.ended(), 128 + 9);
    is_down();
    PUSH.unedit("stop");
    next_push(&date);

    // Somebody is in the container when the push ends: it stays, says so, and stays whole after the unit.
    let date = begin_push(4);
    sh(&format!("systemd-run --quiet --unit=guest -p WorkingDirectory={CONTAINER} sleep 600"));
    assert_eq!(PUSH.ended(), 4, "{}", journal());
    assert_eq!(PUSH.told()["left_behind"][0]["what"].as_str().map(|w| w.contains("container")), Some(true));
    std::thread::sleep(Duration::from_secs(2));
    assert!(sshfs().is_some(), "systemd has ended sshfs under the container: {}", journal());
    sh(&format!("echo whole >{CONTAINER}/note; sync -f {CONTAINER}; rm {CONTAINER}/note"));
    sh("systemctl stop guest");
    tool("offsite-push", &["unview", "home", "--if-killed"]).expect(0);
    is_down();
    assert_eq!(PUSH.runs(), 0, "{}", journal());
    assert_eq!(PUSH.told()["data"]["date"], *date);

    // What the rules do not keep.
    assert_eq!(PRUNE.runs(), 0, "{}", journal());
    assert_eq!(sh(&format!("ls -d {SRV}/store/20* | wc -l")), "2", "{}", journal());
    assert!(!PRUNE.is("failed"));

    // And the power goes, in order, in the middle of a push.
    std::fs::write(format!("{SRV}/date"), begin_push(8)).unwrap();
}

#[test]
#[ignore = "a boot of s2_pushes_verifies_and_prunes_whatever_systemd_does"]
fn s2_second_boot() {
    install();
    s3();
    let told = PUSH.told();
    assert_eq!(
        (&told["status"], &told["left_behind"]),
        (&"interrupted".into(), &serde_json::json!([])),
        "{told:#}"
    );
    let date = std::fs::read_to_string(format!("{SRV}/date")).unwrap();
    next_push(&date);
    assert_eq!(VERIFY.runs(), 0, "{}", journal());
    images_are_whole();
    is_down();

    // And the power of S2 and of S3 fails in the middle of a push: what neither had written down is gone.
    std::fs::write(format!("{SRV}/date"), begin_push(8)).unwrap();
    sh(&format!("sync -f {SRV}/date"));
    power_fails();
}

#[test]
#[ignore = "a boot of s2_pushes_verifies_and_prunes_whatever_systemd_does"]
fn s2_third_boot() {
    install();
    s3();
    let date = std::fs::read_to_string(format!("{SRV}/date")).unwrap();
    assert_eq!(PUSH.runs(), 0, "{}", journal());
    assert_eq!(PUSH.told()["data"]["push"]["date"], *date, "{:#}", PUSH.told());
    is_down();
    assert_eq!(VERIFY.runs(), 0, "{}", journal());
    images_are_whole();
    is_down();
}

// ---- S1 ----

const BACKUP: Unit = Unit("nc-backup@home.service");
const DRILL: Unit = Unit("nc-backup-drill@home.service");
const OFF: Unit = Unit("nc-backup-off@home.service");

/// An instance on the disk, as is what must outlive the power: its state.
fn s1() {
    sh(&format!("mkdir -p {SRV}/var /var/lib/nc-backup; mount --bind {SRV}/var /var/lib/nc-backup"));
    let profile = format!(
        "[nextcloud]\nroot = \"{SRV}/sample/nextcloud\"\n[snapshot]\nstore = \"{SRV}/store\"\n[[snapshot.source]]\nname = \"data\"\n\
         path = \"{SRV}/sample/nextcloud/data\"\n[[snapshot.source]]\nname = \"html\"\npath = \"{SRV}/sample/nextcloud\"\n\
         [[snapshot.source]]\nname = \"database\"\n\
         [notify.mail]\nto = [\"root\"]\nsendmail = [\"{SRV}/sendmail\"]\n"
    );
    std::fs::write("/etc/nc-backup/home.toml", profile).unwrap();
    testkit::script(&Path::new(SRV).join("sendmail"), &format!("#!/bin/sh\ncat >>{SRV}/mail\n"));
}

/// Whether somebody was told so.
fn was_told(what: &str) -> bool {
    std::fs::read_to_string(format!("{SRV}/mail")).unwrap_or_default().contains(what)
}

fn in_maintenance() -> bool {
    let said = sh(&format!("php {SRV}/sample/nextcloud/occ maintenance:mode"));
    assert!(said.contains("currently"), "{said}");
    said.contains("enabled")
}

fn dates() -> usize {
    sh(&format!("ls {SRV}/store | grep -c ^20 || true")).parse().unwrap()
}

/// A backup that has closed Nextcloud, and gets no further.
fn begin_backup() {
    sh("sleep 1.1");
    BACKUP.starts();
    let closed = format!(
        "ls {SRV}/sample/nextcloud/config | grep -q zz-nc-backup-maintenance && pkill -STOP -x 'link-sync|pg-snap'"
    );
    until("Nextcloud is closed", 120, || output("sh", &["-c", &closed]).status.success());
    std::thread::sleep(Duration::from_secs(1));
    assert!(in_maintenance(), "{}", journal());
}

/// Nextcloud is open, the database free, nothing was published, and the next night is a good one.
#[track_caller]
fn all_is_well(published: usize) {
    assert!(!in_maintenance(), "{}", journal());
    assert_eq!(tool("pg-snap", &["release", "home"]).expect(0).json["changed"], false, "{}", journal());
    assert_eq!(dates(), published);
    assert_eq!(BACKUP.runs(), 0, "{}", journal());
    assert_eq!(dates(), published + 1);
}

#[test]
fn s1_saves_and_is_open_again_whatever_systemd_does() {
    boots(&["s1_first_boot", "s1_second_boot"]);
}

#[test]
#[ignore = "a boot of s1_saves_and_is_open_again_whatever_systemd_does"]
fn s1_first_boot() {
    install();
    s1();
    let cluster = testkit::postgres::Cluster::shared();
    let mut sample = command(testkit::lab("sample-instance").to_str().unwrap(), &[]);
    sample.env("PGHOST", &cluster.socket).env("PGPORT", cluster.port.to_string()).env("PGUSER", "postgres");
    sample.arg(format!("{SRV}/sample")).args(["--files", "100", "--database", "nextcloud"]);
    let made = sample.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    cluster.psql("postgres", "ALTER ROLE oc_nextcloud CREATEDB");
    sh(&format!("chmod 755 {SRV}; install -d -m 0700 {SRV}/store"));

    assert_eq!(BACKUP.runs(), 0, "{}", journal());
    assert_eq!(BACKUP.told()["warnings"], serde_json::json!([]), "it has all the rights that it needs");
    assert_eq!(DRILL.runs(), 0, "{}", journal());
    assert!(DRILL.told()["data"]["rows"].as_u64() > Some(50), "{:#}", DRILL.told());
    all_is_well(1);

    // Told to stop while Nextcloud is closed.
    begin_backup();
    sh(&format!("systemctl stop {}", BACKUP.0));
    assert_eq!(BACKUP.ended(), 143, "{}", journal());
    until("it was told that it was stopped", 120, || was_told("exit code 143"));
    all_is_well(2);
    until("it was told that it is over", 120, || was_told("backup is well again"));

    // All of it killed at once, as when the time to stop is over: what follows opens Nextcloud. (`systemctl kill` may
    // meet that, too; so may this one on a busy machine: then the drop-in's own end does.)
    begin_backup();
    sh(&format!("echo 1 >/sys/fs/cgroup$(systemctl show --value -p ControlGroup {})/cgroup.kill", BACKUP.0));
    assert_eq!(BACKUP.ended(), 128 + 9, "{}", journal());
    if journal().contains("Control process exited, code=killed") {
        until("the drop-in ends", 90, || !in_maintenance());
    }
    // It could tell nobody itself; systemd has.
    until("it was told that it was killed", 120, || was_told("exit code 137"));
    all_is_well(3);
    let history = std::fs::read_to_string("/var/lib/nc-backup/home/history.jsonl").unwrap();
    let codes: Vec<_> = history
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|o| o["kind"] == "backup")
        .map(|o| o["exit_code"].as_u64().unwrap())
        .collect();
    assert_eq!(codes, [0, 0, 143, 0, 137, 0], "{}", journal());
    let noted = sh("journalctl -q -o cat NC_BACKUP_PROFILE=home NC_BACKUP_EXIT_CODE=137 | head -n 1");
    assert!(noted.starts_with("backup of home: interrupted"), "{noted}");

    // The power fails while Nextcloud is closed.
    begin_backup();
    sh("sync");
    power_fails();
}

#[test]
#[ignore = "a boot of s1_saves_and_is_open_again_whatever_systemd_does"]
fn s1_second_boot() {
    install();
    s1();
    assert!(in_maintenance(), "what the power cut has left");
    // PostgreSQL is not up yet.
    sh("systemctl enable --quiet nc-backup-off@home.service");
    OFF.runs();
    assert!(!in_maintenance(), "{}", journal());
    assert_eq!(sh(&format!("ls {SRV}/sample/nextcloud/config | grep -c zz-nc-backup || true")), "0");
    assert_eq!(tool("nc-maint", &["status", "home"]).expect(0).json["data"]["maintenance"], false);
    assert_eq!(
        tool("link-sync", &["verify", "home"]).expect(0).json["data"]["dates"].as_array().map(Vec::len),
        Some(4)
    );
}

// ---- the files ----

fn units() -> Vec<PathBuf> {
    let dir = scripts().join("systemd");
    let mut all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// As they are installed, for systemd-analyze: it looks whether what they start is there.
fn rooted() -> tempfile::TempDir {
    let root = scratch();
    let path = root.path();
    for dir in ["usr/sbin", "usr/lib/nc-backup", "etc/systemd/system", "usr/lib/systemd"] {
        std::fs::create_dir_all(path.join(dir)).unwrap();
    }
    for tool in ["nc-maint", "pg-snap", "link-sync", "offsite-push"] {
        testkit::script(&path.join("usr/sbin").join(tool), "#!/bin/sh\n");
    }
    for script in ["backup-local", "drill", "notify"] {
        testkit::script(&path.join("usr/lib/nc-backup").join(script), "#!/bin/sh\n");
    }
    sh(&format!("cp -a /lib/systemd/system '{}/usr/lib/systemd/'", path.display()));
    root
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let root = rooted();
    let analyze = |name: &str| {
        let root = format!("--root={}", root.path().display());
        let words = ["verify", "--recursive-errors=no", "--man=no", &root, name];
        let analyzed = output("systemd-analyze", &words);
        let said = String::from_utf8_lossy(&analyzed.stderr).trim().to_owned();
        (analyzed.status.success() && said.is_empty(), said)
    };
    for unit in units() {
        let name = unit.file_name().unwrap().to_str().unwrap().replace('@', "@home");
        let place = root.path().join("etc/systemd/system").join(unit.file_name().unwrap());
        std::fs::copy(&unit, place).unwrap();
        let (right, said) = analyze(&name);
        assert!(right, "{name}: {said}");
    }
    // It does look.
    let wrong = root.path().join("etc/systemd/system/nc-backup-wrong.service");
    std::fs::write(
        wrong,
        "[Service]
ExecStart=/usr/sbin/nc-main off
KilMode=mixed
",
    )
    .unwrap();
    let (right, said) = analyze("nc-backup-wrong.service");
    assert!(!right && said.contains("nc-main") && said.contains("KilMode"), "{said}");
}

/// What systemd-analyze says of each, in tenths: no unit may become more exposed than it is.
#[test]
fn no_unit_may_do_more_than_it_needs() {
    for (unit, most) in [
        ("nc-backup@", 42),
        ("nc-backup-off@", 41),
        ("nc-backup-drill@", 40),
        ("nc-backup-verify@", 23),
        ("nc-backup-prune@", 23),
        ("nc-backup-offsite@", 68),
        ("nc-backup-notify@", 36),
        ("nc-backup-watch@", 36),
    ] {
        let path = scripts().join("systemd").join(format!("{unit}.service"));
        let analyzed =
            output("systemd-analyze", &["security", "--offline=yes", "--no-pager", path.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&analyzed.stdout).into_owned();
        let line = text
            .lines()
            .find(|l| l.contains("Overall exposure level"))
            .unwrap_or_else(|| panic!("{unit}: {text}"));
        let level: f64 = line.split_whitespace().find_map(|w| w.parse().ok()).unwrap();
        println!("{unit}: {level}");
        assert!(level * 10.0 <= f64::from(most), "{unit}: {line}");
    }
}
