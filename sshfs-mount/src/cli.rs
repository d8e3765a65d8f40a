//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::settings::Place;

/// Mounts a folder of another machine with sshfs.
///
/// The machine is the one of the profile's [offsite.sshfs], or of the options,
/// which win. Its host key must be known and our key must be let in: nothing is
/// ever asked. One sshfs process serves the mount in the background; it ends with
/// the connection, 40 seconds at most after the network went, and never connects
/// again by itself, because what was open would be lost. mount then mounts anew.
#[derive(Debug, Parser)]
#[command(name = "sshfs-mount", version, max_term_width = 80, after_help = AFTER)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) action: Action,
    /// Print the JSON object on stdout even where that is a terminal.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  sshfs-mount mount home                    the [offsite.sshfs] of profile home
  sshfs-mount mount home --bwlimit 500k     send 500 KiB a second at most
  sshfs-mount status home
  sshfs-mount unmount home
  sshfs-mount mount --host backup@s3 --directory /srv/backup \\
      --identity /root/.ssh/s3 --mount-point /mnt/s3      without a profile

PROFILE names /etc/nc-backup/PROFILE.toml; --config FILE names another file.
It runs as root, because root cannot read another account's sshfs.

--options takes, each time, one of: compression=yes|no dir_cache=yes|no
max_conns=N AddressFamily=F Ciphers=LIST Compression=yes|no ConnectTimeout=N
KexAlgorithms=LIST MACs=LIST ProxyJump=HOST ServerAliveCountMax=N
ServerAliveInterval=N. With ProxyJump, bytes are not counted and cannot be
limited, and the host that is jumped over gets its key from root's ssh_config.

The last line on stdout is one JSON object (docs/status.schema.json); on a
terminal a table for people, unless --json is given.
Exit codes: 0 done, or so already; 1 failed, and undone; 2 usage; 4 still
mounted, and who holds it; 69 the machine, its key, sshfs or /dev/fuse is not
there; 75 another mount is at work; 77 not root, or a key file others can read;
78 profile, folder or mount point is wrong; 128+N signal N, and undone.";

/// The actions.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Mount the folder, and wait until it answers.
    ///
    /// Mounted from there already: nothing is done. A mount of ours that hangs or
    /// is dead is ended first. The mount point must be an empty folder of root.
    /// A machine whose sftp server has no fsync is warned of (no-fsync).
    /// data: as of status.
    Mount(Place),
    /// Unmount it, and wait until its sshfs has ended.
    ///
    /// A busy one is tried again for 10 seconds; then the exit code is 4, and
    /// left_behind names who holds it. A hung one is ended within 15 seconds, by
    /// ending its own sshfs. data: as of status, as it was at the end.
    Unmount(Place),
    /// Tell how it stands.
    ///
    /// data: state (unmounted, healthy, hung, dead, foreign: something else is
    /// mounted there), mount_point, source, pid, since, sent_bytes,
    /// received_bytes (of this mount; of one that ended by itself until unmount
    /// or mount), bwlimit_bytes (a second), fsync (whether what is synced reaches
    /// the machine's disk). What is not known is null.
    Status(Place),
    #[command(hide = true)]
    Relay(Relay),
}

/// What ssh runs as its connection; see `relay.rs`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Relay {
    /// Where to connect.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// File that tells the bytes.
    #[arg(long)]
    pub(crate) counter: PathBuf,
    /// Bytes a second towards the host.
    #[arg(long)]
    pub(crate) bwlimit: Option<u64>,
    /// Seconds to wait for each address.
    #[arg(long, default_value_t = 20)]
    pub(crate) connect_timeout: u64,
    /// Kind of address.
    #[arg(long, value_enum, default_value_t = Family::Any)]
    pub(crate) family: Family,
}

/// ssh's `AddressFamily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// Both.
    Any,
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn help_fits_80_columns_documents_everything_and_names_every_option_allowed() {
        let help = testkit::help::is_sound(Cli::command());
        for name in crate::options::names() {
            assert!(help.contains(&format!("{name}=")), "--help does not tell of {name}");
        }
    }
}
