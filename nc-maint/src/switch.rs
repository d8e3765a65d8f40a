//! The switch, proven: throw it, ask for the state again, and ask status.php until clients see it.
//!
//! Two ways to throw it: the drop-in ([`crate::dropin`]) and occ. Off is the same for both, as either
//! may have to clear up after the other: occ cannot end what a drop-in holds on, and any write of the
//! configuration meanwhile makes the drop-in's word config.php's own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::profile::Method;
use common::record;

use crate::config_file::{ConfigFile, Key};
use crate::curl;
use crate::dropin::{Draft, Folder, Placed, Present};
use crate::mark::Mark;
use crate::occ::Occ;
use crate::php::{self, GoOn, Merged, Waiting};
use crate::settings::Settings;

/// How often switching off is tried.
const TRIES: u32 = 3;

/// Said when off needed more than the drop-in's end.
const PERSISTED: &str = "Nextcloud's configuration was written during maintenance, which put the \
    drop-in's word into config.php; it was switched off there, too";

/// What was made ready while Nextcloud was still up.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    draft: Option<Draft>,
    before: Option<Waiting>,
    on: Option<Waiting>,
    off: Option<Waiting>,
}

/// How the switch was thrown, which is not proven yet.
#[derive(Debug)]
pub(crate) struct Thrown {
    /// It was ours to switch; false if somebody else was faster.
    pub(crate) changed: bool,
    /// From this moment on clients were refused.
    pub(crate) at: Instant,
    /// The drop-in, if that is how.
    pub(crate) placed: Option<Placed>,
}

/// How switching off went.
#[derive(Debug)]
pub(crate) struct Off {
    /// Something was changed.
    pub(crate) changed: bool,
    /// Maintenance held until then.
    pub(crate) held: bool,
    /// The drop-in's word had become config.php's own.
    pub(crate) persisted: bool,
    /// Why config.php was written without occ, if it was.
    pub(crate) by_hand: Option<String>,
    /// From this moment on clients were served: when the switch was thrown back, or, with a URL, when that was first seen.
    pub(crate) at: Instant,
}

/// Nothing stops it.
pub(crate) fn steadily() -> Result<()> {
    Ok(())
}

/// Whether maintenance is on, in the way the method asks.
pub(crate) fn state(settings: &Settings, go_on: &mut GoOn) -> Result<bool> {
    Ok(look(settings, None, Occ::new(settings), go_on)?.on)
}

/// The state, from a PHP that waits for it, a new one, or occ: whichever can tell. occ knows no files.
pub(crate) fn look(
    settings: &Settings,
    waiting: Option<&mut Waiting>,
    occ: Occ,
    go_on: &mut GoOn,
) -> Result<Merged> {
    if settings.choice.method == Method::DropIn {
        // One that was waiting may have been killed meanwhile; a configuration that never ends does not with occ, either.
        let waited = waiting.map(|php| php.ask(go_on));
        match waited.filter(|w| w.is_ok() || php::is_endless(w)).unwrap_or_else(|| php::ask(settings, go_on))
        {
            Ok(merged) => return Ok(merged),
            answer if php::is_endless(&answer) => return answer,
            Err(_) => go_on()?,
        }
    }
    Ok(Merged { on: occ.mode()?, ..Merged::default() })
}

/// What is under names of the drop-in; nothing where that cannot be seen.
pub(crate) fn present(settings: &Settings) -> Present {
    let folder = settings.root().and_then(Folder::open);
    folder.and_then(|f| f.look()).unwrap_or_default()
}

/// The drop-in of this profile, or of the run with this id; of several, the one that lasts longest.
pub(crate) fn own(settings: &Settings, run_id: Option<&str>) -> Option<Mark> {
    let present = present(settings);
    let own = present.ours().filter(|m| m.profile == settings.name || run_id == Some(&m.run_id));
    own.max_by_key(|m| m.until).cloned()
}

/// Before the switch is thrown: fails, with nothing changed, if the proof could not be had.
pub(crate) fn rehearse(settings: &Settings) -> Result<()> {
    if let Some(url) = &settings.url {
        curl::ask(url, settings.url_timeout)
            .context("maintenance could not be proven, so it is not begun")?;
    }
    Ok(())
}

