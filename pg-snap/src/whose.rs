//! Names of what a run makes on the server, that say which run: `BEGIN…MACHINE_PID_STARTED_TIME_RANDOM`.
//!
//! What a killed run left is known by its name: at once if its process, on this machine, is gone; after two days if it is
//! another machine's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use common::processes::Process;
use common::record::random_id;

use crate::names::fnv1a;

/// How old another machine's may be.
const OLDEST: Duration = Duration::from_secs(2 * 24 * 3600);

/// 8 hexadecimal digits for this machine and, in a container, its own process numbers.
fn machine() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let host = nix::unistd::gethostname().unwrap_or_default();
    let pids = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let text = format!("{id}{}{}", host.to_string_lossy(), pids.display());
    format!("{:08x}", fold(fnv1a(text.as_bytes())))
}

fn fold(hash: u64) -> u32 {
    u32::try_from((hash ^ (hash >> 32)) & u64::from(u32::MAX)).unwrap_or(0)
}

/// When a process began, in ticks since boot; `None` if there is none.
fn started(pid: u32) -> Option<u64> {
    Process::find(pid).map(|p| p.start_time)
}

/// A name that begins with `begin` and says who made it.
pub(crate) fn new_name(begin: &str) -> Result<String> {
    let pid = std::process::id();
    let ticks = started(pid).context("/proc does not show this process")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok(format!("{begin}{}_{pid}_{ticks}_{now}_{}", machine(), &random_id()?[..8]))
}

/// Whether the run that made `name`, which begins with `begin`, is gone.
pub(crate) fn is_abandoned(name: &str, begin: &str) -> bool {
    let Some(rest) = name.strip_prefix(begin) else { return false };
    let parts: Vec<&str> = rest.split('_').collect();
    let [host, pid, ticks, at, _] = parts.as_slice() else { return false };
    let (Ok(pid), Ok(ticks), Ok(at)) = (pid.parse::<u32>(), ticks.parse::<u64>(), at.parse::<u64>()) else {
        return false;
    };
    if *host == machine() {
        return started(pid) != Some(ticks);
    }
    let made = UNIX_EPOCH + Duration::from_secs(at);
    SystemTime::now().duration_since(made).is_ok_and(|age| age > OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "nc_backup_drill_";

    #[test]
    fn a_name_says_whose_it_is_and_fits() {
        let name = new_name(BEGIN).unwrap();
        assert!(name.len() <= 63, "{name}");
        assert!(!is_abandoned(&name, BEGIN));
        let gone = name.replace(&format!("_{}_", std::process::id()), "_4194999_");
        assert!(is_abandoned(&gone, BEGIN), "{gone}");
    }

    #[test]
    fn another_machines_is_left_alone_for_two_days_and_anything_else_for_ever() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let name = |at: u64| format!("{BEGIN}ffffffff_1_1_{at}_00000000");
        assert!(!is_abandoned(&name(now), BEGIN) && is_abandoned(&name(now - 3 * 24 * 3600), BEGIN));
        for other in ["nextcloud", "nc_backup_drill_", "nc_backup_drill_mine", "nc_backup_drill_a_b_c_d_e"] {
            assert!(!is_abandoned(other, BEGIN), "{other}");
        }
    }
}
