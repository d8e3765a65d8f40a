//! Whatever the web user puts into Nextcloud's folder runs with the web user's rights, and reaches nothing of root's.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Command, Stdio};

use crate::world::World;

/// A kernel that lets a program type into its own terminal, as most do; as it was when the value goes.
struct Tiocsti(Option<String>);

const SYSCTL: &str = "/proc/sys/dev/tty/legacy_tiocsti";

impl Tiocsti {
    fn allowed() -> Tiocsti {
        // Before Linux 6.2 there is no switch, and it is always allowed.
        let before = std::fs::read_to_string(SYSCTL).ok();
        let changed = before.filter(|_| std::fs::write(SYSCTL, "1").is_ok());
        Tiocsti(changed)
    }
}

impl Drop for Tiocsti {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            std::fs::write(SYSCTL, before).unwrap();
        }
    }
}

/// Tries to get at a terminal in every way: through what it was given, as its own, and by its name.
const TYPIST: &str = r##"
open(my $out, ">>", "$ARGV[0]/typed") or die;
open(my $in, "<", "$ARGV[0]/pts") or die;
my $pts = <$in>;
my $key = "#";
for my $fd (0, 1, 2) {
    open(my $given, "+<&=", $fd) or next;
    print $out "typed through $fd\n" if ioctl($given, 0x5412, $key);
}
for my $path ("/dev/tty", "/dev/pts/$pts") {
    open(my $tty, "+<", $path) or next;
    print $out "opened $path\n";
    print $out "typed through $path\n" if ioctl($tty, 0x5412, $key);
}
print $out "done as $<\n";
"##;

#[test]
fn what_the_web_user_runs_cannot_type_into_roots_terminal() {
    let _tiocsti = Tiocsti::allowed();
    let world = World::new();
    std::fs::write(world.data().join("typist"), TYPIST).unwrap();
    let occ = "<?php passthru('perl ' . __DIR__ . '/data/typist ' . __DIR__ . '/data');";
    std::fs::write(world.root().join("occ"), occ).unwrap();
    let mut line = String::new();
    let tool = world.nc_maint("status");
    for word in std::iter::once(tool.get_program()).chain(tool.get_args()) {
        line.push_str(&format!("'{}' ", word.to_str().unwrap()));
    }
    let pts = world.data().join("pts");
    line.insert_str(0, &format!("tty | tr -dc 0-9 >'{}'; ", pts.display()));
    // A terminal of root's own, and the tool in its foreground.
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let ran = script.output().unwrap();
    let typed = std::fs::read_to_string(world.data().join("typed"))
        .unwrap_or_else(|e| panic!("occ ran: {e}: {}", String::from_utf8_lossy(&ran.stdout)));
    let uid = Command::new("id").args(["-u", "www-data"]).output().unwrap().stdout;
    assert_eq!(typed, format!("done as {}\n", String::from_utf8_lossy(&uid).trim()));
}

/// occ says who ran it.
fn telltale(world: &World) {
    let place = world.path().join("ran-as-");
    let text = format!("<?php touch('{}' . posix_geteuid());", place.display());
    std::fs::write(world.root().join("occ"), text).unwrap();
    std::fs::set_permissions(world.path(), PermissionsExt::from_mode(0o711)).unwrap();
}

#[test]
fn a_link_to_a_file_of_roots_makes_the_web_user_nobody_else() {
    let world = World::new();
    telltale(&world);
    chown(world.root().join("occ"), Some(33), Some(33)).unwrap();
    std::fs::remove_file(world.config()).unwrap();
    symlink("/etc/passwd", world.config()).unwrap();
    let ran = world.ask("status", &[]).expect(77);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("config.php is a symbolic link"), "{message}");
    assert!(!world.path().join("ran-as-0").exists());
}

#[test]
fn a_config_php_of_roots_in_a_folder_of_the_web_users_makes_nobody_root() {
    let world = World::new();
    telltale(&world);
    chown(world.config(), Some(0), Some(33)).unwrap();
    let ran = world.ask("status", &[]).expect(77);
    let message = ran.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("nothing is run as root"), "{message}");
    assert!(!world.path().join("ran-as-0").exists());
    // All of it root's, and writable by nobody else: then it is root's to run.
    let all = Command::new("chown").args(["-R", "root:root"]).arg(world.root()).status().unwrap();
    assert!(all.success());
    world.ask("status", &[]);
    assert!(world.path().join("ran-as-0").exists());
}

