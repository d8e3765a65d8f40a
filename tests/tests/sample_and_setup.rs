//! What everything else is tried on: the sample instance, and a profile for it.
//! The sample's rows match its files, before and after a day's changes; and `scripts/setup` writes a profile for it
//! that the tools accept.
#![expect(clippy::disallowed_methods, reason = "tests start the scripts as their users do")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use testkit::postgres::Cluster;
use testkit::sshd::Sshd;
use testkit::{bin, lab, scratch, scripts, tool};

fn script(path: PathBuf, cluster: &Cluster) -> Command {
    let mut command = Command::new(path);
    command.env("PGHOST", &cluster.socket).env("PGPORT", cluster.port.to_string()).env("PGUSER", "postgres");
    command
}

fn ok(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// `user/path size` of every file in the users' folders.
fn on_disk(data: &Path) -> BTreeSet<String> {
    let output =
        ok(Command::new("find").arg(data).args(["-mindepth", "2", "-type", "f", "-printf", "%P %s\n"]));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn in_database(cluster: &Cluster, database: &str) -> BTreeSet<String> {
    let sql = "SELECT CASE WHEN s.id LIKE 'home::%' THEN substr(s.id, 7) || '/' ELSE '' END || f.path || ' ' || f.size \
               FROM oc_filecache f JOIN oc_storages s ON s.numeric_id = f.storage WHERE f.mimetype <> 2";
    cluster.psql(database, sql).lines().map(str::to_owned).collect()
}

#[test]
fn rows_and_files_match_before_and_after_a_day() {
    let (dir, cluster) = (scratch(), Cluster::shared());
    let sample = dir.path().join("sample");
    ok(script(lab("sample-instance"), &cluster).arg(&sample).args(["--files", "300", "--database", "rows"]));
    let data = sample.join("nextcloud/data");
    let before = on_disk(&data);
    assert_eq!(before.len(), 300);
    assert_eq!(in_database(&cluster, "rows"), before);
    ok(script(lab("sample-change"), &cluster).arg(&sample).args(["--count", "60", "--database", "rows"]));
    let after = on_disk(&data);
    assert_ne!(after, before);
    assert_eq!(in_database(&cluster, "rows"), after);
    let wrong_sizes = "SELECT count(*) FROM oc_filecache d WHERE mimetype = 2 AND path <> '' AND size <> \
                       (SELECT coalesce(sum(size), 0) FROM oc_filecache c WHERE c.parent = d.fileid)";
    assert_eq!(cluster.psql("rows", wrong_sizes), "0");

    // The same seed makes the same instance.
    let again = dir.path().join("again");
    ok(script(lab("sample-instance"), &cluster).arg(&again).args(["--files", "300", "--no-database"]));
    assert_eq!(on_disk(&again.join("nextcloud/data")), before);
}

#[test]
fn setup_writes_a_private_profile_once() {
    let (dir, cluster) = (scratch(), Cluster::shared());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let sample = dir.path().join("sample");
    ok(script(lab("sample-instance"), &cluster).arg(&sample).args(["--files", "30", "--no-database"]));
    let profile = dir.path().join("home.toml");
    let tools = bin("nc-maint").parent().unwrap().to_owned();
    let mut setup = script(scripts().join("setup"), &cluster);
    setup.args(["--yes", "--store", "nc-backup@s2:/srv/backup/home", "--url", ""]).arg("--bin").arg(tools);
    setup.arg("--root").arg(sample.join("nextcloud")).arg("--output").arg(&profile);
    setup.arg("--identity").arg(dir.path().join("key"));
    let said = String::from_utf8(ok(&mut setup).stdout).unwrap();

    // It is root's alone, the tools accept it, and S2's part is told with the key just made.
    assert_eq!(profile.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    tool("nc-maint", [Path::new("status"), Path::new("--config"), &profile]).expect(0);
    let key = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
    assert!(said.contains(&format!("command=\"/usr/sbin/link-sync serve home\",restrict {key}")), "{said}");
    // The sudo rules are rules.
    let rules = dir.path().join("sudoers");
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("nc-backup ALL=(root)")).collect();
    assert_eq!(lines.len(), 15, "{said}");
    std::fs::write(&rules, lines.join("\n") + "\n").unwrap();
    ok(Command::new("visudo").arg("-cf").arg(&rules));

    // Another one is refused, and the first stays.
    let before = std::fs::read(&profile).unwrap();
    let again = setup.output().unwrap();
    assert_eq!(again.status.code(), Some(1));

    // On a machine that got the profile back and no keys, setup says the same again: a new key for backups, while the
    // one for restoring is kept elsewhere.
    for name in ["key", "key.pub", "key-restore", "key-restore.pub"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    let mut again = script(scripts().join("setup"), &cluster);
    again.args(["--yes", "--bin"]).arg(bin("nc-maint").parent().unwrap()).arg("--output").arg(&profile);
    let ran = ok(&mut again);
    let told = String::from_utf8(ran.stdout).unwrap();
    let made = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
    assert_ne!(made, key);
    assert_eq!(
        told,
        said.replace(&key, &made).lines().filter(|l| !l.contains("-restore")).collect::<Vec<_>>().join("\n")
            + "\n"
    );
    assert!(String::from_utf8(ran.stderr).unwrap().contains("key-restore, is not here"));
    assert_eq!(std::fs::read(&profile).unwrap(), before);
}

#[test]
fn setup_that_could_not_make_the_keys_makes_both_when_it_is_given_again() {
    let (dir, cluster) = (scratch(), Cluster::shared());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let sample = dir.path().join("sample");
    ok(script(lab("sample-instance"), &cluster).arg(&sample).args(["--files", "30", "--no-database"]));
    let (profile, keys) = (dir.path().join("home.toml"), dir.path().join("keys"));
    let mut setup = script(scripts().join("setup"), &cluster);
    setup.args(["--yes", "--store", "nc-backup@s2:/srv/backup/home", "--url", "", "--bin"]);
    setup.arg(bin("nc-maint").parent().unwrap()).arg("--root").arg(sample.join("nextcloud"));
    setup.arg("--output").arg(&profile).arg("--identity").arg(keys.join("key"));
    // Given a place where no key can be made, as a disk is full,
    std::fs::write(&keys, "").unwrap();
    assert!(!setup.output().unwrap().status.success());
    assert!(!profile.exists(), "a profile without its keys looks like one whose keys are kept elsewhere");
    std::fs::remove_file(&keys).unwrap();
    // and half a key that such a disk has left, then the same command makes both, and says both lines.
    std::fs::create_dir(&keys).unwrap();
    std::fs::write(keys.join("key"), "").unwrap();
    let said = String::from_utf8(ok(&mut setup).stdout).unwrap();
    assert_eq!(said.matches(",restrict ssh-ed25519 ").count(), 2, "{said}");
    assert!(keys.join("key-restore").metadata().unwrap().len() > 100);
}

/// What the command prints; it has 20 seconds, and a terminal's stdin, which does not end.
fn ends(command: &mut Command) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let open = child.stdin.take();
    let begun = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > std::time::Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("it hangs: {command:?}");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(open);
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn the_keys_and_the_steps_for_s2_that_setup_prints_work_and_end() {
    // Given an S2 that has no key yet, and what setup prints for it,
    let (dir, cluster) = (scratch(), Cluster::shared());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (sample, profile, store) =
        (dir.path().join("sample"), dir.path().join("home.toml"), dir.path().join("store"));
    ok(script(lab("sample-instance"), &cluster).arg(&sample).args(["--files", "30", "--no-database"]));
    std::fs::create_dir(&store).unwrap();
    std::fs::write(dir.path().join("s2.toml"), format!("[store]\npath = \"{}\"\n", store.display())).unwrap();
    let sshd = Sshd::start("root");
    std::fs::write(&sshd.authorized_keys, "").unwrap();
    let mut setup = script(scripts().join("setup"), &cluster);
    setup.args(["--yes", "--url", "", "--port", &sshd.port.to_string(), "--store"]);
    setup
        .arg(format!("root@127.0.0.1:{}", store.display()))
        .arg("--bin")
        .arg(bin("nc-maint").parent().unwrap());
    setup.arg("--root").arg(sample.join("nextcloud")).arg("--output").arg(&profile);
    let said = String::from_utf8(ok(setup.arg("--identity").arg(dir.path().join("key"))).stdout).unwrap();
    let text = std::fs::read_to_string(&profile).unwrap();
    let known = format!("known_hosts = \"{}\"\nport =", sshd.known_hosts.display());
    let own = format!("state_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n", dir.path().display());
    std::fs::write(&profile, own + &text.replace("port =", &known)).unwrap();
    let words = |tool: &str, args: &[&str]| {
        let config = ["--config", profile.to_str().unwrap()];
        testkit::run(Command::new(bin(tool)).args(args).args(config))
    };

    // when S2 has neither, or one of the two keys, then it is said which it lacks, and what is missing;
    let lines: Vec<&str> = said.lines().filter(|l| l.trim_start().starts_with("command=")).collect();
    assert_eq!(lines.len(), 2, "{said}");
    let serve =
        format!("{} serve home --config {}/s2.toml", bin("link-sync").display(), dir.path().display());
    let real = |line: &str| line.trim().replace("/usr/sbin/link-sync serve home", &serve) + "\n";
    let hint = |ran: testkit::Ran| ran.json["error"]["hint"].as_str().unwrap_or_default().to_owned();
    let backup_key = format!("{}/key.pub", dir.path().display());
    let restore_key = format!("{}/key-restore.pub", dir.path().display());
    let told = hint(words("link-sync", &["list"]));
    assert!(told.contains(&backup_key), "{told}");
    std::fs::write(&sshd.authorized_keys, real(lines[0])).unwrap();
    words("link-sync", &["list"]).expect(0);
    let told = hint(words("link-sync", &["restore", "--to", dir.path().join("back").to_str().unwrap()]));
    assert!(told.contains(&restore_key) && told.contains("--read-only"), "{told}");

    // and with both, the two commands that make the host key known are answered, and end.
    std::fs::write(&sshd.authorized_keys, real(lines[0]) + &real(lines[1])).unwrap();
    let page = std::fs::read_to_string(testkit::repo().join("docs/setup.md")).unwrap();
    let printed: Vec<&str> = said.lines().filter(|l| l.starts_with("  ssh ")).collect();
    let documented: Vec<&str> = page.lines().filter(|l| l.starts_with("ssh -n -o Identities")).collect();
    assert_eq!((printed.len(), documented.len()), (2, 2), "{said}");
    let hosts = format!("ssh -o UserKnownHostsFile={}", sshd.known_hosts.display());
    for line in printed.iter().chain(&documented) {
        let mut line = line
            .trim()
            .replacen("ssh", &hosts, 1)
            .replace("/root/.ssh/nc-backup", &format!("{}/key", dir.path().display()));
        line = line.replace("nc-backup@s2", &format!("-p {} root@127.0.0.1", sshd.port));
        let answer = ends(Command::new("sh").args(["-c", &line]));
        assert!(answer.contains("link-sync serve: ready"), "{line}: {answer}");
    }
}

#[test]
fn an_ordinary_user_is_told_how_to_list() {
    let dir = scratch();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (store, profile, binary) =
        (dir.path().join("store"), dir.path().join("home.toml"), dir.path().join("link-sync"));
    std::fs::create_dir(&store).unwrap();
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(&profile, format!("[snapshot]\nstore = \"{}\"\n", store.display())).unwrap();
    // A build's own folder may be private.
    std::fs::copy(bin("link-sync"), &binary).unwrap();
    for mode in [0o600, 0o644] {
        // First the profile is root's alone, as setup makes it; then only the store is.
        std::fs::set_permissions(&profile, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut list = Command::new("setpriv");
        list.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]).arg(&binary);
        list.args(["list", "listed", "--config"])
            .arg(&profile)
            .arg("--state-dir")
            .arg("/tmp/nc-backup-listed");
        let ran = testkit::run(&mut list);
        drop(std::fs::remove_dir_all("/tmp/nc-backup-listed"));
        let hint = ran.expect(77).json["error"]["hint"].to_string();
        assert!(hint.contains("sudo"), "{hint}");
    }
}

#[test]
fn what_the_databases_role_lacks_is_said_when_the_profile_is_written() {
    let (dir, cluster) = (scratch(), Cluster::shared());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (sample, profile) = (dir.path().join("sample"), dir.path().join("home.toml"));
    ok(script(lab("sample-instance"), &cluster).arg(&sample).args(["--files", "30", "--database", "lacks"]));
    let setup = || {
        drop(std::fs::remove_file(&profile));
        let mut setup = script(scripts().join("setup"), &cluster);
        setup
            .args(["--yes", "--url", "", "--profile", "setuplacks", "--store"])
            .arg(dir.path().join("store"));
        setup.arg("--bin").arg(bin("nc-maint").parent().unwrap()).arg("--root").arg(sample.join("nextcloud"));
        let said = ok(setup.arg("--output").arg(&profile)).stderr;
        for folder in ["/var/lib/nc-backup/setuplacks", "/run/nc-backup/setuplacks"] {
            drop(std::fs::remove_dir_all(folder));
        }
        String::from_utf8(said).unwrap()
    };
    assert!(!setup().contains("the database:"));
    cluster.psql("lacks", "ALTER TABLE oc_share OWNER TO postgres;");
    let said = setup();
    assert!(said.contains("setup: the database: the role oc_lacks may not read"), "{said}");
    // The cure can be pasted.
    assert!(said.contains("\n    GRANT pg_read_all_data TO \"oc_lacks\""), "{said}");
}
