//! The far end: answers one source over stdin and stdout, holding the store's lock while it writes.
//!
//! It decides everything about the store itself: the place (its own profile), the dates (its own clock),
//! rsync's arguments. What it is given are names and paths, and every path is opened below the open partial
//! snapshot, through no symlink. It ends when its input does, when that is silent for too long, or when something is asked
//! that is no request of its door; nothing is then published.

mod counting;
mod doors;
mod line;
mod pipe;
mod reading;
mod reusing;
mod writing;

use std::io::{Read, Write};
use std::sync::Mutex;

use anyhow::Result;

use line::Line;
pub use line::Terms;

use crate::protocol::Door;
use crate::signs::{Alive, Frames};
use crate::store::Store;

/// Says whose door this is, and whether there is something behind it.
fn introduce(store: &Store, door: Door) -> Result<()> {
    let what = match door {
        Door::Backup => "for backups",
        Door::Read => "for restoring: it reads, and writes nothing",
        Door::Copy => "for copies",
    };
    common::say!(crate::TOOL, "{}, {what}", store.path.display());
    store.check().map(drop)
}

/// Serves until the input ends.
pub fn serve(store: &Store, terms: &Terms, input: impl Read, output: impl Write + Send) -> Result<()> {
    let alive = Alive::new(terms.silence);
    let output = Mutex::new(output);
    std::thread::scope(|scope| {
        scope.spawn(|| alive.tell(&output));
        scope.spawn(|| alive.watch());
        let mut line = Line::new(terms.door, input, Frames::on(&output, &alive), &alive);
        let done = line.greet(store.path.display().to_string()).and_then(|stays| match terms.door {
            // Somebody tries a key by hand.
            _ if !stays => introduce(store, terms.door),
            Door::Backup => doors::backup(&mut line, store, terms),
            Door::Copy => doors::copy(&mut line, store, terms),
            Door::Read => doors::read(&mut line, store, terms),
        });
        alive.end();
        done
    })
}
