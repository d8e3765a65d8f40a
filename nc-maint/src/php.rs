//! php: Nextcloud's configuration as Nextcloud itself merges it, without starting Nextcloud.
//!
//! config.php, then every `*.config.php` beside it in natural order, each under a shared flock (the files are
//! rewritten in place), as config.php's owner. No database and no occ: 15 ms instead of half a second.
//! Where even that is downtime, a PHP is started before the switch and waits for the word.
//!
//! A configuration is code, and may print, wait or never end: what it says is bounded in length and time, and read once.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::run::{Child, Cmd};
use common::signals;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::settings::Settings;
use crate::{instance, said};

/// How much a configuration may print by the way, in bytes.
const MOST: usize = 4 << 20;
/// How often it is asked whether to go on.
const TICK: Duration = Duration::from_millis(100);
const PRINTS: &str = "a configuration sets $CONFIG and does nothing else: find out which file in config/ prints, waits or \
    calls something";

/// Arguments: the folder; `wait`, `now`, or `all` for the whole configuration. As Nextcloud's own
/// `Config::readData`. Some configurations name `OC::$SERVERROOT`.
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
$all = [];
foreach (["$dir/config.php", ...$extra] as $file) {
    $handle = fopen($file, "r");
    if ($handle === false || !flock($handle, LOCK_SH)) { exit(4); }
    $config = $read($file);
    flock($handle, LOCK_UN);
    $all = array_merge($all, $config);
    if (array_key_exists("maintenance", $config)) {
        $on = (bool)$config["maintenance"];
        $by = basename($file);
        $main = $file === "$dir/config.php" ? $on : $main;
    }
}
$apps = is_array($all["apps_paths"] ?? null) ? array_column($all["apps_paths"], "path") : [];
$mark = $all["data-fingerprint"] ?? "";
echo "\n", json_encode(["nc_backup" => ["on" => $on, "main" => $main, "by" => $by,
    "read_only" => (bool)($all["config_is_read_only"] ?? false), "fingerprint" => is_string($mark) ? $mark : "",
    "apps" => array_values(array_filter($apps, "is_string"))]]
    + ($when === "all" ? ["nc_config" => (object)$all] : [])), "\n";
"#;

/// What the merged configuration says of maintenance.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) on: bool,
    /// What config.php alone says.
    pub(crate) main: bool,
    /// The file that has the last word, if any says something.
    pub(crate) by: Option<String>,
    /// occ may not write it.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// What tells clients that the server went back in time.
    #[serde(default)]
    pub(crate) fingerprint: String,
    /// The folders of apps that are set.
    #[serde(default)]
    pub(crate) apps: Vec<String>,
}

#[derive(Deserialize)]
struct Answer {
    nc_backup: Merged,
}

#[derive(Deserialize)]
struct Whole {
    nc_config: Map<String, Value>,
}

/// A PHP that has been started and reads nothing before it is asked, once. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Waiting {
    child: Child,
    word: ChildStdin,
    out: ChildStdout,
    /// The line that it is saying.
    line: Vec<u8>,
    said: usize,
    limit: Duration,
}

/// May end a wait: an error is why.
pub(crate) type GoOn<'a> = dyn FnMut() -> Result<()> + 'a;

/// Whether PHP was started, and the configuration did not come to its end: printing, waiting.
pub(crate) fn is_endless(answer: &Result<Merged>) -> bool {
    let fault = answer.as_ref().err().and_then(|e| e.downcast_ref::<Fault>());
    fault.is_some_and(|f| f.hint.as_deref() == Some(PRINTS))
}

/// Asks now.
pub(crate) fn ask(settings: &Settings, go_on: &mut GoOn) -> Result<Merged> {
    start(settings, "now")?.answer(go_on)
}

