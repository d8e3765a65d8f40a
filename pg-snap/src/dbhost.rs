//! Nextcloud's `dbhost`, read as Nextcloud and libpq together read it.
//!
//! | form | meaning |
//! |---|---|
//! | empty | libpq's own default socket |
//! | `host`, `host:port`, an address | TCP |
//! | `[::1]`, `[::1]:port`, `::1` | TCP over IPv6 |
//! | `/dir`, `/dir:port`, `:/dir` | the socket in that folder |
//! | `localhost:/dir` | TCP: Nextcloud ignores the folder |
//!
//! `dbport` plays no part: Nextcloud ignores it too.

use std::fmt;
use std::net::Ipv6Addr;

/// Where the server listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DbHost {
    /// Host name, address, or the folder of a socket (it then starts with `/`); `None`: libpq's default.
    pub(crate) host: Option<String>,
    /// Port; `None`: 5432.
    pub(crate) port: Option<u16>,
}

impl DbHost {
    /// Reads a `dbhost`; the error is a sentence.
    pub(crate) fn parse(text: &str) -> Result<DbHost, String> {
        let text = text.trim();
        if text.contains('\0') || text.contains('\n') {
            return Err("the database host must be one line".into());
        }
        if text.is_empty() {
            return Ok(DbHost::default());
        }
        if let Some(dir) = text.strip_prefix(":/") {
            return socket(&format!("/{dir}"));
        }
        if text.starts_with('/') {
            return socket(text);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (address, after) =
                rest.split_once(']').ok_or_else(|| format!("'{text}' lacks the closing ']'"))?;
            let port = match after.strip_prefix(':') {
                Some(digits) => Some(port(digits, text)?),
                None if after.is_empty() => None,
                None => return Err(format!("'{text}': only :PORT may follow the ']'")),
            };
            return Ok(DbHost { host: Some(address.to_owned()), port });
        }
        // A bare IPv6 address, perhaps with a zone (fe80::1%eth0).
        let without_zone = text.split('%').next().unwrap_or(text);
        if without_zone.parse::<Ipv6Addr>().is_ok() {
            return Ok(DbHost { host: Some(text.to_owned()), port: None });
        }
        let Some((host, after)) = text.rsplit_once(':') else {
            return Ok(DbHost { host: Some(text.to_owned()), port: None });
        };
        if host.is_empty() || host.contains(':') {
            return Err(format!("'{text}' is not a host; an IPv6 address with a port is written [::1]:5432"));
        }
        let port = if after.starts_with('/') { None } else { Some(port(after, text)?) };
        Ok(DbHost { host: Some(host.to_owned()), port })
    }
}

fn socket(text: &str) -> Result<DbHost, String> {
    let (dir, port) = match text.rsplit_once(':') {
        Some((dir, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            (dir, Some(port(digits, text)?))
        }
        _ => (text, None),
    };
    Ok(DbHost { host: Some(dir.to_owned()), port })
}

fn port(digits: &str, text: &str) -> Result<u16, String> {
    let number = digits.parse::<u16>().ok().filter(|n| *n != 0);
    number.ok_or_else(|| format!("'{text}': '{digits}' is not a port; use 1 to 65535"))
}

impl fmt::Display for DbHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => f.write_str("the default socket")?,
            Some(dir) if dir.starts_with('/') => write!(f, "the socket in {dir}")?,
            Some(host) => f.write_str(host)?,
        }
        match self.port {
            Some(port) => write!(f, ", port {port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_nextcloud() {
        for (text, host, port) in [
            ("", None, None),
            ("  ", None, None),
            ("db.example", Some("db.example"), None),
            ("db.example:5433", Some("db.example"), Some(5433)),
            ("192.0.2.7", Some("192.0.2.7"), None),
            ("192.0.2.7:5433", Some("192.0.2.7"), Some(5433)),
            ("/run/postgresql", Some("/run/postgresql"), None),
            ("/run/postgresql:5433", Some("/run/postgresql"), Some(5433)),
            ("/odd:dir/x", Some("/odd:dir/x"), None),
            (":/run/postgresql", Some("/run/postgresql"), None),
            (":/run/postgresql:5433", Some("/run/postgresql"), Some(5433)),
            ("localhost:/run/postgresql", Some("localhost"), None),
            ("::1", Some("::1"), None),
            ("[::1]", Some("::1"), None),
            ("[2001:db8::7]:5433", Some("2001:db8::7"), Some(5433)),
            ("fe80::1%eth0", Some("fe80::1%eth0"), None),
        ] {
            let expected = DbHost { host: host.map(str::to_owned), port };
            assert_eq!(DbHost::parse(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_host_says_why() {
        for (text, why) in [
            ("db:", "port"),
            ("db:0", "port"),
            ("db:65536", "port"),
            ("db:abc", "port"),
            ("[::1", "closing"),
            ("[::1]x", "follow"),
            ("a:b:5432", "IPv6"),
            (":5432", "not a host"),
            ("/dir:70000", "port"),
            ("a\nb", "one line"),
        ] {
            let error = DbHost::parse(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
