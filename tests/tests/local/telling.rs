//! What only tells changes nothing about what happens; and however a script ends, it undoes and tells.

use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::{judge, run, scripts};

use crate::world::World;

/// The night as words for a shell.
fn words(world: &World) -> String {
    let mut words = format!("'{}'", world.backup().get_program().display());
    for arg in world.backup().get_args() {
        words += &format!(" '{}'", arg.display());
    }
    words
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// In mounts of its own, which go with it.
fn apart(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]);
    command
}

#[test]
fn nobody_who_reads_and_no_room_to_write_fails_no_night() {
    let world = World::new("telling");
    let night = words(&world);
    let little = |dir: &str| format!("mount -t tmpfs -o size=4k,mode=0700 none '{dir}' && ");
    let tmp = world.path("tmp").display().to_string();
    std::fs::create_dir(world.path("tmp")).unwrap();
    let full = [little(&tmp), little("/run/nc-backup/home"), little("/dev/shm")].concat();
    // The first one has something to tell in the middle, too: it is tried once more.
    world.inject("pg-snap", "drain*toml", "[ -e \"$0.once\" ] || { touch \"$0.once\"; exit 75; }");
    let mut published = 0;
    for (what, mut command) in [
        ("all full", shell(&format!("{night} >/dev/full 2>/dev/full"))),
        ("all closed", shell(&format!("{night} <&- >&- 2>&-"))),
        (
            "readers have gone",
            shell(&format!(
                "{{ {{ sleep 1; {night}; echo $? >'{tmp}/rc'; }} 2>&1 | true; }} 2>&1; exit $(cat '{tmp}/rc')"
            )),
        ),
        ("full disks", apart(&format!("{full} TMPDIR='{tmp}' {night}"))),
        (
            "odd variables",
            shell(&format!(
                "cd /; CDPATH=/usr POSIXLY_CORRECT=1 LC_ALL=tr_TR.UTF-8 IFS=-/ ENV=/nonexistent SHELLOPTS=noglob {}",
                night.replacen("'/", "'../../", 1)
            )),
        ),
    ] {
        std::thread::sleep(Duration::from_millis(1100));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{what}: {said}");
        published += 1;
        assert_eq!(world.dates().len(), published, "{what}: {said}");
        if ["full disks", "odd variables"].contains(&what) {
            let ran = judge(output);
            assert!(ran.json["data"]["date"].is_string(), "{what}: {:#}", ran.json);
        }
    }
}

#[test]
fn without_jq_in_the_middle_of_the_night_it_is_published_and_said() {
    let world = World::new("nojq");
    world.inject("pg-snap", "hold*", "mount --bind /bin/false /usr/bin/jq");
    let ran = run(&mut apart(&words(&world))).expect(0);
    assert_eq!(world.dates().len(), 1);
    assert!(ran.json["warnings"].to_string().contains("not-told"), "{:#}", ran.json);
    assert!(!world.in_maintenance());
    assert_eq!(run(&mut world.pg_snap("release")).expect(0).json["changed"], false);
}

#[test]
fn a_script_that_dies_of_itself_undoes_what_it_did_and_says_so() {
    let world = World::new("dies");
    let copy = world.path("scripts");
    let copied = Command::new("cp").arg("-a").arg(scripts()).arg(&copy).status().unwrap();
    assert!(copied.success());
    // Something fails that never should, while the database is held.
    let script = copy.join("backup-local");
    let text = std::fs::read_to_string(&script).unwrap();
    assert!(text.contains("\nstep dump pg-snap dump --held\n"));
    std::fs::write(&script, text.replace("\nstep dump pg-snap dump --held\n", "\nno-such-command\n"))
        .unwrap();
    let mut night = Command::new(&script);
    let ran = run(night.args(world.backup().get_args())).expect(1);
    assert_eq!(ran.json["data"]["failed_step"], "maintenance", "{:#}", ran.json);
    assert!(ran.json["error"]["message"].to_string().contains("unexpectedly"), "{:#}", ran.json);
    assert!(world.dates().is_empty() && !world.in_maintenance());
    assert_eq!(run(&mut world.pg_snap("release")).expect(0).json["changed"], false, "it was held");
    let left = Command::new("find").args(["/run/nc-backup/home", "-name", ".run.*"]).output().unwrap();
    for line in String::from_utf8_lossy(&left.stdout).lines() {
        // Only of those that run beside this test.
        let pid = line.rsplit(".run.").next().unwrap().split('.').next().unwrap();
        assert!(std::path::Path::new("/proc").join(pid).exists(), "{line}");
    }
}

