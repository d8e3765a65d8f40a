//! Which pg_dump, pg_restore and psql to run, and of which version they are.
//!
//! A configured argv is taken as it is. Otherwise: the client of the server's own major version if
//! Debian's folders hold it (a newer pg_restore writes settings an older server does not know), else the
//! newest there, else what the fixed PATH finds.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use common::fault::Fault;
use common::run::Cmd;

/// Where Debian and Ubuntu keep the clients of each major version.
const FOLDERS: &str = "/usr/lib/postgresql";

/// One client program.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    name: &'static str,
    argv: Vec<OsString>,
    configured: bool,
}

impl Program {
    /// `name` from `configured` if that is not empty, else for a server of major version `wanted`.
    pub(crate) fn find(name: &'static str, configured: &[String], wanted: Option<u32>) -> Program {
        let argv = if configured.is_empty() {
            let installed = installed(Path::new(FOLDERS), name);
            let same = installed.iter().find(|(major, _)| Some(*major) == wanted);
            let best = same.or_else(|| installed.iter().max_by_key(|(major, _)| *major));
            vec![best.map_or_else(|| name.into(), |(_, path)| path.clone().into_os_string())]
        } else {
            configured.iter().map(OsString::from).collect()
        };
        Program { name, argv, configured: !configured.is_empty() }
    }

    /// Whether the profile or an option names it: it may run anywhere then.
    pub(crate) fn is_configured(&self) -> bool {
        self.configured
    }

    /// A command line that begins with it.
    pub(crate) fn cmd(&self) -> Result<Cmd> {
        Cmd::from_argv(&self.argv)
    }

    /// Its version, as `15.18` and 15.
    pub(crate) fn version(&self) -> Result<(String, u32)> {
        let text = self.cmd()?.arg("--version").timeout(std::time::Duration::from_secs(60)).checked()?.text();
        parse_version(&text).ok_or_else(|| {
            let name = self.name;
            Fault::config(format!("`{name} --version` answers '{text}', which is no version"))
                .hint(format!("check {name} in the profile's [database]"))
                .into()
        })
    }

    /// Its version, refused if `server` (number and major) is newer.
    pub(crate) fn version_for(&self, server: &str, server_major: u32) -> Result<String> {
        let (version, major) = self.version()?;
        if major >= server_major {
            return Ok(version);
        }
        let name = self.name;
        Err(Fault::config(format!("{name} {version} is older than the server, which is {server}"))
            .hint(format!(
                "install postgresql-client-{server_major}, or name a newer one: {name} = [\"…\"] in [database]"
            ))
            .into())
    }
}

fn installed(folders: &Path, name: &str) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(folders).into_iter().flatten().flatten();
    entries
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin").join(name))))
        .filter(|(_, path)| path.exists())
        .collect()
}

/// `pg_dump (PostgreSQL) 15.18 (Debian …)`: number and major.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((version.to_owned(), digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_clients_print_them() {
        for (text, version, major) in [
            ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "15.18", 15),
            ("psql (PostgreSQL) 18beta1", "18beta1", 18),
            ("pg_restore (PostgreSQL) 9.6.24", "9.6.24", 9),
        ] {
            assert_eq!(parse_version(text), Some((version.to_owned(), major)));
        }
        assert_eq!(parse_version("no such thing"), None);
    }

    #[test]
    fn the_same_major_version_is_preferred_then_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        for major in ["15", "17", "common"] {
            std::fs::create_dir_all(dir.path().join(major).join("bin")).unwrap();
            std::fs::write(dir.path().join(major).join("bin/psql"), "").unwrap();
        }
        let mut majors: Vec<u32> = installed(dir.path(), "psql").iter().map(|(m, _)| *m).collect();
        majors.sort_unstable();
        assert_eq!(majors, [15, 17]);
        let configured = ["docker".to_owned(), "exec".to_owned(), "db".to_owned(), "psql".to_owned()];
        assert_eq!(Program::find("psql", &configured, Some(15)).argv.len(), 4);
    }
}
