//! The switch, proven: throw it, ask for the state again, and ask status.php until clients see it.
//!
//! Two ways to throw it: the drop-in ([`crate::dropin`]) and occ. Off is the same for both, as either
//! may have to clear up after the other: occ cannot end what a drop-in holds on, and any write of the
//! configuration meanwhile makes the drop-in's word config.php's own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::profile::Method;

use crate::curl;
use crate::dropin::{Draft, Folder, Mark, Present};
use crate::occ::Occ;
use crate::php::{self, Merged, Waiting};
use crate::settings::Settings;

/// How often switching off is tried.
const TRIES: u32 = 3;

/// Said when off needed occ, too.
pub(crate) const PERSISTED: &str = "Nextcloud's configuration was written during maintenance, which put the \
    drop-in's word into config.php; it was switched off there through occ";

/// What was made ready while Nextcloud was still up.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    draft: Option<Draft>,
    before: Option<Waiting>,
    on: Option<Waiting>,
    off: Option<Waiting>,
}

/// How switching on went.
#[derive(Debug, Default)]
pub(crate) struct On {
    /// It was ours to switch; false if somebody else was faster.
    pub(crate) changed: bool,
    pub(crate) proof_ms: u64,
}

/// How switching off went.
#[derive(Debug, Default)]
pub(crate) struct Off {
    /// Something was changed.
    pub(crate) changed: bool,
    /// Maintenance held until then.
    pub(crate) held: bool,
    /// The drop-in's word had become config.php's own.
    pub(crate) persisted: bool,
}

/// Whether maintenance is on, in the way the method asks.
pub(crate) fn state(settings: &Settings) -> Result<bool> {
    Ok(look(settings, None, Occ::steady(settings))?.on)
}

/// The state, from a PHP that waits for it, a new one, or occ: whichever can tell. occ knows no files.
pub(crate) fn look(settings: &Settings, waiting: Option<&mut Waiting>, occ: Occ) -> Result<Merged> {
    if settings.choice.method == Method::DropIn {
        let answer = waiting.map(Waiting::ask).and_then(Result::ok);
        if let Some(merged) = answer.or_else(|| php::ask(settings).ok()) {
            return Ok(merged);
        }
    }
    Ok(Merged { on: occ.mode()?, main: false, by: None })
}

/// What is under the drop-in's name; nothing where that cannot be seen.
pub(crate) fn present(settings: &Settings) -> Present {
    let folder = settings.root().and_then(Folder::open);
    folder.and_then(|f| f.look()).unwrap_or(Present::Nothing)
}

/// The drop-in of this profile, or of the run with this id.
pub(crate) fn own(settings: &Settings, run_id: Option<&str>) -> Option<Mark> {
    match present(settings) {
        Present::Ours(mark) if mark.profile == settings.name || run_id == Some(&mark.run_id) => Some(mark),
        _ => None,
    }
}

/// Before the switch is thrown: fails, with nothing changed, if the proof could not be had.
pub(crate) fn rehearse(settings: &Settings) -> Result<()> {
    if let Some(url) = &settings.url {
        curl::ask(url, settings.url_timeout)
            .context("maintenance could not be proven, so it is not begun")?;
    }
    Ok(())
}

/// Before the switch is thrown: does all that can be done while Nextcloud is up.
pub(crate) fn prepare(settings: &Settings, mark: &Mark) -> Result<Ready> {
    if settings.choice.method != Method::DropIn {
        return Ok(Ready::default());
    }
    let draft = settings.root().and_then(Folder::open).and_then(|folder| folder.draft(mark));
    let draft = Some(draft.context("the method drop-in is not possible")?);
    let started = [(); 3].map(|()| Waiting::start(settings));
    // One that does not come is replaced by a new one when it is needed.
    let [before, on, off] = started.map(|w| w.and_then(|mut w| w.settle().map(|()| w)).ok());
    Ok(Ready { draft, before, on, off })
}

impl Ready {
    /// The PHP that waits to prove the end.
    pub(crate) fn for_off(&mut self) -> Option<&mut Waiting> {
        self.off.as_mut()
    }
}

