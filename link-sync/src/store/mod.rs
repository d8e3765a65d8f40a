//! The far end: a folder of dated snapshots, the partial one, and the only code that changes them.
//!
//! `STORE/DATE/{SOURCE…,.meta}` are published snapshots: nothing here ever opens a file in them for writing,
//! changes an attribute, or removes a name; a whole one is renamed away by `prune`, and by nothing else. `.partial` is the snapshot being made, made of new directories and of
//! hard links to the base; `.incoming` is where rsync writes, and holds no hard link; `.resume` is what an
//! interrupted run had received; `.reuse` holds links to files of the base under the names they have now, until they are put in
//! their place; `.trash` is being removed. `.lock` is held by whoever writes. `.pruned` holds published
//! snapshots that are being removed, `.pins` names those that others need.

pub mod allowance;
pub mod attributes;
pub mod beneath;
pub mod changes;
pub mod clear;
pub mod clone;
pub mod compare;
pub mod damaged;
#[cfg(test)]
mod deep;
pub mod diff;
pub mod done;
pub mod examine;
pub mod fetch;
pub mod find;
pub mod findings;
pub mod held;
pub mod keeps;
pub mod latest;
pub mod layout;
pub mod ledger;
pub mod lists;
pub mod manifest;
pub mod merge;
pub mod meta;
pub mod mtree;
pub mod notes;
pub mod odd;
pub mod open;
pub mod outcome;
pub mod pace;
pub mod path;
pub mod pins;
pub mod place;
pub mod prune;
pub mod publish;
pub mod ranges;
pub mod repair;
pub mod reuse;
pub mod scan;
pub mod shown;
pub mod sizes;
pub mod sparse;
pub mod sums;
pub mod sweep;
pub mod verified;
pub mod verify;
pub mod visit;

pub use crate::tree::split;
pub use attributes::set_modified;
pub use beneath::{ensure_dir, open_dir, open_file, open_file_at};
pub use clear::remove;
pub use layout::{INCOMING, PARTIAL, RESUME, REUSE};
pub use place::Store;
