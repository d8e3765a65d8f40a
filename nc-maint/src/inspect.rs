//! `inspect`: what a backup needs to know, from Nextcloud's own configuration.
//!
//! Asked through occ, which locks config.php and merges the drop-ins: the file is rewritten in place, so
//! reading it ourselves could meet half of it. Where occ cannot start for want of the database, which is when one
//! is about to be brought back, a PHP merges the same files without it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::{Failure, Fault};
use common::outward;
use common::profile::Method;
use common::status::{Report, put_text};
use nix::unistd::geteuid;
use serde_json::{Map, Value, json};

use crate::TOOL;
use crate::occ::Occ;
use crate::php;
use crate::settings::Settings;

/// Fills the report; with `secrets_to`, writes the database password there.
pub(crate) fn inspect(settings: &Settings, secrets_to: Option<&Path>, report: &mut Report) -> Result<()> {
    let root = settings.root()?;
    if let Some(path) = secrets_to {
        may_write(path)?;
    }
    settings.tell_method(report);
    let occ = Occ::new(settings);
    let config = match occ.system_config() {
        Err(e) if lacks_database(&e) => {
            let Ok(config) = php::configuration(settings) else { return Err(e) };
            report.warn("no-database", format!("asked of the configuration alone: {e:#}"));
            config
        }
        answer => answer?,
    };
    let text = |key: &str| config.get(key).and_then(scalar).filter(|t| !t.is_empty());
    let on = |key: &str| config.get(key).is_some_and(|v| *v == true || *v == 1 || *v == "1" || *v == "true");

    let data = text("datadirectory").map_or_else(|| root.join("data"), |d| root.join(d));
    report.set_text("root", root.as_os_str());
    report.set_text("config_dir", root.join("config").as_os_str());
    report.set_text("data_directory", data.as_os_str());
    report.set("version", text("version"));
    report.set("instance_id", text("instanceid"));
    report.set("maintenance", on("maintenance"));
    report.set("url", text("overwrite.cli.url"));
    let log = text("logfile").map_or_else(|| data.join("nextcloud.log"), |l| root.join(l));
    report.set_text("log_file", log.as_os_str());
    report.set("apps_paths", apps_paths(&config, root, |path| here(settings, path)));
    let password = text("dbpassword");
    report.set(
        "database",
        json!({
            "type": text("dbtype"),
            // Exactly as it stands there: host, host:port, /socket/dir, … for the one who connects.
            "host": text("dbhost").unwrap_or_default(),
            "name": text("dbname"),
            "user": text("dbuser"),
            "password": password.as_ref().map(|_| "***"),
            "table_prefix": config.get("dbtableprefix").and_then(scalar).unwrap_or_else(|| "oc_".into()),
            "persistent": on("dbpersistent"),
        }),
    );
    postgres_only(text("dbtype").as_deref())?;
    let seen = data_here(settings, &data);
    warn_about_places(&config, root, seen.as_deref(), report);
    warn_about_links(settings, seen.as_deref().unwrap_or(&data), report);
    if on("dbpersistent") {
        report.warn("dbpersistent", "dbpersistent is on: database sessions outlive their requests");
    }
    if on("config_is_read_only") && settings.choice.method == Method::Occ {
        report
            .warn("config-read-only", "config_is_read_only is set: occ cannot throw the maintenance switch");
    }
    warn_about_mounts(&occ, on("maintenance"), &data, report);
    report.set("secrets_to", Value::Null);
    if let Some(path) = secrets_to {
        let secret = serde_json::to_vec(&json!({ "database_password": password }))?;
        durable::write(path, &secret, 0o600)?;
        report.set_text("secrets_to", path.as_os_str());
        report.changed = true;
    }
    common::say!(TOOL, "Nextcloud {} in {}", text("version").as_deref().unwrap_or("?"), root.display());
    Ok(())
}

/// Whether occ says that it has no database, or none that is whole.
fn lacks_database(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|f| f.stderr_tail.contains("SQLSTATE["))
}

/// A value as the text that PHP makes of it: a password of digits may stand there without quotes.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        // json_encode keeps the `.0` of a whole float, PHP's text of it does not.
        Value::Number(number) => {
            let text = number.to_string();
            Some(text.strip_suffix(".0").map_or(text.clone(), str::to_owned))
        }
        _ => None,
    }
}

