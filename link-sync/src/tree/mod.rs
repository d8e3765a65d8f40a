//! A source as one walk saw it: compact enough for millions of files, comparable with another.
//!
//! Paths are relative to the source, as bytes; the source itself is the empty path.

mod census;
mod changes;
mod dir;
mod meta;
mod path;
mod walked;

pub use census::Census;
pub use changes::Changes;
pub use dir::{Dir, Entry};
pub use meta::{Meta, STUB, Stamp};
pub use path::{join, split};
pub use walked::Tree;