#[test]
fn what_occ_and_the_command_say_does_nothing_to_a_terminal() {
    let world = World::new();
    let hostile = "<?php fwrite(STDERR, \"sudo: oops \\e]0;owned\\x07\\u{9b}2J\\u{202e}gnp\\n\"); exit(1);";
    std::fs::write(world.root().join("occ"), hostile).unwrap();
    let output = world.nc_maint("status").stdin(Stdio::null()).output().unwrap();
    let acts = |text: &str| text.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}');
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!acts(&stderr) && stderr.contains("oops \\u{1b}]0;owned\\u{7}"), "{stderr:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(!acts(&stdout), "{stdout:?}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let tail = json["error"]["command"]["stderr_tail"].as_str().unwrap();
    assert_eq!(tail, "sudo: oops \u{1b}]0;owned\u{7}\u{9b}2J\u{202e}gnp", "JSON says exactly what was said");

    let world = World::new();
    let ran = world.run(&[], "printf 'a\\033[2Jb\\n'; printf 'c\\033[2J\\td\\n' >&2").expect(0);
    assert!(
        ran.stderr.contains("a\\u{1b}[2Jb\n") && ran.stderr.contains("c\\u{1b}[2J\td\n"),
        "{}",
        ran.stderr
    );
}

/// Puts a FIFO, a folder, a hard link or a link to a file of root's in the place of every draft and drop-in it sees, as
/// fast as it can, until `stop` is there.
const RACER: &str = r#"
use POSIX qw(mkfifo);
my ($config, $victim, $stop) = @ARGV;
chdir $config or die;
my @kinds = (
    sub { mkfifo($_[0], 0666) },
    sub { mkdir $_[0] },
    sub { link "config.php", $_[0] },
    sub { symlink $victim, $_[0] },
);
my ($n, $planted, $end) = (0, 0, time + 300);
until (-e $stop or time > $end) {
    opendir(my $dir, ".") or last;
    for my $seen (grep { /zz-nc-backup/ } readdir $dir) {
        # The draft is made before the file counts: its name tells what the file will be called.
        (my $name = $seen) =~ s/^\.(.*)\.new$/$1.config.php/;
        my $kind = $kinds[$n++ % @kinds];
        for my $place ($n % 3 ? ($name) : ($seen, $name)) {
            rename $place, "held$n" or 1;
            $planted++ if $kind->($place);
        }
    }
    closedir $dir;
}
print "$planted\n";
"#;

#[test]
fn a_web_user_that_races_the_drop_in_leads_root_nowhere_and_delays_nobody_for_ever() {
    let world = World::auto();
    std::fs::set_permissions(world.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let victim = world.path().join("victim");
    std::fs::write(&victim, "root's").unwrap();
    std::fs::set_permissions(&victim, PermissionsExt::from_mode(0o600)).unwrap();
    let (racer, stop) = (world.data().join("racer"), world.data().join("stop"));
    std::fs::write(&racer, RACER).unwrap();
    std::fs::set_permissions(&racer, PermissionsExt::from_mode(0o644)).unwrap();
    let config = world.root().join("config");
    let mut race = Command::new("setpriv");
    race.args(["--reuid=www-data", "--regid=www-data", "--clear-groups", "perl"]);
    let race = race.arg(&racer).args([&config, &victim, &stop]).stdin(Stdio::null()).stdout(Stdio::piped());
    let race = race.spawn().unwrap();

    for _ in 0..6 {
        // A FIFO keeps whatever PHP reads the configuration waiting: as long as occ may take.
        let quick = "--occ-timeout=2s";
        for (action, more) in
            [("run", &[quick, "--", "true"][..]), ("status", &[quick]), ("off", &[quick, "--if-ours"])]
        {
            let tool = world.nc_maint(action);
            let mut bounded = Command::new("timeout");
            bounded.args(["--kill-after=5", "40"]).arg(tool.get_program()).args(tool.get_args()).args(more);
            let output = bounded.stdin(Stdio::null()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code().unwrap_or(-1);
            assert!([0, 1, 4, 69, 77, 78].contains(&code), "{action}: {code}: {said}");
        }
    }
    std::fs::write(&stop, "").unwrap();
    let planted = String::from_utf8(race.wait_with_output().unwrap().stdout).unwrap();
    assert!(planted.trim().parse::<u32>().unwrap() > 0, "nothing was planted: {planted}");

    assert_eq!(std::fs::read(&victim).unwrap(), b"root's");
    let meta = std::fs::metadata(&victim).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((meta.uid(), meta.mode() & 0o7777, meta.nlink()), (0, 0o600, 1));
    // What is left is the web user's to take away, and no maintenance of ours is under it.
    for entry in std::fs::read_dir(&config).unwrap().map(|e| e.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if name.contains("zz-nc-backup") || name.starts_with("held") {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                std::fs::remove_dir(path)
            } else {
                std::fs::remove_file(path)
            }
            .unwrap();
        }
    }
    world.ask("off", &["--if-ours"]).expect(0);
    world.run(&[], "true").expect(0);
    world.is_clean();
}
