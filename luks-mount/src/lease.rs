//! Who writes to the container: `IMAGE.lease`, a small file beside the image, so that another machine sees it.
//!
//! Whoever attaches for writing puts it there, in one step that only one machine can win, moves it on while it works
//! (`renew`) and removes it after a clean detach. Whose it is, is told by a random value and a number that grows with
//! each renewal, both of them noted on this machine first: a copy of this machine's state, in a backup that was
//! restored elsewhere, soon knows an older number, and is refused. Somebody else's lease is refused whatever it says,
//! until it is gone or the person in charge says `--accept-container`: so no clock decides anything; the times in it
//! are for people. A lease that outlived its machine costs that one word, and nothing but this machine's record can be
//! lost by it.
//!
//! It is a word between honest machines. S3 can change or remove it at will: then the marks of the file system
//! ([`crate::marks`]) still tell that another machine wrote. What is read is bounded, and shown only if it is plain.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::fuse::Health;
use common::mutant;
use common::program::Program;
use common::record::random_id;
use common::status::{Report, now, utc};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::cli::{Beside, Over, What};
use crate::record::Record;
use crate::settings::{PROBE, Settings};
use crate::stack::{self, State};
use crate::watch::Watch;

/// How long a lease says it lasts. Nothing depends on it.
const LENGTH_SECONDS: u64 = 24 * 3600;
/// All of them have this size: nobody reads half of one because a cache knew an older size.
const BYTES: usize = 512;
/// The cure where it cannot be written.
const NO_ROOM: &str = "S3's disk is full, or refuses writes: make room there";
/// The most that is read.
const LONGEST: u64 = 4096;

/// What this machine noted of its lease.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Held {
    /// 32 random hexadecimal digits.
    holder: String,
    /// The one in the file, or the one before.
    serial: u64,
}

impl Held {
    /// The next one, where `text`, which is ours, is in the file. One that did not arrive is tried again: this machine's
    /// number is the one in the file or the one after it, however often a renewal fails.
    fn after(&self, text: &[u8]) -> Held {
        let there = Lease::parse(text).map_or(self.serial, |lease| lease.serial);
        let there = if mutant::active("a-renewal-that-failed") { self.serial } else { there };
        Held { serial: there.saturating_add(1), ..self.clone() }
    }
}

/// The content of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Lease {
    /// 1
    schema: u32,
    holder: String,
    serial: u64,
    /// A name for people.
    host: String,
    /// RFC 3339 UTC, by that machine's clock.
    renewed: String,
    until: String,
}

impl Lease {
    fn of(held: &Held) -> Lease {
        let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seconds = seconds.map_or(0, |d| d.as_secs());
        Lease {
            schema: 1,
            holder: held.holder.clone(),
            serial: held.serial,
            host: host(),
            renewed: now(),
            until: utc(seconds + LENGTH_SECONDS),
        }
    }

    /// As it is written: one line of a fixed size.
    fn text(&self) -> Result<String> {
        let mut text = serde_json::to_string(self)?;
        text.extend(std::iter::repeat_n(' ', BYTES.saturating_sub(text.len() + 1)));
        text.push('\n');
        Ok(text)
    }

    /// Nothing that is not plain is taken over.
    fn parse(text: &[u8]) -> Option<Lease> {
        let lease: Lease = serde_json::from_slice(text).ok()?;
        let plain = |text: &str, most: usize, more: &str| {
            !text.is_empty()
                && text.len() <= most
                && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let time = |text: &str| plain(text, 20, "-:") && text.len() == 20;
        let right = plain(&lease.holder, 32, "")
            && plain(&lease.host, 64, "-._")
            && time(&lease.renewed)
            && time(&lease.until);
        right.then_some(lease)
    }

    fn is_of(&self, held: &Held) -> bool {
        self.holder == held.holder
            && (self.serial == held.serial || self.serial.checked_add(1) == Some(held.serial))
    }
}

fn host() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name: String =
        name.to_string_lossy().chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
    if name.is_empty() { "unnamed".into() } else { name.chars().take(64).collect() }
}

fn is_ours(text: &[u8], held: Option<&Held>) -> bool {
    Lease::parse(text).zip(held).is_some_and(|(lease, held)| lease.is_of(held))
}

