//! Under systemd: a unit of its own for sshfs.
//!
//! What serves a mount must live as long as the mount. When a unit ends, systemd ends every process in it: also the
//! sshfs below a container that could not be closed, with all that had not been written yet. In a scope of its own,
//! sshfs outlives the unit that started it, is not stopped at shutdown before the container has been unmounted
//! (no default dependencies), and goes when it is unmounted.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use common::mutant;
use common::run::Cmd;
use common::status::Report;

/// What stands before the command that is to have a scope.
const SCOPE: [&str; 6] = [
    "systemd-run",
    "--scope",
    "--quiet",
    "--collect",
    "--property=DefaultDependencies=no",
    "--description=sshfs of nc-backup",
];

/// Longer than systemd needs on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// The words to put before sshfs: none, unless this is a part of a unit that systemd could end.
pub(crate) fn words(report: &mut Report) -> Vec<OsString> {
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if !Path::new("/run/systemd/system").is_dir()
        || !in_service(&cgroup)
        || mutant::active("sshfs-ends-with-the-unit")
    {
        return Vec::new();
    }
    let tried = Cmd::new(SCOPE[0]).args(&SCOPE[1..]).args(["--", "true"]).timeout(LIMIT).checked();
    if let Err(e) = tried {
        report.warn(
            "no-scope",
            format!("systemd gives sshfs no scope of its own, so it ends with the unit that this is a part of: {e}"),
        );
        return Vec::new();
    }
    SCOPE.iter().chain(&["--"]).map(OsString::from).collect()
}

/// Whether `cgroup`, the content of that file, is that of a process of a service.
fn in_service(cgroup: &str) -> bool {
    let path = cgroup.lines().filter_map(|line| line.rsplit_once(':')).map(|(_, path)| path);
    path.flat_map(|path| path.split('/')).any(|unit| unit.ends_with(".service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_told_by_its_control_group() {
        assert!(in_service(
            "0::/system.slice/system-nc\\x2dbackup\\x2doffsite.slice/nc-backup-offsite@home.service\n"
        ));
        assert!(in_service("12:pids:/x\n1:name=systemd:/system.slice/cron.service\n0::/\n"));
        for other in ["0::/user.slice/user-0.slice/session-3.scope\n", "0::/\n", "", "0::/init.scope"] {
            assert!(!in_service(other), "{other}");
        }
    }
}
