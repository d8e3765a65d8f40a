//! The far end: behind ssh, under an ordinary account, and towards a source that means harm.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::script;
use testkit::sshd::Sshd;

use crate::picture::{Picture, picture};
use crate::talk::{At, PROTOCOL, Talk, record, refused};
use crate::world::{Account, World, dates, ok, private, told};

/// A store behind ssh, under an account of its own.
pub struct Remote {
    pub world: World,
    pub account: Account,
    pub sshd: Sshd,
    pub store: std::path::PathBuf,
    pub program: String,
}

impl Remote {
    pub fn new() -> Remote {
        let account = Account::new();
        let sshd = Sshd::start(&account.name);
        let store = account.folder("store");
        let program = account.home.join("link-sync");
        std::fs::copy(testkit::bin("link-sync"), &program).unwrap();
        let program = program.display().to_string();
        let remote = Remote { world: World::new(), account, sshd, store, program };
        remote.world.file("a", "a");
        remote.profile(&remote.program, &remote.sshd.known_hosts.display().to_string());
        remote
    }

    pub fn profile(&self, program: &str, known_hosts: &str) {
        self.world.write_profile(&format!(
            "[snapshot]\nstore = \"{}@127.0.0.1:{}\"\n[snapshot.ssh]\nport = {}\nidentity = \"{}\"\n\
             known_hosts = \"{known_hosts}\"\nremote_program = \"{program}\"\n\
             [[snapshot.source]]\nname = \"docs\"\npath = \"{}\"\n",
            self.account.name,
            self.store.display(),
            self.sshd.port,
            self.sshd.identity.display(),
            self.world.source.display(),
        ));
    }
}

#[test]
fn hosts_keys_and_programs_that_are_not_there() {
    let remote = Remote::new();
    let none = remote.world.dir.join("none");
    remote.profile(&remote.program, &none.display().to_string());
    let unknown = remote.world.snapshot(&[]).expect(69);
    assert!(told(&unknown).contains("fingerprint"), "{unknown:?}");

    let known = remote.sshd.known_hosts.display().to_string();
    remote.profile("/usr/sbin/no-such-link-sync", &known);
    assert!(told(&remote.world.snapshot(&[]).expect(69)).contains("install link-sync on"));

    // A far end of another time.
    let odd = remote.account.home.join("odd");
    script(
        &odd,
        "#!/bin/sh\nprintf '\\nlink-sync serve: ready\\n'\nhead -c 5 >/dev/null\nm='{\"err\":[78,{\"kind\":\"config\",\"message\":\"the source speaks protocol 1, this speaks 9\",\"causes\":[],\"hint\":\"install the same version on both machines\",\"command\":null}]}'\nprintf \"M\\000\\000\\000$(printf '\\\\%03o' ${#m})%s\" \"$m\"\nsleep 1\n",
    );
    remote.profile(&odd.display().to_string(), &known);
    assert!(told(&remote.world.snapshot(&[]).expect(78)).contains("same version on both"));

    // A folder there that is not the account's.
    remote.profile(&remote.program, &known);
    ok("chown", &["root:root", remote.store.to_str().unwrap()]);
    for mode in ["0700", "0755"] {
        ok("chmod", &[mode, remote.store.to_str().unwrap()]);
        let cure = format!("chown -R {}: {}", remote.account.name, remote.store.display());
        assert!(told(&remote.world.snapshot(&[]).expect(77)).contains(&cure));
    }

    std::fs::write(&remote.sshd.authorized_keys, "").unwrap();
    assert!(told(&remote.world.snapshot(&[]).expect(77)).contains("authorized_keys"));
}