/// What stands in somebody else's lease, as a sentence.
fn whose(text: &[u8]) -> String {
    match Lease::parse(text) {
        Some(lease) => format!(
            "{} has it open for writing: its lease was renewed at {}, and is good until {}",
            lease.host, lease.renewed, lease.until
        ),
        None => "somebody has it open for writing, whose lease cannot be read".into(),
    }
}

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
    let found = ask(settings, watch, What::Look, None, None)?.found;
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
    let put = ask(settings, watch, What::Put, Some(over), Some(&held))?;
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
    if let Some(text) = ask(settings, watch, What::Look, None, None)?.found
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
    let mut watch = Watch::new(settings, false)?;
    if let Some(text) = ask(settings, &mut watch, What::Look, None, None)?.found
        && is_ours(text.as_bytes(), Some(held))
    {
        *held = held.after(text.as_bytes());
    }
    let held = held.clone();
    record.save(settings)?;
    let mut put = ask(settings, &mut watch, What::Put, Some(Over::Ours), Some(&held))?;
    if mutant::active("a-lease-that-is-gone-is-ours") && !put.done && put.found.is_none() {
        put = ask(settings, &mut watch, What::Put, Some(Over::Nothing), Some(&held))?;
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
    let found = ask(settings, watch, What::Look, None, None).ok()?.found;
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
    let dropped = ask(settings, watch, What::Drop, None, Some(&held)).and_then(|_| {
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

/// What the child answers.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Answer {
    /// What was asked for is so.
    done: bool,
    /// What is in the file, if there is one.
    found: Option<String>,
    /// Why it cannot be written there at all.
    unwritable: Option<String>,
}

/// Has a child do it, which can be left behind if the far end does not answer.
fn ask(
    settings: &Settings,
    watch: &mut Watch,
    what: What,
    over: Option<Over>,
    held: Option<&Held>,
) -> Result<Answer> {
    let mut cmd = Program::own()?.cmd().args(["beside", what.word(), "--image"]).arg(&settings.image);
    cmd = cmd.uninterruptible();
    if let Some(over) = over {
        cmd = cmd.args(["--over", over.word()]);
    }
    if let Some(held) = held {
        cmd = cmd.args(["--holder", &held.holder, "--serial", &held.serial.to_string()]);
    }
    let out = watch.output(&cmd)?;
    if !out.status.success() {
        return Err(not_done(what, &String::from_utf8_lossy(&out.stderr)));
    }
    serde_json::from_slice(&out.stdout).context("the answer about the lease is damaged")
}

fn not_done(what: What, said: &str) -> anyhow::Error {
    let fault = Fault::failed(format!("the lease beside the image: {}", said.trim()));
    // sftp has one word for all that a disk may refuse.
    match what {
        What::Put => fault.hint(NO_ROOM).into(),
        What::Look | What::Drop => fault.into(),
    }
}

/// The child's side: does it and answers on stdout.
pub(crate) fn answer(beside: &Beside) -> ExitCode {
    let done = Folder::open(&beside.image).and_then(|folder| folder.act(beside));
    match done.and_then(|answer| Ok(std::io::stdout().write_all(&serde_json::to_vec(&answer)?)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            common::status::tell(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// The folder that the image is in. Nothing in it is followed.
struct Folder {
    dir: File,
    lease: OsString,
    new: OsString,
}

impl Folder {
    fn open(image: &Path) -> Result<Folder> {
        let (Some(parent), Some(name)) = (image.parent(), image.file_name()) else {
            anyhow::bail!("{} is not a file name", image.display());
        };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let dir = openat2(AT_FDCWD, parent, how).map(File::from);
        let dir = dir.with_context(|| format!("cannot open {}", parent.display()))?;
        // S3 may not be mounted there any more.
        fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .with_context(|| format!("there is no image {}", image.display()))?;
        let with =
            |prefix: &str, suffix: &str| [prefix.as_bytes(), name.as_bytes(), suffix.as_bytes()].concat();
        let name = |bytes: Vec<u8>| OsStr::from_bytes(&bytes).to_owned();
        Ok(Folder { dir, lease: name(with("", ".lease")), new: name(with(".", ".lease.new")) })
    }

    fn act(&self, beside: &Beside) -> Result<Answer> {
        let held = beside.holder.clone().map(|holder| Held { holder, serial: beside.serial });
        let found = self.read()?;
        let ours = found.as_ref().is_some_and(|text| is_ours(text, held.as_ref()));
        let told = |found: Option<Vec<u8>>| found.map(|text| String::from_utf8_lossy(&text).into_owned());
        match (beside.what, held) {
            (What::Look, _) => Ok(Answer { done: true, found: told(found), unwritable: None }),
            (What::Drop, Some(_)) => {
                if ours {
                    unlinkat(&self.dir, self.lease.as_os_str(), UnlinkatFlags::NoRemoveDir)
                        .context("cannot remove it")?;
                }
                Ok(Answer { done: true, ..Answer::default() })
            }
            (What::Put, Some(held)) => {
                let may = match beside.over {
                    Some(Over::Anything) => true,
                    Some(Over::Ours) => ours,
                    Some(Over::Nothing) | None => found.is_none(),
                };
                if !may {
                    return Ok(Answer { done: false, found: told(found), unwritable: None });
                }
                if let Err(error) = self.put(&held, beside.over) {
                    let refused = [Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::ENOSPC, Errno::EDQUOT];
                    let why = error.downcast_ref::<Errno>().filter(|e| refused.contains(e));
                    let Some(why) = why else { return Err(error) };
                    // An S3 that cannot say "it exists already" says "failure", which is EPERM here.
                    let found = self.read()?;
                    let ours = found.as_ref().is_some_and(|text| is_ours(text, Some(&held)));
                    let unwritable = (found.is_none() || ours).then(|| why.to_string());
                    return Ok(Answer { done: false, found: told(found), unwritable });
                }
                // Another machine may have been faster.
                let found = self.read()?;
                let done = found.as_ref().is_some_and(|text| is_ours(text, Some(&held)));
                Ok(Answer { done, found: told(found), unwritable: None })
            }
            (What::Drop | What::Put, None) => anyhow::bail!("whose?"),
        }
    }

    /// The file's first bytes; `None` if there is none. Anything but a file with a lease is somebody else's.
    fn read(&self) -> Result<Option<Vec<u8>>> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = match openat(&self.dir, self.lease.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            // A link, another account's file, a socket.
            Err(Errno::ELOOP | Errno::EACCES | Errno::EPERM | Errno::ENXIO) => return Ok(Some(Vec::new())),
            Err(e) => return Err(e).context("cannot open it"),
        };
        if !file.metadata()?.is_file() {
            return Ok(Some(Vec::new()));
        }
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).context("cannot read it")?;
        Ok(Some(text))
    }

    /// Puts it there in one step, which fails if nothing was to be there and something is.
    fn put(&self, held: &Held, over: Option<Over>) -> Result<()> {
        let text = Lease::of(held).text()?;
        if over == Some(Over::Ours) {
            return self.renew(held, &text);
        }
        match unlinkat(&self.dir, self.new.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        self.write(&self.new, &text)?;
        let (dir, new, lease) = (&self.dir, self.new.as_os_str(), self.lease.as_os_str());
        if over == Some(Over::Anything) {
            return renameat(dir, new, dir, lease).map_err(anyhow::Error::from);
        }
        let linked = linkat(dir, new, dir, lease, AtFlags::empty());
        // What stays is replaced by the next one.
        unlinkat(dir, new, UnlinkatFlags::NoRemoveDir).ok();
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => Ok(()),
            // No hard links there.
            Err(_) if self.read()?.is_none() => self.write(&self.lease, &text),
            Err(_) => Ok(()),
        }
    }

    /// Into the very file that is ours, not by its name: another machine may be taking that at this moment, and would
    /// lose it again.
    fn renew(&self, held: &Held, text: &str) -> Result<()> {
        let flags =
            OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.dir, self.lease.as_os_str(), flags, Mode::empty())?);
        let mut there = Vec::new();
        (&file).take(LONGEST).read_to_end(&mut there)?;
        if is_ours(&there, Some(held)) {
            file.write_all_at(text.as_bytes(), 0).and_then(|()| file.sync_all()).map_err(errno)?;
        }
        Ok(())
    }

    fn write(&self, name: &OsStr, text: &str) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(errno)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);
    impl Place {
        fn new() -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            std::fs::write(place.0.path().join("c.img"), "").unwrap();
            place
        }
        fn lease(&self) -> PathBuf {
            self.0.path().join("c.img.lease")
        }
        fn act(&self, what: What, over: Option<Over>, held: Option<&Held>) -> Answer {
            let image = self.0.path().canonicalize().unwrap().join("c.img");
            let (holder, serial) = (held.map(|h| h.holder.clone()), held.map_or(0, |h| h.serial));
            let folder = Folder::open(&image).unwrap();
            folder.act(&Beside { what, image, over, holder, serial }).unwrap()
        }
        fn put(&self, over: Over, held: &Held) -> bool {
            self.act(What::Put, Some(over), Some(held)).done
        }
    }
    fn held(holder: &str, serial: u64) -> Held {
        Held { holder: holder.repeat(32), serial }
    }

    #[test]
    fn one_machine_has_it_and_gives_it_back() {
        let place = Place::new();
        let (one, two) = (held("1", 1), held("2", 1));
        assert!(place.act(What::Look, None, None).found.is_none());
        assert!(place.put(Over::Nothing, &one));
        assert_eq!(std::fs::metadata(place.lease()).unwrap().len(), BYTES as u64);
        for over in [Over::Nothing, Over::Ours] {
            assert!(!place.put(over, &two));
        }
        place.act(What::Drop, None, Some(&two));
        assert!(place.lease().exists(), "only its holder removes it");
        let later = held("1", 2);
        assert!(place.put(Over::Ours, &later));
        // A copy of the state from before the renewal.
        assert!(!place.put(Over::Ours, &one));
        assert!(place.put(Over::Anything, &two));
        assert!(!place.put(Over::Ours, &held("1", 3)), "it was lost");
        place.act(What::Drop, None, Some(&two));
        assert_eq!(std::fs::read_dir(place.0.path()).unwrap().count(), 1, "nothing but the image stays");
    }

    #[test]
    fn of_many_at_once_one_gets_it() {
        let place = Place::new();
        let image = place.0.path().canonicalize().unwrap().join("c.img");
        let tries: Vec<_> = (0..8u64)
            .map(|n| {
                let image = image.clone();
                let holder = Some(format!("{n}").repeat(32));
                let beside = Beside { what: What::Put, image, over: Some(Over::Nothing), holder, serial: 1 };
                std::thread::spawn(move || {
                    Folder::open(&beside.image).unwrap().act(&beside).is_ok_and(|a| a.done)
                })
            })
            .collect();
        let got = tries.into_iter().filter_map(|t| t.join().ok()).filter(|done| *done).count();
        assert!(got <= 1, "{got}");
    }

    #[test]
    fn what_s3_puts_there_is_somebody_elses_and_harmless() {
        let place = Place::new();
        let one = held("1", 1);
        let evil = Lease { host: "\u{1b}[2J".into(), ..Lease::of(&one) };
        for text in [String::new(), "{".into(), "x".repeat(1 << 20), evil.text().unwrap()] {
            std::fs::write(place.lease(), &text).unwrap();
            let found = place.act(What::Look, None, None).found.unwrap();
            assert!(found.len() <= 4096 && !place.put(Over::Ours, &one) && !place.put(Over::Nothing, &one));
            assert_eq!(whose(found.as_bytes()), whose(b""));
        }
        let link = |target: &str| {
            std::fs::remove_file(place.lease()).unwrap();
            std::os::unix::fs::symlink(target, place.lease()).unwrap();
        };
        link("/etc/passwd");
        assert_eq!(place.act(What::Look, None, None).found.as_deref(), Some(""));
        assert!(!place.put(Over::Nothing, &one));
        link("/nowhere");
        assert!(!place.put(Over::Nothing, &one));
        assert!(place.put(Over::Anything, &one), "a link is replaced, not followed");
        std::fs::remove_file(place.lease()).unwrap();
        std::fs::create_dir(place.lease()).unwrap();
        assert_eq!(place.act(What::Look, None, None).found.as_deref(), Some(""));
        // S3 is not mounted: nothing is left where the image is not.
        std::fs::remove_file(place.0.path().join("c.img")).unwrap();
        assert!(Folder::open(&place.0.path().canonicalize().unwrap().join("c.img")).is_err());
    }

    #[test]
    fn a_disk_that_takes_no_lease_is_told_with_the_cure() {
        let described = |what| common::status::describe(&not_done(what, "luks-mount: EIO: I/O error\n"));
        assert_eq!(described(What::Put)["hint"], NO_ROOM);
        assert!(described(What::Look)["hint"].is_null());
    }

    #[test]
    fn a_lease_reads_as_it_was_written() {
        let lease = Lease::of(&held("a", 3));
        assert_eq!(Lease::parse(lease.text().unwrap().as_bytes()), Some(lease.clone()));
        assert!(lease.until > lease.renewed && lease.until.len() == 20);
        assert!(lease.is_of(&held("a", 3)) && lease.is_of(&held("a", 4)));
        assert!(!lease.is_of(&held("a", 2)) && !lease.is_of(&held("a", 5)) && !lease.is_of(&held("b", 3)));
    }
}
