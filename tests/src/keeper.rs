//! What ends a server of `tests/lab` when the test that started it ends, however that is.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Calls `SCRIPT stop DIR` and removes a folder when it is dropped, or when the test is killed.
#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    /// To be made before the server is started.
    pub(crate) fn new(script: &Path, dir: &Path, remove: &Path) -> Keeper {
        // It goes to work when our end of its stdin closes, whatever ends us; in a session of its own, so that
        // Ctrl-C does not end it first.
        let child = Command::new("setsid")
            .args(["sh", "-c", "cat >/dev/null; \"$1\" stop \"$2\"; rm -rf \"$3\"", "sh"])
            .args([script, dir, remove])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid starts");
        Keeper(child)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // The scripts have limits of their own.
        if let Err(e) = self.0.wait() {
            eprintln!("a server's keeper was lost: {e}");
        }
    }
}

/// The value in a line `NAME=VALUE` of what a script printed.
#[track_caller]
pub(crate) fn value(told: &str, name: &str) -> String {
    let line = told.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name} in {told}")).to_owned()
}
