//! With the real siblings, a real sshd, sshfs and LUKS: nights, and what breaks in them.
//! In a guest where this kernel has no device mapper.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::guest::{Options, run_me};
use testkit::sshd::Sshd;
use testkit::{Ran, bin, judge, run, scratch};

use crate::world::{eventually, signal};

/// S2 and S3 on one machine.
struct Real {
    dir: tempfile::TempDir,
    /// Where the tools are.
    bin: PathBuf,
    sshd: Sshd,
    /// The profile's.
    name: &'static str,
}

impl Real {
    /// A container on S3, and a store with one snapshot of a few files.
    fn new() -> Real {
        Real::of("96m", "layout = \"hardlink\"")
    }

    /// A container of that size, and these lines in `[offsite]`.
    fn of(size: &str, lines: &str) -> Real {
        let built = bin("offsite-push").parent().unwrap().to_owned();
        let real = Real { dir: scratch(), bin: built, sshd: Sshd::start("root"), name: "home" };
        for name in ["s3", "source/folder", "store"] {
            std::fs::create_dir_all(real.path(name)).unwrap();
        }
        std::fs::write(real.path("key"), "not much of a key, but enough for this").unwrap();
        for (name, mode) in [("key", 0o600), ("store", 0o700)] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(real.path(name), mode).unwrap();
        }
        let text = format!(
            "state_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[store]\npath = \"{0}/store\"\n[offsite]\nreserve_bytes = 1048576\n{lines}\n\
             [offsite.sshfs]\nhost = \"root@127.0.0.1\"\nport = {1}\nidentity = \"{2}\"\nknown_hosts = \"{3}\"\ndirectory = \"{0}/s3\"\n\
             [offsite.luks]\nimage = \"container.img\"\nkey_file = \"{0}/key\"\n",
            real.dir.path().display(),
            real.sshd.port,
            real.sshd.identity.display(),
            real.sshd.known_hosts.display()
        );
        std::fs::write(real.path("home.toml"), text).unwrap();
        for n in 0..20 {
            real.file(&format!("folder/{n}"), 10);
        }
        real.snapshot();
        real.tool("sshfs-mount", "mount", &[]).expect(0);
        let size = ["--size", size, "--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000"];
        real.tool("luks-mount", "create", &size).expect(0);
        real.tool("sshfs-mount", "unmount", &[]).expect(0);
        real
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file of the source anew, with so many KiB of noise.
    fn file(&self, name: &str, kib: usize) {
        let mut noise = vec![0; kib << 10];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
        std::fs::write(self.path("source").join(name), noise).unwrap();
    }

    /// A new date in the store.
    fn snapshot(&self) -> String {
        // Dates are seconds.
        std::thread::sleep(Duration::from_millis(1100));
        let mut command = Command::new(bin("link-sync"));
        command
            .args(["snapshot", "--crash-consistent", "--store"])
            .arg(self.path("store"))
            .arg("--state-dir");
        command.arg(self.path("index")).arg(format!("--source=docs={}", self.path("source").display()));
        // What was restored from a backup lies on another disk.
        command.args((self.name == "twin").then_some("--allow-new-filesystem"));
        let ran = run(&mut command).expect(0);
        ran.json["data"]["date"].as_str().unwrap().to_owned()
    }

