//! A profile that tells by every way, and receivers for each: a server on loopback, a sendmail, a command.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Ran, bin, run, scratch, script, scripts};

/// What stands in the files that nobody else may read.
pub const SECRET: &str = "s3cr3t-of-the-receiver";

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub head: String,
    pub body: String,
}

/// A server of HTTP. Paths that hold `/hang/` are never answered, `/garbage/` not in HTTP, `/away/` with a redirect.
#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Receiver {
    pub fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Receiver { port: listener.local_addr().unwrap().port(), requests: Arc::default() };
        let mine = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mine = mine.clone();
                std::thread::spawn(move || mine.serve(stream));
            }
        });
        receiver
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().ok()?;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let path = head.split(' ').nth(1)?.to_owned();
        let body = String::from_utf8_lossy(&body).into_owned();
        self.requests.lock().unwrap().push(Request { path: path.clone(), head, body });
        let mut stream = stream;
        let answer: &[u8] = if path.contains("/hang/") {
            std::thread::sleep(Duration::from_secs(60));
            b""
        } else if path.contains("/garbage/") {
            b"\0\xff\x1b[31m what is this\r\n\r\n"
        } else if path.contains("/away/") {
            b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"
        } else if path.contains("/broken/") {
            b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
        };
        stream.write_all(answer).ok()
    }

    /// What arrived since the last time.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

/// A profile and its receivers.
pub struct World {
    pub dir: tempfile::TempDir,
    pub receiver: Receiver,
    name: &'static str,
}

impl World {
    /// A profile of this name, with these tables; DIR in them is the folder.
    pub fn new(name: &'static str, tables: &str) -> World {
        let world = World { dir: scratch(), receiver: Receiver::start(), name };
        std::fs::set_permissions(world.dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let port = world.receiver.port;
        for (file, text) in [
            ("ping", format!("http://127.0.0.1:{port}/ping/{SECRET}?create=1\n")),
            ("ntfy", format!("http://127.0.0.1:{port}/topic\n")),
            ("token", format!("{SECRET}\n")),
            ("apprise.yml", format!("urls:\n  - json://127.0.0.1:{port}/apprise/{SECRET}\n")),
        ] {
            world.secret(file, &text);
        }
        // It takes mail as sendmail does: recipients as words, the mail on stdin.
        let mail = world.path("mails");
        std::fs::create_dir(&mail).unwrap();
        script(
            &world.path("sendmail"),
            &format!(
                "#!/bin/sh\nn=$(ls '{0}' | wc -l)\n{{ echo \"to $*\"; cat; }} >'{0}/.new' && mv '{0}/.new' '{0}/'$n\n",
                mail.display()
            ),
        );
        std::fs::create_dir_all(world.path("bin")).unwrap();
        for tool in ["link-sync", "nc-maint", "offsite-push"] {
            let text = format!(
                "#!/bin/sh\n[ ! -e '{0}/instead.'$1 ] || exec cat '{0}/instead.'$1\nexec '{1}' \"$@\"\n",
                world.dir.path().display(),
                bin(tool).display()
            );
            script(&world.path("bin").join(tool), &text);
        }
        world.profile(tables);
        world
    }

    /// Writes the profile anew.
    pub fn profile(&self, tables: &str) {
        let dir = self.dir.path().display().to_string();
        let text = format!(
            "state_dir = \"{dir}/state\"\n[snapshot]\nstore = \"{dir}/store\"\n{}",
            tables.replace("DIR", &dir)
        );
        std::fs::write(self.path(&format!("{}.toml", self.name)), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file that only root reads.
    pub fn secret(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).unwrap();
        std::fs::set_permissions(self.path(file), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(scripts().join("notify"));
        command.arg(self.name).args(["--bin".as_ref(), self.path("bin").as_os_str()]);
        command.args(["--config".as_ref(), self.path(&format!("{}.toml", self.name)).as_os_str()]).args(args);
        command
    }

    pub fn notify(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args))
    }

    /// A run of this kind has ended with this object.
    pub fn ended(&self, kind: &str, object: &Value) -> Ran {
        let mut command = self.command(&["--ended", kind]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{object}").unwrap();
        testkit::judge(child.wait_with_output().unwrap())
    }

    /// The mails that arrived since the last time, in order.
    pub fn mails(&self) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(self.path("mails")).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let mails = names
            .iter()
            .map(|name| String::from_utf8_lossy(&std::fs::read(name).unwrap()).into_owned())
            .collect();
        for name in names {
            std::fs::remove_file(name).unwrap();
        }
        mails
    }

    pub fn state(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("state/notify.json")).unwrap()).unwrap()
    }

    pub fn history(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("state/history.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A status object of a backup that ended so.
pub fn object(code: i32, message: &str) -> Value {
    let status = match code {
        0 => "ok",
        3 => "partial",
        4 => "dirty",
        69 => "unavailable",
        _ => "failed",
    };
    let error = json!({"kind": "failed", "message": message, "causes": ["the first cause"], "hint": "a hint", "command": null});
    json!({"schema": 1, "tool": "backup-local", "version": "0.1.0", "action": "run", "profile": "heard", "status": status,
        "exit_code": code, "changed": false, "started_at": "2026-11-22T03:30:00Z", "duration_ms": 61_000,
        "data": {"maintenance_ms": 900, "sources": [{"sent_bytes": 5}, {"sent_bytes": 7}]}, "warnings": [],
        "error": if [0, 3].contains(&code) { Value::Null } else { error }, "left_behind": []})
}
