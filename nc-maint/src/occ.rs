//! occ, Nextcloud's command line.
//!
//! Its exit code proves nothing: run by the wrong user it prints a complaint, changes nothing, and exits
//! with 0. So an answer counts only if it is one of the sentences occ is known to say, on a line of its
//! own (PHP may print notices around it). Calls that change the configuration outlive us and are not
//! interrupted: occ rewrites config.php in place, and killing it there would leave half a file.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::lock::Lock;
use common::run::{Cmd, Output};
use serde_json::{Map, Value};

use crate::said;
use crate::settings::Settings;

/// occ of one instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occ<'a> {
    settings: &'a Settings,
    heed_signals: bool,
}

impl<'a> Occ<'a> {
    /// For asking: a signal to us ends the call.
    pub(crate) fn new(settings: &'a Settings) -> Occ<'a> {
        Occ { settings, heed_signals: true }
    }

    /// For switching and clean-up: only its time limit ends a call.
    pub(crate) fn steady(settings: &'a Settings) -> Occ<'a> {
        Occ { settings, heed_signals: false }
    }

    fn command(&self, args: &[&str]) -> Result<Cmd> {
        let cmd = Cmd::from_argv(&self.settings.occ)?.args(args).timeout(self.settings.occ_timeout);
        let cmd = self.settings.occ_account.iter().fold(cmd, |cmd, account| cmd.run_as(account));
        Ok(if self.heed_signals { cmd } else { cmd.uninterruptible() })
    }

    /// Whether maintenance is on.
    pub(crate) fn mode(&self) -> Result<bool> {
        let cmd = self.command(&["maintenance:mode"])?;
        let output = output(&cmd).context("cannot ask occ for the maintenance mode")?;
        match mode_answer(&output.text()) {
            Some(on) if output.status.success() => Ok(on),
            _ => Err(refusal(&cmd, &output)),
        }
    }

    /// Throws the switch. True if occ says it changed something; false if it was so already.
    pub(crate) fn switch(&self, on: bool) -> Result<bool> {
        let word = if on { "--on" } else { "--off" };
        let turn = self.turn();
        let cmd = self.command(&["maintenance:mode", word])?.uninterruptible().outlives_us();
        let cmd = turn.iter().fold(cmd, |cmd, lock| cmd.inherit(lock.fd()));
        let output = output(&cmd).context("cannot run occ")?;
        match switch_answer(&output.text(), on) {
            Some(changed) if output.status.success() => Ok(changed),
            _ => Err(refusal(&cmd, &output)),
        }
    }

    /// One switch at a time: an occ that outlived a killed run still holds this lock, so that what cleans up
    /// does not switch off just before that one switches on. (sudo and docker close the descriptor; then
    /// this protects less.) A clean-up is never refused: after the limit of one call it goes ahead.
    fn turn(&self) -> Option<Lock> {
        let path = self.settings.runtime_file("switch.lock");
        let end = Instant::now() + self.settings.occ_timeout;
        loop {
            match Lock::exclusive(&path, "the switch") {
                Ok(lock) => return Some(lock),
                Err(e) if kind_of(&e) != Kind::Busy || Instant::now() >= end => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Tells the clients that the server went back in time. Without it they take what is newer at their side for deleted.
    pub(crate) fn renew_data_fingerprint(&self) -> Result<()> {
        let cmd = self.command(&["maintenance:data-fingerprint"])?;
        let output = output(&cmd).context("cannot run occ")?;
        // It says the new one.
        match output.text().contains("Updated data-fingerprint to ") {
            true if output.status.success() => Ok(()),
            _ => Err(refusal(&cmd, &output)),
        }
    }

    /// Shows a notification to a user. occ says nothing if that went well.
    pub(crate) fn notify(&self, user: &str, subject: &str, message: &str) -> Result<()> {
        let long = format!("--long-message={}", cut(message, 4000));
        let cmd = self.command(&["notification:generate", &long, "--", user, cut(subject, 255)])?;
        let output = output(&cmd).context("cannot run occ")?;
        match output.text().contains("Cannot write into") {
            false if output.status.success() => Ok(()),
            _ => Err(refusal(&cmd, &output)),
        }
    }

    /// The system configuration, secrets included, with all `config/*.config.php` merged in.
    pub(crate) fn system_config(&self) -> Result<Map<String, Value>> {
        let cmd = self.command(&["config:list", "system", "--private", "--output=json"])?;
        let output = output(&cmd).context("cannot ask occ for the configuration")?;
        if output.status.success()
            && let Some(Value::Object(mut all)) = json_answer(&output.stdout)
            && let Some(Value::Object(system)) = all.remove("system")
        {
            return Ok(system);
        }
        Err(refusal(&cmd, &output))
    }

    /// The mounts of the external storage app; an error where it is not enabled.
    pub(crate) fn external_storages(&self) -> Result<Vec<Value>> {
        let cmd = self.command(&["files_external:list", "--all", "--output=json"])?;
        let output = output(&cmd).context("cannot ask occ for external storages")?;
        match json_answer(&output.stdout) {
            Some(Value::Array(list)) if output.status.success() => Ok(list),
            _ => Err(refusal(&cmd, &output)),
        }
    }
}

/// At most so many bytes of it, as Nextcloud counts; a character stays whole.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// The answer to `maintenance:mode`: on, off, or none.
fn mode_answer(text: &str) -> Option<bool> {
    text.lines().find_map(|line| match line.trim() {
        "Maintenance mode is currently enabled" => Some(true),
        "Maintenance mode is currently disabled" => Some(false),
        _ => None,
    })
}

/// The answer to `--on` or `--off`: changed, already so, or none.
fn switch_answer(text: &str, on: bool) -> Option<bool> {
    let (done, already) = match on {
        true => ("Maintenance mode enabled", "Maintenance mode already enabled"),
        false => ("Maintenance mode disabled", "Maintenance mode already disabled"),
    };
    let mut lines = text.lines().map(str::trim);
    lines.find_map(|line| if line == done { Some(true) } else { (line == already).then_some(false) })
}

/// The JSON in what occ printed, after notices if there are any.
fn json_answer(stdout: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(stdout);
    text.lines()
        .filter(|l| l.starts_with(['{', '[']))
        .find_map(|l| serde_json::from_str(l).ok())
        .or_else(|| serde_json::from_str(text.trim()).ok())
}

/// Runs it; if it does not end by itself, what it said meanwhile is no more for everybody than otherwise.
fn output(cmd: &Cmd) -> Result<Output> {
    cmd.output().map_err(said::clean)
}

/// What a call that was not answered as it should amounts to.
fn refusal(cmd: &Cmd, output: &Output) -> anyhow::Error {
    let said = format!("{}\n{}", output.text(), String::from_utf8_lossy(&output.stderr));
    if said.contains("Cannot write into \"config\" directory") {
        return Fault::denied("occ cannot write config.php and did nothing, though it exits with 0")
            .hint("occ must run as the owner of config/config.php, who must be allowed to write it")
            .into();
    }
    if said.contains("has to be executed with the user that owns") {
        return Fault::denied("occ must run as the owner of config/config.php")
            .hint("run this as root or as that user, or use `sudo -u USER` in the occ argv")
            .into();
    }
    if said.contains("config_is_read_only") {
        return Fault::config("the configuration is read-only for occ (config_is_read_only)")
            .hint("remove config_is_read_only from config.php: the switch is in that file")
            .into();
    }
    if output.status.success() {
        let shown = said::shown(&said);
        let line = shown.lines().next().unwrap_or("nothing at all");
        return Fault::failed(format!("occ exits with 0 but does not say what was asked; it says: {line}"))
            .into();
    }
    // occ prints most of its errors on stdout.
    said::failure(cmd.failure(output), output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_known_sentences_count() {
        assert_eq!(switch_answer("PHP Notice: odd\nMaintenance mode enabled\n", true), Some(true));
        assert_eq!(switch_answer("Maintenance mode already enabled", true), Some(false));
        assert_eq!(switch_answer("Maintenance mode disabled", true), None);
        assert_eq!(switch_answer("Cannot write into \"config\" directory!", true), None);
        assert_eq!(mode_answer("Maintenance mode is currently disabled"), Some(false));
        assert_eq!(mode_answer("Maintenance mode is currently enabled maybe"), None);
        assert_eq!(mode_answer(""), None);
    }

    #[test]
    fn what_is_too_long_for_nextcloud_is_cut_between_characters() {
        assert_eq!(cut("äö", 3), "ä");
        assert_eq!(cut("äö", 4), "äö");
        assert_eq!(cut("", 4), "");
    }

    #[test]
    fn json_is_found_behind_notices_and_over_many_lines() {
        let found = json_answer(b"Deprecated: {x}\n{\"system\":{\"a\":1}}\n").unwrap();
        assert_eq!(found["system"]["a"], 1);
        assert_eq!(json_answer(b"{\n  \"system\": {\n \"a\": 2 } }").unwrap()["system"]["a"], 2);
        assert!(json_answer(b"Cannot write").is_none());
    }
}
