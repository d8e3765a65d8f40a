//! S3 keeps the connection and stops serving, at each step that touches the image.
//! Who waits for it cannot be ended by anything, so our tool must not be the one that waits. In the guest, where a
//! program of the machine may be another.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::guest::{Options, run_me_there};
use testkit::{Ran, bin, judge};

use crate::world::{CHEAP, World};

/// How long anything here may take: three times what it takes at most by its own limits.
const BOUND: Duration = Duration::from_secs(120);

fn elsewhere(test: &str) -> bool {
    run_me_there(test, Options { memory: 2048, seconds: 1200 })
}

/// A world whose image is behind a real sshfs, served by a process that can be stopped.
struct Far(World);

impl Far {
    fn new(container: bool) -> Far {
        let far = Far(if container { World::with(64, "ext4") } else { World::new() });
        let text = far.0.sh("cat *.toml").replace("/s3/c.img", "/link/c.img");
        std::fs::write(far.0.sh("ls $PWD/*.toml"), text).unwrap();
        testkit::script(
            &far.0.path("server"),
            &format!(
                "#!/bin/sh\necho $$ >{0}/served\nexec /usr/lib/openssh/sftp-server\n",
                far.0.path("").display()
            ),
        );
        far.0.sh("mkdir -m 700 -p run link");
        far
    }

    fn mount(&self) {
        // As sshfs-mount's relay would count: nothing has left for a while.
        self.0.sh("echo 1 0 0 >run/s3.wire; sshfs -o ssh_command=$PWD/server far:$PWD/s3 $PWD/link; mountpoint -q link");
    }

    /// From now on S3 stops, for good, when `program` is called with `word` among its arguments: before it runs, or after.
    fn stop_at(&self, program: &str, word: &str, after: bool) {
        let stop = format!("kill -STOP $(cat {0}/served); : >{0}/stopped", self.0.path("").display());
        let real = self.0.sh(&format!("PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v {program}"));
        let hit = match after {
            true => format!("{real} \"$@\"; rc=$?; {stop}; exit $rc"),
            false => format!("{stop}; exec {real} \"$@\""),
        };
        let text = format!(
            "#!/bin/sh\nfor a in \"$@\"; do case $a in {word}) {hit} ;; esac; done\nexec {real} \"$@\"\n"
        );
        testkit::script(std::path::Path::new("/usr/local/sbin").join(program).as_path(), &text);
    }

