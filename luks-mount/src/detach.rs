//! Taking down: unmount, close, end the loop device, from whatever is up. Also how everything else here undoes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::fuse::Health;
use common::holders;
use common::mounts::{self, Mount};
use common::run::Cmd;
use common::signals;
use common::status::Report;

use crate::begun::Begun;
use crate::fs::FileSystem;
use crate::losetup::{self, Loop};
use crate::marks::Marks;
use crate::record::Record;
use crate::settings::Settings;
use crate::stack::{self, Mapping, Stack, State};
use crate::watch::Watch;
use crate::{dmsetup, facts, fs, holding};

/// How long a busy file system, mapping or loop device is tried again.
const BUSY: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);
/// What a link that lives and has nothing to do needs to answer.
const SHORT: Duration = Duration::from_secs(2);

/// How it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Down {
    /// Something was up.
    pub(crate) changed: bool,
    /// All that was written has reached the image, as far as can be known.
    pub(crate) clean: bool,
}

/// `detach`.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    // Clean-up never answers busy. Two at once get in each other's way, which each step then says.
    let _lock = settings.lock_patiently().map_err(|e| report.warn("not-locked", format!("{e:#}"))).ok();
    // Without it, what is up is still recognised by the image below it.
    let record = Record::load(settings).unwrap_or_else(|error| {
        report.warn("no-record", format!("{error:#}"));
        None
    });
    let down = take_down(settings, record.as_ref(), report);
    report.changed = down.as_ref().is_ok_and(|d| d.changed);
    report.set("clean", down.as_ref().is_ok_and(|d| d.clean));
    facts::tell(settings, record.as_ref(), &stack::look(settings, record.as_ref())?, report)?;
    let what = if down?.changed { "detached" } else { "was not attached" };
    common::say!(crate::TOOL, "{} {what}", settings.name);
    Ok(())
}

/// Takes down all layers that are ours. What cannot be taken down is told as left behind.
pub(crate) fn take_down(settings: &Settings, record: Option<&Record>, report: &mut Report) -> Result<Down> {
    let stack = stack::look(settings, record)?;
    if let Some(foreign) = &stack.foreign {
        return Err(Fault::config(format!("this is not ours to detach: {foreign}")).into());
    }
    let mut down = Down { changed: stack.state != State::Detached, clean: true };
    let mut watch = settings.watch(true)?;
    if !down.changed {
        holding::release(settings, &mut watch, report);
        return Ok(down);
    }
    watch.device = stack.loops.first().map(|l| l.name.clone());
    // One that does not answer at once may be slow: that shows while it is worked with.
    if matches!(watch.health(SHORT)?, Some(Health::Dead(_))) {
        watch.end_link()?;
    }
    let writable = stack.mapping.as_ref().is_some_and(|m| !m.read_only);
    if writable
        && !watch.dead
        && let Some(whose) = holding::is_lost(settings, &mut watch)
    {
        down.clean = false;
        // What is still to be written would make noise of what the other machine writes.
        report.warn("lease-lost", format!("another machine has taken the container over: {whose}"));
        if settings.link()?.is_some() {
            watch.end_link()?;
        }
    }
    let all_down = layers(settings, &stack, &mut watch, &mut down, report);
    if watch.dead {
        down.clean &= !writable;
        let lost = if writable { "; what was written last may not have reached the image" } else { "" };
        report.warn("link-dead", format!("the link to the image was dead, and has been ended{lost}"));
    }
    if writable && !down.clean {
        note_check(settings, report);
    }
    if let Err(error) = all_down {
        let left = stack::look(settings, record)?;
        if left.state != State::Detached {
            let what = format!("the container {} is {}: {error:#}", settings.name, left.state.word());
            report.left_behind(what, format!("end what holds it, then {}", settings.hint("detach")));
        }
        return Err(error);
    }
    if writable && down.clean {
        holding::release(settings, &mut watch, report);
    }
    Ok(down)
}

