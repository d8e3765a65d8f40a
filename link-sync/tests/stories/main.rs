//! What link-sync does, told as stories. They run as root, with real file systems, a real rsync and a real sshd.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests: a panic is how a story fails, and its own folders and children are its own"
)]

mod callers;
mod changes;
mod checksums;
mod copies;
mod crowds;
mod door;
mod far;
mod find;
mod full;
mod history;
mod holes;
mod hostile;
mod layers;
mod layers_by_hash;
mod locks;
mod lost;
mod meant;
mod mounts;
mod moves;
mod picture;
mod planted;
mod prune;
mod random;
mod repair;
mod restore_places;
mod restores;
mod sources;
mod steps;
mod stores;
mod talk;
mod terminal;
mod world;
