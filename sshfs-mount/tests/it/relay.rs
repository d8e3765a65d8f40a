//! The relay by itself, as ssh runs it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{bin, scratch};

struct Relay {
    dir: tempfile::TempDir,
    child: Child,
    far: TcpStream,
}

fn command(counter: &PathBuf, port: u16) -> Command {
    std::fs::write(counter, "").unwrap();
    let mut command = Command::new(bin("sshfs-mount"));
    command.arg("relay").arg("--counter").arg(counter).args(["--connect-timeout", "2"]);
    command.args(["--", "127.0.0.1", &port.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Relay {
    fn start() -> Relay {
        let dir = scratch();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let child = command(&dir.path().join("wire"), listener.local_addr().unwrap().port()).spawn().unwrap();
        let far = listener.accept().unwrap().0;
        Relay { dir, child, far }
    }

    /// Bytes sent and received, as written down.
    fn counts(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(self.dir.path().join("wire")).unwrap();
        let fields: Vec<u64> = text.split_whitespace().map(|f| f.parse().unwrap()).collect();
        assert_eq!((text.lines().count(), fields[0]), (1, u64::from(self.child.id())));
        (fields[1], fields[2])
    }

    #[track_caller]
    fn ends(&mut self, limit: Duration) {
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < limit, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn an_end_of_one_direction_leaves_the_other_open() {
    let mut relay = Relay::start();
    relay.child.stdin.take().unwrap().write_all(b"question").unwrap();
    let mut asked = String::new();
    relay.far.read_to_string(&mut asked).unwrap();
    assert_eq!(asked, "question");
    std::thread::sleep(Duration::from_millis(700));
    relay.far.write_all(b"the answer").unwrap();
    relay.far.shutdown(Shutdown::Both).unwrap();
    let mut answer = String::new();
    relay.child.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "the answer");
    relay.ends(Duration::from_secs(5));
    assert_eq!(relay.counts(), (8, 10));
}

#[test]
fn it_ends_when_the_far_end_closes_though_ssh_says_nothing() {
    let mut relay = Relay::start();
    relay.far.write_all(b"bye").unwrap();
    relay.far.shutdown(Shutdown::Both).unwrap();
    relay.ends(Duration::from_secs(5));
    assert_eq!(relay.counts(), (0, 3));
}

#[test]
fn it_ends_when_ssh_is_gone_though_the_far_end_takes_nothing() {
    let mut relay = Relay::start();
    let mut stdin = relay.child.stdin.take().unwrap();
    let full = std::thread::spawn(move || {
        // Far more than sockets hold, to a far end that never reads.
        stdin.write_all(&vec![7; 64 << 20]).unwrap_err();
    });
    std::thread::sleep(Duration::from_secs(2));
    let (sent, _) = relay.counts();
    assert!(sent > 0 && sent < 64 << 20, "{sent}: what waits is not counted as sent");
    drop(relay.child.stdout.take());
    relay.ends(Duration::from_secs(5));
    full.join().unwrap();
}

#[test]
fn a_refused_connection_is_told_in_a_sentence() {
    let dir = scratch();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let output = command(&dir.path().join("wire"), port).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(69), 0), "{told}");
    assert!(told.starts_with(&format!("sshfs-mount: cannot connect to 127.0.0.1 port {port}")), "{told}");
    assert_eq!(told.lines().count(), 1);
}
