//! The far end of a copy: a child of this program, behind a door that opens to its parent alone.

use std::os::fd::RawFd;
use std::path::Path;

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use common::profile::{Bytes, Profile};
use common::program::Program;
use common::run::Cmd;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{geteuid, getppid};

use crate::cli::Copy;

/// Bytes that stay free unless told otherwise.
const RESERVE: Bytes = Bytes(64 << 20);

/// The far end of the other store, as a child: its door opens to nobody but the process that has made the socket `starter`.
pub fn far_end(args: &Copy, profile: &Profile, to: &Path, starter: RawFd) -> Result<Cmd> {
    let reserve = args.reserve_bytes.or(profile.offsite.reserve_bytes.map(Bytes)).unwrap_or(RESERVE);
    let cmd =
        Program::own()?.cmd().arg("copy-end").arg(format!("--starter-fd={starter}")).arg("--store").arg(to);
    Ok(cmd
        .inherit(starter)
        .args([format!("--reserve-bytes={}", reserve.0), format!("--flush-bytes={}", args.flush_bytes.0)]))
}

/// Whether the process that started this one has left the socket `starter` for it: nothing that comes through a login, a forced
/// command or a shell can.
pub fn started_by_copy(starter: RawFd) -> Result<()> {
    let by_hand = || Fault::usage("copy-end is started by copy, never by hand");
    if starter < 3 {
        return Err(by_hand().into());
    }
    let socket = crate::rsync::inherited(starter).ok_or_else(by_hand)?;
    let peer = getsockopt(&socket, PeerCredentials).map_err(|_| by_hand())?;
    // A pair is made by one process: ours is the child of that.
    let ours = (peer.pid(), peer.uid()) == (getppid().as_raw(), geteuid().as_raw());
    if ours || mutant::active("copy-end-by-hand") { Ok(()) } else { Err(by_hand().into()) }
}