#[test]
fn a_talkative_shell_and_a_forced_command() {
    let remote = Remote::new();
    let known = remote.sshd.known_hosts.display().to_string();
    let greeting = "echo Welcome; echo '  to S2'; printf 'no newline at the end'";
    std::fs::write(remote.account.home.join(".bashrc"), greeting).unwrap();
    remote.world.snapshot(&[]).expect(0);
    assert_eq!(dates(&remote.store).len(), 1);

    // S2's own profile decides; it is the account's.
    let etc = remote.account.folder("etc");
    let profile = |store: &std::path::Path| {
        std::fs::write(
            etc.join("home.toml"),
            format!("[store]\npath = \"{}\"\nreserve_bytes = 0\n", store.display()),
        )
        .unwrap();
        ok("chown", &[&remote.account.name, etc.join("home.toml").to_str().unwrap()]);
        ok("chmod", &["0600", etc.join("home.toml").to_str().unwrap()]);
    };
    profile(&remote.store);
    let forced =
        format!("command=\"{} serve --config {}/home.toml\",restrict", remote.program, etc.display());
    remote.sshd.set_key_options(&forced);
    remote.world.snapshot(&[]).expect(0);
    assert_eq!(dates(&remote.store).len(), 2);
    assert_eq!(
        remote.world.act("list", &[]).expect(0).json["data"]["snapshots"].as_array().unwrap().len(),
        2
    );

    // What the key for backups does not read is said with its cure; another key, or the same words on S2, read it.
    let first = dates(&remote.store).remove(0);
    let reads: [(&str, &[&str]); 3] =
        [("find", &["--name", "a"]), ("diff", &["--from", &first]), ("list", &["--sizes"])];
    for (action, options) in reads {
        let refused = told(&remote.world.act(action, options).expect(77));
        assert!(
            refused.contains("not read them") && refused.contains("restore_identity"),
            "{action}: {refused}"
        );
    }
    remote.sshd.set_key_options(&forced.replace(" serve ", " serve --read-only "));
    for (action, options) in reads {
        remote.world.act(action, options).expect(0);
    }
    assert!(told(&remote.world.snapshot(&[]).expect(77)).contains("not change it"));
    remote.sshd.set_key_options(&forced);

    // Rules that are missing are missing there.
    profile(&remote.store);
    let refused = told(&remote.world.act("prune", &[]).expect(78));
    assert!(
        refused.contains(&format!("on {}@127.0.0.1: write, in [store.retention]", remote.account.name)),
        "{refused}"
    );

    // What is wrong in S2's profile is told once, and with its place there.
    let text = std::fs::read_to_string(etc.join("home.toml")).unwrap();
    std::fs::write(etc.join("home.toml"), text + "keep = 3\n").unwrap();
    let refused = told(&remote.world.snapshot(&[]).expect(78));
    assert!(refused.contains(&format!("correct {}/home.toml, line 4; did", etc.display())), "{refused}");
    assert_eq!(refused.matches("unknown field").count(), 1, "{refused}");

    // Somebody who tries the key learns what it is for, and whether the store is there.
    profile(&remote.store);
    let try_key = || {
        let output = Command::new("ssh")
            .args(["-n", "-o", "IdentitiesOnly=yes", "-o", &format!("UserKnownHostsFile={known}"), "-p"])
            .args([&remote.sshd.port.to_string(), "-i", remote.sshd.identity.to_str().unwrap()])
            .arg(format!("{}@127.0.0.1", remote.account.name))
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, answer) = try_key();
    assert!(code == Some(0) && answer.contains("serve: ready") && answer.contains("for backups"), "{answer}");
    profile(&remote.account.home.join("none"));
    let (code, answer) = try_key();
    assert!(code == Some(78) && answer.contains("there is no store"), "{answer}");

    profile(&remote.account.folder("elsewhere"));
    assert!(told(&remote.world.snapshot(&[]).expect(78)).contains("the other machine serves"));
    assert_eq!(dates(&remote.store).len(), 2);
}

/// A world with a published snapshot, a symbolic link in it that leads to a treasure outside.
struct Attacked {
    world: World,
    outside: std::path::PathBuf,
    date: String,
    before: [Picture; 3],
}

impl Attacked {
    fn new() -> Attacked {
        let world = World::new();
        world.file("a", "a");
        world.file("dir/b", "b");
        let outside = world.dir.join("outside");
        private(&outside);
        std::fs::write(outside.join("treasure"), "t").unwrap();
        std::os::unix::fs::symlink(&outside, world.source.join("link")).unwrap();
        let held = world.publish();
        let date = held.file_name().unwrap().to_str().unwrap().to_owned();
        let before = [picture(&held), picture(&outside), picture(&world.source)];
        Attacked { world, outside, date, before }
    }

