//! `mount`, `unmount` and `status`.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::fuse::{self, Health};
use common::lock::Lock;
use common::processes::Identity;
use common::run::{self, Child};
use common::status::{Report, now};
use common::{complaint, say, signals};
use serde_json::json;

use crate::mounted::{self, State};
use crate::record::Record;
use crate::settings::Settings;
use crate::{TOOL, scope, sftp_extensions, sshfs, wire};

/// What `main` runs.
pub(crate) type Work = fn(&Settings, &mut Report) -> Result<()>;

/// Beyond the time for connecting: how long keys and the first answer may take.
const HANDSHAKE: Duration = Duration::from_secs(40);

/// Mounts, unless it is mounted.
pub(crate) fn mount(settings: &Settings, report: &mut Report) -> Result<()> {
    let _lock = lock(settings, Duration::from_secs(2))?;
    let state = mounted::state(settings, report)?;
    tell(settings, &state, report);
    match &state {
        State::Healthy => {
            let limit = Record::load(settings).map(|r| r.bwlimit_bytes);
            if limit.is_some_and(|l| l != settings.bwlimit()) {
                report.warn("bwlimit-differs", "it is mounted already, with another bwlimit, which stays");
            }
            return Ok(());
        }
        State::Foreign(what) => return Err(foreign(settings, what)),
        State::Hung | State::Dead => {
            let message = format!("{} was {}: it is mounted anew", settings.source(), state.word());
            report.warn("stale-mount", message);
            report.changed = true;
        }
        // Yet a mount that was killed on its way may have left its sshfs.
        State::Unmounted => {}
    }
    ready(settings)?;
    match state {
        State::Unmounted => mounted::end_unmounted(settings, report)?,
        _ => mounted::clear(settings, report)?,
    }
    forget(settings)?;
    mounted::prepare(settings)?;
    start(settings, report)?;
    report.changed = true;
    tell(settings, &State::Healthy, report);
    say!(TOOL, "{} is mounted at {}", settings.source(), settings.mount_point.display());
    Ok(())
}

/// Unmounts, unless it is not mounted.
pub(crate) fn unmount(settings: &Settings, report: &mut Report) -> Result<()> {
    // As long as a mount can take at most.
    let _lock = lock(settings, connect_limit(settings) + Duration::from_secs(30))?;
    let state = mounted::state(settings, report)?;
    tell(settings, &state, report);
    match &state {
        State::Foreign(what) => return Err(foreign(settings, what)),
        State::Unmounted if Record::load(settings).is_some() => {
            report.warn(
                "ended-by-itself",
                "its sshfs has ended before: the connection broke, or somebody else unmounted it",
            );
            mounted::end_unmounted(settings, report)?;
        }
        State::Unmounted => {}
        State::Healthy => {
            mounted::unmount(settings, report)?;
            report.changed = true;
        }
        State::Hung | State::Dead => {
            report
                .warn("link-dead", format!("{} was {}: its sshfs is ended", settings.source(), state.word()));
            mounted::clear(settings, report)?;
            report.changed = true;
        }
    }
    // Now the relay has written its last numbers.
    tell(settings, &State::Unmounted, report);
    forget(settings)
}

/// Tells.
pub(crate) fn status(settings: &Settings, report: &mut Report) -> Result<()> {
    let state = mounted::state(settings, report)?;
    tell(settings, &state, report);
    say!(TOOL, "{} at {}: {}", settings.source(), settings.mount_point.display(), state.word());
    if let State::Foreign(what) = state {
        say!(TOOL, "mounted there is {what}");
    }
    Ok(())
}

fn lock(settings: &Settings, patience: Duration) -> Result<Lock> {
    let what = format!("the mount point {}", settings.mount_point.display());
    Lock::exclusive_within(&settings.runtime.join("s3.lock"), &what, patience)
}

fn connect_limit(settings: &Settings) -> Duration {
    let seconds = settings.options.number("ConnectTimeout", sshfs::CONNECT_TIMEOUT);
    Duration::from_secs(seconds.into()) + HANDSHAKE
}

fn foreign(settings: &Settings, what: &str) -> anyhow::Error {
    let place = settings.mount_point.display();
    Fault::config(format!("at {place}, something else is mounted: {what}, not {}", settings.source()))
        .hint(format!("name another mount point, or unmount that by hand: umount {place}"))
        .into()
}

/// What must be there before anything is touched.
fn ready(settings: &Settings) -> Result<()> {
    let program = settings.sshfs.program.first().map_or("sshfs", String::as_str);
    run::program(program.as_ref()).map_err(|e| {
        let fault = Fault::unavailable(format!("{e}"));
        fault.hint(format!("apt-get install sshfs, or name {program} by its absolute path in the profile"))
    })?;
    if !Path::new("/dev/fuse").exists() {
        return Err(Fault::unavailable("there is no /dev/fuse: this kernel has no FUSE loaded")
            .hint("modprobe fuse; in a container, let its host pass /dev/fuse")
            .into());
    }
    if let Some(key) = &settings.sshfs.identity {
        let name = key.display();
        let meta = std::fs::metadata(key).map_err(|e| {
            Fault::config(format!("the private key {name} cannot be used: {e}"))
                .hint(format!("make one: ssh-keygen -t ed25519 -N '' -f {name}"))
        })?;
        if !meta.is_file() {
            return Err(Fault::config(format!("the private key {name} is not a file")).into());
        }
        if meta.uid() != 0 || meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o7777;
            let message = format!(
                "the private key {name} must be root's alone; it has owner {} and mode {mode:04o}",
                meta.uid()
            );
            return Err(Fault::denied(message)
                .hint(format!("chown root {name} && chmod 0600 {name}"))
                .into());
        }
    }
    Ok(())
}