/// SQLite's file cannot be dumped by pg_dump, nor can MariaDB: said now, not at night.
fn postgres_only(kind: Option<&str>) -> Result<()> {
    let name = match kind {
        Some("pgsql") => return Ok(()),
        Some("sqlite" | "sqlite3") | None => "SQLite",
        Some("mysql") => "MariaDB or MySQL",
        Some(other) => other,
    };
    Err(Fault::config(format!("this Nextcloud uses {name}; only PostgreSQL can be backed up"))
        .hint("`occ db:convert-type pgsql …` moves an instance to PostgreSQL")
        .into())
}

/// A path as Nextcloud has it, as this machine sees it: what lies beside occ lies in `root`, whatever that is called in the
/// container in which PHP runs.
fn here(settings: &Settings, path: &Path) -> PathBuf {
    match (there(settings), settings.root()) {
        (Some(there), Ok(root)) => {
            path.strip_prefix(there).map_or_else(|_| path.into(), |rest| root.join(rest))
        }
        _ => path.into(),
    }
}

/// What `root` is called where PHP runs, as far as occ's words tell.
fn there(settings: &Settings) -> Option<&Path> {
    let php = settings.php.as_ref()?;
    Path::new(&php.config_dir).parent().filter(|there| there.is_absolute())
}

/// The data directory as this machine sees it: a volume of its own is known by the profile's sources. `None`: it is a
/// container's, and there is no profile yet that says where its volume lies.
fn data_here(settings: &Settings, data: &Path) -> Option<PathBuf> {
    let seen = here(settings, data);
    if is_data(&seen) {
        return Some(seen);
    }
    let mut sources = settings.sources().peekable();
    if sources.peek().is_none()
        && there(settings).is_some_and(|there| settings.root().is_ok_and(|r| r != there))
    {
        return None;
    }
    Some(sources.find(|source| is_data(source)).map_or(seen, Path::to_owned))
}

fn is_data(dir: &Path) -> bool {
    dir.join(".ncdata").exists() || dir.join(".ocdata").exists()
}

/// Every app folder; the code's own where nothing is set.
fn apps_paths(config: &Map<String, Value>, root: &Path, seen: impl Fn(&Path) -> PathBuf) -> Value {
    // PHP's arrays come as lists, or as objects once a number is missing.
    let listed: Vec<&Value> = match config.get("apps_paths") {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(map)) => map.values().collect(),
        _ => Vec::new(),
    };
    let default = json!([{ "path": root.join("apps").to_string_lossy(), "writable": true }]);
    let paths: Vec<Value> = listed
        .iter()
        .filter_map(|entry| {
            let writable = entry["writable"].as_bool().unwrap_or(false);
            let path = seen(Path::new(entry["path"].as_str()?));
            Some(json!({ "path": path.to_string_lossy(), "writable": writable }))
        })
        .collect();
    if paths.is_empty() { default } else { paths.into() }
}

/// What lies where a backup of the root and the data directory would miss it, or take it twice.
fn warn_about_places(config: &Map<String, Value>, root: &Path, data: Option<&Path>, report: &mut Report) {
    for key in ["objectstore", "objectstore_multibucket"] {
        if config.get(key).is_some_and(|v| !v.is_null()) {
            let message = format!("{key} is set: users' files are in object storage, which is not backed up");
            report.warn("object-storage", message);
        }
    }
    if let Some(data) = data.filter(|data| !is_data(data)) {
        let message = format!(
            "{} is not a Nextcloud data directory as seen from here (no .ncdata): a container's path, or a \
             disk that is not mounted",
            data.display()
        );
        report.warn("data-directory-not-here", message);
    }
    if let Some(data) = data.filter(|data| data.starts_with(root)) {
        let message = format!(
            "the data directory {} lies inside the code: it is left out there, as it is a source of its own",
            data.display()
        );
        report.warn("data-directory-in-root", message);
    }
    let outside: Vec<String> = listed_apps(report).filter(|p| !Path::new(p).starts_with(root)).collect();
    for path in outside {
        report.warn("apps-path-outside-root", format!("apps in {path} need a source of their own"));
    }
}