/// Before the switch is thrown: does all that can be done while Nextcloud is up. The drop-in comes last: its time runs.
pub(crate) fn prepare(settings: &Settings, mark: impl FnOnce() -> Mark, go_on: &mut GoOn) -> Result<Ready> {
    if settings.choice.method != Method::DropIn {
        return Ok(Ready::default());
    }
    let folder = settings.root().and_then(Folder::open);
    folder.and_then(|f| f.usable()).context("the method drop-in is not possible")?;
    let mut started = [(); 3].map(|()| Waiting::start(settings).ok());
    for php in &mut started {
        // One that does not come is replaced by a new one when it is needed.
        if php.as_mut().is_some_and(|php| php.settle(go_on).is_err()) {
            *php = None;
        }
        go_on()?;
    }
    let [before, on, off] = started;
    let draft = settings.root().and_then(Folder::open).and_then(|folder| folder.draft(mark(), 0));
    let draft = Some(draft.context("the method drop-in is not possible")?);
    Ok(Ready { draft, before, on, off })
}

impl Off {
    /// What a person should know about it, as (kind, message).
    pub(crate) fn warnings(&self) -> impl Iterator<Item = (String, String)> {
        let persisted = self.persisted.then(|| ("persisted".to_owned(), PERSISTED.to_owned()));
        let by_hand = self.by_hand.as_ref().map(|why| {
            let message =
                format!("occ could not switch maintenance off, so config.php was written without it: {why}");
            ("occ-failed".to_owned(), message)
        });
        persisted.into_iter().chain(by_hand)
    }
}

impl Ready {
    /// The PHP that waits to prove the end.
    pub(crate) fn for_off(&mut self) -> Option<&mut Waiting> {
        self.off.as_mut()
    }
}

/// Switches on. After an error the state is unknown: call [`back`].
pub(crate) fn throw(settings: &Settings, ready: &mut Ready, go_on: &mut GoOn) -> Result<Thrown> {
    let Some(draft) = ready.draft.take() else {
        let changed = Occ::steady(settings).switch(true)?;
        return Ok(Thrown { changed, at: Instant::now(), placed: None });
    };
    // The last look before: afterwards, config.php may say on because Nextcloud wrote down our own word.
    let merged = ready.before.as_mut().and_then(|php| php.ask(go_on).ok());
    go_on()?;
    if merged.is_some_and(|merged| merged.main) {
        return Ok(Thrown { changed: false, at: Instant::now(), placed: None });
    }
    let placed = draft.place()?;
    let at = Instant::now();
    placed.folder.remove_others(&placed.name).context("cannot remove a drop-in that was left")?;
    Ok(Thrown { changed: true, at, placed: Some(placed) })
}

/// Proves that it is on; how long that took, without what clients need. `go_on` may end it.
pub(crate) fn prove(settings: &Settings, ready: &mut Ready, go_on: &mut GoOn) -> Result<u64> {
    let begin = Instant::now();
    let merged = look(settings, ready.on.as_mut(), Occ::steady(settings), go_on)?;
    match (merged.on, settings.choice.method) {
        (true, _) => {}
        (false, Method::DropIn) => return Err(not_honoured(&merged)),
        (false, Method::Occ) => {
            let message = "occ said that maintenance mode is enabled, and then that it is not";
            return Err(Fault::failed(message).into());
        }
    }
    let took = millis(begin);
    curl::until(settings, true, go_on)?;
    Ok(took)
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
    let mut off = Off { changed: false, held: false, persisted: false, by_hand: None, at: Instant::now() };
    if let Ok(present) = &removed {
        off.changed = present.ours().next().is_some();
        off.held = present.ours().any(|m| !m.expired());
    }
    let drop_in = settings.choice.method == Method::DropIn;
    let seen = drop_in.then(|| look(settings, waiting, Occ::steady(settings), &mut steadily));
    let mut served = false;
    if !matches!(&seen, Some(Ok(merged)) if !merged.on) {
        let read_only = matches!(&seen, Some(Ok(merged)) if merged.read_only);
        let mut changed = false;
        match in_config(settings, read_only, &mut changed) {
            Ok(done) => (off.at, served, off.by_hand) = (done.at, done.served, done.instead_of),
            Err(e) => return Err(removed.err().unwrap_or(e)),
        }
        off.persisted = off.changed && changed;
        off.changed |= changed;
        off.held |= changed;
    }
    let at_once = curl::until(settings, false, &mut steadily)?;
    if !served && !at_once {
        off.at = Instant::now();
    }
    if let Ok(folder) = settings.root().and_then(Folder::open) {
        folder.sync();
    }
    Ok(off)
}

/// Removes drop-ins of nc-maint's, whoever's run they name. Foreign files stay.
fn remove(settings: &Settings) -> Result<Present> {
    match settings.root().and_then(Folder::open) {
        Ok(folder) => folder.remove(),
        // No folder here that could hold one of ours.
        Err(_) => Ok(Present::default()),
    }
}

