//! A server that is named by its container: its address is asked of docker or podman each time, as it is another one whenever
//! the container is made anew.
//!
//! `docker:NAME` or `podman:NAME`, with `:PORT` behind it if the server does not listen on 5432. Names of the containers' own
//! network, as Nextcloud's `dbhost` has them there, mean nothing on this machine.

use std::time::Duration;

use anyhow::Result;
use common::fault::Fault;
use common::profile::Profile;
use common::run::Cmd;
use serde_json::Value;

use crate::dbhost::DbHost;

/// The longest an engine may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// More than any container's description.
const ANSWER: u64 = 4 << 20;

/// A container, and the port of the server in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Container {
    engine: &'static str,
    name: String,
    port: Option<u16>,
}

/// Reads a `[database] host` or `--host`; one that names a container is where that is now.
pub(crate) fn resolve(text: &str) -> Result<DbHost> {
    let hint = "host, host:port, an address, /socket/dir, /socket/dir:port, docker:CONTAINER";
    match Container::parse(text).map_err(|e| Fault::config(e).hint(hint))? {
        Some(container) => container.address(&container.ask()?),
        None => Ok(DbHost::parse(text).map_err(|e| Fault::config(e).hint(hint))?),
    }
}

/// Nextcloud's own `dbhost`, as this machine reaches it: where the profile names the container that has this name in its
/// networks, it is that.
pub(crate) fn as_seen_from_here(dbhost: &str, profile: &Profile) -> Result<DbHost> {
    let theirs = DbHost::parse(dbhost).map_err(Fault::config)?;
    let named = profile.database.host.as_deref().and_then(|text| Container::parse(text).ok().flatten());
    if let (Some(container), Some(host)) = (named, &theirs.host) {
        let told = container.ask()?;
        if names(&told).any(|name| name == *host)
            && theirs.port.unwrap_or(5432) == container.port.unwrap_or(5432)
        {
            return container.address(&told);
        }
    }
    Ok(theirs)
}

impl Container {
    /// `None`: it is no container. (A host that is called docker, with its port, is none either.)
    fn parse(text: &str) -> Result<Option<Container>, String> {
        let text = text.trim();
        let Some((engine, rest)) = ["docker", "podman"]
            .into_iter()
            .find_map(|engine| Some((engine, text.strip_prefix(engine)?.strip_prefix(':')?)))
        else {
            return Ok(None);
        };
        if rest.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(None);
        }
        let (name, port) = match rest.split_once(':') {
            None => (rest, None),
            Some((name, digits)) => match digits.parse::<u16>() {
                Ok(port) if port != 0 => (name, Some(port)),
                _ => return Err(format!("'{text}': '{digits}' is not a port; use 1 to 65535")),
            },
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if !name.bytes().all(plain) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(format!("'{text}': '{name}' is not the name of a container"));
        }
        Ok(Some(Container { engine, name: name.to_owned(), port }))
    }

    /// What its engine tells of it.
    fn ask(&self) -> Result<Value> {
        let (engine, name) = (self.engine, &self.name);
        let cmd = Cmd::new(engine).args(["inspect", "--type", "container", "--", name]);
        let cmd = cmd.timeout(LIMIT).stdout_limit(ANSWER);
        let output = cmd.output()?;
        let mut told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if !output.status.success() || !told[0].is_object() {
            let fault = Fault::unavailable(format!("{engine} tells nothing of the container {name}"))
                .hint(format!("`{engine} ps` lists those that run: correct host in [database], or start it"));
            return Err(anyhow::Error::from(cmd.failure(&output)).context(fault));
        }
        Ok(told[0].take())
    }

    /// Where its server is reached from this machine.
    fn address(&self, told: &Value) -> Result<DbHost> {
        let (engine, name) = (self.engine, &self.name);
        if told["State"]["Running"] != true {
            return Err(Fault::unavailable(format!(
                "the container {name}, which has the database, does not run"
            ))
            .hint(format!("{engine} start {name}"))
            .into());
        }
        let host = if told["HostConfig"]["NetworkMode"] == "host" {
            Some("127.0.0.1")
        } else {
            networks(told).find_map(|n| n["IPAddress"].as_str().filter(|address| !address.is_empty()))
        };
        let Some(host) = host else {
            return Err(Fault::config(format!(
                "the container {name} has no address that this machine reaches"
            ))
            .hint("publish its port on 127.0.0.1, and give that: [database] host = \"127.0.0.1:5432\"")
            .into());
        };
        Ok(DbHost { host: Some(host.to_owned()), port: self.port })
    }
}

fn networks(told: &Value) -> impl Iterator<Item = &Value> {
    told["NetworkSettings"]["Networks"].as_object().into_iter().flat_map(|all| all.values())
}

/// How other containers may call it.
fn names(told: &Value) -> impl Iterator<Item = &str> {
    let own = told["Name"].as_str().map(|name| name.trim_start_matches('/'));
    let service = told["Config"]["Labels"]["com.docker.compose.service"].as_str();
    let aliases = networks(told).filter_map(|n| n["Aliases"].as_array()).flatten().filter_map(Value::as_str);
    let addresses = networks(told).filter_map(|n| n["IPAddress"].as_str());
    own.into_iter().chain(service).chain(aliases).chain(addresses).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_names_a_container_and_what_does_not() {
        let parsed = |text: &str| Container::parse(text).unwrap().map(|c| (c.engine, c.name, c.port));
        assert_eq!(parsed("docker:cloud-db-1"), Some(("docker", "cloud-db-1".into(), None)));
        assert_eq!(parsed(" podman:db_1.x:5433 "), Some(("podman", "db_1.x".into(), Some(5433))));
        for plain in ["docker", "docker:5432", "db:5432", "/run/docker:x", "dockers:db", "", "127.0.0.1"] {
            assert_eq!(parsed(plain), None, "{plain}");
        }
        for bad in ["docker:-x", "docker:a b", "docker:db:0", "docker:db:x", "docker:a/b", "podman:db:1:2"] {
            assert!(Container::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn its_address_and_its_names_are_what_the_engine_says_now() {
        // As docker 20.10 and 28 tell it, and what concerns us of it.
        let told = json!({"Name": "/cloud-db-1", "State": {"Running": true}, "HostConfig": {"NetworkMode": "cloud_default"},
            "Config": {"Labels": {"com.docker.compose.service": "postgres"}},
            "NetworkSettings": {"Networks": {"cloud_default": {"IPAddress": "172.18.0.2", "Aliases": ["db", "802cb2bc97b2"]}}}});
        let container = Container::parse("docker:cloud-db-1:5433").unwrap().unwrap();
        let host = |told: &Value| container.address(told).map(|h| h.to_string());
        assert_eq!(host(&told).unwrap(), "172.18.0.2, port 5433");
        let names: Vec<&str> = names(&told).collect();
        assert_eq!(names, ["cloud-db-1", "postgres", "db", "802cb2bc97b2", "172.18.0.2"]);
        let mut stopped = told.clone();
        stopped["State"]["Running"] = json!(false);
        assert!(host(&stopped).unwrap_err().to_string().contains("does not run"));
        let mut hosts = told.clone();
        hosts["HostConfig"]["NetworkMode"] = json!("host");
        assert_eq!(host(&hosts).unwrap(), "127.0.0.1, port 5433");
        let mut none = told;
        none["NetworkSettings"]["Networks"] = json!({"none": {"IPAddress": ""}});
        assert!(host(&none).unwrap_err().to_string().contains("no address"));
    }
}
