//! A tree that is too deep for one path, for tests.

use std::fs::File;

use nix::sys::stat::{Mode, mkdirat};

use super::beneath::open_dir;

/// Sixty folders in each other, together longer than a path may be; the name of the first.
pub fn deep(top: &File) -> String {
    let mut at = top.try_clone().unwrap();
    let name = "n".repeat(200);
    for _ in 0..60 {
        mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
        at = open_dir(&at, name.as_bytes()).unwrap();
    }
    name
}