    fn command(&self, tool: &str, action: &str, options: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join(tool));
        command
            .args([action, self.name, "--config"])
            .arg(self.path(&format!("{}.toml", self.name)))
            .args(options)
            .stdin(Stdio::null());
        command
    }
    #[track_caller]
    fn tool(&self, tool: &str, action: &str, options: &[&str]) -> Ran {
        run(&mut self.command(tool, action, options))
    }
    #[track_caller]
    fn push(&self) -> Ran {
        self.tool("offsite-push", "push", &[])
    }

    /// Starts a push of 12 MB through 1 MiB/s, and returns in the middle of the copy.
    fn start_slow(&self, options: &[&str]) -> Child {
        self.start_slow_in("snapshots", options)
    }

    /// The same, where what is copied is in that folder of the container.
    fn start_slow_in(&self, folder: &str, options: &[&str]) -> Child {
        self.file("large", 12 << 10);
        self.snapshot();
        let mut command = self.command("offsite-push", "push", options);
        command.args(["--bwlimit", "1m"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let half = |dir: &Path| {
            let output = Command::new("du").args(["-sk", "--"]).arg(dir).output().unwrap();
            String::from_utf8(output.stdout)
                .unwrap()
                .split('\t')
                .next()
                .unwrap_or("0")
                .parse::<u64>()
                .unwrap_or(0)
                > 2048
        };
        eventually("the copy is in the middle", || {
            let store = self.path("run/container").join(folder);
            std::fs::read_dir(store)
                .into_iter()
                .flatten()
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with('.') && half(&e.path()))
        });
        child
    }

    /// Flips a bit of a file in the newest snapshot in the container; done twice, it is as it was.
    fn rot(&self, name: &str) {
        self.tool("sshfs-mount", "mount", &[]).expect(0);
        self.tool("luks-mount", "attach", &[]).expect(0);
        let store = self.path("run/container/snapshots");
        let path = store.join("latest/docs").join(name);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 4;
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        file.set_modified(modified).unwrap();
        drop(file);
        self.tool("luks-mount", "detach", &[]).expect(0);
        self.tool("sshfs-mount", "unmount", &[]).expect(0);
    }

    /// The dates in the container, all of whose images are what S2 has noted.
    #[track_caller]
    fn layered(&self) -> Vec<String> {
        self.tool("sshfs-mount", "mount", &[]).expect(0);
        self.tool("luks-mount", "attach", &["--read-only"]).expect(0);
        let ask = |request: serde_json::Value| -> serde_json::Value {
            let file = self.path("request");
            std::fs::write(&file, request.to_string()).unwrap();
            let mut command = Command::new(self.bin.join("offsite-push"));
            command.args(["inside", "layers", "--container"]).arg(self.path("run/container"));
            let out = command.stdin(std::fs::File::open(file).unwrap()).output().unwrap();
            assert!(out.status.success(), "{request}: {}", String::from_utf8_lossy(&out.stderr));
            serde_json::from_slice(&out.stdout).unwrap()
        };
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.path("state/offsite.layers.json")).unwrap()).unwrap();
        let lists = ask(serde_json::json!({"lists": {}}));
        let mut dates = Vec::new();
        for list in lists["dates"].as_array().unwrap() {
            dates.push(list["date"].as_str().unwrap().to_owned());
            let sums: Vec<_> = list["layers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| {
                    let name = name.as_str().unwrap();
                    (name, record["images"][name]["sha256"].as_str().unwrap())
                })
                .collect();
            assert_eq!(ask(serde_json::json!({"check": {"layers": sums}}))["wrong"], serde_json::json!([]));
        }
        self.tool("luks-mount", "detach", &[]).expect(0);
        self.tool("sshfs-mount", "unmount", &[]).expect(0);
        self.is_down();
        dates
    }

    fn sshfs(&self) -> u32 {
        let record = std::fs::read(self.path("run/s3.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Nothing of it is mounted, mapped or looped.
    #[track_caller]
    fn is_down(&self) {
        let dir = self.dir.path().to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(dir), "{mounts}");
        assert!(!Path::new(&format!("/dev/mapper/nc-backup-{}", self.name)).exists());
        let loops = Command::new("losetup").arg("--all").output().unwrap();
        let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
        assert!(!loops.contains(dir), "{loops}");
    }

    /// The newest snapshot in the container is that of the store; older dates are all there.
    #[track_caller]
    fn arrived(&self, dates: &[&str]) {
        let view = self.tool("offsite-push", "view", &[]).expect(0);
        for date in dates {
            let (here, there) =
                (self.path("store").join(date), self.path("run/container/snapshots").join(date));
            let mut diff = Command::new("diff");
            diff.args(["-r", "--no-dereference", "--"]).arg(here.join("docs")).arg(there.join("docs"));
            let diff = diff.output().unwrap();
            assert!(diff.status.success(), "{date}: {}", String::from_utf8_lossy(&diff.stdout));
        }
        assert_eq!(view.json["data"]["date"], *dates.last().unwrap());
        self.tool("offsite-push", "unview", &[]).expect(0);
        self.is_down();
    }
}

#[test]
fn nights_with_the_real_tools() {
    if run_me("real::nights_with_the_real_tools", Options::default()) {
        return;
    }
    let real = Real::new();
    let first = real.push().expect(0);
    let date = first.json["data"]["date"].as_str().unwrap().to_owned();
    let sent = first.json["data"]["push"]["sent_bytes"].as_u64().unwrap();
    assert!(sent > 200 << 10, "{sent}");
    real.is_down();
    assert_eq!(real.push().expect(0).json["changed"], false);
    real.file("folder/3", 50);
    std::fs::remove_file(real.path("source/folder/4")).unwrap();
    let second = real.snapshot();
    let ran = real.push().expect(0);
    assert_eq!(ran.json["data"]["push"]["base_date"], date);
    assert!(ran.json["data"]["push"]["copied_bytes"].as_u64().unwrap() < 100 << 10);
    real.arrived(&[&date, &second]);
    // What is in it is what was published here; a byte that rots there is found, with the dates that share it.
    let verified = real.tool("offsite-push", "verify", &[]).expect(0);
    assert_eq!(verified.json["data"]["verify"]["inodes_read"], 21);
    real.is_down();
    real.rot("folder/7");
    let rotten = real.tool("offsite-push", "verify", &[]).expect(1);
    let found = &rotten.json["data"]["verify"]["findings"];
    assert_eq!(
        (&found[0]["paths"][0], &found[0]["dates"][1]),
        (&"docs/folder/7".into(), &second.as_str().into())
    );
    assert_eq!(rotten.json["data"]["fresh"], true);
    real.is_down();
    real.rot("folder/7");
    // A container that is put back to the first night is refused.
    let image = real.path("s3/container.img");
    std::fs::copy(&image, real.path("aside")).unwrap();
    real.file("folder/5", 5);
    real.snapshot();
    real.push().expect(0);
    std::fs::rename(real.path("aside"), &image).unwrap();
    real.file("folder/6", 5);
    let last = real.snapshot();
    let old = real.tool("offsite-push", "verify", &[]).expect(1);
    assert_eq!(
        (&old.json["data"]["fresh"], &old.json["data"]["verify"]["findings_total"]),
        (&false.into(), &0.into())
    );
    let ran = real.push().expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("not as this machine left it"));
    real.is_down();
    real.tool("offsite-push", "push", &["--accept-container"]).expect(0);
    real.arrived(&[&date, &second, &last]);

    // With rules, a push also removes, once it is confirmed.
    let mut profile = std::fs::read_to_string(real.path("home.toml")).unwrap();
    profile.push_str("[offsite.retention]\nkeep_last = 2\nmin_age = \"0d\"\ntimezone = \"Europe/Vienna\"\n");
    std::fs::write(real.path("home.toml"), profile).unwrap();
    real.file("folder/7", 5);
    let newest = real.snapshot();
    let ran = real.push().expect(0);
    assert_eq!(ran.json["data"]["prune"]["removed"], serde_json::json!([date, second]), "{:#}", ran.json);
    real.is_down();
    let status = real.tool("offsite-push", "status", &[]).expect(0);
    assert_eq!(status.json["data"]["dates"], serde_json::json!([last, newest]));
    real.arrived(&[&last, &newest]);
    let dry = real.tool("offsite-push", "prune", &["--dry-run"]).expect(0);
    assert_eq!((&dry.json["changed"], &dry.json["data"]["prune"]["kept"]), (&false.into(), &2.into()));
    // S2's own store keeps what the next push begins with.
    real.file("folder/8", 5);
    let waiting = real.snapshot();
    let pruned = real.tool("link-sync", "prune", &["--keep-last=1", "--min-age=0d"]).expect(0);
    assert_eq!(pruned.json["data"]["kept"], 2, "{:#}", pruned.json);
    let ran = real.push().expect(0);
    assert_eq!(ran.json["data"]["push"]["base_date"], newest);
    real.arrived(&[&newest, &waiting]);
}

