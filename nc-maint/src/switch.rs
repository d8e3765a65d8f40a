//! The switch, proven: throw it, ask occ again, and ask status.php until clients see it.
//!
//! Method `occ` only. Another method belongs here, as another way to throw; the proof stays.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;

use crate::curl;
use crate::occ::Occ;
use crate::settings::Settings;

/// The name of the method in records and reports.
pub(crate) const METHOD: &str = "occ";

/// How often switching off is tried.
const TRIES: u32 = 3;

/// Whether maintenance is on, as occ says.
pub(crate) fn state(settings: &Settings) -> Result<bool> {
    Occ::steady(settings).mode()
}

/// Before the switch is thrown: fails, with nothing changed, if the proof could not be had.
pub(crate) fn rehearse(settings: &Settings) -> Result<()> {
    if let Some(url) = &settings.url {
        curl::ask(url, settings.url_timeout)
            .context("maintenance could not be proven, so it is not begun")?;
    }
    Ok(())
}

/// Switches on and proves it; false if it was on. After an error the state is unknown: call [`back`].
/// `go_on` may end the wait for clients.
pub(crate) fn on(settings: &Settings, go_on: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
    let occ = Occ::steady(settings);
    let changed = occ.switch(true)?;
    if !occ.mode()? {
        return Err(
            Fault::failed("occ said that maintenance mode is enabled, and then that it is not").into()
        );
    }
    curl::until(settings, true, go_on)?;
    Ok(changed)
}

/// Switches off and proves it; false if it was off. Not interrupted, and bounded: [`TRIES`] tries, none
/// begun after twice the limit of one call.
pub(crate) fn off(settings: &Settings) -> Result<bool> {
    let begin = Instant::now();
    let mut changed = false;
    for attempt in 1.. {
        match off_once(settings, &mut changed) {
            Ok(()) => break,
            Err(e) if attempt >= TRIES || begin.elapsed() > 2 * settings.occ_timeout => return Err(e),
            Err(_) => {
                // It may have been thrown all the same, by an occ that then hung.
                changed = true;
                std::thread::sleep(Duration::from_millis(300));
            }
        }
    }
    curl::until(settings, false, &mut || Ok(()))?;
    Ok(changed)
}

fn off_once(settings: &Settings, changed: &mut bool) -> Result<()> {
    let occ = Occ::steady(settings);
    *changed |= occ.switch(false)?;
    if occ.mode()? {
        return Err(Fault::failed("occ said that maintenance mode is disabled, and then that it is not")
            .hint("look for `'maintenance' => true` in config/*.config.php: such a file overrides occ")
            .into());
    }
    Ok(())
}

/// After a failed [`on`]: off, without throwing the switch if it never moved.
pub(crate) fn back(settings: &Settings) -> Result<()> {
    if matches!(state(settings), Ok(false)) {
        return curl::until(settings, false, &mut || Ok(()));
    }
    off(settings).map(drop)
}

/// What to say, and what a person can do, when maintenance could not be proven off.
pub(crate) fn stuck(settings: &Settings, error: &anyhow::Error) -> (String, String) {
    let words = &settings.words;
    (
        format!("maintenance mode could not be proven off: {error:#}"),
        format!("nc-maint off {words}   (or, as the web user: occ maintenance:mode --off)"),
    )
}