/// Where occ runs as root: the apps it loads must be root's, too. The configuration is root's alone then, so it may be asked
/// where they are.
pub(crate) fn only_roots_apps(settings: &Settings) -> Result<()> {
    if settings.occ_account.as_ref().is_some_and(|a| a.uid().is_root()) {
        for folder in ask(settings, &mut signals::check)?.apps {
            instance::only_roots_apps(Path::new(&folder))?;
        }
    }
    Ok(())
}

/// The whole configuration, secrets included.
pub(crate) fn configuration(settings: &Settings) -> Result<Map<String, Value>> {
    let whole = |line: &[u8]| serde_json::from_slice(line).ok().map(|all: Whole| all.nc_config);
    start(settings, "all")?.until(whole, &mut || Ok(()))
}

impl Waiting {
    /// Starts one; it is ready soon, or when [`Waiting::settle`] returns.
    pub(crate) fn start(settings: &Settings) -> Result<Waiting> {
        start(settings, "wait")
    }

    /// Waits until it is ready.
    pub(crate) fn settle(&mut self, go_on: &mut GoOn) -> Result<()> {
        self.until(|line| (line == b"ready").then_some(()), go_on)
    }

    /// The state as of now.
    pub(crate) fn ask(&mut self, go_on: &mut GoOn) -> Result<Merged> {
        self.word.write_all(b"go\n").context("the waiting PHP is gone")?;
        self.answer(go_on)
    }

    fn answer(&mut self, go_on: &mut GoOn) -> Result<Merged> {
        self.until(parse, go_on)
    }

    /// Reads until a line is what is `wanted`. Each byte is looked at once.
    fn until<T>(&mut self, wanted: impl Fn(&[u8]) -> Option<T>, go_on: &mut GoOn) -> Result<T> {
        let end = Instant::now() + self.limit;
        let mut chunk = vec![0; 65536];
        loop {
            go_on()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!("PHP has not evaluated config/config.php within {:?}", self.limit);
                return Err(Fault::failed(message).hint(PRINTS).into());
            }
            let mut fds = [PollFd::new(self.out.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left.min(TICK)).unwrap_or(PollTimeout::MAX);
            let got = match poll(&mut fds, timeout) {
                Ok(1..) => self.out.read(&mut chunk).context("cannot read from PHP")?,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(e) => return Err(e).context("cannot wait for PHP"),
            };
            if got == 0 {
                return Err(self.failure(left));
            }
            self.said += got;
            if self.said > MOST {
                let message =
                    format!("config/config.php, or a file beside it, prints more than {MOST} bytes");
                return Err(Fault::failed(message).hint(PRINTS).into());
            }
            let mut found = None;
            for part in chunk[..got].split_inclusive(|b| *b == b'\n') {
                self.line.extend_from_slice(part);
                if let Some(line) = self.line.strip_suffix(b"\n") {
                    // The last one counts: a configuration may print things of its own.
                    found = wanted(line).or(found);
                    self.line.clear();
                }
            }
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Why it ended without the answer.
    fn failure(&mut self, left: Duration) -> anyhow::Error {
        let failure = self.child.wait(Some(left), false).and_then(|status| self.child.failure_for(status));
        match failure {
            Ok(failure) => said::diagnostics_only(failure).context("PHP cannot evaluate config/config.php"),
            Err(e) => said::clean(e),
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
    Ok(Waiting { child, word, out, line: Vec::new(), said: 0, limit: settings.occ_timeout })
}

/// The answer, if `line` is one.
fn parse(line: &[u8]) -> Option<Merged> {
    let answer: Answer = serde_json::from_slice(line).ok()?;
    Some(answer.nc_backup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_line_of_its_own() {
        let merged = parse(b"{\"nc_backup\":{\"on\":true,\"main\":false,\"by\":\"zz.config.php\"}}").unwrap();
        assert!(merged.on && !merged.main && merged.apps.is_empty());
        assert_eq!(merged.by.as_deref(), Some("zz.config.php"));
        assert_eq!(parse(b"{\"on\":true}"), None);
        assert_eq!(parse(b"Warning: odd"), None);
    }
}