/// What was cut off goes on; and the night after that.
fn goes_on(real: &Real, dates: &mut Vec<String>, what: &str) -> u64 {
    let ran = real.push().expect(0);
    dates.push(ran.json["data"]["date"].as_str().unwrap().to_owned());
    real.file("folder/5", 5);
    dates.push(real.snapshot());
    real.push().expect(0);
    assert_eq!(real.layered(), *dates, "{what}");
    ran.json["data"]["push"]["sent_bytes"].as_u64().unwrap()
}

#[test]
fn nights_of_layers_and_a_push_that_is_ended_goes_on_inside_its_image() {
    if run_me(
        "real::nights_of_layers_and_a_push_that_is_ended_goes_on_inside_its_image",
        Options { seconds: 1200, ..Options::default() },
    ) {
        return;
    }
    let real = Real::of("300m", "layout = \"layers\"");
    let first = real.push().expect(0);
    let mut dates = vec![first.json["data"]["date"].as_str().unwrap().to_owned()];
    real.is_down();
    assert_eq!(real.push().expect(0).json["changed"], false);
    // One file of 20 is new: about that is sent.
    real.file("folder/3", 50);
    dates.push(real.snapshot());
    let ran = real.push().expect(0);
    let push = &ran.json["data"]["push"];
    eprintln!("== 50 KiB changed: {push}");
    assert_eq!(push["base_date"], dates[0]);
    assert!(push["sent_bytes"].as_u64().unwrap() < 500 << 10, "{push}");
    assert_eq!(real.layered(), dates);

    // 12 MB, some of which were there.
    let child = real.start_slow_in("layers/images", &[]);
    signal(child.id(), "TERM");
    judge(child.wait_with_output().unwrap()).expect(143);
    real.is_down();
    let sent = goes_on(&real, &mut dates, "TERM");
    assert!(sent < 11_500_000, "{sent}");
    let mut child = real.start_slow_in("layers/images", &[]);
    signal(child.id(), "KILL");
    child.wait().unwrap();
    let sent = goes_on(&real, &mut dates, "KILL");
    assert!(sent < 11_500_000, "{sent}");
}

