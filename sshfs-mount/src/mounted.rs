//! How the mount stands: what the mount table says, and what answers.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::fuse::{self, Health};
use common::mounts::{self, Mount};
use common::processes::Identity;
use common::run::Cmd;
use common::status::Report;
use common::{holders, signals};

use crate::record::Record;
use crate::session;
use crate::settings::Settings;
use crate::wire;

/// How long a mount may take to answer.
const PROBE: Duration = Duration::from_secs(5);

/// When it does not: how many bytes through the relay, within what time, mean that it is only slow. ssh's own signs
/// of life are far fewer.
const ALIVE: (u64, Duration) = (1024, Duration::from_secs(3));

/// How long a busy mount is tried again: one whose server lives, and one whose server is gone.
const BUSY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(4));

/// How long sshfs may take to end after its mount has gone.
const END: Duration = Duration::from_secs(5);

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Unmounted,
    /// Ours, and it answers.
    Healthy,
    /// Ours, and there is no answer.
    Hung,
    /// Ours, and its server is gone.
    Dead,
    /// Something else: its type and source.
    Foreign(String),
}

impl State {
    /// The word for `data.state`.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            State::Unmounted => "unmounted",
            State::Healthy => "healthy",
            State::Hung => "hung",
            State::Dead => "dead",
            State::Foreign(_) => "foreign",
        }
    }
}

/// What the mount table shows at our mount point, on top.
pub(crate) fn entry(settings: &Settings) -> Result<Option<Mount>> {
    Ok(mounts::table()?.into_iter().rfind(|m| m.target == settings.mount_point))
}

/// Whether `mount` is the folder we are to mount.
pub(crate) fn is_ours(settings: &Settings, mount: &Mount) -> bool {
    mount.fs_type == "fuse.sshfs" && mount.source == *settings.source()
}

/// Looks, and asks what is mounted whether it answers.
pub(crate) fn state(settings: &Settings, report: &mut Report) -> Result<State> {
    let Some(mount) = entry(settings)? else { return Ok(State::Unmounted) };
    if !is_ours(settings, &mount) {
        let source = mount.source.to_string_lossy().into_owned();
        return Ok(State::Foreign(format!("{source} ({})", mount.fs_type)));
    }
    Ok(match fuse::probe(&settings.mount_point, PROBE)? {
        Health::Healthy => State::Healthy,
        Health::Dead(_) => State::Dead,
        Health::Hung if bytes_move(settings) => {
            let message = format!("{} answers slowly: much is on its way", mount.target.display());
            report.warn("slow", message);
            State::Healthy
        }
        Health::Hung => State::Hung,
    })
}

fn bytes_move(settings: &Settings) -> bool {
    let total = || wire::read(settings).map(|c| c.sent + c.received);
    let Some(before) = total() else { return false };
    let deadline = Instant::now() + ALIVE.1;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        if total().is_some_and(|now| now >= before + ALIVE.0) {
            return true;
        }
    }
    false
}

/// The sshfs that serves our mount, living: as recorded, else found.
pub(crate) fn server(settings: &Settings) -> Option<Identity> {
    let recorded = Record::load(settings).map(|r| r.server).filter(Identity::lives);
    recorded.or_else(|| fuse::servers(&settings.mount_point).into_iter().find_map(Identity::of))
}

/// Makes the mount point ready; nothing is mounted on it.
pub(crate) fn prepare(settings: &Settings) -> Result<()> {
    let path = &settings.mount_point;
    let wrong = |what: &str, hint: &str| -> anyhow::Error {
        Fault::config(format!("the mount point {} {what}", path.display())).hint(hint).into()
    };
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).with_context(|| format!("cannot make the mount point {}", path.display()));
        }
        _ => {}
    }
    let meta = std::fs::symlink_metadata(path)
        .with_context(|| format!("cannot look at the mount point {}", path.display()))?;
    if meta.is_symlink() {
        return Err(wrong("is a symbolic link", "name the folder itself"));
    }
    if !meta.is_dir() {
        return Err(wrong("is not a folder", "name another one, or remove it"));
    }
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        let what = format!("belongs to user id {} and has mode {:04o}", meta.uid(), meta.mode() & 0o7777);
        let hint = format!("chown root:root {0} && chmod 0700 {0}", path.display());
        return Err(wrong(&format!("must be root's and writable by nobody else; it {what}"), &hint));
    }
    let mut inside = std::fs::read_dir(path)
        .with_context(|| format!("cannot look into the mount point {}", path.display()))?;
    if let Some(first) = inside.next() {
        let first = first.with_context(|| format!("cannot look into {}", path.display()))?;
        let what = format!("is not empty: it holds {:?}", first.file_name());
        return Err(wrong(&what, "what is in it would be hidden: move it away, or name another folder"));
    }
    Ok(())
}