    /// Nothing has happened anywhere, and backups go on.
    fn unharmed(self) {
        let Attacked { world, outside, date, before } = self;
        for (before, place) in before.iter().zip([&world.store.join(&date), &outside, &world.source]) {
            before.same_as(&picture(place));
        }
        assert_eq!(world.dates(), [date]);
        world.publish();
        world.newest_is_source();
    }
}

fn merge(source: &str) -> Value {
    json!({"ask": "merge", "source": source, "times": true, "again": false})
}

fn receive(source: &str, capabilities: &str) -> Value {
    json!({"ask": "receive", "source": source, "capabilities": capabilities, "checksum": false, "times": true,
        "delta": false, "again": false, "all_xattrs": false, "acls_only": false})
}

#[test]
fn a_hostile_source_reaches_nothing_but_the_open_partial() {
    let attacked = Attacked::new();
    let store = attacked.world.store.clone();
    // What is refused leaves the conversation in step, so one is enough.
    let mut talk = Talk::begun(&store, &[]);
    let alive = |talk: &mut Talk| {
        let flushed = talk.ask(&json!({"ask": "flush"}));
        assert!(flushed.get("ok").is_some(), "{flushed}");
    };
    for source in ["..", ".", "../outside", "", ".meta", "/", "a/b", "A", "-x"] {
        for ask in ["clone", "drop", "compare"] {
            let answer = talk.ask_with(&json!({"ask": ask, "source": source}), &[b"a".to_vec()]);
            refused(&answer, 77, "is not a name");
        }
        let reuse = json!({"ask": "reuse", "source": source, "fresh": true});
        refused(&talk.ask_with(&reuse, &[]), 77, "is not a name");
        refused(&talk.ask_with(&merge(source), &[]), 77, "is not a name");
        refused(&talk.ask(&json!({"ask": "fresh", "source": source})), 77, "is not a name");
        let room = json!({"ask": "room", "source": source, "bytes": 1, "inodes": 1});
        refused(&talk.ask(&room), 77, "is not a name");
        talk.frame(b'M', receive(source, "e.LsfxCIvu").to_string().as_bytes());
        talk.frame(b'E', b"");
        refused(&talk.answer(), 77, "is not a name");
    }
    alive(&mut talk);
    let long = "x/".repeat(3000);
    for path in ["../docs/a", "/etc/passwd", "a/../../x", "dir//b", "./a", "dir/", "a\0b", &long] {
        for ask in ["clone", "drop"] {
            let answer = talk.ask_with(&json!({"ask": ask, "source": "docs"}), &[path.into()]);
            refused(&answer, 77, "leads out of the snapshot: refused");
        }
        for kind in [libc::S_IFDIR, libc::S_IFREG] {
            let answer = talk.ask_with(&merge("docs"), &[record(kind, path.as_bytes())]);
            refused(&answer, 77, "leads out of the snapshot: refused");
        }
        for kind in [0, libc::S_IFDIR] {
            let answer =
                talk.ask_with(&json!({"ask": "compare", "source": "docs"}), &[record(kind, path.as_bytes())]);
            refused(&answer, 77, "leads out of the snapshot: refused");
        }
    }
    // As deep as no folder is: whoever makes all of it, one below the other, needs a stack as deep.
    let deep = ["d"; 60_000].join("/");
    refused(
        &talk.ask_with(&json!({"ask": "drop", "source": "docs"}), &[deep.clone().into()]),
        77,
        "too long",
    );
    refused(&talk.ask_with(&merge("docs"), &[record(libc::S_IFDIR, deep.as_bytes())]), 77, "too long");
    alive(&mut talk);
    // rsync's arguments are not the source's to choose.
    for capabilities in ["-rf", ".Ls --config=/etc/passwd", "e;id", &"a".repeat(40)] {
        talk.frame(b'M', receive("docs", capabilities).to_string().as_bytes());
        talk.frame(b'E', b"");
        refused(&talk.answer(), 77, "odd things of itself");
    }
    // Through the stored symlink nothing can be put, and nothing taken.
    for path in ["link/treasure", "link/new", "link/new/deep"] {
        refused(
            &talk.ask_with(&json!({"ask": "drop", "source": "docs"}), &[path.into()]),
            1,
            "cannot remove link/",
        );
        for kind in [libc::S_IFDIR, libc::S_IFREG] {
            let gone = talk.ask_with(&merge("docs"), &[record(kind, path.as_bytes())]);
            assert_eq!((&gone["ok"]["missing"], &gone["ok"]["received"]), (&1.into(), &0.into()), "{gone}");
        }
    }
    alive(&mut talk);
    assert_eq!(talk.end().0, 0);
    attacked.unharmed();
}

