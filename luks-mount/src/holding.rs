//! This machine's hold on the container: the lease is taken for an attach, moved on, and given back.
//! Whose it is, is judged by what was noted here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::fuse::Health;
use common::mutant;
use common::record::random_id;
use common::run::Cmd;
use common::status::{Report, now};

use crate::image;
use crate::lease::{Held, Lease, is_ours, whose};
use crate::lease_file::{Answer, Over};
use crate::record::Record;
use crate::settings::Settings;
use crate::stack::{self, State};
use crate::touch::NO_ROOM;
use crate::watch::{PROBE, Watch};

fn held_by_another(settings: &Settings, text: &[u8]) -> anyhow::Error {
    let over = Lease::parse(text).is_some_and(|lease| lease.until < now());
    let what = format!("the container is not ours alone: {}", whose(text));
    // Busy passes by itself; this will not.
    let fault = if over { Fault::config(what) } else { Fault::busy(what) };
    let hint = format!(
        "let that machine finish, or stop it. If it is gone for good: look at the container with `offsite-push view {0}`, \
         close it, then `offsite-push push {0} --accept-container`, once, takes the lease {1} over",
        settings.name,
        path(&settings.image).display()
    );
    fault.hint(hint).into()
}

/// Where it is.
fn path(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".lease");
    PathBuf::from(name)
}

/// Takes it for an attach for writing, durably noted. `accept`: also from somebody else.
pub(crate) fn take(
    settings: &Settings,
    record: &mut Record,
    accept: bool,
    watch: &mut Watch,
    report: &mut Report,
) -> Result<()> {
    let found = look(settings, watch)?.found;
    let heeded = !mutant::active("container-lease-is-heeded");
    let (held, over) = match (&found, &record.lease) {
        (None, _) => (Held { holder: random_id()?, serial: 1 }, Over::Nothing),
        // A run of ours that was cut off.
        (Some(text), Some(held)) if is_ours(text.as_bytes(), Some(held)) => {
            (held.after(text.as_bytes()), Over::Ours)
        }
        (Some(text), _) => {
            if heeded && !accept {
                return Err(held_by_another(settings, text.as_bytes()));
            }
            report.warn("lease-taken-over", format!("the lease is taken over: {}", whose(text.as_bytes())));
            (Held { holder: random_id()?, serial: 1 }, Over::Anything)
        }
    };
    record.lease = Some(held.clone());
    record.save(settings)?;
    let put = place(settings, watch, over, &held)?;
    if put.done {
        return Ok(());
    }
    if !is_ours(put.found.as_deref().unwrap_or_default().as_bytes(), Some(&held)) {
        record.lease = None;
        record.save(settings)?;
    }
    if let Some(why) = put.unwritable {
        let what = format!(
            "another machine will not see that this one writes to the container: {} cannot be written: {why}",
            path(&settings.image).display()
        );
        report.warn("no-lease", what);
        return Ok(());
    }
    Err(held_by_another(settings, put.found.unwrap_or_default().as_bytes()))
}

/// Says if somebody else holds it, for who only looks.
pub(crate) fn tell(
    settings: &Settings,
    record: &Record,
    watch: &mut Watch,
    report: &mut Report,
) -> Result<()> {
    if let Some(text) = look(settings, watch)?.found
        && !is_ours(text.as_bytes(), record.lease.as_ref())
    {
        report.warn("lease-of-another", format!("what is shown may change: {}", whose(text.as_bytes())));
    }
    Ok(())
}

