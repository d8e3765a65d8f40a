//! The first words with a server, spoken by ourselves: what it answers before anybody has proved who he is.
//!
//! psql prints a server's refusal in the server's language. The protocol has its code as well, and this much of the
//! protocol (version 3, since PostgreSQL 7.4) is one message each way.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::dbhost::DbHost;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where Debian's libpq looks for the socket.
const SOCKETS: &str = "/var/run/postgresql";
/// More than any refusal is long.
const LONGEST: usize = 64 << 10;

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Nobody answers there, or not as PostgreSQL does.
    Silent,
    /// The server will not go on: its SQLSTATE.
    Refused(String),
    /// It asks who we are, or lets us in.
    Speaks,
}

/// Greets the server at `host` as `user` who wants `database`.
pub(crate) fn greet(host: &DbHost, user: &str, database: &str) -> Greeting {
    talk(host, user, database).unwrap_or(Greeting::Silent)
}

fn talk(host: &DbHost, user: &str, database: &str) -> std::io::Result<Greeting> {
    let port = host.port.unwrap_or(5432);
    match host.host.as_deref() {
        None => exchange(unix(SOCKETS, port)?, user, database),
        Some(dir) if dir.starts_with('/') => exchange(unix(dir, port)?, user, database),
        Some(name) => {
            let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
            for address in (name, port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, PATIENCE) {
                    Ok(stream) => {
                        stream.set_read_timeout(Some(PATIENCE))?;
                        stream.set_write_timeout(Some(PATIENCE))?;
                        return exchange(stream, user, database);
                    }
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
    }
}

fn unix(dir: &str, port: u16) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(format!("{dir}/.s.PGSQL.{port}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(mut stream: impl Read + Write, user: &str, database: &str) -> std::io::Result<Greeting> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for word in ["user", user, "database", database] {
        body.extend_from_slice(word.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(0);
    stream.write_all(&[&length.to_be_bytes()[..], &body].concat())?;
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    match head[0] {
        b'R' => Ok(Greeting::Speaks),
        b'E' if (4..LONGEST).contains(&length) => {
            let mut fields = vec![0; length - 4];
            stream.read_exact(&mut fields)?;
            Ok(code(&fields).map_or(Greeting::Silent, Greeting::Refused))
        }
        _ => Ok(Greeting::Silent),
    }
}

/// The field `C` of an error message.
fn code(fields: &[u8]) -> Option<String> {
    let field = fields.split(|b| *b == 0).find(|f| f.first() == Some(&b'C'))?;
    let code = std::str::from_utf8(&field[1..]).ok()?;
    (code.len() == 5 && code.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_among_the_fields() {
        assert_eq!(
            code(b"SFATAL\0VFATAL\0C57P03\0Mdas Datenbanksystem startet\0\0").as_deref(),
            Some("57P03")
        );
        assert_eq!(code(b"SFATAL\0Mold\0\0"), None);
    }
}