fn layers(
    settings: &Settings,
    stack: &Stack,
    watch: &mut Watch,
    down: &mut Down,
    report: &mut Report,
) -> Result<()> {
    let last = stack.mounts.last();
    if let Some(mount) = last.filter(|m| !m.options.iter().any(|o| o == "ro")) {
        let cmd = Cmd::new("sync").arg("-f").arg(&mount.target).uninterruptible();
        let synced = watch.checked(&cmd);
        if let Err(error) = synced.as_ref().map(|_| ())
            && !watch.dead
        {
            down.clean = false;
            report.warn("sync-failed", format!("not all that was written has reached the image: {error:#}"));
        }
    }
    if let Some(mapping) = stack.mapping.as_ref().filter(|m| !m.read_only) {
        // The options as they are after the sync.
        let now = mounts::table()?.into_iter().filter(|m| is_one_of(m, &stack.mounts));
        if let Some(why) = now.filter_map(|m| fs::failed(&m, &mapping.dm)).next() {
            if down.clean {
                report.warn("sync-failed", format!("not all that was written has reached the image: {why}"));
            }
            down.clean = false;
        }
        if !down.clean {
            // Before the traces of it are gone.
            note_check(settings, report);
        }
    }
    for mount in stack.mounts.iter().rev() {
        unmount(mount, watch)?;
    }
    let closed = marks(stack, watch).filter(|_| down.clean);
    if let Some(mapping) = &stack.mapping {
        close(mapping, stack.mounts.first(), watch)?;
    }
    for device in &stack.loops {
        // Once the mapping is closed, so that all it wrote is counted.
        if let Some((read, written)) = stack.begun.as_ref().and_then(|b| b.traffic(device)) {
            report.set("read_bytes", read);
            report.set("written_bytes", written);
        }
        if !losetup::detach(device, BUSY, |cmd| watch.output(cmd))? {
            return Err(busy(
                &format!("the loop device {}", device.device().display()),
                &device_holders(device),
            ));
        }
    }
    Begun::forget(settings);
    if let Some(marks) = closed.filter(|_| down.clean && !watch.dead)
        && let Err(error) = Record::note_closed(settings, marks)
    {
        report.warn("not-noted", format!("it is not noted how the container was closed: {error:#}"));
    }
    Ok(())
}

/// What the file system says after its last unmount, if it was mounted for writing. Not known, it is not noted: then the
/// next attach goes by what was noted at this one.
fn marks(stack: &Stack, watch: &mut Watch) -> Option<Marks> {
    let mapping = stack.mapping.as_ref().filter(|m| !m.read_only && !watch.dead)?;
    let mount = stack.mounts.iter().find(|m| !m.options.iter().any(|o| o == "ro"))?;
    let file_system = FileSystem::from_word(&mount.fs_type).ok()?;
    Marks::read(file_system, &mapping.device(), watch).ok()
}

/// Makes the next attach for writing check the file system.
fn note_check(settings: &Settings, report: &mut Report) {
    if let Err(error) = Record::note_check(settings) {
        report.warn("not-noted", format!("it is not noted that the file system must be checked: {error:#}"));
    }
}

fn is_one_of(mount: &Mount, mounts: &[Mount]) -> bool {
    mounts.iter().any(|m| m.target == mount.target && m.source == mount.source)
}

fn is_mounted(mount: &Mount) -> Result<bool> {
    Ok(mounts::table()?.iter().any(|m| is_one_of(m, std::slice::from_ref(mount))))
}

/// Unmounts synchronously: on return, what was written has been handed to the device.
fn unmount(mount: &Mount, watch: &mut Watch) -> Result<()> {
    let begin = Instant::now();
    let mut told = false;
    loop {
        // Without asking the path: its file system may have failed.
        let cmd = Cmd::new("umount").args(["-i", "-c", "--"]).arg(&mount.target).uninterruptible();
        let out = watch.output(&cmd)?;
        if !is_mounted(mount)? {
            return Ok(());
        }
        if !String::from_utf8_lossy(&out.stderr).contains("busy") {
            let doing = || format!("cannot unmount {}", mount.target.display());
            return Err(anyhow::Error::from(cmd.failure(&out))).with_context(doing);
        }
        let who = holders::of_mount(&mount.target);
        if begin.elapsed() > BUSY || signals::caught().is_some() {
            return Err(busy(&mount.target.display().to_string(), &who));
        }
        if !told && begin.elapsed() > PAUSE * 5 {
            told = true;
            let (target, line) = (mount.target.display(), holders::line(&who));
            common::say!(crate::TOOL, "waiting for {target}, which is in use: {line}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Closes the mapping. It is busy while its device is open, or mounted where we cannot see it.
fn close(mapping: &Mapping, mount: Option<&Mount>, watch: &mut Watch) -> Result<()> {
    let begin = Instant::now();
    while !dmsetup::remove(&mapping.name, watch)? {
        if begin.elapsed() > BUSY || signals::caught().is_some() {
            let mut who = holders::of_mount(&Path::new("/dev").join(&mapping.dm));
            who.extend(mount.map(|m| holders::of_device(m.device)).unwrap_or_default());
            return Err(busy(&mapping.device().display().to_string(), &who));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn device_holders(device: &Loop) -> Vec<holders::Holder> {
    holders::of_mount(&device.device())
}

fn busy(what: &str, who: &[holders::Holder]) -> anyhow::Error {
    let by = if who.is_empty() { "something that cannot be seen".into() } else { holders::line(who) };
    Fault::failed(format!("{what} is in use: {by}")).into()
}
