//! Whether S3 still answers, asked all the time while a long step works over it.
//!
//! A link that is cut ends by itself (ssh notices). A server that keeps the connection but no longer serves files is
//! noticed by nobody, and what waits for it waits for ever.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::fuse::{Health, probe};

/// Between two questions.
const EVERY: Duration = Duration::from_secs(5);

/// Asks until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    silent: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Watches the sshfs mounted at `target`; silent is what has not answered for `patience`.
    pub(crate) fn start(target: &Path, patience: Duration) -> Watch {
        let (silent, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let watch = Watch { silent: Arc::clone(&silent), stop: Arc::clone(&stop) };
        let target = target.to_owned();
        // Not joined: a question without an answer must not hold up the clean-up. Its child dies with the thread.
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if matches!(probe(&target, patience), Ok(Health::Hung)) {
                    silent.store(true, Ordering::SeqCst);
                    return;
                }
                std::thread::park_timeout(EVERY.min(patience));
            }
        });
        watch
    }

    /// Whether it has fallen silent.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