#[test]
fn when_sshfs_dies_or_hangs_in_an_image_the_next_push_goes_on() {
    if run_me(
        "real::when_sshfs_dies_or_hangs_in_an_image_the_next_push_goes_on",
        Options { seconds: 1200, ..Options::default() },
    ) {
        return;
    }
    let real = Real::of("300m", "layout = \"layers\"");
    let mut dates = vec![real.push().expect(0).json["data"]["date"].as_str().unwrap().to_owned()];
    let child = real.start_slow_in("layers/images", &["--patience", "4s"]);
    signal(real.sshfs(), "STOP");
    let ran = judge(child.wait_with_output().unwrap()).expect(69);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("has not answered for 4s"), "{:#}", ran.json);
    real.is_down();
    goes_on(&real, &mut dates, "sshfs stopped");

    let child = real.start_slow_in("layers/images", &[]);
    signal(real.sshfs(), "KILL");
    let ran = judge(child.wait_with_output().unwrap());
    assert!([1, 69].contains(&ran.code), "{:#}", ran.json);
    real.is_down();
    goes_on(&real, &mut dates, "sshfs killed");
}

#[test]
fn whatever_breaks_the_next_push_goes_on() {
    if run_me("real::whatever_breaks_the_next_push_goes_on", Options { seconds: 1200, ..Options::default() })
    {
        return;
    }
    let real = Real::new();
    real.push().expect(0);
    let newest = || {
        let mut dates: Vec<_> = std::fs::read_dir(real.path("store"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        dates.retain(|d| d.starts_with("20"));
        dates.sort();
        dates.pop().unwrap()
    };
    let recovers = |what: &str| {
        eprintln!("== {what}");
        let ran = real.push().expect(0);
        eprintln!("{}", ran.stderr);
        real.arrived(&[&newest()]);
    };
    let ended = |child: Child, what: &str| {
        let begun = Instant::now();
        let ran = judge(child.wait_with_output().unwrap());
        eprintln!("== {what}: exit code {} after {:?}\n{}", ran.code, begun.elapsed(), ran.stderr);
        ran
    };

    // TERM in the middle of the copy.
    let child = real.start_slow(&[]);
    signal(child.id(), "TERM");
    ended(child, "TERM").expect(143);
    real.is_down();
    recovers("TERM");

    // KILL in the middle of the copy: the next push finds it, also at once.
    let mut child = real.start_slow(&[]);
    signal(child.id(), "KILL");
    child.wait().unwrap();
    recovers("KILL");

    // sshfs is gone.
    let child = real.start_slow(&[]);
    signal(real.sshfs(), "KILL");
    let ran = ended(child, "sshfs killed");
    assert!([1, 69].contains(&ran.code), "{:#}", ran.json);
    real.is_down();
    recovers("sshfs killed");

    // sshfs hangs.
    let child = real.start_slow(&["--patience", "4s"]);
    signal(real.sshfs(), "STOP");
    let ran = ended(child, "sshfs stopped").expect(69);
    assert!(
        ran.json["error"]["message"].as_str().unwrap().contains("has not answered for 4s"),
        "{:#}",
        ran.json
    );
    real.is_down();
    recovers("sshfs stopped");

    // Too little room is told before anything is copied.
    real.file("large", 90 << 10);
    real.snapshot();
    let ran = real.push().expect(1);
    assert_eq!(ran.json["data"]["failed_step"], "copy");
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("room"), "{:#}", ran.json);
    real.is_down();
    real.file("large", 1);
    real.snapshot();
    recovers("full");

    // S3 is not there, from the beginning.
    real.file("folder/1", 1);
    real.snapshot();
    real.sshd.set_key_options("command=\"exit 1\",restrict");
    real.push().expect(69);
    real.is_down();
    real.sshd.set_key_options("");
    recovers("no S3");
}

/// What a new version puts in a tool's place, in the middle of a push: nothing that it says is taken, and that it is
/// gone for a while does not matter.
#[test]
fn an_upgrade_in_the_middle_changes_nothing() {
    if run_me("real::an_upgrade_in_the_middle_changes_nothing", Options::default()) {
        return;
    }
    let mut real = Real::new();
    real.bin = real.path("bin");
    std::fs::create_dir(&real.bin).unwrap();
    let tools = ["offsite-push", "sshfs-mount", "luks-mount", "link-sync", "nc-maint"];
    for tool in tools {
        std::fs::copy(bin(tool), real.bin.join(tool)).unwrap();
    }
    let (called, new) = (real.path("called"), real.path("new"));
    let next = format!("#!/bin/sh\necho \"$0 $*\" >>{}\nexit 1\n", called.display());

    let child = real.start_slow(&[]);
    for tool in tools {
        testkit::script(&new, &next);
        std::fs::rename(&new, real.bin.join(tool)).unwrap();
    }
    std::thread::sleep(Duration::from_secs(2));
    for tool in tools {
        std::fs::remove_file(real.bin.join(tool)).unwrap();
    }
    let ran = judge(child.wait_with_output().unwrap()).expect(0);
    assert_eq!(ran.json["data"]["push"]["date"], ran.json["data"]["date"], "{:#}", ran.json);
    let steps = ran.json["data"]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["step"] == "unmount"), "{steps:#?}");
    for step in steps {
        assert_eq!(step["output"]["version"], env!("CARGO_PKG_VERSION"), "{step:#}");
    }
    assert!(!called.exists(), "{}", std::fs::read_to_string(&called).unwrap());
    real.bin = bin("offsite-push").parent().unwrap().to_owned();
    real.is_down();
    assert_eq!(real.push().expect(0).json["changed"], false);
}

