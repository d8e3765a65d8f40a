//! The processes of one mount: sshfs, which leads a session of its own, and the ssh and relay that it started.
//!
//! sshfs detaches its ssh from itself, so only the session ties them together. Every process is pinned by a
//! descriptor before it is judged and ended, so that a number that is used again never hits a stranger.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;
use common::fuse;

/// What `/proc/PID/stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// Its session: the number of the process that began it.
    pub(crate) session: u32,
    /// When it was started, in clock ticks since boot; with the number, this names a process for good.
    pub(crate) start: u64,
    name: String,
}

impl Process {
    /// The process with this number, unless it has ended.
    pub(crate) fn find(pid: u32) -> Option<Process> {
        parse(&std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?)
    }

    /// The sshfs that was started as `pid` at `start`: it began a session.
    pub(crate) fn leader(pid: u32, start: u64) -> Process {
        Process { pid, session: pid, start, name: "sshfs".into() }
    }

    /// Whether it is still there.
    pub(crate) fn lives(&self) -> bool {
        Process::find(self.pid).is_some_and(|now| now.start == self.start)
    }

    /// Ends it with SIGKILL; false if it is still there after `limit`.
    fn end(&self, limit: Duration) -> Result<bool> {
        fuse::end(self.pid, |pid| Process::find(pid).is_some_and(|now| now.start == self.start), limit)
    }
}

/// Fields 1, 2, 6 and 22 of proc_pid_stat(5); `None` also for one that has ended and waits to be collected.
fn parse(stat: &str) -> Option<Process> {
    // The name may hold blanks and parentheses.
    let (begin, rest) = stat.rsplit_once(')')?;
    let (pid, name) = begin.split_once(" (")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    Some(Process {
        pid: pid.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        name: name.to_owned(),
    })
}

/// The ssh and relay processes of the session that `leader` began; `leader` itself need not live any more.
pub(crate) fn companions(leader: &Process) -> Vec<Process> {
    // The number of a session is not given to a new process as long as the session has members.
    if leader.session != leader.pid || Process::find(leader.pid).is_some_and(|now| now.start != leader.start)
    {
        return Vec::new();
    }
    let list = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = list.filter_map(|e| Process::find(e.file_name().to_str()?.parse().ok()?));
    all.filter(|p| p.session == leader.pid && p.pid != leader.pid && p.start >= leader.start)
        .filter(|p| matches!(p.name.as_str(), "ssh" | "sshfs-mount" | "sh"))
        .collect()
}

/// Waits until sshfs and what it started have ended by themselves; false if they have not within `limit`.
pub(crate) fn gone_within(leader: &Process, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if !leader.lives() && companions(leader).is_empty() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends sshfs and its ssh now. The relay gets a moment to write down its last numbers.
pub(crate) fn end(leader: &Process) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(3);
    let followers = companions(leader);
    let mut gone = leader.end(LIMIT)?;
    for ssh in followers.iter().filter(|p| p.name != "sshfs-mount") {
        gone &= ssh.end(LIMIT)?;
    }
    if !gone_within(leader, LIMIT) {
        for process in companions(leader) {
            gone &= process.end(LIMIT)?;
        }
    }
    if gone {
        return Ok(());
    }
    Err(Fault::failed(format!("process {} does not end, not even by SIGKILL: it is stuck", leader.pid))
        .hint("the kernel lets it go when what it waits for answers or is given up; else reboot")
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::run::Cmd;

    #[test]
    fn odd_names_do_not_shift_the_fields() {
        let tail = " S 1 40 39 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        let process = parse(&format!("41 (a) (b c){tail}")).unwrap();
        let name = "a) (b c".to_owned();
        assert_eq!(process, Process { pid: 41, session: 39, start: 98765, name });
        assert_eq!(parse(&format!("41 (x){}", tail.replacen('S', "Z", 1))), None, "it has ended");
        assert_eq!(parse("41 (x) S 1 40"), None);
    }

    #[test]
    fn only_processes_of_the_session_are_companions() {
        let mut ours = Cmd::new("sh").args(["-c", "sh -c 'sleep 60; :' & wait"]).own_session();
        let mut child = ours.start(std::process::Stdio::null(), std::process::Stdio::null()).unwrap();
        ours = Cmd::new("sh").args(["-c", "sleep 60; :"]).own_session();
        let mut other = ours.start(std::process::Stdio::null(), std::process::Stdio::null()).unwrap();
        let leader = Process::find(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while companions(&leader).len() != 1 {
            assert!(Instant::now() < deadline, "{:?}", companions(&leader));
        }
        // Another process with the leader's number: the session is not the one we know.
        assert_eq!(companions(&Process { start: leader.start - 1, ..leader.clone() }), []);
        end(&leader).unwrap();
        assert!(!leader.lives() && companions(&leader).is_empty());
        assert!(other.try_wait().unwrap().is_none(), "the neighbour lives");
        child.end();
        other.end();
    }
}
