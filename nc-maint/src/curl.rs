//! curl: what clients see, from `status.php`.
//!
//! The program rather than a crate: it brings TLS with the machine's own certificates, and it is asked a
//! handful of times a night. It reads no configuration, uses no proxy, follows no redirect (the
//! answer must come from where the profile says), and takes at most a few kilobytes.

use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::{Failure, Fault};
use common::run::Cmd;
use serde_json::Value;

use crate::php::GoOn;
use crate::settings::Settings;

/// Longest time for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether clients are told that maintenance is on.
pub(crate) fn ask(url: &str, limit: Duration) -> Result<bool> {
    let url = format!("{}/status.php", url.trim_end_matches('/'));
    let limit = limit.min(PATIENCE).max(Duration::from_millis(100));
    let cmd = Cmd::new("curl")
        .args(["-q", "--silent", "--show-error", "--globoff", "--noproxy", "*", "--proto", "=http,https"])
        .args(["--max-filesize", "65536", "--max-time", &format!("{:.3}", limit.as_secs_f64())])
        .args(["--write-out", "\n%{http_code}", "--", &url])
        // Also for the clean-up; it is never long.
        .uninterruptible()
        .timeout(limit + Duration::from_secs(2))
        // More than curl takes for a page: then it is headers without an end.
        .stdout_limit(1024 * 1024);
    match cmd.checked() {
        Ok(output) => answer(&output.text(), &url),
        Err(error) => Err(match error.downcast::<Failure>() {
            Ok(mut failure) => {
                failure.kind = common::fault::Kind::Unavailable;
                failure.hint = Some(format!("is the web server up, and is {url} what clients use?"));
                failure.into()
            }
            Err(other) => other,
        }),
    }
}

/// Reads the body and, in the last line, the HTTP status.
fn answer(text: &str, url: &str) -> Result<bool> {
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", text));
    let shown = serde_json::from_str::<Value>(body).ok().and_then(|v| v["maintenance"].as_bool());
    match (code, shown) {
        ("200", Some(on)) => Ok(on),
        _ => Err(Fault::unavailable(format!("{url} is not Nextcloud's status.php: HTTP {code}"))
            .hint("url is the address clients use, without a redirect, e.g. https://cloud.example")
            .into()),
    }
}

/// Asks until clients see `wanted`, at most `url_timeout`; `go_on` may end it earlier. Whether the first answer was that.
/// Nothing to do without a URL.
pub(crate) fn until(settings: &Settings, wanted: bool, go_on: &mut GoOn) -> Result<bool> {
    let Some(url) = &settings.url else { return Ok(true) };
    let end = Instant::now() + settings.url_timeout;
    let mut first = true;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let seen = ask(url, left);
        if seen.as_ref().is_ok_and(|on| *on == wanted) {
            return Ok(first);
        }
        first = false;
        go_on()?;
        if Instant::now() + PAUSE >= end {
            let what = if wanted { "on" } else { "off" };
            let limit = settings.url_timeout;
            let message = format!("clients of {url} do not see maintenance {what} within {limit:?}");
            return Err(match seen {
                Err(e) => e.context(message),
                Ok(_) => Fault::failed(message)
                    .hint("a PHP cache may be slow to notice (opcache.revalidate_freq): raise url_timeout")
                    .into(),
            });
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_200_with_the_switch_in_it_is_an_answer() {
        assert!(answer("{\"maintenance\":true}\n200", "u").unwrap());
        assert!(!answer("{\"installed\":true,\"maintenance\":false}\n200", "u").unwrap());
        for wrong in ["\n301", "<html>\n200", "{\"maintenance\":true}\n503", "{\"maintenance\":1}\n200", ""] {
            let error = answer(wrong, "u").unwrap_err();
            assert_eq!(common::fault::kind_of(&error), common::fault::Kind::Unavailable, "{wrong}");
        }
    }
}