/// Switches on and proves it. After an error the state is unknown: call [`back`].
/// `go_on` may end the wait for clients.
pub(crate) fn on(
    settings: &Settings,
    ready: &mut Ready,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<On> {
    let occ = Occ::steady(settings);
    let mut changed = true;
    let proof;
    if let Some(mut draft) = ready.draft.take() {
        // The last look before: afterwards, config.php may say on because Nextcloud wrote down our own word.
        let theirs = ready.before.as_mut().and_then(|php| php.ask().ok()).is_some_and(|merged| merged.main);
        if theirs {
            changed = false;
        } else {
            draft.place()?;
        }
        proof = Instant::now();
        let merged = look(settings, ready.on.as_mut(), occ)?;
        if !merged.on {
            return Err(not_honoured(&merged));
        }
    } else {
        changed = occ.switch(true)?;
        proof = Instant::now();
        if !occ.mode()? {
            return Err(
                Fault::failed("occ said that maintenance mode is enabled, and then that it is not").into()
            );
        }
    }
    curl::until(settings, true, go_on)?;
    Ok(On { changed, proof_ms: millis(proof) })
}

fn not_honoured(merged: &Merged) -> anyhow::Error {
    let by = merged.by.as_deref().unwrap_or("config.php");
    Fault::failed("the drop-in is in place, and Nextcloud's configuration does not say maintenance")
        .hint(format!("config/{by} has the last word on maintenance: take it out there, or use --method occ"))
        .into()
}

/// Switches off and proves it. Not interrupted, and bounded.
pub(crate) fn off(settings: &Settings, waiting: Option<&mut Waiting>) -> Result<Off> {
    let removed = remove(settings);
    let mark = match &removed {
        Ok(Present::Ours(mark)) => Some(mark),
        _ => None,
    };
    let held = mark.is_some_and(|m| !m.expired());
    let mut off = Off { changed: mark.is_some(), held, persisted: false };
    let drop_in = settings.choice.method == Method::DropIn;
    if !drop_in || look(settings, waiting, Occ::steady(settings)).map_or(true, |m| m.on) {
        let mut changed = false;
        if let Err(e) = through_occ(settings, &mut changed) {
            return Err(removed.err().unwrap_or(e));
        }
        off.persisted = off.changed && changed;
        off.changed |= changed;
        off.held |= changed;
    }
    curl::until(settings, false, &mut || Ok(()))?;
    if let Ok(folder) = settings.root().and_then(Folder::open) {
        folder.sync();
    }
    Ok(off)
}

/// Removes a drop-in of nc-maint's, whoever's run it names. A foreign file stays.
fn remove(settings: &Settings) -> Result<Present> {
    match settings.root().and_then(Folder::open) {
        Ok(folder) => folder.remove(),
        // No folder here that could hold one of ours.
        Err(_) => Ok(Present::Nothing),
    }
}

/// [`TRIES`] tries, none begun after twice the limit of one call.
fn through_occ(settings: &Settings, changed: &mut bool) -> Result<()> {
    let begin = Instant::now();
    for attempt in 1.. {
        match off_once(settings, changed) {
            Ok(()) => break,
            Err(e) if attempt >= TRIES || begin.elapsed() > 2 * settings.occ_timeout => return Err(e),
            Err(_) => {
                // It may have been thrown all the same, by an occ that then hung.
                *changed = true;
                std::thread::sleep(Duration::from_millis(300));
            }
        }
    }
    Ok(())
}

fn off_once(settings: &Settings, changed: &mut bool) -> Result<()> {
    let occ = Occ::steady(settings);
    *changed |= occ.switch(false)?;
    if occ.mode()? {
        let by = php::ask(settings).ok().and_then(|merged| merged.by);
        let hint = match by.filter(|file| file != "config.php") {
            Some(file) => {
                format!("config/{file} says `'maintenance' => true` and overrides occ; it is not ours")
            }
            None => {
                "look for `'maintenance' => true` in config/*.config.php: such a file overrides occ".into()
            }
        };
        let message = "occ said that maintenance mode is disabled, and then that it is not";
        return Err(Fault::failed(message).hint(hint).into());
    }
    Ok(())
}

/// After a failed [`on`]: off, without throwing the switch if it never moved.
pub(crate) fn back(settings: &Settings) -> Result<()> {
    if settings.choice.method == Method::Occ && matches!(state(settings), Ok(false)) {
        return curl::until(settings, false, &mut || Ok(()));
    }
    off(settings, None).map(drop)
}

/// What to say, and what a person can do, when maintenance could not be proven off.
pub(crate) fn stuck(settings: &Settings, error: &anyhow::Error) -> (String, String) {
    let words = &settings.words;
    (
        format!("maintenance mode could not be proven off: {error:#}"),
        format!("nc-maint off {words}   (or, as the web user: occ maintenance:mode --off)"),
    )
}

/// Whole milliseconds since then.
pub(crate) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