/// Removes what was remembered of an earlier mount.
fn forget(settings: &Settings) -> Result<()> {
    Record::remove(settings)?;
    wire::remove(settings)
}

/// Starts sshfs and waits until it serves; else nothing of it stays.
fn start(settings: &Settings, report: &mut Report) -> Result<()> {
    if settings.counted() {
        wire::reset(settings)?;
    }
    let mut child = sshfs::command(settings, &scope::words(report))?.start(Stdio::null(), Stdio::null())?;
    // Both connect at the same time: one after the other, each handshake takes ten round trips.
    let given_up = AtomicBool::new(false);
    let (result, syncs) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| sftp_extensions::syncs(settings, connect_limit(settings), &given_up));
        let result = remember(settings, &child).and_then(|()| served(settings, &mut child));
        given_up.store(result.is_err(), Ordering::SeqCst);
        (result, asked.join())
    });
    let Err(error) = result else {
        child.detach();
        let syncs = syncs.unwrap_or_else(|_| Err(anyhow::anyhow!("internal error while S3 was asked")));
        note_syncs(settings, syncs, report);
        return Ok(());
    };
    child.end();
    let cleared = mounted::clear(settings, report).and_then(|()| forget(settings));
    if let Err(second) = cleared {
        say!(TOOL, "and while undoing: {second:#}");
    }
    Err(error)
}

fn remember(settings: &Settings, child: &Child) -> Result<()> {
    // One that has ended already is told of by what it said.
    let Some(server) = Identity::of(child.id()) else { return Ok(()) };
    let record = Record {
        server,
        source: settings.source(),
        mount_point: settings.mount_point.clone(),
        since: now(),
        bwlimit_bytes: settings.bwlimit(),
        fsync: None,
    };
    record.save(settings)
}

/// Says, and notes, if what is synced on S3 may not be on its disk.
fn note_syncs(settings: &Settings, asked: Result<bool>, report: &mut Report) {
    let noted = Record::load(settings).map(|mut record| {
        record.fsync = asked.as_ref().ok().copied();
        record.save(settings)
    });
    if let Some(Err(error)) = noted {
        report.warn("not-noted", format!("{error:#}"));
    }
    let machine = settings.machine();
    match asked {
        Ok(true) => {}
        Ok(false) => report.warn(
            "no-fsync",
            format!(
                "{machine} has no fsync: its sftp server does not know fsync@openssh.com, so what counts as written may \
                 be lost if it loses power. OpenSSH 6.5 and newer has it; `sftp-server -P` may hide it"
            ),
        ),
        Err(error) => report.warn(
            "fsync-unknown",
            format!("whether what is synced reaches the disk of {machine} could not be found out: {error:#}"),
        ),
    }
}

/// Waits until the mount answers.
fn served(settings: &Settings, child: &mut Child) -> Result<()> {
    let limit = connect_limit(settings);
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        signals::check()?;
        if let Some(status) = child.try_wait()? {
            return Err(sshfs::explain(settings, child.failure_for(status)?));
        }
        let there = mounted::entry(settings)?.is_some_and(|m| mounted::is_ours(settings, &m));
        // It is in the table before it is connected; until then nothing answers.
        if there && fuse::probe(&settings.mount_point, Duration::from_secs(1))? == Health::Healthy {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = complaint::tail(&child.stderr()?);
    Err(Fault::unavailable(format!("{} did not answer within {limit:?}", settings.machine()))
        .hint("is the machine overloaded, or the link very slow? ConnectTimeout in options allows more"))
    .with_context(|| format!("sshfs said: {said}"))
}

/// Fills `data`.
fn tell(settings: &Settings, state: &State, report: &mut Report) {
    report.set("state", state.word());
    report.set_text("mount_point", settings.mount_point.as_os_str());
    report.set("source", settings.source());
    let ours = matches!(state, State::Healthy | State::Hung | State::Dead);
    let record = Record::load(settings);
    let remembered = record.is_some();
    let record = record.filter(|_| ours);
    let server = mounted::server(settings).filter(|_| ours);
    report.set("pid", json!(server.map(|s| s.pid)));
    report.set("since", json!(record.as_ref().map(|r| &r.since)));
    report.set("bwlimit_bytes", json!(record.as_ref().and_then(|r| r.bwlimit_bytes)));
    report.set("fsync", json!(record.as_ref().and_then(|r| r.fsync)));
    let counts = wire::read(settings).filter(|_| !matches!(state, State::Foreign(_)) && remembered);
    report.set("sent_bytes", json!(counts.map(|c| c.sent)));
    report.set("received_bytes", json!(counts.map(|c| c.received)));
}
