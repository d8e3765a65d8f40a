//! php: Nextcloud's configuration as Nextcloud itself merges it, without starting Nextcloud.
//!
//! config.php, then every `*.config.php` beside it in natural order, each under a shared flock (the files are
//! rewritten in place), as config.php's owner. No database and no occ: 15 ms instead of half a second.
//! Where even that is downtime, a PHP is started before the switch and waits for the word.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::run::{Child, Cmd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;

use crate::settings::Settings;

/// Arguments: the folder; `wait` or `now`. As Nextcloud's own `Config::readData`. Some configurations name
/// `OC::$SERVERROOT`.
const CODE: &str = r#"
[, $dir, $when] = $argv;
if ($when === "wait") {
    echo "ready\n";
    if (fgets(STDIN) !== "go\n") { exit(3); }
}
if (!class_exists("OC", false)) { class OC { public static $SERVERROOT, $configDir, $CLI = true; } }
OC::$SERVERROOT = dirname($dir);
OC::$configDir = "$dir/";
$read = static function () {
    include func_get_arg(0);
    return isset($CONFIG) && is_array($CONFIG) ? $CONFIG : [];
};
$extra = glob("$dir/*.config.php") ?: [];
natsort($extra);
$on = $main = false;
$by = null;
foreach (["$dir/config.php", ...$extra] as $file) {
    $handle = fopen($file, "r");
    if ($handle === false || !flock($handle, LOCK_SH)) { exit(4); }
    $config = $read($file);
    flock($handle, LOCK_UN);
    if (array_key_exists("maintenance", $config)) {
        $on = (bool)$config["maintenance"];
        $by = basename($file);
        $main = $file === "$dir/config.php" ? $on : $main;
    }
}
echo "\n", json_encode(["nc_backup" => ["on" => $on, "main" => $main, "by" => $by]]), "\n";
"#;

/// What the merged configuration says of maintenance.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) on: bool,
    /// What config.php alone says.
    pub(crate) main: bool,
    /// The file that has the last word, if any says something.
    pub(crate) by: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    nc_backup: Merged,
}

/// A PHP that has been started and reads nothing before it is asked, once. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Waiting {
    child: Child,
    word: ChildStdin,
    out: ChildStdout,
    said: Vec<u8>,
    limit: Duration,
}

/// Asks now.
pub(crate) fn ask(settings: &Settings) -> Result<Merged> {
    start(settings, "now")?.answer()
}

impl Waiting {
    /// Starts one; it is ready soon, or when [`Waiting::settle`] returns.
    pub(crate) fn start(settings: &Settings) -> Result<Waiting> {
        start(settings, "wait")
    }

    /// Waits until it is ready.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.until(|said| said.starts_with(b"ready\n").then_some(()))
    }

    /// The state as of now.
    pub(crate) fn ask(&mut self) -> Result<Merged> {
        self.word.write_all(b"go\n").context("the waiting PHP is gone")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Merged> {
        self.until(parse)
    }

    /// Reads until `wanted` is found in what it said.
    fn until<T>(&mut self, wanted: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        let end = Instant::now() + self.limit;
        loop {
            if let Some(found) = wanted(&self.said) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.out.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut chunk = [0; 8192];
            let got = match poll(&mut fds, timeout) {
                Err(nix::errno::Errno::EINTR) => continue,
                Ok(1..) => self.out.read(&mut chunk).context("cannot read from PHP")?,
                _ => 0,
            };
            if got == 0 {
                let status = self.child.wait(Some(end.saturating_duration_since(Instant::now())), false)?;
                let failure = self.child.failure_for(status)?;
                return Err(anyhow::Error::from(failure).context("PHP cannot evaluate config/config.php"));
            }
            self.said.extend_from_slice(&chunk[..got]);
        }
    }
}

fn start(settings: &Settings, when: &str) -> Result<Waiting> {
    let Some(php) = &settings.php else {
        return Err(Fault::unavailable("the PHP behind this occ is not known").into());
    };
    let cmd = Cmd::from_argv(&php.argv)?.args(["-d", "opcache.enable_cli=0", "-d", "display_errors=stderr"]);
    let cmd = cmd.args(["-r", CODE, "--"]).arg(&php.config_dir).arg(when);
    let cmd = settings.occ_account.iter().fold(cmd, |cmd, account| cmd.run_as(account)).uninterruptible();
    let mut child = cmd.start(Stdio::piped(), Stdio::piped())?;
    let pipes = child.take_stdin().zip(child.take_stdout());
    let (word, out) = pipes.context("cannot talk to PHP")?;
    Ok(Waiting { child, word, out, said: Vec::new(), limit: settings.occ_timeout })
}

/// The last word counts: a configuration may print things of its own.
fn parse(said: &[u8]) -> Option<Merged> {
    let text = String::from_utf8_lossy(said.strip_suffix(b"\n")?);
    let answer: Answer = serde_json::from_str(text.lines().last()?).ok()?;
    Some(answer.nc_backup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_last_whole_line() {
        let line =
            "ready\nWarning: odd\n\n{\"nc_backup\":{\"on\":true,\"main\":false,\"by\":\"zz.config.php\"}}";
        assert_eq!(parse(line.as_bytes()), None, "not whole yet");
        let merged = parse(format!("{line}\n").as_bytes()).unwrap();
        assert!(merged.on && !merged.main);
        assert_eq!(merged.by.as_deref(), Some("zz.config.php"));
        assert_eq!(parse(b"{\"on\":true}\n"), None);
    }
}
