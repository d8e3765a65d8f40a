//! sshfs-mount against a real sshd on loopback, as root.
#![expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attack;
mod faults;
mod limits;
mod refused;
mod relay;
mod story;
mod world;