/// `renew`: the lease moves on. An error of the kind `config`: it is not ours any more.
pub(crate) fn renew(settings: &Settings, report: &mut Report) -> Result<()> {
    let _lock = settings.lock()?;
    let mut record = Record::need(settings)?;
    let stack = stack::look(settings, Some(&record))?;
    let writable = stack.mapping.as_ref().is_some_and(|m| !m.read_only);
    let Some(held) = record.lease.as_mut().filter(|_| stack.state == State::Attached && writable) else {
        return Ok(());
    };
    let mut watch = settings.watch(false)?;
    if let Some(text) = look(settings, &mut watch)?.found
        && is_ours(text.as_bytes(), Some(held))
    {
        *held = held.after(text.as_bytes());
    }
    let held = held.clone();
    record.save(settings)?;
    let mut put = place(settings, &mut watch, Over::Ours, &held)?;
    if mutant::active("a-lease-that-is-gone-is-ours") && !put.done && put.found.is_none() {
        put = place(settings, &mut watch, Over::Nothing, &held)?;
    }
    if let Some(why) = put.unwritable {
        return Err(Fault::failed(format!("the lease cannot be renewed: {why}")).hint(NO_ROOM).into());
    }
    if !put.done && !mutant::active("lost-lease-unnoticed") {
        report.set("lease_lost", true);
        return Err(lost(put.found.as_deref()));
    }
    report.changed = true;
    Ok(())
}

fn lost(found: Option<&str>) -> anyhow::Error {
    Fault::config(format!("the container was taken over by another machine: {}", taken_by(found)))
        .hint("only one machine may push to it: stop the other one, or this one")
        .into()
}

/// Who has it, if it is not ours any more. One that is gone was not just removed, as far as can be known: whoever was told
/// to take the container over removes the lease at the end. If nobody was, the next attach finds its own marks and goes on.
fn taken_by(found: Option<&str>) -> String {
    match found {
        Some(text) => whose(text.as_bytes()),
        None => "the lease is gone, as one is that another machine has taken and given back".into(),
    }
}

/// Whether somebody else has taken it from us. What cannot be found out is not so.
pub(crate) fn is_lost(settings: &Settings, watch: &mut Watch) -> Option<String> {
    let held = Record::load(settings).ok().flatten()?.lease?;
    let found = look(settings, watch).ok()?.found;
    if found.is_none() && mutant::active("a-lease-that-is-gone-is-ours") {
        return None;
    }
    let ours = found.as_ref().is_some_and(|text| is_ours(text.as_bytes(), Some(&held)));
    (!ours).then(|| taken_by(found.as_deref()))
}

/// Gives it back once the container is closed. After an end that was not clean it stays: this machine goes on there.
pub(crate) fn release(settings: &Settings, watch: &mut Watch, report: &mut Report) {
    let Ok(Some(mut record)) = Record::load(settings) else { return };
    let Some(held) = record.lease.clone() else { return };
    if watch.dead || matches!(watch.health(PROBE), Ok(Some(Health::Dead(_) | Health::Hung)) | Err(_)) {
        return;
    }
    let dropped = ask(settings, watch, "lease-drop", |cmd| of(cmd, &held)).and_then(|_| {
        record.lease = None;
        record.save(settings)
    });
    if let Err(error) = dropped {
        report.warn(
            "lease-stays",
            format!("the lease could not be given back, which only others notice: {error:#}"),
        );
    }
}

fn look(settings: &Settings, watch: &mut Watch) -> Result<Answer> {
    ask(settings, watch, "lease-look", |cmd| cmd)
}

fn place(settings: &Settings, watch: &mut Watch, over: Over, held: &Held) -> Result<Answer> {
    ask(settings, watch, "lease-put", |cmd| of(cmd, held).args(["--over", over.word()]))
}

fn of(cmd: Cmd, held: &Held) -> Cmd {
    cmd.args(["--holder", &held.holder, "--serial", &held.serial.to_string()])
}

/// Has a child do it, to its end: half of it would help nobody.
fn ask(settings: &Settings, watch: &mut Watch, what: &str, with: impl FnOnce(Cmd) -> Cmd) -> Result<Answer> {
    let answer = image::touch(settings, what, watch, |cmd| with(cmd.uninterruptible()))?;
    serde_json::from_value(answer).context("the answer about the lease is damaged")
}
