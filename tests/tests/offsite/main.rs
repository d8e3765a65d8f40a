//! The off-site copy as a whole: real sshfs, real LUKS, three hosts and a slow link between the last two.
//!
//! In user-mode Linux where this kernel has no device mapper.
#![expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]

mod carry;
mod faults;
mod night;
mod recovery;
mod sudo;
mod world;
