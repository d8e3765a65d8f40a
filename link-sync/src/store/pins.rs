//! `STORE/.pins/NAME`: dates that somebody else needs, such as the one the next off-site push begins with.
//!
//! Whoever copies a store elsewhere writes there what must stay: `{"dates": ["2026-11-22T03-30-00Z"]}`. A pin that cannot
//! be read stops every removal, because nobody knows what it would have said.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use nix::errno::Errno;
use serde::Deserialize;

use super::beneath::{open_dir, open_file};
use super::layout::PINS;
use super::visit;

/// More bytes than a pin has.
const LONGEST: u64 = 1 << 16;

#[derive(Deserialize)]
struct Pin {
    dates: Vec<String>,
}

/// The pinned dates of the store open as `store`, each with the name of who needs it.
pub fn read(store: &File) -> Result<Vec<(String, String)>> {
    let dir = match open_dir(store, PINS.as_bytes()) {
        Ok(dir) => dir,
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot open the folder {PINS}")),
    };
    let mut pins = Vec::new();
    for (name, _, _) in visit::names(&dir).context("cannot read the pins")? {
        let name = String::from_utf8_lossy(&name).into_owned();
        if name.starts_with('.') {
            // Being written.
            continue;
        }
        let pin = one(&dir, &name).map_err(|e| {
            Fault::config(format!("{PINS}/{name} cannot be read: {e:#}"))
                .hint("nothing is removed as long as it is not known which date it needs; remove that file if nobody copies this store under that name")
        })?;
        pins.extend(pin.dates.into_iter().map(|date| (date, name.clone())));
    }
    Ok(pins)
}

fn one(dir: &File, name: &str) -> Result<Pin> {
    let mut text = String::new();
    open_file(dir, name)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
