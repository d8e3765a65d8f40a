//! config.php against the dump: do they belong together?

use std::collections::HashMap;

use anyhow::Result;
use common::status::Report;
use serde_json::json;

use crate::file_cache::findings::{Class, Findings};
use crate::file_cache::php::Value;
use crate::file_cache::rows::Overview;
use crate::file_cache::tree::Tree;
use crate::manifest::Manifest;

/// Keys without which an instance does not come back: sessions, tokens and encrypted values hang on them.
const NEEDED: [&str; 3] = ["instanceid", "secret", "passwordsalt"];

/// The word of a snapshot whose parts were taken in one maintenance.
const SEALED: &str = "sealed";

/// The configuration of the tree, as far as it is plain.
#[derive(Debug)]
pub(crate) struct Config {
    values: Option<HashMap<String, Value>>,
}

impl Config {
    /// Reads it. One that is not there is a warning, one that cannot be understood an error.
    pub(crate) fn read(tree: &Tree, report: &mut Report) -> Result<Config> {
        let values = tree.config()?;
        if values.is_none() {
            report.warn(
                "no-config",
                "the tree has no html/config/config.php: it is not compared with the dump",
            );
        }
        Ok(Config { values })
    }

    /// The text of `key`.
    fn text(&self, key: &str) -> Option<&str> {
        match self.values.as_ref()?.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The prefix of the tables.
    pub(crate) fn prefix(&self) -> String {
        self.text("dbtableprefix").unwrap_or("oc_").to_owned()
    }

    /// The data directory, as Nextcloud sees it.
    pub(crate) fn data_directory(&self) -> Option<&str> {
        self.text("datadirectory")
    }

    /// What can be told without the rows.
    pub(crate) fn against_dump(
        &self,
        manifest: &Manifest,
        tree: &Tree,
        findings: &mut Findings,
        report: &mut Report,
    ) {
        snapshot_against_dump(manifest, tree, findings, report);
        let Some(values) = &self.values else { return };
        let computed: Vec<&str> =
            values.iter().filter(|(_, v)| **v == Value::Unknown).map(|(k, _)| k.as_str()).collect();
        report.set(
            "config",
            json!({ "instance_id": self.text("instanceid"), "version": self.text("version"),
                "data_directory": self.data_directory(), "table_prefix": self.prefix(), "computed": computed }),
        );
        for key in NEEDED {
            match values.get(key) {
                Some(Value::Text(text)) if !text.is_empty() => {}
                // Computed at run time; other files may say it, too.
                Some(Value::Unknown) => {}
                _ => findings.say(Class::Config, format!("config.php has no {key}")),
            }
        }
        if let Some(kind) = self.text("dbtype").filter(|k| *k != "pgsql") {
            findings.say(Class::Config, format!("config.php says dbtype {kind}, the dump is PostgreSQL's"));
        }
        if let Some(name) = self.text("dbname").filter(|n| *n != manifest.database) {
            findings.say(
                Class::Config,
                format!("config.php says dbname {name}, the dump is of {}", manifest.database),
            );
        }
    }

    /// What the rows tell about the instance.
    pub(crate) fn against_rows(
        &self,
        tree: &Tree,
        overview: &Overview,
        findings: &mut Findings,
        report: &mut Report,
    ) -> Result<()> {
        if self.values.is_none() {
            return Ok(());
        }
        if let Some(id) = self.text("instanceid").filter(|i| !i.is_empty()) {
            let folder = format!("appdata_{id}");
            let rows: Vec<&str> = overview.appdata.iter().map(|(_, name)| name.as_str()).collect();
            if !rows.is_empty() && !rows.contains(&folder.as_str()) {
                let rows = rows.join(", ");
                findings.say(
                    Class::Config,
                    format!("config.php says instanceid {id}, the dump is of an instance with {rows}"),
                );
            }
            let names = tree.names(b"")?;
            let others: Vec<&str> =
                names.iter().map(String::as_str).filter(|n| n.starts_with("appdata_")).collect();
            if !others.is_empty() && !others.contains(&folder.as_str()) {
                let others = others.join(", ");
                findings.say(
                    Class::Config,
                    format!("config.php says instanceid {id}, the data directory has {others}"),
                );
            }
        }
        if let (Some(config), Some(code)) = (self.text("version"), tree.version()?)
            && config != code
        {
            let message =
                format!("config.php says version {config}, the code is {code}: an upgrade was under way");
            report.warn("upgrade-under-way", message);
        }
        Ok(())
    }
}

/// Whether the dump is the one of the snapshot.
fn snapshot_against_dump(manifest: &Manifest, tree: &Tree, findings: &mut Findings, report: &mut Report) {
    let Some(snapshot) = &tree.snapshot else { return };
    if snapshot.consistency != SEALED {
        let message = "the snapshot was taken while Nextcloud ran: small differences are to be expected";
        report.warn("not-sealed", message);
    }
    let run = |id: &Option<String>| id.clone().map_or("no run".to_owned(), |id| format!("the run {id}"));
    if snapshot.consistency == SEALED && snapshot.run_id != manifest.run_id {
        let (files, dump) = (run(&snapshot.run_id), run(&manifest.run_id));
        findings.say(
            Class::Dump,
            format!("the files are of {files}, the dump is of {dump}, made {}", manifest.date),
        );
        return;
    }
    // Both by the clock of the machine that both are from.
    let began = snapshot.started_at.get(..19).unwrap_or_default().replace(':', "-");
    if manifest.date.get(..19).is_some_and(|made| made < began.as_str()) {
        let message = format!(
            "the dump was made {}, before the snapshot was begun, {}",
            manifest.date, snapshot.started_at
        );
        report.warn("dump-older-than-snapshot", message);
    }
}