#[test]
fn a_key_may_ask_what_its_door_has_and_nothing_else() {
    let attacked = Attacked::new();
    let store = attacked.world.store.clone();
    let date = attacked.date.clone();
    let meta = |more: Value| {
        let mut meta = json!({"run_id": null, "consistency": "sealed", "started_at": "", "tool_version": "",
            "sources": [{"name": "docs", "path": "/", "fs_id": null, "submounts": [], "paths": 0, "bytes": 0}]});
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        meta
    };
    let reads = [
        json!({"ask": "hold", "date": date}),
        json!({"ask": "look"}),
        json!({"ask": "find", "pattern": "*", "source": null, "user": null, "limit": 9}),
        json!({"ask": "diff", "from": date, "to": date, "source": null, "limit": 9}),
        json!({"ask": "list", "sizes": true}),
        json!({"ask": "send", "strip": 0, "capabilities": "", "checksum": false, "dry": false, "xattrs": false, "acls": false}),
    ];
    let copies = [
        json!({"ask": "open", "copy": true}),
        json!({"ask": "open", "base": date}),
        json!({"ask": "open", "copy": true, "base": null}),
        json!({"ask": "resume", "id": "x", "keep": true}),
        json!({"ask": "part"}),
        json!({"ask": "publish", "text": meta(json!({})).to_string()}),
        json!({"ask": "publish", "meta": "text"}),
        json!({"ask": "publish", "meta": meta(json!({"date": "2999-01-01T00-00-00Z"}))}),
        json!({"ask": "publish", "meta": meta(json!({"manifest": null, "id": "mine"}))}),
    ];
    // The key that backs up: not in either state. Who asks is not served any more.
    for ask in reads.iter().chain(&copies) {
        let mut idle = Talk::at(At::Backup, &store, &[]);
        refused(&idle.ask(ask), 77, "is no request for it");
        assert_eq!(idle.ended().0, 77, "{ask}");
        let mut writing = Talk::begun(&store, &[]);
        refused(&writing.ask(ask), 77, "is no request for it");
        assert_eq!(writing.ended().0, 77, "{ask}");
    }
    // The key that restores changes nothing.
    let writes = [
        json!({"ask": "open"}),
        json!({"ask": "discard"}),
        json!({"ask": "prune", "dry_run": false}),
        json!({"ask": "fresh", "source": "docs"}),
        json!({"ask": "clone", "source": "docs"}),
        json!({"ask": "drop", "source": "docs"}),
        json!({"ask": "flush"}),
        json!({"ask": "publish", "meta": meta(json!({}))}),
        json!({"ask": "verify", "options": {"date": "all", "sample": 100.0, "seed": 1, "limit": 1}}),
        merge("docs"),
        receive("docs", "e.LsfxCIvu"),
    ];
    for ask in writes.iter().chain(&copies) {
        let mut idle = Talk::at(At::Read, &store, &[]);
        refused(&idle.ask(ask), 77, "is no request for it");
        assert_eq!(idle.ended().0, 77, "{ask}");
    }
    // At the wrong time.
    for ask in [merge("docs"), json!({"ask": "flush"}), json!({"ask": "publish", "meta": meta(json!({}))})] {
        refused(
            &Talk::at(At::Backup, &store, &[]).ask(&ask),
            1,
            "cannot be asked now: no snapshot has been begun",
        );
    }
    for ask in [json!({"ask": "open"}), json!({"ask": "list"}), json!({"ask": "prune", "dry_run": true})] {
        refused(&Talk::begun(&store, &[]).ask(&ask), 1, "cannot be asked now: a snapshot has been begun");
    }
    refused(&Talk::at(At::Read, &store, &[]).ask(&reads[1]), 1, "cannot be asked now: no snapshot is held");
    // Before hello; in another language; not at all understood.
    for ask in [json!({"ask": "open"}), json!({"ask": "list"}), json!({"ask": "hold", "date": "latest"})] {
        refused(&Talk::silent(At::Backup, &store, &[]).ask(&ask), 77, "is no request for it");
    }
    let old = Talk::silent(At::Backup, &store, &[]).ask(&json!({"ask": "hello", "protocol": 3}));
    refused(&old, 78, "the source speaks protocol 3");
    assert!(old["err"][1]["hint"].as_str().unwrap().contains("same version on both"), "{old}");
    for nonsense in [json!(null), json!([]), json!({"ask": 7}), json!("open")] {
        refused(&Talk::at(At::Backup, &store, &[]).ask(&nonsense), 1, "not understood");
    }
    // What is ours in a snapshot is no part of it.
    let mut reader = Talk::at(At::Read, &store, &[]);
    assert!(reader.ask(&reads[0]).get("ok").is_some());
    refused(&reader.ask_with(&reads[1], &[b".meta/snapshot.json".to_vec()]), 77, "no part of a source");
    refused(&reader.ask_with(&reads[1], &[b"../x".to_vec()]), 77, "leads out");
    reader.end();
    attacked.unharmed();
}