/// The folders of apps, as they have been told.
fn listed_apps(report: &Report) -> impl Iterator<Item = String> {
    let apps = report.data.get("apps_paths").and_then(Value::as_array).cloned().unwrap_or_default();
    apps.into_iter().filter_map(|a| a["path"].as_str().map(str::to_owned))
}

/// Links whose content no source holds. Without sources in the profile: those that `setup` would write.
fn warn_about_links(settings: &Settings, data: &Path, report: &mut Report) {
    let apps: Vec<PathBuf> = listed_apps(report).map(PathBuf::from).collect();
    let mut sources: Vec<&Path> = settings.sources().collect();
    if sources.is_empty() {
        sources.extend(settings.root().into_iter().chain([data]).chain(apps.iter().map(PathBuf::as_path)));
    }
    let links = outward::find(&sources);
    let mut told = Vec::new();
    for link in &links {
        let mut entry = Map::new();
        put_text(&mut entry, "path", link.path.as_os_str());
        put_text(&mut entry, "target", link.target.as_os_str());
        told.push(entry);
        report.warn(outward::KIND, link.show());
    }
    report.set("links_that_lead_out", told.into_iter().map(Value::Object).collect::<Vec<_>>());
}

/// Local folders that users reach through the external storage app.
fn warn_about_mounts(occ: &Occ, maintenance: bool, data: &Path, report: &mut Report) {
    report.set("external_storages", Value::Null);
    let list = match occ.external_storages() {
        Ok(list) => list,
        Err(_) if maintenance => {
            let message = "external storages cannot be listed in maintenance mode: inspect again without it";
            report.warn("external-storages-unknown", message);
            return;
        }
        // The command exists only where the app is enabled; then there are none.
        Err(e) if format!("{e:#}").contains("no commands defined") => Vec::new(),
        Err(e) => {
            report.warn("external-storages-unknown", format!("external storages cannot be listed: {e:#}"));
            return;
        }
    };
    let mut found = Vec::new();
    for mount in &list {
        let backend = mount["storage"].as_str().unwrap_or("?");
        let path = mount["configuration"]["datadir"].as_str();
        let local = backend.rsplit('\\').next() == Some("Local") || backend == "local";
        found.push(json!({ "mount_point": mount["mount_point"], "local": local, "path": path }));
        if let (true, Some(path)) = (local, path)
            && !Path::new(path).starts_with(data)
        {
            let at = mount["mount_point"].as_str().unwrap_or("?");
            let message =
                format!("the external storage {at} is the local folder {path}, outside the data directory");
            report.warn("external-storage-local", message);
        }
    }
    report.set("external_storages", found);
}

/// The file for secrets must be new, or a plain file of ours: never a link, never somebody else's.
fn may_write(path: &Path) -> Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
    };
    if meta.is_file() && meta.uid() == geteuid().as_raw() && meta.nlink() == 1 {
        return Ok(());
    }
    Err(Fault::denied(format!(
        "{} is a link, not a file, or somebody else's: not overwritten",
        path.display()
    ))
    .hint("name a file that does not exist yet")
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_folders_as_a_list_as_an_object_and_by_default() {
        let root = Path::new("/nc");
        let config = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let list = config(r#"{"apps_paths":[{"path":"/a","writable":false},{"path":"/b","writable":true}]}"#);
        let apps_paths = |config: &Map<String, Value>| apps_paths(config, root, Path::to_owned);
        assert_eq!(apps_paths(&list)[1], json!({"path": "/b", "writable": true}));
        let object = config(r#"{"apps_paths":{"0":{"path":"/a"},"2":{"path":"/c"}}}"#);
        assert_eq!(apps_paths(&object)[1]["path"], "/c");
        assert_eq!(apps_paths(&config("{}"))[0]["path"], "/nc/apps");
    }

    #[test]
    fn only_postgresql_passes() {
        assert!(postgres_only(Some("pgsql")).is_ok());
        for other in [Some("mysql"), Some("sqlite3"), Some("oci"), None] {
            let error = postgres_only(other).unwrap_err();
            assert_eq!(common::fault::kind_of(&error).exit_code(), 78);
        }
    }
}
