//! Other processes: what `/proc` tells of one, and which one a record means.
//!
//! A number alone names nobody: it is given again, and after a reboot all of them are. With the moment of its start, in
//! ticks since boot, and the boot, it names one process for good. Records carry all three ([`Identity`]), and the name for
//! people: what is recorded of another boot is no proof of anything. Signals go through a descriptor that is opened before
//! the process is judged, so that a number that is given again in between never hits a stranger.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{mutant, pidfd};

/// A process as `/proc/PID/stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// The number of its parent.
    pub parent: u32,
    /// The number of its group.
    pub group: u32,
    /// The number of the process that began its session.
    pub session: u32,
    /// When it was started, in ticks since boot.
    pub start_time: u64,
    /// How long it has worked, in milliseconds.
    pub worked_ms: u64,
    threads: u32,
}

impl Process {
    /// The process with this number, unless it has ended.
    pub fn find(pid: u32) -> Option<Process> {
        let stat = std::fs::read(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        Process::parse(&String::from_utf8_lossy(&stat)).filter(|p| !p.has_ended())
    }

    /// All that can be seen and have not ended.
    pub fn all() -> Vec<Process> {
        let list = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        list.filter_map(|e| Process::find(e.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// The process `top` and all that descend from it, as far as their parents live.
    pub fn tree(top: u32) -> Vec<Process> {
        let mut rest = Process::all();
        let mut ours = HashSet::from([top]);
        let mut found: Vec<Process> = Vec::new();
        loop {
            let (new, others): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|p| ours.contains(&p.pid) || ours.contains(&p.parent));
            if new.is_empty() {
                return found;
            }
            ours.extend(new.iter().map(|p| p.pid));
            found.extend(new);
            rest = others;
        }
    }

    /// Parses a line of proc_pid_stat(5); the name may hold blanks and parentheses.
    pub fn parse(stat: &str) -> Option<Process> {
        let (pid, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
        let small = |n: usize| u32::try_from(number(n)?).ok();
        Some(Process {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: small(1)?,
            group: small(2)?,
            session: small(3)?,
            // User and system, in hundredths of a second on every Linux.
            worked_ms: 10 * (number(11)? + number(12)?),
            threads: small(17)?,
            start_time: number(19)?,
        })
    }

    /// Whether it was killed, though some of its threads may still hold what is its own.
    pub fn is_ending(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Only waits to be collected. A leader that has ended, and whose threads live on, has not.
    fn has_ended(&self) -> bool {
        self.is_ending() && self.threads <= 1
    }

    /// What to record of it.
    pub fn identity(&self) -> Identity {
        Identity {
            pid: self.pid,
            start_time: self.start_time,
            boot_id: boot_id(),
            name: Some(self.name.clone()),
        }
    }
}

/// What names one process for good.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it was started, in ticks since boot.
    pub start_time: u64,
    /// The boot that both are of. A record without it proves nothing.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// What it was called, for people.
    #[serde(default)]
    pub name: Option<String>,
}

impl Identity {
    /// Of the process with this number, unless it has ended.
    pub fn of(pid: u32) -> Option<Identity> {
        Process::find(pid).map(|p| p.identity())
    }

    /// Whether it was recorded since this machine was started.
    pub fn is_of_this_boot(&self) -> bool {
        is_this_boot(self.boot_id.as_deref())
    }

    /// The process itself, if it lives.
    pub fn find(&self) -> Option<Process> {
        Process::find(self.pid).filter(|now| now.start_time == self.start_time && self.is_of_this_boot())
    }

    /// Whether it lives.
    pub fn lives(&self) -> bool {
        self.find().is_some()
    }

    /// Sends it `signal`, if it lives.
    pub fn signal(&self, signal: Signal) {
        if let Ok(held) = pidfd::open(self.pid)
            && self.lives()
        {
            pidfd::signal(&held, signal);
        }
    }

    /// Ends it with SIGKILL and waits until it is gone; false if it is not within `limit`.
    pub fn end(&self, limit: Duration) -> Result<bool> {
        let Ok(held) = pidfd::open(self.pid) else { return Ok(true) };
        if !self.lives() {
            return Ok(true);
        }
        pidfd::signal(&held, Signal::SIGKILL);
        Ok(pidfd::gone_within(&held, limit))
    }
}

/// The kernel's name for the time since this machine was started.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Whether what was recorded with `boot_id` is of the time since this machine was started: records lie in folders that
/// may survive a reboot.
pub fn is_this_boot(recorded: Option<&str>) -> bool {
    mutant::active("a-record-of-another-boot-counts")
        || recorded.is_some_and(|id| boot_id().is_some_and(|now| now == id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Cmd;

    #[test]
    fn what_the_kernel_says_is_read() {
        let stat = "77 (a) b) (c) S 1 76 75 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 999 1\n";
        let process = Process::parse(stat).unwrap();
        let numbers = (process.pid, process.parent, process.group, process.session, process.start_time);
        assert_eq!(numbers, (77, 1, 76, 75, 12345));
        assert_eq!((process.name.as_str(), process.state, process.worked_ms), ("a) b) (c", 'S', 110));
        assert!(Process::parse(&stat.replace(" S ", " Z ")).unwrap().has_ended());
        assert!(
            !Process::parse(&stat.replace(" S ", " Z ").replace(" 20 0 1 ", " 20 0 2 ")).unwrap().has_ended()
        );
        assert_eq!(Process::parse("garbage"), None);
        let me = Process::find(std::process::id()).unwrap();
        assert_eq!(me.identity(), Identity::of(me.pid).unwrap());
    }

    #[test]
    fn a_tree_is_a_process_and_what_it_started() {
        let mut child = Cmd::new("sh").args(["-c", "setsid sleep 60 & sleep 60; :"]).spawn_piped().unwrap();
        let mut other = Cmd::new("sleep").arg("60").spawn_piped().unwrap();
        let names = || {
            let mut names: Vec<_> = Process::tree(child.id()).into_iter().map(|p| p.name).collect();
            names.sort();
            names
        };
        let begin = std::time::Instant::now();
        while names() != ["sh", "sleep", "sleep"] {
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", names());
        }
        for process in Process::tree(child.id()).iter().filter(|p| p.name == "sleep") {
            assert!(process.identity().end(Duration::from_secs(5)).unwrap());
        }
        child.end();
        other.end();
    }

    #[test]
    fn a_record_of_another_boot_or_start_means_nobody() {
        let mut child = Cmd::new("sleep").arg("60").spawn_piped().unwrap();
        let right = Identity::of(child.id()).unwrap();
        let other = Some("00000000-0000-0000-0000-000000000000".to_owned());
        for wrong in [
            Identity { start_time: right.start_time - 1, ..right.clone() },
            Identity { boot_id: other, ..right.clone() },
            Identity { boot_id: None, ..right.clone() },
        ] {
            assert!(!wrong.lives());
            wrong.signal(Signal::SIGKILL);
            assert!(wrong.end(Duration::ZERO).unwrap());
        }
        assert!(right.lives() && child.try_wait().unwrap().is_none());
        assert!(right.end(Duration::from_secs(10)).unwrap());
        assert!(!right.lives());
        child.end();
    }
}