#[test]
fn the_door_of_copies_opens_to_the_process_that_copies_and_to_nobody_else() {
    let remote = Remote::new();
    remote.world.snapshot(&[]).expect(0);
    let store = remote.store.to_str().unwrap();
    // By hand, with descriptors that anybody has, or a socket that somebody else has made.
    let words = format!("copy-end --store {store} --reserve-bytes 0 --flush-bytes 1 --starter-fd");
    for fd in ["0", "1", "2", "3", "9", "-1"] {
        let script = format!("exec {} {words}={fd} 3<&0 </dev/null", testkit::bin("link-sync").display());
        let ran = testkit::run(Command::new("sh").args(["-c", &script]));
        assert_eq!(ran.code, 2, "{fd}: {ran:?}");
        assert!(ran.stderr.contains("never by hand"), "{ran:?}");
    }
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    use std::os::fd::AsRawFd as _;
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    // A socket of ours, but a child of the shell's.
    let line = format!("{} {words}={}; exit $?", testkit::bin("link-sync").display(), theirs.as_raw_fd());
    assert_eq!(testkit::run(Command::new("sh").args(["-c", &line]).stdin(Stdio::null())).code, 2);
    drop((ours, theirs));

    // Through ssh: what the key's command is stands in authorized_keys; what the source would like instead is not run.
    let forced = format!("command=\"{} serve --store {store}\",restrict", remote.program);
    remote.sshd.set_key_options(&forced);
    let ssh = |wanted: &str| {
        let mut ssh = Command::new("ssh");
        ssh.args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-p", &remote.sshd.port.to_string()]);
        ssh.arg("-i").arg(&remote.sshd.identity);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", remote.sshd.known_hosts.display()));
        let mut child = ssh
            .arg(format!("{}@127.0.0.1", remote.account.name))
            .arg(wanted)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("{{\"ask\":\"hello\",\"protocol\":{PROTOCOL}}}");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&[b"M", &(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()).unwrap();
        drop(stdin);
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        child.wait().unwrap();
        said
    };
    for wanted in [
        "link-sync copy-end --starter-fd=3 --store=/",
        "link-sync serve --read-only",
        "copy-end",
        "serve home --copy",
    ] {
        assert!(ssh(wanted).contains("\"door\":\"backup\""), "{wanted}");
    }
}
