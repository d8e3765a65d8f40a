//! `view.json` in the runtime folder: that somebody looks at the container.

use std::path::PathBuf;

use anyhow::Result;
use common::durable;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::settings::Settings;

/// `view.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// `opening`, then `open`.
    pub(crate) state: State,
    /// When, RFC 3339 UTC.
    pub(crate) since: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Opening,
    Open,
}

impl Record {
    fn path(settings: &Settings) -> PathBuf {
        settings.runtime.join("view.json")
    }

    /// The record, if there is one.
    pub(crate) fn load(settings: &Settings) -> Result<Option<Record>> {
        let path = Record::path(settings);
        // One that is damaged says as much as one of a view that was never opened.
        let unknown = Record { state: State::Opening, since: "an unknown time".into() };
        Ok(durable::read(&path)?.map(|bytes| serde_json::from_slice(&bytes).unwrap_or(unknown)))
    }

    pub(crate) fn save(&self, settings: &Settings) -> Result<()> {
        durable::write(&Record::path(settings), &serde_json::to_vec(self)?, 0o600)
    }

    /// Removes it; fine if there is none.
    pub(crate) fn remove(settings: &Settings) -> Result<()> {
        durable::remove(&Record::path(settings)).map(drop)
    }

    /// Somebody may be using it.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// For the report.
    pub(crate) fn describe(&self) -> Value {
        json!({"open": self.is_open(), "since": self.since})
    }
}
