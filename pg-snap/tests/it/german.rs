//! What a server says is told by its code, in whatever language it says it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lab::Lab;

/// A server that greets everybody in the same way: `asks` for a password first, or not, and then refuses.
fn server(asks: bool, code: &'static str, message: &'static str) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            // A client that goes away is nobody's business.
            stream.and_then(|s| refuse(s, asks, code, message)).ok();
        }
    });
    (port, stop)
}

fn packet(stream: &mut TcpStream, head: usize) -> std::io::Result<Vec<u8>> {
    let mut start = vec![0; head + 4];
    stream.read_exact(&mut start)?;
    let length = u32::from_be_bytes(start[head..].try_into().unwrap()) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn refuse(mut stream: TcpStream, asks: bool, code: &str, message: &str) -> std::io::Result<()> {
    // Until it does not ask for encryption.
    while packet(&mut stream, 0)?.starts_with(&80_877_103_u32.to_be_bytes()) {
        stream.write_all(b"N")?;
    }
    if asks {
        stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3])?;
        packet(&mut stream, 1)?;
    }
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap();
    stream.write_all(&[b"E".as_slice(), &length.to_be_bytes(), fields.as_bytes()].concat())
}

#[test]
fn a_server_that_starts_is_unavailable_and_one_that_knows_us_not_is_a_denial() {
    let lab = Lab::empty();
    for (asks, code, message, exit) in [
        (false, "57P03", "das Datenbanksystem startet", 69),
        (false, "53300", "tut mir leid, schon zu viele Verbindungen", 69),
        (false, "28000", "kein pg_hba.conf-Eintrag für Host", 77),
        (true, "28P01", "Passwort-Authentifizierung für Benutzer »oc« fehlgeschlagen", 77),
    ] {
        let (port, stop) = server(asks, code, message);
        let host = format!("127.0.0.1:{port}");
        let ran = lab.run("dump", ["--host", &host]).expect(exit);
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
        stop.store(true, Ordering::Relaxed);
        TcpStream::connect(("127.0.0.1", port)).ok();
    }
}

#[test]
fn a_database_that_is_not_there_is_known_by_asking_another() {
    let lab = Lab::empty();
    let ran = lab.run("dump", ["--name", "no such database"]).expect(78);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("--name"));
    let wrong = lab.path("wrong");
    testkit::script(&wrong, "not the password\n");
    crate::lab::private(&wrong);
    lab.run("dump", ["--name", "no such database", "--password-file", wrong.to_str().unwrap()]).expect(77);
}
