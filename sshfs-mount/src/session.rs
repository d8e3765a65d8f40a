//! The processes of one mount: sshfs, which leads a session of its own, and the ssh and relay that it started.
//!
//! sshfs detaches its ssh from itself, so only the session ties them together.

use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;
use common::processes::{Identity, Process};

/// The ssh and relay processes of the session that `leader` began; `leader` itself need not live any more.
pub(crate) fn companions(leader: &Identity) -> Vec<Identity> {
    // The number of a session is not given to a new process as long as the session has members.
    let another = Process::find(leader.pid).is_some_and(|now| now.start_time != leader.start_time);
    if another || !leader.is_of_this_boot() {
        return Vec::new();
    }
    let ours =
        |p: &Process| p.session == leader.pid && p.pid != leader.pid && p.start_time >= leader.start_time;
    let all = Process::all().into_iter().filter(ours);
    all.filter(|p| matches!(p.name.as_str(), "ssh" | RELAY | "sh")).map(|p| p.identity()).collect()
}

/// What the relay is called.
const RELAY: &str = "sshfs-mount";

/// Waits until sshfs and what it started have ended by themselves; false if they have not within `limit`.
pub(crate) fn gone_within(leader: &Identity, limit: Duration) -> bool {
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
pub(crate) fn end(leader: &Identity) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(3);
    let followers = companions(leader);
    let mut gone = leader.end(LIMIT)?;
    for ssh in followers.iter().filter(|p| p.name.as_deref() != Some(RELAY)) {
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
    fn only_processes_of_the_session_are_companions() {
        let mut ours = Cmd::new("sh").args(["-c", "sh -c 'sleep 60; :' & wait"]).own_session();
        let mut child = ours.start(std::process::Stdio::null(), std::process::Stdio::null()).unwrap();
        ours = Cmd::new("sh").args(["-c", "sleep 60; :"]).own_session();
        let mut other = ours.start(std::process::Stdio::null(), std::process::Stdio::null()).unwrap();
        let leader = Identity::of(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while companions(&leader).len() != 1 {
            assert!(Instant::now() < deadline, "{:?}", companions(&leader));
        }
        // Another process with the leader's number: the session is not the one we know.
        assert_eq!(companions(&Identity { start_time: leader.start_time - 1, ..leader.clone() }), []);
        assert_eq!(companions(&Identity { boot_id: Some("another".into()), ..leader.clone() }), []);
        end(&leader).unwrap();
        assert!(!leader.lives() && companions(&leader).is_empty());
        assert!(other.try_wait().unwrap().is_none(), "the neighbour lives");
        child.end();
        other.end();
    }
}