/// Unmounts what answers, and waits until its sshfs has ended.
pub(crate) fn unmount(settings: &Settings, report: &mut Report) -> Result<()> {
    let server = server(settings);
    take_off(settings, report, BUSY.0, true)?;
    let Some(server) = server else { return Ok(()) };
    if session::gone_within(&server, END) { Ok(()) } else { end_unmounted(settings, report) }
}

/// Ends an sshfs of ours that is not mounted here, unless it still serves a copy of the mount in another namespace.
pub(crate) fn end_unmounted(settings: &Settings, report: &mut Report) -> Result<()> {
    let copies = holders::elsewhere(|m| m.target == settings.mount_point && is_ours(settings, m));
    if copies.is_empty() || server(settings).is_none() {
        return end_server(settings, report);
    }
    let who = holders::line(&copies);
    let what = format!("{} is unmounted here, but {who}", settings.source());
    report
        .left_behind(what, format!("end that process, then {}", settings.command("sshfs-mount", "unmount")));
    Err(Fault::failed(format!("the file system lives on elsewhere: {who}")).into())
}

/// Ends what hangs or is dead: its own sshfs first, so that nothing waits any more, then the mount.
pub(crate) fn clear(settings: &Settings, report: &mut Report) -> Result<()> {
    end_server(settings, report)?;
    if entry(settings)?.is_some_and(|m| is_ours(settings, &m)) {
        take_off(settings, report, BUSY.1, false)?;
    }
    Ok(())
}

/// Ends our sshfs and its ssh, if there are any.
fn end_server(settings: &Settings, report: &mut Report) -> Result<()> {
    // What was recorded may have companions that outlive it.
    let recorded = Record::load(settings).map(|r| r.server);
    for process in recorded.into_iter().chain(server(settings)) {
        session::end(&process).inspect_err(|_| {
            let what = format!("sshfs (process {}) for {}", process.pid, settings.source());
            report.left_behind(what, settings.command("sshfs-mount", "unmount"));
        })?;
    }
    Ok(())
}

/// Unmounts, again and again while it is busy.
fn take_off(settings: &Settings, report: &mut Report, patience: Duration, serves: bool) -> Result<()> {
    let path = &settings.mount_point;
    let deadline = Instant::now() + patience;
    // -i, -c: without a helper, and without looking at the folder, which might never end.
    let umount = Cmd::new("umount").args(["-i", "-c", "--"]).arg(path).timeout(END).uninterruptible();
    loop {
        let output = umount.output();
        if !entry(settings)?.is_some_and(|m| is_ours(settings, &m)) {
            return Ok(());
        }
        let holders = holders::of_mount(path);
        if Instant::now() < deadline {
            if serves {
                signals::check()?;
            }
            std::thread::sleep(Duration::from_millis(250));
            continue;
        }
        if !serves && holders.is_empty() {
            // Its server is dead and nobody is in it: nothing can be lost by letting go of the name.
            Cmd::new("umount")
                .args(["-i", "-c", "-l", "--"])
                .arg(path)
                .timeout(END)
                .uninterruptible()
                .checked()?;
            return Ok(());
        }
        let who = if holders.is_empty() { "nobody that can be seen".into() } else { holders::line(&holders) };
        let looped = holders.iter().any(|h| h.name.starts_with("/dev/loop"));
        let first =
            if looped { settings.command("luks-mount", "detach") } else { "end what holds it".into() };
        let clear = format!("{first}, then {}", settings.command("sshfs-mount", "unmount"));
        report.left_behind(format!("{} is still mounted; held by {who}", path.display()), clear);
        let message = format!("{} is busy: {who}", path.display());
        return match output
            .and_then(|o| if o.status.success() { Ok(()) } else { Err(umount.failure(&o).into()) })
        {
            Err(e) => Err(e.context(Fault::failed(message))),
            Ok(()) => Err(Fault::failed(message).into()),
        };
    }
}