    fn start(&self, action: &str, args: &[&str]) -> Child {
        let mut command = Command::new(bin("luks-mount"));
        command.arg(action).arg("--config").arg(self.0.sh("ls $PWD/*.toml")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs it into the stop; with `term`, it is asked to end then. What it said, and in which time it ended.
    #[track_caller]
    fn hangs(&self, action: &str, args: &[&str], term: bool) -> Ran {
        self.0.sh("rm -f stopped");
        let mut child = self.start(action, args);
        let begin = Instant::now();
        while !self.0.path("stopped").exists() {
            assert!(
                child.try_wait().unwrap().is_none() && begin.elapsed() < BOUND,
                "{action}: S3 was never stopped"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let begin = Instant::now();
        if term {
            // Into the wait itself.
            std::thread::sleep(Duration::from_secs(2));
            self.0.sh(&format!("kill -TERM {} || :", child.id()));
        }
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > BOUND {
                let stack =
                    std::fs::read_to_string(format!("/proc/{}/stack", child.id())).unwrap_or_default();
                panic!("{action} does not end\n{stack}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        judge(child.wait_with_output().unwrap())
    }

    /// Nothing is up, and nobody waits for the image; S3 can be mounted anew.
    #[track_caller]
    fn nothing_is_left(&self) {
        self.0.nothing_is_up();
        let deadline = Instant::now() + Duration::from_secs(20);
        let here = self.0.path("").display().to_string();
        loop {
            let waiting: Vec<String> = stuck().into_iter().filter(|line| line.contains(&here)).collect();
            if waiting.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "still waiting: {waiting:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        self.0.sh("rm -f /usr/local/sbin/*; kill -KILL $(cat served) 2>/dev/null || :; umount -l link");
    }
}

impl Drop for Far {
    /// So that what is still up can be taken down, also by a test that failed.
    fn drop(&mut self) {
        self.0.sh("rm -f /usr/local/sbin/*; kill -KILL $(cat served) 2>/dev/null || :; umount -l link 2>/dev/null || :");
    }
}

/// The command lines of our tool's processes, and of what is stuck in the kernel.
fn stuck() -> Vec<String> {
    let list = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = list.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(") ")?.1.chars().next()?;
        let mut line = String::new();
        std::fs::File::open(format!("/proc/{pid}/cmdline")).ok()?.read_to_string(&mut line).ok()?;
        let line = line.replace('\0', " ");
        (state == 'D' || line.contains("luks-mount touch")).then(|| format!("{pid} {state} {line}"))
    })
    .collect()
}

#[test]
fn before_the_image_is_opened() {
    if elsewhere("hangs::before_the_image_is_opened") {
        return;
    }
    let far = Far::new(true);
    // The question whether S3 answers has its answer.
    for term in [true, false] {
        far.mount();
        far.stop_at("stat", "-f", true);
        let ran = far.hangs("attach", &[], term).expect(if term { 143 } else { 69 });
        if !term {
            let message = ran.json["error"]["message"].as_str().unwrap();
            assert!(message.contains("no answer from"), "{message}");
        }
        far.nothing_is_left();
    }
    for (action, args) in [
        ("grow", ["--size", "80M"].map(str::to_owned)),
        ("add-key", { ["--new-key-file".to_owned(), far.0.path("key").display().to_string()] }),
    ] {
        far.mount();
        far.stop_at("stat", "-f", true);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        far.hangs(action, &args, true).expect(143);
        far.nothing_is_left();
    }
    far.mount();
    far.0.attach().expect(0);
    far.0.detach().expect(0);
}

#[test]
fn while_the_layers_are_put_up() {
    if elsewhere("hangs::while_the_layers_are_put_up") {
        return;
    }
    let far = Far::new(true);
    for (program, word, term) in [
        ("losetup", "--find", true),
        ("losetup", "--find", false),
        ("losetup", "--list", true),
        ("cryptsetup", "open", true),
        ("dmsetup", "table", false),
        ("dumpe2fs", "-h", true),
        ("mount", "-i", false),
    ] {
        eprintln!("== {program} {word}");
        far.mount();
        far.stop_at(program, word, false);
        let ran = far.hangs("attach", &[], term);
        // It may be through before it has to wait for S3, or wait where only the end of the link helps.
        let right: &[i32] = if term { &[143] } else { &[1, 69] };
        assert!(right.contains(&ran.code), "{program} {word}: {:#}\n{}", ran.json, ran.stderr);
        assert_eq!(ran.json["left_behind"], serde_json::json!([]));
        far.nothing_is_left();
    }
    far.mount();
    far.0.attach().expect(0);
    far.0.detach().expect(0);
}

#[test]
fn while_a_container_is_made() {
    if elsewhere("hangs::while_a_container_is_made") {
        return;
    }
    let far = Far::new(false);
    for (program, word, term) in [
        ("stat", "-f", true),
        ("cryptsetup", "luksFormat", false),
        ("cryptsetup", "--test-passphrase", true),
        ("mkfs.ext4", "-q", true),
        ("mkfs.ext4", "-q", false),
    ] {
        eprintln!("== {program} {word}");
        far.mount();
        far.stop_at(program, word, program == "stat");
        let args: Vec<&str> = ["--size", "64M"].into_iter().chain(CHEAP).collect();
        // The unfinished image cannot be removed where nobody answers: it is told, with the cure.
        let ran = far.hangs("create", &args, term).expect(4);
        let left = ran.json["left_behind"].to_string();
        assert!(left.contains("c.img"), "{left}");
        assert!(!far.0.header().exists());
        far.nothing_is_left();
        far.0.sh("rm -f s3/c.img");
    }
    far.mount();
    far.0.create(&["--size", "64M"]).expect(0);
}

#[test]
fn while_it_is_made_bigger_or_gets_a_key() {
    if elsewhere("hangs::while_it_is_made_bigger_or_gets_a_key") {
        return;
    }
    let far = Far::new(true);
    let key = far.0.key("second");
    let add: Vec<String> =
        ["--new-key-file", key.to_str().unwrap()].iter().chain(&CHEAP).map(|s| (*s).to_owned()).collect();
    let add: Vec<&str> = add.iter().map(String::as_str).collect();
    for (action, args, program, word, term) in [
        ("grow", &["--size", "80M"][..], "resize2fs", "/dev/*", true),
        ("grow", &["--size", "96M"][..], "losetup", "--set-capacity", false),
        ("add-key", &add[..], "cryptsetup", "luksAddKey", true),
        ("add-key", &add[..], "cryptsetup", "--test-passphrase", false),
    ] {
        eprintln!("== {action} {program}");
        far.mount();
        far.stop_at(program, word, false);
        let ran = far.hangs(action, args, term);
        let right: &[i32] = if term { &[143] } else { &[1, 69] };
        assert!(right.contains(&ran.code), "{action} {program}: {:#}\n{}", ran.json, ran.stderr);
        far.nothing_is_left();
    }
    // What was begun is finished by the same again.
    far.mount();
    far.0.run("grow", ["--size", "96M"]).expect(0);
    far.0.run("add-key", &add).expect(0);
    far.0.attach().expect(0);
    far.0.detach().expect(0);
    far.0.nothing_is_up();
}

#[test]
fn the_tool_itself_names_nothing_on_s3() {
    if elsewhere("hangs::the_tool_itself_names_nothing_on_s3") {
        return;
    }
    let far = Far::new(false);
    far.mount();
    let config = far.0.sh("ls $PWD/*.toml");
    let key = far.0.key("second").display().to_string();
    let cheap = CHEAP.join(" ");
    for action in [
        format!("create --size 64M {cheap}"),
        "attach".into(),
        "status".into(),
        "grow --size 80M".into(),
        "detach".into(),
        format!("add-key --new-key-file {key} {cheap}"),
        "grow --size 96M".into(),
        "status".into(),
    ] {
        let tool = bin("luks-mount").display().to_string();
        far.0.sh(&format!(
            "rm -f trace; strace -f -y -qq -s 4096 -o trace -e trace=%file,%desc,clone,clone3 {tool} {action} --config {config} >out </dev/null"
        ));
        let below = format!("{}/link", far.0.path("").display().to_string().trim_end_matches('/'));
        let trace = far.0.sh("cat trace");
        let seen = ours(&trace).filter(|line| touches(line, &below)).collect::<Vec<_>>();
        assert_eq!(seen, [""; 0], "{action}");
        // The trace is one that would show it: a child of ours did.
        assert!(action == "detach" || trace.lines().any(|line| touches(line, &below)), "{action}: {trace}");
    }
}

/// The lines of the traced tool itself: of its threads, not of the children, which have programs of their own.
fn ours(trace: &str) -> impl Iterator<Item = &str> {
    let pid = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let mut threads = vec![trace.lines().next().map(pid).unwrap_or_default()];
    for line in trace.lines() {
        if line.contains("CLONE_THREAD") && threads.contains(&pid(line)) {
            threads.extend(line.rsplit_once("= ").map(|(_, new)| new.trim().to_owned()));
        }
    }
    trace.lines().filter(move |line| threads.contains(&pid(line)))
}

/// Whether a system call names something at or below `path`, or a descriptor of it. What is read and written is no name.
fn touches(line: &str, path: &str) -> bool {
    let call = line.split_whitespace().nth(1).unwrap_or_default();
    let data = ["read(", "write(", "pread64(", "execve(", "readlink(", "readlinkat("];
    let named = !data.iter().any(|c| call.starts_with(c))
        && [format!("\"{path}\""), format!("\"{path}/")].iter().any(|name| line.contains(name.as_str()));
    named || line.contains(&format!("<{path}/")) || line.contains(&format!("<{path}>"))
}