/// The SHA-256 of the image on S3.
fn image_of(real: &Real) -> String {
    let out = Command::new("sha256sum").arg(real.path("s3/container.img")).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

impl Real {
    /// Another S2 with a copy of this one's state and store, as if it had been restored from a backup; the same S3.
    fn twin(&self) -> Real {
        let twin = Real { dir: scratch(), bin: self.bin.clone(), sshd: Sshd::start("root"), name: "twin" };
        let script = format!(
            "cd '{0}'; for f in key source store state; do cp -a \"$f\" '{1}/'; done
             ln -s '{0}/s3' '{1}/s3'
             sed -e 's|{0}|{1}|g' -e 's|^directory = .*|directory = \"{0}/s3\"|' home.toml >'{1}/twin.toml'
             chmod 700 '{1}/store'; rm -rf '{1}/state/run'",
            self.dir.path().display(),
            twin.dir.path().display()
        );
        let done = Command::new("sh").args(["-euc", &script]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        twin
    }

    /// A push with something new, which is refused with one of these codes and changes no byte of the image.
    #[track_caller]
    fn is_refused(&self, codes: &[i32], words: &str) {
        self.file("folder/1", 7);
        self.snapshot();
        let before = image_of(self);
        let ran = self.push();
        assert!(codes.contains(&ran.code), "{}\n{:#}", ran.stderr, ran.json);
        let message = ran.json["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert_eq!(image_of(self), before, "refused, and yet written to");
        self.is_down();
    }

    /// What was pushed is what the store here has, to the byte.
    #[track_caller]
    fn verifies(&self) {
        let ran = self.tool("offsite-push", "verify", &[]).expect(0);
        assert_eq!(ran.json["data"]["fresh"], true, "{:#}", ran.json);
        self.is_down();
    }
}

#[test]
fn of_two_s2_with_one_state_only_one_ever_writes() {
    if run_me(
        "real::of_two_s2_with_one_state_only_one_ever_writes",
        Options { seconds: 1200, ..Options::default() },
    ) {
        return;
    }
    let old = Real::new();
    old.push().expect(0);
    let restored = old.twin();

    // In turn: the one that pushes first goes on, the other one is refused, and does not get in its way.
    old.file("folder/2", 9);
    old.snapshot();
    old.push().expect(0);
    restored.is_refused(&[78], "not as this machine left it");
    restored.is_refused(&[78], "not as this machine left it");
    old.verifies();

    // The other order, after a word of the person in charge.
    restored.tool("offsite-push", "push", &["--accept-container"]).expect(0);
    restored.verifies();
    old.is_refused(&[78], "not as this machine left it");
    restored.file("folder/3", 9);
    restored.snapshot();
    restored.push().expect(0);
    restored.verifies();

    // At once: in the middle of the one's copy. Its image is written to, though not by the other.
    let child = restored.start_slow(&[]);
    old.file("folder/4", 3);
    old.snapshot();
    let ran = old.push().expect(75);
    assert!(ran.stderr.contains("open for writing"), "{}", ran.stderr);
    judge(child.wait_with_output().unwrap()).expect(0);
    restored.verifies();

    // Killed in the middle, with all it had up: its journal is not replayed by the other.
    let mut child = restored.start_slow(&[]);
    signal(child.id(), "KILL");
    child.wait().unwrap();
    signal(restored.sshfs(), "KILL");
    restored.tool("offsite-push", "unview", &["--if-killed"]);
    old.is_refused(&[75], "open for writing");
    std::fs::rename(restored.path("s3/container.img.lease"), restored.path("aside")).unwrap();
    old.is_refused(&[78], "not as this machine left it");
    std::fs::rename(restored.path("aside"), restored.path("s3/container.img.lease")).unwrap();
    restored.push().expect(0);
    restored.verifies();

    // Taken over on purpose in the middle of a push: that push ends, and writes nothing more.
    let child = restored.start_slow(&["--renew-every", "1s"]);
    let taken = old.tool("offsite-push", "push", &["--accept-container"]);
    let ended = judge(child.wait_with_output().unwrap());
    eprintln!("== taken over: {} {}\n== ended: {}", taken.code, taken.stderr, ended.stderr);
    assert_ne!(ended.code, 0);
    assert!(
        ended.json["error"]["message"].as_str().unwrap().contains("taken the container over"),
        "{:#}",
        ended.json
    );
    restored.is_down();
}

/// What closes the container may take longer than any limit, as long as bytes move. Takes a minute: it has to.
#[test]
fn a_slow_link_is_waited_for_when_the_container_is_closed() {
    if run_me("real::a_slow_link_is_waited_for_when_the_container_is_closed", Options::default()) {
        return;
    }
    let real = Real::new();
    real.push().expect(0);
    real.tool("sshfs-mount", "mount", &["--bwlimit", "48k"]).expect(0);
    real.tool("luks-mount", "attach", &[]).expect(0);
    let noise = real.path("noise");
    real.file("late", 3 << 10);
    std::fs::rename(real.path("source/late"), &noise).unwrap();
    let there = real.path("run/container/late");
    std::fs::copy(&noise, &there).unwrap();
    let ran = real.tool("offsite-push", "unview", &["--patience", "4s"]).expect(0);
    let steps = ran.json["data"]["steps"].as_array().unwrap();
    let detach = steps.iter().find(|s| s["step"] == "clear-container").unwrap();
    // The limit is 35 s of rest.
    assert!(detach["duration_ms"].as_u64().unwrap() > 40_000, "{detach:#}");
    assert_eq!(detach["output"]["data"]["clean"], true, "{detach:#}");
    real.is_down();
    real.tool("sshfs-mount", "mount", &[]).expect(0);
    real.tool("luks-mount", "attach", &[]).expect(0);
    assert!(std::fs::read(&there).unwrap() == std::fs::read(&noise).unwrap());
    std::fs::remove_file(&there).unwrap();
    real.tool("luks-mount", "detach", &[]).expect(0);
    real.tool("sshfs-mount", "unmount", &[]).expect(0);
    real.is_down();
}

#[test]
fn a_reader_of_the_store_that_is_stopped_does_not_keep_the_container_open() {
    if run_me(
        "real::a_reader_of_the_store_that_is_stopped_does_not_keep_the_container_open",
        Options::default(),
    ) {
        return;
    }
    let real = Real::new();
    real.push().expect(0);
    let child = real.start_slow(&["--patience", "8s"]);
    // Of the copy's processes, the rsync that reads the store: it talks to one that is a server.
    let mine = format!("{}\n", child.id());
    let readers = Command::new("sh")
        .args(["-c", "below() { echo $1; for p in $(pgrep -P $1); do below $p; done; }; read top
               for p in $(below $top); do
                   tr '\\0' ' ' </proc/$p/cmdline | grep -v -e --server | grep -q ^/usr/bin/rsync && kill -STOP $p && echo $p
               done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(|mut sh| {
            std::io::Write::write_all(&mut sh.stdin.take().unwrap(), mine.as_bytes())?;
            sh.wait_with_output()
        })
        .unwrap();
    assert!(!readers.stdout.is_empty(), "no rsync was found");
    let begun = Instant::now();
    let ran = judge(child.wait_with_output().unwrap()).expect(69);
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("link-sync copy got nowhere for 8s"), "{message}");
    real.is_down();
    real.push().expect(0);
    real.is_down();
}
