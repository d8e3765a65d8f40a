//! How far what is sent to S3 has come, for people, by what sshfs-mount counts on the wire: in a line that moves on a
//! terminal, elsewhere in a plain line a minute. On a slow link one image takes hours.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::progress::Sources;
use common::{figures, say, show};

use crate::TOOL;
use crate::settings::Settings;

/// How often a log is told.
const MINUTE: Duration = Duration::from_secs(60);
/// How often a line moves.
const SECOND: Duration = Duration::from_secs(1);

/// Sends so many bytes of `what`, and tells how far it has come.
pub(crate) fn told<T>(settings: &Settings, what: &str, bytes: u64, send: impl FnOnce() -> T) -> T {
    say!(TOOL, "sending {what}, {}", figures::bytes(bytes));
    let moves = show::moves();
    show::stands(moves);
    let tell = move |line: &str| match moves {
        true => show::moving(format_args!("{line}")),
        false => show::line(format_args!("{line}")),
    };
    let every = if moves { SECOND } else { MINUTE };
    let (sender, thread) = tell_each(every, settings.runtime.join("s3.wire"), what.to_owned(), bytes, tell);
    let sent = send();
    drop(sender);
    thread.join().ok();
    if moves {
        show::moving(format_args!(""));
        show::stands(false);
    }
    sent
}

fn tell_each(
    every: Duration,
    wire: PathBuf,
    what: String,
    bytes: u64,
    tell: impl Fn(&str) + Send + 'static,
) -> (Sender<()>, JoinHandle<()>) {
    let (sender, ended) = channel();
    let sources = Sources { wire: Some(wire), ..Sources::default() };
    let (begun, before) = (Instant::now(), sources.look().wire.unwrap_or(0));
    let thread = std::thread::spawn(move || {
        while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            // Where nobody counts, nobody can tell.
            if let Some(now) = sources.look().wire {
                tell(&sentence(&what, now.saturating_sub(before), bytes, begun.elapsed()));
            }
        }
    });
    (sender, thread)
}

fn sentence(what: &str, sent: u64, of: u64, lasted: Duration) -> String {
    let left = match (sent, of.checked_sub(sent)) {
        (1.., Some(rest)) => {
            let ms = lasted.as_millis() * u128::from(rest) / u128::from(sent);
            format!(", {} left", figures::time(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))))
        }
        _ => String::new(),
    };
    format!(
        "{TOOL}: sending {what}: {} of about {}, {}{left}",
        figures::bytes(sent),
        figures::bytes(of),
        figures::rate(sent, lasted)
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn rate_and_time_left_are_told() {
        let minute = Duration::from_secs(60);
        let said = sentence("an image", 30 << 20, 90 << 20, minute);
        assert_eq!(
            said,
            "offsite-push: sending an image: 30.0 MiB of about 90.0 MiB, 512.0 KiB/s, 2 min 0 s left"
        );
        assert!(sentence("it", 0, 90, minute).ends_with("0 B of about 90 B, 0 B/s"));
        // More goes over the wire than is in the file.
        assert!(sentence("it", 100, 90, minute).ends_with("/s"));
    }

    #[test]
    fn it_is_told_again_and_again_by_what_is_counted_and_no_more_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let wire = dir.path().join("wire");
        std::fs::write(&wire, "17 1000 50\n").unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&said);
        let (sender, thread) =
            tell_each(Duration::from_millis(40), wire.clone(), "x".into(), 5000, move |line| {
                told.lock().unwrap().push(line.to_owned());
            });
        std::thread::sleep(Duration::from_millis(300));
        std::fs::write(&wire, "17 3048 50\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        drop(sender);
        thread.join().unwrap();
        let said = said.lock().unwrap().clone();
        assert!(said.first().unwrap().contains("0 B of about"), "{said:?}");
        assert!(said.last().unwrap().contains("2.0 KiB of about 4.9 KiB"), "{said:?}");
    }
}