#[test]
fn sudo_that_refuses_is_told_with_the_words_of_the_rule() {
    // An account with a home and without any rule.
    let state = std::path::Path::new("/var/lib/postgresql/.local/state/nc-backup/refused");
    let tool = world_readable_tools();
    copy_scripts(tool.path());
    let mut night = Command::new("setpriv");
    night.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
    night.arg(tool.path().join("scripts/backup-local")).args(["refused", "--bin", "/usr/bin"]);
    night.args(["--bin"]).arg(tool.path());
    let ran = run(&mut night);
    drop(std::fs::remove_dir_all(state));
    let ran = ran.expect(77);
    let told = ran.json["error"]["message"].to_string();
    assert!(told.contains("link-sync stage refused") && told.contains("postgres"), "{told}");
    assert_eq!(ran.json["status"], "denied");
}

/// The scripts, in `dir`: where they lie may be closed to other accounts.
fn copy_scripts(dir: &std::path::Path) {
    assert!(Command::new("cp").arg("-R").arg(scripts()).arg(dir.join("scripts")).status().unwrap().success());
}

/// A folder of tools that an ordinary account may start.
fn world_readable_tools() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = testkit::scratch();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for tool in ["nc-maint", "pg-snap", "link-sync"] {
        testkit::script(&dir.path().join(tool), "#!/bin/sh\nexit 1\n");
    }
    dir
}

#[test]
fn what_others_named_is_no_command_to_the_terminal() {
    let mut night = Command::new(scripts().join("backup-local"));
    let ran = run(night.arg("--ho\u{1b}[31mme\u{9b}2J\r\nx")).expect(2);
    assert!(ran.stderr.contains("--ho?[31mme?2J??x"), "{:?}", ran.stderr);
    assert!(!ran.stderr.contains('\u{1b}') && !ran.stderr.contains('\u{9b}'));
}

#[test]
fn a_night_under_cron_is_silent_if_it_is_well_and_noted_and_told_if_not() {
    let world = World::new("heardnight");
    let profile = world.path("home.toml");
    let text = std::fs::read_to_string(&profile).unwrap();
    let mail = world.path("mail");
    testkit::script(&world.path("sendmail"), &format!("#!/bin/sh\ncat >>'{}'\n", mail.display()));
    let ways =
        format!("[notify.mail]\nto = [\"root\"]\nsendmail = [\"{}\"]\n", world.path("sendmail").display());
    std::fs::write(&profile, text + &ways).unwrap();
    let mut night = Command::new(scripts().join("backup-local"));
    night.args(world.backup().get_args().filter(|arg| *arg != "--verbose"));
    let ran = run(&mut night).expect(0);
    assert_eq!(ran.stderr, "");
    assert_eq!(ran.json["warnings"], serde_json::json!([]));
    assert!(!mail.exists());
    world.inject("pg-snap", "dump*", "echo 'no dump today' >&2; exit 69");
    std::thread::sleep(Duration::from_millis(1100));
    let ran = run(&mut night).expect(69);
    assert!(
        ran.stderr.contains("no dump today") && ran.stderr.contains("nothing was published"),
        "{}",
        ran.stderr
    );
    let told = std::fs::read_to_string(&mail).unwrap();
    assert!(told.contains("backup FAILED") && told.contains("  no dump today"), "{told}");
    // A way that does not work is a warning, and the night is what it was.
    world.restore_tools();
    testkit::script(&world.path("sendmail"), "#!/bin/sh\necho no queue >&2; exit 75\n");
    std::thread::sleep(Duration::from_millis(1100));
    let ran = run(&mut night).expect(0);
    assert_eq!(ran.json["warnings"][0]["kind"], "not-sent", "{:#}", ran.json);
    assert!(ran.json["warnings"][0]["message"].as_str().unwrap().contains("no queue"), "{:#}", ran.json);
    let history = std::fs::read_to_string(world.path("state/history.jsonl")).unwrap();
    let codes: Vec<u64> = history
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["exit_code"].as_u64().unwrap())
        .collect();
    assert_eq!(codes, [0, 69, 0]);
}
