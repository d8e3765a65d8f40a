//! The far end: behind ssh, under an ordinary account, and towards a source that means harm.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::script;
use testkit::sshd::Sshd;

use crate::picture::picture;
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

    fn profile(&self, program: &str, known_hosts: &str) {
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

    std::fs::write(&remote.sshd.authorized_keys, "").unwrap();
    remote.profile(&remote.program, &known);
    assert!(told(&remote.world.snapshot(&[]).expect(77)).contains("authorized_keys"));
}

#[test]
fn a_talkative_shell_and_a_forced_command() {
    let remote = Remote::new();
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

    profile(&remote.account.folder("elsewhere"));
    assert!(told(&remote.world.snapshot(&[]).expect(78)).contains("the other machine serves"));
    assert_eq!(dates(&remote.store).len(), 2);
}

/// One who speaks the protocol but means harm.
struct Hostile {
    child: std::process::Child,
}

impl Hostile {
    fn at(store: &std::path::Path) -> Hostile {
        let mut command = Command::new(testkit::bin("link-sync"));
        command.arg("serve").arg("--store").arg(store).args(["--reserve-bytes", "0"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut greeting = [0; 24];
        child.stdout.as_mut().unwrap().read_exact(&mut greeting).unwrap();
        assert!(greeting.ends_with(b"ready\n"));
        let mut hostile = Hostile { child };
        assert!(hostile.ask(&json!({"ask": "hello", "protocol": 3})).get("ok").is_some());
        hostile
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        let mut bytes = vec![kind];
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        // It may have ended already; then there is no answer.
        self.child.stdin.as_mut().unwrap().write_all(&bytes).ok();
    }

    /// `null` if it ended instead: whoever speaks out of turn is not served any more.
    fn answer(&mut self) -> Value {
        let out = self.child.stdout.as_mut().unwrap();
        let mut head = [0; 5];
        if out.read_exact(&mut head).is_err() {
            return Value::Null;
        }
        let mut payload = vec![0; u32::from_be_bytes(head[1..].try_into().unwrap()) as usize];
        out.read_exact(&mut payload).unwrap();
        // The stream of an rsync that was refused ends first.
        if head[0] == b'M' { serde_json::from_slice(&payload).unwrap() } else { self.answer() }
    }

    /// One that has begun a snapshot and cloned the base into it.
    fn begun(store: &std::path::Path) -> Hostile {
        let mut hostile = Hostile::at(store);
        assert!(hostile.ask(&json!({"ask": "open"})).get("ok").is_some());
        let clone = hostile.ask_with(&json!({"ask": "clone", "source": "docs"}), &[]);
        assert!(clone.get("ok").is_some(), "{clone}");
        hostile
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.frame(b'M', request.to_string().as_bytes());
        self.answer()
    }

    fn ask_with(&mut self, request: &Value, items: &[Vec<u8>]) -> Value {
        self.frame(b'M', request.to_string().as_bytes());
        let list: Vec<u8> =
            items.iter().flat_map(|i| [&(i.len() as u32).to_le_bytes()[..], i].concat()).collect();
        self.frame(b'L', &list);
        self.frame(b'L', b"");
        self.answer()
    }
}

fn record(kind: u32, path: &str) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 20], path.as_bytes()].concat()
}

#[test]
fn a_hostile_source_reaches_nothing_but_the_open_partial() {
    let world = World::new();
    world.file("a", "a");
    world.file("dir/b", "b");
    let outside = world.dir.join("outside");
    private(&outside);
    std::fs::write(outside.join("treasure"), "t").unwrap();
    // A symlink that leads out, as part of what is stored.
    std::os::unix::fs::symlink(&outside, world.source.join("link")).unwrap();
    let held = world.publish();
    let date = held.file_name().unwrap().to_str().unwrap().to_owned();
    let before = (picture(&held), picture(&outside), picture(&world.source));

    let refused = |request: Value, items: &[Vec<u8>]| {
        let mut hostile = Hostile::begun(&world.store);
        let answer = hostile.ask_with(&request, items);
        assert!(answer.get("ok").is_none(), "{request} {items:?}: {answer}");
        hostile.end();
    };
    let merge = |source: &str| json!({"ask": "merge", "source": source, "times": true, "again": false});
    for source in ["..", ".", "../outside", "", ".meta", "/", "a/b", "A"] {
        for ask in ["clone", "drop"] {
            refused(json!({"ask": ask, "source": source}), &[b"a".to_vec()]);
        }
        refused(merge(source), &[]);
    }
    let long = "x/".repeat(3000);
    for path in ["../docs/a", "/etc/passwd", "a/../../x", "dir//b", "./a", "dir/", "a\0b", &long] {
        refused(json!({"ask": "drop", "source": "docs"}), &[path.into()]);
        for kind in [libc::S_IFDIR, libc::S_IFREG] {
            refused(merge("docs"), &[record(kind, path)]);
        }
    }
    // rsync's arguments are not the source's to choose.
    for capabilities in ["-rf", ".Ls --config=/etc/passwd", "e;id", &"a".repeat(40)] {
        let mut hostile = Hostile::begun(&world.store);
        let receive = json!({"ask": "receive", "source": "docs", "capabilities": capabilities,
            "checksum": false, "times": true, "delta": false, "again": false});
        hostile.frame(b'M', receive.to_string().as_bytes());
        hostile.frame(b'E', b"");
        assert!(hostile.answer().get("ok").is_none(), "{capabilities}");
        hostile.end();
    }
    let mut hostile = Hostile::begun(&world.store);
    // Through the stored symlink: whatever the answer, nothing happens out there.
    for path in ["link/treasure", "link/new", "link/new/deep"] {
        hostile.ask_with(&json!({"ask": "drop", "source": "docs"}), &[path.into()]);
        for kind in [libc::S_IFDIR, libc::S_IFREG] {
            hostile.ask_with(&merge("docs"), &[record(kind, path)]);
        }
    }
    // A date of its own choosing, sources that are not there; and noise.
    assert!(
        hostile.ask(&json!({"ask": "publish", "meta": {"date": "2001-01-01T00-00-00Z"}})).get("ok").is_none()
    );
    assert!(hostile.ask(&json!({"ask": "open"})).get("ok").is_none(), "twice");
    hostile.frame(b'Z', b"?");
    hostile.end();

    before.0.same_as(&picture(&held));
    before.1.same_as(&picture(&outside));
    before.2.same_as(&picture(&world.source));
    assert_eq!(world.dates(), [date]);
    world.publish();
    world.newest_is_source();
}