/// How config.php was brought to say off.
#[derive(Debug)]
struct Done {
    at: Instant,
    /// Clients were served at once.
    served: bool,
    /// What occ said, if it could not.
    instead_of: Option<String>,
}

impl Done {
    fn now(settings: &Settings) -> Done {
        let at = Instant::now();
        let served =
            settings.url.as_ref().is_none_or(|url| matches!(curl::ask(url, settings.url_timeout), Ok(false)));
        Done { at, served, instead_of: None }
    }
}

/// Through occ, with [`TRIES`] tries, none begun after twice the limit of one call; and where occ cannot, as the configuration is
/// read-only for it or the database is down, by our own hand.
fn in_config(settings: &Settings, read_only: bool, changed: &mut bool) -> Result<Done> {
    if read_only {
        return by_hand(settings, changed);
    }
    let begin = Instant::now();
    let mut attempt = 1;
    loop {
        match off_once(settings, changed) {
            Ok(done) => return Ok(done),
            // Read-only is read-only the next time, too.
            Err(e)
                if attempt >= TRIES
                    || kind_of(&e) == Kind::Config
                    || begin.elapsed() > 2 * settings.occ_timeout =>
            {
                let done = by_hand(settings, changed);
                return done.map(|d| Done { instead_of: Some(format!("{e:#}")), ..d }).map_err(|_| e);
            }
            Err(_) => {
                // It may have been thrown all the same, by an occ that then hung.
                *changed = true;
                attempt += 1;
                std::thread::sleep(Duration::from_millis(300));
            }
        }
    }
}

fn off_once(settings: &Settings, changed: &mut bool) -> Result<Done> {
    let occ = Occ::steady(settings);
    *changed |= occ.switch(false)?;
    let done = Done::now(settings);
    if occ.mode()? {
        let by = php::ask(settings, &mut steadily).ok().and_then(|merged| merged.by);
        return Err(overridden("occ said that maintenance mode is disabled, and then that it is not", by));
    }
    Ok(done)
}

/// Takes out of config.php what holds maintenance on. Proven by merging all of the configuration as Nextcloud does.
fn by_hand(settings: &Settings, changed: &mut bool) -> Result<Done> {
    let ask = || php::ask(settings, &mut steadily);
    let merged = ask()?;
    if merged.on {
        if merged.by.as_deref() != Some("config.php") {
            return Err(overridden("maintenance is on", merged.by));
        }
        let file = ConfigFile::open(settings.root()?)?;
        // As it was saved, unless it was saved closed.
        *changed |= file.set(Key::Maintenance, None)?;
        if ask()?.on {
            *changed |= file.set(Key::Maintenance, Some("false"))?;
        }
        let done = Done::now(settings);
        let merged = ask()?;
        if merged.on {
            return Err(overridden("config.php says that maintenance is off", merged.by));
        }
        return Ok(done);
    }
    Ok(Done::now(settings))
}

fn overridden(message: &str, by: Option<String>) -> anyhow::Error {
    let hint = match by.filter(|file| file != "config.php") {
        Some(file) => {
            format!("config/{file} says `'maintenance' => true` and overrides config.php; it is not ours")
        }
        None => "look for `'maintenance' => true` in config/*.config.php: such a file overrides occ".into(),
    };
    Fault::failed(message).hint(hint).into()
}

/// Tells clients that the server went back in time: through occ, or where the configuration is read-only, in config.php.
pub(crate) fn renew_data_fingerprint(settings: &Settings) -> Result<()> {
    let Err(refused) = Occ::steady(settings).renew_data_fingerprint() else { return Ok(()) };
    let ask = || php::ask(settings, &mut steadily);
    if !ask().is_ok_and(|merged| merged.read_only) {
        return Err(refused);
    }
    let id = record::random_id()?;
    ConfigFile::open(settings.root()?)?.set(Key::DataFingerprint, Some(&format!("'{id}'")))?;
    if ask()?.fingerprint == id {
        return Ok(());
    }
    Err(Fault::failed("config.php has a new data-fingerprint, and Nextcloud's configuration another")
        .hint("another file in config/ sets data-fingerprint and overrides config.php: take it out there")
        .into())
}

/// After a failed [`throw`] or [`prove`]: off, without throwing the switch if it never moved.
pub(crate) fn back(settings: &Settings) -> Result<()> {
    let now = || look(settings, None, Occ::steady(settings), &mut steadily);
    if settings.choice.method == Method::Occ && now().is_ok_and(|merged| !merged.on) {
        return curl::until(settings, false, &mut steadily).map(drop);
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
    between(since, Instant::now())
}

/// Whole milliseconds from one moment to another.
pub(crate) fn between(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}
